//! The boot stage's one act, from the physical root to the new one.

use std::path::{Path, PathBuf};
use std::time::Instant;

use varve_boot::menu::Choice;
use varve_boot::report::{self, BootReport};
use varve_boot::{Decision, Inputs, PassedOver, Reason, Unusable, Wishes, decide};
use varve_format::deployment::RootMode;
use varve_format::probe::{AskedBy, Probe};
use varve_format::selection::Selection;
use varve_format::{DeploymentName, LayerName};
use varve_rootfs::assemble::{Care, execute};
use varve_rootfs::mount::{Options, Top, plan};
use varve_rootfs::{Deployment, Store, StoreError};
use varve_sys::console::Asked as Keys;
use varve_sys::mount::{Access, MountError, Reach, bind_detached, make_writable, unmount_lazily};
use varve_sys::task::both;
use varve_sys::{Dir, SysError, durable, whole_message};

use crate::look::{self, Machine};
use crate::menu;
use crate::wanted::Asked;

/// What became of the boot.
#[derive(Debug)]
pub enum Outcome {
    /// A deployment's root is at the target.
    Booted(Box<Booted>),
    /// There is no `/varve` on the physical root: the target is as it was.
    NoVarve,
}

/// A boot that worked.
#[derive(Debug)]
pub struct Booted {
    /// What is in `boot.toml`.
    pub report: BootReport,
    /// Why this one, in words.
    pub reason: String,
}

