//! The power goes at every change that confirming, rolling back, falling back, giving a
//! try back and mending make: what boots is the old or the new, the reason is never lost,
//! a mark never vouches for a trial, the same command finishes the work, and the history
//! tells of it once.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::path::Path;

use common::{Lab, now, with_context};
use varve_agent::history::{self, Line};
use varve_agent::rejected::Rejected;
use varve_agent::{Device, Places, health, lifecycle, selection};
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
    let told = |device: &Device| {
        let lines = history::read(device.store.dir()).unwrap();
        let is_word = |line: &&Line| match line {
            Line::Record(record) => Some(record.word.as_str()) == word,
            Line::Other(_) => false,
        };
        lines.iter().filter(is_word).count()
    };
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
