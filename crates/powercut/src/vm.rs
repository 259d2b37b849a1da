//! The machine as a whole: a real Debian in a virtual machine upgrades, goes back and stages
//! anew, and its power is cut at random moments; a disk behind it forgets what was not
//! flushed.
//!
//! ```text
//! boot --> boot stage --> login, judged --> upgrade | downgrade | restage --> shutdown --> ...
//!   '-- cut   '-- cut             '-- cut        '-- cut                        '-- cut
//! ```
//!
//! After each cut the machine must come to a login with the old release or the new one, its
//! selection and its history readable. At the end everything on the disk is compared with its
//! manifests. Several machines run beside each other, the layouts in turn, each with choices of
//! its own by the seed. Where qemu stands when it is killed depends on the host's speed, so a
//! run is repeated in its choices and not to the byte: the disk of a failing machine is kept.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use varve_testkit::vm::Error;
use varve_testkit::vm::guest::{Guest, HANDS_OVER, value};
use varve_testkit::vm::lab::{BOOT, Lab, UPGRADE};

use crate::disk::copy_image;
use crate::error::{At, Result, RigError};
use crate::lossy::{LossyDisk, Lost};

/// How long a cut waits for the disk to be written to.
const WRITES: Duration = Duration::from_secs(4);
/// What the kernel says when the initramfs begins.
const INITRAMFS: &str = "Run /init as init process";
/// How likely the power fails again before the machine is up: such a cut takes a fifth of the time of
/// one after a login, and the recovery from a cut is what must bear a cut.
const AGAIN: f64 = 0.7;

/// While a machine does what?
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Moment {
    /// In the initramfs, while its first writes come: the journal's replay, the spent try.
    BootStage,
    /// From power on to the login: firmware, kernel, boot stage, services.
    Boot,
    /// The boot is judged by the health checks.
    Judged,
    /// Something is fetched, staged, promoted.
    Upgrade,
    /// It shuts down.
    Shutdown,
}

/// One cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// When.
    pub moment: Moment,
    /// How long that had gone on.
    pub after: Duration,
    /// What the disk lost.
    pub lost: Lost,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Survived {
    /// The cuts, in order.
    pub cuts: Vec<Cut>,
    /// Boots that came to a login, and which release ran.
    pub logins: Vec<String>,
    /// What is wrong; a machine is not driven on after it.
    pub findings: Vec<String>,
    /// How long it took.
    pub time: Duration,
}

/// What is to be survived.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The system of the lab.
    pub system: &'a str,
    /// Layouts of the root; machine by machine the next one.
    pub layouts: &'a [String],
    /// How many machines run at once.
    pub machines: usize,
    /// Cuts, of all machines together.
    pub cuts: usize,
    /// No cut begins after this.
    pub until: Option<Instant>,
    /// Seed of all choices.
    pub seed: u64,
    /// Where the disk of a machine that failed is kept.
    pub keep: &'a Path,
}

/// Hears of each step of each machine.
pub type Told<'a> = &'a (dyn Fn(&str) + Sync);

/// Cuts the power of machines as wished.
///
/// # Errors
/// When the rig itself fails; what is wrong with a machine is a finding.
pub fn run(wish: &Wish<'_>, told: Told<'_>) -> Result<Survived> {
    let began = Instant::now();
    let begun = AtomicUsize::new(0);
    let results: Vec<Result<Survived>> = std::thread::scope(|scope| {
        let machines: Vec<_> = (0..wish.machines.max(1))
            .map(|number| {
                let begun = &begun;
                scope.spawn(move || {
                    let say = |line: &str| told(&format!("machine {number}: {line}"));
                    let lived = machine(wish, number, begun, &say);
                    if let Err(error) = &lived {
                        // Told now: the other machines live on for long.
                        say(&format!("the rig fails: {}", error.chain()));
                    }
                    lived
                })
            })
            .collect();
        machines.into_iter().map(|machine| machine.join().expect("it reports, or fails")).collect()
    });
    let mut all = Survived::default();
    for result in results {
        let one = result?;
        all.cuts.extend(one.cuts);
        all.logins.extend(one.logins);
        all.findings.extend(one.findings);
    }
    if all.cuts.is_empty() && all.findings.is_empty() {
        all.findings.push("the time was over before a single cut".to_owned());
    }
    all.time = began.elapsed();
    Ok(all)
}

