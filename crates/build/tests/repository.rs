//! What a build leaves in the repository: the same bytes each time, nothing twice, and
//! after a kill nothing that matters.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Archive, Place, content, options, shown, tar_source};
use varve_build::repo::{self, RepoError};
use varve_build::{BuildError, BuildOptions, Source};
use varve_format::Sha256Digest;
use varve_sys::task::{Cancel, Silent};
use varve_sys::{Dir, durable};

/// Text that compresses somewhat, different for each seed.
fn text(seed: u64, length: usize) -> Vec<u8> {
    const WORDS: &[u8] = b"the quick brown fox jumps over the lazy dog while five boxing wizards \
        pack my box with a dozen jugs of liquid and sphinxes of black quartz judge every vow";
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 40);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes()[..4]);
        let start = (state >> 32) as usize % (WORDS.len() - 36);
        bytes.extend_from_slice(&WORDS[start..start + 36]);
    }
    bytes.truncate(length);
    bytes
}

fn sample() -> Archive {
    let mut archive = Archive::default().dir("./");
    for number in 0..300 {
        let bytes = text(number, (number * 997 % 60_000) as usize);
        archive = archive.file(&format!("dir{}/file{number}", number % 7), &bytes);
    }
    archive.file("large", &text(1, 10 << 20)).file("middle", &text(2, 3 << 20))
}

/// All files of a repository, by path.
fn files(repo: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for folder in ["packs", "manifests", "pending"] {
        for entry in std::fs::read_dir(repo.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(repo).unwrap().display().to_string();
            all.insert(name, std::fs::read(path).unwrap());
        }
    }
    all
}

#[test]
fn the_same_source_gives_the_same_bytes() {
    let bytes = sample().end();
    let mut first: Option<BTreeMap<String, Vec<u8>>> = None;
    for threads in [1, 2, 3, 7, 2] {
        let place = Place::new();
        let options = BuildOptions { threads, ..options("a") };
        place.build_with(tar_source(&bytes), &options).unwrap();
        let files = files(&place.path("repo"));
        assert_eq!(files.len(), 4, "a pack, its index, a manifest, a record");
        match &first {
            None => first = Some(files),
            Some(first) => assert!(*first == files, "{threads} threads"),
        }
    }
}

#[test]
fn nothing_is_stored_twice() {
    let place = Place::new();
    let a = place.build_tar("a", &sample().end()).unwrap();
    assert_eq!((a.record.packs.len(), a.reused_bytes), (1, 0));
    assert_eq!(a.record.totals.bytes, a.new_bytes);

    let again = place.build_tar("again", &sample().end()).unwrap();
    assert_eq!((again.pack, again.new_bytes, again.new_contents), (None, 0, 0));
    assert_eq!(again.record.packs, a.record.packs);
    assert_eq!(again.record.manifest, a.record.manifest);

    let fresh = text(99, 12 << 20);
    let b = sample()
        .file("copy-of-large", &text(1, 10 << 20))
        .file("fresh", &fresh)
        .file("fresh-again", &fresh)
        .file("small", b"few bytes")
        .end();
    let b = place.build_tar("b", &b).unwrap();
    assert_eq!(b.new_bytes, fresh.len() as u64 + 9);
    assert_eq!(b.new_contents, 2);
    assert_eq!(b.record.packs.len(), 2);
    assert_eq!(b.record.packs[0], b.pack.unwrap(), "newest first");
    assert_eq!(b.record.packs[1], a.record.packs[0]);
    assert!(b.record.packs[0].size < fresh.len() as u64);
    assert_eq!(content(&place, &b, "fresh-again"), fresh);

    // A release that needs only the newer pack names only that.
    let c = Archive::default().file("only", &fresh).end();
    let c = place.build_tar("c", &c).unwrap();
    assert_eq!(c.record.packs, [b.record.packs[0]]);
}

#[test]
fn a_dropped_content_leaves_no_trace_in_the_pack() {
    // The large content is known; its frames were written and cut off again.
    let with = Place::new();
    with.build_tar("known", &Archive::default().file("k", &text(5, 20 << 20)).end()).unwrap();
    let rest = |archive: Archive| archive.file("z", &text(7, 9 << 20)).file("y", b"small");
    let archive = rest(Archive::default().file("x", b"first").file("k", &text(5, 20 << 20)));
    let with = with.build_tar("a", &archive.end()).unwrap();
    let without = Place::new();
    let without =
        without.build_tar("a", &rest(Archive::default().file("x", b"first")).end()).unwrap();
    assert_eq!(with.pack.unwrap().id, without.pack.unwrap().id);
}

