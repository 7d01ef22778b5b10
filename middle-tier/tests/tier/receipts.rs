//! Receipts: which there are, what is posted of them, and that none is lost or told twice.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use idl::audience::Audience;
use idl::contract::bus::{AppAnswer, AppRequest, Page, Send};
use idl::contract::message::Callback;
use idl::error::Code;
use schema::sorted::Table;
use serde_json::json;

use crate::harness::{
    Fault, Tier, URL, aliases, audience, callback, deliveries, regids, send_to, set_alias, set_enabled, to, to_all,
    user_accounts,
};

const SECOND: Duration = Duration::from_secs(1);
/// Long enough for what waits to be posted, unless it failed before.
const POSTED: Duration = Duration::from_secs(3);
const ALL: i32 = 1 | 2 | 16 | 32 | 64 | 128 | 1024;

#[tokio::test(start_paused = true)]
async fn each_kind_is_told_once_and_posted_as_its_receiver_knows_it() {
    let mut tier = Tier::timed().await;
    let (ann, off) = (tier.device_with(&[("locale", "de")]).await, tier.device_with(&[("locale", "de")]).await);
    let french = tier.device_with(&[("locale", "fr")]).await;
    for (device, alias) in [(&ann, "ann"), (&off, "off"), (&french, "french")] {
        tier.command(device, set_alias(alias)).await;
    }
    tier.command(&off, set_enabled(false)).await;
    let mut send = Send {
        callback: callback(ALL),
        filter: Some("locale = \"de\"".parse::<Audience>().expect("an expression").to_wire()),
        ttl_ms: 60_000,
        ..send_to(aliases(&["ann", "off", "french", "nobody"]))
    };
    send.notification.job_key = Some("job".into());
    let (id, bad) = tier.send(send).await.expect("accepted");
    assert_eq!(bad, ["nobody"]);
    tier.during(SECOND).await;
    let delivered_ms = tier.now_ms();
    tier.ack(&ann, &[id], &[]).await;
    tier.click(&ann, id).await;
    tier.advance(Duration::from_mins(1));
    // One kind of a message goes into one post.
    tier.during(POSTED * 4).await;
    let mut told = tier.told().await;
    told.sort();
    let expected = [(1, "ann"), (2, "ann"), (16, "nobody"), (32, "off"), (64, "french"), (1024, "off")];
    assert_eq!(told, expected.map(|(kind, target)| (kind, target.to_owned())));
    let receipts = tier.receipts().await;
    assert!(receipts.iter().all(|receipt| receipt.message == id.to_string()
        && receipt.param.as_deref() == Some("p")
        && receipt.job_key.as_deref() == Some("job")));
    let of = |kind| receipts.iter().find(|receipt| receipt.kind == kind).expect("told");
    assert_eq!((of(1).regid.as_deref(), of(16).regid.as_deref()), (Some(ann.regid.to_string().as_str()), None));
    let mut posted = tier.posted().await;
    posted.sort_by_key(|posted| posted.kind);
    assert_eq!(posted.iter().map(|posted| posted.kind).collect::<Vec<_>>(), [1, 2, 16, 32, 64, 1024]);
    let expected = json!({ "param": "p", "targets": "ann", "jobkey": "job", "timestamp": delivered_ms });
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(posted[0].entry[name], *value, "{name}");
    }
    assert!(posted.iter().all(|posted| posted.message == id.to_string()));
    // Nothing comes again.
    tier.crash().await;
    tier.during(Duration::from_mins(10)).await;
    assert_eq!((tier.posted().await.len(), tier.receipts().await.len()), (6, 6));
}

#[tokio::test(start_paused = true)]
async fn only_what_is_wanted_is_told_and_only_of_regids_and_aliases() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.command(&device, crate::harness::set_user_account("us")).await;
    for target in [user_accounts(&["us"]), audience(&Audience::Everyone)] {
        let (id, _) = tier.send(Send { callback: callback(ALL), ..send_to(target) }).await.expect("accepted");
        tier.during(SECOND).await;
        tier.ack(&device, &[id], &[id]).await;
        tier.click(&device, id).await;
    }
    let (quiet, _) = tier.send(Send { callback: callback(2), ..send_to(to(&device)) }).await.expect("accepted");
    tier.during(SECOND).await;
    tier.ack(&device, &[quiet], &[]).await;
    tier.advance(Duration::from_hours(1));
    tier.during(POSTED).await;
    assert_eq!((tier.told().await, tier.posted().await.len()), (vec![], 0));
    let callback = |types, url: &str| Some(Callback { url: Some(url.into()), param: None, types });
    for wrong in [0, -1, 4, 2048, i32::MIN] {
        let send = Send { callback: callback(wrong, URL), ..send_to(to(&device)) };
        assert_eq!(tier.refused(send).await, Code::BadValue, "{wrong}");
    }
    let send = Send { callback: callback(1, "http://10.0.0.1/"), ..send_to(to(&device)) };
    assert_eq!(tier.refused(send).await, Code::BadValue);
    let param = Some(Callback { url: None, param: Some("ä".repeat(33)), types: 1 });
    assert_eq!(tier.refused(Send { callback: param, ..send_to(to(&device)) }).await, Code::BadValue);
}

