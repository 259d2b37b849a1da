//! Archives that are damaged or out to do harm: each is refused with a message that says
//! what to do, and leaves a repository that the next build uses as if nothing had been.

mod common;

use common::{Archive, Place, seal, shown};

fn tar() -> Archive {
    Archive::default().dir("./").dir("./etc")
}

/// GNU's base 256 for a size.
fn huge(size: u64) -> Vec<u8> {
    let mut field = vec![0x80, 0, 0, 0];
    field.extend(size.to_be_bytes());
    field
}

#[test]
fn each_is_refused_with_its_reason() {
    let long_name = format!("{}/x", "d".repeat(256));
    let deep = "d/".repeat(2100);
    let file = tar().file("a", b"data").end();
    let mut wrong_sum = tar().file("a", b"data").end();
    wrong_sum[1024 + 3] ^= 1;
    let mut mode = tar().file("a", b"x");
    let at = mode.0.len() - 1024;
    mode.0[at + 100..at + 107].copy_from_slice(b"00x0644");
    let mut block: [u8; 512] = mode.0[at..at + 512].try_into().unwrap();
    seal(&mut block);
    mode.0[at..at + 512].copy_from_slice(&block);
    let overlay = [("SCHILY.xattr.trusted.overlay.opaque", &b"y"[..])];
    let huge_value = vec![7; 65537];
    let huge_xattr = [("SCHILY.xattr.user.big", &huge_value[..])];
    let too_long = vec![b'x'; 5 << 20];
    let sparse = |map: &str, real: &str, data: &[u8]| {
        let mut body = map.as_bytes().to_vec();
        body.resize(512, 0);
        body.extend_from_slice(data);
        let records = [
            ("GNU.sparse.major", &b"1"[..]),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"s"),
            ("GNU.sparse.realsize", real.as_bytes()),
        ];
        tar().pax(&records).file("s", &body).end()
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("absolute", tar().file("/etc/passwd", b"x").end(), "is absolute: make the archive"),
        ("climbing", tar().file("etc/../../x", b"x").end(), "has a component . or .."),
        ("only climbing", tar().dir("..").end(), "has a component . or .."),
        ("link climbs", tar().link("a", "../x").end(), "has a component . or .."),
        ("link absolute", tar().link("a", "/etc/shadow").end(), "is absolute"),
        ("no name", tar().entry("", b'0', "", b"").end(), "without a name"),
        (
            "through a symbolic link",
            tar().symlink("out", "/tmp").file("out/x", b"x").end(),
            "lies below /out, which is a symbolic link to /tmp: name it by its real path",
        ),
        (
            "deep through a symbolic link",
            tar().symlink("out", "etc").file("out/a/b/x", b"x").end(),
            "symbolic link to etc",
        ),
        (
            "hard link through a symbolic link",
            tar().file("etc/x", b"x").symlink("out", "etc").link("y", "out/x").end(),
            "does not stand before it",
        ),
        (
            "below a file",
            tar().file("f", b"x").file("f/x", b"x").end(),
            "lies below /f, which is a file and no directory",
        ),
        (
            "link to nothing",
            tar().link("a", "later").file("later", b"x").end(),
            "hard link to /later",
        ),
        ("link to a directory", tar().link("a", "etc").end(), "hard link to the directory /etc"),
        (
            "file over a full directory",
            tar().file("etc/x", b"x").file("etc", b"x").end(),
            "is not empty",
        ),
        (
            "root is a file",
            Archive::default().file("./", b"").file(".", b"x").end(),
            "root of the tree",
        ),
        ("cut in a header", file[..1024 + 100].to_vec(), "is cut off"),
        ("cut in data", file[..1024 + 512 + 2].to_vec(), "is cut off"),
        ("cut in padding", file[..1024 + 512 + 100].to_vec(), "is cut off"),
        ("no end", file[..2048].to_vec(), "is cut off"),
        ("nothing", Vec::new(), "is empty"),
        ("no tar", b"hello, world\n".repeat(100), "is not a tar archive"),
        ("xz", b"\xfd7zXZ\0\0\x04rest".to_vec(), "xz -dc FILE | varve-repo build -"),
        ("wrong checksum", wrong_sum, "wrong checksum"),
        ("a mode that is no number", mode.end(), "has a mode that is not a number"),
        ("size of 4 EiB", tar().raw(b"a", b'0', b"", &huge(1 << 62), b"").end(), "is cut off"),
        (
            "size over i64",
            tar().raw(b"a", b'0', b"", &huge(u64::MAX), b"").end(),
            "impossible size",
        ),
        ("negative size", tar().raw(b"a", b'0', b"", &[0xff; 12], b"").end(), "impossible size"),
        (
            "negative size in pax",
            tar().pax(&[("size", b"-1")]).file("a", b"").end(),
            "has a negative size",
        ),
        ("a long extended header", tar().entry("x", b'x', "", &too_long).end(), "too long"),
        (
            "an extended header of 4 EiB",
            tar().raw(b"x", b'x', b"", &huge(1 << 62), b"").end(),
            "too long",
        ),
        (
            "a broken extended header",
            tar().entry("x", b'x', "", b"99 a=b\n").end(),
            "broken extended",
        ),
        ("huge attribute", tar().pax(&huge_xattr).file("a", b"").end(), "longer than 64 KiB"),
        ("overlay attribute", tar().pax(&overlay).dir("a").end(), "private overlayfs attribute"),
        (
            "an ACL with names",
            tar()
                .pax(&[(
                    "SCHILY.acl.access",
                    b"user::rw-,user:lisa:r--,group::r--,mask::r--,other::r--",
                )])
                .file("a", b"")
                .end(),
            "--numeric-owner",
        ),
        (
            "an owner out of range",
            tar().pax(&[("uid", b"4294967296")]).file("a", b"").end(),
            "uid out of range",
        ),
        (
            "a time that is none",
            tar().pax(&[("mtime", b"soon")]).file("a", b"").end(),
            "not a time",
        ),
        ("unknown type", tar().entry("a", b'Z', "", b"").end(), "has the type Z"),
        ("another volume", tar().entry("a", b'M', "", b"").end(), "join the volumes"),
        ("symbolic link with data", tar().entry("a", b'2', "x", b"data").end(), "has data, though"),
        ("symbolic link to nothing", tar().symlink("a", "").end(), "empty or too long target"),
        (
            "long component",
            tar().pax(&[("path", long_name.as_bytes())]).file("a", b"").end(),
            "255 bytes",
        ),
        ("long path", tar().pax(&[("path", deep.as_bytes())]).file("a", b"").end(), "4094 bytes"),
        ("zero byte in a name", tar().pax(&[("path", b"a\0b")]).file("a", b"").end(), "zero byte"),
        ("sparse: overlap", sparse("2\n0\n8\n4\n8\n", "20", &[1; 16]), "map of its holes"),
        ("sparse: behind the end", sparse("1\n16\n8\n", "20", &[1; 8]), "map of its holes"),
        ("sparse: more than stored", sparse("1\n0\n80\n", "80", &[1; 8]), "map of its holes"),
        (
            "sparse: overflow",
            sparse("1\n18446744073709551615\n8\n", "20", &[1; 8]),
            "map of its holes",
        ),
        ("sparse: endless map", sparse("99999999999\n0\n", "20", &[]), "map of its holes"),
        ("sparse: no number", sparse("one\n", "20", &[]), "map of its holes"),
        ("sparse: a hole of 8 EiB", sparse("0\n", "9223372036854775807", &[]), "map of its holes"),
    ];
    for (name, bytes, why) in cases {
        let place = Place::new();
        let error = place.build_tar("a", &bytes).expect_err(name);
        let text = shown(&error);
        assert!(text.contains(why), "{name}: {text:?} does not say {why:?}");
        let repo = place.repo();
        assert!(varve_build::repo::records(&repo).unwrap().is_empty(), "{name}");
        place.build_tar("a", &tar().file("a", b"fine").end()).expect(name);
        let left = repo.open_dir("packs").unwrap().names().unwrap();
        assert_eq!(left.len(), 2, "{name}: a pack and its index, no temporaries");
    }
}

