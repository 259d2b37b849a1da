//! What becomes of a deployment once it is promoted: confirmed, rolled back, or carried
//! on at shutdown.
//!
//! ```text
//! after boot   latest runs on trial: health checks -- pass --> confirm
//!                                                  '- fail --> remember why, roll back, reboot
//!              another one runs, because the latest did not come up: remember why, roll back
//! shutdown     latest waits for its first boot: carry the state that changed since
//!              latest runs on trial and was not judged: give the try back
//! ```
//!
//! Order against power cuts: why a release failed is durable *before* the selection
//! turns away from it, so that a cut between the two cannot lose the reason; a
//! deployment is marked good *after* the selection ends its trial, so that the mark never
//! vouches for one that is still on trial. Each act, asked twice, does nothing more.

use serde::Serialize;
use varve_boot::transition;
use varve_format::DeploymentName;
use varve_format::selection::Selection;
use varve_rootfs::Deployment;

use crate::announce::{self, Sign};
use crate::config::HealthCheck;
use crate::device::{Device, Writer};
use crate::error::{Error, Result};
use crate::health::Outcome;
use crate::history::{self, Event, Record};
use crate::observe::Observed;
use crate::selection;
use crate::soft_reboot;
use crate::upgrade::{self, Context};

/// What the first minutes after a boot came to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum AfterBoot {
    /// There was nothing to decide.
    Nothing {
        /// Why, in words.
        why: String,
    },
    /// The latest works.
    Confirmed {
        /// Which.
        deployment: DeploymentName,
        /// How many checks passed.
        checks: usize,
    },
    /// The latest runs, and a health check failed.
    Failed {
        /// Which.
        deployment: DeploymentName,
        /// Why, in words.
        reason: String,
        /// What boots next; none: there is nothing to go back to, and it stays.
        back_to: Option<DeploymentName>,
    },
    /// This boot was a part of the search for a bad layer.
    Searched(crate::bisect::Judged),
    /// The latest did not come up, and another one runs.
    FellBack {
        /// The one that did not come up.
        from: DeploymentName,
        /// What runs, and is the latest again.
        to: DeploymentName,
        /// Why, in words.
        reason: String,
    },
}

/// Judges this boot; once, when it is complete. `run` runs a health check.
pub fn after_boot(
    device: &Device,
    writer: &Writer,
    context: &Context<'_>,
    run: &dyn Fn(&HealthCheck) -> Outcome,
) -> Result<AfterBoot> {
    let observed = Observed::look(device)?;
    let boot = observed.boot.clone().ok_or(Error::NotRunning)?;
    let current = mended_selection(device, writer, &observed, context)?;
    let nothing = |why: &str| Ok(AfterBoot::Nothing { why: why.to_owned() });
    if boot.reason == "search" {
        return match crate::bisect::judge_boot(device, writer, context, run)? {
            Some(judged) => Ok(AfterBoot::Searched(judged)),
            None => nothing("this boot is a part of a search, which is over or asks a person"),
        };
    }
    let asked_for = matches!(boot.reason.as_str(), "key-held" | "command-line" | "menu" | "probe");
    // A boot of the whole that came up: the memory of the last try is over.
    if !asked_for
        && crate::strip::read_probe(&device.store).is_ok_and(|p| p.is_some_and(|p| p.tries == 0))
    {
        crate::strip::forget_probe(&device.store)?;
    }
    if current.latest != boot.deployment {
        if asked_for {
            return nothing("this boot was asked for by a key or on the kernel's command line");
        }
        let same = boot.generation == Some(current.generation);
        if current.tries != Some(0) && !same {
            return nothing("the latest deployment waits for a reboot");
        }
        let reason = why_not_up(&boot.passed_over, &current, device.config.tries);
        return fell_back(device, writer, &observed, &current, &boot.deployment, reason, context);
    }
    if boot.stripped > 0 {
        return nothing("layers were left out of this boot: it says nothing about the whole");
    }
    let deployment = observed
        .deployment(&current.latest)
        .ok_or_else(|| Error::NoDeployment { name: current.latest.clone() })?;
    if current.tries.is_none() && deployment.confirmed {
        return nothing("the latest deployment was confirmed before");
    }
    let outcomes: Vec<Outcome> = device.config.health.iter().map(run).collect();
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.passed()).collect();
    for outcome in &failed {
        let record = Record::new(context.now, Event::CheckFailed)
            .with("deployment", deployment.name())
            .with("check", &outcome.name)
            .with("how", &outcome.verdict)
            .with("output", &outcome.output);
        history::append(device.store.dir(), &record)?;
    }
    let Some(first) = failed.first() else {
        confirm_deployment(device, writer, &current, deployment, context)?;
        let deployment = deployment.name().clone();
        return Ok(AfterBoot::Confirmed { deployment, checks: outcomes.len() });
    };
    let reason = first.reason();
    let name = deployment.name().clone();
    let back_to = match roll_back_to_previous(device, writer, &observed, &current, &reason, context)
    {
        Ok(to) => Some(to),
        Err(Error::Transition(transition::TransitionError::NoPrevious { .. })) => None,
        Err(error) => return Err(error),
    };
    Ok(AfterBoot::Failed { deployment: name, reason, back_to })
}

