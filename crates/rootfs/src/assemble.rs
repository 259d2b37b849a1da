//! Carries a mount plan out: makes each mount where nobody sees it, then attaches them.
//!
//! ```text
//! plan.steps   /  /etc  /var  /home
//! make         two threads, every other step each: overlays over relative paths of the store
//! attach       in order, beneath the target; what fails is taken away again, or is
//!              made with changes in memory (Care::Lenient)
//! ```
//!
//! Callers: the boot stage, `varve try` and the live change of a running system; the tests.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use varve_sys::mount::{
    self, Access, Overlay, Reach, Upper, bind_detached, overlay_detached, tmpfs_detached,
};
use varve_sys::task::both;
use varve_sys::{Attributes, Dir, SysError, durable, whole_message};

use crate::mount::{AssembleError, MountPlan, Step, Top, show, source_of};
use crate::store::Store;

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Executed {
    /// Overlay options that this kernel does not know.
    pub refused_options: Vec<String>,
    /// Missing parts, and what was done instead: for people. Never more than empty
    /// unless [`Care::Lenient`].
    pub compromises: Vec<String>,
}

/// What to do when a mount fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Care {
    /// Take all of it away again and say why.
    Strict,
    /// Changes that cannot go to the disk go to memory; a state path that cannot be
    /// mounted is left as the release has it. Only the root itself must work.
    Lenient,
}

/// Mounts a plan at `target`, over what is there. `memory` is an empty directory for the
/// tmpfs of changes that are not kept.
///
/// The mounts are made first, by two threads, since each waits for the disk; then they are
/// attached, in order.
pub fn execute(
    store: &Store,
    plan: &MountPlan,
    target: &Path,
    memory: &Path,
    care: Care,
) -> Result<Executed, AssembleError> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
    let (target, memory) = (absolute(target), absolute(memory));
    let work = Work { store, memory: &memory, memory_is_mounted: Mutex::new(false) };
    let mut executed = Executed::default();
    for (index, (step, made)) in plan.steps.iter().zip(work.make_all(&plan.steps)).enumerate() {
        let attach = |made: Made, executed: &mut Executed| {
            executed.refused(made.refused);
            attach(made.mount, &target, step)
        };
        let made = made.unwrap_or_else(|| work.at_store(|| work.make(step)));
        let done = match made.and_then(|made| attach(made, &mut executed)) {
            Err(error) if care == Care::Lenient => {
                executed.compromise(&error);
                let again = work.make_in_memory(step);
                again.and_then(|made| attach(made, &mut executed)).or_else(|error| {
                    executed.compromise(&error);
                    if step.target.is_root() { Err(error) } else { Ok(()) }
                })
            }
            other => other,
        };
        if let Err(error) = done {
            // Each takes all below along. They cannot fail but for what is not mounted.
            if index > 0 {
                let _ = mount::unmount_lazily(&target);
            }
            if work.has_memory() {
                let _ = mount::unmount_lazily(&memory);
            }
            return Err(error);
        }
    }
    Ok(executed)
}

impl Executed {
    fn compromise(&mut self, error: &AssembleError) {
        self.compromises.push(whole_message(error));
    }

    fn refused(&mut self, options: Vec<String>) {
        for option in options {
            if !self.refused_options.contains(&option) {
                self.refused_options.push(option);
            }
        }
    }
}

fn attach(mount: mount::Detached, target: &Path, step: &Step) -> Result<(), AssembleError> {
    let root = Dir::open(target)
        .map_err(|source| AssembleError::Target { target: step.target.to_string(), source })?;
    mount
        .attach_beneath(root.fd(), step.target.as_path())
        .map_err(|source| AssembleError::Mount { target: step.target.to_string(), source })
}

/// A mount that is not attached yet, and the overlay options that this kernel does not know.
struct Made {
    mount: mount::Detached,
    refused: Vec<String>,
}

struct Work<'a> {
    store: &'a Store,
    memory: &'a Path,
    memory_is_mounted: Mutex<bool>,
}

