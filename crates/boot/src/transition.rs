//! Every change of the selection. Each takes the one that stands and gives the one to
//! write; none is written here, and none does anything if asked twice.
//!
//! Callers: the update manager (promote, confirm, roll back, refund), `varve init`
//! (promote with no selection). The boot stage's own change, spending a try, is part
//! of its decision.

use varve_format::DeploymentName;
use varve_format::selection::Selection;

/// A change that the selection does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransitionError {
    /// Only the latest can be confirmed.
    #[error("{booted} is not the latest: {latest} is")]
    NotLatest {
        /// What is running.
        booted: DeploymentName,
        /// What the selection names.
        latest: DeploymentName,
    },
    /// There is nothing to go back to.
    #[error("there is no previous deployment to go back to from {latest}")]
    NoPrevious {
        /// What the selection names.
        latest: DeploymentName,
    },
    /// A trial without a try would never boot.
    #[error("a trial needs at least one try")]
    NoTries,
}

/// Names `new` the latest. `tries`: on trial, so many boots; none: at once for good (a
/// first deployment, or one that was confirmed before). The fallback is the latest so
/// far if it is good, else the fallback so far.
pub fn promote(
    current: Option<&Selection>,
    new: &DeploymentName,
    tries: Option<u8>,
) -> Result<Selection, TransitionError> {
    if tries == Some(0) {
        return Err(TransitionError::NoTries);
    }
    let previous = current.and_then(|current| {
        let latest_is_good = current.tries.is_none() && current.latest != *new;
        let previous =
            if latest_is_good { Some(&current.latest) } else { current.previous.as_ref() };
        previous.filter(|previous| *previous != new).cloned()
    });
    let generation = current.map_or(1, |current| current.generation + 1);
    Ok(Selection { generation, latest: new.clone(), previous, tries })
}

/// Ends the trial of the latest: `booted` works. None: it was confirmed already.
pub fn confirm(
    current: &Selection,
    booted: &DeploymentName,
) -> Result<Option<Selection>, TransitionError> {
    if current.latest != *booted {
        let (booted, latest) = (booted.clone(), current.latest.clone());
        return Err(TransitionError::NotLatest { booted, latest });
    }
    Ok(current.tries.map(|_| changed(current, None)))
}

/// Names the previous the latest again. What was the latest becomes the fallback only if
/// it was good: one that failed its trial is never chosen by itself again.
pub fn roll_back(current: &Selection) -> Result<Selection, TransitionError> {
    let Some(previous) = &current.previous else {
        return Err(TransitionError::NoPrevious { latest: current.latest.clone() });
    };
    Ok(Selection {
        generation: current.generation + 1,
        latest: previous.clone(),
        previous: current.tries.is_none().then(|| current.latest.clone()),
        tries: None,
    })
}

/// Gives back the try that this boot of `booted` spent: the user switched off before it
/// was judged. `spent` is what the boot stage noted. None: nothing to give back.
pub fn refund(current: &Selection, booted: &DeploymentName, spent: bool) -> Option<Selection> {
    let tries = current.tries.filter(|_| spent && current.latest == *booted)?;
    Some(changed(current, Some(tries.saturating_add(1))))
}

/// Takes a deployment that is gone out of the selection's fallback. None: it is not
/// named there.
pub fn forget_previous(current: &Selection, gone: &DeploymentName) -> Option<Selection> {
    current.previous.as_ref().filter(|previous| *previous == gone)?;
    Some(Selection { previous: None, ..changed(current, current.tries) })
}

