//! The publisher's whole life with a repository, on real trees and real files.
#![allow(clippy::disallowed_methods, reason = "test data, kept by no device")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use varve_build::{BuildOptions, Source};
use varve_publish::{
    InitOptions, Keep, KeyDirs, PathChangeKind, PublishError, Repository, Role, RoleOptions,
    RotateOptions, SigningKey,
};
use varve_sys::Dir;
use varve_sys::task::{Cancel, Silent};

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
        Self::with(&InitOptions::default())
    }

    fn with(options: &InitOptions) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let keys = KeyDirs::below(&temp.path().join("keys"));
        let repository =
            Repository::init(&temp.path().join("repository"), &keys, options, day(0)).unwrap();
        Self { temp, keys, repository }
    }

    fn build(&self, name: &str, files: &[(&str, &[u8])]) {
        let tree = self.temp.path().join("trees").join(name);
        for (path, bytes) in files {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let options = BuildOptions::new(name.parse().unwrap());
        let repository = Dir::open(self.repository.path()).unwrap();
        varve_build::build(
            Source::open(&tree).unwrap(),
            &repository,
            &options,
            &Silent,
            &Cancel::new(),
        )
        .unwrap();
    }

    fn publish(&self, name: &str, number: i64) {
        self.repository
            .publish(&name.parse().unwrap(), "stable", None, &self.keys, day(number), false)
            .unwrap();
    }

    fn release(&self, name: &str, files: &[(&str, &[u8])], number: i64) {
        self.build(name, files);
        self.publish(name, number);
    }

    fn check(&self, number: i64) -> varve_publish::CheckReport {
        self.repository.check(day(number), &Silent, &Cancel::new()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.repository
            .list()
            .unwrap()
            .into_iter()
            .map(|release| release.name.to_string())
            .collect()
    }

    fn file(&self, path: &str) -> PathBuf {
        self.repository.path().join(path)
    }

    /// Every file below the repository and its bytes.
    fn picture(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn walk(dir: &Path, out: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, out);
                } else {
                    out.insert(path.clone(), fs::read(&path).unwrap());
                }
            }
        }
        let mut out = BTreeMap::new();
        walk(self.repository.path(), &mut out);
        out
    }
}

#[test]
fn releases_are_built_published_and_checked() {
    let world = World::new();
    world.release("a", &[("etc/x", b"one"), ("etc/y", &[7; 100_000])], 1);
    world.release("b", &[("etc/x", b"two"), ("etc/y", &[7; 100_000])], 2);
    assert_eq!(world.names(), ["b", "a"]);
    let report = world.check(3);
    assert_eq!(report.problems, []);
    assert_eq!((report.releases, report.packs, report.contents), (2, 2, 3));
    assert!(world.repository.pending().unwrap().is_empty());
    let release = &world.repository.list().unwrap()[0];
    assert_eq!((release.sequence, release.channel.as_str()), (2, "stable"));
    assert_eq!(release.published, Some(day(2)));
}

#[test]
fn a_dry_run_writes_nothing() {
    let world = World::new();
    world.release("a", &[("x", b"one")], 1);
    world.build("b", &[("x", b"two")]);
    let before = world.picture();
    let World { repository, keys, .. } = &world;
    repository.publish(&"b".parse().unwrap(), "stable", None, keys, day(2), true).unwrap();
    repository.prune(&Keep::Newest(0), keys, day(2), true).unwrap();
    repository.refresh(Some(&Role::ALL), keys, day(2), true).unwrap();
    let dry = RotateOptions { dry_run: true, ..RotateOptions::default() };
    repository.rotate(Role::Root, &dry, keys, day(2)).unwrap();
    assert_eq!(world.picture(), before);
}

