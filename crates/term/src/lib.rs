//! What both command lines share: exit codes, sizes for people, tables, progress, and
//! output that a closed pipe does not upset.

#![forbid(unsafe_code)]

pub mod exit;
pub mod human;
pub mod out;
pub mod progress;
pub mod table;

pub use exit::Exit;
pub use out::Form;
pub use progress::Shown;
pub use table::Columns;
