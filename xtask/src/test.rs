//! `cargo xtask test`: what the tests need is installed and made, then nextest runs them.

use crate::packages;
use crate::project::{Result, cargo, is_root, show, step};
use crate::{Which, lab};
use std::process::{Command, Stdio};

pub(crate) fn run(which: Which, filter: Option<&str>) -> Result {
    nextest_is_there()?;
    if which == Which::Fast {
        packages::ensure(packages::For::FastTests)?;
        return fast(filter);
    }
    // Asked first, so that nobody waits for the fast tests to learn that the slow ones
    // cannot run.
    packages::need_root(if which == Which::Slow { "test slow" } else { "test" })?;
    packages::ensure(packages::For::Lab)?;
    if which == Which::All {
        // All in one run of nextest, so that its last lines are about all tests.
        lab::make_all()?;
        return nextest(
            &["--workspace", "--profile", "all", "--features", "varve-testkit/vm"],
            filter,
        );
    }
    lab::make_all()?;
    nextest(
        &["--profile", "slow", "--package", "varve-testkit", "--features", "varve-testkit/vm"],
        filter,
    )
}

fn fast(filter: Option<&str>) -> Result {
    if !is_root() {
        eprintln!("  not root: the tests that mount file systems say so and do not run");
    }
    nextest(&["--workspace", "--profile", "fast"], filter)
}

fn nextest(arguments: &[&str], filter: Option<&str>) -> Result {
    let mut command = cargo();
    command.args(["nextest", "run", "--locked"]).args(arguments).args(filter);
    // The tests find the releases, the repository and the image there.
    command.env("VARVE_LAB", lab::description()?);
    show(&mut command)
}

fn nextest_is_there() -> Result {
    let there = Command::new("cargo-nextest")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if there {
        return Ok(());
    }
    step("installing cargo-nextest, once", || {
        show(Command::new("cargo").args(["install", "--locked", "--quiet", "cargo-nextest"]))
    })
}
