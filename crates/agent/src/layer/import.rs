//! A layer that somebody gave: a signed file becomes a layer of this device.
//!
//! ```text
//! open      the signature is good, and its key is known: configured, or named now
//! check     every byte is what was signed
//! manifest  what it holds, held against [policy] and against this system
//! contents  into incoming/, each verified; what is here already is not written again
//! fill      the tree, compared with the manifest to the last attribute
//! propose   as every change of the layers: a new deployment, on trial
//! ```
//!
//! Until the commit there is nothing of it but contents in incoming/, which go when it
//! fails. The reserve is never used.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use varve_fetch::layer_file::{self, LayerFile, OpenError};
use varve_fetch::{Sources, Verified, contents, pack_index};
use varve_format::deployment::{LayerKind, LayerRecord, OwnLayer, ReleaseRef};
use varve_format::layer_file::LayerKey;
use varve_format::manifest::Manifest;
use varve_format::pack::PackIndex;
use varve_format::release::PackRef;
use varve_format::tree::{Device as Node, Entry, Kind};
use varve_format::{ContentDigest, LayerName, TreePath};
use varve_rootfs::compose::ComposeError;
use varve_rootfs::given::{self, ScanError, Scanned};
use varve_rootfs::own::Draft;
use varve_rootfs::resolve::Resolver;
use varve_rootfs::{Deployment, Needed, Request, SourceCheck, content};

use super::add::update_path;
use super::archive::Budget;
use super::{
    Changed, LayerError, Proposed, base, begin, dpkg, kept, key, or_abandon, propose, record_of,
};
use crate::device::{Device, Writer};
use crate::error::{Error, Result};
use crate::observe::Observed;
use crate::policy;
use crate::upgrade::Context;

/// The longest title and origin of a foreign layer, in characters.
const MAX_TITLE: usize = 60;
const MAX_ORIGIN: usize = 200;

/// What is imported, and how.
#[derive(Clone, Copy, Debug)]
pub struct Import<'a> {
    /// The file.
    pub file: &'a Path,
    /// Keys that are believed this time, beside those of the configuration and this
    /// device's own.
    pub trust: &'a [LayerKey],
    /// What it is called here; none: as its maker calls it.
    pub name: Option<&'a LayerName>,
    /// Its title; empty: its maker's.
    pub title: &'a str,
    /// It is made, checked and thrown away.
    pub dry_run: bool,
}

/// What was imported.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Imported {
    /// The change of the stack.
    #[serde(flatten)]
    pub changed: Changed,
    /// Paths in the layer.
    pub paths: u64,
    /// Bytes of its contents.
    pub bytes: u64,
    /// Who signed it.
    pub key: LayerKey,
    /// The release it was made on.
    pub made_on: Option<ReleaseRef>,
    /// Whether that is another one than the one it lies over now.
    pub other_release: bool,
}

/// Makes a layer of a file.
pub fn import(
    device: &Device,
    writer: &Writer,
    import: &Import<'_>,
    context: &Context<'_>,
) -> Result<Imported> {
    let mut trusted = device.config.layer_keys.clone();
    trusted.extend_from_slice(import.trust);
    trusted.extend(key::own(device)?);
    let file = layer_file::open(import.file, &trusted)?;
    let theirs = &file.header().layer;
    let name = import.name.unwrap_or(&theirs.name);
    let observed = Observed::look(device)?;
    let base = base(&observed)?;
    let draft = begin(device, base, name)?;
    let made = make(device, base, name, &file, &draft, context);
    let (draft, manifest) = or_abandon(draft, made)?;
    let made = record_of(name, LayerKind::Extension, base, String::new(), &draft, context);
    let (draft, made) = or_abandon(draft, made)?;
    let title = if import.title.is_empty() { &theirs.title } else { import.title };
    let record = LayerRecord {
        created: theirs.created,
        release: theirs.release.clone(),
        title: printable(title, MAX_TITLE),
        made_by: printable(&theirs.made_by, MAX_ORIGIN),
        signed_by: Some(file.key),
        ..made
    };
    let mut own = base.record.own.clone();
    own.insert(0, OwnLayer::on(name.clone()));
    let (state, what) = (kept(base), format!("import {name}"));
    let made_on = theirs.release.clone();
    let digest = |release: &Option<ReleaseRef>| release.as_ref().map(|release| release.digest);
    let other_release = digest(&made_on) != digest(&base.record.release);
    let proposed = Proposed { own, state, fresh_root: false, what, layer: Some((draft, record)) };
    let changed = propose(device, writer, &observed, base, proposed, import.dry_run, context);
    forget(device, &manifest)?;
    let totals = manifest.totals();
    Ok(Imported {
        changed: changed?,
        paths: totals.paths - 1,
        bytes: totals.bytes,
        key: file.key,
        made_on,
        other_release,
    })
}

