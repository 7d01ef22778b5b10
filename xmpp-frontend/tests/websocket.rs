//! XMPP over WebSocket (RFC 7395), as a browser sees it: each message that it sends and gets, word for word.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use campanile_xmpp_frontend::{Limits, Message, Messages, Security};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::harness::{World, account, item, settled, token};

const OPEN: &str = "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='example.org' version='1.0'/>";
const OPENED: &str = "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' from='example.org' id='…' version='1.0'/>";
const CLOSE: &str = "<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>";
const FEATURES: &str =
    "<stream:features xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>…</stream:features>";
const SUCCESS: &str = "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>";
const BIND: &str = "<iq xmlns='jabber:client' type='set' id='b'>\
                    <bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq>";
const ASKED: &str = "<r xmlns='urn:xmpp:sm:3'/>";

/// The front's end of a WebSocket.
struct Socket {
    said: mpsc::Receiver<Message>,
    heard: mpsc::Sender<Heard>,
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Text(String),
    Closed(u16),
}

impl Messages for Socket {
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.said.poll_recv(cx)
    }

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, text: String) -> io::Result<()> {
        self.heard.try_send(Heard::Text(text)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, _: &mut Context<'_>, code: u16) -> Poll<io::Result<()>> {
        Poll::Ready(self.heard.try_send(Heard::Closed(code)).map_err(|_| io::ErrorKind::BrokenPipe.into()))
    }
}

/// A browser's end of one.
struct Browser {
    say: mpsc::Sender<Message>,
    hear: mpsc::Receiver<Heard>,
}

impl Browser {
    async fn connect(world: &World, security: Security) -> Self {
        let ((say, said), (heard, hear)) = (mpsc::channel(64), mpsc::channel(64));
        world.acceptor.accept_websocket(Socket { said, heard }, IpAddr::V4(Ipv4Addr::LOCALHOST), security).await;
        Self { say, hear }
    }

    async fn says(&self, text: &str) {
        self.say.send(Message::Text(text.to_owned())).await.expect("the front listens");
    }

    async fn next(&mut self) -> Heard {
        let heard = timeout(Duration::from_mins(1), self.hear.recv()).await.expect("the front says something in time");
        heard.expect("the front is there")
    }

    /// The next message is this one, in which `…` stands for what is returned.
    async fn hears(&mut self, expected: &str) -> String {
        let Heard::Text(text) = self.next().await else { panic!("closed instead of {expected}") };
        let (before, after) = expected.split_once('…').unwrap_or((expected, ""));
        let between = text.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
        assert!(between.is_some_and(|between| expected.contains('…') || between.is_empty()), "{text}\nnot {expected}");
        between.unwrap_or_default().to_owned()
    }

