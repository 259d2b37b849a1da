//! Writes a pack: contents go in one after the other, frames come out in the same
//! order, compressed by several threads. Format: `docs/format/pack.md`.
//!
//! ```text
//! caller: contents -> frames --jobs--> n workers: zstd, SHA-256
//!                        \--slots--> writer: takes each frame's result in order,
//!                                    appends it to the file
//! ```
//!
//! The queue of slots is bounded, so memory is (QUEUE + threads) frames, decoded and
//! stored, and one decoded for each class of contents. What a frame holds and how it is
//! compressed depends on the contents alone, never on timing: the same contents in the same
//! order give the same pack.
//!
//! A large content is compressed before its digest is known. If an earlier pack turns
//! out to hold it, the writer cuts the file back to where the content began.
//!
//! Callers: the publisher's builds, and the device where it exports a layer.

#![forbid(unsafe_code)]

mod class;

use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use varve_format::pack::{Location, MAX_FRAME, PACK_MAGIC, PackError, PackIndex};
use varve_format::release::PackRef;
use varve_format::{ContentDigest, Sha256Digest};
use varve_sys::{NewFile, SysError};

use class::Class;

/// Decoded bytes in a frame of a content that has several, so that a download that was
/// cut loses no more than this.
pub const LARGE_FRAME: usize = 256 << 10;
/// Frames that may be under way beside those in the workers' hands.
const QUEUE: usize = 4;
/// How much of a frame is tried first, at the fastest level.
const SAMPLE: usize = 64 << 10;

/// Why a pack could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file could not be written.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The compressor failed.
    #[error("cannot compress a frame of the pack")]
    Compress(#[source] std::io::Error),
    /// The pack would pass a bound of its format.
    #[error("the pack does not fit its format")]
    Index(#[source] PackError),
    /// A thread stopped unexpectedly.
    #[error("a worker of the pack stopped before its work was done")]
    Worker,
}

type Result<T> = std::result::Result<T, WriteError>;

/// Takes contents. See [`write_pack`].
pub struct Packer {
    jobs: Sender<Job>,
    slots: SyncSender<Slot>,
    /// Frames under way, by [`Class::number`].
    open: [Frame; Class::COUNT],
    /// The number of the next frame.
    next: u32,
    contents: Vec<Location>,
}

#[derive(Default)]
struct Frame {
    bytes: Vec<u8>,
    /// Digest, size and start of each content in it.
    contents: Vec<(ContentDigest, u64, u32)>,
}

struct Job {
    bytes: Vec<u8>,
    result: SyncSender<Result<Stored>>,
}

struct Stored {
    bytes: Vec<u8>,
    size: u32,
    sha256: Sha256Digest,
}

/// What the writer gets, in the order of the pack.
enum Slot {
    Frame(Receiver<Result<Stored>>),
    /// What follows may have to go again.
    Begin,
    /// What came since `Begin` goes.
    Drop,
}

/// A large content under way.
#[must_use]
pub struct Large {
    first: u32,
    bytes: Vec<u8>,
}

/// A pack that was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// What names it.
    pub reference: PackRef,
    /// The bytes of its index.
    pub index: Vec<u8>,
}

/// Runs `body` with a [`Packer`] and appends the pack of what it puts in to `file`, whose
/// position is `start`. Gives the file back, synced no further than before; none for the
/// pack when `body` put nothing in (then nothing but its magic was written).
///
/// # Errors
/// What `body` gives; and when the file cannot be written, that, whatever `body` gave.
pub fn write_pack<T, E: From<WriteError>>(
    file: NewFile,
    start: u64,
    level: i32,
    threads: usize,
    body: impl FnOnce(&mut Packer) -> std::result::Result<T, E>,
) -> std::result::Result<(T, NewFile, Option<Written>), E> {
    let (jobs, job_queue) = mpsc::channel();
    let (slots, slot_queue) = mpsc::sync_channel(QUEUE + threads);
    let job_queue = Arc::new(Mutex::new(job_queue));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let queue = Arc::clone(&job_queue);
            scope.spawn(move || work(&queue, level));
        }
        let writer = scope.spawn(move || write(file, start, &slot_queue));
        let mut packer =
            Packer { jobs, slots, open: Default::default(), next: 0, contents: Vec::new() };
        let result = body(&mut packer).and_then(|value| {
            for class in 0..Class::COUNT {
                packer.flush(class)?;
            }
            Ok(value)
        });
        let Packer { jobs, slots, contents, .. } = packer;
        drop((jobs, slots));
        // The writer's error is the cause where the caller only saw a closed queue.
        let out = writer.join().map_err(|_| WriteError::Worker)??;
        let value = result?;
        let written = if contents.is_empty() { None } else { Some(out.describe(contents)?) };
        Ok((value, out.file, written))
    })
}

impl Packer {
    /// Puts in a content that is all here and not empty.
    pub fn add(&mut self, digest: ContentDigest, bytes: &[u8]) -> Result<()> {
        if bytes.len() > MAX_FRAME as usize {
            let mut large = self.begin()?;
            self.extend(&mut large, bytes)?;
            return self.keep(large, digest, bytes.len() as u64);
        }
        let class = Class::of(bytes).number();
        if self.open[class].bytes.len() + bytes.len() > MAX_FRAME as usize {
            self.flush(class)?;
        }
        let frame = &mut self.open[class];
        frame.contents.push((digest, bytes.len() as u64, frame.bytes.len() as u32));
        frame.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Begins a content of more than one frame whose digest is not known yet.
    pub fn begin(&mut self) -> Result<Large> {
        self.slots.send(Slot::Begin).map_err(|_| WriteError::Worker)?;
        Ok(Large { first: self.next, bytes: Vec::new() })
    }

    /// The next bytes of it.
    pub fn extend(&mut self, large: &mut Large, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let take = bytes.len().min(LARGE_FRAME - large.bytes.len());
            large.bytes.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if large.bytes.len() == LARGE_FRAME {
                let full = std::mem::replace(&mut large.bytes, Vec::with_capacity(LARGE_FRAME));
                self.send(full)?;
            }
        }
        Ok(())
    }

