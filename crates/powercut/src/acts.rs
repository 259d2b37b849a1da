//! What scenarios have in common: a device that is installed, what is done with it, and
//! the marks that tell what had happened when power failed.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use varve_agent::choose::Wish;
use varve_agent::collect;
use varve_agent::config::HealthCheck;
use varve_agent::device::{Device, Writer};
use varve_agent::health::{Outcome, Verdict};
use varve_agent::history::{self, Event as Happened, Line};
use varve_agent::init::{Init, init};
use varve_agent::lifecycle;
use varve_agent::upgrade::{self, Prepared};
use varve_format::{ContentDigest, Sha256Digest};
use varve_rootfs::{Store, stage};
use varve_sys::trace::{self, Event, Listening};

use crate::machine::{Machine, Running, look, lost_space, trusted, words};
use crate::releases;
use crate::scenario::{Before, Finding, Mark, SharedMark, Site};
use crate::user::plain_file;

/// How often a new deployment is tried.
pub(crate) const TRIES: u64 = 9;

/// How a device is configured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// `overlay` or `hard-link`.
    pub layout: &'static str,
    /// `read-only` or `persistent`.
    pub root_mode: &'static str,
    /// How many deployments stay.
    pub keep: u32,
}

/// Writes the configuration.
pub(crate) fn configure(site: &Site, settings: Settings) -> Result<(), String> {
    let Settings { layout, root_mode, keep } = settings;
    let text = format!(
        "sources = [{:?}]\nlayout = {layout:?}\nroot-mode = {root_mode:?}\n\
         reserve = \"1 MiB\"\ntries = {TRIES}\nkeep = {keep}\n\n\
         [[state]]\npath = \"/etc\"\nmode = \"versioned\"\n\n\
         [[state]]\npath = \"/home\"\nmode = \"shared\"\n\n\
         [[health]]\nname = \"is it well\"\ncommand = [\"/bin/true\"]\n",
        releases::path(&site.outside).display().to_string()
    );
    plain_file(&site.outside.join("varve.toml"), text.as_bytes())
}

/// The clock of a scenario that begins now.
pub(crate) fn now() -> Result<Timestamp, String> {
    Timestamp::from_second(Timestamp::now().as_second()).map_err(words)
}

/// Makes the first deployment, of the newest release.
pub(crate) fn install(site: &Site, machine: &Machine<'_>) -> Result<(), String> {
    let trust_root = releases::trust_root(&site.outside)?;
    let file = machine.config();
    let text = fs::read_to_string(&file).map_err(words)?;
    let wanted = Init {
        trust_root: &trust_root,
        sources: Vec::new(),
        config: Some((&text, &file)),
        wish: Wish::default(),
    };
    init(machine.at_rest(), &wanted, &machine.context()).map(drop).map_err(words)
}

/// What is known where there is no device yet.
pub(crate) fn no_facts(machine: &Machine<'_>) -> Value {
    json!({ "now": machine.now.as_second() })
}

/// What is known of the device before it runs.
pub(crate) fn facts(machine: &Machine<'_>) -> Result<Value, String> {
    let store = machine.store()?;
    let history = history::read(store.dir()).map_err(words)?;
    Ok(json!({
        "now": machine.now.as_second(),
        "trust": trusted(&store)?,
        "history": history.len(),
    }))
}

/// The device of these facts.
pub(crate) fn machine<'a>(site: &'a Site, facts: &Value) -> Result<Machine<'a>, String> {
    let second = facts["now"].as_i64().ok_or("the facts have no time")?;
    Ok(Machine::new(site, Timestamp::from_second(second).map_err(words)?))
}

/// Boots once, in peace, and finds the boot good.
pub(crate) fn accept(machine: &Machine<'_>) -> Result<(), String> {
    let running = machine.boot()?;
    let (device, writer) = running.open(machine)?;
    lifecycle::after_boot(&device, &writer, &machine.context(), &passes).map_err(words)?;
    drop((device, writer));
    running.shut_down()
}

