//! A real repository on disk, made with the publisher's own code, and the means to break
//! it; a real HTTP server that misbehaves as told.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(unreachable_pub, reason = "a test's common code is a module of each test")]
#![allow(clippy::disallowed_methods, reason = "test data, kept by no device")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use varve_fetch::{
    DirTransport, HttpOptions, HttpTransport, Metadata as Offered, Patience, Refusal, Sources,
    Transport, Trust, TrustError, Workers,
};
use varve_format::manifest::Manifest;
use varve_format::pack::{Location, PACK_MAGIC, PackIndex};
use varve_format::release::{PackRef, ReleaseRecord, StoredManifest};
use varve_format::tree::{Entry, Kind, Metadata};
use varve_format::verity::content_digest;
use varve_format::{ContentDigest, Sha256Digest, TreePath};
use varve_publish::{InitOptions, KeyDirs, Repository};
use varve_sys::Dir;
use varve_sys::task::Cancel;

/// The day on which the tests' repositories are made.
pub fn day(number: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + number * 86_400).unwrap()
}

/// A repository with its keys, and a device's trust directory.
pub struct World {
    pub temp: tempfile::TempDir,
    pub keys: KeyDirs,
    pub repository: Repository,
    pub trust: Dir,
    pub incoming: Dir,
}

impl World {
    pub fn new() -> Self {
        Self::with(&InitOptions::default())
    }

    pub fn with(options: &InitOptions) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let keys = KeyDirs::below(&temp.path().join("keys"));
        let path = temp.path().join("repository");
        let repository = Repository::init(&path, &keys, options, day(0)).unwrap();
        for name in ["trust", "incoming"] {
            std::fs::create_dir(temp.path().join(name)).unwrap();
        }
        let trust = Dir::open(temp.path().join("trust")).unwrap();
        let incoming = Dir::open(temp.path().join("incoming")).unwrap();
        let root = std::fs::read(path.join("metadata/1.root.json")).unwrap();
        Trust::init(&trust, &root, day(0)).unwrap();
        Self { temp, keys, repository, trust, incoming }
    }

    pub fn path(&self) -> PathBuf {
        self.temp.path().join("repository")
    }

    pub fn file(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }

    pub fn trust(&self) -> Trust<'_> {
        Trust::open(&self.trust)
    }

    /// The repository as a source.
    pub fn sources(&self) -> Sources {
        Sources::new(vec![Arc::new(DirTransport::new(self.path()))], hasty())
    }

    /// Builds a release of these files (one pack, frames of `frame` bytes) and publishes it.
    pub fn release(
        &self,
        name: &str,
        files: &[(&str, &[u8])],
        frame: usize,
        now: Timestamp,
    ) -> ReleaseRecord {
        let record = self.build(name, files, frame);
        self.repository
            .publish(&name.parse().unwrap(), "stable", None, &self.keys, now, false)
            .unwrap();
        record
    }

    pub fn build(&self, name: &str, files: &[(&str, &[u8])], frame: usize) -> ReleaseRecord {
        let (pack, index) = pack(files.iter().map(|(_, bytes)| *bytes), frame);
        let index_bytes = index.to_bytes();
        let id = Sha256Digest::of(&pack);
        self.write(&format!("packs/{id}.pack"), &pack);
        self.write(&format!("packs/{id}.idx"), &index_bytes);
        let manifest = manifest(files);
        let text = manifest.to_text();
        let stored = zstd::encode_all(&text[..], 3).unwrap();
        let digest = manifest.digest();
        self.write(&format!("manifests/{digest}.zst"), &stored);
        let record = ReleaseRecord {
            format: 1,
            name: name.parse().unwrap(),
            digest,
            architecture: "amd64".into(),
            title: String::new(),
            notes: String::new(),
            manifest: StoredManifest {
                sha256: Sha256Digest::of(&stored),
                size: stored.len() as u64,
                text_size: text.len() as u64,
            },
            totals: manifest.totals(),
            packs: vec![PackRef {
                id,
                size: pack.len() as u64,
                index_sha256: Sha256Digest::of(&index_bytes),
                index_size: index_bytes.len() as u64,
            }],
            kernel: None,
        };
        self.write(&format!("pending/{name}.json"), &record.to_bytes());
        record
    }

    pub fn write(&self, path: &str, bytes: &[u8]) {
        std::fs::write(self.file(path), bytes).unwrap();
    }

    pub fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.file(path)).unwrap()
    }

    /// Every file of a directory of the device and its bytes: to show that nothing changed.
    pub fn picture(dir: &Dir) -> Vec<(String, Vec<u8>)> {
        dir.names()
            .unwrap()
            .into_iter()
            .map(|entry| {
                let bytes = std::fs::read(dir.path().join(&entry.name)).unwrap();
                (entry.name.into_string().unwrap(), bytes)
            })
            .collect()
    }
}

