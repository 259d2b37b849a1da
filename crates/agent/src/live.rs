//! The running system shows another deployment's files at once: `apply --live`.
//!
//! ```text
//! plan     which directories show other layers -> what speaks against it -> who runs from
//!          files that change (crate::ps, services)
//! apply    switch: in all mount namespaces, with no gap -> run/live.toml
//! ```
//!
//! It is for the time until the next boot, which tries the new deployment as if nothing had
//! been done: neither the selection nor any state is touched. Only whole directories at the
//! root (`/usr`, `/opt`) are moved. State paths stay as they are, `/etc` among them; so what
//! needs another `/etc`, another C library or another kernel's modules is refused, and a
//! soft reboot or a reboot proposed.

mod services;
mod switch;
mod views;

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use varve_format::deployment::RootMode;
use varve_format::{DeploymentName, TreePath};
use varve_rootfs::mount::{AssembleError, Step, directory};
use varve_rootfs::resolve::Resolver;
use varve_rootfs::{Deployment, Store};
use varve_sys::mount::MountError;
use varve_sys::{Dir, whole_message};

pub use services::{Keeper, Service};
pub use switch::{Namespace, Switched, Way, namespaces, switch};

use crate::announce::{self, Sign};
use crate::device::{Device, DeviceError, Writer};
use crate::error::{Error, Result};
use crate::history::{Event, Record};
use crate::observe::Observed;
use crate::ps::{self, How};
use crate::upgrade::Context;
use views::Views;

/// Beside the boot stage's report.
const FILE: &str = "live.toml";
const MAX_FILE: u64 = 1 << 20;
/// At the root, and never a part of what is moved: the kernel's, the machine's, the user's.
const NOT_MOVED: [&str; 9] =
    ["dev", "proc", "sys", "run", "tmp", "mnt", "media", "lost+found", "boot"];
/// Made anew by programs from what is installed; programs find libraries without it.
const MADE_ANEW: [&str; 1] = ["etc/ld.so.cache"];
/// What a change without a reboot leaves as it is.
pub(crate) const NEW_KERNEL: &str = "the kernel; the new one runs only after a reboot";
/// How many paths are named as a reason.
const NAMED: usize = 5;

/// Why the running system was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// It is what runs.
    #[error("{deployment} is what runs")]
    RunsAlready {
        /// Which.
        deployment: DeploymentName,
    },
    /// It is not safe.
    #[error("{deployment} cannot be shown in the running system{}", list(.obstacles))]
    Unsafe {
        /// Which.
        deployment: DeploymentName,
        /// Why not; at least one.
        obstacles: Vec<Obstacle>,
    },
    /// A directory could not be put together. The system is as it was.
    #[error("a directory of it could not be put together")]
    Assemble {
        /// Why.
        source: AssembleError,
    },
    /// A directory could not be shown. The system is as it was.
    #[error("a directory of it could not be shown")]
    Mount {
        /// Why.
        source: MountError,
    },
    /// A directory could not be shown, nor all that was shown before it be taken back.
    #[error(
        "a directory of it could not be shown, and what was shown already stays until a reboot ({left})"
    )]
    Half {
        /// Why the first.
        source: MountError,
        /// What stays, and why.
        left: String,
    },
}

fn list(obstacles: &[Obstacle]) -> String {
    obstacles.iter().map(|obstacle| format!("; {}", obstacle.why)).collect()
}

impl LiveError {
    /// What would do it instead.
    pub fn instead(&self) -> Option<Instead> {
        match self {
            Self::Unsafe { obstacles, .. } => obstacles.iter().map(|found| found.instead).max(),
            _ => None,
        }
    }
}

/// What does what a live change cannot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Instead {
    /// All programs start anew on the running kernel.
    SoftReboot,
    /// The kernel too.
    Reboot,
}

/// What speaks against it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Obstacle {
    /// In words.
    pub why: String,
    /// What does it.
    pub instead: Instead,
}

/// What would be done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// What the running system shows.
    pub from: DeploymentName,
    /// What it would show.
    pub to: DeploymentName,
    /// The directories that change.
    pub directories: Vec<TreePath>,
    /// What speaks against it; none: it is safe.
    pub obstacles: Vec<Obstacle>,
    /// What stays as it is until the next boot, in words.
    pub stays: Vec<String>,
    /// Services that run from files that change.
    pub services: Vec<Service>,
    /// Other processes that do; they keep the old files until they end.
    pub keepers: Vec<Keeper>,
    /// How each directory is put together.
    #[serde(skip)]
    pub steps: Vec<Step>,
}

