//! A small, well-behaved HTTP server for a folder of files, with counters.
//!
//! It is what a repository needs of any server: `GET` and `HEAD`, one byte range,
//! `ETag` with `If-Range` and `If-None-Match`, connections kept alive. Misbehaviour (slow,
//! cut, lying) is the business of the fetch tests, not of this one.

use super::{Result, io_error};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::UNIX_EPOCH;
use tiny_http::{Header, Method, Request, Response, StatusCode};

/// How many requests are answered at once.
const WORKERS: usize = 4;

/// What a server has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests answered.
    pub requests: u64,
    /// Bytes of bodies that were handed to the socket.
    pub body_bytes: u64,
    /// Bytes of request and response headers, as far as this server sees them: the three
    /// lines that the library adds by itself are counted at their usual length.
    pub header_bytes: u64,
}

impl Counters {
    /// All bytes on the wire above TCP.
    pub fn total(self) -> u64 {
        self.body_bytes + self.header_bytes
    }
}

#[derive(Debug, Default)]
struct Counting {
    requests: AtomicU64,
    body: Arc<AtomicU64>,
    headers: AtomicU64,
}

/// A running server; stopped on drop.
pub struct Server {
    http: Arc<tiny_http::Server>,
    address: SocketAddr,
    counting: Arc<Counting>,
    workers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .field("counters", &self.counters())
            .finish()
    }
}

