//! The search against a machine that answers: any stack, any culprit, lies, skips.

use proptest::prelude::*;
use varve_format::probe::Judge;

use super::*;

fn search(count: usize, way: Way, agree: u8) -> Bisect {
    Bisect {
        deployment: "d".parse().unwrap(),
        layers: (0..count).map(|n| format!("l{n}").parse().unwrap()).collect(),
        way,
        judge: Judge::Health,
        agree,
        active: true,
        answers: Vec::new(),
        running: None,
    }
}

/// Answers until the end; gives what was found and the probes. The first go through the
/// file's text, as a reboot does.
fn run(mut bisect: Bisect, mut judge: impl FnMut(&[u16]) -> Verdict) -> (Finding, Vec<Vec<u16>>) {
    let mut probes = Vec::new();
    loop {
        if probes.len() < 2 {
            bisect = Bisect::parse(bisect.to_text().as_bytes()).unwrap();
        }
        let off = match next(&bisect) {
            Next::Over(finding) => return (finding, probes),
            Next::Probe(off) => off,
        };
        assert!(probes.len() < 5000, "it does not end: {bisect:?}");
        bisect.running = Some(off.clone());
        answer(&mut bisect, judge(&off), "");
        probes.push(off);
    }
}

fn ceil_log2(n: usize) -> usize {
    n.next_power_of_two().trailing_zeros() as usize
}

/// Good if every culprit is left out.
fn needs_off(culprits: &[u16]) -> impl Fn(&[u16]) -> Verdict {
    move |off| match culprits.iter().all(|culprit| off.contains(culprit)) {
        true => Verdict::Good,
        false => Verdict::Bad,
    }
}

#[test]
fn every_culprit_of_every_small_stack() {
    for count in 1..=40 {
        for culprit in 0..count {
            let culprits = [culprit as u16];
            let judge = needs_off(&culprits);
            let (finding, probes) = run(search(count, Way::Prefix, 1), judge);
            let one = vec![culprit as u16];
            let found = Finding::Found { layers: one.clone(), proven: true, works_without: one };
            assert_eq!(finding, found);
            // The ends that no probe touched, and the proof.
            let extra = probes.iter().filter(|off| off.is_empty() || off.len() == count).count();
            assert!(extra <= if count == 1 { 2 } else { 1 }, "{probes:?}");
            let proof = usize::from(probes.contains(&vec![culprit as u16]) && culprit > 0);
            assert!(probes.len() - extra - proof <= ceil_log2(count), "{count} {culprit}");
        }
    }
}

#[test]
fn what_is_not_the_layers_fault_is_said() {
    let (bad, probes) = run(search(9, Way::Prefix, 1), |_| Verdict::Bad);
    assert_eq!((bad, probes.len()), (Finding::NotTheLayers, 5));
    let (good, _) = run(search(9, Way::Prefix, 1), |_| Verdict::Good);
    assert_eq!(good, Finding::NothingWrong);
    assert_eq!(run(search(0, Way::Prefix, 1), |_| Verdict::Bad).0, Finding::NotTheLayers);
    assert_eq!(run(search(4, Way::Subset, 1), |_| Verdict::Bad).0, Finding::NotTheLayers);
    assert_eq!(run(search(4, Way::Subset, 1), |_| Verdict::Good).0, Finding::NothingWrong);
    assert_eq!(run(search(4, Way::Prefix, 1), |_| Verdict::Skip).0, Finding::Unknown);
}

#[test]
fn two_culprits_are_not_called_proven() {
    // A prefix search finds the lower one: only with it all of the harm is gone.
    let (finding, _) = run(search(8, Way::Prefix, 1), needs_off(&[2, 5]));
    let works_without = vec![0, 1, 2, 3, 4, 5];
    assert_eq!(finding, Finding::Found { layers: vec![5], proven: false, works_without });
}

#[test]
fn layers_that_do_harm_together_are_found_by_subsets() {
    let both = |off: &[u16]| match off.contains(&2) || off.contains(&6) {
        true => Verdict::Good,
        false => Verdict::Bad,
    };
    let (finding, probes) = run(search(8, Way::Subset, 1), both);
    let found = Finding::Found { layers: vec![2, 6], proven: true, works_without: vec![2] };
    assert_eq!(finding, found, "{probes:?}");
}

