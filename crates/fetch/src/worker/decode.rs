//! The worker's side of decoding: it answers what it is asked, and asks back for what a
//! delta is made of.
//!
//! ```text
//! manager                          worker
//! FRAME size, bytes           ->   DECODED bytes | REFUSED text
//! TEXT  size, bytes           ->   DECODED bytes | REFUSED text
//! OPEN  head, old manifest    ->   DECODED what it leads to | REFUSED text
//! APPLY memory, digests       ->   CONTENT digest | STREAM range | MADE digest, bytes
//!       HERE bytes | ABSENT | FAILED <-'    ... until:
//!                                  DECODED what is left | REFUSED text
//! ```

use std::collections::HashSet;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use varve_delta::{Contents, Delta, Left, Limits, Sink, Streams};
use varve_format::ContentDigest;

use super::wire::{Fields, Message, Taken, broken, receive, send};

pub(super) const FRAME: u8 = b'f';
pub(super) const TEXT: u8 = b't';
pub(super) const OPEN: u8 = b'o';
pub(super) const APPLY: u8 = b'a';
pub(super) const DECODED: u8 = b'd';
pub(super) const REFUSED: u8 = b'x';
pub(super) const CONTENT: u8 = b'c';
pub(super) const STREAM: u8 = b's';
pub(super) const MADE: u8 = b'm';
pub(super) const HERE: u8 = b'h';
pub(super) const ABSENT: u8 = b'0';
pub(super) const FAILED: u8 = b'!';

/// The largest window of a document: 16 MiB.
const MAX_WINDOW_LOG: u32 = 24;
/// Groups that are made at one time.
const THREADS: usize = 2;

/// Works until the other end is closed.
pub(super) fn serve(stream: &UnixStream) -> io::Result<()> {
    let mut frames = zstd::bulk::Decompressor::new()?;
    let mut delta = None;
    while let Some(Message { tag, body }) = receive(stream, u64::MAX)? {
        let mut body = Taken(&body);
        let answer = match tag {
            FRAME => frame(&mut frames, &mut body),
            TEXT => text(&mut body),
            OPEN => open(&mut body).map(|(opened, answer)| {
                delta = Some(opened);
                answer
            }),
            APPLY => match &delta {
                Some(delta) => apply(delta, stream, &mut body),
                None => Err(broken().to_string()),
            },
            _ => return Err(broken()),
        };
        match answer {
            Ok(bytes) => send(stream, DECODED, &[&bytes])?,
            Err(reason) => send(stream, REFUSED, &[reason.as_bytes()])?,
        }
    }
    Ok(())
}

type Answer<T> = Result<T, String>;

fn words(error: impl std::error::Error) -> String {
    varve_sys::whole_message(&error)
}

pub(super) fn frame(
    frames: &mut zstd::bulk::Decompressor<'_>,
    body: &mut Taken<'_>,
) -> Answer<Vec<u8>> {
    let size = usize::try_from(body.number().map_err(words)?).map_err(words)?;
    frames.decompress(body.0, size).map_err(words)
}

/// Gives one byte more than `size` at most, so that the manager sees that there is more.
pub(super) fn text(body: &mut Taken<'_>) -> Answer<Vec<u8>> {
    let size = body.number().map_err(words)?;
    let mut decoder = zstd::Decoder::new(body.0).map_err(words)?;
    decoder.window_log_max(MAX_WINDOW_LOG).map_err(words)?;
    let mut text = Vec::new();
    decoder.take(size.saturating_add(1)).read_to_end(&mut text).map_err(words)?;
    Ok(text)
}

fn open(body: &mut Taken<'_>) -> Answer<(Delta, Vec<u8>)> {
    let head = body.bytes().map_err(words)?;
    let delta = Delta::open(head, body.0).map_err(words)?;
    let mut out = Fields::default();
    out.raw(&delta.to().0).number(delta.length()).bytes(delta.manifest());
    let groups: Vec<_> = delta.groups().collect();
    out.number(groups.len() as u64);
    for (number, group) in groups.iter().enumerate() {
        out.number(group.memory).number(u64::from(group.late));
        out.number(group.stream.start).number(group.stream.end);
        out.number(group.contents.len() as u64);
        for (digest, size) in &group.contents {
            out.raw(&digest.0).number(*size);
        }
        let needs = delta.needs(&[number]);
        out.number(needs.len() as u64);
        for digest in needs {
            out.raw(&digest.0);
        }
    }
    Ok((delta, out.0))
}

fn apply(delta: &Delta, stream: &UnixStream, body: &mut Taken<'_>) -> Answer<Vec<u8>> {
    let memory = body.number().map_err(words)?;
    let mut wanted = HashSet::new();
    while !body.0.is_empty() {
        wanted.insert(ContentDigest(body.array().map_err(words)?));
    }
    let asker = Asker { stream: Mutex::new(stream), wanted: Mutex::new(wanted) };
    let limits = Limits { memory, threads: THREADS };
    let applied = delta.apply(&asker, &asker, &asker, limits).map_err(words)?;
    let mut out = Fields::default();
    out.number(applied.left.len() as u64);
    for (digest, size, why) in applied.left {
        let (why, bytes) = match why {
            Left::Memory(bytes) => (0, bytes),
            Left::Stream => (1, 0),
            Left::Missing => (2, 0),
            Left::Wrong => (3, 0),
        };
        out.raw(&digest.0).number(size).number(why).number(bytes);
    }
    Ok(out.0)
}

/// Asks the manager, one question at a time.
struct Asker<'a> {
    stream: Mutex<&'a UnixStream>,
    /// What is still to be made.
    wanted: Mutex<HashSet<ContentDigest>>,
}

impl Asker<'_> {
    fn ask(&self, tag: u8, parts: &[&[u8]]) -> io::Result<Option<Vec<u8>>> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        send(&stream, tag, parts)?;
        let answer = receive(*stream, u64::MAX)?.ok_or_else(broken)?;
        match answer.tag {
            HERE => Ok(Some(answer.body)),
            ABSENT => Ok(None),
            _ => Err(io::Error::other("it could not be had")),
        }
    }
}

impl Streams for Asker<'_> {
    fn read(&self, range: Range<u64>) -> io::Result<Option<Vec<u8>>> {
        self.ask(STREAM, &[&range.start.to_le_bytes(), &range.end.to_le_bytes()])
    }
}

impl Contents for Asker<'_> {
    fn read(&self, digest: &ContentDigest) -> io::Result<Option<Vec<u8>>> {
        self.ask(CONTENT, &[&digest.0])
    }
}

impl Sink for Asker<'_> {
    fn put(&self, digest: &ContentDigest, bytes: &[u8]) -> io::Result<()> {
        self.ask(MADE, &[&digest.0, bytes])?;
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
        Ok(())
    }

    fn has(&self, digest: &ContentDigest) -> bool {
        !self.wanted.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }
}
