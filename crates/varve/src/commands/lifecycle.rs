//! `status`, `history`, `rollback`, `confirm`, `finalize`.

use std::time::Duration;

use serde::Serialize;
use varve_agent::history::{self, Line};
use varve_agent::lifecycle::{self, AfterBoot};
use varve_agent::observe::{self, Observed};
use varve_agent::{Device, DeviceError, health, proven};
use varve_format::DeploymentName;
use varve_term::Exit;

use super::{Answer, Session, reboot};
use crate::cli::{Confirm, History, Rollback, Status};
use crate::show::lifecycle as show;

/// How long the judgement of a boot waits for an upgrade that has begun meanwhile.
const AT_WORK: Duration = Duration::from_secs(25 * 60);

pub(crate) fn status(session: &Session<'_>, args: &Status) -> Answer {
    let device = session.device()?;
    let status = match args.space {
        true => observe::status_with_costs(&device)?,
        false => observe::status(&device)?,
    };
    session.answer(&status, |status| show::status(status, session.verbose))?;
    Ok(Exit::Done)
}

/// One entry, for machines.
#[derive(Debug, Serialize)]
struct Entry {
    time: Option<String>,
    event: Option<String>,
    fields: serde_json::Map<String, serde_json::Value>,
    /// The line, where it is not one that this version writes.
    text: Option<String>,
}

pub(crate) fn history(session: &Session<'_>, args: &History) -> Answer {
    let device = session.device()?;
    let mut lines = history::read(device.store.dir()).map_err(varve_agent::Error::from)?;
    if let Some(last) = args.last {
        lines.drain(..lines.len().saturating_sub(last));
    }
    let entries: Vec<Entry> = lines.iter().map(entry).collect();
    session.answer(&entries, |_| show::history(&lines))?;
    Ok(Exit::Done)
}

fn entry(line: &Line) -> Entry {
    match line {
        Line::Record(record) => Entry {
            time: Some(format!("{:.0}", record.time)),
            event: Some(record.word.clone()),
            fields: record
                .fields
                .iter()
                .map(|(key, value)| (key.clone(), value.clone().into()))
                .collect(),
            text: None,
        },
        Line::Other(text) => Entry {
            time: None,
            event: None,
            fields: serde_json::Map::new(),
            text: Some(text.clone()),
        },
    }
}

/// What a roll back did, or would do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct RolledBack {
    /// What was the latest.
    pub from: DeploymentName,
    /// What boots next.
    pub to: DeploymentName,
    /// Whether it runs already.
    pub runs_already: bool,
    /// Nothing was changed.
    pub dry_run: bool,
}

pub(crate) fn rollback(session: &Session<'_>, args: &Rollback) -> Answer {
    let device = session.device()?;
    let writer = device.lock("rollback", session.now)?;
    let observed = Observed::look(&device)?;
    let current = observed.effective_selection().ok_or(varve_agent::Error::NothingGood)?;
    let to = if args.dry_run {
        varve_boot::transition::roll_back(&current)?.latest
    } else {
        lifecycle::roll_back(&device, &writer, &args.reason, &session.context())?
    };
    let runs_already = observed.booted() == Some(&to);
    let answer = RolledBack { from: current.latest, to, runs_already, dry_run: args.dry_run };
    session.answer(&answer, show::rolled_back)?;
    if args.reboot && !runs_already {
        drop(writer);
        reboot()?;
    }
    Ok(Exit::Done)
}

pub(crate) fn confirm(session: &Session<'_>, args: &Confirm) -> Answer {
    let device = session.device()?;
    if args.dry_run {
        return would_confirm(session, &device, args);
    }
    let limit = if args.after_boot { AT_WORK } else { Duration::ZERO };
    let waits = |holder: &str| session.progress.note(&format!("waiting: at work is {holder}"));
    let writer = device.lock_patiently("confirm", session.now, limit, session.cancel, &waits)?;
    let context = session.context();
    if !args.after_boot {
        let deployment = lifecycle::confirm(&device, &writer, &context)?;
        let answer = AfterBoot::Confirmed { deployment, checks: 0 };
        session.answer(&answer, show::after_boot)?;
        return Ok(Exit::Done);
    }
    let answer = lifecycle::after_boot(&device, &writer, &context, &|check| {
        session.progress.note(&format!("checking {:?}: {}", check.name, check.command.join(" ")));
        health::run(check)
    })?;
    // Whether this boot was judged now or its deployment long ago: it is complete.
    if session.places.boot_report.is_some()
        && matches!(answer, AfterBoot::Confirmed { .. } | AfterBoot::Nothing { .. })
    {
        proven::note(&device, &writer, &session.moment()?, true)?;
    }
    session.answer(&answer, show::after_boot)?;
    match &answer {
        AfterBoot::Searched(judged) => {
            if judged.again && session.places.boot_report.is_some() {
                drop(writer);
                reboot()?;
            }
            Ok(Exit::Done)
        }
        AfterBoot::Failed { back_to, .. } => {
            if back_to.is_some() && session.places.boot_report.is_some() {
                drop(writer);
                reboot()?;
            }
            Ok(Exit::Failed)
        }
        _ => Ok(Exit::Done),
    }
}

/// What a confirmation would be about.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct WouldConfirm {
    /// Which deployment.
    pub deployment: DeploymentName,
    /// Whether it is the latest: no other can be confirmed.
    pub latest: bool,
    /// Whether it is on trial.
    pub on_trial: bool,
    /// The health checks that would run.
    pub checks: Vec<String>,
}

fn would_confirm(session: &Session<'_>, device: &Device, args: &Confirm) -> Answer {
    let observed = Observed::look(device)?;
    let current = observed.effective_selection().ok_or(varve_agent::Error::NothingGood)?;
    let deployment = observed.booted().unwrap_or(&current.latest).clone();
    let latest = deployment == current.latest;
    let checks = device.config.health.iter().filter(|_| args.after_boot);
    let answer = WouldConfirm {
        latest,
        on_trial: latest && current.tries.is_some(),
        checks: checks.map(|check| check.name.clone()).collect(),
        deployment,
    };
    session.answer(&answer, show::would_confirm)?;
    Ok(Exit::Done)
}

/// At shutdown there is nobody to talk to and nothing to wait for: an upgrade that is
/// still at work is about to be ended, and is whole whenever that happens.
pub(crate) fn finalize(session: &Session<'_>) -> Answer {
    let device = session.device()?;
    let writer = match device.lock("finalize", session.now) {
        Err(DeviceError::Busy { holder }) => {
            session.progress.note(&format!("nothing was finalized: at work is {holder}"));
            return Ok(Exit::Refused);
        }
        other => other?,
    };
    if session.places.boot_report.is_some() {
        proven::note(&device, &writer, &session.moment()?, false)?;
    }
    let answer = lifecycle::finalize(&device, &writer, &session.context())?;
    session.answer(&answer, show::finalized)?;
    Ok(Exit::Done)
}