impl Server {
    /// Serves `folder` on a free port of this host's loopback.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(folder: &Path) -> Result<Self> {
        Self::start_on(folder, 0)
    }

    /// Serves `folder` on a port of this host's loopback; 0: any free one.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start_on(folder: &Path, port: u16) -> Result<Self> {
        let refused = |error: Box<dyn std::error::Error + Send + Sync>| {
            io_error("serve", folder)(std::io::Error::other(error.to_string()))
        };
        let http = Arc::new(tiny_http::Server::http(("127.0.0.1", port)).map_err(refused)?);
        let address = http
            .server_addr()
            .to_ip()
            .ok_or_else(|| io_error("serve", folder)(std::io::Error::other("no address")))?;
        let counting = Arc::new(Counting::default());
        let workers = (0..WORKERS)
            .map(|_| {
                let (http, counting, folder) =
                    (Arc::clone(&http), Arc::clone(&counting), folder.to_owned());
                std::thread::spawn(move || {
                    // recv fails only when the server was told to stop.
                    while let Ok(request) = http.recv() {
                        answer(request, &folder, &counting);
                    }
                })
            })
            .collect();
        Ok(Self { http, address, counting, workers })
    }

    /// The address for programs on this host, such as `http://127.0.0.1:4711`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address for a guest of [`super::Config`].
    pub fn guest_url(&self) -> String {
        format!("http://{}:{}", super::HOST_FROM_GUEST, self.address.port())
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What was served so far.
    pub fn counters(&self) -> Counters {
        Counters {
            requests: self.counting.requests.load(Ordering::Relaxed),
            body_bytes: self.counting.body.load(Ordering::Relaxed),
            header_bytes: self.counting.headers.load(Ordering::Relaxed),
        }
    }

    /// Starts counting anew.
    pub fn reset(&self) {
        self.counting.requests.store(0, Ordering::Relaxed);
        self.counting.body.store(0, Ordering::Relaxed);
        self.counting.headers.store(0, Ordering::Relaxed);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for _ in &self.workers {
            self.http.unblock();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// Counts what the library really reads from a body, so that a client that goes away
/// half-way is counted for half.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.count.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

fn answer(request: Request, folder: &Path, counting: &Counting) {
    counting.requests.fetch_add(1, Ordering::Relaxed);
    // Request line with version and line end; `: ` and line end for each header.
    let asked = request.url().len()
        + 16
        + request
            .headers()
            .iter()
            .map(|h| h.field.as_str().as_str().len() + h.value.as_str().len() + 4)
            .sum::<usize>();
    let reply = reply_to(&request, folder);
    // Status line, Server, Date, Content-Length and the empty line.
    let told =
        130 + reply.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>();
    counting.headers.fetch_add((asked + told) as u64, Ordering::Relaxed);

    let headers = reply
        .headers
        .iter()
        .filter_map(|(name, value)| Header::from_bytes(name.as_bytes(), value.as_bytes()).ok());
    let status = StatusCode(reply.status);
    let length = usize::try_from(reply.length).ok();
    // A client that has gone away is no concern of the server's.
    let _ = match reply.body {
        Some(file) => {
            let body =
                Counted { inner: file.take(reply.length), count: Arc::clone(&counting.body) };
            request.respond(
                Response::new(status, headers.collect(), body, length, None)
                    .with_chunked_threshold(usize::MAX),
            )
        }
        None => request.respond(
            Response::new(status, headers.collect(), std::io::empty(), Some(0), None)
                .with_chunked_threshold(usize::MAX),
        ),
    };
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Option<File>,
    length: u64,
}

impl Reply {
    fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: None, length: 0 }
    }
}

fn reply_to(request: &Request, folder: &Path) -> Reply {
    if !matches!(request.method(), Method::Get | Method::Head) {
        return Reply { headers: vec![("Allow", "GET, HEAD".to_owned())], ..Reply::empty(405) };
    }
    let Some(path) = local_path(folder, request.url()) else {
        return Reply::empty(404);
    };
    let Ok(mut file) = File::open(&path) else {
        return Reply::empty(404);
    };
    let Ok(metadata) = file.metadata() else {
        return Reply::empty(404);
    };
    if !metadata.is_file() {
        return Reply::empty(404);
    }
    let size = metadata.len();
    let changed = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    let tag = format!("\"{:x}-{:x}\"", changed.as_nanos(), size);
    let mut headers = vec![("ETag", tag.clone()), ("Accept-Ranges", "bytes".to_owned())];

    let header = |name: &'static str| {
        request
            .headers()
            .iter()
            .find(|header| header.field.equiv(name))
            .map(|header| header.value.as_str().to_owned())
    };
    if header("If-None-Match")
        .is_some_and(|tags| tags == "*" || tags.split(',').any(|given| given.trim() == tag))
    {
        return Reply { headers, ..Reply::empty(304) };
    }
    // A range of another version of the file would be worse than the whole file.
    let range = header("Range").filter(|_| header("If-Range").is_none_or(|given| given == tag));
    let (status, start, length) = match range.map(|text| parse_range(&text, size)) {
        None | Some(Range::Ignore) => (200, 0, size),
        Some(Range::Part { start, length }) => {
            headers.push(("Content-Range", format!("bytes {start}-{}/{size}", start + length - 1)));
            (206, start, length)
        }
        Some(Range::Outside) => {
            headers.push(("Content-Range", format!("bytes */{size}")));
            return Reply { headers, ..Reply::empty(416) };
        }
    };
    if start > 0 && file.seek(SeekFrom::Start(start)).is_err() {
        return Reply::empty(500);
    }
    headers.push(("Content-Type", "application/octet-stream".to_owned()));
    Reply { status, headers, body: Some(file), length }
}

/// The file that a request means; nothing for a path that would leave the folder.
fn local_path(folder: &Path, url: &str) -> Option<PathBuf> {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let path = percent_decode(path.trim_start_matches('/'))?;
    let path = Path::new(&path);
    path.components().all(|part| matches!(part, Component::Normal(_))).then(|| folder.join(path))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// Not a single byte range: the whole file is a right answer (RFC 9110, section 14.2).
    Ignore,
    Part {
        start: u64,
        length: u64,
    },
    Outside,
}

