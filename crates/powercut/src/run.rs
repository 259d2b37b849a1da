//! Record once, then judge thousands of states of it, on all cores.
//!
//! ```text
//! make fs -> prepare -> base image -> run, recorded -> Log
//!                         '--> plan --> [state | state | ...] --> mount, look, recover, done
//!                                                        '--> record the recovery: a Log ...
//! ```

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use varve_testkit::crash::Recording;

use crate::device::Recorder;
use crate::disk::{FileSystem, copy_image};
use crate::error::{Result, RigError};
use crate::kept::{self, About};
use crate::log::Log;
use crate::scenario::{Before, Finding, Scenario, SharedMark, Site, below};
use crate::server::Host;
use crate::states::{State, Timeline, plan};
use crate::strict;

/// Of so many states one is looked over by the file system's own checker too.
const CHECK_EVERY: usize = 16;

/// The disk's image, where a scenario works, and what it knows.
pub(crate) type Prepared = (PathBuf, Site, serde_json::Value);

/// One scenario on one file system.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    /// What happens.
    pub scenario: &'a dyn Scenario,
    /// On what.
    pub fs: &'static FileSystem,
    /// Who serves the disk while it is recorded.
    pub host: &'a Host,
    /// The rig's own directory, in memory if possible.
    pub scratch: &'a Path,
    /// Where failing states go; none keeps none.
    pub keep: Option<&'a Path>,
    /// Stop at the first failing state.
    pub first_only: bool,
    /// How many states are judged at once.
    pub workers: usize,
    /// Stop here, whatever is left.
    pub until: Option<Instant>,
    /// The step that is taken out while recording.
    pub fault: Option<&'a str>,
    /// Findings that are there without any fault, and prove nothing about one.
    pub known: &'a [Finding],
}

/// What a run left, and the disk before it.
#[derive(Debug)]
pub struct Recorded {
    pub(crate) tape: Tape,
    pub(crate) before: Before,
    pub(crate) outside: PathBuf,
    /// `4 then ` when this is the recovery from state 4.
    pub(crate) origin: String,
    /// The safety steps that it passed, and how often; in a build with faults alone.
    pub steps: BTreeMap<String, u64>,
}

/// What was heard of the disk.
#[derive(Debug)]
pub(crate) enum Tape {
    /// Its writes and flushes, and its image before them.
    Disk { base: PathBuf, log: Log },
    /// The changes of names and files.
    Names(Recording),
}

/// A state that broke a promise.
#[derive(Clone, Debug)]
pub struct Failing {
    /// Which state.
    pub state: String,
    /// What was found.
    pub findings: Vec<Finding>,
    /// The file in which it is kept.
    pub kept: Option<PathBuf>,
}

/// How the names of checks begin, as against syncs and renames.
pub const CHECK: &str = "check.";
/// How findings begin that are the kernel's file system's alone.
const FS: &str = "the file system itself:";

impl Failing {
    /// Whether nothing but the file system itself failed, on a torn write. Some cannot
    /// bear one: ext4's superblock is larger than a sector. No program on top can help.
    fn is_torn_file_system(&self) -> bool {
        let torn = self.state.rsplit(' ').next().is_some_and(|state| state.contains('t'));
        torn && self.findings.iter().all(|finding| finding.starts_with(FS))
    }
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// States judged.
    pub tried: usize,
    /// Those of them that are cuts during the recovery from a cut.
    pub deep: usize,
    /// Flushes recorded.
    pub flushes: usize,
    /// Bytes recorded.
    pub bytes: u64,
    /// The checks that the recoveries passed, and how often; in a build with faults alone.
    pub checks: BTreeMap<String, u64>,
    /// Those that broke a promise.
    pub failing: Vec<Failing>,
    /// Those in which the file system itself did not keep its word.
    pub not_ours: Vec<Failing>,
    /// How long it took.
    pub time: Duration,
}

