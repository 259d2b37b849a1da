//! The legacy frame of lz4 (lz4_Frame_format.md, "Legacy frame"), as kernel images hold.
//!
//! ```text
//! 02 21 4c 18 | length:u32 block | length:u32 block | ...   (8 MiB each, the last less)
//! ```

use ::lz4::block::{self, CompressionMode};

use super::Decoded;

const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const BLOCK: usize = 8 << 20;

pub(super) fn decode(bytes: &[u8], limit: usize) -> Option<Decoded> {
    let mut at = 4;
    if !bytes.starts_with(&MAGIC) {
        return None;
    }
    let mut plain: Vec<u8> = Vec::new();
    while let Some(length) = bytes.get(at..at + 4) {
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        let Some(block) = bytes.get(at + 4..(at + 4).checked_add(length)?) else { break };
        let room = BLOCK.min(limit.checked_sub(plain.len())?);
        let Ok(decoded) = block::decompress(block, Some(room as i32)) else { break };
        if decoded.is_empty() {
            break;
        }
        plain.extend_from_slice(&decoded);
        at += 4 + length;
        if decoded.len() < BLOCK {
            break;
        }
    }
    (at > 4).then_some(Decoded { plain, length: at })
}

pub(super) fn encode(level: u8, plain: &[u8]) -> Option<Vec<u8>> {
    let mode = match level {
        1 => CompressionMode::FAST(1),
        level => CompressionMode::HIGHCOMPRESSION(i32::from(level)),
    };
    let mut out = MAGIC.to_vec();
    for chunk in plain.chunks(BLOCK) {
        let block = block::compress(chunk, Some(mode), false).ok()?;
        out.extend_from_slice(&u32::try_from(block.len()).ok()?.to_le_bytes());
        out.extend_from_slice(&block);
    }
    Some(out)
}
