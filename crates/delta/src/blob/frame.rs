//! A compressed stream as a difference: what its encoder chose, foretold by what was chosen
//! for the old text.
//!
//! ```text
//! old  text ....[match from here]......      old frame: its sequences, by place
//!        \ blocks  \                          (where things went)
//! new  text ....[expected match].......      a flag each for: place, distance, length
//! ```
//!
//! The strongest levels of Zstandard take a gigabyte and half a minute to make a kernel's
//! frame again, xz half a minute for its modules; what they chose can be told in a few bits
//! for each thousand of text, and writing it down takes no search.

use super::{BadBlocks, Block};
use crate::codec::Format;
use crate::codec::frame::{self, Frame, Recent, Rules, Sequence};
use crate::coder::Coder;
use crate::coder::model::{Mixed, Tables};
use crate::coder::number::Numbers;

/// A match of the old frame, at its place in the old text.
#[derive(Clone, Copy)]
struct Match {
    at: u32,
    length: u32,
    distance: u32,
}

/// The old frame, and where its text went.
pub(crate) struct Foretold<'a> {
    text: &'a [u8],
    matches: Vec<Match>,
    blocks: &'a [Block],
    by_old: Vec<Block>,
}

impl<'a> Foretold<'a> {
    /// Reads the frame of an old text; none if it cannot be read.
    pub(crate) fn new(
        format: Format,
        text: &'a [u8],
        stream: &[u8],
        blocks: &'a [Block],
    ) -> Option<Self> {
        let mut matches = Vec::new();
        // By block, as it is read: where it begins is known when all are.
        let (frame, _) = frame::read(format, stream, text, &mut |sequences| {
            let mut within = 0;
            for s in sequences {
                within += s.literals;
                matches.push(Match { at: within, length: s.length, distance: s.distance });
                within += s.length;
            }
        })?;
        let (mut at, mut start) = (0u32, 0usize);
        for block in &frame.blocks {
            let end = start + block.count as usize;
            matches.get_mut(start..end)?.iter_mut().for_each(|m| m.at += at);
            at = at.checked_add(block.size)?;
            start = end;
        }
        let inside = |m: &Match| m.distance <= m.at && (m.at + m.length) as usize <= text.len();
        if at as usize != text.len() || !matches.iter().all(inside) {
            return None;
        }
        Some(Self { text, matches, blocks, by_old: super::project::without_overlap(blocks) })
    }

    /// Where an old place went.
    fn moved(&self, old: u32) -> (i64, bool) {
        let at = self.by_old.partition_point(|b| b.old <= old);
        match self.by_old.get(at.saturating_sub(1)) {
            Some(b) => {
                let covered = old >= b.old && old - b.old < b.length;
                (i64::from(old) + i64::from(b.new) - i64::from(b.old), covered)
            }
            None => (i64::from(old), false),
        }
    }
}

