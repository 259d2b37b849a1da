//! A disk that fails: reads or writes of it give EIO, in the middle of a scenario, under the
//! kernel's real file system. Then the disk is well again, and the device goes on.
//!
//! ```text
//! run undisturbed --> how many reads and writes there are
//! run again, the k-th read or write fails, and from then on
//!   bad place   every one that touches the 64 KiB around it (a bad sector)
//!   dead        every one of that kind                       (a cable, a controller)
//! --> it says so, or has done without what failed; never a panic, never another reason
//! --> the disk is well: looked at, recovered, complete, as after a power cut
//! ```
//!
//! What was marked as done before the failure must have stayed done: an error that a sync
//! swallowed would show there.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::device::Recorder;
use crate::disk::copy_image;
use crate::error::Result;
use crate::run::Case;
use crate::scenario::{Before, Finding, SharedMark, below};

/// Which operations fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes, zeroed ranges and flushes.
    Write,
}

/// What is around a bad sector and fails with it, in bytes.
const PLACE: u64 = 64 << 10;

/// A failure that is to come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trouble {
    kind: Kind,
    /// How many more of its kind go well.
    left: u64,
    dead: bool,
    /// Once it has begun: what is bad.
    bad: Option<Range<u64>>,
}

impl Trouble {
    /// Whether this operation fails.
    pub(crate) fn strikes(&mut self, kind: Kind, place: Range<u64>) -> bool {
        if kind != self.kind {
            return false;
        }
        if let Some(bad) = &self.bad {
            return bad.start < place.end && place.start < bad.end;
        }
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        let start = place.start / PLACE * PLACE;
        let around = if self.dead { 0..u64::MAX } else { start..start.saturating_add(PLACE) };
        self.bad = Some(around);
        true
    }
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Failures tried: of reads, of writes.
    pub tried: [usize; 2],
    /// Those that struck and were told by an error.
    pub told: usize,
    /// Those that struck something which was not needed, or was had in another way.
    pub coped: usize,
    /// What is wrong, with how to try it again.
    pub failing: Vec<(String, Vec<Finding>)>,
    /// How long it took.
    pub time: Duration,
}

/// What the kernel says of a disk that fails: of the operation itself (EIO), of a file system
/// that has gone read-only for it (EROFS), and of structures that could not be read (EUCLEAN);
/// ext4 finds no place in a group whose bitmap it cannot read, and so no space when none can be
/// read (ENOSPC). By number: each C library has words of its own.
const REASONS: [&str; 4] = ["(os error 5)", "(os error 30)", "(os error 117)", "(os error 28)"];

/// Tries `count` failures of one scenario, half of reads and half of writes.
///
/// # Errors
/// When the rig itself fails, or the scenario does on a disk that is well.
pub fn run(case: &Case<'_>, count: usize, seed: u64) -> Result<Outcome> {
    let began = Instant::now();
    let (base, site, facts) = case.prepared()?;
    let attempt = |trouble: Option<Trouble>| -> Result<Attempt> {
        let live = case.scratch.join("live.img");
        let _ = std::fs::remove_file(&live);
        copy_image(&base, &live)?;
        let dir = below(case.scratch, "failing")?;
        let _ = std::fs::remove_file(dir.join("log.data"));
        let mut recorder = Recorder::start(case.host, &live, &dir)?;
        let mounted = recorder.mount(case.fs, &site.disk)?;
        let marks = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&marks);
        let mark: SharedMark =
            Arc::new(move |text| into.lock().expect("it only pushes").push(text));
        recorder.fail(trouble)?;
        let ran = || case.scenario.run(&site, &facts, mark);
        let ran = std::panic::catch_unwind(AssertUnwindSafe(ran))
            .unwrap_or_else(|_| Err("it panics".to_owned()));
        let (operations, struck) = recorder.heal()?;
        // What had come is not kept when it could not be written.
        let mut marks = std::mem::take(&mut *marks.lock().expect("it only pushes"));
        marks.retain(|mark| !mark.starts_with("received "));
        drop(mounted.unmount());
        drop(recorder);
        Ok(Attempt { ran, marks, operations, struck, image: live })
    };

    let well = attempt(None)?;
    well.ran.map_err(|why| case.failure("running undisturbed", why))?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut outcome = Outcome::default();
    for number in 0..count {
        let kind = if number % 2 == 0 { Kind::Read } else { Kind::Write };
        let most = well.operations[kind as usize].max(1);
        let left = random.random_range(0..most);
        let dead = random.random_bool(0.5);
        let name =
            format!("{kind:?} {left} of {most}, {}", if dead { "dead" } else { "bad place" });
        let tried = attempt(Some(Trouble { kind, left, dead, bad: None }))?;
        outcome.tried[kind as usize] += 1;
        let mut findings = Vec::new();
        match &tried.ran {
            Err(why) if tried.struck && REASONS.iter().any(|reason| why.contains(reason)) => {
                outcome.told += 1;
            }
            Err(why) => findings.push(format!("it says another reason: {why}")),
            Ok(()) if tried.struck => outcome.coped += 1,
            // Another order of work than before: it never came to this.
            Ok(()) => {}
        }
        let before = Before { facts: facts.clone(), marks: tried.marks };
        findings.extend(case.judge_image(&tried.image, &site, &before, true));
        findings.retain(|finding| !case.known.contains(finding));
        if let (false, Err(why)) = (findings.is_empty(), &tried.ran) {
            findings.push(format!("when it happened it said: {why}"));
        }
        if !findings.is_empty() {
            outcome.failing.push((name, findings));
        }
    }
    outcome.time = began.elapsed();
    Ok(outcome)
}

struct Attempt {
    ran: std::result::Result<(), String>,
    marks: Vec<String>,
    /// Reads and writes that came.
    operations: [u64; 2],
    struck: bool,
    image: std::path::PathBuf,
}
