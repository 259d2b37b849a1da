//! One content as a difference against another: blocks of the old that stand in the
//! new, and what between and within them is different.
//!
//! ```text
//! old  |----A----|--B--|------C------|
//! new  |---C'---|gap|----A'---|           C', A': C and A with numbers that moved
//! ```
//!
//! The message: the blocks; then, in the order of the new bytes, gaps as text that the
//! model predicts, and blocks as *hits* (the byte or field is what the old bytes,
//! projected, say) and misses. One routine writes and reads it: the encoder passes the
//! new bytes in, the decoder finds them filled in.

#[cfg(feature = "make")]
pub(crate) mod align;
pub(crate) mod frame;
mod project;
mod text;

use crate::address::{Anatomy, Field};
use crate::coder::Coder;
use crate::coder::model::{Mixed, Tables, hash};
use crate::coder::number::Numbers;
use project::{Guess, Memory, Moved, Projector, SOURCES};
use text::{Place, Text};

/// Bytes of the old file at `old` that stand at `new` in the new one, more or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) old: u32,
    pub(crate) new: u32,
    pub(crate) length: u32,
}

/// A message that says what cannot be: broken or hostile.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the delta's coded bytes are broken")]
pub(crate) struct BadBlocks;

/// An old content with what is known of it.
pub(crate) struct Reference<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) anatomy: &'a Anatomy,
}

/// What the encoder knows and the decoder learns.
#[derive(Default)]
pub(crate) struct Alignment {
    /// In the order of the new bytes, not overlapping there.
    pub(crate) blocks: Vec<Block>,
    /// For each old section, its new offset and address.
    pub(crate) moved: Vec<(u64, u64)>,
}

const SHORT_RUN: usize = 32;
const LONG_RUN: usize = 512;
/// Bits of a table of contexts.
const FLAG_LOG: u32 = 16;

/// Codes the contents of one group, learning from each for the next.
pub(crate) struct BlobCoder {
    tables: Tables,
    runs: Mixed<3>,
    hits: Mixed<5>,
    field_hits: Mixed<4>,
    text: Text,
    numbers: Numbers,
    lasting: Memory,
}

mod class {
    pub(super) const COUNT: usize = 0;
    pub(super) const GAP: usize = 1;
    pub(super) const LENGTH: usize = 2;
    pub(super) const JUMP: usize = 3;
    pub(super) const MOVED: usize = 4;
    pub(super) const FIELD: usize = 6;
    pub(super) const ALL: usize = FIELD + crate::address::KINDS;
}

/// The state while one content is coded.
struct Walk<'a> {
    projector: Projector<'a>,
    /// Hits, one bit a byte, newest lowest.
    history: u64,
    /// Whole runs that hit, in a row.
    streak: usize,
    /// Field hits by kind, newest lowest.
    fields: [u8; crate::address::KINDS],
    place: Place,
}

struct Expected {
    at: usize,
    field: Field,
    old: u64,
    guess: Guess,
}

impl BlobCoder {
    /// `log`: 2^log slots of 4 bytes in the biggest table.
    pub(crate) fn new(log: u32) -> Self {
        Self {
            tables: Tables::new(),
            runs: Mixed::new(3 << FLAG_LOG, 64, 1023),
            hits: Mixed::new(5 << FLAG_LOG, 256, 255),
            field_hits: Mixed::new(4 << FLAG_LOG, crate::address::KINDS * SOURCES, 127),
            text: Text::new(log),
            numbers: Numbers::new(class::ALL),
            lasting: Memory::new(16),
        }
    }

