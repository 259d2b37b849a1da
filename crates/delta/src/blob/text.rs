//! Bytes that no block explains: predicted by the bytes before them, by longer
//! repetitions of what the group held before, and, at a miss, by the byte that the old
//! content has there.

use crate::coder::Coder;
use crate::coder::model::{Mixed, Tables, hash};

/// Contexts that are hashed into the table; two more follow from candidates.
const HASHED: usize = 6;
const INPUTS: usize = HASHED + 2;
/// Bytes kept to find repetitions in.
const HISTORY: usize = 1 << 21;
const HASH_LOG: u32 = 17;
const LONGEST: usize = 63;

/// What a miss knows beside the new bytes before it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Place {
    /// The old content's byte here.
    pub(crate) expected: u8,
    /// And the one after it.
    pub(crate) after: u8,
    /// What the last miss added to the old byte.
    pub(crate) delta: u8,
    repeats: u8,
}

/// Codes bytes.
pub(crate) struct Text {
    mixed: Mixed<INPUTS>,
    lines: u64,
    history: Vec<u8>,
    heads: Vec<u32>,
    /// Where the repetition under way goes on in `history`, and its length so far.
    matched: Option<usize>,
    length: usize,
}

impl Text {
    /// 2^log slots.
    pub(crate) fn new(log: u32) -> Self {
        let lines = 1u64 << (log - 4);
        Self {
            mixed: Mixed::new((lines as usize * 16) + 1024, 3 * 256, 255),
            lines,
            history: Vec::new(),
            heads: vec![0; 1 << HASH_LOG],
            matched: None,
            length: 0,
        }
    }

    /// Codes `new[from..to]`, for which no old bytes are known.
    pub(crate) fn gap<C: Coder>(
        &mut self,
        tables: &Tables,
        coder: &mut C,
        new: &mut [u8],
        from: usize,
        to: usize,
    ) {
        self.matched = None;
        self.length = 0;
        if self.history.len() > HISTORY {
            self.history.clear();
            self.heads.fill(0);
        }
        for at in from..to {
            if at & 0xfff == 0 && coder.overran() {
                return;
            }
            let before = Before::of(new, at);
            let orders =
                [0, before.last(1), before.last(2), before.last(3), before.last(4), before.last(6)];
            let candidate = self.matched.and_then(|m| self.history.get(m).copied());
            let confidence = self.length.min(LONGEST);
            let select = if candidate.is_some() { 1 } else { 0 };
            let byte = self.byte(
                tables,
                coder,
                new[at],
                &orders,
                (candidate, confidence),
                (None, 0),
                select,
            );
            new[at] = byte;
            self.remember(byte, candidate);
        }
    }

    fn remember(&mut self, byte: u8, candidate: Option<u8>) {
        self.history.push(byte);
        let length = self.history.len();
        match (self.matched, candidate) {
            (Some(matched), Some(candidate)) if candidate == byte => {
                self.matched = Some(matched + 1);
                self.length += 1;
            }
            _ => {
                self.matched = None;
                self.length = 0;
            }
        }
        if length < 5 {
            return;
        }
        let tail = &self.history[length - 5..];
        let key = tail.iter().fold(0u64, |all, &b| all << 8 | u64::from(b));
        let head = &mut self.heads[(hash(key, 77) >> (64 - HASH_LOG)) as usize];
        let found = *head as usize;
        *head = length as u32;
        if self.matched.is_none() && found > 0 {
            let same = self.history[..found]
                .iter()
                .rev()
                .zip(self.history.iter().rev())
                .take(LONGEST)
                .take_while(|(a, b)| a == b)
                .count();
            if same >= 4 {
                self.matched = Some(found);
                self.length = same;
            }
        }
    }

    /// Codes `new[at]`, which is not the old content's byte.
    pub(crate) fn miss<C: Coder>(
        &mut self,
        tables: &Tables,
        coder: &mut C,
        new: &mut [u8],
        at: usize,
        place: &mut Place,
    ) {
        let before = Before::of(new, at);
        let e = u64::from(place.expected);
        let salt = 1 << 60;
        let orders = [
            salt | e,
            salt | 2 << 56 | before.last(1) << 8 | e,
            salt | 3 << 56 | before.last(2) << 8 | e,
            before.last(3),
            salt | 4 << 56 | u64::from(place.after) << 8 | e,
            before.last(2),
        ];
        let candidate = place.expected.wrapping_add(place.delta);
        let confidence = usize::from(place.repeats);
        let byte =
            self.byte(tables, coder, new[at], &orders, (None, 0), (Some(candidate), confidence), 2);
        new[at] = byte;
        let delta = byte.wrapping_sub(place.expected);
        place.repeats = if delta == place.delta { (place.repeats + 1).min(15) } else { 0 };
        place.delta = delta;
    }

    #[expect(clippy::too_many_arguments, reason = "the innermost step: all of it is context")]
    #[inline]
    fn byte<C: Coder>(
        &mut self,
        tables: &Tables,
        coder: &mut C,
        byte: u8,
        orders: &[u64; HASHED],
        matched: (Option<u8>, usize),
        shifted: (Option<u8>, usize),
        select: usize,
    ) -> u8 {
        let mut node = 1u32;
        let mut lines = [0usize; HASHED];
        let candidates = self.lines as usize * 16;
        for at in 0..8 {
            if at == 0 || at == 4 {
                for (order, (line, &context)) in lines.iter_mut().zip(orders).enumerate() {
                    let key = hash(context, (order as u64 + 1) << 12 | u64::from(node));
                    *line = ((key >> 20) & (self.lines - 1)) as usize * 16;
                }
            }
            let nibble = if at < 4 { node } else { (node & ((1 << (at - 4)) - 1)) | 1 << (at - 4) };
            let mut slots = [0; INPUTS];
            for (slot, line) in slots.iter_mut().zip(&lines) {
                *slot = line + nibble as usize;
            }
            let agrees = |candidate: Option<u8>| {
                let whole = u32::from(candidate?) | 256;
                (whole >> (8 - at) == node).then_some(whole >> (7 - at) & 1)
            };
            slots[HASHED] =
                candidates + agrees(matched.0).map_or(0, |bit| 2 + matched.1 * 2 + bit as usize);
            slots[HASHED + 1] = candidates
                + 256
                + agrees(shifted.0).map_or(0, |bit| 2 + shifted.1 * 2 + bit as usize);
            let bit = u32::from(byte) >> (7 - at) & 1;
            let bit = self.mixed.code(tables, coder, bit, &slots, select * 256 + node as usize);
            node = node << 1 | bit;
        }
        node as u8
    }
}

/// The bytes before a place, newest lowest.
struct Before(u64);

impl Before {
    fn of(new: &[u8], at: usize) -> Self {
        let from = at.saturating_sub(8);
        Self(new[from..at].iter().fold(0, |all, &b| all << 8 | u64::from(b)))
    }

    fn last(&self, count: u32) -> u64 {
        u64::from(count) << 56 | self.0 & ((1 << (8 * count)) - 1)
    }
}
