//! Mounts, by descriptor: what the boot stage puts a root together with.
//!
//! Everything here is made *detached* first — a mount that is in no directory
//! yet — and attached by one call once all of it exists. So a root that cannot be
//! put together leaves nothing behind: dropping a [`Detached`] undoes it.
//!
//! ```text
//!   bind_detached     directory          --open_tree(CLONE)-->  Detached
//!   tmpfs_detached                       --fsopen, fsmount-->   Detached  --attach--> a place
//!   overlay_detached  lowers [+ upper]   --one of three ways--> Detached
//! ```
//!
//! The three ways of [`overlay_detached`], tried in this order ([`OverlayWay`]):
//!
//! | way | kernels | limit |
//! | --- | --- | --- |
//! | `lowerdir+`, one call for each lower | 6.8 and later | 500 lowers, 255 bytes each |
//! | one `lowerdir=a:b:c` string by fsconfig | all with the new API | 255 bytes in all |
//! | one string by mount(2), in a private namespace | all | one page in all; names that are too long for it are given as descriptors |
//!
//! All paths are relative to a directory, which a helper thread makes its own
//! working directory: so they stay short, `/proc/self/mountinfo` shows the layers'
//! names, and neither `/proc` nor a change of this process's directory is needed.
//!
//! Callers: `varve_rootfs` (the mount plan), `varve_early`. Sources: the kernel's
//! `Documentation/filesystems/{overlayfs,mount_api}.rst`, fsopen(2), mount_setattr(2).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountFlags, MountPropagationFlags,
    MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

/// The longest string that fsconfig(2) takes, its closing zero not counted.
const FSCONFIG_STRING: usize = 255;
/// mount(2) copies one page of options; its last byte is the closing zero.
const MOUNT_DATA: usize = 4095;

