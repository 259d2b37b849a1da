//! Power cuts, simulated: a directory that keeps what was synced and drops what was not.
//!
//! Real code runs on a real directory while [`record`] listens to every change that
//! `varve_sys` makes. From the recording come the states that a power cut after any
//! event could have left; each is laid out in an empty directory, where the code that
//! recovers runs for real.
//!
//! ```text
//! run on DIR --events--> Recording --cut(k), what survives--> Image --materialise--> DIR'
//! ```
//!
//! The model is harsher than any one file system: without a sync of its directory a
//! name may be gone, without a sync of the file its bytes may be gone although its name
//! is there, and either may be there all the same. A rename alone is atomic: one
//! transaction of every journaling file system, durable with either directory.
//! [`Recording::without_sync`] leaves one sync out of the model: a test that still passes
//! then does not guard that sync.

mod image;
mod model;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub use image::{Image, Inode, Node};
use varve_sys::trace::{self, Event};

/// What a power cut does with what was not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Survival {
    /// All of it is lost.
    SyncedOnly,
    /// All of it had reached the disk.
    Everything,
    /// Names had reached the disk, bytes and attributes of files had not.
    NamesOnly,
    /// Each directory kept a random number of its oldest changes, and each file its
    /// bytes or not, by this seed.
    Some(u64),
}

/// One change with what it left behind.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The change.
    pub event: Event,
    /// The inode that it made or changed, as it was right after.
    inode: Option<Inode>,
    /// For a sync of a whole file system: nothing more is needed.
    dropped: bool,
}

/// All changes of a run, from a known state on.
#[derive(Clone, Debug)]
pub struct Recording {
    root: PathBuf,
    initial: Image,
    log: Vec<Logged>,
}

/// A directory for states: in memory where there is such a place, since what is synced
/// there need not reach a disk.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary directory")
}

/// Runs `work` and records every change that it makes below `root` through `varve_sys`.
/// What stands there before counts as durable. Recordings of a process wait for each other.
pub fn record<T>(root: &Path, work: impl FnOnce() -> T) -> (Recording, T) {
    // Tests of one process may run at once; the listener is the process's.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let initial = Image::read(root);
    let log = Arc::new(Mutex::new(Vec::new()));
    let (base, sink) = (root.to_owned(), Arc::clone(&log));
    trace::listen(move |event| {
        let Some(paths) = below(&base, event) else { return };
        let mut log = sink.lock().expect("no listener panics");
        let inode = paths.and_then(|path| Inode::read(&base.join(path)));
        log.push(Logged { event: event.clone(), inode, dropped: false });
    });
    let result = work();
    trace::silence();
    let log = log.lock().expect("no listener panics").clone();
    (Recording { root: root.to_owned(), initial, log }, result)
}

/// Whether the event lies below the root, and the path whose inode it left behind.
#[allow(clippy::option_option)]
fn below(root: &Path, event: &Event) -> Option<Option<PathBuf>> {
    let inside = |path: &Path| path.strip_prefix(root).ok().map(Path::to_owned);
    match event {
        Event::Make(path) | Event::Change(path) | Event::SyncFile(path) => inside(path).map(Some),
        Event::Link { to, .. } | Event::Rename { to, .. } | Event::Exchange { one: to, .. } => {
            inside(to).map(|_| None)
        }
        Event::Remove(path) | Event::SyncDirectory(path) => inside(path).map(|_| None),
        Event::SyncFileSystem(path) => {
            (path.starts_with(root) || root.starts_with(path)).then_some(None)
        }
    }
}

impl Recording {
    /// How many events there are: a cut is possible after 0 to this many.
    pub fn len(&self) -> usize {
        self.log.len()
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.log.is_empty()
    }

    /// The events, for messages.
    pub fn event(&self, at: usize) -> &Event {
        &self.log[at].event
    }

    /// The places of all syncs in the log.
    pub fn syncs(&self) -> Vec<usize> {
        let is_sync = |logged: &Logged| {
            matches!(
                logged.event,
                Event::SyncFile(_) | Event::SyncDirectory(_) | Event::SyncFileSystem(_)
            )
        };
        (0..self.log.len()).filter(|&at| is_sync(&self.log[at])).collect()
    }

    /// The same run on a disk that ignores the sync at `at`.
    pub fn without_sync(&self, at: usize) -> Self {
        let mut other = self.clone();
        other.log[at].dropped = true;
        other
    }

    /// The disk after a power cut behind the first `cut` events.
    pub fn image(&self, cut: usize, survival: Survival) -> Image {
        model::Model::new(&self.root, &self.initial, &self.log[..cut]).image(survival)
    }

    /// Calls `check` with every state worth a look: after each event, with nothing,
    /// everything, names alone, and `seeds` random parts of what was not synced. Equal
    /// states in a row are looked at once. Returns how many were checked.
    pub fn each_state(&self, seeds: u64, mut check: impl FnMut(usize, Survival, &Image)) -> usize {
        let mut kinds = vec![Survival::SyncedOnly, Survival::Everything, Survival::NamesOnly];
        kinds.extend((0..seeds).map(Survival::Some));
        let mut seen: Vec<Image> = Vec::new();
        let mut checked = 0;
        for cut in 0..=self.log.len() {
            for &survival in &kinds {
                let image = self.image(cut, survival);
                if seen.contains(&image) {
                    continue;
                }
                check(cut, survival, &image);
                checked += 1;
                seen.push(image);
                if seen.len() > 64 {
                    seen.remove(0);
                }
            }
        }
        checked
    }
}
