//! An HTTP/1.1 server over a directory that does as a good server does (ranges, several of
//! them, ETags, keep-alive), or as told, what bad ones and bad links do.
//!
//! ```text
//! connection -> request -> rule(&Request) -> Act -> answer, counted
//!                                 `-- and the link: so many bytes a second, cut after so
//!                                     many bytes in all
//! ```

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// What to do with one request.
#[derive(Clone, Debug)]
pub enum Act {
    /// As a good server does.
    Serve,
    /// Serve, but close the connection after so many bytes of the body.
    CutAfter(usize),
    /// Serve the whole file with status 200, whatever range is asked for.
    IgnoreRange,
    /// The same, if more than one range is asked for.
    IgnoreSeveral,
    /// Of several ranges, give the first alone.
    FirstAlone,
    /// Of several ranges, give the last one first.
    Backwards,
    /// Answer several ranges with this text as the multipart body.
    Multipart(String),
    /// Announce so many more bytes than follow.
    LieLonger(usize),
    /// Bytes without end, and no length.
    Endless,
    /// So many bytes at a time, with a pause.
    Trickle(usize, Duration),
    /// Send so many bytes of the body, then nothing more.
    StallAfter(usize),
    /// A log-in page, with status 200.
    Html,
    /// A log-in page that says it is JSON.
    HtmlAsJson,
    /// A bare status.
    Status(u16),
    /// A status, and one header line.
    Answer(u16, String),
    /// Serve, with one more header line.
    WithHeader(String),
    /// Headers without end.
    EndlessHeaders,
    /// A byte of the head, a pause, and so on.
    SlowHead(Duration),
    /// Not HTTP at all.
    Garbage,
    /// These bytes instead of the file's.
    Other(Vec<u8>),
    /// A range other than the one asked for, presented as what it is.
    WrongRange,
}

/// A request, as far as rules care.
#[derive(Clone, Debug)]
pub struct Request {
    /// Without the first `/`. What a proxy is asked: the whole URL.
    pub path: String,
    /// The ranges asked for.
    pub ranges: Vec<Range<u64>>,
    /// `If-Range`.
    pub if_range: Option<String>,
    /// `Proxy-Authorization`.
    pub login: Option<String>,
    /// How many requests for this path came before.
    pub earlier: usize,
}

type Rule = Box<dyn Fn(&Request) -> Act + Send + Sync>;

/// What the link does, whatever is asked.
#[derive(Debug, Default)]
pub struct Link {
    /// Bytes a second; 0: as fast as it goes.
    pub rate: u64,
    /// After so many bytes in all the connection is cut; the cut is told to `hears`.
    pub cut_at: Option<u64>,
}

/// A running server. It ends with the process.
pub struct Server {
    /// `http://127.0.0.1:PORT/`.
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    rule: Rule,
    log: Mutex<Vec<Request>>,
    /// Bytes of bodies.
    sent: AtomicU64,
    /// All bytes, both ways.
    moved: AtomicU64,
    link: Mutex<Link>,
    cuts: AtomicU64,
    /// Large files that have been at rest for a while, with when they changed.
    large: Mutex<HashMap<PathBuf, (SystemTime, File)>>,
}

/// A file in memory.
#[derive(Clone)]
struct File {
    bytes: Arc<Vec<u8>>,
    tag: String,
}

impl File {
    fn new(bytes: Vec<u8>) -> Self {
        let tag = format!("\"{}\"", varve_format::Sha256Digest::of(&bytes).short());
        Self { bytes: Arc::new(bytes), tag }
    }
}

/// What is read again for each request: anything smaller, or that changed just now.
const SMALL: u64 = 1 << 20;
const JUST_NOW: Duration = Duration::from_secs(1);

