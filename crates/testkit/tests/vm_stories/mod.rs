//! What the stories in `vm_*.rs` share: looks at the guest that do not take Varve's word
//! for it.

#![allow(dead_code, reason = "each test program uses a part")]

use std::time::{Duration, Instant};
use varve_testkit::vm::guest::{Guest, value};
pub(crate) use varve_testkit::vm::lab::Lab;
use varve_testkit::vm::{Error, lab};

pub(crate) type Outcome = Result<(), Error>;

pub(crate) const STABLE: &str = "stable";

/// Fails with the error as a person reads it, the console's tail included.
pub(crate) fn tell(outcome: Outcome) {
    if let Err(error) = outcome {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        panic!("{error}{}", source.unwrap_or_default());
    }
}

/// The tree that runs is the one expected, and the boot stage says why it took it.
pub(crate) fn expect_running(guest: &mut Guest, release: &str, reason: &str) -> Outcome {
    let running = guest.running()?;
    let report = guest.boot_report()?;
    assert_eq!(running, release, "another release runs:\n{report}");
    assert_eq!(value(&report, "reason"), reason, "{report}");
    eprintln!("{running} runs ({reason}); boot stage {} us", value(&report, "microseconds"));
    Ok(())
}

/// How the root is held, by the boot stage's report and by what is on the disk.
pub(crate) fn expect_layout(guest: &mut Guest, layout: &str) -> Outcome {
    let report = guest.boot_report()?;
    assert_eq!(value(&report, "layout"), layout, "{report}");
    let place = if layout == "overlay" { "layers" } else { "trees" };
    assert!(
        report.contains(&format!("{place}/")),
        "no path in {place}/ is in the report:\n{report}"
    );
    Ok(())
}

/// State can be written; the notes are looked for after the upgrade.
pub(crate) fn leave_notes(guest: &mut Guest) -> Outcome {
    guest
        .run("echo kept > /home/note && echo kept > /etc/note && echo kept > /var/lib/note")
        .map(|_| ())
}

/// What [`leave_notes`] wrote is there.
pub(crate) fn expect_notes(guest: &mut Guest) -> Outcome {
    guest
        .run("grep -q kept /home/note && grep -q kept /etc/note && grep -q kept /var/lib/note")
        .map(|_| ())
}

/// Upgrades, and looks that bytes really came from the server.
pub(crate) fn upgrade(guest: &mut Guest, channel: &str) -> Outcome {
    let done = guest.upgrade(channel)?;
    let (time, bytes, requests) = (done.time.as_secs_f64(), done.bytes, done.requests);
    eprintln!("upgrade: {time:.1} s, {bytes} bytes in {requests} requests\n{}", done.said);
    assert!(requests > 3, "only {requests} requests came: nothing was upgraded\n{}", done.said);
    Ok(())
}

/// The release was tried, found well and is kept: no tries stand in the selection.
pub(crate) fn expect_confirmed(guest: &mut Guest) -> Outcome {
    let end = Instant::now() + lab::BOOT;
    loop {
        let selection = guest.selection()?;
        if !selection.contains("tries") {
            return Ok(());
        }
        if Instant::now() > end {
            let log = guest.run("journalctl --no-pager -n 50 -u 'varve*'; varve status")?;
            panic!("it was not confirmed in time:\n{selection}\n{log}");
        }
        std::thread::sleep(Duration::from_secs(3));
    }
}

/// Nothing newer is taken from a channel whose newest was rolled back or failed.
pub(crate) fn expect_nothing_newer(guest: &mut Guest, channel: &str) -> Outcome {
    guest.connect(channel)?;
    let before = guest.selection()?;
    let output = guest.machine().run("varve upgrade", lab::UPGRADE)?;
    let after = guest.selection()?;
    assert_eq!(before, after, "a release that was rolled back was taken again:\n{}", output.text);
    Ok(())
}

/// A machine of Debian 13 that runs, layout overlay, root mode volatile.
pub(crate) fn machine() -> Result<Guest, Error> {
    let mut guest = Lab::open()?.guest("debian-13", "overlay")?;
    guest.boot()?;
    Ok(guest)
}

/// What a command answers with `--json`.
pub(crate) fn json(guest: &mut Guest, command: &str) -> Result<serde_json::Value, Error> {
    let text = guest.run(&format!("{command} --json 2>/dev/null"))?;
    Ok(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}\n{text}")))
}

/// Makes a layer of a directory with this one file.
pub(crate) fn add_layer(guest: &mut Guest, name: &str, path: &str, content: &str) -> Outcome {
    guest
        .run(&format!(
            "d=/run/new/{name}; mkdir -p $d/$(dirname {path}) && printf '%b' '{content}' > $d/{path} \
             && chmod 755 $d/{path} && varve layer add $d --name {name} && rm -r $d"
        ))
        .map(|_| ())
}
