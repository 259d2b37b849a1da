//! The device's trust against a hostile repository: each case says what the user reads,
//! and that what the device trusted before is untouched, byte for byte.
#![allow(clippy::disallowed_methods, reason = "test data, kept by no device")]

mod common;

use std::sync::Arc;

use common::{World, day, hasty, http, names, refresh, refused};
use jiff::Timestamp;
use varve_fetch::{DirTransport, Refusal, Sources, Trust, TrustError};
use varve_publish::{InitOptions, Role, RoleOptions, RotateOptions};
use varve_sys::task::Cancel;
use varve_testkit::faulty::{Act, Server};

fn edit(world: &World, file: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value: serde_json::Value = serde_json::from_slice(&world.read(file)).unwrap();
    change(&mut value);
    world.write(file, &serde_json::to_vec(&value).unwrap());
}

#[test]
fn a_good_repository_is_followed() {
    let world = World::new();
    let first = refresh(&world, &world.sources(), day(1)).unwrap();
    assert!(first.news && names(&first).is_empty());
    world.release("a", &[("etc/a", b"one")], 4096, day(1));
    world.release("b", &[("etc/a", b"two")], 4096, day(2));
    let second = refresh(&world, &world.sources(), day(3)).unwrap();
    assert!(second.news);
    assert_eq!(names(&second), ["b", "a"], "the newest first");
    let third = refresh(&world, &world.sources(), day(3)).unwrap();
    assert!(!third.news && names(&third) == ["b", "a"]);
    let seen = world.trust().last_seen().unwrap().unwrap();
    assert_eq!(seen, third.releases());
    let record = third.record(&"a".parse().unwrap(), &world.sources(), &Cancel::new()).unwrap();
    let (manifest, text) =
        varve_fetch::manifest(&record, &world.sources(), &Cancel::new()).unwrap();
    assert_eq!(manifest.to_text(), text);
}

#[test]
fn what_is_saved_and_named_again_is_not_fetched_again() {
    let world = World::new();
    world.release("a", &[("etc/a", b"one")], 4096, day(1));
    let server = Server::good(&world.path());
    let sources = || Sources::new(vec![http(&server.url)], hasty());
    let asked = |earlier: usize| {
        let log = server.log();
        log[earlier..].iter().map(|request| request.path.clone()).collect::<Vec<_>>()
    };
    refresh(&world, &sources(), day(2)).unwrap();
    let first = server.log().len();
    let again = refresh(&world, &sources(), day(2)).unwrap();
    assert!(!again.news && names(&again) == ["a"]);
    assert_eq!(asked(first), ["metadata/2.root.json", "metadata/timestamp.json"]);
    // Signed anew, the list of releases is still the same one.
    let second = server.log().len();
    let roles = [Role::Snapshot, Role::Timestamp];
    world.repository.refresh(Some(&roles), &world.keys, day(3), false).unwrap();
    assert!(refresh(&world, &sources(), day(3)).unwrap().news);
    let after = asked(second);
    assert!(after.iter().any(|path| path.ends_with("snapshot.json")), "{after:?}");
    assert!(!after.iter().any(|path| path.ends_with("targets.json")), "{after:?}");
    // What is new is fetched.
    world.release("b", &[("etc/a", b"two")], 4096, day(4));
    assert_eq!(names(&refresh(&world, &sources(), day(4)).unwrap()), ["b", "a"]);
}

#[test]
fn bad_signature() {
    let world = World::new();
    refresh(&world, &world.sources(), day(1)).unwrap();
    world.release("a", &[("a", b"a")], 4096, day(1));
    edit(&world, "metadata/timestamp.json", |t| t["signed"]["version"] = 77.into());
    let (reason, text) = refused(&world, &world.sources(), day(2));
    assert!(matches!(reason, Refusal::BadSignature { valid: 0, threshold: 1, .. }), "{reason:?}");
    assert!(
        text.ends_with(
            "refused: bad signature: the timestamp metadata is not signed by the keys that this device trusts (0 good of 1 needed)"
        ),
        "{text}"
    );
}

#[test]
fn a_repository_signed_by_somebody_else() {
    let world = World::new();
    let other = World::new();
    other.release("evil", &[("a", b"a")], 4096, day(1));
    let (reason, _) = refused(&world, &other.sources(), day(1));
    assert!(matches!(reason, Refusal::BadSignature { .. }), "{reason:?}");
}

