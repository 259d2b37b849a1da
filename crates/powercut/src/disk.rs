//! Disk images: file systems on them, copies of them, mounts of them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::{At, Result, RigError};

/// A file system and how it is mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileSystem {
    /// Its name for the command line and reports.
    pub name: &'static str,
    /// As mount(8) calls it.
    pub kind: &'static str,
    /// Size of the disk, in bytes.
    pub size: u64,
    make: &'static [&'static str],
    /// Mount options while recording. The long commit interval leaves as much as the
    /// kernel allows to the program's own syncs.
    options: &'static str,
    check: &'static [&'static str],
    /// Whether it keeps its own promise, that what was synced is there after a cut. The
    /// failures of one that does not are told and counted, and are not varve's.
    pub keeps_word: bool,
    /// What an initramfs runs before it mounts; nothing for those that need nothing.
    repair: &'static [&'static str],
}

const EXT4: &[&str] = &[
    "mkfs.ext4",
    "-q",
    "-F",
    "-b",
    "4096",
    "-J",
    "size=8",
    "-N",
    "16384",
    "-m",
    "0",
    "-E",
    "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
];
const EXT4_FAST_COMMIT: &[&str] = &[
    "mkfs.ext4",
    "-q",
    "-F",
    "-b",
    "4096",
    "-J",
    "size=8",
    "-N",
    "16384",
    "-m",
    "0",
    "-E",
    "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
    "-O",
    "fast_commit",
];
const F2FS: &[&str] = &["mkfs.f2fs", "-q", "-f", "-t", "0"];
const E2FSCK: &[&str] = &["e2fsck", "-f", "-n"];

/// What this machine's kernel is asked for. ext4's fast commits do not bear a torn write:
/// a replay stops, or loses what earlier commits had made durable (`docs/powercut.md`). F2FS
/// makes a name durable by a checkpoint alone, and a sync of a directory is one; what is in a
/// file it rolls forward after its fsync, in the order that a disk likes (`posix`) or in its own.
pub const FILE_SYSTEMS: &[FileSystem] = &[
    FileSystem {
        name: "ext4",
        kind: "ext4",
        size: 128 << 20,
        make: EXT4,
        options: "data=ordered,commit=300,noauto_da_alloc",
        check: E2FSCK,
        keeps_word: true,
        repair: &["e2fsck", "-f", "-p"],
    },
    FileSystem {
        name: "ext4-writeback",
        kind: "ext4",
        size: 128 << 20,
        make: EXT4,
        options: "data=writeback,commit=300,noauto_da_alloc",
        check: E2FSCK,
        keeps_word: true,
        repair: &["e2fsck", "-f", "-p"],
    },
    FileSystem {
        name: "ext4-fast-commit",
        kind: "ext4",
        size: 128 << 20,
        make: EXT4_FAST_COMMIT,
        options: "data=ordered,commit=300,noauto_da_alloc",
        check: E2FSCK,
        keeps_word: false,
        repair: &["e2fsck", "-f", "-p"],
    },
    FileSystem {
        name: "ext4-fast-commit-writeback",
        kind: "ext4",
        size: 128 << 20,
        make: EXT4_FAST_COMMIT,
        options: "data=writeback,commit=300,noauto_da_alloc",
        check: E2FSCK,
        keeps_word: false,
        repair: &["e2fsck", "-f", "-p"],
    },
    FileSystem {
        name: "xfs",
        kind: "xfs",
        size: 320 << 20,
        make: &["mkfs.xfs", "-q", "-f", "-K"],
        // Copies of one file system are mounted side by side.
        options: "nouuid",
        check: &["xfs_repair", "-n"],
        keeps_word: true,
        repair: &[],
    },
    FileSystem {
        name: "btrfs",
        kind: "btrfs",
        size: 256 << 20,
        make: &["mkfs.btrfs", "-q", "-f", "-K"],
        options: "commit=300,nodiscard",
        check: &["btrfs", "check", "--readonly"],
        keeps_word: true,
        repair: &[],
    },
    FileSystem {
        name: "f2fs",
        kind: "f2fs",
        size: 256 << 20,
        make: F2FS,
        options: "fsync_mode=posix,background_gc=off,nodiscard",
        check: &["fsck.f2fs", "-f", "--dry-run"],
        keeps_word: true,
        repair: &["fsck.f2fs", "-a"],
    },
    FileSystem {
        name: "f2fs-strict",
        kind: "f2fs",
        size: 256 << 20,
        make: F2FS,
        options: "fsync_mode=strict,background_gc=off,nodiscard",
        check: &["fsck.f2fs", "-f", "--dry-run"],
        keeps_word: true,
        repair: &["fsck.f2fs", "-a"],
    },
    FileSystem {
        name: "strict",
        kind: MODEL,
        size: 0,
        make: &[],
        options: "mode=0755",
        check: &[],
        keeps_word: true,
        repair: &[],
    },
];

