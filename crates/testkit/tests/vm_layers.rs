//! The stack of layers on a real Debian: a user's own layers and an upgrade under them, the
//! boot menu, the search for a bad layer. In a virtual machine; `cargo xtask test slow` runs
//! these.

mod vm_stories;

use std::path::Path;
use std::time::Duration;
use varve_testkit::vm::Error;
use varve_testkit::vm::guest::{Guest, HANDS_OVER, KERNEL_STARTS, MENU, value};
use varve_testkit::vm::lab::{BOOT, COMMAND};
use vm_stories::*;

/// Looks that the screen shows something, and keeps it, for the documents, where
/// `VARVE_PICTURES` names a folder.
fn picture(guest: &mut Guest, name: &str) -> Outcome {
    // The screen follows the serial line a moment later.
    std::thread::sleep(Duration::from_secs(1));
    let path = guest.config.folder.join(name).with_extension("ppm");
    let screen = &mut guest.machine().monitor;
    screen.screen(&path)?;
    if let Some(folder) = std::env::var_os("VARVE_PICTURES") {
        screen.screen(&Path::new(&folder).join(name).with_extension("png"))?;
    }
    // A screen that shows nothing is one colour.
    let bytes = std::fs::read(&path).unwrap();
    let pixels = &bytes[bytes.len().saturating_sub(720 * 400 * 3)..];
    let lit = pixels.chunks_exact(3).filter(|pixel| *pixel != &pixels[..3]).count();
    assert!(lit > 2000, "the screen shows no menu: {lit} pixels of another colour");
    Ok(())
}

#[test]
fn own_layers_are_captured_added_and_carried_by_an_upgrade() {
    tell((|| {
        let mut guest = machine()?;
        let (old, new) = (guest.system.old.clone(), guest.system.new.clone());
        // What its user changed at the root, which is in memory until it is captured.
        guest.run("echo Mine. > /usr/lib/varve-test/greeting && echo more > /usr/share/more")?;
        guest.run("varve layer capture mine --title 'my greeting'")?;
        guest.run(
            "p=/run/greet; mkdir -p $p/DEBIAN $p/usr/bin && printf 'Package: greet\\nVersion: 1.0\\n\
             Architecture: all\\nMaintainer: a user <user@example.org>\\nDescription: greets\\n' \
             > $p/DEBIAN/control && printf '#!/bin/sh\\ncat /usr/lib/varve-test/greeting\\n' \
             > $p/usr/bin/greet && chmod 755 $p/usr/bin/greet \
             && dpkg-deb --root-owner-group -b $p /run/greet.deb && varve layer add /run/greet.deb",
        )?;
        guest.reboot()?;
        expect_running(&mut guest, &old, "trial")?;
        assert_eq!(guest.run("greet && cat /usr/share/more")?, "Mine.\nmore");
        assert!(guest.run("dpkg -s greet")?.contains("Status: install ok installed"));
        guest.run("test ! -e '/run/varve/memory/!/upper/usr/lib/varve-test/greeting'")?;
        expect_confirmed(&mut guest)?;

        // Under them the release changes, and one of their files hides what it changed.
        guest.connect(STABLE)?;
        let plan = json(&mut guest, "varve upgrade --dry-run")?;
        let conflicts = plan["plan"]["conflicts"].as_array().expect("a list").clone();
        assert!(
            conflicts.iter().any(|conflict| conflict["layer"] == "mine"
                && conflict["path"].as_str().is_some_and(|p| p.ends_with("varve-test/greeting"))
                && conflict["what"] == "hides-changed"),
            "{conflicts:#?}"
        );
        let done = guest.upgrade(STABLE)?;
        assert!(done.said.contains("mine") && done.said.contains("greeting"), "{}", done.said);
        guest.reboot()?;
        expect_running(&mut guest, &new, "trial")?;
        assert_eq!(guest.run("greet && cat /usr/share/more")?, "Mine.\nmore");
        expect_confirmed(&mut guest)?;

        // Its user prefers the release's, and starts all but the kernel anew.
        let boot_id = guest.run("cat /proc/sys/kernel/random/boot_id")?;
        guest.run("varve layer off mine")?;
        soft_reboot(&mut guest)?;
        expect_running(&mut guest, &new, "trial")?;
        assert_eq!(guest.run("greet")?, format!("This is {new}."));
        assert_eq!(guest.run("cat /proc/sys/kernel/random/boot_id")?, boot_id);
        assert_eq!(guest.run("systemctl show -P SoftRebootsCount")?, "1");
        expect_confirmed(&mut guest)?;
        let status = guest.run("varve status")?;
        assert!(status.contains("since a soft reboot"), "{status}");
        // Nothing of the old root is mounted any more, and state is written where it belongs.
        let mounts = guest.run("findmnt -rno TARGET")?;
        for (place, count) in [("/", 1), ("/etc", 1), ("/var", 1), ("/run/nextroot", 0)] {
            let found = mounts.lines().filter(|line| *line == place).count();
            assert_eq!(found, count, "{place}:\n{mounts}");
        }
        guest.run("echo soft > /etc/note && echo soft > /home/note")?;
        guest.reboot()?;
        expect_running(&mut guest, &new, "latest")?;
        assert_eq!(guest.run("cat /etc/note /home/note")?, "soft\nsoft");
        Ok(())
    })());
}

