//! The asynchronous half: one thread that holds connections and moves bytes; callers wait
//! on channels, so that they may be anywhere, inside another runtime too.
//!
//! ```text
//!  caller                         thread "varve-http"
//!  get(url, headers) --spawn----> pool or connect -> request -> redirects
//!  head <-------------------------- answer's head
//!  Stream::fill() <---- chunks ---- pump: next bytes, at most BUDGET ahead of the reader
//!  drop ------------abort---------> connection closed (HTTP/1.1) or stream reset (HTTP/2)
//! ```

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, StatusCode};
use hyper::body::{Body, Incoming};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use url::Url;
use varve_sys::task::Cancel;

use super::connect::{Connection, Route, connect};
use super::multipart::Chunks;
use super::{Proxies, TransportError, answer};

/// How far the thread reads ahead of its reader, in bytes.
const BUDGET: usize = 192 * 1024;
/// How often a server may send a request elsewhere.
pub(crate) const MAX_REDIRECTS: usize = 5;
/// The most connections that wait for their next use.
const MAX_IDLE: usize = 4;
/// How often it is looked whether the work was cancelled, while nothing comes.
const LOOK: Duration = Duration::from_millis(100);
/// How long a connection may take to become usable again after a body.
const SETTLE: Duration = Duration::from_millis(200);

/// The head of an answer, after all redirects.
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Where it came from, if it was sent elsewhere.
    pub(super) moved_to: Option<Url>,
}

/// Asks servers.
pub(super) struct Client {
    inner: Arc<Inner>,
    thread: OnceLock<Result<Thread, io::ErrorKind>>,
}

struct Inner {
    tls: Arc<rustls::ClientConfig>,
    proxies: Proxies,
    connect: Duration,
    stall: Duration,
    pool: Mutex<HashMap<Route, Vec<Connection>>>,
}

struct Thread {
    handle: Handle,
    stop: Arc<Notify>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

/// One thing that the thread tells a reader.
enum Piece {
    Bytes(Bytes),
    End,
    Failed(TransportError),
}

/// A body as it arrives.
pub(super) struct Stream {
    here: Bytes,
    pieces: mpsc::Receiver<Piece>,
    budget: Arc<Semaphore>,
    task: AbortHandle,
    ended: bool,
    cancel: Cancel,
}

impl Client {
    pub(super) fn new(
        tls: rustls::ClientConfig,
        proxies: Proxies,
        connect: Duration,
        stall: Duration,
    ) -> Self {
        let inner = Inner { tls: Arc::new(tls), proxies, connect, stall, pool: Mutex::default() };
        Self { inner: Arc::new(inner), thread: OnceLock::new() }
    }

    /// Asks for `url`; waits until the answer's head is here.
    pub(super) fn get(
        &self,
        url: Url,
        headers: HeaderMap,
        cancel: &Cancel,
    ) -> Result<(Head, Stream), TransportError> {
        let thread = self.thread.get_or_init(|| start().map_err(|error| error.kind()));
        let thread = thread.as_ref().map_err(|kind| TransportError::Io((*kind).into()))?;
        let (to_caller, head) = mpsc::channel();
        let (out, pieces) = mpsc::channel();
        let budget = Arc::new(Semaphore::new(BUDGET));
        let (inner, left) = (self.inner.clone(), budget.clone());
        let task = thread.handle.spawn(async move {
            let told = match inner.request(url, headers).await {
                Ok((head, body, lease)) => {
                    let _ = to_caller.send(Ok(head));
                    inner.pump(body, lease, &out, &left).await;
                    return;
                }
                Err(error) => Err(error),
            };
            let _ = to_caller.send(told);
        });
        let (task, cancel) = (task.abort_handle(), cancel.clone());
        let stream = Stream { here: Bytes::new(), pieces, budget, task, ended: false, cancel };
        let head = wait(&head, &stream.cancel)??;
        Ok((head, stream))
    }
}

/// The next thing that the thread says.
fn wait<T>(from: &mpsc::Receiver<T>, cancel: &Cancel) -> Result<T, TransportError> {
    loop {
        match from.recv_timeout(LOOK) {
            Ok(told) => return Ok(told),
            Err(RecvTimeoutError::Timeout) if cancel.is_cancelled() => {
                return Err(TransportError::Cancelled);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(TransportError::Unreachable { reason: "the transfer ended".into() });
            }
        }
    }
}

fn start() -> io::Result<Thread> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        // For names alone.
        .max_blocking_threads(2)
        .build()?;
    let stop = Arc::new(Notify::new());
    let thread = Thread { handle: runtime.handle().clone(), stop: stop.clone() };
    std::thread::Builder::new().name("varve-http".into()).spawn(move || {
        runtime.block_on(stop.notified());
        // A name that is being looked up is not waited for.
        runtime.shutdown_background();
    })?;
    Ok(thread)
}

/// A connection while a body comes over it.
struct Lease {
    route: Route,
    connection: Connection,
}

impl Inner {
    async fn request(
        &self,
        mut url: Url,
        headers: HeaderMap,
    ) -> Result<(Head, Incoming, Lease), TransportError> {
        let mut moved = false;
        for _ in 0..=MAX_REDIRECTS {
            let (response, lease) = self.ask(&url, &headers).await?;
            let (head, body) = response.into_parts();
            if !matches!(head.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                let moved_to = moved.then(|| url.clone());
                let head = Head { status: head.status, headers: head.headers, moved_to };
                return Ok((head, body, lease));
            }
            url = redirect(&url, answer::header(&head.headers, "location"))?;
            moved = true;
        }
        Err(TransportError::Redirect { reason: "again and again".into() })
    }

