//! A layer as a manifest: read from a layer that is here, and made anew where it is not.
//!
//! ```text
//! scan()   layers/<name>/tree  -> manifest (whiteouts: devices 0:0) and opaque directories
//! plan()   both                -> where each content comes from, what must be fetched
//! fill()                       -> the tree of a draft, equal to the last attribute
//! ```
//!
//! A layer's manifest is that of its directory, not of what a mount shows. So it has no
//! place for `trusted.overlay.opaque`, which is told beside it; any other private attribute
//! of overlayfs is refused. Callers: the update manager's export and import of layers.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;

use varve_format::deployment::{LayerKind, Stack};
use varve_format::manifest::{Manifest, ManifestError, is_overlay_private};
use varve_format::path::PathError;
use varve_format::tree::{Device, Entry, Kind, Metadata, Time};
use varve_format::verity::content_digest;
use varve_format::{ContentDigest, LayerName, TreePath};
use varve_sys::task::{Cancel, Cancelled, Progress};
use varve_sys::{Dir, FileType, Stat, SysError, Xattrs};

use crate::layer::Shape;
use crate::layout::{MAX_DEPTH, PlanError, Request, StagePlan};
use crate::own::Draft;
use crate::sources;
use crate::stage::StageError;
use crate::tree::Build;
use crate::view::OPAQUE;

/// Why a layer's directory has no manifest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The disk.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// Asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A name that no manifest holds.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Names that make no tree, or values beyond its limits.
    #[error("the layer does not make a tree")]
    Manifest(#[from] ManifestError),
    /// An attribute that means something in one place alone.
    #[error("{path} has the attribute {name}, which means something on this device alone")]
    Private {
        /// Where.
        path: TreePath,
        /// Which.
        name: String,
    },
}

/// A layer's directory, as data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scanned {
    /// All that is in it; a whiteout is a character device 0:0.
    pub manifest: Manifest,
    /// The directories that hide all that lies below them.
    pub opaque: BTreeSet<TreePath>,
}

/// Reads a layer's tree. `content` is given each file with bytes, once for each inode, in
/// the order of the manifest, and names its content.
pub fn scan<E: From<ScanError>>(
    tree: &Dir,
    cancel: &Cancel,
    content: &mut dyn FnMut(&File, &Stat) -> Result<ContentDigest, E>,
) -> Result<Scanned, E> {
    let mut scan =
        Scan { entries: Vec::new(), opaque: BTreeSet::new(), inodes: HashMap::new(), cancel };
    let stat = tree.stat(".").map_err(ScanError::from)?;
    scan.directory(tree, TreePath::root(), &stat, content)?;
    let manifest = Manifest::from_entries(scan.entries).map_err(ScanError::from)?;
    Ok(Scanned { manifest, opaque: scan.opaque })
}

struct Scan<'a> {
    entries: Vec<Entry>,
    opaque: BTreeSet<TreePath>,
    /// The first name of each inode that has several.
    inodes: HashMap<u64, TreePath>,
    cancel: &'a Cancel,
}

