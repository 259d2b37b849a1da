//! Scenarios of the layers that a device's user made: captured, removed, stripped, searched
//! for the one that does harm; and of the reset.
//!
//! ```text
//! prepare   a device on its only release; own layers, confirmed
//! run       the change, up to the last promotion it takes         <- recorded, cut
//! look      what was promised is there
//! recover   boot, judge, do what is not done yet, until it is     <- recorded, cut
//! done      it is, and the history tells of it; no space is lost
//! ```
//!
//! At every boot each own layer that is on shows its file, to the byte, and no other does.

use std::collections::BTreeMap;
use std::fs;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde_json::Value;
use varve_agent::config::HealthCheck;
use varve_agent::device::{Device, Writer};
use varve_agent::health::Outcome;
use varve_agent::history::Event as Happened;
use varve_agent::layer::{self, Change};
use varve_agent::observe::Observed;
use varve_agent::reset::{self, Level};
use varve_agent::strip::StripError;
use varve_agent::{Error, bisect, lifecycle, selection, strip};
use varve_format::LayerName;
use varve_format::deployment::DeploymentRecord;
use varve_rootfs::{Store, stage};
use varve_sys::{Dir, durable};

use crate::acts::{self, Settings, fails, mark_history, passes};
use crate::machine::{Machine, Running, words};
use crate::releases::{Published, Weight, name};
use crate::scenario::{Before, Finding, Mark, Scenario, SharedMark, Site};
use crate::user::{self, plain_file};

/// What is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum About {
    /// The writable top becomes the layer [`MINE`].
    Capture,
    /// The layer [`GAMES`] goes.
    Remove,
    /// [`GAMES`] is left out once, and then kept off.
    Strip,
    /// [`GAMES`] makes the health check fail, and is searched for.
    Search,
    /// The versioned state begins anew.
    Reset,
}

/// A scenario.
#[derive(Clone, Copy, Debug)]
pub struct Layered {
    name: &'static str,
    about: About,
    /// Own layers, the lowest first.
    layers: &'static [&'static str],
}

const MINE: &str = "mine";
const GAMES: &str = "games";
const TOOLS: &str = "tools";
/// No recovery takes more boots than this: two searches, one begun anew, are the longest.
const MOST_BOOTS: usize = 16;

/// All of them.
pub const LAYERED: &[Layered] = &[
    Layered { name: "capture", about: About::Capture, layers: &[TOOLS] },
    Layered { name: "layer-remove", about: About::Remove, layers: &[TOOLS, GAMES] },
    Layered { name: "strip", about: About::Strip, layers: &[TOOLS, GAMES] },
    Layered { name: "bisect", about: About::Search, layers: &[TOOLS, GAMES] },
    Layered { name: "reset", about: About::Reset, layers: &[TOOLS] },
];

/// The file by which a layer is known, and its bytes.
fn file_of(layer: &str) -> (String, Vec<u8>) {
    let mut bytes = vec![0; 60_000];
    StdRng::seed_from_u64(layer.len() as u64).fill_bytes(&mut bytes);
    (format!("usr/share/own-{layer}/file"), bytes)
}

fn layer_name(name: &str) -> Result<LayerName, String> {
    name.parse().map_err(|_| format!("{name} is no layer's name"))
}

/// Writes a layer's file below a directory.
fn write_file(below: &std::path::Path, layer: &str) -> Result<(), String> {
    let (path, bytes) = file_of(layer);
    let path = below.join(path);
    fs::create_dir_all(path.parent().unwrap_or(below)).map_err(words)?;
    plain_file(&path, &bytes)
}

/// Whether the running system shows a layer's file, which must be whole.
fn shows(running: &Running, layer: &str) -> Result<bool, String> {
    let (path, bytes) = file_of(layer);
    match fs::read(running.path(&path)) {
        Ok(found) if found == bytes => Ok(true),
        Ok(_) => Err(format!("/{path} is there, and is not what it was")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("/{path}: {error}")),
    }
}

