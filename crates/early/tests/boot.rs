//! The whole boot stage on a real kernel, in a private mount namespace: a disk is laid
//! out, the stage runs, and what is at the target is looked at as a booted system would.
//!
//! Needs root. Without it these tests fail and say so; to leave them out knowingly,
//! set `VARVE_TESTS_WITHOUT_ROOT=1`.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use varve_boot::report::BootReport;
use varve_early::{Machine, Outcome, StageError, run};
use varve_format::deployment::{
    DeploymentRecord, FORMAT, RootMode, Stack, StateDir, StateMode, StatePath,
};
use varve_format::selection::Selection;
use varve_sys::cmdline::CommandLine;
use varve_sys::mount;

#[path = "boot/broken.rs"]
mod broken;
#[path = "boot/wanted.rs"]
mod wanted;

/// A machine: its disk is mounted at `root`, as an initramfs leaves it.
struct Disk {
    directory: tempfile::TempDir,
    numbers: u64,
}

impl Disk {
    fn new() -> Option<Disk> {
        if !rustix::process::geteuid().is_root() {
            let why = "BOOT STAGE TESTS NEED ROOT";
            let allowed = std::env::var_os("VARVE_TESTS_WITHOUT_ROOT").is_some();
            assert!(allowed, "{why}: run as root, or set VARVE_TESTS_WITHOUT_ROOT=1");
            eprintln!("{why}: left out, as VARVE_TESTS_WITHOUT_ROOT says");
            return None;
        }
        mount::enter_private_namespace().unwrap();
        let disk = Disk { directory: tempfile::tempdir().unwrap(), numbers: 0 };
        for name in ["root", "run"] {
            fs::create_dir(disk.path(name)).unwrap();
            let tmpfs = mount::tmpfs_detached(0o755, Some(8 << 20)).unwrap();
            tmpfs.attach(rustix::fs::CWD, &disk.path(name)).unwrap();
        }
        put(&disk.path("root/plain"), "the physical root");
        Some(disk)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// Below `/varve` of the physical root, before or after the boot.
    fn varve(&self, path: &str) -> PathBuf {
        let booted = self.path("run/varve/physical/varve");
        let varve = if booted.exists() { booted } else { self.path("root/varve") };
        varve.join(path)
    }

    fn layer(&self, name: &str) -> PathBuf {
        let tree = self.varve("layers").join(name).join("tree");
        for directory in ["etc", "var/tmp", "home", "run", "usr/sbin"] {
            fs::create_dir_all(tree.join(directory)).unwrap();
        }
        let _ = std::os::unix::fs::symlink("/usr/sbin", tree.join("sbin"));
        put(&tree.join("usr/sbin/init"), "");
        put(&tree.join("etc/who"), name);
        tree
    }

    fn record(&mut self, name: &str, layers: &[&str]) -> DeploymentRecord {
        self.numbers += 1;
        DeploymentRecord {
            format: FORMAT,
            fresh_root: false,
            own: Vec::new(),
            title: String::new(),
            name: name.parse().unwrap(),
            created: 0,
            number: self.numbers,
            stack: Stack::Overlay {
                layers: layers.iter().map(|layer| layer.parse().unwrap()).collect(),
            },
            root_mode: RootMode::ReadOnly,
            release: None,
            kernel: None,
            state: Vec::new(),
        }
    }

    fn deploy(&self, record: &DeploymentRecord, confirmed: bool) {
        let directory = self.varve("deployments").join(record.name.as_str());
        fs::create_dir_all(&directory).unwrap();
        put(&directory.join("deployment.toml"), &record.to_text());
        if confirmed {
            put(&directory.join("confirmed"), "");
        }
    }

    /// Deployments a, of base, confirmed, and b, of u over base, with these changes.
    fn two(&mut self, change: impl Fn(&mut DeploymentRecord)) {
        self.layer("base");
        self.layer("u");
        for (name, layers, confirmed) in [("a", &["base"][..], true), ("b", &["u", "base"], false)]
        {
            let mut record = self.record(name, layers);
            change(&mut record);
            self.deploy(&record, confirmed);
        }
    }

    fn select(&self, latest: &str, previous: Option<&str>, tries: Option<u8>) {
        let selection = Selection {
            generation: 4,
            latest: latest.parse().unwrap(),
            previous: previous.map(|name| name.parse().unwrap()),
            tries,
        };
        fs::create_dir_all(self.varve("boot")).unwrap();
        put(&self.varve("boot/selection"), &selection.to_text());
    }

    fn selection(&self) -> Selection {
        Selection::parse(&fs::read(self.varve("boot/selection")).unwrap()).unwrap()
    }

    fn try_boot(&self, machine: &Machine) -> Result<Outcome, StageError> {
        run(&self.path("root"), &self.path("run/varve"), machine, Instant::now())
    }

    fn boot(&self, command_line: &str) -> BootReport {
        let outcome = self.try_boot(&machine(command_line)).unwrap();
        let Outcome::Booted(booted) = outcome else { panic!("{outcome:?}") };
        let written = fs::read(self.path("run/varve/boot.toml")).unwrap();
        assert_eq!(BootReport::parse(&written).unwrap(), booted.report);
        booted.report
    }

    /// Back to what an initramfs finds at the next boot.
    fn power_off(&self) {
        mount::unmount_lazily(&self.path("root")).unwrap();
        mount::unmount_lazily(&self.path("run")).unwrap();
        let tmpfs = mount::tmpfs_detached(0o755, None).unwrap();
        tmpfs.attach(rustix::fs::CWD, &self.path("run")).unwrap();
        assert!(self.path("root/plain").exists(), "the physical root is below");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for name in ["root", "root", "run"] {
            let _ = mount::unmount_lazily(&self.path(name));
        }
    }
}

fn machine(command_line: &str) -> Machine {
    Machine {
        input: "/nonexistent".into(),
        consoles: Vec::new(),
        screens: Vec::new(),
        log_level: None,
        command_line: CommandLine::parse(command_line.as_bytes()),
        kernel: "6.1".into(),
    }
}

fn put(path: &Path, text: &str) {
    try_put(path, text).unwrap();
}

fn try_put(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).open(path)?.write_all(text.as_bytes())
}

