//! One check of one source, with tough: the TUF client's steps 5.2 to 5.6.
//!
//! tough verifies; three things are ours, because a device in the field needs them other
//! than tough has them:
//!
//! * **the link**: our [`Sources`], which bound every body and never take "the network
//!   is down" for "there is no newer root" (tough ends its search for roots at any error
//!   of the transport, so such errors are given to it inside the stream);
//! * **time**: expiry is checked here, against the later of the clock and the newest time
//!   ever seen. tough's own check, and its record of the time, fail for good on a clock
//!   that went back (awslabs/tough#603), so neither is used;
//! * **state**: tough's datastore is a scratch copy that dies with the check; what is
//!   trusted is saved once, by [`super::state`], after everything has been verified. A
//!   document that was saved and that the new one names by its digest is not fetched again.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use jiff::Timestamp;
use tough::error::Error as ToughError;
use tough::schema::{Role, RoleType, Root, Signed, Snapshot, Targets};
use tough::{ExpirationEnforcement, RepositoryLoader, TransportErrorKind, TransportStream};
use url::Url;
use varve_format::Sha256Digest;
use varve_sys::task::Cancel;

use super::error::{Refusal, TrustError};
use super::state::State;
use crate::sources::{Attempt, FetchError, Sources};
use crate::transport::TransportError;

const SMALL: u64 = 1 << 20;
const LARGE: u64 = 16 << 20;

/// What one source offered, verified as a whole.
pub(super) struct Checked {
    /// The state to save: nothing of it is saved yet.
    pub(super) state: State,
    pub(super) root: Root,
    pub(super) targets: Targets,
    pub(super) timestamp_version: u64,
    /// The role that expires first, and when.
    pub(super) expires: (RoleType, Timestamp),
}

/// Checks one source against the trusted state, at the time `now`.
pub(super) fn check(
    source_name: &str,
    sources: Sources,
    state: &State,
    now: Timestamp,
    cancel: &Cancel,
) -> Result<Checked, TrustError> {
    let link = Link(Arc::new(Shared {
        sources,
        cancel: cancel.clone(),
        saved: [&state.snapshot, &state.targets].into_iter().flatten().cloned().collect(),
        got: Mutex::default(),
        failure: Mutex::default(),
    }));
    let scratch = scratch_directory()?;
    for (file, text) in [("timestamp.json", &state.timestamp), ("snapshot.json", &state.snapshot)] {
        if let Some(text) = text {
            scratch_write(&scratch.path().join(file), text).map_err(TrustError::Scratch)?;
        }
    }
    let base = |part: &str| Url::parse(&format!("https://repository.invalid/{part}/"));
    let (Ok(metadata), Ok(targets)) = (base("metadata"), base("targets")) else {
        unreachable!("a constant URL")
    };
    let loader = RepositoryLoader::new(&state.root, metadata, targets)
        .transport(link.clone())
        .datastore(scratch.path())
        .expiration_enforcement(ExpirationEnforcement::Unsafe);
    let runtime =
        tokio::runtime::Builder::new_current_thread().build().map_err(TrustError::Scratch)?;
    let repository = match runtime.block_on(loader.load()) {
        Ok(repository) => repository,
        Err(error) => return Err(link.explain(error, source_name, state)),
    };

    let root = &repository.root().signed;
    let roles = [
        (RoleType::Root, root.expires()),
        (RoleType::Timestamp, repository.timestamp().signed.expires()),
        (RoleType::Snapshot, repository.snapshot().signed.expires()),
        (RoleType::Targets, repository.targets().signed.expires()),
    ];
    let refuse = |reason| TrustError::Refused { source_name: source_name.to_owned(), reason };
    for (role, at) in roles {
        if at <= now {
            return Err(refuse(Refusal::Expired { role: role.to_string(), at, now }));
        }
    }
    let expires = roles.into_iter().min_by_key(|(_, at)| *at).unwrap_or(roles[0]);

    let text = |file: &str| link.text(&format!("metadata/{file}"));
    let root_text =
        text(&format!("{}.root.json", root.version)).unwrap_or_else(|| state.root.clone());
    let snapshot = &repository.snapshot().signed;
    Ok(Checked {
        state: State {
            newest_time: now,
            root: root_text,
            timestamp: text("timestamp.json"),
            snapshot: text(&snapshot.filename(root.consistent_snapshot)),
            targets: text(&repository.targets().signed.filename(root.consistent_snapshot)),
        },
        root: root.clone(),
        targets: repository.targets().signed.clone(),
        timestamp_version: repository.timestamp().signed.version.get(),
        expires,
    })
}

/// tough's transport on our sources. Every body is read whole and bounded before tough
/// sees it, and kept: it is what will be saved, and what explains a refusal.
#[derive(Clone)]
struct Link(Arc<Shared>);

