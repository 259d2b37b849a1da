//! The repository's signed metadata: read and verified, signed anew, written so that a
//! reader sees the old repository or the new, whole.
//!
//! ```text
//! metadata/1.root.json 2.root.json …   every root ever, each signed by the one before
//!          5.targets.json              the releases
//!          7.snapshot.json             which targets
//!          timestamp.json              which snapshot: replaced last, the commit point
//! ```
//!
//! Called by [`crate::repository`] and what builds on it. tough makes and checks the
//! signatures; the order of writing and its durability are ours.

use std::collections::HashMap;
use std::num::NonZeroU64;

use aws_lc_rs::rand::SystemRandom;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tough::editor::signed::SignedRole;
use tough::key_source::KeySource;
use tough::schema::{
    Hashes, KeyHolder, Metafile, Role as TufRole, RoleKeys, Root, Signed, Snapshot, Targets,
    Timestamp as TimestampRole,
};
use varve_format::Sha256Digest;
use varve_sys::{Dir, durable};

use crate::error::{PublishError, Result};
use crate::keys::{KeyDirs, Role, SigningKey};

const SPEC: &str = "1.0.0";
const MAX: u64 = 64 << 20;

/// The metadata as it stands, verified as a client would (expiry apart).
#[derive(Debug, Clone)]
pub(crate) struct Tuf {
    pub(crate) root: Signed<Root>,
    pub(crate) targets: Signed<Targets>,
    pub(crate) snapshot: Signed<Snapshot>,
    pub(crate) timestamp: Signed<TimestampRole>,
}

/// New documents, signed, that belong together.
#[derive(Default)]
pub(crate) struct Update {
    pub(crate) root: Option<SignedRole<Root>>,
    pub(crate) targets: Option<SignedRole<Targets>>,
    pub(crate) snapshot: Option<SignedRole<Snapshot>>,
    pub(crate) timestamp: Option<SignedRole<TimestampRole>>,
}

impl Tuf {
    /// Reads and verifies `metadata/`.
    pub(crate) fn load(metadata: &Dir) -> Result<Self> {
        let mut root: Signed<Root> = parse(metadata, "1.root.json")?.0;
        verify(&root.signed, &root, "1.root.json")?;
        loop {
            let file = format!("{}.root.json", root.signed.version.get() + 1);
            if metadata.stat_opt(&file)?.is_none() {
                break;
            }
            let next: Signed<Root> = parse(metadata, &file)?.0;
            verify(&root.signed, &next, &file)?;
            verify(&next.signed, &next, &file)?;
            if next.signed.version.get() != root.signed.version.get() + 1 {
                return Err(bad(&file, "it holds another version than its name says"));
            }
            root = next;
        }
        let (timestamp, _): (Signed<TimestampRole>, _) = parse(metadata, "timestamp.json")?;
        verify(&root.signed, &timestamp, "timestamp.json")?;
        let (snapshot, file) =
            named::<Snapshot>(metadata, "snapshot", timestamp.signed.meta.get("snapshot.json"))?;
        verify(&root.signed, &snapshot, &file)?;
        let (targets, file) =
            named::<Targets>(metadata, "targets", snapshot.signed.meta.get("targets.json"))?;
        verify(&root.signed, &targets, &file)?;
        Ok(Self { root, targets, snapshot, timestamp })
    }

    /// The version and expiry of each role.
    pub(crate) fn state(&self) -> [(Role, u64, Timestamp); 4] {
        [
            (Role::Root, self.root.signed.version.get(), self.root.signed.expires),
            (Role::Targets, self.targets.signed.version.get(), self.targets.signed.expires),
            (Role::Snapshot, self.snapshot.signed.version.get(), self.snapshot.signed.expires),
            (Role::Timestamp, self.timestamp.signed.version.get(), self.timestamp.signed.expires),
        ]
    }
}

/// Signs documents with the keys of some directories, for one or two roots: during a
/// rotation a document is signed for the old root and the new, so that it verifies for
/// clients before and after they meet the new root.
pub(crate) struct Signer<'a> {
    pub(crate) dirs: &'a KeyDirs,
    pub(crate) roots: Vec<Root>,
    /// Keys that are already in memory, beside those in the directories.
    pub(crate) extra: Vec<SigningKey>,
}

