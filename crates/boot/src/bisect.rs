//! Finding the layer that does harm: the search, pure.
//!
//! ```text
//! layers, newest first      0 games   1 drivers   2 update       base (never left out)
//! prefix   off = {}         bad: somebody says so
//!          off = {0,1}      probe --bad--> off = {0,1,2}  probe --good--> 2 is it
//!          off = {2}        the proof: all but the one that was found
//! ```
//!
//! The state is the list of answers alone ([`varve_format::probe::Bisect`]): [`next`] says what they
//! make of it, a probe to take or the end. So a state on the disk is always whole,
//! whoever writes it: the boot stage for a probe that did not come up, the update
//! manager for one that did.
//!
//! A prefix search takes at most ceil(log2 n) probes for n layers, one for each of the
//! two ends if no probe has touched it, and one as the proof; with `agree` above 1 each
//! is repeated until its answers agree. A probe that is skipped is passed over for its
//! nearest neighbour.
//!
//! Callers: the boot stage, `varve_agent::bisect`.

use std::collections::BTreeSet;

use varve_format::probe::{Answer, Bisect, Verdict, Way};

/// What the answers so far come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Boot with these layers left out, and judge it.
    Probe(Vec<u16>),
    /// The search is over.
    Over(Finding),
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// These layers do the harm: one, or in a subset search those that do it together.
    Found {
        /// By their places.
        layers: Vec<u16>,
        /// Whether a stack of everything else was seen to work. If not, one of the others
        /// does harm as well, or needs it.
        proven: bool,
        /// What is to be left out of a stack that was seen to work.
        works_without: Vec<u16>,
    },
    /// One of these, it cannot be said which: what lies between was skipped.
    OneOf {
        /// By their places.
        layers: Vec<u16>,
        /// What is to be left out of a stack that was seen to work.
        works_without: Vec<u16>,
    },
    /// The whole stack was judged to be good.
    NothingWrong,
    /// It is bad without any of the layers too: the base, the state or the machine.
    NotTheLayers,
    /// An end could not be judged at all.
    Unknown,
}

impl Finding {
    /// What is to be left out of a stack that works, where one is known.
    pub fn works_without(&self) -> Option<&[u16]> {
        match self {
            Finding::Found { works_without, .. } | Finding::OneOf { works_without, .. } => {
                Some(works_without)
            }
            _ => None,
        }
    }
}

/// What the answers so far come to.
pub fn next(bisect: &Bisect) -> Next {
    let search = Search { bisect };
    let found = match bisect.way {
        Way::Prefix => search.prefix(),
        Way::Subset => search.subset(),
    };
    found.map_or_else(|Ask(off)| Next::Probe(off), Next::Over)
}

/// What the boot stage does with a search: notes that a probe that has no answer did not
/// come up, and takes the next one. Gives what to leave out at this boot, with `bisect`
/// as it must be made durable before (if it changed). None: the ordinary system boots.
pub fn at_boot(bisect: &mut Bisect) -> Option<Vec<u16>> {
    if !bisect.active {
        return None;
    }
    answer(bisect, Verdict::Bad, "it did not come up");
    match next(bisect) {
        Next::Probe(off) => {
            bisect.running = Some(off.clone());
            Some(off)
        }
        Next::Over(finding) => finding.works_without().map(<[u16]>::to_vec),
    }
}

/// Notes the answer to the probe that is under way; nothing if none is.
pub fn answer(bisect: &mut Bisect, verdict: Verdict, why: &str) {
    if let Some(off) = bisect.running.take() {
        bisect.answers.push(Answer { off, verdict, why: why.to_owned() });
    }
}

/// How many probes are still needed at most, the proof counted, if none is repeated.
pub fn probes_left(bisect: &Bisect) -> u32 {
    let mut imagined = bisect.clone();
    let mut count = 0;
    // The longest way of a prefix search: its answers cannot make it longer than this.
    while let Next::Probe(off) = next(&imagined) {
        count += 1;
        if count > 10_000 {
            break;
        }
        let verdict = if off.len() < bisect.layers.len() { Verdict::Bad } else { Verdict::Good };
        let lead = imagined.agree.max(1);
        for _ in 0..lead {
            let why = String::new();
            imagined.answers.push(Answer { off: off.clone(), verdict, why });
        }
    }
    count
}

/// This must be asked first.
struct Ask(Vec<u16>);

struct Search<'a> {
    bisect: &'a Bisect,
}

