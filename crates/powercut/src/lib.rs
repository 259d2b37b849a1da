//! Power may go at any moment: the proof, at the level of a disk's blocks.
//!
//! ```text
//! device     a disk that records every write and flush (FUSE file, loop device)
//! server     the process that serves it
//! log        what it recorded
//! states     the disks that a power cut can leave, by name
//! disk       real file systems: made, mounted, checked
//! scenario   what happens on the disk, and what must hold after a cut
//!   primitives   the durable functions themselves
//!   lives        upgrade, trial, roll back, merge ...: on machine and releases
//!   layered      own layers: capture, remove, strip, bisect; reset
//! failing    a disk that gives errors, and is well again
//! run        records once, judges thousands of states, goes into recoveries again
//! kept       a failing state as one file
//! vm         a real Debian whose power is cut, on a lossy disk
//! strict     the crash model of the tests as one more file system
//! faults     the safety steps taken out one by one: each must be noticed
//! ```
//!
//! `docs/powercut.md` tells what is modelled and what is not. Run by
//! `cargo xtask powercut`; needs root, `/dev/fuse` and loop devices.

#![forbid(unsafe_code)]

mod acts;
pub mod device;
pub mod disk;
mod error;
pub mod failing;
#[cfg(feature = "faults")]
pub mod faults;
pub mod kept;
pub mod layered;
pub mod lives;
pub mod log;
pub mod lossy;
pub mod machine;
pub mod primitives;
pub mod releases;
pub mod run;
pub mod scenario;
mod served;
pub mod server;
pub mod states;
mod strict;
mod tape;
mod user;
pub mod vm;

pub use error::{Result, RigError};
