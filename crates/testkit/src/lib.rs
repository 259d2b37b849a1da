//! See ARCHITECTURE.md.

pub mod crash;
pub mod tree;
pub mod vm;
