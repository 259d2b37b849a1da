//! OCI image layouts: made by hand to the letter of the specification, and by umoci.

mod common;

use std::io::Write;
use std::path::Path;

use common::{Archive, Place, content, options, paths, run, shown};
use varve_build::{BuildError, BuildOptions, BuildReport, Source};
use varve_format::{Sha256Digest, TreePath};
use varve_sys::{Dir, durable};

struct Layout {
    dir: Dir,
    blobs: Dir,
}

impl Layout {
    fn new(place: &Place) -> Self {
        let dir = Dir::open(place.path("")).unwrap().make_dir("image", 0o755).unwrap();
        let version = br#"{"imageLayoutVersion": "1.0.0"}"#;
        durable::replace_file(&dir, "oci-layout", version, 0o644).unwrap();
        let blobs = dir.make_dir("blobs", 0o755).unwrap().make_dir("sha256", 0o755).unwrap();
        Self { dir, blobs }
    }

    /// Stores a blob and gives its descriptor, as JSON.
    fn blob(&self, media_type: &str, bytes: &[u8], more: &str) -> String {
        let digest = Sha256Digest::of(bytes);
        durable::replace_file(&self.blobs, &digest.to_hex(), bytes, 0o644).unwrap();
        format!(
            r#"{{"mediaType":"{media_type}","digest":"sha256:{digest}","size":{}{more}}}"#,
            bytes.len()
        )
    }

    fn layer(&self, compression: &str, tar: &[u8]) -> String {
        let bytes = match compression {
            "+gzip" => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(tar).unwrap();
                encoder.finish().unwrap()
            }
            "+zstd" => zstd::bulk::compress(tar, 3).unwrap(),
            _ => tar.to_vec(),
        };
        self.blob(&format!("application/vnd.oci.image.layer.v1.tar{compression}"), &bytes, "")
    }

    fn manifest(&self, layers: &[String], more: &str) -> String {
        let config = self.blob("application/vnd.oci.image.config.v1+json", b"{}", "");
        let text =
            format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, layers.join(","));
        self.blob("application/vnd.oci.image.manifest.v1+json", text.as_bytes(), more)
    }

    fn index(&self, manifests: &[String]) {
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, manifests.join(","));
        durable::replace_file(&self.dir, "index.json", text.as_bytes(), 0o644).unwrap();
    }

    fn source(&self, reference: Option<&str>) -> Source {
        let layout = self.dir.try_clone().unwrap();
        Source::Oci { layout, reference: reference.map(Into::into) }
    }
}

/// Builds an image of plain tar layers.
fn layered(layers: &[Vec<u8>]) -> (Place, Result<BuildReport, BuildError>) {
    let place = Place::new();
    let layout = Layout::new(&place);
    let layers: Vec<String> = layers.iter().map(|tar| layout.layer("", tar)).collect();
    layout.index(&[layout.manifest(&layers, "")]);
    let report = place.build("a", layout.source(None));
    (place, report)
}

fn names(layers: &[Vec<u8>]) -> Vec<String> {
    let (place, report) = layered(layers);
    paths(&place.manifest(&report.unwrap()))
}

#[test]
fn layers_of_every_compression_lie_over_one_another() {
    let place = Place::new();
    let layout = Layout::new(&place);
    let secret = b"this was deleted and must not be published".repeat(100);
    let base = Archive::default()
        .dir("./")
        .dir("etc/")
        .file("etc/keep", b"base")
        .file("etc/replace", b"old")
        .file("etc/secret", &secret)
        .link("etc/secret-link", "etc/secret")
        .file("opt/a/one", b"1")
        .file("opt/a/two", b"2");
    let second = Archive::default()
        .file("etc/replace", b"new")
        .file("etc/.wh.secret", b"")
        .file("etc/.wh.secret-link", b"")
        .link("etc/hard", "etc/keep");
    let third =
        Archive::default().dir("opt/a").file("opt/a/.wh..wh..opq", b"").file("opt/a/three", b"3");
    let layers = [
        layout.layer("+gzip", &base.end()),
        layout.layer("+zstd", &second.end()),
        layout.layer("", &third.end()),
    ];
    layout.index(&[layout.manifest(&layers, "")]);
    // Found to be a layout by itself.
    let report = place.build("a", Source::open(&place.path("image")).unwrap()).unwrap();
    let manifest = place.manifest(&report);
    let want = ["/etc", "/etc/hard", "/etc/keep", "/etc/replace", "/opt", "/opt/a", "/opt/a/three"];
    assert_eq!(paths(&manifest), want);
    assert_eq!(content(&place, &report, "etc/replace"), b"new");
    let hard = manifest.get(&TreePath::new(b"etc/keep").unwrap()).unwrap();
    assert_eq!(manifest.inode(hard).path.to_string(), "/etc/hard");
    assert_eq!(report.new_contents, 3, "only what lives to the end is stored");
    assert_eq!(report.new_bytes, report.record.totals.bytes);
}

