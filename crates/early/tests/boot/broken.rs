//! What a broken disk may hold in the place of Varve's own files: the machine boots all the
//! same, at once, and what is said of it is plain and short.

use std::time::Duration;

use super::*;

/// A file of 1 GiB that takes no room.
fn endless(path: &Path) {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
}

/// No file is read beyond what it may be, none that is no file is waited for.
#[test]
fn files_without_end_and_pipes_do_not_keep_it_from_booting() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|_| {});
    disk.select("b", Some("a"), None);
    let varve = disk.varve("");
    for name in ["layers/u/layer.toml", "boot/probe", "boot/bisect", "boot/selection"] {
        endless(&varve.join(name));
    }
    fs::create_dir_all(varve.join("deployments/huge")).unwrap();
    endless(&varve.join("deployments/huge/deployment.toml"));
    let began = Instant::now();
    let report = disk.boot("varve.menu=always varve.menu-timeout=0");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!((report.deployment.as_str(), &*report.reason), ("a", "any-confirmed"));
    assert!(report.selection_problem.unwrap().contains("longer than 4096 bytes"));
    for name in ["probe", "bisect", "huge"] {
        assert!(report.warnings.iter().any(|line| line.contains(name)), "{:?}", report.warnings);
    }
    disk.power_off();

    for name in ["boot/probe", "boot/bisect", "boot/selection", "deployments/huge/deployment.toml"]
    {
        let path = disk.varve(name);
        fs::remove_file(&path).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    }
    let began = Instant::now();
    let report = disk.boot("");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(report.deployment.as_str(), "a");
    assert!(report.selection_problem.unwrap().contains("not a regular file"));
}

/// Names and texts that would act on a terminal, of a kind and number that no person made.
#[test]
fn what_is_said_of_a_broken_disk_is_plain_and_short() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|_| {});
    disk.select("b", Some("a"), None);
    for n in 0..500 {
        let name = format!("deployments/\u{1b}[2J\n<0>{n}\u{9b}1m");
        fs::create_dir_all(disk.varve(&name)).unwrap();
    }
    let torn = format!("format = 1\nname = \"\u{1b}]0;x\u{7}{}\"\n", "y".repeat(100_000));
    put(&disk.varve("deployments/b/deployment.toml"), &torn);
    let report = disk.boot("");
    assert_eq!(report.deployment.as_str(), "a");
    let said = report.warnings.iter().chain(&report.passed_over);
    for line in said.chain(&report.selection_problem) {
        assert!(!line.chars().any(char::is_control) && line.len() < 2100, "{line:?}");
    }
    assert!(report.warnings.len() < 100, "{}", report.warnings.len());
    assert!(report.warnings.last().unwrap().starts_with("and "), "{:?}", report.warnings.last());
    let written = fs::metadata(disk.path("run/varve/boot.toml")).unwrap().len();
    assert!(written < 256 << 10, "{written} bytes of a report");

    // The same where nothing boots at all.
    disk.power_off();
    fs::remove_dir_all(disk.varve("deployments/a")).unwrap();
    let error = varve_sys::whole_message(&disk.try_boot(&machine("")).unwrap_err());
    assert!(!error.chars().any(char::is_control), "{error:?}");
}

/// What the boot stage leaves in the running system is root's to change.
#[test]
fn a_local_user_changes_nothing_that_the_boot_stage_left() {
    let Some(mut disk) = Disk::new() else { return };
    disk.two(|record| {
        record.root_mode = RootMode::Volatile;
        record.state = vec![state("/etc", StateMode::Versioned)];
    });
    disk.select("b", Some("a"), None);
    disk.boot("");
    for (path, mode) in [("", 0o755), ("boot.toml", 0o644), ("memory", 0o700)] {
        let meta = fs::metadata(disk.path("run/varve").join(path)).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (mode, 0), "{path}");
    }
}
