//! Random trees, and trees on a disk as manifests: the generators and the oracle's eye
//! of the property tests.
//!
//! ```text
//! trees()  -> Tree { manifest, contents }      a release, small but with everything in it
//! change() -> the next release: some of it gone, replaced, moved, new
//! scan(dir) -> Manifest                        what a directory, or a mount, really shows
//! ```
//!
//! Names come from a small alphabet, so that two trees meet at most of their paths, and
//! hold bytes that are not UTF-8. Contents and times come from small pools, so that
//! inodes are often the same.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use proptest::prelude::*;
use varve_format::manifest::Manifest;
use varve_format::tree::{Device, Entry, Kind, Metadata, Time, Xattrs};
use varve_format::verity::content_digest;
use varve_format::{ContentDigest, TreePath};
use varve_sys::{Dir, FileType};

/// A release: a manifest and all its contents.
#[derive(Clone, Debug)]
pub struct Tree {
    /// What it lists.
    pub manifest: Manifest,
    /// Bytes by digest.
    pub contents: HashMap<ContentDigest, Vec<u8>>,
}

/// A node before it has a place.
#[derive(Clone, Debug)]
pub enum Node {
    /// A directory.
    Directory(Metadata),
    /// A file with these bytes.
    File(Vec<u8>, Metadata),
    /// A symbolic link.
    Symlink(Vec<u8>, Metadata),
    /// A fifo, socket or device.
    Special(Kind, Metadata),
    /// A further name for a file: the n-th of those that are there.
    Link(usize),
}

/// Where a node goes: indices into the alphabet of names, outermost first.
type Place = Vec<u8>;

/// Names that a test may use; short, so that trees meet.
pub const NAMES: [&[u8]; 6] = [b"a", b"b", b"c\nd", b"\xff-", b"a.b", b"-"];

impl Tree {
    /// Puts nodes into a tree, in order: a later one replaces what is in its way, and
    /// parents come into being.
    pub fn build(nodes: &[(Place, Node)]) -> Self {
        let mut placed: BTreeMap<Place, Node> = BTreeMap::new();
        for (place, node) in nodes {
            place_node(&mut placed, place, node.clone());
        }
        Self::from_placed(&placed)
    }

    fn from_placed(placed: &BTreeMap<Place, Node>) -> Self {
        let mut contents = HashMap::from([(content_digest(b""), Vec::new())]);
        let mut entries = vec![Entry {
            path: TreePath::root(),
            kind: Kind::Directory,
            meta: Metadata { mode: 0o755, ..Metadata::default() },
        }];
        let is_file = |node: &Node| matches!(node, Node::File(..) | Node::Symlink(..));
        let files: Vec<&Place> =
            placed.iter().filter(|(_, node)| is_file(node)).map(|(place, _)| place).collect();
        for (place, node) in placed {
            let path = path_of(place);
            let (kind, meta) = match node {
                Node::Directory(meta) => (Kind::Directory, meta.clone()),
                Node::File(bytes, meta) => {
                    let digest = content_digest(bytes);
                    contents.insert(digest, bytes.clone());
                    (Kind::Regular { size: bytes.len() as u64, digest }, meta.clone())
                }
                Node::Symlink(target, meta) => {
                    // Linux knows one mode of links, and no user attributes of them.
                    let meta = Metadata { mode: 0o777, xattrs: Vec::new(), ..meta.clone() };
                    (Kind::Symlink { target: target.clone().into() }, meta)
                }
                Node::Special(kind, meta) => {
                    (kind.clone(), Metadata { xattrs: Vec::new(), ..meta.clone() })
                }
                Node::Link(which) if files.is_empty() => {
                    let meta = Metadata { mode: *which as u32 & 0o777, ..Metadata::default() };
                    (Kind::Regular { size: 0, digest: content_digest(b"") }, meta)
                }
                Node::Link(which) => {
                    let target = path_of(files[which % files.len()]);
                    entries.push(Entry::hard_link(path, target));
                    continue;
                }
            };
            entries.push(Entry { path, kind, meta });
        }
        let manifest = Manifest::from_entries(entries).expect("the generator makes trees");
        Self { manifest, contents }
    }

    /// Writes all contents into a directory, each named by its digest, as a fetch does
    /// (an empty file needs none).
    pub fn put_contents(&self, incoming: &Dir) {
        for (digest, bytes) in &self.contents {
            let name = digest.to_hex();
            if !bytes.is_empty() && incoming.stat_opt(&name).expect("stat").is_none() {
                let mut file = incoming.create_file(&name, 0o644).expect("create");
                file.write_all(bytes).expect("write");
            }
        }
    }
}

