//! The user's own layers: made, switched, carried under an upgrade, taken back.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Lab, now, with_context};
use varve_agent::choose::Wish;
use varve_agent::layer::carry::What as Hides;
use varve_agent::layer::{self, Added, Change, Changed, LayerError, Place, To, What, dpkg};
use varve_agent::upgrade::Prepared;
use varve_agent::{Error, Writer};
use varve_format::deployment::OwnLayer;
use varve_sys::task::Cancel;

fn with_writer<T>(
    lab: &Lab,
    act: impl FnOnce(&varve_agent::Device, &Writer, &varve_agent::upgrade::Context<'_>) -> T,
) -> T {
    let device = lab.device();
    let writer = device.lock("layer", now()).unwrap();
    with_context(&Cancel::new(), |context| act(&device, &writer, context))
}

fn change(lab: &Lab, change: &Change) -> Result<Changed, Error> {
    with_writer(lab, |device, writer, context| {
        layer::change(device, writer, change, false, context)
    })
}

fn add(lab: &Lab, name: &str, sources: &[PathBuf]) -> Result<Added, Error> {
    let name = name.parse().unwrap();
    with_writer(lab, |device, writer, context| {
        layer::add(device, writer, Some(&name), sources, "", false, context)
    })
}

fn capture(lab: &Lab, name: &str) -> Result<Changed, Error> {
    let name = name.parse().unwrap();
    with_writer(lab, |device, writer, context| {
        layer::capture(device, writer, &name, "What I did", false, context)
    })
}

/// A directory with these files.
fn source(lab: &Lab, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let dir = lab.folder.path().join(name);
    for (path, bytes) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

fn own(lab: &Lab, deployment: &str) -> String {
    let deployment = lab.device().store.deployment(&deployment.parse().unwrap()).unwrap();
    shown(&deployment.record.own)
}

fn shown(own: &[OwnLayer]) -> String {
    let name = |own: &OwnLayer| format!("{}{}", if own.on { "" } else { "-" }, own.layer);
    own.iter().map(name).collect::<Vec<_>>().join(" ")
}

/// What the kernel's own mount of what boots next has at a path.
fn shows(lab: &Lab, path: &str) -> Option<Vec<u8>> {
    let device = lab.device();
    let latest = device.store.deployment(&lab.selection().latest).unwrap();
    let mut root =
        varve_rootfs::resolve::Resolver::new(device.store.root_dirs(&latest.record).unwrap());
    let mut file = root.open(path.as_bytes()).unwrap()?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    Some(bytes)
}

/// Boots what comes next and finds it good.
fn accept(lab: &Lab) -> String {
    let booted = lab.boot(false);
    lab.after_boot();
    booted
}

fn device() -> Lab {
    let lab = Lab::new();
    // A system with a shell, so that its init can be checked.
    lab.tree().file("usr/bin/sh", "plain").link("bin", "usr/bin");
    lab.publish("r1");
    lab.init();
    lab
}

#[test]
fn a_layer_is_added_switched_moved_and_removed() {
    let lab = device();
    let games = source(&lab, "games", &[("bin/game", b"chess"), ("opt/g/data", b"1")]);
    let added = add(&lab, "games", &[games]).unwrap();
    assert_eq!((added.paths, added.bytes), (6, 6), "usr, usr/bin, game, opt, g, data");
    assert_eq!(accept(&lab), "r1+2");
    assert_eq!(shows(&lab, "usr/bin/game").as_deref(), Some(&b"chess"[..]), "behind the link bin");
    assert_eq!(shows(&lab, "bin/sh").as_deref(), Some(&b"plain"[..]), "the link is still there");
    let more = source(&lab, "more", &[("usr/bin/game", b"go")]);
    add(&lab, "more", &[more]).unwrap();
    accept(&lab);
    assert_eq!(own(&lab, "r1+3"), "more games");
    assert_eq!(shows(&lab, "usr/bin/game").as_deref(), Some(&b"go"[..]));

    change(&lab, &Change::Move("more".into(), To::Bottom)).unwrap();
    assert_eq!(accept(&lab), "r1+4");
    assert_eq!(shows(&lab, "usr/bin/game").as_deref(), Some(&b"chess"[..]));
    change(&lab, &Change::Off("games".into())).unwrap();
    let latest = accept(&lab);
    assert_eq!(own(&lab, &latest), "-games more");
    assert_eq!(shows(&lab, "usr/bin/game").as_deref(), Some(&b"go"[..]));
    let again = change(&lab, &Change::Off("games".into())).unwrap_err();
    assert!(matches!(again, Error::Layer(LayerError::NothingChanges)));
    change(&lab, &Change::On("games".into())).unwrap();
    assert_eq!(own(&lab, lab.selection().latest.as_str()), "games more");
    // Not booted yet, and taken back.
    lab.roll_back().unwrap();
    assert_eq!(own(&lab, lab.selection().latest.as_str()), "-games more");

    let device = lab.device();
    let diff = layer::diff(&device, "games").unwrap();
    let diff: Vec<_> = diff.iter().map(|e| (e.path.to_string(), e.what)).collect();
    assert!(diff.contains(&("/usr/bin/game".to_owned(), What::Replaced)), "{diff:?}");
    assert!(diff.contains(&("/opt/g/data".to_owned(), What::Added)), "{diff:?}");
    change(&lab, &Change::Remove("games".into())).unwrap();
    accept(&lab);
    let places = |lab: &Lab| -> Vec<String> {
        let list = layer::list(&lab.device()).unwrap();
        list.iter().map(|layer| format!("{} {:?}", layer.name, layer.place)).collect()
    };
    assert_eq!(
        places(&lab),
        ["more On", "r1 Release", "games Elsewhere { removed: true }"],
        "the previous deployment still names it"
    );
    change(&lab, &Change::Off("more".into())).unwrap();
    accept(&lab);
    change(&lab, &Change::On("more".into())).unwrap();
    accept(&lab);
    assert_eq!(places(&lab), ["more On", "r1 Release"], "nothing names it any more");
    lab.check_all();
}

#[test]
fn a_layer_that_its_user_did_not_remove_is_never_collected() {
    let lab = device();
    let games = source(&lab, "games", &[("usr/bin/game", b"chess")]);
    add(&lab, "games", &[games]).unwrap();
    lab.roll_back().unwrap();
    lab.tree().file("usr/bin/two", "two");
    lab.publish("r2");
    lab.upgrade();
    accept(&lab);
    lab.publish("r3");
    lab.upgrade();
    accept(&lab);
    let list = layer::list(&lab.device()).unwrap();
    let games = list.iter().find(|layer| layer.name.as_str() == "games").unwrap();
    assert_eq!(games.place, Place::Elsewhere { removed: false });
    assert!(games.deployments.is_empty());
    change(&lab, &Change::On("games".into())).unwrap();
    assert_eq!(shows(&lab, "usr/bin/game").as_deref(), Some(&b"chess"[..]));
    assert_eq!(games.release.as_ref().unwrap().name.as_str(), "r1", "the release it was made on");
}

#[test]
fn an_upgrade_carries_layers_and_says_what_they_hide() {
    let lab = device();
    lab.tree().file("usr/lib/libold.so", "old").file("usr/bin/edit", "v1");
    lab.publish("r2");
    lab.upgrade();
    accept(&lab);
    // A real program, made to need a library that goes away.
    let mut program = fs::read("/bin/sh").unwrap();
    let at = program.windows(10).position(|part| part == b"libc.so.6\0").unwrap();
    program[at..at + 10].copy_from_slice(b"libold.so\0");
    let mine = source(
        &lab,
        "mine",
        &[
            ("usr/bin/edit", b"mine"),
            ("usr/bin/next", b"the same"),
            ("usr/bin/later", b"mine too"),
            ("usr/bin/needs", &program),
        ],
    );
    add(&lab, "mine", &[mine]).unwrap();
    accept(&lab);
    lab.tree()
        .file("usr/bin/edit", "v2")
        .file("usr/bin/next", "the same")
        .file("usr/bin/later", "v1")
        .remove("usr/lib/libold.so");
    lab.publish("r3");
    let Prepared::Ready(ready) = lab.prepare(&Wish::default(), true).unwrap() else { panic!() };
    let found: Vec<_> =
        ready.plan.conflicts.iter().map(|c| (c.path.to_string(), c.what.clone())).collect();
    let needs = Hides::NeedsLibrary { library: "libold.so".to_owned() };
    assert_eq!(
        found,
        [
            ("/usr/bin/edit".to_owned(), Hides::HidesChanged),
            ("/usr/bin/later".to_owned(), Hides::HidesNew),
            ("/usr/bin/needs".to_owned(), needs),
        ]
    );
    drop(ready);
    let done = lab.upgrade();
    assert_eq!(own(&lab, done.deployment.as_str()), "mine");
    assert_eq!(shows(&lab, "usr/bin/edit").as_deref(), Some(&b"mine"[..]), "nothing is dropped");
    assert_eq!(accept(&lab), "r3");
    lab.check_all();
}

#[test]
fn a_layer_that_would_not_boot_is_switched_off_for_the_trial() {
    let lab = device();
    let good = source(&lab, "good", &[("usr/bin/good", b"1")]);
    add(&lab, "good", &[good]).unwrap();
    accept(&lab);
    // It replaces the shell, which runs init, by a dangling link.
    let bad = lab.folder.path().join("bad");
    fs::create_dir_all(bad.join("usr/bin")).unwrap();
    std::os::unix::fs::symlink("/nowhere", bad.join("usr/bin/sh")).unwrap();
    let added = add(&lab, "bad", &[bad]).unwrap();
    assert_eq!(shown(&added.changed.after), "-bad good");
    assert_eq!(
        added.changed.switched_off[0].problem.to_string(),
        "/bin/sh, which runs /sbin/init, would not be there"
    );
    let latest = accept(&lab);
    assert_eq!(own(&lab, &latest), "-bad good");
    let list = layer::list(&lab.device()).unwrap();
    assert!(matches!(&list[0].place, Place::Off { why } if why.contains("/bin/sh")));
}

#[test]
fn a_failed_trial_of_a_layer_is_not_held_against_its_release() {
    let mut lab = device();
    lab.config.push_str("[[health]]\nname = \"sick\"\ncommand = [\"false\"]\n");
    let games = source(&lab, "games", &[("usr/bin/game", b"chess")]);
    add(&lab, "games", std::slice::from_ref(&games)).unwrap();
    assert_eq!(lab.boot(false), "r1+2");
    lab.after_boot();
    assert_eq!(lab.selection().latest.as_str(), "r1");
    let (rejected, _) = varve_agent::rejected::Rejected::load(lab.device().store.dir()).unwrap();
    assert!(rejected.releases.is_empty());
    // One that hangs uses up its tries.
    change(&lab, &Change::On("games".into())).unwrap();
    while lab.boot(false) != "r1" {}
    lab.after_boot();
    let (rejected, _) = varve_agent::rejected::Rejected::load(lab.device().store.dir()).unwrap();
    assert!(rejected.releases.is_empty());
}

fn upper(lab: &Lab, deployment: &str) -> PathBuf {
    lab.disk().join("varve/state/versioned").join(deployment).join("!/upper")
}

#[test]
fn captured_changes_come_from_the_layer_and_the_top_is_empty() {
    let lab = Lab::new().with("root-mode = \"persistent\"");
    lab.publish("r1");
    lab.init();
    // The tests' boot is a decision without a mount: say what it would have mounted.
    let report = lab.folder.path().join("run/boot.toml");
    let text = fs::read_to_string(&report).unwrap();
    fs::write(&report, text.replace("\"read-only\"", "\"persistent\"")).unwrap();
    let empty = capture(&lab, "none").unwrap_err();
    assert!(matches!(empty, Error::Layer(LayerError::NothingToCapture { .. })), "{empty}");
    // What overlayfs leaves in a top: files, whiteouts, an opaque directory, marks.
    let top = varve_sys::Dir::open(upper(&lab, "r1")).unwrap();
    let bin = top.make_dir("usr", 0o755).unwrap().make_dir("bin", 0o755).unwrap();
    bin.create_file("mine", 0o755).unwrap().write_all(b"mine").unwrap();
    bin.set_xattr("mine", b"trusted.overlay.origin", b"x").unwrap();
    bin.whiteout("tool").unwrap();
    let made = top.make_dir("made", 0o700).unwrap();
    made.create_file("f", 0o600).unwrap().write_all(b"f").unwrap();
    top.set_xattr("made", b"trusted.overlay.opaque", b"y").unwrap();
    let changed = capture(&lab, "first").unwrap();
    assert_eq!(shown(&changed.after), "first");
    let layer = lab.disk().join("varve/layers/first/tree");
    let tree = varve_sys::Dir::open(layer.join("usr/bin")).unwrap();
    assert!(tree.stat("tool").unwrap().is_whiteout());
    assert_eq!(tree.xattrs("mine").unwrap(), [], "overlayfs's own marks stay behind");
    assert!(!upper(&lab, "r1+2").join("usr").exists(), "the top is empty");
    assert!(upper(&lab, "r1").join("usr/bin/mine").exists(), "what runs is untouched");
    // Written between the capture and the reboot.
    fs::write(upper(&lab, "r1").join("usr/bin/late"), "late").unwrap();
    fs::write(upper(&lab, "r1").join("usr/bin/mine"), "mine again").unwrap();
    lab.finalize();
    let after = upper(&lab, "r1+2").join("usr/bin");
    let names: Vec<_> = fs::read_dir(&after).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(fs::read(after.join("mine")).unwrap(), b"mine again");
    assert_eq!(accept(&lab), "r1+2");
    assert_eq!(shows(&lab, "usr/bin/mine").as_deref(), Some(&b"mine"[..]));
    assert_eq!(shows(&lab, "usr/bin/tool"), None);
}

/// Bytes that decode to an entry of this kind and so many zeros.
fn bomb(kind: tar::EntryType, zeros: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..5].copy_from_slice(b"usr/x");
    header.set_entry_type(kind);
    header.set_size(zeros);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    let stream = std::io::Read::take(std::io::repeat(0), zeros + 1024);
    let stream = std::io::Read::chain(&header.as_bytes()[..], stream);
    zstd::encode_all(stream, 1).unwrap()
}

/// What a parser keeps in memory whole is bounded, whatever a package says of its length;
/// and what is said of one does nothing to a terminal.
#[test]
fn a_package_whose_heads_have_no_end_is_refused() {
    use tar::EntryType::{Directory, GNULongLink, GNULongName, XGlobalHeader, XHeader};
    let lab = device();
    let control =
        tar_of(&[("./control", &b"Package: x\nVersion: 1\x1b[2J\nArchitecture: all\n"[..])]);
    let deb = |data: Vec<u8>| {
        ar(&[
            ("debian-binary", b"2.0\n".to_vec()),
            ("control.tar", control.clone()),
            ("data.tar.zst", data),
        ])
    };
    for kind in [GNULongName, GNULongLink, XHeader, XGlobalHeader, Directory] {
        for (name, bytes) in
            [("bomb.deb", deb(bomb(kind, 300 << 20))), ("bomb.tar.zst", bomb(kind, 300 << 20))]
        {
            assert!(bytes.len() < 200_000);
            let path = lab.folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            let error = add(&lab, "bomb", &[path]).unwrap_err();
            let error = varve_sys::whole_message(&error);
            assert!(error.contains("has no end"), "{kind:?}, {name}: {error}");
        }
    }
    assert!(!lab.disk().join("varve/layers/bomb").exists());
    assert_eq!(fs::read_dir(lab.disk().join("varve/staging")).unwrap().count(), 0);
    // Heads of an honest length are none: a long name, and attributes of 64 KiB.
    let mut builder = tar::Builder::new(Vec::new());
    let long = format!("usr/share/{}/{}", "d".repeat(200), "f".repeat(200));
    builder.append_pax_extensions([("SCHILY.xattr.user.note", &vec![b'n'; 3000][..])]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, &long, &b"whole"[..]).unwrap();
    let path = lab.folder.path().join("good.deb");
    fs::write(&path, deb(builder.into_inner().unwrap())).unwrap();
    let added = add(&lab, "good", &[path]).unwrap();
    assert_eq!(added.packages[0].version, "1\u{1b}[2J", "shown by varve_term::out::harmless");
    assert_eq!(shows(&lab, &long).as_deref(), Some(&b"whole"[..]));
}

/// An ar(1) archive of these members.
fn ar(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"!<arch>\n".to_vec();
    for (name, content) in members {
        let (mode, size) = ("100644", content.len());
        bytes.extend(format!("{name:16}{:12}{:6}{:6}{mode:8}{size:10}`\n", 0, 0, 0).bytes());
        bytes.extend(content);
        bytes.extend(vec![b'\n'; size % 2]);
    }
    bytes
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        builder.append_data(&mut header, path, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_debian_package_is_known_to_dpkg_and_its_scripts_are_not_run() {
    let lab = Lab::new();
    let status = "Package: base\nStatus: install ok installed\nArchitecture: all\n\
        Maintainer: x\nVersion: 1\nDescription: x\n";
    lab.tree().file("var/lib/dpkg/status", status).file("var/lib/dpkg/info/format", "1\n");
    lab.publish("r1");
    lab.init();
    let control = b"Package: hello\nVersion: 2.10-3\nArchitecture: all\nMaintainer: x\n\
        Description: says hello\n longer\n";
    let control = tar_of(&[("./control", control), ("./postinst", b"#!/bin/sh\nexit 1\n")]);
    let data = zstd::encode_all(&tar_of(&[("./usr/bin/hello", b"hello")])[..], 3).unwrap();
    let deb = ar(&[
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar", control),
        ("data.tar.zst", data),
    ]);
    let path = lab.folder.path().join("hello_2.10-3_all.deb");
    fs::write(&path, &deb).unwrap();
    let added = add(&lab, "hello", std::slice::from_ref(&path)).unwrap();
    assert_eq!(added.packages[0].scripts_not_run, ["postinst"]);
    assert_eq!(shows(&lab, "usr/bin/hello").as_deref(), Some(&b"hello"[..]));
    assert_eq!(shows(&lab, dpkg::STATUS).as_deref(), Some(status.as_bytes()), "not replaced");
    // What dpkg itself makes of it, where there is one.
    let admin = lab.folder.path().join("admin");
    fs::create_dir_all(admin.join("updates")).unwrap();
    fs::create_dir_all(admin.join("info")).unwrap();
    fs::write(admin.join("status"), status).unwrap();
    let layer = lab.disk().join("varve/layers/hello/tree/var/lib/dpkg");
    for place in ["updates", "info"] {
        for entry in fs::read_dir(layer.join(place)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), admin.join(place).join(entry.file_name())).unwrap();
        }
    }
    let said = std::process::Command::new("dpkg-query")
        .arg(format!("--admindir={}", admin.display()))
        .args(["-W", "-f=${Package} ${Status} ${Version}\n"])
        .output();
    match said {
        Ok(said) => {
            let text = String::from_utf8_lossy(&said.stdout);
            assert!(text.contains("hello install ok unpacked 2.10-3"), "{said:?}");
            assert!(text.contains("base install ok installed"), "{said:?}");
        }
        Err(error) => eprintln!("=== NOT ASKED: dpkg-query ({error}) ==="),
    }
    // Cut off, or with a table that lies.
    for broken in [&deb[..deb.len() - 20], &deb[..70], b"!<arch>\n"] {
        fs::write(&path, broken).unwrap();
        assert!(add(&lab, "broken", std::slice::from_ref(&path)).is_err());
    }
    assert!(!Path::new(&lab.disk().join("varve/layers/broken")).exists());
    assert!(fs::read_dir(lab.disk().join("varve/staging")).unwrap().next().is_none());
}

#[test]
fn hostile_archives_are_refused() {
    let lab = device();
    let raw = |path: &[u8], kind: tar::EntryType, link: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        if kind == tar::EntryType::Char {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, &b""[..]).unwrap();
        builder.into_inner().unwrap()
    };
    use tar::EntryType::{Char, Link, Regular, Symlink};
    for (what, bytes) in [
        ("climbs", raw(b"../../etc/passwd", Regular, b"")),
        ("file over directory", raw(b"usr", Regular, b"")),
        ("link over directory", raw(b"usr", Symlink, b"/tmp")),
        ("device", raw(b"dev/x", Char, b"")),
        ("links out", raw(b"x", Link, b"../../etc/shadow")),
        ("links to nothing", raw(b"x", Link, b"usr/bin/tool")),
        ("a socket, or what no tar has", raw(b"x", tar::EntryType::new(b'Z'), b"")),
    ] {
        let path = lab.folder.path().join("hostile.tar");
        fs::write(&path, bytes).unwrap();
        let answer = add(&lab, "hostile", &[path]);
        assert!(answer.is_err(), "{what}: {answer:?}");
    }
    assert_eq!(lab.selection().latest.as_str(), "r1");
    // A link in the archive, and a file below it: no write goes through the link.
    let out = lab.folder.path().join("out");
    fs::create_dir(&out).unwrap();
    let mut bytes = raw(b"opt/way", Symlink, out.as_os_str().as_encoded_bytes());
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(tar_of(&[("opt/way/file", b"written")]));
    let path = lab.folder.path().join("through.tar");
    fs::write(&path, bytes).unwrap();
    add(&lab, "through", &[path]).unwrap();
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "nothing was written through the link");
    assert_eq!(shows(&lab, "opt/way/file").as_deref(), Some(&b"written"[..]));
}

