//! Writes a pack: contents go in one after the other, frames come out in the same
//! order, compressed by several threads.
//!
//! ```text
//! caller: contents -> frames --jobs--> n workers: zstd, SHA-256
//!                        \--slots--> writer: takes each frame's result in order,
//!                                    appends it to packs/.pack.new
//! ```
//!
//! The queue of slots is bounded, so memory is (QUEUE + threads) frames, decoded and
//! stored. What a frame holds and how it is compressed depends on the contents alone,
//! never on timing: the same contents in the same order give the same pack.
//!
//! A large content is compressed before its digest is known. If an earlier pack turns
//! out to hold it, the writer cuts the file back to where the content began.

use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use varve_format::pack::{Location, MAX_FRAME, PACK_MAGIC, PackIndex};
use varve_format::release::PackRef;
use varve_format::{ContentDigest, Sha256Digest};
use varve_sys::{Dir, NewFile, durable};

use crate::error::{BuildError, Result};

/// Decoded bytes in a frame of a content that has several, so that a download that was
/// cut loses no more than this.
pub(crate) const LARGE_FRAME: usize = 256 << 10;
/// Frames that may be under way beside those in the workers' hands.
const QUEUE: usize = 4;
/// How much of a frame is tried first, at the fastest level.
const SAMPLE: usize = 64 << 10;
/// The file under way.
const TEMPORARY: &str = ".pack.new";

/// Takes contents. See [`write_pack`].
pub(crate) struct Packer {
    jobs: Sender<Job>,
    slots: SyncSender<Slot>,
    /// Frames under way, one for each kind of content.
    open: [Frame; KINDS],
    /// The number of the next frame.
    next: u32,
    contents: Vec<Location>,
}

/// Contents of one kind share frames: they compress better together, and what is
/// compressed already does not spoil the frame of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Plain,
    Compressed,
}

const KINDS: usize = 2;

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
pub(crate) struct Large {
    first: u32,
    bytes: Vec<u8>,
}

/// A pack that is written and synced under a temporary name.
pub(crate) struct Written {
    reference: PackRef,
    index: Vec<u8>,
}

impl Class {
    /// By the first bytes of a content.
    pub(crate) fn of(start: &[u8]) -> Self {
        const COMPRESSED: [&[u8]; 8] = [
            b"\x1f\x8b",
            b"\xfd7zXZ\0",
            b"\x28\xb5\x2f\xfd",
            b"BZh",
            b"PK\x03\x04",
            b"\x89PNG",
            b"\xff\xd8\xff",
            b"wOF2",
        ];
        if COMPRESSED.iter().any(|magic| start.starts_with(magic)) {
            Self::Compressed
        } else {
            Self::Plain
        }
    }
}

/// Runs `body` with a [`Packer`] and writes what it puts in to the directory `packs`,
/// under a temporary name. None for the pack when `body` put nothing in.
pub(crate) fn write_pack<T>(
    packs: &Dir,
    level: i32,
    threads: usize,
    body: impl FnOnce(&mut Packer) -> Result<T>,
) -> Result<(T, Option<Written>)> {
    let (jobs, job_queue) = mpsc::channel();
    let (slots, slot_queue) = mpsc::sync_channel(QUEUE + threads);
    let job_queue = Arc::new(Mutex::new(job_queue));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let queue = Arc::clone(&job_queue);
            scope.spawn(move || work(&queue, level));
        }
        let writer = scope.spawn(move || write(packs, &slot_queue));
        let mut packer =
            Packer { jobs, slots, open: Default::default(), next: 0, contents: Vec::new() };
        let result = body(&mut packer).and_then(|value| {
            for kind in 0..KINDS {
                packer.flush(kind)?;
            }
            Ok(value)
        });
        let Packer { jobs, slots, contents, .. } = packer;
        drop((jobs, slots));
        // The writer's error is the cause where the caller only saw a closed queue.
        let written = writer.join().map_err(|_| BuildError::Worker)?;
        let value = match (result, &written) {
            (Err(BuildError::Worker), Err(_)) => return Err(written.err().expect("matched")),
            (result, _) => result?,
        };
        Ok((value, finish(written?, contents)?))
    })
}

