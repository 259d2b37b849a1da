//! See ARCHITECTURE.md.

#![forbid(unsafe_code)]

pub mod crash;
pub mod tree;
pub mod vm;
