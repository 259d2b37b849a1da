//! How a deployment becomes a root: the mount plan as data, and what carries it out.
//!
//! ```text
//! record + what its layers hold      MountPlan                           kernel
//!   stack  u2, base            plan    /      overlay u2:base, no top      execute
//!   root   read-only         ------>   /etc   overlay u2/etc:base/etc,   -------->  mounts
//!   state  /etc versioned              |        top state/versioned/b/etc
//!          /home bind                  /home  bind state/bind/home
//! ```
//!
//! A state path is an overlay of its own whose lower directories are the same sub-path
//! in each layer: never an overlay over an overlay. Which layers have it is worked out
//! here by overlayfs's own rules (whiteouts, opaque directories, a file over a
//! directory), because the kernel is given the sub-directories alone.
//!
//! [`plan`] reads and changes nothing, so a plan can be printed and compared; `assemble`
//! carries it out. Callers: the boot stage; the tests, for which the kernel's mount is the judge of
//! what a merge must give.

use std::fmt;
use std::path::{Path, PathBuf};

use varve_format::deployment::{DeploymentRecord, ROOT_SLUG, RootMode, Stack, StateDir, StateMode};
use varve_format::{LayerName, TreePath};
use varve_sys::mount::{self, Access, MountError, Overlay, Reach, bind_detached, overlay_detached};
use varve_sys::{Dir, FileType, SysError};

use crate::store::{LAYER_TREE, Store};

/// What `/proc/mounts` shows as the source of a root, and of its state paths: of which device
/// they are (`varve-`, the number of the file system, the inode of `varve`), since paths in an
/// overlay's options are relative to it. `varve ps` compares it.
pub fn source_of(varve: &Dir) -> Result<String, SysError> {
    let stat = varve.stat(".")?;
    Ok(format!("varve-{}-{}", stat.device, stat.inode))
}

/// What to mount, in this order. Paths are relative to `/varve`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountPlan {
    /// The root first, then state paths, those further up first.
    pub steps: Vec<Step>,
    /// State paths that cannot be mounted, and why: for people.
    pub left_out: Vec<LeftOut>,
}

/// A state path that the release has no directory for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeftOut {
    /// Which.
    pub path: StateDir,
    /// Why.
    pub why: &'static str,
}

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Where, inside the new root; the root itself for the first.
    pub target: TreePath,
    /// The target as a name of one component.
    pub slug: String,
    /// What is below, the directory that wins first. Of a bind, the one directory.
    pub lowers: Vec<PathBuf>,
    /// Where changes go.
    pub top: Top,
}

/// Where a mount's changes go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Top {
    /// Nowhere: read-only.
    None,
    /// Into memory, gone at the next boot.
    Memory,
    /// Onto the disk: `upper` and `work` in this directory.
    Disk {
        /// `state/versioned/<deployment>/<slug>` or `state/shared/<slug>`.
        holder: PathBuf,
    },
    /// There is nothing below: this directory itself is shown and written.
    Bind {
        /// `state/bind/<slug>`.
        directory: PathBuf,
    },
}

/// What a boot asks for beside the record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// How many layers to leave out, from the top; the last one always stays.
    pub strip: u32,
    /// Layers to leave out by name; the last one always stays.
    pub off: Vec<LayerName>,
    /// Instead of the record's root mode.
    pub root_mode: Option<RootMode>,
    /// Whether changes of state are kept.
    pub changes: Changes,
}

/// What becomes of what is changed in state paths.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Changes {
    /// It is kept, as each path's mode says; but a stack from which layers are left out
    /// is not the deployment's own: what it changes in versioned state is forgotten.
    #[default]
    Kept,
    /// All of it is forgotten, shared and bound state included.
    Forgotten,
}

/// Why a root could not be planned or put together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssembleError {
    /// A layer or tree that the record names is not there or not readable.
    #[error("{path} of the stack is not usable", path = path.display())]
    Stack {
        /// Relative to `/varve`.
        path: PathBuf,
        /// Why.
        source: SysError,
    },
    /// The place for changes is not there and cannot be made.
    #[error("the place for the changes of {target} is not usable")]
    State {
        /// The state path, absolute.
        target: String,
        /// Why.
        source: SysError,
    },
    /// The kernel refused a mount.
    #[error("cannot mount {target}")]
    Mount {
        /// Absolute, inside the new root.
        target: String,
        /// Why.
        source: MountError,
    },
    /// The place to mount on is not there.
    #[error("there is no directory {target} to mount on")]
    Target {
        /// Absolute, inside the new root.
        target: String,
        /// Why.
        source: SysError,
    },
}

impl From<MountError> for AssembleError {
    fn from(source: MountError) -> Self {
        AssembleError::Mount { target: "/".to_owned(), source }
    }
}

