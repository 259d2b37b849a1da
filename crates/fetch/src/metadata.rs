//! What verified metadata says, and the way from it to the documents it names: the
//! release record, the manifest, the pack indexes.
//!
//! ```text
//! Metadata -- releases() --> ReleaseRef {name, sequence, channel, digest, sha256, size}
//!    | record(name)             targets/<sha256>.<name>.json
//!    v
//! Verified<ReleaseRecord> -- manifest() ----> Manifest    manifests/<digest>.zst
//!                         `- pack_index() --> PackIndex   packs/<id>.idx
//! ```
//!
//! Each document's length and digest are known before it is asked for; what does not
//! match is asked from the next source, and never used.

use std::ops::Deref;

use jiff::Timestamp;
use tough::TargetName;
use tough::schema::Target;
use varve_format::delta::{DeltaListError, DeltaListRef};
use varve_format::manifest::{MAX_TEXT, Manifest, ManifestError};
use varve_format::pack::{MAX_INDEX, PackError, PackIndex};
use varve_format::release::{MAX_RECORD, PackRef, RecordError, ReleaseRecord, StoredManifest};
use varve_format::{ReleaseDigest, ReleaseName, Sha256Digest};
use varve_sys::task::Cancel;

use crate::sources::{FetchError, Sources};
use crate::trust::TrustError;

/// A value whose bytes were checked against signed metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(value)
    }

    /// The value alone.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// A source that was passed over while checking.
#[derive(Debug)]
pub struct Warning {
    /// The source, as the user named it.
    pub source: String,
    /// Why.
    pub error: TrustError,
}

/// Verified metadata of a repository.
#[derive(Debug)]
pub struct Metadata {
    /// The source it came from.
    pub source: String,
    pub(crate) releases: Vec<ReleaseRef>,
    /// Whether it is newer than what this device had seen.
    pub news: bool,
    /// The version of the root of trust.
    pub root_version: u64,
    /// The version of the timestamp document.
    pub timestamp_version: u64,
    /// When the first of its documents expires.
    pub expires: Timestamp,
    /// The time that expiry was checked against.
    pub time: Timestamp,
    /// The system's clock is behind the newest time that this device has seen.
    pub clock_behind: bool,
    /// Sources that could not be checked, or were refused.
    pub warnings: Vec<Warning>,
}

/// A release, as the signed list of releases names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseRef {
    /// Its name for people.
    pub name: ReleaseName,
    /// Its place in the order of its channel; the highest is the newest.
    pub sequence: u64,
    /// The channel it is published in.
    pub channel: String,
    /// Its identity.
    pub digest: ReleaseDigest,
    /// SHA-256 of its record.
    pub record_sha256: Sha256Digest,
    /// Length of its record, in bytes.
    pub record_size: u64,
    /// The list of the deltas that lead to it.
    pub deltas: Option<DeltaListRef>,
}

impl ReleaseRef {
    /// A target that is no release, or one of a later format, is passed over.
    pub(crate) fn from_target(name: &TargetName, target: &Target) -> Option<Self> {
        let text = |field: &str| target.custom.get(field)?.as_str();
        Some(Self {
            name: name.raw().strip_suffix(".json")?.parse().ok()?,
            sequence: target.custom.get("sequence")?.as_u64()?,
            channel: text("channel")?.to_owned(),
            digest: text("digest")?.parse().ok()?,
            record_sha256: Sha256Digest(target.hashes.sha256.as_ref().try_into().ok()?),
            record_size: target.length,
            deltas: target
                .custom
                .get("deltas")
                .and_then(|v| serde_json::from_value(v.clone()).ok()),
        })
    }

    fn path(&self) -> String {
        format!("targets/{}.{}.json", self.record_sha256, self.name)
    }
}

