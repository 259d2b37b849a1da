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

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use varve_format::manifest::{Manifest, ManifestError};
use varve_format::{ContentDigest, ReleaseDigest, verity};

use crate::address::Anatomy;
use crate::blob::frame::{Foretold, FrameCoder, Part};
use crate::blob::{Alignment, BlobCoder, Block, Reference};
use crate::codec;
use crate::codec::frame::Maker;
use crate::coder::Decoder;
use crate::file::{self, FileError, Header};
use crate::index::{self, BadIndex, Group, Leaf, Op, Recipe, Source};
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

/// Gives the streams of the groups, wherever the delta is kept.
pub trait Streams: Sync {
    /// These bytes of the delta; nothing if they are not here: then the group is left out.
    fn read(&self, range: Range<u64>) -> io::Result<Option<Vec<u8>>>;
}

impl Streams for &[u8] {
    fn read(&self, range: Range<u64>) -> io::Result<Option<Vec<u8>>> {
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Ok(self.get(at(range.start)..at(range.end)).map(<[u8]>::to_vec))
    }
}

impl Streams for Vec<u8> {
    fn read(&self, range: Range<u64>) -> io::Result<Option<Vec<u8>>> {
        Streams::read(&&self[..], range)
    }
}

/// What applying may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of memory, by what the groups state: those that state more are left out, and
    /// those that run at one time state no more together. `u64::MAX`: any.
    pub memory: u64,
    /// Groups at a time.
    pub threads: usize,
}

/// Why a content was left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// Its group needs so many bytes of memory, more than allowed.
    Memory(u64),
    /// Its group's part of the delta is not here.
    Stream,
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
    /// The time that each group took, in the order of [`Delta::groups`].
    pub times: Vec<Duration>,
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
    /// A part of the delta cannot be read.
    #[error("a part of the delta cannot be read")]
    Stream(#[source] io::Error),
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
    Ok(file::read(delta)?.header)
}

/// How many bytes at the beginning of a delta [`Delta::open`] needs.
pub fn head_length(delta: &[u8]) -> Result<u64, FileError> {
    Ok(file::read(delta)?.head())
}

/// A delta whose head was read against the release it starts from.
pub struct Delta {
    length: u64,
    streams: Vec<Range<u64>>,
    groups: Vec<Group>,
    /// Contents of the old release, by number.
    old: Vec<(ContentDigest, u64)>,
    new: Vec<(ContentDigest, u64)>,
    manifest: Vec<u8>,
    to: ReleaseDigest,
}

/// A group: contents that are made together, in order, from one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Memory that it takes, in bytes.
    pub memory: u64,
    /// It uses contents that other groups make.
    pub late: bool,
    /// Where its stream stands in the delta.
    pub stream: Range<u64>,
    /// The contents and their lengths.
    pub contents: Vec<(ContentDigest, u64)>,
}

impl Delta {
    /// Reads the head of a delta (see [`head_length`]; more may follow) against the
    /// manifest it starts from.
    pub fn open(head: &[u8], old_manifest: &[u8]) -> Result<Self, ApplyError> {
        let layout = file::read(head)?;
        let header = &layout.header;
        let part = |at: usize| {
            let Range { start, end } = layout.streams[at];
            head.get(start as usize..end as usize)
                .ok_or(FileError::Length { expected: end, found: head.len() as u64 })
        };
        let old = Manifest::parse(old_manifest).map_err(ApplyError::OldManifest)?;
        let given = old.digest();
        if given != header.from {
            return Err(ApplyError::Base { needs: header.from, given });
        }
        let anatomy = Anatomy::default();
        let short = manifest::shorten(old_manifest);
        let reference = Reference { bytes: &short, anatomy: &anatomy };
        let manifest = coded(part(0)?, header.manifest, 20, Some(reference))
            .and_then(|short| manifest::lengthen(&short))
            .ok_or(ApplyError::Manifest)?;
        let new = Manifest::parse(&manifest).map_err(|_| ApplyError::Manifest)?;
        if new.digest() != header.to {
            return Err(ApplyError::Manifest);
        }
        let index = coded(part(1)?, header.index, 18, None).ok_or(ApplyError::Manifest)?;
        let groups = index::parse(&index)?;
        if groups.len() + 2 != layout.streams.len() {
            return Err(ApplyError::Manifest);
        }
        Ok(Self {
            length: layout.length(),
            to: header.to,
            streams: layout.streams[2..].to_vec(),
            groups,
            old: old.contents().collect(),
            new: new.contents().collect(),
            manifest,
        })
    }

