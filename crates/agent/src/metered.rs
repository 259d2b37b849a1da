//! Whether the link is metered: what NetworkManager says over D-Bus, where it is there.
//!
//! ```text
//! org.freedesktop.NetworkManager, property Metered (NMMetered in its D-Bus reference)
//!   1 yes   2 no   3 a guess: yes   4 a guess: no   0 not known
//! ```
//!
//! It is asked by `busctl` of systemd, which is on every system that has NetworkManager's
//! service: one question in an upgrade is not worth a D-Bus library in this program.
//! NetworkManager is not started for it, and who does not answer says nothing.

use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// Seconds that it may take to answer.
const PATIENCE: &str = "--timeout=5";
const NAME: &str = "org.freedesktop.NetworkManager";
const OBJECT: &str = "/org/freedesktop/NetworkManager";

/// What the device's owner wants on a metered link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnMetered {
    /// Nothing is fetched.
    #[default]
    Refuse,
    /// What deltas bring is fetched, what would come by packs is not.
    DeltaOnly,
    /// Everything is fetched.
    Allow,
}

/// Whether NetworkManager says, or guesses, that the link is metered; no where it is not
/// there, or does not know. `bus`: the address of the bus; none: the system's.
pub(crate) fn is_metered(bus: Option<&str>) -> bool {
    let mut command = Command::new("busctl");
    match bus {
        Some(address) => command.arg(format!("--address={address}")),
        None => command.arg("--system"),
    };
    command.args([PATIENCE, "--auto-start=no", "call", NAME, OBJECT]);
    command.args(["org.freedesktop.DBus.Properties", "Get", "ss", NAME, "Metered"]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success() && says_yes(&output.stdout))
}

/// Reads busctl's answer: `v u NUMBER`.
fn says_yes(answer: &[u8]) -> bool {
    matches!(answer.trim_ascii(), b"v u 1" | b"v u 3")
}
