//! The update manager: sees what is, plans what is to be done, does it in steps that can
//! be run again.
//!
//! ```text
//! config ---.
//! observe --+--> plan (pure, printable) --> execute (idempotent) --> history
//! ```

#![forbid(unsafe_code)]

pub mod config;
pub mod health;
pub mod history;
pub mod ps;
pub mod rejected;

pub use config::{Config, ConfigError};
