//! Fetching contents from hostile and unlucky sources: each case says what the user reads,
//! that nothing unverified got a name in `incoming/`, and that nothing verified was lost.
#![allow(clippy::disallowed_methods, reason = "test data, kept by no device")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{World, day, hasty, http, noise};
use varve_fetch::contents::{self, ContentsError, Report};
use varve_fetch::{DirTransport, Sources, Transport, Verified, pack_index};
use varve_format::pack::PackIndex;
use varve_format::release::{PackRef, ReleaseRecord};
use varve_format::verity::content_digest;
use varve_format::{ContentDigest, Sha256Digest};
use varve_sys::Dir;
use varve_sys::task::{Cancel, Progress, Silent, Unit};
use varve_testkit::faulty::{Act, Request, Server};

const FRAME: usize = 16 * 1024;

/// A release of small files, a large one that takes many frames, and one with a hole.
fn files() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> =
        (0..60).map(|n| (format!("etc/{n}"), noise(n, 500 + 37 * n as usize))).collect();
    files.push(("usr/large".into(), noise(1000, 40 * FRAME + 123)));
    let mut holey = vec![0; 400 << 10];
    holey[..10].copy_from_slice(b"0123456789");
    files.push(("usr/sparse".into(), holey));
    files.push(("usr/after".into(), noise(2000, 3000)));
    files.push(("usr/empty".into(), Vec::new()));
    files
}

struct Case {
    world: World,
    record: ReleaseRecord,
    expected: BTreeMap<ContentDigest, Vec<u8>>,
}

impl Case {
    fn new() -> Self {
        let world = World::new();
        let files = files();
        let borrowed: Vec<_> =
            files.iter().map(|(path, bytes)| (path.as_str(), &bytes[..])).collect();
        let record = world.release("a", &borrowed, FRAME, day(0));
        let expected = files
            .iter()
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(_, bytes)| (content_digest(bytes), bytes.clone()))
            .collect();
        Self { world, record, expected }
    }

    fn plan(&self, sources: &Sources) -> Result<contents::Plan, ContentsError> {
        contents::plan(self.wanted(), self.packs(), &self.world.incoming, sources)
    }

    fn wanted(&self) -> impl Iterator<Item = (ContentDigest, u64)> {
        self.expected.iter().map(|(digest, bytes)| (*digest, bytes.len() as u64))
    }

    fn packs(&self) -> Vec<(PackRef, Verified<PackIndex>)> {
        let (good, cancel) = (self.world.sources(), Cancel::new());
        let packs = self.record.packs.iter();
        packs.map(|pack| (*pack, pack_index(pack, &good, &cancel).unwrap())).collect()
    }

    fn fetch_with(
        &self,
        sources: &Sources,
        cancel: &Cancel,
    ) -> (Report, Result<(), ContentsError>) {
        let plan = self.plan(sources).unwrap();
        contents::fetch(&plan, sources, &self.world.incoming, &Silent, cancel)
    }

    fn fetch(&self, sources: &Sources) -> (Report, Result<(), ContentsError>) {
        let outcome = self.fetch_with(sources, &Cancel::new());
        self.intact();
        outcome
    }

    /// Everything in `incoming/` is what its name says.
    fn intact(&self) {
        let mut contents = 0;
        for (name, bytes) in World::picture(&self.world.incoming) {
            if let Ok(digest) = name.parse::<ContentDigest>() {
                assert_eq!(self.expected[&digest], bytes, "{name}");
                contents += 1;
            } else if let Some((digest, length)) =
                name.strip_suffix(".part").and_then(|n| n.split_once('.'))
            {
                let whole = &self.expected[&digest.parse().unwrap()];
                let length: usize = length.parse().unwrap();
                assert_eq!(bytes[..length], whole[..length], "{name}");
            } else {
                assert!(name.starts_with('.') && name.ends_with(".new"), "{name}");
            }
        }
        assert!(contents <= self.expected.len());
    }

    fn complete(&self) {
        self.intact();
        let names: Vec<_> =
            World::picture(&self.world.incoming).into_iter().map(|(name, _)| name).collect();
        let expected: Vec<_> = self.expected.keys().map(ContentDigest::to_hex).collect();
        assert_eq!(names, expected, "all contents and nothing else");
    }

    fn pack(&self) -> String {
        self.record.packs[0].path()
    }

    fn server(&self, rule: impl Fn(&Request) -> Act + Send + Sync + 'static) -> (Server, Sources) {
        let server = Server::new(&self.world.path(), rule);
        let sources = Sources::new(vec![http(&server.url)], hasty());
        (server, sources)
    }
}