impl Shared {
    /// A large file is read and digested once, as long as it does not change.
    fn load(&self, path: &Path) -> io::Result<File> {
        let data = std::fs::metadata(path)?;
        let changed = data.modified()?;
        let keeps = data.len() >= SMALL && changed.elapsed().is_ok_and(|age| age > JUST_NOW);
        if !keeps {
            return Ok(File::new(std::fs::read(path)?));
        }
        let mut large = lock(&self.large);
        if let Some((then, file)) = large.get(path)
            && (*then, file.bytes.len() as u64) == (changed, data.len())
        {
            return Ok(file.clone());
        }
        let file = File::new(std::fs::read(path)?);
        large.insert(path.to_owned(), (changed, file.clone()));
        Ok(file)
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Server {
    /// Serves `root`; `rule` decides about each request.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn new(root: &Path, rule: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Self {
        Self::on("127.0.0.1:0", root, rule)
    }

    /// The same at an address, such as `[::1]:0`.
    ///
    /// # Panics
    /// When it cannot be had.
    pub fn on(
        address: &str,
        root: &Path,
        rule: impl Fn(&Request) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("an address to listen at");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            rule: Box::new(rule),
            log: Mutex::default(),
            sent: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            link: Mutex::default(),
            cuts: AtomicU64::new(0),
            large: Mutex::default(),
        });
        let own = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = own.clone();
                std::thread::spawn(move || {
                    let _ = connection(&shared, stream);
                });
            }
        });
        Self { url: format!("http://{address}/"), shared }
    }

    /// A server without faults.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn good(root: &Path) -> Self {
        Self::new(root, |_| Act::Serve)
    }

    /// All requests so far.
    pub fn log(&self) -> Vec<Request> {
        lock(&self.shared.log).clone()
    }

    /// Bytes of bodies sent.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// All bytes above TCP, heads included, both ways.
    pub fn moved(&self) -> u64 {
        self.shared.moved.load(Ordering::SeqCst)
    }

    /// How often the link was cut.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Changes the link.
    pub fn link(&self, link: Link) {
        *lock(&self.shared.link) = link;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connection(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = head(shared, &mut reader)? {
        lock(&shared.log).push(request.clone());
        let act = (shared.rule)(&request);
        if !answer(shared, &request, &act, &mut stream)? {
            break;
        }
    }
    Ok(())
}

fn head(shared: &Shared, reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').replace("%2B", "+");
    let mut request = Request { path, ranges: Vec::new(), if_range: None, login: None, earlier: 0 };
    let mut length = line.len();
    loop {
        line.clear();
        length += reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.ranges = ranges(value).unwrap_or_default(),
            "if-range" => request.if_range = Some(value.to_owned()),
            "proxy-authorization" => request.login = Some(value.to_owned()),
            _ => {}
        }
    }
    shared.moved.fetch_add(length as u64, Ordering::SeqCst);
    request.earlier = lock(&shared.log).iter().filter(|r| r.path == request.path).count();
    Ok(Some(request))
}

fn ranges(value: &str) -> Option<Vec<Range<u64>>> {
    let list = value.strip_prefix("bytes=")?.split(',');
    list.map(|range| {
        let (first, last) = range.trim().split_once('-')?;
        Some(first.parse().ok()?..last.parse::<u64>().ok()? + 1)
    })
    .collect()
}

const PAGE: &[u8] = b"<!DOCTYPE html><html><body>Please log in to the network</body></html>";
const BOUNDARY: &str = "4f1c0d7ea2";

/// Answers; true when the connection can be used again.
fn answer(shared: &Shared, request: &Request, act: &Act, out: &mut TcpStream) -> io::Result<bool> {
    let page = |out: &mut TcpStream, status: &str, header: &str, body: &[u8]| {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\n{header}\r\ncontent-length: {length}\r\n\r\n");
        send(shared, out, head.as_bytes(), false)?;
        send(shared, out, body, true).map(|()| true)
    };
    const HTML: &str = "content-type: text/html; charset=utf-8";
    match act {
        Act::Html => return page(out, "200 OK", HTML, PAGE),
        Act::HtmlAsJson => return page(out, "200 OK", "content-type: application/json", PAGE),
        Act::Status(code) => return page(out, &format!("{code} X"), "x: y", b"no"),
        Act::Answer(code, header) => return page(out, &format!("{code} X"), header, b"no"),
        Act::Garbage => {
            send(shared, out, b"220 mail.example ESMTP\r\n", false)?;
            return Ok(false);
        }
        Act::Endless => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\nconnection: close\r\n\r\n";
            send(shared, out, head.as_bytes(), false)?;
            loop {
                send(shared, out, &[b' '; 65536], true)?;
            }
        }
        Act::EndlessHeaders => {
            send(shared, out, b"HTTP/1.1 200 OK\r\n", false)?;
            for n in 0_u64.. {
                send(shared, out, format!("x-{n}: {}\r\n", "y".repeat(1000)).as_bytes(), false)?;
            }
        }
        Act::SlowHead(pause) => {
            for byte in b"HTTP/1.1 200 OK\r\nx: ".iter().chain(std::iter::repeat(&b'y')) {
                send(shared, out, &[*byte], false)?;
                std::thread::sleep(*pause);
            }
        }
        _ => {}
    }
    let file = match act {
        Act::Other(bytes) => Ok(File::new(bytes.clone())),
        _ => {
            let path = request.path.split('?').next().unwrap_or_default();
            shared.load(&shared.root.join(path))
        }
    };
    let Ok(file) = file else {
        return page(out, "404 Not Found", HTML, PAGE);
    };
    serve(shared, request, act, &file, out)
}

