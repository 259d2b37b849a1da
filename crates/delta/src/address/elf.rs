//! The fields of an ELF file (elf(5)): by section, and by tables of addresses that are
//! recognised by what they hold. Only 64-bit little-endian files are looked at.

use super::x86::{self, Image};
use super::{Anatomy, Field, Kind, Section, btf};

const NOBITS: u32 = 8;
const WRITE_OR_ALLOCATE: u64 = 3;
const EXECUTE: u64 = 4;

struct Header {
    name: Vec<u8>,
    kind: u32,
    flags: u64,
    address: u64,
    offset: u64,
    size: u64,
    link: u32,
    info: u32,
}

/// Numbers at places of the file.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u16(&self, at: u64) -> Option<u16> {
        let at = usize::try_from(at).ok()?;
        Some(u16::from_le_bytes(self.0.get(at..at.checked_add(2)?)?.try_into().ok()?))
    }
    fn u32(&self, at: u64) -> Option<u32> {
        let at = usize::try_from(at).ok()?;
        Some(u32::from_le_bytes(self.0.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }
    fn u64(&self, at: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        Some(u64::from_le_bytes(self.0.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }
}

/// The anatomy of an ELF file, or nothing if it is none.
pub(crate) fn anatomy(bytes: &[u8], base_types: u32) -> Option<Anatomy> {
    if !bytes.starts_with(b"\x7fELF\x02\x01") || bytes.len() >= 1 << 31 {
        return None;
    }
    let read = Reader(bytes);
    let file_type = read.u16(16)?;
    let x86 = read.u16(18)? == 62;
    let relocatable = file_type == 1;
    let headers = headers(&read)?;
    let stored = |h: &Header| h.kind != NOBITS;
    let sections: Vec<Section> = headers
        .iter()
        .map(|h| Section {
            offset: h.offset,
            address: if relocatable { h.offset } else { h.address },
            size: h.size,
            stored: stored(h),
        })
        .collect();
    let mut scan = Scan {
        read,
        headers: &headers,
        relocatable,
        fixed: file_type == 2,
        lowest: headers
            .iter()
            .filter(|h| h.address > 1 << 12)
            .map(|h| h.address)
            .min()
            .unwrap_or(0),
        highest: headers.iter().map(|h| h.address.saturating_add(h.size)).max().unwrap_or(0),
        base_types,
        fields: Vec::new(),
        targets: Vec::new(),
    };
    if x86 {
        for (at, header) in headers.iter().enumerate() {
            if header.flags & EXECUTE != 0 && stored(header) {
                scan.code(at);
            }
        }
    }
    scan.targets.sort_unstable();
    scan.targets.dedup();
    for (at, header) in headers.iter().enumerate() {
        if stored(header) && header.flags & EXECUTE == 0 {
            // A table that is not what its section says is left as plain bytes.
            let before = scan.fields.len();
            if scan.data(at).is_none() {
                scan.fields.truncate(before);
            }
        }
    }
    scan.appended();
    let fields = scan.fields;
    let names = headers.into_iter().map(|h| h.name).collect();
    Some(Anatomy { fields, sections, names, relocatable })
}

fn headers(read: &Reader) -> Option<Vec<Header>> {
    let table = read.u64(40)?;
    let (size, count, names) = (read.u16(58)?, read.u16(60)?, read.u16(62)?);
    if size != 64 {
        return None;
    }
    let mut headers = Vec::new();
    for at in 0..u64::from(count) {
        let at = table.checked_add(at * 64)?;
        let header = Header {
            name: read.u32(at)?.to_le_bytes().to_vec(),
            kind: read.u32(at + 4)?,
            flags: read.u64(at + 8)?,
            address: read.u64(at + 16)?,
            offset: read.u64(at + 24)?,
            size: read.u64(at + 32)?,
            link: read.u32(at + 40)?,
            info: read.u32(at + 44)?,
        };
        let inside = header.offset.checked_add(header.size)? <= read.0.len() as u64;
        if header.kind != NOBITS && !inside {
            return None;
        }
        header.address.checked_add(header.size)?;
        headers.push(header);
    }
    let strings = headers.get(usize::from(names)).map_or((0, 0), |h| (h.offset, h.size));
    for header in &mut headers {
        let at = u32::from_le_bytes(header.name[..4].try_into().ok()?);
        let rest = read
            .0
            .get(strings.0 as usize..(strings.0.checked_add(strings.1)?) as usize)
            .and_then(|s| s.get(at as usize..))
            .unwrap_or_default();
        header.name = rest.iter().take_while(|&&b| b != 0).copied().collect();
    }
    Some(headers)
}

struct Scan<'a> {
    read: Reader<'a>,
    headers: &'a [Header],
    relocatable: bool,
    fixed: bool,
    lowest: u64,
    highest: u64,
    base_types: u32,
    fields: Vec<Field>,
    /// Addresses that code refers to: tables start there.
    targets: Vec<u64>,
}

impl Scan<'_> {
    fn push(&mut self, at: u64, kind: Kind, width: u8, base: u64) {
        if let Ok(at) = u32::try_from(at) {
            self.fields.push(Field { at, kind, width, base });
        }
    }

    fn in_image(&self, address: u64) -> bool {
        (self.lowest..self.highest).contains(&address)
    }

    fn in_code(&self, address: u64) -> bool {
        self.headers
            .iter()
            .any(|h| h.flags & EXECUTE != 0 && address >= h.address && address - h.address < h.size)
    }

    fn code(&mut self, section: usize) {
        let header = &self.headers[section];
        let code = &self.read.0[header.offset as usize..(header.offset + header.size) as usize];
        let address = if self.relocatable { header.offset } else { header.address };
        let absolute = if self.fixed { self.lowest..self.highest } else { 0..0 };
        let mut found = Vec::new();
        x86::fields(code, header.offset, address, &Image { absolute }, &mut found);
        if self.relocatable {
            // What a relocation fills in is no number yet.
            let mut filled = self.relocated(section);
            filled.sort_unstable();
            found.retain(|f| filled.binary_search(&(u64::from(f.at) - header.offset)).is_err());
        }
        for field in &found {
            if field.kind == Kind::Relative {
                let value = field.read(self.read.0, field.at as usize).unwrap_or(0);
                self.targets.push(field.base.wrapping_add(value));
            }
        }
        self.fields.append(&mut found);
    }

    /// Where relocations change a section.
    fn relocated(&self, section: usize) -> Vec<u64> {
        let mut places = Vec::new();
        for table in self.headers.iter().filter(|h| h.kind == 4 && h.info as usize == section) {
            for at in (0..table.size / 24).map(|n| table.offset + n * 24) {
                places.extend(self.read.u64(at));
            }
        }
        places
    }

    fn data(&mut self, section: usize) -> Option<()> {
        let header = &self.headers[section];
        let (offset, size) = (header.offset, header.size);
        match (header.kind, header.name.as_slice()) {
            (4, _) => self.relocations(section),
            (2 | 11, _) => {
                for at in (0..size / 24).map(|n| offset + n * 24) {
                    self.push(at, Kind::Name, 4, 0);
                    let owner = usize::from(self.read.u16(at + 6)?);
                    let value = self.read.u64(at + 8)?;
                    if self.relocatable && value != 0 {
                        if let Some(owner) = self.headers.get(owner).filter(|_| owner != 0) {
                            self.push(at + 8, Kind::Offset, 8, owner.offset);
                        }
                    } else if self.in_image(value) {
                        self.push(at + 8, Kind::Absolute64, 8, 0);
                    }
                }
                Some(())
            }
            (_, b".BTF") => {
                let bytes = &self.read.0[offset as usize..(offset + size) as usize];
                btf::fields(bytes, offset, self.base_types, &mut self.fields)
            }
            (_, b"__versions") => {
                for at in (0..size / 64).map(|n| offset + n * 64) {
                    self.push(at, Kind::Checksum, 4, 0);
                }
                Some(())
            }
            (_, b".eh_frame_hdr") => {
                let base = header.address;
                self.push(offset + 4, Kind::Table, 4, base + 4);
                for at in (12..size.saturating_sub(3)).step_by(4) {
                    self.push(offset + at, Kind::Table, 4, base);
                }
                Some(())
            }
            (_, b".eh_frame") => self.frames(section),
            (1 | 6 | 14 | 15 | 16, _)
                if !self.relocatable && header.flags & WRITE_OR_ALLOCATE != 0 =>
            {
                self.tables(section)
            }
            _ => Some(()),
        }
    }

    fn relocations(&mut self, section: usize) -> Option<()> {
        let header = &self.headers[section];
        let symbols = self.headers.get(header.link as usize);
        for at in (0..header.size / 24).map(|n| header.offset + n * 24) {
            let info = self.read.u64(at + 8)?;
            let addend = self.read.u64(at + 16)?;
            let symbol = info >> 32;
            if self.relocatable {
                let owner = self.headers.get(header.info as usize)?.offset;
                self.push(at, Kind::Offset, 8, owner);
                self.push(at + 12, Kind::Symbol, 4, 0);
                // A section's own symbol: the addend is a place in that section.
                let entry = symbols?.offset.checked_add(symbol * 24)?;
                let is_section = self.read.u16(entry + 4)? & 15 == 3;
                let owner = self.headers.get(usize::from(self.read.u16(entry + 6)?));
                if let Some(owner) = owner.filter(|_| is_section) {
                    // Relative ones count from the end of the operand, four bytes on.
                    let relative = matches!(info as u32, 2 | 4);
                    let base = owner.offset.wrapping_add(if relative { 4 } else { 0 });
                    self.push(at + 16, Kind::Offset, 8, base);
                }
            } else {
                self.push(at, Kind::Absolute64, 8, 0);
                if symbol != 0 {
                    self.push(at + 12, Kind::Symbol, 4, 0);
                }
                if self.in_image(addend) {
                    self.push(at + 16, Kind::Absolute64, 8, 0);
                }
            }
        }
        Some(())
    }

    /// Call frame information: the start of each function.
    fn frames(&mut self, section: usize) -> Option<()> {
        let header = &self.headers[section];
        let (mut at, end) = (header.offset, header.offset + header.size);
        while at + 8 <= end {
            let length = u64::from(self.read.u32(at)?);
            if length == 0 || length >= 0xffff_fff0 {
                break;
            }
            if self.read.u32(at + 4)? != 0 {
                let address = header.address + (at + 8 - header.offset);
                self.push(at + 8, Kind::Table, 4, address);
            }
            at += 4 + length;
        }
        Some(())
    }

    /// Tables of addresses, recognised by what they hold.
    fn tables(&mut self, section: usize) -> Option<()> {
        let header = &self.headers[section];
        let (offset, address, words) = (header.offset, header.address, header.size / 4);
        let image = self.highest - self.lowest;
        let mut taken = vec![false; words as usize];
        // Addresses of 64 bits.
        for at in (0..words.saturating_sub(1)).step_by(2) {
            let value = self.read.u64(offset + at * 4)?;
            if value > 4096 && self.in_image(value) {
                self.push(offset + at * 4, Kind::Absolute64, 8, 0);
                taken[at as usize] = true;
                taken[at as usize + 1] = true;
            }
        }
        // Offsets from the start of the image, ascending: the kernel's symbol table.
        let mut at = 0;
        while at < words {
            let mut end = at;
            let mut last = 0;
            while end < words && !taken[end as usize] {
                let value = self.read.u32(offset + end * 4)?;
                if value < last || u64::from(value) >= image {
                    break;
                }
                last = value;
                end += 1;
            }
            if end - at >= 256 && last > 0x10_0000 {
                for word in at..end {
                    self.push(offset + word * 4, Kind::Table, 4, self.lowest);
                    taken[word as usize] = true;
                }
            }
            at = end.max(at + 1);
        }
        // Tables that count from their own start, where code refers to them: switches.
        let first = self.targets.partition_point(|&t| t < address);
        let past = self.targets.partition_point(|&t| t < address + words * 4);
        for index in first..past {
            let start = self.targets[index];
            let limit = self.targets.get(index + 1).copied().unwrap_or(u64::MAX);
            if !(start - address).is_multiple_of(4) {
                continue;
            }
            let mut entry = start;
            while entry < limit && entry + 4 <= address + words * 4 {
                let word = (entry - address) / 4;
                let value = i64::from(self.read.u32(offset + word * 4)? as i32);
                let target = start.wrapping_add(value as u64);
                if taken[word as usize] || !self.in_code(target) {
                    break;
                }
                taken[word as usize] = true;
                self.push(offset + word * 4, Kind::Table, 4, start);
                entry += 4;
            }
        }
        // Distances from the field itself, where most words of a stretch are such.
        const STRETCH: u64 = 32;
        for start in (0..words).step_by(STRETCH as usize) {
            let end = (start + STRETCH).min(words);
            let mut hits = Vec::new();
            for word in (start..end).filter(|&w| !taken[w as usize]) {
                let value = i64::from(self.read.u32(offset + word * 4)? as i32);
                let here = address + word * 4;
                let target = here.wrapping_add(value as u64);
                if value.unsigned_abs() > 4096 && self.in_image(target) {
                    hits.push((word, here));
                }
            }
            if hits.len() as u64 * 4 >= end - start {
                for (word, here) in hits {
                    self.push(offset + word * 4, Kind::Table, 4, here);
                }
            }
        }
        Some(())
    }

    /// Behind the file proper: a kernel's own list of places to relocate.
    fn appended(&mut self) {
        let end = self.headers.iter().filter(|h| h.kind != NOBITS).map(|h| h.offset + h.size).max();
        let (Some(end), true) = (end, self.fixed) else { return };
        let table = self.read.u64(40).unwrap_or(0).saturating_add(self.headers.len() as u64 * 64);
        let start = end.max(table).next_multiple_of(4);
        let mut at = start;
        while let Some(value) = self.read.u32(at) {
            if self.in_image(i64::from(value as i32) as u64) {
                self.push(at, Kind::Table, 4, 0);
            }
            at += 4;
        }
    }
}