struct Shared {
    sources: Sources,
    cancel: Cancel,
    /// The snapshot and the targets of the last check.
    saved: Vec<String>,
    got: Mutex<BTreeMap<String, Vec<u8>>>,
    failure: Mutex<Option<FetchError>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link")
    }
}

#[tough::async_trait]
impl tough::Transport for Link {
    async fn fetch(&self, url: Url) -> Result<TransportStream, tough::TransportError> {
        let path = url.path().trim_start_matches('/').to_owned();
        let limit = if path.ends_with("targets.json") { LARGE } else { SMALL };
        if let Some(bytes) = self.saved(&path) {
            lock(&self.0.got).insert(path, bytes.clone());
            return Ok(Box::pin(Once(Some(Ok(bytes.into())))));
        }
        match self.0.sources.fetch_limited(&path, limit, &self.0.cancel) {
            Ok(bytes) => {
                let stream = Once(Some(Ok(bytes.clone().into())));
                lock(&self.0.got).insert(path, bytes);
                Ok(Box::pin(stream))
            }
            Err(error) => {
                let kind = if error.is_missing() {
                    TransportErrorKind::FileNotFound
                } else {
                    TransportErrorKind::Other
                };
                *lock(&self.0.failure) = Some(error);
                Ok(Box::pin(Once(Some(Err(tough::TransportError::new(kind, url))))))
            }
        }
    }
}

impl Link {
    fn text(&self, path: &str) -> Option<String> {
        let bytes = lock(&self.0.got).get(path)?.clone();
        String::from_utf8(bytes).ok()
    }

    /// A document of the last check, where what this check got names that very one.
    ///
    /// tough has verified the document that names it, and holds these bytes against the
    /// same digest: nothing is believed here, only not asked for.
    fn saved(&self, path: &str) -> Option<Vec<u8>> {
        let (_, role) = path.strip_prefix("metadata/")?.split_once('.')?;
        let naming = match role {
            "snapshot.json" => "timestamp.json",
            "targets.json" => ".snapshot.json",
            _ => return None,
        };
        let got = lock(&self.0.got);
        let (_, naming) = got.iter().find(|(path, _)| path.ends_with(naming))?;
        let naming: serde_json::Value = serde_json::from_slice(naming).ok()?;
        let named = naming["signed"]["meta"][role]["hashes"]["sha256"].as_str()?;
        let mut saved = self.0.saved.iter();
        let found = saved.find(|text| Sha256Digest::of(text.as_bytes()).to_string() == named)?;
        Some(found.clone().into_bytes())
    }

    /// Says in our words why tough refused.
    fn explain(&self, error: ToughError, source_name: &str, state: &State) -> TrustError {
        let refuse = |reason| TrustError::Refused { source_name: source_name.to_owned(), reason };
        match error {
            ToughError::Transport { url, source, .. } => {
                let file = url.path().trim_start_matches('/').to_owned();
                match source.source().and_then(|cause| cause.downcast_ref::<ToughError>()) {
                    Some(ToughError::MaxSizeExceeded { max_size, .. }) => {
                        refuse(Refusal::TooLong { file, limit: *max_size })
                    }
                    Some(ToughError::HashMismatch { .. }) => {
                        refuse(self.other_document(file, state))
                    }
                    _ => self.not_fetched(file, source_name),
                }
            }
            ToughError::VerifyMetadata { role, source, .. } => {
                refuse(self.signatures(role, &source))
            }
            ToughError::VerifyTrustedMetadata { source, .. } => {
                TrustError::State { file: "root".into(), reason: source.to_string() }
            }
            ToughError::ParseTrustedMetadata { source, .. } => {
                TrustError::State { file: "root".into(), reason: source.to_string() }
            }
            ToughError::OlderMetadata { role, current_version, new_version, .. } => {
                refuse(Refusal::OlderThanSeen {
                    role: role.to_string(),
                    offered: new_version,
                    seen: current_version,
                })
            }
            ToughError::OlderSnapshotInTimestamp { snapshot_new, snapshot_old, .. } => {
                refuse(Refusal::OlderThanSeen {
                    role: RoleType::Snapshot.to_string(),
                    offered: snapshot_new,
                    seen: snapshot_old,
                })
            }
            ToughError::SnapshotRoleRollback {
                role, old_role_version, new_role_version, ..
            } => refuse(Refusal::OlderThanSeen {
                role: role.trim_end_matches(".json").to_owned(),
                offered: new_role_version,
                seen: old_role_version,
            }),
            ToughError::VersionMismatch { role, fetched, expected, .. } => {
                refuse(Refusal::MixedMetadata {
                    detail: format!(
                        "the {role} metadata is version {fetched} where version {expected} is named"
                    ),
                })
            }
            ToughError::ParseMetadata { role, source, .. } => refuse(Refusal::Malformed {
                what: format!("the {role} metadata"),
                reason: source.to_string(),
            }),
            other => refuse(Refusal::Malformed {
                what: "the metadata".into(),
                reason: other.to_string(),
            }),
        }
    }