#[test]
fn too_few_signatures() {
    let options = InitOptions {
        roles: [
            RoleOptions { keys: 1, threshold: 1 },
            RoleOptions { keys: 3, threshold: 2 },
            RoleOptions { keys: 1, threshold: 1 },
            RoleOptions { keys: 2, threshold: 2 },
        ],
        ..InitOptions::default()
    };
    let world = World::with(&options);
    refresh(&world, &world.sources(), day(1)).unwrap();
    world.release("a", &[("a", b"a")], 4096, day(1));
    edit(&world, "metadata/timestamp.json", |t| {
        t["signatures"].as_array_mut().unwrap().pop();
    });
    let (reason, text) = refused(&world, &world.sources(), day(2));
    let expected = Refusal::TooFewSignatures { role: "timestamp".into(), valid: 1, threshold: 2 };
    assert_eq!(reason, expected);
    assert!(
        text.ends_with("too few signatures: the timestamp metadata has 1 good ones, 2 are needed"),
        "{text}"
    );
    // The same signature twice is still one.
    edit(&world, "metadata/timestamp.json", |t| {
        let one = t["signatures"][0].clone();
        t["signatures"].as_array_mut().unwrap().push(one);
    });
    refused(&world, &world.sources(), day(2));
}

#[test]
fn expired() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    let (reason, text) = refused(&world, &world.sources(), day(31));
    assert!(matches!(&reason, Refusal::Expired { role, .. } if role == "timestamp"), "{reason:?}");
    assert!(
        text.contains("expired: the timestamp metadata was valid until 2027-02-14T08:00:00Z"),
        "{text}"
    );
    world.repository.refresh(None, &world.keys, day(31), false).unwrap();
    refresh(&world, &world.sources(), day(31)).unwrap();
}

#[test]
fn a_clock_at_1970_still_upgrades_and_still_sees_expiry() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    let seen = refresh(&world, &world.sources(), Timestamp::UNIX_EPOCH).unwrap();
    assert!(seen.clock_behind);
    assert_eq!(seen.time, day(0), "the time at which the device was made");
    // It saw day 20; then its battery died.
    refresh(&world, &world.sources(), day(20)).unwrap();
    world.release("b", &[("a", b"b")], 4096, day(21));
    let seen = refresh(&world, &world.sources(), Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!((names(&seen), seen.time), (vec!["b", "a"], day(20)));
    // What has expired by the newest time ever seen is refused, whatever the clock says.
    let frozen = World::new();
    let root = frozen.read("metadata/1.root.json");
    Trust::init(&frozen.trust, &root, day(100)).unwrap();
    let (reason, _) = refused(&frozen, &frozen.sources(), Timestamp::UNIX_EPOCH);
    assert!(matches!(reason, Refusal::Expired { now, .. } if now == day(100)), "{reason:?}");
}

#[test]
fn a_clock_that_ran_ahead_does_no_lasting_harm() {
    let world = World::new();
    refused(&world, &world.sources(), day(40_000));
    let seen = refresh(&world, &world.sources(), day(1)).unwrap();
    assert!(!seen.clock_behind);
}

#[test]
fn older_than_seen() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    let old = world.temp.path().join("old");
    copy(&world.path(), &old);
    world.release("b", &[("a", b"b")], 4096, day(1));
    refresh(&world, &world.sources(), day(2)).unwrap();
    let stick = Sources::new(vec![Arc::new(DirTransport::new(&old))], hasty());
    let (reason, text) = refused(&world, &stick, day(2));
    assert_eq!(reason, Refusal::OlderThanSeen { role: "timestamp".into(), offered: 2, seen: 3 });
    assert!(
        text.ends_with(
            "older than seen: the timestamp metadata is version 2, this device has seen version 3"
        ),
        "{text}"
    );
    // An old stick in front does not hide the newer server behind it.
    let both: Vec<Arc<dyn varve_fetch::Transport>> =
        vec![Arc::new(DirTransport::new(&old)), Arc::new(DirTransport::new(world.path()))];
    let seen = refresh(&world, &Sources::new(both, hasty()), day(2)).unwrap();
    assert_eq!(names(&seen), ["b", "a"]);
    assert_eq!(seen.warnings.len(), 1);
}

#[test]
fn a_stick_that_is_valid_but_not_the_newest_does_not_hide_the_newest() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    refresh(&world, &world.sources(), day(0)).unwrap();
    let stick = world.temp.path().join("stick");
    copy(&world.path(), &stick);
    world.release("b", &[("a", b"b")], 4096, day(1));
    let both: Vec<Arc<dyn varve_fetch::Transport>> =
        vec![Arc::new(DirTransport::new(&stick)), Arc::new(DirTransport::new(world.path()))];
    let seen = refresh(&world, &Sources::new(both, hasty()), day(1)).unwrap();
    assert_eq!(names(&seen), ["b", "a"]);
}

