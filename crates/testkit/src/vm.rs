//! Virtual machines that boot real Debian systems, driven from a test.
//!
//! ```text
//!   test ── Machine ──┬─ qemu-system-x86_64      one process, killed on drop
//!                     ├─ serial.sock ─ Console   expect, send, run a command as root
//!                     ├─ qmp.sock ──── Monitor   keys, reset, power, screen
//!                     └─ disk.img ──── disk      raw ext4, copied sparsely per test
//!   guest ── virtio-net ── user networking ── 10.0.2.2 = this host ── serve
//! ```
//!
//! Every wait has a limit. A wait that ends without what it waited for fails with the
//! tail of the console, because that is the first thing one looks for. Nothing here
//! needs root but [`disk`], and nothing needs `/dev/kvm`: software emulation is the
//! default, so that a result does not depend on where it was run.

pub mod console;
pub mod disk;
pub mod guest;
pub mod lab;
pub mod qmp;
pub mod serve;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub use console::{Console, Output};
pub use qmp::Monitor;

/// The address at which a guest reaches a server that listens on this host's loopback.
pub const HOST_FROM_GUEST: &str = "10.0.2.2";

/// What can go wrong with a virtual machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// qemu could not be started.
    #[error("cannot start {program}")]
    Start {
        /// The program that was to run.
        program: String,
        /// Why the system refused.
        source: io::Error,
    },
    /// qemu ended although it should run.
    #[error("the virtual machine ended ({status}): {stderr}")]
    Ended {
        /// How it ended.
        status: String,
        /// The last that it said.
        stderr: String,
    },
    /// Something did not appear on the console in time.
    #[error("waited {seconds} s for {what:?}; the console's tail:\n{tail}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// The console's last lines.
        tail: String,
    },
    /// A text appeared that means that the wait is in vain.
    #[error("saw {seen:?} while waiting for {what:?}; the console's tail:\n{tail}")]
    Unwanted {
        /// What was waited for.
        what: String,
        /// What came instead.
        seen: String,
        /// The console's last lines.
        tail: String,
    },
    /// A command in the guest ended with another code than 0.
    #[error("in the guest, `{command}` ended with {code}:\n{text}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit code.
        code: i32,
        /// What it printed.
        text: String,
    },
    /// The monitor refused a command.
    #[error("qemu refused {command}: {reason}")]
    Monitor {
        /// The QMP command.
        command: String,
        /// qemu's words.
        reason: String,
    },
    /// A program of the host failed.
    #[error("`{command}` failed: {text}")]
    Tool {
        /// The command line.
        command: String,
        /// What it printed.
        text: String,
    },
    /// A file or socket of the host failed.
    #[error("{operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why the system refused.
        source: io::Error,
    },
}

/// The result of everything in this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) fn io_error<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { operation, path: path.to_owned(), source }
}

/// How the guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accel {
    /// qemu's own emulation: works everywhere, a Debian boot takes about half a minute.
    #[default]
    Emulated,
    /// The kernel's virtualisation: ten times faster where it works. Never chosen by
    /// itself, since an openable `/dev/kvm` does not say that it runs a whole kernel.
    Kvm,
}

/// A machine to be started.
#[derive(Debug, Clone)]
pub struct Config {
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initramfs image.
    pub initrd: PathBuf,
    /// The kernel command line, without the console and logging options, which are added.
    pub append: String,
    /// Raw disk images: `/dev/vda`, `/dev/vdb`, ….
    pub disks: Vec<PathBuf>,
    /// Whether the guest's flushes reach the images: for those whose power is cut. The
    /// others are quicker without.
    pub flushes: bool,
    /// Folders of the host that the guest may mount (9p), by the name that it knows each by;
    /// what it writes there the user of this process has written.
    pub shares: Vec<(&'static str, PathBuf)>,
    /// Memory in MiB.
    pub memory: u32,
    /// Processors.
    pub processors: u32,
    /// How instructions are run.
    pub accel: Accel,
    /// Where sockets and logs go; must exist, and be short (a socket's path has 108 bytes).
    pub folder: PathBuf,
    /// Host TCP port that leads to the guest's port 22, if wanted.
    pub ssh_port: Option<u16>,
    /// Copies the console to this process's standard error as it comes.
    pub echo: bool,
}

impl Config {
    /// A machine of two processors and 1 GiB with one disk that holds the root.
    pub fn new(folder: &Path, kernel: &Path, initrd: &Path, disk: &Path) -> Self {
        Self {
            kernel: kernel.to_owned(),
            initrd: initrd.to_owned(),
            append: "root=/dev/vda rw".to_owned(),
            disks: vec![disk.to_owned()],
            flushes: false,
            shares: Vec::new(),
            memory: 1024,
            processors: 2,
            accel: Accel::default(),
            folder: folder.to_owned(),
            ssh_port: None,
            echo: false,
        }
    }

