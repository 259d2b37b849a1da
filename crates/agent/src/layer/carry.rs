//! What an upgrade does to the user's own layers: which of their files now hide a file
//! that the release changed, and which of their programs need a library that goes away.
//!
//! ```text
//! own layers that are on   x   manifest that is here, manifest that comes   ->   conflicts
//! ```
//!
//! Looks only, before anything is promoted. A layer is carried on whatever is found:
//! nothing of it is dropped or overwritten; its user decides.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;

use serde::Serialize;
use varve_format::deployment::OwnLayer;
use varve_format::manifest::Manifest;
use varve_format::tree::{Entry, Kind};
use varve_format::{ContentDigest, LayerName, TreePath};
use varve_rootfs::{Store, content, view};
use varve_sys::{Dir, FileType, Stat, SysError};

use super::elf;
use crate::error::Result;

/// The longest program that is looked into, in bytes.
const MAX_PROGRAM: u64 = 64 << 20;

/// Something that the owner of a layer should know.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Conflict {
    /// Whose.
    pub layer: LayerName,
    /// Where in it.
    pub path: TreePath,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What a conflict is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum What {
    /// The layer's file hides one that the release changed.
    HidesChanged,
    /// The layer's file hides one that is new in the release.
    HidesNew,
    /// The layer removes a file that the release changed.
    RemovesChanged,
    /// The layer replaces a whole directory, in which the release changed so many paths.
    ReplacesChanged {
        /// How many.
        paths: u64,
    },
    /// A program or library of the layer needs a library that goes away.
    NeedsLibrary {
        /// Which.
        library: String,
    },
}

/// Compares the own layers that are on with what comes.
pub fn conflicts(
    store: &Store,
    own: &[OwnLayer],
    old: &Manifest,
    new: &Manifest,
) -> Result<Vec<Conflict>> {
    let mut looks = Vec::new();
    for layer in own.iter().filter(|layer| layer.on) {
        let mut look = Look {
            layer: &layer.layer,
            old,
            new,
            found: Vec::new(),
            names: BTreeSet::new(),
            needs: Vec::new(),
        };
        look.directory(&store.layer_tree(&layer.layer)?, &TreePath::root())?;
        looks.push(look);
    }
    // A library that another own layer brings is not gone.
    let brought: BTreeSet<Vec<u8>> =
        looks.iter().flat_map(|look| look.names.iter().cloned()).collect();
    let wanted: BTreeSet<&[u8]> =
        looks.iter().flat_map(|look| &look.needs).map(|(_, library)| &library[..]).collect();
    let (was, is) = (names_of(old, &wanted), names_of(new, &wanted));
    let mut conflicts = Vec::new();
    for look in looks {
        let Look { layer, mut found, needs, .. } = look;
        for (path, library) in needs {
            let gone = was.contains(&library[..]) && !is.contains(&library[..]);
            if gone && !brought.contains(&library) {
                let library = varve_format::path::show(&library);
                let what = What::NeedsLibrary { library };
                found.push(Conflict { layer: layer.clone(), path, what });
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        conflicts.extend(found);
    }
    Ok(conflicts)
}

/// Which of these file names stand anywhere in a release.
fn names_of<'m>(manifest: &'m Manifest, wanted: &BTreeSet<&[u8]>) -> BTreeSet<&'m [u8]> {
    if wanted.is_empty() {
        return BTreeSet::new();
    }
    let names = manifest.entries().iter().map(|entry| entry.path.name().as_bytes());
    names.filter(|name| wanted.contains(name)).collect()
}

struct Look<'a> {
    layer: &'a LayerName,
    old: &'a Manifest,
    new: &'a Manifest,
    found: Vec<Conflict>,
    /// The names of the layer's own files.
    names: BTreeSet<Vec<u8>>,
    /// Which file needs which library.
    needs: Vec<(TreePath, Vec<u8>)>,
}