#[test]
fn mixed_metadata() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    refresh(&world, &world.sources(), day(0)).unwrap();
    let older = world.read("metadata/2.targets.json");
    world.release("b", &[("a", b"b")], 4096, day(1));
    // Well signed, and of another publication.
    world.write("metadata/3.targets.json", &older);
    let (reason, text) = refused(&world, &world.sources(), day(1));
    assert!(matches!(reason, Refusal::MixedMetadata { .. }), "{reason:?}");
    assert!(
        text.ends_with("mixed metadata: metadata/3.targets.json is signed, but it is not the one that the newer metadata names"),
        "{text}"
    );
}

#[test]
fn wrong_digest() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    let mut bytes = world.read("metadata/2.snapshot.json");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    world.write("metadata/2.snapshot.json", &bytes);
    let (reason, text) = refused(&world, &world.sources(), day(0));
    assert_eq!(reason, Refusal::WrongDigest { file: "metadata/2.snapshot.json".into() });
    assert!(text.contains("wrong digest: metadata/2.snapshot.json"), "{text}");
}

#[test]
fn wrong_length() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    let mut bytes = world.read("metadata/2.targets.json");
    let limit = bytes.len() as u64;
    bytes.extend_from_slice(&[b' '; 1000]);
    world.write("metadata/2.targets.json", &bytes);
    let (reason, _) = refused(&world, &world.sources(), day(0));
    assert_eq!(reason, Refusal::TooLong { file: "metadata/2.targets.json".into(), limit });
    world.write("metadata/2.targets.json", &bytes[..100]);
    let (reason, _) = refused(&world, &world.sources(), day(0));
    assert_eq!(reason, Refusal::WrongDigest { file: "metadata/2.targets.json".into() });
}

#[test]
fn missing_file() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    std::fs::remove_file(world.file("metadata/2.snapshot.json")).unwrap();
    let (reason, text) = refused(&world, &world.sources(), day(0));
    assert_eq!(reason, Refusal::Missing { file: "metadata/2.snapshot.json".into() });
    assert!(text.ends_with("missing: there is no metadata/2.snapshot.json"), "{text}");
}

#[test]
fn not_metadata() {
    let world = World::new();
    for bytes in [
        &b"not JSON"[..],
        b"{}",
        b"[1,2",
        b"\xff\xfe",
        b"{\"signed\":{\"_type\":\"root\"},\"signatures\":[]}",
    ] {
        world.write("metadata/timestamp.json", bytes);
        let (reason, _) = refused(&world, &world.sources(), day(0));
        assert!(matches!(reason, Refusal::Malformed { .. }), "{reason:?}");
    }
}

fn could_not_check(world: &World, sources: &Sources) -> String {
    let before = World::picture(&world.trust);
    let error = refresh(world, sources, day(0)).expect_err("nothing was checked");
    assert_eq!(World::picture(&world.trust), before);
    assert!(matches!(error, TrustError::CouldNotCheck { .. }), "{error}");
    error.to_string()
}

#[test]
fn what_cannot_be_checked_is_not_no_update() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    let none = Sources::new(Vec::new(), hasty());
    assert_eq!(
        could_not_check(&world, &none),
        "cannot check the repository: no source is configured"
    );
    let stick = Sources::new(vec![Arc::new(DirTransport::new("/nowhere"))], hasty());
    assert_eq!(
        could_not_check(&world, &stick),
        "cannot check the repository: /nowhere: there is no repository in this directory"
    );
    let refusing = Sources::new(vec![http("http://127.0.0.1:1/")], hasty());
    assert!(could_not_check(&world, &refusing).contains("no connection"));
}

fn server_with(world: &World, file: &'static str, act: Act) -> (Server, Sources) {
    let server =
        Server::new(
            &world.path(),
            move |r| if r.path.ends_with(file) { act.clone() } else { Act::Serve },
        );
    let sources = Sources::new(vec![http(&server.url)], hasty());
    (server, sources)
}

