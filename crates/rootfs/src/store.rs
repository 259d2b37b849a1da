//! `/varve` of a physical root file system: what is held there, and its records.
//!
//! ```text
//! <physical root>/varve/          mode 0700: old setuid programs lie below it
//!   boot/selection                written by varve-boot
//!   deployments/<name>/           deployment.toml, manifest [, confirmed, pinned, proven]
//!   layers/<name>/                layer.toml, tree/ (records have a copy each: `records`)
//!   trees/<name>/                 the tree itself
//!   incoming/<digest>             written by varve-fetch
//!   staging/<name>/               see `stage`
//!   state/{versioned,shared,bind}/
//!   trash/                        on its way out; nothing reads it
//!   trust/                        written by varve-fetch
//! ```
//!
//! Whatever else lies there (a file a person left, half a copy from a rescue shell) is
//! never followed, never deleted and never an error: a [`Listing`] names it. Callers:
//! every other module here, the update manager, the boot stage.

use std::path::Path;

use varve_format::deployment::{DeploymentRecord, LayerRecord, OwnLayer, RecordError, Stack};
use varve_format::manifest::{MAX_TEXT, Manifest, ManifestError};
use varve_format::proven::{self, Proven};
use varve_format::{ContentDigest, DeploymentName, LayerName};
use varve_sys::{Dir, FileType, SysError, durable, whole_message};

use crate::records;

/// The longest record that is read, in bytes.
pub(crate) const MAX_RECORD: u64 = 1 << 20;
pub(crate) const RECORD: &str = "deployment.toml";
pub(crate) const MANIFEST: &str = "manifest";
const CONFIRMED: &str = "confirmed";
const PINNED: &str = "pinned";
const PROVEN: &str = "proven";
const REMOVED: &str = "removed";
pub(crate) const LAYER_RECORD: &str = "layer.toml";
pub(crate) const LAYER_TREE: &str = "tree";

/// Why something of the store could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// There is no `/varve` here.
    #[error("{path} holds no Varve: there is no directory \"varve\" in it")]
    NoStore {
        /// The physical root.
        path: String,
    },
    /// No such deployment.
    #[error("there is no deployment {name}")]
    NoDeployment {
        /// Which was asked for.
        name: DeploymentName,
    },
    /// A deployment's record does not parse, or says another name than its directory.
    #[error("the record of deployment {name} is damaged")]
    Deployment {
        /// Which.
        name: DeploymentName,
        /// How.
        source: Box<RecordError>,
    },
    /// A record that stands under another's name.
    #[error("the record in {directory} is that of {name}")]
    OtherName {
        /// Where it stands.
        directory: String,
        /// What it says.
        name: String,
    },
    /// A layer's record does not parse.
    #[error("the record of layer {name} is damaged")]
    Layer {
        /// Which.
        name: LayerName,
        /// How.
        source: Box<RecordError>,
    },
    /// A deployment's manifest does not parse.
    #[error("the manifest of deployment {name} is damaged")]
    Manifest {
        /// Which.
        name: DeploymentName,
        /// How.
        source: ManifestError,
    },
    /// A deployment's manifest is a good one, but of another release than its record says.
    #[error("the manifest of deployment {name} is not that of its release")]
    OtherManifest {
        /// Which.
        name: DeploymentName,
    },
    /// A deployment that no release describes has no manifest.
    #[error("deployment {name} has no manifest")]
    NoManifest {
        /// Which.
        name: DeploymentName,
    },
}

type Result<T> = std::result::Result<T, StoreError>;

/// The open `/varve` of a physical root.
#[derive(Debug)]
pub struct Store {
    varve: Dir,
    deployments: Dir,
    layers: Dir,
    trees: Dir,
    incoming: Dir,
    staging: Dir,
    state: Dir,
    trash: Dir,
    boot: Dir,
}

/// A deployment that is on disk, whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deployment {
    /// What it is.
    pub record: DeploymentRecord,
    /// Whether it was confirmed to work.
    pub confirmed: bool,
    /// Whether its user asked to keep it.
    pub pinned: bool,
}

impl Deployment {
    /// Its name.
    pub fn name(&self) -> &DeploymentName {
        &self.record.name
    }
}

/// What a directory of the store holds.
#[derive(Debug)]
pub struct Listing<T> {
    /// What is whole.
    pub items: Vec<T>,
    /// What is not ours or is damaged: its name, and what is wrong with it.
    pub strange: Vec<Strange>,
}

