//! A frame as what its encoder chose: blocks, tables, sequences. With the plain text that
//! makes the frame again bit for bit, whoever wrote it, in no more memory than a block.
//!
//! ```text
//! frame  = header, block.., checksum
//! block  = stored | one byte again and again | literals, sequences
//! literals  = as they are | one byte | Huffman: with a table | with the last table
//! sequences = how each of three numbers is coded, tables, count, bits
//! ```
//!
//! RFC 8878. A *sequence* is: so many literals, then so many bytes from so far back.

use super::bits::{Backward, Writer};
use super::entropy::{Distribution, Huffman, Reading, Writing};
use crate::codec::Format;
use crate::codec::frame::{Block, Frame, Recent, Rules, Sequence};

/// The largest block, in bytes of plain text.
pub(crate) const MOST: usize = 128 << 10;

// A compressed block's `kind`: two bits of its type, four of its literals' type and form,
// then the modes of its tables. `tables`: that of literals, then those of sequences.
const RAW: u16 = 0;
const SAME: u16 = 1;
const PACKED: u16 = 2;

/// Extra bits and base of the codes of literal counts.
const LITERALS: [(u32, u32); 36] = codes(
    &[
        (16, 0),
        (4, 1),
        (2, 2),
        (2, 3),
        (1, 4),
        (1, 6),
        (1, 7),
        (1, 8),
        (1, 9),
        (1, 10),
        (1, 11),
        (1, 12),
        (1, 13),
        (1, 14),
        (1, 15),
        (1, 16),
    ],
    0,
);
/// The same for lengths of matches.
const LENGTHS: [(u32, u32); 53] = codes(
    &[
        (32, 0),
        (4, 1),
        (2, 2),
        (2, 3),
        (2, 4),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (1, 10),
        (1, 11),
        (1, 12),
        (1, 13),
        (1, 14),
        (1, 15),
        (1, 16),
    ],
    3,
);

/// From how many codes have so many extra bits.
const fn codes<const N: usize>(runs: &[(u32, u32)], first: u32) -> [(u32, u32); N] {
    let mut out = [(0, 0); N];
    let (mut at, mut base, mut run) = (0, first, 0);
    while run < runs.len() {
        let mut n = 0;
        while n < runs[run].0 {
            out[at] = (runs[run].1, base);
            base += 1 << runs[run].1;
            at += 1;
            n += 1;
        }
        run += 1;
    }
    out
}

fn code_of(codes: &[(u32, u32)], value: u32) -> u8 {
    (codes.partition_point(|c| c.1 <= value) - 1) as u8
}

fn fixed(which: usize) -> Distribution {
    match which {
        0 => Distribution::fixed(
            6,
            &[
                4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1,
                1, 1, 1, 1, -1, -1, -1, -1,
            ],
        ),
        1 => Distribution::fixed(
            5,
            &[
                1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1,
                -1, -1,
            ],
        ),
        _ => Distribution::fixed(
            6,
            &[
                1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
            ],
        ),
    }
}

/// Accuracy and highest symbol of each table: literals, distances, lengths.
const BOUNDS: [(u32, usize); 3] = [(9, 35), (8, 31), (9, 52)];

/// The distance that a number in the frame stands for.
fn distance(recent: &mut Recent, value: u32, literals: u32) -> Option<(u32, bool)> {
    let (distance, spelled) = match value {
        0 => return None,
        1..=3 => (recent.distance(value, literals)?, false),
        _ => {
            let distance = value - 3;
            (distance, recent.short(distance, literals).is_some())
        }
    };
    Some((distance, spelled))
}

