//! Ways in for the fuzzers: bytes that the public interface reaches only behind a digest
//! or inside a coded stream. For nobody else.

use crate::address::Anatomy;
use crate::apply::{Applied, Delta, Limits, Sink};
use crate::blob::{Alignment, BlobCoder, Reference};
use crate::coder::Encoder;
use crate::container;
use crate::file::{self, Header};
use crate::index;
use crate::manifest;
use crate::source::Contents;

/// Takes a content apart as a publisher does with an old one; how many pieces it has.
pub fn walk(bytes: &[u8]) -> usize {
    let limits = container::Limits { depth: 6, decoded: 32 << 20, pieces: 10_000 };
    container::walk(bytes, &limits, (false, false), &|_| false, None).pieces.len()
}

/// Reads what a stream's encoder chose, and writes it of that and its text; whether that
/// gives the same stream.
pub fn frame(bytes: &[u8], text: &[u8]) -> bool {
    use crate::codec::{Format, frame};
    [Format::Xz, Format::Zstd].into_iter().any(|format| frame::comes_back(format, bytes, text))
}

/// The index of a liar.
pub fn parse_index(bytes: &[u8]) {
    if let Ok(groups) = index::parse(bytes) {
        assert_eq!(index::parse(&index::to_bytes(&groups)), Ok(groups));
    }
}

/// Applies a delta whose head is in order, with this index, and this stream in each group.
/// None when the index cannot be read.
pub fn apply(
    manifests: [&[u8]; 2],
    index: &[u8],
    stream: &[u8],
    contents: &(impl Contents + Sink),
    limits: Limits,
) -> Option<Applied> {
    let groups = index::parse(index).ok()?.len();
    let [old, new] = manifests;
    let short = (manifest::shorten(old), manifest::shorten(new));
    let anatomy = Anatomy::default();
    let code = |bytes: &[u8], log, reference: Option<Reference<'_>>| {
        let mut encoder = Encoder::new();
        BlobCoder::new(log)
            .code(&mut encoder, reference, &Alignment::default(), &mut bytes.to_vec())
            .ok()?;
        Some(encoder.finish())
    };
    let reference = Reference { bytes: &short.0, anatomy: &anatomy };
    let digest = |text: &[u8]| varve_format::ReleaseDigest(varve_format::Sha256Digest::of(text).0);
    let header = Header {
        from: digest(old),
        to: digest(new),
        manifest: short.1.len() as u64,
        index: index.len() as u64,
    };
    let mut streams = vec![code(&short.1, 20, Some(reference))?, code(index, 18, None)?];
    streams.extend((0..groups).map(|_| stream.to_vec()));
    let bytes = file::write(&header, &streams);
    let delta = Delta::open(&bytes, old).ok()?;
    delta.apply(&bytes, contents, contents, limits).ok()
}
