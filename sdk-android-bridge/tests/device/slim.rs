//! Slim frames where the server offers them: the same device, in fewer bytes.

use std::time::Duration;

use campanile_sdk_android_bridge::{Action, Command, Config, Event, OfflineReason, ProtocolFault, Saved};
use idl::channel::PUSH;
use idl::ids::MessageId;
use idl::slim::{self, Frame, SlimError};
use proptest::prelude::*;

use crate::server::Slim;
use crate::world::{World, app_config, config, demo};

const PING: &str = "<iq type='get' id='s' xmlns='jabber:client'><ping xmlns='urn:xmpp:ping'/></iq>";

fn frame(frame: &Frame<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    frame.write(&mut out);
    out
}

fn end(condition: &str) -> Vec<u8> {
    let error = format!("<stream:error><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>");
    frame(&Frame::End(error.into()))
}

/// The frames in bytes that hold only whole ones.
fn frames(mut bytes: &[u8]) -> Vec<Frame<'_>> {
    let mut reader = slim::Reader::new();
    let mut frames = Vec::new();
    while let Some(frame) = reader.read(&mut bytes, 65_536).expect("frames") {
        frames.push(frame);
    }
    assert!(reader.is_between_frames());
    frames
}

/// A server that offers slim frames and treats `<slim/>` like this.
fn world(slim: Slim) -> World {
    let mut world = World::new();
    world.server.manners.manageable = true;
    world.server.manners.slim = slim;
    world
}

/// What the device has said since the server agreed.
fn said_in_frames(world: &World) -> Vec<u8> {
    let agreed = world.wire.iter().rposition(|(who, bytes)| *who == "S" && bytes.starts_with(slim::SWITCH.as_bytes()));
    let after = &world.wire[agreed.expect("the server agreed") + 1..];
    after.iter().filter(|(who, _)| *who == "C").flat_map(|(_, bytes)| bytes).copied().collect()
}

#[test]
fn a_device_speaks_frames_where_the_server_offers_them() {
    let mut world = World::slim();
    assert!(world.server.is_slim() && world.server.open);
    assert_eq!(world.ready().len(), 1);
    world.deliver(&demo(), 1, "one");
    world.broadcast(&demo(), 2, "all");
    world.command(7, Command::Subscribe("news".parse().expect("a topic")));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.pushed(), ["one", "all"]);
    assert_eq!(world.results(), [(7, Ok(()))]);
    assert_eq!(world.server.acked(), [MessageId(1), MessageId(2)]);
    let bytes = said_in_frames(&world);
    let stanzas: Vec<_> = frames(&bytes)
        .into_iter()
        .filter_map(|frame| match frame {
            Frame::Stanza(text) => Some(text.split_once(' ').map_or_else(String::new, |(name, _)| name.to_owned())),
            _ => None,
        })
        .collect();
    assert_eq!(stanzas, ["<enable", "<iq"], "stream management and the channel's opening; all else is payloads");
    assert!(!String::from_utf8_lossy(&bytes).contains("urn:campanile:channel:1' number='5'>AAA"));
}

#[test]
fn the_same_work_takes_fewer_bytes_in_frames() {
    let work = |mut world: World| {
        world.wire.clear();
        for id in 1..=20 {
            world.deliver(&demo(), id, &"x".repeat(100));
            world.pass(Duration::from_secs(1));
        }
        world.wire.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    };
    let mut in_xml = world(Slim::NotOffered);
    in_xml.start();
    let (in_xml, in_frames) = (work(in_xml), work(World::slim()));
    assert!(in_frames * 3 < in_xml * 2, "{in_frames} bytes in frames, {in_xml} in XML");
}

#[test]
fn a_text_of_100_bytes_costs_what_the_document_says() {
    let mut in_xml = world(Slim::NotOffered);
    in_xml.start();
    let text = "x".repeat(100);
    let length = |world: &mut World| world.server.deliver(&demo(), MessageId(1 << 80), &text).len();
    assert_eq!((length(&mut World::slim()), length(&mut in_xml)), (172, 305));
}

