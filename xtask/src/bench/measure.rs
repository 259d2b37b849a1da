//! Runs programs and says what they took.

use crate::project::{Result, program};
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a program took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    pub(super) time: Duration,
    /// Of all processes, in user and kernel mode.
    pub(super) processor: Duration,
    /// Of the largest process, in bytes.
    pub(super) memory: u64,
    /// Handed to the disk, in bytes.
    pub(super) written: u64,
    /// Processors that other work of this machine used meanwhile.
    pub(super) others: f64,
}

impl Cost {
    /// Of no run yet.
    pub(super) const ANY: Self = Self {
        time: Duration::MAX,
        processor: Duration::MAX,
        memory: 0,
        written: u64::MAX,
        others: 0.0,
    };

    /// Of two runs of the same: the least, and of memory the most.
    pub(super) fn and(self, other: Self) -> Self {
        let others = if other.time < self.time { other.others } else { self.others };
        Self {
            others,
            time: self.time.min(other.time),
            processor: self.processor.min(other.processor),
            memory: self.memory.max(other.memory),
            written: self.written.min(other.written),
        }
    }
}

/// Runs a program under GNU time.
pub(super) fn cost(command: &Command) -> Result<Cost> {
    answered(command).map(|(cost, _)| cost)
}

/// The same, with what the program printed.
pub(super) fn answered(command: &Command) -> Result<(Cost, String)> {
    let report = tempfile::NamedTempFile::new()?;
    let mut timed = program("/usr/bin/time");
    timed.args(["--quiet", "--format", "%M %O %U %S", "--output"]).arg(report.path());
    timed.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        timed.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            timed.env(name, value);
        }
    }
    let (begin, machine) = (Instant::now(), Machine::now()?);
    let output = timed.stdin(Stdio::null()).output()?;
    let time = begin.elapsed();
    let machine = Machine::now()?.since(&machine);
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        return Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&said)).into());
    }
    let text = std::fs::read_to_string(report.path())?;
    let numbers: Vec<f64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [kilobytes, blocks, user, system] = numbers[..] else {
        return Err(format!("GNU time said of {command:?}: {text}").into());
    };
    let processor = user + system;
    let cost = Cost {
        time,
        others: ((machine - processor) / time.as_secs_f64()).max(0.0),
        processor: Duration::from_secs_f64(processor),
        memory: kilobytes as u64 * 1024,
        written: blocks as u64 * 512,
    };
    Ok((cost, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// What the processors have done: seconds, of all programs, and of this one.
struct Machine {
    all: f64,
    own: f64,
}

impl Machine {
    fn now() -> Result<Self> {
        // "cpu  user nice system idle iowait irq softirq steal …", in ticks; proc(5).
        let text = std::fs::read_to_string("/proc/stat")?;
        let ticks = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
        let ticks: Vec<f64> = ticks.map_while(|word| word.parse().ok()).collect();
        let [user, nice, system, _, _, irq, softirq, steal, ..] = ticks[..] else {
            return Err(format!("/proc/stat says: {text}").into());
        };
        let ticks = user + nice + system + irq + softirq + steal;
        let own = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Ok(Self {
            // A hundred ticks a second on every machine of ours (USER_HZ), whatever the kernel's own.
            all: ticks / 100.0,
            own: own.tv_sec as f64 + own.tv_nsec as f64 / 1e9,
        })
    }

    /// Seconds of processors since `before` that were not this program's, which serves
    /// what is measured.
    fn since(&self, before: &Self) -> f64 {
        (self.all - before.all) - (self.own - before.own)
    }
}

/// How many system calls a program makes, where strace is installed.
pub(super) fn system_calls(command: &Command) -> Result<Option<u64>> {
    if !Path::new("/usr/bin/strace").exists() {
        return Ok(None);
    }
    let report = tempfile::NamedTempFile::new()?;
    let mut traced = program("/usr/bin/strace");
    traced.args(["-f", "-c", "-q", "-o"]).arg(report.path());
    traced.arg(command.get_program()).args(command.get_args());
    let output = traced.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(format!(
            "under strace, {command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    // "100.00    0.012345           1     12345        12 total"
    let text = std::fs::read_to_string(report.path())?;
    let total = text.lines().rev().find(|line| line.ends_with(" total"));
    Ok(total.and_then(|line| line.split_whitespace().nth(3)?.parse().ok()))
}

/// The least of several runs that take turns: what each would take on a quiet machine.
pub(super) fn in_turns<const N: usize>(
    rounds: u32,
    mut runs: [&mut dyn FnMut(u32) -> Result<Cost>; N],
) -> Result<[Cost; N]> {
    let mut least = [Cost::ANY; N];
    for round in 0..rounds {
        for (run, least) in runs.iter_mut().zip(&mut least) {
            *least = least.and(run(round)?);
        }
    }
    Ok(least)
}

/// Writes what is under way to the disk, so that one run does not pay for another.
pub(super) fn settle() {
    rustix::fs::sync();
}

/// One line of the table.
#[derive(Debug, Clone)]
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) ours: f64,
    pub(super) limit: Option<f64>,
    pub(super) unit: &'static str,
    pub(super) note: String,
}

impl Figure {
    /// Our time as a part of the peer's.
    pub(super) fn ratio(name: &str, ours: Duration, peer: (&str, Duration), limit: f64) -> Self {
        let (peer_name, peer) = peer;
        Self {
            name: name.to_owned(),
            ours: ours.as_secs_f64() / peer.as_secs_f64(),
            limit: Some(limit),
            unit: "of the peer",
            note: format!("{:.2} s; {peer_name} {:.2} s", ours.as_secs_f64(), peer.as_secs_f64()),
        }
    }

    /// Memory of the largest process.
    pub(super) fn memory(name: &str, ours: u64, peer: (&str, u64), limit_mebibytes: f64) -> Self {
        Self {
            name: name.to_owned(),
            ours: ours as f64 / 1048576.0,
            limit: Some(limit_mebibytes),
            unit: "MiB",
            note: format!("{} {:.0} MiB", peer.0, peer.1 as f64 / 1048576.0),
        }
    }

    /// A number to know, without a limit.
    pub(super) fn fact(name: &str, ours: f64, unit: &'static str, note: String) -> Self {
        Self { name: name.to_owned(), ours, limit: None, unit, note }
    }

    pub(super) fn misses(&self) -> bool {
        self.limit.is_some_and(|limit| self.ours > limit)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.misses() { "OVER" } else { "" };
        let limit = self.limit.map(|limit| format!("at most {limit}")).unwrap_or_default();
        let (name, ours, unit, note) = (&self.name, self.ours, self.unit, &self.note);
        write!(f, "{verdict:4} {name:34} {ours:>9.2} {unit:12} {limit:14} {note}")
    }
}
