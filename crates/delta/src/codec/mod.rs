//! Compressed streams: taken apart, and made again bit for bit.
//!
//! | stream | made again by | what the delta carries |
//! | --- | --- | --- |
//! | xz with no old one | liblzma | preset, dictionary, check, block size |
//! | zstd | libzstd | level, workers, checksum, content size |
//! | xz with an old one | [`frame`] | what the encoder chose |
//! | zstd of high levels, or of an unknown encoder | [`frame`] | what the encoder chose |
//! | deflate (gzip, zip, zlib) | preflate | corrections to what a known encoder would do |
//! | lz4, legacy frame (kernels) | liblz4 | level |
//!
//! Encoding differs between versions of these libraries in principle; the publisher
//! proves each stream with the version it is built with, the device verifies the
//! content's digest, and falls back to the plain content where they disagree.

mod deflate;
pub(crate) mod frame;
mod lz4;
mod xz;
mod zstd;

use std::borrow::Cow;

/// The kind of a compressed stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Format {
    /// The .xz format.
    Xz = 1,
    /// One Zstandard frame.
    Zstd = 2,
    /// A raw deflate stream.
    Deflate = 3,
    /// The legacy frame of lz4, as in kernel images.
    Lz4Legacy = 4,
}

impl Format {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Xz, Self::Zstd, Self::Deflate, Self::Lz4Legacy]
            .into_iter()
            .find(|f| *f as u8 == byte)
    }
}

/// Settings that make a stream again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Settings {
    Xz(xz::Settings),
    Zstd(zstd::Settings),
    /// None: the delta tells what the encoder chose.
    Chosen(Format),
    Deflate(Vec<u8>),
    Lz4Legacy {
        level: u8,
    },
}

/// Why a stream could not be taken apart or made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    /// Not a whole stream of this kind, or one that holds more than allowed.
    #[error("a {0:?} stream is broken or larger than allowed")]
    Decode(Format),
    /// The encoder refused.
    #[error("a {0:?} stream could not be made again")]
    Encode(Format),
}

/// A stream taken apart.
pub(crate) struct Decoded {
    pub(crate) plain: Vec<u8>,
    /// Bytes of the stream; more may follow it.
    pub(crate) length: usize,
}

/// Takes the stream at the start of `bytes` apart; at most `limit` bytes come out.
pub(crate) fn decode(format: Format, bytes: &[u8], limit: usize) -> Result<Decoded, CodecError> {
    match format {
        Format::Xz => xz::decode(bytes, limit),
        Format::Zstd => zstd::decode(bytes, limit),
        Format::Deflate => deflate::decode(bytes, limit),
        Format::Lz4Legacy => lz4::decode(bytes, limit),
    }
    .ok_or(CodecError::Decode(format))
}

/// Makes the stream of `plain` again.
pub(crate) fn encode(settings: &Settings, plain: &[u8]) -> Result<Vec<u8>, CodecError> {
    let made = match settings {
        Settings::Xz(settings) => xz::encode(settings, plain),
        Settings::Zstd(settings) => zstd::encode(settings, plain),
        Settings::Chosen(_) => None,
        Settings::Deflate(corrections) => deflate::encode(corrections, plain),
        Settings::Lz4Legacy { level } => lz4::encode(*level, plain),
    };
    made.ok_or(CodecError::Encode(settings.format()))
}

/// Finds settings that make exactly `stream` from `plain`, and proves them. `foretold`: an
/// old stream shows what the encoder would choose.
#[cfg(feature = "make")]
pub(crate) fn settings(
    format: Format,
    stream: &[u8],
    plain: &[u8],
    foretold: bool,
) -> Option<Settings> {
    let candidates = match format {
        // What is foretold costs a few bytes more than settings do, and a twentieth of the
        // time; what is not costs nearly the stream.
        Format::Xz if foretold && frame::comes_back(format, stream, plain) => {
            return Some(Settings::Chosen(format));
        }
        Format::Xz => xz::candidates(stream, plain).into_iter().map(Settings::Xz).collect(),
        Format::Zstd => zstd::candidates(stream).into_iter().map(Settings::Zstd).collect(),
        Format::Deflate => Vec::new(),
        Format::Lz4Legacy => [9, 12, 1].map(|level| Settings::Lz4Legacy { level }).to_vec(),
    };
    let light = |c: &Settings| format != Format::Zstd || c.memory(0) <= LIGHT;
    let proves = |c: &Settings| encode(c, plain).is_ok_and(|made| made == stream);
    let found = candidates.into_iter().filter(light).find(proves);
    // Each costs as much to find as to prove.
    let in_parts = || {
        let of = |most| deflate::corrections(stream, plain, most).map(Settings::Deflate);
        let parts = deflate::PARTS.into_iter().filter(|_| format == Format::Deflate);
        parts.filter_map(of).find(proves)
    };
    let found = found.or_else(in_parts);
    let chosen = || {
        let told = format == Format::Zstd && frame::comes_back(format, stream, plain);
        told.then_some(Settings::Chosen(format))
    };
    found.or_else(chosen)
}

/// Encoders of Zstandard that take more memory, in bytes, are not run on a device: what they
/// chose is told instead.
#[cfg(feature = "make")]
const LIGHT: u64 = 64 << 20;

/// The versions of the encoders: what makes a stream again with one may not with another.
#[cfg(feature = "make")]
pub(crate) fn versions() -> String {
    // liblzma, lz4 and preflate come with their crates: raise the number with them.
    format!("4 zstd {}", ::zstd::zstd_safe::version_number())
}

impl Settings {
    pub(crate) fn format(&self) -> Format {
        match self {
            Self::Xz(_) => Format::Xz,
            Self::Zstd(_) => Format::Zstd,
            Self::Chosen(format) => *format,
            Self::Deflate(_) => Format::Deflate,
            Self::Lz4Legacy { .. } => Format::Lz4Legacy,
        }
    }

    /// Memory that encoding `plain` bytes takes beside input and output, in bytes.
    pub(crate) fn memory(&self, plain: u64) -> u64 {
        match self {
            Self::Xz(settings) => settings.memory(),
            Self::Zstd(settings) => settings.memory(),
            Self::Chosen(_) => 0,
            Self::Deflate(corrections) => deflate::memory(corrections, plain),
            Self::Lz4Legacy { .. } => 9 << 20,
        }
    }

    pub(crate) fn to_bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Xz(settings) => Cow::Owned(settings.to_bytes()),
            Self::Zstd(settings) => Cow::Owned(settings.to_bytes()),
            Self::Chosen(_) => Cow::Borrowed(&[0]),
            Self::Deflate(corrections) => Cow::Borrowed(corrections),
            Self::Lz4Legacy { level } => Cow::Owned(vec![*level]),
        }
    }

    pub(crate) fn from_bytes(format: Format, bytes: &[u8]) -> Option<Self> {
        Some(match format {
            Format::Zstd | Format::Xz if bytes == [0] => Self::Chosen(format),
            Format::Xz => Self::Xz(xz::Settings::from_bytes(bytes)?),
            Format::Zstd => Self::Zstd(zstd::Settings::from_bytes(bytes)?),
            Format::Deflate => Self::Deflate(bytes.to_vec()),
            Format::Lz4Legacy => match bytes {
                [level @ 1..=12] => Self::Lz4Legacy { level: *level },
                _ => return None,
            },
        })
    }
}
