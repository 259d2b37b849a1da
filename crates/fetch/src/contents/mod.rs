//! Contents from packs: planned, fetched in ranges, each frame checked before it is
//! decoded, each content checked before it counts, kept across power cuts.
//!
//! ```text
//!  network thread          decode thread                 caller's thread
//!  FileReader -> SHA-256   zstd, bounded -> fs-verity    write, sync, rename
//!        `--- 4 frames -------^     `------ 4 frames --------^
//! ```
//!
//! Frames hold at most 1 MiB, so the queues bound the memory. A bad frame is asked from
//! the next source; nothing that is not verified is ever decoded, and nothing that is not
//! durable ever carries its digest as its name. An error or a cancel stops the network
//! first: what has arrived is still checked, written and kept.
//!
//! Called by the update manager's `upgrade`, and by `fsck` for what it repairs.

mod plan;
pub(crate) mod store;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use varve_format::pack::{MAX_FRAME, PackIndex};
use varve_format::release::PackRef;
use varve_format::verity::ContentHasher;
use varve_format::{ContentDigest, Sha256Digest};
use varve_sys::task::{Cancel, Progress, Unit};
use varve_sys::{Dir, SysError, faults};

pub use plan::Plan;
pub use store::{BATCH_BYTES, BATCH_TIME};

use crate::metadata::Verified;
use crate::sources::{FetchError, Sources, Traffic};
use crate::transport::TransportError;
use crate::worker::WorkerError;
use plan::{Item, Job, PackJobs};
use store::{Here, Store};

/// Frames that wait between two threads.
const QUEUE: usize = 4;
/// The most frames that are on their way at once: one being read, one that waits for a place
/// in the first queue, the two queues, one being decoded and one being written.
pub(crate) const ON_THE_WAY: usize = QUEUE * 2 + 4;
/// Bytes of disk that what is on its way takes beside the contents, at most.
pub const ON_THE_WAY_BYTES: u64 = ON_THE_WAY as u64 * MAX_FRAME as u64;

/// Why contents are still missing. What was verified before is kept in all cases.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// The user cancelled.
    #[error("cancelled; what was fetched and verified is kept")]
    Cancelled,
    /// No source gave a pack's bytes.
    #[error(transparent)]
    Fetch(FetchError),
    /// No pack of the release holds a content of its manifest.
    #[error("no pack of the release holds the content {digest}")]
    NotInPacks {
        /// The content.
        digest: ContentDigest,
    },
    /// Manifest and index disagree.
    #[error(
        "content {digest} has {manifest} bytes by the manifest and {index} by the pack's index"
    )]
    OtherSize {
        /// The content.
        digest: ContentDigest,
        /// Its length in the manifest.
        manifest: u64,
        /// Its length in the index.
        index: u64,
    },
    /// A frame has the right digest, and does not decode to what the index says.
    #[error("a frame at byte {offset} of pack {pack} does not decode to {size} bytes: {reason}")]
    BadFrame {
        /// The pack.
        pack: Sha256Digest,
        /// Where in it.
        offset: u64,
        /// How many bytes the index says.
        size: u32,
        /// What the decoder says.
        reason: String,
    },
    /// A pack holds another content than its index says.
    #[error("pack {pack} holds other bytes than those of content {digest}")]
    WrongContent {
        /// The pack.
        pack: Sha256Digest,
        /// The content that the index names.
        digest: ContentDigest,
    },
    /// What was fetched could not be decoded.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The disk.
    #[error("cannot keep what was fetched")]
    Store(#[from] SysError),
}

impl From<FetchError> for ContentsError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Cancelled => Self::Cancelled,
            error => Self::Fetch(error),
        }
    }
}

/// What a fetch moved.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Requests made and bytes received, over the network or from a stick.
    pub traffic: Traffic,
    /// Contents that are complete now and were not before.
    pub contents: u64,
    /// Bytes of contents that were written.
    pub written: u64,
    /// Bytes of contents that an earlier run had left, and that were not fetched again.
    pub reused: u64,
}