fn is_on(record: &DeploymentRecord, layer: &str) -> bool {
    record.own_on().any(|name| name.as_str() == layer)
}

impl Layered {
    fn begin(&self, site: &Site) -> Result<Value, String> {
        let now = acts::now()?;
        let published = Published::init(&site.outside, Weight::Light, now)?;
        published.publish(1, now)?;
        let root_mode = if self.about == About::Capture { "persistent" } else { "read-only" };
        acts::configure(site, Settings { layout: "overlay", root_mode, keep: 2 })?;
        let machine = Machine::new(site, now);
        acts::install(site, &machine)?;
        let running = machine.boot()?;
        user::writes(&running, site, &name(1), "first")?;
        running.shut_down()?;
        for layer in self.layers {
            self.add(site, &machine, layer)?;
        }
        if self.about == About::Capture {
            let running = machine.boot()?;
            write_file(&running.path("/"), MINE)?;
            let disk = Dir::open(&site.disk).map_err(words)?;
            durable::sync_file_system(&disk).map_err(words)?;
            running.shut_down()?;
        }
        acts::facts(&machine)
    }

    fn add(&self, site: &Site, machine: &Machine<'_>, layer: &str) -> Result<(), String> {
        let source = site.outside.join(layer);
        write_file(&source, layer)?;
        let running = machine.boot()?;
        let (device, writer) = running.open(machine)?;
        let context = machine.context();
        let name = layer_name(layer)?;
        let added = layer::add(&device, &writer, Some(&name), &[source], "", false, &context);
        let off = added.map_err(words)?.changed.switched_off;
        if !off.is_empty() {
            return Err(format!("{layer} is switched off: {off:?}"));
        }
        drop((device, writer));
        running.shut_down()?;
        acts::accept(machine)
    }

    /// Whether a deployment is what the scenario is to come to.
    fn is_aim(&self, record: &DeploymentRecord) -> bool {
        match self.about {
            About::Capture => is_on(record, MINE),
            About::Remove => !record.own.iter().any(|own| own.layer.as_str() == GAMES),
            About::Strip | About::Search => !is_on(record, GAMES),
            About::Reset => record.state.iter().any(|state| state.fresh),
        }
    }

    /// What the kernel shows of the layers and of the user's files.
    fn shown(&self, running: &Running, record: &DeploymentRecord) -> Result<(), String> {
        for layer in [MINE, GAMES, TOOLS] {
            let left_out = running.report.off.iter().any(|off| off.as_str() == layer);
            // What is not captured yet is in the writable top.
            let on =
                is_on(record, layer) && !left_out || self.about == About::Capture && layer == MINE;
            if shows(running, layer)? != on {
                let what = if on { "does not show" } else { "shows" };
                return Err(format!("{} {what} the layer {layer}", record.name));
            }
        }
        let fresh = record.state.iter().any(|state| state.fresh);
        let wanted = if fresh { None } else { Some("first") };
        if user::generation(running, &name(1))? != wanted {
            return Err(format!("in {}: /etc is not as it was left", record.name));
        }
        Ok(())
    }

    /// Judges the boot as the device does: ill with [`GAMES`] where that is searched for.
    fn judge(
        &self,
        machine: &Machine<'_>,
        running: &Running,
        device: &Device,
        writer: &Writer,
    ) -> Result<(), String> {
        let ill = self.about == About::Search && shows(running, GAMES)?;
        let health =
            |check: &HealthCheck| -> Outcome { if ill { fails(check) } else { passes(check) } };
        lifecycle::after_boot(device, writer, &machine.context(), &health).map(drop).map_err(words)
    }

