//! What a send may ask for besides its text: filters, once only, collapse keys, receipts of both.

use std::time::Duration;

use campanile_middle_tier::Config;
use idl::audience::Audience;
use idl::bus::FrontEvent;
use idl::contract::bus::{AppAnswer, AppRequest, Send, SendMany};
use idl::error::Code;
use idl::ids::MessageId;
use schema::sorted::Table;

use crate::harness::{
    Tier, aliases, audience, callback, codes, deliveries, regids, send_to, set_alias, set_enabled, subscribe, to,
    to_all, topic, unregister,
};

const SECOND: Duration = Duration::from_secs(1);

fn expression(text: &str) -> Audience {
    text.parse().expect("an expression")
}

#[tokio::test(start_paused = true)]
async fn a_filter_keeps_a_send_from_those_it_does_not_hold_for_and_says_so() {
    let mut tier = Tier::timed().await;
    let new = tier.device_with(&[("app_version", "3.10")]).await;
    let old = tier.device_with(&[("app_version", "3.9")]).await;
    let send = Send {
        filter: Some(expression("app_version >= \"3.10\"").to_wire()),
        callback: callback(64),
        ..send_to(to_all(&[&new, &old]))
    };
    let ((id, bad), mut came) = tier.while_doing(tier_send(&tier, send)).await;
    assert!(bad.is_empty(), "a target that a filter leaves out is not a bad one");
    came.extend(tier.during(SECOND).await);
    assert_eq!(deliveries(&came), [id], "to one of the two");
    assert_eq!(tier.last_step(id, &old).await, "dropped: filtered");
    assert_eq!(tier.told().await, [(64, old.regid.to_string())]);
    tier.ack(&new, &[id], &[]).await;
    assert_eq!(tier.trace(id, &new).await, ["accepted", "stored", "dispatched", "delivered"]);
    let state = tier.state(id).await;
    assert_eq!((state.resolved, state.delivered, state.dropped, state.state.as_str()), (2, 1, Some(1), "done"));
}

