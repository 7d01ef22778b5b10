//! Heartbeats, ends of streams, coming back, resumption.

use std::time::Duration;

use campanile_sdk_android_bridge::{Action, Event, OfflineReason};

use crate::world::{World, demo};

const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";

fn stream_error(condition: &str) -> Vec<u8> {
    format!("<stream:error><{condition} xmlns='{STREAM_ERRORS}'/></stream:error></stream:stream>").into_bytes()
}

/// The waits before each attempt but the first.
fn waits(world: &World) -> Vec<u64> {
    world.attempts_ms.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[test]
fn the_waits_between_attempts_stay_within_bounds_that_double() {
    for seed in 0..20 {
        let mut world =
            World::with(crate::world::config(), vec![], campanile_sdk_android_bridge::Saved::default(), seed);
        world.reachable = false;
        world.start();
        world.pass(Duration::from_hours(2));
        let waits = waits(&world);
        assert!(waits.len() > 15, "{waits:?}");
        for (failures, wait) in waits.iter().enumerate() {
            let bound = 300_000.min(1000u64 << failures.min(20));
            assert!(*wait <= bound, "wait {failures} of seed {seed} is {wait} ms, over {bound}");
        }
        assert!(waits.iter().any(|wait| *wait > 60_000), "the waits grow: {waits:?}");
    }
}

#[test]
fn a_stable_connection_makes_the_next_wait_small_again() {
    let mut world = World::new();
    world.reachable = false;
    world.start();
    world.pass(Duration::from_hours(1));
    world.reachable = true;
    world.event(Event::Start);
    world.pass(Duration::from_mins(2));
    world.cut();
    let before = world.attempts_ms.len();
    world.pass(Duration::from_secs(1));
    assert_eq!(world.attempts_ms.len(), before + 1);
}

#[test]
fn a_silent_server_is_asked_and_then_left() {
    let mut world = World::online();
    world.pass(Duration::from_secs(59));
    world.server.manners.deaf = true;
    world.pass(Duration::from_secs(1));
    let asked = world.wire.last().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned());
    assert_eq!(asked.as_deref(), Some("<iq type='get' id='ping'><ping xmlns='urn:xmpp:ping'/></iq>"));
    world.pass(Duration::from_secs(29));
    assert_eq!(world.offline(), []);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.offline(), [OfflineReason::HeartbeatTimedOut]);
}

#[test]
fn a_server_that_answers_heartbeats_is_kept() {
    let mut world = World::online();
    world.pass(Duration::from_hours(1));
    assert_eq!(world.offline(), []);
    let pings = world.server.elements.iter().filter(|element| element.contains("urn:xmpp:ping")).count();
    assert_eq!(pings, 60);
}

#[test]
fn a_server_that_pings_is_answered_and_one_that_asks_else_is_refused() {
    let mut world = World::online();
    world.server.manners.deaf = true;
    world.down(b"<iq type='get' id='a&amp;b' from='push.example.org'><ping xmlns='urn:xmpp:ping'/></iq>");
    let answer = world.wire.last().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned());
    assert_eq!(answer.as_deref(), Some("<iq type='result' id='a&amp;b' to='push.example.org'/>"));
    world.down(b"<iq type='set' id='1'><query xmlns='jabber:iq:roster'/></iq>");
    let answer = world.wire.last().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).expect("an answer");
    assert!(answer.starts_with("<iq type='error' id='1'>") && answer.contains("service-unavailable"), "{answer}");
}

#[test]
fn another_device_on_the_account_is_not_thrown_out_in_turn() {
    let mut world = World::online();
    world.down(&stream_error("conflict"));
    assert_eq!(world.offline(), [OfflineReason::Conflict]);
    assert!(world.server.closed && !world.connected);
    world.pass(Duration::from_secs(149));
    assert_eq!(world.attempts_ms.len(), 1, "it waits at least half of the longest wait");
    world.pass(Duration::from_secs(151));
    assert_eq!(world.attempts_ms.len(), 2);
}

