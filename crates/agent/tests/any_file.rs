//! Any one file of the running, the previous or the staged system is damaged, with nothing
//! else on the disk that says so: `varve fsck` finds it, and mends it from whoever has it
//! (another deployment, the repository, a stick, a neighbour), fetching only what is bad.

#![allow(clippy::disallowed_methods, reason = "the disk that does damage")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Lab, noise, now, with_context};
use varve_agent::config::Source;
use varve_agent::fsck::{Found, fsck};
use varve_agent::repair::{Repaired, repair};
use varve_sys::task::Cancel;
use varve_testkit::faulty::Server;

/// Files of each kind that are damaged, for each layout.
const OF_EACH_KIND: usize = 6;

fn check(lab: &Lab) -> Found {
    let device = lab.device();
    with_context(&Cancel::new(), |context| fsck(&device, None, context)).unwrap()
}

fn mend_from(lab: &Lab, source: Source) -> Repaired {
    let mut device = lab.device();
    device.config.sources = vec![source];
    let writer = device.lock("fsck --repair", now()).unwrap();
    with_context(&Cancel::new(), |context| repair(&device, &writer, None, context)).unwrap()
}

/// r1 to go back to, r2 running, r3 staged and promoted.
fn device(layout: &str) -> Lab {
    let lab = Lab::new().with(&format!("layout = {layout:?}\nkeep = 3"));
    lab.publish("r1");
    lab.init();
    lab.tree().file("usr/bin/second", noise(11, 200_000)).file("etc/issue", "two\n");
    lab.publish("r2");
    lab.upgrade();
    lab.boot(false);
    lab.after_boot();
    lab.tree().file("usr/bin/third", noise(12, 150_000)).file("etc/issue", "three\n");
    lab.publish("r3");
    lab.upgrade();
    assert_eq!(lab.device().store.deployments().unwrap().items.len(), 3);
    lab
}

/// All that a deployment is made of, by what it is; each inode once.
fn kinds(varve: &Path) -> BTreeMap<&'static str, Vec<PathBuf>> {
    let mut kinds: BTreeMap<&str, Vec<PathBuf>> = BTreeMap::new();
    let mut inodes = std::collections::HashSet::new();
    let mut open = vec![PathBuf::from("deployments"), "layers".into(), "trees".into()];
    open.push("boot".into());
    while let Some(at) = open.pop() {
        let mut entries: Vec<_> =
            fs::read_dir(varve.join(&at)).unwrap().map(|entry| entry.unwrap()).collect();
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let path = at.join(entry.file_name());
            let meta = entry.metadata().unwrap();
            let name = entry.file_name().into_string().unwrap();
            // A copy is read by nobody until it is needed; the next command writes it anew.
            let is_copy = name.ends_with(".copy");
            if meta.is_dir() {
                open.push(path);
            } else if meta.is_file() && meta.len() > 0 && !is_copy && inodes.insert(meta.ino()) {
                let kind = match name.as_str() {
                    "deployment.toml" => "deployment record",
                    "layer.toml" => "layer record",
                    "manifest" => "manifest",
                    "selection" => "selection",
                    _ => "file",
                };
                kinds.entry(kind).or_default().push(path);
            } else if meta.is_symlink() {
                kinds.entry("link").or_default().push(path);
            }
        }
    }
    kinds
}

/// xorshift64*
fn below(state: &mut u64, end: u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
}

/// A bit flips, behind the back of everybody; a link leads elsewhere.
fn rot(path: &Path, random: &mut u64) {
    let meta = fs::symlink_metadata(path).unwrap();
    if meta.is_symlink() {
        let target = fs::read_link(path).unwrap().into_os_string().into_string().unwrap();
        fs::remove_file(path).unwrap();
        std::os::unix::fs::symlink(format!("{}x", &target[..target.len() - 1]), path).unwrap();
        return;
    }
    let (time, at) = (meta.modified().unwrap(), below(random, meta.len()));
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << below(random, 8))], at).unwrap();
    file.set_modified(time).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let done = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(done.success());
}

