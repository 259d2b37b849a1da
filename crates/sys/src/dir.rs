//! A directory by descriptor: everything that Varve does to a tree goes through one.
//!
//! Paths given to a [`Dir`] are relative and are resolved beneath it: no `..`, no
//! symbolic link is followed, no other mount is entered (openat2(2), RESOLVE_BENEATH |
//! RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV). Calls that change a name take one component
//! only, so that the kernel has nothing to follow.
//!
//! Nothing here is durable by itself: see [`crate::durable`] for what makes it so.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context, Result, SysError};
use crate::file::NewFile;
use crate::trace::{self, Event};

/// A directory that is open.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// What `statx` says of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of names.
    pub links: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// For devices: which (`st_rdev`).
    pub special: u64,
    /// Length in bytes.
    pub size: u64,
    /// Blocks of 512 bytes that it takes.
    pub blocks: u64,
    /// Time of last modification: seconds since 1970, nanoseconds.
    pub mtime: (i64, u32),
    /// Time of last status change: seconds since 1970, nanoseconds.
    pub ctime: (i64, u32),
}

impl Stat {
    /// The kind of inode.
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.file_type() == FileType::RegularFile
    }

    /// Whether it is an overlay whiteout: a character device 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.file_type() == FileType::CharacterDevice && self.special == 0
    }
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name {
    /// The name.
    pub name: OsString,
    /// What the directory says that it is; `Unknown` on some file systems.
    pub file_type: FileType,
}

