//! Deltas through the public interface: every container, nested; random edits; broken
//! deltas and bases; too little memory.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Mutex;

use proptest::prelude::*;
use varve_delta::{ApplyError, Contents, Delta, Left, Limits, MakeLimits, Report, Sink};
use varve_format::manifest::Manifest;
use varve_format::tree::{Entry, Kind, Metadata};
use varve_format::{ContentDigest, TreePath, verity};

type Files = Vec<(&'static str, Vec<u8>)>;

#[derive(Default)]
struct Store(Mutex<HashMap<ContentDigest, Vec<u8>>>);

impl Store {
    fn of(files: &[(&str, Vec<u8>)]) -> Self {
        let store = Self::default();
        for (_, bytes) in files {
            store.0.lock().unwrap().insert(verity::content_digest(bytes), bytes.clone());
        }
        store
    }

    fn holds(&self, bytes: &[u8]) -> bool {
        self.0.lock().unwrap().contains_key(&verity::content_digest(bytes))
    }
}

impl Contents for Store {
    fn read(&self, digest: &ContentDigest) -> std::io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().get(digest).cloned())
    }
}

impl Sink for Store {
    fn put(&self, digest: &ContentDigest, bytes: &[u8]) -> std::io::Result<()> {
        assert_eq!(verity::content_digest(bytes), *digest, "handed on unverified");
        self.0.lock().unwrap().insert(*digest, bytes.to_vec());
        Ok(())
    }
}

fn manifest(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let meta = Metadata { mode: 0o644, ..Metadata::default() };
    let mut paths: Vec<TreePath> = vec![TreePath::root()];
    let mut entries = Vec::new();
    for (path, bytes) in files {
        let path = TreePath::new(path.as_bytes()).unwrap();
        let mut parent = path.parent();
        while let Some(dir) = parent {
            parent = dir.parent();
            if !paths.contains(&dir) {
                paths.push(dir);
            }
        }
        let kind =
            Kind::Regular { size: bytes.len() as u64, digest: verity::content_digest(bytes) };
        entries.push(Entry { path, kind, meta: meta.clone() });
    }
    entries.extend(paths.into_iter().map(|path| Entry {
        path,
        kind: Kind::Directory,
        meta: meta.clone(),
    }));
    Manifest::from_entries(entries).unwrap().to_text()
}

const ANY: Limits = Limits { memory: u64::MAX, threads: 2 };

fn make(old: &Files, new: &Files) -> (Vec<u8>, Report) {
    let both: Files = old.iter().chain(new).cloned().collect();
    varve_delta::make(
        &manifest(old),
        &manifest(new),
        &Store::of(&both),
        MakeLimits::default(),
        None,
    )
    .unwrap()
}

/// Makes, applies, checks every content; returns the delta.
fn round_trip(old: &Files, new: &Files) -> Vec<u8> {
    let (delta, report) = make(old, new);
    let head = |p: &String| new.iter().find(|f| f.0 == p).map(|f| f.1[..8].to_vec());
    let closed: Vec<_> = report.closed.iter().map(head).collect();
    assert!(closed.is_empty(), "streams that should have been opened: {closed:02x?}");
    let store = Store::of(old);
    let opened = Delta::open(&delta, &manifest(old)).unwrap();
    assert_eq!(opened.manifest(), manifest(new));
    let applied = opened.apply(&delta, &store, &store, ANY).unwrap();
    assert!(applied.left.is_empty(), "{:?}", applied.left);
    for (path, bytes) in new {
        assert!(bytes.is_empty() || store.holds(bytes), "{path}");
    }
    delta
}

