//! What is typed on a console before or while the boot stage looks, and a screen on all
//! consoles at once.
//!
//! ```text
//! /sys/class/tty/console/active: "tty0 ttyS0"  -> each opened, put in raw mode,
//!     what arrived so far read, the mode restored
//! ```
//!
//! What is read is taken: a login name typed ahead at this moment is lost. An Escape
//! that begins a sequence (an arrow key, or a terminal's answer to a query of the
//! firmware) is not an Escape typed by a person.
//!
//! Callers: the boot stage; `varve strip` for its screen.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::termios::{OptionalActions, SpecialCodeIndex, Termios};

use crate::keys::{self, Held, Keyboards};

/// The byte that the Escape key sends.
const ESCAPE: u8 = 0x1b;
/// How long the rest of a sequence may take after its Escape, at 9600 baud with room.
const SEQUENCE: Duration = Duration::from_millis(20);
/// Held keys are asked again this often while waiting, in milliseconds.
const STEP: u32 = 10;
/// How long a terminal may take for a whole screen: 2000 characters at 9600 baud.
const PATIENCE: Duration = Duration::from_millis(2500);

/// The byte that asks for the menu.
const MENU: u8 = b' ';

/// The bytes that were typed, each a key of its own: those of sequences are left out.
pub fn typed_keys(bytes: &[u8]) -> Vec<u8> {
    let mut typed = Vec::new();
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        rest = match (*first, tail) {
            // CSI: parameters 0x30-0x3f, intermediates 0x20-0x2f, one final 0x40-0x7e.
            (ESCAPE, [b'[', sequence @ ..]) => {
                let end = sequence.iter().position(|byte| (0x40..=0x7e).contains(byte));
                end.map_or(&[], |end| &sequence[end + 1..])
            }
            // SS3: one more byte (function keys, keypad).
            (ESCAPE, [b'O', _, sequence @ ..]) => sequence,
            (key, _) => {
                typed.push(key);
                tail
            }
        };
    }
    typed
}

/// Whether the bytes hold an Escape that stands alone.
pub fn lone_escape(bytes: &[u8]) -> bool {
    typed_keys(bytes).contains(&ESCAPE)
}

/// The terminals that the kernel's console is on, as device files in `dev` (`/dev`);
/// `/dev/console` where the kernel does not say.
pub fn active_consoles(sys: &Path, dev: &Path) -> Vec<PathBuf> {
    let active = std::fs::read_to_string(sys.join("class/tty/console/active"));
    let names = active.as_deref().unwrap_or("console");
    names
        .split_ascii_whitespace()
        .filter(|name| !name.contains('/') && *name != "..")
        .map(|name| dev.join(name))
        .collect()
}

/// A terminal in raw mode; dropped, it is as it was.
#[derive(Debug)]
struct Raw {
    terminal: File,
    before: Termios,
}

impl Raw {
    fn open(path: &Path) -> io::Result<Raw> {
        let terminal = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
            .open(path)?;
        let before = rustix::termios::tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Output stays as it is: the kernel's own lines go on meanwhile.
        raw.output_modes = before.output_modes;
        raw.special_codes[SpecialCodeIndex::VMIN] = 0;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        // `Now` keeps what has arrived already; `Flush` would drop it.
        rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Raw { terminal, before })
    }

    fn arrived(&self) -> Vec<u8> {
        let mut bytes = [0_u8; 256];
        let length = (&self.terminal).read(&mut bytes).unwrap_or(0);
        bytes[..length].to_vec()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing better can be done where this fails than to go on booting.
        let _ = rustix::termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// What a person asks for at the keyboard or on a serial line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asked {
    /// For the previous system: Escape is down, or its byte arrived.
    pub pressed: bool,
    /// For the menu: the space bar or F8 is down, or a space arrived.
    pub menu: bool,
    /// Input devices that answered.
    pub keyboards: usize,
    /// Terminals that could be read.
    pub terminals: usize,
}

