//! The command line: which cases, how many states, what is told.
//!
//! Everything happens in a mount namespace of its own, in memory: nothing is left behind,
//! also when the program is killed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use varve_powercut::disk::{FILE_SYSTEMS, FileSystem, run};
use varve_powercut::failing;
use varve_powercut::run::{Case, Deep, Outcome, replay};
use varve_powercut::scenario::{self, Scenario};
use varve_powercut::server::{self, Host};
use varve_powercut::vm::{self, Moment, Wish};
use varve_powercut::{Result, RigError};

/// Prints a line; a reader that has gone away is no reason to stop.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// Tells the process that does the work which one started it, outside.
const INSIDE: &str = "VARVE_POWERCUT_INSIDE";
/// What notices that a safety step is missing: a journal, and what needs each sync.
const FAULTS: [&str; 2] = ["ext4", "strict"];
const PLACE: &str = "/run/varve-powercut";

/// Cuts the power at every point of varve's work and looks whether the device lives on.
#[derive(Debug, Parser)]
#[command(name = "varve-powercut", version)]
struct Arguments {
    /// File systems, separated by commas; all that the kernel has when left out, with --faults
    /// ext4 and `strict`, the crash model of the tests.
    #[arg(long, value_delimiter = ',')]
    fs: Vec<String>,
    /// Leave out those of --fs that this kernel does not have; else they are an error.
    #[arg(long)]
    present: bool,
    /// Scenarios, separated by commas; all when left out.
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<String>,
    /// How many disk states to judge for each scenario on each file system.
    #[arg(long, default_value_t = 200)]
    states: usize,
    /// For how many of these states the recovery is cut again.
    #[arg(long, default_value_t = 4)]
    deep: usize,
    /// How many states to judge of each recovery.
    #[arg(long, default_value_t = 10)]
    deep_states: usize,
    /// Seed of all random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run again and again with fresh seeds for so many hours.
    #[arg(long)]
    hours: Option<f64>,
    /// Stop after so many minutes, whatever is left.
    #[arg(long)]
    minutes: Option<f64>,
    /// Take out each safety step in turn; each must be noticed.
    #[arg(long)]
    faults: bool,
    /// With --faults: only the steps whose names begin so; several are separated by commas.
    /// All but the checks (`check.`), which have tests of their own, when left out.
    #[arg(long, value_delimiter = ',')]
    step: Vec<String>,
    /// Let reads and writes of the disk fail instead of the power: so many failures of each
    /// scenario.
    #[arg(long, value_name = "FAILURES")]
    errors: Option<usize>,
    /// Cut the power of a real Debian in a virtual machine so many times instead.
    #[arg(long, value_name = "CUTS")]
    vm: Option<usize>,
    /// With --vm: how the root is held, overlay or hard-link; with both, machine by machine
    /// the other one.
    #[arg(long, value_delimiter = ',', default_values = ["overlay", "hard-link"])]
    layout: Vec<String>,
    /// Judge a kept state again.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Where failing states are kept.
    #[arg(long, default_value = "target/varve/powercut")]
    keep: PathBuf,
    /// How many states to judge, or machines to run, at once.
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

pub(crate) fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|first| first == server::ARGUMENT) {
        return ended(server::serve(words).map(|()| true));
    }
    let arguments = Arguments::parse();
    match std::env::var(INSIDE) {
        Ok(outside) => ended(host(&outside).and_then(|host| work(&arguments, &host))),
        Err(_) => enter(),
    }
}

fn ended(done: Result<bool>) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            ExitCode::from(2)
        }
    }
}

/// Starts this program again in a mount namespace of its own.
fn enter() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("error: the power-cut rig mounts file systems: run it as root");
        return ExitCode::from(2);
    }
    let itself = match itself() {
        Ok(path) => path,
        Err(error) => return ended(Err(error)),
    };
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(itself);
    command.args(std::env::args_os().skip(1));
    command.env(INSIDE, std::process::id().to_string());
    match command.status() {
        Ok(status) => ExitCode::from(u8::try_from(status.code().unwrap_or(2)).unwrap_or(2)),
        Err(error) => {
            eprintln!("error: cannot run unshare (package util-linux): {error}");
            ExitCode::from(2)
        }
    }
}

fn itself() -> Result<PathBuf> {
    let failed = |source| RigError::Io { operation: "find", path: "this program".into(), source };
    std::env::current_exe().map_err(failed)
}

