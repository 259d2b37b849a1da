//! The kernel's list of mounts, `/proc/<pid>/mountinfo`, as data.
//!
//! ```text
//! 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//! id parent dev root point options  optional... - type source super options
//! ```
//!
//! A pure parser: the callers (the boot stage, `varve ps`, `collect`) read the text.
//! Source: proc_pid_mountinfo(5).

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One line of `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// This mount's number.
    pub id: u32,
    /// The mount that it is in.
    pub parent: u32,
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    /// The directory of the file system that is the mount's root.
    pub root: PathBuf,
    /// Where it is, seen from the reader's root directory.
    pub mount_point: PathBuf,
    /// The mount's own options, comma separated, such as `ro,relatime`.
    pub options: String,
    /// `overlay`, `ext4`, ….
    pub filesystem: String,
    /// The device, or what was given as the source.
    pub source: PathBuf,
    /// The file system's options, comma separated.
    pub super_options: String,
}

/// A line of mountinfo that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the list of mounts has no {field}")]
pub struct MountInfoError {
    /// From 1.
    pub line: usize,
    /// The first field that is missing or not a number.
    pub field: &'static str,
}

/// Reads the text of `/proc/<pid>/mountinfo`. Names may hold any byte; the kernel
/// writes space, tab, newline, `#` and backslash as three octal digits.
pub fn parse_mountinfo(text: &[u8]) -> Result<Vec<MountEntry>, MountInfoError> {
    let lines = text.split(|&byte| byte == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| {
            mountinfo_line(line).map_err(|field| MountInfoError { line: index + 1, field })
        })
        .collect()
}

fn mountinfo_line(line: &[u8]) -> Result<MountEntry, &'static str> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mut next = |field| fields.next().ok_or(field);
    let id = number(next("mount id")?).ok_or("mount id")?;
    let parent = number(next("parent id")?).ok_or("parent id")?;
    let device = next("device")?;
    let colon = device.iter().position(|&byte| byte == b':').ok_or("device")?;
    let major = number(&device[..colon]).ok_or("device")?;
    let minor = number(&device[colon + 1..]).ok_or("device")?;
    let root = path(next("root")?);
    let mount_point = path(next("mount point")?);
    let options = text(next("options")?);
    // Optional fields (`shared:2` …) up to a lone hyphen.
    while next("end of the optional fields")? != b"-" {}
    let filesystem = text(next("file system type")?);
    let source = path(next("source")?);
    let super_options = text(next("file system options")?);
    Ok(MountEntry {
        id,
        parent,
        device: (major, minor),
        root,
        mount_point,
        options,
        filesystem,
        source,
        super_options,
    })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(unescape_octal(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape_octal(field)).into_owned()
}

fn unescape_octal(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let escaped = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'))
            }
            _ => None,
        };
        plain.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &rest[4..] } else { tail };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_field() {
        let text = b"36 35 98:0 /mnt1 /a\\040b\\134c rw,noatime shared:1 master:2 - overlay varve rw,lowerdir=a:b\n\
                     1 0 0:2 / / rw - rootfs none rw\n";
        let entries = parse_mountinfo(text).unwrap();
        assert_eq!(entries.len(), 2);
        let first = &entries[0];
        assert_eq!((first.id, first.parent, first.device), (36, 35, (98, 0)));
        assert_eq!(first.root, PathBuf::from("/mnt1"));
        assert_eq!(first.mount_point, PathBuf::from("/a b\\c"));
        assert_eq!(first.options, "rw,noatime");
        assert_eq!(first.filesystem, "overlay");
        assert_eq!(first.source, PathBuf::from("varve"));
        assert_eq!(first.super_options, "rw,lowerdir=a:b");
    }

    #[test]
    fn names_the_line_and_the_field_that_is_wrong() {
        let good = "1 0 0:2 / / rw - rootfs none rw\n";
        for (line, field) in [
            ("x 0 0:2 / / rw - rootfs none rw", "mount id"),
            ("1 0 02 / / rw - rootfs none rw", "device"),
            ("1 0 0:2 / / rw shared:1 rootfs none rw", "end of the optional fields"),
            ("1 0 0:2 / / rw - rootfs none", "file system options"),
        ] {
            let text = format!("{good}{line}\n");
            let error = parse_mountinfo(text.as_bytes()).unwrap_err();
            assert_eq!(error, MountInfoError { line: 2, field });
        }
    }

    #[test]
    fn a_backslash_that_is_no_escape_stays() {
        assert_eq!(unescape_octal(b"a\\9\\04\\400\\"), b"a\\9\\04\\400\\");
        assert_eq!(unescape_octal(b"\\377\\000"), b"\xff\0");
    }

    #[test]
    fn reads_this_machine() {
        let text = std::fs::read("/proc/self/mountinfo").unwrap();
        let entries = parse_mountinfo(&text).unwrap();
        assert!(entries.iter().any(|entry| entry.mount_point.as_os_str() == "/"));
    }

    proptest::proptest! {
        /// Any bytes are read or refused, and an escaped name comes back.
        #[test]
        fn any_bytes(text: Vec<u8>, name in proptest::collection::vec(1_u8.., 1..20)) {
            let _ = parse_mountinfo(&text);
            let _ = parse_mountinfo(&[b"1 0 0:2 / / rw - ", &text[..]].concat());
            let escape = |byte: &u8| match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                byte => vec![*byte],
            };
            let escaped: Vec<u8> = name.iter().flat_map(escape).collect();
            let line = [b"1 0 0:2 / ", &escaped[..], b" rw - tmpfs none rw\n"].concat();
            let entries = parse_mountinfo(&line).unwrap();
            proptest::prop_assert_eq!(
                entries[0].mount_point.as_os_str().as_encoded_bytes(),
                &name[..]
            );
        }
    }
}
