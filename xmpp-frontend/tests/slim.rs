//! Streams that go on in slim frames (`docs/protocol.md`, section 12).

use std::time::Duration;

use campanile_xmpp_frontend::Limits;
use idl::slim::{self, Frame, Reader};
use idl::xml::Limits as XmlLimits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::{sleep, timeout};

use crate::harness::{Client, World, account, item};

const ENABLE: &str = "<enable xmlns='urn:xmpp:sm:3' resume='true'/>";

/// A client that speaks slim.
struct SlimClient {
    stream: DuplexStream,
    unread: Vec<u8>,
}

impl SlimClient {
    /// Asks for slim on a stream that is bound, and hears the answer.
    async fn switch(mut client: Client<DuplexStream>) -> Self {
        client.send(slim::SWITCH).await;
        let mut stream = client.into_inner();
        let mut answer = vec![0; slim::SWITCH.len()];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(answer, slim::SWITCH.as_bytes());
        Self { stream, unread: Vec::new() }
    }

    async fn say(&mut self, frame: Frame<'_>) {
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        self.stream.write_all(&bytes).await.expect("written");
    }

    async fn say_stanza(&mut self, text: &str) {
        self.say(Frame::Stanza(text.into())).await;
    }

    /// The next frame; `None` at the end of the connection.
    async fn hear(&mut self) -> Option<Frame<'static>> {
        timeout(Duration::from_mins(1), async {
            loop {
                let mut rest = self.unread.as_slice();
                let frame = Reader::new().read(&mut rest, 1 << 20).expect("frames").map(owned);
                if frame.is_some() {
                    let taken = self.unread.len() - rest.len();
                    self.unread.drain(..taken);
                    return frame;
                }
                if self.stream.read_buf(&mut self.unread).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
        })
        .await
        .expect("the front says something in time")
    }

    async fn hear_element(&mut self) -> minidom::Element {
        match self.hear().await {
            Some(Frame::Stanza(text)) => {
                slim::element(&text, XmlLimits { stanza_bytes_max: 1 << 20, depth_max: 32 }).expect("an element")
            }
            other => panic!("an element was expected, not {other:?}"),
        }
    }

    async fn open_channel(&mut self) {
        self.say_stanza("<iq type='set' id='o'><open xmlns='urn:campanile:channel:1' number='5'/></iq>").await;
        assert_eq!(self.hear_element().await.attr("type"), Some("result"));
    }
}

fn owned(frame: Frame<'_>) -> Frame<'static> {
    match frame {
        Frame::Ping => Frame::Ping,
        Frame::Pong => Frame::Pong,
        Frame::Payload { number, bytes } => Frame::Payload { number, bytes: bytes.into_owned().into() },
        Frame::Stanza(text) => Frame::Stanza(text.into_owned().into()),
        Frame::AckRequest => Frame::AckRequest,
        Frame::Ack(handled) => Frame::Ack(handled),
        Frame::End(text) => Frame::End(text.into_owned().into()),
    }
}

fn payload(bytes: &[u8]) -> Frame<'_> {
    Frame::Payload { number: 5, bytes: bytes.into() }
}

