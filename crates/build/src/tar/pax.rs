//! Extended headers of POSIX archives (pax(1)): records `LENGTH KEY=VALUE\n`, whose
//! values may hold any bytes, newlines too.

use std::collections::BTreeMap;

use varve_format::tree::{Time, Xattrs};

use super::acl;

/// What extended headers say of the next member.
#[derive(Clone, Default, Debug)]
pub(super) struct Pax {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Pieces of GNU's sparse form 0.0, which repeats its keys.
    pieces: Vec<(u64, u64)>,
}

impl Pax {
    /// Takes the records of one extended header; later ones win, an empty value removes.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut rest = bytes;
        let mut offset = None;
        while !rest.is_empty() && rest != [0] {
            let broken = || "has a broken extended header".to_owned();
            let space = rest.iter().position(|&b| b == b' ').ok_or_else(broken)?;
            let length: usize = parse(&rest[..space]).ok_or_else(broken)?;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(broken());
            }
            let record = &rest[space + 1..length - 1];
            rest = &rest[length..];
            let equal = record.iter().position(|&b| b == b'=').ok_or_else(broken)?;
            let (key, value) = (&record[..equal], &record[equal + 1..]);
            match key {
                b"GNU.sparse.offset" => offset = Some(parse(value).ok_or_else(broken)?),
                b"GNU.sparse.numbytes" => {
                    let length = parse(value).ok_or_else(broken)?;
                    self.pieces.push((offset.take().ok_or_else(broken)?, length));
                }
                _ if value.is_empty() && !is_xattr(key) => {
                    self.records.remove(key);
                }
                _ => {
                    self.records.insert(key.to_vec(), value.to_vec());
                }
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.records.get(key.as_bytes()).map(Vec::as_slice)
    }

    /// A number, when the key is there.
    pub(super) fn number(&self, key: &str) -> Result<Option<i64>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match parse(value) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("has an extended header whose {key} is not a number in range")),
        }
    }

    pub(super) fn mtime(&self) -> Result<Option<Time>, String> {
        let Some(value) = self.get("mtime") else { return Ok(None) };
        match time(value) {
            Some(time) => Ok(Some(time)),
            None => Err("has an extended header whose mtime is not a time".into()),
        }
    }

    /// The pieces of GNU's sparse forms 0.0 and 0.1.
    pub(super) fn sparse_pieces(&self) -> Result<Option<Vec<(u64, u64)>>, String> {
        let Some(map) = self.get("GNU.sparse.map") else {
            let is_sparse = self.get("GNU.sparse.size").is_some();
            return Ok(is_sparse.then(|| self.pieces.clone()));
        };
        let numbers: Option<Vec<u64>> = map.split(|&b| b == b',').map(parse).collect();
        match numbers.filter(|numbers| numbers.len() % 2 == 0) {
            Some(numbers) => Ok(Some(numbers.chunks(2).map(|p| (p[0], p[1])).collect())),
            None => Err("has a broken map of its holes".into()),
        }
    }

    /// All extended attributes, in each of the forms that tar programs write, sorted.
    pub(super) fn xattrs(&self) -> Result<Xattrs, String> {
        let mut xattrs: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (key, value) in &self.records {
            if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                let broken = || {
                    let name = String::from_utf8_lossy(name);
                    format!("has the attribute {name}, which is not in base 64 as it should be")
                };
                let value = base64(value).ok_or_else(broken)?;
                xattrs.insert(unescape(name, None).ok_or_else(broken)?, value);
            }
        }
        // The label's own record, and ACLs in words; a raw attribute is more exact.
        if let Some(label) = self.get("RHT.security.selinux") {
            let mut label = label.to_vec();
            label.push(0);
            xattrs.insert(b"security.selinux".to_vec(), label);
        }
        for (key, name) in [
            ("SCHILY.acl.access", "system.posix_acl_access"),
            ("SCHILY.acl.default", "system.posix_acl_default"),
        ] {
            if let Some(text) = self.get(key)
                && let Some(acl) = acl::to_binary(text, key.ends_with("access"))?
            {
                xattrs.insert(name.as_bytes().to_vec(), acl);
            }
        }
        if self.get("SCHILY.acl.ace").is_some() {
            return Err("has an NFSv4 ACL, which Linux cannot keep: remove it first".into());
        }
        for (key, value) in &self.records {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                // GNU tar writes = and % of a name as %3D and %25.
                let name = unescape(name, Some(b"=%")).unwrap_or_else(|| name.to_vec());
                xattrs.insert(name, value.clone());
            }
        }
        Ok(xattrs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

fn is_xattr(key: &[u8]) -> bool {
    key.starts_with(b"SCHILY.xattr.") || key.starts_with(b"LIBARCHIVE.xattr.")
}

pub(super) fn parse<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(digits).ok()?;
    if text.starts_with('+') { None } else { text.parse().ok() }
}

