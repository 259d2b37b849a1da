//! Which deployments stay, and the deletion of the rest.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use varve_boot::transition;
use varve_format::DeploymentName;
use varve_format::selection::Selection;
use varve_rootfs::Deployment;
use varve_rootfs::collect::{self, CollectPlan, Keep};

use crate::announce::{self, Sign};
use crate::device::{Device, Writer};
use crate::error::{Error, Result};
use crate::history::{Event, Record};
use crate::live::Live;
use crate::observe::Observed;
use crate::ps;
use crate::rejected::Rejected;
use crate::upgrade::Context;

/// The deployments that stay: selected, booted and pinned ones, and the newest that did
/// not fail, until there are `keep`.
pub fn wanted(
    deployments: &[Deployment],
    selection: Option<&Selection>,
    booted: Option<&DeploymentName>,
    rejected: &Rejected,
    keep: usize,
) -> BTreeSet<DeploymentName> {
    let mut stay: BTreeSet<DeploymentName> = booted.cloned().into_iter().collect();
    if let Some(selection) = selection {
        stay.insert(selection.latest.clone());
        stay.extend(selection.previous.clone());
    }
    let failed = |deployment: &Deployment| {
        let release = deployment.record.release.as_ref();
        release.is_some_and(|release| rejected.find(&release.digest).is_some())
    };
    for deployment in deployments.iter().rev().filter(|d| !d.pinned && !failed(d)) {
        if stay.len() >= keep {
            break;
        }
        stay.insert(deployment.name().clone());
    }
    stay
}

/// Sees what may go. `unfinished`: what an interrupted upgrade left in incoming/ goes too.
pub fn plan(device: &Device, unfinished: bool) -> Result<CollectPlan> {
    let observed = Observed::look(device)?;
    let selection = observed.effective_selection();
    // With nothing to go by, nothing goes.
    let keep = match &selection {
        Some(_) => device.config.keep as usize,
        None => usize::MAX,
    };
    plan_of(device, &observed, selection.as_ref(), keep, unfinished)
}

/// What may go besides, when the way back is given up: all but the system that runs and
/// boots, and what is pinned. Gives with it the selection as it is to be, if it changes.
/// Refused before what runs is known to be good: then the way back may be needed.
pub fn plan_without_previous(
    device: &Device,
    unfinished: bool,
) -> Result<(CollectPlan, Option<Selection>)> {
    let observed = Observed::look(device)?;
    let needed = |why: &str| Error::WayBack { why: why.to_owned() };
    let current = observed.selection.as_ref().map_err(|problem| needed(&problem.to_string()))?;
    let latest = observed.latest().ok_or(Error::NothingGood)?;
    let runs = observed.booted().is_none_or(|booted| booted == latest.name());
    if current.tries.is_some() || !latest.confirmed {
        return Err(needed("the latest has not proved itself"));
    }
    if !runs || observed.boot.as_ref().is_some_and(|boot| boot.stripped > 0) {
        return Err(needed("the latest, with all its layers, is not what runs"));
    }
    let previous = current.previous.as_ref();
    let after = previous.and_then(|previous| transition::forget_previous(current, previous));
    let selection = after.as_ref().unwrap_or(current);
    let plan = plan_of(device, &observed, Some(selection), 1, unfinished)?;
    Ok((plan, after))
}

/// Gives the way back up, and deletes what it held.
pub fn execute_without_previous(
    device: &Device,
    writer: &Writer,
    plan: &CollectPlan,
    after: Option<&Selection>,
    context: &Context<'_>,
) -> Result<()> {
    if let Some(after) = after {
        let record = Record::new(context.now, Event::Collect).with("given-up", "the way back");
        announce::selected::<Error>(&device.store, after, record)?;
    }
    execute(device, writer, plan, context)
}

fn plan_of(
    device: &Device,
    observed: &Observed,
    selection: Option<&Selection>,
    keep: usize,
    unfinished: bool,
) -> Result<CollectPlan> {
    let mut deployments =
        wanted(&observed.deployments, selection, observed.booted(), &observed.rejected, keep);
    // Processes may hold files of each, by mounts that are in no list any more.
    deployments.extend(Live::read(device)?.deployments);
    let varve = device.store.dir();
    let mounts = ps::all_mounts(varve, Path::new("/proc")).map_err(Error::Proc)?;
    let incoming = unfinished.then(BTreeSet::new);
    Ok(collect::plan(&device.store, &Keep { newest: 0, deployments, mounts, incoming })?)
}