    async fn logs_in(&mut self) {
        self.says(OPEN).await;
        self.hears(OPENED).await;
        self.hears(FEATURES).await;
        let plain = STANDARD.encode(format!("\0{}\0{}", account(1), token(account(1))));
        self.says(&format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>")).await;
        self.hears(SUCCESS).await;
        self.says(OPEN).await;
        self.hears(OPENED).await;
        self.hears(FEATURES).await;
    }

    async fn binds(&mut self) {
        self.says(BIND).await;
        self.hears("<iq xmlns='jabber:client' type='result' id='b'>…</iq>").await;
    }
}

async fn pushes(world: &World, payload: &str) {
    let (account, epoch) = (account(1), world.middle.epoch(account(1), "r"));
    let gone = world.deliver(vec![item(account, epoch, &[payload.as_bytes()])]).await;
    assert_eq!(gone, Vec::<i32>::new());
}

fn push(payload: &str) -> String {
    let payload = STANDARD.encode(payload);
    format!(
        "<message xmlns='jabber:client'><channel xmlns='urn:campanile:channel:1' number='5'>{payload}</channel></message>"
    )
}

#[tokio::test(start_paused = true)]
async fn a_browser_gets_pushes_and_resumes_a_stream_that_was_cut() {
    let world = World::new().await;
    let mut browser = Browser::connect(&world, Security::Trusted).await;
    browser.logs_in().await;
    browser.binds().await;
    browser.says("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await;
    let id = browser.hears("<enabled xmlns='urn:xmpp:sm:3' id='…' resume='true' max='300'/>").await;
    browser
        .says(
            "<iq xmlns='jabber:client' type='set' id='o'><open xmlns='urn:campanile:channel:1' number='5'>aGVsbG8=\
             </open></iq>",
        )
        .await;
    browser.hears("<iq xmlns='jabber:client' type='result' id='o' …</iq>").await;
    browser.hears(ASKED).await;
    browser.says("<a xmlns='urn:xmpp:sm:3' h='1'/>").await;
    pushes(&world, "one").await;
    browser.hears(&push("one")).await;
    drop(browser);
    settled().await;
    pushes(&world, "two").await;

    let mut browser = Browser::connect(&world, Security::Trusted).await;
    browser.logs_in().await;
    browser.says(&format!("<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='1'/>")).await;
    let resumed = browser.hears("<resumed xmlns='urn:xmpp:sm:3' …/>").await;
    assert!(resumed.contains(&format!("previd='{id}'")) && resumed.contains("h='1'"), "{resumed}");
    browser.hears(&push("one")).await;
    browser.hears(&push("two")).await;
    browser.hears(ASKED).await;
    browser.says("<a xmlns='urn:xmpp:sm:3' h='3'/>").await;
    // White space is no message that means anything.
    browser.says(" ").await;
    browser.says(CLOSE).await;
    browser.hears(CLOSE).await;
    assert_eq!(browser.next().await, Heard::Closed(1000));
}

#[tokio::test(start_paused = true)]
async fn without_tls_below_no_token_is_asked_for() {
    let world = World::new().await;
    for (security, offers_plain) in [(Security::Trusted, true), (Security::Plain, false)] {
        let mut browser = Browser::connect(&world, security).await;
        browser.says(OPEN).await;
        browser.hears(OPENED).await;
        let features = browser.hears(FEATURES).await;
        assert_eq!(features.contains("<mechanism>PLAIN</mechanism>"), offers_plain, "{features}");
        assert!(features.contains("<mechanism>SCRAM-SHA-256</mechanism>"), "{features}");
        assert!(!features.contains("starttls"), "{features}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_message_of_this_protocol_ends_the_stream_with_an_error_that_says_so() {
    let text = |text: &str| Message::Text(text.to_owned());
    let large = format!("<a xmlns='x'>{}</a>", "b".repeat(70_000));
    for (message, condition, code) in [
        (text("<a xmlns='x'/><a xmlns='x'/>"), "bad-format", 1008),
        (text("<a xmlns='x'>"), "not-well-formed", 1008),
        (text("<!-- -->"), "restricted-xml", 1008),
        (text(&large), "policy-violation", 1009),
        (text("<a/>"), "unsupported-stanza-type", 1000),
        (text("<message><body>in no namespace</body></message>"), "invalid-namespace", 1000),
        (Message::Binary, "bad-format", 1003),
        (Message::NotUtf8, "not-well-formed", 1007),
        (Message::TooLarge, "policy-violation", 1009),
    ] {
        let world = World::new().await;
        let mut browser = Browser::connect(&world, Security::Trusted).await;
        browser.logs_in().await;
        browser.binds().await;
        browser.say.send(message.clone()).await.expect("the front listens");
        let error = format!(
            "<stream:error xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>\
             <{condition} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>…</stream:error>"
        );
        browser.hears(&error).await;
        browser.hears(CLOSE).await;
        assert_eq!(browser.next().await, Heard::Closed(code), "{message:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn before_login_a_message_is_held_to_the_smaller_limit() {
    let world = World::new().await;
    let mut browser = Browser::connect(&world, Security::Trusted).await;
    browser.says(OPEN).await;
    browser.hears(OPENED).await;
    browser.hears(FEATURES).await;
    browser.says(&format!("<a xmlns='x'>{}</a>", "b".repeat(10_000))).await;
    let error = browser.hears("<stream:error …</stream:error>").await;
    assert!(error.contains("<policy-violation "), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_begins_with_open_and_with_nothing_else() {
    let header = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='example.org' \
                  version='1.0'/>";
    for first in [BIND, header] {
        let world = World::new().await;
        let mut browser = Browser::connect(&world, Security::Trusted).await;
        browser.says(first).await;
        browser.hears(OPENED).await;
        let error = browser.hears("<stream:error …</stream:error>").await;
        assert!(error.contains("<invalid-namespace "), "{error}");
        browser.hears(CLOSE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_websocket_counts_for_its_address_and_is_told_why_it_is_refused() {
    let world = World::with(Limits { connections_per_address_max: 1, ..Limits::default() }).await;
    let mut first = Browser::connect(&world, Security::Trusted).await;
    first.logs_in().await;
    let mut second = Browser::connect(&world, Security::Trusted).await;
    second.hears("<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' from='example.org' version='1.0'/>").await;
    let error = second.hears("<stream:error …</stream:error>").await;
    assert!(error.contains("<policy-violation "), "{error}");
    second.hears(CLOSE).await;
    assert_eq!(second.next().await, Heard::Closed(1000));
}

#[tokio::test(start_paused = true)]
async fn draining_ends_the_stream_and_then_the_websocket() {
    let world = World::new().await;
    let mut browser = Browser::connect(&world, Security::Trusted).await;
    browser.logs_in().await;
    browser.binds().await;
    world.drain.cancel();
    let error = browser.hears("<stream:error …</stream:error>").await;
    assert!(error.contains("<system-shutdown "), "{error}");
    browser.hears(CLOSE).await;
    assert_eq!(browser.next().await, Heard::Closed(1000));
}
