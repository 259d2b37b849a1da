//! Layers taken off: what the list shows, a try at the next boot, and keeping what works.
//!
//! ```text
//! menu()      the list, as at the boot menu
//! off_once()  boot/probe: the next boot leaves them out, once
//! keep()      what runs without them  -->  a new deployment with them off, on trial
//! ```
//!
//! Nothing is deleted here: layers that are off stay with the deployment that has them,
//! and `collect` frees them once nothing names that one.

use serde::Serialize;
use varve_boot::menu::{Entry, Menu, Place};
use varve_format::deployment::{DeploymentRecord, LayerKind, OwnLayer, Stack, StateMode};
use varve_format::probe::{AskedBy, MAX_TEXT, PROBE, Probe};
use varve_format::{DeploymentName, LayerName};
use varve_rootfs::own::{Restack, restack};
use varve_rootfs::{Deployment, Store};
use varve_sys::{SysError, durable};

use crate::announce::{self, Sign};
use crate::bisect;
use crate::device::{Device, Writer};
use crate::error::{Error, Result};
use crate::history::{Event, Record};
use crate::observe::Observed;
use crate::upgrade::{self, Context};

/// Why layers were not taken off.
#[derive(Debug, thiserror::Error)]
pub enum StripError {
    /// Nothing was left out of this boot, so there is nothing to keep.
    #[error("no layer was left out of this boot")]
    NothingOff,
    /// The deployment has nothing that can be taken off.
    #[error("{deployment} is a base alone: nothing can be taken off")]
    OnlyBase {
        /// Which.
        deployment: DeploymentName,
    },
    /// An update is to go for good, and no deployment here is the system below it.
    #[error("no deployment here is {deployment} without {off}")]
    NoSuchSystem {
        /// Which.
        deployment: DeploymentName,
        /// The updates, as a list.
        off: String,
    },
    /// There is no search.
    #[error("no search is under way")]
    NoSearch,
    /// The search has not found anything that could be switched off.
    #[error("the search has found no layer to switch off")]
    NotFound,
    /// There is nothing to say good or bad about.
    #[error("the search waits for a reboot: nothing is to be judged now")]
    NotRunning,
    /// The file of the search or of the probe cannot be read.
    #[error("boot/{file} cannot be used: {why}")]
    Damaged {
        /// Its name.
        file: &'static str,
        /// Why.
        why: String,
    },
}

/// The layers of a root that can be taken off, newest first: all but the last.
pub fn removable(record: &DeploymentRecord) -> Vec<LayerName> {
    let layers = record.stack.layers();
    let below = &layers[..layers.len().saturating_sub(1)];
    record.own_on().chain(below).cloned().collect()
}

/// The list, with what the next boot leaves out (or this one left out) off.
pub fn menu(device: &Device, observed: &Observed) -> Result<Menu> {
    let current = observed.effective_selection().ok_or(Error::NothingGood)?;
    let name = observed.booted().unwrap_or(&current.latest);
    let deployment =
        observed.deployment(name).ok_or_else(|| Error::NoDeployment { name: name.clone() })?;
    let record = &deployment.record;
    let probe = read_probe(&device.store)?.filter(|probe| probe.deployment == record.name);
    let waits = probe.as_ref().filter(|probe| probe.tries > 0);
    let here = observed.boot.as_ref().map_or(&[][..], |boot| &boot.off);
    let off = waits.map_or(here, |probe| &probe.off);
    let removable = removable(record);
    let base = match &record.stack {
        Stack::Overlay { layers } => layers.last().cloned(),
        Stack::HardLink { tree } => Some(tree.clone()),
    };
    let entry = |name: &LayerName| {
        let layer = device.store.layer(name).ok();
        let layer = layer.as_ref();
        Entry {
            name: name.clone(),
            title: layer.map_or(String::new(), |layer| layer.title.clone()),
            kind: layer.map_or(LayerKind::Base, |layer| layer.kind),
            created: layer.map_or(record.created, |layer| layer.created),
            size: layer.and_then(|layer| layer.size),
            removable: removable.contains(name),
            off: off.contains(name) && removable.contains(name),
        }
    };
    let entries = removable.iter().chain(&base).map(entry).collect();
    let mut menu = Menu::new(Place::Running, record.name.clone(), entries);
    menu.why = vec![match (here.len(), waits) {
        (_, Some(probe)) => format!("The next boot is without {}.", list(&probe.off)),
        (0, None) => format!("{} runs, with all its layers.", record.name),
        (_, None) => format!("{} runs without {}: keep it by --keep.", record.name, list(here)),
    }];
    let shared = record.state.iter().filter(|state| state.mode != StateMode::Versioned);
    menu.shared = shared.map(|state| state.path.to_string()).collect();
    Ok(menu)
}

