//! The deltas that a repository offers to a release: a small document that the signed
//! list of releases names, and how a delta's bytes are checked while they come.
//!
//! ```text
//! target's custom.deltas {sha256, size}
//!   -> deltas/<sha256>.json   DeltaList: from where, how large, what each group takes
//!   -> deltas/<id>.delta      grain digests (32 bytes each) | the delta, VARVEDL1
//!      id = SHA-256 of the grain digests; each grain of 256 KiB has its own
//! ```

use serde::{Deserialize, Serialize};

use crate::id::{ReleaseDigest, Sha256Digest};

/// The only format of the list that this version writes and reads.
pub const FORMAT: u32 = 1;
/// The longest list that is read, in bytes.
pub const MAX_LIST: u64 = 1 << 20;
/// Bytes of a delta that share a digest; the last grain may be shorter.
pub const GRAIN: u64 = 256 << 10;
/// The longest delta that is read, in bytes: its grain digests are kept in memory.
pub const MAX_DELTA: u64 = 16 << 30;

/// Names the list of a release's deltas, in the signed list of releases.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeltaListRef {
    /// SHA-256 of the list, which also names it.
    pub sha256: Sha256Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// The deltas that lead to one release.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeltaList {
    /// [`FORMAT`].
    pub format: u32,
    /// The release that they lead to.
    pub to: ReleaseDigest,
    /// One for each release that one starts from.
    pub deltas: Vec<DeltaRef>,
}

/// A delta, and what it costs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeltaRef {
    /// The release it starts from.
    pub from: ReleaseDigest,
    /// SHA-256 of its grain digests; names the file.
    pub id: Sha256Digest,
    /// Length of the delta in bytes, without the grain digests before it.
    pub size: u64,
    /// Length of its head: with it the manifest and what each group makes are known.
    pub head: u64,
    /// What each group of it costs, in the order of the delta.
    pub groups: Vec<GroupCost>,
}

/// What a group of a delta costs a device, and what it costs to do without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupCost {
    /// Bytes of it in the delta.
    pub size: u64,
    /// Bytes of memory to apply it.
    pub memory: u64,
    /// Processor time to apply it on the publisher's machine, in milliseconds.
    pub cpu: u64,
    /// Bytes that its contents take in packs.
    pub packs: u64,
}

/// Why a list was refused.
#[derive(Debug, thiserror::Error)]
pub enum DeltaListError {
    /// Not JSON of this shape.
    #[error("the list of deltas is not of the expected form")]
    Json(#[from] serde_json::Error),
    /// A format that this version does not know.
    #[error("the list of deltas has format {found}; this version reads format {FORMAT}")]
    Format {
        /// What it says.
        found: u32,
    },
    /// A size that cannot be.
    #[error("the list of deltas states a size that cannot be")]
    Size,
}

impl DeltaListRef {
    /// Where it lies below the repository.
    pub fn path(&self) -> String {
        format!("deltas/{}.json", self.sha256)
    }
}

impl DeltaList {
    /// Reads a list's bytes. Fields that are not known are passed over.
    pub fn parse(bytes: &[u8]) -> Result<Self, DeltaListError> {
        let list: Self = serde_json::from_slice(bytes)?;
        if list.format != FORMAT {
            return Err(DeltaListError::Format { found: list.format });
        }
        let sound = |delta: &DeltaRef| {
            let groups = delta.groups.iter().try_fold(0u64, |sum, g| sum.checked_add(g.size));
            delta.size <= MAX_DELTA
                && groups.and_then(|sum| sum.checked_add(delta.head)) == Some(delta.size)
        };
        if list.deltas.iter().all(sound) { Ok(list) } else { Err(DeltaListError::Size) }
    }

    /// The list's bytes: compact JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data")
    }

    /// What names it.
    pub fn reference(&self) -> DeltaListRef {
        let bytes = self.to_bytes();
        DeltaListRef { sha256: Sha256Digest::of(&bytes), size: bytes.len() as u64 }
    }
}

impl DeltaRef {
    /// Where it lies below the repository.
    pub fn path(&self) -> String {
        format!("deltas/{}.delta", self.id)
    }

    /// How many grains it has.
    pub fn grains(&self) -> u64 {
        self.size.div_ceil(GRAIN)
    }

    /// Length of the grain digests before it.
    pub fn table(&self) -> u64 {
        self.grains() * 32
    }

    /// Length of the whole file.
    pub fn file_size(&self) -> u64 {
        self.table() + self.size
    }

    /// Bytes of contents that a device without this delta fetches by packs.
    pub fn packs(&self) -> u64 {
        self.groups.iter().map(|group| group.packs).sum()
    }
}

/// The digests of a delta's grains, as they stand before it.
pub fn grain_table(delta: &[u8]) -> Vec<u8> {
    delta.chunks(GRAIN as usize).flat_map(|grain| Sha256Digest::of(grain).0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> DeltaList {
        let group = GroupCost { size: GRAIN, memory: 60 << 20, cpu: 900, packs: 3 << 20 };
        let delta = DeltaRef {
            from: ReleaseDigest([1; 32]),
            id: Sha256Digest([2; 32]),
            size: GRAIN * 2 + 7,
            head: 7,
            groups: vec![group; 2],
        };
        DeltaList { format: FORMAT, to: ReleaseDigest([3; 32]), deltas: vec![delta] }
    }

    #[test]
    fn a_list_comes_back_and_says_where_its_deltas_lie() {
        let list = list();
        assert_eq!(DeltaList::parse(&list.to_bytes()).unwrap(), list);
        let delta = &list.deltas[0];
        assert_eq!((delta.grains(), delta.file_size()), (3, 96 + delta.size));
        assert_eq!(delta.packs(), 6 << 20);
        assert!(list.to_bytes().len() < 400, "it is fetched by every device");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut other = list();
        other.format = 2;
        let error = DeltaList::parse(&other.to_bytes()).unwrap_err();
        assert!(matches!(error, DeltaListError::Format { found: 2 }));
        for size in [u64::MAX, 0] {
            let mut other = list();
            other.deltas[0].groups[0].size = size;
            assert!(matches!(DeltaList::parse(&other.to_bytes()), Err(DeltaListError::Size)));
        }
        assert!(DeltaList::parse(b"[]").is_err());
        assert_eq!(grain_table(&vec![0; GRAIN as usize + 1]).len(), 64);
    }
}
