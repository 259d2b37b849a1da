//! What outlives releases: the writable parts of a system, beside its deployments.
//!
//! ```text
//! state/versioned/<deployment>/<slug>/{upper,work}   each deployment its own
//! state/shared/<slug>/{upper,work}                   one for all
//! state/bind/<slug>/                                 one for all, the release's is hidden
//! ```
//!
//! `<slug>` is [`StateDir::slug`](varve_format::deployment::StateDir::slug), or `!` for the
//! root itself in root mode `persistent`. An upper directory lends its attributes to
//! the mount's root, so it starts with those of the release's directory.
//!
//! Promoting carries the old deployment's versioned state to the new one, and a shut
//! down before the first boot of the new one does so again. Callers: stage, agent.

use std::path::Path;

use varve_format::deployment::{DeploymentRecord, ROOT_SLUG, RootMode, StateDir, StateMode};
use varve_format::manifest::Manifest;
use varve_format::tree::{Entry, Kind};
use varve_format::{DeploymentName, TreePath};
use varve_sys::{Dir, SysError, copy, durable};

use crate::reconcile::{Reconciled, reconcile};
use crate::store::{Store, StoreError};
use crate::tree::attributes;

const VERSIONED: &str = "versioned";
const SHARED: &str = "shared";
const BIND: &str = "bind";
const UPPER: &str = "upper";
const WORK: &str = "work";
/// Below /etc.
const CONFIGURATION: &str = "varve";

/// Why state could not be made or carried.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The disk.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// A layer of one of the two releases.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The release has something else at a state path, or nothing.
    #[error("the release has no directory {path} to keep state in")]
    NoDirectory {
        /// Which.
        path: TreePath,
    },
}

impl StateError {
    pub(crate) fn sys(&self) -> Option<&SysError> {
        match self {
            StateError::Sys(error) | StateError::Store(StoreError::Sys(error)) => Some(error),
            StateError::Store(_) | StateError::NoDirectory { .. } => None,
        }
    }
}

type Result<T> = std::result::Result<T, StateError>;

/// The state paths of `paths` that the release has no directory for.
pub fn missing<'a>(
    paths: impl IntoIterator<Item = &'a StateDir>,
    manifest: &Manifest,
) -> Vec<StateDir> {
    let has = |path: &&StateDir| directory(manifest, path.tree_path()).is_none();
    paths.into_iter().filter(has).cloned().collect()
}

/// Makes what is missing of a new deployment's state: its versioned state anew, shared
/// and bound state where it is not there yet. Not synced: the commit of the deployment
/// does that.
pub(crate) fn prepare(store: &Store, record: &DeploymentRecord, manifest: &Manifest) -> Result<()> {
    for state in &record.state {
        if directory(manifest, state.path.tree_path()).is_none() {
            return Err(StateError::NoDirectory { path: state.path.tree_path().clone() });
        }
    }
    let versioned = store.state().make_dir(VERSIONED, 0o755)?;
    // Left by a deployment of this name that is gone.
    durable::clear_away(&versioned, record.name.as_str(), store.trash())?;
    make_versioned(&versioned, record.name.as_str(), record, manifest)?;
    for state in &record.state {
        let entry = directory(manifest, state.path.tree_path()).expect("checked above");
        let slug = state.path.slug();
        match state.mode {
            StateMode::Versioned => {}
            StateMode::Shared => {
                let shared = store.state().make_dir(SHARED, 0o755)?;
                if shared.stat_opt(&slug)?.is_none() {
                    make_upper(&shared, &slug, entry)?;
                }
            }
            StateMode::Bind => {
                let bind = store.state().make_dir(BIND, 0o755)?;
                if bind.stat_opt(&slug)?.is_none() {
                    bind.mkdir(&slug, 0o700)?;
                    bind.set_attributes(&slug, &attributes(&entry.meta))?;
                }
            }
        }
    }
    Ok(())
}

/// Gives `to` the versioned state of `from`, in place of what it has: each path that
/// both keep versioned, with the user's changes brought onto the other release (see
/// [`crate::reconcile`]); the others start empty. Prepared beside, synced, then the two
/// change places in one act. `manifest` is `to`'s. Reports what was changed on both sides.
pub fn carry(
    store: &Store,
    from: &DeploymentRecord,
    to: &DeploymentRecord,
    manifest: &Manifest,
) -> Result<Vec<Reconciled>> {
    let versioned = store.state().make_dir(VERSIONED, 0o755)?;
    let name = to.name.as_str();
    let new = half_made(&to.name);
    versioned.remove_all(&new)?;
    make_versioned(&versioned, &new, to, manifest)?;
    let mut reports = Vec::new();
    if let Some(source) = versioned.open_dir_opt(&from.name)? {
        let target = versioned.open_dir(&new)?;
        for (slug, path) in slugs(to) {
            if is_fresh(to, &path) {
                keep_configuration(&source, &target, &slug, &path)?;
                continue;
            }
            let Some(old) = source.open_dir_opt(&slug)? else { continue };
            if old.stat_opt(UPPER)?.is_none() {
                continue;
            }
            let beside = target.open_dir(&slug)?;
            beside.remove_all(UPPER)?;
            copy::copy_tree(&old, UPPER, &beside, UPPER)?;
            let (was, is) = (known_to(store, from, to)?, store.root_dirs(to)?);
            reports.extend(reconcile(&beside.open_dir(UPPER)?, &path, was, is)?);
        }
    }
    durable::sync_file_system(store.dir())?;
    if versioned.stat_opt(name)?.is_some() {
        versioned.exchange(&new, &versioned, name)?;
        // What it was before; the exchange is durable with its going.
        durable::discard(&versioned, &new, store.trash())?;
    } else {
        versioned.rename_new(&new, &versioned, name)?;
        durable::sync_directory(&versioned)?;
    }
    Ok(reports)
}

