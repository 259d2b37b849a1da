//! What the bytes are: every name, digest and record that Varve writes or reads.
//!
//! Nothing here does I/O, reads a clock or looks at the environment: parsers take
//! bytes and give typed values or an error that says what was expected. All of it is
//! fuzzed, because all of it may come from a hostile mirror, stick or disk.
//!
//! ```text
//! publisher                                   device
//!   tree -> manifest ---- release record --->  manifest -> deployment record -> selection
//!        -> pack index --^  (signed by TUF)       ^-- layer record
//! ```
//!
//! | module | the bytes |
//! | --- | --- |
//! | [`id`] | digests and names |
//! | [`verity`] | a content's identity: its fs-verity digest |
//! | [`path`] | a path inside a tree, always relative, never climbing |
//! | [`tree`] | what a tree holds: entries and their metadata |
//! | [`manifest`] | the canonical text of a tree (composefs-dump(5)) |
//! | [`change`] | what one manifest changes over another |
//! | [`pack`] | the index of a pack: frames and contents |
//! | [`release`] | the release record that TUF signs |
//! | [`delta`] | the deltas that are offered to a release |
//! | [`deployment`] | the device's records of deployments and layers |
//! | [`layer_file`] | a layer as one signed file |
//! | [`selection`] | the one small file that says what boots |
//! | [`proven`] | how long a deployment has worked |
//! | [`probe`] | what is tried in its place: one stack once, or a search |

#![forbid(unsafe_code)]

pub mod change;
pub mod delta;
pub mod deployment;
mod escape;
pub mod id;
pub mod layer_file;
pub mod manifest;
pub mod pack;
pub mod path;
pub mod probe;
pub mod proven;
pub mod release;
mod sealed;
pub mod selection;
pub mod tree;
pub mod verity;

pub use id::{ContentDigest, DeploymentName, LayerName, ReleaseDigest, ReleaseName, Sha256Digest};
pub use path::TreePath;
pub use sealed::SealedError;
