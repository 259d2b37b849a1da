//! Layers as signed files: given away, taken, and refused.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]
#![allow(clippy::result_large_err, reason = "an error ends the work: none is on a hot path")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use common::{Lab, noise, now, put_on, with_context};
use varve_agent::layer::{self, Change, Exported, Import, Imported, LayerError};
use varve_agent::{Device, Error, Places};
use varve_fetch::layer_file::{self, OpenError};
use varve_format::layer_file::{LayerHeader, LayerKey, START, Start};
use varve_format::manifest::Manifest;
use varve_format::tree::{Device as Node, Entry, Kind, Metadata};
use varve_format::verity::content_digest;
use varve_format::{ReleaseDigest, Sha256Digest, TreePath};
use varve_sys::task::{Cancel, Silent};
use varve_sys::{Attributes, Dir};
use varve_testkit::crash;

fn device_of(lab: &Lab) -> Device {
    lab.device()
}

fn export(lab: &Lab, name: &str, file: &Path) -> Result<Exported, Error> {
    let device = device_of(lab);
    let writer = device.lock("layer export", now())?;
    with_context(&Cancel::new(), |context| layer::export(&device, &writer, name, file, context))
}

fn import_at(places: Places, import: &Import<'_>) -> Result<Imported, Error> {
    let device = Device::open(places)?;
    let writer = device.lock("layer import", now())?;
    varve_rootfs::stage::sweep(&device.store)?;
    with_context(&Cancel::new(), |context| layer::import(&device, &writer, import, context))
}

fn import(lab: &Lab, file: &Path, trust: &[LayerKey]) -> Result<Imported, Error> {
    let import = Import { file, trust, name: None, title: "", dry_run: false };
    import_at(lab.places(), &import)
}

/// A small layer in a file, by another device than the one that is given.
fn small() -> (Lab, Lab, PathBuf, LayerKey) {
    let (maker, taker) = (device(), device());
    let source = maker.folder.path().join("games");
    fs::create_dir_all(source.join("opt/g")).unwrap();
    fs::write(source.join("opt/g/data"), "chess").unwrap();
    add(&maker, "games", source);
    let file = maker.folder.path().join("games.varve");
    let exported = export(&maker, "games", &file).unwrap();
    assert!(exported.new_key);
    (maker, taker, file, exported.key)
}

fn device() -> Lab {
    let lab = Lab::new();
    lab.tree().file("usr/bin/sh", "plain").link("bin", "usr/bin");
    lab.publish("r1");
    lab.init();
    lab
}

fn add(lab: &Lab, name: &str, source: PathBuf) {
    let device = device_of(lab);
    let writer = device.lock("layer add", now()).unwrap();
    let name = name.parse().unwrap();
    with_context(&Cancel::new(), |context| {
        layer::add(&device, &writer, Some(&name), &[source], "Games", false, context).unwrap()
    });
}

/// Everything that can be seen of a tree but the numbers of its inodes.
fn seen(dir: &Dir, at: &str, links: &mut Vec<u64>, lines: &mut Vec<String>) {
    for entry in dir.names().unwrap() {
        let stat = dir.stat(&entry.name).unwrap();
        let path = format!("{at}/{}", varve_format::path::show(entry.name.as_bytes()));
        let content = match () {
            () if stat.is_file() => {
                content_digest(&dir.read(&entry.name, 1 << 30).unwrap()).short()
            }
            () if !stat.is_dir() && stat.mode & 0o170000 == 0o120000 => {
                String::from_utf8_lossy(&dir.read_link(&entry.name).unwrap()).into_owned()
            }
            () => String::new(),
        };
        let group = links.iter().position(|inode| *inode == stat.inode).unwrap_or_else(|| {
            links.push(stat.inode);
            links.len() - 1
        });
        lines.push(format!(
            "{path} {:o} {} {} {} {} {:?} links {} group {group} {content} {:?}",
            stat.mode,
            stat.uid,
            stat.gid,
            stat.special,
            if stat.is_dir() { 0 } else { stat.size },
            stat.mtime,
            if stat.is_dir() { 0 } else { stat.links },
            dir.xattrs(&entry.name).unwrap()
        ));
        if stat.is_dir() {
            seen(&dir.open_dir(&entry.name).unwrap(), &path, links, lines);
        }
    }
}

