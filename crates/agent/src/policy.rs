//! What a release, or a layer, may hold on this device, whoever signed it. Pure.

use varve_format::TreePath;
use varve_format::manifest::Manifest;
use varve_format::tree::{Entry, Kind};

use crate::config::{Allowed, Config};

/// So many paths are named in a refusal.
const NAMED: usize = 5;

/// Why a release is not taken, though its signatures are good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It holds device nodes, elsewhere than in /dev.
    #[error("device nodes are forbidden on this device, and it holds {count}: {}", list(paths))]
    Devices {
        /// How many.
        count: usize,
        /// The first of them.
        paths: Vec<TreePath>,
    },
    /// It holds programs that run with more rights than their caller.
    #[error(
        "programs with rights of their own ({}) are forbidden on this device, and it \
         holds {count}: {}",
        how.join(", "),
        list(paths)
    )]
    Setuid {
        /// By which means: `setuid`, `setgid`, `capabilities`.
        how: Vec<&'static str>,
        /// How many.
        count: usize,
        /// The first of them.
        paths: Vec<TreePath>,
    },
    /// It holds what overlayfs takes for the mark that a file was deleted.
    #[error(
        "the release holds a character device 0:0, which hides files of other layers: {}",
        list(paths)
    )]
    Whiteout {
        /// The first of them.
        paths: Vec<TreePath>,
    },
    /// It sets attributes that have no place in a release.
    #[error("it sets the attribute {name}, which this device does not take: {}", list(paths))]
    Xattr {
        /// The attribute.
        name: String,
        /// The first paths that have it.
        paths: Vec<TreePath>,
    },
    /// Nothing could be started from it.
    #[error(
        "the release has no /sbin/init, /usr/sbin/init or /lib/systemd/systemd: it would not boot"
    )]
    NoInit,
}

fn list(paths: &[TreePath]) -> String {
    paths.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Checks a manifest against the configuration.
pub fn check(manifest: &Manifest, config: &Config) -> Result<(), PolicyError> {
    whiteouts(manifest)?;
    devices(manifest, config)?;
    setuid(manifest, config)?;
    xattrs(manifest, config)
}

/// Checks the manifest of a user's layer that somebody else made. Its whiteouts are meant.
pub fn check_layer(manifest: &Manifest, config: &Config) -> Result<(), PolicyError> {
    devices(manifest, config)?;
    setuid(manifest, config)?;
    xattrs(manifest, config)
}

/// No configuration allows these: a layer that holds one does not show it, but hides what
/// lies below.
fn whiteouts(manifest: &Manifest) -> Result<(), PolicyError> {
    let paths = first(
        manifest
            .entries()
            .iter()
            .filter(|entry| matches!(entry.kind, Kind::CharDevice(device) if device.0 == 0)),
    );
    if paths.is_empty() { Ok(()) } else { Err(PolicyError::Whiteout { paths }) }
}

fn devices(manifest: &Manifest, config: &Config) -> Result<(), PolicyError> {
    let is_device = |entry: &Entry| match manifest.inode(entry).kind {
        // A whiteout: in a release there is none.
        Kind::CharDevice(device) => device.0 != 0,
        Kind::BlockDevice(_) => true,
        _ => false,
    };
    let found = || {
        manifest
            .entries()
            .iter()
            .filter(|entry| is_device(entry))
            // The kernel's own /dev covers what a release has there: debootstrap and its
            // kin leave some, and nobody can reach them.
            .filter(|entry| !entry.path.as_bytes().starts_with(b"dev/"))
            .filter(|entry| !config.policy.devices.at(&entry.path))
    };
    match found().count() {
        0 => Ok(()),
        count => Err(PolicyError::Devices { count, paths: first(found()) }),
    }
}

/// A further name of such a program is as good as the first: each must be allowed.
fn setuid(manifest: &Manifest, config: &Config) -> Result<(), PolicyError> {
    if config.policy.setuid == Allowed::All {
        return Ok(());
    }
    let mut how = Vec::new();
    let mut found = Vec::new();
    for entry in manifest.entries() {
        let by = rights(manifest.inode(entry));
        if by.is_empty() || config.policy.setuid.at(&entry.path) {
            continue;
        }
        found.push(entry);
        how.extend(by);
    }
    how.sort_unstable_by(|a, b| b.cmp(a));
    how.dedup();
    match found.len() {
        0 => Ok(()),
        count => Err(PolicyError::Setuid { how, count, paths: first(found.into_iter()) }),
    }
}

/// By which means whoever runs this gets other rights than he had.
fn rights(inode: &Entry) -> Vec<&'static str> {
    let meta = &inode.meta;
    if !matches!(inode.kind, Kind::Regular { .. }) {
        return Vec::new();
    }
    let capability = meta.xattrs.iter().any(|(name, _)| **name == *b"security.capability");
    let by = [
        (meta.mode & 0o4000 != 0, "setuid"),
        // Without the group's execute bit it means a lock, not a right.
        (meta.mode & 0o2010 == 0o2010, "setgid"),
        (capability, "capabilities"),
    ];
    by.into_iter().filter(|(is, _)| *is).map(|(_, word)| word).collect()
}

