//! `cargo xtask powercut`: builds the power-cut rig and runs it as root.
//!
//! ```text
//! cargo xtask powercut                       all scenarios on all file systems
//! cargo xtask powercut --ci                  a bounded share with a fixed seed, machines included
//! cargo xtask powercut --faults              takes out each safety step in turn
//! cargo xtask powercut --replay FILE         judges a kept state again
//! cargo xtask powercut --vm 30               cuts the power of a real Debian
//! cargo xtask powercut --guest --fs f2fs     the rig itself in a machine with Debian's kernel
//! ```
//!
//! Everything else is `crates/powercut`, to which the other options go as they are.

use std::ffi::OsString;

use crate::device;
use crate::guest;
use crate::lab;
use crate::packages;
use crate::project::{Result, cache, cargo, program, root, show, target};

/// What CI runs: every scenario on the file system that Debian installs, and those in
/// which most can go wrong on the others too, as far as this kernel has them; and real
/// machines, two at a time.
const CI: &[&str] = &[
    "--fs ext4 --states 12 --deep 1 --deep-states 4 --minutes 3.5",
    "--fs xfs,btrfs --present --scenario primitives,upgrade,trial,strip --states 12 --deep 1 \
     --deep-states 4 --minutes 1.5",
    "--vm 30 --minutes 11",
];

/// Cuts the power at every point of varve's work and looks whether the device lives on.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The bounded share that CI runs: five minutes at most, and virtual machines for about
    /// twelve more.
    #[arg(long)]
    ci: bool,
    /// Run the rig in a virtual machine with Debian's kernel, for the file systems that this one
    /// has not. An emulated machine is ten to twenty times slower.
    #[arg(long, conflicts_with = "ci")]
    guest: bool,
    /// For the rig: --fs, --scenario, --states, --deep, --seed, --hours, --faults,
    /// --replay FILE; `--help` after `--` tells all.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rig: Vec<OsString>,
}

/// Runs it. A state that breaks a promise is an error.
pub(crate) fn run(arguments: &Arguments) -> Result {
    packages::need_root("powercut")?;
    packages::ensure(packages::For::PowerCut)?;
    let has = |wanted: &str| arguments.rig.iter().any(|argument| argument == wanted);
    let faults = has("--faults");
    if arguments.guest {
        if faults || has("--vm") {
            return Err("--guest goes with neither --faults nor --vm".into());
        }
        packages::ensure(packages::For::Lab)?;
        return verdict(guest::run(&device::rig()?, &arguments.rig)?);
    }
    let mut build = cargo();
    build.args(["build", "--quiet", "--package", "varve-powercut"]);
    let target = if faults {
        // In a directory of its own: no other build may meet these programs.
        let target = cache()?.join("faults");
        build.args(["--features", "faults", "--target-dir"]).arg(&target);
        target
    } else {
        target()?
    };
    show(&mut build)?;
    let runs: Vec<Vec<OsString>> = match arguments.ci {
        true => CI.iter().map(|line| line.split_whitespace().map(Into::into).collect()).collect(),
        false => vec![arguments.rig.clone()],
    };
    // The others are told of too, whatever one finds.
    let mut well = true;
    for words in runs {
        let vm = words.iter().any(|word| word == "--vm");
        let lab = if vm { Some(lab::of_demo(&lab::LAYOUTS)?) } else { None };
        let mut rig = program(&target.join("debug/varve-powercut").to_string_lossy());
        rig.current_dir(root()).args(words);
        if let Some(lab) = lab {
            rig.env(varve_testkit::vm::lab::VARIABLE, lab);
        }
        well &= rig.status()?.success();
    }
    verdict(well)
}

fn verdict(well: bool) -> Result {
    match well {
        true => Ok(()),
        false => Err("the power-cut rig found what must not be: see above".into()),
    }
}
