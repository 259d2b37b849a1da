use super::*;

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap()
}

fn entry(at: &str, kind: Kind) -> Entry {
    let mtime = Time { seconds: 1_760_000_000, nanoseconds: 123_456_789 };
    let meta = Metadata { mode: 0o755, mtime, ..Metadata::default() };
    Entry { path: path(at), kind, meta }
}

fn file(at: &str, content: &[u8]) -> Entry {
    let digest = verity::content_digest(content);
    entry(at, Kind::Regular { size: content.len() as u64, digest })
}

fn sample() -> Vec<Entry> {
    let mut odd = file("etc/new\nline \u{e9}=", b"x");
    odd.meta.mode = 0o4755;
    odd.meta.xattrs = vec![
        ((*b"security.capability").into(), (*b"\x01\0\0\x02").into()),
        ((*b"user.a=b").into(), (*b"-").into()),
    ];
    vec![
        file("usr/b", b"two names"),
        Entry::hard_link(path("usr/a"), path("usr/b")),
        Entry::hard_link(path("usr/c"), path("usr/a")),
        odd,
        entry("usr", Kind::Directory),
        entry("", Kind::Directory),
        entry("etc", Kind::Directory),
        entry("etc/empty", Kind::Regular { size: 0, digest: verity::content_digest(b"") }),
        entry("bin", Kind::Symlink { target: (*b"usr/bin \\").into() }),
        entry("null", Kind::CharDevice(Device(0x103))),
        entry("pipe", Kind::Fifo),
        entry("dash", Kind::Symlink { target: (*b"-").into() }),
    ]
}

#[test]
fn the_text_is_canonical_and_comes_back() {
    let manifest = Manifest::from_entries(sample()).unwrap();
    let text = manifest.to_text();
    let shown = String::from_utf8(text.clone()).unwrap();
    assert!(shown.starts_with("/ 0 40755 4 0 0 0 1760000000.123456789 - - -\n"), "{shown}");
    assert!(shown.contains("/etc/new\\nline\\x20\\xc3\\xa9= 1 104755 1 "), "{shown}");
    assert!(shown.contains(" user.a\\x3db=\\x2d\n"), "{shown}");
    assert!(shown.contains("/usr/c 0 @120000 - - - - 0.0 /usr/a - -\n"), "{shown}");
    let again = Manifest::parse(&text).unwrap();
    assert_eq!(again, manifest);
    let mut reversed = sample();
    reversed.reverse();
    assert_eq!(Manifest::from_entries(reversed).unwrap().digest(), manifest.digest());
}

#[test]
fn what_is_not_a_tree_is_refused() {
    let cases: [(Vec<Entry>, &str); 7] = [
        (vec![], "must stand first"),
        (vec![entry("", Kind::Directory), file("a", b"1"), file("a", b"2")], "named twice"),
        (vec![entry("", Kind::Directory), file("a/b", b"1")], "not listed"),
        (vec![entry("", Kind::Directory), file("a", b"1"), file("a/b", b"1")], "not a directory"),
        (
            vec![
                entry("", Kind::Directory),
                entry("a", Kind::Symlink { target: (*b"/etc").into() }),
                file("a/passwd", b"1"),
            ],
            "not a directory",
        ),
        (vec![entry("", Kind::Directory), Entry::hard_link(path("a"), path("gone"))], "not listed"),
        (
            vec![
                entry("", Kind::Directory),
                Entry::hard_link(path("a"), path("b")),
                Entry::hard_link(path("b"), path("a")),
            ],
            "not listed",
        ),
    ];
    for (entries, why) in cases {
        let error = Manifest::from_entries(entries).unwrap_err().to_string();
        assert!(error.contains(why), "{error} instead of {why}");
    }
}

#[test]
fn another_spelling_or_hostile_line_is_refused() {
    let text = Manifest::from_entries(sample()).unwrap().to_text();
    let text = String::from_utf8(text).unwrap();
    let cases = [
        (text.replace("\\x20", "\\x20 "), "CONTENT"),
        (text.replace("\\xc3", "\\xC3"), "canonical"),
        (text.replace("/etc/empty", "/etc/../../x"), "cannot hold"),
        (text.replace("/etc/empty", "/etc//x"), "cannot hold"),
        (text.replace(" 4 0 0 0", " 5 0 0 0"), "canonical"),
        (text.replace("user.a", "user.overlay.a"), "private"),
        (text.trim_end().to_owned(), "cut off"),
        (text.replace(" - - -\n", " - - -"), ""),
    ];
    for (bad, why) in cases {
        let error = Manifest::parse(bad.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(why), "{error} instead of {why}");
    }
}