/// Who serves disks to this process, which process `outside` started. It ends with that one.
fn host(outside: &str) -> Result<Host> {
    let failed = |source: rustix::io::Errno| RigError::Io {
        operation: "end with",
        path: format!("process {outside}").into(),
        source: source.into(),
    };
    let with_it = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(with_it).map_err(failed)?;
    // It may have ended before that.
    if std::os::unix::process::parent_id().to_string() != outside {
        return Err(failed(rustix::io::Errno::SRCH));
    }
    let outside = PathBuf::from(format!("/proc/{outside}/ns/mnt"));
    Ok(Host { program: itself()?, outside: Some(outside) })
}

fn work(arguments: &Arguments, host: &Host) -> Result<bool> {
    let place = Path::new(PLACE);
    let failed = |source| RigError::Io { operation: "make", path: place.into(), source };
    std::fs::create_dir_all(place).map_err(failed)?;
    run("mount", &["-t", "tmpfs", "-o", "size=75%,mode=0700", "varve-powercut", PLACE])?;
    if let Some(file) = &arguments.replay {
        return replayed(host, file, place);
    }
    if let Some(cuts) = arguments.vm {
        return machines(arguments, cuts);
    }
    let file_systems = file_systems(arguments)?;
    let scenarios = if arguments.scenario.is_empty() {
        scenario::all()
    } else {
        arguments.scenario.iter().map(|name| scenario::named(name)).collect::<Result<_>>()?
    };
    let until = until(arguments);
    if arguments.faults {
        return faults(arguments, host, &file_systems, &scenarios, until);
    }
    if let Some(count) = arguments.errors {
        return errors(arguments, host, count, &file_systems, &scenarios, until);
    }
    let mut seed = arguments.seed;
    let mut good = true;
    loop {
        good &= once(arguments, host, &file_systems, &scenarios, seed, until)?;
        let on = arguments.hours.is_some() && until.is_some_and(|until| Instant::now() < until);
        if !on {
            return Ok(good);
        }
        seed += 1;
        say!("again, with seed {seed}");
    }
}

/// When the time is over, if there is an end.
fn until(arguments: &Arguments) -> Option<Instant> {
    let minutes = arguments.minutes.or(arguments.hours.map(|hours| hours * 60.0))?;
    Some(Instant::now() + Duration::from_secs_f64(minutes * 60.0))
}

fn file_systems(arguments: &Arguments) -> Result<Vec<&'static FileSystem>> {
    let names = &arguments.fs;
    let named: Vec<&FileSystem> = match names.is_empty() {
        true if arguments.faults => {
            FAULTS.map(FileSystem::named).into_iter().collect::<Result<_>>()?
        }
        true => FILE_SYSTEMS.iter().collect(),
        false => names.iter().map(|name| FileSystem::named(name)).collect::<Result<_>>()?,
    };
    if !names.is_empty() && !arguments.present {
        return Ok(named);
    }
    let (here, absent): (Vec<_>, Vec<&FileSystem>) =
        named.into_iter().partition(|fs| fs.is_in_kernel());
    for fs in absent {
        say!("{}: not in this kernel, left out", fs.name);
    }
    Ok(here)
}

fn case<'a>(
    arguments: &'a Arguments,
    host: &'a Host,
    scenario: &'a dyn Scenario,
    fs: &'static FileSystem,
    scratch: &'a Path,
    until: Option<Instant>,
) -> Case<'a> {
    Case {
        scenario,
        fs,
        host,
        scratch,
        keep: Some(&arguments.keep),
        first_only: false,
        workers: arguments.workers,
        until,
        fault: None,
        known: &[],
    }
}

/// A fresh directory at the same place each time: paths that a scenario writes into a
/// configuration stay true when a state is replayed.
fn fresh(place: &Path) -> Result<PathBuf> {
    let path = place.join("case");
    let failed = |source| RigError::Io { operation: "make", path: path.clone(), source };
    if path.exists() {
        std::fs::remove_dir_all(&path).map_err(failed)?;
    }
    std::fs::create_dir(&path).map_err(failed)?;
    Ok(path)
}