fn why_not_up(passed_over: &[String], current: &Selection, tries: u8) -> String {
    match current.tries {
        Some(0) => format!("it did not come up in {tries} tries"),
        _ if passed_over.is_empty() => "it could not be booted".to_owned(),
        _ => passed_over.join("; "),
    }
}

/// The selection; one that cannot be read is written anew, as what booted stands for it.
pub(crate) fn mended_selection(
    device: &Device,
    _writer: &Writer,
    observed: &Observed,
    context: &Context<'_>,
) -> Result<Selection> {
    let problem = match &observed.selection {
        Ok(selection) => return Ok(selection.clone()),
        Err(problem) => problem.to_string(),
    };
    let stand_in = observed.effective_selection().ok_or(Error::NothingGood)?;
    let generation = observed.boot.as_ref().and_then(|boot| boot.generation).unwrap_or(0) + 1;
    let mended = Selection { generation, ..stand_in };
    let record = Record::new(context.now, Event::FallBack)
        .with("to", &mended.latest)
        .with("reason", format!("{problem}; it was written anew"));
    announce::selected::<Error>(&device.store, &mended, record)?;
    Ok(mended)
}

fn fell_back(
    device: &Device,
    _writer: &Writer,
    observed: &Observed,
    current: &Selection,
    booted: &DeploymentName,
    reason: String,
    context: &Context<'_>,
) -> Result<AfterBoot> {
    // The same release with other own layers: not the release failed, but what lies over it.
    if !same_release(observed, &current.latest, booted) {
        remember(device, observed, &current.latest, &reason, context)?;
    }
    let back = match &current.previous {
        Some(previous) if previous == booted => transition::roll_back(current)?,
        _ => Selection {
            generation: current.generation + 1,
            latest: booted.clone(),
            previous: None,
            tries: None,
        },
    };
    let back = Selection {
        // What did not come up is no fallback, whether it was good once or not.
        previous: another_good(observed, &[&back.latest, &current.latest]),
        ..back
    };
    let record = Record::new(context.now, Event::FallBack)
        .with("from", &current.latest)
        .with("to", booted)
        .with("reason", &reason);
    announce::selected::<Error>(&device.store, &back, record)?;
    Ok(AfterBoot::FellBack { from: current.latest.clone(), to: booted.clone(), reason })
}

fn same_release(observed: &Observed, one: &DeploymentName, other: &DeploymentName) -> bool {
    let digest = |name: &DeploymentName| {
        observed.deployment(name)?.record.release.as_ref().map(|release| release.digest)
    };
    digest(one).is_some() && digest(one) == digest(other)
}

/// Says that what runs works, without asking the health checks. On a device that is not
/// running it is said of the latest.
pub fn confirm(device: &Device, writer: &Writer, context: &Context<'_>) -> Result<DeploymentName> {
    let observed = Observed::look(device)?;
    let current = observed.effective_selection().ok_or(Error::NothingGood)?;
    let name = observed.booted().unwrap_or(&current.latest);
    let deployment =
        observed.deployment(name).ok_or_else(|| Error::NoDeployment { name: name.clone() })?;
    confirm_deployment(device, writer, &current, deployment, context)?;
    Ok(name.clone())
}

fn confirm_deployment(
    device: &Device,
    _writer: &Writer,
    current: &Selection,
    deployment: &Deployment,
    context: &Context<'_>,
) -> Result<()> {
    let name = deployment.name();
    let ended = transition::confirm(current, name)?;
    if ended.is_none() && deployment.confirmed {
        return Ok(());
    }
    let record = Record::new(context.now, Event::Confirm).with("deployment", name);
    let sign = match &ended {
        // One that was good before is marked already.
        Some(good) if deployment.confirmed => Sign::selected(good),
        _ => Sign::Confirmed { deployment: name.clone() },
    };
    announce::told(&device.store, record, sign, |_| {
        if let Some(good) = &ended {
            selection::commit(&device.store, good)?;
        }
        if let Some(release) = &deployment.record.release {
            let (mut rejected, _) = crate::rejected::Rejected::load(device.store.dir())?;
            if rejected.remove(&release.digest) {
                rejected.save(device.store.dir())?;
            }
        }
        Ok(device.store.mark_confirmed(name)?)
    })
}

/// Names the previous deployment the latest again, for the next boot. Gives its name.
pub fn roll_back(
    device: &Device,
    writer: &Writer,
    reason: &str,
    context: &Context<'_>,
) -> Result<DeploymentName> {
    let observed = Observed::look(device)?;
    let current = observed.effective_selection().ok_or(Error::NothingGood)?;
    roll_back_to_previous(device, writer, &observed, &current, reason, context)
}

