//! Probes of a search answered without a boot: the health checks run in private copies of
//! the system, each without some of the layers.
//!
//! It costs seconds where a boot costs a minute, and sees what the checks see on the running
//! kernel: a program that fails, not a boot that hangs. So what it finds is a search that is
//! over like another; where it sees nothing, the search begins with boots.

use varve_boot::bisect::{self, Finding, Next};
use varve_format::probe::{Bisect, Verdict};

use crate::device::Device;
use crate::error::Result;
use crate::tryout::{self, Act};
use crate::upgrade::Context;

/// Searches by private copies. Gives the search with their answers if they tell layers
/// apart, else as it was. Changes nothing on the device.
pub fn try_first(device: &Device, search: Bisect, context: &Context<'_>) -> Result<Bisect> {
    let mut tried = search.clone();
    loop {
        let off = match bisect::next(&tried) {
            Next::Probe(off) => off,
            Next::Over(Finding::Found { .. } | Finding::OneOf { .. }) => return Ok(tried),
            Next::Over(_) => return Ok(search),
        };
        context.cancel.check()?;
        let without = tried.names(&off);
        let name = Some(&tried.deployment);
        let outcome = tryout::run_without(device, name, &without, &Act::Health, context)?;
        let (verdict, why) = match outcome.checks.iter().find(|check| !check.passed) {
            Some(check) => (Verdict::Bad, format!("the check {:?} {}", check.name, check.how)),
            None => (Verdict::Good, "its health checks passed".to_owned()),
        };
        tried.running = Some(off);
        bisect::answer(&mut tried, verdict, &format!("in a copy, {why}"));
    }
}
