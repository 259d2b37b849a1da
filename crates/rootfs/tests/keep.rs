//! What is kept and what goes: collecting, and the state that outlives releases.

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use varve_format::deployment::{Layout, RootMode, StateDir, StateMode, StatePath};
use varve_format::tree::Metadata;
use varve_rootfs::collect::{self, CollectPlan, Keep};
use varve_rootfs::layout::{self, Request, SourceCheck};
use varve_rootfs::merge::merge;
use varve_rootfs::stage::{self, Details, StageError};
use varve_rootfs::state::{self, StateError};
use varve_rootfs::verify::Level;
use varve_rootfs::{Deployment, Store};
use varve_sys::Dir;
use varve_sys::mountinfo::parse_mountinfo;
use varve_sys::space::space;
use varve_sys::task::{Cancel, Silent};
use varve_testkit::tree::{Node, Tree};

struct Device {
    folder: tempfile::TempDir,
    store: Store,
}

const BIG: usize = 1 << 20;

/// /a/, and files of a MiB at /b and /c that hold one byte's repetition each.
fn release(b: u8, c: u8) -> Tree {
    let meta = |mode| Metadata { mode, ..Metadata::default() };
    Tree::build(&[
        (vec![0], Node::Directory(Metadata { gid: 7, ..meta(0o2750) })),
        (vec![0, 0], Node::Directory(meta(0o700))),
        (vec![1], Node::File(vec![b; BIG], meta(0o644))),
        (vec![3], Node::File(vec![c; BIG], meta(0o644))),
    ])
}

impl Device {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(&Dir::open(folder.path()).unwrap()).unwrap();
        Self { folder, store }
    }

    fn upgrade(&self, name: &str, tree: &Tree, layout: Layout) -> Deployment {
        self.upgrade_with(name, tree, layout, RootMode::ReadOnly, &[]).unwrap()
    }

    fn upgrade_with(
        &self,
        name: &str,
        tree: &Tree,
        layout: Layout,
        root_mode: RootMode,
        state: &[(&str, StateMode)],
    ) -> Result<Deployment, StageError> {
        let (silent, cancel) = (Silent, Cancel::new());
        let base = self.store.deployments().unwrap().items.pop();
        let name = name.parse().unwrap();
        let request = Request {
            store: &self.store,
            base: base.as_ref(),
            name: &name,
            manifest: &tree.manifest,
            check: SourceCheck::Trust,
            progress: &silent,
            cancel: &cancel,
        };
        let layout = layout::of(layout);
        let plan = layout.plan(&request).unwrap();
        tree.put_contents(self.store.incoming());
        let staged = layout.stage(&self.store, plan, &tree.manifest, &silent, &cancel)?;
        let state = state.iter().map(|(path, mode)| StatePath {
            path: StateDir::new(path).unwrap(),
            mode: *mode,
            fresh: false,
        });
        staged.verify(Level::NewContents, &silent, &cancel)?.commit(Details {
            own: Vec::new(),
            title: String::new(),
            created: 0,
            root_mode,
            release: None,
            kernel: None,
            state: state.collect(),
        })
    }

    fn collect(&self, keep: &Keep) -> CollectPlan {
        let plan = collect::plan(&self.store, keep).unwrap();
        collect::execute(&self.store, &plan).unwrap();
        plan
    }

    fn path(&self, rest: &str) -> std::path::PathBuf {
        self.folder.path().join("varve").join(rest)
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let dir = Dir::open(self.path(directory)).unwrap();
        let names = dir.names().unwrap().into_iter();
        names.map(|name| name.name.into_string().unwrap()).collect()
    }
}

fn keep(newest: usize) -> Keep {
    Keep { newest, incoming: Some(BTreeSet::new()), ..Keep::default() }
}

