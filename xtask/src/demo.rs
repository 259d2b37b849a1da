//! `cargo xtask demo`: the main job on real input, told step by step.
//!
//! The machine stays on `target/varve/demo/disk.img`; `--shell` boots it on this terminal.

use crate::device;
use crate::lab::{self, STABLE};
use crate::packages;
use crate::project::{Result, cache, megabytes, rename, seconds};
use crate::releases::{self, Suite};
use crate::trees::{Fault, Generator, remove};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use varve_testkit::vm::guest::{Guest, value};
use varve_testkit::vm::lab::{Lab, System};
use varve_testkit::vm::{HOST_FROM_GUEST, QEMU, disk, serve::Server};

/// The server of `--shell` takes this port if it is free, so that the machine's
/// configuration stays right from one time to the next.
const PORT: u16 = 8480;

/// How to show it.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Gives the machine of the last demonstration to you, on this terminal.
    #[arg(long)]
    shell: bool,
    /// How the root is held: overlay or hard-link.
    #[arg(long, default_value = "overlay", value_parser = lab::LAYOUTS)]
    layout: String,
}

/// Numbers the steps and says how long each took.
struct Story {
    step: u32,
    begin: Instant,
    all: Instant,
}

impl Story {
    fn next(&mut self, what: &str) {
        self.step += 1;
        self.begin = Instant::now();
        println!("\n{}. {what}", self.step);
    }

    fn say(&self, what: &str) {
        for line in what.lines() {
            println!("   {line}");
        }
    }

    fn done(&self, what: &str) {
        println!("   {what} [{}]", seconds(self.begin.elapsed()));
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result {
    packages::need_root("demo")?;
    let now = Instant::now();
    let mut story = Story { step: 0, begin: now, all: now };
    story.next("What this machine needs");
    packages::ensure(packages::For::Lab)?;
    let programs = device::build()?;
    for path in [&programs.varve, &programs.boot] {
        story.say(&format!("{}: {}, static", path.display(), megabytes(fs::metadata(path)?.len())));
    }
    story.done("all there");

    story.next("Two real releases of Debian 13");
    let pair = releases::pair(Suite::Trixie)?;
    story.say(&releases::describe(Suite::Trixie, &pair));
    story.done("made, or found made");

    story.next("Published, and the first one installed on a disk");
    let layout = arguments.layout.as_str();
    let system = lab::system(
        "debian-13",
        &pair,
        &programs,
        Generator::InitramfsTools,
        &Fault::ALL,
        &[layout],
    )?;
    story.say(&format!(
        "the repository holds {} of static files",
        megabytes(size_of(&system.repository)?)
    ));
    story.done(&format!("layout {layout}"));

    let kept = cache()?.join("demo");
    let disk_kept = kept.join("disk.img");
    if arguments.shell {
        fs::create_dir_all(&kept)?;
        if !disk_kept.exists() {
            disk::copy(&system.images[layout], &disk_kept)?;
        }
        return shell(&system, &disk_kept);
    }
    let lab = Lab {
        systems: BTreeMap::from([("debian-13".to_owned(), system)]),
        scratch: cache()?.join("scratch"),
    };
    let mut guest = lab.guest("debian-13", layout)?;
    tell(&mut story, &mut guest)?;

    story.next("Switched off");
    let disk = guest.disk.clone();
    guest.power_off(Duration::from_secs(120))?;
    fs::create_dir_all(&kept)?;
    let part = kept.join("disk.part");
    remove(&part)?;
    disk::copy(&disk, &part)?;
    rename(&part, &disk_kept)?;
    story.done(&format!("the disk is kept: {}", disk_kept.display()));
    println!(
        "\nAll of it took {}. The machine is yours: cargo xtask demo --shell",
        seconds(story.all.elapsed())
    );
    Ok(())
}

/// From the first boot to the rollback.
fn tell(story: &mut Story, guest: &mut Guest) -> Result {
    let (old, new) = (guest.system.old.clone(), guest.system.new.clone());
    story.next(&format!(
        "{old} boots in a virtual machine (software emulation, so it takes its time)"
    ));
    guest.boot()?;
    runs(story, guest, &old)?;

    story.next(&format!("Upgrade over HTTP to {new}, while the system runs"));
    guest.connect(STABLE)?;
    let plan = guest.run("varve upgrade --dry-run")?;
    story.say(&plan);
    let done = guest.upgrade(STABLE)?;
    story.say(&done.said);
    story.done(&format!(
        "the server counted {} in {} requests; the upgrade itself took {}",
        megabytes(done.bytes),
        done.requests,
        seconds(done.time)
    ));

    story.next(&format!("Reboot into {new}, on trial"));
    guest.reboot()?;
    runs(story, guest, &new)?;
    story.next("The health checks confirm it");
    let end = Instant::now() + varve_testkit::vm::lab::BOOT;
    while guest.selection()?.contains("tries") {
        if Instant::now() > end {
            return Err(format!("it was not confirmed:\n{}", guest.run("varve status")?).into());
        }
        std::thread::sleep(Duration::from_secs(2));
    }
    story.say(&guest.run("varve status")?);
    story.done("confirmed");

    story.next(&format!("ESC is held while it boots: {old}, this once"));
    guest.reboot_holding_escape()?;
    runs(story, guest, &old)?;

    story.next(&format!("Without the key: {new} again"));
    guest.reboot()?;
    runs(story, guest, &new)?;

    story.next("Rolled back for good: one small file");
    story.say(&guest.run("varve rollback")?);
    guest.reboot()?;
    runs(story, guest, &old)?;
    story.say(&guest.run("varve history")?);
    Ok(())
}

/// Says what runs, by the label in the tree itself, and fails if it is not what was meant.
fn runs(story: &Story, guest: &mut Guest, expected: &str) -> Result {
    let running = guest.running()?;
    let report = guest.boot_report()?;
    if running != expected {
        return Err(format!("{running} runs, not {expected}:\n{report}").into());
    }
    let openssl = guest.run("dpkg-query --show --showformat '${Version}' openssl")?;
    let microseconds: f64 = value(&report, "microseconds").parse().unwrap_or_default();
    story.done(&format!(
        "{running} runs (openssl {openssl}); why: {}; the boot stage took {:.0} ms",
        value(&report, "reason"),
        microseconds / 1e3
    ));
    Ok(())
}

/// The machine on this terminal.
fn shell(system: &System, disk: &Path) -> Result {
    let server = match Server::start_on(&system.repository, PORT) {
        Ok(server) => server,
        Err(_) => Server::start(&system.repository)?,
    };
    println!(
        "\nThe repository is served. In the machine, in /etc/varve/varve.toml:\n  \
         sources = [\"http://{HOST_FROM_GUEST}:{}\"]\n\
         Then: varve check; varve upgrade; varve status; varve rollback; reboot.\n\
         Type ESC while it boots for the previous system. Ctrl-A X ends the machine.\n",
        server.port()
    );
    let mut config =
        varve_testkit::vm::Config::new(Path::new("/tmp"), &system.kernel, &system.initrd, disk);
    // Two seconds more for a person to press the key.
    config.append.push_str(" varve.keywait=2000");
    let status = Command::new(QEMU)
        .args(config.arguments_on_terminal())
        .stdin(Stdio::inherit())
        .status()
        .map_err(|error| format!("{QEMU}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{QEMU} ended with {status}").into()) }
}

/// What a folder holds, in bytes on the disk.
fn size_of(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    let mut open: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let data = entry.metadata()?;
            if data.is_dir() { open.push(entry.path()) } else { bytes += data.blocks() * 512 }
        }
    }
    Ok(bytes)
}
