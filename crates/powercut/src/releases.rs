//! Small releases that hold something of everything, and a repository of them.
//!
//! ```text
//! outside/repo/      a TUF repository, made by varve_publish
//!         keys/      its keys
//!         tree/      the tree that is being built; gone afterwards
//! ```
//!
//! A release is a few hundred paths and a few megabytes: large enough for a file beyond
//! 1 MiB, hard links, whiteouts and a directory that becomes a file, small enough for
//! thousands of disk states. Each byte follows from the path and the version.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use varve_build::{BuildOptions, Source};
use varve_format::{ReleaseName, Sha256Digest};
use varve_publish::{InitOptions, KeyDirs, Repository, Role, RotateOptions};
use varve_sys::Dir;
use varve_sys::task::{Cancel, Silent};

/// How large releases are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weight {
    /// About 3 MiB, of which an upgrade fetches 2.
    Light,
    /// An upgrade fetches about 20 MiB: many times what may be lost.
    Heavy,
    /// As light, and a version differs from the others in a few bytes of each file: there
    /// are deltas.
    Alike,
}

/// The repository below `outside`.
#[derive(Debug)]
pub struct Published {
    outside: PathBuf,
    keys: KeyDirs,
    repository: Repository,
    weight: Weight,
}

fn words(error: &dyn std::error::Error) -> String {
    varve_sys::whole_message(error)
}

impl Published {
    /// Makes an empty repository.
    pub fn init(outside: &Path, weight: Weight, now: Timestamp) -> Result<Self, String> {
        let keys = KeyDirs::below(&outside.join("keys"));
        let repository = Repository::init(&path(outside), &keys, &InitOptions::default(), now)
            .map_err(|error| words(&error))?;
        Ok(Self { outside: outside.to_owned(), keys, repository, weight })
    }

    /// Builds and publishes release number `version`, from 1 on; gives its name.
    pub fn publish(&self, version: u64, now: Timestamp) -> Result<String, String> {
        let tree = self.outside.join("tree");
        make_tree(&tree, version, self.weight).map_err(|error| words(&error))?;
        let name: ReleaseName = name(version).parse().map_err(|_| "a bad name".to_owned())?;
        let source = Source::Directory(Dir::open(&tree).map_err(|error| words(&error))?);
        let repo = Dir::open(path(&self.outside)).map_err(|error| words(&error))?;
        let mut options = BuildOptions::new(name.clone());
        options.architecture = Some("amd64".to_owned());
        options.level = 1;
        varve_build::build(source, &repo, &options, &Silent, &Cancel::new())
            .map_err(|error| words(&error))?;
        let mut deltas = Vec::new();
        if self.weight == Weight::Alike && version > 1 {
            let from = [self::name(version - 1).parse().map_err(|_| "a bad name".to_owned())?];
            let made = self.repository.make_deltas(&from, &name, &Silent, &Cancel::new());
            deltas = made.map_err(|error| words(&error))?;
        }
        self.repository
            .publish_with(&name, "stable", None, &deltas, &self.keys, now, false)
            .map_err(|error| words(&error))?;
        fs::remove_dir_all(&tree).map_err(|error| words(&error))?;
        Ok(name.to_string())
    }

    /// Gives a role new keys.
    pub fn rotate(&self, role: Role, now: Timestamp) -> Result<(), String> {
        let options = RotateOptions::default();
        let rotated = self.repository.rotate(role, &options, &self.keys, now);
        rotated.map(drop).map_err(|error| words(&error))
    }
}

/// The root of trust that a device is given.
pub fn trust_root(outside: &Path) -> Result<Vec<u8>, String> {
    fs::read(path(outside).join("metadata/1.root.json")).map_err(|e| words(&e))
}

/// Where the repository is.
pub fn path(outside: &Path) -> PathBuf {
    outside.join("repo")
}

/// A release's name.
pub fn name(version: u64) -> String {
    format!("system-{version}")
}

/// The text of `/etc/settings` in a release.
pub fn settings(release: &str) -> String {
    let line = |number: u64| match number {
        5 => format!("release = {release}\n"),
        number => format!("option {number} = as the publisher has it\n"),
    };
    (0..40).map(line).collect()
}

