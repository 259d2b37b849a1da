//! Upgrades end to end on a directory repository, in both layouts.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use common::{Lab, noise, now, to};
use varve_agent::choose::Wish;
use varve_agent::upgrade::Prepared;
use varve_format::deployment::Layout;
use varve_sys::task::Cancel;

/// Three releases, the way of a device over months.
fn months(lab: &Lab) {
    lab.publish("r1");
    let made = lab.init();
    assert_eq!((made.release.as_str(), made.config_installed), ("r1", true));
    let selection = lab.selection();
    assert_eq!((selection.latest.as_str(), selection.tries), ("r1", None));
    lab.check_all();

    lab.tree().file("usr/bin/tool2", noise(7, 50_000)).remove("usr/share/doc/3");
    lab.publish("r2");
    let done = lab.upgrade();
    assert_eq!(done.release, "r2");
    assert!(done.written < 60_000, "only what is new is fetched: {done:?}");
    let selection = lab.selection();
    assert_eq!((selection.latest.as_str(), selection.tries), ("r2", Some(3)));
    assert_eq!(selection.previous.unwrap().as_str(), "r1");
    lab.check_all();
    assert_eq!(lab.boot(false), "r2");
    lab.after_boot();
    assert_eq!(lab.selection().tries, None);

    lab.tree().file("usr/share/doc/3", noise(103, 2_000 + 97 * 3)).remove("usr/bin/tool2");
    lab.publish("r3");
    lab.upgrade();
    lab.check_all();
    assert_eq!(lab.boot(false), "r3");
    lab.after_boot();
    let names: Vec<_> = deployments(lab);
    assert_eq!(names, ["r2", "r3"], "two are kept");
    lab.check_all();
    let up_to_date = lab.try_upgrade(&Wish::default(), &Cancel::new()).unwrap();
    assert!(up_to_date.is_none());
    let leftovers = lab.fingerprint("staging").len() + lab.fingerprint("trash").len();
    assert_eq!(leftovers, 2, "nothing is left over but the empty directories");
    assert_eq!(lab.fingerprint("incoming").len(), 1);
}

fn deployments(lab: &Lab) -> Vec<String> {
    let items = lab.device().store.deployments().unwrap().items;
    items.iter().map(|deployment| deployment.name().to_string()).collect()
}

fn stack_depth(lab: &Lab, name: &str) -> usize {
    let deployment = lab.device().store.deployment(&name.parse().unwrap()).unwrap();
    deployment.record.stack.layers().len()
}

#[test]
fn overlay() {
    let lab = Lab::new();
    months(&lab);
    assert_eq!(stack_depth(&lab, "r3"), 2, "the latest over the merged previous");
    assert_eq!(stack_depth(&lab, "r2"), 1, "merged before the next was laid upon it");
    assert!(lab.history().iter().any(|word| word == "merge"));
}

#[test]
fn hard_link() {
    let lab = Lab::new().with("layout = \"hard-link\"");
    months(&lab);
    assert_eq!(lab.fingerprint("layers").len(), 1, "trees alone");
}

#[test]
fn deep_stacks_when_the_policy_allows() {
    let lab = Lab::new().with("layers = 5\nverify = \"new\"");
    months(&lab);
    assert_eq!(stack_depth(&lab, "r3"), 3);
}

#[test]
fn a_device_moves_between_layouts() {
    let mut lab = Lab::new();
    lab.publish("r1");
    lab.init();
    lab.publish("r2");
    lab.config = format!("layout = \"hard-link\"\n{}", lab.config);
    let done = lab.upgrade();
    assert!(done.written < 1000, "the contents are here: {done:?}");
    lab.check_all();
    let layout = |lab: &Lab, name: &str| {
        lab.device().store.deployment(&name.parse().unwrap()).unwrap().record.stack.layout()
    };
    assert_eq!(layout(&lab, "r2"), Layout::HardLink);
    assert_eq!(lab.boot(false), "r2");
    lab.after_boot();
    // And back, with the same release.
    lab.config = lab.config.replacen("hard-link", "overlay", 1);
    assert!(lab.try_upgrade(&Wish::default(), &Cancel::new()).unwrap().is_none());
    let wish = Wish { restage: true, ..Wish::default() };
    let done = lab.try_upgrade(&wish, &Cancel::new()).unwrap().unwrap();
    assert_eq!((done.deployment.as_str(), done.written), ("r2.2", 0));
    assert_eq!(layout(&lab, "r2.2"), Layout::Overlay);
    lab.check_all();
    assert_eq!(lab.boot(false), "r2.2");
}

