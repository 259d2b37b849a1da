//! A layer file: whose it is, whether it is whole, and its parts as a source to fetch from.
//!
//! ```text
//! open()    start, header, signature by a key that is trusted    -> LayerFile
//! check()   the digests of all its parts, before anything is written
//! sources() its parts under the paths that they have in a repository: manifest, index
//!           and contents come out of it by the same code, checked in the same way
//! ```
//!
//! Nothing of a file is parsed but the lengths of its start before its signature was found
//! good and its key trusted. Format: [`varve_format::layer_file`]. Caller: the update
//! manager's `layer import`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use sha2::{Digest, Sha256};
use varve_format::layer_file::{LayerFileError, LayerHeader, LayerKey, Place, START, Start};
use varve_format::release::ReleaseRecord;
use varve_sys::task::{Cancel, Cancelled, Progress, Unit};

use crate::Verified;
use crate::sources::{Patience, Sources};
use crate::transport::{Body, ReadBody, Transport, TransportError};

/// Why a layer file is not taken. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be read.
    #[error("{path} cannot be read", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is none, or not a good one.
    #[error("{path} is refused", path = path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: LayerFileError,
    },
    /// The signature is not that of its key over its header.
    #[error("{path} was changed after it was signed, or is damaged", path = path.display())]
    Signature {
        /// Which file.
        path: PathBuf,
    },
    /// It is signed well, by somebody who is not known here.
    #[error("{path} is signed with a key that this device does not know: {key}", path = path.display())]
    Unknown {
        /// Which file.
        path: PathBuf,
        /// Whose.
        key: LayerKey,
    },
    /// Its contents are not those that were signed.
    #[error("{path} is damaged: its contents are not those that were signed", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// Asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// A layer file whose header is believed.
#[derive(Debug)]
pub struct LayerFile {
    path: PathBuf,
    file: Arc<File>,
    header: LayerHeader,
    tree: Verified<ReleaseRecord>,
    /// Who signed it.
    pub key: LayerKey,
}

/// Opens a layer file that one of these keys signed.
pub fn open(path: &Path, trusted: &[LayerKey]) -> Result<LayerFile, OpenError> {
    let read = |source| OpenError::Read { path: path.into(), source };
    let format = |source| OpenError::Format { path: path.into(), source };
    let file = File::open(path).map_err(read)?;
    let status = file.metadata().map_err(read)?;
    if !status.is_file() {
        return Err(format(LayerFileError::Magic));
    }
    let size = status.len();
    let mut start = [0; START];
    match file.read_exact_at(&mut start, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(format(LayerFileError::Magic));
        }
        other => other.map_err(read)?,
    }
    let start = Start::parse(&start, size).map_err(format)?;
    // At most 4 MiB: the start was held against that.
    let mut header = vec![0; (start.header.end - start.header.start) as usize];
    file.read_exact_at(&mut header, start.header.start).map_err(read)?;
    UnparsedPublicKey::new(&ED25519, start.key.0)
        .verify(&start.signed(&header), &start.signature)
        .map_err(|_| OpenError::Signature { path: path.into() })?;
    if !trusted.contains(&start.key) {
        return Err(OpenError::Unknown { path: path.into(), key: start.key });
    }
    let header = LayerHeader::parse(&header, start.header.start).map_err(format)?;
    let tree = Verified::new(header.tree.clone());
    Ok(LayerFile { path: path.into(), file: Arc::new(file), header, tree, key: start.key })
}

impl LayerFile {
    /// Which file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    pub fn header(&self) -> &LayerHeader {
        &self.header
    }

    /// Its tree, as a release of a repository is described.
    pub fn tree(&self) -> &Verified<ReleaseRecord> {
        &self.tree
    }

    /// Reads all of it and holds it against the digests that were signed, so that nothing
    /// of a damaged file is ever written.
    pub fn check(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<(), OpenError> {
        let Some(places) = self.header.places() else {
            return Err(OpenError::Damaged { path: self.path.clone() });
        };
        let size = places.iter().map(|place| place.range.end - place.range.start).sum();
        progress.begin("checking the file", Unit::Bytes, Some(size));
        let mut buffer = vec![0; 256 << 10];
        for Place { range, sha256, .. } in places {
            let mut hasher = Sha256::new();
            let mut at = range.start;
            while at < range.end {
                cancel.check()?;
                let want = buffer.len().min((range.end - at) as usize);
                self.file
                    .read_exact_at(&mut buffer[..want], at)
                    .map_err(|source| OpenError::Read { path: self.path.clone(), source })?;
                hasher.update(&buffer[..want]);
                at += want as u64;
                progress.advance(want as u64);
            }
            if hasher.finalize()[..] != sha256.0 {
                return Err(OpenError::Damaged { path: self.path.clone() });
            }
        }
        progress.end();
        Ok(())
    }

    /// Its parts, as a repository's files. A file does not come to itself: it is asked once.
    pub fn sources(&self) -> Sources {
        let places = self.header.places().unwrap_or_default();
        let name = self.path.display().to_string();
        let file = Parts { name, file: self.file.clone(), places };
        Sources::new(vec![Arc::new(file)], Patience { attempts: 1, ..Patience::default() })
    }
}

/// The parts of a layer file.
struct Parts {
    name: String,
    file: Arc<File>,
    places: Vec<Place>,
}

impl Transport for Parts {
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
        let place = self.places.iter().find(|place| place.path == path);
        let Range { start, end } = place.ok_or(TransportError::Missing)?.range;
        let total = end - start;
        let first = ranges.first().cloned().unwrap_or(0..total);
        let more: Vec<_> = ranges.iter().skip(1).cloned().collect();
        let mut part = Part { file: self.file.clone(), base: start, total, at: 0, more };
        part.go_to(&first)?;
        part.more.reverse();
        Ok(Body::new(first.start, Some(first.end), Some(total), Box::new(part)))
    }
}

struct Part {
    file: Arc<File>,
    /// Where the part begins in the file.
    base: u64,
    total: u64,
    at: u64,
    /// Ranges still to be read, the last one first.
    more: Vec<Range<u64>>,
}

impl Part {
    fn go_to(&mut self, range: &Range<u64>) -> Result<(), TransportError> {
        if range.end > self.total {
            return Err(TransportError::WrongLength { expected: range.end, got: self.total });
        }
        self.at = range.start;
        Ok(())
    }
}

impl ReadBody for Part {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError> {
        let want = buffer.len().min((self.total - self.at) as usize);
        loop {
            match self.file.read_at(&mut buffer[..want], self.base + self.at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TransportError::Io(error)),
                Ok(count) => {
                    self.at += count as u64;
                    return Ok(count);
                }
            }
        }
    }

    fn next_part(&mut self) -> Result<Option<Range<u64>>, TransportError> {
        let Some(part) = self.more.pop() else { return Ok(None) };
        self.go_to(&part)?;
        Ok(Some(part))
    }
}
