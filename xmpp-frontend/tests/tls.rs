//! The listeners, over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use campanile_xmpp_frontend::Config;
use idl::xml::Event;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{Client, DOMAIN, HEADER, World, account, item};

/// A server with a certificate of its own; for tests that don't look at it.
pub(crate) fn server_config() -> Arc<ServerConfig> {
    certified().0
}

fn certified() -> (Arc<ServerConfig>, CertificateDer<'static>) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec![DOMAIN.to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
    let certificate = cert.der().clone();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("a server");
    (Arc::new(config), certificate)
}

pub(crate) async fn world() -> (World, TlsConnector) {
    world_with_clients_of(rustls::DEFAULT_VERSIONS).await
}

/// A front on sockets, and what connects to it with these versions of TLS.
pub(crate) async fn world_with_clients_of(
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> (World, TlsConnector) {
    let (server, certificate) = certified();
    let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let config = Config { domain: DOMAIN.to_owned(), starttls: any, tls: any, plain: any, ..Config::default() };
    let world = World::build(config, server).await;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .expect("protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (world, TlsConnector::from(Arc::new(client)))
}

pub(crate) async fn handshake(connector: &TlsConnector, stream: TcpStream) -> TlsStream<TcpStream> {
    let name = ServerName::try_from(DOMAIN).expect("a name");
    connector.connect(name, stream).await.expect("a handshake")
}

async fn shake_hands(connector: &TlsConnector, stream: TcpStream) -> Client<TlsStream<TcpStream>> {
    Client::new(handshake(connector, stream).await)
}

async fn use_it(world: &World, client: &mut Client<TlsStream<TcpStream>>) {
    client.log_in(account(1), "r").await;
    client.open_channel().await;
    client.up(b"abc").await;
    assert_eq!(client.payload().await, b"cba");
    let large = vec![b'x'; 100_000];
    let epoch = world.middle.epoch(account(1), "r");
    assert_eq!(world.deliver(vec![item(account(1), epoch, &[&large, b"last"])]).await, []);
    assert_eq!(client.payload().await, large);
    assert_eq!(client.payload().await, b"last");
    client.send("</stream:stream>").await;
    assert_eq!(client.next().await, Some(Event::Closed));
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn direct_tls_carries_a_connection_from_login_to_end() {
    let (world, connector) = world().await;
    let stream = TcpStream::connect(world.addresses.tls.expect("bound")).await.expect("connected");
    let mut client = shake_hands(&connector, stream).await;
    use_it(&world, &mut client).await;
}

#[tokio::test]
async fn starttls_carries_a_connection_from_login_to_end() {
    let (world, connector) = world().await;
    let stream = TcpStream::connect(world.addresses.starttls.expect("bound")).await.expect("connected");
    let mut client = Client::new(stream);
    client.send(HEADER).await;
    assert!(matches!(client.next().await, Some(Event::Opened(_))));
    let features = client.element().await;
    assert!(features.has_child("starttls", "urn:ietf:params:xml:ns:xmpp-tls"), "{features:?}");
    client.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
    assert_eq!(client.element().await.name(), "proceed");
    let mut client = shake_hands(&connector, client.into_inner()).await;
    use_it(&world, &mut client).await;
}

#[tokio::test]
async fn a_stanza_over_its_limit_is_told_so_over_a_real_socket() {
    let (world, connector) = world().await;
    let stream = TcpStream::connect(world.addresses.tls.expect("bound")).await.expect("connected");
    let mut client = shake_hands(&connector, stream).await;
    client.log_in(account(1), "r").await;
    client.send(&format!("<message><body>{}", "x".repeat(200_000))).await;
    assert_eq!(client.stream_error().await, "policy-violation");
}

#[tokio::test]
async fn what_is_no_tls_fails_the_handshake_and_nothing_else() {
    let (world, connector) = world().await;
    let address = world.addresses.tls.expect("bound");
    let mut client = Client::new(TcpStream::connect(address).await.expect("connected"));
    client.send(HEADER).await;
    let mut other = shake_hands(&connector, TcpStream::connect(address).await.expect("connected")).await;
    use_it(&world, &mut other).await;
    assert_eq!(world.metric("campanile_front_streams_ended_total{reason=\"tls_failed\",again=\"yes\"}"), 1);
}

/// A connection over direct TLS, with those versions and that cipher suite.
async fn shake_hands_with(
    version: &'static SupportedProtocolVersion,
    suite: SupportedCipherSuite,
) -> (World, Client<TlsStream<TcpStream>>) {
    let (server, certificate) = certified();
    let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let world = World::build(Config { domain: DOMAIN.to_owned(), tls: any, ..Config::default() }, server).await;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let provider = CryptoProvider { cipher_suites: vec![suite], ..rustls::crypto::ring::default_provider() };
    let client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .expect("a version of the suite")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(world.addresses.tls.expect("bound")).await.expect("connected");
    let client = shake_hands(&TlsConnector::from(Arc::new(client)), stream).await;
    (world, client)
}

#[tokio::test]
async fn every_suite_of_tls_1_3_and_1_2_carries_a_connection() {
    use rustls::crypto::ring::cipher_suite as suites;
    let all = [
        (&TLS13, suites::TLS13_AES_128_GCM_SHA256),
        (&TLS13, suites::TLS13_AES_256_GCM_SHA384),
        (&TLS13, suites::TLS13_CHACHA20_POLY1305_SHA256),
        (&TLS12, suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        (&TLS12, suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
        (&TLS12, suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ];
    for (version, suite) in all {
        let (world, mut client) = shake_hands_with(version, suite).await;
        assert_eq!(client.stream_mut().get_ref().1.negotiated_cipher_suite(), Some(suite));
        use_it(&world, &mut client).await;
    }
}

#[tokio::test]
async fn keys_are_replaced_when_the_client_asks_for_it() {
    let (_world, mut client) =
        shake_hands_with(&TLS13, rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256).await;
    client.log_in(account(1), "r").await;
    client.open_channel().await;
    for _ in 0..3 {
        client.stream_mut().get_mut().1.refresh_traffic_keys().expect("a session of TLS 1.3");
        client.up(b"abc").await;
        assert_eq!(client.payload().await, b"cba");
        client.nothing_more().await;
    }
}

#[tokio::test]
async fn a_record_that_was_tampered_with_ends_the_connection_with_an_alert() {
    let (world, mut client) =
        shake_hands_with(&TLS13, rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256).await;
    client.log_in(account(1), "r").await;
    let tampered = [[23, 3, 3, 0, 32].as_slice(), &[0; 32]].concat();
    client.stream_mut().get_mut().0.write_all(&tampered).await.expect("written");
    let error = client.stream_mut().read(&mut [0; 1]).await.expect_err("an alert");
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
    let ended = "campanile_front_streams_ended_total{reason=\"lost\",again=\"yes\"}";
    timeout(Duration::from_mins(1), async {
        while world.metric(ended) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it has ended");
}

#[tokio::test]
async fn a_session_is_resumed_without_a_certificate() {
    let (world, connector) = world().await;
    let address = world.addresses.tls.expect("bound");
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut client = shake_hands(&connector, TcpStream::connect(address).await.expect("connected")).await;
        use_it(&world, &mut client).await;
        assert_eq!(client.stream_mut().get_ref().1.handshake_kind(), Some(kind));
    }
}

/// What connects with a certificate in its roots and offers these protocols.
fn connector_for(certificate: CertificateDer<'static>, protocols: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let mut client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(client))
}

#[tokio::test]
async fn a_session_is_resumed_at_another_front_that_opens_the_same_tickets() {
    let (server, certificate) = certified();
    let mut server = ServerConfig::clone(&server);
    server.ticketer = rustls::crypto::ring::Ticketer::new().expect("tickets");
    server.send_tls13_tickets = 1;
    // What one front remembers the other does not.
    let mut other = server.clone();
    other.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    let mut stranger = other.clone();
    stranger.ticketer = rustls::crypto::ring::Ticketer::new().expect("tickets");
    let connector = connector_for(certificate, &[]);
    let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    for (server, kind) in
        [(server, HandshakeKind::Full), (other, HandshakeKind::Resumed), (stranger, HandshakeKind::Full)]
    {
        let config = Config { domain: DOMAIN.to_owned(), tls: any, ..Config::default() };
        let world = World::build(config, Arc::new(server)).await;
        let stream = TcpStream::connect(world.addresses.tls.expect("bound")).await.expect("connected");
        let mut client = shake_hands(&connector, stream).await;
        use_it(&world, &mut client).await;
        assert_eq!(client.stream_mut().get_ref().1.handshake_kind(), Some(kind));
    }
}

#[tokio::test]
async fn a_client_that_names_its_protocol_gets_xmpp_or_nothing() {
    let (server, certificate) = certified();
    let mut server = ServerConfig::clone(&server);
    server.alpn_protocols = vec![b"xmpp-client".to_vec()];
    let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let config = Config { domain: DOMAIN.to_owned(), tls: any, ..Config::default() };
    let world = World::build(config, Arc::new(server)).await;
    let connect = async || TcpStream::connect(world.addresses.tls.expect("bound")).await.expect("connected");
    for (offered, agreed) in
        [(&["xmpp-client"][..], Some(&b"xmpp-client"[..])), (&["h2", "xmpp-client"], Some(b"xmpp-client")), (&[], None)]
    {
        let mut client = shake_hands(&connector_for(certificate.clone(), offered), connect().await).await;
        assert_eq!(client.stream_mut().get_ref().1.alpn_protocol(), agreed, "{offered:?}");
        use_it(&world, &mut client).await;
    }
    let name = ServerName::try_from(DOMAIN).expect("a name");
    let refused = connector_for(certificate, &["xmpp-server", "http/1.1"]).connect(name, connect().await).await;
    let error = refused.expect_err("no protocol in common").to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
}
