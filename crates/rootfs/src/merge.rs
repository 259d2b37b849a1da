//! Folds neighbouring layers of a stack into one, never in place.
//!
//! ```text
//! before   [u3, u2, u1, base]   fold 2..4      after   [u3, u2, base']
//!
//! staging/<deployment>/layer/{layer.toml,tree/}     made of hard links to the old layers
//!   proved equal to the deployment's manifest       (its whole new stack)
//!   -> layers/<new>, then the record is replaced    the commit point
//! the old layers stay for `collect`, once nothing is mounted on them
//! ```
//!
//! The fold itself (`fold.rs`) works from the layers alone, since a layer made on the
//! device has no manifest; where there is one, the result is proved against it. When a
//! lower part of the stack stays (the range does not reach the base), whiteouts and opaque
//! marks are kept for it. Caller: the update manager.

use std::ops::Range;

use varve_format::TreePath;
use varve_format::deployment::{DeploymentRecord, FORMAT, LayerKind, LayerRecord, Stack};
use varve_format::manifest::Manifest;
use varve_format::{DeploymentName, LayerName};
use varve_sys::task::{Cancel, Cancelled, Progress, Unit};
use varve_sys::{Dir, SysError, durable, faults};

pub use crate::fold::{Counts, FoldError, Layer, copy, fold};
use crate::stage::{Part, StageError, begin, or_discard, tidy, write_layer_record};
use crate::store::{Deployment, LAYER_TREE, Store, StoreError};
use crate::verify::{Contents, Level, Report, VerifyError, verify};

/// Why layers could not be folded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The disk.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Staging.
    #[error(transparent)]
    Stage(Box<StageError>),
    /// Asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The deployment has no such layers.
    #[error(
        "deployment {name} has {layers} layers: there is no range {range:?} of two or more to fold"
    )]
    Range {
        /// Which.
        name: DeploymentName,
        /// How many it has; none for a tree.
        layers: usize,
        /// What was asked for.
        range: Range<usize>,
    },
    /// A layer says something by overlayfs's means that it does not show by itself.
    #[error("{path} in layer {layer} has the attribute {name}, which cannot be folded")]
    Refused {
        /// Which layer.
        layer: LayerName,
        /// Where in it.
        path: TreePath,
        /// Which attribute.
        name: String,
    },
    /// The merged stack is not what the deployment's manifest says. It was deleted; the
    /// old layers boot as before.
    #[error("the merged layers differ from the deployment's manifest in {}", report.in_words())]
    Differs {
        /// How.
        report: Box<Report>,
    },
}

impl From<StageError> for MergeError {
    fn from(error: StageError) -> Self {
        match error {
            StageError::Sys(error) => Self::Sys(error),
            StageError::Store(error) => Self::Store(error),
            StageError::Cancelled(error) => Self::Cancelled(error),
            other => Self::Stage(Box::new(other)),
        }
    }
}

impl From<VerifyError> for MergeError {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Sys(error) => Self::Sys(error),
            VerifyError::Cancelled(error) => Self::Cancelled(error),
        }
    }
}

type Result<T> = std::result::Result<T, MergeError>;

/// What a merge did.
#[derive(Debug)]
pub struct Merged {
    /// The deployment with its new stack.
    pub deployment: Deployment,
    /// The new layer.
    pub layer: LayerName,
    /// What was done.
    pub counts: Counts,
    /// The comparison with the manifest, where there is one.
    pub report: Option<Report>,
}