impl Dir {
    /// Opens a directory by any path; links in it are followed. The starting point:
    /// everything else is opened from here.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .context("open the directory", || path.into())?;
        Ok(Self { fd, path: path.into() })
    }

    /// Takes over an open descriptor; `path` is for messages and traces.
    pub fn from_fd(fd: OwnedFd, path: impl Into<PathBuf>) -> Self {
        Self { fd, path: path.into() }
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The path by which it was opened: for messages only.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One more descriptor for the same directory.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().context("duplicate", || self.path.clone())?;
        Ok(Self { fd, path: self.path.clone() })
    }

    fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        let name = name.as_ref();
        if name == Path::new(".") { self.path.clone() } else { self.path.join(name) }
    }

    fn beneath(&self, path: &Path, flags: OFlags, operation: &'static str) -> Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                // A rename elsewhere raced with the walk: openat2(2) asks to try again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other.context(operation, || self.at(path)),
            }
        }
    }

    /// Whether a path leads to something for a program whose root this directory is: links
    /// are followed, mounts are entered, and nothing leads out.
    pub fn leads_somewhere(&self, path: impl AsRef<Path>) -> Result<bool> {
        let path = path.as_ref();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
                Ok(_) => return Ok(true),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
                // A rename or a mount anywhere raced with a ".." of a link: openat2(2) asks
                // to try again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno).context("follow", || self.at(path)),
            }
        }
    }

    /// Opens a directory beneath.
    pub fn open_dir(&self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = self.beneath(path, flags, "open the directory")?;
        Ok(Self { fd, path: self.at(path) })
    }

    /// Opens a directory beneath; none when nothing is there.
    pub fn open_dir_opt(&self, path: impl AsRef<Path>) -> Result<Option<Self>> {
        found(self.open_dir(path))
    }

    /// Opens a directory directly in this one, made first when missing.
    pub fn make_dir(&self, name: impl AsRef<Path>, mode: u32) -> Result<Self> {
        match self.mkdir(name.as_ref(), mode) {
            Err(error) if !error.is_exists() => Err(error),
            _ => self.open_dir(name),
        }
    }

    /// Opens a file beneath for reading. Never blocks on a fifo: what is no regular
    /// file is an error.
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<File> {
        Ok(self.open_with_length(path.as_ref())?.0)
    }

    /// Opens, for reading, a file directly in this directory that the caller has examined
    /// to be a regular one. Never blocks, should another have taken its place.
    pub fn open_examined(&self, name: impl AsRef<Path>) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        Ok(File::from(self.beneath(one(name.as_ref()), flags, "open")?))
    }

    fn open_with_length(&self, path: &Path) -> Result<(File, u64)> {
        let fd = self.beneath(path, OFlags::RDONLY | OFlags::NONBLOCK, "open")?;
        let file = File::from(fd);
        let metadata = file.metadata().context("examine", || self.at(path))?;
        if !metadata.is_file() {
            let error = std::io::Error::other("it is not a regular file");
            return Err(SysError::new("open", self.at(path), error));
        }
        Ok((file, metadata.len()))
    }

    /// Reads a whole file beneath, at most `limit` bytes; longer is an error.
    pub fn read(&self, path: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let (file, length) = self.open_with_length(path)?;
        // One call for all of it, and one that says that this was all.
        let mut bytes = Vec::with_capacity(length.min(limit) as usize + 1);
        file.take(limit + 1).read_to_end(&mut bytes).context("read", || self.at(path))?;
        if bytes.len() as u64 > limit {
            let error = std::io::Error::other(format!("it is longer than {limit} bytes"));
            return Err(SysError::new("read", self.at(path), error));
        }
        Ok(bytes)
    }

    /// Reads a whole file beneath; none when nothing is there.
    pub fn read_opt(&self, path: impl AsRef<Path>, limit: u64) -> Result<Option<Vec<u8>>> {
        found(self.read(path, limit))
    }

    /// What is at a path of one component, or at `.`; links are not followed.
    pub fn stat(&self, name: impl AsRef<Path>) -> Result<Stat> {
        let name = name.as_ref();
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let s = rustix::fs::statat(&self.fd, name, flags).context("examine", || self.at(name))?;
        Ok(stat_from(&s))
    }

    /// As [`Self::stat`]; none when nothing is there.
    pub fn stat_opt(&self, name: impl AsRef<Path>) -> Result<Option<Stat>> {
        found(self.stat(name))
    }

    /// Where a symbolic link points.
    pub fn read_link(&self, name: impl AsRef<Path>) -> Result<Vec<u8>> {
        let name = name.as_ref();
        let target = rustix::fs::readlinkat(&self.fd, name, Vec::new())
            .context("read the link", || self.at(name))?;
        Ok(target.into_bytes())
    }

    /// The names in this directory, sorted by bytes; without `.` and `..`.
    pub fn names(&self) -> Result<Vec<Name>> {
        let whole = || self.path.clone();
        let own = rustix::fs::openat(
            &self.fd,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .context("open the directory", whole)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(own).context("list", whole)? {
            let entry = entry.context("list", whole)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let name = OsString::from_vec(name.to_vec());
                names.push(Name { name, file_type: entry.file_type() });
            }
        }
        names.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        Ok(names)
    }

    /// Makes a new file for writing; an error when the name is taken.
    pub fn create_file(&self, name: impl AsRef<Path>, mode: u32) -> Result<NewFile> {
        let name = one(name.as_ref());
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode))
            .context("create", || self.at(name))?;
        let path = self.at(name);
        trace::make(&path);
        Ok(NewFile::new(File::from(fd), path))
    }

    /// Opens an existing regular file of this directory for appending or rewriting.
    pub fn edit_file(&self, name: impl AsRef<Path>) -> Result<NewFile> {
        let name = one(name.as_ref());
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty())
            .context("open for writing", || self.at(name))?;
        Ok(NewFile::new(File::from(fd), self.at(name)))
    }

    /// Makes a directory.
    pub fn mkdir(&self, name: impl AsRef<Path>, mode: u32) -> Result<()> {
        let name = one(name.as_ref());
        rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode))
            .context("make the directory", || self.at(name))?;
        trace::make(&self.at(name));
        Ok(())
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, target: &[u8], name: impl AsRef<Path>) -> Result<()> {
        let name = one(name.as_ref());
        rustix::fs::symlinkat(OsStr::from_bytes(target), &self.fd, name)
            .context("make the symbolic link", || self.at(name))?;
        trace::make(&self.at(name));
        Ok(())
    }

    /// Makes a device, fifo or socket. `mode` holds the type bits too; `device` is
    /// `st_rdev`, zero for what is no device.
    pub fn mknod(&self, name: impl AsRef<Path>, mode: u32, device: u64) -> Result<()> {
        let name = one(name.as_ref());
        let kind = FileType::from_raw_mode(mode);
        rustix::fs::mknodat(&self.fd, name, kind, Mode::from_raw_mode(mode & 0o7777), device)
            .context("make the special file", || self.at(name))?;
        trace::make(&self.at(name));
        Ok(())
    }

    /// Makes an overlay whiteout: a character device 0:0.
    pub fn whiteout(&self, name: impl AsRef<Path>) -> Result<()> {
        self.mknod(name, 0o020000, 0)
    }

    /// Gives the inode `name` of this directory one more name in another; links are not
    /// followed.
    pub fn hard_link(&self, name: impl AsRef<Path>, to: &Dir, new: impl AsRef<Path>) -> Result<()> {
        let (name, new) = (one(name.as_ref()), one(new.as_ref()));
        rustix::fs::linkat(&self.fd, name, &to.fd, new, AtFlags::empty())
            .context("make the hard link", || to.at(new))?;
        trace::emit(|| Event::Link { from: self.at(name), to: to.at(new) });
        Ok(())
    }

    /// Moves a name; an error when `new` is taken.
    pub fn rename_new(
        &self,
        name: impl AsRef<Path>,
        to: &Dir,
        new: impl AsRef<Path>,
    ) -> Result<()> {
        self.rename_with(name.as_ref(), to, new.as_ref(), RenameFlags::NOREPLACE)
    }

    /// Moves a name over what stands at `new`.
    pub fn rename_over(
        &self,
        name: impl AsRef<Path>,
        to: &Dir,
        new: impl AsRef<Path>,
    ) -> Result<()> {
        self.rename_with(name.as_ref(), to, new.as_ref(), RenameFlags::empty())
    }

    /// Lets two names change places.
    pub fn exchange(
        &self,
        name: impl AsRef<Path>,
        to: &Dir,
        other: impl AsRef<Path>,
    ) -> Result<()> {
        self.rename_with(name.as_ref(), to, other.as_ref(), RenameFlags::EXCHANGE)
    }

    fn rename_with(&self, name: &Path, to: &Dir, new: &Path, flags: RenameFlags) -> Result<()> {
        let (name, new) = (one(name), one(new));
        rustix::fs::renameat_with(&self.fd, name, &to.fd, new, flags)
            .context("rename", || self.at(name))?;
        trace::emit(|| {
            let (from, to) = (self.at(name), to.at(new));
            if flags.contains(RenameFlags::EXCHANGE) {
                Event::Exchange { one: from, other: to }
            } else {
                Event::Rename { from, to }
            }
        });
        Ok(())
    }

    /// Removes a name that is not a directory.
    pub fn unlink(&self, name: impl AsRef<Path>) -> Result<()> {
        self.remove(one(name.as_ref()), AtFlags::empty())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, name: impl AsRef<Path>) -> Result<()> {
        self.remove(one(name.as_ref()), AtFlags::REMOVEDIR)
    }

    fn remove(&self, name: &Path, flags: AtFlags) -> Result<()> {
        rustix::fs::unlinkat(&self.fd, name, flags).context("remove", || self.at(name))?;
        trace::emit(|| Event::Remove(self.at(name)));
        Ok(())
    }

    /// Removes a name and everything below it; nothing there is no error. Never leaves
    /// the file system and never follows a link. Works without free space.
    pub fn remove_all(&self, name: impl AsRef<Path>) -> Result<()> {
        let name = one(name.as_ref());
        let Some(stat) = self.stat_opt(name)? else { return Ok(()) };
        if !stat.is_dir() {
            return self.unlink(name);
        }
        let below = self.open_dir(name)?;
        for entry in below.names()? {
            below.remove_all(&entry.name)?;
        }
        drop(below);
        self.rmdir(name)
    }
}

