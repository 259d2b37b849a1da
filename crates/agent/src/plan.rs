//! What an upgrade will do, as data: what it fetches, the room it needs on each file
//! system and whether that is there, what is merged first. Made before anything is
//! changed; `varve upgrade --dry-run` prints it.
//!
//! ```text
//! StagePlan (rootfs) --.
//! contents::Plan -------+--> UpgradePlan --> refuse() : budget, room
//! Space ---------------'
//! ```

use serde::Serialize;
use varve_fetch::contents;
use varve_format::deployment::{Layout, ReleaseRef, StateDir};
use varve_format::{DeploymentName, LayerName};
use varve_rootfs::layout::StagePlan;
use varve_sys::space::Space;

use crate::config::{Config, OnMetered};
use crate::layer::carry::Conflict;

/// File systems of ours give out room in blocks of this size.
const BLOCK: u64 = 4096;
/// For records, the manifest's directory, the history, journal blocks.
const RECORDS: u64 = 1 << 20;

/// What an upgrade will do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct UpgradePlan {
    /// The release.
    pub release: ReleaseRef,
    /// What its system calls itself; may be empty.
    pub title: String,
    /// The publisher's notes; may be empty.
    pub notes: String,
    /// What it is built upon.
    pub base: Option<DeploymentName>,
    /// What the new deployment will be called.
    pub deployment: DeploymentName,
    /// How its root will be held.
    pub layout: Layout,
    /// Whether it was staged before, whole: then it is only promoted.
    pub is_here: bool,
    /// Layers that are folded into one before anything is fetched, newest first.
    pub merge: Vec<LayerName>,
    /// State paths of the base that the new deployment no longer keeps; what is in them
    /// stays on the disk, unseen.
    pub dropped_state: Vec<StateDir>,
    /// What the upgrade does to the user's own layers: they are carried on all the same.
    pub conflicts: Vec<Conflict>,
    /// What is fetched.
    pub fetch: Fetch,
    /// The deltas that are used, when there are any.
    pub delta: Option<DeltaUse>,
    /// Why deltas that are offered are not used.
    pub without_delta: Vec<String>,
    /// What is written.
    pub write: Write,
    /// The room that it needs, by file system.
    pub room: Vec<Room>,
    /// The most that may be fetched, in bytes, as configured.
    pub max_download: Option<u64>,
    /// What may be fetched because the link is metered; none: it is not, as far as known.
    pub metered: Option<OnMetered>,
}

/// What is fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Fetch {
    /// Bytes over the wire for contents, by deltas and by packs.
    pub bytes: u64,
    /// Of these, by packs.
    pub packs: u64,
    /// Seconds that all of it takes, at the rate seen so far (or a usual one).
    pub seconds: u64,
    /// Requests for them, when nothing goes wrong.
    pub requests: u64,
    /// Files.
    pub contents: u64,
    /// Bytes of contents that an earlier, interrupted upgrade left here.
    pub here_already: u64,
    /// Bytes of metadata, manifest and indexes that making this plan has cost.
    pub metadata_bytes: u64,
}

/// Deltas, as part of a plan.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeltaUse {
    /// The release that they start from, and those they lead through.
    pub from: String,
    /// Bytes of them still to fetch.
    pub bytes: u64,
    /// Files that they make.
    pub contents: u64,
    /// Memory that applying takes, in bytes.
    pub memory: u64,
    /// Processor time that applying takes, as the publisher measured, in milliseconds.
    pub cpu_milliseconds: u64,
}

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Write {
    /// Paths of the new layer or tree.
    pub paths: u64,
    /// Of these, files that become one more name of a file that is here.
    pub linked: u64,
    /// Contents copied from deployments that are here.
    pub copied: u64,
}

/// The room on one file system, and what is wanted of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Room {
    /// A directory on it.
    pub path: String,
    /// Bytes wanted.
    pub need: u64,
    /// Bytes free.
    pub free: u64,
    /// Bytes that earlier attempts left in incoming/ for nobody: as many of them as it takes
    /// are deleted, oldest first, where what is free does not do.
    pub releasable: u64,
    /// Bytes of what is free that are never used.
    pub reserve: u64,
    /// Inodes wanted.
    pub need_inodes: u64,
    /// Inodes free; none where they are made as needed.
    pub free_inodes: Option<u64>,
}

/// Why a plan is not carried out. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Too few bytes.
    #[error(
        "{path} has too little room: {need} bytes are needed, {free} are free, of which {reserve} are kept in reserve"
    )]
    Bytes {
        /// Where.
        path: String,
        /// Wanted.
        need: u64,
        /// There.
        free: u64,
        /// Never used.
        reserve: u64,
    },
    /// Too few inodes.
    #[error("{path} has too few inodes: {need} are needed, {free} are free")]
    Inodes {
        /// Where.
        path: String,
        /// Wanted.
        need: u64,
        /// There.
        free: u64,
    },
    /// The link is metered.
    #[error("the network is metered, and `metered` in the configuration says {}", match rule {
        OnMetered::DeltaOnly => "that packs are not fetched over it",
        _ => "that nothing is fetched over it",
    })]
    Metered {
        /// As configured.
        rule: OnMetered,
    },
    /// Over the data budget.
    #[error("{bytes} bytes would be fetched; the configuration allows {limit} (max-download)")]
    Budget {
        /// Wanted.
        bytes: u64,
        /// Allowed.
        limit: u64,
    },
}

