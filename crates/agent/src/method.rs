//! Which way the contents of a release come: by deltas, by packs, or a part by each.
//! Pure: from what the repository offers (signed, with what each part costs), what is
//! here and what the device may spend.
//!
//! ```text
//! offers A->C, A->B, B->C --paths from what is here--> for each: groups within memory and
//!                                                      processor time; the rest by packs
//!                                                   --> the cheapest in bytes, or in time
//! ```
//!
//! A delta is fetched in grains, so a group costs those grains of it that are not fetched
//! anyway, for the head or for other groups: one that lies in them costs nothing.

use std::ops::Range;

use serde::Deserialize;
use varve_format::ReleaseDigest;
use varve_format::delta::{DeltaRef, GRAIN, GroupCost};

/// How many deltas may follow each other.
pub const MAX_STEPS: usize = 3;

/// What counts when there are several ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prefer {
    /// The fewest bytes over the link.
    #[default]
    Bytes,
    /// The shortest time, by the rate of the link.
    Time,
}

/// A delta that is offered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offered {
    /// The release it leads to.
    pub to: ReleaseDigest,
    /// The delta, and what it costs.
    pub delta: DeltaRef,
}

/// What the device may spend.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Means {
    /// What counts.
    pub prefer: Prefer,
    /// Bytes of memory for applying.
    pub memory: u64,
    /// Milliseconds of processor time for applying.
    pub cpu: u64,
    /// Bytes in a second that the link gives.
    pub rate: u64,
    /// Bytes beside those of contents that packs cost: the manifest, an index.
    pub documents: u64,
}

/// One delta of a way, and the groups of it that are used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// The release it leads to.
    pub to: ReleaseDigest,
    /// The delta.
    pub delta: DeltaRef,
    /// Which of its groups, by number.
    pub groups: Vec<usize>,
}

/// A way to the release's contents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Way {
    /// Deltas, each upon what the one before it made.
    pub steps: Vec<Step>,
    /// Bytes of deltas.
    pub bytes: u64,
    /// Bytes by packs, for what the deltas used do not make.
    pub packs: u64,
    /// Milliseconds of processor time.
    pub cpu: u64,
}

impl Way {
    fn cost(&self, means: &Means) -> u64 {
        let bytes = self.bytes + self.packs;
        match means.prefer {
            Prefer::Bytes => bytes,
            Prefer::Time => time(bytes, means) + self.cpu,
        }
    }
}

/// Milliseconds that the link takes.
fn time(bytes: u64, means: &Means) -> u64 {
    bytes.saturating_mul(1000) / means.rate.max(1)
}

/// The cheapest way by deltas from one of `here` to `target`; none when packs alone are
/// cheaper, or no delta leads there.
pub fn choose(
    offers: &[Offered],
    here: &[ReleaseDigest],
    target: ReleaseDigest,
    means: &Means,
) -> Option<Way> {
    let mut ways = Vec::new();
    paths(offers, here, target, &mut Vec::new(), &mut ways);
    let ways = ways.into_iter().map(|path| way(&path, means));
    let (way, alone) = ways.min_by_key(|(way, _)| way.cost(means))?;
    (way.cost(means) < alone.cost(means)).then_some(way)
}

/// All paths that end in `target`, without a release twice.
fn paths<'a>(
    offers: &'a [Offered],
    here: &[ReleaseDigest],
    target: ReleaseDigest,
    behind: &mut Vec<&'a Offered>,
    out: &mut Vec<Vec<&'a Offered>>,
) {
    if behind.len() == MAX_STEPS {
        return;
    }
    for offer in offers.iter().filter(|offer| offer.to == target) {
        if behind.iter().any(|other| other.to == offer.delta.from) {
            continue;
        }
        behind.push(offer);
        if here.contains(&offer.delta.from) {
            out.push(behind.iter().rev().copied().collect());
        } else {
            paths(offers, here, offer.delta.from, behind, out);
        }
        behind.pop();
    }
}

