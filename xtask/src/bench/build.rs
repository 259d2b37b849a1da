//! Building a release, beside committing the same tree with OSTree.

use super::Bench;
use super::clients::Repository;
use super::measure::{Figure, cost, in_turns, settle};
use crate::lab::Publisher;
use crate::project::Result;
use crate::trees::remove;

pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let ours = bench.scratch.join("ours");
    let theirs = bench.scratch.join("theirs");
    let mut build = |_| {
        remove(&ours)?;
        std::fs::create_dir(&ours)?;
        let publisher = Publisher::init(&ours, &bench.programs)?;
        settle();
        cost(&publisher.build_command(&bench.old.folder, "release"))
    };
    let mut commit = |_| {
        remove(&theirs)?;
        std::fs::create_dir(&theirs)?;
        let repository = Repository::init(&theirs)?;
        settle();
        cost(&repository.commit_command(&bench.old.folder))
    };
    let [ours, theirs] = in_turns(2, [&mut build, &mut commit])?;
    Ok(vec![
        Figure::ratio("build: time", ours.time, ("ostree commit", theirs.time), 0.35),
        Figure::memory("build: memory", ours.memory, ("ostree commit", theirs.memory), 128.0),
        Figure::fact(
            "build: written",
            ours.written as f64 / 1e6,
            "MB",
            format!("ostree commit {:.0} MB", theirs.written as f64 / 1e6),
        ),
    ])
}
