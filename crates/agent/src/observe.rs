//! What is: the selection, what booted, the deployments, what failed before, the room.
//! Looks only; [`Status`] is data, its JSON form is documented in the operator's guide.

use jiff::Timestamp;
use serde::Serialize;
use varve_boot::report::BootReport;
use varve_format::deployment::{Layout, OwnLayer, ReleaseRef, RootMode};
use varve_format::selection::Selection;
use varve_format::{DeploymentName, LayerName};
use varve_rootfs::Deployment;
use varve_rootfs::space::{Cost, Costs};
use varve_sys::space;
use varve_sys::{Dir, SysError};

use crate::device::{Device, DeviceError};
use crate::rejected::{Rejected, Rejection};
use crate::selection::{self, Problem};

/// The state of a device.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// What boots next.
    pub latest: Option<DeploymentName>,
    /// What boots when that fails, or when a key is held.
    pub previous: Option<DeploymentName>,
    /// How many more times the latest is tried; none: it is not on trial.
    pub tries: Option<u8>,
    /// Why there is no usable selection.
    pub selection_problem: Option<String>,
    /// What is running; none when this device is not.
    pub booted: Option<Booted>,
    /// What the running system shows since in its place (`apply --live`).
    pub live: Option<DeploymentName>,
    /// What is to be known of all this, first things first.
    pub situation: Vec<Situation>,
    /// Oldest first.
    pub deployments: Vec<DeploymentStatus>,
    /// Releases that failed here and are not tried again by themselves, oldest first.
    pub failed_releases: Vec<Rejection>,
    /// What each layer and tree takes, those of the stack that boots next first; none where
    /// that was not asked for.
    pub parts: Vec<PartStatus>,
    /// What `varve collect` would free.
    pub collectable: Collectable,
    /// Contents of an upgrade that was not finished.
    pub unfinished: Unfinished,
    /// The file system that holds `/varve`.
    pub space: SpaceStatus,
    /// What lies in `/varve` and is damaged or not Varve's.
    pub strange: Vec<String>,
}

/// The system that is running.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Booted {
    /// Which deployment.
    pub deployment: DeploymentName,
    /// Why: `latest`, `trial`, `previous`, `key-held`, `command-line`, `any-confirmed`,
    /// `last-resort`.
    pub reason: String,
    /// How many layers were left out.
    pub stripped: u32,
    /// What may be written at its root now.
    pub root_mode: RootMode,
    /// `uname -r`.
    pub kernel: String,
    /// The kernel is that of the boot before: it was a soft reboot.
    pub soft_reboot: bool,
    /// What the boot stage took.
    pub microseconds: u64,
    /// What should have booted before it and did not.
    pub passed_over: Vec<String>,
    /// What was not as it should be.
    pub warnings: Vec<String>,
}

/// One deployment.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeploymentStatus {
    /// Its name.
    pub name: DeploymentName,
    /// Its place in the device's order.
    pub number: u64,
    /// The release that it is.
    pub release: Option<ReleaseRef>,
    /// When it was staged, by the device's clock.
    pub created: Timestamp,
    /// How its root is held.
    pub layout: Layout,
    /// Its layers, newest first, or its tree.
    pub stack: Vec<String>,
    /// The layers of its user over that, newest first; those that are off too.
    pub own: Vec<OwnLayer>,
    /// For people; may be empty.
    pub title: String,
    /// It was found good once.
    pub confirmed: bool,
    /// Its user keeps it.
    pub pinned: bool,
    /// What it takes, its layers and its versioned state included; none where that was not
    /// asked for.
    pub cost: Option<Cost>,
}

/// One layer or tree.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PartStatus {
    /// Its name.
    pub name: LayerName,
    /// What it takes.
    pub cost: Cost,
}

/// What nothing needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Collectable {
    /// Deployments.
    pub deployments: usize,
    /// Layers and trees.
    pub parts: usize,
    /// Bytes that become free.
    pub bytes: u64,
}

