//! The sources of one repository, in order, used as one: retries with growing, random
//! pauses, fail-over, resumption, and the checks that make a bad source a source left.
//!
//! ```text
//! Sources [stick, http://a, http://b]
//!    |- fetch_limited(path, limit)         small signed documents: checked by the caller
//!    |- fetch_exact(path, size, digest)    a whole file of which all is known
//!    `- reader(path) -> FileReader         ranges of a pack, over one connection
//!                         |- read(range, until)   resumes where it was cut
//!                         `- reject()             "these bytes are wrong": next source
//! ```
//!
//! A source is left for a file when it does not have it, gives wrong bytes, or fails
//! [`Patience::attempts`] times with nothing gained in between. One that trickles is left
//! for the others; when these have nothing either it is come back to, and as long as bytes
//! arrive it is not given up.
//!
//! With [`Sources::keeping`] what arrives outlives the process that fetched it, to the
//! byte: see `kept`.
//!
//! Called by [`crate::trust`], [`crate::Metadata`] and [`crate::contents`].

mod gate;
mod kept;
mod notice;
mod pace;
mod reader;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use varve_format::Sha256Digest;
use varve_sys::Dir;
use varve_sys::task::Cancel;

use crate::transport::{Transport, TransportError};
use crate::worker::decoder::Decoder;
use crate::worker::{WorkerError, Workers};
pub use gate::Gate;
use kept::Kept;
pub use notice::{Listener, Notice};
use pace::Pace;
pub use reader::FileReader;

/// How long to go on with a source that fails.
#[derive(Debug, Clone)]
pub struct Patience {
    /// How many failures in a row, with no byte between them, a source may have.
    pub attempts: u32,
    /// The pause after the first failure; it doubles with each, and up to half is
    /// added at random, so that many devices do not come back at one moment.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// A source that gives fewer than `slowest_bytes` in this time is left for the others.
    pub slowest_window: Duration,
    /// See `slowest_window`.
    pub slowest_bytes: u64,
    /// Up to how many bytes that are not wanted are fetched with what is around them,
    /// where a range of its own would cost more.
    pub read_over: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 6,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            slowest_window: Duration::from_secs(60),
            slowest_bytes: 1024,
            read_over: 256,
        }
    }
}

/// One source's answer, when no source gave the file.
#[derive(Debug)]
pub struct Attempt {
    /// The source, as the user named it.
    pub source: String,
    /// What it answered last.
    pub error: TransportError,
}

/// Why a file could not be had from any source.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The user cancelled. What was verified stays.
    #[error("cancelled")]
    Cancelled,
    /// No source gave it.
    #[error("cannot fetch {path}{}", list(tried))]
    Failed {
        /// The file's path in the repository.
        path: String,
        /// Every source and its answer.
        tried: Vec<Attempt>,
    },
}

fn list(tried: &[Attempt]) -> String {
    if tried.is_empty() {
        return ": no source is configured".into();
    }
    let mut text = String::new();
    for Attempt { source, error } in tried {
        text.push_str(&format!(": {source}: {}", varve_sys::whole_message(error)));
    }
    text
}

impl FetchError {
    /// Every source answered, and none has the file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Failed { tried, .. }
            if !tried.is_empty() && tried.iter().all(|a| matches!(a.error, TransportError::Missing)))
    }

    /// The network wants a login first, and no source could be had in another way.
    pub fn is_captive(&self) -> bool {
        matches!(self, Self::Failed { tried, .. } if tried.iter().any(|a| a.error.is_captive()))
    }

    /// The link has become metered: see [`Sources::guard`].
    pub fn is_metered(&self) -> bool {
        matches!(self, Self::Failed { tried, .. }
            if tried.iter().any(|a| matches!(a.error, TransportError::Metered)))
    }

    /// More may not be fetched: see [`Sources::limit`].
    pub fn is_budget(&self) -> bool {
        matches!(self, Self::Failed { tried, .. }
            if tried.iter().any(|a| matches!(a.error, TransportError::Budget { .. })))
    }

    /// A source gave bytes that are not those that the metadata names.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Failed { tried, .. } if tried.iter().any(|a| a.error.is_damage()))
    }
}

/// What was moved so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Files or ranges asked for.
    pub requests: u64,
    /// Bytes of bodies that arrived.
    pub bytes: u64,
}

/// The sources of one repository, in the order in which they are asked.
pub struct Sources {
    list: Vec<Arc<dyn Transport>>,
    patience: Patience,
    /// There are others beside these: none is waited for beyond reason.
    has_others: bool,
    moved: Arc<Moved>,
    pace: Option<Arc<Pace>>,
    kept: Option<Arc<Kept>>,
    listener: Option<Listener>,
    gate: Option<Gate>,
    /// The most bytes that may be moved.
    budget: Option<u64>,
    /// Where what comes is decoded.
    workers: Workers,
}

