//! The coder itself. (It has nothing of VP8 but the name that `preflate-rs` uses.)

use std::io::{Read, Result, Write};

use crate::{CabacReader, CabacWriter};

/// How likely a one is, of 65536: between 15 and 65520, whatever it has seen.
#[derive(Clone, Copy, Debug)]
pub struct VP8Context(u16);

impl Default for VP8Context {
    fn default() -> Self {
        Self(1 << 15)
    }
}

impl VP8Context {
    fn split(self, low: u32, high: u32) -> u32 {
        low + ((u64::from(high - low) * u64::from(self.0)) >> 16) as u32
    }

    fn learn(&mut self, bit: bool) {
        if bit {
            self.0 += (u16::MAX - self.0) >> 4;
        } else {
            self.0 -= self.0 >> 4;
        }
    }
}

/// Writes a message.
#[derive(Debug)]
pub struct VP8Writer<W> {
    low: u32,
    high: u32,
    out: W,
}

impl<W: Write> VP8Writer<W> {
    /// Begins a message.
    #[expect(clippy::missing_errors_doc, reason = "it never fails; the caller's signature")]
    pub fn new(out: W) -> Result<Self> {
        Ok(Self { low: 0, high: u32::MAX, out })
    }
}

impl<W: Write> CabacWriter<VP8Context> for VP8Writer<W> {
    fn put(&mut self, bit: bool, context: &mut VP8Context) -> Result<()> {
        let middle = context.split(self.low, self.high);
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        context.learn(bit);
        while (self.low ^ self.high) >> 24 == 0 {
            self.out.write_all(&[(self.high >> 24) as u8])?;
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        // As many bytes as tell the last bounds from their neighbours; the reader takes
        // what is missing for zeros.
        let mut bytes = 1;
        while bytes < 4 && self.high & (u32::MAX << (32 - 8 * bytes)) < self.low {
            bytes += 1;
        }
        self.out.write_all(&self.high.to_be_bytes()[..bytes])
    }
}

/// Reads a message. Behind its end it reads zeros, so that a broken one gives wrong bits
/// and no error.
#[derive(Debug)]
pub struct VP8Reader<R> {
    low: u32,
    high: u32,
    code: u32,
    input: R,
}

impl<R: Read> VP8Reader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// When the input fails.
    pub fn new(input: R) -> Result<Self> {
        let mut reader = Self { low: 0, high: u32::MAX, code: 0, input };
        for _ in 0..4 {
            reader.next()?;
        }
        Ok(reader)
    }

    fn next(&mut self) -> Result<()> {
        let mut byte = [0];
        if self.input.read(&mut byte)? == 0 {
            byte = [0];
        }
        self.code = self.code << 8 | u32::from(byte[0]);
        Ok(())
    }
}

impl<R: Read> CabacReader<VP8Context> for VP8Reader<R> {
    fn get(&mut self, context: &mut VP8Context) -> Result<bool> {
        let middle = context.split(self.low, self.high);
        let bit = self.code <= middle;
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        context.learn(bit);
        while (self.low ^ self.high) >> 24 == 0 {
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
            self.next()?;
        }
        Ok(bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: u32) -> impl Iterator<Item = u32> {
        (0..4000u32).map(move |n| {
            let value = n.wrapping_add(seed).wrapping_mul(2_654_435_761);
            value >> (value % 31)
        })
    }

    fn length(value: u32) -> usize {
        32 - value.leading_zeros() as usize
    }

    #[test]
    fn numbers_of_any_length_come_back() {
        for seed in 0..50 {
            let mut bytes = Vec::new();
            let mut writer = VP8Writer::new(&mut bytes).unwrap();
            let (mut lengths, mut bits) =
                ([VP8Context::default(); 32], [VP8Context::default(); 32]);
            for value in numbers(seed).take(seed as usize * 80) {
                writer.put_unary_encoded(length(value), &mut lengths).unwrap();
                writer.put_n_bits(value.into(), length(value), &mut bits).unwrap();
            }
            writer.finish().unwrap();
            let mut reader = VP8Reader::new(&bytes[..]).unwrap();
            let (mut lengths, mut bits) =
                ([VP8Context::default(); 32], [VP8Context::default(); 32]);
            for value in numbers(seed).take(seed as usize * 80) {
                assert_eq!(reader.get_unary_encoded(&mut lengths).unwrap(), length(value));
                let read = reader.get_n_bits(length(value), &mut bits).unwrap();
                assert_eq!(read, u64::from(value));
            }
        }
    }

    #[test]
    fn what_is_always_the_same_costs_next_to_nothing() {
        let mut bytes = Vec::new();
        let mut writer = VP8Writer::new(&mut bytes).unwrap();
        let mut context = VP8Context::default();
        for _ in 0..10_000 {
            writer.put(false, &mut context).unwrap();
        }
        writer.finish().unwrap();
        assert!(bytes.len() < 30, "{}", bytes.len());
        // A message that ends early is read on as zeros.
        let mut reader = VP8Reader::new(&bytes[..1]).unwrap();
        for _ in 0..20_000 {
            reader.get(&mut context).unwrap();
        }
    }
}
