//! The only place where something becomes durable. Every commit point of Varve is one
//! of these functions; `docs/invariants.md` says what holds before and after each.
//!
//! The rule is always the same: prepare under a name that nothing reads, make the
//! bytes durable, do one atomic rename, make the rename durable.
//!
//! ```text
//! sync_files    all of a batch's bytes and names    -> then rename them into place
//! replace_file  temp file, fsync, rename, fsync dir -> old or new text, never a mix
//! commit_rename sync done by caller, rename, fsync dir -> at the old place or the new
//! append_line   one write, fsync                    -> the line is there or is cut off
//! write_file    written, fsync, fsync dir           -> whole when it returns, a part before
//! ```
//!
//! Each syncs the file system by a descriptor on it, never through the mounted root:
//! syncfs(2) on an overlay without an upper layer does nothing.

use std::io::Write;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::dir::Dir;
use crate::error::{Context, Result};
use crate::faults;
use crate::trace::{self, Event};

/// Makes everything written so far on the file system of `dir` durable: bytes,
/// metadata and names (syncfs(2)).
#[cfg_attr(feature = "faults", track_caller)]
pub fn sync_file_system(dir: &Dir) -> Result<()> {
    if faults::out("sync_file_system") {
        return Ok(());
    }
    rustix::fs::syncfs(dir.fd()).context("sync the file system of", || dir.path().into())?;
    trace::emit(|| Event::SyncFileSystem(dir.path().into()));
    Ok(())
}

/// Makes the names in `dir` durable (fsync(2) of the directory).
#[cfg_attr(feature = "faults", track_caller)]
pub fn sync_directory(dir: &Dir) -> Result<()> {
    if faults::out("sync_directory") {
        return Ok(());
    }
    sync_names(dir)
}

fn sync_names(dir: &Dir) -> Result<()> {
    rustix::fs::fsync(dir.fd()).context("sync the directory", || dir.path().into())?;
    trace::emit(|| Event::SyncDirectory(dir.path().into()));
    Ok(())
}

/// Replaces the file `name` of `dir` by `bytes`. After a power cut at any point the
/// name holds the old bytes or the new, whole; when this returns, the new, durably.
/// A temporary `.<name>.new` may be left; the next call removes it.
#[cfg_attr(feature = "faults", track_caller)]
pub fn replace_file(dir: &Dir, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let temporary = format!(".{name}.new");
    dir.remove_all(&temporary)?;
    let unsynced = faults::out("replace_file.fsync");
    let mut file = dir.create_file(&temporary, mode)?;
    let written =
        file.write_all(bytes).and_then(|()| if unsynced { Ok(()) } else { file.sync_always() });
    if let Err(error) = written {
        // The disk is full, most likely: give the blocks back. The old file stands.
        let _ = dir.unlink(&temporary);
        return Err(error);
    }
    if faults::out("replace_file.rename") {
        dir.unlink(&temporary)?;
        return write_in_place(dir, name, bytes, mode);
    }
    dir.rename_over(&temporary, dir, name)?;
    if faults::out("replace_file.sync_directory") {
        return Ok(());
    }
    sync_names(dir)
}

/// What a replacement without its atomic act would be: for the rig's faults alone.
fn write_in_place(dir: &Dir, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut file = match dir.stat_opt(name)? {
        Some(_) => dir.edit_file(name)?,
        None => dir.create_file(name, mode)?,
    };
    file.write_all(bytes)?;
    file.set_length(bytes.len() as u64)?;
    file.sync_always()?;
    sync_names(dir)
}

/// Writes the file `name` of `dir` anew, durably. Until this returns the name may hold any part of
/// it, or nothing, after a power cut: for what tells itself whether it is whole, by a digest or by
/// its form.
#[cfg_attr(feature = "faults", track_caller)]
pub fn write_file(dir: &Dir, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    dir.remove_all(name)?;
    let unsynced = faults::out("write_file.fsync");
    let mut file = dir.create_file(name, mode)?;
    let written =
        file.write_all(bytes).and_then(|()| if unsynced { Ok(()) } else { file.sync_always() });
    if let Err(error) = written {
        // The disk is full, most likely: give the blocks back.
        let _ = dir.unlink(name);
        return Err(error);
    }
    if faults::out("write_file.sync_directory") {
        return Ok(());
    }
    sync_names(dir)
}

/// Moves `name` of `from` to `new` in `to`, which must be free, and makes that durable.
/// The caller has made durable what lies under the name. After a power cut the thing
/// stands at the old place or at the new. A rename is one transaction of every journaling
/// file system, so the sync of one of the two directories is enough.
#[cfg_attr(feature = "faults", track_caller)]
pub fn commit_rename(from: &Dir, name: impl AsRef<Path>, to: &Dir, new: &str) -> Result<()> {
    from.rename_new(name, to, new)?;
    if faults::out("commit_rename.sync_to") {
        return Ok(());
    }
    sync_names(to)
}

/// Takes `name` out of `from` at once and durably, by moving it into `trash` under a
/// free name, then deletes it there. After a power cut it is there whole, or only in
/// the trash, which the next sweep empties. Works on a full disk.
#[cfg_attr(feature = "faults", track_caller)]
pub fn discard(from: &Dir, name: &str, trash: &Dir) -> Result<()> {
    let Some(new) = move_away(from, name, trash)? else { return Ok(()) };
    if !faults::out("discard.sync_directory") {
        sync_names(from)?;
    }
    trash.remove_all(&new)
}

/// The same without a sync: after a power cut it may be back, whole or in part. For what nothing
/// names, and the next sweep or collection takes away again.
pub fn clear_away(from: &Dir, name: &str, trash: &Dir) -> Result<()> {
    match move_away(from, name, trash)? {
        Some(new) => trash.remove_all(&new),
        None => Ok(()),
    }
}

/// Moves `name` into `trash`; gives its name there.
fn move_away(from: &Dir, name: &str, trash: &Dir) -> Result<Option<String>> {
    let mut number = 0;
    loop {
        let new = format!("{name}.{number}");
        match from.rename_new(name, trash, &new) {
            Err(error) if error.is_exists() => number += 1,
            Err(error) if error.is_not_found() => return Ok(None),
            other => return other.map(|()| Some(new)),
        }
    }
}

/// Appends one line (without a newline inside) to the file `name`, made if missing,
/// durably. A line that a power cut left unfinished before is closed first, so that it
/// spoils nothing but itself.
#[cfg_attr(feature = "faults", track_caller)]
pub fn append_line(dir: &Dir, name: &str, line: &str) -> Result<()> {
    debug_assert!(!line.contains('\n'));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let path = || dir.path().join(name);
    let fd = rustix::fs::openat(dir.fd(), name, flags, Mode::from_raw_mode(0o644))
        .context("open for appending", path)?;
    let mut file = std::fs::File::from(fd);
    let length = file.metadata().context("examine", path)?.len();
    let mut text = String::with_capacity(line.len() + 2);
    if length > 0 {
        let mut last = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut last, length - 1)
            .context("read", path)?;
        if last != *b"\n" {
            text.push('\n');
        }
    }
    text.push_str(line);
    text.push('\n');
    file.write_all(text.as_bytes()).context("append to", path)?;
    if length == 0 {
        trace::make(&path());
    }
    trace::change(&path());
    if !faults::out("append_line.fsync") {
        rustix::fs::fsync(&file).context("sync", path)?;
        trace::emit(|| Event::SyncFile(path()));
    }
    if length == 0 && !faults::out("append_line.sync_directory") {
        sync_names(dir)?;
    }
    Ok(())
}
