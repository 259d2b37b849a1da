//! A virtual machine with Debian's own kernel, for what the kernel at hand has not: it runs one
//! program in the workspace, and its report comes out as it is written.
//!
//! ```text
//!   target/varve/guests/<key>/{disk.img,vmlinuz,initrd.img}     key: suite, package list
//!
//!   qemu ── disk.img, read only; init is a shell on the serial line
//!     |---- /run/workspace   this workspace (9p): what is kept there is on the host
//!     '---- /run/program     the folder of the program (9p)
//! ```

use crate::packages::mirror;
use crate::project::{Result, cache, key, output, program, rename, root, step};
use crate::releases::{EPOCH, Suite};
use crate::trees::remove;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use varve_testkit::vm::lab::{BOOT, COMMAND};
use varve_testkit::vm::{Config, Machine, disk};

/// The kernel with all modules (the one for clouds has neither F2FS nor 9p), and the tools of
/// the file systems.
const PACKAGES: &[&str] =
    &["linux-image-amd64", "kmod", "mount", "e2fsprogs", "xfsprogs", "btrfs-progs", "f2fs-tools"];

/// What the kernel is asked for before the program runs.
const MODULES: &str = "9pnet_virtio 9p loop fuse overlay ext4 xfs btrfs f2fs";

const DISK: u64 = 1 << 30;
/// Of the machine, in MiB. The rig works in memory.
const MEMORY: u32 = 4096;
/// Between two lines of the program.
const SILENCE: Duration = Duration::from_secs(3 * 3600);
/// The last line is this, and the program's exit code.
const ENDED: &str = "varve-guest-ended";

/// What the machine boots.
struct Image {
    disk: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

/// Runs a static program of this host in the machine, with the workspace as its directory and
/// as root. Gives whether it ended well.
///
/// # Errors
/// The machine cannot be made or started, or ends before the program.
pub(crate) fn run(file: &Path, arguments: &[OsString]) -> Result<bool> {
    let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(format!("{} is no program", file.display()).into());
    };
    let image = make()?;
    // Sockets need a short path.
    let sockets = tempfile::tempdir()?;
    let mut config = Config::new(sockets.path(), &image.kernel, &image.initrd, &image.disk);
    config.append = "root=/dev/vda ro quiet init=/bin/bash".to_owned();
    config.memory = MEMORY;
    config.shares = vec![("workspace", root().to_owned()), ("program", folder.to_owned())];
    let name = quoted(&name.to_string_lossy());
    let mut machine = step("booting Debian in a virtual machine", || Ok(prepared(&config)?))?;
    let words = arguments.iter().map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>();
    machine.console.send_line(&format!(
        "cp /run/program/{name} /tmp; cd /run/workspace; \
         /tmp/{name} {} 2>&1 </dev/null; printf '\\n%s %s\\n' {ENDED} $?",
        words.join(" ")
    ))?;
    let mut blank = false;
    loop {
        let line = machine.console.expect("\n", SILENCE)?;
        let line = line.trim_end_matches('\r');
        if let Some(code) = line.strip_prefix(ENDED) {
            machine.kill();
            return match code.trim() {
                "0" => Ok(true),
                "1" => Ok(false),
                code => Err(format!("in the machine it ended with {code}").into()),
            };
        }
        // The line that the mark begins with is not the program's.
        if std::mem::replace(&mut blank, line.is_empty()) {
            println!();
        }
        if !blank {
            println!("{line}");
        }
    }
}

/// Starts the machine, and has everything there that the program needs.
fn prepared(config: &Config) -> varve_testkit::vm::Result<Machine> {
    let mut machine = config.start()?;
    machine.console.expect("/# ", BOOT)?;
    machine.shell(BOOT)?;
    machine.check("mount -t tmpfs tmpfs /tmp", COMMAND)?;
    machine.check(&format!("modprobe --all {MODULES}"), COMMAND)?;
    for (name, _) in &config.shares {
        let options = "trans=virtio,version=9p2000.L,msize=1048576";
        let place = format!("/run/{name}");
        machine
            .check(&format!("mkdir {place}; mount -t 9p -o {options} {name} {place}"), COMMAND)?;
    }
    Ok(machine)
}

/// As a shell reads it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Makes the image, or finds it made.
fn make() -> Result<Image> {
    let suite = Suite::Trixie.codename();
    let include = PACKAGES.join(",");
    let folder = cache()?.join("guests").join(key([suite, EPOCH, &include]));
    let image = |folder: &Path| Image {
        disk: folder.join("disk.img"),
        kernel: folder.join("vmlinuz"),
        initrd: folder.join("initrd.img"),
    };
    if folder.exists() {
        return Ok(image(&folder));
    }
    let part = folder.with_extension("part");
    remove(&part)?;
    fs::create_dir_all(&part)?;
    step("making a small Debian with its own kernel", || {
        let tree = part.join("tree");
        let mut command = program("mmdebstrap");
        command
            .env("SOURCE_DATE_EPOCH", EPOCH)
            .args(["--variant=minbase", "--mode=root", "--format=directory"])
            .arg(format!("--include={include}"))
            .args(
                ["doc", "man", "locale"]
                    .map(|what| format!("--dpkgopt=path-exclude=/usr/share/{what}/*")),
            )
            .arg(suite)
            .arg(&tree)
            .arg(format!("deb {} {suite} main", mirror()?.main));
        output(&mut command)?;
        let image = image(&part);
        disk::make_ext4_from(&image.disk, DISK, &tree)?;
        for (begins, to) in [("vmlinuz-", &image.kernel), ("initrd.img-", &image.initrd)] {
            output(program("cp").arg(boot_file(&tree, begins)?).arg(to))?;
        }
        remove(&tree)?;
        rename(&part, &folder)
    })?;
    Ok(image(&folder))
}

/// The file of the only kernel that is there.
fn boot_file(tree: &Path, begins: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(tree.join("boot"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(begins) {
            return Ok(entry.path());
        }
    }
    Err(format!("{} holds no {begins}", tree.display()).into())
}
