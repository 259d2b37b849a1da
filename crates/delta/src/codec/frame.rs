//! A compressed stream as what its encoder chose. With the plain text that makes the stream
//! again bit for bit, whoever wrote it, without a search.
//!
//! Two formats can be told so, Zstandard and xz. Both are blocks of a text, each with its
//! *sequences*: so many literals, then so many bytes from so far back.

use super::{Format, xz, zstd};

/// So many literals, then a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sequence {
    pub(crate) literals: u32,
    pub(crate) length: u32,
    pub(crate) distance: u32,
    /// How the distance is told where it is one of the last few: 0 by its number among
    /// them, 1 spelled out all the same, n by the nth number that stands for it.
    pub(crate) told: u8,
}

/// What a block says beside its sequences.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Block {
    /// By the format.
    pub(crate) kind: u16,
    /// Bytes of plain text.
    pub(crate) size: u32,
    /// How many sequences.
    pub(crate) count: u32,
    /// Bytes of the block's own: by the format.
    pub(crate) tables: [Vec<u8>; 2],
}

/// A stream taken apart, but for its sequences.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Frame {
    pub(crate) header: Vec<u8>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) checksum: Vec<u8>,
}

/// What the formats differ in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The shortest and the longest copy.
    pub(crate) length: (u32, u32),
    /// The largest block of text.
    pub(crate) block: u32,
    recent: Recent,
    resets: fn(u16) -> bool,
}

impl Rules {
    pub(crate) fn of(format: Format) -> Option<Self> {
        match format {
            Format::Zstd => Some(Self {
                length: (3, u32::MAX),
                block: zstd::frame::MOST as u32,
                recent: Recent::Three([1, 4, 8]),
                resets: |_| false,
            }),
            Format::Xz => Some(Self {
                length: (1, xz::LONGEST),
                block: xz::CHUNK,
                recent: Recent::Four([1; 4]),
                resets: xz::frame::resets,
            }),
            _ => None,
        }
    }

    /// Whether a block of this kind forgets the last distances.
    pub(crate) fn resets(&self, kind: u16) -> bool {
        (self.resets)(kind)
    }

    /// The last distances at the beginning.
    pub(crate) fn recent(&self) -> Recent {
        self.recent
    }
}

/// The last distances, as both sides keep them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Recent {
    /// Zstandard: three, counted on by one where no literals stand before the copy.
    Three([u32; 3]),
    /// LZMA: four; what is not one of them moves them all.
    Four([u32; 4]),
}

impl Recent {
    /// The number, from 1, of a distance that is one of the last; else none.
    pub(crate) fn short(&self, distance: u32, literals: u32) -> Option<u32> {
        match self {
            Self::Four(last) => last.iter().position(|&d| d == distance).map(|at| at as u32 + 1),
            Self::Three(last) => {
                let none = u32::from(literals == 0);
                match last.iter().position(|&d| d == distance) {
                    Some(at) if at as u32 >= none => Some(at as u32 + 1 - none),
                    _ if none == 1 && distance > 0 && last[0] == distance.wrapping_add(1) => {
                        Some(3)
                    }
                    _ => None,
                }
            }
        }
    }

    /// How many numbers stand for this distance.
    pub(crate) fn shorts(&self, distance: u32, literals: u32) -> u8 {
        match self {
            Self::Four(last) => last.iter().filter(|&&d| d == distance).count() as u8,
            Self::Three(_) => u8::from(self.short(distance, literals).is_some()),
        }
    }

    /// How [`Sequence::told`] says this number of this distance.
    pub(crate) fn nth(&self, distance: u32, number: u32) -> Option<u8> {
        let Self::Four(last) = self else { return None };
        let equal = last.get(..number as usize)?.iter().filter(|&&d| d == distance).count();
        Some(if equal == 1 { 0 } else { equal as u8 })
    }

    /// The distance that such a number stands for.
    pub(crate) fn distance(&self, number: u32, literals: u32) -> Option<u32> {
        match self {
            Self::Four(last) => last.get(number.checked_sub(1)? as usize).copied(),
            Self::Three(last) => match number + u32::from(literals == 0) {
                n @ 1..=3 => Some(last[n as usize - 1]),
                4 => last[0].checked_sub(1).filter(|&d| d > 0),
                _ => None,
            },
        }
    }

