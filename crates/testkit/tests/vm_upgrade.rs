//! A real Debian boots, is upgraded over HTTP, is confirmed, and comes back: by a held
//! key, by a byte on the serial line, by command. On a real kernel, in a virtual machine.
//! `cargo xtask test slow` runs these.

mod vm_stories;

use vm_stories::*;

/// The whole way on one layout.
fn there_and_back(system: &str, layout: &str) -> Outcome {
    let mut guest = Lab::open()?.guest(system, layout)?;
    let (old, new) = (guest.system.old.clone(), guest.system.new.clone());

    guest.boot()?;
    expect_running(&mut guest, &old, "latest")?;
    expect_layout(&mut guest, layout)?;
    leave_notes(&mut guest)?;

    upgrade(&mut guest, STABLE)?;
    assert_eq!(guest.running()?, old, "the running system must not change under an upgrade");
    guest.reboot()?;
    expect_running(&mut guest, &new, "trial")?;
    expect_layout(&mut guest, layout)?;
    expect_confirmed(&mut guest)?;
    // What a user wrote is there in the new system too.
    expect_notes(&mut guest)?;

    // A held key boots the previous one, this once.
    guest.reboot_holding_escape()?;
    expect_running(&mut guest, &old, "key-held")?;
    // So does the byte on a serial line.
    guest.reboot_typing_escape()?;
    expect_running(&mut guest, &old, "key-held")?;
    // Without it the latest boots again.
    guest.reboot()?;
    expect_running(&mut guest, &new, "latest")?;

    // For good, by command.
    guest.run("varve rollback")?;
    guest.reboot()?;
    expect_running(&mut guest, &old, "latest")?;
    // Rolled back, it does not come again by itself.
    expect_nothing_newer(&mut guest, STABLE)?;
    Ok(())
}

#[test]
fn overlay_there_and_back() {
    tell(there_and_back("debian-13", "overlay"));
}

#[test]
fn hard_link_there_and_back() {
    tell(there_and_back("debian-13", "hard-link"));
}

#[test]
fn debian_12_upgrades_and_rolls_back() {
    tell((|| {
        let mut guest = Lab::open()?.guest("debian-12", "overlay")?;
        let (old, new) = (guest.system.old.clone(), guest.system.new.clone());
        guest.boot()?;
        expect_running(&mut guest, &old, "latest")?;
        upgrade(&mut guest, STABLE)?;
        guest.reboot()?;
        expect_running(&mut guest, &new, "trial")?;
        expect_confirmed(&mut guest)?;
        guest.run("varve rollback")?;
        guest.reboot()?;
        expect_running(&mut guest, &old, "latest")
    })());
}

#[test]
fn dracut_boots_and_upgrades() {
    tell((|| {
        let mut guest = Lab::open()?.guest("debian-13-dracut", "overlay")?;
        let (old, new) = (guest.system.old.clone(), guest.system.new.clone());
        guest.boot()?;
        expect_running(&mut guest, &old, "latest")?;
        upgrade(&mut guest, STABLE)?;
        guest.reboot_holding_escape()?;
        // On trial, a held key still means the previous one, and spends no try.
        expect_running(&mut guest, &old, "key-held")?;
        guest.reboot()?;
        expect_running(&mut guest, &new, "trial")?;
        expect_confirmed(&mut guest)
    })());
}

#[test]
fn an_upgrade_moves_the_device_from_overlay_to_hard_link() {
    tell((|| {
        let mut guest = Lab::open()?.guest("debian-13", "overlay")?;
        let (old, new) = (guest.system.old.clone(), guest.system.new.clone());
        guest.boot()?;
        expect_layout(&mut guest, "overlay")?;
        guest.run("sed -i 's/^layout = .*/layout = \"hard-link\"/' /etc/varve/varve.toml")?;
        upgrade(&mut guest, STABLE)?;
        guest.reboot()?;
        expect_running(&mut guest, &new, "trial")?;
        expect_layout(&mut guest, "hard-link")?;
        expect_confirmed(&mut guest)?;
        guest.reboot_holding_escape()?;
        expect_running(&mut guest, &old, "key-held")?;
        expect_layout(&mut guest, "overlay")
    })());
}
