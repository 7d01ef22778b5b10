//! XMPP over WebSocket (RFC 7395): the path `/xmpp-websocket`, and where it is announced (XEP-0156).
//!
//! This tier does the handshake (RFC 6455 §4.2) and frames messages; whoever holds device connections gets them. The header
//! `Origin` is not looked at: a login takes a token, which no browser adds on its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CONNECTION, CONTENT_TYPE, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_core::Stream as _;
use futures_sink::Sink as _;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use ring::digest;
use serde_json::json;
use tokio::io::AsyncWrite as _;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tokio_util::task::TaskTracker;

use crate::request::Peer;

/// Where WebSockets are served.
pub(crate) const PATH: &str = "/xmpp-websocket";
const HOST_META: &str = "/.well-known/host-meta";
const HOST_META_JSON: &str = "/.well-known/host-meta.json";
const SUBPROTOCOL: &str = "xmpp";
/// The link relation of XEP-0156 for WebSocket.
const RELATION: &str = "urn:xmpp:alt-connections:websocket";
/// What a handshake's key is hashed with (RFC 6455 §1.3).
const ACCEPT_SALT: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// A WebSocket holds a buffer of this size while it lives.
const READ_BYTES: usize = 4096;

/// Who holds connections of devices.
pub trait WebSockets: Send + Sync {
    /// The longest message that a device may send.
    fn message_bytes_max(&self) -> usize;

    /// Takes a WebSocket whose subprotocol is `xmpp`. `is_secure` tells whether it is over TLS.
    fn take(&self, socket: WebSocket, peer: IpAddr, is_secure: bool) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// An established WebSocket. Pings are answered while it is polled.
pub struct WebSocket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
    closing: bool,
}

/// A message that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Text.
    Text(String),
    /// Text that is no UTF-8. Nothing comes after it.
    NotUtf8,
    /// Not text.
    Binary,
    /// Longer than [`WebSockets::message_bytes_max`]. Nothing comes after it.
    TooLarge,
}

impl WebSocket {
    async fn new(upgraded: Upgraded, message_bytes_max: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            // Each message goes out at once, or as soon as the socket takes it.
            .write_buffer_size(0)
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max));
        let stream = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
        Self { stream, closing: false }
    }

    /// The next message; `None` once the other side has closed or is gone.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        loop {
            let received = match ready!(Pin::new(&mut self.stream).poll_next(cx)) {
                Some(Ok(Message::Text(text))) => Some(Received::Text(text.as_str().to_owned())),
                Some(Ok(Message::Binary(_))) => Some(Received::Binary),
                // The library answers them.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_))) => continue,
                Some(Err(Error::Capacity(_))) => Some(Received::TooLarge),
                Some(Err(Error::Utf8(_))) => Some(Received::NotUtf8),
                Some(Err(error)) => {
                    tracing::debug!(%error, "a WebSocket broke");
                    None
                }
                None => None,
            };
            return Poll::Ready(received);
        }
    }

    /// Ready when [`WebSocket::send`] may be called: at most one message waits for the socket.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_ready(cx).map_err(lost)
    }

    /// Sends a text message.
    pub fn send(&mut self, text: String) -> io::Result<()> {
        Pin::new(&mut self.stream).start_send(Message::text(text)).map_err(lost)
    }

    /// Ready when everything that was sent has left.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx).map_err(lost)
    }

    /// Says that nothing more will be sent, and why (RFC 6455 §7.4).
    pub fn poll_close(&mut self, cx: &mut Context<'_>, code: u16) -> Poll<io::Result<()>> {
        if !self.closing {
            ready!(self.poll_ready(cx))?;
            self.closing = true;
            let close = Message::Close(Some(CloseFrame { code: code.into(), reason: "".into() }));
            match Pin::new(&mut self.stream).start_send(close) {
                // The other side was first.
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => {}
                sent => sent.map_err(lost)?,
            }
        }
        match ready!(Pin::new(&mut self.stream).poll_flush(cx)) {
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => {}
            flushed => flushed.map_err(lost)?,
        }
        // The end of TLS too, without which some take the end of the bytes for an attack.
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }
}

fn lost(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::new(io::ErrorKind::BrokenPipe, other),
    }
}

/// What a request came over.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) is_secure: bool,
    /// Where the wait for the end of a handshake runs.
    pub(crate) tasks: TaskTracker,
}

