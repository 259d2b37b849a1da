//! A device as it lives on a disk: booted by the boot stage's own code, driven by the
//! update manager's, and looked at from outside.
//!
//! ```text
//! <site>/disk        the physical root file system
//! <site>/root        where the boot stage puts the system together
//! <site>/run/varve/  physical, memory, boot.toml
//! ```

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde_json::Value;
use varve_agent::device::{Device, Places, Writer};
use varve_agent::history::{self, Line};
use varve_agent::upgrade::Context;
use varve_boot::report::BootReport;
use varve_early::{Machine as Hardware, Outcome};
use varve_fetch::Patience;
use varve_format::DeploymentName;
use varve_format::tree::Kind;
use varve_rootfs::content;
use varve_rootfs::verify::{Contents, verify};
use varve_rootfs::{Deployment, Store};
use varve_sys::Dir;
use varve_sys::cmdline::CommandLine;
use varve_sys::mountinfo::parse_mountinfo;
use varve_sys::task::{Cancel, Silent};

use crate::acts;
use crate::scenario::{Finding, Site};

/// How often power fails in one life: the second time during the recovery.
const MOST_CUTS: usize = 2;

/// What is the same for all devices of a run.
#[derive(Debug)]
pub struct Machine<'a> {
    site: &'a Site,
    /// The clock: it stands still, so that nothing expires while states are judged.
    pub now: Timestamp,
    cancel: Cancel,
    patience: Patience,
}

/// A device that is booted, until it is shut down.
#[derive(Debug)]
pub struct Running {
    /// What the boot stage wrote.
    pub report: BootReport,
    root: PathBuf,
    run: PathBuf,
}

pub(crate) fn words<E: std::error::Error>(error: E) -> String {
    varve_sys::whole_message(&error)
}

impl<'a> Machine<'a> {
    /// The device on the disk of `site`.
    pub fn new(site: &'a Site, now: Timestamp) -> Self {
        // A directory does not become better by waiting.
        let patience = Patience { attempts: 1, first_pause: Duration::ZERO, ..Patience::default() };
        Self { site, now, cancel: Cancel::new(), patience }
    }

    /// What the update manager's functions are given.
    pub fn context(&self) -> Context<'_> {
        Context { now: self.now, progress: &Silent, cancel: &self.cancel, patience: &self.patience }
    }

    /// The configuration's file; it stands outside, as `/etc` would.
    pub fn config(&self) -> PathBuf {
        self.site.outside.join("varve.toml")
    }

    /// The places of the device while it is not running.
    pub fn at_rest(&self) -> Places {
        Places::at(&self.site.disk, &self.config())
    }

    /// The store, for a look from outside.
    pub fn store(&self) -> Result<Store, String> {
        let root = Dir::open(&self.site.disk).map_err(words)?;
        Store::open(&root).map_err(words)
    }

    fn beside(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.site.disk.with_file_name(name);
        std::fs::create_dir_all(&path).map_err(words)?;
        Ok(path)
    }

    /// Switches the device on: the boot stage runs, and what it chose must be whole, as
    /// its manifest says and as the kernel shows it.
    pub fn boot(&self) -> Result<Running, String> {
        let (root, run) = (self.beside("root")?, self.beside("run")?);
        rustix::mount::mount_bind(&self.site.disk, &root).map_err(words)?;
        let hardware = Hardware {
            input: run.join("no-keyboard"),
            consoles: Vec::new(),
            screens: Vec::new(),
            log_level: None,
            command_line: CommandLine::parse(b""),
            kernel: "6.1".to_owned(),
        };
        let booted = varve_early::run(&root, &run.join("varve"), &hardware, Instant::now());
        let report = match booted {
            Ok(Outcome::Booted(booted)) => booted.report,
            failed => {
                let clean = unmount_below(&root).and_then(|()| unmount_below(&run));
                clean.map_err(words)?;
                return Err(match failed {
                    Err(error) => format!("it does not boot: {}", words(error)),
                    _ => "it does not boot: there is no /varve".to_owned(),
                });
            }
        };
        let running = Running { report, root, run };
        let store = self.store()?;
        let deployment = store.deployment(&running.report.deployment).map_err(words)?;
        for finding in [whole(&store, &deployment), running.shows(&store, &deployment)] {
            finding.map_err(|why| format!("what boots is not whole: {why}"))?;
        }
        if !running.report.warnings.is_empty() {
            return Err(format!("the boot stage warns: {}", running.report.warnings.join("; ")));
        }
        Ok(running)
    }
}

