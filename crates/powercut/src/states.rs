//! The disk states that a power cut allows, each with a name that gives it again.
//!
//! ```text
//!      flush 3              flush 4              flush 5
//! --------|---w--w--w--w-------|---w--w--w----------|---- time
//!         '---- window 3 ------'---- window 4 ------'
//!
//! 4          everything before flush 4, nothing after        (a prefix at a flush)
//! 4p2        and the first two writes of window 4            (a prefix)
//! 4s9        and a random part of its writes, by seed 9      (a reordering)
//! 4t512.9    and of those, random sectors of 512 bytes       (torn)
//! 4t4096.9   the same with pieces of 4 KiB
//! ```
//!
//! A later write of a window may be there without an earlier one, also where the two
//! cover the same place: that is every order in which a disk may have gone about them.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::disk::copy_image;
use crate::error::{At, Result, RigError};
use crate::log::{Entry, Log, Window};

/// What is on the disk of what came after the last flush.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Cut {
    /// Nothing.
    Boundary,
    /// This many writes, from the first on.
    Prefix(usize),
    /// A random part of the writes.
    Subset(u64),
    /// A random part of the pieces of `grain` bytes of a random part of the writes.
    Torn {
        /// Size of the pieces, in bytes.
        grain: u64,
        /// Of the random numbers.
        seed: u64,
    },
}

/// One state of a recorded disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct State {
    /// The window in which power failed: all windows before it are on the disk.
    pub window: usize,
    /// What of it is there.
    pub cut: Cut,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let window = self.window;
        match self.cut {
            Cut::Boundary => write!(f, "{window}"),
            Cut::Prefix(count) => write!(f, "{window}p{count}"),
            Cut::Subset(seed) => write!(f, "{window}s{seed}"),
            Cut::Torn { grain, seed } => write!(f, "{window}t{grain}.{seed}"),
        }
    }
}

impl FromStr for State {
    type Err = RigError;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || RigError::Unknown(format!("{text:?} names no state, such as 4 or 4t512.9"));
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (window, rest) = text.split_at(end);
        let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
        let cut = match rest.split_at_checked(1) {
            None => Cut::Boundary,
            Some(("p", count)) => Cut::Prefix(count.parse().map_err(|_| bad())?),
            Some(("s", seed)) => Cut::Subset(number(seed)?),
            Some(("t", torn)) => {
                let (grain, seed) = torn.split_once('.').ok_or_else(bad)?;
                Cut::Torn { grain: number(grain)?, seed: number(seed)? }
            }
            Some(_) => return Err(bad()),
        };
        Ok(Self { window: window.parse().map_err(|_| bad())?, cut })
    }
}

/// The mark of a place where a sync was left out on purpose.
pub const LEFT_OUT: &str = "a step is left out";

/// In so many windows the lack of a sync shows: in that which it would have ended, and in the
/// next ones, when a name is durable and the bytes behind it are not, up to what is promised
/// then: each fsync of ext4 is two or three flushes.
const SHOWS_WITHIN: usize = 32;

/// Chooses about `count` different states: each flush first (a random choice of them when
/// there are more than half of `count`), then random cuts between flushes. Where syncs were
/// left out on purpose, they are all of the windows near there.
pub fn plan(log: &Log, count: usize, seed: u64) -> Vec<State> {
    let mut random = StdRng::seed_from_u64(seed);
    let all = log.windows();
    let left_out = |window: &Window| {
        let mark = |entry: &Entry| matches!(entry, Entry::Mark(mark) if mark == LEFT_OUT);
        log.entries()[window.entries.clone()].iter().any(mark)
    };
    let near: BTreeSet<usize> = all
        .iter()
        .filter(|window| left_out(window))
        .flat_map(|window| window.number..window.number + SHOWS_WITHIN)
        .collect();
    let windows: Vec<Window> =
        all.iter().filter(|w| near.is_empty() || near.contains(&w.number)).cloned().collect();
    let mut boundaries: Vec<State> = Vec::new();
    for window in &windows {
        // A window after an empty one begins with the same disk.
        if !near.is_empty() || window.number == 0 || all[window.number - 1].writes > 0 {
            boundaries.push(State { window: window.number, cut: Cut::Boundary });
        }
    }
    if boundaries.len() > count.div_ceil(2) {
        boundaries = boundaries.choose_multiple(&mut random, count.div_ceil(2)).copied().collect();
    }
    let mut chosen: BTreeSet<State> = boundaries.into_iter().collect();
    if let Some(last) = windows.last().filter(|last| last.writes > 0) {
        chosen.insert(State { window: last.number, cut: Cut::Prefix(last.writes) });
    }
    let open: Vec<&Window> = windows.iter().filter(|window| window.writes > 0).collect();
    let mut attempts = 0;
    while chosen.len() < count && attempts < count * 8 && !open.is_empty() {
        attempts += 1;
        chosen.insert(random_state(&open, &mut random));
    }
    chosen.into_iter().collect()
}

