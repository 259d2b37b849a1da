//! Formats of our own, and the kernel's. What is accepted comes back from its own text.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;

use varve_delta::{Contents, Delta, Limits, Sink, fuzzing};
use varve_format::deployment::{DeploymentRecord, LayerRecord};
use varve_format::layer_file::{LayerHeader, START, Start};
use varve_format::manifest::Manifest;
use varve_format::pack::PackIndex;
use varve_format::release::ReleaseRecord;
use varve_format::selection::Selection;
use varve_format::{ContentDigest, verity};

pub(crate) fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        assert_eq!(manifest.to_text(), bytes, "one spelling for each tree");
        let _ = manifest.totals();
        let _ = manifest.link_groups();
        let config = varve_agent::config::Config::default();
        let _ = varve_agent::policy::check(&manifest, &config);
    }
}

pub(crate) fn pack_index(bytes: &[u8]) {
    if let Ok(index) = PackIndex::parse(bytes) {
        assert_eq!(index.to_bytes(), bytes);
        for content in index.contents() {
            assert_eq!(index.find(&content.digest), Some(content));
            assert!(index.frames_of(content).end <= index.frames().len());
        }
    }
}

pub(crate) fn release_record(bytes: &[u8]) {
    if let Ok(record) = ReleaseRecord::parse(bytes) {
        assert_eq!(ReleaseRecord::parse(&record.to_bytes()).unwrap(), record);
    }
}

pub(crate) fn deployment_record(bytes: &[u8]) {
    if let Ok(record) = DeploymentRecord::parse(bytes) {
        assert_eq!(DeploymentRecord::parse(record.to_text().as_bytes()).unwrap(), record);
    }
}

pub(crate) fn layer_record(bytes: &[u8]) {
    if let Ok(record) = LayerRecord::parse(bytes) {
        assert_eq!(LayerRecord::parse(record.to_text().as_bytes()).unwrap(), record);
    }
}

/// The first 120 bytes are a file's start, the rest is its header.
pub(crate) fn layer_file(bytes: &[u8]) {
    let Some((start, header)) = bytes.split_first_chunk::<START>() else { return };
    let at = u64::from_le_bytes(start[16..24].try_into().expect("8 bytes"));
    if let Ok(parsed) = Start::parse(start, at.saturating_add(header.len() as u64)) {
        assert_eq!(parsed.to_bytes(), *start);
    }
    if let Ok(parsed) = LayerHeader::parse(header, at) {
        assert_eq!(LayerHeader::parse(&parsed.to_bytes(), at).unwrap(), parsed);
        assert_eq!(parsed.places().unwrap().last().unwrap().range.end, at);
        assert!(parsed.opaque().is_some());
    }
}

pub(crate) fn selection(bytes: &[u8]) {
    if let Ok(selection) = Selection::parse(bytes) {
        assert_eq!(Selection::parse(selection.to_text().as_bytes()).unwrap(), selection);
    }
}

pub(crate) fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Err(error) = varve_agent::config::Config::parse(&text, "varve.toml") {
        assert!(!error.to_string().is_empty());
    }
}

pub(crate) fn history(bytes: &[u8]) {
    for line in varve_agent::history::parse(bytes) {
        if let varve_agent::history::Line::Record(record) = line {
            let _ = record.to_line();
        }
    }
}

pub(crate) fn boot_report(bytes: &[u8]) {
    if let Ok(report) = varve_boot::report::BootReport::parse(bytes) {
        let text = report.to_text();
        assert!(varve_boot::report::BootReport::parse(text.as_bytes()).is_ok(), "{text}");
    }
}

pub(crate) fn command_line(bytes: &[u8]) {
    let line = varve_sys::cmdline::CommandLine::parse(bytes);
    let _ = (line.value("varve.deployment"), line.has("varve.menu"));
}

pub(crate) fn mountinfo(bytes: &[u8]) {
    let _ = varve_sys::mountinfo::parse_mountinfo(bytes);
}

pub(crate) fn delta_index(bytes: &[u8]) {
    fuzzing::parse_index(bytes);
}

pub(crate) fn container(bytes: &[u8]) {
    let _ = fuzzing::walk(bytes);
}