/// Where the states of the crash model are laid out.
const MODEL: &str = "tmpfs";

impl FileSystem {
    /// Finds one by its name.
    pub fn named(name: &str) -> Result<&'static FileSystem> {
        FILE_SYSTEMS.iter().find(|fs| fs.name == name).ok_or_else(|| {
            let known: Vec<&str> = FILE_SYSTEMS.iter().map(|fs| fs.name).collect();
            RigError::Unknown(format!("no file system {name:?}; there are {}", known.join(", ")))
        })
    }

    /// Whether the running kernel can mount it.
    pub fn is_in_kernel(&self) -> bool {
        let list = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        list.split_whitespace().any(|word| word == self.kind)
    }

    /// Whether it is the crash model, which has no disk (see `strict`).
    pub fn is_model(&self) -> bool {
        self.kind == MODEL
    }

    /// Mounts an empty directory in memory, for a state of the crash model.
    pub(crate) fn mount_empty(&self, place: &Path) -> Result<Mounted> {
        std::fs::create_dir_all(place).at("make the directory", place)?;
        let target = place.to_string_lossy();
        run("mount", &["-t", self.kind, "-o", self.options, self.name, &target])?;
        Ok(Mounted { place: place.to_owned(), mounted: true })
    }

    /// Makes the file `image` with this file system on it.
    pub fn make(&self, image: &Path) -> Result<()> {
        let file = File::options().write(true).create_new(true).open(image).at("create", image)?;
        file.set_len(self.size).at("set the length of", image)?;
        let image = image.to_string_lossy();
        let mut words = self.make.to_vec();
        words.push(&image);
        run(words[0], &words[1..])
    }

    /// Mounts an image or device at `place`, replaying its journal.
    pub fn mount(&self, source: &Path, place: &Path) -> Result<Mounted> {
        std::fs::create_dir_all(place).at("make the directory", place)?;
        let mut options = self.options.to_owned();
        let (source, target) = (source.to_string_lossy(), place.to_string_lossy());
        if !source.starts_with("/dev/") {
            // The loop device goes away with the mount.
            options.push_str(",loop");
        }
        run("mount", &["-t", self.kind, "-o", &options, &source, &target])?;
        Ok(Mounted { place: place.to_owned(), mounted: true })
    }

    /// Mounts as a device boots: what cannot be mounted is given to the file system's
    /// repair first, as the initramfs of Debian does.
    pub fn mount_repaired(&self, image: &Path, place: &Path) -> Result<Mounted> {
        match self.mount(image, place) {
            Err(_) if !self.repair.is_empty() => {
                let image = image.to_string_lossy();
                let mut command = Command::new(self.repair[0]);
                command.args(&self.repair[1..]).arg(&*image);
                // It tells by its status what it repaired; the mount tells whether it did.
                command.output().at("run", self.repair[0])?;
                self.mount(Path::new(&*image), place)
            }
            other => other,
        }
    }

    /// Looks over an unmounted image with the file system's own checker.
    pub fn check(&self, image: &Path) -> Result<()> {
        let image = image.to_string_lossy();
        let mut words = self.check.to_vec();
        words.push(&image);
        run(words[0], &words[1..])
    }
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    place: PathBuf,
    mounted: bool,
}

impl Mounted {
    /// Where.
    pub fn path(&self) -> &Path {
        &self.place
    }

    /// Unmounts it, or says why not. A program that another thread is just starting may
    /// hold our descriptors for a moment: that is waited for.
    pub fn unmount(mut self) -> Result<()> {
        let patience = Instant::now() + Duration::from_secs(5);
        loop {
            match rustix::mount::unmount(&self.place, UnmountFlags::empty()) {
                Err(Errno::BUSY) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(()) => {
                    self.mounted = false;
                    return Ok(());
                }
                failed => return failed.at("unmount", &self.place),
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            let _ = rustix::mount::unmount(&self.place, UnmountFlags::DETACH);
        }
    }
}

/// Copies a disk image to a new file and keeps its holes.
pub fn copy_image(from: &Path, to: &Path) -> Result<()> {
    let failed = |error: varve_sys::SysError| RigError::Device(varve_sys::whole_message(&error));
    let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
        return Err(RigError::Unknown(format!("{} is no file name", to.display())));
    };
    let source = File::open(from).at("open", from)?;
    let directory = varve_sys::Dir::open(parent).map_err(failed)?;
    let mut copy = directory.create_file(name, 0o600).map_err(failed)?;
    copy.copy_from(&source).map_err(failed)
}

/// Runs a program; what it prints is shown only when it fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    run_output(program, arguments).map(drop)
}

/// Runs a program and returns what it printed.
pub fn run_output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().at("run", program)?;
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(text.into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(RigError::Command {
        command: format!("{program} {}", arguments.join(" ")),
        output: format!("{} {}", text.trim(), errors.trim()),
    })
}
