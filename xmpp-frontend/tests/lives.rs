//! How connections and the front itself begin and end.

use std::time::Duration;

use campanile_xmpp_frontend::{Limits, Security};
use idl::bus::{Bus as _, FrontEvent, Request};
use idl::contract::bus::TokenRevoked;
use idl::error::Code;
use idl::xml::Event;
use tokio::time::{Instant, sleep};

use crate::harness::{Client, NOW_MS, World, account, entry, item};

async fn resume(world: &World, number: u128, id: &str, handled: u32) -> (Client<tokio::io::DuplexStream>, String) {
    let mut client = world.connect(Security::Trusted).await;
    client.authenticate(account(number)).await;
    client.send(&format!("<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='{handled}'/>")).await;
    let answer = client.element().await.name().to_owned();
    (client, answer)
}

fn disconnects(world: &World) -> usize {
    world.middle.asked().iter().filter(|asked| asked.name() == "Disconnect").count()
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_for_good_gives_its_route_back_even_if_that_takes_tries() {
    let world = World::new().await;
    let mut client = world.login(account(1), "r").await;
    world.middle.fail("Disconnect", Code::Busy);
    client.send("</stream:stream>").await;
    assert_eq!(client.next().await, Some(Event::Closed));
    assert_eq!(client.next().await, None);
    world.middle.wait_for("Disconnect", 2).await;
    let epoch = world.middle.epoch(account(1), "r").to_bytes().to_vec();
    assert!(
        world.middle.asked().iter().any(|asked| {
            matches!(asked, Request::Disconnect(ended) if ended.epoch == epoch && ended.resource == "r")
        })
    );
    assert_eq!(world.metric("campanile_front_lines"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_given_its_route_back_is_not_announced_any_more() {
    let world = World::with(Limits { announcements_max: 1, ..Limits::default() }).await;
    let _first = world.login(account(1), "r").await;
    let mut second = world.login(account(2), "r").await;
    world.middle.hold("Connect");
    world.middle.set_generation(2);
    // The first is being announced, the second waits for its turn, and ends.
    world.middle.wait_for("Connect", 3).await;
    second.send("</stream:stream>").await;
    world.middle.wait_for("Disconnect", 1).await;
    world.middle.let_go("Connect");
    sleep(Duration::from_secs(10)).await;
    let connects = world
        .middle
        .asked()
        .into_iter()
        .filter(|asked| matches!(asked, Request::Connect(connect) if connect.account == account(2).to_string()));
    assert_eq!(connects.count(), 1, "its login");
}

#[tokio::test(start_paused = true)]
async fn a_lost_stream_ends_for_good_when_it_is_not_resumed_in_time() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    let epoch = world.middle.epoch(account(1), "r");
    let id = client.enable().await;
    drop(client);
    sleep(Duration::from_secs(299)).await;
    assert_eq!(disconnects(&world), 0);
    assert_eq!(world.deliver(vec![item(account(1), epoch, &[b"kept"])]).await, []);
    sleep(Duration::from_secs(2)).await;
    world.middle.wait_for("Disconnect", 1).await;
    assert_eq!(world.deliver(vec![item(account(1), epoch, &[b"lost"])]).await, [0]);
    assert_eq!(resume(&world, 1, &id, 0).await.1, "failed");
    assert_eq!(world.metric("campanile_front_resumable"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_resumed_by_its_own_account_alone_and_keeps_its_epoch_and_index() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &["news"]).await;
    let epoch = world.middle.epoch(account(1), "r");
    let id = client.enable().await;
    drop(client);
    sleep(Duration::from_secs(1)).await;
    world.broadcast(Some("news"), b"missed").await;
    assert_eq!(resume(&world, 2, &id, 0).await.1, "failed");
    let (mut client, answer) = resume(&world, 1, &id, 0).await;
    assert_eq!(answer, "resumed");
    assert_eq!(client.payload().await, b"missed");
    assert_eq!(client.element().await.name(), "r");
    assert_eq!(world.deliver(vec![item(account(1), epoch, &[b"live"])]).await, []);
    assert_eq!(client.payload().await, b"live");
    assert_eq!(world.metric("campanile_front_resumed_total"), 1);
    // And again, with the same id.
    drop(client);
    sleep(Duration::from_secs(1)).await;
    let (mut client, answer) = resume(&world, 1, &id, 1).await;
    assert_eq!(answer, "resumed");
    assert_eq!(client.payload().await, b"live");
    sleep(Duration::from_mins(10)).await;
    assert_eq!(disconnects(&world), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_only_the_client_knows_to_be_lost_is_resumed_too() {
    let world = World::new().await;
    let mut older = world.subscriber(account(1), &[]).await;
    let id = older.enable().await;
    let (mut newer, answer) = resume(&world, 1, &id, 0).await;
    assert_eq!(answer, "resumed");
    assert_eq!(older.stream_error().await, "conflict");
    world.broadcast(None, b"all").await;
    assert_eq!(newer.payload().await, b"all");
}

#[tokio::test(start_paused = true)]
async fn a_lost_stream_without_room_left_ends_for_good() {
    let limits = Limits { outbox_bytes_max: 4096, resumable_max: 1, ..Limits::default() };
    let world = World::with(limits).await;
    let mut client = world.subscriber(account(1), &[]).await;
    let epoch = world.middle.epoch(account(1), "r");
    let id = client.enable().await;
    drop(client);
    sleep(Duration::from_secs(1)).await;
    // There is a place for one lost stream only.
    let mut second = world.login(account(2), "r").await;
    second.enable().await;
    drop(second);
    world.middle.wait_for("Disconnect", 1).await;
    assert_eq!(world.metric("campanile_front_limits_hit_total{limit=\"resumable_max\"}"), 1);
    // And its outbox is bounded.
    assert_eq!(world.deliver(vec![item(account(1), epoch, &[b"small"])]).await, []);
    assert_eq!(world.deliver(vec![item(account(1), epoch, &[&[b'x'; 4096]])]).await, [0]);
    world.middle.wait_for("Disconnect", 2).await;
    assert_eq!(resume(&world, 1, &id, 0).await.1, "failed");
}

#[tokio::test(start_paused = true)]
async fn a_payload_counts_as_handled_when_the_middle_has_it_and_not_before() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    let id = client.enable().await;
    world.middle.hold("ChannelUp");
    client.up(b"abc").await;
    client.send("<presence type='error'/><r xmlns='urn:xmpp:sm:3'/>").await;
    assert_eq!(client.element().await.attr("h"), Some("0"));
    world.middle.let_go("ChannelUp");
    assert_eq!(client.payload().await, b"cba");
    assert_eq!(client.element().await.name(), "r");
    client.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    assert_eq!(client.element().await.attr("h"), Some("2"));
    // A payload that was on its way when the stream was lost is handed on all the same.
    world.middle.hold("ChannelUp");
    client.up(b"def").await;
    world.middle.wait_for("ChannelUp", 2).await;
    drop(client);
    world.middle.let_go("ChannelUp");
    sleep(Duration::from_secs(1)).await;
    let (mut client, answer) = resume(&world, 1, &id, 1).await;
    assert_eq!(answer, "resumed");
    assert_eq!(client.payload().await, b"fed");
}

#[tokio::test(start_paused = true)]
async fn a_newer_login_ends_a_lost_stream_as_well() {
    let world = World::new().await;
    let mut older = world.login(account(1), "r").await;
    let id = older.enable().await;
    drop(older);
    sleep(Duration::from_secs(1)).await;
    let _newer = world.login(account(1), "r").await;
    assert_eq!(resume(&world, 1, &id, 0).await.1, "failed");
    assert_eq!(world.metric("campanile_front_lines"), 1);
}

#[tokio::test(start_paused = true)]
async fn revoking_ends_what_was_opened_with_older_tokens_only() {
    let world = World::new().await;
    let mut old = world.login(account(1), "r").await;
    let mut lost = world.login(account(1), "lost").await;
    let id = lost.enable().await;
    drop(lost);
    let mut other = world.login(account(2), "r").await;
    sleep(Duration::from_secs(1)).await;
    let revoke = |account: idl::ids::AccountId, issued_before_ms| {
        FrontEvent::TokenRevoked(TokenRevoked {
            account: account.to_string(),
            issued_before_ms: i64::try_from(issued_before_ms).expect("a time"),
        })
    };
    // The token was issued at that very moment: it is not older.
    world.bus.publish(revoke(account(2), NOW_MS), Instant::now()).await.expect("published");
    world.bus.publish(revoke(account(1), NOW_MS + 1), Instant::now()).await.expect("published");
    assert_eq!(old.stream_error().await, "not-authorized");
    other.nothing_more().await;
    let mut client = world.connect(Security::Trusted).await;
    client.open_stream().await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.metric("campanile_front_lines"), 1);
    assert_eq!(world.metric("campanile_front_resumable"), 0);
    drop(id);
}

#[tokio::test(start_paused = true)]
async fn draining_tells_everyone_gives_all_routes_back_and_ends() {
    let world = World::new().await;
    let mut clients = Vec::new();
    for number in 1..=120 {
        clients.push(world.login(account(number), "r").await);
    }
    let mut lost = world.login(account(200), "r").await;
    lost.enable().await;
    drop(lost);
    let mut halfway = world.connect(Security::Trusted).await;
    halfway.open_stream().await;
    assert!(world.acceptor.is_ready());
    world.drain.cancel();
    let told: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                assert_eq!(client.stream_error().await, "system-shutdown");
                Instant::now()
            })
        })
        .collect();
    assert_eq!(halfway.stream_error().await, "system-shutdown");
    assert!(!world.acceptor.is_ready());
    let mut times = Vec::new();
    for told in told {
        times.push(told.await.expect("told"));
    }
    let spread = *times.iter().max().expect("times") - *times.iter().min().expect("times");
    assert!(spread > Duration::from_secs(1) && spread < Duration::from_secs(6), "waves, not all at once: {spread:?}");
    world.serving.await.expect("the front ends");
    assert_eq!(world.middle.asked().iter().filter(|asked| asked.name() == "Disconnect").count(), 121);
    world.tasks.close();
    world.tasks.wait().await;
    // A byte stream that comes too late is dropped.
    let (ours, theirs) = tokio::io::duplex(16);
    world.acceptor.accept(theirs, std::net::Ipv4Addr::LOCALHOST.into(), Security::Trusted).await;
    assert_eq!(Client::new(ours).next().await, None);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_front_ends_everything_without_a_word_as_a_crash_would() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    let mut lost = world.login(account(2), "r").await;
    lost.enable().await;
    drop(lost);
    world.serving.abort();
    assert_eq!(client.next().await, None);
    world.tasks.close();
    world.tasks.wait().await;
    assert_eq!(world.middle.asked().iter().filter(|asked| asked.name() == "Disconnect").count(), 0);
    assert!(!world.acceptor.is_ready());
    let deliver =
        world.bus.deliver(world.front, idl::contract::bus::FrontBatch { items: vec![], count: None }, Instant::now());
    assert!(deliver.await.is_err(), "the front is gone from the bus");
}

