//! Scenarios from a device's life: the real update manager and boot stage on a real file
//! system, from a repository in a directory.
//!
//! ```text
//! prepare   repository, first deployment, a user's changes; up to where it begins
//! run       what the scenario is about                              <- recorded, cut
//! look      everything that is there is whole; nothing promised is lost
//! recover   boot, judge the boot, go on until the aim is reached    <- recorded, cut
//! done      the aim is reached, everything is whole, no space is lost
//! ```

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use serde_json::{Value, json};
use varve_agent::choose::Wish;
use varve_agent::config::HealthCheck;
use varve_agent::device::{Device, Writer};
use varve_agent::health::{Outcome, Verdict};
use varve_agent::history::{self, Event as Happened, Line};
use varve_agent::init::{Init, init};
use varve_agent::lifecycle::{self, AfterBoot};
use varve_agent::observe::Observed;
use varve_agent::upgrade::{self, Prepared};
use varve_agent::{collect, merge, selection};
use varve_format::deployment::Stack;
use varve_publish::Role;
use varve_rootfs::Store;
use varve_sys::trace::{self, Event};
use varve_sys::{Dir, durable};

use crate::machine::{Machine, Running, holds, look, lost_space, trusted, words};
use crate::releases::{self, Published, Weight, name};
use crate::scenario::{Before, Finding, Mark, Scenario, SharedMark, Site};

/// How many files the user has changed in /etc.
const USER_FILES: usize = 8;
/// How much of what was fetched may be lost, in bytes.
const MAY_BE_LOST: u64 = 4 << 20;
/// How often a new release is tried.
const TRIES: u64 = 9;
/// No recovery takes more boots than this.
const MOST_BOOTS: usize = 6;

/// What a scenario is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum About {
    /// Fetched to promoted.
    Upgrade,
    /// Tries are spent, then the release is confirmed.
    Trial,
    /// A health check fails on trial.
    FailedTrial,
    /// The user goes back from a good release.
    RollBack,
    /// All layers become one.
    Merge,
    /// Old deployments go.
    Collect,
    /// The user's changes after the upgrade, carried at shutdown.
    Finalize,
    /// New keys of two roles, then a check for updates.
    Trust,
}

/// A scenario.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    name: &'static str,
    about: About,
    /// Layout of the first deployment, and of what comes next.
    layouts: [&'static str; 2],
    weight: Weight,
}

const OVERLAY: &str = "overlay";
const HARD_LINK: &str = "hard-link";

/// All of them.
pub const LIVES: &[Life] = &[
    life("upgrade", About::Upgrade, [OVERLAY, OVERLAY]),
    life("upgrade-hard-link", About::Upgrade, [HARD_LINK, HARD_LINK]),
    life("upgrade-to-hard-link", About::Upgrade, [OVERLAY, HARD_LINK]),
    Life {
        name: "upgrade-heavy",
        about: About::Upgrade,
        layouts: [OVERLAY, OVERLAY],
        weight: Weight::Heavy,
    },
    life("trial", About::Trial, [OVERLAY, OVERLAY]),
    life("failed-trial", About::FailedTrial, [OVERLAY, OVERLAY]),
    life("roll-back", About::RollBack, [OVERLAY, OVERLAY]),
    life("merge", About::Merge, [OVERLAY, OVERLAY]),
    life("collect", About::Collect, [OVERLAY, OVERLAY]),
    life("collect-hard-link", About::Collect, [HARD_LINK, HARD_LINK]),
    life("finalize", About::Finalize, [OVERLAY, OVERLAY]),
    life("trust", About::Trust, [OVERLAY, OVERLAY]),
];

const fn life(name: &'static str, about: About, layouts: [&'static str; 2]) -> Life {
    Life { name, about, layouts, weight: Weight::Light }
}

fn config(site: &Site, layout: &str, keep: u32) -> Result<String, String> {
    let text = format!(
        "sources = [{:?}]\nlayout = {layout:?}\nreserve = \"1 MiB\"\ntries = {TRIES}\n\
         keep = {keep}\n\n\
         [[state]]\npath = \"/etc\"\nmode = \"versioned\"\n\n\
         [[state]]\npath = \"/home\"\nmode = \"shared\"\n\n\
         [[health]]\nname = \"is it well\"\ncommand = [\"/bin/true\"]\n",
        releases::path(&site.outside).display().to_string()
    );
    plain_file(&site.outside.join("varve.toml"), text.as_bytes())?;
    Ok(text)
}

