//! Mends what the disk has damaged: what `varve fsck` finds.
//!
//! ```text
//! manifest     fetched again, if its release is still published
//! deployment   a layer over its own (overlay) or a new tree (hard link), which links what
//!              is good and holds anew what is not; compared with the manifest; then the
//!              deployment's record names it
//! incoming/    what is not what its name says is deleted
//! records      put back from their copies
//! selection    written anew, as the boot stage reads the disk without it
//! ```
//!
//! Nothing is written in place: an inode may be a file of several deployments, and one of
//! them may run. A content comes from where it is intact here; what no deployment has is
//! fetched, and nothing else. What could not be mended is told, and keeps nothing else from
//! being mended.

use serde::Serialize;
use varve_fetch::contents::{self, ContentsError};
use varve_fetch::metadata::DocumentError;
use varve_fetch::{Metadata, Sources, Trust, Verified};
use varve_format::DeploymentName;
use varve_format::deployment::ReleaseRef;
use varve_format::release::ReleaseRecord;
use varve_rootfs::layout::{self, Request, StagePlan};
use varve_rootfs::verify::Level;
use varve_rootfs::{Deployment, SourceCheck, StoreError};

use crate::announce::{self, Sign};
use crate::device::{Device, Writer};
use crate::error::{Error, Result};
use crate::history::{self, Event, Record};
use crate::lifecycle;
use crate::observe::Observed;
use crate::upgrade::{self, Context};

/// What was done.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Repaired {
    /// The deployments that were not whole, oldest first.
    pub deployments: Vec<Mended>,
    /// Records of deployments and layers that were put back from their copies, by their
    /// paths below `/varve`.
    pub records: Vec<String>,
    /// Names in incoming/ that were deleted: the next upgrade fetches them again.
    pub dropped: Vec<String>,
    /// Whether the selection was written anew.
    pub selection: bool,
    /// Bytes over the wire, metadata included.
    pub fetched: u64,
    /// What is damaged still, and why.
    pub left: Vec<String>,
}

/// A deployment that was not whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mended {
    /// Which.
    pub deployment: DeploymentName,
    /// Whether its manifest was damaged, and was fetched.
    pub manifest: bool,
    /// Differences to its manifest.
    pub differences: u64,
    /// Contents that were copied from where they were intact on this device.
    pub copied: u64,
    /// Contents that were fetched.
    pub fetched: u64,
}

impl Repaired {
    /// Whether all that was damaged is mended.
    pub fn is_complete(&self) -> bool {
        self.left.is_empty()
    }
}

/// Mends a device; one deployment alone when `only` names it.
pub fn repair(
    device: &Device,
    writer: &Writer,
    only: Option<&DeploymentName>,
    context: &Context<'_>,
) -> Result<Repaired> {
    varve_rootfs::stage::sweep(&device.store)?;
    let records = varve_rootfs::records::restore(&device.store)?;
    for record in &records {
        let line = Record::new(context.now, Event::Repair).with("record", record);
        history::append(device.store.dir(), &line)?;
    }
    let observed = Observed::look(device)?;
    if let Some(only) = only
        && observed.deployment(only).is_none()
    {
        return Err(Error::NoDeployment { name: only.clone() });
    }
    let mut left = observed.strange.clone();
    let layers = device.store.layers()?.strange;
    left.extend(layers.into_iter().map(|item| format!("{}: {}", item.path, item.why)));
    left.extend(crate::fsck::trust_problem(device)?);
    let mut repaired = Repaired { records, left, ..Repaired::default() };
    if only.is_none() {
        repaired.dropped = upgrade::drop_damaged(&device.store, context)?;
        if observed.selection.is_err() {
            match lifecycle::mended_selection(device, writer, &observed, context) {
                Ok(_) => repaired.selection = true,
                Err(error) => repaired.left.push(varve_sys::whole_message(&error)),
            }
        }
    }
    let mut publisher = Publisher { device, context, opened: None };
    for deployment in &observed.deployments {
        let name = deployment.name();
        if only.is_some_and(|only| only != name) {
            continue;
        }
        match mend(device, deployment, &mut publisher) {
            Ok(mended) => repaired.deployments.extend(mended),
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) => {
                repaired.left.push(format!("{name}: {}", varve_sys::whole_message(&error)));
            }
        }
    }
    repaired.fetched = publisher.opened.map_or(0, |opened| opened.sources.traffic().bytes);
    Ok(repaired)
}