impl Case<'_> {
    pub(crate) fn error(&self, doing: &'static str) -> impl Fn(String) -> RigError {
        let scenario = self.scenario.name().to_owned();
        move |why| RigError::Scenario { scenario: scenario.clone(), doing, why }
    }

    /// The scenario failed where nothing was wrong.
    pub(crate) fn failure(&self, doing: &'static str, why: String) -> RigError {
        self.error(doing)(why)
    }

    /// The disk's image before the scenario, where it works, and what is known of it.
    pub(crate) fn prepared(&self) -> Result<Prepared> {
        let outside = below(self.scratch, "outside")?;
        let image = self.scratch.join("disk.img");
        self.fs.make(&image)?;
        let site = Site { disk: self.scratch.join("disk"), outside };
        let mounted = self.fs.mount(&image, &site.disk)?;
        let facts = self.scenario.prepare(&site).map_err(self.error("preparing"))?;
        mounted.unmount()?;
        Ok((image, site, facts))
    }

    /// Prepares the disk and records the scenario once.
    pub fn record(&self) -> Result<Recorded> {
        if self.fs.is_model() {
            return strict::record(self);
        }
        let (image, site, facts) = self.prepared()?;
        let before = Before { facts, marks: Vec::new() };
        let run = |before: &Before, mark: SharedMark| {
            let done = self.scenario.run(&site, &before.facts, mark);
            done.map_err(self.error("running undisturbed"))
        };
        let recorded = self.record_work(&image, &site, before, String::new(), run);
        let _ = std::fs::remove_file(&image);
        recorded
    }

    /// Records `work` on a copy of `image`, with the disk mounted.
    fn record_work(
        &self,
        image: &Path,
        site: &Site,
        before: Before,
        origin: String,
        work: impl FnOnce(&Before, SharedMark) -> Result<()>,
    ) -> Result<Recorded> {
        let tag = if origin.is_empty() { "first" } else { "second" };
        let dir = below(site.disk.parent().unwrap_or(self.scratch), tag)?;
        let base = dir.join("base.img");
        let live = dir.join("live.img");
        for old in [&base, &live, &dir.join("log.data")] {
            let _ = std::fs::remove_file(old);
        }
        copy_image(image, &base)?;
        copy_image(image, &live)?;
        let mut recorder = Recorder::start(self.host, &live, &dir)?;
        let mounted = recorder.mount(self.fs, &site.disk)?;
        let mark: SharedMark = Arc::new(recorder.marker());
        let (done, steps) = armed(self.fault, Some(&mark), || work(&before, Arc::clone(&mark)));
        let log = recorder.cut()?;
        mounted.unmount()?;
        drop(recorder);
        let _ = std::fs::remove_file(&live);
        done?;
        let tape = Tape::Disk { base, log };
        Ok(Recorded { tape, before, outside: site.outside.clone(), origin, steps })
    }

    /// Judges about `count` states of a recording, and for `deep` of them about as many
    /// states each of the recovery from it (of a real file system's).
    pub fn judge(
        &self,
        recorded: &Recorded,
        count: usize,
        deep: Deep,
        seed: u64,
    ) -> Result<Outcome> {
        let started = Instant::now();
        let total = Shared::default();
        let judge = || match &recorded.tape {
            Tape::Disk { base, log } => {
                let tape = (base.as_path(), log);
                self.judge_disk(recorded, tape, &total, count, deep, seed)
            }
            Tape::Names(names) => strict::judge(self, recorded, names, &total, count, seed),
        };
        // A check is what a recovery relies on, a sync what the recorded run owed.
        let check = self.fault.filter(|step| step.starts_with(CHECK));
        let (judged, mut steps) = armed(check, None, judge);
        steps.retain(|step, _| step.starts_with(CHECK));
        judged?;
        let failing = total.failing.into_inner().expect("nothing panics while it holds this");
        let (not_ours, failing) = failing
            .into_iter()
            .partition(|f: &Failing| !self.fs.keeps_word || f.is_torn_file_system());
        let (flushes, bytes) = match &recorded.tape {
            Tape::Disk { log, .. } => (log.flushes(), log.bytes()),
            Tape::Names(names) => (names.syncs().len(), 0),
        };
        Ok(Outcome {
            tried: total.tried.into_inner(),
            deep: total.deep.into_inner(),
            flushes,
            bytes,
            checks: steps,
            failing,
            not_ours,
            time: started.elapsed(),
        })
    }

    fn judge_disk(
        &self,
        recorded: &Recorded,
        (base, log): (&Path, &Log),
        total: &Shared,
        count: usize,
        deep: Deep,
        seed: u64,
    ) -> Result<()> {
        let states = plan(log, count, seed);
        let of = states.len();
        let share = of.div_ceil(self.workers.max(1)).max(1);
        let judge = |number: usize, chunk: &[State]| {
            let scratch = below(self.scratch, &format!("worker-{number}"))?;
            let worker = Worker { case: self, recorded, base, log, scratch, total };
            worker.go(chunk, number * share, of, deep, seed)
        };
        std::thread::scope(|scope| {
            let chunks = states.chunks(share).enumerate();
            let threads: Vec<_> =
                chunks.map(|(number, chunk)| scope.spawn(move || judge(number, chunk))).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("judging catches panics"))
        })
    }

    /// Judges one state, laid out at `image`, which is changed.
    pub fn judge_image(
        &self,
        image: &Path,
        site: &Site,
        before: &Before,
        check: bool,
    ) -> Vec<Finding> {
        let mut findings = match self.fs.mount_repaired(image, &site.disk) {
            Ok(mounted) => {
                let mut findings = self.judge_at(site, before);
                findings.extend(mounted.unmount().err().map(|error| error.chain()));
                findings
            }
            Err(error) => vec![format!("{FS} it cannot be mounted: {}", error.chain())],
        };
        if check && let Err(error) = self.fs.check(image) {
            findings.push(format!("{FS} {}", error.chain()));
        }
        findings
    }

    /// Judges what is mounted at `site`. A panic is a finding.
    pub(crate) fn judge_at(&self, site: &Site, before: &Before) -> Vec<Finding> {
        let judge = || {
            let mut findings = self.scenario.look(site, before);
            match self.scenario.recover(site, before, &|_| ()) {
                Ok(recovery) => findings.extend(self.scenario.done(site, before, &recovery)),
                Err(why) => findings.push(format!("it does not recover: {why}")),
            }
            findings
        };
        std::panic::catch_unwind(AssertUnwindSafe(judge)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            vec![format!("panic: {}", text.unwrap_or("without words"))]
        })
    }

    /// Whether no more states need be judged.
    pub(crate) fn enough(&self, total: &Shared) -> bool {
        total.stop.load(Ordering::Relaxed)
            || self.until.is_some_and(|until| Instant::now() >= until)
    }
}