/// Takes the frame at the start of `bytes` apart, and says where it ends. Its literals are
/// not looked at: the plain text has them. Sequences are handed on block by block.
pub(crate) fn read(bytes: &[u8], each: &mut dyn FnMut(&[Sequence])) -> Option<(Frame, usize)> {
    let mut at = header_length(bytes)?;
    let mut frame = Frame { header: bytes.get(..at)?.to_vec(), ..Frame::default() };
    let checksum = bytes[4] & 4 != 0;
    let mut tables: [Option<Reading>; 3] = [None, None, None];
    let mut recent = Rules::of(Format::Zstd)?.recent();
    let mut sequences = Vec::new();
    loop {
        let head = bytes.get(at..at + 3)?;
        let head = u32::from_le_bytes([head[0], head[1], head[2], 0]);
        let (last, kind, size) = (head & 1 == 1, (head >> 1 & 3) as u16, (head >> 3) as usize);
        at += 3;
        match kind {
            RAW | SAME => {
                if size > MOST {
                    return None;
                }
                frame.blocks.push(Block {
                    kind,
                    size: size as u32,
                    count: 0,
                    tables: Default::default(),
                });
                at += if kind == RAW { size } else { 1 };
            }
            PACKED => {
                let part = bytes.get(at..at.checked_add(size)?)?;
                at += size;
                sequences.clear();
                frame.blocks.push(packed(part, &mut tables, &mut recent, &mut sequences)?);
                each(&sequences);
            }
            _ => return None,
        }
        if last {
            break;
        }
    }
    let end = at + if checksum { 4 } else { 0 };
    frame.checksum = bytes.get(at..end)?.to_vec();
    Some((frame, end))
}

fn header_length(bytes: &[u8]) -> Option<usize> {
    if !bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return None;
    }
    let flags = *bytes.get(4)?;
    // A frame with a dictionary is not one that stands for itself.
    if flags & 0x0b != 0 {
        return None;
    }
    let single = flags & 0x20 != 0;
    let length = match flags >> 6 {
        0 => usize::from(single),
        n => 1 << n,
    };
    Some(5 + usize::from(!single) + length)
}

/// Literals' header: its length, their count, the length of what is coded.
fn literals_header(bytes: &[u8]) -> Option<(usize, usize, usize)> {
    let mut word = [0; 8];
    let most = bytes.len().min(5);
    word[..most].copy_from_slice(&bytes[..most]);
    let head = u64::from_le_bytes(word);
    let field = |shift: u32, bits: u32| (head >> shift & ((1 << bits) - 1)) as usize;
    let form = field(2, 2);
    Some(match field(0, 2) {
        kind @ (0 | 1) => {
            let (length, count) = match form {
                1 => (2, field(4, 12)),
                3 => (3, field(4, 20)),
                _ => (1, field(3, 5)),
            };
            (length, count, if kind == 0 { count } else { 1 })
        }
        _ => match form {
            0 | 1 => (3, field(4, 10), field(14, 10)),
            2 => (4, field(4, 14), field(18, 14)),
            _ => (5, field(4, 18), field(22, 18)),
        },
    })
}