#[test]
fn a_link_that_is_bad_is_not_a_repository_that_is() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    for (file, act, message) in [
        ("timestamp.json", Act::Html, "a web page came instead of the file"),
        // A log-in page in the place of the next root must not read as "no newer root".
        ("2.root.json", Act::Html, "a web page came instead of the file"),
        ("2.root.json", Act::Status(503), "the server failed with HTTP status 503"),
        ("timestamp.json", Act::Status(403), "the server refuses with HTTP status 403"),
        ("2.snapshot.json", Act::StallAfter(0), "nothing came for 0.6 seconds"),
        ("2.snapshot.json", Act::CutAfter(10), "the connection was cut"),
    ] {
        let (_server, sources) = server_with(&world, file, act.clone());
        let text = could_not_check(&world, &sources);
        assert!(text.contains(message), "{act:?}: {text}");
    }
    // The same server, well behaved.
    let server = Server::good(&world.path());
    let seen = refresh(&world, &Sources::new(vec![http(&server.url)], hasty()), day(0)).unwrap();
    assert_eq!(names(&seen), ["a"]);
}

#[test]
fn an_endless_body_is_cut_off() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    for file in ["timestamp.json", "2.root.json", "2.snapshot.json", "2.targets.json"] {
        let (server, sources) = server_with(&world, file, Act::Endless);
        let (reason, text) = refused(&world, &sources, day(0));
        assert!(matches!(reason, Refusal::TooLong { .. }), "{file}: {reason:?}");
        assert!(text.contains("too long: metadata/"), "{text}");
        assert!(server.sent() < 40 << 20, "{} bytes were taken", server.sent());
    }
}

#[test]
fn a_page_that_lies_about_its_kind_is_refused() {
    let world = World::new();
    let (_server, sources) = server_with(&world, "timestamp.json", Act::HtmlAsJson);
    let text = could_not_check(&world, &sources);
    assert!(text.contains("this network wants a login: open a browser"), "{text}");
}

#[test]
fn a_source_that_trickles_does_not_hold_up_the_others() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    let act = Act::Trickle(1, std::time::Duration::from_millis(50));
    let (slow, _) = server_with(&world, "2.targets.json", act);
    let good = Server::good(&world.path());
    let sources = Sources::new(vec![http(&slow.url), http(&good.url)], hasty());
    let seen = refresh(&world, &sources, day(0)).unwrap();
    assert_eq!(seen.source, good.url);
    let text = seen.warnings[0].error.to_string();
    assert!(text.contains("bytes came in 0.7"), "{text}");
}

#[test]
fn a_bad_source_does_not_stop_a_good_one() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    let evil = World::new();
    evil.release("evil", &[("a", b"a")], 4096, day(0));
    let list: Vec<Arc<dyn varve_fetch::Transport>> = vec![
        http("http://127.0.0.1:1/"),
        Arc::new(DirTransport::new(evil.path())),
        Arc::new(DirTransport::new(world.path())),
    ];
    let seen = refresh(&world, &Sources::new(list, hasty()), day(0)).unwrap();
    assert_eq!(names(&seen), ["a"]);
    assert_eq!(seen.source, world.path().display().to_string());
    assert_eq!(seen.warnings.len(), 2);
    assert!(matches!(seen.warnings[0].error, TrustError::CouldNotCheck { .. }));
    assert!(matches!(seen.warnings[1].error, TrustError::Refused { .. }));
    // A refusal is said before a link that is down.
    let list: Vec<Arc<dyn varve_fetch::Transport>> =
        vec![http("http://127.0.0.1:1/"), Arc::new(DirTransport::new(evil.path()))];
    refused(&world, &Sources::new(list, hasty()), day(0));
}

#[test]
fn every_role_rotates_and_a_device_that_slept_follows() {
    let world = World::new();
    refresh(&world, &world.sources(), day(0)).unwrap();
    world.release("a", &[("a", b"a")], 4096, day(0));
    let awake = refresh(&world, &world.sources(), day(0)).unwrap();
    assert_eq!(awake.root_version, 1);
    for role in Role::ALL {
        world.repository.rotate(role, &RotateOptions::default(), &world.keys, day(1)).unwrap();
    }
    let two = RotateOptions { keys: Some(3), threshold: Some(2), ..RotateOptions::default() };
    world.repository.rotate(Role::Root, &two, &world.keys, day(2)).unwrap();
    world.release("b", &[("a", b"b")], 4096, day(2));
    let seen = refresh(&world, &world.sources(), day(3)).unwrap();
    assert_eq!((seen.root_version, names(&seen)), (6, vec!["b", "a"]));
    assert_eq!(world.trust().root_version().unwrap(), 6);
    // And a device fresh from its image, with the first root.
    let fresh = World::new();
    Trust::init(&fresh.trust, &world.read("metadata/1.root.json"), day(0)).unwrap();
    assert_eq!(names(&refresh(&fresh, &world.sources(), day(3)).unwrap()), ["b", "a"]);
}