/// What a path costs with the groups that are worth it; and what packs alone cost.
fn way(path: &[&Offered], means: &Means) -> (Way, Way) {
    let mut cpu = means.cpu;
    let mut way = Way { steps: Vec::new(), bytes: 0, packs: 0, cpu: 0 };
    let last = path.len() - 1;
    for (at, offer) in path.iter().enumerate() {
        let delta = &offer.delta;
        // Of a step in between, what the next is made of is not known by its list.
        let groups = used(delta, means, &mut cpu, at < last);
        let of = |group: &usize| &delta.groups[*group];
        way.cpu += groups.iter().map(|group| of(group).cpu).sum::<u64>();
        let left = (0..delta.groups.len()).filter(|group| !groups.contains(group));
        way.packs += left.map(|group| of(&group).packs).sum::<u64>();
        way.bytes += Grains::of(delta, &groups).bytes + delta.table();
        way.steps.push(Step { to: offer.to, delta: (*delta).clone(), groups });
    }
    if way.packs > 0 {
        way.packs += means.documents / 2;
    }
    let packs = path[last].delta.packs() + means.documents;
    (way, Way { steps: Vec::new(), bytes: 0, packs, cpu: 0 })
}

/// The groups of a delta that are within the means and worth it, or all within the means.
fn used(delta: &DeltaRef, means: &Means, cpu: &mut u64, all: bool) -> Vec<usize> {
    let mut grains = Grains::of(delta, &[]);
    let mut used = Vec::new();
    // What is behind a limit on time: the groups that save most for theirs.
    let mut left: Vec<usize> = (0..delta.groups.len()).collect();
    left.sort_by_key(|&group| {
        let group = &delta.groups[group];
        std::cmp::Reverse(group.packs.saturating_sub(group.size) * 1000 / group.cpu.max(1))
    });
    loop {
        let before = used.len();
        left.retain(|&at| {
            let group = &delta.groups[at];
            let worth = all || is_worth(group, grains.missing(at), means);
            let take = worth && group.memory <= means.memory && group.cpu <= *cpu;
            if take {
                *cpu -= group.cpu;
                grains.take(at);
                used.push(at);
            }
            !take
        });
        // What was taken may have brought the grains of what was not.
        if used.len() == before {
            used.sort_unstable();
            return used;
        }
    }
}

/// The grains of a delta that are fetched.
struct Grains<'a> {
    delta: &'a DeltaRef,
    fetched: Vec<bool>,
    /// Their bytes.
    bytes: u64,
}

impl<'a> Grains<'a> {
    /// Those of the head and of these groups.
    fn of(delta: &'a DeltaRef, groups: &[usize]) -> Self {
        let mut grains = Self { delta, fetched: vec![false; delta.grains() as usize], bytes: 0 };
        grains.fetch(0..delta.head);
        groups.iter().for_each(|&group| grains.take(group));
        grains
    }

    /// Where a group stands in the delta.
    fn range(&self, group: usize) -> Range<u64> {
        let before = self.delta.groups[..group].iter().map(|group| group.size).sum::<u64>();
        let start = self.delta.head + before;
        start..start + self.delta.groups[group].size
    }

    /// The grains that these bytes lie in and that are not fetched, with their lengths.
    fn others(&self, range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
        let end = if range.is_empty() { 0 } else { range.end.div_ceil(GRAIN) };
        let grains = range.start / GRAIN..end;
        let length = |grain: u64| GRAIN.min(self.delta.size - grain * GRAIN);
        grains
            .map(move |grain| (grain as usize, length(grain)))
            .filter(|(grain, _)| !self.fetched[*grain])
    }

    /// Bytes to fetch more for a group.
    fn missing(&self, group: usize) -> u64 {
        self.others(self.range(group)).map(|(_, length)| length).sum()
    }

    fn take(&mut self, group: usize) {
        self.fetch(self.range(group));
    }

    fn fetch(&mut self, range: Range<u64>) {
        let new: Vec<_> = self.others(range).collect();
        for (grain, length) in new {
            self.fetched[grain] = true;
            self.bytes += length;
        }
    }
}

