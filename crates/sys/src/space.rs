//! How much room a file system has.

use crate::dir::Dir;
use crate::error::{Context, Result};

/// Room on one file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Identity of the file system (`st_dev`): equal for directories that share its room.
    pub device: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes that an unprivileged process may still use.
    pub free: u64,
    /// Inodes still free; `u64::MAX` where the file system makes them as needed.
    pub free_inodes: u64,
}

/// Whether files of the file system that holds `dir` may share blocks (btrfs, XFS,
/// bcachefs): then what a file takes is not what becomes free when it goes.
pub fn may_share_blocks(dir: &Dir) -> Result<bool> {
    // include/uapi/linux/magic.h; bcachefs: fs/bcachefs/bcachefs_format.h.
    const SHARING: [u64; 3] = [0x9123_683e, 0x5846_5342, 0xca45_1a4e];
    let info = rustix::fs::fstatfs(dir.fd()).context("see the kind of", || dir.path().into())?;
    Ok(SHARING.contains(&(info.f_type as u64)))
}

/// Reads the room of the file system that holds `dir`.
pub fn space(dir: &Dir) -> Result<Space> {
    let info = rustix::fs::fstatvfs(dir.fd()).context("see the space of", || dir.path().into())?;
    let device = dir.stat(".")?.device;
    let free_inodes = if info.f_files == 0 { u64::MAX } else { info.f_favail };
    Ok(Space {
        device,
        total: info.f_blocks * info.f_frsize,
        free: info.f_bavail * info.f_frsize,
        free_inodes,
    })
}
