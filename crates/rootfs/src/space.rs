//! What each layer and each deployment really costs: an inode with many names is counted
//! once, and belongs to all who have a name of it.
//!
//! ```text
//! layer   total: its inodes        alone: those that nobody else has   (freed with it)
//! deployment: the same over its layers and its versioned state; alone: what goes with it
//! ```
//!
//! Bytes are those of the file system's blocks. Blocks that two inodes share (reflinks)
//! are counted for each: the file system alone knows better. Caller: the update manager.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use varve_format::{DeploymentName, LayerName};
use varve_sys::{Dir, SysError};

use crate::store::{Store, StoreError};

/// What something takes on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Cost {
    /// Bytes of all that it holds.
    pub total: u64,
    /// Bytes that nobody else holds: free once it is gone.
    pub alone: u64,
}

/// What everything takes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Costs {
    /// Layers and trees.
    pub parts: BTreeMap<LayerName, Cost>,
    /// Deployments, with their versioned state.
    pub deployments: BTreeMap<DeploymentName, Cost>,
    /// Bytes of all of it, each inode once.
    pub total: u64,
}

/// What a directory holds by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// Bytes on the disk, each inode once.
    pub bytes: u64,
    /// Paths, the directory itself not counted.
    pub paths: u64,
}

/// Sums up one directory.
pub fn held(dir: &Dir) -> Result<Held, SysError> {
    let mut walk = Walk::default();
    walk.directory(dir, 0)?;
    let shared: u64 = walk.shared.values().map(|inode| inode.bytes).sum();
    Ok(Held { bytes: walk.alone.first().copied().unwrap_or(0) + shared, paths: walk.paths })
}

/// Looks at every layer, tree and versioned state.
pub fn costs(store: &Store) -> Result<Costs, StoreError> {
    let mut walk = Walk::default();
    let mut names: Vec<Holder> = Vec::new();
    for layer in store.layers()?.items {
        walk.directory(&store.layers_dir().open_dir(&layer.name)?, names.len())?;
        names.push(Holder::Part(layer.name));
    }
    for tree in store.trees()?.items {
        walk.directory(&store.tree(&tree)?, names.len())?;
        names.push(Holder::Part(tree));
    }
    let deployments = store.deployments()?.items;
    for deployment in &deployments {
        let versioned = store.state().open_dir_opt("versioned")?;
        if let Some(versioned) = versioned
            && let Some(state) = versioned.open_dir_opt(deployment.name())?
        {
            walk.directory(&state, names.len())?;
        }
        names.push(Holder::State(deployment.name().clone()));
    }
    walk.alone.resize(names.len(), 0);

    let mut costs = Costs::default();
    // Which deployments need each holder.
    let users: Vec<BTreeSet<usize>> = names
        .iter()
        .map(|holder| {
            let needs = |(_, deployment): &(usize, &crate::Deployment)| match holder {
                Holder::Part(name) => deployment.record.parts().any(|part| part == name),
                Holder::State(name) => deployment.name() == name,
            };
            deployments.iter().enumerate().filter(needs).map(|(at, _)| at).collect()
        })
        .collect();
    let mut of_parts = vec![Cost::default(); names.len()];
    let mut of_deployments = vec![Cost::default(); deployments.len()];
    let mut add = |bytes: u64, holders: &[usize]| {
        costs.total += bytes;
        for &holder in holders {
            of_parts[holder].total += bytes;
        }
        if let [only] = holders {
            of_parts[*only].alone += bytes;
        }
        let needed: BTreeSet<usize> =
            holders.iter().flat_map(|&holder| users[holder].iter().copied()).collect();
        for &deployment in &needed {
            of_deployments[deployment].total += bytes;
        }
        // What a layer without a deployment also holds does not go with this one.
        let all_needed = holders.iter().all(|&holder| !users[holder].is_empty());
        if let (1, true, Some(&only)) = (needed.len(), all_needed, needed.first()) {
            of_deployments[only].alone += bytes;
        }
    };
    for (holder, &bytes) in walk.alone.iter().enumerate() {
        add(bytes, &[holder]);
    }
    for inode in walk.shared.values() {
        add(inode.bytes, &inode.holders);
    }
    for (name, cost) in names.into_iter().zip(of_parts) {
        if let Holder::Part(name) = name {
            costs.parts.insert(name, cost);
        }
    }
    costs.deployments = deployments
        .iter()
        .map(|deployment| deployment.name().clone())
        .zip(of_deployments)
        .collect();
    Ok(costs)
}

enum Holder {
    Part(LayerName),
    State(DeploymentName),
}

struct Inode {
    bytes: u64,
    /// Sorted, each once.
    holders: Vec<usize>,
}

#[derive(Default)]
struct Walk {
    /// Bytes of inodes with one name, by holder.
    alone: Vec<u64>,
    shared: HashMap<(u64, u64), Inode>,
    paths: u64,
}

impl Walk {
    fn directory(&mut self, dir: &Dir, holder: usize) -> Result<(), SysError> {
        if self.alone.len() <= holder {
            self.alone.resize(holder + 1, 0);
        }
        self.alone[holder] += dir.stat(".")?.blocks * 512;
        for entry in dir.names()? {
            let Some(stat) = dir.stat_opt(&entry.name)? else { continue };
            self.paths += 1;
            let bytes = stat.blocks * 512;
            if stat.is_dir() {
                self.directory(&dir.open_dir(&entry.name)?, holder)?;
            } else if stat.links > 1 {
                let inode = (stat.device, stat.inode);
                let inode = self
                    .shared
                    .entry(inode)
                    .or_insert_with(|| Inode { bytes, holders: Vec::new() });
                // Holders come one after the other.
                if inode.holders.last() != Some(&holder) {
                    inode.holders.push(holder);
                }
            } else {
                self.alone[holder] += bytes;
            }
        }
        Ok(())
    }
}