#[test]
fn any_one_file_is_found_and_mended_from_whoever_has_it() {
    for layout in ["overlay", "hard-link"] {
        let lab = device(layout);
        let (disk, whole) = (lab.disk(), lab.folder.path().join("whole"));
        let stick = lab.folder.path().join("stick");
        copy(&lab.repository_path(), &stick);
        let neighbour = Server::good(&stick);
        copy(&disk, &whole);
        let mut random = 0x9e37_79b9_7f4a_7c15;
        let kinds = kinds(&disk.join("varve"));
        let expected: &[&str] = match layout {
            "overlay" => {
                &["deployment record", "file", "layer record", "link", "manifest", "selection"]
            }
            _ => &["deployment record", "file", "link", "manifest", "selection"],
        };
        assert!(kinds.keys().eq(expected), "{layout}: {kinds:?}");
        let sources = [
            Source::Directory(lab.repository_path()),
            Source::Directory(stick),
            Source::Url(neighbour.url.clone()),
        ];
        let mut turn = 0;
        for (kind, paths) in &kinds {
            for n in 0..OF_EACH_KIND {
                let path = match paths.len() <= OF_EACH_KIND {
                    true => &paths[n % paths.len()],
                    false => &paths[below(&mut random, paths.len() as u64) as usize],
                };
                copy(&whole, &disk);
                let damaged = disk.join("varve").join(path);
                rot(&damaged, &mut random);
                let spoiled = fs::read(&damaged).ok();
                let what = format!("{layout}, {kind} {}", path.display());
                let found = check(&lab);
                // The sign that there is a checksum may itself be hit: the record is right.
                if found.is_clean() && kind.ends_with("record") {
                    lab.check_all();
                    continue;
                }
                assert!(!found.is_clean(), "{what}: not found");
                let source = &sources[turn % sources.len()];
                turn += 1;
                let repaired = mend_from(&lab, source.clone());
                assert!(repaired.is_complete(), "{what}, {source:?}: {repaired:?}");
                lab.check_all();
                // Nothing but the file, what shares a frame with it, and metadata.
                let contents: u64 = repaired.deployments.iter().map(|d| d.fetched).sum();
                assert!(contents <= 1, "{what}: {repaired:?}");
                let size = spoiled.as_ref().map_or(0, Vec::len) as u64;
                assert!(repaired.fetched <= size + 600_000, "{what}: {repaired:?}");
                // An inode of a tree may be in use, and another deployment's: never written.
                if *kind == "file" {
                    assert_eq!(fs::read(&damaged).ok(), spoiled, "{what}: written in place");
                }
                assert_eq!(lab.selection().latest.as_str(), "r3", "{what}");
                assert_eq!(lab.boot(false), "r3", "{what}");
            }
        }
        assert!(!neighbour.log().is_empty(), "nobody asked the neighbour");
    }
}

/// What a device trusts is signed, so damage is seen; nothing on the device can mend it, and
/// that is said, while all else is mended.
#[test]
fn damage_of_the_trust_is_found_and_told() {
    let lab = device("overlay");
    let state = lab.disk().join("varve/trust/state");
    let whole = fs::read(&state).unwrap();
    let mut random = 3;
    let mut told = 0;
    for _ in 0..200 {
        fs::write(&state, &whole).unwrap();
        rot(&state, &mut random);
        let device = lab.device();
        let trust = varve_sys::Dir::open(state.parent().unwrap()).unwrap();
        told += usize::from(varve_fetch::Trust::open(&trust).damage().is_some());
        drop(device);
    }
    // What else may change is how the documents are written down, and not what they say.
    assert!(told > 150, "{told} of 200");
    for text in [&whole[..whole.len() / 2], b"{}"] {
        fs::write(&state, text).unwrap();
        let found = check(&lab);
        assert!(found.records.iter().any(|line| line.contains("trust/state")), "{found:?}");
        let repaired = mend_from(&lab, Source::Directory(lab.repository_path()));
        assert!(repaired.left.iter().any(|line| line.contains("trust/state")), "{repaired:?}");
        assert_eq!(lab.boot(false), "r3");
    }
}

/// What an upgrade builds upon is read before it is linked: whatever file of it the disk has
/// damaged, the new deployment is whole, and shares no inode with the damage.
#[test]
fn no_damage_comes_into_the_next_deployment_by_a_hard_link() {
    for layout in ["overlay", "hard-link"] {
        let lab = device(layout);
        lab.publish("r4");
        let (disk, whole) = (lab.disk(), lab.folder.path().join("whole"));
        copy(&disk, &whole);
        let mut random = 7;
        let mut files = kinds(&disk.join("varve")).remove("file").unwrap();
        // What is the release's own version is in no other one.
        files.retain(|path| !path.ends_with("usr/lib/release"));
        for _ in 0..2 * OF_EACH_KIND {
            copy(&whole, &disk);
            let path = &files[below(&mut random, files.len() as u64) as usize];
            let damaged = disk.join("varve").join(path);
            rot(&damaged, &mut random);
            let inode = fs::metadata(&damaged).unwrap().ino();
            lab.upgrade();
            let what = format!("{layout}, {}", path.display());
            let found = check(&lab);
            let new = found.deployments.last().unwrap();
            assert_eq!((new.deployment.as_str(), new.differences), ("r4", 0), "{what}: {found:?}");
            let part = match layout {
                "overlay" => "layers/r4",
                _ => "trees/r4",
            };
            let mut open = vec![disk.join("varve").join(part)];
            while let Some(at) = open.pop() {
                for entry in fs::read_dir(at).unwrap().map(Result::unwrap) {
                    let meta = entry.metadata().unwrap();
                    assert_ne!(meta.ino(), inode, "{what}: linked as {:?}", entry.path());
                    if meta.is_dir() {
                        open.push(entry.path());
                    }
                }
            }
        }
    }
}
