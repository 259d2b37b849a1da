//! Every parser meets bytes that were bent in every way: it answers, and never panics.

use proptest::prelude::*;
use varve_format::deployment::{DeploymentRecord, LayerRecord};
use varve_format::manifest::Manifest;
use varve_format::pack::PackIndex;
use varve_format::release::ReleaseRecord;
use varve_format::selection::Selection;

const MANIFEST: &[u8] = b"/ 0 40755 3 0 0 0 1760000000.5 - - -
/bin 7 120777 1 0 0 0 0.0 usr/bin - -
/etc 0 40755 2 0 0 0 1.999999999 - - - security.selinux=a\\x00
/etc/empty 0 100644 2 0 0 0 -7.1 - - - user.\\x3d=\\xff
/etc/null 0 20666 1 0 0 259 0.0 - - -
/etc/one 0 @120000 - - - - 0.0 /etc/empty - -
/etc/x\\ny 3 104755 1 7 8 0 0.0 aa/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa - aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
";

const RELEASE: &[u8] = br#"{"format":1,"name":"a","digest":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
"manifest":{"sha256":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","size":1,"text_size":2},
"totals":{"paths":1,"bytes":2},
"packs":[]}"#;

const DEPLOYMENT: &[u8] = b"format = 1
name = \"a\"
created = 5
number = 1
root-mode = \"volatile\"

[stack]
layout = \"overlay\"
layers = [\"u\", \"b\"]

[[state]]
path = \"/etc\"
mode = \"versioned\"
";

const LAYER: &[u8] = b"format = 1
name = \"a\"
created = 5
kind = \"base\"
";

/// One way to bend bytes.
#[derive(Debug, Clone)]
enum Bend {
    Set(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Repeat(usize, usize),
    Swap(usize, usize),
}

fn bend() -> impl Strategy<Value = Bend> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Bend::Set(at, byte)),
        any::<usize>().prop_map(Bend::Cut),
        (any::<usize>(), prop::collection::vec(any::<u8>(), 1..20))
            .prop_map(|(at, bytes)| Bend::Insert(at, bytes)),
        (any::<usize>(), 1..200usize).prop_map(|(at, length)| Bend::Repeat(at, length)),
        (any::<usize>(), any::<usize>()).prop_map(|(one, other)| Bend::Swap(one, other)),
    ]
}

fn bends() -> impl Strategy<Value = Vec<Bend>> {
    prop::collection::vec(bend(), 0..6)
}

fn bent(seed: &[u8], bends: &[Bend]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for bend in bends {
        let length = bytes.len().max(1);
        match bend {
            _ if bytes.is_empty() => {}
            Bend::Set(at, byte) => bytes[at % length] = *byte,
            Bend::Cut(at) => bytes.truncate(at % length),
            Bend::Insert(at, more) => {
                let at = at % length;
                bytes.splice(at..at, more.iter().copied());
            }
            Bend::Repeat(at, count) => {
                let at = at % length;
                let part = bytes[at..(at + count).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            // Whole lines change places: text that is well formed line by line.
            Bend::Swap(one, other) => {
                let mut lines: Vec<&[u8]> = bytes.split_inclusive(|&b| b == b'\n').collect();
                let count = lines.len();
                lines.swap(one % count, other % count);
                bytes = lines.concat();
            }
        }
    }
    bytes
}

#[test]
fn the_seeds_are_valid() {
    let manifest = Manifest::parse(MANIFEST).unwrap();
    assert_eq!(manifest.entries().len(), 7);
    assert_eq!(manifest.to_text(), MANIFEST);
    ReleaseRecord::parse(RELEASE).unwrap();
    DeploymentRecord::parse(DEPLOYMENT).unwrap();
    LayerRecord::parse(LAYER).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What a bent manifest is taken for is the tree that its text says, exactly.
    #[test]
    fn manifest(bends in bends()) {
        let text = bent(MANIFEST, &bends);
        if let Ok(manifest) = Manifest::parse(&text) {
            prop_assert_eq!(manifest.to_text(), text);
            for entry in manifest.entries() {
                manifest.inode(entry);
            }
            manifest.link_groups();
            manifest.totals();
        }
    }

    #[test]
    fn release_record(bends in bends()) {
        if let Ok(record) = ReleaseRecord::parse(&bent(RELEASE, &bends)) {
            prop_assert_eq!(ReleaseRecord::parse(&record.to_bytes()).unwrap(), record);
        }
    }

    #[test]
    fn deployment_record(bends in bends()) {
        if let Ok(record) = DeploymentRecord::parse(&bent(DEPLOYMENT, &bends)) {
            let again = DeploymentRecord::parse(record.to_text().as_bytes()).unwrap();
            prop_assert_eq!(again, record);
        }
    }

    #[test]
    fn layer_record(bends in bends()) {
        if let Ok(record) = LayerRecord::parse(&bent(LAYER, &bends)) {
            prop_assert_eq!(LayerRecord::parse(record.to_text().as_bytes()).unwrap(), record);
        }
    }

    /// A bent selection is refused: what boots is never guessed.
    #[test]
    fn selection(bends in bends()) {
        let whole = Selection {
            generation: 3,
            latest: "b".parse().unwrap(),
            previous: Some("a".parse().unwrap()),
            tries: Some(2),
        };
        let text = whole.to_text();
        match Selection::parse(&bent(text.as_bytes(), &bends)) {
            Ok(read) => prop_assert_eq!(read, whole),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn pack_index(bytes in prop::collection::vec(any::<u8>(), 0..400), frames in 0u8..4) {
        let mut index = b"VARVEPX1\0\0\0\0".to_vec();
        index.extend_from_slice(&[frames, 0, 0, 0]);
        index.extend_from_slice(&bytes);
        if let Ok(index) = PackIndex::parse(&index) {
            for content in index.contents() {
                prop_assert!(index.frames_of(content).end <= index.frames().len());
            }
        }
    }
}
