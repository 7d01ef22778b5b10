//! Stopping messages and taking them back, before and after they are delivered.

use std::time::Duration;

use campanile_middle_tier::Config;
use idl::audience::Audience;
use idl::bus::FrontEvent;
use idl::contract::bus::{AppAnswer, AppRequest, MessageName, Send, Stop, Target};
use idl::contract::push::Revoke;
use idl::error::Code;
use idl::ids::MessageId;
use schema::sorted::Table;

use crate::harness::{
    Device, Fault, START_MS, Tier, aliases, audience, by_id, by_job_key, callback, deliveries, regids, revocations,
    send_to, set_alias, subscribe, to, to_all, to_device, topic, unsubscribe, user_accounts,
};

const SECOND: Duration = Duration::from_secs(1);

fn everyone() -> Send {
    send_to(audience(&Audience::Everyone))
}

fn noted(notify_id: i64, target: Target) -> Send {
    let mut send = send_to(target);
    send.notification.notify_id = Some(notify_id);
    send
}

fn id_of(revoke: &Revoke) -> MessageId {
    MessageId::from_bytes(revoke.id.as_deref().expect("a revocation has an id")).expect("a message id")
}

/// Which messages are taken back.
fn taken_back(revokes: &[Revoke]) -> Vec<MessageId> {
    revokes.iter().map(|revoke| MessageId::from_bytes(&revoke.message).expect("a message id")).collect()
}

/// The revocation that an event to the fronts carries.
fn revoke_in(event: &FrontEvent) -> Revoke {
    let FrontEvent::Broadcast(broadcast) = event else { panic!("{event:?}") };
    to_device(&broadcast.payload).revoke.expect("a revocation")
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_not_delivered_once_it_is_taken_back() {
    let mut tier = Tier::timed().await;
    let (mut away, mut other) = (tier.device().await, tier.device().await);
    for device in [&away, &other] {
        tier.disconnect(device).await;
    }
    let (first, _) = tier.send(send_to(to(&away))).await.expect("accepted");
    let (shared, _) = tier.send(send_to(to_all(&[&away, &other]))).await.expect("accepted");
    let (stays, _) = tier.send(send_to(to(&away))).await.expect("accepted");
    for id in [first, shared] {
        tier.revoke(id).await;
        assert_eq!(tier.last_step(id, &away).await, "dropped: revoked");
        let state = tier.state(id).await;
        assert_eq!((state.state.as_str(), state.delivered), ("revoked", 0));
    }
    let (crashed, _) = tier.send(send_to(to(&away))).await.expect("accepted");
    tier.crash().await;
    tier.revoke(crashed).await;
    tier.reconnect(&mut away).await;
    let came = tier.during(SECOND).await;
    assert_eq!(deliveries(&came), [stays]);
    // Nobody was handed the others. This one may have been, before the crash; a device that never had it ignores it.
    assert_eq!(taken_back(&revocations(&came)), [crashed]);
    tier.reconnect(&mut other).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), []);
}

#[tokio::test(start_paused = true)]
async fn what_was_delivered_is_revoked_at_the_device_until_it_says_so_and_nobody_counts_that() {
    let mut tier = Tier::timed().await;
    let mut device = tier.device().await;
    let (id, _) = tier.send(Send { callback: callback(1), ..send_to(to(&device)) }).await.expect("accepted");
    tier.during(SECOND).await;
    tier.ack(&device, &[id], &[]).await;
    tier.revoke(id).await;
    let came = tier.during(SECOND).await;
    let [revoke] = <[_; 1]>::try_from(revocations(&came)).expect("one");
    assert_eq!((taken_back(std::slice::from_ref(&revoke)), revoke.broadcast, revoke.notify_id), (vec![id], None, None));
    for crash in [false, true] {
        if crash {
            tier.crash().await;
        }
        tier.reconnect(&mut device).await;
        assert_eq!(revocations(&tier.during(SECOND).await), std::slice::from_ref(&revoke), "it comes again");
    }
    tier.ack(&device, &[id_of(&revoke)], &[]).await;
    tier.reconnect(&mut device).await;
    assert!(tier.during(SECOND).await.is_empty());
    let (state, day) = (tier.state(id).await, tier.day().await);
    assert_eq!((state.state.as_str(), state.delivered, state.dropped), ("revoked", 1, Some(0)));
    assert_eq!((day.delivered, day.messages, tier.told().await.len()), (1, 1, 1));
    assert_eq!(tier.cells(Table::Mailboxes).await, 0);
    assert_eq!(tier.trace(id, &device).await, ["accepted", "stored", "dispatched", "delivered"]);
}