#[test]
fn a_device_that_is_told_to_keeps_to_xml() {
    let config = Config { slim: false, ..config() };
    let mut world = World::with(config, vec![app_config(demo())], Saved::default(), 1);
    world.server.manners.slim = Slim::Agreed;
    world.start();
    world.deliver(&demo(), 1, "one");
    assert_eq!(world.pushed(), ["one"]);
    assert_eq!(world.server.slim_bytes, 0);
}

#[test]
fn a_server_that_refuses_is_spoken_to_in_xml() {
    let mut world = world(Slim::Refused);
    world.start();
    assert_eq!((world.ready().len(), world.server.is_slim()), (1, false));
    world.deliver(&demo(), 1, "one");
    world.cut_and_return();
    assert_eq!(world.server.resumptions, 1, "and asked again on the next connection");
    world.deliver(&demo(), 2, "two");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.pushed(), ["one", "two"]);
    assert_eq!((world.server.acked().len(), world.server.slim_bytes), (2, 0));
}

#[test]
fn nothing_is_said_before_the_server_has_answered() {
    let mut world = world(Slim::Unanswered);
    world.start();
    assert_eq!(world.last_bytes(), slim::SWITCH.as_bytes());
    // What the server asks in between is answered in the form that comes. The played server panics at bytes.
    world.down(PING.as_bytes());
    world.down(b"<message xmlns='jabber:client'><body>hello</body></message>");
    assert_eq!(world.last_bytes(), b"<message xmlns='jabber:client'><body>hello</body></message>");
    assert_eq!(world.server.hellos.len(), 0);
    let agreed = [world.server.agree(), slim::PING.to_vec()].concat();
    world.down(&agreed);
    assert_eq!((world.server.hellos.len(), world.ready().len()), (1, 1));
    let bytes = said_in_frames(&world);
    let frames = frames(&bytes);
    assert_eq!(frames[0], Frame::Stanza("<iq type='result' id='s'/>".into()));
    assert!(frames.contains(&Frame::Pong), "the ping behind the agreement was read as a frame");
}

#[test]
fn a_server_that_never_answers_is_left_after_the_login_time() {
    let mut world = world(Slim::Unanswered);
    world.start();
    let said = world.wire.len();
    let due_ms = u64::try_from(config().login_time_max.as_millis()).expect("a time");
    assert_eq!(world.core.next_timer_ms(), Some(due_ms), "it asks to be woken");
    world.pass(config().login_time_max);
    assert_eq!(world.offline(), [OfflineReason::LoginTimedOut]);
    assert_eq!(world.wire.len(), said, "without a word, which it might misunderstand");
}

#[test]
fn a_device_that_is_stopped_before_the_answer_closes_without_a_word() {
    let mut world = world(Slim::Unanswered);
    world.start();
    world.event(Event::Stop);
    assert!(!world.connected);
    assert_eq!(world.last_bytes(), slim::SWITCH.as_bytes());
}

#[test]
fn a_server_that_asks_for_too_much_before_its_answer_is_left() {
    let mut world = world(Slim::Unanswered);
    world.start();
    let pings = PING.repeat(100);
    for _ in 0..200 {
        if world.connected {
            world.down(pings.as_bytes());
        }
    }
    assert_eq!(world.offline(), [OfflineReason::Protocol(ProtocolFault::SlimUnanswered)]);
}

#[test]
fn an_answer_that_nobody_asked_for_ends_the_stream() {
    for answer in [slim::SWITCH, slim::FAILURE] {
        let mut world = World::online();
        world.server.manners.deaf = true;
        world.down(answer.as_bytes());
        assert!(matches!(world.offline()[..], [OfflineReason::Protocol(ProtocolFault::Unexpected(_))]), "{answer}");
    }
}

#[test]
fn the_heartbeat_has_two_bytes_and_two_more_for_its_answer() {
    let mut world = World::slim();
    world.pass(Duration::from_mins(5));
    world.wire.clear();
    world.pass(Duration::from_mins(55));
    assert_eq!(world.offline(), []);
    assert_eq!(world.wire.len(), 2 * 55);
    for (who, bytes) in &world.wire {
        assert_eq!(bytes, if *who == "C" { &slim::PING } else { &slim::PONG });
    }
}

