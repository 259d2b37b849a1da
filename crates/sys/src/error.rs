//! The one error of this crate: which operation, on which path, and what the kernel said.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct SysError {
    /// What was tried, as a verb: "open", "rename".
    pub operation: &'static str,
    /// On what; for messages.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

/// An error with all its causes, in one line.
pub fn whole_message(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// What this crate's functions give.
pub type Result<T> = std::result::Result<T, SysError>;

impl SysError {
    /// An error of `operation` on `path`.
    pub fn new(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self { operation, path: path.into(), source: source.into() }
    }

    fn errno(&self) -> Option<Errno> {
        self.source.raw_os_error().map(Errno::from_raw_os_error)
    }

    /// Nothing is there.
    pub fn is_not_found(&self) -> bool {
        self.errno() == Some(Errno::NOENT)
    }

    /// Something is there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }

    /// No blocks or no inodes are left, or a quota is used up.
    pub fn is_no_space(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOSPC | Errno::DQUOT))
    }

    /// The file system is mounted read-only.
    pub fn is_read_only(&self) -> bool {
        self.errno() == Some(Errno::ROFS)
    }

    /// Somebody else holds it.
    pub fn is_busy(&self) -> bool {
        matches!(self.errno(), Some(Errno::BUSY | Errno::WOULDBLOCK))
    }

    /// An inode has as many names as its file system allows.
    pub fn is_too_many_links(&self) -> bool {
        self.errno() == Some(Errno::MLINK)
    }

    /// The two paths lie on different file systems.
    pub fn is_other_file_system(&self) -> bool {
        self.errno() == Some(Errno::XDEV)
    }
}

/// Adds the operation and the path to a kernel's answer.
pub(crate) trait Context<T> {
    fn context(self, operation: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, operation: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T> {
        self.map_err(|error| SysError::new(operation, path(), error))
    }
}