/// What was live since the boot, as it stands in `/run`: gone with it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Live {
    /// Every deployment that was shown since the boot, the present one last: processes may
    /// hold files of each.
    pub deployments: Vec<DeploymentName>,
}

impl Live {
    /// What was live since this boot; of a file that cannot be read, nothing is known.
    pub fn read(device: &Device) -> Result<Self, DeviceError> {
        match &device.places.boot_report {
            Some(report) => Ok(Self::in_file(&report.with_file_name(FILE))?),
            None => Ok(Self::default()),
        }
    }

    /// What the file at a path says.
    pub(crate) fn in_file(file: &Path) -> Result<Self, varve_sys::SysError> {
        let Some(parent) = file.parent() else { return Ok(Self::default()) };
        let bytes = match Dir::open(parent) {
            Err(error) if error.is_not_found() => return Ok(Self::default()),
            dir => dir?.read_opt(file.file_name().unwrap_or_default(), MAX_FILE)?,
        };
        let text = String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()).into_owned();
        Ok(toml::from_str(&text).unwrap_or_default())
    }

    /// What the running system shows instead of what booted.
    pub fn present(&self) -> Option<&DeploymentName> {
        self.deployments.last()
    }

    /// After a boot without a new kernel nothing of before is live.
    pub(crate) fn forget(run: &Dir) -> Result<(), varve_sys::SysError> {
        run.remove_all(FILE)
    }

    fn write(&self, report: &Path) -> Result<()> {
        let run = Dir::open(report.parent().unwrap_or(Path::new("/")))?;
        let text = toml::to_string(self).expect("names are text");
        run.remove_all(FILE)?;
        Ok(run.create_file(FILE, 0o644)?.write_all(text.as_bytes())?)
    }
}

/// Sees what it would take to show `name` (none: what boots next). Changes nothing.
pub fn plan(device: &Device, name: Option<&DeploymentName>) -> Result<Plan> {
    let observed = Observed::look(device)?;
    let boot = observed.boot.as_ref().ok_or(Error::NotRunning)?;
    let live = Live::read(device)?;
    let from = live.present().unwrap_or(&boot.deployment);
    let from =
        observed.deployment(from).ok_or_else(|| Error::NoDeployment { name: from.clone() })?;
    let to = crate::tryout::chosen(&observed, name)?;
    if to.name() == from.name() {
        return Err(LiveError::RunsAlready { deployment: to.name().clone() }.into());
    }
    let store = &device.store;
    let mut found = Found { obstacles: Vec::new(), stays: Vec::new() };
    if boot.stripped > 0 {
        found.reboot("layers were left out of this boot, so that what runs is no deployment");
    }
    if boot.root_mode == RootMode::Persistent {
        found.soft("the root is writable, and what is written there would be hidden");
    }
    let mut views = Views {
        old: Resolver::new(store.root_dirs(&from.record)?),
        new: Resolver::new(store.root_dirs(&to.record)?),
    };
    let steps = directories(store, from, &to, &mut views, &mut found)?;
    look_at_system(store, from, &to, &mut views, &mut found)?;
    let (services, keepers) = who_runs(device, &observed, &live, &steps, &mut views)?;
    Ok(Plan {
        from: from.name().clone(),
        to: to.name().clone(),
        directories: steps.iter().map(|step| step.target.clone()).collect(),
        obstacles: found.obstacles,
        stays: found.stays,
        services,
        keepers,
        steps,
    })
}

struct Found {
    obstacles: Vec<Obstacle>,
    stays: Vec<String>,
}

impl Found {
    fn soft(&mut self, why: impl Into<String>) {
        self.obstacles.push(Obstacle { why: why.into(), instead: Instead::SoftReboot });
    }

    fn reboot(&mut self, why: impl Into<String>) {
        self.obstacles.push(Obstacle { why: why.into(), instead: Instead::Reboot });
    }
}

