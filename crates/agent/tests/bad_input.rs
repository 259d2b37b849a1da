//! What a hostile or unlucky world does to an upgrade. Each row: what the user sees, and
//! that the running system and what was fetched are untouched.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Lab, noise, now, patience, to, with_context};
use jiff::Timestamp;
use varve_agent::choose::Wish;
use varve_agent::upgrade::{self, Context, Prepared};
use varve_agent::{Device, Error};
use varve_sys::task::{Cancel, Progress, Silent, Unit};

/// An error with its causes in one line, as the command shows it.
fn whole(error: &Error) -> String {
    varve_sys::whole_message(error)
}

/// What must not change, whatever fails: what boots, and every deployment.
fn system(lab: &Lab) -> Vec<String> {
    let parts = ["boot", "deployments", "layers", "trees", "state/shared", "state/bind"];
    let mut all: Vec<String> = parts.iter().flat_map(|part| lab.fingerprint(part)).collect();
    // A sweep may take the empty state of a staging that failed.
    all.extend(lab.fingerprint("state/versioned/r1"));
    all.retain(|line| !is_directory_of_all(line));
    all
}

/// The directories that hold deployments and layers get new times when something is
/// moved into them and out again.
fn is_directory_of_all(line: &str) -> bool {
    let path = line.split(' ').next().unwrap_or_default();
    let ends = ["boot", "deployments", "layers", "trees", "shared", "bind"];
    ends.iter().any(|end| {
        path.ends_with(&format!("varve/{end}")) || path.ends_with(&format!("state/{end}"))
    })
}

fn r1_then_r2(lab: Lab) -> Lab {
    lab.publish("r1");
    lab.init();
    lab.tree().file("usr/bin/new", noise(11, 2_000_000)).file("usr/bin/newer", noise(12, 700_000));
    lab.publish("r2");
    lab
}

/// How many contents were fetched and wait to be staged.
fn contents(lab: &Lab) -> usize {
    let names = std::fs::read_dir(lab.disk().join("varve/incoming")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.parse::<varve_format::ContentDigest>().is_ok()).count()
}

fn upgrade_error(lab: &Lab) -> Error {
    let before = system(lab);
    let error = lab.try_upgrade(&Wish::default(), &Cancel::new()).expect_err("it must fail");
    assert_eq!(before, system(lab), "the system was touched by: {}", whole(&error));
    error
}

// ---- What a release holds ----

#[test]
fn device_nodes_are_forbidden_unless_allowed() {
    let mut lab = Lab::new();
    lab.publish("r1");
    lab.init();
    let null = lab.tree().0.join("usr/lib/null");
    let made = Command::new("mknod").arg(&null).args(["c", "1", "3"]).status().unwrap();
    assert!(made.success(), "this test makes a device node: run it as root");
    lab.publish("r2");
    let error = upgrade_error(&lab);
    assert_eq!(
        whole(&error),
        "device nodes are forbidden on this device, and it holds 1: /usr/lib/null"
    );
    assert_eq!(contents(&lab), 0, "nothing was fetched for it");
    lab.config = format!("[policy]\ndevices = [\"/usr/lib/null\"]\n{}", lab.config);
    lab.upgrade();
    lab.check_all();
}

#[test]
fn attributes_of_no_release_are_refused() {
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    let file = lab.tree().0.join("usr/bin/tool");
    let name = "trusted.surprise";
    rustix::fs::setxattr(&file, name, b"1", rustix::fs::XattrFlags::empty())
        .expect("this test sets a trusted attribute: run it as root");
    lab.publish("r2");
    let error = whole(&upgrade_error(&lab));
    assert!(
        error.starts_with(
            "it sets the attribute trusted.surprise, which this device does not take: /usr/bin/tool"
        ),
        "{error}"
    );
}

#[test]
fn a_tree_that_cannot_boot_or_keep_state_is_refused() {
    let lab = Lab::new();
    lab.publish("r1");
    lab.init();
    lab.tree().remove("var");
    lab.publish("r2");
    let error = whole(&upgrade_error(&lab));
    assert_eq!(error, "the release has no directory /var to keep state in");
    lab.tree().remove("usr/sbin/init").file("var/lib/x", "");
    lab.publish("r3");
    let error = whole(&upgrade_error(&lab));
    assert!(error.ends_with("it would not boot"), "{error}");
}

// ---- The repository ----

