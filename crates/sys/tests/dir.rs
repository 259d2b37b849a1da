//! Directories by descriptor: nothing is followed, everything is copied.

use std::os::unix::fs::{MetadataExt, symlink};

use varve_sys::{Attributes, Dir, Walk, durable};

fn temporary() -> (tempfile::TempDir, Dir) {
    let folder = tempfile::tempdir().unwrap();
    let dir = Dir::open(folder.path()).unwrap();
    (folder, dir)
}

#[test]
fn nothing_outside_is_reached() {
    let (folder, dir) = temporary();
    symlink("/etc", folder.path().join("out")).unwrap();
    dir.mkdir("in", 0o755).unwrap();
    assert!(dir.open_dir("in").is_ok());
    for path in ["out", "../x", "in/../..", "/etc", "out/passwd"] {
        assert!(dir.open_dir(path).is_err(), "{path}");
        assert!(dir.open_file(path).is_err(), "{path}");
    }
    let mut walk = Walk::new(dir);
    assert!(walk.dir("out".as_ref()).is_err());
    assert!(walk.parent("in/new".as_ref()).is_ok());
}

/// The kernel gives up a walk through "..", as a link has it, when anything is renamed
/// meanwhile: that is no answer.
#[test]
fn a_path_leads_somewhere_whatever_is_renamed_meanwhile() {
    let (folder, dir) = temporary();
    std::fs::create_dir_all(folder.path().join("usr/sbin")).unwrap();
    std::fs::create_dir_all(folder.path().join("usr/lib")).unwrap();
    dir.open_dir("usr/lib").unwrap().create_file("init", 0o755).unwrap();
    symlink("/usr/sbin", folder.path().join("sbin")).unwrap();
    symlink("../lib/init", folder.path().join("usr/sbin/init")).unwrap();
    symlink("../../../../lib/out", folder.path().join("usr/sbin/out")).unwrap();
    std::thread::scope(|scope| {
        let renames = scope.spawn(|| {
            dir.create_file("a", 0o644).unwrap();
            for _ in 0..20_000 {
                dir.rename_new("a", &dir, "b").unwrap();
                dir.rename_new("b", &dir, "a").unwrap();
            }
        });
        while !renames.is_finished() {
            assert!(dir.leads_somewhere("sbin/init").unwrap());
            assert!(!dir.leads_somewhere("sbin/out").unwrap());
        }
    });
}

#[test]
fn a_replaced_file_is_old_or_new() {
    let (folder, dir) = temporary();
    durable::replace_file(&dir, "f", b"one", 0o600).unwrap();
    durable::replace_file(&dir, "f", b"two", 0o644).unwrap();
    assert_eq!(dir.read("f", 10).unwrap(), b"two");
    assert!(dir.read("f", 2).unwrap_err().to_string().starts_with("cannot read"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_line_cut_off_spoils_only_itself() {
    let (folder, dir) = temporary();
    durable::append_line(&dir, "history", "one").unwrap();
    let mut file = dir.edit_file("history").unwrap();
    file.seek_to(4).unwrap();
    file.write_all(b"tw").unwrap();
    durable::append_line(&dir, "history", "three").unwrap();
    let text = std::fs::read_to_string(folder.path().join("history")).unwrap();
    assert_eq!(text, "one\ntw\nthree\n");
}

#[test]
fn a_copy_has_everything() {
    let (folder, dir) = temporary();
    dir.mkdir("a", 0o750).unwrap();
    let a = dir.open_dir("a").unwrap();
    let mut file = a.create_file("sparse", 0o600).unwrap();
    let mut bytes = vec![0; 1 << 20];
    bytes.extend_from_slice(b"end");
    file.write_sparse(&bytes).unwrap();
    file.set_length(bytes.len() as u64).unwrap();
    let xattrs = vec![((*b"user.k").into(), (*b"v").into())];
    let attributes =
        Attributes { mode: 0o4755, uid: 0, gid: 0, mtime: (77, 123_456_789), xattrs: &xattrs };
    if file.set_attributes(&attributes).is_err() {
        eprintln!("NOTE: run as root on a file system with xattrs to check attributes too");
    }
    a.hard_link("sparse", &a, "again").unwrap();
    a.symlink(b"nowhere", "link").unwrap();
    a.mknod("fifo", 0o010644, 0).unwrap();
    varve_sys::copy::copy_tree(&dir, "a", &dir, "b").unwrap();
    let copy = std::fs::metadata(folder.path().join("b/sparse")).unwrap();
    let source = std::fs::metadata(folder.path().join("a/sparse")).unwrap();
    assert_eq!(copy.mtime_nsec(), source.mtime_nsec());
    assert_eq!(copy.mode(), source.mode());
    assert_eq!((copy.nlink(), copy.len()), (2, bytes.len() as u64));
    assert!(copy.blocks() < 1000, "holes are kept");
    let b = dir.open_dir("b").unwrap();
    assert_eq!(b.xattrs("sparse").unwrap(), a.xattrs("sparse").unwrap());
    assert_eq!(b.read_link("link").unwrap(), b"nowhere");
    dir.remove_all("b").unwrap();
    assert!(dir.stat_opt("b").unwrap().is_none());
}
