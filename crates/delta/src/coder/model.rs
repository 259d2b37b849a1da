//! Adaptive probabilities and their mixture.
//!
//! A *slot* is a probability that learns: 22 bits of it and a count of what it has seen,
//! so that it moves fast at first and slowly later. A bit is predicted by several slots,
//! each chosen by another context; a *mixer* weighs them in the logistic domain and
//! learns whom to trust (the method of the PAQ family of compressors).

use super::arithmetic::Coder;

/// A slot that has seen nothing.
const FRESH: u32 = 1 << 31;

/// A probability that learns; count in the lowest 10 bits.
#[derive(Clone, Copy)]
pub(crate) struct Slot(u32);

impl Default for Slot {
    fn default() -> Self {
        Self(FRESH)
    }
}

impl Slot {
    #[inline]
    fn p16(self) -> u32 {
        self.0 >> 16
    }

    #[inline]
    fn update(&mut self, bit: u32, limit: u32, tables: &Tables) {
        let count = self.0 & 1023;
        let p22 = (self.0 >> 10) as i32;
        let target = if bit == 1 { (1 << 22) - 1 } else { 0 };
        let step =
            ((i64::from(target - p22) * i64::from(tables.rate[count as usize])) >> 16) as i32;
        let p22 = (p22 + step) as u32;
        self.0 = p22 << 10 | if count < limit { count + 1 } else { count };
    }
}

/// Constant tables, computed once with exact arithmetic.
pub(crate) struct Tables {
    /// Logistic of x/256 for x in -2048..2048, as 16 bits.
    squash: Vec<u16>,
    /// Its inverse, by the highest 12 bits of a probability.
    stretch: Vec<i16>,
    /// 65536 / (count + 1.5).
    rate: Vec<u32>,
}

impl Tables {
    pub(crate) fn new() -> Self {
        // e^(x/256) by a power series and squarings: only IEEE additions,
        // multiplications and divisions, so that every machine gets the same table.
        let exp = |x: f64| {
            let small = x / 1024.0;
            let mut term = 1.0;
            let mut sum = 1.0;
            for n in 1..12 {
                term = term * small / f64::from(n);
                sum += term;
            }
            (0..10).fold(sum, |all: f64, _| all * all)
        };
        let squash: Vec<u16> = (-2048..2048)
            .map(|x| {
                let p = 65536.0 / (1.0 + exp(-f64::from(x) / 256.0));
                (p as u32).clamp(16, 65520) as u16
            })
            .collect();
        let mut stretch = vec![0i16; 4096];
        let mut from = 0usize;
        for (at, &p) in squash.iter().enumerate() {
            let x = at as i16 - 2048;
            let to = usize::from(p >> 4);
            while from <= to {
                stretch[from] = x;
                from += 1;
            }
        }
        while from < 4096 {
            stretch[from] = 2047;
            from += 1;
        }
        let rate = (0..1024).map(|n| (65536 * 2) / (2 * n + 3)).collect();
        Self { squash, stretch, rate }
    }

    #[inline]
    fn stretch(&self, p16: u32) -> i32 {
        i32::from(self.stretch[(p16 >> 4) as usize])
    }

    #[inline]
    fn squash(&self, x: i32) -> u32 {
        u32::from(self.squash[(x.clamp(-2047, 2047) + 2048) as usize])
    }
}

/// Weighs up to `N` predictions; one set of weights for each `select`.
pub(crate) struct Mixer<const N: usize> {
    weights: Vec<[i32; N]>,
    rate: i32,
}

impl<const N: usize> Mixer<N> {
    pub(crate) fn new(sets: usize, rate: i32) -> Self {
        let first = if N == 1 { 65536 } else { 98304 / N as i32 };
        Self { weights: vec![[first; N]; sets], rate }
    }

    #[inline]
    fn mix(&self, inputs: &[i32; N], select: usize) -> i32 {
        let weights = &self.weights[select];
        let sum: i64 = inputs.iter().zip(weights).map(|(&x, &w)| i64::from(x) * i64::from(w)).sum();
        ((sum >> 16) as i32).clamp(-2047, 2047)
    }

    #[inline]
    fn update(&mut self, inputs: &[i32; N], select: usize, error: i32) {
        let weights = &mut self.weights[select];
        for (weight, &x) in weights.iter_mut().zip(inputs) {
            // error: 16 bits, x: 12 bits; the shift sets the rate of learning.
            let step = (i64::from(x) * i64::from(error) * i64::from(self.rate)) >> 18;
            *weight = (i64::from(*weight) + step).clamp(-(1 << 22), 1 << 22) as i32;
        }
    }
}

/// Codes a bit from the slots `at` of one table, mixed.
pub(crate) struct Mixed<const N: usize> {
    pub(crate) slots: Vec<Slot>,
    mixer: Mixer<N>,
    /// A last correction: the mixture's own probability, by a small context.
    refine: Vec<Slot>,
    limit: u32,
}

impl<const N: usize> Mixed<N> {
    pub(crate) fn new(slots: usize, sets: usize, limit: u32) -> Self {
        let tables = Tables::new();
        let mut refine = vec![Slot::default(); sets * 33];
        for (at, slot) in refine.iter_mut().enumerate() {
            let x = (at % 33) as i32 * 128 - 2048;
            slot.0 = tables.squash(x) << 16 | 6;
        }
        Self { slots: vec![Slot::default(); slots], mixer: Mixer::new(sets, 6), refine, limit }
    }

    /// Codes `bit` by the slots `at`, with the weights `select`.
    #[inline]
    pub(crate) fn code<C: Coder>(
        &mut self,
        tables: &Tables,
        coder: &mut C,
        bit: u32,
        at: &[usize; N],
        select: usize,
    ) -> u32 {
        let mut inputs = [0; N];
        for (input, &at) in inputs.iter_mut().zip(at) {
            *input = tables.stretch(self.slots[at].p16());
        }
        let mixed = self.mixer.mix(&inputs, select);
        let p = tables.squash(mixed);
        let place = (mixed + 2048) as usize;
        let (step, within) = (place >> 7, (place & 127) as u32);
        let refine = select * 33 + step;
        let refined = (self.refine[refine].p16() * (128 - within)
            + self.refine[refine + 1].p16() * within)
            >> 7;
        let last = ((p + 3 * refined) / 4).clamp(1, 65535);
        let bit = coder.bit(bit, last);
        let error = (bit << 16) as i32 - p as i32;
        self.mixer.update(&inputs, select, error);
        let near = refine + usize::from(within >= 64);
        self.refine[near].update(bit, 255, tables);
        for &at in at {
            self.slots[at].update(bit, self.limit, tables);
        }
        bit
    }
}

/// Scatters a context over a table.
#[inline]
pub(crate) fn hash(a: u64, b: u64) -> u64 {
    let x = (a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93)
}
