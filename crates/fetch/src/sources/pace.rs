//! A limit on the rate, over all sources of a device.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use varve_sys::task::Cancel;

use super::FetchError;

/// What may come at once after a rest.
const BURST: Duration = Duration::from_millis(250);

/// Bytes a second, and when the next ones are due.
pub(super) struct Pace {
    rate: f64,
    /// When everything that has come by now would have come at the full rate.
    due: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { rate: bytes_per_second.max(1) as f64, due: Mutex::new(Instant::now()) }
    }

    /// The most to read at once, so that a pause is never long.
    pub(super) fn step(&self) -> usize {
        ((self.rate / 8.0) as usize).clamp(512, 64 * 1024)
    }

    /// Waits for as long as `count` bytes may take that have just come.
    pub(super) fn wait(&self, count: usize, cancel: &Cancel) -> Result<(), FetchError> {
        let pause = self.charge(count, Instant::now());
        if pause.is_zero() { Ok(()) } else { super::reader::sleep(pause, cancel) }
    }

    fn charge(&self, count: usize, now: Instant) -> Duration {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        *due = (*due).max(earliest) + Duration::from_secs_f64(count as f64 / self.rate);
        due.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_takes_the_time_that_it_may() {
        let pace = Pace::new(1000);
        let start = Instant::now();
        let mut now = start;
        for _ in 0..100 {
            now += pace.charge(100, now);
        }
        let took = now - start;
        assert!((9.7..10.1).contains(&took.as_secs_f64()), "{took:?}");
        // A rest is not saved up.
        now += Duration::from_secs(60);
        assert_eq!(pace.charge(200, now), Duration::ZERO);
        assert!(pace.charge(1000, now) > Duration::from_millis(900));
    }
}
