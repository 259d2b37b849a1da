//! Numbers of any size with adaptive probabilities: how many bits, then the bits.

use super::arithmetic::Coder;
use super::model::{Mixed, Tables};

/// Codes numbers below 2^63 in a few classes, each with statistics of its own.
pub(crate) struct Numbers {
    tables: Tables,
    lengths: Mixed<2>,
    bits: Mixed<1>,
    last: Vec<u8>,
}

impl Numbers {
    pub(crate) fn new(classes: usize) -> Self {
        Self {
            tables: Tables::new(),
            lengths: Mixed::new(classes * (64 + 64 * 64), classes, 255),
            bits: Mixed::new(classes * 64 * 16, classes, 255),
            last: vec![0; classes],
        }
    }

    /// Codes `value` (below 2^63) in `class`.
    pub(crate) fn code<C: Coder>(&mut self, coder: &mut C, class: usize, value: u64) -> u64 {
        let length = 64 - value.leading_zeros();
        let last = usize::from(self.last[class]);
        let base = class * (64 + 64 * 64);
        let mut node = 1usize;
        for at in (0..6).rev() {
            let slots = [base + node, base + 64 + last * 64 + node];
            let bit = self.lengths.code(&self.tables, coder, length >> at & 1, &slots, class);
            node = node << 1 | bit as usize;
        }
        let length = (node & 63) as u32;
        self.last[class] = length as u8;
        if length <= 1 {
            return u64::from(length);
        }
        // The highest bit is known; the next three are modelled, the rest are not.
        let mut result = 1u64;
        let rest = length - 1;
        let modelled = rest.min(3);
        for at in 0..modelled {
            let context = class * 64 * 16 + length as usize * 16 + (result as usize & 15);
            let bit = (value >> (rest - 1 - at) & 1) as u32;
            result = result << 1
                | u64::from(self.bits.code(&self.tables, coder, bit, &[context], class));
        }
        let raw = rest - modelled;
        result << raw | coder.raw(value, raw)
    }

    /// Codes a signed number of magnitude below 2^62.
    pub(crate) fn signed<C: Coder>(&mut self, coder: &mut C, class: usize, value: i64) -> i64 {
        let folded = ((value << 1) ^ (value >> 63)) as u64;
        let folded = self.code(coder, class, folded);
        (folded >> 1) as i64 ^ -((folded & 1) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::super::arithmetic::{Decoder, Encoder};
    use super::*;

    #[test]
    fn numbers_come_back() {
        let values: Vec<i64> = (0..62)
            .flat_map(|n| [1i64 << n, (1i64 << n) - 1, -(1i64 << n), 0])
            .map(|v| v / 2)
            .collect();
        let mut encoder = Encoder::new();
        let mut numbers = Numbers::new(2);
        for (at, &value) in values.iter().enumerate() {
            numbers.signed(&mut encoder, at % 2, value);
        }
        let bytes = encoder.finish();
        let mut decoder = Decoder::new(&bytes);
        let mut numbers = Numbers::new(2);
        for (at, &value) in values.iter().enumerate() {
            assert_eq!(numbers.signed(&mut decoder, at % 2, 0), value);
        }
    }
}