    /// Codes `new`; its length is known to both sides. Returns the blocks.
    pub(crate) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        old: Option<Reference<'_>>,
        alignment: &Alignment,
        new: &mut [u8],
    ) -> Result<Vec<Block>, BadBlocks> {
        let Some(old) = old else {
            self.text.gap(&self.tables, coder, new, 0, new.len());
            return if coder.overran() { Err(BadBlocks) } else { Ok(Vec::new()) };
        };
        let moved = self.moved(coder, old.anatomy, &alignment.moved);
        let blocks = self.blocks(coder, &alignment.blocks, old.bytes.len(), new.len())?;
        let mut walk = Walk {
            projector: Projector::new(old.anatomy, &blocks, moved),
            history: !0,
            streak: 0,
            fields: [!0; crate::address::KINDS],
            place: Place::default(),
        };
        let mut at = 0;
        for block in &blocks {
            let start = block.new as usize;
            if at < start {
                self.text.gap(&self.tables, coder, new, at, start);
                walk.history = 0;
            }
            self.block(coder, &old, &mut walk, block, new);
            if coder.overran() {
                return Err(BadBlocks);
            }
            at = start + block.length as usize;
        }
        if at < new.len() {
            self.text.gap(&self.tables, coder, new, at, new.len());
        }
        if coder.overran() { Err(BadBlocks) } else { Ok(blocks) }
    }

    fn moved<C: Coder>(
        &mut self,
        coder: &mut C,
        anatomy: &Anatomy,
        new: &[(u64, u64)],
    ) -> Vec<Moved> {
        if anatomy.relocatable {
            return Vec::new();
        }
        let (mut by_offset, mut by_address) = (0i64, 0i64);
        let mut all = Vec::with_capacity(anatomy.sections.len());
        for (index, section) in anatomy.sections.iter().enumerate() {
            let (offset, address) = new.get(index).copied().unwrap_or((0, 0));
            let mut step = |last: &mut i64, old: u64, new: u64| {
                let change = (new.wrapping_sub(old) as i64).wrapping_sub(*last);
                // Far beyond any file: the section is then not followed.
                let change = if change.unsigned_abs() < 1 << 40 { change } else { 0 };
                let change = self.numbers.signed(coder, class::MOVED, change);
                *last = last.wrapping_add(change);
                old.wrapping_add(*last as u64)
            };
            let offset = step(&mut by_offset, section.offset, offset);
            let address = step(&mut by_address, section.address, address);
            all.push(Moved { offset, address });
        }
        all
    }

    fn blocks<C: Coder>(
        &mut self,
        coder: &mut C,
        blocks: &[Block],
        old_length: usize,
        new_length: usize,
    ) -> Result<Vec<Block>, BadBlocks> {
        let count = self.numbers.code(coder, class::COUNT, blocks.len() as u64);
        if count > new_length as u64 {
            return Err(BadBlocks);
        }
        let mut all = Vec::with_capacity((count as usize).min(1 << 16));
        let (mut old_end, mut new_end) = (0u64, 0u64);
        for at in 0..count as usize {
            if coder.overran() {
                return Err(BadBlocks);
            }
            let known = blocks.get(at);
            let gap = known.map_or(0, |b| u64::from(b.new) - new_end);
            let gap = self.numbers.code(coder, class::GAP, gap);
            let jump = known.map_or(0, |b| i64::from(b.old) - old_end as i64 - gap as i64);
            let jump = self.numbers.signed(coder, class::JUMP, jump);
            let length =
                self.numbers.code(coder, class::LENGTH, known.map_or(0, |b| b.length.into()));
            let old = (old_end as i64).checked_add(gap as i64).and_then(|o| o.checked_add(jump));
            let old = old.and_then(|o| u64::try_from(o).ok()).ok_or(BadBlocks)?;
            let new = new_end.checked_add(gap).ok_or(BadBlocks)?;
            old_end = old.checked_add(length).ok_or(BadBlocks)?;
            new_end = new.checked_add(length).ok_or(BadBlocks)?;
            if length == 0 || old_end > old_length as u64 || new_end > new_length as u64 {
                return Err(BadBlocks);
            }
            let small = |n: u64| u32::try_from(n).map_err(|_| BadBlocks);
            all.push(Block { old: small(old)?, new: small(new)?, length: small(length)? });
        }
        Ok(all)
    }

    fn block<C: Coder>(
        &mut self,
        coder: &mut C,
        old: &Reference<'_>,
        walk: &mut Walk<'_>,
        block: &Block,
        new: &mut [u8],
    ) {
        let fields = &old.anatomy.fields;
        let (from, to) = (block.old as usize, block.new as usize);
        let length = block.length as usize;
        let mut next_field = fields.partition_point(|f| f.at < block.old);
        let mut expected: Vec<u8> = Vec::with_capacity(LONG_RUN + 16);
        let mut inside: Vec<Expected> = Vec::new();
        let mut done = 0;
        walk.streak = 0;
        while done < length {
            if coder.overran() {
                return;
            }
            let wish = if walk.streak >= 8 { LONG_RUN } else { SHORT_RUN };
            let mut run = wish.min(length - done);
            inside.clear();
            let first = next_field;
            while let Some(field) = fields.get(next_field) {
                let at = field.at as usize - from;
                let end = at + usize::from(field.width);
                if at >= done + run || end > length {
                    break;
                }
                run = run.max(end - done);
                let value = field.read(old.bytes, field.at as usize).unwrap_or(0);
                let guess = walk.projector.guess(field, value, (to + at) as u64, &self.lasting);
                inside.push(Expected { at, field: *field, old: value, guess });
                next_field += 1;
            }
            expected.clear();
            expected.extend_from_slice(&old.bytes[from + done..from + done + run]);
            for e in &inside {
                let at = e.at - done;
                let width = usize::from(e.field.width);
                expected[at..at + width].copy_from_slice(&e.guess.value.to_le_bytes()[..width]);
            }
            let truth = &mut new[to + done..to + done + run];
            let hit = self.run_flag(coder, walk, wish, inside.len(), *truth == *expected);
            if hit {
                truth.copy_from_slice(&expected);
                for e in &inside {
                    walk.projector.learn(
                        &e.field,
                        e.old,
                        &e.guess,
                        e.guess.value,
                        &mut self.lasting,
                    );
                    let kind = e.field.kind as usize;
                    walk.fields[kind] = walk.fields[kind] << 1 | 1;
                }
                walk.history = !0;
                walk.streak += 1;
                done += run;
                continue;
            }
            walk.streak = 0;
            if wish == LONG_RUN {
                next_field = first;
                continue;
            }
            let mut at = done;
            for e in &inside {
                self.bytes(coder, old, walk, (from, to), at..e.at, new);
                self.field(coder, walk, e, to + e.at, new);
                at = e.at + usize::from(e.field.width);
            }
            self.bytes(coder, old, walk, (from, to), at..done + run, new);
            done += run;
        }
    }

    /// Whether a whole run is as expected.
    fn run_flag<C: Coder>(
        &mut self,
        coder: &mut C,
        walk: &Walk<'_>,
        wish: usize,
        fields: usize,
        hit: bool,
    ) -> bool {
        let long = usize::from(wish == LONG_RUN);
        let recent = walk.history.count_ones() as usize;
        let streak = walk.streak.min(31);
        let region = 1 << FLAG_LOG;
        let slots = [
            streak * 2 + long + (fields.min(15) << 8),
            region + (walk.history as usize & 0xff) * 128 + (recent & 63) * 2 + long,
            2 * region + ((walk.history >> 16) as usize & 0xff) * 16 + fields.min(7) * 2 + long,
        ];
        let select = long * 32 + streak;
        self.runs.code(&self.tables, coder, u32::from(hit), &slots, select) == 1
    }

    fn bytes<C: Coder>(
        &mut self,
        coder: &mut C,
        old: &Reference<'_>,
        walk: &mut Walk<'_>,
        (from, to): (usize, usize),
        range: std::ops::Range<usize>,
        new: &mut [u8],
    ) {
        for at in range {
            let (p, q) = (from + at, to + at);
            let expected = old.bytes[p];
            let before = if q > 0 { new[q - 1] } else { 0 };
            let older = if p > 0 { old.bytes[p - 1] } else { 0 };
            let after = old.bytes.get(p + 1).copied().unwrap_or(0);
            let history = walk.history;
            // Did the bytes 4, 8, 12, 16 and 24 before this one hit? Tables have strides.
            let strides = [3, 7, 11, 15, 23].iter().fold(0, |all, s| all << 1 | (history >> s & 1));
            let region = 1u64 << FLAG_LOG;
            let mask = region - 1;
            let slots = [
                (history & 0xffff) as usize,
                (region
                    + (hash(u64::from(expected) | u64::from(before) << 8, 1 + (history & 7))
                        & mask)) as usize,
                (2 * region
                    + (hash(
                        u64::from(expected) | u64::from(after) << 8 | u64::from(older) << 16,
                        9 + (history & 1),
                    ) & mask)) as usize,
                (3 * region + (strides << 10 | (p as u64 & 7) << 5 | history & 31)) as usize,
                (4 * region + (u64::from(expected) << 8 | u64::from(walk.place.delta))) as usize,
            ];
            let hit = u32::from(new[q] == expected);
            let hit = self.hits.code(&self.tables, coder, hit, &slots, (history & 255) as usize);
            if hit == 1 {
                new[q] = expected;
            } else {
                walk.place.expected = expected;
                walk.place.after = after;
                self.text.miss(&self.tables, coder, new, q, &mut walk.place);
            }
            walk.history = history << 1 | u64::from(hit);
        }
    }

    fn field<C: Coder>(
        &mut self,
        coder: &mut C,
        walk: &mut Walk<'_>,
        e: &Expected,
        at: usize,
        new: &mut [u8],
    ) {
        let kind = e.field.kind as usize;
        let width = usize::from(e.field.width);
        let truth = e.field.read(new, at).unwrap_or(0);
        // What earlier fields of this run taught counts already.
        let guess = walk.projector.guess(&e.field, e.old, at as u64, &self.lasting);
        let low = |n: u64| if width == 8 { n } else { n & 0xffff_ffff };
        let hit = u32::from(low(truth) == low(guess.value));
        let region = 1u64 << FLAG_LOG;
        let past = u64::from(walk.fields[kind]);
        let before = if at > 0 { u64::from(new[at - 1]) } else { 0 };
        let slots = [
            (past << 8 | (kind * SOURCES + guess.source) as u64) as usize,
            (region + (hash(guess.value, kind as u64) & (region - 1))) as usize,
            (2 * region + (hash(before, (kind * SOURCES + guess.source) as u64) & (region - 1)))
                as usize,
            (3 * region
                + (hash(walk.history & 0xff, (kind * SOURCES + guess.source) as u64)
                    & (region - 1))) as usize,
        ];
        let select = kind * SOURCES + guess.source;
        let hit = self.field_hits.code(&self.tables, coder, hit, &slots, select);
        let value = if hit == 1 {
            guess.value
        } else {
            // Within 32 bits either way; a 64-bit field in two halves when it is not.
            let change = if width == 8 {
                truth.wrapping_sub(guess.value) as i64
            } else {
                i64::from((truth as u32).wrapping_sub(guess.value as u32) as i32)
            };
            if width == 8 {
                let far = change.unsigned_abs() >= 1 << 40;
                let far = self.numbers.code(coder, class::MOVED + 1, u64::from(far));
                if far == 1 {
                    coder.raw(truth, 64)
                } else {
                    guess.value.wrapping_add(self.numbers.signed(coder, class::FIELD + kind, change) as u64)
                }
            } else {
                guess
                    .value
                    .wrapping_add(self.numbers.signed(coder, class::FIELD + kind, change) as u64)
            }
        };
        new[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        let value = e.field.read(new, at).unwrap_or(0);
        walk.projector.learn(&e.field, e.old, &guess, value, &mut self.lasting);
        walk.fields[kind] = walk.fields[kind] << 1 | hit as u8;
        for _ in 0..width {
            walk.history = walk.history << 1 | u64::from(hit);
        }
    }
}
