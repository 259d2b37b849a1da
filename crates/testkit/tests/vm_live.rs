//! A real Debian that takes a change into use while it works, and one whose disk is full. In
//! a virtual machine; `cargo xtask test slow` runs these.

mod vm_stories;

use std::time::Duration;
use varve_testkit::vm::guest::{Guest, HANDS_OVER, MENU, value};
use varve_testkit::vm::lab::{BOOT, COMMAND};
use vm_stories::*;

/// Asks the server all the time, one request after the other, until there is /run/stop.
const CLIENT: &str = r#"
import http.client, json, os, time
asked = failed = 0
longest = 0.0
seen, errors = [], []
while not os.path.exists("/run/stop"):
    begun = time.monotonic()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=20)
        connection.request("GET", "/index.html")
        answer = connection.getresponse()
        body = answer.read().decode().strip()
        if answer.status != 200: raise RuntimeError(answer.status)
        if seen[-1:] != [body]: seen.append(body)
    except Exception as error:
        failed += 1
        errors.append(repr(error))
    longest = max(longest, time.monotonic() - begun)
    asked += 1
json.dump(dict(asked=asked, failed=failed, seen=seen, errors=errors[:5],
    longest_ms=round(longest * 1000)), open("/run/client.json", "w"))
"#;

/// The server has a mount namespace of its own, as most services of a distribution have.
const UNITS: &str = "\
    printf '[Service]\\nExecStart=/usr/bin/python3 -m http.server 8000 --bind 127.0.0.1 --directory /usr/share/varve-www\\nPrivateTmp=yes\\nProtectSystem=strict\\n' > /run/systemd/system/web.service && \
    printf '[Service]\\nExecStart=/usr/lib/varve-test/worker infinity\\nProtectSystem=full\\n' > /run/systemd/system/worker.service && \
    printf '[Service]\\nExecStart=/usr/bin/python3 /run/client.py\\n' > /run/systemd/system/client.service && \
    systemctl daemon-reload";

#[test]
fn a_live_change_fails_no_request_and_starts_anew_what_changed() {
    tell((|| {
        let mut guest = machine()?;
        // Twice: first over the root, then in exchange for what the first change mounted.
        guest.run(
            "mkdir -p /run/new/usr/share/varve-www /run/new/usr/lib/varve-test && cd /run/new && \
             echo one > usr/share/varve-www/index.html && cp /bin/sleep usr/lib/varve-test/worker \
             && varve layer add . --name site-1 && varve apply --live && cd / && \
             cat /usr/share/varve-www/index.html",
        )?;
        guest.run(UNITS)?;
        guest.run(&format!("cat > /run/client.py <<'EOF'\n{CLIENT}\nEOF"))?;
        guest.run("systemctl start web worker && sleep 3 && systemctl start client")?;
        let pids = "systemctl show -P MainPID web worker ssh | xargs";
        let before = guest.run(pids)?;
        guest.run(
            "cd /run/new && echo two > usr/share/varve-www/index.html && \
             echo >> usr/lib/varve-test/worker && varve layer add . --name site-2",
        )?;
        let would = guest.run("varve apply --live --dry-run")?;
        assert!(would.contains("worker.service would be started anew"), "{would}");
        let applied = json(&mut guest, "varve apply --live")?;
        eprintln!("{applied:#}");
        // What has mounts of its own in a directory that changes is started anew as well, such
        // as systemd-hostnamed where it happens to run.
        let restarted = applied["restarted"].as_array().expect("a list");
        assert!(restarted.iter().any(|unit| unit == "worker.service"), "{applied:#}");
        for unit in ["web.service", "client.service", "ssh.service"] {
            assert!(!restarted.iter().any(|other| other == unit), "{applied:#}");
        }
        assert_eq!(applied["switched"]["unreached"], serde_json::json!({}), "{applied:#}");
        // And back, and forth: each time the other way round.
        let (from, to) = (applied["from"].as_str().unwrap(), applied["to"].as_str().unwrap());
        guest.run(&format!("sleep 2; varve apply --live {from}"))?;
        guest.run(&format!("sleep 2; varve apply --live {to}"))?;
        guest.run(
            "sleep 2; touch /run/stop; while systemctl is-active --quiet client; do sleep 1; done",
        )?;
        let client = guest.run("cat /run/client.json")?;
        eprintln!("{client}");
        let client: serde_json::Value = serde_json::from_str(&client).expect("JSON");
        assert_eq!(client["failed"], 0, "{client:#}");
        assert_eq!(client["seen"], serde_json::json!(["one", "two", "one", "two"]), "{client:#}");
        assert!(client["asked"].as_u64().is_some_and(|asked| asked > 100), "{client:#}");

        let after = guest.run(pids)?;
        let pid = |text: &str, at: usize| text.split(' ').nth(at).unwrap().to_owned();
        assert_eq!(pid(&before, 0), pid(&after, 0), "the server was started anew");
        assert_eq!(pid(&before, 2), pid(&after, 2), "sshd was started anew");
        assert_ne!(pid(&before, 1), pid(&after, 1), "the worker runs on");
        guest.run(
            "cmp /proc/$(systemctl show -P MainPID worker)/exe /run/new/usr/lib/varve-test/worker",
        )?;
        // What runs is not judged by it: the next boot tries it.
        let selection = guest.selection()?;
        assert!(selection.contains("tries"), "{selection}");
        let ps = guest.run("varve ps")?;
        assert!(ps.contains("python3"), "{ps}");
        Ok(())
    })());
}

