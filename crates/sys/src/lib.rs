//! The kernel's edge. The only crate with `unsafe`, and the only one that changes what
//! is on a disk.
//!
//! ```text
//! Dir ----- open, make, link, rename, remove: relative to a descriptor, nothing followed
//!  |-- NewFile --- bytes, holes, attributes
//!  |-- durable --- the commit points: sync, rename, sync
//!  '-- trace ----- every change as an event, for the crash tests
//! mount, mountinfo, keys, console, cmdline -- what the boot stage needs
//! confine -- a command in a root and namespaces of its own
//! sandbox -- a process that gives up what it does not need
//! passing -- a socket is handed to such a process
//! lock, space, task, uptime -- one writer, room, progress and cancelling
//! ```

pub mod cmdline;
pub mod confine;
pub mod console;
pub mod copy;
mod dir;
pub mod durable;
mod error;
pub mod faults;
mod file;
pub mod keys;
pub mod lock;
mod meta;
pub mod mount;
pub mod mountinfo;
#[cfg(feature = "sandbox")]
pub mod passing;
pub mod priority;
#[cfg(feature = "sandbox")]
pub mod sandbox;
pub mod space;
pub mod task;
pub mod trace;
pub mod uptime;

pub use dir::{Dir, Name, Stat, Walk};
pub use error::{Result, SysError, whole_message};
pub use file::{HOLE_BLOCK, MIN_HOLE, NewFile};
pub use meta::{Attributes, Xattr, Xattrs, file_xattrs};
pub use rustix::fs::FileType;
