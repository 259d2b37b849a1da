//! Several directories in overlay form become one, out of hard links.
//!
//! Works from the directories alone, by the rules in [`crate::view`]. What would mean
//! something else elsewhere is refused: redirects, metacopy, and any private attribute of
//! overlayfs that is not known here. Those that only help one mount (`origin`, `impure`,
//! `nlink`, `uuid`) are left out; a file that has one is copied, because an attribute
//! belongs to the inode. Whiteouts and opaque marks stay when something is to lie below.
//!
//! [`copy`] is the same for what is still written to, the top of a running system: each
//! inode is copied, never linked, and one that changes meanwhile is copied again.
//!
//! Callers: merge, own; the tests, with the kernel's own mount as the judge.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Mutex};

use varve_format::TreePath;
use varve_sys::task::{Cancel, Cancelled, Progress};
use varve_sys::{Attributes, Dir, FileType, Name, Stat, SysError, Xattrs};

use crate::pool::{self, Pool};
use crate::view::{Found, Looked, MergedDir, OPAQUE, Part};

const PRIVATE: &[u8] = b"trusted.overlay.";
/// What overlayfs keeps for one mount alone: left out of a merged layer.
const DROPPED: [&[u8]; 5] = [b"origin", b"impure", b"nlink", b"uuid", b"opaque"];

/// What a merged layer is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Directories made anew.
    pub directories: u64,
    /// Names linked to the old layers' inodes.
    pub linked: u64,
    /// Files copied, because they had private attributes or too many names.
    pub copied: u64,
    /// Whiteouts kept for the layers below.
    pub whiteouts: u64,
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            directories: self.directories + other.directories,
            linked: self.linked + other.linked,
            copied: self.copied + other.copied,
            whiteouts: self.whiteouts + other.whiteouts,
        }
    }
}

/// Why a fold stopped. The layer is by its place in the fold.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The disk.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// Asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A private attribute that cannot be folded.
    #[error("{path} has the attribute {name}, which cannot be folded")]
    Refused {
        /// Which layer, 0 the newest.
        layer: usize,
        /// Where in it.
        path: TreePath,
        /// Which attribute.
        name: String,
    },
    /// A file is written to all the time.
    #[error("{path} changes while it is copied; stop what writes to it")]
    Busy {
        /// Where.
        path: TreePath,
    },
}

/// How often a file that changes is copied anew before the fold gives up.
const COPY_TRIES: u32 = 5;

/// Whether the result may share inodes with the layers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    Link,
    Copy,
}

/// A directory in overlay form that is to be folded.
#[derive(Debug)]
pub struct Layer {
    /// The directory.
    pub dir: Dir,
    /// Whether every inode is asked for private attributes of overlayfs. A layer that
    /// varve made from a manifest and verified has none but the opaque marks of its
    /// directories, which are always looked at.
    pub foreign: bool,
}

