//! The mounts of one namespace, read as parts of the device's system.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use varve_format::deployment::{DeploymentRecord, Stack};
use varve_format::{DeploymentName, LayerName};
use varve_sys::Dir;
use varve_sys::mountinfo::{MountEntry, parse_mountinfo};

/// Which part of the device's system something comes from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Origin {
    /// A layer.
    Layer(LayerName),
    /// A hard-linked tree.
    Tree(LayerName),
    /// State: what was changed on the device and outlives a release, or a volatile root's
    /// memory.
    State,
    /// One of our mounts, from a file that is gone.
    Gone,
    /// Not of ours.
    Other,
}

/// One layer or tree that a mount shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Part {
    Layer(LayerName),
    Tree(LayerName),
}

impl Part {
    fn origin(&self) -> Origin {
        match self {
            Part::Layer(name) => Origin::Layer(name.clone()),
            Part::Tree(name) => Origin::Tree(name.clone()),
        }
    }
}

/// The parts of a deployment's stack, newest first.
pub(super) fn root_parts(record: &DeploymentRecord) -> Vec<Part> {
    let mut parts: Vec<Part> = record.own_on().cloned().map(Part::Layer).collect();
    match &record.stack {
        Stack::Overlay { layers } => parts.extend(layers.iter().cloned().map(Part::Layer)),
        Stack::HardLink { tree } => parts.push(Part::Tree(tree.clone())),
    }
    parts
}

/// How the mounts of this device are told from those of another one, whose deployments and
/// layers may have the same names.
pub(super) struct Own {
    /// The source of its overlays.
    source: Option<String>,
    /// The file system of `/varve`, and where on it that is.
    place: Option<((u32, u32), PathBuf)>,
}

impl Own {
    /// Of the open `/varve`; `proc` is `/proc`. What cannot be told is not compared.
    pub(super) fn of(varve: &Dir, proc: &Path) -> Self {
        let fd = proc.join("self/fd").join(varve.fd().as_raw_fd().to_string());
        let place = || {
            let path = std::fs::read_link(&fd).ok()?;
            let mounts = parse_mountinfo(&std::fs::read(proc.join("self/mountinfo")).ok()?).ok()?;
            let id = mount_id(&fd)?;
            let mount = mounts.into_iter().find(|mount| u64::from(mount.id) == id)?;
            let within = path.strip_prefix(&mount.mount_point).ok()?;
            Some((mount.device, mount.root.join(within)))
        };
        Self { source: varve_rootfs::mount::source_of(varve).ok(), place: place() }
    }

    /// Whether a mount that could be of ours is another device's.
    fn is_strange(&self, entry: &MountEntry) -> bool {
        if entry.filesystem == "overlay" {
            // Without the numbers it was made by an earlier version.
            let named = entry.source.to_str().filter(|source| source.starts_with("varve-"));
            return named.is_some_and(|named| self.source.as_deref().is_some_and(|s| s != named));
        }
        self.place.as_ref().is_some_and(|(device, varve)| {
            entry.device != *device || !entry.root.starts_with(varve)
        })
    }
}

/// One mount.
pub(super) struct Mount {
    entry: MountEntry,
    /// Read-only directories below, each with the part it lies in; newest first.
    lowers: Vec<(Part, PathBuf)>,
    /// Where changes go, relative to `/varve` when it lies there.
    upper: Option<PathBuf>,
    /// A bind of state.
    is_state: bool,
    state_of: Option<DeploymentName>,
    known: HashMap<PathBuf, Origin>,
}

/// The mounts of one namespace.
pub(super) struct Mounts(Vec<Mount>);

impl Mounts {
    /// None when the kernel's list has a form that is not known.
    pub(super) fn parse(text: &[u8], own: &Own) -> Option<Self> {
        let read = |entry| {
            let strange = own.is_strange(&entry);
            let mount = Mount::new(entry);
            if strange { mount.of_nobody() } else { mount }
        };
        Some(Self(parse_mountinfo(text).ok()?.into_iter().map(read).collect()))
    }

    /// The mount with this id; when the id is not known here (an older kernel, a file of
    /// an overlay's inside), the last one that a path lies in.
    pub(super) fn find(&mut self, id: Option<u64>, path: &Path) -> Option<&mut Mount> {
        let by_id = id.and_then(|id| self.0.iter().position(|m| u64::from(m.entry.id) == id));
        let at = by_id.or_else(|| {
            let inside = |mount: &Mount| path.starts_with(&mount.entry.mount_point);
            let depth = |mount: &Mount| mount.entry.mount_point.as_os_str().len();
            let found = self.0.iter().enumerate().filter(|(_, mount)| inside(mount));
            found.max_by_key(|(at, mount)| (depth(mount), *at)).map(|(at, _)| at)
        })?;
        self.0.get_mut(at)
    }
}