/// Text that compresses, but not to nothing; much alike for two seeds that are near.
fn text(seed: u64, lines: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for line in 0..lines as u64 {
        let mut x = (line + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if line % 97 == 13 {
            x = x.wrapping_add(seed.wrapping_mul(0x1234_5678_9abc_def1));
        }
        for _ in 0..3 {
            x ^= x >> 29;
            x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
            writeln!(out, "line {line} says {:x}", x >> 20).unwrap();
        }
    }
    out
}

/// A deflate stream as gzip makes it; every Debian system has gzip.
fn deflate(bytes: &[u8]) -> Vec<u8> {
    use std::process::{Command, Stdio};
    let mut gzip = Command::new("gzip")
        .args(["-9n", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("gzip");
    let mut input = gzip.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let feed = std::thread::spawn(move || input.write_all(&bytes));
    let out = gzip.wait_with_output().unwrap().stdout;
    feed.join().unwrap().unwrap();
    out[10..out.len() - 8].to_vec()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 2, 3];
    out.extend_from_slice(b"name\0");
    out.extend(deflate(bytes));
    out.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out
}

fn xz(bytes: &[u8], block: u64) -> Vec<u8> {
    use liblzma::stream::{Check, Filters, LzmaOptions, MtStreamBuilder, Stream};
    let mut options = LzmaOptions::new_preset(6).unwrap();
    options.dict_size(1 << 20);
    let mut filters = Filters::new();
    filters.lzma2(&options);
    let stream = if block == 0 {
        Stream::new_stream_encoder(&filters, Check::Crc64).unwrap()
    } else {
        let mut builder = MtStreamBuilder::new();
        builder.threads(2).block_size(block).filters(filters).check(Check::Crc32);
        builder.encoder().unwrap()
    };
    let mut out = Vec::new();
    liblzma::read::XzEncoder::new_stream(bytes, stream).read_to_end(&mut out).unwrap();
    out
}

fn large_xz(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    liblzma::read::XzEncoder::new(bytes, 6).read_to_end(&mut out).unwrap();
    out
}

/// As the threaded encoder does: several blocks, each with its size.
fn blocks_xz(bytes: &[u8]) -> Vec<u8> {
    use liblzma::stream::{Check, Filters, LzmaOptions, MtStreamBuilder};
    let mut filters = Filters::new();
    filters.lzma2(&LzmaOptions::new_preset(6).unwrap());
    let mut builder = MtStreamBuilder::new();
    builder.threads(1).block_size(20_000).filters(filters).check(Check::Crc32);
    let mut out = Vec::new();
    let stream = builder.encoder().unwrap();
    liblzma::read::XzEncoder::new_stream(bytes, stream).read_to_end(&mut out).unwrap();
    out
}

fn zstd(bytes: &[u8], level: i32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), level).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.multithread(1).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x02, 0x21, 0x4c, 0x18];
    for chunk in bytes.chunks(8 << 20) {
        let mode = lz4::block::CompressionMode::HIGHCOMPRESSION(9);
        let block = lz4::block::compress(chunk, Some(mode), false).unwrap();
        out.extend_from_slice(&(block.len() as u32).to_le_bytes());
        out.extend(block);
    }
    out
}

