//! What an update layer holds: the difference of two manifests in overlay form.
//!
//! ```text
//! old  /etc/a  /etc/b  /opt/x/..  /run   (file)
//! new  /etc/a' /etc/c             /run/  (directory)
//!
//! layer  /          attributes of the new manifest, as for every directory here
//!        /etc       because something below it is here
//!        /etc/a     whole: an overlay without metacopy shows one layer's file
//!        /etc/b     whiteout
//!        /etc/c
//!        /opt/x     one whiteout for all of it; nothing for what lay below
//!        /run/      opaque
//! ```
//!
//! A group of hard links is here with all its names or not at all: overlayfs shows
//! names in two layers as two files. Callers: layout.

use std::collections::{HashMap, HashSet};

use varve_format::TreePath;
use varve_format::change::{Change, changes};
use varve_format::manifest::Manifest;
use varve_format::tree::Kind;

use crate::verify::{Difference, What};

/// What is written of a manifest, and what is hidden beneath it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Shape {
    /// Entries that are written, by index, in order.
    pub write: Vec<u32>,
    /// Names that are hidden; each one's directory is written.
    pub whiteouts: Vec<TreePath>,
    /// Directories (by index; all are written) that hide all that lies below them.
    pub opaque: Vec<u32>,
}

impl Shape {
    /// A whole tree.
    pub(crate) fn whole(manifest: &Manifest) -> Self {
        Self { write: (0..manifest.entries().len() as u32).collect(), ..Self::default() }
    }
}

/// What turns `old`, as it shows, into `new`. What is `damaged` in `old` is written
/// again.
pub(crate) fn shape(old: &Manifest, new: &Manifest, damaged: &[Difference]) -> Shape {
    let entries = new.entries();
    let mut write = vec![false; entries.len()];
    write[0] = true;
    let mut whiteouts: Vec<TreePath> = Vec::new();
    let mut opaque: Vec<usize> = Vec::new();
    let is_dir = |manifest: &Manifest, path: &TreePath| {
        manifest.get(path).is_some_and(|entry| entry.kind == Kind::Directory)
    };
    for change in changes(old, new) {
        match change {
            Change::Added(entry) => write[index(new, &entry.path)] = true,
            Change::Modified { old: before, new: entry } => {
                let at = index(new, &entry.path);
                write[at] = true;
                if entry.kind == Kind::Directory && before.kind != Kind::Directory {
                    opaque.push(at);
                }
            }
            Change::Removed(entry) => {
                let parent = entry.path.parent().expect("the root is never removed");
                // Below a directory that is gone or is no directory now, nothing shows.
                if is_dir(new, &parent) {
                    whiteouts.push(entry.path.clone());
                }
            }
        }
    }
    let bad = damaged_inodes(old, damaged);
    if !bad.is_empty() {
        for (at, entry) in entries.iter().enumerate() {
            let same = old.get(&entry.path).map(|before| index(old, &old.inode(before).path));
            write[at] |= same.is_some_and(|inode| bad.contains(&inode));
        }
    }
    // What a damaged base shows too much is hidden like a removed name.
    for difference in damaged.iter().filter(|d| d.what == What::Extra) {
        let path = &difference.path;
        let in_directory = path.parent().is_some_and(|parent| is_dir(new, &parent));
        if in_directory && new.get(path).is_none() && !whiteouts.contains(path) {
            whiteouts.push(path.clone());
        }
    }
    for path in &whiteouts {
        let parent = path.parent().expect("not the root");
        write[index(new, &parent)] = true;
    }
    add_parents(new, &mut write);
    let mut shape = Shape { write: Vec::new(), whiteouts, opaque: Vec::new() };
    opaque.extend(emptied(new, &write, &shape.whiteouts));
    opaque.sort_unstable();
    opaque.dedup();
    let hides = |path: &TreePath| {
        let mut above = path.parent();
        while let Some(dir) = above {
            if opaque.binary_search(&index(new, &dir)).is_ok() {
                return true;
            }
            above = dir.parent();
        }
        false
    };
    shape.whiteouts.retain(|path| !hides(path));
    shape.whiteouts.sort();
    shape.opaque = opaque.iter().map(|&at| at as u32).collect();
    shape.write = (0..entries.len() as u32).filter(|&at| write[at as usize]).collect();
    shape
}

/// The inodes (by the index of their first name) that have a difference anywhere.
pub(crate) fn damaged_inodes(old: &Manifest, damaged: &[Difference]) -> HashSet<usize> {
    let mut inodes = HashSet::new();
    let mut add = |path: &TreePath| {
        if let Some(entry) = old.get(path) {
            inodes.insert(index(old, &old.inode(entry).path));
        }
    };
    for Difference { path, what } in damaged {
        add(path);
        match what {
            What::Joined { with } => add(with),
            // Nothing was reported of what should be below.
            What::Missing | What::Kind { .. } => {
                let from = old.entries().partition_point(|entry| entry.path <= *path);
                let below = old.entries()[from..].iter();
                below.take_while(|entry| entry.path.starts_with(path)).for_each(|e| add(&e.path));
            }
            _ => {}
        }
    }
    inodes
}

fn index(manifest: &Manifest, path: &TreePath) -> usize {
    manifest.index(path).expect("a path of this manifest")
}

/// Marks each directory that leads to something written.
fn add_parents(new: &Manifest, write: &mut [bool]) {
    let mut open: Vec<usize> = Vec::new();
    for (at, entry) in new.entries().iter().enumerate() {
        while open.last().is_some_and(|&dir| !entry.path.starts_with(&new.entries()[dir].path)) {
            open.pop();
        }
        if write[at] {
            for &dir in &open {
                write[dir] = true;
            }
        }
        if entry.kind == Kind::Directory {
            open.push(at);
        }
    }
}

