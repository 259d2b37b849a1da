//! What outlives the process that fetched it, below `incoming/`:
//!
//! ```text
//! <sha256>.document   a manifest, a record, an index: whole
//! under-way           the range that is being read: its name, then its bytes as they come
//! under-way-before    the one before, which may not be written where it belongs yet
//! ```
//!
//! Neither is believed: a document's digest is checked when it is taken up, and a range
//! that was begun in another run is checked as one that was pieced together from several
//! answers is. So nothing here is synced for the sake of order, and nothing fails when
//! it cannot be written: a cut of power loses what would be fetched again anyway, while a
//! process that is killed loses not one byte that it has read.

use std::sync::{Mutex, PoisonError};

use varve_format::Sha256Digest;
use varve_sys::{Dir, NewFile, durable};

/// The range that is being read.
const UNDER_WAY: &str = "under-way";
/// The one before it.
const BEFORE: &str = "under-way-before";
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
    /// What an earlier run left, each with its name; read once.
    left: Option<Vec<Vec<u8>>>,
    open: Option<NewFile>,
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
        (Sha256Digest::of(&bytes) == *digest).then_some(bytes)
    }

    /// Keeps a document, verified.
    pub(super) fn keep_document(&self, digest: &Sha256Digest, bytes: &[u8]) {
        self.clear();
        if bytes.len() as u64 <= MAX_DOCUMENT {
            // On a full disk it is fetched once more: what must not fail is the upgrade.
            let _ = durable::replace_file(&self.dir, &document_name(digest), bytes, 0o600);
        }
    }

    /// Begins a range: appends to `out` what an earlier run left of it, of at most `length`
    /// bytes, and goes on with what [`Kept::add`] brings. Gives how much that was.
    pub(super) fn begin(&self, path: &str, start: u64, length: u64, out: &mut Vec<u8>) -> usize {
        let name = format!("{path} {start}\n");
        if name.len() > MAX_NAME || length > MAX_RANGE {
            return 0;
        }
        let mut state = self.lock();
        let limit = MAX_NAME as u64 + MAX_RANGE;
        let found = state.left.get_or_insert_with(|| {
            let read = |name| self.dir.read_opt(name, limit).ok().flatten();
            [BEFORE, UNDER_WAY].into_iter().filter_map(read).collect()
        });
        let mut text = name.into_bytes();
        let named = text.len();
        if let Some(at) = found.iter().position(|left| left.starts_with(&text)) {
            let left = found.swap_remove(at);
            let bytes = &left[named..];
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            text.extend_from_slice(&bytes[..bytes.len().min(length)]);
        }
        out.extend_from_slice(&text[named..]);
        state.open = self.write(&text).ok();
        text.len() - named
    }

    fn write(&self, text: &[u8]) -> varve_sys::Result<NewFile> {
        match self.dir.rename_over(UNDER_WAY, &self.dir, BEFORE) {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        let mut file = self.dir.create_file(UNDER_WAY, 0o600)?;
        file.write_all(text)?;
        Ok(file)
    }

    /// More of the range came.
    pub(super) fn add(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if let Some(file) = &mut state.open
            && file.write_all(bytes).is_err()
        {
            state.open = None;
        }
    }

    /// What came of the range is wrong, or is not needed any more.
    pub(super) fn clear(&self) {
        if let Some(mut file) = self.lock().open.take() {
            let _ = file.set_length(0);
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
        // The one before is here too, until two others have begun.
        let third = kept(&folder);
        assert_eq!(begin(&third, "packs/a", 10, 100), b"abc");
        begin(&third, "b", 0, 1);
        begin(&third, "c", 0, 1);
        assert!(begin(&kept(&folder), "packs/a", 10, 100).is_empty(), "it was replaced");
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
