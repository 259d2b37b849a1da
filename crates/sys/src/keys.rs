//! Which keys are held down at this moment.
//!
//! The state is asked of each input device (`EVIOCGKEY`), so a key pressed before
//! anything listened counts as long as it is still down, and nothing that others
//! will read is taken away. The devices are `/dev/input/event*`: the kernel's evdev
//! must be there, and the keyboard found already.
//!
//! Caller: the boot stage. Source: the kernel's `include/uapi/linux/input.h`.

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

/// `KEY_CNT`: one more than the largest key number.
const KEY_COUNT: usize = 0x300;
const STATE_BYTES: usize = KEY_COUNT / 8;

/// What the keyboards say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Whether at least one device has the key down.
    pub held: bool,
    /// How many devices were asked. 0: there is no keyboard, or no evdev.
    pub asked: usize,
}

/// Whether `key` is down on any device in `directory` (`/dev/input`). A device that
/// cannot be asked is left out; a directory that is not there has none.
pub fn held(directory: &Path, key: Key) -> Held {
    let mut answer = Held::default();
    let Ok(entries) = std::fs::read_dir(directory) else { return answer };
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(b"event") {
            continue;
        }
        if let Ok(state) = state_of(&entry.path()) {
            answer.asked += 1;
            answer.held |= is_down(&state, key);
        }
    }
    answer
}

fn state_of(device: &Path) -> io::Result<[u8; STATE_BYTES]> {
    let file: File = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(device)?;
    let mut state = [0_u8; STATE_BYTES];
    // EVIOCGKEY(len) = _IOC(_IOC_READ, 'E', 0x18, len)
    let request = (2_u64 << 30) | ((STATE_BYTES as u64) << 16) | (u64::from(b'E') << 8) | 0x18;
    // SAFETY: the descriptor is open; the request says how many bytes the kernel may
    // write, which is exactly the size of `state`, and it keeps no pointer.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), request as _, state.as_mut_ptr()) };
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

    #[test]
    fn no_devices_is_an_answer() {
        assert_eq!(held(Path::new("/nonexistent"), ESCAPE), Held { held: false, asked: 0 });
    }

    #[test]
    fn what_is_no_input_device_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", directory.path().join("event0")).unwrap();
        assert_eq!(held(directory.path(), ESCAPE), Held { held: false, asked: 0 });
    }
}