    /// The content is complete and new.
    pub fn keep(&mut self, large: Large, digest: ContentDigest, size: u64) -> Result<()> {
        if !large.bytes.is_empty() {
            self.send(large.bytes)?;
        }
        self.contents.push(Location { digest, size, frame: large.first, start: 0 });
        Ok(())
    }

    /// The content is complete and is not needed.
    pub fn discard(&mut self, large: Large) -> Result<()> {
        self.next = large.first;
        self.slots.send(Slot::Drop).map_err(|_| WriteError::Worker)
    }

    fn flush(&mut self, class: usize) -> Result<()> {
        let Frame { bytes, contents } = std::mem::take(&mut self.open[class]);
        if bytes.is_empty() {
            return Ok(());
        }
        self.contents.extend(contents.into_iter().map(|(digest, size, start)| Location {
            digest,
            size,
            frame: self.next,
            start,
        }));
        self.send(bytes)
    }

    fn send(&mut self, bytes: Vec<u8>) -> Result<()> {
        let (result, slot) = mpsc::sync_channel(1);
        // The slot first: it waits while too much is under way.
        self.slots.send(Slot::Frame(slot)).map_err(|_| WriteError::Worker)?;
        self.jobs.send(Job { bytes, result }).map_err(|_| WriteError::Worker)?;
        self.next += 1;
        Ok(())
    }
}

fn work(jobs: &Mutex<Receiver<Job>>, level: i32) {
    let mut compressors = Compressors::new(level);
    loop {
        let job = jobs.lock().expect("no holder panics").recv();
        let Ok(Job { bytes, result }) = job else { return };
        let stored = match &mut compressors {
            Ok(compressors) => compressors.frame(&bytes).map_err(WriteError::Compress),
            Err(error) => Err(WriteError::Compress(std::io::Error::other(error.to_string()))),
        };
        // Nobody waits for it once the writer has failed.
        let _ = result.send(stored);
    }
}

struct Compressors {
    fast: zstd::bulk::Compressor<'static>,
    best: zstd::bulk::Compressor<'static>,
    /// Where a frame is compressed to, before a copy of its real length is made.
    room: Vec<u8>,
}

impl Compressors {
    fn new(level: i32) -> std::io::Result<Self> {
        Ok(Self {
            fast: zstd::bulk::Compressor::new(1)?,
            best: zstd::bulk::Compressor::new(level)?,
            room: vec![0; zstd::zstd_safe::compress_bound(MAX_FRAME as usize)],
        })
    }

    /// Bytes that the fastest level cannot shrink are not worth a slow one.
    fn frame(&mut self, bytes: &[u8]) -> std::io::Result<Stored> {
        let sample = &bytes[..bytes.len().min(SAMPLE)];
        let shrunk = self.fast.compress_to_buffer(sample, &mut self.room[..])?;
        let gains = shrunk * 100 < sample.len() * 97;
        let compressor = if gains { &mut self.best } else { &mut self.fast };
        let length = compressor.compress_to_buffer(bytes, &mut self.room[..])?;
        let stored = &self.room[..length];
        let sha256 = Sha256Digest::of(stored);
        Ok(Stored { bytes: stored.to_vec(), size: bytes.len() as u32, sha256 })
    }
}

/// A pack's file and what it holds so far.
struct Output {
    file: NewFile,
    length: u64,
    sha256: Sha256,
    frames: Vec<(u32, u32, Sha256Digest)>,
}

fn write(mut file: NewFile, start: u64, slots: &Receiver<Slot>) -> Result<Output> {
    file.write_all(PACK_MAGIC)?;
    let sha256 = Sha256::new_with_prefix(PACK_MAGIC);
    let mut out = Output { file, length: PACK_MAGIC.len() as u64, sha256, frames: Vec::new() };
    let mut begun = None;
    for slot in slots {
        match slot {
            Slot::Frame(result) => {
                let stored = result.recv().map_err(|_| WriteError::Worker)??;
                out.file.write_all(&stored.bytes)?;
                out.sha256.update(&stored.bytes);
                out.length += stored.bytes.len() as u64;
                out.frames.push((stored.bytes.len() as u32, stored.size, stored.sha256));
            }
            Slot::Begin => begun = Some((out.length, out.sha256.clone(), out.frames.len())),
            Slot::Drop => {
                let (length, sha256, frames) = begun.take().expect("begun before");
                out.file.set_length(start + length)?;
                out.file.seek_to(start + length)?;
                out.frames.truncate(frames);
                (out.length, out.sha256) = (length, sha256);
            }
        }
    }
    Ok(out)
}

impl Output {
    fn describe(&self, contents: Vec<Location>) -> Result<Written> {
        let id = Sha256Digest(self.sha256.clone().finalize().into());
        let index = PackIndex::new(self.frames.iter().copied(), contents);
        let index = index.map_err(WriteError::Index)?.to_bytes();
        let index_sha256 = Sha256Digest::of(&index);
        let index_size = index.len() as u64;
        let reference = PackRef { id, size: self.length, index_sha256, index_size };
        Ok(Written { reference, index })
    }
}