#[test]
fn what_cannot_be_published_is_not() {
    let world = World::new();
    let World { repository, keys, .. } = &world;
    world.release("a", &[("x", b"one")], 1);
    let publish = |name: &str, sequence| {
        repository.publish(&name.parse().unwrap(), "stable", sequence, keys, day(2), false)
    };
    assert!(matches!(publish("a", None), Err(PublishError::Published { .. })));
    assert!(matches!(publish("zzz", None), Err(PublishError::NotBuilt { .. })));
    world.build("b", &[("x", b"two")]);
    assert!(matches!(publish("b", Some(1)), Err(PublishError::Sequence { newest: 1, .. })));
    // A pack that is not whole.
    let record = &repository.pending().unwrap()[0];
    let pack = world.file(&record.packs[0].path());
    let bytes = fs::read(&pack).unwrap();
    fs::write(&pack, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(publish("b", None), Err(PublishError::Stored { .. })));
    fs::write(&pack, bytes).unwrap();
    // Without the keys.
    let elsewhere = KeyDirs::below(&world.temp.path().join("nowhere"));
    let error = repository
        .publish(&"b".parse().unwrap(), "stable", None, &elsewhere, day(2), false)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the targets role needs signatures of 1 of its keys; 0 of them are in"),
        "{error}"
    );
    assert_eq!(world.names(), ["a"]);
    publish("b", Some(9)).unwrap();
    assert_eq!(repository.list().unwrap()[0].sequence, 9);
}

#[test]
fn only_one_writer_at_a_time() {
    let world = World::new();
    let held = world.repository.lock().unwrap();
    let other = Repository::open(world.repository.path()).unwrap();
    assert!(matches!(other.lock(), Err(PublishError::Locked { .. })));
    drop(held);
    other.lock().unwrap();
}

#[test]
fn init_refuses_what_would_do_harm() {
    let world = World::new();
    let again =
        Repository::init(world.repository.path(), &world.keys, &InitOptions::default(), day(0));
    assert!(matches!(again, Err(PublishError::Exists { .. })));
    let mut options = InitOptions::default();
    options.roles[0] = RoleOptions { keys: 1, threshold: 2 };
    let path = world.temp.path().join("other");
    let impossible = Repository::init(&path, &world.keys, &options, day(0));
    assert!(matches!(impossible, Err(PublishError::Threshold { role: Role::Root, .. })));
    assert!(matches!(Repository::open(&path), Err(PublishError::NotARepository { .. })));
}

#[test]
fn keys_are_their_owners_alone_and_root_may_lie_elsewhere() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    for role in Role::ALL {
        let keys = SigningKey::load_all(&world.keys, role).unwrap();
        assert_eq!(keys.len(), 1);
        let mode = fs::metadata(keys[0].path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::metadata(world.keys.of(role)).unwrap().permissions().mode() & 0o777, 0o700);
    }
    // The root's keys go into a drawer: everything but rotation works without them.
    let drawer = world.temp.path().join("drawer");
    fs::rename(world.keys.of(Role::Root), &drawer).unwrap();
    world.release("a", &[("x", b"one")], 1);
    world.repository.refresh(None, &world.keys, day(20), false).unwrap();
    let rotate = |keys: &KeyDirs| {
        world.repository.rotate(Role::Timestamp, &RotateOptions::default(), keys, day(21))
    };
    assert!(matches!(rotate(&world.keys), Err(PublishError::MissingKeys { role: Role::Root, .. })));
    assert_eq!(
        SigningKey::load_all(&world.keys, Role::Timestamp).unwrap().len(),
        1,
        "no key was made"
    );
    rotate(&KeyDirs { root: drawer, online: world.keys.online.clone() }).unwrap();
    assert_eq!(world.check(21).problems, []);
}

