//! The recorder itself: what a disk sees of a known sequence of writes and syncs, on the
//! kernel's real ext4, and a sync that is missing is caught.
//!
//! Needs root, /dev/fuse and loop devices. Without them the tests fail and say so: a
//! safety test that silently does nothing would be worse than none.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use varve_powercut::device::Recorder;
use varve_powercut::disk::{FileSystem, Mounted, copy_image};
use varve_powercut::log::{Entry, Log};
use varve_powercut::run::{Case, Deep, replay};
use varve_powercut::scenario::{Before, Finding, Mark, Scenario, SharedMark, Site};
use varve_powercut::server::Host;
use varve_powercut::states::{Cut, State, Timeline, plan};

fn need_root() {
    let root = rustix::process::geteuid().is_root();
    let devices = Path::new("/dev/fuse").exists() && Path::new("/dev/loop-control").exists();
    assert!(
        root && devices,
        "THE POWER-CUT RIG IS NOT TESTED: it needs root, /dev/fuse and loop devices"
    );
}

/// The rig's own program serves the disks.
fn host() -> Host {
    Host { program: env!("CARGO_BIN_EXE_varve-powercut").into(), outside: None }
}

/// Memory, if there is some to be had: disks that are only for a moment.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Runs `work` on a recorded ext4; gives the log, and the disk as it was before.
fn record(dir: &Path, work: impl FnOnce(&Path, &dyn Fn(&str))) -> Log {
    let fs = FileSystem::named("ext4").unwrap();
    let (base, live) = (dir.join("base.img"), dir.join("live.img"));
    fs.make(&base).unwrap();
    copy_image(&base, &live).unwrap();
    let mut recorder = Recorder::start(&host(), &live, dir).unwrap();
    let mounted = recorder.mount(fs, &dir.join("disk")).unwrap();
    let marker = recorder.marker();
    work(mounted.path(), &|text| marker(text.to_owned()));
    let log = recorder.cut().unwrap();
    mounted.unmount().unwrap();
    log
}

/// Mounts a state; none where ext4's superblock, which is larger than a sector, is torn.
fn mount_state(dir: &Path, log: &Log, state: State) -> Option<Mounted> {
    let mut timeline = Timeline::new(log, &dir.join("base.img"), dir.join("timeline")).unwrap();
    let image = dir.join("state.img");
    let _ = std::fs::remove_file(&image);
    timeline.lay_out(state, &image).unwrap();
    let mounted = FileSystem::named("ext4").unwrap().mount(&image, &dir.join("look"));
    let torn = matches!(state.cut, Cut::Torn { grain: 512, .. });
    if torn { mounted.ok() } else { Some(mounted.unwrap()) }
}

