//! The manifest: the canonical text of a tree, in the composefs dump format
//! (composefs-dump(5)), so that `mkcomposefs --from-file` reads it.
//!
//! ```text
//! PATH SIZE MODE NLINK UID GID RDEV MTIME PAYLOAD CONTENT DIGEST [XATTR=VALUE ...]
//! / 0 40755 4 0 0 0 1760000000.0 - - -
//! /bin 7 120777 1 0 0 0 1760000000.0 usr/bin - -
//! /etc/hostname 5 100644 1 0 0 0 1760000000.0 3f/09.. - 3f09..
//! /etc/name 0 @120000 - - - - 0.0 /etc/hostname - -      (a hard link)
//! ```
//!
//! Canonical: one spelling for each tree. Entries are sorted by components, each
//! parent is there and is a directory, link counts are those of the tree, xattrs are
//! sorted; [`Manifest::parse`] writes every line again and refuses one that differs.
//! So the digest of the text is the identity of the tree.

use std::collections::HashMap;

use crate::escape;
use crate::id::{self, ContentDigest, ReleaseDigest};
use crate::path::{PathError, TreePath};
use crate::tree::{
    Device, Entry, Kind, MAX_TARGET, MAX_XATTR_NAME, MAX_XATTR_VALUE, Metadata, Time, Xattrs,
};
use crate::verity;

/// The longest manifest that is read, in bytes: four million entries or so.
pub const MAX_TEXT: u64 = 1 << 30;

/// Why a manifest or a list of entries was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// A line is not of the format.
    #[error("line {line} of the manifest: {what}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is expected.
        what: String,
    },
    /// A line says the same in another spelling.
    #[error("line {line} of the manifest is not in the canonical form")]
    NotCanonical {
        /// Counted from 1.
        line: usize,
    },
    /// The text does not end with a newline.
    #[error("the manifest is cut off: it does not end with a newline")]
    CutOff,
    /// A path that a tree cannot hold.
    #[error("the manifest names a path that a tree cannot hold")]
    Path(#[from] PathError),
    /// Entries that do not make a tree.
    #[error("the manifest is not a tree: {path} {why}")]
    Tree {
        /// Where.
        path: TreePath,
        /// What is wrong there.
        why: &'static str,
    },
}

/// A whole tree, checked: sorted, complete in its parents, hard links resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    entries: Vec<Entry>,
}

/// What a tree holds in sum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Totals {
    /// Paths, hard links and the root included.
    pub paths: u64,
    /// Bytes of all contents, each inode counted once.
    pub bytes: u64,
}

impl Manifest {
    /// Sorts entries into a tree and checks it. A hard link may name any other name of
    /// its inode; the first name in order becomes the inode's.
    pub fn from_entries(mut entries: Vec<Entry>) -> Result<Self, ManifestError> {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let manifest = Self { entries: first_names(entries)? };
        manifest.check_tree()?;
        Ok(manifest)
    }

