//! `varve-repo`: the publisher's command. Thin: it reads the command line, calls
//! varve-build and varve-publish, and says what they answered.

#![forbid(unsafe_code)]

mod answer;
mod cli;
mod run;

use std::process::ExitCode;

use clap::Parser;
use varve_sys::task::Cancel;
use varve_term::out;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let cancel = Cancel::new();
    let raised = cancel.clone();
    // Without a handler Ctrl-C still ends the program, only less politely.
    let _ = ctrlc::set_handler(move || raised.cancel());
    let json = cli.global.json;
    match run::run(cli, &cancel) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let (exit, hint) = answer::explain(error.as_ref());
            if json {
                let _ = out::print_json(&out::error_json(error.as_ref(), hint, exit));
            } else {
                out::note(&out::error_text(error.as_ref(), hint));
            }
            exit.into()
        }
    }
}
