//! What the menu looks like: 24 lines that fit on a serial line and on a framebuffer.

use super::{Choice, Entry, Menu, Place};
use varve_format::deployment::LayerKind;

/// Lines of the screen.
pub const LINES: usize = 24;
/// The longest line. One less than a terminal has, so that none wraps by itself.
pub const COLUMNS: usize = 79;
/// Layers that are shown at once, the base not counted.
const ROWS: usize = 8;

impl Menu {
    /// The lines, top down, at most [`LINES`]; plain ASCII. `left`: seconds until it goes on
    /// by itself.
    pub fn screen(&self, left: Option<u64>) -> Vec<String> {
        let mut lines = vec![
            format!(" Take layers off until it works{:>47}", clip(self.deployment.as_str(), 44)),
            String::new(),
        ];
        lines.extend(self.why.iter().take(2).map(|why| format!(" {why}")));
        lines.push(String::new());
        lines.extend(self.list());
        lines.push(String::new());
        self.below(&mut lines);
        while lines.len() < LINES - 1 {
            lines.push(String::new());
        }
        lines.push(self.countdown(left));
        lines.into_iter().map(|line| clip(line.trim_end(), COLUMNS)).collect()
    }

    /// The line that changes each second: the last one.
    pub fn countdown(&self, left: Option<u64>) -> String {
        match left {
            Some(1) => " It goes on as usual in 1 second.".to_owned(),
            Some(left) => format!(" It goes on as usual in {left} seconds."),
            None => String::new(),
        }
    }

    /// The list alone, with its head.
    pub fn list(&self) -> Vec<String> {
        let mut lines = vec![row(["", "LAYER", "MADE", "SIZE", "WHAT IT IS"])];
        let (base, layers) = match self.entries.split_last() {
            Some((base, layers)) => (Some(base), layers),
            None => (None, &[][..]),
        };
        // So that the next one to go is in view, with some of what is off above it.
        let next = self.next_off().unwrap_or(layers.len());
        let start = next.saturating_sub(ROWS / 2).min(layers.len().saturating_sub(ROWS));
        let end = (start + ROWS).min(layers.len());
        if start > 0 {
            lines.push(format!("      ... {} newer, off", start));
        }
        lines.extend(layers[start..end].iter().map(|entry| self.entry(entry)));
        if end < layers.len() {
            lines.push(format!("      ... {} older", layers.len() - end));
        }
        lines.extend(base.map(|entry| self.entry(entry)));
        lines
    }

    fn entry(&self, entry: &Entry) -> String {
        let kind = match entry.kind {
            LayerKind::Base => "the system",
            LayerKind::Update => "update of the system",
            LayerKind::Local => "yours",
            LayerKind::Extension => "extension",
        };
        let what = match (entry.removable, entry.title.is_empty()) {
            (false, _) => format!("{kind}: it stays"),
            (true, true) => kind.to_owned(),
            (true, false) => format!("{kind}: {}", entry.title),
        };
        let size = entry.size.map_or(String::new(), size);
        let on = if entry.off { "off" } else { "on" };
        row([on, entry.name.as_str(), &date(entry.created), &size, &what])
    }

    /// The question, or the keys.
    fn below(&self, lines: &mut Vec<String>) {
        let mut say = |text: &str| lines.push(format!(" {text}"));
        match &self.asking {
            Some(choice) => {
                self.question(choice, &mut say);
                say("Enter  yes                               Esc  no");
            }
            None => {
                say(match self.place {
                    Place::Boot => {
                        "A try deletes nothing, and forgets what it changes in the system."
                    }
                    Place::Running => {
                        "A try restarts the machine; it deletes nothing, and forgets its own changes."
                    }
                });
                if let Some(said) = self.said {
                    say(said);
                } else {
                    say("");
                }
                say("1  take off the top one and try          2  only the base");
                say("3  find the bad one for me               4  put it all back");
                let before = match &self.previous {
                    Some(_) if self.place == Place::Boot => "Esc  the system before",
                    _ => "",
                };
                let enter = match self.place {
                    Place::Boot => "Enter  go on as usual",
                    Place::Running => "Enter  leave",
                };
                say(&format!("{enter:<41}{before}"));
            }
        }
    }

    fn question(&self, choice: &Choice, say: &mut impl FnMut(&str)) {
        match choice {
            Choice::Find => {
                say(&format!(
                    "The machine starts at most {} times by itself, each time with other layers,",
                    crate::bisect::probes_left(&self.search())
                ));
                say("and says which one does harm. If it hangs, switch it off and on again:");
                say("that counts as bad. Go on?");
            }
            Choice::Try(off) => {
                let what = match off.len() {
                    1 => "1 layer".to_owned(),
                    count => format!("{count} layers"),
                };
                say(&format!("This tries the system without {what}."));
                say("Work saved by the newer system may not open in it. It keeps and shares:");
                say(&clip(&self.shared.join(" "), COLUMNS - 2));
            }
            Choice::Usual | Choice::Previous => {}
        }
    }
}

fn row([on, name, made, size, what]: [&str; 5]) -> String {
    let line = format!(
        " {on:<4} {:<24} {made:<10} {size:>7}  {}",
        clip(name, 24),
        clip(what, COLUMNS - 51)
    );
    line.trim_end().to_owned()
}

/// What is longer ends with `~`; what is not plain ASCII becomes `?`.
fn clip(text: &str, width: usize) -> String {
    let plain = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    let mut clipped: String = text.chars().map(plain).take(width + 1).collect();
    if clipped.len() > width {
        clipped.truncate(width - 1);
        clipped.push('~');
    }
    clipped
}

/// Three digits, in powers of 1000.
fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (bytes, 0);
    let mut rest = 0;
    while value >= 1000 && unit < units.len() - 1 {
        (rest, value, unit) = (value % 1000 / 100, value / 1000, unit + 1);
    }
    match (unit, value) {
        (1.., 0..10) => format!("{value}.{rest} {}", units[unit]),
        _ => format!("{value} {}", units[unit]),
    }
}

/// The day, by the proleptic Gregorian calendar (Howard Hinnant, "chrono-compatible
/// low-level date algorithms"); nothing for a clock that was never set.
fn date(seconds: i64) -> String {
    if seconds < 86_400 {
        return String::new();
    }
    let days = seconds.div_euclid(86_400) + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_sizes() {
        assert_eq!(date(1_760_000_000), "2025-10-09");
        assert_eq!(date(951_782_400), "2000-02-29");
        assert_eq!(date(4_107_542_400), "2100-03-01");
        assert_eq!(date(0), "");
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (12_345_678, "12 MB"),
            (1_990_000_000, "1.9 GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert!(size(u64::MAX).len() <= 7);
        assert_eq!(clip("Überlänge", 5), "?ber~");
    }
}
