//! Deltas between two releases that see inside compressed files.

mod address;
mod apply;
mod blob;
mod codec;
mod coder;
#[cfg(feature = "make")]
mod container;
mod file;
mod index;
#[cfg(feature = "make")]
mod make;
mod manifest;
mod source;

pub use apply::{Applied, ApplyError, Delta, Left, Limits, Offer, Sink, header};
pub use file::{FileError, Header, MAGIC};
pub use source::{Contents, SourceError};
#[cfg(feature = "make")]
pub use container::Limits as ContainerLimits;
#[cfg(feature = "make")]
pub use make::{GroupReport, MakeError, MakeLimits, Report, make};
