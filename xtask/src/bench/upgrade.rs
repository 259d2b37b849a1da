//! An upgrade from a local HTTP server, fetch to promoted, beside what OSTree does for it:
//! pull, then a checkout by hard links. Both sync what they write.

use super::Bench;
use super::measure::{Cost, Figure, cost, in_turns, settle, system_calls};
use crate::lab::{self, Publisher, STABLE};
use crate::project::{Result, output, program};
use crate::trees::remove;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use varve_testkit::vm::disk::{self, Mounted};
use varve_testkit::vm::serve::Server;

pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let publisher = Publisher::init(&bench.scratch, &bench.programs)?;
    publisher.release(&bench.old.folder, "old", STABLE)?;
    let mut figures = Vec::new();
    let ours = Ours::new(bench, &publisher)?;
    publisher.release(&bench.new.folder, "new", STABLE)?;
    let theirs = Theirs::new(bench)?;
    let server = Server::start(&publisher.repository)?;
    let their_server = Server::start(&theirs.repository)?;

    let must = must_write(&bench.old.folder, &bench.new.folder)?;
    for layout in lab::LAYOUTS {
        let [our_cost, their_cost] = in_turns(
            2,
            [&mut |_| ours.upgrade(layout, &server.url(), cost), &mut |_| {
                theirs.upgrade(&their_server.url())
            }],
        )?;
        let name = |what: &str| format!("upgrade, {layout}: {what}");
        figures.push(Figure::ratio(&name("time"), our_cost.time, ("ostree", their_cost.time), 0.8));
        figures.push(Figure::memory(
            &name("memory"),
            our_cost.memory,
            ("ostree", their_cost.memory),
            64.0,
        ));
        figures.push(Figure::fact(
            &name("written"),
            our_cost.written as f64 / 1e6,
            "MB",
            format!(
                "new content {:.0} MB; ostree {:.0} MB",
                must.bytes as f64 / 1e6,
                their_cost.written as f64 / 1e6
            ),
        ));
        server.reset();
        let calls = ours.upgrade(layout, &server.url(), system_calls)?;
        figures.push(Figure::fact(
            &name("fetched"),
            server.counters().total() as f64 / 1e6,
            "MB",
            format!("{} requests", server.counters().requests),
        ));
        if let Some(calls) = calls {
            // Open, write, sync or not, and name it: four for each changed path.
            let note = format!(
                "{} paths change; four calls for each would be {}",
                must.paths,
                4 * must.paths
            );
            figures.push(Figure::fact(&name("system calls"), calls as f64, "", note));
        }
    }
    their_server.reset();
    theirs.upgrade(&their_server.url())?;
    let note = format!("{} requests", their_server.counters().requests);
    figures.push(Figure::fact(
        "ostree: fetched",
        their_server.counters().total() as f64 / 1e6,
        "MB",
        note,
    ));
    Ok(figures)
}

/// A device's disk for each layout, kept as it was before the upgrade.
struct Ours {
    program: PathBuf,
    disks: HashMap<&'static str, PathBuf>,
    scratch: PathBuf,
}

impl Ours {
    fn new(bench: &Bench, publisher: &Publisher) -> Result<Self> {
        let mut disks = HashMap::new();
        for layout in lab::LAYOUTS {
            let disk = bench.scratch.join(format!("{layout}.img"));
            lab::install(
                &disk,
                &publisher.repository,
                "old",
                &lab::configuration(layout),
                &bench.programs,
            )?;
            disks.insert(layout, disk);
        }
        Ok(Self { program: bench.programs.varve.clone(), disks, scratch: bench.scratch.clone() })
    }

    /// Upgrades a fresh copy of the disk, measured as the caller likes.
    fn upgrade<T>(&self, layout: &str, url: &str, measure: fn(&Command) -> Result<T>) -> Result<T> {
        let disk = self.scratch.join("device.img");
        remove(&disk)?;
        disk::copy(&self.disks[layout], &disk)?;
        let folder = self.scratch.join("device");
        fs::create_dir_all(&folder)?;
        let mounted = Mounted::new(&disk, &folder)?;
        let config = self.scratch.join("varve.toml");
        let text = lab::configuration(layout).replace("http://10.0.2.2:1", url);
        crate::project::write(&config, text)?;
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&folder).arg("--config").arg(&config).arg("upgrade");
        settle();
        let result = measure(&command);
        mounted.unmount()?;
        result
    }
}

