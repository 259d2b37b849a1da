//! The upgrade: the algorithm of 2007, each part a step that can be run again.
//!
//! ```text
//! lock, sweep          what an interrupted run left goes; what it fetched stays
//! refresh, choose      trust; the newest release of the channel that did not fail here
//! plan                 what to fetch, the room it needs: refused before anything changes
//! merge                if the stack is as deep as the policy allows
//! fetch                into incoming/, each content verified
//! stage, verify        beside the system, compared with the manifest as a whole
//! commit               a deployment, invisible to boot
//! carry                the running system's versioned state
//! promote              one file replaced: from here on the next boot tries it
//! history, collect     what nothing needs any more
//! ```
//!
//! [`prepare`] does the first three and gives a [`Ready`]; [`Ready::run`] does the rest.
//! Cut at any point, the next run begins again and finds done what was done.

mod base;
mod deltas;
mod run;

use jiff::Timestamp;
use std::collections::{BTreeSet, HashSet};
use std::time::Instant;
use varve_fetch::contents;
use varve_fetch::{Metadata, Patience, ReleaseRef, Sources, Trust};
use varve_format::ContentDigest;
use varve_format::change::is_directory;
use varve_format::deployment::{OwnLayer, ReleaseRef as Installed, StateDir};
use varve_format::manifest::Manifest;
use varve_format::release::ReleaseRecord;
use varve_rootfs::collect::{self, Leftover};
use varve_rootfs::layout::{self, Request, StagePlan};
use varve_rootfs::{Deployment, Needed, SourceCheck};
use varve_sys::space;
use varve_sys::task::{Cancel, Progress};

use crate::choose::{Choice, Wish, choose};
use crate::config::{OnMetered, Verify};
use crate::device::{Device, Writer};
use crate::error::{Error, Result};
use crate::observe::Observed;
use crate::plan::{self, DeltaUse, Fetch, UpgradePlan, Write};
use crate::rejected::Rejection;
use crate::{layer, policy, sources};

pub use run::{Done, promote};
pub(crate) use run::{carry, drop_damaged};

/// What every long act is given.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The system's clock.
    pub now: Timestamp,
    /// Hears of progress.
    pub progress: &'a dyn Progress,
    /// Stops the work.
    pub cancel: &'a Cancel,
    /// How long to go on with a source that fails.
    pub patience: &'a Patience,
}

/// What the repository has for this device.
#[derive(Debug)]
pub struct Offer {
    /// The repository's metadata.
    pub metadata: Metadata,
    /// What is to be done about it.
    pub choice: Choice,
}

/// A plan, and all that is needed to carry it out.
pub struct Ready {
    /// What will be done.
    pub plan: UpgradePlan,
    /// Newer releases that failed here before and are passed over.
    pub passed_over: Vec<Rejection>,
    /// Why the release failed here before; its user named it all the same.
    pub failed_before: Option<Rejection>,
    /// Sources that could not be checked, or were refused.
    pub warnings: Vec<String>,
    way: Way,
    sources: Sources,
}

/// What has to be done for it.
enum Way {
    /// It was staged before: it is promoted.
    Here(Box<Deployment>),
    /// It is fetched and staged.
    Stage(Box<Parts>),
}

struct Parts {
    record: ReleaseRecord,
    manifest: Manifest,
    base: Option<Deployment>,
    stage: StagePlan,
    contents: contents::Plan,
    chain: Option<deltas::Chain>,
    /// What earlier attempts left and this one does not need.
    leftovers: Vec<Leftover>,
}

/// What came of preparing.
pub enum Prepared {
    /// There is nothing newer.
    UpToDate {
        /// Newer releases that failed here before and are not tried again.
        passed_over: Vec<Rejection>,
        /// Sources that could not be checked, or were refused.
        warnings: Vec<String>,
    },
    /// There is something to do.
    Ready(Box<Ready>),
}

/// Asks the sources what there is, and chooses. Saves what was verified of the trust.
pub fn check(
    device: &Device,
    _writer: &Writer,
    observed: &Observed,
    sources: &Sources,
    wish: &Wish,
    context: &Context<'_>,
) -> Result<Offer> {
    let trust_dir = device.store.dir().make_dir("trust", 0o700)?;
    let metadata = Trust::open(&trust_dir).refresh(sources, context.now, context.cancel)?;
    let latest = observed.latest().and_then(|latest| latest.record.release.as_ref());
    let releases = metadata.releases();
    let choice = choose(releases, &device.config.channel, latest, &observed.rejected, wish)?;
    Ok(Offer { metadata, choice })
}

