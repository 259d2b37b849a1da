//! Builds one release and prints what it cost: `build_once SOURCE REPOSITORY NAME [LEVEL
//! [THREADS]]`. For measuring with perf(1) or time(1); `varve-repo build` is the command.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use varve_build::{BuildOptions, Source};
use varve_sys::Dir;
use varve_sys::task::{Cancel, Silent};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, repository, name, rest @ ..] = &arguments[..] else {
        return Err("usage: build_once SOURCE REPOSITORY NAME [LEVEL [THREADS]]".into());
    };
    std::fs::create_dir_all(repository)?;
    let mut options = BuildOptions::new(name.parse()?);
    if let Some(level) = rest.first() {
        options.level = level.parse()?;
    }
    if let Some(threads) = rest.get(1) {
        options.threads = threads.parse()?;
    }
    let start = Instant::now();
    let report = varve_build::build(
        Source::open(Path::new(source))?,
        &Dir::open(repository)?,
        &options,
        &Silent,
        &Cancel::new(),
    )?;
    let stored = report.pack.map_or(0, |pack| pack.size);
    writeln!(
        std::io::stdout(),
        "{:.2} s; {} paths, {} bytes; new {} contents, {} bytes, stored {} ({:.4}); \
         manifest {} of {}; {}",
        start.elapsed().as_secs_f64(),
        report.record.totals.paths,
        report.record.totals.bytes,
        report.new_contents,
        report.new_bytes,
        stored,
        stored as f64 / report.new_bytes.max(1) as f64,
        report.record.manifest.size,
        report.record.manifest.text_size,
        report.record.digest,
    )?;
    Ok(())
}