/// Looks for a held or typed Escape or space: at the state right now and what has
/// arrived, and for `window` longer if neither is there yet.
pub fn keys_asked(input: &Path, consoles: &[PathBuf], window: Duration) -> Asked {
    let begun = Instant::now();
    let terminals: Vec<Raw> = consoles.iter().filter_map(|path| Raw::open(path).ok()).collect();
    let mut typed: Vec<Vec<u8>> = vec![Vec::new(); terminals.len()];
    let mut asked = Asked { terminals: terminals.len(), ..Asked::default() };
    let keys = [keys::ESCAPE, keys::SPACE, keys::F8];
    let mut keyboards = Keyboards::new(input, Path::new("/sys"), &keys);
    loop {
        let Held { held, asked: keyboards } = keyboards.held();
        asked.keyboards = keyboards;
        read_all(&terminals, &mut typed);
        let keys = typed.iter().flat_map(|typed| typed_keys(typed));
        asked.pressed = held.contains(&keys::ESCAPE);
        asked.menu = held.iter().any(|key| *key != keys::ESCAPE);
        for key in keys {
            asked.pressed |= key == ESCAPE;
            asked.menu |= key == MENU;
        }
        let left = window.saturating_sub(begun.elapsed());
        if asked.pressed || asked.menu || left.is_zero() {
            return asked;
        }
        keys::wait_for(&inputs(&terminals), STEP.min(left.as_millis().max(1) as u32));
    }
}

fn inputs(terminals: &[Raw]) -> Vec<BorrowedFd<'_>> {
    terminals.iter().map(|terminal| terminal.terminal.as_fd()).collect()
}

/// Adds what has arrived to what was typed on each; after an Escape, the rest of its
/// sequence too.
fn read_all(terminals: &[Raw], typed: &mut [Vec<u8>]) {
    for (terminal, typed) in terminals.iter().zip(&mut *typed) {
        typed.extend(terminal.arrived());
    }
    if typed.iter().any(|typed| typed.last() == Some(&ESCAPE)) {
        // Perhaps the first byte of a sequence: the rest comes at once or never.
        keys::wait_for(&inputs(terminals), SEQUENCE.as_millis() as u32);
        for (terminal, typed) in terminals.iter().zip(typed) {
            typed.extend(terminal.arrived());
        }
    }
}

/// Terminals that show the same and whose keys all count. Dropped, they are as they were.
#[derive(Debug)]
pub struct Screen {
    terminals: Vec<Raw>,
}

impl Screen {
    /// Those of `paths` that can be opened.
    pub fn open(paths: &[PathBuf]) -> Screen {
        Screen { terminals: paths.iter().filter_map(|path| Raw::open(path).ok()).collect() }
    }

    /// Whether anybody could see it.
    pub fn is_empty(&self) -> bool {
        self.terminals.is_empty()
    }

