//! Which boot this is, and for how long it has been going on: what no clock spoils.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::error::{Context, Result};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Since the kernel was started, sleep included (CLOCK_BOOTTIME).
pub fn uptime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec as u32)
}

/// The kernel's name of this boot, which no other boot has.
pub fn boot_id() -> Result<String> {
    let text = std::fs::read_to_string(BOOT_ID).context("read", || BOOT_ID.into())?;
    Ok(text.trim().to_owned())
}
