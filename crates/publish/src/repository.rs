//! A repository on the publisher's disk: `init`, `publish`, `list`, `refresh`.
//!
//! ```text
//! <repository>/repository.toml   settings
//!              metadata/         signed (tuf.rs)
//!              targets/<sha256>.<name>.json    release records
//!              manifests/  packs/              what the records name
//!              deltas/                         lists of deltas, and the deltas (deltas.rs)
//!              pending/<name>.json             records that are built and not published
//! ```
//!
//! Everything but `metadata/timestamp.json` is written once under a name that nothing
//! refers to yet; replacing the timestamp document publishes it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use tough::TargetName;
use tough::schema::{Hashes, Target, Targets};
use varve_format::delta::DeltaListRef;
use varve_format::pack::PackIndex;
use varve_format::release::{MAX_RECORD, ReleaseRecord, StoredManifest};
use varve_format::{ReleaseDigest, ReleaseName, Sha256Digest};
use varve_sys::lock::Lock;
use varve_sys::{Dir, durable};

use crate::deltas::MadeDelta;
use crate::error::{PublishError, Result};
use crate::keys::{KeyDirs, Role, SigningKey};
use crate::settings::Settings;
use crate::tuf::{self, Signer, Tuf, Update};

/// A repository.
#[derive(Debug)]
pub struct Repository {
    pub(crate) dir: Dir,
    path: PathBuf,
    pub(crate) settings: Settings,
}

/// How many keys a role gets, and how many of them must sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleOptions {
    /// Keys to make.
    pub keys: u32,
    /// Signatures needed.
    pub threshold: u32,
}

/// What `init` sets down.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Keys and thresholds, in the order of [`Role::ALL`].
    pub roles: [RoleOptions; 4],
    /// How long signatures last.
    pub settings: Settings,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self { roles: [RoleOptions { keys: 1, threshold: 1 }; 4], settings: Settings::default() }
    }
}

/// A release that is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Published {
    /// Its name.
    pub name: ReleaseName,
    /// Its place in the order of its channel.
    pub sequence: u64,
    /// Its channel.
    pub channel: String,
    /// Its identity.
    pub digest: ReleaseDigest,
    /// When it was published.
    pub published: Option<Timestamp>,
    /// The list of the deltas that are offered to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deltas: Option<DeltaListRef>,
    #[serde(skip)]
    pub(crate) record_sha256: Sha256Digest,
    #[serde(skip)]
    pub(crate) record_size: u64,
}

impl Published {
    pub(crate) fn record_file(&self) -> String {
        format!("{}.{}.json", self.record_sha256, self.name)
    }
}

/// A role's newest signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SignedRoleState {
    /// The role.
    pub role: Role,
    /// The version of its document.
    pub version: u64,
    /// When the signature ends.
    pub expires: Timestamp,
}

impl Repository {
    /// Makes a repository in `path`, which must be missing or empty of one, and its keys.
    /// Returns it and the path of the root of trust to hand to devices.
    pub fn init(
        path: &Path,
        dirs: &KeyDirs,
        options: &InitOptions,
        now: Timestamp,
    ) -> Result<Self> {
        let dir = open_or_make(path)?;
        let metadata = dir.make_dir("metadata", 0o755)?;
        if metadata.stat_opt("1.root.json")?.is_some() {
            return Err(PublishError::Exists { path: path.to_owned() });
        }
        for (role, options) in Role::ALL.into_iter().zip(options.roles) {
            if options.threshold == 0 || options.threshold > options.keys {
                let RoleOptions { keys, threshold } = options;
                return Err(PublishError::Threshold { role, threshold, keys });
            }
        }
        for name in ["targets", "manifests", "packs", "deltas", "pending"] {
            dir.make_dir(name, 0o755)?;
        }
        options.settings.save(&dir)?;
        let repository = Self { dir, path: path.to_owned(), settings: options.settings.clone() };
        let mut roles = Vec::new();
        for (role, options) in Role::ALL.into_iter().zip(options.roles) {
            let mut keys = SigningKey::load_all(dirs, role)?;
            while (keys.len() as u32) < options.keys {
                keys.push(SigningKey::generate(dirs, role)?);
            }
            roles.push((role, options.threshold, keys));
        }
        let root = tuf::root_with(1, repository.expiry(Role::Root, now), &roles)?;
        let signer = Signer { dirs, roots: vec![root.clone()], extra: Vec::new() };
        let root = signer.root(root)?;
        let targets = signer.targets(tuf::no_targets(1, repository.expiry(Role::Targets, now)))?;
        let snapshot =
            signer.snapshot(1, repository.expiry(Role::Snapshot, now), tuf::describe(&targets))?;
        let timestamp = signer.timestamp(
            1,
            repository.expiry(Role::Timestamp, now),
            tuf::describe(&snapshot),
        )?;
        durable::sync_directory(&repository.dir)?;
        Update {
            root: Some(root),
            targets: Some(targets),
            snapshot: Some(snapshot),
            timestamp: Some(timestamp),
        }
        .commit(&metadata)?;
        Ok(repository)
    }

