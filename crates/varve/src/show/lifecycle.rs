//! What `status`, `history`, `rollback`, `confirm` and `finalize` say.

use varve_agent::history::{Event, Line, Record};
use varve_agent::lifecycle::{AfterBoot, Finalized};
use varve_agent::observe::{Collectable, DeploymentStatus, Situation, Status};
use varve_term::Columns;
use varve_term::human::{bytes, count, plural};

use crate::commands::lifecycle::{RolledBack, WouldConfirm};

pub(crate) fn status(status: &Status, verbose: bool) -> String {
    let mut text = String::new();
    for situation in &status.situation {
        text.push_str(&self::situation(situation));
        text.push('\n');
    }
    if !status.situation.is_empty() {
        text.push('\n');
    }
    let mut heads = vec!["DEPLOYMENT", "RELEASE", "LAYOUT", "STAGED", "STATE"];
    let costs = status.deployments.iter().any(|deployment| deployment.cost.is_some());
    if costs {
        heads.splice(4..4, ["TAKES", "ALONE"]);
    }
    let mut table = Columns::new(&heads);
    for deployment in status.deployments.iter().rev() {
        let release = deployment.release.as_ref().map_or("-".into(), |r| r.name.to_string());
        let mut row = vec![
            deployment.name.to_string(),
            release,
            deployment.layout.to_string(),
            deployment.created.strftime("%Y-%m-%d").to_string(),
        ];
        row.extend(deployment.cost.iter().flat_map(|cost| [bytes(cost.total), bytes(cost.alone)]));
        row.push(marks(deployment, status));
        table.row(row);
    }
    if table.is_empty() {
        text.push_str("There is no deployment here.\n");
    } else {
        text.push_str(&table.to_string());
    }
    text.push('\n');
    if let Some(booted) = &status.booted {
        text.push_str(&format!(
            "Running since {} on kernel {}; the boot stage took {:.1} ms.\n",
            if booted.soft_reboot { "a soft reboot" } else { "boot" },
            booted.kernel,
            booted.microseconds as f64 / 1000.0
        ));
        for warning in &booted.warnings {
            text.push_str(&format!("At boot: {warning}.\n"));
        }
    }
    let space = &status.space;
    text.push_str(&format!("{} of {} are free", bytes(space.free), bytes(space.total)));
    if let Some(inodes) = space.free_inodes {
        text.push_str(&format!(", and {}", plural(inodes, "inode", "inodes")));
    }
    text.push_str(".\n");
    let Collectable { deployments, parts, bytes: freed } = status.collectable;
    if deployments > 0 || parts > 0 {
        text.push_str(&format!(
            "`varve collect` would free {} of {} and {}.\n",
            bytes(freed),
            plural(deployments as u64, "deployment", "deployments"),
            plural(parts as u64, "layer or tree", "layers or trees")
        ));
    }
    if status.unfinished.files > 0 {
        text.push_str(&format!(
            "An unfinished upgrade has fetched {} in {}; the next one goes on there.\n",
            bytes(status.unfinished.bytes),
            plural(status.unfinished.files, "file", "files")
        ));
    }
    if verbose {
        for release in &status.failed_releases {
            text.push_str(&format!(
                "Failed on {:.0}: {}: {}\n",
                release.time, release.name, release.reason
            ));
        }
        for deployment in &status.deployments {
            text.push_str(&format!("{}: {}\n", deployment.name, deployment.stack.join(", ")));
        }
        for part in &status.parts {
            let (total, alone) = (bytes(part.cost.total), bytes(part.cost.alone));
            text.push_str(&format!("{} takes {total}, {alone} of it alone\n", part.name));
        }
        if costs && status.space.may_share_blocks {
            text.push_str(
                "Files may share blocks on this file system: what they share is counted for each.\n",
            );
        }
    }
    for strange in &status.strange {
        text.push_str(&format!("Damaged or not Varve's: {strange}\n"));
    }
    text
}

fn marks(deployment: &DeploymentStatus, status: &Status) -> String {
    let name = Some(&deployment.name);
    let mut marks = Vec::new();
    if status.booted.as_ref().map(|booted| &booted.deployment) == name {
        marks.push("running".to_owned());
    }
    if status.live.as_ref() == name {
        marks.push("shown live".to_owned());
    }
    if status.latest.as_ref() == name {
        marks.push(match status.tries {
            Some(tries) => format!("boots next, on trial ({tries} left)"),
            None => "boots next".to_owned(),
        });
    }
    if status.previous.as_ref() == name {
        marks.push("fallback".to_owned());
    }
    if deployment.pinned {
        marks.push("pinned".to_owned());
    }
    let failed = deployment.release.as_ref().is_some_and(|release| {
        status.failed_releases.iter().any(|failed| failed.digest == release.digest)
    });
    if failed {
        marks.push("failed".to_owned());
    } else if !deployment.confirmed {
        marks.push("not confirmed".to_owned());
    }
    marks.join(", ")
}

