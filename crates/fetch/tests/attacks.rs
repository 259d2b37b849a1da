//! The attacks that The Update Framework lists, each by a real hostile repository on a real
//! server, by a thief who holds real keys. Each is refused with its reason, and what the
//! device trusted before is untouched to the byte. `docs/security.md` names these tests.
//!
//! More of the same, by damage and by bad links: `trust.rs` and `contents.rs`.
#![allow(clippy::disallowed_methods, reason = "test data, kept by no device")]

mod common;

use std::collections::HashMap;
use std::num::NonZeroU64;

use aws_lc_rs::rand::SystemRandom;
use common::{World, day, hasty, http, names, noise, refresh, refused};
use jiff::Timestamp;
use tough::key_source::KeySource;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{
    Hashes, Metafile, Role as TufRole, Root, Signature, Signed, Snapshot, Targets,
    Timestamp as TimestampRole,
};
use varve_fetch::contents::{self, ContentsError};
use varve_fetch::metadata::DocumentError;
use varve_fetch::{FetchError, Refusal, Sources, Trust, TrustError, pack_index};
use varve_format::Sha256Digest;
use varve_publish::{InitOptions, Role, RoleOptions, RotateOptions, SigningKey};
use varve_sys::task::{Cancel, Silent};
use varve_testkit::faulty::Server;

/// The repository behind an HTTP server that serves whatever lies there.
fn served(world: &World) -> (Server, Sources) {
    let server = Server::good(&world.path());
    let sources = Sources::new(vec![http(&server.url)], hasty());
    (server, sources)
}

/// Every role with two signatures of three keys.
fn two_of_three() -> InitOptions {
    InitOptions { roles: [RoleOptions { keys: 3, threshold: 2 }; 4], ..InitOptions::default() }
}

// ---- A thief ----

/// Whoever holds these keys, of whatever role, and signs what the roots' tools never would.
struct Thief {
    keys: Vec<(Role, SigningKey)>,
}

impl Thief {
    /// Steals `count` keys of each of these roles.
    fn steals(world: &World, roles: &[Role], count: usize) -> Self {
        let of = |role: &Role| {
            let keys = SigningKey::load_all(&world.keys, *role).unwrap();
            assert!(keys.len() >= count);
            keys.into_iter().take(count).map(|key| (*role, key)).collect::<Vec<_>>()
        };
        Self { keys: roles.iter().flat_map(of).collect() }
    }

    fn of(&self, role: Role) -> Vec<&SigningKey> {
        self.keys.iter().filter(|(of, _)| *of == role).map(|(_, key)| key).collect()
    }
}

fn sign<T: TufRole + serde::Serialize>(document: T, keys: &[&SigningKey]) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let data = document.canonical_form().unwrap();
    let sign = |key: &&SigningKey| {
        let signer = runtime.block_on(key.as_sign()).unwrap();
        let keyid: Decoded<Hex> = signer.tuf_key().key_id().unwrap();
        let sig = runtime.block_on(signer.sign(&data, &SystemRandom::new())).unwrap();
        Signature { keyid, sig: sig.into() }
    };
    let signatures = keys.iter().map(sign).collect();
    serde_json::to_vec(&Signed { signed: document, signatures }).unwrap()
}

/// The newest documents of a repository, to be changed and signed by a thief.
struct Forgery {
    root: Root,
    targets: Targets,
    snapshot: Snapshot,
    timestamp: TimestampRole,
}

