//! The static programs: for devices, and the publisher's for the tests.
//!
//! They are built for musl, so that they do not depend on the libc of the system that
//! they repair, and with `--profile device`.

use crate::packages;
use crate::project::{Result, cache, cargo, megabytes, output, program, show, step, target};
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
    let installed =
        output(Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]))?;
    if !std::path::Path::new(installed.trim()).exists() {
        step("adding the Rust target for static programs", || {
            show(Command::new("rustup").args(["target", "add", TARGET]))
        })?;
    }
    // Together they are what dist/install.sh and a packager want: one folder of programs.
    let folder = cache()?.join("programs");
    std::fs::create_dir_all(&folder)?;
    let place = |name: &str| folder.join(name);
    step("building the programs for devices", || {
        let packages = ["--package", "varve", "--package", "varve-repo"];
        let built = [
            // Of the boot stage every byte is loaded at every boot: it is built for size.
            (compile("boot-stage", &["--package", "varve-early"])?, "varve-boot"),
            (compile("device", &packages)?, "varve"),
            (compile("device", &packages)?, "varve-repo"),
        ];
        for (from, name) in built {
            // Only what is new is replaced, so that what was made of it is not made again.
            output(
                program("install")
                    .args(["--compare", "--mode=755"])
                    .arg(from.join(name))
                    .arg(place(name)),
            )?;
        }
        Ok(())
    })?;
    Ok(Programs { varve: place("varve"), boot: place("varve-boot"), repo: place("varve-repo") })
}

/// Builds the power-cut rig so that it runs in any Debian, also an older one; gives its file.
pub(crate) fn rig() -> Result<PathBuf> {
    let rig = ["--package", "varve-powercut"];
    step("building the power-cut rig for another system", || {
        Ok(compile("device", &rig)?.join("varve-powercut"))
    })
}

/// Compiles for the static target, and says where the programs are.
fn compile(profile: &str, packages: &[&str]) -> Result<PathBuf> {
    show(
        cargo()
            // musl-gcc is Debian's; a cross compiler's name is looked for otherwise.
            .env("CC_x86_64_unknown_linux_musl", "musl-gcc")
            .args([
                "build",
                "--quiet",
                "--locked",
                "--profile",
                profile,
                "--target",
                TARGET,
                "--bins",
            ])
            .args(packages),
    )?;
    Ok(target()?.join(TARGET).join(profile))
}