fn parse_range(text: &str, size: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Range::Ignore;
    };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        return match last.parse::<u64>() {
            Ok(0) => Range::Outside,
            Ok(_) if size == 0 => Range::Outside,
            Ok(suffix) => Range::Part { start: size - suffix.min(size), length: suffix.min(size) },
            Err(_) => Range::Ignore,
        };
    }
    let Ok(start) = first.parse::<u64>() else {
        return Range::Ignore;
    };
    let end = if last.is_empty() { Some(u64::MAX) } else { last.parse::<u64>().ok() };
    match end {
        None => Range::Ignore,
        Some(end) if end < start => Range::Ignore,
        Some(_) if start >= size => Range::Outside,
        Some(end) => Range::Part { start, length: end.min(size - 1) - start + 1 },
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "test data, kept by no device")]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpStream;

    fn ask(server: &Server, request: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(server.address).unwrap();
        write!(stream, "{request}Host: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let split = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        (String::from_utf8(answer[..split].to_vec()).unwrap(), answer[split + 4..].to_vec())
    }

    fn served() -> (Server, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::fs::write(folder.path().join("sub/a b"), b"0123456789").unwrap();
        std::fs::write(folder.path().join("empty"), b"").unwrap();
        (Server::start(folder.path()).unwrap(), folder)
    }

    #[test]
    fn whole_parts_and_refusals() {
        let (server, folder) = served();
        std::fs::write(folder.path().with_extension("secret"), b"no").unwrap();
        let (head, body) = ask(&server, "GET /sub/a%20b HTTP/1.1\r\n");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("Content-Length: 10"), "{head}");
        assert_eq!(body, b"0123456789");
        let (head, body) = ask(&server, "GET /sub/a%20b HTTP/1.1\r\nRange: bytes=3-5\r\n");
        assert!(
            head.starts_with("HTTP/1.1 206") && head.contains("Content-Range: bytes 3-5/10"),
            "{head}"
        );
        assert_eq!(body, b"345");
        let (head, body) = ask(
            &server,
            "GET /sub/a%20b HTTP/1.1\r\nRange: bytes=3-5\r\nIf-Range: \"another\"\r\n",
        );
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(body.len(), 10);
        let (head, _) = ask(&server, "GET /sub/a%20b HTTP/1.1\r\nRange: bytes=10-\r\n");
        assert!(head.starts_with("HTTP/1.1 416"), "{head}");
        let (head, body) = ask(&server, "GET /empty HTTP/1.1\r\n");
        assert!(head.starts_with("HTTP/1.1 200") && body.is_empty(), "{head}");
        let (head, body) = ask(&server, "HEAD /sub/a%20b HTTP/1.1\r\n");
        assert!(
            head.starts_with("HTTP/1.1 200")
                && head.contains("Content-Length: 10")
                && body.is_empty(),
            "{head}"
        );
        let name = folder.path().file_name().unwrap().to_string_lossy().into_owned();
        for path in
            ["/sub", "/", "/missing", "/%2e%2e/x", &format!("/../{name}.secret"), "/sub/%00"]
        {
            let (head, _) = ask(&server, &format!("GET {path} HTTP/1.1\r\n"));
            assert!(head.starts_with("HTTP/1.1 404"), "{path}: {head}");
        }
        let (head, _) = ask(&server, "DELETE /empty HTTP/1.1\r\n");
        assert!(head.starts_with("HTTP/1.1 405"), "{head}");
        // 10 whole, 3 of the range, 10 whole again; HEAD and refusals carry nothing.
        assert_eq!(server.counters().body_bytes, 23);
        std::fs::remove_file(folder.path().with_extension("secret")).unwrap();
    }

    #[test]
    fn ranges_as_the_standard_reads_them() {
        let part = |start, length| Range::Part { start, length };
        for (text, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=4-", part(4, 6)),
            ("bytes=4-100", part(4, 6)),
            ("bytes=-3", part(7, 3)),
            ("bytes=-30", part(0, 10)),
            ("bytes=-0", Range::Outside),
            ("bytes=10-12", Range::Outside),
            ("bytes=5-4", Range::Ignore),
            ("bytes=0-1,3-4", Range::Ignore),
            ("lines=1-2", Range::Ignore),
            ("bytes=18446744073709551616-", Range::Ignore),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
    }
}
