//! Upgrades by deltas: planned, fetched in grains, applied; and everything that makes
//! packs do the rest.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Lab, noise, now};
use varve_agent::choose::Wish;
use varve_agent::plan::UpgradePlan;
use varve_agent::upgrade::Prepared;
use varve_sys::task::{Cancel, Silent};

/// A change of a few bytes in the middle of what no compression makes small, and 20 kB
/// that are new.
fn change(lab: &Lab, seed: u64) {
    let mut large = noise(2, 3_000_000);
    large[1_500_000..1_500_040].copy_from_slice(&noise(seed, 40));
    lab.tree().file("usr/lib/large", large).file("usr/lib/new", noise(seed, 20_000));
}

fn lab(settings: &str) -> Lab {
    let lab = Lab::new().with(settings);
    lab.publish("r1");
    lab.init();
    change(&lab, 50);
    lab.publish_with_deltas("r2", &["r1"]);
    lab
}

fn files(lab: &Lab, end: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(lab.repository_path().join("deltas")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.to_str().unwrap().ends_with(end)).collect()
}

/// Only one release has deltas in these tests.
fn delta(lab: &Lab) -> PathBuf {
    let mut found = files(lab, ".delta");
    assert_eq!(found.len(), 1);
    found.remove(0)
}

fn plan(lab: &Lab) -> UpgradePlan {
    match lab.prepare(&Wish::default(), true).unwrap() {
        Prepared::Ready(ready) => ready.plan,
        Prepared::UpToDate { .. } => panic!("there is a newer release"),
    }
}

#[test]
fn a_small_change_costs_the_delta_and_little_more() {
    let lab = lab("");
    let size = fs::metadata(delta(&lab)).unwrap().len();
    assert!(size < 30_000, "{size}");
    let plan = plan(&lab);
    let used = plan.delta.as_ref().unwrap();
    assert_eq!((used.from.as_str(), used.contents), ("r1", 3));
    assert_eq!((plan.fetch.packs, plan.fetch.contents), (0, 3));
    let done = lab.upgrade();
    assert!(done.without_delta.is_empty(), "{done:?}");
    assert!(done.fetched <= size + 32 * 1024, "{} for a delta of {size}", done.fetched);
    lab.check_all();
    assert_eq!(lab.fingerprint("incoming").len(), 1, "nothing is left over");
    assert_eq!(lab.boot(false), "r2");
}

#[test]
fn deltas_follow_each_other() {
    let lab = lab("");
    change(&lab, 51);
    lab.publish_with_deltas("r3", &["r2"]);
    let plan = plan(&lab);
    assert_eq!(plan.delta.as_ref().unwrap().from, "r1, r2");
    let done = lab.upgrade();
    assert_eq!(done.release, "r3");
    assert!(done.without_delta.is_empty(), "{done:?}");
    assert!(done.fetched < 80_000, "{done:?}");
    lab.check_all();
}

/// The upgrade comes to its end all the same, and says why there was no delta.
fn falls_back(lab: &Lab, reason: &str) {
    let done = lab.upgrade();
    assert_eq!(done.release, "r2");
    let said = done.without_delta.join("; ");
    assert!(said.contains(reason), "{said}");
    assert!(done.fetched > 1_000_000, "{done:?}");
    assert!(lab.history().iter().any(|word| word == "delta-left"));
    lab.check_all();
}

#[test]
fn a_damaged_delta_is_left_for_packs() {
    let lab = lab("");
    let path = delta(&lab);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    falls_back(&lab, "its digest is not the one");
}

#[test]
fn a_delta_cut_short_is_left_for_packs() {
    let lab = lab("");
    let path = delta(&lab);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    falls_back(&lab, "the metadata says");
}

#[test]
fn a_delta_that_is_gone_is_left_for_packs() {
    let lab = lab("");
    fs::remove_file(delta(&lab)).unwrap();
    falls_back(&lab, "there is no such file");
}

