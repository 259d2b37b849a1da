//! Makes a delta. Publisher only.
//!
//! ```text
//! new contents -> taken apart, proved   \
//! old contents that vanish -> taken apart -> matched -> aligned -> coded in groups -> file
//! ```

mod draft;
mod matching;

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use varve_format::manifest::{Manifest, ManifestError};
use varve_format::tree::Kind;
use varve_format::{ContentDigest, verity};

use crate::address::Anatomy;
use crate::blob::frame::{Foretold, FrameCoder};
use crate::blob::{Alignment, BlobCoder, Block, Reference, align};
use crate::codec::frame;
use crate::coder::Encoder;
use crate::container;
pub use crate::container::Memo;
use crate::file::{self, Header};
use crate::index::{self, Entry, Group, Source};
use crate::manifest;
use crate::source::{Contents, Reader, SourceError};
use draft::{Coded, Draft, NewFrame, NewLeaf};
use matching::{Choice, OldLeaves};

/// What making may take.
#[derive(Clone, Copy, Debug)]
pub struct MakeLimits {
    /// Threads.
    pub threads: usize,
    /// How far contents are taken apart.
    pub container: container::Limits,
    /// A group stays below so many bytes of memory on the device, if its contents can
    /// be made in that; those that cannot get a group of their own.
    pub light: u64,
}

impl Default for MakeLimits {
    fn default() -> Self {
        Self { threads: 2, container: container::Limits::default(), light: 37 << 20 }
    }
}

/// Why no delta could be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// A manifest is none.
    #[error("a manifest cannot be read")]
    Manifest(#[from] ManifestError),
    /// A content of either release cannot be had.
    #[error("a content cannot be read")]
    Source(#[from] SourceError),
}

/// Bytes of one group of a delta.
#[derive(Clone, Debug)]
pub struct GroupReport {
    /// What is in it.
    pub kind: &'static str,
    /// Contents in it.
    pub contents: usize,
    /// Their bytes in the new release.
    pub size: u64,
    /// Bytes in the delta.
    pub stored: u64,
    /// Memory that the device needs for it.
    pub memory: u64,
}

/// What a delta cost.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Bytes for the manifest.
    pub manifest: u64,
    /// Bytes for the index.
    pub index: u64,
    /// The groups.
    pub groups: Vec<GroupReport>,
    /// New contents and their bytes.
    pub contents: usize,
    /// Bytes of new contents.
    pub size: u64,
    /// Contents whose compressed streams stayed closed because no settings made them
    /// again; by path.
    pub closed: Vec<String>,
    /// Coded bytes by content: path, size, bytes in the delta. Largest first.
    pub largest: Vec<(String, u64, u64)>,
    /// Seconds of: taking apart, aligning, coding.
    pub seconds: [f64; 3],
}

struct NewContent {
    number: u32,
    size: u64,
    path: String,
    draft: Draft,
    kind: usize,
}

const KINDS: [&str; 6] = [
    "kernel modules",
    "programs and libraries",
    "everything else",
    "heavy",
    "made of others",
    "large kernel modules",
];

