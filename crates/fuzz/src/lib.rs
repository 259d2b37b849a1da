//! Every parser of bytes that somebody else wrote, as a function of bytes: it may refuse
//! them, and must not panic, take more memory than stated, or more than a moment.
//!
//! ```text
//! TARGETS -- fuzz/ (cargo-fuzz, nightly):    new inputs, led by coverage
//!        `-- tests/replay.rs (every build):  fuzz/seeds/TARGET/* and bent copies of them
//! ```
//!
//! What a target finds is kept as a seed, so that every later build tries it.

#![forbid(unsafe_code)]

mod formats;
mod sources;
mod trust;

/// The two releases between which the targets' deltas lead.
pub mod releases {
    pub use crate::formats::{NEW, OLD, release};
}

use std::path::PathBuf;

/// One parser.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its folder of seeds.
    pub name: &'static str,
    /// Gives it these bytes. What it returns is of no interest; what holds between its
    /// results is asserted.
    pub run: fn(&[u8]),
    /// Whether one run takes milliseconds rather than microseconds.
    pub slow: bool,
}

const fn fast(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run, slow: false }
}

const fn slow(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run, slow: true }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    fast("manifest", formats::manifest),
    fast("pack_index", formats::pack_index),
    fast("release_record", formats::release_record),
    fast("deployment_record", formats::deployment_record),
    fast("layer_record", formats::layer_record),
    fast("layer_file", formats::layer_file),
    fast("selection", formats::selection),
    fast("config", formats::config),
    fast("history", formats::history),
    fast("boot_report", formats::boot_report),
    fast("command_line", formats::command_line),
    fast("mountinfo", formats::mountinfo),
    fast("delta_index", formats::delta_index),
    slow("delta_open", formats::delta_open),
    slow("delta_apply", formats::delta_apply),
    slow("container", formats::container),
    slow("delta_frame", formats::delta_frame),
    fast("stored", formats::stored),
    fast("worker_answer", formats::worker_answer),
    fast("rejected", formats::rejected),
    fast("three_way", formats::three_way),
    slow("tar", sources::tar),
    slow("oci", sources::oci),
    slow("tuf", trust::tuf),
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|target| target.name == name).copied()
}

/// Where the seeds are.
pub fn seeds() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds")
}
