//! Two middles on one bus.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::Duration;

use campanile_middle_tier::Config;
use idl::audience::Audience;
use idl::bus::{Reply, Request};
use idl::contract::bus::{AppAnswer, AppRequest, Counters, FrontLease, OnlineOf, RotateSecret, Send, Stop};
use idl::error::Code;
use idl::ids::{AccountId, MessageId, Partition, Shard};
use schema::sorted::Table;
use tokio::time::{Instant, sleep};

use crate::harness::{
    A, APP, B, Device, FRONT, Fault, Several, audience, by_id, callback, partition_of, regids, revocations, send_to,
    subscribe, to, to_all, topic,
};

const SECOND: Duration = Duration::from_secs(1);

/// What an account was handed, each message once, in order.
fn firsts(handed: &[(AccountId, MessageId)], device: &Device) -> Vec<MessageId> {
    let mut seen = BTreeSet::new();
    let of_it = handed.iter().filter(|(account, _)| *account == device.account).map(|(_, id)| *id);
    of_it.filter(|id| seen.insert(*id)).collect()
}

fn everyone() -> Send {
    send_to(audience(&Audience::Everyone))
}

#[tokio::test(start_paused = true)]
async fn a_send_through_one_middle_reaches_the_sessions_of_another_in_order() {
    let mut several = Several::start().await;
    let (a, b) = (several.device_at(A).await, several.device_at(B).await);
    let mut sent = Vec::new();
    let mut handed = Vec::new();
    for _ in 0..20 {
        // Those to one registration are accepted by its owner, the others by the owner of the app's secret.
        for target in [to_all(&[&a, &b]), to(&b)] {
            let send = several.app(AppRequest::Send(send_to(target)));
            let (answer, more) = several.handing(send).await;
            let Ok(AppAnswer::Accepted(accepted)) = answer else { panic!("{answer:?}") };
            sent.push(accepted.id.expect("an id").parse::<MessageId>().expect("an id"));
            handed.extend(more);
        }
    }
    handed.extend(several.handing(sleep(SECOND)).await.1);
    assert_eq!(firsts(&handed, &b), sent);
    assert_eq!(firsts(&handed, &a), sent.iter().step_by(2).copied().collect::<Vec<_>>());
    assert_eq!(handed.len(), 60, "each once");
    assert!(several.counted_at(A, "pokes_sent_total") >= 20);
    assert_eq!(several.counted_at(B, "requests_total{request=\"Stored\",code=\"0\"}"), 20);
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_moves_while_messages_are_sent_loses_none_and_keeps_their_order() {
    let mut several = Several::start().await;
    let (a, b) = (several.device_at(A).await, several.device_at(B).await);
    let mut sent = Vec::new();
    let mut handed = Vec::new();
    for round in 0..60 {
        let target = if round % 3 == 2 { to(&b) } else { to_all(&[&a, &b]) };
        let send = several.app(AppRequest::Send(send_to(target)));
        let doing = async {
            let id = match send.await {
                Ok(AppAnswer::Accepted(accepted)) => accepted.id.expect("an id"),
                other => panic!("{other:?}"),
            };
            sleep(SECOND / 50).await;
            id
        };
        let (id, more) = several.handing(doing).await;
        sent.push(id.parse::<MessageId>().expect("an id"));
        handed.extend(more);
        if round % 20 == 10 {
            // To and fro; while it moves, one more is sent.
            let to_middle = if several.shared.owner_of(partition_of(b.account)) == Some(A) { B } else { A };
            let bus = several.shared.clone();
            let meanwhile = several.app(AppRequest::Send(send_to(to_all(&[&a, &b]))));
            let partitions = [partition_of(b.account)];
            let moving = Box::pin(async { tokio::join!(bus.hand_over(&partitions, to_middle), meanwhile) });
            let (((), answer), more) = several.handing(moving).await;
            let Ok(AppAnswer::Accepted(accepted)) = answer else { panic!("{answer:?}") };
            sent.push(accepted.id.expect("an id").parse().expect("an id"));
            handed.extend(more);
            several.announce(&b).await;
        }
    }
    handed.extend(several.handing(sleep(SECOND * 5)).await.1);
    assert_eq!(firsts(&handed, &b), sent);
    assert_eq!(several.counted_of_all("partitions_given_total"), 3);
    assert_eq!(several.counted_of_all("sessions_dropped_total"), 0, "they ended in peace");
}

#[tokio::test(start_paused = true)]
async fn a_partition_is_given_away_with_the_progress_of_its_sessions_written() {
    let mut several = Several::start().await;
    let b = several.device_at(B).await;
    let (id, _) = several.send(everyone()).await.expect("accepted");
    several.events();
    several.handing(sleep(SECOND)).await;
    several.ack(&b, &[], &[id]).await;
    let bus = several.shared.clone();
    several.handing(bus.hand_over(&[partition_of(b.account)], A)).await;
    assert_eq!(several.state(id).await.delivered, 1, "what was acknowledged counts");
    several.announce(&b).await;
    assert_eq!(several.handing(sleep(SECOND)).await.1, [], "it does not come again");
    sleep(SECOND * 2).await;
    assert_eq!(several.state(id).await.delivered, 1);
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_is_lost_takes_its_sessions_along_and_nothing_of_them_is_written() {
    let mut several = Several::start().await;
    let b = several.device_at(B).await;
    let (id, _) = several.send(everyone()).await.expect("accepted");
    several.handing(sleep(SECOND)).await;
    several.ack(&b, &[], &[id]).await;
    assert_eq!(several.state(id).await.delivered, 1, "counted, not written");
    let (_, before) = (several.handing(sleep(SECOND * 2)).await, several.store.writes());
    several.shared.give(&[partition_of(b.account)], A).await;
    several.handing(sleep(SECOND * 10)).await;
    assert_eq!(several.store.writes(), before, "another has it");
    assert_eq!(
        (several.counted_at(B, "sessions_dropped_total"), several.counted_at(B, "partitions_lost_total")),
        (1, 1)
    );
    assert_eq!(several.state(id).await.delivered, 0, "the acknowledgement is withdrawn: it comes again");
    // Nobody has a session until the front announces it.
    several.send(send_to(to(&b))).await.expect("accepted");
    assert_eq!(several.handing(sleep(SECOND)).await.1, []);
    several.announce(&b).await;
    let handed = several.handing(sleep(SECOND)).await.1;
    assert_eq!((handed.len(), handed[0]), (2, (b.account, id)));
    several.ack(&b, &[], &[id]).await;
    assert_eq!(several.state(id).await.delivered, 1);
}

#[tokio::test(start_paused = true)]
async fn a_front_learns_which_accounts_to_announce_anew() {
    let several = Several::start().await;
    let generations = async || {
        let leased = several.ask(Request::FrontLease(FrontLease { front: FRONT.to_string() })).await;
        let Ok(Reply::Leased(leased)) = leased else { panic!("{leased:?}") };
        let all = leased.generations.expect("all");
        assert_eq!(leased.generation, all[0], "partition 0 answered");
        all
    };
    let before = generations().await;
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), Partition::COUNT);
    let moved = Partition::new(7).expect("there is one");
    several.shared.hand_over(&[moved], if several.shared.owner_of(moved) == Some(A) { B } else { A }).await;
    let after = generations().await;
    let changed: Vec<usize> = (0..Partition::COUNT).filter(|at| before[*at] != after[*at]).collect();
    assert_eq!(changed, [7]);
}

