//! `layer …`.

use serde::Serialize;
use varve_agent::layer::{self, Change, Changed, DiffEntry, LayerStatus, To};
use varve_format::LayerName;
use varve_term::Exit;

use super::{Answer, Session, reboot};
use crate::cli::layer::{Add, Capture, Layer, Move, Rename, Run, Which};
use crate::interrupt;
use crate::show::layer as show;

pub(crate) fn run(session: &Session<'_>, command: &Layer) -> Answer {
    match command {
        Layer::List => list(session),
        Layer::Show(which) => show_one(session, which),
        Layer::Diff(which) => diff(session, which),
        Layer::Capture(args) => capture(session, args),
        Layer::Add(args) => add(session, args),
        Layer::Run(args) => run_command(session, args),
        Layer::On(args) => {
            change(session, Change::On(args.layer.clone()), args.dry_run, args.reboot)
        }
        Layer::Off(args) => {
            change(session, Change::Off(args.layer.clone()), args.dry_run, args.reboot)
        }
        Layer::Remove(args) => {
            change(session, Change::Remove(args.layer.clone()), args.dry_run, args.reboot)
        }
        Layer::Move(args) => {
            change(session, Change::Move(args.layer.clone(), to(args)), args.dry_run, false)
        }
        Layer::Rename(args) => rename(session, args),
    }
}

fn list(session: &Session<'_>) -> Answer {
    let layers: Vec<LayerStatus> = layer::list(&session.device()?)?;
    session.answer(&layers, |layers| show::list(layers))?;
    Ok(Exit::Done)
}

fn show_one(session: &Session<'_>, which: &Which) -> Answer {
    let status = layer::show(&session.device()?, &which.layer)?;
    session.answer(&status, show::one)?;
    Ok(Exit::Done)
}

fn diff(session: &Session<'_>, which: &Which) -> Answer {
    let entries: Vec<DiffEntry> = layer::diff(&session.device()?, &which.layer)?;
    session.answer(&entries, |entries| show::diff(entries))?;
    Ok(Exit::Done)
}

fn capture(session: &Session<'_>, args: &Capture) -> Answer {
    let device = session.device()?;
    let writer = device.lock("layer capture", session.now)?;
    interrupt::busy();
    if !args.dry_run {
        varve_rootfs::stage::sweep(&device.store)?;
    }
    let context = session.context();
    let changed =
        layer::capture(&device, &writer, &args.name, &args.title, args.dry_run, &context)?;
    session.answer(&changed, show::changed)?;
    drop(writer);
    finish(&changed, args.reboot)
}

fn add(session: &Session<'_>, args: &Add) -> Answer {
    let device = session.device()?;
    let writer = device.lock("layer add", session.now)?;
    interrupt::busy();
    if !args.dry_run {
        varve_rootfs::stage::sweep(&device.store)?;
    }
    let (name, context) = (args.name.as_ref(), session.context());
    let added =
        layer::add(&device, &writer, name, &args.sources, &args.title, args.dry_run, &context)?;
    session.answer(&added, show::added)?;
    drop(writer);
    finish(&added.changed, args.reboot)
}

fn run_command(session: &Session<'_>, args: &Run) -> Answer {
    let device = session.device()?;
    let writer = device.lock("layer run", session.now)?;
    interrupt::busy();
    if !args.dry_run {
        varve_rootfs::stage::sweep(&device.store)?;
    }
    let (title, context) = (&args.title, session.context());
    let changed =
        layer::run(&device, &writer, &args.name, title, &args.command, args.dry_run, &context)?;
    session.answer(&changed, show::changed)?;
    Ok(Exit::Done)
}

fn to(args: &Move) -> To {
    match (&args.above, &args.below) {
        (Some(other), _) => To::Above(other.clone()),
        (_, Some(other)) => To::Below(other.clone()),
        _ if args.bottom => To::Bottom,
        _ => To::Top,
    }
}

fn change(session: &Session<'_>, change: Change, dry_run: bool, and_reboot: bool) -> Answer {
    let device = session.device()?;
    let writer = device.lock("layer", session.now)?;
    if !dry_run {
        varve_rootfs::stage::sweep(&device.store)?;
    }
    let changed = layer::change(&device, &writer, &change, dry_run, &session.context())?;
    session.answer(&changed, show::changed)?;
    drop(writer);
    finish(&changed, and_reboot)
}

fn finish(changed: &Changed, and_reboot: bool) -> Answer {
    if and_reboot && changed.deployment.is_some() {
        reboot()?;
    }
    Ok(Exit::Done)
}

/// What a layer is called now.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Renamed {
    /// Its name, which stays.
    pub layer: LayerName,
    /// Its title.
    pub title: String,
    /// Nothing was changed.
    pub dry_run: bool,
}

fn rename(session: &Session<'_>, args: &Rename) -> Answer {
    let device = session.device()?;
    let writer = device.lock("layer rename", session.now)?;
    let record = layer::rename(&device, &writer, &args.layer, &args.title, args.dry_run)?;
    let answer = Renamed { layer: record.name, title: record.title, dry_run: args.dry_run };
    session.answer(&answer, show::renamed)?;
    Ok(Exit::Done)
}