#[test]
fn all_contents_come_in_one_request_from_a_good_server() {
    let case = Case::new();
    let (server, sources) = case.server(|_| Act::Serve);
    let plan = case.plan(&sources).unwrap();
    assert_eq!(plan.requests(), 1);
    let (report, result) = case.fetch(&sources);
    result.unwrap();
    case.complete();
    assert_eq!(server.log().len(), 1);
    assert_eq!(report.traffic.bytes, plan.bytes());
    assert_eq!(report.traffic.bytes, server.sent());
    assert_eq!(report.contents, case.expected.len() as u64);
    // A second run finds everything here.
    let (report, result) = case.fetch(&sources);
    result.unwrap();
    assert_eq!((report.traffic.requests, report.contents), (0, 0));
    assert_eq!(report.reused, case.expected.values().map(|bytes| bytes.len() as u64).sum::<u64>());
}

#[test]
fn holes_stay_holes() {
    let case = Case::new();
    case.fetch(&case.world.sources()).1.unwrap();
    case.complete();
    let sparse = case.expected.iter().find(|(_, bytes)| bytes.len() == 400 << 10).unwrap().0;
    let stat = case.world.incoming.stat(sparse.to_hex()).unwrap();
    assert_eq!(stat.size, 400 << 10);
    assert!(stat.blocks * 512 <= 128 << 10, "{} blocks", stat.blocks);
}

#[test]
fn a_server_that_ignores_ranges_is_read_through() {
    let case = Case::new();
    // Most is here already, so that ranges are wanted.
    case.fetch(&case.world.sources()).1.unwrap();
    let gone: Vec<_> = case.expected.keys().step_by(9).collect();
    for digest in &gone {
        case.world.incoming.unlink(digest.to_hex()).unwrap();
    }
    let (server, sources) = case.server(|_| Act::IgnoreRange);
    let (_, result) = case.fetch(&sources);
    result.unwrap();
    case.complete();
    assert!(server.log().len() <= 2, "{} requests", server.log().len());
}

#[test]
fn a_connection_that_is_cut_again_and_again_is_resumed() {
    let case = Case::new();
    let (server, sources) = case.server(|r| Act::CutAfter(10_000 + 777 * r.earlier));
    let plan = case.plan(&sources).unwrap();
    let (report, result) = case.fetch(&sources);
    result.unwrap();
    case.complete();
    assert!(server.log().len() > 10);
    assert_eq!(report.traffic.bytes, plan.bytes(), "no byte twice");
    assert!(
        server.log()[1..].iter().all(|r| r.if_range.is_some()),
        "continued from the same file only"
    );
}

#[test]
fn errors_that_pass_are_waited_for() {
    let case = Case::new();
    for act in [
        Act::Status(503),
        Act::Status(429),
        Act::StallAfter(5000),
        Act::LieLonger(10),
        Act::WrongRange,
    ] {
        let first = act.clone();
        let (_server, sources) = case
            .server(move |r| if r.earlier == 1 { first.clone() } else { Act::CutAfter(30_000) });
        case.fetch(&sources).1.unwrap_or_else(|error| panic!("{act:?}: {error}"));
        case.complete();
        for digest in case.expected.keys() {
            case.world.incoming.unlink(digest.to_hex()).unwrap();
        }
    }
}

fn fails(case: &Case, act: Act, message: &str) {
    let pack = case.pack();
    let (_server, sources) =
        case.server(move |r| if r.path == pack { act.clone() } else { Act::Serve });
    let (_, result) = case.fetch(&sources);
    let error = result.unwrap_err();
    assert!(matches!(error, ContentsError::Fetch(_)), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&format!("cannot fetch {}", case.pack())) && text.contains(message),
        "{text}"
    );
    // What came before is kept, and a good source gives the rest.
    case.fetch(&case.world.sources()).1.unwrap();
    case.complete();
}

#[test]
fn a_missing_pack_is_said() {
    fails(&Case::new(), Act::Status(404), "there is no such file");
}

