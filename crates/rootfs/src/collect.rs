//! What nothing needs any more, and its deletion.
//!
//! ```text
//! deployments kept: the N newest, pinned, selected, booted
//!    their records name layers and trees ---.
//!    mounts name layers and trees ----------+--> the rest goes, record first
//! ```
//!
//! A layer is found in use by the records or by any mount, so the layers that a merge
//! left behind live as long as the system that runs from them. While some deployment's
//! record cannot be read, no layer and no tree goes: it may be that one's.
//!
//! Deleting renames into trash/ first and needs no free space. Freed bytes count an
//! inode only when all of its names go. Caller: the update manager, with its lock held.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::Path;

use varve_format::{ContentDigest, DeploymentName, LayerName};
use varve_sys::mountinfo::MountEntry;
use varve_sys::{Dir, SysError, durable};

use crate::state;
use crate::store::{Store, StoreError};

/// What must stay.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// So many of the newest deployments.
    pub newest: usize,
    /// Deployments that are selected (latest, previous), booted, or wanted otherwise.
    /// Pinned ones stay by themselves.
    pub deployments: BTreeSet<DeploymentName>,
    /// What is mounted now: the layers and trees in it stay.
    pub mounts: Vec<MountEntry>,
    /// Digests of contents in incoming/ that an upgrade still needs; the others go, with all
    /// that is under way. None: all stay.
    pub incoming: Option<BTreeSet<ContentDigest>>,
}

/// What will be deleted, and what that frees.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CollectPlan {
    /// Deployments, oldest first, with their versioned state.
    pub deployments: Vec<DeploymentName>,
    /// Layers that no kept deployment and no mount has.
    pub layers: Vec<LayerName>,
    /// Trees that no kept deployment and no mount has.
    pub trees: Vec<LayerName>,
    /// Names in incoming/.
    pub incoming: Vec<String>,
    /// Bytes of disk that become free.
    pub bytes: u64,
    /// Inodes that become free.
    pub inodes: u64,
    /// Layers and trees that only a mount keeps: gone after a reboot.
    pub held_by_mounts: Vec<LayerName>,
    /// Why layers and trees stay, when a record cannot be read.
    pub blocked_by: Vec<String>,
}

impl CollectPlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.deployments.is_empty()
            && self.layers.is_empty()
            && self.trees.is_empty()
            && self.incoming.is_empty()
    }
}

/// Sees what may go. Writes nothing.
pub fn plan(store: &Store, keep: &Keep) -> Result<CollectPlan, StoreError> {
    let listing = store.deployments()?;
    let mut plan = CollectPlan {
        blocked_by: listing.strange.iter().map(|strange| strange.path.clone()).collect(),
        ..CollectPlan::default()
    };
    let old = listing.items.len().saturating_sub(keep.newest);
    let mut used: BTreeSet<LayerName> = BTreeSet::new();
    for (index, deployment) in listing.items.iter().enumerate() {
        let name = deployment.name();
        if index < old && !deployment.pinned && !keep.deployments.contains(name) {
            plan.deployments.push(name.clone());
            continue;
        }
        used.extend(deployment.record.parts().cloned());
    }
    let mounted = Mounted::new(&keep.mounts);
    let mut layers = Vec::new();
    for layer in store.layers()?.items {
        // What its user made is deleted when its user says so, and not before.
        if !layer.kind.is_own() || store.is_layer_removed(&layer.name)? {
            layers.push(layer.name);
        }
    }
    let trees = store.trees()?.items;
    if plan.blocked_by.is_empty() {
        for (names, going) in [(layers, &mut plan.layers), (trees, &mut plan.trees)] {
            for name in names.into_iter().filter(|name| !used.contains(name)) {
                let list = if mounted.has(&name) { &mut plan.held_by_mounts } else { &mut *going };
                list.push(name);
            }
        }
    }
    if let Some(needed) = &keep.incoming {
        plan.incoming = unneeded_incoming(store, needed)?;
    }
    count(store, &mut plan)?;
    Ok(plan)
}