impl Running {
    /// The places of the running device.
    pub fn places(&self, machine: &Machine<'_>) -> Places {
        Places {
            physical_root: self.run.join("varve/physical"),
            config: machine.config(),
            boot_report: Some(self.run.join("varve/boot.toml")),
            link: Default::default(),
            ballast: false,
        }
    }

    /// Opens the device for a change.
    pub fn open(&self, machine: &Machine<'_>) -> Result<(Device, Writer), String> {
        let device = Device::open(self.places(machine)).map_err(words)?;
        let writer = device.lock("powercut", machine.now).map_err(words)?;
        Ok((device, writer))
    }

    /// A path of the running system.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Whether the kernel shows the release's files: every content outside of state.
    fn shows(&self, store: &Store, deployment: &Deployment) -> Result<(), String> {
        let manifest = store.manifest(deployment.name()).map_err(words)?;
        let state: Vec<&Path> = ["etc", "home", "var"].iter().map(Path::new).collect();
        for entry in manifest.entries() {
            let Kind::Regular { digest: content, .. } = &entry.kind else { continue };
            let path = Path::new(OsStr::from_bytes(entry.path.as_bytes()));
            if state.iter().any(|state| path.starts_with(state)) {
                continue;
            }
            let found = File::open(self.root.join(path))
                .and_then(|file| content::digest_of(&file))
                .map_err(|error| format!("{}: {error}", entry.path))?;
            if found != *content {
                return Err(format!("the booted system shows another {}", entry.path));
            }
        }
        Ok(())
    }

    /// Takes the system apart, as a shutdown does.
    pub fn shut_down(self) -> Result<(), String> {
        unmount_below(&self.root).and_then(|()| unmount_below(&self.run)).map_err(words)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = unmount_below(&self.root);
        let _ = unmount_below(&self.run);
    }
}

/// Unmounts everything at and below a path: what lies below before what it lies on, which
/// may have been made after it; at one place the newest first.
fn unmount_below(path: &Path) -> std::io::Result<()> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    let mut mounts = parse_mountinfo(&text).map_err(std::io::Error::other)?;
    mounts.retain(|mount| mount.mount_point.starts_with(path));
    mounts.sort_by_key(|mount| mount.mount_point.components().count());
    let patience = Instant::now() + Duration::from_secs(5);
    for mount in mounts.iter().rev() {
        loop {
            match rustix::mount::unmount(&mount.mount_point, UnmountFlags::empty()) {
                // A program that another thread is just starting holds it for a moment.
                Err(Errno::BUSY) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                done => break done?,
            }
        }
    }
    Ok(())
}

/// Whether a deployment equals its manifest to the byte, and its manifest its record, and has its
/// own layers.
pub fn whole(store: &Store, deployment: &Deployment) -> Result<(), String> {
    let name = deployment.name();
    let manifest = store.manifest(name).map_err(|error| format!("{name}: {}", words(error)))?;
    if let Some(release) = &deployment.record.release
        && release.digest != manifest.digest()
    {
        return Err(format!("{name}: its manifest is not that of its release"));
    }
    let layers = store.stack_dirs(&deployment.record.stack);
    let layers = layers.map_err(|error| format!("{name}: {}", words(error)))?;
    let report = verify(layers, &manifest, Contents::Everything, &Silent, &Cancel::new());
    let report = report.map_err(|error| format!("{name}: {}", words(error)))?;
    for own in &deployment.record.own {
        let there = store.layer_tree(&own.layer);
        there.map_err(|error| format!("{name}: its layer {}: {}", own.layer, words(error)))?;
    }
    match report.differences.first() {
        Some(first) => Err(format!("{name}: {first} ({} differences)", report.count)),
        None => Ok(()),
    }
}