/// Plans what to fetch for the contents `wanted` (digest and length, each once): what is
/// in `incoming` already, or partly, is not planned again. `packs` are in the order of the
/// release record, newest first.
pub fn plan(
    wanted: impl IntoIterator<Item = (ContentDigest, u64)>,
    packs: Vec<(PackRef, Verified<PackIndex>)>,
    incoming: &Dir,
    sources: &Sources,
) -> Result<Plan, ContentsError> {
    let here = Here::scan(incoming)?;
    let packs: Vec<_> = packs.into_iter().map(|(pack, index)| (pack, index.into_inner())).collect();
    Plan::make(wanted, &packs, &here, sources.read_over())
}

/// Fetches what `plan` says into `incoming`, where each content stands under its digest
/// when this returns. The report tells what was moved, also when it ends with an error.
pub fn fetch(
    plan: &Plan,
    sources: &Sources,
    incoming: &Dir,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> (Report, Result<(), ContentsError>) {
    let before = sources.traffic();
    progress.begin("fetching", Unit::Bytes, Some(plan.bytes()));
    let mut store = Store::new(incoming);
    let mut result = run(plan, sources, incoming, &mut store, progress, cancel);
    let mut report = Report { reused: plan.reused(), ..Report::default() };
    (report.contents, report.written) = (store.contents, store.content_bytes);
    match store.close() {
        Ok((contents, written)) => (report.contents, report.written) = (contents, written),
        Err(error) if result.is_ok() => result = Err(error.into()),
        Err(_) => {}
    }
    progress.end();
    let after = sources.traffic();
    report.traffic =
        Traffic { requests: after.requests - before.requests, bytes: after.bytes - before.bytes };
    (report, result)
}

/// A frame's stored bytes, checked.
struct Stored<'a> {
    pack: &'a PackRef,
    job: &'a Job,
    bytes: Vec<u8>,
}

/// A frame's decoded bytes, and which contents come to an end in it.
struct Decoded<'a> {
    job: &'a Job,
    bytes: Vec<u8>,
    /// One for each piece of the job.
    verdicts: Vec<Verdict>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// More of the content is to come.
    GoesOn,
    /// The content is complete and right.
    Complete,
    /// The content is complete and wrong.
    Wrong,
}

