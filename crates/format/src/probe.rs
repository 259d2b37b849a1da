//! What is tried in place of what the selection says: one stack, once (`boot/probe`), or
//! a search for the layer that does harm (`boot/bisect`).
//!
//! ```text
//! # What the next boot tries, once. Written by varve; a person may delete it.
//! format = 1
//! deployment = "debian-13.2"
//! off = ["games", "drivers"]
//! by = "strip"
//! tries = 1
//! checksum = "…"
//!
//! # What varve bisect has found out. Written by varve; a person may delete it.
//! format = 1
//! deployment = "debian-13.2"
//! layers = ["games", "drivers", "debian-13.2"]     # newest first; the base is not searched
//! way = "prefix"
//! judge = "health"
//! agree = 1
//! active = true
//! running = [0, 1]
//!
//! [[answers]]
//! off = [0]
//! verdict = "bad"
//! why = "it did not come up"
//! checksum = "…"
//! ```
//!
//! The checksum is the last line and no part of the TOML before it.
//! Numbers in `off` and `running` count `layers` from 0. A probe that was booted stays
//! with `tries = 0`: it says what was tried last. Both files are replaced whole.

use serde::{Deserialize, Serialize};

use crate::id::{DeploymentName, LayerName};
use crate::sealed::{self, SealedError};

/// The only format that this version writes and reads.
pub const FORMAT: u32 = 1;
/// The longest file that is read, in bytes.
pub const MAX_TEXT: u64 = 1 << 20;
/// The name of a [`Probe`]'s file in `boot/`.
pub const PROBE: &str = "probe";
/// The name of a [`Bisect`]'s file in `boot/`.
pub const BISECT: &str = "bisect";

/// One stack that is tried once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Probe {
    /// Of which deployment.
    pub deployment: DeploymentName,
    /// Its layers that are left out.
    pub off: Vec<LayerName>,
    /// Who asked for it.
    pub by: AskedBy,
    /// How many more boots take it: 1, or 0 once it was booted.
    pub tries: u8,
}

/// Who asked for a probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AskedBy {
    /// Somebody at the boot menu.
    Menu,
    /// `varve strip` in the running system.
    Strip,
}

/// A search under way, or at its end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bisect {
    /// The deployment whose layers are searched.
    pub deployment: DeploymentName,
    /// The layers, newest first; what can never be left out is not among them.
    pub layers: Vec<LayerName>,
    /// How it searches.
    pub way: Way,
    /// Who says whether a boot was good.
    pub judge: Judge,
    /// By so many answers the good ones must outnumber the bad, or the other way, before
    /// they are believed. 1: each is believed at once.
    pub agree: u8,
    /// Whether the boot stage goes on with it.
    pub active: bool,
    /// The layers left out of the probe that was booted and has no answer yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Vec<u16>>,
    /// What is known, in the order in which it was learnt.
    #[serde(default)]
    pub answers: Vec<Answer>,
}

/// How a search goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Layers come off from the top: finds the one whose going makes it work.
    #[default]
    Prefix,
    /// Any set of layers: finds the smallest set that does harm together.
    Subset,
}

/// Who judges a probe that came up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judge {
    /// The device's health checks; without any, that the boot was complete.
    #[default]
    Health,
    /// A person: `varve bisect good`, `bad` or `skip`.
    Person,
}

/// What one probe came to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Answer {
    /// The layers that were left out, by their places, growing.
    pub off: Vec<u16>,
    /// Good or bad.
    pub verdict: Verdict,
    /// Why, in words.
    pub why: String,
}

/// The answer to a probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It works.
    Good,
    /// It does not.
    Bad,
    /// It cannot be said.
    Skip,
}

impl Probe {
    /// Reads the file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, SealedError> {
        sealed::read(bytes, FORMAT)
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let about = "What the next boot tries, once. Written by varve; a person may delete it.";
        sealed::write(about, FORMAT, self)
    }
}

impl Bisect {
    /// Reads the file's bytes. Numbers beyond the layers are refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, SealedError> {
        let bisect: Self = sealed::read(bytes, FORMAT)?;
        let mut numbers = bisect
            .answers
            .iter()
            .flat_map(|answer| &answer.off)
            .chain(bisect.running.iter().flatten());
        if numbers.any(|&number| usize::from(number) >= bisect.layers.len()) {
            return Err(SealedError::Place);
        }
        Ok(bisect)
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let about = "What varve bisect has found out. Written by varve; a person may delete it.";
        sealed::write(about, FORMAT, self)
    }

    /// The names of layers given by their places.
    pub fn names(&self, places: &[u16]) -> Vec<LayerName> {
        places.iter().filter_map(|&at| self.layers.get(usize::from(at)).cloned()).collect()
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Verdict::Good => "good",
            Verdict::Bad => "bad",
            Verdict::Skip => "skipped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bisect() -> Bisect {
        Bisect {
            deployment: "d".parse().unwrap(),
            layers: ["c", "b", "a"].map(|name| name.parse().unwrap()).to_vec(),
            way: Way::Prefix,
            judge: Judge::Health,
            agree: 1,
            active: true,
            answers: vec![Answer {
                off: vec![0],
                verdict: Verdict::Bad,
                why: "it did not come up;\nno \"init\"".to_owned(),
            }],
            running: Some(vec![0, 1]),
        }
    }

    #[test]
    fn both_come_back_and_every_broken_byte_is_seen() {
        let probe = Probe {
            deployment: "d".parse().unwrap(),
            off: vec!["a".parse().unwrap()],
            by: AskedBy::Menu,
            tries: 1,
        };
        let text = probe.to_text();
        assert_eq!(Probe::parse(text.as_bytes()).unwrap(), probe, "{text}");
        let search = bisect();
        let long = search.to_text();
        assert_eq!(Bisect::parse(long.as_bytes()).unwrap(), search, "{long}");
        for (text, probe) in [(&text, true), (&long, false)] {
            for at in 0..text.len() {
                let mut broken = text.clone().into_bytes();
                broken[at] ^= 1;
                let read = if probe {
                    Probe::parse(&broken).is_ok()
                } else {
                    Bisect::parse(&broken).is_ok()
                };
                assert!(!read, "byte {at} of {text}");
            }
        }
        assert!(Bisect::parse(text.as_bytes()).is_err(), "another file's text");
    }

    #[test]
    fn places_beyond_the_layers_are_refused() {
        let wrong = Bisect { running: Some(vec![3]), ..bisect() };
        assert!(matches!(Bisect::parse(wrong.to_text().as_bytes()), Err(SealedError::Place)));
        assert_eq!(bisect().names(&[2, 0]).len(), 2);
    }

    proptest::proptest! {
        /// Any bytes are read or refused.
        #[test]
        fn any_bytes(bytes: Vec<u8>) {
            let _ = Probe::parse(&bytes);
            let _ = Bisect::parse(&bytes);
        }
    }
}