    /// The length of the whole delta, in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The release it makes.
    pub fn to(&self) -> ReleaseDigest {
        self.to
    }

    /// The new manifest's text.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// The groups, in the order of the delta.
    pub fn groups(&self) -> impl Iterator<Item = Offer> {
        self.groups.iter().zip(&self.streams).map(|(group, stream)| Offer {
            memory: group.memory,
            late: group.late,
            stream: stream.clone(),
            contents: self.of(group).map(|(_, content)| content).collect(),
        })
    }

    /// What these groups (by number) are made of: contents of the old release, and of the
    /// new one where it holds old contents or others that the delta makes.
    pub fn needs(&self, groups: &[usize]) -> HashSet<ContentDigest> {
        let (mut old, mut new) = (HashSet::new(), HashSet::new());
        for entry in groups.iter().filter_map(|&at| self.groups.get(at)).flat_map(|g| &g.entries) {
            entry.recipe.sources(&mut old, &mut new);
        }
        let of = |numbers: HashSet<u32>, table: &[(ContentDigest, u64)]| {
            numbers.into_iter().filter_map(|n| Some(table.get(n as usize)?.0)).collect::<Vec<_>>()
        };
        of(old, &self.old).into_iter().chain(of(new, &self.new)).collect()
    }

    fn of<'a>(
        &'a self,
        group: &'a Group,
    ) -> impl Iterator<Item = (&'a index::Entry, (ContentDigest, u64))> {
        group.entries.iter().filter_map(|e| Some((e, *self.new.get(e.content as usize)?)))
    }

    /// Makes the new contents.
    pub fn apply(
        &self,
        streams: &dyn Streams,
        contents: &dyn Contents,
        sink: &dyn Sink,
        limits: Limits,
    ) -> Result<Applied, ApplyError> {
        let applied = Applied {
            manifest: self.manifest.clone(),
            left: Vec::new(),
            made: 0,
            times: vec![Duration::ZERO; self.groups.len()],
        };
        let out = Mutex::new((applied, None));
        for late in [false, true] {
            let wave = (0..self.groups.len()).filter(|&g| self.groups[g].late == late);
            let queue = Queue::new(self, wave.collect(), limits.memory);
            std::thread::scope(|scope| {
                for _ in 0..limits.threads.clamp(1, queue.most()) {
                    scope.spawn(|| {
                        while let Some(group) = queue.take() {
                            let began = Instant::now();
                            let mut work = Work::new(self, group, contents, sink, limits.memory);
                            let result = work.run(streams);
                            queue.done(group);
                            let mut out = out.lock().expect("no thread panics");
                            out.0.left.append(&mut work.left);
                            out.0.made += work.made;
                            out.0.times[group] = began.elapsed();
                            if let Err(error) = result {
                                out.1.get_or_insert(error);
                            }
                        }
                    });
                }
            });
        }
        let (applied, error) = out.into_inner().expect("no thread panics");
        match error {
            Some(error) => Err(error),
            None => Ok(applied),
        }
    }
}

/// Groups to be made, handed out in order, as many at a time as the memory allows.
struct Queue<'a> {
    delta: &'a Delta,
    memory: u64,
    state: Mutex<(std::vec::IntoIter<usize>, u64)>,
    freed: Condvar,
}

impl<'a> Queue<'a> {
    fn new(delta: &'a Delta, groups: Vec<usize>, memory: u64) -> Self {
        let state = Mutex::new((groups.into_iter(), 0));
        Self { delta, memory, state, freed: Condvar::new() }
    }

