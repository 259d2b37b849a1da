//! What `init`, `check` and `upgrade` say.

use varve_agent::init::Made;
use varve_agent::layer::carry::{Conflict, What as Hides};
use varve_agent::plan::UpgradePlan;
use varve_agent::rejected::Rejection;
use varve_agent::upgrade::Done;
use varve_fetch::metadata::Warning;
use varve_rootfs::reconcile::Outcome;
use varve_term::human::{bytes, count, plural};

use crate::commands::upgrade::{Checked, Upgraded};

pub(crate) fn made(made: &Made) -> String {
    let mut text = format!(
        "{} is installed as deployment {} and boots next ({} fetched).\n",
        made.release,
        made.deployment,
        bytes(made.fetched)
    );
    if !made.config_installed {
        text.push_str(
            "Its configuration is the one in the release: no state covers /etc/varve/varve.toml.\n",
        );
    }
    text
}

/// A source that was passed over, in one line.
pub(crate) fn warning(warning: &Warning) -> String {
    varve_sys::whole_message(&warning.error)
}

fn passed_over(text: &mut String, releases: &[Rejection]) {
    for release in releases {
        text.push_str(&format!(
            "{} is newer, and is not tried again by itself: {}.\n",
            release.name, release.reason
        ));
    }
}

fn warnings(text: &mut String, warnings: &[String]) {
    for warning in warnings {
        text.push_str(&format!("Passed over: {warning}\n"));
    }
}

pub(crate) fn checked(checked: &Checked) -> String {
    let present = checked.present.as_deref().unwrap_or("nothing");
    let mut text = match &checked.newer {
        Some(newer) => format!(
            "{} is available in channel {:?}; {present} is here.\n",
            newer.release, newer.channel
        ),
        None => format!("Up to date: {present} is the newest there is.\n"),
    };
    passed_over(&mut text, &checked.passed_over);
    warnings(&mut text, &checked.warnings);
    if checked.clock_behind {
        text.push_str(
            "This device's clock is behind what it has seen before; the later time was used.\n",
        );
    }
    text
}

pub(crate) fn plan(plan: &UpgradePlan) -> String {
    let mut text = format!("To {}", plan.release.name);
    if !plan.title.is_empty() {
        text.push_str(&format!(" ({})", plan.title));
    }
    text.push_str(&format!(", layout {}\n", plan.layout));
    let mut line = |name: &str, what: String| text.push_str(&format!("  {name:<9}{what}\n"));
    if plan.is_here {
        line("here", format!("as deployment {}: nothing is fetched", plan.deployment));
        return text;
    }
    for note in plan.notes.lines() {
        line("note", note.to_owned());
    }
    let fetch = &plan.fetch;
    let mut what = format!(
        "{} for {} in {}",
        bytes(fetch.bytes),
        plural(fetch.contents, "file", "files"),
        plural(fetch.requests, "request", "requests")
    );
    if fetch.here_already > 0 {
        what.push_str(&format!("; {} are here already", bytes(fetch.here_already)));
    }
    line("fetch", what);
    if let Some(delta) = &plan.delta {
        line(
            "delta",
            format!(
                "from {}: {} for {}; {} of memory, {:.1} s of processor time",
                delta.from,
                bytes(delta.bytes),
                plural(delta.contents, "file", "files"),
                bytes(delta.memory),
                delta.cpu_milliseconds as f64 / 1000.0
            ),
        );
        if fetch.packs > 0 {
            line("packs", format!("{} for the rest", bytes(fetch.packs)));
        }
    }
    for reason in &plan.without_delta {
        line("no delta", reason.clone());
    }
    if fetch.bytes > 0 {
        let time = varve_term::human::duration(std::time::Duration::from_secs(fetch.seconds));
        line("time", format!("about {time}"));
    }
    if !plan.merge.is_empty() {
        let names: Vec<_> = plan.merge.iter().map(ToString::to_string).collect();
        line("merge", format!("{} into one layer first", names.join(", ")));
    }
    let write = &plan.write;
    let mut what = plural(write.paths, "path", "paths");
    if write.linked > 0 {
        what.push_str(&format!(", {} of them linked", count(write.linked)));
    }
    if write.copied > 0 {
        what.push_str(&format!(", {} copied", count(write.copied)));
    }
    if let Some(base) = &plan.base {
        what.push_str(&format!(", over {base}"));
    }
    line("write", what);
    for path in &plan.dropped_state {
        line("state", format!("{path} is no longer kept: what is in it stays on the disk, unseen"));
    }
    for conflict in &plan.conflicts {
        line("layer", self::conflict(conflict));
    }
    for room in &plan.room {
        let free = (room.free + room.releasable).saturating_sub(room.reserve);
        let inodes = match room.free_inodes {
            Some(free) => format!(", {} inodes of {}", count(room.need_inodes), count(free)),
            None => String::new(),
        };
        let fits = if room.fits() { "fits" } else { "DOES NOT FIT" };
        line(
            "room",
            format!("{} of {}{inodes} on {}: {fits}", bytes(room.need), bytes(free), room.path),
        );
    }
    text
}