#[test]
fn a_heartbeat_asks_for_the_count_if_the_server_may_lack_something() {
    let mut world = World::slim();
    world.pass(Duration::from_mins(5));
    world.deliver(&demo(), 1, "one");
    world.pass(Duration::from_secs(1));
    world.wire.clear();
    world.pass(Duration::from_mins(2));
    assert_eq!(world.wire[0], ("C", slim::ACK_REQUEST.to_vec()));
    assert!(matches!(frames(&world.wire[1].1)[..], [Frame::Ack(_)]));
    assert_eq!(world.wire[2], ("C", slim::PING.to_vec()));
}

#[test]
fn a_silent_server_is_asked_and_then_left() {
    let mut world = World::slim();
    world.pass(Duration::from_mins(5));
    world.server.manners.deaf = true;
    world.pass(Duration::from_mins(1));
    assert_eq!(world.last_bytes(), slim::PING);
    world.pass(Duration::from_secs(29));
    assert_eq!(world.offline(), []);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.offline(), [OfflineReason::HeartbeatTimedOut]);
}

#[test]
fn a_server_that_asks_in_frames_is_answered() {
    let mut world = World::slim();
    world.server.manners.deaf = true;
    world.down(&slim::PING);
    assert_eq!(world.last_bytes(), slim::PONG);
    let received = frame(&Frame::Ack(2));
    world.down(&slim::ACK_REQUEST);
    assert_eq!(world.last_bytes(), received, "the answers to the opening and to the command");
    world.down(&frame(&Frame::Stanza("<presence/>".into())));
    world.down(&frame(&Frame::Payload { number: 9, bytes: b"another channel's"[..].into() }));
    world.down(&[0x03, 0x7f, 0, 0]);
    world.down(&slim::ACK_REQUEST);
    assert_eq!(world.last_bytes(), frame(&Frame::Ack(4)), "stanzas and payloads count, unknown frames do not");
    world.down(&frame(&Frame::Stanza(PING.into())));
    assert_eq!(world.last_bytes(), frame(&Frame::Stanza("<iq type='result' id='s'/>".into())));
    assert_eq!(world.offline(), []);
}

#[test]
fn a_connection_lost_in_the_middle_of_a_frame_is_resumed_and_nothing_is_lost() {
    let length = {
        let mut world = World::slim();
        world.server.deliver(&demo(), MessageId(2), "two").len()
    };
    for cut in 0..=length {
        let mut world = World::slim();
        world.deliver(&demo(), 1, "one");
        let bytes = world.server.deliver(&demo(), MessageId(2), "two");
        world.down(&bytes[..cut]);
        // The device says something that does not arrive either.
        world.server.manners.deaf = true;
        world.event(Event::Clicked { app: demo(), id: MessageId(9) });
        world.server.manners.deaf = false;
        world.cut_and_return();
        assert_eq!((world.server.resumptions, world.server.hellos.len()), (1, 1), "cut at {cut}");
        assert!(world.server.is_slim(), "a resumed stream is slim again");
        world.deliver(&demo(), 3, "three");
        world.pass(Duration::from_secs(1));
        assert_eq!(world.pushed(), ["one", "two", "three"], "cut at {cut}");
        assert_eq!(world.server.acked().len(), 3);
        assert_eq!(world.server.clicks(), [MessageId(9)]);
    }
}

#[test]
fn what_a_resumed_stream_brings_before_the_answer_is_taken_and_counted() {
    let mut world = World::slim();
    let lost = world.server.deliver(&demo(), MessageId(1), "one");
    assert!(!lost.is_empty());
    world.server.manners.slim = Slim::Unanswered;
    world.cut_and_return();
    assert_eq!(world.pushed(), ["one"], "in XML");
    world.down(b"<r xmlns='urn:xmpp:sm:3'/>");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.server.acked(), [], "nothing is said yet");
    let agreed = world.server.agree();
    world.down(&agreed);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.server.acked(), [MessageId(1)]);
    assert_eq!(frames(&said_in_frames(&world))[0], Frame::Ack(3), "the opening, the command, the push");
}