#[test]
fn a_captive_portal_is_said() {
    fails(
        &Case::new(),
        Act::Html,
        "this network wants a login: open a browser (a web page came instead of the file)",
    );
}

#[test]
fn a_server_that_stalls_is_given_up() {
    fails(&Case::new(), Act::StallAfter(0), "nothing came for 0.6 seconds");
}

/// A trickle is left for a source that is better.
#[test]
fn a_server_that_trickles_is_left_for_another() {
    let trickle = Act::Trickle(1, Duration::from_millis(50));
    // Nor does it help to give a little on each of many connections.
    for act in [trickle, Act::StallAfter(10)] {
        let case = Case::new();
        let (slow, _) = case.server(move |_| act.clone());
        let good = Server::good(&case.world.path());
        let sources = Sources::new(vec![http(&slow.url), http(&good.url)], hasty());
        let began = std::time::Instant::now();
        case.fetch(&sources).1.unwrap();
        case.complete();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(slow.sent() < 100, "{}", slow.sent());
    }
}

/// There is no limit on how slow the only source may be, as long as bytes arrive; one that
/// was left is come back to when the others have nothing.
#[test]
fn the_only_source_may_be_as_slow_as_it_likes() {
    for others in [0, 1] {
        let world = World::new();
        let record = world.release("a", &[("f", &noise(1, 3_000))], FRAME, day(0));
        let (slow, dead) = (
            Server::new(&world.path(), |_| Act::Trickle(60, Duration::from_millis(40))),
            Server::new(&world.path(), |_| Act::Status(404)),
        );
        let mut list = vec![http(&slow.url)];
        list.extend((0..others).map(|_| http(&dead.url)));
        let sources = Sources::new(list, hasty());
        let index = pack_index(&record.packs[0], &world.sources(), &Cancel::new()).unwrap();
        let wanted = [(content_digest(&noise(1, 3_000)), 3_000)];
        let packs = vec![(record.packs[0], index)];
        let plan = contents::plan(wanted, packs, &world.incoming, &sources).unwrap();
        let began = std::time::Instant::now();
        contents::fetch(&plan, &sources, &world.incoming, &Silent, &Cancel::new()).1.unwrap();
        assert!(began.elapsed() > Duration::from_secs(1), "that was no trickle");
    }
}

#[test]
fn a_pack_that_is_shorter_than_it_should_be_is_said() {
    let case = Case::new();
    let bytes = case.world.read(&case.pack());
    fails(&case, Act::Other(bytes[..bytes.len() - 100].to_vec()), "the metadata says");
}

#[test]
fn a_page_that_says_it_is_data_is_refused() {
    fails(&Case::new(), Act::HtmlAsJson, "this network wants a login");
}

#[test]
fn a_pack_of_noise_is_refused() {
    let case = Case::new();
    let length = case.world.read(&case.pack()).len();
    fails(&case, Act::Other(noise(5, length)), "its digest is not the one that the metadata gives");
}

#[test]
fn an_endless_pack_brings_no_more_than_was_asked_for() {
    let case = Case::new();
    let (server, sources) = case.server(|_| Act::Endless);
    let error = case.fetch(&sources).1.unwrap_err();
    assert!(error.to_string().contains("its digest is not the one"), "{error}");
    assert!(server.sent() < 16 << 20, "{}", server.sent());
}

#[test]
fn a_byte_that_flips_is_fetched_from_the_next_source() {
    let case = Case::new();
    let mut bytes = case.world.read(&case.pack());
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    let bad = Server::new(&case.world.path(), move |_| Act::Other(bytes.clone()));
    let good = Server::good(&case.world.path());
    let sources = Sources::new(vec![http(&bad.url), http(&good.url)], hasty());
    let (report, result) = case.fetch(&sources);
    result.unwrap();
    case.complete();
    let size = case.record.packs[0].size;
    assert!(good.sent() < size * 2 / 3, "only what the bad source could not give: {}", good.sent());
    assert!(report.traffic.bytes < size + size / 2);
}