#[tokio::test(start_paused = true)]
async fn what_an_owner_could_not_be_told_is_told_again_and_in_order() {
    let mut several = Several::start().await;
    let (a, b) = (several.device_at(A).await, several.device_at(B).await);
    several.shared.lose("Stored", true);
    let mut sent = Vec::new();
    for round in 0..6 {
        if round == 3 {
            several.shared.lose("Stored", false);
        }
        let began = Instant::now();
        let send = several.app(AppRequest::Send(send_to(to_all(&[&a, &b]))));
        let (answer, handed) = several.handing(send).await;
        let Ok(AppAnswer::Accepted(accepted)) = answer else { panic!("{answer:?}") };
        sent.push(accepted.id.expect("an id").parse::<MessageId>().expect("an id"));
        assert_eq!(firsts(&handed, &b), [], "what was sent before comes before");
        // The owner is waited for once, not for every send.
        assert_eq!(began.elapsed() >= SECOND, round == 0, "{round}");
    }
    let handed = several.handing(sleep(SECOND * 10)).await.1;
    assert_eq!(firsts(&handed, &b), sent);
    assert!(several.counted_at(A, "pokes_failed_total") > 0);
    assert_eq!(several.counted_at(A, "pokes_given_up_total"), 0);
    // All is as before.
    let (id, _) = several.send(send_to(to_all(&[&a, &b]))).await.expect("accepted");
    assert_eq!(firsts(&several.handing(sleep(SECOND / 10)).await.1, &b), [id]);
}

