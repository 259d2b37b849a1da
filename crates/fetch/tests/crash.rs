//! A power cut after every change of fetching and of saving trust: what carries a digest as its
//! name is that content, what was named durably is not fetched again, and trust is the old or
//! the new. Each test also leaves out every sync in turn and must then fail: a test that
//! passes without a sync would not guard it.
#![allow(clippy::disallowed_methods, reason = "test data, kept by no device")]

mod common;

use std::collections::BTreeMap;

use common::{World, day, noise};
use varve_fetch::deltas::DeltaFile;
use varve_fetch::{Trust, contents, pack_index};
use varve_format::delta::{DeltaRef, GRAIN};
use varve_format::release::ReleaseRecord;
use varve_format::verity::content_digest;
use varve_format::{ContentDigest, ReleaseDigest, Sha256Digest};
use varve_sys::Dir;
use varve_sys::task::{Cancel, Silent};
use varve_sys::trace::Event;
use varve_testkit::crash::{self, Image, Recording, Survival};

type Check = Result<(), String>;

/// The last frame of a part is fetched with the end of its content.
const FRAME: u64 = 256 << 10;

/// Fails unless leaving out any one sync makes `check` fail.
fn every_sync_counts(recording: &Recording, check: impl Fn(&Recording) -> Check) {
    these_syncs_count(recording, &recording.syncs(), check);
}

fn these_syncs_count(recording: &Recording, syncs: &[usize], check: impl Fn(&Recording) -> Check) {
    check(recording).unwrap_or_else(|why| panic!("{why}"));
    for &sync in syncs {
        let event = recording.event(sync);
        assert!(
            check(&recording.without_sync(sync)).is_err(),
            "nothing guards sync {sync}, {event:?}"
        );
    }
}

struct Fetched {
    world: World,
    record: ReleaseRecord,
    expected: BTreeMap<ContentDigest, Vec<u8>>,
}

impl Fetched {
    fn new() -> Self {
        let world = World::new();
        // More than one batch, and a large content that goes on across it.
        let mut files: Vec<_> = (0..6).map(|n| (format!("a{n}"), noise(n, 3000))).collect();
        files.push(("large".into(), noise(100, (contents::BATCH_BYTES as usize) + 300_000)));
        files.extend((6..9).map(|n| (format!("z{n}"), noise(n, 3000))));
        let borrowed: Vec<_> =
            files.iter().map(|(path, bytes)| (path.as_str(), &bytes[..])).collect();
        let record = world.release("a", &borrowed, FRAME as usize, day(0));
        let expected =
            files.iter().map(|(_, bytes)| (content_digest(bytes), bytes.clone())).collect();
        Self { world, record, expected }
    }

    fn plan(&self, incoming: &Dir) -> contents::Plan {
        let sources = self.world.sources();
        let packs = self
            .record
            .packs
            .iter()
            .map(|pack| (*pack, pack_index(pack, &sources, &Cancel::new()).unwrap()))
            .collect();
        let wanted = self.expected.iter().map(|(digest, bytes)| (*digest, bytes.len() as u64));
        contents::plan(wanted, packs, incoming, &sources).unwrap()
    }

    fn fetch(&self, incoming: &Dir) -> Result<(), String> {
        let plan = self.plan(incoming);
        let (_, result) =
            contents::fetch(&plan, &self.world.sources(), incoming, &Silent, &Cancel::new());
        result.map_err(|error| error.to_string())
    }

    /// What is here is what its name says; gives how many bytes need not come again.
    fn sound(&self, image: &Image) -> Result<u64, String> {
        let (folder, incoming) = laid_out(image);
        // By the names alone: what has none yet may be taken over all the same.
        let mut named = 0;
        for (name, bytes) in World::picture(&incoming) {
            let (digest, length) = match name.strip_suffix(".part").and_then(|n| n.split_once('.'))
            {
                Some((digest, length)) => {
                    (digest, length.parse::<usize>().unwrap().min(bytes.len()))
                }
                None if name.starts_with('.') => continue,
                None => (name.as_str(), usize::MAX),
            };
            let whole = &self.expected[&digest.parse().unwrap()];
            let same = match length {
                usize::MAX => bytes == *whole,
                length => bytes[..length] == whole[..length],
            };
            if !same {
                return Err(format!("{name} holds other bytes"));
            }
            named += length.min(bytes.len()) as u64;
        }
        let reused = self.plan(&incoming).reused();
        drop(folder);
        if reused + FRAME < named {
            return Err(format!("{reused} bytes of {named} are taken up"));
        }
        Ok(named)
    }

    fn check(&self, recording: &Recording) -> Check {
        let mut failed = Ok(());
        recording.each_state(1, |cut, survival, image| {
            if failed.is_ok()
                && let Err(why) = self.sound(image)
            {
                failed = Err(format!("{why}, after {cut} with {survival:?}"));
            }
        });
        failed?;
        // Behind each sync of names, what has a name keeps it.
        for at in recording.syncs() {
            if matches!(recording.event(at), Event::SyncDirectory(_)) {
                let durable = self.sound(&recording.image(at + 1, Survival::SyncedOnly))?;
                let named = self.sound(&recording.image(at + 1, Survival::Everything))?;
                if durable < named {
                    return Err(format!("{durable} bytes of {named} are left after {at}"));
                }
            }
        }
        Ok(())
    }
}

fn laid_out(image: &Image) -> (tempfile::TempDir, Dir) {
    let folder = crash::scratch();
    image.materialise(folder.path());
    let dir = Dir::open(folder.path()).unwrap();
    (folder, dir)
}