fn all_of(lab: &Lab, layer: &str) -> Vec<String> {
    let tree = Dir::open(lab.disk().join("varve/layers").join(layer).join("tree")).unwrap();
    let stat = tree.stat(".").unwrap();
    let mut lines = vec![format!("/ {:o} {} {:?}", stat.mode, stat.uid, stat.mtime)];
    seen(&tree, "", &mut Vec::new(), &mut lines);
    lines
}

/// A layer with everything that one can hold, put where layers are.
fn everything(lab: &Lab) -> varve_sys::Result<()> {
    let layer = lab.disk().join("varve/layers/all");
    let tree = layer.join("tree");
    fs::create_dir_all(tree.join("usr/bin")).unwrap();
    fs::create_dir_all(tree.join("opt/new/deep")).unwrap();
    let set = |dir: &Dir, name: &str, mode, mtime, xattrs: &[(&[u8], &[u8])]| {
        let xattrs: Vec<_> = xattrs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        dir.set_attributes(name, &Attributes { mode, uid: 7, gid: 8, mtime, xattrs: &xattrs })
    };
    let bin = Dir::open(tree.join("usr/bin"))?;
    let mut large = bin.create_file("large", 0o644)?;
    large.write_all(&noise(5, 1_300_000))?;
    large.write_sparse(&vec![0; 3 << 20])?;
    large.set_length(5_000_000)?;
    bin.create_file("again", 0o644)?.copy_from(large.file())?;
    bin.create_file("small", 0o644)?.write_all(b"small")?;
    bin.create_file("same", 0o644)?.write_all(b"small")?;
    bin.create_file("empty", 0o644)?;
    bin.create_file(std::ffi::OsStr::from_bytes(b"odd\xff\n\\name"), 0o600)?.write_all(b"odd")?;
    bin.hard_link("small", &bin, "linked")?;
    let deep = Dir::open(tree.join("opt/new/deep"))?;
    bin.hard_link("small", &deep, "elsewhere")?;
    symlink("../nowhere", tree.join("usr/bin/link")).unwrap();
    bin.whiteout("tool")?;
    bin.mknod("fifo", 0o010600, 0)?;
    set(&bin, "large", 0o4755, (-5, 123_456_789), &[])?;
    set(&bin, "small", 0o640, (1_600_000_000, 1), &[(b"user.k", b"a\0b")])?;
    set(&bin, "link", 0o777, (1_500_000_000, 5), &[])?;
    set(&bin, "tool", 0, (1_400_000_000, 6), &[])?;
    set(&bin, "fifo", 0o606, (1_300_000_000, 7), &[])?;
    // An ACL with a named user, as setfacl writes it.
    let acl = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\x07\0\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
    let new = Dir::open(tree.join("opt/new"))?;
    let opaque: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");
    set(&new, "deep", 0o1777, (1_200_000_000, 9), &[(b"system.posix_acl_access", acl), opaque])?;
    let opt = Dir::open(tree.join("opt"))?;
    set(&opt, "new", 0o2750, (1_100_000_000, 10), &[opaque])?;
    let top = Dir::open(&tree)?;
    for (name, mtime) in [("usr/bin", 11), ("usr", 12), ("opt", 13), (".", 14)] {
        let dir = Dir::open(tree.join(name))?;
        set(&dir, ".", 0o755, (1_000_000_000, mtime), &[])?;
    }
    drop(top);
    let record = "format = 1\nname = \"all\"\ncreated = 1750000000\nkind = \"local\"\n\
                  title = \"All\\u0007 of it\"\nmade-by = \"capture\"\ncaptured-from = \"r1\"\n";
    fs::write(layer.join("layer.toml"), record).unwrap();
    Ok(())
}