/// A part of a frame.
pub(crate) enum Part<'a> {
    /// Its header.
    Header(&'a [u8]),
    /// A block, where its text ends, its sequences; whether it is the last.
    Block(&'a frame::Block, usize, &'a [Sequence], bool),
    /// Its checksum.
    End(&'a [u8]),
}

/// What is expected of a sequence.
#[derive(Clone, Copy)]
struct Expected {
    /// Where its match begins in the new text.
    at: u32,
    index: usize,
    /// How far into the old match.
    into: u32,
}

mod class {
    pub(super) const BLOCKS: usize = 0;
    pub(super) const BYTES: usize = 1;
    pub(super) const KIND: usize = 2;
    pub(super) const SIZE: usize = 3;
    pub(super) const COUNT: usize = 4;
    pub(super) const LITERALS: usize = 5;
    pub(super) const LENGTH: usize = 6;
    pub(super) const SHORTER: usize = 7;
    pub(super) const DISTANCE: usize = 8;
    pub(super) const RECENT: usize = 9;
    pub(super) const WAY: usize = 10;
    pub(super) const ALL: usize = 11;
}

const LOG: u32 = 12;

/// Codes frames; learns from one for the next.
pub(crate) struct FrameCoder {
    tables: Tables,
    numbers: Numbers,
    flags: Mixed<3>,
    bytes: Mixed<2>,
    /// Of the last sequences: whether place, distance and length were as expected.
    history: [u32; 3],
}

const PLACE: usize = 0;
const DISTANCE: usize = 1;
const LENGTH: usize = 2;
const TOLD: usize = 3;
const FLAGS: usize = 4;

impl FrameCoder {
    pub(crate) fn new() -> Self {
        Self {
            tables: Tables::new(),
            numbers: Numbers::new(class::ALL),
            flags: Mixed::new((3 * FLAGS) << LOG, FLAGS * 64, 1023),
            bytes: Mixed::new(4 << 16, 2, 255),
            history: [0; 3],
        }
    }

    /// Codes the frame of `text`. Its parts are handed on in order; the encoder gives the
    /// frame and all its sequences, the decoder none.
    pub(crate) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        format: Format,
        text: &[u8],
        old: Option<&Foretold<'_>>,
        known: Option<(&Frame, &[Sequence])>,
        each: &mut dyn FnMut(Part<'_>) -> Option<()>,
    ) -> Result<(), BadBlocks> {
        let rules = Rules::of(format).ok_or(BadBlocks)?;
        let frame = known.map(|k| k.0);
        let header = self.short(coder, frame.map_or(&[], |f| &f.header))?;
        each(Part::Header(&header)).ok_or(BadBlocks)?;
        let checksum = self.short(coder, frame.map_or(&[], |f| &f.checksum))?;
        let count = frame.map_or(0, |f| f.blocks.len() as u64);
        let count = self.numbers.code(coder, class::BLOCKS, count);
        if count > text.len() as u64 + 2 {
            return Err(BadBlocks);
        }
        let (mut at, mut sequence) = (0usize, 0usize);
        let mut recent = rules.recent();
        let mut cursor = 0;
        let mut sequences = Vec::new();
        for n in 0..count {
            if coder.overran() {
                return Err(BadBlocks);
            }
            let block = self.head(coder, &rules, frame.map(|f| &f.blocks[n as usize]))?;
            if rules.resets(block.kind) {
                recent = rules.recent();
            }
            let end = at.checked_add(block.size as usize).filter(|&end| end <= text.len());
            let end = end.ok_or(BadBlocks)?;
            sequences.clear();
            let mut place = at;
            for _ in 0..block.count {
                let truth = known.map(|k| k.1[sequence]);
                let within = (place, end, &rules);
                let found = self.sequence(coder, text, old, &mut cursor, within, &recent, truth)?;
                recent.follow(&found);
                place += (found.literals + found.length) as usize;
                sequences.push(found);
                sequence += 1;
            }
            let last = n + 1 == count;
            each(Part::Block(&block, end, &sequences, last)).ok_or(BadBlocks)?;
            at = end;
        }
        each(Part::End(&checksum)).ok_or(BadBlocks)?;
        if at != text.len() || coder.overran() { Err(BadBlocks) } else { Ok(()) }
    }

    /// A few bytes as they are.
    fn short<C: Coder>(&mut self, coder: &mut C, bytes: &[u8]) -> Result<Vec<u8>, BadBlocks> {
        let count = self.numbers.code(coder, class::BYTES, bytes.len() as u64) as usize;
        if count > 18 {
            return Err(BadBlocks);
        }
        let byte = |n| u64::from(bytes.get(n).copied().unwrap_or(0));
        Ok((0..count).map(|n| coder.raw(byte(n), 8) as u8).collect())
    }

    fn head<C: Coder>(
        &mut self,
        coder: &mut C,
        rules: &Rules,
        known: Option<&frame::Block>,
    ) -> Result<frame::Block, BadBlocks> {
        let of = |f: fn(&frame::Block) -> u64| known.map_or(0, f);
        let kind = self.numbers.code(coder, class::KIND, of(|b| u64::from(b.kind)));
        let size = self.numbers.code(coder, class::SIZE, of(|b| u64::from(b.size)));
        let count = self.numbers.code(coder, class::COUNT, of(|b| u64::from(b.count)));
        let most = u64::from(rules.block);
        if kind >= 1 << 14 || size > most || count * u64::from(rules.length.0) > size {
            return Err(BadBlocks);
        }
        let mut block = frame::Block {
            kind: kind as u16,
            size: size as u32,
            count: count as u32,
            tables: Default::default(),
        };
        for which in 0..2 {
            let bytes = known.map_or(&[][..], |b| &b.tables[which]);
            let length = self.numbers.code(coder, class::BYTES, bytes.len() as u64) as usize;
            if length > 512 {
                return Err(BadBlocks);
            }
            let table = &mut block.tables[which];
            for n in 0..length {
                let before = table.last().copied().map_or(0, usize::from);
                let byte = u32::from(bytes.get(n).copied().unwrap_or(0));
                let mut node = 1usize;
                for bit in (0..8).rev() {
                    let slots = [
                        which << 16 | before << 8 | node,
                        (2 + which) << 16 | n.min(255) << 8 | node,
                    ];
                    let bit = self.bytes.code(&self.tables, coder, byte >> bit & 1, &slots, which);
                    node = node << 1 | bit as usize;
                }
                table.push(node as u8);
            }
        }
        Ok(block)
    }

    /// `within`: where the last sequence ended, and where the block does, by which rules.
    #[expect(clippy::too_many_arguments, reason = "the innermost step: all of it is context")]
    fn sequence<C: Coder>(
        &mut self,
        coder: &mut C,
        text: &[u8],
        old: Option<&Foretold<'_>>,
        cursor: &mut usize,
        within: (usize, usize, &Rules),
        recent: &Recent,
        truth: Option<Sequence>,
    ) -> Result<Sequence, BadBlocks> {
        let (place, end, rules) = within;
        let (shortest, longest) = rules.length;
        let expected = old.and_then(|old| old.next(cursor, place as u32, end as u32));
        // Where the match begins.
        let mut hit = false;
        let mut literals = 0;
        if let Some(e) = &expected {
            literals = e.at - place as u32;
            let context = (literals.min(15) as usize) << 1;
            let truth = truth.is_some_and(|t| t.literals == literals);
            hit = self.flag(coder, PLACE, context, truth);
        }
        if !hit {
            let truth = truth.map_or(0, |t| u64::from(t.literals));
            literals = self.numbers.code(coder, class::LITERALS, truth) as u32;
        }
        let start = place as u64 + u64::from(literals);
        if start + u64::from(shortest) > end as u64 {
            return Err(BadBlocks);
        }
        let start = start as u32;
        let expected = match (old, expected) {
            (_, Some(e)) if hit => Some(e),
            (Some(old), _) => old.at(start, *cursor),
            _ => None,
        };
        // How far back.
        let mut distance = 0;
        let mut found = false;
        if let (Some(old), Some(e)) = (old, &expected) {
            let m = &old.matches[e.index];
            let (from, covered) = old.moved(m.at + e.into - m.distance);
            let guess = i64::from(start) - from;
            if guess > 0 && guess <= i64::from(start) {
                distance = guess as u32;
                let short = recent.short(distance, literals).unwrap_or(0) as usize;
                let same = same(text, start, distance, end).min(7) as usize;
                let context = usize::from(hit) | usize::from(covered) << 1 | short << 2 | same << 4;
                found = self.flag(
                    coder,
                    DISTANCE,
                    context,
                    truth.is_some_and(|t| t.distance == distance),
                );
            }
        }
        if !found {
            let short = truth.and_then(|t| recent.short(t.distance, literals)).unwrap_or(0);
            let short = self.numbers.code(coder, class::RECENT, u64::from(short));
            distance = if short > 0 {
                let short = u32::try_from(short).ok();
                short.and_then(|n| recent.distance(n, literals)).ok_or(BadBlocks)?
            } else {
                let truth = truth.map_or(0, |t| u64::from(t.distance));
                let distance = self.numbers.code(coder, class::DISTANCE, truth);
                u32::try_from(distance).map_err(|_| BadBlocks)?
            };
        }
        if distance == 0 || distance > start {
            return Err(BadBlocks);
        }
        let mut told = 0;
        let ways = recent.shorts(distance, literals);
        if ways > 0 && self.flag(coder, TOLD, 0, truth.is_some_and(|t| t.told > 0)) {
            told = 1;
            if ways > 1 {
                let truth = truth.map_or(0, |t| u64::from(t.told.saturating_sub(1)));
                let way = self.numbers.code(coder, class::WAY, truth);
                if way >= u64::from(ways) {
                    return Err(BadBlocks);
                }
                told += way as u8;
            }
        }
        // How long.
        let most = same(text, start, distance, end).min(longest);
        if most < shortest {
            return Err(BadBlocks);
        }
        let mut guess = most;
        let mut context = 0;
        if let (Some(old), Some(e), true) = (old, &expected, found) {
            let m = &old.matches[e.index];
            let rest = m.length - e.into;
            let place = m.at as usize;
            let past = place + m.length as usize;
            let differs = old.text.get(past) != old.text.get(past - m.distance as usize);
            let maximal = differs || m.length == longest;
            context = 1 + usize::from(maximal) + 2 * usize::from(rest.min(most) == most);
            if !maximal {
                guess = rest.min(most);
            }
        }
        let is = self.flag(
            coder,
            LENGTH,
            context | (most.min(31) as usize) << 4,
            truth.is_some_and(|t| t.length == guess),
        );
        let length = if is {
            guess
        } else if context == 0 {
            let truth = truth.map_or(0, |t| u64::from(most - t.length));
            most.saturating_sub(self.numbers.code(coder, class::SHORTER, truth) as u32)
        } else {
            self.numbers.code(coder, class::LENGTH, truth.map_or(0, |t| u64::from(t.length))) as u32
        };
        if length < shortest || length > most {
            return Err(BadBlocks);
        }
        for (history, hit) in self.history.iter_mut().zip([hit, found, is]) {
            *history = *history << 1 | u32::from(hit);
        }
        Ok(Sequence { literals, length, distance, told })
    }

    fn flag<C: Coder>(&mut self, coder: &mut C, which: usize, context: usize, bit: bool) -> bool {
        let mask = (1 << LOG) - 1;
        let region = |n: usize, value: usize| (which * 3 + n) << LOG | value & mask;
        let [a, b, c] = self.history.map(|h| h as usize);
        let slots = [
            region(0, context),
            region(1, (context & 15) << 8 | (a & 15) << 4 | b & 15),
            region(2, (context & 3) << 9 | (a & 7) << 6 | (b & 7) << 3 | c & 7),
        ];
        let select = which * 64 + (context & 15) * 4 + (b & 3);
        self.flags.code(&self.tables, coder, u32::from(bit), &slots, select) == 1
    }
}

impl Foretold<'_> {
    /// The first old match that begins in a block at or after the new place `at`, before `end`.
    fn next(&self, cursor: &mut usize, at: u32, end: u32) -> Option<Expected> {
        while self.blocks.get(*cursor).is_some_and(|b| b.new + b.length <= at) {
            *cursor += 1;
        }
        for block in self.blocks[*cursor..].iter().take_while(|b| b.new < end) {
            let from = block.old + at.saturating_sub(block.new);
            let index = self.matches.partition_point(|m| m.at < from);
            if let Some(m) = self.matches.get(index).filter(|m| m.at < block.old + block.length) {
                let at = m.at - block.old + block.new;
                return (at < end).then_some(Expected { at, index, into: 0 });
            }
        }
        None
    }

    /// The old match that covers the new place `at`.
    fn at(&self, at: u32, cursor: usize) -> Option<Expected> {
        let block = self.blocks[cursor..].iter().find(|b| b.new + b.length > at)?;
        let old = block.old + at.checked_sub(block.new)?;
        let index = self.matches.partition_point(|m| m.at <= old).checked_sub(1)?;
        let m = &self.matches[index];
        let into = old - m.at;
        (into < m.length).then_some(Expected { at, index, into })
    }
}

