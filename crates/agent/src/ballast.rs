//! Room for a full disk: a file that holds a few blocks, given away when there are no others.
//!
//! ```text
//! /varve/ballast   2 MiB, allocated and never written
//! lock, disk full          -> deleted: the records of a roll back, a removal, a reset fit
//! lock, room again         -> made anew
//! ```
//!
//! Deleting needs no room, but a change of what boots does: a record, a selection, a line of
//! the history. Whoever filled the disk (a log, a download) must not keep its user from
//! taking a layer off. Neither act ever fails the command. Caller: [`crate::device`], on a
//! device that is running.

use varve_rootfs::Store;
use varve_sys::space;

/// Its name below `/varve`.
pub const FILE: &str = "ballast";
/// What it holds, in bytes: some hundred blocks.
pub const SIZE: u64 = 2 << 20;
/// With less than this free, in bytes, a change may not fit.
const LOW: u64 = 1 << 20;

/// Gives it away, or makes it, as the room is; `reserve` is what upgrades leave free.
pub(crate) fn adjust(store: &Store, reserve: u64) {
    let dir = store.dir();
    let Ok(space) = space::space(dir) else { return };
    let here = dir.stat_opt(FILE).is_ok_and(|stat| stat.is_some());
    if here && space.free < LOW {
        let _ = dir.unlink(FILE);
    } else if !here && space.free > reserve.saturating_add(SIZE) {
        let made = dir.create_file(FILE, 0o600).and_then(|file| file.allocate(SIZE));
        if made.is_err() {
            // Where blocks cannot be had ahead there is none.
            let _ = dir.unlink(FILE);
        }
    }
}
