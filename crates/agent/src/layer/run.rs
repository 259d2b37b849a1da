//! A command runs in a private copy of the system that boots next, and what it changed
//! becomes a layer: how a package is installed as its maker means it.
//!
//! ```text
//! /     overlay: staging/<new>/run/upper over own layers and the release, furnished
//!       and with namespaces of its own: crate::inside
//! then: upper --fold--> staging/<new>/layer/tree, less what is no part of a system
//! ```
//!
//! `/etc` and `/var` are as the release and the layers have them, without this device's
//! own changes: so no account and no secret of its user gets into a layer. What the
//! command adds to `/etc` is merged with those changes when the deployment is made, as
//! an upgrade does. A change of dpkg's status becomes an update of it: see [`super::dpkg`].

use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use varve_format::deployment::{LayerKind, OwnLayer};
use varve_format::{LayerName, TreePath};
use varve_rootfs::merge::{self, FoldError, Layer};
use varve_rootfs::mount::{root_paths, source_of};
use varve_rootfs::resolve::Resolver;
use varve_rootfs::view;
use varve_sys::Dir;
use varve_sys::mount::{Overlay, Upper, overlay_detached};
use varve_sys::task::Cancel;

use super::add::update_path;
use super::archive::Budget;
use super::{
    Changed, LayerError, Proposed, base, begin, dpkg, kept, or_abandon, propose, record_of,
};
use crate::device::{Device, Writer};
use crate::error::{Error, Result};
use crate::inside::{self, InsideError, Room};
use crate::observe::Observed;
use crate::upgrade::Context;

/// What a command leaves that is no part of a system: caches, logs, locks, what the next
/// run makes anew.
const NOT_KEPT: [&str; 22] = [
    "dev",
    "proc",
    "run",
    "sys",
    "tmp",
    "etc/ld.so.cache",
    "etc/resolv.conf",
    "root/.bash_history",
    "var/cache/apt",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/cache/ldconfig",
    "var/lib/apt/lists",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/status",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/dpkg/updates",
    "var/log",
    "var/tmp",
    "var/run",
];
/// Holds the reserve beside the writable top.
const RESERVE: &str = "reserve";
/// The longest status of dpkg that is read, in bytes.
const MAX_STATUS: u64 = 64 << 20;

/// Runs `command` and keeps what it changed as the layer `name`. Its output is the
/// caller's; a command that fails leaves nothing.
pub fn run(
    device: &Device,
    writer: &Writer,
    name: &LayerName,
    title: &str,
    command: &[String],
    dry_run: bool,
    context: &Context<'_>,
) -> Result<Changed> {
    let observed = Observed::look(device)?;
    let base = base(&observed)?;
    let draft = begin(device, base, name)?;
    let ran = run_and_fold(device, base, &draft, name, command, context);
    let (draft, ()) = or_abandon(draft, ran)?;
    let made_by = format!("run {}", command.join(" "));
    let record = record_of(name, LayerKind::Local, base, made_by, &draft, context);
    let (draft, mut record) = or_abandon(draft, record)?;
    record.title = title.to_owned();
    let mut own = base.record.own.clone();
    own.insert(0, OwnLayer::on(name.clone()));
    let (state, what) = (kept(base), format!("run {name}"));
    let proposed = Proposed { own, state, fresh_root: false, what, layer: Some((draft, record)) };
    propose(device, writer, &observed, base, proposed, dry_run, context)
}

fn run_and_fold(
    device: &Device,
    base: &varve_rootfs::Deployment,
    draft: &varve_rootfs::own::Draft<'_>,
    name: &LayerName,
    command: &[String],
    context: &Context<'_>,
) -> Result<()> {
    let scratch = draft.scratch()?;
    let layers = || device.store.root_dirs(&base.record);
    let mut system = Resolver::new(layers()?);
    let before = packages(&mut system)?;
    let top = Resolver::new(layers()?);
    let upper = prepare_upper(&scratch, top)?;
    scratch.make_dir("work", 0o700)?;
    scratch.make_dir("root", 0o755)?;

    let inside = Inside {
        varve: device.store.dir(),
        lowers: root_paths(&base.record, 0),
        scratch: scratch.path(),
        status: before.as_ref().filter(|before| before.has_updates).map(|b| b.status.as_str()),
        command,
    };
    let cancel = context.cancel;
    hold_reserve(device, &scratch)?;
    inside::in_private_namespace(|| inside.run(cancel))?;
    scratch.unlink(RESERVE)?;
    cancel.check()?;

    let status = upper_status(&upper)?;
    let folded = vec![Layer { dir: upper, foreign: true }];
    merge::fold(folded, draft.tree(), false, context.progress, context.cancel).map_err(
        |error| match error {
            FoldError::Sys(error) => Error::Sys(error),
            FoldError::Cancelled(error) => error.into(),
            other => LayerError::Capture(other).into(),
        },
    )?;
    for path in NOT_KEPT {
        let path = TreePath::new(path.as_bytes()).expect("a constant");
        let parent = path.parent().unwrap_or_default();
        if let Some(dir) = draft.tree().open_dir_opt(parent.as_path())? {
            dir.remove_all(path.name())?;
        }
    }
    if let (Some(before), Some(after)) = (&before, status) {
        let update = dpkg::difference(&before.status, &after);
        if !update.is_empty() {
            let path = update_path(&mut system, name)?;
            let lib = draft.tree().open_dir("var/lib/dpkg")?;
            let updates = lib.make_dir("updates", 0o755)?;
            updates.create_file(path.name(), 0o644)?.write_all(update.as_bytes())?;
        }
    }
    if is_empty(draft.tree())? {
        return Err(LayerError::NoChange { command: command.join(" ") }.into());
    }
    Ok(draft.drop_scratch()?)
}