#[test]
fn a_connection_lost_before_the_answer_can_still_be_resumed() {
    let mut world = World::slim();
    world.server.manners.deaf = true;
    world.event(Event::Clicked { app: demo(), id: MessageId(9) });
    world.server.manners.deaf = false;
    world.server.manners.slim = Slim::Unanswered;
    world.cut_and_return();
    world.server.manners.slim = Slim::Agreed;
    world.cut_and_return();
    assert_eq!((world.server.resumptions, world.server.hellos.len()), (2, 1));
    assert_eq!(world.server.clicks(), [MessageId(9)]);
}

#[test]
fn a_stream_goes_on_in_xml_at_a_server_that_has_no_frames_and_back() {
    let mut world = World::slim();
    for (id, slim) in [(1, Slim::NotOffered), (2, Slim::Agreed), (3, Slim::Refused), (4, Slim::Agreed)] {
        let lost = world.server.deliver(&demo(), MessageId(id), &id.to_string());
        assert!(!lost.is_empty());
        world.server.manners.slim = slim;
        world.cut_and_return();
        assert_eq!(world.server.is_slim(), slim == Slim::Agreed);
    }
    assert_eq!((world.server.resumptions, world.server.hellos.len()), (4, 1));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.pushed(), ["1", "2", "3", "4"]);
    assert_eq!(world.server.acked().len(), 4);
}

#[test]
fn an_end_says_why() {
    for (bytes, reason) in [
        (slim::CLOSE.to_vec(), OfflineReason::StreamClosed),
        (end("conflict"), OfflineReason::Conflict),
        (end("system-shutdown"), OfflineReason::AskedToLeave("system-shutdown".to_owned())),
        (end("policy-violation"), OfflineReason::StreamError("policy-violation".to_owned())),
    ] {
        let mut world = World::slim();
        world.down(&bytes);
        assert_eq!(world.offline(), [reason]);
        assert!(world.server.closed && !world.connected, "the device ends its side too");
        assert_eq!(world.last_bytes(), slim::CLOSE);
        world.event(Event::Start);
        assert_eq!((world.server.resumptions, world.server.hellos.len()), (0, 2), "an ended stream is not resumed");
    }
}

#[test]
fn a_stopped_device_acknowledges_and_ends_the_stream() {
    let mut world = World::slim();
    world.deliver(&demo(), 1, "one");
    world.event(Event::Stop);
    assert_eq!(world.server.acked().len(), 1);
    assert!(world.server.closed && world.last_bytes().ends_with(&slim::CLOSE));
}

#[test]
fn frames_that_are_none_end_the_stream_and_the_server_is_told() {
    let large = SlimError::TooLarge { limit: 64 * 1024 };
    let cases = [
        (vec![0xff, 0xff, 0x04], OfflineReason::Slim(large), "policy-violation"),
        (vec![0x00], OfflineReason::Slim(SlimError::Empty), "bad-format"),
        (b"<message/>".to_vec(), OfflineReason::Slim(SlimError::Empty), ""),
        (vec![0x81, 0x00], OfflineReason::Slim(SlimError::Varint), "bad-format"),
        (frame(&Frame::Stanza("<a/><b/>".into())), OfflineReason::Slim(SlimError::NotOneElement), "bad-format"),
        (frame(&Frame::Ack(1000)), OfflineReason::Protocol(ProtocolFault::AckCount), "undefined-condition"),
        (
            frame(&Frame::Stanza("<stream:error/>".into())),
            OfflineReason::Protocol(ProtocolFault::Unexpected("error".to_owned())),
            "undefined-condition",
        ),
        (
            frame(&Frame::End("<a/>".into())),
            OfflineReason::Protocol(ProtocolFault::Unexpected("a".to_owned())),
            "undefined-condition",
        ),
        (
            frame(&Frame::Stanza(slim::SWITCH.into())),
            OfflineReason::Protocol(ProtocolFault::Unexpected("slim".to_owned())),
            "undefined-condition",
        ),
    ];
    for (bytes, reason, condition) in cases {
        let mut world = World::slim();
        world.server.manners.deaf = true;
        world.down(&bytes);
        if condition.is_empty() {
            // Read as a frame of 60 bytes that is not whole yet.
            assert_eq!(world.offline(), []);
            continue;
        }
        assert_eq!(world.offline(), [reason]);
        assert_eq!(world.last_bytes(), end(condition));
    }
    let mut world = World::slim();
    world.server.manners.deaf = true;
    world.down(&frame(&Frame::Payload { number: PUSH, bytes: [0xff; 3][..].into() }));
    assert!(matches!(world.offline()[..], [OfflineReason::Protocol(ProtocolFault::Payload(_))]));
}

