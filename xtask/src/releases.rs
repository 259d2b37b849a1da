//! Real Debian releases as tar files, made by mmdebstrap and kept.
//!
//! ```text
//!   target/varve/releases/<name>-<key>.tar        key: suite, archives, package list
//!                                     .packages   one line each: name version
//! ```
//!
//! A pair is Debian as released and the same with its updates. On the day of a point
//! release the two are the same; then the older one is put together from the versions
//! that the security archive still has and the kernel before the newest, so that an
//! upgrade always changes something real. A third release has one small package more than
//! the updated one ([`one_package()`]).

mod one_package;

use crate::packages::{self, Mirror, mirror};
use crate::project::{Result, cache, is_root, key, output, program, rename, show, step, write};
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use one_package::{one_package, pack};

/// What every release holds beside the kernel.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "openssh-server",
    "curl",
    "ca-certificates",
    "vim",
    "git",
    "network-manager",
    "libgtk-3-0",
];

const KERNEL: &str = "linux-image-cloud-amd64";

/// The other initramfs generator.
pub(crate) const DRACUT: &str = "dracut";

/// Times in a release do not depend on when it was made.
pub(crate) const EPOCH: &str = "1760000000";

/// Which Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Suite {
    Bookworm,
    Trixie,
}

impl Suite {
    pub(crate) fn codename(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// `debian-12`, `debian-13`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "debian-12",
            Self::Trixie => "debian-13",
        }
    }
}

/// Which of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// As released.
    Released,
    /// As released, with the versions before the last point release where they can be had.
    Older,
    /// With all updates.
    Updated,
}

/// One made release.
#[derive(Debug, Clone)]
pub(crate) struct Release {
    /// The tar.
    pub(crate) tar: PathBuf,
    /// `name version` of each package, in order.
    pub(crate) packages: Vec<String>,
}

impl Release {
    /// The version of its kernel, as in `/boot/vmlinuz-VERSION`.
    pub(crate) fn kernel(&self) -> &str {
        self.packages
            .iter()
            .filter_map(|line| line.split(' ').next()?.strip_prefix("linux-image-"))
            .find(|name| name.starts_with(|c: char| c.is_ascii_digit()))
            .unwrap_or("unknown")
    }
}

/// A release and the one that it is upgraded to.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) old: Release,
    pub(crate) new: Release,
}

/// Makes all releases.
pub(crate) fn make_all() -> Result {
    packages::ensure(packages::For::Lab)?;
    for suite in [Suite::Trixie, Suite::Bookworm] {
        let pair = pair(suite)?;
        println!("{}", describe(suite, &pair));
    }
    let dracut = old_with(Suite::Trixie, &[DRACUT])?;
    println!("{} with dracut: {}", Suite::Trixie.name(), dracut.tar.display());
    Ok(())
}

/// What a pair holds, for the user.
pub(crate) fn describe(suite: Suite, pair: &Pair) -> String {
    let changed = pair.new.packages.iter().filter(|line| !pair.old.packages.contains(line)).count();
    let mut text = format!(
        "{}: kernel {} -> {}, {} packages, {changed} of them changed",
        suite.name(),
        pair.old.kernel(),
        pair.new.kernel(),
        pair.new.packages.len()
    );
    for release in [&pair.old, &pair.new] {
        let size = fs::metadata(&release.tar).map(|data| data.len()).unwrap_or_default();
        text.push_str(&format!(
            "\n  {} ({})",
            release.tar.display(),
            crate::project::megabytes(size)
        ));
    }
    text
}

/// The two releases of a suite, made if they are not there.
pub(crate) fn pair(suite: Suite) -> Result<Pair> {
    let mirror = mirror()?;
    let new = make(suite, Age::Updated, &[], &mirror)?;
    let old = make(suite, Age::Released, &[], &mirror)?;
    let old = if old.packages == new.packages {
        eprintln!(
            "  {} as released has every update already; taking older versions for the first release",
            suite.name()
        );
        make(suite, Age::Older, &[], &mirror)?
    } else {
        old
    };
    if old.packages == new.packages {
        return Err(format!(
            "the archives hold only one version of {}: there is nothing to upgrade",
            suite.name()
        )
        .into());
    }
    Ok(Pair { old, new })
}

