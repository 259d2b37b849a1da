//! A repository on an HTTP server, asked by a worker: the manager's side.
//!
//! ```text
//! HttpTransport --the first file: starts--> worker
//!   open(path, ranges): a socket for it --handed over--> asks the server
//!   Body::read <------------------------- bytes, as they come
//!   drop, cancel: the socket closes ----> the asking ends
//! ```
//!
//! A worker that was taken over can say what the network could: wrong bytes, late or never.
//! Positions are held against what was asked for, bytes against digests by whoever reads.

use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use varve_sys::passing;
use varve_sys::task::Cancel;

use super::http::{HttpOptions, HttpRepository, MAX_REDIRECTS, MAX_RETRY_AFTER};
use super::{Body, ReadBody, Transport, TransportError};
use crate::worker::web::{BYTES, FAILED, HEAD, LAST, OPEN, PART, TOLD, Told, UNKNOWN};
use crate::worker::wire::{Fields, Message, Taken, broken, receive, send};
use crate::worker::{Task, Worker, WorkerError, Workers};

/// Address space of a worker, in bytes: a bound against a bomb.
const SPACE: u64 = 1 << 30;
/// The most bytes between the worker and this process: with the process they are lost.
const ON_THE_WAY: usize = 64 << 10;
/// The longest error, in bytes.
const MAX_WORDS: u64 = 64 << 10;
/// The longest text of an error that is shown, in characters.
const MAX_SHOWN: usize = 500;
/// How long a worker may take to take what it is given.
const TAKES: Duration = Duration::from_secs(10);
/// How often it is looked whether the work was cancelled, while nothing comes.
const LOOK: Duration = Duration::from_millis(100);

/// Gives the files of a repository below a URL, by HTTP/2 where the server has it and
/// HTTP/1.1 else.
pub struct HttpTransport {
    name: String,
    told: Vec<u8>,
    workers: Workers,
    worker: Present,
    /// The longest wait for a worker's next word. A server that takes its whole time again and
    /// again, over redirects and refusals of one file, is given up with it.
    patience: Duration,
}

/// The worker that asks, once there is one.
type Present = Arc<Mutex<Option<Worker>>>;

impl HttpTransport {
    /// The repository below `url` (`http:` or `https:`), asked by one of these workers.
    ///
    /// # Errors
    /// When the URL, a proxy's URL or a certificate is not valid; the text says which.
    pub fn new(url: &str, options: &HttpOptions, workers: &Workers) -> Result<Self, String> {
        // What cannot be used is said before it is needed.
        HttpRepository::new(url, options)?;
        let told = Told { url: url.to_owned(), options: options.clone() };
        let each = options.connect.saturating_add(options.stall);
        Ok(Self {
            name: url.to_owned(),
            told: serde_json::to_vec(&told).map_err(|error| error.to_string())?,
            workers: workers.clone(),
            worker: Present::default(),
            patience: each.saturating_mul(MAX_REDIRECTS as u32 + 2),
        })
    }

    /// Gives this socket to a worker; one that has ended is started anew.
    fn hand_over(&self, socket: &UnixStream) -> Result<(), WorkerError> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let given = worker.as_ref().map(|worker| passing::hand_over(&worker.stream, socket));
        if let Some(Ok(())) = given {
            return Ok(());
        }
        let fresh = self.workers.start(Task::Web, SPACE)?;
        fresh.stream.set_write_timeout(Some(TAKES)).map_err(WorkerError::Start)?;
        send(&fresh.stream, TOLD, &[&self.told])
            .and_then(|()| passing::hand_over(&fresh.stream, socket))
            .map_err(WorkerError::Ended)?;
        *worker = Some(fresh);
        Ok(())
    }
}

impl Transport for HttpTransport {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(
        &self,
        path: &str,
        ranges: &[Range<u64>],
        cancel: &Cancel,
    ) -> Result<Body, TransportError> {
        let (stream, there) = passing::pair(ON_THE_WAY)
            .map_err(|error| TransportError::Worker(WorkerError::Start(error)))?;
        self.hand_over(&there).map_err(TransportError::Worker)?;
        drop(there);
        let mut request = Fields::default();
        request.bytes(path.as_bytes()).number(ranges.len() as u64);
        for range in ranges {
            request.number(range.start).number(range.end);
        }
        send(&stream, OPEN, &[&request.0]).map_err(ended)?;
        stream.set_read_timeout(Some(LOOK)).map_err(TransportError::Io)?;
        let (worker, patience) = (self.worker.clone(), self.patience);
        let line = Line { stream, worker, cancel: cancel.clone(), patience };
        let first = line.next()?;
        let Place { start, end, total } = place(first, HEAD, |start| {
            start == 0 || ranges.first().is_some_and(|range| range.start == start)
        })?;
        let reader = Answer::new(line, ranges, start);
        Ok(Body::new(start, end, total, Box::new(reader)))
    }
}

