//! The user's changes of a versioned state path, such as `/etc`, brought onto another
//! release: three-way, by file.
//!
//! | here (upper) | the release did | then |
//! | --- | --- | --- |
//! | as the old release has it | anything | the new release's shows |
//! | changed | nothing | the user's stays |
//! | changed | the same change | the new release's shows |
//! | changed | another change, text that merges | the merged one |
//! | changed | another change | the user's stays; the release's stands beside it as `<name>.varve-new`; reported |
//! | deleted | changed it | stays deleted; reported |
//!
//! Works on a copy of the upper directory before it takes its place, so that a power cut
//! leaves the one or the other, and rolling back finds the old one untouched.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use varve_format::TreePath;
use varve_sys::{Attributes, Dir, FileType, Result, Stat, SysError};

use crate::three_way::{self, MAX_MERGED};
use crate::view::{self, MergedWalk};

/// What ends the name of a release's file that stands beside the user's.
pub const BESIDE: &str = ".varve-new";

/// What became of a file that was changed here and by the release.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Both changes are in it.
    Merged,
    /// The user's stays; the release's stands beside it.
    KeptBeside,
    /// The user's stays; the release no longer has the file.
    KeptAlone,
    /// The user deleted it; the release changed it. It stays deleted.
    StaysDeleted,
}

/// A file that was changed here and by the release.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Reconciled {
    /// Which.
    pub path: TreePath,
    /// What became of it.
    pub outcome: Outcome,
}

/// Brings the changes in `upper`, which lies over `at`, from one release to another.
/// Reports what was changed on both sides, in the order of the tree.
pub fn reconcile(
    upper: &Dir,
    at: &TreePath,
    old: Vec<Dir>,
    new: Vec<Dir>,
) -> Result<Vec<Reconciled>> {
    let mut work =
        Work { old: MergedWalk::new(old), new: MergedWalk::new(new), reports: Vec::new() };
    work.directory(upper, at)?;
    Ok(work.reports)
}

struct Work {
    old: MergedWalk,
    new: MergedWalk,
    reports: Vec<Reconciled>,
}

/// What a release has at a path, as far as it is compared.
enum There {
    Nothing,
    File { file: File, stat: Stat },
    Link(Vec<u8>),
    Other,
}

impl There {
    fn read(walk: &mut MergedWalk, path: &TreePath) -> Result<Self> {
        let Some((_, dir, name, stat)) = walk.find_in(path.as_path())? else {
            return Ok(Self::Nothing);
        };
        Self::at(dir, name, stat)
    }

    fn at(dir: &Dir, name: &OsStr, stat: Stat) -> Result<Self> {
        Ok(match stat.file_type() {
            FileType::RegularFile => Self::File { file: dir.open_file(name)?, stat },
            FileType::Symlink => Self::Link(dir.read_link(name)?),
            _ => Self::Other,
        })
    }

    /// Same type and content; for files with `strict`, owner and mode too.
    fn same(&self, other: &Self, strict: bool) -> Result<bool> {
        Ok(match (self, other) {
            (Self::Nothing, Self::Nothing) => true,
            (Self::Link(a), Self::Link(b)) => a == b,
            (Self::File { file: a, stat: x }, Self::File { file: b, stat: y }) => {
                let owned = |s: &Stat| (s.mode, s.uid, s.gid);
                (!strict || owned(x) == owned(y)) && x.size == y.size && same_bytes(a, b)?
            }
            _ => false,
        })
    }

    fn text(&self) -> Result<Option<Vec<u8>>> {
        match self {
            Self::File { file, stat } if stat.size <= MAX_MERGED => read_all(file).map(Some),
            Self::Nothing => Ok(Some(Vec::new())),
            _ => Ok(None),
        }
    }
}

impl Work {
    fn directory(&mut self, upper: &Dir, at: &TreePath) -> Result<()> {
        for entry in upper.names()? {
            let name = &entry.name;
            let path = at.join(std::os::unix::ffi::OsStrExt::as_bytes(name.as_os_str()));
            // A name that no release can have is the user's alone.
            let Ok(path) = path else { continue };
            let stat = upper.stat(name)?;
            if view::is_whiteout(upper, name, &stat)? {
                self.deleted_here(upper, name, path)?;
            } else if stat.is_dir() {
                // An opaque directory was made anew by the user: nothing of it is the
                // release's.
                if !view::is_opaque(upper, name)? {
                    let below = upper.open_dir(name)?;
                    self.directory(&below, &path)?;
                    self.prune(upper, name, &below, &path)?;
                }
            } else {
                self.changed_here(upper, name, path, stat)?;
            }
        }
        Ok(())
    }