#[test]
fn a_full_disk_boots_by_the_menu_and_is_made_free() {
    tell((|| {
        let mut guest = machine()?;
        let old = guest.system.old.clone();
        // An own layer, and an upgrade that was given up.
        guest.run(
            "mkdir -p /run/new/usr/share && echo x > /run/new/usr/share/mine \
             && varve layer add /run/new --name mine",
        )?;
        guest.connect(STABLE)?;
        let incoming = "du -sm /run/varve/physical/varve/incoming | cut -f1";
        guest.machine().run("timeout -s KILL 20 varve upgrade", COMMAND)?;
        let fetched: u64 = guest.run(incoming)?.parse().expect("MiB");
        assert!(fetched > 2, "only {fetched} MiB were fetched");
        guest.machine().run(
            "fallocate -l $(($(stat -f -c %f /home) * 4 - 49152))K /home/full; \
             cat /dev/zero > /home/rest; cat /dev/zero > /home/rest-2; sync",
            COMMAND,
        )?;
        // What ext4 has left for files of root: it keeps 4096 blocks for its own books.
        let free = |guest: &mut Guest| -> Result<u64, varve_testkit::vm::Error> {
            let blocks = guest.run("stat -f -c %f /run/varve/physical")?;
            Ok(blocks.parse::<u64>().expect("blocks").saturating_sub(4096) * 4)
        };
        assert!(free(&mut guest)? < 1024, "{} KiB are free", free(&mut guest)?);
        // The power goes, and whoever holds the space bar wants the base alone.
        guest.kill();
        guest.start()?;
        guest.hold_at_boot("spc", MENU)?;
        let machine = guest.machine();
        machine.console.expect("put it all back", COMMAND)?;
        machine.monitor.press("2", Duration::from_millis(100))?;
        machine.console.expect("without 1 layer", COMMAND)?;
        machine.monitor.press("ret", Duration::from_millis(100))?;
        machine.console.expect(HANDS_OVER, BOOT)?;
        machine.login(BOOT)?;
        expect_running(&mut guest, &old, "menu")?;
        guest.run("test ! -e /usr/share/mine")?;
        // With no byte free but those of the ballast, which the boot's end gave away.
        guest.settle()?;
        let before = free(&mut guest)?;
        assert!(before < 1024 + 2048, "{before} KiB are free");
        guest.run("test ! -e /run/varve/physical/varve/ballast")?;
        let status = guest.run("varve status")?;
        eprintln!("{status}");
        let said = guest.run("varve layer remove mine && varve collect --unfinished")?;
        eprintln!("{said}");
        let after = free(&mut guest)?;
        assert!(after > before + fetched * 512, "{before} KiB, then {after} KiB\n{said}");
        guest.run("rm /home/full /home/rest*")?;
        guest.reboot()?;
        expect_running(&mut guest, &old, "trial")?;
        let report = guest.boot_report()?;
        assert_eq!(value(&report, "stripped"), "0", "{report}");
        guest.run("test ! -e /usr/share/mine")?;
        expect_confirmed(&mut guest)
    })());
}
