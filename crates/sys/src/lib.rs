//! See ARCHITECTURE.md.

pub mod cmdline;
pub mod console;
pub mod keys;
pub mod mount;
pub mod mountinfo;