/// Makes a delta from one release to another.
pub fn make(
    old_manifest: &[u8],
    new_manifest: &[u8],
    contents: &dyn Contents,
    limits: MakeLimits,
    memo: Option<&dyn Memo>,
) -> Result<(Vec<u8>, Report), MakeError> {
    let clock = std::time::Instant::now();
    let (old, new) = (Manifest::parse(old_manifest)?, Manifest::parse(new_manifest)?);
    let old_table: Vec<_> = old.contents().collect();
    let new_table: Vec<_> = new.contents().collect();
    let old_set: HashMap<ContentDigest, u32> = numbers(&old_table);
    let new_set: HashMap<ContentDigest, u32> = numbers(&new_table);
    let (old_paths, new_paths) = (paths(&old, &old_set), paths(&new, &new_set));

    // Old contents that vanish: what changed ones are made of.
    let vanished: Vec<u32> = (0..old_table.len() as u32)
        .filter(|&n| !new_set.contains_key(&old_table[n as usize].0))
        .collect();
    let walks = parallel(
        limits.threads,
        &vanished,
        || Reader::new(contents, &old_table),
        |reader, &number| {
            let bytes = reader.content(number)?;
            reader.forget();
            let node = container::walk(&bytes, &limits.container, (false, false), &|_| false, None);
            Ok(draft::old_leaves(number, &old_paths[number as usize], &bytes, &node))
        },
    )?;
    let old_leaves = OldLeaves::new(walks.into_iter().flatten());

    let changed: Vec<u32> = (0..new_table.len() as u32)
        .filter(|&n| !old_set.contains_key(&new_table[n as usize].0))
        .collect();
    // Largest first, so that the last thread is not left alone with a big one.
    let mut order = changed.clone();
    order.sort_by_key(|&n| std::cmp::Reverse(new_table[n as usize].1));
    let known = |bytes: &[u8]| new_set.contains_key(&verity::content_digest(bytes));
    let mut drafts = parallel(
        limits.threads,
        &order,
        || Reader::new(contents, &new_table),
        |reader, &number| {
            let bytes = reader.content(number)?;
            reader.forget();
            let path = &new_paths[number as usize];
            let prove = (true, old_leaves.foretell(path));
            let node = container::walk(&bytes, &limits.container, prove, &known, memo);
            Ok((number, draft::draft(path, &bytes, &node)))
        },
    )?;
    drafts.sort_by(|a, b| {
        let (a, b) = (&new_paths[a.0 as usize], &new_paths[b.0 as usize]);
        matching::file_name(a).cmp(matching::file_name(b)).then(a.cmp(b))
    });
    let mut report = Report { contents: changed.len(), ..Report::default() };
    report.seconds[0] = clock.elapsed().as_secs_f64();

    // For each leaf: nothing to code, or the old leaf to code it against.
    let clock = std::time::Instant::now();
    let changed_set: HashSet<u32> = changed.iter().copied().collect();
    let mut leaves: Vec<NewLeaf> = Vec::new();
    let mut news: Vec<NewContent> = Vec::new();
    for (number, mut draft) in drafts {
        let path = new_paths[number as usize].clone();
        let size = new_table[number as usize].1;
        report.size += size;
        if draft.closed {
            report.closed.push(path.clone());
        }
        draft.shift(leaves.len());
        leaves.append(&mut draft.leaves);
        news.push(NewContent { number, size, path, draft, kind: 2 });
    }
    let own: HashMap<ContentDigest, u32> = new_set.clone();
    let choices: Vec<Choice> =
        parallel(limits.threads, &leaves, || (), |_, leaf| Ok(old_leaves.choose(leaf, &own)))?;
    for content in &mut news {
        content.kind = kind_of(content, &leaves, &choices, &changed_set, &old_leaves, limits.light);
    }

    let base_types = matching::base_types(&old_leaves, contents, &old_table)?;
    let jobs: Vec<usize> = {
        let mut jobs: Vec<usize> =
            (0..leaves.len()).filter(|&at| matches!(choices[at], Choice::Against(_))).collect();
        jobs.sort_by_key(|&at| std::cmp::Reverse(leaves[at].bytes.len()));
        jobs
    };
    let aligned = parallel(
        limits.threads,
        &jobs,
        || Reader::new(contents, &old_table),
        |reader, &at| {
            let Choice::Against(source) = &choices[at] else {
                return Ok((at, Alignment::default()));
            };
            let old = reader.bytes(source)?;
            reader.forget();
            Ok((at, alignment(&old, &leaves[at].bytes, base_types)))
        },
    )?;
    let mut alignments: HashMap<usize, Alignment> = aligned.into_iter().collect();
    report.seconds[1] = clock.elapsed().as_secs_f64();

    // Groups.
    let clock = std::time::Instant::now();
    let mut groups: Vec<(usize, Vec<&NewContent>)> = Vec::new();
    for kind in [3, 0, 5, 1, 2, 4] {
        let all: Vec<&NewContent> = news.iter().filter(|c| c.kind == kind).collect();
        if matches!(kind, 3 | 4) {
            groups.extend(all.into_iter().map(|c| (kind, vec![c])));
        } else if !all.is_empty() {
            groups.push((kind, all));
        }
    }
    let mut work: Vec<Mutex<HashMap<usize, Alignment>>> = Vec::new();
    for (_, contents) in &groups {
        let mut part = HashMap::new();
        for at in contents.iter().flat_map(|c| c.draft.all_leaves()) {
            part.extend(alignments.remove_entry(&at));
        }
        work.push(Mutex::new(part));
    }
    let numbers: Vec<usize> = (0..groups.len()).collect();
    let coded = parallel(
        limits.threads,
        &numbers,
        || (),
        |(), &at| {
            let (kind, members) = &groups[at];
            let alignments = std::mem::take(&mut *work[at].lock().expect("no thread panics"));
            let coding = Coding { leaves: &leaves, choices: &choices, base_types };
            coding.group(
                *kind,
                members,
                alignments,
                &mut Reader::new(contents, &old_table),
                &old_leaves,
            )
        },
    )?;
    let (short_old, short_new) = (manifest::shorten(old_manifest), manifest::shorten(new_manifest));
    let mut streams = vec![manifest_stream(&short_old, &short_new), Vec::new()];
    let mut index_groups = Vec::new();
    for ((kind, members), (group, stream, mut largest)) in groups.iter().zip(coded) {
        report.groups.push(GroupReport {
            kind: KINDS[*kind],
            contents: members.len(),
            size: members.iter().map(|c| c.size).sum(),
            stored: stream.len() as u64,
            memory: group.memory,
        });
        report.largest.append(&mut largest);
        index_groups.push(group);
        streams.push(stream);
    }
    report.largest.sort_by_key(|l| std::cmp::Reverse(l.2));
    let index = index::to_bytes(&index_groups);
    let mut encoder = Encoder::new();
    BlobCoder::new(18)
        .code(&mut encoder, None, &Alignment::default(), &mut index.clone())
        .expect("what was aligned here fits");
    streams[1] = encoder.finish();
    report.manifest = streams[0].len() as u64;
    report.index = streams[1].len() as u64;
    report.seconds[2] = clock.elapsed().as_secs_f64();
    let header = Header {
        from: old.digest(),
        to: new.digest(),
        manifest: short_new.len() as u64,
        index: index.len() as u64,
    };
    Ok((file::write(&header, &streams), report))
}

