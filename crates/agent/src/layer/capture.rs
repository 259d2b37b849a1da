//! What was changed in the running system becomes a layer; then its top is empty.
//!
//! ```text
//! root mode persistent   state/versioned/<booted>/!/upper   -.
//! root mode volatile     <run>/memory/!/upper                |--copy--> layer
//!                                                            '
//! the running system's top stays as it is: it is in use, and what rolls back finds it
//! the new deployment's top: a copy, less all that the new layer shows (reconcile)
//! ```
//!
//! The cost is that of what was changed, twice, not of the system. What is written
//! between the capture and the reboot is carried at shutdown, as always. State paths
//! (`/etc`, `/home`) have tops of their own, follow the deployment by themselves, and are
//! not captured.

use varve_format::LayerName;
use varve_format::deployment::{LayerKind, OwnLayer, ROOT_SLUG, RootMode};
use varve_rootfs::merge;
use varve_sys::Dir;
use varve_sys::task::Unit;

use super::archive::Budget;
use super::{Changed, LayerError, Proposed, base, begin, kept, or_abandon, propose, record_of};
use crate::device::{Device, Writer};
use crate::error::Result;
use crate::observe::Observed;
use crate::upgrade::Context;

/// Freezes the changes in the writable top of what runs (or, on a device that is not
/// running, of what boots next) as the layer `name`, on top of the others.
pub fn capture(
    device: &Device,
    writer: &Writer,
    name: &LayerName,
    title: &str,
    dry_run: bool,
    context: &Context<'_>,
) -> Result<Changed> {
    let observed = Observed::look(device)?;
    let base = base(&observed)?;
    let on = observed.booted().and_then(|name| observed.deployment(name)).unwrap_or(base);
    let upper = upper(device, &observed, on)?;
    // The layer, and at most as much again for the new top.
    let changed = varve_rootfs::space::held(&upper)?;
    Budget::of(device)?.take(changed.bytes.saturating_mul(2))?;
    let draft = begin(device, base, name)?;
    context.progress.begin("capturing", Unit::Paths, None);
    let copied = merge::copy(upper, draft.tree(), context.progress, context.cancel);
    let (draft, _) = or_abandon(draft, copied.map_err(|error| LayerError::Capture(error).into()))?;
    context.progress.end();
    let record = record_of(name, LayerKind::Local, on, "capture".to_owned(), &draft, context);
    let (draft, mut record) = or_abandon(draft, record)?;
    record.title = title.to_owned();
    record.captured_from = Some(on.name().clone());
    let mut own = base.record.own.clone();
    own.insert(0, OwnLayer::on(name.clone()));
    let state = kept(base);
    let what = format!("capture {name}");
    let proposed = Proposed { own, state, fresh_root: false, what, layer: Some((draft, record)) };
    propose(device, writer, &observed, base, proposed, dry_run, context)
}

/// The writable top of the root.
fn upper(device: &Device, observed: &Observed, on: &varve_rootfs::Deployment) -> Result<Dir> {
    let nothing = |why: &str| LayerError::NothingToCapture { why: why.to_owned() };
    let mode = observed.boot.as_ref().map_or(on.record.root_mode, |boot| boot.root_mode);
    let found = match (mode, &device.places.boot_report) {
        (RootMode::Persistent, _) => {
            let path = format!("versioned/{}/{ROOT_SLUG}/upper", on.name());
            device.store.state().open_dir_opt(path)?
        }
        (RootMode::Volatile, Some(report)) if observed.boot.is_some() => {
            let run = report.parent().unwrap_or(report);
            match Dir::open(run.join("memory").join(ROOT_SLUG).join("upper")) {
                Err(error) if error.is_not_found() => None,
                other => Some(other?),
            }
        }
        (RootMode::Volatile, _) => None,
        (RootMode::ReadOnly, _) => {
            return Err(nothing("the root is read-only (root-mode in the configuration)").into());
        }
    };
    let upper = found.ok_or_else(|| nothing("there is no writable top"))?;
    if upper.names()?.is_empty() {
        return Err(nothing("the writable top is empty").into());
    }
    Ok(upper)
}