fn conflict(conflict: &Conflict) -> String {
    let Conflict { layer, path, what } = conflict;
    let off = format!("kept; without it: varve layer off {layer}");
    match what {
        Hides::HidesChanged => {
            format!("{layer} hides {path}, which the release changed ({off})")
        }
        Hides::HidesNew => format!("{layer} hides {path}, which is new in the release ({off})"),
        Hides::RemovesChanged => {
            format!("{layer} removes {path}, which the release changed ({off})")
        }
        Hides::ReplacesChanged { paths } => {
            let paths = plural(*paths, "path", "paths");
            format!("{layer} replaces {path}, in which the release changed {paths} ({off})")
        }
        Hides::NeedsLibrary { library } => format!(
            "{path} of {layer} needs {library}, which the release no longer has: add it to the layer, or varve layer off {layer}"
        ),
    }
}

pub(crate) fn upgraded(answer: &Upgraded) -> String {
    let mut text = String::new();
    if answer.up_to_date {
        text.push_str("Up to date: nothing was changed.\n");
    }
    if let Some(plan) = &answer.plan {
        text.push_str(&self::plan(plan));
    }
    passed_over(&mut text, &answer.passed_over);
    warnings(&mut text, &answer.warnings);
    text
}

pub(crate) fn done(answer: &Upgraded) -> String {
    let mut text = String::new();
    if let Some(done) = &answer.done {
        text.push_str(&ready(done));
    }
    passed_over(&mut text, &answer.passed_over);
    warnings(&mut text, &answer.warnings);
    text
}

fn ready(done: &Done) -> String {
    let mut text = format!(
        "{} is ready as deployment {}: {} fetched",
        done.release,
        done.deployment,
        bytes(done.fetched)
    );
    if done.reused > 0 {
        text.push_str(&format!(", {} were here from before", bytes(done.reused)));
    }
    text.push_str(&format!(
        ".\nThe next boot tries it, up to {}; reboot when it suits you.\n",
        plural(done.tries.into(), "time", "times")
    ));
    if done.mended > 0 {
        let paths = plural(done.mended, "path", "paths");
        text.push_str(&format!(
            "{paths} of the running system had been damaged on this disk, or changed by hand: the \
             new one has what was published. To see which: varve fsck\n"
        ));
    }
    for off in &done.switched_off {
        text.push_str(&format!(
            "{} is switched off for the trial: with it {}.\n",
            off.layer, off.problem
        ));
    }
    for file in &done.reconciled {
        let what = match file.outcome {
            Outcome::Merged => "changed here and by the release: both changes are in it",
            Outcome::KeptBeside => {
                "changed here and by the release: yours stays, the release's is beside it (.varve-new)"
            }
            Outcome::KeptAlone => "changed here and dropped by the release: yours stays",
            Outcome::StaysDeleted => "deleted here and changed by the release: it stays deleted",
        };
        text.push_str(&format!("{}: {what}.\n", file.path));
    }
    if !done.collected.is_empty() {
        text.push_str(&format!("Deleted by policy: {}.\n", done.collected.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests;
