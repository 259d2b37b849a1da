//! Upgrades from release to release, in both layouts and between them: what the kernel
//! mounts is the release, whatever came before.

mod support;

use std::path::PathBuf;

use proptest::prelude::*;
use varve_format::deployment::{Layout, RootMode, Stack};
use varve_format::{DeploymentName, TreePath};
use varve_rootfs::layout::{self, Request, SourceCheck, StagePlan};
use varve_rootfs::locate::Locator;
use varve_rootfs::merge::{MergeError, merge};
use varve_rootfs::stage::{self, Details, StageError};
use varve_rootfs::verify::{Contents, Level, What, verify};
use varve_rootfs::{Deployment, Store};
use varve_sys::Dir;
use varve_sys::task::{Cancel, Silent};
use varve_testkit::tree::{Node, Tree, metadata, place, releases, scan};

struct Device {
    folder: tempfile::TempDir,
    store: Store,
}

impl Device {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(&Dir::open(folder.path()).unwrap()).unwrap();
        Self { folder, store }
    }

    fn plan(&self, name: &str, tree: &Tree, layout: Layout, check: SourceCheck<'_>) -> StagePlan {
        let deployments = self.store.deployments().unwrap();
        assert!(deployments.strange.is_empty(), "{:?}", deployments.strange);
        let name: DeploymentName = name.parse().unwrap();
        let request = Request {
            store: &self.store,
            base: deployments.items.last(),
            name: &name,
            manifest: &tree.manifest,
            check,
            progress: &Silent,
            cancel: &Cancel::new(),
        };
        layout::of(layout).plan(&request).unwrap()
    }

    /// Puts into incoming what the plan asks for, and nothing else.
    fn fetch(&self, plan: &StagePlan, tree: &Tree) {
        for needed in &plan.fetch {
            let bytes = &tree.contents[&needed.digest];
            assert_eq!(bytes.len() as u64, needed.size);
            let name = needed.digest.to_hex();
            self.store.incoming().create_file(name, 0o644).unwrap().write_all(bytes).unwrap();
        }
    }

    fn stage(&self, plan: StagePlan, tree: &Tree, level: Level) -> Result<Deployment, StageError> {
        let (silent, cancel) = (Silent, Cancel::new());
        let layout = layout::of(plan.stack.layout());
        let staged = layout.stage(&self.store, plan, &tree.manifest, &silent, &cancel)?;
        staged.verify(level, &silent, &cancel)?.commit(details())
    }

    fn upgrade(&self, name: &str, tree: &Tree, layout: Layout) -> Deployment {
        let plan = self.plan(name, tree, layout, SourceCheck::Trust);
        self.fetch(&plan, tree);
        self.stage(plan, tree, Level::NewContents).unwrap()
    }

    /// What the kernel shows of a deployment.
    fn shown(&self, deployment: &Deployment) -> String {
        let layers: Vec<PathBuf> = match &deployment.record.stack {
            Stack::HardLink { tree } => {
                return text(&scan(&self.store.tree(tree).unwrap()));
            }
            Stack::Overlay { layers } if layers.len() == 1 => {
                return text(&scan(&self.store.layer_tree(&layers[0]).unwrap()));
            }
            Stack::Overlay { layers } => {
                layers.iter().map(|name| format!("{name}/tree").into()).collect()
            }
        };
        text(&scan(&support::kernel_mount(self.store.layers_dir(), &layers)))
    }

    fn path(&self, rest: &str) -> PathBuf {
        self.folder.path().join("varve").join(rest)
    }
}

fn details() -> Details {
    Details {
        own: Vec::new(),
        title: String::new(),
        created: 1_760_000_000,
        root_mode: RootMode::Persistent,
        release: None,
        kernel: None,
        state: Vec::new(),
    }
}

fn text(manifest: &varve_format::manifest::Manifest) -> String {
    String::from_utf8(manifest.to_text()).unwrap()
}

fn layouts() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::Overlay), Just(Layout::HardLink)]
}