impl Mount {
    fn new(entry: MountEntry) -> Self {
        let (mut lowers, mut upper, mut is_state) = (Vec::new(), None, false);
        let mut state_of = None;
        if entry.filesystem == "overlay" {
            for option in split_options(&entry.super_options) {
                let Some((key, value)) = option.split_once('=') else { continue };
                match key {
                    "lowerdir" | "lowerdir+" => {
                        lowers.extend(split_lowers(value).iter().filter_map(|p| part_of(p)));
                    }
                    "upperdir" => upper = Some(in_varve(Path::new(value))),
                    _ => {}
                }
            }
        } else if let Some(inside) = below_varve(&entry.root) {
            is_state = inside.starts_with("state");
            lowers.extend(part_of(&inside));
        }
        let state = upper.as_deref().or(is_state.then_some(entry.root.as_path()));
        if let Some(named) = state.and_then(|path| path.strip_prefix("state/versioned").ok()) {
            let name = named.iter().next().and_then(OsStr::to_str);
            state_of = name.and_then(|name| name.parse().ok());
        }
        Self { entry, lowers, upper, is_state, state_of, known: HashMap::new() }
    }

    /// The same mount, with nothing of this device.
    fn of_nobody(self) -> Self {
        let lowers = Vec::new();
        Self { lowers, upper: None, is_state: false, state_of: None, ..self }
    }

    pub(super) fn id(&self) -> u64 {
        self.entry.id.into()
    }

    /// Whether it is not a root, and nothing is written by it.
    pub(super) fn shows_a_part(&self) -> bool {
        self.entry.mount_point != Path::new("/") && self.upper.is_none() && !self.is_state
    }

    pub(super) fn state_of(&self) -> Option<&DeploymentName> {
        self.state_of.as_ref()
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        self.lowers.iter().map(|(part, _)| part.clone()).collect()
    }

    /// The path below this mount's root; none when it does not lie there.
    pub(super) fn relative(&self, path: &Path) -> Option<PathBuf> {
        // A process in a changed root sees shorter paths than its list of mounts does.
        let below = path.strip_prefix(&self.entry.mount_point);
        let below = below.or_else(|_| path.strip_prefix("/")).ok()?;
        below.components().all(|c| matches!(c, Component::Normal(_))).then(|| below.to_owned())
    }

    /// Which part has the file at `path` below this mount.
    pub(super) fn origin(&mut self, varve: &Dir, path: &Path, deleted: bool) -> Origin {
        if self.is_state {
            return Origin::State;
        }
        if self.lowers.is_empty() {
            return Origin::Other;
        }
        // Layers never change: a name that is gone was one of the writable top.
        if deleted {
            return Origin::Gone;
        }
        if let Some(origin) = self.known.get(path) {
            return origin.clone();
        }
        let in_upper = self.upper.as_ref().is_some_and(|upper| has(varve, &upper.join(path)));
        let lower = self.lowers.iter().find(|(_, dir)| has(varve, &dir.join(path)));
        let origin = match lower {
            Some((part, _)) if !in_upper => part.origin(),
            // Copied up, made on the device, or in the memory of a volatile root.
            _ => Origin::State,
        };
        self.known.insert(path.to_owned(), origin.clone());
        origin
    }
}

/// Whether a layer's directory has something at the path that a mount would show.
fn has(varve: &Dir, path: &Path) -> bool {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
    // An absolute path is that of a tmpfs elsewhere: it cannot be looked into from here.
    if path.is_absolute() {
        return false;
    }
    let Ok(Some(dir)) = varve.open_dir_opt(parent) else { return false };
    matches!(dir.stat_opt(name), Ok(Some(stat)) if !stat.is_whiteout())
}

