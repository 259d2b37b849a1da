//! What many layers cost: putting them together at boot, a look at every path, capturing a
//! change, and the pause that a live change is to those who read.
//!
//! ```text
//! disk image  varve init (Debian 13, root-mode persistent)  + varve layer add, up to 200
//!   boot      mounted fresh; varve-boot in a mount namespace of its own; then ls -lR
//!   capture   varve layer capture --dry-run of 1 and of 64 MiB; of Debian and of one file
//!   pause     crates/agent/tests/live.rs: a reader while /usr is exchanged
//! ```
//!
//! "Cold" is the file system just mounted: nothing of it is in the kernel's caches; the image
//! itself is in the host's memory, so that no disk of the host is measured.

use super::Bench;
use super::measure::{Figure, cost, settle};
use crate::lab::{self, Publisher, STABLE};
use crate::project::{Result, cargo, output, program, write};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use varve_testkit::vm::disk::Mounted;

/// Layers of a root, the system itself counted.
const HEIGHTS: [usize; 5] = [1, 2, 16, 64, 200];
const ROUNDS: u32 = 3;
/// Milliseconds that the boot stage may take for 200 layers more than for one.
const LIMIT: f64 = 50.0;

/// Runs the boot stage itself, and looks at every path twice. The first argument is the
/// mounted image, the second the program.
const BOOT: &str = r#"set -e
mount -t tmpfs none /run
mount --bind /dev/null /dev/kmsg
/usr/bin/time --quiet -f 'memory %M' "$2" "$1" 2>&1 >/dev/null
grep -E '^(microseconds|deployment|stack)' /run/varve/boot.toml
for name in cold warm; do
    begin=$(date +%s%N); ls -lR "$1" > /run/list; end=$(date +%s%N)
    echo "$name $(( (end - begin) / 1000 ))"
done
echo "lines $(wc -l < /run/list)"
"#;

pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let whole = Device::make(bench, "whole", &bench.old.folder)?;
    let mut first: Option<Boot> = None;
    for height in HEIGHTS {
        whole.grow_to(bench, height)?;
        let boot = whole.boot(bench)?;
        if boot.height != height {
            return Err(format!("{} layers were mounted, not {height}", boot.height).into());
        }
        let one = first.get_or_insert(boot);
        let name = |what: &str| format!("{height} layers: {what}");
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let more = ms(boot.stage.saturating_sub(one.stage));
        figures.push(Figure {
            limit: (height == 200).then_some(LIMIT),
            note: format!(
                "the stage in all {:.2} ms, {} KiB of memory",
                ms(boot.stage),
                boot.memory
            ),
            ..Figure::fact(&name("boot, more than one"), more, "ms", String::new())
        });
        let ratio = boot.cold.as_secs_f64() / one.cold.as_secs_f64();
        let note = format!(
            "{:.0} ms for {} lines; warm {:.0} ms, of one {:.0} ms",
            ms(boot.cold),
            boot.lines,
            ms(boot.warm),
            ms(one.warm)
        );
        figures.push(Figure::fact(&name("cold ls -lR"), ratio, "of one", note));
    }
    let small = bench.scratch.join("small-tree");
    for folder in ["etc/varve", "var", "home", "root", "usr/sbin"] {
        fs::create_dir_all(small.join(folder))?;
    }
    write(&small.join("usr/sbin/init"), "#!/bin/sh\n")?;
    let small = Device::make(bench, "small", &small)?;
    let whole = Device::make(bench, "again", &bench.old.folder)?;
    for mebibytes in [1, 64] {
        let [of_whole, of_small] =
            [whole.capture(bench, mebibytes)?, small.capture(bench, mebibytes)?];
        let name = format!("capture of {mebibytes} MiB, Debian");
        figures.push(Figure::ratio(&name, of_whole, ("a system of one file", of_small), 2.0));
    }
    figures.push(pause()?);
    Ok(figures)
}

/// What a boot took.
#[derive(Debug, Clone, Copy)]
struct Boot {
    height: usize,
    stage: Duration,
    memory: u64,
    cold: Duration,
    warm: Duration,
    lines: u64,
}

/// A disk image with a device on it.
struct Device {
    image: PathBuf,
    mount: PathBuf,
    config: PathBuf,
    folder: PathBuf,
}

impl Device {
    fn make(bench: &Bench, name: &str, tree: &Path) -> Result<Self> {
        let folder = bench.scratch.join(name);
        let [image, mount, config] = ["disk.img", "mount", "varve.toml"].map(|n| folder.join(n));
        fs::create_dir_all(&mount)?;
        let publisher = Publisher::init(&folder, &bench.programs)?;
        publisher.release(tree, "old", STABLE)?;
        let text = lab::configuration("overlay")
            .replace(lab::NO_SOURCE, &publisher.repository.display().to_string())
            .replace("\"volatile\"", "\"persistent\"");
        lab::install(&image, &publisher.repository, "old", &text, &bench.programs)?;
        write(&config, text)?;
        Ok(Self { image, mount, config, folder })
    }

