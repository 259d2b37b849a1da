//! What the boot stage did: `/run/varve/boot.toml`, for the update manager and for people.
//!
//! ```text
//! format = 1
//! deployment = "debian-13.2"
//! layout = "overlay"
//! stack = ["layers/u2/tree", "layers/base/tree"]
//! root-mode = "read-only"
//! reason = "trial"
//! try-spent = true
//! stripped = 0
//! off = []                    # the names of the layers left out
//! generation = 8              # of the selection, the spent try counted
//! key-held = false
//! soft-reboot = false         # a boot without a new kernel
//! microseconds = 5210         # from the boot stage's start to handing over
//! phases = [["physical", 900], …]   # the same, in parts
//! kernel = "6.12.117+deb13-cloud-amd64"
//! selection-problem = "…"     # only where there was no usable selection
//! passed-over = []            # what should have booted and did not, and why
//! warnings = []
//! ```
//!
//! It lies in memory and is written anew at each boot; nothing durable depends on it.

use serde::{Deserialize, Serialize};
use varve_format::deployment::{Layout, RootMode};
use varve_format::{DeploymentName, LayerName};

/// The only format that this version writes and reads.
pub const FORMAT: u32 = 1;
/// Where the booted system finds it.
pub const PATH: &str = "/run/varve/boot.toml";
/// Where the booted system finds the physical root file system.
pub const PHYSICAL_ROOT: &str = "/run/varve/physical";

/// One boot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BootReport {
    /// [`FORMAT`].
    pub format: u32,
    /// What booted.
    pub deployment: DeploymentName,
    /// How its root is held.
    pub layout: Layout,
    /// What the root was put together from, newest first; relative to `/varve`.
    pub stack: Vec<String>,
    /// The root's mode at this boot.
    pub root_mode: RootMode,
    /// [`crate::Reason::code`].
    pub reason: String,
    /// Whether this boot spent a try of the selection.
    pub try_spent: bool,
    /// How many layers were left out at this boot: such a boot says nothing about the
    /// deployment itself.
    pub stripped: u32,
    /// Their names, newest first.
    #[serde(default)]
    pub off: Vec<LayerName>,
    /// The selection's generation, if there was a usable one.
    pub generation: Option<u64>,
    /// Whether a key asked for the previous.
    pub key_held: bool,
    /// Whether the kernel is that of the boot before: all else began anew.
    #[serde(default)]
    pub soft_reboot: bool,
    /// From the boot stage's start to handing over.
    pub microseconds: u64,
    /// The same in parts, in their order: what was done, and its microseconds.
    #[serde(default)]
    pub phases: Vec<(String, u64)>,
    /// `uname -r`.
    pub kernel: String,
    /// Why there was no usable selection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection_problem: Option<String>,
    /// What should have booted before this one and did not; a sentence each.
    #[serde(default)]
    pub passed_over: Vec<String>,
    /// What was not as it should be and yet did not stop the boot; a sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Why a report was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Not UTF-8.
    #[error("the boot report is not text")]
    Text,
    /// Not of this shape.
    #[error("the boot report is not of the expected form")]
    Toml(#[from] toml::de::Error),
    /// A format that this version does not know.
    #[error("the boot report has format {found}; this version reads format {FORMAT}")]
    Format {
        /// What it says.
        found: u32,
    },
}

/// The longest sentence of a report, in characters: more is an error that quotes a file.
const LONGEST: usize = 500;
/// The most sentences of one kind.
const MOST: usize = 60;
/// The longest record that every kernel takes at `/dev/kmsg`, less its head, in bytes.
const RECORD: usize = 900;

/// What stands for a character that could act on a terminal, or end a line.
fn plain(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

/// A sentence as a console and the report may have it: one line, of bounded length, nothing
/// in it that acts on a terminal. A name or a line of a file on a damaged disk may be quoted.
pub fn sentence(text: &str) -> String {
    let mut line: String = text.trim_end().chars().map(plain).take(LONGEST + 1).collect();
    if let Some((at, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(at);
        line.push_str(" ...");
    }
    line
}

/// The same of several, and not more than a person reads.
pub fn sentences(texts: &[String]) -> Vec<String> {
    let mut lines: Vec<_> = texts.iter().take(MOST).map(|text| sentence(text)).collect();
    if let Some(more) = texts.len().checked_sub(MOST).filter(|more| *more > 0) {
        lines.push(format!("and {more} more of this kind"));
    }
    lines
}

/// A line in parts that the kernel's log takes; plain, whatever it quotes.
pub fn log_records(line: &str) -> Vec<String> {
    let mut records = vec![String::new()];
    for c in line.trim_end().chars() {
        let last = records.last_mut().expect("there is one");
        if last.len() + c.len_utf8() > RECORD {
            records.push(String::new());
        }
        let last = records.last_mut().expect("there is one");
        last.push(plain(c));
    }
    records
}

impl BootReport {
    /// Reads the file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<BootReport, ReportError> {
        let text = std::str::from_utf8(bytes).map_err(|_| ReportError::Text)?;
        let report: BootReport = toml::from_str(text)?;
        if report.format != FORMAT {
            return Err(ReportError::Format { found: report.format });
        }
        Ok(report)
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("plain data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_says_is_made_plain_and_short() {
        let hostile = "deployments/\u{1b}[2Jx\n<0>panic\r\u{9b}1m: it is \u{fc}ber\n";
        let plain = "deployments/ [2Jx <0>panic  1m: it is \u{fc}ber";
        assert_eq!(sentence(hostile), plain);
        assert_eq!(log_records(hostile), [plain]);
        let long = sentence(&"\u{fc}".repeat(1 << 20));
        assert_eq!((long.chars().count(), long.ends_with(" ...")), (LONGEST + 4, true));
        assert_eq!(sentence(&"x".repeat(LONGEST)).len(), LONGEST);
        let many = sentences(&vec!["x".repeat(9000); 4000]);
        assert!(many.iter().map(String::len).sum::<usize>() < 64 << 10);
        assert_eq!(many.last().map(String::as_str), Some("and 3940 more of this kind"));
        let records = log_records(&"\u{20ac}".repeat(1000));
        assert!(records.iter().all(|record| record.len() <= RECORD));
        assert_eq!((records.len(), records.concat().len()), (4, 3000));
        assert_eq!(log_records("").len(), 1);
    }

    #[test]
    fn comes_back() {
        let report = BootReport {
            format: FORMAT,
            deployment: "b".parse().unwrap(),
            layout: Layout::Overlay,
            stack: vec!["layers/u/tree".into(), "layers/base/tree".into()],
            root_mode: RootMode::Volatile,
            reason: "trial".into(),
            try_spent: true,
            stripped: 1,
            off: vec!["games".parse().unwrap()],
            generation: Some(8),
            key_held: false,
            soft_reboot: false,
            microseconds: 5210,
            phases: vec![("physical".into(), 900), ("mount".into(), 4300)],
            kernel: "6.12".into(),
            selection_problem: None,
            passed_over: vec!["c failed its trials".into()],
            warnings: vec![],
        };
        let text = report.to_text();
        assert_eq!(BootReport::parse(text.as_bytes()).unwrap(), report, "{text}");
        let later = text.replace("format = 1", "format = 2");
        assert!(matches!(
            BootReport::parse(later.as_bytes()),
            Err(ReportError::Format { found: 2 })
        ));
        assert!(BootReport::parse(b"\xff").is_err());
        assert!(BootReport::parse(&text.as_bytes()[..text.len() / 2]).is_err());
    }
}