/// The sources, asked only when something is not on this device.
struct Publisher<'a> {
    device: &'a Device,
    context: &'a Context<'a>,
    opened: Option<Opened>,
}

struct Opened {
    sources: Sources,
    metadata: Metadata,
}

impl Publisher<'_> {
    /// The record of a release that is here, and where its parts come from.
    fn record(&mut self, release: &ReleaseRef) -> Result<(Verified<ReleaseRecord>, &Sources)> {
        let Self { device, context, .. } = *self;
        if self.opened.is_none() {
            let sources = upgrade::open_sources(device, context)?;
            let dir = device.store.dir().make_dir("trust", 0o700)?;
            let metadata = Trust::open(&dir).refresh(&sources, context.now, context.cancel)?;
            self.opened = Some(Opened { sources, metadata });
        }
        let Opened { sources, metadata } = self.opened.as_ref().expect("just opened");
        let same = |other: &&varve_fetch::ReleaseRef| other.digest == release.digest;
        let found = metadata.releases().iter().find(same);
        let name =
            &found.ok_or_else(|| DocumentError::NoSuchRelease { name: release.name.clone() })?.name;
        Ok((metadata.record(name, sources, context.cancel)?, sources))
    }
}

/// Mends one deployment; none: it was whole.
fn mend(
    device: &Device,
    deployment: &Deployment,
    publisher: &mut Publisher<'_>,
) -> Result<Option<Mended>> {
    let context = publisher.context;
    let store = &device.store;
    let name = deployment.name();
    let release = deployment.record.release.as_ref();
    let mut mended =
        Mended { deployment: name.clone(), manifest: false, differences: 0, copied: 0, fetched: 0 };
    let manifest = match store.manifest(name) {
        Ok(manifest) => manifest,
        // What no release describes cannot be told to be damaged.
        Err(StoreError::NoManifest { .. }) if release.is_none() => return Ok(None),
        Err(error) => {
            let Some(release) = release else { return Err(error.into()) };
            let (record, sources) = publisher.record(release)?;
            let (_, text) = varve_fetch::manifest(&record, sources, context.cancel)?;
            store.mend_manifest(name, &text)?;
            mended.manifest = true;
            store.manifest(name)?
        }
    };
    let layout = layout::of(deployment.record.stack.layout());
    let plan = layout.plan(&Request {
        store,
        base: Some(deployment),
        name,
        manifest: &manifest,
        check: SourceCheck::Contents,
        progress: context.progress,
        cancel: context.cancel,
    })?;
    if plan.damaged.is_empty() {
        return Ok(mended.manifest.then_some(mended));
    }
    mended.differences = plan.damaged.len() as u64;
    mended.copied = plan.copied;
    mended.fetched = plan.fetch.len() as u64;
    fetch(device, release, &plan, publisher)?;
    let fetched: Vec<String> = plan.fetch.iter().map(|needed| needed.digest.to_hex()).collect();
    let record = Record::new(context.now, Event::Repair)
        .with("deployment", name)
        .with("differences", mended.differences)
        .with("copied", mended.copied)
        .with("fetched", mended.fetched);
    announce::told(store, record, Sign::restacked(deployment), |_| {
        let staged = layout.stage(store, plan, &manifest, context.progress, context.cancel)?;
        // What is linked was read while it was planned.
        let verified = staged.verify(Level::NewContents, context.progress, context.cancel)?;
        verified.replace(context.now.as_second())?;
        Ok::<_, Error>(())
    })?;
    for name in fetched {
        store.incoming().remove_all(name)?;
    }
    Ok(Some(mended))
}

/// Fetches the contents that no deployment has intact.
fn fetch(
    device: &Device,
    release: Option<&ReleaseRef>,
    plan: &StagePlan,
    publisher: &mut Publisher<'_>,
) -> Result<()> {
    let Some(first) = plan.fetch.first() else { return Ok(()) };
    let context = publisher.context;
    let Some(release) = release else {
        return Err(ContentsError::NotInPacks { digest: first.digest }.into());
    };
    let (record, sources) = publisher.record(release)?;
    let wanted = upgrade::plan_contents(device, &record, &plan.fetch, sources, context)?;
    let incoming = device.store.incoming();
    contents::fetch(&wanted, sources, incoming, context.progress, context.cancel).1?;
    Ok(())
}
