//! Standard output and standard error: a reader that goes away (`varve history | head`)
//! is no error and no panic.

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

/// Writes text to standard output. When nobody reads any more, the rest is dropped.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    quiet(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes a line to standard error; what cannot be said is not said.
pub fn note(text: &str) {
    let mut err = io::stderr().lock();
    let _ = err.write_all(text.as_bytes());
    let _ = err.write_all(b"\n");
}

/// Writes a value as JSON, indented, to standard output.
pub fn print_json(value: &impl serde::Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    text.push('\n');
    print(&text)
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
    fn a_reader_that_went_away_is_no_error() {
        assert!(quiet(Err(ErrorKind::BrokenPipe.into())).is_ok());
        assert!(quiet(Err(ErrorKind::StorageFull.into())).is_err());
    }
}