/// One machine's life.
fn machine(
    wish: &Wish<'_>,
    number: usize,
    begun: &AtomicUsize,
    told: Told<'_>,
) -> Result<Survived> {
    let layout = &wish.layouts[number % wish.layouts.len()];
    let mut guest = Lab::open().and_then(|lab| lab.guest(wish.system, layout)).map_err(rig)?;
    let folder = tempfile::tempdir().at("make", "a folder")?;
    let disk = LossyDisk::start(&guest.disk, &folder.path().join("disk"))?;
    guest.config.disks = vec![disk.file().to_owned()];
    guest.config.flushes = true;
    // As many machines as processors, each emulated by one.
    guest.config.processors = 1;
    let mut victim = Victim {
        guest,
        disk,
        random: StdRng::seed_from_u64(wish.seed.wrapping_mul(1000).wrapping_add(number as u64)),
        survived: Survived::default(),
        boot: Duration::from_secs(60),
        upgrade: Duration::from_secs(60),
        begun,
        cuts: wish.cuts,
        until: wish.until,
        told,
    };
    told(&format!("{}, layout {layout}", wish.system));
    let lived = victim.live();
    victim.guest.kill();
    match lived {
        Ok(()) => {}
        Err(Failure::Rig(error)) => return Err(error),
        Err(Failure::Machine(why)) => {
            let kept = victim.keep(wish, number)?;
            victim
                .survived
                .findings
                .push(format!("machine {number}: {why}\n  its disk is kept: {}", kept.display()));
        }
    }
    Ok(victim.survived)
}

/// A machine whose power is cut.
struct Victim<'a> {
    guest: Guest,
    disk: LossyDisk,
    random: StdRng,
    survived: Survived,
    /// How long a boot took; cuts of the next are spread over it.
    boot: Duration,
    /// The same for what is done to upgrade.
    upgrade: Duration,
    /// Cuts that all machines have begun.
    begun: &'a AtomicUsize,
    cuts: usize,
    until: Option<Instant>,
    told: Told<'a>,
}

enum Failure {
    /// The rig itself.
    Rig(RigError),
    /// The machine is not as it must be.
    Machine(String),
}

fn rig(error: Error) -> RigError {
    RigError::Device(varve_sys::whole_message(&error))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Timeout { .. } | Error::Unwanted { .. } | Error::Command { .. } => {
                Self::Machine(varve_sys::whole_message(&error))
            }
            error => Self::Rig(rig(error)),
        }
    }
}

