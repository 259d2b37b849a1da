//! What happens after a boot: confirmed, rolled back, fallen back, given back.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::fs;

use common::{Lab, now, to};
use varve_agent::choose::Wish;
use varve_agent::lifecycle::{AfterBoot, Finalized};
use varve_agent::observe::{self, Situation};
use varve_agent::rejected::Rejected;
use varve_sys::task::Cancel;

/// A device on r1 with r2 promoted.
fn two_releases(config: &str) -> Lab {
    let mut lab = Lab::new();
    lab.config.push_str(config);
    lab.publish("r1");
    lab.init();
    lab.tree().file("usr/bin/two", "two");
    lab.publish("r2");
    lab.upgrade();
    lab
}

const SICK: &str = "[[health]]\nname = \"good\"\ncommand = [\"true\"]\n\
    [[health]]\nname = \"network\"\ncommand = [\"sh\", \"-c\", \"echo no route; exit 3\"]\n";

fn failed(lab: &Lab) -> Vec<(String, String)> {
    let (rejected, _) = Rejected::load(lab.device().store.dir()).unwrap();
    rejected.releases.into_iter().map(|r| (r.name.to_string(), r.reason)).collect()
}

#[test]
fn a_good_release_is_confirmed_once() {
    let lab = two_releases("[[health]]\nname = \"good\"\ncommand = [\"true\"]\n");
    assert_eq!(lab.boot(false), "r2");
    assert_eq!(lab.selection().tries, Some(2));
    let confirmed = AfterBoot::Confirmed { deployment: "r2".parse().unwrap(), checks: 1 };
    assert_eq!(lab.after_boot(), confirmed);
    assert_eq!(lab.selection().tries, None);
    assert!(lab.device().store.is_confirmed(&"r2".parse().unwrap()).unwrap());
    assert!(matches!(lab.after_boot(), AfterBoot::Nothing { .. }));
    assert_eq!(lab.history().iter().filter(|word| *word == "confirm").count(), 1);
    let status = observe::status(&lab.device()).unwrap();
    assert_eq!(status.situation, []);
}

#[test]
fn a_sick_release_is_left_remembered_and_not_tried_again() {
    let lab = two_releases(SICK);
    assert_eq!(lab.boot(false), "r2");
    let AfterBoot::Failed { reason, back_to, .. } = lab.after_boot() else { panic!("r2 is sick") };
    let why = "the health check \"network\" failed with exit status 3: no route";
    assert_eq!((reason.as_str(), back_to.unwrap().as_str()), (why, "r1"));
    let selection = lab.selection();
    assert_eq!((selection.latest.as_str(), selection.previous), ("r1", None));
    assert_eq!(failed(&lab), [("r2".to_owned(), why.to_owned())]);
    assert_eq!(lab.boot(false), "r1");
    assert!(matches!(lab.after_boot(), AfterBoot::Nothing { .. }));
    assert!(lab.try_upgrade(&Wish::default(), &Cancel::new()).unwrap().is_none());
    let status = observe::status(&lab.device()).unwrap();
    assert!(
        matches!(&status.situation[..], [Situation::RolledBack { release }] if release.reason == why)
    );
    assert!(lab.history().ends_with(&["check-failed".into(), "roll-back".into()]));
    // A newer one is tried; the named one too.
    let done = lab.try_upgrade(&to("r2"), &Cancel::new()).unwrap().unwrap();
    assert_eq!((done.deployment.as_str(), done.written), ("r2", 0), "it is here still");
    lab.publish("r3");
    assert_eq!(lab.upgrade().release, "r3");
}

#[test]
fn a_release_that_never_comes_up_uses_its_tries_and_is_left() {
    let lab = two_releases("");
    for left in [2, 1, 0] {
        assert_eq!(lab.boot(false), "r2");
        assert_eq!(lab.selection().tries, Some(left));
        // It hangs: nothing is judged, and no clean shutdown follows.
    }
    assert_eq!(lab.boot(false), "r1");
    let status = observe::status(&lab.device()).unwrap();
    assert!(matches!(&status.situation[0], Situation::TriesUsedUp { .. }));
    let AfterBoot::FellBack { from, to, reason } = lab.after_boot() else { panic!("it fell back") };
    assert_eq!((from.as_str(), to.as_str()), ("r2", "r1"));
    assert_eq!(reason, "it did not come up in 3 tries");
    let selection = lab.selection();
    assert_eq!(
        (selection.latest.as_str(), selection.previous, selection.tries),
        ("r1", None, None)
    );
    assert_eq!(failed(&lab), [("r2".to_owned(), reason)]);
    assert!(lab.try_upgrade(&Wish::default(), &Cancel::new()).unwrap().is_none());
    assert_eq!(lab.boot(false), "r1");
    lab.check_all();
}

