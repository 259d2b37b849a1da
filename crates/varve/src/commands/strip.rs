//! `strip`, `bisect`.

use std::io::IsTerminal;
use std::time::Duration;

use serde::Serialize;
use varve_agent::observe::Observed;
use varve_agent::strip::{self, Kept, StripError};
use varve_agent::{Device, Error, bisect};
use varve_boot::menu::{Choice, Key, Menu};
use varve_format::probe::{self, Judge, Verdict, Way};
use varve_format::{DeploymentName, LayerName};
use varve_sys::console::Screen;
use varve_term::{Exit, Form};

use super::{Answer, Session, reboot};
use crate::cli::{Bisect, BisectAct, Strip};
use crate::edge::Failure;
use crate::show::strip as show;

/// The list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct List {
    /// Whose layers.
    pub deployment: DeploymentName,
    /// Newest first; the base last.
    pub layers: Vec<Row>,
    /// What is to be known, in words.
    pub why: Vec<String>,
    #[serde(skip)]
    pub menu: Menu,
}

/// One layer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Row {
    pub layer: LayerName,
    pub title: String,
    pub created: i64,
    pub size: Option<u64>,
    pub removable: bool,
    pub off: bool,
}

/// What the next boot is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NextBoot {
    /// Of which deployment.
    pub deployment: DeploymentName,
    /// What it leaves out, once.
    pub off: Vec<LayerName>,
    /// What all systems share and an older one may not understand.
    pub shared: Vec<String>,
    /// Nothing was changed.
    pub dry_run: bool,
}

pub(crate) fn strip(session: &Session<'_>, args: &Strip) -> Answer {
    let device = session.device()?;
    if args.keep {
        let writer = device.lock("strip", session.now)?;
        let kept = strip::keep(&device, &writer, args.dry_run, &session.context())?;
        drop(writer);
        return answer_kept(session, kept, args.reboot);
    }
    let menu = strip::menu(&device, &Observed::look(&device).map_err(Error::from)?)?;
    let removable: Vec<LayerName> = menu
        .entries
        .iter()
        .filter(|entry| entry.removable)
        .map(|entry| entry.name.clone())
        .collect();
    let off = match (args.off, args.base, args.back) {
        (Some(count), ..) => removable[..count.min(removable.len())].to_vec(),
        (_, true, _) => removable,
        (_, _, true) => Vec::new(),
        _ => return look(session, &device, menu),
    };
    if off.is_empty() && !args.back {
        return Err(Error::from(StripError::OnlyBase { deployment: menu.deployment }).into());
    }
    if args.dry_run {
        return answer_next(session, &menu, off, true);
    }
    next_boot(session, &device, &menu, off, args.reboot)
}

fn answer_kept(session: &Session<'_>, kept: Kept, then_reboot: bool) -> Answer {
    session.answer(&kept, show::kept)?;
    if then_reboot {
        reboot()?;
    }
    Ok(Exit::Done)
}

fn next_boot(
    session: &Session<'_>,
    device: &Device,
    menu: &Menu,
    off: Vec<LayerName>,
    then_reboot: bool,
) -> Answer {
    let writer = device.lock("strip", session.now)?;
    strip::off_once(device, &writer, &menu.deployment, off.clone(), &session.context())?;
    drop(writer);
    answer_next(session, menu, off, false)?;
    if then_reboot {
        reboot()?;
    }
    Ok(Exit::Done)
}

fn answer_next(session: &Session<'_>, menu: &Menu, off: Vec<LayerName>, dry_run: bool) -> Answer {
    let (deployment, shared) = (menu.deployment.clone(), menu.shared.clone());
    session.answer(&NextBoot { deployment, off, shared, dry_run }, show::next_boot)?;
    Ok(Exit::Done)
}

