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
//! It works from the layers alone, by the rules in [`crate::view`], since a layer made on
//! the device has no manifest. What would mean something else elsewhere is refused:
//! redirects, metacopy, and any private attribute of overlayfs that is not known here.
//! Those that only help one mount (`origin`, `impure`, `nlink`, `uuid`) are left out;
//! a file that has one is copied, because an attribute belongs to the inode.
//!
//! When a lower part of the stack stays (the fold does not reach the base), whiteouts and
//! opaque marks are kept for it. Caller: the update manager.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use varve_format::TreePath;
use varve_format::deployment::{DeploymentRecord, FORMAT, LayerKind, LayerRecord, Stack};
use varve_format::manifest::Manifest;
use varve_format::{DeploymentName, LayerName};
use varve_sys::task::{Cancel, Cancelled, Progress, Unit};
use varve_sys::{Attributes, Dir, FileType, Stat, SysError, Xattrs, durable};

use crate::pool::{self, Pool};
use crate::stage::{Part, StageError, begin, or_discard, write_layer_record};
use crate::store::{Deployment, LAYER_TREE, Store, StoreError};
use crate::verify::{Contents, Level, Report, VerifyError, verify};
use crate::view::{Found, Looked, MergedDir, OPAQUE};

const PRIVATE: &[u8] = b"trusted.overlay.";
/// What overlayfs keeps for one mount alone: left out of a merged layer.
const DROPPED: [&[u8]; 5] = [b"origin", b"impure", b"nlink", b"uuid", b"opaque"];

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
    Stage(StageError),
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
    #[error("the merged layers differ from the deployment's manifest in {} paths", report.count)]
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
            other => Self::Stage(other),
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

/// What a merged layer is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Directories made anew.
    pub directories: u64,
    /// Names linked to the old layers' inodes.
    pub linked: u64,
    /// Files copied, because they had private attributes or too many names.
    pub copied: u64,
    /// Whiteouts kept for the layers below.
    pub whiteouts: u64,
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            directories: self.directories + other.directories,
            linked: self.linked + other.linked,
            copied: self.copied + other.copied,
            whiteouts: self.whiteouts + other.whiteouts,
        }
    }
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
    match report.is_clean() {
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

    // Committed: what is left of the way is for the sweep, if not for now.
    let _ = durable::discard(store.staging(), new.name.as_str(), store.trash());
    Ok(())
}

/// Why a fold stopped. The layer is by its place in the fold.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The disk.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// Asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A private attribute that cannot be folded.
    #[error("{path} has the attribute {name}, which cannot be folded")]
    Refused {
        /// Which layer, 0 the newest.
        layer: usize,
        /// Where in it.
        path: TreePath,
        /// Which attribute.
        name: String,
    },
}

/// A directory in overlay form that is to be folded.
#[derive(Debug)]
pub struct Layer {
    /// The directory.
    pub dir: Dir,
    /// Whether every inode is asked for private attributes of overlayfs. A layer that
    /// varve made from a manifest and verified has none but the opaque marks of its
    /// directories, which are always looked at.
    pub foreign: bool,
}