    fn most(&self) -> usize {
        self.state.lock().expect("no thread panics").0.len().max(1)
    }

    /// The next group, once there is memory for it beside those that run.
    fn take(&self) -> Option<usize> {
        let mut state = self.state.lock().expect("no thread panics");
        loop {
            let &group = state.0.as_slice().first()?;
            let need = self.takes(group);
            if state.1 == 0 || state.1.saturating_add(need) <= self.memory {
                state.1 += need;
                return state.0.next();
            }
            state = self.freed.wait(state).expect("no thread panics");
        }
    }

    fn done(&self, group: usize) {
        self.state.lock().expect("no thread panics").1 -= self.takes(group);
        self.freed.notify_all();
    }

    /// What it counts for while it runs; one that is left out takes nothing.
    fn takes(&self, group: usize) -> u64 {
        let memory = self.delta.groups[group].memory.clamp(1, 1 << 62);
        if memory > self.memory { 0 } else { memory }
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
    delta: &'a Delta,
    number: usize,
    group: &'a Group,
    coder: Option<BlobCoder>,
    frames: Option<FrameCoder>,
    /// Where the old bytes of the last leaf went.
    blocks: Vec<Block>,
    reader: Reader<'a>,
    new: Reader<'a>,
    sink: &'a dyn Sink,
    left: Vec<(ContentDigest, u64, Left)>,
    made: usize,
    /// Bytes that nothing may be larger than, whatever the group states.
    most: u64,
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
        delta: &'a Delta,
        group: usize,
        contents: &'a dyn Contents,
        sink: &'a dyn Sink,
        most: u64,
    ) -> Self {
        Self {
            delta,
            number: group,
            group: &delta.groups[group],
            coder: None,
            frames: None,
            blocks: Vec::new(),
            reader: Reader::new(contents, &delta.old).at_most(most),
            new: Reader::new(contents, &delta.new),
            sink,
            left: Vec::new(),
            made: 0,
            most,
        }
    }