fn situation(situation: &Situation) -> String {
    match situation {
        Situation::NoSelection { why } => format!(
            "No selection can be read ({why}): the newest deployment that is known to be good boots."
        ),
        Situation::TriesUsedUp { latest, booted } => format!(
            "{latest} did not come up and has used up its tries: {booted} runs in its place."
        ),
        Situation::PassedOver { latest, booted, why } => {
            let why =
                if why.is_empty() { "it could not be booted".to_owned() } else { why.join("; ") };
            format!("{latest} should have booted, and {booted} did: {why}.")
        }
        Situation::AskedFor { booted, latest, key: true } => format!(
            "{booted} runs because a key was held at boot; {latest} boots next time.\n\
             To stay with {booted}: varve rollback"
        ),
        Situation::AskedFor { booted, latest, key: false } => format!(
            "{booted} runs because the kernel's command line names it; {latest} boots next time."
        ),
        Situation::OnTrial { latest, tries } => format!(
            "{latest} runs on trial, with {} left. It is kept once its health checks pass.",
            plural((*tries).into(), "more try", "more tries")
        ),
        Situation::RebootNeeded { latest, booted } => {
            format!("{latest} boots next; {booted} runs until then. Reboot when it suits you.")
        }
        Situation::RolledBack { release } => format!(
            "{} was left on {}: {}.\nIt is not tried again by itself; to try it all the same: varve upgrade --to {}",
            release.name,
            release.time.strftime("%Y-%m-%d %H:%M UTC"),
            release.reason,
            release.name
        ),
        Situation::Stripped { layers } => {
            let (were, them) = if *layers == 1 { ("was", "it") } else { ("were", "them") };
            format!(
                "{} {were} left out of this boot; the next one has {them} again.\n\
                 To keep it like this: varve strip --keep",
                plural(u64::from(*layers), "layer", "layers")
            )
        }
    }
}

pub(crate) fn history(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        match line {
            Line::Record(record) => {
                let time = record.time.strftime("%Y-%m-%d %H:%M");
                text.push_str(&format!("{time}  {}\n", sentence(record)));
            }
            Line::Other(line) => text.push_str(&format!("{:16}  {line}\n", "")),
        }
    }
    if text.is_empty() {
        text.push_str("Nothing has happened yet.\n");
    }
    text
}

