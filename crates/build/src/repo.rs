//! The repository directory, read: records, indexes, manifests, contents.
//!
//! ```text
//! targets/<sha256>.<name>.json   records of published releases
//! pending/<name>.json            records of releases built but not published
//! manifests/<release digest>.zst
//! packs/<id>.pack, <id>.idx
//! .lock                          one writer at a time
//! .*.new                         temporaries: swept by the next writer
//! ```
//!
//! Used by [`crate::build`] to find out what is there, by `publish` for `check`, `diff`
//! and `prune`. Everything read is held against its digest.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use varve_format::manifest::{self, Manifest, ManifestError};
use varve_format::pack::{Frame, MAX_FRAME, MAX_INDEX, PACK_MAGIC, PackError, PackIndex};
use varve_format::release::{MAX_RECORD, PackRef, RecordError, ReleaseRecord, StoredManifest};
use varve_format::verity::ContentHasher;
use varve_format::{ContentDigest, Sha256Digest};
use varve_sys::lock::Lock;
use varve_sys::task::{Cancel, Cancelled, Progress, Unit};
use varve_sys::{Dir, SysError};

/// The name of the lock file.
pub const LOCK: &str = ".lock";
/// The longest stored manifest that is read, in bytes.
const MAX_STORED_MANIFEST: u64 = 1 << 30;

