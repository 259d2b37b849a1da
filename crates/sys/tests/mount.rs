//! The mount layer against the real kernel, in a private mount namespace.
//!
//! Needs root. Without it these tests fail and say so; to leave them out knowingly,
//! set `VARVE_TESTS_WITHOUT_ROOT=1`.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use varve_sys::mount::{
    self, Access, MountError, Overlay, OverlayWay, Reach, Upper, overlay_by, overlay_detached,
};
use varve_sys::mountinfo::parse_mountinfo;

/// The ways that this kernel has: `lowerdir+` came with 6.8.
fn ways() -> Vec<OverlayWay> {
    let mut ways = vec![OverlayWay::OneString, OverlayWay::OldMount];
    if kernel() >= (6, 8) {
        ways.push(OverlayWay::OneByOne);
    }
    ways
}

fn kernel() -> (u32, u32) {
    let uname = rustix::system::uname();
    let mut numbers = uname.release().to_str().unwrap().split(['.', '-']);
    let mut next = || numbers.next().unwrap().parse().unwrap();
    (next(), next())
}

/// A directory on a tmpfs of its own, seen by this test's thread alone.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Option<Place> {
        if !rustix::process::geteuid().is_root() {
            let why = "MOUNT TESTS NEED ROOT";
            let allowed = std::env::var_os("VARVE_TESTS_WITHOUT_ROOT").is_some();
            assert!(allowed, "{why}: run as root, or set VARVE_TESTS_WITHOUT_ROOT=1");
            eprintln!("{why}: left out, as VARVE_TESTS_WITHOUT_ROOT says");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        mount::enter_private_namespace().unwrap();
        let place = Place { directory };
        mount::tmpfs_detached(0o755, None).unwrap().attach(rustix::fs::CWD, place.path()).unwrap();
        Some(place)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn directory(&self, name: &str) -> PathBuf {
        std::fs::create_dir_all(self.at(name)).unwrap();
        self.at(name)
    }

    fn open(&self) -> File {
        File::open(self.path()).unwrap()
    }

    /// `count` layers, the newest first; each has a file of its own and `who`.
    fn layers(&self, count: usize) -> Vec<PathBuf> {
        let names: Vec<PathBuf> =
            (0..count).map(|index| PathBuf::from(format!("l/layer-{index:03}"))).collect();
        for (index, name) in names.iter().enumerate() {
            std::fs::create_dir_all(self.path().join(name)).unwrap();
            put(&self.path().join(name).join(format!("file-{index}")), "x");
            put(&self.path().join(name).join("who"), &index.to_string());
        }
        names
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = mount::unmount_lazily(self.path());
    }
}

fn put(path: &Path, text: &str) {
    try_put(path, text).unwrap();
}

fn try_put(path: &Path, text: &str) -> std::io::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path);
    file?.write_all(text.as_bytes())
}

fn get(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn mounts() -> Vec<varve_sys::mountinfo::MountEntry> {
    // The thread's own list: the process's is that of another namespace.
    parse_mountinfo(&std::fs::read("/proc/thread-self/mountinfo").unwrap()).unwrap()
}

fn overlay<'a>(base: &'a File, lowers: &'a [PathBuf], upper: Option<&'a Upper>) -> Overlay<'a> {
    Overlay { base: std::os::fd::AsFd::as_fd(base), lowers, upper, source: "varve" }
}