    fn varve(&self, bench: &Bench) -> Command {
        let mut command = Command::new(&bench.programs.varve);
        command.arg("--quiet").arg("--root").arg(&self.mount).arg("--config").arg(&self.config);
        command
    }

    /// Adds layers: each has a directory of its own and replaces files of the system.
    fn grow_to(&self, bench: &Bench, height: usize) -> Result {
        let mounted = Mounted::new(&self.image, &self.mount)?;
        let docs = bench.old.folder.join("usr/share/doc");
        let mut packages: Vec<_> =
            fs::read_dir(&docs)?.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        packages.sort();
        let own = fs::read_dir(self.mount.join("varve/layers"))?.count();
        for number in own..height {
            let layer = self.folder.join("layer");
            let new = layer.join(format!("usr/share/layer-{number}"));
            fs::create_dir_all(&new)?;
            for file in 0..10 {
                write(&new.join(file.to_string()), format!("{number} {file}"))?;
                let package = &packages[(number * 10 + file) % packages.len()];
                let folder = layer.join("usr/share/doc").join(package);
                fs::create_dir_all(&folder)?;
                write(&folder.join("copyright"), format!("{number}"))?;
            }
            let mut add = self.varve(bench);
            add.args(["layer", "add"]).arg(&layer).args(["--name", &format!("layer-{number}")]);
            output(&mut add)?;
            fs::remove_dir_all(&layer)?;
        }
        output(self.varve(bench).arg("confirm"))?;
        mounted.unmount().map_err(Into::into)
    }

    fn boot(&self, bench: &Bench) -> Result<Boot> {
        let mut least: Option<Boot> = None;
        for _ in 0..ROUNDS {
            let mounted = Mounted::new(&self.image, &self.mount)?;
            settle();
            let mut command = program("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-c", BOOT, "sh"]);
            let text = output(command.arg(&self.mount).arg(&bench.programs.boot))?;
            mounted.unmount()?;
            let boot = Boot::parse(&text).ok_or_else(|| format!("the boot said:\n{text}"))?;
            let before = least.unwrap_or(boot);
            least = Some(Boot {
                stage: boot.stage.min(before.stage),
                memory: boot.memory.max(before.memory),
                cold: boot.cold.min(before.cold),
                warm: boot.warm.min(before.warm),
                ..boot
            });
        }
        Ok(least.expect("there is a round"))
    }

    /// The time to make a layer of so much in the writable top; it is thrown away.
    fn capture(&self, bench: &Bench, mebibytes: usize) -> Result<Duration> {
        let mounted = Mounted::new(&self.image, &self.mount)?;
        let states = self.mount.join("varve/state/versioned");
        let state = fs::read_dir(&states)?.next().ok_or("there is no state")??.path();
        let upper = state.join("!/upper/usr/share/changed");
        fs::create_dir_all(&upper)?;
        for file in 0..mebibytes * 4 {
            write(&upper.join(file.to_string()), vec![file as u8; 256 << 10])?;
        }
        let mut least = Duration::MAX;
        for _ in 0..ROUNDS {
            settle();
            let mut capture = self.varve(bench);
            capture.args(["layer", "capture", "changed", "--dry-run"]);
            least = least.min(cost(&capture)?.time);
        }
        fs::remove_dir_all(&upper)?;
        mounted.unmount()?;
        Ok(least)
    }
}

impl Boot {
    fn parse(text: &str) -> Option<Self> {
        let words: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(key, value)| (key, value.trim_start_matches("= ")))
            .collect();
        let number = |key: &str| words.get(key)?.parse::<u64>().ok();
        let time = |key: &str| number(key).map(Duration::from_micros);
        Some(Self {
            height: words.get("stack")?.matches("layers/").count()
                + words.get("stack")?.matches("trees/").count(),
            stage: time("microseconds")?,
            memory: number("memory")?,
            cold: time("cold")?,
            warm: time("warm")?,
            lines: number("lines")?,
        })
    }
}

/// The longest that a reader waits while `/usr` is exchanged under it: what the test of it
/// says.
fn pause() -> Result<Figure> {
    let mut test = cargo();
    test.args(["test", "--quiet", "--locked", "--package", "varve-agent", "--test", "live"]);
    test.args(["a_reader_never_misses_a_file_overlay", "--", "--nocapture"]);
    let text = output(&mut test)?;
    let numbers = |line: &str| -> Vec<u64> {
        line.split([' ', ',', ';']).filter_map(|word| word.parse().ok()).collect()
    };
    let find = |words: &str| text.lines().find(|line| line.contains(words)).map(numbers);
    let calm = find("before the first switch").unwrap_or_default();
    let found = find("reads across").unwrap_or_default();
    let ([calm], [reads, switches, longest, switch]) = (&calm[..], &found[..]) else {
        return Err(format!("the test said:\n{text}").into());
    };
    let note = format!(
        "{reads} reads across {switches} changes, none failed; before them {calm} \u{b5}s; the \
         longest change {switch} \u{b5}s"
    );
    Ok(Figure::fact("live change: longest read", *longest as f64, "\u{b5}s", note))
}