fn get(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

fn is_read_only(directory: &Path) -> bool {
    match try_put(&directory.join("test"), "") {
        Ok(()) => {
            fs::remove_file(directory.join("test")).unwrap();
            false
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
            true
        }
    }
}

fn state(path: &str, mode: StateMode) -> StatePath {
    StatePath { path: StateDir::new(path).unwrap(), mode, fresh: false }
}

#[test]
fn the_latest_boots_over_the_previous() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|_| {});
    put(&disk.varve("layers/base/tree/usr/old"), "old");
    disk.select("b", Some("a"), None);
    let report = disk.boot("root=/dev/vda ro");
    assert_eq!((report.deployment.as_str(), &*report.reason), ("b", "latest"));
    assert_eq!(report.stack, ["layers/u/tree", "layers/base/tree"]);
    assert_eq!((report.generation, report.try_spent), (Some(4), false));
    assert_eq!((&report.warnings[..], &report.passed_over[..]), (&[][..], &[][..]));
    assert!(report.microseconds > 0);
    let root = disk.path("root");
    assert_eq!(get(&root.join("etc/who")), "u");
    assert_eq!(get(&root.join("usr/old")), "old");
    assert!(is_read_only(&root));
    assert!(!is_read_only(&disk.path("run/varve/physical")));
}

#[test]
fn one_layer_and_a_hard_linked_tree_are_plain_binds() {
    let Some(mut disk) = Disk::new() else { return };
    disk.layer("base");
    let one = disk.record("one", &["base"]);
    disk.deploy(&one, true);
    fs::create_dir_all(disk.varve("trees/t/etc")).unwrap();
    put(&disk.varve("trees/t/etc/who"), "t");
    put(&disk.varve("trees/t/etc/init"), "");
    let mut tree = disk.record("tree", &[]);
    tree.stack = Stack::HardLink { tree: "t".parse().unwrap() };
    tree.state = vec![state("/etc", StateMode::Versioned)];
    disk.deploy(&tree, true);
    for (name, who) in [("one", "base"), ("tree", "t")] {
        disk.select(name, None, None);
        let report = disk.boot("");
        assert_eq!(get(&disk.path("root/etc/who")), who, "{report:?}");
        assert!(is_read_only(&disk.path("root")));
        disk.power_off();
    }
}