fn ended(error: io::Error) -> TransportError {
    TransportError::Worker(WorkerError::Ended(error))
}

/// The socket of one file.
struct Line {
    stream: UnixStream,
    worker: Present,
    cancel: Cancel,
    patience: Duration,
}

impl Line {
    /// The worker's next word.
    fn next(&self) -> Result<Message, TransportError> {
        let waits = Waits { line: self, began: Instant::now() };
        let message = receive(waits, MAX_WORDS).map_err(|error| match error.kind() {
            _ if self.cancel.is_cancelled() => TransportError::Cancelled,
            io::ErrorKind::TimedOut => {
                // It would have given the server up: it hangs, and the next file gets another.
                *self.worker.lock().unwrap_or_else(PoisonError::into_inner) = None;
                TransportError::Stalled { after: self.patience }
            }
            _ => ended(error),
        })?;
        message.ok_or_else(|| ended(io::ErrorKind::UnexpectedEof.into()))
    }
}

/// Waits for one message as long as it is worth it, however its bytes come.
struct Waits<'a> {
    line: &'a Line,
    began: Instant,
}

impl Read for Waits<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.line.cancel.is_cancelled() {
                return Err(io::Error::other("cancelled"));
            }
            if self.began.elapsed() > self.line.patience {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match (&self.line.stream).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }
}

/// Where bytes stand in the file, and how long it is.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    start: u64,
    end: Option<u64>,
    total: Option<u64>,
}

/// Reads a place that may begin there, or why there is none.
fn place(
    Message { tag, body }: Message,
    expected: u8,
    may_begin: impl Fn(u64) -> bool,
) -> Result<Place, TransportError> {
    if tag == FAILED {
        return Err(failure(&body));
    }
    if tag != expected {
        return Err(ended(broken()));
    }
    let known = |position| (position != UNKNOWN).then_some(position);
    let mut fields = Taken(&body);
    let mut number = || fields.number().map_err(ended);
    let place = Place { start: number()?, end: known(number()?), total: known(number()?) };
    if !may_begin(place.start) || place.end.is_some_and(|end| end < place.start) {
        return Err(TransportError::WrongRange);
    }
    Ok(place)
}

/// Why there are no bytes, as far as a network can be the reason; what is shown is text.
fn failure(body: &[u8]) -> TransportError {
    use TransportError as E;
    let shown = |text: String| -> String {
        text.chars().filter(|char| !char.is_control()).take(MAX_SHOWN).collect()
    };
    match serde_json::from_slice(body) {
        Ok(E::Server { status, retry_after }) => {
            E::Server { status, retry_after: retry_after.map(|asked| asked.min(MAX_RETRY_AFTER)) }
        }
        Ok(E::Captive { page }) => E::Captive { page: page.map(shown) },
        Ok(E::ProxyLogin { proxy }) => E::ProxyLogin { proxy: shown(proxy) },
        Ok(E::Certificate { reason }) => E::Certificate { reason: shown(reason) },
        Ok(E::Redirect { reason }) => E::Redirect { reason: shown(reason) },
        Ok(E::Transformed { encoding }) => E::Transformed { encoding: shown(encoding) },
        Ok(E::Unreachable { reason }) => E::Unreachable { reason: shown(reason) },
        Ok(E::Protocol { reason }) => E::Protocol { reason: shown(reason) },
        Ok(E::Io(error)) => E::Io(io::Error::other(shown(error.to_string()))),
        Ok(
            error @ (E::Missing
            | E::Refused { .. }
            | E::WrongRange
            | E::Stalled { .. }
            | E::Cut { .. }
            | E::WrongLength { .. }),
        ) => error,
        // The rest is for this process to say.
        _ => ended(broken()),
    }
}

/// A file's bytes as they come.
struct Answer {
    line: Line,
    /// What may still come as a further part.
    asked: Vec<Range<u64>>,
    here: Vec<u8>,
    /// So many of `here` are read.
    at: usize,
    /// What came after the last bytes of a part.
    next: Option<Message>,
}