/// Plans the root of a deployment.
pub fn plan(
    store: &Store,
    record: &DeploymentRecord,
    options: Options,
) -> Result<MountPlan, AssembleError> {
    let stack = left_on(root_paths(record, options.strip), &options.off);
    let layers = Layers::open(store, &stack)?;

    // What is tried on a stack that is not the deployment's own stays out of its state.
    let stripped = stack.len() < record.height();
    let mode = match options.root_mode.unwrap_or(record.root_mode) {
        RootMode::Persistent if stripped => RootMode::Volatile,
        mode => mode,
    };
    let forgotten = options.changes == Changes::Forgotten;
    let top = match mode {
        RootMode::ReadOnly if forgotten => Top::Memory,
        RootMode::ReadOnly => Top::None,
        RootMode::Volatile => Top::Memory,
        RootMode::Persistent => Top::Disk { holder: versioned(record, ROOT_SLUG) },
    };
    let (target, slug) = (TreePath::root(), ROOT_SLUG.to_owned());
    let root = Step { target, slug, lowers: stack.clone(), top };
    let mut steps = vec![if forgotten { in_memory_over(store, root)? } else { root }];
    let mut left_out = Vec::new();
    let mut state: Vec<_> = record.state.iter().collect();
    // `/var` before `/var/lib`: bytes order a path before what is below it.
    state.sort_by(|a, b| a.path.cmp(&b.path));
    for state_path in state {
        let target = state_path.path.tree_path();
        let lowers = match layers.lowers(target)? {
            Lowers::Directories(lowers) => lowers,
            Lowers::Hidden(why) => {
                left_out.push(LeftOut { path: state_path.path.clone(), why });
                continue;
            }
        };
        let slug = state_path.path.slug();
        let (top, own) = match state_path.mode {
            StateMode::Versioned => (Top::Disk { holder: versioned(record, &slug) }, true),
            StateMode::Shared => {
                (Top::Disk { holder: Path::new("state/shared").join(&slug) }, false)
            }
            StateMode::Bind => {
                (Top::Bind { directory: Path::new("state/bind").join(&slug) }, false)
            }
        };
        let step = Step { target: target.clone(), slug, lowers, top };
        steps.push(match forgotten || (stripped && own) {
            true => in_memory_over(store, step)?,
            false => step,
        });
    }
    Ok(MountPlan { steps, left_out })
}

/// One directory of a deployment as the release and the layers have it, read-only: what
/// [`show`] makes a mount of. None when the deployment has no directory there.
pub fn directory(
    store: &Store,
    record: &DeploymentRecord,
    target: &TreePath,
) -> Result<Option<Step>, AssembleError> {
    let stack = root_paths(record, 0);
    let lowers = match Layers::open(store, &stack)?.lowers(target)? {
        Lowers::Directories(lowers) => lowers,
        Lowers::Hidden(_) => return Ok(None),
    };
    let slug = target.to_string().trim_start_matches('/').replace('/', "-");
    Ok(Some(Step { target: target.clone(), slug, lowers, top: Top::None }))
}

/// Makes the mount of a step that nothing is written through, and attaches it nowhere.
/// Gives the overlay options that this kernel does not know too.
pub fn show(store: &Store, step: &Step) -> Result<(mount::Detached, Vec<String>), AssembleError> {
    let base = store.dir().fd();
    let made = match &step.lowers[..] {
        [alone] => bind_detached(base, alone, Access::ReadOnly, Reach::Alone)
            .map(|mount| (mount, Vec::new())),
        lowers => {
            let unusable = |source| AssembleError::Stack { path: ".".into(), source };
            let source = source_of(store.dir()).map_err(unusable)?;
            let overlay = Overlay { base, lowers, upper: None, source: &source };
            overlay_detached(&overlay).map(|made| (made.mount, made.refused))
        }
    };
    made.map_err(|source| AssembleError::Mount { target: step.target.to_string(), source })
}

fn versioned(record: &DeploymentRecord, slug: &str) -> PathBuf {
    Path::new("state/versioned").join(record.name.as_str()).join(slug)
}

/// Without those that are off. The last stays: without a base there is no root.
fn left_on(mut stack: Vec<PathBuf>, off: &[LayerName]) -> Vec<PathBuf> {
    let base = stack.pop();
    let path = |name: &LayerName| Path::new("layers").join(name.as_str()).join(LAYER_TREE);
    let off: Vec<PathBuf> = off.iter().map(path).collect();
    stack.retain(|path| !off.contains(path));
    stack.extend(base);
    stack
}

