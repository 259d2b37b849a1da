//! What every way works on: the two releases as trees and, for those who want it, as tars.

use super::record::PairName;
use crate::device::Programs;
use crate::project::{Result, cache, key, step};
use crate::releases::{self, Pair, Release, Suite};
use crate::trees::{empty, remove};
use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

/// A pair on this disk.
pub(crate) struct Ground {
    pub(crate) name: PairName,
    pub(crate) programs: Programs,
    pub(crate) old: PathBuf,
    pub(crate) new: PathBuf,
    /// A third release, for a second delta from the same old one.
    pub(crate) third: Option<PathBuf>,
    /// Changes when a release does.
    pub(super) key: String,
    pub(super) describe: String,
    folder: PathBuf,
    tars: OnceCell<[PathBuf; 2]>,
}

impl Ground {
    /// Makes the releases, or finds them made, and unpacks them.
    pub(crate) fn new(name: PairName, programs: &Programs) -> Result<Self> {
        let suite = if name == PairName::Bookworm { Suite::Bookworm } else { Suite::Trixie };
        let pair = match name {
            PairName::OnePackage => releases::one_package(suite)?,
            _ => releases::pair(suite)?,
        };
        let third = match name {
            PairName::Trixie => Some(releases::one_package(suite)?.new),
            _ => None,
        };
        let folder = cache()?.join("transfer").join(name.name());
        remove(&folder)?;
        fs::create_dir_all(&folder)?;
        let tree = |release: &Release, which: &str| -> Result<PathBuf> {
            let tree = folder.join(which);
            releases::unpack(&release.tar, &tree)?;
            // Devices of the machine that made it.
            empty(&tree.join("dev"))?;
            Ok(tree)
        };
        let Pair { old, new } = &pair;
        let (old, new) = step(&format!("unpacking {}", name.name()), || {
            Ok((tree(old, "old")?, tree(new, "new")?))
        })?;
        let third = third.map(|release| tree(&release, "third")).transpose()?;
        let releases = pair.old.packages.iter().chain(&pair.new.packages);
        Ok(Self {
            name,
            programs: programs.clone(),
            old,
            new,
            third,
            key: key(releases.map(String::as_bytes)),
            describe: releases::describe(suite, &pair)
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
            folder,
            tars: OnceCell::new(),
        })
    }

    /// The two trees as tars, made alike.
    pub(super) fn tars(&self) -> Result<&[PathBuf; 2]> {
        if let Some(tars) = self.tars.get() {
            return Ok(tars);
        }
        let tars = [&self.old, &self.new].map(|tree| tree.with_extension("tar"));
        releases::pack(&self.old, &tars[0])?;
        releases::pack(&self.new, &tars[1])?;
        Ok(self.tars.get_or_init(|| tars))
    }

    /// An empty folder, which the caller removes.
    pub(crate) fn scratch(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        remove(&folder)?;
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Removes all of it.
    pub(crate) fn clear(self) -> Result {
        remove(&self.folder)
    }
}

/// Says when two trees are not the same to the byte.
pub(super) fn must_equal(tree: &Path, expected: &Path) -> Result {
    crate::project::output(
        crate::project::program("diff")
            .args(["--recursive", "--brief", "--no-dereference"])
            .arg(tree)
            .arg(expected),
    )
    .map(|_| ())
}