/// Something in the store that is passed over.
#[derive(Debug)]
pub struct Strange {
    /// Relative to `/varve`.
    pub path: String,
    /// Why it is passed over.
    pub why: String,
}

impl Store {
    /// Makes `/varve` in a physical root, or what is missing of it. It is durable with the next sync of
    /// the file system, before which nothing may be promised.
    pub fn create(physical_root: &Dir) -> Result<Self> {
        let varve = physical_root.make_dir("varve", 0o700)?;
        for name in ["deployments", "layers", "trees", "incoming", "staging", "trash", "boot"] {
            varve.make_dir(name, 0o755)?;
        }
        let state = varve.make_dir("state", 0o755)?;
        for name in ["versioned", "shared", "bind"] {
            state.make_dir(name, 0o755)?;
        }
        Self::open(physical_root)
    }

    /// Opens `/varve` of a physical root. Writes nothing but directories of its own
    /// that are missing (a person may have removed an empty one).
    pub fn open(physical_root: &Dir) -> Result<Self> {
        let Some(varve) = physical_root.open_dir_opt("varve")? else {
            return Err(StoreError::NoStore { path: physical_root.path().display().to_string() });
        };
        let sub = |name: &str| match varve.open_dir_opt(name)? {
            Some(dir) => Ok::<Dir, SysError>(dir),
            None => varve.make_dir(name, 0o755),
        };
        Ok(Self {
            deployments: sub("deployments")?,
            layers: sub("layers")?,
            trees: sub("trees")?,
            incoming: sub("incoming")?,
            staging: sub("staging")?,
            state: sub("state")?,
            trash: sub("trash")?,
            boot: sub("boot")?,
            varve,
        })
    }

    /// `/varve` itself: for the lock, the history, the trust.
    pub fn dir(&self) -> &Dir {
        &self.varve
    }

    /// `boot/`, for the selection.
    pub fn boot(&self) -> &Dir {
        &self.boot
    }

    /// `deployments/`.
    pub fn deployments_dir(&self) -> &Dir {
        &self.deployments
    }

    /// `layers/`.
    pub fn layers_dir(&self) -> &Dir {
        &self.layers
    }

    /// `trees/`.
    pub fn trees_dir(&self) -> &Dir {
        &self.trees
    }

    /// `incoming/`: verified contents, each named by its digest.
    pub fn incoming(&self) -> &Dir {
        &self.incoming
    }

    /// `staging/`.
    pub fn staging(&self) -> &Dir {
        &self.staging
    }

    /// `state/`.
    pub fn state(&self) -> &Dir {
        &self.state
    }

    /// `trash/`: what [`durable::discard`] deletes.
    pub fn trash(&self) -> &Dir {
        &self.trash
    }

    /// All deployments, oldest number first.
    pub fn deployments(&self) -> Result<Listing<Deployment>> {
        let mut list = list_named(&self.deployments, "deployments", |name| self.deployment(name))?;
        list.items.sort_by(|a, b| {
            (a.record.number, &a.record.name).cmp(&(b.record.number, &b.record.name))
        });
        Ok(list)
    }

    /// All layers that have a good record.
    pub fn layers(&self) -> Result<Listing<LayerRecord>> {
        list_named(&self.layers, "layers", |name| self.layer(name))
    }

    /// The names of all trees.
    pub fn trees(&self) -> Result<Listing<LayerName>> {
        list_named(&self.trees, "trees", |name: &LayerName| Ok(name.clone()))
    }

    /// One deployment's record and marks.
    pub fn deployment(&self, name: &DeploymentName) -> Result<Deployment> {
        let dir = self.deployment_dir(name)?;
        let bytes = dir.read(RECORD, MAX_RECORD)?;
        let record = DeploymentRecord::parse(&bytes).map_err(|source| StoreError::Deployment {
            name: name.clone(),
            source: source.into(),
        })?;
        if record.name != *name {
            return Err(StoreError::OtherName {
                directory: format!("deployments/{name}"),
                name: record.name.to_string(),
            });
        }
        let has = |mark| Ok::<bool, SysError>(dir.stat_opt(mark)?.is_some());
        Ok(Deployment { record, confirmed: has(CONFIRMED)?, pinned: has(PINNED)? })
    }

    /// A deployment's manifest, parsed and compared with the release that its record
    /// names.
    pub fn manifest(&self, name: &DeploymentName) -> Result<Manifest> {
        let text = self
            .deployment_dir(name)?
            .read_opt(MANIFEST, MAX_TEXT)?
            .ok_or_else(|| StoreError::NoManifest { name: name.clone() })?;
        let manifest = Manifest::parse(&text)
            .map_err(|source| StoreError::Manifest { name: name.clone(), source })?;
        let release = self.deployment(name)?.record.release;
        let digest = varve_format::Sha256Digest::of(&text).0;
        if release.is_some_and(|release| release.digest.0 != digest) {
            return Err(StoreError::OtherManifest { name: name.clone() });
        }
        Ok(manifest)
    }

