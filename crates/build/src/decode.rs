//! Undoes the compression of an archive, by what its first bytes say.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use crate::error::{BuildError, Result};

/// How much is read from a source at once, in bytes.
const BUFFER: usize = 256 << 10;

/// An archive's bytes, without compression; and whether there was any.
pub(crate) fn open<'a>(
    mut input: impl Read + 'a,
    name: &str,
) -> Result<(Box<dyn BufRead + 'a>, bool)> {
    let read = |source| BuildError::Read { what: name.to_owned(), source };
    let mut start = Vec::new();
    (&mut input).take(6).read_to_end(&mut start).map_err(read)?;
    let is = |magic: &[u8]| start.starts_with(magic);
    let (gzip, zstd) = (is(b"\x1f\x8b"), is(b"\x28\xb5\x2f\xfd"));
    if is(b"\xfd7zXZ\0") || is(b"BZh") || is(b"LZIP") {
        return Err(BuildError::Archive {
            archive: name.to_owned(),
            why: "is compressed with xz, bzip2 or lzip, which are not read: pipe it through \
                  the program, as in xz -dc FILE | varve-repo build -"
                .into(),
        });
    }
    let whole: Chain<Cursor<Vec<u8>>, _> = Cursor::new(start).chain(input);
    let buffered = BufReader::with_capacity(BUFFER, whole);
    Ok(if gzip {
        (gunzip(buffered), true)
    } else if zstd {
        (unzstd(buffered).map_err(read)?, true)
    } else {
        (Box::new(buffered), false)
    })
}

/// Gzip, of any number of members.
pub(crate) fn gunzip<'a>(input: impl BufRead + 'a) -> Box<dyn BufRead + 'a> {
    Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(input)))
}

/// Zstd, of any number of frames, with windows of at most 128 MiB (the decoder's default).
pub(crate) fn unzstd<'a>(input: impl BufRead + 'a) -> io::Result<Box<dyn BufRead + 'a>> {
    let decoder = zstd::stream::read::Decoder::with_buffer(input)?;
    Ok(Box::new(BufReader::with_capacity(BUFFER, decoder)))
}
