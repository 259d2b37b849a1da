//! The project's own commands: `cargo xtask COMMAND`.
//!
//! ```text
//!   packages ── what the machine must have ──┐
//!   releases ── Debian, made by mmdebstrap ──┤
//!   device ──── the static programs ─────────┼─ trees ── lab ─┬─ demo
//!                                            │                ├─ test slow (crates/testkit/tests/vm_*)
//!   check ───── what CI asks of the source   │                └─ bench
//! ```
//!
//! Everything that takes long is kept under `target/varve` and made again only when what
//! it was made of has changed.

mod bench;
mod check;
mod demo;
mod device;
mod fuzz;
mod guest;
mod lab;
mod packages;
mod powercut;
mod project;
mod releases;
mod test;
mod trees;

use clap::{Parser, Subcommand, ValueEnum};
use std::process::ExitCode;

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publishes two real Debian releases, installs the first in a virtual machine, upgrades
    /// it, and comes back, saying what it does.
    Demo(demo::Arguments),
    /// Runs the tests: first what they need is installed and made.
    Test {
        /// fast: under two minutes, no virtual machine. slow: the virtual machines.
        #[arg(default_value = "all")]
        which: Which,
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// Measures, each figure beside a peer in the same run.
    Bench(bench::Arguments),
    /// Cuts the power at every point of varve's work and looks whether the device lives on.
    Powercut(powercut::Arguments),
    /// Runs cargo-fuzz on every parser, for a bounded time.
    Fuzz(fuzz::Arguments),
    /// What CI asks of the source: format, clippy, licences, who may use whom, sizes.
    Check {
        /// Only checks whose name contains this.
        filter: Option<String>,
    },
    /// Makes the base image and the repository that the virtual machine tests boot.
    Image,
    /// Makes the Debian releases and says which versions they hold.
    Releases,
    /// Builds the static programs for devices and says where they are.
    Device,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Fast,
    Slow,
    All,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test { which, filter } => test::run(which, filter.as_deref()),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Powercut(arguments) => powercut::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Check { filter } => check::run(filter.as_deref()),
        Command::Image => lab::make_all(),
        Command::Releases => releases::make_all(),
        Command::Device => device::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}
