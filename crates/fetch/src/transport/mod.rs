//! Where a repository's files come from: a directory (or USB stick) or an HTTP server.
//!
//! A transport opens a file of the repository by its path, or a range of it, and gives
//! a [`Body`]. It knows nothing of digests: whoever reads checks what was read. It does
//! promise three things: that a body never waits for ever (a stalled link is an error),
//! that a body which ends before its length is [`TransportError::Cut`] and never a short
//! success, and that "the file is not there" is said only when the source said so.
//!
//! ```text
//! path, range -> Transport::open -> Body { start, end, total } -> bytes
//!                                          ^ may start before the range: the server
//!                                            ignored it and sends the whole file
//! ```
//!
//! Called by [`crate::sources`], which retries, fails over and checks.

mod dir;
mod http;

use std::fmt;
use std::io;
use std::ops::Range;
use std::time::Duration;

pub use dir::DirTransport;
pub use http::{HttpOptions, HttpTransport};

/// Gives the files of one copy of a repository.
pub trait Transport: Send + Sync {
    /// The source as the user named it, for messages.
    fn name(&self) -> &str;

    /// Opens `path` (relative, with `/` between components, such as
    /// `metadata/timestamp.json`), or the bytes of `range` in it.
    fn open(&self, path: &str, range: Option<Range<u64>>) -> Result<Body, TransportError>;

    /// Makes reads that wait in other threads return soon, for good: the transport is
    /// not used again. Called when the user cancels.
    fn interrupt(&self) {}
}

/// What a [`Body`] reads from.
pub trait ReadBody: Send {
    /// The next bytes; 0 at the end.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError>;
}

/// The bytes of one file, or of a part of it, as they arrive.
pub struct Body {
    position: u64,
    end: Option<u64>,
    total: Option<u64>,
    reader: Box<dyn ReadBody>,
}

impl Body {
    /// A body that delivers the file's bytes from `start` to `end`, of `total`.
    ///
    /// `end` and `total` are what the source says; `end` is enforced while reading.
    pub fn new(
        start: u64,
        end: Option<u64>,
        total: Option<u64>,
        reader: Box<dyn ReadBody>,
    ) -> Self {
        Self { position: start, end, total, reader }
    }

    /// The position in the file of the next byte that [`Body::read`] gives.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Where this body ends in the file, if the source said so.
    pub fn end(&self) -> Option<u64> {
        self.end
    }

    /// The length of the whole file, if the source said so.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// Reads the next bytes; 0 at the end.
    ///
    /// # Errors
    /// [`TransportError::Cut`] when the bytes stop before the end that was promised, and
    /// whatever the link reports.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError> {
        let room = match self.end {
            Some(end) => {
                buffer.len().min(usize::try_from(end - self.position).unwrap_or(usize::MAX))
            }
            None => buffer.len(),
        };
        if room == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..room])?;
        if count == 0
            && let Some(end) = self.end
        {
            return Err(TransportError::Cut { at: self.position, expected: end });
        }
        self.position += count as u64;
        Ok(count)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("position", &self.position)
            .field("end", &self.end)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

/// Why a source did not give a file's bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The source has no such file.
    #[error("there is no such file")]
    Missing,
    /// The server refuses the request.
    #[error("the server refuses with HTTP status {status}")]
    Refused {
        /// The status, 400 to 499.
        status: u16,
    },
    /// The server is in trouble; later it may answer.
    #[error("the server failed with HTTP status {status}")]
    Server {
        /// The status, 500 and above, or 429.
        status: u16,
    },
    /// The answer is a web page, not a file of a repository.
    #[error("a web page came instead of the file (a log-in page of the network?)")]
    WebPage,
    /// The answer is for another part of the file than was asked for.
    #[error("the server sent another part of the file than was asked for")]
    WrongRange,
    /// No connection.
    #[error("no connection: {reason}")]
    Unreachable {
        /// What the system said.
        reason: String,
    },
    /// No byte came for too long.
    #[error("nothing came for {:.1} seconds", after.as_secs_f32())]
    Stalled {
        /// How long was waited.
        after: Duration,
    },
    /// Bytes come, but so slowly that the source is given up.
    #[error("only {bytes} bytes came in {:.1} seconds", window.as_secs_f32())]
    TooSlow {
        /// How many bytes came.
        bytes: u64,
        /// In what time.
        window: Duration,
    },
    /// The connection ended before the end of the body.
    #[error("the connection was cut at byte {at} of {expected}")]
    Cut {
        /// The position reached.
        at: u64,
        /// The position promised.
        expected: u64,
    },
    /// More bytes than the file may have.
    #[error("it is longer than the {limit} bytes that it may have")]
    TooLong {
        /// The most that was accepted.
        limit: u64,
    },
    /// The file has another length than the signed metadata says.
    #[error("it has {got} bytes, the metadata says {expected}")]
    WrongLength {
        /// What the metadata says.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// The bytes are not those that the signed metadata names.
    #[error("its digest is not the one that the metadata gives: it was damaged, changed or forged")]
    WrongDigest,
    /// A local file could not be read, or the link broke.
    #[error("reading failed")]
    Io(#[source] io::Error),
    /// The answer is not HTTP as it should be.
    #[error("the server's answer is not valid: {reason}")]
    Protocol {
        /// What is wrong with it.
        reason: String,
    },
    /// The user cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl TransportError {
    /// Whether the same source may give the file if asked again.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Server { .. }
            | Self::Unreachable { .. }
            | Self::Stalled { .. }
            | Self::Cut { .. }
            | Self::WrongRange
            | Self::Protocol { .. } => true,
            Self::Io(error) => error.kind() != io::ErrorKind::PermissionDenied,
            _ => false,
        }
    }

    /// Whether bytes came and are not what they should be, as against not coming.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::TooLong { .. } | Self::WrongLength { .. } | Self::WrongDigest)
    }
}