/// Folds layers (newest first) into the empty directory `target` of the same file
/// system. `to_base` says that nothing will lie below the result, so that it needs no
/// whiteouts and no opaque marks. Nothing is synced.
pub fn fold(
    layers: Vec<Layer>,
    target: &Dir,
    to_base: bool,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> std::result::Result<Counts, FoldError> {
    run(How::Link, layers, target, to_base, progress, cancel)
}

/// Copies one directory in overlay form, in use or not, into the empty directory `target`
/// of any file system, marks and whiteouts kept for what lies below. Nothing is synced.
pub fn copy(
    layer: Dir,
    target: &Dir,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> std::result::Result<Counts, FoldError> {
    run(How::Copy, vec![Layer { dir: layer, foreign: true }], target, false, progress, cancel)
}

fn run(
    how: How,
    layers: Vec<Layer>,
    target: &Dir,
    to_base: bool,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> std::result::Result<Counts, FoldError> {
    let fold = Fold {
        how,
        to_base,
        foreign: layers.iter().map(|layer| layer.foreign).collect(),
        copies: Mutex::new(HashMap::new()),
        top: target,
        progress,
        cancel,
    };
    let dirs = layers.into_iter().map(|layer| layer.dir).collect();
    let root = Arc::new(Pair {
        from: if to_base { MergedDir::root(dirs) } else { MergedDir::laid_over(dirs) },
        to: target.try_clone()?,
        path: TreePath::root(),
    });
    let work = |task: Task, counts: &mut Counts, pool: &Pool<Task>| match task.below {
        None => fold.directory(&task.pair, false, counts, pool),
        Some((name, found)) => {
            let Pair { from, to, path } = &*task.pair;
            let opaque = found.cut && !from.is_cut() && !fold.to_base;
            let pair = Arc::new(Pair {
                from: from.enter(&name, &found)?,
                to: to.open_dir(&name)?,
                path: below_path(path, &name),
            });
            drop(task.pair);
            fold.directory(&pair, opaque, counts, pool)
        }
    };
    let parts = pool::run(Task { pair: root, below: None }, Counts::default, work)?;
    Ok(parts.into_iter().fold(Counts::default(), Counts::plus))
}

/// A merged directory, and the new one that it becomes.
struct Pair {
    from: MergedDir,
    to: Dir,
    path: TreePath,
}

/// A directory to fill: the pair's own, or one found below it.
struct Task {
    pair: Arc<Pair>,
    below: Option<(OsString, Found)>,
}

struct Fold<'a> {
    how: How,
    to_base: bool,
    foreign: Vec<bool>,
    /// Where the copy of an inode with several names is, below `top`. Held while a copy
    /// is made, so that two names of one inode are never copied twice.
    copies: Mutex<HashMap<(u64, u64), TreePath>>,
    top: &'a Dir,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

type Folded<T> = std::result::Result<T, FoldError>;

impl Fold<'_> {
    /// Makes what `pair.from` shows, directories empty, then sets its attributes: what
    /// is made below those later does not change them. `opaque`: it is to hide what
    /// lies below the fold.
    fn directory(
        &self,
        pair: &Arc<Pair>,
        opaque: bool,
        counts: &mut Counts,
        pool: &Pool<Task>,
    ) -> Folded<()> {
        self.cancel.check()?;
        let Pair { from, to, path } = &**pair;
        let names = match from.parts() {
            [part] if self.how == How::Link && !self.foreign[part.layer] => {
                self.link_plain(part, pair, counts)?
            }
            _ => from.names()?,
        };
        self.progress.advance(names.len() as u64);
        let mut below = Vec::new();
        for (name, looked) in names {
            match looked {
                Looked::Nothing => {}
                Looked::Whiteout if self.to_base || from.is_cut() || opaque => {}
                Looked::Whiteout => {
                    to.whiteout(&name)?;
                    counts.whiteouts += 1;
                }
                Looked::Found(found) if found.stat.is_dir() => {
                    to.mkdir(&name, 0o700)?;
                    below.push((name, found));
                }
                Looked::Found(found) => self.inode(pair, &name, &found, counts)?,
            }
        }
        counts.directories += 1;
        let top = &from.parts()[0];
        let mut xattrs = self.xattrs(&top.dir, OsStr::new("."), top.layer, path, true)?.kept;
        if opaque {
            xattrs.push((OPAQUE.into(), (*b"y").into()));
        }
        to.set_attributes(".", &attributes(&top.dir.stat(".")?, &xattrs))?;
        for below in below {
            pool.push(Task { pair: pair.clone(), below: Some(below) });
        }
        Ok(())
    }

    /// Links what a directory of one known layer says to be no directory and no whiteout:
    /// that needs no look at the inode. Gives back the rest.
    fn link_plain(
        &self,
        part: &Part,
        pair: &Pair,
        counts: &mut Counts,
    ) -> Folded<Vec<(OsString, Looked)>> {
        let mut rest = Vec::new();
        let names = part.dir.names()?;
        let all = names.len();
        for Name { name, file_type } in names {
            let plain = matches!(file_type, FileType::RegularFile | FileType::Symlink);
            if plain && link(&part.dir, &name, &pair.to, counts)? {
                continue;
            }
            let looked = pair.from.look(&name)?;
            rest.push((name, looked));
        }
        self.progress.advance((all - rest.len()) as u64);
        Ok(rest)
    }

    fn inode(&self, pair: &Pair, name: &OsStr, found: &Found, counts: &mut Counts) -> Folded<()> {
        let holder = pair.from.holder(found);
        let layer = pair.from.parts()[found.part].layer;
        let path = || below_path(&pair.path, name);
        // A symbolic link, device or fifo may carry overlayfs's marks as well.
        let own = match self.foreign[layer] {
            true => Some(self.xattrs(holder, name, layer, &path(), false)?),
            false => None,
        };
        let linkable = self.how == How::Link && own.as_ref().is_none_or(|own| own.dropped == 0);
        if linkable && link(holder, name, &pair.to, counts)? {
            return Ok(());
        }
        let own = match own {
            Some(own) => own,
            None => self.xattrs(holder, name, layer, &path(), false)?,
        };
        self.copy(holder, name, &found.stat, &own.kept, &pair.to, path(), counts)
    }

    /// Copies one inode, and keeps the names that it has in the fold together.
    #[expect(clippy::too_many_arguments, reason = "what is copied, and to where")]
    fn copy(
        &self,
        holder: &Dir,
        name: &OsStr,
        stat: &Stat,
        xattrs: &Xattrs,
        target: &Dir,
        path: TreePath,
        counts: &mut Counts,
    ) -> Folded<()> {
        let inode = (stat.device, stat.inode);
        let mut copies = self.copies.lock().expect("no copy panics");
        if let Some(first) = copies.get(&inode) {
            let parent = self.top.open_dir(first.parent().expect("a name").as_path())?;
            match parent.hard_link(first.name(), target, name) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_too_many_links() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let attributes = attributes(stat, xattrs);
        match stat.file_type() {
            FileType::RegularFile if self.how == How::Copy => {
                // Gone since it was listed: it is as if it had been deleted before.
                if !self.copy_in_use(holder, name, target, &path)? {
                    return Ok(());
                }
            }
            FileType::RegularFile => {
                let mut file = target.create_file(name, 0o600)?;
                file.copy_from(&holder.open_file(name)?)?;
                file.set_attributes(&attributes)?;
            }
            FileType::Symlink => {
                target.symlink(&holder.read_link(name)?, name)?;
                target.set_attributes(name, &attributes)?;
            }
            _ => {
                target.mknod(name, stat.mode, stat.special)?;
                target.set_attributes(name, &attributes)?;
            }
        }
        counts.copied += 1;
        if stat.links > 1 {
            copies.insert(inode, path);
        }
        Ok(())
    }

    /// Copies a file that somebody may write to, until a copy is of one moment. False
    /// when the file is gone.
    fn copy_in_use(
        &self,
        holder: &Dir,
        name: &OsStr,
        target: &Dir,
        path: &TreePath,
    ) -> Folded<bool> {
        for _ in 0..COPY_TRIES {
            let Some(before) = holder.stat_opt(name)?.filter(Stat::is_file) else {
                return Ok(false);
            };
            let xattrs = self.xattrs(holder, name, 0, path, false)?.kept;
            let mut file = target.create_file(name, 0o600)?;
            file.copy_from(&holder.open_file(name)?)?;
            file.set_attributes(&attributes(&before, &xattrs))?;
            if holder.stat_opt(name)?.is_some_and(|after| same_moment(&before, &after)) {
                return Ok(true);
            }
            target.unlink(name)?;
        }
        Err(FoldError::Busy { path: path.clone() })
    }

    /// An inode's attributes without overlayfs's own; an error for one that changes
    /// what the layer shows.
    fn xattrs(
        &self,
        dir: &Dir,
        name: &OsStr,
        layer: usize,
        path: &TreePath,
        is_dir: bool,
    ) -> Folded<Filtered> {
        let all = dir.xattrs(name)?;
        let before = all.len();
        let mut kept = Xattrs::new();
        for (name, value) in all {
            let known = |private| DROPPED.contains(&private) && (is_dir || private != b"opaque");
            match name.strip_prefix(PRIVATE) {
                None => kept.push((name, value)),
                Some(private) if known(private) => {}
                Some(_) => {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    return Err(FoldError::Refused { layer, path: path.clone(), name });
                }
            }
        }
        Ok(Filtered { dropped: before - kept.len(), kept })
    }
}

/// Gives an inode one more name; false when it has as many as it can have.
fn link(holder: &Dir, name: &OsStr, to: &Dir, counts: &mut Counts) -> Folded<bool> {
    match holder.hard_link(name, to, name) {
        Ok(()) => {
            counts.linked += 1;
            Ok(true)
        }
        Err(error) if error.is_too_many_links() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether nothing was written between two looks. A name that came or went is no writing.
fn same_moment(before: &Stat, after: &Stat) -> bool {
    let seen = |stat: &Stat| (stat.inode, stat.size, stat.mtime, stat.ctime);
    seen(before) == seen(after)
}

struct Filtered {
    kept: Xattrs,
    dropped: usize,
}

fn attributes<'a>(stat: &Stat, xattrs: &'a Xattrs) -> Attributes<'a> {
    Attributes { mode: stat.mode & 0o7777, uid: stat.uid, gid: stat.gid, mtime: stat.mtime, xattrs }
}

/// A path for messages and for finding a copy again. The kernel gave the name; only a
/// path longer than PATH_MAX fails, and then the directory's stands for it.
fn below_path(path: &TreePath, name: &OsStr) -> TreePath {
    path.join(std::os::unix::ffi::OsStrExt::as_bytes(name)).unwrap_or_else(|_| path.clone())
}
