//! Takes a content apart wherever streams and members stand in it. Publisher only: the
//! device follows the steps that the delta names.
//!
//! ```text
//! initrd   = cpio { headers.., member, member.. } + gzip stream -> cpio { .. }
//! vmlinuz  = setup code + zstd stream -> ELF + tail
//! x.ko.xz  = xz stream -> ELF
//! ```
//!
//! Bounds: [`Limits`] hold over one content with all that is nested in it: depth, bytes
//! decoded in total, pieces. What is beyond a bound stays as it stands, whole.

use varve_format::Sha256Digest;

use crate::codec::{self, Format, Settings};

/// How far a content is taken apart.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many containers may lie in one another.
    pub depth: u32,
    /// Bytes that may be decoded from one content, all streams together.
    pub decoded: usize,
    /// Members and streams of one content.
    pub pieces: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { depth: 6, decoded: 512 << 20, pieces: 200_000 }
    }
}

/// A content or a part of one, taken apart: pieces in order, which cover all of it.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) pieces: Vec<Piece>,
}

/// A part of a node's bytes.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Bytes of the container itself: headers, padding.
    Frame { length: usize },
    /// A member, or a stretch that is a container itself.
    Member { name: Vec<u8>, length: usize, node: Node },
    /// A compressed stream.
    Stream { length: usize, format: Format, settings: Option<Settings>, plain: Vec<u8>, node: Node },
}

impl Node {
    /// Whether it was not taken apart at all.
    pub(crate) fn is_plain(&self) -> bool {
        self.pieces.is_empty()
    }
}

/// What is left of the limits while walking.
struct Budget<'a> {
    decoded: usize,
    pieces: usize,
    /// Whether streams must be proved to come back: only then do they have settings.
    prove: bool,
    /// Members that are known as they are need not be opened.
    known: &'a dyn Fn(&[u8]) -> bool,
    /// Settings that were found before.
    memo: Option<&'a dyn Memo>,
    /// The depth that is left in a stream that foretells itself, if there is one.
    foretold: Option<u32>,
}

/// Remembers what is dear to find, from one delta to the next: the settings that make a
/// compressed stream again.
pub trait Memo: Sync {
    /// What was put under this key.
    fn get(&self, key: &Sha256Digest) -> Option<Vec<u8>>;

    /// Keeps a value under a key.
    fn put(&self, key: Sha256Digest, value: Vec<u8>);
}

/// Takes `bytes` apart. With `prove`, streams that cannot be made again bit for bit
/// stay closed; without, all are opened (an old content is only read). `foretold`: if the
/// whole is a stream, an old one shows what its encoder would choose.
pub(crate) fn walk(
    bytes: &[u8],
    limits: &Limits,
    (prove, foretold): (bool, bool),
    known: &dyn Fn(&[u8]) -> bool,
    memo: Option<&dyn Memo>,
) -> Node {
    let foretold = foretold.then_some(limits.depth);
    let Limits { decoded, pieces, .. } = *limits;
    let mut budget = Budget { decoded, pieces, prove, known, memo, foretold };
    inside(bytes, limits.depth, &mut budget)
}

fn inside(bytes: &[u8], depth: u32, budget: &mut Budget<'_>) -> Node {
    let found = if depth == 0 { None } else { parts(bytes, budget) };
    let Some(parts) = found else { return Node::default() };
    let mut pieces = Vec::new();
    let mut at = 0;
    for part in parts {
        // Parts come in order; one that overlaps is a lie and stays closed.
        if part.from < at || part.to > bytes.len() || part.from >= part.to || budget.pieces == 0 {
            continue;
        }
        budget.pieces -= 1;
        let piece = match part.stream {
            Some(format) => stream(&bytes[part.from..part.to], format, depth, budget),
            None => {
                let bytes = &bytes[part.from..part.to];
                let known = bytes.len() >= 64 && (budget.known)(bytes);
                let node = if known { Node::default() } else { inside(bytes, depth - 1, budget) };
                Some(Piece::Member { name: part.name, length: part.to - part.from, node })
            }
        };
        let Some(piece) = piece else { continue };
        if part.from > at {
            pieces.push(Piece::Frame { length: part.from - at });
        }
        at = part.from + piece.length();
        pieces.push(piece);
    }
    if !pieces.is_empty() && at < bytes.len() {
        let rest = &bytes[at..];
        let node = inside(rest, depth - 1, budget);
        if node.is_plain() {
            pieces.push(Piece::Frame { length: rest.len() });
        } else {
            pieces.push(Piece::Member { name: b"+".to_vec(), length: rest.len(), node });
        }
    }
    Node { pieces }
}