    /// A layer's record.
    pub fn layer(&self, name: &LayerName) -> Result<LayerRecord> {
        let bytes = self.layers.open_dir(name)?.read(LAYER_RECORD, MAX_RECORD)?;
        let record = LayerRecord::parse(&bytes)
            .map_err(|source| StoreError::Layer { name: name.clone(), source: source.into() })?;
        if record.name != *name {
            return Err(StoreError::OtherName {
                directory: format!("layers/{name}"),
                name: record.name.to_string(),
            });
        }
        Ok(record)
    }

    /// Whether its user removed the layer: it goes once no deployment names it.
    pub fn is_layer_removed(&self, name: &LayerName) -> Result<bool> {
        Ok(self.layers.open_dir(name)?.stat_opt(REMOVED)?.is_some())
    }

    /// Sets or clears, durably, its user's wish that a layer goes.
    pub fn set_layer_removed(&self, name: &LayerName, removed: bool) -> Result<()> {
        let dir = self.layers.open_dir(name)?;
        match (removed, dir.stat_opt(REMOVED)?.is_some()) {
            (true, false) => set_mark(&dir, REMOVED),
            (false, true) => {
                dir.unlink(REMOVED)?;
                Ok(durable::sync_directory(&dir)?)
            }
            _ => Ok(()),
        }
    }

    /// Replaces the own layers of a deployment that nothing boots yet, durably.
    pub fn replace_own(&self, deployment: &Deployment, own: Vec<OwnLayer>) -> Result<Deployment> {
        let record = DeploymentRecord { own, ..deployment.record.clone() };
        self.replace_record(&record)?;
        Ok(Deployment { record, ..deployment.clone() })
    }

    /// A layer's directory in overlay form.
    pub fn layer_tree(&self, name: &LayerName) -> Result<Dir> {
        Ok(self.layers.open_dir(name)?.open_dir(LAYER_TREE)?)
    }

    /// A hard-linked tree.
    pub fn tree(&self, name: &LayerName) -> Result<Dir> {
        Ok(self.trees.open_dir(name)?)
    }

    /// The directories that a stack is put together from, newest first (one for a tree).
    pub fn stack_dirs(&self, stack: &Stack) -> Result<Vec<Dir>> {
        match stack {
            Stack::Overlay { layers } => layers.iter().map(|name| self.layer_tree(name)).collect(),
            Stack::HardLink { tree } => Ok(vec![self.tree(tree)?]),
        }
    }

    /// The directories that a deployment's root is put together from, newest first: its
    /// own layers that are on, then its stack.
    pub fn root_dirs(&self, record: &DeploymentRecord) -> Result<Vec<Dir>> {
        let mut dirs: Vec<Dir> =
            record.own_on().map(|name| self.layer_tree(name)).collect::<Result<_>>()?;
        dirs.extend(self.stack_dirs(&record.stack)?);
        Ok(dirs)
    }

    /// Whether the deployment was confirmed to work.
    pub fn is_confirmed(&self, name: &DeploymentName) -> Result<bool> {
        Ok(self.deployment_dir(name)?.stat_opt(CONFIRMED)?.is_some())
    }

    /// Notes, durably, that the deployment works.
    pub fn mark_confirmed(&self, name: &DeploymentName) -> Result<()> {
        set_mark(&self.deployment_dir(name)?, CONFIRMED)
    }

    /// Takes the confirmation back, durably (after a roll back).
    pub fn unmark_confirmed(&self, name: &DeploymentName) -> Result<()> {
        self.unmark(name, CONFIRMED)
    }

    /// Sets or clears, durably, the user's wish to keep the deployment.
    pub fn set_pinned(&self, name: &DeploymentName, pinned: bool) -> Result<()> {
        if !pinned {
            return self.unmark(name, PINNED);
        }
        set_mark(&self.deployment_dir(name)?, PINNED)
    }

    /// How long a deployment has worked; none where nothing, or nothing readable, was noted.
    pub fn proven(&self, name: &DeploymentName) -> Result<Option<Proven>> {
        let bytes = self.deployment_dir(name)?.read_opt(PROVEN, proven::MAX_TEXT)?;
        Ok(bytes.and_then(|bytes| Proven::parse(&bytes).ok()))
    }

