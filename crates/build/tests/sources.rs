//! Everything that a Linux tree can hold arrives, and arrives the same from a directory
//! and from the archives that real programs make of it.

mod common;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Archive, Place, content, is_root, paths, run, shown, tar_source};
use varve_build::Source;
use varve_format::TreePath;
use varve_format::manifest::Manifest;
use varve_format::tree::{Device, Entry, Kind};
use varve_sys::{Attributes, Dir};

/// A tree with all that the file system takes. True when made as root.
fn rich_tree(place: &Place) -> bool {
    let root = is_root();
    let repo = place.repo();
    drop(repo);
    let top = Dir::open(place.path("")).unwrap().make_dir("tree", 0o755).unwrap();
    let write = |dir: &Dir, name: &[u8], bytes: &[u8]| {
        let name = std::ffi::OsStr::from_bytes(name);
        let mut file = dir.create_file(name, 0o644).unwrap();
        file.write_all(bytes).unwrap();
    };
    let etc = top.make_dir("etc", 0o755).unwrap();
    write(&etc, b"hostname", b"varve\n");
    write(&etc, b"empty", b"");
    write(&etc, b"new\nline", b"1");
    write(&etc, b"not utf-8 \xff\xfe", b"2");
    write(&etc, b"-dash \\ back\tslash = %41 ", b"3");
    write(&etc, &[b'n'; 255], b"4");
    write(&etc, b"private", b"5");
    write(&etc, b"labelled", b"6");
    write(&etc, b"shared", b"7");
    let deep = (0..30).fold(top.try_clone().unwrap(), |dir, _| {
        dir.make_dir("a-rather-long-directory-name", 0o700).unwrap()
    });
    write(&deep, b"deep", b"far down");
    write(&top, b"big", &noise(9 << 20));
    write(&top, b"middle", &noise(1_500_000));
    let mut sparse = top.create_file("sparse", 0o600).unwrap();
    for at in [0u64, 3 << 20, 40 << 20] {
        sparse.seek_to(at).unwrap();
        sparse.write_all(b"data between holes").unwrap();
    }
    sparse.set_length(50 << 20).unwrap();
    let mut hole = top.create_file("hole", 0o600).unwrap();
    hole.set_length(10 << 20).unwrap();
    let bin = top.make_dir("bin", 0o755).unwrap();
    write(&bin, b"b-first", b"#!/bin/true\n");
    bin.hard_link("b-first", &top, "another").unwrap();
    bin.hard_link("b-first", &bin, "z-last").unwrap();
    top.symlink(b"bin/b-first", "link").unwrap();
    top.symlink("t/".repeat(1000).as_bytes(), "long-link").unwrap();
    top.symlink(b"new\nline\xff", "odd-link").unwrap();
    top.hard_link("link", &bin, "link-again").unwrap();
    top.mknod("fifo", 0o010640, 0).unwrap();
    if root {
        top.mknod("null", 0o020666, rustix::fs::makedev(1, 3)).unwrap();
        top.mknod("disk", 0o060660, rustix::fs::makedev(259, 70000)).unwrap();
    }
    let attributes = |mode, mtime, xattrs: &[(&[u8], &[u8])]| {
        let owned: varve_sys::Xattrs =
            xattrs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        (mode, mtime, owned)
    };
    let me = top.stat("etc").unwrap();
    let set = |dir: &Dir, name: &str, ids: (u32, u32), what: (u32, (i64, u32), Vec<_>)| {
        let (mode, mtime, xattrs) = what;
        let ids = if root { ids } else { (me.uid, me.gid) };
        let attributes = Attributes { mode, uid: ids.0, gid: ids.1, mtime, xattrs: &xattrs };
        dir.set_attributes(name, &attributes).unwrap();
    };
    let binary = (0..=255).collect::<Vec<u8>>().repeat(4);
    let user: [(&[u8], &[u8]); 4] = [
        (b"user.binary", &binary),
        (b"user.empty", b""),
        (b"user.odd=na%me", b"\n=\n"),
        (b"user.name with space", b"v"),
    ];
    set(&etc, "private", (1000, 4_000_000_000), attributes(0o600, (1, 0), &user));
    set(&bin, "b-first", (0, 0), attributes(0o4755, (1_700_000_000, 123_456_789), &[]));
    set(&etc, "hostname", (0, 0), attributes(0o644, (-5, 250_000_000), &[]));
    set(&etc, "empty", (3_000_000, 7), attributes(0o2640, (9_000_000_000, 1), &[]));
    set(&top, "fifo", (0, 5), attributes(0o640, (1_600_000_000, 999_999_999), &[]));
    set(&top, "link", (12, 13), attributes(0, (1_500_000_000, 5), &[]));
    if root {
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let security: [(&[u8], &[u8]); 2] =
            [(b"security.capability", &capability), (b"trusted.note", b"mine")];
        set(&etc, "labelled", (0, 0), attributes(0o755, (77, 7), &security));
        etc.set_xattr("labelled", b"security.selinux", b"system_u:object_r:etc_t:s0\0").unwrap();
    }
    run("setfacl", &["-m", "u:1234:rw,g:77:r", "etc/shared"], &place.path("tree"));
    run("setfacl", &["-d", "-m", "u:1234:rwx", "bin"], &place.path("tree"));
    set(&top, "bin", (0, 0), attributes(0o1777, (1_400_000_000, 42), &[]));
    root
}