/// Why nothing could be booted. The target is as it was.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The directory for the boot stage's own things cannot be made.
    #[error("cannot work in the run directory")]
    Run(#[source] SysError),
    /// The physical root cannot be put where the booted system looks for it.
    #[error("cannot keep hold of the physical root file system")]
    Physical(#[source] MountError),
    /// The physical root, or `/varve` on it, cannot be read.
    #[error("cannot read the physical root file system")]
    Store(#[source] StoreError),
    /// There is a `/varve`, and nothing in it boots.
    #[error("no deployment could be booted{}", list(.passed_over, .warnings))]
    Nothing {
        /// What was tried, and why not; a sentence each.
        passed_over: Vec<String>,
        /// What else was seen.
        warnings: Vec<String>,
    },
}

fn list(passed_over: &[String], warnings: &[String]) -> String {
    if passed_over.is_empty() && warnings.is_empty() {
        return ": there is none in /varve/deployments".to_owned();
    }
    passed_over.iter().chain(warnings).map(|line| format!("; {line}")).collect()
}

/// Runs the boot stage on the file system mounted at `target`; its own things go to the
/// directory `run` (`/run/varve`). `begun` is when the program started.
pub fn run(
    target: &Path,
    run: &Path,
    machine: &Machine,
    begun: Instant,
) -> Result<Outcome, StageError> {
    let at_target = Dir::open(target).map_err(|error| StageError::Store(error.into()))?;
    let has_varve = at_target.stat_opt("varve").map_err(|error| StageError::Store(error.into()))?;
    if !has_varve.is_some_and(|stat| stat.is_dir()) {
        return Ok(Outcome::NoVarve);
    }
    let mut clock = Clock { last: begun, phases: Vec::new() };
    let places = Places::make(run).map_err(StageError::Run)?;
    let physical_root = keep_physical(&at_target, &places.physical)?;
    clock.done("physical");
    let seen = Seen { physical_root, begun, clock };
    let booted = boot_from(seen, &places, target, machine);
    if booted.is_err() {
        // So that it can be run again by hand, and the plain root is all there is.
        let _ = unmount_lazily(&places.physical);
    }
    booted
}

/// What the boot stage has in hand once the physical root is where it stays.
struct Seen {
    physical_root: Dir,
    begun: Instant,
    clock: Clock,
}

/// What `/varve` says.
struct Records {
    store: Store,
    selection: Result<Selection, Unusable>,
    deployments: Vec<Deployment>,
    asked: Asked,
    warnings: Vec<String>,
}

impl Records {
    fn read(physical_root: &Dir) -> Result<Records, StoreError> {
        let mut warnings = Vec::new();
        let store = Store::open(physical_root)?;
        let selection = look::selection(&store);
        let deployments = look::deployments(&store, &mut warnings);
        let asked = Asked::read(&store, &mut warnings);
        Ok(Records { store, selection, deployments, asked, warnings })
    }

    /// Reads while the file system is made writable and the keyboard looked at: one waits for
    /// inodes, the other for the journal. A disk that cannot be written is a warning: the
    /// system boots, and forgets.
    fn read_meanwhile(
        physical_root: &Dir,
        place: &Path,
        machine: &Machine,
    ) -> Result<(Records, Keys), StoreError> {
        let meanwhile = || {
            let mut warnings = Vec::new();
            if let Err(error) = make_writable(rustix::fs::CWD, place) {
                warnings.push(whole_message(&error));
            }
            let keys = machine.keys(&mut warnings);
            (keys, warnings)
        };
        let (records, (keys, mut warnings)) = both(|| Records::read(physical_root), meanwhile);
        let mut records = match records {
            // A directory of ours is missing, and could not be made yet.
            Err(StoreError::Sys(error)) if error.is_read_only() => Records::read(physical_root)?,
            other => other?,
        };
        warnings.append(&mut records.warnings);
        Ok((Records { warnings, ..records }, keys))
    }
}

fn boot_from(
    seen: Seen,
    places: &Places,
    target: &Path,
    machine: &Machine,
) -> Result<Outcome, StageError> {
    let Seen { physical_root, begun, mut clock } = seen;
    let read = Records::read_meanwhile(&physical_root, &places.physical, machine);
    let (records, keys) = read.map_err(StageError::Store)?;
    let Records { store, selection, deployments, mut asked, mut warnings } = records;
    let (wishes, bad) = Wishes::read(|key| machine.command_line.value(key));
    warnings.extend(bad);
    if keys.pressed {
        asked.nothing();
    }
    clock.done("records");
    let mut stage = Stage {
        store,
        target,
        memory: places.memory.clone(),
        deployments,
        wishes,
        key_held: keys.pressed,
        asked,
        problem: selection.as_ref().err().cloned(),
        selection: selection.ok(),
        warnings,
        clock,
        init: machine.command_line.value("init").map(str::to_owned),
    };
    let selection = stage.selection.as_ref();
    if let Some((why, seconds)) = menu::why(machine, keys.menu, selection, &mut stage.warnings) {
        stage.menu(machine, why, seconds);
        stage.clock.done("menu");
    }
    let (decision, stack, root_mode) = stage.boot()?;
    let record = &stage.deployment(&decision.deployment).record;
    let report = BootReport {
        format: report::FORMAT,
        deployment: decision.deployment,
        layout: record.stack.layout(),
        stripped: record.height().saturating_sub(stack.len()) as u32,
        off: left_out(record.own_on().chain(record.stack.layers()), &stack),
        stack: stack.iter().map(|path| path.display().to_string()).collect(),
        root_mode,
        reason: decision.reason.code().to_owned(),
        try_spent: decision.spend_try.is_some(),
        generation: stage.selection.as_ref().map(|selection| selection.generation),
        key_held: stage.key_held,
        soft_reboot: false,
        microseconds: begun.elapsed().as_micros() as u64,
        phases: stage.clock.phases,
        kernel: machine.kernel.clone(),
        selection_problem: stage.problem.as_ref().map(|problem| match problem {
            Unusable::Missing => "it is missing".to_owned(),
            Unusable::Damaged(why) => report::sentence(why),
        }),
        passed_over: report::sentences(&words(&decision.passed_over)),
        warnings: report::sentences(&stage.warnings),
    };
    let written = places.run.remove_all("boot.toml").and_then(|()| {
        places.run.create_file("boot.toml", 0o644)?.write_all(report.to_text().as_bytes())
    });
    // The system is whole without it; `status` will say that it does not know.
    let _ = written;
    let reason = decision.reason.to_string();
    Ok(Outcome::Booted(Box::new(Booted { report, reason })))
}

fn words(passed_over: &[PassedOver]) -> Vec<String> {
    passed_over.iter().map(ToString::to_string).collect()
}

/// The layers that are not in the stack as it was mounted.
fn left_out<'a>(layers: impl Iterator<Item = &'a LayerName>, stack: &[PathBuf]) -> Vec<LayerName> {
    let mounted = |name: &LayerName| {
        stack.iter().any(|path| path.parent().is_some_and(|layer| layer.ends_with(name)))
    };
    layers.filter(|name| !mounted(name)).cloned().collect()
}

/// The boot stage's own directories.
struct Places {
    run: Dir,
    physical: PathBuf,
    memory: PathBuf,
}

impl Places {
    fn make(run: &Path) -> Result<Places, SysError> {
        let parent = Dir::open(run.parent().unwrap_or(Path::new("/")))?;
        let name = run.file_name().unwrap_or(run.as_os_str());
        let dir = parent.make_dir(name, 0o755)?;
        for name in ["physical", "memory"] {
            dir.make_dir(name, 0o755)?;
        }
        Ok(Places { run: dir, physical: run.join("physical"), memory: run.join("memory") })
    }
}

/// Clones the mount of the physical root to the place where the booted system finds it.
fn keep_physical(at_target: &Dir, place: &Path) -> Result<Dir, StageError> {
    bind_detached(at_target.fd(), Path::new(""), Access::ReadWrite, Reach::Alone)
        .and_then(|physical| physical.attach(rustix::fs::CWD, place))
        .map_err(StageError::Physical)?;
    Dir::open(place).map_err(StageError::Run)
}

struct Stage<'a> {
    store: Store,
    target: &'a Path,
    memory: PathBuf,
    deployments: Vec<Deployment>,
    wishes: Wishes,
    key_held: bool,
    asked: Asked,
    selection: Option<Selection>,
    problem: Option<Unusable>,
    warnings: Vec<String>,
    clock: Clock,
    init: Option<String>,
}

