//! Posts to receivers on this machine.

use std::net::TcpListener as BlockingListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn client(allow: &[&str], limits: Limits) -> CallbackClient {
    let allow = allow.iter().map(|network| network.parse().expect("a network")).collect();
    CallbackClient::new(&Callbacks { allow, ca: PathBuf::new() }, limits).expect("a client")
}

/// A client that may reach this machine.
fn at_home() -> CallbackClient {
    client(&["127.0.0.0/8", "::1"], Limits::default())
}

fn short(connect_ms: u64, post_ms: u64) -> Limits {
    Limits { connect_time_max: Duration::from_millis(connect_ms), post_time_max: Duration::from_millis(post_ms) }
}

fn post(url: &str) -> Post {
    Post { url: url.to_owned(), headers: vec![("webhook-id", "id-1".to_owned())], body: b"data=%7B%7D".to_vec() }
}

/// Reads one request, whole.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"data=%7B%7D") {
        assert!(stream.read_buf(&mut request).await.expect("a request") > 0, "half a request");
    }
    String::from_utf8(request).expect("text")
}

/// A receiver that takes one request, gives this answer, and returns the request. It keeps its end of the connection
/// open until the client has closed its own.
async fn receiver(answer: &'static [u8]) -> (u16, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let request = read_request(&mut stream).await;
        stream.write_all(answer).await.expect("it reads");
        let _ = stream.read(&mut [0]).await;
        request
    });
    (port, serving)
}