#[test]
fn a_server_that_shuts_down_is_come_back_to_after_a_random_while() {
    let mut seen = Vec::new();
    for (seed, condition) in (0..10).flat_map(|seed| [(seed, "system-shutdown"), (seed, "see-other-host")]) {
        let apps = vec![crate::world::app_config(demo())];
        let mut world = World::with(crate::world::config(), apps, campanile_sdk_android_bridge::Saved::default(), seed);
        world.start();
        world.pass(Duration::from_mins(2));
        world.down(&stream_error(condition));
        assert_eq!(world.offline(), [OfflineReason::AskedToLeave(condition.to_owned())]);
        let left_ms = world.now_ms;
        world.pass(Duration::from_secs(8));
        let waited_ms = world.attempts_ms[1] - left_ms;
        assert!((1000..=8000).contains(&waited_ms), "{waited_ms} ms");
        seen.push(waited_ms);
    }
    seen.sort_unstable();
    assert!(seen.last() > seen.first(), "not all come back at once: {seen:?}");
}

#[test]
fn a_stopped_device_acknowledges_and_closes_its_stream() {
    let mut world = World::online();
    world.deliver(&demo(), 1, "one");
    world.event(Event::Stop);
    assert_eq!(world.server.acked().len(), 1);
    assert!(world.server.closed && !world.connected);
    assert_eq!(world.offline(), [OfflineReason::Stopped]);
    world.pass(Duration::from_hours(1));
    assert_eq!(world.attempts_ms.len(), 1, "it does not come back");
    world.start();
    assert_eq!(world.attempts_ms.len(), 2, "until it is started");
}

#[test]
fn a_cut_stream_is_resumed_and_nothing_is_lost_on_the_way() {
    let mut world = World::new();
    world.server.manners.manageable = true;
    world.start();
    // The device says something that does not arrive, and the server too.
    world.server.manners.deaf = true;
    world.event(Event::Clicked { app: demo(), id: idl::ids::MessageId(9) });
    let lost = world.server.deliver(&demo(), idl::ids::MessageId(1), "one");
    assert!(!lost.is_empty());
    world.server.manners.deaf = false;
    world.cut_and_return();
    assert_eq!((world.server.resumptions, world.server.hellos.len()), (1, 1), "the channel was not opened again");
    let clicks = world.server.said.iter().filter(|said| said.clicked.is_some()).count();
    assert_eq!(clicks, 1);
    assert_eq!(world.pushed(), ["one"]);
    assert_eq!(world.ready().len(), 2);
    world.pass(Duration::from_mins(1));
    assert_eq!(world.server.acked().len(), 1);
}

#[test]
fn a_stream_that_the_server_has_forgotten_is_begun_anew() {
    let mut world = World::new();
    world.server.manners.manageable = true;
    world.start();
    world.cut();
    world.server.manners.resumable = false;
    world.event(Event::Start);
    assert_eq!((world.server.resumptions, world.server.hellos.len()), (0, 2));
    assert_eq!(world.ready().len(), 2);
    world.deliver(&demo(), 1, "one");
    assert_eq!(world.pushed(), ["one"]);
}

#[test]
fn a_managed_stream_is_asked_for_its_count_instead_of_a_ping() {
    let mut world = World::new();
    world.server.manners.manageable = true;
    world.start();
    world.pass(Duration::from_mins(10));
    assert!(world.server.elements.iter().any(|element| element.starts_with("<r ")));
    assert!(!world.server.elements.iter().any(|element| element.contains("urn:xmpp:ping")));
    assert_eq!(world.offline(), []);
}

#[test]
fn a_clean_end_of_stream_is_not_resumed() {
    let mut world = World::new();
    world.server.manners.manageable = true;
    world.start();
    world.down(b"</stream:stream>");
    assert_eq!(world.offline(), [OfflineReason::StreamClosed]);
    world.event(Event::Start);
    assert_eq!((world.server.resumptions, world.server.hellos.len()), (0, 2));
}

#[test]
fn an_attempt_that_fails_is_told_once_each() {
    let mut world = World::new();
    world.reachable = false;
    world.start();
    assert_eq!(world.offline(), [OfflineReason::ConnectFailed]);
    assert_eq!(world.told.iter().filter(|told| matches!(told, Action::Offline { .. })).count(), 1);
}
