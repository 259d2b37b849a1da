//! Which frames of which packs hold what is missing: pure, printable, made before a byte
//! is fetched.
//!
//! ```text
//! wanted contents --find, newest pack first--> frames (ascending in each pack)
//!                                                 | neighbours, and gaps cheaper to
//!                                                 v read over than to ask again
//!                                              runs: one request each
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use varve_format::ContentDigest;
use varve_format::pack::{Frame, PackIndex};
use varve_format::release::PackRef;

use super::ContentsError;

/// A content that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) digest: ContentDigest,
    pub(super) size: u64,
    /// Bytes at its beginning that an earlier run left here, verified frame by frame; a
    /// boundary of frames. 0 when nothing is here.
    pub(super) resume: u64,
    /// The length in the name of the part that an earlier run left: `resume` or a little
    /// more, where that run ended within a frame's worth of bytes.
    pub(super) resume_name: u64,
}

/// A part of a frame that belongs to a wanted content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Index into [`Plan::items`].
    pub(super) item: usize,
    /// Where the piece stands in the content.
    pub(super) offset: u64,
    /// Where it starts in the decoded frame.
    pub(super) start: usize,
    pub(super) length: usize,
}

/// One frame to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) frame: Frame,
    /// Where the request that brings this frame ends in the pack.
    pub(super) until: u64,
    pub(super) pieces: Vec<Piece>,
}

/// What will be fetched from one pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackJobs {
    pub(super) pack: PackRef,
    pub(super) jobs: Vec<Job>,
}

/// What will be fetched, from where.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    pub(super) items: Vec<Item>,
    pub(super) packs: Vec<PackJobs>,
    bytes: u64,
    requests: u64,
    reused: u64,
}

impl Plan {
    /// Bytes of frames to fetch, gaps that are read over included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Requests that this takes when nothing goes wrong.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// How many contents are to come.
    pub fn contents(&self) -> usize {
        self.items.len()
    }

    /// Bytes that the contents to come will take on the disk, holes not counted.
    pub fn disk_bytes(&self) -> u64 {
        self.items.iter().map(|item| item.size - item.resume).sum()
    }

    /// Bytes of wanted contents that earlier runs left here.
    pub fn reused(&self) -> u64 {
        self.reused
    }

    pub(super) fn make(
        wanted: impl IntoIterator<Item = (ContentDigest, u64)>,
        packs: &[(PackRef, PackIndex)],
        here: &super::store::Here,
        read_over: u64,
    ) -> Result<Self, ContentsError> {
        let mut plan = Self::default();
        let mut frames: Vec<BTreeMap<usize, Vec<Piece>>> = vec![BTreeMap::new(); packs.len()];
        for (digest, size) in wanted {
            if here.complete.contains(&digest) {
                plan.reused += size;
                continue;
            }
            let Some((at, location)) = packs
                .iter()
                .enumerate()
                .find_map(|(at, (_, index))| Some((at, index.find(&digest)?)))
            else {
                return Err(ContentsError::NotInPacks { digest });
            };
            if location.size != size {
                return Err(ContentsError::OtherSize {
                    digest,
                    manifest: size,
                    index: location.size,
                });
            }
            let index = &packs[at].1;
            let part = here.parts.get(&digest).copied().unwrap_or(0);
            let item = plan.items.len();
            let mut resume = 0;
            let mut offset = 0;
            for number in index.frames_of(location) {
                let start = if offset == 0 { location.start } else { 0 };
                let length = u64::from(index.frames()[number].size - start).min(size - offset);
                // The last frame is always fetched: with it comes the end of the content.
                if offset + length <= part && offset == resume && offset + length < size {
                    resume = offset + length;
                } else {
                    let piece =
                        Piece { item, offset, start: start as usize, length: length as usize };
                    frames[at].entry(number).or_default().push(piece);
                }
                offset += length;
            }
            plan.reused += resume;
            plan.items.push(Item { digest, size, resume, resume_name: part });
        }
        for ((pack, index), frames) in packs.iter().zip(frames) {
            if frames.is_empty() {
                continue;
            }
            let mut jobs: Vec<Job> = frames
                .into_iter()
                .map(|(number, pieces)| {
                    let frame = index.frames()[number];
                    Job { frame, until: frame.offset + u64::from(frame.stored), pieces }
                })
                .collect();
            for run in runs(&jobs, read_over) {
                plan.requests += 1;
                let until = jobs[run.end - 1].until;
                plan.bytes += until - jobs[run.start].frame.offset;
                jobs[run].iter_mut().for_each(|job| job.until = until);
            }
            plan.packs.push(PackJobs { pack: *pack, jobs });
        }
        Ok(plan)
    }
}

