//! Bit streams of Zstandard: written forwards, read backwards; a bit that is set closes them.

/// Reads a closed stream from its end.
pub(super) struct Backward<'a> {
    bytes: &'a [u8],
    /// Bits that are left.
    left: usize,
    /// Bits were asked for that are not there.
    overran: bool,
}

impl<'a> Backward<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let last = *bytes.last()?;
        let open = last.checked_ilog2()? as usize;
        Some(Self { bytes, left: (bytes.len() - 1) * 8 + open, overran: false })
    }

    /// The next `count` bits (at most 56); zeros where none are left.
    pub(super) fn read(&mut self, count: u32) -> u64 {
        let count = count as usize;
        let missing = count.saturating_sub(self.left);
        self.overran |= missing > 0;
        let take = count - missing;
        self.left -= take;
        let (at, shift) = (self.left / 8, self.left % 8);
        let mut word = [0; 8];
        let end = (at + 8).min(self.bytes.len());
        word[..end - at].copy_from_slice(&self.bytes[at..end]);
        let value = u64::from_le_bytes(word) >> shift & ((1 << take) - 1);
        value << missing
    }

    /// Whether all bits were read and no more.
    pub(super) fn ended(&self) -> bool {
        self.left == 0 && !self.overran
    }

    pub(super) fn overran(&self) -> bool {
        self.overran
    }
}

/// Writes a stream.
#[derive(Default)]
pub(super) struct Writer {
    out: Vec<u8>,
    held: u64,
    bits: u32,
}

impl Writer {
    /// Adds the lowest `count` bits (at most 56) of `value`.
    #[inline]
    pub(super) fn write(&mut self, value: u64, count: u32) {
        self.held |= (value & ((1 << count) - 1)) << self.bits;
        self.bits += count;
        while self.bits >= 8 {
            self.out.push(self.held as u8);
            self.held >>= 8;
            self.bits -= 8;
        }
    }

    /// Closes the stream.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.write(1, 1);
        if self.bits > 0 {
            self.out.push(self.held as u8);
        }
        self.out
    }
}