#[test]
fn state_goes_with_its_deployment() {
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    let write = |deployment: &str, text: &str| {
        let upper = lab.disk().join("varve/state/versioned").join(deployment).join("etc/upper");
        std::fs::write(upper.join("hostname"), text).unwrap();
    };
    let read = |deployment: &str| {
        let upper = lab.disk().join("varve/state/versioned").join(deployment).join("etc/upper");
        std::fs::read_to_string(upper.join("hostname")).unwrap_or_default()
    };
    write("r1", "mine\n");
    lab.publish("r2");
    lab.upgrade();
    assert_eq!(read("r2"), "mine\n");
    // Changed between the upgrade and the shutdown.
    write("r1", "later\n");
    assert_eq!(
        lab.finalize(),
        varve_agent::lifecycle::Finalized::Carried { to: "r2".parse().unwrap() }
    );
    assert_eq!(read("r2"), "later\n");
    assert_eq!(lab.boot(false), "r2");
    lab.after_boot();
    write("r2", "newest\n");
    assert_eq!(lab.roll_back().unwrap(), "r1");
    assert_eq!(lab.boot(false), "r1");
    assert_eq!(read("r1"), "later\n", "going back brings the old state back");
    assert_eq!(lab.finalize(), varve_agent::lifecycle::Finalized::Nothing);
    // The configuration was installed as a change of the user's, and went along.
    let config = lab.disk().join("varve/state/versioned/r2/etc/upper/varve/varve.toml");
    assert_eq!(std::fs::read_to_string(config).unwrap(), lab.config_text());
}

#[test]
fn a_named_release_an_older_one_and_one_that_is_here() {
    let lab = Lab::new().with("keep = 5");
    for name in ["r1", "r2", "r3"] {
        lab.publish(name);
        if name == "r1" {
            lab.init();
        }
    }
    let done = lab.try_upgrade(&to("r2"), &Cancel::new()).unwrap().unwrap();
    assert_eq!(done.release, "r2");
    assert_eq!(lab.boot(false), "r2");
    lab.after_boot();
    let error = lab.try_upgrade(&to("r1"), &Cancel::new()).unwrap_err();
    assert_eq!(error.to_string(), "r1 is older than r2");
    let wish = Wish { allow_downgrade: true, ..to("r1") };
    let Prepared::Ready(ready) = lab.prepare(&wish, true).unwrap() else { panic!("r1 is here") };
    assert!(ready.plan.is_here);
    let done = lab.try_upgrade(&wish, &Cancel::new()).unwrap().unwrap();
    assert_eq!((done.deployment.as_str(), done.written), ("r1", 0));
    assert_eq!(lab.boot(false), "r1");
    lab.after_boot();
    assert_eq!(lab.upgrade().release, "r3");
    lab.check_all();
}

