//! Deltas: made from what the repository holds, proved, offered, checked.
//!
//! ```text
//! packs of both releases -> varve_delta::make -> applied here: every content comes out
//!   -> deltas/<id>.delta -> deltas/<sha256>.json names it -> the signed list names that
//! ```
//!
//! The list of a release's deltas is named by its target in the signed list of releases,
//! not by its record: so deltas can be added to a release that is published, and a reader
//! of before passes them over. What is dear to find about a release's compressed files is
//! remembered in `.cache/`, which nobody serves or needs: a second delta to the same
//! release takes it from there.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use varve_build::repo::{self, ContentReader};
use varve_delta::{Contents, Delta, Limits, MakeLimits, Memo, Sink};
use varve_format::delta::{DeltaList, DeltaRef, FORMAT, GRAIN, GroupCost, MAX_LIST, grain_table};
use varve_format::release::ReleaseRecord;
use varve_format::{ContentDigest, ReleaseName, Sha256Digest};
use varve_sys::task::{Cancel, Progress, Unit};
use varve_sys::{Dir, durable, whole_message};

use crate::error::{PublishError, Result};
use crate::keys::KeyDirs;
use crate::repository::{Published, Repository, published, target_of};

/// Releases of a channel from which a delta leads to a new one, when nobody says.
pub const DEFAULT_DELTAS: usize = 2;

/// Memory for groups under way at one time while a delta is proved, in bytes.
const PROVE_MEMORY: u64 = 1600 << 20;
const MAX_MEMO: u64 = 64 << 20;
const MAX_CONTENT: u64 = 2 << 30;
const CACHE: &str = ".cache";
const MEMO: &str = "delta-settings";

/// A delta that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MadeDelta {
    /// The release it starts from.
    pub from: ReleaseName,
    /// What the list says of it.
    pub delta: DeltaRef,
    /// New contents that it makes, and their bytes.
    pub contents: u64,
    /// See `contents`.
    pub bytes: u64,
    /// Compressed files that stay closed, because no known settings make them again.
    pub closed: u64,
}

