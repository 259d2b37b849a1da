//! `pin`, `unpin`, `collect`, `fsck`, `ps`, `merge`, `reset`.

use std::path::Path;

use crate::edge::Failure;
use serde::Serialize;
use varve_agent::fsck::Found;
use varve_agent::merge::Due;
use varve_agent::observe::Observed;
use varve_agent::ps::Process;
use varve_agent::repair::Repaired;
use varve_agent::{
    Device, Error, Writer, collect, fsck, lifecycle, merge, proven, ps, repair, reset,
};
use varve_format::{DeploymentName, LayerName};
use varve_rootfs::Deployment;
use varve_term::Exit;

use super::upgrade::device_with;
use super::{Answer, Session};
use crate::cli::{Collect, Fsck, Merge, Name, Ps, Reset, ResetLevel};
use crate::interrupt;
use crate::show::keep as show;

/// What a pin did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Pinned {
    /// Which deployment.
    pub deployment: DeploymentName,
    /// Whether it is pinned now.
    pub pinned: bool,
    /// Whether it was not before.
    pub changed: bool,
    /// Nothing was changed.
    pub dry_run: bool,
}

pub(crate) fn pin(session: &Session<'_>, args: &Name, pinned: bool) -> Answer {
    let device = session.device()?;
    let name = &args.deployment;
    let changed = if args.dry_run {
        device.store.deployment(name)?.pinned != pinned
    } else {
        let writer = device.lock(if pinned { "pin" } else { "unpin" }, session.now)?;
        lifecycle::pin(&device, &writer, name, pinned, &session.context())?
    };
    let answer = Pinned { deployment: name.clone(), pinned, changed, dry_run: args.dry_run };
    session.answer(&answer, show::pinned)?;
    Ok(Exit::Done)
}

/// What was deleted, or would be.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Collected {
    /// Nothing was deleted.
    pub dry_run: bool,
    /// Deployments, with their versioned state.
    pub deployments: Vec<DeploymentName>,
    /// Layers.
    pub layers: Vec<LayerName>,
    /// Trees.
    pub trees: Vec<LayerName>,
    /// Files that were fetched for an upgrade.
    pub incoming: usize,
    /// Bytes that become free.
    pub bytes: u64,
    /// Inodes that become free.
    pub inodes: u64,
    /// Layers and trees that somebody still stands on: gone after a reboot.
    pub held_by_mounts: Vec<LayerName>,
    /// Damaged records, because of which no layer and no tree is deleted.
    pub blocked_by: Vec<String>,
}

pub(crate) fn collect(session: &Session<'_>, args: &Collect) -> Answer {
    let device = session.device()?;
    let writer = device.lock("collect", session.now)?;
    if !args.dry_run {
        varve_rootfs::stage::sweep(&device.store)?;
    }
    let plan = if args.previous {
        let (plan, after) = collect::plan_without_previous(&device, args.unfinished)?;
        if !args.dry_run {
            let (after, context) = (after.as_ref(), session.context());
            collect::execute_without_previous(&device, &writer, &plan, after, &context)?;
        }
        plan
    } else {
        let plan = collect::plan(&device, args.unfinished)?;
        if !args.dry_run {
            collect::execute(&device, &writer, &plan, &session.context())?;
        }
        plan
    };
    let answer = Collected {
        dry_run: args.dry_run,
        deployments: plan.deployments,
        layers: plan.layers,
        trees: plan.trees,
        incoming: plan.incoming.len(),
        bytes: plan.bytes,
        inodes: plan.inodes,
        held_by_mounts: plan.held_by_mounts,
        blocked_by: plan.blocked_by,
    };
    session.answer(&answer, show::collected)?;
    Ok(Exit::Done)
}

pub(crate) fn fsck(session: &Session<'_>, args: &Fsck) -> Answer {
    let device = device_with(session, args.sources.clone())?;
    interrupt::busy();
    let (only, context) = (args.deployment.as_ref(), session.context());
    // Nothing else changes what is looked at here and mended then.
    let writer = match args.repair {
        true => Some(device.lock("fsck --repair", session.now)?),
        false => None,
    };
    let found = fsck::fsck(&device, only, &context)?;
    let repaired = match &writer {
        Some(writer) if !found.is_clean() => Some(repair::repair(&device, writer, only, &context)?),
        _ => None,
    };
    let good = repaired.as_ref().map_or(found.is_clean(), Repaired::is_complete);
    session.answer(&FsckAnswer { found, repaired }, show::fsck)?;
    Ok(if good { Exit::Done } else { Exit::Untrusted })
}

/// What was found, and what was done about it.
#[derive(Debug, Serialize)]
pub(crate) struct FsckAnswer {
    #[serde(flatten)]
    pub found: Found,
    /// With `--repair`, when something was damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Repaired>,
}

