//! What can go wrong on the publisher's side.

use std::path::PathBuf;

use varve_format::ReleaseName;
use varve_sys::SysError;

use crate::keys::Role;

/// What this crate's functions give.
pub type Result<T> = std::result::Result<T, PublishError>;

/// Why a repository could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// There is a repository already.
    #[error("{} is a repository already", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// There is no repository.
    #[error("{} is not a repository: it has no metadata/1.root.json", path.display())]
    NotARepository {
        /// The directory.
        path: PathBuf,
    },
    /// Another process is changing it.
    #[error("{} is being changed by another process", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A key file that cannot be used.
    #[error("the key {} cannot be used: {reason}", path.display())]
    Key {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Not enough keys to sign a role.
    #[error("the {role} role needs signatures of {threshold} of its keys; {have} of them are in {}", path.display())]
    MissingKeys {
        /// The role.
        role: Role,
        /// How many keys must sign.
        threshold: u64,
        /// How many are there.
        have: u64,
        /// Where keys were looked for.
        path: PathBuf,
    },
    /// A threshold that no number of keys can meet.
    #[error("the {role} role would need {threshold} signatures of {keys} keys")]
    Threshold {
        /// The role.
        role: Role,
        /// How many must sign.
        threshold: u32,
        /// How many keys there would be.
        keys: u32,
    },
    /// A document of the metadata that does not verify.
    #[error("metadata/{file} is not valid: {reason}")]
    Metadata {
        /// Its name.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// Signing failed.
    #[error("cannot sign the {role} metadata: {reason}")]
    Sign {
        /// The role.
        role: Role,
        /// What the library says.
        reason: String,
    },
    /// No such release.
    #[error("there is no release {name}")]
    NoSuchRelease {
        /// The name asked for.
        name: ReleaseName,
    },
    /// Nothing built under this name.
    #[error("no release {name} was built: there is no pending/{name}.json")]
    NotBuilt {
        /// The name asked for.
        name: ReleaseName,
    },
    /// A published release is never changed.
    #[error(
        "a release {name} is published already, and a published release never changes: build it under another name"
    )]
    Published {
        /// Its name.
        name: ReleaseName,
    },
    /// A sequence that is not the newest of its channel.
    #[error(
        "sequence {asked} is not above {newest}, the newest of the channel {channel}: no device would take it"
    )]
    Sequence {
        /// What was asked for.
        asked: u64,
        /// The channel's newest.
        newest: u64,
        /// The channel.
        channel: String,
    },
    /// A file of a release that is missing or is not what its record says.
    #[error("{path}: {reason}")]
    Stored {
        /// Its path below the repository.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A delta that cannot be made, or that does not do what it should.
    #[error("the delta from {from} to {to} is not usable: {reason}")]
    Delta {
        /// The release it starts from.
        from: ReleaseName,
        /// The release it leads to.
        to: ReleaseName,
        /// What is wrong.
        reason: String,
    },
    /// The settings of the repository.
    #[error("repository.toml is not valid: {reason}")]
    Settings {
        /// What is wrong, with the line.
        reason: String,
    },
    /// Something of a release that cannot be read, or is not what was recorded.
    #[error(transparent)]
    Repo(#[from] varve_build::repo::RepoError),
    /// The disk.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The work was asked to stop.
    #[error(transparent)]
    Cancelled(#[from] varve_sys::task::Cancelled),
}
