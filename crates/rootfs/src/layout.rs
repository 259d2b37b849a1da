//! How a root is held: as layers or as one tree. A plan is pure data; the two layouts
//! differ only in what has to be written and what the stack then is.
//!
//! ```text
//!              base is an overlay         base is a tree       no base
//! Overlay      update layer over it       whole base layer     whole base layer
//! HardLink     whole tree, linked         whole tree, linked   whole tree
//! ```
//!
//! So a device moves from one layout to the other by an upgrade. Everything else (where
//! each content comes from, staging, verifying, committing) is shared.
//!
//! Callers: the update manager: `plan`, then fetch what [`StagePlan::fetch`] lists, then
//! [`RootLayout::stage`].

use varve_format::deployment::{LayerKind, Layout, Stack};
use varve_format::manifest::Manifest;
use varve_format::tree::Kind;
use varve_format::{ContentDigest, DeploymentName, LayerName, TreePath};
use varve_sys::task::{Cancel, Progress};

use crate::layer::{self, Shape};
use crate::sources;
use crate::stage::{StageError, Staged};
use crate::store::{Deployment, Store, StoreError};
use crate::verify::{Contents, Difference, VerifyError, verify_all};

/// The deepest directory that a device holds: each level costs an open descriptor.
pub const MAX_DEPTH: usize = 200;

/// Whether what is already here is read before it is built upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SourceCheck<'a> {
    /// No: the staged whole is verified afterwards, as far as asked for then.
    #[default]
    Trust,
    /// Yes, every byte and attribute of the base: what is damaged is neither linked nor
    /// copied nor left showing in a lower layer, but written anew and, if no other
    /// deployment has it, fetched. After this, staging need not be verified beyond
    /// [`crate::verify::Level::NewContents`].
    Contents,
    /// As [`Self::Contents`], by one who has read the base already: what is damaged in it.
    Known(&'a [Difference]),
}

/// A content and its length in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Needed {
    /// Which.
    pub digest: ContentDigest,
    /// Bytes.
    pub size: u64,
}

/// What will be done to make a deployment of a release.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StagePlan {
    /// The deployment that will be.
    pub name: DeploymentName,
    /// The deployment that it is built upon.
    pub base: Option<DeploymentName>,
    /// What will boot.
    pub stack: Stack,
    /// The layer or tree that is written; a part of `stack`.
    pub part: LayerName,
    /// What kind of layer that is; none for a tree.
    pub layer_kind: Option<LayerKind>,
    /// Contents that are not on this device: must be in incoming/ before staging.
    pub fetch: Vec<Needed>,
    /// Contents that are needed and are in incoming/ already.
    pub incoming: Vec<Needed>,
    /// Paths that are written; the others show from layers below.
    pub paths: u64,
    /// Files that become one more name of an inode of the base.
    pub linked: u64,
    /// Contents that are copied (or shared as blocks) from deployments that are here.
    pub copied: u64,
    /// Names of the base that are hidden by a whiteout.
    pub whiteouts: u64,
    /// Bytes that staging itself writes: copies and directories, *without* what is
    /// fetched into incoming/, which staging links.
    pub write_bytes: u64,
    /// Inodes that staging itself makes, without those of fetched contents.
    pub write_inodes: u64,
    /// What is damaged in the base, as far as it was read.
    pub damaged: Vec<Difference>,
    pub(crate) steps: Vec<Step>,
    pub(crate) shape: Shape,
    /// Deployments that [`Source::Copy`] refers to.
    pub(crate) origins: Vec<DeploymentName>,
}

impl StagePlan {
    /// Bytes of the contents that the layer or tree holds, each inode once.
    pub(crate) fn layer_bytes(&self, manifest: &Manifest) -> u64 {
        let entries = self.shape.write.iter().map(|&at| &manifest.entries()[at as usize]);
        entries
            .map(|entry| match entry.kind {
                Kind::Regular { size, .. } => size,
                _ => 0,
            })
            .sum()
    }
}

