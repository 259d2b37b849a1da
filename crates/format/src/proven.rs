//! How long a deployment has worked by now: `deployments/<name>/proven`.
//!
//! ```text
//! # How long this deployment has worked. Written by varve; a person may delete it.
//! format = 1
//! boots = 4
//! seconds = 260000
//! boot = "6f8f…"            # the boot in which this was noted last,
//! uptime = 5400             # so many seconds after it began,
//! clock = 1760000000        # when the clock said this
//! counted = true            # whether that boot is among `boots`
//! checksum = "…"
//! ```
//!
//! Time is what the device ran, which no clock spoils, and of each pause between two boots
//! at most a day by the clock, where that is to be believed: a device without a battery
//! wakes up in 1970, and finds out later.

use serde::{Deserialize, Serialize};

use crate::sealed::{self, SealedError};

/// The only format that this version writes and reads.
pub const FORMAT: u32 = 1;
/// The longest file that is read, in bytes.
pub const MAX_TEXT: u64 = 4096;
/// The most that a pause between two boots counts, in seconds: a device in a drawer proves
/// nothing.
pub const MAX_PAUSE: u64 = 24 * 60 * 60;
/// A clock before 2020 was never set.
const FIRST_CLOCK: i64 = 1_577_836_800;

/// A point in time, seen from the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moment {
    /// The kernel's name of this boot (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// Seconds since it began, those of sleep included.
    pub uptime: u64,
    /// The clock: seconds since 1970.
    pub clock: i64,
}

/// What a deployment has shown.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Proven {
    /// So many boots of it were good.
    pub boots: u32,
    /// For so long.
    pub seconds: u64,
    boot: String,
    uptime: u64,
    clock: i64,
    counted: bool,
}

impl Proven {
    /// Goes on to `now`, when it still works; `good`: this boot has just been found good.
    /// A boot counts once. The first note of all begins to count.
    pub fn note(&self, now: &Moment, good: bool) -> Self {
        let begins = self.boot.is_empty();
        let same = self.boot == now.boot;
        let more = if begins {
            0
        } else if same {
            now.uptime.saturating_sub(self.uptime)
        } else {
            now.uptime.saturating_add(self.pause(now))
        };
        let counted = same && self.counted;
        Self {
            boots: self.boots.saturating_add(u32::from(good && !counted)),
            seconds: self.seconds.saturating_add(more),
            boot: now.boot.clone(),
            uptime: now.uptime,
            clock: now.clock,
            counted: counted || good,
        }
    }

    /// What counts of the time between the last note and the beginning of this boot.
    fn pause(&self, now: &Moment) -> u64 {
        if self.clock < FIRST_CLOCK || now.clock < FIRST_CLOCK {
            return 0;
        }
        let began = now.clock.saturating_sub(i64::try_from(now.uptime).unwrap_or(i64::MAX));
        u64::try_from(began.saturating_sub(self.clock)).unwrap_or(0).min(MAX_PAUSE)
    }

    /// Reads the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, SealedError> {
        sealed::read(bytes, FORMAT)
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let about =
            "How long this deployment has worked. Written by varve; a person may delete it.";
        sealed::write(about, FORMAT, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 60 * 60;
    const NOW: i64 = 1_760_000_000;

    fn at(boot: &str, uptime: u64, clock: i64) -> Moment {
        Moment { boot: boot.to_owned(), uptime, clock }
    }

    fn notes(moments: &[(Moment, bool)]) -> (u32, u64) {
        let proven = moments.iter().fold(Proven::default(), |p, (now, good)| p.note(now, *good));
        let text = proven.to_text();
        assert_eq!(Proven::parse(text.as_bytes()).unwrap(), proven, "{text}");
        (proven.boots, proven.seconds)
    }

    #[test]
    fn boots_count_once_and_time_is_what_it_ran_and_short_pauses() {
        let day = DAY as i64;
        assert_eq!(notes(&[(at("a", 60, NOW), true)]), (1, 0), "it begins");
        assert_eq!(
            notes(&[(at("a", 60, NOW), true), (at("a", 3660, NOW + 3600), true)]),
            (1, 3600)
        );
        // Off over night: eight hours and two.
        let night = [
            (at("a", 60, NOW), true),
            (at("a", 60 + 7200, NOW + 7200), false),
            (at("b", 30, NOW + 7200 + 28_800 + 30), true),
        ];
        assert_eq!(notes(&night), (2, 7200 + 28_800 + 30));
        // A month in a drawer is a day.
        let drawer = [(at("a", 60, NOW), true), (at("b", 0, NOW + 30 * day), true)];
        assert_eq!(notes(&drawer), (2, DAY));
    }

    #[test]
    fn a_clock_that_is_wrong_makes_it_neither_early_nor_never() {
        // Confirmed in 1970; then the clock is set, within the boot and between two.
        let set_later = [(at("a", 60, 60), true), (at("a", 660, NOW), false)];
        assert_eq!(notes(&set_later), (1, 600));
        let set_between = [(at("a", 60, 60), true), (at("b", 10, NOW), true)];
        assert_eq!(notes(&set_between), (2, 10));
        // Every boot begins in 1970, and the clock is set and forgotten each time.
        let mut moments = Vec::new();
        for n in 0..10_i64 {
            let boot = format!("boot {n}");
            moments.push((at(&boot, 30, 30), true));
            moments.push((at(&boot, 30 + 8 * 3600, NOW + n * 86_400), false));
        }
        assert_eq!(notes(&moments), (10, 10 * 8 * 3600 + 9 * 30));
        // A clock that goes backwards by years takes nothing away.
        let back = [(at("a", 0, NOW), true), (at("a", 100, NOW - 1_000_000), false)];
        assert_eq!(notes(&back), (1, 100));
        let wild = [(at("a", 0, i64::MAX), true), (at("b", u64::MAX, i64::MIN), true)];
        assert_eq!(notes(&wild), (2, u64::MAX));
    }
}