/// Why something of a repository could not be read or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// A file or directory could not be used.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// Another process writes.
    #[error("another build or publish is at work in {repository}: wait until it is done")]
    Busy {
        /// The repository's path.
        repository: String,
    },
    /// Bytes that are not those which were recorded.
    #[error("{file} is damaged: it does not have the recorded length and SHA-256")]
    Digest {
        /// Path below the repository.
        file: String,
    },
    /// A record that cannot be read.
    #[error("the release record {file} cannot be used")]
    Record {
        /// Path below the repository.
        file: String,
        /// Why.
        source: RecordError,
    },
    /// An index that cannot be read.
    #[error("the pack index {file} cannot be used")]
    Index {
        /// Path below the repository.
        file: String,
        /// Why.
        source: PackError,
    },
    /// A manifest that cannot be read.
    #[error("the manifest {file} cannot be used")]
    Manifest {
        /// Path below the repository.
        file: String,
        /// Why.
        source: ManifestError,
    },
    /// Reading or decoding failed.
    #[error("cannot read {file}")]
    Read {
        /// Path below the repository.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// No pack of the release holds a content.
    #[error("no pack holds the content {digest}")]
    Missing {
        /// Which.
        digest: ContentDigest,
    },
    /// A content that does not have its digest.
    #[error("the content {digest} in {file} does not have its digest")]
    Content {
        /// Which.
        digest: ContentDigest,
        /// The pack.
        file: String,
    },
    /// A content longer than the caller takes.
    #[error("the content {digest} is longer than {limit} bytes")]
    TooLong {
        /// Which.
        digest: ContentDigest,
        /// What the caller takes.
        limit: u64,
    },
    /// Whoever took the bytes failed.
    #[error("cannot pass on a content")]
    Sink(#[source] io::Error),
    /// Stopped as asked.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

type Result<T> = std::result::Result<T, RepoError>;

/// A release record found in the repository.
#[derive(Clone, Debug)]
pub struct StoredRecord {
    /// What it says.
    pub record: ReleaseRecord,
    /// Its bytes, as they are or will be signed.
    pub bytes: Vec<u8>,
    /// Whether it lies in `targets/`, and not in `pending/`.
    pub published: bool,
    /// Its path below the repository.
    pub path: String,
}

/// Takes the writer's lock of a repository until dropped.
pub fn lock(repo: &Dir) -> Result<Lock> {
    Lock::try_take(repo, LOCK)?
        .ok_or_else(|| RepoError::Busy { repository: repo.path().display().to_string() })
}

/// Removes what a killed writer left. The caller holds the lock.
pub fn sweep(repo: &Dir) -> Result<()> {
    for folder in [".", "packs", "manifests", "pending"] {
        let Some(dir) = repo.open_dir_opt(folder)? else { continue };
        for entry in dir.names()? {
            let name = entry.name.as_bytes();
            if name.starts_with(b".") && name.ends_with(b".new") {
                dir.remove_all(&entry.name)?;
            }
        }
    }
    Ok(())
}

/// All release records, published and pending, sorted by path. A file in `targets/`
/// whose name is not `<sha256>.<name>.json` is somebody else's and is left alone.
pub fn records(repo: &Dir) -> Result<Vec<StoredRecord>> {
    let mut records = Vec::new();
    for (folder, published) in [("pending", false), ("targets", true)] {
        let Some(dir) = repo.open_dir_opt(folder)? else { continue };
        for entry in dir.names()? {
            let Some(name) = entry.name.to_str().filter(|name| is_record(name, published)) else {
                continue;
            };
            let bytes = dir.read(name, MAX_RECORD)?;
            let path = format!("{folder}/{name}");
            if published && !name.starts_with(&Sha256Digest::of(&bytes).to_hex()) {
                return Err(RepoError::Digest { file: path });
            }
            let record = ReleaseRecord::parse(&bytes)
                .map_err(|source| RepoError::Record { file: path.clone(), source })?;
            records.push(StoredRecord { record, bytes, published, path });
        }
    }
    Ok(records)
}

fn is_record(name: &str, published: bool) -> bool {
    let Some(stem) = name.strip_suffix(".json") else { return false };
    if published {
        stem.split_once('.').is_some_and(|(hash, _)| hash.parse::<Sha256Digest>().is_ok())
    } else {
        !stem.starts_with('.')
    }
}

/// Reads the index of a pack.
pub fn load_index(repo: &Dir, pack: &PackRef) -> Result<PackIndex> {
    let file = pack.index_path();
    let bytes = repo.read(&file, MAX_INDEX)?;
    if bytes.len() as u64 != pack.index_size || Sha256Digest::of(&bytes) != pack.index_sha256 {
        return Err(RepoError::Digest { file });
    }
    let index = PackIndex::parse(&bytes)
        .map_err(|source| RepoError::Index { file: file.clone(), source })?;
    if index.pack_size() != pack.size {
        return Err(RepoError::Digest { file });
    }
    Ok(index)
}

/// Reads the manifest of a release and holds its text against the release's digest.
pub fn load_manifest(repo: &Dir, record: &ReleaseRecord) -> Result<Manifest> {
    let file = StoredManifest::path(&record.digest);
    let stored = repo.read(&file, MAX_STORED_MANIFEST)?;
    let wanted = &record.manifest;
    if stored.len() as u64 != wanted.size
        || Sha256Digest::of(&stored) != wanted.sha256
        || wanted.text_size > manifest::MAX_TEXT
    {
        return Err(RepoError::Digest { file });
    }
    let text = zstd::bulk::decompress(&stored, wanted.text_size as usize)
        .map_err(|source| RepoError::Read { file: file.clone(), source })?;
    if Sha256Digest::of(&text).0 != record.digest.0 {
        return Err(RepoError::Digest { file });
    }
    Manifest::parse(&text).map_err(|source| RepoError::Manifest { file, source })
}

/// Gets contents by digest out of packs. Keeps the last frame that it decoded, so that
/// contents which lie together cost one decoding.
pub struct ContentReader {
    packs: Vec<OpenPack>,
    decoder: zstd::bulk::Decompressor<'static>,
    /// Which frame (pack, number) `decoded` holds.
    current: Option<(usize, usize)>,
    decoded: Vec<u8>,
    stored: Vec<u8>,
}

struct OpenPack {
    index: PackIndex,
    file: File,
    path: String,
}

impl std::fmt::Debug for ContentReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContentReader").field("packs", &self.packs.len()).finish_non_exhaustive()
    }
}

