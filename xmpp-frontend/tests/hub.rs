//! Broadcasts, batches, and the index they go by.

use campanile_xmpp_frontend::Limits;
use idl::audience::{Audience, Comparison, Test};
use idl::contract::bus as wire;
use idl::error::Code;
use idl::ids::{Epoch, MessageId};

use crate::harness::{NOW_MS, World, account, broadcast, entry, item, settled};

#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_exactly_those_it_is_for() {
    let world = World::with(Limits { broadcast_chunk_max: 3, ..Limits::default() }).await;
    let mut clients = Vec::new();
    for number in 1..=20 {
        let topics: &[&str] = if number % 2 == 0 { &["even"] } else { &["odd"] };
        clients.push((number, world.subscriber(account(number), topics).await));
    }
    // Connected, but without a registration.
    let mut stranger = world.login(account(50), "r").await;
    world.broadcast(Some("even"), b"even").await;
    world.broadcast(None, b"all").await;
    for (number, client) in &mut clients {
        if *number % 2 == 0 {
            assert_eq!(client.payload().await, b"even");
        }
        assert_eq!(client.payload().await, b"all");
        client.nothing_more().await;
    }
    stranger.nothing_more().await;
    assert_eq!(world.metric("campanile_front_broadcast_deliveries_total"), 30);
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_names_and_attributes_and_the_same_ones_are_counted() {
    let world = World::new().await;
    let mut clients = Vec::new();
    for (number, version) in [(1, "3.1"), (2, "3.2"), (3, "3.10")] {
        let texts = |text: String| Some(vec![text]);
        let attributes = [("platform", "android"), ("app_version", version)];
        let registration = wire::IndexEntry {
            aliases: texts(format!("alias {number}")),
            user_accounts: texts("somebody".to_owned()),
            attributes: Some(attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            ..entry(1, &["news"])
        };
        clients.push(world.registered(account(number), registration).await);
    }
    let new = Comparison::new("app_version", Test::AtLeast("3.2.0".to_owned())).expect("a comparison");
    let android = Comparison::new("platform", Test::In(vec!["android".to_owned()])).expect("a comparison");
    let new = || Audience::Attribute(new.clone());
    let alias = |name: &str| Audience::Alias(name.parse().expect("an alias"));
    let somebody = || Audience::UserAccount("somebody".parse().expect("a user account"));
    let audiences = [
        (alias("alias 1"), "1"),
        (new(), "23"),
        (somebody().and(new().not()).or(alias("alias 3")), "13"),
        (Audience::Attribute(android).and(Audience::Topic("news".parse().expect("a topic"))), "123"),
        (alias("alias 1").and(alias("alias 2")), ""),
    ];
    for (audience, expected) in audiences {
        let audience = audience.to_wire();
        assert_eq!(world.count(audience.clone()).await, Some(i64::try_from(expected.len()).expect("a few")));
        world.publish(wire::Broadcast { audience, ..broadcast(None, b"x", NOW_MS + 1000) }).await;
        for (client, number) in clients.iter_mut().zip(["1", "2", "3"]) {
            if expected.contains(number) {
                assert_eq!(client.payload().await, b"x");
            }
            client.nothing_more().await;
        }
    }
    assert_eq!(world.count(idl::contract::message::Audience { ops: vec![] }).await, None, "it is no audience");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_broadcast_is_written_to_nobody_whether_it_comes_before_the_cancellation_or_after_it() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    let of = |id: u128, payload: &[u8]| wire::Broadcast {
        id: MessageId(id).to_bytes().to_vec(),
        ..broadcast(None, payload, NOW_MS + 1000)
    };
    world.cancel(MessageId(1)).await;
    world.cancel(MessageId(1)).await;
    world.publish(of(1, b"cancelled before")).await;
    // Both are taken in before the walk begins.
    world.publish(of(2, b"cancelled after")).await;
    world.cancel(MessageId(2)).await;
    world.publish(of(3, b"kept")).await;
    assert_eq!(client.payload().await, b"kept");
    world.cancel(MessageId(3)).await;
    world.publish(of(3, b"kept")).await;
    client.nothing_more().await;
    assert_eq!(world.metric("campanile_front_broadcasts_cancelled_total"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_broadcast_is_not_replayed() {
    let world = World::new().await;
    world.middle.set_index(account(1), vec![entry(1, &[])]);
    let mut client = world.login(account(1), "r").await;
    world.middle.hold("OpenChannel");
    client.ask_to_open().await;
    world.middle.wait_for("OpenChannel", 1).await;
    world.publish(broadcast(None, b"cancelled", NOW_MS + 1000)).await;
    settled().await;
    world.cancel(MessageId(0)).await;
    settled().await;
    world.middle.let_go("OpenChannel");
    assert_eq!(client.element().await.attr("id"), Some("o"));
    client.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_broadcast_is_skipped() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    world.publish(broadcast(None, b"late", NOW_MS)).await;
    world.broadcast(None, b"in time").await;
    assert_eq!(client.payload().await, b"in time");
    assert_eq!(world.metric("campanile_front_broadcasts_expired_total"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_single_send_overtakes_a_broadcast() {
    let world = World::with(Limits { broadcast_chunk_max: 1, ..Limits::default() }).await;
    let mut clients = Vec::new();
    for number in 1..=50 {
        clients.push(world.subscriber(account(number), &[]).await);
    }
    let last = account(50);
    let epoch = world.middle.epoch(last, "r");
    world.broadcast(None, b"broadcast").await;
    assert_eq!(world.deliver(vec![item(last, epoch, &[b"single"])]).await, []);
    let client = clients.last_mut().expect("clients");
    assert_eq!(client.payload().await, b"single");
    assert_eq!(client.payload().await, b"broadcast");
}

#[tokio::test(start_paused = true)]
async fn payloads_of_a_batch_are_written_in_order() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    let epoch = world.middle.epoch(account(1), "r");
    assert_eq!(world.deliver(vec![item(account(1), epoch, &[b"1", b"2"])]).await, []);
    assert_eq!(world.deliver(vec![item(account(1), epoch, &[b"3"]), item(account(1), epoch, &[b"4"])]).await, []);
    for expected in [b"1", b"2", b"3", b"4"] {
        assert_eq!(client.payload().await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_while_the_channel_is_being_opened_is_replayed_once() {
    let world = World::new().await;
    world.middle.set_index(account(1), vec![entry(1, &["news"])]);
    let mut client = world.login(account(1), "r").await;
    world.broadcast(Some("news"), b"before").await;
    settled().await;
    client.nothing_more().await;
    world.middle.hold("OpenChannel");
    client.ask_to_open().await;
    world.middle.wait_for("OpenChannel", 1).await;
    world.broadcast(Some("news"), b"during").await;
    world.broadcast(Some("other"), b"for others").await;
    settled().await;
    client.nothing_more().await;
    world.middle.let_go("OpenChannel");
    assert_eq!(client.element().await.attr("id"), Some("o"));
    assert_eq!(client.payload().await, b"during");
    world.broadcast(Some("news"), b"after").await;
    assert_eq!(client.payload().await, b"after");
    client.nothing_more().await;
    assert_eq!(world.metric("campanile_front_broadcast_replays_total"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_while_a_subscription_is_under_way_is_replayed_and_none_comes_twice() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &["old"]).await;
    world.middle.hold("ChannelUp");
    client.up(b"topic:new").await;
    world.middle.wait_for("ChannelUp", 1).await;
    world.broadcast(Some("new"), b"new").await;
    // Reaches the connection by the old entry, and must not be replayed by the new one.
    world.broadcast(None, b"all").await;
    assert_eq!(client.payload().await, b"all");
    settled().await;
    world.middle.let_go("ChannelUp");
    assert_eq!(client.payload().await, b"wen:cipot");
    assert_eq!(client.payload().await, b"new");
    client.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn a_channel_is_opened_again_if_the_ring_has_wrapped_meanwhile() {
    let world = World::with(Limits { recent_broadcasts_max: 2, ..Limits::default() }).await;
    world.middle.set_index(account(1), vec![entry(1, &[])]);
    let mut client = world.login(account(1), "r").await;
    world.middle.hold("OpenChannel");
    client.ask_to_open().await;
    world.middle.wait_for("OpenChannel", 1).await;
    for payload in [b"1", b"2", b"3"] {
        world.broadcast(None, payload).await;
    }
    settled().await;
    client.nothing_more().await;
    world.middle.let_go("OpenChannel");
    assert_eq!(client.element().await.attr("id"), Some("o"));
    // The middle judges what the ring has forgotten when the channel is opened again.
    world.middle.wait_for("OpenChannel", 2).await;
    client.nothing_more().await;
    world.broadcast(None, b"live").await;
    assert_eq!(client.payload().await, b"live");
    assert_eq!(world.metric("campanile_front_limits_hit_total{limit=\"recent_broadcasts_max\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_index_entry_counts_only_if_it_is_newer() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &["a"]).await;
    let epoch = world.middle.epoch(account(1), "r");
    let change = |version, topics: &[&str], removed| {
        let mut item = item(account(1), epoch, &[]);
        item.index = Some(vec![idl::contract::bus::IndexEntry { removed: Some(removed), ..entry(version, topics) }]);
        vec![item]
    };
    world.deliver(change(3, &["b"], false)).await;
    world.deliver(change(2, &["a"], false)).await;
    world.broadcast(Some("a"), b"a").await;
    world.broadcast(Some("b"), b"b").await;
    assert_eq!(client.payload().await, b"b");
    // Removing what is newer does nothing, removing what is known takes it out.
    world.deliver(change(2, &[], true)).await;
    world.broadcast(None, b"still here").await;
    assert_eq!(client.payload().await, b"still here");
    world.deliver(change(4, &[], true)).await;
    world.broadcast(None, b"gone").await;
    client.nothing_more().await;
    // What is late does not bring it back; a registration that is made anew has a later version.
    world.deliver(change(3, &["c"], false)).await;
    world.broadcast(Some("c"), b"still gone").await;
    client.nothing_more().await;
    world.deliver(change(5, &["c"], false)).await;
    world.broadcast(Some("c"), b"c").await;
    assert_eq!(client.payload().await, b"c");
}

#[tokio::test(start_paused = true)]
async fn an_older_epoch_takes_no_deliveries() {
    let world = World::new().await;
    let mut older = world.subscriber(account(1), &[]).await;
    let older_epoch = world.middle.epoch(account(1), "r");
    let mut newer = world.login(account(1), "r").await;
    assert_eq!(older.stream_error().await, "conflict");
    let newer_epoch = world.middle.epoch(account(1), "r");
    assert!(newer_epoch > older_epoch);
    let stranger = item(account(2), newer_epoch, &[b"for another account"]);
    let items = vec![item(account(1), older_epoch, &[b"old"]), item(account(1), newer_epoch, &[b"new"]), stranger];
    assert_eq!(world.deliver(items).await, [0, 2]);
    assert_eq!(newer.payload().await, b"new");
    // The older connection's registration left the index with it.
    world.broadcast(None, b"all").await;
    newer.nothing_more().await;
    assert_eq!(world.metric("campanile_front_items_gone_total"), 2);
}

#[tokio::test(start_paused = true)]
async fn payloads_that_come_late_or_twice_are_not_written() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    let epoch = world.middle.epoch(account(1), "r");
    let ordered = |order: u128, payload: &[u8]| {
        let order = Some(order.to_be_bytes().to_vec());
        vec![wire::FrontItem { order, ..item(account(1), epoch, &[payload]) }]
    };
    for (order, payload) in [(256, b"first"), (257, b"later"), (256, b"first"), (257, b"later"), (255, b"early")] {
        assert_eq!(world.deliver(ordered(order, payload)).await, [], "it was taken, or need not be");
    }
    assert_eq!(client.payload().await, b"first");
    assert_eq!(client.payload().await, b"later");
    client.nothing_more().await;
    assert_eq!(world.metric("campanile_front_items_late_total"), 3);
    // Another connection begins anew.
    let mut client = world.subscriber(account(2), &[]).await;
    let epoch = world.middle.epoch(account(2), "r");
    let order = Some(1_u128.to_be_bytes().to_vec());
    let items = vec![wire::FrontItem { order, ..item(account(2), epoch, &[b"its first"]) }];
    assert_eq!(world.deliver(items).await, []);
    assert_eq!(client.payload().await, b"its first");
}

#[tokio::test(start_paused = true)]
async fn a_conflict_from_the_middle_ends_the_stream() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    let mut conflict = item(account(1), world.middle.epoch(account(1), "r"), &[]);
    conflict.conflict = Some(true);
    assert_eq!(world.deliver(vec![conflict.clone()]).await, []);
    assert_eq!(client.stream_error().await, "conflict");
    assert_eq!(world.deliver(vec![conflict]).await, [0]);
}

#[tokio::test(start_paused = true)]
async fn two_resources_of_an_account_live_side_by_side() {
    let world = World::new().await;
    let mut one = world.login(account(1), "one").await;
    let mut two = world.login(account(1), "two").await;
    for (client, resource) in [(&mut one, "one"), (&mut two, "two")] {
        let epoch = world.middle.epoch(account(1), resource);
        assert_eq!(world.deliver(vec![item(account(1), epoch, &[resource.as_bytes()])]).await, []);
        assert_eq!(client.payload().await, resource.as_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn when_a_partition_moves_its_accounts_are_announced_anew_and_no_others() {
    let world = World::new().await;
    let _one = world.subscriber(account(1), &[]).await;
    let _two = world.subscriber(account(2), &[]).await;
    let [first, second] = [1, 2].map(|number| idl::ids::Shard::of_account(account(number)));
    assert_ne!(first.0 % 64, second.0 % 64, "the accounts are in two partitions");
    world.middle.wait_for("OpenChannel", 2).await;
    world.middle.move_partition(account(1), 7);
    world.middle.wait_for("Connect", 3).await;
    world.middle.wait_for("OpenChannel", 3).await;
    // More leases tell nothing new.
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    let announced: Vec<_> = world
        .middle
        .asked()
        .into_iter()
        .filter_map(|request| match request {
            idl::bus::Request::Connect(connect) => connect.epoch.map(|_| connect.account),
            _ => None,
        })
        .collect();
    assert_eq!(announced, [account(1).to_string()]);
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_changes_has_every_connection_announced_anew_with_its_epoch() {
    let world = World::with(Limits { announcements_max: 2, ..Limits::default() }).await;
    let mut clients = Vec::new();
    for number in 1..=5 {
        clients.push(world.subscriber(account(number), &[]).await);
    }
    let mut idle = world.login(account(9), "r").await;
    let epochs: Vec<_> = (1..=5).map(|number| world.middle.epoch(account(number), "r")).collect();
    world.middle.wait_for("OpenChannel", 5).await;
    world.middle.set_generation(2);
    // The next lease tells.
    world.middle.wait_for("Connect", 12).await;
    world.middle.wait_for("OpenChannel", 10).await;
    let asked = world.middle.asked();
    let announced: Vec<_> = asked
        .iter()
        .filter_map(|request| match request {
            idl::bus::Request::Connect(connect) => connect.epoch.as_deref(),
            _ => None,
        })
        .map(|epoch| Epoch::from_bytes(epoch).expect("an epoch"))
        .collect();
    assert_eq!(announced.len(), 6);
    assert!(epochs.iter().all(|epoch| announced.contains(epoch)));
    let opened = asked.iter().rev().find_map(|request| match request {
        idl::bus::Request::OpenChannel(open) => open.payload.clone(),
        _ => None,
    });
    assert_eq!(opened.as_deref(), Some(b"hello".as_slice()), "with the payload that the device opened with");
    for (number, client) in (1..).zip(&mut clients) {
        assert_eq!(
            world.deliver(vec![item(account(number), world.middle.epoch(account(number), "r"), &[b"x"])]).await,
            []
        );
        assert_eq!(client.payload().await, b"x");
        client.nothing_more().await;
    }
    idle.nothing_more().await;
    // Announced once, not with every lease.
    tokio::time::sleep(std::time::Duration::from_secs(20)).await;
    assert_eq!(world.metric("campanile_front_announcements_total"), 6);
}

#[tokio::test(start_paused = true)]
async fn a_middle_that_has_forgotten_a_connection_is_told_of_it_before_the_payload_is_tried_again() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    world.middle.fail("ChannelUp", Code::Superseded);
    client.up(b"abc").await;
    assert_eq!(client.payload().await, b"cba");
    let names: Vec<_> = world.middle.asked().iter().map(idl::bus::Request::name).collect();
    assert_eq!(names, ["Connect", "OpenChannel", "ChannelUp", "Connect", "OpenChannel", "ChannelUp"]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_middle_knows_a_newer_one_of_ends_with_conflict() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    world.middle.fail("ChannelUp", Code::Superseded);
    world.middle.fail("Connect", Code::Superseded);
    client.up(b"abc").await;
    assert_eq!(client.stream_error().await, "conflict");
}

#[tokio::test(start_paused = true)]
async fn a_payload_is_tried_again_while_that_may_help() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    world.middle.fail("ChannelUp", Code::Busy);
    world.middle.fail("ChannelUp", Code::TimedOut);
    client.up(b"abc").await;
    client.up(b"def").await;
    assert_eq!(client.payload().await, b"cba");
    assert_eq!(client.payload().await, b"fed");
    world.middle.fail("ChannelUp", Code::BadRequest);
    client.up(b"ghi").await;
    let refused = client.element().await;
    assert_eq!((refused.name(), refused.attr("type")), ("message", Some("error")));
    client.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_the_middle_never_takes_ends_the_stream_so_that_the_client_tries_anew() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    for _ in 0..100 {
        world.middle.fail("ChannelUp", Code::Busy);
    }
    client.up(b"abc").await;
    assert_eq!(client.stream_error().await, "resource-constraint");
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_can_not_be_opened_is_answered_with_wait() {
    let world = World::new().await;
    let mut client = world.login(account(1), "r").await;
    for _ in 0..100 {
        world.middle.fail("OpenChannel", Code::Busy);
    }
    client.ask_to_open().await;
    let refused = client.element().await;
    assert_eq!((refused.attr("id"), refused.attr("type")), (Some("o"), Some("error")));
    let error = refused.children().next().expect("an error");
    assert_eq!(error.attr("type"), Some("wait"));
    assert!(error.has_child("resource-constraint", "urn:ietf:params:xml:ns:xmpp-stanzas"));
    assert!(String::from(error).contains("told to fail"), "{error:?}");
    client.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_announced_with_what_the_middle_said_to_open_the_channel_with_anew() {
    let world = World::new().await;
    let mut client = world.subscriber(account(1), &[]).await;
    client.up(b"reopen:changed").await;
    client.payload().await;
    world.middle.set_generation(2);
    world.middle.wait_for("OpenChannel", 2).await;
    let payloads: Vec<_> = world
        .middle
        .asked()
        .into_iter()
        .filter_map(|asked| match asked {
            idl::bus::Request::OpenChannel(open) => open.payload,
            _ => None,
        })
        .collect();
    assert_eq!(payloads, [b"hello".to_vec(), b"changed".to_vec()]);
}

#[tokio::test(start_paused = true)]
async fn several_hubs_are_one_front_to_the_middle_tier() {
    let world = World::with(Limits { hubs: 3, broadcast_chunk_max: 2, ..Limits::default() }).await;
    let mut clients = Vec::new();
    for number in 1..=12 {
        clients.push(world.subscriber(account(number), &[]).await);
    }
    assert_eq!(world.count(Audience::Everyone.to_wire()).await, Some(12));
    let items = (1..=12).map(|number| {
        let epoch = world.middle.epoch(account(number), "r");
        // Every third names a connection that is not there.
        let epoch = if number % 3 == 0 { Epoch(epoch.0 + 1_000_000) } else { epoch };
        item(account(number), epoch, &[b"single"])
    });
    assert_eq!(world.deliver(items.collect()).await, [2, 5, 8, 11]);
    for (number, client) in (1..).zip(&mut clients) {
        if number % 3 != 0 {
            assert_eq!(client.payload().await, b"single");
        }
    }
    let texts: Vec<_> = (0..40).map(|number| format!("broadcast {number}")).collect();
    for text in &texts {
        world.broadcast(None, text.as_bytes()).await;
    }
    for client in &mut clients {
        for text in &texts {
            assert_eq!(client.payload().await, text.as_bytes(), "in order, each once");
        }
        client.nothing_more().await;
    }
}

#[tokio::test(start_paused = true)]
async fn broadcasts_go_out_at_a_configured_rate_and_their_progress_is_told() {
    let world = World::with(Limits { broadcast_writes_per_second_max: 10, ..Limits::default() }).await;
    let mut clients = Vec::new();
    for number in 1..=8 {
        clients.push(world.subscriber(account(number), &[]).await);
    }
    world.publish(broadcast(None, b"slowly", NOW_MS + 3_600_000)).await;
    let mut seen = Vec::new();
    for _ in 0..9 {
        settled().await;
        let written = world.metric("campanile_front_broadcast_deliveries_total");
        seen.push((written, written + world.metric("campanile_front_broadcast_slots")));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let expected: Vec<_> = (1..=8).chain([8]).map(|written| (written, 8)).collect();
    assert_eq!(seen, expected, "one each tenth of a second");
    for client in &mut clients {
        assert_eq!(client.payload().await, b"slowly");
    }
}
