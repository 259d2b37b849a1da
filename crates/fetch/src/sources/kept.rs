//! What outlives the process that fetched it, below `incoming/`:
//!
//! ```text
//! <sha256>.document        a manifest, a record, an index: whole
//! under-way-0 .. -11       the last ranges that were read: which, then the bytes as they come
//! ```
//!
//! Neither is believed: a document's digest is checked when it is taken up, and a range
//! that was begun in another run is checked as one that was pieced together from several
//! answers is. So nothing here is synced for the sake of order, and nothing fails when
//! it cannot be written: a cut of power loses what would be fetched again anyway, while a
//! process that is killed loses not one byte that it has read.
//!
//! A range is read long before what is in it stands where it belongs: between the two it
//! waits to be decoded and, behind a slow disk, to be written. So as many are kept as can
//! be on that way at once ([`SLOTS`]), and each takes the place of the one begun longest ago.

use std::io::Read;
use std::sync::{Mutex, PoisonError};

use varve_format::Sha256Digest;
use varve_sys::{Dir, NewFile, durable, faults};

/// How many ranges are kept.
const SLOTS: usize = crate::contents::ON_THE_WAY;
/// The longest document that is kept, in bytes.
const MAX_DOCUMENT: u64 = 64 << 20;
/// The longest name of a range.
const MAX_NAME: usize = 512;
/// The largest part of a range that is kept.
const MAX_RANGE: u64 = 64 << 20;

pub(super) struct Kept {
    dir: Dir,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What is in each place, as an earlier run left it or as this one wrote it; looked
    /// for once.
    slots: Option<Vec<Slot>>,
    open: Option<(usize, NewFile)>,
}

#[derive(Clone, Default)]
struct Slot {
    /// The range's file and start; empty when there is none.
    name: String,
    /// Its turn: each range has a greater one than those that were begun before it.
    turn: u64,
}

fn slot_name(slot: usize) -> String {
    format!("under-way-{slot}")
}

/// What a range's file begins with.
fn head(name: &str, turn: u64) -> String {
    format!("{turn} {name}\n")
}

impl Kept {
    pub(super) fn new(dir: Dir) -> Self {
        Self { dir, state: Mutex::default() }
    }

    /// A document of this digest and length, if it is here and whole.
    pub(super) fn document(&self, digest: &Sha256Digest, size: u64) -> Option<Vec<u8>> {
        if size > MAX_DOCUMENT {
            return None;
        }
        let bytes = self.dir.read_opt(document_name(digest), size).ok()??;
        (faults::out("check.document") || Sha256Digest::of(&bytes) == *digest).then_some(bytes)
    }

    /// Keeps a document, verified.
    pub(super) fn keep_document(&self, digest: &Sha256Digest, bytes: &[u8]) {
        self.clear();
        if bytes.len() as u64 <= MAX_DOCUMENT {
            // On a full disk it is fetched once more: what must not fail is the upgrade.
            let _ = durable::write_file(&self.dir, &document_name(digest), bytes, 0o600);
        }
    }

    /// Begins a range: appends to `out` what an earlier run left of it, of at most `length`
    /// bytes, and goes on with what [`Kept::add`] brings. Gives how much that was.
    pub(super) fn begin(&self, path: &str, start: u64, length: u64, out: &mut Vec<u8>) -> usize {
        let name = format!("{path} {start}");
        let mut state = self.lock();
        state.open = None;
        if name.len() > MAX_NAME - 32 || length > MAX_RANGE {
            return 0;
        }
        let slots = match &mut state.slots {
            Some(slots) => slots,
            none => none.insert(self.look()),
        };
        let found = slots.iter().position(|slot| slot.name == name);
        let oldest = || (0..SLOTS).min_by_key(|&at| slots[at].turn).unwrap_or(0);
        let at = found.unwrap_or_else(oldest);
        let taken = match found {
            Some(_) => self.take_up(at, &slots[at], length, out),
            None => {
                let turn = slots.iter().map(|slot| slot.turn).max().unwrap_or(0);
                slots[at] = Slot { name, turn: turn.saturating_add(1) };
                self.write(at, &slots[at]).map(|file| (file, 0))
            }
        };
        match taken {
            Ok((file, count)) => {
                state.open = Some((at, file));
                count
            }
            Err(_) => {
                slots[at] = Slot::default();
                0
            }
        }
    }

    /// Sees what an earlier run left.
    fn look(&self) -> Vec<Slot> {
        let look = |at| {
            let mut head = Vec::new();
            let file = self.dir.open_file(slot_name(at)).ok()?;
            file.take(MAX_NAME as u64).read_to_end(&mut head).ok()?;
            head.truncate(head.iter().position(|&byte| byte == b'\n')?);
            let (turn, name) = std::str::from_utf8(&head).ok()?.split_once(' ')?;
            Some(Slot { name: name.to_owned(), turn: turn.parse().ok()? })
        };
        (0..SLOTS).map(|at| look(at).unwrap_or_default()).collect()
    }