/// What an interrupted upgrade left, verified, to be used by the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Unfinished {
    /// Files, finished or begun.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The room on a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SpaceStatus {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that may still be used.
    pub free: u64,
    /// Inodes that may still be used; none where they are made as needed.
    pub free_inodes: Option<u64>,
    /// Files may share blocks here, which `cost` counts for each of them.
    pub may_share_blocks: bool,
}

/// What the user should know, in the order of its weight.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Situation {
    /// There is no usable selection: the boot stage takes the newest good one.
    NoSelection {
        /// Why.
        why: String,
    },
    /// The latest used up its tries: the device is back on another one.
    TriesUsedUp {
        /// The one that did not come up.
        latest: DeploymentName,
        /// What runs.
        booted: DeploymentName,
    },
    /// The latest was passed over at this boot.
    PassedOver {
        /// The one that should have booted.
        latest: DeploymentName,
        /// What runs.
        booted: DeploymentName,
        /// Why.
        why: Vec<String>,
    },
    /// Somebody asked for another one, for this boot.
    AskedFor {
        /// What runs.
        booted: DeploymentName,
        /// What boots next time.
        latest: DeploymentName,
        /// By a held key; else on the kernel's command line.
        key: bool,
    },
    /// The latest runs, on trial.
    OnTrial {
        /// Which.
        latest: DeploymentName,
        /// Boots that it has left.
        tries: u8,
    },
    /// The latest waits for a reboot.
    RebootNeeded {
        /// What will boot.
        latest: DeploymentName,
        /// What runs.
        booted: DeploymentName,
    },
    /// The newest release that failed here, and why.
    RolledBack {
        /// Which release, why and when.
        release: Rejection,
    },
    /// Layers were left out at this boot.
    Stripped {
        /// How many.
        layers: u32,
    },
}

/// Everything that is looked at before a plan.
#[derive(Debug)]
pub struct Observed {
    /// The selection, or why there is none.
    pub selection: Result<Selection, Problem>,
    /// All deployments, oldest first.
    pub deployments: Vec<Deployment>,
    /// What was passed over in the store.
    pub strange: Vec<String>,
    /// What booted.
    pub boot: Option<BootReport>,
    /// What failed here before.
    pub rejected: Rejected,
}

impl Observed {
    /// Looks at a device.
    pub fn look(device: &Device) -> Result<Self, DeviceError> {
        let listing = device.store.deployments()?;
        let mut strange: Vec<_> =
            listing.strange.iter().map(|item| format!("{}: {}", item.path, item.why)).collect();
        let (rejected, damage) = Rejected::load(device.store.dir())?;
        strange.extend(damage.map(|why| format!("{}: {why}", crate::rejected::FILE)));
        let boot = match device.boot_report() {
            Err(DeviceError::BootReport { path, reason }) => {
                strange.push(format!("{}: {reason}", path.display()));
                None
            }
            other => other?,
        };
        Ok(Self {
            selection: selection::read(&device.store)?,
            deployments: listing.items,
            strange,
            boot,
            rejected,
        })
    }

    /// What is booted, if this device is running.
    pub fn booted(&self) -> Option<&DeploymentName> {
        self.boot.as_ref().map(|boot| &boot.deployment)
    }

    /// The selection, or what stands for it; none on a device with nothing good.
    pub fn effective_selection(&self) -> Option<Selection> {
        match &self.selection {
            Ok(selection) => Some(selection.clone()),
            Err(_) => selection::stand_in(&self.deployments, self.booted()),
        }
    }

    /// A deployment by name.
    pub fn deployment(&self, name: &DeploymentName) -> Option<&Deployment> {
        self.deployments.iter().find(|deployment| deployment.name() == name)
    }

    /// The deployment that boots next.
    pub fn latest(&self) -> Option<&Deployment> {
        self.deployment(&self.effective_selection()?.latest)
    }

