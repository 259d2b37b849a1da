//! The act itself: directories of the running system show other layers from one moment to
//! the next, in every mount namespace that shows the system.
//!
//! ```text
//! before     /usr  <- the root overlay, or what an earlier switch mounted
//! attach     /usr  <- new           over the root: one move_mount(2)
//!      or    /usr  <- old, new under it (MOVE_MOUNT_BENEATH), then old is unmounted
//! ```
//!
//! Either way each path leads to the old or to the new file at any moment, never to none.
//! Where namespaces follow the main one (systemd makes services' so), the kernel carries
//! both steps to them. The others are entered one by one.
//!
//! What was mounted below (a state path in /usr, a user's own mount) is copied onto the new
//! mount before it is shown. What holds the old files keeps them until it lets go.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use serde::Serialize;
use varve_format::TreePath;
use varve_rootfs::Store;
use varve_rootfs::mount::{Step, show};
use varve_sys::mount::{
    Detached, MountError, copy_detached, enter_namespace, tmpfs_detached, unmount_lazily,
};
use varve_sys::mountinfo::{MountEntry, parse_mountinfo};
use varve_sys::{Dir, whole_message};

use super::LiveError;
use crate::error::{Error, Result};
use crate::inside::{self, InsideError};
use crate::ps;

/// What is covered in a private namespace while a mount is prepared.
const PLACE: &str = "/tmp";

/// A mount namespace of the machine.
#[derive(Debug)]
pub struct Namespace {
    /// A process in it.
    pub pid: u32,
    file: File,
    mounts: Vec<MountEntry>,
}

/// What became of one directory in one namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// It came from the namespace that this one follows.
    Followed,
    /// Over what the root has.
    Over,
    /// Under what an earlier switch had mounted, which then went.
    Exchanged,
    /// Over what an earlier switch had mounted: this kernel has no MOVE_MOUNT_BENEATH.
    Stacked,
}

/// What became of all.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Switched {
    /// Namespaces that show the new files, by a process in each, and how the last directory
    /// came there.
    pub namespaces: BTreeMap<u32, Way>,
    /// Those that could not be reached, and why: what runs there keeps the old files.
    pub unreached: BTreeMap<u32, String>,
    /// What the longest of the switches took, in microseconds.
    pub microseconds: u64,
    /// What could not be noted of it, in words: it was done all the same.
    pub not_noted: Vec<String>,
}

/// The mount namespaces of the machine, each once: first process 1's. Those whose
/// processes end meanwhile are left out.
pub fn namespaces(proc: &Path) -> Result<Vec<Namespace>> {
    let mut pids: Vec<u32> = std::fs::read_dir(proc)
        .map_err(Error::Proc)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let mut found: BTreeMap<(u64, u64), Namespace> = BTreeMap::new();
    let mut order = Vec::new();
    for pid in pids {
        let dir = proc.join(pid.to_string());
        let Ok(file) = File::open(dir.join("ns/mnt")) else { continue };
        let Ok(meta) = file.metadata() else { continue };
        let id = (meta.dev(), meta.ino());
        let Ok(text) = std::fs::read(dir.join("mountinfo")) else { continue };
        let Ok(mounts) = parse_mountinfo(&text) else { continue };
        if found.insert(id, Namespace { pid, file, mounts }).is_none() {
            order.push(id);
        }
    }
    Ok(order.into_iter().filter_map(|id| found.remove(&id)).collect())
}

impl Namespace {
    /// Whether it has a mount below one of these directories that `main` does not have: its
    /// maker hides or replaces something there, and a switch covers that.
    pub fn has_own_mounts_below(&self, root: &Path, dirs: &[TreePath], main: &Namespace) -> bool {
        let below = |entry: &MountEntry| {
            let inside = |dir: &TreePath| {
                let dir = root.join(dir.as_path());
                entry.mount_point.starts_with(&dir) && entry.mount_point != dir
            };
            dirs.iter().any(inside)
        };
        let in_main =
            |entry: &MountEntry| main.mounts.iter().any(|m| m.mount_point == entry.mount_point);
        self.mounts.iter().any(|entry| below(entry) && !in_main(entry))
    }

    /// The topmost mount at a place.
    pub fn at(&self, place: &Path) -> Option<&MountEntry> {
        self.mounts.iter().rev().find(|entry| entry.mount_point == place)
    }
}