fn numbers(table: &[(ContentDigest, u64)]) -> HashMap<ContentDigest, u32> {
    table.iter().enumerate().map(|(at, (digest, _))| (*digest, at as u32)).collect()
}

/// The first path of each content.
fn paths(manifest: &Manifest, numbers: &HashMap<ContentDigest, u32>) -> Vec<String> {
    let mut paths = vec![String::new(); numbers.len()];
    for entry in manifest.entries() {
        if let Kind::Regular { digest, size: 1.. } = &entry.kind {
            let path = &mut paths[numbers[digest] as usize];
            if path.is_empty() {
                *path = String::from_utf8_lossy(entry.path.as_bytes()).into_owned();
            }
        }
    }
    paths
}

fn manifest_stream(old: &[u8], new: &[u8]) -> Vec<u8> {
    let anatomy = Anatomy::default();
    let alignment = alignment(old, new, 0);
    let mut encoder = Encoder::new();
    let reference = Reference { bytes: old, anatomy: &anatomy };
    BlobCoder::new(20)
        .code(&mut encoder, Some(reference), &alignment, &mut new.to_vec())
        .expect("what was aligned here fits");
    encoder.finish()
}

fn alignment(old: &[u8], new: &[u8], base_types: u32) -> Alignment {
    let (old_anatomy, new_anatomy) = (Anatomy::of(old, base_types), Anatomy::of(new, base_types));
    let sorted = align::Sorted::new(old, &old_anatomy);
    align::align(&sorted, old, &old_anatomy, new, &new_anatomy)
}

fn kind_of(
    content: &NewContent,
    leaves: &[NewLeaf],
    choices: &[Choice],
    changed: &HashSet<u32>,
    old: &OldLeaves,
    light: u64,
) -> usize {
    let all = content.draft.all_leaves();
    if all.clone().any(|at| matches!(&choices[at], Choice::Content(n) if changed.contains(n))) {
        return 4;
    }
    let heavy = MODEL_MEMORY + content.draft.memory(content.size, leaves, choices, old) > light;
    let head = |magic: &[u8]| all.clone().any(|at| leaves[at].bytes.starts_with(magic));
    let module = all.clone().any(|at| {
        let bytes = &leaves[at].bytes;
        bytes.starts_with(b"\x7fELF") && bytes.get(16) == Some(&1)
    });
    if module {
        if heavy { 5 } else { 0 }
    } else if heavy {
        3
    } else if head(b"\x7fELF") {
        1
    } else {
        2
    }
}

