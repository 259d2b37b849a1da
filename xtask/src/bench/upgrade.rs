//! An upgrade from a local HTTP server, fetch to promoted, beside what OSTree does for it:
//! pull, then a checkout by hard links. Both sync what they write. OSTree looks at what it
//! fetched alone; so does ours when told so (`verify = "new"`), and is measured so too.

use super::Bench;
use super::clients::{Client, Device, Repository};
use super::measure::{Cost, Figure, cost, in_turns, system_calls};
use crate::lab::{self, Publisher, STABLE};
use crate::project::{Result, program};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use varve_testkit::vm::serve::Server;

pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let publisher = Publisher::init(&bench.scratch, &bench.programs)?;
    publisher.release(&bench.old.folder, "old", STABLE)?;
    let mut figures = Vec::new();
    let device = |layout| Device::new(&bench.programs, &bench.scratch, &publisher, "old", layout);
    let devices = [device(lab::LAYOUTS[0])?, device(lab::LAYOUTS[1])?];
    publisher.release(&bench.new.folder, "new", STABLE)?;
    let repository = Repository::init(&bench.scratch)?;
    repository.commit(&bench.old.folder)?;
    let client = Client::new(&repository, &bench.scratch)?;
    repository.commit(&bench.new.folder)?;
    repository.summary()?;
    let server = Server::start(&publisher.repository)?;
    let their_server = Server::start(&repository.folder)?;

    let must = must_write(&bench.old.folder, &bench.new.folder)?;
    for (layout, ours) in lab::LAYOUTS.iter().zip(&devices) {
        let [our_cost, new_alone, their_cost] = in_turns(
            3,
            [
                &mut |_| ours.upgrade(&server.url(), ("", ""), cost),
                &mut |_| ours.upgrade(&server.url(), ("verify = \"new\"", ""), cost),
                &mut |_| pull_and_checkout(&client, &their_server.url()),
            ],
        )?;
        let name = |what: &str| format!("upgrade, {layout}: {what}");
        let peer = ("ostree", their_cost.time);
        figures.push(Figure::ratio(&name("time"), our_cost.time, peer, 0.8));
        let same = name("time, verifying what OSTree does");
        figures.push(Figure::ratio(&same, new_alone.time, peer, 0.8));
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
        let calls = ours.upgrade(&server.url(), ("", ""), system_calls)?;
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
    pull_and_checkout(&client, &their_server.url())?;
    let note = format!("{} requests", their_server.counters().requests);
    figures.push(Figure::fact(
        "ostree: fetched",
        their_server.counters().total() as f64 / 1e6,
        "MB",
        note,
    ));
    Ok(figures)
}

/// OSTree does in three steps what ours does in one, and ours ends with everything on
/// the disk.
fn pull_and_checkout(client: &Client, url: &str) -> Result<Cost> {
    client.with(url, |folder| {
        let pull = cost(&client.pull(folder, "--disable-static-deltas"))?;
        let new = folder.join("new");
        let mut checkout = client.command(folder);
        checkout.args(["checkout", "-H", "origin:release"]).arg(&new);
        let checkout = cost(&checkout)?;
        let sync = cost(program("sync").arg("--file-system").arg(folder))?;
        Ok(Cost {
            time: pull.time + checkout.time + sync.time,
            processor: pull.processor + checkout.processor + sync.processor,
            memory: pull.memory.max(checkout.memory),
            written: pull.written + checkout.written,
            others: pull.others.max(checkout.others),
        })
    })
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