/// Downloads under way go, whatever they are of; what has a name of no kind of ours stays.
#[test]
fn what_is_half_fetched_is_collected() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(&Dir::open(folder.path()).unwrap()).unwrap();
    let digest = "5".repeat(64);
    let ours = ["", ".70000.part", ".document", ".delta"].map(|end| format!("{digest}{end}"));
    for name in ours.iter().map(String::as_str).chain(["under-way-0", "not-ours"]) {
        store.incoming().create_file(name, 0o600).unwrap();
    }
    let plan = collect::plan(&store, &keep(2)).unwrap();
    assert_eq!(plan.incoming.len(), 5, "{plan:?}");
    collect::execute(&store, &plan).unwrap();
    let left = store.incoming().names().unwrap();
    assert_eq!(left.iter().map(|name| &*name.name).collect::<Vec<_>>(), ["not-ours"]);
}

#[test]
fn what_a_kept_deployment_stands_on_stays() {
    if !support::is_root("what_a_kept_deployment_stands_on_stays") {
        return;
    }
    let device = Device::new();
    device.upgrade("one", &release(1, 1), Layout::Overlay);
    device.upgrade("two", &release(1, 2), Layout::Overlay);
    device.upgrade("three", &release(1, 3), Layout::HardLink);
    let plan = device.collect(&keep(2));
    assert_eq!(plan.deployments, ["one".parse().unwrap()]);
    assert!(plan.layers.is_empty(), "two stands on one's layer");
    // Contents in incoming/ have another name in a layer or tree: nothing is freed by them.
    assert_eq!(plan.incoming.len(), 3);
    assert!(plan.bytes < BIG as u64, "{}", plan.bytes);
    assert_eq!(device.names("layers"), ["one", "two"]);
    assert_eq!(device.names("incoming").len(), 0);

    let plan = device.collect(&keep(1));
    assert_eq!(plan.layers, ["one", "two"].map(|name| name.parse().unwrap()));
    // three's tree shares /b with one; /c of one and /c of two are nobody else's.
    assert!((2 * BIG as u64..3 * BIG as u64).contains(&plan.bytes), "{}", plan.bytes);
    assert_eq!(device.names("layers").len() + device.names("trash").len(), 0);
    assert_eq!(device.names("trees"), ["three"]);
    assert!(device.collect(&keep(1)).is_empty());
}

