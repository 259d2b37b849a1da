//! What `pin`, `collect`, `fsck`, `ps` and `merge` say.

use std::collections::BTreeMap;

use varve_agent::merge::Due;
use varve_agent::ps::{How, Origin, Process};
use varve_agent::repair::Repaired;
use varve_format::LayerName;
use varve_term::Columns;
use varve_term::human::{bytes, count, plural};

use crate::commands::keep::{Collected, FsckAnswer, Merged, Pinned};

pub(crate) fn pinned(answer: &Pinned) -> String {
    let Pinned { deployment, pinned, changed, dry_run } = answer;
    let word = if *pinned { "pinned" } else { "not pinned" };
    match (changed, dry_run) {
        (false, _) => format!("{deployment} is {word} already.\n"),
        (true, true) => format!("{deployment} would be {word}.\n"),
        (true, false) => format!("{deployment} is {word}.\n"),
    }
}

pub(crate) fn collected(answer: &Collected) -> String {
    let mut text = String::new();
    let gone = if answer.dry_run { "Would go" } else { "Deleted" };
    let mut list = |what: &str, names: Vec<String>| {
        if !names.is_empty() {
            text.push_str(&format!("{gone}: {what} {}\n", names.join(", ")));
        }
    };
    let strings = |names: &[LayerName]| names.iter().map(ToString::to_string).collect();
    list("deployments", answer.deployments.iter().map(ToString::to_string).collect());
    list("layers", strings(&answer.layers));
    list("trees", strings(&answer.trees));
    if answer.incoming > 0 {
        list("fetched files", vec![count(answer.incoming as u64)]);
    }
    if text.is_empty() {
        text.push_str("There is nothing to delete.\n");
    } else {
        let word = if answer.dry_run { "would become" } else { "became" };
        text.push_str(&format!("{} {word} free.\n", bytes(answer.bytes)));
    }
    if !answer.held_by_mounts.is_empty() {
        let names: Vec<String> = strings(&answer.held_by_mounts);
        text.push_str(&format!("Still in use, gone after a reboot: {}\n", names.join(", ")));
    }
    for path in &answer.blocked_by {
        text.push_str(&format!("No layer is deleted while {path} cannot be read.\n"));
    }
    text
}

pub(crate) fn fsck(answer: &FsckAnswer) -> String {
    let found = &answer.found;
    let mut text = String::new();
    for checked in &found.deployments {
        let name = &checked.deployment;
        match &checked.problem {
            Some(problem) => text.push_str(&format!("{name}: could not be compared: {problem}\n")),
            None if checked.differences == 0 => text.push_str(&format!(
                "{name}: {} and {} are as published.\n",
                plural(checked.paths, "path", "paths"),
                bytes(checked.bytes)
            )),
            None => {
                let count = plural(checked.differences, "difference", "differences");
                text.push_str(&format!("{name}: {count} to what was published\n"));
                for difference in &checked.shown {
                    text.push_str(&format!("  {difference}\n"));
                }
            }
        }
    }
    for record in &found.records {
        text.push_str(&format!("{record}\n"));
    }
    if found.incoming > 0 {
        text.push_str(&format!(
            "{} of an unfinished upgrade, {} damaged.\n",
            plural(found.incoming, "file", "files"),
            found.bad_incoming.len()
        ));
    }
    match &answer.repaired {
        Some(repaired) => text.push_str(&mended(repaired)),
        None if !found.is_clean() => {
            text.push_str("To write anew what is damaged: varve fsck --repair\n");
        }
        None => {}
    }
    text
}

fn mended(repaired: &Repaired) -> String {
    let mut text = String::new();
    for mended in &repaired.deployments {
        let mut parts = Vec::new();
        if mended.differences > 0 {
            parts.push(format!(
                "{} mended",
                plural(mended.differences, "difference", "differences")
            ));
        }
        if mended.manifest {
            parts.push("the manifest fetched".to_owned());
        }
        if mended.copied > 0 {
            parts.push(format!(
                "{} copied from what is here",
                plural(mended.copied, "file", "files")
            ));
        }
        if mended.fetched > 0 {
            parts.push(format!("{} fetched", plural(mended.fetched, "file", "files")));
        }
        text.push_str(&format!("{}: {}.\n", mended.deployment, parts.join(", ")));
    }
    for record in &repaired.records {
        text.push_str(&format!("{record} was put back from its copy.\n"));
    }
    if repaired.selection {
        text.push_str("The selection was written anew.\n");
    }
    if !repaired.dropped.is_empty() {
        let count = plural(repaired.dropped.len() as u64, "damaged file", "damaged files");
        text.push_str(&format!("{count} of an unfinished upgrade deleted.\n"));
    }
    if repaired.fetched > 0 {
        text.push_str(&format!("{} fetched.\n", bytes(repaired.fetched)));
    }
    for left in &repaired.left {
        text.push_str(&format!("Not mended: {left}\n"));
    }
    text
}

/// In what way a file is held, in one word.
pub(crate) fn how(how: How) -> &'static str {
    match how {
        How::Executable => "executable",
        How::Library => "library",
        How::OpenFile => "open-file",
        How::Root => "root",
        How::WorkingDirectory => "working-directory",
    }
}