/// The directories at the root that other layers show in the new one, but for state.
fn directories(
    store: &Store,
    from: &Deployment,
    to: &Deployment,
    views: &mut Views,
    found: &mut Found,
) -> Result<Vec<Step>> {
    let state: BTreeSet<&TreePath> = [from, to]
        .iter()
        .flat_map(|deployment| &deployment.record.state)
        .map(|state| state.path.tree_path())
        .collect();
    let root = TreePath::root();
    let mut names = views.old.names(&root)?;
    names.extend(views.new.names(&root)?);
    names.sort();
    names.dedup();
    let assemble = |source| Error::from(LiveError::Assemble { source });
    let mut steps = Vec::new();
    for name in names {
        let Ok(path) = root.join(name.as_encoded_bytes()) else { continue };
        if NOT_MOVED.iter().any(|other| name == *other) || state.contains(&path) {
            continue;
        }
        let is_dir = |stat: Option<varve_sys::Stat>| stat.is_some_and(|stat| stat.is_dir());
        if is_dir(views.old.look(&path)?) && is_dir(views.new.look(&path)?) {
            let old = directory(store, &from.record, &path).map_err(assemble)?;
            let new = directory(store, &to.record, &path).map_err(assemble)?;
            if let (Some(old), Some(new)) = (old, new)
                && old.lowers != new.lowers
            {
                steps.push(new);
            }
        } else if views.differ_at(&path)? {
            found.stays.push(format!("{path}: only directories of the root can change"));
        }
    }
    Ok(steps)
}

/// What runs must fit what is shown: the C library in memory, the kernel, the settings.
fn look_at_system(
    store: &Store,
    from: &Deployment,
    to: &Deployment,
    views: &mut Views,
    found: &mut Found,
) -> Result<()> {
    let paths = |paths: &[TreePath]| {
        let shown: Vec<_> = paths.iter().take(NAMED).map(ToString::to_string).collect();
        let more = if paths.len() > NAMED { ", …" } else { "" };
        format!("{}{more}", shown.join(", "))
    };
    let libc = c_library(views)?;
    if !libc.is_empty() {
        found.soft(format!(
            "the C library changes ({}), and programs that run would load parts of both",
            paths(&libc)
        ));
    }
    if let Some(why) = modules_gone(&mut views.old, &mut views.new)? {
        found.reboot(why);
    }
    if from.record.kernel != to.record.kernel {
        found.stays.push(NEW_KERNEL.to_owned());
    }
    let kept = |deployment: &Deployment| -> Vec<_> {
        deployment.record.state.iter().map(|s| (s.path.clone(), s.mode)).collect()
    };
    if kept(from) != kept(to) {
        found.soft("its state is kept in other paths or in other ways");
    }
    let assemble = |source| Error::from(LiveError::Assemble { source });
    for state in &to.record.state {
        let path = state.path.tree_path();
        let old = directory(store, &from.record, path).map_err(assemble)?;
        let new = directory(store, &to.record, path).map_err(assemble)?;
        if old.map(|step| step.lowers) == new.map(|step| step.lowers) {
            continue;
        }
        let differ = views.differences(path, &MADE_ANEW, NAMED + 1)?;
        if differ.is_empty() {
            continue;
        }
        if path.as_bytes() == b"etc" {
            found.soft(format!("the settings in /etc change ({})", paths(&differ)));
        } else {
            found.stays.push(format!("{path}, as the old release has it ({})", paths(&differ)));
        }
    }
    Ok(())
}

/// Why the running kernel cannot go on in the new system, if it cannot.
pub(crate) fn modules_gone(old: &mut Resolver, new: &mut Resolver) -> Result<Option<String>> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let modules = format!("usr/lib/modules/{release}");
    let has = |view: &mut Resolver| view.follow(modules.as_bytes()).map(|found| found.is_some());
    let gone = has(old)? && !has(new)?;
    Ok(gone.then(|| format!("the modules of the running kernel, {release}, are not in it")))
}

/// The files of the C library and its loader that differ.
fn c_library(views: &mut Views) -> Result<Vec<TreePath>> {
    let mut dirs = vec!["usr/lib".to_owned(), "usr/lib64".to_owned(), "lib64".to_owned()];
    for name in views.old.names(&TreePath::new(b"usr/lib").expect("a constant"))? {
        if let Some(name) = name.to_str().filter(|name| name.contains("-linux-")) {
            dirs.push(format!("usr/lib/{name}"));
        }
    }
    let mut differ = Vec::new();
    for dir in dirs {
        let Ok(dir) = TreePath::new(dir.as_bytes()) else { continue };
        for name in views.old.names(&dir)? {
            let text = name.to_string_lossy();
            let of_it = ["libc.so.", "libc-2", "ld-linux", "ld-musl"];
            if of_it.iter().any(|start| text.starts_with(start))
                && let Ok(path) = dir.join(name.as_encoded_bytes())
                && views.differ(path.as_bytes())?
            {
                differ.push(path);
            }
        }
    }
    Ok(differ)
}

