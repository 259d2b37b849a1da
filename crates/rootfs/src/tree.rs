//! Builds a tree or a layer out of links, copies and new inodes.
//!
//! ```text
//! 1. directories, in order                       one thread, each opened once
//! 2. files, links, devices, in chunks            threads, each with its own walks
//! 3. whiteouts; further names of hard links      one thread
//! 4. attributes of the directories               last: what is made in them changes times
//! ```
//!
//! A file gets its inode in this order: one more name of the base's; the one in
//! incoming/; a copy that shares blocks where the file system can. An inode that anyone
//! else has is never written to. Caller: stage.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use varve_format::deployment::Stack;
use varve_format::manifest::Manifest;
use varve_format::tree::{Entry, Kind, Metadata};
use varve_format::{ContentDigest, TreePath};
use varve_sys::task::{Cancel, Progress, Unit};
use varve_sys::{Attributes, Dir, SysError, Walk};

use crate::layout::{Source, StagePlan, Step};
use crate::locate::Locator;
use crate::pool::THREADS;
use crate::stage::StageError;
use crate::store::Store;
use crate::view::OPAQUE;

/// Entries that a thread takes at a time: near each other, so that its walks stay put.
const CHUNK: usize = 256;

type Result<T> = std::result::Result<T, StageError>;

/// What a build needs to know.
pub(crate) struct Build<'a> {
    pub(crate) store: &'a Store,
    pub(crate) manifest: &'a Manifest,
    pub(crate) plan: &'a StagePlan,
    /// What the base boots from, for links.
    pub(crate) base: Option<&'a Stack>,
    /// What the plan's origins boot from, for copies.
    pub(crate) origins: &'a [Stack],
    /// The empty directory that becomes the tree's root.
    pub(crate) target: &'a Dir,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a Cancel,
}

impl Build<'_> {
    /// Makes everything. Nothing is synced.
    pub(crate) fn run(&self) -> Result<()> {
        let total = self.plan.steps.len() as u64;
        self.progress.begin("staging", Unit::Paths, Some(total));
        self.directories()?;
        self.inodes()?;
        self.whiteouts()?;
        self.further_names()?;
        self.directory_attributes()?;
        self.progress.end();
        Ok(())
    }

    fn entry(&self, step: &Step) -> &Entry {
        &self.manifest.entries()[step.at as usize]
    }

    fn walk(&self) -> Result<Walk> {
        Ok(Walk::new(self.target.try_clone()?))
    }

    fn directories(&self) -> Result<()> {
        let mut walk = self.walk()?;
        for step in &self.plan.steps {
            let entry = self.entry(step);
            if entry.kind == Kind::Directory && !entry.path.is_root() {
                self.cancel.check()?;
                let (parent, name) = walk.parent(entry.path.as_path())?;
                parent.mkdir(name, 0o700)?;
            }
        }
        Ok(())
    }

    fn inodes(&self) -> Result<()> {
        self.in_chunks(
            || Maker::new(self),
            |maker, chunk| {
                for step in chunk {
                    maker.make(step)?;
                }
                self.progress.advance(chunk.len() as u64);
                Ok(())
            },
        )
    }

    /// Lets threads take chunks of the steps, in order, each with a context of its own.
    fn in_chunks<C>(
        &self,
        context: impl Fn() -> Result<C> + Sync,
        work: impl Fn(&mut C, &[Step]) -> Result<()> + Sync,
    ) -> Result<()> {
        let steps = &self.plan.steps;
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let thread = || -> Result<()> {
            let mut context = context()?;
            while !failed.load(Ordering::Relaxed) {
                let start = next.fetch_add(CHUNK, Ordering::Relaxed);
                if start >= steps.len() {
                    break;
                }
                self.cancel.check()?;
                work(&mut context, &steps[start..(start + CHUNK).min(steps.len())])?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let guarded = || thread().inspect_err(|_| failed.store(true, Ordering::Relaxed));
            let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(guarded)).collect();
            let mut result = guarded();
            for other in others {
                let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result = result.and(other);
            }
            result
        })
    }

    fn whiteouts(&self) -> Result<()> {
        let mut walk = self.walk()?;
        for path in &self.plan.shape.whiteouts {
            let (parent, name) = walk.parent(path.as_path())?;
            parent.whiteout(name)?;
        }
        Ok(())
    }

    fn further_names(&self) -> Result<()> {
        let (mut from, mut to) = (self.walk()?, self.walk()?);
        for step in &self.plan.steps {
            let entry = self.entry(step);
            if let Kind::HardLink { target } = &entry.kind {
                let (parent, name) = from.parent(target.as_path())?;
                let (new_parent, new_name) = to.parent(entry.path.as_path())?;
                parent.hard_link(name, new_parent, new_name)?;
            }
        }
        Ok(())
    }

    /// Nothing is made after this, so the order does not matter.
    fn directory_attributes(&self) -> Result<()> {
        self.in_chunks(
            || self.walk(),
            |walk, chunk| {
                for step in chunk {
                    let entry = self.entry(step);
                    if entry.kind == Kind::Directory {
                        let dir = walk.dir(entry.path.as_path())?;
                        if self.plan.shape.opaque.binary_search(&step.at).is_ok() {
                            dir.set_xattr(".", OPAQUE, b"y")?;
                        }
                        dir.set_attributes(".", &attributes(&entry.meta))?;
                    }
                }
                Ok(())
            },
        )
    }
}

/// One thread's open directories.
struct Maker<'a> {
    build: &'a Build<'a>,
    target: Walk,
    base: Option<Locator>,
    origins: HashMap<u16, Locator>,
}