#[test]
fn a_damaged_pack_gives_nothing_and_a_good_one_goes_on() {
    let lab = r1_then_r2(Lab::new());
    let packs = lab.repository_path().join("packs");
    let packs = std::fs::read_dir(packs).unwrap().map(|entry| entry.unwrap().path());
    let newest = packs
        .filter(|path| path.extension().is_some_and(|end| end == "pack"))
        .max_by_key(|path| std::fs::metadata(path).unwrap().modified().unwrap())
        .unwrap();
    let good = std::fs::read(&newest).unwrap();
    let mut bad = good.clone();
    let at = bad.len() - 1000;
    bad[at] ^= 1;
    std::fs::write(&newest, &bad).unwrap();
    let error = whole(&upgrade_error(&lab));
    assert!(error.starts_with("cannot fetch packs/"), "{error}");
    assert!(error.contains("digest"), "{error}");
    // Short, and missing.
    std::fs::write(&newest, &good[..good.len() / 2]).unwrap();
    let error = whole(&upgrade_error(&lab));
    assert!(error.contains(".pack"), "{error}");
    std::fs::remove_file(&newest).unwrap();
    let error = whole(&upgrade_error(&lab));
    assert!(error.contains("there is no such file"), "{error}");
    std::fs::write(&newest, &good).unwrap();
    let done = lab.upgrade();
    assert!(done.reused > 100_000, "what was good of the bad pack was kept: {done:?}");
    lab.check_all();
}

#[test]
fn the_repository_changes_during_the_fetch() {
    let lab = r1_then_r2(Lab::new());
    let device = lab.device();
    let writer = device.lock("upgrade", now()).unwrap();
    let ready = with_context(&Cancel::new(), |context| {
        let wish = Wish::default();
        match upgrade::prepare(&device, &writer, &wish, false, context).unwrap() {
            Prepared::Ready(ready) => ready,
            Prepared::UpToDate { .. } => panic!("r2 is newer"),
        }
    });
    // A newer release appears between the plan and the fetch.
    lab.publish("r3");
    let done =
        with_context(&Cancel::new(), |context| ready.run(&device, &writer, context)).unwrap();
    assert_eq!(done.release, "r2", "what was planned is what is taken");
    drop(writer);
    lab.check_all();
    assert_eq!(lab.upgrade().release, "r3");
    lab.check_all();
}

// ---- Time ----

fn upgrade_at(lab: &Lab, time: Timestamp) -> Result<Prepared, Error> {
    let device = Device::open(lab.places())?;
    let writer = device.lock("upgrade", time)?;
    let (patience, cancel) = (patience(), Cancel::new());
    let context = Context { now: time, progress: &Silent, cancel: &cancel, patience: &patience };
    let ready = upgrade::prepare(&device, &writer, &Wish::default(), false, &context)?;
    if let Prepared::Ready(ready) = ready {
        ready.run(&device, &writer, &context)?;
    }
    Ok(Prepared::UpToDate { passed_over: Vec::new(), warnings: Vec::new() })
}