fn once(
    arguments: &Arguments,
    host: &Host,
    file_systems: &[&'static FileSystem],
    scenarios: &[Box<dyn Scenario>],
    seed: u64,
    until: Option<Instant>,
) -> Result<bool> {
    let mut total = Outcome::default();
    let deep = Deep { origins: arguments.deep, states: arguments.deep_states };
    say!(
        "{:<20} {:<27} {:>7} {:>8} {:>7} {:>6} {:>6} {:>8} {:>7}",
        "scenario",
        "file system",
        "flushes",
        "written",
        "states",
        "deep",
        "fs",
        "failing",
        "time"
    );
    for scenario in scenarios {
        for fs in file_systems {
            if until.is_some_and(|until| Instant::now() >= until) {
                say!("{:<20} {:<27} left out: the time is over", scenario.name(), fs.name);
                continue;
            }
            let scratch = fresh(Path::new(PLACE))?;
            let case = case(arguments, host, &**scenario, fs, &scratch, until);
            let recorded = case.record()?;
            let outcome = case.judge(&recorded, arguments.states, deep, seed)?;
            say!(
                "{:<20} {:<27} {:>7} {:>6.1} M {:>7} {:>6} {:>6} {:>8} {:>5.1} s",
                scenario.name(),
                fs.name,
                outcome.flushes,
                outcome.bytes as f64 / 1e6,
                outcome.tried,
                outcome.deep,
                outcome.not_ours.len(),
                outcome.failing.len(),
                outcome.time.as_secs_f64()
            );
            for failing in &outcome.failing {
                tell(failing);
            }
            total.tried += outcome.tried;
            total.deep += outcome.deep;
            total.time += outcome.time;
            total.failing.extend(outcome.failing);
            total.not_ours.extend(outcome.not_ours);
        }
    }
    say!(
        "{} states, {} of them cuts during a recovery, in {:.0} s: {} failing",
        total.tried,
        total.deep,
        total.time.as_secs_f64(),
        total.failing.len()
    );
    if let Some(first) = total.not_ours.first() {
        say!(
            "{} more in which the file system itself broke its word, such as {}: {}",
            total.not_ours.len(),
            first.state,
            first.findings.first().map_or("", String::as_str)
        );
    }
    Ok(total.failing.is_empty())
}

/// The most findings that are shown of one state.
const SHOWN: usize = 4;

fn tell(failing: &varve_powercut::run::Failing) {
    say!("  state {}:", failing.state);
    for finding in failing.findings.iter().take(SHOWN) {
        say!("    {finding}");
    }
    if failing.findings.len() > SHOWN {
        say!("    and {} more", failing.findings.len() - SHOWN);
    }
    if let Some(kept) = &failing.kept {
        say!("    kept: cargo xtask powercut --replay {}", kept.display());
    }
}

fn machines(arguments: &Arguments, cuts: usize) -> Result<bool> {
    let began = Instant::now();
    let told = |line: &str| say!("{:>5.0} s  {line}", began.elapsed().as_secs_f64());
    let wish = Wish {
        system: "debian-13",
        layouts: &arguments.layout,
        machines: arguments.workers,
        cuts,
        until: until(arguments),
        seed: arguments.seed,
        keep: &arguments.keep,
    };
    let survived = vm::run(&wish, &told)?;
    let mut moments: BTreeMap<Moment, usize> = BTreeMap::new();
    for cut in &survived.cuts {
        *moments.entry(cut.moment).or_default() += 1;
    }
    let moments: Vec<String> =
        moments.iter().map(|(moment, count)| format!("{count} {moment:?}")).collect();
    say!(
        "{} cuts of {cuts} survived ({}), {} writes lost; {} logins; {:.0} s",
        survived.cuts.len(),
        moments.join(", "),
        survived.cuts.iter().map(|cut| cut.lost.lost).sum::<usize>(),
        survived.logins.len(),
        survived.time.as_secs_f64()
    );
    for finding in &survived.findings {
        say!("  {finding}");
    }
    Ok(survived.findings.is_empty())
}

fn errors(
    arguments: &Arguments,
    host: &Host,
    count: usize,
    file_systems: &[&'static FileSystem],
    scenarios: &[Box<dyn Scenario>],
    until: Option<Instant>,
) -> Result<bool> {
    let (mut tried, mut failing, mut seconds) = (0, 0, 0.0);
    say!(
        "{:<20} {:<15} {:>6} {:>6} {:>6} {:>6} {:>8} {:>7}",
        "scenario",
        "file system",
        "reads",
        "writes",
        "told",
        "coped",
        "failing",
        "time"
    );
    for scenario in scenarios {
        for fs in file_systems.iter().filter(|fs| !fs.is_model()) {
            if until.is_some_and(|until| Instant::now() >= until) {
                say!("{:<20} {:<15} left out: the time is over", scenario.name(), fs.name);
                continue;
            }
            let scratch = fresh(Path::new(PLACE))?;
            let case = case(arguments, host, &**scenario, fs, &scratch, None);
            let outcome = failing::run(&case, count, arguments.seed)?;
            say!(
                "{:<20} {:<15} {:>6} {:>6} {:>6} {:>6} {:>8} {:>5.1} s",
                scenario.name(),
                fs.name,
                outcome.tried[0],
                outcome.tried[1],
                outcome.told,
                outcome.coped,
                outcome.failing.len(),
                outcome.time.as_secs_f64()
            );
            for (name, findings) in &outcome.failing {
                say!("  {name}:");
                for finding in findings.iter().take(SHOWN) {
                    say!("    {finding}");
                }
            }
            tried += outcome.tried.iter().sum::<usize>();
            failing += outcome.failing.len();
            seconds += outcome.time.as_secs_f64();
        }
    }
    say!("{tried} failures of the disk in {seconds:.0} s: {failing} not borne");
    Ok(failing == 0)
}

fn replayed(host: &Host, file: &Path, place: &Path) -> Result<bool> {
    let scratch = fresh(place)?;
    let (about, findings) = replay(host, file, &scratch)?;
    say!("{} on {}, state {}", about.scenario, about.file_system, about.state);
    for finding in &findings {
        say!("  {finding}");
    }
    if findings.is_empty() {
        say!("  every promise is kept; when it was kept as a file, this was found:");
        for finding in &about.findings {
            say!("  {finding}");
        }
    }
    Ok(findings.is_empty())
}

#[cfg(not(feature = "faults"))]
fn faults(
    _: &Arguments,
    _: &Host,
    _: &[&'static FileSystem],
    _: &[Box<dyn Scenario>],
    _: Option<Instant>,
) -> Result<bool> {
    let how = "safety steps can be taken out in a build with the feature `faults` alone; \
               cargo xtask powercut --faults makes one";
    Err(RigError::Unknown(how.to_owned()))
}

#[cfg(feature = "faults")]
fn faults(
    arguments: &Arguments,
    host: &Host,
    file_systems: &[&'static FileSystem],
    scenarios: &[Box<dyn Scenario>],
    until: Option<Instant>,
) -> Result<bool> {
    use varve_powercut::faults::{Table, steps, try_step};
    use varve_powercut::run::CHECK;
    let mut table = Table::default();
    let began = Instant::now();
    let mut cut_short = 0;
    for scenario in scenarios {
        for fs in file_systems {
            let here = format!("{} on {}", scenario.name(), fs.name);
            if until.is_some_and(|until| Instant::now() >= until) {
                say!("{here}: left out, the time is over");
                continue;
            }
            say!("{here}");
            let scratch = fresh(Path::new(PLACE))?;
            let (steps, known) = {
                let case = case(arguments, host, &**scenario, fs, &scratch, None);
                steps(&case, arguments.states, arguments.seed)?
            };
            for finding in &known {
                say!("  there without any fault, and not counted: {finding}");
            }
            for (step, passed) in steps {
                let wanted = match arguments.step.is_empty() {
                    true => !step.starts_with(CHECK),
                    false => arguments.step.iter().any(|wanted| step.starts_with(wanted)),
                };
                if !wanted || table.is_noticed(&step, fs) {
                    continue;
                }
                if until.is_some_and(|until| Instant::now() >= until) {
                    cut_short += 1;
                    continue;
                }
                let scratch = fresh(Path::new(PLACE))?;
                let case = Case {
                    known: &known,
                    ..case(arguments, host, &**scenario, fs, &scratch, None)
                };
                let verdict = try_step(&case, &step, arguments.states, arguments.seed)?;
                let noticed = match verdict.finding {
                    Some(_) => format!("noticed after {} states", verdict.tried),
                    None => format!("not noticed in {} states", verdict.tried),
                };
                say!("  {step} (passed {passed} times): {noticed}");
                if let Some(finding) = &verdict.finding {
                    say!("      {finding}");
                }
                table.add(step, fs, scenario.name(), verdict);
            }
        }
    }
    say!("\n{table}");
    say!("in {} states and {:.0} s", table.states(), began.elapsed().as_secs_f64());
    if cut_short > 0 {
        say!("the time was over before {cut_short} more were tried");
    }
    Ok(table.is_complete())
}