/// Follows a tree in the order of a manifest, with the directories on the way open:
/// each path costs one open for each directory that the last path was not in.
#[derive(Debug)]
pub struct Walk {
    chain: Vec<(OsString, Dir)>,
    top: Dir,
}

impl Walk {
    /// Starts at `top`.
    pub fn new(top: Dir) -> Self {
        Self { chain: Vec::new(), top }
    }

    /// The directory at a relative path; `.` or an empty path is the top.
    pub fn dir(&mut self, path: &Path) -> Result<&Dir> {
        let wanted: Vec<&OsStr> =
            path.iter().filter(|name| !name.is_empty() && *name != OsStr::new(".")).collect();
        let same = self.chain.iter().zip(&wanted).take_while(|((have, _), want)| have == *want);
        let same = same.count();
        self.chain.truncate(same);
        for name in &wanted[same..] {
            let next = self.chain.last().map_or(&self.top, |(_, dir)| dir).open_dir(name)?;
            self.chain.push(((*name).to_owned(), next));
        }
        Ok(self.chain.last().map_or(&self.top, |(_, dir)| dir))
    }

    /// The directory that holds a relative path, and the path's last component (`.`
    /// for the top itself).
    pub fn parent<'p>(&mut self, path: &'p Path) -> Result<(&Dir, &'p OsStr)> {
        let name = path.file_name().unwrap_or(OsStr::new("."));
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok((self.dir(parent)?, name))
    }
}

/// Turns "nothing there" into none.
pub(crate) fn found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// A name that changes must be one component: the caller's mistake otherwise.
fn one(name: &Path) -> &Path {
    assert!(
        !name.as_os_str().as_bytes().contains(&b'/') && name != Path::new(".."),
        "a single name is expected, not {}",
        name.display()
    );
    name
}

pub(crate) fn stat_from(s: &rustix::fs::Stat) -> Stat {
    Stat {
        device: s.st_dev,
        inode: s.st_ino,
        mode: s.st_mode,
        links: s.st_nlink,
        uid: s.st_uid,
        gid: s.st_gid,
        special: s.st_rdev,
        size: s.st_size as u64,
        blocks: s.st_blocks as u64,
        mtime: (s.st_mtime, s.st_mtime_nsec as u32),
        ctime: (s.st_ctime, s.st_ctime_nsec as u32),
    }
}
