//! `varve-powercut`: what `cargo xtask powercut` runs.

mod command;

fn main() -> std::process::ExitCode {
    command::main()
}