impl Answer {
    /// The first part begins at `start`.
    fn new(line: Line, asked: &[Range<u64>], start: u64) -> Self {
        let asked = asked.iter().filter(|range| range.start > start).cloned().collect();
        Self { line, asked, here: Vec::new(), at: 0, next: None }
    }
}

impl ReadBody for Answer {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError> {
        while self.at == self.here.len() && self.next.is_none() {
            let message = self.line.next()?;
            match message.tag {
                BYTES if !message.body.is_empty() => (self.here, self.at) = (message.body, 0),
                PART | LAST => self.next = Some(message),
                FAILED => return Err(failure(&message.body)),
                _ => return Err(ended(broken())),
            }
        }
        let count = buffer.len().min(self.here.len() - self.at);
        buffer[..count].copy_from_slice(&self.here[self.at..][..count]);
        self.at += count;
        Ok(count)
    }

    fn next_part(&mut self) -> Result<Option<Range<u64>>, TransportError> {
        let message = match self.next.take() {
            Some(message) => message,
            None => self.line.next()?,
        };
        if message.tag == LAST {
            return Ok(None);
        }
        let asked = &self.asked;
        let begins = |start| asked.iter().any(|range| range.start == start);
        let Place { start, end, .. } = place(message, PART, begins)?;
        // No part comes twice.
        self.asked.retain(|range| range.start > start);
        Ok(Some(start..end.ok_or(TransportError::WrongRange)?))
    }
}

/// Whatever a worker says, it is an answer to what was asked for, or an error. For fuzzing.
pub(crate) fn whatever_it_says(bytes: &[u8]) {
    let (&tag, body) = bytes.split_first().unwrap_or((&0, &[]));
    let message = || Message { tag, body: body.to_vec() };
    if let Ok(place) = place(message(), HEAD, |start| start == 7) {
        assert!(place.start == 7 && place.end.is_none_or(|end| end >= 7));
    }
    let _ = place(message(), PART, |start| start == 7);
    match failure(body) {
        TransportError::Server { retry_after: Some(asked), .. } => {
            assert!(asked <= MAX_RETRY_AFTER)
        }
        error => assert!(varve_sys::whole_message(&error).chars().all(|char| !char.is_control())),
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "one range is a list of ranges too")]
mod tests {
    use super::*;

    fn line(stream: UnixStream, patience: u64) -> Line {
        stream.set_read_timeout(Some(LOOK)).unwrap();
        let patience = Duration::from_millis(patience);
        Line { stream, worker: Present::default(), cancel: Cancel::new(), patience }
    }

    /// What is read of a body when a worker says this; all that was asked for is 10 to 20
    /// and 30 to 40.
    fn of(words: &[(u8, &[u64], &[u8])]) -> Result<Vec<u8>, TransportError> {
        let (stream, worker) = passing::pair(ON_THE_WAY).unwrap();
        for (tag, numbers, bytes) in words {
            let mut body = Fields::default();
            numbers.iter().for_each(|&number| _ = body.number(number));
            send(&worker, *tag, &[&body.0, bytes]).unwrap();
        }
        drop(worker);
        let line = line(stream, 300);
        let Place { start, end, total } =
            place(line.next()?, HEAD, |start| [0, 10].contains(&start))?;
        let reader = Answer::new(line, &[10..20, 30..40], start);
        let mut body = Body::new(start, end, total, Box::new(reader));
        let (mut read, mut buffer) = (Vec::new(), [0; 7]);
        loop {
            match body.read(&mut buffer)? {
                0 if body.next_part()? => {}
                0 => return Ok(read),
                count => read.extend_from_slice(&buffer[..count]),
            }
        }
    }

    #[test]
    fn parts_follow_each_other() {
        let (first, second) = (b"0123456789", b"abcdefghij");
        let words: &[(u8, &[u64], &[u8])] = &[
            (HEAD, &[10, 20, 50], b""),
            (BYTES, &[], first),
            (PART, &[30, 40, 50], b""),
            (BYTES, &[], &second[..4]),
            (BYTES, &[], &second[4..]),
            (LAST, &[], b""),
        ];
        assert_eq!(of(words).unwrap(), [&first[..], second].concat());
    }