/// Memory of a group's model with 2^[`LOG`] slots.
const MODEL_MEMORY: u64 = 15 << 20;
const LOG: u8 = 20;

/// What a group comes to: its place in the index, its stream, bytes by content.
type CodedGroup = (Group, Vec<u8>, Vec<(String, u64, u64)>);

struct Coding<'a> {
    leaves: &'a [NewLeaf],
    choices: &'a [Choice],
    base_types: u32,
}

impl Coding<'_> {
    fn group(
        &self,
        kind: usize,
        members: &[&NewContent],
        alignments: HashMap<usize, Alignment>,
        reader: &mut Reader<'_>,
        old_leaves: &OldLeaves,
    ) -> Result<CodedGroup, MakeError> {
        let mut group =
            Group { log: LOG, late: kind == 4, base_types: self.base_types, ..Group::default() };
        let mut coder = BlobCoder::new(u32::from(LOG));
        let mut frames = FrameCoder::new();
        let mut encoder = Encoder::new();
        let mut largest = Vec::new();
        for content in members {
            let before = encoder.written();
            let mut blocks = Vec::new();
            let mut unread = HashSet::new();
            for coded in content.draft.coded(self.choices) {
                let at = match coded {
                    Coded::Leaf(at) => at,
                    Coded::Frame(new, old) => {
                        let old = (old, &blocks[..]);
                        self.frame(&mut encoder, &mut frames, new, old, reader, &mut unread)?;
                        continue;
                    }
                };
                let mut bytes = self.leaves[at].bytes.clone();
                let result = match &self.choices[at] {
                    Choice::Against(source) => {
                        let old = reader.bytes(source)?;
                        let anatomy = Anatomy::of(&old, self.base_types);
                        let reference = Reference { bytes: &old, anatomy: &anatomy };
                        coder.code(&mut encoder, Some(reference), &alignments[&at], &mut bytes)
                    }
                    _ => coder.code(&mut encoder, None, &Alignment::default(), &mut bytes),
                };
                blocks = result.expect("what was aligned here fits");
            }
            largest.push((content.path.clone(), content.size, (encoder.written() - before) as u64));
            let memory = MODEL_MEMORY
                + content.draft.memory(content.size, self.leaves, self.choices, old_leaves);
            group.memory = group.memory.max(memory);
            let recipe = content.draft.recipe(self.leaves, self.choices, &unread);
            group.entries.push(Entry { content: content.number, recipe });
        }
        Ok((group, encoder.finish(), largest))
    }

    /// Codes what a frame's encoder chose; `old`: the old text and the frame of it that
    /// foretells it, and where the text went. An old frame that cannot be read is told.
    fn frame(
        &self,
        encoder: &mut Encoder,
        coder: &mut FrameCoder,
        new: &NewFrame,
        (old, blocks): (Option<(&Source, Source)>, &[Block]),
        reader: &mut Reader<'_>,
        unread: &mut HashSet<Source>,
    ) -> Result<(), MakeError> {
        let mut sequences = Vec::new();
        let all = &mut |some: &[_]| sequences.extend_from_slice(some);
        let read = frame::read(new.format, &new.stream, &new.text, all);
        let (frame, _) = read.expect("it was read before");
        let old_text;
        let mut foretold = None;
        if let Some((text, old_frame)) = old {
            old_text = reader.bytes(text)?;
            let stream = reader.bytes(&old_frame)?;
            reader.forget();
            foretold = Foretold::new(new.format, &old_text, &stream, blocks);
            if foretold.is_none() {
                unread.insert(old_frame);
            }
        }
        let known = Some((&frame, &sequences[..]));
        let (text, foretold) = (&new.text, foretold.as_ref());
        let coded = coder.code(encoder, new.format, text, foretold, known, &mut |_| Some(()));
        coded.expect("a frame that comes back can be told");
        Ok(())
    }
}

/// Does `work` for each job on several threads; results in the order of the jobs.
fn parallel<J: Sync, S, R: Send>(
    threads: usize,
    jobs: &[J],
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &J) -> Result<R, MakeError> + Sync,
) -> Result<Vec<R>, MakeError> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(jobs.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                let mut state = state();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(at) else { break };
                    let result = work(&mut state, job);
                    results.lock().expect("no thread panics").push((at, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no thread panics");
    results.sort_by_key(|r| r.0);
    results.into_iter().map(|r| r.1).collect()
}