fn write(path: &Path, bytes: &[u8]) -> File {
    let file = File::options().write(true).create(true).truncate(true).open(path);
    let mut file = file.unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn a_block_device_is_recorded_write_by_write() {
    need_root();
    let dir = scratch();
    let image = dir.path().join("disk.img");
    File::options().write(true).create_new(true).open(&image).unwrap().set_len(1 << 20).unwrap();
    let recorder = Recorder::start(&host(), &image, dir.path()).unwrap();
    let device = File::options().read(true).write(true).open(recorder.device()).unwrap();
    let mark = recorder.marker();
    device.write_all_at(&[1; 4096], 8192).unwrap();
    rustix::fs::fdatasync(&device).unwrap();
    mark("one is durable".to_owned());
    device.write_all_at(&[2; 4096], 8192).unwrap();
    device.write_all_at(&[3; 8192], 65536).unwrap();
    rustix::fs::fdatasync(&device).unwrap();
    let log = recorder.cut().unwrap();
    let seen: Vec<_> = log.entries().iter().map(|entry| (entry.range(), entry.clone())).collect();
    // The loop driver flushes once as it begins, before anything is written.
    let windows: Vec<_> = log.windows().into_iter().filter(|window| window.writes > 0).collect();
    assert!(windows.len() == 2 && windows.iter().all(|window| window.flushed), "{seen:?}");
    let ranges = |window: usize| -> Vec<_> {
        let entries = &log.entries()[windows[window].entries.clone()];
        entries.iter().filter_map(Entry::range).collect()
    };
    assert!(ranges(0).into_iter().eq(std::iter::once(8192..12288)));
    let mut second = ranges(1);
    second.sort_by_key(|range| range.start);
    assert_eq!(second, [8192..12288, 65536..73728]);
    assert_eq!(log.entries()[windows[1].entries.start], Entry::Mark("one is durable".to_owned()));
    // What the device reads back is what was written, and the image has it too.
    let mut bytes = [0; 4096];
    device.read_exact_at(&mut bytes, 8192).unwrap();
    assert_eq!(bytes, [2; 4096]);
    drop(device);
}

#[test]
fn what_was_synced_is_in_every_state_and_what_was_not_is_missing_in_one() {
    need_root();
    let dir = scratch();
    let log = record(dir.path(), |disk, mark| {
        let synced = write(&disk.join("synced"), &[7; 30_000]);
        rustix::fs::fsync(&synced).unwrap();
        mark("synced");
        write(&disk.join("forgotten"), &[8; 30_000]);
        mark("forgotten");
    });
    assert!(log.flushes() >= 1, "{:?}", log.entries());
    let (mut with_promise, mut without_forgotten) = (0, 0);
    for state in plan(&log, 40, 3) {
        let marks = log.marks(state.latest(&log));
        let Some(mounted) = mount_state(dir.path(), &log, state) else { continue };
        let read = |name: &str| std::fs::read(mounted.path().join(name)).unwrap_or_default();
        if marks.contains(&"synced".to_owned()) {
            with_promise += 1;
            assert_eq!(read("synced"), [7; 30_000], "state {state}");
        }
        if marks.contains(&"forgotten".to_owned()) && read("forgotten") != [8; 30_000] {
            without_forgotten += 1;
        }
        mounted.unmount().unwrap();
    }
    assert!(with_promise > 0, "no state had the promise to keep");
    assert!(without_forgotten > 0, "a file that nobody synced survived every cut");
}

/// Replaces a file as one should, or without making its bytes durable first.
struct Replace {
    synced: bool,
}

static OLD: [u8; 20_000] = [1; 20_000];
static NEW: [u8; 20_000] = [2; 20_000];

impl Scenario for Replace {
    fn name(&self) -> &'static str {
        "primitives"
    }

    fn prepare(&self, site: &Site) -> Result<Value, String> {
        let file = write(&site.disk.join("file"), &OLD);
        rustix::fs::fsync(&file).map_err(|error| error.to_string())?;
        Ok(Value::Null)
    }

    fn run(&self, site: &Site, _: &Value, mark: SharedMark) -> Result<(), String> {
        let file = write(&site.disk.join("file.new"), &NEW);
        if self.synced {
            rustix::fs::fsync(&file).unwrap();
        }
        rustix::fs::rename(site.disk.join("file.new"), site.disk.join("file")).unwrap();
        rustix::fs::fsync(File::open(&site.disk).unwrap()).unwrap();
        mark("replaced".to_owned());
        Ok(())
    }

    fn look(&self, site: &Site, before: &Before) -> Vec<Finding> {
        let bytes = std::fs::read(site.disk.join("file")).unwrap_or_default();
        let good = bytes == NEW || (bytes == OLD && !before.has("replaced"));
        if good { Vec::new() } else { vec![format!("the file has {} bytes", bytes.len())] }
    }

    fn recover(&self, _: &Site, _: &Before, _: Mark<'_>) -> Result<Value, String> {
        Ok(Value::Null)
    }

    fn done(&self, _: &Site, _: &Before, _: &Value) -> Vec<Finding> {
        Vec::new()
    }
}

#[test]
fn a_missing_fsync_before_a_rename_is_caught_and_the_state_is_kept() {
    need_root();
    for synced in [true, false] {
        let dir = scratch();
        let keep = dir.path().join("kept");
        let scenario = Replace { synced };
        let host = host();
        let case = Case {
            host: &host,
            scenario: &scenario,
            fs: FileSystem::named("ext4").unwrap(),
            scratch: dir.path(),
            keep: Some(&keep),
            first_only: false,
            workers: 2,
            until: None,
            fault: None,
            known: &[],
        };
        let recorded = case.record().unwrap();
        let outcome = case.judge(&recorded, 40, Deep { origins: 2, states: 4 }, 1).unwrap();
        assert!(outcome.tried > 10, "{outcome:?}");
        assert_eq!(outcome.failing.is_empty(), synced, "{:?}", outcome.failing);
        if let Some(failing) = outcome.failing.first() {
            // The file holds the disk: another scenario of the same name, which looks for
            // things that are not there, judges it and says so.
            let again = scratch();
            let (about, findings) =
                replay(&host, failing.kept.as_ref().unwrap(), again.path()).unwrap();
            assert_eq!(about.findings, failing.findings);
            assert_eq!(about.state, failing.state);
            assert!(!findings.is_empty());
        }
    }
}

#[test]
fn marks_can_come_from_elsewhere() {
    need_root();
    let dir = scratch();
    let image = dir.path().join("disk.img");
    File::options().write(true).create_new(true).open(&image).unwrap().set_len(1 << 20).unwrap();
    let recorder = Recorder::start(&host(), &image, dir.path()).unwrap();
    let mark: SharedMark = Arc::new(recorder.marker());
    let other = Arc::clone(&mark);
    std::thread::spawn(move || other("from a thread".to_owned())).join().unwrap();
    let log = recorder.cut().unwrap();
    assert_eq!(log.marks(log.entries().len()), ["from a thread"]);
    assert!(recorder.cut().is_err(), "a disk is cut once");
    // A mark that outlives the disk keeps nothing waiting.
    let begin = std::time::Instant::now();
    drop(recorder);
    mark("too late".to_owned());
    assert!(begin.elapsed() < std::time::Duration::from_secs(5), "{:?}", begin.elapsed());
}