/// A send that borrows nothing of the tier, so that the front can be played meanwhile.
fn tier_send(tier: &Tier, send: Send) -> impl Future<Output = (MessageId, Vec<String>)> + use<> {
    let asked = tier.app(AppRequest::Send(send));
    async move {
        match asked.await {
            Ok(AppAnswer::Accepted(accepted)) => {
                let id = accepted.id.expect("an id").parse().expect("a message id");
                (id, accepted.bad_targets.unwrap_or_default())
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_with_a_filter_is_for_the_part_of_its_audience_that_the_filter_leaves() {
    let mut tier = Tier::timed().await;
    let mut german = tier.device_with(&[("locale", "de")]).await;
    let mut french = tier.device_with(&[("locale", "fr")]).await;
    for device in [&german, &french] {
        tier.command(device, subscribe("news")).await;
        tier.disconnect(device).await;
    }
    let filter = Some(expression("not locale in (\"fr\", \"en\")").to_wire());
    let (id, _) = tier.send(Send { filter, ..send_to(audience(&topic("news"))) }).await.expect("accepted");
    tier.reconnect(&mut german).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), [id]);
    tier.reconnect(&mut french).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), []);
    assert_eq!(tier.last_step(id, &french).await, "dropped: not in the audience");
    let Some(FrontEvent::Broadcast(event)) = tier.events().pop() else { panic!("a broadcast") };
    assert_eq!(event.audience.ops.len(), 4, "topic, comparison, not, and");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_turned_push_off_is_told_of_and_gets_what_waits_when_it_turns_it_on() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.command(&device, set_alias("ann")).await;
    tier.command(&device, set_enabled(false)).await;
    let send = Send { callback: callback(32 | 1), ..send_to(aliases(&["ann"])) };
    let (id, _) = tier.send(send).await.expect("accepted");
    assert_eq!(deliveries(&tier.during(SECOND).await), []);
    assert_eq!(tier.last_step(id, &device).await, "waiting: disabled");
    assert_eq!(tier.told().await, [(32, "ann".to_owned())]);
    tier.command(&device, set_enabled(true)).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), [id]);
    tier.ack(&device, &[id], &[]).await;
    assert_eq!(tier.told().await, [(32, "ann".to_owned()), (1, "ann".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn what_a_device_that_is_off_never_got_was_dropped_for_that() {
    let tier = Tier::timed().await;
    let device = tier.device().await;
    tier.command(&device, set_enabled(false)).await;
    let (id, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    tier.advance(Duration::from_secs(61));
    assert_eq!(tier.last_step(id, &device).await, "dropped: disabled");
    assert_eq!(tier.state(id).await.state, "done");
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_only_once_goes_to_whom_is_connected_and_never_again() {
    let mut tier = Tier::timed().await;
    let (mut here, mut away) = (tier.device().await, tier.device().await);
    tier.disconnect(&away).await;
    let send = Send { only_once: Some(true), ..send_to(to_all(&[&here, &away])) };
    let (id, _) = tier.send(send).await.expect("accepted");
    assert_eq!(deliveries(&tier.during(SECOND).await), [id]);
    assert_eq!(tier.last_step(id, &away).await, "dropped: offline");
    // The device never said that it has it.
    tier.reconnect(&mut here).await;
    tier.reconnect(&mut away).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), []);
    assert_eq!(tier.cells(Table::Mailboxes).await, 0);
    tier.crash().await;
    tier.reconnect(&mut here).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), []);
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_only_once_does_not_wait_for_push_to_be_turned_on() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.command(&device, set_enabled(false)).await;
    let send = Send { only_once: Some(true), callback: callback(32 | 1), ..send_to(to(&device)) };
    let (id, _) = tier.send(send).await.expect("accepted");
    assert_eq!(tier.last_step(id, &device).await, "dropped: disabled");
    assert_eq!(tier.told().await, [(32, device.regid.to_string())]);
    tier.command(&device, set_enabled(true)).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), []);
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_that_is_sent_only_once_is_not_kept_for_who_is_away() {
    let mut tier = Tier::timed().await;
    let mut device = tier.device().await;
    tier.disconnect(&device).await;
    let send = Send { only_once: Some(true), ..send_to(audience(&Audience::Everyone)) };
    let (id, _) = tier.send(send).await.expect("accepted");
    assert!(matches!(tier.events().as_slice(), [FrontEvent::Broadcast(_)]), "the front tells who is here");
    tier.reconnect(&mut device).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), []);
    assert_eq!(tier.last_step(id, &device).await, "dropped: offline");
}

#[tokio::test(start_paused = true)]
async fn of_messages_with_one_collapse_key_only_the_newest_waits() {
    let mut tier = Tier::timed().await;
    let (mut device, other) = (tier.device().await, tier.device().await);
    tier.disconnect(&device).await;
    let score = |target| Send { collapse_key: Some("score".into()), ..send_to(target) };
    let (first, _) = tier.send(score(to(&device))).await.expect("accepted");
    // Stored once for two, and referred to.
    let (second, _) = tier.send(score(to_all(&[&device, &other]))).await.expect("accepted");
    let (between, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    let key = Some("other".into());
    let (elsewhere, _) = tier.send(Send { collapse_key: key, ..score(to(&device)) }).await.expect("accepted");
    let (last, _) = tier.send(score(to(&device))).await.expect("accepted");
    assert_eq!(deliveries(&tier.during(SECOND).await), [second], "the other device is here");
    for collapsed in [first, second] {
        assert_eq!(tier.last_step(collapsed, &device).await, "dropped: collapsed");
    }
    assert_eq!(tier.state(first).await.state, "done");
    tier.reconnect(&mut device).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), [between, elsewhere, last]);
    assert_eq!(tier.last_step(last, &device).await, "waiting: in flight");
}