/// Writes a file as any program would.
fn plain_file(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let file = File::options().write(true).create(true).truncate(true).open(path);
    file.and_then(|mut file| file.write_all(bytes)).map_err(words)
}

fn user_text(generation: &str, number: usize) -> String {
    format!("{generation} {number}\n").repeat(200 + 300 * number)
}

/// The user changes files in /etc and /home of the running system.
fn user_writes(running: &Running, site: &Site, generation: &str) -> Result<(), String> {
    for number in 0..USER_FILES {
        let text = user_text(generation, number);
        plain_file(&running.path(&format!("/etc/user-{number}")), text.as_bytes())?;
    }
    plain_file(&running.path("/home/work"), user_text("work", 3).as_bytes())?;
    durable::sync_file_system(&Dir::open(&site.disk).map_err(words)?).map_err(words)
}

/// Which generation of the user's files the running system shows; all must be of one.
fn user_generation(running: &Running) -> Result<&'static str, String> {
    let home = fs::read(running.path("/home/work")).unwrap_or_default();
    if home != user_text("work", 3).as_bytes() {
        return Err("the user's file in /home is not what it was".to_owned());
    }
    let shows = |generation: &str| {
        (0..USER_FILES).all(|number| {
            fs::read(running.path(&format!("/etc/user-{number}")))
                .is_ok_and(|bytes| bytes == user_text(generation, number).as_bytes())
        })
    };
    ["first", "second"]
        .into_iter()
        .find(|generation| shows(generation))
        .ok_or_else(|| "the user's files in /etc are neither old nor new".to_owned())
}

fn passes(_: &HealthCheck) -> Outcome {
    outcome(Verdict::Passed)
}

fn fails(_: &HealthCheck) -> Outcome {
    outcome(Verdict::Exited(1))
}

fn outcome(verdict: Verdict) -> Outcome {
    Outcome {
        name: "is it well".to_owned(),
        verdict,
        output: String::new(),
        took: std::time::Duration::ZERO,
    }
}

fn none(_: String) {}

/// The release that a deployment of the running system holds.
fn booted_release(running: &Running, store: &Store) -> Result<String, String> {
    let deployment = store.deployment(&running.report.deployment).map_err(words)?;
    let release = deployment.record.release.ok_or("what booted is no release")?;
    Ok(release.name.to_string())
}

/// Upgrades, if there is something to upgrade to. What was fetched before counts.
fn upgrade(
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
    let done = ready.run(device, writer, &context).map_err(words)?;
    mark("upgraded".to_owned());
    mark_history(&device.store, mark)?;
    Ok(Some(json!({
        "staged": !is_here,
        "here": here,
        "written": done.written,
        "reused": done.reused,
    })))
}

fn mark_trust(store: &Store, mark: Mark<'_>) -> Result<(), String> {
    for (role, version) in ["root", "timestamp", "snapshot", "targets"].iter().zip(trusted(store)?)
    {
        mark(format!("{role} {version}"));
    }
    Ok(())
}

fn mark_history(store: &Store, mark: Mark<'_>) -> Result<(), String> {
    let lines = history::read(store.dir()).map_err(words)?;
    mark(format!("history {}", lines.len()));
    Ok(())
}

/// Marks how many bytes of contents have been verified and written to incoming/.
fn mark_received(incoming: PathBuf, mark: SharedMark) {
    let seen: Mutex<HashMap<PathBuf, u64>> = Mutex::default();
    trace::listen(move |event| {
        let Event::Change(path) = event else { return };
        if !path.starts_with(&incoming) {
            return;
        }
        let length = fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
        let mut seen = seen.lock().expect("nothing panics while it holds this");
        // A part is renamed as it grows: its digest is what counts.
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        let digest = name.trim_start_matches('.').split('.').next().unwrap_or_default();
        let longest = seen.entry(PathBuf::from(digest)).or_default();
        if length > *longest {
            *longest = length;
            mark(format!("received {}", seen.values().sum::<u64>()));
        }
    });
}

