//! How big the boot stage is: it is loaded at every boot, before anything else can be.

use super::Problems;
use crate::device;
use crate::project::{Result, megabytes};

/// Bytes. A mount-only init is about 0.4 MB; the reading of records and configuration
/// may double that, and the menu with its search is 60 kB.
const BOOT_STAGE: u64 = 1 << 20;
/// Bytes. Goes onto every device and into every update. About 2 MB are the tables by which
/// a panic over a hostile delta ends that delta and not the update manager.
const UPDATE_MANAGER: u64 = 16_000_000;

pub(super) fn sizes() -> Result<Problems> {
    let programs = device::build()?;
    let mut problems = Vec::new();
    for (path, limit) in [(&programs.boot, BOOT_STAGE), (&programs.varve, UPDATE_MANAGER)] {
        let size = std::fs::metadata(path)?.len();
        println!("          {}: {}", path.display(), megabytes(size));
        if size > limit {
            problems.push(format!("{}: {size} bytes, at most {limit}", path.display()));
        }
    }
    Ok(problems)
}
