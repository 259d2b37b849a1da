//! What the tests of this crate share.

use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use varve_sys::Dir;
use varve_sys::mount::{Overlay, overlay_detached};

/// Whether this process may make devices, owners and mounts. Says so, loudly, when not.
pub(crate) fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("=== NOT RUN: {test} must be root (it makes devices and mounts overlays) ===");
    }
    root
}

/// Mounts directories of `base` (newest first) as the kernel puts them together, and
/// gives the mount's root. The mount goes when the directory is closed.
#[allow(dead_code, reason = "not every test mounts")]
pub(crate) fn kernel_mount(base: &Dir, layers: &[PathBuf]) -> Dir {
    use std::os::fd::AsFd;
    let overlay = Overlay { base: base.fd(), lowers: layers, upper: None, source: "oracle" };
    let made = overlay_detached(&overlay).expect("the kernel mounts these layers");
    assert!(made.refused.is_empty(), "not the options of a boot: {:?}", made.refused);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(made.mount.as_fd(), ".", flags, Mode::empty()).expect("open");
    Dir::from_fd(root, "oracle")
}
