//! Two deployments side by side, as programs would see them.

use std::io::Read;

use varve_format::TreePath;
use varve_rootfs::resolve::{Resolved, Resolver};
use varve_sys::{FileType, SysError};

/// What runs now, and what is to be shown instead.
pub(super) struct Views {
    pub(super) old: Resolver,
    pub(super) new: Resolver,
}

impl Views {
    /// Whether a path leads to another file, to other bytes, or to none in one of the two.
    pub(super) fn differ(&mut self, path: &[u8]) -> Result<bool, SysError> {
        match (self.old.follow(path)?, self.new.follow(path)?) {
            (None, None) => Ok(false),
            (Some(old), Some(new)) => self.unequal(&old, &new),
            _ => Ok(true),
        }
    }

    fn unequal(&mut self, old: &Resolved, new: &Resolved) -> Result<bool, SysError> {
        let (Some(a), Some(b)) = (old.stat, new.stat) else {
            return Ok(old.stat.is_some() != new.stat.is_some());
        };
        if (a.device, a.inode) == (b.device, b.inode) || (a.is_dir() && b.is_dir()) {
            return Ok(false);
        }
        let meta = |stat: varve_sys::Stat| (stat.mode, stat.uid, stat.gid, stat.size, stat.special);
        if meta(a) != meta(b) {
            return Ok(true);
        }
        match a.file_type() {
            FileType::RegularFile => {
                let (old, new) =
                    (self.old.open(old.path.as_bytes())?, self.new.open(new.path.as_bytes())?);
                let (Some(old), Some(new)) = (old, new) else { return Ok(true) };
                Ok(!same_bytes(old, new))
            }
            FileType::Symlink => {
                Ok(link(&mut self.old, &old.path)? != link(&mut self.new, &new.path)?)
            }
            _ => Ok(false),
        }
    }

    /// Whether what stands at a path differs, no link followed: directories alone do not.
    pub(super) fn differ_at(&mut self, path: &TreePath) -> Result<bool, SysError> {
        match (self.old.look(path)?, self.new.look(path)?) {
            (None, None) => Ok(false),
            (Some(old), Some(new)) => {
                let at = |stat| Resolved { path: path.clone(), stat: Some(stat) };
                self.unequal(&at(old), &at(new))
            }
            _ => Ok(true),
        }
    }

    /// Paths below a directory that differ, no link followed, up to `limit` of them.
    pub(super) fn differences(
        &mut self,
        dir: &TreePath,
        but: &[&str],
        limit: usize,
    ) -> Result<Vec<TreePath>, SysError> {
        let mut found = Vec::new();
        let mut left = vec![dir.clone()];
        while let Some(dir) = left.pop() {
            let mut names = self.old.names(&dir)?;
            names.extend(self.new.names(&dir)?);
            names.sort();
            names.dedup();
            for name in names {
                let Ok(path) = dir.join(name.as_encoded_bytes()) else { continue };
                if but.iter().any(|other| path.as_bytes() == other.as_bytes()) {
                    continue;
                }
                let is_dir = |stat: Option<varve_sys::Stat>| stat.is_some_and(|s| s.is_dir());
                if is_dir(self.old.look(&path)?) && is_dir(self.new.look(&path)?) {
                    left.push(path);
                    continue;
                }
                let differ = self.differ_at(&path)?;
                if differ {
                    found.push(path);
                    if found.len() == limit {
                        return Ok(found);
                    }
                }
            }
        }
        Ok(found)
    }
}

fn link(view: &mut Resolver, path: &TreePath) -> Result<Option<Vec<u8>>, SysError> {
    match view.holder(path)? {
        Some((_, dir, _)) => dir.read_link(path.name()).map(Some),
        None => Ok(None),
    }
}

/// Files that cannot be read are not the same.
fn same_bytes(mut a: std::fs::File, mut b: std::fs::File) -> bool {
    let (mut one, mut two) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let (Ok(n), Ok(m)) = (fill(&mut a, &mut one), fill(&mut b, &mut two)) else {
            return false;
        };
        if one[..n] != two[..m] {
            return false;
        }
        if n == 0 {
            return true;
        }
    }
}

fn fill(file: &mut std::fs::File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut full = 0;
    while full < buffer.len() {
        match file.read(&mut buffer[full..])? {
            0 => break,
            count => full += count,
        }
    }
    Ok(full)
}