/// Names joined for people.
pub fn list(names: &[LayerName]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The next boot leaves these out, once; an empty list: nothing is. Ends a search.
pub fn off_once(
    device: &Device,
    _writer: &Writer,
    deployment: &DeploymentName,
    off: Vec<LayerName>,
    context: &Context<'_>,
) -> Result<()> {
    bisect::remove(&device.store)?;
    // By this the probe that is written is known from one that stood here.
    forget_probe(&device.store)?;
    if off.is_empty() {
        return Ok(());
    }
    let record = Record::new(context.now, Event::Strip)
        .with("deployment", deployment)
        .with("off", list(&off))
        .with("kept", false);
    let sign = Sign::Probing { deployment: deployment.clone(), off: off.clone() };
    let probe = Probe { deployment: deployment.clone(), off, by: AskedBy::Strip, tries: 1 };
    let text = probe.to_text();
    announce::told(&device.store, record, sign, |_| {
        Ok(durable::replace_file(device.store.boot(), PROBE, text.as_bytes(), 0o644)?)
    })
}

/// What was kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kept {
    /// What boots from now on, on trial.
    pub deployment: DeploymentName,
    /// The one that has the layers still.
    pub from: DeploymentName,
    /// What is off.
    pub off: Vec<LayerName>,
    /// Whether this very system was here and known to be good already.
    pub was_here: bool,
    /// Nothing was changed.
    pub dry_run: bool,
}

/// Keeps what runs: the layers that were left out of this boot are off from now on.
pub fn keep(
    device: &Device,
    writer: &Writer,
    dry_run: bool,
    context: &Context<'_>,
) -> Result<Kept> {
    let observed = Observed::look(device)?;
    let boot = observed.boot.clone().ok_or(Error::NotRunning)?;
    if boot.off.is_empty() {
        return Err(StripError::NothingOff.into());
    }
    let (from, off) = (&boot.deployment, boot.off.clone());
    switch_off(device, writer, &observed, from, off, dry_run, context)
}

/// Makes a deployment like `from` with these layers off, and promotes it. `from` and its
/// layers stay. An update goes off only where the system below it is a deployment here.
pub fn switch_off(
    device: &Device,
    writer: &Writer,
    observed: &Observed,
    from: &DeploymentName,
    off: Vec<LayerName>,
    dry_run: bool,
    context: &Context<'_>,
) -> Result<Kept> {
    let old =
        observed.deployment(from).ok_or_else(|| Error::NoDeployment { name: from.clone() })?;
    let base = system_without(observed, old, &off)?;
    let is_off = |own: &OwnLayer| match off.contains(&own.layer) {
        true => OwnLayer { on: false, why: "taken off".to_owned(), ..own.clone() },
        false => own.clone(),
    };
    let own: Vec<OwnLayer> = old.record.own.iter().map(is_off).collect();
    // What lies there already needs no second record.
    let same = base.name() != old.name() && own == base.record.own;
    // A cut came between the promotion and the end of this.
    let again = observed.latest().filter(|latest| {
        let like = (&latest.record.stack, &latest.record.own) == (&base.record.stack, &own);
        like && !latest.confirmed && latest.name() != old.name()
    });
    let here = if same { Some(base) } else { again };
    let name = match here {
        Some(here) => here.name().clone(),
        None => device.store.free_deployment_name(&format!("{from}.stripped"))?,
    };
    let was_here = same && base.confirmed;
    let kept = Kept { deployment: name.clone(), from: from.clone(), off, was_here, dry_run };
    if dry_run {
        return Ok(kept);
    }
    let off = &kept.off;
    let new = match here {
        Some(here) => here.clone(),
        None => {
            let change = Restack {
                base,
                name,
                created: context.now.as_second(),
                own,
                state: old.record.state.clone(),
                fresh_root: false,
                title: format!("without {}", list(off)),
            };
            let new = restack(&device.store, &change, None)?;
            upgrade::carry(&device.store, observed, &new)?;
            new
        }
    };
    let tries = (!new.confirmed).then_some(device.config.tries);
    let record = Record::new(context.now, Event::Strip)
        .with("deployment", new.name())
        .with("from", from)
        .with("off", list(off))
        .with("kept", true);
    upgrade::promote(&device.store, writer, observed, &new, tries, record)?;
    // Until here the boot stage goes on leaving them out: a cut changes nothing of that.
    bisect::remove(&device.store)?;
    forget_probe(&device.store)?;
    Ok(kept)
}

/// The deployment whose stack is what stays: the same one, if only own layers go.
fn system_without<'a>(
    observed: &'a Observed,
    old: &'a Deployment,
    off: &[LayerName],
) -> Result<&'a Deployment> {
    let layers = old.record.stack.layers();
    let stays: Vec<&LayerName> = layers.iter().filter(|name| !off.contains(name)).collect();
    if stays.len() == layers.len() {
        return Ok(old);
    }
    let same = |other: &&Deployment| other.record.stack.layers().iter().eq(stays.iter().copied());
    observed.deployments.iter().rev().find(same).ok_or_else(|| {
        let gone: Vec<_> = layers.iter().filter(|name| off.contains(name)).cloned().collect();
        StripError::NoSuchSystem { deployment: old.name().clone(), off: list(&gone) }.into()
    })
}

/// The probe that waits, or the last that was taken.
pub fn read_probe(store: &Store) -> Result<Option<Probe>> {
    let Some(bytes) = store.boot().read_opt(PROBE, MAX_TEXT)? else { return Ok(None) };
    let damaged =
        |error| StripError::Damaged { file: PROBE, why: varve_sys::whole_message(&error) };
    Ok(Some(Probe::parse(&bytes).map_err(damaged)?))
}

/// Takes the probe away, or the memory of the last.
pub fn forget_probe(store: &Store) -> Result<(), SysError> {
    remove(store, PROBE)
}

pub(crate) fn remove(store: &Store, file: &str) -> Result<(), SysError> {
    match store.boot().unlink(file) {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.and_then(|()| durable::sync_directory(store.boot())),
    }
}
