//! Room for a full disk: files that hold a few blocks and inodes, given away when there are no
//! others.
//!
//! ```text
//! /varve/ballast               2 MiB, allocated and never written
//! /varve/ballast.1 to .31      empty: an inode each
//! lock, disk full              -> deleted: the records of a roll back, a removal, a reset fit
//! lock, room again             -> made anew
//! ```
//!
//! Deleting needs no room, but a change of what boots does: a record, a selection, a line of
//! the history. Whoever filled the disk (a log, a download) must not keep its user from
//! taking a layer off. Neither act ever fails the command. Caller: [`crate::device`], on a
//! device that is running.

use varve_rootfs::Store;
use varve_sys::{Dir, space};

/// Its name below `/varve`.
pub const FILE: &str = "ballast";
/// What it holds, in bytes: some hundred blocks.
pub const SIZE: u64 = 2 << 20;
/// With less than this free, in bytes, a change may not fit.
const LOW: u64 = 1 << 20;
/// What it holds, in inodes: a new deployment takes some twenty.
pub const INODES: u64 = 32;
/// With fewer inodes than this free a change may not fit.
const FEW: u64 = 32;

/// Gives it away, or makes it, as the room is; `reserve` is what upgrades leave free.
pub(crate) fn adjust(store: &Store, reserve: u64) {
    let dir = store.dir();
    let Ok(space) = space::space(dir) else { return };
    let here = dir.stat_opt(FILE).is_ok_and(|stat| stat.is_some());
    let few = space.free_inodes < FEW;
    if here && (space.free < LOW || few) {
        give_away(dir);
    } else if !here
        && space.free > reserve.saturating_add(SIZE)
        && space.free_inodes > FEW + 2 * INODES
    {
        let made = spares().try_for_each(|name| dir.create_file(name, 0o600).map(drop));
        let made = made.and_then(|()| dir.create_file(FILE, 0o600)?.allocate(SIZE));
        if made.is_err() {
            // Where blocks cannot be had ahead there is none.
            give_away(dir);
        }
    }
}

fn spares() -> impl Iterator<Item = String> {
    (1..INODES).map(|n| format!("{FILE}.{n}"))
}

fn give_away(dir: &Dir) {
    for name in spares().chain([FILE.to_owned()]) {
        let _ = dir.unlink(name);
    }
}
