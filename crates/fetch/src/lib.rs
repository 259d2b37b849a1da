//! The device's side of a repository: what to trust, and how to fetch it.
//!
//! ```text
//! Trust::refresh(sources) -> Metadata -> record -> manifest, pack indexes
//!                                                        |
//!                            contents::plan -> contents::fetch -> incoming/<digest>
//! ```
//!
//! Every byte is bounded in length and checked against a signed digest before it is used.
//! "Checked and refused" and "could not check" are different answers everywhere.
//!
//! | module | holds |
//! | --- | --- |
//! | [`transport`] | one copy of the repository: a directory or an HTTP server |
//! | [`sources`] | several copies in order: retries, fail-over, resumption |
//! | [`trust`] | The Update Framework's client and the durable trust state |
//! | [`metadata`] | verified metadata and the documents that it names |
//! | [`contents`] | contents out of packs into `incoming/` |
//! | [`layer_file`] | a layer that somebody gave: signed, and a source to fetch from |
//! | [`deltas`] | deltas: fetched in grains, applied into `incoming/` |
//! | [`worker`] | where hostile bytes are decoded: processes without rights |
//!
//! Called by the update manager. Nothing here prints, exits or reads the environment.

#![forbid(unsafe_code)]

pub mod contents;
pub mod deltas;
pub mod layer_file;
pub mod metadata;
pub mod sources;
pub mod transport;
pub mod trust;
pub mod worker;

pub use metadata::{Metadata, ReleaseRef, Verified, manifest, pack_index};
pub use sources::{FetchError, Gate, Listener, Notice, Patience, Sources, Traffic};
pub use transport::{DirTransport, HttpOptions, HttpTransport, Proxies, Transport, TransportError};
pub use trust::{Refusal, Trust, TrustError};
pub use worker::{WorkerError, Workers};
