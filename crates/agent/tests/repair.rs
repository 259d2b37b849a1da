//! `varve fsck --repair`: any one thing of the running, the previous or a staged system is
//! damaged; it is found, and mended from what is here, else from a source, fetching what is
//! bad alone; and no inode is written in place.

#![allow(clippy::disallowed_methods, reason = "the disk that does damage")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{Lab, noise, now, with_context};
use varve_agent::config::Source;
use varve_agent::fsck::{Found, fsck};
use varve_agent::repair::{Repaired, repair};
use varve_sys::task::Cancel;

fn check(lab: &Lab) -> Found {
    let device = lab.device();
    with_context(&Cancel::new(), |context| fsck(&device, None, context)).unwrap()
}

fn mend_from(lab: &Lab, sources: Option<Vec<Source>>) -> Repaired {
    let mut device = lab.device();
    if let Some(sources) = sources {
        device.config.sources = sources;
    }
    let writer = device.lock("fsck --repair", now()).unwrap();
    with_context(&Cancel::new(), |context| repair(&device, &writer, None, context)).unwrap()
}

fn mend(lab: &Lab) -> Repaired {
    let repaired = mend_from(lab, None);
    assert_eq!(repaired.left, [""; 0]);
    lab.check_all();
    repaired
}

/// Flips one bit, behind the back of everybody: same length, same times.
fn rot(path: &Path) {
    let time = fs::metadata(path).unwrap().modified().unwrap();
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    file.set_modified(time).unwrap();
}

/// A device that runs r2, with r1 to go back to.
fn device(layout: &str) -> Lab {
    let lab = Lab::new().with(&format!("layout = {layout:?}"));
    lab.publish("r1");
    lab.init();
    lab.tree().file("usr/bin/new", noise(11, 200_000)).file("etc/issue", "two\n");
    lab.publish("r2");
    lab.upgrade();
    lab.boot(false);
    lab.after_boot();
    lab
}

/// The place of a path in a deployment's own layer or tree.
fn place(lab: &Lab, layout: &str, deployment: &str, path: &str) -> PathBuf {
    let varve = lab.disk().join("varve");
    match layout {
        "overlay" => varve.join("layers").join(deployment).join("tree").join(path),
        _ => varve.join("trees").join(deployment).join(path),
    }
}

const LAYOUTS: [&str; 2] = ["overlay", "hard-link"];

#[test]
fn a_shared_file_is_fetched_once_for_all_and_its_inode_left_alone() {
    for layout in LAYOUTS {
        let lab = device(layout);
        // Both releases have it, as one inode or in one layer.
        let old = place(&lab, layout, "r1", "usr/share/doc/7");
        rot(&old);
        let spoiled = fs::read(&old).unwrap();
        let found = check(&lab);
        let counts: Vec<u64> = found.deployments.iter().map(|d| d.differences).collect();
        assert_eq!(counts, [1, 1], "{layout}: {found:?}");
        let repaired = mend(&lab);
        let of = |at: usize| (repaired.deployments[at].fetched, repaired.deployments[at].copied);
        assert_eq!((of(0), of(1)), ((1, 0), (0, 1)), "{layout}: {repaired:?}");
        // The frame that holds it, of a release of 3.4 MB, and metadata.
        assert!(repaired.fetched < 600_000, "{layout}: {} bytes for a file", repaired.fetched);
        assert_eq!(fs::read(&old).unwrap(), spoiled, "what may be mounted is not written");
        assert_eq!(lab.history().iter().filter(|word| *word == "repair").count(), 2);
        assert_eq!(lab.fingerprint("incoming").len(), 1, "nothing is left there");
        // It boots, goes back, and upgrades as if nothing had been.
        assert_eq!(lab.roll_back().unwrap(), "r1");
        assert_eq!(lab.boot(false), "r1");
        lab.publish("r3");
        lab.upgrade();
        lab.check_all();
    }
}

#[test]
fn what_another_deployment_has_is_not_fetched() {
    for layout in LAYOUTS {
        let lab = device(layout);
        // The same content at another time of modification is another inode.
        let copy = lab.tree();
        copy.file("usr/bin/again", noise(11, 200_000));
        fs::File::open(copy.0.join("usr/bin/again")).unwrap().set_modified(now().into()).unwrap();
        lab.publish("r3");
        lab.upgrade();
        rot(&place(&lab, layout, "r3", "usr/bin/again"));
        let repaired = mend_from(&lab, Some(vec![Source::Directory("/nowhere".into())]));
        assert!(repaired.is_complete(), "no source is asked: {repaired:?}");
        let last = repaired.deployments.last().unwrap();
        assert_eq!((last.fetched, last.copied), (0, 1), "{layout}: {repaired:?}");
        lab.check_all();
    }
}