#[test]
fn a_clock_at_1970_upgrades_and_one_far_ahead_is_refused() {
    let lab = r1_then_r2(Lab::new());
    let before = system(&lab);
    let far = Timestamp::from_second(4_000_000_000).unwrap();
    let error = upgrade_at(&lab, far).err().expect("it is expired");
    let error = whole(&error);
    assert!(error.contains("expired: the ") && error.contains("it is 2096-"), "{error}");
    assert_eq!(before, system(&lab));
    upgrade_at(&lab, Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(lab.selection().latest.as_str(), "r2");
    assert_eq!(lab.boot(false), "r2");
    lab.after_boot();
    lab.check_all();
}

/// Links that lead out of `/varve`, where an upgrade writes: none is written through.
#[test]
fn no_write_follows_a_link_out_of_staging() {
    let lab = r1_then_r2(Lab::new());
    let (out, whole) = (lab.folder.path().join("out"), lab.folder.path().join("whole"));
    copy(&lab.disk(), &whole);
    let content = varve_format::verity::content_digest(&noise(12, 700_000)).to_hex();
    let incoming = format!("incoming/{content}");
    let part = format!("incoming/{content}.700000.part");
    let places = [
        "staging/r2",
        "staging/r2.0",
        "layers/r2",
        "trash/r2.0",
        "incoming/under-way-0",
        &incoming,
        &part,
        "boot/.selection.new",
        "trust/.state.new",
        "deployments/r2",
        "deployments/r1/deployment.toml.copy",
        "history.next",
        "state/versioned/.r2.new",
    ];
    for place in places {
        for target in ["file", "folder"] {
            std::fs::create_dir_all(out.join("folder")).unwrap();
            std::fs::write(out.join("file"), "mine").unwrap();
            let link = lab.disk().join("varve").join(place);
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(out.join(target), &link).unwrap();
            let done = lab.try_upgrade(&Wish::default(), &Cancel::new());
            assert_eq!(std::fs::read(out.join("file")).unwrap(), b"mine", "{place}: {done:?}");
            let inside = std::fs::read_dir(out.join("folder")).unwrap().count();
            assert_eq!(inside, 0, "{place}: {done:?}");
            // What the link was in the way of is done once it is gone.
            let _ = std::fs::remove_file(&link);
            if done.is_err() {
                lab.upgrade();
            }
            lab.check_all();
            copy(&whole, &lab.disk());
        }
    }
}

/// A directory's contents in the place of another's.
fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

// ---- The disk ----

/// A small disk of its own, with the device on it.
struct SmallDisk {
    lab: Lab,
}

impl SmallDisk {
    fn new(options: &str, settings: &str) -> Self {
        let lab = Lab::new().with(settings);
        mount(&["-t", "tmpfs", "-o", options, "varve-test"], &lab.disk());
        Self { lab }
    }

    /// Leaves so many bytes free.
    fn fill(&self, leave: u64) {
        let free = free_bytes(&self.lab.disk());
        let filler = vec![0; usize::try_from(free.saturating_sub(leave)).unwrap()];
        // It takes what is left when somebody else is writing too.
        let _ = std::fs::write(self.lab.disk().join("filler"), filler);
    }

    /// Makes files until there is no inode left.
    fn fill_inodes(&self) {
        let folder = self.lab.disk().join("fillers");
        let _ = std::fs::create_dir(&folder);
        for n in 0.. {
            if std::fs::File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .open(folder.join(n.to_string()))
                .is_err()
            {
                break;
            }
        }
    }

    fn empty(&self) {
        let _ = std::fs::remove_file(self.lab.disk().join("filler"));
        let _ = std::fs::remove_dir_all(self.lab.disk().join("fillers"));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.lab.disk()).status();
    }
}

fn mount(options: &[&str], at: &Path) {
    let status = Command::new("mount").args(options).arg(at).status().unwrap();
    assert!(status.success(), "this test mounts: run it as root");
}

fn free_bytes(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).unwrap();
    stat.f_bavail * stat.f_frsize
}

#[test]
fn a_full_disk_is_seen_before_anything_is_fetched() {
    let disk = SmallDisk::new("size=24m", "reserve = \"1 MiB\"");
    let lab = &disk.lab;
    lab.publish("r1");
    lab.init();
    lab.tree().file("usr/bin/new", noise(11, 6_000_000));
    lab.publish("r2");
    disk.fill(5 << 20);
    let error = whole(&upgrade_error(lab));
    assert!(
        error.contains(" has too little room: ")
            && error.ends_with("of which 1048576 are kept in reserve"),
        "{error}"
    );
    assert_eq!(contents(lab), 0, "nothing was fetched");
    disk.empty();
    lab.upgrade();
    lab.check_all();
}

#[test]
fn no_inodes_are_seen_before_anything_is_fetched() {
    // The first deployment has some 60 paths; the second wants a few more.
    let disk = SmallDisk::new("size=64m,nr_inodes=190", "reserve = 0");
    let lab = &disk.lab;
    lab.publish("r1");
    lab.init();
    for n in 0..200 {
        lab.tree().file(&format!("usr/share/many/{n}"), format!("{n}"));
    }
    lab.publish("r2");
    let error = whole(&upgrade_error(lab));
    assert!(error.contains(" has too few inodes: ") && error.ends_with(" are free"), "{error}");
    assert_eq!(contents(lab), 0, "nothing was fetched");
    lab.check_all();
}

/// Fills the disk, or takes its inodes, at the n-th time that something is told of the work.
struct FillAt<'a> {
    at: usize,
    told: AtomicUsize,
    disk: &'a SmallDisk,
    inodes: bool,
}

impl FillAt<'_> {
    fn tell(&self) {
        if self.told.fetch_add(1, Ordering::SeqCst) == self.at {
            match self.inodes {
                true => self.disk.fill_inodes(),
                false => self.disk.fill(0),
            }
        }
    }
}

impl Progress for FillAt<'_> {
    fn begin(&self, _: &str, _: Unit, _: Option<u64>) {
        self.tell();
    }
    fn advance(&self, _: u64) {
        self.tell();
    }
    fn end(&self) {
        self.tell();
    }
}

#[test]
fn the_disk_fills_up_at_each_stage() {
    filled_at_each_stage(false);
}

