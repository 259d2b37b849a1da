//! What `strip` and `bisect` say.

use varve_agent::bisect::{Judged, Report};
use varve_agent::strip::{self, Kept};
use varve_format::LayerName;
use varve_format::probe::Judge;
use varve_term::human::plural;

use crate::commands::strip::{List, NextBoot};

pub(crate) fn list(list: &List) -> String {
    list.menu.list().join("\n")
        + "\n\nThe next boot without the newest so many: varve strip --off COUNT --reboot\n"
}

pub(crate) fn next_boot(next: &NextBoot) -> String {
    let deployment = &next.deployment;
    let [has, is] = if next.dry_run { ["would have", "would be"] } else { ["has", "is"] };
    if next.off.is_empty() {
        return format!("The next boot of {deployment} {has} all its layers.\n");
    }
    let off = strip::list(&next.off);
    let mut text = format!("The next boot of {deployment} {is} without {off}, once.\n");
    if !next.shared.is_empty() {
        let shared = next.shared.join(", ");
        text += &format!("Work saved in {shared} by the newer system may not open in it.\n");
    }
    text
}

pub(crate) fn kept(kept: &Kept) -> String {
    let Kept { deployment, from, off, was_here, dry_run } = kept;
    let off = strip::list(off);
    let trial = if *was_here { "" } else { ", on trial" };
    if *dry_run {
        return format!("{deployment} would boot from now on{trial}: {from} without {off}.\n");
    }
    format!(
        "{deployment} boots from now on{trial}: {from} without {off}.\n\
         Nothing was deleted. To go back: varve rollback. What can be freed: varve collect --dry-run\n"
    )
}

pub(crate) fn judged(judged: &Judged) -> String {
    let next = match judged.again {
        true => "The next boot takes the next probe.",
        false => "The search is over: varve bisect",
    };
    format!("{}: {} ({}).\n{next}\n", without(&judged.off), judged.verdict, judged.why)
}

fn without(off: &[LayerName]) -> String {
    if off.is_empty() {
        "With all layers".to_owned()
    } else {
        format!("Without {}", strip::list(off))
    }
}

pub(crate) fn report(report: &Report) -> String {
    let count = plural(report.layers.len() as u64, "layer", "layers");
    let mut text = format!("The search of {} over {count}:\n", report.deployment);
    for answer in &report.answers {
        text += &format!("  {}: {} ({})\n", without(&answer.off), answer.verdict, answer.why);
    }
    if let Some(running) = &report.running {
        text += &format!("  {}: runs now\n", without(running));
        if report.judge == Judge::Person {
            text += "Does it work? varve bisect good, bad or skip\n";
        }
    }
    let found = strip::list(&report.found);
    text += &match report.outcome {
        "searching" => {
            let left = plural(report.left.into(), "more boot", "more boots");
            format!("At most {left}. If one hangs, switch it off and on: that counts as bad.\n")
        }
        "found" if report.proven => {
            format!("{found} does the harm: without it all the rest works.\n")
        }
        "found" => format!("{found} does harm, and something else with it: only less works.\n"),
        "one-of" => format!("One of these does the harm, and it cannot be said which: {found}.\n"),
        "nothing-wrong" => {
            "Nothing is wrong with all the layers on, as it was judged.\n".to_owned()
        }
        "not-the-layers" => {
            "It is no layer's fault: the base alone is bad too. The state or the machine may be.\n"
                .to_owned()
        }
        _ => "It cannot be said: too much was skipped.\n".to_owned(),
    };
    if !report.changes.is_empty() {
        text += &format!("It changes {}:\n", plural(report.paths, "path", "paths"));
        text += &report.changes.iter().map(|path| format!("  {path}\n")).collect::<String>();
        text += "To switch it off from now on: varve bisect keep\n";
    }
    text
}

pub(crate) fn stopped(report: &Report) -> String {
    format!("The search of {} is ended; the next boot is the usual one.\n", report.deployment)
}

#[cfg(test)]
mod tests {
    use varve_boot::menu::{Entry, Menu, Place};
    use varve_format::deployment::LayerKind;
    use varve_format::probe::Verdict;

    use super::*;
    use crate::commands::strip::Row;

    fn names(names: &[&str]) -> Vec<LayerName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn lists() {
        let entry = |name: &str, kind, off| Entry {
            name: name.parse().unwrap(),
            title: if name == "games" { "Games for the school" } else { "" }.to_owned(),
            kind,
            created: 1_790_000_000,
            size: Some(12_345_678),
            removable: kind != LayerKind::Base,
            off,
        };
        let entries = vec![
            entry("games", LayerKind::Local, true),
            entry("drivers", LayerKind::Extension, false),
            entry("debian-13.2", LayerKind::Update, false),
            entry("debian-13.1", LayerKind::Base, false),
        ];
        let deployment: varve_format::DeploymentName = "debian-13.2+4".parse().unwrap();
        let menu = Menu::new(Place::Running, deployment.clone(), entries);
        let shown = List { deployment, layers: Vec::<Row>::new(), why: Vec::new(), menu };
        insta::assert_snapshot!(list(&shown));
    }

    #[test]
    fn what_boots_next() {
        let mut next = NextBoot {
            deployment: "debian-13.2+4".parse().unwrap(),
            off: names(&["games", "drivers"]),
            shared: vec!["/home".to_owned(), "/var".to_owned()],
            dry_run: false,
        };
        let mut texts = vec![next_boot(&next)];
        next.dry_run = true;
        texts.push(next_boot(&next));
        next.off.clear();
        texts.push(next_boot(&next));
        let mut kept_now = Kept {
            deployment: "debian-13.2+4.stripped".parse().unwrap(),
            from: "debian-13.2+4".parse().unwrap(),
            off: names(&["games"]),
            was_here: false,
            dry_run: false,
        };
        texts.push(kept(&kept_now));
        kept_now.dry_run = true;
        texts.push(kept(&kept_now));
        insta::assert_snapshot!(texts.join("---\n"));
    }

    #[test]
    fn a_search() {
        let judged_as = |off: &[&str], verdict, why: &str, again| Judged {
            off: names(off),
            verdict,
            why: why.to_owned(),
            again,
        };
        let mut seen = Report {
            deployment: "debian-13.2+4".parse().unwrap(),
            layers: names(&["games", "drivers", "debian-13.2"]),
            judge: Judge::Person,
            answers: vec![judged_as(&[], Verdict::Bad, "it did not come up", true)],
            running: Some(names(&["games"])),
            left: 2,
            outcome: "searching",
            found: Vec::new(),
            proven: false,
            changes: Vec::new(),
            paths: 0,
        };
        let mut texts = vec![report(&seen), judged(&seen.answers[0])];
        seen.running = None;
        seen.answers.push(judged_as(
            &["games", "drivers"],
            Verdict::Good,
            "a person says so",
            false,
        ));
        texts.push(judged(&seen.answers[1]));
        (seen.outcome, seen.found, seen.proven) = ("found", names(&["drivers"]), true);
        (seen.changes, seen.paths) = (vec!["/usr/lib/x (taken away)".to_owned()], 1);
        texts.push(report(&seen));
        for outcome in ["nothing-wrong", "not-the-layers", "unknown"] {
            (seen.outcome, seen.found, seen.changes) = (outcome, Vec::new(), Vec::new());
            seen.answers.clear();
            texts.push(report(&seen));
        }
        texts.push(stopped(&seen));
        insta::assert_snapshot!(texts.join("---\n"));
    }
}
