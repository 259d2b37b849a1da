//! `cargo xtask bench transfer`: bytes on the wire, memory and time of an upgrade, beside
//! what others take for the same.
//!
//! ```text
//!   ground ── two trees ─┬─ ours ───┐
//!                        └─ peers ──┼─ record (target/varve/transfer.json) ─┬─ judge: the limits
//!                                   │                                       ├─ plot: docs/transfer.svg
//!               resume ─────────────┘                                       └─ page: docs/transfer.md
//! ```
//!
//! One server that counts serves everybody. A run of a part (`--pair`, `--only`) adds to
//! what is recorded. When nothing is missing, or with `--draw`, the documentation is written;
//! until then the same two files go to `target/varve`.

mod ground;
mod judge;
mod ours;
mod page;
mod peers;
mod plot;
mod record;

pub(super) use ground::Ground;
pub(super) use ours::{Stage, may_use};
pub(crate) use record::PairName;
pub(super) use record::{By, Record, Resume, now};

use super::measure::{Cost, Figure};
use crate::project::{Result, cache, root, write};
use crate::{device, packages};
use clap::ValueEnum;
use record::{Row, Took, Way};
use std::path::Path;
use varve_testkit::faulty::Server;

/// How often what is fast is run, for the least time.
const ROUNDS: u32 = 2;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Who {
    Varve,
    Ostree,
    Casync,
    Zchunk,
    Zstd,
    Rsync,
}

/// Measures what was asked for, adds it to the record, draws, and judges.
pub(super) fn run(pairs: &[PairName], only: &[Who], draw: bool) -> Result {
    let mut record = Record::load()?;
    if !draw {
        packages::need_root("bench transfer")?;
        packages::ensure(packages::For::Bench)?;
        let programs = device::build()?;
        for name in PairName::ALL.into_iter().filter(|p| pairs.is_empty() || pairs.contains(p)) {
            let ground = Ground::new(name, &programs)?;
            println!("\n{}: {}", name.title(), ground.describe);
            let mut add = Add { record: &mut record, ground: &ground };
            for who in Who::value_variants() {
                if only.is_empty() || only.contains(who) {
                    who.run(&ground, &mut add)
                        .map_err(|error| format!("{}, {who:?}: {error}", name.name()))?;
                }
            }
            ground.clear()?;
        }
    }
    finish(&record, draw)
}

impl Who {
    fn run(self, ground: &Ground, add: &mut Add<'_>) -> Result {
        match self {
            Self::Varve => ours::run(ground, add),
            Self::Ostree => peers::ostree(ground, add),
            Self::Casync => peers::casync(ground, add),
            Self::Zchunk => peers::zchunk(ground, add),
            Self::Zstd => peers::zstd(ground, add),
            Self::Rsync => peers::rsync(ground, add),
        }
    }
}

/// Where rows of a pair go: shown, and saved at once.
struct Add<'a> {
    record: &'a mut Record,
    ground: &'a Ground,
}

impl Add<'_> {
    fn row(&mut self, way: Way, row: Row) -> Result {
        println!("{}", page::line(way, &row));
        self.figures().rows.insert(way, row);
        self.record.save()
    }

    fn second_delta(&mut self, took: Took) -> Result {
        self.figures().second_delta = Some(took);
        self.record.save()
    }

    fn figures(&mut self) -> &mut record::Figures {
        let Ground { name, key, describe, .. } = self.ground;
        self.record.pair(*name, key, describe)
    }
}

/// Runs a client of a repository so many times, each time with a server of its own: the
/// least that it took, and what was moved.
fn from_server(
    repository: &Path,
    rounds: u32,
    mut run: impl FnMut(&str) -> Result<Cost>,
) -> Result<Row> {
    let (mut least, mut moved, mut requests) = (Cost::ANY, 0, 0);
    for _ in 0..rounds {
        let server = Server::good(repository);
        least = least.and(run(server.url.trim_end_matches('/'))?);
        (moved, requests) = (server.moved(), server.log().len() as u64);
    }
    Ok(Row::new(moved, Some(requests), least))
}

/// Draws what there is, and judges it: into the documentation when nothing is missing, or when
/// that is `wanted`.
pub(super) fn finish(record: &Record, wanted: bool) -> Result {
    let figures = judge::judge(record);
    println!();
    for figure in &figures {
        println!("{figure}");
    }
    let folder = if wanted || record.is_complete() { root().join("docs") } else { cache()? };
    let [picture, text] = ["transfer.svg", "transfer.md"].map(|name| folder.join(name));
    write(&picture, plot::draw(record))?;
    write(&text, page::write(record, &figures))?;
    println!("\n{}\n{}", picture.display(), text.display());
    let over: Vec<_> = figures.iter().filter(|figure| figure.misses()).collect();
    match over[..] {
        [] => Ok(()),
        _ => Err(format!("over the limit: {}", names(&over)).into()),
    }
}

fn names(figures: &[&Figure]) -> String {
    figures.iter().map(|figure| figure.name.as_str()).collect::<Vec<_>>().join("; ")
}