impl Life {
    fn machine<'a>(&self, site: &'a Site, facts: &Value) -> Result<Machine<'a>, String> {
        let second = facts["now"].as_i64().ok_or("the facts have no time")?;
        let now = Timestamp::from_second(second).map_err(words)?;
        Ok(Machine::new(site, now))
    }

    /// The release that a device has when all is done.
    fn aim(&self) -> String {
        match self.about {
            About::FailedTrial | About::RollBack | About::Trust => name(1),
            About::Collect => name(3),
            _ => name(2),
        }
    }

    fn begin(&self, site: &Site) -> Result<Value, String> {
        let now = Timestamp::from_second(Timestamp::now().as_second()).map_err(words)?;
        let published = Published::init(&site.outside, self.weight, now)?;
        published.publish(1, now)?;
        let keep = if self.about == About::Collect { 3 } else { 2 };
        let text = config(site, self.layouts[0], keep)?;
        let machine = Machine::new(site, now);
        let trust_root = published.trust_root()?;
        let sources = Vec::new();
        let file = machine.config();
        let wanted = Init {
            trust_root: &trust_root,
            sources,
            config: Some((&text, &file)),
            wish: Wish::default(),
        };
        init(machine.at_rest(), &wanted, &machine.context()).map_err(words)?;
        let running = machine.boot()?;
        user_writes(&running, site, "first")?;
        running.shut_down()?;
        config(site, self.layouts[1], keep)?;
        if self.about == About::Trust {
            published.rotate(Role::Timestamp, now)?;
            published.rotate(Role::Root, now)?;
            published.rotate(Role::Root, now)?;
        } else {
            published.publish(2, now)?;
        }
        let before = match self.about {
            About::Trial | About::FailedTrial => Some(false),
            About::RollBack | About::Merge | About::Collect => Some(true),
            _ => None,
        };
        if let Some(confirmed) = before {
            self.upgraded(&machine, confirmed)?;
        }
        if self.about == About::Collect {
            published.publish(3, now)?;
            self.upgraded(&machine, true)?;
            config(site, self.layouts[1], 2)?;
        }
        let store = machine.store()?;
        let history = history::read(store.dir()).map_err(words)?;
        Ok(json!({
            "now": now.as_second(),
            "trust": trusted(&store)?,
            "history": history.len(),
        }))
    }

    /// Upgrades in peace, and boots what came if it is to be confirmed.
    fn upgraded(&self, machine: &Machine<'_>, confirmed: bool) -> Result<(), String> {
        let running = machine.boot()?;
        let (device, writer) = running.open(machine)?;
        upgrade(machine, &device, &writer, &none)?.ok_or("there was nothing to upgrade to")?;
        drop((device, writer));
        running.shut_down()?;
        if confirmed {
            let running = machine.boot()?;
            let (device, writer) = running.open(machine)?;
            lifecycle::after_boot(&device, &writer, &machine.context(), &passes).map_err(words)?;
            drop((device, writer));
            running.shut_down()?;
        }
        Ok(())
    }

    fn work(&self, site: &Site, machine: &Machine<'_>, mark: Mark<'_>) -> Result<(), String> {
        let context = machine.context();
        let running = machine.boot()?;
        let (device, writer) = running.open(machine)?;
        match self.about {
            About::Upgrade => {
                upgrade(machine, &device, &writer, mark)?.ok_or("there was nothing new")?;
            }
            About::Trial => {
                mark("spent 1".to_owned());
                drop((device, writer));
                running.shut_down()?;
                let running = machine.boot()?;
                mark("spent 2".to_owned());
                let (device, writer) = running.open(machine)?;
                lifecycle::after_boot(&device, &writer, &context, &passes).map_err(words)?;
                mark("confirmed".to_owned());
                mark_history(&device.store, mark)?;
                drop((device, writer));
                return running.shut_down();
            }
            About::FailedTrial => {
                mark("spent 1".to_owned());
                lifecycle::after_boot(&device, &writer, &context, &fails).map_err(words)?;
                mark("turned back".to_owned());
                mark_history(&device.store, mark)?;
            }
            About::RollBack => {
                lifecycle::roll_back(&device, &writer, "I liked it more", &context)
                    .map_err(words)?;
                mark("turned back".to_owned());
                mark_history(&device.store, mark)?;
            }
            About::Merge => {
                merge_latest(machine, &device, &writer)?;
                mark("merged".to_owned());
                mark_history(&device.store, mark)?;
                let plan = collect::plan(&device, true).map_err(words)?;
                collect::execute(&device, &writer, &plan, &context).map_err(words)?;
            }
            About::Collect => {
                let plan = collect::plan(&device, true).map_err(words)?;
                collect::execute(&device, &writer, &plan, &context).map_err(words)?;
                mark("collected".to_owned());
                mark_history(&device.store, mark)?;
            }
            About::Finalize => {
                upgrade(machine, &device, &writer, mark)?.ok_or("there was nothing new")?;
                user_writes(&running, site, "second")?;
                lifecycle::finalize(&device, &writer, &context).map_err(words)?;
                mark("carried".to_owned());
            }
            About::Trust => {
                upgrade(machine, &device, &writer, mark)?;
            }
        }
        drop((device, writer));
        running.shut_down()
    }

    /// One boot of the recovery. Whether the aim is reached; and what an upgrade told.
    fn go_on(
        &self,
        machine: &Machine<'_>,
        before: &Before,
        mark: Mark<'_>,
        told: &mut Value,
    ) -> Result<bool, String> {
        let context = machine.context();
        let running = machine.boot()?;
        let (device, writer) = running.open(machine)?;
        let release = booted_release(&running, &device.store)?;
        let generation = user_generation(&running);
        // Cut while the user writes, the old system shows what the user had written.
        let may_be_mixed = self.about == About::Finalize && release == name(1);
        if let Err(why) = &generation
            && !may_be_mixed
        {
            return Err(format!("in {release}: {why}"));
        }
        if before.has("carried") && release == name(2) && generation != Ok("second") {
            return Err("what was carried at shutdown is not in the new system".to_owned());
        }
        let health = match self.about {
            About::FailedTrial if release == name(2) => fails,
            _ => passes,
        };
        let judged = lifecycle::after_boot(&device, &writer, &context, &health).map_err(words)?;
        let judged_bad = matches!(judged, AfterBoot::Failed { .. });
        if self.about == About::RollBack && release == name(2) {
            lifecycle::roll_back(&device, &writer, "I liked it more", &context).map_err(words)?;
        }
        if self.about == About::Merge {
            merge_latest(machine, &device, &writer)?;
        }
        let meant = self.about == About::RollBack && release == name(2);
        if !judged_bad && !meant {
            let upgraded = upgrade(machine, &device, &writer, mark)?;
            // What is staged first is what had been fetched before the cut.
            if told["staged"] != Value::Bool(true)
                && let Some(upgraded) = upgraded
            {
                *told = upgraded;
            }
        }
        let plan = collect::plan(&device, true).map_err(words)?;
        collect::execute(&device, &writer, &plan, &context).map_err(words)?;
        let observed = Observed::look(&device).map_err(words)?;
        let selection = observed.selection.map_err(|problem| problem.to_string())?;
        let reached = release == self.aim()
            && selection.latest == running.report.deployment
            && selection.tries.is_none();
        drop((device, writer));
        running.shut_down()?;
        Ok(reached)
    }

    fn promised(&self, store: &Store, before: &Before) -> Result<Vec<Finding>, String> {
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
        let Ok(selection) = selection::read(store).map_err(words)? else { return Ok(findings) };
        let latest = store.deployment(&selection.latest).map_err(words)?;
        let release = latest.record.release.map(|r| r.name.to_string()).unwrap_or_default();
        let turned = before.has("turned back");
        if before.has("upgraded") && release != name(2) {
            findings.push(format!("{} was promoted, and {release} is the latest", name(2)));
        }
        if turned && release != name(1) {
            findings
                .push(format!("it was turned back to {}, and {release} is the latest", name(1)));
        }
        if before.has("confirmed") && (selection.tries.is_some() || !latest.confirmed) {
            findings.push("it was confirmed, and is on trial".to_owned());
        }
        let spent = before.number("spent").unwrap_or(0);
        if let Some(left) = selection.tries
            && !turned
            && u64::from(left) > TRIES - spent
        {
            findings.push(format!("{spent} tries were spent, and {left} of {TRIES} are left"));
        }
        if before.has("merged")
            && matches!(&latest.record.stack, Stack::Overlay { layers } if layers.len() > 1)
        {
            findings.push("it was merged, and has several layers".to_owned());
        }
        if before.has("collected") && holds(store, &name(1))?.is_some() {
            findings.push(format!("{} was collected and is back", name(1)));
        }
        Ok(findings)
    }

    fn completed(
        &self,
        store: &Store,
        before: &Before,
        recovery: &Value,
    ) -> Result<Vec<Finding>, String> {
        let mut findings = Vec::new();
        let lost = lost_space(store)?;
        if !lost.is_empty() {
            findings.push(format!("space is lost to {}", lost.join(", ")));
        }
        let received = before.number("received").unwrap_or(0);
        let here = recovery["here"].as_u64().unwrap_or(0);
        if recovery["staged"] == Value::Bool(true) && here + MAY_BE_LOST < received {
            findings.push(format!(
                "{received} bytes had been fetched and verified, {here} of them were found again"
            ));
        }
        if matches!(self.about, About::Upgrade | About::Finalize | About::Trial) {
            let latest = holds(store, &name(2))?.ok_or("the new release is not there")?;
            let lines = history::read(store.dir()).map_err(words)?;
            for (event, word) in [(Happened::Upgrade, "upgraded"), (Happened::Confirm, "confirmed")]
            {
                let told = lines.iter().any(|line| match line {
                    Line::Record(record) => {
                        record.event == Some(event)
                            && record.get("deployment") == Some(latest.as_str())
                    }
                    Line::Other(_) => false,
                });
                if !told {
                    findings.push(format!("the history does not tell that {latest} was {word}"));
                }
            }
        }
        Ok(findings)
    }
}

