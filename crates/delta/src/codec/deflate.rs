//! Deflate streams (RFC 1951), by preflate: it predicts what zlib's kind of encoder
//! would have done and records where the stream differs.

use super::Decoded;

// What a liar writes makes preflate panic (see `encode`); that must end one content, not
// the update manager.
#[cfg(panic = "abort")]
compile_error!("deltas need panics that unwind: set no panic = \"abort\" in this profile");

pub(super) fn decode(bytes: &[u8], limit: usize) -> Option<Decoded> {
    use miniz_oxide::inflate::TINFLStatus;
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
    let mut state = Box::new(DecompressorOxide::new());
    let mut plain = vec![0; (bytes.len().saturating_mul(4)).clamp(1 << 12, limit.max(1 << 12))];
    let (mut read, mut written) = (0, 0);
    loop {
        let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, took, made) =
            decompress(&mut state, &bytes[read..], &mut plain, written, flags);
        read += took;
        written += made;
        match status {
            TINFLStatus::Done => break,
            TINFLStatus::HasMoreOutput if plain.len() < limit => {
                let larger = plain.len().saturating_mul(2).min(limit);
                plain.resize(larger, 0);
            }
            _ => return None,
        }
    }
    plain.truncate(written);
    (written <= limit).then_some(Decoded { plain, length: read })
}

/// Parts of a stream: `texts` has the length of the plain text of each but the last, and what
/// preflate records of each is as long as `recorded` says.
///
/// ```text
/// crc32 of all that follows and of the plain text, u32
/// parts - 1, then for each part but the last: length of its text, length of its record   base 128
/// records, back to back
/// ```
struct Parts<'a> {
    texts: Vec<usize>,
    records: Vec<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        let more = number(&mut rest)?;
        let (mut texts, mut lengths) = (Vec::new(), Vec::new());
        for _ in 0..more {
            texts.push(number(&mut rest)?);
            lengths.push(number(&mut rest)?);
        }
        let mut records = Vec::new();
        for length in lengths {
            let (record, after) = rest.split_at_checked(length)?;
            records.push(record);
            rest = after;
        }
        records.push(rest);
        Some(Self { texts, records })
    }

    /// The length of the longest part of a text of so many bytes.
    fn longest(&self, plain: u64) -> u64 {
        let last = plain.saturating_sub(self.texts.iter().map(|&text| text as u64).sum());
        self.texts.iter().map(|&text| text as u64).fold(last, u64::max)
    }
}

