//! Takes the contents of a source, one after the other: names each by its digest and
//! stores those that the repository does not hold.
//!
//! A small content is in memory until its digest is known; a large one is compressed
//! while it is read, and dropped if it turns out to be known.

use std::collections::HashMap;
use std::io::{self, Read};

use varve_format::ContentDigest;
use varve_format::verity::{ContentHasher, content_digest};
use varve_pack::Packer;
use varve_sys::task::{Cancel, Progress};

use crate::error::Result;

/// Contents up to this size are held in memory until their digest is known, in bytes.
const BUFFERED: u64 = 8 << 20;
/// How much of a large content is read at once.
const PIECE: usize = 256 << 10;

/// What becomes of a source's contents.
pub(crate) trait Contents {
    /// Takes a content to its end. Errors of `reader` come back as [`ReadError::Read`].
    fn take(&mut self, reader: &mut dyn Read) -> std::result::Result<Content, ReadError>;
}

/// A content that was taken.
pub(crate) struct Content {
    pub(crate) size: u64,
    pub(crate) digest: ContentDigest,
}

impl Content {
    /// Stands for one that was passed over.
    pub(crate) const NONE: Self = Self { size: 0, digest: ContentDigest([0; 32]) };
}

/// Why a content could not be taken: the reader failed (the caller knows what it reads),
/// or something else did.
#[derive(Debug)]
pub(crate) enum ReadError {
    Read(io::Error),
    Other(crate::BuildError),
}

impl<E: Into<crate::BuildError>> From<E> for ReadError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Only names contents.
pub(crate) struct Hash<'a> {
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a Cancel,
}

impl Contents for Hash<'_> {
    fn take(&mut self, reader: &mut dyn Read) -> std::result::Result<Content, ReadError> {
        let mut hasher = ContentHasher::new();
        let mut piece = vec![0; PIECE];
        loop {
            self.cancel.check()?;
            let got = fill(reader, &mut piece)?;
            hasher.update(&piece[..got]);
            self.progress.advance(got as u64);
            if got < piece.len() {
                return Ok(Content { size: hasher.size(), digest: hasher.finish() });
            }
        }
    }
}

/// Names contents and stores what is new.
pub(crate) struct Store<'a> {
    pub(crate) packer: &'a mut Packer,
    /// What earlier packs hold, by the number of the pack.
    pub(crate) known: &'a HashMap<ContentDigest, u32>,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a Cancel,
    /// What this build stored, with sizes.
    pub(crate) new: HashMap<ContentDigest, u64>,
    buffer: Vec<u8>,
}

impl<'a> Store<'a> {
    pub(crate) fn new(
        packer: &'a mut Packer,
        known: &'a HashMap<ContentDigest, u32>,
        progress: &'a dyn Progress,
        cancel: &'a Cancel,
    ) -> Self {
        Self { packer, known, progress, cancel, new: HashMap::new(), buffer: Vec::new() }
    }

    /// Whether nothing has to be stored for this content.
    fn is_there(&self, digest: &ContentDigest) -> bool {
        self.known.contains_key(digest) || self.new.contains_key(digest)
    }

    fn large(&mut self, reader: &mut dyn Read) -> std::result::Result<Content, ReadError> {
        let mut large = self.packer.begin()?;
        let mut hasher = ContentHasher::new();
        let mut piece = std::mem::take(&mut self.buffer);
        loop {
            hasher.update(&piece);
            self.packer.extend(&mut large, &piece)?;
            self.cancel.check()?;
            piece.resize(PIECE, 0);
            let got = fill(reader, &mut piece)?;
            piece.truncate(got);
            self.progress.advance(got as u64);
            if got == 0 {
                break;
            }
        }
        self.buffer = piece;
        let size = hasher.size();
        let digest = hasher.finish();
        if self.is_there(&digest) {
            self.packer.discard(large)?;
        } else {
            self.packer.keep(large, digest, size)?;
            self.new.insert(digest, size);
        }
        Ok(Content { size, digest })
    }
}

impl Contents for Store<'_> {
    fn take(&mut self, reader: &mut dyn Read) -> std::result::Result<Content, ReadError> {
        self.cancel.check()?;
        self.buffer.clear();
        reader.take(BUFFERED + 1).read_to_end(&mut self.buffer).map_err(ReadError::Read)?;
        let size = self.buffer.len() as u64;
        self.progress.advance(size);
        if size > BUFFERED {
            return self.large(reader);
        }
        let digest = content_digest(&self.buffer);
        if size > 0 && !self.is_there(&digest) {
            self.packer.add(digest, &self.buffer)?;
            self.new.insert(digest, size);
        }
        Ok(Content { size, digest })
    }
}

/// Reads until the buffer is full or nothing is left.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> std::result::Result<usize, ReadError> {
    let mut have = 0;
    while have < buffer.len() {
        match reader.read(&mut buffer[have..]) {
            Ok(0) => break,
            Ok(got) => have += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ReadError::Read(error)),
        }
    }
    Ok(have)
}

/// Gives a reader's error its name.
pub(crate) fn named<T>(
    result: std::result::Result<T, ReadError>,
    name: impl FnOnce(io::Error) -> crate::BuildError,
) -> Result<T> {
    result.map_err(|error| match error {
        ReadError::Read(error) => name(error),
        ReadError::Other(error) => error,
    })
}
