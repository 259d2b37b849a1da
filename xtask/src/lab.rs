//! The lab: repositories with real releases, and disks with the first one installed.
//!
//! ```text
//!   target/varve/trees/…               Debian with Varve in it           (trees)
//!               /repositories/<name>-<key>/{repository,keys}
//!               /images/<name>-<layout>-<key>.img     ext4, raw, sparse
//!               /lab.json                             what the tests read (testkit::vm::lab)
//! ```

use crate::device::{self, Programs};
use crate::packages;
use crate::project::{
    Result, cache, file_key, key, megabytes, output, program, rename, step, write,
};
use crate::releases::{self, Pair, Release, Suite};
use crate::trees::{self, Fault, Generator, Tree, remove};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use varve_testkit::vm::disk;
use varve_testkit::vm::lab::{Lab, System};

/// Of a disk: two systems and what an upgrade has under way fit in.
const DISK: u64 = 4 << 30;

/// The two ways to hold the root, as the configuration names them.
pub(crate) const LAYOUTS: [&str; 2] = ["overlay", "hard-link"];

/// The channels of the releases with faults are named after them.
pub(crate) const STABLE: &str = "stable";

/// Where the configuration of a test's device names no server yet.
pub(crate) const NO_SOURCE: &str = "http://10.0.2.2:1";

/// Where the description of the lab is.
pub(crate) fn description() -> Result<PathBuf> {
    Ok(cache()?.join("lab.json"))
}

/// Makes everything that the tests boot, or finds it made.
pub(crate) fn make_all() -> Result {
    packages::need_root("image")?;
    packages::ensure(packages::For::Lab)?;
    let programs = device::build()?;
    let trixie = releases::pair(Suite::Trixie)?;
    let bookworm = releases::pair(Suite::Bookworm)?;
    // Only the first release needs its own generator: the kernel and the initramfs that
    // qemu gets are always the first release's.
    let dracut = Pair {
        old: releases::old_with(Suite::Trixie, &[releases::DRACUT])?,
        new: trixie.new.clone(),
    };

    let mut systems = BTreeMap::new();
    let mut add =
        |name: &str, pair: &Pair, generator, faults: &[Fault], layouts: &[&str]| -> Result {
            systems.insert(
                name.to_owned(),
                system(name, pair, &programs, generator, faults, layouts)?,
            );
            Ok(())
        };
    add("debian-13", &trixie, Generator::InitramfsTools, &Fault::ALL, &LAYOUTS)?;
    add("debian-12", &bookworm, Generator::InitramfsTools, &[], &LAYOUTS)?;
    add("debian-13-dracut", &dracut, Generator::Dracut, &[], &["overlay"])?;
    let lab = Lab { systems, scratch: cache()?.join("scratch") };
    // What a killed test left.
    remove(&lab.scratch)?;
    write(&description()?, serde_json::to_string_pretty(&lab)?)
}

/// Makes what the demonstration boots alone, and gives the description of it.
pub(crate) fn of_demo(layouts: &[&str]) -> Result<PathBuf> {
    packages::ensure(packages::For::Lab)?;
    let programs = device::build()?;
    let pair = releases::pair(Suite::Trixie)?;
    let name = "debian-13";
    let system = system(name, &pair, &programs, Generator::InitramfsTools, &Fault::ALL, layouts)?;
    let systems = BTreeMap::from([(name.to_owned(), system)]);
    let lab = Lab { systems, scratch: cache()?.join("scratch") };
    let path = cache()?.join("lab-one.json");
    write(&path, serde_json::to_string_pretty(&lab)?)?;
    Ok(path)
}

/// Makes one system: trees, repository, disks.
pub(crate) fn system(
    name: &str,
    pair: &Pair,
    programs: &Programs,
    generator: Generator,
    faults: &[Fault],
    layouts: &[&str],
) -> Result<System> {
    let tree = |release: &Release, which: &str, generator| {
        trees::make(release, &format!("{name}-{which}"), programs, generator)
    };
    let old = tree(&pair.old, "old", generator)?;
    // The new release of the dracut system is an ordinary one: it keeps its generator.
    let new = tree(&pair.new, "new", Generator::InitramfsTools)?;
    let repository = repository(name, &old, &new, programs, faults)?;
    let names = [format!("{name}-old"), format!("{name}-new")];
    let mut images = BTreeMap::new();
    for layout in layouts {
        images.insert(
            (*layout).to_owned(),
            image(name, layout, &repository, &names[0], &old, programs)?,
        );
    }
    let [old_name, new_name] = names;
    Ok(System {
        kernel: old.kernel,
        initrd: old.initrd,
        repository,
        old: old_name,
        new: new_name,
        images,
    })
}

/// Publishes the releases: the old and the new on channel `stable`, those with faults each
/// on a channel of its own, all after the old one.
fn repository(
    name: &str,
    old: &Tree,
    new: &Tree,
    programs: &Programs,
    faults: &[Fault],
) -> Result<PathBuf> {
    let mut parts = vec![old.key.clone(), new.key.clone(), file_key(&programs.repo)?];
    parts.extend(faults.iter().map(|fault| fault.name().to_owned()));
    let folder = cache()?.join("repositories").join(format!("{name}-{}", key(parts)));
    if folder.exists() {
        return Ok(folder.join("repository"));
    }
    remove_others(&folder, name)?;
    let part = folder.with_extension("part");
    remove(&part)?;
    fs::create_dir_all(&part)?;
    let publisher = Publisher::init(&part, programs)?;
    publisher.release(&old.folder, &format!("{name}-old"), STABLE)?;
    for fault in faults {
        let copy = trees::broken(new, *fault)?;
        let result = publisher.release(&copy, &format!("{name}-{}", fault.name()), fault.name());
        remove(&copy)?;
        result?;
    }
    publisher.release(&new.folder, &format!("{name}-new"), STABLE)?;
    rename(&part, &folder)?;
    Ok(folder.join("repository"))
}

