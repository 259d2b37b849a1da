//! The upgrade's steps, after the plan.

use std::collections::BTreeSet;

use varve_boot::transition;
use varve_fetch::Sources;
use varve_fetch::contents::{self, ContentsError};
use varve_format::DeploymentName;
use varve_format::selection::Selection;
use varve_rootfs::collect::{self, Leftover};
use varve_rootfs::layout::{self, Request, StagePlan};
use varve_rootfs::reconcile::Reconciled;
use varve_rootfs::stage::StageError;
use varve_rootfs::verify::{Difference, Level};
use varve_rootfs::{Deployment, Details, Needed, SourceCheck, Store};
use varve_sys::{Dir, SysError, space};

use super::{Context, Parts, Ready, Way, base, divide, plan_contents, source_check};
use crate::config::Verify;
use crate::device::{Device, Writer};
use crate::error::{Error, Result};
use crate::history::{self, Event, Record};
use crate::layer::check::SwitchedOff;
use crate::observe::Observed;
use crate::{announce, plan};

/// What was done.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Done {
    /// The deployment that the next boot tries.
    pub deployment: DeploymentName,
    /// The release's name.
    pub release: String,
    /// Bytes over the wire, metadata included.
    pub fetched: u64,
    /// Bytes of contents written.
    pub written: u64,
    /// Bytes of contents that an earlier run had left here.
    pub reused: u64,
    /// Files whose content was read and compared.
    pub files_verified: u64,
    /// What was damaged on this disk of the system that it was built upon, and was written
    /// anew.
    pub mended: u64,
    /// How often it will be tried.
    pub tries: u8,
    /// Files of versioned state that were changed here and by the release.
    pub reconciled: Vec<Reconciled>,
    /// Own layers with which the new system would not boot: switched off for the trial.
    pub switched_off: Vec<SwitchedOff>,
    /// What was deleted afterwards.
    pub collected: Vec<String>,
    /// Why deltas were not used, or not for all.
    pub without_delta: Vec<String>,
}

impl Ready {
    /// Carries the plan out. Refused before anything changes when there is no room.
    pub fn run(self, device: &Device, writer: &Writer, context: &Context<'_>) -> Result<Done> {
        let release = self.plan.release.clone();
        let result = self.carry_out(device, writer, context).map_err(|error| {
            // As when it was so from the start.
            let rule = device.config.download.metered;
            if error.is_metered() { plan::Refusal::Metered { rule }.into() } else { error }
        });
        if let Err(error) = &result
            && !error.is_cancelled()
            && !error.is_link()
            && !error.is_metered()
        {
            let reason = varve_sys::whole_message(error);
            let record = Record::new(context.now, Event::UpgradeFailed)
                .with("release", &release.name)
                .with("reason", reason);
            // On a full or read-only disk the error itself is what the user sees.
            let _ = history::append(device.store.dir(), &record);
        }
        result
    }

    fn carry_out(self, device: &Device, writer: &Writer, context: &Context<'_>) -> Result<Done> {
        let release = self.plan.release.name.clone();
        let reused = self.plan.fetch.here_already;
        let Staged { deployment, report, files_verified, mended, fetched, without_delta } =
            self.stage(device, writer, context)?;
        // From here on it takes a moment: what is done is not left half done.
        let observed = Observed::look(device)?;
        let (deployment, switched_off) = crate::layer::bootable(device, deployment)?;
        let reconciled = carry(&device.store, &observed, &deployment)?;
        let tries = device.config.tries;
        let record = Record::new(context.now, Event::Upgrade)
            .with("release", &release)
            .with("deployment", deployment.name())
            .with("fetched", fetched)
            .with("reused", reused);
        promote(&device.store, writer, &observed, &deployment, Some(tries), record)?;
        let collected = crate::collect::by_policy(device, writer, true, context)?;
        Ok(Done {
            deployment: deployment.name().clone(),
            release: release.to_string(),
            fetched,
            written: report.written,
            reused,
            files_verified,
            mended,
            tries,
            reconciled,
            switched_off,
            collected,
            without_delta,
        })
    }

    /// Fetches, stages, verifies and commits, without promoting. Gives the deployment and
    /// the bytes over the wire.
    pub(crate) fn stage_only(
        self,
        device: &Device,
        writer: &Writer,
        context: &Context<'_>,
    ) -> Result<(Deployment, u64)> {
        let staged = self.stage(device, writer, context)?;
        Ok((staged.deployment, staged.fetched))
    }

