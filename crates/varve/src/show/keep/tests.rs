use varve_agent::fsck::{Checked, Found};
use varve_agent::ps::Use;
use varve_agent::repair::Mended;

use super::*;

#[test]
fn collecting() {
    let mut some = Collected {
        dry_run: true,
        deployments: vec!["debian-13.0".parse().unwrap()],
        layers: vec!["a".parse().unwrap(), "b".parse().unwrap()],
        trees: Vec::new(),
        incoming: 17,
        bytes: 123_456_789,
        inodes: 20_000,
        held_by_mounts: vec!["c".parse().unwrap()],
        blocked_by: vec!["deployments/junk".to_owned()],
    };
    let dry = collected(&some);
    some.dry_run = false;
    let real = collected(&some);
    let nothing = Collected {
        deployments: Vec::new(),
        layers: Vec::new(),
        incoming: 0,
        held_by_mounts: Vec::new(),
        blocked_by: Vec::new(),
        ..some
    };
    insta::assert_snapshot!([dry, real, collected(&nothing)].join("---\n"));
}

#[test]
fn checking() {
    let good = Checked {
        deployment: "debian-13.1".parse().unwrap(),
        paths: 23_118,
        bytes: 580_000_000,
        differences: 0,
        shown: Vec::new(),
        problem: None,
    };
    let bad = Checked {
        deployment: "debian-13.2".parse().unwrap(),
        differences: 2,
        shown: vec!["/usr/bin/x: has another content".into(), "/etc/y: is missing".into()],
        ..good.clone()
    };
    let broken = Checked {
        deployment: "debian-13.3".parse().unwrap(),
        problem: Some("the manifest of deployment debian-13.3 is damaged".to_owned()),
        ..good.clone()
    };
    let clean = Found { deployments: vec![good.clone()], ..Found::default() };
    let all = Found {
        deployments: vec![good, bad, broken],
        bad_incoming: vec!["00".to_owned()],
        incoming: 5,
        records: vec!["the selection is missing".to_owned()],
    };
    let mended = Mended {
        deployment: "debian-13.2".parse().unwrap(),
        manifest: false,
        differences: 2,
        copied: 1,
        fetched: 1,
    };
    let other = Mended {
        deployment: "debian-13.3".parse().unwrap(),
        manifest: true,
        differences: 0,
        copied: 0,
        fetched: 0,
    };
    let repaired = Repaired {
        deployments: vec![mended, other],
        records: vec!["deployments/debian-13.2/deployment.toml".to_owned()],
        dropped: vec!["00".to_owned()],
        selection: true,
        fetched: 345_000,
        left: vec!["deployments/x: no record".to_owned()],
    };
    let say = |found: &Found, repaired: Option<Repaired>| {
        fsck(&FsckAnswer { found: found.clone(), repaired })
    };
    let said = [say(&clean, None), say(&all, None), say(&all, Some(repaired))];
    insta::assert_snapshot!(said.join("---\n"));
}

#[test]
fn who_runs_what() {
    let held = |how, path: &str, origin, deployment: Option<&str>, deleted| Use {
        how,
        path: path.into(),
        origin,
        deployment: deployment.map(|name| name.parse().unwrap()),
        deleted,
    };
    let layer = |name: &str| Origin::Layer(name.parse().unwrap());
    let (a, b) = (Some("debian-13.1"), Some("debian-13.2"));
    let sshd = Process {
        pid: 512,
        name: "sshd".to_owned(),
        uses: vec![
            held(How::Root, "/", layer("u2"), b, false),
            held(How::Executable, "/usr/sbin/sshd", layer("u2"), b, false),
            held(How::Library, "/usr/lib/libc.so.6", layer("base"), b, false),
            held(How::Library, "/usr/lib/libm.so.6", layer("base"), b, false),
            held(How::Library, "/usr/lib/libcrypto.so.3", layer("u2"), b, false),
            held(How::OpenFile, "/var/log/x", Origin::State, b, true),
        ],
    };
    let old = Process {
        pid: 1033,
        name: "vim".to_owned(),
        uses: vec![held(
            How::Executable,
            "/usr/bin/vim",
            Origin::Tree("t".parse().unwrap()),
            a,
            false,
        )],
    };
    let all = [sshd, old];
    let text = [processes(&all), files(&all), processes(&[])].join("---\n");
    insta::assert_snapshot!(text);
}

#[test]
fn small_answers() {
    let names = |list: &[&str]| list.iter().map(|name| name.parse().unwrap()).collect();
    let merge = |before: &[&str], dry_run| Merged {
        deployment: "debian-13.2".parse().unwrap(),
        before: names(before),
        after: names(&["debian-13.2.merged"]),
        due: None,
        dry_run,
    };
    let waits = |due| merged(&Merged { due: Some(due), ..merge(&["u2", "base"], false) });
    let day = 24 * 60 * 60;
    let pin = |pinned, changed| Pinned {
        deployment: "d".parse().unwrap(),
        pinned,
        changed,
        dry_run: false,
    };
    let all = [
        merged(&merge(&["u2", "base"], true)),
        merged(&merge(&["u2", "base"], false)),
        merged(&merge(&["base"], false)),
        waits(Due::Now),
        waits(Due::NotDeep),
        waits(Due::NotProven),
        waits(Due::Later { boots: 2, seconds: 2 * day + 1 }),
        waits(Due::Later { boots: 1, seconds: 0 }),
        waits(Due::Later { boots: 0, seconds: 3601 }),
        pinned(&pin(true, true)),
        pinned(&pin(true, false)),
        pinned(&pin(false, true)),
        pinned(&Pinned { dry_run: true, ..pin(true, true) }),
    ];
    insta::assert_snapshot!(all.concat());
}
