//! What the boot stage looks at before it decides. Reads only.

use std::path::{Path, PathBuf};
use std::time::Duration;

use varve_boot::{OnDisk, Unusable};
use varve_format::selection::{MAX_TEXT, Selection};
use varve_rootfs::{Deployment, Store};
use varve_sys::cmdline::CommandLine;
use varve_sys::console::{Asked, active_consoles, keys_asked};
use varve_sys::whole_message;

/// The longest time that `varve.keywait=` may ask for.
const LONGEST_WAIT: u64 = 60_000;

/// Where the machine's own things are: the real places, or a test's.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Input devices: `/dev/input`.
    pub input: PathBuf,
    /// The terminals to look at for what was typed.
    pub consoles: Vec<PathBuf>,
    /// The terminals that the menu is shown on.
    pub screens: Vec<PathBuf>,
    /// Where the level of the kernel's own lines on the consoles is set, if anywhere:
    /// `/proc/sys/kernel/printk`.
    pub log_level: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: CommandLine,
    /// `uname -r`.
    pub kernel: String,
}

impl Machine {
    /// This machine. A command line that cannot be read is an empty one.
    pub fn this() -> Machine {
        let consoles = active_consoles(Path::new("/sys"), Path::new("/dev"));
        let mut screens = consoles.clone();
        // A screen and a keyboard are worth showing it on, although the kernel's own
        // lines go elsewhere.
        let screen = PathBuf::from("/dev/tty0");
        if !screens.contains(&screen) {
            screens.push(screen);
        }
        Machine {
            input: PathBuf::from("/dev/input"),
            consoles,
            screens,
            log_level: Some(PathBuf::from("/proc/sys/kernel/printk")),
            command_line: CommandLine::of_this_boot().unwrap_or_default(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        }
    }

    /// Whether someone asks for the previous deployment (Escape held on a keyboard, or
    /// typed on a console) or for the menu (the space bar or F8; a space). `varve.keywait=` gives them so many milliseconds more.
    pub(crate) fn keys(&self, warnings: &mut Vec<String>) -> Asked {
        let wait = self.command_line.value("varve.keywait").map_or(0, |text| {
            text.parse().unwrap_or_else(|_| {
                warnings.push(format!("varve.keywait={text}: expected milliseconds"));
                0_u64
            })
        });
        let window = Duration::from_millis(wait.min(LONGEST_WAIT));
        keys_asked(&self.input, &self.consoles, window)
    }
}

/// The selection, or why there is none.
pub(crate) fn selection(store: &Store) -> Result<Selection, Unusable> {
    match store.boot().read_opt("selection", MAX_TEXT) {
        Ok(Some(bytes)) => {
            Selection::parse(&bytes).map_err(|error| Unusable::Damaged(whole_message(&error)))
        }
        Ok(None) => Err(Unusable::Missing),
        Err(error) => Err(Unusable::Damaged(whole_message(&error))),
    }
}

/// Every deployment whose record can be read. What cannot be is a warning.
pub(crate) fn deployments(store: &Store, warnings: &mut Vec<String>) -> Vec<Deployment> {
    match store.deployments() {
        Ok(listing) => {
            let strange = listing.strange.into_iter();
            warnings.extend(strange.map(|strange| format!("{}: {}", strange.path, strange.why)));
            listing.items
        }
        Err(error) => {
            warnings.push(whole_message(&error));
            Vec::new()
        }
    }
}

pub(crate) fn on_disk(deployments: &[Deployment]) -> Vec<OnDisk> {
    let each = deployments.iter();
    each.map(|deployment| OnDisk {
        name: deployment.name().clone(),
        number: deployment.record.number,
        confirmed: deployment.confirmed,
    })
    .collect()
}
