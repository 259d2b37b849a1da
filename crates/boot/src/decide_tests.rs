//! The decision, over every input of a small world: three deployments that are there or
//! not, confirmed or not, every selection over them, every wish, every failure.

use super::*;

const NAMES: [&str; 3] = ["a", "b", "c"];

fn name(text: &str) -> DeploymentName {
    text.parse().unwrap()
}

fn selection(latest: &str, previous: Option<&str>, tries: Option<u8>) -> Selection {
    Selection { generation: 7, latest: name(latest), previous: previous.map(name), tries }
}

fn on_disk(names: &[(&str, bool)]) -> Vec<OnDisk> {
    let each = names.iter().enumerate();
    each.map(|(index, (text, confirmed))| OnDisk {
        name: name(text),
        number: index as u64,
        confirmed: *confirmed,
    })
    .collect()
}

/// Every subset of the three, each confirmed or not: 27 disks.
fn all_disks() -> Vec<Vec<OnDisk>> {
    (0..27)
        .map(|code| {
            let states = [code % 3, code / 3 % 3, code / 9];
            let there = NAMES.iter().zip(states).filter(|(_, state)| *state > 0);
            on_disk(&there.map(|(name, state)| (*name, state == 2)).collect::<Vec<_>>())
        })
        .collect()
}

fn all_selections() -> Vec<Result<Selection, Unusable>> {
    let mut all = vec![Err(Unusable::Missing), Err(Unusable::Damaged("checksum".into()))];
    for latest in NAMES {
        for previous in [None, Some("a"), Some("b"), Some("c")] {
            for tries in [None, Some(0), Some(1), Some(2)] {
                all.push(Ok(selection(latest, previous, tries)));
            }
        }
    }
    all
}

fn all_failures() -> Vec<Vec<(DeploymentName, String)>> {
    let of = |code: usize| {
        let failed = NAMES.iter().enumerate().filter(move |(bit, _)| code >> bit & 1 == 1);
        failed.map(|(_, text)| (name(text), "no such layer".to_owned())).collect()
    };
    (0..8).map(of).collect()
}

#[test]
fn every_input_of_a_small_world() {
    let mut seen = 0_u32;
    for chosen in all_selections() {
        for disk in all_disks() {
            for failed in all_failures() {
                for wish in [None, Some("a"), Some("b"), Some("c"), Some("x"), Some("")] {
                    for key_held in [false, true] {
                        let wishes =
                            Wishes { deployment: wish.map(str::to_owned), ..Wishes::default() };
                        let inputs = Inputs {
                            selection: chosen.as_ref().map_err(Clone::clone),
                            on_disk: &disk,
                            wishes: &wishes,
                            key_held,
                            wanted: None,
                            failed: &failed,
                        };
                        check(&inputs);
                        seen += 1;
                    }
                }
            }
        }
    }
    assert_eq!(seen, 50 * 27 * 8 * 6 * 2);
}

fn check(inputs: &Inputs<'_>) {
    let answer = decide(inputs);
    let selection = inputs.selection.as_ref().ok();
    let works = |name: &DeploymentName| {
        inputs.on_disk.iter().any(|deployment| deployment.name == *name)
            && !inputs.failed.iter().any(|(failed, _)| failed == name)
    };
    let exhausted =
        |name: &DeploymentName| selection.is_some_and(|s| s.latest == *name && s.tries == Some(0));
    let wished = inputs.wishes.deployment.as_ref().and_then(|text| text.parse().ok());
    let Ok(decision) = answer else {
        // Nothing boots only if nothing may.
        for deployment in inputs.on_disk {
            let name = &deployment.name;
            let allowed = deployment.confirmed
                || selection.is_none_or(|s| s.latest == *name || s.previous.as_ref() == Some(name));
            assert!(!works(name) || exhausted(name) || !allowed, "{inputs:?}");
        }
        assert!(wished.is_none_or(|wished| !works(&wished)));
        return;
    };
    let chosen = &decision.deployment;
    assert!(works(chosen), "{inputs:?}");
    assert!(decision.reason == Reason::CommandLine || !exhausted(chosen), "{inputs:?}");
    assert!(!decision.passed_over.iter().any(|passed| passed.name == chosen.as_str()));
    if let Some(wished) = wished.filter(works) {
        assert_eq!((chosen, decision.reason), (&wished, Reason::CommandLine));
    } else if let Some(selection) = selection {
        let previous = selection.previous.as_ref().filter(|name| works(name));
        let latest =
            (works(&selection.latest) && selection.tries != Some(0)).then_some(&selection.latest);
        let first = if inputs.key_held { previous.or(latest) } else { latest.or(previous) };
        if let Some(first) = first.filter(|name| !exhausted(name)) {
            assert_eq!(chosen, first, "{inputs:?}");
        }
    } else if let Some(newest) = inputs.on_disk.iter().rfind(|d| d.confirmed && works(&d.name)) {
        let here = inputs.on_disk.iter().find(|d| d.name == *chosen).unwrap();
        assert!(here.confirmed, "a confirmed one is there: {inputs:?}");
        assert!(inputs.key_held || here.name == newest.name, "{inputs:?}");
    }
    // A try is spent exactly when the latest boots because of its trial, and nothing
    // else in the selection changes.
    match &decision.spend_try {
        Some(spent) => {
            let before = selection.unwrap();
            assert_eq!(decision.reason, Reason::Trial { left: before.tries.unwrap() - 1 });
            assert_eq!(*chosen, before.latest);
            let expected = Selection {
                generation: before.generation + 1,
                tries: before.tries.map(|tries| tries - 1),
                ..(*before).clone()
            };
            assert_eq!(*spent, expected);
        }
        None => {
            assert!(!matches!(decision.reason, Reason::Trial { .. }));
            let by_itself =
                decision.reason != Reason::CommandLine && decision.reason != Reason::KeyHeld;
            let on_trial = selection.is_some_and(|s| s.latest == *chosen && s.tries.is_some());
            assert!(!by_itself || !on_trial, "{inputs:?}");
        }
    }
}

