//! Work on a tree by a few threads: tasks that make more tasks, newest first, so that the
//! number of directories that wait, open, stays near the depth of the tree.

use std::sync::{Condvar, Mutex};

/// Twice as many threads as a small device has cores: some of them wait for the disk.
pub(crate) const THREADS: usize = 4;

/// Tasks that wait, and how many threads are at work on one.
pub(crate) struct Pool<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    waiting: Vec<T>,
    busy: usize,
    failed: bool,
}

impl<T> Pool<T> {
    /// Adds a task. Any thread takes it.
    pub(crate) fn push(&self, task: T) {
        self.lock().waiting.push(task);
        self.changed.notify_one();
    }

    /// How many tasks wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.state.lock().expect("no task panics with the lock")
    }

    /// The next task; none when all is done or something failed.
    fn next(&self, was_busy: bool) -> Option<T> {
        let mut state = self.lock();
        if was_busy {
            state.busy -= 1;
        }
        loop {
            if state.failed {
                return None;
            }
            if let Some(task) = state.waiting.pop() {
                state.busy += 1;
                return Some(task);
            }
            if state.busy == 0 {
                self.changed.notify_all();
                return None;
            }
            state = self.changed.wait(state).expect("no task panics with the lock");
        }
    }

    fn fail(&self) {
        self.lock().failed = true;
        self.changed.notify_all();
    }
}

/// Ends the others' waiting when a task panics.
struct EndOnPanic<'a, T>(&'a Pool<T>);

impl<T> Drop for EndOnPanic<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail();
        }
    }
}

/// Does the first task and all that come of it. Each thread has a context of its own;
/// all are given back, or the first error.
pub(crate) fn run<T: Send, C: Send, E: Send>(
    first: T,
    context: impl Fn() -> C + Sync,
    work: impl Fn(T, &mut C, &Pool<T>) -> Result<(), E> + Sync,
) -> Result<Vec<C>, E> {
    let state = State { waiting: vec![first], busy: 0, failed: false };
    let pool = Pool { state: Mutex::new(state), changed: Condvar::new() };
    let thread = || {
        let _guard = EndOnPanic(&pool);
        let mut context = context();
        let mut busy = false;
        while let Some(task) = pool.next(busy) {
            busy = true;
            if let Err(error) = work(task, &mut context, &pool) {
                pool.fail();
                return Err(error);
            }
        }
        Ok(context)
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(thread)).collect();
        let mut contexts = vec![thread()];
        for other in others {
            contexts.push(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        contexts.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once() {
        // Each task n makes n tasks of n - 1: 1 + n + n(n-1) + ... of them.
        let work = |n: u32, done: &mut u64, pool: &Pool<u32>| {
            *done += 1;
            (0..n).for_each(|_| pool.push(n - 1));
            Ok::<(), ()>(())
        };
        let done: u64 = run(6, || 0, work).unwrap().iter().sum();
        assert_eq!(done, 1957);
    }

    #[test]
    fn an_error_ends_all() {
        let work = |n: u32, _: &mut (), pool: &Pool<u32>| {
            pool.push(n + 1);
            pool.push(n + 1);
            if n < 9 { Ok(()) } else { Err(n) }
        };
        assert!(run(0, || (), work).unwrap_err() >= 9);
    }

    #[test]
    #[should_panic]
    fn a_panic_ends_all() {
        let work = |n: u32, _: &mut (), pool: &Pool<u32>| {
            (0..3).for_each(|_| pool.push(n + 1));
            assert!(n < 9);
            Ok::<(), ()>(())
        };
        let _ = run(0, || (), work);
    }
}
