//! Answers for people, hints, and which exit code an error has.

use std::error::Error;
use std::fmt::Write;

use jiff::Timestamp;
use varve_build::{BuildError, BuildReport};
use varve_format::delta::DeltaRef;
use varve_format::release::ReleaseRecord;
use varve_publish::{
    CheckReport, Diff, MadeDelta, PathChange, PathChangeKind, Prune, PublishError, Published,
};
use varve_term::{Columns, Exit, human};

/// Paths that `diff` shows without `--all`.
const SOME: usize = 40;

/// The exit code of an error, and what the user may do about it.
pub(crate) fn explain(error: &(dyn Error + 'static)) -> (Exit, Option<&'static str>) {
    if let Some(error) = error.downcast_ref::<PublishError>() {
        return match error {
            PublishError::Cancelled(_) => (Exit::Interrupted, None),
            PublishError::Locked { .. } => {
                (Exit::Refused, Some("wait until the other command is done"))
            }
            PublishError::NotARepository { .. } => (
                Exit::Usage,
                Some(
                    "name the repository with --repo, or make one with `varve-repo --repo DIR init`",
                ),
            ),
            PublishError::MissingKeys { .. } => (
                Exit::Refused,
                Some("say where the keys are with --keys DIR, and the root's with --root-keys DIR"),
            ),
            PublishError::NotBuilt { .. } => {
                (Exit::Refused, Some("build it first: varve-repo build --name NAME SOURCE"))
            }
            PublishError::Exists { .. }
            | PublishError::Published { .. }
            | PublishError::Sequence { .. }
            | PublishError::Threshold { .. } => (Exit::Refused, None),
            PublishError::Delta { .. } => {
                (Exit::Failed, Some("publish without it: --no-deltas, or --delta-from another"))
            }
            PublishError::Metadata { .. } | PublishError::Stored { .. } | PublishError::Repo(_) => {
                (
                    Exit::Untrusted,
                    Some(
                        "`varve-repo check` says everything that is wrong; restore the files from a copy",
                    ),
                )
            }
            _ => (Exit::Failed, None),
        };
    }
    match error.downcast_ref::<BuildError>() {
        Some(BuildError::Cancelled(_)) => (Exit::Interrupted, None),
        Some(BuildError::NameTaken { .. }) => (Exit::Refused, Some("give it another --name")),
        _ => (Exit::Failed, None),
    }
}

/// A moment, to the minute.
pub(crate) fn day(time: Timestamp) -> String {
    let text = time.to_string();
    format!("{} {} UTC", text.get(..10).unwrap_or(&text), text.get(11..16).unwrap_or_default())
}

pub(crate) fn built(report: &BuildReport, published: Option<&Published>) -> String {
    let record = &report.record;
    let mut text = format!(
        "Built {}: {}, {}.\n",
        record.name,
        human::plural(record.totals.paths, "path", "paths"),
        human::bytes(record.totals.bytes)
    );
    let _ = match &report.pack {
        Some(pack) => writeln!(
            text,
            "New in the repository: {} in {}, {} compressed; {} were there.",
            human::bytes(report.new_bytes),
            human::plural(report.new_contents, "file", "files"),
            human::bytes(pack.size),
            human::bytes(report.reused_bytes),
        ),
        None => writeln!(text, "All its contents were in the repository already."),
    };
    let _ = writeln!(text, "Identity: {}", record.digest);
    match published {
        Some(release) => text.push_str(&self::published(release, false)),
        None => {
            let _ = writeln!(text, "Next: varve-repo publish {}", record.name);
        }
    }
    text
}

pub(crate) fn published(release: &Published, dry_run: bool) -> String {
    let verb = if dry_run { "Would publish" } else { "Published" };
    let Published { name, channel, sequence, .. } = release;
    format!("{verb} {name} as number {sequence} in the channel {channel}.\n")
}

pub(crate) fn deltas(made: &[MadeDelta]) -> String {
    let mut text = String::new();
    for MadeDelta { from, delta, contents, bytes, closed } in made {
        let _ = writeln!(
            text,
            "Delta from {from}: {} for {}, {}; {} by packs.",
            human::bytes(delta.file_size()),
            human::plural(*contents, "file", "files"),
            human::bytes(*bytes),
            human::bytes(delta.packs()),
        );
        if *closed > 0 {
            let files = human::plural(*closed, "compressed file", "compressed files");
            let _ = writeln!(text, "  {files} could not be seen into.");
        }
    }
    text
}

/// The deltas that are offered to a release.
pub(crate) fn offered(deltas: &[DeltaRef], releases: &[Published]) -> String {
    let mut table = Columns::new(&["DELTA FROM", ">SIZE", ">BY PACKS", ">MEMORY", ">CPU"]);
    for delta in deltas {
        let from = releases.iter().find(|release| release.digest == delta.from);
        let memory = delta.groups.iter().map(|group| group.memory).max().unwrap_or(0);
        let cpu: u64 = delta.groups.iter().map(|group| group.cpu).sum();
        table.row([
            from.map_or_else(|| delta.from.short(), |release| release.name.to_string()),
            human::bytes(delta.file_size()),
            human::bytes(delta.packs()),
            human::bytes(memory),
            format!("{:.1} s", cpu as f64 / 1000.0),
        ]);
    }
    if table.is_empty() { String::new() } else { format!("\n{table}") }
}

pub(crate) fn record(record: &ReleaseRecord, release: Option<&Published>) -> String {
    let mut rows: Vec<(&str, String)> = vec![("name", record.name.to_string())];
    match release {
        Some(release) => {
            rows.push(("channel", release.channel.clone()));
            rows.push(("sequence", release.sequence.to_string()));
            rows.extend(release.published.map(|time| ("published", day(time))));
        }
        None => rows.push(("published", "no: it is only built".into())),
    }
    rows.push(("identity", record.digest.to_string()));
    let optional = [
        ("title", &record.title),
        ("architecture", &record.architecture),
        ("notes", &record.notes),
    ];
    rows.extend(
        optional.into_iter().filter(|(_, text)| !text.is_empty()).map(|(k, v)| (k, v.clone())),
    );
    rows.extend(record.kernel.as_ref().map(|k| ("kernel", format!("{} ({})", k.version, k.image))));
    rows.push(("paths", human::count(record.totals.paths)));
    rows.push(("size", human::bytes(record.totals.bytes)));
    rows.push(("manifest", human::bytes(record.manifest.size)));
    let packs: u64 = record.packs.iter().map(|pack| pack.size).sum();
    rows.push((
        "packs",
        format!(
            "{} in {}",
            human::bytes(packs),
            human::plural(record.packs.len() as u64, "pack", "packs")
        ),
    ));
    let mut text = String::new();
    for (key, value) in rows {
        let _ = writeln!(text, "{key:<13} {value}");
    }
    text
}

pub(crate) fn diff(diff: &Diff, all: bool) -> String {
    let mut text = String::new();
    if let Some(packages) = &diff.packages {
        let mut table = Columns::new(&["PACKAGE", "FROM", "TO", ">NEW", ">PATHS"]);
        for package in packages {
            let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".into());
            table.row([
                package.name.clone(),
                version(&package.from),
                version(&package.to),
                human::bytes(package.new_content),
                human::count(package.paths),
            ]);
        }
        if !table.is_empty() {
            let _ = writeln!(text, "{table}");
        }
    }
    let mut table = Columns::new(&["CHANGE", ">FROM", ">TO", "PATH"]);
    let told = |path: &&PathChange| all || path.kind != PathChangeKind::Metadata;
    let shown = if all { usize::MAX } else { SOME };
    for path in diff.paths.iter().filter(told).take(shown) {
        let kind = match path.kind {
            PathChangeKind::Added => "added",
            PathChangeKind::Removed => "removed",
            PathChangeKind::Content => "content",
            PathChangeKind::Metadata => "metadata",
        };
        table.row([kind, &human::bytes(path.from), &human::bytes(path.to), &path.path]);
    }
    if !table.is_empty() {
        if diff.packages.is_some() {
            text.push_str("Of no package:\n");
        }
        let _ = writeln!(text, "{table}");
    }
    let more = diff.paths.iter().filter(told).count().saturating_sub(shown) as u64;
    if more > 0 {
        let _ = writeln!(text, "{} more (--all shows them).", human::plural(more, "path", "paths"));
    }
    let quiet = diff.paths.len() as u64 - diff.paths.iter().filter(told).count() as u64;
    if quiet > 0 {
        let _ = writeln!(
            text,
            "{} in mode, owner, times or links alone (--all shows them).",
            human::plural(quiet, "path changes", "paths change"),
        );
    }
    let _ = writeln!(
        text,
        "{} to {}: {} changed; {} of new content in {}; the tree goes from {} to {}.",
        diff.from,
        diff.to,
        human::plural(diff.changed_paths, "path", "paths"),
        human::bytes(diff.size.new_content),
        human::plural(diff.size.new_contents, "file", "files"),
        human::bytes(diff.size.from),
        human::bytes(diff.size.to),
    );
    text
}

pub(crate) fn pruned(prune: &Prune, dry_run: bool) -> String {
    let (took, deleted) =
        if dry_run { ("Would take out", "Would delete") } else { ("Took out", "Deleted") };
    let mut text = String::new();
    for release in &prune.releases {
        let _ = writeln!(
            text,
            "{took} {} (number {} in {})",
            release.name, release.sequence, release.channel
        );
    }
    if prune.releases.is_empty() && prune.files.is_empty() {
        return "There is nothing to prune.\n".into();
    }
    let _ = writeln!(
        text,
        "{deleted} {}, {}.",
        human::plural(prune.files.len() as u64, "file", "files"),
        human::bytes(prune.bytes())
    );
    text
}

pub(crate) fn check(report: &CheckReport) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        let _ = writeln!(text, "{}: {}", problem.what, problem.problem);
    }
    for file in &report.unnamed {
        let _ = writeln!(text, "{file}: no release names it (`varve-repo prune` deletes it)");
    }
    let _ = writeln!(
        text,
        "Checked {}, {}{} with {}, {}: {}.",
        human::plural(report.releases, "release", "releases"),
        match report.deltas {
            0 => String::new(),
            count => format!("{}, ", human::plural(count, "delta", "deltas")),
        },
        human::plural(report.packs, "pack", "packs"),
        human::plural(report.contents, "content", "contents"),
        human::bytes(report.bytes),
        match report.problems.len() as u64 {
            0 => "all is well".to_owned(),
            count => human::plural(count, "problem", "problems"),
        },
    );
    text
}
