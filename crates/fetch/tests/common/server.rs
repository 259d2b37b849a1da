//! A small HTTP/1.1 server over a directory: ranges, ETags, keep-alive, and faults.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What to do with one request.
#[derive(Clone, Debug)]
pub enum Act {
    /// As a good server does.
    Serve,
    /// Serve, but close the connection after so many bytes of the body.
    CutAfter(usize),
    /// Serve the whole file with status 200, whatever range is asked for.
    IgnoreRange,
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
    /// These bytes instead of the file's.
    Other(Vec<u8>),
    /// A range other than the one asked for, presented as what it is.
    WrongRange,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub range: Option<(u64, u64)>,
    pub if_range: Option<String>,
    /// How many requests for this path came before.
    pub earlier: usize,
}

type Rule = Box<dyn Fn(&Request) -> Act + Send + Sync>;

pub struct Server {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    rule: Rule,
    log: Mutex<Vec<Request>>,
    sent: AtomicU64,
}

impl Server {
    pub fn new(root: &Path, rule: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            rule: Box::new(rule),
            log: Mutex::default(),
            sent: AtomicU64::new(0),
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
        Self { url, shared }
    }

    pub fn good(root: &Path) -> Self {
        Self::new(root, |_| Act::Serve)
    }

    pub fn log(&self) -> Vec<Request> {
        self.shared.log.lock().unwrap().clone()
    }

    /// Bytes of bodies sent.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }
}

fn connection(shared: &Shared, stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(request) = head(shared, &mut reader)? {
        shared.log.lock().unwrap().push(request.clone());
        let act = (shared.rule)(&request);
        if !answer(shared, &request, &act, &mut stream)? {
            break;
        }
    }
    Ok(())
}

fn head(shared: &Shared, reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').replace("%2B", "+");
    let (mut range, mut if_range) = (None, None);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let (a, b) = value.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                range = Some((a.parse().unwrap(), b.parse::<u64>().unwrap() + 1));
            }
            "if-range" => if_range = Some(value.to_owned()),
            _ => {}
        }
    }
    let earlier = shared.log.lock().unwrap().iter().filter(|r| r.path == path).count();
    Ok(Some(Request { path, range, if_range, earlier }))
}

/// Answers; true when the connection can be used again.
fn answer(
    shared: &Shared,
    request: &Request,
    act: &Act,
    out: &mut TcpStream,
) -> std::io::Result<bool> {
    const PAGE: &[u8] = b"<!DOCTYPE html><html><body>Please log in to the network</body></html>";
    let file = match act {
        Act::Other(bytes) => Ok(bytes.clone()),
        _ => std::fs::read(shared.root.join(&request.path)),
    };
    let page = |out: &mut TcpStream, status: &str, kind: &str, body: &[u8]| {
        write!(
            out,
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )?;
        out.write_all(body)
    };
    match act {
        Act::Html => return page(out, "200 OK", "text/html; charset=utf-8", PAGE).map(|()| true),
        Act::HtmlAsJson => return page(out, "200 OK", "application/json", PAGE).map(|()| true),
        Act::Status(code) => {
            return page(out, &format!("{code} X"), "text/plain", b"no").map(|()| true);
        }
        Act::Endless => {
            write!(
                out,
                "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\nconnection: close\r\n\r\n"
            )?;
            loop {
                send(shared, out, &[b' '; 65536])?;
            }
        }
        _ => {}
    }
    let Ok(file) = file else {
        return page(out, "404 Not Found", "text/html", PAGE).map(|()| true);
    };
    let total = file.len();
    let tag = format!("\"{}\"", varve_format::Sha256Digest::of(&file).short());
    let ranged = request.range.filter(|_| {
        !matches!(act, Act::IgnoreRange)
            && request.if_range.as_ref().is_none_or(|asked| *asked == tag)
    });
    let (mut start, end) = match ranged {
        Some((start, _)) if start as usize >= total => {
            write!(
                out,
                "HTTP/1.1 416 X\r\ncontent-range: bytes */{total}\r\ncontent-length: 0\r\n\r\n"
            )?;
            return Ok(true);
        }
        Some((start, end)) => (start as usize, (end as usize).min(total)),
        None => (0, total),
    };
    if matches!(act, Act::WrongRange) && start > 0 {
        start -= 1;
    }
    let body = &file[start..end];
    let announced = body.len() + if let Act::LieLonger(more) = act { *more } else { 0 };
    write!(
        out,
        "HTTP/1.1 {}\r\n",
        if ranged.is_some() { "206 Partial Content" } else { "200 OK" }
    )?;
    if ranged.is_some() {
        write!(out, "content-range: bytes {start}-{}/{total}\r\n", end - 1)?;
    }
    write!(
        out,
        "content-type: application/octet-stream\r\netag: {tag}\r\ncontent-length: {announced}\r\n\r\n"
    )?;
    match act {
        Act::CutAfter(bytes) if *bytes < body.len() => {
            send(shared, out, &body[..*bytes])?;
            Ok(false)
        }
        Act::StallAfter(bytes) if *bytes < body.len() => {
            send(shared, out, &body[..*bytes])?;
            // Until the client goes away.
            let _ = out.read(&mut [0]);
            Ok(false)
        }
        Act::Trickle(bytes, pause) => {
            for part in body.chunks(*bytes) {
                send(shared, out, part)?;
                std::thread::sleep(*pause);
            }
            Ok(true)
        }
        _ => send(shared, out, body).map(|()| !matches!(act, Act::LieLonger(_))),
    }
}

fn send(shared: &Shared, out: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    out.write_all(bytes)?;
    out.flush()?;
    shared.sent.fetch_add(bytes.len() as u64, Ordering::SeqCst);
    Ok(())
}
