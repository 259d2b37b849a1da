//! One file that a FUSE mount shows, so that every read, write and flush of a disk comes by.
//!
//! ```text
//! loop device, qemu ... --write, fsync--> <mount>/disk --> Backing: what becomes of it
//! ```
//!
//! One thread serves it: the order in which the backing sees things is that of the disk.
//! The process that serves must not wait for the file itself: what it has killed threads of
//! would never end. A recording disk has a process of its own for that (see `server`); on
//! the disk of a virtual machine only qemu waits.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, SessionACL, WriteFlags,
};

use crate::error::{At, Result};

const DISK: INodeNo = INodeNo(2);
/// The file's name in the mount.
pub(crate) const NAME: &str = "disk";
const FOREVER: Duration = Duration::from_secs(3600);
/// The largest single write, in bytes; the kernel cuts longer ones.
const MAX_WRITE: u32 = 1 << 20;

/// What stands behind the file. Offsets and lengths are in bytes and within its size.
pub(crate) trait Backing: Send + 'static {
    /// Fills `bytes` with what is at `offset` now.
    fn read(&mut self, bytes: &mut [u8], offset: u64) -> Result<()>;
    /// Takes a write; it need not be durable.
    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Makes zeros of a range; it need not be durable.
    fn zero(&mut self, offset: u64, length: u64) -> Result<()>;
    /// Everything that was taken before is durable from here on.
    fn flush(&mut self) -> Result<()>;
    /// One of these failed: the kernel is told EIO, and why is told here.
    fn failed(&mut self, why: String);
}

/// The mount, as long as it stands.
#[derive(Debug)]
pub(crate) struct Served {
    session: Option<BackgroundSession>,
    file: PathBuf,
}

impl Served {
    /// Shows `backing`, of `size` bytes, in the directory `mount`, which is made.
    pub(crate) fn start<B: Backing>(
        backing: &Arc<Mutex<B>>,
        size: u64,
        mount: &Path,
    ) -> Result<Self> {
        std::fs::create_dir_all(mount).at("make the directory", mount)?;
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("varve-powercut".to_owned())];
        let files = Files { backing: Arc::clone(backing), size };
        let session = fuser::spawn_mount(files, mount, &config).at("serve a disk at", mount)?;
        Ok(Self { session: Some(session), file: mount.join(NAME) })
    }

    /// The file.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

/// The same where another process has mounted it, and unmounts it: `device` is the `/dev/fuse`
/// of that mount. The thread of what is returned ends when the kernel asks no more.
pub(crate) fn serve_device<B: Backing>(
    backing: &Arc<Mutex<B>>,
    size: u64,
    device: OwnedFd,
) -> Result<BackgroundSession> {
    let files = Files { backing: Arc::clone(backing), size };
    let session = Session::from_fd(files, device, SessionACL::Owner, Config::default());
    session.and_then(Session::spawn).at("serve", "a disk")
}

/// What stands behind the file, for a moment.
pub(crate) fn lock<B>(backing: &Mutex<B>) -> MutexGuard<'_, B> {
    backing.lock().expect("nothing panics while it holds the disk")
}

struct Files<B> {
    backing: Arc<Mutex<B>>,
    size: u64,
}

impl<B: Backing> Files<B> {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o755, 0),
            DISK => (FileType::RegularFile, 0o600, self.size),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// Does `work`; a failure is kept for the end and told to the kernel as EIO.
    fn with(&self, work: impl FnOnce(&mut B) -> Result<()>) -> Result<(), Errno> {
        let mut backing = lock(&self.backing);
        work(&mut backing).map_err(|error| {
            backing.failed(error.chain());
            Errno::EIO
        })
    }
}

impl<B: Backing> Filesystem for Files<B> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Less is no harm: a long write comes in more pieces.
        let _ = config.set_max_write(MAX_WRITE);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(DISK) {
            Some(attr) if parent == INodeNo::ROOT && name == NAME => {
                reply.entry(&FOREVER, &attr, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attr) => reply.attr(&FOREVER, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = u64::from(size).min(self.size.saturating_sub(offset));
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        match self.with(|disk| disk.read(&mut bytes, offset)) {
            Ok(()) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.with(|disk| disk.write(data, offset)) {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("at most MAX_WRITE")),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.with(Backing::flush) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // The end of a descriptor, not a flush of a disk.
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        // The loop driver and qemu ask for nothing but holes and zeros; a discard that reads
        // as zeros is the harshest that a disk may do.
        let length = length.min(self.size.saturating_sub(offset));
        let done = self.with(|disk| disk.zero(offset, length));
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }
}
