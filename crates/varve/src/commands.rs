//! Each command: open the device, call the update manager, show the answer.

pub(crate) mod apply;
pub(crate) mod keep;
pub(crate) mod layer;
pub(crate) mod lifecycle;
pub(crate) mod strip;
pub(crate) mod tryout;
pub(crate) mod upgrade;

use std::sync::Arc;

use jiff::Timestamp;
use varve_agent::sources::Link;
use varve_agent::upgrade::Context;
use varve_agent::{Device, Places};
use varve_fetch::{Listener, Notice, Patience, Proxies, Workers};
use varve_format::proven::Moment;
use varve_sys::task::{Cancel, Progress, Silent};
use varve_sys::uptime;
use varve_term::{Exit, Form, Shown, out};

use crate::cli::{Cli, Command};
use crate::edge::Failure;

type Answer = Result<Exit, Failure>;

/// What every command works with.
pub(crate) struct Session<'a> {
    form: Form,
    verbose: bool,
    places: Places,
    progress: Arc<dyn Progress>,
    cancel: &'a Cancel,
    patience: Patience,
    now: Timestamp,
}

impl Session<'_> {
    fn device(&self) -> Result<Device, Failure> {
        Ok(Device::open(self.places.clone())?)
    }

    /// Now, by what no clock spoils.
    fn moment(&self) -> Result<Moment, Failure> {
        let (boot, uptime) = (uptime::boot_id()?, uptime::uptime().as_secs());
        Ok(Moment { boot, uptime, clock: self.now.as_second() })
    }

    fn context(&self) -> Context<'_> {
        Context {
            now: self.now,
            progress: &*self.progress,
            cancel: self.cancel,
            patience: &self.patience,
        }
    }

    /// Answers: JSON as it is, or the text that is made of it.
    fn answer<T: serde::Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let written = match self.form {
            Form::Json => out::print_json(value),
            Form::Human => out::print(&text(value)),
        };
        written.map_err(|error| Failure::other("write to standard output", error))
    }
}

/// Does what the command line asks for.
pub(crate) fn run(cli: Cli, cancel: &Cancel) -> Answer {
    let mut places = match &cli.root {
        Some(root) => Places::at(root, &cli.config()),
        None => Places { config: cli.config(), ..Places::running() },
    };
    let progress: Arc<dyn Progress> =
        if cli.quiet { Arc::new(Silent) } else { Arc::new(Shown::new()) };
    places.link = link(&progress, cli.verbose);
    let session = Session {
        form: cli.form(),
        verbose: cli.verbose,
        places,
        progress,
        cancel,
        patience: Patience::default(),
        now: Timestamp::now(),
    };
    match cli.command {
        Command::Init(args) => upgrade::init(&session, &args, cli.config.as_deref(), cli.root),
        Command::Check(args) => upgrade::check(&session, args),
        Command::Upgrade(args) => upgrade::upgrade(&session, args),
        Command::Apply(args) => apply::run(&session, &args),
        Command::Try(args) => tryout::run(&session, args),
        Command::Status(args) => lifecycle::status(&session, &args),
        Command::Rollback(args) => lifecycle::rollback(&session, &args),
        Command::Confirm(args) => lifecycle::confirm(&session, &args),
        Command::History(args) => lifecycle::history(&session, &args),
        Command::Finalize => lifecycle::finalize(&session),
        Command::Pin(name) => keep::pin(&session, &name, true),
        Command::Unpin(name) => keep::pin(&session, &name, false),
        Command::Collect(args) => keep::collect(&session, &args),
        Command::Fsck(args) => keep::fsck(&session, &args),
        Command::Ps(args) => keep::ps(&session, &args),
        Command::Merge(args) => keep::merge(&session, &args),
        Command::Reset(args) => keep::reset(&session, &args),
        Command::Layer(command) => layer::run(&session, &command),
        Command::Strip(args) => strip::strip(&session, &args),
        Command::Bisect(args) => strip::bisect(&session, &args),
        Command::Completions { shell } => completions(shell),
        Command::Manual { directory } => manual(&directory),
    }
}

/// The way to the sources, as this program's environment and options have it.
fn link(progress: &Arc<dyn Progress>, verbose: bool) -> Link {
    // `HTTP_PROXY` is not read: where a server runs this, its client could set it.
    let read = |names: &[&str]| {
        names.iter().find_map(|name| std::env::var(name).ok().filter(|text| !text.is_empty()))
    };
    let all = || read(&["all_proxy", "ALL_PROXY"]);
    let direct = read(&["no_proxy", "NO_PROXY"]).unwrap_or_default();
    let proxies = Proxies {
        http: read(&["http_proxy"]).or_else(all),
        https: read(&["https_proxy", "HTTPS_PROXY"]).or_else(all),
        direct: direct.split(',').map(|entry| entry.trim().to_owned()).collect(),
    };
    let progress = progress.clone();
    let listener = Listener::new(move |notice: &Notice<'_>| {
        if verbose || notice.is_news() {
            progress.note(&notice.to_string());
        }
    });
    // By this name it is found also when an update has replaced the file.
    let workers = Workers::of_program("/proc/self/exe");
    Link { proxies, listener: Some(listener), workers, bus: None, ask_every: None }
}

fn completions(shell: clap_complete::Shell) -> Answer {
    let mut command = <Cli as clap::CommandFactory>::command();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "varve", &mut text);
    out::print(&String::from_utf8_lossy(&text))
        .map_err(|error| Failure::other("write to standard output", error))?;
    Ok(Exit::Done)
}

/// For packagers: one page for the program and one for each command.
fn manual(directory: &std::path::Path) -> Answer {
    let command = <Cli as clap::CommandFactory>::command();
    clap_mangen::generate_to(command, directory).map_err(|error| {
        Failure::other(format!("write the manual pages to {}", directory.display()), error)
    })?;
    Ok(Exit::Done)
}

/// Asks the system to reboot.
fn reboot() -> Result<(), Failure> {
    systemctl(&["reboot"])
}

/// Asks systemd for something.
fn systemctl(words: &[&str]) -> Result<(), Failure> {
    let failed = |error| Failure::other(format!("run `systemctl {}`", words.join(" ")), error);
    let status = std::process::Command::new("systemctl").args(words).status().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    Err(failed(std::io::Error::other(status.to_string())))
}