    /// Notes, durably, how long a deployment has worked.
    pub fn set_proven(&self, name: &DeploymentName, proven: &Proven) -> Result<()> {
        let dir = self.deployment_dir(name)?;
        Ok(durable::replace_file(&dir, PROVEN, proven.to_text().as_bytes(), 0o644)?)
    }

    fn unmark(&self, name: &DeploymentName, mark: &str) -> Result<()> {
        let dir = self.deployment_dir(name)?;
        match dir.unlink(mark) {
            Err(error) if error.is_not_found() => Ok(()),
            other => Ok(other.and_then(|()| durable::sync_directory(&dir))?),
        }
    }

    /// Replaces a deployment's record whole and durably: the commit point of a merge.
    pub(crate) fn replace_record(&self, record: &DeploymentRecord) -> Result<()> {
        let dir = self.deployment_dir(&record.name)?;
        Ok(records::replace(&dir, RECORD, &record.to_text())?)
    }

    /// Replaces a deployment's manifest, which the disk has damaged, by the text that its
    /// release names; nothing else is taken.
    pub fn mend_manifest(&self, name: &DeploymentName, text: &[u8]) -> Result<()> {
        let release = self.deployment(name)?.record.release;
        let digest = varve_format::Sha256Digest::of(text).0;
        if release.is_none_or(|release| release.digest.0 != digest) {
            return Err(StoreError::OtherManifest { name: name.clone() });
        }
        Ok(durable::replace_file(&self.deployment_dir(name)?, MANIFEST, text, 0o644)?)
    }

    /// Writes record and manifest text into a directory that is being prepared.
    pub(crate) fn write_deployment(
        dir: &Dir,
        record: &DeploymentRecord,
        manifest: &[u8],
    ) -> Result<()> {
        Self::write_record(dir, record)?;
        dir.create_file(MANIFEST, 0o644)?.write_all(manifest)?;
        Ok(())
    }

    /// Writes a record alone into a directory that is being prepared.
    pub(crate) fn write_record(dir: &Dir, record: &DeploymentRecord) -> Result<()> {
        Ok(records::write(dir, RECORD, &record.to_text())?)
    }

    /// Gives a layer another title, durably: the old record stands or the new, whole.
    pub fn set_layer_title(&self, name: &LayerName, title: &str) -> Result<()> {
        let record = LayerRecord { title: title.to_owned(), ..self.layer(name)? };
        let dir = self.layers.open_dir(name)?;
        Ok(records::replace(&dir, LAYER_RECORD, &record.to_text())?)
    }

    /// The number that the next deployment gets: above all that are here.
    pub fn next_number(&self) -> Result<u64> {
        let deployments = self.deployments()?.items;
        Ok(deployments.last().map_or(0, |last| last.record.number) + 1)
    }

    /// A deployment name that is free, `wanted` itself when it is.
    pub fn free_deployment_name(&self, wanted: &str) -> Result<DeploymentName> {
        free_name(wanted, &[&self.deployments])
    }

    /// A name that neither a layer nor a tree has, `wanted` itself when it is free.
    pub fn free_layer_name(&self, wanted: &str) -> Result<LayerName> {
        free_name(wanted, &[&self.layers, &self.trees])
    }

    /// The verified content of this digest in incoming/, if it is there: its size.
    pub fn incoming_size(&self, digest: &ContentDigest) -> Result<Option<u64>> {
        let stat = self.incoming.stat_opt(digest.to_hex())?;
        Ok(stat.filter(|stat| stat.is_file()).map(|stat| stat.size))
    }

    pub(crate) fn deployment_dir(&self, name: &DeploymentName) -> Result<Dir> {
        self.deployments
            .open_dir_opt(name)?
            .ok_or_else(|| StoreError::NoDeployment { name: name.clone() })
    }
}

/// Makes an empty file, of which nothing but the name counts, durably.
fn set_mark(dir: &Dir, mark: &str) -> Result<()> {
    if dir.stat_opt(mark)?.is_none() {
        dir.create_file(mark, 0o644)?;
    }
    Ok(durable::sync_directory(dir)?)
}