#[test]
fn the_inodes_run_out_at_each_stage() {
    filled_at_each_stage(true);
}

fn filled_at_each_stage(inodes: bool) {
    let mut failures = 0;
    for at in (0..400).step_by(23) {
        let disk = SmallDisk::new("size=40m,nr_inodes=1000", "reserve = 0\nlayers = 2");
        let lab = &disk.lab;
        lab.publish("r1");
        lab.init();
        lab.tree().file("usr/bin/new", noise(11, 3_000_000)).file("etc/issue", "two");
        lab.publish("r2");
        let before = system(lab);
        let progress = FillAt { at, told: AtomicUsize::new(0), disk: &disk, inodes };
        let result = lab.upgrade_telling(&Wish::default(), &progress, &Cancel::new());
        let told = progress.told.load(Ordering::SeqCst);
        match result {
            Err(error) => {
                let seen_before = matches!(error, Error::Refused(_));
                assert!(error.is_no_space() || seen_before, "filled at {at}: {}", whole(&error));
                failures += 1;
                // With the disk still full: what ran boots, and is whole.
                assert_eq!(lab.selection().latest.as_str(), "r1", "filled at {at}");
                let device = lab.device();
                device.store.deployment(&"r1".parse().unwrap()).unwrap();
                disk.empty();
                lab.upgrade();
            }
            Ok(_) => assert_eq!(lab.selection().latest.as_str(), "r2"),
        }
        disk.empty();
        assert!(before.iter().all(|line| system(lab).contains(line) || line.contains("/boot/")));
        lab.check_all();
        if told < at {
            break;
        }
    }
    assert!(failures >= 2, "only {failures} of the points filled the disk in time");
}

#[test]
fn a_read_only_disk_says_so_and_shows_its_status() {
    let disk = SmallDisk::new("size=40m", "reserve = 0");
    let lab = &disk.lab;
    lab.publish("r1");
    lab.init();
    lab.publish("r2");
    mount(&["-o", "remount,ro"], &lab.disk());
    let error = lab.try_upgrade(&Wish::default(), &Cancel::new()).unwrap_err();
    assert!(error.is_read_only(), "{}", whole(&error));
    let status = varve_agent::observe::status(&lab.device()).unwrap();
    assert_eq!(status.latest.unwrap().as_str(), "r1");
    mount(&["-o", "remount,rw"], &lab.disk());
    lab.upgrade();
}

// ---- Stopped and killed ----

/// Cancels at the n-th time that something is told.
struct CancelAt {
    at: usize,
    told: AtomicUsize,
    cancel: Cancel,
}

impl Progress for CancelAt {
    fn begin(&self, _: &str, _: Unit, _: Option<u64>) {
        self.advance(0);
    }
    fn advance(&self, _: u64) {
        if self.told.fetch_add(1, Ordering::SeqCst) == self.at {
            self.cancel.cancel();
        }
    }
    fn end(&self) {
        self.advance(0);
    }
}

#[test]
fn stopped_at_any_point_nothing_that_was_fetched_is_fetched_again() {
    let lab = r1_then_r2(Lab::new());
    let before = system(&lab);
    let mut stops = 0;
    let mut at = 0;
    loop {
        let cancel = Cancel::new();
        let progress = CancelAt { at, told: AtomicUsize::new(0), cancel: cancel.clone() };
        match lab.upgrade_telling(&Wish::default(), &progress, &cancel) {
            Err(error) => {
                assert!(error.is_cancelled(), "stopped at {at}: {}", whole(&error));
                assert_eq!(before, system(&lab), "stopped at {at}");
                stops += 1;
            }
            Ok(done) => {
                let done = done.expect("r2 is newer");
                assert!(done.reused > 2_000_000, "after {stops} stops: {done:?}");
                break;
            }
        }
        at += 1 + at / 4;
    }
    assert!(stops > 3, "it was stopped {stops} times");
    lab.check_all();
    assert!(lab.history().iter().all(|word| word != "upgrade-failed"), "a stop is no failure");
}

