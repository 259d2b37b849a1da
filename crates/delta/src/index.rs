//! What a delta says about each content before its streams: how it is put together and
//! from which old bytes. Bytes only; see docs/format/delta.md.
//!
//! ```text
//! index  = groups
//! group  = memory, entries                one arithmetic-coded stream each
//! entry  = content, recipe                 content: its number in the new manifest
//! recipe = skeleton?, steps of building
//! ```

use std::collections::HashSet;

use crate::codec::{Format, Settings};

/// Old bytes, reached from a content of the old release.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(crate) struct Source {
    /// Its number: its place among the distinct contents of the old manifest.
    pub(crate) content: u32,
    pub(crate) steps: Vec<Step>,
}

/// A step from bytes to bytes within.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Step {
    /// Stretches put together: bytes to skip, bytes to take, again and again.
    Gather(Vec<(u64, u64)>),
    /// The stream that starts here, decoded to so many bytes.
    Decode(Format, u64),
}

/// Bytes that the group's stream codes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Leaf {
    pub(crate) length: u64,
    pub(crate) old: Option<Source>,
}

/// One step of building.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    /// The next bytes of the skeleton.
    Skeleton(u64),
    /// Coded bytes.
    Leaf(Leaf),
    /// A whole content of the new release, by number.
    Content(u32),
    /// Old bytes as they are; with their length.
    Copy(Source, u64),
    /// A stream made of what the recipe builds.
    Encode(Settings, Recipe),
    /// A stream of what the recipe builds, by what its encoder chose, which is coded after
    /// it; with the old stream that foretells it.
    Frame(Format, Option<Source>, Recipe),
}

/// How bytes are put together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Recipe {
    /// The container's own bytes, all together.
    pub(crate) skeleton: Option<Leaf>,
    pub(crate) ops: Vec<Op>,
}

impl Recipe {
    /// Numbers of the contents of the old release and of the new that it reads.
    pub(crate) fn sources(&self, old: &mut HashSet<u32>, new: &mut HashSet<u32>) {
        let of = |leaf: &Leaf| leaf.old.as_ref().map(|source| source.content);
        old.extend(self.skeleton.as_ref().and_then(of));
        for op in &self.ops {
            match op {
                Op::Skeleton(_) => {}
                Op::Leaf(leaf) => old.extend(of(leaf)),
                Op::Content(number) => _ = new.insert(*number),
                Op::Copy(source, _) => _ = old.insert(source.content),
                Op::Encode(_, inner) => inner.sources(old, new),
                Op::Frame(_, frame, inner) => {
                    old.extend(frame.as_ref().map(|source| source.content));
                    inner.sources(old, new);
                }
            }
        }
    }

    /// The old text of an old stream, when this recipe is nothing but that text changed.
    pub(crate) fn text_of(&self, format: Format, stream: &Source) -> Option<&Source> {
        let [Op::Leaf(Leaf { old: Some(text), .. })] = &self.ops[..] else { return None };
        let (last, steps) = text.steps.split_last()?;
        let of = text.content == stream.content && steps == stream.steps;
        let opened = matches!(last, Step::Decode(of, _) if *of == format);
        (of && self.skeleton.is_none() && opened).then_some(text)
    }
}

/// How to get one content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) content: u32,
    pub(crate) recipe: Recipe,
}

/// Contents whose coded bytes share a stream.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Group {
    /// Bytes of memory that building its contents takes.
    pub(crate) memory: u64,
    /// Uses contents that other groups make.
    pub(crate) late: bool,
    /// 2^log slots in the model.
    pub(crate) log: u8,
    /// Types of the kernel's own BTF, for modules.
    pub(crate) base_types: u32,
    pub(crate) entries: Vec<Entry>,
}

/// An index that is broken or hostile.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the delta's index is broken at byte {at}")]
pub struct BadIndex {
    at: usize,
}

const MAX_DEPTH: u32 = 12;
/// The most memory that a parsed index may take, in bytes. A liar's operations of two
/// bytes would take a hundred times their length.
const MAX_MEMORY: usize = 24 << 20;

/// The bytes of an index.
pub(crate) fn to_bytes(groups: &[Group]) -> Vec<u8> {
    let mut out = Out(Vec::new());
    out.number(groups.len() as u64);
    for group in groups {
        out.number(group.memory);
        out.number(u64::from(group.late));
        out.number(u64::from(group.log));
        out.number(u64::from(group.base_types));
        out.number(group.entries.len() as u64);
        let (mut content, mut old) = (0, 0);
        for entry in &group.entries {
            out.signed(i64::from(entry.content) - content);
            content = i64::from(entry.content) + 1;
            out.recipe(&entry.recipe, &mut old);
        }
    }
    out.0
}

/// Reads an index.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<Group>, BadIndex> {
    let mut input = In { bytes, at: 0, room: MAX_MEMORY };
    let groups = (0..input.count()?).map(|_| input.group()).collect::<Result<_, _>>()?;
    if input.at != bytes.len() {
        return Err(input.bad());
    }
    Ok(groups)
}