/// Folds layers (newest first) into the empty directory `target` of the same file
/// system. `to_base` says that nothing will lie below the result, so that it needs no
/// whiteouts and no opaque marks. Nothing is synced.
pub fn fold(
    layers: Vec<Layer>,
    target: &Dir,
    to_base: bool,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> std::result::Result<Counts, FoldError> {
    let fold = Fold {
        to_base,
        foreign: layers.iter().map(|layer| layer.foreign).collect(),
        copies: Mutex::new(HashMap::new()),
        top: target,
        progress,
        cancel,
    };
    let root = Arc::new(Pair {
        from: MergedDir::root(layers.into_iter().map(|layer| layer.dir).collect()),
        to: target.try_clone()?,
        path: TreePath::root(),
    });
    let work = |task: Task, counts: &mut Counts, pool: &Pool<Task>| match task.below {
        None => fold.directory(&task.pair, false, counts, pool),
        Some((name, found)) => {
            let Pair { from, to, path } = &*task.pair;
            let opaque = found.cut && !from.is_cut() && !fold.to_base;
            let pair = Arc::new(Pair {
                from: from.enter(&name, &found)?,
                to: to.open_dir(&name)?,
                path: below_path(path, &name),
            });
            drop(task.pair);
            fold.directory(&pair, opaque, counts, pool)
        }
    };
    let parts = pool::run(Task { pair: root, below: None }, Counts::default, work)?;
    Ok(parts.into_iter().fold(Counts::default(), Counts::plus))
}

/// A merged directory, and the new one that it becomes.
struct Pair {
    from: MergedDir,
    to: Dir,
    path: TreePath,
}

/// A directory to fill: the pair's own, or one found below it.
struct Task {
    pair: Arc<Pair>,
    below: Option<(OsString, Found)>,
}

struct Fold<'a> {
    to_base: bool,
    foreign: Vec<bool>,
    /// Where the copy of an inode with several names is, below `top`. Held while a copy
    /// is made, so that two names of one inode are never copied twice.
    copies: Mutex<HashMap<(u64, u64), TreePath>>,
    top: &'a Dir,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

type Folded<T> = std::result::Result<T, FoldError>;

impl Fold<'_> {
    /// Makes what `pair.from` shows, directories empty, then sets its attributes: what
    /// is made below those later does not change them. `opaque`: it is to hide what
    /// lies below the fold.
    fn directory(
        &self,
        pair: &Arc<Pair>,
        opaque: bool,
        counts: &mut Counts,
        pool: &Pool<Task>,
    ) -> Folded<()> {
        self.cancel.check()?;
        let Pair { from, to, path } = &**pair;
        let names = from.names()?;
        self.progress.advance(names.len() as u64);
        let mut below = Vec::new();
        for (name, looked) in names {
            match looked {
                Looked::Nothing => {}
                Looked::Whiteout if self.to_base || from.is_cut() || opaque => {}
                Looked::Whiteout => {
                    to.whiteout(&name)?;
                    counts.whiteouts += 1;
                }
                Looked::Found(found) if found.stat.is_dir() => {
                    to.mkdir(&name, 0o700)?;
                    below.push((name, found));
                }
                Looked::Found(found) => self.inode(pair, &name, &found, counts)?,
            }
        }
        counts.directories += 1;
        let top = &from.parts()[0];
        let mut xattrs = self.xattrs(&top.dir, OsStr::new("."), top.layer, path, true)?.kept;
        if opaque {
            xattrs.push((OPAQUE.into(), (*b"y").into()));
        }
        to.set_attributes(".", &attributes(&top.dir.stat(".")?, &xattrs))?;
        for below in below {
            pool.push(Task { pair: pair.clone(), below: Some(below) });
        }
        Ok(())
    }

    fn inode(&self, pair: &Pair, name: &OsStr, found: &Found, counts: &mut Counts) -> Folded<()> {
        let holder = pair.from.holder(found);
        let layer = pair.from.parts()[found.part].layer;
        let path = || below_path(&pair.path, name);
        // A symbolic link, device or fifo may carry overlayfs's marks as well.
        let own = match self.foreign[layer] {
            true => Some(self.xattrs(holder, name, layer, &path(), false)?),
            false => None,
        };
        if own.as_ref().is_none_or(|own| own.dropped == 0) {
            match holder.hard_link(name, &pair.to, name) {
                Ok(()) => {
                    counts.linked += 1;
                    return Ok(());
                }
                Err(error) if error.is_too_many_links() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let own = match own {
            Some(own) => own,
            None => self.xattrs(holder, name, layer, &path(), false)?,
        };
        self.copy(holder, name, &found.stat, &own.kept, &pair.to, path(), counts)
    }

    /// Copies one inode, and keeps the names that it has in the fold together.
    #[expect(clippy::too_many_arguments, reason = "what is copied, and to where")]
    fn copy(
        &self,
        holder: &Dir,
        name: &OsStr,
        stat: &Stat,
        xattrs: &Xattrs,
        target: &Dir,
        path: TreePath,
        counts: &mut Counts,
    ) -> Folded<()> {
        let inode = (stat.device, stat.inode);
        let mut copies = self.copies.lock().expect("no copy panics");
        if let Some(first) = copies.get(&inode) {
            let parent = self.top.open_dir(first.parent().expect("a name").as_path())?;
            match parent.hard_link(first.name(), target, name) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_too_many_links() => {}
                Err(error) => return Err(error.into()),
            }
        }
        counts.copied += 1;
        let attributes = attributes(stat, xattrs);
        match stat.file_type() {
            FileType::RegularFile => {
                let mut file = target.create_file(name, 0o600)?;
                file.copy_from(&holder.open_file(name)?)?;
                file.set_attributes(&attributes)?;
            }
            FileType::Symlink => {
                target.symlink(&holder.read_link(name)?, name)?;
                target.set_attributes(name, &attributes)?;
            }
            _ => {
                target.mknod(name, stat.mode, stat.special)?;
                target.set_attributes(name, &attributes)?;
            }
        }
        if stat.links > 1 {
            copies.insert(inode, path);
        }
        Ok(())
    }

    /// An inode's attributes without overlayfs's own; an error for one that changes
    /// what the layer shows.
    fn xattrs(
        &self,
        dir: &Dir,
        name: &OsStr,
        layer: usize,
        path: &TreePath,
        is_dir: bool,
    ) -> Folded<Filtered> {
        let all = dir.xattrs(name)?;
        let before = all.len();
        let mut kept = Xattrs::new();
        for (name, value) in all {
            let known = |private| DROPPED.contains(&private) && (is_dir || private != b"opaque");
            match name.strip_prefix(PRIVATE) {
                None => kept.push((name, value)),
                Some(private) if known(private) => {}
                Some(_) => {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    return Err(FoldError::Refused { layer, path: path.clone(), name });
                }
            }
        }
        Ok(Filtered { dropped: before - kept.len(), kept })
    }
}

struct Filtered {
    kept: Xattrs,
    dropped: usize,
}

fn attributes<'a>(stat: &Stat, xattrs: &'a Xattrs) -> Attributes<'a> {
    Attributes { mode: stat.mode & 0o7777, uid: stat.uid, gid: stat.gid, mtime: stat.mtime, xattrs }
}

/// A path for messages and for finding a copy again. The kernel gave the name; only a
/// path longer than PATH_MAX fails, and then the directory's stands for it.
fn below_path(path: &TreePath, name: &OsStr) -> TreePath {
    path.join(std::os::unix::ffi::OsStrExt::as_bytes(name)).unwrap_or_else(|_| path.clone())
}
