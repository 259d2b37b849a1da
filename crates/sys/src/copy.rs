//! A copy of a whole directory, to the last attribute: for state, never for releases.

use std::collections::HashMap;
use std::path::Path;

use rustix::fs::FileType;

use crate::dir::{Dir, Stat};
use crate::error::Result;
use crate::meta::Attributes;

/// Copies the directory `name` of `from` to the free name `new` of `to`: every file
/// type, hard links among what is copied, holes, all extended attributes (overlay's
/// private ones and whiteouts too), times. Blocks are shared where the file system can.
/// Sockets are copied as such. Nothing is synced.
pub fn copy_tree(
    from: &Dir,
    name: impl AsRef<Path>,
    to: &Dir,
    new: impl AsRef<Path>,
) -> Result<()> {
    let mut copy = Copy { names: HashMap::new(), top: to.try_clone()? };
    let name = name.as_ref();
    copy.entry(from, name, &from.stat(name)?, to, new.as_ref(), Path::new(""))
}

struct Copy {
    /// Where the first name of an inode with several was copied to, below `top`.
    names: HashMap<(u64, u64), std::path::PathBuf>,
    top: Dir,
}

impl Copy {
    fn entry(
        &mut self,
        from: &Dir,
        name: &Path,
        stat: &Stat,
        to: &Dir,
        new: &Path,
        below: &Path,
    ) -> Result<()> {
        let target = below.join(new);
        if !stat.is_dir() && stat.links > 1 {
            if let Some(first) = self.names.get(&(stat.device, stat.inode)) {
                let parent = first.parent().unwrap_or(Path::new(""));
                let parent = if parent == Path::new("") { Path::new(".") } else { parent };
                let first_dir = self.top.open_dir(parent)?;
                return first_dir.hard_link(first.file_name().expect("a name"), to, new);
            }
            self.names.insert((stat.device, stat.inode), target.clone());
        }
        let xattrs = from.xattrs(name)?;
        let attributes = Attributes {
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            xattrs: &xattrs,
        };
        match stat.file_type() {
            FileType::Directory => {
                to.mkdir(new, 0o700)?;
                let (inner_from, inner_to) = (from.open_dir(name)?, to.open_dir(new)?);
                for entry in inner_from.names()? {
                    let child = Path::new(&entry.name);
                    let stat = inner_from.stat(child)?;
                    self.entry(&inner_from, child, &stat, &inner_to, child, &target)?;
                }
            }
            FileType::RegularFile => {
                let source = from.open_file(name)?;
                let mut file = to.create_file(new, 0o600)?;
                file.copy_from(&source)?;
                return file.set_attributes(&attributes);
            }
            FileType::Symlink => to.symlink(&from.read_link(name)?, new)?,
            _ => to.mknod(new, stat.mode, stat.special)?,
        }
        to.set_attributes(new, &attributes)
    }
}