#[cfg(feature = "faults")]
pub(crate) use crate::faults::without as armed;

#[cfg(not(feature = "faults"))]
pub(crate) fn armed<T>(
    _: Option<&str>,
    _: Option<&SharedMark>,
    work: impl FnOnce() -> T,
) -> (T, BTreeMap<String, u64>) {
    (work(), BTreeMap::new())
}

/// How much of the states is gone into a second time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deep {
    /// Of how many states the recovery is recorded.
    pub origins: usize,
    /// How many states of each recovery are judged.
    pub states: usize,
}

/// What all workers have done.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    tried: AtomicUsize,
    deep: AtomicUsize,
    stop: AtomicBool,
    failing: Mutex<Vec<Failing>>,
}

impl Shared {
    /// A state was judged.
    pub(crate) fn judged(&self, case: &Case<'_>, failing: Failing) {
        self.tried.fetch_add(1, Ordering::Relaxed);
        if failing.findings.is_empty() {
            return;
        }
        if case.first_only && !failing.is_torn_file_system() {
            self.stop.store(true, Ordering::Relaxed);
        }
        self.failing.lock().expect("nothing panics while it holds this").push(failing);
    }
}

struct Worker<'a> {
    case: &'a Case<'a>,
    recorded: &'a Recorded,
    base: &'a Path,
    log: &'a Log,
    scratch: PathBuf,
    total: &'a Shared,
}

