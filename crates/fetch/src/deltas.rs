//! Deltas: fetched in grains that are kept across cuts, and applied into `incoming/`.
//!
//! ```text
//! list (signed) -> incoming/<id>.delta   an image of the file, with holes
//!                    table | grain | ..hole.. | grain | part of a grain
//!   head    -> the new manifest, what each group makes
//!   groups  -> old contents + streams -> contents, each verified -> incoming/<digest>
//! ```
//!
//! Nothing is written down about which grains are here: each is held against its digest
//! when the file is opened. So a cut at any moment loses what was not yet on the disk, and
//! nothing that is wrong is ever used. Bytes are written as they come, so that a process
//! which is killed goes on within a grain.
//!
//! Called by the update manager.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use varve_format::delta::{DeltaList, DeltaRef, GRAIN, MAX_LIST};
use varve_format::{ContentDigest, ReleaseDigest, Sha256Digest, verity};
use varve_sys::task::{Cancel, Progress, Unit};
use varve_sys::{Dir, NewFile, SysError, durable, faults};

use crate::contents::store::{self, Here, Store};
use crate::contents::{BATCH_BYTES, BATCH_TIME, ContentsError};
use crate::metadata::{DocumentError, ReleaseRef, Verified, bound};
use crate::sources::{FileReader, Sources};
use crate::transport::TransportError;
use crate::worker::WorkerError;
use crate::worker::decoder::{self, Decoder, Leavings, Opened};

pub use varve_delta::{Left, Offer};

/// Bytes that are written at a time, and the most that a killed process has to fetch again.
const PIECE: u64 = 16 << 10;

/// Why a delta is of no use. What was verified is kept.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// It could not be fetched, or not be kept.
    #[error(transparent)]
    Contents(#[from] ContentsError),
    /// Its bytes are right, and it does not do what it should, or ends the worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// It is not the delta that the list describes.
    #[error("the delta {id} is not the one that its list describes")]
    Other {
        /// Which.
        id: Sha256Digest,
    },
}

impl From<SysError> for DeltaError {
    fn from(error: SysError) -> Self {
        Self::Contents(error.into())
    }
}

/// Fetches and checks the list of the deltas that lead to a release; empty when there is none.
pub fn list(
    release: &ReleaseRef,
    sources: &Sources,
    cancel: &Cancel,
) -> Result<Verified<Vec<DeltaRef>>, DocumentError> {
    let Some(reference) = release.deltas else { return Ok(Verified::new(Vec::new())) };
    let path = reference.path();
    bound(&path, reference.size, MAX_LIST)?;
    let bytes = sources.fetch_exact(&path, reference.size, reference.sha256, cancel)?;
    let list = DeltaList::parse(&bytes)
        .map_err(|source| DocumentError::Deltas { path: path.clone(), source })?;
    if list.to != release.digest {
        return Err(DocumentError::OtherRelease { name: release.name.clone() });
    }
    Ok(Verified::new(list.deltas))
}

/// The name of a delta under way in `incoming/`.
pub fn file_name(id: &Sha256Digest) -> String {
    format!("{id}.delta")
}

/// Removes deltas that an earlier upgrade left and that this one does not use.
pub fn sweep(incoming: &Dir, used: &[Sha256Digest]) -> Result<(), SysError> {
    for entry in incoming.names()? {
        let id = entry.name.to_str().and_then(|name| name.strip_suffix(".delta")?.parse().ok());
        if id.is_some_and(|id: Sha256Digest| !used.contains(&id)) {
            incoming.unlink(&entry.name)?;
        }
    }
    Ok(())
}

/// A delta in `incoming/`, as far as it is here.
pub struct DeltaFile {
    incoming: Dir,
    delta: DeltaRef,
    /// The grains' digests; empty while they are not here.
    table: Vec<u8>,
    /// Which grains are here and right.
    here: Vec<bool>,
    /// A grain of which the first bytes are here, and how many.
    part: Option<(usize, u64)>,
}

