//! `varve-boot TARGET`: the boot stage, run by the initramfs once the root file system
//! is mounted at TARGET. Exit codes: 0, a root is at TARGET (a deployment's, or the plain
//! one where there is no `/varve`); 1, nothing boots; 2, called wrongly.

#![forbid(unsafe_code)]

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use varve_boot::report::log_records;
use varve_early::{Machine, Outcome, run};
use varve_sys::whole_message;

const RUN: &str = "/run/varve";

/// One mapping for all that a boot needs: musl's own allocator makes and unmaps one for
/// nearly every size, and each costs a walk through the kernel.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let begun = Instant::now();
    let mut arguments = std::env::args_os().skip(1);
    let (Some(target), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: varve-boot TARGET    (in an initramfs; TARGET: the mounted root)");
        return ExitCode::from(2);
    };
    match run(Path::new(&target), Path::new(RUN), &Machine::this(), begun) {
        Ok(Outcome::Booted(booted)) => {
            let report = &booted.report;
            for line in &report.warnings {
                say(Level::Warning, line);
            }
            if let Some(problem) = &report.selection_problem {
                say(Level::Warning, &format!("the selection cannot be used: {problem}"));
            }
            for line in &report.passed_over {
                say(Level::Warning, line);
            }
            let (name, microseconds) = (&report.deployment, report.microseconds);
            let phases: Vec<String> =
                report.phases.iter().map(|(phase, time)| format!("{phase} {time}")).collect();
            let (reason, phases) = (&booted.reason, phases.join(", "));
            say(Level::Notice, &format!("booted {name} ({reason}) in {microseconds} us: {phases}"));
            ExitCode::SUCCESS
        }
        Ok(Outcome::NoVarve) => {
            say(Level::Notice, "there is no /varve on this root: booting it as it is");
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(Level::Error, &whole_message(&error));
            say(
                Level::Error,
                "to mend it: `varve --root <the root file system> status` and `varve fsck` from a \
                 rescue system; the layers are plain directories in /varve/layers",
            );
            ExitCode::FAILURE
        }
    }
}

#[derive(Clone, Copy)]
enum Level {
    Error = 3,
    Warning = 4,
    Notice = 5,
}

/// Into the kernel's log, which the console shows and the journal keeps; to standard
/// error where there is none.
fn say(level: Level, line: &str) {
    let mut log = std::fs::OpenOptions::new().write(true).open("/dev/kmsg").ok();
    for line in log_records(line) {
        let record = format!("<{}>varve: {line}\n", level as u8);
        if log.as_mut().is_none_or(|log| log.write_all(record.as_bytes()).is_err()) {
            eprintln!("varve: {line}");
        }
    }
}
