//! The device's records of what it holds: one file for each deployment, one for each
//! layer. TOML, so that a person with a rescue shell can read them.
//!
//! ```text
//! deployments/<name>/deployment.toml   what to mount and how; never changed in place
//! layers/<name>/layer.toml             what a layer is and on what it was made
//! ```
//!
//! Each ends with the digest of all lines before, in a comment.

use serde::{Deserialize, Serialize};

use crate::id::{DeploymentName, LayerName, ReleaseDigest, ReleaseName};
use crate::layer_file::LayerKey;
use crate::path::TreePath;
use crate::release::Kernel;
use crate::sealed;

/// The only format that this version writes and reads.
pub const FORMAT: u32 = 1;

/// A bootable, immutable record: the stack (or tree), how its root is mounted, its kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeploymentRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// Its name; also its directory's.
    pub name: DeploymentName,
    /// When it was staged: seconds since 1970 by the device's clock, which may be wrong.
    pub created: i64,
    /// Grows by one with each deployment of the device: the order that no clock spoils.
    pub number: u64,
    /// What is booted from: layers or one tree.
    pub stack: Stack,
    /// The root's mode.
    #[serde(default)]
    pub root_mode: RootMode,
    /// The release that this is; none for a stack that no release describes.
    pub release: Option<ReleaseRef>,
    /// Its kernel, by paths in the tree; kept for the boot loader.
    pub kernel: Option<Kernel>,
    /// Directories that outlive releases.
    #[serde(default)]
    pub state: Vec<StatePath>,
    /// The layers of the device's user that lie over the stack, newest first; those that
    /// are off too, in their places. The deployment's manifest knows nothing of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<OwnLayer>,
    /// Whether the writable top of its root begins anew, as [`StatePath::fresh`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh_root: bool,
    /// For people: what is special about it; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
}

/// A local layer or an extension in a deployment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OwnLayer {
    /// Name below `layers/`.
    pub layer: LayerName,
    /// Whether it is mounted.
    pub on: bool,
    /// Why it is off, in words for people; empty: its user switched it off.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl OwnLayer {
    /// A layer that is on.
    pub fn on(layer: LayerName) -> Self {
        Self { layer, on: true, why: String::new() }
    }
}

/// Which release a deployment is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ReleaseRef {
    /// Its name for people.
    pub name: ReleaseName,
    /// Its identity.
    pub digest: ReleaseDigest,
    /// Its place in the repository's order.
    pub sequence: u64,
}

/// What the root is put together from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "layout", deny_unknown_fields, rename_all = "kebab-case")]
pub enum Stack {
    /// Overlay layers, newest first; the last is a base. Never empty.
    Overlay {
        /// Names below `layers/`.
        layers: Vec<LayerName>,
    },
    /// One tree of hard links.
    HardLink {
        /// Name below `trees/`.
        tree: LayerName,
    },
}

/// How the root directory is held on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Latest over previous.
    #[default]
    Overlay,
    /// A tree of hard links, changed files replaced.
    HardLink,
}

/// What may be written at the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootMode {
    /// Nothing.
    #[default]
    ReadOnly,
    /// Anything; gone at the next boot.
    Volatile,
    /// Anything; kept with the deployment.
    Persistent,
}

/// How a state path outlives releases.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateMode {
    /// Changes over the release's directory; each deployment has its own copy of them.
    Versioned,
    /// Changes over the release's directory; one set for all deployments.
    Shared,
    /// A directory of its own, the same for all deployments; the release's is hidden.
    Bind,
}

/// A directory that outlives releases.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StatePath {
    /// Where: an absolute path such as `/etc`.
    pub path: StateDir,
    /// How.
    pub mode: StateMode,
    /// Versioned state that begins anew with this deployment (a reset): the changes of
    /// the one before are not carried to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
}

/// An absolute path of a state directory, checked; never the root itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StateDir(TreePath);

impl StateDir {
    /// Checks an absolute path in UTF-8.
    pub fn new(text: &str) -> Result<Self, String> {
        let relative = text
            .strip_prefix('/')
            .ok_or_else(|| format!("{text:?} is not an absolute path such as \"/etc\""))?;
        let path = TreePath::new(relative.trim_end_matches('/').as_bytes())
            .map_err(|error| error.to_string())?;
        if path.is_root() {
            return Err("\"/\" is not a state path: set root-mode instead".to_owned());
        }
        Ok(Self(path))
    }

