//! A layer as one signed file: how it is given to somebody else.
//!
//! ```text
//! 0    8   magic "VARVELF1"
//! 8    4   flags: 0
//! 12   4   length H of the header
//! 16   8   offset O of the header
//! 24   32  the maker's public key (Ed25519)
//! 56   64  signature over bytes 0 to 55 and the header
//! 120      pack | index of the pack | manifest, by zstd | header (JSON, at O, to the end)
//! ```
//!
//! The header names the rest by lengths and digests, as a release record does for a
//! repository: a layer file is a repository of one release in one file. All numbers are
//! little-endian. Page: `docs/format/layer-file.md`. Callers: fetch (reads), agent (writes).

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::deployment::LayerRecord;
use crate::escape;
use crate::id::{Sha256Digest, digest_from_hex, to_hex};
use crate::path::TreePath;
use crate::release::{ReleaseRecord, StoredManifest};

/// The first bytes of a layer file.
pub const MAGIC: &[u8; 8] = b"VARVELF1";
/// The only format of the header that this version writes and reads.
pub const FORMAT: u32 = 1;
/// Length of what stands before the pack, in bytes.
pub const START: usize = 120;
/// The longest header that is read, in bytes.
pub const MAX_HEADER: u32 = 4 << 20;
/// So much of the start is signed.
const SIGNED: usize = 56;

/// Who made a layer: the public half of an Ed25519 key, `ed25519:` and 64 hexadecimal
/// digits. It is short enough to be its own fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerKey(pub [u8; 32]);

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ed25519:{}", to_hex(&self.0))
    }
}

impl fmt::Debug for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LayerKey {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits =
            text.strip_prefix("ed25519:").and_then(|hex| digest_from_hex(hex.as_bytes()).ok());
        digits.map(Self).ok_or_else(|| {
            format!("{text:?} is no key: \"ed25519:\" and 64 hexadecimal digits are expected")
        })
    }
}

impl Serialize for LayerKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayerKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a layer file was refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerFileError {
    /// Something else.
    #[error("it is no layer file")]
    Magic,
    /// Flags that this version does not know.
    #[error("it has the flags {found:#x}, which this version does not know: upgrade Varve first")]
    Flags {
        /// What it says.
        found: u32,
    },
    /// A header that is longer than any.
    #[error("its header has {size} bytes; at most {MAX_HEADER} are read")]
    HeaderSize {
        /// What it says.
        size: u32,
    },
    /// Lengths that do not fit each other or the file.
    #[error("it is cut off, or its lengths do not fit each other")]
    Length,
    /// Not JSON of this shape.
    #[error("its header is not of the expected form")]
    Json(#[from] serde_json::Error),
    /// A format that this version does not know.
    #[error("it has format {found}; this version reads format {FORMAT}: upgrade Varve first")]
    Format {
        /// What it says.
        found: u32,
    },
    /// Something in the header that no layer has.
    #[error("its header {why}")]
    Header {
        /// What.
        why: &'static str,
    },
}

/// What stands before the pack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Start {
    /// Where the header is.
    pub header: Range<u64>,
    /// Who made it, as he says.
    pub key: LayerKey,
    /// Over [`Self::signed`].
    pub signature: [u8; 64],
}

impl Start {
    /// Reads the first bytes of a file of this length.
    pub fn parse(bytes: &[u8; START], file_size: u64) -> Result<Self, LayerFileError> {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        if bytes[..8] != *MAGIC {
            return Err(LayerFileError::Magic);
        }
        if number(8) != 0 {
            return Err(LayerFileError::Flags { found: number(8) });
        }
        let size = number(12);
        if size > MAX_HEADER {
            return Err(LayerFileError::HeaderSize { size });
        }
        let at = u64::from_le_bytes(bytes[16..24].try_into().expect("8 bytes"));
        if at < START as u64 || at.checked_add(size.into()) != Some(file_size) {
            return Err(LayerFileError::Length);
        }
        Ok(Self {
            header: at..file_size,
            key: LayerKey(bytes[24..SIGNED].try_into().expect("32 bytes")),
            signature: bytes[SIGNED..].try_into().expect("64 bytes"),
        })
    }

