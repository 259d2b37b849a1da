//! Which way the contents of a release come: by deltas, by packs, or a part by each.
//! Pure: from what the repository offers (signed, with what each part costs), what is
//! here and what the device may spend.
//!
//! ```text
//! offers A->C, A->B, B->C --paths from what is here--> for each: groups within memory and
//!                                                      processor time; the rest by packs
//!                                                   --> the cheapest in bytes, or in time
//! ```

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
        let mut groups: Vec<usize> = (0..delta.groups.len()).collect();
        // What is behind a limit on time: the groups that save most for theirs.
        groups.sort_by_key(|&g| {
            let group = &delta.groups[g];
            std::cmp::Reverse(saved(group) * 1000 / group.cpu.max(1))
        });
        groups.retain(|&g| {
            let group = &delta.groups[g];
            // Of a step in between, what the next is made of is not known by its list.
            // What lies in one grain with the head comes with it.
            let comes_along = delta.size <= GRAIN && means.prefer == Prefer::Bytes;
            let worth = at < last || comes_along || is_worth(group, means);
            let used = worth && group.memory <= means.memory && group.cpu <= cpu;
            if used {
                cpu -= group.cpu;
                way.cpu += group.cpu;
                way.bytes += group.size;
            } else {
                way.packs += group.packs;
            }
            used
        });
        groups.sort_unstable();
        way.bytes += delta.head + delta.table();
        way.steps.push(Step { to: offer.to, delta: (*delta).clone(), groups });
    }
    if way.packs > 0 {
        way.packs += means.documents / 2;
    }
    let packs = path[last].delta.packs() + means.documents;
    (way, Way { steps: Vec::new(), bytes: 0, packs, cpu: 0 })
}

fn saved(group: &GroupCost) -> u64 {
    group.packs.saturating_sub(group.size)
}

fn is_worth(group: &GroupCost, means: &Means) -> bool {
    match means.prefer {
        Prefer::Bytes => group.size <= group.packs,
        Prefer::Time => time(group.size, means) + group.cpu <= time(group.packs, means),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_format::Sha256Digest;

    fn release(n: u8) -> ReleaseDigest {
        ReleaseDigest([n; 32])
    }

    /// A delta with a light group (1000 bytes for 9000) and a heavy one (500 for 8000).
    fn offered(from: u8, to: u8) -> Offered {
        let light = GroupCost { size: 1000, memory: 40, cpu: 10, packs: 9000 };
        let heavy = GroupCost { size: 500, memory: 1400, cpu: 20_000, packs: 8000 };
        let delta = DeltaRef {
            from: release(from),
            id: Sha256Digest([from ^ to; 32]),
            size: 1700,
            head: 200,
            groups: vec![heavy, light],
        };
        Offered { to: release(to), delta }
    }

    const ANY: Means = Means {
        prefer: Prefer::Bytes,
        memory: u64::MAX,
        cpu: u64::MAX,
        rate: 1000,
        documents: 100,
    };

    #[test]
    fn one_delta_is_better_than_two_and_two_than_packs() {
        let offers = [offered(1, 2), offered(2, 3), offered(1, 3)];
        let way = choose(&offers, &[release(1)], release(3), &ANY).unwrap();
        assert_eq!((way.steps.len(), way.bytes, way.packs), (1, 1732, 0));
        let way = choose(&offers[..2], &[release(1)], release(3), &ANY).unwrap();
        assert_eq!((way.steps.len(), way.bytes), (2, 2 * 1732));
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
        assert_eq!((&small.steps[0].groups[..], small.packs), (&[1][..], 8050));
        let short = choose(Means { cpu: 1000, ..ANY }).unwrap();
        assert_eq!(short.steps[0].groups, [1]);
        // On a fast link the heavy group takes longer than its contents do.
        let hasty = Means { prefer: Prefer::Time, rate: 10_000, ..ANY };
        assert_eq!(choose(hasty).unwrap().steps[0].groups, [1]);
        let slow = Means { prefer: Prefer::Time, rate: 10, ..ANY };
        assert_eq!(choose(slow).unwrap().steps[0].groups, [0, 1]);
        // With no group left, the delta is of no use.
        assert_eq!(choose(Means { memory: 1, ..ANY }).map(|way| way.packs), None);
    }

    #[test]
    fn a_delta_larger_than_packs_is_not_taken() {
        let mut offer = offered(1, 2);
        offer.delta.head = 1 << 20;
        assert_eq!(choose(&[offer], &[release(1)], release(2), &ANY), None);
    }
}