#[test]
fn a_dry_run_changes_nothing() {
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    lab.tree().file("usr/bin/new", noise(9, 500_000));
    lab.publish("r2");
    let trust_apart = |lab: &Lab| -> Vec<String> {
        let parts = ["boot", "deployments", "layers", "incoming", "staging", "state", "history"];
        parts.iter().flat_map(|part| lab.fingerprint(part)).collect()
    };
    let before = trust_apart(&lab);
    let Prepared::Ready(ready) = lab.prepare(&Wish::default(), true).unwrap() else {
        panic!("r2 is newer")
    };
    assert_eq!(before, trust_apart(&lab));
    let plan = &ready.plan;
    assert!(plan.fetch.bytes > 500_000 && plan.fetch.bytes < 520_000, "{plan:#?}");
    assert!(plan.room[0].need > 500_000 && plan.room[0].fits());
    assert_eq!(plan.fetch.contents, 2);
    assert!(plan.refuse().is_ok());
    // What was planned is what is done.
    let before = lab.repository_path();
    assert!(before.exists());
    let done = lab.upgrade();
    assert!(done.fetched >= plan.fetch.bytes);
}

#[test]
fn a_second_upgrade_at_the_same_time_is_refused() {
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    lab.publish("r2");
    let device = lab.device();
    let writer = device.lock("upgrade", now()).unwrap();
    let before = lab.fingerprint("boot");
    let error = lab.try_upgrade(&Wish::default(), &Cancel::new()).unwrap_err();
    let expected = format!(
        "another varve is at work: varve upgrade, process {}, since 2026-09-21T14:13:20Z",
        std::process::id()
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(before, lab.fingerprint("boot"));
    drop(writer);
    lab.upgrade();
}

#[test]
fn init_is_refused_on_a_device_and_goes_on_after_a_cut() {
    let lab = Lab::new();
    lab.publish("r1");
    // Everything but the selection is there: cut before the commit point.
    lab.init();
    let error = lab.try_init(&Cancel::new()).unwrap_err();
    assert!(error.to_string().ends_with("holds a device already: it has the deployment r1"));
    std::fs::remove_file(lab.disk().join("varve/boot/selection")).unwrap();
    let made = lab.try_init(&Cancel::new()).unwrap();
    assert_eq!(made.deployment.as_str(), "r1");
    assert!(made.fetched < 100_000, "nothing is fetched again: {made:?}");
    lab.check_all();
}

#[test]
fn judging_a_boot_waits_for_an_upgrade_at_work() {
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    let device = lab.device();
    let writer = device.lock("upgrade", now()).unwrap();
    let (limit, cancel) = (std::time::Duration::from_secs(20), Cancel::new());
    let told = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let hears = |holder: &str| told.lock().unwrap().push(holder.to_owned());
            device.lock_patiently("confirm", now(), limit, &cancel, &hears).map(drop)
        });
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert!(!waiting.is_finished());
        drop(writer);
        waiting.join().unwrap().unwrap();
    });
    let told = told.into_inner().unwrap();
    assert!(told.len() == 1 && told[0].starts_with("varve upgrade, process "), "{told:?}");
    let _writer = device.lock("upgrade", now()).unwrap();
    let none = std::time::Duration::ZERO;
    assert!(device.lock_patiently("confirm", now(), none, &cancel, &|_| ()).is_err());
}

#[test]
fn a_lost_configuration_hides_no_state() {
    let lab = Lab::new().with("root-mode = \"volatile\"");
    lab.publish("r1");
    lab.init();
    let places = lab.places();
    std::fs::remove_file(&places.config).unwrap();
    let device = varve_agent::Device::open(places).unwrap();
    let latest = device.store.deployment(&"r1".parse().unwrap()).unwrap();
    assert_eq!(device.config.state, latest.record.state);
    assert_eq!(device.config.root_mode, latest.record.root_mode);
    assert!(!device.config.state.is_empty());
}

#[test]
fn state_that_is_no_longer_kept_is_said_before() {
    let mut lab = Lab::new();
    lab.publish("r1");
    lab.init();
    lab.publish("r2");
    lab.config = "[[state]]\npath = \"/etc\"\nmode = \"versioned\"\n".to_owned();
    let Prepared::Ready(ready) = lab.prepare(&Wish::default(), true).unwrap() else {
        panic!("r2 is newer")
    };
    let dropped: Vec<_> = ready.plan.dropped_state.iter().map(ToString::to_string).collect();
    assert_eq!(dropped, ["/var"]);
}
