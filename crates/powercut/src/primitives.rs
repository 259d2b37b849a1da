//! The scenario under all others: the functions of `varve_sys::durable`, each held to
//! what its comment promises. It needs no release and no repository.
//!
//! ```text
//! disk/place/selection       replaced, five times
//!            history         a line appended for each round
//!            round-<n>/      a tree staged, synced and renamed in; the one before goes
//! disk/staging/  disk/trash/
//! ```

use std::path::Path;

use serde_json::Value;
use varve_sys::{Dir, SysError, durable};

use crate::scenario::{Before, Finding, Mark, Scenario, SharedMark, Site};

const ROUNDS: u64 = 5;
const LIMIT: u64 = 1 << 20;

/// The scenario.
#[derive(Debug)]
pub struct Primitives;

struct Place {
    place: Dir,
    staging: Dir,
    trash: Dir,
}

impl Place {
    fn open(disk: &Path) -> Result<Self, SysError> {
        let disk = Dir::open(disk)?;
        Ok(Self {
            place: disk.open_dir("place")?,
            staging: disk.open_dir("staging")?,
            trash: disk.open_dir("trash")?,
        })
    }
}

/// Bytes that tell which round they are of, wherever one looks.
fn text(round: u64, length: usize) -> Vec<u8> {
    format!("round {round}; ").into_bytes().into_iter().cycle().take(length).collect()
}

fn length_of(file: u64) -> usize {
    [300, 9_000, 70_000][file as usize % 3]
}

fn round(at: &Place, round: u64, mark: Mark<'_>) -> Result<(), SysError> {
    let tree = at.staging.make_dir("tree", 0o755)?;
    for file in 0..6 {
        let mut new = tree.create_file(format!("file-{file}"), 0o644)?;
        new.write_all(&text(round, length_of(file)))?;
    }
    durable::sync_file_system(&at.staging)?;
    durable::commit_rename(&at.staging, "tree", &at.place, &format!("round-{round}"))?;
    mark(format!("committed {round}"));
    durable::replace_file(&at.place, "selection", &text(round, 6_000), 0o644)?;
    mark(format!("replaced {round}"));
    durable::append_line(&at.place, "history", &format!("round {round} done"))?;
    mark(format!("appended {round}"));
    durable::discard(&at.place, &format!("round-{}", round - 1), &at.trash)?;
    mark(format!("discarded {round}"));
    // One file written by hand, as the stage of a large content is.
    let mut file = at.staging.create_file(format!("part-{round}"), 0o600)?;
    file.write_all(&text(round, 20_000))?;
    file.sync()?;
    durable::sync_directory(&at.staging)?;
    mark(format!("part {round}"));
    Ok(())
}

fn prepare(disk: &Path) -> Result<(), SysError> {
    let root = Dir::open(disk)?;
    for name in ["place", "staging", "trash"] {
        root.mkdir(name, 0o755)?;
    }
    let at = Place::open(disk)?;
    durable::replace_file(&at.place, "selection", &text(0, 6_000), 0o644)?;
    at.place.mkdir("round-0", 0o755)?;
    durable::sync_file_system(&root)
}

