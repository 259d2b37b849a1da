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

use serde_json::Value;
use varve_agent::device::{Device, Writer};
use varve_agent::history::Event as Happened;
use varve_agent::lifecycle::{self, AfterBoot};
use varve_agent::observe::Observed;
use varve_agent::rejected::Rejected;
use varve_agent::{merge, selection};
use varve_format::deployment::{ReleaseRef, Stack};
use varve_publish::Role;
use varve_rootfs::Store;

use crate::acts::{self, Settings, TRIES, fails, mark_history, none, passes, upgrade};
use crate::machine::{Machine, Running, holds, words};
use crate::releases::{Published, Weight, name};
use crate::scenario::{Before, Finding, Mark, Scenario, SharedMark, Site};
use crate::user;

/// How much of what was fetched may be lost, in bytes.
const MAY_BE_LOST: u64 = 4 << 20;
/// No recovery takes more boots than this.
const MOST_BOOTS: usize = 6;

/// What a scenario is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum About {
    /// The first deployment of an empty disk.
    Init,
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
    life("init", About::Init, [OVERLAY, OVERLAY]),
    life("upgrade", About::Upgrade, [OVERLAY, OVERLAY]),
    life("upgrade-hard-link", About::Upgrade, [HARD_LINK, HARD_LINK]),
    life("upgrade-to-hard-link", About::Upgrade, [OVERLAY, HARD_LINK]),
    life("trial", About::Trial, [OVERLAY, OVERLAY]),
    life("failed-trial", About::FailedTrial, [OVERLAY, OVERLAY]),
    life("roll-back", About::RollBack, [OVERLAY, OVERLAY]),
    life("merge", About::Merge, [OVERLAY, OVERLAY]),
    life("collect", About::Collect, [OVERLAY, OVERLAY]),
    life("collect-hard-link", About::Collect, [HARD_LINK, HARD_LINK]),
    life("finalize", About::Finalize, [OVERLAY, OVERLAY]),
    life("trust", About::Trust, [OVERLAY, OVERLAY]),
    // Those that take longest come last: a run that is bounded in time has seen the others.
    Life {
        name: "upgrade-heavy",
        about: About::Upgrade,
        layouts: [OVERLAY, OVERLAY],
        weight: Weight::Heavy,
    },
    Life {
        name: "upgrade-by-delta",
        about: About::Upgrade,
        layouts: [OVERLAY, OVERLAY],
        weight: Weight::Alike,
    },
];

const fn life(name: &'static str, about: About, layouts: [&'static str; 2]) -> Life {
    Life { name, about, layouts, weight: Weight::Light }
}

impl Life {
    /// The release that a device has when all is done.
    fn aim(&self) -> String {
        match self.about {
            About::Init | About::FailedTrial | About::RollBack | About::Trust => name(1),
            About::Collect => name(3),
            _ => name(2),
        }
    }

    fn begin(&self, site: &Site) -> Result<Value, String> {
        let now = acts::now()?;
        let published = Published::init(&site.outside, self.weight, now)?;
        published.publish(1, now)?;
        let keep = if self.about == About::Collect { 3 } else { 2 };
        let settings = Settings { layout: self.layouts[0], root_mode: "read-only", keep };
        acts::configure(site, settings)?;
        let machine = Machine::new(site, now);
        if self.about == About::Init {
            return Ok(acts::no_facts(&machine));
        }
        acts::install(site, &machine)?;
        let running = machine.boot()?;
        user::writes(&running, site, &name(1), "first")?;
        running.shut_down()?;
        let settings = Settings { layout: self.layouts[1], ..settings };
        acts::configure(site, settings)?;
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
        if matches!(self.about, About::FailedTrial | About::RollBack) {
            remember_another(&machine.store()?, now)?;
        }
        if self.about == About::Collect {
            published.publish(3, now)?;
            self.upgraded(&machine, true)?;
            acts::configure(site, Settings { keep: 2, ..settings })?;
        }
        acts::facts(&machine)
    }

    /// Upgrades in peace, and boots what came if it is to be confirmed.
    fn upgraded(&self, machine: &Machine<'_>, confirmed: bool) -> Result<(), String> {
        let running = machine.boot()?;
        let (device, writer) = running.open(machine)?;
        upgrade(machine, &device, &writer, &none)?.ok_or("there was nothing to upgrade to")?;
        drop((device, writer));
        running.shut_down()?;
        if confirmed { acts::accept(machine) } else { Ok(()) }
    }