    /// Opens the repository in `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let none = || PublishError::NotARepository { path: path.to_owned() };
        let dir = match Dir::open(path) {
            Err(error) if error.is_not_found() => return Err(none()),
            other => other?,
        };
        let Some(metadata) = dir.open_dir_opt("metadata")? else { return Err(none()) };
        if metadata.stat_opt("1.root.json")?.is_none() {
            return Err(none());
        }
        let settings = Settings::load(&dir)?;
        Ok(Self { dir, path: path.to_owned(), settings })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock that every change needs; held until dropped.
    pub fn lock(&self) -> Result<Lock> {
        Lock::try_take(&self.dir, ".lock")?
            .ok_or_else(|| PublishError::Locked { path: self.path.clone() })
    }

    /// The versions and expiries of the four roles.
    pub fn roles(&self) -> Result<Vec<SignedRoleState>> {
        Ok(states(&self.tuf()?))
    }

    /// The published releases, the newest of each channel first.
    pub fn list(&self) -> Result<Vec<Published>> {
        Ok(published(&self.tuf()?.targets.signed))
    }

    /// The records that are built and not published.
    pub fn pending(&self) -> Result<Vec<ReleaseRecord>> {
        let Some(dir) = self.dir.open_dir_opt("pending")? else { return Ok(Vec::new()) };
        let mut records = Vec::new();
        for entry in dir.names()? {
            if entry
                .name
                .to_str()
                .is_some_and(|name| name.ends_with(".json") && !name.starts_with('.'))
            {
                let bytes = dir.read(&entry.name, MAX_RECORD)?;
                records.push(parse_record(&bytes, &format!("pending/{}", entry.name.display()))?);
            }
        }
        Ok(records)
    }

    /// The record of a published release, or of one that is only built.
    pub fn record(&self, name: &ReleaseName) -> Result<ReleaseRecord> {
        if let Some(release) = self.list()?.into_iter().find(|release| release.name == *name) {
            return self.published_record(&release);
        }
        let bytes = self
            .dir
            .open_dir("pending")?
            .read_opt(format!("{name}.json"), MAX_RECORD)?
            .ok_or_else(|| PublishError::NoSuchRelease { name: name.clone() })?;
        parse_record(&bytes, &format!("pending/{name}.json"))
    }

    pub(crate) fn published_record(&self, release: &Published) -> Result<ReleaseRecord> {
        let file = release.record_file();
        let path = format!("targets/{file}");
        let bytes = self.dir.open_dir("targets")?.read(&file, MAX_RECORD)?;
        if Sha256Digest::of(&bytes) != release.record_sha256
            || bytes.len() as u64 != release.record_size
        {
            return Err(PublishError::Stored {
                path,
                reason: "it is not the record that is signed".into(),
            });
        }
        parse_record(&bytes, &path)
    }

