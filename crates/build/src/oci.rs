//! An OCI image layout: its layers, laid over one another, are the tree.
//!
//! ```text
//! oci-layout   {"imageLayoutVersion": "1.0.0"}
//! index.json   -> manifest, or -> index -> manifest of one platform
//! blobs/sha256/<digest>
//!   manifest   -> layers, lowest first: tar, tar+gzip or tar+zstd, with whiteouts
//! ```
//!
//! Layers are read twice: once for their names, which says what of each lives to the
//! end, then for the contents of that alone, so that what an upper layer deletes or
//! replaces is not published. Each blob is held against its digest and length, both
//! times. Source of the rules: the OCI image specification 1.1, "Image Layout",
//! "Filesystem Layers".
//!
//! serde_json by hand and not the `ocidir` crate: of the whole specification three small
//! documents are read here, and that crate brings OpenSSL along.

use std::io::{self, Read};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use varve_format::Sha256Digest;
use varve_format::manifest::Manifest;
use varve_format::tree::{Entry, Kind};
use varve_sys::Dir;

use crate::contents::{Content, Contents, Hash};
use crate::decode;
use crate::error::{BuildError, Result};
use crate::tar::Members;
use crate::tree::Tree;

/// The longest index or manifest that is read, in bytes (the specification asks
/// registries for 4 MiB).
const MAX_DOCUMENT: u64 = 4 << 20;
/// How many indexes may stand above a manifest.
const MAX_DEPTH: usize = 4;
const REFERENCE: &str = "org.opencontainers.image.ref.name";

#[derive(Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct ImageManifest {
    layers: Vec<Descriptor>,
}

#[derive(Deserialize, Clone)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize, Clone)]
struct Platform {
    architecture: String,
    os: String,
    variant: Option<String>,
}

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(BuildError::Image { why: why.into() })
}

/// Reads the image that `reference` names, or the only one, for the architecture that
/// is asked for (Debian's name).
pub(crate) fn read(
    layout: &Dir,
    reference: Option<&str>,
    architecture: Option<&str>,
    contents: &mut dyn Contents,
    names: &mut Hash<'_>,
) -> Result<Manifest> {
    let text = layout.read("oci-layout", MAX_DOCUMENT)?;
    let Layout { version } = json(&text, "oci-layout")?;
    if !version.starts_with("1.") {
        return refuse(format!("version {version} is not known: 1.0.0 is expected"));
    }
    let layers = find_image(layout, reference, architecture)?;

    let mut tree = Tree::new();
    for layer in &layers {
        tree.next_layer();
        read_layer(layout, layer, &mut tree, names, &|_| false)?;
    }
    let alive = tree.alive();
    let mut tree = Tree::new();
    for layer in &layers {
        tree.next_layer();
        let wanted = |inode: usize| alive.get(inode).copied().unwrap_or(false);
        read_layer(layout, layer, &mut tree, contents, &wanted)?;
    }
    let manifest = tree.finish()?;
    // Both passes saw the same bytes, so they agree on what lives; no manifest leaves
    // here if they did not.
    let passed_over = |entry: &Entry| matches!(entry.kind, Kind::Regular { digest, .. } if digest == Content::NONE.digest);
    if manifest.entries().iter().any(passed_over) {
        return refuse("a layer changed while it was read: build again");
    }
    Ok(manifest)
}

fn find_image(
    layout: &Dir,
    reference: Option<&str>,
    architecture: Option<&str>,
) -> Result<Vec<Descriptor>> {
    let index: Index = json(&layout.read("index.json", MAX_DOCUMENT)?, "index.json")?;
    let mut found = choose_reference(index.manifests, reference)?;
    for _ in 0..MAX_DEPTH {
        let bytes = document(layout, &found)?;
        match found.media_type.as_str() {
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => {
                let index: Index = json(&bytes, &found.digest)?;
                found = choose_platform(index.manifests, architecture)?;
            }
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => {
                return Ok(json::<ImageManifest>(&bytes, &found.digest)?.layers);
            }
            other => return refuse(format!("{other:?} is no image manifest or index")),
        }
    }
    refuse("too many indexes stand above the image's manifest")
}

fn choose_reference(manifests: Vec<Descriptor>, reference: Option<&str>) -> Result<Descriptor> {
    let name = |d: &Descriptor| d.annotations.get(REFERENCE).cloned();
    let all: Vec<String> = manifests.iter().filter_map(name).collect();
    let mut fitting: Vec<Descriptor> = match reference {
        None => manifests,
        Some(_) => manifests.into_iter().filter(|d| name(d).as_deref() == reference).collect(),
    };
    match (fitting.len(), reference) {
        (1, _) => Ok(fitting.remove(0)),
        (0, None) => refuse("index.json lists no image"),
        (0, Some(wanted)) => {
            refuse(format!("index.json has no image {wanted:?}; it has {}", all.join(", ")))
        }
        _ => refuse(format!(
            "index.json lists several images: say which by its name ({})",
            all.join(", ")
        )),
    }
}

/// OCI's (Go's) name of an architecture that Debian calls otherwise.
fn go_architecture(debian: &str) -> (&str, Option<&str>) {
    match debian {
        "i386" => ("386", None),
        "armhf" => ("arm", Some("v7")),
        "armel" => ("arm", Some("v5")),
        "ppc64el" => ("ppc64le", None),
        "mips64el" => ("mips64le", None),
        same => (same, None),
    }
}