/// The mount that a link in `/proc` leads to.
pub(super) fn mount_id(link: &Path) -> Option<u64> {
    let stat = rustix::fs::statx(CWD, link, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
    (stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id)
}

/// Overlay options are separated by commas; one in a value has a backslash before it.
fn split_options(text: &str) -> Vec<String> {
    split_escaped(text, ',')
}

fn split_lowers(text: &str) -> Vec<PathBuf> {
    let lowers = split_escaped(text, ':').into_iter();
    lowers.filter(|path| !path.is_empty()).map(PathBuf::from).collect()
}

fn split_escaped(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        let part = parts.last_mut().expect("never empty");
        if escaped {
            // Only the separator itself loses its backslash here.
            if c != separator {
                part.push('\\');
            }
            part.push(c);
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == separator {
            parts.push(String::new());
        } else {
            part.push(c);
        }
    }
    parts
}

/// The layer or tree that a directory lies in, and the directory relative to `/varve`.
fn part_of(path: &Path) -> Option<(Part, PathBuf)> {
    let path = in_varve(path);
    let mut names = path.iter().map(|name| name.to_str());
    let (place, name) = (names.next()??, names.next()??);
    let part = match place {
        "layers" if names.next()?? == "tree" => Part::Layer(name.parse().ok()?),
        "trees" => Part::Tree(name.parse().ok()?),
        _ => return None,
    };
    Some((part, path))
}

/// A path as it is relative to `/varve`; one that is not in it stays as it is.
fn in_varve(path: &Path) -> PathBuf {
    below_varve(path).unwrap_or_else(|| path.to_owned())
}

fn below_varve(path: &Path) -> Option<PathBuf> {
    let bytes = path.as_os_str().as_bytes();
    let found = bytes.windows(7).rposition(|window| window == b"/varve/")?;
    Some(PathBuf::from(OsStr::from_bytes(&bytes[found + 7..])))
}

/// Whether a mount shows layers or trees of a device and nothing that is written.
pub(crate) fn is_of_layers(entry: MountEntry) -> bool {
    let mount = Mount::new(entry);
    !mount.lowers.is_empty() && mount.upper.is_none() && !mount.is_state
}

/// The mounts of every process's namespace, but for those that are another device's: what stands
/// on a layer or a tree must not be deleted, also when only a service with mounts of its own
/// still does. `varve` is the open `/varve`; `proc` is `/proc`.
///
/// # Errors
/// When `/proc` cannot be listed: then nothing may be deleted.
pub fn all_mounts(varve: &Dir, proc: &Path) -> std::io::Result<Vec<MountEntry>> {
    let own = Own::of(varve, proc);
    let mut mounts = Vec::new();
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(proc)?.flatten() {
        let dir = entry.path();
        let Ok(namespace) = std::fs::read_link(dir.join("ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let Ok(text) = std::fs::read(dir.join("mountinfo")) else { continue };
        let here = parse_mountinfo(&text).map_err(std::io::Error::other)?;
        mounts.extend(here.into_iter().filter(|mount| !own.is_strange(mount)));
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_as_parts_of_the_system() {
        let text = b"\
21 1 0:20 / / ro - overlay varve ro,lowerdir+=layers/u2/tree,lowerdir+=layers/base/tree\n\
22 21 0:21 / /etc rw - overlay varve rw,lowerdir=layers/u2/tree/etc:layers/base/tree/etc,upperdir=state/versioned/b/etc/upper,workdir=state/versioned/b/etc/work\n\
23 21 254:1 /varve/state/bind/home /home rw - ext4 /dev/vda rw\n\
24 21 254:1 /varve/trees/t1 /mnt ro - ext4 /dev/vda rw\n\
25 21 0:5 / /dev rw - devtmpfs udev rw\n\
26 21 0:30 / /x ro - overlay overlay ro,lowerdir=/a\\:b:/c\n";
        let unknown = Own { source: None, place: None };
        let mut mounts = Mounts::parse(text, &unknown).unwrap();
        let layer = |name: &str| Part::Layer(name.parse().unwrap());
        assert_eq!(mounts.0[0].parts(), [layer("u2"), layer("base")]);
        assert_eq!(mounts.0[1].lowers[0].1, Path::new("layers/u2/tree/etc"));
        assert_eq!(mounts.0[1].state_of().unwrap().as_str(), "b");
        assert_eq!(mounts.0[3].parts(), [Part::Tree("t1".parse().unwrap())]);
        assert!(mounts.0[2].is_state && mounts.0[2].parts().is_empty());
        assert!(mounts.0[4].parts().is_empty() && mounts.0[5].parts().is_empty());
        let mut point = |path: &str| mounts.find(None, Path::new(path)).unwrap().entry.id;
        assert_eq!([point("/etc/passwd"), point("/etcetera"), point("/usr")], [22, 21, 21]);
        assert_eq!(mounts.find(Some(24), Path::new("/etc")).unwrap().entry.id, 24);
    }

    #[test]
    fn mounts_of_another_device_are_nobodys() {
        let text = b"\
21 1 0:20 / / ro - overlay varve-7-9 ro,lowerdir+=layers/base/tree\n\
22 1 0:21 / /a ro - overlay varve-7-8 ro,lowerdir+=layers/base/tree\n\
23 1 0:22 / /b ro - overlay varve ro,lowerdir+=layers/base/tree\n\
24 1 254:1 /varve/trees/t1 /c ro - ext4 /dev/vda rw\n\
25 1 254:2 /varve/trees/t1 /d ro - ext4 /dev/vdb rw\n\
26 1 254:1 /other/varve/trees/t1 /e ro - ext4 /dev/vda rw\n";
        let place = Some(((254, 1), PathBuf::from("/varve")));
        let own = Own { source: Some("varve-7-9".to_owned()), place };
        let mounts = Mounts::parse(text, &own).unwrap();
        let ours = mounts.0.iter().map(|mount| !mount.parts().is_empty());
        assert!(ours.eq([true, false, true, true, false, false]));
    }

    #[test]
    fn separators_may_be_escaped() {
        assert_eq!(split_escaped("a\\:b:c\\\\d", ':'), ["a:b", "c\\\\d"]);
    }
}
