//! A repository on any HTTP server, by HTTP/2 where the server has it and HTTP/1.1 else.
//!
//! Integrity never rests on the server or on TLS: every byte is checked against signed
//! metadata. So this cares for the link alone: every wait has an end, ranges are asked
//! for and believed only when the answer says the same ranges, a part is continued only
//! from the same file (`If-Range` with the ETag seen first), and a web page that a
//! network's log-in portal puts in the way is recognised.
//!
//! | module | holds |
//! | --- | --- |
//! | [`client`] | the thread that holds connections: requests, redirects, bodies |
//! | [`connect`] | names, addresses, proxies, TLS |
//! | [`answer`] | what an answer's head means |
//! | [`multipart`] | several ranges in one answer |
//! | [`proxy`] | which proxy, if any |

mod answer;
mod client;
mod connect;
mod multipart;
mod proxy;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, ETAG, HeaderValue, IF_RANGE, RANGE, USER_AGENT};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use url::Url;
use varve_sys::task::Cancel;

use super::{Body, ReadBody, Transport, TransportError};
pub(crate) use answer::MAX_RETRY_AFTER;
use answer::{Shape, judge};
pub(crate) use client::MAX_REDIRECTS;
use client::{Client, Head, Stream};
use multipart::{Chunks, Multipart};
pub use proxy::Proxies;

/// The most ranges of one request: all common servers take as many.
const MAX_RANGES: usize = 64;
/// A whole file is taken where a part was asked for, if no more than this is for nothing.
const CHEAP: u64 = 64 * 1024;
/// A gap that is asked for with its neighbours, where each range is a request of its own.
const GAP: u64 = 32 * 1024;

/// How to reach servers, and how patient to be with them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HttpOptions {
    /// The longest wait for a name, a connection and TLS.
    pub connect: Duration,
    /// The longest wait for the next byte.
    pub stall: Duration,
    /// Which proxies to go through.
    pub proxies: Proxies,
    /// Certificates in PEM form that are believed beside those of the web.
    pub certificates: Vec<u8>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            proxies: Proxies::default(),
            certificates: Vec::new(),
        }
    }
}

/// Gives the files of a repository below a URL: in a worker.
pub(crate) struct HttpRepository {
    name: String,
    base: String,
    client: Client,
    /// The ETag under which each file was first seen, so that a part is never joined to
    /// another version's part; none where it changed from answer to answer.
    tags: Mutex<HashMap<String, Option<HeaderValue>>>,
    /// This server takes one range at a time.
    one_range: AtomicBool,
}

impl HttpRepository {
    /// The repository below `url` (`http:` or `https:`).
    ///
    /// # Errors
    /// When the URL, a proxy's URL or a certificate is not valid; the text says which.
    pub(crate) fn new(url: &str, options: &HttpOptions) -> Result<Self, String> {
        let parsed = Url::parse(url).map_err(|error| format!("{url}: {error}"))?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.query().is_some() {
            return Err(format!("{url}: an http or https URL without a query is expected"));
        }
        options.proxies.check()?;
        let tls = tls(&options.certificates)?;
        let mut base = parsed.to_string();
        if !base.ends_with('/') {
            base.push('/');
        }
        Ok(Self {
            name: url.to_owned(),
            base,
            client: Client::new(tls, options.proxies.clone(), options.connect, options.stall),
            tags: Mutex::default(),
            one_range: AtomicBool::new(false),
        })
    }

    fn tags(&self) -> std::sync::MutexGuard<'_, HashMap<String, Option<HeaderValue>>> {
        self.tags.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember_tag(&self, path: &str, headers: &HeaderMap) {
        let Some(tag) = headers.get(ETAG) else { return };
        // A weak tag must not be used in If-Range (RFC 9110, 13.1.5).
        if !tag.as_bytes().starts_with(b"W/") {
            self.tags().entry(path.to_owned()).or_insert_with(|| Some(tag.clone()));
        }
    }

    /// The ranges of one request.
    fn choose(&self, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        if !self.one_range.load(Ordering::Relaxed) {
            return ranges.iter().take(MAX_RANGES).cloned().collect();
        }
        let mut ranges = ranges.iter().cloned();
        let Some(mut first) = ranges.next() else { return Vec::new() };
        for next in ranges {
            if next.start - first.end > GAP {
                break;
            }
            first.end = next.end;
        }
        vec![first]
    }

    fn ask(
        &self,
        path: &str,
        ranges: &[Range<u64>],
        tag: Option<&HeaderValue>,
        cancel: &Cancel,
    ) -> Result<(Head, Stream), TransportError> {
        let mut headers = HeaderMap::new();
        let agent = concat!("varve/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        // A body must arrive as it is stored: ranges are of those bytes.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if !ranges.is_empty() {
            let list: Vec<_> =
                ranges.iter().map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
            if let Ok(list) = HeaderValue::try_from(format!("bytes={}", list.join(","))) {
                headers.insert(RANGE, list);
            }
            if let Some(tag) = tag {
                headers.insert(IF_RANGE, tag.clone());
            }
        }
        let url = Url::parse(&format!("{}{}", self.base, escape(path)))
            .map_err(|error| TransportError::Protocol { reason: error.to_string() })?;
        self.client.get(url, headers, cancel)
    }
}