/// What is signed may be wrong all the same: the delta starts from a release for another
/// machine, which this device does not hold.
#[test]
fn a_delta_from_another_release_is_left_for_packs() {
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    lab.tree().file("usr/lib/machine", noise(9, 300_000));
    lab.publish_in("arm-1", "arm");
    lab.tree().remove("usr/lib/machine");
    change(&lab, 50);
    lab.build("r2");
    let (from, to) = ("arm-1".parse().unwrap(), "r2".parse().unwrap());
    let mut made = lab.repository.make_deltas(&[from], &to, &Silent, &Cancel::new()).unwrap();
    let here = lab.device().store.deployment(&lab.selection().latest).unwrap();
    made[0].delta.from = here.record.release.unwrap().digest;
    lab.repository.publish_with(&to, "stable", None, &made, &lab.keys, now(), false).unwrap();
    falls_back(&lab, "starts from");
}

#[test]
fn a_list_that_was_changed_is_not_believed() {
    let lab = lab("");
    let path = files(&lab, ".json").remove(0);
    let text = fs::read_to_string(&path).unwrap().replace("\"memory\":", "\"memory\":1");
    fs::write(&path, text).unwrap();
    let done = lab.upgrade();
    assert!(!done.without_delta.is_empty());
    lab.check_all();
}

#[test]
fn too_little_memory_is_left_for_packs() {
    let lab = lab("download = { memory = \"30 MiB\" }");
    let plan = plan(&lab);
    // Nor is the head worth it for the manifest that is in it: the grain around it is larger.
    assert_eq!(plan.delta, None);
    assert!(plan.fetch.packs > 1_000_000, "{plan:?}");
    falls_back(&lab, "more memory to apply");
}

#[test]
fn what_a_delta_needs_may_be_damaged_here() {
    let lab = lab("verify = \"new\"");
    let layers = lab.disk().join("varve/layers");
    let layer = fs::read_dir(layers).unwrap().next().unwrap().unwrap().path();
    let large = ["tree", ""].iter().map(|dir| layer.join(dir).join("usr/lib/large"));
    let large = large.into_iter().find(|path| path.exists()).expect("the base layer");
    let mut bytes = fs::read(&large).unwrap();
    bytes[100] ^= 1;
    fs::write(&large, bytes).unwrap();
    let done = lab.upgrade();
    assert!(done.without_delta.join("; ").contains("did not come out of it"), "{done:?}");
    assert!(done.fetched > 1_000_000);
}

#[test]
fn the_budget_holds_for_what_replaces_a_delta() {
    let mut lab = lab("");
    lab.config = format!("max-download = 100000\n{}", lab.config);
    assert!(plan(&lab).refuse().is_ok(), "the delta is within it");
    // What the dry run fetched of it is gone too.
    fs::remove_file(delta(&lab)).unwrap();
    let incoming = lab.disk().join("varve/incoming");
    for entry in fs::read_dir(incoming).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let error = lab.try_upgrade(&Wish::default(), &Cancel::new()).unwrap_err();
    assert!(error.is_budget(), "{error:?}");
    assert!(error.to_string().contains("100000"), "{error}");
    lab.config = lab.config.replace("100000", "10000000");
    lab.upgrade();
    lab.check_all();
}

#[test]
fn what_of_a_delta_is_here_is_not_fetched_again() {
    let lab = lab("");
    // The dry run fetched the head, and with it all of so small a delta.
    let before = plan(&lab).delta.unwrap().bytes;
    assert_eq!(before, 0);
    let names = || lab.fingerprint("incoming");
    let kept = names().into_iter().find(|line| line.contains(".delta")).unwrap();
    let path = PathBuf::from(kept.split(' ').next().unwrap());
    // Cut within a grain, as a kill would: only the rest is fetched.
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 10_000]).unwrap();
    let done = lab.upgrade();
    assert!(done.without_delta.is_empty(), "{done:?}");
    assert!((10_000..16_000).contains(&done.fetched), "{}", done.fetched);
    lab.check_all();
}

#[test]
fn what_of_a_delta_rotted_is_fetched_again() {
    for is_table in [true, false] {
        let lab = lab("");
        assert_eq!(plan(&lab).delta.unwrap().bytes, 0);
        let kept = lab.fingerprint("incoming").into_iter().find(|line| line.contains(".delta"));
        let path = PathBuf::from(kept.unwrap().split(' ').next().unwrap());
        let mut bytes = fs::read(&path).unwrap();
        let at = if is_table { 0 } else { bytes.len() / 2 };
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let done = lab.upgrade();
        assert!(done.without_delta.is_empty(), "{done:?}");
        // The delta, and nothing in its place.
        assert!((1..60_000).contains(&done.fetched), "{done:?}");
        lab.check_all();
    }
}