fn unreachable_because(result: Result<(), PostError>) -> String {
    match result {
        Err(PostError::Unreachable(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn refused_because(result: Result<(), PostError>) -> String {
    match result {
        Err(PostError::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_post_arrives_with_its_headers_and_its_body() {
    let (port, serving) = receiver(OK).await;
    assert_eq!(at_home().post(post(&format!("http://127.0.0.1:{port}/receipts?of=a%20b#c"))).await, Ok(()));
    let request = serving.await.expect("served");
    let (head, body) = request.split_once("\r\n\r\n").expect("a whole request");
    assert!(head.starts_with("POST /receipts?of=a%20b HTTP/1.1\r\n"), "{head}");
    let host = format!("host: 127.0.0.1:{port}");
    for header in [host.as_str(), "webhook-id: id-1", "content-length: 11", "connection: close"] {
        assert!(head.lines().any(|line| line.eq_ignore_ascii_case(header)), "no {header} in {head}");
    }
    assert_eq!(body, "data=%7B%7D");
}

#[tokio::test]
async fn another_status_than_2xx_is_told_as_it_is() {
    for (answer, expected) in [
        (&b"HTTP/1.1 204 No Content\r\n\r\n"[..], Ok(())),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", Err(PostError::Status(404))),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", Err(PostError::Status(503))),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", Err(PostError::Status(101))),
    ] {
        let (port, _serving) = receiver(answer).await;
        assert_eq!(at_home().post(post(&format!("http://127.0.0.1:{port}/"))).await, expected);
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let elsewhere = BlockingListener::bind("127.0.0.1:0").expect("a port");
    elsewhere.set_nonblocking(true).expect("a listener");
    let location = elsewhere.local_addr().expect("an address");
    for status in [301, 302, 303, 307, 308] {
        let answer =
            format!("HTTP/1.1 {status} Over there\r\nlocation: http://{location}/\r\ncontent-length: 0\r\n\r\n");
        let (port, _serving) = receiver(answer.into_bytes().leak()).await;
        let result = at_home().post(post(&format!("http://127.0.0.1:{port}/"))).await;
        assert_eq!(result, Err(PostError::Status(status)));
    }
    assert_eq!(elsewhere.accept().expect_err("nobody came").kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn an_address_of_this_machine_is_refused_in_every_way_to_write_it() {
    let target = BlockingListener::bind("127.0.0.1:0").expect("a port");
    target.set_nonblocking(true).expect("a listener");
    let port = target.local_addr().expect("an address").port();
    let abroad = client(&[], Limits::default());
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "127.0.0.1.",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "10.0.0.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00::1]",
        "user@127.0.0.1",
        "public.example@127.0.0.1",
    ] {
        let url = format!("http://{host}:{port}/");
        refused_because(abroad.check(&url));
        refused_because(abroad.post(post(&url)).await);
    }
    for scheme in ["ftp", "file", "gopher", "unix", "ws"] {
        refused_because(abroad.check(&format!("{scheme}://public.example/")));
    }
    // Names are not resolved by a check, but by a post.
    for name in ["localhost", "LOCALHOST.", "localhost."] {
        let url = format!("http://{name}:{port}/");
        assert_eq!(abroad.check(&url), Ok(()));
        let why = refused_because(abroad.post(post(&url)).await);
        assert!(why.contains("callbacks.allow") && !why.contains("127.0.0.1"), "{why}");
    }
    assert_eq!(target.accept().expect_err("nobody came").kind(), io::ErrorKind::WouldBlock);
    assert_eq!(abroad.check("https://push.example.com:8443/receipts"), Ok(()));
    assert_eq!(abroad.check("https://1.1.1.1/"), Ok(()));
}

#[tokio::test]
async fn what_is_allowed_is_reached_by_its_name() {
    let (port, serving) = receiver(OK).await;
    assert_eq!(at_home().post(post(&format!("http://localhost:{port}/"))).await, Ok(()));
    assert!(serving.await.expect("served").to_ascii_lowercase().contains(&format!("host: localhost:{port}\r\n")));
}

#[tokio::test]
async fn one_forbidden_address_among_others_refuses_the_post() {
    let (port, serving) = receiver(OK).await;
    let mut client = client(&["127.0.0.1"], Limits::default());
    let good = SocketAddr::from(([127, 0, 0, 1], port));
    for bad in ["10.0.0.1:80", "127.0.0.2:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "169.254.169.254:80"] {
        let bad: SocketAddr = bad.parse().expect("an address");
        for answer in [[good, bad], [bad, good]] {
            client.resolve = Arc::new(move |_, _| Ok(answer.to_vec()));
            refused_because(client.post(post("http://receiver.example/")).await);
        }
    }
    assert!(!serving.is_finished(), "nothing was connected");
    client.resolve = Arc::new(move |_, _| Ok(vec![good]));
    assert_eq!(client.post(post("http://receiver.example/")).await, Ok(()));
    serving.await.expect("served");
}

#[tokio::test]
async fn a_host_is_resolved_once_and_the_address_that_was_checked_is_the_one_connected_to() {
    let (port, serving) = receiver(OK).await;
    let good = SocketAddr::from(([127, 0, 0, 1], port));
    let asked = Arc::new(AtomicUsize::new(0));
    let mut client = client(&["127.0.0.1"], Limits::default());
    let counted = Arc::clone(&asked);
    // A name server that gives another answer the second time.
    client.resolve = Arc::new(move |host, _| {
        assert_eq!(host, "rebinding.example");
        let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        Ok(vec![if first { good } else { SocketAddr::from(([127, 0, 0, 2], port)) }])
    });
    assert_eq!(client.post(post(&format!("http://rebinding.example:{port}/"))).await, Ok(()));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert!(serving.await.expect("served").contains(&format!("host: rebinding.example:{port}\r\n")));
    refused_because(client.post(post(&format!("http://rebinding.example:{port}/"))).await);
}

#[tokio::test]
async fn an_address_that_refuses_gives_way_to_the_next_one() {
    let (port, serving) = receiver(OK).await;
    let closed = {
        let listener = BlockingListener::bind("127.0.0.2:0").expect("a port");
        listener.local_addr().expect("an address")
    };
    let mut client = at_home();
    client.resolve = Arc::new(move |_, _| Ok(vec![closed, SocketAddr::from(([127, 0, 0, 1], port))]));
    assert_eq!(client.post(post("http://receiver.example/")).await, Ok(()));
    serving.await.expect("served");
    client.resolve = Arc::new(move |_, _| Ok(vec![closed]));
    let why = unreachable_because(client.post(post("http://receiver.example/")).await);
    assert!(why.contains("receiver.example can't be reached") && !why.contains("127.0.0.2"), "{why}");
    client.resolve = Arc::new(|_, _| Ok(Vec::new()));
    let why = unreachable_because(client.post(post("http://receiver.example/")).await);
    assert!(why.contains("has no address"), "{why}");
}

#[tokio::test]
async fn an_answer_that_does_not_come_in_time_is_given_up() {
    let (port, _serving) = receiver(b"HTTP/1.1 200 OK\r\ncontent-le").await;
    let client = client(&["127.0.0.1"], short(5000, 300));
    let why = unreachable_because(client.post(post(&format!("http://127.0.0.1:{port}/"))).await);
    assert_eq!(why, "no answer within 300 ms");
}

#[tokio::test]
async fn a_handshake_that_does_not_come_in_time_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = silent.local_addr().expect("an address");
    let client = client(&["127.0.0.1"], short(300, 60_000));
    let why = unreachable_because(client.post(post(&format!("https://{address}/"))).await);
    assert_eq!(why, format!("no connection to {address} within 300 ms"));
}

#[tokio::test]
async fn a_status_counts_whatever_becomes_of_the_body() {
    let client = client(&["127.0.0.1"], short(5000, 500));
    for answer in [
        // It never comes whole.
        &b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnot a length\r\n",
    ] {
        let (port, _serving) = receiver(answer).await;
        assert_eq!(client.post(post(&format!("http://127.0.0.1:{port}/"))).await, Ok(()));
    }
}

#[tokio::test]
async fn a_long_answer_is_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        read_request(&mut stream).await;
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("it reads the head");
        // Far more than the buffers on the way hold.
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..256 {
            stream.write_all(&chunk).await?;
        }
        io::Result::Ok(())
    });
    assert_eq!(at_home().post(post(&format!("http://127.0.0.1:{port}/"))).await, Ok(()));
    serving.await.expect("serves").expect_err("it was not read to its end");
}

#[tokio::test]
async fn an_answer_that_can_not_be_read_is_told() {
    let long_header = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'x'; 200_000], b"\r\n\r\n".to_vec()].concat();
    let many_headers = [b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: y\r\n".repeat(200), b"\r\n".to_vec()].concat();
    for answer in [b"220 mail.example ESMTP\r\n".to_vec(), b"HTTP/1.1 ok\r\n\r\n".to_vec(), long_header, many_headers] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            read_request(&mut stream).await;
            // It may have heard enough before the end.
            let _ = stream.write_all(&answer).await;
            let _ = stream.read(&mut [0]).await;
        });
        let why = unreachable_because(at_home().post(post(&format!("http://127.0.0.1:{port}/"))).await);
        assert!(why.contains("gave no answer that can be read"), "{why}");
        serving.await.expect("served");
    }
    // It hangs up.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        read_request(&mut stream).await;
    });
    unreachable_because(at_home().post(post(&format!("http://127.0.0.1:{port}/"))).await);
    serving.await.expect("served");
}

