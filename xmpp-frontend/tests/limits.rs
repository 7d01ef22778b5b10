//! Each limit, and what happens at it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use campanile_xmpp_frontend::{Config, Dependencies, Front, Limits, Security};
use idl::error::Code;
use idl::xml::Event;
use tokio::time::{Instant, sleep};

use crate::harness::{Client, DOMAIN, World, account, item};

#[tokio::test(start_paused = true)]
async fn connections_of_one_address_are_bounded_and_a_place_given_back_is_free() {
    let world = World::with(Limits { connections_per_address_max: 2, ..Limits::default() }).await;
    let _first = world.login(account(1), "r").await;
    let second = world.login(account(2), "r").await;
    let mut third = world.connect(Security::Trusted).await;
    assert!(matches!(third.next().await, Some(Event::Opened(_))));
    assert_eq!(third.stream_error().await, "policy-violation");
    let (ours, theirs) = tokio::io::duplex(4096);
    world.acceptor.accept(theirs, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), Security::Trusted).await;
    Client::new(ours).log_in(account(3), "r").await;
    drop(second);
    sleep(Duration::from_secs(5)).await;
    world.login(account(4), "r").await;
    let hit = "campanile_front_limits_hit_total{limit=\"connections_per_address_max\"}";
    assert_eq!(world.metric(hit), 1);
}

