//! What can keep the rig itself from working. A state that breaks a promise is no error:
//! it is a finding.

use std::io;
use std::path::{Path, PathBuf};

/// The result of the rig's own work.
pub type Result<T, E = RigError> = std::result::Result<T, E>;

/// The rig could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// A file, device or mount of the rig's own.
    #[error("cannot {operation} {path}")]
    Io {
        /// A verb with its object.
        operation: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program of the system, such as mkfs.
    #[error("{command} failed: {output}")]
    Command {
        /// Its command line.
        command: String,
        /// What it printed.
        output: String,
    },
    /// The scenario itself failed while nothing was wrong with the disk.
    #[error("the scenario {scenario} failed while {doing}: {why}")]
    Scenario {
        /// Its name.
        scenario: String,
        /// What was being done.
        doing: &'static str,
        /// Why.
        why: String,
    },
    /// The device under the file system could not be served.
    #[error("the recording device failed: {0}")]
    Device(String),
    /// A file of a failing state cannot be read.
    #[error("{path} is not a state that this rig kept: {why}")]
    Replay {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A name on the command line.
    #[error("{0}")]
    Unknown(String),
}

/// Adds the operation and the path to a failure.
pub(crate) trait At<T> {
    fn at(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|error| RigError::Io {
            operation,
            path: path.as_ref().to_owned(),
            source: error.into(),
        })
    }
}

impl RigError {
    /// The message with all its causes, in one line.
    pub fn chain(&self) -> String {
        varve_sys::whole_message(self)
    }
}