#[test]
fn root_modes_read_only_volatile_and_persistent() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|record| record.root_mode = RootMode::Persistent);
    disk.select("b", Some("a"), None);
    let root = disk.path("root");
    fs::set_permissions(disk.varve("layers/u/tree"), fs::Permissions::from_mode(0o711)).unwrap();

    assert_eq!(disk.boot("").root_mode, RootMode::Persistent);
    put(&root.join("usr/kept"), "x");
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o711, "as the release has it");
    disk.power_off();
    assert_eq!(disk.boot("").root_mode, RootMode::Persistent);
    assert_eq!(get(&root.join("usr/kept")), "x");
    disk.power_off();

    assert_eq!(disk.boot("varve.root=volatile").root_mode, RootMode::Volatile);
    assert!(!root.join("usr/kept").exists(), "the persistent changes are not shown");
    put(&root.join("usr/gone"), "x");
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o711);
    disk.power_off();
    disk.boot("varve.root=volatile");
    assert!(!root.join("usr/gone").exists());
    disk.power_off();

    assert_eq!(disk.boot("varve.root=read-only").root_mode, RootMode::ReadOnly);
    assert!(is_read_only(&root));
}

#[test]
fn state_paths_outlive_what_their_mode_says() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|record| {
        record.state = vec![
            state("/var/tmp", StateMode::Bind),
            state("/etc", StateMode::Versioned),
            state("/var", StateMode::Shared),
            state("/not/there", StateMode::Shared),
        ];
    });
    let tmp = disk.varve("layers/base/tree/var/tmp");
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).unwrap();
    std::os::unix::fs::chown(&tmp, Some(7), Some(8)).unwrap();
    put(&tmp.join("of the release"), "");
    fs::remove_dir_all(disk.varve("layers/u/tree/var")).unwrap();

    disk.select("b", Some("a"), None);
    let report = disk.boot("");
    assert_eq!(report.warnings.len(), 1, "{report:?}");
    assert!(report.warnings[0].contains("/not/there"), "{report:?}");
    let root = disk.path("root");
    let bind = fs::metadata(root.join("var/tmp")).unwrap();
    assert_eq!((bind.mode() & 0o7777, bind.uid(), bind.gid()), (0o1777, 7, 8));
    assert!(!root.join("var/tmp/of the release").exists(), "the release's is hidden");
    for name in ["etc/n", "var/n", "var/tmp/n"] {
        put(&root.join(name), "b");
    }
    assert!(is_read_only(&root.join("usr")));
    assert_eq!(get(&disk.varve("state/versioned/b/etc/upper/n")), "b");
    assert_eq!(get(&disk.varve("state/shared/var/upper/n")), "b");
    assert_eq!(get(&disk.varve("state/bind/var!-tmp/n")), "b");
    assert!(!disk.varve("layers/u/tree/etc/n").exists());
    disk.power_off();

    // The other deployment: its own /etc, the same /var.
    disk.boot("varve.deployment=a");
    assert_eq!(get(&root.join("etc/who")), "base");
    assert!(!root.join("etc/n").exists());
    assert_eq!(get(&root.join("var/n")), "b");
    assert_eq!(get(&root.join("var/tmp/n")), "b");
    disk.power_off();
    disk.boot("");
    assert_eq!(get(&root.join("etc/n")), "b");
}

