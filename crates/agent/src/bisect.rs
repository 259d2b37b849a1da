//! The search for the layer that does harm, as the running system takes part in it: it is
//! begun here, a boot that came up is judged here, and what was found is told.
//!
//! ```text
//! begin  --> boot/bisect --reboot--> boot stage: running = probe --> it comes up
//!                ^                        | hangs: reset, counts as bad    |
//!                '------------------------'<----------- judge_boot --------'
//! ```
//!
//! The search itself is `varve_boot::bisect`. Each change is one replacement of the file.

mod tried;

use serde::Serialize;
use varve_boot::bisect::{self, Finding, Next};
use varve_format::probe::{Answer, BISECT, Bisect, Judge, MAX_TEXT, Verdict, Way};
use varve_format::{DeploymentName, LayerName};
use varve_rootfs::Store;
use varve_sys::{Dir, SysError, durable};

use crate::announce::{self, Sign};
use crate::config::HealthCheck;
use crate::device::{Device, Writer};
use crate::error::{Error, Result};
use crate::health::Outcome;
use crate::history::{Event, Record};
use crate::observe::Observed;
use crate::strip::{self, StripError, list};
use crate::upgrade::Context;

pub use tried::try_first;

/// Of a layer that was found, so many paths are shown.
const SHOWN: usize = 12;

/// How to search.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// By prefixes or subsets.
    pub way: Way,
    /// Who judges.
    pub judge: Judge,
    /// By so many answers a verdict must lead.
    pub agree: u8,
}

/// The search of what runs, or of the latest, as it would begin. Changes nothing.
pub fn plan(device: &Device, wish: Wish) -> Result<Bisect> {
    let observed = Observed::look(device)?;
    let current = observed.effective_selection().ok_or(Error::NothingGood)?;
    let name = observed.booted().unwrap_or(&current.latest);
    let deployment =
        observed.deployment(name).ok_or_else(|| Error::NoDeployment { name: name.clone() })?;
    let layers = strip::removable(&deployment.record);
    if layers.is_empty() {
        return Err(StripError::OnlyBase { deployment: name.clone() }.into());
    }
    Ok(Bisect {
        deployment: name.clone(),
        layers,
        way: wish.way,
        judge: wish.judge,
        agree: wish.agree.max(1),
        active: true,
        running: None,
        answers: Vec::new(),
    })
}

/// Begins a planned search; the next boot takes the first probe.
pub fn begin(
    device: &Device,
    _writer: &Writer,
    search: &Bisect,
    context: &Context<'_>,
) -> Result<()> {
    strip::forget_probe(&device.store)?;
    // By this the search that is written is known from one that stood here.
    remove(&device.store)?;
    let record = Record::new(context.now, Event::Search)
        .with("deployment", &search.deployment)
        .with("layers", search.layers.len());
    let sign = Sign::Searching { deployment: search.deployment.clone() };
    announce::told(&device.store, record, sign, |_| -> Result<()> {
        Ok(write(&device.store, search)?)
    })
}

/// The search on the disk.
pub fn read(store: &Store) -> Result<Option<Bisect>> {
    let Some(bytes) = store.boot().read_opt(BISECT, MAX_TEXT)? else { return Ok(None) };
    let damaged =
        |error| StripError::Damaged { file: BISECT, why: varve_sys::whole_message(&error) };
    Ok(Some(Bisect::parse(&bytes).map_err(damaged)?))
}

fn write(store: &Store, search: &Bisect) -> Result<(), SysError> {
    durable::replace_file(store.boot(), BISECT, search.to_text().as_bytes(), 0o644)
}

/// Ends the search: the next boot is the usual one.
pub(crate) fn remove(store: &Store) -> Result<(), SysError> {
    strip::remove(store, BISECT)
}

/// Ends the search: the next boot is the usual one.
pub fn stop(device: &Device, _writer: &Writer) -> Result<()> {
    Ok(remove(&device.store)?)
}

/// What a probe came to, and what is next.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Judged {
    /// The layers that were left out.
    pub off: Vec<LayerName>,
    /// `good`, `bad` or `skip`.
    pub verdict: Verdict,
    /// Why, in words.
    pub why: String,
    /// Whether a reboot takes the next probe; else the search is over.
    pub again: bool,
}

/// Notes the answer to the probe that runs, durably; in a dry run it is only told.
pub fn answer(
    device: &Device,
    _writer: &Writer,
    verdict: Verdict,
    why: &str,
    dry_run: bool,
    context: &Context<'_>,
) -> Result<Judged> {
    let mut search = read(&device.store)?.ok_or(StripError::NoSearch)?;
    let running = search.running.clone().ok_or(StripError::NotRunning)?;
    let answer = Answer { off: running.clone(), verdict, why: why.to_owned() };
    let sign = Sign::Answered { after: search.answers.len(), answer };
    bisect::answer(&mut search, verdict, why);
    let again = matches!(bisect::next(&search), Next::Probe(_));
    let off = search.names(&running);
    let judged = Judged { off, verdict, why: why.to_owned(), again };
    if dry_run {
        return Ok(judged);
    }
    let record = Record::new(context.now, Event::Search)
        .with("deployment", &search.deployment)
        .with("off", list(&judged.off))
        .with("verdict", verdict)
        .with("why", why);
    announce::told(&device.store, record, sign, |_| -> Result<()> {
        Ok(write(&device.store, &search)?)
    })?;
    Ok(judged)
}

