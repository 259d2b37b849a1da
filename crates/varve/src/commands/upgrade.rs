//! `init`, `check`, `upgrade`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use varve_agent::choose::{Choice, Wish};
use varve_agent::config::OnMetered;
use varve_agent::init::{self, Init as Make};
use varve_agent::observe::Observed;
use varve_agent::plan::UpgradePlan;
use varve_agent::upgrade::{self, Done, Prepared};
use varve_agent::{Device, Error, Writer};
use varve_term::Exit;

use super::{Answer, Session, reboot};
use crate::cli::{Init, SourceArgs, Upgrade};
use crate::edge::Failure;
use crate::interrupt;
use crate::show::upgrade as show;

const MAX_FILE: u64 = 1 << 20;

fn read_file(path: &Path, what: &str) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    read.map_err(|error| Failure::other(format!("read {what} {}", path.display()), error))?;
    Ok(bytes)
}

pub(crate) fn init(
    session: &Session<'_>,
    args: &Init,
    config: Option<&Path>,
    root: Option<PathBuf>,
) -> Answer {
    if root.is_none() {
        let text = "init needs --root: the directory where the new file system is mounted";
        return Err(Failure::Usage(text.to_owned()));
    }
    let trust_root = read_file(&args.trust_root, "the root of trust")?;
    let text = match config {
        Some(path) => {
            let bytes = read_file(path, "the configuration")?;
            let text = String::from_utf8(bytes).map_err(|error| {
                let error = std::io::Error::other(error);
                Failure::other(format!("read the configuration {}", path.display()), error)
            })?;
            Some((text, path))
        }
        None => None,
    };
    interrupt::busy();
    let make = Make {
        trust_root: &trust_root,
        sources: args.sources.source.clone(),
        config: text.as_ref().map(|(text, path)| (text.as_str(), *path)),
        wish: Wish { to: args.release.clone(), ..Wish::default() },
    };
    let made = init::init(session.places.clone(), &make, &session.context())?;
    session.answer(&made, show::made)?;
    Ok(Exit::Done)
}

/// Opens the device, with these sources in place of the configured ones if there are any.
pub(crate) fn device_with(session: &Session<'_>, sources: SourceArgs) -> Result<Device, Failure> {
    let mut device = session.device()?;
    if !sources.source.is_empty() {
        device.config.sources = sources.source;
    }
    Ok(device)
}

/// What `check` found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Checked {
    /// What runs or boots next.
    pub present: Option<String>,
    /// The newer release.
    pub newer: Option<Newer>,
    /// Newer ones that failed here and are not tried again by themselves: name and reason.
    pub passed_over: Vec<varve_agent::rejected::Rejection>,
    /// The source that was believed.
    pub source: String,
    /// When its metadata expires.
    pub expires: jiff::Timestamp,
    /// The clock is behind what was seen before.
    pub clock_behind: bool,
    /// Sources that could not be checked, or were refused.
    pub warnings: Vec<String>,
}

/// A release that could be taken.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Newer {
    /// Its name.
    pub release: String,
    /// Its place in the repository's order.
    pub sequence: u64,
    /// Its channel.
    pub channel: String,
}

pub(crate) fn check(session: &Session<'_>, args: SourceArgs) -> Answer {
    let device = device_with(session, args)?;
    let writer = device.lock("check", session.now)?;
    interrupt::busy();
    let context = session.context();
    let observed = Observed::look(&device)?;
    let sources = upgrade::open_sources(&device, &context)?;
    let wish = Wish::default();
    let offer = upgrade::check(&device, &writer, &observed, &sources, &wish, &context)?;
    let present = observed.latest().map(|latest| match &latest.record.release {
        Some(release) => release.name.to_string(),
        None => latest.name().to_string(),
    });
    let (newer, passed_over) = match offer.choice {
        Choice::UpToDate { passed_over } => (None, passed_over),
        Choice::Take { release, passed_over, .. } => {
            let release = Newer {
                release: release.name.to_string(),
                sequence: release.sequence,
                channel: release.channel,
            };
            (Some(release), passed_over)
        }
    };
    let checked = Checked {
        present,
        newer,
        passed_over,
        source: offer.metadata.source.clone(),
        expires: offer.metadata.expires,
        clock_behind: offer.metadata.clock_behind,
        warnings: offer.metadata.warnings.iter().map(show::warning).collect(),
    };
    session.answer(&checked, show::checked)?;
    Ok(if checked.newer.is_some() { Exit::Done } else { Exit::UpToDate })
}

/// What `upgrade` did, or would do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Upgraded {
    /// There was nothing newer.
    pub up_to_date: bool,
    /// What was to be done.
    pub plan: Option<UpgradePlan>,
    /// Why the plan is not carried out.
    pub refused: Option<String>,
    /// What was done; none in a dry run.
    pub done: Option<Done>,
    /// Newer releases that failed here and are not tried again by themselves.
    pub passed_over: Vec<varve_agent::rejected::Rejection>,
    /// Sources that could not be checked, or were refused.
    pub warnings: Vec<String>,
}

pub(crate) fn upgrade(session: &Session<'_>, args: Upgrade) -> Answer {
    let mut device = device_with(session, args.sources)?;
    if args.metered {
        device.config.download.metered = OnMetered::Allow;
    }
    // The user of the device comes first.
    varve_sys::priority::lower();
    let writer = device.lock("upgrade", session.now)?;
    interrupt::busy();
    let context = session.context();
    let wish = Wish { to: args.to, allow_downgrade: args.allow_downgrade, restage: args.restage };
    let ready = match upgrade::prepare(&device, &writer, &wish, args.dry_run, &context)? {
        Prepared::UpToDate { passed_over, warnings } => {
            let answer = Upgraded {
                up_to_date: true,
                plan: None,
                refused: None,
                done: None,
                passed_over,
                warnings,
            };
            session.answer(&answer, show::upgraded)?;
            return Ok(Exit::Done);
        }
        Prepared::Ready(ready) => ready,
    };
    let mut answer = Upgraded {
        up_to_date: false,
        plan: Some(ready.plan.clone()),
        refused: ready.plan.refuse().err().map(|refusal| refusal.to_string()),
        done: None,
        passed_over: ready.passed_over.clone(),
        warnings: ready.warnings.clone(),
    };
    if args.dry_run {
        session.answer(&answer, show::upgraded)?;
        // The same refusal as without --dry-run, with what to do about it.
        ready.plan.refuse()?;
        return Ok(Exit::Done);
    }
    // What it costs is said before it begins.
    session.progress.note(show::plan(&ready.plan).trim_end());
    let done = match ready.run(&device, &writer, &context) {
        Err(error) if error.is_missing_file() => {
            again(session, &device, &writer, &wish, error, &mut answer)
        }
        other => other,
    };
    answer.done = Some(done?);
    session.answer(&answer, show::done)?;
    if args.reboot {
        drop(writer);
        reboot()?;
    }
    Ok(Exit::Done)
}

/// A file that the metadata names is nowhere: the repository changed since the metadata
/// was fetched, so it is looked at once more. What is gone still is the first error.
fn again(
    session: &Session<'_>,
    device: &Device,
    writer: &Writer,
    wish: &Wish,
    first: Error,
    answer: &mut Upgraded,
) -> Result<Done, Error> {
    session.progress.note("the repository has changed in the meantime: looking again");
    let context = session.context();
    let Prepared::Ready(ready) = upgrade::prepare(device, writer, wish, false, &context)? else {
        return Err(first);
    };
    answer.plan = Some(ready.plan.clone());
    session.progress.note(show::plan(&ready.plan).trim_end());
    ready.run(device, writer, &context)
}