    /// The arguments that qemu is started with: serial line and monitor on sockets.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = self.hardware();
        arguments.extend([
            "-serial".to_owned(),
            format!("unix:{},server=on,wait=off", self.serial_socket().display()),
            "-qmp".to_owned(),
            format!("unix:{},server=on,wait=off", self.monitor_socket().display()),
        ]);
        arguments
    }

    /// The arguments for a person at the terminal: the serial line and, after Ctrl-A C,
    /// qemu's own monitor are there.
    pub fn arguments_on_terminal(&self) -> Vec<String> {
        let mut arguments = self.hardware();
        arguments.extend(["-serial", "mon:stdio"].map(str::to_owned));
        arguments
    }

    fn hardware(&self) -> Vec<String> {
        let mut arguments: Vec<String> = Vec::new();
        let mut add =
            |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
        match self.accel {
            Accel::Emulated => add(&["-accel", "tcg,thread=multi"]),
            Accel::Kvm => add(&["-accel", "kvm"]),
        }
        // pc has the PS/2 controller, whose driver every Debian kernel has built in.
        // The plainest processor: one with all that qemu knows has Debian load drivers for
        // virtualisation and cryptography, which takes a fifth of an emulated boot.
        add(&["-machine", "pc", "-cpu", "qemu64", "-nodefaults", "-no-user-config"]);
        add(&["-smp", &self.processors.to_string(), "-m", &self.memory.to_string()]);
        add(&["-display", "none", "-vga", "std"]);
        add(&["-kernel", &self.kernel.display().to_string()]);
        add(&["-initrd", &self.initrd.display().to_string()]);
        // The serial line comes last, so that it is /dev/console. One status line for each
        // unit would be mixed into what commands print.
        let append = format!(
            "{} console=tty0 console=ttyS0,115200 panic=5 systemd.log_color=0 systemd.show_status=0",
            self.append
        );
        add(&["-append", &append]);
        for (index, disk) in self.disks.iter().enumerate() {
            // A guest that is killed loses nothing that the host's page cache has, so
            // `unsafe` only saves the host's own fsync. Who cuts the power has an image
            // that forgets what was not flushed.
            let how =
                if self.flushes { "writeback,discard=ignore" } else { "unsafe,discard=unmap" };
            let drive =
                format!("file={},format=raw,if=none,id=d{index},cache={how}", disk.display());
            add(&["-drive", &drive, "-device", &format!("virtio-blk-pci,drive=d{index}")]);
        }
        for (name, folder) in &self.shares {
            let folder = folder.display();
            let share = format!("local,path={folder},mount_tag={name},security_model=none");
            add(&["-virtfs", &share]);
        }
        let forward = self
            .ssh_port
            .map(|port| format!(",hostfwd=tcp:127.0.0.1:{port}-:22"))
            .unwrap_or_default();
        add(&[
            "-netdev",
            &format!("user,id=n0{forward}"),
            "-device",
            "virtio-net-pci,netdev=n0,romfile=",
        ]);
        add(&[
            "-object",
            "rng-random,id=r0,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,rng=r0",
        ]);
        add(&["-device", "i6300esb,id=watchdog0", "-action", "watchdog=reset"]);
        arguments
    }

    /// Starts the machine.
    ///
    /// # Errors
    /// [`Error::Start`] when qemu is not installed, [`Error::Ended`] when it refuses.
    pub fn start(&self) -> Result<Machine> {
        Machine::start(self)
    }

    fn serial_socket(&self) -> PathBuf {
        self.folder.join("serial.sock")
    }

    fn monitor_socket(&self) -> PathBuf {
        self.folder.join("qmp.sock")
    }
}

/// A running machine. Dropping it kills it, and so does the end of the thread that started it.
#[derive(Debug)]
pub struct Machine {
    process: Child,
    /// The serial line.
    pub console: Console,
    /// The keyboard, the reset button and the screen.
    pub monitor: Monitor,
    stderr: PathBuf,
    started: Instant,
}

/// The program that runs guests.
pub const QEMU: &str = "qemu-system-x86_64";