    /// As a path inside a tree.
    pub fn tree_path(&self) -> &TreePath {
        &self.0
    }

    /// Its directory's name below `state/versioned/<deployment>/`, `state/shared/` or
    /// `state/bind/`: slashes become `!`, so that no two paths share one.
    pub fn slug(&self) -> String {
        String::from_utf8_lossy(self.0.as_bytes()).replace('!', "!!").replace('/', "!-")
    }
}

impl std::fmt::Display for StateDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for StateDir {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = format!("/{}", String::from_utf8_lossy(self.0.as_bytes()));
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for StateDir {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// The name of the versioned state of the root itself (root mode `persistent`); no
/// state path has this slug.
pub const ROOT_SLUG: &str = "!";

/// What a layer is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LayerRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// Its name; also its directory's.
    pub name: LayerName,
    /// When it was made: seconds since 1970 by the device's clock.
    pub created: i64,
    /// What kind of layer.
    pub kind: LayerKind,
    /// The release that the stack shows with this layer on top; for a local layer or an
    /// extension, the release it was made on.
    pub release: Option<ReleaseRef>,
    /// For people; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// How it came about, for people, such as `run apt install hello`; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub made_by: String,
    /// The deployment whose writable top it was, for a captured layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured_from: Option<DeploymentName>,
    /// Bytes on the disk of what it holds alone, as it was made; none where that was not
    /// counted. A list of layers need not walk them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The key of who made it, for a layer that was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<LayerKey>,
}

/// Where a layer comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerKind {
    /// A whole release.
    Base,
    /// What a release changes over the one below.
    Update,
    /// Made on the device by its user.
    Local,
    /// Published, added to any release.
    Extension,
}

/// Why a record was refused.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not UTF-8.
    #[error("the record is not UTF-8 text")]
    Text,
    /// The digest in its last line does not fit.
    #[error("its checksum does not fit its text; if a person changed it, its last line goes")]
    Checksum,
    /// Not TOML of this shape.
    #[error("the record is not of the expected form")]
    Toml(#[from] toml::de::Error),
    /// A format that this version does not know.
    #[error("the record has format {found}; this version reads format {FORMAT}")]
    Format {
        /// What the record says.
        found: u32,
    },
    /// A stack without a layer.
    #[error("the deployment has no layer")]
    NoLayer,
}

impl Stack {
    /// How it is held.
    pub fn layout(&self) -> Layout {
        match self {
            Stack::Overlay { .. } => Layout::Overlay,
            Stack::HardLink { .. } => Layout::HardLink,
        }
    }

    /// The overlay's layers, newest first; none for a tree.
    pub fn layers(&self) -> &[LayerName] {
        match self {
            Stack::Overlay { layers } => layers,
            Stack::HardLink { .. } => &[],
        }
    }
}

impl LayerKind {
    /// The user's own: laid over a release, and taken off again.
    pub fn is_own(self) -> bool {
        matches!(self, Self::Local | Self::Extension)
    }
}

impl std::fmt::Display for LayerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Base => "base",
            Self::Update => "update",
            Self::Local => "local",
            Self::Extension => "extension",
        })
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Layout::Overlay => "overlay",
            Layout::HardLink => "hard-link",
        })
    }
}

impl DeploymentRecord {
    /// The own layers that are on, newest first.
    pub fn own_on(&self) -> impl Iterator<Item = &LayerName> {
        self.own.iter().filter(|own| own.on).map(|own| &own.layer)
    }

    /// How many directories its root is put together from: own layers that are on, and
    /// the stack's layers (or its one tree).
    pub fn height(&self) -> usize {
        self.own_on().count() + self.stack.layers().len().max(1)
    }

    /// Every layer (or tree) that it needs, those that are off too.
    pub fn parts(&self) -> impl Iterator<Item = &LayerName> {
        let stack = match &self.stack {
            Stack::Overlay { layers } => &layers[..],
            Stack::HardLink { tree } => std::slice::from_ref(tree),
        };
        self.own.iter().map(|own| &own.layer).chain(stack)
    }