impl ContentReader {
    /// Opens packs, as a release record lists them.
    pub fn open(repo: &Dir, packs: &[PackRef]) -> Result<Self> {
        let mut open = Vec::new();
        for pack in packs {
            let path = pack.path();
            let index = load_index(repo, pack)?;
            let file = repo.open_file(&path)?;
            open.push(OpenPack { index, file, path });
        }
        let decoder = zstd::bulk::Decompressor::new()
            .map_err(|source| RepoError::Read { file: "packs".into(), source })?;
        Ok(Self { packs: open, decoder, current: None, decoded: Vec::new(), stored: Vec::new() })
    }

    /// Whether one of the packs holds this content.
    pub fn contains(&self, digest: &ContentDigest) -> bool {
        self.packs.iter().any(|pack| pack.index.find(digest).is_some())
    }

    /// Bytes that this content takes in its pack: its share of the stored frames that
    /// it runs through.
    pub fn stored_size(&self, digest: &ContentDigest) -> Option<u64> {
        self.packs.iter().find_map(|pack| {
            let location = pack.index.find(digest)?;
            let frames = &pack.index.frames()[pack.index.frames_of(location)];
            let stored: u64 = frames.iter().map(|f| u64::from(f.stored)).sum();
            let size: u64 = frames.iter().map(|f| u64::from(f.size)).sum();
            Some((u128::from(stored) * u128::from(location.size) / u128::from(size)) as u64)
        })
    }