    /// The bytes, signature included.
    pub fn to_bytes(&self) -> [u8; START] {
        let mut bytes = [0; START];
        bytes[..SIGNED].copy_from_slice(&self.fixed());
        bytes[SIGNED..].copy_from_slice(&self.signature);
        bytes
    }

    /// What the signature is over: the start before it, and the header.
    pub fn signed(&self, header: &[u8]) -> Vec<u8> {
        [&self.fixed(), header].concat()
    }

    fn fixed(&self) -> [u8; SIGNED] {
        let mut bytes = [0; SIGNED];
        bytes[..8].copy_from_slice(MAGIC);
        let size = (self.header.end - self.header.start) as u32;
        bytes[12..16].copy_from_slice(&size.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.header.start.to_le_bytes());
        bytes[24..].copy_from_slice(&self.key.0);
        bytes
    }
}

/// What a layer file says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerHeader {
    /// [`FORMAT`].
    pub format: u32,
    /// The layer, as its maker's device has it.
    pub layer: LayerRecord,
    /// Its tree as if it were a release of one pack (none when it holds no bytes), of the
    /// layer's name. Whiteouts are character devices 0:0 in the manifest.
    pub tree: ReleaseRecord,
    /// The directories that hide all that lies below them, sorted; escaped as in a manifest.
    opaque: Vec<String>,
}

/// A part of a layer file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The path that it has in a repository.
    pub path: String,
    /// Where it is in the file.
    pub range: Range<u64>,
    /// Of its bytes.
    pub sha256: Sha256Digest,
}

impl LayerHeader {
    /// Makes one.
    pub fn new(layer: LayerRecord, tree: ReleaseRecord, opaque: &BTreeSet<TreePath>) -> Self {
        let text = |path: &TreePath| {
            let mut bytes = Vec::new();
            escape::write(&mut bytes, path.as_bytes(), false);
            String::from_utf8(bytes).expect("escapes are ASCII")
        };
        Self { format: FORMAT, layer, tree, opaque: opaque.iter().map(text).collect() }
    }

