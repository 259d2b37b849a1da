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
//! [`Patience::attempts`] times with nothing gained in between. As long as bytes arrive
//! nothing is given up.
//!
//! Called by [`crate::trust`], [`crate::Metadata`] and [`crate::contents`].

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use varve_format::Sha256Digest;
use varve_sys::task::Cancel;

use crate::transport::{Body, Transport, TransportError};

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
    /// A source that gives fewer than `slowest_bytes` in this time is left.
    pub slowest_window: Duration,
    /// See `slowest_window`.
    pub slowest_bytes: u64,
    /// Up to how many bytes that are not wanted are read over, where asking again would
    /// cost more.
    pub read_over: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            slowest_window: Duration::from_secs(60),
            slowest_bytes: 1024,
            read_over: 32 * 1024,
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
        text.push_str(&format!(": {source}: {error}"));
    }
    text
}

impl FetchError {
    /// Every source answered, and none has the file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Failed { tried, .. }
            if !tried.is_empty() && tried.iter().all(|a| matches!(a.error, TransportError::Missing)))
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
    moved: Arc<Moved>,
}

#[derive(Default)]
struct Moved {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Sources {
    /// Sources in the order in which they are asked.
    pub fn new(list: Vec<Arc<dyn Transport>>, patience: Patience) -> Self {
        Self { list, patience, moved: Arc::default() }
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

    /// Makes reads that wait in other threads return, for good.
    pub fn interrupt(&self) {
        for source in &self.list {
            source.interrupt();
        }
    }

    /// Each source alone, for a question that each has to answer for itself.
    pub(crate) fn each(&self) -> impl Iterator<Item = Sources> {
        self.list.iter().map(|source| Sources {
            list: vec![source.clone()],
            patience: self.patience.clone(),
            moved: self.moved.clone(),
        })
    }

    /// The same sources, each asked once only.
    pub(crate) fn without_retries(mut self) -> Self {
        self.patience.attempts = 1;
        self
    }

    /// Up to how many unwanted bytes are read over between two wanted ranges.
    pub(crate) fn read_over(&self) -> u64 {
        self.patience.read_over
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
        let mut reader = self.reader(path, cancel);
        reader.size = Some(size);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            reader.read(0..size, size, &mut bytes)?;
            if Sha256Digest::of(&bytes) == digest {
                return Ok(bytes);
            }
            reader.reject(TransportError::WrongDigest)?;
        }
    }

    /// A reader of ranges of one file.
    pub fn reader<'a>(&'a self, path: &str, cancel: &'a Cancel) -> FileReader<'a> {
        FileReader {
            sources: self,
            cancel,
            path: path.to_owned(),
            size: None,
            current: 0,
            body: None,
            ignores_ranges: false,
            failures: 0,
            furthest: 0,
            mixed: false,
            window: (Duration::ZERO, 0),
            tried: Vec::new(),
        }
    }
}

/// Reads ranges of one file in ascending order, over as few requests as it can.
pub struct FileReader<'a> {
    sources: &'a Sources,
    cancel: &'a Cancel,
    path: String,
    /// The length of the whole file, if known.
    size: Option<u64>,
    current: usize,
    body: Option<Body>,
    /// The current source answers a range with the whole file.
    ignores_ranges: bool,
    failures: u32,
    /// The furthest position that this source has brought: only what goes beyond it is a
    /// gain that makes earlier failures forgotten.
    furthest: u64,
    /// The range under way has bytes of more than one request.
    mixed: bool,
    /// Of the current measure of speed: the time spent waiting for the source (not for
    /// whoever takes the bytes), and the bytes that came.
    window: (Duration, u64),
    tried: Vec<Attempt>,
}