#[test]
fn every_role_rotates_also_when_its_key_is_lost() {
    let world = World::new();
    world.release("a", &[("x", b"one")], 1);
    for (number, role) in Role::ALL.into_iter().enumerate() {
        let old = SigningKey::load_all(&world.keys, role).unwrap();
        let options =
            RotateOptions { keys: Some(3), threshold: Some(2), ..RotateOptions::default() };
        let rotation = world.repository.rotate(role, &options, &world.keys, day(2)).unwrap();
        assert_eq!(rotation.new_keys.len(), 3);
        assert_eq!(rotation.old_keys, [old[0].id()]);
        assert!(!old[0].path().exists());
        assert!(
            world.keys.of(role).join("retired").join(old[0].path().file_name().unwrap()).exists()
        );
        assert!(world.file(&format!("metadata/{}.root.json", number + 2)).exists());
        assert_eq!(world.check(2).problems, []);
    }
    for role in [Role::Targets, Role::Snapshot, Role::Timestamp] {
        fs::remove_dir_all(world.keys.of(role)).unwrap();
        let honest = world.repository.rotate(role, &RotateOptions::default(), &world.keys, day(3));
        assert!(matches!(honest, Err(PublishError::MissingKeys { .. })), "{role}");
        fs::remove_dir_all(world.keys.of(role)).unwrap();
        let lost = RotateOptions { lost: true, ..RotateOptions::default() };
        world.repository.rotate(role, &lost, &world.keys, day(3)).unwrap();
        assert_eq!(world.check(3).problems, [], "{role}");
    }
    world.release("b", &[("x", b"two")], 4);
    assert_eq!(world.names(), ["b", "a"]);
}

#[test]
fn refresh_signs_what_is_due() {
    let world = World::new();
    let versions = || -> Vec<_> {
        world.repository.roles().unwrap().into_iter().map(|role| role.version).collect()
    };
    world.repository.refresh(None, &world.keys, day(1), false).unwrap();
    assert_eq!(versions(), [1, 1, 1, 2]);
    world.repository.refresh(None, &world.keys, day(60), false).unwrap();
    assert_eq!(versions(), [1, 1, 2, 3], "half of the snapshot's time is over");
    world.repository.refresh(None, &world.keys, day(200), false).unwrap();
    assert_eq!(versions(), [1, 2, 3, 4]);
    world.repository.refresh(Some(&[Role::Root]), &world.keys, day(200), false).unwrap();
    assert_eq!(versions(), [2, 2, 3, 4]);
    assert_eq!(world.check(200).problems, []);
    let expired = world.check(2000).problems;
    assert_eq!(expired.len(), 4);
    assert!(expired[3].problem.contains("run `varve-repo refresh`"), "{expired:?}");
}

#[test]
fn prune_deletes_what_nothing_names_and_nothing_else() {
    let world = World::new();
    world.release("a", &[("x", b"only in a"), ("y", &[1; 50_000])], 1);
    world.release("b", &[("x", b"only in b"), ("y", &[1; 50_000])], 2);
    world.release("c", &[("x", b"only in c")], 3);
    world.build("d", &[("x", b"pending")]);
    let record_a = world.repository.record(&"a".parse().unwrap()).unwrap();
    let record_c = world.repository.record(&"c".parse().unwrap()).unwrap();
    fs::write(world.file("packs/notes.txt"), b"the publisher's own").unwrap();
    let keep = Keep::AllBut(vec!["c".parse().unwrap()]);
    let plan = world.repository.prune(&keep, &world.keys, day(4), true).unwrap();
    let done = world.repository.prune(&keep, &world.keys, day(4), false).unwrap();
    assert_eq!(plan, done);
    assert_eq!(world.names(), ["b", "a"]);
    assert!(!world.file(&record_c.packs[0].path()).exists());
    assert!(world.file("packs/notes.txt").exists());
    // b still needs a's pack.
    world.repository.prune(&Keep::Newest(1), &world.keys, day(5), false).unwrap();
    assert_eq!(world.names(), ["b"]);
    assert!(world.file(&record_a.packs[0].path()).exists());
    assert_eq!(world.check(5).problems, []);
    assert_eq!(world.check(5).unnamed, Vec::<String>::new());
    // What is pending was not touched, and can be published.
    world.publish("d", 6);
    assert_eq!(world.check(6).problems, []);
    assert!(world.file("metadata/1.root.json").exists());
    let unknown = Keep::AllBut(vec!["zzz".parse().unwrap()]);
    assert!(matches!(
        world.repository.prune(&unknown, &world.keys, day(7), false),
        Err(PublishError::NoSuchRelease { .. })
    ));
}

