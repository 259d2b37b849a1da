//! The boot menu: layers are taken off, one by one, until it works. Pure.
//!
//! ```text
//! records, last try, why --> Menu --press(key)--> Menu | Choice
//!                             '---screen()-------> 24 lines of at most 79 characters
//! ```
//!
//! Four keys and no typing: `1` takes off the newest that is still on and tries, `2` tries
//! the base alone, `3` finds the bad one, `4` puts all back. Enter goes on as usual,
//! Escape boots the system before. Nothing is deleted by any of them. Where a try may
//! meet work that a newer system has saved, it says so and asks once more.
//!
//! Callers: the boot stage, on the kernel's consoles; `varve strip`, on a terminal.

mod screen;

use varve_format::deployment::LayerKind;
use varve_format::probe::{Bisect, Judge, Way};
use varve_format::{DeploymentName, LayerName};

pub use screen::{COLUMNS, LINES};

/// One layer of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: LayerName,
    /// Its title for people; may be empty.
    pub title: String,
    /// What kind of layer; a hard-linked tree is a base.
    pub kind: LayerKind,
    /// When it was made: seconds since 1970 by the device's clock.
    pub created: i64,
    /// Bytes, where they are known.
    pub size: Option<u64>,
    /// Whether it can be taken off: all can but the last.
    pub removable: bool,
    /// Whether it is left out now.
    pub off: bool,
}

/// A key that means something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// `1`.
    TakeOff,
    /// `2`.
    OnlyBase,
    /// `3`.
    Find,
    /// `4`.
    PutBack,
    /// Enter: go on as usual; at a question: yes.
    Enter,
    /// Escape: the system before; at a question: no.
    Escape,
}

impl Key {
    /// What a byte of a terminal means. Escape is not among them: it may begin a sequence.
    pub fn of_byte(byte: u8) -> Option<Key> {
        Some(match byte {
            b'1' => Key::TakeOff,
            b'2' => Key::OnlyBase,
            b'3' => Key::Find,
            b'4' => Key::PutBack,
            b'\r' | b'\n' => Key::Enter,
            _ => return None,
        })
    }
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Boot without these layers, once. Empty: with all of them.
    Try(Vec<LayerName>),
    /// Search for the bad one.
    Find,
    /// Boot what would have booted.
    Usual,
    /// Boot the previous deployment, this once.
    Previous,
}

/// Where the menu is shown: some words differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// By the boot stage: a choice boots at once.
    Boot,
    /// In the running system: a choice restarts the machine.
    Running,
}

/// The menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Menu {
    /// Where it is shown.
    pub place: Place,
    /// The deployment whose layers these are.
    pub deployment: DeploymentName,
    /// The system before, if there is one.
    pub previous: Option<DeploymentName>,
    /// Newest first; the last is the base.
    pub entries: Vec<Entry>,
    /// Why this is shown and what was tried before, a sentence each.
    pub why: Vec<String>,
    /// The directories that all systems share: work saved there by the newer system is
    /// seen by the older.
    pub shared: Vec<String>,
    asking: Option<Choice>,
    said: Option<&'static str>,
}

impl Menu {
    /// A menu that asks nothing yet.
    pub fn new(place: Place, deployment: DeploymentName, entries: Vec<Entry>) -> Menu {
        Menu {
            place,
            deployment,
            previous: None,
            entries,
            why: Vec::new(),
            shared: Vec::new(),
            asking: None,
            said: None,
        }
    }

    /// What is left out as the list stands.
    pub fn off(&self) -> Vec<LayerName> {
        let off = self.entries.iter().filter(|entry| entry.off);
        off.map(|entry| entry.name.clone()).collect()
    }

    /// The search that key `3` begins: of all that can be taken off, judged by the health
    /// checks.
    pub fn search(&self) -> Bisect {
        let layers = self.entries.iter().filter(|entry| entry.removable);
        Bisect {
            deployment: self.deployment.clone(),
            layers: layers.map(|entry| entry.name.clone()).collect(),
            way: Way::Prefix,
            judge: Judge::Health,
            agree: 1,
            active: true,
            running: None,
            answers: Vec::new(),
        }
    }

    /// The next one that key `1` takes off.
    fn next_off(&self) -> Option<usize> {
        self.entries.iter().position(|entry| entry.removable && !entry.off)
    }

    /// A key was pressed; gives what it chose, if that is settled.
    pub fn press(&mut self, key: Key) -> Option<Choice> {
        self.said = None;
        if let Some(asked) = self.asking.take() {
            return match key {
                Key::Enter => Some(asked),
                Key::Escape => None,
                // Another of the four is another wish, and not an answer.
                other => self.wish(other),
            };
        }
        self.wish(key)
    }

    fn wish(&mut self, key: Key) -> Option<Choice> {
        let removable = self.entries.iter().any(|entry| entry.removable);
        let choice = match key {
            Key::Enter => return Some(Choice::Usual),
            Key::Escape if self.previous.is_some() => return Some(Choice::Previous),
            Key::Escape => return self.say("There is no system before this one."),
            Key::PutBack => return Some(Choice::Try(Vec::new())),
            _ if !removable => {
                return self.say("There is only the base: nothing can be taken off.");
            }
            Key::TakeOff => {
                let Some(next) = self.next_off() else {
                    return self.say("All but the base is off already: 2 tries the base alone.");
                };
                self.without(|at, entry| entry.off || at == next)
            }
            Key::OnlyBase => self.without(|_, _| true),
            Key::Find => Choice::Find,
        };
        if choice == Choice::Find || !self.shared.is_empty() {
            self.asking = Some(choice);
            return None;
        }
        Some(choice)
    }

    fn without(&self, off: impl Fn(usize, &Entry) -> bool) -> Choice {
        let each = self.entries.iter().enumerate();
        let off = each.filter(|(at, entry)| entry.removable && off(*at, entry));
        Choice::Try(off.map(|(_, entry)| entry.name.clone()).collect())
    }

    fn say(&mut self, words: &'static str) -> Option<Choice> {
        self.said = Some(words);
        None
    }
}

#[cfg(test)]
mod tests;