/// One process, for machines.
#[derive(Debug, Serialize)]
struct ProcessEntry<'a> {
    pid: u32,
    name: &'a str,
    deployments: Vec<&'a DeploymentName>,
    uses: Vec<UseEntry<'a>>,
}

#[derive(Debug, Serialize)]
struct UseEntry<'a> {
    how: &'static str,
    path: String,
    origin: &'static str,
    part: Option<&'a LayerName>,
    deployment: Option<&'a DeploymentName>,
    deleted: bool,
}

pub(crate) fn ps(session: &Session<'_>, args: &Ps) -> Answer {
    let device = session.device()?;
    let observed = Observed::look(&device)?;
    let live = varve_agent::live::Live::read(&device)?;
    let (booted, live) = (observed.booted(), live.present());
    let (proc, deployments) = (Path::new("/proc"), &observed.deployments);
    let mut processes =
        ps::processes(proc, device.store.dir(), deployments, booted, live).map_err(Error::Proc)?;
    if let Some(only) = &args.deployment {
        processes.retain(|process| process.deployments().contains(only));
    }
    let entries: Vec<ProcessEntry<'_>> = processes.iter().map(entry).collect();
    session.answer(&entries, |_| match args.files {
        true => show::files(&processes),
        false => show::processes(&processes),
    })?;
    Ok(Exit::Done)
}

fn entry(process: &Process) -> ProcessEntry<'_> {
    let uses = process.uses.iter().map(|held| UseEntry {
        how: show::how(held.how),
        path: held.path.to_string_lossy().into_owned(),
        origin: show::origin(&held.origin).0,
        part: show::origin(&held.origin).1,
        deployment: held.deployment.as_ref(),
        deleted: held.deleted,
    });
    ProcessEntry {
        pid: process.pid,
        name: &process.name,
        deployments: process.deployments().into_iter().collect(),
        uses: uses.collect(),
    }
}

/// What was merged, or would be.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Merged {
    /// Which deployment.
    pub deployment: DeploymentName,
    /// Its layers before, newest first.
    pub before: Vec<LayerName>,
    /// Its layers now.
    pub after: Vec<LayerName>,
    /// Whether it is to be folded by itself; null with --now.
    pub due: Option<Due>,
    /// Nothing was changed.
    pub dry_run: bool,
}

pub(crate) fn merge(session: &Session<'_>, args: &Merge) -> Answer {
    let device = session.device()?;
    let writer = device.lock("merge", session.now)?;
    interrupt::busy();
    let observed = Observed::look(&device)?;
    let deployment = match &args.deployment {
        Some(name) => {
            observed.deployment(name).ok_or_else(|| Error::NoDeployment { name: name.clone() })?
        }
        None => observed.latest().ok_or(Error::NothingGood)?,
    };
    let before = deployment.record.stack.layers().to_vec();
    let mut after = before.clone();
    let due = match args.now {
        true => None,
        false => Some(merge_due(session, &device, &writer, deployment, args.dry_run)?),
    };
    let wanted = due.as_ref().is_none_or(|due| *due == Due::Now);
    if wanted && before.len() > 1 && !args.dry_run {
        varve_rootfs::stage::sweep(&device.store)?;
        let merged = merge::merge(&device, &writer, deployment, &session.context())?;
        after = merged.record.stack.layers().to_vec();
    }
    let (deployment, dry_run) = (deployment.name().clone(), args.dry_run);
    let answer = Merged { deployment, before, after, due, dry_run };
    session.answer(&answer, show::merged)?;
    Ok(Exit::Done)
}

/// Whether the latest is to be folded by itself; the time that it has worked is noted.
fn merge_due(
    session: &Session<'_>,
    device: &Device,
    writer: &Writer,
    latest: &Deployment,
    dry_run: bool,
) -> Result<Due, Failure> {
    let proven = match dry_run || session.places.boot_report.is_none() {
        true => device.store.proven(latest.name())?,
        false => proven::note(device, writer, &session.moment()?, false)?,
    };
    Ok(merge::due(&latest.record.stack, proven.as_ref(), &device.config))
}

pub(crate) fn reset(session: &Session<'_>, args: &Reset) -> Answer {
    let device = session.device()?;
    let writer = device.lock("reset", session.now)?;
    if !args.dry_run {
        varve_rootfs::stage::sweep(&device.store)?;
    }
    let level = match args.level {
        ResetLevel::Etc => reset::Level::Etc,
        ResetLevel::State => reset::Level::State,
        ResetLevel::Layers => reset::Level::Layers,
        ResetLevel::All => reset::Level::All,
    };
    let answer = reset::reset(&device, &writer, level, args.dry_run, &session.context())?;
    session.answer(&answer, show::reset)?;
    drop(writer);
    if args.reboot {
        super::reboot()?;
    }
    Ok(Exit::Done)
}
