//! Where things went: from an address, an index or an offset of the old file to the
//! one it has in the new file. First by what was seen before in this very delta, else
//! by the blocks that moved.

use crate::address::{Anatomy, Field, KINDS};
use crate::blob::Block;
use crate::coder::model::hash;

/// Where a prediction came from; a context for how far to trust it.
pub(crate) const SOURCES: usize = 5;

#[derive(Clone, Copy, Default)]
struct Seen {
    key: u64,
    value: u64,
}

/// Remembers what became of a number; a table of fixed size, newest wins.
pub(crate) struct Memory(Vec<Seen>);

impl Memory {
    pub(crate) fn new(log: u32) -> Self {
        Self(vec![Seen::default(); 1 << log])
    }

    fn at(&self, key: u64) -> usize {
        key as usize & (self.0.len() - 1)
    }

    fn get(&self, key: u64) -> Option<u64> {
        let seen = &self.0[self.at(key)];
        (seen.key == key).then_some(seen.value)
    }

    fn put(&mut self, key: u64, value: u64) {
        let at = self.at(key);
        self.0[at] = Seen { key, value };
    }
}

/// New places of an old section.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moved {
    pub(crate) offset: u64,
    pub(crate) address: u64,
}

/// A prediction for one field.
#[derive(Clone, Copy)]
pub(crate) struct Guess {
    pub(crate) value: u64,
    pub(crate) source: usize,
    key: u64,
    base: u64,
    plain: u64,
}

/// Projects one file.
pub(crate) struct Projector<'a> {
    anatomy: &'a Anatomy,
    /// Blocks by their place in the old file.
    by_old: Vec<Block>,
    moved: Vec<Moved>,
    /// Sections by address.
    order: Vec<u32>,
    seen: Memory,
    bias: Vec<(i64, i64)>,
    last: [u64; KINDS],
}

impl<'a> Projector<'a> {
    pub(crate) fn new(anatomy: &'a Anatomy, blocks: &[Block], moved: Vec<Moved>) -> Self {
        let by_old = without_overlap(blocks);
        let mut order: Vec<u32> = (0..anatomy.sections.len() as u32)
            .filter(|&s| {
                let section = &anatomy.sections[s as usize];
                section.size > 0 && section.address > 0 && (section.stored || !anatomy.relocatable)
            })
            .collect();
        order.sort_by_key(|&s| anatomy.sections[s as usize].address);
        let log = anatomy.fields.len().next_power_of_two().trailing_zeros().clamp(8, 18);
        Self {
            anatomy,
            by_old,
            moved,
            order,
            seen: Memory::new(log),
            bias: vec![(0, 0); 256],
            last: [0; KINDS],
        }
    }

    fn section_of(&self, address: u64) -> Option<usize> {
        let sections = &self.anatomy.sections;
        let at = self.order.partition_point(|&s| sections[s as usize].address <= address);
        let section = *self.order.get(at.checked_sub(1)?)? as usize;
        Some(section)
    }

    /// The new offset of the old offset.
    fn offset(&self, old: u64) -> u64 {
        let at = self.by_old.partition_point(|b| u64::from(b.old) <= old);
        match self.by_old.get(at.saturating_sub(1)) {
            Some(b) => old.wrapping_add(u64::from(b.new)).wrapping_sub(u64::from(b.old)),
            None => old,
        }
    }

    /// Whether a block holds the old address.
    fn is_covered(&self, old: u64) -> bool {
        let offset = match self.section_of(old) {
            Some(index) if !self.anatomy.relocatable => {
                let section = &self.anatomy.sections[index];
                old.wrapping_sub(section.address).wrapping_add(section.offset)
            }
            _ => old,
        };
        let at = self.by_old.partition_point(|b| u64::from(b.old) <= offset);
        let block = at.checked_sub(1).map(|at| &self.by_old[at]);
        block.is_some_and(|b| offset - u64::from(b.old) < u64::from(b.length))
    }

    /// The new address of the old address.
    fn address(&self, old: u64) -> u64 {
        if self.anatomy.relocatable {
            return self.offset(old);
        }
        let Some(index) = self.section_of(old) else { return old };
        let section = &self.anatomy.sections[index];
        let moved = self.moved.get(index).copied().unwrap_or_default();
        let within = old.wrapping_sub(section.address);
        if section.stored {
            let new = self.offset(section.offset.wrapping_add(within));
            new.wrapping_sub(moved.offset).wrapping_add(moved.address)
        } else {
            moved.address.wrapping_add(within)
        }
    }

    /// The address of a place in the new file.
    fn new_address(&self, at: u64, old_at: u64) -> u64 {
        if self.anatomy.relocatable {
            return at;
        }
        let sections = &self.anatomy.sections;
        let found = self.order.iter().map(|&s| s as usize).find(|&s| {
            let section = &sections[s];
            section.stored && old_at >= section.offset && old_at - section.offset < section.size
        });
        match found.and_then(|s| self.moved.get(s)) {
            Some(moved) => at.wrapping_sub(moved.offset).wrapping_add(moved.address),
            None => at,
        }
    }

    fn old_address(&self, at: u64) -> u64 {
        if self.anatomy.relocatable {
            return at;
        }
        let sections = &self.anatomy.sections;
        let found = self.order.iter().map(|&s| &sections[s as usize]).find(|section| {
            section.stored && at >= section.offset && at - section.offset < section.size
        });
        found.map_or(at, |s| at - s.offset + s.address)
    }