impl Repository {
    /// Makes deltas from some releases to another, published or only built, and proves
    /// each by applying it. They are stored, and offered by nobody yet.
    pub fn make_deltas(
        &self,
        from: &[ReleaseName],
        to: &ReleaseName,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Vec<MadeDelta>> {
        let to = self.record(to)?;
        let memo = Remembered::load(&self.dir);
        let mut made = Vec::new();
        for name in from {
            cancel.check()?;
            let from = self.record(name)?;
            if from.digest == to.digest {
                continue;
            }
            made.push(self.make_delta(&from, &to, &memo, progress)?);
            memo.save(&self.dir)?;
        }
        Ok(made)
    }

    fn make_delta(
        &self,
        from: &ReleaseRecord,
        to: &ReleaseRecord,
        memo: &Remembered,
        progress: &dyn Progress,
    ) -> Result<MadeDelta> {
        let old = repo::load_manifest(&self.dir, from)?.to_text();
        let new = repo::load_manifest(&self.dir, to)?.to_text();
        let packs = Packs::open(&self.dir, &[from, to])?;
        let bad = |reason: String| PublishError::Delta {
            from: from.name.clone(),
            to: to.name.clone(),
            reason,
        };
        progress.begin(&format!("making a delta from {}", from.name), Unit::Bytes, None);
        let made = varve_delta::make(&old, &new, &packs, MakeLimits::default(), Some(memo));
        progress.end();
        let (bytes, report) = made.map_err(|error| bad(whole_message(&error)))?;
        progress.begin(&format!("proving the delta from {}", from.name), Unit::Bytes, None);
        let proved = prove(&bytes, &old, &packs);
        progress.end();
        let groups = proved.map_err(bad)?;
        let table = grain_table(&bytes);
        let delta = DeltaRef {
            from: from.digest,
            id: Sha256Digest::of(&table),
            size: bytes.len() as u64,
            head: varve_delta::head_length(&bytes).unwrap_or_default(),
            groups,
        };
        let dir = self.dir.make_dir("deltas", 0o755)?;
        let name = format!("{}.delta", delta.id);
        durable::replace_file(&dir, &name, &[&table[..], &bytes].concat(), 0o644)?;
        Ok(MadeDelta {
            from: from.name.clone(),
            delta,
            contents: report.contents as u64,
            bytes: report.size,
            closed: report.closed.len() as u64,
        })
    }

    /// Offers deltas to a published release, beside those that it has: of two from one
    /// release the new one counts. Signs the list of releases.
    pub fn offer(
        &self,
        to: &ReleaseName,
        made: &[MadeDelta],
        dirs: &KeyDirs,
        now: Timestamp,
    ) -> Result<Published> {
        let tuf = self.tuf()?;
        let all = published(&tuf.targets.signed);
        let missing = || PublishError::NoSuchRelease { name: to.clone() };
        let mut release = all.into_iter().find(|r| r.name == *to).ok_or_else(missing)?;
        self.store_list(&mut release, made)?;
        let mut targets = tuf.targets.signed.clone();
        let (name, target) = target_of(&release)?;
        targets.targets.insert(name, target);
        self.sign_targets(&tuf, targets, dirs, now)?.commit(&self.metadata()?)?;
        Ok(release)
    }

    /// Writes the list of a release's deltas, and names it in the release.
    pub(crate) fn store_list(&self, release: &mut Published, made: &[MadeDelta]) -> Result<()> {
        if made.is_empty() {
            return Ok(());
        }
        let mut deltas = self.deltas(release)?;
        deltas.retain(|delta| !made.iter().any(|new| new.delta.from == delta.from));
        deltas.extend(made.iter().map(|new| new.delta.clone()));
        let list = DeltaList { format: FORMAT, to: release.digest, deltas };
        let reference = list.reference();
        let dir = self.dir.make_dir("deltas", 0o755)?;
        let name = format!("{}.json", reference.sha256);
        durable::replace_file(&dir, &name, &list.to_bytes(), 0o644)?;
        release.deltas = Some(reference);
        Ok(())
    }

    /// The deltas that are offered to a release.
    pub fn deltas(&self, release: &Published) -> Result<Vec<DeltaRef>> {
        let Some(reference) = release.deltas else { return Ok(Vec::new()) };
        let path = reference.path();
        let stored = |reason: String| PublishError::Stored { path: path.clone(), reason };
        if reference.size > MAX_LIST {
            return Err(stored("it is too long".into()));
        }
        let bytes = self.read(&path, reference.size)?;
        if Sha256Digest::of(&bytes) != reference.sha256 {
            return Err(stored("it is not the list that is signed".into()));
        }
        let list = DeltaList::parse(&bytes).map_err(|error| stored(whole_message(&error)))?;
        if list.to != release.digest {
            return Err(stored("it is the list of another release".into()));
        }
        Ok(list.deltas)
    }

    /// The releases of a channel from which deltas lead to a new one by policy: the newest
    /// `count` that are published.
    pub fn delta_bases(&self, channel: &str, count: usize) -> Result<Vec<ReleaseName>> {
        let of_channel = self.list()?.into_iter().filter(|r| r.channel == channel);
        Ok(of_channel.take(count).map(|release| release.name).collect())
    }

    /// Reads a delta and holds it against its digests; where the release it starts from
    /// is still here, applies it too.
    pub(crate) fn check_delta(
        &self,
        delta: &DeltaRef,
        from: Option<&ReleaseRecord>,
        to: &ReleaseRecord,
    ) -> Result<()> {
        let path = delta.path();
        let wrong = |reason: String| PublishError::Stored { path: path.clone(), reason };
        let bytes = self.read(&path, delta.file_size())?;
        let (table, bytes) = bytes.split_at(delta.table() as usize);
        if Sha256Digest::of(table) != delta.id {
            return Err(wrong("its grain digests are not those that are signed".into()));
        }
        let grains = bytes.chunks(GRAIN as usize).zip(table.chunks(32));
        let damaged = grains.filter(|(grain, digest)| Sha256Digest::of(grain).0 != **digest);
        match damaged.count() {
            0 => {}
            count => return Err(wrong(format!("{count} of its grains are damaged"))),
        }
        let Some(from) = from else { return Ok(()) };
        let old = repo::load_manifest(&self.dir, from)?.to_text();
        let packs = Packs::open(&self.dir, &[from, to])?;
        prove(bytes, &old, &packs).map(|_| ()).map_err(wrong)
    }
}

/// Applies a delta, every group of it, and says what each took.
fn prove(
    delta: &[u8],
    old: &[u8],
    packs: &Packs<'_>,
) -> std::result::Result<Vec<GroupCost>, String> {
    let opened = Delta::open(delta, old).map_err(|error| whole_message(&error))?;
    let offers: Vec<_> = opened.groups().collect();
    let largest = offers.iter().map(|offer| offer.memory).max().unwrap_or(0);
    let limits = Limits { memory: PROVE_MEMORY.max(largest), threads: 2 };
    let applied =
        opened.apply(&delta, packs, &Nowhere, limits).map_err(|error| whole_message(&error))?;
    if let Some((digest, _, why)) = applied.left.first() {
        let count = applied.left.len();
        return Err(format!("{count} contents do not come out of it: {digest} ({why:?})"));
    }
    let cost = |(offer, time): (&varve_delta::Offer, &std::time::Duration)| GroupCost {
        size: offer.stream.end - offer.stream.start,
        memory: offer.memory,
        cpu: time.as_millis() as u64,
        packs: packs.stored(offer.contents.iter().map(|content| &content.0)),
    };
    Ok(offers.iter().zip(&applied.times).map(cost).collect())
}

/// What is proved is thrown away.
struct Nowhere;

impl Sink for Nowhere {
    fn put(&self, _: &ContentDigest, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Contents of releases, out of packs; a reader for each thread that asks.
struct Packs<'a> {
    dir: &'a Dir,
    packs: Vec<varve_format::release::PackRef>,
    idle: Mutex<Vec<ContentReader>>,
}

impl<'a> Packs<'a> {
    fn open(dir: &'a Dir, records: &[&ReleaseRecord]) -> Result<Self> {
        let mut seen = HashSet::new();
        let all = records.iter().flat_map(|record| &record.packs).copied();
        let packs: Vec<_> = all.filter(|pack| seen.insert(pack.id)).collect();
        let first = ContentReader::open(dir, &packs)?;
        Ok(Self { dir, packs, idle: Mutex::new(vec![first]) })
    }

