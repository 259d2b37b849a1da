//! Reads ranges of one file, over as few requests as it can and from as many sources as
//! it must.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use varve_sys::task::Cancel;

use super::{Attempt, FetchError, Notice, Sources};
use crate::transport::{Body, TransportError};

/// Up to how many bytes are read over on the way to wanted ones, within an answer.
const SKIP: u64 = 64 * 1024;
/// How many ranges beyond the next are asked for at once. Servers may take fewer.
const AHEAD: usize = 64;

/// Reads ranges of one file in ascending order, over as few requests as it can.
pub struct FileReader<'a> {
    sources: &'a Sources,
    cancel: &'a Cancel,
    path: String,
    /// The length of the whole file, if known.
    size: Option<u64>,
    /// The ranges that will be asked for, ascending, those that are over included.
    expected: Vec<Range<u64>>,
    /// The sources to ask, the present one first.
    order: VecDeque<Turn>,
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

/// A source's turn.
#[derive(Clone, Copy)]
struct Turn {
    source: usize,
    /// There is nobody else: it may be as slow as it likes, as long as bytes arrive.
    last_resort: bool,
}

impl<'a> FileReader<'a> {
    pub(super) fn new(sources: &'a Sources, path: &str, cancel: &'a Cancel) -> Self {
        let last_resort = sources.list.len() == 1 && !sources.has_others;
        Self {
            sources,
            cancel,
            path: path.to_owned(),
            size: None,
            expected: Vec::new(),
            order: (0..sources.list.len()).map(|source| Turn { source, last_resort }).collect(),
            body: None,
            ignores_ranges: false,
            failures: 0,
            furthest: 0,
            mixed: false,
            window: (Duration::ZERO, 0),
            tried: Vec::new(),
        }
    }

    pub(super) fn has_size(&mut self, size: u64) {
        self.size = Some(size);
    }

