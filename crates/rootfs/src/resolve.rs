//! Paths of a view as a program in that root would follow them: symbolic links lead on,
//! inside the root, and never out of it.
//!
//! Callers: compose (a layer must not stand a directory where the system has a link), the
//! update manager's checks (where is init, where is a library).

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;

use varve_format::TreePath;
use varve_sys::{Dir, FileType, Result, Stat};

use crate::view::{Looked, MergedWalk};

/// As many links as the kernel follows (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

/// Follows paths in a stack of layers.
#[derive(Debug)]
pub struct Resolver {
    walk: MergedWalk,
}

/// What a path leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// Without any link in it.
    pub path: TreePath,
    /// What stands there; none for the root itself.
    pub stat: Option<Stat>,
}

impl Resolved {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.stat.is_none_or(|stat| stat.is_dir())
    }
}

impl Resolver {
    /// Of a stack, newest layer first.
    pub fn new(layers: Vec<Dir>) -> Self {
        Self { walk: MergedWalk::new(layers) }
    }

    /// What the view has at a path, no link followed.
    pub fn look(&mut self, path: &TreePath) -> Result<Option<Stat>> {
        Ok(self.walk.find_in(path.as_path())?.map(|(_, _, _, stat)| stat))
    }

    /// The directory that holds a path, and its layer: no link followed.
    pub fn holder(&mut self, path: &TreePath) -> Result<Option<(usize, &Dir, Stat)>> {
        let found = self.walk.find_in(path.as_path())?;
        Ok(found.map(|(layer, dir, _, stat)| (layer, dir, stat)))
    }

    /// The directory at a path whose attributes show, no link followed; none when the
    /// view has no directory there.
    pub fn directory(&mut self, path: &TreePath) -> Result<Option<&Dir>> {
        Ok(self.walk.dir(path.as_path())?.map(|merged| merged.top()))
    }

    /// The names that show in the directory at a path, no link followed.
    pub fn names(&mut self, path: &TreePath) -> Result<Vec<OsString>> {
        let Some(merged) = self.walk.dir(path.as_path())? else { return Ok(Vec::new()) };
        let names = merged.names()?.into_iter();
        let shows = |(name, looked)| matches!(looked, Looked::Found(_)).then_some(name);
        Ok(names.filter_map(shows).collect())
    }

    /// Opens the file that a path leads to; none when it leads to no file.
    pub fn open(&mut self, path: &[u8]) -> Result<Option<File>> {
        let Some(Resolved { path, stat: Some(stat) }) = self.follow(path)? else {
            return Ok(None);
        };
        if !stat.is_file() {
            return Ok(None);
        }
        match self.walk.find_in(path.as_path())? {
            Some((_, dir, name, _)) => dir.open_file(name).map(Some),
            None => Ok(None),
        }
    }

    /// What a path leads to, every link followed; `.` and `..` are understood. None when
    /// it leads nowhere: something is missing on the way, or it goes in a circle.
    pub fn follow(&mut self, path: &[u8]) -> Result<Option<Resolved>> {
        let mut rest: Vec<Vec<u8>> = components(path);
        let mut here = Resolved { path: TreePath::root(), stat: None };
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == b".." {
                let parent = here.path.parent().unwrap_or_default();
                here = self.at(parent)?;
                continue;
            }
            if !here.is_dir() {
                return Ok(None);
            }
            let Ok(next) = here.path.join(&name) else { return Ok(None) };
            let Some((_, dir, last, stat)) = self.walk.find_in(next.as_path())? else {
                return Ok(None);
            };
            if stat.file_type() != FileType::Symlink {
                here = Resolved { path: next, stat: Some(stat) };
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Ok(None);
            }
            let target = dir.read_link(last)?;
            if target.first() == Some(&b'/') {
                here = Resolved { path: TreePath::root(), stat: None };
            }
            rest.extend(components(&target));
        }
        Ok(Some(here))
    }

    /// Where a new path would come to stand: links on the way are followed as far as they
    /// lead to directories, the last component is not.
    pub fn place(&mut self, path: &TreePath) -> Result<TreePath> {
        let Some(parent) = path.parent() else { return Ok(path.clone()) };
        let mut here = TreePath::root();
        for name in parent.components() {
            let Ok(next) = here.join(name.as_bytes()) else { return Ok(path.clone()) };
            here = match self.follow(next.as_bytes())? {
                Some(found) if found.is_dir() => found.path,
                _ => next,
            };
        }
        Ok(here.join(path.name().as_bytes()).unwrap_or_else(|_| path.clone()))
    }

    fn at(&mut self, path: TreePath) -> Result<Resolved> {
        let stat = match path.is_root() {
            true => None,
            false => self.look(&path)?,
        };
        Ok(Resolved { path, stat })
    }
}

/// The components of a path that lead anywhere, the last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|&b| b == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let mut names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_on_inside_the_root_and_never_in_circles() {
        let folder = tempfile::tempdir().unwrap();
        let base = Dir::open(folder.path()).unwrap();
        let usr = base.make_dir("usr", 0o755).unwrap();
        usr.make_dir("lib", 0o755).unwrap().create_file("init", 0o755).unwrap();
        base.symlink(b"usr/lib", "lib").unwrap();
        base.symlink(b"/lib/../lib/./init", "init").unwrap();
        base.symlink(b"../../../../lib/init", "above").unwrap();
        base.symlink(b"b", "a").unwrap();
        base.symlink(b"a", "b").unwrap();
        base.symlink(b"nowhere", "dangling").unwrap();
        let mut view = Resolver::new(vec![base]);
        let mut follow =
            |path: &str| view.follow(path.as_bytes()).unwrap().map(|found| found.path.to_string());
        for path in ["init", "/above", "lib/init", "usr/../lib/init"] {
            assert_eq!(follow(path).as_deref(), Some("/usr/lib/init"), "{path}");
        }
        for path in ["a", "dangling", "init/x", "lib/none"] {
            assert_eq!(follow(path), None, "{path}");
        }
        let mut place =
            |path: &str| view.place(&TreePath::new(path.as_bytes()).unwrap()).unwrap().to_string();
        assert_eq!(place("lib/new/x"), "/usr/lib/new/x");
        assert_eq!(place("lib"), "/lib", "the last is not followed");
        assert_eq!(place("dangling/x"), "/dangling/x");
        assert!(view.open(b"init").unwrap().is_some());
        assert!(view.open(b"lib").unwrap().is_none());
    }
}
