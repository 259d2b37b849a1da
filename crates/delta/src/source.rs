//! Where old bytes come from: contents by digest, and what lies inside them.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use varve_format::ContentDigest;

use crate::codec;
use crate::index::{Source, Step};

/// Gives contents. The device's: whatever deployments and finished downloads hold, and
/// what the [`Sink`](crate::Sink) has taken. The publisher's: the source tree.
pub trait Contents: Sync {
    /// The whole content, or nothing if it is not here. The caller verifies nothing:
    /// wrong bytes make wrong results, which are refused.
    fn read(&self, digest: &ContentDigest) -> io::Result<Option<Vec<u8>>>;
}

/// Why old bytes could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source failed.
    #[error("old content {digest} could not be read")]
    Read {
        /// Which.
        digest: ContentDigest,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is not on this device.
    #[error("old content {digest} is not here")]
    Missing {
        /// Which.
        digest: ContentDigest,
    },
    /// The delta asks for something that is not in there.
    #[error("the delta asks for bytes that old content {number} does not hold")]
    Inside {
        /// Its number in the old manifest.
        number: u32,
    },
}

/// Reads old bytes, keeping the last content and the last stream open.
pub(crate) struct Reader<'a> {
    contents: &'a dyn Contents,
    table: &'a [(ContentDigest, u64)],
    last: Option<(u32, Arc<Vec<u8>>)>,
    opened: Option<(Source, Arc<Vec<u8>>)>,
    /// The most bytes that a stream may decode to.
    most: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(contents: &'a dyn Contents, table: &'a [(ContentDigest, u64)]) -> Self {
        Self { contents, table, last: None, opened: None, most: u64::MAX }
    }

    /// The same, for one who must not trust the lengths that the steps name.
    pub(crate) fn at_most(self, most: u64) -> Self {
        Self { most, ..self }
    }

    /// A whole content.
    pub(crate) fn content(&mut self, number: u32) -> Result<Arc<Vec<u8>>, SourceError> {
        if let Some((last, bytes)) = &self.last
            && *last == number
        {
            return Ok(bytes.clone());
        }
        self.last = None;
        let Some(&(digest, _)) = self.table.get(number as usize) else {
            return Err(SourceError::Inside { number });
        };
        let bytes = self
            .contents
            .read(&digest)
            .map_err(|error| SourceError::Read { digest, error })?
            .ok_or(SourceError::Missing { digest })?;
        let bytes = Arc::new(bytes);
        self.last = Some((number, bytes.clone()));
        Ok(bytes)
    }

    /// What the steps lead to.
    pub(crate) fn bytes(&mut self, source: &Source) -> Result<Bytes, SourceError> {
        let inside = || SourceError::Inside { number: source.content };
        // Start behind the last stream that is open already.
        let opened =
            source.steps.iter().rposition(|s| matches!(s, Step::Decode(..))).map_or(0, |at| at + 1);
        let key = Source { content: source.content, steps: source.steps[..opened].to_vec() };
        let mut bytes = match &self.opened {
            Some((known, bytes)) if *known == key => Bytes::all(bytes.clone()),
            _ => {
                self.opened = None;
                let mut bytes = Bytes::all(self.content(source.content)?);
                for step in &key.steps {
                    bytes = bytes.follow(step, self.most).ok_or_else(inside)?;
                }
                if opened > 0 {
                    self.opened = Some((key, bytes.all.clone()));
                }
                bytes
            }
        };
        for step in &source.steps[opened..] {
            bytes = bytes.follow(step, self.most).ok_or_else(inside)?;
        }
        Ok(bytes)
    }

    /// Lets go of what is kept.
    pub(crate) fn forget(&mut self) {
        self.last = None;
        self.opened = None;
    }
}

/// A stretch of bytes that others may hold as well.
pub(crate) struct Bytes {
    all: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.all[self.range.clone()]
    }
}

impl Bytes {
    fn all(all: Arc<Vec<u8>>) -> Self {
        let range = 0..all.len();
        Self { all, range }
    }

    fn follow(self, step: &Step, most: u64) -> Option<Self> {
        match step {
            Step::Gather(stretches) => {
                let mut at = 0usize;
                let mut out = Vec::new();
                for &(skip, take) in stretches {
                    let from = at.checked_add(usize::try_from(skip).ok()?)?;
                    let to = from.checked_add(usize::try_from(take).ok()?)?;
                    let part = self.get(from..to)?;
                    if stretches.len() == 1 {
                        let start = self.range.start;
                        return Some(Self { all: self.all, range: start + from..start + to });
                    }
                    out.extend_from_slice(part);
                    at = to;
                }
                Some(Self::all(Arc::new(out)))
            }
            Step::Decode(_, length) if *length > most => None,
            Step::Decode(format, length) => {
                let length = usize::try_from(*length).ok()?;
                let decoded = codec::decode(*format, &self, length).ok()?;
                (decoded.plain.len() == length).then(|| Self::all(Arc::new(decoded.plain)))
            }
        }
    }
}
