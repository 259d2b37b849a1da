//! The power goes at every change that confirming, rolling back, falling back, giving a
//! try back and mending make: what boots is the old or the new, the reason is never lost,
//! a mark never vouches for a trial, the same command finishes the work, and the history
//! tells of it once. Of a probe, a search and a collection the history tells once when, and
//! only when, they are there.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::path::Path;

use common::{Lab, now, with_context};
use varve_agent::history::{self, Line};
use varve_agent::rejected::Rejected;
use varve_agent::upgrade::Context;
use varve_agent::{
    Device, Places, Writer, bisect, collect, health, lifecycle, merge, selection, strip,
};
use varve_boot::bisect::at_boot;
use varve_format::probe::{AskedBy, Probe, Verdict};
use varve_format::{DeploymentName, LayerName};
use varve_sys::task::Cancel;
use varve_testkit::crash;

const SEEDS: u64 = 4;

/// A device whose r2 was promoted and has booted, judged by this check.
fn on_trial(check: &str) -> Lab {
    let mut lab = Lab::below(crash::scratch());
    lab.config.push_str(&format!("[[health]]\nname = \"check\"\ncommand = [{check:?}]\n"));
    lab.publish("r1");
    lab.init();
    lab.publish("r2");
    lab.upgrade();
    assert_eq!(lab.boot(false), "r2");
    lab
}

fn places(lab: &Lab, disk: &Path) -> Places {
    Places { physical_root: disk.to_owned(), ..lab.places() }
}

fn judge(places: Places) {
    let device = Device::open(places).unwrap();
    let writer = device.lock("confirm", now()).unwrap();
    with_context(&Cancel::new(), |context| {
        lifecycle::after_boot(&device, &writer, context, &health::run)
    })
    .unwrap();
}

fn finalize(places: Places) {
    let device = Device::open(places).unwrap();
    let writer = device.lock("finalize", now()).unwrap();
    with_context(&Cancel::new(), |context| lifecycle::finalize(&device, &writer, context)).unwrap();
}

/// Does `act`, and lays out what a cut at each of its changes leaves: `holds` judges that,
/// and then `act` done again must end like the uncut one, told once by the history's `word`.
fn cut_at_each_change(
    lab: &Lab,
    word: Option<&str>,
    act: impl Fn(Places),
    holds: impl Fn(&Device),
) {
    let told = |device: &Device| word.map_or(0, |word| lines(device, word));
    let before = told(&lab.device());
    let (recording, ()) = crash::record(&lab.disk(), || act(places(lab, &lab.disk())));
    assert!(recording.len() > 3, "only {} changes were seen", recording.len());
    let end = lab.selection();
    let states = recording.each_state(SEEDS, |cut, survival, image| {
        let folder = crash::scratch();
        image.materialise(folder.path());
        let device = Device::open(places(lab, folder.path())).unwrap();
        let now = selection::read(&device.store).unwrap();
        assert!(now.is_ok(), "cut at {cut}, {survival:?}: {now:?}");
        holds(&device);
        drop(device);
        act(places(lab, folder.path()));
        let device = Device::open(places(lab, folder.path())).unwrap();
        let again = selection::read(&device.store).unwrap().unwrap();
        let (again, wanted) = (
            (&again.latest, &again.previous, again.tries),
            (&end.latest, &end.previous, end.tries),
        );
        assert_eq!(again, wanted, "cut at {cut}, {survival:?}");
        let lines = usize::from(word.is_some());
        assert_eq!(told(&device) - before, lines, "cut at {cut}, {survival:?}: {word:?}");
        holds(&device);
    });
    assert!(states > 10, "only {states} states");
}

/// How many lines of the history have this word.
fn lines(device: &Device, word: &str) -> usize {
    let lines = history::read(device.store.dir()).unwrap();
    let is_word =
        |line: &&Line| matches!(line, Line::Record(record) if record.word.as_str() == word);
    lines.iter().filter(is_word).count()
}

