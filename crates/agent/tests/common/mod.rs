//! A publisher and a device in a temporary directory: real repositories, real trees,
//! the real update manager. A boot is what the boot stage decides, without mounting.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use varve_agent::choose::Wish;
use varve_agent::config::Source;
use varve_agent::history::{self, Line};
use varve_agent::init::{Init, Made, init};
use varve_agent::layer::{self, Change, LayerError};
use varve_agent::lifecycle::{self, AfterBoot};
use varve_agent::upgrade::{self, Context, Done, Prepared};
use varve_agent::{Device, Error, Places, Writer, health};
use varve_boot::{Inputs, OnDisk, Unusable, Wishes, decide};
use varve_fetch::Patience;
use varve_format::ReleaseName;
use varve_format::selection::Selection;
use varve_publish::{InitOptions, KeyDirs, Repository};
use varve_sys::task::{Cancel, Progress, Silent};
use varve_sys::{Dir, durable};

/// When these tests take place.
pub(crate) const NOW: i64 = 1_790_000_000;

pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

/// Not patient: a test's source does not come back.
pub(crate) fn patience() -> Patience {
    Patience {
        attempts: 2,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(2),
        ..Patience::default()
    }
}

/// A publisher and a device.
pub(crate) struct Lab {
    pub folder: tempfile::TempDir,
    pub repository: Repository,
    pub(crate) keys: KeyDirs,
    pub config: String,
}

/// A tree under way: a real directory.
pub(crate) struct Tree(pub PathBuf);

impl Tree {
    pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        fs::write(&path, content).unwrap();
        self.date(&path)
    }

    pub(crate) fn link(&self, path: &str, target: &str) -> &Self {
        let _ = fs::remove_file(self.0.join(path));
        symlink(target, self.0.join(path)).unwrap();
        self
    }

    pub(crate) fn hard_link(&self, from: &str, to: &str) -> &Self {
        fs::hard_link(self.0.join(from), self.0.join(to)).unwrap();
        self
    }

    pub(crate) fn remove(&self, path: &str) -> &Self {
        let path = self.0.join(path);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        self
    }

    /// One time for all, so that only what a test changes differs.
    fn date(&self, path: &Path) -> &Self {
        let time = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        fs::File::open(path).unwrap().set_modified(time).unwrap();
        self
    }
}

/// Bytes that no compression makes small, the same for one seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

impl Lab {
    /// An empty repository and an empty disk below a new directory.
    pub(crate) fn new() -> Self {
        Self::below(tempfile::tempdir().unwrap())
    }

    /// A system in which a command can run.
    pub(crate) fn runnable() -> Option<Self> {
        let lab = Lab::below(varve_testkit::crash::scratch());
        if !lab.give_shell() {
            return None;
        }
        lab.publish("r1");
        lab.init();
        Some(lab)
    }

    /// Puts this machine's static shell into the tree that is published next. Says so where
    /// no command could run in it.
    pub(crate) fn give_shell(&self) -> bool {
        if !rustix::process::geteuid().is_root() {
            eprintln!("=== NOT RUN: mounts need root ===");
            return false;
        }
        let shell =
            ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
        let Some(shell) = shell else {
            eprintln!("=== NOT RUN: there is no static shell (busybox) to run in a copy ===");
            return false;
        };
        let status = "Package: base\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n";
        self.tree()
            .file("usr/bin/busybox", fs::read(shell).unwrap())
            .file("var/lib/dpkg/status", status)
            .file("var/log/old", "old")
            .link("bin", "usr/bin");
        let busybox = self.tree().0.join("usr/bin/busybox");
        fs::set_permissions(busybox, fs::Permissions::from_mode(0o755)).unwrap();
        for dir in ["proc", "dev", "sys", "tmp"] {
            fs::create_dir_all(self.tree().0.join(dir)).unwrap();
        }
        true
    }