    /// Reads the canonical text.
    pub fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        if text.last().is_some_and(|&b| b != b'\n') {
            return Err(ManifestError::CutOff);
        }
        let mut entries = Vec::new();
        for (number, line) in text.split_inclusive(|&b| b == b'\n').enumerate() {
            entries.push(parse_line(&line[..line.len() - 1], number + 1)?);
        }
        let manifest = Self { entries };
        manifest.check_tree()?;
        let links = manifest.link_counts();
        let mut again = Vec::new();
        for (number, line) in text.split_inclusive(|&b| b == b'\n').enumerate() {
            again.clear();
            write_line(&mut again, &manifest.entries[number], links[number]);
            if again != line {
                return Err(ManifestError::NotCanonical { line: number + 1 });
            }
        }
        Ok(manifest)
    }

    /// The canonical text.
    pub fn to_text(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.entries.len() * 220);
        for (entry, links) in self.entries.iter().zip(self.link_counts()) {
            write_line(&mut text, entry, links);
        }
        text
    }

    /// The identity of the tree: the SHA-256 of [`Self::to_text`].
    pub fn digest(&self) -> ReleaseDigest {
        ReleaseDigest(id::Sha256Digest::of(&self.to_text()).0)
    }

    /// All entries: the root first, each directory before what it holds.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What stands at a path; a hard link as such.
    pub fn get(&self, path: &TreePath) -> Option<&Entry> {
        self.index(path).map(|at| &self.entries[at])
    }

    /// The inode at a path: a hard link is resolved to the entry that holds its inode.
    pub fn inode<'a>(&'a self, entry: &'a Entry) -> &'a Entry {
        match &entry.kind {
            Kind::HardLink { target } => {
                self.get(target).expect("a checked manifest holds every link's target")
            }
            _ => entry,
        }
    }

    /// The place of a path in [`Self::entries`].
    pub fn index(&self, path: &TreePath) -> Option<usize> {
        self.entries.binary_search_by(|e| e.path.cmp(path)).ok()
    }

    /// Each content that the tree needs, once, with its size, in the order of first
    /// need. Empty files need none.
    pub fn contents(&self) -> impl Iterator<Item = (ContentDigest, u64)> {
        let mut seen = std::collections::HashSet::new();
        self.entries.iter().filter_map(move |entry| match entry.kind {
            Kind::Regular { size, digest } if size > 0 && seen.insert(digest) => {
                Some((digest, size))
            }
            _ => None,
        })
    }

    /// For each entry, all the names of its inode by index, where it has several.
    /// Keyed by the index of the first name.
    pub fn link_groups(&self) -> HashMap<usize, Vec<usize>> {
        let mut groups: HashMap<usize, Vec<usize>> = HashMap::new();
        for (at, entry) in self.entries.iter().enumerate() {
            if let Kind::HardLink { target } = &entry.kind {
                let first = self.index(target).expect("checked");
                groups.entry(first).or_insert_with(|| vec![first]).push(at);
            }
        }
        groups
    }

    /// Paths and bytes in sum.
    pub fn totals(&self) -> Totals {
        let bytes = self.entries.iter().map(|entry| match entry.kind {
            Kind::Regular { size, .. } => size,
            _ => 0,
        });
        Totals { paths: self.entries.len() as u64, bytes: bytes.sum() }
    }

    /// `st_nlink` of each entry, as a fresh ext4 shows it.
    fn link_counts(&self) -> Vec<u32> {
        let mut counts: Vec<u32> = self
            .entries
            .iter()
            .map(|e| if matches!(e.kind, Kind::Directory) { 2 } else { 1 })
            .collect();
        for entry in &self.entries {
            match &entry.kind {
                Kind::Directory => {
                    if let Some(parent) = entry.path.parent().and_then(|p| self.index(&p)) {
                        counts[parent] += 1;
                    }
                }
                Kind::HardLink { target } => {
                    if let Some(first) = self.index(target) {
                        counts[first] += 1;
                    }
                }
                _ => {}
            }
        }
        counts
    }

    fn check_tree(&self) -> Result<(), ManifestError> {
        let bad = |entry: &Entry, why| Err(ManifestError::Tree { path: entry.path.clone(), why });
        match self.entries.first() {
            Some(root) if root.path.is_root() && root.kind == Kind::Directory => {}
            _ => {
                return Err(ManifestError::Tree {
                    path: TreePath::root(),
                    why: "must stand first and be a directory",
                });
            }
        }
        // The chain of directories that leads to the entry before.
        let mut open: Vec<&Entry> = Vec::new();
        for (at, entry) in self.entries.iter().enumerate() {
            if at > 0 && entry.path <= self.entries[at - 1].path {
                return bad(entry, "is named twice or out of order");
            }
            while open.last().is_some_and(|dir| !entry.path.starts_with(&dir.path)) {
                open.pop();
            }
            match (open.last(), entry.path.parent()) {
                (Some(dir), Some(parent)) if dir.path == parent => {}
                (None, None) => {}
                (Some(_), Some(parent)) if self.get(&parent).is_some() => {
                    return bad(entry, "lies below something that is not a directory");
                }
                _ => return bad(entry, "lies in a directory that is not listed"),
            }
            match &entry.kind {
                Kind::Directory => open.push(entry),
                Kind::HardLink { target } => match self.get(target).map(|t| &t.kind) {
                    Some(Kind::Directory) => return bad(entry, "is a hard link to a directory"),
                    Some(Kind::HardLink { .. }) => {
                        return bad(entry, "is a hard link to a hard link");
                    }
                    Some(_) if *target < entry.path => {}
                    Some(_) => return bad(entry, "is a hard link to a later path"),
                    None => return bad(entry, "is a hard link to a path that is not listed"),
                },
                Kind::Symlink { target } if target.is_empty() || target.len() > MAX_TARGET => {
                    return bad(entry, "is a symbolic link with an empty or too long target");
                }
                Kind::Symlink { target } if target.contains(&0) => {
                    return bad(entry, "is a symbolic link with a zero byte in its target");
                }
                _ => {}
            }
            check_metadata(entry)?;
        }
        Ok(())
    }
}

