//! Operands of x86-64 instructions that are addresses, found by decoding the length
//! of each instruction (Intel SDM, volume 2, appendix A). A sweep that goes wrong in
//! data between functions finds its way back within a few instructions.

use super::{Field, Kind};

/// Immediate operand of an opcode.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Immediate {
    None,
    Byte,
    Word,
    /// 16 or 32 bits, by the operand-size prefix.
    Full,
    /// As `Full`, 64 bits with REX.W.
    Wide,
    /// Relative 32-bit target.
    Target,
    /// 16 bits and 8 (ENTER).
    Enter,
    /// An address of 64 bits.
    Address,
    Bad,
}

/// Which addresses count as absolute ones.
pub(crate) struct Image {
    /// Addresses of the image: absolute operands within are references. Empty when
    /// the file has none.
    pub(crate) absolute: std::ops::Range<u64>,
}

/// Finds fields in `code`, which stands at `offset` of the file and at `address`.
pub(crate) fn fields(code: &[u8], offset: u64, address: u64, image: &Image, out: &mut Vec<Field>) {
    let mut at = 0;
    while at < code.len() {
        let length = instruction(code, at, offset, address, image, out).unwrap_or(1);
        at += length.max(1);
    }
}

fn instruction(
    code: &[u8],
    start: usize,
    offset: u64,
    address: u64,
    image: &Image,
    out: &mut Vec<Field>,
) -> Option<usize> {
    let byte = |at: usize| code.get(at).copied();
    let mut at = start;
    let mut short = false;
    let mut wide = false;
    let mut opcode = byte(at)?;
    while matches!(opcode, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3) {
        short |= opcode == 0x66;
        at += 1;
        if at - start > 14 {
            return None;
        }
        opcode = byte(at)?;
    }
    if opcode & 0xf0 == 0x40 {
        wide = opcode & 8 != 0;
        at += 1;
        opcode = byte(at)?;
    }
    let (modrm, immediate);
    match opcode {
        0x0f => {
            at += 1;
            opcode = byte(at)?;
            match opcode {
                0x38 => {
                    at += 1;
                    (modrm, immediate) = (true, Immediate::None);
                }
                0x3a => {
                    at += 1;
                    (modrm, immediate) = (true, Immediate::Byte);
                }
                _ => (modrm, immediate) = two_byte(opcode),
            }
        }
        0xc5 | 0xc4 | 0x62 => {
            let (length, map) = match opcode {
                0xc5 => (2, 1),
                0xc4 => (3, byte(at + 1)? & 0x1f),
                _ => (4, byte(at + 1)? & 7),
            };
            at += length;
            let inner = byte(at)?;
            (modrm, immediate) = match map {
                1 => {
                    let (modrm, immediate) = two_byte(inner);
                    (modrm, if immediate == Immediate::Byte { immediate } else { Immediate::None })
                }
                3 => (true, Immediate::Byte),
                2 | 5 | 6 => (true, Immediate::None),
                _ => (false, Immediate::Bad),
            };
            opcode = 0x0f;
        }
        _ => {
            let reg = byte(at + 1).unwrap_or(0) >> 3 & 7;
            (modrm, immediate) = one_byte(opcode, reg);
        }
    }
    if immediate == Immediate::Bad {
        return None;
    }
    at += 1;
    // A displacement of 32 bits: where, and whether it counts from the next instruction.
    let mut displacement = None;
    if modrm {
        let modrm = byte(at)?;
        at += 1;
        let (mode, rm) = (modrm >> 6, modrm & 7);
        if mode != 3 {
            let mut base = rm;
            if rm == 4 {
                base = byte(at)? & 7;
                at += 1;
            }
            match mode {
                0 if base == 5 => {
                    displacement = Some((at, rm == 5));
                    at += 4;
                }
                1 => at += 1,
                2 => {
                    displacement = Some((at, false));
                    at += 4;
                }
                _ => {}
            }
        }
    }
    let immediate_at = at;
    at += match immediate {
        Immediate::None | Immediate::Bad => 0,
        Immediate::Byte => 1,
        Immediate::Word => 2,
        Immediate::Enter => 3,
        Immediate::Full => {
            if short && !wide {
                2
            } else {
                4
            }
        }
        Immediate::Wide if wide => 8,
        Immediate::Wide => {
            if short {
                2
            } else {
                4
            }
        }
        Immediate::Target => 4,
        Immediate::Address => 8,
    };
    if at > code.len() {
        return None;
    }
    let next = address + at as u64;
    let place = |at: usize| u32::try_from(offset + at as u64).unwrap_or(u32::MAX);
    let number = |at: usize| {
        let bytes = code.get(at..at + 4)?;
        Some(i64::from(i32::from_le_bytes(bytes.try_into().ok()?)) as u64)
    };
    if let Some((at, relative)) = displacement {
        if relative {
            out.push(Field { at: place(at), kind: Kind::Relative, width: 4, base: next });
        } else if number(at).is_some_and(|n| image.absolute.contains(&n)) {
            out.push(Field { at: place(at), kind: Kind::Absolute32, width: 4, base: 0 });
        }
    }
    let at32 = at - immediate_at == 4;
    if immediate == Immediate::Target {
        out.push(Field { at: place(immediate_at), kind: Kind::Branch, width: 4, base: next });
    } else if at32 && number(immediate_at).is_some_and(|n| image.absolute.contains(&n)) {
        out.push(Field { at: place(immediate_at), kind: Kind::Absolute32, width: 4, base: 0 });
    } else if at - immediate_at == 8 {
        let bytes: [u8; 8] = code[immediate_at..at].try_into().ok()?;
        if image.absolute.contains(&u64::from_le_bytes(bytes)) {
            out.push(Field { at: place(immediate_at), kind: Kind::Absolute64, width: 8, base: 0 });
        }
    }
    let _ = opcode;
    Some(at - start)
}