/// One entry of the manifest that is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    /// Its index in the manifest.
    pub(crate) at: u32,
    /// Where a file comes from.
    pub(crate) source: Source,
}

/// Where a file's inode or content comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// No content: everything but files with bytes.
    Fresh,
    /// One more name of the base's inode at this path; none: at the same path.
    Link(Option<TreePath>),
    /// incoming/: the inode itself, which gets this entry's attributes.
    Incoming,
    /// incoming/: a copy, because another entry of other attributes has the inode.
    CopyIncoming,
    /// A copy of a file of `origins[.0]`.
    Copy(u16, TreePath),
}

/// Why no plan can be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The base could not be checked.
    #[error(transparent)]
    Check(#[from] VerifyError),
    /// The release has a device that overlayfs takes for "deleted".
    #[error(
        "the release has a character device 0:0 at {path}, which an overlay takes for a deleted name"
    )]
    Whiteout {
        /// Where.
        path: TreePath,
    },
    /// Too deep a directory.
    #[error("{path} is deeper than {MAX_DEPTH} directories")]
    Depth {
        /// Where.
        path: TreePath,
    },
    /// A layer is said to hide what lies below a directory that it does not have.
    #[error("{path} is no directory of the layer, and is said to hide what lies below it")]
    Opaque {
        /// Where.
        path: TreePath,
    },
}

impl From<varve_sys::SysError> for PlanError {
    fn from(error: varve_sys::SysError) -> Self {
        Self::Store(error.into())
    }
}

/// What is to be planned.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Where.
    pub store: &'a Store,
    /// The deployment to build upon: what boots now, most of all.
    pub base: Option<&'a Deployment>,
    /// What the new deployment will be called; a free name.
    pub name: &'a DeploymentName,
    /// What it will hold.
    pub manifest: &'a Manifest,
    /// Whether what is here is read first.
    pub check: SourceCheck<'a>,
    /// Hears of the reading.
    pub progress: &'a dyn Progress,
    /// Stops the reading.
    pub cancel: &'a Cancel,
}

/// A way to hold a root.
pub trait RootLayout {
    /// Which.
    fn layout(&self) -> Layout;

    /// What has to be written over the base (none: a whole tree), and the stack that
    /// then is; `part` is the name of what is written.
    fn shape(
        &self,
        base: Option<(&Deployment, &Manifest)>,
        manifest: &Manifest,
        damaged: &[Difference],
        part: LayerName,
    ) -> (Shape, Stack);

    /// Sees what is here and what is missing. Writes nothing.
    fn plan(&self, request: &Request<'_>) -> Result<StagePlan, PlanError> {
        plan(request, |base, damaged, part| self.shape(base, request.manifest, damaged, part))
    }

    /// Writes what the plan says into staging/. Everything that the plan lists as
    /// needed must be in incoming/. `release` says whose layer it will be.
    fn stage<'a>(
        &self,
        store: &'a Store,
        plan: StagePlan,
        manifest: &'a Manifest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Staged<'a>, StageError> {
        crate::stage::stage(store, plan, manifest, progress, cancel)
    }
}

/// The layout that a record or a configuration names.
pub fn of(layout: Layout) -> &'static dyn RootLayout {
    match layout {
        Layout::Overlay => &Overlay,
        Layout::HardLink => &HardLink,
    }
}

/// Latest over previous.
#[derive(Clone, Copy, Debug)]
pub struct Overlay;

/// A tree of hard links, changed files replaced.
#[derive(Clone, Copy, Debug)]
pub struct HardLink;

impl RootLayout for Overlay {
    fn layout(&self) -> Layout {
        Layout::Overlay
    }

    fn shape(
        &self,
        base: Option<(&Deployment, &Manifest)>,
        manifest: &Manifest,
        damaged: &[Difference],
        part: LayerName,
    ) -> (Shape, Stack) {
        let mut layers = vec![part];
        let shape = match base {
            Some((base, old)) if base.record.stack.layout() == Layout::Overlay => {
                layers.extend_from_slice(base.record.stack.layers());
                layer::shape(old, manifest, damaged)
            }
            _ => Shape::whole(manifest),
        };
        (shape, Stack::Overlay { layers })
    }
}

