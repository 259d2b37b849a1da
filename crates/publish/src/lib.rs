//! The publisher's side of a repository: signing, listing, checking, comparing, pruning.
//!
//! ```text
//! varve_build: source -> pending/<name>.json + manifests/ + packs/
//!                          | publish
//!                          v
//!              targets/<sha256>.<name>.json -> N.targets.json -> N.snapshot.json -> timestamp.json
//! ```
//!
//! A library: it never prints, exits or reads the environment. `varve-repo` is the thin
//! command on it. Never linked into a device's program.

#![forbid(unsafe_code)]

mod check;
mod deltas;
mod diff;
mod error;
mod keys;
mod prune;
mod repository;
mod rotate;
mod settings;
mod tuf;

pub use check::{CheckReport, Problem};
pub use deltas::{DEFAULT_DELTAS, MadeDelta};
pub use diff::{Diff, PackageChange, PathChange, PathChangeKind, SizeChange};
pub use error::{PublishError, Result};
pub use keys::{KeyDirs, Role, SigningKey};
pub use prune::{Keep, Prune};
pub use repository::{InitOptions, Published, Repository, RoleOptions, SignedRoleState};
pub use rotate::{RotateOptions, Rotation};
pub use settings::{ExpiryDays, Settings};
