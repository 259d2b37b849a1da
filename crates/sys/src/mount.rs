//! Mounts, by descriptor: what the boot stage puts a root together with.
//!
//! Everything here is made *detached* first — a mount that is in no directory
//! yet — and attached by one call once all of it exists. So a root that cannot be
//! put together leaves nothing behind: dropping a [`Detached`] undoes it.
//!
//! ```text
//!   bind_detached     directory          --open_tree(CLONE)-->  Detached
//!   tmpfs_detached                       --fsopen, fsmount-->   Detached  --attach--> a place
//!   overlay_detached  lowers [+ upper]   --`overlay`-------->   Detached
//! ```
//!
//! Callers: `varve_rootfs` (the mount plan), `varve_early`. Sources: the kernel's
//! `Documentation/filesystems/{overlayfs,mount_api}.rst`, fsopen(2), mount_setattr(2).

mod overlay;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

pub use overlay::{
    MadeOverlay, OVERLAY_OPTIONS, Overlay, OverlayWay, Upper, in_directory, overlay_by,
    overlay_detached,
};

/// The longest string that fsconfig(2) takes, its closing zero not counted.
const FSCONFIG_STRING: usize = 255;

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

    /// Puts it *under* the mount whose root is at `place`: that one lies over it, and taking
    /// that one away shows this. So a path is never without what it shows. Linux 6.5 and
    /// later; refused for a root directory (move_mount(2), MOVE_MOUNT_BENEATH).
    pub fn attach_under(&self, place: &Path) -> Result<(), MountError> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH;
        rustix::mount::move_mount(&self.0, c"", CWD, place, flags)
            .map_err(|source| MountError::Attach { target: place.into(), source: source.into() })
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

/// Clones what is mounted at `path` (seen from `at`) and all below it, each as it is,
/// private.
pub fn copy_detached(at: impl AsFd, path: &Path) -> Result<Detached, MountError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let mount = rustix::mount::open_tree(at, path, flags)
        .map(Detached)
        .map_err(|source| MountError::Bind { path: path.into(), source: source.into() })?;
    let attributes = MountAttributes {
        propagation: u64::from(MountPropagationFlags::PRIVATE.bits()),
        ..Default::default()
    };
    set_attributes(mount.as_fd(), Path::new(""), Reach::WithSubmounts, attributes)?;
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

/// Terminals of its own: a fresh devpts, its modes those that distributions give it.
pub fn devpts_detached() -> Result<Detached, MountError> {
    let context = FsContext::open("devpts")?;
    for (key, value) in [("mode", "620"), ("ptmxmode", "666"), ("gid", "5")] {
        context.require(key, value)?;
    }
    context.create("terminals".into())
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

/// Makes the mount at `target` and all below it private: what is mounted there from now on
/// is seen in no other place.
pub fn make_private(target: &Path) -> Result<(), MountError> {
    let attributes = MountAttributes {
        propagation: u64::from(MountPropagationFlags::PRIVATE.bits()),
        ..Default::default()
    };
    set_attributes(CWD, target, Reach::WithSubmounts, attributes)
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

/// Moves this *thread* into the mount namespace that `namespace` (an open
/// `/proc/PID/ns/mnt`) is of: its root and working directory are that one's root.
pub fn enter_namespace(namespace: impl AsFd) -> Result<(), MountError> {
    let failed =
        |source: rustix::io::Errno| MountError::Helper { path: "/".into(), source: source.into() };
    // SAFETY: unshare(2) with CLONE_FS touches no memory; from here on this thread's root
    // and working directory are its own, which setns(2) asks for.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }.map_err(failed)?;
    let kind = Some(rustix::thread::LinkNameSpaceType::Mount);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).map_err(failed)
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

/// Stops writes through a detached mount. Allocates nothing: for a process that was just
/// forked.
pub(crate) fn stop_writes(mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
    mount_setattr(mount, c"", libc::AT_EMPTY_PATH, attributes)
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
    mount_setattr(at, &path, flags, attributes).map_err(|errno| failed(errno.into()))
}

fn mount_setattr(
    at: BorrowedFd<'_>,
    path: &CStr,
    flags: libc::c_int,
    attributes: MountAttributes,
) -> rustix::io::Result<()> {
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
    let error = || rustix::io::Errno::from_io_error(&io::Error::last_os_error());
    if answer == 0 { Ok(()) } else { Err(error().unwrap_or(rustix::io::Errno::IO)) }
}