    /// Takes note of a sequence; the number of its distance, if it is told by that.
    pub(crate) fn follow(&mut self, sequence: &Sequence) -> Option<u32> {
        let short = match (sequence.told, &*self) {
            (0, _) => self.short(sequence.distance, sequence.literals),
            (1, _) | (_, Self::Three(_)) => None,
            (nth, Self::Four(last)) => {
                let equal = (1..).zip(last).filter(|(_, d)| **d == sequence.distance);
                equal.map(|(n, _)| n).nth(usize::from(nth) - 1)
            }
        };
        match self {
            Self::Four(last) => {
                let at = short.map_or(3, |n| n as usize - 1);
                last.copy_within(..at, 1);
                last[0] = sequence.distance;
            }
            Self::Three(last) => {
                let place = short.map_or(3, |n| n - 1 + u32::from(sequence.literals == 0));
                last.copy_within(..place.min(2) as usize, 1);
                last[0] = sequence.distance;
            }
        }
        short
    }
}

/// Takes the stream at the start of `bytes`, of this text, apart, and says where it ends.
/// Sequences are handed on block by block, as many as the block says.
pub(crate) fn read(
    format: Format,
    bytes: &[u8],
    text: &[u8],
    each: &mut dyn FnMut(&[Sequence]),
) -> Option<(Frame, usize)> {
    match format {
        Format::Zstd => zstd::frame::read(bytes, each),
        Format::Xz => xz::frame::read(bytes, text, each),
        _ => None,
    }
}

/// Makes a stream again, part by part.
pub(crate) enum Maker {
    Zstd(Box<zstd::frame::Maker>),
    Xz(Box<xz::frame::Maker>),
}

impl Maker {
    pub(crate) fn new(format: Format) -> Option<Self> {
        match format {
            Format::Zstd => Some(Self::Zstd(Box::new(zstd::frame::Maker::new()))),
            Format::Xz => Some(Self::Xz(Box::new(xz::frame::Maker::new()))),
            _ => None,
        }
    }

    /// Puts the header behind `out`.
    pub(crate) fn begin(&mut self, header: &[u8], out: &mut Vec<u8>) -> Option<()> {
        out.extend_from_slice(header);
        match self {
            Self::Zstd(_) => Some(()),
            Self::Xz(maker) => maker.begin(header),
        }
    }

    /// Puts a block behind `out`: `text[..end]` ends with its own, `sequences` are its own.
    pub(crate) fn block(
        &mut self,
        block: &Block,
        (text, end): (&[u8], usize),
        sequences: &[Sequence],
        last: bool,
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let start = end.checked_sub(block.size as usize)?;
        match self {
            Self::Zstd(maker) => maker.block(block, text.get(start..end)?, sequences, last, out),
            Self::Xz(maker) => maker.block(block, text.get(..end)?, sequences, out),
        }
    }

    /// Puts the end behind `out`.
    pub(crate) fn end(&mut self, checksum: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Zstd(_) => out.extend_from_slice(checksum),
            Self::Xz(maker) => maker.end(out),
        }
    }
}

/// Whether a stream is made again, bit for bit, of what is read from it and its text.
#[cfg(feature = "make")]
pub(crate) fn comes_back(format: Format, stream: &[u8], text: &[u8]) -> bool {
    let attempt = || {
        let mut sequences = Vec::new();
        let (frame, length) =
            read(format, stream, text, &mut |some| sequences.extend_from_slice(some))?;
        let mut out = Vec::new();
        let mut maker = Maker::new(format)?;
        maker.begin(&frame.header, &mut out)?;
        let (mut at, mut sequence) = (0usize, 0usize);
        for (n, block) in frame.blocks.iter().enumerate() {
            (at, sequence) = (at + block.size as usize, sequence + block.count as usize);
            let own = sequences.get(sequence - block.count as usize..sequence)?;
            maker.block(block, (text, at), own, n + 1 == frame.blocks.len(), &mut out)?;
        }
        maker.end(&frame.checksum, &mut out);
        (length == stream.len() && out == stream && at == text.len()).then_some(())
    };
    attempt().is_some()
}