    /// Goes on with what an earlier run left in a place.
    fn take_up(
        &self,
        at: usize,
        slot: &Slot,
        length: u64,
        out: &mut Vec<u8>,
    ) -> varve_sys::Result<(NewFile, usize)> {
        let bytes = self.dir.read(slot_name(at), MAX_NAME as u64 + MAX_RANGE)?;
        let head = head(&slot.name, slot.turn);
        let left = bytes.strip_prefix(head.as_bytes()).unwrap_or_default();
        let count = left.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        let mut file = self.dir.edit_file(slot_name(at))?;
        let end = (head.len() + count) as u64;
        file.set_length(end)?;
        file.seek_to(end)?;
        out.extend_from_slice(&left[..count]);
        Ok((file, count))
    }

    /// Begins anew in a place.
    fn write(&self, at: usize, slot: &Slot) -> varve_sys::Result<NewFile> {
        let name = slot_name(at);
        let mut file = match self.dir.edit_file(&name) {
            Err(error) if error.is_not_found() => self.dir.create_file(&name, 0o600)?,
            other => other?,
        };
        file.set_length(0)?;
        file.write_all(head(&slot.name, slot.turn).as_bytes())?;
        Ok(file)
    }

    /// More of the range came.
    pub(super) fn add(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if let Some((_, file)) = &mut state.open
            && file.write_all(bytes).is_err()
        {
            state.open = None;
        }
    }

    /// What came of the range is wrong, or is not needed any more.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        if let Some((at, mut file)) = state.open.take() {
            let _ = file.set_length(0);
            if let Some(slots) = &mut state.slots {
                slots[at] = Slot::default();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn document_name(digest: &Sha256Digest) -> String {
    format!("{digest}.document")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(folder: &tempfile::TempDir) -> Kept {
        Kept::new(Dir::open(folder.path()).unwrap())
    }

    fn begin(kept: &Kept, path: &str, start: u64, length: u64) -> Vec<u8> {
        let mut out = Vec::new();
        assert_eq!(kept.begin(path, start, length, &mut out), out.len());
        out
    }

    #[test]
    fn a_range_goes_on_where_the_last_process_was() {
        let folder = tempfile::tempdir().unwrap();
        let first = kept(&folder);
        assert!(begin(&first, "packs/a", 10, 100).is_empty());
        first.add(b"abc");
        first.add(b"def");
        // Killed here. Another range is another one; the same goes on.
        let second = kept(&folder);
        assert_eq!(begin(&second, "packs/a", 10, 100), b"abcdef");
        second.add(b"g");
        assert_eq!(begin(&kept(&folder), "packs/a", 10, 3), b"abc");
        assert!(begin(&kept(&folder), "packs/a", 11, 100).is_empty());
    }

    /// What was read and is not yet where it belongs is kept too, whoever is killed when.
    #[test]
    fn the_last_ranges_are_all_kept() {
        let folder = tempfile::tempdir().unwrap();
        let first = kept(&folder);
        let many = SLOTS as u64 + 3;
        for start in 0..many {
            assert!(begin(&first, "a", start, 100).is_empty());
            first.add(format!("from {start}").as_bytes());
        }
        let second = kept(&folder);
        assert!(begin(&second, "a", 2, 100).is_empty(), "it was replaced");
        // That took the place of the oldest; nothing else is lost by it, or by a kill
        // before the others are taken up.
        let third = kept(&folder);
        for start in 4..many {
            assert_eq!(begin(&third, "a", start, 100), format!("from {start}").as_bytes());
        }
        assert!(begin(&third, "a", 3, 100).is_empty());
        let names = Dir::open(folder.path()).unwrap().names().unwrap().len();
        assert_eq!(names, SLOTS, "no more places than there are");
    }

    #[test]
    fn what_was_wrong_is_not_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let first = kept(&folder);
        begin(&first, "a", 0, 100);
        first.add(b"bad");
        first.clear();
        assert!(begin(&kept(&folder), "a", 0, 100).is_empty());
    }

    #[test]
    fn documents_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let kept = kept(&folder);
        let digest = Sha256Digest::of(b"text");
        assert!(kept.document(&digest, 4).is_none());
        kept.keep_document(&digest, b"text");
        assert_eq!(kept.document(&digest, 4).unwrap(), b"text");
        assert!(kept.document(&digest, 3).is_none());
        let dir = Dir::open(folder.path()).unwrap();
        durable::replace_file(&dir, &document_name(&digest), b"tex!", 0o600).unwrap();
        assert!(kept.document(&digest, 4).is_none());
    }
}