/// Why a document of a release cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// No release of that name.
    #[error("the repository has no release {name}")]
    NoSuchRelease {
        /// The name asked for.
        name: ReleaseName,
    },
    /// It could not be fetched, or no source has the right bytes.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The record is not valid, though signed.
    #[error("the record of release {name} is not valid")]
    Record {
        /// The release.
        name: ReleaseName,
        /// What is wrong.
        source: RecordError,
    },
    /// The record is of another release than the signed list says.
    #[error("the record of release {name} does not agree with the signed list of releases")]
    OtherRelease {
        /// The release.
        name: ReleaseName,
    },
    /// A document that is longer than this version reads.
    #[error("{path} has {size} bytes; at most {limit} are read")]
    TooLong {
        /// Its path.
        path: String,
        /// Its length as the record states it.
        size: u64,
        /// The most that is read.
        limit: u64,
    },
    /// The manifest's stored form does not hold the text that it should.
    #[error("the manifest {path} does not hold the text that its record describes: {reason}")]
    Stored {
        /// Its path.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The manifest is not valid, though signed.
    #[error("the manifest of release {name} is refused")]
    Manifest {
        /// The release.
        name: ReleaseName,
        /// What is wrong.
        source: ManifestError,
    },
    /// A list of deltas is not valid, though signed.
    #[error("the list of deltas {path} is refused")]
    Deltas {
        /// Its path.
        path: String,
        /// What is wrong.
        source: DeltaListError,
    },
    /// A pack's index is not valid, though signed.
    #[error("the index {path} is refused")]
    Index {
        /// Its path.
        path: String,
        /// What is wrong.
        source: PackError,
    },
}

impl Metadata {
    /// The releases, the highest sequence first.
    pub fn releases(&self) -> &[ReleaseRef] {
        &self.releases
    }

    /// Fetches and checks the record of a release.
    pub fn record(
        &self,
        name: &ReleaseName,
        sources: &Sources,
        cancel: &Cancel,
    ) -> Result<Verified<ReleaseRecord>, DocumentError> {
        let release = self
            .releases
            .iter()
            .find(|release| release.name == *name)
            .ok_or_else(|| DocumentError::NoSuchRelease { name: name.clone() })?;
        let path = release.path();
        bound(&path, release.record_size, MAX_RECORD)?;
        let bytes =
            sources.fetch_exact(&path, release.record_size, release.record_sha256, cancel)?;
        let record = ReleaseRecord::parse(&bytes)
            .map_err(|source| DocumentError::Record { name: name.clone(), source })?;
        if record.name != release.name || record.digest != release.digest {
            return Err(DocumentError::OtherRelease { name: name.clone() });
        }
        Ok(Verified(record))
    }
}

/// Fetches, decodes and checks a release's manifest. Returns its text too, which is what
/// the device keeps.
pub fn manifest(
    record: &Verified<ReleaseRecord>,
    sources: &Sources,
    cancel: &Cancel,
) -> Result<(Verified<Manifest>, Vec<u8>), DocumentError> {
    let StoredManifest { sha256, size, text_size } = record.manifest;
    let path = StoredManifest::path(&record.digest);
    bound(&path, size, MAX_TEXT)?;
    bound(&path, text_size, MAX_TEXT)?;
    let stored = sources.fetch_exact(&path, size, sha256, cancel)?;
    let refuse = |reason: String| DocumentError::Stored { path: path.clone(), reason };
    let text = sources.decoder(text_size).and_then(|decoder| decoder.text(&stored, text_size));
    let text = text.map_err(|error| refuse(varve_sys::whole_message(&error)))?;
    if text.len() as u64 != text_size {
        let what = if text.len() as u64 > text_size { "more" } else { "fewer" };
        return Err(refuse(format!("it decodes to {what} than {text_size} bytes")));
    }
    if Sha256Digest::of(&text).0 != record.digest.0 {
        return Err(refuse("its digest is not the release's".into()));
    }
    drop(stored);
    let manifest = Manifest::parse(&text)
        .map_err(|source| DocumentError::Manifest { name: record.name.clone(), source })?;
    Ok((Verified(manifest), text))
}

/// Fetches and checks the index of one of a release's packs.
pub fn pack_index(
    pack: &PackRef,
    sources: &Sources,
    cancel: &Cancel,
) -> Result<Verified<PackIndex>, DocumentError> {
    let path = pack.index_path();
    bound(&path, pack.index_size, MAX_INDEX)?;
    let bytes = sources.fetch_exact(&path, pack.index_size, pack.index_sha256, cancel)?;
    let index = PackIndex::parse(&bytes)
        .map_err(|source| DocumentError::Index { path: path.clone(), source })?;
    if index.pack_size() != pack.size {
        let source = PackError::Length { expected: pack.size, found: index.pack_size() };
        return Err(DocumentError::Index { path, source });
    }
    Ok(Verified(index))
}

pub(crate) fn bound(path: &str, size: u64, limit: u64) -> Result<(), DocumentError> {
    if size <= limit {
        Ok(())
    } else {
        Err(DocumentError::TooLong { path: path.to_owned(), size, limit })
    }
}
