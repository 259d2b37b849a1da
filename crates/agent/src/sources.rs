//! The configured sources, opened.

use std::sync::Arc;
use std::time::Duration;

use varve_fetch::{
    DirTransport, Gate, HttpOptions, HttpTransport, Listener, Patience, Proxies, Sources,
    Transport, Workers,
};

use crate::config::{OnMetered, Source};
use crate::device::Device;
use crate::metered;

/// The longest file of certificates that is read, in bytes.
const MAX_CERTIFICATES: u64 = 4 << 20;

/// How often NetworkManager is asked while something comes.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How long a link that became metered is waited for to be another.
const METERED_WAIT: Duration = Duration::from_secs(600);

/// What only the program knows of the way to the sources.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// The proxies that the environment names.
    pub proxies: Proxies,
    /// Hears of pauses and of sources that are left.
    pub listener: Option<Listener>,
    /// Who asks servers, and decodes what comes.
    pub workers: Workers,
    /// The address of the bus that NetworkManager is on; none: the system's.
    pub bus: Option<String>,
    /// How often it is asked while something comes; none: each ten seconds.
    pub ask_every: Option<Duration>,
}

/// Why there is no source.
#[derive(Debug, thiserror::Error)]
pub enum SourcesError {
    /// None is configured.
    #[error("no source is configured: this device does not know where updates come from")]
    None,
    /// One is not usable as it is written.
    #[error("the source {name} is not usable: {reason}")]
    Bad {
        /// As it is written.
        name: String,
        /// Why.
        reason: String,
    },
    /// The configured certificates cannot be read.
    #[error("cannot read the certificates {}", path.display())]
    Certificates {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What may be fetched, where the link is metered and a source is reached over it.
pub(crate) fn on_metered(device: &Device) -> Option<OnMetered> {
    let rule = device.config.download.metered;
    let over_link = device.config.sources.iter().any(|source| matches!(source, Source::Url(_)));
    let asked = over_link && rule != OnMetered::Allow;
    (asked && metered::is_metered(device.places.link.bus.as_deref())).then_some(rule)
}

/// What is asked while contents come: the link may become metered, as when a phone takes over.
pub(crate) fn gate(device: &Device) -> Option<Gate> {
    let download = &device.config.download;
    let covers: fn(&str) -> bool = match download.metered {
        OnMetered::Refuse => |_| true,
        OnMetered::DeltaOnly => |path| path.starts_with("packs/"),
        OnMetered::Allow => return None,
    };
    let link = &device.places.link;
    let patience = download.metered_wait.map_or(METERED_WAIT, |wait| wait.0);
    let bus = link.bus.clone();
    let closed = move || metered::is_metered(bus.as_deref());
    Some(Gate::new(link.ask_every.unwrap_or(ASK_EVERY), patience, covers, closed))
}

/// Opens sources in their order. Nothing is asked of them yet.
pub fn open(device: &Device, patience: &Patience) -> Result<Sources, SourcesError> {
    let (config, link) = (&device.config, &device.places.link);
    if config.sources.is_empty() {
        return Err(SourcesError::None);
    }
    let network = &config.network;
    let options = HttpOptions {
        stall: network.stall.0,
        proxies: network.proxies(&link.proxies),
        certificates: certificates(network.certificates.as_deref())?,
        ..HttpOptions::default()
    };
    let mut transports: Vec<Arc<dyn Transport>> = Vec::with_capacity(config.sources.len());
    for source in &config.sources {
        transports.push(match source {
            Source::Url(url) => {
                let transport = HttpTransport::new(url, &options, &link.workers);
                Arc::new(
                    transport.map_err(|reason| SourcesError::Bad { name: url.clone(), reason })?,
                )
            }
            Source::Directory(path) => Arc::new(DirTransport::new(path.clone())),
        });
    }
    let mut patience = patience.clone();
    patience.attempts = network.attempts.unwrap_or(patience.attempts);
    let mut sources = Sources::new(transports, patience).decoded_by(link.workers.clone());
    if let Some(rate) = network.rate_limit {
        sources = sources.limited_to(rate.0);
    }
    if let Some(listener) = &link.listener {
        sources = sources.telling(listener.clone());
    }
    Ok(sources)
}

fn certificates(path: Option<&std::path::Path>) -> Result<Vec<u8>, SourcesError> {
    use std::io::Read;
    let Some(path) = path else { return Ok(Vec::new()) };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_CERTIFICATES).read_to_end(&mut bytes))
        .map_err(|source| SourcesError::Certificates { path: path.into(), source })?;
    Ok(bytes)
}
