//! Clients that speak something else, never get on, or are too many.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use crate::harness::{PATIENCE, wait_for};
use crate::peer::{HEADER, Peer, account, auth, plain};
use crate::request::PLAIN;
use crate::tower::Tower;

/// The content type of a TLS record that holds an alert (RFC 8446 §5.1).
const ALERT: u8 = 21;

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket has a time limit");
    socket
}

/// What the server says until it closes.
fn all_of(mut socket: TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    socket.read_to_end(&mut heard).expect("the server closes");
    heard
}

#[test]
fn a_client_that_speaks_plain_text_to_a_tls_port_is_alerted_and_closed() {
    let tower = Tower::start();
    for key in ["xmpp.tls", "http.https"] {
        for words in [HEADER, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "\u{1}\u{2}\u{3}\u{4}\u{5}\u{6}\u{7}\u{8}"] {
            let mut socket = connect(tower.server.address(key));
            socket.write_all(words.as_bytes()).expect("the server reads");
            let answer = all_of(socket);
            assert_eq!(answer.first(), Some(&ALERT), "{key} to {words:?}: {answer:?}");
            tower.goes_on_after(key);
        }
    }
    let mut peer = Peer::clear(&tower.server);
    peer.open();
    peer.say("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>");
    peer.hear("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>");
    peer.say(HEADER);
    assert_eq!(peer.hear_all().first(), Some(&ALERT), "after STARTTLS");
    tower.goes_on_after("plain text after STARTTLS");
}

#[test]
fn bytes_between_starttls_and_tls_are_refused() {
    let tower = Tower::start();
    let mut peer = Peer::clear(&tower.server);
    peer.open();
    peer.say(format!("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>{HEADER}"));
    peer.ends_with("policy-violation", "before TLS", "bytes that someone may have put there");
    tower.goes_on_after("bytes before TLS");
}

#[test]
fn a_client_that_never_logs_in_is_closed_when_its_time_is_over() {
    let tower = Tower::start_with(&[("limits.xmpp_login_ms_max", "5000")]);
    let mine = account(&tower.server);
    let begun = |peer: fn(&crate::harness::server::Server) -> Peer| {
        let mut peer = peer(&tower.server);
        peer.open();
        peer
    };
    let mut logged_in = Peer::with_channel(&tower.server, &account(&tower.server));
    let (mut challenged, mut unbound) = (begun(Peer::tls), begun(Peer::tls));
    let name = mine.jid.split('@').next().expect("a name");
    challenged.say(auth("SCRAM-SHA-256", format!("n,,n={name},r=nonce").as_bytes()));
    challenged.hear("</challenge>");
    unbound.say(plain(&mine.jid, &mine.token));
    unbound.hear("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>");
    unbound.open();
    let mut half = begun(Peer::starttls);
    half.say("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AAAA");
    let told = [
        ("a client that says nothing", Peer::clear(&tower.server)),
        ("a client without STARTTLS", begun(Peer::clear)),
        ("a client in TLS that says nothing", Peer::tls(&tower.server)),
        ("a client without a login", begun(Peer::starttls)),
        ("a client that does not answer the challenge", challenged),
        ("a client without a resource", unbound),
        ("a client in the middle of an element", half),
    ];
    let mut starttls = begun(Peer::clear);
    starttls.say("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>");
    starttls.hear("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>");
    let mut half_a_handshake = Peer::connect(tower.server.address("xmpp.tls"));
    half_a_handshake.say([22, 3, 1, 2, 0, 1]);
    let silent = [
        ("a client that begins no handshake", Peer::connect(tower.server.address("xmpp.tls"))),
        ("a client in the middle of a handshake", half_a_handshake),
        ("a client that begins no handshake after STARTTLS", starttls),
    ];
    tower.goes_on_after("clients that don't get on");
    for (case, mut peer) in told {
        peer.ends_with("connection-timeout", "login", case);
    }
    for (case, mut peer) in silent {
        assert_eq!(peer.hear_all(), b"", "{case}: without TLS there is no stream to say it on");
    }
    tower.goes_on_after("clients that were closed");
    logged_in.goes_on("the time that a login may take");
}

