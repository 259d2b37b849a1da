//! The records of deployments and layers, each twice: what boots is said by nothing else on
//! the disk, so what the disk does to one is mended from the other.
//!
//! ```text
//! deployments/<name>/deployment.toml        replaced durably; the one that counts
//! deployments/<name>/deployment.toml.copy   written after it, not synced
//! layers/<name>/layer.toml, layer.toml.copy the same
//! ```
//!
//! Nothing reads a copy but a repair, and that only where the record itself is damaged or
//! gone. A copy that a power cut left old, torn or missing is written again by the next
//! command that changes the device (`align`, of its sweep).

use std::path::PathBuf;

use varve_format::deployment::{DeploymentRecord, LayerRecord};
use varve_sys::{Dir, durable};

use crate::store::{LAYER_RECORD, MAX_RECORD, RECORD, Store, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// Writes a record and its copy into a directory that is being prepared.
pub(crate) fn write(dir: &Dir, name: &str, text: &str) -> varve_sys::Result<()> {
    for name in [name, &copy_of(name)] {
        dir.create_file(name, 0o644)?.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// Replaces a record, durably, then its copy.
pub(crate) fn replace(dir: &Dir, name: &str, text: &str) -> varve_sys::Result<()> {
    durable::replace_file(dir, name, text.as_bytes(), 0o644)?;
    write_copy(dir, name, text.as_bytes());
    Ok(())
}

fn copy_of(name: &str) -> String {
    format!("{name}.copy")
}

/// On a full disk there is none: the record counts, and the next sweep writes the copy.
fn write_copy(dir: &Dir, name: &str, bytes: &[u8]) {
    let copy = copy_of(name);
    let _ = dir.unlink(&copy);
    let written = dir.create_file(&copy, 0o644).and_then(|mut file| file.write_all(bytes));
    if written.is_err() {
        let _ = dir.unlink(&copy);
    }
}

/// Writes each copy that is not as its record, where the record is a good one.
pub(crate) fn align(store: &Store) -> Result<()> {
    for deployment in store.deployments()?.items {
        align_one(&store.deployments_dir().open_dir(deployment.name())?, RECORD)?;
    }
    for layer in store.layers()?.items {
        align_one(&store.layers_dir().open_dir(&layer.name)?, LAYER_RECORD)?;
    }
    Ok(())
}

fn align_one(dir: &Dir, name: &str) -> Result<()> {
    let bytes = dir.read(name, MAX_RECORD)?;
    if dir.read_opt(copy_of(name), MAX_RECORD).ok().flatten().as_deref() != Some(&bytes[..]) {
        write_copy(dir, name, &bytes);
    }
    Ok(())
}

/// Puts each record that is damaged or gone back from its copy: gives the files that were
/// written, relative to `/varve`. A copy that does not parse, is another's, or names a layer
/// or tree that is not here is left alone.
pub fn restore(store: &Store) -> Result<Vec<String>> {
    let mut restored = Vec::new();
    // Layers first: a deployment's record is believed when what it names is here.
    for dir in named(store.layers_dir())? {
        let (name, dir) = dir?;
        let read = |bytes: &[u8]| {
            LayerRecord::parse(bytes).ok().filter(|record| record.name.as_str() == name)
        };
        restored.extend(put_back(&dir, LAYER_RECORD, read, |_| true)?);
    }
    for dir in named(store.deployments_dir())? {
        let (name, dir) = dir?;
        let read = |bytes: &[u8]| {
            DeploymentRecord::parse(bytes).ok().filter(|record| record.name.as_str() == name)
        };
        let usable = |record: &DeploymentRecord| store.root_dirs(record).is_ok();
        restored.extend(put_back(&dir, RECORD, read, usable)?);
    }
    Ok(restored)
}

/// The directories below one that have a name of ours.
fn named(parent: &Dir) -> Result<impl Iterator<Item = Result<(String, Dir)>>> {
    let names = parent.names()?.into_iter().filter_map(|entry| entry.name.into_string().ok());
    let names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    let open = |name: String| Ok(parent.open_dir_opt(&name)?.map(|dir| (name, dir)));
    Ok(names.into_iter().filter_map(move |name| open(name).transpose()))
}

fn put_back<T>(
    dir: &Dir,
    name: &str,
    parse: impl Fn(&[u8]) -> Option<T>,
    usable: impl Fn(&T) -> bool,
) -> Result<Option<String>> {
    let read = |name: &str| dir.read_opt(name, MAX_RECORD).ok().flatten();
    if read(name).is_some_and(|bytes| parse(&bytes).is_some()) {
        return Ok(None);
    }
    let good = |bytes: &Vec<u8>| parse(bytes).is_some_and(|record| usable(&record));
    let Some(copy) = read(&copy_of(name)).filter(good) else { return Ok(None) };
    durable::replace_file(dir, name, &copy, 0o644)?;
    let mut place: Vec<_> = dir.path().components().rev().take(2).collect();
    place.reverse();
    let place: PathBuf = place.into_iter().collect();
    Ok(Some(place.join(name).display().to_string()))
}
