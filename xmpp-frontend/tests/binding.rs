//! Logins that are bound to the TLS connection they are made over (RFC 9266), over real sockets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minidom::Element;
use rustls::ProtocolVersion;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{Client, World, account, token};
use crate::tls::{handshake, world, world_with_clients_of};
use crate::transcripts::{ht, scram_final};

const AGENT: &str = "<user-agent id='d4565fa7-4d72-4749-b3d3-740edbf87770'/>";

/// A client over TLS, and what the exporter says of its connection.
async fn connect(world: &World, connector: &TlsConnector) -> (Client<TlsStream<TcpStream>>, [u8; 32]) {
    let stream = TcpStream::connect(world.addresses.tls.expect("bound")).await.expect("connected");
    let stream = handshake(connector, stream).await;
    let tls = stream.get_ref().1;
    let exported = tls.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(&[])).expect("a secret");
    (Client::new(stream), exported)
}

fn names(features: &Element) -> Vec<String> {
    let authentication = features.get_child("authentication", "urn:xmpp:sasl:2").expect("authentication");
    authentication.children().filter(|child| child.name() == "mechanism").map(Element::text).collect()
}

async fn authenticate(
    client: &mut Client<TlsStream<TcpStream>>,
    mechanism: &str,
    message: &str,
    inline: &str,
) -> Element {
    client
        .send(&format!(
            "<authenticate xmlns='urn:xmpp:sasl:2' mechanism='{mechanism}'>\
             <initial-response>{message}</initial-response>{AGENT}{inline}</authenticate>"
        ))
        .await;
    client.element().await
}

fn text(element: &Element, name: &str) -> String {
    element.children().find(|child| child.name() == name).map(Element::text).unwrap_or_default()
}

fn condition(failure: &Element) -> &str {
    assert_eq!(failure.name(), "failure", "{failure:?}");
    failure.children().next().expect("a condition").name()
}

/// Logs in with SCRAM-SHA-256-PLUS, saying this of the TLS below.
async fn plus(client: &mut Client<TlsStream<TcpStream>>, shown: &[u8]) -> Element {
    let first = format!("n={},r=abc", account(1));
    let message = STANDARD.encode(format!("p=tls-exporter,,{first}"));
    let wanted = "<request-token xmlns='urn:xmpp:fast:0' mechanism='HT-SHA-256-EXPR'/>";
    let challenge = authenticate(client, "SCRAM-SHA-256-PLUS", &message, wanted).await;
    let challenge = STANDARD.decode(challenge.text()).expect("base 64");
    let (last, success) = scram_final(&token(account(1)), "p=tls-exporter,,", shown, &first, &challenge);
    client.send(&format!("<response xmlns='urn:xmpp:sasl:2'>{last}</response>")).await;
    let answer = client.element().await;
    if answer.name() == "success" {
        assert_eq!(text(&answer, "additional-data"), success, "the server knows the token too");
    }
    answer
}

#[tokio::test]
async fn a_login_and_a_return_are_bound_to_their_tls() {
    let (world, connector) = world().await;
    let (mut client, exported) = connect(&world, &connector).await;
    let features = client.open_stream().await;
    assert_eq!(names(&features), ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN"]);
    let bindings = features.get_child("sasl-channel-binding", "urn:xmpp:sasl-cb:0").expect("channel bindings");
    let types: Vec<_> = bindings.children().filter_map(|binding| binding.attr("type")).collect();
    assert_eq!(types, ["tls-exporter"]);
    let success = plus(&mut client, &exported).await;
    let returning = success.get_child("token", "urn:xmpp:fast:0").and_then(|token| token.attr("token"));
    let returning = returning.expect("a token").to_owned();

    // With the token, on a connection of its own, and bound to that.
    let (mut client, exported_anew) = connect(&world, &connector).await;
    assert_ne!(exported_anew, exported);
    client.open_stream().await;
    let fast = "<fast xmlns='urn:xmpp:fast:0' count='1'/><bind xmlns='urn:xmpp:bind:0'/>";
    let (message, _) = ht(account(1), &returning, &exported);
    let replayed = authenticate(&mut client, "HT-SHA-256-EXPR", &message, fast).await;
    assert_eq!(condition(&replayed), "not-authorized", "what was said over another connection is worth nothing here");
    let (message, answer) = ht(account(1), &returning, &exported_anew);
    let success = authenticate(&mut client, "HT-SHA-256-EXPR", &message, fast).await;
    assert_eq!(text(&success, "additional-data"), answer);
    assert!(success.has_child("bound", "urn:xmpp:bind:0"), "{success:?}");
    let counted = "campanile_front_logins_total{mechanism=\"HT-SHA-256-EXPR\",result=\"ok\"}";
    assert_eq!(world.metric(counted), 1);
}

#[tokio::test]
async fn who_stands_between_two_connections_of_tls_gets_nobody_in() {
    let (world, connector) = world().await;
    let (mut client, _) = connect(&world, &connector).await;
    let (_, of_another) = connect(&world, &connector).await;
    client.open_stream().await;
    assert_eq!(condition(&plus(&mut client, &of_another).await), "not-authorized");
    // The client would have bound its login, had it seen that it could.
    let stripped = STANDARD.encode(format!("y,,n={},r=abc", account(1)));
    let answer = authenticate(&mut client, "SCRAM-SHA-256", &stripped, "").await;
    assert_eq!(condition(&answer), "malformed-request");
}

#[tokio::test]
async fn nothing_is_bound_to_tls_1_2() {
    let (world, connector) = world_with_clients_of(&[&rustls::version::TLS12]).await;
    let stream = TcpStream::connect(world.addresses.tls.expect("bound")).await.expect("connected");
    let stream = handshake(&connector, stream).await;
    assert_eq!(stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    let features = Client::new(stream).open_stream().await;
    assert_eq!(names(&features), ["SCRAM-SHA-256", "PLAIN"]);
    assert!(!features.has_child("sasl-channel-binding", "urn:xmpp:sasl-cb:0"), "{features:?}");
}