/// One check of the device's trust.
pub fn refresh(world: &World, sources: &Sources, now: Timestamp) -> Result<Offered, TrustError> {
    world.trust().refresh(sources, now, &Cancel::new())
}

/// Expects a refusal; proves that trust did not change; gives reason and message.
pub fn refused(world: &World, sources: &Sources, now: Timestamp) -> (Refusal, String) {
    let before = World::picture(&world.trust);
    let error = refresh(world, sources, now).expect_err("a bad repository must be refused");
    assert_eq!(World::picture(&world.trust), before, "a refused repository changed the trust");
    let text = error.to_string();
    match error {
        TrustError::Refused { reason, .. } => (reason, text),
        other => panic!("not a refusal: {other}"),
    }
}

pub fn names(metadata: &Offered) -> Vec<&str> {
    metadata.releases().iter().map(|release| release.name.as_str()).collect()
}

pub fn http(url: &str) -> Arc<dyn Transport> {
    let options = HttpOptions { stall: Duration::from_millis(600), ..HttpOptions::default() };
    Arc::new(HttpTransport::new(url, &options, &Workers::default()).unwrap())
}

/// Patience for tests: short pauses, and a trickle is given up within a second.
pub fn hasty() -> Patience {
    Patience {
        attempts: 3,
        first_pause: Duration::from_millis(5),
        longest_pause: Duration::from_millis(20),
        slowest_window: Duration::from_millis(700),
        slowest_bytes: 1024,
        ..Patience::default()
    }
}

pub fn manifest(files: &[(&str, &[u8])]) -> Manifest {
    let meta = |mode| Metadata { mode, ..Metadata::default() };
    let mut entries =
        vec![Entry { path: TreePath::root(), kind: Kind::Directory, meta: meta(0o755) }];
    let mut directories = std::collections::BTreeSet::new();
    for (path, bytes) in files {
        for ancestor in Path::new(path).ancestors().skip(1).filter(|a| !a.as_os_str().is_empty()) {
            directories.insert(ancestor.to_owned());
        }
        let kind = Kind::Regular { size: bytes.len() as u64, digest: content_digest(bytes) };
        entries.push(Entry {
            path: TreePath::new(path.as_bytes()).unwrap(),
            kind,
            meta: meta(0o644),
        });
    }
    for directory in directories {
        let path = TreePath::new(directory.to_str().unwrap().as_bytes()).unwrap();
        entries.push(Entry { path, kind: Kind::Directory, meta: meta(0o755) });
    }
    Manifest::from_entries(entries).unwrap()
}

/// A pack of these contents: small ones share frames, large ones run over several.
pub fn pack<'a>(contents: impl Iterator<Item = &'a [u8]>, frame: usize) -> (Vec<u8>, PackIndex) {
    let mut pack = PACK_MAGIC.to_vec();
    let mut frames = Vec::new();
    let mut locations = Vec::new();
    let mut open: Vec<u8> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut close = |open: &mut Vec<u8>| {
        if !open.is_empty() {
            let stored = zstd::bulk::compress(open, 3).unwrap();
            frames.push((stored.len() as u32, open.len() as u32, Sha256Digest::of(&stored)));
            pack.extend_from_slice(&stored);
            open.clear();
        }
        frames.len() as u32
    };
    for bytes in contents.filter(|bytes| !bytes.is_empty()) {
        let digest: ContentDigest = content_digest(bytes);
        if !seen.insert(digest) {
            continue;
        }
        if open.len() + bytes.len() > frame {
            close(&mut open);
        }
        let number = if open.is_empty() { close(&mut Vec::new()) } else { u32::MAX };
        let number = if number == u32::MAX {
            locations.last().map_or(0, |l: &Location| l.frame)
        } else {
            number
        };
        locations.push(Location {
            digest,
            size: bytes.len() as u64,
            frame: number,
            start: open.len() as u32,
        });
        if bytes.len() > frame {
            for part in bytes.chunks(frame) {
                open.extend_from_slice(part);
                close(&mut open);
            }
        } else {
            open.extend_from_slice(bytes);
        }
    }
    close(&mut open);
    let index = PackIndex::new(frames, locations).unwrap();
    (pack, index)
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
