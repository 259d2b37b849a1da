//! The selection: the one small file that says what boots.
//!
//! ```text
//! # What this device boots. Written by varve; a person may read it.
//! format = 1
//! generation = 7
//! latest = "debian-13.2"
//! previous = "debian-13.1"
//! tries = 3
//! checksum = "<sha256 of all lines before>"
//! ```
//!
//! `tries` stands there only while the latest is on trial. The file is replaced whole,
//! by one rename; its checksum finds what a disk did to it.

use serde::{Deserialize, Serialize};

use crate::id::{DeploymentName, Sha256Digest};

/// The only format that this version writes and reads.
pub const FORMAT: u32 = 1;
/// The longest selection that is read, in bytes.
pub const MAX_TEXT: u64 = 4096;

const HEADER: &str = "# What this device boots. Written by varve; a person may read it.\n";

/// What boots.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Selection {
    /// Grows by one with every change.
    pub generation: u64,
    /// The deployment that boots, unless something decides otherwise.
    pub latest: DeploymentName,
    /// The deployment to fall back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<DeploymentName>,
    /// How many more times the latest may be tried; none once it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tries: Option<u8>,
}

/// Why a selection was refused.
#[derive(Debug, thiserror::Error)]
pub enum SelectionError {
    /// Not UTF-8, or without a checksum in its last line.
    #[error("the selection is cut off or not text")]
    CutOff,
    /// The checksum does not fit.
    #[error("the selection's checksum does not fit its text")]
    Checksum,
    /// A format that this version does not know.
    #[error("the selection has format {found}; this version reads format {FORMAT}")]
    Format {
        /// What it says.
        found: u32,
    },
    /// Not of this shape.
    #[error("the selection is not of the expected form")]
    Toml(#[from] toml::de::Error),
}

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    #[serde(flatten)]
    selection: Selection,
}

impl Selection {
    /// Reads the file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, SelectionError> {
        let text = std::str::from_utf8(bytes).map_err(|_| SelectionError::CutOff)?;
        let at = text.rfind("checksum = ").ok_or(SelectionError::CutOff)?;
        let (body, last) = text.split_at(at);
        if last != checksum_line(body) {
            return Err(SelectionError::Checksum);
        }
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = toml::from_str(body)?;
        if format != FORMAT {
            return Err(SelectionError::Format { found: format });
        }
        let body = body.replacen(&format!("format = {FORMAT}\n"), "", 1);
        Ok(toml::from_str::<Selection>(&body)?)
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let file = File { format: FORMAT, selection: self.clone() };
        let body = format!("{HEADER}{}", toml::to_string(&file).expect("plain data"));
        let checksum = checksum_line(&body);
        body + &checksum
    }
}

fn checksum_line(body: &str) -> String {
    format!("checksum = \"{}\"\n", Sha256Digest::of(body.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_and_every_broken_byte_is_seen() {
        let selection = Selection {
            generation: 7,
            latest: "b".parse().unwrap(),
            previous: Some("a".parse().unwrap()),
            tries: Some(3),
        };
        let text = selection.to_text();
        assert_eq!(Selection::parse(text.as_bytes()).unwrap(), selection, "{text}");
        for at in 0..text.len() {
            let mut broken = text.clone().into_bytes();
            broken[at] ^= 1;
            assert!(Selection::parse(&broken).is_err(), "byte {at}");
            assert!(Selection::parse(&text.as_bytes()[..at]).is_err(), "cut at {at}");
        }
        let bare = Selection { previous: None, tries: None, ..selection };
        assert_eq!(Selection::parse(bare.to_text().as_bytes()).unwrap(), bare);
    }
}