fn run(lab: &Lab, name: &str, command: &[&str]) -> Result<Changed, Error> {
    let name = name.parse().unwrap();
    let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
    with_writer(lab, |device, writer, context| {
        layer::run(device, writer, &name, "", &command, false, context)
    })
}

#[test]
fn what_a_command_changes_becomes_a_layer() {
    let Some(lab) = Lab::runnable() else { return };
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let script = "set -e; cd /; busybox test -e /proc/self/status; busybox test -d /sys/kernel
        echo made > usr/bin/made; busybox rm usr/bin/tool; echo log > var/log/new
        echo t > tmp/t; echo 'ann:x:1000:1000::/:/bin/sh' >> etc/passwd
        printf '\\nPackage: vim\\nStatus: install ok installed\\nArchitecture: all\\nVersion: 9\\n' >> var/lib/dpkg/status";
    let changed = run(&lab, "made", &["/bin/busybox", "sh", "-c", script]).unwrap();
    assert_eq!(shown(&changed.after), "made");
    let after = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    assert_eq!(before, after, "nothing of it is mounted here");
    assert_eq!(shows(&lab, "usr/bin/made").as_deref(), Some(&b"made\n"[..]));
    assert_eq!(shows(&lab, "usr/bin/tool"), None);
    let tree = lab.disk().join("varve/layers/made/tree");
    assert!(!tree.join("var/log/new").exists() && !tree.join("tmp").exists());
    assert!(!tree.join("var/lib/dpkg/status").exists());
    let updates: Vec<_> =
        fs::read_dir(tree.join("var/lib/dpkg/updates")).unwrap().map(|e| e.unwrap()).collect();
    let update = fs::read_to_string(updates[0].path()).unwrap();
    assert!(update.contains("Package: vim") && !update.contains("Package: base"), "{update}");
    accept(&lab);

    // A second one sees the first, and finds no interrupted dpkg.
    let script = "set -e; busybox test -e /usr/bin/made
        busybox grep -q vim /var/lib/dpkg/status; busybox test ! -e /var/lib/dpkg/updates/[0-9]*
        echo 2 > /usr/bin/two";
    run(&lab, "second", &["/bin/busybox", "sh", "-c", script]).unwrap();
    let tree = lab.disk().join("varve/layers/second/tree");
    assert!(!tree.join("var/lib/dpkg/updates").exists(), "dpkg's packages did not change");
    // A failure, and nothing, leave nothing.
    for (command, why) in [("exit 3", "exit status: 3"), ("true", "changed nothing")] {
        let error = run(&lab, "none", &["/bin/busybox", "sh", "-c", command]).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    assert!(run(&lab, "none", &["/no/such/program"]).is_err());
    assert!(!lab.disk().join("varve/layers/none").exists());
    assert!(fs::read_dir(lab.disk().join("varve/staging")).unwrap().next().is_none());
}

#[test]
fn a_reset_begins_anew_and_is_taken_back() {
    use varve_agent::reset::{Level, reset};
    let lab = device();
    let etc = |name: &str| lab.disk().join("varve/state/versioned").join(name).join("etc/upper");
    fs::write(etc("r1").join("mine"), "mine").unwrap();
    let games = source(&lab, "games", &[("usr/bin/game", b"chess")]);
    add(&lab, "games", &[games]).unwrap();
    let before = accept(&lab);
    let act = |level| {
        with_writer(&lab, |device, writer, context| {
            reset(device, writer, level, false, context).unwrap()
        })
    };
    let done = act(Level::Etc);
    let name = done.changed.deployment.unwrap();
    assert_eq!(own(&lab, name.as_str()), "games");
    assert!(!etc(name.as_str()).join("mine").exists());
    assert!(etc(name.as_str()).join("varve/varve.toml").exists(), "it knows its updates still");
    // The state of what runs is carried at shutdown, but not into a fresh one.
    lab.finalize();
    assert!(!etc(name.as_str()).join("mine").exists());
    lab.roll_back().unwrap();
    assert_eq!(lab.selection().latest.as_str(), before);
    assert_eq!(fs::read(etc(&before).join("mine")).unwrap(), b"mine");

    let done = act(Level::All);
    let all = done.changed.deployment.unwrap();
    assert_eq!(own(&lab, all.as_str()), "-games");
    assert_eq!(done.left.iter().map(ToString::to_string).collect::<Vec<_>>(), ["/var"]);
    accept(&lab);
    fs::write(etc(all.as_str()).join("later"), "later").unwrap();
    // What is changed after a reset is carried on like any other.
    change(&lab, &Change::On("games".into())).unwrap();
    let next = accept(&lab);
    assert_eq!(fs::read(etc(&next).join("later")).unwrap(), b"later");
    lab.publish("r2");
    assert_eq!(own(&lab, lab.upgrade().deployment.as_str()), "games");
}