impl Victim<'_> {
    fn live(&mut self) -> Result<(), Failure> {
        self.login()?;
        while self.one_more() {
            self.one()?;
            // And again, before it is up.
            while self.random.random_bool(AGAIN) && self.one_more() {
                self.guest.start()?;
                if self.random.random_bool(0.5) {
                    self.cut_in_boot_stage()?;
                } else {
                    self.cut_within(Moment::Boot, self.boot)?;
                }
            }
            self.login()?;
        }
        self.guest.settle()?;
        (self.told)("everything is compared with its manifests");
        let checked = "varve --quiet collect && varve --quiet fsck";
        self.guest.machine().check(checked, UPGRADE)?;
        Ok(())
    }

    /// Takes one of the cuts that are left, if there is time.
    fn one_more(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
            && self.begun.fetch_add(1, Ordering::Relaxed) < self.cuts
    }

    /// From a login to a cut.
    fn one(&mut self) -> Result<(), Failure> {
        if self.random.random_bool(0.15) {
            return self.cut_within(Moment::Judged, Duration::from_secs(20));
        }
        self.guest.settle()?;
        self.guest.connect("stable")?;
        let other = match self.guest.running()? {
            release if release == self.guest.system.old => self.guest.system.new.clone(),
            _ => self.guest.system.old.clone(),
        };
        let command = match self.random.random_range(0..3) {
            0 => "varve --quiet upgrade --restage".to_owned(),
            _ => format!("varve --quiet upgrade --to {other} --allow-downgrade"),
        };
        (self.told)(&command);
        if self.random.random_bool(0.7) {
            self.guest.machine().console.send_line(&command)?;
            return self.cut_within(Moment::Upgrade, self.upgrade);
        }
        let began = Instant::now();
        self.guest.machine().check(&command, UPGRADE)?;
        self.upgrade = began.elapsed();
        self.guest.machine().reboot()?;
        self.cut_within(Moment::Shutdown, Duration::from_secs(25))
    }

    /// Pulls the plug at a random moment of the next so long.
    fn cut_within(&mut self, moment: Moment, length: Duration) -> Result<(), Failure> {
        let after = length.mul_f64(self.random.random_range(0.0..1.0));
        std::thread::sleep(after);
        self.guest.machine().alive()?;
        // Within what is being written then, if something is.
        self.disk.fail_after(self.random.random_range(1..48));
        let end = Instant::now() + WRITES;
        while !self.disk.has_failed() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.cut(moment, after)
    }

    /// Pulls the plug in the initramfs of a machine that was started: at one of the first
    /// writes, or when the boot stage hands over if there are fewer.
    fn cut_in_boot_stage(&mut self) -> Result<(), Failure> {
        self.guest.machine().console.expect(INITRAMFS, BOOT)?;
        let began = Instant::now();
        self.disk.fail_after(self.random.random_range(1..16));
        while !self.disk.has_failed() {
            self.guest.machine().alive()?;
            match self.guest.machine().console.expect(HANDS_OVER, Duration::from_millis(20)) {
                Ok(_) => break,
                Err(error) if began.elapsed() > BOOT => return Err(error.into()),
                Err(_) => {}
            }
        }
        self.cut(Moment::BootStage, began.elapsed())
    }

    /// The power is gone.
    fn cut(&mut self, moment: Moment, after: Duration) -> Result<(), Failure> {
        self.guest.kill();
        let lost = self.disk.cut(&mut self.random).map_err(Failure::Rig)?;
        self.survived.cuts.push(Cut { moment, after, lost });
        (self.told)(&format!(
            "cut {}: {moment:?}, after {:.1} s; {} of {} writes that were not flushed are lost",
            self.survived.cuts.len(),
            after.as_secs_f64(),
            lost.lost,
            lost.waiting
        ));
        Ok(())
    }

    /// Boots to the login; the old release or the new one must run.
    fn login(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        self.guest.start()?;
        self.guest.machine().login(BOOT)?;
        self.boot = began.elapsed();
        let running = self.guest.running()?;
        let report = self.guest.boot_report()?;
        // Both are read from the disk as it is after the cut, by the program that must bear it.
        self.guest.run("varve status >/dev/null && varve history >/dev/null")?;
        let selection = self.guest.selection()?;
        (self.told)(&format!(
            "login after {:.0} s: {running} ({}), latest {}",
            self.boot.as_secs_f64(),
            value(&report, "reason"),
            value(&selection, "latest")
        ));
        if ![&self.guest.system.old, &self.guest.system.new].contains(&&running) {
            return Err(Failure::Machine(format!("{running} runs, which is neither release")));
        }
        self.survived.logins.push(running);
        Ok(())
    }

    /// Copies the disk and the console to where they stay.
    fn keep(&self, wish: &Wish<'_>, number: usize) -> Result<PathBuf> {
        std::fs::create_dir_all(wish.keep).at("make", wish.keep)?;
        let kept = wish.keep.join(format!("vm-{}-{number}.img", wish.seed));
        copy_image(&self.guest.disk, &kept)?;
        let console = self.guest.config.folder.join("console.log");
        let log = kept.with_extension("log");
        copy_image(&console, &log)?;
        Ok(kept)
    }
}
