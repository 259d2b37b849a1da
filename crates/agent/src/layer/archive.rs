//! Directories and tars as sources of a layer. Nothing of a tar is believed: names are
//! checked, links inside it are never followed, what it asks for is bounded by the room.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use varve_format::TreePath;
use varve_format::tree::{Metadata, Time};
use varve_rootfs::compose::{ComposeError, Composer};
use varve_sys::{Dir, FileType, NewFile, Stat, SysError, space};

use super::LayerError;
use crate::config::Allowed;
use crate::device::Device;

/// The longest that an entry's head may be, in bytes: its names, its attributes (the kernel
/// takes 64 KiB of one), the map of a sparse file, and what stands between two entries.
const MAX_HEAD: u64 = 1 << 20;
/// What a path takes of the room at least, in bytes: its inode and its name. So an archive of
/// empty entries without end ends.
const ENTRY: u64 = 1024;
/// Inodes that a layer leaves free, for the records of the change.
const INODES_LEFT: u64 = 64;

/// What every source is held to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    /// For messages.
    pub(super) source: &'a Path,
    /// Which device nodes are taken.
    pub(super) devices: &'a Allowed<false>,
}

impl Rules<'_> {
    pub(super) fn compose(&self, error: ComposeError) -> LayerError {
        match error {
            ComposeError::Sys(error) => LayerError::Sys(error),
            source => LayerError::Compose { path: self.source.to_owned(), source },
        }
    }

    pub(super) fn bad(&self, why: impl Into<String>) -> LayerError {
        LayerError::Source { path: self.source.to_owned(), why: why.into() }
    }
}

/// Room that may be used, counted down while it is.
#[derive(Debug)]
pub(super) struct Budget {
    free: u64,
    left: u64,
    free_inodes: u64,
    left_inodes: u64,
}

impl Budget {
    /// What the device's disk has beyond the reserve.
    pub(super) fn of(device: &Device) -> Result<Self, LayerError> {
        let space = space::space(device.store.dir())?;
        let free = space.free.saturating_sub(device.config.reserve.0);
        let free_inodes = space.free_inodes.saturating_sub(INODES_LEFT);
        Ok(Self { free, left: free, free_inodes, left_inodes: free_inodes })
    }

    /// One more path, whatever it is.
    fn entry(&mut self) -> Result<(), LayerError> {
        self.left_inodes =
            self.left_inodes.checked_sub(1).ok_or(LayerError::Inodes { free: self.free_inodes })?;
        self.take(ENTRY)
    }

    pub(super) fn take(&mut self, bytes: u64) -> Result<(), LayerError> {
        self.left = self.left.checked_sub(bytes).ok_or(LayerError::Room { free: self.free })?;
        Ok(())
    }
}

/// Everything below a directory.
pub(super) fn directory(
    dir: &Dir,
    composer: &mut Composer<'_>,
    budget: &mut Budget,
    rules: &Rules<'_>,
) -> Result<(), LayerError> {
    let mut links = HashMap::new();
    below(dir, &TreePath::root(), composer, budget, rules, &mut links)
}

fn below(
    dir: &Dir,
    at: &TreePath,
    composer: &mut Composer<'_>,
    budget: &mut Budget,
    rules: &Rules<'_>,
    links: &mut HashMap<(u64, u64), TreePath>,
) -> Result<(), LayerError> {
    for entry in dir.names()? {
        budget.entry()?;
        let name = &entry.name;
        let path = at.join(name.as_bytes()).map_err(|error| rules.bad(error.to_string()))?;
        let stat = dir.stat(name)?;
        if !stat.is_dir() && stat.links > 1 {
            if let Some(first) = links.get(&(stat.device, stat.inode)) {
                composer.hard_link(&path, first).map_err(|error| rules.compose(error))?;
                continue;
            }
            links.insert((stat.device, stat.inode), path.clone());
        }
        let meta = metadata(&stat, dir.xattrs(name)?);
        let bits = stat.mode & 0o170000;
        let done = match stat.file_type() {
            FileType::Directory => composer.directory(&path, &meta),
            FileType::RegularFile => {
                budget.take(stat.blocks * 512)?;
                let source = dir.open_file(name)?;
                composer.file(&path, &meta, |file| file.copy_from(&source))
            }
            FileType::Symlink => composer.symlink(&path, &dir.read_link(name)?, &meta),
            FileType::CharacterDevice | FileType::BlockDevice if !rules.devices.at(&path) => {
                return Err(LayerError::Device { path });
            }
            _ => composer.special(&path, bits, stat.special, &meta),
        };
        done.map_err(|error| rules.compose(error))?;
        if stat.is_dir() {
            below(&dir.open_dir(name)?, &path, composer, budget, rules, links)?;
        }
    }
    Ok(())
}

