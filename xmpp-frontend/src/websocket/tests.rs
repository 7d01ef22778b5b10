use std::future::poll_fn;

use idl::xml::{Event, Header, NS_CLIENT, NS_STREAM, StreamReader, write_footer, write_header};
use minidom::Element;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::inward::{Fault, read, translate};
use super::*;
use crate::close::Reason;

const LIMITS: Limits = Limits { stanza_bytes_max: 512, depth_max: 6 };
const OPEN: &str = "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='example.org' version='1.0'/>";

fn translated(message: &str) -> Result<String, Fault> {
    let mut out = Vec::new();
    translate(message, LIMITS, &mut out)?;
    Ok(String::from_utf8(out).expect("text"))
}

/// What a front hears of messages.
fn heard(messages: &[&str]) -> Result<Vec<Event>, Reason> {
    let mut out = Vec::new();
    for message in messages {
        if let Err(fault) = translate(message, LIMITS, &mut out) {
            fault.write(LIMITS, &mut out);
            break;
        }
    }
    let (mut reader, mut unread, mut events) = (StreamReader::new(LIMITS), out.as_slice(), Vec::new());
    while let Some(event) = reader.read(&mut unread).map_err(|error| Reason::from(&error))? {
        events.push(event);
    }
    Ok(events)
}

fn cut(pieces: &[&[u8]]) -> Vec<String> {
    let (mut outward, mut messages) = (Outward::new(LIMITS), VecDeque::new());
    for piece in pieces {
        outward.cut(piece, &mut messages).expect("a stream");
    }
    messages.into()
}

#[test]
fn a_stream_is_opened_spoken_on_and_closed() {
    let close = "<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>";
    let message = "<message xmlns='jabber:client' to='a'><body>&lt;</body><x xmlns='y'/></message>";
    let events = heard(&[OPEN, message, " ", close]).expect("a stream");
    let [Event::Opened(header), Event::Element(element), Event::Closed] = events.as_slice() else {
        panic!("{events:?}");
    };
    let expected = Header { to: Some("example.org".into()), version: Some("1.0".into()), ..Header::default() };
    assert_eq!(header, &expected);
    assert_eq!(element, &message.parse::<Element>().expect("an element"));
}

#[test]
fn the_front_needs_no_reader_of_its_own_for_such_a_stream() {
    let text = translated(OPEN).expect("a header");
    let mut reader = StreamReader::new(LIMITS);
    reader.read(&mut text.as_bytes()).expect("a header");
    assert!(reader.is_like_inside());
}