fn cases() -> u32 {
    std::env::var("VARVE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn every_release_is_shown_as_it_is(
        releases in releases(2..=4),
        layouts in prop::collection::vec(layouts(), 4),
        check in prop_oneof![Just(SourceCheck::Trust), Just(SourceCheck::Contents)],
        forget_incoming in any::<bool>(),
    ) {
        if !support::is_root("every_release_is_shown_as_it_is") {
            return Ok(());
        }
        let device = Device::new();
        let mut deployments = Vec::new();
        for (number, (tree, layout)) in releases.iter().zip(layouts).enumerate() {
            let plan = device.plan(&format!("r{number}"), tree, layout, check);
            prop_assert!(plan.damaged.is_empty(), "{:?}", plan.damaged);
            device.fetch(&plan, tree);
            let deployment = device.stage(plan, tree, Level::Full).unwrap();
            prop_assert_eq!(device.shown(&deployment), text(&tree.manifest));
            deployments.push(deployment);
            if forget_incoming {
                for name in device.store.incoming().names().unwrap() {
                    device.store.incoming().unlink(&name.name).unwrap();
                }
            }
        }
        // None of it changed an older deployment, and merging changes what none shows.
        for (deployment, tree) in deployments.iter().zip(&releases) {
            prop_assert_eq!(device.shown(deployment), text(&tree.manifest));
            let layers = deployment.record.stack.layers().len();
            if layers > 1 {
                let name = deployment.name();
                let level = Level::Full;
                let (silent, cancel) = (Silent, Cancel::new());
                let from = usize::from(layers > 2 && forget_incoming);
                let merged =
                    merge(&device.store, name, from..layers, 0, level, &silent, &cancel).unwrap();
                prop_assert_eq!(merged.deployment.record.stack.layers().len(), from + 1);
                prop_assert_eq!(&device.store.deployment(name).unwrap(), &merged.deployment);
                prop_assert_eq!(device.shown(&merged.deployment), text(&tree.manifest));
            }
        }
        for (deployment, tree) in deployments.iter().zip(&releases) {
            prop_assert_eq!(device.shown(deployment), text(&tree.manifest));
        }
        let swept = stage::sweep(&device.store).unwrap();
        prop_assert!(swept.removed.is_empty() && swept.strange.is_empty(), "{swept:?}");
    }

    /// What `verify` must find: a random change of one path of a staged tree.
    #[test]
    fn a_change_of_anything_is_a_difference(
        releases in releases(1..=1),
        place in place(),
        meta in metadata(),
        what in 0u8..6,
    ) {
        if !support::is_root("a_change_of_anything_is_a_difference") {
            return Ok(());
        }
        let device = Device::new();
        let tree = &releases[0];
        device.upgrade("a", tree, Layout::HardLink);
        let root = device.store.tree(&"a".parse().unwrap()).unwrap();
        let path = Tree::build(&[(place, Node::Directory(meta.clone()))]);
        let path = &path.manifest.entries().last().unwrap().path;
        let name = path.name();
        let Ok(dir) = root.open_dir(path.parent().unwrap().as_path()) else { return Ok(()) };
        match what {
            0 => dir.remove_all(name).unwrap(),
            1 if dir.stat_opt(name).unwrap().is_none() => dir.symlink(b"x", name).unwrap(),
            2 if dir.stat_opt(name).unwrap().is_some() => {
                dir.set_xattr(name, b"trusted.more", b"1").unwrap();
            }
            3 => {
                let Ok(file) = dir.edit_file(name) else { return Ok(()) };
                let end = file.file().metadata().unwrap().len();
                if end == 0 {
                    return Ok(());
                }
                let mut file = file;
                file.write_all(b"changed".get(..1).unwrap()).unwrap();
            }
            4 if dir.stat_opt(name).unwrap().is_some_and(|stat| !stat.is_dir()) => {
                // A twin in place of one of an inode's names, or a name more.
                let stat = dir.stat(name).unwrap();
                dir.hard_link(name, &root, "joined").unwrap();
                prop_assert!(stat.links >= 1);
            }
            5 if dir.stat_opt(name).unwrap().is_some() => {
                let stat = dir.stat(name).unwrap();
                let attributes = varve_sys::Attributes {
                    mode: stat.mode & 0o7777,
                    uid: stat.uid,
                    gid: stat.gid + 1,
                    mtime: stat.mtime,
                    xattrs: &[],
                };
                dir.set_attributes(name, &attributes).unwrap();
            }
            _ => return Ok(()),
        }
        let after = text(&scan(&root));
        let report =
            verify(vec![root], &tree.manifest, Contents::Everything, &Silent, &Cancel::new())
                .unwrap();
        prop_assert_eq!(report.is_clean(), after == text(&tree.manifest), "{:?}", report);
    }
}