pub(crate) fn passes(_: &HealthCheck) -> Outcome {
    outcome(Verdict::Passed)
}

pub(crate) fn fails(_: &HealthCheck) -> Outcome {
    outcome(Verdict::Exited(1))
}

fn outcome(verdict: Verdict) -> Outcome {
    let name = "is it well".to_owned();
    Outcome { name, verdict, output: String::new(), took: Duration::ZERO }
}

/// A mark that nobody hears.
pub(crate) fn none(_: String) {}

/// The release that a deployment of the running system holds.
pub(crate) fn booted_release(running: &Running, store: &Store) -> Result<String, String> {
    let deployment = store.deployment(&running.report.deployment).map_err(words)?;
    let release = deployment.record.release.ok_or("what booted is no release")?;
    Ok(release.name.to_string())
}

/// Upgrades, if there is something to upgrade to. What was fetched before counts.
pub(crate) fn upgrade(
    machine: &Machine<'_>,
    device: &Device,
    writer: &Writer,
    mark: Mark<'_>,
) -> Result<Option<Value>, String> {
    let context = machine.context();
    let prepared = upgrade::prepare(device, writer, &Wish::default(), false, &context);
    let prepared = prepared.map_err(words)?;
    mark_trust(&device.store, mark)?;
    let Prepared::Ready(ready) = prepared else { return Ok(None) };
    let (is_here, here) = (ready.plan.is_here, ready.plan.fetch.here_already);
    let by_delta = ready.plan.delta.as_ref().is_some_and(|delta| delta.contents > 0);
    let done = ready.run(device, writer, &context).map_err(words)?;
    mark("upgraded".to_owned());
    mark_history(&device.store, mark)?;
    Ok(Some(json!({
        "staged": !is_here,
        "here": here,
        "written": done.written,
        "reused": done.reused,
        "by-delta": by_delta && done.without_delta.is_empty(),
    })))
}

/// Deletes what nothing needs and what was left half done, as `varve collect` does.
pub(crate) fn collected(
    machine: &Machine<'_>,
    device: &Device,
    writer: &Writer,
) -> Result<(), String> {
    stage::sweep(&device.store).map_err(words)?;
    let plan = collect::plan(device, true).map_err(words)?;
    collect::execute(device, writer, &plan, &machine.context()).map_err(words)
}

fn mark_trust(store: &Store, mark: Mark<'_>) -> Result<(), String> {
    for (role, version) in ["root", "timestamp", "snapshot", "targets"].iter().zip(trusted(store)?)
    {
        mark(format!("{role} {version}"));
    }
    Ok(())
}

/// Marks how much the history tells.
pub(crate) fn mark_history(store: &Store, mark: Mark<'_>) -> Result<(), String> {
    let lines = history::read(store.dir()).map_err(words)?;
    mark(format!("history {}", lines.len()));
    Ok(())
}

/// Marks how many bytes of contents have been verified and written to incoming/, and which
/// documents are kept there.
fn mark_received(incoming: PathBuf, mark: SharedMark) -> Listening {
    let seen: Mutex<HashMap<ContentDigest, u64>> = Mutex::default();
    let document: Mutex<Option<PathBuf>> = Mutex::default();
    trace::listen(move |event| {
        let mut document = document.lock().expect("nothing panics while it holds this");
        match event {
            Event::Make(path) | Event::Change(path) | Event::SyncFile(path)
                if path.parent() == Some(&*incoming)
                    && path.extension().is_some_and(|end| end == "document") =>
            {
                *document = Some(path.clone());
            }
            Event::SyncDirectory(path) if *path == incoming => {}
            // Whoever keeps it has gone on.
            _ => {
                if let Some(name) = document.take().as_deref().and_then(Path::file_stem) {
                    mark(format!("document {}", name.to_string_lossy()));
                }
            }
        }
        let Event::Change(path) = event else { return };
        if !path.starts_with(&incoming) {
            return;
        }
        // A part is renamed as it grows: its digest is what counts. What has another name
        // is a note of how far it is, or is not verified yet.
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        let digest = name.trim_start_matches('.').split('.').next().unwrap_or_default();
        let Ok(digest) = digest.parse::<ContentDigest>() else { return };
        if name.ends_with(".document") || name.ends_with(".delta") {
            return;
        }
        let length = fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
        let mut seen = seen.lock().expect("nothing panics while it holds this");
        let longest = seen.entry(digest).or_default();
        if length > *longest {
            *longest = length;
            mark(format!("received {}", seen.values().sum::<u64>()));
        }
    })
}