    fn stage(mut self, device: &Device, writer: &Writer, context: &Context<'_>) -> Result<Staged> {
        self.plan.refuse()?;
        if let Way::Stage(parts) = &mut self.way {
            let short = self.plan.room.iter().map(plan::Room::short).max().unwrap_or(0);
            let leftovers = std::mem::take(&mut parts.leftovers);
            release(device, writer, leftovers, short, context)?;
        }
        self.sources.limit(self.plan.max_download);
        self.sources.guard(crate::sources::gate(device));
        let mut report = contents::Report::default();
        let (mut files_verified, mut mended) = (0, 0);
        let mut without_delta = self.plan.without_delta.clone();
        let deployment = match self.way {
            Way::Here(deployment) => *deployment,
            Way::Stage(parts) => {
                let mut parts =
                    merge_first(device, writer, *parts, &self.plan, &self.sources, context)?;
                let used = parts.chain.as_ref().map_or(&[][..], |chain| &chain.names);
                varve_fetch::deltas::sweep(device.store.incoming(), used)?;
                let chain = parts.chain.take();
                let base = parts.base.as_ref().filter(|_| device.config.verify == Verify::Full);
                let (fetched, damaged) = base::read_meanwhile(device, base, context, || {
                    let report = fetch(device, &parts, chain.as_ref(), &self.sources, context)?;
                    let Some(chain) = chain else { return Ok((report, None)) };
                    let reason =
                        by_delta(device, &parts, chain, &self.plan, &self.sources, context)?;
                    Ok((report, reason))
                })?;
                without_delta.extend(fetched.1);
                report = fetched.0;
                for reason in &without_delta {
                    told(device, &self.plan, reason, context)?;
                }
                if !damaged.is_empty() {
                    mended = damaged.len() as u64;
                    parts = without(device, parts, &damaged, &self.plan, &self.sources, context)?;
                }
                let (deployment, read) = stage(device, parts, &self.plan, context)?;
                files_verified = read;
                varve_fetch::deltas::sweep(device.store.incoming(), &[])?;
                deployment
            }
        };
        let fetched = self.sources.traffic().bytes;
        Ok(Staged { deployment, report, files_verified, mended, fetched, without_delta })
    }
}

/// Deletes what earlier attempts left, oldest first, until so many bytes are free.
fn release(
    device: &Device,
    writer: &Writer,
    leftovers: Vec<Leftover>,
    bytes: u64,
    context: &Context<'_>,
) -> Result<()> {
    let plan = collect::release(leftovers, bytes);
    if !plan.is_empty() {
        let note = "room is made: the oldest of what earlier attempts had fetched goes";
        context.progress.note(&format!("{note} ({} files)", plan.incoming.len()));
    }
    crate::collect::execute(device, writer, &plan, context)
}

/// What waits in incoming/ for an upgrade that may never go on does not use the reserve.
pub(super) fn keep_reserve(device: &Device, writer: &Writer, context: &Context<'_>) -> Result<()> {
    let free = space::space(device.store.dir())?.free;
    let short = device.config.reserve.0.saturating_sub(free);
    let leftovers = collect::leftovers(&device.store, &BTreeSet::new())?;
    release(device, writer, leftovers, short, context)
}

/// A deployment that is whole and that nothing boots yet.
struct Staged {
    deployment: Deployment,
    report: contents::Report,
    files_verified: u64,
    mended: u64,
    /// Bytes over the wire, metadata included.
    fetched: u64,
    without_delta: Vec<String>,
}

/// Fetches deltas and makes contents of them. What does not come out of them is fetched
/// from packs, and why is returned: an error only where packs are of no help either.
fn by_delta(
    device: &Device,
    parts: &Parts,
    mut chain: super::deltas::Chain,
    plan: &plan::UpgradePlan,
    sources: &Sources,
    context: &Context<'_>,
) -> Result<Option<String>> {
    let mut reason = match chain.fetch(sources, context) {
        Ok(()) => chain.apply(&device.store, &parts.stage, context)?,
        Err(error @ Error::Contents(ContentsError::Fetch(_)))
            if !error.is_budget() && !error.is_metered() =>
        {
            Some(varve_sys::whole_message(&error))
        }
        Err(error) => return Err(error),
    };
    let left = missing(device, &parts.stage)?;
    if left.is_empty() {
        return Ok(reason);
    }
    let why = reason.get_or_insert_with(|| "contents did not come out of it".to_owned());
    context.progress.note(&format!("the delta is not enough, packs do the rest: {why}"));
    fetch_more(device, parts, &left, plan, sources, context)?;
    Ok(reason)
}

/// What a plan needs from outside and is not in incoming/.
fn missing(device: &Device, stage: &StagePlan) -> Result<Vec<Needed>> {
    let mut left = Vec::new();
    for needed in &stage.fetch {
        if device.store.incoming_size(&needed.digest)? != Some(needed.size) {
            left.push(*needed);
        }
    }
    Ok(left)
}

