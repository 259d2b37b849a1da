//! A deployment runs at once beside what runs, before a reboot is spent on it: as a shell, a
//! command, its health checks, or a whole booted system in a container.
//!
//! ```text
//! private namespace of one thread
//!   /tmp          a tmpfs: what is changed goes there, and is forgotten
//!   /tmp/root     the mount plan of the boot stage, state seen but not written
//!     '- furnished, with namespaces for each command: crate::inside
//!        or as it is: systemd-nspawn --boot
//! ```
//!
//! The kernel is the running one, and the network too (a booted system has none: its
//! services would take the ports of those that run). Nothing real is written: each state
//! path is an overlay whose top is in memory, over what the device has there.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::fs::CWD;
use serde::Serialize;
use varve_format::{DeploymentName, LayerName};
use varve_rootfs::assemble::{Care, execute};
use varve_rootfs::mount::{AssembleError, Changes, Options, plan};
use varve_rootfs::{Deployment, Store};
use varve_sys::Dir;
use varve_sys::confine::{TerminalIsTheCommands, ends_with_caller};
use varve_sys::mount::tmpfs_detached;

use crate::config::{self, Config, HealthCheck};
use crate::device::{Device, DeviceError};
use crate::error::{Error, Result};
use crate::health::{self, Outcome};
use crate::inside::{self, InsideError, Room};
use crate::observe::Observed;
use crate::upgrade::Context;

/// What is covered in the private namespace: a directory that every system has.
const PLACE: &str = "/tmp";
/// What boots a system in a container, and the package of Debian that has it.
const CONTAINER: &str = "systemd-nspawn";

/// Why a deployment could not be tried.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TryError {
    /// Its root could not be put together.
    #[error("the root of {deployment} could not be put together")]
    Assemble {
        /// Whose.
        deployment: DeploymentName,
        /// Why.
        source: AssembleError,
    },
    /// It has no shell.
    #[error("there is no shell in {deployment}")]
    NoShell {
        /// Where.
        deployment: DeploymentName,
    },
    /// Its configuration names no health check.
    #[error("{deployment} has no health check to run")]
    NoChecks {
        /// Whose.
        deployment: DeploymentName,
    },
    /// Nothing here boots containers.
    #[error("there is no {CONTAINER} on this machine")]
    NoContainer,
}

/// What to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// A command; none: a shell.
    Command(Vec<String>),
    /// The whole system, its services too, in a container.
    Boot,
    /// The health checks of its own configuration.
    Health,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tried {
    /// Which deployment.
    pub deployment: DeploymentName,
    /// State paths that it does not have, and what was done without: for people.
    pub left_out: Vec<String>,
    /// The exit status of the command or the container; 128 and more: a signal.
    pub status: Option<u8>,
    /// The health checks.
    pub checks: Vec<Check>,
}

impl Tried {
    /// Whether the checks passed, or the command ended well.
    pub fn passed(&self) -> bool {
        self.status.is_none_or(|status| status == 0) && self.checks.iter().all(|check| check.passed)
    }
}

/// A health check that was run in the copy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Check {
    /// Its name.
    pub name: String,
    /// Whether it is well.
    pub passed: bool,
    /// How it ended, in words.
    pub how: String,
    /// The end of what it printed.
    pub output: String,
    /// How long it took.
    pub milliseconds: u64,
}

impl From<Outcome> for Check {
    fn from(outcome: Outcome) -> Self {
        Self {
            passed: outcome.passed(),
            how: outcome.verdict.to_string(),
            name: outcome.name,
            output: outcome.output,
            milliseconds: outcome.took.as_millis() as u64,
        }
    }
}

/// The deployment that is tried when none is named: what boots next.
pub fn chosen(observed: &Observed, name: Option<&DeploymentName>) -> Result<Deployment> {
    match name {
        Some(name) => observed
            .deployment(name)
            .cloned()
            .ok_or_else(|| Error::NoDeployment { name: name.clone() }),
        None => observed.latest().cloned().ok_or(Error::NothingGood),
    }
}

/// Runs something in a private copy of a deployment. Changes nothing on the device.
pub fn run(
    device: &Device,
    name: Option<&DeploymentName>,
    act: &Act,
    context: &Context<'_>,
) -> Result<Tried> {
    run_without(device, name, &[], act, context)
}

/// The same with these layers left out.
pub(crate) fn run_without(
    device: &Device,
    name: Option<&DeploymentName>,
    off: &[LayerName],
    act: &Act,
    context: &Context<'_>,
) -> Result<Tried> {
    let deployment = chosen(&Observed::look(device)?, name)?;
    if *act == Act::Boot && container().is_none() {
        return Err(TryError::NoContainer.into());
    }
    let physical_root = inside::absolute(&device.places.physical_root)?;
    inside::in_private_namespace(|| {
        // Opened before its path may be covered.
        let store = Store::open(&Dir::open(physical_root)?)?;
        let (root, left_out) = assemble(&store, &deployment, off)?;
        let mut tried = Tried {
            deployment: deployment.name().clone(),
            left_out,
            status: None,
            checks: Vec::new(),
        };
        match act {
            Act::Command(words) => {
                tried.status = Some(command(&root, &deployment, words, context)?)
            }
            Act::Boot => tried.status = Some(boot(&root, &deployment, context)?),
            Act::Health => tried.checks = checks(&root, &deployment, context)?,
        }
        Ok(tried)
    })
}

