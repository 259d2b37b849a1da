//! `layer …`.

use serde::Serialize;
use varve_agent::layer::{self, Change, Changed, DiffEntry, Exported, LayerStatus, To};
use varve_agent::upgrade::Context;
use varve_agent::{Device, Writer};
use varve_format::LayerName;
use varve_term::Exit;

use super::{Answer, Session, reboot};
use crate::cli::layer::{self as cli, Add, Capture, Export, Import, Layer, Move, New, Rename};
use crate::cli::layer::{Run, Which};
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
        Layer::Export(args) => export(session, args),
        Layer::Import(args) => import(session, args),
        Layer::On(args) => change(session, Change::On(args.layer.clone()), &args.change),
        Layer::Off(args) => change(session, Change::Off(args.layer.clone()), &args.change),
        Layer::Remove(args) => change(session, Change::Remove(args.layer.clone()), &args.change),
        Layer::Move(args) => {
            change(session, Change::Move(args.layer.clone(), to(args)), &args.change)
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

/// Makes a layer, and lets the next boot try it.
fn make<T: Serialize>(
    session: &Session<'_>,
    command: &str,
    new: &New,
    make: impl FnOnce(&Device, &Writer, &Context<'_>) -> varve_agent::Result<T>,
    changed: impl FnOnce(&T) -> &Changed,
    shown: impl FnOnce(&T) -> String,
) -> Answer {
    let device = session.device()?;
    let writer = device.lock(command, session.now)?;
    interrupt::busy();
    if !new.change.dry_run {
        varve_rootfs::stage::sweep(&device.store)?;
    }
    let made = make(&device, &writer, &session.context())?;
    session.answer(&made, shown)?;
    drop(writer);
    finish(changed(&made), new.change.reboot)
}

fn capture(session: &Session<'_>, args: &Capture) -> Answer {
    let Capture { name, new } = args;
    let (title, dry_run) = (&new.title, new.change.dry_run);
    let capture = |device: &Device, writer: &Writer, context: &Context<'_>| {
        layer::capture(device, writer, name, title, dry_run, context)
    };
    make(session, "layer capture", new, capture, |changed| changed, show::changed)
}

fn add(session: &Session<'_>, args: &Add) -> Answer {
    let Add { sources, name, new } = args;
    let (title, dry_run) = (&new.title, new.change.dry_run);
    let add = |device: &Device, writer: &Writer, context: &Context<'_>| {
        layer::add(device, writer, name.as_ref(), sources, title, dry_run, context)
    };
    make(session, "layer add", new, add, |added| &added.changed, show::added)
}

fn run_command(session: &Session<'_>, args: &Run) -> Answer {
    let Run { name, new, command } = args;
    let (title, dry_run) = (&new.title, new.change.dry_run);
    let run = |device: &Device, writer: &Writer, context: &Context<'_>| {
        layer::run(device, writer, name, title, command, dry_run, context)
    };
    make(session, "layer run", new, run, |changed| changed, show::changed)
}

fn import(session: &Session<'_>, args: &Import) -> Answer {
    let Import { file, trust, name, new } = args;
    let (name, title, dry_run) = (name.as_ref(), &new.title[..], new.change.dry_run);
    let import = layer::Import { file, trust, name, title, dry_run };
    let import = |device: &Device, writer: &Writer, context: &Context<'_>| {
        layer::import(device, writer, &import, context)
    };
    make(session, "layer import", new, import, |imported| &imported.changed, show::imported)
}

fn export(session: &Session<'_>, args: &Export) -> Answer {
    let device = session.device()?;
    let writer = device.lock("layer export", session.now)?;
    interrupt::busy();
    let exported: Exported =
        layer::export(&device, &writer, &args.layer, &args.file, &session.context())?;
    session.answer(&exported, show::exported)?;
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

fn change(session: &Session<'_>, change: Change, args: &cli::Change) -> Answer {
    let device = session.device()?;
    let writer = device.lock("layer", session.now)?;
    if !args.dry_run {
        varve_rootfs::stage::sweep(&device.store)?;
    }
    let changed = layer::change(&device, &writer, &change, args.dry_run, &session.context())?;
    session.answer(&changed, show::changed)?;
    drop(writer);
    finish(&changed, args.reboot)
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
