//! A fold of layers shows what the kernel's own mount of them shows.

mod support;

use std::path::PathBuf;

use proptest::prelude::*;
use varve_format::TreePath;
use varve_format::manifest::Manifest;
use varve_rootfs::merge::{FoldError, Layer as Folding, fold};
use varve_sys::Dir;
use varve_sys::task::{Cancel, Silent};
use varve_testkit::tree::{NAMES, Node, Tree, materialise, node, place, scan};

/// What overlayfs gives a meaning, put into a layer after its tree.
#[derive(Clone, Debug)]
enum Mark {
    Whiteout,
    WhiteoutFile { marked: bool },
    Opaque(&'static [u8]),
    Private(&'static str),
}

type Layer = (Vec<(Vec<u8>, Node)>, Vec<(Vec<u8>, Mark)>);

fn layer() -> impl Strategy<Value = Layer> {
    let mark = prop_oneof![
        4 => Just(Mark::Whiteout),
        2 => any::<bool>().prop_map(|marked| Mark::WhiteoutFile { marked }),
        4 => Just(Mark::Opaque(b"y")),
        1 => Just(Mark::Opaque(b"x")),
        1 => Just(Mark::Opaque(b"yes")),
        2 => prop_oneof![Just("origin"), Just("impure"), Just("nlink"), Just("uuid")]
            .prop_map(Mark::Private),
    ];
    let nodes = prop::collection::vec((place(), node()), 0..14);
    (nodes, prop::collection::vec((place(), mark), 0..10))
}

fn make_layer(dir: &Dir, (nodes, marks): &Layer) {
    materialise(&Tree::build(nodes), dir);
    for (place, mark) in marks {
        let names: Vec<&[u8]> = place.iter().map(|&n| NAMES[usize::from(n)]).collect();
        let path = TreePath::new(&names.join(&b'/')).unwrap();
        let Ok(parent) = dir.open_dir(path.parent().unwrap().as_path()) else { continue };
        let name = path.name();
        let there = parent.stat_opt(name).unwrap();
        match mark {
            Mark::Whiteout if there.is_none() => parent.whiteout(name).unwrap(),
            Mark::WhiteoutFile { marked } if there.is_none() => {
                parent.create_file(name, 0o644).unwrap();
                parent.set_xattr(name, b"trusted.overlay.whiteout", b"").unwrap();
                if *marked {
                    parent.set_xattr(".", b"trusted.overlay.opaque", b"x").unwrap();
                    dir.set_xattr(".", b"trusted.overlay.opaque", b"x").unwrap();
                }
            }
            Mark::Opaque(value) if there.is_some_and(|stat| stat.is_dir()) => {
                parent.set_xattr(name, b"trusted.overlay.opaque", value).unwrap();
            }
            Mark::Private(which) if there.is_some() => {
                let key = format!("trusted.overlay.{which}");
                parent.set_xattr(name, key.as_bytes(), b"0").unwrap();
            }
            _ => {}
        }
    }
}

struct Layers {
    _folder: tempfile::TempDir,
    dir: Dir,
    names: Vec<PathBuf>,
}

impl Layers {
    fn make(layers: &[Layer]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::open(folder.path()).unwrap();
        let mut names = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let name = PathBuf::from(format!("l{number}"));
            make_layer(&dir.make_dir(&name, 0o755).unwrap(), layer);
            names.push(name);
        }
        Self { _folder: folder, dir, names }
    }

    fn fold(&self, names: &[PathBuf], to_base: bool) -> PathBuf {
        let folded = PathBuf::from("folded");
        let target = self.dir.make_dir(&folded, 0o700).unwrap();
        let open = |name| Folding { dir: self.dir.open_dir(name).unwrap(), foreign: true };
        let dirs = names.iter().map(open).collect();
        fold(dirs, &target, to_base, &Silent, &Cancel::new()).unwrap();
        folded
    }

    fn kernel(&self, names: &[PathBuf]) -> Manifest {
        if let [only] = names {
            // A single lower directory is a bind mount.
            return scan(&self.dir.open_dir(only).unwrap());
        }
        scan(&support::kernel_mount(&self.dir, names))
    }
}

fn text(manifest: &Manifest) -> String {
    String::from_utf8(manifest.to_text()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn a_whole_fold_equals_the_kernels_mount(layers in prop::collection::vec(layer(), 2..=4)) {
        if !support::is_root("a_whole_fold_equals_the_kernels_mount") {
            return Ok(());
        }
        let layers = Layers::make(&layers);
        let shown = layers.kernel(&layers.names);
        let folded = layers.fold(&layers.names, true);
        let folded = scan(&layers.dir.open_dir(folded).unwrap());
        prop_assert_eq!(text(&folded), text(&shown));
    }

    /// The folded layer stands for the old ones in any stack: with layers above and
    /// below, and when those are taken away.
    #[test]
    fn a_part_that_is_folded_shows_the_same_in_any_stack(
        layers in prop::collection::vec(layer(), 3..=5),
        from in 0usize..3,
        count in 2usize..=3,
        present in prop::collection::vec(any::<bool>(), 5),
    ) {
        if !support::is_root("a_part_that_is_folded_shows_the_same_in_any_stack") {
            return Ok(());
        }
        let layers = Layers::make(&layers);
        let names = &layers.names;
        let from = from.min(names.len() - 2);
        let to = (from + count).min(names.len());
        let folded = layers.fold(&names[from..to], false);
        let kept = |range: std::ops::Range<usize>| -> Vec<PathBuf> {
            range.filter(|&n| present[n]).map(|n| names[n].clone()).collect()
        };
        let (above, below) = (kept(0..from), kept(to..names.len()));
        let before = [&above[..], &names[from..to], &below[..]].concat();
        let mut after = [&above[..], &[folded], &below[..]].concat();
        if after.len() == 1 {
            // An empty layer below makes an overlay of it, which reads whiteouts.
            layers.dir.mkdir("empty", 0o755).unwrap();
            after.push("empty".into());
        }
        prop_assert_eq!(text(&layers.kernel(&after)), text(&layers.kernel(&before)));
    }
}

/// A few by default, thousands when asked: `VARVE_CASES=5000`.
fn cases() -> u32 {
    std::env::var("VARVE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(96)
}

#[test]
fn what_means_something_elsewhere_is_refused() {
    if !support::is_root("what_means_something_elsewhere_is_refused") {
        return;
    }
    for name in ["redirect", "metacopy", "protattr", "overlay.opaque", "new-in-7.0"] {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::open(folder.path()).unwrap();
        let (one, two) = (dir.make_dir("1", 0o755).unwrap(), dir.make_dir("2", 0o755).unwrap());
        two.mkdir("d", 0o755).unwrap();
        two.set_xattr("d", format!("trusted.overlay.{name}").as_bytes(), b"x").unwrap();
        let target = dir.make_dir("3", 0o755).unwrap();
        let layers = [one, two].map(|dir| Folding { dir, foreign: true }).into();
        let error = fold(layers, &target, true, &Silent, &Cancel::new()).unwrap_err();
        let expected =
            format!("/d has the attribute trusted.overlay.{name}, which cannot be folded");
        assert!(matches!(error, FoldError::Refused { layer: 1, .. }));
        assert_eq!(error.to_string(), expected);
    }
}

/// Below an opaque directory nothing of other layers shows: no whiteout is kept there,
/// and no second mark.
#[test]
fn nothing_is_hidden_twice() {
    if !support::is_root("nothing_is_hidden_twice") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = Dir::open(folder.path()).unwrap();
    let (one, two) = (dir.make_dir("1", 0o755).unwrap(), dir.make_dir("2", 0o755).unwrap());
    let opaque = one.make_dir("d", 0o755).unwrap();
    one.set_xattr("d", b"trusted.overlay.opaque", b"y").unwrap();
    opaque.make_dir("e", 0o755).unwrap().whiteout("w").unwrap();
    opaque.set_xattr("e", b"trusted.overlay.opaque", b"y").unwrap();
    one.whiteout("w").unwrap();
    two.make_dir("d", 0o755).unwrap().make_dir("e", 0o755).unwrap();
    let target = dir.make_dir("3", 0o755).unwrap();
    let layers = [one, two].map(|dir| Folding { dir, foreign: true }).into();
    let counts = fold(layers, &target, false, &Silent, &Cancel::new()).unwrap();
    assert_eq!((counts.directories, counts.whiteouts), (3, 1));
    let marked = |path: &str, name| {
        let dir = target.open_dir(path).unwrap();
        dir.xattr(name, b"trusted.overlay.opaque").unwrap().is_some()
    };
    assert_eq!([marked(".", "d"), marked("d", "e")], [true, false]);
}