    fn work(&self, site: &Site, machine: &Machine<'_>, mark: Mark<'_>) -> Result<(), String> {
        let context = machine.context();
        if self.about == About::Init {
            acts::install(site, machine)?;
            mark("installed".to_owned());
            return mark_history(&machine.store()?, mark);
        }
        let running = machine.boot()?;
        let (device, writer) = running.open(machine)?;
        // A disk that cannot be written boots what is no trial, and spends nothing.
        let noted = |running: &Running, tries: u64| {
            if running.report.try_spent {
                mark(format!("spent {tries}"));
            }
        };
        match self.about {
            About::Init => {}
            About::Upgrade => {
                let did = upgrade(machine, &device, &writer, mark)?;
                let did = did.ok_or("there was nothing new")?;
                if self.weight == Weight::Alike && did["by-delta"] != Value::Bool(true) {
                    return Err("the delta was not used".to_owned());
                }
            }
            About::Trial => {
                noted(&running, 1);
                drop((device, writer));
                running.shut_down()?;
                let running = machine.boot()?;
                noted(&running, 2);
                let (device, writer) = running.open(machine)?;
                lifecycle::after_boot(&device, &writer, &context, &passes).map_err(words)?;
                mark("confirmed".to_owned());
                mark_history(&device.store, mark)?;
                drop((device, writer));
                return running.shut_down();
            }
            About::FailedTrial => {
                noted(&running, 1);
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
                acts::collected(machine, &device, &writer)?;
            }
            About::Collect => {
                acts::collected(machine, &device, &writer)?;
                mark("collected".to_owned());
                mark_history(&device.store, mark)?;
            }
            About::Finalize => {
                upgrade(machine, &device, &writer, mark)?.ok_or("there was nothing new")?;
                user::writes(&running, site, &name(1), "second")?;
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
        let release = acts::booted_release(&running, &device.store)?;
        let generation = match self.about {
            About::Init => Ok(Some("none yet")),
            _ => user::generation(&running, &release),
        };
        // Cut while the user writes, the old system shows what the user had written.
        let may_be_mixed = self.about == About::Finalize && release == name(1);
        match &generation {
            Err(why) if !may_be_mixed => return Err(format!("in {release}: {why}")),
            Ok(None) => return Err(format!("in {release}: the user's files in /etc are gone")),
            _ => {}
        }
        if before.has("carried") && release == name(2) && generation != Ok(Some("second")) {
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
        acts::collected(machine, &device, &writer)?;
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
        let mut findings = acts::never_back(store, before)?;
        let Ok(selection) = selection::read(store).map_err(words)? else { return Ok(findings) };
        let latest = store.deployment(&selection.latest).map_err(words)?;
        let release = latest.record.release.map(|r| r.name.to_string()).unwrap_or_default();
        let turned = before.has("turned back");
        if self.about == About::Upgrade && release == name(1) {
            findings.extend(acts::documents_lost(store, before)?);
        }
        if before.has("upgraded") && release != name(2) {
            findings.push(format!("{} was promoted, and {release} is the latest", name(2)));
        }
        if turned && release != name(1) {
            findings
                .push(format!("it was turned back to {}, and {release} is the latest", name(1)));
        }
        let (rejected, _) = Rejected::load(store.dir()).map_err(words)?;
        let mut owed = Vec::from_iter(turned.then(|| name(2)));
        if matches!(self.about, About::FailedTrial | About::RollBack) {
            owed.push(name(0));
        }
        for name in owed {
            if !rejected.releases.iter().any(|rejected| rejected.name.as_str() == name) {
                findings.push(format!("that {name} is not tried again is forgotten"));
            }
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
        let mut findings = acts::nothing_lost(store)?;
        let received = before.number("received").unwrap_or(0);
        let here = recovery["here"].as_u64().unwrap_or(0);
        if recovery["staged"] == Value::Bool(true) && here + MAY_BE_LOST < received {
            findings.push(format!(
                "{received} bytes had been fetched and verified, {here} of them were found again"
            ));
        }
        if matches!(self.about, About::Upgrade | About::Finalize | About::Trial) {
            let latest = holds(store, &name(2))?.ok_or("the new release is not there")?;
            for (event, word) in [(Happened::Upgrade, "upgraded"), (Happened::Confirm, "confirmed")]
            {
                if !acts::tells(store, event, latest.as_str())? {
                    findings.push(format!("the history does not tell that {latest} was {word}"));
                }
            }
        }
        Ok(findings)
    }
}

/// Some release failed long ago: the list of those is not empty.
fn remember_another(store: &Store, now: jiff::Timestamp) -> Result<(), String> {
    let (mut rejected, _) = Rejected::load(store.dir()).map_err(words)?;
    let release = ReleaseRef {
        name: name(0).parse().map_err(|_| "a bad name")?,
        digest: "0".repeat(64).parse().map_err(|_| "a bad digest")?,
        sequence: 0,
    };
    rejected.add(&release, "it did not work", now);
    rejected.save(store.dir()).map_err(words)
}

/// Whether the disk has something to boot.
fn is_installed(site: &Site) -> bool {
    site.disk.join("varve/boot/selection").exists()
}

fn merge_latest(machine: &Machine<'_>, device: &Device, writer: &Writer) -> Result<(), String> {
    let observed = Observed::look(device).map_err(words)?;
    let latest = observed.latest().ok_or("there is no latest deployment")?;
    if latest.record.stack.layers().len() > 1 {
        merge::merge(device, writer, latest, &machine.context()).map_err(words)?;
    }
    Ok(())
}

impl Scenario for Life {
    fn name(&self) -> &'static str {
        self.name
    }

    fn prepare(&self, site: &Site) -> Result<Value, String> {
        self.begin(site)
    }

    fn run(&self, site: &Site, facts: &Value, mark: SharedMark) -> Result<(), String> {
        let machine = acts::machine(site, facts)?;
        acts::recorded(site, &mark, || self.work(site, &machine, &*mark))
    }

    fn look(&self, site: &Site, before: &Before) -> Vec<Finding> {
        if self.about == About::Init && !before.has("installed") && !is_installed(site) {
            return Vec::new();
        }
        acts::examined(site, before, |store| self.promised(store, before))
    }

    fn recover(&self, site: &Site, before: &Before, mark: Mark<'_>) -> Result<Value, String> {
        let machine = acts::machine(site, &before.facts)?;
        let mut recovery = Value::Null;
        if self.about == About::Init && !is_installed(site) {
            acts::install(site, &machine)?;
        }
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
        acts::examined(site, before, |store| self.completed(store, before, recovery))
    }
}
