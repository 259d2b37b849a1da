//! The rig's proof of itself: each safety step that a scenario passes is taken out, and
//! some state must then break a promise. A sync that is missing shows soon after it, so the
//! states near there alone are judged then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use varve_sys::faults;

use crate::error::Result;
use crate::run::{Case, Deep};
use crate::scenario::{Finding, SharedMark};
use crate::states::LEFT_OUT;

/// What became of one step.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The step and its place in the code.
    pub step: String,
    /// How often the scenario passes it.
    pub passed: u64,
    /// After how many states its absence was noticed; none when it was not.
    pub states: Option<usize>,
    /// How many were tried.
    pub tried: usize,
    /// The first finding.
    pub finding: String,
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
pub fn try_step(
    case: &Case<'_>,
    step: &str,
    passed: u64,
    count: usize,
    seed: u64,
) -> Result<Verdict> {
    let case = Case { first_only: true, keep: None, fault: Some(step), ..*case };
    let recorded = case.record()?;
    let outcome = case.judge(&recorded, count, Deep::default(), seed)?;
    let finding = outcome.failing.first().map(|failing| {
        format!("{}: {}", failing.state, failing.findings.first().map_or("", String::as_str))
    });
    Ok(Verdict {
        step: step.to_owned(),
        passed,
        states: finding.is_some().then_some(outcome.tried),
        tried: outcome.tried,
        finding: finding.unwrap_or_default(),
    })
}