#[test]
fn switching_off_during_a_trial_is_no_vote() {
    let lab = two_releases("");
    for _ in 0..5 {
        assert_eq!(lab.boot(false), "r2");
        assert_eq!(lab.finalize(), Finalized::Nothing, "it had not come up yet");
        // That it came up was seen, and then the user switched off.
        std::fs::write(lab.folder.path().join("run/boot-complete"), "").unwrap();
        assert_eq!(lab.finalize(), Finalized::Refunded { tries: 3 });
        assert_eq!(lab.finalize(), Finalized::Nothing, "a try is given back once");
    }
    assert_eq!(lab.boot(false), "r2");
    assert!(matches!(lab.after_boot(), AfterBoot::Confirmed { .. }));
    assert_eq!(lab.finalize(), Finalized::Nothing);
}

#[test]
fn a_held_key_decides_one_boot() {
    let lab = two_releases("");
    assert_eq!(lab.boot(true), "r1");
    assert!(matches!(lab.after_boot(), AfterBoot::Nothing { .. }));
    assert_eq!(lab.selection().tries, Some(3));
    let status = observe::status(&lab.device()).unwrap();
    assert!(matches!(&status.situation[0], Situation::AskedFor { key: true, .. }));
    assert_eq!(lab.boot(false), "r2");
    lab.after_boot();
    assert_eq!(lab.boot(true), "r1");
    assert_eq!(lab.finalize(), Finalized::Nothing, "r2 has state of its own by now");
    assert_eq!(lab.boot(false), "r2");
}

#[test]
fn back_and_forth_by_hand() {
    let lab = two_releases("");
    assert_eq!(lab.boot(false), "r2");
    lab.after_boot();
    assert_eq!(lab.roll_back().unwrap(), "r1");
    assert_eq!(failed(&lab)[0].1, "rolled back by the user");
    assert_eq!(lab.boot(false), "r1");
    assert!(lab.try_upgrade(&Wish::default(), &Cancel::new()).unwrap().is_none());
    // Forward again: r2 is good after all, and r1 did not fail.
    assert_eq!(lab.roll_back().unwrap(), "r2");
    assert_eq!(failed(&lab), []);
    assert_eq!(lab.boot(false), "r2");
    lab.check_all();
}

#[test]
fn without_a_previous_there_is_no_way_back() {
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    let error = lab.roll_back().unwrap_err();
    assert_eq!(error.to_string(), "there is no previous deployment to go back to from r1");
}

#[test]
fn a_damaged_selection_boots_and_is_mended() {
    let lab = two_releases("");
    assert_eq!(lab.boot(false), "r2");
    lab.after_boot();
    for damage in [&b""[..], b"garbage", b"format = 1\nlatest = \"r1\"\n"] {
        std::fs::write(lab.disk().join("varve/boot/selection"), damage).unwrap();
        let status = observe::status(&lab.device()).unwrap();
        assert!(matches!(&status.situation[0], Situation::NoSelection { .. }));
        assert_eq!(lab.boot(false), "r2", "the newest that is known to be good");
        assert!(matches!(lab.after_boot(), AfterBoot::Nothing { .. }));
        let selection = lab.selection();
        assert_eq!((selection.latest.as_str(), selection.tries), ("r2", None));
        assert_eq!(selection.previous.unwrap().as_str(), "r1");
    }
    std::fs::remove_file(lab.disk().join("varve/boot/selection")).unwrap();
    lab.publish("r3");
    lab.upgrade();
    let selection = lab.selection();
    assert_eq!((selection.latest.as_str(), selection.tries), ("r3", Some(3)));
    assert_eq!(selection.previous.unwrap().as_str(), "r2", "an upgrade mends it too");
}

/// How long a deployment works is noted of what runs, when it is the latest, whole and good.
#[test]
fn what_proves_itself_is_counted_and_nothing_else() {
    use varve_format::proven::Moment;
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    let note = |boot: &str, uptime, good| {
        let device = lab.device();
        let writer = device.lock("confirm", now()).unwrap();
        let now = Moment { boot: boot.to_owned(), uptime, clock: 30 };
        let proven = varve_agent::proven::note(&device, &writer, &now, good).unwrap();
        proven.map(|proven| (proven.boots, proven.seconds))
    };
    lab.after_boot();
    assert_eq!(note("a", 60, true), Some((1, 0)));
    assert_eq!(note("a", 60, true), Some((1, 0)), "asked twice");
    assert_eq!(note("a", 3660, false), Some((1, 3600)));
    assert_eq!(note("b", 30, true), Some((2, 3630)));
    // Layers were left out.
    let report = lab.folder.path().join("run/boot.toml");
    let whole = fs::read_to_string(&report).unwrap();
    fs::write(&report, whole.replace("stripped = 0", "stripped = 1")).unwrap();
    assert_eq!(note("c", 30, true), None);
    fs::write(&report, &whole).unwrap();
    // On trial it proves nothing, and the old one is not the latest any more.
    lab.publish("r2");
    lab.upgrade();
    assert_eq!(note("c", 40, true), None);
    assert_eq!(lab.boot(false), "r2");
    assert_eq!(note("d", 30, true), None);
    lab.after_boot();
    assert_eq!(note("d", 40, true), Some((1, 0)));
    // A file that the disk damaged begins anew, and folds nothing early.
    let file = lab.disk().join("varve/deployments/r2/proven");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("boots = 1", "boots = 9")).unwrap();
    assert_eq!(note("d", 50, false), Some((1, 0)));
    lab.check_all();
}