    /// Does the next thing that is not done yet.
    fn step(
        &self,
        machine: &Machine<'_>,
        running: &Running,
        device: &Device,
        writer: &Writer,
        mark: Mark<'_>,
    ) -> Result<(), String> {
        let context = machine.context();
        // As the program does before it changes layers or state.
        stage::sweep(&device.store).map_err(words)?;
        let observed = Observed::look(device).map_err(words)?;
        let latest = &observed.latest().ok_or("there is no latest deployment")?.record;
        match self.about {
            About::Capture if !self.is_aim(latest) => {
                let mine = layer_name(MINE)?;
                // A cut may have come between the layer and the deployment that has it.
                let done = match device.store.layer(&mine) {
                    Ok(_) => {
                        let on = Change::On(MINE.to_owned());
                        layer::change(device, writer, &on, false, &context)
                    }
                    Err(_) => layer::capture(device, writer, &mine, "", false, &context),
                };
                done.map_err(words)?;
                mark("changed".to_owned());
            }
            About::Remove => {
                let games = layer_name(GAMES)?;
                let gone = device.store.layer(&games).is_err();
                let marked = gone || device.store.is_layer_removed(&games).map_err(words)?;
                if !self.is_aim(latest) || !marked {
                    let remove = Change::Remove(GAMES.to_owned());
                    layer::change(device, writer, &remove, false, &context).map_err(words)?;
                    mark("changed".to_owned());
                }
            }
            About::Strip if !self.is_aim(latest) => {
                if running.report.off.is_empty() {
                    let off = vec![layer_name(GAMES)?];
                    // From here on it may be on the disk, also when it is asked for once more.
                    mark("asking".to_owned());
                    strip::off_once(device, writer, &latest.name, off, &context).map_err(words)?;
                    mark("asked".to_owned());
                } else {
                    strip::keep(device, writer, false, &context).map_err(words)?;
                    mark("changed".to_owned());
                }
            }
            About::Search => match bisect::report(device) {
                Ok(report) if report.outcome == "searching" => {}
                // Also after a cut behind the promotion: the search is still there, and the
                // command is given again.
                Ok(report) if report.outcome == "found" => {
                    bisect::keep(device, writer, false, &context).map_err(words)?;
                    mark("changed".to_owned());
                }
                Err(Error::Strip(StripError::NoSearch)) if self.is_aim(latest) => {}
                // A cut in a probe counts against it: the search may have been misled.
                Ok(_) | Err(Error::Strip(StripError::NoSearch)) => {
                    let search = bisect::plan(device, bisect::Wish::default()).map_err(words)?;
                    bisect::begin(device, writer, &search, &context).map_err(words)?;
                    mark("asked".to_owned());
                }
                Err(error) => return Err(words(error)),
            },
            About::Reset if !self.is_aim(latest) => {
                reset::reset(device, writer, Level::State, false, &context).map_err(words)?;
                mark("changed".to_owned());
            }
            _ => {}
        }
        mark_history(&device.store, mark)
    }

    /// One boot. Nothing: what runs is the aim, and good. Else how far it is, in words.
    fn go_on(&self, machine: &Machine<'_>, mark: Mark<'_>) -> Result<Option<String>, String> {
        let running = machine.boot()?;
        let (device, writer) = running.open(machine)?;
        let booted = device.store.deployment(&running.report.deployment).map_err(words)?;
        self.shown(&running, &booted.record)?;
        if self.about == About::Strip && !running.report.off.is_empty() {
            mark("probed".to_owned());
        }
        self.judge(machine, &running, &device, &writer)?;
        self.step(machine, &running, &device, &writer, mark)?;
        acts::collected(machine, &device, &writer)?;
        let observed = Observed::look(&device).map_err(words)?;
        let selection = observed.selection.map_err(|problem| problem.to_string())?;
        let reached = self.is_aim(&booted.record)
            && selection.latest == running.report.deployment
            && selection.tries.is_none()
            && running.report.off.is_empty();
        let report = &running.report;
        let how_far = format!(
            "{} ran ({}, without {:?}), and {selection:?}",
            report.deployment, report.reason, report.off
        );
        drop((device, writer));
        running.shut_down()?;
        Ok((!reached).then_some(how_far))
    }

