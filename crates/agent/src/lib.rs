//! The update manager: sees what is, plans what is to be done, does it in steps that can
//! be run again.
//!
//! ```text
//! config ---.
//! observe --+--> plan (pure, printable) --> execute (idempotent) --> history
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`config`] | what the device's owner wants; mistakes with their place |
//! | [`device`] | where a device is, and the right to change it |
//! | [`observe`] | what is |
//! | [`choose`], [`policy`], [`plan`] | pure: which release, may it, what will it take |
//! | [`upgrade`] | fetch to promoted |
//! | [`layer`] | the user's own layers |
//! | [`reset`] | back to what the release has |
//! | [`init`] | the first deployment of a physical root |
//! | [`lifecycle`], [`health`] | confirm, roll back, shutdown |
//! | [`proven`] | how long what runs has worked |
//! | [`metered`] | what NetworkManager says of the link |
//! | [`ballast`] | room for a full disk |
//! | [`merge`], [`collect`], [`fsck`] | what keeps the disk in order |
//! | [`ps`] | what runs from what |
//! | [`inside`], [`tryout`] | commands in a private copy of a system; a deployment tried without a boot |
//! | [`live`], [`soft_reboot`] | another deployment without a boot, or without a new kernel |
//! | [`strip`], [`bisect`] | layers taken off, and the search for the bad one |
//! | [`history`], [`rejected`], [`selection`] | files of its own below `/varve` |
//!
//! Nothing here prints, exits or reads the environment or the clock: the `varve` command
//! is the one caller.

#![forbid(unsafe_code)]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

pub mod announce;
pub mod ballast;
pub mod bisect;
pub mod choose;
pub mod collect;
pub mod config;
pub mod device;
mod error;
pub mod fsck;
pub mod health;
pub mod history;
pub mod init;
pub mod inside;
pub mod layer;
pub mod lifecycle;
pub mod live;
pub mod merge;
pub mod metered;
pub mod method;
pub mod observe;
pub mod plan;
pub mod policy;
pub mod proven;
pub mod ps;
pub mod rejected;
pub mod repair;
pub mod reset;
pub mod selection;
pub mod soft_reboot;
pub mod sources;
pub mod strip;
pub mod tryout;
pub mod upgrade;

pub use config::{Config, ConfigError};
pub use device::{Device, DeviceError, Places, Writer};
pub use error::{Error, Result};