#[test]
fn a_file_that_changes_midway_is_never_joined() {
    let case = Case::new();
    let length = case.world.read(&case.pack()).len();
    let other = noise(6, length);
    // The first answer is cut; then the file is another, under another ETag.
    let (server, sources) =
        case.server(
            move |r| {
                if r.earlier == 0 { Act::CutAfter(20_000) } else { Act::Other(other.clone()) }
            },
        );
    let (_, result) = case.fetch(&sources);
    let text = result.unwrap_err().to_string();
    assert!(text.contains("its digest is not the one"), "{text}");
    assert!(server.log()[1].if_range.is_some());
    // What the first answer brought whole is here.
    assert!(!World::picture(&case.world.incoming).is_empty());
    case.fetch(&case.world.sources()).1.unwrap();
    case.complete();
}

#[test]
fn a_pack_that_vanishes_midway_is_a_repository_that_changed() {
    let case = Case::new();
    let (_server, sources) =
        case.server(|r| if r.earlier == 0 { Act::CutAfter(100_000) } else { Act::Status(404) });
    let error = case.fetch(&sources).1.unwrap_err();
    let ContentsError::Fetch(error) = error else { panic!("{error}") };
    assert!(error.is_missing(), "{error}");
    case.fetch(&case.world.sources()).1.unwrap();
    case.complete();
}

#[test]
fn a_stick_that_is_pulled_out_is_followed_by_the_next_source() {
    let case = Case::new();
    let stick = case.world.temp.path().join("stick");
    std::fs::create_dir(&stick).unwrap();
    let server = Server::good(&case.world.path());
    let list: Vec<Arc<dyn Transport>> =
        vec![Arc::new(DirTransport::new(&stick)), http(&server.url)];
    case.fetch(&Sources::new(list, hasty())).1.unwrap();
    case.complete();
}

/// A stick whose every pack `make` replaced: it is passed over for the next source, or when
/// there is none, why is said.
fn hostile_stick(make: impl Fn(&Path), why: &str) {
    let case = Case::new();
    let stick = case.world.temp.path().join("stick");
    std::fs::create_dir_all(stick.join("metadata")).unwrap();
    for pack in &case.record.packs {
        let path = stick.join(pack.path());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        make(&path);
    }
    let stick: Arc<dyn Transport> = Arc::new(DirTransport::new(&stick));
    let alone = case.fetch(&Sources::new(vec![Arc::clone(&stick)], hasty()));
    let said = chain(&alone.1.unwrap_err());
    assert!(said.contains(why), "{said}");
    let server = Server::good(&case.world.path());
    case.fetch(&Sources::new(vec![stick, http(&server.url)], hasty())).1.unwrap();
    case.complete();
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn a_pipe_on_a_stick_is_not_waited_for() {
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    let fifo = rustix::fs::FileType::Fifo;
    hostile_stick(
        |path| rustix::fs::mknodat(rustix::fs::CWD, path, fifo, mode, 0).unwrap(),
        "it is not a regular file",
    );
}

#[test]
fn a_link_on_a_stick_is_not_followed() {
    hostile_stick(|path| std::os::unix::fs::symlink("/etc/hostname", path).unwrap(), "symbolic");
}

/// Cancels after so many bytes.
struct CancelAfter {
    cancel: Cancel,
    left: std::sync::atomic::AtomicI64,
}

impl Progress for CancelAfter {
    fn begin(&self, _: &str, _: Unit, _: Option<u64>) {}
    fn advance(&self, amount: u64) {
        if self.left.fetch_sub(amount as i64, std::sync::atomic::Ordering::SeqCst) < 0 {
            self.cancel.cancel();
        }
    }
    fn end(&self) {}
}

#[test]
fn cancelling_loses_nothing_and_the_next_run_goes_on() {
    let case = Case::new();
    let mut moved = 0;
    let mut runs = 0;
    loop {
        let sources = Sources::new(vec![Arc::new(DirTransport::new(case.world.path()))], hasty());
        let cancel = Cancel::new();
        let progress = CancelAfter { cancel: cancel.clone(), left: 150_000.into() };
        let plan = case.plan(&sources).unwrap();
        let (report, result) =
            contents::fetch(&plan, &sources, &case.world.incoming, &progress, &cancel);
        case.intact();
        moved += report.traffic.bytes;
        runs += 1;
        match result {
            Ok(()) => break,
            Err(ContentsError::Cancelled) => {}
            Err(error) => panic!("{error}"),
        }
    }
    case.complete();
    assert!(runs >= 4, "{runs}");
    // At most one frame and one read of each cut is fetched twice.
    let size = case.record.packs[0].size;
    assert!(moved < size + runs * 3 * 65_536, "{moved} of {size} in {runs} runs");
}

#[test]
fn a_cancel_interrupts_a_link_that_is_silent() {
    let case = Case::new();
    let server = Server::new(&case.world.path(), |_| Act::StallAfter(40_000));
    let options = varve_fetch::HttpOptions { stall: Duration::from_secs(60), ..Default::default() };
    let transport =
        varve_fetch::HttpTransport::new(&server.url, &options, &varve_fetch::Workers::default())
            .unwrap();
    let sources = Sources::new(vec![Arc::new(transport)], hasty());
    let cancel = Cancel::new();
    let began = std::time::Instant::now();
    let (_, result) = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            cancel.cancel();
        });
        case.fetch_with(&sources, &cancel)
    });
    assert!(matches!(result, Err(ContentsError::Cancelled)));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    case.intact();
    assert!(!World::picture(&case.world.incoming).is_empty(), "what came first is kept");
}

