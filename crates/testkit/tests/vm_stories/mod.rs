//! What the stories in `vm_*.rs` share: acts of a person at the machine, and looks at the
//! guest that do not take Varve's word for it.

#![allow(dead_code, reason = "each test program uses a part")]

use std::time::{Duration, Instant};
pub(crate) use varve_testkit::vm::lab::{Guest, Lab};
use varve_testkit::vm::{Error, lab};

pub(crate) type Outcome = Result<(), Error>;

pub(crate) const STABLE: &str = "stable";

/// What ends a boot for good.
pub(crate) const DEAD: &[&str] = &["Kernel panic", "(initramfs)", "emergency mode", "dracut:/#"];

/// What the boot stage says when it hands over.
const HANDS_OVER: &str = "varve: booted ";

/// Fails with the error as a person reads it, the console's tail included.
pub(crate) fn tell(outcome: Outcome) {
    if let Err(error) = outcome {
        panic!("{error}{}", std::error::Error::source(&error).map(|e| format!(": {e}")).unwrap_or_default());
    }
}

/// The tree that runs is the one expected, and the boot stage says why it took it.
pub(crate) fn expect_running(guest: &mut Guest, release: &str, reason: &str) -> Outcome {
    let running = guest.running()?;
    let report = guest.run("cat /run/varve/boot.toml")?;
    assert_eq!(running, release, "another release runs:\n{report}");
    assert_eq!(value(&report, "reason"), reason, "{report}");
    Ok(())
}

/// How the root is really held: the file system that is mounted there, and the record.
pub(crate) fn expect_layout(guest: &mut Guest, layout: &str) -> Outcome {
    let report = guest.run("cat /run/varve/boot.toml")?;
    assert_eq!(value(&report, "layout"), layout, "{report}");
    let place = if layout == "overlay" { "layers" } else { "trees" };
    let held = guest.run(&format!("ls /run/varve/physical/varve/{place}"))?;
    assert!(!held.trim().is_empty(), "nothing is in {place}");
    Ok(())
}

/// State can be written, and `/usr` is the release's own.
pub(crate) fn expect_writable_state(guest: &mut Guest) -> Outcome {
    guest.run("echo kept > /home/note && echo kept > /etc/note && echo kept > /var/lib/note")?;
    guest.run("grep -q ' / ' /proc/self/mountinfo && test -d /run/varve/physical/varve").map(|_| ())
}

/// Upgrades from the test's server and looks that bytes really came from it.
pub(crate) fn upgrade(guest: &mut Guest, channel: &str) -> Outcome {
    guest.connect(channel)?;
    let before = guest.server.counters();
    let begin = Instant::now();
    let said = guest.machine().check("varve upgrade", lab::UPGRADE)?;
    let after = guest.server.counters();
    let (requests, bytes) = (after.requests - before.requests, after.total() - before.total());
    eprintln!("upgrade: {:.1} s, {bytes} bytes in {requests} requests\n{said}", begin.elapsed().as_secs_f64());
    assert!(requests > 3, "only {requests} requests came: nothing was upgraded\n{said}");
    Ok(())
}

/// The release was tried, found well and is kept: no tries stand in the selection.
pub(crate) fn expect_confirmed(guest: &mut Guest) -> Outcome {
    let end = Instant::now() + lab::BOOT;
    loop {
        let selection = guest.run("cat /run/varve/physical/varve/boot/selection")?;
        if !selection.contains("tries") {
            return Ok(());
        }
        if Instant::now() > end {
            let units = guest.run("systemctl --no-pager status 'varve*' || true; journalctl --no-pager -n 50 -u 'varve*'")?;
            panic!("it was not confirmed in time:\n{selection}\n{units}");
        }
        std::thread::sleep(Duration::from_secs(3));
    }
}

/// `check` finds nothing to upgrade to, and `upgrade` does nothing.
pub(crate) fn expect_nothing_newer(guest: &mut Guest, channel: &str) -> Outcome {
    guest.connect(channel)?;
    let before = guest.run("cat /run/varve/physical/varve/boot/selection")?;
    guest.machine().run("varve upgrade", lab::UPGRADE)?;
    let after = guest.run("cat /run/varve/physical/varve/boot/selection")?;
    assert_eq!(before, after, "a release that was rolled back was taken again");
    Ok(())
}

/// Reboots and holds Escape as a keyboard does: the key is sent again and again until it
/// is let go, once the boot stage has spoken.
pub(crate) fn reboot_with_key(guest: &mut Guest) -> Outcome {
    guest.machine().reboot()?;
    let machine = guest.machine();
    let end = Instant::now() + lab::BOOT;
    loop {
        machine.monitor.key("esc", true)?;
        match machine.console.expect(HANDS_OVER, Duration::from_millis(100)) {
            Ok(_) => break,
            Err(_) if Instant::now() < end => {}
            Err(error) => return Err(error),
        }
    }
    machine.monitor.key("esc", false)?;
    machine.login(lab::BOOT)
}

/// Reboots and types Escape on the serial line until the boot stage has spoken.
pub(crate) fn reboot_with_serial_escape(guest: &mut Guest) -> Outcome {
    guest.machine().reboot()?;
    let machine = guest.machine();
    let end = Instant::now() + lab::BOOT;
    // Before the kernel runs, the bytes would go to the system that shuts down.
    machine.console.expect("Linux version", lab::BOOT)?;
    loop {
        machine.console.send(b"\x1b")?;
        match machine.console.expect(HANDS_OVER, Duration::from_millis(300)) {
            Ok(_) => return machine.login(lab::BOOT),
            Err(_) if Instant::now() < end => {}
            Err(error) => return Err(error),
        }
    }
}

/// The value of a key of a flat TOML document, without quotes.
pub(crate) fn value<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='))
        .map_or("", |value| value.trim().trim_matches('"'))
}
