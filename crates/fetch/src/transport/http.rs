//! A repository on any HTTP server.
//!
//! Integrity never rests on the server or on TLS: every byte is checked against signed
//! metadata. So this cares for the link alone: every wait has an end, ranges are asked
//! for and believed only when the answer says the same range, a part is continued only
//! from the same file (`If-Range` with the ETag seen first), and a web page that a
//! network's log-in portal puts in the way is recognised.

use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ureq::config::Config;
use ureq::tls::TlsConfig;
use ureq::{Agent, BodyReader, http};

use super::{Body, ReadBody, Transport, TransportError};

/// How patient to be with a server.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// The longest wait for a name and a connection.
    pub connect: Duration,
    /// The longest wait for the next byte.
    pub stall: Duration,
    /// A proxy's URL; without one, connections are direct.
    pub proxy: Option<String>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self { connect: Duration::from_secs(15), stall: Duration::from_secs(30), proxy: None }
    }
}

/// Gives the files of a repository below a URL.
pub struct HttpTransport {
    name: String,
    base: String,
    agent: Agent,
    stall: Duration,
    /// The ETag under which each file was first seen, so that a part is never joined to
    /// another version's part.
    tags: Mutex<HashMap<String, String>>,
}

impl HttpTransport {
    /// The repository below `url` (`http:` or `https:`).
    ///
    /// # Errors
    /// When the URL or the proxy's URL is not valid; the text says which.
    pub fn new(url: &str, options: &HttpOptions) -> Result<Self, String> {
        let parsed = url::Url::parse(url).map_err(|error| format!("{url}: {error}"))?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.query().is_some() {
            return Err(format!("{url}: an http or https URL without a query is expected"));
        }
        let proxy = match &options.proxy {
            Some(text) => {
                Some(ureq::Proxy::new(text).map_err(|error| format!("proxy {text}: {error}"))?)
            }
            None => None,
        };
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(
                rustls::crypto::aws_lc_rs::default_provider(),
            ))
            .build();
        let config: Config = Agent::config_builder()
            .http_status_as_error(false)
            .tls_config(tls)
            .proxy(proxy)
            .user_agent(concat!("varve/", env!("CARGO_PKG_VERSION")))
            // A body must arrive as it is stored: ranges are of those bytes.
            .accept_encoding("identity")
            .max_redirects(5)
            .timeout_resolve(Some(options.connect))
            .timeout_connect(Some(options.connect))
            .timeout_send_request(Some(options.stall))
            .timeout_recv_response(Some(options.stall))
            .timeout_per_read(Some(options.stall))
            .timeout_per_write(Some(options.stall))
            .max_response_header_size(32 * 1024)
            .input_buffer_size(128 * 1024)
            .output_buffer_size(8 * 1024)
            .max_idle_connections_per_host(2)
            .build();
        let mut base = parsed.to_string();
        if !base.ends_with('/') {
            base.push('/');
        }
        Ok(Self {
            name: url.to_owned(),
            base,
            agent: Agent::new_with_config(config),
            stall: options.stall,
            tags: Mutex::default(),
        })
    }

    fn tag(&self, path: &str) -> Option<String> {
        self.tags.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    fn remember_tag(&self, path: &str, headers: &http::HeaderMap) {
        let Some(tag) = header(headers, "etag") else { return };
        // A weak tag must not be used in If-Range (RFC 9110, 13.1.5).
        if !tag.starts_with("W/") {
            let mut tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
            tags.insert(path.to_owned(), tag.to_owned());
        }
    }
}