impl Signer<'_> {
    fn sign<T: TufRole + Serialize + Clone>(
        &self,
        role: Role,
        document: T,
    ) -> Result<SignedRole<T>> {
        let mut keys = SigningKey::load_all(self.dirs, role)?;
        keys.extend(self.extra.iter().cloned());
        let failed =
            |error: tough::error::Error| PublishError::Sign { role, reason: error.to_string() };
        let sources: Vec<Box<dyn KeySource>> =
            keys.iter().map(|key| Box::new(key.clone()) as Box<dyn KeySource>).collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .map_err(|error| PublishError::Sign { role, reason: error.to_string() })?;
        let mut all: Option<SignedRole<T>> = None;
        for root in &self.roots {
            self.enough(role, root, &keys)?;
            let holder = KeyHolder::Root(root.clone());
            let signed = runtime
                .block_on(SignedRole::new(
                    document.clone(),
                    &holder,
                    &sources,
                    &SystemRandom::new(),
                ))
                .map_err(failed)?;
            all = Some(match all {
                None => signed,
                Some(all) => {
                    all.add_old_signatures(signed.signed().signatures.clone()).map_err(failed)?
                }
            });
        }
        all.ok_or_else(|| PublishError::Sign { role, reason: "there is no root".into() })
    }

    fn enough(&self, role: Role, root: &Root, keys: &[SigningKey]) -> Result<()> {
        let Some(listed) = root.roles.get(&role.tuf()) else {
            return Err(PublishError::Sign { role, reason: "the root does not name it".into() });
        };
        let have = keys
            .iter()
            .filter(|key| {
                listed.keyids.iter().any(|id| varve_format::id::to_hex(id.as_ref()) == key.id())
            })
            .count() as u64;
        let threshold = listed.threshold.get();
        if have < threshold {
            let path = self.dirs.of(role);
            return Err(PublishError::MissingKeys { role, threshold, have, path });
        }
        Ok(())
    }

    pub(crate) fn root(&self, root: Root) -> Result<SignedRole<Root>> {
        self.sign(Role::Root, root)
    }

    pub(crate) fn targets(&self, targets: Targets) -> Result<SignedRole<Targets>> {
        self.sign(Role::Targets, targets)
    }

    pub(crate) fn snapshot(
        &self,
        version: u64,
        expires: Timestamp,
        targets: Metafile,
    ) -> Result<SignedRole<Snapshot>> {
        let mut snapshot = Snapshot::new(SPEC.into(), nonzero(version), expires);
        snapshot.meta.insert("targets.json".into(), targets);
        self.sign(Role::Snapshot, snapshot)
    }

    pub(crate) fn timestamp(
        &self,
        version: u64,
        expires: Timestamp,
        snapshot: Metafile,
    ) -> Result<SignedRole<TimestampRole>> {
        let mut timestamp = TimestampRole::new(SPEC.into(), nonzero(version), expires);
        timestamp.meta.insert("snapshot.json".into(), snapshot);
        self.sign(Role::Timestamp, timestamp)
    }
}

impl Update {
    /// Writes the documents. A reader sees the repository as it was until the timestamp
    /// document is replaced, and as it is from then on; a new root comes after it, because
    /// what a rotation signs verifies under the old root as well as the new.
    pub(crate) fn commit(&self, metadata: &Dir) -> Result<()> {
        if let Some(targets) = &self.targets {
            let name = targets.signed().signed.filename(true);
            durable::replace_file(metadata, &name, targets.buffer(), 0o644)?;
        }
        if let Some(snapshot) = &self.snapshot {
            let name = snapshot.signed().signed.filename(true);
            durable::replace_file(metadata, &name, snapshot.buffer(), 0o644)?;
        }
        if let Some(timestamp) = &self.timestamp {
            durable::replace_file(metadata, "timestamp.json", timestamp.buffer(), 0o644)?;
        }
        if let Some(root) = &self.root {
            let name = root.signed().signed.filename(true);
            durable::replace_file(metadata, &name, root.buffer(), 0o644)?;
        }
        Ok(())
    }
}

