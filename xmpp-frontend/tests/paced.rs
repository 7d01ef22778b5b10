//! Broadcasts that reach each device at a moment of its own.

use std::time::Duration;

use campanile_xmpp_frontend::Limits;
use idl::contract::bus as wire;
use idl::due::Pace;
use idl::ids::{AccountId, MessageId};
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::harness::{Client, NOW_MS, World, account, broadcast, entry, settled};

/// A message that was accepted when the world began.
const ID: MessageId = MessageId((NOW_MS as u128) << 80 | 1);
/// When the tests' messages expire: after a day.
const EXPIRES_MS: u64 = NOW_MS + 24 * 3_600_000;
/// How long after its moment something may come: a tick.
const LATE_MS: u64 = 100;
/// What a clock that shows local time shows, 6,400 seconds after the world began in UTC: midnight.
const MIDNIGHT_MS: u64 = 1_700_006_400_000;

fn spread(id: MessageId, spread_ms: u64) -> wire::Broadcast {
    wire::Broadcast {
        id: id.to_bytes().to_vec(),
        spread_ms: Some(i64::try_from(spread_ms).expect("a time")),
        ..broadcast(None, b"paced", EXPIRES_MS)
    }
}

fn at_midnight() -> wire::Broadcast {
    wire::Broadcast {
        id: ID.to_bytes().to_vec(),
        local_time_ms: Some(i64::try_from(MIDNIGHT_MS).expect("a time")),
        ..broadcast(None, b"paced", EXPIRES_MS)
    }
}

/// When a spread message is due for an account.
fn due_ms(account: AccountId, spread_ms: u64) -> u64 {
    Pace { spread_ms, local_time_ms: None }.due_ms(ID, account, None)
}

/// An account whose moment in the spread is some time away.
fn account_due_late(spread_ms: u64) -> AccountId {
    (1..99).map(account).find(|account| due_ms(*account, spread_ms) > NOW_MS + spread_ms / 2).expect("one of many")
}

fn with_attribute(name: &str, value: &str) -> wire::IndexEntry {
    wire::IndexEntry { attributes: Some([(name.to_owned(), value.to_owned())].into()), ..entry(1, &[]) }
}

/// Waits until the clock says that.
async fn wait_until(world: &World, ms: u64) {
    sleep(Duration::from_millis(ms.saturating_sub(world.now_ms()))).await;
}

/// Nobody is asked for a sign of life while a test waits.
fn patient() -> Limits {
    Limits { idle_time_max: Duration::from_hours(48), ..Limits::default() }
}

/// Watches for the next payload and says when it came.
fn watch(world: &World, mut client: Client<DuplexStream>) -> JoinHandle<(u64, Client<DuplexStream>)> {
    let clock = world.clock();
    tokio::spawn(async move {
        assert_eq!(client.payload_at_last().await, b"paced");
        (clock.now_ms(), client)
    })
}

#[tokio::test(start_paused = true)]
async fn a_spread_broadcast_reaches_each_at_its_own_moment() {
    let world = World::with(Limits { broadcast_chunk_max: 7, ..Limits::default() }).await;
    let mut clients = Vec::new();
    for number in 1..=40 {
        clients.push(world.subscriber(account(number), &[]).await);
    }
    world.publish(spread(ID, 40_000)).await;
    settled().await;
    assert_eq!(world.metric("campanile_front_paced_broadcasts"), 1);
    assert_eq!(world.metric("campanile_front_paced_slots"), 40);
    let watched: Vec<_> = clients.into_iter().map(|client| watch(&world, client)).collect();
    let mut quarters = [0; 4];
    for (number, watched) in (1..).zip(watched) {
        let (came_ms, mut client) = watched.await.expect("it came");
        let due_ms = due_ms(account(number), 40_000);
        assert!((due_ms..=due_ms + LATE_MS).contains(&came_ms), "{number} at {came_ms}, due at {due_ms}");
        quarters[usize::try_from((due_ms - NOW_MS) / 10_000).expect("a quarter")] += 1;
        client.nothing_more().await;
    }
    assert!(quarters.iter().all(|quarter| (5..=15).contains(quarter)), "evenly: {quarters:?}");
    settled().await;
    assert_eq!(world.metric("campanile_front_paced_broadcasts"), 0);
    assert_eq!(world.metric("campanile_front_paced_slots"), 0);
    assert_eq!(world.metric("campanile_front_broadcast_deliveries_total"), 40);
}

