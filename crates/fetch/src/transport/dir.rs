//! A repository in a directory: on this machine, a network share or a USB stick.
//!
//! Who made the directory may be hostile: nothing but a regular file below it is opened,
//! no link is followed, and no pipe is waited for.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use varve_sys::Dir;
use varve_sys::task::Cancel;

use super::{Body, ReadBody, Transport, TransportError};

/// Gives the files of a repository in a directory.
#[derive(Debug)]
pub struct DirTransport {
    name: String,
    path: PathBuf,
}

impl DirTransport {
    /// The repository in `path`. The directory need not be there yet: a stick that is
    /// not plugged in is a source that cannot be reached, not a missing file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { name: path.display().to_string(), path }
    }
}

impl Transport for DirTransport {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_network(&self) -> bool {
        false
    }

    fn open(
        &self,
        path: &str,
        ranges: &[Range<u64>],
        _cancel: &Cancel,
    ) -> Result<Body, TransportError> {
        let relative = Path::new(path);
        if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(TransportError::Missing);
        }
        let opened = Dir::open(&self.path).and_then(|dir| dir.open_file(relative));
        let mut file = opened.map_err(|error| self.opening(error.source))?;
        let total = file.metadata().map_err(TransportError::Io)?.len();
        let (first, more) = match ranges.split_first() {
            Some((first, more)) => (first.clone(), more.to_vec()),
            None => (0..total, Vec::new()),
        };
        file.seek(SeekFrom::Start(first.start)).map_err(TransportError::Io)?;
        if first.end > total {
            return Err(TransportError::WrongLength { expected: first.end, got: total });
        }
        let body = FileBody { file, total, more: more.into_iter() };
        Ok(Body::new(first.start, Some(first.end), Some(total), Box::new(body)))
    }
}

impl DirTransport {
    fn opening(&self, error: io::Error) -> TransportError {
        if error.kind() != io::ErrorKind::NotFound {
            return TransportError::Io(error);
        }
        // A stick that was pulled out leaves an empty mount point behind: then nothing
        // can be said about any file. A repository always has its metadata.
        if self.path.join("metadata").is_dir() {
            TransportError::Missing
        } else {
            TransportError::NotThere
        }
    }
}

struct FileBody {
    file: File,
    total: u64,
    more: std::vec::IntoIter<Range<u64>>,
}

impl ReadBody for FileBody {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError> {
        loop {
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map_err(TransportError::Io),
            }
        }
    }

    fn next_part(&mut self) -> Result<Option<Range<u64>>, TransportError> {
        let Some(part) = self.more.next() else { return Ok(None) };
        if part.end > self.total {
            return Err(TransportError::WrongLength { expected: part.end, got: self.total });
        }
        self.file.seek(SeekFrom::Start(part.start)).map_err(TransportError::Io)?;
        Ok(Some(part))
    }
}
