//! The limits that the figures are held against, each within one pair.

use super::record::{By, Figures, PairName, Record, Took, Way};
use crate::bench::measure::Figure;

/// Of what OSTree moves at its best.
const OF_OSTREE: f64 = 0.20;
/// Bytes beside the delta of a small update.
const BESIDE_DELTA: f64 = 32.0;
const MEMORY_TO_MAKE: f64 = 2048.0;
const MEMORY_WHEN_TOLD: f64 = 64.0;
/// Of OSTree's pull of its delta; ours stages and verifies too.
const TIME: f64 = 3.0;
/// Of a run without cuts.
const RESUME: f64 = 1.02;

const MIB: f64 = 1048576.0;

/// What can be judged by what was measured.
pub(super) fn judge(record: &Record) -> Vec<Figure> {
    let mut all = Vec::new();
    for (name, figures) in &record.pairs {
        pair(*name, figures, &mut all);
    }
    for (by, resume) in &record.resume {
        let each = (resume.moved as f64 - resume.clean as f64) / resume.cuts as f64;
        let note = format!(
            "{} cuts, {} of them kill the process; {:.2} MB for {:.2} MB: {each:.0} bytes for each cut",
            resume.cuts,
            resume.kills,
            resume.moved as f64 / 1e6,
            resume.clean as f64 / 1e6
        );
        let part = resume.moved as f64 / resume.clean as f64;
        all.push(match by {
            By::Packs => {
                let name = "cut and killed, by packs: bytes".to_owned();
                limited(name, part, RESUME, "of a clean run", note)
            }
            // Below a request for each cut nobody comes, so of so few bytes a part says little.
            By::Delta => {
                Figure::fact("cut and killed, by delta: bytes", part, "of a clean run", note)
            }
        });
    }
    all
}

fn limited(name: String, ours: f64, limit: f64, unit: &'static str, note: String) -> Figure {
    Figure { name, ours, limit: Some(limit), unit, note }
}

/// Ours as a part of OSTree's; held against the limit where neither was disturbed.
fn timed(name: String, [ours, theirs]: [Took; 2], limit: f64, note: String) -> Figure {
    let part = ours.seconds / theirs.seconds;
    if ours.is_disturbed() || theirs.is_disturbed() {
        let note = format!("{note}; the machine did other work meanwhile, so this is not judged");
        return Figure::fact(&name, part, "of OSTree's", note);
    }
    limited(name, part, limit, "of OSTree's", note)
}

fn pair(name: PairName, figures: &Figures, all: &mut Vec<Figure>) {
    let named = |what: &str| format!("{}: {what}", name.name());
    let row = |way| figures.rows.get(&way);
    let Some(ours) = row(Way::Varve) else { return };
    let bytes = ours.bytes as f64;
    let ostree = [Way::Ostree, Way::OstreeDelta].map(row);
    let best = ostree.iter().flatten().map(|row| row.bytes).min();
    let is_upgrade = name != PairName::OnePackage;
    if let Some(best) = best.filter(|_| is_upgrade && ostree.iter().all(Option::is_some)) {
        let note = format!("{:.2} MB; OSTree at its best {:.2} MB", bytes / 1e6, best as f64 / 1e6);
        all.push(limited(named("bytes"), bytes / best as f64, OF_OSTREE, "of OSTree's", note));
    }
    let peers = figures.rows.iter().filter(|(way, _)| !way.is_ours());
    if let Some((way, best)) = peers.min_by_key(|(_, row)| row.bytes) {
        let note = format!("{} {:.2} MB", way.name(), best.bytes as f64 / 1e6);
        let part = bytes / best.bytes as f64;
        all.push(limited(named("bytes, beside the best peer"), part, 1.0, "of the peer's", note));
    }
    if let Some(delta) = ours.delta.filter(|_| !is_upgrade) {
        let beside = bytes - delta as f64;
        let note =
            format!("{:.1} KiB in all, the delta {:.1} KiB", bytes / 1024.0, delta as f64 / 1024.0);
        all.push(limited(named("beside the delta"), beside / 1024.0, BESIDE_DELTA, "KiB", note));
    }
    if let Some(small) = row(Way::Varve64) {
        let note = format!(
            "{:.2} MB moved, {:.2} MB without a limit",
            small.bytes as f64 / 1e6,
            bytes / 1e6
        );
        let memory = small.device.memory as f64 / MIB;
        all.push(limited(named("memory when told 64 MiB"), memory, MEMORY_WHEN_TOLD, "MiB", note));
    }
    making(&named, figures, all);
    if let Some(theirs) = row(Way::OstreeDelta) {
        let (ours, theirs) = (ours.device, theirs.device);
        let note = format!(
            "{:.1} s, staged and verified too; its pull alone {:.1} s",
            ours.seconds, theirs.seconds
        );
        all.push(timed(named("time of the device"), [ours, theirs], TIME, note));
    }
}

/// What making the delta took.
fn making(named: &dyn Fn(&str) -> String, figures: &Figures, all: &mut Vec<Figure>) {
    let made = |way| figures.rows.get(&way).and_then(|row| row.publisher);
    let Some(ours) = made(Way::Varve) else { return };
    if let Some(theirs) = made(Way::OstreeDelta) {
        let note = format!(
            "{:.0} s, {:.0} s of processors; OSTree {:.0} s, {:.0} s",
            ours.seconds, ours.processor_seconds, theirs.seconds, theirs.processor_seconds
        );
        all.push(timed(named("making the delta: time"), [ours, theirs], 1.0, note));
    }
    let memory = ours.memory as f64 / MIB;
    let note = String::new();
    all.push(limited(named("making the delta: memory"), memory, MEMORY_TO_MAKE, "MiB", note));
    if let Some(second) = figures.second_delta {
        let note = format!(
            "{:.0} s, {:.0} s of processors, from the same release to another",
            second.seconds, second.processor_seconds
        );
        let part = second.processor_seconds / ours.processor_seconds;
        all.push(limited(named("a second delta: processor"), part, 1.0, "of the first", note));
    }
}
