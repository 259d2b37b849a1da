//! The device's trust in a repository: The Update Framework, on a device whose clock may
//! be wrong and whose power may go at any moment.
//!
//! ```text
//! sources -> client::check (each source) -> newest that verifies -> state saved, once
//!                 | refused                                            |
//!                 v                                                    v
//!             TrustError::Refused / CouldNotCheck                   Metadata
//! ```
//!
//! Every source is asked until one offers something newer than what was seen: the first
//! in the list may be last month's stick. One that is refused or cannot be reached does
//! not stop the others, and is reported in [`Metadata::warnings`].
//!
//! The commit point is the replacement of `trust/state`, after the whole chain of one
//! source has been verified; until then the old trust holds.
//!
//! Called by the update manager's `check` and `upgrade`.

mod client;
mod error;
mod state;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use tough::schema::{Role, Root, Signed, Snapshot, Targets, Timestamp as TimestampRole};
use varve_sys::Dir;
use varve_sys::task::Cancel;

pub use error::{Refusal, TrustError};

use crate::metadata::{Metadata, ReleaseRef, Warning};
use crate::sources::Sources;
use state::State;

/// The trust state below one directory, `trust/`.
pub struct Trust<'a> {
    dir: &'a Dir,
}

impl<'a> Trust<'a> {
    /// The trust state that [`Trust::init`] once wrote into `dir`.
    pub fn open(dir: &'a Dir) -> Self {
        Self { dir }
    }

    /// Pins a root of trust: the bytes of a repository's `N.root.json`, as they were
    /// handed over by a way that is trusted. What was trusted before is replaced.
    ///
    /// `now` is the time on the machine that makes the device: the device's clock is
    /// never believed to be before it.
    ///
    /// # Errors
    /// When the document is not a root that its own keys have signed, or cannot be saved.
    pub fn init(dir: &'a Dir, root_json: &[u8], now: Timestamp) -> Result<Self, TrustError> {
        let reason = |reason: String| TrustError::NotARoot { reason };
        let text =
            String::from_utf8(root_json.to_vec()).map_err(|error| reason(error.to_string()))?;
        let root: Signed<Root> =
            serde_json::from_str(&text).map_err(|error| reason(error.to_string()))?;
        root.signed.verify_role(&root).map_err(|error| reason(error.to_string()))?;
        if !root.signed.consistent_snapshot {
            return Err(reason("it does not ask for consistent snapshots".into()));
        }
        let trust = Self { dir };
        let state =
            State { newest_time: now, root: text, timestamp: None, snapshot: None, targets: None };
        trust.save(&state)?;
        Ok(trust)
    }

    /// Checks the sources and gives the newest metadata that verifies.
    ///
    /// `now` is the system's clock; where it is before the newest time at which a check
    /// ever succeeded, that time is taken instead.
    ///
    /// # Errors
    /// [`TrustError::Refused`] when a source answered with what must not be used and no
    /// other source had anything that may; [`TrustError::CouldNotCheck`] when none could
    /// be asked. In both cases nothing was saved.
    pub fn refresh(
        &self,
        sources: &Sources,
        now: Timestamp,
        cancel: &Cancel,
    ) -> Result<Metadata, TrustError> {
        let state = self.load()?;
        let seen = state.timestamp.as_deref().map(timestamp_version).transpose()?;
        let time = now.max(state.newest_time);

        let mut best: Option<(String, client::Checked)> = None;
        let mut warnings = Vec::new();
        for source in sources.each() {
            let name = source.names().next().unwrap_or_default().to_owned();
            // Once there is something that verifies, a source that is down is not waited for.
            let source = if best.is_some() { source.without_retries() } else { source };
            match client::check(&name, source, &state, time, cancel) {
                Ok(checked) => {
                    let newer = seen.is_none_or(|seen| checked.timestamp_version > seen);
                    if best
                        .as_ref()
                        .is_none_or(|(_, b)| b.timestamp_version < checked.timestamp_version)
                    {
                        best = Some((name, checked));
                    }
                    if newer {
                        break;
                    }
                }
                Err(TrustError::Cancelled) => return Err(TrustError::Cancelled),
                Err(error) => warnings.push(Warning { source: name, error }),
            }
        }
        let Some((source, checked)) = best else {
            return Err(worst(warnings));
        };
        if checked.state != state {
            self.save(&checked.state)?;
        }
        let news = seen.is_none_or(|seen| checked.timestamp_version > seen);
        Ok(Metadata {
            source,
            releases: releases(&checked.targets)?,
            news,
            root_version: checked.root.version.get(),
            timestamp_version: checked.timestamp_version,
            expires: checked.expires.1,
            time,
            clock_behind: now < state.newest_time,
            warnings,
        })
    }

