//! Progress of long work: a bar with rate and time left on a terminal, one line for each
//! phase elsewhere (a log, a serial console without a terminal's size).

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use varve_sys::task::{Progress, Unit};

use crate::{human, out};

/// Shows progress on standard error.
#[derive(Debug)]
pub struct Shown {
    terminal: bool,
    phase: Mutex<Option<Phase>>,
}

#[derive(Debug)]
struct Phase {
    name: String,
    unit: Unit,
    bar: ProgressBar,
    began: Instant,
}

impl Default for Shown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shown {
    /// Bars if standard error is a terminal, else lines.
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), phase: Mutex::new(None) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Phase>> {
        self.phase.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Progress for Shown {
    fn begin(&self, phase: &str, unit: Unit, total: Option<u64>) {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        if self.terminal {
            bar.set_style(style(unit, total.is_some()));
            bar.set_message(phase.to_owned());
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let name = phase.to_owned();
        *self.lock() = Some(Phase { name, unit, bar, began: Instant::now() });
    }

    fn advance(&self, amount: u64) {
        if let Some(phase) = &*self.lock() {
            phase.bar.inc(amount);
        }
    }

    fn end(&self) {
        let Some(phase) = self.lock().take() else { return };
        let (done, took) = (phase.bar.position(), phase.began.elapsed());
        phase.bar.finish_and_clear();
        out::note(&closing_line(&phase.name, phase.unit, done, took));
    }

    fn note(&self, text: &str) {
        match &*self.lock() {
            Some(phase) if self.terminal => phase.bar.suspend(|| out::note(text)),
            _ => out::note(text),
        }
    }
}

/// What stays of a phase when it is over: `fetching: 79.0 MB in 6.4 s (12.3 MB/s)`.
fn closing_line(name: &str, unit: Unit, done: u64, took: Duration) -> String {
    let amount = match unit {
        Unit::Bytes => human::bytes(done),
        Unit::Paths => human::plural(done, "path", "paths"),
        Unit::Steps => human::plural(done, "step", "steps"),
    };
    let rate = match unit {
        Unit::Bytes if took > Duration::from_millis(10) => {
            format!(" ({}/s)", human::bytes((done as f64 / took.as_secs_f64()) as u64))
        }
        _ => String::new(),
    };
    format!("{name}: {amount} in {}{rate}", human::duration(took))
}

fn style(unit: Unit, total: bool) -> ProgressStyle {
    let amount = match (unit, total) {
        (Unit::Bytes, true) => "{done} of {all}, {rate}, {left} left",
        (Unit::Bytes, false) => "{done}, {rate}",
        (_, true) => "{human_pos} of {human_len}, {left} left",
        (_, false) => "{human_pos}",
    };
    let bar = if total { "[{bar:30}] {percent:>3}%  " } else { "{spinner} " };
    let template = format!("{{msg}}  {bar}{amount}");
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    type Out<'a> = &'a mut dyn std::fmt::Write;
    style
        .progress_chars("=> ")
        .tick_chars("|/-\\ ")
        .with_key("done", |state: &ProgressState, f: Out<'_>| {
            let _ = f.write_str(&human::bytes(state.pos()));
        })
        .with_key("all", |state: &ProgressState, f: Out<'_>| {
            let _ = f.write_str(&human::bytes(state.len().unwrap_or(0)));
        })
        .with_key("rate", |state: &ProgressState, f: Out<'_>| {
            let _ = write!(f, "{}/s", human::bytes(state.per_sec() as u64));
        })
        .with_key("left", |state: &ProgressState, f: Out<'_>| {
            let _ = write!(f, "{:#}", HumanDuration(state.eta()));
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_style_is_a_valid_template() {
        for unit in [Unit::Bytes, Unit::Paths, Unit::Steps] {
            for total in [false, true] {
                let bar = ProgressBar::with_draw_target(Some(10), ProgressDrawTarget::hidden());
                bar.set_style(style(unit, total));
                bar.inc(3);
            }
        }
    }

    #[test]
    fn a_phase_leaves_one_line() {
        let took = Duration::from_millis(6400);
        let line = closing_line("fetching", Unit::Bytes, 79_000_000, took);
        assert_eq!(line, "fetching: 79.0 MB in 6.4 s (12.3 MB/s)");
        assert_eq!(
            closing_line("staging", Unit::Paths, 23_118, took),
            "staging: 23,118 paths in 6.4 s"
        );
    }
}
