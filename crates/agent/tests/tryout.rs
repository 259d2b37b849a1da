//! A deployment tried beside what runs: real mounts and namespaces, nothing left of them.
//! Needs root and a static shell (busybox); says so without.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::fs;
use std::path::Path;

use common::{Lab, now, with_context};
use varve_agent::tryout::{self, Act, Tried, TryError};
use varve_agent::{Error, bisect, layer};
use varve_sys::task::Cancel;

fn try_out(lab: &Lab, name: Option<&str>, act: &Act) -> Result<Tried, Error> {
    let name = name.map(|name| name.parse().unwrap());
    with_context(&Cancel::new(), |context| tryout::run(&lab.device(), name.as_ref(), act, context))
}

/// Runs a script; what it finds it says by its exit status alone.
fn status(lab: &Lab, name: Option<&str>, script: &str) -> u8 {
    let words = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
    try_out(lab, name, &Act::Command(words)).unwrap().status.unwrap()
}

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count()
}

#[test]
fn what_boots_next_is_tried_and_nothing_is_changed() {
    let Some(lab) = Lab::runnable() else { return };
    let etc = lab.disk().join("varve/state/versioned/r1/etc/upper");
    fs::write(etc.join("mine"), "mine").unwrap();
    let shared = lab.disk().join("varve/state/shared/var/upper");
    fs::write(shared.join("log.txt"), "kept").unwrap();
    lab.publish("r2");
    lab.upgrade();
    let before = (mounts(), walk(&lab.disk()));
    let fine = "set -eu; cd /; PATH=/bin; alias b=/bin/busybox
        test \"$(busybox cat usr/lib/release)\" = r2
        test \"$(busybox cat etc/mine)\" = mine
        test \"$(busybox cat var/log.txt)\" = kept
        busybox hostname copy; test \"$(busybox hostname)\" = copy
        echo new > etc/mine; echo more >> var/log.txt; busybox rm usr/lib/release; echo > usr/x
        test -c dev/null; test ! -e dev/vda; test -d dev/pts; test -e sys/kernel
        test -z \"$(busybox ls run tmp | busybox grep -v :)\"
        busybox ls proc | busybox grep -q '^1$'
        test \"$(busybox ls proc | busybox grep -c '^[0-9]')\" -le 6
        if echo 1 > proc/sys/kernel/sysrq; then exit 9; fi
        if busybox mkdir sys/x; then exit 10; fi
        test ! -e run/varve";
    assert_eq!(status(&lab, None, fine), 0);
    assert_eq!(status(&lab, None, "exit 7"), 7, "the command's exit status is passed on");
    assert_eq!(status(&lab, None, "kill -9 $$"), 137);
    let old = "test \"$(/bin/busybox cat /usr/lib/release)\" = r1";
    assert_eq!(status(&lab, Some("r1"), old), 0);
    assert_eq!(before, (mounts(), walk(&lab.disk())), "nothing is changed, nothing mounted");

    let missing = Act::Command(vec!["/no/such".to_owned()]);
    let error = try_out(&lab, None, &missing).unwrap_err();
    assert!(matches!(error, Error::Inside(_)), "{error}");
    let error = try_out(&lab, Some("r9"), &Act::Health).unwrap_err();
    assert!(matches!(error, Error::NoDeployment { .. }), "{error}");
    let error = try_out(&lab, None, &Act::Health).unwrap_err();
    assert!(matches!(error, Error::Try(TryError::NoChecks { .. })), "{error}");
}

#[test]
fn orphans_are_adopted_and_end_with_the_command() {
    let Some(lab) = Lab::runnable() else { return };
    let seconds = format!("{}.75", 4000 + std::process::id() % 1000);
    let script = format!("/bin/busybox sh -c '/bin/busybox sleep {seconds} &'; exit 3");
    assert_eq!(status(&lab, None, &script), 3);
    assert!(!is_running(&seconds), "a process of the copy survived it");
}

#[test]
fn a_cancelled_try_ends_all_that_it_started() {
    let Some(lab) = Lab::runnable() else { return };
    let seconds = format!("{}.25", 5000 + std::process::id() % 1000);
    let script = format!("/bin/busybox sleep {seconds} & /bin/busybox sleep {seconds}");
    let words = ["/bin/busybox", "sh", "-c", &script].map(str::to_owned).to_vec();
    let cancel = Cancel::new();
    let error = std::thread::scope(|scope| {
        let (cancel_there, seconds) = (cancel.clone(), &seconds);
        scope.spawn(move || {
            let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while !is_running(seconds) && std::time::Instant::now() < end {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            cancel_there.cancel();
        });
        with_context(&cancel, |context| {
            tryout::run(&lab.device(), None, &Act::Command(words), context).unwrap_err()
        })
    });
    assert!(error.is_cancelled(), "{error}");
    // The kernel ends one after the other.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while is_running(&seconds) {
        assert!(std::time::Instant::now() < end, "a process of the copy survived it");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[test]
fn health_checks_run_in_the_copy_each_with_a_clean_process_list() {
    let Some(lab) = Lab::runnable() else { return };
    let checks = "[[health]]\nname = \"release\"\n\
        command = [\"/bin/busybox\", \"grep\", \"r2\", \"/usr/lib/release\"]\n\
        [[health]]\nname = \"hangs\"\ntimeout = \"1s\"\n\
        command = [\"/bin/busybox\", \"sleep\", \"1000\"]\n\
        [[health]]\nname = \"speaks\"\n\
        command = [\"/bin/busybox\", \"sh\", \"-c\", \"echo no route; exit 4\"]\n";
    let etc = lab.disk().join("varve/state/versioned/r1/etc/upper/varve");
    let config = fs::read_to_string(etc.join("varve.toml")).unwrap();
    fs::write(etc.join("varve.toml"), format!("{config}{checks}")).unwrap();
    lab.publish("r2");
    lab.upgrade();
    let tried = try_out(&lab, None, &Act::Health).unwrap();
    let said: Vec<_> = tried.checks.iter().map(|c| (&c.name[..], &c.how[..], c.passed)).collect();
    assert_eq!(
        said,
        [
            ("release", "passed", true),
            ("hangs", "did not finish within 1 s", false),
            ("speaks", "failed with exit status 4", false)
        ]
    );
    assert_eq!(tried.checks[2].output, "no route");
    assert!(!tried.passed());
}

/// Whether a process has this word in its command line.
fn is_running(word: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|&b| b == 0).any(|part| part == word.as_bytes())
    })
}

