//! Directories, tars and Debian packages become one layer.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use varve_format::deployment::{LayerKind, OwnLayer};
use varve_format::tree::Metadata;
use varve_format::{LayerName, TreePath};
use varve_rootfs::compose::{Composed, Composer};
use varve_rootfs::resolve::Resolver;
use varve_sys::Dir;
use varve_sys::task::Unit;

use super::archive::{self, Budget, Rules};
use super::deb::{self, Package};
use super::{
    Changed, LayerError, Proposed, base, begin, dpkg, kept, or_abandon, propose, record_of,
};
use crate::device::{Device, Writer};
use crate::error::{Error, Result};
use crate::observe::Observed;
use crate::upgrade::Context;

/// What was added.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Added {
    /// The change of the stack.
    #[serde(flatten)]
    pub changed: Changed,
    /// Paths in the layer.
    pub paths: u64,
    /// Bytes of their contents.
    pub bytes: u64,
    /// The Debian packages among the sources.
    pub packages: Vec<Package>,
}

/// Makes a layer of all sources, a later one over an earlier one; its name is that of the
/// first, unless given.
pub fn add(
    device: &Device,
    writer: &Writer,
    name: Option<&LayerName>,
    sources: &[PathBuf],
    title: &str,
    dry_run: bool,
    context: &Context<'_>,
) -> Result<Added> {
    let observed = Observed::look(device)?;
    let base = base(&observed)?;
    let name = match name {
        Some(name) => name.clone(),
        None => name_of(sources.first().map_or(Path::new("layer"), PathBuf::as_path))?,
    };
    let draft = begin(device, base, &name)?;
    context.progress.begin("adding", Unit::Steps, Some(sources.len() as u64));
    let filled = fill(device, base, &name, sources, draft.tree(), context);
    let (draft, (composed, packages)) = or_abandon(draft, filled)?;
    context.progress.end();
    let shown: Vec<_> = sources.iter().filter_map(|source| source.file_name()).collect();
    let shown: Vec<_> = shown.iter().map(|name| name.to_string_lossy()).collect();
    let made_by = format!("add {}", shown.join(" "));
    let record = record_of(&name, LayerKind::Local, base, made_by, &draft, context);
    let (draft, mut record) = or_abandon(draft, record)?;
    record.title = title.to_owned();
    let mut own = base.record.own.clone();
    own.insert(0, OwnLayer::on(name.clone()));
    let (state, what) = (kept(base), format!("add {name}"));
    let proposed = Proposed { own, state, fresh_root: false, what, layer: Some((draft, record)) };
    let changed = propose(device, writer, &observed, base, proposed, dry_run, context)?;
    Ok(Added { changed, paths: composed.paths, bytes: composed.bytes, packages })
}

/// A layer's name from a file's: what a name may not hold is left out.
fn name_of(source: &Path) -> Result<LayerName> {
    let stem = archive::stem(source);
    // A package's file is called name_version_architecture.
    let stem = stem.split('_').next().unwrap_or(&stem);
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "._+~-".contains(*c);
    let name: String = stem.chars().filter(allowed).take(90).collect();
    let name = name.trim_start_matches(['.', '-']);
    name.parse().map_err(|_| {
        let why = "no layer's name can be made of its name: give one with --name".to_owned();
        Error::from(LayerError::Source { path: source.to_owned(), why })
    })
}

fn fill(
    device: &Device,
    base: &varve_rootfs::Deployment,
    name: &LayerName,
    sources: &[PathBuf],
    tree: &Dir,
    context: &Context<'_>,
) -> Result<(Composed, Vec<Package>)> {
    let mut composer = Composer::new(tree, device.store.root_dirs(&base.record)?);
    let mut system = Resolver::new(device.store.root_dirs(&base.record)?);
    let mut budget = Budget::of(device)?;
    let mut packages = Vec::new();
    let mut stanzas = Vec::new();
    let devices = &device.config.policy.devices;
    for source in sources {
        context.cancel.check()?;
        let rules = Rules { source, devices };
        let read = LayerError::read(source);
        let meta = std::fs::metadata(source).map_err(&read)?;
        if meta.is_dir() {
            archive::directory(&Dir::open(source)?, &mut composer, &mut budget, &rules)?;
        } else {
            let mut first = Vec::new();
            let file = File::open(source).map_err(&read)?;
            file.take(512).read_to_end(&mut first).map_err(&read)?;
            if first.starts_with(deb::MAGIC) {
                let (package, stanza) =
                    deb::add(source, &mut composer, &mut system, &mut budget, &rules)?;
                if package.registered {
                    stanzas.push(stanza.to_text());
                }
                packages.push(package);
            } else if archive::is_tar(&first) || archive::is_compressed(&first) {
                let file = File::open(source).map_err(&read)?;
                let stream = archive::plain(file).map_err(&read)?;
                archive::tar(stream, &mut composer, &mut budget, &rules)?;
            } else {
                return Err(rules.bad("it is no directory, no tar and no Debian package").into());
            }
        }
        context.progress.advance(1);
    }
    if !stanzas.is_empty() {
        let path = update_path(&mut system, name)?;
        let meta = Metadata { mode: 0o644, ..Metadata::default() };
        let text = stanzas.join("\n");
        let written = composer.file(&path, &meta, |file| file.write_all(text.as_bytes()));
        let source = sources.first().map_or(Path::new(""), PathBuf::as_path);
        written.map_err(|error| Rules { source, devices }.compose(error))?;
    }
    let rules = Rules { source: sources.first().map_or(Path::new(""), PathBuf::as_path), devices };
    Ok((composer.finish().map_err(|error| rules.compose(error))?, packages))
}

/// A free file for dpkg's updates.
pub(super) fn update_path(system: &mut Resolver, layer: &LayerName) -> Result<TreePath> {
    let updates = TreePath::new(dpkg::UPDATES.as_bytes()).expect("a constant");
    let taken = system.names(&updates)?;
    let taken: Vec<String> = taken.iter().map(|n| n.to_string_lossy().into_owned()).collect();
    let name = dpkg::update_name(layer.as_str(), &taken);
    Ok(updates.join(name.as_bytes()).expect("four digits"))
}
