//! The index of a pack: where each content stands, and what each frame must hash to.
//!
//! A pack is an 8-byte magic followed by zstd frames, back to back. Small contents lie
//! together in a frame; a content larger than a frame starts one of its own and runs
//! on through the frames that follow, which hold nothing else.
//!
//! ```text
//! <id>.pack   "VARVEPK1" | frame 0 | frame 1 | ...
//! <id>.idx    "VARVEPX1" flags:u32 frames:u32 contents:u32 reserved:u32
//!             frames   x { stored:u32 size:u32 sha256:32 }         (of the stored bytes)
//!             contents x { digest:32 size:u64 frame:u32 start:u32 } (sorted by digest)
//! ```
//!
//! All numbers are little-endian. Offsets of frames are the sums of their lengths. A
//! frame's digest is checked before it is decoded, so a decoder never sees bytes that
//! the publisher did not write.

use crate::id::{ContentDigest, Sha256Digest};

/// First bytes of a pack; the first frame follows.
pub const PACK_MAGIC: &[u8; 8] = b"VARVEPK1";
/// First bytes of an index.
pub const INDEX_MAGIC: &[u8; 8] = b"VARVEPX1";
/// The most that a frame may hold when decoded, in bytes.
pub const MAX_FRAME: u32 = 1 << 20;
/// The most that a frame may take when stored, in bytes (zstd's bound for 1 MiB).
pub const MAX_STORED_FRAME: u32 = MAX_FRAME + (MAX_FRAME >> 8) + 1024;
/// The longest index that is read, in bytes.
pub const MAX_INDEX: u64 = 1 << 28;

const HEADER: usize = 24;
const FRAME: usize = 40;
const CONTENT: usize = 48;

/// One zstd frame of a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Where it starts in the pack, in bytes.
    pub offset: u64,
    /// Bytes in the pack.
    pub stored: u32,
    /// Bytes when decoded; at most [`MAX_FRAME`].
    pub size: u32,
    /// SHA-256 of the stored bytes.
    pub sha256: Sha256Digest,
}

/// Where a content stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    /// Its identity.
    pub digest: ContentDigest,
    /// Its length in bytes; never zero.
    pub size: u64,
    /// The frame in which it starts.
    pub frame: u32,
    /// Where in that frame's decoded bytes it starts.
    pub start: u32,
}

/// The index of one pack.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PackIndex {
    frames: Vec<Frame>,
    contents: Vec<Location>,
}

/// Why an index was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PackError {
    /// Not an index, or one of a later format.
    #[error("this is not a pack index of format 1")]
    Magic,
    /// Shorter or longer than its own counts say.
    #[error("the pack index has {found} bytes where its header asks for {expected}")]
    Length {
        /// What the header asks for.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// A frame out of its bounds.
    #[error("frame {frame} of the pack index is out of bounds")]
    Frame {
        /// Counted from 0.
        frame: u32,
    },
    /// A content out of its frames, out of order or twice.
    #[error("content {content} of the pack index {why}")]
    Content {
        /// Counted from 0.
        content: u32,
        /// What is wrong.
        why: &'static str,
    },
}

impl PackIndex {
    /// Puts an index together from frames in the order of the pack (offsets are
    /// computed here) and contents in any order.
    pub fn new(
        frames: impl IntoIterator<Item = (u32, u32, Sha256Digest)>,
        mut contents: Vec<Location>,
    ) -> Result<Self, PackError> {
        let mut offset = PACK_MAGIC.len() as u64;
        let mut all = Vec::new();
        for (stored, size, sha256) in frames {
            let frame = all.len() as u32;
            if size == 0 || size > MAX_FRAME || stored == 0 || stored > MAX_STORED_FRAME {
                return Err(PackError::Frame { frame });
            }
            all.push(Frame { offset, stored, size, sha256 });
            offset += u64::from(stored);
        }
        contents.sort_by_key(|c| c.digest);
        let index = Self { frames: all, contents };
        index.check_contents()?;
        Ok(index)
    }

    /// Reads the bytes of an index.
    pub fn parse(bytes: &[u8]) -> Result<Self, PackError> {
        if bytes.len() < HEADER || &bytes[..8] != INDEX_MAGIC || bytes[8..12] != [0; 4] {
            return Err(PackError::Magic);
        }
        let frames = u32_at(bytes, 12) as usize;
        let contents = u32_at(bytes, 16) as usize;
        let expected = (HEADER + frames * FRAME + contents * CONTENT) as u64;
        if bytes.len() as u64 != expected || bytes[20..24] != [0; 4] {
            return Err(PackError::Length { expected, found: bytes.len() as u64 });
        }
        let (frame_bytes, content_bytes) = bytes[HEADER..].split_at(frames * FRAME);
        let frames = frame_bytes
            .chunks_exact(FRAME)
            .map(|b| (u32_at(b, 0), u32_at(b, 4), Sha256Digest(digest_at(b, 8))));
        let contents: Vec<_> = content_bytes
            .chunks_exact(CONTENT)
            .map(|b| Location {
                digest: ContentDigest(digest_at(b, 0)),
                size: u64::from_le_bytes(b[32..40].try_into().expect("8 bytes")),
                frame: u32_at(b, 40),
                start: u32_at(b, 44),
            })
            .collect();
        if let Some(at) = contents.windows(2).position(|c| c[0].digest >= c[1].digest) {
            let why = "is out of order or there twice";
            return Err(PackError::Content { content: at as u32 + 1, why });
        }
        Self::new(frames, contents)
    }