impl Packer {
    /// Puts in a content that is all here and not empty.
    pub(crate) fn add(&mut self, digest: ContentDigest, bytes: &[u8]) -> Result<()> {
        if bytes.len() > MAX_FRAME as usize {
            let mut large = self.begin()?;
            self.extend(&mut large, bytes)?;
            return self.keep(large, digest, bytes.len() as u64);
        }
        let kind = Class::of(bytes) as usize;
        if self.open[kind].bytes.len() + bytes.len() > MAX_FRAME as usize {
            self.flush(kind)?;
        }
        let frame = &mut self.open[kind];
        frame.contents.push((digest, bytes.len() as u64, frame.bytes.len() as u32));
        frame.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Begins a content of more than one frame whose digest is not known yet.
    pub(crate) fn begin(&mut self) -> Result<Large> {
        self.slots.send(Slot::Begin).map_err(|_| BuildError::Worker)?;
        Ok(Large { first: self.next, bytes: Vec::new() })
    }

    /// The next bytes of it.
    pub(crate) fn extend(&mut self, large: &mut Large, mut bytes: &[u8]) -> Result<()> {
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
    pub(crate) fn keep(&mut self, large: Large, digest: ContentDigest, size: u64) -> Result<()> {
        if !large.bytes.is_empty() {
            self.send(large.bytes)?;
        }
        self.contents.push(Location { digest, size, frame: large.first, start: 0 });
        Ok(())
    }

    /// The content is complete and is not needed.
    pub(crate) fn discard(&mut self, large: Large) -> Result<()> {
        self.next = large.first;
        self.slots.send(Slot::Drop).map_err(|_| BuildError::Worker)
    }

    fn flush(&mut self, kind: usize) -> Result<()> {
        let Frame { bytes, contents } = std::mem::take(&mut self.open[kind]);
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
        self.slots.send(Slot::Frame(slot)).map_err(|_| BuildError::Worker)?;
        self.jobs.send(Job { bytes, result }).map_err(|_| BuildError::Worker)?;
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
            Ok(compressors) => compressors.frame(&bytes).map_err(BuildError::Compress),
            Err(error) => Err(BuildError::Compress(std::io::Error::other(error.to_string()))),
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

fn write(packs: &Dir, slots: &Receiver<Slot>) -> Result<Output> {
    packs.remove_all(TEMPORARY)?;
    let mut file = packs.create_file(TEMPORARY, 0o644)?;
    file.write_all(PACK_MAGIC)?;
    let sha256 = Sha256::new_with_prefix(PACK_MAGIC);
    let mut out = Output { file, length: PACK_MAGIC.len() as u64, sha256, frames: Vec::new() };
    let mut begun = None;
    for slot in slots {
        match slot {
            Slot::Frame(result) => {
                let stored = result.recv().map_err(|_| BuildError::Worker)??;
                out.file.write_all(&stored.bytes)?;
                out.sha256.update(&stored.bytes);
                out.length += stored.bytes.len() as u64;
                out.frames.push((stored.bytes.len() as u32, stored.size, stored.sha256));
            }
            Slot::Begin => begun = Some((out.length, out.sha256.clone(), out.frames.len())),
            Slot::Drop => {
                let (length, sha256, frames) = begun.take().expect("begun before");
                out.file.set_length(length)?;
                out.file.seek_to(length)?;
                out.frames.truncate(frames);
                (out.length, out.sha256) = (length, sha256);
            }
        }
    }
    Ok(out)
}

fn finish(out: Output, contents: Vec<Location>) -> Result<Option<Written>> {
    if contents.is_empty() {
        return Ok(None);
    }
    out.file.sync()?;
    let id = Sha256Digest(out.sha256.finalize().into());
    let index = PackIndex::new(out.frames, contents).map_err(BuildError::Index)?.to_bytes();
    let index_sha256 = Sha256Digest::of(&index);
    let index_size = index.len() as u64;
    let reference = PackRef { id, size: out.length, index_sha256, index_size };
    Ok(Some(Written { reference, index }))
}

impl Written {
    pub(crate) fn reference(&self) -> PackRef {
        self.reference
    }

    /// Gives pack and index their names, durably. Nothing reads them until a record
    /// names them; the same bytes may be there from a build that was killed.
    pub(crate) fn commit(&self, packs: &Dir) -> Result<()> {
        let id = self.reference.id;
        durable::replace_file(packs, &format!("{id}.idx"), &self.index, 0o644)?;
        packs.rename_over(TEMPORARY, packs, format!("{id}.pack"))?;
        durable::sync_directory(packs)?;
        Ok(())
    }
}

/// Removes the temporary of a pack that turned out to be empty.
pub(crate) fn remove_temporary(packs: &Dir) -> Result<()> {
    Ok(packs.remove_all(TEMPORARY)?)
}