/// Who runs from files that change.
fn who_runs(
    device: &Device,
    observed: &Observed,
    live: &Live,
    steps: &[Step],
    views: &mut Views,
) -> Result<(Vec<Service>, Vec<Keeper>)> {
    let proc = Path::new("/proc");
    let (varve, deployments) = (device.store.dir(), &observed.deployments);
    let processes = ps::processes(proc, varve, deployments, observed.booted(), live.present())
        .map_err(Error::Proc)?;
    let targets: Vec<TreePath> = steps.iter().map(|step| step.target.clone()).collect();
    let (mut reasons, mut keepers) = (Vec::new(), Vec::new());
    for process in processes {
        let mut changed = None;
        for held in &process.uses {
            if !matches!(held.how, How::Executable | How::Library) {
                continue;
            }
            let path = held.path.strip_prefix("/").unwrap_or(&held.path);
            let Ok(path) = TreePath::new(path.as_os_str().as_encoded_bytes()) else { continue };
            let moved = targets.iter().any(|target| path.starts_with(target));
            if moved && (held.deleted || views.differ(path.as_bytes())?) {
                changed = Some(path);
                break;
            }
        }
        let Some(path) = changed else { continue };
        match services::unit_of(proc, process.pid) {
            Some(unit) => reasons.push((unit, path.to_string())),
            None => keepers.push(Keeper { pid: process.pid, name: process.name }),
        }
    }
    let namespaces = namespaces(proc)?;
    if let Some((main, others)) = namespaces.split_first() {
        for namespace in others {
            if namespace.has_own_mounts_below(Path::new("/"), &targets, main)
                && let Some(unit) = services::unit_of(proc, namespace.pid)
            {
                reasons.push((unit, "mounts of its own that the change covers".to_owned()));
            }
        }
    }
    keepers.sort();
    Ok((services::gather(reasons), keepers))
}

/// Shows what was planned, below `root` (`/`, but for tests). With obstacles it does nothing.
pub fn apply(
    device: &Device,
    _writer: &Writer,
    plan: &Plan,
    root: &Path,
    context: &Context<'_>,
) -> Result<Switched> {
    if !plan.obstacles.is_empty() {
        let (deployment, obstacles) = (plan.to.clone(), plan.obstacles.clone());
        return Err(LiveError::Unsafe { deployment, obstacles }.into());
    }
    let report = device.places.boot_report.as_ref().ok_or(Error::NotRunning)?;
    let mut live = Live::read(device)?;
    live.deployments.retain(|name| *name != plan.from && *name != plan.to);
    // Noted first: what is about to be in use must not be collected by the next command.
    live.deployments.push(plan.to.clone());
    live.deployments.push(plan.from.clone());
    live.write(report)?;
    let record =
        Record::new(context.now, Event::Live).with("from", &plan.from).with("to", &plan.to);
    let file = report.with_file_name(FILE);
    let sign = Sign::Shown { file, deployment: plan.to.clone() };
    let mut done = None;
    let told = announce::told(&device.store, record, sign, |record| {
        let namespaces = namespaces(Path::new("/proc"))?;
        let mut switched = switch(&device.store, &plan.steps, root, &namespaces)?;
        record.add("microseconds", switched.microseconds);
        live.deployments.retain(|name| *name != plan.to);
        live.deployments.push(plan.to.clone());
        if let Err(error) = live.write(report) {
            switched.not_noted.push(whole_message(&error));
        }
        done = Some(switched);
        Ok::<_, Error>(())
    });
    // Once it is done, nothing that fails afterwards may hide it.
    match (done, told) {
        (Some(mut switched), told) => {
            switched.not_noted.extend(told.err().map(|error| whole_message(&error)));
            Ok(switched)
        }
        (None, told) => Err(told.expect_err("what was not done has failed")),
    }
}