    /// Publishes a release that was built: signs the list of releases with it.
    ///
    /// Without a `sequence` it becomes the newest of the repository. With `dry_run`
    /// everything is checked and nothing is written.
    pub fn publish(
        &self,
        name: &ReleaseName,
        channel: &str,
        sequence: Option<u64>,
        dirs: &KeyDirs,
        now: Timestamp,
        dry_run: bool,
    ) -> Result<Published> {
        self.publish_with(name, channel, sequence, &[], dirs, now, dry_run)
    }

    /// Publishes a release with deltas that lead to it: see [`Repository::publish`] and
    /// [`Repository::make_deltas`].
    #[expect(clippy::too_many_arguments, reason = "each is one thing that a publisher says")]
    pub fn publish_with(
        &self,
        name: &ReleaseName,
        channel: &str,
        sequence: Option<u64>,
        deltas: &[MadeDelta],
        dirs: &KeyDirs,
        now: Timestamp,
        dry_run: bool,
    ) -> Result<Published> {
        let pending = self.dir.open_dir("pending")?;
        let file = format!("{name}.json");
        let tuf = self.tuf()?;
        let all = published(&tuf.targets.signed);
        if all.iter().any(|release| release.name == *name) {
            return Err(PublishError::Published { name: name.clone() });
        }
        let bytes = pending
            .read_opt(&file, MAX_RECORD)?
            .ok_or_else(|| PublishError::NotBuilt { name: name.clone() })?;
        let record = parse_record(&bytes, &format!("pending/{file}"))?;
        self.stored(&record)?;
        let newest =
            all.iter().filter(|r| r.channel == channel).map(|r| r.sequence).max().unwrap_or(0);
        let last = all.iter().map(|r| r.sequence).max().unwrap_or(0);
        let sequence = sequence.unwrap_or(last + 1);
        if sequence <= newest {
            return Err(PublishError::Sequence {
                asked: sequence,
                newest,
                channel: channel.to_owned(),
            });
        }
        let mut release = Published {
            name: name.clone(),
            sequence,
            channel: channel.to_owned(),
            digest: record.digest,
            published: Timestamp::from_second(now.as_second()).ok(),
            deltas: None,
            record_sha256: Sha256Digest::of(&bytes),
            record_size: bytes.len() as u64,
        };
        self.store_list(&mut release, deltas)?;
        let mut targets = tuf.targets.signed.clone();
        let (target_name, target) = target_of(&release)?;
        targets.targets.insert(target_name, target);
        let update = self.sign_targets(&tuf, targets, dirs, now)?;
        if dry_run {
            return Ok(release);
        }
        durable::replace_file(
            &self.dir.open_dir("targets")?,
            &release.record_file(),
            &bytes,
            0o644,
        )?;
        update.commit(&self.metadata()?)?;
        pending.unlink(&file)?;
        Ok(release)
    }

    /// Signs anew what would expire: the timestamp always, the snapshot and the targets
    /// once half of their time is over. With `roles`, those and what names them; the root
    /// only when it is among `roles`.
    pub fn refresh(
        &self,
        roles: Option<&[Role]>,
        dirs: &KeyDirs,
        now: Timestamp,
        dry_run: bool,
    ) -> Result<Vec<SignedRoleState>> {
        let tuf = self.tuf()?;
        let due = |role: Role, expires: Timestamp| match roles {
            Some(roles) => roles.contains(&role),
            None => expires < tuf::later(now, self.settings.days(role).div_ceil(2)),
        };
        let mut signer = Signer { dirs, roots: vec![tuf.root.signed.clone()], extra: Vec::new() };
        let mut update = Update::default();
        if roles.is_some_and(|roles| roles.contains(&Role::Root)) {
            let mut root = tuf.root.signed.clone();
            root.version = root.version.saturating_add(1);
            root.expires = self.expiry(Role::Root, now);
            signer.roots.push(root.clone());
            update.root = Some(signer.root(root)?);
            signer.roots.pop();
        }
        let [_, targets, snapshot, timestamp] = tuf.state();
        if due(Role::Targets, targets.2) {
            let mut document = tuf.targets.signed.clone();
            document.version = document.version.saturating_add(1);
            document.expires = self.expiry(Role::Targets, now);
            update.targets = Some(signer.targets(document)?);
        }
        let mut snapshot_meta = tuf.timestamp.signed.meta.get("snapshot.json").cloned();
        if update.targets.is_some() || due(Role::Snapshot, snapshot.2) {
            let described = match &update.targets {
                Some(targets) => Some(tuf::describe(targets)),
                None => tuf.snapshot.signed.meta.get("targets.json").cloned(),
            };
            if let Some(targets) = described {
                let signed =
                    signer.snapshot(snapshot.1 + 1, self.expiry(Role::Snapshot, now), targets)?;
                snapshot_meta = Some(tuf::describe(&signed));
                update.snapshot = Some(signed);
            }
        }
        let only_root = roles.is_some_and(|roles| roles == [Role::Root]);
        if let Some(meta) = snapshot_meta
            && !only_root
        {
            update.timestamp =
                Some(signer.timestamp(timestamp.1 + 1, self.expiry(Role::Timestamp, now), meta)?);
        }
        let after = after(&tuf, &update);
        if !dry_run {
            update.commit(&self.metadata()?)?;
        }
        Ok(after)
    }

