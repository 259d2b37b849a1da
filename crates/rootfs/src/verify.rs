//! Whether what is on disk is what a manifest says, to the last attribute.
//!
//! ```text
//! MergedDir (a tree, or layers as their mount would show them)   Manifest
//!        names, sorted by bytes  ----------- side by side ------- entries, same order
//!              '- contents, when asked for: opened here, read by two threads
//! ```
//!
//! What is compared: that every path is there and no other, types, modes, owners, times
//! of modification, all extended attributes, which names share an inode and which do
//! not, targets, device numbers, lengths, contents. A difference is data, not an error:
//! an error means that it could not be found out. Callers: stage, merge, `varve fsck`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use varve_format::manifest::Manifest;
use varve_format::tree::{Entry, Kind, Metadata};
use varve_format::verity::ContentHasher;
use varve_format::{ContentDigest, TreePath};
use varve_sys::task::{Cancel, Cancelled, Progress, Unit};
use varve_sys::{Dir, FileType, Stat, SysError};

use crate::view::{Looked, MergedDir, OPAQUE};

/// So many differences are kept; the rest is counted.
pub const MAX_DIFFERENCES: usize = 200;
/// Files that wait, open, for a reader.
const QUEUE: usize = 64;
const READERS: usize = 2;
const BUFFER: usize = 256 << 10;

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

/// What was compared, and what differs.
#[derive(Debug, Default)]
pub struct Report {
    /// The first [`MAX_DIFFERENCES`], in the order of paths; contents after the rest.
    pub differences: Vec<Difference>,
    /// How many differ in all.
    pub count: u64,
    /// Paths that were compared.
    pub paths: u64,
    /// Files whose content was read.
    pub files_read: u64,
    /// Their bytes.
    pub bytes_read: u64,
    limit: usize,
}

impl Report {
    /// Whether nothing differs.
    pub fn is_clean(&self) -> bool {
        self.count == 0
    }

    fn add(&mut self, path: &TreePath, what: What) {
        self.count += 1;
        if self.differences.len() < self.limit {
            self.differences.push(Difference { path: path.clone(), what });
        }
    }
}

/// A path that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Where.
    pub path: TreePath,
    /// What differs; one path may have several differences.
    pub what: What,
}

/// What differs at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// It is not there (for a directory, with all that it should hold).
    Missing,
    /// It is there, and the manifest does not list it.
    Extra,
    /// It is something else.
    Kind {
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// Permission bits.
    Mode {
        /// As the manifest has it.
        expected: u32,
        /// As it is.
        found: u32,
    },
    /// User and group.
    Owner {
        /// As the manifest has it.
        expected: (u32, u32),
        /// As it is.
        found: (u32, u32),
    },
    /// Time of modification: seconds since 1970, nanoseconds.
    Time {
        /// As the manifest has it.
        expected: (i64, u32),
        /// As it is.
        found: (i64, u32),
    },
    /// An extended attribute is missing, not listed, or has another value.
    Xattr {
        /// Its name.
        name: Box<[u8]>,
    },
    /// A symbolic link points elsewhere.
    Target,
    /// Another device number.
    Device,
    /// Another length, in bytes.
    Size {
        /// As the manifest has it.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// Another content.
    Content {
        /// As the manifest has it.
        expected: ContentDigest,
        /// As it is.
        found: ContentDigest,
    },
    /// The disk does not give the content.
    Unreadable {
        /// What the kernel said.
        why: String,
    },
    /// It should share its inode with that path, and does not.
    Torn {
        /// The first name of its inode.
        from: TreePath,
    },
    /// It shares its inode with that path, and should not.
    Joined {
        /// The other name.
        with: TreePath,
    },
}

impl What {
    /// Whether the content, not the name or an attribute, is wrong.
    pub fn is_content(&self) -> bool {
        matches!(self, What::Content { .. } | What::Size { .. } | What::Unreadable { .. })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path)?;
        match &self.what {
            What::Missing => f.write_str("is missing"),
            What::Extra => f.write_str("should not be there"),
            What::Kind { expected, found } => write!(f, "is a {found}, should be a {expected}"),
            What::Mode { expected, found } => {
                write!(f, "has mode {found:04o}, should have {expected:04o}")
            }
            What::Owner { expected, found } => write!(
                f,
                "belongs to {}:{}, should belong to {}:{}",
                found.0, found.1, expected.0, expected.1
            ),
            What::Time { expected, found } => write!(
                f,
                "was modified at {}.{:09}, should be at {}.{:09}",
                found.0, found.1, expected.0, expected.1
            ),
            What::Xattr { name } => {
                write!(f, "has a wrong attribute {}", String::from_utf8_lossy(name))
            }
            What::Target => f.write_str("points elsewhere"),
            What::Device => f.write_str("is another device"),
            What::Size { expected, found } => {
                write!(f, "has {found} bytes, should have {expected}")
            }
            What::Content { .. } => f.write_str("has another content"),
            What::Unreadable { why } => write!(f, "cannot be read: {why}"),
            What::Torn { from } => write!(f, "should be the same file as {from}"),
            What::Joined { with } => write!(f, "should not be the same file as {with}"),
        }
    }
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
    let (queue, waiting) = sync_channel::<Waiting<'_>>(QUEUE);
    let waiting = Mutex::new(waiting);
    let result = std::thread::scope(|scope| {
        let readers: Vec<_> = match read {
            Contents::Nothing => Vec::new(),
            _ => (0..READERS).map(|_| scope.spawn(|| read_all(&waiting, limit, cancel))).collect(),
        };
        let mut check = Check {
            manifest,
            read,
            queue,
            links: HashMap::new(),
            report: Report { limit, ..Report::default() },
            progress,
            cancel,
        };
        let checked = check.whole(layers);
        let Check { queue, mut report, .. } = check;
        // The readers end when nobody can send any more.
        drop(queue);
        for reader in readers {
            let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            report.files_read += read.files;
            report.bytes_read += read.bytes;
            report.count += read.more;
            for (path, what) in read.differences {
                report.add(path, what);
            }
        }
        checked?;
        cancel.check()?;
        Ok(report)
    });
    progress.end();
    result
}

