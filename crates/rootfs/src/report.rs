//! What a verification finds: differences, as data and as words.

use std::fmt;

use varve_format::{ContentDigest, TreePath};

/// So many differences are kept; the rest is counted.
pub const MAX_DIFFERENCES: usize = 200;

/// What was compared, and what differs.
#[derive(Debug, Default)]
pub struct Report {
    /// [`MAX_DIFFERENCES`] of them at most, in the order of paths.
    pub differences: Vec<Difference>,
    /// How many differ in all.
    pub count: u64,
    /// Paths that were compared.
    pub paths: u64,
    /// Files whose content was read.
    pub files_read: u64,
    /// Their bytes.
    pub bytes_read: u64,
    pub(crate) limit: usize,
}

impl Report {
    /// Whether nothing differs.
    pub fn is_clean(&self) -> bool {
        self.count == 0
    }

    /// How many paths differ, and how the first of them does: a disk that cannot be read is
    /// told from a content that is another.
    pub(crate) fn in_words(&self) -> String {
        let first = self.differences.first().map(|first| format!(", the first: {first}"));
        format!("{} paths{}", self.count, first.unwrap_or_default())
    }

    pub(crate) fn take(&mut self, other: Self) {
        self.differences.extend(other.differences);
        self.count += other.count;
        self.paths += other.paths;
        self.files_read += other.files_read;
        self.bytes_read += other.bytes_read;
    }

    pub(crate) fn add(&mut self, path: &TreePath, what: What) {
        self.count += 1;
        if self.differences.len() < self.limit {
            self.differences.push(Difference { path: path.clone(), what });
        }
    }
}

/// A path that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Where.
    pub path: TreePath,
    /// What differs; one path may have several differences.
    pub what: What,
}

/// What differs at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// It is not there (for a directory, with all that it should hold).
    Missing,
    /// It is there, and the manifest does not list it.
    Extra,
    /// It is something else.
    Kind {
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// Permission bits.
    Mode {
        /// As the manifest has it.
        expected: u32,
        /// As it is.
        found: u32,
    },
    /// User and group.
    Owner {
        /// As the manifest has it.
        expected: (u32, u32),
        /// As it is.
        found: (u32, u32),
    },
    /// Time of modification: seconds since 1970, nanoseconds.
    Time {
        /// As the manifest has it.
        expected: (i64, u32),
        /// As it is.
        found: (i64, u32),
    },
    /// An extended attribute is missing, not listed, or has another value.
    Xattr {
        /// Its name.
        name: Box<[u8]>,
    },
    /// A symbolic link points elsewhere.
    Target,
    /// Another device number.
    Device,
    /// Another length, in bytes.
    Size {
        /// As the manifest has it.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// Another content.
    Content {
        /// As the manifest has it.
        expected: ContentDigest,
        /// As it is.
        found: ContentDigest,
    },
    /// The disk does not give the content.
    Unreadable {
        /// What the kernel said.
        why: String,
    },
    /// It should share its inode with that path, and does not.
    Torn {
        /// The first name of its inode.
        from: TreePath,
    },
    /// It shares its inode with that path, and should not.
    Joined {
        /// The other name.
        with: TreePath,
    },
}

impl What {
    /// Whether the content, not the name or an attribute, is wrong.
    pub fn is_content(&self) -> bool {
        matches!(self, What::Content { .. } | What::Size { .. } | What::Unreadable { .. })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path)?;
        match &self.what {
            What::Missing => f.write_str("is missing"),
            What::Extra => f.write_str("should not be there"),
            What::Kind { expected, found } => write!(f, "is a {found}, should be a {expected}"),
            What::Mode { expected, found } => {
                write!(f, "has mode {found:04o}, should have {expected:04o}")
            }
            What::Owner { expected, found } => write!(
                f,
                "belongs to {}:{}, should belong to {}:{}",
                found.0, found.1, expected.0, expected.1
            ),
            What::Time { expected, found } => write!(
                f,
                "was modified at {}.{:09}, should be at {}.{:09}",
                found.0, found.1, expected.0, expected.1
            ),
            What::Xattr { name } => {
                write!(f, "has a wrong attribute {}", String::from_utf8_lossy(name))
            }
            What::Target => f.write_str("points elsewhere"),
            What::Device => f.write_str("is another device"),
            What::Size { expected, found } => {
                write!(f, "has {found} bytes, should have {expected}")
            }
            What::Content { .. } => f.write_str("has another content"),
            What::Unreadable { why } => write!(f, "cannot be read: {why}"),
            What::Torn { from } => write!(f, "should be the same file as {from}"),
            What::Joined { with } => write!(f, "should not be the same file as {with}"),
        }
    }
}
