//! The log of a disk: every write and flush in the order in which the disk saw them.
//!
//! ```text
//! entries  Write(offset, length, at) Zero(offset, length) Flush Mark(text) Write ...
//! data     | bytes of the first write | bytes of the second | ...      one file, appended
//! ```
//!
//! A *window* is what lies between two flushes: when the second flush is answered, all
//! of it is on the disk for good; until then, any part of it may be.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{At, Result};

/// The smallest piece that a disk writes whole, in bytes.
pub const SECTOR: u64 = 512;

/// One thing that happened to the disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Entry {
    /// Bytes were written; they stand at `at` in the data file.
    Write {
        /// Where on the disk, in bytes.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Where in the data file.
        at: u64,
    },
    /// A range was set to zeros.
    Zero {
        /// Where on the disk, in bytes.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Everything before is durable.
    Flush,
    /// Something the scenario wants to know when it judges: it had happened before the
    /// next entry.
    Mark(String),
}

impl Entry {
    /// The range of the disk that it changes.
    pub fn range(&self) -> Option<Range<u64>> {
        match *self {
            Entry::Write { offset, length, .. } | Entry::Zero { offset, length } => {
                Some(offset..offset + length)
            }
            Entry::Flush | Entry::Mark(_) => None,
        }
    }
}

/// What was recorded.
#[derive(Debug)]
pub struct Log {
    entries: Vec<Entry>,
    data: File,
    path: PathBuf,
    length: u64,
}

/// The entries between two flushes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    /// How many flushes came before.
    pub number: usize,
    /// The entries, without the flushes.
    pub entries: Range<usize>,
    /// How many of them change the disk.
    pub writes: usize,
    /// Whether a flush ended it; the last may have none.
    pub flushed: bool,
}

impl Log {
    /// An empty log whose data goes to a new file at `path`.
    pub fn create(path: PathBuf) -> Result<Self> {
        let data = File::options().read(true).write(true).create_new(true).open(&path);
        let data = data.at("create", &path)?;
        Ok(Self { entries: Vec::new(), data, path, length: 0 })
    }

    /// A log that another process wrote: its entries, and the file with its data.
    pub(crate) fn recorded(path: PathBuf, entries: Vec<Entry>) -> Result<Self> {
        let data = File::open(&path).at("open", &path)?;
        let length = data.metadata().at("examine", &path)?.len();
        Ok(Self { entries, data, path, length })
    }

    /// Notes a write.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.data.write_all_at(bytes, self.length).at("append to", &self.path)?;
        let length = bytes.len() as u64;
        self.entries.push(Entry::Write { offset, length, at: self.length });
        self.length += length;
        Ok(())
    }

    /// Notes anything else.
    pub fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// All entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many bytes were written.
    pub fn bytes(&self) -> u64 {
        self.length
    }

    /// How many flushes there are.
    pub fn flushes(&self) -> usize {
        self.entries.iter().filter(|entry| **entry == Entry::Flush).count()
    }

    /// The marks among the first `end` entries.
    pub fn marks(&self, end: usize) -> Vec<String> {
        let marks = self.entries[..end].iter().filter_map(|entry| match entry {
            Entry::Mark(text) => Some(text.clone()),
            _ => None,
        });
        marks.collect()
    }

    /// The windows, in order; those in which nothing was written too.
    pub fn windows(&self) -> Vec<Window> {
        let mut windows = Vec::new();
        let mut start = 0;
        let mut close = |start: usize, end: usize, flushed: bool| {
            let writes = self.entries[start..end].iter().filter(|e| e.range().is_some()).count();
            windows.push(Window { number: windows.len(), entries: start..end, writes, flushed });
        };
        for (at, entry) in self.entries.iter().enumerate() {
            if *entry == Entry::Flush {
                close(start, at, true);
                start = at + 1;
            }
        }
        close(start, self.entries.len(), false);
        windows
    }

    /// Does to `image` what `entry` did to the disk, within `part` of the disk alone.
    pub fn apply(&self, entry: &Entry, part: &Range<u64>, image: &File) -> Result<()> {
        let Some(range) = entry.range() else { return Ok(()) };
        let (start, end) = (range.start.max(part.start), range.end.min(part.end));
        let mut now = start;
        let mut buffer = vec![0; 256 << 10];
        while now < end {
            let want = buffer.len().min(usize::try_from(end - now).unwrap_or(usize::MAX));
            let bytes = &mut buffer[..want];
            match *entry {
                Entry::Write { at, .. } => {
                    let from = at + (now - range.start);
                    self.data.read_exact_at(bytes, from).at("read", &self.path)?;
                }
                _ => bytes.fill(0),
            }
            image.write_all_at(bytes, now).at("write", "a disk image")?;
            now += want as u64;
        }
        Ok(())
    }
}