/// How long each part of the boot stage took.
struct Clock {
    last: Instant,
    phases: Vec<(String, u64)>,
}

impl Clock {
    /// The part that ends now. A part done twice is there twice.
    fn done(&mut self, phase: &str) {
        let now = Instant::now();
        self.phases.push((phase.to_owned(), now.duration_since(self.last).as_micros() as u64));
        self.last = now;
    }
}

/// What was decided, the stack as it was mounted, and the root's mode.
type Assembled = (Decision, Vec<PathBuf>, RootMode);

impl Stage<'_> {
    /// Decides and assembles until one choice works. When none does, once more without
    /// insisting that changes can be kept: a machine with a broken or full disk boots.
    fn boot(&mut self) -> Result<Assembled, StageError> {
        let mut failed: Vec<(DeploymentName, String)> = Vec::new();
        let mut choices: Vec<Decision> = Vec::new();
        let passed_over = loop {
            let decision = match self.decide(&failed) {
                Ok(decision) => decision,
                Err(passed_over) => break passed_over,
            };
            match self.spend(&decision).and_then(|()| self.assemble(&decision, Care::Strict)) {
                Ok((stack, mode)) => return Ok((decision, stack, mode)),
                // The deployment itself may well boot with all its layers.
                Err(why) if decision.is_wanted() => {
                    self.warnings
                        .push(format!("{} ({}): {why}", decision.deployment, decision.reason));
                    self.asked.failed(&why);
                    continue;
                }
                Err(why) => failed.push((decision.deployment.clone(), why)),
            }
            choices.push(decision);
        };
        // A trial whose try could not be noted comes last: if it hangs, it hangs for ever.
        choices.sort_by_key(|decision| self.is_unnoted_trial(decision));
        for decision in choices {
            if let Ok((stack, mode)) = self.assemble(&decision, Care::Lenient) {
                let failures = failed.iter().map(|(name, why)| format!("{name}: {why}"));
                self.warnings.extend(failures);
                let noted = !self.is_unnoted_trial(&decision);
                let spend_try = decision.spend_try.clone().filter(|_| noted);
                return Ok((Decision { spend_try, ..decision }, stack, mode));
            }
        }
        let passed_over = report::sentences(&words(&passed_over));
        Err(StageError::Nothing { passed_over, warnings: report::sentences(&self.warnings) })
    }

    /// Shows the menu, and takes what is chosen there.
    fn menu(&mut self, machine: &Machine, why: String, seconds: u64) {
        // What failed its trials is what the menu is for.
        let latest = self.selection.as_ref().map(|selection| selection.latest.clone());
        let latest = latest.filter(|name| self.deployments.iter().any(|d| d.name() == name));
        let by_itself = || self.decide(&[]).ok().map(|decision| decision.deployment);
        let Some(name) = latest.or_else(by_itself) else { return };
        let (store, selection) = (&self.store, self.selection.as_ref());
        let mut menu = menu::of(store, self.deployment(&name), selection, &self.asked, why);
        match menu::ask(&mut menu, machine, seconds) {
            Choice::Usual => {}
            Choice::Previous => {
                self.key_held = true;
                self.asked.nothing();
            }
            Choice::Find => self.asked.by_search(menu.search()),
            Choice::Try(off) => {
                let (deployment, by) = (name, AskedBy::Menu);
                self.asked.by_menu(Probe { deployment, off, by, tries: 0 });
                // With all layers it boots by the ordinary rules, which note nothing of it.
                if self.asked.wanted.is_none()
                    && let Err(error) = self.asked.note(&self.store, Reason::Menu)
                {
                    self.warnings.push(whole_message(&error));
                }
            }
        }
    }

    fn decide(&self, failed: &[(DeploymentName, String)]) -> Result<Decision, Vec<PassedOver>> {
        decide(&Inputs {
            selection: self
                .selection
                .as_ref()
                .ok_or_else(|| self.problem.clone().unwrap_or(Unusable::Missing)),
            on_disk: &look::on_disk(&self.deployments),
            wishes: &self.wishes,
            key_held: self.key_held,
            wanted: self.asked.wanted.as_ref(),
            failed,
        })
    }

    fn is_unnoted_trial(&self, decision: &Decision) -> bool {
        decision.spend_try.is_some() && self.selection != decision.spend_try
    }

    /// The one act that is durable: the try counts from here on, whatever comes. A try
    /// that cannot be noted is not taken, or a boot that hangs would be tried for ever.
    fn spend(&mut self, decision: &Decision) -> Result<(), String> {
        if decision.is_wanted() {
            let noted = self.asked.note(&self.store, decision.reason);
            self.clock.done("try");
            match noted {
                // Somebody is there, and what is chosen at the menu boots on a full disk.
                Err(error) if decision.reason == Reason::Menu => {
                    self.warnings.push(whole_message(&error));
                }
                other => {
                    let failed = |error| format!("it cannot be noted: {}", whole_message(&error));
                    return other.map_err(failed);
                }
            }
        }
        let Some(spent) = &decision.spend_try else { return Ok(()) };
        let text = spent.to_text();
        durable::replace_file(self.store.boot(), "selection", text.as_bytes(), 0o644)
            .map_err(|error| format!("its try cannot be noted: {}", whole_message(&error)))?;
        self.selection = Some(spent.clone());
        self.clock.done("try");
        Ok(())
    }

    fn assemble(
        &mut self,
        decision: &Decision,
        care: Care,
    ) -> Result<(Vec<PathBuf>, RootMode), String> {
        let record = &self.deployment(&decision.deployment).record;
        let options = Options {
            strip: decision.strip,
            off: decision.off.clone(),
            root_mode: decision.root,
            ..Options::default()
        };
        let plan = plan(&self.store, record, options).map_err(|error| whole_message(&error))?;
        self.clock.done("plan");
        let executed = execute(&self.store, &plan, self.target, &self.memory, care)
            .map_err(|error| whole_message(&error))?;
        if care == Care::Strict && !self.has_init() {
            // The second is there only if changes go to memory.
            let _ = unmount_lazily(self.target);
            let _ = unmount_lazily(&self.memory);
            return Err("there is no init in it".to_owned());
        }
        self.clock.done("mount");
        let left_out = plan.left_out.iter();
        let warnings = left_out
            .map(|left| format!("{} is not mounted: {}", left.path, left.why))
            .chain(executed.compromises)
            .chain(
                executed
                    .refused_options
                    .into_iter()
                    .map(|option| format!("the kernel does not know the overlay option {option}")),
            );
        self.warnings.extend(warnings);
        let root = plan.steps.into_iter().next().expect("a plan begins with the root");
        let mode = match root.top {
            Top::None => RootMode::ReadOnly,
            Top::Memory => RootMode::Volatile,
            Top::Disk { .. } | Top::Bind { .. } => RootMode::Persistent,
        };
        Ok((root.lowers, mode))
    }

    /// Whether the new root holds a program to hand over to. One that does not (a layer
    /// that lost its files) is passed over here, where there is still a choice.
    fn has_init(&self) -> bool {
        let Ok(root) = Dir::open(self.target) else { return false };
        let asked = self.init.as_deref().map(|path| path.trim_start_matches('/'));
        let usual = ["sbin/init", "etc/init", "bin/init"];
        asked.into_iter().chain(usual).any(|path| root.leads_somewhere(path).unwrap_or(false))
    }

    fn deployment(&self, name: &DeploymentName) -> &Deployment {
        let here = self.deployments.iter().find(|deployment| deployment.name() == name);
        here.expect("the decision names what is on the disk")
    }
}
