//! What changes from one release to another: by package where dpkg's database is in the
//! tree, by path otherwise.
//!
//! ```text
//! var/lib/dpkg/status            package -> version, installed size
//! var/lib/dpkg/info/<p>.list     path -> package
//! manifest changes               path -> bytes of new content
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use varve_build::repo::{self, ContentReader};
use varve_format::change::{Change, changes};
use varve_format::manifest::Manifest;
use varve_format::tree::{Entry, Kind};
use varve_format::{ContentDigest, ReleaseName, TreePath};

use crate::error::Result;
use crate::repository::Repository;

/// The longest file of dpkg's database that is read.
const MAX_DATABASE: u64 = 64 << 20;

/// What changes from one release to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// The older release.
    pub from: ReleaseName,
    /// The newer one.
    pub to: ReleaseName,
    /// Packages that change, when both trees have dpkg's database.
    pub packages: Option<Vec<PackageChange>>,
    /// Paths that change and belong to no package; all that change where there are no
    /// packages.
    pub paths: Vec<PathChange>,
    /// How many paths change in all.
    pub changed_paths: u64,
    /// The bytes.
    pub size: SizeChange,
}

/// Bytes before and after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SizeChange {
    /// Bytes of the whole older tree.
    pub from: u64,
    /// Bytes of the whole newer tree.
    pub to: u64,
    /// Bytes of contents that only the newer tree has: what an upgrade must bring.
    pub new_content: u64,
    /// How many such contents.
    pub new_contents: u64,
}

/// A package that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackageChange {
    /// Its name, with the architecture where both of two are installed.
    pub name: String,
    /// Its version before; none when it is new.
    pub from: Option<String>,
    /// Its version after; none when it goes.
    pub to: Option<String>,
    /// Bytes of new content in its files.
    pub new_content: u64,
    /// Its paths that change.
    pub paths: u64,
}

/// A path that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PathChange {
    /// The path, escaped where it is not printable.
    pub path: String,
    /// How.
    pub kind: PathChangeKind,
    /// Bytes of content before.
    pub from: u64,
    /// Bytes of content after.
    pub to: u64,
}

/// How a path changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PathChangeKind {
    /// It is new.
    Added,
    /// It goes.
    Removed,
    /// Its content, or its type, changes.
    Content,
    /// Only mode, owner, times, attributes or hard links change.
    Metadata,
}

struct Side {
    manifest: Manifest,
    packages: Option<BTreeMap<String, String>>,
    owners: HashMap<TreePath, String>,
}

impl Repository {
    /// Compares two releases, published or only built.
    pub fn diff(&self, from: &ReleaseName, to: &ReleaseName) -> Result<Diff> {
        let (old, new) = (self.side(from)?, self.side(to)?);
        let had: HashSet<ContentDigest> =
            old.manifest.contents().map(|(digest, _)| digest).collect();
        let mut size = SizeChange {
            from: old.manifest.totals().bytes,
            to: new.manifest.totals().bytes,
            ..SizeChange::default()
        };
        let mut fresh: HashMap<ContentDigest, u64> = HashMap::new();
        for (digest, bytes) in new.manifest.contents().filter(|(digest, _)| !had.contains(digest)) {
            size.new_content += bytes;
            size.new_contents += 1;
            fresh.insert(digest, bytes);
        }
        let mut packages = match (&old.packages, &new.packages) {
            (Some(old), Some(new)) => Some(versions(old, new)),
            _ => None,
        };
        let changes = changes(&old.manifest, &new.manifest);
        let changed_paths = changes.len() as u64;
        let mut paths = Vec::new();
        for change in changes {
            let (entry, side) = match change {
                Change::Removed(entry) => (entry, &old),
                Change::Added(entry) | Change::Modified { new: entry, .. } => (entry, &new),
            };
            // A content counts for the first path that needs it.
            let brings = match (&change, &entry.kind) {
                (Change::Removed(_), _) => 0,
                (_, Kind::Regular { digest, .. }) => fresh.remove(digest).unwrap_or(0),
                _ => 0,
            };
            let owner = packages.as_mut().and_then(|packages| {
                let name = side.owners.get(&entry.path)?;
                let versions = (old.packages.as_ref()?.get(name), new.packages.as_ref()?.get(name));
                Some(packages.entry(name.clone()).or_insert_with(|| PackageChange {
                    name: name.clone(),
                    from: versions.0.cloned(),
                    to: versions.1.cloned(),
                    new_content: 0,
                    paths: 0,
                }))
            });
            match owner {
                Some(package) => {
                    package.paths += 1;
                    package.new_content += brings;
                }
                None => paths.push(path_change(&change, &old.manifest, &new.manifest)),
            }
        }
        let packages = packages.map(|packages| {
            let mut list: Vec<_> = packages
                .into_values()
                .filter(|package| package.from != package.to || package.new_content > 0)
                .collect();
            list.sort_by(|a, b| {
                b.new_content.cmp(&a.new_content).then_with(|| a.name.cmp(&b.name))
            });
            list
        });
        Ok(Diff { from: from.clone(), to: to.clone(), packages, paths, changed_paths, size })
    }

