//! Puts a tree together from members that come one after the other, as extracting them
//! would: the later wins. For image layers, also what a layer hides of those below it.
//!
//! Nothing is ever looked up through a symbolic link: a name below one is refused.

use std::collections::BTreeMap;
use std::io::Read;

use varve_format::TreePath;
use varve_format::manifest::Manifest;
use varve_format::path::show;
use varve_format::tree::{Entry, Kind, MAX_TARGET, Metadata, Time};

use crate::contents::{Contents, named};
use crate::error::{BuildError, Result};
use crate::scan::check_xattrs;
use crate::tar::{Member, MemberKind, Members};

/// Names and inodes, as they stand after the members so far.
pub(crate) struct Tree {
    names: BTreeMap<TreePath, Name>,
    inodes: Vec<Inode>,
    layer: u32,
}

#[derive(Clone, Copy)]
struct Name {
    inode: usize,
    /// The layer that brought it.
    layer: u32,
}

struct Inode {
    kind: Kind,
    meta: Metadata,
}

/// A directory that an archive uses but does not list: root's, 0755, from 1970. Fixed, so
/// that the same archive gives the same tree.
fn missing_directory() -> Inode {
    let mtime = Time { seconds: 0, nanoseconds: 0 };
    let meta = Metadata { mode: 0o755, uid: 0, gid: 0, mtime, xattrs: Vec::new() };
    Inode { kind: Kind::Directory, meta }
}

