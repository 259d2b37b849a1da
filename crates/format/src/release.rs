//! The release record: the document that TUF signs for each release, and from which
//! everything else of the release is verified.
//!
//! ```text
//! TUF target releases: <name>.json
//!   -> manifest  sha256, size   (stored as zstd; its text's digest is the release's identity)
//!   -> packs     id, size, index sha256, index size   (newest first)
//! ```

use serde::{Deserialize, Serialize};

use crate::id::{ReleaseDigest, ReleaseName, Sha256Digest};
use crate::manifest::Totals;

/// The only format that this version writes and reads.
pub const FORMAT: u32 = 1;
/// The longest record that is read, in bytes.
pub const MAX_RECORD: u64 = 4 << 20;

/// A release, as the publisher states it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// Its name for people.
    pub name: ReleaseName,
    /// Its identity.
    pub digest: ReleaseDigest,
    /// Debian's name of the machine's architecture, such as `amd64`; empty if unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub architecture: String,
    /// What the operating system calls itself (PRETTY_NAME of os-release(5)); may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// One paragraph for people; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub notes: String,
    /// How to get the manifest.
    pub manifest: StoredManifest,
    /// Paths and bytes of the whole tree.
    pub totals: Totals,
    /// Packs that together hold every content, newest first.
    pub packs: Vec<PackRef>,
    /// Where the kernel of this release lies in its tree, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
}

/// The manifest as it lies in the repository: `manifests/<release digest>.zst`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredManifest {
    /// SHA-256 of the stored bytes.
    pub sha256: Sha256Digest,
    /// Length of the stored bytes.
    pub size: u64,
    /// Length of the text.
    pub text_size: u64,
}

/// A pack: `packs/<id>.pack` and `packs/<id>.idx`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackRef {
    /// SHA-256 of the whole pack, which also names it.
    pub id: Sha256Digest,
    /// Length of the pack in bytes.
    pub size: u64,
    /// SHA-256 of its index.
    pub index_sha256: Sha256Digest,
    /// Length of its index in bytes.
    pub index_size: u64,
}

/// The kernel of a release, by paths in its tree. Not used to boot yet: the place is
/// kept so that a deployment can boot its own kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Its version, as `uname -r` gives it.
    pub version: String,
    /// The image, relative to the tree.
    pub image: String,
    /// The initial RAM file system, relative to the tree; may be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
}

/// Why a record was refused.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not JSON of this shape.
    #[error("the release record is not of the expected form")]
    Json(#[from] serde_json::Error),
    /// A format that this version does not know.
    #[error(
        "the release record has format {found}; this version reads format {FORMAT}: upgrade Varve first"
    )]
    Format {
        /// What the record says.
        found: u32,
    },
}

impl ReleaseRecord {
    /// Reads a record's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let Version { format } = serde_json::from_slice(bytes)?;
        if format != FORMAT {
            return Err(RecordError::Format { found: format });
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The record's bytes: JSON, fields in the order of the type, closed by a newline.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("plain data");
        bytes.push(b'\n');
        bytes
    }
}

impl StoredManifest {
    /// Where it lies below the repository.
    pub fn path(release: &ReleaseDigest) -> String {
        format!("manifests/{release}.zst")
    }
}

impl PackRef {
    /// Where the pack lies below the repository.
    pub fn path(&self) -> String {
        format!("packs/{}.pack", self.id)
    }

    /// Where its index lies below the repository.
    pub fn index_path(&self) -> String {
        format!("packs/{}.idx", self.id)
    }
}
