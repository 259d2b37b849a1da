//! A socket is handed to another process, through a socket that both have.
//!
//! Source: `unix(7)`, `SCM_RIGHTS`. Callers: `varve_fetch::worker`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};

/// Two ends of a new socket. About so many bytes are on the way from one to the other, at
/// most: the kernel counts what it needs for them too, and has a least of its own.
///
/// # Errors
/// When no more descriptors may be had.
pub fn pair(on_the_way: usize) -> io::Result<(UnixStream, UnixStream)> {
    let (here, there) = UnixStream::pair()?;
    for end in [&here, &there] {
        sockopt::set_socket_send_buffer_size(end, on_the_way)?;
    }
    Ok((here, there))
}

/// Hands a descriptor to whoever is at the other end.
///
/// # Errors
/// When nobody is.
pub fn hand_over(stream: &UnixStream, descriptor: impl AsFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    if !message.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    // It goes with a byte, or not at all.
    let flags = SendFlags::NOSIGNAL;
    rustix::io::retry_on_intr(|| sendmsg(stream, &[IoSlice::new(&[0])], &mut message, flags))?;
    Ok(())
}

/// Takes the next descriptor; none when the other end is closed.
///
/// # Errors
/// When something else comes.
pub fn take_over(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut byte = [0];
    let (mut taken, count, flags) = {
        let mut message = RecvAncillaryBuffer::new(&mut space);
        let got = rustix::io::retry_on_intr(|| {
            let into = &mut [IoSliceMut::new(&mut byte)];
            recvmsg(stream, into, &mut message, RecvFlags::CMSG_CLOEXEC)
        })?;
        let taken: Vec<OwnedFd> = message
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        (taken, got.bytes, got.flags)
    };
    match (count, taken.len()) {
        (0, _) => Ok(None),
        (_, 1) if !flags.contains(ReturnFlags::CTRUNC) => Ok(taken.pop()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "one descriptor is expected")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_socket_that_was_handed_over_is_the_same_socket() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut mine, theirs) = pair(4096).unwrap();
        hand_over(&here, &theirs).unwrap();
        drop(theirs);
        let mut taken = UnixStream::from(take_over(&there).unwrap().unwrap());
        taken.write_all(b"through").unwrap();
        drop(taken);
        let mut text = String::new();
        mine.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        drop(here);
        assert!(take_over(&there).unwrap().is_none());
        assert!(hand_over(&there, &mine).is_err(), "nobody is there");
    }

    #[test]
    fn a_byte_alone_is_no_socket() {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(&[0]).unwrap();
        assert!(take_over(&there).is_err());
    }

    #[test]
    fn little_is_on_the_way() {
        let (mut here, _there) = pair(16 << 10).unwrap();
        here.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(count) = here.write(&[0; 1024]) {
            sent += count;
        }
        assert!((4 << 10..=64 << 10).contains(&sent), "{sent}");
    }
}