/// Whether the changes at a path begin anew with this deployment.
fn is_fresh(record: &DeploymentRecord, path: &TreePath) -> bool {
    match path.is_root() {
        true => record.fresh_root,
        false => record.state.iter().any(|state| state.fresh && state.path.tree_path() == path),
    }
}

/// A reset of /etc must not leave a device that does not know its updates: its
/// configuration, `/etc/varve`, is carried all the same.
fn keep_configuration(source: &Dir, target: &Dir, slug: &str, path: &TreePath) -> Result<()> {
    if path.as_bytes() != b"etc" {
        return Ok(());
    }
    let Some(old) = source.open_dir_opt(Path::new(slug).join(UPPER))? else { return Ok(()) };
    if old.stat_opt(CONFIGURATION)?.is_none_or(|stat| !stat.is_dir()) {
        return Ok(());
    }
    let new = target.open_dir(Path::new(slug).join(UPPER))?;
    Ok(copy::copy_tree(&old, CONFIGURATION, &new, CONFIGURATION)?)
}

/// What the changes in `from`'s tops were made over: its own root, and the layers of `to`
/// that were captured from it, which hold nothing but such changes.
fn known_to(store: &Store, from: &DeploymentRecord, to: &DeploymentRecord) -> Result<Vec<Dir>> {
    let mut dirs = Vec::new();
    for name in to.own_on().filter(|name| !from.parts().any(|part| part == *name)) {
        if store.layer(name)?.captured_from.as_ref() == Some(&from.name) {
            dirs.push(store.layer_tree(name)?);
        }
    }
    dirs.extend(store.root_dirs(from)?);
    Ok(dirs)
}

/// Removes half-made state, and versioned state of no deployment. Gives what went,
/// relative to `/varve`. State whose deployment's record cannot be read stays.
pub(crate) fn sweep(store: &Store) -> varve_sys::Result<Vec<String>> {
    let Some(versioned) = store.state().open_dir_opt(VERSIONED)? else { return Ok(Vec::new()) };
    let mut removed = Vec::new();
    for entry in versioned.names()? {
        let Some(name) = entry.name.to_str() else { continue };
        let half = name.strip_prefix('.').and_then(|name| name.strip_suffix(".new"));
        let orphan = match half.or(Some(name)).map(str::parse::<DeploymentName>) {
            Some(Ok(_)) if half.is_some() => true,
            Some(Ok(whose)) => store.deployments_dir().stat_opt(&whose)?.is_none(),
            _ => false,
        };
        if orphan {
            durable::clear_away(&versioned, name, store.trash())?;
            removed.push(format!("state/{VERSIONED}/{name}"));
        }
    }
    Ok(removed)
}

/// Takes a deployment's versioned state away; shared and bound state are nobody's own.
pub(crate) fn discard(store: &Store, name: &DeploymentName) -> varve_sys::Result<()> {
    match store.state().open_dir_opt(VERSIONED)? {
        Some(versioned) => durable::clear_away(&versioned, name.as_str(), store.trash()),
        None => Ok(()),
    }
}

/// A name that no deployment has: none starts with a dot.
fn half_made(name: &DeploymentName) -> String {
    format!(".{name}.new")
}

/// The versioned directories of a deployment: slug, and where in the tree.
fn slugs(record: &DeploymentRecord) -> Vec<(String, TreePath)> {
    let versioned = record.state.iter().filter(|state| state.mode == StateMode::Versioned);
    let mut slugs: Vec<_> =
        versioned.map(|state| (state.path.slug(), state.path.tree_path().clone())).collect();
    if record.root_mode == RootMode::Persistent {
        slugs.push((ROOT_SLUG.to_owned(), TreePath::root()));
    }
    slugs
}

fn make_versioned(
    versioned: &Dir,
    name: &str,
    record: &DeploymentRecord,
    manifest: &Manifest,
) -> Result<()> {
    let own = versioned.make_dir(name, 0o700)?;
    for (slug, path) in slugs(record) {
        let entry = directory(manifest, &path);
        make_upper(&own, &slug, entry.ok_or(StateError::NoDirectory { path })?)?;
    }
    Ok(())
}

fn make_upper(place: &Dir, slug: &str, entry: &Entry) -> Result<()> {
    let dir = place.make_dir(slug, 0o700)?;
    dir.mkdir(UPPER, 0o700)?;
    dir.set_attributes(UPPER, &attributes(&entry.meta))?;
    Ok(dir.mkdir(WORK, 0o700)?)
}

fn directory<'a>(manifest: &'a Manifest, path: &TreePath) -> Option<&'a Entry> {
    manifest.get(path).filter(|entry| entry.kind == Kind::Directory)
}