    fn situation(&self) -> Vec<Situation> {
        let mut found = Vec::new();
        let selection = match &self.selection {
            Ok(selection) => Some(selection),
            Err(problem) => {
                found.push(Situation::NoSelection { why: problem.to_string() });
                None
            }
        };
        if let Some((selection, boot)) = selection.zip(self.boot.as_ref()) {
            found.extend(boot_situation(selection, boot));
        }
        if let Some(boot) = &self.boot
            && boot.stripped > 0
        {
            found.push(Situation::Stripped { layers: boot.stripped });
        }
        // Old news is no news: only what is newer than the latest, or was the last to fail.
        let latest = self.latest().and_then(|latest| latest.record.release.as_ref());
        let newer = |r: &&Rejection| latest.is_none_or(|latest| r.sequence > latest.sequence);
        let last = self.rejected.releases.last().filter(newer);
        found.extend(last.map(|release| Situation::RolledBack { release: release.clone() }));
        found
    }
}

fn boot_situation(selection: &Selection, boot: &BootReport) -> Option<Situation> {
    let (latest, booted) = (selection.latest.clone(), boot.deployment.clone());
    if latest == booted {
        return selection.tries.map(|tries| Situation::OnTrial { latest, tries });
    }
    if selection.tries == Some(0) {
        return Some(Situation::TriesUsedUp { latest, booted });
    }
    // The selection has changed since: what the boot stage saw is over.
    if boot.generation != Some(selection.generation) {
        return Some(Situation::RebootNeeded { latest, booted });
    }
    Some(match boot.reason.as_str() {
        "key-held" => Situation::AskedFor { booted, latest, key: true },
        "command-line" => Situation::AskedFor { booted, latest, key: false },
        _ => Situation::PassedOver { latest, booted, why: boot.passed_over.clone() },
    })
}

/// Looks at all of a device.
pub fn status(device: &Device) -> crate::error::Result<Status> {
    look(device, None)
}

/// The same with what everything takes, for which each inode is looked at: many thousand.
pub fn status_with_costs(device: &Device) -> crate::error::Result<Status> {
    look(device, Some(&varve_rootfs::space::costs(&device.store)?))
}

fn look(device: &Device, costs: Option<&Costs>) -> crate::error::Result<Status> {
    let observed = Observed::look(device)?;
    let going = crate::collect::plan(device, false)?;
    let room = space::space(device.store.dir())?;
    let selection = observed.selection.as_ref().ok();
    Ok(Status {
        latest: selection.map(|selection| selection.latest.clone()),
        previous: selection.and_then(|selection| selection.previous.clone()),
        tries: selection.and_then(|selection| selection.tries),
        selection_problem: observed.selection.as_ref().err().map(ToString::to_string),
        booted: observed.boot.as_ref().map(booted),
        live: crate::live::Live::read(device)?.present().cloned(),
        situation: observed.situation(),
        deployments: observed.deployments.iter().map(|d| deployment(d, costs)).collect(),
        parts: costs.map(|costs| parts(&observed, costs)).unwrap_or_default(),
        collectable: Collectable {
            deployments: going.deployments.len(),
            parts: going.layers.len() + going.trees.len(),
            bytes: going.bytes,
        },
        unfinished: unfinished(device.store.incoming())?,
        space: SpaceStatus {
            total: room.total,
            free: room.free,
            free_inodes: (room.free_inodes != u64::MAX).then_some(room.free_inodes),
            may_share_blocks: space::may_share_blocks(device.store.dir())?,
        },
        strange: observed.strange,
        failed_releases: observed.rejected.releases,
    })
}

fn booted(boot: &BootReport) -> Booted {
    Booted {
        deployment: boot.deployment.clone(),
        reason: boot.reason.clone(),
        stripped: boot.stripped,
        root_mode: boot.root_mode,
        kernel: boot.kernel.clone(),
        soft_reboot: boot.soft_reboot,
        microseconds: boot.microseconds,
        passed_over: boot.passed_over.clone(),
        warnings: boot.warnings.clone(),
    }
}

