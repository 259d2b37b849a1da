//! A tar archive as a stream of members: old, ustar, GNU and POSIX (pax) forms.
//!
//! Read strictly, because programs that guess differently at a strange archive are how
//! files get smuggled in: an unknown type, a link with data, a broken number or a
//! missing end is refused, with the place.
//!
//! ```text
//! [x header][records]  [L header][name]  [header][data, padded to 512] ... [zeros] rest
//!  for the next member  the same, GNU's                                    ignored
//! ```
//!
//! Not read by the `tar` crate: it splits extended headers at newlines (an attribute's
//! value may hold one), knows one of the four sparse forms, and takes a cut at a member's
//! end for the end.

mod acl;
mod header;
mod pax;

use std::io::{self, Read};

use header::{BLOCK, Header};
use pax::Pax;
use varve_format::tree::{Device, Time, Xattrs};

use crate::error::{BuildError, Result};

/// The longest extended header or long name that is read, in bytes. An attribute has
/// 64 KiB at most, and an inode as many in sum on most file systems.
const MAX_EXTENDED: u64 = 4 << 20;
/// The longest file: what ext4 can hold. Only a sparse file states such a length without
/// bringing the bytes.
const MAX_FILE: u64 = 16 << 40;

/// One member, without its data.
#[derive(Debug)]
pub(crate) struct Member {
    /// Its name, as the archive spells it.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: MemberKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Xattrs,
}

#[derive(Debug)]
pub(crate) enum MemberKind {
    /// Read it through [`Members::data`].
    Regular,
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    HardLink {
        target: Vec<u8>,
    },
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

/// The members of an archive, in its order.
pub(crate) struct Members<R> {
    input: R,
    /// For messages.
    archive: String,
    /// Bytes read so far.
    offset: u64,
    global: Pax,
    data: Data,
}

/// The data of the member at hand.
#[derive(Default)]
struct Data {
    /// Stored bytes not read yet.
    stored: u64,
    /// Bytes that fill the last block.
    padding: u64,
    /// Pieces of a sparse file that are still to come, last first; with its real length.
    pieces: Vec<(u64, u64)>,
    /// Where in the file we are.
    at: u64,
    /// The file's length.
    length: u64,
}

impl<R: Read> Members<R> {
    pub(crate) fn new(input: R, archive: String) -> Self {
        let (global, data) = (Pax::default(), Data::default());
        Self { input, archive, offset: 0, global, data }
    }

    /// An error at the place reached.
    pub(crate) fn refuse(&self, why: impl std::fmt::Display) -> BuildError {
        let why = format!("{why} (near byte {})", self.offset);
        BuildError::Archive { archive: self.archive.clone(), why }
    }

