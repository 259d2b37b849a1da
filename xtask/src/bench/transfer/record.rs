//! What was measured, kept in `target/varve/transfer.json`: a run of a part adds to it.

use crate::bench::measure::Cost;
use crate::project::{Result, cache, write};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Raised when older figures cannot be read any more; they are measured again then.
const FORMAT: u32 = 3;

/// From which release to which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PairName {
    /// Debian 13 as released, to the same with its updates.
    #[value(name = "debian-13")]
    #[serde(rename = "debian-13")]
    Trixie,
    /// Debian 12 as released, to the same with its updates.
    #[value(name = "debian-12")]
    #[serde(rename = "debian-12")]
    Bookworm,
    /// Debian 13 with its updates, to the same with one small package more.
    OnePackage,
}

impl PairName {
    pub(super) const ALL: [Self; 3] = [Self::Trixie, Self::Bookworm, Self::OnePackage];

    /// As on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Trixie => "debian-13",
            Self::Bookworm => "debian-12",
            Self::OnePackage => "one-package",
        }
    }

    /// For people.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Trixie => "Debian 13, to its security updates",
            Self::Bookworm => "Debian 12, to its security updates",
            Self::OnePackage => "Debian 13, one small package more",
        }
    }
}

/// How the new release comes to a device that has the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Way {
    Varve,
    Varve256,
    Varve64,
    VarvePacks,
    Ostree,
    OstreeDelta,
    Casync,
    Zchunk,
    Zstd,
    Rsync,
}

impl Way {
    pub(super) const ALL: [Self; 10] = [
        Self::Varve,
        Self::Varve256,
        Self::Varve64,
        Self::VarvePacks,
        Self::Ostree,
        Self::OstreeDelta,
        Self::Casync,
        Self::Zchunk,
        Self::Zstd,
        Self::Rsync,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Varve => "Varve, delta",
            Self::Varve256 => "Varve, delta, 256 MiB",
            Self::Varve64 => "Varve, delta, 64 MiB",
            Self::VarvePacks => "Varve, packs alone",
            Self::Ostree => "OSTree",
            Self::OstreeDelta => "OSTree, static delta",
            Self::Casync => "casync",
            Self::Zchunk => "zchunk",
            Self::Zstd => "zstd -19 --patch-from",
            Self::Rsync => "rsync -z",
        }
    }

    pub(super) fn is_ours(self) -> bool {
        matches!(self, Self::Varve | Self::Varve256 | Self::Varve64 | Self::VarvePacks)
    }

    /// In one line, what was run.
    pub(super) fn method(self) -> &'static str {
        match self {
            Self::Varve => {
                "`varve upgrade` to promoted (fetched, staged, all of it verified, synced), told that \
                 memory does not matter; publisher: `varve-repo delta`, the proof included"
            }
            Self::Varve256 => {
                "the same, told that it may use 256 MiB (what it takes at most by itself)"
            }
            Self::Varve64 => "the same, told that it may use 64 MiB",
            Self::VarvePacks => {
                "the same from a repository without deltas; publisher: `varve-repo build` of the new \
                 release"
            }
            Self::Ostree => {
                "`ostree pull --disable-static-deltas`, from an archive repository; publisher: \
                 `ostree commit` of the new release"
            }
            Self::OstreeDelta => {
                "`ostree pull --require-static-deltas`; publisher: `ostree static-delta generate`"
            }
            Self::Casync => {
                "`casync extract` over HTTP, the old tree as seed, chunks of 64 KiB on average; \
                 publisher: `casync make`. It stands for RAUC's method too: desync is not in Debian"
            }
            Self::Zchunk => {
                "`zckdl` of the tree as a tar in zchunk form, with the old one here (SWUpdate's method); \
                 publisher: `zck`"
            }
            Self::Zstd => {
                "the size of `zstd -19 --long=31 --patch-from` between the two trees as tars, not \
                 fetched but counted as it is; device: `zstd -d` of it, with the whole old tar in memory"
            }
            Self::Rsync => {
                "`rsync -aHAXz --checksum --delete` from a daemon, counted at a relay between the two"
            }
        }
    }
}

/// Times are not to be compared when other work used more than so much of a processor.
const QUIET: f64 = 0.25;

