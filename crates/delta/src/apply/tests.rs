//! What a liar may write into a delta.

use super::*;
use crate::codec::Settings;
use crate::coder::Encoder;
use crate::index::{Entry, Source, Step};
use varve_format::TreePath;
use varve_format::tree;

struct Store(Vec<(ContentDigest, Vec<u8>)>, Mutex<usize>);

impl Contents for Store {
    fn read(&self, digest: &ContentDigest) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.iter().find(|c| c.0 == *digest).map(|c| c.1.clone()))
    }
}

impl Sink for Store {
    fn put(&self, digest: &ContentDigest, bytes: &[u8]) -> io::Result<()> {
        assert_eq!(verity::content_digest(bytes), *digest);
        *self.1.lock().unwrap() += 1;
        Ok(())
    }
}

fn manifest(content: &[u8]) -> Vec<u8> {
    let meta = tree::Metadata::default();
    let kind =
        tree::Kind::Regular { size: content.len() as u64, digest: verity::content_digest(content) };
    let root =
        tree::Entry { path: TreePath::root(), kind: tree::Kind::Directory, meta: meta.clone() };
    let file = tree::Entry { path: TreePath::new(b"f").unwrap(), kind, meta };
    Manifest::from_entries(vec![root, file]).unwrap().to_text()
}

fn stream(bytes: &[u8], log: u32) -> Vec<u8> {
    let mut encoder = Encoder::new();
    BlobCoder::new(log)
        .code(&mut encoder, None, &Alignment::default(), &mut bytes.to_vec())
        .unwrap();
    encoder.finish()
}

/// A delta that a liar wrote: all in order but for this recipe.
fn apply_recipe(recipe: Recipe) -> Vec<(ContentDigest, u64, Left)> {
    let (old, new) = (manifest(b"old bytes"), manifest(b"new bytes"));
    let entries = vec![Entry { content: 0, recipe }];
    let index = index::to_bytes(&[Group { log: 14, entries, ..Group::default() }]);
    let short = (manifest::shorten(&old), manifest::shorten(&new));
    let anatomy = Anatomy::default();
    let mut encoder = Encoder::new();
    BlobCoder::new(20)
        .code(
            &mut encoder,
            Some(Reference { bytes: &short.0, anatomy: &anatomy }),
            &Alignment::default(),
            &mut short.1.clone(),
        )
        .unwrap();
    let header = Header {
        from: Manifest::parse(&old).unwrap().digest(),
        to: Manifest::parse(&new).unwrap().digest(),
        manifest: short.1.len() as u64,
        index: index.len() as u64,
    };
    let streams = [encoder.finish(), stream(&index, 18), stream(b"new bytes", 14)];
    let delta = file::write(&header, &streams);
    let store =
        Store(vec![(verity::content_digest(b"old bytes"), b"old bytes".to_vec())], Mutex::new(0));
    let applied = Delta::open(&delta, &old)
        .unwrap()
        .apply(&delta, &store, &store, Limits { memory: u64::MAX, threads: 1 })
        .unwrap();
    assert_eq!(applied.made + applied.left.len(), 1);
    applied.left
}

fn leaf(length: u64) -> Op {
    Op::Leaf(Leaf { length, old: None })
}

#[test]
fn what_a_liar_asks_for_is_not_done() {
    let honest = Recipe { skeleton: None, ops: vec![leaf(9)] };
    assert!(apply_recipe(honest.clone()).is_empty());
    let inside = |steps| Source { content: 0, steps };
    let liars = [
        vec![leaf(1 << 40)],
        vec![leaf(9), leaf(1)],
        vec![Op::Skeleton(1)],
        vec![Op::Copy(inside(vec![]), 1 << 50)],
        vec![Op::Copy(inside(vec![Step::Gather(vec![(1 << 62, 2)])]), 2)],
        vec![Op::Copy(inside(vec![Step::Gather(vec![(0, 5); 50])]), 9)],
        vec![Op::Copy(inside(vec![Step::Decode(codec::Format::Xz, 1 << 60)]), 9)],
        vec![Op::Copy(Source { content: 77, steps: vec![] }, 9)],
        vec![Op::Content(99)],
        vec![Op::Encode(
            Settings::Lz4Legacy { level: 9 },
            Recipe { skeleton: None, ops: vec![leaf(1 << 30)] },
        )],
        vec![Op::Encode(Settings::Deflate(vec![0xff; 40]), honest)],
        vec![],
    ];
    for (at, ops) in liars.into_iter().enumerate() {
        let left = apply_recipe(Recipe { skeleton: None, ops });
        assert_eq!(left.len(), 1, "liar {at}");
    }
}
