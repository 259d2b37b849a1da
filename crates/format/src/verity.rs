//! A content's identity: its fs-verity digest, computed as bytes stream by.
//!
//! Source of the rule: the kernel's Documentation/filesystems/fsverity.rst, "Merkle
//! tree" and "fs-verity descriptor". SHA-256, blocks of 4096 bytes, no salt. The
//! digest is that of a 256-byte descriptor which holds the root of the Merkle tree and
//! the file's size; an empty file has a root of zeros.
//!
//! ```text
//! data    |4096|4096|4096|..  -> level 0: 32-byte digests, 128 to a block
//!                              -> level 1: digests of those blocks, ...
//!                              -> one digest is left: the root
//! ```

use sha2::{Digest, Sha256};

use crate::id::ContentDigest;

/// The block size of the Merkle tree, in bytes.
pub const BLOCK: usize = 4096;
const DIGEST: usize = 32;

/// Computes the fs-verity digest of bytes given in any number of pieces.
#[derive(Clone)]
pub struct ContentHasher {
    size: u64,
    block: Sha256,
    in_block: usize,
    /// The block of digests under way at each level, lowest first; each shorter than
    /// one block.
    levels: Vec<Vec<u8>>,
}

impl Default for ContentHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl ContentHasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Self { size: 0, block: Sha256::new(), in_block: 0, levels: Vec::new() }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let take = (BLOCK - self.in_block).min(bytes.len());
            if take == BLOCK {
                let digest: [u8; 32] = Sha256::digest(&bytes[..BLOCK]).into();
                self.push(0, digest);
            } else {
                self.block.update(&bytes[..take]);
                self.in_block += take;
                if self.in_block == BLOCK {
                    self.end_block();
                }
            }
            bytes = &bytes[take..];
        }
    }

    /// How many bytes were taken so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest of all that was taken.
    pub fn finish(mut self) -> ContentDigest {
        if self.in_block > 0 {
            let padding = [0; BLOCK];
            let missing = BLOCK - self.in_block;
            self.block.update(&padding[..missing]);
            self.end_block();
        }
        descriptor_digest(self.size, self.root())
    }

    fn end_block(&mut self) {
        let digest: [u8; 32] = self.block.finalize_reset().into();
        self.in_block = 0;
        self.push(0, digest);
    }

    fn push(&mut self, level: usize, digest: [u8; DIGEST]) {
        let mut level = level;
        let mut digest = digest;
        loop {
            if self.levels.len() == level {
                self.levels.push(Vec::with_capacity(BLOCK));
            }
            let hashes = &mut self.levels[level];
            // A full block goes up only when one more digest follows it: a tree whose
            // last level is one full block has that block's digest as its root.
            let full = (hashes.len() == BLOCK).then(|| <[u8; 32]>::from(Sha256::digest(&hashes)));
            if full.is_some() {
                hashes.clear();
            }
            hashes.extend_from_slice(&digest);
            let Some(up) = full else { return };
            digest = up;
            level += 1;
        }
    }

    fn root(&mut self) -> [u8; DIGEST] {
        if self.size == 0 {
            return [0; DIGEST];
        }
        let mut level = 0;
        loop {
            let is_last = level + 1 == self.levels.len();
            let hashes = &mut self.levels[level];
            if is_last && hashes.len() == DIGEST {
                return hashes[..].try_into().expect("one digest of 32 bytes");
            }
            hashes.resize(BLOCK, 0);
            let up = Sha256::digest(&hashes).into();
            self.push(level + 1, up);
            level += 1;
        }
    }
}

/// The digest of bytes that are all here.
pub fn content_digest(bytes: &[u8]) -> ContentDigest {
    let mut hasher = ContentHasher::new();
    hasher.update(bytes);
    hasher.finish()
}

/// `struct fsverity_descriptor`, 256 bytes: version 1, SHA-256 (1), log2 of the block
/// size, salt size, 4 reserved, data size (little-endian), 64 bytes of root digest, 32
/// of salt, 144 reserved.
fn descriptor_digest(size: u64, root: [u8; DIGEST]) -> ContentDigest {
    let mut descriptor = [0; 256];
    descriptor[0] = 1;
    descriptor[1] = 1;
    descriptor[2] = BLOCK.trailing_zeros() as u8;
    descriptor[8..16].copy_from_slice(&size.to_le_bytes());
    descriptor[16..48].copy_from_slice(&root);
    ContentDigest(Sha256::digest(descriptor).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole tree at once, from the kernel's description, as an oracle.
    fn plain(bytes: &[u8]) -> ContentDigest {
        fn hash_blocks(bytes: &[u8]) -> Vec<u8> {
            bytes
                .chunks(BLOCK)
                .flat_map(|chunk| {
                    let mut block = chunk.to_vec();
                    block.resize(BLOCK, 0);
                    Sha256::digest(&block).to_vec()
                })
                .collect()
        }
        if bytes.is_empty() {
            return descriptor_digest(0, [0; 32]);
        }
        let mut level = hash_blocks(bytes);
        while level.len() > 32 {
            level = hash_blocks(&level);
        }
        descriptor_digest(bytes.len() as u64, level.try_into().unwrap())
    }

    #[test]
    fn known_digests() {
        // From fsverity-utils: `fsverity digest` of an empty file.
        assert_eq!(
            content_digest(b"").to_hex(),
            "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"
        );
    }

    #[test]
    fn equals_the_plain_tree_at_every_edge() {
        let small = [0, 1, 2, 127, 128, 129, 128 * 2]
            .into_iter()
            .flat_map(|count| [0, 1, 4095].map(|extra| (count, extra)));
        // Three levels, full and one block more.
        let large = [(128 * 128, 0), (128 * 128, 1)];
        for (count, extra) in small.chain(large) {
            let size = count * BLOCK + extra;
            let bytes: Vec<u8> = (0..size).map(|i| (i / 7 + i % 251) as u8).collect();
            let mut hasher = ContentHasher::new();
            for piece in bytes.chunks(10_007) {
                hasher.update(piece);
            }
            assert_eq!(hasher.finish(), plain(&bytes), "{count} blocks and {extra}");
        }
    }
}
