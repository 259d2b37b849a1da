//! A relay of TCP connections that counts: for peers with a protocol of their own, whose
//! bytes are to be counted where those of an HTTP server are.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A running relay on this host's loopback. It ends with the process.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    moved: Arc<AtomicU64>,
}

impl Relay {
    /// Relays every connection to `server`.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let moved = Arc::new(AtomicU64::new(0));
        let count = moved.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(server) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    let count = count.clone();
                    std::thread::spawn(move || pass(from, to, &count));
                }
            }
        });
        Ok(Self { port, moved })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// All bytes so far, both ways.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::SeqCst)
    }
}

/// One way of a connection, until it ends.
fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = [0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
        count.fetch_add(length as u64, Ordering::SeqCst);
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_are_counted() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Relay::start(server.local_addr().unwrap()).unwrap();
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            stream.write_all(text.repeat(2).as_bytes()).unwrap();
        });
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).unwrap();
        stream.write_all(b"12345").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        echo.join().unwrap();
        assert_eq!(answer, "1234512345");
        assert_eq!(relay.moved(), 15);
    }
}