/// Every path with its size and its time of change.
fn walk(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            let (changed, size) = ((meta.ctime(), meta.ctime_nsec()), meta.size());
            found.push(format!("{} {changed:?} {size}", entry.path().display()));
            if meta.is_dir() {
                left.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_search_in_private_copies_finds_the_layer_without_a_boot() {
    let Some(mut lab) = Lab::runnable() else { return };
    for name in ["fine", "bad", "games"] {
        let dir = lab.folder.path().join(name);
        fs::create_dir_all(dir.join("usr/share")).unwrap();
        fs::write(dir.join("usr/share").join(name), name).unwrap();
        let device = lab.device();
        let writer = device.lock("layer", now()).unwrap();
        let (name, sources) = (name.parse().unwrap(), [dir]);
        with_context(&Cancel::new(), |context| {
            layer::add(&device, &writer, Some(&name), &sources, "", false, context).unwrap()
        });
    }
    lab.boot(false);
    let search = |lab: &Lab| {
        let device = lab.device();
        let search = bisect::plan(&device, bisect::Wish::default()).unwrap();
        let layers = search.layers.len();
        let tried = with_context(&Cancel::new(), |c| bisect::try_first(&device, search, c));
        (tried.map(|tried| bisect::report_of(&device, tried).unwrap()), layers)
    };
    let error = search(&lab).0.unwrap_err();
    assert!(matches!(error, Error::Try(TryError::NoChecks { .. })), "{error}");

    let before = (mounts(), walk(&lab.disk()));
    let check = |lab: &mut Lab, path: &str| {
        let script = format!("! /bin/busybox test -e {path}");
        let command = format!("[\"/bin/busybox\", \"sh\", \"-c\", \"{script}\"]");
        lab.config.push_str(&format!("\n[[health]]\nname = \"{path}\"\ncommand = {command}\n"));
        let etc = lab.disk().join("varve/state/versioned");
        for state in fs::read_dir(etc).unwrap() {
            let etc = state.unwrap().path().join("etc/upper/varve");
            fs::create_dir_all(&etc).unwrap();
            fs::write(etc.join("varve.toml"), lab.config_text()).unwrap();
        }
    };
    check(&mut lab, "/usr/share/nothing");
    let (report, layers) = search(&lab);
    let report = report.unwrap();
    assert_eq!((report.outcome, report.answers.len(), layers), ("searching", 0, 3));
    check(&mut lab, "/usr/share/bad");
    let report = search(&lab).0.unwrap();
    assert_eq!((report.outcome, report.proven), ("found", true), "{report:#?}");
    assert_eq!(report.found[0].as_str(), "bad");
    assert!(report.answers.iter().all(|answer| answer.why.starts_with("in a copy, ")));
    assert_eq!(before.0, mounts());
}

#[test]
fn a_whole_system_boots_in_a_container() {
    let Some(lab) = Lab::runnable() else { return };
    if tryout::container().is_none() {
        let error = try_out(&lab, None, &Act::Boot).unwrap_err();
        assert!(matches!(error, Error::Try(TryError::NoContainer)), "{error}");
        return eprintln!(
            "=== NOT RUN: there is no systemd-nspawn (package systemd-container) ==="
        );
    }
    // An init that looks around and ends; the container's status is its own.
    let init = "#!/bin/busybox sh
        PATH=/bin; set -eu
        test $$ = 1; test \"$(busybox cat /usr/lib/release)\" = r2; test ! -e /dev/vda
        test -z \"$(busybox ls /sys/class/net | busybox grep -v '^lo$')\"
        echo changed > /etc/hostname; exit 9\n";
    lab.tree().file("usr/lib/os-release", "ID=test\n").file("usr/sbin/init", init);
    let init = lab.tree().0.join("usr/sbin/init");
    fs::set_permissions(init, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    lab.publish("r2");
    lab.upgrade();
    let before = (mounts(), walk(&lab.disk()));
    assert_eq!(try_out(&lab, None, &Act::Boot).unwrap().status, Some(9));
    assert_eq!(before, (mounts(), walk(&lab.disk())), "nothing is changed, nothing mounted");
}