#[tokio::test(start_paused = true)]
async fn in_one_request_too_only_the_newest_of_a_collapse_key_is_delivered() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let score = || Send { collapse_key: Some("score".into()), ..send_to(to(&device)) };
    let sends = vec![score(), send_to(to(&device)), score()];
    let Ok(AppAnswer::AcceptedMany(many)) = tier.app(AppRequest::SendMany(SendMany { sends })).await else {
        panic!("an answer for each")
    };
    let ids: Vec<MessageId> =
        many.accepted.iter().map(|one| one.id.as_ref().expect("an id").parse().expect("a message id")).collect();
    assert_eq!(deliveries(&tier.during(SECOND).await), [ids[1], ids[2]]);
    assert_eq!(tier.last_step(ids[0], &device).await, "dropped: collapsed");
}

#[tokio::test(start_paused = true)]
async fn a_delivery_under_way_that_a_newer_one_collapses_counts_when_it_arrives() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let score = || Send { collapse_key: Some("score".into()), callback: callback(1), ..send_to(to(&device)) };
    let (first, _) = tier.send(score()).await.expect("accepted");
    assert_eq!(deliveries(&tier.during(SECOND).await), [first]);
    let (second, _) = tier.send(score()).await.expect("accepted");
    assert_eq!(deliveries(&tier.during(SECOND).await), [second]);
    // It was handed off before the newer one came: the device has both.
    tier.ack(&device, &[first, second], &[]).await;
    for id in [first, second] {
        assert_eq!(tier.state(id).await.delivered, 1);
        assert!(tier.trace(id, &device).await.contains(&"delivered".to_owned()));
    }
    assert_eq!(tier.told().await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_was_away_gets_the_newest_broadcast_of_a_collapse_key_alone() {
    let mut tier = Tier::timed().await;
    let mut device = tier.device().await;
    tier.disconnect(&device).await;
    let score = || Send { collapse_key: Some("score".into()), ..send_to(audience(&Audience::Everyone)) };
    let (first, _) = tier.send(score()).await.expect("accepted");
    let (between, _) = tier.send(send_to(audience(&Audience::Everyone))).await.expect("accepted");
    let (last, _) = tier.send(score()).await.expect("accepted");
    tier.reconnect(&mut device).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), [between, last]);
    tier.ack(&device, &[], &[between, last]).await;
    tier.disconnect(&device).await;
    assert_eq!(tier.last_step(first, &device).await, "dropped: collapsed");
    assert_eq!(tier.last_step(last, &device).await, "delivered");
    let delivered = [tier.state(first).await.delivered, tier.state(last).await.delivered];
    assert_eq!(delivered, [0, 1]);
    tier.reconnect(&mut device).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), []);
}

#[tokio::test(start_paused = true)]
async fn a_target_whose_mailbox_is_full_is_none_of_the_messages_recipients() {
    let mut tier = Tier::timed_with(Config { mailbox_max: 1, ..Config::default() }).await;
    let (full, free) = (tier.device().await, tier.device().await);
    tier.disconnect(&full).await;
    tier.send(send_to(to(&full))).await.expect("there is room");
    let send = Send { callback: callback(64), ..send_to(to_all(&[&full, &free])) };
    let (id, bad) = tier.send(send).await.expect("the other has room");
    assert_eq!(bad, [full.regid.to_string()]);
    assert_eq!(deliveries(&tier.during(SECOND).await), [id]);
    tier.ack(&free, &[id], &[]).await;
    let state = tier.state(id).await;
    assert_eq!((state.resolved, state.state.as_str()), (1, "done"));
    assert_eq!(tier.trace(id, &full).await, ["NotFound"]);
}