#[test]
fn a_rotation_that_is_cut_in_half_still_verifies() {
    let world = World::new();
    refresh(&world, &world.sources(), day(0)).unwrap();
    world.release("a", &[("a", b"a")], 4096, day(0));
    for (number, role) in [(2, Role::Timestamp), (3, Role::Snapshot), (4, Role::Targets)] {
        world.repository.rotate(role, &RotateOptions::default(), &world.keys, day(1)).unwrap();
        // As if the power went after the timestamp document and before the new root.
        let root = world.file(&format!("metadata/{number}.root.json"));
        let aside = world.temp.path().join("aside");
        std::fs::rename(&root, &aside).unwrap();
        refresh(&world, &world.sources(), day(1)).unwrap();
        std::fs::rename(&aside, &root).unwrap();
        assert_eq!(refresh(&world, &world.sources(), day(1)).unwrap().root_version, number);
    }
}

#[test]
fn a_retired_key_signs_nothing_any_more() {
    let world = World::new();
    world.release("a", &[("a", b"a")], 4096, day(0));
    let stolen = world.temp.path().join("stolen");
    copy(&world.keys.of(Role::Timestamp), &stolen);
    world
        .repository
        .rotate(Role::Timestamp, &RotateOptions::default(), &world.keys, day(1))
        .unwrap();
    refresh(&world, &world.sources(), day(1)).unwrap();
    let by_new_key = world.read("metadata/timestamp.json");
    world.repository.refresh(None, &world.keys, day(2), false).unwrap();
    // The thief re-signs with the old key: only its signature is there.
    let only_old: serde_json::Value = serde_json::from_slice(&by_new_key).unwrap();
    let old_id = varve_publish::SigningKey::load_all(
        &varve_publish::KeyDirs { root: stolen.clone(), online: stolen },
        Role::Root,
    )
    .unwrap()[0]
        .id()
        .to_owned();
    edit(&world, "metadata/timestamp.json", |t| {
        *t = only_old;
        t["signatures"].as_array_mut().unwrap().retain(|s| s["keyid"] == *old_id);
        assert_eq!(t["signatures"].as_array().unwrap().len(), 1);
    });
    let (reason, _) = refused(&world, &world.sources(), day(2));
    assert!(matches!(reason, Refusal::BadSignature { .. }), "{reason:?}");
}

#[test]
fn a_root_that_skips_its_predecessor_is_refused() {
    let world = World::new();
    refresh(&world, &world.sources(), day(0)).unwrap();
    let evil = World::new();
    evil.repository.rotate(Role::Root, &RotateOptions::default(), &evil.keys, day(0)).unwrap();
    world.write("metadata/2.root.json", &evil.read("metadata/2.root.json"));
    let (reason, _) = refused(&world, &world.sources(), day(0));
    assert!(matches!(&reason, Refusal::BadSignature { role, .. } if role == "root"), "{reason:?}");
}

#[test]
fn a_root_of_trust_must_be_one() {
    let world = World::new();
    let before = World::picture(&world.trust);
    for bytes in [b"".to_vec(), b"{}".to_vec(), world.read("metadata/timestamp.json")] {
        assert!(matches!(
            Trust::init(&world.trust, &bytes, day(0)),
            Err(TrustError::NotARoot { .. })
        ));
    }
    edit(&world, "metadata/1.root.json", |root| root["signed"]["version"] = 2.into());
    let bytes = world.read("metadata/1.root.json");
    assert!(matches!(Trust::init(&world.trust, &bytes, day(0)), Err(TrustError::NotARoot { .. })));
    assert_eq!(World::picture(&world.trust), before);
}

#[test]
fn a_damaged_state_is_said_and_not_replaced() {
    let world = World::new();
    refresh(&world, &world.sources(), day(0)).unwrap();
    let state = world.temp.path().join("trust/state");
    let mut bytes = std::fs::read(&state).unwrap();
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&state, &bytes).unwrap();
    let error = refresh(&world, &world.sources(), day(0)).unwrap_err();
    assert!(
        error.to_string().starts_with("the device's trust state, trust/state, cannot be read"),
        "{error}"
    );
    assert_eq!(std::fs::read(&state).unwrap(), bytes);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
