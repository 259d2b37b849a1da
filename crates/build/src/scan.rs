//! A directory's tree: first every name with its metadata, then the contents in the
//! order of the manifest.
//!
//! Nothing is followed and no other file system is entered. A file that changes while
//! it is read is an error: its manifest would describe a tree that never was.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use rustix::io::Errno;
use varve_format::manifest::{Manifest, is_overlay_private};
use varve_format::tree::{Device, Entry, Kind, Metadata, Time, Xattrs};
use varve_format::verity::content_digest;
use varve_format::{ContentDigest, TreePath};
use varve_sys::task::Cancel;
use varve_sys::{Dir, FileType, Stat, SysError, file_xattrs};

use crate::contents::{Contents, named};
use crate::error::{BuildError, Result};

/// A directory's names and metadata; its contents have not been read.
pub(crate) struct Scanned {
    entries: Vec<Entry>,
    /// The files that have content, by their place in `entries`, with what was seen.
    files: Vec<(usize, Stat)>,
    /// Bytes of all contents, each inode counted once.
    pub(crate) bytes: u64,
}

/// Walks the tree.
pub(crate) fn walk(top: &Dir, cancel: &Cancel) -> Result<Scanned> {
    let mut walk = Walker { top, entries: Vec::new(), files: Vec::new(), inodes: HashMap::new() };
    let stat = top.stat(".")?;
    let device = stat.device;
    let xattrs = top.xattrs(".")?;
    walk.push(TreePath::root(), &stat, xattrs, Kind::Directory)?;
    // Directories still to be read. Each is opened by its whole path, so that a tree of
    // any depth needs one descriptor.
    let mut pending = vec![TreePath::root()];
    while let Some(path) = pending.pop() {
        cancel.check()?;
        let dir = top.open_dir(path.as_path()).map_err(|error| mount_point(error, &path))?;
        for name in dir.names()? {
            let child = path
                .join(name.name.as_encoded_bytes())
                .map_err(|error| BuildError::entry(&path, error.to_string()))?;
            let stat = dir.stat(&name.name)?;
            if stat.device != device {
                return Err(BuildError::entry(
                    &child,
                    "lies on another file system: unmount it, or build from a directory on one",
                ));
            }
            if walk.entry(&dir, Path::new(&name.name), &child, &stat)? {
                pending.push(child);
            }
        }
    }
    let Walker { entries, files, .. } = walk;
    let bytes = files.iter().map(|(_, stat)| stat.size).sum();
    Ok(Scanned { entries, files, bytes })
}

struct Walker<'a> {
    top: &'a Dir,
    entries: Vec<Entry>,
    files: Vec<(usize, Stat)>,
    /// The first name found of each inode that has several.
    inodes: HashMap<u64, TreePath>,
}

impl Walker<'_> {
    /// Takes one name; true for a directory.
    fn entry(&mut self, dir: &Dir, name: &Path, path: &TreePath, stat: &Stat) -> Result<bool> {
        if !stat.is_dir() && stat.links > 1 {
            if let Some(first) = self.inodes.get(&stat.inode) {
                self.entries.push(Entry::hard_link(path.clone(), first.clone()));
                return Ok(false);
            }
            self.inodes.insert(stat.inode, path.clone());
        }
        let device = Device(stat.special);
        let kind = match stat.file_type() {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => {
                self.files.push((self.entries.len(), *stat));
                Kind::Regular { size: stat.size, digest: ContentDigest([0; 32]) }
            }
            FileType::Symlink => Kind::Symlink { target: dir.read_link(name)?.into() },
            FileType::CharacterDevice => Kind::CharDevice(device),
            FileType::BlockDevice => Kind::BlockDevice(device),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => return Err(BuildError::entry(path, "is of a kind that no release can hold")),
        };
        // A file's attributes are read with its content, by descriptor.
        let xattrs = if stat.is_file() { Xattrs::new() } else { dir.xattrs(name)? };
        let is_dir = kind == Kind::Directory;
        self.push(path.clone(), stat, xattrs, kind)?;
        Ok(is_dir)
    }

    fn push(&mut self, path: TreePath, stat: &Stat, xattrs: Xattrs, kind: Kind) -> Result<()> {
        check_xattrs(&path, &xattrs)?;
        if path.is_root() && !stat.is_dir() {
            return Err(BuildError::entry(self.top.path().display(), "is not a directory"));
        }
        let (seconds, nanoseconds) = stat.mtime;
        let mtime = Time { seconds, nanoseconds };
        let mode = stat.mode & 0o7777;
        let meta = Metadata { mode, uid: stat.uid, gid: stat.gid, mtime, xattrs };
        self.entries.push(Entry { path, kind, meta });
        Ok(())
    }
}

