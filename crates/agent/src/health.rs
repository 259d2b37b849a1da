//! The health checks: commands that must succeed after a new release has booted. Each
//! has a time limit and is killed with all that it started; the end of what it printed
//! is kept for the history.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::config::HealthCheck;
use crate::inside::PATH;

/// How much of what a check printed is kept: its end, in bytes.
pub const KEPT_OUTPUT: usize = 2048;

/// How a check ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Exit status 0.
    Passed,
    /// Another exit status.
    Exited(i32),
    /// Ended by a signal.
    Killed(i32),
    /// It took longer than allowed and was killed.
    TimedOut(Duration),
    /// It could not be started; why.
    NotStarted(String),
}

/// A check that was run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// The end of what it printed, both streams, as text.
    pub output: String,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// Whether it is well.
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Passed
    }

    /// Why it failed, in words, with the last line that it printed.
    pub fn reason(&self) -> String {
        let last = self.output.lines().rev().find(|line| !line.trim().is_empty());
        let last = last.map_or(String::new(), |line| format!(": {}", line.trim()));
        format!("the health check {:?} {}{last}", self.name, self.verdict)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Exited(status) => write!(f, "failed with exit status {status}"),
            Self::Killed(signal) => write!(f, "was ended by signal {signal}"),
            Self::TimedOut(limit) => {
                write!(f, "did not finish within {} s", limit.as_secs_f64())
            }
            Self::NotStarted(why) => write!(f, "could not be started ({why})"),
        }
    }
}

/// Runs one check to its end.
pub fn run(check: &HealthCheck) -> Outcome {
    run_in(check, |_| Ok(()))
}

/// Runs one check to its end, elsewhere: `place` changes where its command runs.
pub(crate) fn run_in(
    check: &HealthCheck,
    place: impl FnOnce(&mut Command) -> std::io::Result<()>,
) -> Outcome {
    let start = Instant::now();
    let (verdict, output) = match spawn(check, place) {
        Ok((child, output)) => wait(child, output, start, check.timeout.0),
        Err(error) => (Verdict::NotStarted(error.to_string()), Vec::new()),
    };
    let output = String::from_utf8_lossy(&output).trim().to_owned();
    Outcome { name: check.name.clone(), verdict, output, took: start.elapsed() }
}

/// Starts the command in a process group of its own, both of its streams into one pipe.
fn spawn(
    check: &HealthCheck,
    place: impl FnOnce(&mut Command) -> std::io::Result<()>,
) -> std::io::Result<(Child, std::io::PipeReader)> {
    let (reader, writer) = std::io::pipe()?;
    let mut command = Command::new(&check.command[0]);
    command
        .args(&check.command[1..])
        .env_clear()
        .env("PATH", PATH)
        .env("LANG", "C.UTF-8")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    place(&mut command)?;
    let child = command.spawn()?;
    Ok((child, reader))
}

fn wait(
    mut child: Child,
    output: std::io::PipeReader,
    start: Instant,
    limit: Duration,
) -> (Verdict, Vec<u8>) {
    let (send, finished) = mpsc::channel();
    // Ends when every holder of the pipe is gone: all are killed below at the latest.
    let reader = std::thread::spawn(move || {
        let tail = tail(output);
        let _ = send.send(());
        tail
    });
    let mut pause = Duration::from_millis(1);
    let verdict = loop {
        match child.try_wait() {
            Ok(Some(status)) => break verdict(status),
            Ok(None) if start.elapsed() >= limit => break Verdict::TimedOut(limit),
            Ok(None) => std::thread::sleep(pause),
            Err(error) => break Verdict::NotStarted(error.to_string()),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    };
    // A check may leave something behind that holds the pipe; its last words have a
    // moment to arrive, then the whole group goes.
    let _ = finished.recv_timeout(Duration::from_millis(100));
    if let Some(group) = Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
    // What left the group on purpose may still hold the pipe: it is not waited for.
    let output = match finished.recv_timeout(Duration::from_millis(200)) {
        Err(mpsc::RecvTimeoutError::Timeout) => Vec::new(),
        _ => reader.join().unwrap_or_default(),
    };
    (verdict, output)
}

fn verdict(status: ExitStatus) -> Verdict {
    match (status.code(), status.signal()) {
        (Some(0), _) => Verdict::Passed,
        (Some(code), _) => Verdict::Exited(code),
        (None, signal) => Verdict::Killed(signal.unwrap_or(0)),
    }
}

fn tail(mut output: std::io::PipeReader) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(KEPT_OUTPUT);
        kept.drain(..surplus);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Seconds;

    fn check(script: &str, limit: Duration) -> HealthCheck {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        HealthCheck { name: "test".to_owned(), command, timeout: Seconds(limit) }
    }

    fn run_script(script: &str) -> Outcome {
        run(&check(script, Duration::from_secs(20)))
    }

    #[test]
    fn how_a_check_ends() {
        assert!(run_script("echo fine").passed());
        let failed = run_script("echo one; echo 'no route' >&2; exit 3");
        assert_eq!(failed.verdict, Verdict::Exited(3));
        assert_eq!(failed.output, "one\nno route");
        assert_eq!(
            failed.reason(),
            "the health check \"test\" failed with exit status 3: no route"
        );
        assert_eq!(run_script("kill -TERM $$").verdict, Verdict::Killed(15));
        let command = vec!["/does/not/exist".to_owned()];
        let missing = HealthCheck { command, ..check("", Duration::from_secs(1)) };
        assert!(matches!(run(&missing).verdict, Verdict::NotStarted(_)));
    }

    #[test]
    fn a_check_that_hangs_is_killed_with_its_children() {
        let limit = Duration::from_millis(200);
        let marker = format!("{}.25", 3000 + std::process::id() % 1000);
        let outcome = run(&check(&format!("echo begun; sleep {marker} & sleep {marker}"), limit));
        assert_eq!(outcome.verdict, Verdict::TimedOut(limit));
        assert_eq!(outcome.output, "begun");
        assert!(outcome.took < Duration::from_secs(10));
        let alive = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            line.split(|&b| b == 0).any(|part| part == marker.as_bytes())
        });
        assert!(!alive, "a child of the check survived it");
    }

    #[test]
    fn a_daemon_left_behind_is_not_waited_for() {
        let outcome = run_script("sleep 1000 & echo started");
        assert!(outcome.passed());
        assert_eq!(outcome.output, "started");
        assert!(outcome.took < Duration::from_secs(10));
    }

    #[test]
    fn of_much_output_the_end_is_kept() {
        let outcome = run_script("seq 1 100000");
        assert!(outcome.output.ends_with("100000"));
        assert!(outcome.output.len() <= KEPT_OUTPUT);
    }
}
