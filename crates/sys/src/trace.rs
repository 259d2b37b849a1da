//! What is done to the disk, told to whoever asks: the base of the crash tests.
//!
//! Every change that this crate makes passes through `emit`. A test installs a
//! listener, runs real code on a real directory, and from the events builds each state
//! that a power cut could have left: what was synced, with or without what was not.
//! Without a listener an event costs one load of an atomic.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

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
static LISTENERS: RwLock<Vec<(u64, Listener)>> = RwLock::new(Vec::new());
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Somebody who listens, until this is dropped.
#[derive(Debug)]
#[must_use = "the listening ends when it is dropped"]
pub struct Listening(u64);

/// Sends every event of this process to `listener` too.
pub fn listen(listener: impl Fn(&Event) + Send + Sync + 'static) -> Listening {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    LISTENERS.write().expect("no listener panics").push((number, Box::new(listener)));
    LISTENING.store(true, Ordering::SeqCst);
    Listening(number)
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut listeners = LISTENERS.write().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|(number, _)| *number != self.0);
        LISTENING.store(!listeners.is_empty(), Ordering::SeqCst);
    }
}

pub(crate) fn emit(event: impl FnOnce() -> Event) {
    if LISTENING.load(Ordering::Relaxed) {
        let event = event();
        for (_, listener) in &*LISTENERS.read().expect("no listener panics") {
            listener(&event);
        }
    }
}

pub(crate) fn make(path: &Path) {
    emit(|| Event::Make(path.to_owned()));
}

pub(crate) fn change(path: &Path) {
    emit(|| Event::Change(path.to_owned()));
}
