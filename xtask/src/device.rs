//! The static programs: for devices, and the publisher's for the tests.
//!
//! They are built for musl, so that they do not depend on the libc of the system that
//! they repair, and with `--profile device`.

use crate::packages;
use crate::project::{Result, cargo, megabytes, output, show, step, target};
use std::path::PathBuf;
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-musl";

/// Where the programs are.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// The update manager.
    pub(crate) varve: PathBuf,
    /// The boot stage.
    pub(crate) boot: PathBuf,
    /// The publisher's program.
    pub(crate) repo: PathBuf,
}

pub(crate) fn run() -> Result {
    packages::ensure(packages::For::Build)?;
    let programs = build()?;
    for path in [&programs.varve, &programs.boot, &programs.repo] {
        println!("{} ({})", path.display(), megabytes(std::fs::metadata(path)?.len()));
    }
    Ok(())
}

/// Builds what has changed.
pub(crate) fn build() -> Result<Programs> {
    let installed = output(Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]))?;
    if !std::path::Path::new(installed.trim()).exists() {
        step("adding the Rust target for static programs", || {
            show(Command::new("rustup").args(["target", "add", TARGET]))
        })?;
    }
    step("building the programs for devices", || {
        show(
            cargo()
                // musl-gcc is Debian's; cc-rs looks for a cross compiler's name otherwise.
                .env("CC_x86_64_unknown_linux_musl", "musl-gcc")
                .args(["build", "--quiet", "--locked", "--profile", "device", "--target", TARGET])
                .args(["--package", "varve", "--package", "varve-early", "--package", "varve-repo", "--bins"]),
        )
    })?;
    let folder = target()?.join(TARGET).join("device");
    let programs =
        Programs { varve: folder.join("varve"), boot: folder.join("varve-boot"), repo: folder.join("varve-repo") };
    for path in [&programs.varve, &programs.boot, &programs.repo] {
        if !path.exists() {
            return Err(format!("the build left no {}", path.display()).into());
        }
    }
    Ok(programs)
}