fn choose_platform(manifests: Vec<Descriptor>, architecture: Option<&str>) -> Result<Descriptor> {
    // Attestations stand in an index as manifests for the platform unknown/unknown.
    let mut fitting: Vec<Descriptor> = manifests
        .into_iter()
        .filter(|d| d.platform.as_ref().is_none_or(|p| p.os == "linux"))
        .collect();
    let all: Vec<String> = fitting
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .map(|p| format!("{}{}", p.architecture, p.variant.as_deref().unwrap_or_default()))
        .collect();
    if let Some(wanted) = architecture {
        let (wanted, variant) = go_architecture(wanted);
        fitting.retain(|d| {
            d.platform.as_ref().is_none_or(|p| {
                p.architecture == wanted && (variant.is_none() || p.variant.as_deref() == variant)
            })
        });
    }
    if fitting.len() == 1 {
        return Ok(fitting.remove(0));
    }
    refuse(format!(
        "the image is there for {}: say for which architecture to build",
        if all.is_empty() { "no platform".into() } else { all.join(", ") }
    ))
}

fn json<T: for<'de> Deserialize<'de>>(bytes: &[u8], name: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| BuildError::Image {
        why: format!("{name} is not of the expected form: {error}"),
    })
}

/// Where a blob lies.
fn blob_path(descriptor: &Descriptor) -> Result<(String, Sha256Digest)> {
    let parsed = descriptor.digest.strip_prefix("sha256:").and_then(|hex| hex.parse().ok());
    match parsed {
        Some(digest) => Ok((format!("blobs/sha256/{digest}"), digest)),
        None => refuse(format!("{:?} is not a SHA-256 digest", descriptor.digest)),
    }
}

fn document(layout: &Dir, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let (path, digest) = blob_path(descriptor)?;
    let bytes = layout.read(&path, MAX_DOCUMENT)?;
    if bytes.len() as u64 != descriptor.size || Sha256Digest::of(&bytes) != digest {
        return refuse(format!("{path} is damaged: it does not have its digest and length"));
    }
    Ok(bytes)
}

/// Digests and counts what is read through it.
struct Digesting<R> {
    inner: R,
    sha256: Sha256,
    size: u64,
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.sha256.update(&buffer[..got]);
        self.size += got as u64;
        Ok(got)
    }
}

fn read_layer(
    layout: &Dir,
    layer: &Descriptor,
    tree: &mut Tree,
    contents: &mut dyn Contents,
    wanted: &dyn Fn(usize) -> bool,
) -> Result<()> {
    let (path, digest) = blob_path(layer)?;
    if !is_layer(&layer.media_type) {
        return refuse(format!(
            "the layer {path} has the type {:?}, which is not read",
            layer.media_type
        ));
    }
    let file = layout.open_file(&path)?;
    // One byte more than stated is enough to see that it is longer.
    let inner = file.take(layer.size.saturating_add(1));
    let mut blob = Digesting { inner, sha256: Sha256::new(), size: 0 };
    let read = |source| BuildError::Read { what: path.clone(), source };
    let result = (|| {
        let (bytes, _) = decode::open(&mut blob, &path)?;
        tree.take(&mut Members::new(bytes, path.clone()), contents, true, wanted)
    })();
    // The digest first: of a damaged blob every other complaint is only a consequence.
    io::copy(&mut blob, &mut io::sink()).map_err(read)?;
    if blob.size != layer.size || blob.sha256.finalize()[..] != digest.0 {
        return refuse(format!("{path} is damaged: it does not have its digest and length"));
    }
    result
}

/// Layers, also those that registries may not pass on, and Docker's.
fn is_layer(media_type: &str) -> bool {
    let oci = media_type
        .strip_prefix("application/vnd.oci.image.layer.")
        .map(|rest| rest.strip_prefix("nondistributable.").unwrap_or(rest));
    let docker = media_type.strip_prefix("application/vnd.docker.image.rootfs.");
    matches!(oci, Some("v1.tar" | "v1.tar+gzip" | "v1.tar+zstd"))
        || matches!(docker, Some("diff.tar" | "diff.tar.gzip" | "diff.tar.zstd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(reference: &str, architecture: &str, variant: Option<&str>) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: format!("sha256:{}", "0".repeat(64)),
            size: 0,
            annotations: [(REFERENCE.to_owned(), reference.to_owned())].into(),
            platform: Some(Platform {
                architecture: architecture.into(),
                os: if architecture == "unknown" { "unknown" } else { "linux" }.into(),
                variant: variant.map(Into::into),
            }),
        }
    }

    #[test]
    fn one_image_is_chosen_or_the_choice_is_named() {
        let two = || vec![descriptor("a", "amd64", None), descriptor("b", "arm64", None)];
        assert_eq!(choose_reference(two(), Some("b")).unwrap().annotations[REFERENCE], "b");
        let error = choose_reference(two(), None).err().unwrap().to_string();
        assert!(error.contains("(a, b)"), "{error}");
        assert!(choose_reference(two(), Some("c")).is_err());
    }

    #[test]
    fn a_platform_is_found_by_debians_name() {
        let all = || {
            vec![
                descriptor("", "amd64", None),
                descriptor("", "arm", Some("v5")),
                descriptor("", "arm", Some("v7")),
                descriptor("", "unknown", None),
            ]
        };
        let found = choose_platform(all(), Some("armhf")).unwrap().platform.unwrap();
        assert_eq!(found.variant.as_deref(), Some("v7"));
        assert!(choose_platform(all(), Some("amd64")).is_ok());
        let error = choose_platform(all(), None).err().unwrap().to_string();
        assert!(error.contains("amd64, armv5, armv7"), "{error}");
    }

    #[test]
    fn foreign_digests_are_refused() {
        let mut bad = descriptor("", "amd64", None);
        for digest in ["sha512:00", "sha256:../../etc/passwd", "md5:x", ""] {
            bad.digest = digest.into();
            assert!(blob_path(&bad).is_err());
        }
    }
}
