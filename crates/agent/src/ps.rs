//! What runs from what: for each process, the deployment and the layer that its
//! executable, its libraries, its open files, its directories come from.
//!
//! ```text
//! /proc/PID/{exe,root,cwd,fd/N,map_files/A-B} --statx--> mount id
//!                                                           | /proc/PID/mountinfo
//!                                                           v
//!   overlay: its upper has the path?  state      bind: varve/trees/T/..   tree T
//!            else its first lower that has it          varve/state/..     state
//!                    layers/L/tree  -> layer L         else               not ours
//! ```
//!
//! A mount of another device, which may have deployments and layers of the same names, is not
//! ours either: an overlay tells by its source, a bind by its file system and path.
//!
//! Read-only, and as right as a moment can be: processes come and go while it looks; one
//! that is gone is left out. Callers: `varve ps`; `collect`, so that nothing is deleted
//! on which anybody still stands.

mod mounts;

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use varve_format::DeploymentName;
use varve_rootfs::Deployment;
use varve_sys::Dir;

pub(crate) use mounts::is_of_layers;
use mounts::{Mount, Mounts, Own};
pub use mounts::{Origin, all_mounts};

/// In what way a process holds a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum How {
    /// What it runs.
    Executable,
    /// Mapped into its memory.
    Library,
    /// Open.
    OpenFile,
    /// Its root directory.
    Root,
    /// Its working directory.
    WorkingDirectory,
}

/// One file or directory that a process holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Use {
    /// In what way.
    pub how: How,
    /// Its path, as the process sees it.
    pub path: PathBuf,
    /// The part of the device's system that it comes from.
    pub origin: Origin,
    /// The deployment whose mount it was opened through.
    pub deployment: Option<DeploymentName>,
    /// It is no longer there under this name: deleted or replaced since.
    pub deleted: bool,
}

/// One process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name (`comm`).
    pub name: String,
    /// What it holds of the device's system, each once.
    pub uses: Vec<Use>,
}

impl Process {
    /// The deployments that it stands on.
    pub fn deployments(&self) -> BTreeSet<&DeploymentName> {
        self.uses.iter().filter_map(|held| held.deployment.as_ref()).collect()
    }

    /// Layers, trees and state that it holds, with how many files of each.
    pub fn counts(&self) -> Vec<(How, &Origin, usize)> {
        let mut counts: Vec<(How, &Origin, usize)> = Vec::new();
        for held in &self.uses {
            let same = |(how, origin, _): &&mut (How, &Origin, usize)| {
                *how == held.how && *origin == &held.origin
            };
            match counts.iter_mut().find(same) {
                Some((_, _, count)) => *count += 1,
                None => counts.push((held.how, &held.origin, 1)),
            }
        }
        counts.sort();
        counts
    }
}

/// Looks at every process that stands on this device's system. `proc` is `/proc`;
/// `varve` the open `/varve`; `booted` what the boot stage says it booted, `live` what was
/// shown since in its place.
pub fn processes(
    proc: &Path,
    varve: &Dir,
    deployments: &[Deployment],
    booted: Option<&DeploymentName>,
    live: Option<&DeploymentName>,
) -> std::io::Result<Vec<Process>> {
    let own = Own::of(varve, proc);
    let mut look = Look { varve, own, deployments, booted, live, namespaces: HashMap::new() };
    let mut pids: Vec<u32> = std::fs::read_dir(proc)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let processes = pids.into_iter().filter_map(|pid| look.process(proc, pid));
    Ok(processes.filter(|process| !process.uses.is_empty()).collect())
}

struct Look<'a> {
    varve: &'a Dir,
    own: Own,
    deployments: &'a [Deployment],
    booted: Option<&'a DeploymentName>,
    live: Option<&'a DeploymentName>,
    /// The mounts of each mount namespace, by its link's text.
    namespaces: HashMap<OsString, Mounts>,
}