    fn run(&mut self, streams: &dyn Streams) -> Result<(), ApplyError> {
        let (delta, memory) = (self.delta, self.most);
        let wanted: Vec<_> = delta.of(self.group).collect();
        if self.group.memory > memory {
            self.leave_all(&wanted, Left::Memory(self.group.memory));
            return Ok(());
        }
        // What comes after the last content that is still wanted need not be decoded.
        let Some(last) = wanted.iter().rposition(|w| !self.sink.has(&w.1.0)) else { return Ok(()) };
        let range = delta.streams[self.number].clone();
        let Some(stream) = streams.read(range).map_err(ApplyError::Stream)? else {
            self.leave_all(&wanted, Left::Stream);
            return Ok(());
        };
        let mut decoder = Decoder::new(&stream);
        let mut stopped = None;
        for (entry, (digest, size)) in &wanted[..=last] {
            let has = self.sink.has(digest);
            if let Some(why) = stopped {
                if !has {
                    self.left.push((*digest, *size, why));
                }
                continue;
            }
            match self.build(&mut decoder, &entry.recipe, *size, has) {
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
                }
                Err(Stop::Missing) => stopped = Some(Left::Missing),
            }
            if let (Some(why), false) = (stopped, has) {
                self.left.push((*digest, *size, why));
            }
        }
        Ok(())
    }

    fn leave_all(&mut self, wanted: &[(&index::Entry, (ContentDigest, u64))], why: Left) {
        let missing = wanted.iter().filter(|(_, (digest, _))| !self.sink.has(digest));
        self.left.extend(missing.map(|(_, (digest, size))| (*digest, *size, why)));
    }

    /// Builds what the recipe says, at most `limit` bytes. With `skip`, only follows the
    /// coded stream. An encoder that fails gives wrong bytes rather than an error, so
    /// that the stream can be followed on.
    fn build(
        &mut self,
        decoder: &mut Decoder<'_>,
        recipe: &Recipe,
        limit: u64,
        skip: bool,
    ) -> Result<Option<Vec<u8>>, Stop> {
        let skeleton = match &recipe.skeleton {
            Some(leaf) => self.leaf(decoder, leaf, limit.saturating_mul(MOST_EXPANSION))?,
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
                    let mut bytes = self.leaf(decoder, leaf, room)?;
                    if out.is_empty() { out = bytes } else { out.append(&mut bytes) }
                }
                _ if skip && !matches!(op, Op::Encode(..) | Op::Frame(..)) => {}
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
                    let most = limit.saturating_mul(MOST_EXPANSION);
                    let plain = self.build(decoder, inner, most, skip)?;
                    if let Some(plain) = plain {
                        if settings.memory(plain.len() as u64) > self.most {
                            return Err(Stop::Wrong);
                        }
                        self.reader.forget();
                        out.extend_from_slice(&codec::encode(settings, &plain).unwrap_or_default());
                    }
                }
                Op::Frame(format, old, inner) => {
                    // What was chosen can only be followed along the text itself.
                    let most = limit.saturating_mul(MOST_EXPANSION);
                    let text = self.build(decoder, inner, most, false)?.ok_or(Stop::Wrong)?;
                    let old = (*format, old.as_ref());
                    self.frame(decoder, old, inner, &text, (&mut out, limit))?;
                }
            }
            if out.len() as u64 > limit {
                return Err(Stop::Wrong);
            }
        }
        Ok((!skip).then_some(out))
    }

    /// Puts the stream of `text` behind what is made so far, at most so many bytes.
    fn frame(
        &mut self,
        decoder: &mut Decoder<'_>,
        (format, old): (codec::Format, Option<&Source>),
        inner: &Recipe,
        text: &[u8],
        (out, limit): (&mut Vec<u8>, u64),
    ) -> Result<(), Stop> {
        let blocks = std::mem::take(&mut self.blocks);
        let old_text;
        let foretold = match old {
            None => None,
            Some(old) => {
                old_text = self.reader.bytes(inner.text_of(format, old).ok_or(Stop::Wrong)?)?;
                let stream = self.reader.bytes(old)?;
                self.reader.forget();
                let foretold = Foretold::new(format, &old_text, &stream, &blocks);
                Some(foretold.ok_or(Stop::Wrong)?)
            }
        };
        let coder = self.frames.get_or_insert_with(FrameCoder::new);
        let mut maker = Maker::new(format).ok_or(Stop::Wrong)?;
        let mut each = |part: Part<'_>| {
            match part {
                Part::Header(bytes) => maker.begin(bytes, out)?,
                Part::Block(block, end, sequences, last) => {
                    maker.block(block, (text, end), sequences, last, out)?;
                }
                Part::End(checksum) => maker.end(checksum, out),
            }
            (out.len() as u64 <= limit).then_some(())
        };
        let coded = coder.code(decoder, format, text, foretold.as_ref(), None, &mut each);
        coded.map_err(|_| Stop::Wrong)
    }

    fn leaf(
        &mut self,
        decoder: &mut Decoder<'_>,
        leaf: &Leaf,
        limit: u64,
    ) -> Result<Vec<u8>, Stop> {
        if leaf.length > limit.min(self.most) {
            return Err(Stop::Wrong);
        }
        let mut out = vec![0; leaf.length as usize];
        let log = u32::from(self.group.log);
        let coder = self.coder.get_or_insert_with(|| BlobCoder::new(log));
        let result = match &leaf.old {
            None => coder.code(decoder, None, &Alignment::default(), &mut out),
            Some(source) => {
                let old = self.reader.bytes(source)?;
                let anatomy = Anatomy::of(&old, self.group.base_types);
                let reference = Reference { bytes: &old, anatomy: &anatomy };
                coder.code(decoder, Some(reference), &Alignment::default(), &mut out)
            }
        };
        self.blocks = result.map_err(|_| Stop::Wrong)?;
        Ok(out)
    }
}

/// How much larger than the content itself what is compressed in it may be: deflate's
/// greatest ratio is about this; a delta that asks for more is a bomb.
const MOST_EXPANSION: u64 = 1100;

#[cfg(test)]
mod tests;