/// Judges a boot of the search by the health checks. None: there is nothing to judge, or a
/// person does.
pub(crate) fn judge_boot(
    device: &Device,
    writer: &Writer,
    context: &Context<'_>,
    run: &dyn Fn(&HealthCheck) -> Outcome,
) -> Result<Option<Judged>> {
    let search = read(&device.store)?;
    if search.is_none_or(|search| search.running.is_none() || search.judge == Judge::Person) {
        return Ok(None);
    }
    let failed = device.config.health.iter().map(run).find(|outcome| !outcome.passed());
    let (verdict, why) = match failed {
        Some(outcome) => (Verdict::Bad, outcome.reason()),
        None => (Verdict::Good, "it came up, and its health checks passed".to_owned()),
    };
    answer(device, writer, verdict, &why, false, context).map(Some)
}

/// At a clean shutdown a probe that nobody judged was no vote: it is taken again.
pub(crate) fn not_judged(device: &Device) -> Result<bool> {
    let Some(mut search) = read(&device.store)?.filter(|search| search.running.is_some()) else {
        return Ok(false);
    };
    search.running = None;
    write(&device.store, &search)?;
    Ok(true)
}

/// A search, for people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Whose layers.
    pub deployment: DeploymentName,
    /// What is searched, newest first.
    pub layers: Vec<LayerName>,
    /// Who judges.
    pub judge: Judge,
    /// What is known: what was left out, the verdict, and why.
    pub answers: Vec<Judged>,
    /// What is left out of the probe that runs and waits for an answer.
    pub running: Option<Vec<LayerName>>,
    /// How many more probes at most.
    pub left: u32,
    /// `searching`, `found`, `one-of`, `nothing-wrong`, `not-the-layers`, `unknown`.
    pub outcome: &'static str,
    /// The layers that do the harm, or among which it is.
    pub found: Vec<LayerName>,
    /// Whether all the others together were seen to work.
    pub proven: bool,
    /// The first paths of what was found, and how many there are.
    pub changes: Vec<String>,
    /// Paths in all.
    pub paths: u64,
}

/// Looks at the search.
pub fn report(device: &Device) -> Result<Report> {
    report_of(device, read(&device.store)?.ok_or(StripError::NoSearch)?)
}

/// The same of one that is not written.
pub fn report_of(device: &Device, search: Bisect) -> Result<Report> {
    let (outcome, found, proven) = match bisect::next(&search) {
        Next::Probe(_) => ("searching", Vec::new(), false),
        Next::Over(Finding::Found { layers, proven, .. }) => ("found", layers, proven),
        Next::Over(Finding::OneOf { layers, .. }) => ("one-of", layers, false),
        Next::Over(Finding::NothingWrong) => ("nothing-wrong", Vec::new(), false),
        Next::Over(Finding::NotTheLayers) => ("not-the-layers", Vec::new(), false),
        Next::Over(Finding::Unknown) => ("unknown", Vec::new(), false),
    };
    let found = search.names(&found);
    let (mut changes, mut paths) = (Vec::new(), 0);
    for name in &found {
        // A layer that cannot be read is named all the same.
        if let Ok(tree) = device.store.layer_tree(name) {
            walk(&tree, "", &mut changes, &mut paths)?;
        }
    }
    let judged = |answer: &varve_format::probe::Answer| Judged {
        off: search.names(&answer.off),
        verdict: answer.verdict,
        why: answer.why.clone(),
        again: true,
    };
    Ok(Report {
        answers: search.answers.iter().map(judged).collect(),
        running: search.running.as_ref().map(|running| search.names(running)),
        left: bisect::probes_left(&search),
        outcome,
        found,
        proven,
        changes,
        paths,
        judge: search.judge,
        layers: search.layers,
        deployment: search.deployment,
    })
}

/// What a layer holds but directories; what it takes away is marked.
fn walk(dir: &Dir, at: &str, shown: &mut Vec<String>, count: &mut u64) -> Result<(), SysError> {
    for entry in dir.names()? {
        let path = format!("{at}/{}", entry.name.to_string_lossy());
        let stat = dir.stat(&entry.name)?;
        if stat.is_dir() {
            walk(&dir.open_dir(&entry.name)?, &path, shown, count)?;
            continue;
        }
        *count += 1;
        if shown.len() < SHOWN {
            shown.push(if stat.is_whiteout() { format!("{path} (taken away)") } else { path });
        }
    }
    Ok(())
}

/// Switches off what was found, for good.
pub fn keep(
    device: &Device,
    writer: &Writer,
    dry_run: bool,
    context: &Context<'_>,
) -> Result<strip::Kept> {
    let search = read(&device.store)?.ok_or(StripError::NoSearch)?;
    let Next::Over(finding) = bisect::next(&search) else {
        return Err(StripError::NotFound.into());
    };
    let off = finding.works_without().ok_or(StripError::NotFound)?;
    let observed = Observed::look(device)?;
    let off = search.names(off);
    strip::switch_off(device, writer, &observed, &search.deployment, off, dry_run, context)
}
