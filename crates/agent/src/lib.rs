//! The update manager: sees what is, plans what is to be done, does it in steps that can
//! be run again.
//!
//! ```text
//! config ---.
//! observe --+--> plan (pure, printable) --> execute (idempotent) --> history
//! ```

#![forbid(unsafe_code)]

pub mod choose;
pub mod config;
pub mod device;
pub mod health;
pub mod history;
pub mod observe;
pub mod policy;
pub mod ps;
pub mod rejected;
pub mod selection;

pub use config::{Config, ConfigError};
pub use device::{Device, DeviceError, Places, Writer};
