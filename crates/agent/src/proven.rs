//! For how long the latest deployment has worked: noted at each boot that is found good,
//! at shutdown, and whenever somebody asks whether layers may be folded.
//!
//! ```text
//! confirm --after-boot   boots + 1, the time so far      -.
//! finalize               the time so far                  |-> deployments/<name>/proven
//! merge                  the time so far                 -'
//! ```
//!
//! Only of the latest, when it runs whole and is confirmed: a boot with layers off, or of
//! another deployment, says nothing about it.

use varve_format::proven::{Moment, Proven};

use crate::device::{Device, Writer};
use crate::error::Result;
use crate::observe::Observed;

/// Notes it, durably; none where it is not the latest, confirmed and whole that runs.
/// `good`: this boot was found good just now.
pub fn note(device: &Device, _writer: &Writer, now: &Moment, good: bool) -> Result<Option<Proven>> {
    let observed = Observed::look(device)?;
    let Some(boot) = &observed.boot else { return Ok(None) };
    let Ok(selection) = &observed.selection else { return Ok(None) };
    let latest = &selection.latest;
    let confirmed = observed.deployment(latest).is_some_and(|latest| latest.confirmed);
    if boot.deployment != *latest || boot.stripped > 0 || selection.tries.is_some() || !confirmed {
        return Ok(None);
    }
    let before = device.store.proven(latest)?;
    // Every boot begins the count of a deployment that has none, also one that was
    // confirmed by an older varve.
    let proven = before.clone().unwrap_or_default().note(now, good || before.is_none());
    device.store.set_proven(latest, &proven)?;
    Ok(Some(proven))
}
