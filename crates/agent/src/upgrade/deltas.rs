//! The part of an upgrade that deltas do: find, open, fetch, apply. Whatever goes wrong
//! here is told and kept, and packs do the rest.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use varve_fetch::deltas::{self, DeltaError, OpenDelta, Opening};
use varve_fetch::{Metadata, ReleaseRef, Sources};
use varve_format::manifest::Manifest;
use varve_format::release::ReleaseRecord;
use varve_format::{ContentDigest, ReleaseDigest};
use varve_rootfs::locate::{ContentIndex, Locator};
use varve_rootfs::{Needed, SourceCheck, StagePlan, Store};

use super::Context;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::method::{self, MAX_STEPS, Means, Offered, Way};
use crate::observe::Observed;

/// A link's rate before anything is known of it, in bytes per second.
const USUAL_RATE: u64 = 1 << 20;
/// Fewer bytes say nothing of a link's rate.
const TELLING: u64 = 256 << 10;
/// What the program itself takes of the memory that it may use, beside applying.
const OWN_MEMORY: u64 = 26 << 20;
/// Memory for applying deltas when nothing is configured: nobody wants an upgrade in the
/// background to take a gigabyte. More may be allowed.
const MOST_MEMORY: u64 = 256 << 20;

/// Deltas that are used, opened.
pub(super) struct Chain {
    steps: Vec<(OpenDelta, Vec<usize>)>,
    /// Milliseconds of processor time, as the publisher measured.
    pub(super) cpu: u64,
    /// The most memory that a group of it takes.
    pub(super) peak: u64,
    /// Names of the releases it leads through, the first being here.
    pub(super) from: String,
    pub(super) names: Vec<varve_format::Sha256Digest>,
}

/// What came of looking for deltas.
pub(super) struct Found {
    pub(super) chain: Option<Chain>,
    /// Why a delta that there is is not used.
    pub(super) reasons: Vec<String>,
    /// Bytes per second, as far as known.
    pub(super) rate: u64,
}

/// All that is looked at for deltas.
pub(super) struct Look<'a> {
    pub(super) device: &'a Device,
    pub(super) observed: &'a Observed,
    pub(super) metadata: &'a Metadata,
    pub(super) release: &'a ReleaseRef,
    pub(super) record: &'a ReleaseRecord,
    pub(super) sources: &'a Sources,
    /// When the link was first used.
    pub(super) began: Instant,
    pub(super) context: &'a Context<'a>,
}

