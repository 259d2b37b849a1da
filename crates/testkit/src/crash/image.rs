//! A tree held in memory: read from a directory, laid out in another.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use rand::Rng;
use varve_sys::{Attributes, Dir, FileType, Stat};

/// What a disk writes whole, in bytes.
const SECTOR: usize = 512;
/// A byte of a block that was somebody else's; it is in no text.
const LEFT_THERE: u8 = 0xa5;

/// What an inode is, with its attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    /// `st_mode`, type included.
    pub mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    special: u64,
    xattrs: varve_sys::Xattrs,
    /// A file's bytes, or a link's target.
    pub bytes: Arc<Vec<u8>>,
}

/// A number for each inode of an image; the root directory is 0.
pub type Node = usize;

/// A tree: inodes, and for each directory its names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Image {
    pub(super) inodes: BTreeMap<Node, Inode>,
    pub(super) names: BTreeMap<Node, BTreeMap<OsString, Node>>,
}

impl Inode {
    /// Reads what stands at a path; none when nothing does.
    pub fn read(path: &Path) -> Option<Self> {
        let parent = Dir::open(path.parent()?).ok()?;
        Self::read_at(&parent, Path::new(path.file_name()?))
    }

    fn read_at(dir: &Dir, name: &Path) -> Option<Self> {
        let stat = dir.stat_opt(name).ok()??;
        let bytes = match stat.file_type() {
            FileType::RegularFile => dir.read(name, 64 << 20).ok()?,
            FileType::Symlink => dir.read_link(name).ok()?,
            _ => Vec::new(),
        };
        Some(Self::new(&stat, dir.xattrs(name).ok()?, bytes))
    }

    fn new(stat: &Stat, xattrs: varve_sys::Xattrs, bytes: Vec<u8>) -> Self {
        Self {
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            special: stat.special,
            xattrs,
            bytes: Arc::new(bytes),
        }
    }

    pub(super) fn is_dir(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::Directory
    }

    /// The inode as a disk shows it whose name survived and whose bytes did not.
    pub(super) fn emptied(&self) -> Self {
        let is_file = FileType::from_raw_mode(self.mode) == FileType::RegularFile;
        if !is_file {
            return self.clone();
        }
        Self { bytes: Arc::default(), xattrs: Vec::new(), mtime: (0, 0), ..self.clone() }
    }

    /// The inode as a disk shows it that had got round to a part of its blocks: in the others
    /// the bytes that `durable` does not have are what another file had left there.
    pub(super) fn stale(&self, durable: Option<&Self>, random: &mut impl Rng) -> Self {
        if FileType::from_raw_mode(self.mode) != FileType::RegularFile {
            return self.clone();
        }
        let old = durable.map(|durable| Arc::clone(&durable.bytes)).unwrap_or_default();
        let mut bytes = self.bytes.to_vec();
        for (number, piece) in bytes.chunks_mut(SECTOR).enumerate() {
            if random.random() {
                continue;
            }
            let at = number * SECTOR;
            for (offset, byte) in piece.iter_mut().enumerate() {
                if old.get(at + offset) != Some(byte) {
                    *byte = LEFT_THERE;
                }
            }
        }
        Self { bytes: Arc::new(bytes), ..self.clone() }
    }
}

impl Image {
    /// Reads a directory whole.
    pub fn read(root: &Path) -> Self {
        let mut image = Self::default();
        let dir = Dir::open(root).expect("the recorded directory opens");
        let inode = Inode::read_at(&dir, Path::new(".")).expect("a directory");
        image.inodes.insert(0, inode);
        image.read_below(&dir, 0, &mut BTreeMap::new());
        image
    }

    fn read_below(&mut self, dir: &Dir, node: Node, known: &mut BTreeMap<(u64, u64), Node>) {
        let mut names = BTreeMap::new();
        for entry in dir.names().expect("a readable directory") {
            let name = Path::new(&entry.name);
            let stat = dir.stat(name).expect("a listed name");
            let key = (stat.device, stat.inode);
            if let Some(&first) = known.get(&key) {
                names.insert(entry.name, first);
                continue;
            }
            let child = self.inodes.len();
            known.insert(key, child);
            self.inodes.insert(child, Inode::read_at(dir, name).expect("readable"));
            if stat.is_dir() {
                self.read_below(&dir.open_dir(name).expect("a directory"), child, known);
            }
            names.insert(entry.name, child);
        }
        self.names.insert(node, names);
    }

    /// Lays the tree out in an empty directory.
    pub fn materialise(&self, root: &Path) {
        let dir = Dir::open(root).expect("an empty directory");
        self.lay_out(&dir, 0, Path::new(""), &dir, &mut BTreeMap::new());
    }

    fn lay_out(
        &self,
        dir: &Dir,
        node: Node,
        below: &Path,
        root: &Dir,
        done: &mut BTreeMap<Node, std::path::PathBuf>,
    ) {
        for (name, &child) in self.names.get(&node).into_iter().flatten() {
            let path = below.join(name);
            let inode = &self.inodes[&child];
            if let Some(first) = done.get(&child) {
                let parent = first.parent().filter(|p| *p != Path::new("")).unwrap_or(".".as_ref());
                let from = root.open_dir(parent).expect("laid out before");
                from.hard_link(first.file_name().expect("a name"), dir, name).expect("a link");
                continue;
            }
            match FileType::from_raw_mode(inode.mode) {
                FileType::Directory => {
                    dir.mkdir(name, 0o700).expect("a directory");
                    let inner = dir.open_dir(name).expect("just made");
                    self.lay_out(&inner, child, &path, root, done);
                }
                FileType::RegularFile => {
                    let mut file = dir.create_file(name, 0o600).expect("a file");
                    file.write_all(&inode.bytes).expect("its bytes");
                }
                FileType::Symlink => dir.symlink(&inode.bytes, name).expect("a link"),
                _ => dir.mknod(name, inode.mode, inode.special).expect("a special file"),
            }
            dir.set_attributes(
                name,
                &Attributes {
                    mode: inode.mode & 0o7777,
                    uid: inode.uid,
                    gid: inode.gid,
                    mtime: inode.mtime,
                    xattrs: &inode.xattrs,
                },
            )
            .expect("its attributes");
            if !inode.is_dir() {
                done.insert(child, path);
            }
        }
    }
}
