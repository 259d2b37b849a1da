//! What is on the disk: names and inodes as the kernel shows them, and how much of
//! them is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use varve_sys::trace::Event;

use super::image::{Image, Inode, Node};
use super::{Logged, Survival};

/// A change of names that is not durable yet. One of several directories stands or
/// falls as a whole.
#[derive(Clone, Debug)]
struct Pending {
    /// The directories whose sync, of any of them, makes it durable. The first one's
    /// changes reach the disk in order.
    directories: Vec<Node>,
    /// Names set (some inode) or taken away (none), in this order.
    changes: Vec<(Node, OsString, Option<Node>)>,
}

pub(super) struct Model<'a> {
    root: &'a Path,
    /// As the kernel shows it.
    names: BTreeMap<Node, BTreeMap<OsString, Node>>,
    inodes: BTreeMap<Node, Inode>,
    /// As it is on the disk for certain.
    durable: Image,
    pending: Vec<Pending>,
    /// Inodes whose bytes or attributes changed since they were last made durable.
    dirty: BTreeSet<Node>,
}

impl<'a> Model<'a> {
    pub(super) fn new(root: &'a Path, initial: &Image, log: &[Logged]) -> Self {
        let mut model = Self {
            root,
            names: initial.names.clone(),
            inodes: initial.inodes.clone(),
            durable: initial.clone(),
            pending: Vec::new(),
            dirty: BTreeSet::new(),
        };
        for logged in log {
            model.apply(logged);
        }
        model
    }

    fn resolve(&self, path: &Path) -> Option<Node> {
        let relative = path.strip_prefix(self.root).ok()?;
        relative.iter().try_fold(0, |node, name| self.names.get(&node)?.get(name).copied())
    }

    fn place(&self, path: &Path) -> (Node, OsString) {
        let parent = path.parent().expect("below the root");
        let node = self
            .resolve(parent)
            .unwrap_or_else(|| panic!("the directory of {} was never made", path.display()));
        (node, path.file_name().expect("a name").to_owned())
    }

    fn apply(&mut self, logged: &Logged) {
        match &logged.event {
            Event::Make(path) => {
                let node = self.inodes.len();
                let inode = logged.inode.clone().unwrap_or_else(|| self.gone(path));
                if inode.is_dir() {
                    self.names.insert(node, BTreeMap::new());
                }
                self.inodes.insert(node, inode);
                self.dirty.insert(node);
                let (directory, name) = self.place(path);
                self.rename_all(vec![directory], vec![(directory, name, Some(node))]);
            }
            Event::Change(path) => {
                if let (Some(node), Some(inode)) = (self.resolve(path), &logged.inode) {
                    self.inodes.insert(node, inode.clone());
                    self.dirty.insert(node);
                }
            }
            Event::Link { from, to } => {
                let node = self.known(from);
                let (directory, name) = self.place(to);
                self.rename_all(vec![directory], vec![(directory, name, Some(node))]);
            }
            Event::Rename { from, to } => {
                let node = self.known(from);
                let (old, old_name) = self.place(from);
                let (new, new_name) = self.place(to);
                self.rename_all(
                    vec![new, old],
                    vec![(old, old_name, None), (new, new_name, Some(node))],
                );
            }
            Event::Exchange { one, other } => {
                let (a, b) = (self.known(one), self.known(other));
                let (dir_a, name_a) = self.place(one);
                let (dir_b, name_b) = self.place(other);
                self.rename_all(
                    vec![dir_b, dir_a],
                    vec![(dir_a, name_a, Some(b)), (dir_b, name_b, Some(a))],
                );
            }
            Event::Remove(path) => {
                let (directory, name) = self.place(path);
                self.rename_all(vec![directory], vec![(directory, name, None)]);
            }
            Event::SyncFile(_) | Event::SyncDirectory(_) | Event::SyncFileSystem(_)
                if logged.dropped => {}
            Event::SyncFile(path) => {
                if let Some(node) = self.resolve(path) {
                    self.settle_inode(node);
                }
            }
            Event::SyncDirectory(path) => {
                if let Some(node) = self.resolve(path) {
                    self.settle_names(|pending| pending.directories.contains(&node));
                    self.settle_inode(node);
                }
            }
            Event::SyncFileSystem(_) => {
                if let Some(whole) = &logged.whole {
                    *self = Self::new(self.root, whole, &[]);
                    return;
                }
                self.settle_names(|_| true);
                for node in std::mem::take(&mut self.dirty) {
                    self.durable.inodes.insert(node, self.inodes[&node].clone());
                }
            }
        }
    }

