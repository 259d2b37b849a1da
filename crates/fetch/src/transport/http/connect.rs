//! From a URL to a connection that speaks HTTP: names, addresses, a proxy, TLS.
//!
//! ```text
//! name -> addresses, families in turn -> first TCP connection that stands (RFC 8305)
//!                                          | proxy for https: CONNECT
//!                                          v
//!                                        TLS, ALPN h2 or http/1.1 (https alone)
//! ```

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::proxy::Proxy;
use super::{TransportError, answer};

/// How long one address has to itself before the next is tried beside it (RFC 8305, 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// The most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;
/// The most bytes of an answer's headers.
const MAX_HEADERS: usize = 32 * 1024;
/// What HTTP/2 may send ahead of what is read, in bytes.
const WINDOW: u32 = 1 << 20;

/// A request has no body.
pub(super) struct NoBody;

impl Body for NoBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(0)
    }
}

/// Where a connection leads: connections of one route can be used for each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub(super) https: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) proxy: Option<Proxy>,
}

impl Route {
    /// `host:port`, as `CONNECT` wants it.
    fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// A connection that takes requests.
pub(super) enum Connection {
    One(http1::SendRequest<NoBody>),
    Two(http2::SendRequest<NoBody>),
}

impl Connection {
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Two(sender) => sender.is_closed(),
        }
    }

    /// Asks, and gives the answer's head once it is here.
    pub(super) async fn ask(
        &mut self,
        url: &Url,
        headers: &http::HeaderMap,
        proxy: Option<&Proxy>,
    ) -> Result<http::Response<Incoming>, hyper::Error> {
        let whole = &url[..url::Position::AfterQuery];
        let target = match self {
            // A proxy for plain HTTP gets the whole URL, a server the path alone.
            Self::One(_) if proxy.is_none() || url.scheme() == "https" => {
                &url[url::Position::BeforePath..url::Position::AfterQuery]
            }
            _ => whole,
        };
        let mut request = http::Request::new(NoBody);
        // A parsed URL is always a URI; what could not be one is asked for as the root.
        *request.uri_mut() = target.parse().unwrap_or_default();
        *request.headers_mut() = headers.clone();
        if let Self::One(_) = self {
            let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
            if let Ok(host) = host.parse() {
                request.headers_mut().insert(http::header::HOST, host);
            }
            if let (Some(login), "http") =
                (proxy.and_then(|proxy| proxy.login.as_ref()), url.scheme())
                && let Ok(login) = login.parse()
            {
                request.headers_mut().insert(http::header::PROXY_AUTHORIZATION, login);
            }
        }
        match self {
            Self::One(sender) => sender.send_request(request).await,
            Self::Two(sender) => sender.send_request(request).await,
        }
    }
}

/// Connects.
pub(super) async fn connect(
    route: &Route,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<Connection, TransportError> {
    let (host, port) = match &route.proxy {
        Some(proxy) => (proxy.host.as_str(), proxy.port),
        None => (route.host.as_str(), route.port),
    };
    let tcp = dial(host, port).await?;
    match (&route.proxy, route.https) {
        (_, false) => plain(tcp).await,
        (None, true) => secured(tcp, route, tls).await,
        (Some(proxy), true) => {
            let tunnel = tunnel(tcp, proxy, &route.authority()).await?;
            secured(tunnel, route, tls).await
        }
    }
}

async fn plain<T>(io: T) -> Result<Connection, TransportError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEADERS)
        .handshake(TokioIo::new(io))
        .await
        .map_err(answer::failed)?;
    tokio::spawn(connection);
    Ok(Connection::One(sender))
}

async fn secured<T>(
    io: T,
    route: &Route,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<Connection, TransportError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let host = route.host.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host)
        .map_err(|error| TransportError::Certificate { reason: error.to_string() })?;
    let stream =
        TlsConnector::from(tls.clone()).connect(name, io).await.map_err(answer::tls_failed)?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return plain(stream).await;
    }
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADERS as u32)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(answer::failed)?;
    tokio::spawn(connection);
    Ok(Connection::Two(sender))
}

