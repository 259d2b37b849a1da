//! A file that is being written: bytes, holes, and when they are durable.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::{Context, Result, SysError};
use crate::faults;
use crate::trace::{self, Event};

/// Runs of zeros that fill aligned blocks of this size become holes, in bytes.
pub const HOLE_BLOCK: usize = 4096;
/// Shorter runs of zeros are written: a hole costs an extent.
pub const MIN_HOLE: usize = 64 << 10;

/// A file open for writing.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    path: PathBuf,
}

impl NewFile {
    pub(crate) fn new(file: File, path: PathBuf) -> Self {
        Self { file, path }
    }

    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, to read from or to set attributes on.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Appends bytes at the file's position.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).context("write", || self.path.clone())?;
        trace::change(&self.path);
        Ok(())
    }

    /// Appends bytes, leaving holes for long runs of zeros. Close with
    /// [`Self::set_length`], or a hole at the end is lost.
    pub fn write_sparse(&mut self, bytes: &[u8]) -> Result<()> {
        // Zeros are looked for in steps of the smallest hole: cheap, and what is shorter
        // is not worth an extent.
        for chunk in bytes.chunks(MIN_HOLE) {
            if chunk.len() == MIN_HOLE && chunk.iter().all(|&b| b == 0) {
                self.file
                    .seek(SeekFrom::Current(chunk.len() as i64))
                    .context("seek in", || self.path.clone())?;
            } else {
                self.write_all(chunk)?;
            }
        }
        Ok(())
    }

    /// Cuts or extends the file to `length` bytes.
    pub fn set_length(&mut self, length: u64) -> Result<()> {
        self.file.set_len(length).context("set the length of", || self.path.clone())?;
        trace::change(&self.path);
        Ok(())
    }

    /// Takes blocks for the first `length` bytes and extends the file to them (fallocate(2)).
    pub fn allocate(&self, length: u64) -> Result<()> {
        rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), 0, length)
            .context("allocate", || self.path.clone())?;
        trace::change(&self.path);
        Ok(())
    }

    /// Moves to an offset from the start.
    pub fn seek_to(&mut self, offset: u64) -> Result<()> {
        self.file.seek(SeekFrom::Start(offset)).context("seek in", || self.path.clone())?;
        Ok(())
    }

    /// Fills this empty file with another's bytes: by sharing blocks where the file
    /// system can (FICLONE), else by copying data and keeping holes.
    pub fn copy_from(&mut self, source: &File) -> Result<()> {
        let whole = |error: io::Error| SysError::new("copy into", &self.path, error);
        if rustix::fs::ioctl_ficlone(&self.file, source).is_err() {
            copy_data(source, &self.file).map_err(whole)?;
        }
        trace::change(&self.path);
        Ok(())
    }

    /// Makes bytes and metadata durable (fsync(2)). The name is not: sync its directory.
    #[cfg_attr(feature = "faults", track_caller)]
    pub fn sync(&self) -> Result<()> {
        if faults::out("file.sync") {
            return Ok(());
        }
        self.sync_always()
    }

    pub(crate) fn sync_always(&self) -> Result<()> {
        rustix::fs::fsync(&self.file).context("sync", || self.path.clone())?;
        trace::emit(|| Event::SyncFile(self.path.clone()));
        Ok(())
    }
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    let mut at = 0;
    while at < length {
        let start = match rustix::fs::seek(source, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, rustix::fs::SeekFrom::Hole(start))?;
        copy_range(source, target, start, end)?;
        at = end;
    }
    target.set_len(length)
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let want = usize::try_from(end - from).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), want) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                return copy_by_hand(source, target, from, end);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    while at < end {
        let want = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let got = source.read_at(&mut buffer[..want], at)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        target.write_all_at(&buffer[..got], at)?;
        at += got as u64;
    }
    Ok(())
}