#[test]
fn a_trial_that_always_hangs_comes_back_after_its_tries() {
    let disk = on_disk(&[("a", true), ("b", false)]);
    let wishes = Wishes::default();
    for tries in 0..=4 {
        let mut selection = selection("b", Some("a"), Some(tries));
        let mut booted = Vec::new();
        for _ in 0..6 {
            let inputs = Inputs {
                selection: Ok(&selection),
                on_disk: &disk,
                wishes: &wishes,
                key_held: false,
                wanted: None,
                failed: &[],
            };
            let decision = decide(&inputs).unwrap();
            booted.push(decision.deployment.as_str().to_owned());
            if let Some(spent) = decision.spend_try {
                selection = spent;
            }
        }
        let trials = usize::from(tries);
        assert_eq!(booted[..trials], vec!["b"; trials]);
        assert_eq!(booted[trials..], vec!["a"; 6 - trials]);
    }
}

#[test]
fn what_was_passed_over_is_told_in_the_order_of_the_rules() {
    let disk = on_disk(&[("a", true), ("b", true), ("c", false)]);
    let wishes = Wishes { deployment: Some("x".into()), strip: 2, ..Wishes::default() };
    let selection = selection("c", Some("b"), Some(0));
    let inputs = Inputs {
        selection: Ok(&selection),
        on_disk: &disk,
        wishes: &wishes,
        key_held: false,
        wanted: None,
        failed: &[(name("b"), "layer b1 is missing".into())],
    };
    let decision = decide(&inputs).unwrap();
    assert_eq!((decision.deployment.as_str(), decision.reason), ("a", Reason::AnyConfirmed));
    assert_eq!(decision.strip, 2);
    let told: Vec<String> = decision.passed_over.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "x is not on this device",
            "c failed its trials",
            "b could not be put together: layer b1 is missing",
        ]
    );
}

/// What is asked for comes before what boots by itself, spends no try, and is passed over
/// when it is not here; the kernel's command line comes before it.
#[test]
fn what_is_asked_for_boots_without_its_layers_and_spends_nothing() {
    let disk = on_disk(&[("a", true), ("b", false)]);
    let selection = selection("b", Some("a"), Some(1));
    let off: Vec<LayerName> = vec!["games".parse().unwrap()];
    for reason in [Reason::Menu, Reason::Probe, Reason::Search] {
        for (deployment, wish, key_held) in
            [("b", None, false), ("a", None, true), ("x", None, false), ("b", Some("a"), false)]
        {
            let wanted = Wanted { deployment: name(deployment), off: off.clone(), reason };
            let wishes = Wishes { deployment: wish.map(str::to_owned), ..Wishes::default() };
            let inputs = Inputs {
                selection: Ok(&selection),
                on_disk: &disk,
                wishes: &wishes,
                key_held,
                wanted: Some(&wanted),
                failed: &[],
            };
            let decision = decide(&inputs).unwrap();
            if wish.is_some() {
                assert_eq!(decision.reason, Reason::CommandLine);
            } else if deployment == "x" {
                assert_eq!(decision.reason, Reason::Trial { left: 0 });
                assert_eq!(decision.passed_over[0].to_string(), "x is not on this device");
            } else {
                assert_eq!((decision.deployment.as_str(), decision.reason), (deployment, reason));
                assert_eq!((&decision.off, &decision.spend_try), (&off, &None));
                continue;
            }
            assert!(decision.off.is_empty(), "another's layers stay on");
        }
    }
}

#[test]
fn wishes_are_read_and_mistakes_named() {
    let words = |list: &'static [(&str, &str)]| {
        Wishes::read(move |key| list.iter().find(|(k, _)| *k == key).map(|(_, v)| *v))
    };
    assert_eq!(words(&[]), (Wishes::default(), vec![]));
    let (wishes, bad) =
        words(&[("varve.deployment", "a"), ("varve.strip", "2"), ("varve.root", "volatile")]);
    assert_eq!(wishes.deployment.as_deref(), Some("a"));
    assert_eq!((wishes.strip, wishes.root), (2, Some(RootMode::Volatile)));
    assert!(bad.is_empty());
    let (wishes, bad) = words(&[("varve.strip", "-1"), ("varve.root", "rw")]);
    assert_eq!(wishes, Wishes::default());
    assert_eq!(bad.len(), 2);
    assert!(bad[0].contains("varve.strip=-1") && bad[1].contains("varve.root=rw"), "{bad:?}");
}
