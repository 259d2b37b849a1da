//! Taking releases out of a repository, and deleting what then nothing names.
//!
//! The order is the safety: first the signed list without the releases is published; only
//! then are files deleted. A cut in between leaves files that nothing names, which the
//! next prune deletes. A device that is fetching a pruned release finds a file missing,
//! is told so, and keeps what it has.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;
use varve_format::ReleaseName;
use varve_format::release::{ReleaseRecord, StoredManifest};
use varve_sys::{Dir, durable};

use crate::error::{PublishError, Result};
use crate::keys::KeyDirs;
use crate::repository::{Published, Repository, published, target_name};

/// How many old versions of the signed documents stay, for readers that are between two.
const OLD_METADATA: u64 = 2;

/// What to take out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// All but the newest so many of each channel.
    Newest(usize),
    /// All but these stay.
    AllBut(Vec<ReleaseName>),
}

/// What a prune takes out, or would.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Prune {
    /// Releases that leave the list.
    pub releases: Vec<Published>,
    /// Files that are deleted, relative to the repository, and their lengths in bytes.
    pub files: Vec<(String, u64)>,
}

impl Prune {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl Repository {
    /// Takes releases out, then deletes every file that no release, published or pending,
    /// names. With `dry_run` only says what it would do.
    pub fn prune(
        &self,
        keep: &Keep,
        dirs: &KeyDirs,
        now: Timestamp,
        dry_run: bool,
    ) -> Result<Prune> {
        let tuf = self.tuf()?;
        let all = published(&tuf.targets.signed);
        let leaves = |release: &Published| match keep {
            Keep::AllBut(names) => names.contains(&release.name),
            Keep::Newest(count) => all
                .iter()
                .filter(|other| other.channel == release.channel)
                .position(|other| other.name == release.name)
                .is_some_and(|place| place >= *count),
        };
        if let Keep::AllBut(names) = keep
            && let Some(name) = names.iter().find(|name| !all.iter().any(|r| r.name == **name))
        {
            return Err(PublishError::NoSuchRelease { name: name.clone() });
        }
        let (releases, stay): (Vec<_>, Vec<_>) = all.iter().cloned().partition(leaves);

        let mut version = tuf.targets.signed.version.get();
        let mut snapshot_version = tuf.snapshot.signed.version.get();
        if !releases.is_empty() {
            let mut targets = tuf.targets.signed.clone();
            for release in &releases {
                targets.targets.remove(&target_name(&release.name)?);
            }
            let update = self.sign_targets(&tuf, targets, dirs, now)?;
            version += 1;
            snapshot_version += 1;
            if !dry_run {
                update.commit(&self.metadata()?)?;
            }
        }
        let named = self.named_files(&stay, version, snapshot_version)?;
        let mut prune = Prune { releases, files: Vec::new() };
        for directory in ["metadata", "targets", "manifests", "packs", "deltas"] {
            let Some(dir) = self.dir.open_dir_opt(directory)? else { continue };
            for file in unnamed(&dir, directory, &named)? {
                let bytes = dir.stat(&file)?.size;
                if !dry_run {
                    dir.unlink(&file)?;
                }
                prune.files.push((format!("{directory}/{file}"), bytes));
            }
            if !dry_run {
                durable::sync_directory(&dir)?;
            }
        }
        Ok(prune)
    }

    /// Every file that is needed, relative to the repository.
    fn named_files(
        &self,
        stay: &[Published],
        targets: u64,
        snapshot: u64,
    ) -> Result<BTreeSet<String>> {
        let mut named = BTreeSet::new();
        for release in stay {
            named.insert(format!("targets/{}", release.record_file()));
            name_files(&self.published_record(release)?, &mut named);
            named.extend(release.deltas.map(|list| list.path()));
            // A device may hold what a delta starts from long after it left the list: a
            // delta goes with the release that it leads to.
            named.extend(self.deltas(release)?.iter().map(|delta| delta.path()));
        }
        for record in self.pending()? {
            name_files(&record, &mut named);
        }
        for (kind, newest) in [("targets", targets), ("snapshot", snapshot)] {
            for version in newest.saturating_sub(OLD_METADATA)..=newest {
                named.insert(format!("metadata/{version}.{kind}.json"));
            }
        }
        Ok(named)
    }

    /// Files below the repository that nothing names.
    pub(crate) fn unnamed_files(&self) -> Result<Vec<String>> {
        let tuf = self.tuf()?;
        let [_, (_, targets, _), (_, snapshot, _), _] = tuf.state();
        let named = self.named_files(&published(&tuf.targets.signed), targets, snapshot)?;
        let mut files = Vec::new();
        for directory in ["targets", "manifests", "packs", "deltas"] {
            if let Some(dir) = self.dir.open_dir_opt(directory)? {
                let unnamed = unnamed(&dir, directory, &named)?;
                files.extend(unnamed.into_iter().map(|file| format!("{directory}/{file}")));
            }
        }
        Ok(files)
    }
}

fn name_files(record: &ReleaseRecord, named: &mut BTreeSet<String>) {
    named.insert(StoredManifest::path(&record.digest));
    for pack in &record.packs {
        named.insert(pack.path());
        named.insert(pack.index_path());
    }
}

/// The files of a directory that may go. Roots and the timestamp never do; a file whose
/// name Varve would not give is not Varve's to delete.
fn unnamed(dir: &Dir, directory: &str, named: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in dir.names()? {
        let Some(name) = entry.name.to_str() else { continue };
        let ours = match directory {
            "metadata" => name.ends_with(".targets.json") || name.ends_with(".snapshot.json"),
            "targets" => name.ends_with(".json"),
            "manifests" => name.ends_with(".zst"),
            "deltas" => name.ends_with(".json") || name.ends_with(".delta"),
            _ => name.ends_with(".pack") || name.ends_with(".idx"),
        };
        if ours && !name.starts_with('.') && !named.contains(&format!("{directory}/{name}")) {
            files.push(name.to_owned());
        }
    }
    Ok(files)
}