#[derive(Default)]
struct Moved {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Sources {
    /// Sources in the order in which they are asked.
    pub fn new(list: Vec<Arc<dyn Transport>>, patience: Patience) -> Self {
        Self {
            list,
            patience,
            has_others: false,
            moved: Arc::default(),
            pace: None,
            kept: None,
            listener: None,
            gate: None,
            budget: None,
            workers: Workers::default(),
        }
    }

    /// The same sources; what comes of them is decoded by these workers.
    pub fn decoded_by(mut self, workers: Workers) -> Self {
        self.workers = workers;
        self
    }

    /// A worker for what takes so many bytes of memory to decode.
    pub(crate) fn decoder(&self, memory: u64) -> Result<Decoder, WorkerError> {
        let decoder = Decoder::start(&self.workers, memory)?;
        if let (Some(listener), false) = (&self.listener, decoder.lacks().is_empty()) {
            listener.hear(&Notice::Kernel { lacks: decoder.lacks() });
        }
        Ok(decoder)
    }

    /// The same sources, at most so many bytes a second over all of them.
    pub fn limited_to(mut self, bytes_per_second: u64) -> Self {
        self.pace = Some(Arc::new(Pace::new(bytes_per_second)));
        self
    }

    /// The same sources; what comes of a file while it is not complete, and documents that
    /// are, stay in `dir` for the next run.
    pub fn keeping(mut self, dir: Dir) -> Self {
        self.kept = Some(Arc::new(Kept::new(dir)));
        self
    }

    /// The same sources; `listener` hears of pauses and of sources that are left.
    pub fn telling(mut self, listener: Listener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Sets the gate that is asked while files come from sources that are reached over the
    /// network.
    pub fn guard(&mut self, gate: Option<Gate>) {
        self.gate = gate;
    }

    /// Sets the most bytes that may be moved: what would go beyond is not asked for.
    pub fn limit(&mut self, bytes: Option<u64>) {
        self.budget = bytes;
    }

    /// Whether so many bytes more may be moved.
    pub(super) fn within_budget(&self, more: u64) -> Result<(), TransportError> {
        match self.budget {
            Some(limit) if self.traffic().bytes.saturating_add(more) > limit => {
                Err(TransportError::Budget { limit })
            }
            _ => Ok(()),
        }
    }

    /// Each source's name, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|source| source.name())
    }

    /// What was moved so far, over all sources.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            requests: self.moved.requests.load(Ordering::Relaxed),
            bytes: self.moved.bytes.load(Ordering::Relaxed),
        }
    }

    /// Each source alone, for a question that each has to answer for itself.
    pub(crate) fn each(&self) -> impl Iterator<Item = Sources> {
        self.list.iter().map(|source| Sources {
            list: vec![source.clone()],
            patience: self.patience.clone(),
            has_others: self.list.len() > 1,
            moved: self.moved.clone(),
            pace: self.pace.clone(),
            // What one source says of the metadata is not believed of another.
            kept: None,
            listener: self.listener.clone(),
            gate: self.gate.clone(),
            budget: self.budget,
            workers: self.workers.clone(),
        })
    }

    /// The same sources, each asked once only.
    pub(crate) fn without_retries(mut self) -> Self {
        self.patience.attempts = 1;
        self
    }

    /// Up to how many unwanted bytes are fetched between two wanted ranges.
    pub(crate) fn read_over(&self) -> u64 {
        self.patience.read_over
    }

    fn tell(&self, notice: &Notice<'_>) {
        if let Some(listener) = &self.listener {
            listener.hear(notice);
        }
    }

    /// Fetches a whole file of at most `limit` bytes, from the first source that gives one.
    pub fn fetch_limited(
        &self,
        path: &str,
        limit: u64,
        cancel: &Cancel,
    ) -> Result<Vec<u8>, FetchError> {
        let mut reader = self.reader(path, cancel);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            match reader.read_whole(limit, &mut bytes) {
                Ok(()) => return Ok(bytes),
                Err(error) => reader.failed(error)?,
            }
        }
    }

    /// Fetches a whole file whose length and SHA-256 are known.
    pub fn fetch_exact(
        &self,
        path: &str,
        size: u64,
        digest: Sha256Digest,
        cancel: &Cancel,
    ) -> Result<Vec<u8>, FetchError> {
        if let Some(bytes) = self.kept.as_ref().and_then(|kept| kept.document(&digest, size)) {
            return Ok(bytes);
        }
        let mut reader = self.reader(path, cancel);
        reader.has_size(size);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            reader.read(0..size, size, &mut bytes)?;
            if Sha256Digest::of(&bytes) == digest {
                if let Some(kept) = &self.kept {
                    kept.keep_document(&digest, &bytes);
                }
                return Ok(bytes);
            }
            reader.reject(TransportError::WrongDigest)?;
        }
    }

    /// A reader of ranges of one file.
    pub fn reader<'a>(&'a self, path: &str, cancel: &'a Cancel) -> FileReader<'a> {
        FileReader::new(self, path, cancel)
    }
}
