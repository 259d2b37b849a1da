//! What a scenario is: something that changes a disk, and what must hold after a cut.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::error::{Result, RigError};
use crate::layered::LAYERED;
use crate::lives::LIVES;
use crate::primitives::Primitives;

/// Where a scenario works.
#[derive(Clone, Debug)]
pub struct Site {
    /// The mounted disk: the physical root file system of a device.
    pub disk: PathBuf,
    /// A directory elsewhere, with a repository for one; cuts do not reach it.
    pub outside: PathBuf,
}

/// What was true when power failed.
#[derive(Clone, Debug)]
pub struct Before {
    /// What [`Scenario::prepare`] returned.
    pub facts: Value,
    /// What the runs had marked for certain.
    pub marks: Vec<String>,
}

impl Before {
    /// The last mark of the form `<word> <number>`.
    pub fn number(&self, word: &str) -> Option<u64> {
        let value = |mark: &String| mark.strip_prefix(word)?.strip_prefix(' ')?.parse().ok();
        self.marks.iter().rev().find_map(value)
    }

    /// Whether this mark is there.
    pub fn has(&self, mark: &str) -> bool {
        self.marks.iter().any(|other| other == mark)
    }
}

/// Puts a mark into the recording: what it tells has happened and is claimed durable.
pub type Mark<'a> = &'a (dyn Fn(String) + Send + Sync);

/// The same, for a listener that lives on.
pub type SharedMark = Arc<dyn Fn(String) + Send + Sync>;

/// A broken promise, in words.
pub type Finding = String;

/// A kind of work on a device, during which power fails. Failures are told in words.
pub trait Scenario: Send + Sync {
    /// Its name for the command line and reports.
    fn name(&self) -> &'static str;

    /// Makes what stands before: on the empty disk, and outside. The disk is unmounted
    /// in peace afterwards. What is returned goes to the other functions.
    fn prepare(&self, site: &Site) -> Result<Value, String>;

    /// Does the work; recorded.
    fn run(&self, site: &Site, facts: &Value, mark: SharedMark) -> Result<(), String>;

    /// After the cut, before anything is changed: what does the boot stage find?
    fn look(&self, site: &Site, before: &Before) -> Vec<Finding>;

    /// What the device does next until the work is complete; recorded for a second cut.
    /// What is returned goes to [`Self::done`].
    fn recover(&self, site: &Site, before: &Before, mark: Mark<'_>) -> Result<Value, String>;

    /// After the recovery: is everything as if nothing had happened?
    fn done(&self, site: &Site, before: &Before, recovery: &Value) -> Vec<Finding>;
}

/// All scenarios.
pub fn all() -> Vec<Box<dyn Scenario>> {
    let lives = LIVES.iter().map(|life| Box::new(*life) as Box<dyn Scenario>);
    let layered = LAYERED.iter().map(|one| Box::new(*one) as Box<dyn Scenario>);
    let primitives = std::iter::once(Box::new(Primitives) as Box<dyn Scenario>);
    primitives.chain(layered).chain(lives).collect()
}

/// Finds one by its name.
pub fn named(name: &str) -> Result<Box<dyn Scenario>> {
    let mut known = Vec::new();
    for scenario in all() {
        if scenario.name() == name {
            return Ok(scenario);
        }
        known.push(scenario.name());
    }
    Err(RigError::Unknown(format!("no scenario {name:?}; there are {}", known.join(", "))))
}

/// A mount point or scratch directory beside others.
pub(crate) fn below(dir: &Path, name: &str) -> Result<PathBuf> {
    use crate::error::At;
    let path = dir.join(name);
    std::fs::create_dir_all(&path).at("make the directory", &path)?;
    Ok(path)
}
