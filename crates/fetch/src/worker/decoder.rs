//! The manager's side of decoding: asks a worker, answers what it asks, believes nothing.

use std::collections::HashSet;
use std::io;
use std::ops::Range;

use varve_delta::{Left, Offer};
use varve_format::{ContentDigest, ReleaseDigest};

use super::decode::{
    ABSENT, APPLY, CONTENT, DECODED, FAILED, FRAME, HERE, MADE, OPEN, REFUSED, STREAM, TEXT,
};
use super::wire::{Fields, Message, Taken, broken, receive, send};
use super::{Task, Worker, WorkerError, Workers};

/// Address space of the program itself, its threads and what it reads, in bytes: a bound
/// against a bomb, on top of what is stated. Most of it is never touched.
const OWN_SPACE: u64 = 1 << 30;
/// The longest description of a delta, its manifest included, in bytes.
const MAX_DESCRIPTION: u64 = 1 << 30;
/// The longest reason, or question.
const MAX_WORDS: u64 = 64 << 10;

/// A worker that decodes.
pub(crate) struct Decoder(Worker);

/// What a delta leads to, as the worker says.
pub(crate) struct Opened {
    pub(crate) to: ReleaseDigest,
    pub(crate) length: u64,
    pub(crate) manifest: Vec<u8>,
    pub(crate) groups: Vec<Offer>,
    /// For each group what it is made of.
    pub(crate) needs: Vec<HashSet<ContentDigest>>,
}

/// What the making of contents asks its caller for.
pub(crate) trait Maker {
    /// An old content, or one that was made before.
    fn content(&mut self, digest: &ContentDigest) -> io::Result<Option<Vec<u8>>>;
    /// Bytes of the delta.
    fn stream(&mut self, range: Range<u64>) -> io::Result<Option<Vec<u8>>>;
    /// Takes what is said to be this content; it is not verified.
    fn made(&mut self, digest: &ContentDigest, bytes: &[u8]) -> io::Result<()>;
}

/// Contents that did not come out, with their lengths and why.
pub(crate) type Leavings = Vec<(ContentDigest, u64, Left)>;

impl Decoder {
    /// Starts one, for work that takes so many bytes of memory.
    pub(crate) fn start(workers: &Workers, memory: u64) -> Result<Self, WorkerError> {
        let space = memory.saturating_mul(2).saturating_add(OWN_SPACE);
        workers.start(Task::Decode, space).map(Self)
    }

    /// What this kernel lacks for its sandbox.
    pub(crate) fn lacks(&self) -> &[String] {
        &self.0.lacks
    }

    /// Decodes a frame of a pack, of at most `size` bytes.
    pub(crate) fn frame(&self, stored: &[u8], size: u64) -> Result<Vec<u8>, WorkerError> {
        self.ask(FRAME, &[&size.to_le_bytes(), stored], size)
    }

    /// Decodes a document; of one that is longer than `size` gives a byte more.
    pub(crate) fn text(&self, stored: &[u8], size: u64) -> Result<Vec<u8>, WorkerError> {
        self.ask(TEXT, &[&size.to_le_bytes(), stored], size.saturating_add(1))
    }

    /// Opens a delta by its head, against the manifest it starts from.
    pub(crate) fn open(&self, head: &[u8], old_manifest: &[u8]) -> Result<Opened, WorkerError> {
        let length = (head.len() as u64).to_le_bytes();
        let answer = self.ask(OPEN, &[&length, head, old_manifest], MAX_DESCRIPTION)?;
        opened(&answer).map_err(WorkerError::Ended)
    }

    /// Has the delta that was opened make these contents; `most` is the length of the
    /// longest.
    pub(crate) fn apply(
        &self,
        memory: u64,
        wanted: &HashSet<ContentDigest>,
        most: u64,
        maker: &mut dyn Maker,
    ) -> Result<Leavings, WorkerError> {
        let mut body = Fields::default();
        body.number(memory);
        for digest in wanted {
            body.raw(&digest.0);
        }
        let ended = WorkerError::Ended;
        send(&self.0.stream, APPLY, &[&body.0]).map_err(ended)?;
        // Whatever is left is told of as well.
        let limit = most.saturating_add(MAX_WORDS).max(body.0.len() as u64 * 4 + MAX_WORDS);
        loop {
            let Message { tag, body } = self.next(limit)?;
            let mut fields = Taken(&body);
            let answer = match tag {
                CONTENT => maker.content(&ContentDigest(fields.array().map_err(ended)?)),
                STREAM => {
                    let start = fields.number().map_err(ended)?;
                    maker.stream(start..fields.number().map_err(ended)?)
                }
                MADE => {
                    let digest = ContentDigest(fields.array().map_err(ended)?);
                    maker.made(&digest, fields.0).map(|()| Some(Vec::new()))
                }
                DECODED => return leavings(&mut fields).map_err(ended),
                REFUSED => return Err(refused(&body)),
                _ => return Err(ended(broken())),
            };
            let sent = match answer {
                Ok(Some(bytes)) => send(&self.0.stream, HERE, &[&bytes]),
                Ok(None) => send(&self.0.stream, ABSENT, &[]),
                Err(_) => send(&self.0.stream, FAILED, &[]),
            };
            sent.map_err(ended)?;
        }
    }

    fn ask(&self, tag: u8, parts: &[&[u8]], limit: u64) -> Result<Vec<u8>, WorkerError> {
        send(&self.0.stream, tag, parts).map_err(WorkerError::Ended)?;
        let answer = self.next(limit.max(MAX_WORDS))?;
        match answer.tag {
            DECODED => Ok(answer.body),
            REFUSED => Err(refused(&answer.body)),
            _ => Err(WorkerError::Ended(broken())),
        }
    }

    fn next(&self, limit: u64) -> Result<Message, WorkerError> {
        receive(&self.0.stream, limit)
            .and_then(|message| message.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
            .map_err(WorkerError::Ended)
    }
}

fn refused(text: &[u8]) -> WorkerError {
    WorkerError::Refused { reason: String::from_utf8_lossy(text).into_owned() }
}

pub(super) fn opened(answer: &[u8]) -> io::Result<Opened> {
    let mut fields = Taken(answer);
    let to = ReleaseDigest(fields.array()?);
    let length = fields.number()?;
    let manifest = fields.bytes()?.to_vec();
    let (mut groups, mut needs) = (Vec::new(), Vec::new());
    for _ in 0..fields.count(6 * 8)? {
        let (memory, late) = (fields.number()?, fields.number()? != 0);
        let stream = fields.number()?..fields.number()?;
        let mut contents = Vec::new();
        for _ in 0..fields.count(40)? {
            contents.push((ContentDigest(fields.array()?), fields.number()?));
        }
        let mut of = HashSet::new();
        for _ in 0..fields.count(32)? {
            of.insert(ContentDigest(fields.array()?));
        }
        groups.push(Offer { memory, late, stream, contents });
        needs.push(of);
    }
    Ok(Opened { to, length, manifest, groups, needs })
}

pub(super) fn leavings(fields: &mut Taken<'_>) -> io::Result<Leavings> {
    let mut left = Vec::new();
    for _ in 0..fields.count(56)? {
        let digest = ContentDigest(fields.array()?);
        let size = fields.number()?;
        let why = match (fields.number()?, fields.number()?) {
            (0, bytes) => Left::Memory(bytes),
            (1, _) => Left::Stream,
            (2, _) => Left::Missing,
            (3, _) => Left::Wrong,
            _ => return Err(broken()),
        };
        left.push((digest, size, why));
    }
    Ok(left)
}