/// Where a file comes from, in one word, and the layer or tree.
pub(crate) fn origin(origin: &Origin) -> (&'static str, Option<&LayerName>) {
    match origin {
        Origin::Layer(name) => ("layer", Some(name)),
        Origin::Tree(name) => ("tree", Some(name)),
        Origin::State => ("state", None),
        Origin::Gone => ("gone", None),
        Origin::Other => ("other", None),
    }
}

fn part(held: &Origin) -> String {
    match origin(held) {
        (_, Some(name)) => name.to_string(),
        (word, None) => word.to_owned(),
    }
}

pub(crate) fn processes(processes: &[Process]) -> String {
    let mut table =
        Columns::new(&[">PID", "NAME", "DEPLOYMENT", "EXECUTABLE", "LIBRARIES", "OPEN FILES"]);
    let mut by_deployment: BTreeMap<String, u64> = BTreeMap::new();
    for process in processes {
        let names: Vec<_> = process.deployments().iter().map(ToString::to_string).collect();
        for name in &names {
            *by_deployment.entry(name.clone()).or_default() += 1;
        }
        let counts = process.counts();
        let of = |how| {
            let of = counts.iter().filter(|(held, ..)| *held == how);
            let of = of.map(|(_, origin, count)| match count {
                1 => part(origin),
                count => format!("{} ({count})", part(origin)),
            });
            of.collect::<Vec<_>>().join(", ")
        };
        table.row([
            process.pid.to_string(),
            process.name.clone(),
            names.join(", "),
            of(How::Executable),
            of(How::Library),
            of(How::OpenFile),
        ]);
    }
    if table.is_empty() {
        return "No process stands on a deployment.\n".to_owned();
    }
    let mut text = table.to_string();
    text.push('\n');
    for (name, processes) in by_deployment {
        text.push_str(&format!("{name}: {}\n", plural(processes, "process", "processes")));
    }
    text
}

pub(crate) fn files(processes: &[Process]) -> String {
    let mut table = Columns::new(&[">PID", "NAME", "DEPLOYMENT", "FROM", "HOW", "FILE"]);
    for process in processes {
        for held in &process.uses {
            let gone = if held.deleted { " (no longer there)" } else { "" };
            table.row([
                process.pid.to_string(),
                process.name.clone(),
                held.deployment.as_ref().map_or("-".into(), ToString::to_string),
                part(&held.origin),
                how(held.how).to_owned(),
                format!("{}{gone}", held.path.display()),
            ]);
        }
    }
    if table.is_empty() {
        "No process stands on a deployment.\n".to_owned()
    } else {
        table.to_string()
    }
}

pub(crate) fn merged(answer: &Merged) -> String {
    let Merged { deployment, before, after, due, dry_run } = answer;
    let list =
        |names: &[LayerName]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let not_yet = match due {
        None | Some(Due::Now) => None,
        Some(Due::NotDeep) => Some("its stack is not so deep that it is folded".to_owned()),
        Some(Due::NotProven) => {
            Some("it does not run whole and confirmed, so that it can prove itself".to_owned())
        }
        Some(Due::Later { boots, seconds }) => Some(later(*boots, *seconds)),
    };
    if let (Some(why), true) = (not_yet, before.len() > 1) {
        return format!("{deployment} stays as it is: {why}. `varve merge --now` folds it.\n");
    }
    match (before.len(), dry_run) {
        (0 | 1, _) => format!("{deployment} has nothing to merge.\n"),
        (_, true) => format!("{deployment}: {} would become one layer.\n", list(before)),
        (_, false) => format!("{deployment}: {} became {}.\n", list(before), list(after)),
    }
}

/// What a deployment still has to show.
fn later(boots: u32, seconds: u64) -> String {
    let hours = seconds.div_ceil(3600);
    let time = match hours {
        0..48 => plural(hours, "hour", "hours"),
        _ => plural(hours.div_ceil(24), "day", "days"),
    };
    let boots_left = plural(boots.into(), "good boot", "good boots");
    match (boots, seconds) {
        (0, _) => format!("it is to work for {time} more"),
        (_, 0) => format!("it is to have {boots_left} more"),
        _ => format!("it is to work for {time} and to have {boots_left} more"),
    }
}

pub(crate) fn reset(answer: &varve_agent::reset::Reset) -> String {
    let mut text = String::new();
    let mut fresh: Vec<String> = answer.fresh.iter().map(ToString::to_string).collect();
    if answer.fresh_root {
        fresh.push("the writable top of /".to_owned());
    }
    if !fresh.is_empty() {
        text.push_str(&format!("As the release has it: {}.\n", fresh.join(", ")));
    }
    if !answer.left.is_empty() {
        let left: Vec<String> = answer.left.iter().map(ToString::to_string).collect();
        let left = left.join(", ");
        text.push_str(&format!("Left alone, as all deployments share it: {left}.\n"));
    }
    text + &super::layer::changed(&answer.changed)
}

#[cfg(test)]
mod tests;