/// Fetches from packs what nobody planned to fetch, within the budget.
fn fetch_more(
    device: &Device,
    parts: &Parts,
    wanted: &[Needed],
    plan: &plan::UpgradePlan,
    sources: &Sources,
    context: &Context<'_>,
) -> Result<()> {
    let rest = plan_contents(device, &parts.record, wanted, sources, context)?;
    let bytes = sources.traffic().bytes + rest.bytes();
    if let Some(limit) = plan.max_download.filter(|&limit| bytes > limit) {
        return Err(plan::Refusal::Budget { bytes, limit }.into());
    }
    plan.refuse_metered(rest.bytes(), rest.bytes())?;
    let (progress, cancel) = (context.progress, context.cancel);
    contents::fetch(&rest, sources, device.store.incoming(), progress, cancel).1?;
    Ok(())
}

/// Plans anew what is laid upon a base that the disk has damaged: what is damaged is neither
/// linked nor copied nor left to show, and is fetched where no other deployment has it.
fn without(
    device: &Device,
    parts: Parts,
    damaged: &[Difference],
    plan: &plan::UpgradePlan,
    sources: &Sources,
    context: &Context<'_>,
) -> Result<Parts> {
    let Some(base) = &parts.base else { return Ok(parts) };
    let what = match damaged {
        [one] => one.path.to_string(),
        more => format!("{} paths", more.len()),
    };
    context.progress.note(&format!(
        "{what} of {} is not what its release says: the disk has damaged it, or somebody changed \
         it; it is written anew for the new system",
        base.name()
    ));
    let stage = plan_stage(device, base, &parts, plan, SourceCheck::Known(damaged), context)?;
    let parts = Parts { stage, ..parts };
    let left = missing(device, &parts.stage)?;
    if !left.is_empty() {
        fetch_more(device, &parts, &left, plan, sources, context)?;
    }
    Ok(parts)
}

/// Keeps why a delta was not used.
fn told(
    device: &Device,
    plan: &plan::UpgradePlan,
    reason: &str,
    context: &Context<'_>,
) -> Result<()> {
    let record = Record::new(context.now, Event::DeltaLeft)
        .with("release", &plan.release.name)
        .with("reason", reason);
    Ok(history::append(device.store.dir(), &record)?)
}

/// Fetches what is missing. When an earlier run's half of a file turns out to be spoiled
/// by the disk, it was thrown away, and the file is fetched once more as a whole.
fn fetch(
    device: &Device,
    parts: &Parts,
    chain: Option<&super::deltas::Chain>,
    sources: &Sources,
    context: &Context<'_>,
) -> Result<contents::Report> {
    if parts.contents.contents() == 0 {
        return Ok(contents::Report::default());
    }
    let incoming = device.store.incoming();
    let (progress, cancel) = (context.progress, context.cancel);
    let (report, result) = contents::fetch(&parts.contents, sources, incoming, progress, cancel);
    match result {
        Err(ContentsError::WrongContent { .. }) if parts.contents.reused() > 0 => {}
        result => return result.map(|()| report).map_err(Error::from),
    }
    let (_, by_packs) = divide(&parts.stage, chain);
    let again = plan_contents(device, &parts.record, &by_packs, sources, context)?;
    let (second, result) = contents::fetch(&again, sources, incoming, progress, cancel);
    result?;
    Ok(contents::Report {
        contents: report.contents + second.contents,
        written: report.written + second.written,
        ..second
    })
}

/// Folds the base's layers into one, when the plan says so; then plans anew what is laid
/// upon it.
fn merge_first(
    device: &Device,
    writer: &Writer,
    parts: Parts,
    plan: &plan::UpgradePlan,
    sources: &Sources,
    context: &Context<'_>,
) -> Result<Parts> {
    let Some(base) = parts.base.as_ref().filter(|_| !plan.merge.is_empty()) else {
        return Ok(parts);
    };
    let base = crate::merge::merge(device, writer, base, context)?;
    let check = source_check(device);
    let stage = plan_stage(device, &base, &parts, plan, check, context)?;
    let (_, by_packs) = divide(&stage, parts.chain.as_ref());
    let contents = plan_contents(device, &parts.record, &by_packs, sources, context)?;
    Ok(Parts { base: Some(base), stage, contents, ..parts })
}