/// The process that the test below kills: it fetches what the parent's server trickles.
/// Run by itself it has nothing to do.
#[test]
fn killed_child() {
    let (Ok(url), Ok(incoming)) =
        (std::env::var("VARVE_TEST_URL"), std::env::var("VARVE_TEST_INCOMING"))
    else {
        return;
    };
    let case = Case::new();
    let incoming = Dir::open(incoming).unwrap();
    let sources = Sources::new(vec![http(&url)], hasty());
    let packs = case.packs();
    let plan = contents::plan(case.wanted(), packs, &incoming, &sources).unwrap();
    contents::fetch(&plan, &sources, &incoming, &Silent, &Cancel::new()).1.unwrap();
}

#[test]
fn a_process_that_is_killed_loses_no_more_than_its_last_second() {
    let case = Case::new();
    let (server, _) = case.server(|_| Act::Trickle(4096, Duration::from_millis(12)));
    let mut reused = 0;
    for _ in 0..2 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed_child"])
            .env("VARVE_TEST_URL", &server.url)
            .env("VARVE_TEST_INCOMING", case.world.incoming.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Long enough for one commit; too short for all of it.
        let before = server.sent();
        while server.sent() < before + 250_000 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(varve_fetch::contents::BATCH_TIME);
        child.kill().unwrap();
        child.wait().unwrap();
        case.intact();
        let now = case.plan(&case.world.sources()).unwrap().reused();
        assert!(now >= reused, "{now} bytes are left of {reused}");
        reused = now;
    }
    assert!(reused > 200_000, "{reused}");
    case.fetch(&case.world.sources()).1.unwrap();
    case.complete();
}

#[test]
fn a_cut_of_power_leaves_litter_that_is_swept() {
    let case = Case::new();
    let digest = case.expected.iter().find(|(_, bytes)| bytes.len() > FRAME * 30).unwrap().0;
    let incoming = case.world.temp.path().join("incoming");
    let whole = &case.expected[digest];
    std::fs::write(incoming.join(format!(".{digest}.new")), b"torn").unwrap();
    // A part whose name promises more than is there, one that is good, and an older one.
    let good = 10 * FRAME;
    std::fs::write(incoming.join(format!("{digest}.{}.part", 20 * FRAME)), &whole[..5 * FRAME])
        .unwrap();
    std::fs::write(incoming.join(format!("{digest}.{good}.part")), &whole[..good + 100]).unwrap();
    std::fs::write(incoming.join(format!("{digest}.{FRAME}.part")), &whole[..FRAME]).unwrap();
    let (report, result) = case.fetch(&case.world.sources());
    result.unwrap();
    case.complete();
    assert_eq!(report.reused, good as u64);
}