/// Deletes what the plan says. Each deletion is a step of its own: after a power cut
/// run it again from a new plan.
pub fn execute(store: &Store, plan: &CollectPlan) -> Result<(), SysError> {
    let trash = store.trash();
    // Records first: none ever names a layer that is gone.
    for name in &plan.deployments {
        durable::discard(store.deployments_dir(), name.as_str(), trash)?;
        state::discard(store, name)?;
    }
    for name in &plan.layers {
        durable::discard(store.layers_dir(), name.as_str(), trash)?;
    }
    for name in &plan.trees {
        durable::clear_away(store.trees_dir(), name.as_str(), trash)?;
    }
    for name in &plan.incoming {
        match store.incoming().unlink(name) {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Begins the names of the ranges that were being read when a process ended.
const UNDER_WAY: &str = "under-way";

/// A file in incoming/ that an earlier attempt left and that nobody needs now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leftover {
    /// Its name.
    pub name: String,
    /// Bytes of disk that it takes.
    pub bytes: u64,
    /// When it was written last.
    changed: (i64, u32),
}

/// What earlier attempts left in incoming/ beside what is `needed` (digests of contents,
/// documents and deltas), oldest first. The ranges under way are not among it: a fetch uses
/// their places over and over.
pub fn leftovers(
    store: &Store,
    needed: &BTreeSet<ContentDigest>,
) -> Result<Vec<Leftover>, StoreError> {
    let mut found = Vec::new();
    for name in unneeded_incoming(store, needed)? {
        if name.starts_with(UNDER_WAY) {
            continue;
        }
        if let Some(stat) = store.incoming().stat_opt(&name)? {
            found.push(Leftover { name, bytes: stat.blocks * 512, changed: stat.mtime });
        }
    }
    found.sort_by(|a, b| a.changed.cmp(&b.changed).then_with(|| a.name.cmp(&b.name)));
    Ok(found)
}

/// The deletion of the first of these, so many that `bytes` become free, or of all.
pub fn release(leftovers: Vec<Leftover>, bytes: u64) -> CollectPlan {
    let mut plan = CollectPlan::default();
    for leftover in leftovers {
        if plan.bytes >= bytes {
            break;
        }
        plan.bytes += leftover.bytes;
        plan.inodes += 1;
        plan.incoming.push(leftover.name);
    }
    plan
}

/// Digests in incoming/ (and parts of them, `<digest>.<length>.part`), documents, deltas and
/// the range under way that nobody needs.
/// What has another name is not ours and stays.
fn unneeded_incoming(
    store: &Store,
    needed: &BTreeSet<ContentDigest>,
) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for entry in store.incoming().names()? {
        let Some(name) = entry.name.to_str() else { continue };
        if name.starts_with(UNDER_WAY) {
            names.push(name.to_owned());
            continue;
        }
        let half = [".part", ".document", ".delta"].into_iter();
        let whose = match half.filter_map(|end| name.strip_suffix(end)).next() {
            Some(part) => part.split('.').next().unwrap_or(part),
            None => name,
        };
        let digest = whose.parse::<ContentDigest>();
        if digest.is_ok_and(|digest| !needed.contains(&digest)) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Names of layers and trees in the list of mounts.
struct Mounted<'a> {
    names: BTreeSet<&'a OsStr>,
}

impl<'a> Mounted<'a> {
    /// Each component of each directory that a mount shows or is made of. More than
    /// needed is harmless: it only keeps.
    fn new(mounts: &'a [MountEntry]) -> Self {
        let mut names = BTreeSet::new();
        for mount in mounts {
            names.extend(mount.root.iter());
            if mount.filesystem == "overlay" {
                for option in mount.super_options.split(',') {
                    let (_, value) = option.split_once('=').unwrap_or(("", ""));
                    let dirs = value.split(':').flat_map(|dir| Path::new(dir).iter());
                    names.extend(dirs);
                }
            }
        }
        Self { names }
    }

    fn has(&self, name: &LayerName) -> bool {
        self.names.contains(OsStr::new(name.as_str()))
    }
}

#[derive(Default)]
struct Seen {
    /// For inodes with several names: names that go, names that there are, and bytes.
    shared: HashMap<(u64, u64), (u64, u64, u64)>,
    bytes: u64,
    inodes: u64,
}

fn count(store: &Store, plan: &mut CollectPlan) -> Result<(), StoreError> {
    let mut seen = Seen::default();
    for name in &plan.layers {
        seen.entry(store.layers_dir(), OsStr::new(name.as_str()))?;
    }
    for name in &plan.trees {
        seen.entry(store.trees_dir(), OsStr::new(name.as_str()))?;
    }
    for name in &plan.incoming {
        seen.entry(store.incoming(), OsStr::new(name))?;
    }
    let versioned = store.state().open_dir_opt("versioned")?;
    for name in &plan.deployments {
        seen.entry(store.deployments_dir(), OsStr::new(name.as_str()))?;
        if let Some(versioned) = &versioned {
            seen.entry(versioned, OsStr::new(name.as_str()))?;
        }
    }
    for (going, names, bytes) in seen.shared.values() {
        if going >= names {
            seen.bytes += bytes;
            seen.inodes += 1;
        }
    }
    (plan.bytes, plan.inodes) = (seen.bytes, seen.inodes);
    Ok(())
}

impl Seen {
    fn entry(&mut self, dir: &Dir, name: &OsStr) -> Result<(), SysError> {
        let Some(stat) = dir.stat_opt(name)? else { return Ok(()) };
        let bytes = stat.blocks * 512;
        if stat.is_dir() {
            let below = dir.open_dir(name)?;
            for entry in below.names()? {
                self.entry(&below, &entry.name)?;
            }
        } else if stat.links > 1 {
            let inode = (stat.device, stat.inode);
            self.shared.entry(inode).or_insert((0, stat.links, bytes)).0 += 1;
            return Ok(());
        }
        self.bytes += bytes;
        self.inodes += 1;
        Ok(())
    }
}
