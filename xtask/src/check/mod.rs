//! What CI asks of the source, so that it is checked by a command and not by memory.
//!
//! Every check runs, whatever the ones before it said; the list at the end is complete.

mod binaries;
mod graph;
mod licences;
mod names;
mod source;

use crate::packages;
use crate::project::{Result, cargo, seconds, show};
use std::time::Instant;

/// What a check found: each problem is one line or a short paragraph.
type Problems = Vec<String>;

pub(crate) fn run(filter: Option<&str>) -> Result {
    packages::ensure(packages::For::Build)?;
    let mut failed = Vec::new();
    let mut check = |name: &str, act: &dyn Fn() -> Result<Problems>| {
        if filter.is_some_and(|filter| !name.contains(filter)) {
            return;
        }
        let begin = Instant::now();
        let problems = act().unwrap_or_else(|error| vec![error.to_string()]);
        let verdict = if problems.is_empty() { "well" } else { "NOT WELL" };
        println!("{verdict:>8}  {name} ({})", seconds(begin.elapsed()));
        for problem in &problems {
            println!("          {problem}");
        }
        if !problems.is_empty() {
            failed.push(name.to_owned());
        }
    };
    check("format", &|| by_cargo(&["fmt", "--all", "--check"]));
    check("no file over 700 lines, no script over 50", &source::lengths);
    check("unsafe code in sys alone", &source::unsafe_code);
    check("names of tests in the documents", &names::tests);
    check("who may use whom", &graph::direction);
    check("the boot stage links no network, TLS or async code", &graph::boot_stage);
    check("programs for devices link neither build nor publish", &graph::device);
    check("licences and sources", &licences::check);
    check("cargo deny", &licences::deny);
    check("clippy", &|| {
        by_cargo(&["clippy", "--quiet", "--workspace", "--locked", "--", "--deny", "warnings"])
    });
    // A test may write files as it likes: no device keeps them.
    check("clippy of the tests", &|| {
        by_cargo(&[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--locked",
            "--",
            "--deny",
            "warnings",
            "--allow",
            "clippy::disallowed-methods",
            "--allow",
            "unfulfilled-lint-expectations",
        ])
    });
    check("documentation", &|| {
        let mut command = cargo();
        command.env("RUSTDOCFLAGS", "--deny warnings");
        Ok(problem(show(command.args(["doc", "--quiet", "--workspace", "--no-deps", "--locked"]))))
    });
    check("size of the boot stage", &binaries::sizes);
    if failed.is_empty() { Ok(()) } else { Err(format!("not well: {}", failed.join("; ")).into()) }
}

fn by_cargo(arguments: &[&str]) -> Result<Problems> {
    Ok(problem(show(cargo().args(arguments))))
}

fn problem(result: Result) -> Problems {
    result.err().map(|error| error.to_string()).into_iter().collect()
}
