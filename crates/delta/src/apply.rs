//! Applies a delta: reads old contents, makes the new ones, verifies each, hands it on.
//!
//! ```text
//! stream 0 + old manifest -> new manifest (its digest is checked)
//! group    -> coded bytes + old bytes -> recipe -> content -> its digest is checked -> sink
//! ```
//!
//! Groups are independent, except that late ones use contents that others made. A group
//! that needs more memory than allowed is left out; so is what cannot be made (an old
//! content is damaged, an encoder differs). All of that is reported, and is to be
//! fetched another way. What is handed to the sink is right, whatever the delta holds.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use varve_format::manifest::{Manifest, ManifestError};
use varve_format::{ContentDigest, ReleaseDigest, verity};

use crate::address::Anatomy;
use crate::blob::{Alignment, BlobCoder, Reference};
use crate::codec;
use crate::coder::Decoder;
use crate::file::{self, FileError, Header};
use crate::index::{self, BadIndex, Group, Leaf, Op, Recipe};
use crate::manifest;
use crate::source::{Contents, Reader, SourceError};

/// Takes finished, verified contents. They must be readable through [`Contents`] at
/// once: later ones may be made from them.
pub trait Sink: Sync {
    /// Keeps a content; it has this digest.
    fn put(&self, digest: &ContentDigest, bytes: &[u8]) -> io::Result<()>;

    /// Whether the content is here already (an earlier attempt made it), so that it
    /// need not be put together again.
    fn has(&self, _digest: &ContentDigest) -> bool {
        false
    }
}

/// What applying may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of memory, roughly: groups that state more are left out. `u64::MAX`: any.
    pub memory: u64,
    /// Groups at a time.
    pub threads: usize,
}

/// Why a content was left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// Its group needs so many bytes of memory, more than allowed.
    Memory(u64),
    /// Old bytes are not here.
    Missing,
    /// What was made is not the content.
    Wrong,
}

/// What came of it.
#[derive(Debug)]
pub struct Applied {
    /// The new manifest's text; its digest is that of the release the delta leads to.
    pub manifest: Vec<u8>,
    /// New contents that must be fetched another way.
    pub left: Vec<(ContentDigest, u64, Left)>,
    /// Contents made.
    pub made: usize,
}

/// Why a delta cannot be applied at all.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Not readable.
    #[error("the delta cannot be read")]
    File(#[from] FileError),
    /// Its index is broken.
    #[error("the delta cannot be read")]
    Index(#[from] BadIndex),
    /// Made for another release.
    #[error("the delta starts from release {needs}, not from {given}")]
    Base {
        /// What it needs.
        needs: ReleaseDigest,
        /// What was given.
        given: ReleaseDigest,
    },
    /// The new manifest came out wrong: the delta is damaged.
    #[error("the delta does not lead to the release it names: it is damaged")]
    Manifest,
    /// The old manifest is none.
    #[error("the old release's manifest cannot be read")]
    OldManifest(#[source] ManifestError),
    /// The sink failed.
    #[error("content {digest} could not be kept")]
    Sink {
        /// Which.
        digest: ContentDigest,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// The head of a delta, to see what it leads from and to.
pub fn header(delta: &[u8]) -> Result<Header, FileError> {
    Ok(file::read(delta)?.0)
}

/// A delta whose head, manifest and index have been read and hold together.
pub struct Delta<'a> {
    streams: Vec<&'a [u8]>,
    groups: Vec<Group>,
    old: Vec<(ContentDigest, u64)>,
    new: Vec<(ContentDigest, u64)>,
    manifest: Vec<u8>,
}

/// What a delta offers for contents, for a planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Memory that its group takes, in bytes.
    pub memory: u64,
    /// Which group; the contents of a group are made together, in order.
    pub group: usize,
}

impl<'a> Delta<'a> {
    /// Reads the head of a delta against the manifest it starts from.
    pub fn open(bytes: &'a [u8], old_manifest: &[u8]) -> Result<Self, ApplyError> {
        let (header, streams) = file::read(bytes)?;
        let old = Manifest::parse(old_manifest).map_err(ApplyError::OldManifest)?;
        let given = old.digest();
        if given != header.from {
            return Err(ApplyError::Base { needs: header.from, given });
        }
        let anatomy = Anatomy::default();
        let short = manifest::shorten(old_manifest);
        let reference = Reference { bytes: &short, anatomy: &anatomy };
        let manifest = coded(streams[0], header.manifest, 20, Some(reference))
            .and_then(|short| manifest::lengthen(&short))
            .ok_or(ApplyError::Manifest)?;
        let new = Manifest::parse(&manifest).map_err(|_| ApplyError::Manifest)?;
        if new.digest() != header.to {
            return Err(ApplyError::Manifest);
        }
        let index = coded(streams[1], header.index, 18, None).ok_or(ApplyError::Manifest)?;
        let groups = index::parse(&index)?;
        if groups.len() + 2 != streams.len() {
            return Err(ApplyError::Manifest);
        }
        Ok(Self {
            streams,
            groups,
            old: old.contents().collect(),
            new: new.contents().collect(),
            manifest,
        })
    }

    /// The new manifest's text.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// The contents that this delta makes, and what that takes.
    pub fn offers(&self) -> impl Iterator<Item = (ContentDigest, u64, Offer)> {
        self.groups.iter().enumerate().flat_map(move |(group, g)| {
            g.entries.iter().filter_map(move |entry| {
                let &(digest, size) = self.new.get(entry.content as usize)?;
                Some((digest, size, Offer { memory: g.memory, group }))
            })
        })
    }

    /// Makes the new contents.
    pub fn apply(
        &self,
        contents: &dyn Contents,
        sink: &dyn Sink,
        limits: Limits,
    ) -> Result<Applied, ApplyError> {
        let out = Mutex::new((Vec::new(), 0, None));
        for late in [false, true] {
            let wave: Vec<usize> =
                (0..self.groups.len()).filter(|&g| self.groups[g].late == late).collect();
            let next = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..limits.threads.clamp(1, wave.len().max(1)) {
                    scope.spawn(|| {
                        while let Some(&group) = wave.get(next.fetch_add(1, Ordering::Relaxed)) {
                            let mut work = Work::new(self, group, contents, sink);
                            let result = work.run(limits.memory);
                            let mut out = out.lock().expect("no thread panics");
                            out.0.append(&mut work.left);
                            out.1 += work.made;
                            if let Err(error) = result {
                                out.2.get_or_insert(error);
                            }
                        }
                    });
                }
            });
        }
        let (left, made, error) = out.into_inner().expect("no thread panics");
        match error {
            Some(error) => Err(error),
            None => Ok(Applied { manifest: self.manifest.clone(), left, made }),
        }
    }
}

