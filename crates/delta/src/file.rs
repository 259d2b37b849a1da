//! The file of a delta: what it leads from and to, and its streams.
//!
//! ```text
//! "VARVEDL1" from:32 to:32 manifest:u64 index:u64 streams:u32 reserved:u32
//! lengths: streams x u64
//! stream 0: the new manifest, short form   1: the index   2..: the groups
//! ```
//!
//! Numbers are little-endian. See docs/format/delta.md.

use std::ops::Range;

use varve_format::ReleaseDigest;

/// First bytes of a delta.
pub const MAGIC: &[u8; 8] = b"VARVEDL1";
const HEADER: usize = 8 + 32 + 32 + 8 + 8 + 4 + 4;
/// The longest manifest that is read, in bytes.
pub(crate) const MAX_MANIFEST: u64 = 1 << 28;
/// The longest index that is read, in bytes.
pub(crate) const MAX_INDEX: u64 = 1 << 23;
/// The longest delta that is read, in bytes.
pub(crate) const MAX_SIZE: u64 = 1 << 40;

/// What stands at the head of a delta.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The release it needs.
    pub from: ReleaseDigest,
    /// The release it makes.
    pub to: ReleaseDigest,
    /// Length of the new manifest's short form.
    pub(crate) manifest: u64,
    /// Length of the index, decoded.
    pub(crate) index: u64,
}

/// A delta that cannot be read at all.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Not a delta, or one of a later format.
    #[error("this is not a delta of format 1")]
    Magic,
    /// Shorter or longer than it says.
    #[error("the delta has {found} bytes where its header asks for {expected}")]
    Length {
        /// What the header asks for.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// A length beyond what is read.
    #[error("the delta's manifest or index is larger than allowed")]
    Large,
}

/// Puts a file together.
pub(crate) fn write(header: &Header, streams: &[Vec<u8>]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&header.from.0);
    out.extend_from_slice(&header.to.0);
    out.extend_from_slice(&header.manifest.to_le_bytes());
    out.extend_from_slice(&header.index.to_le_bytes());
    out.extend_from_slice(&(streams.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for stream in streams {
        out.extend_from_slice(&(stream.len() as u64).to_le_bytes());
    }
    for stream in streams {
        out.extend_from_slice(stream);
    }
    out
}

/// What stands where in a delta.
pub(crate) struct Layout {
    pub(crate) header: Header,
    /// The streams: manifest, index, groups.
    pub(crate) streams: Vec<Range<u64>>,
}

impl Layout {
    /// Length of the whole delta.
    pub(crate) fn length(&self) -> u64 {
        self.streams.last().map_or(0, |stream| stream.end)
    }

    /// Where the groups' streams begin: the end of all that must be there to open it.
    pub(crate) fn head(&self) -> u64 {
        self.streams[1].end
    }
}

/// Reads the head of a delta; of what follows the table of lengths nothing need be there.
pub(crate) fn read(bytes: &[u8]) -> Result<Layout, FileError> {
    if bytes.len() < HEADER || &bytes[..8] != MAGIC || bytes[HEADER - 4..HEADER] != [0; 4] {
        return Err(FileError::Magic);
    }
    let digest = |at: usize| ReleaseDigest(bytes[at..at + 32].try_into().expect("32 bytes"));
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let header =
        Header { from: digest(8), to: digest(40), manifest: number(72), index: number(80) };
    if header.manifest > MAX_MANIFEST || header.index > MAX_INDEX {
        return Err(FileError::Large);
    }
    let count = u32::from_le_bytes(bytes[88..92].try_into().expect("4 bytes")) as usize;
    let found = bytes.len() as u64;
    let table = HEADER as u64 + count as u64 * 8;
    if count < 2 || table > found {
        return Err(FileError::Length { expected: table, found });
    }
    let mut at = table;
    let mut streams = Vec::with_capacity(count);
    for stream in 0..count {
        let length = number(HEADER + stream * 8);
        let end = at.checked_add(length).filter(|&end| end <= MAX_SIZE);
        let end = end.ok_or(FileError::Length { expected: at.saturating_add(length), found })?;
        streams.push(at..end);
        at = end;
    }
    Ok(Layout { header, streams })
}