    /// Reads the header that begins at `at` in its file. Its signature is the caller's.
    pub fn parse(bytes: &[u8], at: u64) -> Result<Self, LayerFileError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let Version { format } = serde_json::from_slice(bytes)?;
        if format != FORMAT {
            return Err(LayerFileError::Format { found: format });
        }
        let header: Self = serde_json::from_slice(bytes)?;
        let bad = |why| Err(LayerFileError::Header { why });
        if header.layer.name.as_str() != header.tree.name.as_str() {
            return bad("has two names for the layer");
        }
        if !header.layer.kind.is_own() {
            return bad("is that of a layer of a release");
        }
        if header.tree.packs.len() > 1 {
            return bad("names several packs");
        }
        let end = header.places().and_then(|places| Some(places.last()?.range.end));
        if end != Some(at) {
            return Err(LayerFileError::Length);
        }
        if header.opaque().is_none() {
            return bad("has a list of hiding directories that is broken or out of order");
        }
        Ok(header)
    }

    /// The bytes: JSON, closed by a newline.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("plain data");
        bytes.push(b'\n');
        bytes
    }

    /// The directories that hide all that lies below them; none when a name is broken.
    pub fn opaque(&self) -> Option<BTreeSet<TreePath>> {
        let mut paths = BTreeSet::new();
        for text in &self.opaque {
            let path = TreePath::new(&escape::read(text.as_bytes())?).ok()?;
            if paths.last().is_some_and(|last| *last >= path) {
                return None;
            }
            paths.insert(path);
        }
        Some(paths)
    }

    /// Its parts; none when the lengths are beyond all measure.
    pub fn places(&self) -> Option<Vec<Place>> {
        let mut places = Vec::new();
        let mut at = START as u64;
        let mut next = |path, size, sha256| {
            let range = at..at.checked_add(size)?;
            at = range.end;
            places.push(Place { path, range, sha256 });
            Some(())
        };
        if let Some(pack) = self.tree.packs.first() {
            next(pack.path(), pack.size, pack.id)?;
            next(pack.index_path(), pack.index_size, pack.index_sha256)?;
        }
        let manifest = self.tree.manifest;
        next(StoredManifest::path(&self.tree.digest), manifest.size, manifest.sha256)?;
        Some(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::LayerKind;
    use crate::id::ReleaseDigest;
    use crate::manifest::Totals;
    use crate::release::PackRef;

    fn header() -> LayerHeader {
        let layer = LayerRecord {
            format: crate::deployment::FORMAT,
            name: "games".parse().unwrap(),
            created: 1_760_000_000,
            kind: LayerKind::Local,
            release: None,
            title: "Games".to_owned(),
            made_by: String::new(),
            captured_from: None,
            size: None,
            signed_by: None,
        };
        let zero = Sha256Digest([0; 32]);
        let tree = ReleaseRecord {
            format: crate::release::FORMAT,
            name: "games".parse().unwrap(),
            digest: ReleaseDigest([1; 32]),
            architecture: String::new(),
            title: String::new(),
            notes: String::new(),
            manifest: StoredManifest { sha256: zero, size: 30, text_size: 100 },
            totals: Totals::default(),
            packs: vec![PackRef { id: zero, size: 50, index_sha256: zero, index_size: 24 }],
            kernel: None,
        };
        let opaque = [&b"opt"[..], b"opt/a b", b"opt/\xff"];
        LayerHeader::new(layer, tree, &opaque.map(|p| TreePath::new(p).unwrap()).into())
    }

    #[test]
    fn a_header_comes_back_and_its_parts_lie_one_after_the_other() {
        let header = header();
        let bytes = header.to_bytes();
        assert_eq!(LayerHeader::parse(&bytes, 224).unwrap(), header);
        assert_eq!(header.opaque().unwrap().len(), 3);
        let places = header.places().unwrap();
        let ranges: Vec<_> = places.iter().map(|place| place.range.clone()).collect();
        assert_eq!(ranges, [120..170, 170..194, 194..224]);
        assert!(matches!(LayerHeader::parse(&bytes, 225), Err(LayerFileError::Length)));
        let text = String::from_utf8(bytes).unwrap();
        for (from, to) in [
            ("\"opt\"", "\"opt/b\""),
            ("\"local\"", "\"base\""),
            ("\"format\": 1,\n  \"layer\"", "\"format\": 2,\n  \"layer\""),
            ("\"size\": 50", "\"size\": 18446744073709551600"),
            ("\"name\": \"games\",\n    \"digest\"", "\"name\": \"other\",\n    \"digest\""),
        ] {
            assert!(text.contains(from), "{from}");
            assert!(LayerHeader::parse(text.replace(from, to).as_bytes(), 224).is_err(), "{to}");
        }
    }

    #[test]
    fn a_start_comes_back_and_fits_its_file() {
        let key = LayerKey([7; 32]);
        let start = Start { header: 224..300, key, signature: [9; 64] };
        let bytes = start.to_bytes();
        assert_eq!(Start::parse(&bytes, 300).unwrap(), start);
        assert!(matches!(Start::parse(&bytes, 299), Err(LayerFileError::Length)));
        let mut flagged = bytes;
        flagged[8] = 1;
        assert!(matches!(Start::parse(&flagged, 300), Err(LayerFileError::Flags { found: 1 })));
        assert_eq!(key.to_string().parse(), Ok(key));
        assert!("ed25519:zz".parse::<LayerKey>().is_err());
        assert!(start.signed(b"x").ends_with(b"x"));
    }
}