/// Directories of which everything is written and something is hidden: one mark in
/// place of two whiteouts or more. The topmost alone.
fn emptied(new: &Manifest, write: &[bool], whiteouts: &[TreePath]) -> Vec<usize> {
    let mut hidden: HashMap<usize, usize> = HashMap::new();
    for path in whiteouts {
        let mut above = path.parent();
        while let Some(dir) = above.filter(|dir| !dir.is_root()) {
            *hidden.entry(index(new, &dir)).or_default() += 1;
            above = dir.parent();
        }
    }
    let mut found = Vec::new();
    let mut candidates: Vec<usize> =
        hidden.into_iter().filter(|(_, count)| *count > 1).map(|(at, _)| at).collect();
    candidates.sort_unstable();
    let mut done = 0;
    for at in candidates {
        let entries = &new.entries()[at + 1..];
        let end = at + 1 + entries.partition_point(|e| e.path.starts_with(&new.entries()[at].path));
        if at >= done && write[at..end].iter().all(|&written| written) {
            found.push(at);
            done = end;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_format::tree::{Entry, Metadata};
    use varve_format::verity::content_digest;

    fn manifest(paths: &[(&str, &str)]) -> Manifest {
        let mut entries = vec![entry("", "/")];
        entries.extend(paths.iter().map(|(path, what)| entry(path, what)));
        Manifest::from_entries(entries).unwrap()
    }

    /// `/` a directory, `=PATH` a hard link, else a file of that content.
    fn entry(path: &str, what: &str) -> Entry {
        let path = TreePath::new(path.as_bytes()).unwrap();
        if let Some(target) = what.strip_prefix('=') {
            return Entry::hard_link(path, TreePath::new(target.as_bytes()).unwrap());
        }
        let kind = match what {
            "/" => Kind::Directory,
            text => {
                Kind::Regular { size: text.len() as u64, digest: content_digest(text.as_bytes()) }
            }
        };
        Entry { path, kind, meta: Metadata::default() }
    }

    fn shown(new: &Manifest, shape: &Shape) -> String {
        let mut lines: Vec<String> = shape
            .write
            .iter()
            .map(|at| {
                let mark = if shape.opaque.contains(at) { " opaque" } else { "" };
                format!("{}{mark}", new.entries()[*at as usize].path)
            })
            .chain(shape.whiteouts.iter().map(|path| format!("{path} whiteout")))
            .collect();
        lines.sort();
        lines.join("\n")
    }

    #[test]
    fn the_layer_of_the_picture() {
        let old = manifest(&[
            ("etc", "/"),
            ("etc/a", "1"),
            ("etc/b", "1"),
            ("etc/same", "1"),
            ("opt", "/"),
            ("opt/x", "/"),
            ("opt/x/y", "/"),
            ("opt/x/y/z", "1"),
            ("run", "file"),
            ("usr", "/"),
            ("usr/same", "1"),
        ]);
        let new = manifest(&[
            ("etc", "/"),
            ("etc/a", "2"),
            ("etc/c", "1"),
            ("etc/same", "1"),
            ("opt", "/"),
            ("run", "/"),
            ("run/lock", "1"),
            ("usr", "/"),
            ("usr/same", "1"),
        ]);
        assert_eq!(
            shown(&new, &shape(&old, &new, &[])),
            "/\n/etc\n/etc/a\n/etc/b whiteout\n/etc/c\n/opt\n/opt/x whiteout\n/run opaque\n/run/lock"
        );
    }

    #[test]
    fn one_mark_in_place_of_many_whiteouts() {
        let old = manifest(&[("d", "/"), ("d/1", "a"), ("d/2", "a"), ("d/s", "/"), ("d/s/3", "a")]);
        let new = manifest(&[("d", "/"), ("d/4", "a"), ("d/s", "/"), ("d/s/5", "a")]);
        assert_eq!(
            shown(&new, &shape(&old, &new, &[])),
            "/\n/d\n/d opaque\n/d/4\n/d/s\n/d/s/5".replacen("/d\n/d opaque", "/d opaque", 1)
        );
        // As soon as something in it shows from below, it is not opaque.
        let old = manifest(&[("d", "/"), ("d/1", "a"), ("d/2", "a"), ("d/keep", "a")]);
        let new = manifest(&[("d", "/"), ("d/keep", "a")]);
        assert_eq!(shown(&new, &shape(&old, &new, &[])), "/\n/d\n/d/1 whiteout\n/d/2 whiteout");
    }

    #[test]
    fn a_group_of_hard_links_comes_whole() {
        let old = manifest(&[("a", "x"), ("b", "=a"), ("c", "x")]);
        let new = manifest(&[("a", "x"), ("b", "=a"), ("c", "=a")]);
        assert_eq!(shown(&new, &shape(&old, &new, &[])), "/\n/a\n/b\n/c");
        assert_eq!(shown(&new, &shape(&new, &new, &[])), "/");
    }

    #[test]
    fn what_is_damaged_below_comes_again() {
        let old = manifest(&[("a", "x"), ("b", "=a"), ("d", "/"), ("d/c", "x")]);
        let damaged = [
            Difference { path: TreePath::new(b"b").unwrap(), what: What::Missing },
            Difference { path: TreePath::new(b"d/more").unwrap(), what: What::Extra },
        ];
        assert_eq!(shown(&old, &shape(&old, &old, &damaged)), "/\n/a\n/b\n/d\n/d/more whiteout");
    }
}
