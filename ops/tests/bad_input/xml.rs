//! What is no XML, or XML that XMPP forbids (RFC 6120 §11.1), or too much of it: before TLS, before login and after.

use std::collections::BTreeMap;

use crate::peer::{HEADER, Peer, account};
use crate::tower::Tower;

/// What is said, the condition of the stream error, and a word that names the thing.
type Case = (&'static [u8], &'static str, &'static str);

const HOSTILE: &[Case] = &[
    (b"<!DOCTYPE a [<!ENTITY b 'c'>]>", "restricted-xml", "DTDs"),
    (b"<!ENTITY b 'c'>", "restricted-xml", "DTDs"),
    (b"<message><body>&b;</body></message>", "restricted-xml", "entities"),
    (b"<message a='&b;'/>", "restricted-xml", "entities"),
    (b"<?target data?>", "restricted-xml", "processing instructions"),
    (b"<message><?target data?></message>", "restricted-xml", "processing instructions"),
    (b"<!-- a word aside -->", "restricted-xml", "comments"),
    (b"<message></presence>", "not-well-formed", "well-formed"),
    (b"<message a='1' a='2'/>", "not-well-formed", "well-formed"),
    (b"<nowhere:message/>", "not-well-formed", "well-formed"),
    (b"<message>&#0;</message>", "not-well-formed", "well-formed"),
    (b"<message>\0</message>", "not-well-formed", "well-formed"),
    (b"<message>\xff\xfe</message>", "not-well-formed", "well-formed"),
    (b"< message/>", "not-well-formed", "well-formed"),
    (b"<message>\x16\x03</message>", "not-well-formed", "well-formed"),
    // However it is cut, what is between elements is text there first of all.
    (b"\x16\x03\x01\x02\x00\x01", "bad-format", "text between"),
    (b"a word between stanzas <message/>", "bad-format", "text between"),
    (b"a word without an end", "bad-format", "text between"),
];

/// Cases for streams: each is said after a stream's header, and the stream must end with the error.
fn each_case_ends_its_stream(tower: &Tower, stream: impl Fn() -> Peer) {
    for (words, condition, named) in HOSTILE {
        let mut peer = stream();
        peer.say(words);
        let case = String::from_utf8_lossy(words);
        peer.ends_with(condition, named, &case);
        tower.goes_on_after(&case);
    }
}

/// Stanzas that are larger than `limit` in each of the ways in which one can be.
fn oversized(limit: usize) -> BTreeMap<&'static str, String> {
    let much = "x".repeat(limit + limit / 4);
    BTreeMap::from([
        ("a long text", format!("<message><body>{much}</body></message>")),
        ("a text without an end", format!("<message><body>{much}")),
        ("a long attribute", format!("<message a='{much}'/>")),
        ("a long name", format!("<{much}/>")),
        ("many children", format!("<message>{}</message>", "<b/>".repeat(limit / 4 + 1))),
        ("many levels", "<b>".repeat(100)),
    ])
}

fn each_oversized_stanza_ends_its_stream(tower: &Tower, limit: usize, stream: impl Fn() -> Peer) {
    for (case, stanza) in oversized(limit) {
        let mut peer = stream();
        peer.say(stanza);
        peer.ends_with("policy-violation", "over its limit", case);
        tower.goes_on_after(case);
    }
}

#[test]
fn hostile_xml_before_tls_ends_its_stream_alone() {
    let tower = Tower::start();
    each_case_ends_its_stream(&tower, || {
        let mut peer = Peer::clear(&tower.server);
        peer.open();
        peer
    });
}

#[test]
fn hostile_xml_before_login_ends_its_stream_alone() {
    let tower = Tower::start();
    each_case_ends_its_stream(&tower, || {
        let mut peer = Peer::starttls(&tower.server);
        peer.open();
        peer
    });
}

#[test]
fn hostile_xml_after_login_ends_its_stream_alone() {
    let tower = Tower::start();
    let account = account(&tower.server);
    each_case_ends_its_stream(&tower, || Peer::with_channel(&tower.server, &account));
}

#[test]
fn an_oversized_stanza_before_login_ends_its_stream_alone() {
    let tower = Tower::start();
    each_oversized_stanza_ends_its_stream(&tower, 8192, || {
        let mut peer = Peer::tls(&tower.server);
        peer.open();
        peer
    });
    // The smaller limit holds until SASL has succeeded, whatever the stanza is.
    let mut peer = Peer::clear(&tower.server);
    peer.say(format!("{HEADER}<message><body>{}</body></message>", "x".repeat(10_000)));
    peer.ends_with("policy-violation", "over its limit", "before TLS");
    tower.goes_on_after("an oversized stanza before TLS");
}

#[test]
fn an_oversized_stanza_after_login_ends_its_stream_alone() {
    let tower = Tower::start();
    let account = account(&tower.server);
    each_oversized_stanza_ends_its_stream(&tower, 65_536, || Peer::with_channel(&tower.server, &account));
    let mut peer = Peer::with_channel(&tower.server, &account);
    peer.say(format!("<message id='large'><body>{}</body></message>", "x".repeat(60_000)));
    assert!(peer.hear("</message>").contains("service-unavailable"), "what is within the limit is a stanza");
    peer.goes_on("a large stanza");
}

#[test]
fn a_stream_that_begins_wrong_is_told_how_it_should() {
    let tower = Tower::start();
    let cases = [
        (HEADER.replace("to='localhost'", "to='elsewhere.example.com'"), "host-unknown", "not served here"),
        (HEADER.replace("to='localhost'", ""), "improper-addressing", "in &apos;to&apos;"),
        (HEADER.replacen("version='1.0'>", "version='0.9'>", 1), "unsupported-version", "1.0"),
        (HEADER.replacen(" version='1.0'>", ">", 1), "unsupported-version", "1.0"),
        (HEADER.replace("etherx.jabber.org/streams", "example.com"), "invalid-namespace", "stream:stream"),
        ("<html xmlns='http://www.w3.org/1999/xhtml'>".to_owned(), "invalid-namespace", "stream:stream"),
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), "not-well-formed", "well-formed"),
        ("\u{16}\u{3}\u{1}\u{2}".to_owned(), "not-well-formed", "well-formed"),
        (HEADER.replacen("<stream", "<!DOCTYPE a [<!ENTITY b 'c'>]><stream", 1), "restricted-xml", "DTDs"),
        (HEADER.replacen("<stream", "<?target data?><stream", 1), "restricted-xml", "processing instructions"),
        (format!("<stream:stream a='{}'", "x".repeat(10_000)), "policy-violation", "over its limit"),
    ];
    for (words, condition, named) in cases {
        let case: String = words.chars().take(200).collect();
        for mut peer in [Peer::clear(&tower.server), Peer::tls(&tower.server)] {
            peer.say(&words);
            peer.ends_with(condition, named, &case);
        }
        tower.goes_on_after(&case);
    }
}