/// Bytes that do not compress, always the same.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

fn get<'a>(manifest: &'a Manifest, path: &[u8]) -> &'a Entry {
    let path = TreePath::new(path).unwrap();
    manifest.inode(manifest.get(&path).unwrap_or_else(|| panic!("{path} is not there")))
}

fn directory(path: &Path) -> Source {
    Source::Directory(Dir::open(path).unwrap())
}

/// The first line that differs, for a failure that can be read.
fn assert_same(a: &Manifest, b: &Manifest, what: &str) {
    let (a, b) = (a.to_text(), b.to_text());
    let (mut a, mut b) = (a.split(|&b| b == b'\n'), b.split(|&b| b == b'\n'));
    loop {
        let (x, y) = (a.next(), b.next());
        assert_eq!(x.map(String::from_utf8_lossy), y.map(String::from_utf8_lossy), "{what}");
        if x.is_none() {
            return;
        }
    }
}

#[test]
fn a_directory_arrives_whole() {
    let place = Place::new();
    let root = rich_tree(&place);
    let report = place.build("a", directory(&place.path("tree"))).unwrap();
    let manifest = place.manifest(&report);
    assert_eq!(manifest, varve_build::scan(&Dir::open(place.path("tree")).unwrap()).unwrap());
    assert_eq!(report.record.totals, manifest.totals());

    let first = get(&manifest, b"another");
    assert_eq!(first.meta.mode, 0o4755);
    assert_eq!(
        (first.meta.mtime.seconds, first.meta.mtime.nanoseconds),
        (1_700_000_000, 123_456_789)
    );
    for name in [&b"bin/b-first"[..], b"bin/z-last"] {
        assert_eq!(get(&manifest, name), first, "three names, one inode");
    }
    assert_eq!(get(&manifest, b"bin/link-again").path.to_string(), "/bin/link-again");
    assert!(
        matches!(&get(&manifest, b"link").kind, Kind::Symlink { target } if **target == *b"bin/b-first")
    );
    assert_eq!(get(&manifest, b"etc/hostname").meta.mtime.seconds, -5);
    assert_eq!(get(&manifest, b"etc/private").meta.xattrs.len(), 4);
    assert!(matches!(get(&manifest, b"etc/empty").kind, Kind::Regular { size: 0, .. }));
    assert!(
        matches!(get(&manifest, b"sparse").kind, Kind::Regular { size, .. } if size == 50 << 20)
    );
    assert_eq!(content(&place, &report, "big"), noise(9 << 20));
    let names = paths(&manifest);
    assert!(names.contains(&"/etc/new\\nline".to_owned()));
    assert!(names.contains(&"/etc/not utf-8 \\xff\\xfe".to_owned()));
    if root {
        assert_eq!(get(&manifest, b"null").kind, Kind::CharDevice(Device(0x103)));
        assert_eq!(
            get(&manifest, b"disk").kind,
            Kind::BlockDevice(Device(rustix::fs::makedev(259, 70000)))
        );
        assert_eq!(get(&manifest, b"etc/private").meta.gid, 4_000_000_000);
        let names: Vec<_> =
            get(&manifest, b"etc/labelled").meta.xattrs.iter().map(|x| x.0.clone()).collect();
        let want: [&[u8]; 3] = [b"security.capability", b"security.selinux", b"trusted.note"];
        assert_eq!(names, want.map(Box::from));
    }
}