/// The same state, seen but not changed: what would be written lies below, and changes
/// go to memory.
fn in_memory_over(store: &Store, mut step: Step) -> Result<Step, AssembleError> {
    let (state, alone) = match std::mem::replace(&mut step.top, Top::Memory) {
        Top::Disk { holder } => (holder.join("upper"), false),
        Top::Bind { directory } => (directory, true),
        Top::None | Top::Memory => return Ok(step),
    };
    let failed = |source| AssembleError::State { target: step.target.to_string(), source };
    if store.dir().open_dir_opt(&state).map_err(failed)?.is_some() {
        if alone {
            step.lowers.clear();
        }
        step.lowers.insert(0, state);
    }
    Ok(step)
}

/// The directories that a root is put together from, relative to `/varve`, newest first:
/// own layers that are on, then the stack. `strip` leaves out so many from the top; the
/// last always stays.
pub fn root_paths(record: &DeploymentRecord, strip: u32) -> Vec<PathBuf> {
    let layer = |name: &LayerName| Path::new("layers").join(name.as_str()).join(LAYER_TREE);
    let mut paths: Vec<PathBuf> = record.own_on().map(layer).collect();
    match &record.stack {
        Stack::Overlay { layers } => paths.extend(layers.iter().map(layer)),
        Stack::HardLink { tree } => paths.push(Path::new("trees").join(tree.as_str())),
    }
    let strip = usize::try_from(strip).unwrap_or(usize::MAX);
    paths.drain(..strip.min(paths.len().saturating_sub(1)));
    paths
}

enum Lowers {
    /// The path in each layer that shows it as a directory; relative to `/varve`.
    Directories(Vec<PathBuf>),
    /// None does.
    Hidden(&'static str),
}

/// The layers of a stack, open, with their paths.
struct Layers<'a> {
    stack: &'a [PathBuf],
    dirs: Vec<Dir>,
}

impl<'a> Layers<'a> {
    fn open(store: &Store, stack: &'a [PathBuf]) -> Result<Self, AssembleError> {
        let open = |path: &PathBuf| {
            let failed = |source| AssembleError::Stack { path: path.clone(), source };
            store.dir().open_dir(path).map_err(failed)
        };
        Ok(Self { stack, dirs: stack.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Which layers show `target`, by the rules of overlayfs: a whiteout or a thing that is
    /// no directory ends it, an opaque directory ends it after its own layer.
    fn lowers(&self, target: &TreePath) -> Result<Lowers, AssembleError> {
        let mut found = Vec::new();
        for (path, layer) in self.stack.iter().zip(&self.dirs) {
            let failed = |source| AssembleError::Stack { path: path.clone(), source };
            let seen = look(layer, target).map_err(failed)?;
            if seen.directory {
                found.push(path.join(target.as_path()));
            }
            if let Some(why) = seen.hides {
                if found.is_empty() {
                    return Ok(Lowers::Hidden(why));
                }
                break;
            }
        }
        if found.is_empty() {
            return Ok(Lowers::Hidden("the release has no such directory"));
        }
        Ok(Lowers::Directories(found))
    }
}

struct Seen {
    directory: bool,
    hides: Option<&'static str>,
}

fn look(layer: &Dir, path: &TreePath) -> Result<Seen, SysError> {
    let mut dir = layer.try_clone()?;
    let mut hides = opaque(&dir)?;
    for name in path.components() {
        let Some(stat) = dir.stat_opt(name)? else {
            return Ok(Seen { directory: false, hides });
        };
        if !stat.is_dir() {
            let marked = stat.file_type() == FileType::RegularFile
                && dir.xattr(name, b"trusted.overlay.whiteout")?.is_some();
            let why = if stat.is_whiteout() || marked {
                "a layer removes it"
            } else {
                "the release has something there that is no directory"
            };
            return Ok(Seen { directory: false, hides: Some(why) });
        }
        dir = dir.open_dir(name)?;
        hides = hides.or(opaque(&dir)?);
    }
    Ok(Seen { directory: true, hides })
}

fn opaque(dir: &Dir) -> Result<Option<&'static str>, SysError> {
    // "x" only says that there are whiteouts in the form of attributes.
    let opaque = dir.xattr(".", b"trusted.overlay.opaque")?.as_deref() == Some(b"y");
    Ok(opaque.then_some("a layer replaces what was there"))
}

impl fmt::Display for MountPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let lowers: Vec<_> =
                step.lowers.iter().map(|path| path.display().to_string()).collect();
            let lowers = lowers.join(", ");
            let target = &step.target;
            match &step.top {
                Top::None => writeln!(f, "{target}: {lowers}, read-only")?,
                Top::Memory => writeln!(f, "{target}: {lowers}, changes in memory")?,
                Top::Disk { holder } => {
                    writeln!(f, "{target}: {lowers}, changes in {}", holder.display())?;
                }
                Top::Bind { directory } => writeln!(f, "{target}: {}", directory.display())?,
            }
        }
        for LeftOut { path, why } in &self.left_out {
            writeln!(f, "{path}: left out, as {why}")?;
        }
        Ok(())
    }
}