impl RootLayout for HardLink {
    fn layout(&self) -> Layout {
        Layout::HardLink
    }

    fn shape(
        &self,
        _base: Option<(&Deployment, &Manifest)>,
        manifest: &Manifest,
        _damaged: &[Difference],
        part: LayerName,
    ) -> (Shape, Stack) {
        (Shape::whole(manifest), Stack::HardLink { tree: part })
    }
}

fn plan(
    request: &Request<'_>,
    shape: impl Fn(Option<(&Deployment, &Manifest)>, &[Difference], LayerName) -> (Shape, Stack),
) -> Result<StagePlan, PlanError> {
    let Request { store, base, manifest, .. } = *request;
    check_holdable(manifest)?;
    // A base without a manifest (a stack that no release describes) cannot be built
    // upon: nothing says what is in it.
    let old = match base {
        Some(base) => match store.manifest(base.name()) {
            Ok(old) => Some((base, old)),
            Err(StoreError::NoManifest { .. }) => None,
            Err(error) => return Err(error.into()),
        },
        None => None,
    };
    let damaged = match (&old, request.check) {
        (Some((base, old)), SourceCheck::Contents) => {
            differences(store, base, old, request.progress, request.cancel)?
        }
        (Some(_), SourceCheck::Known(damaged)) => damaged.to_vec(),
        _ => Vec::new(),
    };
    let base = old.as_ref().map(|(base, old)| (*base, old));
    let part = store.free_layer_name(request.name.as_str())?;
    let (shape, stack) = shape(base, &damaged, part.clone());
    let layer_kind = match stack.layers() {
        [] => None,
        [_] => Some(LayerKind::Base),
        _ => Some(LayerKind::Update),
    };
    let mut plan = StagePlan {
        name: request.name.clone(),
        base: base.map(|(base, _)| base.name().clone()),
        stack,
        part,
        layer_kind,
        fetch: Vec::new(),
        incoming: Vec::new(),
        paths: shape.write.len() as u64,
        linked: 0,
        copied: 0,
        whiteouts: shape.whiteouts.len() as u64,
        write_bytes: 0,
        write_inodes: shape.whiteouts.len() as u64,
        damaged,
        steps: Vec::new(),
        shape,
        origins: Vec::new(),
    };
    sources::find_sources(request, base.map(|(_, old)| old), &mut plan)?;
    Ok(plan)
}

/// Reads a deployment that is to be built upon, every byte and attribute: what is not as
/// its manifest says. One that no release describes is not built upon, and not read.
pub fn damaged(
    store: &Store,
    base: &Deployment,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<Difference>, PlanError> {
    let manifest = match store.manifest(base.name()) {
        Err(StoreError::NoManifest { .. }) => return Ok(Vec::new()),
        other => other?,
    };
    differences(store, base, &manifest, progress, cancel)
}

/// All that is not as the manifest says.
fn differences(
    store: &Store,
    base: &Deployment,
    manifest: &Manifest,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<Difference>, PlanError> {
    let dirs = store.stack_dirs(&base.record.stack)?;
    let all = verify_all(dirs, manifest, Contents::Everything, usize::MAX, progress, cancel)?;
    Ok(all.differences)
}

fn check_holdable(manifest: &Manifest) -> Result<(), PlanError> {
    for entry in manifest.entries() {
        if matches!(entry.kind, Kind::CharDevice(device) if device.0 == 0) {
            return Err(PlanError::Whiteout { path: entry.path.clone() });
        }
        if entry.path.as_bytes().iter().filter(|&&b| b == b'/').count() >= MAX_DEPTH {
            return Err(PlanError::Depth { path: entry.path.clone() });
        }
    }
    Ok(())
}
