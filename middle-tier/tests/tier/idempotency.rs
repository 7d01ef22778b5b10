//! What is asked twice under one idempotency key is done once, whatever is cut off in between.

use std::time::Duration;

use idl::audience::Audience;
use idl::contract::bus::{AppAnswer, AppReply, AppRequest, Segment, Send, SendMany};
use idl::error::Code;
use idl::ids::MessageId;
use schema::sorted::Table;

use crate::harness::{
    Device, Fault, START_MS, Tier, audience, codes, deliveries, first_page, id_of, regids, send_to, to,
};

const SECOND: Duration = Duration::from_secs(1);

fn send(device: &Device) -> AppRequest {
    AppRequest::Send(send_to(to(device)))
}

/// Everything that a request says happened: code, replayed, and the answer itself.
fn told(reply: &AppReply) -> (i32, bool, &Option<AppAnswer>) {
    (reply.status.code, reply.replayed == Some(true), &reply.answer)
}

/// How many messages and schedules there are.
async fn accepted(tier: &Tier) -> (usize, usize) {
    let Ok(AppAnswer::Schedules(schedules)) = tier.app(AppRequest::Schedules(first_page())).await else {
        panic!("schedules")
    };
    let records = tier.rows(Table::Records).await;
    (records, schedules.schedules.len())
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_comes_again_for_a_day_also_after_a_crash() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let send = || {
        AppRequest::Send(Send {
            ttl_ms: 14 * 24 * 3_600_000,
            ..send_to(regids(&[device.regid.to_string(), "nobody".into()]))
        })
    };
    let first = tier.keyed("k", 1, send()).await.expect("accepted");
    assert_eq!((first.status.code, first.replayed), (0, None));
    for _ in 0..2 {
        let again = tier.keyed("k", 1, send()).await.expect("answered");
        assert_eq!(told(&again), (0, true, &first.answer), "bad targets too");
        assert!(again.rate.is_some());
        tier.crash().await;
    }
    assert_eq!(accepted(&tier).await, (1, 0));
    let other = tier.keyed("l", 1, send()).await.expect("accepted");
    assert_ne!(id_of(&other), id_of(&first), "another key is another request");
    tier.advance(Duration::from_hours(24));
    let later = tier.keyed("k", 1, send()).await.expect("accepted");
    assert_eq!(later.replayed, None);
    assert_ne!(id_of(&later), id_of(&first));
}

#[tokio::test(start_paused = true)]
async fn a_key_belongs_to_one_request_of_one_app() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let first = tier.keyed("k", 1, send(&device)).await.expect("accepted");
    let reused = tier.keyed("k", 2, send(&device)).await.expect("answered");
    assert_eq!((reused.status.code, reused.replayed), (Code::KeyReused.number(), None));
    assert_eq!(accepted(&tier).await, (1, 0));
    let (secret, _) = tier.create_app("com.example.other").await;
    let ours = std::mem::replace(&mut tier.secret, secret);
    let segment = Segment { name: "s".into(), expression: "all".into(), changed_at_ms: None };
    let theirs = tier.keyed("k", 1, AppRequest::PutSegment(segment)).await.expect("answered");
    assert_eq!((theirs.status.code, theirs.replayed), (0, None));
    tier.secret = ours;
    assert_eq!(id_of(&tier.keyed("k", 1, send(&device)).await.expect("answered")), id_of(&first));
    for key in ["", "a b", "ä", &"x".repeat(65)] {
        let refused = tier.keyed(key, 1, send(&device)).await.expect_err("no key");
        assert_eq!(refused.code, Code::BadValue, "{key:?}");
    }
    let mut call = tier.call(send(&device));
    call.idempotency_key = Some("x".into());
    assert_eq!(tier.reply(call).await.expect_err("no fingerprint").code, Code::BadRequest);
}