#[tokio::test(start_paused = true)]
async fn a_delivery_under_way_when_it_is_taken_back_counts_when_it_arrives() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let (id, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    assert_eq!(deliveries(&tier.during(SECOND).await), [id]);
    tier.revoke(id).await;
    assert_eq!(taken_back(&revocations(&tier.during(SECOND).await)), [id]);
    tier.ack(&device, &[id], &[]).await;
    assert_eq!(tier.trace(id, &device).await, ["accepted", "stored", "dispatched", "delivered", "dropped: revoked"]);
    let state = tier.state(id).await;
    assert_eq!((state.delivered, state.dropped), (1, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn what_is_handed_over_while_it_is_taken_back_is_revoked_at_the_device() {
    // It waits for room in the window, or for a device that is away, which changes before the revocation is written.
    for away in [false, true] {
        let mut tier = Tier::timed_with(Config { window_max: 1, ..Config::default() }).await;
        let mut device = tier.device().await;
        let (first, _) = tier.send(send_to(to(&device))).await.expect("accepted");
        assert_eq!(deliveries(&tier.during(SECOND).await), [first]);
        if away {
            tier.ack(&device, &[first], &[]).await;
            tier.disconnect(&device).await;
        }
        let (id, _) = tier.send(send_to(to(&device))).await.expect("accepted");
        assert!(tier.during(SECOND).await.is_empty());
        tier.store.fault_once(Table::Mailboxes, Fault::Held);
        let revoking = tokio::spawn(tier.app(AppRequest::Stop(Stop { names: vec![by_id(id)], recall: true })));
        tier.store.met().await;
        if away {
            tier.reconnect(&mut device).await;
        } else {
            tier.ack(&device, &[first], &[]).await;
        }
        assert_eq!(deliveries(&tier.during(SECOND).await), [id], "{away}");
        tier.store.open();
        let came = tier.during(SECOND).await;
        revoking.await.expect("it runs").expect("it is stopped");
        tier.ack(&device, &[id], &[]).await;
        let came = [came, tier.during(SECOND).await].concat();
        assert_eq!(taken_back(&revocations(&came)), [id], "{away}");
        assert_eq!(tier.state(id).await.state, "revoked");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_is_taken_back_from_who_has_it_and_who_does_not() {
    let mut tier = Tier::timed().await;
    let (here, mut away) = (tier.device().await, tier.device().await);
    tier.disconnect(&away).await;
    let (id, _) = tier.send(everyone()).await.expect("accepted");
    let (stays, _) = tier.send(everyone()).await.expect("accepted");
    tier.during(SECOND).await;
    tier.ack(&here, &[], &[id, stays]).await;
    tier.events();
    tier.revoke(id).await;
    tier.during(SECOND).await;
    let events = tier.events();
    let [FrontEvent::CancelBroadcast(cancelled), revoked] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((cancelled.id.as_slice(), cancelled.app.as_str()), (id.to_bytes().as_slice(), "com.example.demo"));
    let live = revoke_in(revoked);
    assert_eq!((taken_back(std::slice::from_ref(&live)), live.broadcast), (vec![id], Some(true)));
    // The device that is here got it from its front.
    tier.ack(&here, &[], &[id_of(&live)]).await;
    tier.reconnect(&mut away).await;
    let came = tier.during(SECOND).await;
    assert_eq!((deliveries(&came), revocations(&came)), (vec![stays], vec![live.clone()]));
    tier.ack(&away, &[], &[stays, id_of(&live)]).await;
    for device in [&here, &away] {
        tier.disconnect(device).await;
    }
    tier.during(SECOND * 2).await;
    tier.crash().await;
    let (state, other) = (tier.state(id).await, tier.state(stays).await);
    assert_eq!((state.state.as_str(), state.delivered, other.delivered), ("revoked", 1, 2));
    assert_eq!(tier.day().await.delivered, 3, "a revocation is no delivery");
    assert_eq!(tier.last_step(id, &away).await, "dropped: revoked");
    assert_eq!(tier.last_step(id, &here).await, "delivered");
    tier.reconnect(&mut away).await;
    assert!(tier.during(SECOND).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_that_a_session_holds_back_is_not_handed_off_once_it_is_stopped() {
    let mut tier = Tier::timed().await;
    let mut device = tier.device().await;
    tier.disconnect(&device).await;
    // In an hour, where the device is.
    let send = Send { local_time: Some("2027-01-15T09:00".into()), ..everyone() };
    let (id, _) = tier.send(send).await.expect("accepted");
    tier.reconnect(&mut device).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), []);
    assert_eq!(tier.last_step(id, &device).await, "waiting: due later");
    assert_eq!(tier.stop(vec![by_id(id)], false).await, Ok((1, 0)));
    tier.advance(Duration::from_hours(1));
    assert!(tier.during(SECOND).await.is_empty());
    assert_eq!(tier.last_step(id, &device).await, "dropped: stopped");
}

#[tokio::test(start_paused = true)]
async fn what_is_stopped_is_delivered_no_further_and_taken_back_from_nobody() {
    let mut tier = Tier::timed().await;
    let (here, mut away) = (tier.device().await, tier.device().await);
    tier.disconnect(&away).await;
    let (single, _) = tier.send(send_to(to_all(&[&here, &away]))).await.expect("accepted");
    let (broadcast, _) = tier.send(everyone()).await.expect("accepted");
    tier.during(SECOND).await;
    tier.ack(&here, &[single], &[broadcast]).await;
    tier.events();
    for _ in 0..2 {
        assert_eq!(tier.stop(vec![by_id(single), by_id(broadcast)], false).await, Ok((2, 0)));
    }
    assert!(tier.during(SECOND).await.is_empty());
    assert!(matches!(tier.events().as_slice(), [FrontEvent::CancelBroadcast(_)]), "once");
    tier.reconnect(&mut away).await;
    assert!(tier.during(SECOND).await.is_empty());
    for id in [single, broadcast] {
        assert_eq!(tier.state(id).await.state, "stopped");
        assert_eq!(tier.last_step(id, &away).await, "dropped: stopped");
        assert_eq!(tier.last_step(id, &here).await, "delivered");
    }
    // Thought better of it: what was shown is taken back as well.
    assert_eq!(tier.stop(vec![by_id(single), by_id(broadcast)], true).await, Ok((2, 0)));
    assert_eq!(taken_back(&revocations(&tier.during(SECOND).await)), [single, single]);
    let revoked: Vec<_> =
        tier.events().iter().filter(|e| matches!(e, FrontEvent::Broadcast(_))).map(revoke_in).collect();
    assert_eq!(taken_back(&revoked), [broadcast]);
    for id in [single, broadcast] {
        assert_eq!(tier.state(id).await.state, "revoked");
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_still_shown_and_can_be_taken_back() {
    let mut tier = Tier::timed().await;
    let mut device = tier.device().await;
    tier.command(&device, subscribe("news")).await;
    let (single, _) = tier.send(Send { ttl_ms: 1000, ..send_to(to(&device)) }).await.expect("accepted");
    let (broadcast, _) = tier.send(Send { ttl_ms: 1000, ..send_to(audience(&topic("news"))) }).await.expect("accepted");
    tier.during(SECOND / 2).await;
    tier.ack(&device, &[single], &[broadcast]).await;
    tier.command(&device, unsubscribe("news")).await;
    tier.during(SECOND * 2).await;
    tier.disconnect(&device).await;
    assert_eq!(tier.stop(vec![by_id(single), by_id(broadcast)], true).await, Ok((2, 0)));
    tier.reconnect(&mut device).await;
    let mut revoked = taken_back(&revocations(&tier.during(SECOND).await));
    revoked.sort_unstable();
    assert_eq!(revoked, [single, broadcast]);
}

#[tokio::test(start_paused = true)]
async fn who_subscribed_after_a_broadcast_is_not_asked_to_take_it_back() {
    let mut tier = Tier::timed().await;
    let mut devices = [tier.device().await, tier.device().await];
    tier.command(&devices[0], subscribe("news")).await;
    let (id, _) = tier.send(send_to(audience(&topic("news")))).await.expect("accepted");
    tier.during(SECOND).await;
    tier.command(&devices[1], subscribe("news")).await;
    for device in &devices {
        tier.disconnect(device).await;
    }
    tier.revoke(id).await;
    for (device, expected) in devices.iter_mut().zip([vec![id], vec![]]) {
        tier.reconnect(device).await;
        assert_eq!(taken_back(&revocations(&tier.during(SECOND).await)), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn many_are_stopped_by_their_job_key_and_what_is_unknown_is_named() {
    let tier = Tier::timed().await;
    let device = tier.device().await;
    tier.disconnect(&device).await;
    let with_key = |mut send: Send| {
        send.notification.job_key = Some("job".into());
        send
    };
    let mut ids = Vec::new();
    for send in [send_to(to(&device)), everyone(), send_to(to(&device))] {
        ids.push(tier.send(with_key(send)).await.expect("accepted").0);
    }
    let later = Send { send_at_ms: Some((START_MS + 3_600_000).cast_signed()), ..send_to(to(&device)) };
    let (schedule, _) = tier.send(with_key(later)).await.expect("accepted");
    let names = || {
        let odd = MessageName { id: Some("x".into()), job_key: None };
        vec![by_job_key("job"), by_job_key("none"), by_id(MessageId(7)), odd]
    };
    for _ in 0..2 {
        let stop = AppRequest::Stop(Stop { names: names(), recall: true });
        let Ok(AppAnswer::Stopped(stopped)) = tier.app(stop).await else { panic!("it is stopped") };
        assert_eq!(stopped.found, ["job"]);
        assert_eq!(stopped.unknown, ["none", MessageId(7).to_string().as_str(), "x"]);
    }
    for id in ids {
        assert_eq!(tier.state(id).await.state, "revoked");
    }
    assert_eq!(tier.schedule(schedule).await.expect_err("it is gone").code, Code::NotFound);
    let refused = async |names| tier.stop(names, true).await.expect_err("refused").code;
    assert_eq!(refused(Vec::new()).await, Code::TooManyTargets);
    assert_eq!(refused(vec![by_id(MessageId(7)); 1001]).await, Code::TooManyTargets);
    assert_eq!(refused(vec![MessageName { id: None, job_key: None }]).await, Code::Missing);
    assert_eq!(refused(vec![MessageName { job_key: Some("job".into()), ..by_id(schedule) }]).await, Code::Missing);
    let many = tier.stop(vec![by_id(MessageId(7)); 1000], true).await;
    assert_eq!(many, Ok((0, 1000)));
}

#[tokio::test(start_paused = true)]
async fn taking_back_that_is_cut_off_is_finished_by_its_repeat() {
    for fault in [Fault::Lost, Fault::Unanswered] {
        let mut tier = Tier::timed().await;
        let mut device = tier.device().await;
        let (single, _) = tier.send(send_to(to(&device))).await.expect("accepted");
        let (broadcast, _) = tier.send(everyone()).await.expect("accepted");
        tier.during(SECOND).await;
        tier.ack(&device, &[single], &[broadcast]).await;
        tier.disconnect(&device).await;
        tier.during(SECOND).await;
        for id in [single, broadcast] {
            tier.store.fault(Table::Records, 0, fault);
            let stop = Stop { names: vec![by_id(id)], recall: true };
            let cut = tokio::spawn(tier.app(AppRequest::Stop(stop)));
            tier.store.met().await;
            cut.abort();
            tier.crash().await;
            tier.revoke(id).await;
        }
        tier.reconnect(&mut device).await;
        let came = revocations(&tier.during(SECOND).await);
        assert_eq!(taken_back(&came), [single, broadcast], "{fault:?}");
    }
}

// ------------------------------------------------------------------------------------------------------- by notify_id

async fn taken_back_by_note(tier: &mut Tier, notify_id: i64) -> usize {
    let revokes = revocations(&tier.during(SECOND).await);
    assert!(
        revokes.iter().all(|revoke| revoke.notify_id == Some(notify_id) && revoke.message.is_empty()),
        "{revokes:?}"
    );
    revokes.len()
}

#[tokio::test(start_paused = true)]
async fn what_is_shown_under_a_notify_id_is_taken_back_and_what_waits_under_it_is_dropped() {
    let mut tier = Tier::timed().await;
    let mut devices = [tier.device().await, tier.device().await];
    tier.command(&devices[0], set_alias("ann")).await;
    tier.disconnect(&devices[0]).await;
    let big = 1_i64 << 40;
    let all = to_all(&[&devices[0], &devices[1]]);
    let (noted_id, _) = tier.send(noted(big, all.clone())).await.expect("accepted");
    let (other, _) = tier.send(noted(7, all.clone())).await.expect("accepted");
    tier.during(SECOND).await;
    tier.ack(&devices[1], &[noted_id, other], &[]).await;
    assert_eq!(tier.recall(all.clone(), big).await, Ok(true));
    assert_eq!(taken_back_by_note(&mut tier, big).await, 1, "the one that is here");
    assert_eq!(tier.last_step(noted_id, &devices[0]).await, "dropped: revoked");
    assert_eq!(tier.last_step(noted_id, &devices[1]).await, "delivered");
    tier.reconnect(&mut devices[0]).await;
    let came = tier.during(SECOND).await;
    assert_eq!((deliveries(&came), revocations(&came).len()), (vec![other], 1));
    // By its alias, and again: the older one that waits is replaced.
    tier.disconnect(&devices[0]).await;
    for _ in 0..3 {
        assert_eq!(tier.recall(aliases(&["ann", "nobody"]), big).await, Ok(true));
    }
    tier.reconnect(&mut devices[0]).await;
    assert_eq!(taken_back_by_note(&mut tier, big).await, 1);
    for target in [aliases(&["nobody"]), regids(&["x".into()]), user_accounts(&["nobody"])] {
        assert_eq!(tier.recall(target, big).await.expect_err("nobody").code, Code::SendFailed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_topics_broadcasts_under_a_notify_id_are_taken_back() {
    let mut tier = Tier::timed().await;
    let mut device = tier.device().await;
    tier.command(&device, subscribe("news")).await;
    let (shown, _) = tier.send(noted(7, audience(&topic("news")))).await.expect("accepted");
    tier.ack(&device, &[], &[shown]).await;
    tier.disconnect(&device).await;
    let (waits, _) = tier.send(noted(7, audience(&topic("news")))).await.expect("accepted");
    let (elsewhere, _) = tier.send(noted(7, audience(&Audience::Everyone))).await.expect("accepted");
    let (other, _) = tier.send(noted(8, audience(&topic("news")))).await.expect("accepted");
    tier.events();
    for _ in 0..2 {
        assert_eq!(tier.recall(audience(&topic("news")), 7).await, Ok(true));
    }
    tier.during(SECOND).await;
    let cancelled = tier.events().iter().filter(|event| matches!(event, FrontEvent::CancelBroadcast(_))).count();
    assert_eq!(cancelled, 2, "each once");
    tier.reconnect(&mut device).await;
    let came = tier.during(SECOND).await;
    assert_eq!(deliveries(&came), [elsewhere, other]);
    assert!(!revocations(&came).is_empty());
    assert_eq!([tier.state(shown).await.state, tier.state(waits).await.state], ["revoked", "revoked"]);
    assert_eq!(tier.state(elsewhere).await.state, "sending");
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_holds_no_more_revocations_than_messages() {
    let mut tier = Tier::timed_with(Config { mailbox_max: 5, ..Config::default() }).await;
    let mut device = tier.device().await;
    tier.disconnect(&device).await;
    for notify_id in 0..5 {
        assert_eq!(tier.recall(to(&device), notify_id).await, Ok(true));
    }
    assert_eq!(tier.recall(to(&device), 5).await.expect_err("it is full").code, Code::LimitReached);
    assert_eq!(tier.recall(to(&device), 4).await, Ok(true), "it takes the place of the one before");
    assert_eq!(tier.cells(Table::Mailboxes).await, 5);
    tier.reconnect(&mut device).await;
    let came = revocations(&tier.during(SECOND).await);
    assert_eq!(came.iter().map(|revoke| revoke.notify_id).collect::<Vec<_>>(), (0..5).map(Some).collect::<Vec<_>>());
    let ids: Vec<_> = came.iter().map(id_of).collect();
    tier.ack(&device, &ids, &[]).await;
    assert_eq!(tier.recall(to(&device), 5).await, Ok(true));
}

#[tokio::test(start_paused = true)]
async fn a_message_for_another_device_is_not_taken_back_from_this_one() {
    let mut tier = Tier::timed().await;
    let (target, bystander): (Device, Device) = (tier.device().await, tier.device().await);
    let (id, _) = tier.send(send_to(to(&target))).await.expect("accepted");
    tier.during(SECOND).await;
    tier.revoke(id).await;
    let came = tier.during(SECOND).await;
    assert_eq!(came.len(), 1);
    assert_eq!(tier.trace(id, &bystander).await, ["NotFound"]);
}
