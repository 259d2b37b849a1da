//! Whether a machine could boot from a root, as far as that can be seen without booting:
//! an init is there, its loader is no dangling link, its libraries are found.
//!
//! Asked of the whole root with the own layers that are on. What the release alone does
//! not pass is not held against a layer: then nothing can be said. Callers: every change
//! of the own layers, and the upgrade, before they promote.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::Read;

use serde::Serialize;
use varve_format::LayerName;
use varve_format::deployment::OwnLayer;
use varve_rootfs::Deployment;
use varve_rootfs::resolve::Resolver;
use varve_sys::{Dir, SysError};

use super::elf;
use crate::device::Device;
use crate::error::Result;

/// Programs that the boot stage and the distributions' initramfs hand over to.
const INITS: [&[u8]; 4] = [b"sbin/init", b"etc/init", b"bin/init", b"usr/lib/systemd/systemd"];
/// The longest program that is read whole, in bytes.
const MAX_PROGRAM: u64 = 64 << 20;

/// What keeps a root from booting.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Problem {
    /// There is no init.
    NoInit,
    /// What a program is run by is not there.
    NoLoader {
        /// Which program.
        program: String,
        /// Its loader or interpreter.
        loader: String,
    },
    /// A library is not there.
    NoLibrary {
        /// What needs it.
        program: String,
        /// Which.
        library: String,
    },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoInit => f.write_str("there would be no /sbin/init"),
            Self::NoLoader { program, loader } => {
                write!(f, "{loader}, which runs {program}, would not be there")
            }
            Self::NoLibrary { program, library } => {
                write!(f, "{program} would not find {library}")
            }
        }
    }
}

/// A layer that is left out of the trial.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SwitchedOff {
    /// Which.
    pub layer: LayerName,
    /// What was wrong with it on.
    pub problem: Problem,
}

/// Looks at a root, newest layer first.
pub fn problem(root: Vec<Dir>) -> Result<Option<Problem>, SysError> {
    let mut root = Resolver::new(root);
    for path in INITS {
        let Some(file) = root.open(path)? else { continue };
        return program(&mut root, path, file);
    }
    Ok(Some(Problem::NoInit))
}

fn program(root: &mut Resolver, path: &[u8], file: File) -> Result<Option<Problem>, SysError> {
    let Some(bytes) = read(file, path)? else { return Ok(None) };
    if let Some(line) = bytes.strip_prefix(b"#!") {
        let line = line.split(|&b| b == b'\n').next().unwrap_or_default().trim_ascii();
        let loader = line.split(|b| b.is_ascii_whitespace()).next().unwrap_or_default();
        return match root.open(loader)? {
            Some(file) => program(root, loader, file),
            None => Ok(Some(no_loader(path, loader))),
        };
    }
    let Some(first) = elf::parse(&bytes) else { return Ok(None) };
    let mut loader_name = Vec::new();
    if let Some(loader) = &first.loader {
        if root.open(loader)?.is_none() {
            return Ok(Some(no_loader(path, loader)));
        }
        loader_name = loader.rsplit(|&b| b == b'/').next().unwrap_or_default().to_vec();
    }
    let places = places(root)?;
    let mut seen = BTreeSet::from([loader_name]);
    let mut queue = VecDeque::from([(path.to_vec(), first)]);
    while let Some((path, elf)) = queue.pop_front() {
        for name in &elf.needed {
            if !seen.insert(name.clone()) {
                continue;
            }
            let own = elf.run_path.iter().map(|place| origin(place, &path));
            let mut found = None;
            for place in own.chain(places.iter().cloned()) {
                let candidate = [&place[..], b"/", name].concat();
                if let Some(file) = root.open(&candidate)? {
                    found = Some((candidate, file));
                    break;
                }
            }
            let Some((candidate, file)) = found else {
                let library = shown(name);
                return Ok(Some(Problem::NoLibrary { program: shown_path(&path), library }));
            };
            if let Some(elf) = read(file, &candidate)?.and_then(|bytes| elf::parse(&bytes)) {
                queue.push_back((candidate, elf));
            }
        }
    }
    Ok(None)
}

/// A program's bytes; none of one that is too long to be an init.
fn read(file: File, path: &[u8]) -> Result<Option<Vec<u8>>, SysError> {
    let mut bytes = Vec::new();
    let read = file.take(MAX_PROGRAM + 1).read_to_end(&mut bytes);
    read.map_err(|error| SysError::new("read", shown_path(path), error))?;
    Ok((bytes.len() as u64 <= MAX_PROGRAM).then_some(bytes))
}