    #[test]
    fn a_worker_that_was_taken_over_is_not_believed() {
        let head: (u8, &[u64], &[u8]) = (HEAD, &[10, 20, 50], b"");
        let bytes: (u8, &[u64], &[u8]) = (BYTES, &[], b"0123456789");
        let wrong = |words: &[(u8, &[u64], &[u8])]| of(words).unwrap_err();
        let range = |error| matches!(error, TransportError::WrongRange);
        assert!(range(wrong(&[(HEAD, &[11, 20, 50], b"")])), "begins elsewhere");
        assert!(range(wrong(&[(HEAD, &[10, 9, 50], b"")])), "ends before it begins");
        assert!(range(wrong(&[head, bytes, (PART, &[31, 40, 50], b"")])), "another part");
        assert!(range(wrong(&[head, bytes, (PART, &[10, 20, 50], b"")])), "one part twice");
        assert!(range(wrong(&[head, bytes, (PART, &[30, UNKNOWN, 50], b"")])), "no end");
        let gone = |error| matches!(error, TransportError::Worker(WorkerError::Ended(_)));
        assert!(gone(wrong(&[])), "nothing");
        assert!(gone(wrong(&[bytes])), "bytes before the head");
        assert!(gone(wrong(&[head, head])), "two heads");
        assert!(gone(wrong(&[(HEAD, &[10], b"")])), "half a head");
        assert!(gone(wrong(&[(FAILED, &[], b"{")])), "no error");
        assert!(gone(wrong(&[head, (BYTES, &[], b"")])), "bytes that are none");
        for own in ["\"Cancelled\"", "\"Metered\"", "{\"Budget\":{\"limit\":1}}", "\"WrongDigest\""]
        {
            assert!(gone(wrong(&[(FAILED, &[], own.as_bytes())])), "{own}: not for it to say");
        }
        let long =
            br#"{"Server":{"status":503,"retry_after":{"secs":18446744073709551615,"nanos":0}}}"#;
        let long = wrong(&[(FAILED, &[], long)]);
        assert!(matches!(long, TransportError::Server { retry_after: Some(MAX_RETRY_AFTER), .. }));
        let screen = br#"{"Protocol":{"reason":"\u001b[2Jgone"}}"#;
        let screen = wrong(&[(FAILED, &[], screen)]).to_string();
        assert!(screen.ends_with("[2Jgone") && !screen.contains('\u{1b}'), "{screen:?}");
        assert!(matches!(
            wrong(&[head, (LAST, &[], b"")]),
            TransportError::Cut { at: 10, expected: 20 }
        ));
        // More bytes than the part has: what is over is not read, and there is no next part.
        assert!(gone(wrong(&[head, bytes, bytes, (LAST, &[], b"")])), "more than there is");
    }

    #[test]
    fn errors_arrive_as_they_were() {
        for error in [
            TransportError::Missing,
            TransportError::Server { status: 503, retry_after: Some(Duration::from_secs(7)) },
            TransportError::Captive { page: Some("http://a/".into()) },
            TransportError::Stalled { after: Duration::from_millis(1500) },
            TransportError::Io(io::Error::other("what it said")),
        ] {
            let text = serde_json::to_vec(&error).unwrap();
            let got = of(&[(FAILED, &[], &text)]).unwrap_err();
            assert_eq!(varve_sys::whole_message(&got), varve_sys::whole_message(&error));
            assert_eq!(got.may_pass(), error.may_pass());
        }
    }

    #[test]
    fn nobody_waits_for_a_silent_worker_for_ever() {
        let (stream, _worker) = passing::pair(ON_THE_WAY).unwrap();
        let line = line(stream, 150);
        assert!(matches!(line.next(), Err(TransportError::Stalled { .. })));
        line.cancel.cancel();
        assert!(matches!(line.next(), Err(TransportError::Cancelled)));
    }

    /// A byte now and then is no message, and does not keep a cancel from being seen.
    #[test]
    fn nobody_waits_for_a_worker_that_drips() {
        use std::io::Write;
        let (stream, mut worker) = passing::pair(ON_THE_WAY).unwrap();
        let drips = std::thread::spawn(move || {
            let head = [&[BYTES][..], &60_000_u64.to_le_bytes()].concat();
            // Until nobody listens any more.
            let mut all = head.into_iter().chain(std::iter::repeat(0));
            while worker.write_all(&[all.next().unwrap()]).is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let line = line(stream, 300);
        assert!(matches!(line.next(), Err(TransportError::Stalled { .. })));
        line.cancel.cancel();
        assert!(matches!(line.next(), Err(TransportError::Cancelled)));
        drop(line);
        drips.join().unwrap();
    }
}