impl Look<'_> {
    /// None when it is gone meanwhile, or is a kernel thread.
    fn process(&mut self, proc: &Path, pid: u32) -> Option<Process> {
        let dir = proc.join(pid.to_string());
        let exe = std::fs::read_link(dir.join("exe")).ok()?;
        let name = std::fs::read(dir.join("comm")).ok()?;
        let name = String::from_utf8_lossy(&name).trim_end().to_owned();
        let namespace = std::fs::read_link(dir.join("ns/mnt")).ok()?.into_os_string();
        if !self.namespaces.contains_key(&namespace) {
            let text = std::fs::read(dir.join("mountinfo")).ok()?;
            self.namespaces.insert(namespace.clone(), Mounts::parse(&text, &self.own)?);
        }
        let root = std::fs::read_link(dir.join("root")).ok()?;
        let root_mount = mounts::mount_id(&dir.join("root"));
        let mut uses = Vec::new();
        let mut held = |how, link: &Path, target: PathBuf| {
            let mounts = self.namespaces.get_mut(&namespace)?;
            let found = mounts.find(mounts::mount_id(link), &target)?;
            let (path, deleted) = without_deleted(&target);
            let within = found.relative(&path)?;
            let origin = found.origin(self.varve, &within, deleted);
            let deployment = match origin {
                Origin::Other => return None,
                _ => {
                    // A part of the system that is mounted by itself is what was shown live.
                    let is_root = root_mount == Some(found.id());
                    let live = self.live.filter(|_| !is_root && found.shows_a_part());
                    let likely = live.or(self.booted);
                    self::deployment_of(found, root_mount, self.deployments, likely)
                }
            };
            uses.push(Use { how, path, origin, deployment, deleted });
            Some(())
        };
        held(How::Root, &dir.join("root"), root.clone());
        if let Ok(target) = std::fs::read_link(dir.join("cwd"))
            && target != root
        {
            held(How::WorkingDirectory, &dir.join("cwd"), target);
        }
        held(How::Executable, &dir.join("exe"), exe.clone());
        for (range, path) in mapped(&std::fs::read(dir.join("maps")).unwrap_or_default()) {
            if path != exe {
                held(How::Library, &dir.join("map_files").join(range), path);
            }
        }
        let mut seen = BTreeSet::new();
        for entry in std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten() {
            let link = entry.path();
            if let Ok(target) = std::fs::read_link(&link)
                && target.is_absolute()
                && seen.insert(target.clone())
            {
                held(How::OpenFile, &link, target);
            }
        }
        Some(Process { pid, name, uses })
    }
}

/// The deployment whose mount this is. A stack that is exactly a deployment's decides;
/// a mount that shows a part of it (a state path) goes with what is booted, if that can
/// be, else with the newest that it can belong to.
fn deployment_of(
    mount: &Mount,
    root_mount: Option<u64>,
    deployments: &[Deployment],
    booted: Option<&DeploymentName>,
) -> Option<DeploymentName> {
    if let Some(named) = mount.state_of() {
        return Some(named.clone());
    }
    let parts = mount.parts();
    let stack = |deployment: &Deployment| mounts::root_parts(&deployment.record);
    let exact = deployments.iter().filter(|deployment| stack(deployment) == parts);
    let candidates: Vec<_> = exact.collect();
    let candidates = if candidates.is_empty() {
        let holds = |d: &&Deployment| parts.iter().all(|part| stack(d).contains(part));
        deployments.iter().filter(holds).collect()
    } else {
        candidates
    };
    let is_booted = |d: &&&Deployment| booted == Some(d.name());
    if let Some(found) = candidates.iter().find(is_booted).or(candidates.last()) {
        return Some(found.name().clone());
    }
    // Its record was changed under it (a merge): the system's own root is what is booted.
    booted.filter(|_| root_mount.is_some_and(|id| id == mount.id())).cloned()
}

/// The files that are mapped, each once: `(start-end, path)`.
fn mapped(maps: &[u8]) -> Vec<(String, PathBuf)> {
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    let mut seen = BTreeSet::new();
    for line in maps.split(|&b| b == b'\n') {
        let mut fields = line.splitn(6, |&b| b == b' ');
        let Some(range) = fields.next() else { continue };
        let Some(rest) = fields.nth(4) else { continue };
        let path = rest.trim_ascii_start();
        if path.first() == Some(&b'/') && seen.insert(path.to_owned()) {
            let path = PathBuf::from(OsStr::from_bytes(&unescape_newlines(path)));
            files.push((String::from_utf8_lossy(range).into_owned(), path));
        }
    }
    files
}

/// In `maps` alone, a newline in a name is `\012`.
fn unescape_newlines(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"\\012") {
            plain.push(b'\n');
            rest = after;
        } else {
            plain.push(*first);
            rest = tail;
        }
    }
    plain
}

/// The kernel marks a name that is gone by a word behind it.
fn without_deleted(target: &Path) -> (PathBuf, bool) {
    match target.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(path) => (PathBuf::from(OsStr::from_bytes(path)), true),
        None => (target.to_owned(), false),
    }
}

#[cfg(test)]
mod tests;
