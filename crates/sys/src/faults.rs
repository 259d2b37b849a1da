//! Safety steps that a test can take out: the proof that the power-cut rig would notice.
//!
//! Every sync and atomic rename in [`crate::durable`] asks `out` first, and so does every
//! check of a digest that what a cut left must pass (`check.*`, in `fetch` and `rootfs`).
//! In a normal build the answer is a constant `false` and nothing of this is in the program.
//! With the feature `faults`, which only the rig turns on, each step is known by what it does
//! and by the line of code that asked for it:
//!
//! ```text
//! replace_file.fsync @ crates/agent/src/history.rs:41
//! ```
//!
//! The rig runs a scenario once with `watch` to learn which steps it passes, then once
//! for each of them with the step taken out by `take_out`: a sync while the scenario is
//! recorded, a check while the device recovers. `when_out` tells where that was. Checks that no
//! power cut needs are taken out of the tests of what they are there for, by the variable
//! `VARVE_TAKE_OUT`.

#[cfg(feature = "faults")]
pub use on::{VARIABLE, out, passed, take_out, watch, when_out};

#[cfg(feature = "faults")]
mod on {
    use std::collections::BTreeMap;
    use std::panic::Location;
    use std::sync::{LazyLock, Mutex};

    static OUT: LazyLock<Mutex<Vec<String>>> =
        LazyLock::new(|| Mutex::new(std::env::var(VARIABLE).into_iter().collect()));
    static PASSED: Mutex<Option<BTreeMap<String, u64>>> = Mutex::new(None);

    /// A step that is out from the start: for tests that know nothing of this module. Nothing
    /// that is shipped has it, so it is no setting of the program's.
    pub const VARIABLE: &str = "VARVE_TAKE_OUT";

    /// Who hears that a step is left out.
    type Hear = Box<dyn Fn() + Send>;
    static HEAR: Mutex<Option<Hear>> = Mutex::new(None);

    /// Has `hear` called each time that a step is left out, before the program goes on.
    pub fn when_out(hear: Option<Hear>) {
        *HEAR.lock().expect("nothing panics") = hear;
    }

    /// Takes the steps of these names out from now on, in the whole process, and puts all
    /// others back. A name without `@ file:line` takes the step out wherever it is asked
    /// for.
    pub fn take_out(steps: &[&str]) {
        *OUT.lock().expect("nothing panics") = steps.iter().map(|&step| step.into()).collect();
    }

    /// Begins to note which steps are passed.
    pub fn watch() {
        *PASSED.lock().expect("nothing panics") = Some(BTreeMap::new());
    }

    /// The steps that were passed since [`watch`], and how often; ends the watching.
    pub fn passed() -> BTreeMap<String, u64> {
        PASSED.lock().expect("nothing panics").take().unwrap_or_default()
    }

    /// Whether a test has taken this step out.
    #[track_caller]
    pub fn out(step: &'static str) -> bool {
        let place = Location::caller();
        let full = || format!("{step} @ {}:{}", place.file(), place.line());
        if let Some(passed) = &mut *PASSED.lock().expect("nothing panics") {
            *passed.entry(full()).or_default() += 1;
        }
        let out = {
            let out = OUT.lock().expect("nothing panics");
            !out.is_empty() && out.iter().any(|out| out == step || *out == full())
        };
        if out && let Some(hear) = &*HEAR.lock().expect("nothing panics") {
            hear();
        }
        out
    }
}

/// Whether a test has taken this step out.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub const fn out(_step: &'static str) -> bool {
    false
}
