//! From a source to a release: directory, tar archive or OCI image layout -> tree ->
//! manifest, pack and release record in a repository directory.
//!
//! ```text
//!  directory --scan--\                     /-- hash, known already? -> nothing to do
//!  tar ------members---> contents, in order
//!  OCI ------layers--/                     \-- new: frames -> compress (n threads) -> pack
//!        \-> entries -> manifest ------------------------------------------------> record
//!
//!  repo/packs/<id>.pack .idx    only what no earlier release holds
//!  repo/manifests/<digest>.zst
//!  repo/pending/<name>.json     written last: with it the build is there, without it not
//! ```
//!
//! The same source gives the same bytes, whatever the clock, the number of threads or
//! the way that it came: a directory and a tar of it have one digest.
//!
//! `varve-repo build` calls [`build`]; `publish` signs what lies in `pending/` and reads
//! contents back through [`repo::ContentReader`].

#![forbid(unsafe_code)]

mod contents;
mod decode;
mod error;
mod facts;
mod oci;
mod pack;
pub mod repo;
mod scan;
mod tar;
mod tree;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use varve_format::manifest::Manifest;
use varve_format::release::{FORMAT, PackRef, ReleaseRecord, StoredManifest};
use varve_format::{ContentDigest, ReleaseDigest, ReleaseName, Sha256Digest};
use varve_sys::task::{Cancel, Progress, Silent, Unit};
use varve_sys::{Dir, durable};

use contents::{Contents, Hash, Store};
pub use error::{BuildError, Result};
use repo::Known;

/// The level of zstd for manifests, which every device that upgrades fetches. Of Debian
/// 13's (4.3 MB): 1,003 KB at level 12, 879 KB at 16, 865 KB at 19 in three times the time
/// and twice the memory.
const MANIFEST_LEVEL: i32 = 16;

/// The level of zstd that [`BuildOptions::new`] sets. Of Debian 13 (535 MB of contents):
/// level 3 stores 219 MB in 6 s of processor time, 6 212 MB in 10 s, 8 208.8 MB in 12 s,
/// 12 207.6 MB in 33 s.
pub const DEFAULT_LEVEL: i32 = 8;

/// Threads that compress when the caller leaves their number open: more would take more
/// memory than a build is meant to.
const MAX_THREADS: usize = 4;

/// Where a tree comes from.
pub enum Source {
    /// A directory that holds the tree. Nothing may be mounted below it.
    Directory(Dir),
    /// A tar archive, plain or compressed with gzip or zstd.
    Tar {
        /// Its bytes, from a file or a pipe.
        reader: Box<dyn Read>,
        /// What to call it in messages.
        name: String,
        /// Its length in bytes, for progress, when known.
        size: Option<u64>,
    },
    /// An OCI image layout.
    Oci {
        /// The directory that holds `oci-layout` and `index.json`.
        layout: Dir,
        /// Which image, by its annotation `org.opencontainers.image.ref.name`; needed
        /// only when the layout holds several.
        reference: Option<String>,
    },
}

/// How to build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The release's name.
    pub name: ReleaseName,
    /// Debian's name of the architecture; by default what the tree's dpkg says.
    pub architecture: Option<String>,
    /// One paragraph for people; may be empty.
    pub notes: String,
    /// Level of zstd, 1 to 22.
    pub level: i32,
    /// Threads that compress; 0 for one on each processor, at most four. Has no influence
    /// on the result. Each takes a few MiB.
    pub threads: usize,
}

/// What a build made.
#[derive(Clone, Debug)]
pub struct BuildReport {
    /// The record that now lies in `pending/`.
    pub record: ReleaseRecord,
    /// Bytes of contents that are new in the repository, before compression.
    pub new_bytes: u64,
    /// Contents that are new in the repository.
    pub new_contents: u64,
    /// Bytes of contents that earlier packs hold already.
    pub reused_bytes: u64,
    /// The pack with what is new; none when all was there.
    pub pack: Option<PackRef>,
}

impl Source {
    /// Takes a path for what it is: a directory with a file `oci-layout` in it is an
    /// image layout, any other directory a tree, a file an archive.
    pub fn open(path: &Path) -> Result<Self> {
        let read = |source| BuildError::Read { what: path.display().to_string(), source };
        if std::fs::metadata(path).map_err(read)?.is_dir() {
            let dir = Dir::open(path)?;
            return Ok(match dir.stat_opt("oci-layout")? {
                Some(_) => Self::Oci { layout: dir, reference: None },
                None => Self::Directory(dir),
            });
        }
        let file = File::open(path).map_err(read)?;
        let size = Some(file.metadata().map_err(read)?.len()).filter(|size| *size > 0);
        Ok(Self::Tar { reader: Box::new(file), name: path.display().to_string(), size })
    }

