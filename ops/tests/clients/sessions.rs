//! Sessions of XMPP clients that others wrote, over TLS that they verify. Each is on its own account; what they carry on the
//! push channel is said and read for them.

use std::fs;

use campanile_ops::api::Account;
use idl::contract::push::{Deliver, ToDevice};
use serde_json::{Value, json};

use crate::guest::{Door, Guest, Way};
use crate::harness::server::Server;
use crate::harness::wait_for;
use crate::payloads::{Opener, Registration, hello, read};
use crate::proxy::Proxy;

fn account(server: &Server, client: &str) -> Account {
    server.api().create_account("a device of another make", client).expect("an account")
}

/// The result of the command with that number, which must be success.
fn assert_done(down: &ToDevice, request: i32) {
    let result = down.result.as_ref().unwrap_or_else(|| panic!("no result: {down:?}"));
    assert_eq!((result.request, result.code), (request, 0), "{result:?}");
}

/// Opens the push channel and registers the demo application.
fn register(guest: &mut Guest, registration: &Registration) -> Opener {
    assert_eq!(guest.call("open", json!(["5", hello()])), "5");
    guest.call("send", json!(["5", registration.register(1)]));
    let down = read(&guest.payload());
    assert_done(&down, 1);
    let registered = down.result.and_then(|result| result.registered);
    registration.opener(registered.expect("it is registered"))
}

/// Sends to one registration.
fn push(server: &Server, to: &Opener, payload: &str) {
    server.send("/v3/message/regid", &[("registration_id", &to.regid), ("payload", payload)]);
}

fn delivered(down: &ToDevice) -> &Deliver {
    down.deliver.as_ref().unwrap_or_else(|| panic!("no delivery: {down:?}"))
}

/// Logs in by each door, asks who is there, opens the push channel, reads a push, and is told of an absent neighbour.
fn holds_a_session(client: &str) {
    holds_a_session_with(&Server::start(), Door::TCP, client);
}

fn holds_a_session_with(server: &Server, doors: &[Door], client: &str) {
    for &door in doors {
        let account = account(server, client);
        let Some(mut guest) = Guest::at(server, door, client, &account) else { return };
        let (_, domain) = account.jid.split_once('@').expect("a domain");
        let online = guest.wait_for("online");
        let resource = online["jid"].as_str().and_then(|jid| jid.strip_prefix(&format!("{}/", account.jid)));
        // Who binds with Bind 2 says how the resource begins (XEP-0386 §4.2).
        let own = resource.and_then(|resource| resource.strip_prefix("push"));
        assert!(own.is_some_and(|own| own.is_empty() || own.starts_with('/')), "{door:?}: {online}");

        assert_eq!(guest.call("ping", json!([domain])), Value::Null);
        let info = guest.call("disco", json!([domain]));
        assert_eq!(info["identities"], json!([["server", "im"]]), "{info}");
        for feature in ["urn:xmpp:ping", "urn:campanile:channel:1"] {
            assert!(info["features"].as_array().expect("features").contains(&feature.into()), "{info}");
        }

        assert_eq!(guest.refused("open", json!(["77", ""])), "item-not-found");
        let registration = Registration::new(&account, server.demo());
        let opener = register(&mut guest, &registration);
        push(server, &opener, "你好 & <ding>");
        let down = read(&guest.payload());
        let deliver = delivered(&down);
        assert_eq!(opener.open(deliver).payload.as_deref(), Some("你好 & <ding>"));
        guest.call("send", json!(["5", registration.acknowledge(2, deliver)]));
        assert_done(&read(&guest.payload()), 2);

        let neighbour = self::account(server, "who never comes").jid;
        assert_eq!(guest.refused("message", json!([neighbour, "is anybody there?"])), "service-unavailable");
        guest.leave();
    }
}

/// Comes back when its connection is cut, to its stream as it was: pushes that the server had said in vain come again, each once,
/// and a command is answered, though it may be said twice. `uncounted` is how many stanzas of before the cut the client forgets
/// to count, so that the server says the last ones again.
fn resumes_a_lost_stream(client: &str, uncounted: usize) {
    resumes_a_lost_stream_with(&Server::start(), Door::Direct, client, uncounted);
}

