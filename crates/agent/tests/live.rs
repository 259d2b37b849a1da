//! The running system shows another deployment: real mounts, real namespaces, and a reader
//! that must find every file at every moment. Needs root; says so without.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Lab, now, with_context};
use rustix::mount::MountPropagationFlags;
use varve_agent::live::{self, LiveError, Way};
use varve_agent::{Device, Error};
use varve_format::TreePath;
use varve_rootfs::assemble::{Care, execute};
use varve_rootfs::mount::{Options, directory, plan};
use varve_sys::mount::enter_private_namespace;
use varve_sys::mountinfo::parse_mountinfo;
use varve_sys::task::Cancel;

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("=== NOT RUN: mounts need root ===");
    }
    root
}

/// Does something on a thread whose mounts are shared with whoever follows it, as a
/// machine's are.
fn on_a_machine(act: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter_private_namespace().unwrap();
            let shared = MountPropagationFlags::REC | MountPropagationFlags::SHARED;
            rustix::mount::mount_change(c"/", shared).unwrap();
            act();
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Mounts a deployment as a boot would.
fn boot(lab: &Lab, name: &str) -> (Device, PathBuf) {
    let device = lab.device();
    for dir in ["root", "memory"] {
        fs::create_dir_all(lab.folder.path().join(dir)).unwrap();
    }
    let root = lab.folder.path().join("root");
    let record = device.store.deployment(&name.parse().unwrap()).unwrap().record;
    let plan = plan(&device.store, &record, Options::default()).unwrap();
    let memory = lab.folder.path().join("memory");
    execute(&device.store, &plan, &root, &memory, Care::Strict).unwrap();
    (device, root)
}

fn show(device: &Device, root: &Path, name: &str) -> live::Switched {
    let record = device.store.deployment(&name.parse().unwrap()).unwrap().record;
    let usr = TreePath::new(b"usr").unwrap();
    let step = directory(&device.store, &record, &usr).unwrap().unwrap();
    let namespaces = live::namespaces(Path::new("/proc")).unwrap();
    live::switch(&device.store, &[step], root, &namespaces).unwrap()
}

/// A service with a mount namespace of its own, ended with the test.
struct Service(Child);

impl Service {
    fn start(propagation: &str, script: &str) -> Self {
        let script = format!("set -e; {script}; echo ready; exec sleep 1000");
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", propagation, "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        Self(child)
    }

    /// What it sees at a path.
    fn sees(&self, path: &Path) -> String {
        let root = PathBuf::from(format!("/proc/{}/root", self.0.id()));
        fs::read_to_string(root.join(path.strip_prefix("/").unwrap())).unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mounted_at(place: &Path) -> usize {
    let text = fs::read("/proc/thread-self/mountinfo").unwrap();
    parse_mountinfo(&text).unwrap().iter().filter(|entry| entry.mount_point == place).count()
}

fn kernel_has_beneath() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|text| text.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 5)
}

/// Opens and reads files of the system all the time. Gives how often, and the longest time
/// that one took; a file that is not there is a failure.
fn read_on(root: &Path, stop: &AtomicBool, longest: &AtomicU64) -> u64 {
    let paths = ["usr/lib/release", "usr/share/doc/7", "sbin/init"].map(|path| root.join(path));
    let mut reads = 0;
    while !stop.load(Ordering::Relaxed) {
        for path in &paths {
            let begun = Instant::now();
            let bytes =
                fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            longest.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
            assert!(!bytes.is_empty());
            reads += 1;
        }
    }
    reads
}

/// A failure must not leave the reader reading.
struct StopAtTheEnd<'a>(&'a AtomicBool);

impl Drop for StopAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn switches_without_a_gap(lab: &Lab) {
    let (device, root) = boot(lab, "r1");
    let release = root.join("usr/lib/release");
    let quoted = root.display();
    let services = [
        Service::start("slave", "true"),
        // As systemd's ProtectSystem= does it.
        Service::start(
            "slave",
            &format!(
                "mount --bind {quoted}/usr {quoted}/usr; mount -o remount,bind,ro {quoted}/usr"
            ),
        ),
        Service::start("private", "true"),
        // Another system altogether, which must be left alone.
        Service::start(
            "private",
            &format!(
                "umount -l {quoted}; mkdir -p {quoted}/usr/lib; echo other > {quoted}/usr/lib/release"
            ),
        ),
    ];
    let held = fs::File::open(&release).unwrap();
    // A mount of the user's below what moves stays, and stays writable.
    varve_sys::mount::tmpfs_detached(0o755, None)
        .unwrap()
        .attach(rustix::fs::CWD, &root.join("usr/bin"))
        .unwrap();
    fs::write(root.join("usr/bin/own"), "own").unwrap();