fn look(at: &Place, before: &Before, findings: &mut Vec<Finding>) -> Result<(), SysError> {
    let reached = |word: &str| before.number(word).unwrap_or(0);
    let selection = at.place.read("selection", LIMIT)?;
    let oldest = reached("replaced");
    if !(oldest..=ROUNDS).any(|round| selection == text(round, 6_000)) {
        let shown = String::from_utf8_lossy(&selection[..selection.len().min(20)]).into_owned();
        findings.push(format!(
            "selection is neither round {oldest} nor later: {} bytes, {shown:?}",
            selection.len()
        ));
    }
    let history = at.place.read_opt("history", LIMIT)?.unwrap_or_default();
    let history = String::from_utf8_lossy(&history).into_owned();
    for round in 1..=reached("appended") {
        if !history.lines().any(|line| line == format!("round {round} done")) {
            findings.push(format!("the history lost round {round}"));
        }
    }
    let (newest, gone) = (reached("committed"), reached("discarded"));
    for round in 1..=ROUNDS {
        let name = format!("round-{round}");
        match at.place.open_dir_opt(&name)? {
            // A tree under its name is whole, whenever it got there.
            Some(tree) => {
                if round < gone {
                    findings.push(format!("{name} was discarded and is back"));
                }
                for file in 0..6 {
                    let bytes = tree.read_opt(format!("file-{file}"), LIMIT)?;
                    if bytes.as_deref() != Some(&*text(round, length_of(file))) {
                        findings.push(format!("{name}/file-{file} is not whole"));
                    }
                }
            }
            None if round == newest => {
                findings.push(format!("{name} was committed and is gone"));
            }
            None => {}
        }
    }
    for round in (1..=ROUNDS).filter(|round| before.has(&format!("part {round}"))) {
        let bytes = at.staging.read_opt(format!("part-{round}"), LIMIT)?;
        if bytes.as_deref() != Some(&*text(round, 20_000)) {
            findings.push(format!("part-{round} is not whole"));
        }
    }
    Ok(())
}

/// What a device does after a cut: sweeps, then goes on from the newest tree.
fn recover(at: &Place, mark: Mark<'_>) -> Result<u64, SysError> {
    for dir in [&at.trash, &at.staging] {
        for entry in dir.names()? {
            if !entry.name.to_string_lossy().starts_with("part-") {
                dir.remove_all(&entry.name)?;
            }
        }
    }
    let mut newest = 0;
    for entry in at.place.names()? {
        let name = entry.name.to_string_lossy();
        if let Some(number) = name.strip_prefix("round-").and_then(|n| n.parse().ok()) {
            newest = newest.max(number);
        }
    }
    if newest > 0 {
        // It may have been cut before it was named everywhere.
        durable::replace_file(&at.place, "selection", &text(newest, 6_000), 0o644)?;
        mark(format!("replaced {newest}"));
        durable::append_line(&at.place, "history", &format!("round {newest} done"))?;
        durable::discard(&at.place, &format!("round-{}", newest - 1), &at.trash)?;
    }
    for number in newest + 1..=ROUNDS {
        at.staging.remove_all(format!("part-{number}"))?;
        round(at, number, mark)?;
    }
    Ok(newest)
}

fn words(error: SysError) -> String {
    varve_sys::whole_message(&error)
}

impl Scenario for Primitives {
    fn name(&self) -> &'static str {
        "primitives"
    }

    fn prepare(&self, site: &Site) -> Result<Value, String> {
        prepare(&site.disk).map_err(words)?;
        Ok(Value::Null)
    }

    fn run(&self, site: &Site, _: &Value, mark: SharedMark) -> Result<(), String> {
        let at = Place::open(&site.disk).map_err(words)?;
        (1..=ROUNDS).try_for_each(|number| round(&at, number, &*mark)).map_err(words)
    }

    fn look(&self, site: &Site, before: &Before) -> Vec<Finding> {
        let mut findings = Vec::new();
        let looked = Place::open(&site.disk).and_then(|at| look(&at, before, &mut findings));
        findings.extend(looked.err().map(words));
        findings
    }

    fn recover(&self, site: &Site, _: &Before, mark: Mark<'_>) -> Result<Value, String> {
        let at = Place::open(&site.disk).map_err(words)?;
        recover(&at, mark).map(Value::from).map_err(words)
    }

    fn done(&self, site: &Site, before: &Before, _: &Value) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut marks = before.marks.clone();
        marks.extend(["replaced", "committed"].map(|word| format!("{word} {ROUNDS}")));
        let complete = Before { facts: Value::Null, marks };
        let looked = Place::open(&site.disk).and_then(|at| {
            let names = at.place.names()?.into_iter();
            let names: Vec<_> =
                names.map(|name| name.name.to_string_lossy().into_owned()).collect();
            if names != ["history", &format!("round-{ROUNDS}"), "selection"] {
                findings.push(format!("space is lost: {names:?}"));
            }
            look(&at, &complete, &mut findings)
        });
        findings.extend(looked.err().map(words));
        findings
    }
}