    pub(crate) fn tuf(&self) -> Result<Tuf> {
        Tuf::load(&self.metadata()?)
    }

    pub(crate) fn metadata(&self) -> Result<Dir> {
        Ok(self.dir.open_dir("metadata")?)
    }

    pub(crate) fn expiry(&self, role: Role, now: Timestamp) -> Timestamp {
        tuf::later(now, self.settings.days(role))
    }

    /// Signs a changed list of releases and the two documents above it.
    pub(crate) fn sign_targets(
        &self,
        tuf: &Tuf,
        mut targets: Targets,
        dirs: &KeyDirs,
        now: Timestamp,
    ) -> Result<Update> {
        let signer = Signer { dirs, roots: vec![tuf.root.signed.clone()], extra: Vec::new() };
        targets.version = targets.version.saturating_add(1);
        targets.expires = self.expiry(Role::Targets, now);
        let targets = signer.targets(targets)?;
        let [_, _, snapshot, timestamp] = tuf.state();
        let snapshot = signer.snapshot(
            snapshot.1 + 1,
            self.expiry(Role::Snapshot, now),
            tuf::describe(&targets),
        )?;
        let timestamp = signer.timestamp(
            timestamp.1 + 1,
            self.expiry(Role::Timestamp, now),
            tuf::describe(&snapshot),
        )?;
        Ok(Update {
            root: None,
            targets: Some(targets),
            snapshot: Some(snapshot),
            timestamp: Some(timestamp),
        })
    }

    /// Checks that what a record names is there: lengths of everything, and the digests of
    /// manifest and indexes. (`check` reads the packs too.)
    fn stored(&self, record: &ReleaseRecord) -> Result<()> {
        let wrong = |path: &str, reason: &str| PublishError::Stored {
            path: path.to_owned(),
            reason: reason.into(),
        };
        let path = StoredManifest::path(&record.digest);
        let manifest = self.read(&path, record.manifest.size)?;
        if Sha256Digest::of(&manifest) != record.manifest.sha256 {
            return Err(wrong(&path, "it is not the manifest that the record names"));
        }
        for pack in &record.packs {
            let index = self.read(&pack.index_path(), pack.index_size)?;
            if Sha256Digest::of(&index) != pack.index_sha256 || PackIndex::parse(&index).is_err() {
                return Err(wrong(&pack.index_path(), "it is not the index that the record names"));
            }
            let path = pack.path();
            match self.dir.open_dir("packs")?.stat_opt(format!("{}.pack", pack.id))? {
                Some(stat) if stat.size == pack.size => {}
                Some(_) => return Err(wrong(&path, "it has another length than the record says")),
                None => return Err(wrong(&path, "it is missing")),
            }
        }
        Ok(())
    }