/// All programs end and start anew on the same kernel; waits for the next login.
fn soft_reboot(guest: &mut Guest) -> Outcome {
    let machine = guest.machine();
    machine.console.skip();
    machine.console.send_line("varve apply --soft-reboot")?;
    machine.login(BOOT)
}

#[test]
fn the_boot_menu_takes_layers_off_one_by_one_until_it_works() {
    tell((|| {
        let mut guest = machine()?;
        let old = guest.system.old.clone();
        let hangs = "#!/bin/sh\\necho varve-test: init hangs\\nexec sleep infinity\\n";
        add_layer(&mut guest, "new-init", "usr/sbin/init", hangs)?;
        add_layer(&mut guest, "games", "usr/games/chess", "#!/bin/sh\\necho check\\n")?;
        guest.machine().reboot()?;
        let hangs = "varve-test: init hangs";
        guest.machine().console.expect(hangs, BOOT)?;
        // Switched off and on, the space bar held: the menu, with keys of the keyboard.
        guest.machine().monitor.reset()?;
        guest.hold_at_boot("spc", MENU)?;
        guest.machine().console.expect("put it all back", COMMAND)?;
        picture(&mut guest, "boot-menu")?;
        let machine = guest.machine();
        machine.monitor.press("1", Duration::from_millis(100))?;
        machine.console.expect("without 1 layer", COMMAND)?;
        machine.monitor.press("ret", Duration::from_millis(100))?;
        machine.console.expect(HANDS_OVER, BOOT)?;
        machine.console.expect(hangs, BOOT)?;
        // Not that one. Once more, on the serial line: it goes on from there.
        machine.monitor.reset()?;
        guest.type_at_boot(b" ", MENU)?;
        let machine = guest.machine();
        machine.console.expect("The last try was without games.", COMMAND)?;
        machine.console.expect("put it all back", COMMAND)?;
        machine.console.send(b"1")?;
        machine.console.expect("without 2 layers", COMMAND)?;
        picture(&mut guest, "boot-menu-asks")?;
        let machine = guest.machine();
        machine.console.send(b"\r")?;
        machine.login(BOOT)?;
        expect_running(&mut guest, &old, "menu")?;
        let report = guest.boot_report()?;
        assert_eq!(value(&report, "stripped"), "2", "{report}");
        guest.run("test ! -e /usr/games/chess")?;

        // It works: keep it like this. What did no harm comes back.
        let kept = guest.run("varve strip --keep && varve layer on games")?;
        eprintln!("{kept}");
        guest.reboot()?;
        expect_running(&mut guest, &old, "trial")?;
        assert_eq!(guest.run("/usr/games/chess")?, "check");
        expect_confirmed(&mut guest)?;
        // Nothing was deleted.
        let layers = json(&mut guest, "varve layer list")?;
        let place = |name: &str| {
            let all = layers.as_array().expect("a list").iter();
            let found = all.clone().find(|layer| layer["name"] == name);
            found.unwrap_or_else(|| panic!("{name} is gone: {layers:#}"))["place"].clone()
        };
        assert!(place("new-init").to_string().contains("off"), "{layers:#}");
        assert!(place("games").to_string().contains("on"), "{layers:#}");
        Ok(())
    })());
}