/// Each layer and tree: those of what boots next in their order, then the others.
fn parts(observed: &Observed, costs: &Costs) -> Vec<PartStatus> {
    let latest: Vec<&LayerName> =
        observed.latest().map(|latest| latest.record.parts().collect()).unwrap_or_default();
    let mut parts: Vec<_> = costs
        .parts
        .iter()
        .map(|(name, cost)| {
            let order = latest.iter().position(|part| *part == name).unwrap_or(usize::MAX);
            (order, PartStatus { name: name.clone(), cost: *cost })
        })
        .collect();
    parts.sort_by_key(|(order, _)| *order);
    parts.into_iter().map(|(_, part)| part).collect()
}

/// What is told of one deployment.
fn deployment(deployment: &Deployment, costs: Option<&Costs>) -> DeploymentStatus {
    let record = &deployment.record;
    let stack = match &record.stack {
        varve_format::deployment::Stack::Overlay { layers } => {
            layers.iter().map(ToString::to_string).collect()
        }
        varve_format::deployment::Stack::HardLink { tree } => vec![tree.to_string()],
    };
    DeploymentStatus {
        name: record.name.clone(),
        number: record.number,
        release: record.release.clone(),
        created: Timestamp::from_second(record.created).unwrap_or(Timestamp::UNIX_EPOCH),
        layout: record.stack.layout(),
        stack,
        own: record.own.clone(),
        title: record.title.clone(),
        confirmed: deployment.confirmed,
        pinned: deployment.pinned,
        cost: costs.map(|costs| costs.deployments.get(&record.name).copied().unwrap_or_default()),
    }
}

fn unfinished(incoming: &Dir) -> Result<Unfinished, SysError> {
    let mut unfinished = Unfinished::default();
    for entry in incoming.names()? {
        // Documents alone are no upgrade yet.
        if entry.name.as_encoded_bytes().ends_with(b".document") {
            continue;
        }
        if let Some(stat) = incoming.stat_opt(&entry.name)? {
            unfinished.files += 1;
            unfinished.bytes += stat.blocks * 512;
        }
    }
    Ok(unfinished)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DeploymentName {
        text.parse().unwrap()
    }

    fn boot(deployment: &str, reason: &str, generation: u64) -> BootReport {
        let text = format!(
            "format = 1\ndeployment = \"{deployment}\"\nlayout = \"overlay\"\nstack = []\n\
             root-mode = \"read-only\"\nreason = \"{reason}\"\ntry-spent = false\n\
             stripped = 0\ngeneration = {generation}\nkey-held = false\nmicroseconds = 0\n\
             kernel = \"\"\npassed-over = [\"b could not be put together: no layer\"]\n"
        );
        BootReport::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_a_boot_means() {
        let selection = |tries| Selection {
            generation: 7,
            latest: name("b"),
            previous: Some(name("a")),
            tries,
        };
        let see = |tries, booted: &str, reason: &str, generation| {
            boot_situation(&selection(tries), &boot(booted, reason, generation))
        };
        assert_eq!(see(None, "b", "latest", 7), None);
        assert!(matches!(see(Some(2), "b", "trial", 7), Some(Situation::OnTrial { tries: 2, .. })));
        assert!(matches!(see(Some(0), "a", "previous", 7), Some(Situation::TriesUsedUp { .. })));
        assert!(matches!(see(Some(3), "a", "latest", 6), Some(Situation::RebootNeeded { .. })));
        assert!(matches!(
            see(Some(2), "a", "key-held", 7),
            Some(Situation::AskedFor { key: true, .. })
        ));
        assert!(matches!(
            see(None, "a", "command-line", 7),
            Some(Situation::AskedFor { key: false, .. })
        ));
        assert!(matches!(see(Some(2), "a", "previous", 7), Some(Situation::PassedOver { .. })));
    }
}