impl FileReader<'_> {
    /// Appends the bytes of `range` to `out`. The request made for it goes up to `until`,
    /// which is where the caller will want to read on.
    ///
    /// # Errors
    /// Only when every source has been given up; what was appended then means nothing.
    pub fn read(
        &mut self,
        range: Range<u64>,
        until: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), FetchError> {
        let first = out.len();
        self.mixed = false;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let got = (out.len() - first) as u64;
            let position = range.start + got;
            if position >= range.end {
                return Ok(());
            }
            let want =
                buffer.len().min(usize::try_from(range.end - position).unwrap_or(usize::MAX));
            match self.read_at(position, until.max(range.end), &mut buffer[..want]) {
                Ok(count) => out.extend_from_slice(&buffer[..count]),
                Err(error) => {
                    self.mixed |= got > 0;
                    self.failed(error)?;
                }
            }
        }
    }

    /// Says that the bytes of the last [`FileReader::read`] are wrong, and why: the source
    /// they came from is left, unless they were pieced together from several requests, in
    /// which case they are worth asking for once more in one.
    pub fn reject(&mut self, why: TransportError) -> Result<(), FetchError> {
        self.body = None;
        if std::mem::take(&mut self.mixed) {
            return Ok(());
        }
        self.leave(why)
    }

    fn read_at(
        &mut self,
        position: u64,
        until: u64,
        buffer: &mut [u8],
    ) -> Result<usize, TransportError> {
        if self.cancel.is_cancelled() {
            return Err(TransportError::Cancelled);
        }
        if !self.body.as_ref().is_some_and(|body| self.can_go_on(body, position)) {
            self.body = None;
            let range = (position > 0 || self.size != Some(until)).then_some(position..until);
            let asked = range.is_some();
            let body = self.open(range)?;
            self.ignores_ranges = asked
                && (body.position() != position
                    || (body.end() == body.total() && body.end() != Some(until)));
            if let Some(total) = body.total() {
                let expected = self.size.unwrap_or(until);
                if total < expected || self.size.is_some_and(|size| total != size) {
                    return Err(TransportError::WrongLength { expected, got: total });
                }
            }
            self.body = Some(body);
        }
        loop {
            let Some(body) = &mut self.body else { return Err(TransportError::WrongRange) };
            let skip = position.saturating_sub(body.position());
            let room = if skip > 0 {
                buffer.len().min(usize::try_from(skip).unwrap_or(usize::MAX))
            } else {
                buffer.len()
            };
            let began = Instant::now();
            let read = body.read(&mut buffer[..room]);
            self.window.0 += began.elapsed();
            let count = read?;
            if count == 0 {
                return Err(TransportError::Cut { at: body.position(), expected: until });
            }
            let reached = body.position();
            self.measure(count as u64, reached)?;
            if skip == 0 {
                return Ok(count);
            }
            if self.cancel.is_cancelled() {
                return Err(TransportError::Cancelled);
            }
        }
    }

    fn read_whole(&mut self, limit: u64, out: &mut Vec<u8>) -> Result<(), TransportError> {
        let mut body = self.open(None)?;
        if body.total().is_some_and(|total| total > limit) {
            return Err(TransportError::TooLong { limit });
        }
        let mut buffer = vec![0; 16 * 1024];
        loop {
            if self.cancel.is_cancelled() {
                return Err(TransportError::Cancelled);
            }
            let began = Instant::now();
            let read = body.read(&mut buffer);
            self.window.0 += began.elapsed();
            let count = read?;
            if count == 0 {
                return Ok(());
            }
            out.extend_from_slice(&buffer[..count]);
            if out.len() as u64 > limit {
                return Err(TransportError::TooLong { limit });
            }
            self.measure(count as u64, out.len() as u64)?;
        }
    }

    fn can_go_on(&self, body: &Body, position: u64) -> bool {
        position >= body.position()
            && body.end().is_none_or(|end| end > position)
            && (self.ignores_ranges
                || position - body.position() <= self.sources.patience.read_over)
    }

    fn open(&mut self, range: Option<Range<u64>>) -> Result<Body, TransportError> {
        let source = self.sources.list.get(self.current).ok_or(TransportError::Missing)?;
        self.sources.moved.requests.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let body = source.open(&self.path, range);
        self.window.0 += began.elapsed();
        body
    }

    /// Counts bytes, and refuses a source that trickles, over one connection or over many.
    fn measure(&mut self, count: u64, reached: u64) -> Result<(), TransportError> {
        if reached > self.furthest {
            self.furthest = reached;
            self.failures = 0;
        }
        self.sources.moved.bytes.fetch_add(count, Ordering::Relaxed);
        let patience = &self.sources.patience;
        let (waited, bytes) = &mut self.window;
        *bytes += count;
        if *bytes >= patience.slowest_bytes {
            self.window = (Duration::ZERO, 0);
        } else if *waited > patience.slowest_window {
            return Err(TransportError::TooSlow { bytes: *bytes, window: *waited });
        }
        Ok(())
    }

    /// Decides after a failure: the same source again, the next one, or the end.
    fn failed(&mut self, error: TransportError) -> Result<(), FetchError> {
        self.body = None;
        if self.cancel.is_cancelled() || matches!(error, TransportError::Cancelled) {
            return Err(FetchError::Cancelled);
        }
        self.failures += 1;
        let patience = &self.sources.patience;
        if !error.may_pass() || self.failures >= patience.attempts {
            return self.leave(error);
        }
        let doubled = patience.first_pause.saturating_mul(1 << (self.failures - 1).min(16));
        let pause = doubled.min(patience.longest_pause);
        sleep(pause.mul_f64(1.0 + rand::random::<f64>() / 2.0), self.cancel)
    }

    fn leave(&mut self, error: TransportError) -> Result<(), FetchError> {
        self.body = None;
        self.failures = 0;
        self.furthest = 0;
        self.window = (Duration::ZERO, 0);
        self.ignores_ranges = false;
        if let Some(source) = self.sources.list.get(self.current) {
            self.tried.push(Attempt { source: source.name().to_owned(), error });
        }
        self.current += 1;
        if self.current < self.sources.list.len() {
            return Ok(());
        }
        Err(FetchError::Failed { path: self.path.clone(), tried: std::mem::take(&mut self.tried) })
    }
}

/// Sleeps in short steps, so that a cancelled task ends at once.
fn sleep(pause: Duration, cancel: &Cancel) -> Result<(), FetchError> {
    let end = Instant::now() + pause;
    loop {
        if cancel.is_cancelled() {
            return Err(FetchError::Cancelled);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