/// The old release with more packages, such as another initramfs generator.
pub(crate) fn old_with(suite: Suite, extra: &[&str]) -> Result<Release> {
    make(suite, Age::Released, extra, &mirror()?)
}

fn make(suite: Suite, age: Age, extra: &[&str], mirror: &Mirror) -> Result<Release> {
    let codename = suite.codename();
    let mut include: Vec<&str> = PACKAGES.iter().chain(extra).copied().collect();
    if age != Age::Older {
        include.push(KERNEL);
    }
    let age_name = match age {
        Age::Released => "released",
        Age::Older => "older",
        Age::Updated => "updated",
    };
    let recipe = [codename, age_name, EPOCH, &include.join(",")];
    let folder = cache()?.join("releases");
    let stem = format!("{}-{age_name}-{}", suite.name(), key(recipe));
    let [tar, list, part] =
        ["tar", "packages", "part"].map(|end| folder.join(format!("{stem}.{end}")));
    if tar.exists() && list.exists() {
        let packages = fs::read_to_string(&list)?.lines().map(str::to_owned).collect();
        return Ok(Release { tar, packages });
    }
    fs::create_dir_all(&folder)?;
    step(&format!("making {} ({age_name})", suite.name()), || {
        let mut command = program("mmdebstrap");
        command
            .env("SOURCE_DATE_EPOCH", EPOCH)
            .args(["--variant=minbase", "--format=tar"])
            .arg(if is_root() { "--mode=root" } else { "--mode=unshare" })
            .arg(format!("--include={}", include.join(",")));
        if age == Age::Older {
            hooks_for_older(&mut command);
        }
        command.arg(codename).arg(&part).arg(format!("deb {} {codename} main", mirror.main));
        if age == Age::Updated {
            command.arg(format!("deb {} {codename}-updates main", mirror.main));
        }
        if let Some(security) = mirror.security.as_ref().filter(|_| age != Age::Released) {
            command.arg(format!("deb {security} {codename}-security main"));
        }
        output(&mut command)?;
        let packages = packages_of(&part)?;
        write(&list, packages.join("\n"))?;
        rename(&part, &tar)?;
        Ok(Release { tar, packages })
    })
}

/// apt runs inside the new system here. Never run apt outside with mmdebstrap's
/// configuration in a hook: in this mode dpkg is not chrooted then and changes the host.
fn hooks_for_older(command: &mut std::process::Command) {
    command
        .arg(
            "--setup-hook=mkdir -p \"$1/etc/apt/preferences.d\"; \
             printf 'Package: *\\nPin: release l=Debian-Security\\nPin-Priority: 1001\\n' > \"$1/etc/apt/preferences.d/older\"",
        )
        .arg(
            "--customize-hook=kernel=$(chroot \"$1\" apt-cache pkgnames linux-image- \
             | grep -E '^linux-image-[0-9].*-cloud-amd64$' | sort -V | tail -n 2 | head -n 1); \
             chroot \"$1\" apt-get install --yes --no-install-recommends \"$kernel\"",
        )
        .arg("--customize-hook=rm \"$1/etc/apt/preferences.d/older\"");
}

/// `name version` for each installed package of a tar.
fn packages_of(tar: &Path) -> Result<Vec<String>> {
    let status = output(program("tar").arg("-xOf").arg(tar).arg("./var/lib/dpkg/status"))?;
    let (mut packages, mut name) = (Vec::new(), "");
    for line in status.lines() {
        if let Some(value) = line.strip_prefix("Package: ") {
            name = value;
        } else if let Some(version) = line.strip_prefix("Version: ") {
            packages.push(format!("{name} {version}"));
        }
    }
    packages.sort();
    if packages.is_empty() {
        return Err(format!("{} holds no package database", tar.display()).into());
    }
    Ok(packages)
}

/// Unpacks a release with everything that it says about its files.
pub(crate) fn unpack(tar: &Path, folder: &Path) -> Result {
    fs::create_dir_all(folder)?;
    show(
        program("tar")
            .args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"])
            .arg(tar)
            .arg("-C")
            .arg(folder),
    )
}
