//! One writer at a time: a lock that ends with its process.

use std::fs::File;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::dir::Dir;
use crate::error::{Context, Result, SysError};

/// Holds the lock until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the exclusive lock on the file `name` in `dir`, which is made if missing.
    /// None when another process holds it. The lock file is never deleted, so that two
    /// processes never lock two files of one name.
    pub fn try_take(dir: &Dir, name: &str) -> Result<Option<Self>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(dir.fd(), name, flags, Mode::from_raw_mode(0o600))
            .context("open the lock", || dir.path().join(name))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: File::from(file) })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(SysError::new("lock", dir.path().join(name), error)),
        }
    }
}
