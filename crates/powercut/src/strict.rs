//! The strictest file system: the crash model of `varve_testkit` in place of a disk. A name is
//! lost until its directory is synced, bytes may be gone or anything until their file is, and
//! either may be there all the same. A journal makes older changes durable with newer ones; a
//! sync that only hastens what such a journal does anyway can be missed here alone.
//!
//! ```text
//! in memory: prepare -> run, every change told by varve_sys::trace -> Recording
//!              '--> plan --> [state | state | ...] --> laid out in memory, look, recover, done
//! ```
//!
//! What the kernel and the user change through a mounted system is not told, and is seen with
//! the next sync of the whole file system.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use varve_sys::trace::Event;
use varve_testkit::crash::{Image, Recorder, Recording, Survival};

use crate::error::Result;
use crate::run::{Case, Failing, Recorded, Shared, Tape, armed};
use crate::scenario::{Before, SharedMark, Site, below};
use crate::states::LEFT_OUT;

/// One state: after how many changes power failed, and what was left of what was not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    cut: usize,
    survival: Survival,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cut, survival } = self;
        match survival {
            Survival::SyncedOnly => write!(f, "{cut} synced"),
            Survival::Everything => write!(f, "{cut} all"),
            Survival::NamesOnly => write!(f, "{cut} names"),
            Survival::Some(seed) => write!(f, "{cut} some {seed}"),
            Survival::Stale(seed) => write!(f, "{cut} stale {seed}"),
        }
    }
}

/// Prepares a device in memory and records the scenario once.
pub(crate) fn record(case: &Case<'_>) -> Result<Recorded> {
    let outside = below(case.scratch, "outside")?;
    let site = Site { disk: case.scratch.join("disk"), outside };
    let mounted = case.fs.mount_empty(&site.disk)?;
    let facts = case.scenario.prepare(&site).map_err(case.error("preparing"))?;
    // Where the boot stage and the running system have it.
    let also = ["root", "run/varve/physical"].map(|name| site.disk.with_file_name(name));
    let recorder = Recorder::start(&site.disk, &also);
    let mark: SharedMark = Arc::new(recorder.marker());
    let run = || case.scenario.run(&site, &facts, Arc::clone(&mark));
    let (done, steps) = armed(case.fault, Some(&mark), run);
    let recording = recorder.end();
    mounted.unmount()?;
    done.map_err(case.error("running undisturbed"))?;
    let before = Before { facts, marks: Vec::new() };
    let (tape, outside, origin) = (Tape::Names(recording), site.outside, String::new());
    Ok(Recorded { tape, before, outside, origin, steps })
}

/// Judges about `count` states of a recording.
pub(crate) fn judge(
    case: &Case<'_>,
    recorded: &Recorded,
    recording: &Recording,
    total: &Shared,
    count: usize,
    seed: u64,
) -> Result<()> {
    let states = plan(recording, count, seed);
    let next = AtomicUsize::new(0);
    let work = |number: usize| -> Result<()> {
        let disk = below(case.scratch, &format!("worker-{number}"))?.join("disk");
        let site = Site { disk, outside: recorded.outside.clone() };
        while !case.enough(total)
            && let Some((state, image)) = states.get(next.fetch_add(1, Ordering::Relaxed))
        {
            let mounted = case.fs.mount_empty(&site.disk)?;
            image.materialise(&site.disk);
            let mut before = recorded.before.clone();
            before.marks.extend(marks(recording, state).cloned());
            let mut findings = case.judge_at(&site, &before);
            if let Err(error) = mounted.unmount() {
                findings.push(error.chain());
            }
            findings.retain(|finding| !case.known.contains(finding));
            total.judged(case, Failing { state: state.to_string(), findings, kept: None });
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..case.workers.max(1)).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("judging catches panics"))
    })
}

/// Chooses about `count` different states. Where steps were left out on purpose, they are those
/// of the moments after that, the next ones first.
fn plan(recording: &Recording, count: usize, seed: u64) -> Vec<(State, Image)> {
    let mut random = StdRng::seed_from_u64(seed);
    // Before a sync most is at stake, and all that was marked behind the last one is owed.
    let syncs = recording.syncs();
    let renamed =
        |at: usize| matches!(recording.event(at), Event::Rename { .. } | Event::Exchange { .. });
    let moments: Vec<usize> = (0..=recording.len())
        .filter(|&cut| {
            cut == recording.len() || syncs.contains(&cut) || cut > 0 && renamed(cut - 1)
        })
        .collect();
    let marks = |state: &State| marks(recording, state).count();
    let left_out = |cut: usize| {
        let mut out = recording.marks().iter().filter(|(_, mark)| mark == LEFT_OUT);
        out.rfind(|(at, _)| *at <= cut).map(|(at, _)| *at)
    };
    // For each state: how long after the last step that was left out, in moments.
    let mut wanted: Vec<(Option<usize>, State)> = Vec::new();
    for (number, &cut) in moments.iter().enumerate() {
        let since = left_out(cut).map(|at| number - moments.partition_point(|&cut| cut < at));
        // What one sync less does shows by chance soon or never, and when it is owed for certain.
        let survivals = [
            (1, Survival::SyncedOnly),
            (1, Survival::NamesOnly),
            (4, Survival::Stale(random.random())),
            (4, Survival::Some(random.random())),
        ];
        wanted.extend(survivals.map(|(weight, survival)| {
            (since.map(|since| since * weight), State { cut, survival })
        }));
    }
    if wanted.iter().any(|(since, _)| since.is_some()) {
        wanted.retain(|(since, _)| since.is_some());
        wanted.sort_by_key(|(since, _)| *since);
    } else {
        wanted.shuffle(&mut random);
    }
    let mut states: Vec<(State, Image)> = Vec::new();
    for (_, state) in wanted {
        if states.len() >= count {
            break;
        }
        let image = recording.image(state.cut, state.survival);
        let is_new =
            |(other, known): &(State, Image)| *known != image || marks(other) != marks(&state);
        if states.iter().all(is_new) {
            states.push((state, image));
        }
    }
    states
}

/// What had been marked by then.
fn marks<'a>(recording: &'a Recording, state: &State) -> impl Iterator<Item = &'a String> {
    let cut = state.cut;
    recording.marks().iter().filter(move |(at, _)| *at <= cut).map(|(_, mark)| mark)
}
