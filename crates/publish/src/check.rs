//! `check`: reads a whole repository and says everything that is wrong with it.
//!
//! Signatures and digests from the roots down to each content: what passes here, any
//! device can fetch. Problems are collected, not stopped at.

use std::collections::{BTreeMap, HashSet};

use aws_lc_rs::digest::{Context, SHA256};
use jiff::Timestamp;
use serde::Serialize;
use varve_format::Sha256Digest;
use varve_format::pack::PACK_MAGIC;
use varve_format::release::PackRef;
use varve_format::verity::ContentHasher;
use varve_sys::task::{Cancel, Progress, Unit};

use crate::contents::{self, OpenPack};
use crate::error::Result;
use crate::keys::Role;
use crate::repository::{Repository, published};

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
    /// Packs read.
    pub packs: u64,
    /// Contents whose digest was computed.
    pub contents: u64,
    /// Bytes of packs read.
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
    pub fn check(&self, now: Timestamp, progress: &dyn Progress, cancel: &Cancel) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let tuf = match self.tuf() {
            Ok(tuf) => tuf,
            Err(error) => {
                report.problem("metadata", text(&error));
                return Ok(report);
            }
        };
        for (role, _, expires) in tuf.state() {
            if expires <= now {
                let how = if role == Role::Root { "rotate root" } else { "refresh" };
                report.problem(role.as_str(), format!("expired at {expires}: run `varve-repo {how}`"));
            }
        }
        let mut packs: BTreeMap<Sha256Digest, PackRef> = BTreeMap::new();
        for release in published(&tuf.targets.signed) {
            report.releases += 1;
            cancel.check()?;
            let record = match self.published_record(&release) {
                Ok(record) => record,
                Err(error) => {
                    report.problem(&format!("targets/{}", release.record_file()), text(&error));
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
                match contents::index(self, pack) {
                    Ok(index) => here.extend(index.contents().iter().map(|c| (c.digest, c.size))),
                    Err(error) => report.problem(&pack.index_path(), text(&error)),
                }
            }
            match contents::manifest(self, &record) {
                Ok(manifest) => {
                    let missing = manifest.contents().filter(|content| !here.contains(content)).count();
                    if missing > 0 {
                        report.problem(&what, format!("{missing} contents of its manifest are in none of its packs"));
                    }
                    if manifest.totals() != record.totals {
                        report.problem(&what, "its record states other totals than its manifest has".into());
                    }
                }
                Err(error) => report.problem(&what, text(&error)),
            }
        }
        progress.begin("checking packs", Unit::Bytes, Some(packs.values().map(|pack| pack.size).sum()));
        for pack in packs.values() {
            if let Err(error) = self.check_pack(pack, &mut report, progress, cancel) {
                if matches!(error, crate::PublishError::Cancelled(_)) {
                    return Err(error);
                }
                report.problem(&pack.path(), text(&error));
            }
        }
        progress.end();
        report.unnamed = self.unnamed_files().unwrap_or_default();
        Ok(report)
    }

    /// Reads a pack from its first byte to its last: its own digest, each frame's, each
    /// content's.
    fn check_pack(
        &self,
        pack: &PackRef,
        report: &mut CheckReport,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        let path = pack.path();
        let open = OpenPack::open(self, pack)?;
        let mut decompressor = contents::decompressor()?;
        let mut whole = Context::new(&SHA256);
        let mut file = self.dir.open_file(&path)?;
        if file.metadata().map(|status| status.len()).ok() != Some(pack.size) {
            report.problem(&path, format!("it does not have the {} bytes that its record states", pack.size));
        }
        let mut magic = [0; PACK_MAGIC.len()];
        if std::io::Read::read_exact(&mut file, &mut magic).is_err() || magic != *PACK_MAGIC {
            report.problem(&path, "it does not begin as a pack does".into());
        }
        whole.update(&magic);
        let mut starts: Vec<_> = open.index.contents().iter().collect();
        starts.sort_by_key(|content| (content.frame, content.start));
        let mut next = starts.into_iter().peekable();
        let mut under_way: Vec<(ContentHasher, &varve_format::pack::Location)> = Vec::new();
        report.packs += 1;
        for frame in 0..open.index.frames().len() {
            cancel.check()?;
            let at = open.index.frames()[frame];
            whole.update(&open.stored(frame)?);
            let bytes = open.frame(frame, &mut decompressor)?;
            let mut still = Vec::new();
            for (mut hasher, content) in under_way.drain(..) {
                feed(&mut hasher, content, &bytes, 0);
                still.push((hasher, content));
            }
            while let Some(content) = next.next_if(|content| content.frame as usize == frame) {
                let mut hasher = ContentHasher::new();
                feed(&mut hasher, content, &bytes, content.start as usize);
                still.push((hasher, content));
            }
            for (hasher, content) in still {
                if hasher.size() < content.size {
                    under_way.push((hasher, content));
                } else {
                    report.contents += 1;
                    if hasher.finish() != content.digest {
                        report.problem(&path, format!("content {} is not what its digest says", content.digest));
                    }
                }
            }
            report.bytes += u64::from(at.stored);
            progress.advance(u64::from(at.stored));
        }
        if whole.finish().as_ref() != pack.id.0 {
            report.problem(&path, "its digest is not its name".into());
        }
        Ok(())
    }
}

fn feed(hasher: &mut ContentHasher, content: &varve_format::pack::Location, bytes: &[u8], start: usize) {
    let left = usize::try_from(content.size - hasher.size()).unwrap_or(usize::MAX);
    hasher.update(&bytes[start..bytes.len().min(start.saturating_add(left))]);
}

impl CheckReport {
    fn problem(&mut self, what: &str, problem: String) {
        self.problems.push(Problem { what: what.to_owned(), problem });
    }
}

/// An error with all that caused it, in one line.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
