//! The arithmetic coder under `preflate-rs`: ours, because the crate that it names is
//! under the LGPL, which does not go into a static program.
//!
//! Only what `preflate-rs` calls is here, under the names by which it calls it; nothing
//! of the code is that crate's. Bits are coded with 16-bit probabilities that learn, by
//! the same bounds as in `varve-delta`'s own coder. So the bytes differ from those of the
//! other crate: they are part of the delta's format (docs/format/delta.md).
//!
//! ```text
//! put(bit, context) -> bounds 32 bits wide -> bytes ; behind the end of a message zeros
//! ```

#![forbid(unsafe_code)]

use std::io::Result;

pub mod vp8;

/// Writes bits.
pub trait CabacWriter<C> {
    /// Writes a bit, and lets its context learn.
    fn put(&mut self, bit: bool, context: &mut C) -> Result<()>;

    /// Closes the message.
    fn finish(&mut self) -> Result<()>;

    /// Writes a number of at most `contexts.len()`: so many ones, then a zero.
    fn put_unary_encoded(&mut self, value: usize, contexts: &mut [C]) -> Result<()> {
        for (at, context) in contexts.iter_mut().enumerate() {
            self.put(at < value, context)?;
            if at >= value {
                break;
            }
        }
        Ok(())
    }

    /// Writes the lowest `count` bits of a number, the highest of them first.
    fn put_n_bits(&mut self, value: u64, count: usize, contexts: &mut [C]) -> Result<()> {
        for (at, context) in contexts.iter_mut().enumerate().take(count).rev() {
            self.put(value >> at & 1 == 1, context)?;
        }
        Ok(())
    }
}

/// Reads bits.
pub trait CabacReader<C> {
    /// Reads a bit, and lets its context learn.
    fn get(&mut self, context: &mut C) -> Result<bool>;

    /// Reads what [`CabacWriter::put_unary_encoded`] wrote.
    fn get_unary_encoded(&mut self, contexts: &mut [C]) -> Result<usize> {
        for (at, context) in contexts.iter_mut().enumerate() {
            if !self.get(context)? {
                return Ok(at);
            }
        }
        Ok(contexts.len())
    }

    /// Reads what [`CabacWriter::put_n_bits`] wrote.
    fn get_n_bits(&mut self, count: usize, contexts: &mut [C]) -> Result<u64> {
        let mut value = 0;
        for (at, context) in contexts.iter_mut().enumerate().take(count).rev() {
            value |= u64::from(self.get(context)?) << at;
        }
        Ok(value)
    }
}
