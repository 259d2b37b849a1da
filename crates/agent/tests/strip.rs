//! Layers taken off: for once, for good, and by a search, on a device with own layers.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::fs;

use common::{Lab, now, with_context};
use varve_agent::history::{Event, Record};
use varve_agent::lifecycle::{self, AfterBoot};
use varve_agent::observe::Observed;
use varve_agent::strip::{self, StripError};
use varve_agent::{Error, bisect, upgrade};
use varve_boot::bisect::at_boot;
use varve_format::LayerName;
use varve_format::deployment::{FORMAT, LayerKind, LayerRecord, OwnLayer};
use varve_format::probe::Verdict;
use varve_rootfs::own::{Restack, draft, restack};
use varve_sys::task::Cancel;

/// A device on r1 with own layers, newest first, confirmed and running.
fn with_layers(config: &str, layers: &[&str]) -> Lab {
    let mut lab = Lab::new();
    lab.config.push_str(config);
    lab.publish("r1");
    lab.init();
    for layer in layers.iter().rev() {
        let device = lab.device();
        let observed = Observed::look(&device).unwrap();
        let base = observed.latest().unwrap();
        let name: varve_format::DeploymentName = format!("with-{layer}").parse().unwrap();
        let draft = draft(&device.store, &name).unwrap();
        let usr = draft.tree().make_dir("usr", 0o755).unwrap();
        usr.create_file(layer, 0o644).unwrap().write_all(b"x").unwrap();
        let record = LayerRecord {
            format: FORMAT,
            name: layer.parse().unwrap(),
            created: 1_760_000_000,
            kind: LayerKind::Local,
            release: None,
            title: String::new(),
            made_by: String::new(),
            captured_from: None,
            signed_by: None,
            size: None,
        };
        let mut own = base.record.own.clone();
        own.insert(0, OwnLayer::on(record.name.clone()));
        let state = base.record.state.clone();
        let change =
            Restack { base, name, created: 0, own, state, fresh_root: false, title: String::new() };
        let new = restack(&device.store, &change, Some((draft, &record))).unwrap();
        device.store.mark_confirmed(new.name()).unwrap();
        let writer = device.lock("test", now()).unwrap();
        let record = Record::new(now(), Event::Layers).with("deployment", new.name());
        upgrade::promote(&device.store, &writer, &observed, &new, None, record).unwrap();
    }
    lab.boot(false);
    lab
}

/// Says that the boot stage left these out.
fn ran_without(lab: &Lab, reason: &str, off: &[LayerName]) {
    let deployment = lab.boot(false);
    let path = lab.device().places.boot_report.unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let off_text: Vec<String> = off.iter().map(|name| format!("\"{name}\"")).collect();
    let stripped = format!("stripped = {}\noff = [{}]\n", off.len(), off_text.join(", "));
    let text = text.replace("stripped = 0\n", &stripped);
    let before = text.lines().find(|line| line.starts_with("reason")).unwrap().to_owned();
    fs::write(&path, text.replace(&before, &format!("reason = \"{reason}\""))).unwrap();
    assert_eq!(lab.device().boot_report().unwrap().unwrap().deployment.as_str(), deployment);
}

fn names(list: &[&str]) -> Vec<LayerName> {
    list.iter().map(|name| name.parse().unwrap()).collect()
}

#[test]
fn what_works_is_kept_and_nothing_is_deleted() {
    let lab = with_layers("", &["games", "tools"]);
    let device = lab.device();
    let writer = device.lock("test", now()).unwrap();
    let keep =
        || with_context(&Cancel::new(), |context| strip::keep(&device, &writer, false, context));
    assert!(matches!(keep(), Err(Error::Strip(StripError::NothingOff))));

    let menu = strip::menu(&device, &Observed::look(&device).unwrap()).unwrap();
    let listed: Vec<&str> = menu.entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(listed[..2], ["games", "tools"]);
    with_context(&Cancel::new(), |context| {
        strip::off_once(&device, &writer, &menu.deployment, names(&["games"]), context)
    })
    .unwrap();
    let probe = strip::read_probe(&device.store).unwrap().unwrap();
    assert_eq!((probe.off, probe.tries), (names(&["games"]), 1));

    ran_without(&lab, "probe", &names(&["games"]));
    let kept = keep().unwrap();
    assert_eq!((kept.deployment.as_str(), kept.off), ("with-games.stripped", names(&["games"])));
    let new = device.store.deployment(&kept.deployment).unwrap().record;
    let on: Vec<bool> = new.own.iter().map(|own| own.on).collect();
    assert_eq!(on, [false, true]);
    let selection = lab.selection();
    assert_eq!(selection.latest, kept.deployment);
    assert_eq!(
        (selection.previous.unwrap().as_str(), selection.tries.is_some()),
        ("with-games", true)
    );
    assert!(device.store.layer(&"games".parse().unwrap()).is_ok(), "the layer is still here");
    assert!(strip::read_probe(&device.store).unwrap().is_none());
    assert_eq!(lab.boot(false), "with-games.stripped");
    // Given again, as after a cut behind the promotion: the same one, and no other.
    let again = with_context(&Cancel::new(), |context| {
        let (name, off) = (&kept.from, names(&["games"]));
        let observed = Observed::look(&device).unwrap();
        strip::switch_off(&device, &writer, &observed, name, off, false, context)
    });
    assert_eq!(again.unwrap().deployment, kept.deployment);
    drop(writer);
    assert!(matches!(lab.after_boot(), AfterBoot::Confirmed { .. }));
}

