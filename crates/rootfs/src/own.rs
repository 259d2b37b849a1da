//! The layers of the device's user: made beside the system, laid over a deployment,
//! switched, moved and taken off again.
//!
//! ```text
//! draft()    staging/<new deployment>/layer/tree      filled by a capture, an archive, a run
//! restack()  + layer.toml, deployment/{deployment.toml, manifest}
//!              sync; layer/ -> layers/<name>; deployment/ -> deployments/<new>  (the commit)
//! ```
//!
//! A change never touches the deployment that it starts from: the new one names the same
//! stack and another list of own layers, is tried at the next boot, and rolled back like
//! an upgrade. Its manifest is one more name of the same file. Caller: the update manager.

use varve_format::DeploymentName;
use varve_format::deployment::{DeploymentRecord, FORMAT, LayerRecord, OwnLayer, StatePath};
use varve_sys::{Dir, durable};

use crate::stage::{self, Part, StageError, begin, or_discard, write_layer_record};
use crate::state;
use crate::store::{Deployment, LAYER_TREE, MANIFEST, Store};

/// So many directories a root is put together from at most. The kernel takes 500; this
/// leaves room, and each costs a look at every path that is nowhere else.
pub const MAX_HEIGHT: usize = 200;

/// A layer that is being made, in staging/.
#[derive(Debug)]
pub struct Draft<'a> {
    store: &'a Store,
    name: DeploymentName,
    staging: Dir,
    tree: Dir,
}

/// Begins a layer that will come with the deployment `name`; what an earlier attempt left
/// there goes.
pub fn draft<'a>(store: &'a Store, name: &DeploymentName) -> Result<Draft<'a>, StageError> {
    let staging = begin(store, name)?;
    let tree = staging.make_dir("layer", 0o755)?.make_dir(LAYER_TREE, 0o755)?;
    Ok(Draft { store, name: name.clone(), staging, tree })
}

impl Draft<'_> {
    pub(crate) fn store(&self) -> &Store {
        self.store
    }

    /// The empty directory that becomes the layer's tree.
    pub fn tree(&self) -> &Dir {
        &self.tree
    }

    /// The deployment that it comes with.
    pub fn deployment(&self) -> &DeploymentName {
        &self.name
    }

    /// A directory beside the tree, for what is to become it; gone with the staging.
    pub fn scratch(&self) -> varve_sys::Result<Dir> {
        self.staging.make_dir(stage::SCRATCH, 0o700)
    }

    /// Deletes the directory beside the tree.
    pub fn drop_scratch(&self) -> varve_sys::Result<()> {
        self.staging.remove_all(stage::SCRATCH)
    }

    /// Deletes it.
    pub fn abandon(self) -> varve_sys::Result<()> {
        durable::clear_away(self.store.staging(), self.name.as_str(), self.store.trash())
    }
}

/// A change of what lies over a deployment's stack.
#[derive(Clone, Debug)]
pub struct Restack<'a> {
    /// Whose stack, kernel, release and root mode stay.
    pub base: &'a Deployment,
    /// What the new deployment is called; a free name.
    pub name: DeploymentName,
    /// Seconds since 1970 by the device's clock.
    pub created: i64,
    /// The own layers from now on, newest first.
    pub own: Vec<OwnLayer>,
    /// The state paths from now on.
    pub state: Vec<StatePath>,
    /// Whether the writable top of the root begins anew.
    pub fresh_root: bool,
    /// For people.
    pub title: String,
}

/// Makes the new deployment; with a draft, its layer too. Until the one rename into
/// deployments/ there is neither. Its versioned state is empty: carry it.
pub fn restack(
    store: &Store,
    restack: &Restack<'_>,
    layer: Option<(Draft<'_>, &LayerRecord)>,
) -> Result<Deployment, StageError> {
    let name = &restack.name;
    let (staging, layer) = match layer {
        Some((draft, record)) => {
            assert_eq!(draft.name, *name, "a draft is made for its deployment");
            (draft.staging, Some(record))
        }
        None => (begin(store, name)?, None),
    };
    let (record, part) = or_discard(store, name, prepare(store, restack, &staging, layer))?;

    durable::sync_file_system(store.dir())?;
    if let Some(part) = part {
        part.move_into_place(store, &staging)?;
    }
    stage::commit_deployment(store, &staging, name)?;

    // Durable with the deployment: a staging that came back later would take its layer for one
    // of a commit that was interrupted, and an own layer may be in no stack.
    stage::tidy(store, name);
    Ok(Deployment { record, confirmed: false, pinned: false })
}

/// Everything that the commit needs, written and not yet synced.
fn prepare(
    store: &Store,
    restack: &Restack<'_>,
    staging: &Dir,
    layer: Option<&LayerRecord>,
) -> Result<(DeploymentRecord, Option<Part>), StageError> {
    let base = &restack.base.record;
    if store.deployments_dir().stat_opt(&restack.name)?.is_some() {
        return Err(StageError::NameTaken { name: restack.name.clone() });
    }
    let record = DeploymentRecord {
        format: FORMAT,
        name: restack.name.clone(),
        created: restack.created,
        number: store.next_number()?,
        own: restack.own.clone(),
        state: restack.state.clone(),
        fresh_root: restack.fresh_root,
        title: restack.title.clone(),
        ..base.clone()
    };
    if record.height() > MAX_HEIGHT {
        return Err(StageError::TooHigh { height: record.height() });
    }
    let manifest = store.manifest(&base.name)?;
    let prepared = stage::make_deployment_dir(staging)?;
    Store::write_record(&prepared, &record)?;
    store.deployment_dir(&base.name)?.hard_link(MANIFEST, &prepared, MANIFEST)?;
    state::prepare(store, &record, &manifest)?;
    let part = match layer {
        Some(layer) => {
            write_layer_record(&staging.open_dir("layer")?, layer)?;
            let part = Part { is_layer: true, name: layer.name.clone() };
            part.announce(staging)?;
            Some(part)
        }
        None => None,
    };
    Ok((record, part))
}