/// The bytes of a file, which no compression makes smaller.
fn noise(path: &str, version: u64, length: usize) -> Vec<u8> {
    let seed = Sha256Digest::of(format!("{path} {version}").as_bytes());
    let mut bytes = vec![0; length];
    StdRng::from_seed(seed.0).fill_bytes(&mut bytes);
    bytes
}

fn file(root: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let path = root.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = File::options().write(true).create_new(true).open(&path)?;
    file.write_all(bytes)?;
    fs::set_permissions(&path, Permissions::from_mode(mode))
}

/// The last version up to `version` in which a thing that changes every `every`th time
/// changed.
fn changed(version: u64, every: u64) -> u64 {
    version - version % every
}

fn make_tree(root: &Path, version: u64, weight: Weight) -> io::Result<()> {
    let noise = |path: &str, version: u64, length: usize| match weight {
        Weight::Alike if length > 10_000 => {
            let mut bytes = noise(path, 0, length);
            bytes[length / 2..][..40].copy_from_slice(&noise(path, version, 40));
            bytes
        }
        _ => noise(path, version, length),
    };
    fs::create_dir_all(root)?;
    fs::set_permissions(root, Permissions::from_mode(0o755))?;
    for name in ["dev", "home", "proc", "root", "run", "sys", "tmp", "var/lib"] {
        fs::create_dir_all(root.join(name))?;
    }
    file(root, "usr/sbin/init", &noise("init", 0, 40_000), 0o755)?;
    file(root, "usr/bin/su", &noise("su", changed(version, 2), 30_000), 0o4755)?;
    file(root, "usr/lib/version", format!("{version}\n").as_bytes(), 0o644)?;
    file(root, "etc/hostname", b"varve\n", 0o644)?;
    file(root, "etc/release", format!("release {version}\n").as_bytes(), 0o644)?;
    file(root, "etc/settings", settings(&name(version)).as_bytes(), 0o644)?;
    file(root, "usr/lib/empty", b"", 0o644)?;
    // A quarter of the small files changes with each release.
    for number in 0..160_u64 {
        let name = format!("usr/share/part-{}/item-{number}", number % 8);
        let of = if number % 4 == version % 4 { version } else { 0 };
        let length = StdRng::seed_from_u64(number).random_range(100..6_000);
        file(root, &name, &noise(&name, of, length), 0o644)?;
    }
    for number in 0..5_u64 {
        let name = format!("usr/lib/lib{number}.so");
        let of = if number < 2 { version } else { 0 };
        file(root, &name, &noise(&name, of, 250_000), 0o644)?;
    }
    file(root, "usr/lib/large.so", &noise("large", version, 1_300_000), 0o755)?;
    if weight == Weight::Heavy {
        for number in 0..14_u64 {
            let name = format!("usr/lib/heavy/{number}");
            // Contents around and far beyond the size of a frame.
            let length = 300_000 + 170_000 * number as usize;
            file(root, &name, &noise(&name, version, length), 0o644)?;
        }
    }
    fs::hard_link(root.join("usr/lib/lib0.so"), root.join("usr/lib/lib0.so.1"))?;
    fs::hard_link(root.join("usr/bin/su"), root.join("usr/bin/sudo"))?;
    // As Debian has it: the boot stage looks for /sbin/init.
    symlink("usr/sbin", root.join("sbin"))?;
    symlink(format!("lib{}.so", version % 5), root.join("usr/lib/libcurrent.so"))?;
    let sparse = root.join("usr/lib/sparse");
    File::options().write(true).create_new(true).open(&sparse)?.set_len(200_000)?;
    // What comes, goes, and changes its kind.
    if version % 2 == 1 {
        file(root, "usr/share/odd/one", &noise("odd", 0, 3_000), 0o644)?;
        file(root, "usr/share/kind", b"a file\n", 0o644)?;
    } else {
        file(root, "usr/share/even/deep/two", &noise("even", 0, 3_000), 0o600)?;
        file(root, "usr/share/kind/inner", b"now a directory\n", 0o644)?;
    }
    Ok(())
}
