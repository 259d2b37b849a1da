//! A device, opened: its physical root's `/varve`, its configuration, and what only one
//! program at a time may do with it.
//!
//! ```text
//! Places (paths) --open--> Device { store, config } --lock--> Writer
//! ```
//!
//! Whatever changes the device takes a [`Writer`], so that a wrong order does not
//! compile. Looking needs none.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use varve_boot::report::{BootReport, PATH as BOOT_REPORT, PHYSICAL_ROOT};
use varve_rootfs::{Store, StoreError};
use varve_sys::lock::Lock;
use varve_sys::task::Cancel;
use varve_sys::{Dir, SysError};

use crate::config::{self, Config, ConfigError};
use crate::sources::Link;
use crate::{announce, selection};

const LOCK: &str = "lock";
/// Beside the boot stage's report.
const BOOT_COMPLETE: &str = "boot-complete";
const MAX_BOOT_REPORT: u64 = 1 << 20;

/// Where a device's parts are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The physical root file system, which holds `/varve`.
    pub physical_root: PathBuf,
    /// The configuration.
    pub config: PathBuf,
    /// What the boot stage wrote; none when this is not the running system's device.
    pub boot_report: Option<PathBuf>,
    /// What is known of the way to the sources.
    pub link: Link,
    /// Whether some room is kept for a full disk: see [`crate::ballast`].
    pub ballast: bool,
}

impl Places {
    /// Of the system that is running.
    pub fn running() -> Self {
        Self {
            physical_root: PHYSICAL_ROOT.into(),
            config: config::PATH.into(),
            boot_report: Some(BOOT_REPORT.into()),
            link: Link::default(),
            ballast: true,
        }
    }

    /// Of a physical root that is not running, such as an image that is being made.
    pub fn at(physical_root: &Path, config: &Path) -> Self {
        Self {
            physical_root: physical_root.into(),
            config: config.into(),
            boot_report: None,
            link: Link::default(),
            ballast: false,
        }
    }
}

/// Why a device could not be opened, or may not be changed now.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No physical root is mounted there.
    #[error("this system was not booted by Varve: there is no {}", path.display())]
    NotBooted {
        /// Where the boot stage would have put it.
        path: PathBuf,
    },
    /// The physical root cannot be opened.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// Its `/varve` cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The configuration has a mistake.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another program changes the device.
    #[error("another varve is at work: {holder}")]
    Busy {
        /// What it said of itself.
        holder: String,
    },
    /// What the boot stage wrote cannot be understood.
    #[error("what the boot stage wrote, {path}, cannot be read: {reason}", path = path.display())]
    BootReport {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// An open device.
#[derive(Debug)]
pub struct Device {
    /// Where its parts are.
    pub places: Places,
    /// `/varve`.
    pub store: Store,
    /// What its owner wants.
    pub config: Config,
}

/// The right to change a device; ends when dropped.
#[derive(Debug)]
pub struct Writer {
    _lock: Lock,
}

impl Device {
    /// Opens a device. Without a configuration file everything has its default, and a new
    /// deployment is held as the latest is.
    pub fn open(places: Places) -> Result<Self, DeviceError> {
        let config = Config::load(&places.config)?;
        let physical_root = match Dir::open(&places.physical_root) {
            Err(error) if error.is_not_found() && places.boot_report.is_some() => {
                return Err(DeviceError::NotBooted { path: places.physical_root });
            }
            other => other?,
        };
        let store = Store::open(&physical_root)?;
        let config = config.unwrap_or_else(|| as_the_latest_is(&store));
        Ok(Self { places, store, config })
    }

    /// What the boot stage says that it booted; none when this device is not running.
    pub fn boot_report(&self) -> Result<Option<BootReport>, DeviceError> {
        let Some(path) = &self.places.boot_report else { return Ok(None) };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(None);
        };
        let bytes = match Dir::open(parent) {
            Err(error) if error.is_not_found() => return Ok(None),
            dir => dir?.read_opt(name, MAX_BOOT_REPORT)?,
        };
        let Some(bytes) = bytes else { return Ok(None) };
        let report = BootReport::parse(&bytes).map_err(|error| DeviceError::BootReport {
            path: path.clone(),
            reason: varve_sys::whole_message(&error),
        })?;
        Ok(Some(report))
    }

    /// Whether this boot came so far that a shutdown is no vote against it: the unit that
    /// judges a boot says so by a file, before it begins.
    pub fn boot_is_complete(&self) -> bool {
        let report = self.places.boot_report.as_deref();
        report.is_some_and(|report| report.with_file_name(BOOT_COMPLETE).exists())
    }

    /// As [`Self::lock`], waiting up to `limit` for whoever has it; `waits` hears once who
    /// that is. For what must be done and has nobody who would do it later: judging a
    /// boot while the daily upgrade has begun already.
    pub fn lock_patiently(
        &self,
        command: &str,
        now: Timestamp,
        limit: Duration,
        cancel: &Cancel,
        waits: &dyn Fn(&str),
    ) -> Result<Writer, DeviceError> {
        let end = Instant::now() + limit;
        let mut told = false;
        loop {
            match self.lock(command, now) {
                Err(DeviceError::Busy { holder })
                    if Instant::now() < end && !cancel.is_cancelled() =>
                {
                    if !told {
                        waits(&holder);
                        told = true;
                    }
                    std::thread::sleep(Duration::from_millis(200));
                }
                other => return other,
            }
        }
    }

    /// Takes the right to change the device, and completes the history if a power cut kept
    /// a line from it. `command` is what others are told.
    pub fn lock(&self, command: &str, now: Timestamp) -> Result<Writer, DeviceError> {
        let writer = lock(&self.store, command, now)?;
        if self.places.ballast {
            crate::ballast::adjust(&self.store, self.config.reserve.0);
        }
        Ok(writer)
    }
}

/// A configuration that was lost must not hide anybody's state: what is staged next is
/// held as the latest deployment is.
fn as_the_latest_is(store: &Store) -> Config {
    let latest = selection::read(store).ok().and_then(Result::ok);
    let latest = latest.and_then(|selection| store.deployment(&selection.latest).ok());
    match latest {
        Some(latest) => Config {
            layout: latest.record.stack.layout(),
            root_mode: latest.record.root_mode,
            state: latest.record.state,
            ..Config::default()
        },
        None => Config::default(),
    }
}

/// See [`Device::lock`].
pub(crate) fn lock(store: &Store, command: &str, now: Timestamp) -> Result<Writer, DeviceError> {
    let dir = store.dir();
    let Some(lock) = Lock::try_take(dir, LOCK)? else {
        let text = dir.read(LOCK, 4096).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        let holder = if text.is_empty() { "it did not say which".to_owned() } else { text };
        return Err(DeviceError::Busy { holder });
    };
    let text = format!("varve {command}, process {}, since {now:.0}\n", std::process::id());
    // For people alone: on a full disk the lock holds without it.
    let _ = dir.edit_file(LOCK).and_then(|mut file| {
        file.set_length(0)?;
        file.write_all(text.as_bytes())
    });
    // A history that cannot be written keeps nobody from rolling back.
    let _ = announce::settle(store);
    Ok(Writer { _lock: lock })
}
