//! The .xz format (xz-file-format.txt): by liblzma, and by what its encoder chose ([`frame`]).

pub(crate) mod frame;
mod lzma;

use std::io::Read;

use liblzma::stream::{Check, Filters, LzmaOptions, MtStreamBuilder, Stream};

use super::Decoded;
#[cfg(feature = "make")]
use frame::number;
pub(crate) use lzma::LONGEST;

/// The most text in a chunk of LZMA2, in bytes.
pub(crate) const CHUNK: u32 = 2 << 20;

/// What `xz` was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Settings {
    /// 0 to 9; plus 16 for the extreme variant.
    preset: u8,
    /// Bytes of dictionary.
    dictionary: u32,
    /// The check's number in the format: 0, 1, 4 or 10.
    check: u8,
    /// Bytes in a block, when blocks say their sizes (the threaded encoder); else 0.
    block: u64,
}

const EXTREME: u32 = 1 << 31;
/// The most dictionary and block that is believed.
const MAX_DICTIONARY: u32 = 64 << 20;
const MAX_BLOCK: u64 = 192 << 20;

impl Settings {
    pub(super) fn memory(&self) -> u64 {
        // The encoder's tables are about eleven dictionaries; the threaded one holds a
        // block in and out besides.
        u64::from(self.dictionary) * 12 + self.block * 2 + (1 << 20)
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![self.preset, self.check];
        bytes.extend_from_slice(&self.dictionary.to_le_bytes());
        bytes.extend_from_slice(&self.block.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 14] = bytes.try_into().ok()?;
        let settings = Self {
            preset: bytes[0],
            check: bytes[1],
            dictionary: u32::from_le_bytes(bytes[2..6].try_into().ok()?),
            block: u64::from_le_bytes(bytes[6..].try_into().ok()?),
        };
        let sound = settings.preset & 15 <= 9
            && (4096..=MAX_DICTIONARY).contains(&settings.dictionary)
            && settings.block <= MAX_BLOCK;
        sound.then_some(settings)
    }

    fn check(&self) -> Option<Check> {
        Some(match self.check {
            0 => Check::None,
            1 => Check::Crc32,
            4 => Check::Crc64,
            10 => Check::Sha256,
            _ => return None,
        })
    }
}

pub(super) fn decode(bytes: &[u8], limit: usize) -> Option<Decoded> {
    let stream = Stream::new_stream_decoder(u64::from(MAX_DICTIONARY) + (8 << 20), 0).ok()?;
    let mut decoder = liblzma::bufread::XzDecoder::new_stream(bytes, stream);
    let mut plain = Vec::new();
    decoder.by_ref().take(limit as u64 + 1).read_to_end(&mut plain).ok()?;
    let length = usize::try_from(decoder.total_in()).ok()?;
    (plain.len() <= limit).then_some(Decoded { plain, length })
}

pub(super) fn encode(settings: &Settings, plain: &[u8]) -> Option<Vec<u8>> {
    let extreme = if settings.preset & 16 != 0 { EXTREME } else { 0 };
    let mut options = LzmaOptions::new_preset(u32::from(settings.preset & 15) | extreme).ok()?;
    options.dict_size(settings.dictionary);
    let mut filters = Filters::new();
    filters.lzma2(&options);
    let check = settings.check()?;
    let stream = if settings.block == 0 {
        Stream::new_stream_encoder(&filters, check).ok()?
    } else {
        let mut builder = MtStreamBuilder::new();
        builder.threads(1).block_size(settings.block).filters(filters).check(check);
        builder.encoder().ok()?
    };
    let mut out = Vec::with_capacity(plain.len() / 2);
    let mut encoder = liblzma::bufread::XzEncoder::new_stream(plain, stream);
    encoder.read_to_end(&mut out).ok()?;
    Some(out)
}

#[cfg(feature = "make")]
pub(super) fn candidates(stream: &[u8], plain: &[u8]) -> Vec<Settings> {
    let Some((check, dictionary, sized)) = header(stream) else { return Vec::new() };
    // What the threaded encoder takes when nobody says: three dictionaries, at least
    // one mebibyte. Else the size of the first block.
    let block = if sized {
        let first = first_block(stream).unwrap_or(plain.len() as u64);
        if first < plain.len() as u64 { first } else { (u64::from(dictionary) * 3).max(1 << 20) }
    } else {
        0
    };
    // The preset that a dictionary of this size belongs to comes first; xz's default next.
    let own = match dictionary >> 20 {
        0 => 0,
        1 => 1,
        2 => 2,
        4 => 4,
        8 => 6,
        16 => 7,
        32 => 8,
        _ => 9,
    };
    let mut presets = vec![6, own, own | 16, 9, 22];
    presets.dedup();
    presets.into_iter().map(|preset| Settings { preset, dictionary, check, block }).collect()
}

/// The check, the dictionary and whether blocks say their sizes.
#[cfg(feature = "make")]
fn header(stream: &[u8]) -> Option<(u8, u32, bool)> {
    let check = stream.get(7)? & 15;
    let flags = *stream.get(13)?;
    if flags & 3 != 0 {
        return None;
    }
    let sized = flags & 0xc0 == 0xc0;
    let mut at = 14;
    if sized {
        number(stream, &mut at)?;
        number(stream, &mut at)?;
    }
    let (filter, properties) = (number(stream, &mut at)?, number(stream, &mut at)?);
    if filter != 0x21 || properties != 1 {
        return None;
    }
    let bits = u32::from(*stream.get(at)?);
    if bits >= 40 {
        return None;
    }
    Some((check, (2 | bits & 1) << (bits / 2 + 11), sized))
}

#[cfg(feature = "make")]
fn first_block(stream: &[u8]) -> Option<u64> {
    let mut at = 14;
    number(stream, &mut at)?;
    number(stream, &mut at)
}