impl DeltaFile {
    /// Sees what of a delta is here.
    pub fn open(incoming: &Dir, delta: &DeltaRef) -> Result<Self, SysError> {
        let mut this = Self {
            incoming: incoming.try_clone()?,
            delta: delta.clone(),
            table: Vec::new(),
            here: vec![false; delta.grains() as usize],
            part: None,
        };
        let name = file_name(&delta.id);
        let Some(stat) = incoming.stat_opt(&name)? else { return Ok(this) };
        let file = incoming.open_file(&name)?;
        let read = |range: Range<u64>| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut bytes, range.start).is_ok().then_some(bytes)
        };
        let is_table =
            |table: &[u8]| faults::out("check.grain_table") || Sha256Digest::of(table) == delta.id;
        let table = read(0..delta.table()).filter(|table| is_table(table));
        let Some(table) = table else { return Ok(this) };
        this.table = table;
        for grain in 0..this.here.len() {
            let range = this.grain(grain);
            if range.end <= stat.size {
                let right = |bytes: Vec<u8>| {
                    faults::out("check.grain") || Sha256Digest::of(&bytes).0 == *this.digest(grain)
                };
                this.here[grain] = read(range).is_some_and(right);
            } else if range.start < stat.size {
                this.part = Some((grain, stat.size - range.start));
            }
        }
        Ok(this)
    }

    /// Where a grain stands in the file.
    fn grain(&self, grain: usize) -> Range<u64> {
        let start = grain as u64 * GRAIN;
        let table = self.delta.table();
        table + start..table + (start + GRAIN).min(self.delta.size)
    }

    fn digest(&self, grain: usize) -> &[u8] {
        &self.table[grain * 32..grain * 32 + 32]
    }

    /// Grains that these bytes of the delta lie in and that are not here.
    fn missing_grains(&self, ranges: &[Range<u64>]) -> Vec<usize> {
        let of = |range: &Range<u64>| {
            let end =
                if range.is_empty() { range.start } else { range.end.div_ceil(GRAIN) * GRAIN };
            (range.start / GRAIN) as usize..(end / GRAIN) as usize
        };
        let mut grains: Vec<usize> = ranges.iter().flat_map(of).collect();
        grains.sort_unstable();
        grains.dedup();
        grains.retain(|&grain| self.here.get(grain) == Some(&false));
        grains
    }

    /// Bytes to fetch so that these of the delta are here.
    pub fn missing(&self, ranges: &[Range<u64>]) -> u64 {
        let grains = self.missing_grains(ranges);
        let of = |&grain: &usize| {
            let range = self.grain(grain);
            let part = self.part.filter(|part| part.0 == grain).map_or(0, |part| part.1);
            range.end - range.start - part
        };
        let table = if self.table.is_empty() { self.delta.table() } else { 0 };
        table + grains.iter().map(of).sum::<u64>()
    }

    /// Requests that this takes.
    pub fn requests(&self, ranges: &[Range<u64>]) -> u64 {
        let grains = self.missing_grains(ranges);
        grains
            .iter()
            .enumerate()
            .filter(|(at, grain)| *at == 0 || grains[at - 1] + 1 != **grain)
            .count() as u64
    }

    /// Fetches so that these bytes of the delta are here, each grain verified.
    pub fn fetch(
        &mut self,
        ranges: &[Range<u64>],
        sources: &Sources,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<(), ContentsError> {
        let grains = self.missing_grains(ranges);
        if grains.is_empty() {
            return Ok(());
        }
        let name = file_name(&self.delta.id);
        let mut file = match self.incoming.stat_opt(&name)? {
            Some(_) => self.incoming.edit_file(&name)?,
            None => self.incoming.create_file(&name, 0o600)?,
        };
        progress.begin("fetching a delta", Unit::Bytes, Some(self.missing(ranges)));
        let mut reader = sources.reader(&self.delta.path(), cancel);
        let result = self.fetch_grains(&grains, &mut reader, &mut file, progress);
        progress.end();
        // What came is kept, also when the rest did not.
        file.sync()?;
        durable::sync_directory(&self.incoming)?;
        result
    }

    fn fetch_grains(
        &mut self,
        grains: &[usize],
        reader: &mut FileReader<'_>,
        file: &mut NewFile,
        progress: &dyn Progress,
    ) -> Result<(), ContentsError> {
        let runs_on = |at: usize| grains.get(at + 1) == Some(&(grains[at] + 1));
        let until = |at: usize| {
            let last = (at..grains.len()).find(|&at| !runs_on(at)).unwrap_or(at);
            self.grain(grains[last]).end
        };
        let ends: Vec<u64> = (0..grains.len()).map(until).collect();
        if self.table.is_empty() {
            let length = self.delta.table();
            // The digests and the first grains come in one request.
            let end = if grains[0] == 0 { ends[0] } else { length };
            loop {
                let mut table = Vec::new();
                reader.read(0..length, end, &mut table)?;
                if Sha256Digest::of(&table) == self.delta.id {
                    file.set_length(0)?;
                    file.seek_to(0)?;
                    file.write_all(&table)?;
                    progress.advance(length);
                    self.table = table;
                    break;
                }
                reader.reject(TransportError::WrongDigest)?;
            }
        }
        let (mut unsynced, mut since) = (0, Instant::now());
        for (&grain, &until) in grains.iter().zip(&ends) {
            let range = self.grain(grain);
            let mut bytes = self.part_of(grain);
            file.seek_to(range.start + bytes.len() as u64)?;
            while (bytes.len() as u64) < range.end - range.start {
                let at = range.start + bytes.len() as u64;
                let before = bytes.len();
                reader.read(at..(at + PIECE).min(range.end), until, &mut bytes)?;
                file.write_all(&bytes[before..])?;
                progress.advance((bytes.len() - before) as u64);
            }
            while !faults::out("check.grain_fetched")
                && Sha256Digest::of(&bytes).0 != *self.digest(grain)
            {
                // Of a grain in two parts the first may have rotted: once more as a whole,
                // and if that is wrong too, from another source.
                bytes.clear();
                reader.read(range.clone(), until, &mut bytes)?;
                if Sha256Digest::of(&bytes).0 == *self.digest(grain) {
                    file.seek_to(range.start)?;
                    file.write_all(&bytes)?;
                } else {
                    file.set_length(range.start)?;
                    reader.reject(TransportError::WrongDigest)?;
                }
            }
            self.here[grain] = true;
            unsynced += range.end - range.start;
            if unsynced >= BATCH_BYTES - GRAIN || since.elapsed() >= BATCH_TIME {
                file.sync()?;
                durable::sync_directory(&self.incoming)?;
                (unsynced, since) = (0, Instant::now());
            }
        }
        Ok(())
    }

    /// The first bytes of a grain that an earlier run left.
    fn part_of(&mut self, grain: usize) -> Vec<u8> {
        let part = self.part.take_if(|part| part.0 == grain).map_or(0, |part| part.1);
        let start = self.grain(grain).start;
        self.bytes(start..start + part).unwrap_or_default()
    }

    fn bytes(&self, range: Range<u64>) -> Option<Vec<u8>> {
        let file = self.incoming.open_file(file_name(&self.delta.id)).ok()?;
        let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
        file.read_exact_at(&mut bytes, range.start).ok()?;
        Some(bytes)
    }
}