fn packed(
    bytes: &[u8],
    tables: &mut [Option<Reading>; 3],
    recent: &mut Recent,
    sequences: &mut Vec<Sequence>,
) -> Option<Block> {
    let (head, literals, coded) = literals_header(bytes)?;
    let mut block = Block {
        kind: PACKED | u16::from(bytes[0] & 15) << 2,
        size: 0,
        count: 0,
        tables: Default::default(),
    };
    if bytes[0] & 3 == 2 {
        let (_, length) = Huffman::read(bytes.get(head..head.checked_add(coded)?)?)?;
        block.tables[0] = bytes[head..head + length].to_vec();
    }
    let rest = bytes.get(head.checked_add(coded)?..)?;
    let (count, mut at) = match *rest.first()? {
        n @ 0..=127 => (u32::from(n), 1),
        255 => (u32::from(*rest.get(1)?) + (u32::from(*rest.get(2)?) << 8) + 0x7f00, 3),
        n => (((u32::from(n) - 128) << 8) + u32::from(*rest.get(1)?), 2),
    };
    block.count = count;
    let mut size = literals as u32;
    if count > 0 {
        let modes = *rest.get(at)?;
        block.kind |= u16::from(modes) << 6;
        at += 1;
        let start = at;
        for (which, table) in tables.iter_mut().enumerate() {
            let (most, highest) = BOUNDS[which];
            match modes >> (6 - 2 * which) & 3 {
                0 => *table = Some(Reading::new(&fixed(which))),
                1 => {
                    let symbol = *rest.get(at)?;
                    if usize::from(symbol) > highest {
                        return None;
                    }
                    *table = Some(Reading::single(symbol));
                    at += 1;
                }
                2 => {
                    let (read, used) = Distribution::read(rest.get(at..)?, most)?;
                    if read.symbols() > highest + 1 {
                        return None;
                    }
                    *table = Some(Reading::new(&read));
                    at += used;
                }
                _ => {}
            }
        }
        block.tables[1] = rest[start..at].to_vec();
        let [Some(by_literals), Some(by_distance), Some(by_length)] = tables else { return None };
        let mut bits = Backward::new(rest.get(at..)?)?;
        let mut states = [
            by_literals.first(&mut bits),
            by_distance.first(&mut bits),
            by_length.first(&mut bits),
        ];
        for n in 0..count {
            let code = by_distance.symbol(states[1]);
            let value = (1u64 << code) + bits.read(u32::from(code));
            let (extra, base) = LENGTHS[usize::from(by_length.symbol(states[2]))];
            let length = base + bits.read(extra) as u32;
            let (extra, base) = LITERALS[usize::from(by_literals.symbol(states[0]))];
            let literals = base + bits.read(extra) as u32;
            let (distance, spelled) = distance(recent, u32::try_from(value).ok()?, literals)?;
            let sequence = Sequence { literals, length, distance, told: u8::from(spelled) };
            recent.follow(&sequence);
            sequences.push(sequence);
            size = size.checked_add(length)?;
            if n + 1 < count {
                states[0] = by_literals.next(states[0], &mut bits);
                states[2] = by_length.next(states[2], &mut bits);
                states[1] = by_distance.next(states[1], &mut bits);
            }
        }
        if !bits.ended() {
            return None;
        }
    }
    if size as usize > MOST {
        return None;
    }
    block.size = size;
    Some(block)
}

/// Makes a frame again, block by block.
pub(crate) struct Maker {
    tables: [Option<Writing>; 3],
    huffman: Option<Huffman>,
    recent: Recent,
}

impl Maker {
    pub(crate) fn new() -> Self {
        Self { tables: [None, None, None], huffman: None, recent: Recent::Three([1, 4, 8]) }
    }

    /// Puts a block behind `out`; `plain` and `sequences` are its own.
    pub(crate) fn block(
        &mut self,
        block: &Block,
        plain: &[u8],
        sequences: &[Sequence],
        last: bool,
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let head = |kind: u16, size: usize| {
            let head = u32::from(last) | u32::from(kind) << 1 | (size as u32) << 3;
            head.to_le_bytes()
        };
        match block.kind & 3 {
            RAW => {
                out.extend_from_slice(&head(RAW, plain.len())[..3]);
                out.extend_from_slice(plain);
            }
            SAME => {
                out.extend_from_slice(&head(SAME, plain.len())[..3]);
                out.push(*plain.first()?);
            }
            PACKED => {
                let start = out.len();
                out.extend_from_slice(&[0; 3]);
                self.literals(block, plain, sequences, out)?;
                self.sequences(block, sequences, out)?;
                let size = out.len() - start - 3;
                out[start..start + 3].copy_from_slice(&head(PACKED, size)[..3]);
            }
            _ => return None,
        }
        Some(())
    }

