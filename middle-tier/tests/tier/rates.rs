//! How much an app may send, and what every answer says of it.

use std::time::Duration;

use idl::audience::Audience;
use idl::contract::bus::{AppReply, AppRequest, Rate, Send, SendMany};
use idl::error::Code;
use schema::sorted::Table;

use crate::harness::{Device, Fault, Tier, audience, by_id, first_page, regids, send_to, to};

const SECOND: Duration = Duration::from_secs(1);
const HOUR_MS: i64 = 3_600_000;

async fn reply(tier: &Tier, request: AppRequest) -> (i32, Rate) {
    let AppReply { status, rate, .. } = tier.reply(tier.call(request)).await.expect("answered");
    (status.code, rate.expect("a rate comes with every answer"))
}

async fn send(tier: &Tier, device: &Device) -> (i32, Rate) {
    reply(tier, AppRequest::Send(send_to(to(device)))).await
}

#[tokio::test(start_paused = true)]
async fn an_app_sends_so_many_messages_in_a_second_and_is_told_when_to_come_again() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let (_, rate) = send(&tier, &device).await;
    assert_eq!((rate.per_second_max, rate.per_day_max, rate.retry_after_ms), (0, 0, None), "no limits");
    tier.limit(4, 0).await;
    for left in [3, 2, 1, 0] {
        let (code, rate) = send(&tier, &device).await;
        assert_eq!((code, rate.per_second_max, rate.per_second_left, rate.retry_after_ms), (0, 4, left, None));
    }
    let (code, rate) = send(&tier, &device).await;
    assert_eq!((code, rate.per_second_left), (Code::RateLimited.number(), 0));
    let retry = Duration::from_millis(rate.retry_after_ms.expect("later").cast_unsigned());
    assert_eq!(retry, SECOND / 4);
    // Asking costs nothing.
    for _ in 0..10 {
        assert_eq!(reply(&tier, AppRequest::Schedules(first_page())).await.0, 0);
    }
    tier.during(Duration::from_millis(240)).await;
    assert_eq!(send(&tier, &device).await.0, Code::RateLimited.number());
    tier.during(Duration::from_millis(10)).await;
    assert_eq!(send(&tier, &device).await.0, 0);
    tier.during(SECOND * 100).await;
    let mut sent = 0;
    while send(&tier, &device).await.0 == 0 {
        sent += 1;
    }
    assert_eq!(sent, 4, "a second's worth is all that is saved up");
    assert_eq!(tier.refused(send_to(audience(&Audience::Everyone))).await, Code::RateLimited);
    tier.limit(0, 0).await;
    assert_eq!(send(&tier, &device).await.0, 0, "a new limit is in force at once");
}

#[tokio::test(start_paused = true)]
async fn many_messages_are_all_taken_or_none() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.limit(10, 0).await;
    let many = |count| AppRequest::SendMany(SendMany { sends: vec![send_to(to(&device)); count] });
    assert_eq!(reply(&tier, many(7)).await.0, 0);
    let (code, rate) = reply(&tier, many(7)).await;
    assert_eq!((code, rate.per_second_left), (Code::RateLimited.number(), 3));
    assert_eq!(tier.rows(Table::Records).await, 7);
    tier.during(SECOND).await;
    // More than a second's worth passes when the whole second is free, and is paid off afterwards.
    assert_eq!(reply(&tier, many(25)).await.0, 0);
    for _ in 0..2 {
        tier.during(SECOND * 3 / 4).await;
        assert_eq!(send(&tier, &device).await.0, Code::RateLimited.number());
    }
    tier.during(SECOND / 5).await;
    assert_eq!(send(&tier, &device).await.0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_daily_quota_ends_at_midnight_and_outlives_the_process() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.limit(0, 5).await;
    let (code, rate) = send(&tier, &device).await;
    // It is eight in the morning.
    assert_eq!((code, rate.per_day_max, rate.per_day_left), (0, 5, 4));
    assert!((15 * HOUR_MS..=16 * HOUR_MS).contains(&rate.day_ends_in_ms), "{}", rate.day_ends_in_ms);
    // A send that is refused is not counted.
    assert_eq!(tier.refused(send_to(regids(&["x".into()]))).await, Code::SendFailed);
    send(&tier, &device).await;
    tier.during(SECOND * 2).await;
    for crash in [true, false] {
        if crash {
            tier.crash().await;
        } else {
            tier.restart().await;
        }
        let asked = reply(&tier, AppRequest::Schedules(first_page())).await.1;
        let (code, rate) = send(&tier, &device).await;
        assert_eq!((code, asked.per_day_left), (0, rate.per_day_left + 1), "what is left is known before a send");
        tier.during(SECOND * 2).await;
    }
    assert_eq!(send(&tier, &device).await.1.per_day_left, 0);
    let (code, rate) = send(&tier, &device).await;
    assert_eq!(code, Code::DailyQuota.number());
    let wait = rate.retry_after_ms.expect("tomorrow");
    assert_eq!(wait, rate.day_ends_in_ms);
    tier.advance(Duration::from_millis(wait.cast_unsigned()));
    let (code, rate) = send(&tier, &device).await;
    assert_eq!((code, rate.per_day_left), (0, 4));
    let many = AppRequest::SendMany(SendMany { sends: vec![send_to(to(&device)); 5] });
    assert_eq!(reply(&tier, many).await.0, Code::DailyQuota.number());
}

