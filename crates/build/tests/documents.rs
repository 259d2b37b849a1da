//! The worked examples in docs/format are what this version writes and reads.

mod common;

use common::{Archive, Place};
use varve_format::manifest::Manifest;
use varve_format::pack::PackIndex;
use varve_format::release::ReleaseRecord;
use varve_format::{Sha256Digest, TreePath};

/// The text between the first two fences after the heading "Example".
fn example(page: &str) -> &str {
    let (_, rest) = page.split_once("## Example").unwrap();
    let (_, rest) = rest.split_once("```").unwrap();
    let (block, _) = rest.split_once("```").unwrap();
    block.split_once('\n').unwrap().1
}

fn hex(lines: &str) -> Vec<u8> {
    let digits: String = lines
        .lines()
        .filter_map(|line| Some(line.split_once(": ")?.1.get(..39)?.replace(' ', "")))
        .collect();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn the_examples_belong_together() {
    let text = example(include_str!("../../../docs/format/manifest.md"));
    let manifest = Manifest::parse(text.as_bytes()).unwrap();
    let record = example(include_str!("../../../docs/format/release.md"));
    let record = ReleaseRecord::parse(record.as_bytes()).unwrap();
    assert_eq!(manifest.digest(), record.digest);
    assert_eq!(manifest.totals(), record.totals);
    assert_eq!(text.len() as u64, record.manifest.text_size);

    let (pack, index) =
        example(include_str!("../../../docs/format/pack.md")).split_once("\n\n").unwrap();
    let (pack, index) = (hex(pack), hex(index));
    assert_eq!(Sha256Digest::of(&pack), record.packs[0].id);
    assert_eq!(Sha256Digest::of(&index), record.packs[0].index_sha256);
    let index = PackIndex::parse(&index).unwrap();
    assert_eq!(index.pack_size(), pack.len() as u64);
    let frame = index.frames()[0];
    let stored = &pack[frame.offset as usize..][..frame.stored as usize];
    assert_eq!(Sha256Digest::of(stored), frame.sha256);
    let decoded = zstd::bulk::decompress(stored, frame.size as usize).unwrap();
    for (digest, size) in manifest.contents() {
        let location = index.find(&digest).unwrap();
        let bytes = &decoded[location.start as usize..][..size as usize];
        assert_eq!(varve_format::verity::content_digest(bytes), digest);
    }
}

#[test]
fn the_example_is_built_again() {
    let time = [("mtime", &b"1760000000"[..])];
    let xattr = [("SCHILY.xattr.user.k", &b"a b"[..]), time[0]];
    let bytes = Archive::default()
        .pax(&time)
        .dir("./")
        .pax(&time)
        .dir("etc")
        .pax(&time)
        .file("etc/motd", b"hello\n")
        .link("etc/again", "etc/motd")
        .pax(&time)
        .symlink("link", "etc/motd")
        .pax(&xattr)
        .file("xs", &[b'x'; 5000])
        .end();
    // The helper makes everything 0644; directories are 0755 in the example.
    let place = Place::new();
    let manifest = place.manifest(&place.build_tar("example", &bytes).unwrap());
    let mut entries = manifest.entries().to_vec();
    for path in ["", "etc"] {
        let path = TreePath::new(path.as_bytes()).unwrap();
        entries[manifest.index(&path).unwrap()].meta.mode = 0o755;
    }
    let text = Manifest::from_entries(entries).unwrap().to_text();
    let page = example(include_str!("../../../docs/format/manifest.md"));
    assert_eq!(String::from_utf8(text).unwrap(), page);
}