    fn literals(
        &mut self,
        block: &Block,
        plain: &[u8],
        sequences: &[Sequence],
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let mut literals = Vec::with_capacity(plain.len());
        let mut at = 0usize;
        for sequence in sequences {
            let end = at.checked_add(sequence.literals as usize)?;
            literals.extend_from_slice(plain.get(at..end)?);
            at = end.checked_add(sequence.length as usize)?;
        }
        literals.extend_from_slice(plain.get(at..)?);
        let (kind, form) = (block.kind >> 2 & 3, u64::from(block.kind >> 4 & 3));
        let count = literals.len() as u64;
        let low = u64::from(kind) | form << 2;
        if kind < 2 {
            let (head, length) = match form {
                1 => (low | count << 4, 2),
                3 => (low | count << 4, 3),
                // Here the form has one bit, the next is of the count.
                _ => (u64::from(kind) | count << 3, 1),
            };
            out.extend_from_slice(&head.to_le_bytes()[..length]);
            let stored = if kind == 0 { literals.len() } else { 1 };
            out.extend_from_slice(literals.get(..stored)?);
            return Some(());
        }
        if kind == 2 {
            self.huffman = Some(Huffman::read(&block.tables[0])?.0);
        }
        let huffman = self.huffman.as_ref()?;
        let mut coded = block.tables[0].clone();
        if form == 0 {
            coded.extend(huffman.write(&literals)?);
        } else {
            let quarter = literals.len().div_ceil(4);
            let mut streams = Vec::new();
            for n in 0..4 {
                let end = if n == 3 { literals.len() } else { quarter * (n + 1) };
                let stream = huffman.write(literals.get(quarter * n..end)?)?;
                if n < 3 {
                    coded.extend_from_slice(&u16::try_from(stream.len()).ok()?.to_le_bytes());
                }
                streams.extend(stream);
            }
            coded.extend(streams);
        }
        let size = coded.len() as u64;
        let (bits, length) = match form {
            0 | 1 => (10, 3),
            2 => (14, 4),
            _ => (18, 5),
        };
        let head = low | count << 4 | size << (4 + bits);
        out.extend_from_slice(&head.to_le_bytes()[..length]);
        out.extend(coded);
        Some(())
    }

    fn sequences(
        &mut self,
        block: &Block,
        sequences: &[Sequence],
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let count = sequences.len() as u32;
        match count {
            0..=127 => out.push(count as u8),
            128..0x7f00 => out.extend_from_slice(&[(count >> 8) as u8 + 128, count as u8]),
            _ => {
                let rest = u16::try_from(count - 0x7f00).ok()?.to_le_bytes();
                out.extend_from_slice(&[255, rest[0], rest[1]]);
            }
        }
        if count == 0 {
            return Some(());
        }
        let modes = (block.kind >> 6) as u8;
        out.push(modes);
        let described = &block.tables[1];
        out.extend_from_slice(described);
        let mut at = 0;
        for (which, table) in self.tables.iter_mut().enumerate() {
            match modes >> (6 - 2 * which) & 3 {
                0 => *table = Some(Writing::new(&fixed(which))),
                1 => {
                    *table = Some(Writing::single());
                    at += 1;
                }
                2 => {
                    let (read, used) = Distribution::read(described.get(at..)?, BOUNDS[which].0)?;
                    *table = Some(Writing::new(&read));
                    at += used;
                }
                _ => {}
            }
        }
        let numbers = sequences.iter().map(|s| {
            let value = self.recent.follow(s).or_else(|| s.distance.checked_add(3))?;
            (s.length >= 3).then_some((s.literals, value, s.length))
        });
        let numbers: Vec<_> = numbers.collect::<Option<_>>()?;
        let [Some(by_literals), Some(by_distance), Some(by_length)] = &self.tables else {
            return None;
        };
        let mut bits = Writer::default();
        let mut states: Option<[u32; 3]> = None;
        for &(literals, value, length) in numbers.iter().rev() {
            let codes = [
                code_of(&LITERALS, literals),
                value.checked_ilog2()? as u8,
                code_of(&LENGTHS, length),
            ];
            states = Some(match states {
                None => [
                    by_literals.last(codes[0])?,
                    by_distance.last(codes[1])?,
                    by_length.last(codes[2])?,
                ],
                Some([a, b, c]) => {
                    let b = by_distance.put(b, codes[1], &mut bits)?;
                    let c = by_length.put(c, codes[2], &mut bits)?;
                    let a = by_literals.put(a, codes[0], &mut bits)?;
                    [a, b, c]
                }
            });
            let (extra, base) = LITERALS[usize::from(codes[0])];
            bits.write(u64::from(literals - base), extra);
            let (extra, base) = LENGTHS[usize::from(codes[2])];
            bits.write(u64::from(length - base), extra);
            bits.write(u64::from(value), u32::from(codes[1]));
        }
        let [a, b, c] = states?;
        by_length.flush(c, &mut bits);
        by_distance.flush(b, &mut bits);
        by_literals.flush(a, &mut bits);
        out.extend(bits.finish());
        Some(())
    }
}
