//! The escapes of composefs-dump(5): `\n`, `\r`, `\t`, `\\` and `\xHH`.

/// For people: readable text stays, control and non-UTF-8 bytes are escaped.
pub(crate) fn show(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Appends `bytes` as one field of a dump line. `equal` says that `=` must be escaped
/// too (in the name of an xattr). An empty field is written `-`, so a lone `-` is
/// escaped.
pub(crate) fn write(out: &mut Vec<u8>, bytes: &[u8], equal: bool) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    if bytes == b"-" {
        out.extend_from_slice(b"\\x2d");
        return;
    }
    for &byte in bytes {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'=' if equal => out.extend_from_slice(b"\\x3d"),
            0x21..=0x7e => out.push(byte),
            _ => {
                out.extend_from_slice(b"\\x");
                out.push(DIGITS[usize::from(byte >> 4)]);
                out.push(DIGITS[usize::from(byte & 15)]);
            }
        }
    }
}

/// Reads one field; none when an escape is broken.
pub(crate) fn read(field: &[u8]) -> Option<Vec<u8>> {
    if !field.contains(&b'\\') {
        return Some(field.to_vec());
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.iter();
    while let Some(&byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next()? {
            b'\\' => b'\\',
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let mut digit = || (*rest.next()? as char).to_digit(16);
                (digit()? << 4 | digit()?) as u8
            }
            _ => return None,
        });
    }
    Some(bytes)
}
