//! Where a repository's files come from: a directory (or USB stick) or an HTTP server.
//!
//! | module | holds |
//! | --- | --- |
//! | `dir` | a directory |
//! | `web` | a server, asked by a worker |
//! | `http` | what the worker asks it, and how |
//!
//! A transport opens a file of the repository by its path, or a range of it, and gives
//! a [`Body`]. It knows nothing of digests: whoever reads checks what was read. It does
//! promise three things: that a body never waits for ever (a stalled link is an error),
//! that a body which ends before its length is [`TransportError::Cut`] and never a short
//! success, and that "the file is not there" is said only when the source said so.
//!
//! ```text
//! path, ranges -> Transport::open -> Body { start, end, total } -> bytes, next part, ...
//!                                           ^ may start before the first range: the
//!                                             server ignored it and sends the whole file
//! ```
//!
//! Called by [`crate::sources`], which retries, fails over and checks.

mod dir;
pub(crate) mod http;
pub(crate) mod web;

use std::fmt;
use std::io;
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use varve_sys::task::Cancel;

use crate::worker::WorkerError;
pub use dir::DirTransport;
pub use http::{HttpOptions, Proxies};
pub use web::HttpTransport;

/// Gives the files of one copy of a repository.
pub trait Transport: Send + Sync {
    /// The source as the user named it, for messages.
    fn name(&self) -> &str;

    /// Whether what it gives comes over the network.
    fn is_network(&self) -> bool {
        true
    }

    /// Opens `path` (relative, with `/` between components, such as
    /// `metadata/timestamp.json`): the whole of it when there are no `ranges`, else these
    /// bytes of it. Ranges are ascending, apart from each other and not empty. The body
    /// begins with the first of them (or with the whole file); the others may follow as
    /// further parts, as far as the source gives several at once.
    ///
    /// Waiting, here and for the body, ends soon after `cancel`, with
    /// [`TransportError::Cancelled`].
    fn open(
        &self,
        path: &str,
        ranges: &[Range<u64>],
        cancel: &Cancel,
    ) -> Result<Body, TransportError>;
}

/// What a [`Body`] reads from.
pub trait ReadBody: Send {
    /// The next bytes of the present part; 0 at its end.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError>;

    /// After the end of the present part: goes on to the next one, and says which bytes
    /// of the file it holds. None: that was the last.
    fn next_part(&mut self) -> Result<Option<Range<u64>>, TransportError> {
        Ok(None)
    }
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

    /// Goes on to the next part once the present one is read to its end; false when there
    /// is none.
    ///
    /// # Errors
    /// What the link reports, and an answer that is not as it should be.
    pub fn next_part(&mut self) -> Result<bool, TransportError> {
        if self.end != Some(self.position) {
            return Ok(false);
        }
        let Some(part) = self.reader.next_part()? else { return Ok(false) };
        (self.position, self.end) = (part.start, Some(part.end));
        Ok(true)
    }

    /// Reads the next bytes; 0 at the end of the present part.
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
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
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
        /// The status: 500 and above, or 408, 425, 429.
        status: u16,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The network lets nobody through who has not logged in: it answers with a page of
    /// its own.
    #[error("this network wants a login: open a browser ({})", portal(page))]
    Captive {
        /// Where the page is, if it is elsewhere than what was asked for.
        page: Option<String>,
    },
    /// The proxy does not let this device through.
    #[error("the proxy {proxy} wants another user name or password")]
    ProxyLogin {
        /// The proxy, without what is secret in its URL.
        proxy: String,
    },
    /// The server's certificate does not prove that it is who it says.
    #[error("the server's certificate is not accepted: {reason}")]
    Certificate {
        /// What is wrong with it.
        reason: String,
    },
    /// The server sends the request elsewhere, to where it cannot go.
    #[error("the server redirects {reason}")]
    Redirect {
        /// What is wrong with that.
        reason: String,
    },
    /// Something on the way changed the file's form: ranges mean nothing then.
    #[error(
        "the file comes transformed ({encoding}) although it was asked for as it is stored: the server, or a proxy on the way, must leave these files alone"
    )]
    Transformed {
        /// The content encoding.
        encoding: String,
    },
    /// The answer is for another part of the file than was asked for.
    #[error("the server sent another part of the file than was asked for")]
    WrongRange,
    /// No connection.
    #[error("no connection: {reason}")]
    Unreachable {
        /// What the system said.
        reason: String,
    },
    /// The directory holds no repository: a stick that is not plugged in, say.
    #[error("there is no repository in this directory")]
    NotThere,
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
    Io(
        #[source]
        #[serde(with = "as_text")]
        io::Error,
    ),
    /// Who asks the server is not there.
    #[error(transparent)]
    #[serde(skip)]
    Worker(WorkerError),
    /// The answer is not HTTP as it should be.
    #[error("the server's answer is not valid: {reason}")]
    Protocol {
        /// What is wrong with it.
        reason: String,
    },
    /// More may not be fetched.
    #[error("it would go beyond the {limit} bytes that may be fetched")]
    Budget {
        /// The most bytes that may be fetched.
        limit: u64,
    },
    /// The link has become metered, and its owner does not want that used.
    #[error("the network has become a metered one")]
    Metered,
    /// The user cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// An error of the system, as what it says.
mod as_text {
    use std::io;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(error: &io::Error, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(error)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<io::Error, D::Error> {
        String::deserialize(from).map(io::Error::other)
    }
}

fn portal(page: &Option<String>) -> String {
    match page {
        Some(page) => format!("its page is {page}"),
        None => "a web page came instead of the file".to_owned(),
    }
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
            Self::Worker(error) => matches!(error, WorkerError::Ended(_)),
            Self::Io(error) => error.kind() != io::ErrorKind::PermissionDenied,
            _ => false,
        }
    }

    /// Whether the network wants a login first.
    pub fn is_captive(&self) -> bool {
        matches!(self, Self::Captive { .. })
    }

    /// Whether bytes came and are not what they should be, as against not coming.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::TooLong { .. } | Self::WrongLength { .. } | Self::WrongDigest)
    }
}