#[test]
fn a_layer_arrives_to_the_last_attribute() {
    let (maker, mut taker) = (device(), device());
    everything(&maker).unwrap();
    let before = all_of(&maker, "all");
    assert_eq!(before.len(), 17, "{before:#?}");
    let file = maker.folder.path().join("all.varve");
    let exported = export(&maker, "All\u{7} of it", &file).unwrap();
    assert_eq!(exported.bytes, fs::metadata(&file).unwrap().len());
    assert!(exported.bytes < 2_000_000, "each content once, and zeros are small");
    assert_eq!(all_of(&maker, "all"), before);
    let again = export(&maker, "all", &file).unwrap_err();
    assert!(matches!(again, Error::Layer(LayerError::Exists { .. })), "{again}");

    let unknown = import(&taker, &file, &[]).unwrap_err();
    let Error::Layer(LayerError::File(OpenError::Unknown { key, .. })) = &unknown else {
        panic!("{unknown}")
    };
    assert_eq!(*key, exported.key);
    // A try leaves nothing.
    let places = taker.places();
    let try_it = Import { file: &file, trust: &[*key], name: None, title: "", dry_run: true };
    assert_eq!(import_at(places, &try_it).unwrap().changed.deployment, None);
    assert_eq!(taker.fingerprint("incoming").len(), 1, "the directory alone");
    assert!(!taker.disk().join("varve/layers/all").exists());

    taker.config = format!("layer-keys = [\"{key}\"]\n{}", taker.config);
    let imported = import(&taker, &file, &[]).unwrap();
    assert_eq!((imported.key, imported.paths), (exported.key, exported.paths));
    assert!(imported.other_release, "it does not say on what it was made");
    assert_eq!(all_of(&taker, "all"), before);
    assert_eq!(
        fs::metadata(taker.disk().join("varve/layers/all/tree/usr/bin/large")).unwrap().mtime(),
        -5
    );
    assert!(taker.fingerprint("incoming").len() == 1, "{:?}", taker.fingerprint("incoming"));
    let status = layer::show(&taker.device(), "all").unwrap();
    assert_eq!((status.title.as_str(), status.made_by.as_str()), ("All of it", "capture"));
    assert_eq!(status.signed_by, Some(exported.key));
    assert_eq!(status.created.as_second(), 1_750_000_000);
    // It is a layer like any other, and can be handed on under another key.
    let device = taker.device();
    let writer = device.lock("layer", now()).unwrap();
    with_context(&Cancel::new(), |context| {
        layer::change(&device, &writer, &Change::Off("all".into()), false, context).unwrap()
    });
    drop(writer);
    let next = export(&taker, "all", &taker.folder.path().join("next.varve")).unwrap();
    assert_ne!(next.key, exported.key);
    let taken = import(&taker, &file, &[]).unwrap_err();
    assert!(matches!(taken, Error::Layer(LayerError::Taken { .. })), "{taken}");
    taker.check_all();
}