impl Look<'_> {
    /// Looks for the cheapest deltas to a release, and opens them: their heads are fetched.
    pub(super) fn find(&self) -> Result<Found> {
        let mut found = Found { chain: None, reasons: Vec::new(), rate: USUAL_RATE };
        let of = |d: &varve_rootfs::Deployment| Some(d.record.release.as_ref()?.digest);
        let here: Vec<ReleaseDigest> = self.observed.deployments.iter().filter_map(of).collect();
        if here.is_empty() {
            return Ok(found);
        }
        let offers = self.offers(&here, &mut found.reasons)?;
        found.rate = self.rate();
        let (memory, download) = (memory(self.device), &self.device.config.download);
        let index = self.record.packs.first().map_or(0, |pack| pack.index_size);
        let means = Means {
            prefer: download.prefer,
            memory,
            cpu: download.cpu.map_or(u64::MAX, |cpu| cpu.0.as_millis() as u64),
            rate: found.rate,
            documents: self.record.manifest.size + index,
        };
        let Some(way) = method::choose(&offers, &here, self.release.digest, &means) else {
            if !offers.is_empty() {
                let all = Means { memory: u64::MAX, cpu: u64::MAX, ..means };
                let why = match method::choose(&offers, &here, self.release.digest, &all) {
                    Some(_) => "it needs more memory to apply, or processor time, than may be used",
                    None => "none starts from what is here, or packs cost less",
                };
                found.reasons.push(why.to_owned());
            }
            return Ok(found);
        };
        found.reasons.extend(left_out(&way, memory));
        match self.open(&way, memory) {
            Ok(chain) => found.chain = Some(chain),
            Err(error) => found.reasons.push(reason(error, self.context)?),
        }
        found.rate = self.rate();
        Ok(found)
    }
    /// Deltas that lead to the release; those that lead to where they start, when none starts
    /// from what is here.
    fn offers(&self, here: &[ReleaseDigest], reasons: &mut Vec<String>) -> Result<Vec<Offered>> {
        let Self { metadata, release, sources, context, .. } = *self;
        let mut offers: Vec<Offered> = Vec::new();
        let mut asked = vec![release];
        for _ in 0..MAX_STEPS {
            for to in std::mem::take(&mut asked) {
                match deltas::list(to, sources, context.cancel) {
                    Ok(list) => offers.extend(
                        list.iter().map(|delta| Offered { to: to.digest, delta: delta.clone() }),
                    ),
                    Err(error) => {
                        context.cancel.check()?;
                        reasons.push(varve_sys::whole_message(&error));
                    }
                }
            }
            if here.is_empty() || offers.iter().any(|offer| here.contains(&offer.delta.from)) {
                break;
            }
            let known = |r: &&ReleaseRef| !offers.iter().any(|offer| offer.to == r.digest);
            let start = |r: &&ReleaseRef| offers.iter().any(|offer| offer.delta.from == r.digest);
            asked = metadata.releases().iter().filter(known).filter(start).collect();
        }
        Ok(offers)
    }

    /// Bytes per second of what was moved since `began`, when that says something.
    fn rate(&self) -> u64 {
        let bytes = self.sources.traffic().bytes;
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        if bytes < TELLING { USUAL_RATE } else { (bytes as f64 / seconds) as u64 }
    }

    fn open(&self, way: &Way, memory: u64) -> Result<Chain, DeltaError> {
        let Self { device, observed, metadata, sources, context, .. } = *self;
        let first = way.steps.first().map(|step| step.delta.from);
        let base = observed
            .deployments
            .iter()
            .find(|d| d.record.release.as_ref().map(|release| release.digest) == first);
        let other = || DeltaError::Other { id: way.steps[0].delta.id };
        let base = base.ok_or_else(other)?;
        let mut manifest = device.store.manifest(base.name()).map_err(|_| other())?.to_text();
        let mut chain = Chain {
            steps: Vec::new(),
            cpu: way.cpu,
            peak: 0,
            from: base.record.release.as_ref().map_or_else(String::new, |r| r.name.to_string()),
            names: Vec::new(),
        };
        let incoming = device.store.incoming();
        for step in &way.steps {
            let wanted =
                Opening { delta: &step.delta, to: step.to, old_manifest: &manifest, memory };
            let (progress, cancel) = (context.progress, context.cancel);
            let opened = OpenDelta::open(incoming, wanted, sources, progress, cancel)?;
            manifest = opened.manifest().to_vec();
            let memory = |&group: &usize| step.delta.groups[group].memory;
            chain.peak = chain.peak.max(step.groups.iter().map(memory).max().unwrap_or(0));
            chain.names.push(step.delta.id);
            if chain.names.len() > 1 {
                let name = metadata.releases().iter().find(|r| r.digest == step.delta.from);
                chain.from.push_str(&name.map_or_else(String::new, |r| format!(", {}", r.name)));
            }
            chain.steps.push((opened, step.groups.clone()));
        }
        Ok(chain)
    }
}

/// What of the deltas is not used, and what it costs.
fn left_out(way: &Way, memory: u64) -> Option<String> {
    let groups = way.steps.iter().flat_map(|step| {
        let used = |at: &usize| step.groups.contains(at);
        (0..step.delta.groups.len()).filter(move |at| !used(at)).map(|at| step.delta.groups[at])
    });
    let heavy: Vec<_> = groups.filter(|group| group.memory > memory).collect();
    let most = heavy.iter().map(|group| group.memory).max()?;
    let packs: u64 = heavy.iter().map(|group| group.packs).sum();
    Some(format!(
        "parts of it need up to {} MiB of memory to apply, {} MiB may be used: \
         {packs} bytes come by packs instead",
        most >> 20,
        memory >> 20
    ))
}

/// Why a delta was of no use; an error where packs would be of none either.
fn reason(error: DeltaError, context: &Context<'_>) -> Result<String> {
    context.cancel.check()?;
    match error {
        DeltaError::Contents(varve_fetch::contents::ContentsError::Store(error)) => {
            Err(Error::Sys(error))
        }
        error => Ok(varve_sys::whole_message(&error)),
    }
}

/// Memory for applying: as configured, else half of what the system has to give, within
/// [`MOST_MEMORY`].
fn memory(device: &Device) -> u64 {
    match device.config.download.memory {
        Some(limit) => limit.0.saturating_sub(OWN_MEMORY),
        None => available().map_or(MOST_MEMORY, |bytes| MOST_MEMORY.min(bytes / 2)),
    }
}

fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

impl Chain {
    /// The new manifest's text: its digest is the release's.
    pub(super) fn manifest(&self) -> &[u8] {
        self.steps.last().map_or(&[], |(delta, _)| delta.manifest())
    }

    /// Keeps only groups that make something that is missing. What is missing still goes
    /// by packs.
    pub(super) fn trim(&mut self, missing: &[Needed]) {
        let mut wanted: HashSet<ContentDigest> = missing.iter().map(|n| n.digest).collect();
        for (delta, groups) in self.steps.iter_mut().rev() {
            let offers = delta.groups();
            let makes =
                |group: &usize| offers[*group].contents.iter().any(|c| wanted.contains(&c.0));
            // Groups that make what others of this delta are made of are wanted as well.
            let late: Vec<usize> =
                groups.iter().copied().filter(|g| offers[*g].late && makes(g)).collect();
            let more = delta.needs(&late);
            groups.retain(|group| {
                makes(group) || offers[*group].contents.iter().any(|c| more.contains(&c.0))
            });
            wanted.extend(delta.needs(groups));
        }
    }