/// The publisher's program with its repository and keys.
pub(crate) struct Publisher {
    program: PathBuf,
    pub(crate) repository: PathBuf,
    keys: PathBuf,
}

impl Publisher {
    /// Makes a repository and its keys in `folder`.
    pub(crate) fn init(folder: &Path, programs: &Programs) -> Result<Self> {
        let publisher = Self {
            program: programs.repo.clone(),
            repository: folder.join("repository"),
            keys: folder.join("keys"),
        };
        // What is cached must not expire.
        let expiries = ["targets=3650", "snapshot=3650", "timestamp=3650"]
            .map(|expiry| format!("--expires={expiry}"));
        output(publisher.command("init").args(expiries))?;
        Ok(publisher)
    }

    /// Builds a release from a tree and publishes it.
    pub(crate) fn release(&self, tree: &Path, name: &str, channel: &str) -> Result {
        step(&format!("building and publishing {name}"), || {
            // Nobody waits for these bytes on a line, but somebody waits for the test.
            output(self.build_command(tree, name).arg("--level=3"))?;
            // A delta of a whole Debian takes minutes to make here, and many more to apply
            // on an emulated processor.
            let publish = ["--channel", channel, "--no-deltas"];
            output(self.command("publish").arg(name).args(publish)).map(|_| ())
        })
    }

    /// The command that builds a release from a tree.
    pub(crate) fn build_command(&self, tree: &Path, name: &str) -> Command {
        let mut command = self.command("build");
        command.arg(tree).args(["--name", name]);
        command
    }

    /// The publisher's program on this repository.
    pub(crate) fn command(&self, word: &str) -> Command {
        let mut command = program(&self.program.display().to_string());
        command
            .arg(word)
            .arg("--quiet")
            .arg("--repo")
            .arg(&self.repository)
            .arg("--keys")
            .arg(&self.keys);
        command
    }
}

/// Installs a release on a new disk, as the maker of a device's image does.
fn image(
    name: &str,
    layout: &str,
    repository: &Path,
    release: &str,
    old: &Tree,
    programs: &Programs,
) -> Result<PathBuf> {
    let config = configuration(layout);
    let parts = [&repository.display().to_string(), &old.key, &file_key(&programs.varve)?, &config];
    let stem = format!("{name}-{layout}");
    let path = cache()?.join("images").join(format!("{stem}-{}.img", key(parts)));
    if path.exists() {
        return Ok(path);
    }
    remove_others(&path, &stem)?;
    fs::create_dir_all(path.parent().expect("it is in a folder"))?;
    step(&format!("installing {release} on a disk, layout {layout}"), || {
        let part = path.with_extension("part");
        install(&part, repository, release, &config, programs)?;
        rename(&part, &path)
    })?;
    eprintln!("    the disk holds {}", megabytes(fs::metadata(&path)?.blocks() * 512));
    Ok(path)
}

/// `varve init` on an empty ext4 file system.
pub(crate) fn install(
    disk: &Path,
    repository: &Path,
    release: &str,
    config: &str,
    programs: &Programs,
) -> Result {
    remove(disk)?;
    disk::make_ext4(disk, DISK)?;
    let scratch = tempfile::tempdir()?;
    let config_file = scratch.path().join("varve.toml");
    write(&config_file, config)?;
    let target = scratch.path().join("disk");
    fs::create_dir(&target)?;
    let mounted = disk::Mounted::new(disk, &target)?;
    let mut command = program(&programs.varve.display().to_string());
    command.arg("--root").arg(&target).arg("init").arg("--source").arg(repository);
    command.arg("--trust-root").arg(repository.join("metadata/1.root.json"));
    command.arg("--config").arg(&config_file).arg(release);
    output(&mut command)?;
    mounted.unmount()?;
    Ok(())
}

/// What the devices of the tests are configured to do. The address of the source is
/// written by each test, which has a server of its own.
pub(crate) fn configuration(layout: &str) -> String {
    let state: String =
        [("/etc", "versioned"), ("/var", "shared"), ("/home", "shared"), ("/root", "shared")]
            .iter()
            .map(|(path, mode)| format!("\n[[state]]\npath = \"{path}\"\nmode = \"{mode}\"\n"))
            .collect();
    format!(
        "sources = [\"{NO_SOURCE}\"]\n\
         channel = \"{STABLE}\"\n\
         layout = \"{layout}\"\n\
         root-mode = \"volatile\"\n\
         tries = 2\n\
         {state}\n\
         [[health]]\n\
         name = \"not sick\"\n\
         command = [\"test\", \"!\", \"-e\", \"/usr/lib/varve-test/sick\"]\n\n\
         [[health]]\n\
         name = \"secure shell\"\n\
         command = [\"systemctl\", \"is-active\", \"ssh.service\"]\n"
    )
}

/// Removes what the same thing was made into before.
fn remove_others(path: &Path, stem: &str) -> Result {
    let Some(parent) = path.parent().filter(|parent| parent.exists()) else { return Ok(()) };
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let rest =
            name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('-')).unwrap_or_default();
        if rest.len() >= 12 && rest.as_bytes()[..12].iter().all(u8::is_ascii_hexdigit) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}
