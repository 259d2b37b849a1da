//! Releases that do not work, and a selection that cannot be read: the machine comes back
//! by itself to the system that did work. `cargo xtask test slow` runs these.

mod vm_stories;

use std::time::Duration;
use varve_testkit::vm::lab;
use vm_stories::*;

/// A release whose health check fails goes back by itself and is not tried again; and a
/// selection that is damaged or gone still boots.
fn sick_goes_back(layout: &str, damages: &[&str]) -> Outcome {
    let mut guest = Lab::open()?.guest("debian-13", layout)?;
    let old = guest.system.old.clone();
    guest.boot()?;
    upgrade(&mut guest, "sick")?;
    // Nobody touches it from here: it boots the new one, judges it and comes back.
    guest.machine().reboot()?;
    let machine = guest.machine();
    machine.console.expect("varve: booted ", lab::BOOT)?;
    machine.console.expect("varve: booted ", lab::BOOT + Duration::from_secs(120))?;
    machine.login(lab::BOOT)?;
    expect_running(&mut guest, &old, "latest")?;
    // The user is told which check failed.
    let status = guest.run("varve status; varve history")?;
    assert!(status.contains("not sick"), "the failed check is not named:\n{status}");
    expect_nothing_newer(&mut guest, "sick")?;

    for damage in damages {
        guest.run(&format!("{damage} /run/varve/physical/varve/boot/selection && sync"))?;
        // Power off without a shutdown, which might repair it.
        guest.kill();
        guest.boot()?;
        let running = guest.running()?;
        assert_eq!(running, old, "after {damage}");
    }
    Ok(())
}

#[test]
fn overlay_sick_release_goes_back_and_a_damaged_selection_boots() {
    tell(sick_goes_back("overlay", &["printf 'not a selection\\n' >", "rm"]));
}

#[test]
fn hard_link_sick_release_goes_back_and_a_damaged_selection_boots() {
    tell(sick_goes_back("hard-link", &["truncate -s 20"]));
}

/// A release that hangs is reset (by a watchdog, or a person), one that panics resets
/// itself; after its tries the old one boots.
fn dead_goes_back(layout: &str) -> Outcome {
    let mut guest = Lab::open()?.guest("debian-13", layout)?;
    let old = guest.system.old.clone();
    guest.boot()?;
    for fault in ["hang", "panic"] {
        upgrade(&mut guest, fault)?;
        guest.machine().reboot()?;
        let machine = guest.machine();
        // Two tries, as the configuration says.
        for attempt in 1..=2 {
            let sign = if fault == "hang" { "varve-test: init hangs" } else { "Kernel panic" };
            machine.console.expect(sign, lab::BOOT)?;
            eprintln!("{layout}: {fault}, try {attempt}");
            if fault == "hang" {
                std::thread::sleep(Duration::from_secs(2));
                machine.monitor.reset()?;
            }
        }
        machine.login(lab::BOOT)?;
        assert_eq!(guest.running()?, old, "after {fault}");
        guest.settle()?;
        let status = guest.run("varve status; varve history")?;
        assert!(status.contains(fault), "the release that failed is not named:\n{status}");
        expect_nothing_newer(&mut guest, fault)?;
    }
    Ok(())
}

#[test]
fn overlay_dead_releases_go_back_after_their_tries() {
    tell(dead_goes_back("overlay"));
}

#[test]
fn hard_link_dead_releases_go_back_after_their_tries() {
    tell(dead_goes_back("hard-link"));
}
