//! Which proxy a request goes through. What the environment says is read by the programs;
//! here it is data.

use serde::{Deserialize, Serialize};
use url::Url;

/// The proxies of a device, and what is reached without one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxies {
    /// For `http:`, the URL of a proxy.
    pub http: Option<String>,
    /// For `https:`, the URL of a proxy: it is asked to `CONNECT`.
    pub https: Option<String>,
    /// Hosts that are reached directly: `example.org` (and all below it), `.example.org`,
    /// `10.0.0.1`, `[::1]`, each with a `:port` if only that one is meant; `*` is all.
    pub direct: Vec<String>,
}

impl Proxies {
    /// One proxy for everything but the hosts in `direct`.
    pub fn all(proxy: &str, direct: Vec<String>) -> Self {
        Self { http: Some(proxy.to_owned()), https: Some(proxy.to_owned()), direct }
    }

    /// Checks that each is one that can be used.
    ///
    /// # Errors
    /// A text that says which, and what is expected.
    pub fn check(&self) -> Result<(), String> {
        self.http.iter().chain(&self.https).try_for_each(|text| Proxy::parse(text).map(drop))
    }

    pub(super) fn of(&self, url: &Url) -> Option<Proxy> {
        let text = if url.scheme() == "https" { &self.https } else { &self.http };
        let text = text.as_deref().filter(|text| !text.is_empty())?;
        if self.direct.iter().any(|entry| covers(entry, url)) {
            return None;
        }
        // Checked when the transport was made.
        Proxy::parse(text).ok()
    }
}

/// Whether an entry of `no_proxy` means the host of this URL.
fn covers(entry: &str, url: &Url) -> bool {
    let entry = entry.trim();
    if entry == "*" {
        return true;
    }
    let (host, port) = match entry.rsplit_once(':') {
        // `::1` is an address, `[::1]:80` and `host:80` have a port.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse::<u16>().ok())
        }
        _ => (entry, None),
    };
    let host = host.trim_start_matches('.').trim_matches(['[', ']']).to_ascii_lowercase();
    let here = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let below = || here.strip_suffix(host.as_str()).is_some_and(|rest| rest.ends_with('.'));
    !host.is_empty()
        && (here == host || below())
        && port.is_none_or(|port| url.port_or_known_default() == Some(port))
}

/// One proxy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Proxy {
    pub(super) host: String,
    pub(super) port: u16,
    /// The value of `proxy-authorization`.
    pub(super) login: Option<String>,
}

impl Proxy {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let expected = "http://host:port or http://user:password@host:port is expected";
        let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url = Url::parse(&whole).map_err(|error| format!("proxy {text:?}: {error}"))?;
        let host = url.host_str().unwrap_or_default();
        if url.scheme() != "http" || host.is_empty() {
            return Err(format!("the proxy {text:?} cannot be used: {expected}"));
        }
        let login = (!url.username().is_empty()).then(|| {
            let decode = |text: &str| percent_decode(text);
            let mut login = decode(url.username());
            login.push(b':');
            login.extend(decode(url.password().unwrap_or_default()));
            format!("Basic {}", base64(&login))
        });
        // A proxy without a port is where curl and apt expect it.
        let port = url.port().unwrap_or(if text.ends_with(":80") { 80 } else { 3128 });
        Ok(Self { host: host.to_owned(), port, login })
    }
}

impl std::fmt::Display for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

fn percent_decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = |at: usize| after.get(at).and_then(|&digit| (digit as char).to_digit(16));
        match (byte, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    bytes
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte))
            << (8 * (3 - group.len()));
        for at in 0..4 {
            text.push(match at <= group.len() {
                true => DIGITS[(bits >> (18 - 6 * at) & 63) as usize] as char,
                false => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_the_standard_has_it() {
        // RFC 4648, section 10.
        let shown = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|t| base64(t.as_bytes()));
        let expected = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn proxies_are_read_or_refused() {
        let proxy = Proxy::parse("http://a%40b:c@proxy.example:8080/").unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.example", 8080));
        assert_eq!(proxy.login.as_deref(), Some("Basic YUBiOmM="));
        assert_eq!(Proxy::parse("10.0.0.1").unwrap().to_string(), "10.0.0.1:3128");
        assert_eq!(Proxy::parse("http://[fd00::1]:3128").unwrap().host, "[fd00::1]");
        assert_eq!(Proxy::parse("http://p:80").unwrap().port, 80);
        for bad in ["socks5://p:1080", "https://p:443", "http://", "http://p:x"] {
            assert!(Proxy::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_that_are_reached_directly() {
        let url = |text| Url::parse(text).unwrap();
        let covered = |entry: &str, text| covers(entry, &url(text));
        assert!(covered("example.org", "http://example.org/"));
        assert!(covered("example.org", "http://a.example.org/"));
        assert!(covered(".EXAMPLE.org", "http://a.example.org/"));
        assert!(!covered("example.org", "http://badexample.org/"));
        assert!(covered("example.org:8080", "http://example.org:8080/"));
        assert!(!covered("example.org:8080", "http://example.org/"));
        assert!(covered("10.0.0.1", "http://10.0.0.1:99/"));
        assert!(covered("::1", "http://[::1]/") && covered("[::1]:80", "http://[::1]/"));
        assert!(covered("*", "http://x/") && !covered("", "http://x/"));
        let proxies = Proxies::all("p:1", vec!["local".into()]);
        assert!(proxies.of(&url("http://local/")).is_none());
        assert_eq!(proxies.of(&url("https://far/")).unwrap().to_string(), "p:1");
    }
}
