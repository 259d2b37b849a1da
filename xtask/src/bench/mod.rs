//! `cargo xtask bench`: each figure beside a peer, in one run, on the same tree.
//!
//! ```text
//!   build     varve-repo build           | ostree commit, archive repository
//!   upgrade   varve upgrade, to promoted | ostree pull + checkout -H, same HTTP server
//!   copy      copy by links, and a merge | cp -al
//!   boot      the boot stage itself      | a plain mount of the same disk on the same machine
//!   layers    1 to 200 layers at boot    | one layer; a capture; a live change
//!   rollback  varve rollback             | its own time on a system of one file
//!   transfer  bytes on the wire          | OSTree, casync, zchunk, zstd, rsync, same server
//!   resume    bytes, cut and killed      | one clean run
//! ```
//!
//! The last two take long and run only when they are named; they keep their own record.
//!
//! Every figure is the least of several runs, the runs of the two taking turns, so that a
//! busy machine disturbs both. The table goes to `target/varve/bench.txt` too.

mod boot;
mod build;
mod clients;
mod copy;
mod layers;
mod measure;
mod resume;
mod rollback;
mod transfer;
mod upgrade;

use crate::device::{self, Programs};
use crate::packages;
use crate::project::{Result, cache, write};
use crate::releases::{self, Pair, Suite};
use crate::trees::{self, Generator, Tree};
use measure::Figure;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// What every benchmark works on.
struct Bench {
    programs: Programs,
    old: Tree,
    new: Tree,
    /// Empty at the start of each benchmark; on the file system of the cache.
    scratch: PathBuf,
}

type Benchmark = fn(&Bench) -> Result<Vec<Figure>>;

const ALL: &[(&str, Benchmark)] = &[
    ("build", build::run),
    ("upgrade", upgrade::run),
    ("copy", copy::run),
    ("rollback", rollback::run),
    ("boot", boot::run),
    ("layers", layers::run),
];

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this one: build, upgrade, copy, rollback, boot, layers; or one of those that run only
    /// when they are named: transfer (about an hour), resume (about a quarter of one)
    name: Option<String>,
    /// transfer: only these pairs of releases
    #[arg(long, value_delimiter = ',', value_name = "PAIR")]
    pair: Vec<transfer::PairName>,
    /// transfer: only these tools; what they measure is added to what is recorded
    #[arg(long, value_delimiter = ',', value_name = "TOOL")]
    only: Vec<transfer::Who>,
    /// transfer: measure nothing, write the documentation of what is recorded, and judge it
    #[arg(long, conflicts_with_all = ["pair", "only"])]
    draw: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result {
    let Arguments { name, pair, only, draw } = arguments;
    let name = name.as_deref();
    match name {
        Some("transfer") => return transfer::run(pair, only, *draw),
        _ if *draw || !pair.is_empty() || !only.is_empty() => {
            return Err("--pair, --only and --draw are for the benchmark transfer".into());
        }
        Some("resume") => return resume::run(),
        _ => {}
    }
    let chosen: Vec<_> =
        ALL.iter().filter(|(known, _)| name.is_none_or(|name| name == *known)).collect();
    if chosen.is_empty() {
        let names = ALL.iter().map(|(name, _)| *name).chain(["transfer", "resume"]);
        let names: Vec<_> = names.collect();
        return Err(format!("there is no such benchmark; there are: {}", names.join(", ")).into());
    }
    packages::need_root("bench")?;
    packages::ensure(packages::For::Bench)?;
    let programs = device::build()?;
    let pair = releases::pair(Suite::Trixie)?;
    let tree = |release, which: &str| {
        trees::make(release, &format!("debian-13-{which}"), &programs, Generator::InitramfsTools)
    };
    let (old, new) = (tree(&pair.old, "old")?, tree(&pair.new, "new")?);
    let bench = Bench { old, new, scratch: cache()?.join("bench"), programs };
    let mut text = heading(&pair);
    println!("{text}");
    let mut late = Vec::new();
    for (name, benchmark) in chosen {
        trees::remove(&bench.scratch)?;
        std::fs::create_dir_all(&bench.scratch)?;
        let figures = benchmark(&bench).map_err(|error| format!("{name}: {error}"))?;
        trees::remove(&bench.scratch)?;
        for figure in figures {
            println!("{figure}");
            text.push_str(&format!("{figure}\n"));
            if figure.misses() {
                late.push(figure.name.clone());
            }
        }
    }
    write(&cache()?.join("bench.txt"), &text)?;
    if late.is_empty() {
        Ok(())
    } else {
        Err(format!("over the limit: {}", late.join("; ")).into())
    }
}

fn heading(pair: &Pair) -> String {
    let now =
        SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_secs()).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "unix time {now}; {cores} processors, load {}\n{}\n",
        load.split(' ').next().unwrap_or("?"),
        releases::describe(Suite::Trixie, pair)
    )
}