fn resumes_a_lost_stream_with(server: &Server, door: Door, client: &str, uncounted: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let _entered = runtime.enter();
    let proxy = runtime.block_on(Proxy::to(server.address(door.listener())));
    let account = account(server, client);
    let way = Way { door, port: proxy.port(), ca: &server.ca() };
    let Some(mut guest) = Guest::start(client, &account, &way) else { return };
    guest.wait_for("online");
    let registration = Registration::new(&account, server.demo());
    let opener = register(&mut guest, &registration);

    proxy.swallow();
    let handed_off = server.metric("campanile_middle_deliveries_total");
    guest.call("send", json!(["5", registration.subscribe(2, "bells")]));
    push(server, &opener, "said in vain");
    wait_for("the push is on its way", || {
        (server.metric("campanile_middle_deliveries_total") > handed_off).then_some(())
    });
    proxy.cut();
    guest.wait_for("resumed");
    push(server, &opener, "after the cut");
    guest.call("send", json!(["5", registration.subscribe(3, "chimes")]));

    let mut pushes = Vec::new();
    // By the numbers of the commands; the first was answered before the cut.
    let mut results = [0; 4];
    while pushes.len() < 2 || results[2] < 1 || results[3] < 1 {
        let down = read(&guest.payload());
        match &down.result {
            Some(result) => {
                assert_eq!(result.code, 0, "{result:?}");
                results[usize::try_from(result.request).expect("a number of ours")] += 1;
            }
            None => pushes.push(opener.open(delivered(&down)).payload.expect("a payload")),
        }
    }
    assert_eq!(pushes, ["said in vain", "after the cut"]);
    assert_eq!((results[1], results[3]), (uncounted, 1), "{results:?}");
    // What was said before the answer to this has been heard.
    guest.call("ping", json!([account.jid.split('@').nth(1)]));
    let heard = 1 + pushes.len() + results.iter().sum::<usize>();
    assert_eq!((guest.count("online"), guest.count("resumed"), guest.count("channel")), (1, 1, heard));
    assert!(server.metric("campanile_front_resumed_total") >= 1.0);
    guest.leave();
}

/// Says so when the server does not know the token.
fn reports_a_wrong_token(client: &str) {
    reports_a_wrong_token_with(&Server::start(), Door::TCP, client);
}

fn reports_a_wrong_token_with(server: &Server, doors: &[Door], client: &str) {
    let stranger = Account { token: account(server, client).token, ..account(server, client) };
    for &door in doors {
        let Some(mut guest) = Guest::at(server, door, client, &stranger) else { return };
        assert_eq!(guest.wait_for("refused")["condition"], "not-authorized", "{door:?}");
        guest.gives_up();
    }
}

/// Gives its token to no server whose certificate another CA has made.
fn verifies_the_certificate(client: &str) {
    verifies_the_certificate_with(&Server::start(), Door::TCP, client);
}

fn verifies_the_certificate_with(server: &Server, doors: &[Door], client: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let ca = folder.path().join("another-ca.pem");
    let another = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    fs::write(&ca, another.cert.pem()).expect("written");
    let account = account(server, client);
    for &door in doors {
        let way = Way { door, port: server.address(door.listener()).port(), ca: &ca };
        let Some(mut guest) = Guest::start(client, &account, &way) else { return };
        guest.wait_for("untrusted");
        guest.gives_up();
    }
}

#[test]
fn slixmpp_holds_a_session() {
    holds_a_session("slixmpp");
}

#[test]
fn slixmpp_resumes_a_lost_stream() {
    resumes_a_lost_stream("slixmpp", 0);
}

#[test]
fn slixmpp_reports_a_wrong_token() {
    reports_a_wrong_token("slixmpp");
}

#[test]
fn slixmpp_verifies_the_certificate() {
    verifies_the_certificate("slixmpp");
}

#[test]
fn nbxmpp_holds_a_session() {
    holds_a_session("nbxmpp");
}

#[test]
fn nbxmpp_resumes_a_lost_stream() {
    resumes_a_lost_stream("nbxmpp", 0);
}

#[test]
fn nbxmpp_reports_a_wrong_token() {
    reports_a_wrong_token("nbxmpp");
}

#[test]
fn nbxmpp_verifies_the_certificate() {
    verifies_the_certificate("nbxmpp");
}

#[test]
fn xmpp_client_holds_a_session() {
    holds_a_session("xmpp-client");
}

#[test]
fn xmpp_client_resumes_a_lost_stream() {
    // It counts no answers to its IQs: here that to the one that opened the channel.
    resumes_a_lost_stream("xmpp-client", 1);
}

#[test]
fn xmpp_client_reports_a_wrong_token() {
    reports_a_wrong_token("xmpp-client");
}

#[test]
fn xmpp_client_verifies_the_certificate() {
    verifies_the_certificate("xmpp-client");
}

#[test]
fn xmpp_client_holds_a_session_over_websocket() {
    holds_a_session_with(&Server::start_whole(&[]), Door::WEB, "xmpp-client");
}

#[test]
fn xmpp_client_resumes_a_lost_stream_over_websocket() {
    resumes_a_lost_stream_with(&Server::start_whole(&[]), Door::WebSocket, "xmpp-client", 1);
}

#[test]
fn xmpp_client_reports_a_wrong_token_over_websocket() {
    reports_a_wrong_token_with(&Server::start_whole(&[]), Door::WEB, "xmpp-client");
}

#[test]
fn xmpp_client_verifies_the_certificate_of_a_websocket() {
    verifies_the_certificate_with(&Server::start_whole(&[]), &[Door::WebSocket], "xmpp-client");
}

#[test]
fn tokio_xmpp_holds_a_session() {
    holds_a_session("tokio-xmpp");
}

#[test]
fn tokio_xmpp_resumes_a_lost_stream() {
    resumes_a_lost_stream("tokio-xmpp", 0);
}

#[test]
fn tokio_xmpp_reports_a_wrong_token() {
    reports_a_wrong_token("tokio-xmpp");
}

#[test]
fn tokio_xmpp_verifies_the_certificate() {
    verifies_the_certificate("tokio-xmpp");
}