fn one_byte(opcode: u8, reg: u8) -> (bool, Immediate) {
    use Immediate::*;
    match opcode {
        0x00..=0x3f => match opcode & 7 {
            0..=3 => (true, None),
            4 => (false, Byte),
            5 => (false, Full),
            _ => (false, Bad),
        },
        0x50..=0x5f => (false, None),
        0x63 => (true, None),
        0x68 => (false, Full),
        0x69 => (true, Full),
        0x6a => (false, Byte),
        0x6b => (true, Byte),
        0x6c..=0x6f => (false, None),
        0x70..=0x7f => (false, Byte),
        0x80 | 0x83 => (true, Byte),
        0x81 => (true, Full),
        0x84..=0x8f => (true, None),
        0x9a => (false, Bad),
        0x90..=0x9f => (false, None),
        0xa0..=0xa3 => (false, Address),
        0xa4..=0xa7 | 0xaa..=0xaf => (false, None),
        0xa8 => (false, Byte),
        0xa9 => (false, Full),
        0xb0..=0xb7 => (false, Byte),
        0xb8..=0xbf => (false, Wide),
        0xc0 | 0xc1 | 0xc6 => (true, Byte),
        0xc2 | 0xca => (false, Word),
        0xc3 | 0xc9 | 0xcb | 0xcc | 0xcf => (false, None),
        0xc7 => (true, Full),
        0xc8 => (false, Enter),
        0xcd => (false, Byte),
        0xd0..=0xd3 => (true, None),
        0xd7 => (false, None),
        0xd8..=0xdf => (true, None),
        0xe0..=0xe7 | 0xeb => (false, Byte),
        0xe8 | 0xe9 => (false, Target),
        0xec..=0xef | 0xf1 | 0xf4 | 0xf5 | 0xf8..=0xfd => (false, None),
        0xf6 => (true, if reg < 2 { Byte } else { None }),
        0xf7 => (true, if reg < 2 { Full } else { None }),
        0xfe | 0xff => (true, None),
        _ => (false, Bad),
    }
}

fn two_byte(opcode: u8) -> (bool, Immediate) {
    use Immediate::*;
    match opcode {
        0x05..=0x09 | 0x0b | 0x0e | 0x30..=0x37 | 0x77 => (false, None),
        0x0f => (true, Byte),
        0x70..=0x73 => (true, Byte),
        0x80..=0x8f => (false, Target),
        0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf => (false, None),
        0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => (true, Byte),
        0x04 | 0x0a | 0x0c | 0x24..=0x27 | 0x39 | 0x3b..=0x3f => (false, Bad),
        _ => (true, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_of_common_instructions() {
        // endbr64; lea rdi,[rip+0x10]; mov dword [rip+0x20],1; call +5; jne near +6;
        // vmovdqa ymm0,[rip+7]; mov rax,[gs:0]; nopw 0(%rax,%rax); ret
        let code: &[u8] = &[
            0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x8d, 0x3d, 0x10, 0, 0, 0, 0xc7, 0x05, 0x20, 0, 0, 0, 1,
            0, 0, 0, 0xe8, 5, 0, 0, 0, 0x0f, 0x85, 6, 0, 0, 0, 0xc5, 0xfd, 0x6f, 0x05, 7, 0, 0, 0,
            0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0,
            0xc3,
        ];
        let mut out = Vec::new();
        fields(code, 0x100, 0x1000, &Image { absolute: 0..0 }, &mut out);
        let found: Vec<_> = out.iter().map(|f| (f.at, f.kind, f.base)).collect();
        assert_eq!(
            found,
            [
                (0x107, Kind::Relative, 0x100b),
                (0x10d, Kind::Relative, 0x1015),
                (0x116, Kind::Branch, 0x101a),
                (0x11c, Kind::Branch, 0x1020),
                (0x124, Kind::Relative, 0x1028),
            ]
        );
    }

    #[test]
    fn any_bytes_are_walked_to_their_end() {
        let mut seed = 1u64;
        let code: Vec<u8> = (0..100_000)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .collect();
        let mut out = Vec::new();
        fields(&code, 0, 0, &Image { absolute: 0..1 << 40 }, &mut out);
        assert!(out.iter().all(|f| (f.at as usize) < code.len()));
    }
}
