//! Too much, too slowly, or too often wrong: which limit ends it. And who says much at once, yet no more than it may.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use campanile_xmpp_frontend::{Limits, Security};
use idl::slim::{self, Frame};
use idl::xml::Event;
use tokio::io::DuplexStream;
use tokio::time::sleep;

use crate::harness::{Client, World, account, settled};

const PING: &str = "<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>";
const WRONG: &str = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGFkbWluAHBhc3N3b3Jk</auth>";

fn hit(world: &World, limit: &str) -> u64 {
    world.metric(&format!("campanile_front_limits_hit_total{{limit=\"{limit}\"}}"))
}

fn ended(world: &World, reason: &str) -> u64 {
    world.metric(&format!("campanile_front_streams_ended_total{{reason=\"{reason}\",again=\"yes\"}}"))
}

/// So many pings are answered.
async fn answered(client: &mut Client<DuplexStream>, count: usize) {
    for _ in 0..count {
        assert_eq!(client.element().await.attr("type"), Some("result"));
    }
}

#[tokio::test(start_paused = true)]
async fn who_pings_without_end_is_ended_and_who_pings_now_and_then_is_answered() {
    let world = World::with(Limits { stanzas_in_per_second_max: 10, ..Limits::default() }).await;
    let mut client = world.login(account(1), "r").await;
    for _ in 0..3 {
        client.send(&PING.repeat(9)).await;
        answered(&mut client, 9).await;
        sleep(Duration::from_millis(1500)).await;
    }
    client.send(&PING.repeat(11)).await;
    answered(&mut client, 10).await;
    assert_eq!(client.stream_error().await, "policy-violation");
    assert_eq!((ended(&world, "stanza_rate"), hit(&world, "stanzas_in_per_second_max")), (1, 1));
}

/// 200 pings, which are few enough for [`Limits::default`] and more than one turn takes.
const MANY: usize = 200;

/// What the front has acted on so far.
fn stanzas_in(world: &World) -> u64 {
    world.metric("campanile_front_stanzas_in_total")
}

#[tokio::test(start_paused = true)]
async fn who_says_much_at_once_does_not_keep_others_waiting_until_it_is_done() {
    let world = World::new().await;
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    world.acceptor.accept(theirs, IpAddr::V4(Ipv4Addr::LOCALHOST), Security::Trusted).await;
    let mut eager = Client::new(ours);
    eager.log_in(account(1), "r").await;
    let mut other = world.login(account(2), "r").await;
    let before = stanzas_in(&world);
    eager.send(&PING.repeat(MANY)).await;
    other.send(PING).await;
    assert_eq!(other.element().await.attr("type"), Some("result"));
    assert!(stanzas_in(&world) < before + MANY as u64, "the other was heard before all of the first was acted on");
    answered(&mut eager, MANY).await;
    assert_eq!(stanzas_in(&world), before + MANY as u64 + 1, "nothing is acted on twice");
}

