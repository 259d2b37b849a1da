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
//! One thread serves the file (see `served`), so the order in the log is the order in which
//! the disk saw things. A write that was answered before a flush was sent stands before it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{FileSystem, Mounted, run, run_output};
use crate::error::{At, Result, RigError};
use crate::failing::{Kind, Trouble};
use crate::log::{Entry, Log};
use crate::served::{Backing, Served, lock};

/// A recording disk, as long as it stands.
#[derive(Debug)]
pub struct Recorder {
    tape: Arc<Mutex<Tape>>,
    served: Option<Served>,
    loop_device: Option<PathBuf>,
}

#[derive(Debug)]
struct Tape {
    image: File,
    log: Option<Log>,
    failed: Option<String>,
    trouble: Option<Trouble>,
    /// Reads and writes since the trouble was set.
    operations: [u64; 2],
    struck: bool,
}

impl Recorder {
    /// Serves the disk image `image` (changed from now on) as a loop device. `scratch`
    /// is a directory of the rig's own; the log's data goes there too.
    pub fn start(image: &Path, scratch: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(image).at("open", image)?;
        let size = file.metadata().at("examine", image)?.len();
        let log = Log::create(scratch.join("log.data"))?;
        let tape = Arc::new(Mutex::new(Tape {
            image: file,
            log: Some(log),
            failed: None,
            trouble: None,
            operations: [0; 2],
            struck: false,
        }));
        let served = Served::start(&tape, size, &scratch.join("device"))?;
        let disk = served.file().to_string_lossy().into_owned();
        let mut recorder = Self { tape, served: Some(served), loop_device: None };
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

    /// From here on nothing is recorded, reads and writes are counted, and `trouble` strikes.
    pub fn fail(&self, trouble: Option<Trouble>) {
        let mut tape = self.tape();
        tape.log = None;
        (tape.trouble, tape.operations, tape.struck) = (trouble, [0; 2], false);
    }

    /// The disk is well again. Gives how many reads and writes came, and whether one failed.
    pub fn heal(&self) -> ([u64; 2], bool) {
        let mut tape = self.tape();
        tape.trouble = None;
        (tape.operations, tape.struck)
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
        drop(self.served.take());
    }
}

impl Tape {
    fn strike(&mut self, kind: Kind, offset: u64, length: u64) -> Result<()> {
        self.operations[kind as usize] += 1;
        let place = offset..offset.saturating_add(length);
        let strikes = self.trouble.as_mut().is_some_and(|trouble| trouble.strikes(kind, place));
        self.struck |= strikes;
        if strikes { Err(RigError::Device("as it was asked to".to_owned())) } else { Ok(()) }
    }
}

impl Backing for Tape {
    fn read(&mut self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.strike(Kind::Read, offset, bytes.len() as u64)?;
        self.image.read_exact_at(bytes, offset).at("read", "the live image")
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        self.strike(Kind::Write, offset, bytes.len() as u64)?;
        self.image.write_all_at(bytes, offset).at("write", "the live image")?;
        self.log.as_mut().map_or(Ok(()), |log| log.write(offset, bytes))
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        self.strike(Kind::Write, offset, length)?;
        let zeros = vec![0; 64 << 10];
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let want = zeros.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            self.image.write_all_at(&zeros[..want], at).at("write", "the live image")?;
            at += want as u64;
        }
        if let Some(log) = &mut self.log {
            log.push(Entry::Zero { offset, length });
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        // A bad place does not keep the disk from flushing; a disk that is gone does.
        self.strike(Kind::Write, u64::MAX - 1, 1)?;
        if let Some(log) = &mut self.log {
            log.push(Entry::Flush);
        }
        Ok(())
    }

    fn failed(&mut self, why: String) {
        if !self.struck {
            self.failed = Some(why);
        }
    }
}
