//! Sockets: TLS, both versions of HTTP, limits on connections, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use campanile_http_frontend::{Addresses, Config, Endpoint, EndpointTls, Limits, WebSockets};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus_client::registry::Registry;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::middle::{accept, build, build_with, config, metrics, request, self_signed};

/// A tier that serves on loopback.
pub(crate) struct Running {
    addresses: Addresses,
    certificate: CertificateDer<'static>,
    registry: Registry,
    drain: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    pub(crate) async fn start(limits: Limits) -> Self {
        Self::build(limits, None).await
    }

    /// With somebody who takes WebSockets.
    pub(crate) async fn with_websockets(websockets: Arc<dyn WebSockets>) -> Self {
        Self::build(Limits::default(), Some(websockets)).await
    }

    async fn build(limits: Limits, websockets: Option<Arc<dyn WebSockets>>) -> Self {
        let (tls, certificate) = self_signed();
        let (http, registry, _) = build_with(config(limits), tls, websockets, |request| Some(Ok(accept(request))));
        let bound = http.bind().await.expect("binds");
        let endpoints = [("a.example", 1, EndpointTls::StartTls), ("b.example", 2, EndpointTls::Direct)];
        bound.set_endpoints(endpoints.map(|(host, port, tls)| Endpoint { host: host.into(), port, tls }).to_vec());
        let (addresses, drain, tasks) = (bound.addresses(), CancellationToken::new(), TaskTracker::new());
        tasks.spawn(bound.serve(drain.clone(), tasks.clone()));
        Self { addresses, certificate, registry, drain, tasks }
    }

    pub(crate) async fn plain(&self) -> TcpStream {
        TcpStream::connect(self.addresses.plain.expect("plain")).await.expect("connects")
    }

    pub(crate) async fn tls(&self, protocol: &[u8]) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![protocol.to_vec()];
        let stream = TcpStream::connect(self.addresses.https.expect("https")).await.expect("connects");
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await.expect("shakes hands");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
        stream
    }

    pub(crate) async fn stop(self) {
        self.drain.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

const POST: &str = "POST /v2/message/all HTTP/1.1\r\nhost: localhost\r\nauthorization: key=s3cret\r\ncontent-length: 9\r\n\r\npayload=p";

/// Reads one response and its envelope.
async fn response(stream: &mut (impl AsyncRead + Unpin)) -> (String, Value) {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).expect("text").to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()).expect("a length");
            if bytes.len() >= end + 4 + length.parse::<usize>().expect("a number") {
                return (head, serde_json::from_slice(&bytes[end + 4..]).expect("an envelope"));
            }
        }
        assert!(stream.read_buf(&mut bytes).await.expect("reads") > 0, "closed after {bytes:?}");
    }
}

