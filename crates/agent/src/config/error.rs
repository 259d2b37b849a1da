//! A mistake in the configuration, said so that it can be mended without a manual:
//!
//! ```text
//! /etc/varve/varve.toml:3:1: unknown setting "chanel"
//!   3 | chanel = "stable"
//!     | ^^^^^^
//! did you mean "channel"?
//! ```

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// The file is there and cannot be read.
    Read {
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file is not UTF-8 text.
    NotText {
        /// The file.
        file: PathBuf,
        /// The line where that begins, from 1.
        line: usize,
    },
    /// A mistake, with its place.
    Mistake(Box<Mistake>),
}

/// A mistake, with its place.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// How many characters are wrong; at least 1.
    pub width: usize,
    /// The line itself.
    pub text: String,
    /// What is wrong.
    pub message: String,
    /// What is expected.
    pub expected: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { file, .. } => {
                write!(f, "cannot read the configuration {}", file.display())
            }
            Self::NotText { file, line } => {
                write!(f, "{}:{line}: the configuration is not UTF-8 text", file.display())
            }
            Self::Mistake(mistake) => mistake.fmt(f),
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, width, text, message, expected } = self;
        writeln!(f, "{}:{line}:{column}: {message}", file.display())?;
        let number = line.to_string();
        writeln!(f, "  {number} | {text}")?;
        write!(
            f,
            "  {:w$} | {:c$}{}",
            "",
            "",
            "^".repeat(*width),
            w = number.len(),
            c = column - 1
        )?;
        if let Some(expected) = expected {
            write!(f, "\n{expected}")?;
        }
        Ok(())
    }
}

impl ConfigError {
    /// A mistake at a range of bytes of `text`.
    pub(super) fn at(
        file: &Path,
        text: &str,
        span: Range<usize>,
        message: String,
        expected: Option<String>,
    ) -> Self {
        let start = floor(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let end = floor(text, span.end).clamp(start, line_end);
        // A tab is shown as one blank, so that the marks stand under what they mean.
        let shown = text[line_start..line_end].replace('\t', " ");
        Self::Mistake(Box::new(Mistake {
            file: file.into(),
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: text[start..end].chars().count().max(1),
            text: shown.trim_end().to_owned(),
            message,
            expected,
        }))
    }

    pub(super) fn from_toml(error: &toml::de::Error, text: &str, file: &Path) -> Self {
        let span = error.span().unwrap_or(0..0);
        let at = text.get(span.clone()).unwrap_or("");
        let (message, expected) = reword(error.message(), at);
        // A mistake in one element of a list is reported with the list: find the element.
        let quoted = message.split('"').nth(1).map(|wrong| format!("\"{wrong}\""));
        let span = match quoted.and_then(|quoted| Some((at.find(&quoted)?, quoted.len()))) {
            Some((offset, length)) => span.start + offset..span.start + offset + length,
            None => span,
        };
        Self::at(file, text, span, message, expected)
    }
}

/// Serde's and toml's messages, in the words of someone who writes a configuration.
fn reword(message: &str, at: &str) -> (String, Option<String>) {
    let message = message.trim();
    for (prefix, what) in [("unknown field ", "setting"), ("unknown variant ", "value")] {
        if let Some(rest) = message.strip_prefix(prefix) {
            let mut quoted = rest.split('`').skip(1).step_by(2);
            let wrong = quoted.next().unwrap_or(at).to_owned();
            let allowed: Vec<&str> = quoted.collect();
            let list =
                allowed.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
            let expected = match nearest(&wrong, &allowed) {
                Some(near) if allowed.len() <= 4 => {
                    format!("did you mean {near:?}? one of {list} is expected")
                }
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("one of {list} is expected"),
            };
            return (format!("unknown {what} {wrong:?}"), Some(expected));
        }
    }
    if let Some(rest) = message.strip_prefix("missing field ") {
        let name = rest.trim_matches('`');
        return (format!("the setting {name:?} is missing here"), None);
    }
    if let Some((got, expected)) =
        message.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected "))
    {
        let expected = match expected {
            "a sequence" => {
                "a list in brackets, such as [\"one\", \"two\"], is expected".to_owned()
            }
            "a boolean" => "true or false is expected".to_owned(),
            "a string" => "text in quotes is expected".to_owned(),
            "i64" => "a whole number is expected".to_owned(),
            other if other.starts_with("struct ") || other == "a map" => {
                "a table with settings of its own is expected".to_owned()
            }
            other => format!("{other} is expected"),
        };
        let got = if got == "map" { "a table" } else { got };
        let got = got.replace("string", "the text").replace("integer", "the number");
        let got = got.replace("boolean", "the value").replace("floating point", "the number");
        return (format!("{} does not fit here", got.replace('`', "")), Some(expected));
    }
    if let Some((wrong, expected)) =
        message.split_once(": ").filter(|(_, e)| e.ends_with("is expected"))
    {
        return (wrong.to_owned(), Some(expected.to_owned()));
    }
    let first = message.lines().next().unwrap_or_default();
    let rest: Vec<&str> = message.lines().skip(1).collect();
    (first.to_owned(), (!rest.is_empty()).then(|| rest.join("\n")))
}

/// The allowed name that differs least, if any is near enough to be meant.
fn nearest<'a>(wrong: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let wrong = wrong.to_lowercase().replace('_', "-");
    let scored = allowed.iter().map(|name| (distance(&wrong, name), *name));
    let (distance, name) = scored.min()?;
    (distance <= 1 + wrong.chars().count() / 4).then_some(name)
}

/// Edits (insert, delete, replace, swap neighbours) from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

/// Where the `at`-th table of a list begins, for mistakes that are in no one value.
pub(super) fn find_value(text: &str, header: &str, at: usize) -> Range<usize> {
    let found = text.match_indices(header).nth(at);
    found.map_or(0..0, |(start, found)| start..start + found.len())
}

fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
