//! What the documents say of the tests: `file::test` in a table is a promise that this
//! test is there.

use super::Problems;
use super::source::files;
use crate::project::{Result, root};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

pub(super) fn tests() -> Result<Problems> {
    let files = files()?;
    let mut there = BTreeSet::new();
    for path in files.iter().filter(|path| is_test(path)) {
        // An integration test of several files is named by its folder or by its main file.
        let text = fs::read_to_string(root().join(path))?;
        let places = path.iter().skip(3).map(|part| part.to_string_lossy());
        let places: Vec<_> = places.map(|part| part.trim_end_matches(".rs").to_owned()).collect();
        for name in functions(&text) {
            there.extend(places.iter().map(|place| format!("{place}::{name}")));
        }
    }
    let mut problems = Vec::new();
    for path in files.iter().filter(|path| is_document(path)) {
        let text = fs::read_to_string(root().join(path))?;
        for (number, line) in text.lines().enumerate() {
            let missing = promised(line).filter(|name| !there.contains(*name));
            problems.extend(
                missing.map(|name| {
                    format!("{}:{}: there is no test {name}", path.display(), number + 1)
                }),
            );
        }
    }
    Ok(problems)
}

fn is_test(path: &Path) -> bool {
    let mut parts = path.iter();
    parts.next().is_some_and(|part| part == "crates")
        && parts.nth(1).is_some_and(|part| part == "tests")
        && path.extension().is_some_and(|end| end == "rs")
}

fn is_document(path: &Path) -> bool {
    path.starts_with("docs") && path.extension().is_some_and(|end| end == "md")
}

fn functions(text: &str) -> impl Iterator<Item = &str> {
    let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
    names.filter_map(|rest| rest.split(['(', '<']).next())
}

/// What stands between back quotes, is of the form `word::word`, and has a test's name: a
/// path of a crate (`sys::Dir`, `format::manifest`) has no low line in its last part.
fn promised(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2).filter(|quoted| {
        quoted.split_once("::").is_some_and(|(file, test)| {
            let word = |text: &str| {
                text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            };
            word(file) && word(test) && test.matches('_').count() >= 1
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_a_file_and_a_test() {
        let line = "| x | `trust::too_few`, `sys::Dir` | `agent::health` and `a_b` `c::d_e` |";
        assert_eq!(promised(line).collect::<Vec<_>>(), ["trust::too_few", "c::d_e"]);
    }

    #[test]
    fn functions_are_found_wherever_they_stand() {
        let text = "mod a {\n    #[test]\n    fn one() {}\n}\nfn two<T>(t: T) {}\n// fn three()\n";
        assert_eq!(functions(text).collect::<Vec<_>>(), ["one", "two"]);
    }
}