fn changed(current: &Selection, tries: Option<u8>) -> Selection {
    Selection { generation: current.generation + 1, tries, ..current.clone() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decide::{Inputs, OnDisk, Wishes, decide};

    fn name(text: &str) -> DeploymentName {
        text.parse().unwrap()
    }

    #[test]
    fn the_way_of_one_upgrade() {
        let a = promote(None, &name("a"), None).unwrap();
        assert_eq!((a.generation, a.previous.as_ref(), a.tries), (1, None, None));
        let trial = promote(Some(&a), &name("b"), Some(3)).unwrap();
        assert_eq!((trial.generation, &trial.previous), (2, &Some(name("a"))));
        let good = confirm(&trial, &name("b")).unwrap().unwrap();
        assert_eq!((good.tries, &good.previous), (None, &Some(name("a"))));
        assert_eq!(confirm(&good, &name("b")).unwrap(), None, "asked twice");
        let back = roll_back(&good).unwrap();
        assert_eq!((&back.latest, &back.previous), (&name("a"), &Some(name("b"))));
        let bad = roll_back(&trial).unwrap();
        assert_eq!((&bad.latest, &bad.previous), (&name("a"), &None), "b failed its trial");
    }

    #[test]
    fn a_second_upgrade_during_a_trial_keeps_the_good_fallback() {
        let a = promote(None, &name("a"), None).unwrap();
        let b = promote(Some(&a), &name("b"), Some(3)).unwrap();
        let c = promote(Some(&b), &name("c"), Some(3)).unwrap();
        assert_eq!(c.previous, Some(name("a")));
        let again = promote(Some(&c), &name("c"), Some(3)).unwrap();
        assert_eq!(again.previous, Some(name("a")));
        let back = promote(Some(&b), &name("a"), None).unwrap();
        assert_eq!(back.previous, None, "never its own fallback");
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        let a = promote(None, &name("a"), None).unwrap();
        assert_eq!(promote(Some(&a), &name("b"), Some(0)), Err(TransitionError::NoTries));
        assert!(matches!(roll_back(&a), Err(TransitionError::NoPrevious { .. })));
        let b = promote(Some(&a), &name("b"), Some(1)).unwrap();
        assert!(matches!(confirm(&b, &name("a")), Err(TransitionError::NotLatest { .. })));
    }

    #[test]
    fn only_a_spent_try_is_refunded() {
        let a = promote(None, &name("a"), None).unwrap();
        let b = promote(Some(&a), &name("b"), Some(2)).unwrap();
        assert_eq!(refund(&b, &name("b"), true).unwrap().tries, Some(3));
        assert_eq!(refund(&b, &name("b"), false), None);
        assert_eq!(refund(&b, &name("a"), true), None, "the previous ran");
        assert_eq!(refund(&a, &name("a"), true), None, "not on trial");
    }

    #[test]
    fn a_fallback_that_is_gone_is_forgotten() {
        let a = promote(None, &name("a"), None).unwrap();
        let b = promote(Some(&a), &name("b"), Some(2)).unwrap();
        let alone = forget_previous(&b, &name("a")).unwrap();
        assert_eq!((alone.previous, alone.tries), (None, Some(2)));
        assert_eq!(forget_previous(&b, &name("c")), None);
    }

    #[derive(Debug, Clone)]
    enum Act {
        Promote(u8),
        Boot { key: bool, healthy: Option<bool>, clean: bool },
        RollBack,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (1..=3_u8).prop_map(Act::Promote),
            (any::<bool>(), any::<Option<bool>>(), any::<bool>())
                .prop_map(|(key, healthy, clean)| Act::Boot { key, healthy, clean }),
            Just(Act::RollBack),
        ]
    }

    proptest! {
        /// A device's life: whatever happens in which order, it boots, what boots by
        /// itself is good or on trial with a try spent, and what failed its trial does
        /// not come back.
        #[test]
        fn any_life_of_a_device(acts in proptest::collection::vec(act(), 1..40)) {
            let first = name("d0");
            let mut disk = vec![OnDisk { name: first.clone(), number: 0, confirmed: true }];
            let mut selection = promote(None, &first, None).unwrap();
            let mut rejected: Vec<DeploymentName> = Vec::new();
            let wishes = Wishes::default();
            for act in acts {
                let before = selection.generation;
                match act {
                    Act::Promote(tries) => {
                        let new = name(&format!("d{}", disk.len()));
                        let number = disk.len() as u64;
                        disk.push(OnDisk { name: new.clone(), number, confirmed: false });
                        selection = promote(Some(&selection), &new, Some(tries)).unwrap();
                        prop_assert_eq!(selection.generation, before + 1);
                    }
                    Act::RollBack => {
                        let from = selection.latest.clone();
                        let on_trial = selection.tries.is_some();
                        if let Ok(back) = roll_back(&selection) {
                            if on_trial { rejected.push(from); }
                            selection = back;
                        }
                    }
                    Act::Boot { key, healthy, clean } => {
                        let inputs = Inputs {
                            selection: Ok(&selection), on_disk: &disk, wishes: &wishes,
                            key_held: key, wanted: None, failed: &[],
                        };
                        let decision = decide(&inputs).unwrap();
                        let booted = decision.deployment;
                        let spent = decision.spend_try.is_some();
                        let tries = selection.tries;
                        prop_assert!(!rejected.contains(&booted), "{booted} came back");
                        let here = disk.iter_mut().find(|d| d.name == booted).unwrap();
                        prop_assert!(here.confirmed || spent);
                        if let Some(spent) = decision.spend_try { selection = spent; }
                        match healthy {
                            Some(true) => if let Ok(good) = confirm(&selection, &booted) {
                                here.confirmed = true;
                                selection = good.unwrap_or(selection);
                            },
                            Some(false) if spent => {
                                if let Ok(back) = roll_back(&selection) {
                                    rejected.push(booted.clone());
                                    selection = back;
                                }
                            }
                            _ => if clean {
                                let refunded = refund(&selection, &booted, spent);
                                selection = refunded.unwrap_or(selection);
                                prop_assert_eq!(selection.tries, tries, "no vote");
                            },
                        }
                    }
                }
                prop_assert!(selection.previous.as_ref() != Some(&selection.latest));
                prop_assert!(selection.generation >= before);
            }
        }
    }
}
