//! The releases that did not work on this device, and why: they are not tried again by
//! themselves. Kept beside the deployments, so that the memory outlives them.
//!
//! ```toml
//! [[release]]
//! digest = "5f…"
//! name = "debian-13.2"
//! sequence = 2
//! time = "2026-11-23T14:41:56Z"
//! reason = "the health check \"ssh\" failed: exit status 1"
//! ```

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use varve_format::deployment::ReleaseRef;
use varve_format::{ReleaseDigest, ReleaseName};
use varve_sys::{Dir, SysError, durable};

/// The file's name in the state root.
pub const FILE: &str = "rejected.toml";
/// How many are remembered: the oldest are forgotten first.
pub const MOST: usize = 100;
const MAX_TEXT: u64 = 1 << 20;

/// One release that did not work.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rejection {
    /// Its identity: a release of the same name with other content is another.
    pub digest: ReleaseDigest,
    /// Its name for people.
    pub name: ReleaseName,
    /// Its place in the repository's order.
    pub sequence: u64,
    /// When, by the device's clock.
    pub time: Timestamp,
    /// Why, in words.
    pub reason: String,
}

/// All of them, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Rejected {
    /// The releases.
    #[serde(default, rename = "release")]
    pub releases: Vec<Rejection>,
}

impl Rejected {
    /// Reads the memory. One that is damaged is taken as empty, and why is told: a
    /// device must still upgrade.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(state_root: &Dir) -> Result<(Self, Option<String>), SysError> {
        let Some(bytes) = state_root.read_opt(FILE, MAX_TEXT)? else {
            return Ok((Self::default(), None));
        };
        Ok(match Self::parse(&bytes) {
            Ok(rejected) => (rejected, None),
            Err(why) => (Self::default(), Some(why)),
        })
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("plain data")
    }

    /// Replaces the memory on the disk.
    pub fn save(&self, state_root: &Dir) -> Result<(), SysError> {
        durable::replace_file(state_root, FILE, self.to_text().as_bytes(), 0o644)
    }

    /// Why a release is not tried again, if so.
    pub fn find(&self, digest: &ReleaseDigest) -> Option<&Rejection> {
        self.releases.iter().find(|release| release.digest == *digest)
    }

    /// Remembers a release; a later reason replaces an earlier.
    pub fn add(&mut self, release: &ReleaseRef, reason: &str, time: Timestamp) {
        self.remove(&release.digest);
        self.releases.push(Rejection {
            digest: release.digest,
            name: release.name.clone(),
            sequence: release.sequence,
            time,
            reason: reason.to_owned(),
        });
        let surplus = self.releases.len().saturating_sub(MOST);
        self.releases.drain(..surplus);
    }

    /// Forgets a release: it worked after all. Whether it was there.
    pub fn remove(&mut self, digest: &ReleaseDigest) -> bool {
        let before = self.releases.len();
        self.releases.retain(|release| release.digest != *digest);
        before != self.releases.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(n: u8) -> ReleaseRef {
        let name = format!("r{n}").parse().unwrap();
        ReleaseRef { name, digest: ReleaseDigest([n; 32]), sequence: n.into() }
    }

    #[test]
    fn remembers_forgets_and_survives_damage() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::open(folder.path()).unwrap();
        let (mut rejected, _) = Rejected::load(&dir).unwrap();
        let time = Timestamp::from_second(1_760_000_000).unwrap();
        rejected.add(&release(1), "it \"hung\"\nand more", time);
        rejected.add(&release(2), "no", time);
        rejected.add(&release(1), "again", time);
        rejected.save(&dir).unwrap();
        let (again, why) = Rejected::load(&dir).unwrap();
        assert_eq!((&again, why), (&rejected, None));
        assert_eq!(again.find(&release(1).digest).unwrap().reason, "again");
        assert_eq!(again.releases.len(), 2);
        assert!(rejected.remove(&release(2).digest));
        assert!(!rejected.remove(&release(2).digest));
        durable::replace_file(&dir, FILE, b"[[release]\n", 0o644).unwrap();
        let (empty, why) = Rejected::load(&dir).unwrap();
        assert_eq!(empty, Rejected::default());
        assert!(why.is_some());
        for n in 0..=255 {
            rejected.add(&release(n), "no", time);
        }
        assert_eq!(rejected.releases.len(), MOST);
        assert!(rejected.find(&release(255).digest).is_some());
    }
}