    fn promised(&self, store: &Store, before: &Before) -> Result<Vec<Finding>, String> {
        let mut findings = acts::never_back(store, before)?;
        let Ok(selection) = selection::read(store).map_err(words)? else { return Ok(findings) };
        let latest = store.deployment(&selection.latest).map_err(words)?;
        let changed = before.has("changed");
        if changed && !self.is_aim(&latest.record) {
            findings.push(format!("{} was promoted, and is not the latest", self.name));
        }
        let last = before.marks.iter().rfind(|mark| ["asking", "probed"].contains(&mark.as_str()));
        if last.is_some_and(|mark| mark == "probed") && !changed {
            let probe = strip::read_probe(store).map_err(words)?;
            if probe.is_some_and(|probe| probe.tries > 0) {
                findings.push("what was left out once is to be left out again".to_owned());
            }
        }
        let search = bisect::read(store).map_err(words)?.is_some();
        if changed && (search || strip::read_probe(store).map_err(words)?.is_some()) {
            findings.push("the search was ended, and goes on".to_owned());
        }
        if before.has("asked") && !changed {
            let there = match self.about {
                About::Strip => strip::read_probe(store).map_err(words)?.is_some(),
                _ => search,
            };
            // It goes once what it was for is promoted.
            if !there && !self.is_aim(&latest.record) {
                findings.push("what the next boot was to leave out is forgotten".to_owned());
            }
        }
        Ok(findings)
    }

    fn completed(&self, store: &Store) -> Result<Vec<Finding>, String> {
        let mut findings = acts::nothing_lost(store)?;
        let selection = selection::read(store).map_err(words)?;
        let selection = selection.map_err(|problem| problem.to_string())?;
        let latest = store.deployment(&selection.latest).map_err(words)?;
        if !self.is_aim(&latest.record) {
            findings.push(format!("{} is not the latest any more", self.name));
        }
        let event = match self.about {
            About::Strip | About::Search => Happened::Strip,
            _ => Happened::Layers,
        };
        let word = BTreeMap::from([(event.word(), event), ("confirm", Happened::Confirm)]);
        for (word, event) in word {
            if !acts::tells(store, event, selection.latest.as_str())? {
                let latest = &selection.latest;
                findings.push(format!("the history does not tell {word:?} of {latest}"));
            }
        }
        Ok(findings)
    }
}

impl Scenario for Layered {
    fn name(&self) -> &'static str {
        self.name
    }

    fn prepare(&self, site: &Site) -> Result<Value, String> {
        self.begin(site)
    }

    fn run(&self, site: &Site, facts: &Value, mark: SharedMark) -> Result<(), String> {
        let machine = acts::machine(site, facts)?;
        // Up to the boot that tries what was promoted: that is what `trial` cuts.
        for _ in 0..MOST_BOOTS {
            let _ = self.go_on(&machine, &*mark)?;
            let store = machine.store()?;
            let selection = selection::read(&store).map_err(words)?;
            let selection = selection.map_err(|problem| problem.to_string())?;
            if self.is_aim(&store.deployment(&selection.latest).map_err(words)?.record) {
                return Ok(());
            }
        }
        Err(format!("it is not done in {MOST_BOOTS} boots"))
    }

    fn look(&self, site: &Site, before: &Before) -> Vec<Finding> {
        acts::examined(site, before, |store| self.promised(store, before))
    }

    fn recover(&self, site: &Site, before: &Before, mark: Mark<'_>) -> Result<Value, String> {
        let machine = acts::machine(site, &before.facts)?;
        let mut last = String::new();
        for _ in 0..MOST_BOOTS {
            let Some(how_far) = self.go_on(&machine, mark)? else {
                // What the last boot had mounted goes now.
                machine.collect()?;
                return Ok(Value::Null);
            };
            last = how_far;
        }
        Err(format!("the aim is not reached in {MOST_BOOTS} boots: {last}"))
    }

    fn done(&self, site: &Site, before: &Before, _: &Value) -> Vec<Finding> {
        acts::examined(site, before, |store| self.completed(store))
    }
}
