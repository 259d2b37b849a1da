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
//! name may be gone, without a sync of the file its bytes may be gone, or be anything,
//! although its name is there, and either may be there all the same. A rename alone is atomic: one
//! transaction of every journaling file system, durable with either directory.
//! [`Recording::without_sync`] leaves one sync out of the model: a test that still passes
//! then does not guard that sync.

mod image;
mod model;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub use image::{Image, Inode, Node};
use varve_sys::trace::{self, Event, Listening};

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
    /// Names, attributes and lengths had reached the disk; of the bytes that were changed each
    /// piece of 512, by this seed, or what had been in its blocks before.
    Stale(u64),
}

/// One change with what it left behind.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The change.
    pub event: Event,
    /// The inode that it made or changed, as it was right after.
    inode: Option<Inode>,
    /// For a sync of a whole file system: all that is there, if not every change is told of.
    whole: Option<Arc<Image>>,
    /// For a sync: the disk ignores it.
    dropped: bool,
}

/// All changes of a run, from a known state on.
#[derive(Clone, Debug)]
pub struct Recording {
    root: PathBuf,
    initial: Image,
    log: Vec<Logged>,
    /// What was marked, each behind so many events.
    marks: Vec<(usize, String)>,
}

/// A directory for states: in memory where there is such a place, since what is synced
/// there need not reach a disk.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary directory")
}

/// Runs `work` and records every change that it makes below `root` through `varve_sys`.
/// What stands there before counts as durable.
pub fn record<T>(root: &Path, work: impl FnOnce() -> T) -> (Recording, T) {
    let recorder = Recorder::start(root, &[]);
    let result = work();
    (recorder.end(), result)
}

/// What was heard until now.
#[derive(Debug, Default)]
struct Heard {
    log: Vec<Logged>,
    marks: Vec<(usize, String)>,
}

/// A recording that goes on.
#[derive(Debug)]
pub struct Recorder {
    root: PathBuf,
    initial: Image,
    heard: Arc<Mutex<Heard>>,
    _listening: Listening,
}

impl Recorder {
    /// Records what is changed below `root`, which has the paths `also` too. If it has some,
    /// the kernel and other programs change it as well: with each sync of the file system
    /// what they have done is seen.
    pub fn start(root: &Path, also: &[PathBuf]) -> Self {
        let initial = Image::read(root);
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (base, also, sink) = (root.to_owned(), also.to_vec(), Arc::clone(&heard));
        let listening = trace::listen(move |event| {
            let event = under(&base, &also, event);
            let Some(path) = below(&base, &event) else { return };
            let mut heard = sink.lock().expect("no listener panics");
            let inode = path.and_then(|path| Inode::read(&base.join(path)));
            let untold = matches!(event, Event::SyncFileSystem(_)) && !also.is_empty();
            let whole = untold.then(|| Arc::new(Image::read(&base)));
            heard.log.push(Logged { event, inode, whole, dropped: false });
        });
        Self { root: root.to_owned(), initial, heard, _listening: listening }
    }

    /// A handle that marks what is claimed to be done by then.
    pub fn marker(&self) -> impl Fn(String) + Send + Sync + 'static {
        let heard = Arc::clone(&self.heard);
        move |mark| {
            let mut heard = heard.lock().expect("no listener panics");
            let at = heard.log.len();
            heard.marks.push((at, mark));
        }
    }

    /// Ends it.
    pub fn end(self) -> Recording {
        let heard = std::mem::take(&mut *self.heard.lock().expect("no listener panics"));
        Recording { root: self.root, initial: self.initial, log: heard.log, marks: heard.marks }
    }
}

/// The event by the paths below `root` that the same files have below one of `also`.
fn under(root: &Path, also: &[PathBuf], event: &Event) -> Event {
    let path = |path: &PathBuf| {
        let inside = also.iter().find_map(|also| path.strip_prefix(also).ok());
        inside.map_or_else(|| path.clone(), |inside| root.join(inside))
    };
    match event {
        Event::Make(one) => Event::Make(path(one)),
        Event::Change(one) => Event::Change(path(one)),
        Event::Remove(one) => Event::Remove(path(one)),
        Event::SyncFile(one) => Event::SyncFile(path(one)),
        Event::SyncDirectory(one) => Event::SyncDirectory(path(one)),
        Event::SyncFileSystem(one) => Event::SyncFileSystem(path(one)),
        Event::Link { from, to } => Event::Link { from: path(from), to: path(to) },
        Event::Rename { from, to } => Event::Rename { from: path(from), to: path(to) },
        Event::Exchange { one, other } => Event::Exchange { one: path(one), other: path(other) },
    }
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

    /// What was marked, each behind so many events.
    pub fn marks(&self) -> &[(usize, String)] {
        &self.marks
    }

    /// The disk after a power cut behind the first `cut` events.
    pub fn image(&self, cut: usize, survival: Survival) -> Image {
        model::Model::new(&self.root, &self.initial, &self.log[..cut]).image(survival)
    }

    /// Calls `check` with every state worth a look: after each event, with nothing,
    /// everything, names alone, names with blocks that hold anything, and `seeds` random parts of what
    /// was not synced. Equal
    /// states in a row are looked at once. Returns how many were checked.
    pub fn each_state(&self, seeds: u64, mut check: impl FnMut(usize, Survival, &Image)) -> usize {
        let mut kinds = vec![
            Survival::SyncedOnly,
            Survival::Everything,
            Survival::NamesOnly,
            Survival::Stale(0),
        ];
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
