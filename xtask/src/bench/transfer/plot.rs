//! The table as a picture. Written by hand: bars and text in SVG are a page of code, and the
//! picture follows the reader's light or dark theme, which the plotting crates do not do.

use super::page::{megabytes, times};
use super::record::{Figures, PairName, Record, Row, Took, Way};
use std::fmt::Write as _;

const WIDTH: u32 = 940;
const LINE: u32 = 24;
/// Where bars begin, and the longest of them.
const BARS: u32 = 190;
const LONGEST: f64 = 300.0;
/// The right edges of the columns behind the bars.
const COLUMNS: [u32; 5] = [636, 704, 772, 854, 930];

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#24292f}\
    .title{font-size:15px;font-weight:600}.small{font-size:11px;fill:#57606a}\
    .end{text-anchor:end}.ours{fill:#0a7d68}.peer{fill:#afb8c1}.rule{stroke:#d0d7de}\
    @media (prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#8d96a0}\
    .ours{fill:#2fbf9f}.peer{fill:#4d5762}.rule{stroke:#30363d}}";

/// All pairs, one below the other.
pub(super) fn draw(record: &Record) -> String {
    let mut body = String::new();
    let mut at = 10;
    for (name, figures) in &record.pairs {
        at = pair(&mut body, at, *name, figures);
    }
    let disturbed = |row: &Row| {
        row.device.is_disturbed() || row.publisher.is_some_and(|took| took.is_disturbed())
    };
    if record.pairs.values().flat_map(|figures| figures.rows.values()).any(disturbed) {
        text(&mut body, 0, at + 6, "small", "* the machine did other work meanwhile");
        at += LINE;
    }
    let height = at + 6;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" aria-label=\"Bytes on the wire of an upgrade, by Varve and \
         by others\">\n<style>{STYLE}</style>\n{body}</svg>\n"
    )
}

fn pair(out: &mut String, top: u32, name: PairName, figures: &Figures) -> u32 {
    let mut at = top + 20;
    text(out, 0, at, "title", name.title());
    at += 20;
    text(out, BARS, at, "small", "on the wire, both ways");
    let heads = ["device", "processor", "memory", "publisher", "memory"];
    for (x, head) in COLUMNS.into_iter().zip(heads) {
        text(out, x, at, "small end", head);
    }
    at += 6;
    let _ = writeln!(out, "<line class=\"rule\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{at}\" y2=\"{at}\"/>");
    let longest = figures.rows.values().map(|row| row.bytes).max().unwrap_or(1).max(1);
    for way in Way::ALL {
        if let Some(row) = figures.rows.get(&way) {
            bar(out, at, way, row, longest);
            at += LINE;
        }
    }
    at + 22
}

fn bar(out: &mut String, top: u32, way: Way, row: &Row, longest: u64) {
    let base = top + 17;
    text(out, 0, base, "", way.name());
    let length = (row.bytes as f64 / longest as f64 * LONGEST).max(1.0);
    let class = if way.is_ours() { "ours" } else { "peer" };
    let _ = writeln!(
        out,
        "<rect class=\"{class}\" x=\"{BARS}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\" rx=\"2\"/>",
        top + 5,
        LINE - 8
    );
    text(out, BARS + length as u32 + 6, base, "", &megabytes(row.bytes));
    let mebibytes = |took: Took| format!("{} MiB", took.memory >> 20);
    let [seconds, processor] = times(row.device);
    let made = row.publisher.map(times).unwrap_or_default();
    let cells = [
        seconds,
        processor,
        mebibytes(row.device),
        made[0].clone(),
        row.publisher.map(mebibytes).unwrap_or_default(),
    ];
    for (x, cell) in COLUMNS.into_iter().zip(&cells) {
        text(out, x, base, "end", cell);
    }
}

fn text(out: &mut String, x: u32, y: u32, class: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{words}</text>");
}