#[tokio::test(start_paused = true)]
async fn a_send_that_is_refused_leaves_no_traces_and_no_receipts() {
    let tier = Tier::timed_with(Config { mailbox_max: 1, ..Config::default() }).await;
    let (full, filtered) = (tier.device().await, tier.device_with(&[("locale", "fr")]).await);
    tier.disconnect(&full).await;
    tier.send(send_to(to(&full))).await.expect("there is room");
    let cells = tier.cells(Table::Traces).await;
    let send = Send {
        filter: Some(expression("not locale = \"fr\"").to_wire()),
        callback: callback(64),
        ..send_to(to_all(&[&full, &filtered]))
    };
    assert_eq!(tier.refused(send.clone()).await, Code::LimitReached);
    let many = AppRequest::SendMany(SendMany { sends: vec![send] });
    let Ok(AppAnswer::AcceptedMany(many)) = tier.app(many).await else { panic!("an answer for each") };
    assert_eq!(codes(&many), [Code::LimitReached.number()]);
    assert!(many.statuses[0].description.as_deref().is_some_and(|text| text.contains("the mailbox holds 1 messages")));
    assert_eq!((tier.told().await.len(), tier.cells(Table::Traces).await), (0, cells));
}

#[tokio::test(start_paused = true)]
async fn of_many_messages_each_is_accepted_or_refused_by_itself() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let sends = vec![
        send_to(to(&device)),
        send_to(regids(&["nobody".to_owned()])),
        send_to(audience(&Audience::Everyone)),
        Send { ttl_ms: 0, ..send_to(to(&device)) },
        send_to(to(&device)),
    ];
    let Ok(AppAnswer::AcceptedMany(many)) = tier.app(AppRequest::SendMany(SendMany { sends })).await else {
        panic!("an answer for each")
    };
    let expected = [0, Code::SendFailed.number(), Code::BadValue.number(), Code::BadTimeToLive.number(), 0];
    assert_eq!(codes(&many), expected);
    assert_eq!(many.accepted[1].bad_targets.as_deref(), Some(["nobody".to_owned()].as_slice()));
    let words = |at: usize| many.statuses[at].description.as_deref();
    assert_eq!((words(0), words(2)), (None, Some("a message of many is for regids, aliases or user accounts")));
    assert!(words(1).is_some_and(|text| text.contains("none of the 1 targets")), "{many:?}");
    let ids: Vec<_> = many.accepted.iter().map(|one| one.id.as_ref().map(|id| id.parse().expect("an id"))).collect();
    let [Some(first), None, None, None, Some(last)] = ids.as_slice() else { panic!("{ids:?}") };
    assert_eq!(deliveries(&tier.during(SECOND).await), [*first, *last]);
    for count in [0, 1001] {
        let sends = vec![send_to(to(&device)); count];
        let failure = tier.app(AppRequest::SendMany(SendMany { sends })).await.expect_err("too few or many");
        assert_eq!(failure.code, Code::TooManyTargets);
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_for_a_registration_that_ended_was_dropped_for_that() {
    let tier = Tier::timed().await;
    let device = tier.device().await;
    tier.disconnect(&device).await;
    let (id, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    assert_eq!(tier.last_step(id, &device).await, "waiting: offline");
    tier.command(&device, unregister()).await;
    assert_eq!(tier.last_step(id, &device).await, "dropped: unregistered");
}

#[tokio::test(start_paused = true)]
async fn a_device_without_an_open_channel_is_waited_for() {
    let mut tier = Tier::timed().await;
    let mut device = tier.device().await;
    tier.disconnect(&device).await;
    let (single, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    let (broadcast, _) = tier.send(send_to(audience(&Audience::Everyone))).await.expect("accepted");
    for id in [single, broadcast] {
        assert_eq!(tier.trace(id, &device).await, ["accepted", "stored", "waiting: offline"]);
    }
    tier.reconnect(&mut device).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), [single, broadcast]);
    for id in [single, broadcast] {
        assert_eq!(tier.trace(id, &device).await, ["accepted", "stored", "dispatched", "waiting: in flight"]);
    }
    tier.ack(&device, &[single], &[broadcast]).await;
    for id in [single, broadcast] {
        assert_eq!(tier.trace(id, &device).await, ["accepted", "stored", "dispatched", "delivered"]);
    }
    tier.click(&device, broadcast).await;
    assert_eq!(tier.last_step(broadcast, &device).await, "clicked");
}
