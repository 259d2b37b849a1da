//! Finds the blocks: which parts of the old content stand where in the new one.
//!
//! The idea is bsdiff's (Percival, "Naive differences of executable code", 2003): an
//! alignment goes on through differing bytes until another explains the bytes ahead
//! clearly better, as a suffix array of the old content finds it. Fields are zero in
//! both, so that an alignment does not end where addresses changed.

use super::{Alignment, Block};
use crate::address::Anatomy;

/// How many more bytes another alignment must explain to be taken.
const BETTER: usize = 10;
/// The longest match that is measured.
const FAR: usize = 1 << 12;

/// An old content, sorted for search.
pub(crate) struct Sorted {
    masked: Vec<u8>,
    order: Vec<i32>,
    /// First place in `order` of each pair of bytes; one more at the end.
    buckets: Vec<u32>,
}

impl Sorted {
    /// Sorts; takes about five times the content's size.
    pub(crate) fn new(bytes: &[u8], anatomy: &Anatomy) -> Self {
        Self::of(anatomy.masked(bytes, |_| true))
    }

    fn of(masked: Vec<u8>) -> Self {
        let mut order = vec![0; masked.len()];
        divsufsort::sort_in_place(&masked, &mut order);
        let mut buckets = vec![0u32; 65537];
        for at in 0..masked.len() {
            buckets[pair(&masked[at..]) + 1] += 1;
        }
        for at in 1..buckets.len() {
            buckets[at] += buckets[at - 1];
        }
        Self { masked, order, buckets }
    }

    /// The place in the old content that begins most like `wanted`, and how far.
    fn longest(&self, wanted: &[u8]) -> (usize, usize) {
        if wanted.len() < 2 {
            return (0, 0);
        }
        let pair = pair(wanted);
        let (mut low, mut high) = (self.buckets[pair] as usize, self.buckets[pair + 1] as usize);
        if low == high {
            return (0, 0);
        }
        let wanted = &wanted[..wanted.len().min(FAR)];
        let (mut low_same, mut high_same) = (2, 2);
        let mut best = (0, 0);
        while low < high {
            let middle = low + (high - low) / 2;
            let at = self.order[middle] as usize;
            let suffix = &self.masked[at..];
            let same = same(suffix, wanted, low_same.min(high_same));
            if same > best.1 {
                best = (at, same);
            }
            if same == wanted.len() {
                break;
            }
            if suffix.get(same).is_none_or(|b| *b < wanted[same]) {
                low = middle + 1;
                low_same = same;
            } else {
                high = middle;
                high_same = same;
            }
        }
        best
    }
}

fn pair(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 8 | usize::from(bytes.get(1).copied().unwrap_or(0))
}

fn same(a: &[u8], b: &[u8], known: usize) -> usize {
    let most = a.len().min(b.len());
    let mut at = known.min(most);
    while at + 8 <= most && a[at..at + 8] == b[at..at + 8] {
        at += 8;
    }
    while at < most && a[at] == b[at] {
        at += 1;
    }
    at
}

/// Aligns `new` to the old content, whose sorted form is given.
///
/// Twice when there are fields: first with all fields zero, which tells where code
/// went; then with the old tables of addresses as that projects them, so that their entries
/// find their own.
pub(crate) fn align(
    sorted: &Sorted,
    old: &[u8],
    old_anatomy: &Anatomy,
    new: &[u8],
    new_anatomy: &Anatomy,
) -> Alignment {
    let masked = new_anatomy.masked(new, |_| true);
    let blocks = Aligner { old: sorted, new: &masked, blocks: Vec::new() }.run();
    drop(masked);
    let moved = moved(old_anatomy, new_anatomy);
    if old_anatomy.fields.is_empty() {
        return Alignment { blocks, moved };
    }
    let projected = super::project::projected(old, old_anatomy, &blocks, &moved);
    let masked = super::project::targets(new, new_anatomy, |target| target);
    let blocks = Aligner { old: &Sorted::of(projected), new: &masked, blocks: Vec::new() }.run();
    Alignment { blocks: bridged(blocks, old.len(), new.len(), old_anatomy), moved }
}

