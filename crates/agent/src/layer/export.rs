//! A layer becomes one signed file.
//!
//! ```text
//! .NAME.new   start (empty) | pack, while the layer is read | index | manifest | header
//!             start, with the signature, last; synced; renamed to NAME
//! ```
//!
//! So there is the whole file under its name, or nothing. The layer is read once. Format:
//! [`varve_format::layer_file`].

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use varve_format::deployment::LayerRecord;
use varve_format::layer_file::{LayerHeader, LayerKey, MAX_HEADER, START, Start};
use varve_format::release::{FORMAT, ReleaseRecord, StoredManifest};
use varve_format::verity::{ContentHasher, content_digest};
use varve_format::{ContentDigest, LayerName, ReleaseDigest, Sha256Digest};
use varve_pack::{Packer, WriteError, write_pack};
use varve_rootfs::given::{self, Scanned};
use varve_sys::task::{Cancel, Progress, Unit};
use varve_sys::{Dir, NewFile, Stat, durable};

use super::key::{self, SigningKey};
use super::{LayerError, find};
use crate::device::{Device, Writer};
use crate::error::{Error, Result};
use crate::upgrade::Context;

/// The level of zstd: a device's processor pays for it, once.
const LEVEL: i32 = 9;
/// Contents up to this size are read before they are compressed, in bytes.
const SMALL: u64 = 1 << 20;
/// How much of a larger content is read at once.
const PIECE: usize = 256 << 10;
/// Compressing threads at most: each takes some megabytes.
const MAX_THREADS: usize = 4;

/// What was exported.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exported {
    /// Which layer.
    pub layer: LayerName,
    /// Where to.
    pub file: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Paths in the layer.
    pub paths: u64,
    /// With which key it is signed.
    pub key: LayerKey,
    /// Whether the key was made for it.
    pub new_key: bool,
}

/// Writes a layer into a new file, signed with this device's key.
pub fn export(
    device: &Device,
    writer: &Writer,
    wanted: &str,
    file: &Path,
    context: &Context<'_>,
) -> Result<Exported> {
    let record = find(device, wanted)?;
    let parent = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let name = file.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        LayerError::Source { path: file.into(), why: "it has no name in UTF-8".to_owned() }
    })?;
    let dir = Dir::open(parent)?;
    if dir.stat_opt(name)?.is_some() {
        return Err(LayerError::Exists { path: file.into() }.into());
    }
    let key = key::own_or_new(device, writer)?;
    let temporary = format!(".{name}.new");
    dir.remove_all(&temporary)?;
    let new = dir.create_file(&temporary, 0o644)?;
    let written = write(device, new, record, &key, context).and_then(|written| {
        durable::commit_rename(&dir, &temporary, &dir, name)?;
        Ok(written)
    });
    if written.is_err() {
        // The disk is full, most likely: give the blocks back.
        let _ = dir.unlink(&temporary);
    }
    let Written { layer, bytes, paths } = written?;
    let (public, new_key) = (key.public(), key.is_new);
    Ok(Exported { layer, file: file.into(), bytes, paths, key: public, new_key })
}

struct Written {
    layer: LayerName,
    bytes: u64,
    paths: u64,
}

/// Writes and syncs all of it.
fn write(
    device: &Device,
    mut file: NewFile,
    record: LayerRecord,
    key: &SigningKey,
    context: &Context<'_>,
) -> Result<Written> {
    let tree = device.store.layer_tree(&record.name)?;
    file.write_all(&[0; START])?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    context.progress.begin("exporting", Unit::Bytes, record.size);
    let (scanned, mut file, pack) =
        write_pack(file, START as u64, LEVEL, threads, |packer| -> Result<Scanned> {
            let mut contents = Contents {
                packer,
                seen: HashSet::new(),
                progress: context.progress,
                cancel: context.cancel,
            };
            given::scan(&tree, context.cancel, &mut |file, stat| contents.take(file, stat))
        })?;
    context.progress.end();
    let Scanned { manifest, opaque } = scanned;
    let mut at = START as u64;
    match &pack {
        Some(pack) => {
            file.write_all(&pack.index)?;
            at += pack.reference.size + pack.reference.index_size;
        }
        // The magic of a pack that has nothing in it.
        None => {
            file.set_length(at)?;
            file.seek_to(at)?;
        }
    }
    let text = manifest.to_text();
    let stored = zstd::bulk::compress(&text, LEVEL).map_err(WriteError::Compress)?;
    file.write_all(&stored)?;
    at += stored.len() as u64;
    let name = record.name.clone();
    let tree = ReleaseRecord {
        format: FORMAT,
        name: name.as_str().parse().expect("the names of layers and releases are alike"),
        digest: ReleaseDigest(Sha256Digest::of(&text).0),
        architecture: String::new(),
        title: String::new(),
        notes: String::new(),
        manifest: StoredManifest {
            sha256: Sha256Digest::of(&stored),
            size: stored.len() as u64,
            text_size: text.len() as u64,
        },
        totals: manifest.totals(),
        packs: pack.iter().map(|pack| pack.reference).collect(),
        kernel: None,
    };
    // Whose it was before is nothing that this device can vouch for, nor its deployments
    // anything that another one knows.
    let record = LayerRecord { signed_by: None, captured_from: None, size: None, ..record };
    let header = LayerHeader::new(record, tree, &opaque).to_bytes();
    if header.len() > MAX_HEADER as usize {
        return Err(LayerError::TooMany { count: opaque.len() }.into());
    }
    file.write_all(&header)?;
    let bytes = at + header.len() as u64;
    let mut start = Start { header: at..bytes, key: key.public(), signature: [0; 64] };
    start.signature = key.sign(&start.signed(&header));
    file.seek_to(0)?;
    file.write_all(&start.to_bytes())?;
    file.sync()?;
    Ok(Written { layer: name, bytes, paths: manifest.entries().len() as u64 - 1 })
}

/// Puts each content into the pack once.
struct Contents<'a> {
    packer: &'a mut Packer,
    seen: HashSet<ContentDigest>,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

impl Contents<'_> {
    fn take(&mut self, mut file: &File, stat: &Stat) -> Result<ContentDigest> {
        self.cancel.check()?;
        let read =
            |source: std::io::Error| LayerError::Read { path: "a file of it".into(), source };
        let mut bytes = Vec::new();
        if stat.size <= SMALL {
            file.take(SMALL + 1).read_to_end(&mut bytes).map_err(read)?;
            self.progress.advance(bytes.len() as u64);
            let digest = content_digest(&bytes);
            if self.seen.insert(digest) {
                self.packer.add(digest, &bytes)?;
            }
            return Ok(digest);
        }
        let mut large = self.packer.begin()?;
        let mut hasher = ContentHasher::new();
        bytes.resize(PIECE, 0);
        loop {
            self.cancel.check()?;
            let count = match file.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read(error).into()),
            };
            hasher.update(&bytes[..count]);
            self.packer.extend(&mut large, &bytes[..count])?;
            self.progress.advance(count as u64);
        }
        let size = hasher.size();
        let digest = hasher.finish();
        match self.seen.insert(digest) {
            true => self.packer.keep(large, digest, size)?,
            false => self.packer.discard(large)?,
        }
        Ok(digest)
    }
}

impl From<WriteError> for Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Sys(error) => Self::Sys(error),
            other => LayerError::Pack(other).into(),
        }
    }
}
