//! Zstandard frames (RFC 8878): by libzstd, and by what their encoder chose ([`frame`]).

mod bits;
mod entropy;
pub(crate) mod frame;

use std::io::{Read, Write};

use zstd::zstd_safe::CParameter;

use super::Decoded;

/// What `zstd` was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Settings {
    level: u8,
    /// 0: none; 1: the threaded encoder with one worker, as the program's default is.
    workers: u8,
    checksum: bool,
    /// Whether the frame says how long its content is.
    sized: bool,
}

impl Settings {
    pub(super) fn memory(&self) -> u64 {
        // Measured with libzstd 1.5.7, one worker, no size known in advance.
        match self.level {
            22 => 1400 << 20,
            20.. => 700 << 20,
            17.. => 130 << 20,
            _ => 60 << 20,
        }
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        vec![self.level, self.workers, u8::from(self.checksum), u8::from(self.sized)]
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [level @ 1..=22, workers @ 0..=1, checksum @ 0..=1, sized @ 0..=1] => {
                Some(Self { level, workers, checksum: checksum == 1, sized: sized == 1 })
            }
            _ => None,
        }
    }
}

pub(super) fn decode(bytes: &[u8], limit: usize) -> Option<Decoded> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes).ok()?.single_frame();
    decoder.window_log_max(27).ok()?;
    let mut plain = Vec::new();
    decoder.by_ref().take(limit as u64 + 1).read_to_end(&mut plain).ok()?;
    let rest = decoder.finish().len();
    (plain.len() <= limit).then_some(Decoded { plain, length: bytes.len() - rest })
}

pub(super) fn encode(settings: &Settings, plain: &[u8]) -> Option<Vec<u8>> {
    let out = Vec::with_capacity(plain.len() / 3);
    let mut encoder = zstd::stream::write::Encoder::new(out, i32::from(settings.level)).ok()?;
    let parameters = [
        CParameter::ChecksumFlag(settings.checksum),
        CParameter::NbWorkers(u32::from(settings.workers)),
    ];
    for parameter in parameters {
        encoder.set_parameter(parameter).ok()?;
    }
    if settings.sized {
        encoder.set_pledged_src_size(Some(plain.len() as u64)).ok()?;
    }
    // In pieces, as a program that reads a pipe: what is known of the size counts.
    for piece in plain.chunks(1 << 17) {
        encoder.write_all(piece).ok()?;
    }
    encoder.finish().ok()
}

#[cfg(feature = "make")]
pub(super) fn candidates(stream: &[u8]) -> Vec<Settings> {
    let (Some(&flags), Some(&window)) = (stream.get(4), stream.get(5)) else { return Vec::new() };
    let single = flags & 0x20 != 0;
    let sized = single || flags >> 6 != 0;
    let checksum = flags & 4 != 0;
    let levels: &[u8] = match if single { 0 } else { window >> 3 } {
        17 => &[22, 21, 20],
        16 => &[21, 20],
        13 => &[19, 18, 17, 16],
        12 => &[15, 12, 10, 14, 13],
        11 => &[3, 9, 6, 5],
        _ => &[19, 3, 22, 1],
    };
    levels
        .iter()
        .flat_map(|&level| [1, 0].map(|workers| Settings { level, workers, checksum, sized }))
        .collect()
}