impl Piece {
    pub(crate) fn length(&self) -> usize {
        match self {
            Self::Frame { length } | Self::Member { length, .. } | Self::Stream { length, .. } => {
                *length
            }
        }
    }
}

fn stream(bytes: &[u8], format: Format, depth: u32, budget: &mut Budget<'_>) -> Option<Piece> {
    let decoded = codec::decode(format, bytes, budget.decoded).ok()?;
    // Too small to be worth the settings.
    if decoded.length < 64 || decoded.length > bytes.len() {
        return None;
    }
    budget.decoded -= decoded.plain.len();
    let node = inside(&decoded.plain, depth - 1, budget);
    // What was chosen is foretold along a text, not along parts of one.
    let foretold = budget.foretold == Some(depth) && node.is_plain();
    let stream = &bytes[..decoded.length];
    let settings = if budget.prove {
        Some(proved(format, stream, &decoded.plain, foretold, budget.memo)?)
    } else {
        None
    };
    Some(Piece::Stream { length: decoded.length, format, settings, plain: decoded.plain, node })
}

/// Settings that make the stream again: as remembered, else found and proved.
fn proved(
    format: Format,
    stream: &[u8],
    plain: &[u8],
    foretold: bool,
    memo: Option<&dyn Memo>,
) -> Option<Settings> {
    let Some(memo) = memo else { return codec::settings(format, stream, plain, foretold) };
    let name = format!("{} {} {foretold}\n", codec::versions(), format as u8);
    let key = Sha256Digest::of(&[name.as_bytes(), &Sha256Digest::of(stream).0].concat());
    match memo.get(&key).as_deref() {
        Some([]) => return None,
        // What cannot be read any more is found anew.
        Some(bytes) => {
            if let Some(settings) = Settings::from_bytes(format, bytes) {
                return Some(settings);
            }
        }
        None => {}
    }
    let found = codec::settings(format, stream, plain, foretold);
    memo.put(key, found.as_ref().map(|found| found.to_bytes().into_owned()).unwrap_or_default());
    found
}

/// A part worth a look of its own. A stream may end before `to`.
struct Part {
    from: usize,
    to: usize,
    stream: Option<Format>,
    name: Vec<u8>,
}

impl Part {
    fn stream(from: usize, to: usize, format: Format) -> Self {
        Self { from, to, stream: Some(format), name: Vec::new() }
    }

    fn member(from: usize, to: usize, name: &[u8]) -> Self {
        Self { from, to, stream: None, name: name.to_vec() }
    }
}

fn parts(bytes: &[u8], budget: &Budget<'_>) -> Option<Vec<Part>> {
    let all = bytes.len();
    if bytes.starts_with(b"\xfd7zXZ\0") {
        return Some(vec![Part::stream(0, all, Format::Xz)]);
    }
    if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Some(vec![Part::stream(0, all, Format::Zstd)]);
    }
    if bytes.starts_with(&[0x02, 0x21, 0x4c, 0x18]) {
        return Some(vec![Part::stream(0, all, Format::Lz4Legacy)]);
    }
    if bytes.starts_with(&[0x1f, 0x8b, 8]) {
        return Some(vec![Part::stream(gzip_header(bytes)?, all, Format::Deflate)]);
    }
    if bytes.starts_with(b"070701") || bytes.starts_with(b"070702") {
        return cpio(bytes, budget.pieces);
    }
    if bytes.starts_with(b"!<arch>\n") {
        return ar(bytes);
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return zip(bytes, budget.pieces);
    }
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return png(bytes);
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return tar(bytes, budget.pieces);
    }
    if bytes.get(0x202..0x206) == Some(b"HdrS") {
        return kernel(bytes);
    }
    None
}

/// RFC 1952: where the deflate stream begins.
fn gzip_header(bytes: &[u8]) -> Option<usize> {
    let flags = *bytes.get(3)?;
    let mut at = 10;
    if flags & 4 != 0 {
        at += 2 + usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    }
    for text in [8, 16] {
        if flags & text != 0 {
            at += bytes.get(at..)?.iter().position(|&b| b == 0)? + 1;
        }
    }
    if flags & 2 != 0 {
        at += 2;
    }
    Some(at)
}

