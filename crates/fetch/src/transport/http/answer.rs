//! What an answer means, or the lack of one.

use std::io;
use std::ops::Range;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::super::TransportError;

/// The longest time for which a server is left alone because it asked to be.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Which bytes an answer brings.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The whole file, of this length if the server says so.
    Whole(Option<u64>),
    /// One part: its range, and the length of the file.
    Part(Range<u64>, Option<u64>),
    /// Parts with this boundary between them.
    Parts(String),
}

/// Reads an answer's head. `asked`: the ranges asked for; none for the whole file.
pub(super) fn judge(
    status: StatusCode,
    headers: &HeaderMap,
    asked: &[Range<u64>],
) -> Result<Shape, TransportError> {
    let length: Option<u64> = header(headers, "content-length").and_then(|text| text.parse().ok());
    match status.as_u16() {
        200 | 206 => {}
        404 | 410 => return Err(TransportError::Missing),
        407 => return Err(TransportError::ProxyLogin { proxy: "on the way".into() }),
        // RFC 6585, section 6: said by the network, not by the server.
        511 => return Err(TransportError::Captive { page: None }),
        416 if !asked.is_empty() => {
            let got = header(headers, "content-range")
                .and_then(|text| text.strip_prefix("bytes */")?.parse().ok())
                .unwrap_or(0);
            let expected = asked.last().map_or(0, |range| range.end);
            return Err(TransportError::WrongLength { expected, got });
        }
        status @ (408 | 425 | 429 | 500..) => {
            let retry_after = header(headers, "retry-after").and_then(|text| text.parse().ok());
            let retry_after = retry_after.map(|s| Duration::from_secs(s).min(MAX_RETRY_AFTER));
            return Err(TransportError::Server { status, retry_after });
        }
        status @ 400..=499 => return Err(TransportError::Refused { status }),
        status => {
            return Err(TransportError::Protocol { reason: format!("HTTP status {status}") });
        }
    }
    let kind = header(headers, "content-type").unwrap_or_default().to_ascii_lowercase();
    if kind.starts_with("text/html") || kind.starts_with("application/xhtml") {
        return Err(TransportError::Captive { page: None });
    }
    let encoding = header(headers, "content-encoding").unwrap_or("identity").trim();
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        return Err(TransportError::Transformed { encoding: encoding.to_owned() });
    }
    if status == StatusCode::OK {
        return Ok(Shape::Whole(length));
    }
    let Some(first) = asked.first() else {
        return Err(TransportError::WrongRange);
    };
    let content_type = header(headers, "content-type").unwrap_or_default();
    if let Some(boundary) = super::multipart::boundary(content_type) {
        return boundary.map(Shape::Parts);
    }
    let (start, end, total) = header(headers, "content-range")
        .and_then(content_range)
        .ok_or(TransportError::WrongRange)?;
    // It may be shorter than asked for, or hold several of the ranges and what is between.
    let last = asked.last().map_or(0, |range| range.end);
    if start != first.start || end > last || end <= start {
        return Err(TransportError::WrongRange);
    }
    if length.is_some_and(|length| length != end - start) {
        return Err(TransportError::WrongRange);
    }
    // A file that ends inside the range is shorter than the metadata says.
    if end < first.end && total == Some(end) {
        return Err(TransportError::WrongLength { expected: first.end, got: end });
    }
    Ok(Shape::Part(start..end, total))
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `bytes FIRST-LAST/TOTAL` as (first, after the last, total).
pub(super) fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let first = first.trim().parse().ok()?;
    let last: u64 = last.trim().parse().ok()?;
    Some((first, last.checked_add(1)?, total.trim().parse().ok()))
}

/// No file of a repository begins as a page for people does: they are JSON, packs,
/// indexes and zstd streams.
pub(super) fn is_page(beginning: &[u8]) -> bool {
    let text = beginning.strip_prefix(b"\xef\xbb\xbf").unwrap_or(beginning);
    text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'<')
}