#[test]
fn without_stream_management_counts_are_out_of_place() {
    for bytes in [slim::ACK_REQUEST.to_vec(), frame(&Frame::Ack(0))] {
        let mut world = world(Slim::Agreed);
        world.server.manners.manageable = false;
        world.start();
        world.pass(Duration::from_mins(1));
        assert_eq!((world.server.pings, world.offline().len()), (1, 0));
        world.down(&bytes);
        assert!(matches!(world.offline()[..], [OfflineReason::Protocol(ProtocolFault::Unexpected(_))]));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Deliver,
    Broadcast,
    Subscribe,
    Click,
    Pass(u64),
    Cut,
    /// What both sides say last does not arrive.
    CutMeanwhile,
    CloseByServer,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Deliver),
        2 => Just(Step::Broadcast),
        2 => Just(Step::Subscribe),
        1 => Just(Step::Click),
        2 => (1u64..200).prop_map(Step::Pass),
        1 => Just(Step::Cut),
        1 => Just(Step::CutMeanwhile),
        1 => Just(Step::CloseByServer),
    ]
}

/// What the application is told, and the messages that the server knows to be acknowledged and clicked.
fn told_after(
    slim: Slim,
    manageable: bool,
    resumable: bool,
    steps: &[Step],
) -> (Vec<Action>, Vec<MessageId>, Vec<MessageId>) {
    let mut world = world(slim);
    (world.server.manners.manageable, world.server.manners.resumable) = (manageable, resumable);
    world.start();
    for (number, step) in (1u16..).zip(steps) {
        let id = u128::from(number);
        match step {
            Step::Deliver => world.deliver(&demo(), id, &id.to_string()),
            Step::Broadcast => world.broadcast(&demo(), id, &id.to_string()),
            Step::Subscribe => world.command(u64::from(number), Command::Subscribe("news".parse().expect("a topic"))),
            Step::Click => world.event(Event::Clicked { app: demo(), id: MessageId(id) }),
            Step::Pass(seconds) => world.pass(Duration::from_secs(*seconds)),
            Step::Cut => world.cut_and_return(),
            Step::CutMeanwhile => {
                world.server.manners.deaf = true;
                world.event(Event::Clicked { app: demo(), id: MessageId(id) });
                world.server.deliver(&demo(), MessageId(id), &id.to_string());
                world.server.manners.deaf = false;
                world.cut_and_return();
            }
            Step::CloseByServer => {
                let close = if world.server.is_slim() { slim::CLOSE.to_vec() } else { b"</stream:stream>".to_vec() };
                world.down(&close);
                world.event(Event::Start);
            }
        }
    }
    world.pass(Duration::from_mins(3));
    let (acked, clicks) = (world.server.acked(), world.server.clicks());
    (world.told, acked, clicks)
}

proptest! {
    #[test]
    fn an_app_can_not_tell_the_forms_apart(
        steps in proptest::collection::vec(step(), 0..20),
        manageable: bool,
        resumable: bool,
    ) {
        let in_xml = told_after(Slim::NotOffered, manageable, resumable, &steps);
        prop_assert_eq!(&told_after(Slim::Agreed, manageable, resumable, &steps), &in_xml);
        prop_assert_eq!(&told_after(Slim::Refused, manageable, resumable, &steps), &in_xml);
    }

    #[test]
    fn no_bytes_make_a_slim_device_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), answered: bool) {
        let mut world = world(if answered { Slim::Agreed } else { Slim::Unanswered });
        world.start();
        world.server.manners.deaf = true;
        world.down(&bytes);
        world.pass(Duration::from_mins(20));
    }

    #[test]
    fn however_the_frames_are_cut_the_device_understands_them(cuts in proptest::collection::vec(1usize..40, 1..60)) {
        let mut world = World::slim();
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