/// No search among eight layers takes more: four answers, and the boot that shows the finding.
const MOST_BOOTS: usize = 6;

#[test]
fn a_search_across_boots_finds_the_bad_layer_of_eight() {
    tell((|| {
        let mut guest = machine()?;
        for number in 1..=8 {
            let bad = if number == 3 { "slow" } else { "fine" };
            let path = format!("usr/lib/varve-test/{number}/{bad}");
            add_layer(&mut guest, &format!("layer-{number}"), &path, "x")?;
        }
        guest.reboot()?;
        expect_confirmed(&mut guest)?;
        // Something is wrong with it, and its user can say what.
        guest.run(
            "printf '\\n[[health]]\\nname = \"not slow\"\\ncommand = [\"sh\", \"-c\", \
             \"! ls /usr/lib/varve-test/*/slow\"]\\n' >> /etc/varve/varve.toml",
        )?;
        guest.run(&format!(
            "printf '[Unit]\\nAfter=multi-user.target varve-confirm.service\\n[Service]\\nType=oneshot\\n\
             ExecStart=/bin/sh -c \"varve bisect --json | grep -q searching || echo {OVER} \
             >/dev/ttyS0\"\\n[Install]\\nWantedBy=multi-user.target\\n' \
             > /etc/systemd/system/over.service && systemctl enable over"
        ))?;
        guest.machine().console.send_line("varve bisect start --reboot")?;
        let report = searched(&mut guest)?;
        assert_eq!(report["outcome"], "found", "{report:#}");
        assert_eq!(report["found"], serde_json::json!(["layer-3"]), "{report:#}");
        assert!(report["changes"].to_string().contains("/usr/lib/varve-test/3/slow"), "{report:#}");
        // Kept, each boot leaves it out, and it alone.
        let kept = json(&mut guest, "varve bisect keep")?;
        assert_eq!(kept["off"], serde_json::json!(["layer-3"]), "{kept:#}");
        let latest = value(&guest.selection()?, "latest").to_owned();
        assert_eq!(kept["deployment"], latest.as_str(), "{kept:#}");
        let layers = json(&mut guest, "varve layer list")?;
        let on = |layer: &&serde_json::Value| layer["place"].to_string().contains("\"on\"");
        let on = layers.as_array().expect("a list").iter().filter(on).count();
        assert_eq!(on, 7, "{layers:#}");
        Ok(())
    })());
}

/// A unit says so on the console: nothing is typed there, as a byte at the wrong moment is a
/// wish of somebody at the boot menu.
const OVER: &str = "varve-test: the search is over";

/// Nobody touches the machine while it searches. Gives what it found.
fn searched(guest: &mut Guest) -> Result<serde_json::Value, Error> {
    for boot in 0..=MOST_BOOTS {
        let machine = guest.machine();
        let (seen, _) = machine.console.expect_any(&[OVER, KERNEL_STARTS], BOOT)?;
        if seen == 0 {
            eprintln!("the search took {boot} boots");
            machine.shell(BOOT)?;
            return json(guest, "varve bisect");
        }
    }
    panic!("the search does not end");
}