impl Machine {
    fn start(config: &Config) -> Result<Self> {
        let stderr = config.folder.join("qemu.log");
        let log = disk::create(&stderr)?;
        for socket in [config.serial_socket(), config.monitor_socket()] {
            // Left over from a machine that was started in the same folder before.
            let _ = std::fs::remove_file(socket);
        }
        let mut command = Command::new(QEMU);
        command.args(config.arguments());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // A test that is killed leaves no machine.
        varve_sys::confine::ends_with_caller(&mut command);
        let mut process =
            command.spawn().map_err(|source| Error::Start { program: QEMU.to_owned(), source })?;
        let links = (|| {
            wait_for(&config.monitor_socket(), &mut process)?;
            let console = Console::connect(
                &config.serial_socket(),
                &config.folder.join("console.log"),
                config.echo,
            )?;
            let monitor = Monitor::connect(&config.monitor_socket())?;
            Ok((console, monitor))
        })();
        match links {
            Ok((console, monitor)) => {
                Ok(Self { process, console, monitor, stderr, started: Instant::now() })
            }
            Err(error) => {
                let ended = process.try_wait().ok().flatten();
                let _ = process.kill();
                let _ = process.wait();
                Err(match ended {
                    Some(status) => {
                        Error::Ended { status: status.to_string(), stderr: tail_of(&stderr) }
                    }
                    None => error,
                })
            }
        }
    }

    /// How long the machine has been running.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits for the automatic login of root on the serial line and makes the shell ready
    /// for [`Console::run`].
    ///
    /// # Errors
    /// [`Error::Timeout`] with the console's tail.
    pub fn login(&mut self, limit: Duration) -> Result<()> {
        self.console.login(limit)
    }

    /// The same where the automatic login was seen on the console already.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the console's tail.
    pub fn shell(&mut self, limit: Duration) -> Result<()> {
        self.console.shell(limit)
    }

    /// Runs a command as root in the guest; see [`Console::run`].
    ///
    /// # Errors
    /// As [`Console::run`].
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        self.console.run(command, limit)
    }

    /// Runs a command that must end with 0, and gives what it printed.
    ///
    /// # Errors
    /// [`Error::Command`] when it ends with another code, else as [`Console::run`].
    pub fn check(&mut self, command: &str, limit: Duration) -> Result<String> {
        let output = self.run(command, limit)?;
        match output.code {
            0 => Ok(output.text),
            code => Err(Error::Command { command: command.to_owned(), code, text: output.text }),
        }
    }

    /// Asks the guest to reboot, without waiting for it. The next login is a new one:
    /// call [`Machine::login`].
    ///
    /// # Errors
    /// When the console is gone.
    pub fn reboot(&mut self) -> Result<()> {
        self.console.send_line("systemctl reboot")
    }

    /// Shuts the guest down in order, and waits until qemu has ended.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it does not end in time; it is killed then.
    pub fn power_off(mut self, limit: Duration) -> Result<()> {
        self.console.send_line("systemctl poweroff")?;
        let end = Instant::now() + limit;
        loop {
            if self.process.try_wait().map_err(io_error("wait for", Path::new(QEMU)))?.is_some() {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(self.console.timeout("the end of the machine", limit));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Cuts the power: the process is killed at once.
    pub fn kill(mut self) {
        self.end();
    }

    /// Whether qemu still runs, and what it said if it does not.
    ///
    /// # Errors
    /// [`Error::Ended`] when it has ended.
    pub fn alive(&mut self) -> Result<()> {
        match self.process.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(Error::Ended { status: status.to_string(), stderr: tail_of(&self.stderr) })
            }
            Err(source) => Err(Error::Io { operation: "wait for", path: QEMU.into(), source }),
        }
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits until qemu has made its sockets (the monitor's is the last), or has ended.
fn wait_for(socket: &Path, process: &mut Child) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while !socket.exists() && Instant::now() < end {
        if process.try_wait().is_ok_and(|status| status.is_some()) {
            return Err(Error::Ended { status: String::new(), stderr: String::new() });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn tail_of(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let start = bytes.len().saturating_sub(800);
    String::from_utf8_lossy(&bytes[start..]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_line_is_the_last_console_and_disks_are_in_order() {
        let mut config =
            Config::new(Path::new("/f"), Path::new("/k"), Path::new("/i"), Path::new("/a"));
        config.disks.push("/b".into());
        config.shares.push(("work", "/w".into()));
        let arguments = config.arguments();
        let append = &arguments[arguments.iter().position(|a| a == "-append").unwrap() + 1];
        assert!(append.starts_with("root=/dev/vda rw "));
        assert!(append.find("console=tty0").unwrap() < append.find("console=ttyS0").unwrap());
        let disks: Vec<_> = arguments.iter().filter(|a| a.starts_with("file=")).collect();
        assert!(disks[0].starts_with("file=/a,") && disks[1].starts_with("file=/b,"));
        assert!(arguments.iter().any(|a| a.starts_with("local,path=/w,mount_tag=work,")));
    }

    #[test]
    fn a_machine_that_cannot_start_says_why() {
        if !disk::has_program(QEMU) {
            return eprintln!("not run: {QEMU} is not installed");
        }
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let error = Config::new(folder.path(), &missing, &missing, &missing).start().unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Ended { .. }), "{text}");
        assert!(text.contains("missing"), "{text}");
    }
}