#[tokio::test]
async fn a_look_up_that_hangs_holds_its_turn_beyond_its_post() {
    let (release, hanging) = mpsc::sync_channel::<()>(0);
    let hanging = Mutex::new(hanging);
    let (asked, started) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counted, starts) = (Arc::clone(&asked), Arc::clone(&started));
    let mut client = client(&["127.0.0.1"], short(300, 60_000));
    client.lookups = Arc::new(Semaphore::new(1));
    client.resolve = Arc::new(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        starts.notify_one();
        let _ = hanging.lock().expect("whole").recv();
        Ok(Vec::new())
    });
    for _ in 0..2 {
        let why = unreachable_because(client.post(post("http://silent.example/")).await);
        assert!(why.contains("no connection to silent.example within 300 ms"), "{why}");
    }
    started.notified().await;
    assert_eq!(asked.load(Ordering::SeqCst), 1, "the second one waited for its turn");
    drop(release);
    client.limits = Limits::default();
    // With the turn given back names are resolved again.
    let why = unreachable_because(client.post(post("http://silent.example/")).await);
    assert!(why.contains("has no address"), "{why}");
}

/// A CA in a file, and TLS as a server that it certifies under this name.
fn certified(folder: &Path, name: &str) -> (PathBuf, TlsAcceptor) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let path = folder.join("ca.pem");
    std::fs::write(&path, ca.self_signed(&ca_key).expect("signs").pem()).expect("writes");
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).expect("signs");
    let private = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], private)
        .expect("they belong together");
    (path, TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn a_private_ca_is_trusted_for_the_name_in_the_url_and_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ca, acceptor) = certified(folder.path(), "receiver.example");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let serving = tokio::spawn(async move {
        let mut served = Vec::new();
        for _ in 0..3 {
            let (stream, _) = listener.accept().await.expect("a connection");
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let name = stream.get_ref().1.server_name().map(str::to_owned);
            read_request(&mut stream).await;
            stream.write_all(OK).await.expect("it reads");
            let _ = stream.read(&mut [0]).await;
            served.push(name);
        }
        served
    });
    let allow = vec!["127.0.0.1".parse().expect("a network")];
    let client = |ca: &Path| {
        let callbacks = Callbacks { allow: allow.clone(), ca: ca.to_owned() };
        let mut client = CallbackClient::new(&callbacks, Limits::default()).expect("a client");
        client.resolve = Arc::new(move |_, _| Ok(vec![address]));
        client
    };
    let port = address.port();
    assert_eq!(client(&ca).post(post(&format!("https://Receiver.example.:{port}/"))).await, Ok(()));
    let why = unreachable_because(client(&ca).post(post(&format!("https://other.example:{port}/"))).await);
    assert!(why.contains("TLS with other.example"), "{why}");
    unreachable_because(client(Path::new("")).post(post(&format!("https://receiver.example:{port}/"))).await);
    assert_eq!(serving.await.expect("served"), [Some("receiver.example".to_owned())]);
}

#[test]
fn a_file_of_cas_that_can_not_be_used_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cas.pem");
    let fault = || {
        let callbacks = Callbacks { allow: Vec::new(), ca: file.clone() };
        format!("{:#}", CallbackClient::new(&callbacks, Limits::default()).err().expect("can't be used"))
    };
    assert!(fault().contains("cas.pem can't be used"), "{}", fault());
    std::fs::write(&file, "no certificate").expect("writes");
    assert!(fault().contains("holds no certificate in PEM form"), "{}", fault());
    std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").expect("writes");
    assert!(fault().contains("cas.pem can't be used"), "{}", fault());
}
