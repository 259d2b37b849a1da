//! An xz stream as what its encoder chose (xz-file-format.txt; LZMA2 as liblzma writes it).
//!
//! ```text
//! stream = header, block.., index, footer
//! block  = header, chunk.., 0, padding, check
//! chunk  = stored | LZMA: sequences
//! ```
//!
//! Blocks of a [`Frame`], by kind: 0 a block's header, with its flags and filter; 1 a
//! block's end, with its check where that is no CRC-32; 2 and 3 a stored chunk, with and
//! without a new dictionary; 4 to 7 an LZMA chunk, by what it resets, with its properties.
//! Sizes and checksums follow from the rest.

use super::lzma::{Model, Reader, Step, Writer};
use crate::codec::Format;
use crate::codec::frame::{Block, Frame, Recent, Rules, Sequence};

const BEGIN: u16 = 0;
const END: u16 = 1;
const STORED: u16 = 2;
const LZMA: u16 = 4;
const CRC32: u8 = 1;
/// The filter LZMA2.
const LZMA2: u8 = 0x21;

/// Whether a chunk forgets the last distances.
pub(crate) fn resets(kind: u16) -> bool {
    kind != LZMA
}

fn check_length(check: u8) -> usize {
    [0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64][usize::from(check & 15)]
}

/// A number of seven bits a byte.
pub(super) fn number(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes the stream at the start of `bytes`, of this text, apart, and says where it ends.
pub(crate) fn read(
    bytes: &[u8],
    text: &[u8],
    each: &mut dyn FnMut(&[Sequence]),
) -> Option<(Frame, usize)> {
    let mut frame = Frame { header: bytes.get(..12)?.to_vec(), ..Frame::default() };
    if !bytes.starts_with(b"\xfd7zXZ\0") {
        return None;
    }
    let check = bytes[7] & 15;
    let (mut at, mut place) = (12usize, 0usize);
    let mut sequences = Vec::new();
    while *bytes.get(at)? != 0 {
        let length = (usize::from(bytes[at]) + 1) * 4;
        let header = bytes.get(at..at + length)?;
        frame.blocks.push(Block { tables: [described(header)?, Vec::new()], ..Block::default() });
        let (data, start) = (at + length, place);
        at = data;
        let mut model: Option<Model> = None;
        let mut recent = Rules::of(Format::Xz)?.recent();
        loop {
            let control = *bytes.get(at)?;
            if control == 0 {
                at += 1;
                break;
            }
            let u16_at = |at: usize| {
                Some(usize::from(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
            };
            let low = u16_at(at + 1)?;
            if control < 3 {
                let size = low + 1;
                let kind = STORED + u16::from(control) - 1;
                frame.blocks.push(Block { kind, size: size as u32, ..Block::default() });
                (at, place) = (at + 3 + size, place + size);
                continue;
            }
            if control < 0x80 {
                return None;
            }
            let size = (usize::from(control & 31) << 16) + low + 1;
            let packed = u16_at(at + 3)? + 1;
            let resets = u16::from(control >> 5 & 3);
            at += 5;
            let mut block = Block { kind: LZMA + resets, size: size as u32, ..Block::default() };
            if resets >= 2 {
                block.tables[0] = vec![*bytes.get(at)?];
                model = Some(Model::new(bytes[at])?);
                at += 1;
            } else if resets == 1 {
                model.as_mut()?.reset();
            }
            if resets > 0 {
                recent = Rules::of(Format::Xz)?.recent();
            }
            sequences.clear();
            let within = (text.get(start..place.checked_add(size)?)?, place - start);
            let input = bytes.get(at..at.checked_add(packed)?)?;
            chunk(input, model.as_mut()?, within, &mut recent, &mut sequences)?;
            block.count = sequences.len() as u32;
            frame.blocks.push(block);
            each(&sequences);
            (at, place) = (at + packed, place + size);
        }
        while !(at - data).is_multiple_of(4) {
            at += 1;
        }
        let found = bytes.get(at..at + check_length(check))?;
        at += found.len();
        let kept = if check == CRC32 { Vec::new() } else { found.to_vec() };
        frame.blocks.push(Block { kind: END, tables: [kept, Vec::new()], ..Block::default() });
    }
    // What the index and the footer say follows from the blocks.
    let start = at;
    at += 1;
    for _ in 0..number(bytes, &mut at)? {
        number(bytes, &mut at)?;
        number(bytes, &mut at)?;
    }
    at = start + (at - start).next_multiple_of(4) + 4 + 12;
    (place == text.len() && at <= bytes.len()).then_some((frame, at))
}

/// Of a block's header: its length, its flags, its filter.
fn described(header: &[u8]) -> Option<Vec<u8>> {
    let flags = header[1];
    let mut at = 2;
    for size in [0x40, 0x80] {
        if flags & size != 0 {
            number(header, &mut at)?;
        }
    }
    let filter = header.get(at..at + 3)?;
    let alone = flags & 0x3f == 0 && filter[..2] == [LZMA2, 1];
    alone.then(|| vec![header[0], flags, filter[2]])
}

/// `text`: that of the block up to the chunk's end, and where the chunk begins in it.
fn chunk(
    input: &[u8],
    model: &mut Model,
    (text, mut at): (&[u8], usize),
    recent: &mut Recent,
    sequences: &mut Vec<Sequence>,
) -> Option<()> {
    let mut reader = Reader::new(input)?;
    let mut literals = 0;
    let mut last = recent.distance(1, 1)?;
    while at < text.len() {
        let (length, distance, told) =
            match model.step(&mut reader, text, at, last, Step::Literal)? {
                Step::Literal => {
                    (literals, at) = (literals + 1, at + 1);
                    continue;
                }
                Step::Short => (1, last, 0),
                Step::Recent(length, which) => {
                    let distance = recent.distance(which + 1, 1)?;
                    (length, distance, recent.nth(distance, which + 1)?)
                }
                Step::Match(length, distance) => {
                    (length, distance, u8::from(recent.short(distance, 1).is_some()))
                }
            };
        let sequence = Sequence { literals, length, distance, told };
        recent.follow(&sequence);
        sequences.push(sequence);
        (literals, last) = (0, distance);
        at += length as usize;
        if reader.overran {
            return None;
        }
    }
    (at == text.len() && reader.ended()).then_some(())
}

/// Makes a stream again, block by block.
pub(crate) struct Maker {
    check: u8,
    flags: [u8; 2],
    model: Option<Model>,
    recent: Recent,
    /// Of the block under way: where its text begins, where its header stands, and that.
    start: usize,
    header: usize,
    described: [u8; 3],
    /// Of the blocks that are done: their length without padding, that of their text.
    done: Vec<(u64, u64)>,
}

impl Maker {
    pub(crate) fn new() -> Self {
        Self {
            check: 0,
            flags: [0; 2],
            model: None,
            recent: Recent::Four([1; 4]),
            start: 0,
            header: 0,
            described: [0; 3],
            done: Vec::new(),
        }
    }

    pub(crate) fn begin(&mut self, header: &[u8]) -> Option<()> {
        self.flags = header.get(6..8)?.try_into().ok()?;
        self.check = self.flags[1] & 15;
        Some(())
    }

    /// `text`: all of it up to the end of the block.
    pub(crate) fn block(
        &mut self,
        block: &Block,
        text: &[u8],
        sequences: &[Sequence],
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let size = block.size as usize;
        let at = text.len().checked_sub(size)?;
        match block.kind {
            BEGIN => {
                (self.start, self.header) = (at, out.len());
                self.described = block.tables[0].as_slice().try_into().ok()?;
                self.recent = Rules::of(Format::Xz)?.recent();
                // The sizes are known at the end.
                out.resize(out.len() + (usize::from(self.described[0]) + 1) * 4, 0);
            }
            END => self.close(block, text.get(self.start..)?, out)?,
            STORED | 3 => {
                out.push((block.kind - STORED) as u8 + 1);
                out.extend_from_slice(&u16::try_from(size.checked_sub(1)?).ok()?.to_be_bytes());
                out.extend_from_slice(text.get(at..)?);
            }
            kind @ LZMA..=7 => {
                let resets = kind - LZMA;
                if resets >= 2 {
                    self.model = Some(Model::new(*block.tables[0].first()?)?);
                } else if resets == 1 {
                    self.model.as_mut()?.reset();
                }
                if resets > 0 {
                    self.recent = Rules::of(Format::Xz)?.recent();
                }
                let packed = self.chunk(text.get(self.start..)?, at - self.start, sequences)?;
                let low = size.checked_sub(1)?;
                out.push(0x80 | (resets as u8) << 5 | u8::try_from(low >> 16).ok()?);
                out.extend_from_slice(&(low as u16).to_be_bytes());
                let length = u16::try_from(packed.len() - 1).ok()?;
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(&block.tables[0]);
                out.extend(packed);
            }
            _ => return None,
        }
        Some(())
    }

    fn chunk(&mut self, text: &[u8], mut at: usize, sequences: &[Sequence]) -> Option<Vec<u8>> {
        let model = self.model.as_mut()?;
        let mut writer = Writer::new();
        let mut last = self.recent.distance(1, 1)?;
        let mut step = |at: usize, last: u32, step: Step| {
            model.step(&mut writer, text, at, last, step).map(|_| ())
        };
        for sequence in sequences {
            for _ in 0..sequence.literals {
                step(at, last, Step::Literal)?;
                at += 1;
            }
            let known = match (self.recent.follow(sequence), sequence.length) {
                (Some(1), 1) => Step::Short,
                (Some(n), length @ 2..) => Step::Recent(length, n - 1),
                (None, length @ 2..) => Step::Match(length, sequence.distance),
                _ => return None,
            };
            step(at, last, known)?;
            last = sequence.distance;
            at += sequence.length as usize;
        }
        while at < text.len() {
            step(at, last, Step::Literal)?;
            at += 1;
        }
        Some(writer.finish())
    }

    /// Ends a block of this text.
    fn close(&mut self, block: &Block, text: &[u8], out: &mut Vec<u8>) -> Option<()> {
        out.push(0);
        let [words, flags, dictionary] = self.described;
        let length = (usize::from(words) + 1) * 4;
        let packed = (out.len() - self.header - length) as u64;
        let mut header = vec![words, flags];
        for (size, value) in [(0x40, packed), (0x80, text.len() as u64)] {
            if flags & size != 0 {
                put_number(&mut header, value);
            }
        }
        header.extend_from_slice(&[LZMA2, 1, dictionary]);
        if header.len() + 4 > length {
            return None;
        }
        header.resize(length - 4, 0);
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        out[self.header..self.header + length].copy_from_slice(&header);
        self.done
            .push((length as u64 + packed + check_length(self.check) as u64, text.len() as u64));
        while !(out.len() - self.header).is_multiple_of(4) {
            out.push(0);
        }
        if self.check == CRC32 {
            out.extend_from_slice(&crc32fast::hash(text).to_le_bytes());
        } else {
            out.extend_from_slice(&block.tables[0]);
        }
        Some(())
    }

    pub(crate) fn end(&mut self, out: &mut Vec<u8>) {
        let mut index = vec![0];
        put_number(&mut index, self.done.len() as u64);
        for &(length, text) in &self.done {
            put_number(&mut index, length);
            put_number(&mut index, text);
        }
        index.resize(index.len().next_multiple_of(4), 0);
        index.extend_from_slice(&crc32fast::hash(&index).to_le_bytes());
        let mut footer = ((index.len() / 4 - 1) as u32).to_le_bytes().to_vec();
        footer.extend_from_slice(&self.flags);
        out.extend(index);
        out.extend_from_slice(&crc32fast::hash(&footer).to_le_bytes());
        out.extend(footer);
        out.extend_from_slice(b"YZ");
    }
}