    fn stored<'d>(&self, digests: impl Iterator<Item = &'d ContentDigest>) -> u64 {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reader) = idle.first() else { return 0 };
        digests.filter_map(|digest| reader.stored_size(digest)).sum()
    }
}

impl Contents for Packs<'_> {
    fn read(&self, digest: &ContentDigest) -> io::Result<Option<Vec<u8>>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut reader = match idle {
            Some(reader) => reader,
            None => ContentReader::open(self.dir, &self.packs).map_err(io::Error::other)?,
        };
        let result = if reader.contains(digest) {
            reader.read(digest, MAX_CONTENT).map(Some).map_err(io::Error::other)
        } else {
            Ok(None)
        };
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        result
    }
}

/// Settings found for earlier deltas: key (32 bytes), length (u32), value, again and again.
struct Remembered(Mutex<HashMap<Sha256Digest, Vec<u8>>>);

impl Remembered {
    /// What cannot be read is found anew.
    fn load(dir: &Dir) -> Self {
        let mut known = HashMap::new();
        let read = |dir: &Dir| dir.open_dir_opt(CACHE).ok()??.read_opt(MEMO, MAX_MEMO).ok()?;
        let bytes = read(dir).unwrap_or_default();
        let mut rest = &bytes[..];
        while let Some((key, tail)) = rest.split_first_chunk::<32>()
            && let Some((length, tail)) = tail.split_first_chunk::<4>()
            && let Some((value, tail)) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)
        {
            known.insert(Sha256Digest(*key), value.to_vec());
            rest = tail;
        }
        Self(Mutex::new(known))
    }

    fn save(&self, dir: &Dir) -> Result<()> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = Vec::new();
        for (key, value) in known.iter() {
            let Ok(length) = u32::try_from(value.len()) else { continue };
            if (bytes.len() + value.len()) as u64 + 36 > MAX_MEMO {
                break;
            }
            bytes.extend_from_slice(&key.0);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(value);
        }
        Ok(durable::replace_file(&dir.make_dir(CACHE, 0o755)?, MEMO, &bytes, 0o644)?)
    }
}

impl Memo for Remembered {
    fn get(&self, key: &Sha256Digest) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn put(&self, key: Sha256Digest, value: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value);
    }
}