impl Worker<'_> {
    /// `first` is the place of these states among `of`.
    fn go(&self, states: &[State], first: usize, of: usize, deep: Deep, seed: u64) -> Result<()> {
        let every = if deep.origins == 0 { usize::MAX } else { of.div_ceil(deep.origins).max(1) };
        let path = self.scratch.join("timeline.img");
        let mut timeline = Timeline::new(self.log, self.base, path)?;
        let image = self.scratch.join("state.img");
        for (number, &state) in (first..).zip(states) {
            if self.case.enough(self.total) {
                break;
            }
            timeline.lay_out(state, &image)?;
            let mut before = self.recorded.before.clone();
            before.marks.extend(self.log.marks(state.latest(self.log)));
            let site = self.site();
            let check = number % CHECK_EVERY == 0;
            let mut findings = self.case.judge_image(&image, &site, &before, check);
            findings.retain(|finding| !self.case.known.contains(finding));
            let _ = std::fs::remove_file(&image);
            let name = format!("{}{state}", self.recorded.origin);
            let well = findings.is_empty();
            let mut failing = Failing { state: name, findings, kept: None };
            if !well {
                timeline.lay_out(state, &image)?;
                self.keep(&mut failing, &before, &image)?;
                let _ = std::fs::remove_file(&image);
            }
            self.total.judged(self.case, failing);
            if well && number % every == every / 2 {
                timeline.lay_out(state, &image)?;
                self.second(&image, before, format!("{state} then "), deep.states, seed)?;
                let _ = std::fs::remove_file(&image);
            }
        }
        Ok(())
    }

    /// Cuts the recovery from the state at `image`.
    fn second(
        &self,
        image: &Path,
        before: Before,
        origin: String,
        count: usize,
        seed: u64,
    ) -> Result<()> {
        let site = self.site();
        let recover = |before: &Before, mark: SharedMark| {
            let recovered = self.case.scenario.recover(&site, before, &*mark);
            recovered.map(drop).map_err(self.case.error("recovering undisturbed"))
        };
        let recorded = self.case.record_work(image, &site, before, origin, recover)?;
        let Tape::Disk { base, log } = &recorded.tape else { return Ok(()) };
        let states = plan(log, count, seed);
        let scratch = below(&self.scratch, "deep")?;
        let (case, recorded, total) = (self.case, &recorded, self.total);
        let worker = Worker { case, recorded, base, log, scratch, total };
        worker.go(&states, 0, states.len(), Deep::default(), seed)?;
        self.total.deep.fetch_add(states.len(), Ordering::Relaxed);
        Ok(())
    }

    fn site(&self) -> Site {
        Site { disk: self.scratch.join("disk"), outside: self.recorded.outside.clone() }
    }

    fn keep(&self, failing: &mut Failing, before: &Before, image: &Path) -> Result<()> {
        let Some(dir) = self.case.keep else { return Ok(()) };
        let state = failing.state.clone();
        let mut about = About::new(self.case.scenario.name(), self.case.fs.name, state);
        about.fault = self.case.fault.map(str::to_owned);
        about.facts = before.facts.clone();
        about.marks = before.marks.clone();
        about.findings = failing.findings.clone();
        failing.kept = Some(kept::keep(dir, about, image, &self.recorded.outside)?);
        Ok(())
    }
}

/// Judges a kept state again.
pub fn replay(host: &Host, file: &Path, scratch: &Path) -> Result<(About, Vec<Finding>)> {
    let outside = below(scratch, "outside")?;
    let image = scratch.join("replayed.img");
    let about = kept::unpack(file, &image, &outside)?;
    let scenario = crate::scenario::named(&about.scenario)?;
    let case = Case {
        scenario: &*scenario,
        fs: FileSystem::named(&about.file_system)?,
        host,
        scratch,
        keep: None,
        first_only: false,
        workers: 1,
        until: None,
        fault: None,
        known: &[],
    };
    let before = Before { facts: about.facts.clone(), marks: about.marks.clone() };
    let site = Site { disk: scratch.join("disk"), outside };
    let findings = case.judge_image(&image, &site, &before, true);
    Ok((about, findings))
}