/// Decodes a stream that holds one content.
fn coded(stream: &[u8], length: u64, log: u32, old: Option<Reference<'_>>) -> Option<Vec<u8>> {
    let mut decoder = Decoder::new(stream);
    let mut out = vec![0; usize::try_from(length).ok()?];
    BlobCoder::new(log).code(&mut decoder, old, &Alignment::default(), &mut out).ok()?;
    Some(out)
}

/// One group under way.
struct Work<'a> {
    delta: &'a Delta<'a>,
    group: &'a Group,
    decoder: Decoder<'a>,
    coder: Option<BlobCoder>,
    reader: Reader<'a>,
    new: Reader<'a>,
    sink: &'a dyn Sink,
    left: Vec<(ContentDigest, u64, Left)>,
    made: usize,
}

/// What stops a group, or spoils one content.
enum Stop {
    /// Old bytes are missing: what follows in the group cannot be decoded.
    Missing,
    /// This content cannot be made.
    Wrong,
}

impl From<SourceError> for Stop {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Inside { .. } => Self::Wrong,
            _ => Self::Missing,
        }
    }
}

impl<'a> Work<'a> {
    fn new(
        delta: &'a Delta<'a>,
        group: usize,
        contents: &'a dyn Contents,
        sink: &'a dyn Sink,
    ) -> Self {
        Self {
            delta,
            group: &delta.groups[group],
            decoder: Decoder::new(delta.streams[group + 2]),
            coder: None,
            reader: Reader::new(contents, &delta.old),
            new: Reader::new(contents, &delta.new),
            sink,
            left: Vec::new(),
            made: 0,
        }
    }

