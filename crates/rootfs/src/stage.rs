//! From a plan to a deployment: complete on disk, and invisible to boot until the one
//! rename that commits it.
//!
//! ```text
//! staging/<deployment>/
//!   owner                who began it; for people
//!   part                 which layer or tree is moved into place, once that begins
//!   layer/               layer.toml, tree/       -> layers/<part>     (overlay)
//!   tree/                                        -> trees/<part>      (hard link)
//!   deployment/          deployment.toml, manifest -> deployments/<name>
//!
//! stage() -> Staged -- verify() --> Verified -- commit() --> Deployment
//! ```
//!
//! The types keep the order: what was not verified cannot be committed. After a power
//! cut there is the deployment, whole, or there is not; [`sweep`] removes what is left
//! of the way. All of it is called with the update manager's lock held, so nobody else's
//! staging is ever swept.

use varve_format::deployment::{
    DeploymentRecord, FORMAT, LayerRecord, OwnLayer, ReleaseRef, RootMode, Stack, StatePath,
};
use varve_format::manifest::Manifest;
use varve_format::release::Kernel;
use varve_format::{ContentDigest, DeploymentName, LayerName, TreePath};
use varve_sys::task::{Cancel, Cancelled, Progress};
use varve_sys::{Dir, SysError, durable, faults};

use crate::layout::{Source, StagePlan};
use crate::records;
use crate::state::{self, StateError};
use crate::store::{Deployment, LAYER_RECORD, LAYER_TREE, Store, StoreError, Strange};
use crate::tree::Build;
use crate::verify::{self, Contents, Level, Report, VerifyError};

const OWNER: &str = "owner";
const PART: &str = "part";
const LAYER: &str = "layer";
const TREE: &str = "tree";
const DEPLOYMENT: &str = "deployment";
/// Where a command's changes are, before they are a layer.
pub(crate) const SCRATCH: &str = "run";

/// Why staging failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// The disk.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state of the new deployment.
    #[error(transparent)]
    State(#[from] StateError),
    /// It could not be found out whether it is right.
    #[error(transparent)]
    Verify(VerifyError),
    /// Asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A content that the plan counts on is not in incoming/, or has another length.
    #[error("the content {digest} is not in incoming")]
    Incoming {
        /// Which.
        digest: ContentDigest,
        /// What the kernel said.
        source: Option<SysError>,
    },
    /// A path that the plan wants to link or copy is not where the manifest says.
    #[error("{path} is missing from a deployment that is here; `varve fsck` tells more")]
    SourceGone {
        /// Which.
        path: TreePath,
    },
    /// What was staged is not what the release's manifest says. It was deleted.
    #[error("what was staged differs from its manifest in {}", report.in_words())]
    Differs {
        /// How.
        report: Box<Report>,
    },
    /// A stack that no kernel is trusted to mount.
    #[error(
        "the root would be put together from {height} layers; at most {} are",
        crate::own::MAX_HEIGHT
    )]
    TooHigh {
        /// How many.
        height: usize,
    },
    /// The name was taken in the meantime.
    #[error("there is a deployment {name} already")]
    NameTaken {
        /// Which.
        name: DeploymentName,
    },
}

impl StageError {
    /// Whether the disk (or its inodes) is full.
    pub fn is_no_space(&self) -> bool {
        let sys = match self {
            StageError::Sys(error) | StageError::Store(StoreError::Sys(error)) => Some(error),
            StageError::Verify(VerifyError::Sys(error)) => Some(error),
            StageError::State(error) => error.sys(),
            _ => None,
        };
        sys.is_some_and(SysError::is_no_space)
    }
}

impl From<VerifyError> for StageError {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            other => Self::Verify(other),
        }
    }
}

type Result<T> = std::result::Result<T, StageError>;

/// What a new deployment's record says beside its stack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Details {
    /// Seconds since 1970 by the device's clock.
    pub created: i64,
    /// What may be written at its root.
    pub root_mode: RootMode,
    /// Which release it is.
    pub release: Option<ReleaseRef>,
    /// Its kernel.
    pub kernel: Option<Kernel>,
    /// Its state paths.
    pub state: Vec<StatePath>,
    /// The user's own layers over it, newest first.
    pub own: Vec<OwnLayer>,
    /// For people; may be empty.
    pub title: String,
}

/// Written, not yet verified, in staging/.
#[derive(Debug)]
pub struct Staged<'a> {
    store: &'a Store,
    staging: Dir,
    plan: StagePlan,
    manifest: &'a Manifest,
}

