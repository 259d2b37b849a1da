//! What in a file's bytes is an address, an index or an offset into something: the
//! *fields* of an ELF file, found in the old version alone, so that encoder and decoder
//! find the same.
//!
//! When code grows by one instruction, every call across it, every relocation behind
//! it and every table of addresses changes, though nothing was edited there. Whoever
//! knows which bytes are references, and where the things they refer to went, can
//! predict the new bytes; then only what was edited costs anything.
//!
//! | module | finds |
//! | --- | --- |
//! | [`x86`] | operands of x86-64 instructions |
//! | [`elf`] | sections, relocations, symbols, tables of addresses |
//! | [`btf`] | type and string numbers of BTF (kernel type information) |
//!
//! A field that is none (data that looks like code) costs a few bits, never
//! correctness: the digest of the result decides.

pub(crate) mod btf;
pub(crate) mod elf;
pub(crate) mod x86;

/// What a field's number means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Operand of a jump or call: target minus the end of the instruction.
    Branch = 0,
    /// Operand that names data relative to the end of the instruction.
    Relative = 1,
    /// Address, 32 bits, sign-extended.
    Absolute32 = 2,
    /// Address, 64 bits.
    Absolute64 = 3,
    /// Address relative to the field or to a table (`Field::base`), in data.
    Table = 4,
    /// Offset into a section (`Field::base` is where that starts), 64 bits.
    Offset = 5,
    /// Number of a symbol.
    Symbol = 6,
    /// Offset into a table of strings.
    Name = 7,
    /// Number of a type of the base BTF, the same for all modules of a kernel.
    BaseType = 8,
    /// Number of a type of this file's own BTF.
    OwnType = 9,
    /// Offset into the strings of BTF.
    TypeName = 10,
    /// Checksum of a symbol's interface, 32 bits.
    Checksum = 11,
}

/// How many kinds there are.
pub(crate) const KINDS: usize = 12;

impl Kind {
    /// Whether the number names a place in the file's address space.
    pub(crate) fn is_address(self) -> bool {
        (self as u8) < Kind::Symbol as u8
    }

    /// Whether the number stands in a table: then it tells the entries of the table
    /// apart, where an operand in code only blurs what is the same instruction.
    pub(crate) fn tells_apart(self) -> bool {
        matches!(self, Kind::Absolute64 | Kind::Table | Kind::Offset)
    }

    /// Whether what was learned holds for the next file of the group as well.
    pub(crate) fn outlives_file(self) -> bool {
        matches!(self, Kind::BaseType | Kind::Checksum | Kind::TypeName)
    }
}

/// One number in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    /// Where it stands in the file.
    pub(crate) at: u32,
    pub(crate) kind: Kind,
    /// 4 or 8 bytes.
    pub(crate) width: u8,
    /// The address from which it counts: 0 for an absolute one.
    pub(crate) base: u64,
}

impl Field {
    /// The number at its place in `bytes`.
    pub(crate) fn read(&self, bytes: &[u8], at: usize) -> Option<u64> {
        let field = bytes.get(at..at + usize::from(self.width))?;
        Some(match self.width {
            8 => u64::from_le_bytes(field.try_into().ok()?),
            // Sign-extended: relative ones are signed, high kernel addresses too.
            _ => i64::from(i32::from_le_bytes(field.try_into().ok()?)) as u64,
        })
    }
}

/// A stretch of the file with its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    /// Where it starts in the file.
    pub(crate) offset: u64,
    /// Its address; the offset itself in a relocatable file.
    pub(crate) address: u64,
    pub(crate) size: u64,
    /// Whether the file holds its bytes.
    pub(crate) stored: bool,
}

/// All that is known of an old file's bytes.
#[derive(Default, Debug)]
pub(crate) struct Anatomy {
    /// In order of place, not overlapping.
    pub(crate) fields: Vec<Field>,
    /// Sections with addresses, in the order of the section table.
    pub(crate) sections: Vec<Section>,
    /// Their names, for pairing them with those of the new file.
    pub(crate) names: Vec<Vec<u8>>,
    /// Whether addresses are places in the file (a relocatable file).
    pub(crate) relocatable: bool,
}

impl Anatomy {
    /// Looks at a file. `base_types`: how many types the kernel's own BTF has, when
    /// the file is a module.
    pub(crate) fn of(bytes: &[u8], base_types: u32) -> Self {
        let mut anatomy = elf::anatomy(bytes, base_types).unwrap_or_default();
        anatomy.fields.sort_unstable_by_key(|f| (f.at, f.kind as u8, f.width, f.base));
        anatomy.fields.shrink_to_fit();
        let mut end = 0u64;
        anatomy.fields.retain(|f| {
            let keep = u64::from(f.at) >= end
                && u64::from(f.at) + u64::from(f.width) <= bytes.len() as u64;
            if keep {
                end = u64::from(f.at) + u64::from(f.width);
            }
            keep
        });
        anatomy
    }

    /// The bytes with fields zeroed: what stays the same when things move.
    #[cfg(feature = "make")]
    pub(crate) fn masked(&self, bytes: &[u8], which: impl Fn(Kind) -> bool) -> Vec<u8> {
        let mut masked = bytes.to_vec();
        for field in self.fields.iter().filter(|f| which(f.kind)) {
            let at = field.at as usize;
            masked[at..at + usize::from(field.width)].fill(0);
        }
        masked
    }
}
