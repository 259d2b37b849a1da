//! From a source to a release: directory, tar archive or OCI image layout -> tree ->
//! manifest, pack and release record in a repository directory.
//!
//! ```text
//!  directory --scan--\                     /-- hash, known already? -> nothing to do
//!  tar ------members---> contents, in order
//!  OCI ------layers--/                     \-- new: frames -> compress (n threads) -> pack
//!        \-> entries -> manifest ------------------------------------------------> record
//!
//!  repo/packs/<id>.pack .idx    only what no earlier release holds
//!  repo/manifests/<digest>.zst
//!  repo/pending/<name>.json     written last: with it the build is there, without it not
//! ```
//!
//! The same source gives the same bytes, whatever the clock, the number of threads or
//! the way that it came: a directory and a tar of it have one digest.
//!
//! `varve-repo build` calls [`build`]; `publish` signs what lies in `pending/` and reads
//! contents back through [`repo::ContentReader`].

#![forbid(unsafe_code)]

mod error;
pub mod repo;

use std::io::Read;
use std::path::Path;

use varve_format::ReleaseName;
use varve_format::manifest::Manifest;
use varve_format::release::{PackRef, ReleaseRecord};
use varve_sys::Dir;
use varve_sys::task::{Cancel, Progress};

pub use error::{BuildError, Result};

/// The level of zstd that [`BuildOptions::new`] sets.
pub const DEFAULT_LEVEL: i32 = 9;

/// Where a tree comes from.
pub enum Source {
    /// A directory that holds the tree. Nothing may be mounted below it.
    Directory(Dir),
    /// A tar archive, plain or compressed with gzip or zstd.
    Tar {
        /// Its bytes, from a file or a pipe.
        reader: Box<dyn Read>,
        /// What to call it in messages.
        name: String,
        /// Its length in bytes, for progress, when known.
        size: Option<u64>,
    },
    /// An OCI image layout.
    Oci {
        /// The directory that holds `oci-layout` and `index.json`.
        layout: Dir,
        /// Which image, by its annotation `org.opencontainers.image.ref.name`; needed
        /// only when the layout holds several.
        reference: Option<String>,
    },
}

/// How to build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The release's name.
    pub name: ReleaseName,
    /// Debian's name of the architecture; by default what the tree's dpkg says.
    pub architecture: Option<String>,
    /// One paragraph for people; may be empty.
    pub notes: String,
    /// Level of zstd, 1 to 22.
    pub level: i32,
    /// Threads that compress; 0 for one on each processor. Has no influence on the result.
    pub threads: usize,
}

/// What a build made.
#[derive(Clone, Debug)]
pub struct BuildReport {
    /// The record that now lies in `pending/`.
    pub record: ReleaseRecord,
    /// Bytes of contents that are new in the repository, before compression.
    pub new_bytes: u64,
    /// Contents that are new in the repository.
    pub new_contents: u64,
    /// Bytes of contents that earlier packs hold already.
    pub reused_bytes: u64,
    /// The pack with what is new; none when all was there.
    pub pack: Option<PackRef>,
}

impl Source {
    /// Takes a path for what it is: a directory with a file `oci-layout` in it is an
    /// image layout, any other directory a tree, a file an archive.
    pub fn open(path: &Path) -> Result<Self> {
        let _ = path;
        unimplemented_yet()
    }
}

impl BuildOptions {
    /// Default options.
    pub fn new(name: ReleaseName) -> Self {
        Self { name, architecture: None, notes: String::new(), level: DEFAULT_LEVEL, threads: 0 }
    }
}

fn unimplemented_yet<T>() -> Result<T> {
    Err(BuildError::Worker)
}

/// Builds a release into a repository directory, unsigned: the record goes to
/// `pending/<name>.json`. Whoever builds the same name again before it is published
/// replaces it.
pub fn build(
    source: Source,
    repo: &Dir,
    options: &BuildOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<BuildReport> {
    let _ = (source, repo, options, progress, cancel);
    unimplemented_yet()
}

/// The manifest of a directory's tree.
pub fn scan(dir: &Dir) -> Result<Manifest> {
    let _ = dir;
    unimplemented_yet()
}
