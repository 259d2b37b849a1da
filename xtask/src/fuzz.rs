//! `cargo xtask fuzz`: cargo-fuzz on every parser, or on one, for a bounded time.
//!
//! ```text
//! cargo xtask fuzz                      a minute over all targets
//! cargo xtask fuzz --seconds 36000 tar  ten hours on one
//! ```
//!
//! The targets are `crates/fuzz`, which every run of the tests tries as well, on the seeds
//! and bent copies of them. New inputs stay in the cache; what a target fails on is named.

use std::process::{Command, Stdio};
use std::time::Instant;

use crate::project::{Result, cache, output, root, seconds, show};

/// Fuzzes the parsers.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Seconds in all, divided over the targets; building is not counted.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// One target alone.
    target: Option<String>,
}

/// Runs it. An input that makes a target fail is an error.
pub(crate) fn run(arguments: &Arguments) -> Result {
    let missing = missing();
    if !missing.is_empty() {
        let all = missing.join("\n  ");
        return Err(format!(
            "cargo-fuzz cannot run here. Install:\n  {all}\nWithout it: VARVE_FUZZ_SECONDS={} cargo \
             nextest run --package varve-fuzz tries bent copies of the seeds",
            arguments.seconds
        )
        .into());
    }
    let folder = root().join("fuzz");
    let mut targets: Vec<String> = std::fs::read_dir(folder.join("seeds"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    targets.sort();
    if let Some(only) = &arguments.target {
        targets.retain(|target| target == only);
        if targets.is_empty() {
            return Err(format!("there is no target {only}: see fuzz/seeds").into());
        }
    }
    show(fuzz("build").args(arguments.target.as_slice()))?;
    let share = (arguments.seconds / targets.len() as u64).max(1);
    let (mut all, mut failed) = (0, Vec::new());
    let began = Instant::now();
    for target in &targets {
        let corpus = cache()?.join("fuzz").join(target);
        std::fs::create_dir_all(&corpus)?;
        let mut command = fuzz("run");
        command.arg(target).arg(&corpus).arg(folder.join("seeds").join(target));
        command.args(["--", "-rss_limit_mb=1024", "-malloc_limit_mb=512", "-timeout=20"]);
        command.args(["-print_final_stats=1", &format!("-max_total_time={share}")]);
        let done = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        let number = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').trim().parse::<u64>().ok()
        };
        let tried = number("stat::number_of_executed_units").unwrap_or(0);
        let memory = number("stat::peak_rss_mb").unwrap_or(0);
        // `#4096  DONE   cov: 512 ft: 900 corp: 60/4321b …`: edges of the program, inputs kept.
        let last = |word: &str| {
            let line = said.lines().rev().find(|line| line.contains(" cov: "))?;
            line.split_once(&format!(" {word}: "))?.1.split([' ', '/']).next()
        };
        let (edges, kept) = (last("cov").unwrap_or("?"), last("corp").unwrap_or("?"));
        println!(
            "{target:>18}: {tried:>9} inputs, {edges:>6} edges by {kept:>5} of them, {memory:>4} MiB at most"
        );
        all += tried;
        if !done.status.success() {
            println!("{said}");
            failed.push(target.as_str());
        }
    }
    println!("{all} inputs in {}", seconds(began.elapsed()));
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!("these fail, see above: {}. Keep the input in fuzz/seeds", failed.join(", "))
        .into())
}

fn fuzz(act: &str) -> Command {
    let mut command = Command::new("cargo");
    // This program runs under the project's toolchain, which must not be handed on.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
    command.current_dir(root().join("fuzz")).args(["+nightly", "fuzz", act, "--fuzz-dir", "."]);
    command
}

/// What has to be installed first, as commands.
fn missing() -> Vec<&'static str> {
    let there = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.env_remove("RUSTUP_TOOLCHAIN");
        output(command.args(arguments)).is_ok()
    };
    let mut missing = Vec::new();
    if !there("rustup", &["run", "nightly", "rustc", "--version"]) {
        missing.push("rustup toolchain install nightly --profile minimal");
    }
    if !there("cargo-fuzz", &["--version"]) {
        missing.push("cargo install --locked cargo-fuzz");
    }
    if !there("c++", &["--version"]) {
        missing.push("apt-get install g++");
    }
    missing
}
