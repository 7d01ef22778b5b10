//! Servers that break the protocol: they are left, with a reason, and nothing else happens.

use campanile_sdk_android_bridge::{OfflineReason, ProtocolFault};
use idl::channel::{ChannelError, PUSH, Payload};
use idl::contract::push::{Deliver, ToDevice};
use idl::ids::MessageId;
use idl::wire;
use idl::xml::XmlError;
use proptest::prelude::*;

use crate::server::{delivery, revoke};
use crate::world::{World, demo};

const CHANNEL: &str = "urn:campanile:channel:1";

/// Why a device that was online leaves after these bytes.
fn reason_after(bytes: &[u8]) -> OfflineReason {
    let mut world = World::online();
    world.server.manners.deaf = true;
    world.down(bytes);
    assert!(!world.connected, "{:?} is not survived", String::from_utf8_lossy(bytes));
    let [reason] = world.offline().try_into().expect("one reason");
    reason
}

fn payload(payload: &ToDevice) -> Vec<u8> {
    Payload { number: PUSH, bytes: wire::encode(payload) }.to_message()
}

#[test]
fn xml_that_xmpp_forbids_ends_the_stream() {
    for (text, condition) in [
        ("<message>&xxe;</message>", "restricted-xml"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]>", "restricted-xml"),
        ("<?target data?>", "restricted-xml"),
        ("<!-- a -->", "restricted-xml"),
        ("<a></b>", "not-well-formed"),
        ("text<a/>", "bad-format"),
        ("\u{0}", "bad-format"),
        ("<a>\u{0}</a>", "not-well-formed"),
    ] {
        match reason_after(text.as_bytes()) {
            OfflineReason::Xml(error) => assert_eq!(error.condition(), condition, "{text:?}"),
            other => panic!("{text:?} gives {other:?}"),
        }
    }
}

#[test]
fn a_stanza_over_the_limit_ends_the_stream_before_it_is_whole() {
    let stanza = format!("<message><body>{}", "x".repeat(70_000));
    assert_eq!(reason_after(stanza.as_bytes()), OfflineReason::Xml(XmlError::TooLarge { limit: 64 * 1024 }));
    let stanza = "<a xmlns='jabber:client'>".repeat(17);
    assert_eq!(reason_after(stanza.as_bytes()), OfflineReason::Xml(XmlError::TooDeep { limit: 16 }));
}

#[test]
fn payloads_that_are_none_are_named() {
    let message = |attributes: &str, text: &str| {
        format!("<message><channel xmlns='{CHANNEL}' {attributes}>{text}</channel></message>").into_bytes()
    };
    let fault = |bytes: &[u8]| match reason_after(bytes) {
        OfflineReason::Protocol(fault) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(&message("", "")), ProtocolFault::Channel(ChannelError::Number("channel")));
    assert_eq!(fault(&message("number='5'", "?")), ProtocolFault::Channel(ChannelError::Base64("channel")));
    assert!(matches!(fault(&message("number='5'", "////")), ProtocolFault::Payload(_)));
    let bad_id = Deliver { id: vec![1; 15], app: demo().to_string(), sealed: vec![], broadcast: None };
    let deliver = ToDevice { deliver: Some(bad_id.clone()), ..ToDevice::default() };
    assert_eq!(fault(&payload(&deliver)), ProtocolFault::MessageId);
    let bad_app = Deliver { id: vec![1; 16], app: "a/b".to_owned(), ..bad_id };
    assert_eq!(fault(&payload(&ToDevice { deliver: Some(bad_app), ..ToDevice::default() })), ProtocolFault::AppId);
    let both =
        ToDevice { revoke: Some(revoke(&demo(), MessageId(1))), ..delivery(&demo(), MessageId(1), vec![], None) };
    assert_eq!(fault(&payload(&both)), ProtocolFault::NotOne);
    assert_eq!(fault(b"<presence xmlns='other'/>"), ProtocolFault::Unexpected("presence".to_owned()));
    assert_eq!(fault(b"<a xmlns='urn:xmpp:sm:3' h='1'/>"), ProtocolFault::Unexpected("a".to_owned()));
}