fn random_state(open: &[&Window], random: &mut StdRng) -> State {
    // By number of writes, or each window alike: long windows hold most of the states,
    // short ones most of the commits.
    let window = if random.random() {
        open.choose(random).expect("not empty")
    } else {
        open.choose_weighted(random, |window| window.writes).expect("each has writes")
    };
    let seed = u64::from(random.random::<u32>());
    let cut = match random.random_range(0..4) {
        0 if window.writes > 1 => Cut::Prefix(random.random_range(1..window.writes)),
        1 | 0 if window.writes > 1 => Cut::Subset(seed),
        2 => Cut::Torn { grain: 4096, seed },
        _ => Cut::Torn { grain: 512, seed },
    };
    State { window: window.number, cut }
}

impl State {
    /// How many entries of the log may have come before the cut. Whatever of a window is on
    /// the disk, power can have failed as late as the window's end: a mark in it claims
    /// something that this state must keep. So a sync that was not made is found.
    pub fn latest(&self, log: &Log) -> usize {
        log.windows()[self.window].entries.end
    }

    /// Puts onto `image`, which holds all windows before, what this state has of its own.
    pub fn apply(&self, log: &Log, image: &File) -> Result<()> {
        let window = &log.windows()[self.window];
        let writes: Vec<&Entry> =
            log.entries()[window.entries.clone()].iter().filter(|e| e.range().is_some()).collect();
        match self.cut {
            Cut::Boundary => Ok(()),
            Cut::Prefix(count) => {
                writes.iter().take(count).try_for_each(|entry| log.apply(entry, &ALL, image))
            }
            Cut::Subset(seed) => {
                let mut random = StdRng::seed_from_u64(seed);
                let (end, share) = moment(writes.len(), &mut random);
                for entry in &writes[..end] {
                    if random.random_bool(share) {
                        log.apply(entry, &ALL, image)?;
                    }
                }
                Ok(())
            }
            Cut::Torn { grain, seed } => {
                let mut random = StdRng::seed_from_u64(seed);
                let (end, share) = moment(writes.len(), &mut random);
                for entry in &writes[..end] {
                    let range = entry.range().expect("only what writes");
                    // Of the writes, a third is whole, a third torn, a third as the rest.
                    let part = match random.random_range(0..3) {
                        0 => 1.0,
                        1 => 0.5,
                        _ => share,
                    };
                    let mut at = range.start;
                    while at < range.end {
                        let next = (at / grain + 1) * grain;
                        if random.random_bool(part) {
                            log.apply(entry, &(at..next), image)?;
                        }
                        at = next;
                    }
                }
                Ok(())
            }
        }
    }
}

const ALL: std::ops::Range<u64> = 0..u64::MAX;

/// When in the window power fails (after how many writes), and how much of what was
/// written by then a disk had got round to.
fn moment(writes: usize, random: &mut StdRng) -> (usize, f64) {
    let end = if random.random() { writes } else { random.random_range(1..=writes) };
    (end, *[0.1, 0.5, 0.9].choose(random).expect("not empty"))
}

/// A disk image that is moved forward from flush to flush; states branch off it.
#[derive(Debug)]
pub struct Timeline<'a> {
    log: &'a Log,
    image: File,
    path: PathBuf,
    /// How many entries of the log are on the image.
    done: usize,
}

impl<'a> Timeline<'a> {
    /// Begins at `base`, the disk before the first entry; `path` is a new file.
    pub fn new(log: &'a Log, base: &Path, path: PathBuf) -> Result<Self> {
        copy_image(base, &path)?;
        let image = File::options().read(true).write(true).open(&path).at("open", &path)?;
        Ok(Self { log, image, path, done: 0 })
    }

    /// Lays out a state as a new file. States must come in the order of their windows.
    pub fn lay_out(&mut self, state: State, target: &Path) -> Result<()> {
        let start = self.log.windows()[state.window].entries.start;
        while self.done < start {
            self.log.apply(&self.log.entries()[self.done], &ALL, &self.image)?;
            self.done += 1;
        }
        copy_image(&self.path, target)?;
        let image = File::options().read(true).write(true).open(target).at("open", target)?;
        state.apply(self.log, &image)
    }
}

