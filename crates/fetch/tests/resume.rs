//! Never twice: a link that is cut and a process that is killed, again and again, cost
//! next to nothing beyond one clean run. Counted at the server, heads and all.
#![allow(clippy::disallowed_methods, reason = "test data, kept by no device")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{World, day, hasty, http, noise};
use varve_fetch::{Patience, Sources, contents, pack_index};
use varve_format::ContentDigest;
use varve_format::release::PackRef;
use varve_format::verity::content_digest;
use varve_sys::Dir;
use varve_sys::task::{Cancel, Silent};
use varve_testkit::faulty::{Link, Server};

const FRAME: usize = 64 * 1024;
const CUTS: u64 = 24;

fn files() -> Vec<(String, Vec<u8>)> {
    let small = (0..200_u64).map(|n| (format!("etc/{n}"), noise(n, 4_000 + 50 * n as usize)));
    let large = (0..4_u64).map(|n| (format!("usr/{n}"), noise(1000 + n, 900_000)));
    small.chain(large).collect()
}

/// Fetches the pack of this size into `incoming` from `url`, as an upgrade does.
fn fetch(url: &str, incoming: &Path, pack: PackRef) {
    let incoming = Dir::open(incoming).unwrap();
    let patience = Patience { attempts: 1000, ..hasty() };
    let sources = Sources::new(vec![http(url)], patience).keeping(incoming.try_clone().unwrap());
    let index = pack_index(&pack, &sources, &Cancel::new()).unwrap();
    let wanted: Vec<(ContentDigest, u64)> =
        files().iter().map(|(_, bytes)| (content_digest(bytes), bytes.len() as u64)).collect();
    let plan = contents::plan(wanted, vec![(pack, index)], &incoming, &sources).unwrap();
    contents::fetch(&plan, &sources, &incoming, &Silent, &Cancel::new()).1.unwrap();
}

/// The process that is killed. Run by itself it has nothing to do.
#[test]
fn victim() {
    let Ok(url) = std::env::var("VARVE_TEST_URL") else { return };
    let incoming = std::env::var("VARVE_TEST_INCOMING").unwrap();
    let pack = std::env::var("VARVE_TEST_PACK").unwrap();
    let mut words = pack.split(' ');
    let mut next = || words.next().unwrap();
    let pack = PackRef {
        id: next().parse().unwrap(),
        size: next().parse().unwrap(),
        index_sha256: next().parse().unwrap(),
        index_size: next().parse().unwrap(),
    };
    fetch(&url, Path::new(&incoming), pack);
}

#[test]
fn cut_and_killed_again_and_again_it_costs_next_to_nothing() {
    let world = World::new();
    let files = files();
    let borrowed: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), &bytes[..])).collect();
    let pack = world.release("a", &borrowed, FRAME, day(0)).packs[0];
    let clean = {
        let server = Server::good(&world.path());
        let incoming = world.temp.path().join("clean");
        std::fs::create_dir(&incoming).unwrap();
        fetch(&server.url, &incoming, pack);
        server.moved()
    };
    // A link of 1 MB/s: faster than that, what is lost is what the kernel's buffers hold.
    let server = Server::good(&world.path());
    let mut points: Vec<u64> = (0..CUTS)
        .map(|n| u64::from_le_bytes(noise(n + 7, 8).try_into().unwrap()) % clean)
        .collect();
    points.sort_unstable();
    let mut points = points.into_iter().enumerate();
    let spawn = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim"])
            .env("VARVE_TEST_URL", &server.url)
            .env("VARVE_TEST_INCOMING", world.incoming.path())
            .env(
                "VARVE_TEST_PACK",
                format!("{} {} {} {}", pack.id, pack.size, pack.index_sha256, pack.index_size),
            )
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut child = spawn();
    let (mut kills, mut cuts) = (0, 0);
    let mut arm = || {
        let next = points.next();
        let cut_at = next.map(|(_, at)| at.max(server.moved() + 1));
        server.link(Link { rate: 1_000_000, cut_at });
        next.map(|(number, _)| number)
    };
    let mut armed = arm();
    loop {
        if server.cuts() > cuts {
            cuts += 1;
            // At every other cut the process goes too.
            if armed.is_some_and(|number| number % 2 == 0) {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                child = spawn();
            }
            armed = arm();
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            break;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    for (path, bytes) in &files {
        let name = content_digest(bytes).to_hex();
        assert_eq!(&std::fs::read(world.incoming.path().join(name)).unwrap(), bytes, "{path}");
    }
    let ratio = server.moved() as f64 / clean as f64;
    println!("{} bytes for {clean}: {ratio:.4}, {cuts} cuts, {kills} kills", server.moved());
    assert!(cuts >= CUTS * 9 / 10 && kills >= CUTS * 2 / 5, "{cuts} cuts, {kills} kills");
    assert!(ratio < 1.02, "{ratio:.4}");
}
