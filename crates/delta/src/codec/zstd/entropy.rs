//! The two entropy codes of Zstandard (RFC 8878, 4.1 and 4.2): finite state entropy for
//! numbers, Huffman for literals. Tables are read from their description and used both ways.

use super::bits::{Backward, Writer};

/// Probabilities of symbols in parts of 2^log; -1: less than one part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Distribution {
    log: u32,
    counts: Vec<i16>,
}

impl Distribution {
    pub(super) fn fixed(log: u32, counts: &[i16]) -> Self {
        Self { log, counts: counts.to_vec() }
    }

    /// Reads a description; how many bytes it takes.
    pub(super) fn read(bytes: &[u8], most: u32) -> Option<(Self, usize)> {
        let mut at = 0usize;
        let bits = |at: usize, count: u32| -> u32 {
            let mut word = [0; 4];
            for (n, byte) in word.iter_mut().enumerate() {
                *byte = bytes.get(at / 8 + n).copied().unwrap_or(0);
            }
            (u32::from_le_bytes(word) >> (at % 8)) & ((1 << count) - 1)
        };
        let log = bits(at, 4) + 5;
        at += 4;
        if log > most {
            return None;
        }
        let mut left = (1i32 << log) + 1;
        let mut counts: Vec<i16> = Vec::new();
        while left > 1 {
            if counts.len() > 255 || at / 8 > bytes.len() {
                return None;
            }
            // As many bits as values up to `left` take, one less for the lowest.
            let width = left.ilog2() + 1;
            let value = bits(at, width) as i32;
            let low = (1 << (width - 1)) - 1;
            let short = (1 << width) - 1 - left;
            let count = if value & low < short {
                at += width as usize - 1;
                value & low
            } else {
                at += width as usize;
                if value > low { value - short } else { value }
            } - 1;
            left -= count.abs();
            counts.push(count as i16);
            if count == 0 {
                loop {
                    let zeros = bits(at, 2);
                    at += 2;
                    counts.extend(std::iter::repeat_n(0, zeros as usize));
                    if zeros < 3 || counts.len() > 255 {
                        break;
                    }
                }
            }
        }
        let used = at.div_ceil(8);
        (left == 1 && counts.len() <= 256 && used <= bytes.len())
            .then_some((Self { log, counts }, used))
    }

    /// How many symbols it speaks of.
    pub(super) fn symbols(&self) -> usize {
        self.counts.len()
    }

    /// The symbol of each state.
    fn spread(&self) -> Vec<u8> {
        let size = 1usize << self.log;
        let mut symbols = vec![0u8; size];
        let mut high = size;
        for (symbol, &count) in self.counts.iter().enumerate() {
            if count == -1 {
                high -= 1;
                symbols[high] = symbol as u8;
            }
        }
        let (step, mask) = ((size >> 1) + (size >> 3) + 3, size - 1);
        let mut at = 0;
        for (symbol, &count) in self.counts.iter().enumerate() {
            for _ in 0..count.max(0) {
                symbols[at] = symbol as u8;
                at = (at + step) & mask;
                while at >= high && high > 0 {
                    at = (at + step) & mask;
                }
            }
        }
        symbols
    }
}

/// One code's table, for reading.
#[derive(Clone)]
pub(super) struct Reading {
    log: u32,
    /// Symbol, bits to read, what to add to them.
    states: Vec<(u8, u8, u16)>,
}

impl Reading {
    pub(super) fn new(distribution: &Distribution) -> Self {
        let log = distribution.log;
        let mut next: Vec<u32> = distribution
            .counts
            .iter()
            .map(|&c| if c == -1 { 1 } else { c.max(0) as u32 })
            .collect();
        let states = distribution.spread().into_iter().map(|symbol| {
            let number = &mut next[usize::from(symbol)];
            let bits = log - (*number).max(1).ilog2();
            let base = (*number << bits).wrapping_sub(1 << log);
            *number += 1;
            (symbol, bits as u8, base as u16)
        });
        Self { log, states: states.collect() }
    }

    /// A code with one symbol alone.
    pub(super) fn single(symbol: u8) -> Self {
        Self { log: 0, states: vec![(symbol, 0, 0)] }
    }

    pub(super) fn first(&self, bits: &mut Backward<'_>) -> u16 {
        bits.read(self.log) as u16
    }

    pub(super) fn symbol(&self, state: u16) -> u8 {
        self.states[usize::from(state)].0
    }

    pub(super) fn next(&self, state: u16, bits: &mut Backward<'_>) -> u16 {
        let (_, count, base) = self.states[usize::from(state)];
        base + bits.read(u32::from(count)) as u16
    }
}

/// The same, for writing: from the last symbol to the first.
#[derive(Clone)]
pub(super) struct Writing {
    log: u32,
    /// By symbol: what to add to the state to find how many bits go, where its states begin.
    symbols: Vec<(u32, i32)>,
    states: Vec<u16>,
}