/// The versions of the four documents that a device trusts: root, timestamp, snapshot,
/// targets; 0 for what it has not seen.
pub fn trusted(store: &Store) -> Result<[u64; 4], String> {
    let bytes = store.dir().read("trust/state", 1 << 20).map_err(words)?;
    let state: Value = serde_json::from_slice(&bytes).map_err(words)?;
    let mut versions = [0; 4];
    for (version, role) in versions.iter_mut().zip(["root", "timestamp", "snapshot", "targets"]) {
        let Some(text) = state[role].as_str() else { continue };
        let document: Value = serde_json::from_str(text).map_err(words)?;
        *version = document["signed"]["version"].as_u64().unwrap_or(0);
    }
    Ok(versions)
}

/// What must hold on any disk that a cut left, whatever was being done: seen without
/// changing it.
pub fn look(store: &Store) -> Vec<Finding> {
    let mut findings = Vec::new();
    let listing = match store.deployments() {
        Ok(listing) => listing,
        Err(error) => return vec![words(error)],
    };
    for strange in listing.strange {
        findings.push(format!("deployments/{}: {}", strange.path, strange.why));
    }
    for deployment in &listing.items {
        findings.extend(whole(store, deployment).err());
    }
    match varve_agent::selection::read(store) {
        Ok(Ok(selection)) => {
            for name in std::iter::once(&selection.latest).chain(&selection.previous) {
                if !listing.items.iter().any(|deployment| deployment.name() == name) {
                    findings.push(format!("the selection names {name}, which is not there"));
                }
            }
        }
        Ok(Err(problem)) => findings.push(format!("the selection: {problem}")),
        Err(error) => findings.push(words(error)),
    }
    match history::read(store.dir()) {
        Ok(lines) => {
            // A cut may tear the line that is being written; the next one closes it.
            let torn = lines.iter().filter(|line| matches!(line, Line::Other(_))).count();
            if torn > MOST_CUTS {
                findings.push(format!("the history has {torn} broken lines"));
            }
        }
        Err(error) => findings.push(words(error)),
    }
    findings
}

impl Machine<'_> {
    /// Deletes what nothing needs, while nothing is mounted.
    pub fn collect(&self) -> Result<(), String> {
        let device = Device::open(self.at_rest()).map_err(words)?;
        let writer = device.lock("powercut", self.now).map_err(words)?;
        acts::collected(self, &device, &writer)
    }
}

/// What nothing needs and `collect` left behind.
pub fn lost_space(store: &Store) -> Result<Vec<String>, String> {
    let listing = store.deployments().map_err(words)?;
    let deployments: BTreeSet<String> =
        listing.items.iter().map(|deployment| deployment.name().to_string()).collect();
    let mut used = BTreeSet::new();
    for deployment in &listing.items {
        match &deployment.record.stack {
            varve_format::deployment::Stack::Overlay { layers } => {
                used.extend(layers.iter().map(|layer| format!("layers/{layer}")));
            }
            varve_format::deployment::Stack::HardLink { tree } => {
                used.insert(format!("trees/{tree}"));
            }
        }
        used.extend(deployment.record.own.iter().map(|own| format!("layers/{}", own.layer)));
        used.insert(format!("deployments/{}", deployment.name()));
    }
    let mut lost = Vec::new();
    for (dir, prefix) in [
        (store.layers_dir(), "layers"),
        (store.trees_dir(), "trees"),
        (store.deployments_dir(), "deployments"),
        (store.staging(), "staging"),
        (store.trash(), "trash"),
        (store.incoming(), "incoming"),
    ] {
        let names = dir.names().map_err(words)?.into_iter();
        let names = names.map(|name| format!("{prefix}/{}", name.name.to_string_lossy()));
        lost.extend(names.filter(|name| !used.contains(name)));
    }
    if let Some(versioned) = store.state().open_dir_opt("versioned").map_err(words)? {
        let names = versioned.names().map_err(words)?.into_iter();
        let names = names.map(|name| name.name.to_string_lossy().into_owned());
        let names = names.filter(|name| !deployments.contains(name));
        lost.extend(names.map(|name| format!("state/versioned/{name}")));
    }
    Ok(lost)
}

/// The deployment that holds a release of this name.
pub fn holds(store: &Store, release: &str) -> Result<Option<DeploymentName>, String> {
    let listing = store.deployments().map_err(words)?;
    let of = |deployment: &&Deployment| {
        deployment.record.release.as_ref().is_some_and(|r| r.name.as_str() == release)
    };
    Ok(listing.items.iter().rev().find(of).map(|deployment| deployment.name().clone()))
}
