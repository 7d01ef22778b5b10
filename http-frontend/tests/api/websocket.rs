//! The handshake of WebSockets, their frames over real TLS, and where they are announced.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use campanile_http_frontend::{Received, WebSocket, WebSockets};
use futures_core::Stream;
use futures_sink::Sink;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use crate::listeners::Running;

/// Says who is there, then says what it hears, and closes.
struct Echo;

impl WebSockets for Echo {
    fn message_bytes_max(&self) -> usize {
        100
    }

    fn take(&self, mut socket: WebSocket, peer: IpAddr, is_secure: bool) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            say(&mut socket, format!("{peer} {is_secure}")).await;
            let code = loop {
                match poll_fn(|cx| socket.poll_receive(cx)).await {
                    Some(Received::Text(text)) => say(&mut socket, text).await,
                    Some(Received::Binary) => break 1003,
                    Some(Received::NotUtf8) => break 1007,
                    Some(Received::TooLarge) => break 1009,
                    None => break 1000,
                }
            };
            // The other side may have closed first.
            let _ = poll_fn(|cx| socket.poll_close(cx, code)).await;
        })
    }
}

async fn say(socket: &mut WebSocket, text: String) {
    poll_fn(|cx| socket.poll_ready(cx)).await.expect("ready");
    socket.send(text).expect("sent");
    poll_fn(|cx| socket.poll_flush(cx)).await.expect("flushed");
}

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The answer to that key: both are those of RFC 6455 §1.3.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn handshake() -> String {
    format!(
        "GET /xmpp-websocket HTTP/1.1\r\nhost: localhost\r\nconnection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\nsec-websocket-protocol: other, xmpp\r\n\
         origin: https://example.com\r\n\r\n"
    )
}

/// Sends a request and reads the answer, its head in lower case.
async fn asked(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        // A byte at a time: what follows is the WebSocket's.
        bytes.push(stream.read_u8().await.expect("reads"));
    };
    let head = String::from_utf8(bytes[..end].to_vec()).expect("text");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("a body");
    (head, String::from_utf8(body).expect("text"))
}

async fn connected<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> WebSocketStream<S> {
    let (head, _) = asked(&mut stream, &handshake()).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for header in ["connection: upgrade", "upgrade: websocket", "sec-websocket-protocol: xmpp"] {
        assert!(head.contains(header), "{head}");
    }
    assert!(head.contains(&format!("sec-websocket-accept: {ACCEPT}")), "{head}");
    WebSocketStream::from_raw_socket(stream, Role::Client, None).await
}

async fn hear<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) -> Option<Message> {
    poll_fn(|cx| Pin::new(&mut *socket).poll_next(cx)).await.map(|message| message.expect("a message"))
}

async fn tell<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>, message: Message) {
    poll_fn(|cx| Pin::new(&mut *socket).poll_ready(cx)).await.expect("ready");
    Pin::new(&mut *socket).start_send(message).expect("sent");
    poll_fn(|cx| Pin::new(&mut *socket).poll_flush(cx)).await.expect("flushed");
}

#[tokio::test]
async fn messages_go_both_ways_over_https_and_http() {
    let running = Running::with_websockets(Arc::new(Echo)).await;
    let mut socket = connected(running.tls(b"http/1.1").await).await;
    assert_eq!(hear(&mut socket).await, Some(Message::text("127.0.0.1 true")));
    for _ in 0..3 {
        tell(&mut socket, Message::text("<a/>")).await;
        assert_eq!(hear(&mut socket).await, Some(Message::text("<a/>")));
    }
    tell(&mut socket, Message::Ping("there?".into())).await;
    assert_eq!(hear(&mut socket).await, Some(Message::Pong("there?".into())));
    tell(&mut socket, Message::Close(None)).await;
    assert!(matches!(hear(&mut socket).await, Some(Message::Close(_))));
    assert_eq!(hear(&mut socket).await, None);

    let mut socket = connected(running.plain().await).await;
    assert_eq!(hear(&mut socket).await, Some(Message::text("127.0.0.1 false")));
    drop(socket);
    running.stop().await;
}