#[test]
fn a_changed_byte_anywhere_is_refused() {
    let (_maker, taker, file, key) = small();
    let good = fs::read(&file).unwrap();
    let path = taker.folder.path().join("bad.varve");
    let judge = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let opened = layer_file::open(&path, &[key]);
        opened.and_then(|file| file.check(&Silent, &Cancel::new()))
    };
    judge(&good).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= if at % 2 == 0 { 1 } else { 0x80 };
        assert!(judge(&bad).is_err(), "byte {at} of {}", good.len());
        if at % 16 == 0 {
            assert!(judge(&good[..at]).is_err(), "cut off at {at}");
        }
    }
    assert!(judge(&[&good[..], b"x"].concat()).is_err(), "longer than it was");
    // What is refused leaves the device as it was.
    let before = taker.fingerprint("");
    for at in [0, 20, 60, 130, good.len() - 700, good.len() - 2] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&path, &bad).unwrap();
        let refused = import(&taker, &path, &[key]).unwrap_err();
        assert!(matches!(refused, Error::Layer(LayerError::File(_))), "{at}: {refused}");
    }
    let lines = |lines: Vec<String>| -> BTreeSet<String> {
        // The lock says who had it last; directories were written to and are as before.
        let own = |line: &String| line.contains("/varve/layers") || line.contains("/incoming");
        lines
            .into_iter()
            .filter(own)
            .map(|line| line.split(" (").next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(lines(taker.fingerprint("")), lines(before));
    assert_eq!(taker.selection().latest.as_str(), "r1");
}

/// A file that is signed well, by `key`, whatever it says.
fn forge(
    good: &[u8],
    key: &Ed25519KeyPair,
    change: impl FnOnce(&mut Vec<Entry>),
    header_too: impl FnOnce(String) -> String,
) -> Vec<u8> {
    let start = Start::parse(good[..START].try_into().unwrap(), good.len() as u64).unwrap();
    let at = start.header.start;
    let mut header = LayerHeader::parse(&good[at as usize..], at).unwrap();
    let places = header.places().unwrap();
    let manifest = &places.last().unwrap().range;
    let stored = &good[manifest.start as usize..manifest.end as usize];
    let text = zstd::bulk::decompress(stored, 1 << 20).unwrap();
    let mut entries = Manifest::parse(&text).unwrap().entries().to_vec();
    change(&mut entries);
    // Not through the checks: what they would refuse must be refused by the reader too.
    let text = match Manifest::from_entries(entries) {
        Ok(manifest) => manifest.to_text(),
        Err(_) => b"/ 0 40755 2 0 0 0 0.0 - - -\n/../x 0 40755 2 0 0 0 0.0 - - -\n".to_vec(),
    };
    let stored = zstd::bulk::compress(&text, 3).unwrap();
    header.tree.digest = ReleaseDigest(Sha256Digest::of(&text).0);
    header.tree.manifest.sha256 = Sha256Digest::of(&stored);
    header.tree.manifest.size = stored.len() as u64;
    header.tree.manifest.text_size = text.len() as u64;
    let header = header_too(String::from_utf8(header.to_bytes()).unwrap()).into_bytes();
    let body = [&good[START..manifest.start as usize], &stored].concat();
    let at = (START + body.len()) as u64;
    let public = LayerKey(key.public_key().as_ref().try_into().unwrap());
    let range = at..at + header.len() as u64;
    let mut start = Start { header: range, key: public, signature: [0; 64] };
    start.signature = key.sign(&start.signed(&header)).as_ref().try_into().unwrap();
    [&start.to_bytes()[..], &body, &header].concat()
}

#[test]
fn hostile_files_that_are_signed_well_are_refused() {
    let (_maker, taker, file, _) = small();
    let good = fs::read(&file).unwrap();
    let key = Ed25519KeyPair::generate().unwrap();
    let public = LayerKey(key.public_key().as_ref().try_into().unwrap());
    let path = |text: &str| TreePath::new(text.as_bytes()).unwrap();
    let entry =
        move |at: &str, kind: Kind| Entry { path: path(at), kind, meta: Metadata::default() };
    let same = |text: String| text;
    let with = |new: Vec<Entry>| forge(&good, &key, move |entries| entries.extend(new), same);
    let target = || Kind::Symlink { target: b"/tmp"[..].into() };
    let absent = content_digest(b"a content that is in no pack");
    let mut odd = entry("opt/x", Kind::Fifo);
    odd.meta.xattrs = vec![(b"trusted.surprise"[..].into(), b"1"[..].into())];
    let mut deep = Vec::new();
    for depth in 1..=201 {
        deep.push(entry(&vec!["d"; depth].join("/"), Kind::Directory));
    }
    let header = |from: &'static str, to: &'static str| {
        forge(
            &good,
            &key,
            |_| {},
            move |text| {
                assert!(text.contains(from), "{text}");
                text.replacen(from, to, 1)
            },
        )
    };
    let cases = [
        ("a device", with(vec![entry("opt/null", Kind::CharDevice(Node(0x103)))])),
        ("a link over /usr", with(vec![entry("usr", target())])),
        ("a directory over a link", with(vec![entry("bin", Kind::Directory)])),
        ("an attribute", with(vec![odd])),
        ("too deep", with(deep)),
        ("no such content", with(vec![entry("opt/x", Kind::Regular { size: 5, digest: absent })])),
        (
            "another length",
            forge(
                &good,
                &key,
                |entries| {
                    for entry in entries {
                        if let Kind::Regular { size, .. } = &mut entry.kind {
                            *size += 1
                        }
                    }
                },
                same,
            ),
        ),
        ("a path that climbs", forge(&good, &key, |entries| entries.clear(), same)),
        ("hides nothing", header("\"opaque\": []", "\"opaque\": [\"opt/g/data\"]")),
        ("hides all", header("\"opaque\": []", "\"opaque\": [\"\"]")),
        ("a name that climbs", header("\"games\"", "\"../../games\"")),
        ("a base", header("\"local\"", "\"base\"")),
        ("a long text", header("\"text_size\": ", "\"text_size\": 99999999")),
        ("more than signed", header("\"opaque\": []", "\"opaque\": [], \"more\": 1")),
    ];
    for (what, bytes) in cases {
        let hostile = taker.folder.path().join("hostile.varve");
        fs::write(&hostile, bytes).unwrap();
        let refused = match import(&taker, &hostile, &[public]) {
            Err(error) => error,
            Ok(taken) => panic!("{what} was taken: {taken:?}"),
        };
        let shown = varve_sys::whole_message(&refused);
        assert!(
            !matches!(refused, Error::Layer(LayerError::File(OpenError::Unknown { .. }))),
            "{what}"
        );
        assert!(!shown.is_empty());
        let staging = Dir::open(taker.disk().join("varve/staging")).unwrap();
        assert_eq!(staging.names().unwrap(), [], "{what}: {shown}");
        assert_eq!(taker.fingerprint("incoming").len(), 1, "{what}: {shown}");
    }
    assert_eq!(taker.selection().latest.as_str(), "r1");
    // The forger's means are sound: what is not hostile is taken.
    let fair = taker.folder.path().join("fair.varve");
    fs::write(&fair, with(vec![entry("opt/more", Kind::Directory)])).unwrap();
    import(&taker, &fair, &[public]).unwrap();
}

#[test]
fn there_is_no_room_and_nothing_is_left() {
    let (_maker, taker, file, key) = small();
    let full = taker.with("reserve = \"900 TB\"");
    let refused = import(&full, &file, &[key]).unwrap_err();
    assert!(matches!(refused, Error::Layer(LayerError::Room { .. })), "{refused}");
    assert_eq!(full.fingerprint("incoming").len(), 1);
    assert!(!full.disk().join("varve/layers/games").exists());
}

/// The power goes at every change that importing a layer makes.
#[test]
fn importing_survives_power_cuts() {
    let (_maker, _, file, key) = small();
    let lab = Lab::below(crash::scratch());
    lab.publish("r1");
    lab.init();
    let act = |places: Places| {
        let import = Import { file: &file, trust: &[key], name: None, title: "", dry_run: false };
        match import_at(places.clone(), &import) {
            Err(Error::Layer(LayerError::Taken { .. })) => {
                let device = Device::open(places).unwrap();
                let writer = device.lock("layer", now()).unwrap();
                with_context(&Cancel::new(), |context| put_on(&device, &writer, "games", context));
            }
            other => drop(other.unwrap()),
        }
    };
    let (recording, ()) = crash::record(&lab.disk(), || act(lab.places()));
    let states = recording.each_state(0, |cut, survival, image| {
        let folder = crash::scratch();
        image.materialise(folder.path());
        let places = Places { physical_root: folder.path().to_owned(), ..lab.places() };
        let device = Device::open(places.clone()).unwrap();
        let has = || {
            let latest = varve_agent::selection::read(&device.store).unwrap().unwrap().latest;
            let record = device.store.deployment(&latest).unwrap().record;
            let dirs = device.store.root_dirs(&record).unwrap();
            let mut root = varve_rootfs::resolve::Resolver::new(dirs);
            let file = root.open(b"opt/g/data").unwrap();
            assert_eq!(file.is_some(), !record.own.is_empty(), "cut at {cut}, {survival:?}");
            file.is_some_and(|mut file| {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut file, &mut text).unwrap();
                assert_eq!(text, "chess", "cut at {cut}, {survival:?}");
                true
            })
        };
        has();
        act(places);
        assert!(has(), "cut at {cut}, {survival:?}: it is not there in the end");
    });
    assert!(states > 25, "only {states} states");
}

