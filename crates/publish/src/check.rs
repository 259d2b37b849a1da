//! `check`: reads a whole repository and says everything that is wrong with it.
//!
//! Signatures and digests from the roots down to each content: what passes here, any
//! device can fetch. Problems are collected, not stopped at.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use serde::Serialize;
use varve_build::repo;
use varve_format::Sha256Digest;
use varve_format::release::PackRef;
use varve_sys::task::{Cancel, Progress, Unit};
use varve_sys::whole_message;

use crate::error::Result;
use crate::keys::Role;
use crate::repository::{Published, Repository, published};

/// Something wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Which file, relative to the repository, or which role.
    pub what: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What a check read, and what it found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Published releases.
    pub releases: u64,
    /// Packs that are whole.
    pub packs: u64,
    /// Contents in them, each held against its digest.
    pub contents: u64,
    /// Deltas that are whole and, where the release they start from is here, were applied.
    pub deltas: u64,
    /// Bytes of these packs.
    pub bytes: u64,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// Files that no release names; `prune` deletes them.
    pub unnamed: Vec<String>,
}

impl Repository {
    /// Verifies everything.
    ///
    /// # Errors
    /// Only when the check itself cannot go on; what is wrong with the repository is in
    /// the report.
    pub fn check(
        &self,
        now: Timestamp,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let tuf = match self.tuf() {
            Ok(tuf) => tuf,
            Err(error) => {
                report.problem("metadata", whole_message(&error));
                return Ok(report);
            }
        };
        for (role, _, expires) in tuf.state() {
            if expires <= now {
                let how = if role == Role::Root { "rotate root" } else { "refresh" };
                report.problem(
                    role.as_str(),
                    format!("expired at {expires}: run `varve-repo {how}`"),
                );
            }
        }
        let mut packs: BTreeMap<Sha256Digest, PackRef> = BTreeMap::new();
        let all = published(&tuf.targets.signed);
        for release in &all {
            report.releases += 1;
            cancel.check()?;
            let record = match self.published_record(release) {
                Ok(record) => record,
                Err(error) => {
                    report.problem(
                        &format!("targets/{}", release.record_file()),
                        whole_message(&error),
                    );
                    continue;
                }
            };
            let what = format!("release {}", release.name);
            if record.digest != release.digest || record.name != release.name {
                report.problem(&what, "its record names another release".into());
            }
            let mut here = HashSet::new();
            for pack in &record.packs {
                if packs.insert(pack.id, *pack).is_some_and(|other| other != *pack) {
                    report.problem(&pack.path(), "two releases describe it differently".into());
                }
                match repo::load_index(&self.dir, pack) {
                    Ok(index) => here.extend(index.contents().iter().map(|c| (c.digest, c.size))),
                    Err(error) => report.problem(&pack.index_path(), whole_message(&error)),
                }
            }
            match repo::load_manifest(&self.dir, &record) {
                Ok(manifest) => {
                    let missing =
                        manifest.contents().filter(|content| !here.contains(content)).count();
                    if missing > 0 {
                        report.problem(
                            &what,
                            format!("{missing} contents of its manifest are in none of its packs"),
                        );
                    }
                    if manifest.totals() != record.totals {
                        report.problem(
                            &what,
                            "its record states other totals than its manifest has".into(),
                        );
                    }
                }
                Err(error) => report.problem(&what, whole_message(&error)),
            }
        }
        for pack in packs.values() {
            match repo::check_pack(&self.dir, pack, progress, cancel) {
                Ok(()) => {
                    report.packs += 1;
                    report.bytes += pack.size;
                    report.contents += repo::load_index(&self.dir, pack)?.contents().len() as u64;
                }
                Err(repo::RepoError::Cancelled(cancelled)) => return Err(cancelled.into()),
                Err(error) => report.problem(&pack.path(), whole_message(&error)),
            }
        }
        for release in &all {
            self.check_deltas(release, &all, &mut report, progress, cancel)?;
        }
        report.unnamed = self.unnamed_files().unwrap_or_default();
        Ok(report)
    }
}

impl Repository {
    fn check_deltas(
        &self,
        release: &Published,
        all: &[Published],
        report: &mut CheckReport,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        let list = match self.deltas(release) {
            Ok(list) => list,
            Err(error) => {
                report.problem(&format!("release {}", release.name), whole_message(&error));
                return Ok(());
            }
        };
        // A release whose record is wrong was told of above.
        let record = |release: &Published| self.published_record(release).ok();
        let Some(to) = record(release) else { return Ok(()) };
        for delta in list {
            cancel.check()?;
            let from = all.iter().find(|r| r.digest == delta.from).and_then(record);
            progress.begin("applying a delta", Unit::Bytes, None);
            let result = self.check_delta(&delta, from.as_ref(), &to);
            progress.end();
            match result {
                Ok(()) => report.deltas += 1,
                Err(error) => report.problem(&delta.path(), whole_message(&error)),
            }
        }
        Ok(())
    }
}

impl CheckReport {
    fn problem(&mut self, what: &str, problem: String) {
        self.problems.push(Problem { what: what.to_owned(), problem });
    }
}
