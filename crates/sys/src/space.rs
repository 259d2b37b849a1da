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