/// Answers a request to one of the paths of this file, which are counted by the names that are returned; `None` for others.
pub(crate) fn answer(sockets: Option<&Arc<dyn WebSockets>>, request: &mut Request) -> Option<(&'static str, Response)> {
    match (request.uri().path(), sockets) {
        (PATH, Some(sockets)) => Some((PATH, upgrade(sockets, request).unwrap_or_else(|refusal| *refusal))),
        (PATH, None) => Some((PATH, plain(StatusCode::NOT_FOUND, "no device connections are held here"))),
        (HOST_META, sockets) => {
            let link = sockets.and_then(|_| link(request));
            let link = link.map_or(String::new(), |link| format!("<Link rel='{RELATION}' href='{link}'/>"));
            let document = format!(
                "<?xml version='1.0' encoding='utf-8'?>\
                 <XRD xmlns='http://docs.oasis-open.org/ns/xri/xrd-1.0'>{link}</XRD>"
            );
            Some((HOST_META, host_meta(request, "application/xrd+xml", document)))
        }
        (HOST_META_JSON, sockets) => {
            let link = sockets.and_then(|_| link(request));
            let links: Vec<_> = link.map(|link| json!({ "rel": RELATION, "href": link })).into_iter().collect();
            let document = json!({ "links": links }).to_string();
            Some((HOST_META_JSON, host_meta(request, "application/json", document)))
        }
        _ => None,
    }
}

fn host_meta(request: &Request, content_type: &'static str, document: String) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return with(plain(StatusCode::METHOD_NOT_ALLOWED, "this is read with GET"), ALLOW, "GET, HEAD");
    }
    let mut response = Response::new(Body::from(document));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Pages of any origin may read where to connect (XEP-0156 §3).
    with(response, ACCESS_CONTROL_ALLOW_ORIGIN, "*")
}

/// The URL of the WebSockets, at the name that the request was sent to.
fn link(request: &Request) -> Option<String> {
    let header = || request.headers().get(HOST)?.to_str().ok()?.parse::<Authority>().ok();
    let authority = request.uri().authority().cloned().or_else(header)?;
    let host = authority.host();
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    if host.is_empty() || !host.chars().all(is_name) {
        return None;
    }
    let scheme = if is_secure(request) { "wss" } else { "ws" };
    let port = authority.port_u16().map_or(String::new(), |port| format!(":{port}"));
    Some(format!("{scheme}://{host}{port}{PATH}"))
}

fn is_secure(request: &Request) -> bool {
    request.extensions().get::<Connection>().is_some_and(|connection| connection.is_secure)
}

/// Does the handshake and has the WebSocket taken once it is done.
fn upgrade(sockets: &Arc<dyn WebSockets>, request: &mut Request) -> Result<Response, Box<Response>> {
    let accept = accept(request)?;
    let (Some(upgrade), Some(Connection { is_secure, tasks })) =
        (request.extensions_mut().remove::<OnUpgrade>(), request.extensions().get::<Connection>().cloned())
    else {
        return Err(Box::new(plain(StatusCode::UPGRADE_REQUIRED, "this connection can't become a WebSocket")));
    };
    let peer = request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
    let sockets = Arc::clone(sockets);
    tasks.spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let socket = WebSocket::new(upgraded, sockets.message_bytes_max()).await;
                sockets.take(socket, peer, is_secure).await;
            }
            Err(error) => tracing::debug!(%peer, %error, "a connection did not become a WebSocket"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    let response = with(response, CONNECTION, "upgrade");
    let response = with(response, UPGRADE, "websocket");
    Ok(with(response, SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL))
}

/// Looks at a client's handshake (RFC 6455 §4.2.1) and returns the value of `Sec-WebSocket-Accept`.
fn accept(request: &Request) -> Result<HeaderValue, Box<Response>> {
    let headers = request.headers();
    if request.method() != Method::GET {
        return Err(Box::new(with(plain(StatusCode::METHOD_NOT_ALLOWED, "a WebSocket begins with GET"), ALLOW, "GET")));
    }
    let asks = has_word(headers, &CONNECTION, "upgrade") && has_word(headers, &UPGRADE, "websocket");
    if request.version() != Version::HTTP_11 || !asks {
        let refusal = plain(StatusCode::UPGRADE_REQUIRED, "here is nothing but WebSockets, over HTTP/1.1");
        return Err(Box::new(with(refusal, UPGRADE, "websocket")));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let refusal = plain(StatusCode::UPGRADE_REQUIRED, "the WebSocket's version must be 13");
        return Err(Box::new(with(refusal, SEC_WEBSOCKET_VERSION, "13")));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| STANDARD.decode(key).is_ok_and(|key| key.len() == 16));
    let Some(key) = key else {
        return Err(Box::new(plain(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64")));
    };
    if !has_word(headers, &SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return Err(Box::new(plain(StatusCode::BAD_REQUEST, "the subprotocol must be xmpp (RFC 7395)")));
    }
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(ACCEPT_SALT);
    HeaderValue::try_from(STANDARD.encode(hash.finish()))
        .map_err(|_| Box::new(plain(StatusCode::INTERNAL_SERVER_ERROR, "the handshake can't be answered")))
}

/// True if a word is in a header's list, in whatever case.
fn has_word(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let mut lists = headers.get_all(name).iter().filter_map(|list| list.to_str().ok());
    lists.any(|list| list.split(',').any(|found| found.trim().eq_ignore_ascii_case(word)))
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    with(response, CONTENT_TYPE, "text/plain")
}

fn with(mut response: Response, name: HeaderName, value: &'static str) -> Response {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}