/// What a state path's own overlay shows is what the kernel shows of the whole stack.
#[test]
fn state_paths_see_whiteouts_and_opaque_directories_as_the_kernel_does() {
    let Some(mut disk) = Disk::new() else { return };
    let paths = ["/s/plain", "/s/removed", "/s/opaque", "/s/below-opaque/d", "/s/again", "/s/file"];
    for (layer, name) in [("l0", "0"), ("l1", "1"), ("l2", "2")] {
        let tree = disk.layer(layer);
        for path in paths {
            let directory = tree.join(&path[1..]);
            fs::create_dir_all(&directory).unwrap();
            put(&directory.join(name), layer);
            put(&directory.join("who"), layer);
        }
    }
    let middle = disk.varve("layers/l1/tree/s");
    let whiteout = |path: &Path| {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::empty(),
            0,
        )
        .unwrap();
    };
    let opaque = |path: PathBuf| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(path, c"trusted.overlay.opaque", b"y", flags).unwrap();
    };
    // Removed in the middle and on top; removed in the middle, made again on top.
    for name in ["removed", "again"] {
        fs::remove_dir_all(middle.join(name)).unwrap();
        whiteout(&middle.join(name));
    }
    let top = disk.varve("layers/l2/tree/s");
    fs::remove_dir_all(top.join("removed")).unwrap();
    opaque(middle.join("opaque"));
    opaque(middle.join("below-opaque"));
    fs::remove_dir_all(middle.join("file")).unwrap();
    put(&middle.join("file"), "a file in the way");
    fs::remove_dir_all(top.join("plain")).unwrap();

    let layers = ["l2", "l1", "l0"];
    let plain = disk.record("plain", &layers);
    disk.deploy(&plain, true);
    let mut with_state = disk.record("state", &layers);
    with_state.state = paths.map(|path| state(path, StateMode::Shared)).into();
    disk.deploy(&with_state, true);

    let root = disk.path("root");
    type Shown = Vec<(String, Option<Vec<(String, String)>>)>;
    let show = || -> Shown {
        let each = paths.iter().map(|path| {
            let entries = fs::read_dir(root.join(&path[1..])).ok().map(|entries| {
                let mut names: Vec<_> = entries
                    .map(|entry| {
                        let entry = entry.unwrap();
                        (entry.file_name().into_string().unwrap(), get(&entry.path()))
                    })
                    .collect();
                names.sort();
                names
            });
            (path.to_string(), entries)
        });
        each.collect()
    };
    disk.select("plain", None, None);
    disk.boot("");
    let kernel = show();
    assert_eq!(kernel[1].1, None, "removed");
    assert_eq!(kernel[2].1.as_ref().unwrap().len(), 3, "1, 2 and who");
    assert_eq!(kernel[4].1.as_ref().unwrap().len(), 2, "made again: 2 and who");
    disk.power_off();
    disk.select("state", None, None);
    let report = disk.boot("");
    assert_eq!(show(), kernel);
    assert_eq!(report.warnings.len(), 1, "{report:?}");
    assert!(report.warnings[0].contains("/s/removed"), "{report:?}");
    put(&root.join("s/again/new"), "writable");
}

#[test]
fn sixty_four_and_two_hundred_layers() {
    let Some(mut disk) = Disk::new() else { return };
    let names: Vec<String> = (0..200).map(|index| format!("layer-{index:03}")).collect();
    for name in &names {
        put(&disk.layer(name).join(format!("etc/{name}")), "");
    }
    for count in [1, 2, 64, 200] {
        let layers: Vec<&str> = names[..count].iter().map(String::as_str).collect();
        let mut record = disk.record(&format!("d{count}"), &layers);
        record.state = vec![state("/etc", StateMode::Versioned)];
        disk.deploy(&record, true);
        disk.select(record.name.as_str(), None, None);
        let report = disk.boot("");
        assert_eq!(report.stack.len(), count);
        let root = disk.path("root");
        assert_eq!(fs::read_dir(root.join("etc")).unwrap().count(), count + 1);
        assert_eq!(get(&root.join("etc/who")), "layer-000");
        put(&root.join("etc/new"), "");
        disk.power_off();
    }
}

#[test]
fn stripped_layers_stay_out_and_changes_are_thrown_away() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|record| record.root_mode = RootMode::Persistent);
    disk.select("b", Some("a"), None);
    for strip in [1, 2, 99] {
        let report = disk.boot(&format!("varve.strip={strip}"));
        assert_eq!((report.stripped, report.root_mode), (1, RootMode::Volatile));
        assert_eq!(get(&disk.path("root/etc/who")), "base", "the base is never left out");
        disk.power_off();
    }
}

