//! What `cargo xtask image` made for the tests: repositories with real releases and disks
//! with the first of them installed.
//!
//! The command writes a description (JSON) and names it in `VARVE_LAB`. A test that finds
//! none fails with the command to run: it never passes without having booted anything.

use super::serve::Server;
use super::{Config, Error, Machine, Result, disk, io_error};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The variable that names the description.
pub const VARIABLE: &str = "VARVE_LAB";

/// How long a boot to the login may take. Emulated, on a busy machine of two cores, it
/// is a minute; more than this is a failure.
pub const BOOT: Duration = Duration::from_secs(240);
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
        let missing = |text: String| Error::Tool { command: "cargo xtask test slow".to_owned(), text };
        let path = std::env::var_os(VARIABLE)
            .map(PathBuf::from)
            .ok_or_else(|| missing(format!("{VARIABLE} is not set: run this test by the command above")))?;
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
        let scratch = tempfile::tempdir_in(&self.scratch).map_err(io_error("make a folder in", &self.scratch))?;
        let sockets = tempfile::tempdir().map_err(io_error("make a folder in", Path::new("/tmp")))?;
        let disk = scratch.path().join("disk.img");
        disk::copy(image, &disk)?;
        let server = Server::start(&system.repository)?;
        let config = Config::new(sockets.path(), &system.kernel, &system.initrd, &disk);
        Ok(Guest { config, server, disk, system, machine: None, _scratch: scratch, _sockets: sockets })
    }
}

/// A machine with its own disk and its own server.
#[derive(Debug)]
pub struct Guest {
    // Dropped first, so that nothing writes to the disk when its folder goes.
    machine: Option<Machine>,
    /// How it will be started.
    pub config: Config,
    /// Serves the repository.
    pub server: Server,
    /// Its disk.
    pub disk: PathBuf,
    /// What it was made from.
    pub system: System,
    _scratch: tempfile::TempDir,
    _sockets: tempfile::TempDir,
}

impl Guest {
    /// Starts it, or starts it again after [`Guest::kill`].
    ///
    /// # Errors
    /// See [`Config::start`].
    pub fn start(&mut self) -> Result<()> {
        self.machine = None;
        self.machine = Some(self.config.start()?);
        Ok(())
    }

    /// The running machine.
    ///
    /// # Panics
    /// When it was not started: that is a mistake in the test.
    pub fn machine(&mut self) -> &mut Machine {
        self.machine.as_mut().expect("the guest was started")
    }

    /// Starts it and waits for the login.
    ///
    /// # Errors
    /// See [`Machine::login`].
    pub fn boot(&mut self) -> Result<()> {
        self.start()?;
        self.machine().login(BOOT)
    }

    /// Reboots it in order and waits for the next login.
    ///
    /// # Errors
    /// See [`Machine::login`].
    pub fn reboot(&mut self) -> Result<()> {
        self.machine().reboot()?;
        self.machine().login(BOOT)
    }

    /// Cuts its power. The disk stays.
    pub fn kill(&mut self) {
        self.machine = None;
    }

    /// Runs a command that must succeed, and gives what it printed.
    ///
    /// # Errors
    /// See [`Machine::check`].
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.machine().check(command, COMMAND)
    }

    /// The label in the tree that is running: the release's name as the test's maker wrote
    /// it into `/usr`, independent of what Varve says.
    ///
    /// # Errors
    /// See [`Machine::check`].
    pub fn running(&mut self) -> Result<String> {
        self.run("cat /usr/lib/varve-test/release").map(|text| text.trim().to_owned())
    }

    /// Lets the running system use this test's server and a channel, and waits for its
    /// network.
    ///
    /// # Errors
    /// See [`Machine::check`].
    pub fn connect(&mut self, channel: &str) -> Result<()> {
        let url = self.server.guest_url();
        self.run(&format!(
            "sed -i -e 's|^sources = .*|sources = [\"{url}\"]|' -e 's|^channel = .*|channel = \"{channel}\"|' /etc/varve/varve.toml && nm-online --quiet --timeout=60"
        ))
        .map(|_| ())
    }

    /// Waits until the boot is complete and Varve has judged it, so that the state on disk
    /// is settled.
    ///
    /// # Errors
    /// See [`Machine::run`].
    pub fn settle(&mut self) -> Result<()> {
        self.machine().run("systemctl is-system-running --wait", BOOT).map(|_| ())
    }
}
