//! A boot of all but the kernel: what boots next is put together by the boot stage's own
//! code at `/run/nextroot`, where systemd (254 and later) looks for it in a soft reboot.
//!
//! ```text
//! apply --soft-reboot   plan, note the request in run/, `systemctl soft-reboot`
//! services end          state is carried as at every shutdown        lifecycle::finalize
//! finalize, the last    nextroot       the boot stage: a try spent, durably; mounts; report
//!                       nextroot/run   /run, with physical and memory of the new root in it
//! systemd               makes nextroot the root; everything starts anew
//! ```
//!
//! systemd takes `/run` along without what is mounted in it, unless the new root has
//! something mounted at its `/run` already: so that is prepared here.
//!
//! Everything goes by the rules of a boot: the health checks confirm it or go back, and a
//! system that hangs has spent its try. When nothing can be put together, systemd starts
//! all anew in the old root; that is said in the history, and nothing else is changed.
//!
//! Shared state is in two overlays for a moment, with one upper directory: the old one's
//! services have ended by then, and it is unmounted next.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::CWD;
use serde::Serialize;
use varve_boot::report::BootReport;
use varve_early::{Machine, Outcome};
use varve_format::DeploymentName;
use varve_rootfs::resolve::Resolver;
use varve_sys::cmdline::CommandLine;
use varve_sys::mount::{
    Access, MountError, Reach, bind_detached, copy_detached, make_private, unmount_lazily,
};
use varve_sys::{Dir, SysError, whole_message};

use crate::device::{Device, Writer};
use crate::error::{Error, Result};
use crate::history::{self, Event, Record};
use crate::live::{self, Instead, Live, LiveError, Obstacle};
use crate::observe::Observed;
use crate::upgrade::Context;

/// Where systemd looks for the new root.
const NEXT_ROOT: &str = "/run/nextroot";
/// Beside the boot stage's report: that a soft reboot was asked for.
const REQUEST: &str = "soft-reboot";
/// Beside it too: where the boot stage works meanwhile.
const WORK: &str = "next";
/// The unit without which this systemd has no soft reboot.
const UNIT: &str = "/usr/lib/systemd/system/soft-reboot.target";
/// By one of these systemd knows a system's root.
const OS_RELEASE: [&str; 2] = ["etc/os-release", "usr/lib/os-release"];

/// What a soft reboot would be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// What runs.
    pub from: DeploymentName,
    /// What boots next.
    pub to: DeploymentName,
    /// What speaks against it; none: it is safe.
    pub obstacles: Vec<Obstacle>,
    /// What stays as it is until a reboot, in words.
    pub stays: Vec<String>,
}

/// Sees whether what boots next can be booted so. Changes nothing.
pub fn plan(device: &Device) -> Result<Plan> {
    let observed = Observed::look(device)?;
    let boot = observed.boot.as_ref().ok_or(Error::NotRunning)?;
    let to = observed.latest().ok_or(Error::NothingGood)?;
    let tries = observed.selection.as_ref().ok().and_then(|selection| selection.tries);
    if *to.name() == boot.deployment && boot.stripped == 0 {
        return Err(LiveError::RunsAlready { deployment: to.name().clone() }.into());
    }
    let mut obstacles = Vec::new();
    let mut speaks = |why: String| obstacles.push(Obstacle { why, instead: Instead::Reboot });
    if !Path::new(UNIT).exists() {
        speaks("this systemd has no soft reboot: version 254 or later has".to_owned());
    }
    if tries == Some(0) {
        speaks(format!("{} has used up its tries", to.name()));
    }
    let mut view = Resolver::new(device.store.root_dirs(&to.record)?);
    let mut has = |path: &str| view.follow(path.as_bytes()).map(|found| found.is_some());
    if !has(OS_RELEASE[0])? && !has(OS_RELEASE[1])? {
        speaks("it has no os-release, by which systemd knows a root".to_owned());
    }
    let old = observed.deployment(&boot.deployment);
    let mut stays = Vec::new();
    if let Some(old) = old {
        let mut before = Resolver::new(device.store.root_dirs(&old.record)?);
        if let Some(why) = live::modules_gone(&mut before, &mut view)? {
            speaks(why);
        }
        if old.record.kernel != to.record.kernel {
            stays.push(live::NEW_KERNEL.to_owned());
        }
    }
    let (from, to) = (boot.deployment.clone(), to.name().clone());
    Ok(Plan { from, to, obstacles, stays })
}

/// Notes that the shutdown that comes is to be a soft reboot. With obstacles it does not.
pub fn request(device: &Device, _writer: &Writer, plan: &Plan) -> Result<()> {
    if !plan.obstacles.is_empty() {
        let (deployment, obstacles) = (plan.to.clone(), plan.obstacles.clone());
        return Err(LiveError::Unsafe { deployment, obstacles }.into());
    }
    let run = run(device)?;
    run.remove_all(REQUEST)?;
    run.create_file(REQUEST, 0o644)?;
    Ok(())
}

/// It does not come after all.
pub fn withdraw(device: &Device) -> Result<()> {
    Ok(run(device)?.remove_all(REQUEST)?)
}

