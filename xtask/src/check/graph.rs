//! Who uses whom, read from cargo and held against the design.

use super::Problems;
use crate::project::{Result, cargo, output};
use std::collections::BTreeMap;

/// For each crate, which of ours it may use. A crate that is not here is a problem, so
/// that a new one is thought about.
const MAY_USE: &[(&str, &[&str])] = &[
    ("varve-format", &[]),
    ("varve-sys", &[]),
    ("cabac", &[]),
    ("varve-delta", &["varve-format", "varve-sys"]),
    ("varve-pack", &["varve-format", "varve-sys"]),
    ("varve-build", &["varve-format", "varve-sys", "varve-delta", "varve-pack"]),
    ("varve-publish", &["varve-format", "varve-sys", "varve-build", "varve-delta"]),
    ("varve-fetch", &["varve-format", "varve-sys", "varve-delta"]),
    ("varve-rootfs", &["varve-format", "varve-sys"]),
    ("varve-boot", &["varve-format", "varve-sys"]),
    (
        "varve-agent",
        &[
            "varve-format",
            "varve-sys",
            "varve-fetch",
            "varve-rootfs",
            "varve-boot",
            "varve-early",
            "varve-pack",
        ],
    ),
    ("varve-early", &["varve-format", "varve-sys", "varve-rootfs", "varve-boot"]),
    ("varve-term", &["varve-format", "varve-sys"]),
    (
        "varve",
        &[
            "varve-format",
            "varve-sys",
            "varve-fetch",
            "varve-rootfs",
            "varve-boot",
            "varve-agent",
            "varve-term",
        ],
    ),
    ("varve-repo", &["varve-format", "varve-sys", "varve-build", "varve-publish", "varve-term"]),
    (
        "varve-testkit",
        &[
            "varve-format",
            "varve-sys",
            "varve-build",
            "varve-publish",
            "varve-fetch",
            "varve-rootfs",
            "varve-boot",
            "varve-agent",
            "varve-early",
            "varve-term",
            "varve-delta",
        ],
    ),
    (
        "varve-powercut",
        &[
            "varve-format",
            "varve-sys",
            "varve-build",
            "varve-publish",
            "varve-fetch",
            "varve-rootfs",
            "varve-boot",
            "varve-agent",
            "varve-early",
            "varve-testkit",
        ],
    ),
    (
        "varve-fuzz",
        &[
            "varve-format",
            "varve-sys",
            "varve-build",
            "varve-delta",
            "varve-fetch",
            "varve-rootfs",
            "varve-boot",
            "varve-agent",
        ],
    ),
    ("xtask", &["varve-format", "varve-sys", "varve-testkit", "varve-powercut"]),
];

/// Crates that mean a network, TLS or an async runtime, by the beginning of their name.
const NETWORK: &[&str] = &[
    "tokio", "async-", "futures", "mio", "socket2", "ureq", "reqwest", "hyper", "http", "h2",
    "rustls", "aws-lc", "openssl", "ring", "webpki", "tough", "url", "zbus",
];

pub(super) fn direction() -> Result<Problems> {
    let uses = ours()?;
    Ok(judge(&uses))
}

fn judge(uses: &BTreeMap<String, Vec<String>>) -> Problems {
    let mut problems = Vec::new();
    for (name, used) in uses {
        let Some((_, allowed)) = MAY_USE.iter().find(|(known, _)| known == name) else {
            problems.push(format!(
                "{name} has no line in xtask/src/check/graph.rs: say there whom it may use"
            ));
            continue;
        };
        for other in used.iter().filter(|other| !allowed.contains(&other.as_str())) {
            problems.push(format!("{name} uses {other}; it may use only: {}", allowed.join(", ")));
        }
    }
    problems
}

/// For each crate of the workspace, those of the workspace that its own code (not its
/// tests) uses.
fn ours() -> Result<BTreeMap<String, Vec<String>>> {
    let text = output(cargo().args(["metadata", "--no-deps", "--format-version=1", "--locked"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    let names: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut uses = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default().to_owned();
        let used = package["dependencies"].as_array().into_iter().flatten();
        let used = used
            .filter(|dependency| dependency["kind"].is_null())
            .filter_map(|dependency| dependency["name"].as_str())
            .filter(|used| names.contains(used))
            .map(str::to_owned)
            .collect();
        uses.insert(name, used);
    }
    Ok(uses)
}

pub(super) fn boot_stage() -> Result<Problems> {
    let linked = linked("varve-early")?;
    Ok(linked
        .into_iter()
        .filter(|name| NETWORK.iter().any(|start| name.starts_with(start)))
        .map(|name| {
            format!("varve-early links {name}: cargo tree --package varve-early --invert {name}")
        })
        .collect())
}

pub(super) fn device() -> Result<Problems> {
    let mut problems = Vec::new();
    for program in ["varve", "varve-early"] {
        let linked = linked(program)?;
        problems.extend(
            ["varve-build", "varve-publish", "varve-repo", "varve-testkit", "varve-powercut"]
                .iter()
                .filter(|forbidden| linked.iter().any(|name| name == *forbidden))
                .map(|forbidden| format!("{program} links {forbidden}")),
        );
    }
    Ok(problems)
}

/// All crates that go into a package's program.
fn linked(package: &str) -> Result<Vec<String>> {
    let text = output(cargo().args([
        "tree",
        "--locked",
        "--package",
        package,
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]))?;
    let mut names: Vec<String> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .filter(|n| !n.is_empty())
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_direction_and_an_unknown_crate_are_problems() {
        let uses = BTreeMap::from([
            ("varve-boot".to_owned(), vec!["varve-format".to_owned(), "varve-agent".to_owned()]),
            ("varve-new".to_owned(), vec![]),
        ]);
        let problems = judge(&uses);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("varve-boot uses varve-agent"), "{problems:?}");
        assert!(problems[1].contains("varve-new"), "{problems:?}");
    }
}
