//! What `cargo xtask image` made for the tests: repositories with real releases and disks
//! with the first of them installed.
//!
//! The command writes a description (JSON) and names it in `VARVE_LAB`. A test that finds
//! none fails with the command to run: it never passes without having booted anything.

use super::guest::Guest;
use super::serve::Server;
use super::{Config, Error, Result, disk, io_error};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The variable that names the description.
pub const VARIABLE: &str = "VARVE_LAB";

/// How long a boot to the login may take. Emulated, on a busy machine of two cores, it
/// is a minute; more than this is a failure.
pub const BOOT: Duration = Duration::from_secs(600);
/// How long one command in a guest may take.
pub const COMMAND: Duration = Duration::from_secs(90);
/// How long an upgrade in a guest may take.
pub const UPGRADE: Duration = Duration::from_secs(600);

/// The description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lab {
    /// Each installed system, by name: `debian-13`, `debian-12`, `debian-13-dracut`.
    pub systems: BTreeMap<String, System>,
    /// Where tests put their copies of disks.
    pub scratch: PathBuf,
}

/// A release installed on disks, and the repository that it is upgraded from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// The kernel that boots every deployment.
    pub kernel: PathBuf,
    /// The first release's initramfs, with the boot stage.
    pub initrd: PathBuf,
    /// The folder to serve.
    pub repository: PathBuf,
    /// The name of the release that is installed.
    pub old: String,
    /// The name of the release that it is upgraded to, on channel `stable`.
    pub new: String,
    /// Disk images with `old` installed, by layout: `overlay`, `hard-link`.
    pub images: BTreeMap<String, PathBuf>,
}

impl Lab {
    /// Reads the description that [`VARIABLE`] names.
    ///
    /// # Errors
    /// [`Error::Tool`] with the command to run when there is none.
    pub fn open() -> Result<Self> {
        let missing =
            |text: String| Error::Tool { command: "cargo xtask test slow".to_owned(), text };
        let path = std::env::var_os(VARIABLE).map(PathBuf::from).ok_or_else(|| {
            missing(format!("{VARIABLE} is not set: run this test by the command above"))
        })?;
        let text = std::fs::read_to_string(&path).map_err(io_error("read", &path))?;
        serde_json::from_str(&text).map_err(|error| missing(format!("{}: {error}", path.display())))
    }

    /// A system by name.
    ///
    /// # Errors
    /// [`Error::Tool`] when it was not made.
    pub fn system(&self, name: &str) -> Result<&System> {
        self.systems.get(name).ok_or_else(|| Error::Tool {
            command: "cargo xtask image".to_owned(),
            text: format!("made no system {name}"),
        })
    }

    /// Copies a system's disk and serves its repository; nothing boots yet.
    ///
    /// # Errors
    /// When there is no space, or no such layout.
    pub fn guest(&self, system: &str, layout: &str) -> Result<Guest> {
        let system = self.system(system)?.clone();
        let image = system.images.get(layout).ok_or_else(|| Error::Tool {
            command: "cargo xtask image".to_owned(),
            text: format!("made no disk of layout {layout}"),
        })?;
        std::fs::create_dir_all(&self.scratch).map_err(io_error("make", &self.scratch))?;
        // Disks are big: they go where the cache is. Sockets need a short path.
        let scratch = tempfile::tempdir_in(&self.scratch)
            .map_err(io_error("make a folder in", &self.scratch))?;
        let sockets =
            tempfile::tempdir().map_err(io_error("make a folder in", Path::new("/tmp")))?;
        let disk = scratch.path().join("disk.img");
        disk::copy(image, &disk)?;
        let server = Server::start(&system.repository)?;
        let config = Config::new(sockets.path(), &system.kernel, &system.initrd, &disk);
        Ok(Guest::new(config, server, disk, system, [scratch, sockets]))
    }
}