/// Seconds with a fraction, either sign; what is finer than a nanosecond is cut off.
fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    if whole.starts_with('+') || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nine = format!("{fraction:0<9}");
    let nanoseconds: u32 = nine[..9].parse().ok()?;
    let finer = nine[9..].bytes().any(|b| b != b'0');
    Some(if negative && (nanoseconds > 0 || finer) {
        // -1.25 lies between -2 and -1: the second before, and the rest of it.
        let up = nanoseconds + u32::from(finer);
        Time { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - up }
    } else {
        Time { seconds, nanoseconds }
    })
}

/// Turns `%HH` back into bytes; with `only`, those bytes alone.
fn unescape(text: &[u8], only: Option<&[u8]>) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        if text[at] == b'%' {
            let digits = text.get(at + 1..at + 3);
            let value = digits
                .and_then(|d| std::str::from_utf8(d).ok())
                .and_then(|d| u8::from_str_radix(d, 16).ok());
            match (value, only) {
                (Some(byte), None) => {
                    bytes.push(byte);
                    at += 3;
                    continue;
                }
                (Some(byte), Some(only)) if only.contains(&byte) => {
                    bytes.push(byte);
                    at += 3;
                    continue;
                }
                (_, None) => return None,
                _ => {}
            }
        }
        bytes.push(text[at]);
        at += 1;
    }
    Some(bytes)
}

/// Base 64 with or without padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.trim_ascii();
    let end = text.iter().rposition(|&b| b != b'=').map_or(0, |at| at + 1);
    let mut bytes = Vec::with_capacity(end * 3 / 4);
    let (mut bits, mut have) = (0u32, 0);
    for &c in &text[..end] {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        have += 6;
        if have >= 8 {
            have -= 8;
            bytes.push((bits >> have) as u8);
        }
    }
    (have < 6).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = body.len() + 2;
        while length != body.len() + 1 + length.to_string().len() {
            length = body.len() + 1 + length.to_string().len();
        }
        [length.to_string().as_bytes(), b" ", &body].concat()
    }

    #[test]
    fn values_hold_any_bytes() {
        let mut pax = Pax::default();
        let text = [
            record("SCHILY.xattr.user.a%3Db", b"1\n2=\0"),
            record("LIBARCHIVE.xattr.user.c%20d", b"AQID"),
            record("SCHILY.xattr.user.empty", b""),
            record("mtime", b"-1.25"),
        ];
        pax.read(&text.concat()).unwrap();
        let xattrs = pax.xattrs().unwrap();
        let want: [(&[u8], &[u8]); 3] =
            [(b"user.a=b", b"1\n2=\0"), (b"user.c d", b"\x01\x02\x03"), (b"user.empty", b"")];
        assert_eq!(xattrs.len(), want.len());
        for ((name, value), (want_name, want_value)) in xattrs.iter().zip(want) {
            assert_eq!((&name[..], &value[..]), (want_name, want_value));
        }
        let time = pax.mtime().unwrap().unwrap();
        assert_eq!((time.seconds, time.nanoseconds), (-2, 750_000_000));
    }

    #[test]
    fn times_are_exact() {
        let cases = [
            (&b"1760000000.123456789"[..], Some((1_760_000_000, 123_456_789))),
            (b"1760000000.1234567891", Some((1_760_000_000, 123_456_789))),
            (b"5", Some((5, 0))),
            (b"-0.5", Some((-1, 500_000_000))),
            (b"-3", Some((-3, 0))),
            (b"1.x", None),
            (b"", None),
        ];
        for (text, want) in cases {
            let got = time(text).map(|t| (t.seconds, t.nanoseconds));
            assert_eq!(got, want, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn broken_records_are_refused() {
        for bad in [&b"9 a=b"[..], b"x a=b\n", b"99999 a=b\n", b"5 ab\n", b"0 a=b\n", b"2 \n"] {
            assert!(Pax::default().read(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn base64_of_every_length() {
        for (text, bytes) in
            [("", &b""[..]), ("AA==", b"\0"), ("AAE", b"\0\x01"), ("/+8B", b"\xff\xef\x01")]
        {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(bytes));
        }
        assert!(base64(b"A").is_none() && base64(b"A*AA").is_none());
    }
}
