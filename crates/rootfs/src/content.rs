//! Contents on this disk, read to know their digest. Callers: verify, locate, and the update manager's `fsck` and layers.

use std::fs::File;
use std::io::{self, Read};

use varve_format::ContentDigest;
use varve_format::verity::ContentHasher;

/// What is read at a time, in bytes.
const BUFFER: usize = 256 << 10;

/// A buffer that is used again and again. Takes no memory until then.
#[derive(Default)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
}

impl Reader {
    /// The digest of the first `size` bytes of a file that stands at its beginning, or of
    /// all that it has when that is less; and how many these are.
    ///
    /// # Errors
    /// What read(2) answered.
    pub(crate) fn digest(
        &mut self,
        mut file: &File,
        size: u64,
    ) -> io::Result<(ContentDigest, u64)> {
        self.bytes.resize(BUFFER, 0);
        let mut hasher = ContentHasher::new();
        while hasher.size() < size {
            match file.read(&mut self.bytes) {
                Ok(0) => break,
                Ok(length) => hasher.update(&self.bytes[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let size = hasher.size();
        Ok((hasher.finish(), size))
    }
}

/// The digest of what is left to read of an open file.
///
/// # Errors
/// What read(2) answered.
pub fn digest_of(file: &File) -> io::Result<ContentDigest> {
    Reader::default().digest(file, u64::MAX).map(|(digest, _)| digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_long_as_asked_or_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let dir = varve_sys::Dir::open(folder.path()).unwrap();
        let mut reader = Reader::default();
        for size in [0, 1, 4097, BUFFER as u64, (1 << 20) + 77] {
            let bytes: Vec<u8> = (0..size).map(|at| (at / 7) as u8).collect();
            dir.create_file(size.to_string(), 0o600).unwrap().write_all(&bytes).unwrap();
            let open = || dir.open_file(size.to_string()).unwrap();
            let expected = varve_format::verity::content_digest(&bytes);
            assert_eq!(reader.digest(&open(), size).unwrap(), (expected, size));
            assert_eq!(reader.digest(&open(), size + 1).unwrap(), (expected, size));
            assert_eq!(digest_of(&open()).unwrap(), expected, "{size}");
        }
    }
}
