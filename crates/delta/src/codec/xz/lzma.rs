//! LZMA as both sides speak it: one routine for each number, which the writer is given and
//! the reader finds.
//!
//! The model is that of the LZMA SDK's specification (lzma-specification.txt): adaptive
//! probabilities of eleven bits, a range coder, a state of twelve values for what came last.

/// The coder under the model: reads a bit, or writes the one it is given.
pub(super) trait Bits {
    fn bit(&mut self, probability: &mut u16, bit: u32) -> u32;
    fn direct(&mut self, bit: u32) -> u32;
}

/// Reads. Behind its end it reads zeros.
pub(super) struct Reader<'a> {
    input: &'a [u8],
    range: u32,
    code: u32,
    /// More was asked for than there is.
    pub(super) overran: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(input: &'a [u8]) -> Option<Self> {
        let (head, rest) = input.split_at_checked(5)?;
        let code = u32::from_be_bytes(head[1..].try_into().ok()?);
        (head[0] == 0).then_some(Self { input: rest, range: u32::MAX, code, overran: false })
    }

    /// Whether all was read, to the last byte, and what was read is where an encoder ends.
    pub(super) fn ended(&mut self) -> bool {
        self.normalize();
        self.input.is_empty() && !self.overran && self.code == 0
    }

    #[inline]
    fn normalize(&mut self) {
        if self.range < 1 << 24 {
            let byte = match self.input.split_first() {
                Some((first, rest)) => {
                    self.input = rest;
                    *first
                }
                None => {
                    self.overran = true;
                    0
                }
            };
            self.range <<= 8;
            self.code = self.code << 8 | u32::from(byte);
        }
    }
}

impl Bits for Reader<'_> {
    #[inline]
    fn bit(&mut self, probability: &mut u16, _: u32) -> u32 {
        self.normalize();
        let bound = (self.range >> 11) * u32::from(*probability);
        if self.code < bound {
            self.range = bound;
            *probability += (2048 - *probability) >> 5;
            0
        } else {
            self.range -= bound;
            self.code -= bound;
            *probability -= *probability >> 5;
            1
        }
    }

    fn direct(&mut self, _: u32) -> u32 {
        self.normalize();
        self.range >>= 1;
        if self.code >= self.range {
            self.code -= self.range;
            1
        } else {
            0
        }
    }
}

/// Writes.
pub(super) struct Writer {
    out: Vec<u8>,
    low: u64,
    range: u32,
    cache: u8,
    pending: u64,
}

impl Writer {
    pub(super) fn new() -> Self {
        Self { out: Vec::new(), low: 0, range: u32::MAX, cache: 0, pending: 1 }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        // As for one bit more (rc_encode in liblzma).
        self.normalize();
        for _ in 0..5 {
            self.shift();
        }
        self.out
    }

    fn shift(&mut self) {
        if self.low < 0xff00_0000 || self.low > 0xffff_ffff {
            let carry = (self.low >> 32) as u8;
            let mut byte = self.cache;
            while self.pending > 0 {
                self.out.push(byte.wrapping_add(carry));
                byte = 0xff;
                self.pending -= 1;
            }
            self.cache = (self.low >> 24) as u8;
        }
        self.pending += 1;
        self.low = (self.low & 0x00ff_ffff) << 8;
    }

    #[inline]
    fn normalize(&mut self) {
        if self.range < 1 << 24 {
            self.range <<= 8;
            self.shift();
        }
    }
}

impl Bits for Writer {
    #[inline]
    fn bit(&mut self, probability: &mut u16, bit: u32) -> u32 {
        self.normalize();
        let bound = (self.range >> 11) * u32::from(*probability);
        if bit == 0 {
            self.range = bound;
            *probability += (2048 - *probability) >> 5;
        } else {
            self.low += u64::from(bound);
            self.range -= bound;
            *probability -= *probability >> 5;
        }
        bit
    }

    fn direct(&mut self, bit: u32) -> u32 {
        self.normalize();
        self.range >>= 1;
        if bit == 1 {
            self.low += u64::from(self.range);
        }
        bit
    }
}