#[test]
fn a_count_of_stanzas_never_sent_ends_the_stream() {
    let mut world = World::new();
    world.server.manners.manageable = true;
    world.start();
    world.down(b"<a xmlns='urn:xmpp:sm:3' h='1000'/>");
    assert_eq!(world.offline(), [OfflineReason::Protocol(ProtocolFault::AckCount)]);
}

#[test]
fn what_a_later_server_may_say_is_passed_over() {
    let mut world = World::online();
    let nothing_known = [Payload { number: PUSH, bytes: vec![0x8c, 0, 0] }.to_message(), payload(&ToDevice::default())];
    for bytes in nothing_known {
        world.down(&bytes);
    }
    world.down(&Payload { number: 6, bytes: vec![1, 2, 3] }.to_message());
    world.down(b"<message type='headline'><body>hello</body></message><presence/>");
    world.down(b"<message type='error'><channel xmlns='urn:campanile:channel:1' number='5'>?</channel></message>");
    assert_eq!(world.offline(), []);
    world.deliver(&demo(), 1, "one");
    assert_eq!(world.pushed(), ["one"]);
}

#[test]
fn what_another_client_says_is_not_taken_for_the_servers() {
    let mut world = World::new();
    world.server.manners.stranger = Some("someone@push.example.org/r");
    world.start();
    assert_eq!(world.ready().len(), 1);
    world.down(
        b"<message from='someone@push.example.org/r'><channel xmlns='urn:campanile:channel:1' number='5'>?</channel></message>",
    );
    assert_eq!(world.offline(), []);
}

#[test]
fn the_server_is_told_what_it_did() {
    let mut world = World::online();
    world.server.manners.deaf = true;
    world.down(b"<a></b>");
    let last = world.wire.last().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).expect("bytes");
    assert_eq!(
        last,
        "<stream:error><not-well-formed xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>"
    );
}

#[test]
fn elements_out_of_place_during_the_login_end_it() {
    let header = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";
    for text in [
        "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>",
        "<message/>",
        "<iq type='result' id='bind'/>",
        "<resumed xmlns='urn:xmpp:sm:3' h='0'/>",
    ] {
        let mut world = World::new();
        world.server.manners.deaf = true;
        world.start();
        world.down(format!("{header}{text}").as_bytes());
        assert!(matches!(world.offline()[..], [OfflineReason::Protocol(ProtocolFault::Unexpected(_))]), "{text}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_device_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), online: bool) {
        let mut world = if online { World::online() } else { World::new() };
        world.server.manners.deaf = true;
        world.start();
        world.down(&bytes);
        world.pass(std::time::Duration::from_mins(20));
    }

    #[test]
    fn no_payload_makes_a_device_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut world = World::online();
        world.server.manners.deaf = true;
        world.down(&Payload { number: PUSH, bytes }.to_message());
    }

    #[test]
    fn no_delivery_makes_a_device_panic(
        id in proptest::collection::vec(any::<u8>(), 0..20),
        sealed in proptest::collection::vec(any::<u8>(), 0..200),
        broadcast: Option<bool>,
    ) {
        let mut world = World::online();
        world.server.manners.deaf = true;
        let deliver = Deliver { id, app: demo().to_string(), sealed, broadcast };
        world.down(&payload(&ToDevice { deliver: Some(deliver), ..ToDevice::default() }));
        prop_assert!(world.pushed().is_empty(), "nobody can forge a push");
    }

    #[test]
    fn however_the_bytes_are_cut_the_device_understands_them(cuts in proptest::collection::vec(1usize..40, 1..60)) {
        let mut world = World::online();
        let mut bytes = Vec::new();
        for id in 1..=3 {
            bytes.extend(world.server.deliver(&demo(), MessageId(id), &id.to_string()));
        }
        let mut rest = bytes.as_slice();
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            world.down(piece);
            rest = after;
        }
        world.down(rest);
        prop_assert_eq!(world.pushed(), ["1", "2", "3"]);
    }
}
