//! What a stack of layers shows: overlayfs's rules, as a program.
//!
//! ```text
//! layers, newest first      a MergedDir: its parts, newest first
//!   u2/tree/etc/  -.
//!   u1/tree/etc/   |------>  [u2/etc, u1/etc, base/etc]  --look("passwd")--> Found in u1
//!   base/tree/etc/-'
//! ```
//!
//! The rules, from the kernel's Documentation/filesystems/overlayfs.rst and
//! `ovl_lookup_single` in fs/overlayfs/namei.c:
//!
//! * the newest layer that has a name decides; a directory goes on to merge with the
//!   directories of that name below, until one is opaque, or a layer has the name as
//!   something else or as a whiteout;
//! * a whiteout is a character device 0:0, or an empty file with the attribute
//!   `trusted.overlay.whiteout` (whatever its directory is marked with: the mark
//!   `opaque=x` only tells readdir to look for them);
//! * `trusted.overlay.opaque` is obeyed when it is exactly `y`, and not on the root of a
//!   layer: the roots always merge;
//! * redirects and metacopy are switched off in every mount of ours, so a layer that
//!   has them means something else than it shows: whoever reads one refuses it.
//!
//! A tree is a stack of one. Callers: locate, verify, merge, tree.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use varve_sys::{Dir, Result, Stat};

/// Marks a directory that hides what lies below (`y`) or holds whiteout files (`x`).
pub const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// Marks an empty file as a whiteout.
pub const WHITEOUT: &[u8] = b"trusted.overlay.whiteout";

/// One directory of the view.
#[derive(Debug)]
pub struct MergedDir {
    parts: Vec<Part>,
    /// Whether nothing of layers below the stack's last could show here.
    cut: bool,
    /// Whether nothing lies below the stack: the opaque mark of the lowest directory of a
    /// name is not asked for.
    complete: bool,
}

/// A layer's share of a merged directory.
#[derive(Debug)]
pub struct Part {
    /// Which layer: 0 is the newest.
    pub layer: usize,
    /// Its directory.
    pub dir: Dir,
}

/// What the view has at a name.
#[derive(Debug)]
pub enum Looked {
    /// No layer has it.
    Nothing,
    /// A whiteout hides it.
    Whiteout,
    /// It is there.
    Found(Found),
}

/// A name that shows.
#[derive(Debug)]
pub struct Found {
    /// The part that decides, by its place in [`MergedDir::parts`].
    pub part: usize,
    /// What stands there.
    pub stat: Stat,
    /// For a directory: the parts that merge, newest first; the first is `part`.
    merge: Vec<usize>,
    /// For a directory: whether layers below the last part are hidden beneath it.
    pub cut: bool,
}

impl MergedDir {
    /// The root of a stack, newest layer first.
    pub fn root(layers: Vec<Dir>) -> Self {
        let parts = layers.into_iter().enumerate().map(|(layer, dir)| Part { layer, dir });
        Self { parts: parts.collect(), cut: false, complete: true }
    }

    /// The same for layers that are laid over others: all marks count.
    pub fn laid_over(layers: Vec<Dir>) -> Self {
        Self { complete: false, ..Self::root(layers) }
    }

    /// The layers that share this directory, newest first; its attributes are the first's.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether layers below the stack are hidden here.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// The directory that gives this one its attributes.
    pub fn top(&self) -> &Dir {
        &self.parts[0].dir
    }

    /// The directory in which a found name stands.
    pub fn holder(&self, found: &Found) -> &Dir {
        &self.parts[found.part].dir
    }

    /// What the view has at a name.
    pub fn look(&self, name: &OsStr) -> Result<Looked> {
        self.decide(name, 0..self.parts.len())
    }

    /// All names that any layer has here, sorted by bytes, with what the view has there:
    /// hidden ones too, as whiteouts.
    pub fn names(&self) -> Result<Vec<(OsString, Looked)>> {
        let mut all: Vec<(OsString, usize)> = Vec::new();
        for (part, Part { dir, .. }) in self.parts.iter().enumerate() {
            all.extend(dir.names()?.into_iter().map(|name| (name.name, part)));
        }
        if self.parts.len() > 1 {
            all.sort();
        }
        let mut names = Vec::with_capacity(all.len());
        for group in all.chunk_by(|a, b| a.0 == b.0) {
            let name = &group[0].0;
            let looked = self.decide(name, group.iter().map(|(_, part)| *part))?;
            if !matches!(looked, Looked::Nothing) {
                names.push((name.clone(), looked));
            }
        }
        Ok(names)
    }