fn is_worth(group: &GroupCost, bytes: u64, means: &Means) -> bool {
    match means.prefer {
        Prefer::Bytes => bytes <= group.packs,
        Prefer::Time => time(bytes, means) + group.cpu <= time(group.packs, means),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_format::Sha256Digest;

    fn release(n: u8) -> ReleaseDigest {
        ReleaseDigest([n; 32])
    }

    /// A delta with a light group (three grains for nine) and a heavy one (two for eight).
    fn offered(from: u8, to: u8) -> Offered {
        let light = GroupCost { size: 3 * GRAIN, memory: 40, cpu: 10, packs: 9 * GRAIN };
        let heavy = GroupCost { size: 2 * GRAIN, memory: 1400, cpu: 20_000, packs: 8 * GRAIN };
        let delta = delta(from, to, GRAIN, vec![heavy, light]);
        Offered { to: release(to), delta }
    }

    fn delta(from: u8, to: u8, head: u64, groups: Vec<GroupCost>) -> DeltaRef {
        let size = head + groups.iter().map(|group| group.size).sum::<u64>();
        DeltaRef { from: release(from), id: Sha256Digest([from ^ to; 32]), size, head, groups }
    }

    const ANY: Means = Means {
        prefer: Prefer::Bytes,
        memory: u64::MAX,
        cpu: u64::MAX,
        rate: GRAIN,
        documents: GRAIN,
    };

    #[test]
    fn one_delta_is_better_than_two_and_two_than_packs() {
        let offers = [offered(1, 2), offered(2, 3), offered(1, 3)];
        let way = choose(&offers, &[release(1)], release(3), &ANY).unwrap();
        let whole = 6 * GRAIN + 6 * 32;
        assert_eq!((way.steps.len(), way.bytes, way.packs), (1, whole, 0));
        let way = choose(&offers[..2], &[release(1)], release(3), &ANY).unwrap();
        assert_eq!((way.steps.len(), way.bytes), (2, 2 * whole));
        assert_eq!(way.steps.iter().map(|s| s.to).collect::<Vec<_>>(), [release(2), release(3)]);
        assert_eq!(choose(&offers, &[release(9)], release(3), &ANY), None);
        assert_eq!(choose(&offers[..1], &[release(1)], release(3), &ANY), None);
        // A circle ends.
        let circle = [offered(2, 3), offered(3, 2)];
        assert_eq!(choose(&circle, &[release(1)], release(3), &ANY), None);
    }

    #[test]
    fn what_is_too_large_or_too_slow_comes_by_packs() {
        let offers = [offered(1, 2)];
        let choose = |means: Means| choose(&offers, &[release(1)], release(2), &means);
        let small = choose(Means { memory: 64, ..ANY }).unwrap();
        assert_eq!((&small.steps[0].groups[..], small.packs), (&[1][..], 8 * GRAIN + GRAIN / 2));
        assert_eq!(small.bytes, 4 * GRAIN + 6 * 32);
        let short = choose(Means { cpu: 1000, ..ANY }).unwrap();
        assert_eq!(short.steps[0].groups, [1]);
        // On a fast link the heavy group takes longer than its contents do.
        let hasty = Means { prefer: Prefer::Time, rate: 10 * GRAIN, ..ANY };
        assert_eq!(choose(hasty).unwrap().steps[0].groups, [1]);
        let slow = Means { prefer: Prefer::Time, rate: GRAIN / 100, ..ANY };
        assert_eq!(choose(slow).unwrap().steps[0].groups, [0, 1]);
        // With no group left, the delta is of no use.
        assert_eq!(choose(Means { memory: 1, ..ANY }).map(|way| way.packs), None);
    }

    #[test]
    fn a_delta_larger_than_packs_is_not_taken() {
        let mut offer = offered(1, 2);
        offer.delta = delta(1, 2, 20 * GRAIN, offer.delta.groups);
        assert_eq!(choose(&[offer], &[release(1)], release(2), &ANY), None);
    }

    #[test]
    fn a_group_costs_the_grains_that_are_not_fetched_anyway() {
        let group = |size, packs| GroupCost { size, memory: 1, cpu: 1, packs };
        // In the head's grain; large; in the large one's last grain; in one of its own.
        let groups =
            [group(50, 40), group(3 * GRAIN, 9 * GRAIN), group(50, 40), group(GRAIN, 40)].to_vec();
        let offer = Offered { to: release(2), delta: delta(1, 2, 100, groups) };
        let way =
            |means: Means| choose(std::slice::from_ref(&offer), &[release(1)], release(2), &means);
        let cheapest = way(ANY).unwrap();
        assert_eq!(cheapest.steps[0].groups, [0, 1, 2]);
        assert_eq!(cheapest.bytes, 4 * GRAIN + 5 * 32);
        assert_eq!(cheapest.packs, 40 + GRAIN / 2);
        // They cost nothing, and are still not made where that takes longer than to fetch them.
        let fast = Means { prefer: Prefer::Time, rate: u64::MAX / 1000, ..ANY };
        assert_eq!(way(fast), None);
    }
}
