//! What can go wrong in a build. Each error names the path and what to do.

use std::io;

use varve_format::ReleaseName;
use varve_format::manifest::ManifestError;
use varve_pack::WriteError;
use varve_sys::SysError;
use varve_sys::task::Cancelled;

use crate::repo::RepoError;

/// Why there is no release. The repository is as it was before, but for temporaries
/// that the next build sweeps.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file, directory or descriptor could not be used.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The source could not be read.
    #[error("cannot read {what}")]
    Read {
        /// Which file or archive.
        what: String,
        /// What the kernel or the decoder said.
        source: io::Error,
    },
    /// The source holds something that a release cannot.
    #[error("{path} {why}")]
    Entry {
        /// Its path in the tree, escaped for people.
        path: String,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// An archive that is damaged or not of a form that is read.
    #[error("the archive {archive} {why}")]
    Archive {
        /// Its name, for people.
        archive: String,
        /// What is wrong with it, where, and what to do.
        why: String,
    },
    /// An OCI image layout that is damaged or not of a form that is read.
    #[error("the image layout: {why}")]
    Image {
        /// What is wrong with it and what to do.
        why: String,
    },
    /// The source does not make a tree.
    #[error("the source does not make a tree")]
    Tree(#[from] ManifestError),
    /// The repository could not be read.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// A published release is never changed.
    #[error("a release {name} is published already: give the new one another name")]
    NameTaken {
        /// The name.
        name: ReleaseName,
    },
    /// The manifest could not be compressed.
    #[error("cannot compress the manifest")]
    Compress(#[source] io::Error),
    /// The pack could not be written.
    #[error(transparent)]
    Pack(#[from] WriteError),
    /// Stopped as asked.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// What a build gives.
pub type Result<T> = std::result::Result<T, BuildError>;

impl BuildError {
    pub(crate) fn entry(path: impl ToString, why: impl Into<String>) -> Self {
        Self::Entry { path: path.to_string(), why: why.into() }
    }
}