/// `$ORIGIN` is the directory of the file itself (ld.so(8)).
fn origin(place: &[u8], path: &[u8]) -> Vec<u8> {
    let dir = &path[..path.iter().rposition(|&b| b == b'/').unwrap_or(0)];
    for word in [&b"$ORIGIN"[..], b"${ORIGIN}"] {
        if let Some(rest) = place.strip_prefix(word) {
            return [dir, rest].concat();
        }
    }
    place.to_vec()
}

/// Where the loader looks: the directories of /etc/ld.so.conf and its .d, and the usual
/// ones with a directory for the architecture below each.
fn places(root: &mut Resolver) -> Result<Vec<Vec<u8>>, SysError> {
    let mut places: Vec<Vec<u8>> = Vec::new();
    let mut files: Vec<Vec<u8>> = vec![b"etc/ld.so.conf".to_vec()];
    files.extend(children(root, b"etc/ld.so.conf.d")?);
    for path in files {
        let Some(file) = root.open(&path)? else { continue };
        let Some(text) = read(file, &path)? else { continue };
        let lines = text.split(|&b| b == b'\n').map(<[u8]>::trim_ascii);
        places.extend(lines.filter(|line| line.starts_with(b"/")).map(<[u8]>::to_vec));
    }
    for dir in [&b"/lib"[..], b"/usr/lib", b"/lib64", b"/usr/lib64"] {
        places.push(dir.to_vec());
        for child in children(root, dir)? {
            let name = child.rsplit(|&b| b == b'/').next().unwrap_or_default();
            if name.windows(7).any(|part| part == b"-linux-") || name == b"systemd" {
                places.push(child);
            }
        }
    }
    Ok(places)
}

/// The paths directly below a directory, in any layer.
fn children(root: &mut Resolver, dir: &[u8]) -> Result<Vec<Vec<u8>>, SysError> {
    let Some(found) = root.follow(dir)?.filter(|found| found.is_dir()) else {
        return Ok(Vec::new());
    };
    let names = root.names(&found.path)?;
    let names = names.into_iter().map(|name| {
        use std::os::unix::ffi::OsStrExt;
        [dir, b"/", name.as_bytes()].concat()
    });
    Ok(names.collect())
}

fn no_loader(program: &[u8], loader: &[u8]) -> Problem {
    Problem::NoLoader { program: shown_path(program), loader: shown(loader) }
}

fn shown(bytes: &[u8]) -> String {
    varve_format::path::show(bytes)
}

fn shown_path(path: &[u8]) -> String {
    format!("/{}", shown(path).trim_start_matches('/'))
}

/// Switches off, in `own`, what would keep the machine from booting; says what and why.
/// `new` is a layer of the list that is not in its place yet.
pub(crate) fn switch_off(
    device: &Device,
    base: &Deployment,
    own: &mut [OwnLayer],
    new: Option<(LayerName, &Dir)>,
) -> Result<Vec<SwitchedOff>> {
    let store = &device.store;
    let root = |own: &[OwnLayer]| -> Result<Vec<Dir>> {
        let mut dirs = Vec::new();
        for layer in own.iter().filter(|layer| layer.on) {
            dirs.push(match &new {
                Some((name, dir)) if *name == layer.layer => dir.try_clone()?,
                _ => store.layer_tree(&layer.layer)?,
            });
        }
        dirs.extend(store.stack_dirs(&base.record.stack)?);
        Ok(dirs)
    };
    let mut off = Vec::new();
    let Some(mut found) = problem(root(own)?)? else { return Ok(off) };
    // What the release alone does not pass says nothing about a layer.
    if problem(root(&[])?)?.is_some() {
        return Ok(off);
    }
    loop {
        // One layer without which it boots; else the topmost goes, and on with the rest.
        let on: Vec<usize> = (0..own.len()).filter(|&at| own[at].on).collect();
        let mut culprit = on[0];
        for &at in &on {
            let mut without = own.to_vec();
            without[at].on = false;
            if problem(root(&without)?)?.is_none() {
                culprit = at;
                break;
            }
        }
        own[culprit].on = false;
        own[culprit].why = found.to_string();
        off.push(SwitchedOff { layer: own[culprit].layer.clone(), problem: found });
        match problem(root(own)?)? {
            Some(next) => found = next,
            None => return Ok(off),
        }
    }
}
