//! Numbers in BTF, the kernel's type information (Documentation/bpf/btf.rst).
//!
//! ```text
//! header | types: { name_off info size_or_type, then by kind } ... | strings
//! ```

use super::{Field, Kind};

/// Finds the fields of the BTF section `bytes`, which stands at `offset` of the file.
/// Types up to `base_types` are those of the kernel itself.
pub(crate) fn fields(
    bytes: &[u8],
    offset: u64,
    base_types: u32,
    out: &mut Vec<Field>,
) -> Option<()> {
    let number = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    if number(0)? & 0x00ff_ffff != 0x0001_eb9f {
        return None;
    }
    let header = number(4)? as usize;
    let start = header.checked_add(number(8)? as usize)?;
    let end = start.checked_add(number(12)? as usize)?.min(bytes.len());
    let mut at = start;
    let name = |out: &mut Vec<Field>, at: usize| {
        let at = (offset + at as u64) as u32;
        out.push(Field { at, kind: Kind::TypeName, width: 4, base: 0 });
    };
    let type_number = |out: &mut Vec<Field>, at: usize| -> Option<()> {
        let kind = if number(at)? <= base_types { Kind::BaseType } else { Kind::OwnType };
        out.push(Field { at: (offset + at as u64) as u32, kind, width: 4, base: 0 });
        Some(())
    };
    while at + 12 <= end {
        let info = number(at + 4)?;
        let (kind, count) = (info >> 24 & 31, (info & 0xffff) as usize);
        name(out, at);
        if matches!(kind, 2 | 8..=14 | 17 | 18) {
            type_number(out, at + 8)?;
        }
        at += 12;
        // Bytes of one member, and where in it a name and types stand.
        let (size, members, has_name, types): (usize, usize, bool, &[usize]) = match kind {
            1 | 14 | 17 => (4, 1, false, &[]),
            3 => (12, 1, false, &[0, 4]),
            4 | 5 => (12, count, true, &[4]),
            6 => (8, count, true, &[]),
            13 => (8, count, true, &[4]),
            15 => (12, count, false, &[0]),
            19 => (12, count, true, &[]),
            0 | 20.. => return None,
            _ => (0, 0, false, &[]),
        };
        for _ in 0..members {
            if at + size > end {
                return None;
            }
            if has_name {
                name(out, at);
            }
            for place in types {
                type_number(out, at + place)?;
            }
            at += size;
        }
    }
    Some(())
}

/// How many types there are, and the highest number among references to types.
#[cfg(feature = "make")]
pub(crate) fn extent(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut found = Vec::new();
    fields(bytes, 0, u32::MAX, &mut found)?;
    let mut highest = 0;
    for field in found.iter().filter(|f| f.kind == Kind::BaseType) {
        highest = highest.max(field.read(bytes, field.at as usize)? as u32);
    }
    let number = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    let start = (number(4)? as usize).checked_add(number(8)? as usize)?;
    let end = start.checked_add(number(12)? as usize)?.min(bytes.len());
    let (mut at, mut count) = (start, 0);
    while at + 12 <= end {
        let info = number(at + 4)?;
        let (kind, members) = (info >> 24 & 31, (info & 0xffff) as usize);
        count += 1;
        at += 12
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * members,
                6 | 13 => 8 * members,
                _ => 0,
            };
    }
    Some((count, highest))
}
