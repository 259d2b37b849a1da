//! The configured sources, opened.

use std::sync::Arc;

use varve_fetch::{DirTransport, HttpOptions, HttpTransport, Patience, Sources, Transport};

use crate::config::Source;

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
}

/// Opens sources in their order. Nothing is asked of them yet.
pub fn open(list: &[Source], patience: Patience) -> Result<Sources, SourcesError> {
    if list.is_empty() {
        return Err(SourcesError::None);
    }
    let mut transports: Vec<Arc<dyn Transport>> = Vec::with_capacity(list.len());
    for source in list {
        transports.push(match source {
            Source::Url(url) => {
                let transport = HttpTransport::new(url, &HttpOptions::default());
                Arc::new(
                    transport.map_err(|reason| SourcesError::Bad { name: url.clone(), reason })?,
                )
            }
            Source::Directory(path) => Arc::new(DirTransport::new(path.clone())),
        });
    }
    Ok(Sources::new(transports, patience))
}
