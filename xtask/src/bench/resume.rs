//! `cargo xtask bench resume`: a link that is cut and a process that is killed, again and
//! again, in one real upgrade. How many bytes move beyond those of a clean run?
//!
//! By packs first, then by the delta. The delta of a pair can be so small that two hundred
//! requests, which nobody can do without after two hundred cuts, are a good part of it.

use super::transfer::{By, Ground, PairName, Record, Resume, Stage, finish, may_use, now};
use crate::project::{Result, step};
use crate::trees::remove;
use crate::{device, packages};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use varve_testkit::faulty::{Link, Server};

const CUTS: u64 = 200;
const SEED: u64 = 20_261_125;
/// Bytes in a second. Faster than this, what a kill loses is what the kernel's buffers hold.
const RATE: u64 = 1_000_000;
/// Of the whole run.
const PATIENCE: Duration = Duration::from_secs(3600);

pub(super) fn run() -> Result {
    packages::need_root("bench resume")?;
    packages::ensure(packages::For::Bench)?;
    let ground = Ground::new(PairName::Trixie, &device::build()?)?;
    let scratch = ground.scratch("resume")?;
    let stage = Stage::new(&ground, &scratch)?;
    let mut record = Record::load()?;
    for way in By::ALL {
        if way == By::Delta {
            stage.delta("new")?;
        }
        let clean =
            step(&format!("{way:?}: one run without cuts"), || upgrade(&stage, &scratch, None))?;
        let cut = step(&format!("{way:?}: one run with {CUTS} cuts"), || {
            upgrade(&stage, &scratch, Some(clean.moved))
        })?;
        if cut.cuts < CUTS * 9 / 10 || cut.kills < CUTS * 2 / 5 {
            let (cuts, kills) = (cut.cuts, cut.kills);
            return Err(format!("only {cuts} cuts and {kills} kills came about").into());
        }
        record.resume.insert(way, Resume { clean: clean.moved, ..cut });
        record.save()?;
    }
    remove(&scratch)?;
    ground.clear()?;
    finish(&record, false)
}

/// One upgrade of a fresh device; with the bytes of a clean run, cut all over it.
fn upgrade(stage: &Stage, scratch: &Path, clean: Option<u64>) -> Result<Resume> {
    let server = Server::good(&stage.publisher.repository);
    let points = clean.map(points).unwrap_or_default();
    let url = server.url.trim_end_matches('/');
    stage.device.upgrade(url, ("", &may_use(None)), |command| {
        cut(command, &server, &points, &scratch.join("said"))
    })
}

/// Where the link is cut, in bytes moved.
fn points(clean: u64) -> Vec<u64> {
    let random = |number: u64| {
        let digest = Sha256::digest([SEED.to_le_bytes(), number.to_le_bytes()].concat());
        digest.iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    let mut points: Vec<u64> = (0..CUTS).map(|number| random(number) % clean).collect();
    points.sort_unstable();
    points
}

/// Runs the command until it has succeeded, over a link that is cut at these points; at
/// every other cut the process is killed and begun anew.
fn cut(command: &Command, server: &Server, points: &[u64], said: &Path) -> Result<Resume> {
    let begin = Instant::now();
    let mut child = Process::start(command, said)?;
    let (mut cuts, mut kills) = (0, 0);
    let mut points = points.iter();
    let mut arm = || {
        let cut_at = points.next().map(|at| (*at).max(server.moved() + 1));
        server.link(Link { rate: RATE, cut_at });
    };
    arm();
    loop {
        if server.cuts() > cuts {
            cuts += 1;
            if cuts % 2 == 0 {
                child.kill()?;
                kills += 1;
                arm();
                child = Process::start(command, said)?;
            } else {
                arm();
            }
        }
        if let Some(status) = child.0.try_wait()? {
            if status.success() {
                break;
            }
            let said = std::fs::read_to_string(said).unwrap_or_default();
            return Err(format!("varve upgrade ended with {status}: {said}").into());
        }
        if begin.elapsed() > PATIENCE {
            return Err(format!("it is not done after {cuts} cuts and an hour").into());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(Resume {
        seed: SEED,
        cuts,
        kills,
        clean: server.moved(),
        moved: server.moved(),
        seconds: begin.elapsed().as_secs_f64(),
        unix_time: now(),
    })
}

/// The upgrade under way; killed on drop.
struct Process(Child);

impl Process {
    #[expect(clippy::disallowed_methods, reason = "what a program says, for the error")]
    fn start(command: &Command, said: &Path) -> Result<Self> {
        let said = File::create(said)?;
        let mut again = Command::new(command.get_program());
        again.args(command.get_args()).stdin(Stdio::null());
        Ok(Self(again.stdout(said.try_clone()?).stderr(said).spawn()?))
    }

    fn kill(&mut self) -> Result {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