    fn side(&self, name: &ReleaseName) -> Result<Side> {
        let record = self.record(name)?;
        let manifest = repo::load_manifest(&self.dir, &record)?;
        let mut reader = ContentReader::open(&self.dir, &record.packs)?;
        let mut side = Side { manifest, packages: None, owners: HashMap::new() };
        let Some(status) = read(&mut reader, &side.manifest, "var/lib/dpkg/status")? else {
            return Ok(side);
        };
        side.packages = Some(parse_status(&String::from_utf8_lossy(&status)));
        let prefix = b"var/lib/dpkg/info/";
        let lists: Vec<_> = side
            .manifest
            .entries()
            .iter()
            .filter_map(|entry| {
                let path = entry.path.as_bytes();
                let name = path.strip_prefix(prefix)?.strip_suffix(b".list")?;
                match entry.kind {
                    Kind::Regular { digest, size } if size > 0 => {
                        Some((String::from_utf8_lossy(name).into_owned(), digest))
                    }
                    _ => None,
                }
            })
            .collect();
        for (package, digest) in lists {
            let package = match &side.packages {
                Some(known) if !known.contains_key(&package) => {
                    package.split(':').next().unwrap_or_default().to_owned()
                }
                _ => package,
            };
            for line in reader.read(&digest, MAX_DATABASE)?.split(|&b| b == b'\n') {
                if let Some(path) = resolve(&side.manifest, line)
                    && side.manifest.get(&path).is_some_and(|entry| entry.kind != Kind::Directory)
                {
                    side.owners.insert(path, package.clone());
                }
            }
        }
        Ok(side)
    }
}

/// A path of dpkg's list as it stands in the tree: `/bin/ls` is `usr/bin/ls` where `/bin`
/// is a symbolic link (merged /usr).
fn resolve(manifest: &Manifest, line: &[u8]) -> Option<TreePath> {
    let relative = line.strip_prefix(b"/")?;
    let split = relative.iter().position(|&b| b == b'/').unwrap_or(relative.len());
    let (first, rest) = relative.split_at(split);
    let first = TreePath::new(first).ok()?;
    if let Some(Entry { kind: Kind::Symlink { target }, .. }) = manifest.get(&first)
        && !rest.is_empty()
    {
        let target = target.strip_prefix(b"/").unwrap_or(target);
        return TreePath::new(&[target, rest].concat()).ok();
    }
    TreePath::new(relative).ok()
}

fn read(reader: &mut ContentReader, manifest: &Manifest, path: &str) -> Result<Option<Vec<u8>>> {
    let entry = TreePath::new(path.as_bytes()).ok().and_then(|path| manifest.get(&path));
    match entry.map(|entry| &manifest.inode(entry).kind) {
        Some(Kind::Regular { digest, size }) if *size > 0 => {
            Ok(Some(reader.read(digest, MAX_DATABASE)?))
        }
        _ => Ok(None),
    }
}

/// Installed packages and their versions, from dpkg's status file (deb822 paragraphs). A
/// name that is installed for several architectures has the architecture behind it.
fn parse_status(text: &str) -> BTreeMap<String, String> {
    let mut all: Vec<(String, String, String)> = Vec::new();
    for paragraph in text.split("\n\n") {
        let field = |name: &str| {
            paragraph
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .map(str::to_owned)
        };
        if let (Some(package), Some(version), Some(status)) =
            (field("Package"), field("Version"), field("Status"))
            && status.ends_with(" installed")
        {
            all.push((package, field("Architecture").unwrap_or_default(), version));
        }
    }
    let several: HashSet<String> = {
        let mut seen = HashSet::new();
        all.iter()
            .filter(|(package, ..)| !seen.insert(package.clone()))
            .map(|(p, ..)| p.clone())
            .collect()
    };
    all.into_iter()
        .map(|(package, architecture, version)| {
            let name = if several.contains(&package) {
                format!("{package}:{architecture}")
            } else {
                package
            };
            (name, version)
        })
        .collect()
}

fn versions(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
) -> BTreeMap<String, PackageChange> {
    let names: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
        .map(|name| {
            let (from, to) = (old.get(name).cloned(), new.get(name).cloned());
            (name.clone(), PackageChange { name: name.clone(), from, to, new_content: 0, paths: 0 })
        })
        .collect()
}

fn path_change(change: &Change<'_>, old: &Manifest, new: &Manifest) -> PathChange {
    let bytes = |manifest: &Manifest, entry: &Entry| match manifest.inode(entry).kind {
        Kind::Regular { size, .. } => size,
        _ => 0,
    };
    let (entry, kind, from, to) = match change {
        Change::Added(entry) => (entry, PathChangeKind::Added, 0, bytes(new, entry)),
        Change::Removed(entry) => (entry, PathChangeKind::Removed, bytes(old, entry), 0),
        Change::Modified { old: before, new: after } => {
            let same = old.inode(before).kind == new.inode(after).kind;
            let kind = if same { PathChangeKind::Metadata } else { PathChangeKind::Content };
            (after, kind, bytes(old, before), bytes(new, after))
        }
    };
    PathChange { path: entry.path.to_string(), kind, from, to }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read_by_paragraph() {
        let text = "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.0-1\nDescription: x\n Version: no\n\n\
            Package: b\nStatus: deinstall ok config-files\nVersion: 2\n\n\
            Package: c\nStatus: install ok installed\nArchitecture: amd64\nVersion: 3\n\n\
            Package: c\nStatus: install ok installed\nArchitecture: i386\nVersion: 3\n";
        let packages = parse_status(text);
        let names: Vec<_> = packages.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "c:amd64", "c:i386"]);
        assert_eq!(packages["a"], "1.0-1");
    }
}