/// An OSTree client on a disk of the same kind.
struct Theirs {
    repository: PathBuf,
    disk: PathBuf,
    scratch: PathBuf,
}

impl Theirs {
    fn new(bench: &Bench) -> Result<Self> {
        let repository = bench.scratch.join("ostree");
        let ostree = |words: &[&str], repository: &Path| {
            output(program("ostree").arg(format!("--repo={}", repository.display())).args(words))
        };
        ostree(&["init", "--mode=archive"], &repository)?;
        let commit = |tree: &Path| {
            ostree(
                &[
                    "commit",
                    "--branch=release",
                    "--no-xattrs",
                    &format!("--tree=dir={}", tree.display()),
                ],
                &repository,
            )
        };
        commit(&bench.old.folder)?;
        let disk = bench.scratch.join("ostree.img");
        disk::make_ext4(&disk, 4 << 30)?;
        let folder = bench.scratch.join("client");
        fs::create_dir_all(&folder)?;
        let mounted = Mounted::new(&disk, &folder)?;
        let client = folder.join("repository");
        ostree(&["init", "--mode=bare"], &client)?;
        ostree(&["pull-local", &repository.display().to_string(), "release"], &client)?;
        let old = folder.join("old").display().to_string();
        ostree(&["checkout", "-H", "release", &old], &client)?;
        mounted.unmount()?;
        commit(&bench.new.folder)?;
        ostree(&["summary", "--update"], &repository)?;
        Ok(Self { repository, disk, scratch: bench.scratch.clone() })
    }

    fn upgrade(&self, url: &str) -> Result<Cost> {
        let disk = self.scratch.join("client.img");
        remove(&disk)?;
        disk::copy(&self.disk, &disk)?;
        let folder = self.scratch.join("client");
        let mounted = Mounted::new(&disk, &folder)?;
        let client = format!("--repo={}", folder.join("repository").display());
        output(program("ostree").arg(&client).args([
            "remote",
            "add",
            "--no-gpg-verify",
            "origin",
            url,
        ]))?;
        settle();
        let pull = cost(program("ostree").arg(&client).args([
            "pull",
            "--disable-static-deltas",
            "origin",
            "release",
        ]))?;
        let new = folder.join("new");
        let checkout = cost(
            program("ostree").arg(&client).args(["checkout", "-H", "origin:release"]).arg(&new),
        )?;
        // Ours ends with everything on the disk.
        let sync = cost(program("sync").arg("--file-system").arg(&folder))?;
        mounted.unmount()?;
        Ok(Cost {
            time: pull.time + checkout.time + sync.time,
            memory: pull.memory.max(checkout.memory),
            written: pull.written + checkout.written,
        })
    }
}

/// What no way of upgrading can avoid.
#[derive(Default)]
struct Must {
    bytes: u64,
    paths: u64,
}

/// Compares two trees by size, mode and content.
fn must_write(old: &Path, new: &Path) -> Result<Must> {
    let mut must = Must::default();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(new.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let data = entry.metadata()?;
            if data.is_dir() {
                open.push(path);
                continue;
            }
            let before = fs::symlink_metadata(old.join(&path)).ok();
            let same = before
                .is_some_and(|before| before.len() == data.len() && before.mode() == data.mode())
                && same_content(&old.join(&path), &new.join(&path), data.is_file())?;
            if !same {
                must.paths += 1;
                must.bytes += if data.is_file() { data.len() } else { 0 };
            }
        }
    }
    Ok(must)
}

fn same_content(old: &Path, new: &Path, is_file: bool) -> Result<bool> {
    if is_file {
        return Ok(fs::read(old)? == fs::read(new)?);
    }
    Ok(fs::read_link(old).ok() == fs::read_link(new).ok())
}