#[test]
fn tar_of_a_directory_is_the_same_release() {
    let place = Place::new();
    rich_tree(&place);
    let want = varve_build::scan(&Dir::open(place.path("tree")).unwrap()).unwrap();
    let forms: [(&str, &[&str]); 5] = [
        ("pax, all xattrs", &["--format=posix", "--xattrs", "--xattrs-include=*"]),
        ("pax, sparse 1.0", &["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse"]),
        (
            "pax, sparse 0.1",
            &[
                "--format=posix",
                "--xattrs",
                "--xattrs-include=*",
                "--sparse",
                "--sparse-version=0.1",
            ],
        ),
        (
            "pax, sparse 0.0",
            &[
                "--format=posix",
                "--xattrs",
                "--xattrs-include=*",
                "--sparse",
                "--sparse-version=0.0",
            ],
        ),
        (
            "pax, ACLs in words",
            &[
                "--format=posix",
                "--xattrs",
                "--xattrs-exclude=system.*",
                "--xattrs-include=*",
                "--acls",
                "--selinux",
                "--numeric-owner",
            ],
        ),
    ];
    for (what, options) in forms {
        let mut command = vec!["-C", "tree", "-cf", "t.tar"];
        command.extend_from_slice(options);
        command.push(".");
        assert!(run("tar", &command, &place.path("")), "tar is needed");
        let report = place.build("tar", Source::open(&place.path("t.tar")).unwrap()).expect(what);
        assert_same(&place.manifest(&report), &want, what);
    }
    // GNU's own form has whole seconds and no attributes: the rest must be the same.
    run("tar", &["-C", "tree", "--format=gnu", "--sparse", "-cf", "g.tar", "."], &place.path(""));
    let report = place.build("gnu", Source::open(&place.path("g.tar")).unwrap()).unwrap();
    let gnu = place.manifest(&report);
    let mut stripped = want.entries().to_vec();
    for entry in &mut stripped {
        entry.meta.mtime.nanoseconds = 0;
        entry.meta.xattrs.clear();
    }
    let mut rounded = gnu.entries().to_vec();
    for entry in &mut rounded {
        entry.meta.mtime.nanoseconds = 0;
    }
    assert_same(
        &Manifest::from_entries(rounded).unwrap(),
        &Manifest::from_entries(stripped).unwrap(),
        "GNU form",
    );
    if Command::new("bsdtar").arg("--version").output().is_ok() {
        run("bsdtar", &["-C", "tree", "--format=pax", "-cf", "b.tar", "."], &place.path(""));
        let report = place.build("bsd", Source::open(&place.path("b.tar")).unwrap()).unwrap();
        assert_same(&place.manifest(&report), &want, "bsdtar");
    } else {
        eprintln!("NOTE: bsdtar is not installed: its archives are tested by hand-made ones only");
    }
}