/// Takes the reserve's blocks while the command runs: whatever it writes, it meets a full
/// disk before it meets the reserve.
fn hold_reserve(device: &Device, scratch: &Dir) -> Result<()> {
    let reserve = device.config.reserve.0;
    Budget::of(device)?.take(1)?;
    let file = scratch.create_file(RESERVE, 0o600)?;
    match reserve {
        0 => Ok(()),
        _ => Ok(file.allocate(reserve)?),
    }
}

/// Whether there is nothing but directories.
fn is_empty(dir: &Dir) -> Result<bool> {
    for entry in dir.names()? {
        let is_dir = dir.stat(&entry.name)?.is_dir();
        let opaque = is_dir && view::is_opaque(dir, &entry.name)?;
        if !is_dir || opaque || !is_empty(&dir.open_dir(&entry.name)?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What dpkg knows before the command runs.
struct Packages {
    status: String,
    /// Whether layers brought changes that are not in the status itself.
    has_updates: bool,
}

fn packages(system: &mut Resolver) -> Result<Option<Packages>> {
    let mut text = |path: &str| -> Result<Option<String>> {
        let Some(file) = system.open(path.as_bytes())? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read =
            std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_STATUS), &mut bytes);
        read.map_err(LayerError::read(Path::new(path)))?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    };
    let Some(status) = text(dpkg::STATUS)? else { return Ok(None) };
    let updates = TreePath::new(dpkg::UPDATES.as_bytes()).expect("a constant");
    let mut names: Vec<String> = Vec::new();
    for name in system.names(&updates)? {
        names.extend(name.into_string().ok().filter(|name| dpkg::is_update(name)));
    }
    names.sort();
    let mut changes = Vec::new();
    for name in &names {
        let path = format!("{}/{name}", dpkg::UPDATES);
        if let Some(mut file) = system.open(path.as_bytes())? {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut file, &mut bytes)
                .map_err(LayerError::read(Path::new(&path)))?;
            changes.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    let has_updates = !changes.is_empty();
    Ok(Some(Packages { status: dpkg::merged(&status, &changes), has_updates }))
}

/// The status that the command left, if it wrote one.
fn upper_status(upper: &Dir) -> Result<Option<String>> {
    let bytes = upper.read_opt(dpkg::STATUS, MAX_STATUS)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// The writable top: its root has the attributes of the system's.
fn prepare_upper(scratch: &Dir, mut system: Resolver) -> Result<Dir> {
    let upper = scratch.make_dir("upper", 0o755)?;
    if let Some(root) = system.directory(&TreePath::root())? {
        let stat = root.stat(".")?;
        let mut xattrs = root.xattrs(".")?;
        xattrs.retain(|(name, _)| !varve_format::manifest::is_overlay_private(name));
        upper.set_attributes(
            ".",
            &varve_sys::Attributes {
                mode: stat.mode & 0o7777,
                uid: stat.uid,
                gid: stat.gid,
                mtime: stat.mtime,
                xattrs: &xattrs,
            },
        )?;
    }
    Ok(upper)
}

/// What the thread with its own mounts does.
struct Inside<'a> {
    varve: &'a Dir,
    /// Relative to `/varve`.
    lowers: Vec<PathBuf>,
    /// Where upper, work and the mount's place are.
    scratch: &'a Path,
    /// dpkg's status with what layers brought folded in, where they brought something.
    status: Option<&'a str>,
    command: &'a [String],
}

impl Inside<'_> {
    /// On a thread that has its own mounts.
    fn run(&self, cancel: &Cancel) -> Result<()> {
        let scratch = inside::absolute(self.scratch)?;
        let place = scratch.join("root");
        let upper = Upper { upper: scratch.join("upper"), work: scratch.join("work") };
        let varve = inside::reopen(self.varve)?;
        let (base, lowers) = (varve.fd(), &self.lowers[..]);
        let source = source_of(&varve)?;
        let overlay = Overlay { base, lowers, upper: Some(&upper), source: &source };
        overlay_detached(&overlay)
            .and_then(|made| made.mount.attach(CWD, &place))
            .map_err(InsideError::Mount)?;
        let room = Room::furnish(&place)?;
        self.tell_dpkg(room.root())?;
        let mut command = room.command(self.command)?;
        command.env("VARVE_LAYER_RUN", "1");
        let shown = inside::shown(&command);
        let status = inside::run(command, cancel)?;
        if !status.success() {
            let status = status.to_string();
            return Err(LayerError::Command { command: shown, status }.into());
        }
        Ok(())
    }

    /// apt takes waiting updates for an interrupted dpkg: here they are folded in.
    fn tell_dpkg(&self, root: &Dir) -> Result<()> {
        let Some(status) = self.status else { return Ok(()) };
        let lib = root.open_dir("var/lib/dpkg")?;
        lib.remove_all("status")?;
        lib.create_file("status", 0o644)?.write_all(status.as_bytes())?;
        let updates = lib.open_dir("updates")?;
        for entry in updates.names()? {
            if entry.name.to_str().is_some_and(dpkg::is_update) {
                updates.unlink(&entry.name)?;
            }
        }
        Ok(())
    }
}
