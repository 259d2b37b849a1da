//! One header block of a tar archive: 512 bytes, numbers in octal or, in GNU's way,
//! in base 256.
//!
//! ```text
//!   0 name 100 | 100 mode 8 | 108 uid 8 | 116 gid 8 | 124 size 12 | 136 mtime 12
//! 148 checksum 8 | 156 type 1 | 157 link name 100 | 257 magic 6 | 263 version 2
//! 265 user 32 | 297 group 32 | 329 major 8 | 337 minor 8 | 345 prefix 155  (ustar)
//!                                386 sparse 4 x (offset 12, length 12) | 482 more | 483 real size 12  (GNU)
//! ```

/// Length of a block.
pub(super) const BLOCK: usize = 512;

pub(super) struct Header<'a>(pub(super) &'a [u8; BLOCK]);

impl Header<'_> {
    /// Whether the checksum is right; some old programs summed signed bytes.
    pub(super) fn is_sound(&self) -> bool {
        let bytes = self.0.iter().enumerate();
        let masked = bytes.map(|(at, &b)| if (148..156).contains(&at) { b' ' } else { b });
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for byte in masked {
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        number(&self.0[148..156]).is_some_and(|sum| sum == unsigned || sum == signed)
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn is_gnu(&self) -> bool {
        &self.0[257..265] == b"ustar  \0"
    }

    /// The name, with the prefix that ustar (not GNU) has for long ones.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = text(&self.0[345..500]);
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            return [prefix, name].join(&b'/');
        }
        name.to_vec()
    }

    pub(super) fn link_name(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Option<i64> {
        number(&self.0[100..108])
    }

    pub(super) fn uid(&self) -> Option<i64> {
        number(&self.0[108..116])
    }

    pub(super) fn gid(&self) -> Option<i64> {
        number(&self.0[116..124])
    }

    pub(super) fn size(&self) -> Option<i64> {
        number(&self.0[124..136])
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        number(&self.0[136..148])
    }

    /// Major and minor number of a device.
    pub(super) fn device(&self) -> Option<(u32, u32)> {
        let part = |at: usize| u32::try_from(number(&self.0[at..at + 8])?).ok();
        Some((part(329)?, part(337)?))
    }

    /// GNU's old sparse form: the file's real length, and whether blocks with more
    /// pieces follow; its first pieces go to `pieces`.
    pub(super) fn sparse(&self, pieces: &mut Vec<(u64, u64)>) -> Option<(i64, bool)> {
        sparse_pieces(&self.0[386..482], pieces)?;
        Some((number(&self.0[483..495])?, self.0[482] != 0))
    }
}

/// Reads pieces (offset, length) of 24 bytes each until an empty one.
pub(super) fn sparse_pieces(bytes: &[u8], pieces: &mut Vec<(u64, u64)>) -> Option<()> {
    for piece in bytes.chunks_exact(24) {
        if piece[0] == 0 {
            break;
        }
        let offset = u64::try_from(number(&piece[..12])?).ok()?;
        pieces.push((offset, u64::try_from(number(&piece[12..])?).ok()?));
    }
    Some(())
}

/// The bytes before the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// A number in octal between spaces and zeros, or in base 256 (two's complement) when
/// the first bit is set. An empty field is 0.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field[0] {
        0x80 | 0xff => {
            let negative = field[0] == 0xff;
            let (high, low) = field[1..].split_at(field.len().saturating_sub(9));
            let fill = if negative { 0xff } else { 0 };
            if high.iter().any(|&b| b != fill) {
                return None;
            }
            let start = if negative { -1i64 } else { 0 };
            let value = low.iter().fold(start, |value, &b| value << 8 | i64::from(b));
            (negative == (value < 0)).then_some(value)
        }
        _ => {
            let field = text(field).trim_ascii();
            let digits = std::str::from_utf8(field).ok()?;
            if digits.is_empty() {
                return Some(0);
            }
            if digits.starts_with(['+', '-']) {
                return None;
            }
            i64::from_str_radix(digits, 8).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_kinds() {
        let cases: [(&[u8], Option<i64>); 9] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o77777777)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\0\0\0\0\x02\0\0\0", Some(2 << 24)),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
            (b"12x4567\0", None),
        ];
        for (field, value) in cases {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
