//! The smallest update there is: a release, and the same with one small package more.

use super::{EPOCH, Pair, Release, Suite, packages_of, pair, unpack};
use crate::packages::mirror;
use crate::project::{Result, cache, key, output, program, rename, step, write};
use crate::trees::{Mounts, empty, remove};
use std::fs;
use std::path::Path;

/// Of some 100 kB, and with nothing that it needs beside the C library.
const PACKAGE: &str = "tree";

/// The updated release of a suite, and the same with the package. Needs root.
pub(crate) fn one_package(suite: Suite) -> Result<Pair> {
    let old = pair(suite)?.new;
    // What differs beside the package is in the key too: where it is added to.
    let base = old.tar.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let size = fs::metadata(&old.tar)?.len().to_string();
    let key = key([base.as_bytes(), size.as_bytes(), PACKAGE.as_bytes(), EPOCH.as_bytes()]);
    let folder = cache()?.join("releases");
    let stem = format!("{}-one-package-{key}", suite.name());
    let [tar, list, part] =
        ["tar", "packages", "part"].map(|end| folder.join(format!("{stem}.{end}")));
    if tar.exists() && list.exists() {
        let packages = fs::read_to_string(&list)?.lines().map(str::to_owned).collect();
        return Ok(Pair { old, new: Release { tar, packages } });
    }
    step(&format!("making {} with the package {PACKAGE}", suite.name()), || {
        let scratch = tempfile::tempdir_in(&folder)?;
        let tree = scratch.path().join("tree");
        unpack(&old.tar, &tree)?;
        install(suite, scratch.path(), &tree)?;
        pack(&tree, &part)?;
        remove(&tree)?;
        let packages = packages_of(&part)?;
        write(&list, packages.join("\n"))?;
        rename(&part, &tar)?;
        Ok(Pair { old, new: Release { tar, packages } })
    })
}

/// Fetches the package as mmdebstrap fetches packages, and installs it with the tree's dpkg.
fn install(suite: Suite, scratch: &Path, tree: &Path) -> Result {
    let codename = suite.codename();
    let package = scratch.join("package.deb");
    let mut fetch = program("mmdebstrap");
    fetch.args(["--variant=extract", "--format=directory", "--mode=root"]);
    fetch.arg(format!("--include={PACKAGE}"));
    fetch.arg(format!(
        "--extract-hook=cp \"$1\"/var/cache/apt/archives/{PACKAGE}_*.deb {}",
        package.display()
    ));
    fetch.arg(codename).arg(scratch.join("extracted"));
    output(fetch.arg(format!("deb {} {codename} main", mirror()?.main)))?;
    let inside = tree.join("package.deb");
    output(program("cp").arg(&package).arg(&inside))?;
    let log = tree.join("var/log/dpkg.log");
    let has_log = log.exists();
    empty(&tree.join("dev"))?;
    let mounts = Mounts::new(tree)?;
    let mut dpkg = program("chroot");
    dpkg.arg(tree).env("SOURCE_DATE_EPOCH", EPOCH).env("DEBIAN_FRONTEND", "noninteractive");
    let installed = output(dpkg.args(["dpkg", "--install", "/package.deb"]));
    drop(mounts);
    installed?;
    remove(&inside)?;
    // It says when; mmdebstrap leaves none either.
    if has_log { Ok(()) } else { remove(&log) }
}

/// A tree as a tar file, the same bytes each time; files newer than the release's time get
/// that one.
pub(crate) fn pack(tree: &Path, tar: &Path) -> Result {
    let mut command = program("tar");
    command.args(["--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*"]);
    command.args(["--clamp-mtime", &format!("--mtime=@{EPOCH}"), "-C"]).arg(tree);
    output(command.arg("-cf").arg(tar).arg(".")).map(|_| ())
}