fn path_of(place: &Place) -> TreePath {
    let names: Vec<&[u8]> = place.iter().map(|&n| NAMES[usize::from(n) % NAMES.len()]).collect();
    TreePath::new(&names.join(&b'/')).expect("names of the alphabet")
}

fn place_node(placed: &mut BTreeMap<Place, Node>, place: &Place, node: Node) {
    for length in 1..place.len() {
        let parent = place[..length].to_vec();
        if !matches!(placed.get(&parent), Some(Node::Directory(_))) {
            placed.insert(parent, Node::Directory(Metadata { mode: 0o755, ..Metadata::default() }));
        }
    }
    if !matches!(node, Node::Directory(_)) {
        remove(placed, place);
    }
    placed.insert(place.clone(), node);
}

fn remove(placed: &mut BTreeMap<Place, Node>, place: &Place) {
    placed.retain(|other, _| !other.starts_with(place));
}

/// Metadata with now and then every feature.
pub fn metadata() -> BoxedStrategy<Metadata> {
    let mode = prop_oneof![Just(0o644u32), Just(0o755), Just(0o4755), Just(0o2775), Just(0)];
    let owner = prop_oneof![4 => Just(0u32), 1 => Just(1000)];
    let time = prop_oneof![
        4 => Just(Time { seconds: 1_700_000_000, nanoseconds: 0 }),
        1 => Just(Time { seconds: 1_700_000_001, nanoseconds: 123_456_789 }),
        1 => Just(Time { seconds: 0, nanoseconds: 1 }),
    ];
    (mode, owner.clone(), owner, time, xattrs())
        .prop_map(|(mode, uid, gid, mtime, xattrs)| Metadata { mode, uid, gid, mtime, xattrs })
        // Unboxed, proptest's types take more stack than a test's thread has.
        .boxed()
}

const ACL: &[u8] = b"system.posix_acl_access";

/// `user::rwx, user:1000:r-x, group::---, mask::---, other::---`, in the kernel's form
/// (posix_acl_xattr.h): version 2, then tag, permissions, id of each. The mask is the
/// mode's group bits, so it is none where such a file has none.
fn acl() -> Box<[u8]> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 5, 1000),
        (4, 0, u32::MAX),
        (0x10, 0, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes.into()
}

fn xattrs() -> impl Strategy<Value = Xattrs> {
    // cap_net_raw=ep, as `setcap` writes it (VFS_CAP_REVISION_2, effective).
    let capability: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let one = |name: &[u8], value: &[u8]| (Box::from(name), Box::from(value));
    prop_oneof![
        6 => Just(Vec::new()),
        1 => Just(vec![one(b"user.k", b"v\0\xff")]),
        1 => Just(vec![one(b"security.capability", capability), one(b"user.empty", b"")]),
        1 => Just(vec![one(b"trusted.other", b"1")]),
    ]
}

fn with_acl() -> impl Strategy<Value = Metadata> {
    metadata().prop_map(|meta| {
        let mut meta = Metadata { mode: 0o700, ..meta };
        meta.xattrs.push((ACL.into(), acl()));
        meta.xattrs.sort();
        meta
    })
}

/// Any node.
pub fn node() -> BoxedStrategy<Node> {
    let bytes = prop_oneof![
        Just(Vec::new()),
        Just(b"one".to_vec()),
        Just(b"two".to_vec()),
        Just(vec![7; 5000]),
        // A hole that is worth one.
        Just([vec![0; 200_000], b"end".to_vec()].concat()),
        any::<u8>().prop_map(|byte| vec![byte; 9]),
    ];
    let special = prop_oneof![
        Just(Kind::Fifo),
        Just(Kind::Socket),
        Just(Kind::CharDevice(Device(0x103))),
        Just(Kind::BlockDevice(Device(0x800))),
    ];
    let target = prop_oneof![Just(b"a".to_vec()), Just(b"/nowhere \n\xfe".to_vec())];
    prop_oneof![
        4 => metadata().prop_map(Node::Directory),
        8 => (bytes, metadata()).prop_map(|(bytes, meta)| Node::File(bytes, meta)),
        1 => with_acl().prop_map(|meta| Node::File(b"acl".to_vec(), meta)),
        1 => with_acl().prop_map(Node::Directory),
        2 => (target, metadata()).prop_map(|(target, meta)| Node::Symlink(target, meta)),
        1 => (special, metadata()).prop_map(|(kind, meta)| Node::Special(kind, meta)),
        3 => any::<usize>().prop_map(Node::Link),
    ]
    .boxed()
}

/// A place of up to four components.
pub fn place() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0u8..NAMES.len() as u8, 1..=4)
}