    /// Takes away a directory in which nothing is left and which says nothing of its own:
    /// the new release shows it with the same owner, rights and attributes.
    fn prune(&mut self, upper: &Dir, name: &OsString, below: &Dir, path: &TreePath) -> Result<()> {
        let Some(there) = self.new.dir(path.as_path())? else { return Ok(()) };
        let said = |dir: &Dir| -> Result<_> {
            let stat = dir.stat(".")?;
            let mut xattrs = dir.xattrs(".")?;
            xattrs.retain(|(name, _)| !varve_format::manifest::is_overlay_private(name));
            Ok((stat.mode, stat.uid, stat.gid, xattrs))
        };
        if below.names()?.is_empty() && said(below)? == said(there.top())? {
            upper.rmdir(name)?;
        }
        Ok(())
    }

    fn deleted_here(&mut self, upper: &Dir, name: &OsString, path: TreePath) -> Result<()> {
        let new = There::read(&mut self.new, &path)?;
        if matches!(new, There::Nothing) {
            // Nothing is left to hide; a later release may have the name again.
            return upper.unlink(name);
        }
        let old = There::read(&mut self.old, &path)?;
        if !old.same(&new, false)? && !matches!(new, There::Other) {
            self.report(path, Outcome::StaysDeleted);
        }
        Ok(())
    }

    fn changed_here(
        &mut self,
        upper: &Dir,
        name: &OsString,
        path: TreePath,
        stat: Stat,
    ) -> Result<()> {
        let ours = There::at(upper, name, stat)?;
        let old = There::read(&mut self.old, &path)?;
        let new = There::read(&mut self.new, &path)?;
        if ours.same(&new, true)? || (ours.same(&old, true)? && !matches!(old, There::Nothing)) {
            return upper.unlink(name);
        }
        if old.same(&new, false)? || matches!(ours, There::Other) {
            return Ok(());
        }
        if matches!(new, There::Nothing) {
            self.report(path, Outcome::KeptAlone);
            return Ok(());
        }
        let merged = match (old.text()?, ours.text()?, new.text()?) {
            (Some(old), Some(ours), Some(new)) => {
                three_way::merge(path.as_bytes(), &old, &ours, &new)
            }
            _ => None,
        };
        match merged {
            Some(bytes) => {
                let newest = match &new {
                    There::File { stat: theirs, .. } => stat.mtime.max(theirs.mtime),
                    _ => stat.mtime,
                };
                self.rewrite(upper, name, &Stat { mtime: newest, ..stat }, &bytes)?;
                self.report(path, Outcome::Merged);
            }
            None => {
                put_beside(upper, name, &new)?;
                self.report(path, Outcome::KeptBeside);
            }
        }
        Ok(())
    }

    /// Puts a merged text in the place of the user's, with the user's attributes.
    fn rewrite(&self, upper: &Dir, name: &OsString, stat: &Stat, bytes: &[u8]) -> Result<()> {
        let xattrs = upper.xattrs(name)?;
        upper.unlink(name)?;
        let mut file = upper.create_file(name, 0o600)?;
        file.write_all(bytes)?;
        file.set_attributes(&attributes(stat, &xattrs))
    }

    fn report(&mut self, path: TreePath, outcome: Outcome) {
        self.reports.push(Reconciled { path, outcome });
    }
}

/// Lays the release's file beside the user's. A name too long for that is only reported.
fn put_beside(upper: &Dir, name: &OsString, new: &There) -> Result<()> {
    let mut beside = name.clone();
    beside.push(BESIDE);
    if beside.len() > varve_format::path::MAX_NAME {
        return Ok(());
    }
    let beside = PathBuf::from(beside);
    upper.remove_all(&beside)?;
    match new {
        There::File { file, stat } => {
            let mut copy = upper.create_file(&beside, 0o600)?;
            copy.copy_from(file)?;
            let xattrs = varve_sys::file_xattrs(file, &beside)?;
            copy.set_attributes(&attributes(stat, &xattrs))
        }
        There::Link(target) => upper.symlink(target, &beside),
        There::Nothing | There::Other => Ok(()),
    }
}

fn attributes<'a>(stat: &Stat, xattrs: &'a varve_sys::Xattrs) -> Attributes<'a> {
    Attributes { mode: stat.mode & 0o7777, uid: stat.uid, gid: stat.gid, mtime: stat.mtime, xattrs }
}

fn unreadable(error: std::io::Error) -> SysError {
    SysError::new("read", Path::new("a file to compare"), error)
}

fn read_all(mut file: &File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).map_err(unreadable)?;
    file.take(MAX_MERGED + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

fn same_bytes(mut a: &File, mut b: &File) -> Result<bool> {
    std::io::Seek::rewind(&mut a).map_err(unreadable)?;
    std::io::Seek::rewind(&mut b).map_err(unreadable)?;
    let (mut x, mut y) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let got = a.read(&mut x).map_err(unreadable)?;
        if got == 0 {
            return Ok(b.read(&mut y).map_err(unreadable)? == 0);
        }
        if b.read_exact(&mut y[..got]).is_err() || x[..got] != y[..got] {
            return Ok(false);
        }
    }
}
