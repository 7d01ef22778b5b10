//! Channels that others serve: what happens when a service is slow, silent, dead or too busy, and that push never minds. What
//! is said in which order is in the transcripts.

use std::time::Duration;

use campanile_xmpp_frontend::{Limits, Security};
use idl::channel::Payload;
use idl::xml::Event;
use minidom::Element;
use tokio::io::DuplexStream;
use tokio::time::{Instant, sleep};

use crate::harness::{COMPONENT_HEADER, Client, DOMAIN, World, account, item, settled};

const NS_COMPONENT: &str = "jabber:component:accept";
const OPEN: &str = "<iq type='set' id='o7'><open xmlns='urn:campanile:channel:1' number='7'>bG9iYnk=</open></iq>";
const HI: &str = "<message id='hi'><channel xmlns='urn:campanile:channel:1' number='7'>aGk=</channel></message>";

/// Less than the patience of the tests.
const IDLE: Duration = Duration::from_secs(30);

type Peer = Client<DuplexStream>;

/// The service answers the opening that comes next, and says whose it is.
async fn let_in(service: &mut Peer) -> String {
    let asked = service.element().await;
    assert!(asked.has_child("open", "urn:campanile:channel:1"), "{asked:?}");
    let (id, from) = (asked.attr("id").expect("an id"), asked.attr("from").expect("an address").to_owned());
    service.send(&format!("<iq type='result' id='{id}' from='rooms.example.org' to='{from}'/>")).await;
    from
}

/// Opens channel 7, which the service grants.
async fn join(device: &mut Peer, service: &mut Peer) {
    device.send(OPEN).await;
    let_in(service).await;
    let opened = device.element().await;
    assert_eq!((opened.attr("id"), opened.attr("type")), (Some("o7"), Some("result")), "{opened:?}");
}

/// The condition of the error that a stanza is.
fn condition(stanza: &Element) -> String {
    let error = stanza.children().find(|child| child.name() == "error");
    let error = error.unwrap_or_else(|| panic!("an error was expected, not {stanza:?}"));
    error.children().next().expect("a condition").name().to_owned()
}