#[tokio::test(start_paused = true)]
async fn twins_that_come_at_once_send_once() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.store.fault(Table::Records, 0, Fault::Held);
    let twins: Vec<_> = (0..5).map(|_| tokio::spawn(tier.keyed("k", 1, send(&device)))).collect();
    tier.store.met().await;
    tier.during(SECOND).await;
    tier.store.open();
    let (mut ids, mut replayed) = (Vec::new(), 0);
    for twin in twins {
        let reply = twin.await.expect("it runs").expect("answered");
        ids.push(id_of(&reply));
        replayed += usize::from(reply.replayed == Some(true));
    }
    assert_eq!((ids.as_slice(), replayed), ([ids[0]; 5].as_slice(), 4));
    assert_eq!(deliveries(&tier.during(SECOND).await), [ids[0]]);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_stays_refused_and_what_may_succeed_later_may_be_tried_again() {
    let tier = Tier::timed().await;
    let (account, _) = tier.account().await;
    let device = tier.device().await;
    let bad = || AppRequest::Send(Send { ttl_ms: 0, ..send_to(to(&device)) });
    for replayed in [None, Some(true), Some(true)] {
        let reply = tier.keyed("bad", 1, bad()).await.expect("answered");
        assert_eq!((reply.status.code, reply.replayed), (Code::BadTimeToLive.number(), replayed));
        assert!(reply.status.description.is_some_and(|text| text.contains("time to live")));
    }
    let nobody = || AppRequest::Send(send_to(regids(&[account.to_string()])));
    for replayed in [None, Some(true)] {
        let reply = tier.keyed("nobody", 1, nobody()).await.expect("answered");
        assert_eq!((reply.status.code, reply.replayed), (Code::SendFailed.number(), replayed));
    }

    tier.limit(1, 0).await;
    tier.send(send_to(to(&device))).await.expect("the first of the second");
    let limited = tier.keyed("rate", 1, send(&device)).await.expect("answered");
    assert_eq!((limited.status.code, limited.replayed), (Code::RateLimited.number(), None));
    tokio::time::sleep(SECOND).await;
    let accepted = tier.keyed("rate", 1, send(&device)).await.expect("answered");
    assert_eq!((accepted.status.code, accepted.replayed), (0, None));
    tier.limit(0, 0).await;

    tier.store.fault(Table::Records, 0, Fault::Refused);
    let refused = tier.keyed("store", 1, send(&device)).await.expect("answered");
    assert_eq!(refused.status.code, Code::StoreUnavailable.number());
    tier.store.open();
    let accepted = tier.keyed("store", 1, send(&device)).await.expect("answered");
    assert_eq!((accepted.status.code, accepted.replayed), (0, None));
    assert_eq!(tier.keyed("store", 1, send(&device)).await.expect("answered").replayed, Some(true));
}

/// Cuts a request off at each of its writes, before and after it, and asks again in the next life, also twice at once: what
/// it asks for is there once, and all answers from then on are the same.
async fn cut_off_everywhere(expected: (usize, usize), request: impl Fn(&Device) -> AppRequest, settle: Duration) {
    let mut cut = 0;
    for fault in [Fault::Lost, Fault::Unanswered] {
        for write in 0.. {
            let mut tier = Tier::timed().await;
            let device = tier.device().await;
            tier.store.fault_all(write, fault);
            let first = tokio::spawn(tier.keyed("k", 1, request(&device)));
            tier.during(SECOND).await;
            let answered = first.is_finished();
            if answered {
                let reply = first.await.expect("it runs").expect("answered");
                assert_eq!(reply.status.code, 0, "{reply:?}");
                assert!(write > 0, "nothing is answered that is not written");
            } else {
                cut += 1;
                first.abort();
            }
            tier.crash().await;
            let (one, other) = (tier.keyed("k", 1, request(&device)), tier.keyed("k", 1, request(&device)));
            let (one, other) = tokio::join!(one, other);
            let (one, other) = (one.expect("answered"), other.expect("answered"));
            assert_eq!((one.status.code, &one.answer), (0, &other.answer), "cut off {fault:?} at {write}");
            tier.during(settle).await;
            assert_eq!(accepted(&tier).await, expected, "cut off {fault:?} at {write}");
            tier.crash().await;
            let last = tier.keyed("k", 1, request(&device)).await.expect("answered");
            assert_eq!(told(&last), (0, true, &one.answer), "cut off {fault:?} at {write}");
            if answered {
                break;
            }
        }
    }
    assert!(cut >= 3, "a claim and the message, before and after");
}