#[tokio::test(start_paused = true)]
async fn midnight_is_when_it_is_midnight_where_the_device_is() {
    let world = World::with(patient()).await;
    // Behind the world's beginning, so at once; or so many seconds after it.
    let places = [
        ("time_zone", "Asia/Shanghai", 0),
        ("utc_offset_minutes", "60", 2800),
        ("time_zone", "Europe/London", 6400),
        ("locale", "en", 6400),
        ("time_zone", "America/New_York", 6400 + 5 * 3600),
    ];
    let mut clients = Vec::new();
    for (number, (name, value, _)) in (1..).zip(places) {
        clients.push(world.registered(account(number), with_attribute(name, value)).await);
    }
    world.publish(at_midnight()).await;
    let watched: Vec<_> = clients.into_iter().map(|client| watch(&world, client)).collect();
    for ((_, place, seconds), watched) in places.into_iter().zip(watched) {
        let (came_ms, _) = watched.await.expect("it came");
        let after_ms = came_ms - NOW_MS;
        assert!((seconds * 1000..=seconds * 1000 + LATE_MS).contains(&after_ms), "{place} after {after_ms} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_travels_meanwhile_gets_it_by_its_new_clock() {
    let world = World::with(patient()).await;
    let client = world.registered(account(1), with_attribute("time_zone", "UTC")).await;
    world.publish(at_midnight()).await;
    settled().await;
    let mut item = crate::harness::item(account(1), world.middle.epoch(account(1), "r"), &[]);
    item.index = Some(vec![wire::IndexEntry { version: 2, ..with_attribute("utc_offset_minutes", "-60") }]);
    assert_eq!(world.deliver(vec![item]).await, []);
    let (came_ms, _) = watch(&world, client).await.expect("it came");
    let due_ms = MIDNIGHT_MS + 3_600_000;
    assert!((due_ms..=due_ms + LATE_MS).contains(&came_ms), "at {came_ms}");
}

#[tokio::test(start_paused = true)]
async fn what_is_due_at_once_is_written_at_once() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    sleep(Duration::from_secs(2)).await;
    world.publish(spread(ID, 1000)).await;
    assert_eq!(client.payload().await, b"paced");
    assert_eq!(world.now_ms(), NOW_MS + 2000);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_broadcast_reaches_nobody_whose_moment_has_not_come() {
    let world = World::new().await;
    let mut clients = Vec::new();
    for number in 1..=40 {
        clients.push((account(number), world.subscriber(account(number), &[]).await));
    }
    world.publish(spread(ID, 40_000)).await;
    wait_until(&world, NOW_MS + 20_000 + LATE_MS).await;
    world.cancel(ID).await;
    settled().await;
    assert_eq!(world.metric("campanile_front_paced_slots"), 0);
    // Coming again, it is known as cancelled.
    world.publish(spread(ID, 40_000)).await;
    wait_until(&world, NOW_MS + 50_000).await;
    let mut reached = 0;
    for (account, client) in &mut clients {
        if due_ms(*account, 40_000) <= NOW_MS + 20_000 {
            reached += 1;
            assert_eq!(client.payload().await, b"paced");
        }
        client.nothing_more().await;
    }
    assert!((10..30).contains(&reached), "{reached}");
    assert_eq!(world.metric("campanile_front_broadcast_deliveries_total"), reached);
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_that_the_bus_gives_twice_is_written_once() {
    let world = World::new().await;
    let late = account_due_late(10_000);
    let mut client = world.subscriber(late, &[]).await;
    world.publish(spread(ID, 10_000)).await;
    world.publish(spread(ID, 10_000)).await;
    wait_until(&world, NOW_MS + 11_000).await;
    world.publish(spread(ID, 10_000)).await;
    assert_eq!(client.payload().await, b"paced");
    client.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn a_device_that_comes_back_before_its_moment_is_left_to_the_middle_tier() {
    let world = World::new().await;
    let late = account_due_late(40_000);
    let client = world.subscriber(late, &[]).await;
    world.publish(spread(ID, 40_000)).await;
    settled().await;
    drop(client);
    world.middle.wait_for("Disconnect", 1).await;
    // It has the same slot, and the middle tier has judged what it missed when it opened the channel.
    let mut client = world.subscriber(late, &[]).await;
    wait_until(&world, NOW_MS + 41_000).await;
    client.nothing_more().await;
    assert_eq!(world.metric("campanile_front_broadcast_deliveries_total"), 0);
    assert_eq!(world.metric("campanile_front_paced_slots"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_leaves_before_its_moment_gets_nothing_even_if_it_comes_again() {
    let world = World::new().await;
    let late = account_due_late(40_000);
    let mut client = world.subscriber(late, &[]).await;
    let mut topics = world.subscriber(account(99), &["old"]).await;
    world.publish(spread(ID, 40_000)).await;
    settled().await;
    let change = |of: AccountId, entry| {
        let mut item = crate::harness::item(of, world.middle.epoch(of, "r"), &[]);
        item.index = Some(vec![entry]);
        vec![item]
    };
    world.deliver(change(late, wire::IndexEntry { removed: Some(true), ..entry(2, &[]) })).await;
    world.deliver(change(late, entry(3, &[]))).await;
    // One that only has other topics since then was in the audience when the message was accepted.
    world.deliver(change(account(99), entry(2, &["new"]))).await;
    wait_until(&world, NOW_MS + 41_000).await;
    client.nothing_more().await;
    assert_eq!(topics.payload().await, b"paced");
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_while_the_channel_is_being_opened_waits_for_its_moment_or_is_replayed() {
    let world = World::new().await;
    let late = account_due_late(40_000);
    world.middle.set_index(late, vec![entry(1, &[])]);
    world.middle.hold("OpenChannel");
    let mut waits = world.login(late, "r").await;
    waits.ask_to_open().await;
    world.middle.wait_for("OpenChannel", 1).await;
    world.publish(spread(ID, 40_000)).await;
    let past = MessageId(ID.0 + 1);
    world.publish(spread(past, 1000)).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.metric("campanile_front_paced_slots"), 0, "it is not in the index");
    world.middle.let_go("OpenChannel");
    assert_eq!(waits.element().await.attr("id"), Some("o"));
    assert_eq!(waits.payload().await, b"paced", "its moment has passed");
    waits.nothing_more().await;
    let (came_ms, mut client) = watch(&world, waits).await.expect("it came");
    let due_ms = due_ms(late, 40_000);
    assert!((due_ms..=due_ms + LATE_MS).contains(&came_ms), "at {came_ms}, due at {due_ms}");
    wait_until(&world, NOW_MS + 41_000).await;
    client.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_overtakes_the_answer_to_an_opening_takes_nothing_of_what_is_replayed_away() {
    let world = World::new().await;
    let late = account_due_late(10_000);
    world.middle.set_index(late, vec![entry(1, &[])]);
    world.middle.hold("OpenChannel");
    let mut client = world.login(late, "r").await;
    client.ask_to_open().await;
    world.middle.wait_for("OpenChannel", 1).await;
    world.publish(spread(ID, 10_000)).await;
    world.broadcast(None, b"ordinary").await;
    settled().await;
    let mut item = crate::harness::item(late, world.middle.epoch(late, "r"), &[]);
    item.index = Some(vec![entry(2, &["new"])]);
    assert_eq!(world.deliver(vec![item]).await, []);
    world.middle.let_go("OpenChannel");
    assert_eq!(client.element().await.attr("id"), Some("o"));
    assert_eq!(client.payload().await, b"ordinary");
    assert_eq!(client.payload().await, b"paced");
    client.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn whose_moment_has_come_does_not_wait_for_all_ordinary_broadcasts() {
    let world = World::with(Limits { broadcast_chunk_max: 1, ..Limits::default() }).await;
    let mut clients = Vec::new();
    for number in 1..=5 {
        clients.push(world.subscriber(account(number), &[]).await);
    }
    world.publish(spread(ID, 60_000)).await;
    sleep(Duration::from_millis(1)).await;
    for _ in 0..60 {
        world.publish(broadcast(None, b"ordinary", EXPIRES_MS)).await;
    }
    // Before the front sees any of these all their moments have come.
    tokio::time::advance(Duration::from_mins(1)).await;
    for client in &mut clients {
        let mut came = Vec::new();
        for _ in 0..=60 {
            came.push(client.payload().await);
        }
        let place = came.iter().position(|payload| payload == b"paced").expect("it is among these");
        // Those that are under way together, each connection's in one write.
        assert!(place <= 16, "behind {place} of 60 others");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_expires_before_the_moment_is_never_written() {
    let world = World::new().await;
    let late = account_due_late(40_000);
    let mut client = world.subscriber(late, &[]).await;
    let expires_at_ms = i64::try_from(due_ms(late, 40_000)).expect("a time");
    world.publish(wire::Broadcast { expires_at_ms, ..spread(ID, 40_000) }).await;
    settled().await;
    assert_eq!(world.metric("campanile_front_paced_slots"), 0, "nothing is kept for it");
    wait_until(&world, NOW_MS + 41_000).await;
    client.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn ordinary_broadcasts_and_single_sends_overtake_a_paced_one() {
    let world = World::with(Limits { broadcast_chunk_max: 1, ..patient() }).await;
    let mut clients = Vec::new();
    for number in 1..=50 {
        clients.push(world.subscriber(account(number), &[]).await);
    }
    world.publish(at_midnight()).await;
    let last = account(50);
    let single = crate::harness::item(last, world.middle.epoch(last, "r"), &[b"single"]);
    let client = clients.last_mut().expect("clients");
    let written = || world.metric("campanile_front_broadcast_deliveries_total");
    wait_until(&world, MIDNIGHT_MS - 1).await;
    // Time goes on once nothing is left to do, so whoever wakes together with the front sees it at work.
    while written() == 0 {
        sleep(Duration::from_millis(1)).await;
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    }
    assert!(written() < 50, "in chunks");
    world.publish(broadcast(None, b"ordinary", EXPIRES_MS)).await;
    assert_eq!(world.deliver(vec![single]).await, []);
    assert_eq!(client.payload().await, b"single");
    assert_eq!(client.payload().await, b"ordinary");
    assert_eq!(client.payload().await, b"paced");
}

#[tokio::test(start_paused = true)]
async fn paced_broadcasts_over_their_limit_are_left_to_the_middle_tier() {
    let world = World::with(Limits { paced_broadcasts_max: 1, ..Limits::default() }).await;
    let late = account_due_late(40_000);
    let mut client = world.subscriber(late, &[]).await;
    world.publish(spread(ID, 40_000)).await;
    settled().await;
    let other = MessageId(ID.0 + 1);
    world.publish(spread(other, 1000)).await;
    settled().await;
    assert_eq!(world.metric("campanile_front_limits_hit_total{limit=\"paced_broadcasts_max\"}"), 1);
    wait_until(&world, NOW_MS + 41_000).await;
    assert_eq!(client.payload().await, b"paced");
    client.nothing_more().await;
    // What has been given back is free.
    world.publish(spread(MessageId(ID.0 + 2), 1000)).await;
    assert_eq!(client.payload().await, b"paced");
}

#[tokio::test(start_paused = true)]
async fn connections_that_wait_for_their_moments_are_bounded() {
    let world = World::with(Limits { paced_slots_max: 2, ..Limits::default() }).await;
    let mut clients = Vec::new();
    for number in 1..=3 {
        clients.push(world.subscriber(account(number), &[]).await);
    }
    world.publish(spread(ID, 40_000)).await;
    settled().await;
    assert_eq!(world.metric("campanile_front_limits_hit_total{limit=\"paced_slots_max\"}"), 1);
    wait_until(&world, NOW_MS + 41_000).await;
    for client in &mut clients {
        client.nothing_more().await;
    }
    assert_eq!(world.metric("campanile_front_paced_slots"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_front_drains_while_somebody_waits_for_a_moment() {
    let world = World::new().await;
    let mut client = world.subscriber(account_due_late(40_000), &[]).await;
    world.publish(spread(ID, 40_000)).await;
    settled().await;
    world.drain.cancel();
    assert_eq!(client.stream_error().await, "system-shutdown");
    world.serving.await.expect("the front ends");
    world.tasks.close();
    world.tasks.wait().await;
}
