//! The boot stage's own time, as it prints it, in a virtual machine; beside it what the
//! same machine takes for the plain mount of an equal disk that it has not read yet.

use super::Bench;
use super::measure::Figure;
use crate::lab;
use crate::project::{Result, cache};
use crate::releases::{self, Suite};
use crate::trees::{Fault, Generator};
use std::collections::BTreeMap;
use varve_testkit::vm::disk;
use varve_testkit::vm::guest::value;
use varve_testkit::vm::lab::Lab;

/// Milliseconds that a boot may take longer than a plain one.
const LIMIT: f64 = 50.0;

/// Mounts a disk that this boot has not touched, writable as a system needs it; prints
/// microseconds.
const PLAIN_MOUNT: &str = r#"mkdir -p /run/plain; python3 - <<'END'
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
begin = time.perf_counter()
result = libc.mount(b"/dev/vdb", b"/run/plain", b"ext4", 0, None)
taken = time.perf_counter() - begin
if result != 0:
    raise OSError(ctypes.get_errno(), "mount")
libc.umount2(b"/run/plain", 0)
print(round(taken * 1e6))
END"#;

pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let pair = releases::pair(Suite::Trixie)?;
    let system = lab::system(
        "debian-13",
        &pair,
        &bench.programs,
        Generator::InitramfsTools,
        &Fault::ALL,
        &lab::LAYOUTS,
    )?;
    let lab = Lab {
        systems: BTreeMap::from([("debian-13".to_owned(), system)]),
        scratch: cache()?.join("scratch"),
    };
    let mut figures = Vec::new();
    for layout in lab::LAYOUTS {
        let mut guest = lab.guest("debian-13", layout)?;
        // Of the same content, and cold at every boot.
        let second = guest.disk.with_extension("second");
        disk::copy(&guest.disk, &second)?;
        guest.config.disks.push(second);
        let mut least = f64::MAX;
        let mut plain = f64::MAX;
        for _ in 0..3 {
            guest.boot()?;
            let milliseconds = value(&guest.boot_report()?, "microseconds").parse::<f64>()? / 1e3;
            least = least.min(milliseconds);
            plain = plain.min(guest.run(PLAIN_MOUNT)?.trim().parse::<f64>()? / 1e3);
            guest.kill();
        }
        figures.push(Figure {
            name: format!("boot stage, {layout}: more than plain"),
            ours: least - plain,
            limit: Some(LIMIT),
            unit: "ms",
            note: format!(
                "software emulation; {least:.1} ms, a plain mount of the same file system {plain:.1} ms"
            ),
        });
    }
    Ok(figures)
}