/// The list; with keys where a person is at a terminal.
fn look(session: &Session<'_>, device: &Device, mut menu: Menu) -> Answer {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if session.form == Form::Human && terminal && session.places.boot_report.is_some() {
        return match ask(&mut menu) {
            Choice::Try(off) => next_boot(session, device, &menu, off, true),
            Choice::Find => {
                let search = bisect::plan(device, bisect::Wish::default())?;
                begin(session, device, search, false, true)
            }
            Choice::Usual | Choice::Previous => Ok(Exit::Done),
        };
    }
    let row = |entry: &varve_boot::menu::Entry| Row {
        layer: entry.name.clone(),
        title: entry.title.clone(),
        created: entry.created,
        size: entry.size,
        removable: entry.removable,
        off: entry.off,
    };
    let list = List {
        deployment: menu.deployment.clone(),
        layers: menu.entries.iter().map(row).collect(),
        why: menu.why.clone(),
        menu,
    };
    session.answer(&list, show::list)?;
    Ok(Exit::Done)
}

fn ask(menu: &mut Menu) -> Choice {
    let screen = Screen::open(&["/dev/tty".into()]);
    if screen.is_empty() {
        return Choice::Usual;
    }
    loop {
        screen.show(&format!("\x1b[H\x1b[2J{}\r\n", menu.screen(None).join("\r\n")));
        let bytes = loop {
            let bytes = screen.keys(Duration::from_secs(3600));
            if !bytes.is_empty() {
                break bytes;
            }
        };
        for byte in bytes {
            // In raw mode Ctrl-C and `q` are keys; both leave.
            if byte == 3 || byte == b'q' {
                return Choice::Usual;
            }
            let key = if byte == 0x1b { Some(Key::Escape) } else { Key::of_byte(byte) };
            if let Some(choice) = key.and_then(|key| menu.press(key)) {
                return choice;
            }
        }
    }
}

pub(crate) fn bisect(session: &Session<'_>, args: &Bisect) -> Answer {
    let device = session.device()?;
    let judge = |verdict, then_reboot: &bool| {
        let writer = device.lock("bisect", session.now)?;
        let why = "a person says so";
        let judged =
            bisect::answer(&device, &writer, verdict, why, args.dry_run, &session.context())?;
        drop(writer);
        session.answer(&judged, show::judged)?;
        if *then_reboot && judged.again && !args.dry_run {
            reboot()?;
        }
        Ok::<Exit, Failure>(Exit::Done)
    };
    match &args.act {
        None => {
            session.answer(&bisect::report(&device)?, show::report)?;
            Ok(Exit::Done)
        }
        Some(BisectAct::Start { person, subset, agree, try_first, reboot }) => {
            let way = if *subset { Way::Subset } else { Way::Prefix };
            let judge = if *person { Judge::Person } else { Judge::Health };
            let wish = bisect::Wish { way, judge, agree: *agree };
            let mut search = bisect::plan(&device, wish)?;
            if *try_first {
                search = bisect::try_first(&device, search, &session.context())?;
                if search.answers.is_empty() {
                    session.progress.note("nothing shows without a boot");
                }
            }
            begin(session, &device, search, args.dry_run, *reboot)
        }
        Some(BisectAct::Good { reboot }) => judge(Verdict::Good, reboot),
        Some(BisectAct::Bad { reboot }) => judge(Verdict::Bad, reboot),
        Some(BisectAct::Skip { reboot }) => judge(Verdict::Skip, reboot),
        Some(BisectAct::Keep) => {
            let writer = device.lock("bisect", session.now)?;
            let kept = bisect::keep(&device, &writer, args.dry_run, &session.context())?;
            answer_kept(session, kept, false)
        }
        Some(BisectAct::Stop) => {
            let report = bisect::report(&device)?;
            let writer = device.lock("bisect", session.now)?;
            if !args.dry_run {
                bisect::stop(&device, &writer)?;
            }
            session.answer(&report, show::stopped)?;
            Ok(Exit::Done)
        }
    }
}

fn begin(
    session: &Session<'_>,
    device: &Device,
    search: probe::Bisect,
    dry_run: bool,
    now: bool,
) -> Answer {
    if !dry_run {
        let writer = device.lock("bisect", session.now)?;
        bisect::begin(device, &writer, &search, &session.context())?;
    }
    session.answer(&bisect::report_of(device, search)?, show::report)?;
    if now && !dry_run {
        reboot()?;
    }
    Ok(Exit::Done)
}
