//! Makes a delta between two directories, applies it, checks every content, and prints
//! what it took: `delta OLD NEW [MEMORY in MiB] [THREADS]`.

#![allow(clippy::disallowed_methods, reason = "scratch files of an example")]

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use varve_delta::{Contents, Delta, Limits, MakeLimits, Sink};
use varve_format::manifest::Manifest;
use varve_format::tree::{Entry, Kind, Metadata, Time};
use varve_format::{ContentDigest, TreePath, verity};

#[derive(Default)]
struct Store {
    paths: HashMap<ContentDigest, PathBuf>,
    made: Mutex<HashMap<ContentDigest, PathBuf>>,
}

impl Contents for Store {
    fn read(&self, digest: &ContentDigest) -> std::io::Result<Option<Vec<u8>>> {
        let made = self.made.lock().unwrap().get(digest).cloned();
        made.or_else(|| self.paths.get(digest).cloned()).map(std::fs::read).transpose()
    }
}

impl Sink for Store {
    fn put(&self, digest: &ContentDigest, bytes: &[u8]) -> std::io::Result<()> {
        let path = std::env::temp_dir().join(format!("{}-{digest}", std::process::id()));
        std::fs::write(&path, bytes)?;
        self.made.lock().unwrap().insert(*digest, path);
        Ok(())
    }
}

fn scan(root: &Path, dir: &Path, store: &mut Store, entries: &mut Vec<Entry>) {
    let relative = dir.strip_prefix(root).unwrap();
    let add = |path: &Path, kind: Kind, m: &std::fs::Metadata, entries: &mut Vec<Entry>| {
        let meta = Metadata {
            mode: m.mode() & 0o7777,
            uid: m.uid(),
            gid: m.gid(),
            mtime: Time { seconds: m.mtime(), nanoseconds: 0 },
            xattrs: Vec::new(),
        };
        entries.push(Entry {
            path: TreePath::new(path.as_os_str().as_bytes()).unwrap(),
            kind,
            meta,
        });
    };
    add(relative, Kind::Directory, &std::fs::metadata(dir).unwrap(), entries);
    for item in std::fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        let m = std::fs::symlink_metadata(&path).unwrap();
        let relative = path.strip_prefix(root).unwrap().to_path_buf();
        if m.is_dir() {
            scan(root, &path, store, entries);
        } else if m.is_symlink() {
            let target = std::fs::read_link(&path).unwrap().as_os_str().as_bytes().into();
            add(&relative, Kind::Symlink { target }, &m, entries);
        } else if m.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let digest = verity::content_digest(&bytes);
            store.paths.insert(digest, path);
            add(&relative, Kind::Regular { size: bytes.len() as u64, digest }, &m, entries);
        }
    }
}

fn manifest(root: &str, store: &mut Store) -> Vec<u8> {
    let mut entries = Vec::new();
    scan(Path::new(root), Path::new(root), store, &mut entries);
    Manifest::from_entries(entries).unwrap().to_text()
}

fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default().to_owned()
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let memory = args.get(3).and_then(|a| a.parse::<u64>().ok()).map_or(u64::MAX, |m| m << 20);
    let threads = args.get(4).and_then(|a| a.parse().ok()).unwrap_or(2);
    let (mut old, mut new) = (Store::default(), Store::default());
    let from = manifest(&args[1], &mut old);
    let to = manifest(&args[2], &mut new);
    let file = std::env::var("DELTA").unwrap_or_else(|_| "out.delta".into());
    if std::env::var("APPLY").is_err() {
        let mut both = Store::default();
        both.paths.extend(new.paths.clone());
        both.paths.extend(old.paths.clone());
        let clock = Instant::now();
        let (delta, report) =
            varve_delta::make(&from, &to, &both, MakeLimits::default(), None).unwrap();
        println!(
            "made {} bytes in {:.1?} {:?} {}",
            delta.len(),
            clock.elapsed(),
            report.seconds,
            peak()
        );
        println!(
            "manifest {} index {} contents {} size {}",
            report.manifest, report.index, report.contents, report.size
        );
        for group in &report.groups {
            println!("{group:?}");
        }
        println!("closed {:?}", report.closed);
        for (path, size, stored) in report.largest.iter().take(40) {
            println!("{stored:>9} {size:>9} {path}");
        }
        std::fs::write(&file, &delta).unwrap();
    }
    if std::env::var("MAKE").is_ok() {
        return;
    }
    let delta = std::fs::read(&file).unwrap();
    let clock = Instant::now();
    let opened = Delta::open(&delta, &from).unwrap();
    println!("opened in {:.1?}", clock.elapsed());
    assert_eq!(opened.manifest(), to);
    let applied = opened.apply(&delta, &old, &old, Limits { memory, threads }).unwrap();
    for (offer, time) in opened.groups().zip(&applied.times) {
        println!(
            "group of {} contents: {} bytes, states {} MiB, took {time:.1?}",
            offer.contents.len(),
            offer.stream.end - offer.stream.start,
            offer.memory >> 20
        );
    }
    println!("applied in {:.1?}: made {}, {}", clock.elapsed(), applied.made, peak());
    for (digest, size, why) in &applied.left {
        println!("left {size} {why:?} {:?}", new.paths[digest]);
    }
    for path in old.made.lock().unwrap().values() {
        std::fs::remove_file(path).unwrap();
    }
}
