//! Owner, mode, times and extended attributes of what stands in a directory.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::dir::Dir;
use crate::error::{Context, Result};
use crate::file::NewFile;
use crate::trace;

/// Extended attributes: names and values, sorted by name.
pub type Xattrs = Vec<Xattr>;

/// An extended attribute: its name, its value.
pub type Xattr = (Box<[u8]>, Box<[u8]>);

/// Everything about an inode that is set after it was made.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// Permission bits, with setuid, setgid and sticky; not used for symbolic links.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of modification (and of access): seconds since 1970, nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes to set.
    pub xattrs: &'a [Xattr],
}

fn times(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn owner(a: &Attributes<'_>) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(a.uid)), Some(Gid::from_raw(a.gid)))
}

impl NewFile {
    /// Sets everything, in the order in which nothing undoes what came before: owner
    /// (clears setuid and capabilities), mode, attributes (an ACL sets the group bits), times.
    pub fn set_attributes(&self, a: &Attributes<'_>) -> Result<()> {
        let file = self.file();
        let path = || self.path().to_owned();
        let (uid, gid) = owner(a);
        rustix::fs::fchown(file, uid, gid).context("set the owner of", path)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(a.mode)).context("set the mode of", path)?;
        for (name, value) in a.xattrs {
            rustix::fs::fsetxattr(file, OsStr::from_bytes(name), value, XattrFlags::empty())
                .context("set an extended attribute of", path)?;
        }
        rustix::fs::futimens(file, &times(a.mtime)).context("set the times of", path)?;
        trace::change(self.path());
        Ok(())
    }
}

impl Dir {
    /// A path that names `name` of this directory for calls without an `at` form. The
    /// kernel resolves the descriptor; the last component is not followed by `l*` calls.
    fn by_descriptor(&self, name: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd().as_raw_fd())).join(name)
    }

    /// Sets everything on `name` (or `.`), whatever it is, without following a link.
    /// Directories last: what is made in them changes their times.
    pub fn set_attributes(&self, name: impl AsRef<Path>, a: &Attributes<'_>) -> Result<()> {
        let name = name.as_ref();
        let full = || self.path().join(name);
        let (uid, gid) = owner(a);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(self.fd(), name, uid, gid, flags).context("set the owner of", full)?;
        let is_link = self.stat(name)?.file_type() == rustix::fs::FileType::Symlink;
        if !is_link {
            rustix::fs::chmodat(self.fd(), name, Mode::from_raw_mode(a.mode), AtFlags::empty())
                .context("set the mode of", full)?;
        }
        for (key, value) in a.xattrs {
            self.set_xattr(name, key, value)?;
        }
        self.set_times(name, a.mtime)
    }

    /// Sets the times of modification and of access of `name` (or `.`): seconds since 1970,
    /// nanoseconds. A link is not followed.
    pub fn set_times(&self, name: impl AsRef<Path>, mtime: (i64, u32)) -> Result<()> {
        let name = name.as_ref();
        let full = || self.path().join(name);
        rustix::fs::utimensat(self.fd(), name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
            .context("set the times of", full)?;
        trace::change(&full());
        Ok(())
    }

    /// Sets one extended attribute on `name` (or `.`), without following a link.
    pub fn set_xattr(&self, name: impl AsRef<Path>, key: &[u8], value: &[u8]) -> Result<()> {
        let name = name.as_ref();
        let path = self.by_descriptor(name);
        rustix::fs::lsetxattr(path, OsStr::from_bytes(key), value, XattrFlags::empty())
            .context("set an extended attribute of", || self.path().join(name))?;
        trace::change(&self.path().join(name));
        Ok(())
    }

    /// Reads one extended attribute of `name` (or `.`); none when it is not there.
    pub fn xattr(&self, name: impl AsRef<Path>, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let name = name.as_ref();
        let path = self.by_descriptor(name);
        let read = |buffer: &mut Vec<u8>| {
            rustix::fs::lgetxattr(&path, OsStr::from_bytes(key), &mut buffer[..])
        };
        let mut buffer = vec![0; 256];
        match read(&mut buffer) {
            Err(Errno::RANGE) => {
                buffer.resize(64 << 10, 0);
                let length = read(&mut buffer)
                    .context("read an extended attribute of", || self.path().join(name))?;
                buffer.truncate(length);
                Ok(Some(buffer))
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            other => {
                let length =
                    other.context("read an extended attribute of", || self.path().join(name))?;
                buffer.truncate(length);
                Ok(Some(buffer))
            }
        }
    }

    /// All extended attributes of `name` (or `.`), sorted by name; links not followed.
    pub fn xattrs(&self, name: impl AsRef<Path>) -> Result<Xattrs> {
        let name = name.as_ref();
        let path = self.by_descriptor(name);
        let full = || self.path().join(name);
        let list = match list_xattrs(|buffer| rustix::fs::llistxattr(&path, buffer)) {
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            other => other.context("list the extended attributes of", full)?,
        };
        let mut xattrs = Vec::new();
        for key in list.split(|&b| b == 0).filter(|key| !key.is_empty()) {
            if let Some(value) = self.xattr(name, key)? {
                xattrs.push((key.into(), value.into()));
            }
        }
        xattrs.sort();
        Ok(xattrs)
    }
}

/// All extended attributes of an open file, sorted by name.
pub fn file_xattrs(file: &File, path: &Path) -> Result<Xattrs> {
    let full = || path.to_owned();
    let list = match list_xattrs(|buffer| rustix::fs::flistxattr(file.as_fd(), buffer)) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other.context("list the extended attributes of", full)?,
    };
    let mut xattrs = Xattrs::new();
    for key in list.split(|&b| b == 0).filter(|key| !key.is_empty()) {
        let name = CString::new(key).expect("split at zeros");
        let mut buffer = vec![0; 64 << 10];
        let length = rustix::fs::fgetxattr(file, name.as_c_str(), &mut buffer[..])
            .context("read an extended attribute of", full)?;
        buffer.truncate(length);
        xattrs.push((key.into(), buffer.into()));
    }
    xattrs.sort();
    Ok(xattrs)
}

fn list_xattrs(
    list: impl Fn(&mut [u8]) -> std::result::Result<usize, Errno>,
) -> std::result::Result<Vec<u8>, Errno> {
    // XATTR_LIST_MAX is 64 KiB; most inodes have none, which a small buffer shows.
    for size in [512, 64 << 10] {
        let mut buffer = vec![0; size];
        match list(&mut buffer) {
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error),
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    }
    Err(Errno::RANGE)
}
