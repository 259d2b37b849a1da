//! `repository.toml`: how long signatures of each role last. Read by the publisher alone;
//! devices never look at it.

use serde::{Deserialize, Serialize};
use varve_sys::{Dir, durable};

use crate::error::{PublishError, Result};
use crate::keys::Role;

const FILE: &str = "repository.toml";

/// What `init` sets down and later signatures follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The format of the repository; 1.
    pub format: u32,
    /// How long a signature lasts.
    pub expiry_days: ExpiryDays,
}

/// Days from signing to expiry, for each role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExpiryDays {
    /// Root: renewed by hand, from the drawer.
    pub root: u32,
    /// Targets: renewed by whoever publishes.
    pub targets: u32,
    /// Snapshot: renewed by machine.
    pub snapshot: u32,
    /// Timestamp: renewed by machine; the longest that a device can be kept from news
    /// without noticing.
    pub timestamp: u32,
}

impl Default for ExpiryDays {
    fn default() -> Self {
        Self { root: 1095, targets: 365, snapshot: 90, timestamp: 30 }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: 1, expiry_days: ExpiryDays::default() }
    }
}

impl Settings {
    /// Days from signing to expiry of one role.
    pub fn days(&self, role: Role) -> u32 {
        match role {
            Role::Root => self.expiry_days.root,
            Role::Targets => self.expiry_days.targets,
            Role::Snapshot => self.expiry_days.snapshot,
            Role::Timestamp => self.expiry_days.timestamp,
        }
    }

    /// Sets the days of one role.
    pub fn set_days(&mut self, role: Role, days: u32) {
        *match role {
            Role::Root => &mut self.expiry_days.root,
            Role::Targets => &mut self.expiry_days.targets,
            Role::Snapshot => &mut self.expiry_days.snapshot,
            Role::Timestamp => &mut self.expiry_days.timestamp,
        } = days;
    }

    pub(crate) fn load(repository: &Dir) -> Result<Self> {
        let Some(bytes) = repository.read_opt(FILE, 64 << 10)? else { return Ok(Self::default()) };
        let bad = |reason: String| PublishError::Settings { reason };
        let text = String::from_utf8(bytes).map_err(|error| bad(error.to_string()))?;
        let settings: Self = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if settings.format != 1 {
            return Err(bad(format!(
                "format {} is not known; this version writes format 1",
                settings.format
            )));
        }
        Ok(settings)
    }

    pub(crate) fn save(&self, repository: &Dir) -> Result<()> {
        let text = toml::to_string(self).expect("plain data");
        Ok(durable::replace_file(repository, FILE, text.as_bytes(), 0o644)?)
    }
}