/// Groups frames that one request brings: neighbours, or with a gap of at most `read_over`.
fn runs(jobs: &[Job], read_over: u64) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut first = 0;
    for at in 1..=jobs.len() {
        if at == jobs.len() || jobs[at].frame.offset - jobs[at - 1].until > read_over {
            runs.push(first..at);
            first = at;
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contents::store::Here;
    use varve_format::Sha256Digest;
    use varve_format::pack::Location;

    fn digest(n: u8) -> ContentDigest {
        ContentDigest([n; 32])
    }

    /// Frames of 100 stored bytes and 100 decoded ones; content n in frame n, and content
    /// 9 over frames 9, 10 and half of 11.
    fn pack() -> (PackRef, PackIndex) {
        let frames = (0..12).map(|n| (100, 100, Sha256Digest([n; 32])));
        let mut contents: Vec<_> = (0..9)
            .map(|n| Location { digest: digest(n), size: 60, frame: n.into(), start: 40 })
            .collect();
        contents.push(Location { digest: digest(9), size: 250, frame: 9, start: 0 });
        let index = PackIndex::new(frames, contents).unwrap();
        let zero = Sha256Digest([0; 32]);
        (PackRef { id: zero, size: index.pack_size(), index_sha256: zero, index_size: 0 }, index)
    }

    fn plan(wanted: &[u8], here: &Here) -> Plan {
        let (pack, index) = pack();
        let sizes = wanted.iter().map(|&n| (digest(n), if n == 9 { 250 } else { 60 }));
        Plan::make(sizes, &[(pack, index)], here, 100).unwrap()
    }

    #[test]
    fn neighbours_and_small_gaps_are_one_request() {
        let plan = plan(&[6, 0, 2, 1], &Here::default());
        assert_eq!(plan.requests(), 2);
        assert_eq!(plan.bytes(), 300 + 100);
        let jobs = &plan.packs[0].jobs;
        assert_eq!(jobs.iter().map(|j| j.frame.offset).collect::<Vec<_>>(), [8, 108, 208, 608]);
        assert_eq!(jobs.iter().map(|j| j.until).collect::<Vec<_>>(), [308, 308, 308, 708]);
        // One frame in between is read over, two are not.
        assert_eq!(self::plan(&[0, 2], &Here::default()).requests(), 1);
        assert_eq!(self::plan(&[0, 3], &Here::default()).requests(), 2);
    }

    #[test]
    fn what_is_here_is_not_fetched_again() {
        let mut here = Here::default();
        here.complete.insert(digest(0));
        here.parts.insert(digest(9), 230);
        let plan = plan(&[0, 1, 9], &here);
        assert_eq!(plan.reused(), 60 + 200);
        assert_eq!(plan.contents(), 2);
        assert_eq!(plan.items[1].resume, 200, "the last whole frame");
        let last = plan.packs[0].jobs.last().unwrap();
        assert_eq!(last.pieces, [Piece { item: 1, offset: 200, start: 0, length: 50 }]);
        assert_eq!(plan.disk_bytes(), 60 + 50);
    }

    #[test]
    fn a_content_that_no_pack_holds_is_an_error() {
        let (pack, index) = pack();
        let packs = [(pack, index)];
        let make = |n, size| Plan::make([(digest(n), size)], &packs, &Here::default(), 0);
        assert!(matches!(make(77, 1), Err(ContentsError::NotInPacks { .. })));
        assert!(matches!(make(1, 61), Err(ContentsError::OtherSize { .. })));
    }
}
