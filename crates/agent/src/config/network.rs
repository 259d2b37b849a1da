//! The way to the sources.
//!
//! ```toml
//! [network]
//! proxy = "http://proxy.example:3128"   # or "direct"; else what the environment says
//! no-proxy = ["intranet.example"]
//! rate-limit = "500 kB/s"
//! certificates = "/etc/ssl/school.pem"  # believed beside those of the web
//! attempts = 6                          # failures in a row, with nothing gained between
//! stall = "30s"                         # the longest wait for the next byte
//! ```

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use varve_fetch::Proxies;

use super::value::{Bytes, Seconds, in_range};

/// How the sources are reached.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Network {
    /// The proxy; none: what the environment says.
    pub proxy: Option<Proxy>,
    /// Hosts that are reached without it.
    pub no_proxy: Vec<String>,
    /// The most that comes in a second.
    pub rate_limit: Option<Rate>,
    /// A file of certificates in PEM form.
    pub certificates: Option<PathBuf>,
    /// How many failures in a row, with nothing gained in between, a source may have.
    #[serde(deserialize_with = "attempts")]
    pub attempts: Option<u32>,
    /// The longest wait for the next byte.
    pub stall: Seconds,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            proxy: None,
            no_proxy: Vec::new(),
            rate_limit: None,
            certificates: None,
            attempts: None,
            stall: Seconds(Duration::from_secs(30)),
        }
    }
}

impl Network {
    /// Which proxies to use, where the environment says `environment`.
    pub fn proxies(&self, environment: &Proxies) -> Proxies {
        let mut proxies = match &self.proxy {
            None => environment.clone(),
            Some(Proxy::Direct) => Proxies::default(),
            Some(Proxy::Url(url)) => Proxies::all(url, Vec::new()),
        };
        proxies.direct.extend(self.no_proxy.iter().cloned());
        proxies
    }
}

fn attempts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let why = "failures in a row, with nothing gained in between";
    in_range(deserializer, 1..=10_000, why).map(|value| Some(value as u32))
}

/// A proxy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proxy {
    /// None, whatever the environment says.
    Direct,
    /// `http://[user:password@]host[:port]`
    Url(String),
}

impl<'de> Deserialize<'de> for Proxy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "direct" {
            return Ok(Self::Direct);
        }
        Proxies::all(&text, Vec::new()).check().map_err(|_| {
            D::Error::custom(format!(
                "{text:?} is no proxy: \"http://host:port\", \"http://user:password@host:port\" or \
                 \"direct\" is expected"
            ))
        })?;
        Ok(Self::Url(text))
    }
}

/// Bytes a second: `500000` or `"500 kB/s"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate(pub u64);

const RATE: &str = "a number of bytes a second, or text such as \"500 kB/s\"";
/// Slower than this nothing is ever finished.
const SLOWEST: u64 = 100;

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = u64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(RATE)
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<u64, E> {
                u64::try_from(value)
                    .map_err(|_| E::custom(format!("{value} is negative: {RATE} is expected")))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
                let bytes = text.trim().strip_suffix("/s").and_then(|text| text.parse().ok());
                bytes.map(|Bytes(bytes)| bytes).ok_or_else(|| {
                    E::custom(format!("{text:?} is not understood: {RATE} is expected"))
                })
            }
        }

        let rate = deserializer.deserialize_any(Reader)?;
        if rate < SLOWEST {
            let least = format!("at least {SLOWEST} bytes a second is expected");
            return Err(D::Error::custom(format!("nothing would ever be finished: {least}")));
        }
        Ok(Self(rate))
    }
}