#[test]
fn check_finds_every_kind_of_damage() {
    let world = World::new();
    let noise: Vec<u8> =
        (0..300_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    world.release("a", &[("x", b"one"), ("y", &noise)], 1);
    let record = world.repository.record(&"a".parse().unwrap()).unwrap();
    let target = fs::read_dir(world.file("targets")).unwrap().next().unwrap().unwrap().path();
    let files = [
        world.file("metadata/timestamp.json"),
        world.file("metadata/2.snapshot.json"),
        world.file("metadata/2.targets.json"),
        world.file("metadata/1.root.json"),
        target,
        world.file(&varve_format::release::StoredManifest::path(&record.digest)),
        world.file(&record.packs[0].index_path()),
        world.file(&record.packs[0].path()),
    ];
    for file in files {
        let good = fs::read(&file).unwrap();
        let mut changed = good.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        for bad in [Some(changed), Some(good[..good.len() / 2].to_vec()), None] {
            match &bad {
                Some(bytes) => fs::write(&file, bytes).unwrap(),
                None => fs::remove_file(&file).unwrap(),
            }
            let problems =
                world.repository.check(day(2), &Silent, &Cancel::new()).map(|r| r.problems);
            assert!(problems.as_ref().map_or(true, |p| !p.is_empty()), "{}", file.display());
            fs::write(&file, &good).unwrap();
        }
    }
    assert_eq!(world.check(2).problems, []);
}

#[test]
fn diff_tells_packages_and_paths() {
    let world = World::new();
    let status = |a: &str, extra: &str| {
        format!(
            "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: {a}\n\n\
             Package: same\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n{extra}"
        )
    };
    let new = "\nPackage: fresh\nStatus: install ok installed\nArchitecture: all\nVersion: 0.1\n";
    let list = b"/.\n/usr\n/usr/bin\n/usr/bin/tool\n";
    world.release(
        "old",
        &[
            ("var/lib/dpkg/status", status("1.0", "").as_bytes()),
            ("var/lib/dpkg/info/a.list", list),
            ("usr/bin/tool", b"tool of 1.0"),
            ("etc/gone", b"x"),
        ],
        1,
    );
    world.release(
        "new",
        &[
            ("var/lib/dpkg/status", status("1.1", new).as_bytes()),
            ("var/lib/dpkg/info/a.list", list),
            ("usr/bin/tool", b"tool of version 1.1"),
            ("etc/made", b"by hand"),
        ],
        2,
    );
    let diff = world.repository.diff(&"old".parse().unwrap(), &"new".parse().unwrap()).unwrap();
    let packages = diff.packages.unwrap();
    let rows: Vec<_> = packages
        .iter()
        .map(|p| (p.name.as_str(), p.from.as_deref(), p.to.as_deref(), p.new_content))
        .collect();
    assert_eq!(rows, [("a", Some("1.0"), Some("1.1"), 19), ("fresh", None, Some("0.1"), 0)]);
    let path = |wanted: &str| {
        diff.paths.iter().find(|p| p.path.ends_with(wanted)).map(|p| (p.kind, p.from, p.to))
    };
    assert_eq!(path("etc/gone"), Some((PathChangeKind::Removed, 1, 0)));
    assert_eq!(path("etc/made"), Some((PathChangeKind::Added, 0, 7)));
    assert_eq!(path("usr/bin/tool"), None, "it belongs to a package");
    assert_eq!(diff.size.new_contents, 3);
    // Without dpkg's database: by path.
    world.release("plain", &[("etc/made", b"by hand")], 3);
    let diff = world.repository.diff(&"new".parse().unwrap(), &"plain".parse().unwrap()).unwrap();
    assert!(diff.packages.is_none() && diff.paths.iter().any(|p| p.path.ends_with("usr/bin/tool")));
    let none = world.repository.diff(&"new".parse().unwrap(), &"zzz".parse().unwrap());
    assert!(matches!(none, Err(PublishError::NoSuchRelease { .. })));
}