impl Drop for Timeline<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(dir: &Path) -> Log {
        let mut log = Log::create(dir.join("log")).unwrap();
        log.write(0, &[1; 1024]).unwrap();
        log.push(Entry::Flush);
        log.push(Entry::Mark("one".to_owned()));
        log.write(512, &[2; 1024]).unwrap();
        log.write(0, &[3; 512]).unwrap();
        log.push(Entry::Mark("two".to_owned()));
        log.push(Entry::Flush);
        log.push(Entry::Flush);
        log.push(Entry::Zero { offset: 0, length: 512 });
        log
    }

    fn sectors(timeline: &mut Timeline<'_>, state: &str, dir: &Path) -> Vec<u8> {
        let target = dir.join(state);
        timeline.lay_out(state.parse().unwrap(), &target).unwrap();
        let bytes = std::fs::read(target).unwrap();
        bytes.chunks(512).map(|sector| sector[0]).collect()
    }

    #[test]
    fn states_hold_what_was_flushed_and_any_part_of_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path());
        let base = dir.path().join("base");
        let disk = File::options().write(true).create_new(true).open(&base).unwrap();
        disk.set_len(2048).unwrap();
        let mut timeline = Timeline::new(&log, &base, dir.path().join("timeline")).unwrap();
        let mut look = |state: &str| sectors(&mut timeline, state, dir.path());
        assert_eq!(look("0"), [0, 0, 0, 0]);
        assert_eq!(look("0p1"), [1, 1, 0, 0]);
        assert_eq!(look("1"), [1, 1, 0, 0]);
        assert_eq!(look("1p1"), [1, 2, 2, 0]);
        assert_eq!(look("1p2"), [3, 2, 2, 0]);
        let mut subsets = BTreeSet::new();
        let mut torn = BTreeSet::new();
        for seed in 0..200 {
            subsets.insert(look(&format!("1s{seed}")));
            torn.insert(look(&format!("1t512.{seed}")));
        }
        let all: BTreeSet<Vec<u8>> = [[1, 1, 0, 0], [1, 2, 2, 0], [3, 1, 0, 0], [3, 2, 2, 0]]
            .map(|sectors| sectors.to_vec())
            .into();
        assert_eq!(subsets, all);
        assert!(torn.contains(&vec![1, 2, 0, 0]) && torn.contains(&vec![1, 1, 2, 0]));
        assert_eq!(torn.len(), 8, "each sector old or new: {torn:?}");
        assert_eq!(look("3"), [3, 2, 2, 0]);
        assert_eq!(look("3p1"), [0, 2, 2, 0]);
    }

    #[test]
    fn a_plan_repeats_and_begins_with_the_flushes() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path());
        let first = plan(&log, 20, 7);
        assert_eq!(first, plan(&log, 20, 7));
        assert_ne!(first, plan(&log, 20, 8));
        for state in ["0", "1", "2", "3p1"] {
            assert!(first.contains(&state.parse().unwrap()), "{state} in {first:?}");
        }
        assert!(!first.contains(&"3".parse().unwrap()), "the same disk as 2");
        for state in &first {
            assert_eq!(state.to_string().parse::<State>().unwrap(), *state);
        }
        assert!("x4".parse::<State>().is_err() && "4q".parse::<State>().is_err());
    }

    #[test]
    fn where_a_sync_was_left_out_is_looked_at_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path());
        log.push(Entry::Flush);
        log.write(512, &[2; 512]).unwrap();
        log.push(Entry::Mark(LEFT_OUT.to_owned()));
        log.write(1024, &[2; 512]).unwrap();
        log.push(Entry::Flush);
        log.write(0, &[4; 512]).unwrap();
        let states = plan(&log, 12, 7);
        assert!(states.iter().all(|state| state.window >= 4), "{states:?}");
        for state in ["4", "5", "5p1"] {
            assert!(states.contains(&state.parse().unwrap()), "{state} in {states:?}");
        }
    }

    #[test]
    fn a_claim_counts_until_the_end_of_its_window() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path());
        let marks = |state: &str| log.marks(state.parse::<State>().unwrap().latest(&log));
        assert!(marks("0p1").is_empty(), "the mark came after the flush");
        for state in ["1", "1p1", "1s5", "2"] {
            assert_eq!(marks(state), ["one", "two"], "{state}");
        }
    }
}
