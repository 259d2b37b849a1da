//! A repository that an earlier version wrote is read by this one.

mod common;

use std::sync::Arc;

use common::{World, hasty};
use varve_fetch::{DirTransport, Sources, Trust, contents, manifest, pack_index};
use varve_format::verity::content_digest;
use varve_sys::task::{Cancel, Silent};

#[test]
fn format_1_is_read_from_root_to_content() {
    let world = World::new();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/repository-1");
    let root = std::fs::read(path.join("metadata/1.root.json")).unwrap();
    let now = "2026-11-24T00:00:00Z".parse().unwrap();
    let trust = Trust::init(&world.trust, &root, now).unwrap();
    let sources = Sources::new(vec![Arc::new(DirTransport::new(&path))], hasty());
    let cancel = Cancel::new();
    let metadata = trust.refresh(&sources, now, &cancel).unwrap();
    let seen: Vec<_> = metadata
        .releases()
        .iter()
        .map(|r| (r.name.as_str(), r.sequence, r.channel.as_str()))
        .collect();
    assert_eq!(seen, [("example-2", 2, "stable"), ("example-1", 1, "stable")]);
    assert_eq!(metadata.root_version, 2);

    let record = metadata.record(&"example-2".parse().unwrap(), &sources, &cancel).unwrap();
    let (manifest, _) = manifest(&record, &sources, &cancel).unwrap();
    let packs =
        record.packs.iter().map(|p| (*p, pack_index(p, &sources, &cancel).unwrap())).collect();
    let plan = contents::plan(manifest.contents(), packs, &world.incoming, &sources).unwrap();
    contents::fetch(&plan, &sources, &world.incoming, &Silent, &cancel).1.unwrap();
    let numbers: String = (1..=4000).map(|n| format!("{n}\n")).collect();
    for content in ["changed\n", "PRETTY_NAME=\"Example 1\"\n", &numbers] {
        let name = content_digest(content.as_bytes()).to_hex();
        assert_eq!(world.incoming.read(name, 1 << 20).unwrap(), content.as_bytes());
    }
}