/// A way through a proxy to a server (RFC 9110, 9.3.6).
async fn tunnel(
    tcp: TcpStream,
    proxy: &Proxy,
    authority: &str,
) -> Result<TokioIo<hyper::upgrade::Upgraded>, TransportError> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEADERS)
        .handshake(TokioIo::new(tcp))
        .await
        .map_err(answer::failed)?;
    tokio::spawn(connection.with_upgrades());
    let mut request = http::Request::new(NoBody);
    *request.method_mut() = http::Method::CONNECT;
    *request.uri_mut() = authority.parse().unwrap_or_default();
    if let Ok(host) = authority.parse() {
        request.headers_mut().insert(http::header::HOST, host);
    }
    if let Some(Ok(login)) = proxy.login.as_ref().map(|login| login.parse()) {
        request.headers_mut().insert(http::header::PROXY_AUTHORIZATION, login);
    }
    let response = sender.send_request(request).await.map_err(answer::failed)?;
    match response.status().as_u16() {
        200..=299 => {}
        407 => return Err(TransportError::ProxyLogin { proxy: proxy.to_string() }),
        511 => return Err(TransportError::Captive { page: None }),
        status => {
            let reason = format!("the proxy {proxy} answers {authority} with HTTP status {status}");
            return Err(TransportError::Unreachable { reason });
        }
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(answer::failed)?;
    Ok(TokioIo::new(upgraded))
}

/// The first connection that stands, the families of addresses taking turns, each address
/// a little later than the one before or as soon as that has failed.
async fn dial(host: &str, port: u16) -> Result<TcpStream, TransportError> {
    let mut waiting = addresses(host, port).await?.into_iter();
    let mut under_way = JoinSet::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        if let Some(address) = waiting.next() {
            under_way.spawn(TcpStream::connect(address));
        }
        let pause = if waiting.len() > 0 { NEXT_ADDRESS } else { Duration::from_secs(3600) };
        match tokio::time::timeout(pause, under_way.join_next()).await {
            Ok(Some(Ok(Ok(stream)))) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Some(Ok(Err(error)))) => last = error,
            Ok(Some(Err(_))) | Err(_) => {}
            Ok(None) => return Err(answer::broken(&last)),
        }
    }
}

async fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, TransportError> {
    let unreachable = |reason: String| TransportError::Unreachable { reason };
    match Host::parse(host) {
        Ok(Host::Ipv4(address)) => return Ok(vec![(IpAddr::V4(address), port).into()]),
        Ok(Host::Ipv6(address)) => return Ok(vec![(IpAddr::V6(address), port).into()]),
        _ => {}
    }
    let found = tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| unreachable(format!("the name {host} is not known ({error})")))?;
    let list = in_turns(found.collect());
    if list.is_empty() {
        return Err(unreachable(format!("the name {host} has no address")));
    }
    Ok(list)
}

/// The resolver's order, with the families taking turns; its first address stays first.
fn in_turns(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = found.first().map(SocketAddr::is_ipv6) else { return found };
    let (ours, others): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| address.is_ipv6() == first);
    let (mut ours, mut others) = (ours.into_iter(), others.into_iter());
    let mut list = Vec::new();
    loop {
        let pair = [ours.next(), others.next()];
        if pair.iter().all(Option::is_none) || list.len() >= MAX_ADDRESSES {
            return list;
        }
        list.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let list = |text: &str| -> Vec<SocketAddr> {
            text.split(' ').map(|address| address.parse().unwrap()).collect()
        };
        let turned = in_turns(list("[::1]:1 [::2]:1 [::3]:1 1.1.1.1:1 2.2.2.2:1"));
        assert_eq!(turned, list("[::1]:1 1.1.1.1:1 [::2]:1 2.2.2.2:1 [::3]:1"));
        assert_eq!(in_turns(list("1.1.1.1:1 [::1]:1")), list("1.1.1.1:1 [::1]:1"));
        assert!(in_turns(Vec::new()).is_empty());
    }
}