    /// Reads a file of the repository of exactly this length.
    pub(crate) fn read(&self, path: &str, size: u64) -> Result<Vec<u8>> {
        let bytes = self.dir.read_opt(path, size)?;
        let wrong =
            |reason: &str| PublishError::Stored { path: path.to_owned(), reason: reason.into() };
        match bytes {
            None => Err(wrong("it is missing")),
            Some(bytes) if bytes.len() as u64 == size => Ok(bytes),
            Some(_) => Err(wrong("it is shorter than its record says")),
        }
    }
}

pub(crate) fn parse_record(bytes: &[u8], path: &str) -> Result<ReleaseRecord> {
    ReleaseRecord::parse(bytes)
        .map_err(|error| PublishError::Stored { path: path.to_owned(), reason: error.to_string() })
}

pub(crate) fn states(tuf: &Tuf) -> Vec<SignedRoleState> {
    tuf.state().map(|(role, version, expires)| SignedRoleState { role, version, expires }).into()
}

/// The state of the roles once `update` is written.
pub(crate) fn after(tuf: &Tuf, update: &Update) -> Vec<SignedRoleState> {
    let mut tuf = tuf.clone();
    if let Some(root) = &update.root {
        tuf.root = root.signed().clone();
    }
    if let Some(targets) = &update.targets {
        tuf.targets = targets.signed().clone();
    }
    if let Some(snapshot) = &update.snapshot {
        tuf.snapshot = snapshot.signed().clone();
    }
    if let Some(timestamp) = &update.timestamp {
        tuf.timestamp = timestamp.signed().clone();
    }
    states(&tuf)
}

pub(crate) fn published(targets: &Targets) -> Vec<Published> {
    let mut releases: Vec<_> =
        targets.targets.iter().filter_map(|(name, target)| read_target(name, target)).collect();
    releases.sort_by(|a, b| {
        a.channel
            .cmp(&b.channel)
            .then(b.sequence.cmp(&a.sequence))
            .then_with(|| a.name.cmp(&b.name))
    });
    releases
}

fn read_target(name: &TargetName, target: &Target) -> Option<Published> {
    let text = |field: &str| target.custom.get(field)?.as_str();
    Some(Published {
        name: name.raw().strip_suffix(".json")?.parse().ok()?,
        sequence: target.custom.get("sequence")?.as_u64()?,
        channel: text("channel")?.to_owned(),
        digest: text("digest")?.parse().ok()?,
        published: text("published").and_then(|text| text.parse().ok()),
        deltas: target.custom.get("deltas").and_then(|v| serde_json::from_value(v.clone()).ok()),
        record_sha256: Sha256Digest(target.hashes.sha256.as_ref().try_into().ok()?),
        record_size: target.length,
    })
}

pub(crate) fn target_name(name: &ReleaseName) -> Result<TargetName> {
    TargetName::new(format!("{name}.json"))
        .map_err(|error| PublishError::Sign { role: Role::Targets, reason: error.to_string() })
}

pub(crate) fn target_of(release: &Published) -> Result<(TargetName, Target)> {
    let mut custom = HashMap::from([
        ("sequence".to_owned(), release.sequence.into()),
        ("channel".to_owned(), release.channel.clone().into()),
        ("digest".to_owned(), release.digest.to_hex().into()),
    ]);
    if let Some(published) = release.published {
        custom.insert("published".to_owned(), published.to_string().into());
    }
    if let Some(deltas) = &release.deltas {
        let names = serde_json::json!({ "sha256": deltas.sha256, "size": deltas.size });
        custom.insert("deltas".to_owned(), names);
    }
    let target = Target {
        length: release.record_size,
        hashes: Hashes { sha256: release.record_sha256.0.to_vec().into(), _extra: HashMap::new() },
        custom,
        _extra: HashMap::new(),
    };
    Ok((target_name(&release.name)?, target))
}

fn open_or_make(path: &Path) -> Result<Dir> {
    match Dir::open(path) {
        Err(error) if error.is_not_found() => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = Dir::open(parent.unwrap_or(Path::new(".")))?;
            let Some(name) = path.file_name() else { return Ok(Dir::open(path)?) };
            let dir = parent.make_dir(name, 0o755)?;
            durable::sync_directory(&parent)?;
            Ok(dir)
        }
        other => Ok(other?),
    }
}
