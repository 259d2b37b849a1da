//! What a tree says of itself: the system's name, its architecture, its kernel.
//!
//! All of it is for people and for later: a tree that says nothing builds as well.

use varve_format::TreePath;
use varve_format::manifest::Manifest;
use varve_format::release::Kernel;
use varve_format::tree::Kind;

use crate::error::Result;
use crate::repo::ContentReader;

/// The longest of these files that is looked at, in bytes (dpkg's status is 1 MB for
/// 400 packages).
const LIMIT: u64 = 64 << 20;

#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) title: String,
    pub(crate) architecture: String,
    pub(crate) kernel: Option<Kernel>,
}

impl Facts {
    pub(crate) fn read(manifest: &Manifest, contents: &mut ContentReader) -> Result<Self> {
        let mut text = |path: &str| -> Result<Option<String>> {
            let entry = TreePath::new(path.as_bytes()).ok().and_then(|path| manifest.get(&path));
            match entry.map(|entry| &manifest.inode(entry).kind) {
                Some(Kind::Regular { size, digest }) if (1..=LIMIT).contains(size) => {
                    let bytes = contents.read(digest, LIMIT)?;
                    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
                }
                _ => Ok(None),
            }
        };
        let mut facts = Self { kernel: kernel(manifest), ..Self::default() };
        for path in ["usr/lib/os-release", "etc/os-release"] {
            if facts.title.is_empty()
                && let Some(text) = text(path)?
            {
                facts.title = pretty_name(&text).unwrap_or_default();
            }
        }
        if let Some(text) = text("var/lib/dpkg/arch")? {
            facts.architecture = text.lines().next().unwrap_or_default().trim().to_owned();
        }
        if facts.architecture.is_empty()
            && let Some(text) = text("var/lib/dpkg/status")?
        {
            facts.architecture = dpkg_architecture(&text).unwrap_or_default();
        }
        Ok(facts)
    }
}

/// PRETTY_NAME of os-release(5): shell quoting, of which double and single quotes and
/// backslashes before `"`, `$`, `` ` `` and `\` occur.
fn pretty_name(text: &str) -> Option<String> {
    let value = text.lines().rev().find_map(|line| line.trim().strip_prefix("PRETTY_NAME="))?;
    if let Some(inner) = value.strip_prefix('\'').and_then(|v| v.strip_suffix('\'')) {
        return Some(inner.to_owned());
    }
    let Some(inner) = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) else {
        return Some(value.to_owned());
    };
    let mut name = String::new();
    let mut chars = inner.chars().peekable();
    while let Some(c) = chars.next() {
        match chars.peek() {
            Some(next) if c == '\\' && "\"$`\\".contains(*next) => name.extend(chars.next()),
            _ => name.push(c),
        }
    }
    Some(name)
}

/// The architecture of the package dpkg itself, which is the machine's.
fn dpkg_architecture(status: &str) -> Option<String> {
    let stanza = status.split("\n\n").find(|s| s.lines().any(|l| l == "Package: dpkg"))?;
    stanza.lines().find_map(|l| l.strip_prefix("Architecture: ")).map(|a| a.trim().to_owned())
}

/// The one kernel of the tree: none when there are several versions, for then nothing
/// in the tree says which of them boots.
fn kernel(manifest: &Manifest) -> Option<Kernel> {
    let mut found: Option<(String, String)> = None;
    for entry in manifest.entries() {
        if !matches!(manifest.inode(entry).kind, Kind::Regular { .. }) {
            continue;
        }
        let Ok(path) = std::str::from_utf8(entry.path.as_bytes()) else { continue };
        let version = if let Some(version) = path.strip_prefix("boot/vmlinuz-") {
            version
        } else if let Some(version) =
            path.strip_prefix("usr/lib/modules/").and_then(|p| p.strip_suffix("/vmlinuz"))
        {
            version
        } else {
            continue;
        };
        if version.contains('/') {
            continue;
        }
        match &found {
            Some((have, _)) if have != version => return None,
            // The image in /boot comes first in order and is the one that boots.
            Some(_) => {}
            None => found = Some((version.to_owned(), path.to_owned())),
        }
    }
    let (version, image) = found?;
    let initrds = [
        format!("boot/initrd.img-{version}"),
        format!("boot/initramfs-{version}.img"),
        format!("usr/lib/modules/{version}/initrd"),
        format!("usr/lib/modules/{version}/initramfs.img"),
    ];
    let initrd = initrds.into_iter().find(|path| {
        let entry = TreePath::new(path.as_bytes()).ok().and_then(|path| manifest.get(&path));
        entry.is_some_and(|entry| matches!(manifest.inode(entry).kind, Kind::Regular { .. }))
    });
    Some(Kernel { version, image, initrd })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unquoted() {
        let cases = [
            ("PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n", "Debian GNU/Linux 13 (trixie)"),
            ("NAME=x\nPRETTY_NAME=Arch\n", "Arch"),
            ("PRETTY_NAME='a \"b\"'", "a \"b\""),
            ("PRETTY_NAME=\"a \\\"b\\\" \\$c\"", "a \"b\" $c"),
        ];
        for (text, name) in cases {
            assert_eq!(pretty_name(text).as_deref(), Some(name));
        }
        assert_eq!(pretty_name("NAME=x"), None);
    }

    #[test]
    fn the_architecture_is_that_of_dpkg() {
        let status = "Package: a\nArchitecture: i386\n\nPackage: dpkg\nStatus: install\nArchitecture: amd64\n\nPackage: z\nArchitecture: all\n";
        assert_eq!(dpkg_architecture(status).as_deref(), Some("amd64"));
    }
}
