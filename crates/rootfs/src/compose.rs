//! A directory, an archive or a package becomes a layer over a stack.
//!
//! ```text
//! source          stack shows            layer gets
//! lib/x           lib -> usr/lib         usr/lib/x       as an installer would put it
//! usr/            usr/                   usr/            with the attributes it has below
//! opt/new/        nothing                opt/new/        with the source's attributes
//! etc             etc/                   refused: a file would hide a whole directory
//! ```
//!
//! Entries may come in any order and twice; the later one wins. Nothing is synced.
//! Caller: the update manager, for `varve layer add`.

use std::collections::BTreeMap;

use varve_format::TreePath;
use varve_format::manifest::is_overlay_private;
use varve_format::tree::{Metadata, Time};
use varve_sys::{Dir, NewFile, SysError};

use crate::layout::MAX_DEPTH;
use crate::resolve::Resolver;
use crate::tree::attributes;

/// Why a source cannot become a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComposeError {
    /// The disk.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// What is no directory would stand where the system has one, and hide all of it.
    #[error("{path} would hide a whole directory of the system")]
    OverDirectory {
        /// Where.
        path: TreePath,
    },
    /// A directory would stand where the system has something else.
    #[error("{path} is a directory in the layer and none in the system, which would lose it")]
    NoDirectory {
        /// Where.
        path: TreePath,
    },
    /// A hard link to something that the source did not bring before.
    #[error("{path} is a hard link to {target}, which the source does not hold before it")]
    LinkTarget {
        /// The link.
        path: TreePath,
        /// What it names.
        target: TreePath,
    },
    /// Something that overlayfs would take for one of its own marks.
    #[error("{path} has {what}, which has a meaning of its own in a layer")]
    Private {
        /// Where.
        path: TreePath,
        /// What.
        what: String,
    },
    /// Deeper than a device holds.
    #[error("{path} is deeper than {MAX_DEPTH} directories")]
    Depth {
        /// Where.
        path: TreePath,
    },
}

type Result<T> = std::result::Result<T, ComposeError>;

/// What was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Composed {
    /// Paths, directories included.
    pub paths: u64,
    /// Bytes of contents.
    pub bytes: u64,
}

/// Writes one layer.
#[derive(Debug)]
pub struct Composer<'a> {
    tree: &'a Dir,
    below: Resolver,
    /// Directories of the layer, with the source's attributes where it gave any.
    directories: BTreeMap<TreePath, Option<Metadata>>,
    counts: Composed,
}

impl<'a> Composer<'a> {
    /// Into the empty directory `tree`, to lie over `stack` (newest first).
    pub fn new(tree: &'a Dir, stack: Vec<Dir>) -> Self {
        let directories = BTreeMap::from([(TreePath::root(), None)]);
        Self { tree, below: Resolver::new(stack), directories, counts: Composed::default() }
    }

    /// A directory. Where the system has one, its own attributes stay.
    pub fn directory(&mut self, path: &TreePath, meta: &Metadata) -> Result<()> {
        check(path, meta)?;
        if path.is_root() {
            return Ok(());
        }
        let mut place = self.below.place(path)?;
        // A link to a directory stands for it, as every installer has it.
        if let Some(found) = self.below.follow(place.as_bytes())?.filter(|found| found.is_dir()) {
            place = found.path;
        }
        self.make(&place)?;
        self.directories.insert(place, Some(meta.clone()));
        Ok(())
    }

    /// A file; `write` gives it its content.
    pub fn file(
        &mut self,
        path: &TreePath,
        meta: &Metadata,
        write: impl FnOnce(&mut NewFile) -> varve_sys::Result<()>,
    ) -> Result<()> {
        let (place, dir) = self.free(path, meta)?;
        let mut file = dir.create_file(place.name(), 0o600)?;
        write(&mut file)?;
        file.set_attributes(&attributes(meta))?;
        self.counts.bytes += dir.stat(place.name())?.size;
        Ok(())
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &TreePath, target: &[u8], meta: &Metadata) -> Result<()> {
        // One that leads where the system has the directory itself says nothing new.
        let place = self.below.place(path)?;
        if self.below.look(&place)?.is_some_and(|stat| stat.is_dir()) {
            let parent = place.parent().unwrap_or_default();
            let absolute = target.first() == Some(&b'/');
            let from = if absolute { &b""[..] } else { parent.as_bytes() };
            let leads = self.below.follow(&[from, b"/", target].concat())?;
            if leads.is_some_and(|found| found.path == place) {
                return Ok(());
            }
        }
        let (place, dir) = self.free(path, meta)?;
        dir.symlink(target, place.name())?;
        Ok(dir.set_attributes(place.name(), &attributes(meta))?)
    }