/// A text, its length before it in two bytes, and a stream that should decode to it: what
/// the stream's encoder chose is read, and the stream made again of that.
pub(crate) fn delta_frame(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let at = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (text, stream) = rest.split_at(at);
    let _ = fuzzing::frame(stream, text);
}

pub(crate) fn stored(bytes: &[u8]) {
    varve_fetch::worker::fuzzing::stored(bytes);
}

pub(crate) fn worker_answer(bytes: &[u8]) {
    varve_fetch::worker::fuzzing::answers(bytes);
}

pub(crate) fn rejected(bytes: &[u8]) {
    use varve_agent::rejected::Rejected;
    if let Ok(rejected) = Rejected::parse(bytes) {
        assert_eq!(Rejected::parse(rejected.to_text().as_bytes()), Ok(rejected));
    }
}

/// Three texts, apart by zero bytes: of a settings file, and of the accounts.
pub(crate) fn three_way(bytes: &[u8]) {
    let mut texts = bytes.splitn(3, |&byte| byte == 0);
    let [base, ours, theirs] = [(); 3].map(|()| texts.next().unwrap_or_default());
    for path in [&b"etc/settings"[..], b"etc/passwd", b"etc/group", b"etc/subuid"] {
        let merge = |ours, theirs| varve_rootfs::three_way::merge(path, base, ours, theirs);
        let _ = merge(ours, theirs);
        // Where one side changed nothing, the other's text is taken as it is.
        if path == b"etc/settings" && !bytes.is_empty() {
            let text = std::str::from_utf8(ours).is_ok() && std::str::from_utf8(base).is_ok();
            assert!(!text || merge(ours, base).as_deref() == Some(ours));
            assert!(!text || merge(base, ours).as_deref() == Some(ours));
        }
    }
}

/// A whole delta, head and all, from the release of [`OLD`].
pub(crate) fn delta_open(bytes: &[u8]) {
    let store = Store::default();
    if let Ok(delta) = Delta::open(bytes, &release(&OLD)) {
        let _ = delta.apply(&bytes, &store, &store, LIMITS);
    }
}

/// Recipes and coded bytes of a liar, behind a head that is in order: the length of the
/// index in two bytes, the index, the stream.
pub(crate) fn delta_apply(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let at = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (index, stream) = rest.split_at(at);
    let store = Store::default();
    let _ = fuzzing::apply([&release(&OLD), &release(&NEW)], index, stream, &store, LIMITS);
}

/// What a small device allows.
const LIMITS: Limits = Limits { memory: 64 << 20, threads: 1 };

/// The contents of the release that deltas start from.
pub const OLD: [&[u8]; 3] =
    [b"old bytes", b"a longer content of the old release, as text\n", &[7; 5000]];
/// And of the one that they lead to.
pub const NEW: [&[u8]; 2] = [b"new bytes", b"a longer content of the new release, as text\n"];

/// The manifest of files with these contents.
pub fn release(contents: &[&[u8]]) -> Vec<u8> {
    let mut text = b"/ 0 40755 2 0 0 0 0.0 - - -\n".to_vec();
    for (number, bytes) in contents.iter().enumerate() {
        let hex = verity::content_digest(bytes).to_hex();
        let line = format!(
            "/{number} {} 100644 1 0 0 0 0.0 {}/{} - {hex}\n",
            bytes.len(),
            &hex[..2],
            &hex[2..]
        );
        text.extend_from_slice(line.as_bytes());
    }
    Manifest::parse(&text).expect("a manifest").to_text()
}

struct Store(Mutex<HashMap<ContentDigest, Vec<u8>>>);

impl Default for Store {
    fn default() -> Self {
        let contents = OLD.iter().map(|bytes| (verity::content_digest(bytes), bytes.to_vec()));
        Self(Mutex::new(contents.collect()))
    }
}

impl Contents for Store {
    fn read(&self, digest: &ContentDigest) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().expect("one thread").get(digest).cloned())
    }
}

impl Sink for Store {
    fn put(&self, digest: &ContentDigest, bytes: &[u8]) -> io::Result<()> {
        assert_eq!(verity::content_digest(bytes), *digest, "handed on unverified");
        self.0.lock().expect("one thread").insert(*digest, bytes.to_vec());
        Ok(())
    }
}