/// Equal to its manifest, in staging/.
#[derive(Debug)]
pub struct Verified<'a> {
    staged: Staged<'a>,
    /// What was compared.
    pub report: Report,
}

/// Writes what a plan says; see [`crate::layout::RootLayout::stage`].
pub(crate) fn stage<'a>(
    store: &'a Store,
    plan: StagePlan,
    manifest: &'a Manifest,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Staged<'a>> {
    let base = plan.base.as_ref().map(|name| store.deployment(name)).transpose()?;
    let mut origins = Vec::new();
    for name in &plan.origins {
        origins.push(store.deployment(name)?.record.stack);
    }
    let staging = begin(store, &plan.name)?;
    let target = match plan.stack {
        Stack::Overlay { .. } => staging.make_dir(LAYER, 0o755)?.make_dir(LAYER_TREE, 0o700)?,
        Stack::HardLink { .. } => staging.make_dir(TREE, 0o700)?,
    };
    let build = Build {
        store,
        manifest,
        plan: &plan,
        base: base.as_ref().map(|base| &base.record.stack),
        origins: &origins,
        target: &target,
        progress,
        cancel,
    };
    let built = build.run();
    or_discard(store, &plan.name, built)?;
    Ok(Staged { store, staging, plan, manifest })
}

/// Gives back at once the room that a failed staging took: the disk may be full. What
/// cannot be deleted now is swept later, and the first error is the one to tell.
pub(crate) fn or_discard<T, E>(
    store: &Store,
    name: &DeploymentName,
    result: std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    if result.is_err() {
        let _ = durable::clear_away(store.staging(), name.as_str(), store.trash());
    }
    result
}

/// An empty staging/<name>; what an earlier attempt left there goes.
pub(crate) fn begin(store: &Store, name: &DeploymentName) -> Result<Dir> {
    durable::clear_away(store.staging(), name.as_str(), store.trash())?;
    let staging = store.staging().make_dir(name, 0o700)?;
    let owner = format!("pid {}\n", std::process::id());
    staging.create_file(OWNER, 0o644)?.write_all(owner.as_bytes())?;
    Ok(staging)
}

impl<'a> Staged<'a> {
    /// What was planned.
    pub fn plan(&self) -> &StagePlan {
        &self.plan
    }

    /// Compares the whole deployment, as its mount will show it, with its manifest.
    /// What differs is deleted: the error tells how it differed.
    pub fn verify(
        self,
        level: Level,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Verified<'a>> {
        let new: Vec<u32> = self
            .plan
            .steps
            .iter()
            .filter(|step| !matches!(step.source, Source::Fresh | Source::Link(_)))
            .map(|step| step.at)
            .collect();
        let contents = match level {
            Level::Structure => Contents::Nothing,
            Level::NewContents => Contents::Only(&new),
            Level::Full => Contents::Everything,
        };
        let layers = self.layers()?;
        let report = verify::verify(layers, self.manifest, contents, progress, cancel)?;
        if !report.is_clean() && !faults::out("check.staged") {
            self.abandon()?;
            return Err(StageError::Differs { report: Box::new(report) });
        }
        Ok(Verified { staged: self, report })
    }

    /// Deletes it.
    pub fn abandon(self) -> Result<()> {
        let name = self.plan.name.as_str();
        Ok(durable::clear_away(self.store.staging(), name, self.store.trash())?)
    }

    /// The staged part, and the layers below that are here already.
    fn layers(&self) -> Result<Vec<Dir>> {
        let mut layers = match &self.plan.stack {
            Stack::Overlay { .. } => vec![self.staging.open_dir(LAYER)?.open_dir(LAYER_TREE)?],
            Stack::HardLink { .. } => vec![self.staging.open_dir(TREE)?],
        };
        for name in self.plan.stack.layers().iter().skip(1) {
            layers.push(self.store.layer_tree(name)?);
        }
        Ok(layers)
    }
}

