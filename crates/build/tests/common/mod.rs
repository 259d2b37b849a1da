//! What the tests share: folders, builds, archives made by hand.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

use varve_build::repo::ContentReader;
use varve_build::{BuildError, BuildOptions, BuildReport, Source};
use varve_format::manifest::Manifest;
use varve_format::tree::Kind;
use varve_sys::Dir;
use varve_sys::task::{Cancel, Silent};

/// A folder with a repository in it.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("repo")).unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn repo(&self) -> Dir {
        Dir::open(self.path("repo")).unwrap()
    }

    pub fn build(&self, name: &str, source: Source) -> Result<BuildReport, BuildError> {
        self.build_with(source, &options(name))
    }

    pub fn build_with(
        &self,
        source: Source,
        options: &BuildOptions,
    ) -> Result<BuildReport, BuildError> {
        varve_build::build(source, &self.repo(), options, &Silent, &Cancel::new())
    }

    pub fn build_tar(&self, name: &str, bytes: &[u8]) -> Result<BuildReport, BuildError> {
        self.build(name, tar_source(bytes))
    }

    /// The manifest of a built release, after every content was read back out of the
    /// packs (which holds it against its digest).
    pub fn manifest(&self, report: &BuildReport) -> Manifest {
        let repo = self.repo();
        let manifest = varve_build::repo::load_manifest(&repo, &report.record).unwrap();
        let mut contents = ContentReader::open(&repo, &report.record.packs).unwrap();
        for (digest, size) in manifest.contents() {
            assert_eq!(contents.size(&digest).unwrap(), size);
            contents.copy(&digest, &mut |_| Ok(())).unwrap();
        }
        for pack in &report.record.packs {
            varve_build::repo::check_pack(&repo, pack, &Silent, &Cancel::new()).unwrap();
        }
        manifest
    }
}

pub fn options(name: &str) -> BuildOptions {
    BuildOptions { level: 3, ..BuildOptions::new(name.parse().unwrap()) }
}

pub fn tar_source(bytes: &[u8]) -> Source {
    let reader = Box::new(Cursor::new(bytes.to_vec()));
    Source::Tar { reader, name: "test.tar".into(), size: None }
}

/// The whole chain of an error, as a command shows it.
pub fn shown(error: &BuildError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

/// Runs a program that must succeed; `false` when it is not installed.
pub fn run(program: &str, arguments: &[&str], folder: &Path) -> bool {
    let made = Command::new(program).args(arguments).current_dir(folder).output();
    match made {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {arguments:?}: {text}");
            true
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("NOTE: {program} is not installed: this part is not tested");
            false
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// Whether this runs as root; says so loudly when not.
pub fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("NOTE: not root: owners, devices and trusted attributes are NOT TESTED");
    }
    is_root
}

/// A tar archive made by hand, block by block.
#[derive(Default, Clone)]
pub struct Archive(pub Vec<u8>);

impl Archive {
    /// One header with these fields, and its data padded to whole blocks.
    pub fn raw(
        mut self,
        name: &[u8],
        type_flag: u8,
        link: &[u8],
        size: &[u8],
        data: &[u8],
    ) -> Self {
        let mut block = [0u8; 512];
        block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        block[100..107].copy_from_slice(b"0000644");
        block[108..115].copy_from_slice(b"0000000");
        block[116..123].copy_from_slice(b"0000000");
        block[124..124 + size.len()].copy_from_slice(size);
        block[136..147].copy_from_slice(b"15071674000");
        block[156] = type_flag;
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..263].copy_from_slice(b"ustar\0");
        block[263..265].copy_from_slice(b"00");
        seal(&mut block);
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn entry(self, name: &str, type_flag: u8, link: &str, data: &[u8]) -> Self {
        let size = format!("{:011o}", data.len());
        self.raw(name.as_bytes(), type_flag, link.as_bytes(), size.as_bytes(), data)
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(name, b'0', "", data)
    }

    pub fn dir(self, name: &str) -> Self {
        self.entry(name, b'5', "", b"")
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(name, b'1', target, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(name, b'2', target, b"")
    }

    /// An extended header for the next member.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = 3 + key.len() + value.len();
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.entry("PaxHeaders/x", b'x', "", &text)
    }

    /// The two blocks of zeros at the end.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// Writes the checksum.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A content of this tree by path.
pub fn content(place: &Place, report: &BuildReport, path: &str) -> Vec<u8> {
    let manifest = place.manifest(report);
    let path = varve_format::TreePath::new(path.as_bytes()).unwrap();
    let entry = manifest.get(&path).unwrap_or_else(|| panic!("{path} is not there"));
    let Kind::Regular { size, digest } = manifest.inode(entry).kind else {
        panic!("{path} is no file")
    };
    if size == 0 {
        return Vec::new();
    }
    let mut contents = ContentReader::open(&place.repo(), &report.record.packs).unwrap();
    contents.read(&digest, 1 << 30).unwrap()
}

/// The paths of a tree, without the root.
pub fn paths(manifest: &Manifest) -> Vec<String> {
    manifest.entries()[1..].iter().map(|e| e.path.to_string()).collect()
}
