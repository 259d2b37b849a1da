//! `cargo xtask demo`.
use crate::project::Result;

/// How to show it.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Gives the machine to the user afterwards.
    #[arg(long)]
    shell: bool,
    /// How the root is held: overlay or hard-link.
    #[arg(long, default_value = "overlay", value_parser = ["overlay", "hard-link"])]
    layout: String,
}

pub(crate) fn run(_arguments: &Arguments) -> Result {
    Err(format!("not yet: {} {}", _arguments.shell, _arguments.layout).into())
}
