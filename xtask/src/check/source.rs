//! What can be seen in the files as they are.

use super::Problems;
use crate::project::{Result, output, root};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Past this a file is two things.
const MOST_LINES: usize = 700;
/// Past this a script should be a command of this program.
const MOST_SCRIPT_LINES: usize = 50;

pub(super) fn lengths() -> Result<Problems> {
    let mut problems = Vec::new();
    for path in files()? {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        let limit = match is_script(&path, &text) {
            true => MOST_SCRIPT_LINES,
            false if path.extension().is_some_and(|end| end == "rs") => MOST_LINES,
            false => continue,
        };
        let lines = text.lines().count();
        if lines > limit {
            problems.push(format!("{}: {lines} lines, at most {limit}", path.display()));
        }
    }
    Ok(problems)
}

pub(super) fn unsafe_code() -> Result<Problems> {
    let mut problems = Vec::new();
    for path in files()? {
        let is_rust = path.extension().is_some_and(|end| end == "rs");
        if !is_rust || path.starts_with("crates/sys") {
            continue;
        }
        let text = fs::read_to_string(root().join(&path))?;
        for (number, line) in text.lines().enumerate() {
            if uses_unsafe(line) {
                problems.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
        let is_crate_root = path.parent().is_some_and(|folder| folder.ends_with("src"))
            && path.file_name().is_some_and(|name| name == "lib.rs" || name == "main.rs");
        if is_crate_root && path.starts_with("crates") && !text.contains("#![forbid(unsafe_code)]")
        {
            problems.push(format!("{}: #![forbid(unsafe_code)] is missing", path.display()));
        }
    }
    Ok(problems)
}

/// Whether a line of code has the keyword; words in comments and strings do not count.
fn uses_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|form| {
        code.find(form).is_some_and(|at| code[..at].matches('"').count().is_multiple_of(2))
    })
}

fn is_script(path: &Path, text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    let says_shell = first.starts_with("#!") && (first.contains("sh") || first.contains("bash"));
    says_shell || path.extension().is_some_and(|end| end == "sh")
}

/// The files that git knows, and new ones that it does not ignore.
pub(super) fn files() -> Result<Vec<PathBuf>> {
    let text = output(Command::new("git").current_dir(root()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut files: Vec<PathBuf> = text.lines().map(PathBuf::from).collect();
    files.sort();
    files.dedup();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyword_is_seen_and_the_word_is_not() {
        // Put together, so that this file passes its own check.
        let keyword = concat!("un", "safe");
        assert!(uses_unsafe(&format!("    {keyword} {{ call() }}")));
        assert!(uses_unsafe(&format!("pub {keyword} fn call() {{}}")));
        assert!(!uses_unsafe(&format!("// {keyword} {{ }}")));
        assert!(!uses_unsafe(&format!("let text = \"{keyword} {{\";")));
        assert!(!uses_unsafe(&format!("#![forbid({keyword}_code)]")));
    }

    #[test]
    fn scripts_are_known_by_their_first_line_or_name() {
        assert!(is_script(Path::new("hook"), "#!/bin/sh\n"));
        assert!(is_script(Path::new("run"), "#!/usr/bin/env bash\n"));
        assert!(is_script(Path::new("a.sh"), ""));
        assert!(!is_script(Path::new("a.rs"), "#![forbid(x)]\n"));
    }
}