    /// What the field with the old number `value` holds in the new file, at `new_at`.
    pub(crate) fn guess(&self, field: &Field, value: u64, new_at: u64, lasting: &Memory) -> Guess {
        let kind = field.kind as usize;
        if !field.kind.is_address() {
            return self.guess_index(field, value, lasting);
        }
        use crate::address::Kind::*;
        let target = field.base.wrapping_add(value);
        let base = match field.kind {
            Absolute32 | Absolute64 => 0,
            Offset => self.address(field.base),
            _ => {
                // Counted from the field itself, or from the start of its table.
                let old = self.old_address(u64::from(field.at));
                let ahead = field.base.wrapping_sub(old);
                if ahead < 32 {
                    self.new_address(new_at, u64::from(field.at)).wrapping_add(ahead)
                } else if field.base == 0 {
                    0
                } else {
                    self.address(field.base)
                }
            }
        };
        let class = if matches!(field.kind, Offset) { field.base } else { 0 };
        let key = hash(target, class + 1);
        let bias = if matches!(field.kind, Offset) { self.bias[bias_at(kind, field)].0 } else { 0 };
        let plain = self.address(target).wrapping_sub(base);
        let (value, source) = match self.seen.get(key) {
            Some(seen) => (seen.wrapping_sub(base), 1),
            None if bias != 0 => (plain.wrapping_add(bias as u64), 2),
            None => (plain, if self.is_covered(target) { 0 } else { 3 }),
        };
        Guess { value, source, key, base, plain }
    }

    fn guess_index(&self, field: &Field, value: u64, lasting: &Memory) -> Guess {
        let kind = field.kind as u64;
        let key = hash(value, 100 + kind);
        let memory = if field.kind.outlives_file() { lasting } else { &self.seen };
        let near =
            |shift: u32| memory.get(hash(value >> shift, 200 + kind * 32 + u64::from(shift)));
        let found = memory.get(key).map(|v| (v, 1));
        let found = found.or_else(|| near(4).map(|d| (value.wrapping_add(d), 2)));
        let found = found.or_else(|| near(9).map(|d| (value.wrapping_add(d), 3)));
        let (guess, source) =
            found.unwrap_or((value.wrapping_add(self.last[field.kind as usize]), 4));
        Guess { value: guess, source, key, base: 0, plain: value }
    }

    /// Takes note of what the field turned out to hold.
    pub(crate) fn learn(
        &mut self,
        field: &Field,
        old: u64,
        guess: &Guess,
        value: u64,
        lasting: &mut Memory,
    ) {
        let kind = field.kind as u64;
        if field.kind.is_address() {
            self.seen.put(guess.key, value.wrapping_add(guess.base));
            let error = value.wrapping_sub(guess.plain) as i64;
            let bias = &mut self.bias[bias_at(kind as usize, field)];
            // Believed once it came twice in a row.
            if error == bias.1 {
                bias.0 = error;
            }
            bias.1 = error;
            return;
        }
        let memory = if field.kind.outlives_file() { lasting } else { &mut self.seen };
        memory.put(guess.key, value);
        let delta = value.wrapping_sub(old);
        if field.kind != crate::address::Kind::Checksum {
            for shift in [4u32, 9] {
                memory.put(hash(old >> shift, 200 + kind * 32 + u64::from(shift)), delta);
            }
            self.last[field.kind as usize] = delta;
        }
    }
}

/// Blocks in the order of the old content, cut so that no old byte is in two: a byte
/// that was copied to several places counts as gone where the longest copy is.
pub(super) fn without_overlap(blocks: &[Block]) -> Vec<Block> {
    let mut longest: Vec<&Block> = blocks.iter().collect();
    longest.sort_by_key(|b| (std::cmp::Reverse(b.length), b.new));
    let mut kept: std::collections::BTreeMap<u32, Block> = std::collections::BTreeMap::new();
    for block in longest {
        let end = block.old + block.length;
        let before = kept.range(..=block.old).next_back().map_or(0, |(_, b)| b.old + b.length);
        let start = block.old.max(before);
        let after = kept.range(start..).next().map_or(u32::MAX, |(&at, _)| at);
        let end = end.min(after);
        if start < end {
            let skipped = start - block.old;
            let cut = Block { old: start, new: block.new + skipped, length: end - start };
            kept.insert(start, cut);
        }
    }
    kept.into_values().collect()
}

fn bias_at(kind: usize, field: &Field) -> usize {
    use crate::address::Kind::*;
    // Tables and offsets count from their own base; code shares one.
    let base = if matches!(field.kind, Offset) { field.base } else { 0 };
    (hash(base, kind as u64) & 255) as usize
}

/// The old content as [`targets`] has it, each where the blocks say it went.
#[cfg(feature = "make")]
pub(crate) fn projected(
    old: &[u8],
    anatomy: &Anatomy,
    blocks: &[Block],
    moved: &[(u64, u64)],
) -> Vec<u8> {
    let moved = moved.iter().map(|&(offset, address)| Moved { offset, address }).collect();
    let projector = Projector::new(anatomy, blocks, moved);
    targets(old, anatomy, |target| projector.address(target))
}

/// The content with tables of addresses as what they point to, wherever the table
/// itself stands, and the other fields zero.
#[cfg(feature = "make")]
pub(crate) fn targets(bytes: &[u8], anatomy: &Anatomy, place: impl Fn(u64) -> u64) -> Vec<u8> {
    let mut out = anatomy.masked(bytes, |kind| !kind.tells_apart());
    for field in anatomy.fields.iter().filter(|f| f.kind.tells_apart()) {
        let at = field.at as usize;
        let Some(value) = field.read(bytes, at) else { continue };
        let width = usize::from(field.width);
        let target = place(field.base.wrapping_add(value)).to_le_bytes();
        out[at..at + width].copy_from_slice(&target[..width]);
    }
    out
}