    /// Reads a record.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let record: Self = toml::from_str(text(bytes)?)?;
        if record.format != FORMAT {
            return Err(RecordError::Format { found: record.format });
        }
        if matches!(&record.stack, Stack::Overlay { layers } if layers.is_empty()) {
            return Err(RecordError::NoLayer);
        }
        Ok(record)
    }

    /// The record's text.
    pub fn to_text(&self) -> String {
        sealed::with_comment(toml::to_string(self).expect("plain data"))
    }
}

impl LayerRecord {
    /// Reads a record.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let record: Self = toml::from_str(text(bytes)?)?;
        if record.format != FORMAT {
            return Err(RecordError::Format { found: record.format });
        }
        Ok(record)
    }

    /// The record's text.
    pub fn to_text(&self) -> String {
        sealed::with_comment(toml::to_string(self).expect("plain data"))
    }
}

fn text(bytes: &[u8]) -> Result<&str, RecordError> {
    let text = std::str::from_utf8(bytes).map_err(|_| RecordError::Text)?;
    sealed::comment_fits(text).then_some(text).ok_or(RecordError::Checksum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back() {
        let record = DeploymentRecord {
            format: FORMAT,
            name: "debian-13.2".parse().unwrap(),
            created: 1_760_000_000,
            number: 2,
            stack: Stack::Overlay { layers: vec!["u2".parse().unwrap(), "base".parse().unwrap()] },
            root_mode: RootMode::Volatile,
            release: Some(ReleaseRef {
                name: "debian-13.2".parse().unwrap(),
                digest: ReleaseDigest([7; 32]),
                sequence: 2,
            }),
            kernel: None,
            state: vec![StatePath {
                path: StateDir::new("/etc").unwrap(),
                mode: StateMode::Versioned,
                fresh: true,
            }],
            fresh_root: false,
            own: vec![OwnLayer {
                layer: "games".parse().unwrap(),
                on: false,
                why: "it hides /sbin/init".to_owned(),
            }],
            title: "without games".to_owned(),
        };
        let text = record.to_text();
        assert_eq!(DeploymentRecord::parse(text.as_bytes()).unwrap(), record, "{text}");
        let tree =
            DeploymentRecord { stack: Stack::HardLink { tree: "t".parse().unwrap() }, ..record };
        assert_eq!(DeploymentRecord::parse(tree.to_text().as_bytes()).unwrap(), tree);
        // As an earlier version wrote it, or a person: without a checksum.
        let (plain, _) = tree.to_text().split_once("# checksum").map(own).unwrap();
        assert_eq!(DeploymentRecord::parse(plain.as_bytes()).unwrap(), tree);
        let later = plain.replace("format = 1", "format = 2");
        assert!(matches!(
            DeploymentRecord::parse(later.as_bytes()),
            Err(RecordError::Format { found: 2 })
        ));
    }

    fn own((a, b): (&str, &str)) -> (String, String) {
        (a.to_owned(), b.to_owned())
    }

    /// Whatever one bit of a record turns into, it means the same or is refused.
    #[test]
    fn a_bit_that_flips_is_seen() {
        let record = LayerRecord {
            format: FORMAT,
            name: "games".parse().unwrap(),
            created: 1_760_000_000,
            kind: LayerKind::Local,
            release: None,
            title: "for the # long \n evenings".to_owned(),
            made_by: "run apt install games".to_owned(),
            captured_from: Some("debian-13.2".parse().unwrap()),
            signed_by: None,
            size: Some(4096),
        };
        let text = record.to_text();
        let mut refused = 0;
        for at in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[at / 8] ^= 1 << (at % 8);
            match LayerRecord::parse(&bytes) {
                Ok(read) => assert_eq!(read, record, "bit {at}"),
                Err(_) => refused += 1,
            }
        }
        // What is left is the comment's own sign.
        assert!(refused > text.len() * 8 - 200, "{refused} of {}", text.len() * 8);
    }

    #[test]
    fn state_paths_have_distinct_slugs() {
        let slug = |text: &str| StateDir::new(text).unwrap().slug();
        assert_eq!(slug("/etc"), "etc");
        assert_eq!(slug("/var/lib/"), "var!-lib");
        assert_ne!(slug("/a!-b"), slug("/a/b"));
        for bad in ["etc", "/", "/../x", "", "/a//b"] {
            assert!(StateDir::new(bad).is_err(), "{bad}");
        }
    }
}