#[tokio::test(start_paused = true)]
async fn channels_heartbeats_and_stanzas_go_on_in_slim() {
    let world = World::new().await;
    let client = world.login(account(1), "r").await;
    let mut client = SlimClient::switch(client).await;
    client.open_channel().await;
    client.say(payload(b"abc")).await;
    assert_eq!(client.hear().await, Some(payload(b"cba")));
    client.say(Frame::Ping).await;
    assert_eq!(client.hear().await, Some(Frame::Pong));
    client.say_stanza("<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    assert_eq!(client.hear_element().await.attr("id"), Some("p"));
    let epoch = world.middle.epoch(account(1), "r");
    assert_eq!(world.deliver(vec![item(account(1), epoch, &[b"one", b"two"])]).await, []);
    assert_eq!(client.hear().await, Some(payload(b"one")));
    assert_eq!(client.hear().await, Some(payload(b"two")));
    client.say_stanza(slim::SWITCH).await;
    assert_eq!(client.hear().await, Some(Frame::Stanza(slim::FAILURE.into())));
    client.say(Frame::End("".into())).await;
    assert_eq!(client.hear().await, Some(Frame::End("".into())));
    assert_eq!(client.hear().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_both_forms() {
    let world = World::new().await;
    let mut xml = world.subscriber(account(1), &[]).await;
    world.middle.set_index(account(2), vec![crate::harness::entry(1, &[])]);
    let mut slim = SlimClient::switch(world.login(account(2), "r").await).await;
    slim.open_channel().await;
    world.broadcast(None, b"for all").await;
    assert_eq!(xml.payload().await, b"for all");
    assert_eq!(slim.hear().await, Some(payload(b"for all")));
}

#[tokio::test(start_paused = true)]
async fn a_slim_stream_is_resumed_in_xml_and_may_be_slim_again() {
    let world = World::new().await;
    let mut client = SlimClient::switch(world.login(account(1), "r").await).await;
    client.say_stanza(ENABLE).await;
    let enabled = client.hear_element().await;
    let id = enabled.attr("id").expect("an id").to_owned();
    client.open_channel().await;
    assert_eq!(client.hear().await, Some(Frame::AckRequest));
    client.say(Frame::Ack(1)).await;
    client.say(Frame::AckRequest).await;
    assert_eq!(client.hear().await, Some(Frame::Ack(1)));
    let epoch = world.middle.epoch(account(1), "r");
    assert_eq!(world.deliver(vec![item(account(1), epoch, &[b"kept"])]).await, []);
    assert_eq!(client.hear().await, Some(payload(b"kept")));
    // It breaks in the middle of a frame.
    client.stream.write_all(&[9, 2, 5, b'x']).await.expect("written");
    drop(client);
    sleep(Duration::from_secs(1)).await;

    let mut client = world.connect(campanile_xmpp_frontend::Security::Trusted).await;
    client.authenticate(account(1)).await;
    client.send(&format!("<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='1'/>")).await;
    let resumed = client.element().await;
    assert_eq!((resumed.name(), resumed.attr("h")), ("resumed", Some("1")), "{resumed:?}");
    assert_eq!(client.payload().await, b"kept");
    assert_eq!(client.element().await.name(), "r");
    let mut client = SlimClient::switch(client).await;
    client.say(payload(b"abc")).await;
    assert_eq!(client.hear().await, Some(payload(b"cba")));
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_in_slim_is_asked_with_two_bytes() {
    let world = World::new().await;
    let mut client = SlimClient::switch(world.login(account(1), "r").await).await;
    for _ in 0..2 {
        sleep(Duration::from_mins(15)).await;
        assert_eq!(client.hear().await, Some(Frame::Ping));
        client.say(Frame::Pong).await;
    }
    sleep(Duration::from_mins(15)).await;
    assert_eq!(client.hear().await, Some(Frame::Ping));
    sleep(Duration::from_secs(31)).await;
    let Some(Frame::End(error)) = client.hear().await else { panic!("an end") };
    assert!(error.contains("<connection-timeout "), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_frame_ends_the_stream_in_slim() {
    let cases: [(&[u8], &str); 4] = [
        (&[0], "bad-format"),
        (&[0xff, 0xff, 0xff, 0xff, 0x0f], "policy-violation"),
        (b"\x05\x03<x/>", "unsupported-stanza-type"),
        (b"\x07\x03&x;&y;", "bad-format"),
    ];
    for (bytes, condition) in cases {
        let world = World::with(Limits { stanza_bytes_max: 4096, ..Limits::default() }).await;
        let mut client = SlimClient::switch(world.login(account(1), "r").await).await;
        client.stream.write_all(bytes).await.expect("written");
        let Some(Frame::End(error)) = client.hear().await else { panic!("an end for {bytes:?}") };
        assert!(error.contains(&format!("<{condition} ")), "{error}");
        assert_eq!(client.hear().await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_goes_slim_before_a_resource_is_bound() {
    let world = World::new().await;
    let mut client = world.connect(campanile_xmpp_frontend::Security::Trusted).await;
    client.open_stream().await;
    client.show_token(account(1)).await;
    client.send(slim::SWITCH).await;
    assert!(client.element().await.is("failure", slim::NS));
    client.bind("r").await;
    client.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn stanzas_of_others_come_as_frames_and_go_as_frames() {
    let world = World::new().await;
    let mut slim = SlimClient::switch(world.login(account(1), "r").await).await;
    let mut other = world.login(account(2), "r").await;
    let [slim_jid, other_jid] = [1, 2].map(|number| format!("{}@example.org/r", account(number)));
    other.send(&format!("<message to='{slim_jid}' id='1'><body>&lt;</body></message>")).await;
    let heard = slim.hear_element().await;
    assert_eq!((heard.attr("from"), heard.attr("id")), (Some(other_jid.as_str()), Some("1")));
    assert_eq!(heard.get_child("body", "jabber:client").expect("a body").text(), "<");
    slim.say_stanza(&format!("<message to='{other_jid}' id='2'/>")).await;
    let heard = other.element().await;
    assert_eq!((heard.attr("from"), heard.attr("id")), (Some(slim_jid.as_str()), Some("2")));
    slim.say_stanza("<inactive xmlns='urn:xmpp:csi:0'/>").await;
    slim.say(Frame::Ping).await;
    assert_eq!(slim.hear().await, Some(Frame::Pong));
}
