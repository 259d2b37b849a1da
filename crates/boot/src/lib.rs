//! What boots: the selection's state machine, pure.
//!
//! ```text
//!             promote(B)              boot, one try spent
//!   A confirmed ------> B on trial, 3 tries ------> B on trial, 2 tries --+
//!        ^                     |                        |   ^             | clean
//!        |      roll back      |       confirm          |   +-- refund ---+ shutdown
//!        +---------------------+------------------------+
//!        |                                              v
//!        |   no tries left: A boots (B never by itself)  B confirmed
//!        +----------------------------------------------
//! ```
//!
//! * [`decide`](decide()) answers what to boot now: the boot stage's one question.
//! * [`transition`] has every change of the selection: promote, confirm, roll back,
//!   refund. The caller writes what they give, by one rename.
//! * [`menu`] is the list of layers that a person at the machine takes off one by one;
//!   [`bisect`] finds the one that does harm. What they ask for is a [`Wanted`].
//! * [`report`] is what the boot stage leaves behind for the update manager.
//! * [`kernel`] is the place of boot loaders that give each deployment its own kernel.
//!
//! Nothing here reads a file, a clock or a key: the callers (`varve_early`,
//! `varve_agent`) hand that in, so all of it is tested exhaustively.

#![forbid(unsafe_code)]

pub mod bisect;
pub mod decide;
pub mod kernel;
pub mod menu;
pub mod report;
pub mod transition;

pub use report::BootReport;

pub use decide::{
    Decision, Inputs, OnDisk, PassedOver, Reason, Unusable, Wanted, WhyPassedOver, Wishes, decide,
};
