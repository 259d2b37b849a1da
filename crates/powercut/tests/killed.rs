//! The rig is killed while it records: its mounts, its loop device and its FUSE connection
//! go by themselves, and nothing on the machine hangs.
//!
//! ```text
//! varve-powercut (outside) --> the rig (mount namespace of its own) --> server of the disk
//! ```
//!
//! Needs root, /dev/fuse and loop devices; without them it fails and says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal, kill_process};
use varve_powercut::server;

/// How long anything may take to go.
const SECONDS: Duration = Duration::from_secs(20);

/// What stands while the rig records.
#[derive(Debug)]
struct Recording {
    outside: u32,
    rig: u32,
    server: u32,
    loop_device: PathBuf,
    /// The number of the FUSE connection: the minor number of its mount.
    connection: String,
}

fn words(process: u32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).split('\0').map(str::to_owned).collect()
}

fn children(of: u32) -> Vec<u32> {
    let path = format!("/proc/{of}/task/{of}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

/// What stands, once the disk is mounted and its server runs.
fn recording(outside: u32) -> Option<Recording> {
    let rig = children(outside).into_iter().next()?;
    let is_server = |&process: &u32| words(process).iter().any(|word| word == server::ARGUMENT);
    let server = children(rig).into_iter().find(is_server)?;
    let mounts = std::fs::read_to_string(format!("/proc/{rig}/mountinfo")).ok()?;
    let mounts: Vec<Vec<&str>> =
        mounts.lines().map(|line| line.split_whitespace().collect()).collect();
    let of = |place: &str| {
        let own = |words: &&Vec<&str>| {
            words[4].starts_with("/run/varve-powercut/case") && words[4].ends_with(place)
        };
        mounts.iter().find(own).cloned()
    };
    let (device, disk) = (of("/first/device")?, of("/case/disk")?);
    Some(Recording {
        outside,
        rig,
        server,
        loop_device: disk.iter().find(|word| word.starts_with("/dev/loop"))?.into(),
        connection: device[2].strip_prefix("0:")?.to_owned(),
    })
}

fn is_gone(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // One that has ended and was not waited for is a zombie for a moment.
    stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.starts_with(" Z"))
}

impl Recording {
    /// What still stands.
    fn remains(&self, connections: &Path) -> Vec<String> {
        let mut remains = Vec::new();
        for (name, process) in
            [("starter", self.outside), ("rig", self.rig), ("server", self.server)]
        {
            if !is_gone(process) {
                remains.push(format!("the {name}, process {process}"));
            }
        }
        let name = self.loop_device.file_name().unwrap().to_string_lossy().into_owned();
        let backing = format!("/sys/block/{name}/loop/backing_file");
        let backing = std::fs::read_to_string(backing).unwrap_or_default();
        if backing.contains("/first/device/disk") {
            remains.push(format!("{name} on {}", backing.trim()));
        }
        if connections.join(&self.connection).exists() {
            remains.push(format!("FUSE connection {}", self.connection));
        }
        remains
    }
}

fn killed(whom: &str, victims: impl Fn(&Recording) -> Vec<u32>, connections: &Path) {
    let kept = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_varve-powercut"));
    command.args(["--fs", "ext4", "--scenario", "primitives", "--states", "200", "--deep", "0"]);
    command.arg("--keep").arg(kept.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut outside = command.spawn().unwrap();
    let end = Instant::now() + SECONDS;
    let recording = loop {
        if let Some(recording) = recording(outside.id()) {
            break recording;
        }
        assert!(outside.try_wait().unwrap().is_none(), "it ended before it was seen recording");
        assert!(Instant::now() < end, "it does not begin to record");
        std::thread::yield_now();
    };
    for victim in victims(&recording) {
        let victim = Pid::from_raw(i32::try_from(victim).unwrap()).unwrap();
        kill_process(victim, Signal::KILL).unwrap();
    }
    let (done, synced) = mpsc::channel();
    std::thread::spawn(move || {
        rustix::fs::sync();
        done.send(())
    });
    let end = Instant::now() + SECONDS;
    assert!(!outside.wait().unwrap().success(), "{whom}: it was killed and says all is well");
    loop {
        let remains = recording.remains(connections);
        if remains.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "{whom} killed, and there remain {remains:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    synced.recv_timeout(SECONDS).unwrap_or_else(|_| panic!("{whom} killed, and sync(2) hangs"));
}

#[test]
fn nothing_stands_and_nothing_hangs_when_it_is_killed_while_it_records() {
    let root = rustix::process::geteuid().is_root();
    let devices = Path::new("/dev/fuse").exists() && Path::new("/dev/loop-control").exists();
    assert!(
        root && devices,
        "THE POWER-CUT RIG IS NOT TESTED: it needs root, /dev/fuse and loop devices"
    );
    let connections = tempfile::tempdir().unwrap();
    let none: Option<&std::ffi::CStr> = None;
    rustix::mount::mount("none", connections.path(), "fusectl", MountFlags::empty(), none).unwrap();
    let rounds = std::panic::catch_unwind(|| {
        let connections = connections.path();
        for _ in 0..3 {
            killed("the rig is", |all| vec![all.rig], connections);
        }
        killed("its starter is", |all| vec![all.outside], connections);
        killed("its server is", |all| vec![all.server], connections);
        killed("all are", |all| vec![all.rig, all.server, all.outside], connections);
    });
    rustix::mount::unmount(connections.path(), UnmountFlags::DETACH).unwrap();
    if let Err(why) = rounds {
        std::panic::resume_unwind(why);
    }
}
