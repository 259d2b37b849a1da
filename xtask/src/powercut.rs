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
use std::path::Path;

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
    "--vm 30 --minutes 13",
];

/// Checks of digests: what they stand against is a source or a disk that changes bytes. Each has a
/// test (package, file or `lib`, name) that turns red when it is taken out.
const CHECKS: &[(&str, &str, &str, &str)] = &[
    ("check.frame", "varve-fetch", "contents", "a_byte_that_flips_is_fetched_from_the_next_source"),
    ("check.content", "varve-fetch", "contents", "a_part_that_rotted_is_not_passed_on"),
    ("check.adopted", "varve-fetch", "contents", "a_cut_of_power_leaves_litter_that_is_swept"),
    ("check.reached", "varve-fetch", "contents", "what_is_noted_beyond_the_name_of_a_part"),
    ("check.document", "varve-fetch", "lib", "documents_are_checked"),
    ("check.grain", "varve-agent", "deltas", "what_of_a_delta_rotted_is_fetched_again"),
    ("check.grain_table", "varve-agent", "deltas", "what_of_a_delta_rotted_is_fetched_again"),
    ("check.grain_fetched", "varve-agent", "deltas", "a_damaged_delta_is_left_for_packs"),
    ("check.staged", "varve-rootfs", "stage", "a_missing_or_wrong_content_is_told"),
    ("check.merged", "varve-rootfs", "stage", "what_is_damaged_is_not_merged"),
];

/// Cuts the power at every point of varve's work and looks whether the device lives on.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The bounded share that CI runs: five minutes at most, and virtual machines for about
    /// fourteen more.
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
    if faults {
        well &= checks(&target)?;
    }
    verdict(well)
}

fn verdict(well: bool) -> Result {
    match well {
        true => Ok(()),
        false => Err("the power-cut rig found what must not be: see above".into()),
    }
}

/// Runs the test of each check, with the check and without it.
fn checks(target: &Path) -> Result<bool> {
    println!("| check taken out | turned red |\n| --- | --- |");
    let mut noticed = 0;
    for (check, package, file, test) in CHECKS {
        let passes = |out: Option<&str>| -> Result<bool> {
            let mut cargo = cargo();
            cargo.args(["test", "--quiet", "--features", "varve-sys/faults", "--package", package]);
            match *file {
                "lib" => cargo.arg("--lib"),
                file => cargo.args(["--test", file]),
            };
            cargo.arg("--target-dir").arg(target).args(["--", test]);
            cargo.envs(out.map(|check| ("VARVE_TAKE_OUT", check)));
            Ok(cargo.output()?.status.success())
        };
        let verdict = match (passes(None)?, passes(Some(check))?) {
            (true, false) => "yes",
            (true, true) => "no",
            (false, _) => "it fails with the check too",
        };
        noticed += usize::from(verdict == "yes");
        println!("| `{check}` | {verdict}: `{package}` `{test}` |");
    }
    println!("{noticed} of {} noticed", CHECKS.len());
    Ok(noticed == CHECKS.len())
}