/// Lists the directories of `dir` that have a name of ours and that `read` can read.
fn list_named<N, T>(dir: &Dir, place: &str, read: impl Fn(&N) -> Result<T>) -> Result<Listing<T>>
where
    N: std::str::FromStr<Err: std::fmt::Display>,
{
    let mut listing = Listing { items: Vec::new(), strange: Vec::new() };
    for entry in dir.names()? {
        let shown = entry.name.to_string_lossy();
        let mut strange = |why: String| {
            listing.strange.push(Strange { path: format!("{place}/{shown}"), why });
        };
        let name = match shown.parse::<N>() {
            Ok(name) if entry.name.to_str().is_some() => name,
            Ok(_) => {
                strange("its name is not UTF-8".to_owned());
                continue;
            }
            Err(error) => {
                strange(error.to_string());
                continue;
            }
        };
        let is_directory = entry.file_type == FileType::Directory
            || (entry.file_type == FileType::Unknown && dir.stat(&entry.name)?.is_dir());
        if !is_directory {
            strange("it is not a directory".to_owned());
            continue;
        }
        match read(&name) {
            Ok(item) => listing.items.push(item),
            Err(error) => strange(whole_message(&error).trim_end().to_owned()),
        }
    }
    Ok(listing)
}

fn free_name<N: std::str::FromStr<Err: std::fmt::Debug> + AsRef<Path>>(
    wanted: &str,
    places: &[&Dir],
) -> Result<N> {
    // Room for a suffix: a name has at most 100 bytes, all ASCII.
    let wanted = &wanted[..wanted.len().min(90)];
    for number in 1.. {
        let name = if number == 1 { wanted.to_owned() } else { format!("{wanted}.{number}") };
        let name: N = name.parse().expect("a valid name with a number stays valid");
        let mut taken = false;
        for place in places {
            taken |= place.stat_opt(&name)?.is_some();
        }
        if !taken {
            return Ok(name);
        }
    }
    unreachable!("some number is free")
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_format::deployment::{FORMAT, RootMode};

    fn record(name: &str, number: u64) -> DeploymentRecord {
        DeploymentRecord {
            format: FORMAT,
            fresh_root: false,
            own: Vec::new(),
            title: String::new(),
            name: name.parse().unwrap(),
            created: 0,
            number,
            stack: Stack::HardLink { tree: "t".parse().unwrap() },
            root_mode: RootMode::ReadOnly,
            release: None,
            kernel: None,
            state: Vec::new(),
        }
    }

    #[test]
    fn junk_is_named_and_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let physical_root = Dir::open(folder.path()).unwrap();
        assert!(matches!(Store::open(&physical_root), Err(StoreError::NoStore { .. })));
        let store = Store::create(&physical_root).unwrap();
        assert_eq!(store.next_number().unwrap(), 1);
        for (directory, record) in [
            ("b", record("b", 2)),
            ("a", record("a", 10)),
            ("copy-of-a", record("a", 10)),
            (" space", record("c", 3)),
        ] {
            let dir = store.deployments.make_dir(directory, 0o755).unwrap();
            Store::write_deployment(&dir, &record, b"").unwrap();
        }
        store.deployments.make_dir("empty", 0o755).unwrap();
        store.deployments.create_file("file", 0o644).unwrap();
        store.deployments.symlink(b"a", "link").unwrap();
        let listing = store.deployments().unwrap();
        let names: Vec<_> = listing.items.iter().map(|d| d.name().as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        let strange: Vec<_> = listing.strange.iter().map(|s| s.path.as_str()).collect();
        assert_eq!(
            strange,
            [" space", "copy-of-a", "empty", "file", "link"].map(|n| format!("deployments/{n}"))
        );
        assert_eq!(store.next_number().unwrap(), 11);
        assert_eq!(store.free_deployment_name("a").unwrap().as_str(), "a.2");
        assert_eq!(store.free_deployment_name("z").unwrap().as_str(), "z");
    }

    #[test]
    fn marks_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(&Dir::open(folder.path()).unwrap()).unwrap();
        let dir = store.deployments.make_dir("a", 0o755).unwrap();
        Store::write_deployment(&dir, &record("a", 1), b"").unwrap();
        let name = "a".parse().unwrap();
        assert!(!store.is_confirmed(&name).unwrap());
        store.mark_confirmed(&name).unwrap();
        store.set_pinned(&name, true).unwrap();
        let deployment = store.deployment(&name).unwrap();
        assert!(deployment.confirmed && deployment.pinned);
        store.set_pinned(&name, false).unwrap();
        store.set_pinned(&name, false).unwrap();
        store.unmark_confirmed(&name).unwrap();
        let deployment = store.deployment(&name).unwrap();
        assert!(!deployment.confirmed && !deployment.pinned);
        let missing = "none".parse().unwrap();
        assert!(matches!(store.mark_confirmed(&missing), Err(StoreError::NoDeployment { .. })));
    }
}
