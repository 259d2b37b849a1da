//! Varve's rows: packs alone first, then the delta, with more and less memory.

use super::ground::Ground;
use super::record::{Row, Way};
use super::{Add, ROUNDS, from_server};
use crate::bench::clients::Device;
use crate::bench::measure::{Cost, answered, cost, settle};
use crate::lab::{LAYOUTS, Publisher, STABLE};
use crate::project::{Result, output, step};
use crate::trees::remove;
use serde_json::Value;
use std::path::Path;

/// `[download]` for a device that may use so much; `None`: as much as there is any use for.
pub(crate) fn may_use(mebibytes: Option<u64>) -> String {
    format!("[download]\nmemory = \"{} MiB\"\n", mebibytes.unwrap_or(64 << 10))
}

/// The two releases published without a delta, and a device that has the first.
pub(crate) struct Stage {
    pub(crate) publisher: Publisher,
    pub(crate) device: Device,
    build: Cost,
}

impl Stage {
    pub(crate) fn new(ground: &Ground, scratch: &Path) -> Result<Self> {
        let publisher = Publisher::init(scratch, &ground.programs)?;
        publish(&publisher, &ground.old, "old", STABLE)?;
        let device = Device::new(&ground.programs, scratch, &publisher, "old", LAYOUTS[0])?;
        let build = publish(&publisher, &ground.new, "new", STABLE)?;
        Ok(Self { publisher, device, build })
    }

    /// Makes the delta and offers it.
    pub(crate) fn delta(&self, to: &str) -> Result<Cost> {
        settle();
        step(&format!("making the delta from old to {to}"), || {
            cost(self.publisher.command("delta").args(["old", to]))
        })
    }
}

/// Builds a release as a publisher does, at the usual level, and publishes it without deltas.
fn publish(publisher: &Publisher, tree: &Path, name: &str, channel: &str) -> Result<Cost> {
    settle();
    step(&format!("building and publishing {name}"), || {
        let build = cost(&publisher.build_command(tree, name))?;
        let words = [name, "--channel", channel, "--no-deltas"];
        output(publisher.command("publish").args(words))?;
        Ok(build)
    })
}

pub(super) fn run(ground: &Ground, add: &mut Add<'_>) -> Result {
    let scratch = ground.scratch("varve")?;
    let stage = Stage::new(ground, &scratch)?;
    let packs = upgrade(&stage, None)?;
    add.row(Way::VarvePacks, packs.made_by(stage.build))?;
    let made = stage.delta("new")?;
    let size = delta_size(&stage.publisher.repository)?;
    for (way, mebibytes) in
        [(Way::Varve, None), (Way::Varve256, Some(256)), (Way::Varve64, Some(64))]
    {
        let row = upgrade(&stage, mebibytes)?;
        add.row(way, Row { delta: Some(size), ..row.made_by(made) })?;
    }
    if let Some(third) = &ground.third {
        publish(&stage.publisher, third, "third", "another")?;
        add.second_delta(stage.delta("third")?.into())?;
    }
    remove(&scratch)
}

/// Upgrades the device from a server that counts.
fn upgrade(stage: &Stage, mebibytes: Option<u64>) -> Result<Row> {
    let mut note = String::new();
    let row = from_server(&stage.publisher.repository, ROUNDS, |url| {
        let (cost, said) = stage.device.upgrade(url, ("", &may_use(mebibytes)), answered)?;
        let said: Value = serde_json::from_str(&said)
            .map_err(|error| format!("varve upgrade did not answer in JSON: {error}: {said}"))?;
        if said["done"].is_null() {
            return Err(format!("varve upgrade did nothing: {said}").into());
        }
        let why = said["done"]["without-delta"].as_array();
        let why: Vec<_> = why.into_iter().flatten().filter_map(Value::as_str).collect();
        note = why.join("; ");
        Ok(cost)
    })?;
    Ok(Row { note, ..row })
}

/// The size of the one delta there is.
fn delta_size(repository: &Path) -> Result<u64> {
    let mut deltas = Vec::new();
    for entry in std::fs::read_dir(repository.join("deltas"))? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|end| end == "delta") {
            deltas.push(entry.metadata()?.len());
        }
    }
    match deltas[..] {
        [size] => Ok(size),
        _ => Err(format!("there are {} deltas where one was made", deltas.len()).into()),
    }
}