    /// The bytes of the index.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = HEADER + self.frames.len() * FRAME + self.contents.len() * CONTENT;
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(INDEX_MAGIC);
        for number in [0, self.frames.len() as u32, self.contents.len() as u32, 0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for frame in &self.frames {
            bytes.extend_from_slice(&frame.stored.to_le_bytes());
            bytes.extend_from_slice(&frame.size.to_le_bytes());
            bytes.extend_from_slice(&frame.sha256.0);
        }
        for content in &self.contents {
            bytes.extend_from_slice(&content.digest.0);
            bytes.extend_from_slice(&content.size.to_le_bytes());
            bytes.extend_from_slice(&content.frame.to_le_bytes());
            bytes.extend_from_slice(&content.start.to_le_bytes());
        }
        bytes
    }

    /// The frames, in the order of the pack.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The contents, sorted by digest.
    pub fn contents(&self) -> &[Location] {
        &self.contents
    }

    /// Where a content stands, if this pack holds it.
    pub fn find(&self, digest: &ContentDigest) -> Option<&Location> {
        self.contents.binary_search_by_key(digest, |c| c.digest).ok().map(|at| &self.contents[at])
    }

    /// The frames that a content runs through.
    pub fn frames_of(&self, content: &Location) -> std::ops::Range<usize> {
        let first = content.frame as usize;
        let mut end = first;
        let mut left = u64::from(content.start) + content.size;
        while left > 0 {
            left = left.saturating_sub(u64::from(self.frames[end].size));
            end += 1;
        }
        first..end
    }

    /// The length of the pack in bytes, its magic included.
    pub fn pack_size(&self) -> u64 {
        self.frames.last().map_or(PACK_MAGIC.len() as u64, |f| f.offset + u64::from(f.stored))
    }

    fn check_contents(&self) -> Result<(), PackError> {
        for (at, content) in self.contents.iter().enumerate() {
            let bad = |why| Err(PackError::Content { content: at as u32, why });
            if at > 0 && self.contents[at - 1].digest == content.digest {
                return bad("is there twice");
            }
            let Some(rest) = self.frames.get(content.frame as usize..).filter(|r| !r.is_empty())
            else {
                return bad("names a frame that is not there");
            };
            let within = rest[0].size.saturating_sub(content.start);
            if content.size == 0 || within == 0 {
                return bad("is empty or starts behind its frame");
            }
            if content.size <= u64::from(within) {
                continue;
            }
            if content.start != 0 {
                return bad("runs over several frames but does not start one");
            }
            let mut left = content.size;
            for frame in rest {
                left = left.saturating_sub(u64::from(frame.size));
                if left == 0 {
                    break;
                }
            }
            if left > 0 {
                return bad("runs over the end of the pack");
            }
        }
        Ok(())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn digest_at(bytes: &[u8], at: usize) -> [u8; 32] {
    bytes[at..at + 32].try_into().expect("32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> PackIndex {
        let digest = |n: u8| ContentDigest([n; 32]);
        let frames = [(10, 100, 1), (5, 100, 2), (7, 50, 3)];
        let contents = vec![
            Location { digest: digest(9), size: 150, frame: 1, start: 0 },
            Location { digest: digest(1), size: 60, frame: 0, start: 40 },
            Location { digest: digest(3), size: 40, frame: 0, start: 0 },
        ];
        let frames = frames.map(|(stored, size, n)| (stored, size, Sha256Digest([n; 32])));
        PackIndex::new(frames, contents).unwrap()
    }

    #[test]
    fn comes_back_from_its_bytes() {
        let index = index();
        assert_eq!(PackIndex::parse(&index.to_bytes()).unwrap(), index);
        assert_eq!(index.pack_size(), 8 + 22);
        let long = index.find(&ContentDigest([9; 32])).unwrap();
        assert_eq!(index.frames_of(long), 1..3);
        assert_eq!(index.frames_of(index.find(&ContentDigest([1; 32])).unwrap()), 0..1);
        assert!(index.find(&ContentDigest([2; 32])).is_none());
    }

    #[test]
    fn every_broken_byte_is_refused_or_harmless() {
        let bytes = index().to_bytes();
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut broken = bytes.clone();
                broken[at] ^= flip;
                if let Ok(parsed) = PackIndex::parse(&broken) {
                    for content in parsed.contents() {
                        assert!(parsed.frames_of(content).end <= parsed.frames().len());
                    }
                }
            }
            assert!(PackIndex::parse(&bytes[..at]).is_err());
        }
    }
}