impl Writing {
    pub(super) fn new(distribution: &Distribution) -> Self {
        let log = distribution.log;
        let size = 1u32 << log;
        let of = |count: i16| if count == -1 { 1 } else { u32::from(count.max(0) as u16) };
        let mut starts = Vec::new();
        let mut total = 0u32;
        for &count in &distribution.counts {
            starts.push(total);
            total += of(count);
        }
        let mut states = vec![0; size as usize];
        for (at, symbol) in distribution.spread().into_iter().enumerate() {
            let start = &mut starts[usize::from(symbol)];
            if let Some(state) = states.get_mut(*start as usize) {
                *state = (size as usize + at) as u16;
            }
            *start += 1;
        }
        let mut total = 0i32;
        let symbols = distribution.counts.iter().map(|&count| {
            let found = match of(count) {
                0 => (((log + 1) << 16) - size, 0),
                1 => ((log << 16).wrapping_sub(size), total - 1),
                count => {
                    let bits = log - (count - 1).ilog2();
                    ((bits << 16).wrapping_sub(count << bits), total - count as i32)
                }
            };
            total += of(count) as i32;
            found
        });
        let symbols = symbols.collect();
        Self { log, symbols, states }
    }

    pub(super) fn single() -> Self {
        Self { log: 0, symbols: Vec::new(), states: Vec::new() }
    }

    /// The state that stands for the last symbol; none if the code has no such symbol.
    pub(super) fn last(&self, symbol: u8) -> Option<u32> {
        if self.log == 0 {
            return Some(0);
        }
        let &(bits, start) = self.symbols.get(usize::from(symbol))?;
        let count = bits.wrapping_add(1 << 15) >> 16;
        let value = (count << 16).wrapping_sub(bits);
        self.state((value >> count) as i32 + start)
    }

    /// Puts a symbol before the state.
    #[inline]
    pub(super) fn put(&self, state: u32, symbol: u8, out: &mut Writer) -> Option<u32> {
        if self.log == 0 {
            return Some(0);
        }
        let &(bits, start) = self.symbols.get(usize::from(symbol))?;
        let count = state.wrapping_add(bits) >> 16;
        if count > 16 {
            return None;
        }
        out.write(u64::from(state), count);
        self.state((state >> count) as i32 + start)
    }

    fn state(&self, at: i32) -> Option<u32> {
        self.states.get(usize::try_from(at).ok()?).map(|&s| u32::from(s))
    }

    pub(super) fn flush(&self, state: u32, out: &mut Writer) {
        out.write(u64::from(state), self.log);
    }
}

/// Codes of literals by byte: the bits and how many; none has 0.
#[derive(Clone)]
pub(super) struct Huffman(Vec<(u16, u8)>);

impl Huffman {
    /// Reads a description; how many bytes it takes.
    pub(super) fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let head = usize::from(*bytes.first()?);
        let (mut weights, used) = if head < 128 {
            (packed_weights(bytes.get(1..1 + head)?)?, 1 + head)
        } else {
            let count = head - 127;
            let nibble = |n: usize| {
                let byte = *bytes.get(1 + n / 2)?;
                Some(if n.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
            };
            ((0..count).map(nibble).collect::<Option<Vec<u8>>>()?, 1 + count.div_ceil(2))
        };
        if weights.len() > 255 || weights.iter().any(|&w| w > 11) {
            return None;
        }
        // The last weight is what is left to a power of two.
        let sum: u32 = weights.iter().map(|&w| if w > 0 { 1 << (w - 1) } else { 0 }).sum();
        let log = sum.checked_ilog2()? + 1;
        let rest = (1 << log) - sum;
        if log > 11 || !rest.is_power_of_two() {
            return None;
        }
        weights.push(rest.ilog2() as u8 + 1);
        let lengths: Vec<u8> =
            weights.iter().map(|&w| if w > 0 { log as u8 + 1 - w } else { 0 }).collect();
        let mut starts = [0u16; 13];
        let mut low = 0u16;
        for length in (1..=log as usize).rev() {
            starts[length] = low;
            low += lengths.iter().filter(|&&l| usize::from(l) == length).count() as u16;
            low >>= 1;
        }
        let codes = lengths.iter().map(|&length| {
            let start = &mut starts[usize::from(length)];
            *start += u16::from(length > 0);
            (start.wrapping_sub(1), length)
        });
        Some((Self(codes.collect()), used))
    }

    /// One stream of literals.
    pub(super) fn write(&self, literals: &[u8]) -> Option<Vec<u8>> {
        let mut out = Writer::default();
        for &byte in literals.iter().rev() {
            let &(code, length) = self.0.get(usize::from(byte))?;
            if length == 0 {
                return None;
            }
            out.write(u64::from(code), u32::from(length));
        }
        Some(out.finish())
    }
}

/// Weights in the code of two states that take turns.
fn packed_weights(bytes: &[u8]) -> Option<Vec<u8>> {
    let (distribution, used) = Distribution::read(bytes, 6)?;
    let table = Reading::new(&distribution);
    let mut bits = Backward::new(&bytes[used..])?;
    let mut states = [table.first(&mut bits), table.first(&mut bits)];
    if bits.overran() {
        return None;
    }
    let mut weights = Vec::new();
    let mut turn = 0;
    loop {
        weights.push(table.symbol(states[turn]));
        states[turn] = table.next(states[turn], &mut bits);
        if bits.overran() {
            weights.push(table.symbol(states[1 - turn]));
            return Some(weights);
        }
        if weights.len() > 255 {
            return None;
        }
        turn = 1 - turn;
    }
}