/// The path of a member: `./` and doubled slashes mean nothing; what climbs or starts
/// at the root is refused.
fn tree_path(name: &[u8]) -> Result<TreePath> {
    let refuse = |why: &str| Err(BuildError::entry(show(name), why));
    if name.is_empty() {
        return refuse("is a member without a name");
    }
    if name[0] == b'/' {
        return refuse("is absolute: make the archive relative to the tree (tar -C TREE -c .)");
    }
    let parts: Vec<&[u8]> =
        name.split(|&b| b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    TreePath::new(&parts.join(&b'/')).map_err(|error| BuildError::entry(show(name), error.why()))
}

impl Tree {
    pub(crate) fn new() -> Self {
        let names = BTreeMap::from([(TreePath::root(), Name { inode: 0, layer: 0 })]);
        Self { names, inodes: vec![missing_directory()], layer: 0 }
    }

    /// What comes now lies over what is here.
    pub(crate) fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// Which inodes still have a name, by number. The same members give the same numbers.
    pub(crate) fn alive(&self) -> Vec<bool> {
        let mut alive = vec![false; self.inodes.len()];
        for name in self.names.values() {
            alive[name.inode] = true;
        }
        alive
    }

    /// Takes all members of an archive. `wanted` says of an inode whether its content is
    /// to be taken; the others get no digest and must not live to the end.
    pub(crate) fn take<R: Read>(
        &mut self,
        members: &mut Members<R>,
        contents: &mut dyn Contents,
        whiteouts: bool,
        wanted: &dyn Fn(usize) -> bool,
    ) -> Result<()> {
        while let Some(member) = members.next()? {
            let path = tree_path(&member.path)?;
            if whiteouts && self.whiteout(&path)? {
                continue;
            }
            let Member { kind, mode, uid, gid, mtime, xattrs, .. } = member;
            check_xattrs(&path, &xattrs)?;
            if let MemberKind::HardLink { target } = &kind {
                let target = tree_path(target)?;
                self.link(path, &target)?;
                continue;
            }
            // Before the content: parents that are missing get the numbers before it.
            self.clear_way(&path, matches!(kind, MemberKind::Directory))?;
            let mut meta = Metadata { mode, uid, gid, mtime, xattrs };
            let kind = match kind {
                MemberKind::Directory => Kind::Directory,
                MemberKind::Regular => {
                    let taken = if wanted(self.inodes.len()) {
                        let taken = contents.take(&mut members.data());
                        named(taken, |error| members.failed(error))?
                    } else {
                        crate::contents::Content::NONE
                    };
                    Kind::Regular { size: taken.size, digest: taken.digest }
                }
                MemberKind::Symlink { target } => {
                    if target.is_empty() || target.len() > MAX_TARGET {
                        let why = "is a symbolic link with an empty or too long target";
                        return Err(BuildError::entry(&path, why));
                    }
                    // As Linux has it: a link's own mode means nothing.
                    meta.mode = 0o777;
                    Kind::Symlink { target: target.into() }
                }
                MemberKind::CharDevice(device) => Kind::CharDevice(device),
                MemberKind::BlockDevice(device) => Kind::BlockDevice(device),
                MemberKind::Fifo => Kind::Fifo,
                MemberKind::HardLink { .. } => unreachable!("taken above"),
            };
            self.put(path, Inode { kind, meta });
        }
        Ok(())
    }

    fn put(&mut self, path: TreePath, inode: Inode) {
        let name = Name { inode: self.inodes.len(), layer: self.layer };
        self.inodes.push(inode);
        self.names.insert(path, name);
    }

    fn link(&mut self, path: TreePath, target: &TreePath) -> Result<()> {
        let refuse = |why: String| Err(BuildError::entry(&path, why));
        let Some(&Name { inode, .. }) = self.names.get(target) else {
            return refuse(format!(
                "is a hard link to {target}, which does not stand before it in the archive"
            ));
        };
        if self.inodes[inode].kind == Kind::Directory {
            return refuse(format!("is a hard link to the directory {target}"));
        }
        if path == *target {
            return Ok(());
        }
        self.clear_way(&path, false)?;
        self.names.insert(path, Name { inode, layer: self.layer });
        Ok(())
    }

    /// Makes missing parents and takes away what stands at the path.
    fn clear_way(&mut self, path: &TreePath, is_dir: bool) -> Result<()> {
        let Some(parent) = path.parent() else {
            if is_dir {
                return Ok(());
            }
            return Err(BuildError::entry(path, "is the root of the tree and not a directory"));
        };
        self.need_directory(&parent, path)?;
        let Some(&old) = self.names.get(path) else { return Ok(()) };
        let was_dir = self.inodes[old.inode].kind == Kind::Directory;
        if was_dir && !is_dir {
            self.hide_lower(path);
            if self.below(path).next().is_some() {
                return Err(BuildError::entry(
                    path,
                    "comes again as something else, and the directory that it was is not empty",
                ));
            }
        }
        Ok(())
    }

    fn need_directory(&mut self, path: &TreePath, of: &TreePath) -> Result<()> {
        if let Some(name) = self.names.get(path) {
            let kind = &self.inodes[name.inode].kind;
            return match kind {
                Kind::Directory => Ok(()),
                Kind::Symlink { target } => Err(BuildError::entry(
                    of,
                    format!(
                        "lies below {path}, which is a symbolic link to {}: name it by its real path",
                        show(target)
                    ),
                )),
                other => Err(BuildError::entry(
                    of,
                    format!("lies below {path}, which is a {} and no directory", other.word()),
                )),
            };
        }
        if let Some(parent) = path.parent() {
            self.need_directory(&parent, of)?;
        }
        self.put(path.clone(), missing_directory());
        Ok(())
    }

    fn below(&self, path: &TreePath) -> impl Iterator<Item = (&TreePath, &Name)> {
        let start = (std::ops::Bound::Excluded(path), std::ops::Bound::Unbounded);
        self.names.range::<TreePath, _>(start).take_while(move |(name, _)| name.starts_with(path))
    }

    /// The marks of the OCI image specification ("Whiteouts"): `.wh.NAME` hides what
    /// lower layers have at NAME, `.wh..wh..opq` what they have in its directory. Either
    /// hides nothing of its own layer, wherever it stands. True when the path is one.
    fn whiteout(&mut self, path: &TreePath) -> Result<bool> {
        let Some(marked) = path.name().as_encoded_bytes().strip_prefix(b".wh.") else {
            return Ok(false);
        };
        let parent = path.parent().unwrap_or_default();
        if marked == b".wh..opq" {
            self.hide_lower(&parent);
        } else if marked.starts_with(b".wh.") {
            // Reserved for what union file systems keep for themselves.
        } else {
            let hidden =
                parent.join(marked).map_err(|error| BuildError::entry(path, error.why()))?;
            self.hide_lower(&hidden);
            let is_lower = self.names.get(&hidden).is_some_and(|name| name.layer < self.layer);
            if is_lower {
                if self.below(&hidden).next().is_none() {
                    self.names.remove(&hidden);
                } else {
                    self.forget_directory(&hidden);
                }
            }
        }
        Ok(true)
    }

    /// Takes away what lower layers have below a path; their directories stay where this
    /// layer has something in them, but nothing of theirs is left.
    fn hide_lower(&mut self, path: &TreePath) {
        let lower: Vec<TreePath> = self
            .below(path)
            .filter(|(_, name)| name.layer < self.layer)
            .map(|(path, _)| path.clone())
            .collect();
        // Deepest first: a directory is empty when its turn comes, or is needed.
        for path in lower.iter().rev() {
            if self.below(path).next().is_some() {
                self.forget_directory(path);
            } else {
                self.names.remove(path);
            }
        }
    }

    fn forget_directory(&mut self, path: &TreePath) {
        self.put(path.clone(), missing_directory());
    }

    /// The tree, as a manifest.
    pub(crate) fn finish(self) -> Result<Manifest> {
        let mut first: Vec<Option<TreePath>> = vec![None; self.inodes.len()];
        let mut inodes: Vec<Option<Inode>> = self.inodes.into_iter().map(Some).collect();
        let mut entries = Vec::with_capacity(self.names.len());
        for (path, name) in self.names {
            entries.push(match &first[name.inode] {
                Some(first) => Entry::hard_link(path, first.clone()),
                None => {
                    first[name.inode] = Some(path.clone());
                    let Inode { kind, meta } = inodes[name.inode].take().expect("first use");
                    Entry { path, kind, meta }
                }
            });
        }
        Ok(Manifest::from_entries(entries)?)
    }
}
