//! Against the kernel: real overlay mounts, a real process. Needs root; without it there
//! is nothing to see.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use varve_format::deployment::{DeploymentRecord, FORMAT, RootMode, Stack};
use varve_rootfs::Store;
use varve_rootfs::assemble::{Care, execute};
use varve_rootfs::mount::{MountPlan, Step, Top};

use super::*;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = varve_sys::mount::unmount_lazily(&self.0);
    }
}

fn deployment(name: &str, number: u64, layers: &[&str]) -> Deployment {
    let layers = layers.iter().map(|layer| layer.parse().unwrap()).collect();
    let record = DeploymentRecord {
        format: FORMAT,
        fresh_root: false,
        own: Vec::new(),
        title: String::new(),
        name: name.parse().unwrap(),
        created: 0,
        number,
        stack: Stack::Overlay { layers },
        root_mode: RootMode::ReadOnly,
        release: None,
        kernel: None,
        state: Vec::new(),
    };
    Deployment { record, confirmed: true, pinned: false }
}

#[test]
fn a_process_on_an_overlay_is_traced_to_its_layers() {
    assert!(rustix::process::geteuid().is_root(), "this test mounts: run it as root");
    let folder = tempfile::tempdir().unwrap();
    let physical = folder.path().canonicalize().unwrap();
    let store = Store::create(&Dir::open(&physical).unwrap()).unwrap();
    for (layer, file) in [("u2", "notes"), ("base", "sleep")] {
        let tree =
            store.layers_dir().make_dir(layer, 0o755).unwrap().make_dir("tree", 0o755).unwrap();
        let from = if file == "sleep" { "/bin/sleep" } else { "/etc/hostname" };
        let mut new = tree.create_file(file, 0o755).unwrap();
        new.copy_from(&std::fs::File::open(from).unwrap()).unwrap();
    }
    let (target, memory) = (physical.join("root"), physical.join("memory"));
    let physical_dir = Dir::open(&physical).unwrap();
    physical_dir.mkdir("root", 0o755).unwrap();
    physical_dir.mkdir("memory", 0o755).unwrap();
    let lowers = vec!["layers/u2/tree".into(), "layers/base/tree".into()];
    let slug = "!".to_owned();
    let root = Step { target: varve_format::TreePath::root(), slug, lowers, top: Top::None };
    let plan = MountPlan { steps: vec![root], left_out: Vec::new() };
    execute(&store, &plan, &target, &memory, Care::Strict).unwrap();
    let _mounted = Mounted(target.clone());

    let child = Command::new(target.join("sleep"))
        .arg("1000")
        .stdin(Stdio::from(std::fs::File::open(target.join("notes")).unwrap()))
        .current_dir(&target)
        .spawn()
        .unwrap();
    let child = Running(child);
    let deployments = [deployment("a", 1, &["base"]), deployment("b", 2, &["u2", "base"])];
    let seen = loop {
        let all = processes(Path::new("/proc"), store.dir(), &deployments, None, None).unwrap();
        let mine = all.into_iter().find(|process| process.pid == child.0.id());
        // Until exec has happened it is a copy of this test.
        match mine.filter(|process| process.name == "sleep") {
            Some(process) => break process,
            None => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    };
    let origin = |how, name: &str| {
        let held = seen.uses.iter().find(|held| held.how == how && held.path.ends_with(name));
        let held = held.unwrap_or_else(|| panic!("{how:?} {name}: {seen:#?}"));
        assert_eq!(held.deployment.as_ref().unwrap().as_str(), "b");
        held.origin.clone()
    };
    assert_eq!(origin(How::Executable, "sleep"), Origin::Layer("base".parse().unwrap()));
    assert_eq!(origin(How::OpenFile, "notes"), Origin::Layer("u2".parse().unwrap()));
    assert!(seen.uses.iter().any(|held| held.how == How::WorkingDirectory));
    assert!(!seen.uses.iter().any(|held| held.how == How::Root), "its root is this machine's");
    // Another device whose deployments have the same names.
    let folder = tempfile::tempdir().unwrap();
    let other = Store::create(&Dir::open(folder.path()).unwrap()).unwrap();
    let all = processes(Path::new("/proc"), other.dir(), &deployments, None, None).unwrap();
    assert!(!all.iter().any(|process| process.pid == child.0.id()), "{all:#?}");
    for (varve, is_there) in [(store.dir(), true), (other.dir(), false)] {
        let mounts = all_mounts(varve, Path::new("/proc")).unwrap();
        let found = mounts.iter().any(|mount| {
            let is_of_this_test = mount.mount_point == target;
            is_of_this_test && mount.super_options.contains("layers/u2/tree")
        });
        assert_eq!(found, is_there);
    }
}

#[test]
fn maps_are_read_once_for_each_file() {
    let maps = b"\
55d0-55d1 r--p 00000000 08:01 12   /usr/bin/sleep\n\
55d1-55d2 r-xp 00001000 08:01 12   /usr/bin/sleep\n\
7f00-7f01 r--p 00000000 08:01 13   /usr/lib/li b\\012c.so (deleted)\n\
7f02-7f03 rw-p 00000000 00:00 0 \n\
7ffc-7ffd rw-p 00000000 00:00 0    [stack]\n";
    let files = mapped(maps);
    assert_eq!(files.len(), 2);
    assert_eq!(files[0], ("55d0-55d1".to_owned(), "/usr/bin/sleep".into()));
    let (path, deleted) = without_deleted(&files[1].1);
    assert_eq!((path.to_str().unwrap(), deleted), ("/usr/lib/li b\nc.so", true));
}