    let (stop, longest) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut took = 0;
    let reads = std::thread::scope(|scope| {
        let _stop = StopAtTheEnd(&stop);
        let reader = scope.spawn(|| read_on(&root, &stop, &longest));
        let calm = Instant::now() + Duration::from_millis(100);
        while Instant::now() < calm {
            std::thread::sleep(Duration::from_millis(5));
        }
        let in_calm = longest.swap(0, Ordering::Relaxed);
        println!("the longest read before the first switch took {in_calm} µs");
        for turn in 0..12 {
            let name = ["r2", "r1"][turn % 2];
            let switched = show(&device, &root, name);
            took = took.max(switched.microseconds);
            assert!(switched.unreached.is_empty(), "{:?}", switched.unreached);
            let ways: Vec<Way> = services
                .iter()
                .filter_map(|s| switched.namespaces.get(&s.0.id()).copied())
                .collect();
            let last = match turn {
                0 => Way::Over,
                _ if kernel_has_beneath() => Way::Exchanged,
                _ => Way::Stacked,
            };
            assert_eq!(ways, [Way::Followed, Way::Followed, last], "turn {turn}");
            let text = format!("{name}\n");
            assert_eq!(fs::read_to_string(&release).unwrap(), text);
            for service in &services[..3] {
                assert_eq!(service.sees(&release), text, "turn {turn}");
            }
            assert_eq!(services[3].sees(&release), "other\n");
            fs::write(root.join("usr/bin/own"), format!("own {turn}")).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert_eq!(fs::read_to_string(root.join("usr/bin/own")).unwrap(), "own 11");
    if kernel_has_beneath() {
        assert_eq!(mounted_at(&root.join("usr")), 1, "what was shown before is unmounted");
    }
    let mut text = String::new();
    std::io::Read::read_to_string(&mut &held, &mut text).unwrap();
    assert_eq!(text, "r1\n", "what is open keeps its file");
    println!(
        "{reads} reads across 12 switches, none failed; the longest took {} µs, the longest switch {took} µs",
        longest.into_inner()
    );
}

fn two_releases(lab: &Lab) {
    lab.tree();
    lab.publish("r1");
    lab.init();
    lab.publish("r2");
    lab.upgrade();
}

#[test]
fn a_reader_never_misses_a_file_overlay() {
    if is_root() {
        let lab = Lab::below(varve_testkit::crash::scratch());
        two_releases(&lab);
        on_a_machine(|| switches_without_a_gap(&lab));
    }
}

#[test]
fn a_reader_never_misses_a_file_hard_link() {
    if is_root() {
        let lab = Lab::below(varve_testkit::crash::scratch()).with("layout = \"hard-link\"");
        two_releases(&lab);
        on_a_machine(|| switches_without_a_gap(&lab));
    }
}

#[test]
fn when_a_later_directory_fails_the_earlier_ones_are_as_they_were() {
    if !is_root() {
        return;
    }
    let lab = Lab::below(varve_testkit::crash::scratch());
    two_releases(&lab);
    on_a_machine(|| {
        let (device, root) = boot(&lab, "r1");
        let alone = Service::start("private", "true");
        let record = device.store.deployment(&"r2".parse().unwrap()).unwrap().record;
        let usr = TreePath::new(b"usr").unwrap();
        let step = directory(&device.store, &record, &usr).unwrap().unwrap();
        let nowhere = TreePath::new(b"nowhere").unwrap();
        let bad = varve_rootfs::mount::Step { target: nowhere, ..step.clone() };
        let fails = || {
            let namespaces = live::namespaces(Path::new("/proc")).unwrap();
            let steps = [step.clone(), bad.clone()];
            live::switch(&device.store, &steps, &root, &namespaces).unwrap_err().to_string()
        };
        let release = root.join("usr/lib/release");
        // The first time what was over the root goes; later what was there before returns.
        for shown in ["r1\n", "r2\n"] {
            let error = fails();
            assert!(error.contains("could not be shown"), "{error}");
            assert_eq!(fs::read_to_string(&release).unwrap(), shown);
            assert_eq!(alone.sees(&release), shown);
            assert_eq!(mounted_at(&root.join("usr")), usize::from(shown != "r1\n"));
            show(&device, &root, "r2");
        }
    });
}

#[test]
fn a_history_that_cannot_be_written_does_not_hide_what_was_done() {
    if !is_root() {
        return;
    }
    let lab = Lab::below(varve_testkit::crash::scratch());
    two_releases(&lab);
    on_a_machine(|| {
        let (device, root) = boot(&lab, "r1");
        let apply = |to: &str| {
            let writer = device.lock("apply", now()).unwrap();
            let plan = live::plan(&device, Some(&to.parse().unwrap())).unwrap();
            let (cancel, root) = (Cancel::new(), root.as_path());
            with_context(&cancel, |c| live::apply(&device, &writer, &plan, root, c)).unwrap()
        };
        let shows = || fs::read_to_string(root.join("usr/lib/release")).unwrap();
        assert_eq!((apply("r2").not_noted, shows()), (Vec::new(), "r2\n".to_owned()));
        assert_eq!(lab.history().last().unwrap(), "live");
        let varve = lab.disk().join("varve");
        assert!(!varve.join("history.next").exists());
        // In its place stands what no line can be appended to.
        fs::rename(varve.join("history"), varve.join("history.kept")).unwrap();
        fs::create_dir(varve.join("history")).unwrap();
        let switched = apply("r1");
        assert_eq!(shows(), "r1\n");
        assert!(switched.not_noted[0].contains("history"), "{:?}", switched.not_noted);
        // It was announced, and is told as soon as it can be.
        fs::remove_dir(varve.join("history")).unwrap();
        fs::rename(varve.join("history.kept"), varve.join("history")).unwrap();
        let lines = lab.history().len();
        drop(device.lock("status", now()).unwrap());
        assert_eq!(lab.history().len(), lines + 1);
    });
}

fn plan_of(lab: &Lab) -> Result<live::Plan, Error> {
    live::plan(&lab.device(), None)
}

fn whys(lab: &Lab) -> Vec<String> {
    plan_of(lab).unwrap().obstacles.into_iter().map(|obstacle| obstacle.why).collect()
}

#[test]
fn what_speaks_against_it_is_said() {
    let lab = Lab::new();
    lab.tree().file("usr/lib/x86_64-linux-gnu/libc.so.6", "one").file("opt/x", "x");
    lab.publish("r1");
    lab.init();
    let error = plan_of(&lab).unwrap_err();
    assert!(matches!(error, Error::Live(LiveError::RunsAlready { .. })), "{error}");

    lab.tree().file("var/lib/status", "changed").file("etc/ld.so.cache", "new");
    lab.publish("r2");
    lab.upgrade();
    let plan = plan_of(&lab).unwrap();
    assert_eq!(plan.obstacles, [], "what is made anew is no obstacle");
    assert_eq!((plan.from.as_str(), plan.to.as_str()), ("r1", "r2"));
    let moved: Vec<_> = plan.directories.iter().map(ToString::to_string).collect();
    assert!(moved.contains(&"/usr".to_owned()), "{moved:?}");
    assert_eq!(plan.stays, ["/var, as the old release has it (/var/lib/status)"]);

    lab.tree().file("etc/hostname", "other\n").file("usr/lib/x86_64-linux-gnu/libc.so.6", "two");
    lab.publish("r3");
    lab.upgrade();
    let whys = whys(&lab);
    assert_eq!(whys.len(), 2, "{whys:?}");
    assert!(whys[0].contains("/usr/lib/x86_64-linux-gnu/libc.so.6"), "{whys:?}");
    assert!(whys[1].contains("/etc/hostname"), "{whys:?}");
    let device = lab.device();
    let writer = device.lock("apply", now()).unwrap();
    let error = with_context(&Cancel::new(), |context| {
        let root = Path::new("/nowhere");
        live::apply(&device, &writer, &plan_of(&lab).unwrap(), root, context).unwrap_err()
    });
    let Error::Live(error) = error else { panic!("{error}") };
    assert_eq!(error.instead(), Some(live::Instead::SoftReboot));
}

#[test]
fn a_writable_root_is_not_covered() {
    let lab = Lab::new().with("root-mode = \"persistent\"");
    two_releases(&lab);
    let report = lab.folder.path().join("run/boot.toml");
    let text = fs::read_to_string(&report).unwrap();
    fs::write(&report, text.replace("\"read-only\"", "\"persistent\"")).unwrap();
    let whys = whys(&lab);
    assert!(whys.len() == 1 && whys[0].starts_with("the root is writable"), "{whys:?}");
}

#[test]
fn what_was_live_is_not_collected() {
    let lab = Lab::new();
    two_releases(&lab);
    lab.boot(false);
    lab.after_boot();
    let file = lab.folder.path().join("run/live.toml");
    fs::write(&file, "deployments = [\"r1\", \"r2\"]\n").unwrap();
    lab.publish("r3");
    lab.upgrade();
    let device = lab.device();
    assert_eq!(live::Live::read(&device).unwrap().present().unwrap().as_str(), "r2");
    let collected = || -> Vec<String> {
        let plan = varve_agent::collect::plan(&device, false).unwrap();
        plan.deployments.iter().map(ToString::to_string).collect()
    };
    assert_eq!(collected(), [""; 0], "r1 may be held by what began before");
    fs::remove_file(&file).unwrap();
    assert_eq!(collected(), ["r1"]);
}