impl Scanned {
    /// Reads every content, in the order of the manifest, and gives the manifest.
    pub(crate) fn read(mut self, top: &Dir, contents: &mut dyn Contents) -> Result<Manifest> {
        let entries = &mut self.entries;
        self.files.sort_by(|a, b| entries[a.0].path.cmp(&entries[b.0].path));
        for (at, stat) in self.files {
            let entry = &mut entries[at];
            let file = top
                .open_file(entry.path.as_path())
                .map_err(|error| mount_point(error, &entry.path))?;
            let full = top.path().join(entry.path.as_path());
            entry.meta.xattrs = file_xattrs(&file, &full)?;
            check_xattrs(&entry.path, &entry.meta.xattrs)?;
            if stat.size == 0 {
                let digest = content_digest(b"");
                entry.kind = Kind::Regular { size: 0, digest };
                continue;
            }
            let read = |source| BuildError::Read { what: full.display().to_string(), source };
            let allocated = stat.blocks * 512;
            let content = if allocated < stat.size {
                let mut reader = Sparse::new(&file, stat.size);
                named(contents.take(&mut reader), read)?
            } else {
                named(contents.take(&mut &file), read)?
            };
            let after = rustix::fs::fstat(&file).map_err(|e| read(e.into()))?;
            let now = (after.st_ino, after.st_mtime, after.st_mtime_nsec as u32);
            if now != (stat.inode, stat.mtime.0, stat.mtime.1) || content.size != stat.size {
                let why = "changed while it was read: build from a tree that nobody writes to";
                return Err(BuildError::entry(&entry.path, why));
            }
            entry.kind = Kind::Regular { size: content.size, digest: content.digest };
        }
        Ok(Manifest::from_entries(self.entries)?)
    }
}

/// Refuses what would have a meaning of its own on a device.
pub(crate) fn check_xattrs(path: &TreePath, xattrs: &Xattrs) -> Result<()> {
    let Some((name, _)) = xattrs.iter().find(|(name, _)| is_overlay_private(name)) else {
        return Ok(());
    };
    let name = String::from_utf8_lossy(name);
    Err(BuildError::entry(
        path,
        format!(
            "has the private overlayfs attribute {name}: build from the merged view (the \
             mount), not from an upper directory"
        ),
    ))
}

fn mount_point(error: SysError, path: &TreePath) -> BuildError {
    if error.is_other_file_system() {
        BuildError::entry(path, "is a mount point: unmount it first")
    } else {
        error.into()
    }
}

/// Reads a file with holes: data from the disk, zeros for the holes without reading.
struct Sparse<'a> {
    file: &'a File,
    size: u64,
    at: u64,
    /// Where the data or hole at `at` ends, and whether it is data.
    end: u64,
    is_data: bool,
}

impl<'a> Sparse<'a> {
    fn new(file: &'a File, size: u64) -> Self {
        Self { file, size, at: 0, end: 0, is_data: false }
    }

    fn next_extent(&mut self) -> io::Result<()> {
        match rustix::fs::seek(self.file, rustix::fs::SeekFrom::Data(self.at)) {
            Ok(start) if start == self.at => {
                self.end = rustix::fs::seek(self.file, rustix::fs::SeekFrom::Hole(start))?;
                self.is_data = true;
                (&mut &*self.file).seek(SeekFrom::Start(self.at))?;
            }
            Ok(start) => (self.end, self.is_data) = (start, false),
            Err(Errno::NXIO) => (self.end, self.is_data) = (self.size, false),
            Err(error) => return Err(error.into()),
        }
        self.end = self.end.min(self.size);
        Ok(())
    }
}

impl Read for Sparse<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.size {
            return Ok(0);
        }
        if self.at >= self.end {
            self.next_extent()?;
        }
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let want = buffer.len().min(left);
        let got = if self.is_data {
            (&mut &*self.file).read(&mut buffer[..want])?
        } else {
            buffer[..want].fill(0);
            want
        };
        self.at += got as u64;
        Ok(got)
    }
}