    fn read(
        self,
        architecture: Option<&str>,
        contents: &mut dyn Contents,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Manifest> {
        match self {
            Self::Directory(dir) => {
                let scanned = scan::walk(&dir, cancel)?;
                progress.begin("reading the tree", Unit::Bytes, Some(scanned.bytes));
                let manifest = scanned.read(&dir, contents)?;
                progress.end();
                Ok(manifest)
            }
            Self::Tar { reader, name, size } => {
                let (reader, compressed) = decode::open(reader, &name)?;
                let total = size.filter(|_| !compressed);
                progress.begin("reading the archive", Unit::Bytes, total);
                let mut tree = tree::Tree::new();
                let mut members = tar::Members::new(reader, name);
                tree.take(&mut members, contents, false, &|_| true)?;
                progress.end();
                tree.finish()
            }
            Self::Oci { layout, reference } => {
                let reference = reference.as_deref();
                progress.begin("reading the image", Unit::Bytes, None);
                let mut names = Hash { progress: &Silent, cancel };
                let manifest = oci::read(&layout, reference, architecture, contents, &mut names)?;
                progress.end();
                Ok(manifest)
            }
        }
    }
}

impl BuildOptions {
    /// Default options.
    pub fn new(name: ReleaseName) -> Self {
        Self { name, architecture: None, notes: String::new(), level: DEFAULT_LEVEL, threads: 0 }
    }
}

/// Builds a release into a repository directory, unsigned: the record goes to
/// `pending/<name>.json`. Whoever builds the same name again before it is published
/// replaces it.
pub fn build(
    source: Source,
    repo: &Dir,
    options: &BuildOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<BuildReport> {
    let _lock = repo::lock(repo)?;
    repo::sweep(repo)?;
    let records = repo::records(repo)?;
    if records.iter().any(|r| r.published && r.record.name == options.name) {
        return Err(BuildError::NameTaken { name: options.name.clone() });
    }
    let known = Known::load(repo, &records, progress)?;
    let [packs, manifests, pending] =
        ["packs", "manifests", "pending"].map(|folder| repo.make_dir(folder, 0o755));
    let (packs, manifests, pending) = (packs?, manifests?, pending?);
    durable::sync_directory(repo)?;

    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS),
        threads => threads,
    };
    let file = pack::begin(&packs)?;
    let ((manifest, new), file, written) =
        varve_pack::write_pack(file, 0, options.level, threads, |packer| {
            let mut store = Store::new(packer, &known.contents, progress, cancel);
            let manifest =
                source.read(options.architecture.as_deref(), &mut store, progress, cancel)?;
            Ok::<_, BuildError>((manifest, store.new))
        })?;
    cancel.check()?;
    pack::commit(&packs, &file, written.as_ref())?;
    let new_pack = written.map(|written| written.reference);
    let needed = needed_packs(&manifest, new_pack, &new, &known);

    let facts = facts::Facts::read(&manifest, &mut repo::ContentReader::open(repo, &needed)?)?;
    let (digest, stored) = store_manifest(repo, &manifests, &manifest, &records)?;
    let record = ReleaseRecord {
        format: FORMAT,
        name: options.name.clone(),
        digest,
        architecture: options.architecture.clone().unwrap_or(facts.architecture),
        title: facts.title,
        notes: options.notes.clone(),
        manifest: stored,
        totals: manifest.totals(),
        packs: needed,
        kernel: facts.kernel,
    };
    durable::replace_file(&pending, &format!("{}.json", record.name), &record.to_bytes(), 0o644)?;

    let contents: u64 = manifest.contents().map(|(_, size)| size).sum();
    let new_bytes = manifest.contents().filter_map(|(digest, _)| new.get(&digest)).sum();
    Ok(BuildReport {
        record,
        new_bytes,
        new_contents: new.len() as u64,
        reused_bytes: contents - new_bytes,
        pack: new_pack,
    })
}

/// The new pack and those earlier ones that hold something of this tree, newest first.
fn needed_packs(
    manifest: &Manifest,
    new_pack: Option<PackRef>,
    new: &HashMap<ContentDigest, u64>,
    known: &Known,
) -> Vec<PackRef> {
    let mut used = vec![false; known.packs.len()];
    for (digest, _) in manifest.contents().filter(|(digest, _)| !new.contains_key(digest)) {
        used[known.contents[&digest] as usize] = true;
    }
    let earlier = known.packs.iter().zip(used).filter(|(_, used)| *used).map(|(pack, _)| *pack);
    new_pack.into_iter().chain(earlier).collect()
}

/// Writes the manifest, unless it is there from another release of the same tree: that
/// release's record holds its stored bytes, which another libzstd might not give again.
fn store_manifest(
    repo: &Dir,
    manifests: &Dir,
    manifest: &Manifest,
    records: &[repo::StoredRecord],
) -> Result<(ReleaseDigest, StoredManifest)> {
    let text = manifest.to_text();
    let digest = ReleaseDigest(Sha256Digest::of(&text).0);
    let same = records.iter().find(|r| r.record.digest == digest);
    if let Some(same) = same.filter(|same| repo::load_manifest(repo, &same.record).is_ok()) {
        return Ok((digest, same.record.manifest));
    }
    let stored = zstd::bulk::compress(&text, MANIFEST_LEVEL).map_err(BuildError::Compress)?;
    durable::replace_file(manifests, &format!("{digest}.zst"), &stored, 0o644)?;
    let reference = StoredManifest {
        sha256: Sha256Digest::of(&stored),
        size: stored.len() as u64,
        text_size: text.len() as u64,
    };
    Ok((digest, reference))
}

/// The manifest of a source: all of it is read, and nothing is kept.
///
/// # Errors
/// As [`build`]'s, for a source that is refused or cannot be read.
pub fn manifest(source: Source) -> Result<Manifest> {
    let (progress, cancel) = (Silent, Cancel::new());
    let mut hash = Hash { progress: &progress, cancel: &cancel };
    source.read(None, &mut hash, &progress, &cancel)
}

/// The manifest of a directory's tree.
pub fn scan(dir: &Dir) -> Result<Manifest> {
    let (progress, cancel) = (Silent, Cancel::new());
    let mut hash = Hash { progress: &progress, cancel: &cancel };
    scan::walk(dir, &cancel)?.read(dir, &mut hash)
}
