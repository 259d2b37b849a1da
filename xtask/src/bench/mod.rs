//! `cargo xtask bench`.
use crate::project::Result;

pub(crate) fn run(_name: Option<&str>) -> Result {
    Err("not yet".into())
}
