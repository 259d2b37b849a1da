//! The system that is built upon is read while what is missing is on its way: the link and
//! the disk are different things to wait for.
//!
//! ```text
//! caller's thread    fetch, deltas ------------------.  what is left of the reading is shown
//! another            every byte of the base ----------------------'-> what is damaged in it
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use varve_rootfs::verify::Difference;
use varve_rootfs::{Deployment, layout};
use varve_sys::task::{Cancel, Progress, Unit};

use super::Context;
use crate::device::Device;
use crate::error::Result;

/// How often a wish to stop is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Does `act`, and meanwhile reads `base`, if it is to be read; gives what is damaged in it.
///
/// # Errors
/// Those of `act`, which end the reading; a disk that cannot be read; asked to stop.
pub(super) fn read_meanwhile<T>(
    device: &Device,
    base: Option<&Deployment>,
    context: &Context<'_>,
    act: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<Difference>)> {
    let Some(base) = base else { return Ok((act()?, Vec::new())) };
    let (count, stop) = (Count::default(), Cancel::new());
    let (tell, told) = channel();
    std::thread::scope(|scope| {
        let (count, stop) = (&count, &stop);
        let reading = scope.spawn(move || {
            let damaged = layout::damaged(&device.store, base, count, stop);
            // Nobody listens when the fetching failed.
            let _ = tell.send(());
            damaged
        });
        let done = act();
        match &done {
            Ok(_) => wait(&told, count, stop, context),
            Err(_) => stop.cancel(),
        }
        let damaged = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((done?, damaged?))
    })
}

/// Shows what is left of the reading, until it ends.
fn wait(told: &Receiver<()>, count: &Count, stop: &Cancel, context: &Context<'_>) {
    // A sender that is gone without a word panicked: its thread says so when it is joined.
    if !matches!(told.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
        return;
    }
    let total = count.total.load(Ordering::Relaxed);
    context.progress.begin("verifying", Unit::Paths, (total > 0).then_some(total));
    let mut shown = 0;
    loop {
        let done = count.done.load(Ordering::Relaxed);
        context.progress.advance(done - shown);
        shown = done;
        match told.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) if context.cancel.is_cancelled() => stop.cancel(),
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    context.progress.end();
}

/// How far the reading is, for whoever shows it later.
#[derive(Default)]
struct Count {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress for Count {
    fn begin(&self, _phase: &str, _unit: Unit, total: Option<u64>) {
        self.total.store(total.unwrap_or_default(), Ordering::Relaxed);
    }

    fn advance(&self, amount: u64) {
        self.done.fetch_add(amount, Ordering::Relaxed);
    }

    fn end(&self) {}
}