#[test]
fn whiteouts_follow_the_specification() {
    let base =
        || Archive::default().dir("d").file("d/a", b"a").dir("d/sub").file("d/sub/x", b"x").end();
    // A whole directory goes.
    assert_eq!(names(&[base(), Archive::default().file(".wh.d", b"").end()]), [""; 0]);
    // A whiteout and a new thing of the same name in one layer, in either order.
    let gone_and_back = Archive::default().file(".wh.d", b"").dir("d").file("d/new", b"n").end();
    assert_eq!(names(&[base(), gone_and_back]), ["/d", "/d/new"]);
    let back_and_gone = Archive::default().dir("d").file("d/new", b"n").file(".wh.d", b"").end();
    assert_eq!(names(&[base(), back_and_gone]), ["/d", "/d/new"]);
    // An opaque mark behind what its layer brings hides only the layers below.
    let opaque = Archive::default().file("d/sub/new", b"n").file("d/.wh..wh..opq", b"").end();
    assert_eq!(names(&[base(), opaque]), ["/d", "/d/sub", "/d/sub/new"]);
    // Of what is not there: nothing happens.
    let nothing = Archive::default().file("d/.wh.none", b"").file("d/.wh..wh.plnk", b"").end();
    assert_eq!(names(&[base(), nothing]), ["/d", "/d/a", "/d/sub", "/d/sub/x"]);
    // A file in the place of a directory, and a directory in the place of a file.
    assert_eq!(names(&[base(), Archive::default().file("d", b"f").end()]), ["/d"]);
    let dir = Archive::default().dir("d/a").file("d/a/b", b"").end();
    assert_eq!(names(&[base(), dir]), ["/d", "/d/a", "/d/a/b", "/d/sub", "/d/sub/x"]);
    // A directory that comes again keeps what is in it, with the new metadata.
    let again = Archive::default().pax(&[("mtime", b"5")]).dir("d").end();
    let (place, report) = layered(&[base(), again]);
    let manifest = place.manifest(&report.unwrap());
    let entry = manifest.get(&TreePath::new(b"d").unwrap()).unwrap();
    assert_eq!((entry.meta.mtime.seconds, manifest.entries().len()), (5, 5));
}

