//! What a recording disk keeps: what it holds now, and how it came to that.
//!
//! ```text
//! read  --> live image                    strike?  the disk fails as it was asked to
//! write --> live image, Log
//! flush -->             Log
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{At, Result, RigError};
use crate::failing::{Kind, Trouble};
use crate::log::{Entry, Log};
use crate::served::Backing;

/// The disk behind a recorder.
#[derive(Debug)]
pub(crate) struct Tape {
    image: File,
    size: u64,
    log: Option<Log>,
    failed: Option<String>,
    trouble: Option<Trouble>,
    /// Reads and writes since the trouble was set.
    operations: [u64; 2],
    struck: bool,
}

impl Tape {
    /// Begins at what is in `image`, which is changed; the log's data goes to the new file
    /// `data`.
    pub(crate) fn begin(image: &Path, data: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(image).at("open", image)?;
        let size = file.metadata().at("examine", image)?.len();
        Ok(Self {
            image: file,
            size,
            log: Some(Log::create(data.to_owned())?),
            failed: None,
            trouble: None,
            operations: [0; 2],
            struck: false,
        })
    }

    /// The disk's size, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Puts a mark behind what has happened.
    pub(crate) fn mark(&mut self, text: String) {
        if let Some(log) = &mut self.log {
            log.push(Entry::Mark(text));
        }
    }

    /// Gives what was recorded; what comes after this is not.
    pub(crate) fn cut(&mut self) -> Result<Log> {
        if let Some(why) = self.failed.take() {
            return Err(RigError::Device(why));
        }
        self.log.take().ok_or_else(|| RigError::Device("it was cut before".to_owned()))
    }

    /// From here on nothing is recorded, reads and writes are counted, and `trouble` strikes.
    pub(crate) fn fail(&mut self, trouble: Option<Trouble>) {
        self.log = None;
        (self.trouble, self.operations, self.struck) = (trouble, [0; 2], false);
    }

    /// The disk is well again. Gives how many reads and writes came, and whether one failed.
    pub(crate) fn heal(&mut self) -> ([u64; 2], bool) {
        self.trouble = None;
        (self.operations, self.struck)
    }

    fn strike(&mut self, kind: Kind, offset: u64, length: u64) -> Result<()> {
        self.operations[kind as usize] += 1;
        let place = offset..offset.saturating_add(length);
        let strikes = self.trouble.as_mut().is_some_and(|trouble| trouble.strikes(kind, place));
        self.struck |= strikes;
        if strikes { Err(RigError::Device("as it was asked to".to_owned())) } else { Ok(()) }
    }
}

impl Backing for Tape {
    fn read(&mut self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.strike(Kind::Read, offset, bytes.len() as u64)?;
        self.image.read_exact_at(bytes, offset).at("read", "the live image")
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        self.strike(Kind::Write, offset, bytes.len() as u64)?;
        self.image.write_all_at(bytes, offset).at("write", "the live image")?;
        self.log.as_mut().map_or(Ok(()), |log| log.write(offset, bytes))
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        self.strike(Kind::Write, offset, length)?;
        let zeros = vec![0; 64 << 10];
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let want = zeros.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            self.image.write_all_at(&zeros[..want], at).at("write", "the live image")?;
            at += want as u64;
        }
        if let Some(log) = &mut self.log {
            log.push(Entry::Zero { offset, length });
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        // A bad place does not keep the disk from flushing; a disk that is gone does.
        self.strike(Kind::Write, u64::MAX - 1, 1)?;
        if let Some(log) = &mut self.log {
            log.push(Entry::Flush);
        }
        Ok(())
    }

    fn failed(&mut self, why: String) {
        if !self.struck {
            self.failed = Some(why);
        }
    }
}