/// A small fixed pair: (old, new).
fn pair() -> (Tree, Tree) {
    let meta = |mode| varve_format::tree::Metadata { mode, ..Default::default() };
    let file = |bytes: &[u8]| Node::File(bytes.to_vec(), meta(0o644));
    let old = vec![
        (vec![0], Node::Directory(meta(0o755))),
        (vec![0, 1], file(b"stays")),
        (vec![0, 2], file(b"changes")),
        (vec![1], Node::Directory(meta(0o755))),
        (vec![1, 0], file(b"goes")),
    ];
    let mut new = old.clone();
    new.truncate(3);
    new.push((vec![0, 2], file(b"changed")));
    new.push((vec![3], file(b"stays")));
    (Tree::build(&old), Tree::build(&new))
}

#[test]
fn a_plan_says_what_is_needed() {
    if !support::is_root("a_plan_says_what_is_needed") {
        return;
    }
    let device = Device::new();
    let (old, new) = pair();
    let first = device.plan("old", &old, Layout::Overlay, SourceCheck::Trust);
    assert_eq!((first.fetch.len(), first.paths, first.linked, first.copied), (3, 6, 0, 0));
    device.upgrade("old", &old, Layout::Overlay);
    let plan = device.plan("new", &new, Layout::Overlay, SourceCheck::Trust);
    let fetch: Vec<u64> = plan.fetch.iter().map(|needed| needed.size).collect();
    assert_eq!(fetch, [7], "only what changed");
    // "stays" is in incoming still, so its second name needs no copy of the base's.
    assert_eq!((plan.paths, plan.linked, plan.copied, plan.whiteouts), (4, 0, 0, 1));
    assert_eq!(plan.incoming.len(), 1);
    let plan = device.plan("new", &new, Layout::HardLink, SourceCheck::Trust);
    assert_eq!((plan.paths, plan.linked, plan.whiteouts), (5, 1, 0));
    assert!(plan.fetch.len() == 1 && plan.layer_kind.is_none());
}

#[test]
fn what_is_damaged_is_neither_linked_nor_shown() {
    if !support::is_root("what_is_damaged_is_neither_linked_nor_shown") {
        return;
    }
    for layout in [Layout::Overlay, Layout::HardLink] {
        let device = Device::new();
        let (old, new) = pair();
        device.upgrade("old", &old, layout);
        for name in device.store.incoming().names().unwrap() {
            device.store.incoming().unlink(&name.name).unwrap();
        }
        let deployment = device.store.deployments().unwrap().items.remove(0);
        let dirs = device.store.stack_dirs(&deployment.record.stack).unwrap();
        let mut file = dirs[0].open_dir("a").unwrap().edit_file("b").unwrap();
        let mtime = dirs[0].open_dir("a").unwrap().stat("b").unwrap().mtime;
        file.write_all(b"S").unwrap();
        let attributes = varve_sys::Attributes { mode: 0o644, uid: 0, gid: 0, mtime, xattrs: &[] };
        file.set_attributes(&attributes).unwrap();

        // Trusting, it is found by the full verification, and what was staged goes.
        let plan = device.plan("new", &new, layout, SourceCheck::Trust);
        device.fetch(&plan, &new);
        let error = device.stage(plan, &new, Level::Full).unwrap_err();
        let StageError::Differs { report } = error else { panic!("{error}") };
        assert!(report.differences.iter().all(|d| matches!(d.what, What::Content { .. })));
        assert!(!device.path("staging/new").exists());

        // Checking first, the good content is asked for, and the whole is right.
        let plan = device.plan("new", &new, layout, SourceCheck::Contents);
        assert_eq!(plan.damaged.len(), 1);
        assert_eq!(plan.fetch.iter().map(|needed| needed.size).collect::<Vec<_>>(), [5]);
        device.fetch(&plan, &new);
        let deployment = device.stage(plan, &new, Level::Full).unwrap();
        assert_eq!(device.shown(&deployment), text(&new.manifest));
    }
}