async fn post(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Value {
    stream.write_all(POST.as_bytes()).await.expect("writes");
    let (head, envelope) = response(stream).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    envelope
}

/// Waits until the other side has closed, and returns what it sent before.
async fn rest(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset says the same as an end.
    let _ = stream.read_to_end(&mut bytes).await;
    bytes
}

#[tokio::test]
async fn http_1_1_is_served_over_tls_and_keeps_the_connection() {
    let running = Running::start(Limits::default()).await;
    let mut stream = running.tls(b"http/1.1").await;
    for _ in 0..3 {
        assert_eq!(post(&mut stream).await["code"], 0);
    }
    drop(stream);
    let metrics = metrics(&running.registry);
    assert!(metrics.contains(r#"campanile_http_handshakes_total{result="ok"} 1"#), "{metrics}");
    running.stop().await;
}

#[tokio::test]
async fn http_2_is_served_over_tls_with_many_requests_at_once() {
    let running = Running::start(Limits::default()).await;
    let stream = TokioIo::new(running.tls(b"h2").await);
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                let call = request("https://localhost/v2/message/all").body(Body::from("payload=p"));
                let response = sender.send_request(call.expect("a request")).await.expect("a response");
                assert_eq!(response.status(), 200);
                let bytes = axum::body::to_bytes(Body::new(response.into_body()), 1 << 16).await.expect("a body");
                serde_json::from_slice::<Value>(&bytes).expect("an envelope")
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.expect("runs")["code"], 0);
    }
    drop(sender);
    connection.await.expect("runs").expect("ends well");
    running.stop().await;
}

#[tokio::test]
async fn the_plain_listener_serves_on_loopback_and_tells_the_endpoints_that_were_set() {
    let running = Running::start(Limits::default()).await;
    let mut stream = running.plain().await;
    let call = "POST /device/v1/account HTTP/1.1\r\nhost: localhost\r\ncontent-length: 8\r\n\r\ndevice=d";
    stream.write_all(call.as_bytes()).await.expect("writes");
    let (_, envelope) = response(&mut stream).await;
    let expected = serde_json::json!([
        {"host": "a.example", "port": 1, "tls": "starttls"},
        {"host": "b.example", "port": 2, "tls": "direct"},
    ]);
    assert_eq!(envelope["data"]["endpoints"], expected);
    drop(stream);
    running.stop().await;
}

#[tokio::test]
async fn a_plain_listener_that_others_could_reach_is_refused() {
    let try_bind = |address: &str, allow_plain_remote| {
        let plain = Some(address.parse::<SocketAddr>().expect("an address"));
        let config = Config { https: None, plain, allow_plain_remote, ..config(Limits::default()) };
        build(config, self_signed().0, |_| None).0.bind()
    };
    for address in ["0.0.0.0:0", "[::ffff:0.0.0.0]:0"] {
        let error = try_bind(address, false).await.err().expect("refused");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("set allow_plain_remote"), "{error}");
    }
    let bound = try_bind("0.0.0.0:0", true).await.expect("binds");
    assert_eq!(bound.addresses().https, None);
    assert_ne!(bound.addresses().plain.expect("plain").port(), 0);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let running = Running::start(Limits::default()).await;
    let config = Config { https: running.addresses.https, ..config(Limits::default()) };
    let address = running.addresses.https.expect("https").to_string();
    let error = build(config, self_signed().0, |_| None).0.bind().await.err().expect("in use");
    assert!(error.to_string().contains(&address), "{error}");
    running.stop().await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_in_time_is_closed() {
    let limits = Limits {
        header_time_max: Duration::from_millis(100),
        handshake_time_max: Duration::from_millis(100),
        drain_time_max: Duration::from_millis(100),
        ..Limits::default()
    };
    let running = Running::start(limits).await;
    // Nothing, half a header, half of HTTP/2's preface, nothing after a request.
    for bytes in ["", "POST / HTTP/1.1\r\nhost: x\r\n", "PRI * HTTP/2"] {
        let mut stream = running.plain().await;
        stream.write_all(bytes.as_bytes()).await.expect("writes");
        let _ = rest(stream).await;
    }
    let mut stream = running.plain().await;
    post(&mut stream).await;
    assert!(rest(stream).await.is_empty());
    // No handshake, and nothing after it.
    let silent = TcpStream::connect(running.addresses.https.expect("https")).await.expect("connects");
    assert!(rest(silent).await.is_empty());
    let _ = rest(running.tls(b"h2").await).await;
    let _ = rest(running.tls(b"http/1.1").await).await;
    running.tasks.close();
    let metrics = metrics(&running.registry);
    assert!(metrics.contains(r#"handshakes_total{result="timed_out"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"limit_hits_total{limit="header_time_max"}"#), "{metrics}");
    running.stop().await;
}

#[tokio::test]
async fn bytes_that_are_no_tls_or_no_http_harm_nobody() {
    let running = Running::start(Limits::default()).await;
    let mut noise = TcpStream::connect(running.addresses.https.expect("https")).await.expect("connects");
    noise.write_all(POST.as_bytes()).await.expect("writes");
    let _ = rest(noise).await;
    let mut noise = running.plain().await;
    noise.write_all(b"\0\x01\x02 nonsense\r\n\r\n").await.expect("writes");
    assert!(rest(noise).await.starts_with(b"HTTP/1.1 400"));
    let mut long = running.plain().await;
    let header = format!("POST / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    let _ = long.write_all(header.as_bytes()).await;
    let _ = rest(long).await;
    let mut stream = running.tls(b"http/1.1").await;
    assert_eq!(post(&mut stream).await["code"], 0);
    drop(stream);
    let metrics = metrics(&running.registry);
    assert!(metrics.contains(r#"handshakes_total{result="failed"} 1"#), "{metrics}");
    running.stop().await;
}

#[tokio::test]
async fn who_sends_far_too_much_still_reads_the_answer() {
    let running = Running::start(Limits::default()).await;
    let length = Limits::default().body_bytes_max + (7 << 20);
    let mut stream = running.plain().await;
    let head = format!("POST /v2/message/all HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("writes");
    stream.write_all(&vec![b'x'; length]).await.expect("is read to its end");
    let (head, envelope) = response(&mut stream).await;
    assert!(head.starts_with("http/1.1 413"), "{head}");
    assert_eq!(envelope["code"], 10008);
    drop(stream);
    running.stop().await;
}

#[tokio::test]
async fn connections_beyond_a_limit_are_closed_and_a_place_that_is_given_back_is_taken() {
    for (limits, name) in [
        (Limits { connections_max: 1, ..Limits::default() }, "connections_max"),
        (Limits { connections_per_address_max: 1, ..Limits::default() }, "connections_per_address_max"),
    ] {
        let running = Running::start(limits).await;
        let mut first = running.plain().await;
        post(&mut first).await;
        assert!(rest(running.plain().await).await.is_empty());
        let counted = metrics(&running.registry);
        assert!(counted.contains(&format!(r#"limit_hits_total{{limit="{name}"}} 1"#)), "{counted}");
        assert!(counted.contains("campanile_http_connections 1"), "{counted}");
        drop(first);
        while !metrics(&running.registry).contains("campanile_http_connections 0") {
            tokio::task::yield_now().await;
        }
        // The gauge falls before the place is free, so the first tries may still be refused.
        loop {
            let mut stream = running.plain().await;
            let mut answer = [0; 1];
            let _ = stream.write_all(POST.as_bytes()).await;
            if stream.read_exact(&mut answer).await.is_ok() {
                break;
            }
        }
        running.stop().await;
    }
}

#[tokio::test]
async fn a_drain_finishes_what_has_begun_and_closes_the_rest() {
    let running = Running::start(Limits::default()).await;
    let mut idle = running.tls(b"http/1.1").await;
    post(&mut idle).await;
    let mut busy = running.plain().await;
    let (head, body) = POST.split_at(POST.len() - 1);
    busy.write_all(head.as_bytes()).await.expect("writes");
    while !metrics(&running.registry).contains("campanile_http_requests_in_flight 1") {
        tokio::task::yield_now().await;
    }
    running.drain.cancel();
    assert!(rest(idle).await.is_empty());
    busy.write_all(body.as_bytes()).await.expect("writes");
    let (head, envelope) = response(&mut busy).await;
    assert_eq!(envelope["code"], 0);
    assert!(head.contains("connection: close"), "{head}");
    let address = running.addresses.plain.expect("plain");
    running.stop().await;
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}