/// Seven bits in a byte, lowest first.
fn number(bytes: &mut &[u8]) -> Option<usize> {
    let mut value = 0usize;
    for shift in (0..35).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= usize::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Bytes of memory that making a stream of `plain` bytes takes: of one part at a time four
/// times its text, and tables of hashes and tokens.
pub(super) fn memory(corrections: &[u8], plain: u64) -> u64 {
    let parts = corrections.get(4..).and_then(Parts::read);
    parts.map_or(plain, |parts| parts.longest(plain)) * 4 + (4 << 20)
}

/// Corrections fit one plain text alone, and preflate panics on others: so a checksum of
/// both stands before them, which damage does not pass; what a liar writes to pass it is
/// caught where panics unwind.
pub(super) fn encode(corrections: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
    let (sum, corrections) = corrections.split_at_checked(4)?;
    if sum != checksum(corrections, plain) {
        return None;
    }
    let parts = Parts::read(corrections)?;
    std::panic::catch_unwind(|| {
        let mut maker = preflate_rs::RecreateStreamProcessor::new();
        let (mut out, mut rest) = (Vec::new(), plain);
        for (at, record) in parts.records.iter().enumerate() {
            let length = parts.texts.get(at).copied().unwrap_or(rest.len());
            let mut text;
            (text, rest) = rest.split_at_checked(length)?;
            out.extend(maker.recompress(&mut text, record).ok()?.0);
        }
        Some(out)
    })
    .ok()
    .flatten()
}

fn checksum(corrections: &[u8], plain: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(corrections);
    hasher.update(plain);
    hasher.finalize().to_le_bytes()
}

/// Texts of parts, in bytes, the smallest first: the less, the less memory making them takes.
/// A part ends with a block of the stream, and zlib's are of up to 4 MiB.
#[cfg(feature = "make")]
pub(super) const PARTS: [usize; 3] = [1 << 20, 5 << 20, usize::MAX];

/// What preflate needs to know to make exactly this stream, in parts of at most so many bytes
/// of text.
#[cfg(feature = "make")]
pub(super) fn corrections(stream: &[u8], plain: &[u8], most: usize) -> Option<Vec<u8>> {
    let limit = most.min(plain.len() + 1024);
    let found = std::panic::catch_unwind(|| {
        let mut reader = preflate_rs::PreflateStreamProcessor::new(limit, false);
        let (mut read, mut texts, mut records) = (0, Vec::new(), Vec::new());
        let mut rest = plain;
        while !reader.is_done() {
            let part = reader.decompress(stream.get(read..)?).ok()?;
            let text = reader.plain_text().text();
            rest = rest.strip_prefix(text)?;
            read += part.compressed_size;
            texts.push(text.len());
            records.push(part.corrections);
            reader.shrink_to_dictionary();
        }
        (rest.is_empty() && read == stream.len()).then_some((texts, records))
    });
    let (texts, records) = found.ok().flatten()?;
    let mut out = vec![0; 4];
    write_number(&mut out, texts.len() - 1);
    for (text, record) in texts.iter().zip(&records).take(texts.len() - 1) {
        write_number(&mut out, *text);
        write_number(&mut out, record.len());
    }
    out.extend(records.concat());
    let sum = checksum(&out[4..], plain);
    out[..4].copy_from_slice(&sum);
    Some(out)
}

#[cfg(feature = "make")]
fn write_number(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(all(test, feature = "make"))]
mod tests {
    use super::*;

    /// Numbers, of which some come again.
    fn text(length: usize) -> Vec<u8> {
        let mut state = 7u32;
        let mut out = Vec::with_capacity(length);
        while out.len() < length {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            out.extend_from_slice(format!("{:x} ", (state >> 8) % 60_000).as_bytes());
        }
        out.truncate(length);
        out
    }

    /// A deflate stream as gzip makes it; every Debian system has gzip.
    fn deflate(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let mut gzip = Command::new("gzip")
            .args(["--best", "--no-name", "--stdout"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("gzip");
        let mut input = gzip.stdin.take().unwrap();
        let all = bytes.to_vec();
        let writer = std::thread::spawn(move || input.write_all(&all).unwrap());
        let out = gzip.wait_with_output().unwrap().stdout;
        writer.join().unwrap();
        out[10..out.len() - 8].to_vec()
    }

    #[test]
    fn a_long_stream_is_made_again_in_parts() {
        let plain = text(3_500_000);
        let stream = deflate(&plain);
        let whole = corrections(&stream, &plain, usize::MAX).unwrap();
        let parts = corrections(&stream, &plain, 1 << 20).unwrap();
        for told in [&whole, &parts] {
            assert!(encode(told, &plain).unwrap() == stream);
        }
        assert_eq!(memory(&whole, 3_500_000), 4 * 3_500_000 + (4 << 20));
        assert!(memory(&parts, 3_500_000) <= 8 << 20);
        // What is not its text, or damaged, or cut, makes nothing and ends nothing.
        let mut other = plain.clone();
        other[3_000_000] ^= 1;
        assert_eq!(encode(&parts, &other), None);
        assert_eq!(encode(&parts, &plain[..2_000_000]), None);
        for length in [0, 3, 4, 5, 9, parts.len() - 1] {
            assert_eq!(encode(&parts[..length], &plain), None);
        }
    }

    #[test]
    fn a_block_longer_than_a_part_is_one() {
        // Sixteen thousand matches of 258 bytes each make one block of zlib's.
        let plain = vec![7; 6_000_000];
        let stream = deflate(&plain);
        let found = PARTS.into_iter().find_map(|most| corrections(&stream, &plain, most)).unwrap();
        assert!(encode(&found, &plain).unwrap() == stream);
    }

    #[test]
    fn a_liar_with_the_right_checksum_ends_no_program() {
        let plain = text(50_000);
        let stream = deflate(&plain);
        let told = corrections(&stream, &plain, usize::MAX).unwrap();
        let lie =
            |body: &[u8], plain: &[u8]| encode(&[&checksum(body, plain)[..], body].concat(), plain);
        assert!(lie(&told[4..], &plain).is_some());
        // Of another text; two parts where one was; lengths beyond what is there.
        lie(&told[4..], &plain[100..]);
        let mut two = vec![1, 100, 20];
        two.extend(&told[5..]);
        lie(&two, &plain);
        let mut far = vec![1, 0xff, 0xff, 0xff, 0x7f, 1];
        far.extend(&told[5..]);
        assert_eq!(lie(&far, &plain), None);
        let mut many = vec![0xff, 0xff, 0xff, 0xff, 0x7f];
        many.extend(&told[5..]);
        assert_eq!(lie(&many, &plain), None);
    }
}
