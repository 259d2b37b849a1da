//! What long work tells, and how it is asked to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks work to stop at the next safe point. Clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

/// The work was asked to stop, and did; what was verified is kept.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("stopped as asked; what was verified is kept")]
pub struct Cancelled;

impl Cancel {
    /// A flag that nobody has raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the flag; safe from a signal handler's thread.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the flag is raised.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error once the flag is raised.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }
}

/// Does two things at once, the second on a thread of its own; one after the other where no
/// thread can be had.
pub fn both<A, B: Send>(first: impl FnOnce() -> A, second: impl Fn() -> B + Sync) -> (A, B) {
    std::thread::scope(|scope| match std::thread::Builder::new().spawn_scoped(scope, &second) {
        Ok(thread) => {
            let first = first();
            let second = thread.join();
            (first, second.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        }
        Err(_) => {
            let second = second();
            (first(), second)
        }
    })
}

/// What a phase's numbers count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Paths of a tree.
    Paths,
    /// Steps.
    Steps,
}

/// Hears of the progress of long work. Called often: must be cheap.
pub trait Progress: Send + Sync {
    /// A phase begins, such as "fetching". `total` when it is known.
    fn begin(&self, phase: &str, unit: Unit, total: Option<u64>);
    /// So much more of the phase is done.
    fn advance(&self, amount: u64);
    /// The phase is over.
    fn end(&self);
    /// Something worth a line, that is no error.
    fn note(&self, _text: &str) {}
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _phase: &str, _unit: Unit, _total: Option<u64>) {}
    fn advance(&self, _amount: u64) {}
    fn end(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_done_at_once() {
        let meet = std::sync::Barrier::new(2);
        let first = || {
            meet.wait();
            1
        };
        let second = || {
            meet.wait();
            "two"
        };
        assert_eq!(both(first, second), (1, "two"));
    }
}
