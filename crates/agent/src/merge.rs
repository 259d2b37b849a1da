//! Merging by policy and by hand.

use varve_rootfs::Deployment;
use varve_rootfs::verify::Level;

use crate::announce::{self, Sign};
use crate::config::Verify;
use crate::device::{Device, Writer};
use crate::error::Result;
use crate::history::{Event, Record};
use crate::upgrade::Context;

/// Folds all layers of a deployment into one new base. What runs from the old layers is
/// not disturbed; they go when nothing is mounted on them.
pub fn merge(
    device: &Device,
    _writer: &Writer,
    deployment: &Deployment,
    context: &Context<'_>,
) -> Result<Deployment> {
    let layers = deployment.record.stack.layers().len();
    // What the merge links was verified when it was staged. With "full" the upgrade reads
    // all of it again when it plans what is laid upon it.
    let level = match device.config.verify {
        Verify::Full => Level::NewContents,
        Verify::New => Level::Structure,
    };
    let name = deployment.name();
    let record =
        Record::new(context.now, Event::Merge).with("deployment", name).with("layers", layers);
    announce::told(&device.store, record, Sign::restacked(deployment), |record| {
        let merged = varve_rootfs::merge::merge(
            &device.store,
            name,
            0..layers,
            context.now.as_second(),
            level,
            context.progress,
            context.cancel,
        )?;
        record.add("into", &merged.layer);
        Ok(merged.deployment)
    })
}