/// Lengthens blocks over the gaps behind them where that is as good as sure: where the
/// same alignment goes on behind the gap, and within tables, whose entries may all have
/// changed and still are the same entries.
fn bridged(blocks: Vec<Block>, old_length: usize, new_length: usize, old: &Anatomy) -> Vec<Block> {
    let mut out: Vec<Block> = Vec::with_capacity(blocks.len());
    let in_table = |at: u32| {
        let next = old.fields.partition_point(|f| f.at < at.saturating_sub(8));
        old.fields.get(next).is_some_and(|f| f.at < at + 16 && f.kind.tells_apart())
    };
    let ends = Block { old: old_length as u32, new: new_length as u32, length: 0 };
    for (index, block) in blocks.iter().enumerate() {
        let mut block = *block;
        if let Some(last) = out.last_mut() {
            // The same alignment, interrupted.
            if last.new + last.length == block.new && last.old + last.length == block.old {
                last.length += block.length;
                continue;
            }
        }
        let next = blocks.get(index + 1).unwrap_or(&ends);
        let gap = next.new - (block.new + block.length);
        let end = block.old + block.length;
        let room = if next.old >= end { next.old - end } else { old_length as u32 - end };
        if gap > 0 && (gap == room && gap <= 1 << 14 || in_table(end)) {
            block.length += gap.min(room);
        }
        out.push(block);
    }
    out
}

/// Pairs sections by name.
fn moved(old: &Anatomy, new: &Anatomy) -> Vec<(u64, u64)> {
    if old.relocatable {
        return Vec::new();
    }
    let mut shift = (0u64, 0u64);
    let by_name: std::collections::HashMap<&[u8], usize> =
        new.names.iter().enumerate().rev().map(|(at, n)| (n.as_slice(), at)).collect();
    old.sections
        .iter()
        .zip(&old.names)
        .map(|(section, name)| {
            if let Some(found) = by_name.get(name.as_slice()).map(|&at| &new.sections[at]) {
                shift = (
                    found.offset.wrapping_sub(section.offset),
                    found.address.wrapping_sub(section.address),
                );
            }
            (section.offset.wrapping_add(shift.0), section.address.wrapping_add(shift.1))
        })
        .collect()
}

struct Aligner<'a> {
    old: &'a Sorted,
    new: &'a [u8],
    blocks: Vec<Block>,
}

impl Aligner<'_> {
    fn run(mut self) -> Vec<Block> {
        let old = &self.old.masked;
        let new = self.new;
        // The alignment under way: new at `start` is old at `start + shift`.
        let (mut start, mut shift) = (0usize, 0isize);
        let equal = |at: usize, shift: isize| {
            usize::try_from(at as isize + shift).ok().and_then(|o| old.get(o)) == Some(&new[at])
        };
        let mut at = 0;
        while at < new.len() {
            if equal(at, shift) {
                at += 1;
                continue;
            }
            let (found, length) = self.old.longest(&new[at..]);
            if length >= BETTER {
                let explained = (at..at + length).filter(|&i| equal(i, shift)).count();
                if length >= explained + BETTER {
                    let next = found as isize - at as isize;
                    let from = self.close(start, shift, at, next);
                    start = from;
                    shift = next;
                    at += length;
                    continue;
                }
            }
            at += 1;
        }
        self.close(start, shift, new.len(), 0);
        self.blocks
    }

    /// Ends the alignment (`start`, `shift`) because at `anchor` another begins, with
    /// `next`; returns where the other one starts, at or before the anchor.
    fn close(&mut self, start: usize, shift: isize, anchor: usize, next: isize) -> usize {
        let (old, new) = (&self.old.masked, self.new);
        let equal = |at: usize, shift: isize| {
            usize::try_from(at as isize + shift)
                .ok()
                .and_then(|o| old.get(o))
                .map(|b| *b == new[at])
        };
        // How far the old one goes: where twice the equal bytes exceed all by the most.
        let (mut end, mut score, mut best) = (start, 0i64, 0i64);
        for at in start..anchor {
            match equal(at, shift) {
                Some(true) => score += 1,
                Some(false) => score -= 1,
                None => break,
            }
            if score > best {
                (best, end) = (score, at + 1);
            }
            if score < best - 512 {
                break;
            }
        }
        // How far back the new one goes.
        let (mut from, mut score, mut best) = (anchor, 0i64, 0i64);
        if anchor < new.len() {
            for at in (start..anchor).rev() {
                match equal(at, next) {
                    Some(true) => score += 1,
                    Some(false) => score -= 1,
                    None => break,
                }
                if score > best {
                    (best, from) = (score, at);
                }
                if score < best - 512 {
                    break;
                }
            }
        }
        if from < end {
            // Both explain a stretch: cut where together they explain the most.
            let (mut cut, mut score, mut best) = (from, 0i64, 0i64);
            for at in from..end {
                score += i64::from(equal(at, shift) == Some(true));
                score -= i64::from(equal(at, next) == Some(true));
                if score > best {
                    (best, cut) = (score, at + 1);
                }
            }
            (end, from) = (cut, cut);
        }
        if end > start {
            let place = start as isize + shift;
            self.blocks.push(Block {
                old: place as u32,
                new: start as u32,
                length: (end - start) as u32,
            });
        }
        from
    }
}