/// A root that lists these keys, each role with its threshold.
pub(crate) fn root_with(
    version: u64,
    expires: Timestamp,
    roles: &[(Role, u32, Vec<SigningKey>)],
) -> Result<Root> {
    let mut root = Root {
        spec_version: SPEC.into(),
        consistent_snapshot: true,
        version: nonzero(version),
        expires,
        keys: HashMap::new(),
        roles: HashMap::new(),
        _extra: HashMap::new(),
    };
    for (role, threshold, keys) in roles {
        set_role(&mut root, *role, *threshold, keys)?;
    }
    Ok(root)
}

/// Gives a role these keys and no others; keys that no role has any more leave the root.
pub(crate) fn set_role(
    root: &mut Root,
    role: Role,
    threshold: u32,
    keys: &[SigningKey],
) -> Result<()> {
    let count = keys.len() as u32;
    if threshold == 0 || threshold > count {
        return Err(PublishError::Threshold { role, threshold, keys: count });
    }
    let mut keyids = Vec::new();
    for key in keys {
        let (id, public) = key.public()?;
        root.keys.insert(id.clone(), public);
        keyids.push(id);
    }
    let keys =
        RoleKeys { keyids, threshold: nonzero(u64::from(threshold)), _extra: HashMap::new() };
    root.roles.insert(role.tuf(), keys);
    let used: Vec<_> = root.roles.values().flat_map(|role| role.keyids.clone()).collect();
    root.keys.retain(|id, _| used.contains(id));
    Ok(())
}

/// An empty list of releases.
pub(crate) fn no_targets(version: u64, expires: Timestamp) -> Targets {
    let mut targets = Targets::new(SPEC.into(), nonzero(version), expires);
    targets.delegations = None;
    targets
}

/// How a document that names another describes it.
pub(crate) fn describe<T: TufRole + Serialize>(signed: &SignedRole<T>) -> Metafile {
    Metafile {
        length: Some(*signed.length()),
        hashes: Some(Hashes { sha256: signed.sha256().to_vec().into(), _extra: HashMap::new() }),
        version: signed.signed().signed.version(),
        _extra: HashMap::new(),
    }
}

/// A moment so many days later, in whole seconds, as TUF writes them.
pub(crate) fn later(now: Timestamp, days: u32) -> Timestamp {
    Timestamp::from_second(now.as_second() + i64::from(days) * 86_400).unwrap_or(Timestamp::MAX)
}

fn nonzero(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN)
}

fn bad(file: &str, reason: impl Into<String>) -> PublishError {
    PublishError::Metadata { file: file.to_owned(), reason: reason.into() }
}

fn parse<T: DeserializeOwned>(metadata: &Dir, file: &str) -> Result<(Signed<T>, Vec<u8>)> {
    let bytes = metadata.read(file, MAX)?;
    let document = serde_json::from_slice(&bytes).map_err(|error| bad(file, error.to_string()))?;
    Ok((document, bytes))
}

/// Reads the document that another names, and checks that it is that one.
fn named<T: TufRole + DeserializeOwned>(
    metadata: &Dir,
    kind: &str,
    meta: Option<&Metafile>,
) -> Result<(Signed<T>, String)> {
    let Some(meta) = meta else {
        return Err(bad(&format!("{kind}.json"), "no document names its version"));
    };
    let file = format!("{}.{kind}.json", meta.version);
    let (document, bytes): (Signed<T>, _) = parse(metadata, &file)?;
    let digest = meta.hashes.as_ref().map(|hashes| hashes.sha256.as_ref());
    let matches = digest == Some(&Sha256Digest::of(&bytes).0[..])
        && meta.length == Some(bytes.len() as u64)
        && document.signed.version() == meta.version;
    if matches {
        Ok((document, file))
    } else {
        Err(bad(&file, "it is not the document that is named"))
    }
}

fn verify<T: TufRole + Serialize>(root: &Root, document: &Signed<T>, file: &str) -> Result<()> {
    root.verify_role(document).map_err(|error| bad(file, error.to_string()))
}
