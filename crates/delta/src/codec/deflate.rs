//! Deflate streams (RFC 1951), by preflate: it predicts what zlib's kind of encoder
//! would have done and records where the stream differs.

use super::Decoded;

// What a liar writes makes preflate panic (see `encode`); that must end one content, not
// the update manager.
#[cfg(panic = "abort")]
compile_error!("deltas need panics that unwind: set no panic = \"abort\" in this profile");

pub(super) fn decode(bytes: &[u8], limit: usize) -> Option<Decoded> {
    use miniz_oxide::inflate::TINFLStatus;
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
    let mut state = Box::new(DecompressorOxide::new());
    let mut plain = vec![0; (bytes.len().saturating_mul(4)).clamp(1 << 12, limit.max(1 << 12))];
    let (mut read, mut written) = (0, 0);
    loop {
        let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, took, made) =
            decompress(&mut state, &bytes[read..], &mut plain, written, flags);
        read += took;
        written += made;
        match status {
            TINFLStatus::Done => break,
            TINFLStatus::HasMoreOutput if plain.len() < limit => {
                let larger = plain.len().saturating_mul(2).min(limit);
                plain.resize(larger, 0);
            }
            _ => return None,
        }
    }
    plain.truncate(written);
    (written <= limit).then_some(Decoded { plain, length: read })
}

/// Corrections fit one plain text alone, and preflate panics on others: so a checksum of
/// both stands before them, which damage does not pass; what a liar writes to pass it is
/// caught where panics unwind.
pub(super) fn encode(corrections: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
    let (sum, corrections) = corrections.split_at_checked(4)?;
    if sum != checksum(corrections, plain) {
        return None;
    }
    std::panic::catch_unwind(|| preflate_rs::recreate_whole_deflate_stream(plain, corrections).ok())
        .ok()
        .flatten()
}

fn checksum(corrections: &[u8], plain: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(corrections);
    hasher.update(plain);
    hasher.finalize().to_le_bytes()
}

/// What preflate needs to know to make exactly this stream.
#[cfg(feature = "make")]
pub(super) fn corrections(stream: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
    let limit = plain.len() + 1024;
    let found = std::panic::catch_unwind(|| {
        let (result, text) =
            preflate_rs::preflate_whole_deflate_stream(stream, false, limit).ok()?;
        let whole = text.text() == plain && result.compressed_size == stream.len();
        whole.then_some(result.corrections)
    });
    let corrections = found.ok().flatten()?;
    Some([&checksum(&corrections, plain)[..], &corrections].concat())
}