#[tokio::test(start_paused = true)]
async fn what_a_vanished_middle_told_nobody_of_is_found_whoever_takes_its_work() {
    let config = Config { check_interval: SECOND * 86_400, ..Config::default() };
    for taker in [B, A] {
        let mut several = Several::start_with(config.clone()).await;
        let (a, b) = (several.device_at(A).await, several.device_at(B).await);
        several.during(SECOND * 40).await;
        several.shared.lose("Stored", true);
        several.shared.lose("JudgeSoon", true);
        let (single, _) = several.send(send_to(to_all(&[&a, &b]))).await.expect("accepted");
        let (broadcast, _) = several.send(everyone()).await.expect("accepted");
        let handed = several.handing(sleep(SECOND * 20)).await.1;
        assert_eq!(firsts(&handed, &b), [], "nobody told it");
        several.shared.lose("JudgeSoon", false);
        let of_a: Vec<_> =
            Partition::all().filter(|partition| several.shared.owner_of(*partition) == Some(A)).collect();
        several.shared.give(&of_a, taker).await;
        let handed = several.handing(sleep(SECOND * 2)).await.1;
        assert_eq!(firsts(&handed, &b), [single, broadcast], "middle {taker} takes it");
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_server_changes_topics_whoever_has_the_registrations() {
    let mut several = Several::start().await;
    let (a, b) = (several.device_at(A).await, several.device_at(B).await);
    for subscribe in [true, false] {
        let change = idl::contract::bus::ChangeTopic {
            topic: "news".into(),
            subscribe,
            kind: 1,
            values: vec![a.regid.to_string(), b.regid.to_string(), "nobody".into()],
            packages: None,
        };
        let changing = several.app(AppRequest::ChangeTopic(change));
        let mut told = BTreeMap::new();
        tokio::pin!(changing);
        let changed = loop {
            tokio::select! {
                biased;
                item = several.item() => {
                    let index = item.index.expect("the index follows");
                    told.insert(item.account, index[0].topics.clone());
                }
                changed = &mut changing => break changed,
            }
        };
        let Ok(AppAnswer::TopicChanged(changed)) = changed else { panic!("{changed:?}") };
        assert_eq!(changed.bad_targets, Some(vec!["nobody".to_owned()]));
        let topics = Some(if subscribe { vec!["news".to_owned()] } else { vec![] });
        let expected = [&a, &b].map(|device| (device.account.to_string(), topics.clone()));
        assert_eq!(told, BTreeMap::from(expected), "both indexes follow before it is answered");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_elsewhere_is_taken_back_and_what_was_handed_over_is_revoked() {
    let mut several = Several::start().await;
    let (a, b, away) = (several.device_at(A).await, several.device_at(B).await, several.device_at(B).await);
    several.disconnect(&away).await;
    sleep(SECOND).await;
    let all = to_all(&[&a, &b, &away]);
    // Due within an hour: it waits in the sessions.
    let later = Send { spread_ms: Some(3_600_000), ttl_ms: 86_400_000, ..send_to(all.clone()) };
    let (waiting, _) = several.send(later).await.expect("accepted");
    let (handed_over, _) = several.send(send_to(all)).await.expect("accepted");
    let handed = several.handing(sleep(SECOND)).await.1;
    assert_eq!(firsts(&handed, &b), [handed_over]);
    several.revoke(waiting).await;
    several.revoke(handed_over).await;
    let came = several.during(SECOND * 4000).await;
    assert_eq!(crate::harness::deliveries(&came), []);
    assert_eq!(revocations(&came).len(), 2, "of the one that two devices were handed: {came:?}");
    // Whoever was away since before was handed neither, and has nothing to take back.
    several.announce(&away).await;
    assert!(several.during(SECOND).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_an_owner_does_not_say_counts_as_handed_over() {
    let mut several = Several::start().await;
    let away = several.device_at(B).await;
    several.disconnect(&away).await;
    sleep(SECOND).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(several.send(send_to(to(&away))).await.expect("accepted").0);
    }
    several.shared.lose("Locate", true);
    several.revoke(ids[0]).await;
    several.shared.lose("Locate", false);
    // Nor does an owner that has the partition only since knows it.
    several.shared.give(&[partition_of(away.account)], A).await;
    sleep(SECOND).await;
    several.revoke(ids[1]).await;
    several.announce(&away).await;
    let came = several.during(SECOND).await;
    assert_eq!((revocations(&came).len(), crate::harness::deliveries(&came)), (2, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_that_is_stopped_is_handed_off_by_no_middle() {
    let mut several = Several::start().await;
    let (mut a, mut b) = (several.device_at(A).await, several.device_at(B).await);
    sleep(SECOND).await;
    let send = Send { spread_ms: Some(3_600_000), ttl_ms: 86_400_000, ..everyone() };
    let (stays, _) = several.send(send.clone()).await.expect("accepted");
    let (stopped, _) = several.send(send).await.expect("accepted");
    sleep(SECOND).await;
    // They come back: their sessions hold both until they are due.
    for device in [&mut a, &mut b] {
        several.reconnect(device).await;
    }
    several.handing(sleep(SECOND)).await;
    several.stop(vec![by_id(stopped)], false).await.expect("stopped");
    let handed = several.handing(sleep(SECOND * 4000)).await.1;
    assert!(handed.iter().all(|(_, id)| *id == stays), "{handed:?}");
}

#[tokio::test(start_paused = true)]
async fn middles_share_what_an_app_may_send() {
    let mut several = Several::start().await;
    let (a, b) = (several.device_at(A).await, several.device_at(B).await);
    several.limit(4, 100).await;
    let both = || send_to(to_all(&[&a, &b]));
    for send in [both(), send_to(to(&b)), both(), send_to(to(&b))] {
        several.send(send).await.expect("accepted");
    }
    assert_eq!(several.refused(both()).await, Code::RateLimited);
    assert_eq!(several.refused(send_to(to(&b))).await, Code::RateLimited);
    several.handing(sleep(SECOND)).await;
    let reply = several.reply(several.call(AppRequest::Send(both()))).await.expect("answered");
    assert_eq!(reply.rate.expect("a rate").per_day_left, 95);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_was_replaced_is_worth_nothing_at_any_middle() {
    let mut several = Several::start().await;
    let (a, b) = (several.device_at(A).await, several.device_at(B).await);
    for device in [&a, &b] {
        several.send(send_to(to(device))).await.expect("accepted");
    }
    let old = several.call(AppRequest::Send(send_to(to(&b))));
    let rotate = Request::RotateSecret(RotateSecret { app: APP.into() });
    let Ok(Reply::Apps(apps)) = several.ask(rotate).await else { panic!("an app") };
    assert_eq!(several.reply(old.clone()).await.map(drop).map_err(|failure| failure.code), Err(Code::Unauthorized));
    several.secret = apps.apps[0].secret.clone().expect("a new one");
    several.send(send_to(to(&b))).await.expect("accepted");
    // One that was not told finds out by itself.
    several.shared.lose("AppChanged", true);
    let old = several.call(AppRequest::Send(send_to(to(&b))));
    let rotate = Request::RotateSecret(RotateSecret { app: APP.into() });
    several.ask(rotate).await.expect("it is changed all the same");
    several.handing(sleep(SECOND * 30)).await;
    assert_eq!(several.reply(old).await.map(drop).map_err(|failure| failure.code), Err(Code::Unauthorized));
}

#[tokio::test(start_paused = true)]
async fn any_middle_tells_what_all_of_them_counted() {
    let mut several = Several::start().await;
    let (a, b) = (several.device_at(A).await, several.device_at(B).await);
    let (id, _) = several.send(everyone()).await.expect("accepted");
    for device in [&a, &b] {
        several.send(send_to(to(device))).await.expect("accepted");
    }
    several.handing(sleep(SECOND)).await;
    for device in [&a, &b] {
        several.ack(device, &[], &[id]).await;
    }
    several.click(&b, id).await;
    // Before and after it is written.
    for _ in 0..3 {
        for middle in [A, B] {
            let states = several.app_at(middle, AppRequest::MessageStatus(by_id(id))).await;
            let Ok(AppAnswer::Messages(states)) = states else { panic!("{states:?}") };
            assert_eq!((states.messages[0].delivered, states.messages[0].clicked), (2, 1), "at {middle}");
            let counters = Counters { first_day: "20270115".into(), last_day: "20270115".into() };
            let days = several.app_at(middle, AppRequest::Counters(counters)).await;
            let Ok(AppAnswer::Days(days)) = days else { panic!("{days:?}") };
            let day = &days.days[0];
            assert_eq!((day.messages, day.regid_recipients, day.delivered, day.clicked), (3, 2, 2, 1), "at {middle}");
            let asked = AppRequest::Online(OnlineOf { regids: vec![a.regid.to_string(), b.regid.to_string()] });
            let online = several.app_at(middle, asked).await;
            let Ok(AppAnswer::Online(online)) = online else { panic!("{online:?}") };
            assert!(online.states.iter().all(|state| state.online), "at {middle}: {online:?}");
        }
        several.lease().await;
        sleep(SECOND * 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_only_once_goes_to_whom_is_connected_elsewhere() {
    let mut several = Several::start().await;
    let (here, away) = (several.device_at(B).await, several.device_at(B).await);
    several.disconnect(&away).await;
    let (id, _) =
        several.send(Send { only_once: Some(true), ..send_to(to_all(&[&here, &away])) }).await.expect("accepted");
    assert_eq!(several.handing(sleep(SECOND)).await.1, [(here.account, id)]);
    assert_eq!(several.last_step(id, &away).await, "dropped: offline");
}

#[tokio::test(start_paused = true)]
async fn receipts_are_posted_once_whoever_writes_them() {
    let mut several = Several::start().await;
    let devices = [several.device_at(A).await, several.device_at(B).await];
    let mut expected = BTreeSet::new();
    for number in 0..8 {
        for device in &devices {
            let mut callback = callback(1).expect("one");
            callback.url = Some(format!("https://app.example.com/{number}"));
            let send = Send { callback: Some(callback), ..send_to(to(device)) };
            let (id, _) = several.send(send).await.expect("accepted");
            several.handing(sleep(SECOND / 10)).await;
            several.ack(device, &[id], &[]).await;
            expected.insert((format!("https://app.example.com/{number}"), id.to_string()));
        }
    }
    // Told, not found: the store is gone through every five minutes.
    several.handing(sleep(SECOND * 4)).await;
    let posts = several.posts.received.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let urls: BTreeSet<_> = posts.iter().map(|post| post.url.clone()).collect();
    assert_eq!(urls.len(), 8);
    let posted = several.posted().await;
    let messages: Vec<_> = posted.iter().map(|posted| posted.message.clone()).collect();
    assert_eq!(messages.iter().collect::<BTreeSet<_>>(), expected.iter().map(|(_, id)| id).collect());
    assert_eq!(messages.len(), 16, "each once");
    for middle in [A, B] {
        assert!(several.counted_at(middle, "receipts_posted_total") > 0, "both post");
    }
    several.handing(sleep(SECOND * 400)).await;
    assert_eq!(several.posted().await.len(), 16);
}

#[tokio::test(start_paused = true)]
async fn receipts_that_wait_are_posted_by_whoever_gets_their_partition() {
    let mut several = Several::start().await;
    let b = several.device_at(B).await;
    several.posts.down.store(true, std::sync::atomic::Ordering::SeqCst);
    let (id, _) = several.send(Send { callback: callback(1), ..send_to(to(&b)) }).await.expect("accepted");
    several.handing(sleep(SECOND)).await;
    several.ack(&b, &[id], &[]).await;
    several.handing(sleep(SECOND * 3)).await;
    several.posts.down.store(false, std::sync::atomic::Ordering::SeqCst);
    let of_a: Vec<_> = Partition::all().filter(|of| several.shared.owner_of(*of) == Some(A)).collect();
    let of_b: Vec<_> = Partition::all().filter(|of| several.shared.owner_of(*of) == Some(B)).collect();
    let bus = several.shared.clone();
    several
        .handing(async {
            bus.hand_over(&of_a, B).await;
            bus.hand_over(&of_b, A).await;
        })
        .await;
    several.handing(sleep(SECOND * 5)).await;
    assert_eq!(several.posted().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn readers_of_receipts_stop_before_what_any_middle_still_writes() {
    let mut several = Several::start().await;
    let b = several.device_at(B).await;
    let invalid = |several: &Several| {
        let targets = regids(&["x".into(), b.regid.to_string()]);
        several.app(AppRequest::Send(Send { callback: callback(16), ..send_to(targets) }))
    };
    let (id, _) = several.send(Send { callback: callback(1), ..send_to(to(&b)) }).await.expect("accepted");
    several.handing(sleep(SECOND)).await;
    // B is writing the receipt of the delivery.
    several.store.fault_once(Table::Receipts, Fault::Held);
    {
        let ids = [id];
        let ack = several.ack(&b, &ids, &[]);
        let held = several.store.met();
        tokio::pin!(ack);
        tokio::select! { () = &mut ack => panic!("it is held"), () = held => {} }
        // Within a millisecond ids have no order.
        sleep(SECOND / 100).await;
        let (answer, told) = tokio::join!(invalid(&several), async {
            sleep(SECOND).await;
            several.receipts().await
        });
        answer.expect("A writes one meanwhile");
        assert_eq!(told, [], "it would be passed over for ever");
        several.store.open();
        ack.await;
    }
    sleep(SECOND).await;
    assert_eq!(several.told().await.len(), 2);
    // A middle that does not say what it writes holds readers up, until it does.
    several.shared.lose("AskSettled", true);
    several.handing(invalid(&several)).await.0.expect("accepted");
    sleep(SECOND).await;
    assert_eq!(several.told().await.len(), 2);
    several.shared.lose("AskSettled", false);
    sleep(SECOND).await;
    assert_eq!(several.told().await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_schedule_fires_once() {
    let mut several = Several::start().await;
    let (a, b) = (several.device_at(A).await, several.device_at(B).await);
    let send_at_ms = Some((several.now_ms() + 10_000).cast_signed());
    let later = Send { send_at_ms, ..send_to(to_all(&[&a, &b])) };
    several.send(later).await.expect("accepted");
    let handed = several.handing(sleep(SECOND * 20)).await.1;
    assert_eq!(handed.len(), 2, "{handed:?}");
    assert_eq!(several.counted_of_all("schedules_fired_total"), 1);
}

#[tokio::test(start_paused = true)]
async fn middles_end_in_peace_with_what_was_counted_written() {
    let mut several = Several::start().await;
    let (a, b) = (several.device_at(A).await, several.device_at(B).await);
    several.command(&b, subscribe("news")).await;
    let (id, _) = several.send(send_to(audience(&topic("news")))).await.expect("accepted");
    several.handing(sleep(SECOND)).await;
    several.ack(&b, &[], &[id]).await;
    several.ack(&a, &[], &[]).await;
    let store = several.store.clone();
    let before = store.writes();
    several.end_in_peace().await;
    assert!(store.writes() > before);
}

#[tokio::test(start_paused = true)]
async fn a_schedule_that_another_middle_fires_is_stopped_with_what_it_became() {
    let mut several = Several::start().await;
    let (a, b) = (several.device_at(A).await, several.device_at(B).await);
    // The app's schedules are fired by B; A is asked to stop one.
    let of_app = Partition::from(Shard::of_app(&APP.parse().expect("an app")));
    if of_app != several.partition_of_secret() {
        several.shared.give(&[of_app], B).await;
    }
    let send_at_ms = Some((several.now_ms() + 10_000).cast_signed());
    let later = Send { send_at_ms, ..send_to(to_all(&[&a, &b])) };
    let (schedule, _) = several.send(later).await.expect("accepted");
    several.store.fault_once(Table::Records, Fault::Held);
    let stopped = {
        several.store.met().await;
        let stopping = several.app(AppRequest::Stop(Stop { names: vec![by_id(schedule)], recall: true }));
        let store = several.store.clone();
        let opening = async {
            sleep(SECOND).await;
            store.open();
        };
        several.handing(async { tokio::join!(stopping, opening).0 }).await.0
    };
    let Ok(AppAnswer::Stopped(stopped)) = stopped else { panic!("{stopped:?}") };
    assert_eq!((stopped.found.len(), stopped.unknown.len()), (1, 0));
    let state = several.state(schedule).await;
    assert_eq!(state.state, "revoked");
    assert!(several.during(SECOND * 20).await.iter().all(|payload| payload.deliver.is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_that_a_front_missed_is_judged_at_every_middle() {
    let config = Config { check_interval: SECOND * 86_400, ..Config::default() };
    let mut several = Several::start_with(config).await;
    several.device_at(B).await;
    several.during(SECOND * 20).await;
    let before = several.counted_at(B, "judgements_total");
    // The front takes no events: its queue and the publisher's are full after so many.
    for _ in 0..2100 {
        several.send(send_to(audience(&topic("nobody's")))).await.expect("accepted");
    }
    several.during(SECOND * 12).await;
    let told = several.counted_at(B, "requests_total{request=\"JudgeSoon\",code=\"0\"}");
    assert!((1..=4).contains(&told), "once in five seconds: {told}");
    assert!(several.counted_at(B, "judgements_total") > before);
}

#[tokio::test(start_paused = true)]
async fn middles_learn_how_full_a_mailbox_is_from_each_other() {
    let mut several = Several::start_with(Config { mailbox_max: 5, ..Config::default() }).await;
    let (a, b) = (several.device_at(A).await, several.device_at(B).await);
    let both = || send_to(to_all(&[&a, &b]));
    // The owner is told of what others add.
    several.send(send_to(to(&b))).await.expect("there is room");
    for _ in 0..2 {
        several.send(both()).await.expect("there is room");
    }
    for _ in 0..2 {
        several.send(send_to(to(&b))).await.expect("there is room");
    }
    assert_eq!(several.refused(send_to(to(&b))).await, Code::LimitReached);
    // The others read it again before long.
    several.handing(sleep(SECOND * 5)).await;
    let (_, bad) = several.send(both()).await.expect("one has room");
    assert_eq!(bad, [b.regid.to_string()]);
}