#[test]
fn freed_bytes_are_what_becomes_free() {
    if !support::is_root("freed_bytes_are_what_becomes_free") {
        return;
    }
    let device = Device::new();
    device.upgrade("one", &release(1, 1), Layout::HardLink);
    device.upgrade("two", &release(1, 2), Layout::HardLink);
    device.upgrade("three", &release(3, 2), Layout::HardLink);
    device.collect(&keep(3));
    let used = |path: &Path| {
        let output = std::process::Command::new("du").args(["-s", "-B1"]).arg(path).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let before = used(device.folder.path());
    let plan = collect::plan(&device.store, &keep(1)).unwrap();
    collect::execute(&device.store, &plan).unwrap();
    assert_eq!(before - used(device.folder.path()), plan.bytes);
    assert!(space(device.store.dir()).unwrap().free > 0);
}

#[test]
fn pinned_selected_and_mounted_things_stay() {
    if !support::is_root("pinned_selected_and_mounted_things_stay") {
        return;
    }
    let device = Device::new();
    for (number, name) in ["one", "two", "three", "four"].iter().enumerate() {
        device.upgrade(name, &release(1, number as u8), Layout::HardLink);
    }
    device.store.set_pinned(&"one".parse().unwrap(), true).unwrap();
    let mounts = b"1 0 8:1 /varve/trees/two / ro - ext4 /dev/vda rw\n";
    let keep = Keep {
        deployments: ["three".parse().unwrap()].into(),
        mounts: parse_mountinfo(mounts).unwrap(),
        ..keep(1)
    };
    let plan = device.collect(&keep);
    assert_eq!(plan.deployments, ["two".parse().unwrap()]);
    assert_eq!(plan.held_by_mounts, ["two".parse().unwrap()]);
    assert_eq!(device.names("trees"), ["four", "one", "three", "two"]);
    assert_eq!(device.names("deployments"), ["four", "one", "three"]);
}

#[test]
fn layers_that_were_merged_go_once_nothing_is_mounted_on_them() {
    if !support::is_root("layers_that_were_merged_go_once_nothing_is_mounted_on_them") {
        return;
    }
    let device = Device::new();
    device.upgrade("one", &release(1, 1), Layout::Overlay);
    let two = device.upgrade("two", &release(1, 2), Layout::Overlay);
    let (silent, cancel) = (Silent, Cancel::new());
    let merged = merge(&device.store, two.name(), 0..2, 0, Level::Full, &silent, &cancel).unwrap();
    assert_eq!(merged.layer.as_str(), "two.merged");
    for lowers in ["lowerdir=two/tree:one/tree", "lowerdir+=two/tree,lowerdir+=one/tree"] {
        let mounts = format!("1 0 0:5 / / ro - overlay varve ro,{lowers},xino=off\n");
        let mounted = Keep { mounts: parse_mountinfo(mounts.as_bytes()).unwrap(), ..keep(1) };
        let plan = collect::plan(&device.store, &mounted).unwrap();
        assert!(plan.layers.is_empty() && plan.held_by_mounts.len() == 2, "{lowers}");
    }
    let plan = device.collect(&keep(1));
    assert_eq!(plan.layers.len(), 2);
    assert_eq!(device.names("layers"), ["two.merged"]);
}

#[test]
fn a_record_that_cannot_be_read_keeps_all_layers() {
    if !support::is_root("a_record_that_cannot_be_read_keeps_all_layers") {
        return;
    }
    let device = Device::new();
    device.upgrade("one", &release(1, 1), Layout::Overlay);
    device.upgrade("two", &release(2, 2), Layout::HardLink);
    let one = device.store.deployments_dir().open_dir("one").unwrap();
    one.edit_file("deployment.toml").unwrap().set_length(5).unwrap();
    let plan = device.collect(&keep(1));
    assert_eq!(plan.blocked_by, ["deployments/one"]);
    assert!(plan.layers.is_empty() && plan.deployments.is_empty());
    let swept = stage::sweep(&device.store).unwrap();
    assert!(swept.removed.is_empty(), "its state stays too: {:?}", swept.removed);
    assert_eq!(device.names("layers"), ["one"]);
}

/// A disk of 5 MiB that goes when it is closed.
fn small_disk() -> Dir {
    use std::os::fd::AsFd;
    let disk = varve_sys::mount::tmpfs_detached(0o755, Some(5 << 20)).unwrap();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
    let root = rustix::fs::openat(disk.as_fd(), ".", flags, rustix::fs::Mode::empty()).unwrap();
    Dir::from_fd(root, "small")
}

#[test]
fn a_full_disk_loses_nothing_and_can_be_emptied() {
    if !support::is_root("a_full_disk_loses_nothing_and_can_be_emptied") {
        return;
    }
    let disk = small_disk();
    let folder = tempfile::tempdir().unwrap();
    let device = Device { folder, store: Store::create(&disk).unwrap() };
    let first = release(1, 2);
    device.upgrade("one", &first, Layout::Overlay);
    device.upgrade("two", &release(1, 3), Layout::HardLink);
    // The same contents under other owners: fetched nothing, copied all, and no room.
    let mut entries = first.manifest.entries().to_vec();
    entries.iter_mut().for_each(|entry| entry.meta.uid = 5);
    let manifest = varve_format::manifest::Manifest::from_entries(entries).unwrap();
    let third = Tree { manifest, contents: first.contents };
    let error = device
        .upgrade_with("three", &third, Layout::HardLink, RootMode::ReadOnly, &[])
        .unwrap_err();
    assert!(error.is_no_space(), "{error}");
    assert_eq!(device.store.staging().names().unwrap(), [], "its room was given back");
    assert!(stage::sweep(&device.store).unwrap().removed.is_empty());

    // Not one byte is left, and yet what is not needed can go.
    let mut filler = disk.create_file("filler", 0o600).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    assert_eq!(space(&disk).unwrap().free, 0);
    let plan = device.collect(&keep(1));
    assert_eq!((plan.deployments.len(), plan.layers.len()), (1, 1));
    assert_eq!(device.store.deployments().unwrap().items.len(), 1);
    assert!(space(&disk).unwrap().free >= BIG as u64);
}

#[test]
fn state_starts_as_the_release_has_it_and_is_carried() {
    if !support::is_root("state_starts_as_the_release_has_it_and_is_carried") {
        return;
    }
    let device = Device::new();
    let state =
        [("/a", StateMode::Versioned), ("/a/a", StateMode::Shared), ("/a/a", StateMode::Bind)];
    let upgrade = |name: &str, tree: &Tree| {
        device.upgrade_with(name, tree, Layout::Overlay, RootMode::Persistent, &state).unwrap()
    };
    let one = upgrade("one", &release(1, 1));
    let versioned = Dir::open(device.path("state/versioned/one")).unwrap();
    let upper = versioned.open_dir("a").unwrap().stat("upper").unwrap();
    assert_eq!((upper.mode & 0o7777, upper.gid), (0o2750, 7), "as the release's directory");
    assert!(versioned.open_dir("!").unwrap().stat("work").unwrap().is_dir(), "the root's own");
    for place in ["state/shared/a!-a/upper", "state/bind/a!-a"] {
        let stat = Dir::open(device.path(place)).unwrap().stat(".").unwrap();
        assert_eq!(stat.mode & 0o7777, 0o700, "{place}");
    }
    // The user works: a file more, one less, and a note that all deployments share.
    let upper = versioned.open_dir("a/upper").unwrap();
    upper.create_file("mine", 0o600).unwrap().write_all(b"work").unwrap();
    upper.whiteout("a").unwrap();
    let bind = Dir::open(device.path("state/bind/a!-a")).unwrap();
    bind.create_file("note", 0o600).unwrap();

    let second = release(2, 2);
    let two = upgrade("two", &second);
    assert_eq!(device.names("state/versioned/two/a/upper").len(), 0);
    assert_eq!(device.names("state/bind/a!-a"), ["note"], "it is not touched");
    for round in 0..2 {
        state::carry(&device.store, &one.record, &two.record, &second.manifest).unwrap();
        let names = device.names("state/versioned/two/a/upper");
        assert_eq!(names, ["a", "mine"], "round {round}");
        let carried = Dir::open(device.path("state/versioned/two/a/upper")).unwrap();
        assert!(carried.stat("a").unwrap().is_whiteout());
        // The new one's own changes are replaced by the next carrying.
        carried.unlink("mine").unwrap();
    }
    assert_eq!(device.names("state/versioned"), ["one", "two"]);
    assert_eq!(device.names("state/versioned/one/a/upper"), ["a", "mine"]);

    let plan = device.collect(&keep(1));
    assert_eq!(plan.deployments, ["one".parse().unwrap()]);
    assert_eq!(device.names("state/versioned"), ["two"], "it goes with its deployment");
}

#[test]
fn a_state_path_without_a_directory_is_told_before_anything_is_committed() {
    if !support::is_root("a_state_path_without_a_directory_is_told") {
        return;
    }
    let device = Device::new();
    let tree = release(1, 1);
    let paths = ["/a", "/b", "/none/x"].map(|path| StateDir::new(path).unwrap());
    assert_eq!(state::missing(&paths, &tree.manifest), paths[1..]);
    let state = [("/b", StateMode::Bind)];
    let error = device
        .upgrade_with("one", &tree, Layout::HardLink, RootMode::ReadOnly, &state)
        .unwrap_err();
    assert!(matches!(&error, StageError::State(StateError::NoDirectory { .. })), "{error}");
    assert_eq!(error.to_string(), "the release has no directory /b to keep state in");
    assert_eq!(device.names("trees").len() + device.names("deployments").len(), 0);
    assert_eq!(device.names("staging").len(), 0);
}

#[test]
fn half_made_and_orphaned_state_is_swept() {
    if !support::is_root("half_made_and_orphaned_state_is_swept") {
        return;
    }
    let device = Device::new();
    device.upgrade("one", &release(1, 1), Layout::HardLink);
    let versioned = Dir::open(device.path("state/versioned")).unwrap();
    for name in ["gone", ".one.new", "a person's"] {
        versioned.make_dir(name, 0o755).unwrap();
    }
    device.store.trash().make_dir("left", 0o755).unwrap();
    let swept = stage::sweep(&device.store).unwrap();
    let expected = ["state/versioned/.one.new", "state/versioned/gone", "trash/left"];
    assert_eq!(swept.removed, expected);
    assert_eq!(device.names("state/versioned"), ["a person's", "one"]);
}
