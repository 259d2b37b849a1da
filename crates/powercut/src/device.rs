//! A disk that remembers: one file served by FUSE, with a loop device on it.
//!
//! ```text
//! ext4, xfs, btrfs        the kernel's real file system
//!   | writes, flushes, FUA
//! /dev/loopN              direct I/O; a flush is an fsync of the file below
//!   | write, fsync        (the kernel turns FUA into a write and a flush after it)
//! <mount>/disk            one file, served by a process of its own (see `server`)
//!   |-- live image        what the disk holds now
//!   '-- Log               every write and flush, in order
//! ```
//!
//! One thread serves the file (see `served`), so the order in the log is the order in which
//! the disk saw things. A write that was answered before a flush was sent stands before it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::disk::{FileSystem, Mounted, run, run_output};
use crate::error::{At, Result, RigError};
use crate::failing::Trouble;
use crate::log::Log;
use crate::served::{NAME, lock};
use crate::server::{Answer, Ask, Host, send};

/// How long the server may take to end when its file is unmounted.
const PATIENCE: Duration = Duration::from_secs(10);

/// A recording disk, as long as it stands.
#[derive(Debug)]
pub struct Recorder {
    link: Arc<Mutex<Link>>,
    /// Where the log's data is.
    data: PathBuf,
    /// The device's path, and what keeps it.
    loop_device: Option<(PathBuf, File)>,
    // Dropped last: it waits for the end of the server.
    _server: Server,
}

/// Words to the server and back.
#[derive(Debug)]
struct Link {
    socket: UnixStream,
    answers: BufReader<UnixStream>,
}

/// The mount of the file, and who serves it.
#[derive(Debug)]
struct Server {
    mount: PathBuf,
    process: Option<Child>,
}

impl Recorder {
    /// Serves the disk image `image` (changed from now on) as a loop device. `scratch`
    /// is a directory of the rig's own; the log's data goes there too.
    pub fn start(host: &Host, image: &Path, scratch: &Path) -> Result<Self> {
        let data = scratch.join("log.data");
        let (server, socket) = Server::start(host, image, &data, scratch.join("device"))?;
        let answers = socket.try_clone().at("share", "the socket to the server")?;
        let mut link = Link { socket, answers: BufReader::new(answers) };
        link.receive()?;
        let disk = server.mount.join(NAME).to_string_lossy().into_owned();
        let device = run_output("losetup", &["--find", "--show", "--direct-io=on", &disk])?;
        let device = PathBuf::from(device.trim());
        let kept = File::open(&device).at("open", &device);
        // From here on the loop device goes away with its last user, also when this
        // process is killed.
        run("losetup", &["--detach", &device.to_string_lossy()])?;
        let loop_device = Some((device, kept?));
        Ok(Self { link: Arc::new(Mutex::new(link)), data, loop_device, _server: server })
    }

    /// The block device; there until something is mounted from it.
    pub fn device(&self) -> &Path {
        &self.loop_device.as_ref().expect("mounted at most once").0
    }

    /// Mounts a file system from the recording disk.
    pub fn mount(&mut self, fs: &FileSystem, place: &Path) -> Result<Mounted> {
        let mounted = fs.mount(self.device(), place)?;
        self.loop_device = None;
        Ok(mounted)
    }

    /// A handle that puts marks into the log: what they tell had happened by then.
    pub fn marker(&self) -> impl Fn(String) + Send + Sync + 'static {
        let link = Arc::clone(&self.link);
        move |text| {
            // A server that is gone is told by the cut.
            let _ = lock(&link).ask(&Ask::Mark(text));
        }
    }

    /// Pulls the plug: what comes after this is no longer recorded. The file system on
    /// top may be unmounted in peace.
    pub fn cut(&self) -> Result<Log> {
        match lock(&self.link).ask(&Ask::Cut)? {
            Answer::Recorded(entries) => Log::recorded(self.data.clone(), entries),
            other => Err(unexpected(&other)),
        }
    }

    /// From here on nothing is recorded, reads and writes are counted, and `trouble` strikes.
    pub fn fail(&self, trouble: Option<Trouble>) -> Result<()> {
        lock(&self.link).ask(&Ask::Fail(trouble)).map(drop)
    }

    /// The disk is well again. Gives how many reads and writes came, and whether one failed.
    pub fn heal(&self) -> Result<([u64; 2], bool)> {
        match lock(&self.link).ask(&Ask::Heal)? {
            Answer::Healed(operations, struck) => Ok((operations, struck)),
            other => Err(unexpected(&other)),
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // A marker may live longer; the server ends with the socket.
        let _ = lock(&self.link).socket.shutdown(Shutdown::Both);
    }
}

fn unexpected(answer: &Answer) -> RigError {
    RigError::Device(format!("it answers {answer:?}"))
}

impl Link {
    fn ask(&mut self, ask: &Ask) -> Result<Answer> {
        send(&self.socket, ask).at("write to", "the process that serves the disk")?;
        self.receive()
    }

    fn receive(&mut self) -> Result<Answer> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line);
        read.at("hear of", "the process that serves the disk")?;
        match serde_json::from_str(&line) {
            Ok(Answer::Failed(why)) => Err(RigError::Device(why)),
            Ok(answer) => Ok(answer),
            Err(_) => Err(RigError::Device("the process that serves it has ended".to_owned())),
        }
    }
}

impl Server {
    /// Mounts the file at `mount`, which is made, and starts the server of it.
    fn start(host: &Host, image: &Path, data: &Path, mount: PathBuf) -> Result<(Self, UnixStream)> {
        std::fs::create_dir_all(&mount).at("make the directory", &mount)?;
        let fuse = Path::new("/dev/fuse");
        let fuse = File::options().read(true).write(true).open(fuse).at("open", fuse)?;
        // See fuse(4): the root is a directory, of root.
        let words = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
        let words = std::ffi::CString::new(words).expect("no zero in it");
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let mounted =
            rustix::mount::mount("varve-powercut", &mount, "fuse", flags, words.as_c_str());
        mounted.at("serve a disk at", &mount)?;
        // What stands is taken down from here on, whatever fails.
        let mut server = Self { mount, process: None };
        let (here, there) = UnixStream::pair().at("make", "a socket")?;
        let mut command = Command::new(&host.program);
        command.args(host.arguments(image, data)).current_dir("/");
        command.stdin(fuse).stdout(OwnedFd::from(there));
        server.process = Some(command.spawn().at("start", &host.program)?);
        Ok((server, here))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The loop device may be a moment behind its last user.
        let _ = rustix::mount::unmount(&self.mount, UnmountFlags::DETACH);
        let Some(process) = &mut self.process else { return };
        let end = Instant::now() + PATIENCE;
        while let Ok(None) = process.try_wait() {
            if Instant::now() >= end {
                let _ = process.kill();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
