//! The figures as a page of the documentation, and as lines of the terminal.

use super::record::{Figures, PairName, Record, Row, Took, Way};
use crate::bench::measure::Figure;
use crate::project::{output, program};
use std::fmt::Write as _;

const TEXT: &str = include_str!("page.md");

/// What the figures of cuts are.
const RESUME: &str = "\
`cut and killed` is `cargo xtask bench resume`: the Debian 13 upgrade over a link of 1 MB/s that
is cut at 200 points (random, the seed fixed), the process killed at every other one: by packs
alone, and by the delta. A byte counts as moved once the server has handed it to its kernel: what a
cut or a kill loses between there and the client is in the figure. After a cut at least one request
is made anew, after a kill the newest signed metadata is asked for too; of a delta of one or two
megabytes two hundred requests alone are more than a fiftieth, so the limit is held against the packs.
";

/// One row for the terminal.
pub(super) fn line(way: Way, row: &Row) -> String {
    let made = row.publisher.map_or(String::new(), |took| {
        let [time, _] = times(took);
        format!("; made in {time}, {} MiB", took.memory >> 20)
    });
    let [seconds, processor] = times(row.device);
    let note = if row.note.is_empty() { String::new() } else { format!("\n{:26}{}", "", row.note) };
    format!(
        "  {:24}{:>10}  {seconds}, processor {processor}, {} MiB{made}{note}",
        way.name(),
        megabytes(row.bytes),
        row.device.memory >> 20
    )
}

/// The page.
pub(super) fn write(record: &Record, figures: &[Figure]) -> String {
    let mut tables = String::new();
    for (name, figures) in &record.pairs {
        table(&mut tables, *name, figures);
    }
    let mut limits = String::from("| | measured | limit | |\n| --- | ---: | ---: | --- |\n");
    for figure in figures {
        let Figure { name, ours, unit, note, .. } = figure;
        let limit = figure.limit.map(|limit| limit.to_string()).unwrap_or_default();
        let over = if figure.misses() { " **over**" } else { "" };
        let _ = writeln!(limits, "| {name} | {ours:.2} {unit}{over} | {limit} | {note} |");
    }
    let mut methods = String::new();
    for way in Way::ALL {
        let _ = writeln!(methods, "- **{}**: {}.", way.name(), way.method());
    }
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let resume = if record.resume.is_empty() { "" } else { RESUME };
    TEXT.replace("{resume}", resume)
        .replace("{tables}", tables.trim_end())
        .replace("{limits}", limits.trim_end())
        .replace("{methods}", methods.trim_end())
        .replace("{processors}", &cores.to_string())
}

fn table(out: &mut String, name: PairName, figures: &Figures) {
    let _ =
        writeln!(out, "### {}\n\n`--pair {}`. {}.\n", name.title(), name.name(), figures.describe);
    out.push_str(
        "| | on the wire | requests | device: time | processor | memory | publisher: time | \
         processor | memory | measured |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n",
    );
    for way in Way::ALL {
        let Some(row) = figures.rows.get(&way) else { continue };
        let took = |took: Option<Took>| {
            took.map_or([const { String::new() }; 3], |took| {
                let [seconds, processor] = times(took);
                [seconds, processor, format!("{} MiB", took.memory >> 20)]
            })
            .join(" | ")
        };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            way.name(),
            megabytes(row.bytes),
            row.requests.map(|count| count.to_string()).unwrap_or_default(),
            took(Some(row.device)),
            took(row.publisher),
            date(row.unix_time)
        );
    }
    let missing = Way::ALL.iter().filter(|way| !figures.rows.contains_key(way));
    let missing: Vec<_> = missing.map(|way| way.name()).collect();
    if !missing.is_empty() {
        let _ = writeln!(out, "\nNot measured: {}.", missing.join("; "));
    }
    let notes = figures.rows.iter().filter(|(_, row)| !row.note.is_empty());
    for (index, (way, row)) in notes.enumerate() {
        let _ =
            writeln!(out, "{}- {}: {}.", if index == 0 { "\n" } else { "" }, way.name(), row.note);
    }
    out.push('\n');
}

/// Bytes in megabytes; small ones in kilobytes.
pub(super) fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.2} MB", bytes as f64 / 1e6),
    }
}

/// Seconds, and seconds of processors; marked where other work disturbed them.
pub(super) fn times(took: Took) -> [String; 2] {
    let mark = if took.is_disturbed() { "*" } else { "" };
    [took.seconds, took.processor_seconds].map(|seconds| format!("{}{mark}", time(seconds)))
}

/// Seconds.
fn time(seconds: f64) -> String {
    if seconds < 20.0 { format!("{seconds:.1} s") } else { format!("{seconds:.0} s") }
}

fn date(unix_time: u64) -> String {
    let date =
        output(program("date").args(["--utc", "--iso-8601"]).arg(format!("--date=@{unix_time}")));
    date.map_or_else(|_| unix_time.to_string(), |date| date.trim().to_owned())
}