#[test]
fn fetching_survives_a_cut_after_every_change() {
    let fetched = Fetched::new();
    let folder = crash::scratch();
    let incoming = Dir::open(folder.path()).unwrap();
    let (recording, result) = crash::record(folder.path(), || fetched.fetch(&incoming));
    result.unwrap();
    assert!(recording.syncs().len() >= 4, "two batches at the least");
    every_sync_counts(&recording, |recording| fetched.check(recording));
    // From any state, the next run completes.
    let mut number = 0;
    recording.each_state(1, |cut, survival, image| {
        number += 1;
        if number % 7 == 0 {
            let (_folder, incoming) = laid_out(image);
            fetched
                .fetch(&incoming)
                .unwrap_or_else(|why| panic!("{why}, after {cut} with {survival:?}"));
            assert_eq!(fetched.plan(&incoming).contents(), 0);
            assert_eq!(World::picture(&incoming).len(), fetched.expected.len());
        }
    });
}

/// A delta of noise, which is as good as any other for who fetches it; in the repository its first
/// `there` bytes are right.
fn delta(world: &World, size: u64, there: u64) -> DeltaRef {
    let bytes = noise(7, size as usize);
    let digests = bytes.chunks(GRAIN as usize).map(|grain| Sha256Digest::of(grain).0);
    let table = digests.collect::<Vec<_>>().concat();
    let (id, from) = (Sha256Digest::of(&table), ReleaseDigest([1; 32]));
    let delta = DeltaRef { from, id, size, head: size, groups: Vec::new() };
    let wrong = vec![0; (size - there) as usize];
    let file = [&table, &bytes[..there as usize], &wrong].concat();
    std::fs::create_dir_all(world.file("deltas")).unwrap();
    std::fs::write(world.file(&delta.path()), file).unwrap();
    delta
}

#[test]
fn what_came_of_a_delta_is_kept_behind_each_batch_and_when_the_rest_does_not_come() {
    let batch = contents::BATCH_BYTES;
    // (size, what the repository has right of it, how many of the syncs count): of a delta of one batch
    // the last two, also when it breaks off; of a larger one those of the batch, after which its
    // name is durable, and that of the end.
    for (size, there, counting) in
        [(3 * GRAIN, 3 * GRAIN, 2), (3 * GRAIN, GRAIN, 2), (batch + GRAIN, batch + GRAIN, 3)]
    {
        let world = World::new();
        let (delta, sources) = (delta(&world, size, there), world.sources());
        let folder = crash::scratch();
        let incoming = Dir::open(folder.path()).unwrap();
        let fetch = |incoming: &Dir| {
            let mut file = DeltaFile::open(incoming, &delta).map_err(|error| error.to_string())?;
            file.fetch(std::slice::from_ref(&(0..size)), &sources, &Silent, &Cancel::new())
                .map_err(|error| error.to_string())
        };
        let (recording, result) = crash::record(folder.path(), || fetch(&incoming));
        assert_eq!(result.is_ok(), there == size, "{result:?}");
        // By what is right, as the next run sees it.
        let missing = |image: &Image| {
            let (_folder, incoming) = laid_out(image);
            DeltaFile::open(&incoming, &delta).unwrap().missing(std::slice::from_ref(&(0..size)))
        };
        these_syncs_count(&recording, &recording.syncs()[..counting], |recording| {
            for at in recording.syncs() {
                if matches!(recording.event(at), Event::SyncDirectory(_)) {
                    let durable = missing(&recording.image(at + 1, Survival::SyncedOnly));
                    let written = missing(&recording.image(at + 1, Survival::Everything));
                    if durable > written {
                        return Err(format!(
                            "{durable} bytes are missing after {at}, not {written}"
                        ));
                    }
                }
            }
            Ok(())
        });
        let left = missing(&recording.image(recording.len(), Survival::SyncedOnly));
        assert_eq!(left, size - there);
        // From any state the next run goes on.
        self::delta(&world, size, size);
        let mut number = 0;
        recording.each_state(1, |cut, survival, image| {
            number += 1;
            if number % 61 == 0 {
                let (_folder, incoming) = laid_out(image);
                fetch(&incoming).unwrap_or_else(|why| panic!("{why}, {cut} with {survival:?}"));
            }
        });
    }
}

#[test]
fn trust_is_the_old_or_the_new_after_every_cut() {
    let world = World::new();
    let cancel = Cancel::new();
    world.trust().refresh(&world.sources(), day(0), &cancel).unwrap();
    world.release("a", &[("a", b"a")], 4096, day(1));
    let refresh = || world.trust().refresh(&world.sources(), day(1), &cancel).unwrap();
    let (recording, _) = crash::record(world.trust.path(), refresh);
    every_sync_counts(&recording, |recording| {
        let mut failed = Ok(());
        let releases = |image: &Image| -> Result<usize, String> {
            let (_folder, dir) = laid_out(image);
            let seen = Trust::open(&dir).last_seen().map_err(|error| error.to_string())?;
            Ok(seen.ok_or("trust was lost")?.len())
        };
        recording.each_state(2, |cut, survival, image| {
            if failed.is_ok()
                && let Err(why) = releases(image)
            {
                failed = Err(format!("{why}, after {cut} with {survival:?}"));
            }
        });
        failed?;
        match releases(&recording.image(recording.len(), Survival::SyncedOnly))? {
            1 => Ok(()),
            other => Err(format!("{other} releases are known when all is done")),
        }
    });
}