const EVEN: u16 = 1024;
/// The longest match.
pub(crate) const LONGEST: u32 = 273;

/// Lengths of matches, less two.
#[derive(Clone)]
struct Lengths {
    choices: [u16; 2],
    low: [[u16; 8]; 16],
    middle: [[u16; 8]; 16],
    high: [u16; 256],
}

impl Lengths {
    fn new() -> Self {
        Self {
            choices: [EVEN; 2],
            low: [[EVEN; 8]; 16],
            middle: [[EVEN; 8]; 16],
            high: [EVEN; 256],
        }
    }

    fn code<B: Bits>(&mut self, bits: &mut B, place: usize, value: u32) -> u32 {
        if bits.bit(&mut self.choices[0], u32::from(value >= 8)) == 0 {
            tree(bits, &mut self.low[place], 3, value)
        } else if bits.bit(&mut self.choices[1], u32::from(value >= 16)) == 0 {
            8 + tree(bits, &mut self.middle[place], 3, value.wrapping_sub(8))
        } else {
            16 + tree(bits, &mut self.high, 8, value.wrapping_sub(16))
        }
    }
}

/// A number of `count` bits, the highest first.
#[inline]
fn tree<B: Bits>(bits: &mut B, probabilities: &mut [u16], count: u32, value: u32) -> u32 {
    let mut node = 1;
    for at in (0..count).rev() {
        node = node << 1 | bits.bit(&mut probabilities[node as usize], value >> at & 1);
    }
    node - (1 << count)
}

/// The lowest first.
fn reverse<B: Bits>(bits: &mut B, probabilities: &mut [u16], count: u32, value: u32) -> u32 {
    let (mut node, mut out) = (1, 0);
    for at in 0..count {
        let bit = bits.bit(&mut probabilities[node as usize], value >> at & 1);
        node = node << 1 | bit;
        out |= bit << at;
    }
    out
}

/// What one step says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Literal,
    /// One byte from the last distance.
    Short,
    /// A length from one of the last distances, by number.
    Recent(u32, u32),
    /// A length, a distance (from 1).
    Match(u32, u32),
}

/// The state of a chunk's coder.
pub(super) struct Model {
    /// Of literals: bits of the byte before, bits of the place; bits of the place of matches.
    lc: u32,
    lp: u32,
    pb: u32,
    state: usize,
    literals: Vec<[u16; 0x300]>,
    is_match: [[u16; 16]; 12],
    is_recent: [u16; 12],
    recent: [[u16; 12]; 3],
    is_long: [[u16; 16]; 12],
    slots: [[u16; 64]; 4],
    /// Lower bits of distances, by slot.
    near: [[u16; 64]; 14],
    align: [u16; 16],
    lengths: Lengths,
    recent_lengths: Lengths,
}

impl Model {
    /// By the format's byte of properties.
    pub(super) fn new(properties: u8) -> Option<Self> {
        let properties = u32::from(properties);
        let (lc, lp, pb) = (properties % 9, properties / 9 % 5, properties / 45);
        if pb > 4 || lc + lp > 4 {
            return None;
        }
        Some(Self {
            lc,
            lp,
            pb,
            state: 0,
            literals: vec![[EVEN; 0x300]; 1 << (lc + lp)],
            is_match: [[EVEN; 16]; 12],
            is_recent: [EVEN; 12],
            recent: [[EVEN; 12]; 3],
            is_long: [[EVEN; 16]; 12],
            slots: [[EVEN; 64]; 4],
            near: [[EVEN; 64]; 14],
            align: [EVEN; 16],
            lengths: Lengths::new(),
            recent_lengths: Lengths::new(),
        })
    }

    /// The same with the properties that it has.
    pub(super) fn reset(&mut self) {
        let properties = (self.pb * 5 + self.lp) * 9 + self.lc;
        if let Some(fresh) = Self::new(properties as u8) {
            *self = fresh;
        }
    }

