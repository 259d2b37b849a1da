//! The two that are upgraded: a device of ours and an OSTree client, each on an ext4 disk
//! that is kept as it was before.

use super::measure::settle;
use crate::device::Programs;
use crate::lab::{self, Publisher};
use crate::project::{Result, output, program, write};
use crate::trees::remove;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use varve_testkit::vm::disk::{self, Mounted};

/// A disk on which every run begins with the same.
struct Fresh {
    kept: PathBuf,
    copy: PathBuf,
    folder: PathBuf,
}

impl Fresh {
    fn new(scratch: &Path, name: &str) -> Result<Self> {
        let folder = scratch.join(format!("{name}.mount"));
        fs::create_dir_all(&folder)?;
        let [kept, copy] = ["img", "copy"].map(|end| scratch.join(format!("{name}.{end}")));
        Ok(Self { kept, copy, folder })
    }

    /// Mounts a fresh copy for as long as `act` takes.
    fn with<T>(&self, act: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        remove(&self.copy)?;
        disk::copy(&self.kept, &self.copy)?;
        let mounted = Mounted::new(&self.copy, &self.folder)?;
        settle();
        let result = act(&self.folder);
        mounted.unmount()?;
        result
    }
}

/// A device with a release installed.
pub(super) struct Device {
    program: PathBuf,
    disk: Fresh,
    config: PathBuf,
    layout: &'static str,
}

impl Device {
    /// Installs a release of the publisher's.
    pub(super) fn new(
        programs: &Programs,
        scratch: &Path,
        publisher: &Publisher,
        release: &str,
        layout: &'static str,
    ) -> Result<Self> {
        let disk = Fresh::new(scratch, layout)?;
        let config = lab::configuration(layout);
        lab::install(&disk.kept, &publisher.repository, release, &config, programs)?;
        let config = scratch.join(format!("{layout}.toml"));
        Ok(Self { program: programs.varve.clone(), disk, config, layout })
    }

    /// Upgrades a fresh copy from `url`, with more of a configuration (its keys, then its
    /// tables), measured as the caller likes.
    pub(super) fn upgrade<T>(
        &self,
        url: &str,
        (keys, tables): (&str, &str),
        measure: impl FnOnce(&Command) -> Result<T>,
    ) -> Result<T> {
        let text = lab::configuration(self.layout).replace(lab::NO_SOURCE, url);
        write(&self.config, format!("{keys}\n{text}\n{tables}"))?;
        self.disk.with(|folder| {
            let mut command = Command::new(&self.program);
            command.arg("--root").arg(folder).arg("--config").arg(&self.config);
            command.args(["--json", "--quiet", "upgrade"]);
            measure(&command)
        })
    }
}

/// An OSTree archive repository; everything is in its branch `release`.
pub(super) struct Repository {
    pub(super) folder: PathBuf,
}

impl Repository {
    pub(super) fn init(scratch: &Path) -> Result<Self> {
        let repository = Self { folder: scratch.join("ostree") };
        output(repository.command().args(["init", "--mode=archive"]))?;
        Ok(repository)
    }

    /// ostree on this repository.
    pub(super) fn command(&self) -> Command {
        ostree(&self.folder)
    }

    /// The command that commits a tree.
    pub(super) fn commit_command(&self, tree: &Path) -> Command {
        let mut command = self.command();
        command.args(["commit", "--branch=release", "--no-xattrs"]);
        command.arg(format!("--tree=dir={}", tree.display()));
        command
    }

    /// Commits a tree; gives the commit.
    pub(super) fn commit(&self, tree: &Path) -> Result<String> {
        output(&mut self.commit_command(tree)).map(|text| text.trim().to_owned())
    }

    pub(super) fn summary(&self) -> Result {
        output(self.command().args(["summary", "--update"])).map(|_| ())
    }
}

/// An OSTree client that has what was committed when it was made.
pub(super) struct Client {
    disk: Fresh,
}

impl Client {
    pub(super) fn new(repository: &Repository, scratch: &Path) -> Result<Self> {
        let disk = Fresh::new(scratch, "ostree-client")?;
        disk::make_ext4(&disk.kept, 4 << 30)?;
        let mounted = Mounted::new(&disk.kept, &disk.folder)?;
        let client = Self { disk };
        let folder = &client.disk.folder;
        output(client.command(folder).args(["init", "--mode=bare"]))?;
        output(client.command(folder).arg("pull-local").arg(&repository.folder).arg("release"))?;
        let mut checkout = client.command(folder);
        output(checkout.args(["checkout", "-H", "release"]).arg(folder.join("old")))?;
        mounted.unmount()?;
        Ok(client)
    }

    /// Mounts a fresh copy of the client, which knows `url`.
    pub(super) fn with<T>(&self, url: &str, act: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        self.disk.with(|folder| {
            let mut remote = self.command(folder);
            output(remote.args(["remote", "add", "--no-gpg-verify", "origin", url]))?;
            settle();
            act(folder)
        })
    }

    /// ostree on the client that is mounted at `folder`.
    pub(super) fn command(&self, folder: &Path) -> Command {
        ostree(&folder.join("repository"))
    }

    /// The pull, with or without deltas.
    pub(super) fn pull(&self, folder: &Path, deltas: &str) -> Command {
        let mut command = self.command(folder);
        command.args(["pull", deltas, "origin", "release"]);
        command
    }
}

fn ostree(repository: &Path) -> Command {
    let mut command = program("ostree");
    command.arg(format!("--repo={}", repository.display()));
    command
}
