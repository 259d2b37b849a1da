//! Whether more may come over the network now: the link may have become a metered one.
//!
//! ```text
//! open ----closed----> waiting (the link is left alone) --open again--> goes on
//!                         `--patience is over--> TransportError::Metered: other sources, or the end
//! ```

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use varve_sys::task::Cancel;

use crate::transport::TransportError;

/// Asked now and then, while a file comes, whether more of it may.
#[derive(Clone)]
pub struct Gate {
    covers: fn(&str) -> bool,
    closed: Arc<dyn Fn() -> bool + Send + Sync>,
    every: Duration,
    patience: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    asked: Option<Instant>,
    /// It was waited for in vain: not once more.
    given_up: bool,
}

impl Gate {
    /// For files whose paths in the repository it `covers`, `closed` is asked at most once in
    /// `every`. A closed gate is waited for, for as long as `patience`, once.
    pub fn new(
        every: Duration,
        patience: Duration,
        covers: fn(&str) -> bool,
        closed: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { covers, closed: Arc::new(closed), every, patience, state: Arc::default() }
    }

    /// Waits until more of the file may come. `wait` hears for how long at most, once, before.
    pub(super) fn pass(
        &self,
        path: &str,
        cancel: &Cancel,
        wait: impl FnOnce(Duration),
    ) -> Result<(), TransportError> {
        if !(self.covers)(path) {
            return Ok(());
        }
        // Whoever waits here keeps the others waiting: they use the same link.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.asked.is_some_and(|asked| asked.elapsed() < self.every) {
            return Ok(());
        }
        let began = Instant::now();
        let mut wait = Some(wait);
        while (self.closed)() {
            let left = self.patience.saturating_sub(began.elapsed());
            if state.given_up || left.is_zero() {
                state.given_up = true;
                return Err(TransportError::Metered);
            }
            if let Some(wait) = wait.take() {
                wait(left);
            }
            super::reader::sleep(self.every.min(left), cancel)
                .map_err(|_| TransportError::Cancelled)?;
        }
        *state = State { asked: Some(Instant::now()), given_up: false };
        Ok(())
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_closed_gate_is_waited_for_once_and_other_files_pass() {
        // Says yes so many times.
        let times = Arc::new(AtomicU32::new(3));
        let asked = times.clone();
        let short = Duration::from_millis(1);
        let packs = |path: &str| path.starts_with("packs/");
        let gate = Gate::new(short, Duration::from_millis(400), packs, move || {
            let less = |times: u32| times.checked_sub(1);
            asked.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
        });
        let cancel = Cancel::new();
        let mut told = 0;
        gate.pass("deltas/a", &cancel, |_| told += 1).unwrap();
        gate.pass("packs/a", &cancel, |_| told += 1).unwrap();
        assert_eq!(told, 1, "it was waited for, and opened again");
        times.store(u32::MAX, Ordering::SeqCst);
        std::thread::sleep(short);
        let shut = |told: &mut u32| gate.pass("packs/a", &cancel, |_| *told += 1);
        assert!(matches!(shut(&mut told), Err(TransportError::Metered)));
        assert!(matches!(shut(&mut told), Err(TransportError::Metered)));
        assert_eq!(told, 2, "not waited for again");
        cancel.cancel();
        times.store(0, Ordering::SeqCst);
        std::thread::sleep(short);
        gate.pass("packs/a", &cancel, |_| told += 1).unwrap();
        assert_eq!(told, 2, "asked anew, and open");
    }
}