impl Work<'_> {
    /// Makes the mounts of all steps, every other one by a thread of its own; none for what
    /// could not be begun.
    fn make_all(&self, steps: &[Step]) -> Vec<Option<Result<Made, AssembleError>>> {
        let every_other = |first: usize| {
            let steps = || steps.iter().skip(first).step_by(2);
            let made: Result<Vec<_>, _> =
                self.at_store(|| Ok(steps().map(|step| self.make(step)).collect()));
            made.unwrap_or_default().into_iter()
        };
        let (mut even, mut odd) = match steps {
            // Nothing to share.
            [_] => (every_other(0), Vec::new().into_iter()),
            _ => both(|| every_other(0), || every_other(1)),
        };
        let mut take =
            |index: usize| if index.is_multiple_of(2) { even.next() } else { odd.next() };
        (0..steps.len()).map(&mut take).collect()
    }

    /// In a thread that is at the store: overlays are put together from relative paths.
    fn at_store<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, AssembleError> + Send,
    ) -> Result<T, AssembleError> {
        mount::in_directory(self.store.dir().fd(), work)
    }

    fn make(&self, step: &Step) -> Result<Made, AssembleError> {
        let mount_error = |source| AssembleError::Mount { target: step.target.to_string(), source };
        match &step.top {
            Top::None => {
                let (mount, refused) = show(self.store, step)?;
                Ok(Made { mount, refused })
            }
            Top::Disk { holder } => {
                self.prepare(step, holder, &["upper", "work"])?;
                let upper = Upper { upper: holder.join("upper"), work: holder.join("work") };
                self.overlay(step, &upper)
            }
            Top::Memory => {
                let upper = self.memory_upper(step)?;
                self.overlay(step, &upper)
            }
            Top::Bind { directory } => {
                self.prepare(step, directory, &[])?;
                let store = self.store.dir().fd();
                let mount = bind_detached(store, directory, Access::ReadWrite, Reach::Alone)
                    .map_err(mount_error)?;
                Ok(Made { mount, refused: Vec::new() })
            }
        }
    }

    /// The same with changes in memory; a root that is read-only stays so.
    fn make_in_memory(&self, step: &Step) -> Result<Made, AssembleError> {
        let step = match step.top {
            Top::None => step.clone(),
            _ => Step { top: Top::Memory, ..step.clone() },
        };
        self.at_store(|| self.make(&step))
    }

    fn has_memory(&self) -> bool {
        *self.memory_is_mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn overlay(&self, step: &Step, upper: &Upper) -> Result<Made, AssembleError> {
        let base = self.store.dir().fd();
        let unusable = |source| AssembleError::Stack { path: ".".into(), source };
        let source = source_of(self.store.dir()).map_err(unusable)?;
        let overlay = Overlay { base, lowers: &step.lowers, upper: Some(upper), source: &source };
        let made = overlay_detached(&overlay)
            .map_err(|source| AssembleError::Mount { target: step.target.to_string(), source })?;
        Ok(Made { mount: made.mount, refused: made.refused })
    }

    /// Makes the place for changes if it is missing, with the attributes that the
    /// directory has in the release: an overlay shows the top's own.
    fn prepare(&self, step: &Step, holder: &Path, within: &[&str]) -> Result<(), AssembleError> {
        prepare_holder(self.store.dir(), &step.lowers, holder, within)
            .map_err(|source| AssembleError::State { target: step.target.to_string(), source })
    }

    fn memory_upper(&self, step: &Step) -> Result<Upper, AssembleError> {
        let target = || step.target.to_string();
        let state = |source| AssembleError::State { target: target(), source };
        let mut is_mounted = self.memory_is_mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_mounted {
            let place = Dir::open(self.memory).map_err(state)?;
            tmpfs_detached(0o700, None)
                .and_then(|tmpfs| tmpfs.attach(place.fd(), Path::new("")))
                .map_err(|source| AssembleError::Mount { target: target(), source })?;
            *is_mounted = true;
        }
        drop(is_mounted);
        let memory = Dir::open(self.memory).map_err(state)?;
        let holder = memory.make_dir(&step.slug, 0o700).map_err(state)?;
        for part in ["upper", "work"] {
            let dir = holder.make_dir(part, 0o700).map_err(state)?;
            copy_attributes(self.store.dir(), &step.lowers, &dir).map_err(state)?;
        }
        let holder = self.memory.join(&step.slug);
        Ok(Upper { upper: holder.join("upper"), work: holder.join("work") })
    }
}

/// Makes `holder` (relative to `varve`) with the directories `within`, each with the
/// attributes of the first of `lowers`; with none `within`, `holder` itself has them.
/// What is there already is left as it is. A power cut leaves it missing or whole: it
/// is made under another name and renamed.
pub(crate) fn prepare_holder(
    varve: &Dir,
    lowers: &[PathBuf],
    holder: &Path,
    within: &[&str],
) -> Result<(), SysError> {
    if varve.open_dir_opt(holder)?.is_some() {
        return Ok(());
    }
    let mut parent = varve.try_clone()?;
    for name in holder.parent().into_iter().flat_map(Path::iter) {
        parent = parent.make_dir(name, 0o755)?;
    }
    let name = holder.file_name().expect("a state directory has a name").to_string_lossy();
    let temporary = format!(".{name}.new");
    parent.remove_all(&temporary)?;
    let made = parent.make_dir(&temporary, 0o755)?;
    if within.is_empty() {
        copy_attributes(varve, lowers, &made)?;
    }
    for part in within {
        copy_attributes(varve, lowers, &made.make_dir(part, 0o755)?)?;
    }
    durable::commit_rename(&parent, &temporary, &parent, &name)
}

fn copy_attributes(varve: &Dir, lowers: &[PathBuf], to: &Dir) -> Result<(), SysError> {
    let Some(first) = lowers.first() else { return Ok(()) };
    let from = varve.open_dir(first)?;
    let stat = from.stat(".")?;
    let mut xattrs = from.xattrs(".")?;
    xattrs.retain(|(name, _)| !name.starts_with(b"trusted.overlay."));
    to.set_attributes(
        ".",
        &Attributes {
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            xattrs: &xattrs,
        },
    )
}