fn version(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

fn describe(bytes: &[u8], version: NonZeroU64) -> Metafile {
    let sha256 = Sha256Digest::of(bytes).0.to_vec().into();
    let hashes = Some(Hashes { sha256, _extra: HashMap::new() });
    Metafile { length: Some(bytes.len() as u64), hashes, version, _extra: HashMap::new() }
}

impl Forgery {
    fn of(world: &World) -> Self {
        fn read<T: serde::de::DeserializeOwned>(world: &World, file: &str) -> T {
            serde_json::from_slice::<Signed<T>>(&world.read(&format!("metadata/{file}")))
                .unwrap()
                .signed
        }
        let root = (1..).take_while(|n| world.file(&format!("metadata/{n}.root.json")).exists());
        let root: Root = read(world, &format!("{}.root.json", root.last().unwrap()));
        let timestamp: TimestampRole = read(world, "timestamp.json");
        let at = timestamp.meta["snapshot.json"].version;
        let snapshot: Snapshot = read(world, &format!("{at}.snapshot.json"));
        let at = snapshot.meta["targets.json"].version;
        Self { targets: read(world, &format!("{at}.targets.json")), root, snapshot, timestamp }
    }

    /// A newer version of everything.
    fn newer(mut self, by: u64) -> Self {
        let next = |at: NonZeroU64| at.checked_add(by).unwrap();
        self.targets.version = next(self.targets.version);
        self.snapshot.version = next(self.snapshot.version);
        self.timestamp.version = next(self.timestamp.version);
        self
    }

    /// Signs the roles below the root and puts them in the place of the good ones.
    fn write(mut self, world: &World, thief: &Thief) {
        let at = self.targets.version;
        let bytes = sign(self.targets, &thief.of(Role::Targets));
        world.write(&format!("metadata/{at}.targets.json"), &bytes);
        self.snapshot.meta.insert("targets.json".into(), describe(&bytes, at));
        Self::write_snapshot(world, self.snapshot, self.timestamp, thief);
    }

    fn write_snapshot(
        world: &World,
        snapshot: Snapshot,
        mut timestamp: TimestampRole,
        thief: &Thief,
    ) {
        let at = snapshot.version;
        let bytes = sign(snapshot, &thief.of(Role::Snapshot));
        world.write(&format!("metadata/{at}.snapshot.json"), &bytes);
        timestamp.meta.insert("snapshot.json".into(), describe(&bytes, at));
        world.write("metadata/timestamp.json", &sign(timestamp, &thief.of(Role::Timestamp)));
    }
}

const ONLINE: [Role; 3] = [Role::Targets, Role::Snapshot, Role::Timestamp];

/// A repository with release "a", known to the device, over HTTP.
fn known(options: &InitOptions) -> (World, Server, Sources) {
    let world = World::with(options);
    world.release("a", &[("usr/bin/a", b"the publisher's")], 4096, day(0));
    let (server, sources) = served(&world);
    assert_eq!(names(&refresh(&world, &sources, day(1)).unwrap()), ["a"]);
    (world, server, sources)
}

// ---- Arbitrary software ----

/// A mirror that replaces any one file of a release by one of its own: nothing of it is
/// used, and nothing gets a name in incoming/.
#[test]
fn arbitrary_software_from_a_mirror() {
    let (world, _server, sources) = known(&InitOptions::default());
    let mut files = [("usr/bin/a", &b"the publisher's"[..])];
    let cancel = Cancel::new();
    let metadata = refresh(&world, &sources, day(1)).unwrap();
    let name = "a".parse().unwrap();
    let good = metadata.record(&name, &sources, &cancel).unwrap();
    // What the mirror would like the device to run, under the same names.
    files[0].1 = b"the mirror's own";
    let evil = World::new();
    let evil_record = evil.build("a", &files, 4096);
    let refused = |error: DocumentError, file: &str| {
        let text = error.to_string();
        assert!(matches!(&error, DocumentError::Fetch(error) if error.is_damage()), "{text}");
        assert!(text.starts_with(&format!("cannot fetch {file}")), "{text}");
    };

    let path = format!("targets/{}.a.json", Sha256Digest::of(&good.to_bytes()));
    replaced(&world, &path, &evil_record.to_bytes(), || {
        refused(metadata.record(&name, &sources, &cancel).unwrap_err(), &path);
    });
    let path = format!("manifests/{}.zst", good.digest);
    let theirs = evil.read(&format!("manifests/{}.zst", evil_record.digest));
    replaced(&world, &path, &theirs, || {
        refused(varve_fetch::manifest(&good, &sources, &cancel).unwrap_err(), &path);
    });
    let (pack, evil_pack) = (good.packs[0], evil_record.packs[0]);
    replaced(&world, &pack.index_path(), &evil.read(&evil_pack.index_path()), || {
        refused(pack_index(&pack, &sources, &cancel).unwrap_err(), &pack.index_path());
    });
    let index = pack_index(&pack, &sources, &cancel).unwrap();
    replaced(&world, &pack.path(), &evil.read(&evil_pack.path()), || {
        let wanted = index.contents().iter().map(|content| (content.digest, content.size));
        let packs = vec![(pack, index.clone())];
        let plan = contents::plan(wanted, packs, &world.incoming, &sources).unwrap();
        let result = contents::fetch(&plan, &sources, &world.incoming, &Silent, &cancel).1;
        let error = result.unwrap_err();
        assert!(
            matches!(&error, ContentsError::Fetch(error @ FetchError::Failed { .. }) if error.is_damage()),
            "{error}"
        );
        assert!(error.to_string().contains("damaged, changed or forged"), "{error}");
        assert!(World::picture(&world.incoming).is_empty());
    });
}

fn replaced(world: &World, path: &str, bytes: &[u8], act: impl FnOnce()) {
    let good = world.read(path);
    world.write(path, bytes);
    act();
    world.write(path, &good);
}

/// Two releases' manifests in each other's places: signed both, and not what is named.
#[test]
fn mix_and_match_of_releases() {
    let (world, _server, sources) = known(&InitOptions::default());
    world.release("b", &[("usr/bin/a", b"newer"), ("etc/b", b"b")], 4096, day(1));
    let cancel = Cancel::new();
    let metadata = refresh(&world, &sources, day(1)).unwrap();
    let path = |name: &str| {
        let record = metadata.record(&name.parse().unwrap(), &sources, &cancel).unwrap();
        format!("manifests/{}.zst", record.digest)
    };
    let (a, b) = (path("a"), path("b"));
    let record = metadata.record(&"b".parse().unwrap(), &sources, &cancel).unwrap();
    replaced(&world, &b, &world.read(&a), || {
        let error = varve_fetch::manifest(&record, &sources, &cancel).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot fetch {b}")), "{error}");
    });
}

// ---- Rollback, of each role ----

#[test]
fn rollback_of_the_snapshot() {
    let (world, _server, sources) = known(&InitOptions::default());
    let old = Forgery::of(&world);
    world.release("b", &[("usr/bin/a", b"mended")], 4096, day(1));
    refresh(&world, &sources, day(1)).unwrap();
    // The timestamp's key was stolen: a newer timestamp names the old snapshot.
    let thief = Thief::steals(&world, &[Role::Timestamp], 1);
    let mut timestamp = Forgery::of(&world).newer(1).timestamp;
    timestamp.meta = old.timestamp.meta;
    world.write("metadata/timestamp.json", &sign(timestamp, &thief.of(Role::Timestamp)));
    let (reason, text) = refused(&world, &sources, day(1));
    assert_eq!(reason, Refusal::OlderThanSeen { role: "snapshot".into(), offered: 2, seen: 3 });
    let end = "older than seen: the snapshot metadata is version 2, this device has seen version 3";
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn rollback_of_the_targets() {
    let (world, _server, sources) = known(&InitOptions::default());
    let old = Forgery::of(&world);
    world.release("b", &[("usr/bin/a", b"mended")], 4096, day(1));
    refresh(&world, &sources, day(1)).unwrap();
    // The keys that lie on the server were stolen: all is newer but the list of releases.
    let thief = Thief::steals(&world, &[Role::Snapshot, Role::Timestamp], 1);
    let mut forged = Forgery::of(&world).newer(1);
    forged.snapshot.meta = old.snapshot.meta;
    Forgery::write_snapshot(&world, forged.snapshot, forged.timestamp, &thief);
    let (reason, _) = refused(&world, &sources, day(1));
    assert_eq!(reason, Refusal::OlderThanSeen { role: "targets".into(), offered: 2, seen: 3 });
}

#[test]
fn rollback_of_the_root() {
    let (world, _server, sources) = known(&InitOptions::default());
    let old_timestamp = world.read("metadata/timestamp.json");
    for role in [Role::Timestamp, Role::Root] {
        world.repository.rotate(role, &RotateOptions::default(), &world.keys, day(1)).unwrap();
    }
    assert_eq!(refresh(&world, &sources, day(1)).unwrap().root_version, 3);
    let mut root = Forgery::of(&world).root;
    // The repository as it was: the device goes on from the root that it has.
    for number in [2, 3] {
        std::fs::remove_file(world.file(&format!("metadata/{number}.root.json"))).unwrap();
    }
    replaced(&world, "metadata/timestamp.json", &old_timestamp, || {
        let (reason, _) = refused(&world, &sources, day(1));
        assert!(matches!(&reason, Refusal::BadSignature { role, .. } if role == "timestamp"));
    });
    // A thief with the root's present keys offers an older one under the next name.
    let thief = Thief::steals(&world, &[Role::Root], 1);
    root.version = version(2);
    world.write("metadata/4.root.json", &sign(root, &thief.of(Role::Root)));
    let (reason, _) = refused(&world, &sources, day(1));
    assert_eq!(reason, Refusal::OlderThanSeen { role: "root".into(), offered: 2, seen: 3 });
}

// ---- Freeze ----

#[test]
fn freeze_at_the_expiry_of_each_role() {
    for role in Role::ALL {
        let mut options = InitOptions::default();
        options.settings.set_days(role, 2);
        let (world, _server, sources) = known(&options);
        let (reason, text) = refused(&world, &sources, day(3));
        let expected = Refusal::Expired { role: role.to_string(), at: day(2), now: day(3) };
        assert_eq!(reason, expected);
        let said = format!("refused: expired: the {role} metadata was valid until ");
        assert!(text.contains(&said), "{text}");
        // Having been frozen leaves nothing behind that stands in the way.
        world.repository.refresh(Some(&[role]), &world.keys, day(3), false).unwrap();
        refresh(&world, &sources, day(3)).unwrap();
    }
}

/// A mirror that goes on showing an old, whole repository, to a device whose clock was
/// turned back: the newest time ever seen ends it.
#[test]
fn freeze_by_a_clock_that_jumps_back() {
    let (world, _server, sources) = known(&InitOptions::default());
    world.repository.refresh(None, &world.keys, day(20), false).unwrap();
    let seen = refresh(&world, &sources, day(40)).unwrap();
    assert!(!seen.clock_behind);
    for clock in [Timestamp::UNIX_EPOCH, day(1), day(40)] {
        let seen = refresh(&world, &sources, clock).unwrap();
        assert_eq!((seen.time, seen.clock_behind), (day(40), clock < day(40)));
    }
    let (reason, text) = refused(&world, &sources, day(51));
    assert!(matches!(reason, Refusal::Expired { now, .. } if now == day(51)), "{text}");
    // What was refused at a time is no proof that it is that time.
    assert_eq!(refresh(&world, &sources, day(1)).unwrap().time, day(40));
}

// ---- Extraneous dependencies ----

/// A mirror cannot make a device take more than the release: neither by a longer record,
/// nor by files beside it. And a publisher's own pack that nothing needs is not asked for.
#[test]
fn extraneous_dependencies() {
    let (world, server, sources) = known(&InitOptions::default());
    let cancel = Cancel::new();
    let name = "a".parse().unwrap();
    let metadata = refresh(&world, &sources, day(1)).unwrap();
    let good = metadata.record(&name, &sources, &cancel).unwrap().into_inner();
    let extra = noise(7, 100_000);
    let more = world.build("more", &[("usr/bin/extra", &extra)], 4096);
    world.write("packs/unsigned.pack", &extra);
    let mut longer = good.clone();
    longer.packs.extend(more.packs.iter().copied());
    let path = format!("targets/{}.a.json", Sha256Digest::of(&good.to_bytes()));
    replaced(&world, &path, &longer.to_bytes(), || {
        let error = metadata.record(&name, &sources, &cancel).unwrap_err().to_string();
        assert!(error.contains("it has ") && error.contains("the metadata says"), "{error}");
    });
    assert!(!server.log().iter().any(|request| request.path.starts_with("packs/")));
    assert_eq!(names(&refresh(&world, &sources, day(1)).unwrap()), ["a"], "pending is no release");
}

// ---- Wrong author ----

/// Every document signed by the keys of every other role.
#[test]
fn wrong_author() {
    for signer in Role::ALL {
        for role in ONLINE.into_iter().filter(|role| *role != signer) {
            let (world, _server, sources) = known(&InitOptions::default());
            let mut thief = Thief::steals(&world, &ONLINE, 1);
            let wrong = Thief::steals(&world, &[signer], 1).keys.remove(0).1;
            thief.keys.retain(|(of, _)| *of != role);
            thief.keys.push((role, wrong));
            Forgery::of(&world).newer(1).write(&world, &thief);
            let (reason, _) = refused(&world, &sources, day(1));
            let expected = Refusal::BadSignature { role: role.to_string(), valid: 0, threshold: 1 };
            assert_eq!(reason, expected, "signed by the {signer} key");
        }
    }
}

// ---- Stolen keys ----

/// One key of each role, of two that must sign: whichever document is signed with it
/// alone, it is refused, and signing twice does not help.
#[test]
fn keys_below_the_threshold_sign_nothing() {
    let options = two_of_three();
    for role in ONLINE {
        for twice in [false, true] {
            let (world, _server, sources) = known(&options);
            let mut thief = Thief::steals(&world, &ONLINE, 2);
            let one = thief.of(role)[0].clone();
            thief.keys.retain(|(of, _)| *of != role);
            thief.keys.extend((0..=usize::from(twice)).map(|_| (role, one.clone())));
            Forgery::of(&world).newer(1).write(&world, &thief);
            let (reason, text) = refused(&world, &sources, day(1));
            let role = role.to_string();
            match reason {
                Refusal::TooFewSignatures { role: of, valid: 1, threshold: 2 } => {
                    assert_eq!((of, twice), (role, false), "{text}");
                }
                Refusal::Malformed { reason, .. } if twice => {
                    assert!(reason.starts_with("Duplicate key ID"), "{text}");
                    assert!(text.contains(&format!("the {role} metadata is not valid")), "{text}");
                }
                other => panic!("{role}, twice: {twice}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_root_key_below_the_threshold_makes_no_root() {
    let (world, _server, sources) = known(&two_of_three());
    let thief = Thief::steals(&world, &[Role::Root], 1);
    // The thief gives the root one key, his own, and needs no other from then on.
    let mut root = Forgery::of(&world).root;
    root.version = version(2);
    let own: Decoded<Hex> = {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(thief.of(Role::Root)[0].as_sign()).unwrap().tuf_key().key_id().unwrap()
    };
    for keys in root.roles.values_mut() {
        keys.keyids = vec![own.clone()];
        keys.threshold = version(1);
    }
    world.write("metadata/2.root.json", &sign(root, &thief.of(Role::Root)));
    let (reason, _) = refused(&world, &sources, day(1));
    let expected = Refusal::TooFewSignatures { role: "root".into(), valid: 1, threshold: 2 };
    assert_eq!(reason, expected);
}

/// What a stolen timestamp key alone can do: say that nothing is new, for as long as the
/// snapshot lasts. It cannot name a release of its own.
#[test]
fn a_stolen_timestamp_key_freezes_until_the_snapshot_expires_and_no_longer() {
    let (world, _server, sources) = known(&InitOptions::default());
    let thief = Thief::steals(&world, &[Role::Timestamp], 1);
    let mut forged = Forgery::of(&world).newer(1);
    let frozen = forged.timestamp.meta.clone();
    forged.timestamp.meta = frozen;
    forged.timestamp.expires = day(4000);
    let keys = thief.of(Role::Timestamp);
    world.write("metadata/timestamp.json", &sign(forged.timestamp, &keys));
    assert_eq!(names(&refresh(&world, &sources, day(80)).unwrap()), ["a"]);
    let (reason, _) = refused(&world, &sources, day(91));
    assert!(matches!(&reason, Refusal::Expired { role, .. } if role == "snapshot"), "{reason:?}");
}

/// The worst: all keys that are online, as many as are needed. The thief's release is
/// taken, until the root, which was not online, gives the roles other keys. Then nothing
/// that he signed counts, and versions that he drove up do not shut the publisher out.
#[test]
fn all_online_keys_stolen_is_mended_by_the_root() {
    let (world, _server, sources) = known(&InitOptions::default());
    let thief = Thief::steals(&world, &ONLINE, 1);
    let good: Vec<_> = ["2.targets.json", "2.snapshot.json", "timestamp.json"]
        .map(|file| (file, world.read(&format!("metadata/{file}"))))
        .into();
    let forge = || {
        let mut forged = Forgery::of(&world).newer(1_000_000_000);
        let target = forged.targets.targets.values().next().unwrap().clone();
        let name = tough::TargetName::new("evil.json").unwrap();
        forged.targets.targets.insert(name, target);
        forged.write(&world, &thief);
    };
    forge();
    assert_eq!(names(&refresh(&world, &sources, day(1)).unwrap()).len(), 2, "this is the worst");
    // The publisher finds out, and brings the root's key out of the drawer.
    for (file, bytes) in &good {
        world.write(&format!("metadata/{file}"), bytes);
    }
    let lost = RotateOptions { lost: true, ..RotateOptions::default() };
    for role in ONLINE {
        world.repository.rotate(role, &lost, &world.keys, day(2)).unwrap();
    }
    let seen = refresh(&world, &sources, day(2)).unwrap();
    assert_eq!((names(&seen), seen.root_version), (vec!["a"], 4));
    let timestamp = world.read("metadata/timestamp.json");
    forge();
    let (reason, _) = refused(&world, &sources, day(2));
    assert!(matches!(reason, Refusal::BadSignature { .. }), "{reason:?}");
    world.write("metadata/timestamp.json", &timestamp);
    refresh(&world, &sources, day(2)).unwrap();
}

// ---- Root rotation ----

/// Three new roots, each with other root keys and two signatures, while the device slept;
/// those in between have expired by the time it wakes, and the newest has not.
#[test]
fn a_device_that_slept_through_root_rotations_follows() {
    let mut options = two_of_three();
    options.settings.set_days(Role::Root, 30);
    let (world, _server, sources) = known(&options);
    for number in 1..=3 {
        let now = day(20 * number);
        world.repository.rotate(Role::Root, &RotateOptions::default(), &world.keys, now).unwrap();
    }
    world.release("b", &[("usr/bin/a", b"b")], 4096, day(60));
    let awake = refresh(&world, &sources, day(75)).unwrap();
    assert_eq!((awake.root_version, names(&awake)), (4, vec!["b", "a"]));
    // With one of them missing there is no way: trust does not jump.
    let sleeper = World::with(&options);
    Trust::init(&sleeper.trust, &world.read("metadata/1.root.json"), day(0)).unwrap();
    std::fs::remove_file(world.file("metadata/3.root.json")).unwrap();
    let (reason, _) = refused(&sleeper, &sources, day(75));
    assert!(matches!(&reason, Refusal::Expired { role, .. } if role == "root"), "{reason:?}");
    assert_eq!(sleeper.trust().root_version().unwrap(), 1);
}

/// A repository of somebody else with the same names: refused whichever root it shows.
#[test]
fn the_root_of_another_repository_is_no_next_root() {
    let (world, _server, _sources) = known(&InitOptions::default());
    let evil = World::new();
    evil.release("a", &[("usr/bin/a", b"evil")], 4096, day(0));
    evil.repository.rotate(Role::Root, &RotateOptions::default(), &evil.keys, day(0)).unwrap();
    let (_evil_server, evil_sources) = served(&evil);
    let (reason, _) = refused(&world, &evil_sources, day(1));
    let expected = Refusal::BadSignature { role: "root".into(), valid: 0, threshold: 1 };
    assert_eq!(reason, expected);
    let error = refresh(&world, &evil_sources, day(1)).unwrap_err();
    assert!(matches!(error, TrustError::Refused { .. }));
}
