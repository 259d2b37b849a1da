//! The layers of the device's user: what he added to the system, taken off one by one
//! until it works, without losing anything.
//!
//! ```text
//! capture  the writable top          -.
//! add      directory, tar, .deb       |--> a layer in staging -.
//! run      a command, what it changed |                         |
//! import   a signed file             -'                         v
//! on, off, move, remove ------------------------> another list of own layers
//!   -> static checks -> a new deployment -> state carried -> promoted on trial
//! ```
//!
//! Whatever is changed is changed for the next boot, tried there, and taken back by
//! `varve rollback` like an upgrade. No layer is ever written to. A layer that no
//! deployment names stays until its user removes it.

mod add;
mod archive;
mod capture;
pub mod carry;
pub mod check;
mod deb;
pub mod dpkg;
pub mod elf;
mod error;
mod export;
mod import;
mod key;
mod look;
mod run;

use serde::Serialize;
use varve_format::deployment::{FORMAT, LayerKind, LayerRecord, OwnLayer, StatePath};
use varve_format::{DeploymentName, LayerName};
use varve_rootfs::Deployment;
use varve_rootfs::own::{self, Draft, Restack};
use varve_rootfs::reconcile::Reconciled;
use varve_sys::Dir;

pub use add::{Added, add};
pub use capture::capture;
pub use deb::Package;
pub use error::LayerError;
pub use export::{Exported, export};
pub use import::{Import, Imported, import};
pub use look::{DiffEntry, LayerStatus, Place, What, diff, list, show};
pub use run::run;

use crate::device::{Device, Writer};
use crate::error::{Error, Result};
use crate::history::{Event, Record};
use crate::observe::Observed;
use crate::upgrade::{self, Context};
use check::SwitchedOff;

/// What a change did, or would do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Changed {
    /// Nothing was changed.
    pub dry_run: bool,
    /// The deployment that the next boot tries; none when nothing was changed.
    pub deployment: Option<DeploymentName>,
    /// The layer that was made, if one was.
    pub layer: Option<LayerName>,
    /// The own layers before, newest first.
    pub before: Vec<OwnLayer>,
    /// The own layers after.
    pub after: Vec<OwnLayer>,
    /// Layers with which the system would not boot: switched off for the trial.
    pub switched_off: Vec<SwitchedOff>,
    /// Files of versioned state that both sides changed.
    pub reconciled: Vec<Reconciled>,
    /// How often it will be tried.
    pub tries: u8,
}

/// A change of the own layers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Mounts a layer; one that is in no stack comes on top.
    On(String),
    /// Leaves a layer out, in its place.
    Off(String),
    /// Puts a layer elsewhere.
    Move(String, To),
    /// Takes a layer out of the stack; it is deleted once no deployment names it.
    Remove(String),
}

/// Where a layer is moved to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum To {
    /// Over all others.
    Top,
    /// Under all other own layers.
    Bottom,
    /// Directly over that one.
    Above(String),
    /// Directly under that one.
    Below(String),
}

/// The deployment that a change starts from: the latest, unless it used up its tries.
pub fn base(observed: &Observed) -> Result<&Deployment> {
    let selection = observed.effective_selection().ok_or(Error::NothingGood)?;
    let failed = selection.tries == Some(0);
    let names = [
        (!failed).then_some(&selection.latest),
        observed.booted(),
        selection.previous.as_ref(),
        Some(&selection.latest),
    ];
    names.into_iter().flatten().find_map(|name| observed.deployment(name)).ok_or(Error::NothingGood)
}

/// The own layers that the next deployment has, whatever release it is of.
pub(crate) fn carried(observed: &Observed) -> Vec<OwnLayer> {
    base(observed).map(|base| base.record.own.clone()).unwrap_or_default()
}

/// Whether two lists mount the same.
pub(crate) fn same_own(a: &[OwnLayer], b: &[OwnLayer]) -> bool {
    let seen = |own: &[OwnLayer]| -> Vec<_> {
        own.iter().map(|own| (own.layer.clone(), own.on)).collect()
    };
    seen(a) == seen(b)
}

/// Switches off, in a deployment that nothing boots yet, what would keep it from booting.
pub(crate) fn bootable(
    device: &Device,
    deployment: Deployment,
) -> Result<(Deployment, Vec<SwitchedOff>)> {
    if deployment.confirmed || deployment.record.own_on().next().is_none() {
        return Ok((deployment, Vec::new()));
    }
    let mut own = deployment.record.own.clone();
    let off = check::switch_off(device, &deployment, &mut own, None)?;
    if off.is_empty() {
        return Ok((deployment, off));
    }
    Ok((device.store.replace_own(&deployment, own)?, off))
}

