//! Licences and origins of what is linked. `cargo deny` knows more, but is not on every
//! machine; what matters most is checked here with cargo alone.

use super::Problems;
use crate::project::{Result, cargo, output, show};
use std::process::{Command, Stdio};

/// The same list as in deny.toml; the test below holds them together.
const ALLOWED: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

pub(super) fn check() -> Result<Problems> {
    let text = output(cargo().args(["metadata", "--format-version=1", "--locked"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = format!(
            "{} {}",
            package["name"].as_str().unwrap_or("?"),
            package["version"].as_str().unwrap_or("?")
        );
        match package["license"].as_str() {
            Some(expression) if allowed(expression) => {}
            Some(expression) => {
                problems.push(format!("{name}: the licence {expression} is not allowed"))
            }
            None => problems.push(format!("{name} names no licence")),
        }
        // A path in the workspace has no source.
        if let Some(source) = package["source"].as_str().filter(|source| *source != REGISTRY) {
            problems.push(format!("{name} comes from {source}"));
        }
    }
    Ok(problems)
}

/// Whether an SPDX expression can be fulfilled with the allowed licences. `/` is an old
/// way to write `OR`. No crate in use nests deeper than one pair of parentheses.
fn allowed(expression: &str) -> bool {
    let mut text = expression.replace('/', " OR ");
    while let Some(open) = text.rfind('(') {
        let Some(close) = text[open..].find(')').map(|at| open + at) else { return false };
        let inner = if flat(&text[open + 1..close]) { "MIT" } else { "no" };
        text.replace_range(open..=close, inner);
    }
    flat(&text)
}

fn flat(text: &str) -> bool {
    text.split(" OR ").any(|choice| choice.split(" AND ").all(|one| ALLOWED.contains(&one.trim())))
}

/// Runs `cargo deny` where it is installed.
pub(super) fn deny() -> Result<Problems> {
    let there = Command::new("cargo-deny")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !there {
        println!(
            "          not run: cargo-deny is not installed (cargo install --locked cargo-deny)"
        );
        return Ok(Vec::new());
    }
    let problems = show(cargo().args([
        "deny",
        "--locked",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]))
    .err()
    .map(|error| error.to_string());
    // The database of advisories is fetched, and may be out of reach: that is said, and is
    // not the same as having looked.
    let mut advisories = cargo();
    advisories.args(["deny", "--locked", "check", "advisories"]);
    let advisory = match output(&mut advisories) {
        Ok(_) => None,
        Err(error)
            if error.to_string().contains("failed to fetch")
                || error.to_string().contains("advisory database") =>
        {
            println!("          advisories not looked at: their database is out of reach");
            None
        }
        Err(error) => Some(error.to_string()),
    };
    Ok(problems.into_iter().chain(advisory).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_as_spdx_does() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR GPL-2.0) AND ISC",
        ] {
            assert!(allowed(good), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-2.0", "(GPL-2.0 OR LGPL-2.1) AND MIT", ""] {
            assert!(!allowed(bad), "{bad}");
        }
    }

    #[test]
    fn deny_toml_allows_the_same() {
        let text = std::fs::read_to_string(crate::project::root().join("deny.toml")).unwrap();
        let list = text.split("allow = [").nth(1).unwrap().split(']').next().unwrap();
        let listed: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
        assert_eq!(listed, ALLOWED);
    }
}
