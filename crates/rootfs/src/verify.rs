//! Whether what is on disk is what a manifest says, to the last attribute.
//!
//! ```text
//! MergedDir (a tree, or layers as their mount would show them)   Manifest
//!        names, sorted by bytes  ----------- side by side ------- entries, same order
//!              '- contents, when asked for
//! threads, a directory or a content at a time; which names share an inode: at the end
//! ```
//!
//! What is compared: that every path is there and no other, types, modes, owners, times
//! of modification, all extended attributes, which names share an inode and which do
//! not, targets, device numbers, lengths, contents. A difference is data, not an error:
//! an error means that it could not be found out. Callers: stage, merge, `varve fsck`.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use varve_format::manifest::Manifest;
use varve_format::tree::{Entry, Kind, Metadata};
use varve_sys::task::{Cancel, Cancelled, Progress, Unit};
use varve_sys::{Dir, FileType, Stat, SysError};

use crate::content::Reader;
use crate::pool::{self, Pool};
pub use crate::report::{Difference, MAX_DIFFERENCES, Report, What};
use crate::view::{Found, Looked, MergedDir, OPAQUE};

/// With so many tasks that wait, a file is read at once and not left, open, to another.
const QUEUE: usize = 64;

/// How much is compared. Each level holds all of the one before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Level {
    /// Everything but contents.
    Structure,
    /// And the contents that this staging wrote.
    #[default]
    NewContents,
    /// And every content.
    Full,
}

/// Which contents are read.
#[derive(Clone, Copy, Debug)]
pub enum Contents<'a> {
    /// None.
    Nothing,
    /// Those of these entries, by their index in the manifest; sorted.
    Only(&'a [u32]),
    /// All.
    Everything,
}

