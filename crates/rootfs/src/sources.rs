//! Where each file of a new deployment comes from: pure but for looking into incoming/
//! and into the manifests that are here.
//!
//! ```text
//! the base's very inode  >  incoming/  >  a file here with that content  >  outside
//! ```
//!
//! Caller: layout.

use std::collections::{HashMap, HashSet};

use varve_format::change::{Change, changes};
use varve_format::manifest::Manifest;
use varve_format::tree::Kind;
use varve_format::{ContentDigest, TreePath};
use varve_sys::Stat;

use crate::layer;
use crate::layout::{Needed, PlanError, Request, Source, StagePlan, Step};
use crate::locate::{self, Origin};
use crate::verify::Difference;

/// A directory takes a block or more on every file system of ours.
const DIRECTORY_BYTES: u64 = 4096;

/// Decides for each entry that is written where it comes from: the base's inode, what
/// is in incoming already, another file here with that content, or outside.
pub(crate) fn find_sources(
    request: &Request<'_>,
    base: Option<&Manifest>,
    plan: &mut StagePlan,
) -> Result<(), PlanError> {
    let Request { store, manifest, .. } = *request;
    let mut sources = match base {
        Some(old) => linkable(old, manifest, &plan.shape.write, &plan.damaged),
        None => HashMap::new(),
    };
    let contents = |at: u32| match manifest.entries()[at as usize].kind {
        Kind::Regular { size, digest } if size > 0 => Some(Needed { digest, size }),
        _ => None,
    };
    let missing: HashSet<ContentDigest> = plan
        .shape
        .write
        .iter()
        .filter(|at| !sources.contains_key(at))
        .filter_map(|&at| contents(at).map(|needed| needed.digest))
        .collect();
    // In incoming already, and whether its inode is free to become the release's.
    let mut in_incoming: HashMap<ContentDigest, bool> = HashMap::new();
    for digest in &missing {
        if let Some(stat) = store.incoming().stat_opt(digest.to_hex())?.filter(Stat::is_file) {
            in_incoming.insert(*digest, stat.links == 1);
        }
    }
    let elsewhere: HashSet<_> =
        missing.iter().filter(|digest| !in_incoming.contains_key(digest)).copied().collect();
    let index = locate::ContentIndex::find(
        store,
        &elsewhere,
        base.and(request.base).map(|base| (base, &plan.damaged[..])),
        request.check,
    )?;
    let mut seen = HashSet::new();
    for &at in &plan.shape.write {
        let needed = contents(at);
        let source = match (sources.remove(&at), needed) {
            (Some(link), _) => link,
            (None, None) => Source::Fresh,
            (None, Some(needed)) => {
                let first = seen.insert(needed.digest);
                match index.get(&needed.digest) {
                    Some(Origin { deployment, path }) => {
                        plan.copied += 1;
                        plan.write_bytes += needed.size;
                        Source::Copy(*deployment, path.clone())
                    }
                    None if first => {
                        let here = in_incoming.get(&needed.digest);
                        if here.is_some() { &mut plan.incoming } else { &mut plan.fetch }
                            .push(needed);
                        if here == Some(&false) {
                            plan.write_bytes += needed.size;
                        }
                        Source::Incoming
                    }
                    None => {
                        plan.write_bytes += needed.size;
                        Source::CopyIncoming
                    }
                }
            }
        };
        match (&source, &manifest.entries()[at as usize].kind) {
            (Source::Link(_), _) => plan.linked += 1,
            (Source::Incoming, _) | (_, Kind::HardLink { .. }) => {}
            (_, Kind::Directory) => {
                plan.write_inodes += 1;
                plan.write_bytes += DIRECTORY_BYTES;
            }
            _ => plan.write_inodes += 1,
        }
        plan.steps.push(Step { at, source });
    }
    plan.origins = index.into_deployments();
    Ok(())
}

/// For the entries of `write` that the base has as the very same inode (content, mode,
/// owner, time, attributes): which of its names. An inode of the base is given to one
/// inode of the new tree alone: two would become one file.
fn linkable(
    old: &Manifest,
    new: &Manifest,
    write: &[u32],
    damaged: &[Difference],
) -> HashMap<u32, Source> {
    let mut links = HashMap::new();
    let bad = layer::damaged_inodes(old, damaged);
    let mut claimed: HashSet<usize> = bad.clone();
    let mut changed: HashSet<&TreePath> = HashSet::new();
    for change in changes(old, new) {
        if let Change::Added(entry) | Change::Modified { new: entry, .. } = change {
            changed.insert(&entry.path);
        }
    }
    let is_file = |at: u32| matches!(new.entries()[at as usize].kind, Kind::Regular { .. });
    let mut moved: HashMap<ContentDigest, Vec<u32>> = HashMap::new();
    for &at in write.iter().filter(|&&at| is_file(at)) {
        let entry = &new.entries()[at as usize];
        if !changed.contains(&entry.path) {
            let same = old.index(&entry.path).expect("unchanged means that both have it");
            if !bad.contains(&same) {
                claimed.insert(same);
                links.insert(at, Source::Link(None));
                continue;
            }
        }
        if let Kind::Regular { digest, .. } = entry.kind {
            moved.entry(digest).or_default().push(at);
        }
    }
    // What shows from a layer below stays one file with itself alone.
    let written: HashSet<u32> = write.iter().copied().collect();
    for (at, entry) in new.entries().iter().enumerate() {
        if !written.contains(&(at as u32))
            && let Some(same) = old.index(&entry.path)
        {
            claimed.insert(same);
        }
    }
    // Each inode of the old tree comes by once, and is given away once at most.
    for (from, entry) in old.entries().iter().enumerate() {
        let Kind::Regular { digest, .. } = entry.kind else { continue };
        let Some(wanting) = moved.get_mut(&digest) else { continue };
        if claimed.contains(&from) {
            continue;
        }
        let fits = |at: &u32| {
            let wants = &new.entries()[*at as usize];
            wants.kind == entry.kind && wants.meta == entry.meta
        };
        if let Some(place) = wanting.iter().position(fits) {
            let at = wanting.swap_remove(place);
            let path = (new.entries()[at as usize].path != entry.path).then(|| entry.path.clone());
            links.insert(at, Source::Link(path));
        }
    }
    links
}