#[tokio::test(start_paused = true)]
async fn what_is_left_for_another_turn_counts_once() {
    let pings = PING.repeat(MANY);
    let limits = Limits { bytes_in_per_second_max: pings.len(), stanzas_in_per_second_max: MANY, ..Limits::default() };
    let world = World::with(limits).await;
    let mut client = world.login(account(1), "r").await;
    sleep(Duration::from_secs(2)).await;
    client.send(&pings).await;
    answered(&mut client, MANY).await;
    // One byte more is one too many.
    client.send(" ").await;
    assert_eq!(client.stream_error().await, "policy-violation");
    assert_eq!((ended(&world, "byte_rate"), ended(&world, "stanza_rate")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_client_may_go_on_in_slim_within_what_it_says_at_once() {
    let world = World::new().await;
    let mut client = world.login(account(1), "r").await;
    let before = stanzas_in(&world);
    let mut frames = Vec::new();
    for number in 0..MANY {
        Frame::Stanza(PING.replace("'p'", &format!("'{number}'")).into()).write(&mut frames);
    }
    let frames = String::from_utf8(frames).expect("text in frames");
    // The request is the last that one turn acts on: what is left for the next are frames.
    client.send(&format!("{}{}{frames}", PING.repeat(31), slim::SWITCH)).await;
    settled().await;
    assert_eq!(stanzas_in(&world), before + 31 + 1 + MANY as u64);
}

#[tokio::test(start_paused = true)]
async fn who_has_much_to_read_when_the_stream_ends_reads_it_before_the_end() {
    let world = World::with(Limits { stanzas_in_per_second_max: 10, ..Limits::default() }).await;
    let mut client = world.login(account(1), "r").await;
    // Answers are as long as questions: more than goes out in one write.
    client.send(&PING.replace("'p'", &format!("'{}'", "p".repeat(8000))).repeat(11)).await;
    answered(&mut client, 10).await;
    assert_eq!(client.stream_error().await, "policy-violation");
}

#[tokio::test(start_paused = true)]
async fn pings_in_slim_and_requests_for_channels_that_are_not_there_count_as_well() {
    let world = World::with(Limits { stanzas_in_per_second_max: 10, ..Limits::default() }).await;
    let mut client = world.login(account(1), "r").await;
    client
        .send("<iq type='set' id='o'><open xmlns='urn:campanile:channel:1' number='999'/></iq>".repeat(11).as_str())
        .await;
    for _ in 0..10 {
        assert_eq!(client.element().await.attr("type"), Some("error"));
    }
    assert_eq!(client.stream_error().await, "policy-violation");

    let mut client = world.login(account(2), "r").await;
    let mut pings = Vec::new();
    for _ in 0..11 {
        Frame::Ping.write(&mut pings);
    }
    client.send(slim::SWITCH).await;
    sleep(Duration::from_secs(2)).await;
    client.send(std::str::from_utf8(&pings).expect("frames of ASCII")).await;
    world.middle.wait_for("Disconnect", 2).await;
    assert_eq!(ended(&world, "stanza_rate"), 2);
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_that_were_asked_for_are_no_flood() {
    let world = World::with(Limits { stanzas_in_per_second_max: 10, ..Limits::default() }).await;
    let mut client = world.login(account(1), "r").await;
    client.enable().await;
    client.send(&"<a xmlns='urn:xmpp:sm:3' h='0'/>".repeat(200)).await;
    client.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    assert_eq!(client.element().await.name(), "a");
}

#[tokio::test(start_paused = true)]
async fn white_space_keeps_a_connection_alive_but_not_any_amount_of_it() {
    let world = World::with(Limits { bytes_in_per_second_max: 1000, ..Limits::default() }).await;
    let mut client = world.login(account(1), "r").await;
    sleep(Duration::from_secs(2)).await;
    client.send(&" ".repeat(900)).await;
    client.nothing_more().await;
    sleep(Duration::from_secs(2)).await;
    client.send(&" ".repeat(1001)).await;
    assert_eq!(client.stream_error().await, "policy-violation");
    assert_eq!((ended(&world, "byte_rate"), hit(&world, "bytes_in_per_second_max")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stanza_that_is_fed_bit_by_bit_is_ended_in_xml_and_in_slim() {
    let world = World::new().await;
    let mut slow = world.login(account(1), "r").await;
    // The first tag has no end either.
    slow.send("<message to='").await;
    for _ in 0..59 {
        sleep(Duration::from_secs(1)).await;
        slow.send("x").await;
    }
    assert_eq!(ended(&world, "stanza_time"), 0);
    sleep(Duration::from_secs(2)).await;
    slow.send("x").await;
    assert_eq!(slow.stream_error().await, "policy-violation");

    let mut slow = world.login(account(2), "r").await;
    slow.send(&format!("{}\u{7f}", slim::SWITCH)).await;
    for _ in 0..62 {
        sleep(Duration::from_secs(1)).await;
        slow.send("\u{7}").await;
    }
    world.middle.wait_for("Disconnect", 2).await;
    assert_eq!((ended(&world, "stanza_time"), hit(&world, "stanza_time_max")), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn whole_stanzas_and_the_silence_between_them_may_take_their_time() {
    let world = World::new().await;
    let mut client = world.login(account(1), "r").await;
    for _ in 0..5 {
        client.send("<iq type='get' id='p'>").await;
        sleep(Duration::from_secs(50)).await;
        client.send("<ping xmlns='urn:xmpp:ping'/></iq> ").await;
        assert_eq!(client.element().await.attr("type"), Some("result"));
        sleep(Duration::from_mins(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_whose_logins_fail_too_often_is_refused_for_a_while_and_others_are_not() {
    let limits = Limits { login_attempts_max: 10, failed_logins_per_address_per_minute_max: 4, ..Limits::default() };
    let world = World::with(limits).await;
    let mut honest = world.connect(Security::Trusted).await;
    honest.open_stream().await;
    honest.send(WRONG).await;
    assert_eq!(honest.element().await.name(), "failure");
    honest.show_token(account(1)).await;
    honest.bind("r").await;

    let mut hostile = world.connect(Security::Trusted).await;
    hostile.open_stream().await;
    for _ in 0..4 {
        hostile.send(WRONG).await;
        assert_eq!(hostile.element().await.name(), "failure");
    }
    let mut next = world.connect(Security::Trusted).await;
    assert!(matches!(next.next().await, Some(Event::Opened(_))));
    assert_eq!(next.stream_error().await, "policy-violation");
    hostile.send(WRONG).await;
    assert_eq!(hostile.element().await.name(), "failure");
    assert_eq!(hostile.stream_error().await, "policy-violation");
    let (ours, theirs) = tokio::io::duplex(4096);
    world.acceptor.accept(theirs, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), Security::Trusted).await;
    Client::new(ours).log_in(account(2), "r").await;
    assert_eq!((ended(&world, "failed_logins"), hit(&world, "failed_logins_per_address_per_minute_max")), (2, 2));

    honest.nothing_more().await;
    sleep(Duration::from_mins(1)).await;
    world.login(account(3), "r").await;
}

#[tokio::test(start_paused = true)]
async fn one_address_does_not_keep_others_from_logging_in_by_logins_of_its_own() {
    let world = World::with(Limits { handshakes_max: 3, handshakes_per_address_max: 2, ..Limits::default() }).await;
    let _silent = [world.connect(Security::Trusted).await, world.connect(Security::Trusted).await];
    let mut third = world.connect(Security::Trusted).await;
    assert!(matches!(third.next().await, Some(Event::Opened(_))));
    assert_eq!(third.stream_error().await, "policy-violation");
    let (ours, theirs) = tokio::io::duplex(4096);
    world.acceptor.accept(theirs, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), Security::Trusted).await;
    Client::new(ours).log_in(account(1), "r").await;
    assert_eq!(hit(&world, "handshakes_per_address_max"), 1);
}