#[test]
fn every_cut_of_a_real_archive_is_seen() {
    let whole = tar()
        .pax(&[("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
        .file("a", &[7; 700])
        .link("b", "a")
        .symlink("c", "a")
        .end();
    let end = whole.len() - 1024;
    for cut in (0..end).step_by(97).chain([end - 1, end]) {
        let error = Place::new().build_tar("a", &whole[..cut]).expect_err("cut");
        let text = shown(&error);
        assert!(text.contains("is cut off") || text.contains("is empty"), "{cut}: {text}");
    }
    Place::new().build_tar("a", &whole).unwrap();
}

#[test]
fn flipped_bits_never_panic() {
    let whole = tar()
        .pax(&[("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b"), ("GNU.sparse.map", b"0,1,600,1")])
        .file("a", &[7; 700])
        .entry("l", b'L', "", b"a long name\0")
        .link("b", "a")
        .end();
    let place = Place::new();
    for at in 0..whole.len() {
        let mut broken = whole.clone();
        broken[at] ^= 1 << (at % 8);
        // Make half of the headers sound again, so that what is behind is reached.
        if at % 2 == 0 {
            let start = at / 512 * 512;
            let mut block: [u8; 512] = broken[start..start + 512].try_into().unwrap();
            if &block[257..262] == b"ustar" {
                seal(&mut block);
                broken[start..start + 512].copy_from_slice(&block);
            }
        }
        if at % 16 == 0 || (at / 512) % 3 == 0 {
            let _ = place.build_tar("a", &broken);
        }
    }
}