    /// One step at `at` of the text, `distance` being the last one.
    pub(super) fn step<B: Bits>(
        &mut self,
        bits: &mut B,
        text: &[u8],
        at: usize,
        distance: u32,
        known: Step,
    ) -> Option<Step> {
        let place = at & ((1 << self.pb) - 1);
        let state = self.state;
        let is = bits.bit(&mut self.is_match[state][place], u32::from(known != Step::Literal));
        if is == 0 {
            self.literal(bits, text, at, distance)?;
            return Some(Step::Literal);
        }
        let recent = u32::from(!matches!(known, Step::Match(..)));
        if bits.bit(&mut self.is_recent[state], recent) == 0 {
            let (length, distance) = match known {
                Step::Match(length, distance) => (length.checked_sub(2)?, distance.checked_sub(1)?),
                _ => (0, 0),
            };
            let length = self.lengths.code(bits, place, length);
            self.state = if state < 7 { 7 } else { 10 };
            let distance = self.distance(bits, length, distance);
            return Some(Step::Match(length + 2, distance.checked_add(1)?));
        }
        let (length, which) = match known {
            Step::Recent(length, which) => (length, which),
            _ => (1, 0),
        };
        let mut found = bits.bit(&mut self.recent[0][state], u32::from(which > 0));
        if found == 0 {
            if bits.bit(&mut self.is_long[state][place], u32::from(known != Step::Short)) == 0 {
                self.state = if state < 7 { 9 } else { 11 };
                return Some(Step::Short);
            }
        } else {
            found += bits.bit(&mut self.recent[1][state], u32::from(which > 1));
            if found == 2 {
                found += bits.bit(&mut self.recent[2][state], u32::from(which > 2));
            }
        }
        let length = self.recent_lengths.code(bits, place, length.wrapping_sub(2));
        self.state = if state < 7 { 8 } else { 11 };
        Some(Step::Recent(length + 2, found))
    }

    fn literal<B: Bits>(
        &mut self,
        bits: &mut B,
        text: &[u8],
        at: usize,
        distance: u32,
    ) -> Option<()> {
        let before = if at > 0 { u32::from(*text.get(at - 1)?) } else { 0 };
        let byte = u32::from(*text.get(at)?);
        let set = (at as u32 & ((1 << self.lp) - 1)) << self.lc | before >> (8 - self.lc);
        let probabilities = &mut self.literals[set as usize];
        let mut node = 1u32;
        let mut left = 8;
        if self.state >= 7 {
            let mut other = u32::from(*text.get(at.checked_sub(distance as usize)?)?);
            while left > 0 {
                left -= 1;
                let likely = other >> 7 & 1;
                other <<= 1;
                let slot = ((1 + likely) << 8) + node;
                let bit = bits.bit(&mut probabilities[slot as usize], byte >> left & 1);
                node = node << 1 | bit;
                if bit != likely {
                    break;
                }
            }
        }
        while left > 0 {
            left -= 1;
            let bit = bits.bit(&mut probabilities[node as usize], byte >> left & 1);
            node = node << 1 | bit;
        }
        self.state = match self.state {
            0..4 => 0,
            state @ 4..10 => state - 3,
            state => state - 6,
        };
        // The text and the stream must be of one another.
        (node & 0xff == byte).then_some(())
    }

    /// From 0.
    fn distance<B: Bits>(&mut self, bits: &mut B, length: u32, distance: u32) -> u32 {
        let slot = if distance < 4 {
            distance
        } else {
            let log = distance.ilog2();
            log << 1 | distance >> (log - 1) & 1
        };
        let slot = tree(bits, &mut self.slots[length.min(3) as usize], 6, slot);
        if slot < 4 {
            return slot;
        }
        let count = (slot >> 1) - 1;
        let base = (2 | slot & 1) << count;
        let rest = distance.wrapping_sub(base);
        if slot < 14 {
            return base + reverse(bits, &mut self.near[slot as usize], count, rest);
        }
        let high = (4..count).rev().fold(0, |all, at| all << 1 | bits.direct(rest >> at & 1));
        base.wrapping_add(high << 4).wrapping_add(reverse(bits, &mut self.align, 4, rest))
    }
}
