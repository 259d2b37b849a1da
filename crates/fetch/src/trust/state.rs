//! What the device trusts, in one file.
//!
//! ```text
//! trust/state   { format, newest_time, root, timestamp, snapshot, targets }
//! ```
//!
//! The documents stand in it as text, byte for byte as the publisher signed them. One
//! file, replaced by one rename, so that root, timestamp, snapshot and targets are always
//! of one check: a cut leaves the old trust or the new, never a mixture. It is written
//! only after a whole chain has been verified.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The file's name below `trust/`.
pub(super) const FILE: &str = "state";
/// The longest state that is read, in bytes.
pub(super) const MAX: u64 = 64 << 20;

const FORMAT: u32 = 1;

/// What the device trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// The newest time at which a chain was verified. It is bounded by the expiry of
    /// what was verified, so a clock that once ran ahead cannot shut out later updates.
    pub(super) newest_time: Timestamp,
    /// The newest root document.
    pub(super) root: String,
    /// The newest timestamp document seen, if any.
    pub(super) timestamp: Option<String>,
    /// The newest snapshot document seen, if any.
    pub(super) snapshot: Option<String>,
    /// The newest targets document seen, if any.
    pub(super) targets: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    newest_time: Timestamp,
    root: String,
    timestamp: Option<String>,
    snapshot: Option<String>,
    targets: Option<String>,
}

impl State {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let State { newest_time, root, timestamp, snapshot, targets } = self.clone();
        let stored = Stored { format: FORMAT, newest_time, root, timestamp, snapshot, targets };
        let mut bytes = serde_json::to_vec_pretty(&stored).expect("plain data");
        bytes.push(b'\n');
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let stored: Stored = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if stored.format != FORMAT {
            return Err(format!("format {} is not known", stored.format));
        }
        let Stored { newest_time, root, timestamp, snapshot, targets, .. } = stored;
        Ok(Self { newest_time, root, timestamp, snapshot, targets })
    }
}
