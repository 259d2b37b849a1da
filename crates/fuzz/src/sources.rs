//! What a publisher is given: archives and images.

use std::path::Path;

use varve_build::Source;
use varve_format::Sha256Digest;
use varve_sys::{Dir, durable};

/// A tar, plain or compressed. What is accepted makes a manifest that can be read again.
pub(crate) fn tar(bytes: &[u8]) {
    let reader = Box::new(std::io::Cursor::new(bytes.to_vec()));
    let source = Source::Tar { reader, name: "a.tar".into(), size: None };
    if let Ok(manifest) = varve_build::manifest(source) {
        let text = manifest.to_text();
        assert_eq!(varve_format::manifest::Manifest::parse(&text).as_ref(), Ok(&manifest));
    }
}

/// The manifest of an image, up to the first zero byte, and one layer. In the manifest
/// `LAYER` and `SIZE` stand for the layer's digest and length.
pub(crate) fn oci(bytes: &[u8]) {
    let at = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let (text, layer) = (&bytes[..at], bytes.get(at + 1..).unwrap_or_default());
    let text = String::from_utf8_lossy(text)
        .replace("LAYER", &format!("sha256:{}", Sha256Digest::of(layer)))
        .replace("SIZE", &layer.len().to_string());
    let folder = scratch();
    let dir = Dir::open(folder.path()).expect("a scratch directory");
    let blobs = dir.make_dir("blobs", 0o755).and_then(|blobs| blobs.make_dir("sha256", 0o755));
    let blobs = blobs.expect("a scratch directory");
    let manifest = Sha256Digest::of(text.as_bytes());
    let index = format!(
        "{{\"schemaVersion\":2,\"manifests\":[{{\"mediaType\":\
         \"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:{manifest}\",\
         \"size\":{}}}]}}",
        text.len()
    );
    let write = |dir: &Dir, name: &str, bytes: &[u8]| {
        durable::replace_file(dir, name, bytes, 0o644).expect("a scratch directory");
    };
    write(&dir, "oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}");
    write(&dir, "index.json", index.as_bytes());
    write(&blobs, &manifest.to_string(), text.as_bytes());
    write(&blobs, &Sha256Digest::of(layer).to_string(), layer);
    let _ = varve_build::manifest(Source::Oci { layout: dir, reference: None });
}

/// In memory where there is such a place.
pub(crate) fn scratch() -> tempfile::TempDir {
    let parent = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    tempfile::Builder::new().prefix("varve-fuzz-").tempdir_in(parent).expect("a scratch directory")
}