#[test]
fn namespaces_are_those_that_the_message_declares() {
    for (message, namespace) in
        [("<a xmlns='x'/>", "x"), ("<p:a xmlns:p='x'/>", "x"), ("<a/>", ""), ("<iq xmlns='jabber:client'/>", NS_CLIENT)]
    {
        let events = heard(&[OPEN, message]).expect(message);
        let [_, Event::Element(element)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(element.ns(), namespace, "{message}");
    }
    // Where a message has no default namespace, its children have no namespace, and take none from the stream.
    let events = heard(&[OPEN, "<p:message xmlns:p='jabber:client'><body/></p:message>"]).expect("a message");
    let Some(Event::Element(element)) = events.last() else { panic!("{events:?}") };
    assert!(element.has_child("body", ""), "{element:?}");
    // The stream's own prefix is declared in streams over TCP alone.
    assert_eq!(translated("<stream:error/>"), Err(Fault::NotWellFormed));
}

#[test]
fn what_is_not_one_element_breaks_the_stream_as_the_same_would_over_tcp() {
    let deep = "<a xmlns='x'>".repeat(7) + &"</a>".repeat(7);
    let large = format!("<a xmlns='x'>{}</a>", "b".repeat(600));
    for (message, fault, reason) in [
        ("<a xmlns='x'/><b xmlns='x'/>", Fault::BadFormat, Reason::BadFormat),
        ("<a xmlns='x'/>text", Fault::BadFormat, Reason::BadFormat),
        ("text<a xmlns='x'/>", Fault::BadFormat, Reason::BadFormat),
        ("<a xmlns='x'>", Fault::NotWellFormed, Reason::NotWellFormed),
        ("<a xmlns='x'", Fault::NotWellFormed, Reason::NotWellFormed),
        ("</a>", Fault::NotWellFormed, Reason::NotWellFormed),
        ("</around-a-message:stream>", Fault::NotWellFormed, Reason::NotWellFormed),
        ("<!-- --><a xmlns='x'/>", Fault::Restricted, Reason::RestrictedXml),
        ("<a xmlns='x'>&xxe;</a>", Fault::Restricted, Reason::RestrictedXml),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><a xmlns='x'/>", Fault::Restricted, Reason::RestrictedXml),
        (&deep, Fault::TooLarge, Reason::StanzaTooLarge),
        (&large, Fault::TooLarge, Reason::StanzaTooLarge),
    ] {
        assert_eq!(translated(message), Err(fault), "{message}");
        assert_eq!(heard(&[OPEN, message]), Err(reason), "{message}");
    }
    for (fault, reason) in [(Fault::Binary, Reason::BadFormat), (Fault::NotUtf8, Reason::NotWellFormed)] {
        let mut out = translated(OPEN).expect("a header").into_bytes();
        fault.write(LIMITS, &mut out);
        let (mut reader, mut unread) = (StreamReader::new(LIMITS), out.as_slice());
        reader.read(&mut unread).expect("a header");
        let error = reader.read(&mut unread).expect_err("a fault");
        assert_eq!(Reason::from(&error), reason);
    }
}

#[test]
fn a_header_of_tcp_is_no_message() {
    let header = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='a'>";
    assert_eq!(heard(&[header]), Err(Reason::NotWellFormed));
    assert_eq!(heard(&[&header.replace('>', "/>")]), Err(Reason::InvalidNamespace));
}

#[test]
fn each_element_of_the_front_is_a_message_that_declares_its_namespaces() {
    let mut stream = Vec::new();
    let header = Header { from: Some("a'b".into()), id: Some("1".into()), version: Some("1.0".into()), to: None };
    write_header(&mut stream, &header);
    stream.extend_from_slice(
        b"<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/></stream:features>",
    );
    stream.extend_from_slice(b"<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>");
    write_header(&mut stream, &Header::default());
    stream
        .extend_from_slice(b"<iq id='1'/> <message id=' xmlns='><body>&gt;</body></message><r xmlns='urn:xmpp:sm:3'/>");
    stream.extend_from_slice(b"<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>");
    write_footer(&mut stream);
    assert_eq!(
        cut(&[&stream]),
        [
            "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' from='a&apos;b' id='1' version='1.0'/>",
            "<stream:features xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>\
             <mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/></stream:features>",
            "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>",
            "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>",
            "<iq xmlns='jabber:client' id='1'/>",
            "<message xmlns='jabber:client' id=' xmlns='><body>&gt;</body></message>",
            "<r xmlns='urn:xmpp:sm:3'/>",
            "<stream:error xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>\
             <conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>",
            "<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>",
        ]
    );
}

/// A WebSocket whose other side takes one message at a time.
#[derive(Default)]
struct Slow {
    received: VecDeque<Message>,
    taken: Vec<String>,
    room: usize,
    closed: Option<u16>,
}

impl Messages for Slow {
    fn poll_receive(&mut self, _: &mut Context<'_>) -> Poll<Option<Message>> {
        Poll::Ready(self.received.pop_front())
    }

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.room > 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn send(&mut self, text: String) -> io::Result<()> {
        self.room -= 1;
        self.taken.push(text);
        Ok(())
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, _: &mut Context<'_>, code: u16) -> Poll<io::Result<()>> {
        self.closed = Some(code);
        Poll::Ready(Ok(()))
    }
}

fn translator(messages: Slow) -> Translator<Slow> {
    Translator::new(messages, LIMITS, LIMITS.stanza_bytes_max)
}

#[tokio::test]
async fn no_more_is_taken_of_the_front_while_a_message_waits() {
    let mut translator = translator(Slow { room: 1, ..Slow::default() });
    let mut stream = Vec::new();
    write_header(&mut stream, &Header::default());
    stream.extend_from_slice(b"<iq id='1'/><iq id='2'/>");
    let write = |translator: &mut Translator<Slow>, bytes: &[u8]| {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        Pin::new(translator).poll_write(&mut cx, bytes).map(|written| written.expect("written"))
    };
    assert_eq!(write(&mut translator, &stream), Poll::Ready(stream.len()));
    assert_eq!(translator.messages.taken.len(), 1);
    assert_eq!(write(&mut translator, b"<iq id='3'/>"), Poll::Pending);
    translator.messages.room = 1;
    assert_eq!(write(&mut translator, b"<iq id='3'/>"), Poll::Pending);
    translator.messages.room = 1;
    assert_eq!(write(&mut translator, b"<iq id='3'/>"), Poll::Ready(12));
    assert_eq!(translator.messages.taken.len(), 3);
    translator.messages.room = 1;
    translator.flush().await.expect("flushed");
    assert_eq!(translator.messages.taken.len(), 4);
}

#[tokio::test]
async fn what_comes_behind_a_fault_is_thrown_away_and_the_close_code_tells_it() {
    for (message, code) in
        [(Message::Binary, 1003), (Message::NotUtf8, 1007), (Message::TooLarge, 1009), (text("<a>"), 1008)]
    {
        let received = [message, text("<a xmlns='x'/>"), text(OPEN)].into();
        let mut translator = translator(Slow { received, ..Slow::default() });
        let mut all = String::new();
        translator.read_to_string(&mut all).await.expect("read");
        assert!(!all.contains("xmlns"), "{all}");
        poll_fn(|cx| Pin::new(&mut translator).poll_shutdown(cx)).await.expect("closed");
        assert_eq!(translator.messages.closed, Some(code));
    }
    let mut translator = translator(Slow::default());
    translator.shutdown().await.expect("closed");
    assert_eq!(translator.messages.closed, Some(1000));
}

fn text(text: &str) -> Message {
    Message::Text(text.to_owned())
}

/// Elements with and without namespaces, attributes, text and children.
fn elements() -> impl Strategy<Value = Element> {
    let names = prop_oneof![Just("iq"), Just("message"), Just("x"), Just("stream")];
    let namespaces = prop_oneof![Just(""), Just(NS_CLIENT), Just(NS_STREAM), Just("x"), Just("a'b\"&<")];
    let leaf = (names, namespaces, "[ -~é]{0,6}", "[ -~é]{0,6}").prop_map(|(name, namespace, value, text)| {
        let mut element = Element::builder(name, namespace).attr(rxml_name(), value).build();
        if !text.is_empty() {
            element.append_text(text);
        }
        element
    });
    leaf.prop_recursive(3, 12, 3, |inner| {
        (inner.clone(), prop::collection::vec(inner, 0..3)).prop_map(|(mut element, children)| {
            for child in children {
                element.append_child(child);
            }
            element
        })
    })
}

fn rxml_name() -> minidom::rxml::NcName {
    "attribute".to_owned().try_into().expect("a name")
}

proptest! {
    #[test]
    fn hostile_messages_end_nothing_but_their_stream(messages in prop::collection::vec("[ -~<>&'\"é]{0,60}", 0..4)) {
        let messages: Vec<_> = messages.iter().map(String::as_str).collect();
        let _ = heard(&messages);
    }

    #[test]
    fn messages_that_are_almost_elements_end_nothing_but_their_stream(
        element in elements(),
        at in any::<prop::sample::Index>(),
        with in "[<>&'\"/!?a ]{0,3}",
    ) {
        let mut message = String::from(&element);
        let at = (0..=at.index(message.len() + 1)).rev().find(|at| message.is_char_boundary(*at)).expect("a boundary");
        message.insert_str(at, &with);
        let _ = heard(&[OPEN, &message]);
    }

    #[test]
    fn an_element_means_to_the_front_what_it_meant_in_its_message(element in elements()) {
        let limits = Limits { stanza_bytes_max: 1 << 16, depth_max: 16 };
        let message = String::from(&element);
        let element = read(&message, limits).expect("an element");
        prop_assume!(!element.as_ref().is_some_and(|element| element.is("stream", NS_STREAM)));
        let mut out = Vec::new();
        translate(OPEN, limits, &mut out).expect("a header");
        translate(&message, limits, &mut out).expect("an element");
        let (mut reader, mut unread) = (StreamReader::new(limits), out.as_slice());
        reader.read(&mut unread).expect("a header");
        prop_assert_eq!(reader.read(&mut unread).expect("an element"), element.map(Event::Element));
    }

    #[test]
    fn a_stream_gives_the_same_messages_however_it_is_split(
        elements in prop::collection::vec(elements().prop_filter("a namespace", |element| !element.ns().is_empty()), 0..4),
        ends in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let limits = Limits { stanza_bytes_max: 1 << 16, depth_max: 16 };
        let mut stream = Vec::new();
        write_header(&mut stream, &Header::default());
        for element in &elements {
            idl::xml::write_element(&mut stream, element);
        }
        write_footer(&mut stream);
        let mut ends: Vec<_> = ends.iter().map(|end| end.index(stream.len())).chain([0, stream.len()]).collect();
        ends.sort_unstable();
        let (mut outward, mut messages) = (Outward::new(limits), VecDeque::new());
        for piece in ends.windows(2) {
            outward.cut(&stream[piece[0]..piece[1]], &mut messages).expect("a stream");
        }
        prop_assert_eq!(messages.len(), elements.len() + 2);
        for (message, element) in messages.iter().skip(1).zip(&elements) {
            prop_assert_eq!(&message.parse::<Element>().expect("an element alone"), element);
        }
    }
}
