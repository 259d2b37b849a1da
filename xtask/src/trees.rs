//! Debian trees with Varve installed in them, ready to be published.
//!
//! A plain release is unpacked, gets the programs, the hooks of its initramfs generator
//! and the units as a package would install them, a serial console that logs root in
//! (these are test systems), and an initramfs made by its own generator inside it.

use crate::device::Programs;
use crate::project::{Result, cache, file_key, key, output, program, rename, root, step, write};
use crate::releases::{Release, unpack};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// What is wrong with a tree on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Its health check fails.
    Sick,
    /// Its init never does anything.
    Hang,
    /// Its init ends, which the kernel answers with a panic.
    Panic,
}

impl Fault {
    pub(crate) const ALL: [Self; 3] = [Self::Sick, Self::Hang, Self::Panic];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sick => "sick",
            Self::Hang => "hang",
            Self::Panic => "panic",
        }
    }
}

/// What makes the initramfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generator {
    InitramfsTools,
    Dracut,
}

/// A finished tree.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) folder: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    /// Changes when anything in it does.
    pub(crate) key: String,
}

/// Makes the tree of a release; `label` is written into it, for tests to read.
pub(crate) fn make(
    release: &Release,
    label: &str,
    programs: &Programs,
    generator: Generator,
) -> Result<Tree> {
    let dist = root().join("dist");
    let tree_key = key([
        release.tar.file_name().unwrap_or_default().as_encoded_bytes(),
        label.as_bytes(),
        file_key(&programs.varve)?.as_bytes(),
        file_key(&programs.boot)?.as_bytes(),
        folder_key(&dist)?.as_bytes(),
        file_key(&root().join("xtask/src/trees.rs"))?.as_bytes(),
    ]);
    let folder = cache()?.join("trees").join(format!("{label}-{tree_key}"));
    let tree = |folder: PathBuf| {
        let boot = folder.join("boot");
        let kernel = boot.join(format!("vmlinuz-{}", release.kernel()));
        let initrd = boot.join(format!("initrd.img-{}", release.kernel()));
        Tree { folder, kernel, initrd, key: tree_key }
    };
    if folder.exists() {
        return Ok(tree(folder));
    }
    step(&format!("installing Varve in {label}"), || {
        remove_older(&folder, label)?;
        let part = folder.with_extension("part");
        remove(&part)?;
        unpack(&release.tar, &part)?;
        install(&part, &dist, programs)?;
        test_system(&part, label)?;
        initramfs(&part, release.kernel(), generator)?;
        empty(&part.join("dev"))?;
        rename(&part, &folder)
    })?;
    let tree = tree(folder);
    for path in [&tree.kernel, &tree.initrd] {
        if !path.exists() {
            return Err(format!("there is no {}", path.display()).into());
        }
    }
    Ok(tree)
}

/// A copy of a tree with a fault. The caller removes it.
pub(crate) fn broken(tree: &Tree, fault: Fault) -> Result<PathBuf> {
    let copy = tree.folder.with_extension(fault.name());
    remove(&copy)?;
    output(program("cp").args(["--archive", "--reflink=auto"]).arg(&tree.folder).arg(&copy))?;
    write(&copy.join("usr/lib/varve-test/release"), fault.name())?;
    let init = |script: &str| -> Result {
        let path = copy.join("usr/sbin/init");
        fs::remove_file(&path)?;
        write(&path, script)?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    };
    match fault {
        Fault::Sick => {
            write(&copy.join("usr/lib/varve-test/sick"), "the health check looks for this\n")?
        }
        Fault::Hang => init("#!/bin/sh\necho varve-test: init hangs\nexec sleep infinity\n")?,
        Fault::Panic => init("#!/bin/sh\necho varve-test: init ends\nexit 1\n")?,
    }
    Ok(copy)
}

/// What a package of Varve would install.
fn install(tree: &Path, dist: &Path, programs: &Programs) -> Result {
    let folder = programs.varve.parent().expect("programs are in a folder");
    output(program("sh").arg(dist.join("install.sh")).arg(tree).arg(folder)).map(|_| ())
}

/// What makes it a system for tests and not for a school.
fn test_system(tree: &Path, label: &str) -> Result {
    write(&tree.join("usr/lib/varve-test/release"), label)?;
    // What a user may change too, so that both have changed it.
    write(&tree.join("usr/lib/varve-test/greeting"), format!("This is {label}.\n"))?;
    write(
        &tree.join("etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf"),
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 - vt220\n",
    )?;
    write(&tree.join("etc/hostname"), "varve\n")?;
    write(&tree.join("etc/hosts"), "127.0.0.1 localhost varve\n::1 localhost\n")?;
    // Work that a test has no use for and that costs seconds of emulation.
    for unit in [
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "man-db.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
    ] {
        let path = tree.join("etc/systemd/system").join(unit);
        if !path.exists() {
            symlink("/dev/null", path)?;
        }
    }
    Ok(())
}

/// Runs the tree's own generator inside it.
fn initramfs(tree: &Path, kernel: &str, generator: Generator) -> Result {
    // The generators look at /proc and write to /tmp and /dev/null.
    let mounts = Mounts::new(tree)?;
    let image = format!("/boot/initrd.img-{kernel}");
    let mut command = program("chroot");
    command.arg(tree).env("TMPDIR", "/var/tmp");
    match generator {
        Generator::InitramfsTools => command.args(["mkinitramfs", "-o", &image, kernel]),
        Generator::Dracut => command
            .args(["dracut", "--force", "--no-hostonly", "--reproducible", "--add", "varve"])
            .args([&image, kernel]),
    };
    let result = output(&mut command);
    drop(mounts);
    result.map(|_| ())
}

/// What programs in a tree look for, mounted as long as this lives.
pub(crate) struct Mounts(Vec<PathBuf>);

impl Mounts {
    pub(crate) fn new(tree: &Path) -> Result<Self> {
        let mut mounts = Self(Vec::new());
        for (kind, name) in [("proc", "proc"), ("sysfs", "sys")] {
            let target = tree.join(name);
            output(program("mount").args(["-t", kind, kind]).arg(&target))?;
            mounts.0.push(target);
        }
        let target = tree.join("dev");
        output(program("mount").args(["--bind", "/dev"]).arg(&target))?;
        mounts.0.push(target);
        Ok(mounts)
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for target in self.0.iter().rev() {
            if let Err(error) = output(program("umount").arg("--lazy").arg(target)) {
                eprintln!("  {error}");
            }
        }
    }
}

/// Removes everything in a folder.
pub(crate) fn empty(folder: &Path) -> Result {
    for entry in fs::read_dir(folder)? {
        remove(&entry?.path())?;
    }
    Ok(())
}

/// Removes a path of the cache with all below it; never through a mount.
pub(crate) fn remove(path: &Path) -> Result {
    output(program("rm").args(["-rf", "--one-file-system"]).arg(path)).map(|_| ())
}

/// The trees that the same label had before are of no use.
fn remove_older(folder: &Path, label: &str) -> Result {
    let Some(parent) = folder.parent().filter(|parent| parent.exists()) else { return Ok(()) };
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let rest =
            name.strip_prefix(label).and_then(|rest| rest.strip_prefix('-')).unwrap_or_default();
        if rest.len() >= 12 && rest.as_bytes()[..12].iter().all(u8::is_ascii_hexdigit) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn folder_key(folder: &Path) -> Result<String> {
    let mut parts = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let entries =
            fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                parts.push(format!("{} {}", entry.path().display(), file_key(&entry.path())?));
            }
        }
    }
    parts.sort();
    Ok(key(parts))
}
