//! A rollback writes one file, whatever the size of the system.

use super::Bench;
use super::measure::{Figure, cost, settle};
use crate::lab::{self, Publisher, STABLE};
use crate::project::{Result, output};
use crate::trees::remove;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use varve_testkit::vm::disk::{self, Mounted};

/// How much longer a rollback of a whole Debian may take than one of a single file, for
/// the noise of a disk.
const NOISE: f64 = 1.5;

pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let small = [bench.scratch.join("small-1"), bench.scratch.join("small-2")];
    for (index, tree) in small.iter().enumerate() {
        // What a device asks of a release: an init, and where it keeps its state.
        for folder in ["etc/varve", "var", "home", "root", "usr/sbin"] {
            fs::create_dir_all(tree.join(folder))?;
        }
        crate::project::write(&tree.join("usr/sbin/init"), index.to_string())?;
    }
    let small = measure(bench, "small", &small[0], &small[1])?;
    let whole = measure(bench, "whole", &bench.old.folder, &bench.new.folder)?;
    let ratio = Figure::ratio("rollback: time", whole, ("a system of one file", small), NOISE);
    Ok(vec![
        ratio,
        Figure::fact(
            "rollback: time",
            whole.as_secs_f64() * 1e3,
            "ms",
            "of Debian 13, synced".to_owned(),
        ),
    ])
}

/// The least time of a rollback from `new` to `old`.
fn measure(bench: &Bench, name: &str, old: &Path, new: &Path) -> Result<Duration> {
    let folder = bench.scratch.join(name);
    fs::create_dir_all(&folder)?;
    let publisher = Publisher::init(&folder, &bench.programs)?;
    publisher.release(old, "old", STABLE)?;
    let disk = folder.join("disk.img");
    let config_text = lab::configuration("overlay")
        .replace(lab::NO_SOURCE, &publisher.repository.display().to_string());
    lab::install(&disk, &publisher.repository, "old", &config_text, &bench.programs)?;
    publisher.release(new, "new", STABLE)?;
    let mount = folder.join("mount");
    fs::create_dir_all(&mount)?;
    let config = folder.join("varve.toml");
    crate::project::write(&config, config_text)?;
    let varve = |word: &str| {
        let mut command = Command::new(&bench.programs.varve);
        command.arg("--root").arg(&mount).arg("--config").arg(&config).arg(word);
        command
    };
    let mounted = Mounted::new(&disk, &mount)?;
    output(&mut varve("upgrade"))?;
    mounted.unmount()?;
    let mut least = Duration::MAX;
    for round in 0..5 {
        let copy = folder.join(format!("copy-{round}.img"));
        disk::copy(&disk, &copy)?;
        let mounted = Mounted::new(&copy, &mount)?;
        settle();
        least = least.min(cost(&varve("rollback"))?.time);
        mounted.unmount()?;
        remove(&copy)?;
    }
    Ok(least)
}