fn sentence(record: &Record) -> String {
    let get = |key| record.get(key).unwrap_or("?");
    let size = |key| record.get(key).and_then(|v| v.parse().ok()).map_or("?".into(), bytes);
    match record.event {
        Some(Event::Init) => {
            format!("made with {} ({} fetched)", get("release"), size("fetched"))
        }
        Some(Event::Upgrade) => {
            format!("{} staged for the next boot ({} fetched)", get("release"), size("fetched"))
        }
        Some(Event::UpgradeFailed) => {
            format!("upgrade to {} failed: {}", get("release"), get("reason"))
        }
        Some(Event::DeltaLeft) => {
            format!("no delta, or not for all of {}: {}", get("release"), get("reason"))
        }
        Some(Event::Confirm) => format!("{} works", get("deployment")),
        Some(Event::CheckFailed) => {
            let output = record.get("output").filter(|output| !output.is_empty());
            let output = output.map_or(String::new(), |text| {
                format!("\n{:20}| {}", "", text.replace('\n', &format!("\n{:20}| ", "")))
            });
            format!("{}: check {:?} {}{output}", get("deployment"), get("check"), get("how"))
        }
        Some(Event::RollBack) => {
            format!("back from {} to {}: {}", get("from"), get("to"), get("reason"))
        }
        Some(Event::FallBack) => match record.get("from") {
            Some(from) => format!("fell back from {from} to {}: {}", get("to"), get("reason")),
            None => format!("{} goes on as the latest: {}", get("to"), get("reason")),
        },
        Some(Event::Refund) => format!(
            "{} was switched off before it was judged: {} tries left",
            get("deployment"),
            get("tries")
        ),
        Some(Event::Merge) => {
            // A line that a power cut delayed does not know the layer's name.
            let into = record.get("into").unwrap_or("one");
            format!("{}: {} layers merged into {into}", get("deployment"), get("layers"))
        }
        Some(Event::Repair) => format!(
            "{}: {} mended, {} of its files fetched",
            get("deployment"),
            plural(
                record.get("differences").and_then(|v| v.parse().ok()).unwrap_or(0),
                "difference",
                "differences"
            ),
            get("fetched")
        ),
        Some(Event::Collect) => match record.get("deployments") {
            None | Some("") => format!("{} freed", size("bytes")),
            Some(names) => format!("{} freed; {names} deleted", size("bytes")),
        },
        Some(Event::Strip) => match get("kept") {
            "true" => format!("{} is {} without {}", get("deployment"), get("from"), get("off")),
            _ => format!("{}: the next boot is without {}", get("deployment"), get("off")),
        },
        Some(Event::Live) => format!("{} shown in the place of {}", get("to"), get("from")),
        Some(Event::Search) => match record.get("verdict") {
            None => format!("{}: search for a bad layer", get("deployment")),
            Some(verdict) => {
                let off = match get("off") {
                    "" => "with all layers".to_owned(),
                    off => format!("without {off}"),
                };
                format!("{} {off}: {verdict}: {}", get("deployment"), get("why"))
            }
        },
        Some(Event::Pin) => match get("pinned") {
            "true" => format!("{} pinned", get("deployment")),
            _ => format!("{} unpinned", get("deployment")),
        },
        Some(Event::Layers) => {
            format!("layers: {}, for the next boot ({})", get("what"), get("deployment"))
        }
        None => {
            let fields = record.fields.iter().map(|(key, value)| format!(" {key}={value}"));
            format!("{}{}", record.word, fields.collect::<String>())
        }
    }
}

pub(crate) fn rolled_back(answer: &RolledBack) -> String {
    let RolledBack { from, to, runs_already, dry_run } = answer;
    match (dry_run, runs_already) {
        (true, _) => format!("{to} would boot in place of {from}.\n"),
        (false, true) => format!("{to} runs already, and boots from now on in place of {from}.\n"),
        (false, false) => {
            format!("{to} boots next in place of {from}. Reboot when it suits you.\n")
        }
    }
}

pub(crate) fn after_boot(answer: &AfterBoot) -> String {
    match answer {
        AfterBoot::Nothing { why } => format!("Nothing to decide: {why}.\n"),
        AfterBoot::Confirmed { deployment, checks: 0 } => {
            format!("{deployment} is confirmed: it boots from now on.\n")
        }
        AfterBoot::Confirmed { deployment, checks } => format!(
            "{deployment} is confirmed ({} passed): it boots from now on.\n",
            plural(*checks as u64, "health check", "health checks")
        ),
        AfterBoot::Failed { deployment, reason, back_to: Some(to) } => {
            format!("{deployment} is not well: {reason}.\n{to} boots in its place.\n")
        }
        AfterBoot::Failed { deployment, reason, back_to: None } => {
            format!("{deployment} is not well: {reason}.\nThere is nothing to go back to.\n")
        }
        AfterBoot::Searched(judged) => super::strip::judged(judged),
        AfterBoot::FellBack { from, to, reason } => {
            format!("{from} did not come up: {reason}.\n{to} boots from now on.\n")
        }
    }
}

pub(crate) fn would_confirm(answer: &WouldConfirm) -> String {
    let WouldConfirm { deployment, latest, on_trial, checks } = answer;
    let mut text = match (latest, on_trial) {
        (false, _) => format!("{deployment} is not the latest: it cannot be confirmed.\n"),
        (true, false) => format!("{deployment} is not on trial: nothing is to be confirmed.\n"),
        (true, true) => format!("{deployment} would be confirmed.\n"),
    };
    if !checks.is_empty() {
        text.push_str(&format!("These checks would run: {}.\n", checks.join(", ")));
    }
    text
}

pub(crate) fn finalized(answer: &Finalized) -> String {
    match answer {
        Finalized::Nothing => "Nothing to finish.\n".to_owned(),
        Finalized::Carried { to } => format!("State was carried to {to}.\n"),
        Finalized::Refunded { tries } => {
            format!("The try was given back: {} left.\n", count((*tries).into()))
        }
        Finalized::NextRoot { of } => format!("The soft reboot goes on in {of}.\n"),
    }
}

#[cfg(test)]
mod tests;