fn run(device: &Device) -> Result<Dir> {
    let report = device.places.boot_report.as_deref().ok_or(Error::NotRunning)?;
    Ok(Dir::open(report.parent().unwrap_or(Path::new("/")))?)
}

/// At the end of a shutdown: puts the new root together, if a soft reboot was asked for.
/// Gives what boots. A failure is in the history and the old root stays.
pub(crate) fn at_shutdown(
    device: &Device,
    context: &Context<'_>,
) -> Result<Option<DeploymentName>> {
    // On a device that is not running, or that Varve has not booted, nobody can have asked.
    let run = match run(device) {
        Err(Error::NotRunning) => return Ok(None),
        Err(Error::Sys(error)) if error.is_not_found() => return Ok(None),
        other => other?,
    };
    if run.stat_opt(REQUEST)?.is_none() {
        return Ok(None);
    }
    run.remove_all(REQUEST)?;
    let next_root = Path::new(NEXT_ROOT);
    let parent = Dir::open(next_root.parent().expect("it is below /run"))?;
    parent.make_dir(next_root.file_name().expect("it has a name"), 0o755)?;
    match assemble(device, next_root) {
        Ok(report) => Ok(Some(report.deployment)),
        Err(error) => {
            let record = Record::new(context.now, Event::FallBack)
                .with("reason", format!("no soft reboot: {}", whole_message(&error)));
            history::append(device.store.dir(), &record)?;
            Err(error)
        }
    }
}

/// Puts together what boots next at `next_root`, an empty directory, as the boot stage does,
/// and makes the boot stage's report that of the running system. Spends a try.
pub fn assemble(device: &Device, next_root: &Path) -> Result<BootReport> {
    let report_path = device.places.boot_report.as_deref().ok_or(Error::NotRunning)?;
    let run_path = report_path.parent().unwrap_or(Path::new("/"));
    let run = Dir::open(run_path)?;
    let work = run_path.join(WORK);
    run.make_dir(WORK, 0o755)?;
    let machine = Machine {
        // Nobody is asked, and the kernel's command line is that of another boot.
        input: work.clone(),
        consoles: Vec::new(),
        screens: Vec::new(),
        log_level: None,
        command_line: CommandLine::parse(b"varve.menu=never"),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    };
    let mounted = |source| Error::from(LiveError::Mount { source });
    let physical = Dir::open(&device.places.physical_root)?;
    bind_detached(physical.fd(), Path::new(""), Access::ReadWrite, Reach::Alone)
        .and_then(|bind| bind.attach(CWD, next_root))
        .map_err(mounted)?;
    let report = match varve_early::run(next_root, &work, &machine, Instant::now()) {
        Ok(Outcome::Booted(booted)) => booted.report,
        Ok(Outcome::NoVarve) => {
            let _ = unmount_lazily(next_root);
            return Err(Error::NothingGood);
        }
        Err(error) => {
            let _ = unmount_lazily(next_root);
            return Err(Error::Boot(error));
        }
    };
    let placed = place(run_path, &work, next_root);
    for name in ["physical", "memory"] {
        // Copies of them are where they belong by now; the second is there only sometimes.
        let _ = unmount_lazily(&work.join(name));
    }
    if let Err(error) = placed {
        // Whatever is there must not be taken for a root.
        while unmount_lazily(next_root).is_ok() {}
        return Err(mounted(error));
    }
    become_present(&run, report_path, report).map_err(Error::from)
}

/// The root alone at its place, and its `/run` as it will be.
fn place(run_path: &Path, work: &Path, next_root: &Path) -> Result<(), MountError> {
    let root = copy_detached(CWD, next_root)?;
    // The new root, and the physical one that the boot stage found there.
    unmount_lazily(next_root)?;
    unmount_lazily(next_root)?;
    root.attach(CWD, next_root)?;
    // What is mounted there from now on is this root's alone.
    make_private(next_root)?;
    let (all, name) = (run_path.parent().unwrap_or(run_path), run_path.file_name());
    bind_detached(CWD, all, Access::ReadWrite, Reach::Alone)?
        .attach(CWD, &next_root.join("run"))?;
    let there: PathBuf = next_root.join("run").join(name.unwrap_or_default());
    let device = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.dev());
    for name in ["physical", "memory"] {
        // Memory is mounted where changes go there.
        if device(&work.join(name)) != device(work) {
            copy_detached(CWD, &work.join(name))?.attach(CWD, &there.join(name))?;
        }
    }
    Ok(())
}

/// From here on what runs is the new one: whoever asks now is told so.
fn become_present(
    run: &Dir,
    report_path: &Path,
    report: BootReport,
) -> Result<BootReport, SysError> {
    let report = BootReport { soft_reboot: true, ..report };
    run.remove_all("boot-complete")?;
    Live::forget(run)?;
    let name = report_path.file_name().unwrap_or_default();
    run.remove_all(name)?;
    run.create_file(name, 0o644)?.write_all(report.to_text().as_bytes())?;
    // By name: were the disk still mounted below it, nothing of that may go.
    let work = run.open_dir(WORK)?;
    work.unlink(name)?;
    work.rmdir("physical")?;
    work.rmdir("memory")?;
    run.rmdir(WORK)?;
    Ok(report)
}
