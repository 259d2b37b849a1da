//! What boots next, put together for a soft reboot: real mounts, by the boot stage's code.
//! Needs root; says so without. systemd's own part, from /run/nextroot on, is not tested here.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Lab, now, with_context};
use varve_agent::lifecycle::{self, AfterBoot};
use varve_agent::live::{Instead, Live};
use varve_agent::{Device, Places, health, soft_reboot};
use varve_boot::report::BootReport;
use varve_sys::mount::{enter_private_namespace, tmpfs_detached};
use varve_sys::mountinfo::parse_mountinfo;
use varve_sys::task::Cancel;

/// `run` as a machine's `/run`: a tmpfs with the boot stage's directory in it. Gives the
/// device that finds its boot report there, and that directory.
fn running(lab: &Lab) -> (Device, PathBuf) {
    enter_private_namespace().unwrap();
    let all = lab.folder.path().join("run");
    let report = fs::read(all.join("boot.toml")).unwrap();
    tmpfs_detached(0o755, None).unwrap().attach(rustix::fs::CWD, &all).unwrap();
    let run = all.join("varve");
    for dir in ["nextroot", "varve", "varve/physical", "varve/memory"] {
        fs::create_dir(all.join(dir)).unwrap();
    }
    fs::write(run.join("boot.toml"), report).unwrap();
    let places = Places { boot_report: Some(run.join("boot.toml")), ..lab.places() };
    (Device::open(places).unwrap(), run)
}

fn mounted_below(place: &Path) -> Vec<String> {
    let text = fs::read("/proc/thread-self/mountinfo").unwrap();
    let mounts = parse_mountinfo(&text).unwrap().into_iter();
    let below = mounts.filter_map(|entry| {
        entry.mount_point.strip_prefix(place).ok().map(|path| path.display().to_string())
    });
    let mut below: Vec<String> = below.collect();
    below.sort();
    below
}

#[test]
fn the_next_root_is_a_boot_with_a_try_spent() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("=== NOT RUN: mounts need root ===");
    }
    for mode in ["read-only", "volatile"] {
        let lab =
            Lab::below(varve_testkit::crash::scratch()).with(&format!("root-mode = \"{mode}\""));
        lab.tree().file("usr/lib/os-release", "ID=test\n");
        lab.publish("r1");
        lab.init();
        lab.publish("r2");
        lab.upgrade();
        let before = lab.selection();
        let (device, run) = running(&lab);
        fs::write(run.join("live.toml"), "deployments = [\"r2\"]\n").unwrap();
        fs::write(run.join("boot-complete"), "").unwrap();
        let next = lab.folder.path().join("run/nextroot");
        let report = soft_reboot::assemble(&device, &next).unwrap();
        assert_eq!(report.deployment.as_str(), "r2");
        assert_eq!((report.reason.as_str(), report.try_spent), ("trial", true));
        assert_eq!(lab.selection().tries, before.tries.map(|tries| tries - 1));

        let seen = BootReport::parse(&fs::read(run.join("boot.toml")).unwrap()).unwrap();
        assert!(seen.soft_reboot && seen == report, "who asks is told of the new one");
        assert!(Live::read(&device).unwrap().present().is_none());
        assert!(!run.join("boot-complete").exists() && !run.join("next").exists());

        assert_eq!(fs::read_to_string(next.join("usr/lib/release")).unwrap(), "r2\n");
        let there = next.join("run/varve");
        assert!(there.join("physical/varve/boot/selection").exists());
        assert_eq!(there.join("memory/!").exists(), mode == "volatile");
        let mut expected = vec!["", "etc", "run", "run/varve/physical", "var"];
        if mode == "volatile" {
            expected.insert(3, "run/varve/memory");
        }
        assert_eq!(mounted_below(&next), expected, "each once");
        assert_eq!(mounted_below(&run.join("next")), [""; 0]);
        // State is the new one's own, and is written.
        fs::write(next.join("etc/mine"), "mine").unwrap();
        let etc = lab.disk().join("varve/state/versioned/r2/etc/upper/mine");
        assert_eq!(fs::read_to_string(etc).unwrap(), "mine");
        // It is judged like any boot.
        fs::write(run.join("boot-complete"), "").unwrap();
        let writer = device.lock("confirm", now()).unwrap();
        let judged = with_context(&Cancel::new(), |context| {
            lifecycle::after_boot(&device, &writer, context, &health::run).unwrap()
        });
        assert!(matches!(judged, AfterBoot::Confirmed { .. }), "{judged:?}");
    }
}

#[test]
fn what_speaks_against_a_soft_reboot_is_said() {
    let lab = Lab::new();
    lab.tree();
    lab.publish("r1");
    lab.init();
    assert!(soft_reboot::plan(&lab.device()).is_err(), "it runs already");
    lab.publish("r2");
    lab.upgrade();
    let plan = soft_reboot::plan(&lab.device()).unwrap();
    let whys: Vec<_> = plan.obstacles.iter().map(|found| found.why.as_str()).collect();
    assert!(whys.iter().any(|why| why.contains("os-release")), "{whys:?}");
    assert!(plan.obstacles.iter().all(|found| found.instead == Instead::Reboot));
    let device = lab.device();
    let writer = device.lock("apply", now()).unwrap();
    assert!(soft_reboot::request(&device, &writer, &plan).is_err());
    assert!(!lab.folder.path().join("run/soft-reboot").exists());
}