/// Does `act`, and lays out what a cut at each of its changes leaves: whoever takes the lock
/// next finds one line more with `word` if the act `is_done`, and else none.
fn told_if_done(
    lab: &Lab,
    word: &str,
    act: impl Fn(&Device, &Writer, &Context<'_>),
    is_done: impl Fn(&Device) -> bool,
) {
    let before = lines(&lab.device(), word);
    let (recording, ()) = crash::record(&lab.disk(), || {
        let device = lab.device();
        let writer = device.lock("test", now()).unwrap();
        with_context(&Cancel::new(), |context| act(&device, &writer, context));
    });
    let mut seen = [0, 0];
    let states = recording.each_state(SEEDS, |cut, survival, image| {
        let folder = crash::scratch();
        image.materialise(folder.path());
        let device = Device::open(places(lab, folder.path())).unwrap();
        drop(device.lock("test", now()).unwrap());
        let done = is_done(&device);
        seen[usize::from(done)] += 1;
        let told = lines(&device, word) - before;
        assert_eq!(told, usize::from(done), "cut at {cut}, {survival:?}");
    });
    assert!(states > 10 && seen[0] > 0 && seen[1] > 0, "{states} states, {seen:?}");
}

fn rejects(device: &Device, name: &str) -> bool {
    let (rejected, damage) = Rejected::load(device.store.dir()).unwrap();
    assert_eq!(damage, None);
    rejected.releases.iter().any(|release| release.name.as_str() == name)
}

#[test]
fn confirming() {
    let lab = on_trial("true");
    cut_at_each_change(&lab, Some("confirm"), judge, |device| {
        let selection = selection::read(&device.store).unwrap().unwrap();
        let marked = device.store.is_confirmed(&"r2".parse().unwrap()).unwrap();
        assert!(!marked || selection.tries.is_none(), "the mark vouches for a trial");
        assert_eq!(selection.latest.as_str(), "r2");
    });
    assert_eq!(lab.selection().tries, None);
}

#[test]
fn rolling_back() {
    let lab = on_trial("false");
    cut_at_each_change(&lab, Some("roll-back"), judge, |device| {
        let selection = selection::read(&device.store).unwrap().unwrap();
        assert!(selection.latest.as_str() == "r2" || rejects(device, "r2"), "the reason is lost");
    });
    assert_eq!(lab.selection().latest.as_str(), "r1");
}

#[test]
fn falling_back() {
    let lab = on_trial("true");
    while lab.boot(false) == "r2" {}
    cut_at_each_change(&lab, Some("fall-back"), judge, |device| {
        let selection = selection::read(&device.store).unwrap().unwrap();
        assert!(selection.latest.as_str() == "r2" || rejects(device, "r2"), "the reason is lost");
        assert!(selection.latest.as_str() == "r1" || selection.tries == Some(0));
    });
    assert_eq!(lab.selection().latest.as_str(), "r1");
}

#[test]
fn giving_a_try_back() {
    let lab = on_trial("true");
    std::fs::write(lab.folder.path().join("run/boot-complete"), "").unwrap();
    cut_at_each_change(&lab, Some("refund"), finalize, |device| {
        let tries = selection::read(&device.store).unwrap().unwrap().tries;
        assert!([Some(2), Some(3)].contains(&tries), "{tries:?}");
    });
    assert_eq!(lab.selection().tries, Some(3));
}

/// A device that runs r2, an update over r1.
fn with_an_update() -> (Lab, DeploymentName, LayerName) {
    let lab = on_trial("true");
    lab.after_boot();
    let latest = lab.device().store.deployment(&"r2".parse().unwrap()).unwrap();
    let update = strip::removable(&latest.record)[0].clone();
    (lab, latest.name().clone(), update)
}

#[test]
fn asking_for_a_probe() {
    let (lab, deployment, update) = with_an_update();
    // The same was tried before, and no boot of the whole came since.
    let (off, by) = (vec![update.clone()], AskedBy::Strip);
    let spent = Probe { deployment: deployment.clone(), off, by, tries: 0 };
    std::fs::write(lab.disk().join("varve/boot/probe"), spent.to_text()).unwrap();
    let ask = |device: &Device, writer: &Writer, context: &Context<'_>| {
        strip::off_once(device, writer, &deployment, vec![update.clone()], context).unwrap();
    };
    told_if_done(&lab, "strip", ask, |device| {
        strip::read_probe(&device.store).unwrap().is_some_and(|probe| probe.tries == 1)
    });
}

#[test]
fn beginning_a_search_and_judging_a_probe() {
    let (lab, ..) = with_an_update();
    let begin = |device: &Device, writer: &Writer, context: &Context<'_>| {
        let search = bisect::plan(device, bisect::Wish::default()).unwrap();
        bisect::begin(device, writer, &search, context).unwrap();
    };
    told_if_done(&lab, "search", begin, |device| bisect::read(&device.store).unwrap().is_some());
    let mut search = bisect::read(&lab.device().store).unwrap().unwrap();
    at_boot(&mut search).unwrap();
    std::fs::write(lab.disk().join("varve/boot/bisect"), search.to_text()).unwrap();
    let judge = |device: &Device, writer: &Writer, context: &Context<'_>| {
        bisect::answer(device, writer, Verdict::Good, "it came up", false, context).unwrap();
    };
    told_if_done(&lab, "search", judge, |device| {
        bisect::read(&device.store).unwrap().is_some_and(|search| !search.answers.is_empty())
    });
}

#[test]
fn collecting_what_a_merge_left() {
    let (lab, deployment, _) = with_an_update();
    let device = lab.device();
    let writer = device.lock("merge", now()).unwrap();
    let latest = device.store.deployment(&deployment).unwrap();
    with_context(&Cancel::new(), |context| merge::merge(&device, &writer, &latest, context))
        .unwrap();
    drop(writer);
    let plan = collect::plan(&device, true).unwrap();
    assert!(plan.deployments.is_empty() && plan.bytes > 0, "{plan:?}");
    let act = |device: &Device, writer: &Writer, context: &Context<'_>| {
        collect::execute(device, writer, &plan, context).unwrap();
    };
    told_if_done(&lab, "collect", act, |device| {
        device.store.layers_dir().stat_opt(&plan.layers[0]).unwrap().is_none()
    });
}

#[test]
fn carrying_state_at_shutdown() {
    let lab = Lab::below(crash::scratch());
    lab.publish("r1");
    lab.init();
    let note = |disk: &Path, name: &str| {
        disk.join("varve/state/versioned").join(name).join("etc/upper/note")
    };
    std::fs::write(note(&lab.disk(), "r1"), "old").unwrap();
    lab.publish("r2");
    lab.upgrade();
    std::fs::write(note(&lab.disk(), "r1"), "new").unwrap();
    cut_at_each_change(&lab, None, finalize, |device| {
        let text = std::fs::read_to_string(note(&device.places.physical_root, "r2")).unwrap();
        assert!(["old", "new"].contains(&text.as_str()), "{text:?}");
    });
    assert_eq!(std::fs::read_to_string(note(&lab.disk(), "r2")).unwrap(), "new");
}