#[tokio::test(start_paused = true)]
async fn sends_at_one_moment_do_not_pass_the_quota_together() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.limit(0, 3).await;
    tier.store.fault(Table::Records, 0, Fault::Held);
    let sends: Vec<_> =
        (0..10).map(|_| tokio::spawn(tier.reply(tier.call(AppRequest::Send(send_to(to(&device))))))).collect();
    tier.during(SECOND).await;
    tier.store.open();
    let mut codes = Vec::new();
    for send in sends {
        codes.push(send.await.expect("it runs").expect("answered").status.code);
    }
    codes.sort_unstable();
    assert_eq!(codes, [&[0; 3][..], &[Code::DailyQuota.number(); 7]].concat());
    // Those that the store refuses give their places back.
    tier.advance(Duration::from_hours(24));
    tier.store.fault(Table::Records, 0, Fault::Refused);
    for _ in 0..10 {
        assert_eq!(send(&tier, &device).await.0, Code::StoreUnavailable.number());
    }
    tier.store.open();
    assert_eq!(send(&tier, &device).await.1.per_day_left, 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_owed_is_not_forgiven_for_what_was_scheduled() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let send_at_ms = Some((tier.now_ms() + 61_000).cast_signed());
    tier.send(Send { send_at_ms, ..send_to(to(&device)) }).await.expect("accepted");
    tier.limit(10, 0).await;
    tier.during(SECOND * 60).await;
    let many = AppRequest::SendMany(SendMany { sends: vec![send_to(to(&device)); 60] });
    assert_eq!(reply(&tier, many).await.0, 0);
    // The schedule fires while five seconds' worth is owed.
    tier.during(SECOND * 3).await;
    assert_eq!(tier.counted("campanile_middle_schedules_fired_total"), 1);
    assert_eq!(send(&tier, &device).await.0, Code::RateLimited.number());
    tier.during(SECOND * 3).await;
    assert_eq!(send(&tier, &device).await.0, 0);
}

#[tokio::test(start_paused = true)]
async fn what_goes_out_later_is_counted_when_it_does() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.limit(1, 10).await;
    let send_at_ms = Some((tier.now_ms() + 60_000).cast_signed());
    let later = || AppRequest::Send(Send { send_at_ms, ..send_to(to(&device)) });
    let (code, rate) = reply(&tier, later()).await;
    assert_eq!((code, rate.per_day_left), (0, 10));
    assert_eq!(reply(&tier, later()).await.0, Code::RateLimited.number());
    tier.advance(Duration::from_mins(1));
    tier.during(SECOND * 3).await;
    assert_eq!(reply(&tier, AppRequest::MessageStatus(by_id(idl::ids::MessageId(7)))).await.1.per_day_left, 9);
}
