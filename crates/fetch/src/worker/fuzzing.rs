//! Ways in for the fuzzers, to both sides of the socket. For nobody else.

use super::wire::{Fields, Taken};
use super::{decode, decoder};

/// The most that a worker is asked to decode to, in bytes.
const SIZE: u64 = 1 << 20;

/// A stored document, or a frame of a pack: whatever it is, no more than was asked for.
pub fn stored(bytes: &[u8]) {
    let mut asked = Fields::default();
    asked.number(SIZE).raw(bytes);
    if let Ok(text) = decode::text(&mut Taken(&asked.0)) {
        assert!(text.len() as u64 <= SIZE + 1);
    }
    let mut frames = zstd::bulk::Decompressor::new().expect("there is memory");
    if let Ok(frame) = decode::frame(&mut frames, &mut Taken(&asked.0)) {
        assert!(frame.len() as u64 <= SIZE);
    }
}

/// The answers of a worker that has been taken over.
pub fn answers(bytes: &[u8]) {
    let _ = decoder::opened(bytes);
    let _ = decoder::leavings(&mut Taken(bytes));
    crate::transport::web::whatever_it_says(bytes);
}