impl Verified<'_> {
    /// What was planned.
    pub fn plan(&self) -> &StagePlan {
        &self.staged.plan
    }

    /// Deletes it.
    pub fn abandon(self) -> Result<()> {
        self.staged.abandon()
    }

    /// Makes it a deployment. Until the rename into deployments/ there is none, from
    /// then on there is, whole; durably so with the next sync of the file system, which the
    /// caller owes before anything names it. What cannot be committed is deleted.
    pub fn commit(self, details: Details) -> Result<Deployment> {
        let (store, name) = (self.staged.store, self.staged.plan.name.clone());
        let (record, part) = or_discard(store, &name, self.prepare(details))?;
        let staging = &self.staged.staging;

        durable::sync_file_system(store.dir())?;
        part.move_into_place(store, staging)?;
        commit_deployment(store, staging, &name)?;

        tidy(store, &name);
        Ok(Deployment { record, confirmed: false, pinned: false })
    }

    /// Everything that a commit needs, written and not yet synced.
    fn prepare(&self, details: Details) -> Result<(DeploymentRecord, Part)> {
        let Staged { store, staging, plan, manifest } = &self.staged;
        if store.deployments_dir().stat_opt(&plan.name)?.is_some() {
            return Err(StageError::NameTaken { name: plan.name.clone() });
        }
        let record = DeploymentRecord {
            format: FORMAT,
            name: plan.name.clone(),
            created: details.created,
            number: store.next_number()?,
            stack: plan.stack.clone(),
            root_mode: details.root_mode,
            release: details.release,
            kernel: details.kernel,
            state: details.state,
            own: details.own,
            fresh_root: false,
            title: details.title,
        };
        let prepared = make_deployment_dir(staging)?;
        Store::write_deployment(&prepared, &record, &manifest.to_text())?;
        state::prepare(store, &record, manifest)?;
        let part = self.prepare_part(record.created, record.release.clone())?;
        Ok((record, part))
    }

    /// The layer or tree, ready to be moved into place.
    fn prepare_part(&self, created: i64, release: Option<ReleaseRef>) -> Result<Part> {
        let Staged { staging, plan, manifest, .. } = &self.staged;
        if let Some(kind) = plan.layer_kind {
            let layer = LayerRecord {
                format: FORMAT,
                name: plan.part.clone(),
                created,
                kind,
                release,
                title: String::new(),
                made_by: String::new(),
                captured_from: None,
                signed_by: None,
                size: Some(plan.layer_bytes(manifest)),
            };
            write_layer_record(&staging.open_dir(LAYER)?, &layer)?;
        }
        let part = Part { is_layer: plan.layer_kind.is_some(), name: plan.part.clone() };
        part.announce(staging)?;
        Ok(part)
    }

    /// Puts what was staged in the place of the stack of the deployment of this name, which
    /// is here: a repair. Its record is replaced at once; its number, marks and state stay.
    /// No file of the old layers or tree is touched: they are nobody's then, and go when
    /// nothing is mounted on them.
    pub fn replace(self, created: i64) -> Result<Deployment> {
        let Staged { store, staging, plan, .. } = &self.staged;
        let old = store.deployment(&plan.name)?;
        let record = DeploymentRecord { stack: plan.stack.clone(), ..old.record };
        let prepared = self.prepare_part(created, record.release.clone());
        let part = or_discard(store, &plan.name, prepared)?;

        durable::sync_file_system(store.dir())?;
        part.move_into_place(store, staging)?;
        store.replace_record(&record)?;

        tidy(store, &plan.name);
        Ok(Deployment { record, confirmed: old.confirmed, pinned: old.pinned })
    }
}

/// Where a deployment's record and manifest are prepared.
pub(crate) fn make_deployment_dir(staging: &Dir) -> varve_sys::Result<Dir> {
    staging.make_dir(DEPLOYMENT, 0o755)
}

/// The one rename from which on there is a deployment; all of it is durable before. The rename
/// itself is with the next sync of the file system, which [`crate::state::carry`] makes:
/// nothing may be promised of the deployment before.
pub(crate) fn commit_deployment(
    store: &Store,
    staging: &Dir,
    name: &DeploymentName,
) -> varve_sys::Result<()> {
    staging.rename_new(DEPLOYMENT, store.deployments_dir(), name.as_str())
}

/// After a commit: what is left of the way goes now, or with the next sweep, which leaves the part
/// that it names alone, for a record names it too. So no sync is owed.
pub(crate) fn tidy(store: &Store, name: &DeploymentName) {
    let _ = store.staging().remove_all(name.as_str());
}

/// The layer or tree that a staging makes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) is_layer: bool,
    pub(crate) name: LayerName,
}