#[tokio::test(start_paused = true)]
async fn a_front_is_ready_once_the_middle_has_answered_and_nobody_logs_in_before() {
    let world = World::new().await;
    world.middle.hold("FrontLease");
    assert!(!world.acceptor.is_ready());
    let mut client = world.connect(Security::Trusted).await;
    client.send(crate::harness::HEADER).await;
    sleep(Duration::from_secs(1)).await;
    assert!(!world.acceptor.is_ready(), "revocations are not known");
    world.middle.let_go("FrontLease");
    assert!(matches!(client.next().await, Some(Event::Opened(_))));
    assert!(world.acceptor.is_ready());
    world.middle.hold("FrontLease");
    sleep(Duration::from_secs(30)).await;
    assert!(!world.acceptor.is_ready(), "the middle does not answer");
    world.middle.let_go("FrontLease");
    sleep(Duration::from_secs(10)).await;
    assert!(world.acceptor.is_ready());
}

#[tokio::test(start_paused = true)]
async fn what_the_index_says_ends_with_the_connection() {
    let world = World::new().await;
    let client = world.subscriber(account(1), &["news"]).await;
    drop(client);
    world.middle.wait_for("Disconnect", 1).await;
    // The slot's next connection has nothing of the one before.
    world.middle.set_index(account(2), vec![entry(1, &["other"])]);
    let mut next = world.login(account(2), "r").await;
    world.broadcast(Some("news"), b"news").await;
    next.nothing_more().await;
    next.open_channel().await;
    world.broadcast(Some("news"), b"news").await;
    next.nothing_more().await;
}