#[test]
fn a_trial_spends_a_try_even_if_it_cannot_be_mounted() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|_| {});
    disk.select("b", Some("a"), Some(2));
    let report = disk.boot("");
    assert_eq!((report.deployment.as_str(), &*report.reason), ("b", "trial"));
    assert!(report.try_spent);
    assert_eq!((disk.selection().tries, disk.selection().generation), (Some(1), 5));
    assert_eq!(report.generation, Some(5));
    disk.power_off();

    fs::remove_dir_all(disk.varve("layers/u")).unwrap();
    let report = disk.boot("");
    assert_eq!((report.deployment.as_str(), &*report.reason), ("a", "previous"));
    assert!(!report.try_spent, "not that of what runs");
    assert_eq!(report.passed_over.len(), 1, "{report:?}");
    assert!(report.passed_over[0].contains("layers/u/tree"), "{report:?}");
    assert_eq!(disk.selection().tries, Some(0));
    disk.power_off();

    disk.layer("u");
    let report = disk.boot("");
    assert_eq!(report.deployment.as_str(), "a", "b has no tries left");
    assert_eq!(report.passed_over, ["b failed its trials"]);
    disk.power_off();
    assert_eq!(disk.boot("varve.deployment=b").reason, "command-line");
    assert_eq!(disk.selection().tries, Some(0));
}

#[test]
fn a_root_without_an_init_is_passed_over() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|_| {});
    disk.select("b", Some("a"), None);
    fs::remove_file(disk.varve("layers/u/tree/usr/sbin/init")).unwrap();
    fs::remove_file(disk.varve("layers/u/tree/sbin")).unwrap();
    // A link that leads out of the new root is not an init either.
    std::os::unix::fs::symlink(disk.path("root"), disk.varve("layers/u/tree/sbin")).unwrap();
    put(&disk.path("root/init"), "");
    let report = disk.boot("");
    assert_eq!(report.deployment.as_str(), "a");
    assert!(report.passed_over[0].contains("no init"), "{report:?}");
    disk.power_off();
    put(&disk.varve("layers/u/tree/usr/start"), "");
    assert_eq!(disk.boot("init=/usr/start").deployment.as_str(), "b");
}

#[test]
fn a_try_that_cannot_be_noted_is_not_taken() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|_| {});
    disk.select("b", Some("a"), Some(2));
    let mut file = File::options().append(true).create(true).open(disk.varve("full")).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let report = disk.boot("");
    assert_eq!((report.deployment.as_str(), &*report.reason), ("a", "previous"));
    assert!(report.passed_over[0].contains("its try cannot be noted"), "{report:?}");
    assert!(report.passed_over[0].contains("No space left"), "{report:?}");
    assert_eq!(disk.selection().tries, Some(2));
    disk.power_off();

    // Where nothing can be kept either, the one that needs no try comes first.
    let mut a = disk.record("a", &["base"]);
    a.state = vec![state("/etc", StateMode::Versioned)];
    drop(file);
    fs::remove_file(disk.varve("full")).unwrap();
    disk.deploy(&a, true);
    fs::create_dir_all(disk.varve("state")).unwrap();
    put(&disk.varve("state/versioned"), "a file where a directory should be");
    let mut file = File::options().append(true).create(true).open(disk.varve("full")).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let report = disk.boot("");
    assert_eq!((report.deployment.as_str(), &*report.reason), ("a", "previous"));
    assert!(!report.warnings.is_empty(), "{report:?}");
    disk.power_off();

    // With no other way to go it boots all the same, and says what it could not do.
    fs::remove_file(disk.varve("full")).unwrap();
    disk.select("b", None, Some(2));
    fs::remove_dir_all(disk.varve("deployments/a")).unwrap();
    let mut file = File::options().append(true).create(true).open(disk.varve("full")).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let report = disk.boot("");
    assert_eq!(report.deployment.as_str(), "b");
    assert!(!report.try_spent);
    assert!(report.warnings.iter().any(|line| line.contains("cannot be noted")), "{report:?}");
}

