//! The process that serves a recording disk, so that killing the rig cannot hang the machine.
//!
//! ```text
//! rig                                  server: this program again, with ARGUMENT
//!   |-- /dev/fuse, mounted ---stdin-->   file served (see `served`), Tape behind it
//!   '-- Ask --------socket, stdout--->   Answer
//!   thread in fsync(2) of the disk       (outside the rig's mount namespace)
//! ```
//!
//! A thread that waits for its disk cannot be killed before the disk has answered. Were the
//! disk served by the same process, killed threads would wait for threads that are killed:
//! the process would never end, its mounts would stay, and every sync(2) of the machine would
//! wait with it. This process waits for no disk of its own. It outlives the rig until the
//! file is unmounted, ten seconds at most; then the kernel gives an error to who still waits.
//! When it is killed itself, the kernel does so at once.
//!
//! It leaves the rig's mount namespace, which would stay as long as it is in there; and a
//! process that ends as the last in a namespace takes the mounts down before its descriptors
//! are closed, so that it would wait for itself.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use crate::error::{At, Result, RigError};
use crate::failing::Trouble;
use crate::log::Entry;
use crate::served::{lock, serve_device};
use crate::tape::Tape;

/// The first argument of a program that is to call [`serve`] with the others.
pub const ARGUMENT: &str = "--serve-disk";
/// How long it serves when the rig is gone and the file is still in use.
const PATIENCE: Duration = Duration::from_secs(10);

/// The program that serves disks.
#[derive(Clone, Debug)]
pub struct Host {
    /// It calls [`serve`] when it is asked to.
    pub program: PathBuf,
    /// A mount namespace beside the rig's own (`/proc/PID/ns/mnt`), if it has one.
    pub outside: Option<PathBuf>,
}

/// What the rig wants.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// This has happened.
    Mark(String),
    /// The power is cut.
    Cut,
    /// From here on this strikes.
    Fail(Option<Trouble>),
    /// It no longer does.
    Heal,
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It is done; of a server that has just been started: the file is there.
    Done,
    /// What was recorded.
    Recorded(Vec<Entry>),
    /// How many reads and writes came, and whether one failed.
    Healed([u64; 2], bool),
    /// It could not be done.
    Failed(String),
}

/// Serves one disk until nobody needs it. Standard input is `/dev/fuse`, mounted; standard
/// output a socket to the rig. The arguments are the image, the file for the log's data, and
/// the mount namespace to go to, if there is one.
///
/// # Errors
/// When it cannot begin.
pub fn serve(arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<()> {
    let paths: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    let [image, data, outside @ ..] = paths.as_slice() else {
        return Err(RigError::Device("it is told neither image nor log".to_owned()));
    };
    let tape = Tape::begin(image, data)?;
    if let Some(outside) = outside.first() {
        let namespace = File::open(outside).at("open", outside)?;
        let kind = Some(LinkNameSpaceType::Mount);
        move_into_link_name_space(namespace.as_fd(), kind).at("go to", outside)?;
    }
    let size = tape.size();
    let tape = Arc::new(Mutex::new(tape));
    let device = std::io::stdin().as_fd().try_clone_to_owned().at("keep", "/dev/fuse")?;
    let session = serve_device(&tape, size, device)?;
    let socket = std::io::stdout().as_fd().try_clone_to_owned().at("keep", "the socket")?;
    let socket = File::from(socket);
    // An error means that the rig is gone, as the end of its words does.
    let _ = answer(&socket, &tape);
    let gone = Instant::now();
    while !session.guard.is_finished() && gone.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Answers until the rig says no more.
fn answer(socket: &File, tape: &Mutex<Tape>) -> std::io::Result<()> {
    send(socket, &Answer::Done)?;
    for line in BufReader::new(socket).lines() {
        let answer = match serde_json::from_str(&line?)? {
            Ask::Mark(text) => {
                lock(tape).mark(text);
                Answer::Done
            }
            Ask::Cut => match lock(tape).cut() {
                Ok(log) => Answer::Recorded(log.entries().to_vec()),
                Err(error) => Answer::Failed(error.to_string()),
            },
            Ask::Fail(trouble) => {
                lock(tape).fail(trouble);
                Answer::Done
            }
            Ask::Heal => {
                let (operations, struck) = lock(tape).heal();
                Answer::Healed(operations, struck)
            }
        };
        send(socket, &answer)?;
    }
    Ok(())
}

/// Sends one message, as one line.
pub(crate) fn send(mut socket: impl Write, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    socket.write_all(&line)
}

impl Host {
    /// The arguments for one disk.
    pub(crate) fn arguments(&self, image: &Path, data: &Path) -> Vec<std::ffi::OsString> {
        let mut words = vec![ARGUMENT.into(), image.into(), data.into()];
        words.extend(self.outside.iter().map(Into::into));
        words
    }
}