/// Deletes what a plan says. Works without free space.
pub fn execute(
    device: &Device,
    _writer: &Writer,
    plan: &CollectPlan,
    context: &Context<'_>,
) -> Result<()> {
    if plan.is_empty() {
        return Ok(());
    }
    // What an upgrade fetched and has used by now frees nothing: no news.
    if plan.deployments.is_empty() && plan.bytes == 0 {
        return Ok(collect::execute(&device.store, plan)?);
    }
    let record = Record::new(context.now, Event::Collect)
        .with("deployments", names(&plan.deployments))
        .with("bytes", plan.bytes);
    // What goes first: see `collect::execute`.
    let in_dir = |dir: &str, name: &dyn fmt::Display| format!("{dir}/{name}");
    let deployment = plan.deployments.first().map(|name| in_dir("deployments", name));
    let layer = || plan.layers.first().map(|name| in_dir("layers", name));
    let tree = || plan.trees.first().map(|name| in_dir("trees", name));
    let content = || plan.incoming.first().map(|name| in_dir("incoming", name));
    let path = deployment.or_else(layer).or_else(tree).or_else(content).unwrap_or_default();
    let sign = Sign::Gone { path };
    announce::told(&device.store, record, sign, |_| Ok(collect::execute(&device.store, plan)?))
}

/// After a promotion: what the policy does not keep; with `fetched`, what an upgrade had
/// fetched, too. Gives the deployments that went.
pub(crate) fn by_policy(
    device: &Device,
    writer: &Writer,
    fetched: bool,
    context: &Context<'_>,
) -> Result<Vec<String>> {
    let plan = plan(device, fetched)?;
    execute(device, writer, &plan, context)?;
    Ok(plan.deployments.iter().map(ToString::to_string).collect())
}

fn names(names: &[DeploymentName]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use varve_format::ReleaseDigest;
    use varve_format::deployment::{DeploymentRecord, FORMAT, ReleaseRef, RootMode, Stack};

    use super::*;

    fn release(n: u8) -> ReleaseRef {
        let name = format!("r{n}").parse().unwrap();
        ReleaseRef { name, digest: ReleaseDigest([n; 32]), sequence: n.into() }
    }

    fn deployment(n: u8, pinned: bool) -> Deployment {
        let record = DeploymentRecord {
            format: FORMAT,
            fresh_root: false,
            own: Vec::new(),
            title: String::new(),
            name: format!("d{n}").parse().unwrap(),
            created: 0,
            number: n.into(),
            stack: Stack::HardLink { tree: "t".parse().unwrap() },
            root_mode: RootMode::ReadOnly,
            release: Some(release(n)),
            kernel: None,
            state: Vec::new(),
        };
        Deployment { record, confirmed: true, pinned }
    }

    fn stay(booted: &str, latest: &str, previous: Option<&str>, keep: usize) -> String {
        let deployments: Vec<_> = (1..=6).map(|n| deployment(n, n == 2)).collect();
        let name = |text: &str| -> DeploymentName { text.parse().unwrap() };
        let selection = Selection {
            generation: 1,
            latest: name(latest),
            previous: previous.map(name),
            tries: None,
        };
        let mut rejected = Rejected::default();
        rejected.add(&release(5), "it hung", Timestamp::UNIX_EPOCH);
        let booted = name(booted);
        let stay = wanted(&deployments, Some(&selection), Some(&booted), &rejected, keep);
        stay.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_boots_stays_and_then_the_newest_good_ones() {
        assert_eq!(stay("d6", "d6", Some("d4"), 2), "d4 d6");
        assert_eq!(stay("d1", "d6", Some("d4"), 2), "d1 d4 d6", "what runs stays");
        assert_eq!(
            stay("d6", "d6", None, 3),
            "d3 d4 d6",
            "d5 failed; the pinned d2 stays by itself"
        );
        assert_eq!(stay("d4", "d4", None, 2), "d4 d6");
    }
}