impl Room {
    /// Whether there is enough.
    pub fn fits(&self) -> bool {
        self.refusal().is_none()
    }

    /// Bytes that must become free before anything is written.
    pub fn short(&self) -> u64 {
        (self.need + self.reserve).saturating_sub(self.free)
    }

    fn refusal(&self) -> Option<Refusal> {
        let path = self.path.clone();
        if self.short() > self.releasable {
            let (need, free, reserve) = (self.need, self.free + self.releasable, self.reserve);
            return Some(Refusal::Bytes { path, need, free, reserve });
        }
        let free = self.free_inodes?;
        let need = self.need_inodes;
        (need > free).then_some(Refusal::Inodes { path, need, free })
    }
}

impl UpgradePlan {
    /// Whether it must not be carried out, and why.
    pub fn refuse(&self) -> Result<(), Refusal> {
        let bytes = self.fetch.bytes + self.fetch.metadata_bytes;
        if let Some(limit) = self.max_download.filter(|&limit| bytes > limit) {
            return Err(Refusal::Budget { bytes, limit });
        }
        self.refuse_metered(self.fetch.bytes, self.fetch.packs)?;
        self.room.iter().find_map(Room::refusal).map_or(Ok(()), Err)
    }

    /// Whether so many bytes, so many of them by packs, may not come over a metered link.
    pub fn refuse_metered(&self, bytes: u64, packs: u64) -> Result<(), Refusal> {
        match self.metered {
            Some(rule @ OnMetered::Refuse) if bytes > 0 => Err(Refusal::Metered { rule }),
            Some(rule @ OnMetered::DeltaOnly) if packs > 0 => Err(Refusal::Metered { rule }),
            _ => Ok(()),
        }
    }
}

/// What is written beside the new layer or tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Beside {
    /// The manifest's text, and the state that is copied.
    pub bytes: u64,
    /// Directories of a merge: each is made anew, while files are linked.
    pub directories: u64,
    /// Contents that deltas make, and the bytes of these.
    pub made: (u64, u64),
    /// Bytes of deltas that are kept until all is staged.
    pub deltas: u64,
    /// Bytes that earlier attempts left for nobody.
    pub releasable: u64,
}

/// What staging and fetching want of the file system that holds `/varve`.
/// `beside` is what is written beside the new layer or tree.
pub fn room(
    path: String,
    space: Space,
    stage: &StagePlan,
    fetch: &contents::Plan,
    beside: &Beside,
    config: &Config,
) -> Room {
    // Each file ends in a block that it does not fill.
    let contents = fetch.contents() as u64 + beside.made.0;
    let ends = (contents + stage.write_inodes) * BLOCK / 2;
    let written = fetch.disk_bytes() + beside.made.1 + beside.deltas + ends + stage.write_bytes;
    let under_way = fetch.bytes().min(contents::ON_THE_WAY_BYTES);
    let need = written + under_way + beside.bytes + beside.directories * BLOCK + RECORDS;
    let need_inodes = contents + stage.write_inodes + beside.directories + 64;
    Room {
        path,
        need,
        free: space.free,
        releasable: beside.releasable,
        reserve: config.reserve.0,
        need_inodes,
        free_inodes: (space.free_inodes != u64::MAX).then_some(space.free_inodes),
    }
}

/// Which layers of a stack are folded into one before another is laid on top: all of
/// them, once the new layer would make it deeper than the configuration says.
pub fn layers_to_merge(stack: &[LayerName], config: &Config) -> Vec<LayerName> {
    let deep = stack.len() + 1 > config.layers as usize && stack.len() > 1;
    if deep && config.layout == Layout::Overlay { stack.to_vec() } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(need: u64, free: u64, need_inodes: u64, free_inodes: Option<u64>) -> Room {
        let path = "/run/varve/physical".to_owned();
        Room { path, need, free, releasable: 0, reserve: 100, need_inodes, free_inodes }
    }

    #[test]
    fn room_is_bytes_and_inodes_and_never_the_reserve() {
        assert!(room(900, 1000, 5, Some(5)).fits());
        assert!(room(900, 1000, 5, None).fits());
        assert!(!room(901, 1000, 5, None).fits());
        assert!(!room(1, 50, 0, None).fits(), "less than the reserve is there");
        let short = Room { releasable: 200, ..room(1000, 900, 0, None) };
        assert!(short.fits() && short.short() == 200, "what was left for nobody goes");
        let refused = Room { releasable: 199, ..short }.refusal().unwrap().to_string();
        assert!(refused.contains("1099 are free"), "{refused}");
        assert_eq!(
            room(0, 1000, 6, Some(5)).refusal().unwrap().to_string(),
            "/run/varve/physical has too few inodes: 6 are needed, 5 are free"
        );
    }

    #[test]
    fn the_lowest_are_merged_once_the_stack_is_too_deep() {
        let stack: Vec<LayerName> = ["u3", "u2", "b"].map(|name| name.parse().unwrap()).to_vec();
        let with = |layers, stack: &[LayerName]| {
            layers_to_merge(stack, &Config { layers, ..Config::default() }).len()
        };
        assert_eq!(with(2, &stack[2..]), 0, "a base alone");
        assert_eq!(with(2, &stack[1..]), 2);
        assert_eq!(with(3, &stack[1..]), 0);
        assert_eq!(with(3, &stack), 3);
        let config = Config { layout: Layout::HardLink, ..Config::default() };
        assert!(layers_to_merge(&stack, &config).is_empty(), "a tree has no depth");
    }
}