#[test]
fn what_was_cut_off_is_swept_and_done_again() {
    if !support::is_root("what_was_cut_off_is_swept_and_done_again") {
        return;
    }
    let device = Device::new();
    let (old, new) = pair();
    device.upgrade("old", &old, Layout::Overlay);
    let plan = device.plan("new", &new, Layout::Overlay, SourceCheck::Trust);
    device.fetch(&plan, &new);
    let (silent, cancel) = (Silent, Cancel::new());
    let overlay = layout::of(Layout::Overlay);
    let staged = overlay.stage(&device.store, plan.clone(), &new.manifest, &silent, &cancel);
    drop(staged.unwrap());
    assert!(device.path("staging/new/layer/tree").exists());
    // A cut between the two renames of a commit: the layer is there, no record names it.
    device
        .store
        .staging()
        .open_dir("new")
        .unwrap()
        .create_file("part", 0o644)
        .unwrap()
        .write_all(b"layers/new\n")
        .unwrap();
    let staging = device.store.staging().open_dir("new").unwrap();
    staging.rename_new("layer", device.store.layers_dir(), "new").unwrap();
    // A person's own directory in there is not ours to delete.
    device.store.staging().make_dir("mine", 0o755).unwrap().create_file("notes", 0o644).unwrap();

    let swept = stage::sweep(&device.store).unwrap();
    assert_eq!(swept.removed, ["layers/new", "staging/new"]);
    assert_eq!(swept.strange.len(), 1);
    assert!(device.path("staging/mine/notes").exists() && device.path("layers/old").exists());
    let plan = device.plan("new", &new, Layout::Overlay, SourceCheck::Trust);
    assert!(plan.fetch.is_empty(), "what was fetched is here still");
    let deployment = device.stage(plan, &new, Level::Full).unwrap();
    assert_eq!(device.shown(&deployment), text(&new.manifest));
}

#[test]
fn a_missing_or_wrong_content_is_told() {
    if !support::is_root("a_missing_or_wrong_content_is_told") {
        return;
    }
    let device = Device::new();
    let (old, _) = pair();
    let plan = device.plan("old", &old, Layout::HardLink, SourceCheck::Trust);
    let error = device.stage(plan.clone(), &old, Level::NewContents).unwrap_err();
    assert!(matches!(error, StageError::Incoming { .. }), "{error}");
    device.fetch(&plan, &old);
    let name = plan.fetch[0].digest.to_hex();
    let size = plan.fetch[0].size as usize;
    device.store.incoming().edit_file(name).unwrap().write_all(&vec![0; size]).unwrap();
    let error = device.stage(plan.clone(), &old, Level::NewContents).unwrap_err();
    assert!(matches!(error, StageError::Differs { .. }), "{error}");
    assert!(!device.path("staging/old").exists() && !device.path("trees/old").exists());
    let cancel = Cancel::new();
    cancel.cancel();
    let staged =
        layout::of(Layout::HardLink).stage(&device.store, plan, &old.manifest, &Silent, &cancel);
    assert!(matches!(staged.unwrap_err(), StageError::Cancelled(_)));
}

#[test]
fn what_is_damaged_is_not_merged() {
    if !support::is_root("what_is_damaged_is_not_merged") {
        return;
    }
    let device = Device::new();
    let (old, new) = pair();
    let base = device.upgrade("old", &old, Layout::Overlay);
    let update = device.upgrade("new", &new, Layout::Overlay);
    let layers = update.record.stack.layers().len();
    let dirs = device.store.stack_dirs(&base.record.stack).unwrap();
    dirs[0].open_dir("a").unwrap().edit_file("b").unwrap().write_all(b"S").unwrap();
    let (silent, cancel) = (Silent, Cancel::new());
    let merged = merge(&device.store, update.name(), 0..layers, 0, Level::Full, &silent, &cancel);
    assert!(matches!(merged.unwrap_err(), MergeError::Differs { .. }));
    let now = device.store.deployment(update.name()).unwrap();
    assert_eq!(now.record.stack, update.record.stack);
}

#[test]
fn a_range_that_is_none_is_refused() {
    if !support::is_root("a_range_that_is_none_is_refused") {
        return;
    }
    let device = Device::new();
    let deployment = device.upgrade("old", &pair().0, Layout::Overlay);
    let (silent, cancel) = (Silent, Cancel::new());
    for range in [0..1, 0..2, 1..1] {
        let merged =
            merge(&device.store, deployment.name(), range, 0, Level::Full, &silent, &cancel);
        assert!(matches!(merged.unwrap_err(), MergeError::Range { layers: 1, .. }));
    }
}