    /// One more name for a file that came before.
    pub fn hard_link(&mut self, path: &TreePath, target: &TreePath) -> Result<()> {
        let from = self.below.place(target)?;
        let missing = || ComposeError::LinkTarget { path: path.clone(), target: target.clone() };
        let parent = from.parent().unwrap_or_default();
        let holder = self.tree.open_dir_opt(parent.as_path())?.ok_or_else(missing)?;
        if holder.stat_opt(from.name())?.is_none_or(|stat| stat.is_dir()) {
            return Err(missing());
        }
        if self.below.place(path)? == from {
            return Ok(());
        }
        let (place, dir) = self.free(path, &Metadata::default())?;
        Ok(holder.hard_link(from.name(), &dir, place.name())?)
    }

    /// A fifo, a socket or a device: `mode` with its type bits, `device` as `st_rdev`.
    pub fn special(
        &mut self,
        path: &TreePath,
        type_bits: u32,
        device: u64,
        meta: &Metadata,
    ) -> Result<()> {
        if type_bits == 0o020000 && device == 0 {
            let what = "the device number 0:0".to_owned();
            return Err(ComposeError::Private { path: path.clone(), what });
        }
        let (place, dir) = self.free(path, meta)?;
        dir.mknod(place.name(), type_bits | 0o600, device)?;
        Ok(dir.set_attributes(place.name(), &attributes(meta))?)
    }

    /// Gives the directories their attributes, the deepest first.
    pub fn finish(mut self) -> Result<Composed> {
        for (path, given) in std::mem::take(&mut self.directories).into_iter().rev() {
            let meta = match self.below.directory(&path)? {
                Some(dir) => metadata_of(dir)?,
                None => given.unwrap_or(Metadata { mode: 0o755, ..Metadata::default() }),
            };
            let dir = self.tree.open_dir(path.as_path())?;
            dir.set_attributes(".", &attributes(&meta))?;
            self.counts.paths += u64::from(!path.is_root());
        }
        Ok(self.counts)
    }

    /// Where a path that is no directory comes to stand, and its directory, free for it.
    fn free(&mut self, path: &TreePath, meta: &Metadata) -> Result<(TreePath, Dir)> {
        check(path, meta)?;
        let place = self.below.place(path)?;
        let over_own = self.directories.contains_key(&place);
        if over_own || self.below.look(&place)?.is_some_and(|stat| stat.is_dir()) {
            return Err(ComposeError::OverDirectory { path: place });
        }
        let dir = self.make(&place.parent().unwrap_or_default())?;
        match dir.stat_opt(place.name())? {
            Some(_) => dir.remove_all(place.name())?,
            None => self.counts.paths += 1,
        }
        Ok((place, dir))
    }

    /// Makes a directory of the layer, and those above it.
    fn make(&mut self, path: &TreePath) -> Result<Dir> {
        let mut dir = self.tree.try_clone()?;
        let mut here = TreePath::root();
        for name in path.components() {
            here = here.join(std::os::unix::ffi::OsStrExt::as_bytes(name)).expect("a part of it");
            if dir.stat_opt(name)?.is_some_and(|stat| !stat.is_dir()) {
                dir.remove_all(name)?;
            }
            dir = dir.make_dir(name, 0o700)?;
            self.directories.entry(here.clone()).or_insert(None);
        }
        Ok(dir)
    }
}

fn check(path: &TreePath, meta: &Metadata) -> Result<()> {
    if path.components().count() > MAX_DEPTH {
        return Err(ComposeError::Depth { path: path.clone() });
    }
    match meta.xattrs.iter().find(|(name, _)| is_overlay_private(name)) {
        Some((name, _)) => {
            let what = format!("the attribute {}", String::from_utf8_lossy(name));
            Err(ComposeError::Private { path: path.clone(), what })
        }
        None => Ok(()),
    }
}

/// What a directory of a layer shows of itself, overlayfs's own marks left out.
pub(crate) fn metadata_of(dir: &Dir) -> varve_sys::Result<Metadata> {
    let stat = dir.stat(".")?;
    let mut xattrs = dir.xattrs(".")?;
    xattrs.retain(|(name, _)| !is_overlay_private(name));
    Ok(Metadata {
        mode: stat.mode & 0o7777,
        uid: stat.uid,
        gid: stat.gid,
        mtime: Time { seconds: stat.mtime.0, nanoseconds: stat.mtime.1 },
        xattrs,
    })
}
