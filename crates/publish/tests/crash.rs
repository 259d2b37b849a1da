//! A power cut after every change of publishing, rotating and pruning: readers see the old
//! repository or the new, whole, and the publisher can go on. Each test also leaves out every
//! sync in turn, and says which of them it guards.
#![allow(clippy::disallowed_methods, reason = "test data, kept by no device")]

use std::path::Path;

use jiff::Timestamp;
use varve_build::{BuildOptions, Source};
use varve_publish::{InitOptions, Keep, KeyDirs, Repository, Role, RotateOptions};
use varve_sys::Dir;
use varve_sys::task::{Cancel, Silent};
use varve_testkit::crash::{self, Image, Recording, Survival};

fn day(number: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + number * 86_400).unwrap()
}

struct World {
    temp: tempfile::TempDir,
    keys: KeyDirs,
    repository: Repository,
}

impl World {
    fn new() -> Self {
        let temp = crash::scratch();
        let keys = KeyDirs::below(&temp.path().join("keys"));
        let path = temp.path().join("repository");
        let repository = Repository::init(&path, &keys, &InitOptions::default(), day(0)).unwrap();
        Self { temp, keys, repository }
    }

    fn build(&self, name: &str, text: &str) {
        let tree = self.temp.path().join("trees").join(name);
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::write(tree.join("file"), text).unwrap();
        let options = BuildOptions::new(name.parse().unwrap());
        let dir = Dir::open(self.repository.path()).unwrap();
        let source = Source::open(&tree).unwrap();
        varve_build::build(source, &dir, &options, &Silent, &Cancel::new()).unwrap();
    }

    fn publish(&self, name: &str) {
        let World { repository, keys, .. } = self;
        repository.publish(&name.parse().unwrap(), "stable", None, keys, day(1), false).unwrap();
    }
}

/// What a reader finds: the releases, or what is wrong.
fn read(image: &Image) -> Result<Vec<String>, String> {
    let folder = crash::scratch();
    image.materialise(folder.path());
    whole(folder.path())
}

fn whole(path: &Path) -> Result<Vec<String>, String> {
    let repository = Repository::open(path).map_err(|error| error.to_string())?;
    let report =
        repository.check(day(1), &Silent, &Cancel::new()).map_err(|error| error.to_string())?;
    if let Some(problem) = report.problems.first() {
        return Err(format!("{}: {}", problem.what, problem.problem));
    }
    let releases = repository.list().map_err(|error| error.to_string())?;
    Ok(releases.into_iter().map(|release| release.name.to_string()).collect())
}

/// Every state is one of `states`, and when all is done it is the last of them.
fn check(recording: &Recording, states: &[&[&str]]) -> Result<(), String> {
    let mut failed = Ok(());
    recording.each_state(2, |cut, survival, image| {
        let found = read(image);
        let known = found.as_ref().is_ok_and(|names| states.iter().any(|state| state == names));
        if failed.is_ok() && !known {
            failed = Err(format!("{found:?} after {cut} with {survival:?}"));
        }
    });
    failed?;
    let last = read(&recording.image(recording.len(), Survival::SyncedOnly))?;
    if states.last().is_some_and(|state| *state == last) {
        Ok(())
    } else {
        Err(format!("{last:?} when all is done"))
    }
}

/// The syncs without which `check` still passes.
fn unguarded(recording: &Recording, states: &[&[&str]]) -> Vec<String> {
    recording
        .syncs()
        .into_iter()
        .filter(|sync| check(&recording.without_sync(*sync), states).is_ok())
        .map(|sync| format!("{:?}", recording.event(sync)))
        .collect()
}

#[test]
fn publishing() {
    let world = World::new();
    world.build("a", "one");
    world.publish("a");
    world.build("b", "two");
    let (recording, ()) = crash::record(world.repository.path(), || world.publish("b"));
    let states: [&[&str]; 2] = [&["a"], &["b", "a"]];
    check(&recording, &states).unwrap();
    // The names of targets.json and snapshot.json are made durable twice: the sync of the
    // directory that follows either file covers both only when it comes after both.
    let loose = unguarded(&recording, &states);
    assert!(loose.iter().all(|event| event.starts_with("SyncDirectory")), "{loose:?}");
    assert!(loose.len() <= 2, "{loose:?}");
}

#[test]
fn rotating_every_role() {
    for role in Role::ALL {
        let world = World::new();
        world.build("a", "one");
        world.publish("a");
        let rotate = || {
            world.repository.rotate(role, &RotateOptions::default(), &world.keys, day(1)).unwrap();
        };
        let (recording, ()) = crash::record(world.repository.path(), rotate);
        check(&recording, &[&["a"]]).unwrap_or_else(|why| panic!("{role}: {why}"));
    }
}

#[test]
fn pruning() {
    let world = World::new();
    for (name, text) in [("a", "one"), ("b", "two"), ("c", "three")] {
        world.build(name, text);
        world.publish(name);
    }
    let prune = || {
        world.repository.prune(&Keep::Newest(1), &world.keys, day(1), false).unwrap();
    };
    let (recording, ()) = crash::record(world.repository.path(), prune);
    check(&recording, &[&["c", "b", "a"], &["c"]]).unwrap();
    // The next prune deletes what a cut left.
    recording.each_state(1, |cut, survival, image| {
        let folder = crash::scratch();
        image.materialise(folder.path());
        let repository = Repository::open(folder.path()).unwrap();
        repository.prune(&Keep::Newest(1), &world.keys, day(1), false).unwrap();
        let names = whole(folder.path());
        assert_eq!(names.as_deref(), Ok(&["c".to_owned()][..]), "after {cut} with {survival:?}");
        let packs = std::fs::read_dir(folder.path().join("packs")).unwrap().count();
        assert_eq!(packs, 2, "one pack and its index");
    });
}
