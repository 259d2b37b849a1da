//! See ARCHITECTURE.md.

pub mod crash;
pub mod vm;