fn roll_back_to_previous(
    device: &Device,
    _writer: &Writer,
    observed: &Observed,
    current: &Selection,
    reason: &str,
    context: &Context<'_>,
) -> Result<DeploymentName> {
    let back = transition::roll_back(current)?;
    let to = observed
        .deployment(&back.latest)
        .ok_or_else(|| Error::NoDeployment { name: back.latest.clone() })?;
    remember_against(device, observed, &current.latest, Some(to), reason, context)?;
    let previous =
        back.previous.clone().or_else(|| another_good(observed, &[&back.latest, &current.latest]));
    let back = Selection { previous, ..back };
    let record = Record::new(context.now, Event::RollBack)
        .with("from", &current.latest)
        .with("to", &back.latest)
        .with("reason", reason);
    announce::selected::<Error>(&device.store, &back, record)?;
    Ok(back.latest)
}

/// Another deployment to fall back to: the newest that is good and did not fail since.
fn another_good(observed: &Observed, but: &[&DeploymentName]) -> Option<DeploymentName> {
    let good = |deployment: &&Deployment| {
        let release = deployment.record.release.as_ref();
        let failed = release.is_some_and(|r| observed.rejected.find(&r.digest).is_some());
        deployment.confirmed && !failed && !but.contains(&deployment.name())
    };
    observed.deployments.iter().rev().find(good).map(|deployment| deployment.name().clone())
}

fn remember(
    device: &Device,
    observed: &Observed,
    failed: &DeploymentName,
    reason: &str,
    context: &Context<'_>,
) -> Result<()> {
    remember_against(device, observed, failed, None, reason, context)
}

/// Remembers that a release failed; when its user goes forward to a newer one instead,
/// there is nothing to remember. What is gone to is not held to have failed any more.
fn remember_against(
    device: &Device,
    observed: &Observed,
    failed: &DeploymentName,
    to: Option<&Deployment>,
    reason: &str,
    context: &Context<'_>,
) -> Result<()> {
    let release = |d: &Deployment| d.record.release.clone();
    let failed = observed.deployment(failed).and_then(release);
    let to = to.and_then(release);
    let mut rejected = observed.rejected.clone();
    if let Some(to) = &to {
        rejected.remove(&to.digest);
    }
    if let Some(failed) = failed.filter(|failed| {
        to.as_ref().is_none_or(|to| to.sequence <= failed.sequence && to.digest != failed.digest)
    }) {
        rejected.add(&failed, reason, context.now);
    }
    if rejected != observed.rejected {
        rejected.save(device.store.dir())?;
    }
    Ok(())
}

/// What was done at shutdown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Finalized {
    /// Nothing was to be done.
    Nothing,
    /// The state that changed since the upgrade was carried to what boots next.
    Carried {
        /// To whom.
        to: DeploymentName,
    },
    /// The try of this boot, which nobody judged, was given back.
    Refunded {
        /// How many there are again.
        tries: u8,
    },
    /// The new root is put together: a soft reboot goes on in it.
    NextRoot {
        /// Whose.
        of: DeploymentName,
    },
}

/// The last act before a shutdown. Before a soft reboot it is a boot's first one too.
pub fn finalize(device: &Device, writer: &Writer, context: &Context<'_>) -> Result<Finalized> {
    let settled = settle(device, writer, context)?;
    Ok(match soft_reboot::at_shutdown(device, context)? {
        Some(of) => Finalized::NextRoot { of },
        None => settled,
    })
}

fn settle(device: &Device, _writer: &Writer, context: &Context<'_>) -> Result<Finalized> {
    let observed = Observed::look(device)?;
    let (Some(boot), Ok(current)) = (&observed.boot, &observed.selection) else {
        return Ok(Finalized::Nothing);
    };
    if boot.reason == "search" && device.boot_is_complete() {
        crate::bisect::not_judged(device)?;
    }
    // The generation that the boot stage wrote: nothing was decided since, nor given back.
    let untouched = boot.generation == Some(current.generation);
    let unjudged = boot.try_spent && untouched && device.boot_is_complete();
    let refunded = transition::refund(current, &boot.deployment, unjudged);
    if let Some(refunded) = refunded {
        let tries = refunded.tries.unwrap_or(0);
        let record = Record::new(context.now, Event::Refund)
            .with("deployment", &boot.deployment)
            .with("tries", tries);
        announce::selected::<Error>(&device.store, &refunded, record)?;
        return Ok(Finalized::Refunded { tries });
    }
    let waiting = observed
        .deployment(&current.latest)
        .filter(|latest| current.tries.is_some() && *latest.name() != boot.deployment);
    let Some(latest) = waiting.filter(|latest| !latest.confirmed) else {
        return Ok(Finalized::Nothing);
    };
    upgrade::carry(&device.store, &observed, latest)?;
    Ok(Finalized::Carried { to: latest.name().clone() })
}

/// Sets or clears its user's wish to keep a deployment.
pub fn pin(
    device: &Device,
    _writer: &Writer,
    name: &DeploymentName,
    pinned: bool,
    context: &Context<'_>,
) -> Result<bool> {
    let before = device.store.deployment(name)?;
    if before.pinned == pinned {
        return Ok(false);
    }
    let record =
        Record::new(context.now, Event::Pin).with("deployment", name).with("pinned", pinned);
    let sign = Sign::Pinned { deployment: name.clone(), pinned };
    announce::told(&device.store, record, sign, |_| {
        device.store.set_pinned(name, pinned)?;
        Ok(true)
    })
}
