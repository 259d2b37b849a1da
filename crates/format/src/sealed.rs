//! Small files with a checksum: a comment for people, TOML with its format's number, and
//! in the last line the digest of all lines before. What a disk did to one is seen.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::id::Sha256Digest;

/// Why a sealed file was refused.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// Not UTF-8, or without a checksum in its last line.
    #[error("it is cut off or not text")]
    CutOff,
    /// The checksum does not fit.
    #[error("its checksum does not fit its text")]
    Checksum,
    /// A format that this version does not know.
    #[error("it has format {found}; this version reads format {known}")]
    Format {
        /// What it says.
        found: u32,
        /// What is read here.
        known: u32,
    },
    /// Not of this shape.
    #[error("it is not of the expected form")]
    Toml(#[from] toml::de::Error),
    /// It counts a layer that it does not name.
    #[error("it speaks of a layer that it does not name")]
    Place,
}

#[derive(Serialize)]
struct Body<T> {
    format: u32,
    #[serde(flatten)]
    value: T,
}

/// Reads a sealed file of `format`.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8], format: u32) -> Result<T, SealedError> {
    let text = std::str::from_utf8(bytes).map_err(|_| SealedError::CutOff)?;
    let at = text.rfind("checksum = ").ok_or(SealedError::CutOff)?;
    let (body, last) = text.split_at(at);
    if last != checksum_line(body) {
        return Err(SealedError::Checksum);
    }
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format: found } = toml::from_str(body)?;
    if found != format {
        return Err(SealedError::Format { found, known: format });
    }
    // Without that line, so that an unknown field is found by the type itself.
    Ok(toml::from_str(&body.replacen(&format!("format = {format}\n"), "", 1))?)
}

/// Writes one; `about` is the comment, one line without its `#`.
pub(crate) fn write<T: Serialize>(about: &str, format: u32, value: &T) -> String {
    let body = toml::to_string(&Body { format, value }).expect("plain data");
    let body = format!("# {about}\n{body}");
    let checksum = checksum_line(&body);
    body + &checksum
}

fn checksum_line(body: &str) -> String {
    format!("checksum = \"{}\"\n", Sha256Digest::of(body.as_bytes()))
}

/// A record's text with its digest behind it, in a comment: a reader that does not know of
/// it reads the record all the same.
pub(crate) fn with_comment(body: String) -> String {
    let line = checksum_line(&body);
    body + "# " + &line
}

/// Whether the digest in the comment of the last line fits. A text without one is taken: it
/// is of an earlier version, or a person wrote it and took the line out.
pub(crate) fn comment_fits(text: &str) -> bool {
    match text.rfind("\n# checksum = ") {
        Some(at) => text[at + 3..] == checksum_line(&text[..=at]),
        None => true,
    }
}