#[tokio::test(start_paused = true)]
async fn connections_are_bounded() {
    let world = World::with(Limits { connections_max: 1, ..Limits::default() }).await;
    let _first = world.login(account(1), "r").await;
    let mut second = world.connect(Security::StartTls).await;
    assert!(matches!(second.next().await, Some(Event::Opened(_))));
    assert_eq!(second.stream_error().await, "resource-constraint");
    // Before TLS there is no stream to say it on.
    assert_eq!(world.connect(Security::DirectTls).await.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn logins_under_way_are_bounded() {
    let world = World::with(Limits { handshakes_max: 1, ..Limits::default() }).await;
    let mut first = world.connect(Security::Trusted).await;
    first.open_stream().await;
    let mut second = world.connect(Security::Trusted).await;
    assert!(matches!(second.next().await, Some(Event::Opened(_))));
    assert_eq!(second.stream_error().await, "resource-constraint");
    first.show_token(account(1)).await;
    first.bind("r").await;
    world.login(account(2), "r").await;
}

#[tokio::test(start_paused = true)]
async fn a_login_that_takes_too_long_ends_with_connection_timeout() {
    let world = World::new().await;
    let began = Instant::now();
    let mut silent = world.connect(Security::Trusted).await;
    let mut slow = world.connect(Security::Trusted).await;
    slow.open_stream().await;
    sleep(Duration::from_secs(20)).await;
    slow.show_token(account(1)).await;
    assert_eq!(slow.stream_error().await, "connection-timeout");
    assert!(matches!(silent.next().await, Some(Event::Opened(_))));
    assert_eq!(silent.stream_error().await, "connection-timeout");
    assert_eq!(began.elapsed().as_secs(), 30);
    // A handshake that never comes is cut off, without a word.
    assert_eq!(world.connect(Security::DirectTls).await.next().await, None);
    assert_eq!(world.metric("campanile_front_limits_hit_total{limit=\"login_time_max\"}"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_cut_off_and_what_was_for_it_is_gone() {
    let limits = Limits { outbox_bytes_max: 64 * 1024, ..Limits::default() };
    let world = World::with(limits).await;
    let mut client = world.subscriber(account(1), &[]).await;
    let epoch = world.middle.epoch(account(1), "r");
    let payload = vec![b'x'; 10_000];
    let mut delivered = 0;
    while world.deliver(vec![item(account(1), epoch, &[&payload])]).await.is_empty() {
        delivered += 1;
        assert!(delivered < 20, "the outbox has a limit");
    }
    // What had been taken comes, in order, then the end.
    for _ in 0..delivered {
        assert_eq!(client.payload().await, payload);
    }
    assert_eq!(client.stream_error().await, "resource-constraint");
    assert_eq!(world.metric("campanile_front_limits_hit_total{limit=\"outbox_bytes_max\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_bytes_is_lost_after_a_while() {
    let world = World::new().await;
    let _silent = world.subscriber(account(1), &[]).await;
    let epoch = world.middle.epoch(account(1), "r");
    for _ in 0..4 {
        assert_eq!(world.deliver(vec![item(account(1), epoch, &[&[b'x'; 10_000]])]).await, []);
    }
    world.middle.wait_for("Disconnect", 1).await;
    assert_eq!(world.metric("campanile_front_limits_hit_total{limit=\"write_time_max\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_bytes_is_lost_after_a_while_also_when_its_place_is_another_s() {
    let limits = Limits { outbox_bytes_max: 64 * 1024, ..Limits::default() };
    let world = World::with(limits).await;
    let _replaced = world.subscriber(account(1), &[]).await;
    let _flooded = world.subscriber(account(2), &[]).await;
    let stall = async |number| {
        let epoch = world.middle.epoch(account(number), "r");
        world.deliver(vec![item(account(number), epoch, &[&[b'x'; 30_000]])]).await
    };
    assert_eq!(stall(1).await, []);
    let _newer = world.login(account(1), "r").await;
    while stall(2).await.is_empty() {}
    assert_eq!(world.metric("campanile_front_connections"), 3);
    sleep(Duration::from_mins(2)).await;
    assert_eq!(world.metric("campanile_front_connections"), 1);
    let ended = |reason: &str, again: &str| {
        world.metric(&format!("campanile_front_streams_ended_total{{reason=\"{reason}\",again=\"{again}\"}}"))
    };
    assert_eq!((ended("conflict", "no"), ended("outbox_full", "yes")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn too_many_payloads_at_once_end_the_stream() {
    let world = World::with(Limits { channel_queue_max: 3, ..Limits::default() }).await;
    let mut client = world.subscriber(account(1), &[]).await;
    world.middle.hold("ChannelUp");
    client.up(b"abc").await;
    world.middle.wait_for("ChannelUp", 1).await;
    for _ in 0..4 {
        client.up(b"abc").await;
    }
    assert_eq!(client.stream_error().await, "policy-violation");
    // What was taken is still handed on, one after the other.
    world.middle.let_go("ChannelUp");
    world.middle.wait_for("Disconnect", 1).await;
    let ups = world.middle.asked().iter().filter(|asked| asked.name() == "ChannelUp").count();
    assert_eq!(ups, 4);
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_asked_for_a_sign_of_life_and_then_ended() {
    let world = World::new().await;
    let mut client = world.login(account(1), "r").await;
    let mut quiet = world.login(account(2), "r").await;
    for _ in 0..3 {
        sleep(Duration::from_mins(14)).await;
        client.send(" ").await;
        sleep(Duration::from_mins(1)).await;
        let ping = client.element().await;
        assert!(ping.has_child("ping", "urn:xmpp:ping"), "{ping:?}");
        client.send(&format!("<iq type='result' id='{}'/>", ping.attr("id").expect("an id"))).await;
    }
    client.nothing_more().await;
    assert!(quiet.element().await.has_child("ping", "urn:xmpp:ping"));
    assert_eq!(quiet.stream_error().await, "connection-timeout");
}

#[tokio::test(start_paused = true)]
async fn a_middle_that_does_not_answer_a_login_ends_it_with_a_reason_to_come_back() {
    let world = World::new().await;
    for _ in 0..100 {
        world.middle.fail("Connect", Code::Busy);
    }
    let mut client = world.connect(Security::Trusted).await;
    client.authenticate(account(1)).await;
    client.send("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>").await;
    assert_eq!(client.stream_error().await, "resource-constraint");
}

#[tokio::test(start_paused = true)]
async fn an_account_that_is_gone_can_not_bind() {
    let world = World::new().await;
    world.middle.fail("Connect", Code::UnknownAccount);
    let mut client = world.connect(Security::Trusted).await;
    client.authenticate(account(1)).await;
    client.send("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>").await;
    assert_eq!(client.stream_error().await, "not-authorized");
}

#[tokio::test]
async fn a_plain_listener_must_be_on_loopback_unless_that_is_allowed() {
    let bind = async |listener: Config| {
        let bus = std::sync::Arc::new(idl::bus::InProcess::new(
            idl::bus::Limits::default(),
            std::sync::Arc::new(idl::clock::SystemClock),
            std::sync::Arc::new(idl::clock::SystemEntropy),
        ));
        let front = idl::ids::FrontId(1);
        let config = Config { domain: DOMAIN.to_owned(), ..listener };
        let dependencies = Dependencies {
            inbox: bus.attach_front(front),
            bus,
            front,
            keys: crate::harness::keys(),
            tls: crate::tls::server_config(),
            clock: std::sync::Arc::new(idl::clock::SystemClock),
            entropy: std::sync::Arc::new(idl::clock::SystemEntropy),
        };
        let mut registry = prometheus_client::registry::Registry::default();
        Front::build(config, dependencies, &mut registry).bind().await.map(|bound| bound.addresses())
    };
    let at = |address: &str| Some(address.parse().expect("an address"));
    for remote in [
        Config { plain: at("0.0.0.0:0"), ..Config::default() },
        Config { component: at("0.0.0.0:0"), ..Config::default() },
    ] {
        let error = bind(remote.clone()).await.expect_err("not on loopback");
        assert!(error.to_string().contains("allow_plain_remote"), "{error}");
        assert!(bind(Config { allow_plain_remote: true, ..remote }).await.is_ok());
    }
    let local = Config { plain: at("127.0.0.1:0"), component: at("127.0.0.1:0"), ..Config::default() };
    let addresses = bind(local).await.expect("free ports");
    for address in [addresses.plain, addresses.component] {
        assert!(address.is_some_and(|address| address.port() != 0));
    }
    assert_eq!(addresses.tls, None);
}