/// How far the text at `start` is the same as so far back, up to `end`.
fn same(text: &[u8], start: u32, distance: u32, end: usize) -> u32 {
    let start = start as usize;
    let Some(back) = start.checked_sub(distance as usize) else { return 0 };
    let most = end - start;
    let mut n = 0;
    while n + 8 <= most && text[start + n..start + n + 8] == text[back + n..back + n + 8] {
        n += 8;
    }
    while n < most && text[start + n] == text[back + n] {
        n += 1;
    }
    n as u32
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::codec::frame::{Maker, comes_back};
    use crate::coder::{Decoder, Encoder};

    /// Text with repetitions near and far, runs and noise, in order of `seed`.
    fn text(seed: u64, words: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut x = seed;
        for n in 0..words {
            x = x.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
            match x >> 61 {
                0 => out.extend_from_slice(&x.to_le_bytes()),
                1 => out.extend(std::iter::repeat_n(n as u8, (x >> 40 & 63) as usize)),
                _ => out.extend_from_slice(format!("word {} ", x >> 50 & 255).as_bytes()),
            }
        }
        out
    }

    /// For xz, a level of 10 and more is one of several blocks.
    fn compress(format: Format, text: &[u8], level: i32) -> Vec<u8> {
        use liblzma::stream::{Check, Filters, LzmaOptions, MtStreamBuilder, Stream};
        if format == Format::Zstd {
            return zstd::bulk::compress(text, level).unwrap();
        }
        let mut options = LzmaOptions::new_preset(level as u32 % 10).unwrap();
        options.dict_size(1 << 20);
        let mut filters = Filters::new();
        filters.lzma2(&options);
        let stream = if level < 10 {
            Stream::new_stream_encoder(&filters, Check::Crc64).unwrap()
        } else {
            let mut builder = MtStreamBuilder::new();
            builder.threads(1).block_size(100_000).filters(filters).check(Check::Crc32);
            builder.encoder().unwrap()
        };
        let mut out = Vec::new();
        liblzma::read::XzEncoder::new_stream(text, stream).read_to_end(&mut out).unwrap();
        out
    }

    fn encode(format: Format, text: &[u8], stream: &[u8], old: Option<&Foretold<'_>>) -> Vec<u8> {
        let mut sequences = Vec::new();
        let all = &mut |some: &[Sequence]| sequences.extend_from_slice(some);
        let (frame, length) = frame::read(format, stream, text, all).unwrap();
        assert_eq!(length, stream.len());
        let mut encoder = Encoder::new();
        let known = Some((&frame, &sequences[..]));
        FrameCoder::new().code(&mut encoder, format, text, old, known, &mut |_| Some(())).unwrap();
        encoder.finish()
    }

    fn decode(
        format: Format,
        text: &[u8],
        bytes: &[u8],
        old: Option<&Foretold<'_>>,
    ) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut maker = Maker::new(format).unwrap();
        let mut each = |part: Part<'_>| {
            match part {
                Part::Header(bytes) => maker.begin(bytes, &mut out)?,
                Part::Block(block, end, sequences, last) => {
                    maker.block(block, (text, end), sequences, last, &mut out)?;
                }
                Part::End(checksum) => maker.end(checksum, &mut out),
            }
            Some(())
        };
        let mut decoder = Decoder::new(bytes);
        let result = FrameCoder::new().code(&mut decoder, format, text, old, None, &mut each);
        result.ok().map(|()| out)
    }

    #[test]
    fn streams_of_every_level_come_back() {
        let noise: Vec<u8> = text(3, 30_000).iter().map(|b| b.wrapping_mul(167) ^ 91).collect();
        let texts = [text(1, 60_000), vec![7; 300_000], noise, b"short".to_vec(), Vec::new()];
        let levels = [(Format::Zstd, [-5, 1, 3, 7, 17]), (Format::Xz, [0, 3, 6, 10, 16])];
        for (format, levels) in levels {
            for (at, text) in texts.iter().enumerate() {
                for level in levels {
                    let stream = compress(format, text, level);
                    assert!(comes_back(format, &stream, text), "{format:?} {at} {level}");
                    let coded = encode(format, text, &stream, None);
                    let decoded = decode(format, text, &coded, None);
                    assert!(decoded.as_ref() == Some(&stream), "{format:?} {at} {level}");
                }
            }
        }
    }

    #[test]
    fn an_old_stream_foretells_the_new_one() {
        let old = text(1, 60_000);
        let mut new = old.clone();
        // A word longer at a third, another word at two thirds.
        new.splice(100_000..100_003, *b"longer");
        new[200_000..200_004].copy_from_slice(b"4321");
        let blocks = [
            Block { old: 0, new: 0, length: 100_000 },
            Block { old: 100_003, new: 100_006, length: (old.len() - 100_003) as u32 },
        ];
        // The prices by which xz chooses learn from all that came before, so that what
        // changes here changes choices far behind it.
        for (format, level, saving) in [(Format::Zstd, 15, 8), (Format::Xz, 6, 5)] {
            let (old_stream, stream) =
                (compress(format, &old, level), compress(format, &new, level));
            let foretold = Foretold::new(format, &old, &old_stream, &blocks).unwrap();
            let coded = encode(format, &new, &stream, Some(&foretold));
            let alone = encode(format, &new, &stream, None);
            assert!(coded.len() * saving < alone.len(), "{} of {}", coded.len(), alone.len());
            assert!(decode(format, &new, &coded, Some(&foretold)) == Some(stream));
        }
    }

    #[test]
    fn broken_streams_and_messages_are_refused_or_read_as_something_else() {
        let text = text(5, 600);
        for format in [Format::Zstd, Format::Xz] {
            let stream = compress(format, &text, 6);
            for at in 0..stream.len() {
                for flip in [1, 0x10, 0xff] {
                    let mut broken = stream.clone();
                    broken[at] ^= flip;
                    comes_back(format, &broken, &text);
                    assert!(frame::read(format, &stream[..at], &text, &mut |_| ()).is_none());
                }
            }
            let coded = encode(format, &text, &stream, None);
            for at in (0..coded.len()).step_by(11) {
                let mut broken = coded.clone();
                broken[at] ^= 0x55;
                // What is handed on is never more than the text allows.
                let made = decode(format, &text, &broken, None);
                assert!(made.is_none_or(|made| made.len() < 2 * text.len() + 1000));
                let cut = decode(format, &text, &coded[..at.min(coded.len() - 8)], None);
                assert!(cut.is_none_or(|made| made != stream));
            }
        }
    }
}