/// Fills the draft; what is left in incoming/ after a failure goes.
fn make(
    device: &Device,
    base: &Deployment,
    name: &LayerName,
    file: &LayerFile,
    draft: &Draft<'_>,
    context: &Context<'_>,
) -> Result<Manifest> {
    file.check(context.progress, context.cancel)?;
    let sources = file.sources();
    let (manifest, _) = varve_fetch::manifest(file.tree(), &sources, context.cancel)?;
    let manifest = manifest.into_inner();
    let opaque = file.header().opaque().unwrap_or_default();
    policy::check_layer(&manifest, &device.config)?;
    let mut system = Resolver::new(device.store.root_dirs(&base.record)?);
    lies_over(&manifest, &mut system, file)?;
    let manifest = beside_other_updates(manifest, name, &mut system)?;
    let wanted = Scanned { manifest, opaque };
    let filled = fill(device, name, &sources, file, &wanted, draft, context);
    if filled.is_err() {
        forget(device, &wanted.manifest)?;
    }
    filled.map(|()| wanted.manifest)
}

fn fill(
    device: &Device,
    name: &LayerName,
    sources: &Sources,
    file: &LayerFile,
    wanted: &Scanned,
    draft: &Draft<'_>,
    context: &Context<'_>,
) -> Result<()> {
    let (store, manifest) = (&device.store, &wanted.manifest);
    let (progress, cancel) = (context.progress, context.cancel);
    let request = Request {
        store,
        base: None,
        name: draft.deployment(),
        manifest,
        check: SourceCheck::Contents,
        progress,
        cancel,
    };
    let plan = given::plan(&request, name, &wanted.opaque)?;
    let mut indexes: Vec<(PackRef, Verified<PackIndex>)> = Vec::new();
    for pack in &file.tree().packs {
        indexes.push((*pack, pack_index(pack, sources, cancel)?));
    }
    let missing = plan.fetch.iter().map(|Needed { digest, size }| (*digest, *size));
    let fetch = contents::plan(missing, indexes, store.incoming(), sources)?;
    let mut budget = Budget::of(device)?;
    budget.take(plan.write_bytes)?;
    budget.take(fetch.disk_bytes())?;
    contents::fetch(&fetch, sources, store.incoming(), progress, cancel).1?;
    given::fill(draft, &plan, manifest, progress, cancel)?;
    // The proof: read again, all of it.
    let found = given::scan(draft.tree(), cancel, &mut |file, _| digest_of(file))?;
    match found == *wanted {
        true => Ok(()),
        false => Err(LayerError::NotAsSigned.into()),
    }
}

/// What is no directory must not stand where this system has one, as for `layer add`, nor
/// the other way round: a system whose `/bin` is a link would lose it.
fn lies_over(manifest: &Manifest, system: &mut Resolver, file: &LayerFile) -> Result<()> {
    let is_whiteout = |entry: &Entry| matches!(entry.kind, Kind::CharDevice(Node(0)));
    for entry in manifest.entries().iter().filter(|entry| !is_whiteout(entry)) {
        let Some(here) = system.look(&entry.path)? else { continue };
        let path = entry.path.clone();
        let source = match (entry.kind == Kind::Directory, here.is_dir()) {
            (false, true) => ComposeError::OverDirectory { path },
            (true, false) => ComposeError::NoDirectory { path },
            _ => continue,
        };
        return Err(LayerError::Compose { path: file.path().to_owned(), source }.into());
    }
    Ok(())
}

/// What a layer tells dpkg stands in a file of its own, which another layer may have here.
fn beside_other_updates(
    manifest: Manifest,
    name: &LayerName,
    system: &mut Resolver,
) -> Result<Manifest> {
    let updates = TreePath::new(dpkg::UPDATES.as_bytes()).expect("a constant");
    let mut entries = manifest.entries().to_vec();
    let mut changed = false;
    for entry in &mut entries {
        let ours = entry.path.parent().is_some_and(|parent| parent == updates)
            && entry.path.name().to_str().is_some_and(dpkg::is_update)
            && matches!(entry.kind, Kind::Regular { .. });
        if ours && system.look(&entry.path)?.is_some() {
            entry.path = update_path(system, name)?;
            changed = true;
        }
    }
    if !changed {
        return Ok(manifest);
    }
    Ok(Manifest::from_entries(entries).map_err(ScanError::Manifest)?)
}

/// Takes the layer's contents out of incoming/, those that are begun as well.
fn forget(device: &Device, manifest: &Manifest) -> Result<()> {
    let ours: BTreeSet<String> =
        manifest.contents().map(|(digest, _)| ContentDigest::to_hex(&digest)).collect();
    let incoming = device.store.incoming();
    for entry in incoming.names()? {
        let name = entry.name.to_string_lossy();
        let digest = name.trim_start_matches('.').split('.').next().unwrap_or_default();
        if ours.contains(digest) {
            incoming.unlink(&entry.name)?;
        }
    }
    Ok(())
}

fn digest_of(file: &std::fs::File) -> Result<ContentDigest> {
    let failed = |source| LayerError::Read { path: "what was written".into(), source };
    Ok(content::digest_of(file).map_err(failed)?)
}

/// What somebody else wrote, fit for a terminal.
fn printable(text: &str, longest: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(longest).collect()
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Cancelled(error) => error.into(),
            other => LayerError::File(other).into(),
        }
    }
}

impl From<ScanError> for Error {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Sys(error) => error.into(),
            ScanError::Cancelled(error) => error.into(),
            other => LayerError::Scan(other).into(),
        }
    }
}