/// Finds an own layer by its name, or by its title when no other has the same.
pub fn find(device: &Device, wanted: &str) -> Result<LayerRecord> {
    let layers = device.store.layers()?.items;
    let by_name = layers.iter().find(|layer| layer.name.as_str() == wanted);
    let found = match by_name {
        Some(layer) => layer.clone(),
        None => {
            let mut titled = layers.into_iter().filter(|layer| layer.title == wanted);
            match (titled.next(), titled.next()) {
                (Some(layer), None) => layer,
                (Some(_), Some(_)) => {
                    return Err(LayerError::Ambiguous { title: wanted.to_owned() }.into());
                }
                _ => return Err(LayerError::NoLayer { name: wanted.to_owned() }.into()),
            }
        }
    };
    if !found.kind.is_own() {
        return Err(LayerError::NotOwn { name: found.name, kind: found.kind }.into());
    }
    Ok(found)
}

/// Changes the list, without looking at what is in the layers. Pure but for the names.
fn changed(device: &Device, own: &[OwnLayer], change: &Change) -> Result<Vec<OwnLayer>> {
    let mut after = own.to_vec();
    let place = |own: &[OwnLayer], name: &LayerName| {
        let at = own.iter().position(|layer| layer.layer == *name);
        at.ok_or_else(|| Error::from(LayerError::NotInStack { name: name.clone() }))
    };
    match change {
        Change::On(wanted) => {
            let name = find(device, wanted)?.name;
            match place(&after, &name) {
                Ok(at) => after[at] = OwnLayer::on(name),
                Err(_) => after.insert(0, OwnLayer::on(name)),
            }
        }
        Change::Off(wanted) => {
            let name = find(device, wanted)?.name;
            let at = place(&after, &name)?;
            after[at] = OwnLayer { on: false, ..OwnLayer::on(name) };
        }
        Change::Remove(wanted) => {
            let name = find(device, wanted)?.name;
            after.retain(|layer| layer.layer != name);
        }
        Change::Move(wanted, to) => {
            let at = place(&after, &find(device, wanted)?.name)?;
            let layer = after.remove(at);
            let to = match to {
                To::Top => 0,
                To::Bottom => after.len(),
                To::Above(other) => place(&after, &find(device, other)?.name)?,
                To::Below(other) => place(&after, &find(device, other)?.name)? + 1,
            };
            after.insert(to, layer);
        }
    }
    Ok(after)
}

/// Changes which own layers the next boot has, and in which order.
pub fn change(
    device: &Device,
    writer: &Writer,
    change: &Change,
    dry_run: bool,
    context: &Context<'_>,
) -> Result<Changed> {
    let observed = Observed::look(device)?;
    let base = base(&observed)?;
    let own = changed(device, &base.record.own, change)?;
    let (word, wanted) = match change {
        Change::On(name) => ("on", name),
        Change::Off(name) => ("off", name),
        Change::Move(name, _) => ("move", name),
        Change::Remove(name) => ("remove", name),
    };
    let name = find(device, wanted)?.name;
    let removes = matches!(change, Change::Remove(_));
    let same = own == base.record.own;
    if same && !removes {
        return Err(LayerError::NothingChanges.into());
    }
    let what = format!("{word} {name}");
    let proposed = Proposed { own, state: kept(base), fresh_root: false, what, layer: None };
    let result = if same {
        // In no stack: there is nothing to boot anew, and only its mark to set.
        let own = base.record.own.clone();
        Changed {
            dry_run,
            deployment: None,
            layer: None,
            before: own.clone(),
            after: own,
            switched_off: Vec::new(),
            reconciled: Vec::new(),
            tries: 0,
        }
    } else {
        propose(device, writer, &observed, base, proposed, dry_run, context)?
    };
    // After the promotion: a cut before it must not leave a layer that goes and is used.
    if !dry_run {
        device.store.set_layer_removed(&name, removes)?;
    }
    Ok(result)
}

/// Gives a layer another title: what its user reads in lists and menus.
pub fn rename(
    device: &Device,
    _writer: &Writer,
    wanted: &str,
    title: &str,
    dry_run: bool,
) -> Result<LayerRecord> {
    let layer = find(device, wanted)?;
    let printable = !title.is_empty() && !title.chars().any(char::is_control);
    if !printable || title.chars().count() > 60 {
        return Err(LayerError::Title { title: title.to_owned() }.into());
    }
    if !dry_run {
        device.store.set_layer_title(&layer.name, title)?;
    }
    Ok(LayerRecord { title: title.to_owned(), ..layer })
}