    /// A whole content in memory; an error when it is longer than `limit` bytes.
    pub fn read(&mut self, digest: &ContentDigest, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let long = || RepoError::TooLong { digest: *digest, limit };
        if self.size(digest)? > limit {
            return Err(long());
        }
        self.copy(digest, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// The length of a content in bytes.
    pub fn size(&self, digest: &ContentDigest) -> Result<u64> {
        self.packs
            .iter()
            .find_map(|pack| pack.index.find(digest))
            .map(|location| location.size)
            .ok_or(RepoError::Missing { digest: *digest })
    }

    /// Passes a content on in pieces of at most 1 MiB. Each frame is held against its
    /// SHA-256 before it is decoded; the whole against the content's digest at the end,
    /// so trust what was passed on only after this returned without an error.
    pub fn copy(
        &mut self,
        digest: &ContentDigest,
        to: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<()> {
        let found = self.packs.iter().enumerate().find_map(|(at, pack)| {
            let location = *pack.index.find(digest)?;
            Some((at, location, pack.index.frames_of(&location)))
        });
        let (at, location, frames) = found.ok_or(RepoError::Missing { digest: *digest })?;
        let mut start = location.start as usize;
        let mut left = location.size;
        let mut hasher = ContentHasher::new();
        for frame in frames {
            self.load(at, frame)?;
            let end = self.decoded.len().min(start.saturating_add(left as usize));
            let piece = &self.decoded[start..end];
            hasher.update(piece);
            to(piece).map_err(RepoError::Sink)?;
            left -= piece.len() as u64;
            start = 0;
        }
        if hasher.finish() != *digest {
            return Err(RepoError::Content { digest: *digest, file: self.packs[at].path.clone() });
        }
        Ok(())
    }

    fn load(&mut self, at: usize, number: usize) -> Result<()> {
        if self.current == Some((at, number)) {
            return Ok(());
        }
        self.current = None;
        let pack = &self.packs[at];
        let Frame { offset, stored, size, sha256 } = pack.index.frames()[number];
        let read = |source| RepoError::Read { file: pack.path.clone(), source };
        self.stored.resize(stored as usize, 0);
        pack.file.read_exact_at(&mut self.stored, offset).map_err(read)?;
        if Sha256Digest::of(&self.stored) != sha256 {
            return Err(RepoError::Digest { file: pack.path.clone() });
        }
        self.decoded.clear();
        self.decoded.reserve(MAX_FRAME as usize);
        self.decoder.decompress_to_buffer(&self.stored, &mut self.decoded).map_err(read)?;
        if self.decoded.len() != size as usize {
            return Err(RepoError::Digest { file: pack.path.clone() });
        }
        self.current = Some((at, number));
        Ok(())
    }
}

/// Checks a whole pack: its length, its magic, its SHA-256 (its name), each frame and
/// each content.
pub fn check_pack(
    repo: &Dir,
    pack: &PackRef,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<()> {
    use sha2::Digest;
    let path = pack.path();
    let damaged = || RepoError::Digest { file: path.clone() };
    let mut reader = ContentReader::open(repo, std::slice::from_ref(pack))?;
    let file = repo.open_file(&path)?;
    let mut magic = [0; PACK_MAGIC.len()];
    let read = |source| RepoError::Read { file: path.clone(), source };
    file.read_exact_at(&mut magic, 0).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    if magic != *PACK_MAGIC || length != pack.size {
        return Err(damaged());
    }
    progress.begin("checking a pack", Unit::Bytes, Some(pack.size));
    let mut whole = sha2::Sha256::new();
    whole.update(magic);
    // Contents by the frame that they start in: each frame is decoded once.
    let mut contents = reader.packs[0].index.contents().to_vec();
    contents.sort_by_key(|c| (c.frame, c.start));
    let mut contents = contents.into_iter().peekable();
    for number in 0..reader.packs[0].index.frames().len() {
        cancel.check()?;
        let frame = reader.packs[0].index.frames()[number];
        let mut stored = vec![0; frame.stored as usize];
        file.read_exact_at(&mut stored, frame.offset).map_err(read)?;
        whole.update(&stored);
        reader.load(0, number)?;
        while let Some(content) = contents.next_if(|c| c.frame as usize == number) {
            reader.copy(&content.digest, &mut |_| Ok(()))?;
        }
        progress.advance(u64::from(frame.stored));
    }
    progress.end();
    if whole.finalize()[..] != pack.id.0 { Err(damaged()) } else { Ok(()) }
}

/// What earlier releases of a repository hold.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Their packs, newest first.
    pub(crate) packs: Vec<PackRef>,
    /// Which of them holds a content.
    pub(crate) contents: HashMap<ContentDigest, u32>,
}

impl Known {
    /// Reads the indexes of all packs that records name. A pack that is missing or
    /// damaged is passed over, with a note: what it held is stored again.
    pub(crate) fn load(
        repo: &Dir,
        records: &[StoredRecord],
        progress: &dyn Progress,
    ) -> Result<Self> {
        let mut known = Self::default();
        for pack in newest_first(records) {
            let file = repo.open_file(pack.path()).map_err(RepoError::from);
            let length = |file: File| file.metadata().map(|m| m.len());
            let whole = matches!(file.map(length), Ok(Ok(length)) if length == pack.size);
            let index = if whole { load_index(repo, &pack).ok() } else { None };
            let Some(index) = index else {
                progress.note(&format!(
                    "pack {} is missing or damaged: what it held is stored again",
                    pack.id.short()
                ));
                continue;
            };
            let number = known.packs.len() as u32;
            known.packs.push(pack);
            for content in index.contents() {
                known.contents.entry(content.digest).or_insert(number);
            }
        }
        Ok(known)
    }
}

/// All packs of the records. No clock is asked: a pack is newer than those that stand
/// behind it in a record; what that leaves open is decided by the pack's name.
fn newest_first(records: &[StoredRecord]) -> Vec<PackRef> {
    let mut ages: HashMap<Sha256Digest, (usize, PackRef)> = HashMap::new();
    for stored in records {
        for (behind, pack) in stored.record.packs.iter().rev().enumerate() {
            let (age, _) = ages.entry(pack.id).or_insert((0, *pack));
            *age = (*age).max(behind);
        }
    }
    let mut packs: Vec<_> = ages.into_values().collect();
    packs.sort_by_key(|(behind, pack)| (std::cmp::Reverse(*behind), pack.id));
    packs.into_iter().map(|(_, pack)| pack).collect()
}
