//! Standard output and standard error: a reader that goes away (`varve history | head`)
//! is no error and no panic.

use std::borrow::Cow;
use std::io::{self, ErrorKind, Write};

use crate::exit::Exit;

/// Where a command's answer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Form {
    /// For people.
    #[default]
    Human,
    /// One JSON document, closed by a newline.
    Json,
}

/// Writes text to standard output, as [`harmless`]. When nobody reads any more, the rest is
/// dropped.
pub fn print(text: &str) -> io::Result<()> {
    write(&harmless(text))
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    quiet(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Text that does nothing to a terminal but stand there: it may quote a title that a stranger
/// chose, a package's version, bytes of a damaged file. What would move the cursor, colour,
/// retitle or turn the direction of writing is shown as `\u{1b}`.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let acts = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            // The marks and overrides of Unicode's bidirectional algorithm (UAX 9).
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match acts(c) {
            true => plain.extend(c.escape_unicode()),
            false => plain.push(c),
        }
    }
    Cow::Owned(plain)
}

/// Writes a line to standard error; what cannot be said is not said.
pub fn note(text: &str) {
    let mut err = io::stderr().lock();
    let _ = err.write_all(harmless(text).as_bytes());
    let _ = err.write_all(b"\n");
}

/// Writes a value as JSON, indented, to standard output: its strings as they are, escaped as
/// JSON has it.
pub fn print_json(value: &impl serde::Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    text.push('\n');
    write(&text)
}

fn quiet(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// An error with its causes, and what the user may do about it:
///
/// ```text
/// error: cannot check the repository: http://a: timed out
///   because: ...
/// hint: the device is unchanged; try again later
/// ```
pub fn error_text(error: &dyn std::error::Error, hint: Option<&str>) -> String {
    let mut text = format!("error: {}", error.to_string().trim_end());
    for cause in causes(error) {
        text.push_str("\n  because: ");
        text.push_str(&cause.replace('\n', "\n           "));
    }
    if let Some(hint) = hint {
        text.push_str("\nhint: ");
        text.push_str(&hint.replace('\n', "\n      "));
    }
    text
}

/// The same for machines: `{"error": {"code": …, "message": …, "causes": […], "hint": …}}`.
pub fn error_json(
    error: &dyn std::error::Error,
    hint: Option<&str>,
    exit: Exit,
) -> serde_json::Value {
    let causes = causes(error);
    let message = error.to_string();
    serde_json::json!({
        "error": { "code": exit.word(), "message": message, "causes": causes, "hint": hint }
    })
}

fn causes(error: &dyn std::error::Error) -> Vec<String> {
    let mut causes = Vec::new();
    let mut last = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string().trim_end().to_owned();
        // `#[error(transparent)]` repeats its source.
        if text != last {
            causes.push(text.clone());
        }
        last = text;
        next = source.source();
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(io::Error);
    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("cannot open /x")
        }
    }
    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn errors_name_their_causes_and_what_to_do() {
        let error = Outer(io::Error::other("two\nlines"));
        assert_eq!(
            error_text(&error, Some("mend it")),
            "error: cannot open /x\n  because: two\n           lines\nhint: mend it"
        );
        let json = error_json(&error, None, Exit::Refused);
        assert_eq!(json["error"]["code"], "refused");
        assert_eq!(json["error"]["causes"][0], "two\nlines");
    }

    #[test]
    fn what_acts_on_a_terminal_is_shown() {
        let hostile = "a\u{1b}]0;mine\u{7}b\r\u{9b}2J\u{7f}c\u{202e}d";
        let shown = r"a\u{1b}]0;mine\u{7}b\u{d}\u{9b}2J\u{7f}c\u{202e}d";
        assert_eq!(harmless(hostile), shown);
        let good = "name\tWHAT\n\u{fc}ber 3 \u{2265} 2 \u{2014} \u{1f600}\n";
        assert!(matches!(harmless(good), Cow::Borrowed(text) if text == good));
        let error = Outer(io::Error::other("\u{1b}[2J"));
        assert!(harmless(&error_text(&error, None)).ends_with(r"because: \u{1b}[2J"));
    }

    #[test]
    fn a_reader_that_went_away_is_no_error() {
        assert!(quiet(Err(ErrorKind::BrokenPipe.into())).is_ok());
        assert!(quiet(Err(ErrorKind::StorageFull.into())).is_err());
    }
}