/// Opens the configured sources.
pub fn open_sources(device: &Device, context: &Context<'_>) -> Result<Sources> {
    Ok(sources::open(device, context.patience)?)
}

/// Looks, asks, chooses and plans. `dry_run`: what is here is believed to be whole, and
/// nothing is swept.
pub fn prepare(
    device: &Device,
    writer: &Writer,
    wish: &Wish,
    dry_run: bool,
    context: &Context<'_>,
) -> Result<Prepared> {
    if !dry_run {
        varve_rootfs::stage::sweep(&device.store)?;
    }
    let observed = Observed::look(device)?;
    let began = Instant::now();
    let mut sources = open_sources(device, context)?;
    if !dry_run {
        // What comes stays, to the byte, for whoever goes on when this one is stopped.
        sources = sources.keeping(device.store.incoming().try_clone()?);
    }
    let Offer { metadata, choice } = check(device, writer, &observed, &sources, wish, context)?;
    let warnings: Vec<_> =
        metadata.warnings.iter().map(|warning| varve_sys::whole_message(&warning.error)).collect();
    let (release, passed_over, failed_before) = match choice {
        Choice::UpToDate { passed_over } => {
            if !dry_run {
                run::keep_reserve(device, writer, context)?;
            }
            return Ok(Prepared::UpToDate { passed_over, warnings });
        }
        Choice::Take { release, passed_over, failed_before } => {
            (release, passed_over, failed_before)
        }
    };
    let here = staged_before(device, &observed, &release, wish);
    let (plan, way) = match here {
        Some(deployment) => plan_here(device, &release, deployment)?,
        None => {
            let metered = sources::on_metered(device);
            if let Some(rule @ OnMetered::Refuse) = metered
                && !dry_run
            {
                // Manifest and index are a good part of a small upgrade.
                return Err(plan::Refusal::Metered { rule }.into());
            }
            let record = metadata.record(&release.name, &sources, context.cancel)?;
            let base = base(&observed).cloned();
            let check = if dry_run { SourceCheck::Trust } else { source_check(device) };
            let look = deltas::Look {
                device,
                observed: &observed,
                metadata: &metadata,
                release: &release,
                record: &record,
                sources: &sources,
                began,
                context,
            };
            let found = look.find()?;
            let by_delta = found
                .chain
                .as_ref()
                .and_then(|chain| Some((deltas::manifest(chain)?, chain.manifest().len() as u64)));
            let (manifest, text) = match by_delta {
                Some(known) => known,
                None => {
                    let (manifest, text) =
                        varve_fetch::manifest(&record, &sources, context.cancel)?;
                    (manifest.into_inner(), text.len() as u64)
                }
            };
            check_policy(device, &manifest)?;
            let target = Target {
                record: record.into_inner(),
                manifest,
                text,
                release: &release,
                found,
                metered,
            };
            let own = layer::carried(&observed);
            plan_stage(device, target, (base, own), check, &sources, context)?
        }
    };
    Ok(Prepared::Ready(Box::new(Ready {
        plan,
        passed_over,
        failed_before,
        warnings,
        way,
        sources,
    })))
}

/// How a plan looks at what is here. The base itself is read later, while what is missing is on
/// its way; until then it is taken for whole.
fn source_check(device: &Device) -> SourceCheck<'static> {
    match device.config.verify {
        Verify::Full => SourceCheck::Known(&[]),
        Verify::New => SourceCheck::Trust,
    }
}

/// Refuses what this device does not take.
pub(crate) fn check_policy(device: &Device, manifest: &Manifest) -> Result<()> {
    policy::check(manifest, &device.config)?;
    policy::check_bootable(manifest)?;
    let paths = device.config.state.iter().map(|state| &state.path);
    let paths = varve_rootfs::state::missing(paths, manifest);
    if paths.is_empty() { Ok(()) } else { Err(Error::NoStateDirectory { paths }) }
}