    fn not_fetched(&self, file: String, source_name: &str) -> TrustError {
        let refuse = |reason| TrustError::Refused { source_name: source_name.to_owned(), reason };
        match lock(&self.0.failure).take() {
            Some(FetchError::Cancelled) => TrustError::Cancelled,
            Some(error) if error.is_missing() => refuse(Refusal::Missing { file }),
            Some(FetchError::Failed { tried, .. }) => {
                match tried.iter().find_map(|attempt| match attempt.error {
                    TransportError::TooLong { limit } => Some(limit),
                    _ => None,
                }) {
                    Some(limit) => refuse(Refusal::TooLong { file, limit }),
                    None => TrustError::CouldNotCheck { tried },
                }
            }
            None => TrustError::CouldNotCheck {
                tried: vec![Attempt {
                    source: source_name.to_owned(),
                    error: TransportError::Protocol { reason: format!("{file} could not be read") },
                }],
            },
        }
    }

    /// A document that is not the one named: signed all the same (then it belongs to
    /// another publication), or damaged.
    fn other_document(&self, file: String, state: &State) -> Refusal {
        let signed = self.trusted_root(state).is_some_and(|root| {
            let Some(text) = self.text(&file) else { return false };
            if file.ends_with("snapshot.json") {
                serde_json::from_str::<Signed<Snapshot>>(&text)
                    .is_ok_and(|document| root.verify_role(&document).is_ok())
            } else {
                serde_json::from_str::<Signed<Targets>>(&text)
                    .is_ok_and(|document| root.verify_role(&document).is_ok())
            }
        });
        if signed {
            Refusal::MixedMetadata {
                detail: format!(
                    "{file} is signed, but it is not the one that the newer metadata names"
                ),
            }
        } else {
            Refusal::WrongDigest { file }
        }
    }

    /// The newest root of this check: tough reached the documents below it, so the whole
    /// chain to it is verified.
    fn trusted_root(&self, state: &State) -> Option<Root> {
        let newest = lock(&self.0.got)
            .iter()
            .filter_map(|(path, bytes)| {
                let version: u64 =
                    path.strip_prefix("metadata/")?.strip_suffix(".root.json")?.parse().ok()?;
                Some((version, String::from_utf8(bytes.clone()).ok()?))
            })
            .max_by_key(|(version, _)| *version)
            .map_or_else(|| state.root.clone(), |(_, text)| text);
        serde_json::from_str::<Signed<Root>>(&newest).ok().map(|root| root.signed)
    }

    /// Tells forged signatures from missing ones.
    fn signatures(&self, role: RoleType, error: &tough::schema::Error) -> Refusal {
        let tough::schema::Error::SignatureThreshold { threshold, valid, .. } = error else {
            return Refusal::Malformed {
                what: format!("the {role} metadata"),
                reason: error.to_string(),
            };
        };
        #[derive(serde::Deserialize)]
        struct Signatures {
            signatures: Vec<serde::de::IgnoredAny>,
        }
        let (role, valid, threshold) = (role.to_string(), *valid, *threshold);
        let suffix = format!("{role}.json");
        let count = lock(&self.0.got)
            .iter()
            .filter(|(path, _)| path.ends_with(&suffix))
            .filter_map(|(path, bytes)| {
                Some((path.len(), path, serde_json::from_slice::<Signatures>(bytes).ok()?))
            })
            .max_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)))
            .map_or(0, |(_, _, document)| document.signatures.len() as u64);
        if count < threshold {
            Refusal::TooFewSignatures { role, valid, threshold }
        } else {
            Refusal::BadSignature { role, valid, threshold }
        }
    }
}

struct Once(Option<Result<tough::Bytes, tough::TransportError>>);

impl futures_core::Stream for Once {
    type Item = Result<tough::Bytes, tough::TransportError>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take())
    }
}

/// A directory for tough's copies: in memory where the system has such a place, never on
/// the disk that holds the device's state.
fn scratch_directory() -> Result<tempfile::TempDir, TrustError> {
    let mut last = None;
    for parent in ["/run", "/dev/shm", "/tmp", "/var/tmp"] {
        match tempfile::Builder::new().prefix("varve-trust-").tempdir_in(parent) {
            Ok(directory) => return Ok(directory),
            Err(error) => last = Some(error),
        }
    }
    Err(TrustError::Scratch(last.unwrap_or_else(|| std::io::ErrorKind::NotFound.into())))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a scratch copy that dies with the check; nothing depends on it"
)]
fn scratch_write(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    std::fs::write(path, text)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