impl DeltaFile {
    /// These bytes of the delta, if they are here.
    fn read(&self, range: Range<u64>) -> Option<Vec<u8>> {
        if range.start > range.end
            || range.end > self.delta.size
            || !self.missing_grains(std::slice::from_ref(&range)).is_empty()
        {
            return None;
        }
        let table = self.delta.table();
        self.bytes(table + range.start..table + range.end)
    }
}

/// A delta whose head is here, read by a worker against the release it starts from.
pub struct OpenDelta {
    file: DeltaFile,
    opened: Opened,
    memory: u64,
    decoder: Decoder,
}

/// What is opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The delta.
    pub delta: &'a DeltaRef,
    /// The release that it leads to.
    pub to: ReleaseDigest,
    /// The text of the manifest of the release that it starts from.
    pub old_manifest: &'a [u8],
    /// Bytes of memory that the making of its contents may take.
    pub memory: u64,
}

/// Gives old contents, from wherever the device has them.
pub type Old<'a> = &'a (dyn Fn(&ContentDigest) -> io::Result<Option<Vec<u8>>> + Sync);

impl OpenDelta {
    /// Fetches a delta's head and has it read against the manifest of the release it
    /// starts from.
    pub fn open(
        incoming: &Dir,
        wanted: Opening<'_>,
        sources: &Sources,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Self, DeltaError> {
        let Opening { delta, to, old_manifest, memory } = wanted;
        let mut file = DeltaFile::open(incoming, delta)?;
        let head = 0..delta.head;
        file.fetch(std::slice::from_ref(&head), sources, progress, cancel)?;
        let other = || DeltaError::Other { id: delta.id };
        let bytes = file.read(head).ok_or_else(other)?;
        let decoder = sources.decoder(memory)?;
        let opened = decoder.open(&bytes, old_manifest)?;
        // The groups' streams stand behind the head, one behind the other.
        let mut at = delta.head;
        let mut stands = |(group, size): (&Offer, u64)| {
            let start = at;
            at = start.saturating_add(size);
            group.stream == (start..at)
        };
        let stated = delta.groups.iter().map(|group| group.size);
        if opened.length != delta.size
            || opened.to != to
            || Sha256Digest::of(&opened.manifest).0 != to.0
            || opened.groups.len() != delta.groups.len()
            || !opened.groups.iter().zip(stated).all(&mut stands)
        {
            return Err(other());
        }
        Ok(Self { file, opened, memory, decoder })
    }

    /// The new manifest's text.
    pub fn manifest(&self) -> &[u8] {
        &self.opened.manifest
    }

    /// Length of the whole file, in bytes.
    pub fn file_size(&self) -> u64 {
        self.file.delta.file_size()
    }

    /// The groups, in the order of the delta.
    pub fn groups(&self) -> &[Offer] {
        &self.opened.groups
    }

    /// What these groups are made of.
    pub fn needs(&self, groups: &[usize]) -> HashSet<ContentDigest> {
        let needs = groups.iter().filter_map(|&group| self.opened.needs.get(group));
        needs.flatten().copied().collect()
    }

    fn streams(&self, groups: &[usize]) -> Vec<Range<u64>> {
        groups.iter().filter_map(|&at| Some(self.opened.groups.get(at)?.stream.clone())).collect()
    }

    /// Bytes to fetch for these groups, and in how many requests.
    pub fn missing(&self, groups: &[usize]) -> (u64, u64) {
        let streams = self.streams(groups);
        (self.file.missing(&streams), self.file.requests(&streams))
    }

    /// Fetches these groups.
    pub fn fetch(
        &mut self,
        groups: &[usize],
        sources: &Sources,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<(), ContentsError> {
        let streams = self.streams(groups);
        self.file.fetch(&streams, sources, progress, cancel)
    }

    /// Makes the contents `wanted`, as far as they come out of what is here, into
    /// `incoming/`. What is not made is told, and is to be had another way.
    pub fn apply(
        &self,
        mut wanted: HashSet<ContentDigest>,
        old: Old<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Leavings, DeltaError> {
        let incoming = &self.file.incoming;
        let here = Here::scan(incoming)?.complete;
        wanted.retain(|digest| !here.contains(digest));
        let offered = self.opened.groups.iter().flat_map(|group| &group.contents);
        let sizes: HashMap<_, _> =
            offered.copied().filter(|(digest, _)| wanted.contains(digest)).collect();
        progress.begin("applying a delta", Unit::Bytes, Some(sizes.values().sum()));
        let most = sizes.values().copied().max().unwrap_or(0);
        let mut maker = Maker {
            file: &self.file,
            store: Store::new(incoming),
            failed: None,
            sizes,
            old,
            progress,
            cancel,
        };
        let result = self.decoder.apply(self.memory, &wanted, most, &mut maker);
        progress.end();
        let closed = maker.store.close();
        if let Some(error) = maker.failed {
            return Err(error.into());
        }
        closed?;
        Ok(result?)
    }
}

/// Reads what contents are made of, and keeps what is made, once it is verified.
struct Maker<'a> {
    file: &'a DeltaFile,
    store: Store<'a>,
    failed: Option<ContentsError>,
    /// What is to be made, with its length.
    sizes: HashMap<ContentDigest, u64>,
    old: Old<'a>,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

impl decoder::Maker for Maker<'_> {
    fn content(&mut self, digest: &ContentDigest) -> io::Result<Option<Vec<u8>>> {
        // What was made now may not have its name yet.
        for name in [digest.to_hex(), store::new_name(digest)] {
            match self.file.incoming.read_opt(&name, u64::MAX >> 1) {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        (self.old)(digest)
    }

    fn stream(&mut self, range: Range<u64>) -> io::Result<Option<Vec<u8>>> {
        Ok(self.file.read(range))
    }

    fn made(&mut self, digest: &ContentDigest, bytes: &[u8]) -> io::Result<()> {
        if self.failed.is_some() {
            return Err(io::Error::other("what came before could not be kept"));
        }
        let asked = self.sizes.get(digest) == Some(&(bytes.len() as u64));
        if !asked || verity::content_digest(bytes) != *digest {
            return Err(io::Error::other("it is not what was asked for"));
        }
        let kept = match self.cancel.is_cancelled() {
            true => Err(ContentsError::Cancelled),
            false => self.store.whole(*digest, bytes).map_err(ContentsError::Store),
        };
        if let Err(error) = kept {
            self.failed = Some(error);
            return Err(io::Error::other("it could not be kept"));
        }
        self.progress.advance(bytes.len() as u64);
        Ok(())
    }
}