fn check_metadata(entry: &Entry) -> Result<(), ManifestError> {
    let bad = |why| Err(ManifestError::Tree { path: entry.path.clone(), why });
    let meta = &entry.meta;
    if meta.mode > 0o7777 || meta.mtime.nanoseconds > 999_999_999 {
        return bad("has a mode or a time out of range");
    }
    for (name, value) in &meta.xattrs {
        if name.is_empty() || name.len() > MAX_XATTR_NAME || name.contains(&0) {
            return bad("has an extended attribute with an impossible name");
        }
        if value.len() > MAX_XATTR_VALUE {
            return bad("has an extended attribute longer than 64 KiB");
        }
        if is_overlay_private(name) {
            return bad("carries a private attribute of overlayfs");
        }
    }
    if meta.xattrs.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
        return bad("has extended attributes twice or out of order");
    }
    Ok(())
}

/// Whether overlayfs gives this attribute a meaning of its own; a release that set it
/// could hide or redirect files of the layers below.
pub fn is_overlay_private(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Makes the first name of each inode (in order) the one that holds it.
fn first_names(mut entries: Vec<Entry>) -> Result<Vec<Entry>, ManifestError> {
    let at: HashMap<TreePath, usize> =
        entries.iter().enumerate().map(|(at, e)| (e.path.clone(), at)).collect();
    let mut first: HashMap<usize, usize> = HashMap::new();
    let mut links = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if let Kind::HardLink { target } = &entry.kind {
            let mut holder = target;
            let mut steps = 0;
            let inode = loop {
                let found = at.get(holder).copied().filter(|_| steps <= entries.len());
                let Some(found) = found else {
                    return Err(ManifestError::Tree {
                        path: entry.path.clone(),
                        why: "is a hard link to a path that is not listed",
                    });
                };
                match &entries[found].kind {
                    Kind::HardLink { target } => holder = target,
                    _ => break found,
                }
                steps += 1;
            };
            let lowest = first.entry(inode).or_insert(inode);
            *lowest = (*lowest).min(index);
            links.push((index, inode));
        }
    }
    for (&inode, &lowest) in &first {
        if lowest != inode {
            let kind = std::mem::replace(&mut entries[inode].kind, Kind::Fifo);
            let meta = std::mem::take(&mut entries[inode].meta);
            entries[lowest].kind = kind;
            entries[lowest].meta = meta;
            let target = entries[lowest].path.clone();
            entries[inode].kind = Kind::HardLink { target };
        }
    }
    for (index, inode) in links {
        let lowest = first[&inode];
        if index != lowest {
            let target = entries[lowest].path.clone();
            entries[index].kind = Kind::HardLink { target };
        }
    }
    Ok(entries)
}

fn write_line(out: &mut Vec<u8>, entry: &Entry, links: u32) {
    use std::io::Write;
    let path = |out: &mut Vec<u8>, path: &TreePath| {
        out.push(b'/');
        escape::write(out, path.as_bytes(), false);
    };
    path(out, &entry.path);
    let meta = &entry.meta;
    if let Kind::HardLink { target } = &entry.kind {
        out.extend_from_slice(b" 0 @120000 - - - - 0.0 ");
        path(out, target);
        out.extend_from_slice(b" - -\n");
        return;
    }
    let (size, device) = match &entry.kind {
        Kind::Regular { size, .. } => (*size, 0),
        Kind::Symlink { target } => (target.len() as u64, 0),
        Kind::CharDevice(device) | Kind::BlockDevice(device) => (0, device.0),
        _ => (0, 0),
    };
    let mode = entry.kind.type_bits() | meta.mode;
    let (uid, gid, mtime) = (meta.uid, meta.gid, meta.mtime);
    write!(out, " {size} {mode:o} {links} {uid} {gid} {device} {mtime} ").expect("to memory");
    match &entry.kind {
        Kind::Regular { size, digest } if *size > 0 => {
            let hex = digest.to_hex();
            write!(out, "{}/{} - {hex}", &hex[..2], &hex[2..]).expect("to memory");
        }
        Kind::Symlink { target } => {
            escape::write(out, target, false);
            out.extend_from_slice(b" - -");
        }
        _ => out.extend_from_slice(b"- - -"),
    }
    for (name, value) in &meta.xattrs {
        out.push(b' ');
        escape::write(out, name, true);
        out.push(b'=');
        escape::write(out, value, false);
    }
    out.push(b'\n');
}

