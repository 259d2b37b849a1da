//! A path inside a tree: relative, without `.` or `..`, of the lengths Linux allows.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::escape;

/// The longest path in bytes, counted with its leading slash and closing zero
/// (PATH_MAX is 4096).
pub const MAX_PATH: usize = 4094;
/// The longest component in bytes (NAME_MAX).
pub const MAX_NAME: usize = 255;

/// Why a path was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
#[error("the path {shown} {why}")]
pub struct PathError {
    shown: String,
    why: &'static str,
}

impl PathError {
    /// What is wrong with the path, without the path.
    pub fn why(&self) -> &'static str {
        self.why
    }
}

/// Bytes of a name for people: readable text stays, control and non-UTF-8 bytes are
/// escaped.
pub fn show(bytes: &[u8]) -> String {
    escape::show(bytes)
}

/// A path inside a tree. The root is the empty path; every other is components
/// joined by `/`, any bytes but `/` and zero (newlines and what is not UTF-8 included).
/// Ordered by components, so that a directory stands directly before what it holds.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct TreePath(Box<[u8]>);

impl TreePath {
    /// The tree's root directory.
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks a relative path; the empty path is the root.
    pub fn new(bytes: &[u8]) -> Result<Self, PathError> {
        let refuse = |why| {
            let mut shown = escape::show(&bytes[..bytes.len().min(200)]);
            if bytes.len() > 200 {
                shown.push_str("...");
            }
            PathError { shown, why }
        };
        if bytes.is_empty() {
            return Ok(Self::root());
        }
        if bytes[0] == b'/' {
            return Err(refuse("is absolute: a path inside a tree is expected"));
        }
        if bytes.len() > MAX_PATH {
            return Err(refuse("is longer than 4094 bytes"));
        }
        for name in bytes.split(|&b| b == b'/') {
            match name {
                b"" => return Err(refuse("has an empty component")),
                b"." | b".." => return Err(refuse("has a component . or ..")),
                name if name.len() > MAX_NAME => {
                    return Err(refuse("has a component longer than 255 bytes"));
                }
                name if name.contains(&0) => return Err(refuse("has a zero byte")),
                _ => {}
            }
        }
        Ok(Self(bytes.into()))
    }

    /// The raw bytes, without a leading slash; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a relative `Path`; `.` for the root, so that it can be opened below a directory.
    pub fn as_path(&self) -> &Path {
        if self.is_root() { Path::new(".") } else { Path::new(OsStr::from_bytes(&self.0)) }
    }

    /// Whether this is the tree's root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that holds this path; none for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|&b| b == b'/').unwrap_or(0);
        Some(Self(self.0[..end].into()))
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &OsStr {
        let start = self.0.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
        OsStr::from_bytes(&self.0[start..])
    }

    /// This path with one more component, which is checked.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        if self.is_root() {
            return Self::new(name);
        }
        Self::new(&[&self.0, &b"/"[..], name].concat())
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &OsStr> {
        self.0.split(|&b| b == b'/').filter(|c| !c.is_empty()).map(OsStr::from_bytes)
    }

    /// Whether `self` is `ancestor` or lies below it.
    pub fn starts_with(&self, ancestor: &Self) -> bool {
        ancestor.is_root()
            || (self.0.starts_with(&ancestor.0)
                && matches!(self.0.get(ancestor.0.len()), None | Some(b'/')))
    }
}

impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // `/` sorts below every byte that a component can hold.
        let key = |b: &u8| if *b == b'/' { 0 } else { u16::from(*b) + 1 };
        self.0.iter().map(key).cmp(other.0.iter().map(key))
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// With a leading slash, and with control and non-UTF-8 bytes escaped.
impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", escape::show(&self.0))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TreePath({self})")
    }
}

impl serde::Serialize for TreePath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_paths_are_refused() {
        let long_name = vec![b'x'; 256];
        let long_path = b"x/".repeat(2100);
        for bad in [
            &b"/etc"[..],
            b"..",
            b"a/../b",
            b"a//b",
            b"a/",
            b"./a",
            b"a\0b",
            &long_name,
            &long_path,
        ] {
            assert!(TreePath::new(bad).is_err(), "{}", escape::show(bad));
        }
        for good in [&b""[..], b"a\nb/\xff", b"...", b"..a", b"a b\\c"] {
            assert!(TreePath::new(good).is_ok());
        }
    }

    #[test]
    fn a_directory_stands_before_what_it_holds() {
        let mut paths: Vec<_> = [&b"a-b"[..], b"a", b"a/z", b"a/b", b"a.d", b""]
            .iter()
            .map(|p| TreePath::new(p).unwrap())
            .collect();
        paths.sort();
        let shown: Vec<_> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["/", "/a", "/a/b", "/a/z", "/a-b", "/a.d"]);
    }

    #[test]
    fn parents_and_names() {
        let path = TreePath::new(b"usr/bin/sh").unwrap();
        assert_eq!(path.parent().unwrap().to_string(), "/usr/bin");
        assert_eq!(path.name(), "sh");
        assert!(path.starts_with(&TreePath::new(b"usr").unwrap()));
        assert!(!path.starts_with(&TreePath::new(b"us").unwrap()));
        assert_eq!(TreePath::new(b"usr").unwrap().parent(), Some(TreePath::root()));
    }
}