    /// Writes to all. A terminal that does not take it in time (nobody at the other end of
    /// a line with flow control) is left out of this.
    pub fn show(&self, text: &str) {
        for terminal in &self.terminals {
            let end = Instant::now() + PATIENCE;
            let mut rest = text.as_bytes();
            while !rest.is_empty() && Instant::now() < end {
                match (&terminal.terminal).write(rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        std::thread::sleep(Duration::from_millis(u64::from(STEP)));
                    }
                    Err(_) => break,
                }
            }
        }
    }

    /// The keys that were pressed on any, waiting up to `wait` for the first; those of
    /// sequences are left out.
    pub fn keys(&self, wait: Duration) -> Vec<u8> {
        keys::wait_for(&inputs(&self.terminals), wait.as_millis() as u32);
        let mut typed = vec![Vec::new(); self.terminals.len()];
        read_all(&self.terminals, &mut typed);
        typed.iter().flat_map(|typed| typed_keys(typed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escape_alone_counts() {
        for typed in [&b"\x1b"[..], b"abc\x1b", b"\x1b\x1b", b"\x1bx", b"\x1b[A\x1b", b"\x1bO"] {
            assert!(lone_escape(typed), "{typed:?}");
        }
    }

    #[test]
    fn a_sequence_does_not() {
        for typed in [&b""[..], b"abc", b"\x1b[A", b"\x1b[24;80R", b"\x1bOP", b"\x1b[", b"\x1b[1;2"]
        {
            assert!(!lone_escape(typed), "{typed:?}");
        }
    }

    #[test]
    fn consoles_are_those_the_kernel_names() {
        let list = |text: &str| {
            let sys = tempfile::tempdir().unwrap();
            let directory = sys.path().join("class/tty/console");
            std::fs::create_dir_all(&directory).unwrap();
            let mut options = std::fs::OpenOptions::new();
            let active = options.write(true).create_new(true).open(directory.join("active"));
            io::Write::write_all(&mut active.unwrap(), text.as_bytes()).unwrap();
            active_consoles(sys.path(), Path::new("/dev"))
        };
        assert_eq!(list("tty0 ttyS0\n"), [Path::new("/dev/tty0"), Path::new("/dev/ttyS0")]);
        assert_eq!(list("../sda x/y"), Vec::<PathBuf>::new());
        let none = active_consoles(Path::new("/nonexistent"), Path::new("/dev"));
        assert_eq!(none, [Path::new("/dev/console")]);
    }

    /// A real terminal pair: what was typed before the look counts, the mode is
    /// restored, and no window means no wait.
    #[test]
    fn a_typed_escape_is_found_and_the_mode_restored() {
        let (mut keyboard, path) = terminal();
        let line = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOCTTY)
            .open(&path)
            .unwrap();
        let before = rustix::termios::tcgetattr(&line).unwrap();
        let consoles = [path];
        let nowhere = Path::new("/nonexistent");
        let look = || keys_asked(nowhere, &consoles, Duration::ZERO);
        let nothing = Asked { terminals: 1, ..Asked::default() };
        assert_eq!(look(), nothing);
        io::Write::write_all(&mut keyboard, b"\x1b").unwrap();
        assert_eq!(look(), Asked { pressed: true, ..nothing.clone() });
        io::Write::write_all(&mut keyboard, b" ").unwrap();
        assert_eq!(look(), Asked { menu: true, ..nothing });
        io::Write::write_all(&mut keyboard, b"\x1b[A").unwrap();
        assert!(!look().pressed);
        let after = rustix::termios::tcgetattr(&line).unwrap();
        assert_eq!(before.local_modes, after.local_modes);
        assert_eq!(before.input_modes, after.input_modes);

        let typing = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(60));
            io::Write::write_all(&mut keyboard, b"\x1b").unwrap();
            keyboard
        });
        assert!(keys_asked(nowhere, &consoles, Duration::from_secs(20)).pressed);
        typing.join().unwrap();
    }

    /// A screen on a real terminal pair: what is shown arrives, keys are read one by one,
    /// sequences are not keys, and the mode is restored.
    #[test]
    fn a_screen_shows_and_reads() {
        let (mut keyboard, path) = terminal();
        let mut options = std::fs::OpenOptions::new();
        let _line = options.read(true).custom_flags(libc::O_NOCTTY).open(&path).unwrap();
        let screen = Screen::open(&[PathBuf::from("/nonexistent"), path]);
        assert!(!screen.is_empty());
        screen.show("hello");
        let mut seen = [0_u8; 5];
        keyboard.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello");
        assert_eq!(screen.keys(Duration::ZERO), b"");
        keyboard.write_all(b"1\x1b[A\x1bOP4\x1b").unwrap();
        assert_eq!(screen.keys(Duration::from_secs(20)), b"14\x1b");
        // A terminal that nobody reads does not hold up the boot for ever.
        let begun = Instant::now();
        screen.show(&"x".repeat(1 << 20));
        assert!(begun.elapsed() < PATIENCE + Duration::from_secs(2));
        assert!(Screen::open(&[]).is_empty());
    }

    fn terminal() -> (File, PathBuf) {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        (File::from(keyboard), PathBuf::from(name.into_string().unwrap()))
    }

    proptest::proptest! {
        /// Whole sequences are never an Escape; one after them always is.
        #[test]
        fn any_sequences(
            parts in proptest::collection::vec("[a-z]|\x1b\\[[0-9;]{0,5}[A-Za-z]|\x1bO[A-Z]", 0..9),
            any: Vec<u8>,
        ) {
            lone_escape(&any);
            let typed = parts.concat();
            proptest::prop_assert!(!lone_escape(typed.as_bytes()));
            proptest::prop_assert!(lone_escape((typed + "\x1b").as_bytes()));
        }
    }
}
