//! `varve`, the device's command: reads what is asked for, has the update manager do it,
//! and says what came of it.

#![forbid(unsafe_code)]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod cli;
mod commands;
mod edge;
mod interrupt;
mod show;

use std::process::ExitCode;

use clap::Parser;
use varve_fetch::worker;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == worker::ARGUMENT) {
        return match worker::serve(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let cli = cli::Cli::parse();
    let cancel = interrupt::listen();
    let form = cli.form();
    match commands::run(cli, &cancel) {
        Ok(exit) => exit.into(),
        Err(failure) => failure.tell(form).into(),
    }
}
