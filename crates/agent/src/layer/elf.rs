//! What a program or library asks the loader for: read from its bytes, never run.
//!
//! The gABI's ELF-64 and ELF-32 of both byte orders: PT_INTERP, and from PT_DYNAMIC
//! DT_NEEDED, DT_SONAME, DT_RPATH, DT_RUNPATH. What is cut off or points outside is an
//! answer ("no ELF file"), not an error: nothing here trusts a byte.

/// What an ELF file asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Elf {
    /// The loader, as a path; none for a library or a static program.
    pub loader: Option<Vec<u8>>,
    /// Names of libraries.
    pub needed: Vec<Vec<u8>>,
    /// Its own name as a library.
    pub soname: Option<Vec<u8>>,
    /// Where it looks first, `$ORIGIN` as it stands.
    pub run_path: Vec<Vec<u8>>,
}

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;
/// More than any real file has.
const MAX_ENTRIES: u64 = 4096;

/// Whether bytes begin as an ELF file does.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// Reads what a file asks for; none when it is no whole ELF file.
pub fn parse(bytes: &[u8]) -> Option<Elf> {
    let file = File::new(bytes)?;
    let mut elf = Elf::default();
    let headers: Vec<Header> = file.headers().collect();
    for header in &headers {
        match header.kind {
            PT_INTERP => {
                let text = file.slice(header.offset, header.size)?;
                elf.loader = Some(text.split(|&b| b == 0).next()?.to_vec());
            }
            PT_DYNAMIC => file.dynamic(header, &headers, &mut elf)?,
            _ => {}
        }
    }
    Some(elf)
}

struct File<'a> {
    bytes: &'a [u8],
    wide: bool,
    big: bool,
}

struct Header {
    kind: u64,
    offset: u64,
    address: u64,
    size: u64,
}

impl<'a> File<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let class = *bytes.get(4)?;
        let order = *bytes.get(5)?;
        let good = is_elf(bytes) && matches!(class, 1 | 2) && matches!(order, 1 | 2);
        good.then_some(Self { bytes, wide: class == 2, big: order == 2 })
    }

    fn slice(&self, at: u64, length: u64) -> Option<&'a [u8]> {
        let at = usize::try_from(at).ok()?;
        self.bytes.get(at..at.checked_add(usize::try_from(length).ok()?)?)
    }

    /// An integer of so many bytes.
    fn number(&self, at: u64, length: u64) -> Option<u64> {
        let bytes = self.slice(at, length)?;
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.big { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) })
    }

    /// An address, an offset or a size.
    fn word(&self, at: u64) -> Option<u64> {
        self.number(at, if self.wide { 8 } else { 4 })
    }

    fn headers(&self) -> impl Iterator<Item = Header> + '_ {
        let (place, sizes) = if self.wide { (32, 54) } else { (28, 42) };
        let table = self.word(place).unwrap_or(0);
        let size = self.number(sizes, 2).unwrap_or(0);
        let count = self.number(sizes + 2, 2).unwrap_or(0);
        (0..count.min(MAX_ENTRIES)).map_while(move |n| {
            let at = table.checked_add(n.checked_mul(size)?)?;
            let (offset, address, length) = if self.wide { (8, 16, 32) } else { (4, 8, 16) };
            Some(Header {
                kind: self.number(at, 4)?,
                offset: self.word(at.checked_add(offset)?)?,
                address: self.word(at.checked_add(address)?)?,
                size: self.word(at.checked_add(length)?)?,
            })
        })
    }

    fn dynamic(&self, header: &Header, all: &[Header], elf: &mut Elf) -> Option<()> {
        let step = if self.wide { 16 } else { 8 };
        let mut entries = Vec::new();
        for n in 0..(header.size / step).min(MAX_ENTRIES) {
            let at = header.offset.checked_add(n * step)?;
            let (tag, value) = (self.word(at)?, self.word(at.checked_add(step / 2)?)?);
            if tag == 0 {
                break;
            }
            entries.push((tag, value));
        }
        let strings = entries.iter().find(|(tag, _)| *tag == DT_STRTAB)?.1;
        let segment = all.iter().find(|segment| {
            segment.kind == PT_LOAD
                && strings.checked_sub(segment.address).is_some_and(|into| into < segment.size)
        })?;
        let table = segment.offset.checked_add(strings - segment.address)?;
        let text = |at: u64| -> Option<Vec<u8>> {
            let from = usize::try_from(table.checked_add(at)?).ok()?;
            let rest = self.bytes.get(from..)?;
            let end = rest.iter().take(4096).position(|&b| b == 0)?;
            Some(rest[..end].to_vec())
        };
        for (tag, value) in entries {
            match tag {
                DT_NEEDED => elf.needed.push(text(value)?),
                DT_SONAME => elf.soname = Some(text(value)?),
                DT_RPATH | DT_RUNPATH => {
                    let paths = text(value)?;
                    elf.run_path.extend(paths.split(|&b| b == b':').map(<[u8]>::to_vec));
                }
                _ => {}
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_programs_own_file_is_understood() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = parse(&bytes).unwrap();
        let needs = |name: &[u8]| elf.needed.iter().any(|needed| needed.starts_with(name));
        assert!(needs(b"libc.so"), "{elf:?}");
        let loader = elf.loader.unwrap();
        assert!(loader.starts_with(b"/lib"), "{}", String::from_utf8_lossy(&loader));
        assert_eq!(parse(b"#!/bin/sh\n"), None);
        assert_eq!(parse(&bytes[..40]).map(|elf| elf.needed), Some(Vec::new()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            class in 1u8..3,
            order in 1u8..3,
        ) {
            let file = [&b"\x7fELF"[..], &[class, order], &bytes].concat();
            parse(&file);
            parse(&bytes);
        }

        #[test]
        fn a_damaged_program_is_read(
            changes in proptest::collection::vec((0usize..1024, any::<u8>()), 1..20),
        ) {
            let mut bytes = std::fs::read("/proc/self/exe").unwrap();
            bytes.truncate(1 << 20);
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            parse(&bytes);
        }
    }
}
