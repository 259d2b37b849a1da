//! Deltas between two releases that see inside compressed files.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(feature = "make"),
    allow(dead_code, unused_imports, reason = "what only the making of deltas uses")
)]

mod address;
mod apply;
mod blob;
mod codec;
mod coder;
#[cfg(feature = "make")]
mod container;
mod file;
#[cfg(feature = "make")]
#[doc(hidden)]
pub mod fuzzing;
mod index;
#[cfg(feature = "make")]
mod make;
mod manifest;
mod source;

pub use apply::{
    Applied, ApplyError, Delta, Left, Limits, Offer, Sink, Streams, head_length, header,
};
#[cfg(feature = "make")]
pub use container::Limits as ContainerLimits;
pub use file::{FileError, Header, MAGIC};
#[cfg(feature = "make")]
pub use make::{GroupReport, MakeError, MakeLimits, Memo, Report, make};
pub use source::{Contents, SourceError};