#[test]
fn what_did_not_come_up_was_bad() {
    let mut bisect = search(4, Way::Prefix, 1);
    let first = at_boot(&mut bisect).unwrap();
    assert_eq!(bisect.running.as_ref(), Some(&first));
    let second = at_boot(&mut bisect).unwrap();
    assert_ne!(first, second);
    assert_eq!(bisect.answers.len(), 1);
    assert_eq!(bisect.answers[0].verdict, Verdict::Bad);
    answer(&mut bisect, Verdict::Good, "");
    assert_eq!(bisect.answers.len(), 2);
    bisect.active = false;
    assert_eq!(at_boot(&mut bisect), None);
}

/// A machine that always hangs ends at the ordinary system, not in a circle.
#[test]
fn a_machine_that_always_hangs_comes_to_an_end() {
    let mut bisect = search(8, Way::Prefix, 1);
    let boots = std::iter::from_fn(|| at_boot(&mut bisect)).take(100).count();
    assert_eq!(boots, 3 + 1);
    assert_eq!(next(&bisect), Next::Over(Finding::NotTheLayers));
}

#[test]
fn the_number_of_probes_left_is_a_bound() {
    assert_eq!(probes_left(&search(8, Way::Prefix, 1)), 5);
    assert!(probes_left(&search(200, Way::Prefix, 1)) <= 10);
}

proptest! {
    /// Up to 200 layers, one culprit, and answers of which each probe's may be wrong up to
    /// `agree - 1` times: it is found, within the probes that the search needs, each
    /// repeated so often as lies make it.
    #[test]
    fn the_culprit_is_found_among_lies(
        count in 1_usize..=200,
        place in any::<prop::sample::Index>(),
        agree in 1_u8..=4,
        seed in any::<u64>(),
    ) {
        let culprit = place.index(count) as u16;
        let honest = needs_off(std::slice::from_ref(&culprit));
        let mut lies: std::collections::HashMap<Vec<u16>, u8> = Default::default();
        let (mut random, mut told) = (seed | 1, 0_usize);
        let (finding, probes) = run(search(count, Way::Prefix, agree), |off| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let lied = lies.entry(off.to_vec()).or_default();
            let truth = honest(off);
            if *lied + 1 < agree && random >> 62 == 0 {
                *lied += 1;
                told += 1;
                return if truth == Verdict::Good { Verdict::Bad } else { Verdict::Good };
            }
            truth
        });
        prop_assert_eq!(finding, Finding::Found {
            layers: vec![culprit], proven: true, works_without: vec![culprit],
        });
        let distinct: BTreeSet<&Vec<u16>> = probes.iter().collect();
        let ends = if count == 1 { 2 } else { 1 };
        prop_assert!(distinct.len() <= ceil_log2(count) + ends + 1);
        prop_assert_eq!(probes.len(), distinct.len() * usize::from(agree) + 2 * told);
    }

    /// Skipped probes: the culprit is among those that are named.
    #[test]
    fn skipped_probes_widen_the_answer(
        count in 2_usize..=60,
        place in any::<prop::sample::Index>(),
        skipped in proptest::collection::btree_set(1_usize..60, 0..50),
    ) {
        let culprit = place.index(count) as u16;
        let honest = needs_off(std::slice::from_ref(&culprit));
        let (finding, _) = run(search(count, Way::Prefix, 1), |off| {
            let middle = !off.is_empty() && off.len() < count && off[0] == 0;
            if middle && skipped.contains(&off.len()) { Verdict::Skip } else { honest(off) }
        });
        match finding {
            Finding::Found { layers, .. } => prop_assert_eq!(layers, vec![culprit]),
            Finding::OneOf { layers, works_without } => {
                prop_assert!(layers.contains(&culprit) && layers.len() > 1);
                prop_assert!(works_without.contains(&culprit));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// A subset search finds a set that is bad, and good without any one of it.
    #[test]
    fn a_subset_is_the_smallest(
        count in 1_usize..=24,
        places in proptest::collection::vec(any::<prop::sample::Index>(), 1..4),
    ) {
        let together: BTreeSet<u16> = places.iter().map(|p| p.index(count) as u16).collect();
        let (finding, probes) = run(search(count, Way::Subset, 1), |off| {
            match together.iter().any(|at| off.contains(at)) {
                true => Verdict::Good,
                false => Verdict::Bad,
            }
        });
        let Finding::Found { layers, proven, .. } = finding else { panic!("{finding:?}") };
        prop_assert!(proven);
        prop_assert_eq!(layers, together.into_iter().collect::<Vec<_>>());
        prop_assert!(probes.len() <= count * count + 3 * count + 3);
    }
}