/// What a program took.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Took {
    pub(super) seconds: f64,
    pub(super) processor_seconds: f64,
    /// Of the largest process, in bytes.
    pub(super) memory: u64,
    /// Processors that other work of the machine used meanwhile.
    pub(super) others: f64,
}

impl Took {
    /// The times are those of a machine that did other work too.
    pub(super) fn is_disturbed(&self) -> bool {
        self.others > QUIET
    }
}

impl From<Cost> for Took {
    fn from(cost: Cost) -> Self {
        Self {
            seconds: cost.time.as_secs_f64(),
            processor_seconds: cost.processor.as_secs_f64(),
            memory: cost.memory,
            others: cost.others,
        }
    }
}

/// One way on one pair.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Row {
    /// On the wire, both ways, heads and metadata included.
    pub(super) bytes: u64,
    pub(super) requests: Option<u64>,
    pub(super) device: Took,
    pub(super) publisher: Option<Took>,
    /// Bytes of the delta itself, as it was made.
    pub(super) delta: Option<u64>,
    /// What there is to say beside the numbers.
    pub(super) note: String,
    /// When it was measured.
    pub(super) unix_time: u64,
}

impl Row {
    pub(super) fn new(bytes: u64, requests: Option<u64>, device: Cost) -> Self {
        Self {
            bytes,
            requests,
            device: device.into(),
            publisher: None,
            delta: None,
            note: String::new(),
            unix_time: now(),
        }
    }

    /// With what the publisher's part took.
    pub(super) fn made_by(self, publisher: Cost) -> Self {
        Self { publisher: Some(publisher.into()), ..self }
    }
}

/// One pair.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Figures {
    /// Of the releases that were compared: others are another pair.
    pub(super) key: String,
    /// What the pair is, for people.
    pub(super) describe: String,
    pub(super) rows: BTreeMap<Way, Row>,
    /// A second delta from the same release, to another one.
    pub(super) second_delta: Option<Took>,
}

/// How the contents came when the link was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum By {
    Packs,
    Delta,
}

impl By {
    pub(crate) const ALL: [Self; 2] = [Self::Packs, Self::Delta];
}

/// What cuts and kills cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Resume {
    pub(crate) seed: u64,
    pub(crate) cuts: u64,
    pub(crate) kills: u64,
    /// Bytes on the wire of one run without cuts.
    pub(crate) clean: u64,
    /// Bytes on the wire with them.
    pub(crate) moved: u64,
    pub(crate) seconds: f64,
    pub(crate) unix_time: u64,
}

/// All that was measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    format: u32,
    pub(super) pairs: BTreeMap<PairName, Figures>,
    #[serde(default)]
    pub(crate) resume: BTreeMap<By, Resume>,
}

impl Record {
    fn path() -> Result<PathBuf> {
        Ok(cache()?.join("transfer.json"))
    }

    /// What earlier runs measured; nothing where that cannot be read.
    pub(crate) fn load() -> Result<Self> {
        let text = fs::read(Self::path()?).unwrap_or_default();
        let read: Option<Self> = serde_json::from_slice(&text).ok();
        let fresh = Self { format: FORMAT, ..Self::default() };
        Ok(read.filter(|record| record.format == FORMAT).unwrap_or(fresh))
    }

    pub(crate) fn save(&self) -> Result {
        write(&Self::path()?, serde_json::to_string_pretty(self)?)
    }

    /// The figures of a pair; those of other releases are dropped.
    pub(super) fn pair(&mut self, name: PairName, key: &str, describe: &str) -> &mut Figures {
        let figures = self.pairs.entry(name).or_default();
        if figures.key != key {
            *figures = Figures { key: key.to_owned(), ..Figures::default() };
        }
        figures.describe = describe.to_owned();
        figures
    }

    /// Nothing is missing.
    pub(super) fn is_complete(&self) -> bool {
        let whole = |pair| {
            self.pairs
                .get(pair)
                .is_some_and(|figures| Way::ALL.iter().all(|way| figures.rows.contains_key(way)))
        };
        By::ALL.iter().all(|by| self.resume.contains_key(by)) && PairName::ALL.iter().all(whole)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