fn xattrs(manifest: &Manifest, config: &Config) -> Result<(), PolicyError> {
    let forbidden = |name: &[u8]| !config.policy.xattrs.allows(name);
    let names = manifest.entries().iter().flat_map(|entry| &entry.meta.xattrs);
    let Some((name, _)) = names.into_iter().find(|(name, _)| forbidden(name)) else {
        return Ok(());
    };
    let same = manifest
        .entries()
        .iter()
        .filter(|entry| entry.meta.xattrs.iter().any(|(other, _)| other == name));
    let paths = first(same);
    Err(PolicyError::Xattr { name: varve_format::path::show(name), paths })
}

fn first<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<TreePath> {
    entries.take(NAMED).map(|entry| entry.path.clone()).collect()
}

/// Whether something stands where an init is looked for. Links are not followed: that
/// one is there is what can be said of a tree that is not mounted.
pub fn check_bootable(manifest: &Manifest) -> Result<(), PolicyError> {
    const INITS: [&[u8]; 6] = [
        b"sbin/init",
        b"usr/sbin/init",
        b"etc/init",
        b"bin/init",
        b"usr/bin/init",
        b"usr/lib/systemd/systemd",
    ];
    let there = |path: &&[u8]| TreePath::new(path).is_ok_and(|path| manifest.get(&path).is_some());
    if INITS.iter().any(there) { Ok(()) } else { Err(PolicyError::NoInit) }
}

#[cfg(test)]
mod tests {
    use varve_format::tree::{Device, Metadata, Xattrs};

    use super::*;

    fn manifest(entries: Vec<(&str, Kind, Xattrs)>) -> Manifest {
        let entry = |(path, kind, xattrs): (&str, Kind, Xattrs)| Entry {
            path: TreePath::new(path.as_bytes()).unwrap(),
            kind,
            meta: Metadata { mode: 0o755, xattrs, ..Metadata::default() },
        };
        let root = entry(("", Kind::Directory, Vec::new()));
        let entries = std::iter::once(root).chain(entries.into_iter().map(entry)).collect();
        Manifest::from_entries(entries).unwrap()
    }

    fn config(policy: &str) -> Config {
        Config::parse(&format!("[policy]\n{policy}\n"), "varve.toml").unwrap()
    }

    fn xattr(name: &str) -> Xattrs {
        vec![(name.as_bytes().into(), b"v"[..].into())]
    }

    #[test]
    fn devices_are_refused_unless_allowed() {
        let with = manifest(vec![
            ("null", Kind::CharDevice(Device(259)), Vec::new()),
            ("sda", Kind::BlockDevice(Device(2048)), Vec::new()),
            ("pipe", Kind::Fifo, Vec::new()),
            ("dev", Kind::Directory, Vec::new()),
            ("dev/zero", Kind::CharDevice(Device(261)), Vec::new()),
        ]);
        let error = check(&with, &Config::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "device nodes are forbidden on this device, and it holds 2: /null, /sda"
        );
        check(&with, &config("devices = \"allow\"")).unwrap();
        check(&with, &config("devices = [\"/null\", \"/sda\"]")).unwrap();
        let error = check(&with, &config("devices = [\"/null\"]")).unwrap_err();
        assert!(error.to_string().ends_with("holds 1: /sda"), "{error}");
    }

