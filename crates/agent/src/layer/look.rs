//! Looking at the own layers: which there are, what is in one, what it changes.

use std::os::unix::ffi::OsStrExt;

use jiff::Timestamp;
use serde::Serialize;
use varve_format::deployment::{LayerKind, ReleaseRef};
use varve_format::layer_file::LayerKey;
use varve_format::{DeploymentName, LayerName, TreePath};
use varve_rootfs::resolve::Resolver;
use varve_rootfs::space::Cost;
use varve_rootfs::view;
use varve_sys::{Dir, Stat};

use super::{base, find};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::observe::Observed;

/// Where a layer is in the stack that boots next.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "place", rename_all = "kebab-case")]
pub enum Place {
    /// It is mounted.
    On,
    /// It has its place and is left out.
    Off {
        /// Why, in words; empty: its user switched it off.
        why: String,
    },
    /// It belongs to the release and is always there.
    Release,
    /// It is on the disk and in no place of that stack.
    Elsewhere {
        /// Its user removed it: it goes once no deployment names it.
        removed: bool,
    },
}

/// One layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerStatus {
    /// Its name.
    pub name: LayerName,
    /// What its user calls it; may be empty.
    pub title: String,
    /// What it is.
    pub kind: LayerKind,
    /// When it was made, by the device's clock.
    pub created: Timestamp,
    /// How it came about; may be empty.
    pub made_by: String,
    /// Who signed it, for one that was imported.
    pub signed_by: Option<LayerKey>,
    /// The release it was made on, or shows.
    pub release: Option<ReleaseRef>,
    /// Where it is in the stack that boots next.
    #[serde(flatten)]
    pub place: Place,
    /// What it takes on the disk.
    pub cost: Cost,
    /// The deployments that name it.
    pub deployments: Vec<DeploymentName>,
}

/// All layers: those of the stack that boots next, newest first, then the others.
pub fn list(device: &Device) -> Result<Vec<LayerStatus>> {
    let observed = Observed::look(device)?;
    let base = base(&observed)?;
    let costs = varve_rootfs::space::costs(&device.store)?;
    let records = device.store.layers()?.items;
    let mut found = Vec::new();
    for record in records {
        let name = &record.name;
        let own = base.record.own.iter().position(|own| own.layer == *name);
        let stack = base.record.stack.layers().iter().position(|layer| layer == name);
        let (order, place) = match (own, stack) {
            (Some(at), _) => (
                at,
                match &base.record.own[at] {
                    own if own.on => Place::On,
                    own => Place::Off { why: own.why.clone() },
                },
            ),
            (None, Some(at)) => (1000 + at, Place::Release),
            (None, None) => {
                (2000, Place::Elsewhere { removed: device.store.is_layer_removed(name)? })
            }
        };
        let names = |d: &&varve_rootfs::Deployment| d.record.parts().any(|part| part == name);
        let deployments = observed.deployments.iter().filter(names);
        let status = LayerStatus {
            deployments: deployments.map(|d| d.name().clone()).collect(),
            cost: costs.parts.get(name).copied().unwrap_or_default(),
            created: Timestamp::from_second(record.created).unwrap_or(Timestamp::UNIX_EPOCH),
            name: record.name,
            title: record.title,
            kind: record.kind,
            made_by: record.made_by,
            signed_by: record.signed_by,
            release: record.release,
            place,
        };
        found.push((order, status));
    }
    found.sort_by(|a, b| (a.0, &b.1.created).cmp(&(b.0, &a.1.created)));
    Ok(found.into_iter().map(|(_, status)| status).collect())
}

/// One own layer.
pub fn show(device: &Device, wanted: &str) -> Result<LayerStatus> {
    let name = find(device, wanted)?.name;
    let found = list(device)?.into_iter().find(|status| status.name == name);
    found.ok_or_else(|| super::LayerError::NoLayer { name: wanted.to_owned() }.into())
}

/// What a layer does at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Nothing was there.
    Added,
    /// Something else was there.
    Replaced,
    /// A directory's owner, mode or attributes.
    Attributes,
    /// It is hidden.
    Removed,
    /// A directory is replaced, with all that was in it.
    Emptied,
}

/// One path of a layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DiffEntry {
    /// Where.
    pub path: TreePath,
    /// What.
    pub what: What,
}

/// What a layer changes of the stack below it (of the release, if it is in no place).
pub fn diff(device: &Device, wanted: &str) -> Result<Vec<DiffEntry>> {
    let name = find(device, wanted)?.name;
    let observed = Observed::look(device)?;
    let mut below = base(&observed)?.record.clone();
    if let Some(at) = below.own.iter().position(|own| own.layer == name) {
        below.own.drain(..=at);
    } else {
        below.own.clear();
    }
    let mut work =
        Work { below: Resolver::new(device.store.root_dirs(&below)?), found: Vec::new() };
    work.directory(&device.store.layer_tree(&name)?, &TreePath::root())?;
    Ok(work.found)
}

struct Work {
    below: Resolver,
    found: Vec<DiffEntry>,
}

impl Work {
    fn directory(&mut self, dir: &Dir, at: &TreePath) -> Result<(), Error> {
        for entry in dir.names()? {
            let Ok(path) = at.join(entry.name.as_bytes()) else { continue };
            let stat = dir.stat(&entry.name)?;
            let was = self.below.look(&path)?;
            if view::is_whiteout(dir, &entry.name, &stat)? {
                if was.is_some() {
                    self.found.push(DiffEntry { path, what: What::Removed });
                }
                continue;
            }
            let opaque = stat.is_dir() && view::is_opaque(dir, &entry.name)?;
            let what = match was {
                None => Some(What::Added),
                Some(_) if opaque => Some(What::Emptied),
                Some(was) if stat.is_dir() && was.is_dir() => {
                    (rights(&was) != rights(&stat)).then_some(What::Attributes)
                }
                Some(_) => Some(What::Replaced),
            };
            self.found.extend(what.map(|what| DiffEntry { path: path.clone(), what }));
            if stat.is_dir() {
                self.directory(&dir.open_dir(&entry.name)?, &path)?;
            }
        }
        Ok(())
    }
}

fn rights(stat: &Stat) -> (u32, u32, u32) {
    (stat.mode, stat.uid, stat.gid)
}