    /// Opens a directory that was found in this one.
    pub fn enter(&self, name: &OsStr, found: &Found) -> Result<Self> {
        let mut parts = Vec::with_capacity(found.merge.len());
        for &part in &found.merge {
            let Part { layer, dir } = &self.parts[part];
            parts.push(Part { layer: *layer, dir: dir.open_dir(name)? });
        }
        Ok(Self { parts, cut: self.cut || found.cut, complete: self.complete })
    }

    fn decide(&self, name: &OsStr, parts: impl Iterator<Item = usize>) -> Result<Looked> {
        let mut found: Option<Found> = None;
        let mut parts = parts.peekable();
        while let Some(part) = parts.next() {
            let dir = &self.parts[part].dir;
            let Some(stat) = dir.stat_opt(name)? else { continue };
            let stops = if stat.is_dir() {
                let hides_something = !self.complete || parts.peek().is_some();
                let opaque = hides_something && is_opaque(dir, name)?;
                let found =
                    found.get_or_insert(Found { part, stat, merge: Vec::new(), cut: false });
                found.merge.push(part);
                opaque
            } else if found.is_some() {
                true
            } else if is_whiteout(dir, name, &stat)? {
                return Ok(Looked::Whiteout);
            } else {
                return Ok(Looked::Found(Found { part, stat, merge: Vec::new(), cut: true }));
            };
            if stops {
                found.as_mut().expect("only a directory comes here").cut = true;
                break;
            }
        }
        Ok(found.map_or(Looked::Nothing, Looked::Found))
    }
}

/// Whether the directory `name` hides what lies below it.
pub fn is_opaque(dir: &Dir, name: impl AsRef<Path>) -> Result<bool> {
    Ok(dir.xattr(name, OPAQUE)?.as_deref() == Some(b"y"))
}

/// Whether `name` is a whiteout, in either form.
pub fn is_whiteout(dir: &Dir, name: &OsStr, stat: &Stat) -> Result<bool> {
    Ok(stat.is_whiteout()
        || (stat.is_file() && stat.size == 0 && dir.xattr(name, WHITEOUT)?.is_some()))
}

/// Follows a view in the order of a manifest, with the directories on the way open.
#[derive(Debug)]
pub struct MergedWalk {
    chain: Vec<(OsString, Option<MergedDir>)>,
    top: MergedDir,
}

impl MergedWalk {
    /// Starts at the root of a stack, newest layer first.
    pub fn new(layers: Vec<Dir>) -> Self {
        Self { chain: Vec::new(), top: MergedDir::root(layers) }
    }

    /// The merged directory at a relative path; none when the view has no directory
    /// there.
    pub fn dir(&mut self, path: &Path) -> Result<Option<&MergedDir>> {
        let wanted: Vec<&OsStr> = path.iter().filter(|name| *name != OsStr::new(".")).collect();
        let same = self.chain.iter().zip(&wanted).take_while(|((have, _), want)| have == *want);
        let same = same.count();
        self.chain.truncate(same);
        for name in &wanted[same..] {
            let next = match self.chain.last().map_or(Some(&self.top), |(_, dir)| dir.as_ref()) {
                None => None,
                Some(dir) => match dir.look(name)? {
                    Looked::Found(found) if found.stat.is_dir() => Some(dir.enter(name, &found)?),
                    _ => None,
                },
            };
            self.chain.push(((*name).to_owned(), next));
        }
        Ok(self.chain.last().map_or(Some(&self.top), |(_, dir)| dir.as_ref()))
    }

    /// What the view has at a path: the layer, the directory that holds it there, its
    /// name, and its status. None for the root itself and for what does not show.
    pub fn find_in<'p>(
        &mut self,
        path: &'p Path,
    ) -> Result<Option<(usize, &Dir, &'p OsStr, Stat)>> {
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
            return Ok(None);
        };
        let Some(dir) = self.dir(parent)? else { return Ok(None) };
        match dir.look(name)? {
            Looked::Found(found) => {
                let Part { layer, dir } = &dir.parts()[found.part];
                Ok(Some((*layer, dir, name, found.stat)))
            }
            _ => Ok(None),
        }
    }
}
