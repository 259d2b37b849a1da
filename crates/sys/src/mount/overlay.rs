//! Overlays, by the kernel's three ways.
//!
//! The three ways of [`overlay_detached`], tried in this order ([`OverlayWay`]):
//!
//! | way | kernels | limit |
//! | --- | --- | --- |
//! | `lowerdir+`, one call for each lower | 6.8 and later | 500 lowers, 255 bytes each |
//! | one `lowerdir=a:b:c` string by fsconfig | all with the new API | 255 bytes in all |
//! | one string by mount(2), in a private namespace | all | one page in all |
//!
//! Names that are longer than a page in all are given as descriptors.
//!
//! All paths are relative to a directory, which a helper thread makes its own
//! working directory: so they stay short, `/proc/self/mountinfo` shows the layers'
//! names, and neither `/proc` nor a change of this process's directory is needed.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, OpenTreeFlags};

use super::{Detached, FsContext, MountError, make_all_private};

/// mount(2) copies one page of options; its last byte is the closing zero.
const MOUNT_DATA: usize = 4095;

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
    match is_here(overlay.base) {
        true => first_way(overlay, ways),
        false => in_directory(overlay.base, || first_way(overlay, ways)),
    }
}

/// The first way that works, in a thread that is at `overlay.base`.
fn first_way(overlay: &Overlay<'_>, ways: &[OverlayWay]) -> Result<MadeOverlay, MountError> {
    let mut first_error = None;
    // An old kernel refuses an unknown option only at the end and does not say
    // which; so what it refuses whole is tried once more with none of ours.
    for options in [&OVERLAY_OPTIONS[..], &[]] {
        for &way in ways {
            let made = match way {
                OverlayWay::OneByOne => by_fsconfig(overlay, options, false),
                OverlayWay::OneString => by_fsconfig(overlay, options, true),
                // It changes its thread for good.
                OverlayWay::OldMount => {
                    in_directory(overlay.base, || by_old_mount(overlay, options))
                }
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
/// process's stays what it is. [`overlay_detached`] does so by itself; one who makes
/// several overlays of one directory saves a thread for each.
///
/// # Errors
/// [`MountError::Helper`] when there is no such thread to be had.
pub fn in_directory<T: Send, E: Send + From<MountError>>(
    directory: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    let failed = |source: rustix::io::Errno| {
        let source = source.into();
        E::from(MountError::Helper { path: PathBuf::from("."), source })
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

/// Whether the working directory of this thread is `directory`.
fn is_here(directory: BorrowedFd<'_>) -> bool {
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let here = rustix::fs::stat(c".").map(identity);
    here.is_ok() && here == rustix::fs::fstat(directory).map(identity)
}