#[tokio::test]
async fn what_is_no_text_or_too_long_is_told_apart() {
    let running = Running::with_websockets(Arc::new(Echo)).await;
    for (message, code) in [
        (Message::text("b".repeat(100)), None),
        (Message::text("b".repeat(101)), Some(1009)),
        (Message::binary(vec![1]), Some(1003)),
    ] {
        let mut socket = connected(running.plain().await).await;
        hear(&mut socket).await;
        tell(&mut socket, message.clone()).await;
        match (hear(&mut socket).await, code) {
            (Some(Message::Close(Some(CloseFrame { code: found, .. }))), Some(code)) => {
                assert_eq!(u16::from(found), code);
            }
            (heard, None) => assert_eq!(heard, Some(message)),
            (heard, Some(_)) => panic!("{heard:?}"),
        }
    }
    // A text frame of the two bytes FF FE, masked with nothing.
    let mut socket = connected(running.plain().await).await;
    hear(&mut socket).await;
    socket.get_mut().write_all(&[0x81, 0x82, 0, 0, 0, 0, 0xFF, 0xFE]).await.expect("writes");
    let Some(Message::Close(Some(close))) = hear(&mut socket).await else { panic!("a close frame") };
    assert_eq!(u16::from(close.code), 1007);
    running.stop().await;
}

#[tokio::test]
async fn a_handshake_that_is_none_is_refused() {
    let running = Running::with_websockets(Arc::new(Echo)).await;
    for (part, instead, status) in [
        ("GET ", "POST ", "405"),
        ("upgrade: WebSocket", "upgrade: h2c", "426"),
        ("keep-alive, Upgrade", "keep-alive", "426"),
        ("version: 13", "version: 8", "426"),
        (KEY, "c2hvcnQ=", "400"),
        (KEY, "é", "400"),
        ("other, xmpp", "other", "400"),
        ("HTTP/1.1", "HTTP/1.0", "426"),
    ] {
        let request = handshake().replacen(part, instead, 1);
        let (head, _) = asked(&mut running.plain().await, &request).await;
        assert_eq!(head.split(' ').nth(1), Some(status), "{request}{head}");
    }
    running.stop().await;
}

#[tokio::test]
async fn host_meta_says_where_websockets_are() {
    let running = Running::with_websockets(Arc::new(Echo)).await;
    let get = |path: &str, host: &str| format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let json = get("/.well-known/host-meta.json", "push.example:8443");
    let (head, body) = asked(&mut running.tls(b"http/1.1").await, &json).await;
    assert!(head.contains("content-type: application/json"), "{head}");
    assert!(head.contains("access-control-allow-origin: *"), "{head}");
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let (rel, href) = ("urn:xmpp:alt-connections:websocket", "wss://push.example:8443/xmpp-websocket");
    assert_eq!(body, serde_json::json!({ "links": [{ "rel": rel, "href": href }] }));
    let (head, body) = asked(&mut running.plain().await, &get("/.well-known/host-meta", "push.example")).await;
    assert!(head.contains("content-type: application/xrd+xml"), "{head}");
    let link = "<Link rel='urn:xmpp:alt-connections:websocket' href='ws://push.example/xmpp-websocket'/>";
    assert!(body.contains(link), "{body}");
    // A name that would be another link.
    let (_, body) = asked(&mut running.plain().await, &get("/.well-known/host-meta", "a'b")).await;
    assert!(!body.contains("Link"), "{body}");
    running.stop().await;
}

#[tokio::test]
async fn where_no_connections_are_held_there_are_none_announced() {
    let running = Running::start(campanile_http_frontend::Limits::default()).await;
    let (head, _) = asked(&mut running.plain().await, &handshake()).await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    let request = "GET /.well-known/host-meta.json HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let (_, body) = asked(&mut running.plain().await, request).await;
    assert_eq!(body, r#"{"links":[]}"#);
    running.stop().await;
}