/// Why it could not be found out whether something is right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The disk.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// Asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Compares the layers of a stack (newest first; one for a tree) with a manifest.
pub fn verify(
    layers: Vec<Dir>,
    manifest: &Manifest,
    read: Contents<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Report, VerifyError> {
    verify_all(layers, manifest, read, MAX_DIFFERENCES, progress, cancel)
}

/// The same, keeping up to `limit` differences.
pub(crate) fn verify_all(
    layers: Vec<Dir>,
    manifest: &Manifest,
    read: Contents<'_>,
    limit: usize,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Report, VerifyError> {
    progress.begin("verifying", Unit::Paths, Some(manifest.entries().len() as u64));
    let check = Check { manifest, read, progress, cancel };
    let root = Task::Directory { dir: Arc::new(MergedDir::root(layers)), below: None, at: 0 };
    let context = || Seen { report: Report { limit, ..Report::default() }, ..Seen::default() };
    let seen = pool::run(root, context, |task, seen, pool| check.task(task, seen, pool))?;
    let mut report = Report { limit, ..Report::default() };
    let mut inodes = Vec::new();
    for part in seen {
        report.take(part.report);
        inodes.extend(part.inodes);
    }
    check.names_of_inodes(inodes, &mut report);
    report.differences.sort_by(|a, b| a.path.cmp(&b.path));
    report.differences.truncate(limit);
    progress.end();
    Ok(report)
}

enum Task {
    /// A directory that is entry `at`: `dir` itself, or what was found `below` it.
    Directory { dir: Arc<MergedDir>, below: Option<(OsString, Found)>, at: usize },
    /// The content of entry `at`.
    Content { file: File, at: usize },
}

/// What one thread saw.
#[derive(Default)]
struct Seen {
    report: Report,
    /// Inodes that have or should have several names: device, number, entry.
    inodes: Vec<(u64, u64, u32)>,
    reader: Reader,
}

struct Check<'a> {
    manifest: &'a Manifest,
    read: Contents<'a>,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

type Result<T, E = VerifyError> = std::result::Result<T, E>;

impl Check<'_> {
    fn task(&self, task: Task, seen: &mut Seen, pool: &Pool<Task>) -> Result<()> {
        self.cancel.check()?;
        match task {
            Task::Content { file, at } => self.content(&file, at, seen),
            Task::Directory { dir, below: Some((name, found)), at } => {
                let below = Arc::new(dir.enter(&name, &found)?);
                drop(dir);
                self.directory(&below, at, seen, pool)?;
            }
            Task::Directory { dir, below: None, at } => {
                let entry = &self.manifest.entries()[at];
                let stat = dir.top().stat(".")?;
                seen.report.paths += 1;
                attributes(dir.top(), OsStr::new("."), &stat, entry, &mut seen.report)?;
                self.directory(&dir, at, seen, pool)?;
            }
        }
        Ok(())
    }

    /// Compares what stands in the directory of entry `at`.
    fn directory(
        &self,
        dir: &Arc<MergedDir>,
        at: usize,
        seen: &mut Seen,
        pool: &Pool<Task>,
    ) -> Result<()> {
        let mut next = at + 1;
        let end = self.subtree_end(at);
        let names = dir.names()?.into_iter().filter_map(|(name, looked)| match looked {
            Looked::Found(found) => Some((name, found)),
            _ => None,
        });
        let mut names = names.peekable();
        // Its own names alone: what it hands on may be done within, and tells of itself.
        let mut compared = 0;
        while next < end || names.peek().is_some() {
            let entry = (next < end).then(|| &self.manifest.entries()[next]);
            let order = match (names.peek(), entry) {
                (Some((name, _)), Some(entry)) => name.as_bytes().cmp(entry.path.name().as_bytes()),
                (Some(_), None) => Ordering::Less,
                _ => Ordering::Greater,
            };
            match (order, entry) {
                (Ordering::Equal, Some(entry)) => {
                    let (name, found) = names.next().expect("compared");
                    compared += 1;
                    self.entry(dir.holder(&found), &name, &found.stat, next, seen, pool)?;
                    let both = entry.kind == Kind::Directory && found.stat.is_dir();
                    let (dir, at) = (dir.clone(), next);
                    next = self.subtree_end(next);
                    if both {
                        pool.push(Task::Directory { dir, below: Some((name, found)), at });
                    }
                }
                (Ordering::Greater, Some(entry)) => {
                    seen.report.add(&entry.path, What::Missing);
                    next = self.subtree_end(next);
                }
                _ => {
                    let (name, _) = names.next().expect("one side has something left");
                    let here = &self.manifest.entries()[at].path;
                    // A name that no manifest could hold is shown by its directory.
                    let path = here.join(name.as_bytes()).unwrap_or_else(|_| here.clone());
                    seen.report.add(&path, What::Extra);
                }
            }
        }
        self.progress.advance(compared);
        Ok(())
    }

    /// The index after the last entry below entry `at`.
    fn subtree_end(&self, at: usize) -> usize {
        let entries = self.manifest.entries();
        if entries[at].kind != Kind::Directory {
            return at + 1;
        }
        at + 1 + entries[at + 1..].partition_point(|e| e.path.starts_with(&entries[at].path))
    }

    fn entry(
        &self,
        dir: &Dir,
        name: &OsStr,
        stat: &Stat,
        at: usize,
        seen: &mut Seen,
        pool: &Pool<Task>,
    ) -> Result<()> {
        let entry = &self.manifest.entries()[at];
        let expected = self.manifest.inode(entry).kind.word();
        let found = word(stat);
        seen.report.paths += 1;
        if found != expected {
            seen.report.add(&entry.path, What::Kind { expected, found });
            return Ok(());
        }
        let further_name = matches!(entry.kind, Kind::HardLink { .. });
        if !stat.is_dir() && (stat.links > 1 || further_name) {
            seen.inodes.push((stat.device, stat.inode, at as u32));
        }
        // A further name is either the same inode, or torn from it and reported as that.
        if further_name {
            return Ok(());
        }
        attributes(dir, name, stat, entry, &mut seen.report)?;
        let report = &mut seen.report;
        match &entry.kind {
            Kind::Regular { size, .. } if *size != stat.size => {
                let (expected, found) = (*size, stat.size);
                report.add(&entry.path, What::Size { expected, found });
            }
            Kind::Regular { size, .. } if *size > 0 && self.is_read(at) => {
                let file = dir.open_examined(name)?;
                if pool.waiting() < QUEUE {
                    pool.push(Task::Content { file, at });
                } else {
                    self.content(&file, at, seen);
                }
            }
            Kind::Symlink { target } if dir.read_link(name)?[..] != **target => {
                report.add(&entry.path, What::Target);
            }
            Kind::CharDevice(device) | Kind::BlockDevice(device) if device.0 != stat.special => {
                report.add(&entry.path, What::Device);
            }
            _ => {}
        }
        Ok(())
    }

    fn is_read(&self, at: usize) -> bool {
        match self.read {
            Contents::Nothing => false,
            Contents::Only(indices) => indices.binary_search(&(at as u32)).is_ok(),
            Contents::Everything => true,
        }
    }

    fn content(&self, file: &File, at: usize, seen: &mut Seen) {
        let entry = &self.manifest.entries()[at];
        let Kind::Regular { digest: expected, size } = entry.kind else {
            unreachable!("only files are read")
        };
        seen.report.files_read += 1;
        match seen.reader.digest(file, size) {
            Ok((found, bytes)) => {
                seen.report.bytes_read += bytes;
                if found != expected {
                    seen.report.add(&entry.path, What::Content { expected, found });
                }
            }
            Err(error) => {
                seen.report.add(&entry.path, What::Unreadable { why: error.to_string() });
            }
        }
    }

    /// Compares which names share an inode with which should.
    fn names_of_inodes(&self, mut inodes: Vec<(u64, u64, u32)>, report: &mut Report) {
        let entries = self.manifest.entries();
        inodes.sort_unstable_by_key(|(_, _, at)| *at);
        let inode_of = |at: usize| {
            let found = inodes.binary_search_by_key(&(at as u32), |(_, _, at)| *at).ok()?;
            Some((inodes[found].0, inodes[found].1))
        };
        let mut first: HashMap<(u64, u64), usize> = HashMap::new();
        for &(device, number, at) in &inodes {
            let inode = (device, number);
            let entry = &entries[at as usize];
            match &entry.kind {
                Kind::HardLink { target } => {
                    let holder = self.manifest.index(target).and_then(inode_of);
                    if holder != Some(inode) {
                        report.add(&entry.path, What::Torn { from: target.clone() });
                    }
                }
                _ => match first.entry(inode) {
                    std::collections::hash_map::Entry::Vacant(place) => {
                        place.insert(at as usize);
                    }
                    std::collections::hash_map::Entry::Occupied(other) => {
                        let with = entries[*other.get()].path.clone();
                        report.add(&entry.path, What::Joined { with });
                    }
                },
            }
        }
    }
}

/// Compares mode, owner, time and extended attributes.
fn attributes(
    dir: &Dir,
    name: &OsStr,
    stat: &Stat,
    entry: &Entry,
    report: &mut Report,
) -> Result<()> {
    let meta = &entry.meta;
    // Linux gives every symbolic link mode 0777.
    if stat.mode & 0o7777 != meta.mode && stat.file_type() != FileType::Symlink {
        let found = stat.mode & 0o7777;
        report.add(&entry.path, What::Mode { expected: meta.mode, found });
    }
    if (stat.uid, stat.gid) != (meta.uid, meta.gid) {
        let (expected, found) = ((meta.uid, meta.gid), (stat.uid, stat.gid));
        report.add(&entry.path, What::Owner { expected, found });
    }
    let expected = (meta.mtime.seconds, meta.mtime.nanoseconds);
    if stat.mtime != expected {
        report.add(&entry.path, What::Time { expected, found: stat.mtime });
    }
    for name in wrong_xattrs(dir, name, stat, meta)? {
        report.add(&entry.path, What::Xattr { name });
    }
    Ok(())
}

/// The names of the attributes that differ. The opaque mark of a layer's directory is
/// not the release's and does not count; any other private one of overlayfs does.
pub(crate) fn wrong_xattrs(
    dir: &Dir,
    name: &OsStr,
    stat: &Stat,
    meta: &Metadata,
) -> varve_sys::Result<Vec<Box<[u8]>>> {
    let found = dir.xattrs(name)?;
    let found: Vec<_> = found.iter().filter(|x| !(stat.is_dir() && *x.0 == *OPAQUE)).collect();
    if found.is_empty() && meta.xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut wrong = Vec::new();
    wrong.extend(meta.xattrs.iter().filter(|x| !found.contains(x)).map(|x| x.0.clone()));
    let unlisted = found.iter().filter(|x| !meta.xattrs.iter().any(|y| y.0 == x.0));
    wrong.extend(unlisted.map(|x| x.0.clone()));
    Ok(wrong)
}

fn word(stat: &Stat) -> &'static str {
    match stat.file_type() {
        FileType::Directory => "directory",
        FileType::RegularFile => "file",
        FileType::Symlink => "symbolic link",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::Unknown => "thing of an unknown type",
    }
}