/// What hyper's error means.
pub(super) fn failed(error: hyper::Error) -> TransportError {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = next {
        if let Some(inner) = inner.downcast_ref::<io::Error>() {
            return broken(inner);
        }
        next = inner.source();
    }
    let cut = || TransportError::Unreachable { reason: "the connection was cut".into() };
    if error.is_parse() && error.to_string().contains("too large") {
        return TransportError::Protocol { reason: "its headers are too long".into() };
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return cut();
    }
    if error.is_timeout() {
        return TransportError::Unreachable { reason: "no answer in time".into() };
    }
    let cause = std::error::Error::source(&error).map(|cause| format!(" ({cause})"));
    TransportError::Protocol { reason: format!("{error}{}", cause.unwrap_or_default()) }
}

/// What an I/O error of the connection means.
pub(super) fn broken(error: &io::Error) -> TransportError {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return match tls {
            rustls::Error::InvalidCertificate(reason) => {
                TransportError::Certificate { reason: reason.to_string() }
            }
            other => TransportError::Unreachable { reason: format!("TLS: {other}") },
        };
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            TransportError::Unreachable { reason: "the connection was cut".into() }
        }
        _ => TransportError::Unreachable { reason: error.to_string() },
    }
}

pub(super) fn tls_failed(error: io::Error) -> TransportError {
    broken(&error)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "one range is a list of ranges too")]
mod tests {
    use super::*;

    fn of(status: u16, list: &[(&'static str, &str)], asked: &[Range<u64>]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.insert(*name, value.parse().unwrap());
        }
        match judge(StatusCode::from_u16(status).unwrap(), &headers, asked) {
            Ok(shape) => format!("{shape:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn content_ranges_are_read_or_refused() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0, 10, Some(100))));
        assert_eq!(content_range("bytes 5-5/*"), Some((5, 6, None)));
        for bad in ["", "bytes */10", "bytes 1/2", "octets 0-1/2", "bytes 0-18446744073709551615/*"]
        {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    /// The whole of what a user sees of an answer that is no file.
    #[test]
    fn answers() {
        let one = [10..20_u64];
        let two = [10..20_u64, 30..40];
        let range = |text| [("content-range", text)];
        let mut shown = Vec::new();
        let mut row = |text: String| shown.push(text);
        row(of(200, &[("content-length", "5")], &[]));
        row(of(200, &[("content-type", "text/html; charset=utf-8")], &[]));
        row(of(200, &[("content-encoding", "gzip")], &[]));
        row(of(206, &range("bytes 10-19/50"), &one));
        row(of(206, &range("bytes 10-14/50"), &one));
        row(of(206, &range("bytes 10-39/50"), &two));
        row(of(206, &range("bytes 10-14/15"), &one));
        row(of(206, &range("bytes 9-19/50"), &one));
        row(of(206, &range("bytes 10-20/50"), &one));
        row(of(206, &range("bytes 10-19/50"), &[]));
        row(of(206, &[], &one));
        row(of(206, &[("content-type", "multipart/byteranges; boundary=q")], &two));
        row(of(206, &[("content-range", "bytes 10-19/50"), ("content-length", "9")], &one));
        row(of(416, &range("bytes */15"), &one));
        row(of(404, &[], &[]));
        row(of(403, &[], &[]));
        row(of(407, &[], &[]));
        row(of(429, &[("retry-after", "7")], &[]));
        row(of(503, &[], &[]));
        row(of(511, &[], &[]));
        row(of(304, &[], &[]));
        insta::assert_snapshot!(shown.join("\n"));
    }

    #[test]
    fn pages_are_told_from_files() {
        assert!(is_page(b"<!DOCTYPE html>") && is_page(b"\xef\xbb\xbf \r\n<html>"));
        assert!(!is_page(b"{\"a\": \"<\"}") && !is_page(b"") && !is_page(b"\x28\xb5\x2f\xfd<"));
    }
}
