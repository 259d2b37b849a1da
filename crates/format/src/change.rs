//! What one tree changes over another.

use std::collections::HashMap;

use crate::manifest::Manifest;
use crate::tree::{Entry, Kind};

/// One path that differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change<'a> {
    /// Only the new tree has it.
    Added(&'a Entry),
    /// Only the old tree has it.
    Removed(&'a Entry),
    /// Both have it, and type, content, metadata or the set of its hard links differ.
    Modified {
        /// As it was.
        old: &'a Entry,
        /// As it is.
        new: &'a Entry,
    },
}

/// All paths that differ, in order. A path counts as the same only when its inode is
/// the same in type, content, metadata *and* in all its names, so that what is laid
/// over the old tree never tears a group of hard links apart.
pub fn changes<'a>(old: &'a Manifest, new: &'a Manifest) -> Vec<Change<'a>> {
    let old_groups = names_by_entry(old);
    let new_groups = names_by_entry(new);
    let mut changes = Vec::new();
    let (mut i, mut j) = (0, 0);
    let (from, to) = (old.entries(), new.entries());
    while i < from.len() || j < to.len() {
        let order = match (from.get(i), to.get(j)) {
            (Some(a), Some(b)) => a.path.cmp(&b.path),
            (Some(_), None) => std::cmp::Ordering::Less,
            _ => std::cmp::Ordering::Greater,
        };
        match order {
            std::cmp::Ordering::Less => {
                changes.push(Change::Removed(&from[i]));
                i += 1;
            }
            std::cmp::Ordering::Greater => {
                changes.push(Change::Added(&to[j]));
                j += 1;
            }
            std::cmp::Ordering::Equal => {
                let (a, b) = (old.inode(&from[i]), new.inode(&to[j]));
                let same_inode = a.kind == b.kind && a.meta == b.meta;
                if !same_inode || old_groups.get(&i) != new_groups.get(&j) {
                    changes.push(Change::Modified { old: &from[i], new: &to[j] });
                }
                i += 1;
                j += 1;
            }
        }
    }
    changes
}

/// For each entry with several names: those names, joined.
fn names_by_entry(manifest: &Manifest) -> HashMap<usize, Vec<&[u8]>> {
    let mut names = HashMap::new();
    for (_, group) in manifest.link_groups() {
        let paths: Vec<&[u8]> =
            group.iter().map(|&at| manifest.entries()[at].path.as_bytes()).collect();
        for at in group {
            names.insert(at, paths.clone());
        }
    }
    names
}

/// Whether this entry is a directory.
pub fn is_directory(entry: &Entry) -> bool {
    entry.kind == Kind::Directory
}
