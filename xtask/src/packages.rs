//! The system packages that the commands need: installed by root, named to others.

use crate::project::{Result, is_root, output, program, show};

/// A need: a file that shows that it is met, and the package that brings it.
struct Need(&'static str, &'static str);

/// For the virtual machines and the releases.
const LAB: &[Need] = &[
    Need("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    Need("/usr/bin/mmdebstrap", "mmdebstrap"),
    Need("/usr/sbin/mkfs.ext4", "e2fsprogs"),
    Need("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
    Need("/usr/bin/tar", "tar"),
    Need("/usr/bin/xz", "xz-utils"),
];

/// For building: a C compiler for zstd and the cryptography, and its static sibling.
const BUILD: &[Need] = &[
    Need("/usr/bin/cc", "gcc"),
    Need("/usr/bin/make", "make"),
    Need("/usr/bin/musl-gcc", "musl-tools"),
];

/// What the tests compare with.
const TEST: &[Need] = &[
    Need("/bin/busybox", "busybox-static"),
    Need("/usr/bin/setfattr", "attr"),
    Need("/usr/bin/setfacl", "acl"),
    Need("/usr/bin/xz", "xz-utils"),
    Need("/usr/sbin/nginx", "nginx-light"),
    Need("/usr/bin/systemd-nspawn", "systemd-container"),
    Need("/usr/bin/dbus-daemon", "dbus-daemon"),
];

/// For the power-cut rig: file systems to cut.
const POWERCUT: &[Need] = &[
    Need("/usr/sbin/mkfs.ext4", "e2fsprogs"),
    Need("/usr/sbin/mkfs.xfs", "xfsprogs"),
    Need("/usr/bin/btrfs", "btrfs-progs"),
    Need("/usr/bin/unshare", "util-linux"),
    Need("/usr/sbin/losetup", "mount"),
];

/// The peers of the benchmarks.
const BENCH: &[Need] = &[
    Need("/usr/bin/ostree", "ostree"),
    Need("/usr/bin/time", "time"),
    Need("/usr/bin/casync", "casync"),
    Need("/usr/bin/zck", "zchunk"),
    Need("/usr/bin/zstd", "zstd"),
    Need("/usr/bin/rsync", "rsync"),
];

/// What a command needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    Build,
    FastTests,
    Lab,
    Bench,
    PowerCut,
}

impl For {
    fn needs(self) -> Vec<&'static Need> {
        match self {
            Self::Build => BUILD.iter().collect(),
            Self::FastTests => BUILD.iter().chain(TEST).collect(),
            Self::Lab => BUILD.iter().chain(TEST).chain(LAB).collect(),
            Self::PowerCut => BUILD.iter().chain(POWERCUT).collect(),
            Self::Bench => BUILD.iter().chain(TEST).chain(LAB).chain(BENCH).collect(),
        }
    }
}

/// Makes sure that the packages are there.
///
/// # Errors
/// Not root and something is missing: the error is the line to run.
pub(crate) fn ensure(what: For) -> Result {
    let mut missing: Vec<&str> = what
        .needs()
        .iter()
        .filter(|need| !std::path::Path::new(need.0).exists())
        .map(|need| need.1)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() {
        return Err(format!(
            "these packages are missing; as root run:\n  apt-get update && apt-get install --yes --no-install-recommends {}",
            missing.join(" ")
        )
        .into());
    }
    eprintln!("  installing {}", missing.join(" "));
    output(apt().arg("update"))?;
    let install = |extra: &[&str]| {
        let mut command = apt();
        command.args(["install", "--yes", "--no-install-recommends"]).args(&missing).args(extra);
        output(&mut command)
    };
    // A qemu-utils from the backports wants another qemu-system-common than the release's
    // qemu has. Nothing here uses qemu-utils, so it gives way.
    match install(&[]) {
        Ok(_) => Ok(()),
        Err(_) if missing.contains(&"qemu-system-x86") => {
            eprintln!("  that does not fit together; without qemu-utils:");
            install(&["qemu-utils-"]).map(|_| ())
        }
        Err(error) => Err(error),
    }
}

fn apt() -> std::process::Command {
    let mut command = program("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet");
    command
}

/// Says what the machine must be for the commands that make and mount images.
///
/// # Errors
/// Not root.
pub(crate) fn need_root(command: &str) -> Result {
    if is_root() {
        return Ok(());
    }
    Err(format!(
        "{command} makes disk images and Debian trees with their real owners, so it must run as root:\n  sudo -E env \"PATH=$PATH\" cargo xtask {command}"
    )
    .into())
}

/// The archives that apt on this machine uses: Debian's, and its security updates'.
pub(crate) struct Mirror {
    pub(crate) main: String,
    pub(crate) security: Option<String>,
}

/// Reads the mirror out of apt's own configuration.
///
/// # Errors
/// apt knows no Debian archive.
pub(crate) fn mirror() -> Result<Mirror> {
    let read = || {
        output(program("apt-get").args([
            "indextargets",
            "--format",
            "$(LABEL)|$(REPO_URI)",
            "Created-By: Packages",
        ]))
    };
    let mut text = read()?;
    if !text.contains("Debian|") && is_root() {
        // A fresh machine has no lists yet, and without them apt does not know the labels.
        show(apt().arg("update"))?;
        text = read()?;
    }
    let of = |label: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(label)?.strip_prefix('|'))
            .map(|uri| uri.trim_end_matches('/').to_owned())
    };
    let main = of("Debian")
        .ok_or("apt's configuration names no Debian archive; run apt-get update as root first")?;
    Ok(Mirror { main, security: of("Debian-Security") })
}