    /// The releases of the last check that succeeded, without asking any source; none
    /// before the first.
    pub fn last_seen(&self) -> Result<Option<Vec<ReleaseRef>>, TrustError> {
        let state = self.load()?;
        let Some(text) = &state.targets else { return Ok(None) };
        let targets: Signed<Targets> =
            serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
        releases(&targets.signed).map(Some)
    }

    /// What the disk has done to the saved trust, if anything: each document was verified
    /// before it was saved, so one that does not verify any more was changed since.
    pub fn damage(&self) -> Option<String> {
        self.verify_saved().err().map(|error| varve_sys::whole_message(&error))
    }

    fn verify_saved(&self) -> Result<(), TrustError> {
        fn read<T: Role + DeserializeOwned>(
            root: Option<&Root>,
            text: &str,
        ) -> Result<Signed<T>, TrustError> {
            let role: Signed<T> =
                serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
            let signed = root.map_or(Ok(()), |root| root.verify_role(&role));
            signed.map_err(|error| damaged(format!("its {} metadata: {error}", T::TYPE)))?;
            Ok(role)
        }
        let state = self.load()?;
        let root: Signed<Root> = read(None, &state.root)?;
        root.signed
            .verify_role(&root)
            .map_err(|error| damaged(format!("its root metadata: {error}")))?;
        let root = &root.signed;
        let mut ends = Vec::new();
        if let Some(text) = &state.timestamp {
            ends.push(read::<TimestampRole>(Some(root), text)?.signed.expires);
        }
        if let Some(text) = &state.snapshot {
            ends.push(read::<Snapshot>(Some(root), text)?.signed.expires);
        }
        if let Some(text) = &state.targets {
            ends.push(read::<Targets>(Some(root), text)?.signed.expires);
        }
        // A check that succeeds is one of before the first expiry.
        match ends.into_iter().min() {
            Some(end) if state.newest_time >= end => {
                Err(damaged(format!("its newest time {} is none of a check", state.newest_time)))
            }
            _ => Ok(()),
        }
    }

    /// The version of the newest root that this device trusts.
    pub fn root_version(&self) -> Result<u64, TrustError> {
        let state = self.load()?;
        let root: Signed<Root> =
            serde_json::from_str(&state.root).map_err(|error| damaged(error.to_string()))?;
        Ok(root.signed.version.get())
    }

    fn load(&self) -> Result<State, TrustError> {
        let bytes = self
            .dir
            .read(state::FILE, state::MAX)
            .map_err(|source| TrustError::Save { what: "read", source })?;
        State::parse(&bytes).map_err(damaged)
    }

    fn save(&self, state: &State) -> Result<(), TrustError> {
        varve_sys::durable::replace_file(self.dir, state::FILE, &state.to_bytes(), 0o644)
            .map_err(|source| TrustError::Save { what: "save", source })
    }
}

fn damaged(reason: String) -> TrustError {
    TrustError::State { file: format!("trust/{}", state::FILE), reason }
}

fn timestamp_version(text: &str) -> Result<u64, TrustError> {
    let document: Signed<TimestampRole> =
        serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
    Ok(document.signed.version.get())
}

/// What to say when no source was any good: a refusal before a link that is down.
fn worst(warnings: Vec<Warning>) -> TrustError {
    let mut tried = Vec::new();
    let mut first_other = None;
    for Warning { error, .. } in warnings {
        match error {
            TrustError::CouldNotCheck { tried: more } => tried.extend(more),
            error if first_other.is_none() => first_other = Some(error),
            _ => {}
        }
    }
    first_other.unwrap_or(TrustError::CouldNotCheck { tried })
}

fn releases(targets: &Targets) -> Result<Vec<ReleaseRef>, TrustError> {
    let mut releases: Vec<_> = targets
        .targets
        .iter()
        .filter_map(|(name, target)| ReleaseRef::from_target(name, target))
        .collect();
    releases.sort_by(|a, b| b.sequence.cmp(&a.sequence).then_with(|| a.name.cmp(&b.name)));
    Ok(releases)
}