#[test]
fn damage_and_strange_images_are_refused() {
    let tar = || Archive::default().file("a", b"x").end();
    let refuse = |change: &dyn Fn(&Layout), reference: Option<&str>, why: &str| {
        let place = Place::new();
        let layout = Layout::new(&place);
        layout.index(&[layout.manifest(&[layout.layer("", &tar())], "")]);
        change(&layout);
        let error = place.build("a", layout.source(reference)).expect_err(why);
        let text = shown(&error);
        assert!(text.contains(why), "{text:?} does not say {why:?}");
    };
    let layer_name = Sha256Digest::of(&tar()).to_hex();
    let other = [tar(), vec![0; 512]].concat();
    refuse(
        &|l| durable::replace_file(&l.blobs, &layer_name, &other, 0o644).unwrap(),
        None,
        "is damaged: it does not have its digest and length",
    );
    refuse(
        &|l| durable::replace_file(&l.blobs, &layer_name, &tar()[..700], 0o644).unwrap(),
        None,
        "is damaged",
    );
    refuse(&|l| l.blobs.unlink(&layer_name).unwrap(), None, "cannot open");
    refuse(&|l| l.index(&[]), None, "lists no image");
    refuse(
        &|l| {
            let named = |name: &str| {
                let more =
                    format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{name}"}}"#);
                l.manifest(&[], &more)
            };
            l.index(&[named("stable"), named("testing")]);
        },
        None,
        "say which by its name (stable, testing)",
    );
    refuse(&|_| (), Some("nope"), "has no image \"nope\"");
    refuse(
        &|l| {
            let layer = l.blob("application/vnd.oci.image.layer.v1.tar+encrypted", &tar(), "");
            l.index(&[l.manifest(&[layer], "")]);
        },
        None,
        "which is not read",
    );
    refuse(
        &|l| l.index(&[l.blob("application/vnd.oci.image.manifest.v1+json", b"{", "")]),
        None,
        "is not of the expected form",
    );
    refuse(
        &|l| {
            durable::replace_file(&l.dir, "oci-layout", br#"{"imageLayoutVersion":"2.0.0"}"#, 0o644)
                .unwrap()
        },
        None,
        "version 2.0.0 is not known",
    );
    refuse(
        &|l| {
            let evil = r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../../etc/passwd","size":1}"#;
            l.index(&[evil.to_owned()]);
        },
        None,
        "is not a SHA-256 digest",
    );
}

#[test]
fn an_index_of_platforms() {
    let place = Place::new();
    let layout = Layout::new(&place);
    let platform = |name: &str| {
        let tar = Archive::default().file(name, b"x").end();
        let more = format!(r#","platform":{{"architecture":"{name}","os":"linux"}}"#);
        layout.manifest(&[layout.layer("+gzip", &tar)], &more)
    };
    let text =
        format!(r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#, platform("386"), platform("arm64"));
    layout.index(&[layout.blob("application/vnd.oci.image.index.v1+json", text.as_bytes(), "")]);
    let error = place.build("a", layout.source(None)).unwrap_err();
    assert!(shown(&error).contains("386, arm64: say for which architecture"), "{}", shown(&error));
    let i386 = BuildOptions { architecture: Some("i386".into()), ..options("b") };
    let report = place.build_with(layout.source(None), &i386).unwrap();
    assert_eq!(paths(&place.manifest(&report)), ["/386"]);
}

/// umoci makes an image of two layers; its own unpacking is what we must arrive at.
#[test]
fn an_image_by_umoci_is_what_umoci_unpacks() {
    let place = Place::new();
    if !common::is_root() {
        return;
    }
    let at: &Path = &place.path("");
    if !run("umoci", &["init", "--layout", "image"], at) {
        return;
    }
    run("umoci", &["new", "--image", "image:v1"], at);
    run("umoci", &["unpack", "--image", "image:v1", "bundle"], at);
    let script = "cd bundle/rootfs && mkdir -p etc usr/bin opt/deep/er var && \
        echo one > etc/one && echo two > etc/two && ln etc/two etc/two-again && \
        ln -s usr/bin bin && head -c 300000 /dev/urandom > usr/bin/tool && chmod 4755 usr/bin/tool && \
        setfattr -n user.note -v hello usr/bin/tool && touch opt/deep/er/gone opt/deep/kept && \
        mknod -m 600 var/fifo p && touch -d @1700000000.5 etc/one";
    run("sh", &["-ec", script], at);
    run("umoci", &["repack", "--image", "image:v1", "bundle"], at);
    // Its next unpacking takes up what it has stored, times in whole seconds and all.
    std::fs::remove_dir_all(at.join("bundle")).unwrap();
    run("umoci", &["unpack", "--image", "image:v1", "bundle"], at);
    let script = "cd bundle/rootfs && rm -r opt/deep/er etc/one && echo new > etc/three && \
        rm etc/two-again && rm -r var && echo file > var";
    run("sh", &["-ec", script], at);
    run("umoci", &["repack", "--image", "image:v2", "bundle"], at);
    run("umoci", &["unpack", "--image", "image:v2", "final"], at);
    let want = varve_build::scan(&Dir::open(at.join("final/rootfs")).unwrap()).unwrap();

    let layout = Dir::open(at.join("image")).unwrap();
    let source = Source::Oci { layout, reference: Some("v2".into()) };
    let report = place.build("v2", source).unwrap();
    let have = place.manifest(&report);
    assert_eq!(paths(&have), paths(&want));
    for (a, b) in have.entries().iter().zip(want.entries()).skip(1) {
        let (mut a, mut b) = (a.clone(), b.clone());
        // A directory that lost something has a newer time on disk than in its layer.
        if a.kind == varve_format::tree::Kind::Directory {
            (a.meta.mtime, b.meta.mtime) = Default::default();
        }
        assert_eq!(a, b);
    }
    if run(
        "skopeo",
        &[
            "copy",
            "--dest-compress-format",
            "zstd",
            "--dest-oci-accept-uncompressed-layers=false",
            "oci:image:v2",
            "oci:zimage:v2",
        ],
        at,
    ) {
        let again = place.build("z", Source::open(&at.join("zimage")).unwrap()).unwrap();
        assert_eq!(again.record.digest, report.record.digest, "recompressed by skopeo");
    }
}