impl Look<'_> {
    fn directory(&mut self, dir: &Dir, at: &TreePath) -> Result<()> {
        for entry in dir.names()? {
            // A name that no release can have hides nothing of one.
            let Ok(path) = at.join(entry.name.as_bytes()) else { continue };
            let stat = dir.stat(&entry.name)?;
            if view::is_whiteout(dir, &entry.name, &stat)? {
                if self.changed_below(&path) > 0 {
                    self.add(path, What::RemovesChanged);
                }
            } else if stat.is_dir() {
                if view::is_opaque(dir, &entry.name)? {
                    let paths = self.changed_below(&path);
                    if paths > 0 {
                        self.add(path.clone(), What::ReplacesChanged { paths });
                    }
                    continue;
                }
                self.directory(&dir.open_dir(&entry.name)?, &path)?;
            } else {
                self.file(dir, path, &stat)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, dir: &Dir, path: TreePath, stat: &Stat) -> Result<()> {
        self.names.insert(path.name().as_bytes().to_vec());
        if stat.is_file() {
            self.libraries(dir, &path, stat)?;
        }
        let Some(is) = self.new.get(&path) else { return Ok(()) };
        let what = match self.old.get(&path) {
            Some(was) if same(self.old, was, self.new, is) => return Ok(()),
            Some(_) => What::HidesChanged,
            None => What::HidesNew,
        };
        if !shows_the_same(dir, &path, stat, &self.new.inode(is).kind)? {
            self.add(path, what);
        }
        Ok(())
    }

    fn libraries(&mut self, dir: &Dir, path: &TreePath, stat: &Stat) -> Result<()> {
        if stat.size > MAX_PROGRAM {
            return Ok(());
        }
        let failed = |error| SysError::new("read", dir.path().join(path.name()), error);
        let mut file = dir.open_file(path.name())?;
        let mut bytes = vec![0; 4];
        match file.read_exact(&mut bytes) {
            Ok(()) if elf::is_elf(&bytes) => {}
            Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
                return Err(failed(error).into());
            }
            _ => return Ok(()),
        }
        file.take(MAX_PROGRAM).read_to_end(&mut bytes).map_err(failed)?;
        let needed = elf::parse(&bytes).map(|elf| elf.needed).unwrap_or_default();
        self.needs.extend(needed.into_iter().map(|library| (path.clone(), library)));
        Ok(())
    }

    /// How many paths at or below this one the release changed, added or removed; what it
    /// removed is no longer hidden by anyone, and not counted for a single file.
    fn changed_below(&self, path: &TreePath) -> u64 {
        let below = |manifest: &Manifest| -> Vec<usize> {
            let from = manifest.entries().partition_point(|entry| entry.path < *path);
            let entries = manifest.entries()[from..].iter();
            let count = entries.take_while(|entry| entry.path.starts_with(path)).count();
            (from..from + count).collect()
        };
        let changed = below(self.new).into_iter().filter(|&at| {
            let is = &self.new.entries()[at];
            self.old.get(&is.path).is_none_or(|was| !same(self.old, was, self.new, is))
        });
        changed.count() as u64
    }

    fn add(&mut self, path: TreePath, what: What) {
        self.found.push(Conflict { layer: self.layer.clone(), path, what });
    }
}

/// Whether two releases have the same there; times do not count, contents and rights do.
fn same(old: &Manifest, was: &Entry, new: &Manifest, is: &Entry) -> bool {
    let (was, is) = (old.inode(was), new.inode(is));
    let rights = |entry: &Entry| (entry.meta.mode, entry.meta.uid, entry.meta.gid);
    was.kind == is.kind && rights(was) == rights(is)
}

/// Whether the layer's own file has what the release will have.
fn shows_the_same(dir: &Dir, path: &TreePath, stat: &Stat, kind: &Kind) -> Result<bool> {
    Ok(match kind {
        Kind::Regular { size, digest } => {
            stat.is_file() && stat.size == *size && content(dir, path)? == *digest
        }
        Kind::Symlink { target } => {
            stat.file_type() == FileType::Symlink && dir.read_link(path.name())?[..] == **target
        }
        _ => false,
    })
}

fn content(dir: &Dir, path: &TreePath) -> Result<ContentDigest> {
    let failed = |error| SysError::new("read", dir.path().join(path.name()), error);
    let file = dir.open_file(path.name())?;
    Ok(content::digest_of(&file).map_err(failed)?)
}