#[test]
fn archives_come_through_pipes_and_compressed() {
    let place = Place::new();
    rich_tree(&place);
    let tar = ["-C", "tree", "--format=posix", "--xattrs", "--xattrs-include=*", "-cf"];
    run("tar", &[&tar[..], &["t.tar", "."]].concat(), &place.path(""));
    let plain = place.build("plain", Source::open(&place.path("t.tar")).unwrap()).unwrap();
    for (program, name) in [("gzip", "t.tar.gz"), ("zstd", "t.tar.zst")] {
        if run(program, &["-k", "-q", "t.tar"], &place.path("")) {
            let packed = place.build(program, Source::open(&place.path(name)).unwrap()).unwrap();
            assert_eq!(packed.record.digest, plain.record.digest, "{program}");
            assert!(packed.pack.is_none(), "nothing is new");
        }
    }
    // A pipe: the writer gets rid of all it writes, trailing blocks included.
    let mut child = Command::new("tar")
        .args([&tar[..], &["-", "-b", "2000", "."]].concat())
        .current_dir(place.path(""))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let reader = Box::new(child.stdout.take().unwrap());
    let source = Source::Tar { reader, name: "standard input".into(), size: None };
    let piped = place.build("piped", source).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(piped.record.digest, plain.record.digest);
}

#[test]
fn archives_in_a_strange_order_make_the_tree_that_extracting_makes() {
    let place = Place::new();
    let bytes = Archive::default()
        .file("usr/share/doc/x", b"parents are missing")
        .file("twice", b"one")
        .link("other-name", "twice")
        .file("twice", b"two")
        .file("late/file", b"x")
        .entry("late", b'5', "", b"")
        .symlink("s", "nowhere")
        .dir("s")
        .file("s/inside", b"now a directory")
        .dir("e")
        .file("e", b"an empty directory gives way")
        .file(".//a/.//b", b"dots and slashes")
        .end();
    let bytes = [bytes, b"garbage behind the end".to_vec()].concat();
    let report = place.build_tar("a", &bytes).unwrap();
    let manifest = place.manifest(&report);
    let want = [
        "/a",
        "/a/b",
        "/e",
        "/late",
        "/late/file",
        "/other-name",
        "/s",
        "/s/inside",
        "/twice",
        "/usr",
        "/usr/share",
        "/usr/share/doc",
        "/usr/share/doc/x",
    ];
    assert_eq!(paths(&manifest), want);
    assert_eq!(content(&place, &report, "twice"), b"two");
    assert_eq!(content(&place, &report, "other-name"), b"one", "the link keeps its inode");
    let missing = get(&manifest, b"usr/share");
    assert_eq!((missing.meta.mode, missing.meta.mtime.seconds), (0o755, 0));
    assert_eq!(get(&manifest, b"late").meta.mtime.seconds, 0o15071674000);
    assert_eq!(get(&manifest, b"").meta.mode, 0o755);
}

#[test]
fn attributes_in_the_forms_of_other_programs() {
    let place = Place::new();
    let bytes = Archive::default()
        .pax(&[
            ("LIBARCHIVE.xattr.user.a%20b", b"AQID"),
            ("SCHILY.xattr.user.c", b"\n\0="),
            ("RHT.security.selinux", b"u:r:t:s0"),
            ("SCHILY.acl.access", b"user::rw-,user:lisa:rw-:1000,group::r--,mask::rw-,other::r--"),
            ("path", b"a \xff\n name"),
            ("mtime", b"1700000000.000000001"),
            ("uid", b"4000000000"),
            ("comment", b"nothing"),
        ])
        .file("short", b"x")
        .file("next", b"has none of it")
        .end();
    let manifest = place.manifest(&place.build_tar("a", &bytes).unwrap());
    let entry = get(&manifest, b"a \xff\n name");
    let want: [(&[u8], &[u8]); 4] = [
        (b"security.selinux", b"u:r:t:s0\0"),
        (
            b"system.posix_acl_access",
            b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x06\0\xe8\x03\0\0\
              \x04\0\x04\0\xff\xff\xff\xff\x10\0\x06\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff",
        ),
        (b"user.a b", b"\x01\x02\x03"),
        (b"user.c", b"\n\0="),
    ];
    let have: Vec<(&[u8], &[u8])> =
        entry.meta.xattrs.iter().map(|(n, v)| (&n[..], &v[..])).collect();
    assert_eq!(have, want);
    assert_eq!((entry.meta.uid, entry.meta.mtime.nanoseconds), (4_000_000_000, 1));
    assert!(get(&manifest, b"next").meta.xattrs.is_empty());
}

