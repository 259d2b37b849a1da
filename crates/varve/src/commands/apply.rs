//! `apply`.

use serde::Serialize;
use varve_agent::live::{self, Plan, Switched};
use varve_agent::soft_reboot;
use varve_term::Exit;

use super::{Answer, Session, systemctl};
use crate::cli::Apply;
use crate::show::apply as show;

pub(crate) fn run(session: &Session<'_>, args: &Apply) -> Answer {
    if args.soft_reboot { reboot_softly(session, args) } else { show_live(session, args) }
}

/// What a soft reboot is, or would be.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct SoftReboot {
    /// What was found.
    #[serde(flatten)]
    pub plan: soft_reboot::Plan,
    /// Nothing was begun.
    pub dry_run: bool,
}

fn reboot_softly(session: &Session<'_>, args: &Apply) -> Answer {
    let device = session.device()?;
    let writer = device.lock("apply", session.now)?;
    let answer = SoftReboot { plan: soft_reboot::plan(&device)?, dry_run: args.dry_run };
    if args.dry_run {
        session.answer(&answer, show::soft_reboot)?;
        let safe = answer.plan.obstacles.is_empty();
        return Ok(if safe { Exit::Done } else { Exit::Refused });
    }
    soft_reboot::request(&device, &writer, &answer.plan)?;
    drop(writer);
    session.answer(&answer, show::soft_reboot)?;
    if let Err(error) = systemctl(&["soft-reboot"]) {
        soft_reboot::withdraw(&device)?;
        return Err(error);
    }
    Ok(Exit::Done)
}

/// What a live change did, or would do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Applied {
    /// What was found.
    #[serde(flatten)]
    pub plan: Plan,
    /// Nothing was changed.
    pub dry_run: bool,
    /// What was done; none in a dry run.
    pub switched: Option<Switched>,
    /// Services that were started anew.
    pub restarted: Vec<String>,
    /// Services that did not come back, and why.
    pub failed: Vec<(String, String)>,
}

fn show_live(session: &Session<'_>, args: &Apply) -> Answer {
    let device = session.device()?;
    let writer = device.lock("apply", session.now)?;
    let plan = live::plan(&device, args.deployment.as_ref())?;
    let mut applied = Applied {
        plan,
        dry_run: args.dry_run,
        switched: None,
        restarted: Vec::new(),
        failed: Vec::new(),
    };
    if args.dry_run {
        let safe = applied.plan.obstacles.is_empty();
        session.answer(&applied, show::live)?;
        return Ok(if safe { Exit::Done } else { Exit::Refused });
    }
    let root = std::path::Path::new("/");
    let switched = live::apply(&device, &writer, &applied.plan, root, &session.context())?;
    applied.switched = Some(switched);
    drop(writer);
    if !args.no_restart {
        for service in applied.plan.services.iter().filter(|service| service.restart) {
            session.progress.note(&format!("restarting {}", service.unit));
            match systemctl(&["try-restart", &service.unit]) {
                Ok(()) => applied.restarted.push(service.unit.clone()),
                Err(error) => applied.failed.push((service.unit.clone(), error.to_string())),
            }
        }
    }
    let whole = applied.failed.is_empty();
    session.answer(&applied, show::live)?;
    Ok(if whole { Exit::Done } else { Exit::Failed })
}