    pub(crate) fn below(folder: tempfile::TempDir) -> Self {
        let path = folder.path();
        let keys = KeyDirs::below(&path.join("keys"));
        fs::create_dir_all(path.join("keys")).unwrap();
        let options = InitOptions::default();
        let repository =
            Repository::init(&path.join("repository"), &keys, &options, now()).unwrap();
        fs::create_dir_all(path.join("disk")).unwrap();
        fs::create_dir_all(path.join("run")).unwrap();
        let config = "\
            [[state]]\npath = \"/etc\"\nmode = \"versioned\"\n\
            [[state]]\npath = \"/var\"\nmode = \"shared\"\n"
            .to_owned();
        Self { folder, repository, keys, config }
    }

    /// With these settings before the tables of the configuration.
    pub(crate) fn with(mut self, settings: &str) -> Self {
        self.config = format!("{settings}\n{}", self.config);
        self
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    pub(crate) fn repository_path(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    /// The tree that the next release is made of; it stays from release to release.
    pub(crate) fn tree(&self) -> Tree {
        let path = self.folder.path().join("tree");
        let is_new = !path.exists();
        fs::create_dir_all(&path).unwrap();
        let tree = Tree(path);
        if is_new {
            for dir in ["etc", "var/lib", "home", "usr/bin", "usr/sbin", "run"] {
                fs::create_dir_all(tree.0.join(dir)).unwrap();
            }
            tree.file("usr/sbin/init", "#!/bin/sh\n")
                .file("etc/hostname", "device\n")
                .file("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
                .file("usr/bin/tool", noise(1, 300_000))
                .file("usr/lib/large", noise(2, 3_000_000))
                .hard_link("usr/bin/tool", "usr/bin/tool-too")
                .link("sbin", "usr/sbin");
            for n in 0..40_u64 {
                tree.file(&format!("usr/share/doc/{n}"), noise(100 + n, 2_000 + 97 * n as usize));
            }
            fs::set_permissions(tree.0.join("usr/bin/tool"), fs::Permissions::from_mode(0o4755))
                .unwrap();
        }
        tree
    }

    /// The tree as release `name`: its own version stands in it.
    pub(crate) fn publish(&self, name: &str) {
        self.publish_in(name, "stable");
    }

    pub(crate) fn publish_in(&self, name: &str, channel: &str) {
        let tree = self.tree();
        tree.file("usr/lib/release", format!("{name}\n"));
        self.build(name);
        let name: ReleaseName = name.parse().unwrap();
        self.repository.publish(&name, channel, None, &self.keys, now(), false).unwrap();
    }

    /// The tree as release `name`, with deltas from these.
    pub(crate) fn publish_with_deltas(&self, name: &str, from: &[&str]) {
        self.tree().file("usr/lib/release", format!("{name}\n"));
        self.build(name);
        let name: ReleaseName = name.parse().unwrap();
        let from: Vec<_> = from.iter().map(|name| name.parse().unwrap()).collect();
        let made = self.repository.make_deltas(&from, &name, &Silent, &Cancel::new()).unwrap();
        assert_eq!(made.len(), from.len());
        self.repository
            .publish_with(&name, "stable", None, &made, &self.keys, now(), false)
            .unwrap();
    }

    pub(crate) fn build(&self, name: &str) {
        use varve_build::{BuildOptions, Source};
        let repo = Dir::open(self.repository_path()).unwrap();
        let source = Source::open(&self.tree().0).unwrap();
        let options = BuildOptions::new(name.parse().unwrap());
        varve_build::build(source, &repo, &options, &Silent, &Cancel::new()).unwrap();
    }

    pub(crate) fn trust_root(&self) -> Vec<u8> {
        fs::read(self.repository_path().join("metadata/1.root.json")).unwrap()
    }

    /// The whole text of the configuration.
    pub(crate) fn config_text(&self) -> String {
        format!("sources = [{:?}]\n{}", self.repository_path().display().to_string(), self.config)
    }

    pub(crate) fn places(&self) -> Places {
        let config = self.folder.path().join("varve.toml");
        fs::write(&config, self.config_text()).unwrap();
        let report = self.folder.path().join("run/boot.toml");
        Places { boot_report: Some(report), ..Places::at(&self.disk(), &config) }
    }

    pub(crate) fn device(&self) -> Device {
        Device::open(self.places()).unwrap()
    }

    /// The first deployment, of the newest release; then the first boot.
    pub(crate) fn init(&self) -> Made {
        let made = self.try_init(&Cancel::new()).unwrap();
        self.boot(false);
        made
    }

    pub(crate) fn try_init(&self, cancel: &Cancel) -> Result<Made, Error> {
        let text = self.config_text();
        let trust_root = self.trust_root();
        let source = Source::Directory(self.repository_path());
        let make = Init {
            trust_root: &trust_root,
            sources: vec![source],
            config: Some((&text, Path::new("varve.toml"))),
            wish: Wish::default(),
        };
        with_context(cancel, |context| init(self.places(), &make, context))
    }

    pub(crate) fn prepare(&self, wish: &Wish, dry_run: bool) -> Result<Prepared, Error> {
        let device = Device::open(self.places())?;
        let writer = device.lock("upgrade", now())?;
        with_context(&Cancel::new(), |context| {
            upgrade::prepare(&device, &writer, wish, dry_run, context)
        })
    }

    /// Upgrades; none when there is nothing newer.
    pub(crate) fn try_upgrade(&self, wish: &Wish, cancel: &Cancel) -> Result<Option<Done>, Error> {
        self.upgrade_telling(wish, &Silent, cancel)
    }

    pub(crate) fn upgrade_telling(
        &self,
        wish: &Wish,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Option<Done>, Error> {
        let device = Device::open(self.places())?;
        let writer = device.lock("upgrade", now())?;
        let patience = patience();
        let context = Context { now: now(), progress, cancel, patience: &patience };
        match upgrade::prepare(&device, &writer, wish, false, &context)? {
            Prepared::UpToDate { .. } => Ok(None),
            Prepared::Ready(ready) => ready.run(&device, &writer, &context).map(Some),
        }
    }

    pub(crate) fn upgrade(&self) -> Done {
        self.try_upgrade(&Wish::default(), &Cancel::new())
            .unwrap()
            .expect("there is a newer release")
    }

    /// Decides as the boot stage does, spends a try, and leaves a report. Gives what runs.
    pub(crate) fn boot(&self, key_held: bool) -> String {
        let device = self.device();
        let selection = match fs::read(self.disk().join("varve/boot/selection")) {
            Ok(bytes) => Selection::parse(&bytes).map_err(|e| Unusable::Damaged(e.to_string())),
            Err(_) => Err(Unusable::Missing),
        };
        let on_disk: Vec<_> = device
            .store
            .deployments()
            .unwrap()
            .items
            .iter()
            .map(|d| OnDisk {
                name: d.name().clone(),
                number: d.record.number,
                confirmed: d.confirmed,
            })
            .collect();
        let decision = decide(&Inputs {
            selection: selection.as_ref().map_err(Clone::clone),
            on_disk: &on_disk,
            wishes: &Wishes::default(),
            key_held,
            wanted: None,
            failed: &[],
        })
        .unwrap();
        if let Some(spent) = &decision.spend_try {
            durable::replace_file(
                device.store.boot(),
                "selection",
                spent.to_text().as_bytes(),
                0o644,
            )
            .unwrap();
        }
        let generation = match (&decision.spend_try, &selection) {
            (Some(spent), _) => format!("generation = {}\n", spent.generation),
            (None, Ok(selection)) => format!("generation = {}\n", selection.generation),
            _ => String::new(),
        };
        let passed: Vec<_> = decision.passed_over.iter().map(ToString::to_string).collect();
        let text = format!(
            "format = 1\ndeployment = \"{}\"\nlayout = \"overlay\"\nstack = []\n\
             root-mode = \"read-only\"\nreason = \"{}\"\ntry-spent = {}\nstripped = 0\n{generation}\
             key-held = {key_held}\nmicroseconds = 5210\nkernel = \"6.12\"\npassed-over = {passed:?}\n",
            decision.deployment,
            decision.reason.code(),
            decision.spend_try.is_some(),
        );
        let run = self.folder.path().join("run");
        let _ = fs::remove_file(run.join("boot-complete"));
        fs::write(run.join("boot.toml"), text).unwrap();
        decision.deployment.to_string()
    }

    /// The boot is complete: it is judged, with the configured checks.
    pub(crate) fn after_boot(&self) -> AfterBoot {
        fs::write(self.folder.path().join("run/boot-complete"), "").unwrap();
        let device = self.device();
        let writer = device.lock("confirm", now()).unwrap();
        with_context(&Cancel::new(), |context| {
            lifecycle::after_boot(&device, &writer, context, &health::run)
        })
        .unwrap()
    }

    pub(crate) fn finalize(&self) -> lifecycle::Finalized {
        let device = self.device();
        let writer = device.lock("finalize", now()).unwrap();
        with_context(&Cancel::new(), |context| lifecycle::finalize(&device, &writer, context))
            .unwrap()
    }

    pub(crate) fn roll_back(&self) -> Result<String, Error> {
        let device = self.device();
        let writer = device.lock("rollback", now()).unwrap();
        with_context(&Cancel::new(), |context| {
            lifecycle::roll_back(&device, &writer, "rolled back by the user", context)
        })
        .map(|name| name.to_string())
    }

    pub(crate) fn selection(&self) -> Selection {
        let bytes = fs::read(self.disk().join("varve/boot/selection")).unwrap();
        Selection::parse(&bytes).unwrap()
    }

    pub(crate) fn history(&self) -> Vec<String> {
        let lines = history::read(self.device().store.dir()).unwrap();
        let words = lines.into_iter().map(|line| match line {
            Line::Record(record) => record.word,
            Line::Other(text) => text,
        });
        words.collect()
    }

    /// Every deployment is what was published, to the last byte.
    pub(crate) fn check_all(&self) {
        let device = self.device();
        let found =
            with_context(&Cancel::new(), |context| varve_agent::fsck::fsck(&device, None, context))
                .unwrap();
        assert!(found.is_clean(), "{found:#?}");
    }

    /// All that lies on the disk, with everything that can be seen of it: two that are
    /// equal are one state.
    pub(crate) fn fingerprint(&self, path: &str) -> Vec<String> {
        let mut lines = Vec::new();
        fingerprint(&self.disk().join("varve").join(path), &mut lines);
        lines
    }
}

fn fingerprint(path: &Path, lines: &mut Vec<String>) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    let content = match meta.is_file() {
        true => {
            let bytes = fs::read(path).unwrap();
            varve_format::verity::content_digest(&bytes).short()
        }
        false => String::new(),
    };
    let (mode, inode) = (meta.mode(), meta.ino());
    let time = (meta.mtime(), meta.mtime_nsec());
    lines.push(format!("{} {mode:o} {inode} {time:?} {content}", path.display()));
    if meta.is_dir() {
        let mut below: Vec<_> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        below.sort();
        below.iter().for_each(|path| fingerprint(path, lines));
    }
}

pub(crate) fn with_context<T>(cancel: &Cancel, act: impl FnOnce(&Context<'_>) -> T) -> T {
    let patience = patience();
    act(&Context { now: now(), progress: &Silent, cancel, patience: &patience })
}

/// What its user does with a layer that was here already when power came back: it is put
/// where it belongs, if it is not.
pub(crate) fn put_on(device: &Device, writer: &Writer, layer: &str, context: &Context<'_>) {
    match layer::change(device, writer, &Change::On(layer.to_owned()), false, context) {
        Err(Error::Layer(LayerError::NothingChanges)) => {}
        other => drop(other.unwrap()),
    }
}

pub(crate) fn to(name: &str) -> Wish {
    Wish { to: Some(name.parse().unwrap()), ..Wish::default() }
}
