//! `multipart/byteranges` (RFC 9110, section 14.6): several parts of a file in one answer.
//!
//! ```text
//! CRLF? "--" boundary CRLF (header CRLF)* CRLF <bytes of the part>
//! CRLF  "--" boundary CRLF ...
//! CRLF  "--" boundary "--"
//! ```
//!
//! Read strictly, because nothing but servers writes it: each part says its range, within
//! what was asked for, ascending; lines, headers and the number of parts are bounded.
//! How the bytes arrive is the caller's: see [`Chunks`].

use std::ops::Range;

use super::super::TransportError;
use super::answer::content_range;

/// The longest line that is read, in bytes, and the most header lines of a part.
const MAX_LINE: usize = 1024;
const MAX_HEADERS: usize = 16;

/// Bytes as they arrive.
pub(super) trait Chunks {
    /// What is here of the bytes, waiting for some if there are none; empty at the end.
    fn fill(&mut self) -> Result<&[u8], TransportError>;
    /// So many of them were taken.
    fn consume(&mut self, count: usize);
}

/// An answer under way.
pub(super) struct Multipart<C> {
    chunks: C,
    delimiter: String,
    /// The ranges asked for; each part is made of some of them.
    asked: Vec<Range<u64>>,
    /// The length of the whole file, once a part said so.
    pub(super) total: Option<u64>,
    /// Bytes of the present part that are to come.
    left: u64,
    /// Where the present part ends in the file.
    reached: u64,
    parts: usize,
    ended: bool,
}

/// The boundary that a `content-type` names, if it is of this kind.
pub(super) fn boundary(content_type: &str) -> Option<Result<String, TransportError>> {
    let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    if !kind.trim().eq_ignore_ascii_case("multipart/byteranges") {
        return None;
    }
    let found = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
    });
    // RFC 2046, 5.1.1.
    let good = |text: &&str| {
        (1..=70).contains(&text.len()) && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
    };
    Some(match found.filter(good) {
        Some(boundary) => Ok(boundary.to_owned()),
        None => Err(invalid("its parts have no boundary")),
    })
}

fn invalid(reason: &str) -> TransportError {
    TransportError::Protocol { reason: reason.to_owned() }
}

impl<C: Chunks> Multipart<C> {
    pub(super) fn new(chunks: C, boundary: &str, asked: Vec<Range<u64>>) -> Self {
        let delimiter = format!("--{boundary}");
        Self { chunks, delimiter, asked, total: None, left: 0, reached: 0, parts: 0, ended: false }
    }

