//! Disk images: raw files that hold one ext4 file system, copied sparsely.
//!
//! A raw image without a partition table is what the tests boot, because the boot loader
//! is not part of them; copying one costs what it holds, not its size, and nothing on
//! file systems that share blocks.

use super::{Error, Result, io_error};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes an empty ext4 image of `size` bytes.
///
/// # Errors
/// [`Error::Tool`] with what mkfs.ext4 said.
pub fn make_ext4(path: &Path, size: u64) -> Result<()> {
    create(path)?.set_len(size).map_err(io_error("size", path))?;
    tool("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), path.as_os_str()]).map(|_| ())
}

/// Makes an ext4 image of `size` bytes that holds what is in `tree`. Needs root, for the
/// owners to be right.
///
/// # Errors
/// [`Error::Tool`] with what mkfs.ext4 said.
pub fn make_ext4_from(path: &Path, size: u64, tree: &Path) -> Result<()> {
    create(path)?.set_len(size).map_err(io_error("size", path))?;
    tool(
        "mkfs.ext4",
        ["-q".as_ref(), "-F".as_ref(), "-d".as_ref(), tree.as_os_str(), path.as_os_str()],
    )
    .map(|_| ())
}

/// Copies an image: sharing its blocks where the file system can, without its holes where
/// not.
///
/// # Errors
/// [`Error::Tool`] when there is no space.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    tool(
        "cp",
        ["--reflink=auto".as_ref(), "--sparse=always".as_ref(), from.as_os_str(), to.as_os_str()],
    )
    .map(|_| ())
}

/// A mounted image; unmounted on drop. Needs root.
#[derive(Debug)]
pub struct Mounted {
    folder: PathBuf,
}

impl Mounted {
    /// Mounts the image at `folder`, which must exist.
    ///
    /// # Errors
    /// [`Error::Tool`] with what mount said.
    pub fn new(image: &Path, folder: &Path) -> Result<Self> {
        tool("mount", ["-o".as_ref(), "loop".as_ref(), image.as_os_str(), folder.as_os_str()])?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Unmounts, and says when that fails.
    ///
    /// # Errors
    /// [`Error::Tool`] with what umount said.
    pub fn unmount(self) -> Result<()> {
        let result = tool("umount", [self.folder.as_os_str()]).map(|_| ());
        std::mem::forget(self);
        result
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, so that a process left in it does not keep the loop device for ever.
        let _ = tool("umount", ["-l".as_ref(), self.folder.as_os_str()]);
    }
}

/// Runs a program of the host and gives its standard output.
///
/// # Errors
/// [`Error::Start`] when it is not there, [`Error::Tool`] with its words when it fails.
pub fn tool<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<String> {
    let mut command = Command::new(program);
    // The tools of the file system are not in an unprivileged user's PATH on Debian.
    if let Some(path) = std::env::var_os("PATH") {
        let mut path = path;
        path.push(":/usr/local/sbin:/usr/sbin:/sbin");
        command.env("PATH", path);
    }
    let output = command
        .args(arguments)
        .output()
        .map_err(|source| Error::Start { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Tool {
        command: format!("{command:?}"),
        text: format!("{} {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
    })
}

/// Whether a program can be found.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(name).is_file())
}

// Test logs and images are no state of a device: nothing must survive a power cut.
#[expect(clippy::disallowed_methods, reason = "files of a test, not of a device")]
pub(super) fn create(path: &Path) -> Result<File> {
    File::create(path).map_err(io_error("create", path))
}

pub(super) fn append(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).map_err(io_error("open", path))
}