impl Part {
    fn place<'a>(&self, store: &'a Store) -> (&'a Dir, &'static str) {
        match self.is_layer {
            true => (store.layers_dir(), "layers/"),
            false => (store.trees_dir(), "trees/"),
        }
    }

    /// Notes in the staging what will be moved, so that a sweep can undo it.
    pub(crate) fn announce(&self, staging: &Dir) -> varve_sys::Result<()> {
        let prefix = if self.is_layer { "layers/" } else { "trees/" };
        let text = format!("{prefix}{}\n", self.name);
        staging.create_file(PART, 0o644)?.write_all(text.as_bytes())
    }

    fn announced(staging: &Dir) -> varve_sys::Result<Option<Self>> {
        let text = staging.read_opt(PART, 4096)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let part = |is_layer, name: &str| {
            Some(Self { is_layer, name: name.strip_suffix('\n')?.parse().ok()? })
        };
        Ok(match (text.strip_prefix("layers/"), text.strip_prefix("trees/")) {
            (Some(name), _) => part(true, name),
            (_, Some(name)) => part(false, name),
            _ => None,
        })
    }

    /// Renames it from the staging into its place, where nothing names it yet. The root of a tree
    /// is what is moved itself, and F2FS notes the new `..` as a change of it: it gets its time
    /// back, durably, before anything names it.
    pub(crate) fn move_into_place(&self, store: &Store, staging: &Dir) -> varve_sys::Result<()> {
        let name = if self.is_layer { LAYER } else { TREE };
        let (place, new) = (self.place(store).0, self.name.as_str());
        let modified = staging.stat(name)?.mtime;
        durable::commit_rename(staging, name, place, new)?;
        if self.is_layer || place.stat(new)?.mtime == modified {
            return Ok(());
        }
        place.set_times(new, modified)?;
        durable::sync_directory(&place.open_dir(new)?)
    }
}

/// Writes `layer.toml` into a layer that is being prepared.
pub(crate) fn write_layer_record(layer: &Dir, record: &LayerRecord) -> Result<()> {
    Ok(records::write(layer, LAYER_RECORD, &record.to_text())?)
}

/// What a sweep removed, and what it left alone.
#[derive(Debug, Default)]
pub struct Swept {
    /// Relative to `/varve`.
    pub removed: Vec<String>,
    /// What is not ours.
    pub strange: Vec<Strange>,
}

/// Removes what interrupted work left: stagings, the parts that they had already moved
/// into place, half-made state, the trash; and writes the copies of records that a cut left
/// behind. Contents in incoming/ stay. The caller holds
/// the update manager's lock. Works on a full disk.
pub fn sweep(store: &Store) -> Result<Swept> {
    let mut swept = Swept::default();
    for entry in store.staging().names()? {
        let shown = format!("staging/{}", entry.name.to_string_lossy());
        let name = entry.name.to_str().and_then(|name| name.parse::<DeploymentName>().ok());
        let dir = match &name {
            Some(name) => store.staging().open_dir(name).ok(),
            None => None,
        };
        let (Some(name), Some(dir)) = (name, dir) else {
            let why = "it is no staging of ours".to_owned();
            swept.strange.push(Strange { path: shown, why });
            continue;
        };
        let known = [OWNER, PART, LAYER, TREE, DEPLOYMENT, SCRATCH];
        let ours = |found: &varve_sys::Name| known.iter().any(|known| found.name == **known);
        if !dir.names()?.iter().all(ours) {
            let why = "it holds something that no staging of ours has".to_owned();
            swept.strange.push(Strange { path: shown, why });
            continue;
        }
        if let Some(part) = uncommitted_part(store, &dir)? {
            let (place, prefix) = part.place(store);
            durable::discard(place, part.name.as_str(), store.trash())?;
            swept.removed.push(format!("{prefix}{}", part.name));
        }
        durable::clear_away(store.staging(), name.as_str(), store.trash())?;
        swept.removed.push(shown);
    }
    swept.removed.extend(state::sweep(store)?);
    for entry in store.trash().names()? {
        store.trash().remove_all(&entry.name)?;
        swept.removed.push(format!("trash/{}", entry.name.to_string_lossy()));
    }
    records::align(store)?;
    Ok(swept)
}

/// The part that an interrupted commit (or merge) had moved into place, when no record
/// names it.
fn uncommitted_part(store: &Store, staging: &Dir) -> Result<Option<Part>> {
    let Some(part) = Part::announced(staging)? else { return Ok(None) };
    let moved = part.place(store).0.stat_opt(&part.name)?.is_some();
    let deployments = store.deployments()?;
    // A record that cannot be read may name it: then it stays.
    if !moved || !deployments.strange.is_empty() {
        return Ok(None);
    }
    let is_tree = |record: &DeploymentRecord| match &record.stack {
        Stack::Overlay { .. } => false,
        Stack::HardLink { tree } => *tree == part.name,
    };
    let names = |deployment: &Deployment| match part.is_layer {
        true => deployment.record.parts().any(|name| *name == part.name),
        false => is_tree(&deployment.record),
    };
    Ok((!deployments.items.iter().any(names)).then_some(part))
}