/// cpio, "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
fn cpio(bytes: &[u8], most: usize) -> Option<Vec<Part>> {
    let number = |at: usize| {
        let digits = std::str::from_utf8(bytes.get(at..at + 8)?).ok()?;
        usize::from_str_radix(digits, 16).ok()
    };
    let mut parts = Vec::new();
    let mut at = 0usize;
    while bytes.get(at..at + 5) == Some(b"07070") && parts.len() < most {
        let (Some(size), Some(name)) = (number(at + 54), number(at + 94)) else { break };
        let text = bytes.get(at + 110..(at + 110).checked_add(name)?).unwrap_or_default();
        let text = text.strip_suffix(&[0]).unwrap_or(text);
        let from = (at + 110 + name).next_multiple_of(4);
        let to = from.checked_add(size)?;
        if to > bytes.len() {
            break;
        }
        if size > 0 {
            parts.push(Part::member(from, to, text));
        }
        at = to.next_multiple_of(4);
        if text == b"TRAILER!!!" {
            // What follows the padding is another archive or a stream of one.
            let zeros = bytes.get(at..).map_or(0, |r| r.iter().take_while(|&&b| b == 0).count());
            let rest = at + zeros;
            if rest < bytes.len() {
                parts.push(Part::member(rest, bytes.len(), b"+"));
            }
            break;
        }
    }
    Some(parts)
}

/// ar(5), with it Debian packages.
fn ar(bytes: &[u8]) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    let mut at = 8usize;
    while let Some(header) = bytes.get(at..at + 60) {
        let size: usize = std::str::from_utf8(&header[48..58]).ok()?.trim().parse().ok()?;
        let to = (at + 60).checked_add(size)?;
        if to > bytes.len() {
            break;
        }
        if size > 0 {
            parts.push(Part::member(at + 60, to, header[..16].trim_ascii()));
        }
        at = to.next_multiple_of(2);
    }
    Some(parts)
}

/// tar, ustar and its successors.
fn tar(bytes: &[u8], most: usize) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    let mut at = 0usize;
    while let Some(header) = bytes.get(at..at + 512) {
        if header[257..262] != *b"ustar" || parts.len() >= most {
            break;
        }
        let digits: Vec<u8> =
            header[124..136].iter().copied().filter(|b| (b'0'..=b'7').contains(b)).collect();
        let size = usize::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()?;
        let to = (at + 512).checked_add(size)?;
        if to > bytes.len() {
            break;
        }
        if size > 0 {
            let name = &header[..100];
            let name = &name[..name.iter().position(|&b| b == 0).unwrap_or(100)];
            parts.push(Part::member(at + 512, to, name));
        }
        at = to.next_multiple_of(512);
    }
    Some(parts)
}