#[tokio::test(start_paused = true)]
async fn a_send_that_is_cut_off_anywhere_is_made_once() {
    cut_off_everywhere((1, 0), send, SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_that_is_cut_off_anywhere_is_made_once() {
    let everyone = |_: &Device| AppRequest::Send(send_to(audience(&Audience::Everyone)));
    cut_off_everywhere((1, 0), everyone, Duration::from_millis(10)).await;
}

fn later(device: &Device) -> Send {
    Send { send_at_ms: Some((START_MS + 3_600_000).cast_signed()), ..send_to(to(device)) }
}

#[tokio::test(start_paused = true)]
async fn a_schedule_that_is_cut_off_anywhere_is_made_once() {
    cut_off_everywhere((0, 1), |device| AppRequest::Send(later(device)), SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn many_messages_that_are_cut_off_anywhere_are_made_once() {
    let many = |device: &Device| {
        let now = || send_to(to(device));
        AppRequest::SendMany(SendMany { sends: vec![later(device), now(), later(device), now()] })
    };
    cut_off_everywhere((2, 2), many, SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_cut_off_again_and_again_is_made_once() {
    let many = |device: &Device| {
        AppRequest::SendMany(SendMany { sends: vec![later(device), send_to(to(device)), later(device)] })
    };
    let one = |device: &Device| AppRequest::Send(later(device));
    let requests: [&dyn Fn(&Device) -> AppRequest; 2] = [&many, &one];
    for (request, expected) in requests.into_iter().zip([(1, 2), (0, 1)]) {
        for cuts in [[0, 0, 0], [1, 1, 1], [1, 2, 1], [2, 1, 2], [0, 1, 2]] {
            let mut tier = Tier::timed().await;
            let device = tier.device().await;
            for cut in cuts {
                tier.store.fault_all(cut, Fault::Lost);
                let asked = tokio::spawn(tier.keyed("k", 1, request(&device)));
                tier.during(SECOND / 10).await;
                asked.abort();
                tier.crash().await;
            }
            let reply = tier.keyed("k", 1, request(&device)).await.expect("answered");
            assert_eq!((reply.status.code, accepted(&tier).await), (0, expected), "{cuts:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_many_messages_the_first_answer_names_each() {
    let tier = Tier::timed().await;
    let device = tier.device().await;
    let sends = vec![send_to(to(&device)), send_to(regids(&["nobody".into()])), later(&device)];
    let many = || AppRequest::SendMany(SendMany { sends: sends.clone() });
    let first = tier.keyed("k", 1, many()).await.expect("answered");
    let Some(AppAnswer::AcceptedMany(answer)) = &first.answer else { panic!("{first:?}") };
    assert_eq!(codes(answer), [0, Code::SendFailed.number(), 0]);
    assert!(answer.accepted[2].due_ms.is_some());
    assert_eq!(told(&tier.keyed("k", 1, many()).await.expect("answered")), (0, true, &first.answer));
    assert_eq!(accepted(&tier).await, (1, 1));
}

#[tokio::test(start_paused = true)]
async fn many_messages_of_which_the_store_takes_none_leave_nothing() {
    let tier = Tier::timed().await;
    let device = tier.device().await;
    let many = || AppRequest::SendMany(SendMany { sends: vec![later(&device), send_to(to(&device))] });
    tier.store.fault(Table::Records, 0, Fault::Refused);
    for key in [Some("k"), None, None] {
        let reply = match key {
            Some(key) => tier.keyed(key, 1, many()).await.expect("answered"),
            None => tier.reply(tier.call(many())).await.expect("answered"),
        };
        assert_eq!(reply.status.code, Code::StoreUnavailable.number());
    }
    assert_eq!(accepted(&tier).await, (0, 0));
    tier.store.open();
    assert_eq!(tier.keyed("k", 1, many()).await.expect("answered").replayed, None);
    assert_eq!(accepted(&tier).await, (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_schedule_that_fired_before_its_answer_was_asked_for_again_is_not_made_anew() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let soon = START_MS + 5000;
    let sends = vec![Send { send_at_ms: Some(soon.cast_signed()), ..send_to(to(&device)) }, send_to(to(&device))];
    let many = || AppRequest::SendMany(SendMany { sends: sends.clone() });
    // The claim passes; the messages, and the answer with them, are lost.
    tier.store.fault(Table::Records, 0, Fault::Lost);
    let first = tokio::spawn(tier.keyed("k", 1, many()));
    tier.store.met().await;
    first.abort();
    tier.crash().await;
    tier.during(Duration::from_secs(8)).await;
    let reply = tier.keyed("k", 1, many()).await.expect("answered");
    tier.during(Duration::from_secs(8)).await;
    assert_eq!(reply.status.code, 0);
    // One that fired, one that was sent now.
    assert_eq!(accepted(&tier).await, (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_or_another_request_under_a_key_is_answered_as_it_was_first() {
    let tier = Tier::timed().await;
    let (one, two) = (tier.device().await, tier.device().await);
    let dry = |device: &Device| AppRequest::Send(Send { dry_run: Some(true), ..send_to(to(device)) });
    let first = tier.keyed("dry", 1, dry(&one)).await.expect("answered");
    tier.command(&one, crate::harness::unregister()).await;
    assert_eq!(told(&tier.keyed("dry", 1, dry(&one)).await.expect("answered")), (0, true, &first.answer));
    assert_eq!(accepted(&tier).await, (0, 0));
    let segment =
        || AppRequest::PutSegment(Segment { name: "s".into(), expression: "all".into(), changed_at_ms: None });
    let first = tier.keyed("segment", 1, segment()).await.expect("answered");
    assert_eq!(told(&tier.keyed("segment", 1, segment()).await.expect("answered")), (0, true, &first.answer));
    let id: MessageId = id_of(&tier.keyed("send", 1, send(&two)).await.expect("answered"));
    assert_eq!(tier.state(id).await.resolved, 1);
}
