//! The rig's proof of itself: each safety step that a scenario passes is taken out, and
//! some state must then break a promise. A sync that is missing shows soon after it, so the
//! states near there alone are judged then.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use varve_sys::faults;

use crate::disk::FileSystem;
use crate::error::Result;
use crate::run::{Case, Deep};
use crate::scenario::{Finding, SharedMark};
use crate::states::LEFT_OUT;

/// What became of one step in one scenario.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// How many states were tried, until it was noticed or in all.
    pub tried: usize,
    /// What was found; none when its absence was not noticed.
    pub finding: Option<String>,
}

/// Steps that no scenario can miss, and what shows that they are needed, or why they are there.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "append_line.sync_directory @ crates/agent/src/history.rs",
        "the same directory is synced next, for an announcement",
    ),
    (
        "replace_file.sync_directory @ crates/agent/src/rejected.rs",
        "the same directory is synced next, for an announcement",
    ),
    (
        "file.sync @ crates/fetch/src/deltas.rs",
        "within the 4 MiB that may be lost; left out by crates/fetch/tests/crash.rs",
    ),
    (
        "sync_directory @ crates/fetch/src/deltas.rs",
        "within the 4 MiB that may be lost; left out by crates/fetch/tests/crash.rs",
    ),
    (
        "sync_directory @ crates/fetch/src/contents/store.rs",
        "what lost its new name is taken over by its digest; left out by crates/fetch/tests/crash.rs",
    ),
];

/// Of every step: which kind of file system notices its absence, and after how many states.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: BTreeMap<String, [Cell; 2]>,
}

/// What became of one step on one kind of file system.
#[derive(Clone, Debug, Default)]
struct Cell {
    /// The states of all scenarios that did not notice.
    in_vain: usize,
    /// After how many states, where.
    noticed: Option<(usize, String)>,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.noticed, self.in_vain) {
            (Some((states, place)), _) => write!(f, "{states} ({place})"),
            (None, 0) => write!(f, "not tried"),
            (None, states) => write!(f, "not in {states}"),
        }
    }
}

impl Table {
    /// Whether the step was noticed by this file system's kind already.
    pub fn is_noticed(&self, step: &str, fs: &FileSystem) -> bool {
        self.rows.get(step).is_some_and(|row| row[usize::from(fs.is_model())].noticed.is_some())
    }

    /// Enters what became of a step.
    pub fn add(&mut self, step: String, fs: &FileSystem, scenario: &str, verdict: Verdict) {
        let cell = &mut self.rows.entry(step).or_default()[usize::from(fs.is_model())];
        match verdict.finding {
            Some(_) if fs.is_model() => cell.noticed = Some((verdict.tried, scenario.to_owned())),
            Some(_) => cell.noticed = Some((verdict.tried, format!("{scenario}, {}", fs.name))),
            None => cell.in_vain += verdict.tried,
        }
    }

    /// How many states were judged in all.
    pub fn states(&self) -> usize {
        let of =
            |cell: &Cell| cell.in_vain + cell.noticed.as_ref().map_or(0, |(states, _)| *states);
        self.rows.values().flatten().map(of).sum()
    }

    fn missed(&self) -> impl Iterator<Item = &String> {
        let missed = |row: &[Cell; 2]| row.iter().all(|cell| cell.noticed.is_none());
        self.rows.iter().filter(move |(_, row)| missed(row)).map(|(step, _)| step)
    }

    fn elsewhere(step: &str) -> Option<&'static str> {
        ELSEWHERE.iter().find(|(known, _)| step.starts_with(known)).map(|(_, why)| *why)
    }

    /// Whether every step was noticed, or is known not to be.
    pub fn is_complete(&self) -> bool {
        self.missed().all(|step| Self::elsewhere(step).is_some())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| step taken out | noticed on a disk after | by the model after |")?;
        writeln!(f, "| --- | --- | --- |")?;
        for (step, [disk, model]) in &self.rows {
            writeln!(f, "| `{step}` | {disk} | {model} |")?;
        }
        let all = self.rows.len();
        write!(f, "{} of {all} noticed", all - self.missed().count())?;
        for step in self.missed() {
            let why = Self::elsewhere(step).map_or(String::new(), |why| format!(": {why}"));
            write!(f, "\n  nothing notices the absence of {step}{why}")?;
        }
        Ok(())
    }
}

/// The steps that a scenario passes while it is recorded, and how often; and what is found
/// although none is taken out.
pub fn steps(
    case: &Case<'_>,
    count: usize,
    seed: u64,
) -> Result<(BTreeMap<String, u64>, Vec<Finding>)> {
    let mut recorded = case.record()?;
    let case = Case { keep: None, ..*case };
    let outcome = case.judge(&recorded, count, Deep::default(), seed)?;
    let known: BTreeSet<Finding> =
        outcome.failing.into_iter().flat_map(|failing| failing.findings).collect();
    for (check, passed) in outcome.checks {
        *recorded.steps.entry(check).or_default() += passed;
    }
    // The rig's own user has no step of the program's.
    recorded.steps.retain(|step, _| !step.contains("powercut/src/user.rs"));
    Ok((recorded.steps, known.into_iter().collect()))
}

/// Takes a step out while `work` runs, and notes which steps it passes. Each time that it is
/// left out, `mark` is given [`LEFT_OUT`].
pub(crate) fn without<T>(
    step: Option<&str>,
    mark: Option<&SharedMark>,
    work: impl FnOnce() -> T,
) -> (T, BTreeMap<String, u64>) {
    let mark = mark.map(Arc::clone);
    faults::when_out(mark.map(|mark| Box::new(move || mark(LEFT_OUT.to_owned())) as _));
    faults::take_out(step.as_slice());
    faults::watch();
    let result = work();
    faults::take_out(&[]);
    faults::when_out(None);
    (result, faults::passed())
}

/// Takes one step out while recording and judges until a promise is broken.
pub fn try_step(case: &Case<'_>, step: &str, count: usize, seed: u64) -> Result<Verdict> {
    let case = Case { first_only: true, keep: None, fault: Some(step), ..*case };
    let recorded = case.record()?;
    let outcome = case.judge(&recorded, count, Deep::default(), seed)?;
    let finding = outcome.failing.first().map(|failing| {
        format!("{}: {}", failing.state, failing.findings.first().map_or("", String::as_str))
    });
    Ok(Verdict { tried: outcome.tried, finding })
}