fn metadata(stat: &Stat, xattrs: varve_sys::Xattrs) -> Metadata {
    Metadata {
        mode: stat.mode & 0o7777,
        uid: stat.uid,
        gid: stat.gid,
        mtime: Time { seconds: stat.mtime.0, nanoseconds: stat.mtime.1 },
        xattrs,
    }
}

/// A stream of which no more is read than was granted: whoever parses it keeps a head in
/// memory whole, however long it says to be.
struct Granted<R> {
    stream: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Granted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(std::io::Error::other("a head in it has no end"));
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.stream.read(&mut buffer[..most])?;
        self.left.set(left - count as u64);
        Ok(count)
    }
}

/// Everything in a tar; gives its paths in order, as it names them.
pub(super) fn tar(
    stream: impl Read,
    composer: &mut Composer<'_>,
    budget: &mut Budget,
    rules: &Rules<'_>,
) -> Result<Vec<TreePath>, LayerError> {
    let broken = |error: std::io::Error| rules.bad(format!("its tar is damaged: {error}"));
    let granted = Rc::new(Cell::new(MAX_HEAD));
    let mut archive = tar::Archive::new(Granted { stream, left: granted.clone() });
    let mut paths = Vec::new();
    for entry in archive.entries().map_err(broken)? {
        budget.entry()?;
        let mut entry = entry.map_err(broken)?;
        granted.set(MAX_HEAD);
        let path = tree_path(&entry.path_bytes()).map_err(|why| rules.bad(why))?;
        let mut meta = Metadata::default();
        let mut whole = None;
        if let Some(extensions) = entry.pax_extensions().map_err(broken)? {
            for extension in extensions {
                let extension = extension.map_err(broken)?;
                let key = extension.key_bytes();
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    meta.xattrs.push((name.into(), extension.value_bytes().into()));
                } else if key == b"mtime" {
                    whole = extension.value().ok().and_then(pax_time);
                }
            }
            meta.xattrs.sort();
        }
        let header = entry.header();
        meta.mode = header.mode().map_err(broken)? & 0o7777;
        meta.uid = number(header.uid().map_err(broken)?);
        meta.gid = number(header.gid().map_err(broken)?);
        let seconds = i64::try_from(header.mtime().map_err(broken)?).unwrap_or(i64::MAX);
        meta.mtime = whole.unwrap_or(Time { seconds, nanoseconds: 0 });
        let kind = header.entry_type();
        let device = match (header.device_major(), header.device_minor()) {
            (Ok(Some(major)), Ok(Some(minor))) => rustix::fs::makedev(major, minor),
            _ => 0,
        };
        let target = entry.link_name_bytes().map(|target| target.into_owned());
        let target = || target.clone().ok_or_else(|| rules.bad(format!("{path} links nowhere")));
        use tar::EntryType::{Block, Char, Continuous, Directory, Fifo, GNUSparse, Link};
        use tar::EntryType::{Regular, Symlink, XGlobalHeader};
        let done = match kind {
            Directory => composer.directory(&path, &meta),
            Regular | Continuous | GNUSparse => {
                budget.take(entry.size())?;
                granted.set(entry.size().saturating_add(MAX_HEAD));
                let done = composer.file(&path, &meta, |file| fill(file, &mut entry));
                granted.set(MAX_HEAD);
                done
            }
            Link => {
                let target = tree_path(&target()?).map_err(|why| rules.bad(why))?;
                composer.hard_link(&path, &target)
            }
            Symlink => composer.symlink(&path, &target()?, &meta),
            Char | Block if !rules.devices.at(&path) => return Err(LayerError::Device { path }),
            Char => composer.special(&path, 0o020000, device, &meta),
            Block => composer.special(&path, 0o060000, device, &meta),
            Fifo => composer.special(&path, 0o010000, 0, &meta),
            XGlobalHeader => continue,
            _ => return Err(rules.bad(format!("{path} is of a kind that no tree has"))),
        };
        done.map_err(|error| rules.compose(error))?;
        paths.push(path);
    }
    Ok(paths)
}