impl<'a> Maker<'a> {
    fn new(build: &'a Build<'a>) -> Result<Self> {
        let base = build.base.map(|stack| Locator::open(build.store, stack)).transpose()?;
        Ok(Self { build, target: build.walk()?, base, origins: HashMap::new() })
    }

    fn make(&mut self, step: &Step) -> Result<()> {
        let build = self.build;
        let entry = build.entry(step);
        if matches!(entry.kind, Kind::Directory | Kind::HardLink { .. }) {
            return Ok(());
        }
        let (dir, name) = self.target.parent(entry.path.as_path())?;
        match (&entry.kind, &step.source) {
            (_, Source::Link(from)) => {
                let from = from.as_ref().unwrap_or(&entry.path);
                let base = self.base.as_mut().expect("a plan with links has a base");
                link_or_copy(base, from, dir, name, entry)
            }
            (Kind::Regular { digest, size }, Source::Incoming) => {
                let incoming = Incoming { dir: build.store.incoming(), digest, size: *size };
                incoming.link_or_copy(dir, name, &entry.meta)
            }
            (Kind::Regular { digest, size }, Source::CopyIncoming) => {
                let incoming = Incoming { dir: build.store.incoming(), digest, size: *size };
                incoming.copy(dir, name, &entry.meta)
            }
            (Kind::Regular { .. }, Source::Copy(origin, path)) => {
                let locator = match self.origins.entry(*origin) {
                    std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::hash_map::Entry::Vacant(entry) => {
                        let stack = &build.origins[usize::from(*origin)];
                        entry.insert(Locator::open(build.store, stack)?)
                    }
                };
                copy(locator, path, dir, name, &entry.meta)
            }
            (Kind::Regular { .. }, Source::Fresh) => {
                let file = dir.create_file(name, 0o600)?;
                Ok(file.set_attributes(&attributes(&entry.meta))?)
            }
            (Kind::Symlink { target }, _) => {
                dir.symlink(target, name)?;
                Ok(dir.set_attributes(name, &attributes(&entry.meta))?)
            }
            (kind, _) => {
                let device = match kind {
                    Kind::CharDevice(device) | Kind::BlockDevice(device) => device.0,
                    _ => 0,
                };
                dir.mknod(name, kind.type_bits() | 0o600, device)?;
                Ok(dir.set_attributes(name, &attributes(&entry.meta))?)
            }
        }
    }
}

pub(crate) fn attributes(meta: &Metadata) -> Attributes<'_> {
    Attributes {
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        mtime: (meta.mtime.seconds, meta.mtime.nanoseconds),
        xattrs: &meta.xattrs,
    }
}

fn link_or_copy(
    base: &mut Locator,
    from: &TreePath,
    dir: &Dir,
    name: &std::ffi::OsStr,
    entry: &Entry,
) -> Result<()> {
    match base.link(from, dir, name) {
        // The inode has as many names as it may: a copy is as good.
        Err(error) if error.is_too_many_links() || error.is_other_file_system() => {
            copy(base, from, dir, name, &entry.meta)
        }
        Ok(true) => Ok(()),
        Ok(false) => Err(StageError::SourceGone { path: from.clone() }),
        Err(error) => Err(error.into()),
    }
}

fn copy(
    from: &mut Locator,
    path: &TreePath,
    dir: &Dir,
    name: &std::ffi::OsStr,
    meta: &Metadata,
) -> Result<()> {
    let missing = || StageError::SourceGone { path: path.clone() };
    let (source, source_name, _) = from.find(path)?.ok_or_else(missing)?;
    let source = source.open_file(source_name)?;
    let mut file = dir.create_file(name, 0o600)?;
    file.copy_from(&source)?;
    Ok(file.set_attributes(&attributes(meta))?)
}

/// A verified content in incoming/.
struct Incoming<'a> {
    dir: &'a Dir,
    digest: &'a ContentDigest,
    size: u64,
}

impl Incoming<'_> {
    /// Takes the inode itself when nobody else has it and nothing sticks to it. It
    /// keeps its name in incoming/ until the deployment is promoted, so that a staging
    /// that is cut off need not fetch it again.
    fn link_or_copy(&self, dir: &Dir, name: &std::ffi::OsStr, meta: &Metadata) -> Result<()> {
        let here = self.digest.to_hex();
        let stat = self.dir.stat(&here).map_err(|error| self.missing(error))?;
        if !stat.is_file() || stat.size != self.size {
            return Err(StageError::Incoming { digest: *self.digest, source: None });
        }
        let clean = stat.links == 1
            && self.dir.xattrs(&here)?.iter().all(|x| meta.xattrs.iter().any(|y| x.0 == y.0));
        if !clean {
            return self.copy(dir, name, meta);
        }
        self.dir.hard_link(&here, dir, name)?;
        Ok(dir.set_attributes(name, &attributes(meta))?)
    }

    fn copy(&self, dir: &Dir, name: &std::ffi::OsStr, meta: &Metadata) -> Result<()> {
        let here = self.digest.to_hex();
        let source = self.dir.open_file(&here).map_err(|error| self.missing(error))?;
        let mut file = dir.create_file(name, 0o600)?;
        file.copy_from(&source)?;
        Ok(file.set_attributes(&attributes(meta))?)
    }

    fn missing(&self, error: SysError) -> StageError {
        match error.is_not_found() {
            true => StageError::Incoming { digest: *self.digest, source: Some(error) },
            false => error.into(),
        }
    }
}
