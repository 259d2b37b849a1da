//! What a release may hold on this device, whoever signed it. Pure.

use varve_format::TreePath;
use varve_format::manifest::Manifest;
use varve_format::tree::Kind;

use crate::config::Config;

/// Attributes that a release may set; all of `user.` too. Others would give meanings
/// that the publisher's tools did not record, or that this device's owner decides.
const ALLOWED_XATTRS: [&[u8]; 8] = [
    b"security.capability",
    b"security.selinux",
    b"security.SMACK64",
    b"security.SMACK64EXEC",
    b"security.apparmor",
    b"security.ima",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
];
/// So many paths are named in a refusal.
const NAMED: usize = 5;

/// Why a release is not taken, though its signatures are good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It holds device nodes, elsewhere than in /dev.
    #[error(
        "device nodes are forbidden on this device, and the release holds {count}: {}",
        list(paths)
    )]
    Devices {
        /// How many.
        count: usize,
        /// The first of them.
        paths: Vec<TreePath>,
    },
    /// It sets attributes that have no place in a release.
    #[error(
        "the release sets the attribute {name}, which this device does not take: {}",
        list(paths)
    )]
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
    let devices: Vec<_> = manifest
        .entries()
        .iter()
        .filter(|entry| matches!(entry.kind, Kind::CharDevice(_) | Kind::BlockDevice(_)))
        // The kernel's own /dev covers what a release has there: debootstrap and its kin
        // leave some, and nobody can reach them.
        .filter(|entry| !entry.path.as_bytes().starts_with(b"dev/"))
        .collect();
    if !config.allow_devices && !devices.is_empty() {
        let paths = devices.iter().take(NAMED).map(|entry| entry.path.clone()).collect();
        return Err(PolicyError::Devices { count: devices.len(), paths });
    }
    for entry in manifest.entries() {
        for (name, _) in &entry.meta.xattrs {
            let allowed = name.starts_with(b"user.") || ALLOWED_XATTRS.contains(&&name[..]);
            if !allowed {
                let same = manifest
                    .entries()
                    .iter()
                    .filter(|other| other.meta.xattrs.iter().any(|(other, _)| other == name));
                let paths = same.take(NAMED).map(|entry| entry.path.clone()).collect();
                let name = String::from_utf8_lossy(name).escape_debug().to_string();
                return Err(PolicyError::Xattr { name, paths });
            }
        }
    }
    Ok(())
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
    use varve_format::tree::{Device, Entry, Metadata, Xattrs};

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
            "device nodes are forbidden on this device, and the release holds 2: /null, /sda"
        );
        check(&with, &Config { allow_devices: true, ..Config::default() }).unwrap();
    }

    #[test]
    fn only_known_attributes_are_taken() {
        let config = Config::default();
        for good in ["user.anything", "security.capability", "system.posix_acl_access"] {
            check(&manifest(vec![("a", Kind::Fifo, xattr(good))]), &config).unwrap();
        }
        for bad in ["trusted.thing", "security.evm", "system.nfs4_acl", "btrfs.compression"] {
            let with = manifest(vec![("a", Kind::Fifo, xattr(bad)), ("b", Kind::Fifo, xattr(bad))]);
            let error = check(&with, &config).unwrap_err().to_string();
            assert!(error.contains(bad) && error.ends_with("/a, /b"), "{error}");
        }
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