/// Copies a stream into a new file, leaving holes.
pub(super) fn fill(file: &mut NewFile, stream: &mut impl Read) -> varve_sys::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut length = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return file.set_length(length),
            Ok(count) => {
                length += count as u64;
                file.write_sparse(&buffer[..count])?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SysError::new("read the content of", file.path(), error)),
        }
    }
}

/// `./usr/bin/x`, `usr/bin/` and `/usr/bin` as a tree has them.
pub(super) fn tree_path(bytes: &[u8]) -> Result<TreePath, String> {
    let mut rest = bytes;
    while let Some(shorter) = rest.strip_prefix(b"./").or_else(|| rest.strip_prefix(b"/")) {
        rest = shorter;
    }
    while let Some(shorter) = rest.strip_suffix(b"/") {
        rest = shorter;
    }
    let rest = if rest == b"." { &b""[..] } else { rest };
    TreePath::new(rest).map_err(|error| error.to_string())
}

fn number(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// `1700000000.123`, as pax has it.
fn pax_time(text: &str) -> Option<Time> {
    let (seconds, rest) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = rest.chars().chain("000000000".chars()).take(9).collect();
    Some(Time { seconds: seconds.parse().ok()?, nanoseconds: digits.parse().ok()? })
}

/// A stream made plain, whatever it is compressed with, by its first bytes.
pub(super) fn plain<'a>(mut stream: impl Read + 'a) -> std::io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0; 6];
    let mut got = 0;
    while got < magic.len() {
        match stream.read(&mut magic[got..])? {
            0 => break,
            count => got += count,
        }
    }
    let magic = magic[..got].to_vec();
    let whole = std::io::Cursor::new(magic.clone()).chain(stream);
    Ok(match &magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::Decoder::new(whole)?;
            // As much as `tar --zstd` and dpkg make without being asked.
            decoder.window_log_max(27)?;
            Box::new(decoder)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            let stream = liblzma::stream::Stream::new_stream_decoder(256 << 20, 0x08)
                .map_err(std::io::Error::other)?;
            Box::new(liblzma::read::XzDecoder::new_stream(whole, stream))
        }
        _ => Box::new(whole),
    })
}

/// Whether bytes begin as a tar does that is not compressed.
pub(super) fn is_tar(first: &[u8]) -> bool {
    first.get(257..262) == Some(b"ustar")
}

/// Whether bytes begin as something that [`plain`] understands.
pub(super) fn is_compressed(first: &[u8]) -> bool {
    [&b"\x1f\x8b"[..], b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0"]
        .iter()
        .any(|magic| first.starts_with(magic))
}

/// A file's name without what says how it is packed: `games` of `games.tar.gz`.
pub(super) fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or(OsStr::new("layer")).to_string_lossy().into_owned();
    let ends = [".gz", ".xz", ".zst", ".tgz", ".txz", ".tar", ".deb"];
    let mut name = name.as_str();
    while let Some(shorter) = ends.iter().find_map(|end| name.strip_suffix(end)) {
        name = shorter;
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_archives_are_checked() {
        let good = |bytes: &[u8]| tree_path(bytes).unwrap().to_string();
        assert_eq!(good(b"./usr/bin/x"), "/usr/bin/x");
        assert_eq!(good(b"/./usr/"), "/usr");
        assert_eq!(good(b"./"), "/");
        for bad in [&b"../x"[..], b"a/../../x", b"a//b", b"a\0b"] {
            assert!(tree_path(bad).is_err());
        }
        assert_eq!(stem(Path::new("/x/games-1.2.tar.zst")), "games-1.2");
        assert_eq!(
            pax_time("1700000000.25"),
            Some(Time { seconds: 1_700_000_000, nanoseconds: 250_000_000 })
        );
    }
}