#[test]
fn what_is_noted_beyond_the_name_of_a_part_is_taken_up_when_it_is_right() {
    let (good, noted) = (10 * FRAME, 12 * FRAME);
    for (wrong, reused) in [(0, noted), (1, good)] {
        let case = Case::new();
        let digest = case.expected.iter().find(|(_, bytes)| bytes.len() > FRAME * 30).unwrap().0;
        let incoming = case.world.temp.path().join("incoming");
        let mut part = case.expected[digest][..noted].to_vec();
        let sha256 = Sha256Digest::of(&part[good..]);
        // A block that a cut kept from being written.
        part[good + 100] ^= wrong;
        std::fs::write(incoming.join(format!("{digest}.{good}.part")), part).unwrap();
        let note = format!("{digest} {good:020} {noted:020} {sha256}\n");
        std::fs::write(incoming.join(".reached.new"), note).unwrap();
        let (report, result) = case.fetch(&case.world.sources());
        result.unwrap();
        case.complete();
        assert_eq!(report.reused, reused as u64);
    }
}

#[test]
fn a_part_that_rotted_is_not_passed_on() {
    let case = Case::new();
    let digest = *case.expected.iter().find(|(_, bytes)| bytes.len() > FRAME * 30).unwrap().0;
    let part = case.world.temp.path().join(format!("incoming/{digest}.{}.part", 10 * FRAME));
    std::fs::write(part, noise(9, 10 * FRAME)).unwrap();
    let outcome = case.fetch_with(&case.world.sources(), &Cancel::new());
    assert!(matches!(outcome.1, Err(ContentsError::WrongContent { .. })), "{:?}", outcome.1);
    // The rotten part is gone, so the next run is whole.
    case.fetch(&case.world.sources()).1.unwrap();
    case.complete();
}

/// A signed index may lie: the publisher's key was stolen, or the builder is broken.
mod signed_lies {
    use super::*;
    use varve_fetch::Verified;
    use varve_format::pack::{Location, PACK_MAGIC, PackIndex};
    use varve_format::release::PackRef;

    /// A release of one content that claims to be `content`, in a pack of this one frame.
    fn run(stored: &[u8], size: u32, content: &[u8]) -> (World, ContentsError) {
        let world = World::new();
        let index = PackIndex::new(
            [(stored.len() as u32, size, Sha256Digest::of(stored))],
            vec![Location {
                digest: content_digest(content),
                size: content.len() as u64,
                frame: 0,
                start: 0,
            }],
        )
        .unwrap();
        let pack = [PACK_MAGIC, stored].concat();
        let bytes = index.to_bytes();
        let reference = PackRef {
            id: Sha256Digest::of(&pack),
            size: pack.len() as u64,
            index_sha256: Sha256Digest::of(&bytes),
            index_size: bytes.len() as u64,
        };
        world.write(&reference.path(), &pack);
        world.write(&reference.index_path(), &bytes);
        let sources = world.sources();
        let index: Verified<PackIndex> = pack_index(&reference, &sources, &Cancel::new()).unwrap();
        let wanted = [(content_digest(content), content.len() as u64)];
        let plan =
            contents::plan(wanted, vec![(reference, index)], &world.incoming, &sources).unwrap();
        let (_, result) =
            contents::fetch(&plan, &sources, &world.incoming, &Silent, &Cancel::new());
        assert!(World::picture(&world.incoming).is_empty(), "nothing of it is kept");
        (world, result.unwrap_err())
    }

    #[test]
    fn an_archive_bomb_stops_at_the_size_that_the_index_gives() {
        let bomb = zstd::bulk::compress(&vec![0; 512 << 20], 3).unwrap();
        assert!(bomb.len() < 100_000);
        let (_, error) = run(&bomb, 1 << 20, &[0; 1 << 20]);
        let text = error.to_string();
        assert!(
            text.starts_with("a frame at byte 8 of pack ")
                && text.contains("does not decode to 1048576 bytes"),
            "{text}"
        );
    }

    #[test]
    fn a_frame_that_is_short_or_no_zstd_is_refused() {
        let short = zstd::bulk::compress(&[7; 100], 3).unwrap();
        assert!(matches!(run(&short, 200, &[7; 200]).1, ContentsError::BadFrame { .. }));
        assert!(matches!(run(b"not zstd", 200, &[7; 200]).1, ContentsError::BadFrame { .. }));
    }

    #[test]
    fn another_content_than_the_index_names_is_refused() {
        let stored = zstd::bulk::compress(&[7; 100], 3).unwrap();
        let (_, error) = run(&stored, 100, &[8; 100]);
        assert!(matches!(error, ContentsError::WrongContent { .. }), "{error}");
    }
}

#[path = "contents/documents.rs"]
mod documents;