/// A file that is to be read: open, and what it should hold.
struct Waiting<'a> {
    file: File,
    path: &'a TreePath,
    digest: ContentDigest,
}

struct Check<'a> {
    manifest: &'a Manifest,
    read: Contents<'a>,
    queue: SyncSender<Waiting<'a>>,
    /// Which entry has this inode (device, number), for inodes with several names.
    links: HashMap<(u64, u64), usize>,
    report: Report,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

type Result<T, E = VerifyError> = std::result::Result<T, E>;

impl<'a> Check<'a> {
    fn whole(&mut self, layers: Vec<Dir>) -> Result<()> {
        let root = MergedDir::root(layers);
        let entry = &self.manifest.entries()[0];
        let stat = root.top().stat(".")?;
        self.attributes(root.top(), OsStr::new("."), &stat, entry, entry)?;
        self.directory(&root, 0)
    }

    /// Compares what stands in the directory of entry `at`, and below.
    fn directory(&mut self, dir: &MergedDir, at: usize) -> Result<()> {
        self.cancel.check()?;
        let mut next = at + 1;
        let end = self.subtree_end(at);
        let names = dir.names()?;
        let mut shown = names.iter().filter_map(|(name, looked)| match looked {
            Looked::Found(found) => Some((name, found)),
            _ => None,
        });
        let mut found = shown.next();
        let before = self.report.paths;
        while next < end || found.is_some() {
            let entry = (next < end).then(|| &self.manifest.entries()[next]);
            let order = match (found, entry) {
                (Some((name, _)), Some(entry)) => {
                    name.as_bytes().cmp(entry.path.name().as_bytes())
                }
                (Some(_), None) => std::cmp::Ordering::Less,
                _ => std::cmp::Ordering::Greater,
            };
            match (order, found, entry) {
                (std::cmp::Ordering::Less, Some((name, _)), _) => {
                    let here = &self.manifest.entries()[at].path;
                    // A name that no manifest could hold is shown by its directory.
                    let path = here.join(name.as_bytes()).unwrap_or_else(|_| here.clone());
                    self.report.add(&path, What::Extra);
                    found = shown.next();
                }
                (std::cmp::Ordering::Equal, Some((name, what)), Some(entry)) => {
                    self.entry(dir.holder(what), name, &what.stat, next)?;
                    if entry.kind == Kind::Directory && what.stat.is_dir() {
                        self.directory(&dir.enter(name, what)?, next)?;
                    }
                    next = self.subtree_end(next);
                    found = shown.next();
                }
                (_, _, Some(entry)) => {
                    self.report.add(&entry.path, What::Missing);
                    next = self.subtree_end(next);
                }
                _ => unreachable!("one side has something left"),
            }
        }
        self.progress.advance(self.report.paths - before);
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

    fn entry(&mut self, dir: &Dir, name: &OsStr, stat: &Stat, at: usize) -> Result<()> {
        let manifest = self.manifest;
        let entry = &manifest.entries()[at];
        let inode = manifest.inode(entry);
        let found = word(stat);
        if found != inode.kind.word() {
            let expected = inode.kind.word();
            self.report.paths += 1;
            self.report.add(&entry.path, What::Kind { expected, found });
            return Ok(());
        }
        if !stat.is_dir() {
            self.names_of_inode(stat, at);
        }
        if matches!(entry.kind, Kind::HardLink { .. }) {
            self.report.paths += 1;
            let torn = matches!(
                self.report.differences.last(),
                Some(Difference { path, what: What::Torn { .. } }) if *path == entry.path
            );
            // The same inode was compared under its first name.
            if !torn {
                return Ok(());
            }
        }
        self.attributes(dir, name, stat, entry, inode)?;
        self.contents(dir, name, stat, at, inode)
    }

    fn names_of_inode(&mut self, stat: &Stat, at: usize) {
        let entry = &self.manifest.entries()[at];
        let inode = (stat.device, stat.inode);
        let known = (stat.links > 1).then(|| self.links.get(&inode).copied()).flatten();
        match &entry.kind {
            Kind::HardLink { target } => {
                let first = known.map(|first| &self.manifest.entries()[first].path);
                if first != Some(target) {
                    self.report.add(&entry.path, What::Torn { from: target.clone() });
                }
            }
            _ => match known {
                Some(other) => {
                    let with = self.manifest.entries()[other].path.clone();
                    self.report.add(&entry.path, What::Joined { with });
                }
                None if stat.links > 1 => {
                    self.links.insert(inode, at);
                }
                None => {}
            },
        }
    }

    fn attributes(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        stat: &Stat,
        entry: &Entry,
        inode: &Entry,
    ) -> Result<()> {
        if !matches!(entry.kind, Kind::HardLink { .. }) {
            self.report.paths += 1;
        }
        let meta = &inode.meta;
        let report = &mut self.report;
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
            self.report.add(&entry.path, What::Xattr { name });
        }
        Ok(())
    }