#[test]
fn a_complete_boot_of_the_whole_ends_the_memory_of_the_last_try() {
    let lab = with_layers("", &["games"]);
    let device = lab.device();
    let writer = device.lock("test", now()).unwrap();
    let name = lab.selection().latest;
    with_context(&Cancel::new(), |context| {
        strip::off_once(&device, &writer, &name, names(&["games"]), context)
    })
    .unwrap();
    drop(writer);
    lab.boot(false);
    lab.after_boot();
    assert!(strip::read_probe(&device.store).unwrap().is_some(), "it waits still");
    let probe = strip::read_probe(&device.store).unwrap().unwrap();
    let spent = varve_format::probe::Probe { tries: 0, ..probe };
    fs::write(lab.disk().join("varve/boot/probe"), spent.to_text()).unwrap();
    ran_without(&lab, "menu", &names(&["games"]));
    lab.after_boot();
    assert!(strip::read_probe(&device.store).unwrap().is_some(), "the whole did not run");
    lab.boot(false);
    lab.after_boot();
    assert!(strip::read_probe(&device.store).unwrap().is_none());
}

/// Eight layers, the health checks as the judge; one boot hangs. The bad layer is found,
/// named with what it holds, and switched off.
#[test]
fn the_bad_one_of_eight_is_found_and_switched_off() {
    let layers = ["l0", "l1", "l2", "l3", "l4", "l5", "l6", "l7"];
    let lab = with_layers("", &layers);
    let device = lab.device();
    let begin = |context: &upgrade::Context<'_>| {
        let writer = device.lock("test", now()).unwrap();
        let search = bisect::plan(&device, bisect::Wish::default())?;
        bisect::begin(&device, &writer, &search, context)
    };
    with_context(&Cancel::new(), begin).unwrap();
    let mut boots = 0;
    while bisect::report(&device).unwrap().outcome == "searching" {
        boots += 1;
        assert!(boots < 10);
        // As the boot stage does it.
        let mut search = bisect::read(&device.store).unwrap().unwrap();
        let off = at_boot(&mut search).unwrap();
        fs::write(lab.disk().join("varve/boot/bisect"), search.to_text()).unwrap();
        if boots == 1 {
            // It hangs: nothing of it is ever judged.
            assert!(!off.contains(&5));
            continue;
        }
        if bisect::report(&device).unwrap().outcome != "searching" {
            break;
        }
        ran_without(&lab, "search", &search.names(&off));
        let bad = !off.contains(&5);
        let judged = if bad {
            let writer = device.lock("test", now()).unwrap();
            with_context(&Cancel::new(), |context| {
                bisect::answer(&device, &writer, Verdict::Bad, "no sound", false, context)
            })
            .unwrap()
        } else {
            let AfterBoot::Searched(judged) = lab.after_boot() else { panic!("it was judged") };
            judged
        };
        assert_eq!(judged.verdict == Verdict::Bad, bad);
    }
    let report = bisect::report(&device).unwrap();
    assert_eq!((report.outcome, &report.found, report.proven), ("found", &names(&["l5"]), true));
    assert_eq!((report.changes, report.paths), (vec!["/usr/l5".to_owned()], 1));
    assert_eq!(report.answers[0].why, "it did not come up");
    assert!(boots <= 5, "{boots}");

    let writer = device.lock("test", now()).unwrap();
    let kept =
        with_context(&Cancel::new(), |context| bisect::keep(&device, &writer, false, context));
    let kept = kept.unwrap();
    assert_eq!(kept.off, names(&["l5"]));
    let record = device.store.deployment(&kept.deployment).unwrap().record;
    assert_eq!(record.own_on().count(), 7);
    assert!(bisect::read(&device.store).unwrap().is_none());
}

#[test]
fn a_probe_that_nobody_judged_is_taken_again() {
    let lab = with_layers("", &["games", "tools"]);
    let device = lab.device();
    with_context(&Cancel::new(), |context| {
        let writer = device.lock("test", now()).unwrap();
        let judge = varve_format::probe::Judge::Person;
        let wish = bisect::Wish { judge, ..bisect::Wish::default() };
        bisect::begin(&device, &writer, &bisect::plan(&device, wish)?, context)
    })
    .unwrap();
    let mut search = bisect::read(&device.store).unwrap().unwrap();
    let first = at_boot(&mut search).unwrap();
    fs::write(lab.disk().join("varve/boot/bisect"), search.to_text()).unwrap();
    ran_without(&lab, "search", &search.names(&first));
    assert!(matches!(lab.after_boot(), AfterBoot::Nothing { .. }), "a person judges");
    with_context(&Cancel::new(), |context| {
        let writer = device.lock("test", now()).unwrap();
        lifecycle::finalize(&device, &writer, context)
    })
    .unwrap();
    let mut search = bisect::read(&device.store).unwrap().unwrap();
    assert_eq!((search.running.clone(), search.answers.len()), (None, 0));
    assert_eq!(at_boot(&mut search), Some(first), "the same one again");
}
