//! See ARCHITECTURE.md.

#![forbid(unsafe_code)]

pub mod crash;
pub mod faulty;
pub mod nginx;
pub mod relay;
pub mod tree;
pub mod vm;
