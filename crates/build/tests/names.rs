//! Any names and bytes: what the file system takes arrives, from a directory and from tar.

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use common::{Place, run};
use proptest::prelude::*;
use varve_build::Source;
use varve_format::path::show;
use varve_sys::Dir;

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(b'\n'), Just(b' '), Just(b'\\'), Just(b'='), Just(0xff), 1u8..=255];
    prop::collection::vec(byte, 1..40).prop_filter_map("a name", |mut bytes: Vec<u8>| {
        bytes.iter_mut().filter(|b| **b == b'/').for_each(|b| *b = b'|');
        (bytes != b"." && bytes != b"..").then_some(bytes)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn weird_names_arrive(
        tree in prop::collection::btree_map(name(), prop::collection::btree_map(name(), prop::collection::vec(any::<u8>(), 0..300), 0..4), 1..6)
    ) {
        let place = Place::new();
        let top = Dir::open(place.path("")).unwrap().make_dir("tree", 0o755).unwrap();
        let mut want = BTreeMap::new();
        for (folder, files) in &tree {
            let dir = top.make_dir(OsStr::from_bytes(folder), 0o755).unwrap();
            for (file, bytes) in files {
                dir.create_file(OsStr::from_bytes(file), 0o644).unwrap().write_all(bytes).unwrap();
                want.insert([&folder[..], b"/", file].concat(), bytes.clone());
            }
        }
        let from_dir = place.build("dir", Source::Directory(top)).unwrap();
        run("tar", &["-C", "tree", "--format=posix", "-cf", "t.tar", "."], &place.path(""));
        let from_tar = place.build("tar", Source::open(&place.path("t.tar")).unwrap()).unwrap();
        prop_assert_eq!(from_dir.record.digest, from_tar.record.digest);
        let manifest = place.manifest(&from_dir);
        prop_assert_eq!(manifest.entries().len(), 1 + tree.len() + want.len());
        for (path, bytes) in want {
            let path = varve_format::TreePath::new(&path).unwrap();
            let entry = manifest.get(&path).unwrap_or_else(|| panic!("{}", show(path.as_bytes())));
            let varve_format::tree::Kind::Regular { digest, .. } = entry.kind else {
                panic!("{path}")
            };
            prop_assert_eq!(digest, varve_format::verity::content_digest(&bytes));
        }
    }
}