/// Does a scenario's work while what is received is marked.
pub(crate) fn recorded(
    site: &Site,
    mark: &SharedMark,
    work: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let incoming = site.disk.with_file_name("run/varve/physical/varve/incoming");
    let _listening = mark_received(incoming, Arc::clone(mark));
    work()
}

/// What must never go back: trust, and the history.
pub(crate) fn never_back(store: &Store, before: &Before) -> Result<Vec<Finding>, String> {
    let mut findings = Vec::new();
    let now = trusted(store)?;
    for (at, role) in ["root", "timestamp", "snapshot", "targets"].iter().enumerate() {
        let seen = before.facts["trust"][at].as_u64().unwrap_or(0);
        let seen = seen.max(before.number(role).unwrap_or(0));
        if now[at] < seen {
            findings.push(format!("trust went back: {role} {} after {seen}", now[at]));
        }
    }
    let lines = history::read(store.dir()).map_err(words)?.len() as u64;
    let told = before.facts["history"].as_u64().unwrap_or(0);
    let told = told.max(before.number("history").unwrap_or(0));
    if lines < told {
        findings.push(format!("the history has {lines} lines and had {told}"));
    }
    Ok(findings)
}

/// Which documents had been kept and are not there, whole.
pub(crate) fn documents_lost(store: &Store, before: &Before) -> Result<Vec<Finding>, String> {
    let mut findings = Vec::new();
    for name in before.marks.iter().filter_map(|mark| mark.strip_prefix("document ")) {
        let bytes = store.incoming().read_opt(format!("{name}.document"), 64 << 20);
        let bytes = bytes.map_err(words)?.unwrap_or_default();
        if Sha256Digest::of(&bytes).to_string() != name {
            findings.push(format!("the document {name} had been fetched, and is lost"));
        }
    }
    Ok(findings)
}

/// What `collect` left although nothing needs it.
pub(crate) fn nothing_lost(store: &Store) -> Result<Vec<Finding>, String> {
    let lost = lost_space(store)?;
    Ok(match lost.is_empty() {
        true => Vec::new(),
        false => vec![format!("space is lost to {}", lost.join(", "))],
    })
}

/// Whether the history tells that this happened to a deployment.
pub(crate) fn tells(store: &Store, event: Happened, deployment: &str) -> Result<bool, String> {
    let lines = history::read(store.dir()).map_err(words)?;
    Ok(lines.iter().any(|line| match line {
        Line::Record(record) => {
            record.event == Some(event) && record.get("deployment") == Some(deployment)
        }
        Line::Other(_) => false,
    }))
}

/// What is wrong with a device as it lies there, to begin with what must hold on any; why it
/// cannot be looked at is a finding too.
pub(crate) fn examined(
    site: &Site,
    before: &Before,
    also: impl FnOnce(&Store) -> Result<Vec<Finding>, String>,
) -> Vec<Finding> {
    let looked = machine(site, &before.facts).and_then(|machine| {
        let store = machine.store()?;
        let mut findings = look(&store);
        findings.extend(also(&store)?);
        Ok(findings)
    });
    looked.unwrap_or_else(|why| vec![why])
}
