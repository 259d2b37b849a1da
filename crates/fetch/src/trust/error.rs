//! Why a repository's metadata was not accepted: "checked and refused" and "could not
//! check" are different answers, and neither ever reads as "no update".

use std::fmt;

use jiff::Timestamp;

use crate::sources::Attempt;

/// Why there is no verified metadata.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A source answered, and its metadata must not be used.
    #[error("{source_name}: refused: {reason}")]
    Refused {
        /// The source, as the user named it.
        source_name: String,
        /// What is wrong.
        reason: Refusal,
    },
    /// No source could be asked.
    #[error("cannot check the repository{}", list(tried))]
    CouldNotCheck {
        /// Every source and its answer.
        tried: Vec<Attempt>,
    },
    /// The device's own record of what it trusts cannot be used.
    #[error("the device's trust state, {file}, cannot be read: {reason}")]
    State {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The device's own record of what it trusts cannot be read or written.
    #[error("cannot {what} the device's trust state")]
    Save {
        /// `read` or `save`.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: varve_sys::SysError,
    },
    /// The root of trust that was given is not one.
    #[error("the root of trust is not valid: {reason}")]
    NotARoot {
        /// What is wrong with it.
        reason: String,
    },
    /// No place for the files of a check under way.
    #[error("there is no directory for temporary files")]
    Scratch(#[source] std::io::Error),
    /// The user cancelled.
    #[error("cancelled")]
    Cancelled,
}

fn list(tried: &[Attempt]) -> String {
    if tried.is_empty() {
        return ": no source is configured".into();
    }
    tried.iter().map(|Attempt { source, error }| format!(": {source}: {error}")).collect()
}

/// What is wrong with metadata that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Enough signatures, but not by keys that this device trusts for the role.
    BadSignature {
        /// The role that should have signed.
        role: String,
        /// How many signatures are good.
        valid: u64,
        /// How many good ones are needed.
        threshold: u64,
    },
    /// Fewer signatures than the role needs.
    TooFewSignatures {
        /// The role that should have signed.
        role: String,
        /// How many signatures are good.
        valid: u64,
        /// How many good ones are needed.
        threshold: u64,
    },
    /// No longer valid, or the device's clock is ahead.
    Expired {
        /// The role that expired.
        role: String,
        /// When it did.
        at: Timestamp,
        /// What time the device takes it to be: its clock, or the newest time that it
        /// has ever seen, if that is later.
        now: Timestamp,
    },
    /// Older than what this device has seen before.
    OlderThanSeen {
        /// The role that went back.
        role: String,
        /// The version offered.
        offered: u64,
        /// The version seen.
        seen: u64,
    },
    /// Documents that were not published together.
    MixedMetadata {
        /// Which do not fit.
        detail: String,
    },
    /// A document longer than it may be.
    TooLong {
        /// Its path.
        file: String,
        /// The most bytes it may have.
        limit: u64,
    },
    /// A document that is not the one which the signed metadata names.
    WrongDigest {
        /// Its path.
        file: String,
    },
    /// A document that the source does not have.
    Missing {
        /// Its path.
        file: String,
    },
    /// Not metadata at all.
    Malformed {
        /// Which document.
        what: String,
        /// What the parser says.
        reason: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadSignature { role, valid, threshold } => write!(
                f,
                "bad signature: the {role} metadata is not signed by the keys that this device trusts ({valid} good of {threshold} needed)"
            ),
            Self::TooFewSignatures { role, valid, threshold } => write!(
                f,
                "too few signatures: the {role} metadata has {valid} good ones, {threshold} are needed"
            ),
            Self::Expired { role, at, now } => {
                write!(
                    f,
                    "expired: the {role} metadata was valid until {at:.0}, it is {now:.0} now"
                )
            }
            Self::OlderThanSeen { role, offered, seen } => write!(
                f,
                "older than seen: the {role} metadata is version {offered}, this device has seen version {seen}"
            ),
            Self::MixedMetadata { detail } => write!(f, "mixed metadata: {detail}"),
            Self::TooLong { file, limit } => {
                write!(f, "too long: {file} has more than the {limit} bytes that it may have")
            }
            Self::WrongDigest { file } => write!(
                f,
                "wrong digest: {file} is not what the signed metadata names: it was damaged, changed or forged"
            ),
            Self::Missing { file } => write!(f, "missing: there is no {file}"),
            Self::Malformed { what, reason } => {
                write!(f, "malformed: {what} is not valid: {reason}")
            }
        }
    }
}