/// Shows `steps` at their places below `root` (`/`, but for tests) in all of `namespaces`;
/// this thread is in the main one.
pub fn switch(
    store: &Store,
    steps: &[Step],
    root: &Path,
    namespaces: &[Namespace],
) -> Result<Switched> {
    // The calling process stands in the main namespace; its other threads may not.
    let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::Proc(errno.into()))?;
    let proc = Dir::from_fd(proc, "/proc");
    let home = identity(root).ok_or_else(|| Error::Proc(std::io::Error::last_os_error()))?;
    let own = File::open("/proc/thread-self/ns/mnt").map_err(Error::Proc)?;
    let own = own.metadata().map(|meta| (meta.dev(), meta.ino())).map_err(Error::Proc)?;
    let mut switched = Switched::default();
    // All of it is there before the first is shown.
    let prepared: Vec<Detached> =
        steps.iter().map(|step| prepare(store, step, root)).collect::<Result<_>>()?;
    let mut done: Vec<Undo<'_>> = Vec::new();
    for (step, prepared) in steps.iter().zip(prepared) {
        let place = root.join(step.target.as_path());
        // Where this thread is comes first: what follows it is then there already.
        let shown = identity_of(&prepared)
            .and_then(|new| attach(&proc, prepared, &place).map(|attached| (new, attached)));
        let (new, attached) = match shown {
            Ok(shown) => shown,
            Err(source) => return Err(take_back(&proc, done, source).into()),
        };
        switched.microseconds = switched.microseconds.max(attached.took.as_micros() as u64);
        let way = attached.way;
        done.push(Undo { namespace: None, place: place.clone(), attached });
        for namespace in namespaces {
            let id = namespace.file.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
            if id == Some(own) {
                switched.namespaces.insert(namespace.pid, way);
                continue;
            }
            let copy = copy_detached(CWD, &place);
            let there = Elsewhere { proc: &proc, namespace, root, home, place: &place, new };
            match copy.and_then(|copy| there.attach(copy)) {
                Ok(None) => {}
                Ok(Some(attached)) => {
                    switched.namespaces.insert(namespace.pid, attached.way);
                    let took = attached.took.as_micros() as u64;
                    switched.microseconds = switched.microseconds.max(took);
                    done.push(Undo { namespace: Some(namespace), place: place.clone(), attached });
                }
                Err(error) => {
                    switched.unreached.insert(namespace.pid, whole_message(&error));
                }
            }
        }
    }
    Ok(switched)
}

/// How a mount came to its place.
#[derive(Debug)]
struct Attached {
    way: Way,
    took: Duration,
    /// What was there and is unmounted now.
    old: Option<Detached>,
}

/// What is taken back when a later directory cannot be shown.
struct Undo<'a> {
    /// None: this thread's.
    namespace: Option<&'a Namespace>,
    place: PathBuf,
    attached: Attached,
}

/// Shows again what was shown before, the last first: a system of two halves is none.
fn take_back(proc: &Dir, done: Vec<Undo<'_>>, source: MountError) -> LiveError {
    let mut left = Vec::new();
    for Undo { namespace, place, attached } in done.into_iter().rev() {
        let at = place.clone();
        let back = move || match (attached.way, attached.old) {
            (Way::Followed, _) => Ok(()),
            (Way::Exchanged, Some(old)) => attach(proc, old, &place).map(drop),
            _ => unmount_lazily(&place),
        };
        let result = match namespace {
            None => back(),
            Some(namespace) => within(namespace, back),
        };
        if let Err(error) = result {
            left.push(format!("{}: {}", at.display(), whole_message(&error)));
        }
    }
    match left.is_empty() {
        true => LiveError::Mount { source },
        false => LiveError::Half { source, left: left.join("; ") },
    }
}

/// Does something on a thread of its own in another namespace.
fn within<T: Send>(
    namespace: &Namespace,
    act: impl FnOnce() -> Result<T, MountError> + Send,
) -> Result<T, MountError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter_namespace(&namespace.file)?;
            act()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What a path leads to, whatever mount it is reached by.