#[tokio::test(start_paused = true)]
async fn receipts_without_a_url_are_kept_for_reading_alone() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let callback = Some(Callback { url: None, param: None, types: 1 });
    let (id, _) = tier.send(Send { callback, ..send_to(to(&device)) }).await.expect("accepted");
    tier.during(SECOND).await;
    tier.ack(&device, &[id], &[]).await;
    tier.during(POSTED).await;
    assert_eq!(tier.told().await, [(1, device.regid.to_string())]);
    assert_eq!((tier.posted().await.len(), tier.cells(Table::Callbacks).await), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn whoever_sends_over_the_daily_quota_is_told_so() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.limit(0, 1).await;
    let send = || Send { callback: callback(128 | 1), ..send_to(regids(&[device.regid.to_string(), "x".into()])) };
    tier.send(send()).await.expect("the first of the day");
    assert_eq!(tier.refused(send()).await, Code::DailyQuota);
    tier.during(POSTED).await;
    assert_eq!(tier.told().await, [(128, device.regid.to_string()), (128, "x".to_owned())]);
    let posted = tier.posted().await;
    assert_eq!(posted.len(), 1, "one message");
    assert_eq!(posted[0].entry["errorCode"], Code::DailyQuota.number());
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_down_gets_what_was_kept_for_it_also_after_a_crash() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.posts.down.store(true, Ordering::SeqCst);
    let mut sent = Vec::new();
    for _ in 0..3 {
        sent.push(tier.send(Send { callback: callback(1), ..send_to(to(&device)) }).await.expect("accepted").0);
        tier.during(SECOND).await;
        tier.ack(&device, &sent[sent.len() - 1..], &[]).await;
    }
    tier.during(Duration::from_mins(5)).await;
    assert_eq!(tier.posted().await.len(), 0);
    assert!(tier.counted("campanile_middle_receipt_post_failures_total") > 3);
    tier.crash().await;
    tier.posts.down.store(false, Ordering::SeqCst);
    tier.during(POSTED).await;
    let mut posted: Vec<_> = tier.posted().await.into_iter().map(|posted| posted.message).collect();
    posted.sort();
    assert_eq!(posted, sent.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(tier.cells(Table::Callbacks).await, 1, "only that there is such a URL");
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_down_holds_up_no_other() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let dead = "https://dead.example.com/";
    *tier.posts.dead.lock().unwrap_or_else(PoisonError::into_inner) = Some(dead.to_owned());
    let send = |url: &str| Send {
        callback: Some(Callback { url: Some(url.into()), param: None, types: 1 }),
        ..send_to(to(&device))
    };
    for round in 1..=5 {
        let (lost, _) = tier.send(send(dead)).await.expect("accepted");
        let (told, _) = tier.send(send(URL)).await.expect("accepted");
        assert_eq!(deliveries(&tier.during(SECOND).await), [lost, told]);
        tier.ack(&device, &[lost, told], &[]).await;
        tier.during(POSTED).await;
        assert_eq!(tier.posted().await.len(), round);
    }
}

#[tokio::test(start_paused = true)]
async fn a_receipt_is_written_with_what_it_tells_of_or_not_at_all() {
    for fault in [Fault::Lost, Fault::Refused, Fault::Unanswered] {
        let mut tier = Tier::timed().await;
        let mut device = tier.device().await;
        let (id, _) = tier.send(Send { callback: callback(1), ..send_to(to(&device)) }).await.expect("accepted");
        tier.during(SECOND).await;
        tier.store.fault(Table::Receipts, 0, fault);
        let ids = [id];
        match tokio::time::timeout(SECOND, tier.try_ack(&device, &ids, &[])).await {
            Ok(answer) => assert!(answer.is_err() && fault == Fault::Refused, "{answer:?}"),
            Err(_) => assert!(fault != Fault::Refused, "it is cut off"),
        }
        let told = usize::from(fault == Fault::Unanswered);
        tier.crash().await;
        assert_eq!(
            (tier.told().await.len(), tier.state(id).await.delivered),
            (told, i64::try_from(told).expect("small"))
        );
        // The device has it still and says so again, whether it is asked or not.
        tier.reconnect(&mut device).await;
        assert_eq!(deliveries(&tier.during(SECOND).await).len(), 1 - told);
        tier.ack(&device, &ids, &[]).await;
        tier.during(POSTED).await;
        assert_eq!(tier.told().await, [(1, device.regid.to_string())]);
        assert_eq!((tier.posted().await.len(), tier.state(id).await.delivered), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_while_the_disk_was_full_is_not_told_to_have_expired() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let mut sent = Vec::new();
    for types in [0, 1024, 2] {
        let callback = if types == 0 { None } else { callback(types) };
        sent.push(tier.send(Send { callback, ..send_to(to(&device)) }).await.expect("accepted").0);
    }
    tier.during(SECOND).await;
    // It takes deletions alone.
    tier.store.fault(Table::Traces, 0, Fault::Refused);
    tier.ack(&device, &sent[..1], &[]).await;
    for id in &sent[1..] {
        let failure = tier.try_ack(&device, &[*id], &[]).await.expect_err("it is said again");
        assert_eq!(failure.code, Code::StoreUnavailable);
    }
    tier.store.open();
    tier.ack(&device, &sent, &[]).await;
    tier.click(&device, sent[2]).await;
    tier.advance(Duration::from_mins(1));
    tier.during(POSTED).await;
    assert_eq!(tier.told().await, [(2, device.regid.to_string())]);
}

#[tokio::test(start_paused = true)]
async fn an_expiry_is_told_once_whatever_is_cut_off() {
    for fault in [Fault::Lost, Fault::Refused, Fault::Unanswered] {
        let mut tier = Tier::timed().await;
        let (here, away) = (tier.device().await, tier.device().await);
        tier.disconnect(&away).await;
        let send = Send { callback: callback(1024), ..send_to(to_all(&[&here, &away])) };
        let (id, _) = tier.send(send).await.expect("accepted");
        let (waits, _) = tier
            .send(Send { callback: callback(1024), ttl_ms: 600_000, ..send_to(to(&away)) })
            .await
            .expect("accepted");
        tier.during(SECOND).await;
        tier.ack(&here, &[id], &[]).await;
        tier.store.fault(Table::Receipts, 0, fault);
        tier.advance(Duration::from_mins(1));
        tier.during(POSTED).await;
        tier.crash().await;
        tier.during(POSTED).await;
        assert_eq!(tier.told().await, [(1024, away.regid.to_string())], "{fault:?}");
        assert_eq!(tier.last_step(id, &away).await, "dropped: expired");
        let state = tier.state(id).await;
        assert_eq!((state.delivered, state.dropped, state.state.as_str()), (1, Some(1), "done"));
        assert_eq!(tier.cells(Table::Expiries).await, 1, "the other still waits");
        tier.revoke(waits).await;
        tier.advance(Duration::from_mins(10));
        tier.during(POSTED).await;
        assert_eq!(tier.told().await.len(), 1, "what was taken back does not expire");
    }
}

#[tokio::test(start_paused = true)]
async fn receipts_come_in_order_and_a_cursor_goes_on_where_it_was() {
    let mut tier = Tier::timed().await;
    let mut device = tier.device().await;
    let page = async |tier: &Tier, after: Option<String>, limit| match tier
        .app(AppRequest::Receipts(Page { after, limit }))
        .await
    {
        Ok(AppAnswer::Receipts(page)) => (page.receipts, page.next_after),
        other => panic!("{other:?}"),
    };
    let (none, start) = page(&tier, None, 10).await;
    assert_eq!((none.len(), start.as_str()), (0, "0"));
    let (mut sent, mut seen, mut after) = (Vec::new(), Vec::new(), start);
    for round in 0..10 {
        for _ in 0..3 {
            sent.push(tier.send(Send { callback: callback(1), ..send_to(to(&device)) }).await.expect("accepted").0);
        }
        tier.during(SECOND).await;
        for id in &sent[sent.len() - 3..] {
            tier.ack(&device, &[*id], &[]).await;
        }
        if round % 3 == 0 {
            tier.crash().await;
            tier.reconnect(&mut device).await;
        }
        let (found, next) = page(&tier, Some(after), 2).await;
        seen.extend(found.into_iter().map(|receipt| receipt.message));
        after = next;
    }
    loop {
        let (found, next) = page(&tier, Some(after.clone()), 100).await;
        after = next;
        if found.is_empty() {
            break;
        }
        seen.extend(found.into_iter().map(|receipt| receipt.message));
    }
    assert_eq!(seen, sent.iter().map(ToString::to_string).collect::<Vec<_>>());
    let wrong = tier.app(AppRequest::Receipts(Page { after: Some("x".into()), limit: 1 })).await;
    assert_eq!(wrong.expect_err("no cursor").code, Code::BadValue);
}

#[tokio::test(start_paused = true)]
async fn no_reader_passes_over_a_receipt_that_is_being_written() {
    let mut tier = Tier::timed().await;
    let (slow, fast) = (tier.device().await, tier.device().await);
    let send = |device| Send { callback: callback(1), ..send_to(to(device)) };
    let (first, _) = tier.send(send(&slow)).await.expect("accepted");
    let (second, _) = tier.send(send(&fast)).await.expect("accepted");
    tier.during(SECOND).await;
    tier.store.fault_once(Table::Receipts, Fault::Held);
    let ids = [first];
    let looking = async {
        tier.store.met().await;
        tier.ack(&fast, &[second], &[]).await;
        assert_eq!(tier.told().await.len(), 0, "one that comes before it is still being written");
        tier.store.open();
    };
    tokio::join!(tier.ack(&slow, &ids, &[]), looking);
    assert_eq!(tier.told().await, [slow, fast].map(|device| (1, device.regid.to_string())));
}