    /// The next bytes of the present part; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError> {
        if self.left == 0 {
            return Ok(0);
        }
        let here = self.chunks.fill()?;
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = here.len().min(room);
        buffer[..count].copy_from_slice(&here[..count]);
        self.chunks.consume(count);
        self.left -= count as u64;
        Ok(count)
    }

    /// Goes on to the next part; none at the closing boundary.
    pub(super) fn next_part(&mut self) -> Result<Option<Range<u64>>, TransportError> {
        if self.ended || self.left > 0 {
            return Ok(None);
        }
        let mut line = self.line()?;
        // The line end before a boundary belongs to it; before the first there may be none.
        if line.is_empty() {
            line = self.line()?;
        } else if self.parts > 0 {
            return Err(invalid("a part is longer than it says"));
        }
        match line.strip_prefix(self.delimiter.as_str()) {
            Some("") => {}
            Some("--") => {
                self.ended = true;
                return Ok(None);
            }
            _ => return Err(invalid("a boundary is missing between two parts")),
        }
        let mut range = None;
        for _ in 0..=MAX_HEADERS {
            let line = self.line()?;
            if line.is_empty() {
                return self.begin(range).map(Some);
            }
            let (name, value) =
                line.split_once(':').ok_or_else(|| invalid("a part's header is not one"))?;
            if name.trim().eq_ignore_ascii_case("content-range") {
                if range.is_some() {
                    return Err(invalid("a part says its range twice"));
                }
                range = Some(content_range(value.trim()).ok_or(TransportError::WrongRange)?);
            }
        }
        Err(invalid("a part has too many headers"))
    }

    fn begin(
        &mut self,
        range: Option<(u64, u64, Option<u64>)>,
    ) -> Result<Range<u64>, TransportError> {
        let (start, end, total) = range.ok_or_else(|| invalid("a part does not say its range"))?;
        self.parts += 1;
        if self.parts > self.asked.len() {
            return Err(invalid("there are more parts than were asked for"));
        }
        if self.parts > 1 && total != self.total {
            return Err(invalid("its parts disagree about the file's length"));
        }
        self.total = total;
        // A server may put neighbours together; it may not send what nobody wants.
        let fits = self.asked.iter().any(|asked| asked.start == start)
            && self.asked.iter().any(|asked| asked.end == end);
        if !fits || start < self.reached || end <= start {
            return Err(TransportError::WrongRange);
        }
        self.left = end - start;
        self.reached = end;
        Ok(start..end)
    }

    /// A line without its end.
    fn line(&mut self) -> Result<String, TransportError> {
        let mut line = Vec::new();
        loop {
            let here = self.chunks.fill()?;
            if here.is_empty() && self.parts == 0 {
                return Err(invalid("it has no parts"));
            }
            if here.is_empty() {
                return Err(TransportError::Unreachable {
                    reason: "the connection was cut between two parts".into(),
                });
            }
            let end = here.iter().position(|&byte| byte == b'\n');
            let count = end.map_or(here.len(), |end| end + 1);
            line.extend_from_slice(&here[..count.min(MAX_LINE + 2)]);
            self.chunks.consume(count);
            if line.len() > MAX_LINE {
                return Err(invalid("a line between two parts is too long"));
            }
            if end.is_some() {
                let text = line.strip_suffix(b"\r\n");
                let text = text.ok_or_else(|| invalid("a line between two parts ends wrong"))?;
                return String::from_utf8(text.to_vec())
                    .map_err(|_| invalid("a line between two parts is not text"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes in steps of so many.
    struct Steps<'a>(&'a [u8], usize);

    impl Chunks for Steps<'_> {
        fn fill(&mut self) -> Result<&[u8], TransportError> {
            Ok(&self.0[..self.0.len().min(self.1)])
        }
        fn consume(&mut self, count: usize) {
            self.0 = &self.0[count..];
        }
    }

    type Parts = Vec<(u64, Vec<u8>)>;

    fn parts(text: &[u8], step: usize) -> Result<Parts, TransportError> {
        let asked = vec![0..4, 10..13, 20..21];
        let mut multipart = Multipart::new(Steps(text, step), "b", asked);
        let mut parts = Vec::new();
        while let Some(range) = multipart.next_part()? {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            let mut at = 0;
            while at < bytes.len() {
                match multipart.read(&mut bytes[at..])? {
                    0 => return Err(invalid("cut")),
                    count => at += count,
                }
            }
            parts.push((range.start, bytes));
        }
        Ok(parts)
    }

    const GOOD: &str = "\r\n--b\r\nContent-Type: a/b\r\nContent-Range: bytes 0-3/30\r\n\r\n\
        abc\n\r\n--b\r\ncontent-range:bytes 10-12/30\r\n\r\n---\r\n--b--\r\n";

    #[test]
    fn parts_are_read_however_they_arrive() {
        for step in [1, 2, 3, 7, 1000] {
            let got = parts(GOOD.as_bytes(), step).unwrap();
            assert_eq!(got, [(0, b"abc\n".to_vec()), (10, b"---".to_vec())]);
        }
        // Without the first line end; two ranges put together.
        let together = "--b\r\nContent-Range: bytes 10-20/30\r\n\r\n0123456789a\r\n--b--\r\n";
        assert_eq!(parts(together.as_bytes(), 9).unwrap().len(), 1);
    }

    #[test]
    fn what_is_not_as_it_should_be_is_refused() {
        let part = |range: &str| {
            format!("--b\r\nContent-Range: bytes {range}\r\n\r\nabcd\r\n--b--\r\n").into_bytes()
        };
        assert!(parts(&part("0-3/30"), 5).is_ok());
        let long = format!("--b\r\nX: {}\r\n", "y".repeat(5000));
        let many = format!("--b\r\n{}", "X: y\r\n".repeat(40));
        let repeated = "--b\r\nContent-Range: bytes 0-3/30\r\n\r\nabcd\r\n".repeat(2);
        let other = GOOD.replace("12/30", "12/31");
        for bad in [
            &part("1-4/30"),
            &part("0-4/30"),
            &part("3-0/30"),
            &part("0-18446744073709551615/*"),
            &part("x"),
            long.as_bytes(),
            many.as_bytes(),
            repeated.as_bytes(),
            other.as_bytes(),
            b"",
            b"--b",
            b"--c\r\n\r\n",
            b"--b\r\n\r\n",
            b"--b\nContent-Range: bytes 0-3/30\n\nabcd\n--b--\n",
            b"--b\r\nContent-Range: bytes 0-3/30\r\n\r\nabcdefgh\r\n--b--\r\n",
            b"--b\r\nContent-Range: bytes 0-3/30\r\n\r\nab",
        ] {
            let shown = String::from_utf8_lossy(bad).into_owned();
            assert!(parts(bad, 7).is_err(), "{shown}");
        }
    }

    #[test]
    fn boundaries() {
        let of = |text| boundary(text).map(|found| found.ok());
        assert_eq!(of("multipart/byteranges; boundary=x1"), Some(Some("x1".into())));
        assert_eq!(of("Multipart/Byteranges; a=b; Boundary=\"x 1\""), Some(Some("x 1".into())));
        assert_eq!(of("application/octet-stream"), None);
        for bad in ["multipart/byteranges", "multipart/byteranges; boundary="] {
            assert_eq!(of(bad), Some(None), "{bad}");
        }
        assert_eq!(of(&format!("multipart/byteranges; boundary={}", "x".repeat(71))), Some(None));
    }

    #[test]
    fn no_bytes_make_it_panic_or_give_what_was_not_asked_for() {
        const LINES: &str =
            "((--b(--)?|Content-Range: bytes [0-9]{1,2}-[0-9]{1,2}/30|X: y|abc)?\r\n){0,12}";
        proptest::proptest!(|(text in LINES, step in 1_usize..9)| {
            if let Ok(parts) = parts(text.as_bytes(), step) {
                for (start, bytes) in parts {
                    proptest::prop_assert!([0, 10, 20].contains(&start) && bytes.len() <= 21);
                }
            }
        });
    }
}
