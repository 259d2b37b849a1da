//! Reading contents out of a repository's packs, for `diff` and `check`.

use std::fs::File;
use std::os::unix::fs::FileExt;

use varve_format::manifest::{MAX_TEXT, Manifest};
use varve_format::pack::PackIndex;
use varve_format::release::{PackRef, ReleaseRecord, StoredManifest};
use varve_format::{ContentDigest, Sha256Digest};

use crate::error::{PublishError, Result};
use crate::repository::Repository;

/// The packs of one release, open.
pub(crate) struct PackReader {
    packs: Vec<OpenPack>,
    decompressor: zstd::bulk::Decompressor<'static>,
    /// The frame read last: neighbours in a pack are read together.
    last: Option<(usize, usize, Vec<u8>)>,
}

pub(crate) struct OpenPack {
    pub(crate) pack: PackRef,
    pub(crate) index: PackIndex,
    file: File,
}

impl OpenPack {
    pub(crate) fn open(repository: &Repository, pack: &PackRef) -> Result<Self> {
        let index = index(repository, pack)?;
        let file = repository.dir.open_file(pack.path())?;
        Ok(Self { pack: *pack, index, file })
    }

    fn wrong(&self, reason: String) -> PublishError {
        PublishError::Stored { path: self.pack.path(), reason }
    }

    /// The stored bytes of a frame, checked.
    pub(crate) fn stored(&self, frame: usize) -> Result<Vec<u8>> {
        let at = self.index.frames()[frame];
        let mut bytes = vec![0; at.stored as usize];
        self.file
            .read_exact_at(&mut bytes, at.offset)
            .map_err(|error| self.wrong(format!("frame {frame} at byte {}: {error}", at.offset)))?;
        if Sha256Digest::of(&bytes) != at.sha256 {
            return Err(self.wrong(format!("frame {frame} at byte {} is damaged", at.offset)));
        }
        Ok(bytes)
    }

    /// The decoded bytes of a frame, checked.
    pub(crate) fn frame(
        &self,
        frame: usize,
        decompressor: &mut zstd::bulk::Decompressor<'static>,
    ) -> Result<Vec<u8>> {
        let stored = self.stored(frame)?;
        let size = self.index.frames()[frame].size as usize;
        let bytes = decompressor
            .decompress(&stored, size)
            .map_err(|error| self.wrong(format!("frame {frame} does not decode: {error}")))?;
        if bytes.len() != size {
            return Err(self.wrong(format!("frame {frame} decodes to {} bytes, not {size}", bytes.len())));
        }
        Ok(bytes)
    }
}

pub(crate) fn decompressor() -> Result<zstd::bulk::Decompressor<'static>> {
    zstd::bulk::Decompressor::new()
        .map_err(|error| PublishError::Stored { path: "packs".into(), reason: error.to_string() })
}

impl PackReader {
    pub(crate) fn open(repository: &Repository, record: &ReleaseRecord) -> Result<Self> {
        let packs = record.packs.iter().map(|pack| OpenPack::open(repository, pack)).collect::<Result<_>>()?;
        Ok(Self { packs, decompressor: decompressor()?, last: None })
    }

    /// Reads a whole content of at most `limit` bytes.
    pub(crate) fn read(&mut self, digest: &ContentDigest, limit: u64) -> Result<Vec<u8>> {
        let found = self
            .packs
            .iter()
            .enumerate()
            .find_map(|(at, pack)| Some((at, *pack.index.find(digest)?)));
        let missing = |reason: String| PublishError::Stored { path: "packs".into(), reason };
        let Some((at, location)) = found else {
            return Err(missing(format!("no pack of the release holds content {digest}")));
        };
        if location.size > limit {
            return Err(missing(format!("content {digest} has {} bytes; at most {limit} are read", location.size)));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(location.size).unwrap_or(0));
        let mut start = location.start as usize;
        for frame in self.packs[at].index.frames_of(&location) {
            if !matches!(&self.last, Some((pack, last, _)) if (*pack, *last) == (at, frame)) {
                let decoded = self.packs[at].frame(frame, &mut self.decompressor)?;
                self.last = Some((at, frame, decoded));
            }
            if let Some((_, _, decoded)) = &self.last {
                let left = usize::try_from(location.size).unwrap_or(usize::MAX) - bytes.len();
                let end = decoded.len().min(start.saturating_add(left));
                bytes.extend_from_slice(&decoded[start..end]);
            }
            start = 0;
        }
        Ok(bytes)
    }
}

/// Reads and checks a pack's index.
pub(crate) fn index(repository: &Repository, pack: &PackRef) -> Result<PackIndex> {
    let path = pack.index_path();
    let bytes = repository.read(&path, pack.index_size)?;
    let wrong = |reason: String| PublishError::Stored { path: path.clone(), reason };
    if Sha256Digest::of(&bytes) != pack.index_sha256 {
        return Err(wrong("it is damaged: its digest is not the one in the record".into()));
    }
    let index = PackIndex::parse(&bytes).map_err(|error| wrong(error.to_string()))?;
    if index.pack_size() != pack.size {
        return Err(wrong("it describes a pack of another length".into()));
    }
    Ok(index)
}

/// Reads, decodes and checks a release's manifest.
pub(crate) fn manifest(repository: &Repository, record: &ReleaseRecord) -> Result<Manifest> {
    let path = StoredManifest::path(&record.digest);
    let wrong = |reason: String| PublishError::Stored { path: path.clone(), reason };
    let stored = repository.read(&path, record.manifest.size)?;
    if Sha256Digest::of(&stored) != record.manifest.sha256 {
        return Err(wrong("it is damaged: its digest is not the one in the record".into()));
    }
    let text_size = record.manifest.text_size.min(MAX_TEXT);
    let decoder = zstd::Decoder::new(&stored[..]).map_err(|error| wrong(error.to_string()))?;
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(decoder, text_size + 1), &mut text)
        .map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 != record.manifest.text_size || Sha256Digest::of(&text).0 != record.digest.0 {
        return Err(wrong("it does not hold the text that the release's digest names".into()));
    }
    Manifest::parse(&text).map_err(|error| wrong(error.to_string()))
}