fn serve(
    shared: &Shared,
    request: &Request,
    act: &Act,
    File { bytes: file, tag }: &File,
    out: &mut TcpStream,
) -> io::Result<bool> {
    let total = file.len() as u64;
    let mut ranges = request.ranges.clone();
    let several = ranges.len() > 1;
    if matches!(act, Act::IgnoreRange)
        || (several && matches!(act, Act::IgnoreSeveral))
        || request.if_range.as_ref().is_some_and(|asked| asked != tag)
    {
        ranges.clear();
    }
    let (asked, whole) = (ranges.len(), ranges.is_empty());
    ranges.retain(|range| range.start < total);
    if asked > 0 && ranges.is_empty() {
        let head = format!(
            "HTTP/1.1 416 X\r\ncontent-range: bytes */{total}\r\ncontent-length: 0\r\n\r\n"
        );
        send(shared, out, head.as_bytes(), false)?;
        return Ok(true);
    }
    ranges.iter_mut().for_each(|range| range.end = range.end.min(total));
    match act {
        Act::FirstAlone => ranges.truncate(1),
        Act::Backwards => ranges.reverse(),
        Act::WrongRange => ranges.iter_mut().for_each(|range| range.start -= range.start.min(1)),
        _ => {}
    }
    let bytes = |range: &Range<u64>| &file[range.start as usize..range.end as usize];
    let says = |range: &Range<u64>| {
        format!("content-range: bytes {}-{}/{total}", range.start, range.end - 1)
    };
    let (status, mut headers, body) = match ranges.as_slice() {
        _ if whole => ("200 OK", String::new(), Cow::Borrowed(&file[..])),
        [range] => ("206 Partial Content", says(range) + "\r\n", Cow::Borrowed(bytes(range))),
        ranges => {
            let mut body = Vec::new();
            for range in ranges {
                body.extend_from_slice(
                    format!("\r\n--{BOUNDARY}\r\n{}\r\n\r\n", says(range)).as_bytes(),
                );
                body.extend_from_slice(bytes(range));
            }
            body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
            if let Act::Multipart(text) = act {
                body = text.clone().into_bytes();
            }
            ("206 Partial Content", String::new(), Cow::Owned(body))
        }
    };
    let kind = match ranges.len() {
        0 | 1 => "application/octet-stream".to_owned(),
        _ => format!("multipart/byteranges; boundary={BOUNDARY}"),
    };
    if let Act::WithHeader(line) = act {
        headers += &format!("{line}\r\n");
    }
    let announced = body.len() + if let Act::LieLonger(more) = act { *more } else { 0 };
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}content-type: {kind}\r\netag: {tag}\r\ncontent-length: {announced}\r\n\r\n"
    );
    send(shared, out, head.as_bytes(), false)?;
    match act {
        Act::CutAfter(bytes) if *bytes < body.len() => {
            send(shared, out, &body[..*bytes], true)?;
            Ok(false)
        }
        Act::StallAfter(bytes) if *bytes < body.len() => {
            send(shared, out, &body[..*bytes], true)?;
            // Until the client goes away.
            let _ = out.read(&mut [0]);
            Ok(false)
        }
        Act::Trickle(bytes, pause) => {
            for part in body.chunks(*bytes) {
                send(shared, out, part, true)?;
                std::thread::sleep(*pause);
            }
            Ok(true)
        }
        _ => send(shared, out, &body, true).map(|()| !matches!(act, Act::LieLonger(_))),
    }
}

/// Sends, as fast as the link is, and counts; a link that is cut is an error.
fn send(shared: &Shared, out: &mut TcpStream, bytes: &[u8], is_body: bool) -> io::Result<()> {
    // Some 10 milliseconds' worth at a time on a slow link.
    let step = match lock(&shared.link).rate {
        0 => 64 * 1024,
        rate => usize::try_from(rate / 100).unwrap_or(usize::MAX).clamp(256, 64 * 1024),
    };
    for mut part in bytes.chunks(step) {
        let began = Instant::now();
        let mut is_cut = false;
        let rate = {
            let mut link = lock(&shared.link);
            let moved = shared.moved.load(Ordering::SeqCst);
            if let Some(left) = link.cut_at.map(|at| at.saturating_sub(moved))
                && left <= part.len() as u64
            {
                part = &part[..left as usize];
                link.cut_at = None;
                is_cut = true;
            }
            shared.moved.fetch_add(part.len() as u64, Ordering::SeqCst);
            link.rate
        };
        out.write_all(part)?;
        out.flush()?;
        if is_body {
            shared.sent.fetch_add(part.len() as u64, Ordering::SeqCst);
        }
        if is_cut {
            out.shutdown(std::net::Shutdown::Both)?;
            shared.cuts.fetch_add(1, Ordering::SeqCst);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if rate > 0 {
            let due = Duration::from_secs_f64(part.len() as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
    Ok(())
}