/// Why a mount could not be made, moved or taken away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The kernel has no such file system, or it may not be used here.
    #[error("cannot open the file system type {filesystem}")]
    FileSystem {
        /// Its name, as in `/proc/filesystems`.
        filesystem: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A mount option that cannot be left out was refused.
    #[error("cannot set {option} of {filesystem}{}", said(.kernel))]
    Option {
        /// Its name, as in `/proc/filesystems`.
        filesystem: &'static str,
        /// `key=value`.
        option: String,
        /// The kernel's own words about it, where it has any.
        kernel: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// All options were taken, and yet there is no mount.
    #[error("cannot mount {filesystem} of {subject}{}", said(.kernel))]
    Create {
        /// Its name, as in `/proc/filesystems`.
        filesystem: &'static str,
        /// The lower directories, or the size.
        subject: String,
        /// The kernel's own words about it, where it has any.
        kernel: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// An overlay was asked for with too few directories: without an upper one
    /// overlayfs wants two lower ones (a single one is a read-only bind).
    #[error("an overlay needs two lower directories, or one and an upper one; it has {lowers}")]
    TooFewLowers {
        /// How many there are.
        lowers: usize,
    },
    /// The directory to bind could not be cloned.
    #[error("cannot bind {path:?}")]
    Bind {
        /// The directory, relative to the descriptor given.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A detached mount could not be put into its place.
    #[error("cannot attach a mount at {target:?}")]
    Attach {
        /// The place.
        target: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Read-only, read-write or propagation could not be changed.
    #[error("cannot change the attributes of the mount at {target:?}")]
    Attributes {
        /// The mount.
        target: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A file system could not be made writable.
    #[error("cannot make the file system at {target:?} writable{}", said(.kernel))]
    Remount {
        /// The mount.
        target: PathBuf,
        /// The kernel's own words about it, where it has any.
        kernel: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A mount could not be taken away.
    #[error("cannot unmount {target:?}")]
    Unmount {
        /// The mount.
        target: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The helper thread that has its own working directory could not run.
    #[error("cannot work in {path:?}")]
    Helper {
        /// The directory that all lower paths are relative to, as it is known.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl MountError {
    /// What the kernel answered, where there is a kernel's answer.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            MountError::TooFewLowers { .. } => None,
            MountError::FileSystem { source, .. }
            | MountError::Option { source, .. }
            | MountError::Create { source, .. }
            | MountError::Bind { source, .. }
            | MountError::Attach { source, .. }
            | MountError::Attributes { source, .. }
            | MountError::Remount { source, .. }
            | MountError::Unmount { source, .. }
            | MountError::Helper { source, .. } => Some(source),
        }
    }
}

fn said(kernel: &str) -> String {
    if kernel.is_empty() { String::new() } else { format!(" (the kernel: {kernel})") }
}

/// Whether writing through a mount is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Every write answers EROFS.
    ReadOnly,
    /// As the file system below allows.
    ReadWrite,
}

/// Whether mounts below the directory come along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The directory's own mount alone.
    Alone,
    /// All mounts below it too.
    WithSubmounts,
}

/// A mount that is nowhere yet. Dropped without [`attach`](Self::attach), it is gone.
#[derive(Debug)]
pub struct Detached(OwnedFd);

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Detached {
    /// Puts it over the directory (or file) `target`, seen from `at`; an empty
    /// `target` is `at` itself. What was there is hidden, not changed.
    pub fn attach(self, at: impl AsFd, target: &Path) -> Result<(), MountError> {
        let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        if target.as_os_str().is_empty() {
            flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        }
        rustix::mount::move_mount(&self.0, c"", at, target, flags)
            .map_err(|source| MountError::Attach { target: target.into(), source: source.into() })
    }

    /// Puts it over the directory `path` beneath `root`: no link on the way is
    /// followed and none leads out, but mounts on the way are entered. An empty `path`
    /// is `root` itself.
    pub fn attach_beneath(self, root: impl AsFd, path: &Path) -> Result<(), MountError> {
        if path.as_os_str().is_empty() || path == Path::new(".") {
            return self.attach(root, Path::new(""));
        }
        let place = rustix::fs::openat2(
            root,
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
        .map_err(|source| MountError::Attach { target: path.into(), source: source.into() })?;
        self.attach(place, Path::new(""))
    }

    /// Stops writes through this mount.
    pub fn set_read_only(&self, reach: Reach) -> Result<(), MountError> {
        let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
        set_attributes(self.as_fd(), Path::new(""), reach, attributes)
    }
}

/// Clones what is mounted at `path` (seen from `at`; empty: `at` itself), private:
/// a later mount below the original does not show here, nor the other way round.
pub fn bind_detached(
    at: impl AsFd,
    path: &Path,
    access: Access,
    reach: Reach,
) -> Result<Detached, MountError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    if reach == Reach::WithSubmounts {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let mount = rustix::mount::open_tree(at, path, flags)
        .map(Detached)
        .map_err(|source| MountError::Bind { path: path.into(), source: source.into() })?;
    let mut attributes = MountAttributes {
        propagation: u64::from(MountPropagationFlags::PRIVATE.bits()),
        ..Default::default()
    };
    match access {
        Access::ReadOnly => attributes.set = libc::MOUNT_ATTR_RDONLY,
        Access::ReadWrite => attributes.clear = libc::MOUNT_ATTR_RDONLY,
    }
    set_attributes(mount.as_fd(), Path::new(""), reach, attributes)?;
    Ok(mount)
}

/// A fresh tmpfs, its root with `mode`; `size` is in bytes, or the kernel's half of
/// the memory.
pub fn tmpfs_detached(mode: u32, size: Option<u64>) -> Result<Detached, MountError> {
    let context = FsContext::open("tmpfs")?;
    context.require("source", "varve")?;
    context.require("mode", &format!("{mode:o}"))?;
    if let Some(size) = size {
        context.require("size", &size.to_string())?;
    }
    context.create("memory".into())
}

/// The two directories that take an overlay's changes; both on one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    /// Where changes are kept.
    pub upper: PathBuf,
    /// overlayfs's own scratch directory; empty at first.
    pub work: PathBuf,
}

/// What an overlay is made of.
#[derive(Debug, Clone)]
pub struct Overlay<'a> {
    /// Every path below is relative to this directory (an absolute one may be used too).
    pub base: BorrowedFd<'a>,
    /// Lower directories, the one that wins first.
    pub lowers: &'a [PathBuf],
    /// None: a read-only overlay.
    pub upper: Option<&'a Upper>,
    /// The name that `/proc/mounts` shows as the source.
    pub source: &'a str,
}

/// The options that every overlay of ours has. None follows or makes redirects,
/// none keeps an index: so each layer stays a plain directory that `cp` can copy,
/// and a layer below may be replaced between mounts.
pub const OVERLAY_OPTIONS: [(&str, &str); 4] =
    [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off"), ("xino", "off")];

/// By which of the kernel's ways an overlay came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayWay {
    /// `lowerdir+`, one call for each lower directory.
    OneByOne,
    /// One `lowerdir=` string by fsconfig(2).
    OneString,
    /// One string by mount(2).
    OldMount,
}

/// A finished overlay, and what had to be done without.
#[derive(Debug)]
pub struct MadeOverlay {
    /// The mount.
    pub mount: Detached,
    /// How it was made.
    pub way: OverlayWay,
    /// Options of [`OVERLAY_OPTIONS`] that this kernel does not know, `key=value`.
    pub refused: Vec<String>,
}

/// Makes an overlay by the first way that this kernel has.
pub fn overlay_detached(overlay: &Overlay<'_>) -> Result<MadeOverlay, MountError> {
    let ways = [OverlayWay::OneByOne, OverlayWay::OneString, OverlayWay::OldMount];
    // An older kernel would refuse the first way too, but say so on the console.
    overlay_by(overlay, if knows_lowerdir_add() { &ways } else { &ways[1..] })
}

/// Whether `lowerdir+` is there, by the kernel's version: 6.8 or later.
fn knows_lowerdir_add() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map(|text| text.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next()) >= (6_u32, 8_u32)
}

/// The same by the ways given alone: for the tests of the older kernels' ways on a
/// newer one.
pub fn overlay_by(overlay: &Overlay<'_>, ways: &[OverlayWay]) -> Result<MadeOverlay, MountError> {
    if overlay.lowers.len() + 2 * usize::from(overlay.upper.is_some()) < 2 {
        return Err(MountError::TooFewLowers { lowers: overlay.lowers.len() });
    }
    in_directory(overlay.base, || {
        let mut first_error = None;
        // An old kernel refuses an unknown option only at the end and does not say
        // which; so what it refuses whole is tried once more with none of ours.
        for options in [&OVERLAY_OPTIONS[..], &[]] {
            for &way in ways {
                let made = match way {
                    OverlayWay::OneByOne => by_fsconfig(overlay, options, false),
                    OverlayWay::OneString => by_fsconfig(overlay, options, true),
                    OverlayWay::OldMount => by_old_mount(overlay, options),
                };
                match made {
                    Ok((mount, mut refused)) => {
                        if options.is_empty() {
                            refused = OVERLAY_OPTIONS.map(|(k, v)| format!("{k}={v}")).into();
                        }
                        return Ok(MadeOverlay { mount, way, refused });
                    }
                    Err(error) if means_not_this_way(&error) => {
                        first_error.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Err(first_error.expect("at least one way was tried"))
    })
}

/// EINVAL is what a kernel says to an option or a length that it does not know, E2BIG
/// is ours; any other answer (no such directory, no memory, I/O error) is the same by
/// every way.
fn means_not_this_way(error: &MountError) -> bool {
    matches!(error.io().and_then(io::Error::raw_os_error), Some(libc::EINVAL | libc::E2BIG))
}

fn by_fsconfig(
    overlay: &Overlay<'_>,
    options: &[(&str, &str)],
    one_string: bool,
) -> Result<(Detached, Vec<String>), MountError> {
    let context = FsContext::open("overlay")?;
    context.require("source", overlay.source)?;
    if one_string {
        context.require_bytes("lowerdir", &join_lowers(overlay.lowers, b""))?;
    } else {
        for lower in overlay.lowers {
            context.require_bytes("lowerdir+", lower.as_os_str().as_bytes())?;
        }
    }
    if let Some(Upper { upper, work }) = overlay.upper {
        // These two are unescaped by the kernel, unlike `lowerdir+`.
        context.require_bytes("upperdir", &escape(upper, b"\\"))?;
        context.require_bytes("workdir", &escape(work, b"\\"))?;
    }
    let mut refused = Vec::new();
    for (key, value) in options {
        match context.require(key, value) {
            Ok(()) => {}
            Err(error) if means_not_this_way(&error) => refused.push(format!("{key}={value}")),
            Err(error) => return Err(error),
        }
    }
    Ok((context.create(describe(overlay))?, refused))
}

/// mount(2) needs a place, and must not be seen by anyone: so in a mount namespace
/// of this helper thread alone, over the first lower directory; cloned from there,
/// it lives on when the namespace goes.
fn by_old_mount(
    overlay: &Overlay<'_>,
    options: &[(&str, &str)],
) -> Result<(Detached, Vec<String>), MountError> {
    let create = |source: io::Error| MountError::Create {
        filesystem: "overlay",
        subject: describe(overlay),
        kernel: String::new(),
        source,
    };
    let kernel = |source: rustix::io::Errno| create(source.into());
    // SAFETY: unshare(2) with CLONE_NEWNS touches no memory; it changes the mount
    // namespace of this thread, which ends after the closure of `in_directory`.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .map_err(kernel)?;
    make_all_private()?;
    let place = &overlay.lowers[0];
    let mut data = old_mount_data(overlay, options);
    let mut target = place.clone();
    let base = open_path(Path::new(".")).map_err(kernel)?;
    // Descriptors must stay open until the mount is made.
    let mut opened = Vec::new();
    if data.len() > MOUNT_DATA {
        let mut number = |path: &Path| -> Result<PathBuf, MountError> {
            let fd = open_path(path).map_err(kernel)?;
            let number = fd.as_raw_fd().to_string();
            opened.push(fd);
            Ok(number.into())
        };
        let lowers: Vec<_> =
            overlay.lowers.iter().map(|path| number(path)).collect::<Result<_, _>>()?;
        let upper = match overlay.upper {
            Some(Upper { upper, work }) => {
                Some(Upper { upper: number(upper)?, work: number(work)? })
            }
            None => None,
        };
        let shorter = Overlay { lowers: &lowers, upper: upper.as_ref(), ..overlay.clone() };
        data = old_mount_data(&shorter, options);
        target = Path::new("/proc/self/fd").join(base.as_raw_fd().to_string()).join(place);
        rustix::process::chdir(c"/proc/self/fd").map_err(kernel)?;
    }
    if data.len() > MOUNT_DATA {
        return Err(create(io::Error::from_raw_os_error(libc::E2BIG)));
    }
    let data = CString::new(data).map_err(|e| create(e.into()))?;
    let made = rustix::mount::mount(
        overlay.source,
        &target,
        c"overlay",
        MountFlags::empty(),
        Some(data.as_c_str()),
    );
    drop(opened);
    // Also after a failure: the next way begins in the same directory.
    rustix::process::fchdir(&base).map_err(kernel)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount =
        made.and_then(|()| rustix::mount::open_tree(&base, place, flags)).map_err(kernel)?;
    Ok((Detached(mount), Vec::new()))
}

fn open_path(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn old_mount_data(overlay: &Overlay<'_>, options: &[(&str, &str)]) -> Vec<u8> {
    let mut data = b"lowerdir=".to_vec();
    data.extend(join_lowers(overlay.lowers, b","));
    if let Some(Upper { upper, work }) = overlay.upper {
        data.extend_from_slice(b",upperdir=");
        data.extend(escape(upper, b"\\,"));
        data.extend_from_slice(b",workdir=");
        data.extend(escape(work, b"\\,"));
    }
    for (key, value) in options {
        data.extend(format!(",{key}={value}").into_bytes());
    }
    data
}

fn describe(overlay: &Overlay<'_>) -> String {
    let names: Vec<_> =
        overlay.lowers.iter().take(3).map(|path| path.display().to_string()).collect();
    let more = overlay.lowers.len().saturating_sub(3);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

/// `a:b:c`, with what overlayfs would take for a separator escaped.
fn join_lowers(lowers: &[PathBuf], also: &[u8]) -> Vec<u8> {
    let special = [b"\\:", also].concat();
    lowers.iter().map(|path| escape(path, &special)).collect::<Vec<_>>().join(&b':')
}

fn escape(path: &Path, special: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(path.as_os_str().len());
    for &byte in path.as_os_str().as_bytes() {
        if special.contains(&byte) {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

/// Runs `work` in a thread whose working directory is `directory`, and this
/// process's stays what it is.
fn in_directory<T: Send>(
    directory: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, MountError> + Send,
) -> Result<T, MountError> {
    let failed = |source: rustix::io::Errno| MountError::Helper {
        path: PathBuf::from("."),
        source: source.into(),
    };
    std::thread::scope(|scope| {
        let helper = scope.spawn(|| {
            // SAFETY: unshare(2) with CLONE_FS touches no memory; from here on this
            // thread alone has its working directory and root.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
                .map_err(failed)?;
            rustix::process::fchdir(directory).map_err(failed)?;
            work()
        });
        helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Stops or allows writes through the mount at `target`; the file system below and
/// its other mounts stay as they are.
pub fn set_access(at: impl AsFd, target: &Path, access: Access) -> Result<(), MountError> {
    let attributes = match access {
        Access::ReadOnly => MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() },
        Access::ReadWrite => {
            MountAttributes { clear: libc::MOUNT_ATTR_RDONLY, ..Default::default() }
        }
    };
    set_attributes(at.as_fd(), target, Reach::Alone, attributes)
}

/// Makes the *file system* at `target` writable (an initramfs mounts it read-only),
/// and this mount of it as well. Its other options stay.
pub fn make_writable(at: impl AsFd, target: &Path) -> Result<(), MountError> {
    let failed = |kernel: String, source: rustix::io::Errno| MountError::Remount {
        target: target.into(),
        kernel,
        source: source.into(),
    };
    let mut flags = FsPickFlags::FSPICK_CLOEXEC;
    if target.as_os_str().is_empty() {
        flags |= FsPickFlags::FSPICK_EMPTY_PATH;
    }
    let context = rustix::mount::fspick(at.as_fd(), target, flags)
        .map_err(|source| failed(String::new(), source))?;
    rustix::mount::fsconfig_set_flag(&context, c"rw")
        .and_then(|()| rustix::mount::fsconfig_reconfigure(&context))
        .map_err(|source| failed(messages(&context), source))?;
    set_access(at, target, Access::ReadWrite)
}

/// Takes the mount at `target` out of the tree at once; what still uses it keeps it
/// until done.
pub fn unmount_lazily(target: &Path) -> Result<(), MountError> {
    rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .map_err(|source| MountError::Unmount { target: target.into(), source: source.into() })
}

/// Makes every mount of this mount namespace private, so that nothing done here is
/// seen outside. For tests and for `unshare`d work.
pub fn make_all_private() -> Result<(), MountError> {
    rustix::mount::mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(|source| MountError::Attributes { target: "/".into(), source: source.into() })
}

/// Gives this *thread* (and what it starts) a mount namespace of its own, nothing in
/// it seen outside.
pub fn enter_private_namespace() -> Result<(), MountError> {
    // SAFETY: unshare(2) touches no memory. CLONE_NEWNS implies CLONE_FS: this thread
    // gets its own working directory, root and mounts; no other thread's change.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .map_err(|source| MountError::Helper { path: "/".into(), source: source.into() })?;
    make_all_private()
}

/// An fsopen(2) descriptor on its way to be a mount.
struct FsContext {
    filesystem: &'static str,
    fd: OwnedFd,
}

impl FsContext {
    fn open(filesystem: &'static str) -> Result<FsContext, MountError> {
        let fd = rustix::mount::fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|source| MountError::FileSystem { filesystem, source: source.into() })?;
        Ok(FsContext { filesystem, fd })
    }

    fn require(&self, key: &str, value: &str) -> Result<(), MountError> {
        self.require_bytes(key, value.as_bytes())
    }

    fn require_bytes(&self, key: &str, value: &[u8]) -> Result<(), MountError> {
        let set = if value.len() > FSCONFIG_STRING {
            // The kernel says EINVAL too; said here, so that no kernel takes half of it.
            Err(rustix::io::Errno::INVAL)
        } else {
            rustix::mount::fsconfig_set_string(&self.fd, key, value)
        };
        set.map_err(|source| MountError::Option {
            filesystem: self.filesystem,
            option: format!("{key}={}", String::from_utf8_lossy(value)),
            kernel: messages(&self.fd),
            source: source.into(),
        })
    }

    fn create(&self, subject: String) -> Result<Detached, MountError> {
        rustix::mount::fsconfig_create(&self.fd)
            .and_then(|()| {
                let flags = FsMountFlags::FSMOUNT_CLOEXEC;
                rustix::mount::fsmount(&self.fd, flags, MountAttrFlags::empty())
            })
            .map(Detached)
            .map_err(|source| MountError::Create {
                filesystem: self.filesystem,
                subject,
                kernel: messages(&self.fd),
                source: source.into(),
            })
    }
}

/// What the kernel logged into the context: errors as `e text`, each read one.
fn messages(context: &OwnedFd) -> String {
    let mut said = Vec::new();
    let mut buffer = [0_u8; 1024];
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        let text = text.trim_end();
        if length == 0 || said.len() == 8 {
            break;
        }
        said.push(text.strip_prefix("e ").unwrap_or(text).to_owned());
    }
    said.join("; ")
}

/// The kernel's `struct mount_attr` (include/uapi/linux/mount.h), first version.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

fn set_attributes(
    at: BorrowedFd<'_>,
    target: &Path,
    reach: Reach,
    attributes: MountAttributes,
) -> Result<(), MountError> {
    let failed = |source: io::Error| MountError::Attributes { target: target.into(), source };
    let path = CString::new(target.as_os_str().as_bytes()).map_err(|e| failed(e.into()))?;
    let mut flags = 0;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    if reach == Reach::WithSubmounts {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `at` is an open descriptor for the whole call; `path` ends in zero;
    // `attributes` is the kernel's structure, of the size that is passed along, only
    // read by the call; nothing is kept after it returns.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(failed(io::Error::last_os_error())) }
}
