//! The worker's side of asking a server. Each file is asked for on a socket of its own, which
//! the manager hands over; closing it ends the asking.
//!
//! ```text
//! manager                             worker
//! TOLD url, options       ->
//! a socket                ->          ... and on it:
//!   OPEN path, ranges     ->          HEAD start, end, total | FAILED error
//!                                     BYTES bytes | PART start, end | LAST | FAILED error
//! ```

use std::io::{self, Read};
use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use varve_sys::passing;
use varve_sys::task::Cancel;

use super::wire::{Fields, Taken, broken, receive, send};
use crate::transport::http::{HttpOptions, HttpRepository};
use crate::transport::{Body, Transport, TransportError};

pub(crate) const TOLD: u8 = b'u';
pub(crate) const OPEN: u8 = b'o';
pub(crate) const HEAD: u8 = b'h';
pub(crate) const BYTES: u8 = b'b';
pub(crate) const PART: u8 = b'p';
pub(crate) const LAST: u8 = b'l';
pub(crate) const FAILED: u8 = b'!';

/// The longest message to a worker, in bytes: the certificates are in it, as numbers.
const MAX_TOLD: u64 = 64 << 20;
/// What is not known, where a position in a file stands.
pub(crate) const UNKNOWN: u64 = u64::MAX;
/// The most bytes of one message.
const STEP: usize = 32 << 10;

/// Whom to ask, and how.
#[derive(Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) url: String,
    pub(crate) options: HttpOptions,
}

/// Works until the other end is closed.
pub(super) fn serve(control: &UnixStream) -> io::Result<()> {
    let Some(message) = receive(control, MAX_TOLD)? else { return Ok(()) };
    let Told { url, options } = serde_json::from_slice(&message.body)?;
    let repository = HttpRepository::new(&url, &options).map_err(io::Error::other)?;
    let repository = Arc::new(repository);
    while let Some(socket) = passing::take_over(control)? {
        let repository = repository.clone();
        // Where no thread can be had the socket closes, and that is an answer.
        let _ = std::thread::Builder::new()
            .name("file".to_owned())
            .spawn(move || file(&repository, &UnixStream::from(socket)));
    }
    Ok(())
}

/// Asks for one file, as long as somebody wants it.
fn file(repository: &HttpRepository, socket: &UnixStream) {
    let cancel = Cancel::new();
    let asked = || {
        let message = receive(socket, MAX_TOLD)?.ok_or_else(broken)?;
        let mut fields = Taken(&message.body);
        let path = std::str::from_utf8(fields.bytes()?).map_err(io::Error::other)?.to_owned();
        let ranges: io::Result<Vec<_>> =
            (0..fields.count(16)?).map(|_| Ok(fields.number()?..fields.number()?)).collect();
        io::Result::Ok((path, ranges?))
    };
    let Ok((path, ranges)) = asked() else { return };
    std::thread::scope(|scope| {
        let wanted = std::thread::Builder::new().name("wanted".to_owned());
        let watch = || {
            // Nothing more is sent: this waits for the end.
            let _ = (&*socket).read(&mut [0]);
            cancel.cancel();
        };
        if wanted.spawn_scoped(scope, watch).is_ok() {
            // Whoever does not listen any more needs no answer.
            let _ = answer(repository, &path, &ranges, &cancel, socket);
        }
        let _ = socket.shutdown(Shutdown::Both);
    });
}

fn answer(
    repository: &HttpRepository,
    path: &str,
    ranges: &[Range<u64>],
    cancel: &Cancel,
    socket: &UnixStream,
) -> io::Result<()> {
    let known = |position: Option<u64>| position.unwrap_or(UNKNOWN);
    let mut body = match repository.open(path, ranges, cancel) {
        Ok(body) => body,
        Err(error) => return failed(socket, &error),
    };
    let place = |body: &Body| {
        let mut fields = Fields::default();
        fields.number(body.position()).number(known(body.end())).number(known(body.total()));
        fields.0
    };
    send(socket, HEAD, &[&place(&body)])?;
    let mut buffer = vec![0; STEP];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => match body.next_part() {
                Ok(true) => send(socket, PART, &[&place(&body)])?,
                Ok(false) => return send(socket, LAST, &[]),
                Err(error) => return failed(socket, &error),
            },
            Ok(count) => send(socket, BYTES, &[&buffer[..count]])?,
            Err(error) => return failed(socket, &error),
        }
    }
}

fn failed(socket: &UnixStream, error: &TransportError) -> io::Result<()> {
    send(socket, FAILED, &[&serde_json::to_vec(error)?])
}
