//! A repository's signed metadata, one document of it bent: whatever it says, what a
//! device believes is what the pinned root signed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use varve_fetch::{DirTransport, Patience, Sources, Trust};
use varve_sys::task::Cancel;
use varve_sys::{Dir, durable};

const FILES: [&str; 5] =
    ["timestamp.json", "3.snapshot.json", "3.targets.json", "2.root.json", "3.root.json"];

/// The first byte says which document the rest stands for.
pub(crate) fn tuf(bytes: &[u8]) {
    let Some((which, document)) = bytes.split_first() else { return };
    let file = FILES[usize::from(*which) % FILES.len()];
    static PLACE: OnceLock<(tempfile::TempDir, Vec<u8>)> = OnceLock::new();
    let (folder, root) = PLACE.get_or_init(place);
    let metadata = Dir::open(folder.path().join("repository/metadata")).expect("it was made");
    let good = std::fs::read(fixture().join("metadata").join(file)).ok();
    durable::replace_file(&metadata, file, document, 0o644).expect("a scratch directory");

    let trust = Dir::open(folder.path().join("trust")).expect("it was made");
    let now: Timestamp = "2026-11-24T00:00:00Z".parse().expect("a time");
    let trust = Trust::init(&trust, root, now).expect("the fixture's root");
    let source = DirTransport::new(folder.path().join("repository"));
    let sources = Sources::new(vec![Arc::new(source)], Patience::default());
    if let Ok(metadata) = trust.refresh(&sources, now, &Cancel::new()) {
        let names: Vec<_> = metadata.releases().iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["example-2", "example-1"], "a document that nobody signed was believed");
    }
    let _ = Trust::init(&Dir::open(folder.path().join("other")).expect("made"), document, now);
    match good {
        Some(good) => durable::replace_file(&metadata, file, &good, 0o644),
        None => metadata.unlink(file),
    }
    .expect("a scratch directory");
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fetch/tests/fixtures/repository-1")
}

fn place() -> (tempfile::TempDir, Vec<u8>) {
    let folder = crate::sources::scratch();
    let dir = Dir::open(folder.path()).expect("a scratch directory");
    let make = |dir: &Dir, name: &str| dir.make_dir(name, 0o755).expect("a scratch directory");
    make(&dir, "trust");
    make(&dir, "other");
    let metadata = make(&make(&dir, "repository"), "metadata");
    let from = fixture().join("metadata");
    for entry in std::fs::read_dir(&from).expect("the fixture").flatten() {
        let bytes = std::fs::read(entry.path()).expect("the fixture");
        let name = entry.file_name();
        let name = name.to_str().expect("a name");
        durable::replace_file(&metadata, name, &bytes, 0o644).expect("a scratch directory");
    }
    let root = std::fs::read(from.join("1.root.json")).expect("the fixture");
    (folder, root)
}
