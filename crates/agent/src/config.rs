//! The configuration, `/etc/varve/varve.toml`: where updates come from, how the root is
//! held, what outlives a release, and what must be well before a release is kept.
//!
//! ```toml
//! sources = ["https://updates.example.org/debian", "/media/stick/repository"]
//! channel = "stable"
//! layout = "overlay"           # or "hard-link"
//!
//! [[state]]
//! path = "/etc"
//! mode = "versioned"           # or "shared", "bind"
//!
//! [[health]]
//! name = "services"
//! command = ["systemctl", "is-active", "ssh.service"]
//! timeout = "90s"
//! ```
//!
//! Every setting has a default but `sources`, which no device can guess; a device
//! without any still boots, rolls back and says what is missing when it is asked to
//! upgrade. A mistake is answered with file, line, column, the line itself and what is
//! expected: see [`ConfigError`].

mod error;
mod network;
mod policy;
mod value;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use varve_format::deployment::{Layout, RootMode, StatePath};
use varve_format::layer_file::LayerKey;

pub use crate::metered::OnMetered;
pub use crate::method::Prefer;
pub use error::ConfigError;
pub use network::{Network, Proxy, Rate};
pub use policy::{Allowed, Policy, Xattrs};
pub use value::{Bytes, Seconds, Source};

/// Where the configuration is in a running system.
pub const PATH: &str = "/etc/varve/varve.toml";
/// The longest configuration that is read, in bytes.
pub const MAX_TEXT: u64 = 1 << 20;

/// What the device's owner wants.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// Where the repository is: tried in this order, each the same repository.
    pub sources: Vec<Source>,
    /// Which line of releases this device follows.
    pub channel: String,
    /// How the root directory of what is staged next is held.
    pub layout: Layout,
    /// For layout `overlay`: how many layers a stack may have before its lowest two are
    /// merged. At least 2.
    #[serde(deserialize_with = "value::layers")]
    pub layers: u32,
    /// When a deep stack is folded by itself.
    pub fold: Fold,
    /// What may be written at the root.
    pub root_mode: RootMode,
    /// Directories that outlive releases.
    pub state: Vec<StatePath>,
    /// How many deployments stay on the disk, the latest and the previous included;
    /// pinned ones are not counted. At least 2.
    #[serde(deserialize_with = "value::keep")]
    pub keep: u32,
    /// How often a new release is tried before the previous one boots again. 1 to 9.
    #[serde(deserialize_with = "value::tries")]
    pub tries: u8,
    /// What a release may hold, whoever signed it.
    pub policy: Policy,
    /// Whose layers `varve layer import` takes without being told: `ed25519:…`.
    pub layer_keys: Vec<LayerKey>,
    /// How the sources are reached.
    pub network: Network,
    /// How much of a staged release is read again before it is promoted.
    pub verify: Verify,
    /// Room that an upgrade never uses, on each file system.
    pub reserve: Bytes,
    /// An upgrade that would fetch more than this is refused; none: no limit.
    pub max_download: Option<Bytes>,
    /// How what is missing comes.
    pub download: Download,
    /// What must be well before a release is kept.
    pub health: Vec<HealthCheck>,
}

/// When a stack that is as deep as `layers` says is folded by itself: once it has worked
/// for so long. What is wrong with a version shows a day or two later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Fold {
    /// Days for which it ran, pauses of at most a day included.
    pub days: u32,
    /// Boots of it that were good.
    pub boots: u32,
}

impl Default for Fold {
    fn default() -> Self {
        Self { days: 3, boots: 3 }
    }
}

/// How what is missing comes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Download {
    /// What counts when there are several ways.
    pub prefer: Prefer,
    /// Memory that an upgrade may use; none: half of what is available, at most 256 MiB.
    pub memory: Option<Bytes>,
    /// Processor time that applying deltas may take, by the publisher's measure; none: any.
    pub cpu: Option<Seconds>,
    /// What is fetched over a link that NetworkManager calls metered.
    pub metered: OnMetered,
    /// How long a download waits when its link becomes metered under way, before it ends; none:
    /// ten minutes.
    pub metered_wait: Option<Seconds>,
}

/// How much of a staged release is read again before it is promoted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// Every content, those linked from earlier deployments included.
    #[default]
    Full,
    /// What was written now; of the rest, metadata alone.
    New,
}

/// A command that must succeed after a new release has booted.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct HealthCheck {
    /// What it is called in the history.
    pub name: String,
    /// The program and its arguments; no shell is involved.
    #[serde(deserialize_with = "value::command")]
    pub command: Vec<String>,
    /// How long it may take; it is killed after that, which counts as failed.
    #[serde(default = "default_timeout")]
    pub timeout: Seconds,
}

fn default_timeout() -> Seconds {
    Seconds(Duration::from_secs(60))
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            channel: "stable".to_owned(),
            layout: Layout::Overlay,
            layers: 2,
            fold: Fold::default(),
            root_mode: RootMode::ReadOnly,
            state: Vec::new(),
            keep: 2,
            tries: 3,
            policy: Policy::default(),
            layer_keys: Vec::new(),
            network: Network::default(),
            verify: Verify::Full,
            reserve: Bytes(64 << 20),
            max_download: None,
            download: Download::default(),
            health: Vec::new(),
        }
    }
}

impl Config {
    /// Reads the text of a configuration; `file` is for messages.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub fn parse(text: &str, file: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let file = file.into();
        let config: Self =
            toml::from_str(text).map_err(|error| ConfigError::from_toml(&error, text, &file))?;
        config.check(text, &file)?;
        Ok(config)
    }

    /// Reads a file; none when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or has a mistake.
    pub fn load(path: &Path) -> Result<Option<Self>, ConfigError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ConfigError::Read { file: path.into(), source }),
        };
        if bytes.len() as u64 > MAX_TEXT {
            let source = std::io::Error::other(format!("it is longer than {MAX_TEXT} bytes"));
            return Err(ConfigError::Read { file: path.into(), source });
        }
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(&text, path).map(Some),
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let line = error.as_bytes()[..good].iter().filter(|&&b| b == b'\n').count() + 1;
                Err(ConfigError::NotText { file: path.into(), line })
            }
        }
    }

    /// What serde cannot see: what must be unlike, across values.
    fn check(&self, text: &str, file: &Path) -> Result<(), ConfigError> {
        for (at, state) in self.state.iter().enumerate() {
            let path = state.path.tree_path();
            for other in &self.state[..at] {
                let before = other.path.tree_path();
                let (what, inner) = if path == before {
                    ("is named twice", path)
                } else if path.starts_with(before) {
                    ("lies inside another state path", path)
                } else if before.starts_with(path) {
                    ("lies inside another state path", before)
                } else {
                    continue;
                };
                let message = format!("the state path {inner} {what}");
                let hint = "give each directory once, and only the outermost";
                let span = error::find_value(text, "[[state]]", at);
                return Err(ConfigError::at(file, text, span, message, Some(hint.to_owned())));
            }
        }
        for (at, check) in self.health.iter().enumerate() {
            if self.health[..at].iter().any(|other| other.name == check.name) {
                let message = format!("two health checks are called {:?}", check.name);
                let span = error::find_value(text, "[[health]]", at);
                let hint = "the name stands in the history: make it tell them apart";
                return Err(ConfigError::at(file, text, span, message, Some(hint.to_owned())));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
