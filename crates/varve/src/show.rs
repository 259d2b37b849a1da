//! Answers for people. Pure: data in, text out, so that snapshots can hold them.

pub(crate) mod apply;
pub(crate) mod keep;
pub(crate) mod layer;
pub(crate) mod lifecycle;
pub(crate) mod strip;
pub(crate) mod tryout;
pub(crate) mod upgrade;
