//! A machine with Varve in it, used as a person would: upgrade, reboot, hold a key, look
//! which system runs.

use super::lab::{BOOT, COMMAND, System, UPGRADE};
use super::serve::Server;
use super::{Config, Machine, Result};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What the boot stage says when it hands over.
pub const HANDS_OVER: &str = "varve: booted ";
/// The first line of the boot menu.
pub const MENU: &str = "Take layers off until it works";
/// The kernel's first line.
pub const KERNEL_STARTS: &str = "Linux version ";

/// A machine with its own disk and its own server.
#[derive(Debug)]
pub struct Guest {
    // Dropped first, so that nothing writes to the disk when its folder goes.
    machine: Option<Machine>,
    /// How it will be started.
    pub config: Config,
    /// Serves the repository.
    pub server: Server,
    /// Its disk.
    pub disk: PathBuf,
    /// What it was made from.
    pub system: System,
    _folders: [tempfile::TempDir; 2],
}

impl Guest {
    pub(super) fn new(
        config: Config,
        server: Server,
        disk: PathBuf,
        system: System,
        folders: [tempfile::TempDir; 2],
    ) -> Self {
        Self { machine: None, config, server, disk, system, _folders: folders }
    }

    /// Starts it, or starts it again after [`Guest::kill`].
    ///
    /// # Errors
    /// See [`Config::start`].
    pub fn start(&mut self) -> Result<()> {
        self.machine = None;
        self.machine = Some(self.config.start()?);
        Ok(())
    }

    /// The running machine.
    ///
    /// # Panics
    /// When it was not started: that is a mistake in the test.
    pub fn machine(&mut self) -> &mut Machine {
        self.machine.as_mut().expect("the guest was started")
    }

    /// Starts it and waits for the login.
    ///
    /// # Errors
    /// See [`Machine::login`].
    pub fn boot(&mut self) -> Result<()> {
        self.start()?;
        self.machine().login(BOOT)
    }

    /// Reboots it in order and waits for the next login.
    ///
    /// # Errors
    /// See [`Machine::login`].
    pub fn reboot(&mut self) -> Result<()> {
        self.machine().reboot()?;
        self.machine().login(BOOT)
    }

    /// Shuts it down in order. The disk stays until the guest is dropped.
    ///
    /// # Errors
    /// See [`Machine::power_off`].
    pub fn power_off(&mut self, limit: Duration) -> Result<()> {
        match self.machine.take() {
            Some(machine) => machine.power_off(limit),
            None => Ok(()),
        }
    }

    /// Cuts its power. The disk stays.
    pub fn kill(&mut self) {
        self.machine = None;
    }