#[test]
fn a_request_that_never_ends_is_given_up_when_its_time_is_over() {
    let limit = "5000";
    let settings = ["http_handshake_ms_max", "http_header_ms_max", "http_request_ms_max"];
    let settings = settings.map(|name| format!("limits.{name}"));
    let mut settings: Vec<_> = settings.iter().map(|key| (key.as_str(), limit)).collect();
    settings.push(PLAIN);
    let tower = Tower::start_with(&settings);
    let (https, http) = (tower.server.address("http.https"), tower.server.address(PLAIN.0));
    let said = |address, words: &[u8]| {
        let mut socket = connect(address);
        socket.write_all(words).expect("the server reads");
        socket
    };
    let without_answer = [
        ("no handshake", said(https, b"")),
        ("half a handshake", said(https, &[22, 3, 1, 2, 0, 1])),
        ("no request", said(http, b"")),
        ("half a header", said(http, b"POST /v3/message/all HTTP/1.1\r\nhost: local")),
    ];
    let half_a_body =
        b"POST /v3/message/all HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 9\r\n\r\nhalf";
    let body = said(http, half_a_body);
    tower.goes_on_after("requests that don't get on");
    for (case, mut socket) in without_answer {
        let mut heard = Vec::new();
        let closed = socket.read_to_end(&mut heard);
        assert!(closed.is_ok() && heard.len() < 200, "{case}: {closed:?} {:?}", String::from_utf8_lossy(&heard));
    }
    let answer = String::from_utf8(all_of(body)).expect("text");
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("did not arrive within 5 s"), "{answer}");
    tower.goes_on_after("requests that were given up");
}

#[test]
fn connections_of_one_address_over_the_limit_are_refused_and_others_live_on() {
    const MAX: usize = 6;
    let tower = Tower::start_with(&[("limits.xmpp_connections_per_address_max", "6")]);
    // One of them is the honest device's.
    let open = || {
        let mut peer = Peer::clear(&tower.server);
        peer.say(HEADER);
        peer
    };
    let mut held: Vec<_> = (1..MAX).map(|_| open()).collect();
    for peer in &mut held {
        peer.hear("</stream:features>");
    }
    for _ in 0..3 {
        open().ends_with("policy-violation", "address", "one more");
        // In TLS there is no stream yet to say it on.
        assert_eq!(all_of(connect(tower.server.address("xmpp.tls"))), b"");
    }
    tower.goes_on_after("too many connections");
    assert!(tower.server.metric("campanile_front_connections") <= 6.0);
    held.pop();
    wait_for("there is room again", || {
        let mut peer = open();
        peer.hear_or_end("</stream:features>").ok()
    });
    for peer in &mut held {
        peer.say("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>");
        peer.hear("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>");
    }
    tower.goes_on_after("connections of one address");
}

#[test]
fn http_connections_of_one_address_over_the_limit_are_refused_and_devices_live_on() {
    let tower = Tower::start_with(&[PLAIN, ("limits.http_connections_per_address_max", "4")]);
    let alive = |socket: &mut TcpStream| {
        let mut answer = [0; 5];
        socket.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").is_ok()
            && socket.read_exact(&mut answer).is_ok()
            && &answer == b"HTTP/"
    };
    let mut held = Vec::new();
    let mut refused = 0;
    while refused < 3 {
        let mut socket = connect(tower.server.address(PLAIN.0));
        if alive(&mut socket) {
            held.push(socket);
        } else {
            refused += 1;
        }
        assert!(held.len() <= 4, "{} connections of one address", held.len());
    }
    assert!(tower.server.metric("campanile_http_limit_hits_total") >= 3.0);
    tower.is_connected_still("too many connections to the API");
    held.pop();
    wait_for("there is room again", || tower.server.api().post("/nowhere", None, &[]).ok());
    drop(held);
    wait_for("there is room for all again", || {
        let mut sockets = [0; 3].map(|_| connect(tower.server.address(PLAIN.0)));
        sockets.iter_mut().all(alive).then_some(())
    });
    wait_for("the API answers", || tower.server.api().post("/nowhere", None, &[]).ok());
    tower.goes_on_after("too many connections to the API");
}

#[test]
fn the_operators_socket_answers_nonsense_and_serves_on() {
    let tower = Tower::start();
    let long = "x".repeat(100_000);
    for (case, named) in [("nonsense", "not a request"), ("{\"ask\": \"nothing\"}", "not a request"), (&long, "64 KiB")]
    {
        let mut socket = UnixStream::connect(tower.server.folder().socket()).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket has a time limit");
        // The server reads no more of a line than it may have.
        let _ = socket.write_all(format!("{case}\n").as_bytes());
        let mut answer = String::new();
        BufReader::new(socket).read_line(&mut answer).expect("the server answers");
        assert!(answer.contains("\"code\":10008") && answer.contains(named), "{answer}");
        assert_eq!(tower.server.json(&["ctl", "status"])[0]["state"], "ready");
    }
    tower.goes_on_after("nonsense on the operator's socket");
}
