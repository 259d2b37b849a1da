//! Which keys are held down at this moment.
//!
//! The state is asked of each input device (`EVIOCGKEY`), so a key pressed before
//! anything listened counts as long as it is still down, and nothing that others
//! will read is taken away. The devices are `/dev/input/event*`: the kernel's evdev
//! must be there, and the keyboard found already.
//!
//! Caller: the boot stage. Source: the kernel's `include/uapi/linux/input.h`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A key's number, `KEY_*` of `input-event-codes.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(pub u16);

/// The Escape key.
pub const ESCAPE: Key = Key(1);
/// The space bar: at the same place of every keyboard, whatever its language.
pub const SPACE: Key = Key(57);
/// The function key 8.
pub const F8: Key = Key(66);

/// `KEY_CNT`: one more than the largest key number.
const KEY_COUNT: usize = 0x300;
const STATE_BYTES: usize = KEY_COUNT / 8;

/// The input devices that have one of certain keys.
///
/// A device without them is not even opened, as sysfs says what each has: to close
/// one costs the kernel an RCU grace period, some 10 ms. For the same reason those that
/// are open are closed by a thread, on which nobody waits.
#[derive(Debug)]
pub struct Keyboards<'a> {
    input: &'a Path,
    sys: &'a Path,
    keys: &'a [Key],
    /// By name; none: looked at, and of no use.
    devices: BTreeMap<OsString, Option<File>>,
}

/// What the keyboards say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Which of the keys at least one device has down.
    pub held: Vec<Key>,
    /// How many devices were asked. 0: there is no keyboard, or no evdev.
    pub asked: usize,
}

impl<'a> Keyboards<'a> {
    /// Those in `input` (`/dev/input`) that have one of `keys`; `sys` is `/sys`.
    pub fn new(input: &'a Path, sys: &'a Path, keys: &'a [Key]) -> Self {
        Self { input, sys, keys, devices: BTreeMap::new() }
    }

    /// Which of the keys are down on any of them now. A device that cannot be asked is left
    /// out; one that has come since the last call is asked too.
    pub fn held(&mut self) -> Held {
        let entries = std::fs::read_dir(self.input).into_iter().flatten().flatten();
        for name in entries.map(|entry| entry.file_name()) {
            let is_device = name.as_encoded_bytes().starts_with(b"event");
            if is_device && !self.devices.contains_key(&name) {
                let device = self.has_keys(&name).then(|| self.open(&name)).flatten();
                self.devices.insert(name, device);
            }
        }
        let mut answer = Held::default();
        for state in self.devices.values().flatten().filter_map(|file| state_of(file).ok()) {
            answer.asked += 1;
            let down = self.keys.iter().filter(|key| is_down(&state, **key));
            answer.held.extend(down);
        }
        answer
    }

    /// By sysfs; where that says nothing, it may have them.
    fn has_keys(&self, name: &OsStr) -> bool {
        let path = self.sys.join("class/input").join(name).join("device/capabilities/key");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().is_empty() || self.keys.iter().any(|key| capability(&text, *key))
    }

    fn open(&self, name: &OsStr) -> Option<File> {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY);
        options.open(self.input.join(name)).ok()
    }
}

impl Drop for Keyboards<'_> {
    fn drop(&mut self) {
        let devices = std::mem::take(&mut self.devices);
        if devices.values().any(Option::is_some) {
            std::thread::spawn(move || drop(devices));
        }
    }
}

/// Whether sysfs's bitmap has the key: words in hexadecimal, the lowest last, each of
/// the kernel's `unsigned long`.
fn capability(text: &str, Key(number): Key) -> bool {
    let bits = u64::BITS as usize;
    let word = text.split_ascii_whitespace().rev().nth(usize::from(number) / bits);
    let word = word.and_then(|word| u64::from_str_radix(word, 16).ok());
    word.is_some_and(|word| word >> (usize::from(number) % bits) & 1 == 1)
}

fn state_of(device: &File) -> io::Result<[u8; STATE_BYTES]> {
    let mut state = [0_u8; STATE_BYTES];
    // EVIOCGKEY(len) = _IOC(_IOC_READ, 'E', 0x18, len)
    let request = (2_u64 << 30) | ((STATE_BYTES as u64) << 16) | (u64::from(b'E') << 8) | 0x18;
    // SAFETY: the descriptor is open; the request says how many bytes the kernel may
    // write, which is exactly the size of `state`, and it keeps no pointer.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), request as _, state.as_mut_ptr()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(state) }
}

fn is_down(state: &[u8], Key(number): Key) -> bool {
    let number = usize::from(number);
    state.get(number / 8).is_some_and(|byte| byte >> (number % 8) & 1 == 1)
}

/// Waits until one of `inputs` can be read, at most `milliseconds`.
pub(crate) fn wait_for(inputs: &[BorrowedFd<'_>], milliseconds: u32) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut waits: Vec<_> = inputs.iter().map(|input| PollFd::new(input, PollFlags::IN)).collect();
    let timeout = Timespec {
        tv_sec: i64::from(milliseconds / 1000),
        tv_nsec: i64::from(milliseconds % 1000) * 1_000_000,
    };
    // A signal only makes the wait shorter; the caller looks at the clock itself.
    let _ = poll(&mut waits, Some(&timeout));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_found() {
        let mut state = [0_u8; STATE_BYTES];
        assert!(!is_down(&state, ESCAPE));
        state[0] = 0b10;
        assert!(is_down(&state, ESCAPE));
        state[KEY_COUNT / 8 - 1] = 0x80;
        assert!(is_down(&state, Key(KEY_COUNT as u16 - 1)));
        assert!(!is_down(&state, Key(u16::MAX)));
    }

    fn held(input: &Path, sys: &Path) -> Held {
        Keyboards::new(input, sys, &[ESCAPE, SPACE]).held()
    }

    #[test]
    fn capabilities_are_read() {
        // A keyboard's, a power button's, and what is none.
        let keyboard = "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe\n";
        assert!(capability(keyboard, ESCAPE));
        assert!(!capability("10000000000000 0\n", ESCAPE));
        assert!(capability(keyboard, SPACE) && capability(keyboard, F8));
        assert!(capability("10000000000000 0\n", Key(116)), "KEY_POWER");
        assert!(!capability("", ESCAPE) && !capability("xyz", ESCAPE));
    }

    #[test]
    fn no_devices_is_an_answer() {
        let nowhere = Path::new("/nonexistent");
        assert_eq!(held(nowhere, nowhere), Held::default());
    }

    #[test]
    fn what_is_no_input_device_is_left_out() {
        let input = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", input.path().join("event0")).unwrap();
        assert_eq!(held(input.path(), Path::new("/nonexistent")), Held::default());
    }

    #[test]
    fn a_device_without_the_key_is_not_opened() {
        let sys = tempfile::tempdir().unwrap();
        let capabilities = sys.path().join("class/input/event7/device/capabilities");
        std::fs::create_dir_all(&capabilities).unwrap();
        let say = |text: &str| {
            let mut options = std::fs::OpenOptions::new();
            let file = options.write(true).create(true).truncate(true);
            let mut file = file.open(capabilities.join("key")).unwrap();
            io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            Keyboards::new(Path::new("/nonexistent"), sys.path(), &[ESCAPE, F8])
                .has_keys("event7".as_ref())
        };
        assert!(!say("10000000000000 0\n"));
        assert!(say("402000000 fffffffffffffffe\n"));
        assert!(say(""), "not known: asked");
    }
}
