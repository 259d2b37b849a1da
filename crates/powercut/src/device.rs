//! A disk that remembers: one file served by FUSE, with a loop device on it.
//!
//! ```text
//! ext4, xfs, btrfs        the kernel's real file system
//!   | writes, flushes, FUA
//! /dev/loopN              direct I/O; a flush is an fsync of the file below
//!   | write, fsync        (the kernel turns FUA into a write and a flush after it)
//! <mount>/disk            this file system: one file
//!   |-- live image        what the disk holds now
//!   '-- Log               every write and flush, in order
//! ```
//!
//! One thread serves the file, so the order in the log is the order in which the disk
//! saw things. A write that was answered before a flush was sent stands before it.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use crate::disk::{FileSystem, Mounted, run, run_output};
use crate::error::{At, Result, RigError};
use crate::log::{Entry, Log};

const DISK: INodeNo = INodeNo(2);
const NAME: &str = "disk";
const FOREVER: Duration = Duration::from_secs(3600);
/// The largest single write, in bytes; the kernel cuts longer ones.
const MAX_WRITE: u32 = 1 << 20;

/// A recording disk, as long as it stands.
#[derive(Debug)]
pub struct Recorder {
    tape: Arc<Mutex<Tape>>,
    session: Option<BackgroundSession>,
    loop_device: Option<PathBuf>,
}

#[derive(Debug)]
struct Tape {
    image: File,
    log: Option<Log>,
    failed: Option<String>,
}

impl Recorder {
    /// Serves the disk image `image` (changed from now on) as a loop device. `scratch`
    /// is a directory of the rig's own; the log's data goes there too.
    pub fn start(image: &Path, scratch: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(image).at("open", image)?;
        let size = file.metadata().at("examine", image)?.len();
        let log = Log::create(scratch.join("log.data"))?;
        let tape = Arc::new(Mutex::new(Tape { image: file, log: Some(log), failed: None }));
        let mount = scratch.join("device");
        std::fs::create_dir_all(&mount).at("make the directory", &mount)?;
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("varve-powercut".to_owned())];
        let served = Served { tape: Arc::clone(&tape), size };
        let session = fuser::spawn_mount(served, &mount, &config).at("serve a disk at", &mount)?;
        let mut recorder = Self { tape, session: Some(session), loop_device: None };
        let disk = mount.join(NAME);
        let disk = disk.to_string_lossy();
        let device = run_output("losetup", &["--find", "--show", "--direct-io=on", &disk])?;
        recorder.loop_device = Some(PathBuf::from(device.trim()));
        Ok(recorder)
    }

    /// The block device; there until something is mounted from it.
    pub fn device(&self) -> &Path {
        self.loop_device.as_deref().expect("mounted at most once")
    }

    /// Mounts a file system from the recording disk.
    pub fn mount(&mut self, fs: &FileSystem, place: &Path) -> Result<Mounted> {
        let mounted = fs.mount(self.device(), place)?;
        // From here on the loop device goes away with its last user, also when this
        // process is killed.
        if let Some(device) = self.loop_device.take() {
            run("losetup", &["--detach", &device.to_string_lossy()])?;
        }
        Ok(mounted)
    }

    /// A handle that puts marks into the log: what they tell had happened by then.
    pub fn marker(&self) -> impl Fn(String) + Send + Sync + 'static {
        let tape = Arc::clone(&self.tape);
        move |text| {
            if let Some(log) = &mut lock(&tape).log {
                log.push(Entry::Mark(text));
            }
        }
    }

    /// Pulls the plug: what comes after this is no longer recorded. The file system on
    /// top may be unmounted in peace.
    pub fn cut(&self) -> Result<Log> {
        let mut tape = self.tape();
        if let Some(why) = tape.failed.take() {
            return Err(RigError::Device(why));
        }
        tape.log.take().ok_or_else(|| RigError::Device("it was cut before".to_owned()))
    }

    fn tape(&self) -> MutexGuard<'_, Tape> {
        lock(&self.tape)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(device) = self.loop_device.take() {
            let _ = run("losetup", &["--detach", &device.to_string_lossy()]);
        }
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

fn lock(tape: &Mutex<Tape>) -> MutexGuard<'_, Tape> {
    tape.lock().expect("nothing panics while it holds the tape")
}

struct Served {
    tape: Arc<Mutex<Tape>>,
    size: u64,
}

impl Served {
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
    fn with(&self, work: impl FnOnce(&mut Tape) -> Result<()>) -> Result<(), Errno> {
        let mut tape = lock(&self.tape);
        work(&mut tape).map_err(|error| {
            tape.failed = Some(error.chain());
            Errno::EIO
        })
    }
}

impl Filesystem for Served {
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
        match lock(&self.tape).image.read_exact_at(&mut bytes, offset) {
            Ok(()) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
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
        let done = self.with(|tape| {
            tape.image.write_all_at(data, offset).at("write", "the live image")?;
            tape.log.as_mut().map_or(Ok(()), |log| log.write(offset, data))
        });
        match done {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("at most MAX_WRITE")),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if let Some(log) = &mut lock(&self.tape).log {
            log.push(Entry::Flush);
        }
        reply.ok();
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
        // The loop driver asks for nothing but holes and zeros; a discard that reads as
        // zeros is the harshest that a disk may do.
        let done = self.with(|tape| {
            let entry = Entry::Zero { offset, length: length.min(self.size - offset) };
            let zeros = vec![0; 64 << 10];
            let mut at = offset;
            let end = offset + length.min(self.size - offset);
            while at < end {
                let want = zeros.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                tape.image.write_all_at(&zeros[..want], at).at("write", "the live image")?;
                at += want as u64;
            }
            if let Some(log) = &mut tape.log {
                log.push(entry);
            }
            Ok(())
        });
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }
}