/// Several releases, each a change of the one before.
pub fn releases(count: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<Tree>> {
    let first = prop::collection::vec((place(), node()), 0..40);
    let change = prop_oneof![
        3 => (place(), node()).prop_map(|(place, node)| (place, Some(node))),
        2 => place().prop_map(|place| (place, None)),
    ];
    let changes = prop::collection::vec(prop::collection::vec(change, 0..15), count);
    (first, changes).prop_map(|(first, changes)| {
        let mut placed = BTreeMap::new();
        for (place, node) in &first {
            place_node(&mut placed, place, node.clone());
        }
        let mut releases = Vec::new();
        for change in changes {
            releases.push(Tree::from_placed(&placed));
            for (place, node) in change {
                match node {
                    Some(node) => place_node(&mut placed, &place, node),
                    None => remove(&mut placed, &place),
                }
            }
        }
        releases
    })
}

/// Makes a tree in an empty directory, plainly: what the code under test is compared with.
pub fn materialise(tree: &Tree, target: &Dir) {
    let parent = |path: &TreePath| {
        let parent = path.parent().expect("not the root");
        target.open_dir(parent.as_path()).expect("parents come first")
    };
    for entry in tree.manifest.entries().iter().filter(|entry| !entry.path.is_root()) {
        let (dir, name) = (parent(&entry.path), entry.path.name());
        match &entry.kind {
            Kind::Directory => dir.mkdir(name, 0o700).expect("mkdir"),
            Kind::HardLink { target: first } => {
                parent(first).hard_link(first.name(), &dir, name).expect("link");
                continue;
            }
            Kind::Regular { digest, .. } => {
                let mut file = dir.create_file(name, 0o600).expect("create");
                file.write_all(&tree.contents[digest]).expect("write");
            }
            Kind::Symlink { target } => dir.symlink(target, name).expect("symlink"),
            kind => {
                let device = match kind {
                    Kind::CharDevice(device) | Kind::BlockDevice(device) => device.0,
                    _ => 0,
                };
                dir.mknod(name, kind.type_bits() | 0o600, device).expect("mknod");
            }
        }
        set(&dir, Path::new(name), &entry.meta);
    }
    for entry in tree.manifest.entries().iter().rev() {
        if entry.kind == Kind::Directory {
            set(&target.open_dir(entry.path.as_path()).expect("open"), Path::new("."), &entry.meta);
        }
    }
}

fn set(dir: &Dir, name: &Path, meta: &Metadata) {
    let attributes = varve_sys::Attributes {
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        mtime: (meta.mtime.seconds, meta.mtime.nanoseconds),
        xattrs: &meta.xattrs,
    };
    dir.set_attributes(name, &attributes).expect("attributes");
}

/// What a directory or a mount shows, to the last attribute. A name that is listed but
/// cannot be found (overlayfs lists some whiteouts) is not there.
pub fn scan(dir: &Dir) -> Manifest {
    let mut scan = Scan { entries: Vec::new(), names: HashMap::new() };
    scan.entry(dir, Path::new("."), TreePath::root());
    Manifest::from_entries(scan.entries).expect("a directory is a tree")
}

struct Scan {
    entries: Vec<Entry>,
    names: HashMap<(u64, u64), TreePath>,
}

impl Scan {
    fn entry(&mut self, dir: &Dir, name: &Path, path: TreePath) {
        let Some(stat) = dir.stat_opt(name).expect("stat") else { return };
        if !stat.is_dir() && stat.links > 1 {
            if let Some(first) = self.names.get(&(stat.device, stat.inode)) {
                self.entries.push(Entry::hard_link(path, first.clone()));
                return;
            }
            self.names.insert((stat.device, stat.inode), path.clone());
        }
        let device = Device(stat.special);
        let kind = match stat.file_type() {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => {
                let bytes = dir.read(name, 1 << 30).expect("read");
                Kind::Regular { size: bytes.len() as u64, digest: content_digest(&bytes) }
            }
            FileType::Symlink => {
                Kind::Symlink { target: dir.read_link(name).expect("readlink").into() }
            }
            FileType::CharacterDevice => Kind::CharDevice(device),
            FileType::BlockDevice => Kind::BlockDevice(device),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::Unknown => unreachable!("stat knows"),
        };
        let meta = Metadata {
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            mtime: Time { seconds: stat.mtime.0, nanoseconds: stat.mtime.1 },
            xattrs: dir.xattrs(name).expect("xattrs"),
        };
        let is_dir = stat.is_dir();
        self.entries.push(Entry { path: path.clone(), kind, meta });
        if is_dir {
            let below = dir.open_dir(name).expect("open");
            for entry in below.names().expect("list") {
                let bytes = std::os::unix::ffi::OsStrExt::as_bytes(&*entry.name);
                let path = path.join(bytes).expect("a name");
                self.entry(&below, Path::new(&entry.name), path);
            }
        }
    }
}
