//! The selection on the disk: reading it, mending it, and the one function that replaces
//! it.

use varve_format::DeploymentName;
use varve_format::selection::{MAX_TEXT, Selection};
use varve_rootfs::{Deployment, Store};
use varve_sys::{SysError, durable};

const FILE: &str = "selection";

/// Why there is no selection to go by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// There is none: nothing was ever promoted, or it was deleted.
    Missing,
    /// It cannot be understood; why.
    Damaged(String),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("the selection is missing"),
            Self::Damaged(why) => write!(f, "the selection is damaged: {why}"),
        }
    }
}

/// Reads the selection.
///
/// # Errors
/// The disk; a selection that is missing or damaged is an answer, not an error.
pub fn read(store: &Store) -> Result<Result<Selection, Problem>, SysError> {
    let Some(bytes) = store.boot().read_opt(FILE, MAX_TEXT)? else {
        return Ok(Err(Problem::Missing));
    };
    let damaged = |error| Problem::Damaged(varve_sys::whole_message(&error));
    Ok(Selection::parse(&bytes).map_err(damaged))
}

/// What stands for a selection that cannot be read: what booted (or the newest that is
/// known to be good), with the next newest good one to fall back to. The same that the
/// boot stage boots without a selection. None when nothing here is good.
pub fn stand_in(deployments: &[Deployment], booted: Option<&DeploymentName>) -> Option<Selection> {
    let mut good: Vec<_> = deployments.iter().filter(|deployment| deployment.confirmed).collect();
    good.sort_by_key(|deployment| std::cmp::Reverse(deployment.record.number));
    let latest = booted.or(good.first().map(|deployment| deployment.name()))?.clone();
    let previous = good.iter().find(|deployment| *deployment.name() != latest);
    let previous = previous.map(|deployment| deployment.name().clone());
    Some(Selection { generation: 0, latest, previous, tries: None })
}

/// Replaces the selection: the commit point of promote, confirm and roll back. After a
/// power cut the old one stands or the new one, whole.
pub fn commit(store: &Store, selection: &Selection) -> Result<(), SysError> {
    durable::replace_file(store.boot(), FILE, selection.to_text().as_bytes(), 0o644)
}