    fn known(&self, path: &Path) -> Node {
        self.resolve(path).unwrap_or_else(|| panic!("{} was never made", path.display()))
    }

    /// An inode that was gone again before it could be looked at.
    fn gone(&self, path: &Path) -> Inode {
        panic!("{} went away while it was recorded: two writers in one recording", path.display())
    }

    fn rename_all(&mut self, directories: Vec<Node>, changes: Vec<(Node, OsString, Option<Node>)>) {
        apply_names(&mut self.names, &changes);
        self.pending.push(Pending { directories, changes });
    }

    fn settle_inode(&mut self, node: Node) {
        self.durable.inodes.insert(node, self.inodes[&node].clone());
        self.dirty.remove(&node);
    }

    fn settle_names(&mut self, settled: impl Fn(&Pending) -> bool) {
        let (done, left) = std::mem::take(&mut self.pending).into_iter().partition(settled);
        self.pending = left;
        let done: Vec<Pending> = done;
        for pending in done {
            apply_names(&mut self.durable.names, &pending.changes);
        }
    }

    pub(super) fn image(&self, survival: Survival) -> Image {
        let mut image = self.durable.clone();
        let mut random = StdRng::seed_from_u64(match survival {
            Survival::Some(seed) | Survival::Stale(seed) => {
                seed.wrapping_mul(0x9e37_79b9) ^ self.pending.len() as u64
            }
            _ => 0,
        });
        // For each directory: how many of its oldest pending changes survived.
        let mut kept: BTreeMap<Node, usize> = BTreeMap::new();
        for pending in &self.pending {
            *kept.entry(pending.directories[0]).or_default() += 1;
        }
        for count in kept.values_mut() {
            *count = match survival {
                Survival::SyncedOnly => 0,
                Survival::Everything | Survival::NamesOnly | Survival::Stale(_) => *count,
                Survival::Some(_) => random.random_range(0..=*count),
            };
        }
        for pending in &self.pending {
            let left = kept.get_mut(&pending.directories[0]).expect("counted");
            if *left > 0 {
                *left -= 1;
                apply_names(&mut image.names, &pending.changes);
            }
        }
        for &node in &self.dirty {
            let inode = &self.inodes[&node];
            let whole = match survival {
                Survival::SyncedOnly | Survival::NamesOnly => false,
                Survival::Stale(_) => {
                    let stale = inode.stale(image.inodes.get(&node), &mut random);
                    image.inodes.insert(node, stale);
                    continue;
                }
                Survival::Everything => true,
                Survival::Some(_) => random.random_bool(0.5),
            };
            if whole {
                image.inodes.insert(node, inode.clone());
            } else {
                image.inodes.entry(node).or_insert_with(|| inode.emptied());
            }
        }
        reachable(image)
    }
}

fn apply_names(
    names: &mut BTreeMap<Node, BTreeMap<OsString, Node>>,
    changes: &[(Node, OsString, Option<Node>)],
) {
    for (directory, name, node) in changes {
        let entries = names.entry(*directory).or_default();
        match node {
            Some(node) => drop(entries.insert(name.clone(), *node)),
            None => drop(entries.remove(name)),
        }
    }
}

/// Leaves out what has no name, and numbers the rest in the order of the tree, so that
/// equal trees are equal images.
fn reachable(image: Image) -> Image {
    let mut numbers = BTreeMap::from([(0, 0)]);
    let mut tidy = Image::default();
    let mut queue = vec![0];
    tidy.inodes.insert(0, image.inodes[&0].clone());
    while let Some(node) = queue.pop() {
        let inode = &image.inodes[&node];
        if !inode.is_dir() {
            continue;
        }
        let mut names = BTreeMap::new();
        for (name, child) in image.names.get(&node).into_iter().flatten() {
            let Some(inode) = image.inodes.get(child) else { continue };
            let next = numbers.len();
            let number = *numbers.entry(*child).or_insert_with(|| {
                queue.push(*child);
                tidy.inodes.insert(next, inode.clone());
                next
            });
            names.insert(name.clone(), number);
        }
        tidy.names.insert(numbers[&node], names);
    }
    tidy
}