/// The state paths of a deployment, none of them to begin anew.
pub(crate) fn kept(base: &Deployment) -> Vec<StatePath> {
    let state = base.record.state.iter().cloned();
    state.map(|path| StatePath { fresh: false, ..path }).collect()
}

/// What is to boot next.
pub(crate) struct Proposed<'a> {
    pub(crate) own: Vec<OwnLayer>,
    pub(crate) state: Vec<StatePath>,
    pub(crate) fresh_root: bool,
    /// For the history and for people: `add games`.
    pub(crate) what: String,
    pub(crate) layer: Option<(Draft<'a>, LayerRecord)>,
}

/// Checks, makes and promotes it. In a dry run it is only checked.
pub(crate) fn propose(
    device: &Device,
    writer: &Writer,
    observed: &Observed,
    base: &Deployment,
    proposed: Proposed<'_>,
    dry_run: bool,
    context: &Context<'_>,
) -> Result<Changed> {
    let Proposed { mut own, state, fresh_root, what, layer } = proposed;
    let (name, new) = match &layer {
        Some((draft, record)) => {
            (draft.deployment().clone(), Some((record.name.clone(), draft.tree())))
        }
        None => (free_name(device, base)?, None),
    };
    let switched_off = check::switch_off(device, base, &mut own, new)?;
    let made = layer.as_ref().map(|(_, record)| record.name.clone());
    let mut changed = Changed {
        dry_run,
        deployment: None,
        layer: made,
        before: base.record.own.clone(),
        after: own.clone(),
        switched_off,
        reconciled: Vec::new(),
        tries: device.config.tries,
    };
    if dry_run {
        if let Some((draft, _)) = layer {
            draft.abandon()?;
        }
        return Ok(changed);
    }
    let created = context.now.as_second();
    let request = Restack { base, name, created, own, state, fresh_root, title: what.clone() };
    let layer = layer.as_ref().map(|(_, record)| record.clone()).zip(layer.map(|(draft, _)| draft));
    let deployment = match layer {
        Some((record, draft)) => own::restack(&device.store, &request, Some((draft, &record)))?,
        None => own::restack(&device.store, &request, None)?,
    };
    changed.reconciled = upgrade::carry(&device.store, observed, &deployment)?;
    let record = Record::new(context.now, Event::Layers)
        .with("what", &what)
        .with("deployment", deployment.name());
    let tries = Some(device.config.tries);
    upgrade::promote(&device.store, writer, observed, &deployment, tries, record)?;
    // What an unfinished upgrade has fetched is still wanted.
    crate::collect::by_policy(device, writer, false, context)?;
    changed.deployment = Some(deployment.name().clone());
    Ok(changed)
}

/// A name for a deployment of the same release with other layers over it, such as
/// `debian-13.2+5`.
pub(crate) fn free_name(device: &Device, base: &Deployment) -> Result<DeploymentName> {
    let release = base.record.release.as_ref().map(|release| release.name.as_str());
    let release = release.unwrap_or(base.name().as_str());
    let wanted = format!("{}+{}", &release[..release.len().min(80)], device.store.next_number()?);
    Ok(device.store.free_deployment_name(&wanted)?)
}

/// The beginning of a new layer: its name is free, and there is a place to make it.
pub(crate) fn begin<'a>(
    device: &'a Device,
    base: &Deployment,
    name: &LayerName,
) -> Result<Draft<'a>> {
    let taken = |dir: &Dir| dir.stat_opt(name).map(|stat| stat.is_some());
    if taken(device.store.layers_dir())? || taken(device.store.trees_dir())? {
        return Err(LayerError::Taken { name: name.clone() }.into());
    }
    Ok(own::draft(&device.store, &free_name(device, base)?)?)
}

/// The record of a layer that was made here on `on`.
pub(crate) fn record_of(
    name: &LayerName,
    kind: LayerKind,
    on: &Deployment,
    made_by: String,
    draft: &Draft<'_>,
    context: &Context<'_>,
) -> Result<LayerRecord> {
    Ok(LayerRecord {
        format: FORMAT,
        name: name.clone(),
        created: context.now.as_second(),
        kind,
        release: on.record.release.clone(),
        title: String::new(),
        made_by,
        captured_from: None,
        signed_by: None,
        size: Some(varve_rootfs::space::held(draft.tree())?.bytes),
    })
}

/// Abandons a draft when what was to fill it failed: the room is given back at once.
pub(crate) fn or_abandon<'a, T>(draft: Draft<'a>, result: Result<T>) -> Result<(Draft<'a>, T)> {
    match result {
        Ok(value) => Ok((draft, value)),
        Err(error) => {
            let _ = draft.abandon();
            Err(error)
        }
    }
}