fn run(
    plan: &Plan,
    sources: &Sources,
    incoming: &Dir,
    store: &mut Store<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(), ContentsError> {
    // The network has a flag of its own: it is stopped by an error here too.
    let stop = Cancel::new();
    std::thread::scope(|scope| {
        let (to_decoder, from_network) = sync_channel(QUEUE);
        let (to_writer, from_decoder) = sync_channel(QUEUE);
        let network = {
            let stop = &stop;
            scope.spawn(move || receive(plan, sources, &to_decoder, progress, stop))
        };
        let decoder =
            scope.spawn(move || decode(plan, sources, incoming, &from_network, &to_writer));
        let written = write(plan, store, &from_decoder, cancel, || stop.cancel());
        drop(from_decoder);
        if written.is_err() {
            stop.cancel();
        }
        let decoded = join(decoder);
        if decoded.is_err() {
            stop.cancel();
        }
        let received = join(network);
        written.and(decoded).and(received)
    })
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The network thread: frames in order, each checked against the index.
fn receive<'a>(
    plan: &'a Plan,
    sources: &Sources,
    out: &SyncSender<Stored<'a>>,
    progress: &dyn Progress,
    stop: &Cancel,
) -> Result<(), ContentsError> {
    for PackJobs { pack, jobs } in &plan.packs {
        let mut reader = sources.reader(&pack.path(), stop);
        reader.expect(runs(jobs));
        let mut at: Option<(u64, u64)> = None;
        for job in jobs {
            let start = job.frame.offset;
            let end = start + u64::from(job.frame.stored);
            let mut bytes = Vec::with_capacity(job.frame.stored as usize);
            loop {
                bytes.clear();
                reader.read(start..end, job.until, &mut bytes)?;
                if faults::out("check.frame") || Sha256Digest::of(&bytes) == job.frame.sha256 {
                    break;
                }
                reader.reject(TransportError::WrongDigest)?;
            }
            // A gap that this request reads over counts as done with the frame behind it.
            let from = at.filter(|(until, _)| *until == job.until).map_or(start, |(_, end)| end);
            progress.advance(end - from);
            at = Some((job.until, end));
            if out.send(Stored { pack, job, bytes }).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The requests that jobs are grouped into.
fn runs(jobs: &[Job]) -> impl Iterator<Item = Range<u64>> {
    jobs.chunk_by(|a, b| a.until == b.until)
        .map(|run| run[0].frame.offset..run[run.len() - 1].until)
}

/// The decode thread: has frames decoded within the bounds of the index, and digests
/// contents.
fn decode<'a>(
    plan: &'a Plan,
    sources: &Sources,
    incoming: &Dir,
    frames: &Receiver<Stored<'a>>,
    out: &SyncSender<Decoded<'a>>,
) -> Result<(), ContentsError> {
    let decoder = sources.decoder(u64::from(MAX_FRAME))?;
    let mut hashers = HashMap::new();
    for Stored { pack, job, bytes: stored } in frames {
        let size = job.frame.size;
        let bad = |reason: String| ContentsError::BadFrame {
            pack: pack.id,
            offset: job.frame.offset,
            size,
            reason,
        };
        let bytes = match decoder.frame(&stored, u64::from(size)) {
            Err(WorkerError::Refused { reason }) => return Err(bad(reason)),
            decoded => decoded?,
        };
        drop(stored);
        if bytes.len() != size as usize {
            return Err(bad(format!("it has {}", bytes.len())));
        }
        let mut verdicts = Vec::with_capacity(job.pieces.len());
        let mut wrong = None;
        for piece in &job.pieces {
            let item = &plan.items[piece.item];
            let hasher = match hashers.entry(piece.item) {
                Entry::Occupied(begun) => begun.into_mut(),
                Entry::Vacant(new) => new.insert(digest_part(incoming, item)?),
            };
            hasher.update(&bytes[piece.start..piece.start + piece.length]);
            verdicts.push(if hasher.size() < item.size {
                Verdict::GoesOn
            } else if hashers.remove(&piece.item).map(ContentHasher::finish) == Some(item.digest)
                || faults::out("check.content")
            {
                Verdict::Complete
            } else {
                wrong = Some(item.digest);
                Verdict::Wrong
            });
        }
        if out.send(Decoded { job, bytes, verdicts }).is_err() {
            return Ok(());
        }
        if let Some(digest) = wrong {
            return Err(ContentsError::WrongContent { pack: pack.id, digest });
        }
    }
    Ok(())
}

/// A hasher that has seen what an earlier run left of a content.
fn digest_part(incoming: &Dir, item: &Item) -> Result<ContentHasher, SysError> {
    let mut hasher = ContentHasher::new();
    if item.resume == 0 {
        return Ok(hasher);
    }
    let name = store::part_name(&item.digest, item.resume_name);
    let mut file = incoming.open_file(&name)?.take(item.resume);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SysError::new("read", incoming.path().join(&name), error)),
        }
    }
}

/// The caller's thread: writes until the decoder has no more.
fn write(
    plan: &Plan,
    store: &mut Store<'_>,
    frames: &Receiver<Decoded<'_>>,
    cancel: &Cancel,
    stop: impl Fn(),
) -> Result<(), ContentsError> {
    let mut cancelled = false;
    loop {
        if !cancelled && cancel.is_cancelled() {
            cancelled = true;
            stop();
        }
        let Decoded { job, bytes, verdicts } = match frames.recv_timeout(Duration::from_millis(100))
        {
            Ok(frame) => frame,
            Err(RecvTimeoutError::Timeout) => {
                store.commit_if_due()?;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        for (piece, verdict) in job.pieces.iter().zip(verdicts) {
            let item = &plan.items[piece.item];
            let bytes = &bytes[piece.start..piece.start + piece.length];
            let is_whole = piece.length as u64 == item.size;
            match verdict {
                Verdict::Complete if is_whole => store.whole(item.digest, bytes)?,
                Verdict::Wrong if is_whole => {}
                Verdict::Wrong => store.drop_part(&item.digest, item.resume_name),
                Verdict::GoesOn | Verdict::Complete => {
                    store.piece(item.digest, item.resume_name, piece.offset, bytes)?;
                    if verdict == Verdict::Complete {
                        store.finish_part()?;
                    }
                }
            }
        }
    }
}
