//! Changes under `/etc` brought from one release to the next.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use varve_format::TreePath;
use varve_rootfs::reconcile::{Outcome, reconcile};
use varve_sys::Dir;

fn lay(root: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(root.join("etc")).unwrap();
    for (name, text) in files {
        let path = root.join("etc").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

#[test]
fn every_row_of_the_table() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT TESTED: whiteouts need root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let lines = "1\n2\n3\n4\n5\n6\n";
    lay(
        &at("old"),
        &[
            ("copied-up", "v1"),
            ("mine", "v1"),
            ("both", lines),
            ("clash", "v1"),
            ("same", "v1"),
            ("deleted", "v1"),
            ("dropped", "v1"),
            ("sub/clash", "a"),
        ],
    );
    lay(
        &at("new"),
        &[
            ("copied-up", "v2"),
            ("mine", "v1"),
            ("both", &lines.replace('6', "six")),
            ("clash", "v2"),
            ("same", "v2"),
            ("deleted", "v2"),
            ("sub/clash", "b"),
            ("link", "now a file"),
        ],
    );
    // What the user has: files of the overlay's upper directory, without "etc".
    let upper = at("upper");
    lay(
        &upper,
        &[
            ("copied-up", "v1"),
            ("mine", "my own"),
            ("both", &lines.replace('1', "one")),
            ("clash", "my own"),
            ("same", "v2"),
            ("dropped", "my own"),
            ("sub/clash", "c"),
            ("only-mine", "x"),
        ],
    );
    let upper = upper.join("etc");
    fs::set_permissions(upper.join("clash"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("elsewhere", upper.join("link")).unwrap();
    let dir = Dir::open(&upper).unwrap();
    dir.whiteout("deleted").unwrap();
    dir.whiteout("deleted-in-both").unwrap();

    let layers = |name: &str| vec![Dir::open(at(name)).unwrap()];
    let etc = TreePath::new(b"etc").unwrap();
    let reports = reconcile(&dir, &etc, layers("old"), layers("new")).unwrap();

    let shown: Vec<(String, Outcome)> =
        reports.into_iter().map(|r| (r.path.to_string(), r.outcome)).collect();
    let expected = [
        ("/etc/both", Outcome::Merged),
        ("/etc/clash", Outcome::KeptBeside),
        ("/etc/deleted", Outcome::StaysDeleted),
        ("/etc/dropped", Outcome::KeptAlone),
        ("/etc/link", Outcome::KeptBeside),
        ("/etc/sub/clash", Outcome::KeptBeside),
    ];
    assert_eq!(shown, expected.map(|(path, outcome)| (path.to_owned(), outcome)));

    let text = |name: &str| fs::read_to_string(upper.join(name)).ok();
    assert_eq!(text("copied-up"), None, "the release shows");
    assert_eq!(text("same"), None, "the release shows");
    assert_eq!(text("mine").as_deref(), Some("my own"));
    assert_eq!(text("both").as_deref(), Some("one\n2\n3\n4\n5\nsix\n"));
    assert_eq!(text("clash").as_deref(), Some("my own"));
    assert_eq!(text("clash.varve-new").as_deref(), Some("v2"));
    assert_eq!(text("link.varve-new").as_deref(), Some("now a file"));
    assert_eq!(text("sub/clash.varve-new").as_deref(), Some("b"));
    assert_eq!(text("only-mine").as_deref(), Some("x"));
    assert!(dir.stat("deleted").unwrap().is_whiteout());
    assert!(dir.stat_opt("deleted-in-both").unwrap().is_none());
    let mode = fs::metadata(upper.join("clash")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}
