//! A copy of a tree by hard links, and a merge of two layers, beside `cp -al`.

use super::Bench;
use super::measure::{Figure, cost, in_turns, settle, system_calls};
use crate::project::{Result, cargo, output, program, show, target};
use crate::trees::remove;
use std::process::Command;

pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    show(cargo().args([
        "build",
        "--quiet",
        "--locked",
        "--release",
        "--package",
        "varve-testkit",
        "--example",
        "fold",
    ]))?;
    let fold = target()?.join("release/examples/fold");
    // The three work on one file system, so the tree is brought there first.
    let tree = bench.scratch.join("tree");
    output(program("cp").args(["--archive"]).arg(&bench.old.folder).arg(&tree))?;
    // An update layer as an upgrade makes one: what is new, over the base.
    let update = bench.scratch.join("update");
    std::fs::create_dir_all(update.join("usr/lib"))?;
    output(
        program("cp")
            .args(["--archive"])
            .arg(bench.new.folder.join("usr/lib/modules"))
            .arg(update.join("usr/lib")),
    )?;
    output(program("cp").args(["--archive"]).arg(bench.new.folder.join("boot")).arg(&update))?;

    let target = bench.scratch.join("copy");
    let fresh = |command: &Command| {
        remove(&target)?;
        settle();
        cost(command)
    };
    let mut copy = Command::new(&fold);
    copy.arg(&target).arg(&tree);
    let mut merge = Command::new(&fold);
    merge.arg(&target).arg(&update).arg(&tree);
    let mut peer = program("cp");
    peer.arg("-al").arg(&tree).arg(&target);
    let [copied, merged, cp] =
        in_turns(5, [&mut |_| fresh(&copy), &mut |_| fresh(&merge), &mut |_| fresh(&peer)])?;
    let mut figures = vec![
        Figure::ratio("copy by links: time", copied.time, ("cp -al", cp.time), 1.0),
        Figure::ratio("merge: time", merged.time, ("our copy by links", copied.time), 1.0),
    ];
    let count = |command: &Command| {
        remove(&target)?;
        system_calls(command)
    };
    if let (Some(ours), Some(theirs)) = (count(&copy)?, count(&peer)?) {
        let paths = output(program("find").arg(&tree).args(["-printf", "."]))?.len();
        let note = format!("{paths} paths, one call for each is the least; cp -al {theirs}");
        figures.push(Figure::fact("copy by links: system calls", ours as f64, "", note));
    }
    Ok(figures)
}