/// A deployment of this release that is whole and is held as the configuration says: an
/// earlier run was interrupted before it promoted, or the user goes back.
fn staged_before(
    device: &Device,
    observed: &Observed,
    release: &ReleaseRef,
    wish: &Wish,
) -> Option<Deployment> {
    let config = &device.config;
    let latest = observed.latest().map(Deployment::name);
    let own = layer::carried(observed);
    let fits = |deployment: &&Deployment| {
        let record = &deployment.record;
        let same = record.release.as_ref().is_some_and(|held| held.digest == release.digest);
        let again = wish.restage && Some(deployment.name()) == latest;
        same && !again
            && record.stack.layout() == config.layout
            && record.root_mode == config.root_mode
            && layer::kept(deployment) == config.state
            && layer::same_own(&record.own, &own)
    };
    observed.deployments.iter().rev().find(fits).cloned()
}

/// What the new deployment is built upon: what runs, else what boots next, if it is good.
fn base(observed: &Observed) -> Option<&Deployment> {
    let selection = observed.effective_selection();
    let names = [
        observed.booted(),
        selection.as_ref().filter(|s| s.tries.is_none()).map(|s| &s.latest),
        selection.as_ref().and_then(|s| s.previous.as_ref()),
        selection.as_ref().map(|s| &s.latest),
    ];
    names.into_iter().flatten().find_map(|name| observed.deployment(name))
}

fn installed(release: &ReleaseRef) -> Installed {
    Installed { name: release.name.clone(), digest: release.digest, sequence: release.sequence }
}

fn plan_here(
    device: &Device,
    release: &ReleaseRef,
    deployment: Deployment,
) -> Result<(UpgradePlan, Way)> {
    let plan = UpgradePlan {
        release: installed(release),
        title: String::new(),
        notes: String::new(),
        base: None,
        deployment: deployment.name().clone(),
        layout: deployment.record.stack.layout(),
        is_here: true,
        merge: Vec::new(),
        dropped_state: Vec::new(),
        conflicts: Vec::new(),
        fetch: Fetch::default(),
        delta: None,
        without_delta: Vec::new(),
        write: Write::default(),
        room: Vec::new(),
        max_download: device.config.max_download.map(|limit| limit.0),
        metered: None,
    };
    Ok((plan, Way::Here(Box::new(deployment))))
}

/// What is to be staged.
pub(crate) struct Target<'a> {
    record: ReleaseRecord,
    manifest: Manifest,
    /// Length of the manifest's text.
    text: u64,
    release: &'a ReleaseRef,
    found: deltas::Found,
    metered: Option<OnMetered>,
}