impl Transport for HttpRepository {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(
        &self,
        path: &str,
        ranges: &[Range<u64>],
        cancel: &Cancel,
    ) -> Result<Body, TransportError> {
        loop {
            let asked = self.choose(ranges);
            let tag = self.tags().get(path).cloned().flatten();
            let (head, stream) = self.ask(path, &asked, tag.as_ref(), cancel)?;
            let shape = match judge(head.status, &head.headers, &asked) {
                // Some servers refuse several ranges, with one status or another.
                Err(
                    TransportError::Refused { status: 400 | 416 }
                    | TransportError::WrongRange
                    | TransportError::WrongLength { .. }
                    | TransportError::Server { status: 500 | 501, .. },
                ) if asked.len() > 1 => {
                    self.one_range.store(true, Ordering::Relaxed);
                    continue;
                }
                Err(TransportError::Captive { .. }) => {
                    return Err(captive(&head));
                }
                other => other?,
            };
            if let (Shape::Whole(total), false) = (&shape, asked.is_empty())
                && !is_cheap(&asked, *total)
            {
                let other = head.headers.get(ETAG) != tag.as_ref();
                if tag.is_some() && other {
                    // Another file than before, or another server of the same name: what
                    // comes is checked in any case, so it is asked for as it is.
                    self.tags().insert(path.to_owned(), None);
                    continue;
                }
                if asked.len() > 1 {
                    self.one_range.store(true, Ordering::Relaxed);
                    continue;
                }
            }
            self.remember_tag(path, &head.headers);
            let several = asked.len() > 1;
            match body(shape, stream, asked, &head) {
                // Parts in another order than asked for, or in a form of its own.
                Err(TransportError::WrongRange | TransportError::Protocol { .. }) if several => {
                    self.one_range.store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
    }
}

/// Whether a whole file brings hardly more than the ranges that were asked for.
fn is_cheap(asked: &[Range<u64>], total: Option<u64>) -> bool {
    let wanted: u64 = asked.iter().map(|range| range.end - range.start).sum();
    let end = asked.last().map_or(0, |range| range.end);
    total.is_some_and(|total| total.max(end) - wanted <= CHEAP)
}

fn captive(head: &Head) -> TransportError {
    TransportError::Captive { page: head.moved_to.as_ref().map(page) }
}

/// A log-in page's address without what it says about this device.
fn page(url: &Url) -> String {
    url[..url::Position::AfterPath].to_owned()
}

fn body(
    shape: Shape,
    mut stream: Stream,
    asked: Vec<Range<u64>>,
    head: &Head,
) -> Result<Body, TransportError> {
    match shape {
        Shape::Whole(total) => {
            // A page may call itself anything.
            if total != Some(0) && answer::is_page(stream.fill()?) {
                return Err(captive(head));
            }
            Ok(Body::new(0, total, total, Box::new(Plain { stream, left: total })))
        }
        Shape::Part(range, total) => {
            let left = Some(range.end - range.start);
            let reader = Box::new(Plain { stream, left });
            Ok(Body::new(range.start, Some(range.end), total, reader))
        }
        Shape::Parts(boundary) => {
            let first = asked.first().map_or(0, |range| range.start);
            let mut parts = Multipart::new(stream, &boundary, asked);
            let range = parts.next_part()?.filter(|range| range.start == first);
            let range = range.ok_or(TransportError::WrongRange)?;
            let total = parts.total;
            Ok(Body::new(range.start, Some(range.end), total, Box::new(parts)))
        }
    }
}

/// The bytes of an answer that has one part.
struct Plain {
    stream: Stream,
    /// What is left of the length that the server announced.
    left: Option<u64>,
}

impl ReadBody for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError> {
        let here = self.stream.fill()?;
        let count = here.len().min(buffer.len());
        buffer[..count].copy_from_slice(&here[..count]);
        self.stream.consume(count);
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(count as u64);
            if *left == 0 && count > 0 {
                self.stream.finish();
            }
        }
        Ok(count)
    }
}

impl ReadBody for Multipart<Stream> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError> {
        self.read(buffer)
    }

    fn next_part(&mut self) -> Result<Option<Range<u64>>, TransportError> {
        self.next_part()
    }
}

fn tls(certificates: &[u8]) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    for certificate in CertificateDer::pem_slice_iter(certificates) {
        let certificate = certificate.map_err(|error| format!("certificates: {error}"))?;
        roots.add(certificate).map_err(|error| format!("certificates: {error}"))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A path as part of a URL: names in a repository hold `A-Z a-z 0-9 . _ + ~ -` alone,
/// and `+` is the one that some servers take for a space.
fn escape(path: &str) -> String {
    path.replace('+', "%2B")
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "one range is a list of ranges too")]
mod tests {
    use super::*;

    #[test]
    fn urls_and_proxies_that_cannot_be_used_are_refused() {
        for bad in ["ftp://x/", "http://x/?a=b", "not a url"] {
            assert!(HttpRepository::new(bad, &HttpOptions::default()).is_err(), "{bad}");
        }
        let proxies = Proxies::all("socks5://p", Vec::new());
        let options = HttpOptions { proxies, ..HttpOptions::default() };
        assert!(HttpRepository::new("http://x/", &options).is_err());
        let certificates = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let options = HttpOptions { certificates: certificates.to_vec(), ..Default::default() };
        assert!(HttpRepository::new("http://x/", &options).is_err());
    }

    #[test]
    fn where_each_range_is_a_request_near_ones_are_put_together() {
        let transport = HttpRepository::new("http://x/", &HttpOptions::default()).unwrap();
        let ranges = [0..10, 20..30, 100_000..100_010];
        assert_eq!(transport.choose(&ranges), ranges);
        transport.one_range.store(true, Ordering::Relaxed);
        assert_eq!(transport.choose(&ranges), [0..30]);
        assert!(transport.choose(&[]).is_empty());
    }

    #[test]
    fn a_whole_file_is_taken_for_its_parts_when_that_is_cheap() {
        assert!(is_cheap(&[1000..2000, 3000..4000], Some(5000)));
        assert!(!is_cheap(&[1000..2000], Some(1 << 20)));
        assert!(!is_cheap(&[1000..2000], None));
    }
}