    #[test]
    fn what_overlayfs_takes_for_a_whiteout_is_refused_everywhere() {
        let with = manifest(vec![
            ("dev", Kind::Directory, Vec::new()),
            ("dev/null", Kind::CharDevice(Device(0)), Vec::new()),
        ]);
        let error = check(&with, &config("devices = \"allow\"")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the release holds a character device 0:0, which hides files of other layers: /dev/null"
        );
    }

    /// A file with these permission bits.
    fn program(path: &str, mode: u32, xattrs: Xattrs) -> Entry {
        let kind = Kind::Regular { size: 0, digest: varve_format::verity::content_digest(b"") };
        let meta = Metadata { mode, xattrs, ..Metadata::default() };
        Entry { path: TreePath::new(path.as_bytes()).unwrap(), kind, meta }
    }

    #[test]
    fn programs_with_rights_of_their_own_are_held_against_the_list() {
        let path = |path: &str| TreePath::new(path.as_bytes()).unwrap();
        let mut entries =
            manifest(vec![("shared", Kind::Directory, Vec::new())]).entries().to_vec();
        entries[1].meta.mode = 0o2775;
        entries.extend([
            program("lock", 0o2644, Vec::new()),
            program("ping", 0o755, xattr("security.capability")),
            program("su", 0o4755, Vec::new()),
            program("wall", 0o2755, Vec::new()),
            Entry::hard_link(path("x"), path("su")),
        ]);
        let with = Manifest::from_entries(entries).unwrap();
        check(&with, &Config::default()).unwrap();
        let said = |policy| check(&with, &config(policy)).unwrap_err().to_string();
        assert_eq!(
            said("setuid = \"deny\""),
            "programs with rights of their own (setuid, setgid, capabilities) are forbidden on \
             this device, and it holds 4: /ping, /su, /wall, /x"
        );
        // The other name of an allowed program is not allowed by that.
        let error = said("setuid = [\"/su\", \"/wall\", \"/ping\"]");
        assert!(error.contains("(setuid)") && error.ends_with("holds 1: /x"), "{error}");
        check(&with, &config("setuid = [\"/su\", \"/wall\", \"/ping\", \"/x\"]")).unwrap();
    }

    #[test]
    fn only_known_attributes_are_taken() {
        let by_default = Config::default();
        for good in ["user.anything", "security.capability", "system.posix_acl_access"] {
            check(&manifest(vec![("a", Kind::Fifo, xattr(good))]), &by_default).unwrap();
        }
        for bad in ["trusted.thing", "security.evm", "system.nfs4_acl", "btrfs.compression"] {
            let with = manifest(vec![("a", Kind::Fifo, xattr(bad)), ("b", Kind::Fifo, xattr(bad))]);
            let error = check(&with, &by_default).unwrap_err().to_string();
            assert!(error.contains(bad) && error.ends_with("/a, /b"), "{error}");
        }
        let trusting = config("xattrs = [\"trusted.*\"]");
        check(&manifest(vec![("a", Kind::Fifo, xattr("trusted.thing"))]), &trusting).unwrap();
        check(&manifest(vec![("a", Kind::Fifo, xattr("user.thing"))]), &trusting).unwrap_err();
    }

    #[test]
    fn a_tree_without_an_init_is_not_bootable() {
        assert_eq!(check_bootable(&manifest(vec![])), Err(PolicyError::NoInit));
        let link = Kind::Symlink { target: b"/lib/systemd/systemd"[..].into() };
        let with =
            manifest(vec![("sbin", Kind::Directory, Vec::new()), ("sbin/init", link, Vec::new())]);
        assert_eq!(check_bootable(&with), Ok(()));
    }
}
