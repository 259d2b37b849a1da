//! The entropy coder: binary arithmetic coding of bits that a mixture of adaptive
//! contexts predicts. One description of a message serves both ways: the same code
//! runs in the encoder (which knows each bit) and in the decoder (which learns it).
//!
//! ```text
//! message -> bit + contexts -> Model (slots, mixer) -> probability -> Coder -> bytes
//! ```
//!
//! Everything is integer arithmetic, so a delta made on one machine decodes on every
//! other. Memory is fixed when a [`model::Model`] is made; a hostile stream can only
//! yield wrong bits, which the digest of the result refuses.

pub(crate) mod arithmetic;
pub(crate) mod model;
pub(crate) mod number;

pub(crate) use arithmetic::{Coder, Decoder, Encoder};