fn plan_stage(
    device: &Device,
    base: &Deployment,
    parts: &Parts,
    plan: &plan::UpgradePlan,
    check: SourceCheck<'_>,
    context: &Context<'_>,
) -> Result<StagePlan> {
    Ok(layout::of(device.config.layout).plan(&Request {
        store: &device.store,
        base: Some(base),
        name: &plan.deployment,
        manifest: &parts.manifest,
        check,
        progress: context.progress,
        cancel: context.cancel,
    })?)
}

/// Writes the deployment beside the system, compares it with its manifest, and commits
/// it. One that differs is deleted, with what was wrong of the fetched contents.
fn stage(
    device: &Device,
    parts: Parts,
    plan: &plan::UpgradePlan,
    context: &Context<'_>,
) -> Result<(Deployment, u64)> {
    let own = crate::layer::carried(&Observed::look(device)?);
    let Parts { record, manifest, stage, .. } = parts;
    let layout = layout::of(device.config.layout);
    let staged = layout.stage(&device.store, stage, &manifest, context.progress, context.cancel);
    // What is linked from here was read meanwhile, if so configured.
    let verified = staged
        .and_then(|staged| staged.verify(Level::NewContents, context.progress, context.cancel));
    let verified = match verified {
        Err(error @ StageError::Differs { .. }) => {
            drop_damaged(&device.store, context)?;
            return Err(error.into());
        }
        other => other?,
    };
    let files_read = verified.report.files_read;
    let deployment = verified.commit(Details {
        created: context.now.as_second(),
        root_mode: device.config.root_mode,
        release: Some(plan.release.clone()),
        kernel: record.kernel,
        state: device.config.state.clone(),
        own,
        title: String::new(),
    })?;
    Ok((deployment, files_read))
}

/// Deletes from incoming/ what no longer is what its name says, so that the next run
/// fetches it again. Gives their names.
pub(crate) fn drop_damaged(store: &Store, context: &Context<'_>) -> Result<Vec<String>> {
    let mut dropped = Vec::new();
    for entry in store.incoming().names()? {
        context.cancel.check()?;
        let Some(digest) = entry.name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let intact = crate::fsck::is_intact(store.incoming(), &entry.name, digest);
        if !intact {
            store.incoming().remove_all(&entry.name)?;
            dropped.push(entry.name.to_string_lossy().into_owned());
        }
    }
    Ok(dropped)
}

/// Gives a deployment that never was good the versioned state of what runs, brought onto
/// its release; reports the files that both sides changed. One that was
/// good keeps its own: going back brings the old state back.
pub(crate) fn carry(
    store: &Store,
    observed: &Observed,
    to: &Deployment,
) -> Result<Vec<Reconciled>> {
    let Some(from) = state_source(observed, to.name()).filter(|_| !to.confirmed) else {
        return Ok(Vec::new());
    };
    let manifest = store.manifest(to.name())?;
    varve_rootfs::state::carry(store, &from.record, &to.record, &manifest).map_err(|source| {
        let (from, to) = (from.name().clone(), to.name().clone());
        Error::Carry { from, to, source }
    })
}

/// Whose state a new deployment gets: what runs, else what boots next.
fn state_source<'a>(observed: &'a Observed, to: &DeploymentName) -> Option<&'a Deployment> {
    let from = match observed.booted() {
        Some(booted) => observed.deployment(booted),
        None => observed.latest(),
    };
    from.filter(|from| from.name() != to)
}

/// Names a deployment the latest: the commit point of an upgrade, one file replaced.
/// `tries`: on trial; none: for good. `record` is the line that tells of it.
pub fn promote(
    store: &Store,
    _writer: &Writer,
    observed: &Observed,
    deployment: &Deployment,
    tries: Option<u8>,
    record: Record,
) -> Result<Selection> {
    let current = observed.effective_selection();
    let new = transition::promote(current.as_ref(), deployment.name(), tries)?;
    announce::selected::<Error>(store, &new, record)?;
    Ok(new)
}

/// The bytes of the versioned state that a new deployment gets a copy of.
pub(crate) fn state_bytes(store: &Store, base: Option<&Deployment>) -> Result<u64> {
    let Some(base) = base else { return Ok(0) };
    let Some(versioned) = store.state().open_dir_opt("versioned")? else { return Ok(0) };
    match versioned.open_dir_opt(base.name())? {
        Some(dir) => Ok(bytes_below(&dir)?),
        None => Ok(0),
    }
}

fn bytes_below(dir: &Dir) -> Result<u64, SysError> {
    let mut bytes = 0;
    for entry in dir.names()? {
        let Some(stat) = dir.stat_opt(&entry.name)? else { continue };
        bytes += stat.blocks * 512;
        if stat.is_dir() {
            bytes += bytes_below(&dir.open_dir(&entry.name)?)?;
        }
    }
    Ok(bytes)
}
