//! Bytes that strangers wrote are handled where they can do no harm: in a process that has
//! given up everything else (`varve_sys::sandbox`).
//!
//! ```text
//! update manager (root: trust, digests, disk)
//!    | socket
//!    v
//! worker (nobody: no file, no network, few system calls): zstd, deltas
//! ```
//!
//! A worker is this program, started again with [`ARGUMENT`]; it ends with the socket, and
//! with the thread that started it. What it hands back is held against signed digests as if
//! the network had sent it. Tests that have no program to start have the same work done by
//! a thread: [`Workers::default`].
//!
//! | module | holds |
//! | --- | --- |
//! | `decode` | the worker's side: frames, documents, deltas |
//! | `decoder` | the manager's side of it |
//! | `wire` | messages |
//! | `fuzzing` | ways in for the fuzzers |

mod decode;
pub(crate) mod decoder;
#[doc(hidden)]
pub mod fuzzing;
mod wire;

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use varve_sys::sandbox;

/// The first argument of a program that is to call [`serve`] with the others.
pub const ARGUMENT: &str = "--worker";
/// A worker's first word: what this kernel lacks for a sandbox, or why there is none.
const READY: u8 = b'r';
const NOT_READY: u8 = b'n';
/// The longest such word, in bytes.
const MAX_WORD: u64 = 4096;

/// Why a worker's work is not done. What was verified before is kept.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It could not be started.
    #[error("cannot start the process that decodes")]
    Start(#[source] io::Error),
    /// It could not give up its rights, and so was given nothing.
    #[error("the process that decodes cannot give up its rights: {reason}")]
    Sandbox {
        /// What the kernel said.
        reason: String,
    },
    /// It is gone, or does not answer as it should.
    #[error("the process that decodes ended before its work was done")]
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
    fn start(&self, memory: u64) -> Result<Worker, WorkerError> {
        let (here, there) = UnixStream::pair().map_err(WorkerError::Start)?;
        let process = match &self.program {
            None => {
                std::thread::Builder::new()
                    .name("decode".to_owned())
                    // An error is the manager's to see, at its end of the socket.
                    .spawn(move || decode::serve(&there).unwrap_or_default())
                    .map_err(WorkerError::Start)?;
                None
            }
            Some(program) => {
                let mut command = Command::new(program);
                // Known by its name in a list of processes, not by how it was found.
                command.arg0("varve").args([ARGUMENT, &memory.to_string()]);
                command.env_clear().current_dir("/");
                command.stdin(std::os::fd::OwnedFd::from(there));
                command.stdout(Stdio::null()).stderr(Stdio::null());
                varve_sys::confine::ends_with_caller(&mut command);
                Some(command.spawn().map_err(WorkerError::Start)?)
            }
        };
        let mut worker = Worker { stream: here, process, lacks: Vec::new() };
        if worker.process.is_some() {
            worker.is_ready()?;
        }
        Ok(worker)
    }
}

/// A worker, as long as it is needed.
struct Worker {
    stream: UnixStream,
    process: Option<Child>,
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

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It has nothing to put in order, and must not be waited for.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The whole life of a worker: gives up what it does not need, and works for whoever is at
/// the other end of its standard input, until that is closed.
///
/// # Errors
/// When there is nobody, or it cannot give up its rights.
pub fn serve(mut arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let memory = arguments.next().and_then(|text| text.to_str()?.parse().ok());
    let memory = memory.ok_or(io::ErrorKind::InvalidInput)?;
    sandbox::close_inherited();
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // It must be a socket: a person who tries this at a terminal is told so.
    stream.peer_addr()?;
    match sandbox::enter(memory) {
        Ok(lacks) => wire::send(&stream, READY, &[lacks.join("\n").as_bytes()])?,
        Err(error) => {
            wire::send(&stream, NOT_READY, &[error.to_string().as_bytes()])?;
            return Err(error);
        }
    }
    decode::serve(&stream)
}