#[test]
fn a_path_is_found_in_the_layer_that_shows_it() {
    if !support::is_root("a_path_is_found_in_the_layer_that_shows_it") {
        return;
    }
    let device = Device::new();
    let (old, new) = pair();
    device.upgrade("old", &old, Layout::Overlay);
    let new = device.upgrade("new", &new, Layout::Overlay);
    let mut locator = Locator::open(&device.store, &new.record.stack).unwrap();
    let mut part = |path: &[u8]| {
        let place = locator.place(&TreePath::new(path).unwrap()).unwrap();
        place.map(|place| place.part.to_string())
    };
    assert_eq!(part(b"a/b").as_deref(), Some("old"), "unchanged");
    assert_eq!(part(b"a/c\nd").as_deref(), Some("new"), "changed");
    assert_eq!(part(b"a").as_deref(), Some("new"), "its attributes are the newest's");
    for gone in [&b"b"[..], b"b/a", b"never", b"a/b/c"] {
        assert_eq!(part(gone), None);
    }
}

#[test]
fn contents_are_found_in_any_deployment_and_only_when_they_are_right() {
    if !support::is_root("contents_are_found_in_any_deployment") {
        return;
    }
    let device = Device::new();
    let (old, new) = pair();
    let first = device.upgrade("old", &old, Layout::HardLink);
    device.upgrade("new", &new, Layout::HardLink);
    for name in device.store.incoming().names().unwrap() {
        device.store.incoming().unlink(&name.name).unwrap();
    }
    // Back to the first release: what the second no longer has, the first deployment has.
    for check in [SourceCheck::Trust, SourceCheck::Contents] {
        let plan = device.plan("back", &old, Layout::HardLink, check);
        assert_eq!((plan.fetch.len(), plan.linked, plan.copied), (0, 1, 2));
        let back = device.stage(plan, &old, Level::Full).unwrap();
        assert_eq!(device.shown(&back), text(&old.manifest));
        std::fs::remove_dir_all(device.path("deployments/back")).unwrap();
        std::fs::remove_dir_all(device.path("trees/back")).unwrap();
    }
    // A content that went bad there is not taken from there.
    let tree = device.store.stack_dirs(&first.record.stack).unwrap().remove(0);
    tree.open_dir("b").unwrap().edit_file("a").unwrap().write_all(b"G").unwrap();
    let plan = device.plan("back", &old, Layout::HardLink, SourceCheck::Contents);
    assert_eq!(plan.fetch.iter().map(|needed| needed.size).collect::<Vec<_>>(), [4]);
    let plan = device.plan("back", &old, Layout::HardLink, SourceCheck::Trust);
    assert!(plan.fetch.is_empty());
    let error = device.stage(plan, &old, Level::NewContents).unwrap_err();
    assert!(matches!(error, StageError::Differs { .. }), "a copy is read before it is used");
}

/// Equal files are not the same file: only the manifest says which are.
#[test]
fn names_that_are_torn_or_joined_are_differences() {
    if !support::is_root("names_that_are_torn_or_joined_are_differences") {
        return;
    }
    let device = Device::new();
    let meta = varve_format::tree::Metadata { mode: 0o644, ..Default::default() };
    let file = || Node::File(b"same".to_vec(), meta.clone());
    // /a and /b are one file, /c\nd is its equal, /a.b nobody's.
    let tree = Tree::build(&[(vec![0], file()), (vec![1], Node::Link(0)), (vec![2], file())]);
    device.upgrade("a", &tree, Layout::HardLink);
    let root = device.store.tree(&"a".parse().unwrap()).unwrap();
    let whole = root.stat(".").unwrap();
    let differences = || {
        let attributes = varve_sys::Attributes {
            mode: whole.mode & 0o7777,
            uid: whole.uid,
            gid: whole.gid,
            mtime: whole.mtime,
            xattrs: &[],
        };
        root.set_attributes(".", &attributes).unwrap();
        let dirs = vec![root.try_clone().unwrap()];
        let cancel = Cancel::new();
        let report = verify(dirs, &tree.manifest, Contents::Everything, &Silent, &cancel);
        report.unwrap().differences.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(differences(), [""; 0]);
    varve_sys::copy::copy_tree(&root, "b", &root, "copy").unwrap();
    root.rename_over("copy", &root, "b").unwrap();
    assert_eq!(differences(), ["/b: should be the same file as /a"]);
    root.unlink("b").unwrap();
    root.hard_link("a", &root, "b").unwrap();
    root.unlink("c\nd").unwrap();
    root.hard_link("a", &root, "c\nd").unwrap();
    assert_eq!(differences(), ["/c\\nd: should not be the same file as /a"]);
}