/// An export that is cut leaves the whole file under its name, or no such name.
#[test]
fn exporting_survives_power_cuts() {
    let lab = Lab::below(crash::scratch());
    lab.tree().file("usr/bin/sh", "plain").link("bin", "usr/bin");
    lab.publish("r1");
    lab.init();
    let source = lab.folder.path().join("games");
    fs::create_dir_all(source.join("opt")).unwrap();
    fs::write(source.join("opt/data"), "chess").unwrap();
    add(&lab, "games", source);
    let (recording, exported) = crash::record(&lab.disk(), || {
        export(&lab, "games", &lab.disk().join("games.varve")).unwrap()
    });
    let mut whole = 0;
    let states = recording.each_state(2, |cut, survival, image| {
        let folder = crash::scratch();
        image.materialise(folder.path());
        let file = folder.path().join("games.varve");
        if file.exists() {
            whole += 1;
            let opened = layer_file::open(&file, &[exported.key]).unwrap();
            opened.check(&Silent, &Cancel::new()).unwrap();
            // Whoever has the file has a key on the disk that it was signed with.
            let places = Places { physical_root: folder.path().to_owned(), ..lab.places() };
            let device = Device::open(places).unwrap();
            let writer = device.lock("layer export", now()).unwrap();
            let again = with_context(&Cancel::new(), |context| {
                layer::export(&device, &writer, "games", &folder.path().join("b"), context)
            });
            assert_eq!(again.unwrap().key, exported.key, "cut at {cut}, {survival:?}");
        }
    });
    assert!(whole > 0 && states > 10, "{whole} of {states}");
}