    /// Says which ranges will be asked for, ascending and apart from each other, so that
    /// several can come in one answer.
    pub fn expect(&mut self, ranges: impl IntoIterator<Item = Range<u64>>) {
        self.expected = ranges.into_iter().collect();
    }

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
        let kept = self.sources.kept.as_deref();
        let left = kept
            .map_or(0, |kept| kept.begin(&self.path, range.start, range.end - range.start, out));
        self.mixed = left > 0;
        let step = self.sources.pace.as_ref().map_or(64 * 1024, |pace| pace.step());
        let mut buffer = vec![0; step];
        loop {
            let got = (out.len() - first) as u64;
            let position = range.start + got;
            if position >= range.end {
                return Ok(());
            }
            let want =
                buffer.len().min(usize::try_from(range.end - position).unwrap_or(usize::MAX));
            match self.read_at(position, until.max(range.end), &mut buffer[..want]) {
                Ok(count) => {
                    out.extend_from_slice(&buffer[..count]);
                    if let Some(kept) = kept {
                        kept.add(&buffer[..count]);
                    }
                    self.pace(count)?;
                }
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
        if let Some(kept) = &self.sources.kept {
            kept.clear();
        }
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
        self.gate()?;
        if !self.goes_on(position)? {
            self.begin(position, until)?;
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

    /// Waits while the link may not be used. What was under way is left, so that nothing more
    /// comes, and asked for anew then.
    fn gate(&mut self) -> Result<(), TransportError> {
        let Some(gate) = &self.sources.gate else { return Ok(()) };
        let source = self.order.front().and_then(|turn| self.sources.list.get(turn.source));
        if source.is_none_or(|source| !source.is_network()) {
            return Ok(());
        }
        let body = &mut self.body;
        gate.pass(&self.path, self.cancel, |pause| {
            *body = None;
            self.sources.tell(&Notice::Metered { pause });
        })
    }

    /// Whether the answer under way brings the byte at `position` before long; goes to the
    /// part of it that does.
    fn goes_on(&mut self, position: u64) -> Result<bool, TransportError> {
        let allowed = if self.ignores_ranges { u64::MAX } else { SKIP };
        while let Some(body) = &mut self.body {
            let (here, end) = (body.position(), body.end());
            if position >= here && end.is_none_or(|end| end > position) {
                if position - here <= allowed {
                    return Ok(true);
                }
            } else if end == Some(here) && position >= here && body.next_part()? {
                continue;
            }
            self.body = None;
        }
        Ok(false)
    }

    /// Asks for the bytes from `position` to `until`, and for what is expected after them.
    fn begin(&mut self, position: u64, until: u64) -> Result<(), TransportError> {
        let whole = position == 0 && self.size == Some(until);
        let mut ranges = Vec::new();
        if !whole {
            let more = self.expected.iter().filter(|range| range.start >= until).take(AHEAD - 1);
            ranges.push(position..until);
            ranges.extend(more.cloned());
        }
        let body = self.open(&ranges)?;
        self.ignores_ranges = !whole
            && (body.position() != position
                || (body.end() == body.total() && body.end() != ranges.last().map(|r| r.end)));
        if let Some(total) = body.total() {
            let expected = self.size.unwrap_or(until);
            if total < expected || self.size.is_some_and(|size| total != size) {
                return Err(TransportError::WrongLength { expected, got: total });
            }
        }
        self.body = Some(body);
        Ok(())
    }

    pub(super) fn read_whole(
        &mut self,
        limit: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), TransportError> {
        let mut body = self.open(&[])?;
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
            self.pace(count).map_err(|_| TransportError::Cancelled)?;
        }
    }

    fn open(&mut self, ranges: &[Range<u64>]) -> Result<Body, TransportError> {
        let source = self.order.front().and_then(|turn| self.sources.list.get(turn.source));
        let source = source.ok_or(TransportError::Missing)?;
        let asked = ranges.iter().map(|range| range.end - range.start).sum();
        self.sources.within_budget(asked)?;
        self.sources.moved.requests.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let body = source.open(&self.path, ranges, self.cancel);
        self.window.0 += began.elapsed();
        body
    }

    fn pace(&self, count: usize) -> Result<(), FetchError> {
        self.sources.pace.as_ref().map_or(Ok(()), |pace| pace.wait(count, self.cancel))
    }

    /// Counts bytes, and leaves a source that trickles for the others, over one connection
    /// or over many.
    fn measure(&mut self, count: u64, reached: u64) -> Result<(), TransportError> {
        if reached > self.furthest {
            self.furthest = reached;
            self.failures = 0;
        }
        self.sources.moved.bytes.fetch_add(count, Ordering::Relaxed);
        self.sources.within_budget(0)?;
        let patience = &self.sources.patience;
        let last_resort = self.order.front().is_some_and(|turn| turn.last_resort);
        let (waited, bytes) = &mut self.window;
        *bytes += count;
        if *bytes >= patience.slowest_bytes || last_resort {
            self.window = (Duration::ZERO, 0);
        } else if *waited > patience.slowest_window {
            return Err(TransportError::TooSlow { bytes: *bytes, window: *waited });
        }
        Ok(())
    }

    /// Decides after a failure: the same source again, the next one, or the end.
    pub(super) fn failed(&mut self, error: TransportError) -> Result<(), FetchError> {
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
        let pause = doubled.min(patience.longest_pause).mul_f64(1.0 + rand::random::<f64>() / 2.0);
        // Whoever asks to be left alone is, within reason.
        let asked = match &error {
            TransportError::Server { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let pause = pause.max(asked);
        let attempt = (self.failures, patience.attempts);
        self.sources.tell(&Notice::Waiting {
            source: self.source(),
            error: &error,
            pause,
            attempt,
        });
        sleep(pause, self.cancel)
    }

    fn source(&self) -> &str {
        let turn = self.order.front().and_then(|turn| self.sources.list.get(turn.source));
        turn.map_or("", |source| source.name())
    }

    fn leave(&mut self, error: TransportError) -> Result<(), FetchError> {
        self.body = None;
        self.failures = 0;
        self.furthest = 0;
        self.window = (Duration::ZERO, 0);
        self.ignores_ranges = false;
        let Some(turn) = self.order.pop_front() else { return Err(self.given_up()) };
        let source = self.sources.list[turn.source].name();
        // What is slow is better than nothing, once nothing else is left.
        let comes_back =
            matches!(error, TransportError::TooSlow { .. }) && !self.sources.has_others;
        if comes_back {
            self.order.push_back(Turn { last_resort: true, ..turn });
        }
        if !self.order.is_empty() {
            let next = self.source();
            self.sources.tell(&Notice::Leaving { source, error: &error, next });
        }
        if !comes_back {
            self.tried.push(Attempt { source: source.to_owned(), error });
        }
        if self.order.is_empty() { Err(self.given_up()) } else { Ok(()) }
    }

    fn given_up(&mut self) -> FetchError {
        FetchError::Failed { path: self.path.clone(), tried: std::mem::take(&mut self.tried) }
    }
}

/// Sleeps in short steps, so that a cancelled task ends at once.
pub(super) fn sleep(pause: Duration, cancel: &Cancel) -> Result<(), FetchError> {
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
