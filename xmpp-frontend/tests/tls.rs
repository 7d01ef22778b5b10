//! The listeners, over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;

use campanile_xmpp_frontend::Config;
use idl::xml::Event;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
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

async fn world() -> (World, TlsConnector) {
    let (server, certificate) = certified();
    let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let config = Config { domain: DOMAIN.to_owned(), starttls: any, tls: any, plain: any, ..Config::default() };
    let world = World::build(config, server).await;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (world, TlsConnector::from(Arc::new(client)))
}

async fn shake_hands(connector: &TlsConnector, stream: TcpStream) -> Client<TlsStream<TcpStream>> {
    let name = ServerName::try_from(DOMAIN).expect("a name");
    Client::new(connector.connect(name, stream).await.expect("a handshake"))
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
