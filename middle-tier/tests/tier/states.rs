//! What is told of messages afterwards: counts, days, lists. They are exact, whatever devices say and whatever crashes.

use std::time::Duration;

use idl::audience::Audience;
use idl::contract::bus::{AppAnswer, AppRequest, Messages, Send, Trace};
use idl::contract::push::{FromDevice, Report};
use idl::error::Code;
use idl::ids::MessageId;
use idl::wire::encode;
use schema::sorted::Table;

use crate::harness::{
    APP, Device, FRONT, Fault, START_MS, Tier, aliases, audience, by_id, by_job_key, callback, deliveries, send_to,
    set_alias, set_user_account, subscribe, to, to_all, topic, unregister, user_accounts,
};

const SECOND: Duration = Duration::from_secs(1);
/// Long enough that what is counted is written.
const WRITTEN: Duration = Duration::from_secs(2);
const DAY: Duration = Duration::from_hours(24);

fn everyone() -> Send {
    send_to(audience(&Audience::Everyone))
}

async fn delivered(tier: &Tier, id: MessageId) -> i64 {
    tier.state(id).await.delivered
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_counts_each_device_once_over_crashes() {
    let mut tier = Tier::timed().await;
    let mut devices = [tier.device().await, tier.device().await, tier.device().await];
    let (id, _) = tier.send(everyone()).await.expect("accepted");
    for device in &devices[..2] {
        // The front gave it to them.
        tier.ack(device, &[], &[id]).await;
        tier.ack(device, &[], &[id]).await;
    }
    assert_eq!(delivered(&tier, id).await, 2);
    tier.crash().await;
    assert_eq!(delivered(&tier, id).await, 0, "nothing says that they have it: they get it again");
    for device in &mut devices {
        tier.reconnect(device).await;
    }
    assert_eq!(deliveries(&tier.during(SECOND).await), [id; 3]);
    for device in &devices {
        tier.ack(device, &[], &[id]).await;
        tier.disconnect(device).await;
    }
    assert_eq!(delivered(&tier, id).await, 3);
    tier.during(WRITTEN).await;
    for _ in 0..2 {
        tier.crash().await;
        assert_eq!((delivered(&tier, id).await, tier.day().await.delivered), (3, 3));
        tier.reconnect(&mut devices[0]).await;
        assert_eq!(deliveries(&tier.during(SECOND).await), []);
    }
    tier.restart().await;
    assert_eq!((delivered(&tier, id).await, tier.day().await.delivered), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_count_never_goes_down_while_it_is_written() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let (id, _) = tier.send(everyone()).await.expect("accepted");
    tier.ack(&device, &[], &[id]).await;
    tier.disconnect(&device).await;
    for _ in 0..300 {
        assert_eq!((delivered(&tier, id).await, tier.day().await.delivered), (1, 1));
        tier.during(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_count_is_never_written_over_a_newer_one() {
    let mut tier = Tier::timed().await;
    let devices = [tier.device().await, tier.device().await];
    let (id, _) = tier.send(everyone()).await.expect("accepted");
    tier.during(WRITTEN).await;
    tier.store.fault(Table::Records, 0, Fault::Held);
    for device in &devices {
        tier.ack(device, &[], &[id]).await;
        tier.disconnect(device).await;
        // The first write is held up while the second count comes.
        tier.during(WRITTEN).await;
    }
    tier.store.open();
    tier.during(WRITTEN).await;
    tier.crash().await;
    assert_eq!(delivered(&tier, id).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_count_whose_writing_is_under_way_is_not_added_twice() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let (id, _) = tier.send(everyone()).await.expect("accepted");
    tier.during(WRITTEN).await;
    tier.ack(&device, &[], &[id]).await;
    // The count is in the store, and nobody knows that it is.
    tier.store.fault_once(Table::Days, Fault::Late);
    tier.disconnect(&device).await;
    tier.store.met().await;
    let asked = async { tokio::join!(tier.state(id), tier.day()) };
    let opening = async {
        tokio::time::sleep(SECOND).await;
        tier.store.open();
    };
    let ((state, day), ()) = tokio::join!(asked, opening);
    assert_eq!((state.delivered, day.delivered), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_a_session_could_not_write_is_counted_when_it_comes_again_and_not_twice() {
    let mut tier = Tier::timed().await;
    let mut device = tier.device().await;
    let (id, _) = tier.send(everyone()).await.expect("accepted");
    tier.ack(&device, &[], &[id]).await;
    tier.store.fault(Table::Registrations, 0, Fault::Refused);
    tier.disconnect(&device).await;
    tier.during(SECOND).await;
    tier.store.open();
    assert_eq!(delivered(&tier, id).await, 0, "nobody knows that the device has it");
    tier.reconnect(&mut device).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), [id]);
    tier.ack(&device, &[], &[id]).await;
    assert_eq!(delivered(&tier, id).await, 1);
    tier.disconnect(&device).await;
    tier.during(WRITTEN).await;
    tier.crash().await;
    assert_eq!(delivered(&tier, id).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_could_not_be_opened_takes_no_counts_along() {
    let mut tier = Tier::timed().await;
    let mut device = tier.device().await;
    let (id, _) = tier.send(everyone()).await.expect("accepted");
    tier.ack(&device, &[], &[id]).await;
    tier.during(SECOND).await;
    device.epoch = tier.connect(device.account).await.expect("it connects");
    tier.store.set_down(true);
    let opened = tier.open(device.account, &device.epoch, &[device.regid.to_string()]).await;
    assert_eq!(opened.expect_err("the store is away").code, Code::StoreUnavailable);
    tier.store.set_down(false);
    tier.open(device.account, &device.epoch, &[device.regid.to_string()]).await.expect("it opens");
    assert_eq!(deliveries(&tier.during(SECOND).await), [id], "what it had acknowledged was forgotten");
    tier.ack(&device, &[], &[id]).await;
    assert_eq!(delivered(&tier, id).await, 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_delivered_of_a_broadcast_that_is_over_stays_counted() {
    let mut tier = Tier::timed().await;
    let (stays, goes) = (tier.device().await, tier.device().await);
    let (expired, _) = tier.send(Send { ttl_ms: 1000, ..everyone() }).await.expect("accepted");
    let (stopped, _) = tier.send(everyone()).await.expect("accepted");
    for device in [&stays, &goes] {
        tier.ack(device, &[], &[expired, stopped]).await;
    }
    tier.stop(vec![by_id(stopped)], false).await.expect("it is stopped");
    tier.during(WRITTEN).await;
    tier.command(&goes, unregister()).await;
    // The other stays, until its session is compared with the store.
    tier.during(Duration::from_mins(6)).await;
    tier.ack(&stays, &[], &[expired, stopped]).await;
    tier.crash().await;
    assert_eq!([delivered(&tier, expired).await, delivered(&tier, stopped).await], [2, 2]);
    assert_eq!(tier.day().await.delivered, 4);
}

#[tokio::test(start_paused = true)]
async fn what_a_device_claims_to_have_that_does_not_exist_is_not_counted() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let (single, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    let now = MessageId::at(tier.now_ms());
    let claimed: Vec<_> = (1..10_000).map(|at| MessageId(now.0 + at)).collect();
    tier.ack(&device, &claimed, &claimed).await;
    tier.ack(&device, &[], &[single, MessageId(u128::MAX), MessageId(0)]).await;
    tier.disconnect(&device).await;
    tier.during(WRITTEN).await;
    assert_eq!((delivered(&tier, single).await, tier.day().await.delivered), (0, 0));
    tier.crash().await;
    assert_eq!(tier.day().await.delivered, 0);
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_that_comes_twice_at_once_is_one_delivery() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let send = Send { callback: callback(1), ..send_to(to(&device)) };
    let (id, _) = tier.send(send).await.expect("accepted");
    assert_eq!(deliveries(&tier.during(SECOND).await), [id]);
    tier.store.fault(Table::Mailboxes, 0, Fault::Held);
    let opening = async {
        tier.store.met().await;
        // The second is under way as well.
        tokio::time::sleep(Duration::from_millis(10)).await;
        tier.store.open();
    };
    let ids = [id];
    tokio::join!(tier.ack(&device, &ids, &[]), tier.ack(&device, &ids, &[]), opening);
    tier.ack(&device, &[id], &[]).await;
    assert_eq!((delivered(&tier, id).await, tier.day().await.delivered), (1, 1));
    assert_eq!(tier.told().await, [(1, device.regid.to_string())]);
}

async fn report(tier: &Tier, device: &Device, message: MessageId, reason: i32) {
    let report = Report { app: APP.into(), message: message.to_bytes().to_vec(), reason };
    let command = FromDevice { report: Some(report), ..FromDevice::default() };
    tier.up(device.account, &device.epoch, encode(&command)).await.expect("the middle answers");
}

#[tokio::test(start_paused = true)]
async fn what_a_device_says_of_a_message_that_it_never_had_changes_nothing() {
    let tier = Tier::timed().await;
    let (target, other) = (tier.device().await, tier.device().await);
    let send = Send { callback: callback(1 | 2), ..send_to(to(&target)) };
    let (id, _) = tier.send(send).await.expect("accepted");
    for message in [id, MessageId(7)] {
        tier.click(&other, message).await;
        tier.ack(&other, &[message], &[message]).await;
        for reason in 0..7 {
            report(&tier, &other, message, reason).await;
        }
    }
    let state = tier.state(id).await;
    assert_eq!((state.delivered, state.clicked, state.dropped, state.state.as_str()), (0, 0, Some(0), "sending"));
    assert_eq!((tier.told().await, tier.day().await.clicked), (vec![], 0));
    assert_eq!(tier.cells(Table::Traces).await, 0);
    assert_eq!(tier.cells(Table::Mailboxes).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_click_counts_once_for_each_registration() {
    let mut tier = Tier::timed().await;
    let devices = [tier.device().await, tier.device().await];
    let send = Send { callback: callback(2), ..send_to(to_all(&[&devices[0], &devices[1]])) };
    let (single, _) = tier.send(send).await.expect("accepted");
    let (broadcast, _) = tier.send(everyone()).await.expect("accepted");
    tier.during(SECOND).await;
    // A click may come before its acknowledgement.
    tier.click(&devices[0], single).await;
    for device in &devices {
        tier.ack(device, &[single], &[broadcast]).await;
    }
    for _ in 0..2 {
        for device in &devices {
            tier.click(device, single).await;
            tier.click(device, broadcast).await;
        }
    }
    let [first, second] = [&devices[0], &devices[1]].map(|device| device.regid.to_string());
    for _ in 0..2 {
        assert_eq!([tier.state(single).await.clicked, tier.state(broadcast).await.clicked], [2, 2]);
        assert_eq!(tier.day().await.clicked, 4);
        assert_eq!(tier.told().await, [(2, first.clone()), (2, second.clone())]);
        assert_eq!(tier.last_step(broadcast, &devices[0]).await, "clicked");
        tier.during(WRITTEN).await;
        for device in &devices {
            tier.disconnect(device).await;
        }
        tier.during(WRITTEN).await;
        tier.crash().await;
        tier.click(&devices[1], broadcast).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_receipt_of_a_click_is_not_lost_with_a_write_that_fails() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let send = Send { callback: callback(2), ..send_to(to(&device)) };
    let (id, _) = tier.send(send).await.expect("accepted");
    tier.during(SECOND).await;
    tier.ack(&device, &[id], &[]).await;
    let clicked = idl::contract::push::Clicked { app: APP.into(), message: id.to_bytes().to_vec() };
    let command = encode(&FromDevice { clicked: Some(clicked), ..FromDevice::default() });
    for table in [Table::Traces, Table::Receipts] {
        tier.store.fault(table, 0, Fault::Refused);
        let failure = tier.up(device.account, &device.epoch, command.clone()).await.expect_err("the front tries again");
        assert!(failure.code.retryable());
        tier.store.open();
    }
    tier.up(device.account, &device.epoch, command).await.expect("the middle answers");
    tier.click(&device, id).await;
    assert!(tier.told().await.contains(&(2, device.regid.to_string())));
    assert_eq!((tier.state(id).await.clicked, tier.day().await.clicked), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_app_has_counters_for_each_day_of_utc() {
    let mut tier = Tier::timed().await;
    let (ann, bob) = (tier.device().await, tier.device().await);
    tier.command(&ann, set_alias("ann")).await;
    tier.command(&bob, set_user_account("bob")).await;
    tier.command(&bob, subscribe("news")).await;
    let send = async |send| tier.send(send).await.expect("accepted").0;
    let single = send(send_to(to_all(&[&ann, &bob]))).await;
    send(send_to(aliases(&["ann", "nobody"]))).await;
    send(send_to(user_accounts(&["bob"]))).await;
    send(send_to(audience(&topic("news")))).await;
    send(everyone()).await;
    assert_eq!(tier.refused(send_to(aliases(&["nobody"]))).await, Code::SendFailed);
    tier.during(SECOND).await;
    tier.ack(&ann, &[single], &[]).await;
    tier.click(&ann, single).await;
    tier.during(WRITTEN).await;
    let (before, _) = tier.send(send_to(to(&bob))).await.expect("accepted");
    // It is eight in the morning when tests begin.
    tier.advance(Duration::from_hours(16));
    tier.ack(&bob, &[single, before], &[]).await;
    for _ in 0..2 {
        let [first, second] = <[_; 2]>::try_from(tier.days().await).expect("two days");
        assert_eq!((first.day.as_str(), second.day.as_str()), ("20270115", "20270116"));
        assert_eq!((first.regid_recipients, first.alias_recipients, first.user_account_recipients), (3, 1, 1));
        assert_eq!((first.single_recipients, first.broadcast_recipients, first.messages), (5, 3, 6));
        assert_eq!((first.delivered, first.clicked), (1, 1));
        assert_eq!((second.delivered, second.messages, second.single_recipients), (2, 0, 0));
        tier.during(WRITTEN).await;
        tier.crash().await;
    }
    for (first, last) in [("20270116", "20270115"), ("2027-01-15", "20270115"), ("20270101", "20270201")] {
        let asked = idl::contract::bus::Counters { first_day: first.into(), last_day: last.into() };
        let failure = tier.app(AppRequest::Counters(asked)).await.expect_err("no such days");
        assert_eq!(failure.code, Code::BadValue, "{first} {last}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_counts_of_a_message_to_thousands_are_whole() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.command(&device, set_alias("all")).await;
    let mut regids = crate::registry::registrations(&tier, 2100, |number| {
        let alias = "all".parse().expect("an alias");
        crate::registry::Made { aliases: vec![alias], ..crate::registry::Made::numbered(number) }
    })
    .await;
    regids.push(device.regid);
    let filter = "not user_account(\"x\") and nothing = \"x\"".parse::<Audience>().expect("an expression");
    let send = Send { filter: Some(filter.to_wire()), ..send_to(aliases(&["all"])) };
    let (id, _) = tier.send(send).await.expect("accepted");
    tier.during(SECOND).await;
    let state = tier.state(id).await;
    assert_eq!((state.resolved, state.dropped, state.state.as_str()), (2101, Some(2101), "done"));
}

#[tokio::test(start_paused = true)]
async fn messages_are_listed_newest_first_by_time_and_by_job_key() {
    let tier = Tier::timed().await;
    let device = tier.device().await;
    let mut sent = Vec::new();
    for number in 0..5 {
        let mut send = send_to(if number % 2 == 0 { to(&device) } else { audience(&Audience::Everyone) });
        send.notification.job_key = Some(format!("job{}", number % 2));
        sent.push(tier.send(send).await.expect("accepted").0.to_string());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    sent.reverse();
    let between = async |begin_ms, end_ms, limit| match tier
        .app(AppRequest::Messages(Messages { begin_ms, end_ms, limit }))
        .await
    {
        Ok(AppAnswer::Messages(states)) => states.messages.into_iter().map(|state| state.id).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let (begin, end) = (START_MS.cast_signed(), (START_MS + 3_600_000).cast_signed());
    assert_eq!(between(begin, end, 100).await, sent);
    assert_eq!(between(begin, end, 2).await, sent[..2]);
    assert_eq!(between(begin, begin, 100).await, Vec::<String>::new());
    for (begin_ms, end_ms) in [(end, begin), (-1, end)] {
        let asked = AppRequest::Messages(Messages { begin_ms, end_ms, limit: 1 });
        assert_eq!(tier.app(asked).await.expect_err("no such time").code, Code::BadValue);
    }
    let states = tier.states(by_job_key("job0")).await.expect("known");
    assert_eq!(states.iter().map(|state| &state.id).collect::<Vec<_>>(), [&sent[0], &sent[2], &sent[4]]);
    assert!(states.iter().all(|state| state.job_key.as_deref() == Some("job0") && state.kind == 1));
    assert_eq!(tier.states(by_job_key("nothing")).await.expect_err("unknown").code, Code::NotFound);
    assert_eq!(tier.states(by_id(MessageId(7))).await.expect_err("unknown").code, Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_trace_says_when_and_through_which_front() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let (id, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    tier.during(SECOND).await;
    tier.ack(&device, &[id], &[]).await;
    let asked = Trace { id: id.to_string(), regid: device.regid.to_string() };
    let Ok(AppAnswer::Traced(traced)) = tier.app(AppRequest::Trace(asked)).await else { panic!("a trace") };
    let fronts: Vec<_> = traced.steps.iter().map(|step| step.front.clone()).collect();
    assert_eq!(fronts, [None, None, Some(FRONT.to_string()), None]);
    let times: Vec<_> = traced.steps.iter().map(|step| step.at_ms.expect("a time")).collect();
    assert!(times.is_sorted() && times[3] - times[2] >= 1000, "{times:?}");
    for (id, regid) in [(id.to_string(), "x".to_owned()), ("x".to_owned(), device.regid.to_string())] {
        let failure = tier.app(AppRequest::Trace(Trace { id, regid })).await.expect_err("no such thing");
        assert_eq!(failure.code, Code::BadValue);
    }
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_that_expired_before_a_device_came_back_was_not_delivered_to_it() {
    let mut tier = Tier::timed().await;
    let mut device = tier.device().await;
    tier.disconnect(&device).await;
    let (id, _) = tier.send(Send { ttl_ms: 1000, ..everyone() }).await.expect("accepted");
    let (later, _) = tier.send(everyone()).await.expect("accepted");
    tier.during(WRITTEN).await;
    tier.reconnect(&mut device).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), [later]);
    tier.ack(&device, &[], &[later]).await;
    tier.disconnect(&device).await;
    assert_eq!(tier.last_step(id, &device).await, "dropped: expired");
    assert_eq!(tier.last_step(later, &device).await, "delivered");
    assert_eq!(tier.state(id).await.state, "done");
}

#[tokio::test(start_paused = true)]
async fn more_broadcasts_than_are_remembered_were_delivered_all_the_same() {
    let tier = Tier::timed().await;
    let device = tier.device().await;
    let mut sent = Vec::new();
    for _ in 0..40 {
        sent.push(tier.send(everyone()).await.expect("accepted").0);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tier.ack(&device, &[], &sent).await;
    tier.disconnect(&device).await;
    for id in &sent {
        assert_eq!(tier.last_step(*id, &device).await, "delivered");
    }
    tier.advance(DAY);
}
