//! Bytes that strangers wrote are handled where they can do no harm: in a process that has
//! given up everything else (`varve_sys::sandbox`).
//!
//! ```text
//! update manager (root: trust, digests, disk)
//!    | socket
//!    |------> worker (nobody: no file, no network, few system calls): zstd, deltas
//!    '------> worker (nobody: no file but those of names, few system calls): HTTP and TLS
//! ```
//!
//! A worker is this program, started again with [`ARGUMENT`]; it ends with the socket, and
//! with the program that started it. What it hands back is held against signed digests as if
//! the network had sent it. Tests that have no program to start have the same work done by
//! a thread: [`Workers::default`].
//!
//! | module | holds |
//! | --- | --- |
//! | `decode` | the worker's side: frames, documents, deltas |
//! | `decoder` | the manager's side of it |
//! | `web` | the worker's side of HTTP; the manager's is [`crate::HttpTransport`] |
//! | `wire` | messages |
//! | `fuzzing` | ways in for the fuzzers |

mod decode;
pub(crate) mod decoder;
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod web;
pub(crate) mod wire;

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use varve_sys::sandbox::{self, Keeps};

/// The first argument of a program that is to call [`serve`] with the others.
pub const ARGUMENT: &str = "--worker";
/// A worker's first word: what this kernel lacks for a sandbox, or why there is none.
const READY: u8 = b'r';
const NOT_READY: u8 = b'n';
/// The longest such word, in bytes.
const MAX_WORD: u64 = 4096;

/// What a worker is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// To decode.
    Decode,
    /// To ask servers.
    Web,
}

impl Task {
    const ALL: [Self; 2] = [Self::Decode, Self::Web];

    fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Web => "web",
        }
    }

    fn keeps(self) -> Keeps {
        match self {
            Self::Decode => Keeps::Nothing,
            Self::Web => Keeps::Web,
        }
    }

    fn serve(self, stream: &UnixStream) -> io::Result<()> {
        match self {
            Self::Decode => decode::serve(stream),
            Self::Web => web::serve(stream),
        }
    }
}

/// Why a worker's work is not done. What was verified before is kept.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It could not be started.
    #[error("cannot start a process without rights, to handle what comes")]
    Start(#[source] io::Error),
    /// It could not give up its rights, and so was given nothing.
    #[error("the process that handles what comes cannot give up its rights: {reason}")]
    Sandbox {
        /// What the kernel said.
        reason: String,
    },
    /// It is gone, or does not answer as it should.
    #[error("the process that handles what comes ended before its work was done")]
    Ended(#[source] io::Error),
    /// What it was given is not what it should be.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: String,
    },
}

/// How workers are started.
#[derive(Clone, Debug, Default)]
pub struct Workers {
    program: Option<PathBuf>,
}

impl Workers {
    /// As processes of `program`, which calls [`serve`] when it is asked to.
    pub fn of_program(program: impl Into<PathBuf>) -> Self {
        Self { program: Some(program.into()) }
    }

    /// A worker that may take so many bytes of address space.
    pub(crate) fn start(&self, task: Task, memory: u64) -> Result<Worker, WorkerError> {
        let (here, there) = UnixStream::pair().map_err(WorkerError::Start)?;
        let mut worker = Worker { stream: here, process: None, lacks: Vec::new() };
        let Some(program) = &self.program else {
            std::thread::Builder::new()
                .name(task.name().to_owned())
                // An error is the manager's to see, at its end of the socket.
                .spawn(move || task.serve(&there).unwrap_or_default())
                .map_err(WorkerError::Start)?;
            return Ok(worker);
        };
        let mut command = Command::new(program);
        // Known by its name in a list of processes, not by how it was found.
        command.arg0("varve").args([ARGUMENT, task.name(), &memory.to_string()]);
        command.env_clear().current_dir("/");
        command.stdin(std::os::fd::OwnedFd::from(there));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // What a terminal sends is for the manager to answer.
        command.process_group(0);
        varve_sys::confine::ends_with_caller(&mut command);
        worker.process = Some(Process::start(command).map_err(WorkerError::Start)?);
        worker.is_ready()?;
        Ok(worker)
    }
}

/// A worker, as long as it is needed.
pub(crate) struct Worker {
    pub(crate) stream: UnixStream,
    process: Option<Process>,
    lacks: Vec<String>,
}

impl Worker {
    fn is_ready(&mut self) -> Result<(), WorkerError> {
        let ended = || WorkerError::Ended(io::ErrorKind::UnexpectedEof.into());
        let message = wire::receive(&self.stream, MAX_WORD).map_err(WorkerError::Ended)?;
        let message = message.ok_or_else(ended)?;
        let text = String::from_utf8_lossy(&message.body).into_owned();
        match message.tag {
            READY => self.lacks = text.split_terminator('\n').map(str::to_owned).collect(),
            NOT_READY => return Err(WorkerError::Sandbox { reason: text }),
            _ => return Err(WorkerError::Ended(wire::broken())),
        }
        Ok(())
    }
}

/// A worker's process, which ends with this, and with the thread that started it: so that is
/// a thread of its own, and any may use the worker.
struct Process {
    until_dropped: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Process {
    fn start(mut command: Command) -> io::Result<Self> {
        let (until_dropped, dropped) = mpsc::channel::<()>();
        let (tell, started) = mpsc::channel();
        let thread = std::thread::Builder::new().name("worker".to_owned()).spawn(move || {
            let mut process: Child = match command.spawn() {
                Ok(process) => process,
                Err(error) => return tell.send(Err(error)).unwrap_or_default(),
            };
            // With it this process's copy of the worker's end closes: who is left sees its end.
            drop(command);
            let _ = tell.send(Ok(()));
            // Nothing is ever sent: it waits for the other end to go.
            let _ = dropped.recv();
            // It has nothing to put in order, and must not be waited for.
            let _ = process.kill();
            let _ = process.wait();
        })?;
        started.recv().map_err(io::Error::other)??;
        Ok(Self { until_dropped: Some(until_dropped), thread: Some(thread) })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.until_dropped = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The whole life of a worker: gives up what it does not need, and works for whoever is at
/// the other end of its standard input, until that is closed.
///
/// # Errors
/// When there is nobody, or it cannot give up its rights.
pub fn serve(mut arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let task = arguments.next().and_then(|name| Task::ALL.into_iter().find(|t| name == t.name()));
    let task = task.ok_or(io::ErrorKind::InvalidInput)?;
    let memory = arguments.next().and_then(|text| text.to_str()?.parse().ok());
    let memory = memory.ok_or(io::ErrorKind::InvalidInput)?;
    sandbox::close_inherited();
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // It must be a socket: a person who tries this at a terminal is told so.
    stream.peer_addr()?;
    match sandbox::enter(task.keeps(), memory) {
        Ok(lacks) => wire::send(&stream, READY, &[lacks.join("\n").as_bytes()])?,
        Err(error) => {
            wire::send(&stream, NOT_READY, &[error.to_string().as_bytes()])?;
            return Err(error);
        }
    }
    task.serve(&stream)
}