struct Out(Vec<u8>);

impl Out {
    fn number(&mut self, mut value: u64) {
        while value >= 128 {
            self.0.push(value as u8 | 128);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn signed(&mut self, value: i64) {
        self.number(((value << 1) ^ (value >> 63)) as u64);
    }

    fn source(&mut self, source: &Source, last: &mut i64) {
        self.signed(i64::from(source.content) - *last);
        *last = i64::from(source.content) + 1;
        self.number(source.steps.len() as u64);
        for step in &source.steps {
            match step {
                Step::Gather(stretches) => {
                    self.number(0);
                    self.number(stretches.len() as u64);
                    for &(skip, take) in stretches {
                        self.number(skip);
                        self.number(take);
                    }
                }
                Step::Decode(format, length) => {
                    self.number(*format as u64);
                    self.number(*length);
                }
            }
        }
    }

    fn leaf(&mut self, leaf: &Leaf, last: &mut i64) {
        self.number(leaf.length << 1 | u64::from(leaf.old.is_some()));
        if let Some(old) = &leaf.old {
            self.source(old, last);
        }
    }

    fn recipe(&mut self, recipe: &Recipe, last: &mut i64) {
        self.number(recipe.ops.len() as u64 * 2 + u64::from(recipe.skeleton.is_some()));
        if let Some(skeleton) = &recipe.skeleton {
            self.leaf(skeleton, last);
        }
        for op in &recipe.ops {
            match op {
                Op::Skeleton(length) => {
                    self.number(0);
                    self.number(*length);
                }
                Op::Leaf(leaf) => {
                    self.number(1);
                    self.leaf(leaf, last);
                }
                Op::Content(number) => {
                    self.number(2);
                    self.number(u64::from(*number));
                }
                Op::Copy(source, length) => {
                    self.number(3);
                    self.source(source, last);
                    self.number(*length);
                }
                Op::Frame(format, old, recipe) => {
                    self.number(4);
                    self.number((*format as u64) << 1 | u64::from(old.is_some()));
                    if let Some(old) = old {
                        self.source(old, last);
                    }
                    self.recipe(recipe, last);
                }
                Op::Encode(settings, recipe) => {
                    self.number(4 + settings.format() as u64);
                    let bytes = settings.to_bytes();
                    self.number(bytes.len() as u64);
                    self.0.extend_from_slice(&bytes);
                    self.recipe(recipe, last);
                }
            }
        }
    }
}

struct In<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bytes of memory that what is read may still take.
    room: usize,
}

impl In<'_> {
    fn bad(&self) -> BadIndex {
        BadIndex { at: self.at }
    }

