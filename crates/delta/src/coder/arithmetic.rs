//! A binary arithmetic coder with 32-bit bounds and 16-bit probabilities.

/// Codes one bit at a time. The encoder writes the bit it is given, the decoder
/// returns the one it reads and ignores the argument.
pub(crate) trait Coder {
    /// Codes `bit` (0 or 1), of which 1 has the probability `p1` / 65536 (1..=65535).
    fn bit(&mut self, bit: u32, p1: u32) -> u32;

    /// Whether more was asked for than the message holds: then it is broken, and what
    /// follows is not worth the time.
    fn overran(&self) -> bool {
        false
    }

    /// Codes the lowest `count` bits of `value`, each as likely as not.
    fn raw(&mut self, value: u64, count: u32) -> u64 {
        (0..count)
            .rev()
            .fold(0, |all, at| all << 1 | u64::from(self.bit((value >> at & 1) as u32, 1 << 15)))
    }
}

/// Writes a message.
pub(crate) struct Encoder {
    low: u32,
    high: u32,
    out: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self { low: 0, high: u32::MAX, out: Vec::new() }
    }

    /// How many bytes were written so far.
    pub(crate) fn written(&self) -> usize {
        self.out.len()
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.out.extend_from_slice(&self.high.to_be_bytes());
        self.out
    }
}

#[inline]
fn split(low: u32, high: u32, p1: u32) -> u32 {
    low + ((u64::from(high - low) * u64::from(p1)) >> 16) as u32
}

impl Coder for Encoder {
    #[inline]
    fn bit(&mut self, bit: u32, p1: u32) -> u32 {
        let middle = split(self.low, self.high, p1);
        if bit == 1 {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 24 == 0 {
            self.out.push((self.high >> 24) as u8);
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
        }
        bit
    }
}

/// Reads a message. Behind its end it reads zeros: a truncated message gives wrong
/// bits, never a panic.
pub(crate) struct Decoder<'a> {
    low: u32,
    high: u32,
    code: u32,
    input: &'a [u8],
    beyond: usize,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        let mut decoder = Self { low: 0, high: u32::MAX, code: 0, input, beyond: 0 };
        for _ in 0..4 {
            decoder.next();
        }
        decoder
    }

    fn next(&mut self) {
        let byte = match self.input.split_first() {
            Some((first, rest)) => {
                self.input = rest;
                *first
            }
            None => {
                self.beyond += 1;
                0
            }
        };
        self.code = self.code << 8 | u32::from(byte);
    }
}

impl Coder for Decoder<'_> {
    fn overran(&self) -> bool {
        self.beyond > 4
    }

    #[inline]
    fn bit(&mut self, _: u32, p1: u32) -> u32 {
        let middle = split(self.low, self.high, p1);
        let bit = u32::from(self.code <= middle);
        if bit == 1 {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 24 == 0 {
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
            self.next();
        }
        bit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_any_likelihood_come_back() {
        let bits: Vec<(u32, u32)> = (0u32..20_000)
            .map(|i| {
                let p = [1, 65535, 32768, 60000, 17][i as usize % 5];
                (i.wrapping_mul(2_654_435_761) >> 13 & 1, p)
            })
            .collect();
        let mut encoder = Encoder::new();
        for &(bit, p) in &bits {
            encoder.bit(bit, p);
        }
        let bytes = encoder.finish();
        let mut decoder = Decoder::new(&bytes);
        for &(bit, p) in &bits {
            assert_eq!(decoder.bit(0, p), bit);
        }
        assert!(!decoder.overran());
    }
}