type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn identity_of(mount: &Detached) -> Result<Identity, MountError> {
    let stat = rustix::fs::fstat(mount)
        .map_err(|errno| MountError::Helper { path: PathBuf::new(), source: errno.into() })?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Makes the new mount with all that is mounted below the old directory on it, attached
/// nowhere.
fn prepare(store: &Store, step: &Step, root: &Path) -> Result<Detached> {
    let place = root.join(step.target.as_path());
    let path = inside::absolute(store.dir().path())?;
    inside::in_private_namespace(|| {
        // Opened before anything is covered.
        let physical = path.parent().unwrap_or(&path);
        let store = Store::open(&Dir::open(physical)?)?;
        let own = std::fs::read("/proc/thread-self/mountinfo").map_err(Error::Proc)?;
        let own = parse_mountinfo(&own).map_err(|e| Error::Proc(std::io::Error::other(e)))?;
        let mut points: Vec<PathBuf> = own.into_iter().map(|entry| entry.mount_point).collect();
        points.sort();
        let mut below: Vec<PathBuf> = Vec::new();
        for point in points {
            // What is below one that is copied comes along with it.
            if point.starts_with(&place)
                && point != place
                && !below.iter().any(|other| point.starts_with(other))
            {
                below.push(point);
            }
        }
        let mut copies = Vec::new();
        for point in below {
            let copy = copy_detached(CWD, &point).map_err(InsideError::Mount)?;
            let relative = point.strip_prefix(&place).expect("it starts with it").to_owned();
            copies.push((relative, copy));
        }
        let (mount, _) = show(&store, step).map_err(|source| LiveError::Assemble { source })?;
        if copies.is_empty() {
            return Ok(mount);
        }
        tmpfs_detached(0o700, None)
            .and_then(|tmpfs| tmpfs.attach(CWD, Path::new(PLACE)))
            .map_err(InsideError::Mount)?;
        Dir::open(PLACE)?.mkdir("new", 0o755)?;
        let new = Path::new(PLACE).join("new");
        mount.attach(CWD, &new).map_err(InsideError::Mount)?;
        for (relative, copy) in copies {
            // A release that no longer has the place does not have what was mounted there.
            if new.join(&relative).exists() {
                copy.attach(CWD, &new.join(&relative)).map_err(InsideError::Mount)?;
            }
        }
        Ok(copy_detached(CWD, &new).map_err(InsideError::Mount)?)
    })
}

/// Attaches in this thread's namespace.
fn attach(proc: &Dir, mount: Detached, place: &Path) -> Result<Attached, MountError> {
    let old = match ours_at(proc, place) {
        true => Some(copy_detached(CWD, place)?),
        false => None,
    };
    let begun = Instant::now();
    let attached = |way, old| Attached { way, took: begun.elapsed(), old };
    if old.is_none() {
        mount.attach(CWD, place)?;
        return Ok(attached(Way::Over, None));
    }
    match mount.attach_under(place) {
        Ok(()) => {
            unmount_lazily(place)?;
            Ok(attached(Way::Exchanged, old))
        }
        Err(_) => {
            mount.attach(CWD, place)?;
            Ok(attached(Way::Stacked, None))
        }
    }
}

/// Whether the topmost mount at the place shows layers of ours and nothing else: then it
/// is an earlier switch's, or a service's read-only copy of the root.
fn ours_at(proc: &Dir, place: &Path) -> bool {
    // Of this thread: the process may be in another namespace.
    let process = rustix::process::getpid().as_raw_nonzero();
    let thread = rustix::thread::gettid().as_raw_nonzero();
    let text = proc.read(format!("{process}/task/{thread}/mountinfo"), 64 << 20);
    let Some(mounts) = text.ok().and_then(|text| parse_mountinfo(&text).ok()) else {
        return false;
    };
    let top = mounts.into_iter().rev().find(|entry| entry.mount_point == place);
    top.is_some_and(ps::is_of_layers)
}

/// The same in another namespace.
struct Elsewhere<'a> {
    proc: &'a Dir,
    namespace: &'a Namespace,
    root: &'a Path,
    home: Identity,
    place: &'a Path,
    new: Identity,
}

impl Elsewhere<'_> {
    /// None when that namespace does not show this system.
    fn attach(&self, mount: Detached) -> Result<Option<Attached>, MountError> {
        within(self.namespace, || {
            if identity(self.root) != Some(self.home) {
                return Ok(None);
            }
            if identity(self.place) == Some(self.new) {
                let (way, took) = (Way::Followed, Duration::ZERO);
                return Ok(Some(Attached { way, took, old: None }));
            }
            attach(self.proc, mount, self.place).map(Some)
        })
    }
}
