//! A system put together for one thread alone, and commands in it.
//!
//! ```text
//! private namespace of one thread
//!   root            the caller's: an overlay whose changes go elsewhere
//!   root/dev        a few devices, terminals of its own; no disk
//!   root/sys        the machine's, read-only
//!   root/tmp, run   empty, in memory
//!   root/etc/resolv.conf   the running system's
//! each command: namespaces of its own, root/proc in them: varve_sys::confine
//! ```
//!
//! Nothing of it is seen outside, and nothing stays when the thread and its commands have
//! ended, however they end. The network is the running system's. Callers: `layer run`
//! ([`crate::layer`]), `try` ([`crate::tryout`]).

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::fs::CWD;
use varve_sys::confine::confine;
use varve_sys::mount::{
    Access, MountError, Reach, bind_detached, devpts_detached, enter_private_namespace,
    tmpfs_detached,
};
use varve_sys::task::Cancel;
use varve_sys::{Dir, FileType, SysError};

use crate::error::Result;

/// Where programs are looked for.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What /dev has, as far as this machine has it.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Why a command did not run in a system of its own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InsideError {
    /// The private copy of the system could not be put together.
    #[error("the private copy of the system could not be put together")]
    Mount(#[from] MountError),
    /// A path of this machine cannot be made out.
    #[error("{path} cannot be used", path = path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The command could not be started.
    #[error("{command} could not be started")]
    Start {
        /// Which.
        command: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Does something on a thread with mounts of its own.
pub(crate) fn in_private_namespace<T: Send>(act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter_private_namespace().map_err(InsideError::Mount)?;
            act()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The same directory, opened in this thread's namespace: the kernel makes no mount of a
/// directory that it knows by another.
pub(crate) fn reopen(dir: &Dir) -> Result<Dir> {
    let path = absolute(dir.path())?;
    Ok(Dir::open(path)?)
}

/// A path that holds wherever one stands.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, InsideError> {
    std::path::absolute(path).map_err(|source| InsideError::Path { path: path.to_owned(), source })
}

/// A root with all that programs expect of a running system.
pub(crate) struct Room {
    root: Dir,
}

impl Room {
    /// Of the writable root that is mounted at `root` in this thread's namespace.
    pub(crate) fn furnish(root: &Path) -> Result<Self> {
        let room = Self { root: Dir::open(root)? };
        room.name_servers()?;
        if room.has_dir("dev")? {
            room.devices()?;
        }
        if room.has_dir("sys")? {
            // The copy of a mount comes writable; nothing writes before this stops it.
            let sys = bind_detached(CWD, Path::new("/sys"), Access::ReadOnly, Reach::WithSubmounts);
            sys.and_then(|sys| sys.attach_beneath(room.root.fd(), Path::new("sys")))
                .map_err(InsideError::Mount)?;
        }
        for (path, mode) in [("tmp", 0o1777), ("run", 0o755)] {
            if room.has_dir(path)? {
                room.in_memory(path, mode)?;
            }
        }
        Ok(room)
    }

    /// The root directory.
    pub(crate) fn root(&self) -> &Dir {
        &self.root
    }

    /// A command in it, with the caller's streams.
    pub(crate) fn command(&self, words: &[String]) -> Result<Command> {
        let (program, arguments) = words.split_first().expect("the caller gives one");
        let mut command = Command::new(program);
        command.args(arguments).env("PATH", PATH).env("HOME", "/root");
        self.confine(&mut command)?;
        Ok(command)
    }

    /// Makes any command one in it.
    pub(crate) fn confine(&self, command: &mut Command) -> Result<()> {
        confine(
            command,
            self.root.fd().try_clone_to_owned().map_err(|source| InsideError::Path {
                path: self.root.path().to_owned(),
                source,
            })?,
        );
        Ok(())
    }

    fn has_dir(&self, path: &str) -> Result<bool, SysError> {
        Ok(self.root.stat_opt(path)?.is_some_and(|stat| stat.is_dir()))
    }

    fn in_memory(&self, path: &str, mode: u32) -> Result<Dir> {
        tmpfs_detached(mode, None)
            .and_then(|mount| mount.attach_beneath(self.root.fd(), Path::new(path)))
            .map_err(InsideError::Mount)?;
        Ok(self.enter(path)?)
    }

    /// The directory of the root by this name, the mount on it entered.
    fn enter(&self, name: &str) -> Result<Dir, SysError> {
        Dir::open(self.root.path().join(name))
    }

    fn devices(&self) -> Result<()> {
        let dev = self.in_memory("dev", 0o755)?;
        for name in DEVICES {
            show(&dev, name, &Path::new("/dev").join(name))?;
        }
        for (name, target) in LINKS {
            dev.symlink(target.as_bytes(), name)?;
        }
        dev.mkdir("shm", 0o755)?;
        dev.mkdir("pts", 0o755)?;
        let attach = |mount: std::result::Result<varve_sys::mount::Detached, MountError>, name| {
            mount
                .and_then(|mount| mount.attach_beneath(dev.fd(), Path::new(name)))
                .map_err(InsideError::Mount)
        };
        attach(tmpfs_detached(0o1777, None), "shm")?;
        attach(devpts_detached(), "pts")?;
        // So that programs find the name of the terminal that they are given.
        if rustix::termios::isatty(std::io::stdin().as_fd())
            && let Ok(terminal) = std::fs::read_link("/proc/self/fd/0")
        {
            show(&dev, "console", &terminal)?;
        }
        Ok(())
    }

    /// Names are looked up as in the running system.
    fn name_servers(&self) -> Result<()> {
        let Ok(text) = std::fs::read("/etc/resolv.conf") else { return Ok(()) };
        if !self.has_dir("etc")? {
            return Ok(());
        }
        let etc = self.enter("etc")?;
        match etc.stat_opt("resolv.conf")?.map(|stat| stat.file_type()) {
            Some(FileType::Directory) => return Ok(()),
            Some(_) => etc.unlink("resolv.conf")?,
            None => {}
        }
        Ok(etc.create_file("resolv.conf", 0o644)?.write_all(&text)?)
    }
}

/// Shows a device of this machine under a name, if it is there.
fn show(dev: &Dir, name: &str, device: &Path) -> Result<()> {
    if !device.exists() {
        return Ok(());
    }
    dev.create_file(name, 0o600)?;
    bind_detached(CWD, device, Access::ReadWrite, Reach::Alone)
        .and_then(|mount| mount.attach(dev.fd(), Path::new(name)))
        .map_err(InsideError::Mount)?;
    Ok(())
}

/// Runs a command to its end, or until the work is to stop: then it is killed with all
/// that it started.
pub(crate) fn run(mut command: Command, cancel: &Cancel) -> Result<ExitStatus> {
    let shown = shown(&command);
    let start = |source| InsideError::Start { command: shown.clone(), source };
    let mut child = command.spawn().map_err(start)?;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().map_err(start)? {
            return Ok(status);
        }
        if let Err(cancelled) = cancel.check() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(cancelled.into());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// A command as people write it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