#[test]
fn temporaries_are_swept_and_other_files_kept() {
    let place = Place::new();
    place.build_tar("a", &sample().end()).unwrap();
    for (folder, name) in
        [("packs", ".pack.new"), ("pending", ".b.json.new"), ("manifests", ".x.zst.new")]
    {
        let dir = place.repo().open_dir(folder).unwrap();
        durable::replace_file(&dir, name, b"left by a kill", 0o600).unwrap();
    }
    durable::replace_file(&place.repo(), "README", b"mine", 0o600).unwrap();
    let report = place.build_tar("b", &sample().end()).unwrap();
    place.manifest(&report);
    assert!(files(&place.path("repo")).keys().all(|name| !name.contains("/.")));
    assert_eq!(place.repo().read("README", 10).unwrap(), b"mine");
}

/// A real kill in the middle of a pack. The test program runs itself again as the
/// builder, which reads an archive that never ends.
#[test]
fn a_killed_build_leaves_only_temporaries() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    const ROLE: &str = "VARVE_TEST_BUILD_INTO";
    if let Some(repo) = std::env::var_os(ROLE) {
        let reader = Box::new(std::io::stdin());
        let source = Source::Tar { reader, name: "pipe".into(), size: None };
        let repo = Dir::open(repo).unwrap();
        let _ = varve_build::build(source, &repo, &options("a"), &Silent, &Cancel::new());
        return;
    }
    let place = Place::new();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_build_leaves_only_temporaries", "--nocapture"])
        .env(ROLE, place.path("repo"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(&sample().0).unwrap();
    pipe.flush().unwrap();
    let temporary = place.path("repo/packs/.pack.new");
    let begin = std::time::Instant::now();
    while std::fs::metadata(&temporary).map_or(0, |m| m.len()) < 1 << 20 {
        assert!(begin.elapsed().as_secs() < 60, "the builder writes nothing");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(files(&place.path("repo")).into_keys().collect::<Vec<_>>(), ["packs/.pack.new"]);
    let report = place.build_tar("a", &sample().end()).unwrap();
    place.manifest(&report);
    assert_eq!(files(&place.path("repo")).len(), 4);
}

#[test]
fn a_cancelled_build_leaves_no_record() {
    let place = Place::new();
    let cancel = Cancel::new();
    cancel.cancel();
    let source = tar_source(&sample().end());
    let error =
        varve_build::build(source, &place.repo(), &options("a"), &Silent, &cancel).unwrap_err();
    assert!(matches!(error, BuildError::Cancelled(_)), "{error}");
    assert!(repo::records(&place.repo()).unwrap().is_empty());
}

#[test]
fn one_writer_at_a_time() {
    let place = Place::new();
    let held = repo::lock(&place.repo()).unwrap();
    let error = place.build_tar("a", &sample().end()).unwrap_err();
    assert!(matches!(error, BuildError::Repo(RepoError::Busy { .. })), "{error}");
    assert!(shown(&error).contains("wait until it is done"));
    drop(held);
    place.build_tar("a", &sample().end()).unwrap();
}

/// Moves a pending record to where publishing puts it.
fn publish(place: &Place, name: &str) {
    let repo = place.repo();
    let pending = repo.open_dir("pending").unwrap();
    let bytes = pending.read(format!("{name}.json"), 1 << 20).unwrap();
    let targets = repo.make_dir("targets", 0o755).unwrap();
    let signed = format!("{}.{name}.json", Sha256Digest::of(&bytes));
    durable::replace_file(&targets, &signed, &bytes, 0o644).unwrap();
    pending.unlink(format!("{name}.json")).unwrap();
}

#[test]
fn a_published_release_is_never_changed() {
    let place = Place::new();
    let first = place.build_tar("a", &sample().end()).unwrap();
    place.build_tar("a", &sample().file("more", b"x").end()).expect("pending may be replaced");
    place.build_tar("a", &sample().end()).unwrap();
    publish(&place, "a");
    let error = place.build_tar("a", &sample().file("more", b"y").end()).unwrap_err();
    assert!(shown(&error).contains("published already: give the new one another name"));
    let b = place.build_tar("b", &sample().end()).unwrap();
    assert_eq!(b.record.manifest, first.record.manifest);
    assert_eq!(b.new_bytes, 0, "published packs are known");
    place.manifest(&b);
}

#[test]
fn damage_is_seen_and_mended_by_building_again() {
    let place = Place::new();
    let report = place.build_tar("a", &sample().end()).unwrap();
    let pack = report.pack.unwrap();
    let check = || repo::check_pack(&place.repo(), &pack, &Silent, &Cancel::new());
    check().unwrap();
    let packs = place.repo().open_dir("packs").unwrap();
    let mut file = packs.edit_file(format!("{}.pack", pack.id)).unwrap();
    file.seek_to(pack.size / 2).unwrap();
    file.write_all(b"damage").unwrap();
    assert!(matches!(check(), Err(RepoError::Digest { .. })));
    file.set_length(pack.size - 1).unwrap();
    let again = place.build_tar("b", &sample().end()).unwrap();
    assert_eq!(again.pack, Some(pack), "the same pack, whole again");
    check().unwrap();

    let index = format!("{}.idx", pack.id);
    let mut bytes = packs.read(&index, 1 << 20).unwrap();
    bytes[100] ^= 1;
    durable::replace_file(&packs, &index, &bytes, 0o644).unwrap();
    assert!(matches!(check(), Err(RepoError::Digest { .. })));
}

#[test]
fn a_tree_says_what_it_is() {
    let place = Place::new();
    let os = b"NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n";
    let status = b"Package: dpkg\nArchitecture: arm64\nVersion: 1\n\n";
    let tree = || {
        Archive::default()
            .file("usr/lib/os-release", os)
            .symlink("etc/os-release", "../usr/lib/os-release")
            .file("var/lib/dpkg/status", status)
            .file("boot/vmlinuz-6.12.1", b"kernel")
            .file("boot/initrd.img-6.12.1", b"initrd")
            .symlink("boot/vmlinuz", "vmlinuz-6.12.1")
    };
    let record = place.build_tar("a", &tree().end()).unwrap().record;
    assert_eq!(record.title, "Debian GNU/Linux 13 (trixie)");
    assert_eq!(record.architecture, "arm64");
    let kernel = record.kernel.unwrap();
    assert_eq!(kernel.version, "6.12.1");
    assert_eq!(kernel.image, "boot/vmlinuz-6.12.1");
    assert_eq!(kernel.initrd.as_deref(), Some("boot/initrd.img-6.12.1"));

    let two = tree().file("boot/vmlinuz-6.12.2", b"kernel 2").end();
    let told =
        BuildOptions { architecture: Some("amd64".into()), notes: "told".into(), ..options("b") };
    let record = place.build_with(tar_source(&two), &told).unwrap().record;
    assert_eq!(
        (record.kernel, record.architecture, record.notes),
        (None, "amd64".into(), "told".into())
    );
}

#[test]
fn a_directory_that_changes_is_not_built() {
    struct Touch(std::path::PathBuf, std::sync::atomic::AtomicBool);
    impl varve_sys::task::Progress for Touch {
        fn begin(&self, _: &str, _: varve_sys::task::Unit, _: Option<u64>) {}
        fn advance(&self, _: u64) {
            if !self.1.swap(true, std::sync::atomic::Ordering::SeqCst) {
                let dir = Dir::open(&self.0).unwrap();
                let mut file = dir.edit_file("z").unwrap();
                file.seek_to(0).unwrap();
                file.write_all(b"changed, and longer").unwrap();
            }
        }
        fn end(&self) {}
    }
    let place = Place::new();
    let top = Dir::open(place.path("")).unwrap().make_dir("tree", 0o755).unwrap();
    for name in ["a", "z"] {
        top.create_file(name, 0o644).unwrap().write_all(b"content").unwrap();
    }
    let progress = Touch(place.path("tree"), Default::default());
    let source = Source::Directory(top);
    let error = varve_build::build(source, &place.repo(), &options("a"), &progress, &Cancel::new());
    let text = shown(&error.unwrap_err());
    assert!(text.starts_with("/z changed while it was read"), "{text}");
}