#[test]
fn every_kind_of_damage() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 7] = [
        ("usr/bin/new", |path| rot(path)),
        ("usr/bin/new", |path| {
            fs::File::options().write(true).open(path).unwrap().set_len(77).unwrap()
        }),
        ("usr/bin/new", |path| fs::remove_file(path).unwrap()),
        ("usr/bin/new", |path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o4777)).unwrap()
        }),
        ("usr/bin/extra", |path| fs::write(path, "never published").unwrap()),
        ("usr/bin/new", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("usr/lib", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap()),
    ];
    for layout in LAYOUTS {
        for (number, (path, harm)) in harms.iter().enumerate() {
            let lab = device(layout);
            harm(&place(&lab, layout, "r2", path));
            assert!(!check(&lab).is_clean(), "{layout}, harm {number} is not found");
            let repaired = mend(&lab);
            assert_eq!(repaired.deployments.len(), 1, "{layout}, harm {number}: {repaired:?}");
        }
    }
}

#[test]
fn records_the_selection_and_what_waits() {
    let lab = device("overlay");
    let varve = lab.disk().join("varve");
    // A manifest is fetched again.
    rot(&varve.join("deployments/r1/manifest"));
    let repaired = mend(&lab);
    assert!(repaired.deployments[0].manifest && repaired.deployments[0].differences == 0);
    // The selection is written as the boot stage would do without it.
    rot(&varve.join("boot/selection"));
    let repaired = mend(&lab);
    assert!(repaired.selection && repaired.deployments.is_empty());
    assert_eq!(lab.selection().latest.as_str(), "r2");
    // What an upgrade fetched and the disk spoiled goes.
    let name = varve_format::verity::content_digest(b"right").to_hex();
    fs::write(varve.join("incoming").join(&name), "wrong").unwrap();
    assert_eq!(mend(&lab).dropped, [name]);
    // A record is put back from its copy.
    let record = varve.join("deployments/r1/deployment.toml");
    let text = fs::read_to_string(&record).unwrap();
    let bad = text.replacen("format", "fnrmat", 1);
    for harm in [Some(bad.as_str()), Some(""), None] {
        match harm {
            Some(text) => fs::write(&record, text).unwrap(),
            None => fs::remove_file(&record).unwrap(),
        }
        assert_eq!(mend(&lab).records, ["deployments/r1/deployment.toml"]);
        assert_eq!(fs::read_to_string(&record).unwrap(), text);
    }
    // A copy that a cut left behind is written again by what changes the device next, and is
    // no news; one that names what is not here any more is not believed.
    let copy = varve.join("deployments/r1/deployment.toml.copy");
    fs::write(&copy, "torn").unwrap();
    assert!(check(&lab).is_clean());
    mend(&lab);
    assert_eq!(fs::read_to_string(&copy).unwrap(), text);
    // Without a copy it is told, and the rest is mended.
    fs::write(&record, bad).unwrap();
    fs::remove_file(&copy).unwrap();
    rot(&place(&lab, "overlay", "r2", "usr/bin/new"));
    let repaired = mend_from(&lab, None);
    assert_eq!((repaired.left.len(), repaired.deployments.len()), (1, 1), "{repaired:?}");
}

#[test]
fn from_a_stick_and_without_any_source() {
    let lab = device("hard-link");
    rot(&place(&lab, "hard-link", "r2", "usr/bin/new"));
    let before = lab.fingerprint("boot");
    let repaired = mend_from(&lab, Some(vec![Source::Directory("/nowhere".into())]));
    assert!(repaired.left[0].starts_with("r2: "), "{repaired:?}");
    assert_eq!(before, lab.fingerprint("boot"), "nothing was changed");
    let stick = lab.folder.path().join("stick");
    let status =
        std::process::Command::new("cp").arg("-r").arg(lab.repository_path()).arg(&stick).status();
    assert!(status.unwrap().success());
    let repaired = mend_from(&lab, Some(vec![Source::Directory(stick)]));
    assert!(repaired.is_complete() && repaired.deployments[0].fetched == 1, "{repaired:?}");
    lab.check_all();
}

#[test]
fn damage_in_what_is_built_upon_is_written_anew_by_an_upgrade() {
    for layout in LAYOUTS {
        let lab = device(layout);
        let old = place(&lab, layout, "r1", "usr/share/doc/7");
        let inode = fs::metadata(&old).unwrap().ino();
        rot(&old);
        lab.publish("r3");
        lab.upgrade();
        let found = check(&lab);
        let r3 = found.deployments.last().unwrap();
        assert_eq!((r3.deployment.as_str(), r3.differences), ("r3", 0), "{layout}: {found:?}");
        // In the hard-link layout a name of the bad inode would have spread it.
        let new = place(&lab, layout, "r3", "usr/share/doc/7");
        assert_ne!(fs::metadata(&new).unwrap().ino(), inode, "{layout}");
    }
}
