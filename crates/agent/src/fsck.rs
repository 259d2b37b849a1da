//! A full check of what is on the disk: every deployment against its manifest, to the
//! last byte and attribute; every content that waits in incoming/; the records.
//!
//! Reads only. A content that is damaged in one deployment is named with where an intact
//! copy may come from, since an upgrade replaces what it finds damaged in its base.

use serde::Serialize;
use varve_fetch::Trust;
use varve_format::DeploymentName;
use varve_rootfs::content;
use varve_rootfs::verify::{self, Contents};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::observe::Observed;
use crate::upgrade::Context;

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Found {
    /// Each deployment that was compared, oldest first.
    pub deployments: Vec<Checked>,
    /// Names in incoming/ that are not what they say.
    pub bad_incoming: Vec<String>,
    /// Names in incoming/ that were read.
    pub incoming: u64,
    /// What is wrong with records and the selection.
    pub records: Vec<String>,
}

/// One deployment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Checked {
    /// Which.
    pub deployment: DeploymentName,
    /// Paths compared.
    pub paths: u64,
    /// Bytes read.
    pub bytes: u64,
    /// How many differences there are.
    pub differences: u64,
    /// The first of them, a sentence each.
    pub shown: Vec<String>,
    /// Why it could not be compared.
    pub problem: Option<String>,
}

impl Found {
    /// Whether all is as it should be.
    pub fn is_clean(&self) -> bool {
        let clean = |d: &Checked| d.differences == 0 && d.problem.is_none();
        self.deployments.iter().all(clean)
            && self.bad_incoming.is_empty()
            && self.records.is_empty()
    }
}

/// Checks a device; one deployment alone when `only` names it.
pub fn fsck(
    device: &Device,
    only: Option<&DeploymentName>,
    context: &Context<'_>,
) -> Result<Found> {
    let observed = Observed::look(device)?;
    let mut found = Found { records: observed.strange.clone(), ..Found::default() };
    if let Err(problem) = &observed.selection {
        found.records.push(problem.to_string());
    }
    if let Some(only) = only
        && observed.deployment(only).is_none()
    {
        return Err(Error::NoDeployment { name: only.clone() });
    }
    for deployment in &observed.deployments {
        let name = deployment.name();
        if only.is_none_or(|only| only == name) {
            found.deployments.push(check(device, deployment, context)?);
        }
    }
    if only.is_none() {
        let strange = device.store.layers()?.strange;
        found.records.extend(strange.into_iter().map(|s| format!("{}: {}", s.path, s.why)));
        found.records.extend(trust_problem(device)?);
        check_incoming(device, &mut found, context)?;
    }
    Ok(found)
}

/// What is wrong with the saved trust: an upgrade would be refused, and only who made the
/// device can say again what it is to trust.
pub(crate) fn trust_problem(device: &Device) -> Result<Option<String>> {
    let dir = device.store.dir().open_dir_opt("trust")?;
    Ok(dir.and_then(|dir| Trust::open(&dir).damage()))
}

fn check(
    device: &Device,
    deployment: &varve_rootfs::Deployment,
    context: &Context<'_>,
) -> Result<Checked> {
    let name = deployment.name();
    let mut checked = Checked {
        deployment: name.clone(),
        paths: 0,
        bytes: 0,
        differences: 0,
        shown: Vec::new(),
        problem: None,
    };
    let opened = device
        .store
        .manifest(name)
        .and_then(|manifest| Ok((manifest, device.store.stack_dirs(&deployment.record.stack)?)));
    let (manifest, layers) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            checked.problem = Some(varve_sys::whole_message(&error));
            return Ok(checked);
        }
    };
    let (progress, cancel) = (context.progress, context.cancel);
    let report = verify::verify(layers, &manifest, Contents::Everything, progress, cancel)?;
    checked.paths = report.paths;
    checked.bytes = report.bytes_read;
    checked.differences = report.count;
    checked.shown = report.differences.iter().map(ToString::to_string).collect();
    Ok(checked)
}

fn check_incoming(device: &Device, found: &mut Found, context: &Context<'_>) -> Result<()> {
    for entry in device.store.incoming().names()? {
        context.cancel.check()?;
        let name = entry.name.to_string_lossy().into_owned();
        let Ok(digest) = name.parse() else { continue };
        found.incoming += 1;
        if !is_intact(device.store.incoming(), &entry.name, digest) {
            found.bad_incoming.push(name);
        }
    }
    Ok(())
}

/// Whether a file holds the content that its name says.
pub(crate) fn is_intact(
    dir: &varve_sys::Dir,
    name: &std::ffi::OsStr,
    digest: varve_format::ContentDigest,
) -> bool {
    let Ok(file) = dir.open_file(name) else { return false };
    content::digest_of(&file).is_ok_and(|found| found == digest)
}
