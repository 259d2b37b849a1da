//! A manifest's text in a shorter form for coding: the digest of a content stands in a
//! line twice, in hexadecimal; here it stands once, as bytes.
//!
//! ```text
//! /etc/x 5 100644 1 0 0 0 1760000000.0 3f/09.. - 3f09..
//! /etc/x 5 100644 1 0 0 0 1760000000.0 <1> <32 bytes>
//! ```
//!
//! The form is reversible for every text; one that has byte 1 in it is left as it is.

const SIGN: u8 = 1;
/// ` xx/` + 62 + ` - ` + 64.
const LONG: usize = 3 + 62 + 3 + 64;

/// The short form.
pub(crate) fn shorten(text: &[u8]) -> Vec<u8> {
    if text.contains(&SIGN) {
        return text.to_vec();
    }
    let mut out = Vec::with_capacity(text.len() / 2);
    let mut at = 0;
    while at < text.len() {
        if text[at] == b'/'
            && at >= 2
            && out.len() >= 2
            && let Some(digest) = text.get(at - 2..at - 2 + LONG).and_then(digest)
        {
            out.truncate(out.len() - 2);
            out.push(SIGN);
            out.extend_from_slice(&digest);
            at += LONG - 2;
        } else {
            out.push(text[at]);
            at += 1;
        }
    }
    // The rest of the text may hold the sign only as part of a digest.
    if lengthen(&out).as_deref() == Some(text) { out } else { text.to_vec() }
}

/// The text of a short form; nothing if it is none.
pub(crate) fn lengthen(short: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(short.len() * 2);
    let mut at = 0;
    while at < short.len() {
        if short[at] != SIGN {
            out.push(short[at]);
            at += 1;
            continue;
        }
        let digest = short.get(at + 1..at + 33)?;
        let hex = varve_format::id::to_hex(digest);
        out.extend_from_slice(&hex.as_bytes()[..2]);
        out.push(b'/');
        out.extend_from_slice(&hex.as_bytes()[2..]);
        out.extend_from_slice(b" - ");
        out.extend_from_slice(hex.as_bytes());
        at += 33;
    }
    Some(out)
}

fn digest(long: &[u8]) -> Option<[u8; 32]> {
    let (first, rest) = (&long[..2], &long[3..65]);
    if &long[65..68] != b" - " || long[68..70] != *first || &long[70..] != rest {
        return None;
    }
    varve_format::id::digest_from_hex(&long[68..]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back() {
        let hex = "3f".repeat(32);
        let line = format!("/etc/x 5 100644 1 0 0 0 1.0 {}/{} - {hex}\n", &hex[..2], &hex[2..]);
        let other = format!("/a/b 7 3f/{hex} - {hex} \x01 3f/ - \n");
        for text in [line.repeat(3), other, String::new(), format!("{line}\x01"), "ab/".into()] {
            let short = shorten(text.as_bytes());
            if !text.contains('\x01') {
                assert_eq!(lengthen(&short).unwrap(), text.as_bytes(), "{text:?}");
            }
        }
        assert!(shorten(line.as_bytes()).len() < 70);
        assert_eq!(lengthen(b"\x01short"), None);
    }
}
