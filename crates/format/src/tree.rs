//! What a tree holds: one entry for each path, with all that Linux keeps about it.

use std::fmt;

use crate::id::ContentDigest;
use crate::path::TreePath;

/// The longest name of an extended attribute, in bytes (XATTR_NAME_MAX).
pub const MAX_XATTR_NAME: usize = 255;
/// The longest value of an extended attribute, in bytes (XATTR_SIZE_MAX).
pub const MAX_XATTR_VALUE: usize = 65536;
/// The longest target of a symbolic link, in bytes (PATH_MAX without its closing zero).
pub const MAX_TARGET: usize = 4095;

/// A time of modification, as published.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time {
    /// Seconds since 1970-01-01 00:00:00 UTC; negative before.
    pub seconds: i64,
    /// Nanoseconds after that second, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// Extended attributes by name, sorted by name. Overlay's private ones never occur.
pub type Xattrs = Vec<(Box<[u8]>, Box<[u8]>)>;

/// What every inode has beside its content.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky (07777 at most).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Time,
    /// Extended attributes; sorted by name, no name twice.
    pub xattrs: Xattrs,
}

/// A device number, in the kernel's 64-bit encoding as `stat` gives it (`makedev(3)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Device(pub u64);

/// What stands at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file with content.
    Regular {
        /// Length in bytes.
        size: u64,
        /// fs-verity digest of the content.
        digest: ContentDigest,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as it stands; never followed by Varve.
        target: Box<[u8]>,
    },
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A Unix socket left in the tree.
    Socket,
    /// One more name of the inode at `target`, which stands earlier in the manifest and
    /// is neither a directory nor a hard link itself. The entry's metadata is unused.
    HardLink {
        /// The first name of the inode.
        target: TreePath,
    },
}

impl Kind {
    /// The file type bits of `st_mode` (S_IFMT); zero for a hard link.
    pub fn type_bits(&self) -> u32 {
        match self {
            Kind::Directory => 0o040000,
            Kind::Regular { .. } => 0o100000,
            Kind::Symlink { .. } => 0o120000,
            Kind::CharDevice(_) => 0o020000,
            Kind::BlockDevice(_) => 0o060000,
            Kind::Fifo => 0o010000,
            Kind::Socket => 0o140000,
            Kind::HardLink { .. } => 0,
        }
    }

    /// In words, for messages.
    pub fn word(&self) -> &'static str {
        match self {
            Kind::Directory => "directory",
            Kind::Regular { .. } => "file",
            Kind::Symlink { .. } => "symbolic link",
            Kind::CharDevice(_) => "character device",
            Kind::BlockDevice(_) => "block device",
            Kind::Fifo => "fifo",
            Kind::Socket => "socket",
            Kind::HardLink { .. } => "hard link",
        }
    }
}

/// One path of a tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Where it stands.
    pub path: TreePath,
    /// What it is.
    pub kind: Kind,
    /// Owner, mode, times, attributes. Default for a hard link.
    pub meta: Metadata,
}

impl Entry {
    /// A further name for the inode at `target`.
    pub fn hard_link(path: TreePath, target: TreePath) -> Self {
        Self { path, kind: Kind::HardLink { target }, meta: Metadata::default() }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.seconds, self.nanoseconds)
    }
}