    fn contents(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        stat: &Stat,
        at: usize,
        inode: &Entry,
    ) -> Result<()> {
        let path = &self.manifest.entries()[at].path;
        match &inode.kind {
            Kind::Regular { size, .. } if *size != stat.size => {
                let (expected, found) = (*size, stat.size);
                self.report.add(path, What::Size { expected, found });
            }
            Kind::Regular { size, digest } if *size > 0 => {
                let wanted = match self.read {
                    Contents::Nothing => false,
                    Contents::Only(indices) => indices.binary_search(&(at as u32)).is_ok(),
                    Contents::Everything => true,
                };
                if wanted {
                    let file = dir.open_file(name)?;
                    // Nobody takes it once the readers were cancelled; that is told later.
                    let _ = self.queue.send(Waiting { file, path, digest: *digest });
                }
            }
            Kind::Symlink { target } if dir.read_link(name)?[..] != **target => {
                self.report.add(path, What::Target);
            }
            Kind::CharDevice(device) | Kind::BlockDevice(device) if device.0 != stat.special => {
                self.report.add(path, What::Device);
            }
            _ => {}
        }
        Ok(())
    }
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

#[derive(Default)]
struct ReadReport<'a> {
    files: u64,
    bytes: u64,
    differences: Vec<(&'a TreePath, What)>,
    /// Differences that were not kept.
    more: u64,
}

impl<'a> ReadReport<'a> {
    fn add(&mut self, path: &'a TreePath, what: What, limit: usize) {
        if self.differences.len() < limit {
            self.differences.push((path, what));
        } else {
            self.more += 1;
        }
    }
}

fn read_all<'a>(
    waiting: &Mutex<Receiver<Waiting<'a>>>,
    limit: usize,
    cancel: &Cancel,
) -> ReadReport<'a> {
    let mut report = ReadReport::default();
    let mut buffer = vec![0; BUFFER];
    loop {
        let next = waiting.lock().expect("no reader panics with the lock").recv();
        let Ok(Waiting { file, path, digest }) = next else { return report };
        if cancel.is_cancelled() {
            // Emptied, not left: the sender must never wait for nobody.
            continue;
        }
        report.files += 1;
        match hash_file(&file, &mut buffer) {
            Ok((found, bytes)) => {
                report.bytes += bytes;
                if found != digest {
                    report.add(path, What::Content { expected: digest, found }, limit);
                }
            }
            Err(error) => {
                report.add(path, What::Unreadable { why: error.to_string() }, limit);
            }
        }
    }
}

/// The digest and length of an open file's content.
pub(crate) fn hash_file(
    mut file: &File,
    buffer: &mut [u8],
) -> std::io::Result<(ContentDigest, u64)> {
    let mut hasher = ContentHasher::new();
    loop {
        match file.read(buffer) {
            Ok(0) => {
                let size = hasher.size();
                return Ok((hasher.finish(), size));
            }
            Ok(length) => hasher.update(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
