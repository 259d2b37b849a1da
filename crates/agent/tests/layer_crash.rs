//! The power goes at every change that adding, capturing, removing and resetting make (a
//! layer of `run` is committed as an added one): what boots is the system before or the one after, whole; what its user has is where
//! it was; and the same command finishes.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use common::{Lab, now, put_on, with_context};
use varve_agent::layer::{self, Change, LayerError};
use varve_agent::reset::{Level, reset};
use varve_agent::upgrade::Context;
use varve_agent::{Device, Error, Places, Writer, selection};
use varve_format::deployment::DeploymentRecord;
use varve_rootfs::resolve::Resolver;
use varve_testkit::crash;

fn lab() -> Lab {
    let lab = Lab::below(crash::scratch());
    lab.publish("r1");
    lab.init();
    lab
}

/// What boots next.
fn latest(device: &Device) -> DeploymentRecord {
    let latest = selection::read(&device.store).unwrap().unwrap().latest;
    device.store.deployment(&latest).unwrap().record
}

/// What a file holds in the root of a deployment, its writable top aside.
fn content(device: &Device, record: &DeploymentRecord, path: &str) -> Option<String> {
    let mut root = Resolver::new(device.store.root_dirs(record).unwrap());
    let mut text = String::new();
    root.open(path.as_bytes()).unwrap()?.read_to_string(&mut text).unwrap();
    Some(text)
}

/// Does `act`, and lays out what a cut at each of its changes leaves. `holds` judges that; it
/// says whether the act is done, as it must be once `act` was done again.
fn cut_at_each_change(
    lab: &Lab,
    act: impl Fn(&Device, &Writer, &Context<'_>),
    holds: impl Fn(&Device, &str) -> bool,
) {
    let act = |places: Places| {
        let device = Device::open(places).unwrap();
        let writer = device.lock("layer", now()).unwrap();
        varve_rootfs::stage::sweep(&device.store).unwrap();
        with_context(&Default::default(), |context| act(&device, &writer, context));
    };
    let (recording, ()) = crash::record(&lab.disk(), || act(lab.places()));
    let states = recording.each_state(1, |cut, survival, image| {
        let at = format!("cut at {cut}, {survival:?}");
        let folder = crash::scratch();
        image.materialise(folder.path());
        let places = Places { physical_root: folder.path().to_owned(), ..lab.places() };
        let device = Device::open(places.clone()).unwrap();
        holds(&device, &at);
        act(places);
        assert!(holds(&device, &at), "{at}: it is not done in the end");
    });
    assert!(states > 20, "only {states} states");
}

/// A layer that was committed before the cut is put where it belongs.
fn made<T>(
    result: Result<T, Error>,
    device: &Device,
    writer: &Writer,
    name: &str,
    context: &Context<'_>,
) {
    match result {
        Err(Error::Layer(LayerError::Taken { .. })) => put_on(device, writer, name, context),
        other => drop(other.unwrap()),
    }
}

/// A directory with a game.
fn games(lab: &Lab) -> PathBuf {
    let dir = lab.folder.path().join("games");
    fs::create_dir_all(dir.join("usr/bin")).unwrap();
    fs::write(dir.join("usr/bin/game"), "chess").unwrap();
    dir
}

fn add(lab: &Lab, device: &Device, writer: &Writer, context: &Context<'_>) {
    let (name, sources) = ("games".parse().unwrap(), [games(lab)]);
    let added = layer::add(device, writer, Some(&name), &sources, "", false, context);
    made(added, device, writer, "games", context);
}

/// The game is there, whole, if the layer is on, and else not at all.
fn has_games(device: &Device, at: &str) -> bool {
    let record = latest(device);
    let on = record.own_on().next().is_some();
    assert_eq!(content(device, &record, "usr/bin/game"), on.then(|| "chess".to_owned()), "{at}");
    on
}

#[test]
fn adding() {
    let lab = lab();
    cut_at_each_change(&lab, |d, w, context| add(&lab, d, w, context), has_games);
}

#[test]
fn removing() {
    let lab = lab();
    {
        let device = lab.device();
        let writer = device.lock("layer", now()).unwrap();
        with_context(&Default::default(), |context| add(&lab, &device, &writer, context));
    }
    lab.boot(false);
    lab.after_boot();
    let remove = |device: &Device, writer: &Writer, context: &Context<'_>| {
        let change = Change::Remove("games".to_owned());
        layer::change(device, writer, &change, false, context).unwrap();
    };
    cut_at_each_change(&lab, remove, |device, at| {
        // The deployment before has it still, whatever its user wants.
        let before = device.store.deployment(&"r1+2".parse().unwrap()).unwrap().record;
        assert_eq!(content(device, &before, "usr/bin/game").as_deref(), Some("chess"), "{at}");
        let mark = device.store.is_layer_removed(&"games".parse().unwrap()).unwrap();
        !has_games(device, at) && mark
    });
}

#[test]
fn capturing() {
    let lab = Lab::below(crash::scratch()).with("root-mode = \"persistent\"");
    lab.publish("r1");
    lab.init();
    let report = lab.folder.path().join("run/boot.toml");
    let text = fs::read_to_string(&report).unwrap();
    fs::write(&report, text.replace("\"read-only\"", "\"persistent\"")).unwrap();
    let top = lab.disk().join("varve/state/versioned/r1/!/upper/opt");
    fs::create_dir_all(&top).unwrap();
    fs::write(top.join("mine"), "mine").unwrap();
    let capture = |device: &Device, writer: &Writer, context: &Context<'_>| {
        let name = "mine".parse().unwrap();
        let captured = layer::capture(device, writer, &name, "", false, context);
        made(captured, device, writer, "mine", context);
    };
    cut_at_each_change(&lab, capture, |device, at| {
        let top = |name: &str| format!("versioned/{name}/!/upper/opt/mine");
        let state = device.store.state();
        // What runs has it in its top, whatever comes.
        assert_eq!(state.read(top("r1"), 99).unwrap(), b"mine", "{at}");
        let record = latest(device);
        if record.own.is_empty() {
            assert_eq!(record.name.as_str(), "r1", "{at}");
            return false;
        }
        assert_eq!(content(device, &record, "opt/mine").as_deref(), Some("mine"), "{at}");
        let empty = state.read_opt(top(record.name.as_str()), 99);
        assert!(empty.is_err() || empty.unwrap().is_none(), "{at}: it is in the new top too");
        true
    });
}

#[test]
fn resetting() {
    let lab = lab();
    {
        let device = lab.device();
        let writer = device.lock("layer", now()).unwrap();
        with_context(&Default::default(), |context| add(&lab, &device, &writer, context));
    }
    let runs = lab.boot(false);
    lab.after_boot();
    let etc = |name: &str| format!("versioned/{name}/etc/upper/mine");
    fs::write(lab.disk().join("varve/state").join(etc(&runs)), "mine").unwrap();
    let back = |device: &Device, writer: &Writer, context: &Context<'_>| {
        reset(device, writer, Level::All, false, context).unwrap();
    };
    cut_at_each_change(&lab, back, |device, at| {
        let state = device.store.state();
        assert_eq!(state.read(etc(&runs), 99).unwrap(), b"mine", "{at}: what runs keeps its own");
        let record = latest(device);
        let on = has_games(device, at);
        let is_new = record.name.as_str() != runs;
        assert_eq!(is_new, !on, "{at}: half of it is reset");
        if is_new {
            let mine = state.read_opt(etc(record.name.as_str()), 99);
            assert!(mine.is_err() || mine.unwrap().is_none(), "{at}");
        }
        is_new
    });
}