impl Search<'_> {
    fn count(&self) -> u16 {
        u16::try_from(self.bisect.layers.len()).unwrap_or(u16::MAX)
    }

    /// What is known of leaving out `off`; none: not enough.
    fn known(&self, off: &[u16]) -> Option<Verdict> {
        let mut lead = 0_i64;
        for answer in self.bisect.answers.iter().filter(|answer| answer.off == off) {
            match answer.verdict {
                Verdict::Good => lead += 1,
                Verdict::Bad => lead -= 1,
                Verdict::Skip => return Some(Verdict::Skip),
            }
            // What was once believed stays so: the search went on from it.
            if lead.abs() >= i64::from(self.bisect.agree.max(1)) {
                return Some(if lead > 0 { Verdict::Good } else { Verdict::Bad });
            }
        }
        None
    }

    fn ask(&self, off: &[u16]) -> Result<Verdict, Ask> {
        self.known(off).ok_or_else(|| Ask(off.to_vec()))
    }

    fn first(&self, count: u16) -> Vec<u16> {
        (0..count).collect()
    }

    /// The smallest number of layers, from the top, without which it is good.
    fn prefix(&self) -> Result<Finding, Ask> {
        let (mut bad, mut good) = (0, self.count());
        if good == 0 {
            return Ok(Finding::NotTheLayers);
        }
        while good - bad > 1 {
            let middle = bad + (good - bad) / 2;
            // The nearest one that was not skipped; when all were, it stays open.
            let mut near: Vec<u16> = (bad + 1..good).collect();
            near.sort_by_key(|count| count.abs_diff(middle));
            let judged = near.into_iter().find_map(|count| match self.ask(&self.first(count)) {
                Ok(Verdict::Skip) => None,
                other => Some(other.map(|verdict| (count, verdict))),
            });
            match judged.transpose()? {
                Some((count, Verdict::Good)) => good = count,
                Some((count, _)) => bad = count,
                None => break,
            }
        }
        self.ends(bad, good)
    }

    /// Looks at the ends that no probe has touched, and at the proof.
    fn ends(&self, bad: u16, good: u16) -> Result<Finding, Ask> {
        let works_without = self.first(good);
        if good == self.count() {
            match self.ask(&works_without)? {
                Verdict::Good => {}
                Verdict::Bad => return Ok(Finding::NotTheLayers),
                Verdict::Skip => return Ok(Finding::Unknown),
            }
        }
        if bad == 0 {
            match self.ask(&[])? {
                Verdict::Bad => {}
                Verdict::Good => return Ok(Finding::NothingWrong),
                Verdict::Skip => return Ok(Finding::Unknown),
            }
        }
        if good - bad > 1 {
            return Ok(Finding::OneOf { layers: (bad..good).collect(), works_without });
        }
        let found = vec![good - 1];
        let proven = self.ask(&found)? == Verdict::Good;
        let works_without = if proven { found.clone() } else { works_without };
        Ok(Finding::Found { layers: found, proven, works_without })
    }

    /// Delta debugging (Zeller and Hildebrandt, 2002): the smallest set of layers over
    /// the base that is bad, so that without any one of them it is not.
    fn subset(&self) -> Result<Finding, Ask> {
        let all: Vec<u16> = self.first(self.count());
        match (self.ask(&[])?, self.ask(&all)?) {
            (Verdict::Good, _) => return Ok(Finding::NothingWrong),
            (_, Verdict::Bad) => return Ok(Finding::NotTheLayers),
            (Verdict::Skip, _) | (_, Verdict::Skip) => return Ok(Finding::Unknown),
            _ => {}
        }
        let mut harmful = all.clone();
        let mut parts = 2;
        while harmful.len() > 1 {
            let size = harmful.len().div_ceil(parts);
            let chunks: Vec<Vec<u16>> = harmful.chunks(size).map(<[u16]>::to_vec).collect();
            if let Some(chunk) = self.first_bad(&all, &chunks)? {
                (harmful, parts) = (chunk, 2);
                continue;
            }
            let others: Vec<Vec<u16>> = chunks
                .iter()
                .map(|chunk| harmful.iter().copied().filter(|at| !chunk.contains(at)).collect())
                .collect();
            if chunks.len() > 2
                && let Some(rest) = self.first_bad(&all, &others)?
            {
                (harmful, parts) = (rest, (parts - 1).max(2));
                continue;
            }
            if parts >= harmful.len() {
                break;
            }
            parts = (parts * 2).min(harmful.len());
        }
        // Each of them is needed for the harm, so without one of them it works; the newest
        // is what a person would take off.
        let one = vec![harmful[0]];
        let proven = self.ask(&one)? == Verdict::Good;
        let works_without = if proven { one } else { all };
        Ok(Finding::Found { layers: harmful, proven, works_without })
    }

    /// The first of these sets that alone, over the base, is bad.
    fn first_bad(&self, all: &[u16], sets: &[Vec<u16>]) -> Result<Option<Vec<u16>>, Ask> {
        for on in sets {
            let on_set: BTreeSet<u16> = on.iter().copied().collect();
            let off: Vec<u16> = all.iter().copied().filter(|at| !on_set.contains(at)).collect();
            if self.ask(&off)? == Verdict::Bad {
                return Ok(Some(on.clone()));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
#[path = "bisect_tests.rs"]
mod tests;