/// This test's own program, run again as the victim: upgrades, and is killed at the n-th
/// change of the disk.
#[test]
fn victim() {
    let Ok(folder) = std::env::var("VARVE_TEST_VICTIM") else { return };
    let at: usize = std::env::var("VARVE_TEST_KILL_AT").unwrap().parse().unwrap();
    let folder = Path::new(&folder);
    let changes = AtomicUsize::new(0);
    let _listening = varve_sys::trace::listen(move |_| {
        if changes.fetch_add(1, Ordering::SeqCst) == at {
            let this = rustix::process::getpid();
            let _ = rustix::process::kill_process(this, rustix::process::Signal::KILL);
        }
    });
    let places = varve_agent::Places {
        boot_report: Some(folder.join("run/boot.toml")),
        ..varve_agent::Places::at(&folder.join("disk"), &folder.join("varve.toml"))
    };
    let device = Device::open(places).unwrap();
    let writer = device.lock("upgrade", now()).unwrap();
    with_context(&Cancel::new(), |context| {
        match upgrade::prepare(&device, &writer, &Wish::default(), false, context).unwrap() {
            Prepared::Ready(ready) => drop(ready.run(&device, &writer, context).unwrap()),
            Prepared::UpToDate { .. } => {}
        }
    });
}

#[test]
fn killed_at_any_change_of_the_disk_the_next_run_completes() {
    use std::os::unix::process::ExitStatusExt;
    let lab = r1_then_r2(Lab::new());
    lab.places();
    let mut kills = 0;
    let mut at = 0;
    loop {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env("VARVE_TEST_VICTIM", lab.folder.path())
            .env("VARVE_TEST_KILL_AT", at.to_string())
            .output()
            .unwrap();
        if status.status.signal() != Some(9) {
            let said = String::from_utf8_lossy(&status.stdout);
            assert!(status.status.success(), "killed at {at}: {said}");
            break;
        }
        kills += 1;
        let selection = lab.selection();
        assert!(["r1", "r2"].contains(&selection.latest.as_str()), "killed at {at}");
        // What boots is whole, at this very moment.
        let device = lab.device();
        let name = selection.latest;
        let found = with_context(&Cancel::new(), |context| {
            varve_agent::fsck::fsck(&device, Some(&name), context)
        })
        .unwrap();
        assert!(
            found.deployments.iter().all(|d| d.differences == 0 && d.problem.is_none()),
            "killed at {at}: {found:#?}"
        );
        at += 1 + at / 3;
    }
    assert!(kills > 8, "it was killed {kills} times");
    assert_eq!(lab.selection().latest.as_str(), "r2");
    assert_eq!(lab.boot(false), "r2");
    lab.after_boot();
    lab.check_all();
    assert!(lab.try_upgrade(&to("r2"), &Cancel::new()).unwrap().is_none());
}

// ---- Damage on the disk ----

#[test]
fn damage_in_the_running_system_does_not_spread() {
    let lab = r1_then_r2(Lab::new());
    // Of a file that stays the same in r2: same length, another byte, same time.
    let file = lab.disk().join("varve/layers/r1/tree/usr/share/doc/7");
    let time = std::fs::metadata(&file).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
    let device = lab.device();
    let check = |name: &str| {
        let name = name.parse().unwrap();
        let found = with_context(&Cancel::new(), |context| {
            varve_agent::fsck::fsck(&device, Some(&name), context)
        });
        found.unwrap().deployments.remove(0)
    };
    assert_eq!(check("r1").shown, ["/usr/share/doc/7: has another content"]);
    lab.upgrade();
    assert_eq!(check("r2").differences, 0, "it was fetched anew, not linked");
    assert_eq!(check("r1").differences, 1);
}

#[test]
fn a_download_that_the_disk_spoiled_is_deleted_and_fetched_again() {
    let lab = r1_then_r2(Lab::new());
    // Interrupted when all is fetched and nothing staged.
    let cancel = Cancel::new();
    struct AtStaging(Cancel);
    impl Progress for AtStaging {
        fn begin(&self, phase: &str, _: Unit, _: Option<u64>) {
            if phase == "staging" {
                self.0.cancel();
            }
        }
        fn advance(&self, _: u64) {}
        fn end(&self) {}
    }
    let stop = AtStaging(cancel.clone());
    let error = lab.upgrade_telling(&Wish::default(), &stop, &cancel).unwrap_err();
    assert!(error.is_cancelled(), "{}", whole(&error));
    let incoming = lab.disk().join("varve/incoming");
    let largest = std::fs::read_dir(incoming)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&largest, bytes).unwrap();
    let error = whole(&upgrade_error(&lab));
    let told = "what was staged differs from its manifest in 1 paths, the first: ";
    assert!(error.starts_with(told) && error.contains("content"), "{error}");
    assert_eq!(lab.history().last().unwrap(), "upgrade-failed", "the reason is kept");
    assert!(!largest.exists(), "only what is bad is thrown away");
    let done = lab.upgrade();
    assert!(done.reused > 500_000 && done.written > 1_900_000, "{done:?}");
    lab.check_all();
}