    async fn ask(
        &self,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<(http::Response<Incoming>, Lease), TransportError> {
        let route = Route {
            https: url.scheme() == "https",
            host: url.host_str().unwrap_or_default().to_owned(),
            port: url.port_or_known_default().unwrap_or_default(),
            proxy: self.proxies.of(url),
        };
        loop {
            let (mut connection, reused) = match self.idle(&route) {
                Some(connection) => (connection, true),
                None => {
                    let connecting = connect(&route, &self.tls);
                    let connected = tokio::time::timeout(self.connect, connecting).await;
                    let late =
                        || TransportError::Unreachable { reason: "no answer in time".into() };
                    (connected.map_err(|_| late())??, false)
                }
            };
            let asking = connection.ask(url, headers, route.proxy.as_ref());
            match tokio::time::timeout(self.stall, asking).await {
                Err(_) => return Err(TransportError::Stalled { after: self.stall }),
                Ok(Ok(response)) => return Ok((response, Lease { route, connection })),
                // The server closed it while it waited: that says nothing about now.
                Ok(Err(_)) if reused => {}
                Ok(Err(error)) => return Err(answer::failed(error)),
            }
        }
    }

    /// A connection that waits for a request.
    fn idle(&self, route: &Route) -> Option<Connection> {
        let mut pool = lock(&self.pool);
        let list = pool.get_mut(route)?;
        while let Some(connection) = list.pop() {
            if !connection.is_closed() {
                return Some(connection);
            }
        }
        None
    }

    fn keep(&self, lease: Lease) {
        let mut pool = lock(&self.pool);
        if pool.values().map(Vec::len).sum::<usize>() < MAX_IDLE && !lease.connection.is_closed() {
            pool.entry(lease.route).or_default().push(lease.connection);
        }
    }

    /// Moves a body's bytes to its reader.
    async fn pump(
        &self,
        mut body: Incoming,
        lease: Lease,
        out: &mpsc::Sender<Piece>,
        budget: &Semaphore,
    ) {
        let last = loop {
            if body.is_end_stream() {
                break Piece::End;
            }
            let next = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
            let bytes = match tokio::time::timeout(self.stall, next).await {
                Err(_) => break Piece::Failed(TransportError::Stalled { after: self.stall }),
                Ok(None) => break Piece::End,
                Ok(Some(Err(error))) => break Piece::Failed(answer::failed(error)),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => bytes,
                    // Trailers say nothing that is not checked anyway.
                    Err(_) => continue,
                },
            };
            let weight = u32::try_from(bytes.len().min(BUDGET)).unwrap_or_default();
            if out.send(Piece::Bytes(bytes)).is_err() {
                return;
            }
            // The reader gives back what it has taken; it closes the budget when it goes.
            match budget.acquire_many(weight).await {
                Ok(permit) => permit.forget(),
                Err(_) => return,
            }
        };
        drop(body);
        if matches!(last, Piece::End) {
            self.settle(lease).await;
        }
        let _ = out.send(last);
    }

    /// Puts a connection where the next request finds it.
    async fn settle(&self, mut lease: Lease) {
        let ready = match &mut lease.connection {
            Connection::One(sender) => {
                matches!(tokio::time::timeout(SETTLE, sender.ready()).await, Ok(Ok(())))
            }
            Connection::Two(_) => true,
        };
        if ready {
            self.keep(lease);
        }
    }
}

/// Where a redirect leads, if it may.
fn redirect(from: &Url, location: Option<&str>) -> Result<Url, TransportError> {
    let wrong = |reason: String| TransportError::Redirect { reason };
    let location = location.ok_or_else(|| wrong("without saying where to".into()))?;
    let to = from.join(location).map_err(|error| wrong(format!("to {location:?}: {error}")))?;
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => Ok(to),
        ("https", "http") => Err(wrong(format!("from https to {to}, which anybody can read"))),
        _ => Err(wrong(format!("to {to}, which is not on the web"))),
    }
}

impl Stream {
    /// The body is read to its last byte: lets the connection go back to the others, which
    /// takes a moment.
    pub(super) fn finish(&mut self) {
        if !self.ended && self.here.is_empty() {
            self.ended = matches!(self.pieces.recv_timeout(SETTLE), Ok(Piece::End));
        }
    }
}

impl Chunks for Stream {
    fn fill(&mut self) -> Result<&[u8], TransportError> {
        while self.here.is_empty() && !self.ended {
            match wait(&self.pieces, &self.cancel)? {
                Piece::Bytes(bytes) => self.here = bytes,
                Piece::End => self.ended = true,
                Piece::Failed(error) => return Err(error),
            }
        }
        Ok(&self.here)
    }

    fn consume(&mut self, count: usize) {
        self.here.advance(count);
        self.budget.add_permits(count);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.budget.close();
        if !self.ended {
            self.task.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_only_to_the_web() {
        let to = |from: &str, location: Option<&str>| {
            let url = redirect(&Url::parse(from).unwrap(), location);
            url.map_or_else(|error| error.to_string(), |url| url.to_string())
        };
        assert_eq!(to("http://a/x/y", Some("../z")), "http://a/z");
        assert_eq!(to("http://a/", Some("//b/c")), "http://b/c");
        assert_eq!(to("http://a/", Some("https://b/")), "https://b/");
        assert_eq!(
            to("http://a/", Some("file:///etc/passwd")),
            "the server redirects to file:///etc/passwd, which is not on the web"
        );
        assert!(to("https://a/", Some("http://b/")).contains("from https to http://b/"));
        assert!(to("http://a/", None).ends_with("without saying where to"));
        assert!(to("http://a/", Some("http://[")).starts_with("the server redirects to"));
    }
}