    /// Contents that deltas but the last make for the next.
    pub(super) fn between(&self) -> HashSet<ContentDigest> {
        self.steps.iter().skip(1).flat_map(|(delta, groups)| delta.needs(groups)).collect()
    }

    /// Which contents it will make.
    pub(super) fn makes(&self) -> HashMap<ContentDigest, u64> {
        let Some((delta, groups)) = self.steps.last() else { return HashMap::new() };
        let offers = delta.groups();
        groups.iter().flat_map(|&group| offers[group].contents.iter().copied()).collect()
    }

    /// Bytes of the deltas, whole.
    pub(super) fn size(&self) -> u64 {
        self.steps.iter().map(|(delta, _)| delta.file_size()).sum()
    }

    /// Bytes still to fetch, requests for them.
    pub(super) fn missing(&self) -> (u64, u64) {
        let each = self.steps.iter().map(|(delta, groups)| delta.missing(groups));
        each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Fetches the groups' streams.
    pub(super) fn fetch(&mut self, sources: &Sources, context: &Context<'_>) -> Result<()> {
        for (delta, groups) in &mut self.steps {
            delta.fetch(groups, sources, context.progress, context.cancel)?;
        }
        Ok(())
    }

    /// Makes what is missing; tells what went wrong, if something did.
    pub(super) fn apply(
        &self,
        store: &Store,
        stage: &StagePlan,
        context: &Context<'_>,
    ) -> Result<Option<String>> {
        let mut wanted: HashSet<ContentDigest> = stage.fetch.iter().map(|n| n.digest).collect();
        let mut of: Vec<HashSet<ContentDigest>> = Vec::new();
        for (delta, groups) in self.steps.iter().rev() {
            let needs = delta.needs(groups);
            let mut makes = wanted.clone();
            makes.extend(needs.iter().copied());
            of.push(makes);
            wanted.extend(needs);
        }
        of.reverse();
        let old = OldContents::find(store, &wanted)?;
        let read = |digest: &ContentDigest| old.read(digest);
        let mut problems: Vec<String> = Vec::new();
        for ((delta, groups), mut wanted) in self.steps.iter().zip(of) {
            // What is here need not be made.
            wanted.retain(|digest| !old.has(digest));
            let (progress, cancel) = (context.progress, context.cancel);
            match delta.apply(wanted, &read, progress, cancel) {
                Ok(left) => {
                    let offers = delta.groups();
                    let asked: HashSet<ContentDigest> = groups
                        .iter()
                        .flat_map(|&group| offers[group].contents.iter().map(|c| c.0))
                        .collect();
                    let left: Vec<_> = left.iter().filter(|left| asked.contains(&left.0)).collect();
                    if let Some((digest, _, why)) = left.first() {
                        let count = left.len();
                        problems.push(format!(
                            "{count} contents did not come out of it ({}: {why:?})",
                            digest.short()
                        ));
                    }
                }
                Err(error) => problems.push(reason(error, context)?),
            }
        }
        Ok((!problems.is_empty()).then(|| problems.join("; ")))
    }
}

/// Contents of the deployments that are here.
struct OldContents {
    index: ContentIndex,
    locators: Mutex<Vec<Locator>>,
}

impl OldContents {
    fn find(store: &Store, wanted: &HashSet<ContentDigest>) -> Result<Self> {
        let index = ContentIndex::find(store, wanted, None, SourceCheck::Trust)?;
        let mut locators = Vec::new();
        for name in index.deployments() {
            let deployment = store.deployment(name)?;
            locators.push(Locator::open(store, &deployment.record.stack)?);
        }
        Ok(Self { index, locators: Mutex::new(locators) })
    }

    fn has(&self, digest: &ContentDigest) -> bool {
        self.index.get(digest).is_some()
    }

    fn read(&self, digest: &ContentDigest) -> io::Result<Option<Vec<u8>>> {
        use std::io::Read;
        let Some(origin) = self.index.get(digest) else { return Ok(None) };
        let opened = {
            let mut locators = self.locators.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(locator) = locators.get_mut(usize::from(origin.deployment)) else {
                return Ok(None);
            };
            match locator.find(&origin.path).map_err(io::Error::other)? {
                Some((dir, name, _)) => dir.open_file(name),
                None => return Ok(None),
            }
        };
        let mut bytes = Vec::new();
        opened.map_err(io::Error::other)?.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

/// Reads the manifest that a chain leads to.
pub(super) fn manifest(chain: &Chain) -> Option<Manifest> {
    Manifest::parse(chain.manifest()).ok()
}