#[test]
fn a_damaged_or_missing_selection_boots_the_newest_confirmed() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|_| {});
    let old = disk.record("old", &["u"]);
    disk.deploy(&DeploymentRecord { number: 0, ..old }, true);
    put(&disk.varve("deployments/stray"), "not a deployment");
    fs::create_dir_all(disk.varve("deployments/torn")).unwrap();
    put(&disk.varve("deployments/torn/deployment.toml"), "format = ");
    disk.select("b", Some("a"), None);
    let whole = fs::read(disk.varve("boot/selection")).unwrap();
    for (text, problem) in [
        (Some(&whole[..whole.len() - 3]), "checksum"),
        (Some(&b""[..]), "cut off"),
        (Some(&b"\xff\xff"[..]), "not text"),
        (None, "missing"),
    ] {
        let _ = fs::remove_file(disk.varve("boot/selection"));
        if let Some(text) = text {
            File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o644)
                .open(disk.varve("boot/selection"))
                .unwrap()
                .write_all(text)
                .unwrap();
        }
        let report = disk.boot("");
        assert_eq!((report.deployment.as_str(), &*report.reason), ("a", "any-confirmed"));
        assert!(report.selection_problem.as_ref().unwrap().contains(problem), "{report:?}");
        assert!(report.warnings.iter().any(|line| line.contains("torn")), "{report:?}");
        disk.power_off();
    }
}

#[test]
fn an_escape_typed_on_a_console_boots_the_previous_alone() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|_| {});
    disk.select("b", Some("a"), Some(2));
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&keyboard).unwrap();
    unlockpt(&keyboard).unwrap();
    let console = PathBuf::from(ptsname(&keyboard, Vec::new()).unwrap().into_string().unwrap());
    // As on a real machine, something has the console open all the time.
    let _init = File::options().read(true).custom_flags(0o400).open(&console).unwrap();
    let mut keyboard = File::from(keyboard);
    keyboard.write_all(b"\x1b").unwrap();
    let machine = Machine { consoles: vec![console], ..machine("") };
    let Outcome::Booted(booted) = disk.try_boot(&machine).unwrap() else { panic!() };
    let report = booted.report;
    assert_eq!((report.deployment.as_str(), &*report.reason), ("a", "key-held"));
    assert!(report.key_held);
    assert_eq!(report.stack, ["layers/base/tree"], "the previous alone");
    assert_eq!(disk.selection().tries, Some(2), "no try is spent");
}

#[test]
fn changes_that_cannot_be_kept_do_not_keep_it_from_booting() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|record| {
        record.state = vec![state("/etc", StateMode::Versioned), state("/home", StateMode::Bind)];
    });
    disk.select("b", Some("a"), None);
    fs::create_dir_all(disk.varve("state")).unwrap();
    put(&disk.varve("state/versioned"), "a file where a directory should be");
    let report = disk.boot("");
    assert_eq!(report.deployment.as_str(), "b");
    assert!(report.warnings.iter().any(|line| line.contains("/etc")), "{report:?}");
    put(&disk.path("root/etc/new"), "in memory");
    put(&disk.path("root/home/new"), "on the disk");
    assert_eq!(get(&disk.varve("state/bind/home/new")), "on the disk");
}

#[test]
fn a_machine_without_varve_boots_plainly() {
    let Some(disk) = Disk::new() else { return };
    assert!(matches!(disk.try_boot(&machine("")), Ok(Outcome::NoVarve)));
    assert!(disk.path("root/plain").exists());
    assert!(!disk.path("run/varve").exists());
}

#[test]
fn nothing_to_boot_is_said_with_all_that_was_tried() {
    let Some(mut disk) = Disk::new() else { return };
    fs::create_dir_all(disk.varve("boot")).unwrap();
    let error = disk.try_boot(&machine("")).unwrap_err();
    assert!(error.to_string().contains("there is none"), "{error}");
    let broken = disk.record("a", &["not-there"]);
    disk.deploy(&broken, true);
    disk.select("a", None, None);
    let error = disk.try_boot(&machine("")).unwrap_err().to_string();
    assert!(error.contains("a could not be put together"), "{error}");
    assert!(error.contains("layers/not-there/tree"), "{error}");
    assert!(disk.path("root/plain").exists(), "the target is as it was");
}
