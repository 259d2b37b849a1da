//! `incoming/`: contents that were verified, and parts of large ones.
//!
//! ```text
//! incoming/<digest>                 verified, whole and durable
//!          <digest>.<length>.part   the first <length> bytes are verified and durable
//!          .<digest>.new            being written; worth nothing after a cut
//!          .reached.new             how far beyond its name a part goes
//! ```
//!
//! The commit point is a rename, and the rename comes after a sync of the file system:
//! so a name that reads as a digest was complete before it appeared, and the length in a
//! part's name was on the disk before the name said so. Batches of at most [`BATCH_BYTES`]
//! or [`BATCH_TIME`] share one sync: that much, and no more, is lost to a power cut.
//!
//! A process that is killed loses none of it. What it wrote is still there: the next one
//! reads it, and what has the right digest is synced and gets its name. Of a part, the
//! bytes beyond its name are vouched for by their SHA-256 in `.reached.new`.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use varve_format::pack::MAX_FRAME;
use varve_format::verity::ContentHasher;
use varve_format::{ContentDigest, Sha256Digest};
use varve_sys::{Dir, NewFile, SysError, durable, faults};

/// The most bytes that wait for a sync.
pub const BATCH_BYTES: u64 = 4 << 20;
/// The longest that bytes wait for a sync.
pub const BATCH_TIME: Duration = Duration::from_secs(1);

/// What an earlier run left.
#[derive(Debug, Default)]
pub(crate) struct Here {
    pub(crate) complete: HashSet<ContentDigest>,
    /// Bytes at the beginning that are verified.
    pub(crate) parts: HashMap<ContentDigest, u64>,
}

impl Here {
    /// Reads `incoming/` and removes what a cut left unfinished.
    pub(crate) fn scan(dir: &Dir) -> Result<Self, SysError> {
        let mut here = Self::default();
        for entry in dir.names()? {
            let Some(name) = entry.name.to_str() else { continue };
            if let Ok(digest) = name.parse() {
                here.complete.insert(digest);
            } else if let Some((digest, length)) = part_of(name) {
                let better = here.parts.get(&digest).is_none_or(|&other| other < length);
                let whole = dir.stat(name)?.size >= length;
                let worse = if better && whole {
                    here.parts.insert(digest, length).map(|other| part_name(&digest, other))
                } else {
                    Some(name.to_owned())
                };
                if let Some(worse) = worse {
                    dir.unlink(&worse)?;
                }
            }
        }
        here.adopt(dir)?;
        Ok(here)
    }

    /// Takes over what an earlier process wrote and did not live to commit, if it is what
    /// it should be; removes the rest.
    fn adopt(&mut self, dir: &Dir) -> Result<(), SysError> {
        let mut renames = Vec::new();
        for (digest, length) in self.parts.clone() {
            // Written to its end, and not committed.
            let name = part_name(&digest, length);
            if dir.stat(&name)?.size > length && is_content(dir, &name, digest) {
                self.parts.remove(&digest);
                self.complete.insert(digest);
                renames.push((name, digest.to_hex()));
            }
        }
        if let Some((digest, reached)) = Reached::read(dir, &self.parts) {
            let old = self.parts.insert(digest, reached).unwrap_or_default();
            renames.push((part_name(&digest, old), part_name(&digest, reached)));
        }
        for entry in dir.names()? {
            let Some(name) = entry.name.to_str() else { continue };
            let Some(stem) = name.strip_prefix('.').and_then(|n| n.strip_suffix(".new")) else {
                continue;
            };
            match stem.parse::<ContentDigest>() {
                Ok(digest) if is_content(dir, name, digest) => {
                    self.complete.insert(digest);
                    renames.push((name.to_owned(), digest.to_hex()));
                }
                _ => dir.unlink(name)?,
            }
        }
        if renames.is_empty() {
            return Ok(());
        }
        // As in a commit: what a name promises is on the disk before the name is.
        durable::sync_file_system(dir)?;
        for (from, to) in renames {
            dir.rename_over(from, dir, to)?;
        }
        durable::sync_directory(dir)
    }
}

/// Whether a file holds this content.
fn is_content(dir: &Dir, name: &str, digest: ContentDigest) -> bool {
    let mut hasher = ContentHasher::new();
    let read = each_block(dir, name, 0, u64::MAX, |bytes| hasher.update(bytes));
    read.is_some() && (faults::out("check.adopted") || hasher.finish() == digest)
}

