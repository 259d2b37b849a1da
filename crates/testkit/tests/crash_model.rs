//! The simulator of power cuts itself: it must see what a missing sync does.

#![allow(clippy::disallowed_methods, reason = "test data, kept by no device")]

use std::path::Path;

use varve_sys::{Dir, durable};
use varve_testkit::crash::{self, Image, Recording};

fn replaced() -> Recording {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("f"), b"old").unwrap();
    let dir = Dir::open(folder.path()).unwrap();
    let work = || durable::replace_file(&dir, "f", b"new", 0o644).unwrap();
    crash::record(folder.path(), work).0
}

fn text(image: &Image) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    image.materialise(folder.path());
    std::fs::read(folder.path().join("f")).ok()
}

#[test]
fn a_replaced_file_is_old_or_new_after_every_cut() {
    let recording = replaced();
    let mut seen = std::collections::BTreeSet::new();
    let states = recording.each_state(8, |cut, survival, image| {
        let text = text(image).unwrap_or_else(|| panic!("gone after {cut} with {survival:?}"));
        assert!(text == b"old" || text == b"new", "{cut} {survival:?}: {text:?}");
        seen.insert(text);
    });
    assert_eq!(seen.len(), 2);
    assert!(states >= 4, "{states}");
}

#[test]
fn without_its_fsync_a_replaced_file_may_be_empty() {
    let recording = replaced();
    let syncs = recording.syncs();
    assert_eq!(syncs.len(), 2, "the file's and the directory's");
    let mut empty = false;
    recording.without_sync(syncs[0]).each_state(8, |_, _, image| {
        empty |= text(image).is_some_and(|text| text.is_empty());
    });
    assert!(empty, "the model does not see the missing fsync");
    // Without the directory's sync the new text may be lost although all was done.
    let last = recording.without_sync(syncs[1]).image(recording.len(), crash::Survival::SyncedOnly);
    assert_eq!(text(&last), Some(b"old".to_vec()));
}

#[test]
fn blocks_that_were_not_synced_hold_anything_where_they_were_changed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("f"), [b'o'; 3000]).unwrap();
    let dir = Dir::open(folder.path()).unwrap();
    let (recording, ()) = crash::record(folder.path(), || {
        let mut file = dir.edit_file("f").unwrap();
        file.seek_to(1000).unwrap();
        file.write_all(&[b'n'; 4000]).unwrap();
    });
    let mut kinds: std::collections::BTreeSet<u8> = std::collections::BTreeSet::new();
    for seed in 0..8 {
        let text = text(&recording.image(recording.len(), crash::Survival::Stale(seed))).unwrap();
        assert_eq!(text.len(), 5000);
        assert!(text[..1000].iter().all(|byte| *byte == b'o'), "it was not written");
        kinds.extend(&text[1000..]);
    }
    assert_eq!(kinds.len(), 2, "new, or what was there before: {kinds:?}");
    let synced = recording.image(recording.len(), crash::Survival::SyncedOnly);
    assert_eq!(text(&synced), Some(vec![b'o'; 3000]));
}

#[test]
fn what_is_not_told_is_seen_with_the_next_sync_of_the_file_system() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    let dir = Dir::open(folder.path()).unwrap();
    dir.mkdir("root", 0o755).unwrap();
    let other = folder.path().join("other");
    std::os::unix::fs::symlink("root", &other).unwrap();
    let recorder = crash::Recorder::start(&root, std::slice::from_ref(&other));
    let mark = recorder.marker();
    let dir = Dir::open(&other).unwrap();
    dir.create_file("told", 0o644).unwrap();
    std::fs::write(root.join("f"), b"by another program").unwrap();
    mark("written".to_owned());
    durable::sync_file_system(&dir).unwrap();
    let recording = recorder.end();
    let all = recording.image(recording.len() - 1, crash::Survival::Everything);
    assert_eq!(text(&all), None);
    let synced = recording.image(recording.len(), crash::Survival::SyncedOnly);
    assert_eq!(text(&synced), Some(b"by another program".to_vec()));
    assert_eq!(recording.marks(), [(1, "written".to_owned())]);
}

#[test]
fn a_directory_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let dir = Dir::open(folder.path()).unwrap();
    let (recording, ()) = crash::record(folder.path(), || {
        dir.mkdir("d", 0o755).unwrap();
        let below = dir.open_dir("d").unwrap();
        below.create_file("x", 0o644).unwrap().write_all(b"1").unwrap();
        below.hard_link("x", &dir, "y").unwrap();
        below.symlink(b"x", "l").unwrap();
        dir.rename_new("d", &dir, "e").unwrap();
    });
    let copy = tempfile::tempdir().unwrap();
    let image = recording.image(recording.len(), crash::Survival::Everything);
    image.materialise(copy.path());
    assert_eq!(
        Image::read(copy.path()).materialise_again(),
        Image::read(folder.path()).materialise_again()
    );
    assert!(!Path::new(&copy.path().join("d")).exists());
}

trait Again {
    fn materialise_again(&self) -> Vec<String>;
}

impl Again for Image {
    /// The tree as sorted text, without times of directories (which a copy changes).
    fn materialise_again(&self) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        self.materialise(folder.path());
        let out = std::process::Command::new("find")
            .args([".", "-printf", "%p %y %n %m %l %s\n"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let mut lines: Vec<_> =
            String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect();
        lines.retain(|line| !line.starts_with(". "));
        lines.sort();
        lines
    }
}