impl Transport for HttpTransport {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, path: &str, range: Option<Range<u64>>) -> Result<Body, TransportError> {
        let mut request = self.agent.get(format!("{}{}", self.base, escape(path)));
        if let Some(range) = &range {
            request = request.header("range", format!("bytes={}-{}", range.start, range.end - 1));
            if let Some(tag) = self.tag(path) {
                request = request.header("if-range", tag);
            }
        }
        let response = request.call().map_err(|error| failed(error, self.stall))?;
        let (head, body) = response.into_parts();
        if header(&head.headers, "content-type").is_some_and(|kind| kind.starts_with("text/html"))
            && head.status.is_success()
        {
            return Err(TransportError::WebPage);
        }
        let length = header(&head.headers, "content-length").and_then(|text| text.parse().ok());
        let (start, end, total) = match (head.status.as_u16(), &range) {
            (200, _) => (0, length, length),
            (206, Some(asked)) => {
                let (first, after, total) = header(&head.headers, "content-range")
                    .and_then(content_range)
                    .ok_or(TransportError::WrongRange)?;
                if first != asked.start || after > asked.end || after <= first {
                    return Err(TransportError::WrongRange);
                }
                if length.is_some_and(|length: u64| length != after - first) {
                    return Err(TransportError::WrongRange);
                }
                // A file that ends inside the range is shorter than the metadata says.
                if after < asked.end && total == Some(after) {
                    return Err(TransportError::WrongLength { expected: asked.end, got: after });
                }
                (first, Some(after), total)
            }
            (404 | 410, _) => return Err(TransportError::Missing),
            (416, Some(asked)) => {
                let got = header(&head.headers, "content-range")
                    .and_then(|text| text.strip_prefix("bytes */")?.parse().ok())
                    .unwrap_or(0);
                return Err(TransportError::WrongLength { expected: asked.end, got });
            }
            (429, _) => return Err(TransportError::Server { status: 429 }),
            (status @ 400..=499, _) => return Err(TransportError::Refused { status }),
            (status @ 500.., _) => return Err(TransportError::Server { status }),
            (status, _) => {
                return Err(TransportError::Protocol { reason: format!("HTTP status {status}") });
            }
        };
        self.remember_tag(path, &head.headers);
        let reader = body.into_with_config().limit(u64::MAX).reader();
        let body = HttpBody { reader, left: length, stall: self.stall };
        Ok(Body::new(start, end, total, Box::new(body)))
    }

    fn interrupt(&self) {
        self.agent.clone().shutdown();
    }
}

struct HttpBody {
    reader: BodyReader<'static>,
    /// What is left of the length that the server announced.
    left: Option<u64>,
    stall: Duration,
}

impl ReadBody for HttpBody {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError> {
        loop {
            match self.reader.read(buffer) {
                Ok(count) => {
                    if let Some(left) = &mut self.left {
                        *left = left.saturating_sub(count as u64);
                        // Reading on at the end does not wait: it lets the connection
                        // go back to the pool, for the next range to use.
                        if *left == 0 && count > 0 {
                            let _ = self.reader.read(&mut [0]);
                        }
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error, self.stall)),
            }
        }
    }
}

/// What an error before the body means.
fn failed(error: ureq::Error, stall: Duration) -> TransportError {
    match error {
        ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
            TransportError::Unreachable { reason: "no answer in time".into() }
        }
        ureq::Error::Timeout(_) => TransportError::Stalled { after: stall },
        ureq::Error::HostNotFound => {
            TransportError::Unreachable { reason: "the server's name is not known".into() }
        }
        ureq::Error::Io(error) => broken(error, stall),
        ureq::Error::Rustls(error) => {
            TransportError::Unreachable { reason: format!("TLS: {error}") }
        }
        ureq::Error::ConnectionFailed => {
            TransportError::Unreachable { reason: "the connection failed".into() }
        }
        other => TransportError::Protocol { reason: other.to_string() },
    }
}

/// What an I/O error from the socket (or from the HTTP code above it) means.
fn broken(error: io::Error, stall: Duration) -> TransportError {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            TransportError::Stalled { after: stall }
        }
        io::ErrorKind::UnexpectedEof => {
            TransportError::Unreachable { reason: "the connection was cut".into() }
        }
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::NotConnected
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown => TransportError::Unreachable { reason: error.to_string() },
        _ => match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
            Some(ureq::Error::Timeout(_)) => TransportError::Stalled { after: stall },
            Some(inner) => TransportError::Protocol { reason: inner.to_string() },
            None => TransportError::Unreachable { reason: error.to_string() },
        },
    }
}

fn header<'a>(headers: &'a http::HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `bytes FIRST-LAST/TOTAL` as (first, after the last, total).
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let first = first.trim().parse().ok()?;
    let last: u64 = last.trim().parse().ok()?;
    Some((first, last.checked_add(1)?, total.trim().parse().ok()))
}

/// A path as part of a URL: names in a repository hold `A-Z a-z 0-9 . _ + ~ -` alone,
/// and `+` is the one that some servers take for a space.
fn escape(path: &str) -> String {
    path.replace('+', "%2B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_or_refused() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0, 10, Some(100))));
        assert_eq!(content_range("bytes 5-5/*"), Some((5, 6, None)));
        for bad in ["", "bytes */10", "bytes 1/2", "octets 0-1/2", "bytes 0-18446744073709551615/*"]
        {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn urls_that_cannot_hold_a_repository_are_refused() {
        for bad in ["ftp://x/", "http://x/?a=b", "not a url"] {
            assert!(HttpTransport::new(bad, &HttpOptions::default()).is_err(), "{bad}");
        }
    }
}