    fn number(&mut self) -> Result<u64, BadIndex> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(self.bad())?;
            self.at += 1;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err(self.bad())
    }

    fn signed(&mut self) -> Result<i64, BadIndex> {
        let value = self.number()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A number of things of at least one byte each.
    fn count(&mut self) -> Result<usize, BadIndex> {
        let count = self.number()? as usize;
        if count > self.bytes.len() - self.at { Err(self.bad()) } else { Ok(count) }
    }

    /// Makes room for one more thing in a list.
    fn one<T>(&mut self) -> Result<(), BadIndex> {
        // Lists grow to twice what they hold.
        let taken = 2 * size_of::<T>();
        self.room = self.room.checked_sub(taken).ok_or(self.bad())?;
        Ok(())
    }

    fn small(&mut self) -> Result<u32, BadIndex> {
        u32::try_from(self.number()?).map_err(|_| self.bad())
    }

    /// A number near the one before.
    fn near(&mut self, last: &mut i64) -> Result<u32, BadIndex> {
        let value = last.checked_add(self.signed()?).and_then(|n| u32::try_from(n).ok());
        let value = value.ok_or(self.bad())?;
        *last = i64::from(value) + 1;
        Ok(value)
    }

    fn group(&mut self) -> Result<Group, BadIndex> {
        self.one::<Group>()?;
        let (memory, late) = (self.number()?, self.number()? != 0);
        let log = self.number()?;
        if !(14..=24).contains(&log) {
            return Err(self.bad());
        }
        let base_types = self.small()?;
        let (mut content, mut old) = (0, 0);
        let entries = (0..self.count()?)
            .map(|_| {
                self.one::<Entry>()?;
                let content = self.near(&mut content)?;
                Ok(Entry { content, recipe: self.recipe(&mut old, MAX_DEPTH)? })
            })
            .collect::<Result<_, _>>()?;
        Ok(Group { memory, late, log: log as u8, base_types, entries })
    }

    fn source(&mut self, last: &mut i64) -> Result<Source, BadIndex> {
        let content = self.near(last)?;
        let count = self.count()?;
        let steps = (0..count)
            .map(|_| {
                self.one::<Step>()?;
                match self.number()? {
                    0 => {
                        let stretches = (0..self.count()?).map(|_| {
                            self.one::<(u64, u64)>()?;
                            Ok((self.number()?, self.number()?))
                        });
                        Ok(Step::Gather(stretches.collect::<Result<_, _>>()?))
                    }
                    format => {
                        let format = u8::try_from(format).ok().and_then(Format::from_byte);
                        Ok(Step::Decode(format.ok_or(self.bad())?, self.number()?))
                    }
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Source { content, steps })
    }

    fn leaf(&mut self, last: &mut i64) -> Result<Leaf, BadIndex> {
        let length = self.number()?;
        let old = if length & 1 == 1 { Some(self.source(last)?) } else { None };
        Ok(Leaf { length: length >> 1, old })
    }

    fn recipe(&mut self, last: &mut i64, depth: u32) -> Result<Recipe, BadIndex> {
        if depth == 0 {
            return Err(self.bad());
        }
        let head = self.number()?;
        let skeleton = if head & 1 == 1 { Some(self.leaf(last)?) } else { None };
        if head >> 1 > (self.bytes.len() - self.at) as u64 {
            return Err(self.bad());
        }
        let ops = (0..head >> 1)
            .map(|_| {
                self.one::<Op>()?;
                Ok(match self.number()? {
                    0 => Op::Skeleton(self.number()?),
                    1 => Op::Leaf(self.leaf(last)?),
                    2 => Op::Content(self.small()?),
                    3 => Op::Copy(self.source(last)?, self.number()?),
                    4 => {
                        let head = self.number()?;
                        let format = u8::try_from(head >> 1).ok().and_then(Format::from_byte);
                        let format = format.filter(|f| matches!(f, Format::Xz | Format::Zstd));
                        let format = format.ok_or(self.bad())?;
                        let old = if head & 1 == 1 { Some(self.source(last)?) } else { None };
                        Op::Frame(format, old, self.recipe(last, depth - 1)?)
                    }
                    format => {
                        let format = u8::try_from(format - 4).ok().and_then(Format::from_byte);
                        let format = format.ok_or(self.bad())?;
                        let length = self.count()?;
                        let bytes = &self.bytes[self.at..self.at + length];
                        let settings = Settings::from_bytes(format, bytes)
                            .filter(|settings| !matches!(settings, Settings::Chosen(_)))
                            .ok_or(self.bad())?;
                        self.at += length;
                        Op::Encode(settings, self.recipe(last, depth - 1)?)
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Recipe { skeleton, ops })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> Vec<Group> {
        let source = |content| Source {
            content,
            steps: vec![Step::Gather(vec![(4, 5), (0, 9)]), Step::Decode(Format::Xz, 1000)],
        };
        let inner = Recipe {
            skeleton: Some(Leaf { length: 7, old: Some(source(9)) }),
            ops: vec![Op::Skeleton(7), Op::Content(3), Op::Copy(source(2), 77)],
        };
        let recipe = Recipe {
            skeleton: None,
            ops: vec![
                Op::Leaf(Leaf { length: 300, old: None }),
                Op::Encode(Settings::Lz4Legacy { level: 9 }, inner),
                Op::Encode(Settings::Deflate(vec![1, 2, 3]), Recipe::default()),
                Op::Frame(Format::Xz, None, Recipe::default()),
                Op::Frame(Format::Zstd, Some(source(1)), Recipe::default()),
            ],
        };
        let entries =
            vec![Entry { content: 5, recipe: recipe.clone() }, Entry { content: 2, recipe }];
        vec![
            Group { memory: 1 << 33, late: true, log: 20, base_types: 9, entries },
            Group { log: 14, ..Group::default() },
        ]
    }

    #[test]
    fn comes_back_from_its_bytes() {
        assert_eq!(parse(&to_bytes(&groups())).unwrap(), groups());
    }

    #[test]
    fn a_small_index_stays_small_in_memory() {
        // A million operations of two bytes each would take a hundred times that.
        let recipe = Recipe { skeleton: None, ops: vec![Op::Skeleton(0); 1 << 20] };
        let entries = vec![Entry { content: 0, recipe }];
        let bytes = to_bytes(&[Group { log: 14, entries, ..Group::default() }]);
        assert!(bytes.len() < 3 << 20);
        assert!(parse(&bytes).is_err());
    }

    #[test]
    fn broken_bytes_are_refused_or_read_as_something_small() {
        let bytes = to_bytes(&groups());
        for at in 0..bytes.len() {
            assert!(parse(&bytes[..at]).is_err());
            for flip in [1, 4, 0x80, 0xff] {
                let mut broken = bytes.clone();
                broken[at] ^= flip;
                if let Ok(parsed) = parse(&broken) {
                    assert!(to_bytes(&parsed).len() < 4 * bytes.len());
                }
            }
        }
    }
}