/// Reads from `start` up to `end` or the end of the file; gives the position reached.
fn each_block(
    dir: &Dir,
    name: &str,
    start: u64,
    end: u64,
    mut take: impl FnMut(&[u8]),
) -> Option<u64> {
    let mut file = dir.open_file(name).ok()?;
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut rest = file.take(end - start);
    let (mut position, mut buffer) = (start, vec![0; 64 * 1024]);
    loop {
        match rest.read(&mut buffer) {
            Ok(0) => return Some(position),
            Ok(count) => {
                take(&buffer[..count]);
                position += count as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// How far beyond its name a part goes: `DIGEST FROM TO SHA256`, numbers of 20 digits, so
/// that each line is written over the one before in one go.
struct Reached {
    file: NewFile,
    from: u64,
    hasher: Sha256,
}

const REACHED: &str = ".reached.new";

impl Reached {
    fn new(dir: &Dir, from: u64) -> Result<Self, SysError> {
        let file = match dir.edit_file(REACHED) {
            Err(error) if error.is_not_found() => dir.create_file(REACHED, 0o600)?,
            other => other?,
        };
        Ok(Self { file, from, hasher: Sha256::new() })
    }

    /// The part was written up to `to`.
    fn write(&mut self, digest: &ContentDigest, to: u64, bytes: &[u8]) -> Result<(), SysError> {
        self.hasher.update(bytes);
        let sha256 = Sha256Digest(self.hasher.clone().finalize().into());
        let line = format!("{digest} {:020} {to:020} {sha256}\n", self.from);
        self.file.seek_to(0)?;
        self.file.write_all(line.as_bytes())
    }

    /// What an earlier process left, if it is true.
    fn read(dir: &Dir, parts: &HashMap<ContentDigest, u64>) -> Option<(ContentDigest, u64)> {
        let text = String::from_utf8(dir.read(REACHED, 1024).ok()?).ok()?;
        let mut words = text.split_whitespace();
        let digest = words.next()?.parse().ok()?;
        let (from, to) = (words.next()?.parse().ok()?, words.next()?.parse::<u64>().ok()?);
        let sha256: Sha256Digest = words.next()?.parse().ok()?;
        if parts.get(&digest) != Some(&from) || to <= from {
            return None;
        }
        let mut hasher = Sha256::new();
        let end = each_block(dir, &part_name(&digest, from), from, to, |b| hasher.update(b))?;
        let right =
            faults::out("check.reached") || Sha256Digest(hasher.finalize().into()) == sha256;
        (end == to && right).then_some((digest, to))
    }
}

/// What a content is called until it is durable.
pub(crate) fn new_name(digest: &ContentDigest) -> String {
    format!(".{digest}.new")
}

pub(crate) fn part_name(digest: &ContentDigest, length: u64) -> String {
    format!("{digest}.{length}.part")
}

fn part_of(name: &str) -> Option<(ContentDigest, u64)> {
    let (digest, length) = name.strip_suffix(".part")?.split_once('.')?;
    Some((digest.parse().ok()?, length.parse().ok()?))
}

/// Writes contents into `incoming/`.
pub(crate) struct Store<'a> {
    dir: &'a Dir,
    /// Written, to be renamed once synced: temporary name, digest.
    batch: Vec<(String, ContentDigest)>,
    waiting: u64,
    since: Instant,
    part: Option<Part>,
    pub(crate) contents: u64,
    pub(crate) content_bytes: u64,
}

struct Part {
    digest: ContentDigest,
    file: NewFile,
    /// The length that its name says.
    durable: u64,
    written: u64,
    reached: Reached,
}

impl<'a> Store<'a> {
    pub(crate) fn new(dir: &'a Dir) -> Self {
        Self {
            dir,
            batch: Vec::new(),
            waiting: 0,
            since: Instant::now(),
            part: None,
            contents: 0,
            content_bytes: 0,
        }
    }

    /// Writes a whole content, verified.
    pub(crate) fn whole(&mut self, digest: ContentDigest, bytes: &[u8]) -> Result<(), SysError> {
        let temporary = new_name(&digest);
        let mut file = self.dir.create_file(&temporary, 0o600)?;
        let written = file.write_sparse(bytes).and_then(|()| file.set_length(bytes.len() as u64));
        if let Err(error) = written {
            let _ = self.dir.unlink(&temporary);
            return Err(error);
        }
        self.batch.push((temporary, digest));
        self.wrote(bytes.len() as u64)
    }

    /// Writes the next bytes of a large content, whose frames are verified; `resume` is
    /// where this run began it.
    pub(crate) fn piece(
        &mut self,
        digest: ContentDigest,
        resume: u64,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), SysError> {
        if self.part.as_ref().is_none_or(|part| part.digest != digest) {
            self.leave_part()?;
            let name = part_name(&digest, resume);
            let mut file = if offset > 0 {
                self.dir.edit_file(&name)?
            } else {
                let _ = self.dir.remove_all(&name);
                self.dir.create_file(&name, 0o600)?
            };
            file.set_length(offset)?;
            file.seek_to(offset)?;
            let reached = Reached::new(self.dir, resume)?;
            self.part = Some(Part { digest, file, durable: resume, written: offset, reached });
        }
        let Some(part) = &mut self.part else { return Ok(()) };
        let written = part.written + bytes.len() as u64;
        if bytes.iter().all(|&byte| byte == 0) {
            // A frame of zeros is a hole, however small the frames are.
            part.file.set_length(written)?;
            part.file.seek_to(written)?;
        } else {
            part.file.write_sparse(bytes)?;
        }
        // Only what was written counts: a full disk ends this early, and what stood
        // before is kept.
        part.written = written;
        // From a boundary that is within what the name says nothing can be vouched for.
        if offset >= part.reached.from {
            part.reached.write(&digest, written, bytes)?;
        }
        self.wrote(bytes.len() as u64)
    }

    /// The large content under way is complete, and its digest is the right one.
    pub(crate) fn finish_part(&mut self) -> Result<(), SysError> {
        if let Some(mut part) = self.part.take() {
            part.file.set_length(part.written)?;
            self.batch.push((part_name(&part.digest, part.durable), part.digest));
        }
        self.commit_if_due()
    }

    /// A large content turned out to be another, so the part that `resume` names had
    /// rotted, or the index lies: nothing of it is kept.
    pub(crate) fn drop_part(&mut self, digest: &ContentDigest, resume: u64) {
        let part = self.part.take_if(|part| part.digest == *digest);
        let length = part.map_or(resume, |part| part.durable);
        let _ = self.dir.unlink(part_name(digest, length));
    }

    /// Another large content begins before this one ended (no pack is made so): what is
    /// written of it is kept.
    fn leave_part(&mut self) -> Result<(), SysError> {
        if self.part.is_some() {
            self.commit()?;
            self.part = None;
        }
        Ok(())
    }

    fn wrote(&mut self, bytes: u64) -> Result<(), SysError> {
        if self.waiting == 0 {
            self.since = Instant::now();
        }
        self.waiting += bytes;
        self.content_bytes += bytes;
        self.commit_if_due()
    }

    pub(crate) fn commit_if_due(&mut self) -> Result<(), SysError> {
        // The next frame would go beyond what may be lost.
        let full = self.waiting > BATCH_BYTES - u64::from(MAX_FRAME);
        let due = full || (self.waiting > 0 && self.since.elapsed() >= BATCH_TIME);
        if due { self.commit() } else { Ok(()) }
    }

    /// Makes everything written so far durable, then gives it its names, and makes those
    /// durable too: a name that a cut takes away is a batch that is fetched again, on top
    /// of the one under way.
    pub(crate) fn commit(&mut self) -> Result<(), SysError> {
        if self.waiting == 0 && self.batch.is_empty() {
            return Ok(());
        }
        if let Some(part) = &mut self.part {
            part.file.set_length(part.written)?;
        }
        durable::sync_file_system(self.dir)?;
        self.waiting = 0;
        for (temporary, digest) in self.batch.drain(..) {
            self.dir.rename_over(&temporary, self.dir, digest.to_hex())?;
            self.contents += 1;
        }
        if let Some(part) = &mut self.part
            && part.written > part.durable
        {
            let new = part_name(&part.digest, part.written);
            self.dir.rename_over(part_name(&part.digest, part.durable), self.dir, &new)?;
            part.durable = part.written;
            // Opened anew, so that messages and traces know it by the name that it has.
            part.file = self.dir.edit_file(&new)?;
            part.file.seek_to(part.written)?;
            part.reached = Reached::new(self.dir, part.written)?;
        }
        durable::sync_directory(self.dir)
    }

    /// Commits what is left.
    pub(crate) fn close(mut self) -> Result<(u64, u64), SysError> {
        self.commit()?;
        match self.dir.unlink(REACHED) {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        Ok((self.contents, self.content_bytes))
    }
}
