//! A command in namespaces of its own: its own root, processes, host name and IPC.
//!
//! ```text
//! caller --spawn--> keeper   new namespaces; waits; ends with the command's exit status
//!                     '-->   first process of the new process namespace: mounts /proc,
//!                       |    makes the root the only thing mounted, adopts orphans
//!                       '--> the command
//! ```
//!
//! Each of the three is killed when the one above it ends, however that ends, and the
//! kernel kills all else of a process namespace with its first process. So nothing that
//! was started stays, and the mounts go with the last of them: there is nothing to clean up.
//!
//! It is no cage: the command is root with all its rights. It keeps what is tried apart
//! from what runs, not a hostile program from the machine.
//!
//! Callers: the update manager's `try` and `layer run`. Sources: `pid_namespaces(7)`,
//! `pivot_root(2)`, `PR_SET_PDEATHSIG(2const)`.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Timespec};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::UnshareFlags;

use crate::mount::stop_writes;

/// What a process could do to the whole machine by /proc: shown, not written.
const READ_ONLY: [&CStr; 4] = [c"proc/sys", c"proc/sysrq-trigger", c"proc/irq", c"proc/bus"];

/// Makes `command` run with the mount `root` as its root directory, in mount, process, IPC
/// and host name namespaces of its own; the network is the caller's. `root` must be where a
/// mount is attached in the calling thread's mount namespace. An absent `root/proc` is
/// left absent.
///
/// The command ends, with all that it started, when the calling *thread* does. Its exit
/// status is that of [`Command::status`]; a signal that ended it is 128 and its number.
pub fn confine(command: &mut Command, root: OwnedFd) {
    let parent = rustix::process::getpid();
    // SAFETY: the closure runs between fork and exec, where another thread of the caller may
    // have held any lock: it and all it calls make system calls alone, on borrowed
    // constants and descriptors, and neither allocate nor panic.
    unsafe { command.pre_exec(move || enter(&root, parent).map_err(io::Error::from)) };
}

/// Makes `command` end when the calling *thread* does, however that ends.
pub fn ends_with_caller(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: as in `confine`: two system calls.
    unsafe { command.pre_exec(move || die_with(parent).map_err(io::Error::from)) };
}

fn die_with(parent: Pid) -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before that.
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH) }
}

/// In the new process. Returns in the command's own process alone.
fn enter(root: &OwnedFd, parent: Pid) -> Result<(), Errno> {
    die_with(parent)?;
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP] {
        // The caller's handlers write into what it shares with this process.
        set_signal(signal, libc::SIG_DFL);
    }
    // The new mount namespace is a copy: what stands in the working directory is found in it.
    rustix::process::fchdir(root)?;
    let flags =
        UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: this process has one thread and no state that depends on its namespaces.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    let keeper = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    if let Some(first) = fork()? {
        for signal in [libc::SIGINT, libc::SIGQUIT] {
            // A terminal sends them to the command as well, and it decides.
            set_signal(signal, libc::SIG_IGN);
        }
        close_all();
        exit(wait_for(first));
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut gone = [PollFd::new(&keeper, PollFlags::IN)];
    if poll(&mut gone, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0 {
        return Err(Errno::SRCH);
    }
    furnish()?;
    match fork()? {
        None => Ok(()),
        Some(command) => {
            close_all();
            exit(wait_for(command));
        }
    }
}

/// Mounts /proc and makes the working directory the root, with nothing else in view.
fn furnish() -> Result<(), Errno> {
    rustix::mount::mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    match proc_file_system().and_then(|proc| {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(proc.as_fd(), c"", CWD, c"proc", flags)
    }) {
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
        Ok(()) => {
            for path in READ_ONLY {
                show_read_only(path)?;
            }
        }
    }
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

fn proc_file_system() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// What this kernel does not have need not be kept from being written.
fn show_read_only(path: &CStr) -> Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = match rustix::mount::open_tree(CWD, path, flags) {
        Err(Errno::NOENT) => return Ok(()),
        clone => clone?,
    };
    stop_writes(clone.as_fd())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(clone.as_fd(), c"", CWD, path, flags)
}

/// The number of the new process; none in itself.
fn fork() -> Result<Option<libc::pid_t>, Errno> {
    // SAFETY: only called where one thread is left and nothing is locked: the new process
    // goes on as this one would.
    match unsafe { libc::fork() } {
        -1 => Err(last_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Waits for that child to end, and for any other that ends before it. Gives what a shell
/// would: its exit status, or 128 and the signal.
fn wait_for(child: libc::pid_t) -> i32 {
    loop {
        let mut status = 0;
        // SAFETY: `status` lives through the call and is all that it writes.
        let ended = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        if ended == child {
            return match libc::WIFSIGNALED(status) {
                true => 128 + libc::WTERMSIG(status),
                false => libc::WEXITSTATUS(status),
            };
        }
        if ended < 0 && last_error() != Errno::INTR {
            return 255;
        }
    }
}

/// Closes all but the three standard descriptors. Whoever waits for a pipe's end must not
/// wait for the two processes here.
pub(crate) fn close_all() {
    // SAFETY: closing touches no memory; nothing here uses a descriptor from now on.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

fn set_signal(signal: libc::c_int, to: libc::sighandler_t) {
    // SAFETY: SIG_DFL and SIG_IGN run no code of this process.
    unsafe { libc::signal(signal, to) };
}

fn exit(status: i32) -> ! {
    // SAFETY: ends the process; nothing of the caller's (buffers, handlers) is run.
    unsafe { libc::_exit(status) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// While this lives, a Ctrl-C at the terminal is the command's alone: the terminal sends it
/// to both.
#[derive(Debug)]
pub struct TerminalIsTheCommands {
    before: [(libc::c_int, libc::sighandler_t); 2],
}

impl TerminalIsTheCommands {
    /// From now on. Begun after the command was started, which would inherit it.
    pub fn begin() -> Self {
        let ignore = |signal| {
            // SAFETY: SIG_IGN runs no code; what was there is put back as it was.
            (signal, unsafe { libc::signal(signal, libc::SIG_IGN) })
        };
        Self { before: [libc::SIGINT, libc::SIGQUIT].map(ignore) }
    }
}

impl Drop for TerminalIsTheCommands {
    fn drop(&mut self) {
        for (signal, handler) in self.before {
            set_signal(signal, handler);
        }
    }
}
