//! Where contents lie on this device: there is no object store, the deployments are it.
//!
//! ```text
//! digest --ContentIndex--> (deployment, path) --Locator--> the layer's directory, a name
//! ```
//!
//! The index holds only digests that somebody asks for, and one manifest at a time is in
//! memory, so its cost grows with what an update changes, not with the system. Callers:
//! layout (what is here), tree (copies), `varve ps` and `fsck` (which layer holds a path).

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;

use varve_format::deployment::Stack;
use varve_format::manifest::Manifest;
use varve_format::tree::Kind;
use varve_format::{ContentDigest, DeploymentName, LayerName, TreePath};
use varve_sys::{Dir, Stat};

use crate::content::Reader;
use crate::layer;
use crate::layout::SourceCheck;
use crate::store::{Deployment, Store, StoreError};
use crate::verify::Difference;
use crate::view::MergedWalk;

/// Finds paths in a deployment, as its mount shows them.
#[derive(Debug)]
pub struct Locator {
    walk: MergedWalk,
    names: Vec<LayerName>,
}

/// Where a path of a deployment lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The layer or tree.
    pub part: LayerName,
    /// What stands there.
    pub stat: Stat,
}

impl Locator {
    /// Opens the layers (or the tree) of a stack.
    pub fn open(store: &Store, stack: &Stack) -> Result<Self, StoreError> {
        let names = match stack {
            Stack::Overlay { layers } => layers.clone(),
            Stack::HardLink { tree } => vec![tree.clone()],
        };
        Ok(Self { walk: MergedWalk::new(store.stack_dirs(stack)?), names })
    }

    /// The layer that a path shows from; none when it does not show.
    pub fn place(&mut self, path: &TreePath) -> Result<Option<Place>, StoreError> {
        let found = self.walk.find_in(path.as_path())?;
        Ok(found.map(|(layer, _, _, stat)| Place { part: self.names[layer].clone(), stat }))
    }

    /// The directory that holds a path, its name there, and its status.
    pub fn find<'p>(
        &mut self,
        path: &'p TreePath,
    ) -> varve_sys::Result<Option<(&Dir, &'p OsStr, Stat)>> {
        let found = self.walk.find_in(path.as_path())?;
        Ok(found.map(|(_, dir, name, stat)| (dir, name, stat)))
    }

    /// Gives the inode at a path one more name; false when nothing shows there.
    pub(crate) fn link(
        &mut self,
        path: &TreePath,
        to: &Dir,
        new: &OsStr,
    ) -> varve_sys::Result<bool> {
        // In a stack of one there is nothing to decide: the link itself tells.
        let linked = match &self.names[..] {
            [_] => match self.walk.dir(path.parent().unwrap_or_default().as_path())? {
                Some(dir) => dir.top().hard_link(path.name(), to, new),
                None => return Ok(false),
            },
            _ => match self.find(path)? {
                Some((dir, name, _)) => dir.hard_link(name, to, new),
                None => return Ok(false),
            },
        };
        match linked {
            Err(error) if error.is_not_found() => Ok(false),
            other => other.map(|()| true),
        }
    }
}

/// A file here that has some content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Which deployment, by its place in [`ContentIndex::deployments`].
    pub deployment: u16,
    /// Where in it.
    pub path: TreePath,
}

/// Which wanted contents the deployments here hold.
#[derive(Debug, Default)]
pub struct ContentIndex {
    deployments: Vec<DeploymentName>,
    origins: HashMap<ContentDigest, Origin>,
}

impl ContentIndex {
    /// Looks for contents in all deployments: the base first, then the newest. With
    /// anything but [`SourceCheck::Trust`] a file of another than the base counts only when
    /// its bytes are right; `base` comes with what is known to be damaged in it.
    pub fn find(
        store: &Store,
        wanted: &HashSet<ContentDigest>,
        base: Option<(&Deployment, &[Difference])>,
        check: SourceCheck<'_>,
    ) -> Result<Self, StoreError> {
        let mut index = Self::default();
        if wanted.is_empty() {
            return Ok(index);
        }
        let mut others = store.deployments()?.items;
        others.reverse();
        others.retain(|other| base.is_none_or(|(base, _)| base.name() != other.name()));
        let first = base.map(|(base, _)| base.clone());
        for (number, deployment) in first.into_iter().chain(others).enumerate() {
            if index.origins.len() == wanted.len() {
                break;
            }
            let manifest = match store.manifest(deployment.name()) {
                Ok(manifest) => manifest,
                // One that cannot be read has nothing to give; `fsck` tells of it.
                Err(_) if base.is_none() || number > 0 => continue,
                Err(error) => return Err(error),
            };
            let bad = match base {
                Some((_, damaged)) if number == 0 => layer::damaged_inodes(&manifest, damaged),
                _ => HashSet::new(),
            };
            // What was read whole just now need not be read again.
            let read = check != SourceCheck::Trust && (base.is_none() || number > 0);
            let mut locator = match read {
                true => Some(Locator::open(store, &deployment.record.stack)?),
                false => None,
            };
            index.deployments.push(deployment.name().clone());
            index.add(&manifest, wanted, &bad, locator.as_mut());
        }
        Ok(index)
    }

    /// Adds what the newest of `deployments` has; with a locator, only what is right.
    fn add(
        &mut self,
        manifest: &Manifest,
        wanted: &HashSet<ContentDigest>,
        bad: &HashSet<usize>,
        mut read_in: Option<&mut Locator>,
    ) {
        let deployment = (self.deployments.len() - 1) as u16;
        let mut reader = Reader::default();
        for (at, entry) in manifest.entries().iter().enumerate() {
            let Kind::Regular { size, digest } = entry.kind else { continue };
            let new = size > 0 && wanted.contains(&digest) && !self.origins.contains_key(&digest);
            if !new || bad.contains(&at) {
                continue;
            }
            if let Some(locator) = &mut read_in {
                let Ok(Some((dir, name, _))) = locator.find(&entry.path) else { continue };
                let Ok(file) = dir.open_file(name) else { continue };
                if !matches!(reader.digest(&file, size), Ok(found) if found == (digest, size)) {
                    continue;
                }
            }
            self.origins.insert(digest, Origin { deployment, path: entry.path.clone() });
        }
    }

    /// A file with this content.
    pub fn get(&self, digest: &ContentDigest) -> Option<&Origin> {
        self.origins.get(digest)
    }

    /// The deployments that origins refer to.
    pub fn deployments(&self) -> &[DeploymentName] {
        &self.deployments
    }

    pub(crate) fn into_deployments(self) -> Vec<DeploymentName> {
        self.deployments
    }
}
