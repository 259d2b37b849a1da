//! The menu at the machine's consoles: drawn on all of them, keys from all of them. What
//! it shows and what a key means is `varve_boot::menu`'s; here are terminals and time.

use std::time::{Duration, Instant};

use varve_boot::menu::{Choice, Entry, Key, Menu, Place};
use varve_format::deployment::{LayerKind, Stack, StateMode};
use varve_format::selection::Selection;
use varve_rootfs::{Deployment, Store};
use varve_sys::console::Screen;

use crate::look::Machine;
use crate::wanted::{Asked, last_try};

/// Seconds until it goes on by itself: where somebody asked for it, and where nobody did.
const ASKED: u64 = 30;
const NOT_ASKED: u64 = 10;
/// Once a key was pressed there is somebody.
const SOMEBODY: u64 = 120;
const CLEAR: &str = "\x1b[0m\x1b[H\x1b[2J";

/// Why the menu is shown, if it is: a key is held, the command line says so
/// (`varve.menu`, `varve.menu=always`), or the latest failed its trials (not with
/// `varve.menu=never`, nor `varve.menu=key`).
pub(crate) fn why(
    machine: &Machine,
    key: bool,
    selection: Option<&Selection>,
    warnings: &mut Vec<String>,
) -> Option<(String, u64)> {
    let line = &machine.command_line;
    let policy = line.value("varve.menu");
    let always = policy == Some("always") || (line.has("varve.menu") && policy.is_none());
    if let Some(text) = policy
        && !["always", "failed", "key", "never"].contains(&text)
    {
        warnings.push(format!("varve.menu={text}: expected always, failed, key or never"));
    }
    let failed = selection.filter(|selection| selection.tries == Some(0));
    let (why, seconds) = match failed {
        _ if policy == Some("never") => return None,
        _ if key => ("A key is held.".to_owned(), ASKED),
        _ if always => ("The kernel's command line asks for this.".to_owned(), ASKED),
        Some(failed) if policy != Some("key") => {
            (format!("{} failed its trials.", failed.latest), NOT_ASKED)
        }
        _ => return None,
    };
    let seconds = line.value("varve.menu-timeout").map_or(seconds, |text| {
        text.parse().unwrap_or_else(|_| {
            warnings.push(format!("varve.menu-timeout={text}: expected seconds"));
            seconds
        })
    });
    Some((why, seconds))
}

/// The menu for a deployment.
pub(crate) fn of(
    store: &Store,
    deployment: &Deployment,
    selection: Option<&Selection>,
    asked: &Asked,
    why: String,
) -> Menu {
    let record = &deployment.record;
    let probe = asked.probe.as_ref().filter(|probe| probe.deployment == record.name);
    let mut entries: Vec<Entry> = Vec::new();
    let mut entry = |name: &varve_format::LayerName, is_tree: bool| {
        // One without a readable record is shown by its name alone.
        let layer = (!is_tree).then(|| store.layer(name).ok()).flatten();
        entries.push(Entry {
            name: name.clone(),
            title: layer.as_ref().map_or(String::new(), |layer| layer.title.clone()),
            kind: layer.as_ref().map_or(LayerKind::Base, |layer| layer.kind),
            created: layer.as_ref().map_or(record.created, |layer| layer.created),
            size: layer.as_ref().and_then(|layer| layer.size),
            removable: true,
            off: probe.is_some_and(|probe| probe.off.contains(name)),
        });
    };
    record.own_on().for_each(|name| entry(name, false));
    match &record.stack {
        Stack::Overlay { layers } => layers.iter().for_each(|name| entry(name, false)),
        Stack::HardLink { tree } => entry(tree, true),
    }
    if let Some(base) = entries.last_mut() {
        (base.removable, base.off) = (false, false);
    }
    let mut menu = Menu::new(Place::Boot, record.name.clone(), entries);
    menu.previous = selection.and_then(|selection| selection.previous.clone());
    menu.why = std::iter::once(why).chain(last_try(asked, &record.name)).collect();
    let shared = record.state.iter().filter(|state| state.mode != StateMode::Versioned);
    menu.shared = shared.map(|state| state.path.to_string()).collect();
    menu
}

/// Shows it until something is chosen or the time is over, which is as usual.
pub(crate) fn ask(menu: &mut Menu, machine: &Machine, seconds: u64) -> Choice {
    let screen = Screen::open(&machine.screens);
    if screen.is_empty() {
        return Choice::Usual;
    }
    let _quiet = Quiet::new(machine);
    let choice = ask_on(menu, &screen, seconds);
    screen.show(&format!("{CLEAR}\x1b[?25h"));
    choice
}

fn ask_on(menu: &mut Menu, screen: &Screen, seconds: u64) -> Choice {
    let mut end = Instant::now() + Duration::from_secs(seconds);
    let mut shown = None;
    loop {
        let rest = end.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Choice::Usual;
        }
        let left = rest.as_millis().div_ceil(1000) as u64;
        match shown {
            None => {
                let lines = menu.screen(Some(left)).join("\r\n");
                screen.show(&format!("\x1b[?25l{CLEAR}{lines}"));
            }
            Some(before) if before != left => {
                screen.show(&format!("\r{}\x1b[K", menu.countdown(Some(left))));
            }
            _ => {}
        }
        shown = Some(left);
        let until_next = rest - Duration::from_secs(left - 1) + Duration::from_millis(1);
        for byte in screen.keys(until_next.min(Duration::from_secs(1))) {
            let key = if byte == 0x1b { Some(Key::Escape) } else { Key::of_byte(byte) };
            let Some(key) = key else { continue };
            if let Some(choice) = menu.press(key) {
                return choice;
            }
            end = end.max(Instant::now() + Duration::from_secs(SOMEBODY));
            shown = None;
        }
    }
}

/// The kernel's own lines would be written over the screen: they go to the log alone.
struct Quiet<'a> {
    machine: &'a Machine,
    before: Option<Vec<u8>>,
}

impl<'a> Quiet<'a> {
    fn new(machine: &'a Machine) -> Self {
        let before = machine.log_level.as_ref().and_then(|path| std::fs::read(path).ok());
        let quiet = Quiet { machine, before };
        quiet.set(b"1");
        quiet
    }

    fn set(&self, level: &[u8]) {
        let Some(path) = &self.machine.log_level else { return };
        let file = std::fs::OpenOptions::new().write(true).open(path);
        // Where it cannot be set, lines are mixed: no reason not to go on.
        let _ = file.and_then(|mut file| std::io::Write::write_all(&mut file, level));
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            self.set(before);
        }
    }
}
