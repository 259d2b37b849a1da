//! The boot stage: chooses a deployment and puts its root together, in the initramfs.
//!
//! ```text
//! initramfs: drivers, the root device mounted at TARGET  (initramfs-tools, dracut)
//!   |
//!   v  varve-boot TARGET
//!   physical   the file system at TARGET is cloned to /run/varve/physical, writable
//!   look       selection, records, command line, keys, consoles
//!   menu       only if somebody asks for it, or the latest failed its trials
//!   decide     varve_boot::decide, pure
//!   spend      a trial's try, durably, before anything is mounted
//!   mount      varve_rootfs::mount: plan, execute, over TARGET
//!   report     /run/varve/boot.toml
//!   |
//!   v
//! initramfs: moves /run, /dev … along, switches to TARGET, starts init
//! ```
//!
//! No download, no copy, no deletion, no repair here: a boot costs milliseconds over a
//! plain one. What cannot be put together is passed over for the next choice; a machine
//! that holds no `/varve` boots plainly.
//!
//! Nothing here prints or reads the environment: `Machine` says where things are, and the
//! answer says what happened. Callers: the `varve-boot` binary, the tests.

#![forbid(unsafe_code)]

mod boot_stage;
mod look;
mod menu;
mod wanted;

pub use boot_stage::{Booted, Outcome, StageError, run};
pub use look::Machine;
