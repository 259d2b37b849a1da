//! Messages between the update manager and its workers.
//!
//! ```text
//! offset  bytes
//!      0      1   what it is: one of the tags of `decode` or `web`
//!      1      8   length of the body, little-endian
//!      9      n   body: fields, one behind the other; numbers of 8 bytes, little-endian;
//!                 bytes with their length (8) before them
//! ```
//!
//! Neither end outlives the other and both are one program, so nothing has a version. The
//! manager believes nothing of it: each length has a limit, and bytes are checked by digest.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// So much memory is taken for a message before it is here, at most, in bytes.
const AHEAD: u64 = 1 << 20;

/// A message.
pub(crate) struct Message {
    pub(crate) tag: u8,
    pub(crate) body: Vec<u8>,
}

/// Sends a message whose body is these parts, one behind the other.
pub(crate) fn send(mut stream: &UnixStream, tag: u8, parts: &[&[u8]]) -> io::Result<()> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut head = [tag; 9];
    head[1..].copy_from_slice(&(length as u64).to_le_bytes());
    stream.write_all(&head)?;
    parts.iter().try_for_each(|part| stream.write_all(part))
}

/// The next message, its body at most `limit` bytes; none when the other end is closed.
pub(crate) fn receive(mut stream: impl Read, limit: u64) -> io::Result<Option<Message>> {
    let mut head = [0; 9];
    let first = loop {
        match stream.read(&mut head) {
            Ok(0) => return Ok(None),
            Ok(count) => break count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    };
    stream.read_exact(&mut head[first..])?;
    let [tag, length @ ..] = head;
    let length = u64::from_le_bytes(length);
    if length > limit {
        return Err(broken());
    }
    // Little more is taken of the memory than what comes, whatever is announced.
    let mut body = Vec::with_capacity(length.min(AHEAD) as usize);
    if stream.take(length).read_to_end(&mut body)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Message { tag, body }))
}

/// The other end does not speak as it should.
pub(crate) fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer that is none")
}

/// Puts fields into a body.
#[derive(Default)]
pub(crate) struct Fields(pub(crate) Vec<u8>);

impl Fields {
    pub(crate) fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// Bytes of a length that both ends know.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64).raw(bytes)
    }
}

/// Takes fields out of a body.
pub(crate) struct Taken<'a>(pub(crate) &'a [u8]);

impl<'a> Taken<'a> {
    pub(crate) fn number(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or_else(broken)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(crate) fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let length = usize::try_from(self.number()?).map_err(|_| broken())?;
        let (first, rest) = self.0.split_at_checked(length).ok_or_else(broken)?;
        self.0 = rest;
        Ok(first)
    }

    /// How many things of at least `least` bytes each follow, as a count says.
    pub(crate) fn count(&mut self, least: usize) -> io::Result<usize> {
        let count = usize::try_from(self.number()?).map_err(|_| broken())?;
        if count > self.0.len() / least { Err(broken()) } else { Ok(count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_received() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut fields = Fields::default();
        fields.number(7).bytes(b"text").raw(&[1, 2]);
        send(&here, 3, &[&fields.0, b"tail"]).unwrap();
        let message = receive(&there, 100).unwrap().unwrap();
        assert_eq!(message.tag, 3);
        let mut taken = Taken(&message.body);
        assert_eq!(taken.number().unwrap(), 7);
        assert_eq!(taken.bytes().unwrap(), b"text");
        assert_eq!(taken.array().unwrap(), [1, 2]);
        assert_eq!(taken.0, b"tail");
        drop(here);
        assert!(receive(&there, 100).unwrap().is_none());
    }

    #[test]
    fn a_liar_is_refused() {
        let (mut here, there) = UnixStream::pair().unwrap();
        send(&here, 3, &[&[0; 101]]).unwrap();
        assert!(receive(&there, 100).is_err(), "longer than may be");
        let (mut other, end) = UnixStream::pair().unwrap();
        other.write_all(&[1, 50, 0, 0, 0, 0, 0, 0, 0, 9]).unwrap();
        drop(other);
        assert!(receive(&end, 100).is_err(), "shorter than it says");
        here.write_all(&[0]).unwrap();
        for bytes in [&[255; 8][..], &[9, 0, 0, 0, 0, 0, 0, 0, 1], &[1]] {
            assert!(Taken(bytes).bytes().is_err());
            assert!(Taken(bytes).count(1).is_err());
        }
    }
}