/// Folds the layers `range` (0 is the newest) of a deployment's stack. The new layer
/// shows what they showed. `created` is now, in seconds since 1970; `level` says how
/// much of the whole is compared with the manifest before the record is replaced.
pub fn merge(
    store: &Store,
    name: &DeploymentName,
    range: Range<usize>,
    created: i64,
    level: Level,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Merged> {
    let deployment = store.deployment(name)?;
    let layers = deployment.record.stack.layers();
    if range.end > layers.len() || range.len() < 2 {
        let (name, layers) = (name.clone(), layers.len());
        return Err(MergeError::Range { name, layers, range });
    }
    let manifest = match store.manifest(name) {
        Ok(manifest) => Some(manifest),
        Err(StoreError::NoManifest { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let folded = &layers[range.clone()];
    let newest = store.layer(&folded[0])?;
    let to_base = range.end == layers.len();
    let record = LayerRecord {
        format: FORMAT,
        name: store.free_layer_name(&format!("{name}.merged"))?,
        created,
        kind: if to_base { LayerKind::Base } else { newest.kind },
        release: newest.release,
        title: newest.title,
        made_by: String::new(),
        captured_from: None,
        signed_by: None,
        size: sizes(store, folded)?,
    };
    let staging = begin(store, name)?;
    let built = build(store, &staging, layers, &range, manifest.as_ref(), level, progress, cancel);
    let (counts, report) = or_discard(store, name, built)?;
    let mut stack = layers.to_vec();
    stack.splice(range, [record.name.clone()]);
    let new = DeploymentRecord { stack: Stack::Overlay { layers: stack }, ..deployment.record };
    commit(store, &staging, &record, &new)?;
    let deployment = Deployment { record: new, ..deployment };
    Ok(Merged { deployment, layer: record.name, counts, report })
}

/// What a fold of these takes at most: the sum of what each was made with.
fn sizes(store: &Store, layers: &[LayerName]) -> Result<Option<u64>> {
    let mut sum = Some(0);
    for name in layers {
        sum = sum.zip(store.layer(name)?.size).map(|(a, b)| a + b);
    }
    Ok(sum)
}

/// Makes the new layer's directory in the staging, and proves it.
#[expect(clippy::too_many_arguments, reason = "one caller; a struct would only rename them")]
fn build(
    store: &Store,
    staging: &Dir,
    layers: &[LayerName],
    range: &Range<usize>,
    manifest: Option<&Manifest>,
    level: Level,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(Counts, Option<Report>)> {
    let target = staging.make_dir("layer", 0o755)?.make_dir(LAYER_TREE, 0o700)?;
    let folded = &layers[range.clone()];
    let mut dirs = Vec::new();
    for name in folded {
        let made_here = matches!(store.layer(name)?.kind, LayerKind::Base | LayerKind::Update);
        // Without a manifest nothing finds afterwards what was not looked at.
        let foreign = !made_here || manifest.is_none();
        dirs.push(Layer { dir: store.layer_tree(name)?, foreign });
    }
    let total = manifest.map(|manifest| manifest.entries().len() as u64);
    progress.begin("merging", Unit::Paths, total);
    let to_base = range.end == layers.len();
    let counts = fold(dirs, &target, to_base, progress, cancel).map_err(|error| match error {
        FoldError::Refused { layer, path, name } => {
            MergeError::Refused { layer: folded[layer].clone(), path, name }
        }
        FoldError::Sys(error) => error.into(),
        FoldError::Cancelled(error) => error.into(),
        FoldError::Busy { .. } => unreachable!("a fold by links copies nothing in use"),
    })?;
    progress.end();
    let Some(manifest) = manifest else { return Ok((counts, None)) };

    // The whole new stack: what is above, the new layer, what is below.
    let mut stack = Vec::new();
    for name in &layers[..range.start] {
        stack.push(store.layer_tree(name)?);
    }
    stack.push(target);
    for name in &layers[range.end..] {
        stack.push(store.layer_tree(name)?);
    }
    // A merge writes no contents of its own.
    let contents = match level {
        Level::Structure | Level::NewContents => Contents::Nothing,
        Level::Full => Contents::Everything,
    };
    let report = verify(stack, manifest, contents, progress, cancel)?;
    match report.is_clean() || faults::out("check.merged") {
        true => Ok((counts, Some(report))),
        false => Err(MergeError::Differs { report: Box::new(report) }),
    }
}

/// The old stack boots until the record is replaced, the new one from then on.
fn commit(store: &Store, staging: &Dir, layer: &LayerRecord, new: &DeploymentRecord) -> Result<()> {
    let part = Part { is_layer: true, name: layer.name.clone() };
    let prepared = write_layer_record(&staging.open_dir("layer")?, layer)
        .and_then(|()| Ok(part.announce(staging)?));
    or_discard(store, &new.name, prepared)?;

    durable::sync_file_system(store.dir())?;
    part.move_into_place(store, staging)?;
    store.replace_record(new)?;

    tidy(store, &new.name);
    Ok(())
}