#[test]
fn a_file_longer_than_eight_gibibytes() {
    // 8 GiB + 5 of hole: no size in octal can say that.
    let place = Place::new();
    let top = Dir::open(place.path("")).unwrap().make_dir("tree", 0o755).unwrap();
    let mut file = top.create_file("huge", 0o600).unwrap();
    file.seek_to(8 << 30).unwrap();
    file.write_all(b"tail!").unwrap();
    let pattern = (8u64 << 30) + 5;
    run("tar", &["-C", "tree", "--format=gnu", "--sparse", "-cf", "t.tar", "."], &place.path(""));
    let report = place.build("a", Source::open(&place.path("t.tar")).unwrap()).unwrap();
    assert_eq!(report.record.totals.bytes, pattern);
    assert!(report.pack.unwrap().size < 4 << 20, "zeros compress");
    let place = Place::new();
    let mut size = vec![0x80, 0, 0, 0];
    size.extend(pattern.to_be_bytes());
    let bytes = Archive::default().raw(b"a", b'0', b"", &size, b"few").end();
    assert!(shown(&place.build("a", tar_source(&bytes)).unwrap_err()).contains("is cut off"));
}

#[test]
fn what_cannot_be_built_is_refused() {
    let place = Place::new();
    let top = Dir::open(place.path("")).unwrap().make_dir("tree", 0o755).unwrap();
    if is_root() {
        top.make_dir("upper", 0o755).unwrap();
        top.set_xattr("upper", b"trusted.overlay.opaque", b"y").unwrap();
        let error = place.build("a", directory(&place.path("tree"))).unwrap_err();
        let text = shown(&error);
        assert!(text.starts_with("/upper has the private overlayfs attribute"), "{text}");
        assert!(text.contains("build from the merged view"), "{text}");
    }
    let error = Source::open(&place.path("not there")).err().unwrap();
    assert!(shown(&error).contains("not there"), "{}", shown(&error));
}

#[test]
fn a_mounted_directory_is_named() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let top = Dir::open(place.path("")).unwrap().make_dir("tree", 0o755).unwrap();
    top.make_dir("proc", 0o755).unwrap();
    // In a mount namespace of its own, so that nothing is left behind; the test program
    // runs itself again there.
    if std::env::var_os("VARVE_TEST_MOUNTED").is_none() {
        let me = std::env::current_exe().unwrap();
        let output = Command::new("unshare")
            .args(["-m", "sh", "-c", "mount -t tmpfs none \"$1/proc\" && exec \"$2\" --exact a_mounted_directory_is_named --nocapture", "sh"])
            .arg(place.path("tree"))
            .arg(me)
            .env("VARVE_TEST_MOUNTED", place.path("tree"))
            .output();
        match output {
            Ok(output) => assert!(
                output.status.success(),
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(error) => eprintln!("NOTE: unshare cannot run ({error}): mounts NOT TESTED"),
        }
        return;
    }
    let tree = std::env::var_os("VARVE_TEST_MOUNTED").unwrap();
    let error = varve_build::scan(&Dir::open(tree).unwrap()).unwrap_err();
    assert!(
        shown(&error).contains("/proc lies on another file system: unmount it"),
        "{}",
        shown(&error)
    );
}

#[test]
fn a_tree_deeper_than_the_limit_on_descriptors() {
    let place = Place::new();
    let mut dir = Dir::open(place.path("")).unwrap().make_dir("tree", 0o755).unwrap();
    for _ in 0..1100 {
        dir = dir.make_dir("d", 0o755).unwrap();
    }
    dir.create_file("f", 0o600).unwrap().write_all(b"x").unwrap();
    let report = place.build("a", directory(&place.path("tree"))).unwrap();
    assert_eq!(report.record.totals.paths, 1102);
}