    /// Runs a command that must succeed, and gives what it printed.
    ///
    /// # Errors
    /// See [`Machine::check`].
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.machine().check(command, COMMAND)
    }

    /// The label in the tree that is running: the release's name as the test's maker wrote
    /// it into `/usr`, independent of what Varve says.
    ///
    /// # Errors
    /// See [`Machine::check`].
    pub fn running(&mut self) -> Result<String> {
        self.run("cat /usr/lib/varve-test/release").map(|text| text.trim().to_owned())
    }

    /// Lets the running system use this test's server and a channel, and waits for its
    /// network.
    ///
    /// # Errors
    /// See [`Machine::check`].
    pub fn connect(&mut self, channel: &str) -> Result<()> {
        let url = self.server.guest_url();
        self.run(&format!(
            "sed -i -e 's|^sources = .*|sources = [\"{url}\"]|' -e 's|^channel = .*|channel = \"{channel}\"|' /etc/varve/varve.toml && nm-online --quiet --timeout=60"
        ))
        .map(|_| ())
    }

    /// Upgrades over HTTP, from this test's server.
    ///
    /// # Errors
    /// [`super::Error::Command`] when the upgrade fails.
    pub fn upgrade(&mut self, channel: &str) -> Result<Upgraded> {
        self.connect(channel)?;
        let before = self.server.counters();
        let begin = Instant::now();
        let said = self.machine().check("varve upgrade", UPGRADE)?;
        let after = self.server.counters();
        Ok(Upgraded {
            said,
            time: begin.elapsed(),
            requests: after.requests - before.requests,
            bytes: after.total() - before.total(),
        })
    }

    /// Waits until the boot is complete, health checks included.
    ///
    /// # Errors
    /// See [`Machine::run`].
    pub fn settle(&mut self) -> Result<()> {
        self.machine().run("systemctl is-system-running --wait", BOOT).map(|_| ())
    }

    /// The selection as it is on the disk.
    ///
    /// # Errors
    /// See [`Machine::check`].
    pub fn selection(&mut self) -> Result<String> {
        self.run("cat /run/varve/physical/varve/boot/selection")
    }

    /// What the boot stage wrote about this boot.
    ///
    /// # Errors
    /// See [`Machine::check`].
    pub fn boot_report(&mut self) -> Result<String> {
        self.run("cat /run/varve/boot.toml")
    }

    /// Reboots and holds Escape until the boot stage has spoken.
    ///
    /// # Errors
    /// See [`Machine::login`].
    pub fn reboot_holding_escape(&mut self) -> Result<()> {
        self.machine().reboot()?;
        self.hold_at_boot("esc", HANDS_OVER)?;
        self.machine().login(BOOT)
    }

    /// Reboots and types Escape on the serial line until the boot stage has spoken.
    ///
    /// # Errors
    /// See [`Machine::login`].
    pub fn reboot_typing_escape(&mut self) -> Result<()> {
        self.machine().reboot()?;
        self.type_at_boot(b"\x1b", HANDS_OVER)?;
        self.machine().login(BOOT)
    }

    /// Holds a key from the kernel's first line until `text` comes, as a person does: a
    /// keyboard sends a held key again and again, so one that is pressed before the guest's
    /// driver is there is seen too.
    ///
    /// # Errors
    /// [`super::Error::Timeout`].
    pub fn hold_at_boot(&mut self, key: &str, text: &str) -> Result<()> {
        let machine = self.machine();
        // Before that, the key would go to the system that shuts down.
        machine.console.expect(KERNEL_STARTS, BOOT)?;
        let end = Instant::now() + BOOT;
        loop {
            machine.monitor.key(key, true)?;
            match machine.console.expect(text, Duration::from_millis(100)) {
                Ok(_) => break,
                Err(_) if Instant::now() < end => {}
                Err(error) => return Err(error),
            }
        }
        machine.monitor.key(key, false)
    }

    /// Types something on the serial line from the kernel's first line until `text` comes.
    ///
    /// # Errors
    /// [`super::Error::Timeout`].
    pub fn type_at_boot(&mut self, typed: &[u8], text: &str) -> Result<()> {
        let machine = self.machine();
        machine.console.expect(KERNEL_STARTS, BOOT)?;
        let end = Instant::now() + BOOT;
        loop {
            machine.console.send(typed)?;
            match machine.console.expect(text, Duration::from_millis(300)) {
                Ok(_) => return Ok(()),
                Err(_) if Instant::now() < end => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// What an upgrade did.
#[derive(Debug, Clone)]
pub struct Upgraded {
    /// What the program printed.
    pub said: String,
    /// From its start to its end.
    pub time: Duration,
    /// Requests that came to the server.
    pub requests: u64,
    /// Bytes on the wire above TCP, headers included.
    pub bytes: u64,
}

/// The value of a key in the first table of a TOML document, without quotes.
pub fn value<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines()
        .take_while(|line| !line.starts_with('['))
        .find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='))
        .map_or("", |value| value.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn values_of_the_first_table() {
        let text = "reason = \"key-held\"\nmicroseconds = 7\n[other]\nlater = 1\n";
        assert_eq!(value(text, "reason"), "key-held");
        assert_eq!(value(text, "microseconds"), "7");
        assert_eq!(value(text, "later"), "");
        assert_eq!(value(text, "micro"), "");
    }
}
