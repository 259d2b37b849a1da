//! `varve-powercut`: what `cargo xtask powercut` runs.

#![forbid(unsafe_code)]

mod command;

fn main() -> std::process::ExitCode {
    command::main()
}