/// zip and jar: deflated and stored members, by their local headers.
fn zip(bytes: &[u8], most: usize) -> Option<Vec<Part>> {
    let u16_at =
        |at: usize| Some(usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
    let u32_at =
        |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
    let mut parts = Vec::new();
    let mut at = 0usize;
    // Sizes may stand behind the data only; then the central directory knows them.
    let end = (0..bytes.len().min(65_600))
        .map(|back| bytes.len() - back)
        .find(|&at| bytes.get(at..at + 4) == Some(b"PK\x05\x06"))?;
    let mut entry = u32_at(end + 16)?;
    while bytes.get(entry..entry.checked_add(4)?) == Some(b"PK\x01\x02") && parts.len() < most {
        let (method, size) = (u16_at(entry + 10)?, u32_at(entry + 20)?);
        let (name, extra, comment) =
            (u16_at(entry + 28)?, u16_at(entry + 30)?, u16_at(entry + 32)?);
        let local = u32_at(entry + 42)?;
        let text = bytes.get(entry + 46..entry + 46 + name)?;
        let from = local
            .checked_add(30)?
            .checked_add(u16_at(local.checked_add(26)?)?)?
            .checked_add(u16_at(local + 28)?)?;
        let to = from.checked_add(size)?;
        if size > 0 && from >= at && to <= bytes.len() {
            match method {
                0 => parts.push(Part::member(from, to, text)),
                8 => parts
                    .push(Part { name: text.to_vec(), ..Part::stream(from, to, Format::Deflate) }),
                _ => {}
            }
            at = to;
        }
        entry += 46 + name + extra + comment;
    }
    Some(parts)
}

/// PNG with all its image data in one chunk: zlib's two bytes, then deflate.
fn png(bytes: &[u8]) -> Option<Vec<Part>> {
    let mut at = 8usize;
    let mut parts = Vec::new();
    while let Some(header) = bytes.get(at..at + 8) {
        let length = u32::from_be_bytes(header[..4].try_into().ok()?) as usize;
        let to = (at + 8).checked_add(length)?;
        if to > bytes.len() {
            break;
        }
        if &header[4..] == b"IDAT" && length > 6 {
            parts.push(Part::stream(at + 10, to, Format::Deflate));
        }
        at = to.checked_add(4)?;
    }
    (parts.len() == 1).then_some(parts)
}

/// A bzImage (Documentation/arch/x86/boot.rst): its payload.
fn kernel(bytes: &[u8]) -> Option<Vec<Part>> {
    let number =
        |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
    let setup = (usize::from(*bytes.get(0x1f1)?) + 1) * 512;
    let from = setup.checked_add(number(0x248)?)?;
    let to = from.checked_add(number(0x24c)?)?;
    (to <= bytes.len()).then(|| vec![Part::member(from, to, b"payload")])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 3];
        out.extend(miniz_oxide::deflate::compress_to_vec(bytes, 9));
        out.extend_from_slice(&[0; 8]);
        out
    }

    fn covers(node: &Node, length: usize) {
        if !node.is_plain() {
            assert_eq!(node.pieces.iter().map(Piece::length).sum::<usize>(), length);
        }
        for piece in &node.pieces {
            match piece {
                Piece::Member { node, length, .. } => covers(node, *length),
                Piece::Stream { node, plain, .. } => covers(node, plain.len()),
                Piece::Frame { .. } => {}
            }
        }
    }

    #[test]
    fn a_bomb_stays_closed() {
        let mut bomb = vec![0u8; 20 << 20];
        for _ in 0..3 {
            bomb = gzip(&bomb);
        }
        let limits = Limits { decoded: 1 << 20, ..Limits::default() };
        let node = walk(&bomb, &limits, (false, false), &|_| false, None);
        covers(&node, bomb.len());
        fn decoded(node: &Node) -> usize {
            node.pieces
                .iter()
                .map(|p| match p {
                    Piece::Stream { plain, node, .. } => plain.len() + decoded(node),
                    Piece::Member { node, .. } => decoded(node),
                    Piece::Frame { .. } => 0,
                })
                .sum()
        }
        assert!(decoded(&node) <= 1 << 20);
    }

    #[test]
    fn broken_headers_are_walked_without_harm() {
        let mut cpio = Vec::new();
        for name in ["a", "TRAILER!!!"] {
            cpio.extend_from_slice(
                format!(
                    "070701{}{:08x}{}{:08x}{:08x}",
                    "0".repeat(48),
                    300,
                    "0".repeat(32),
                    name.len() + 1,
                    0
                )
                .as_bytes(),
            );
            cpio.extend_from_slice(name.as_bytes());
            cpio.push(0);
            cpio.resize(cpio.len().next_multiple_of(4) + 300, 7);
        }
        let mut kernel = vec![0u8; 4096];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        let mut zip = b"PK\x03\x04".to_vec();
        zip.resize(200, 1);
        zip.extend_from_slice(b"PK\x05\x06");
        zip.resize(240, 0xff);
        let mut tar = vec![b'0'; 2048];
        tar[257..262].copy_from_slice(b"ustar");
        let png = b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIDAT12345678".to_vec();
        let ar =
            b"!<arch>\nname            0           0     0     100644  99999999  `\n1234".to_vec();
        for seed in [cpio, kernel, zip, tar, png, ar, gzip(b"hello hello hello hello")] {
            for at in 0..seed.len().min(700) {
                for value in [0, 1, 0x7f, 0xff, b'9'] {
                    let mut bytes = seed.clone();
                    bytes[at] = value;
                    covers(
                        &walk(&bytes, &Limits::default(), (false, false), &|_| false, None),
                        bytes.len(),
                    );
                    let cut = &bytes[..at];
                    covers(
                        &walk(cut, &Limits::default(), (false, false), &|_| false, None),
                        cut.len(),
                    );
                }
            }
        }
    }
}
