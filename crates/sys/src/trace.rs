//! What is done to the disk, told to whoever asks: the base of the crash tests.
//!
//! Every change that this crate makes passes through `emit`. A test installs a
//! listener, runs real code on a real directory, and from the events builds each state
//! that a power cut could have left: what was synced, with or without what was not.
//! Without a listener an event costs one load of an atomic.

use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// One change, after it was made. Paths are those that the directories were opened by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A file, link, device or directory was made.
    Make(PathBuf),
    /// A further name was made for the inode at `from`.
    Link {
        /// An older name.
        from: PathBuf,
        /// The new name.
        to: PathBuf,
    },
    /// Bytes or metadata of an inode changed.
    Change(PathBuf),
    /// A name moved; what stood at `to` lost that name.
    Rename {
        /// From.
        from: PathBuf,
        /// To.
        to: PathBuf,
    },
    /// Two names changed places.
    Exchange {
        /// One.
        one: PathBuf,
        /// The other.
        other: PathBuf,
    },
    /// A name went away.
    Remove(PathBuf),
    /// The bytes and metadata of this file are durable.
    SyncFile(PathBuf),
    /// The names in this directory are durable.
    SyncDirectory(PathBuf),
    /// Everything on the file system that holds this path is durable.
    SyncFileSystem(PathBuf),
}

type Listener = Box<dyn Fn(&Event) + Send + Sync>;

static LISTENING: AtomicBool = AtomicBool::new(false);
static LISTENER: RwLock<Option<Listener>> = RwLock::new(None);

/// Sends every event of this process to `listener`, in place of the one before.
pub fn listen(listener: impl Fn(&Event) + Send + Sync + 'static) {
    *LISTENER.write().expect("no listener panics") = Some(Box::new(listener));
    LISTENING.store(true, Ordering::SeqCst);
}

/// Ends the listening.
pub fn silence() {
    LISTENING.store(false, Ordering::SeqCst);
    *LISTENER.write().expect("no listener panics") = None;
}

pub(crate) fn emit(event: impl FnOnce() -> Event) {
    if LISTENING.load(Ordering::Relaxed)
        && let Some(listener) = &*LISTENER.read().expect("no listener panics")
    {
        listener(&event());
    }
}

pub(crate) fn make(path: &Path) {
    emit(|| Event::Make(path.to_owned()));
}

pub(crate) fn change(path: &Path) {
    emit(|| Event::Change(path.to_owned()));
}