impl Scan<'_> {
    fn directory<E: From<ScanError>>(
        &mut self,
        dir: &Dir,
        path: TreePath,
        stat: &Stat,
        content: &mut dyn FnMut(&File, &Stat) -> Result<ContentDigest, E>,
    ) -> Result<(), E> {
        self.cancel.check().map_err(ScanError::from)?;
        let mut xattrs = dir.xattrs(".").map_err(ScanError::from)?;
        // The kernel obeys the mark when it is exactly this, and not on a layer's root.
        if !path.is_root() && xattrs.iter().any(|(name, v)| **name == *OPAQUE && **v == *b"y") {
            xattrs.retain(|(name, _)| **name != *OPAQUE);
            self.opaque.insert(path.clone());
        }
        self.push(path.clone(), Kind::Directory, stat, xattrs)?;
        for entry in dir.names().map_err(ScanError::from)? {
            let name = &entry.name;
            let path = path.join(name.as_bytes()).map_err(ScanError::from)?;
            let stat = dir.stat(name).map_err(ScanError::from)?;
            if stat.is_dir() {
                let below = dir.open_dir(name).map_err(ScanError::from)?;
                self.directory(&below, path, &stat, content)?;
                continue;
            }
            if stat.links > 1 {
                if let Some(first) = self.inodes.get(&stat.inode) {
                    self.entries.push(Entry::hard_link(path, first.clone()));
                    continue;
                }
                self.inodes.insert(stat.inode, path.clone());
            }
            let kind = match stat.file_type() {
                FileType::RegularFile => {
                    let digest = match stat.size {
                        0 => content_digest(b""),
                        _ => content(&dir.open_file(name).map_err(ScanError::from)?, &stat)?,
                    };
                    Kind::Regular { size: stat.size, digest }
                }
                FileType::Symlink => {
                    Kind::Symlink { target: dir.read_link(name).map_err(ScanError::from)?.into() }
                }
                FileType::CharacterDevice => Kind::CharDevice(Device(stat.special)),
                FileType::BlockDevice => Kind::BlockDevice(Device(stat.special)),
                FileType::Socket => Kind::Socket,
                _ => Kind::Fifo,
            };
            self.push(path, kind, &stat, dir.xattrs(name).map_err(ScanError::from)?)?;
        }
        Ok(())
    }

    fn push(
        &mut self,
        path: TreePath,
        kind: Kind,
        stat: &Stat,
        xattrs: Xattrs,
    ) -> Result<(), ScanError> {
        if let Some((name, _)) = xattrs.iter().find(|(name, _)| is_overlay_private(name)) {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(ScanError::Private { path, name });
        }
        let (seconds, nanoseconds) = stat.mtime;
        let mtime = Time { seconds, nanoseconds };
        let meta =
            Metadata { mode: stat.mode & 0o7777, uid: stat.uid, gid: stat.gid, mtime, xattrs };
        self.entries.push(Entry { path, kind, meta });
        Ok(())
    }
}

/// Sees what is here of a layer's contents and what must come into incoming/ before
/// [`fill`]. `request.name` is the deployment of the draft; there is no base.
pub fn plan(
    request: &Request<'_>,
    layer: &LayerName,
    opaque: &BTreeSet<TreePath>,
) -> Result<StagePlan, PlanError> {
    let entries = request.manifest.entries();
    let deep = entries.iter().find(|entry| entry.path.components().count() > MAX_DEPTH);
    if let Some(entry) = deep {
        return Err(PlanError::Depth { path: entry.path.clone() });
    }
    let mut shape = Shape::whole(request.manifest);
    for path in opaque {
        let at = request
            .manifest
            .index(path)
            .filter(|&at| entries[at].kind == Kind::Directory && !path.is_root());
        let at = at.ok_or_else(|| PlanError::Opaque { path: path.clone() })?;
        shape.opaque.push(at as u32);
    }
    let mut plan = StagePlan {
        name: request.name.clone(),
        base: None,
        stack: Stack::Overlay { layers: vec![layer.clone()] },
        part: layer.clone(),
        layer_kind: Some(LayerKind::Extension),
        fetch: Vec::new(),
        incoming: Vec::new(),
        paths: entries.len() as u64,
        linked: 0,
        copied: 0,
        whiteouts: 0,
        write_bytes: 0,
        write_inodes: 0,
        damaged: Vec::new(),
        steps: Vec::new(),
        shape,
        origins: Vec::new(),
    };
    sources::find_sources(request, None, &mut plan)?;
    Ok(plan)
}

/// Makes the tree of a draft. Everything that the plan lists as needed must be in
/// incoming/. Nothing is synced.
pub fn fill(
    draft: &Draft<'_>,
    plan: &StagePlan,
    manifest: &Manifest,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(), StageError> {
    let store = draft.store();
    let mut origins = Vec::new();
    for name in &plan.origins {
        origins.push(store.deployment(name)?.record.stack);
    }
    let target = draft.tree();
    Build { store, manifest, plan, base: None, origins: &origins, target, progress, cancel }.run()
}