#[test]
fn read_only_overlays_of_2_64_and_200_lowers_by_every_way() {
    let Some(place) = Place::new() else { return };
    let base = place.open();
    let root = place.directory("root");
    for count in [2, 64, 200] {
        let lowers = place.layers(count);
        for way in ways() {
            if way == OverlayWay::OneString && count > 2 {
                let error = overlay_by(&overlay(&base, &lowers, None), &[way]).unwrap_err();
                assert!(matches!(error, MountError::Option { .. }), "longer than 255 bytes");
                continue;
            }
            let made = overlay_by(&overlay(&base, &lowers, None), &[way]).unwrap();
            assert_eq!((made.way, &made.refused[..]), (way, &[][..]));
            made.mount.attach(rustix::fs::CWD, &root).unwrap();
            assert_eq!(get(&root.join("who")), "0", "the newest wins");
            assert_eq!(std::fs::read_dir(&root).unwrap().count(), count + 1);
            let error = try_put(&root.join("who"), "me").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
            let entry = mounts().into_iter().find(|entry| entry.mount_point == root).unwrap();
            assert_eq!(entry.filesystem, "overlay");
            assert_eq!(entry.source, Path::new("varve"));
            assert!(entry.super_options.contains("layer-000"), "{}", entry.super_options);
            assert!(entry.super_options.contains("redirect_dir=nofollow"), "{entry:?}");
            mount::unmount_lazily(&root).unwrap();
        }
    }
}

/// 200 names of 60 bytes are three pages: the old call gets them as descriptors.
#[test]
fn names_longer_than_a_page_in_all() {
    let Some(place) = Place::new() else { return };
    let base = place.open();
    let root = place.directory("root");
    let long = "x".repeat(50);
    let lowers: Vec<PathBuf> =
        (0..200).map(|index| PathBuf::from(format!("{long}/{index}"))).collect();
    for (index, lower) in lowers.iter().enumerate() {
        put(&place.directory(lower.to_str().unwrap()).join(index.to_string()), "x");
    }
    for (index, way) in ways().into_iter().enumerate() {
        if way == OverlayWay::OneString {
            continue;
        }
        let name = |what: &str| PathBuf::from(format!("up-{index}/{what}"));
        let upper = Upper { upper: name("upper"), work: name("work") };
        place.directory(upper.upper.to_str().unwrap());
        place.directory(upper.work.to_str().unwrap());
        let made = overlay_by(&overlay(&base, &lowers, Some(&upper)), &[way]).unwrap();
        made.mount.attach(rustix::fs::CWD, &root).unwrap();
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 200);
        put(&root.join("new"), "x");
        mount::unmount_lazily(&root).unwrap();
        assert_eq!(get(&place.path().join(&upper.upper).join("new")), "x");
    }
}

#[test]
fn changes_go_to_the_upper_directory() {
    let Some(place) = Place::new() else { return };
    let base = place.open();
    let root = place.directory("root");
    let lowers = place.layers(1);
    for (index, way) in ways().into_iter().enumerate() {
        let name = |what: &str| PathBuf::from(format!("up-{index}/{what}"));
        let upper = Upper { upper: name("upper"), work: name("work") };
        std::fs::create_dir_all(place.path().join(&upper.upper)).unwrap();
        std::fs::create_dir_all(place.path().join(&upper.work)).unwrap();
        let made = overlay_by(&overlay(&base, &lowers, Some(&upper)), &[way]).unwrap();
        made.mount.attach(rustix::fs::CWD, &root).unwrap();
        put(&root.join("who"), "me");
        std::fs::remove_file(root.join("file-0")).unwrap();
        mount::unmount_lazily(&root).unwrap();
        assert_eq!(get(&place.path().join(&upper.upper).join("who")), "me");
        assert_eq!(get(&place.path().join(&lowers[0]).join("who")), "0", "the layer is untouched");
        assert!(place.path().join(&lowers[0]).join("file-0").exists());
    }
}

#[test]
fn names_that_hold_the_kernels_own_separators() {
    let Some(place) = Place::new() else { return };
    let base = place.open();
    let root = place.directory("root");
    let names = ["a:b", "c,d", "e\\f", "g h", "i\\:j"];
    let lowers: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
    for lower in &lowers {
        put(&place.directory(lower.to_str().unwrap()).join(lower), "x");
    }
    for way in ways() {
        let upper =
            Upper { upper: format!("u{way:?}:,\\").into(), work: format!("w{way:?},").into() };
        place.directory(upper.upper.to_str().unwrap());
        place.directory(upper.work.to_str().unwrap());
        let made = overlay_by(&overlay(&base, &lowers, Some(&upper)), &[way]);
        if way == OverlayWay::OneString && kernel() < (6, 5) {
            let error = made.unwrap_err();
            assert!(error.to_string().contains("comma"), "no commas by this way: {error}");
            continue;
        }
        made.unwrap().mount.attach(rustix::fs::CWD, &root).unwrap();
        for name in names {
            assert_eq!(get(&root.join(name)), "x", "{name} by {way:?}");
        }
        put(&root.join("new"), "here");
        mount::unmount_lazily(&root).unwrap();
        assert_eq!(get(&place.path().join(&upper.upper).join("new")), "here");
    }
}