fn merge_latest(machine: &Machine<'_>, device: &Device, writer: &Writer) -> Result<(), String> {
    let observed = Observed::look(device).map_err(words)?;
    let latest = observed.latest().ok_or("there is no latest deployment")?;
    if latest.record.stack.layers().len() > 1 {
        merge::merge(device, writer, latest, &machine.context()).map_err(words)?;
    }
    Ok(())
}

fn told(result: Result<Vec<Finding>, String>) -> Vec<Finding> {
    result.unwrap_or_else(|why| vec![why])
}

impl Scenario for Life {
    fn name(&self) -> &'static str {
        self.name
    }

    fn prepare(&self, site: &Site) -> Result<Value, String> {
        self.begin(site)
    }

    fn run(&self, site: &Site, facts: &Value, mark: SharedMark) -> Result<(), String> {
        let machine = self.machine(site, facts)?;
        let incoming = site.disk.with_file_name("run/varve/physical/varve/incoming");
        mark_received(incoming, Arc::clone(&mark));
        let done = self.work(site, &machine, &*mark);
        trace::silence();
        done
    }

    fn look(&self, site: &Site, before: &Before) -> Vec<Finding> {
        let looked = self.machine(site, &before.facts).and_then(|machine| {
            let store = machine.store()?;
            let mut findings = look(&store);
            findings.extend(self.promised(&store, before)?);
            Ok(findings)
        });
        told(looked)
    }

    fn recover(&self, site: &Site, before: &Before, mark: Mark<'_>) -> Result<Value, String> {
        let machine = self.machine(site, &before.facts)?;
        let mut recovery = Value::Null;
        for _ in 0..MOST_BOOTS {
            if self.go_on(&machine, before, mark, &mut recovery)? {
                // What the last boot had mounted goes now.
                machine.collect()?;
                return Ok(recovery);
            }
        }
        Err(format!("the aim is not reached in {MOST_BOOTS} boots"))
    }

    fn done(&self, site: &Site, before: &Before, recovery: &Value) -> Vec<Finding> {
        let looked = self.machine(site, &before.facts).and_then(|machine| {
            let store = machine.store()?;
            let mut findings = look(&store);
            findings.extend(self.completed(&store, before, recovery)?);
            Ok(findings)
        });
        told(looked)
    }
}