/// Mounts it as a boot would, with all changes in memory. Gives where.
fn assemble(
    store: &Store,
    deployment: &Deployment,
    off: &[LayerName],
) -> Result<(PathBuf, Vec<String>)> {
    tmpfs_detached(0o700, None)
        .and_then(|tmpfs| tmpfs.attach(CWD, Path::new(PLACE)))
        .map_err(InsideError::Mount)?;
    let place = Dir::open(PLACE)?;
    place.mkdir("root", 0o755)?;
    place.mkdir("memory", 0o700)?;
    let failed = |source| TryError::Assemble { deployment: deployment.name().clone(), source };
    let off = off.to_vec();
    let options = Options { changes: Changes::Forgotten, off, ..Options::default() };
    let plan = plan(store, &deployment.record, options).map_err(failed)?;
    let root = place.path().join("root");
    execute(store, &plan, &root, &place.path().join("memory"), Care::Strict).map_err(failed)?;
    let left_out = plan.left_out.iter();
    Ok((root, left_out.map(|left| format!("{}: {}", left.path, left.why)).collect()))
}

fn command(
    root: &Path,
    deployment: &Deployment,
    words: &[String],
    context: &Context<'_>,
) -> Result<u8> {
    let room = Room::furnish(root)?;
    let words = match words {
        [] => vec![shell(room.root(), deployment)?],
        words => words.to_vec(),
    };
    let mut command = room.command(&words)?;
    let name = deployment.name().as_str();
    // The prompt of Debian's shells shows the second.
    command.env("VARVE_TRY", name).env("debian_chroot", name);
    at_terminal(command, context)
}

fn shell(root: &Dir, deployment: &Deployment) -> Result<String> {
    let there = |path: &&str| root.leads_somewhere(path).unwrap_or(false);
    let found = ["/bin/bash", "/bin/sh"].into_iter().find(there);
    let missing = || TryError::NoShell { deployment: deployment.name().clone() };
    Ok(found.ok_or_else(missing)?.to_owned())
}

/// Runs a command that has the caller's terminal, if there is one.
fn at_terminal(mut command: Command, context: &Context<'_>) -> Result<u8> {
    if !rustix::termios::isatty(std::io::stdin()) {
        return Ok(code(inside::run(command, context.cancel)?));
    }
    let shown = inside::shown(&command);
    let start = |source| InsideError::Start { command: shown.clone(), source };
    let mut child = command.spawn().map_err(start)?;
    let _terminal = TerminalIsTheCommands::begin();
    Ok(code(child.wait().map_err(start)?))
}

fn code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

fn checks(root: &Path, deployment: &Deployment, context: &Context<'_>) -> Result<Vec<Check>> {
    let file = root.join(config::PATH.trim_start_matches('/'));
    let config = Config::load(&file).map_err(DeviceError::Config)?.unwrap_or_default();
    if config.health.is_empty() {
        return Err(TryError::NoChecks { deployment: deployment.name().clone() }.into());
    }
    let room = Room::furnish(root)?;
    let mut done = Vec::new();
    for check in &config.health {
        context.cancel.check()?;
        context.progress.note(&format!("checking {:?}: {}", check.name, check.command.join(" ")));
        done.push(run_check(&room, check).into());
    }
    Ok(done)
}

fn run_check(room: &Room, check: &HealthCheck) -> Outcome {
    health::run_in(check, |command| room.confine(command).map_err(std::io::Error::other))
}

/// Where the program that boots containers is.
pub fn container() -> Option<PathBuf> {
    let dirs = inside::PATH.split(':').map(Path::new);
    dirs.map(|dir| dir.join(CONTAINER)).find(|path| path.exists())
}

fn boot(root: &Path, deployment: &Deployment, context: &Context<'_>) -> Result<u8> {
    let program = container().ok_or(TryError::NoContainer)?;
    let mut command = Command::new(program);
    command
        .args(["--quiet", "--boot", "--private-network", "--register=no"])
        .arg(format!("--machine=try-{}", machine_name(deployment.name())))
        .arg("--directory")
        .arg(root);
    // sd_booted(3): who else could give it a control group of its own?
    if !Path::new("/run/systemd/system").exists() {
        command.arg("--keep-unit");
    }
    ends_with_caller(&mut command);
    at_terminal(command, context)
}

/// Names of machines are host names: letters, digits and hyphens.
fn machine_name(name: &DeploymentName) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    name.as_str().chars().map(plain).take(50).collect::<String>().trim_end_matches('-').to_owned()
}