#[test]
fn too_few_lowers_and_missing_ones_are_named() {
    let Some(place) = Place::new() else { return };
    let base = place.open();
    let lowers = place.layers(1);
    let error = overlay_detached(&overlay(&base, &lowers, None)).unwrap_err();
    assert!(matches!(error, MountError::TooFewLowers { lowers: 1 }), "{error}");
    let lowers = [lowers[0].clone(), PathBuf::from("l/not-there")];
    let error = overlay_detached(&overlay(&base, &lowers, None)).unwrap_err();
    assert_eq!(error.io().unwrap().kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("l/not-there"), "{error}");
    let too_many: Vec<PathBuf> = place.layers(501);
    let error = overlay_detached(&overlay(&base, &too_many, None)).unwrap_err();
    assert_eq!(error.io().unwrap().kind(), ErrorKind::InvalidInput, "{error}");
}

#[test]
fn what_is_dropped_unattached_leaves_nothing() {
    let Some(place) = Place::new() else { return };
    let base = place.open();
    let lowers = place.layers(3);
    let before = mounts();
    for way in ways() {
        drop(overlay_by(&overlay(&base, &lowers, None), &[way]).unwrap());
        assert_eq!(mounts(), before);
    }
}

#[test]
fn binds_are_read_only_or_not_and_private() {
    let Some(place) = Place::new() else { return };
    let base = place.open();
    put(&place.directory("tree/sub").join("file"), "x");
    let (one, two) = (place.directory("one"), place.directory("two"));
    mount::tmpfs_detached(0o700, Some(1 << 20))
        .unwrap()
        .attach(&base, Path::new("tree/sub"))
        .unwrap();
    put(&place.at("tree/sub/inner"), "y");

    let bind =
        |access, reach| mount::bind_detached(&base, Path::new("tree"), access, reach).unwrap();
    bind(Access::ReadOnly, Reach::Alone).attach(&base, Path::new("one")).unwrap();
    assert_eq!(get(&one.join("sub/file")), "x", "the mount below does not come along");
    let error = try_put(&one.join("new"), "z").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    put(&place.at("tree/new"), "z");

    bind(Access::ReadOnly, Reach::WithSubmounts).attach(&base, Path::new("two")).unwrap();
    assert_eq!(get(&two.join("sub/inner")), "y");
    let error = try_put(&two.join("sub/new"), "z").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    mount::set_access(rustix::fs::CWD, &two, Access::ReadWrite).unwrap();
    put(&two.join("now"), "w");
    assert_eq!(get(&place.at("tree/now")), "w");
}

#[test]
fn a_read_only_file_system_becomes_writable() {
    let Some(place) = Place::new() else { return };
    let target = place.directory("disk");
    mount::tmpfs_detached(0o755, None).unwrap().attach(rustix::fs::CWD, &target).unwrap();
    rustix::mount::mount_remount(&target, rustix::mount::MountFlags::RDONLY, c"").unwrap();
    mount::set_access(rustix::fs::CWD, &target, Access::ReadOnly).unwrap();
    assert_eq!(try_put(&target.join("a"), "").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    mount::make_writable(rustix::fs::CWD, &target).unwrap();
    put(&target.join("a"), "b");
    // By descriptor as well.
    rustix::mount::mount_remount(&target, rustix::mount::MountFlags::RDONLY, c"").unwrap();
    mount::make_writable(File::open(&target).unwrap(), Path::new("")).unwrap();
    put(&target.join("a"), "c");
}