    /// A failure to read; an end where bytes should be is a cut.
    pub(crate) fn failed(&self, error: io::Error) -> BuildError {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            if self.offset == 0 {
                return self.refuse("is empty: what should have written it failed, perhaps");
            }
            return self.refuse("is cut off: bytes are missing; make or fetch it again");
        }
        BuildError::Read {
            what: format!("{} at byte {}", self.archive, self.offset),
            source: error,
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.input.read_exact(buffer).map_err(|error| self.failed(error))?;
        self.offset += buffer.len() as u64;
        Ok(())
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        let skipped = io::copy(&mut (&mut self.input).take(count), &mut io::sink())
            .map_err(|error| self.failed(error))?;
        self.offset += skipped;
        if skipped < count {
            return Err(self.failed(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    /// The next member; none at the end. What was not read of the last one is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Member>> {
        let mut pax = self.global.clone();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let rest = self.data.stored + self.data.padding;
            self.data = Data::default();
            self.skip(rest)?;
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            if block == [0; BLOCK] {
                // What follows is padding, or nothing that concerns us; a writer at the
                // other end of a pipe must get rid of it.
                io::copy(&mut self.input, &mut io::sink()).map_err(|error| self.failed(error))?;
                return Ok(None);
            }
            let header = Header(&block);
            if !header.is_sound() {
                return Err(self.refuse(
                    "is not a tar archive, or is damaged here: a header has a wrong checksum \
                     (archives compressed with xz, bzip2 or lzma: xz -dc FILE | varve-repo build -)",
                ));
            }
            let size = header.size().and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| self.refuse("has a header with an impossible size"))?;
            self.set_data(size);
            match header.type_flag() {
                b'x' | b'X' => {
                    let bytes = self.extended()?;
                    pax.read(&bytes).map_err(|why| self.refuse(why))?;
                }
                b'g' => {
                    let bytes = self.extended()?;
                    let read = self.global.read(&bytes).and_then(|()| pax.read(&bytes));
                    read.map_err(|why| self.refuse(why))?;
                }
                b'L' => long_name = Some(self.long()?),
                b'K' => long_link = Some(self.long()?),
                // A volume's label: no member.
                b'V' => {}
                _ => {
                    let name = long_name.unwrap_or_else(|| header.name());
                    let link = long_link.unwrap_or_else(|| header.link_name());
                    return self.member(&header, pax, name, link, size).map(Some);
                }
            }
        }
    }

    fn set_data(&mut self, size: u64) {
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.data = Data { stored: size, padding, pieces: Vec::new(), at: 0, length: size };
    }

    fn extended(&mut self) -> Result<Vec<u8>> {
        if self.data.stored > MAX_EXTENDED {
            let size = self.data.stored;
            return Err(self.refuse(format!("has an extended header of {size} bytes: too long")));
        }
        let mut bytes = vec![0; self.data.stored as usize];
        self.fill(&mut bytes)?;
        self.data.stored = 0;
        Ok(bytes)
    }

    fn long(&mut self) -> Result<Vec<u8>> {
        let mut bytes = self.extended()?;
        bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
        Ok(bytes)
    }

    fn member(
        &mut self,
        header: &Header<'_>,
        pax: Pax,
        name: Vec<u8>,
        link: Vec<u8>,
        size: u64,
    ) -> Result<Member> {
        let path = pax.get("GNU.sparse.name").or(pax.get("path")).map_or(name, <[u8]>::to_vec);
        let link = pax.get("linkpath").map_or(link, <[u8]>::to_vec);
        let shown = varve_format::path::show(&path);
        let refuse = |why: &str| BuildError::entry(&shown, why);
        let own_size = pax.number("size").map_err(|why| refuse(&why))?;
        let size = match own_size {
            Some(own) => u64::try_from(own).map_err(|_| refuse("has a negative size"))?,
            None => size,
        };
        let id = |key: &str, header: Option<i64>| -> Result<u32> {
            let number = pax.number(key).map_err(|why| refuse(&why))?.or(header);
            number
                .and_then(|number| u32::try_from(number).ok())
                .ok_or_else(|| refuse(&format!("has a {key} out of range")))
        };
        let (uid, gid) = (id("uid", header.uid())?, id("gid", header.gid())?);
        let mode = header.mode().ok_or_else(|| refuse("has a mode that is not a number"))?;
        let mtime = match pax.mtime().map_err(|why| refuse(&why))? {
            Some(mtime) => mtime,
            None => {
                let seconds = header.mtime();
                let seconds = seconds.ok_or_else(|| refuse("has a time that is not a number"))?;
                Time { seconds, nanoseconds: 0 }
            }
        };
        let xattrs = pax.xattrs().map_err(|why| refuse(&why))?;
        let device = || -> Result<Device> {
            let (major, minor) =
                header.device().ok_or_else(|| refuse("has an impossible device number"))?;
            Ok(Device(rustix::fs::makedev(major, minor)))
        };
        let type_flag = header.type_flag();
        let kind = match type_flag {
            b'0' | 0 | b'7' if path.ends_with(b"/") => MemberKind::Directory,
            b'0' | 0 | b'7' | b'S' => MemberKind::Regular,
            // As every program does: a hard link brings no data, whatever its size says.
            b'1' => MemberKind::HardLink { target: link },
            b'2' => MemberKind::Symlink { target: link },
            b'3' => MemberKind::CharDevice(device()?),
            b'4' => MemberKind::BlockDevice(device()?),
            b'5' | b'D' => MemberKind::Directory,
            b'6' => MemberKind::Fifo,
            b'M' => return Err(refuse("goes on from another volume: join the volumes first")),
            other => {
                let other = (other as char).escape_default();
                return Err(refuse(&format!("has the type {other}, which is not known")));
            }
        };
        match kind {
            MemberKind::Regular => {
                self.set_data(size);
                self.sparse(header, &pax, &shown)?;
            }
            MemberKind::HardLink { .. } => self.set_data(0),
            // GNU tar lists a directory's names as its data in incremental archives.
            _ if type_flag == b'D' => self.set_data(size),
            _ if size > 0 => {
                return Err(refuse(
                    "has data, though it is no file: such an archive is read \
                     differently by different programs",
                ));
            }
            _ => self.set_data(0),
        }
        Ok(Member { path, kind, mode: (mode & 0o7777) as u32, uid, gid, mtime, xattrs })
    }

    /// Finds out whether the member is sparse, in any of the forms.
    fn sparse(&mut self, header: &Header<'_>, pax: &Pax, shown: &str) -> Result<()> {
        let refuse = |why: &str| BuildError::entry(shown, why);
        let broken = || refuse("has a broken map of its holes");
        let length = |key: &str| -> Result<u64> {
            let number = pax.number(key).map_err(|why| refuse(&why))?;
            number.and_then(|n| u64::try_from(n).ok()).ok_or_else(broken)
        };
        let (length, mut pieces) = if header.type_flag() == b'S' {
            if !header.is_gnu() {
                return Err(refuse("is sparse in a form that is not known"));
            }
            let mut pieces = Vec::new();
            let (length, mut more) = header.sparse(&mut pieces).ok_or_else(broken)?;
            while more {
                let mut block = [0; BLOCK];
                self.fill(&mut block)?;
                header::sparse_pieces(&block[..504], &mut pieces).ok_or_else(broken)?;
                more = block[504] != 0;
                if pieces.len() > 1 << 20 {
                    return Err(broken());
                }
            }
            (u64::try_from(length).map_err(|_| broken())?, pieces)
        } else if pax.get("GNU.sparse.major") == Some(b"1") {
            (length("GNU.sparse.realsize")?, self.sparse_map(shown)?)
        } else if let Some(pieces) = pax.sparse_pieces().map_err(|why| refuse(&why))? {
            (length("GNU.sparse.size")?, pieces)
        } else if pax.get("GNU.sparse.major").is_some() || pax.get("SCHILY.realsize").is_some() {
            return Err(refuse("is sparse in a form that is not known"));
        } else {
            return Ok(());
        };
        let mut end = 0u64;
        let mut sum = 0u64;
        for &(offset, size) in &pieces {
            if offset < end {
                return Err(broken());
            }
            end = offset.checked_add(size).ok_or_else(broken)?;
            sum += size;
        }
        if end > length || sum != self.data.stored || length > MAX_FILE {
            return Err(broken());
        }
        pieces.retain(|(_, size)| *size > 0);
        pieces.reverse();
        (self.data.pieces, self.data.length) = (pieces, length);
        if self.data.pieces.is_empty() {
            // All hole: told from a plain file by a piece behind its end.
            self.data.pieces.push((length, 0));
        }
        Ok(())
    }

    /// The map of the form 1.0: lines with numbers before the data, in whole blocks.
    fn sparse_map(&mut self, shown: &str) -> Result<Vec<(u64, u64)>> {
        let broken = || BuildError::entry(shown, "has a broken map of its holes");
        let mut text: Vec<u8> = Vec::new();
        let mut at = 0;
        let mut numbers: Vec<u64> = Vec::new();
        loop {
            let wanted = numbers.first().map_or(1, |count| count.saturating_mul(2) + 1);
            if numbers.len() as u64 == wanted {
                break;
            }
            if let Some(end) = text[at..].iter().position(|&b| b == b'\n') {
                numbers.push(pax::parse(&text[at..at + end]).ok_or_else(broken)?);
                at += end + 1;
                continue;
            }
            if self.data.stored < BLOCK as u64 || text.len() > MAX_EXTENDED as usize {
                return Err(broken());
            }
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            self.data.stored -= BLOCK as u64;
            text.extend_from_slice(&block);
        }
        Ok(numbers[1..].chunks(2).map(|pair| (pair[0], pair[1])).collect())
    }

    /// The data of the member at hand, holes as zeros.
    pub(crate) fn data(&mut self) -> impl Read + '_ {
        MemberData(self)
    }
}

struct MemberData<'a, R>(&'a mut Members<R>);

impl<R: Read> Read for MemberData<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Members { input, data, offset, .. } = &mut *self.0;
        if data.at >= data.length || buffer.is_empty() {
            return Ok(0);
        }
        while data.pieces.last().is_some_and(|(start, size)| data.at >= start + size)
            && data.pieces.len() > 1
        {
            data.pieces.pop();
        }
        // What is next: so many bytes of data, or so many zeros.
        let (left, is_data) = match data.pieces.last() {
            None => (data.stored, true),
            Some(&(start, _)) if data.at < start => (start - data.at, false),
            Some(&(start, size)) if data.at < start + size => (start + size - data.at, true),
            Some(_) => (data.length - data.at, false),
        };
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = if is_data {
            let got = input.read(&mut buffer[..want])?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            data.stored -= got as u64;
            *offset += got as u64;
            got
        } else {
            buffer[..want].fill(0);
            want
        };
        data.at += got as u64;
        Ok(got)
    }
}