fn plan_stage(
    device: &Device,
    target: Target<'_>,
    (base, own): (Option<Deployment>, Vec<OwnLayer>),
    check: SourceCheck<'_>,
    sources: &Sources,
    context: &Context<'_>,
) -> Result<(UpgradePlan, Way)> {
    let Target { record, manifest, text, release, found, metered } = target;
    let mut chain = found.chain;
    let store = &device.store;
    let name = store.free_deployment_name(release.name.as_str())?;
    let layers = base.as_ref().map_or(&[][..], |base| base.record.stack.layers());
    let merge = plan::layers_to_merge(layers, &device.config);
    // What is merged first is planned again afterwards: then what others have is read, not twice.
    let check = if merge.is_empty() { check } else { SourceCheck::Trust };
    let stage = layout::of(device.config.layout).plan(&Request {
        store,
        base: base.as_ref(),
        name: &name,
        manifest: &manifest,
        check,
        progress: context.progress,
        cancel: context.cancel,
    })?;
    if let Some(chain) = &mut chain {
        chain.trim(&stage.fetch);
    }
    let (by_delta, by_packs) = divide(&stage, chain.as_ref());
    let contents = plan_contents(device, &record, &by_packs, sources, context)?;
    let (delta_bytes, delta_requests) = chain.as_ref().map_or((0, 0), deltas::Chain::missing);
    let leftovers = collect::leftovers(store, &needed(&record, release, &stage, chain.as_ref()))?;
    let path = device.places.physical_root.display().to_string();
    let directories = match merge.is_empty() {
        true => 0,
        // The base's are as many, more or less.
        false => manifest.entries().iter().filter(|e| is_directory(e)).count() as u64,
    };
    let beside = plan::Beside {
        bytes: text + run::state_bytes(store, base.as_ref())?,
        directories,
        made: (by_delta.len() as u64, by_delta.iter().map(|needed| needed.size).sum()),
        deltas: chain.as_ref().map_or(0, deltas::Chain::size),
        releasable: leftovers.iter().map(|leftover| leftover.bytes).sum(),
    };
    let space = space::space(store.dir())?;
    let room = plan::room(path, space, &stage, &contents, &beside, &device.config);
    let kept = |path: &StateDir| device.config.state.iter().any(|state| state.path == *path);
    let dropped_state = base
        .iter()
        .flat_map(|base| &base.record.state)
        .map(|state| &state.path)
        .filter(|path| !kept(path))
        .cloned()
        .collect();
    // What the plan is laid upon is what the layers lie over now.
    let conflicts = match &base {
        Some(base) if !own.is_empty() => {
            layer::carry::conflicts(store, &own, &store.manifest(base.name())?, &manifest)?
        }
        _ => Vec::new(),
    };
    let here: u64 = stage.incoming.iter().map(|needed| needed.size).sum();
    let delta = chain.as_ref().map(|chain| DeltaUse {
        from: chain.from.clone(),
        bytes: delta_bytes,
        contents: by_delta.len() as u64,
        memory: chain.peak,
        cpu_milliseconds: chain.cpu,
    });
    let bytes = contents.bytes() + delta_bytes;
    let cpu = chain.as_ref().map_or(0, |chain| chain.cpu);
    let plan = UpgradePlan {
        release: installed(release),
        title: record.title.clone(),
        notes: record.notes.clone(),
        base: stage.base.clone(),
        deployment: name,
        layout: device.config.layout,
        is_here: false,
        merge,
        dropped_state,
        conflicts,
        fetch: Fetch {
            bytes,
            packs: contents.bytes(),
            seconds: bytes.div_ceil(found.rate.max(1)) + cpu.div_ceil(1000),
            requests: contents.requests() + delta_requests,
            contents: (contents.contents() + by_delta.len()) as u64,
            here_already: here + contents.reused(),
            metadata_bytes: sources.traffic().bytes,
        },
        delta,
        without_delta: found.reasons,
        write: Write { paths: stage.paths, linked: stage.linked, copied: stage.copied },
        room: vec![room],
        max_download: device.config.max_download.map(|limit| limit.0),
        metered,
    };
    let parts = Parts { record, manifest, base, stage, contents, chain, leftovers };
    Ok((plan, Way::Stage(Box::new(parts))))
}

/// Digests of all that a plan needs of incoming/.
fn needed(
    record: &ReleaseRecord,
    release: &ReleaseRef,
    stage: &StagePlan,
    chain: Option<&deltas::Chain>,
) -> BTreeSet<ContentDigest> {
    let contents = stage.fetch.iter().chain(&stage.incoming).map(|needed| needed.digest);
    let documents = [record.manifest.sha256, release.record_sha256]
        .into_iter()
        .chain(record.packs.iter().map(|pack| pack.index_sha256))
        .chain(release.deltas.map(|list| list.sha256));
    let deltas = chain.iter().flat_map(|chain| chain.names.iter().copied());
    let between = chain.map(deltas::Chain::between).unwrap_or_default();
    // A name in incoming/ is a digest, whatever it is of.
    let named = documents.chain(deltas).map(|digest| ContentDigest(digest.0));
    contents.chain(named).chain(between).collect()
}

/// What of the missing contents comes by deltas, and what by packs.
fn divide(stage: &StagePlan, chain: Option<&deltas::Chain>) -> (Vec<Needed>, Vec<Needed>) {
    let makes = chain.map(deltas::Chain::makes).unwrap_or_default();
    stage.fetch.iter().copied().partition(|needed| makes.contains_key(&needed.digest))
}

/// Plans the fetching of what is missing from packs. Only the indexes of packs that still miss
/// something are fetched.
pub(crate) fn plan_contents(
    device: &Device,
    record: &ReleaseRecord,
    wanted: &[Needed],
    sources: &Sources,
    context: &Context<'_>,
) -> Result<contents::Plan> {
    let mut missing: HashSet<ContentDigest> = wanted.iter().map(|n| n.digest).collect();
    let mut packs = Vec::new();
    for pack in &record.packs {
        if missing.is_empty() {
            break;
        }
        let index = varve_fetch::pack_index(pack, sources, context.cancel)?;
        missing.retain(|digest| index.find(digest).is_none());
        packs.push((*pack, index));
    }
    let wanted = wanted.iter().map(|needed| (needed.digest, needed.size));
    Ok(contents::plan(wanted, packs, device.store.incoming(), sources)?)
}