/// Nothing but the answer to a ping comes next.
async fn nothing_to_hear(service: &mut Peer) {
    service.send("<iq type='get' id='quiet' from='rooms.example.org'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    let element = service.element().await;
    assert_eq!(element.attr("id"), Some("quiet"), "nothing was expected, not {element:?}");
}

fn down(to: &str, payload: &[u8]) -> String {
    let message = Payload { number: 7, bytes: payload.to_vec() }.to_message();
    let attributes = format!("<message from='rooms.example.org' to='{to}'>");
    String::from_utf8(message).expect("text").replacen("<message>", &attributes, 1)
}

fn gone(stanza: &Element) -> &str {
    assert!(stanza.is("presence", NS_COMPONENT) && stanza.attr("type") == Some("unavailable"), "{stanza:?}");
    stanza.attr("from").expect("an address")
}

#[tokio::test(start_paused = true)]
async fn push_goes_on_at_once_beside_a_service_that_reads_nothing() {
    let limits = Limits {
        component_queue_max: 200,
        component_queue_per_device_max: 10_000,
        // All of it happens at one moment.
        stanzas_in_per_second_max: 0,
        ..Limits::default()
    };
    let world = World::with(limits).await;
    let mut service = world.service().await;
    let mut device = world.subscriber(account(1), &[]).await;
    join(&mut device, &mut service).await;
    let epoch = world.middle.epoch(account(1), "r");
    let began = Instant::now();
    let mut refused = 0;
    for round in 0..600_u32 {
        let (single, asked) = (format!("single {round}"), format!("asked {round}"));
        device.send(HI).await;
        device.up(asked.as_bytes()).await;
        assert_eq!(world.deliver(vec![item(account(1), epoch, &[single.as_bytes()])]).await, []);
        // Refusals of the one channel come between what comes on the other.
        let mut heard = Vec::new();
        while heard.len() < 2 {
            let element = device.element().await;
            if element.attr("type") == Some("error") {
                assert_eq!((element.attr("id"), condition(&element).as_str()), (Some("hi"), "resource-constraint"));
                refused += 1;
            } else {
                heard.push(Payload::from_message(&element).expect("a channel").expect("a payload").bytes);
            }
        }
        // The tests' middle answers backwards.
        heard.sort();
        let mut expected = vec![asked.bytes().rev().collect(), single.into_bytes()];
        expected.sort();
        assert_eq!(heard, expected);
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody waited for anything");
    assert!(refused > 0, "the queue of the service is bounded");
    assert_eq!(world.metric("campanile_front_limits_hit_total{limit=\"component_queue_max\"}"), refused);
    assert!(world.metric("campanile_front_channel_waiting_bytes{channel=\"7\"}") > 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_takes_no_bytes_is_cut_off_and_devices_are_told_that_it_is_away() {
    let world = World::with(Limits { component_queue_per_device_max: 10_000, ..Limits::default() }).await;
    let mut service = world.service().await;
    let mut device = world.login(account(1), "r").await;
    join(&mut device, &mut service).await;
    for _ in 0..300 {
        device.send(HI).await;
    }
    device.nothing_more().await;
    sleep(Limits::default().write_time_max + Duration::from_secs(1)).await;
    device.send(HI).await;
    assert_eq!(condition(&device.element().await), "service-unavailable");
    assert_eq!(world.metric("campanile_front_streams_ended_total{reason=\"write_time\",again=\"yes\"}"), 1);
    assert_eq!(world.metric("campanile_front_channel_services{channel=\"7\"}"), 0);
    // A newer connection starts from the beginning, with whom is there.
    drop(service);
    let mut service = world.service().await;
    assert_eq!(let_in(&mut service).await, format!("{}@{DOMAIN}/r", account(1)));
    device.send(HI).await;
    assert_eq!(service.element().await.name(), "message");
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_nobody_answers_is_given_up_and_the_service_hears_that_nobody_is_there() {
    let world = World::new().await;
    let mut service = world.service().await;
    let mut device = world.login(account(1), "r").await;
    let began = Instant::now();
    device.send(OPEN).await;
    device.send(OPEN).await;
    assert_eq!(condition(&device.element().await), "unexpected-request", "one at a time");
    assert_eq!(condition(&device.element().await), "remote-server-timeout");
    assert!((10..=11).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    // The answer comes too late, but the service knows then.
    let address = let_in(&mut service).await;
    assert_eq!(gone(&service.element().await), address);
    device.nothing_more().await;
    join(&mut device, &mut service).await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_service_is_bounded_for_each_device_and_for_all() {
    let limits = Limits { component_queue_per_device_max: 3, component_opens_max: 2, ..Limits::default() };
    let world = World::with(limits).await;
    let mut service = world.service().await;
    let mut flooding = world.login(account(1), "r").await;
    join(&mut flooding, &mut service).await;
    // The connection takes no more from here on.
    let mut other = world.login(account(2), "r").await;
    join(&mut other, &mut service).await;
    let large = "x".repeat(3000);
    let message = Payload { number: 7, bytes: large.into_bytes() }.to_message();
    let message = String::from_utf8(message).expect("text");
    let mut refused = None;
    for _ in 0..20 {
        flooding.send(&message).await;
        settled().await;
    }
    for _ in 0..20 {
        flooding.send("<iq type='get' id='quiet'><ping xmlns='urn:xmpp:ping'/></iq>").await;
        let answer = flooding.element().await;
        if answer.attr("type") == Some("error") {
            refused = Some(condition(&answer));
            break;
        }
    }
    assert_eq!(refused.as_deref(), Some("resource-constraint"));
    assert!(world.metric("campanile_front_limits_hit_total{limit=\"component_queue_per_device_max\"}") > 0);
    // There is room for others all the same.
    other.send(HI).await;
    other.nothing_more().await;
    let mut unanswered = Vec::new();
    for number in 3..5 {
        let mut device = world.login(account(number), "r").await;
        device.send(OPEN).await;
        device.nothing_more().await;
        unanswered.push(device);
    }
    other.send(OPEN).await;
    assert_eq!(condition(&other.element().await), "resource-constraint");
    assert_eq!(world.metric("campanile_front_limits_hit_total{limit=\"component_opens_max\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_channel_is_opened_with_few_bytes_since_they_are_kept() {
    let world = World::with(Limits { component_open_bytes_max: 5, ..Limits::default() }).await;
    let mut service = world.service().await;
    let mut device = world.login(account(1), "r").await;
    join(&mut device, &mut service).await;
    device.send(&OPEN.replace("bG9iYnk=", "bG9iYnkx")).await;
    assert_eq!(condition(&device.element().await), "policy-violation");
    // It is open as it was.
    device.send(HI).await;
    assert_eq!(service.element().await.attr("id"), Some("hi"));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_sends_faster_than_a_device_reads_does_not_end_its_connection() {
    let world = World::with(Limits { outbox_bytes_max: 100_000, ..Limits::default() }).await;
    let mut service = world.service().await;
    let mut device = world.subscriber(account(1), &[]).await;
    join(&mut device, &mut service).await;
    let payload = vec![b'x'; 2000];
    let to = format!("{}@{DOMAIN}/r", account(1));
    let mut refused = 0;
    for _ in 0..60 {
        service.send(&down(&to, &payload)).await;
        settled().await;
    }
    service.send("<iq type='get' id='end' from='rooms.example.org'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    loop {
        let answer = service.element().await;
        if answer.attr("id") == Some("end") {
            break;
        }
        assert_eq!(condition(&answer), "resource-constraint");
        refused += 1;
    }
    assert!((1..60).contains(&refused), "{refused}");
    let epoch = world.middle.epoch(account(1), "r");
    assert_eq!(world.deliver(vec![item(account(1), epoch, &[b"dong"])]).await, [], "there is room for push");
    for _ in 0..60 - refused {
        assert_eq!(device.payload().await, payload);
    }
    assert_eq!(device.payload().await, b"dong");
}

#[tokio::test(start_paused = true)]
async fn a_silent_service_is_asked_for_a_sign_of_life_and_ends_without_one() {
    let world = World::with(Limits { component_idle_time_max: IDLE, ..Limits::default() }).await;
    let mut lively = world.service().await;
    let began = Instant::now();
    for _ in 0..3 {
        let ping = lively.element().await;
        assert!(ping.has_child("ping", "urn:xmpp:ping"), "{ping:?}");
        lively.send("<iq type='result' id='ping' from='rooms.example.org' to='example.org'/>").await;
    }
    assert!(began.elapsed() >= 3 * IDLE, "{:?}", began.elapsed());
    lively.element().await;
    assert_eq!(lively.stream_error().await, "connection-timeout");
}

#[tokio::test(start_paused = true)]
async fn a_lost_stream_that_is_resumed_has_not_left_and_one_that_is_not_has() {
    let world = World::with(Limits { component_idle_time_max: IDLE, ..Limits::default() }).await;
    let mut service = world.service().await;
    let mut device = world.login(account(1), "r").await;
    let id = device.enable().await;
    join(&mut device, &mut service).await;
    drop(device);
    settled().await;
    let mut device = world.connect(Security::Trusted).await;
    device.authenticate(account(1)).await;
    device.send(&format!("<resume xmlns='urn:xmpp:sm:3' h='0' previd='{id}'/>")).await;
    assert_eq!(device.element().await.name(), "resumed");
    // It was not acknowledged.
    assert_eq!(device.element().await.attr("id"), Some("o7"));
    assert_eq!(device.element().await.name(), "r");
    device.send(HI).await;
    assert_eq!(service.element().await.attr("id"), Some("hi"), "the service has heard nothing in between");
    drop(device);
    let began = Instant::now();
    loop {
        let heard = service.element().await;
        if heard.name() == "presence" {
            assert_eq!(gone(&heard), format!("{}@{DOMAIN}/r", account(1)));
            break;
        }
        service.send("<iq type='result' id='ping' from='rooms.example.org' to='example.org'/>").await;
    }
    assert!(began.elapsed() >= Limits::default().resume_time_max);
    assert_eq!(world.metric("campanile_front_channel_members{channel=\"7\"}"), 0);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_an_older_connection_takes_nothing_from_the_newer_one_of_its_name() {
    let world = World::new().await;
    let mut service = world.service().await;
    let mut older = world.login(account(1), "r").await;
    join(&mut older, &mut service).await;
    let mut newer = world.login(account(1), "r").await;
    assert_eq!(older.stream_error().await, "conflict");
    assert_eq!(gone(&service.element().await), format!("{}@{DOMAIN}/r", account(1)));
    join(&mut newer, &mut service).await;
    newer.send(HI).await;
    assert_eq!(service.element().await.attr("id"), Some("hi"));
    service.send(&down(&format!("{}@{DOMAIN}", account(1)), b"you")).await;
    assert_eq!(newer.payload().await, b"you");
}

#[tokio::test(start_paused = true)]
async fn an_older_connection_that_ends_late_takes_nothing_either() {
    let world = World::new().await;
    let mut service = world.service().await;
    let mut older = world.login(account(1), "r").await;
    join(&mut older, &mut service).await;
    // It reads no more, so it can't be told that it has to end.
    let epoch = world.middle.epoch(account(1), "r");
    assert_eq!(world.deliver(vec![item(account(1), epoch, &[&[b'x'; 60_000]])]).await, []);
    let mut newer = world.login(account(1), "r").await;
    join(&mut newer, &mut service).await;
    assert_eq!(world.metric("campanile_front_connections"), 2);
    drop(older);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.metric("campanile_front_connections"), 1);
    nothing_to_hear(&mut service).await;
    newer.send(HI).await;
    assert_eq!(service.element().await.attr("id"), Some("hi"));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_comes_back_is_told_of_a_few_devices_at_a_time() {
    let world = World::with(Limits { announcements_max: 2, ..Limits::default() }).await;
    let mut service = world.service().await;
    let mut devices = Vec::new();
    for number in 1..6 {
        let mut device = world.login(account(number), "r").await;
        join(&mut device, &mut service).await;
        devices.push(device);
    }
    drop(service);
    settled().await;
    // One that leaves meanwhile is not told at all.
    drop(devices.remove(0));
    settled().await;
    let mut service = world.service().await;
    let ids = [service.element().await, service.element().await].map(|asked| asked.attr("id").map(str::to_owned));
    nothing_to_hear(&mut service).await;
    for id in ids.into_iter().flatten() {
        service.send(&format!("<iq type='result' id='{id}' from='rooms.example.org'/>")).await;
    }
    let others = [let_in(&mut service).await, let_in(&mut service).await];
    assert_eq!(others, [4, 5].map(|number| format!("{}@{DOMAIN}/r", account(number))));
    nothing_to_hear(&mut service).await;
    for device in &mut devices {
        device.nothing_more().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_opens_anew_while_the_service_is_told_again_gets_an_answer_of_its_own() {
    let world = World::new().await;
    let mut service = world.service().await;
    let mut device = world.login(account(1), "r").await;
    join(&mut device, &mut service).await;
    drop(service);
    settled().await;
    let mut service = world.service().await;
    let again = service.element().await;
    device.send(OPEN).await;
    let anew = service.element().await;
    // What it says to the opening before says nothing about this one.
    for (asked, kind) in [(again, "error"), (anew, "result")] {
        device.nothing_more().await;
        let id = asked.attr("id").expect("an id");
        service.send(&format!("<iq type='{kind}' id='{id}' from='rooms.example.org'/>")).await;
        settled().await;
    }
    assert_eq!(device.element().await.attr("id"), Some("o7"));
    device.send(HI).await;
    assert_eq!(service.element().await.attr("id"), Some("hi"));
    device.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_in_the_queue_of_a_service_counts_as_handled() {
    let world = World::new().await;
    let mut service = world.service().await;
    let mut device = world.login(account(1), "r").await;
    device.enable().await;
    join(&mut device, &mut service).await;
    assert_eq!(device.element().await.name(), "r");
    device.send(&format!("{HI}{HI}<r xmlns='urn:xmpp:sm:3'/>")).await;
    let handled = device.element().await;
    assert_eq!((handled.name(), handled.attr("h")), ("a", Some("3")), "the service has read none of it");
}

#[tokio::test(start_paused = true)]
async fn connections_of_services_are_bounded_and_a_handshake_has_its_time() {
    let world = World::with(Limits { component_connections_max: 1, ..Limits::default() }).await;
    let mut silent = world.connect_component().await;
    let mut refused = world.connect_component().await;
    assert_eq!(refused.next().await, None);
    silent.send(COMPONENT_HEADER).await;
    assert!(matches!(silent.next().await, Some(Event::Opened(_))));
    let began = Instant::now();
    assert_eq!(silent.stream_error().await, "connection-timeout");
    assert_eq!(began.elapsed().as_secs(), 10);
    settled().await;
    world.service().await;
    for limit in ["component_connections_max", "component_login_time_max"] {
        assert_eq!(world.metric(&format!("campanile_front_limits_hit_total{{limit=\"{limit}\"}}")), 1, "{limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_front_that_drains_says_who_leaves_and_then_goodbye() {
    let world = World::new().await;
    let mut service = world.service().await;
    let mut device = world.login(account(1), "r").await;
    join(&mut device, &mut service).await;
    world.drain.cancel();
    assert_eq!(device.stream_error().await, "system-shutdown");
    assert_eq!(gone(&service.element().await), format!("{}@{DOMAIN}/r", account(1)));
    assert_eq!(service.stream_error().await, "system-shutdown");
    world.serving.await.expect("it ends in order");
}