    fn run(&mut self, memory: u64) -> Result<(), ApplyError> {
        let wanted: Vec<_> = self
            .group
            .entries
            .iter()
            .filter_map(|e| Some((e, *self.delta.new.get(e.content as usize)?)))
            .collect();
        if self.group.memory > memory {
            let need = Left::Memory(self.group.memory);
            self.left.extend(
                wanted.iter().filter(|w| !self.sink.has(&w.1.0)).map(|w| (w.1.0, w.1.1, need)),
            );
            return Ok(());
        }
        // What comes after the last content that is still wanted need not be decoded.
        let Some(last) = wanted.iter().rposition(|w| !self.sink.has(&w.1.0)) else { return Ok(()) };
        let mut stopped = None;
        for (entry, (digest, size)) in &wanted[..=last] {
            if let Some(why) = stopped {
                self.left.push((*digest, *size, why));
                continue;
            }
            match self.build(&entry.recipe, *size, self.sink.has(digest)) {
                Ok(None) => {}
                Ok(Some(bytes)) if verity::content_digest(&bytes) == *digest => {
                    self.sink
                        .put(digest, &bytes)
                        .map_err(|error| ApplyError::Sink { digest: *digest, error })?;
                    self.made += 1;
                }
                Ok(Some(_)) => self.left.push((*digest, *size, Left::Wrong)),
                Err(Stop::Wrong) => {
                    // The stream cannot be followed any more.
                    stopped = Some(Left::Wrong);
                    self.left.push((*digest, *size, Left::Wrong));
                }
                Err(Stop::Missing) => {
                    stopped = Some(Left::Missing);
                    self.left.push((*digest, *size, Left::Missing));
                }
            }
        }
        Ok(())
    }

    /// Builds what the recipe says, at most `limit` bytes. With `skip`, only follows the
    /// coded stream. An encoder that fails gives wrong bytes rather than an error, so
    /// that the stream can be followed on.
    fn build(&mut self, recipe: &Recipe, limit: u64, skip: bool) -> Result<Option<Vec<u8>>, Stop> {
        let skeleton = match &recipe.skeleton {
            Some(leaf) => self.leaf(leaf, limit.saturating_mul(MOST_EXPANSION))?,
            None => Vec::new(),
        };
        let mut from = 0usize;
        let mut out = Vec::new();
        for op in &recipe.ops {
            let room = limit.saturating_sub(out.len() as u64);
            match op {
                Op::Skeleton(length) => {
                    let to = usize::try_from(*length).ok().and_then(|l| from.checked_add(l));
                    let part = to.and_then(|to| skeleton.get(from..to)).ok_or(Stop::Wrong)?;
                    from += part.len();
                    out.extend_from_slice(part);
                }
                Op::Leaf(leaf) => {
                    let mut bytes = self.leaf(leaf, room)?;
                    if out.is_empty() { out = bytes } else { out.append(&mut bytes) }
                }
                _ if skip && !matches!(op, Op::Encode(..)) => {}
                Op::Content(number) => {
                    let bytes = self.new.content(*number);
                    match bytes {
                        Ok(bytes) => out.extend_from_slice(&bytes),
                        Err(_) => return Err(Stop::Missing),
                    }
                }
                Op::Copy(source, length) => {
                    if *length > room {
                        return Err(Stop::Wrong);
                    }
                    out.extend_from_slice(&self.reader.bytes(source)?);
                }
                Op::Encode(settings, inner) => {
                    let plain = self.build(inner, limit.saturating_mul(MOST_EXPANSION), skip)?;
                    if let Some(plain) = plain {
                        self.reader.forget();
                        out.extend_from_slice(&codec::encode(settings, &plain).unwrap_or_default());
                    }
                }
            }
            if out.len() as u64 > limit {
                return Err(Stop::Wrong);
            }
        }
        Ok((!skip).then_some(out))
    }

    fn leaf(&mut self, leaf: &Leaf, limit: u64) -> Result<Vec<u8>, Stop> {
        if leaf.length > limit {
            return Err(Stop::Wrong);
        }
        let mut out = vec![0; leaf.length as usize];
        let log = u32::from(self.group.log);
        let coder = self.coder.get_or_insert_with(|| BlobCoder::new(log));
        let result = match &leaf.old {
            None => coder.code(&mut self.decoder, None, &Alignment::default(), &mut out),
            Some(source) => {
                let old = self.reader.bytes(source)?;
                let anatomy = Anatomy::of(&old, self.group.base_types);
                let reference = Reference { bytes: &old, anatomy: &anatomy };
                coder.code(&mut self.decoder, Some(reference), &Alignment::default(), &mut out)
            }
        };
        if result.is_err() { Err(Stop::Wrong) } else { Ok(out) }
    }
}

/// How much larger than the content itself what is compressed in it may be: deflate's
/// greatest ratio is about this; a delta that asks for more is a bomb.
const MOST_EXPANSION: u64 = 1100;

#[cfg(test)]
mod tests {
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
        let kind = tree::Kind::Regular {
            size: content.len() as u64,
            digest: verity::content_digest(content),
        };
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
        let store = Store(
            vec![(verity::content_digest(b"old bytes"), b"old bytes".to_vec())],
            Mutex::new(0),
        );
        let applied = Delta::open(&delta, &old)
            .unwrap()
            .apply(&store, &store, Limits { memory: u64::MAX, threads: 1 })
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
}