fn parse_line(line: &[u8], number: usize) -> Result<Entry, ManifestError> {
    let bad = |what: &str| ManifestError::Line { line: number, what: what.to_owned() };
    let mut fields = line.split(|&b| b == b' ');
    let mut next =
        |what: &str| fields.next().ok_or_else(|| bad(&format!("it ends before the field {what}")));
    let path_field = |field: &[u8]| -> Result<TreePath, ManifestError> {
        let bytes = escape::read(field).ok_or_else(|| bad("a broken escape in a path"))?;
        let relative = bytes.strip_prefix(b"/").ok_or_else(|| bad("a path starts with /"))?;
        Ok(TreePath::new(relative)?)
    };
    let path = path_field(next("PATH")?)?;
    let size = next("SIZE")?;
    let mode = next("MODE")?;
    let [_, uid, gid, device] = [next("NLINK")?, next("UID")?, next("GID")?, next("RDEV")?];
    let mtime = next("MTIME")?;
    let payload = next("PAYLOAD")?;
    let content = next("CONTENT")?;
    let digest = next("DIGEST")?;
    if mode.first() == Some(&b'@') {
        return Ok(Entry::hard_link(path, path_field(payload)?));
    }
    if content != b"-" {
        return Err(bad("contents inside the manifest are not used: CONTENT must be -"));
    }
    let number_field = |field: &[u8], radix, what: &str| {
        std::str::from_utf8(field)
            .ok()
            .and_then(|text| u64::from_str_radix(text, radix).ok())
            .ok_or_else(|| bad(&format!("{what} is not a number in range")))
    };
    let id_field = |field: &[u8], what: &str| {
        u32::try_from(number_field(field, 10, what)?)
            .map_err(|_| bad(&format!("{what} is not a number in range")))
    };
    let size = number_field(size, 10, "SIZE")?;
    if size > i64::MAX as u64 {
        return Err(bad("SIZE is larger than any file"));
    }
    let mode = number_field(mode, 8, "MODE")?;
    let device = Device(number_field(device, 10, "RDEV")?);
    let kind = match mode & !0o7777 {
        0o040000 => Kind::Directory,
        0o100000 if size == 0 => Kind::Regular { size, digest: verity::content_digest(b"") },
        0o100000 => Kind::Regular {
            size,
            digest: ContentDigest(
                id::digest_from_hex(digest).map_err(|error| bad(&error.to_string()))?,
            ),
        },
        0o120000 => Kind::Symlink {
            target: escape::read(payload)
                .ok_or_else(|| bad("a broken escape in a link's target"))?
                .into(),
        },
        0o020000 => Kind::CharDevice(device),
        0o060000 => Kind::BlockDevice(device),
        0o010000 => Kind::Fifo,
        0o140000 => Kind::Socket,
        _ => return Err(bad("MODE has no known file type")),
    };
    let mtime = parse_time(mtime).ok_or_else(|| bad("MTIME is not seconds.nanoseconds"))?;
    let mut xattrs = Xattrs::new();
    for field in fields {
        let at = field.iter().position(|&b| b == b'=').ok_or_else(|| bad("an xattr without ="))?;
        let part = |bytes| escape::read(bytes).ok_or_else(|| bad("a broken escape in an xattr"));
        xattrs.push((part(&field[..at])?.into(), part(&field[at + 1..])?.into()));
    }
    let meta = Metadata {
        mode: (mode & 0o7777) as u32,
        uid: id_field(uid, "UID")?,
        gid: id_field(gid, "GID")?,
        mtime,
        xattrs,
    };
    Ok(Entry { path, kind, meta })
}

fn parse_time(field: &[u8]) -> Option<Time> {
    let (seconds, nanoseconds) = std::str::from_utf8(field).ok()?.split_once('.')?;
    Some(Time { seconds: seconds.parse().ok()?, nanoseconds: nanoseconds.parse().ok()? })
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