fn cpio(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, bytes) in members.iter().chain(&[("TRAILER!!!", &b""[..])]) {
        // Fields: ino mode uid gid nlink mtime filesize maj min rmaj rmin namesize check.
        let mut fields = vec![0usize; 13];
        fields[1] = 0o100644;
        fields[4] = 1;
        fields[6] = bytes.len();
        fields[11] = name.len() + 1;
        out.extend_from_slice(b"070701");
        for field in fields {
            out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, bytes) in members {
        let mut head = [0u8; 512];
        head[..name.len()].copy_from_slice(name.as_bytes());
        head[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
        head[257..263].copy_from_slice(b"ustar\0");
        out.extend_from_slice(&head);
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        writeln!(out, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, 100644, bytes.len())
            .unwrap();
        out.extend_from_slice(bytes);
        if out.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in members {
        let packed = deflate(bytes);
        let offset = out.len() as u32;
        let mut common = Vec::new();
        common.extend_from_slice(&[20, 0, 0, 0, 8, 0, 0, 0, 0, 0]);
        common.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
        common.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        common.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        common.extend_from_slice(&(name.len() as u16).to_le_bytes());
        common.extend_from_slice(&[0, 0]);
        out.extend_from_slice(b"PK\x03\x04");
        out.extend_from_slice(&common);
        out.extend_from_slice(name.as_bytes());
        out.extend(packed);
        directory.extend_from_slice(b"PK\x01\x02\x14\0");
        directory.extend_from_slice(&common);
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&offset.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let start = out.len() as u32;
    out.extend_from_slice(&directory);
    out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    out.extend_from_slice(&[members.len() as u8, 0, members.len() as u8, 0]);
    out.extend_from_slice(&(directory.len() as u32).to_le_bytes());
    out.extend_from_slice(&start.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out
}

fn png(bytes: &[u8]) -> Vec<u8> {
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut data = vec![0x78, 0x9c];
    data.extend(deflate(bytes));
    data.extend_from_slice(&[1, 2, 3, 4]);
    for (kind, bytes) in [(b"IHDR", &[0u8; 13][..]), (b"IDAT", &data), (b"IEND", &[])] {
        out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        out.extend_from_slice(kind);
        out.extend_from_slice(bytes);
        out.extend_from_slice(&[9; 4]);
    }
    out
}

fn kernel(payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0u8; 4 * 512 + 300];
    out[0x1f1] = 3;
    out[0x202..0x206].copy_from_slice(b"HdrS");
    out[0x248..0x24c].copy_from_slice(&300u32.to_le_bytes());
    out[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(&[1, 2, 3, 4]);
    out.extend_from_slice(&[0xcc; 700]);
    out
}

#[test]
fn every_container_is_seen_through() {
    type Pack = fn(&[u8]) -> Vec<u8>;
    let packs: [(&str, Pack); 14] = [
        ("gzip", gzip),
        ("xz", |b| xz(b, 0)),
        ("xz, blocks", |b| xz(b, 3 << 20)),
        ("xz, small blocks", |b| xz(b, 100_000)),
        ("zstd 3", |b| zstd(b, 3)),
        // What its encoder chose is told: it takes too much to choose again.
        ("zstd 19", |b| zstd(b, 19)),
        ("lz4", lz4),
        ("cpio.gz", |b| gzip(&cpio(&[("a", b), ("b", &b[..5000])]))),
        ("tar.xz", |b| xz(&tar(&[("a", b), ("b", &b[..5000])]), 0)),
        ("deb", |b| ar(&[("debian-binary", b"2.0\n"), ("data.tar.xz", &xz(&tar(&[("f", b)]), 0))])),
        ("zip", |b| zip(&[("a", b), ("b", &b[..5000])])),
        ("png", png),
        ("bzImage", |b| kernel(&zstd(b, 19))),
        ("gzip, trailing bytes", |b| [&gzip(b)[..], b"tail tail"].concat()),
    ];
    let (a, b) = (text(1, 4000), text(2, 4000));
    for (name, pack) in packs {
        let old = vec![("file", pack(&a))];
        let new = vec![("file", pack(&b))];
        let delta = round_trip(&old, &new);
        // Some 120 of 12,000 lines differ: 1.5 KB in themselves.
        let (length, whole) = (delta.len(), new[0].1.len());
        assert!(length * 12 < whole, "{name}: {length} bytes of {whole}");
    }
}

#[test]
fn an_initrd_costs_next_to_nothing_beside_its_files() {
    let version = |n: u64| {
        let module = xz(&text(n, 2000), 0);
        let tool = text(n + 100, 1500);
        let early = cpio(&[("early/module.ko.xz", &module)]);
        let main = cpio(&[("bin/tool", &tool), ("conf", b"x=1\n"), ("own", &text(n, 300))]);
        let initrd = [&early[..], &gzip(&main)].concat();
        (module, tool, initrd)
    };
    let (module_a, tool_a, initrd_a) = version(1);
    let (module_b, tool_b, initrd_b) = version(2);
    let old: Files =
        vec![("lib/6.1-50/m.ko.xz", module_a), ("tool", tool_a), ("boot/initrd-6.1-50", initrd_a)];
    let new: Files = vec![
        ("lib/6.1-56/m.ko.xz", module_b.clone()),
        ("tool", tool_b.clone()),
        ("boot/initrd-6.1-56", initrd_b),
    ];
    let initrd = new[2].1.len();
    let whole = round_trip(&old, &new).len();
    let without = round_trip(&old[..2].to_vec(), &new[..2].to_vec()).len();
    assert!(
        whole < without + initrd / 20,
        "{whole} with the initrd of {initrd}, {without} without"
    );
}

#[test]
fn new_and_moved_contents_and_empty_pairs() {
    let old: Files = vec![("a", text(1, 500)), ("b.gz", gzip(&text(5, 500)))];
    let same = round_trip(&old, &old.clone());
    assert!(same.len() < 400, "{}", same.len());
    // What was compressed stands open now, under another name.
    let delta = round_trip(
        &old,
        &vec![("c", text(5, 500)), ("d", b"quite new".to_vec()), ("e", Vec::new())],
    );
    assert!(delta.len() < 700, "{}", delta.len());
    round_trip(&Vec::new(), &vec![("only", text(3, 200))]);
}

#[test]
fn a_wrong_base_is_named_and_a_damaged_one_left_out() {
    let old: Files = vec![("a", text(1, 500)), ("b", text(7, 400)), ("m.xz", xz(&text(1, 300), 0))];
    let new: Files = vec![("a", text(2, 500)), ("b", text(8, 400)), ("m.xz", xz(&text(2, 300), 0))];
    let (delta, _) = make(&old, &new);
    let error = Delta::open(&delta, &manifest(&new)).err().unwrap();
    assert!(matches!(error, ApplyError::Base { .. }), "{error:?}");

    // One old content is not what it should be: its own result is refused.
    let store = Store::of(&old);
    let digest = verity::content_digest(&old[0].1);
    store.0.lock().unwrap().get_mut(&digest).unwrap()[100] ^= 1;
    let applied =
        Delta::open(&delta, &manifest(&old)).unwrap().apply(&delta, &store, &store, ANY).unwrap();
    assert!(!applied.left.is_empty());
    assert!(!store.holds(&new[0].1));
    // One is not there at all.
    let store = Store::of(&old[1..]);
    let applied =
        Delta::open(&delta, &manifest(&old)).unwrap().apply(&delta, &store, &store, ANY).unwrap();
    assert!(applied.left.iter().any(|l| l.2 == Left::Missing));
}

#[test]
fn what_needs_more_memory_is_left_out_and_said() {
    // xz with 8 MiB of dictionary takes a hundred, where no old stream foretells it.
    let old: Files = vec![("large", text(1, 900)), ("t", text(1, 500))];
    let new: Files = vec![("large.xz", large_xz(&text(2, 900))), ("t", text(2, 500))];
    let (delta, report) = make(&old, &new);
    assert!(report.groups.iter().any(|g| g.memory > 90 << 20), "{:?}", report.groups);
    let store = Store::of(&old);
    let limits = Limits { memory: 64 << 20, threads: 2 };
    let opened = Delta::open(&delta, &manifest(&old)).unwrap();
    let applied = opened.apply(&delta, &store, &store, limits).unwrap();
    assert_eq!(applied.left.len(), 1);
    assert!(matches!(applied.left[0].2, Left::Memory(n) if n > 64 << 20));
    assert!(store.holds(&new[1].1) && !store.holds(&new[0].1));
    let offers: Vec<_> = opened.groups().collect();
    assert_eq!(offers.iter().map(|offer| offer.contents.len()).sum::<usize>(), 2);
    assert_eq!(offers.last().unwrap().stream.end, delta.len() as u64);
    // The head alone opens it; a group whose stream is not here is left out.
    let head = varve_delta::head_length(&delta).unwrap() as usize;
    let light = offers.iter().position(|offer| offer.memory < 64 << 20).unwrap();
    let opened = Delta::open(&delta[..head], &manifest(&old)).unwrap();
    assert_eq!(opened.length(), delta.len() as u64);
    assert!(opened.needs(&[light]).contains(&verity::content_digest(&old[1].1)));
    assert!(!opened.needs(&[light]).contains(&verity::content_digest(&old[0].1)));
    let applied = opened.apply(&delta[..head].to_vec(), &store, &Store::of(&old), limits).unwrap();
    assert!(applied.left.iter().any(|left| left.2 == Left::Stream), "{:?}", applied.left);
}

#[test]
fn broken_deltas_do_no_harm() {
    let old: Files = vec![("a", text(1, 150)), ("m.gz", gzip(&text(1, 150)))];
    let new: Files = vec![("a", text(2, 150)), ("m.gz", gzip(&text(2, 150))), ("n", text(50, 20))];
    let (delta, _) = make(&old, &new);
    let old_manifest = manifest(&old);
    let attempt = |delta: &[u8]| {
        let store = Store::of(&old);
        if let Ok(opened) = Delta::open(delta, &old_manifest) {
            // Whatever is kept passed the sink's check.
            let applied = opened.apply(&delta, &store, &store, ANY).unwrap();
            assert_eq!(applied.manifest, manifest(&new));
        }
    };
    for cut in (0..delta.len()).step_by(delta.len() / 40) {
        attempt(&delta[..cut]);
    }
    for at in (0..delta.len()).step_by(7.max(delta.len() / 120)) {
        for flip in [1, 0x80] {
            let mut broken = delta.clone();
            broken[at] ^= flip;
            attempt(&broken);
        }
    }
}

fn edit() -> impl Strategy<Value = (usize, usize, Vec<u8>)> {
    (any::<prop::sample::Index>(), 0..200usize, prop::collection::vec(any::<u8>(), 0..200))
        .prop_map(|(at, cut, bytes)| (at.index(1 << 20), cut, bytes))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn random_edits_come_back(edits in prop::collection::vec(edit(), 0..12), elf in any::<bool>(), packed in any::<bool>()) {
        let mut a = text(9, 300);
        if elf {
            a = std::fs::read(std::env::current_exe().unwrap()).unwrap();
            a.truncate(120_000);
        }
        let mut b = a.clone();
        for (at, cut, bytes) in edits {
            let at = at % (b.len() + 1);
            let end = (at + cut).min(b.len());
            b.splice(at..end, bytes);
        }
        let pack = |bytes: Vec<u8>| if packed { xz(&bytes, 0) } else { bytes };
        round_trip(&vec![("f", pack(a))], &vec![("f", pack(b))]);
    }
}

/// An old xz stream foretells the new one: no encoder is run for it, of one block or many.
#[test]
fn an_xz_stream_with_an_old_one_takes_no_encoder() {
    let old: Files =
        vec![("a-1.ko.xz", large_xz(&text(1, 900))), ("b.xz", blocks_xz(&text(7, 900)))];
    let new: Files =
        vec![("a-2.ko.xz", large_xz(&text(2, 900))), ("b.xz", blocks_xz(&text(8, 900)))];
    let (delta, report) = make(&old, &new);
    assert!(report.groups.iter().all(|g| g.memory < 32 << 20), "{:?}", report.groups);
    assert!(report.closed.is_empty());
    let store = Store::of(&old);
    let opened = Delta::open(&delta, &manifest(&old)).unwrap();
    let applied = opened.apply(&delta, &store, &store, ANY).unwrap();
    assert!(applied.left.is_empty(), "{:?}", applied.left);
    assert!(new.iter().all(|(_, bytes)| store.holds(bytes)));
}
