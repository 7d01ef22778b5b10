//! What apps may send in a second and in a day.

use idl::ids::AppId;
use schema::cache::{Cache, Grant, Left, Quota, Want};

use crate::world::{CacheWorld, START_MS, app};

cases! { $ quotas:
    a_second_has_room_for_so_many_and_fills_again,
    more_than_a_second_at_once_passes_when_the_whole_second_is_free,
    what_was_scheduled_waits_for_no_second_and_is_paid_off,
    a_day_has_room_for_so_many_and_what_it_refuses_costs_nothing,
    a_day_that_is_not_known_is_asked_for_once,
    what_was_not_sent_after_all_is_given_back_to_its_day,
    asking_for_nothing_takes_nothing,
    an_app_without_limits_is_not_counted,
    around_midnight_both_days_are_known,
    changed_limits_begin_anew,
    wiping_forgets_what_was_used,
    apps_have_quotas_of_their_own,
    of_many_at_once_so_many_pass_as_there_is_room_for,
    numbers_beyond_all_use_do_no_harm,
}

const DAY: u32 = 20_270_115;

fn want(app: &AppId, per_second_max: u32, per_day_max: u64, messages: u64) -> Want<'_> {
    let quota = Quota { per_second_max, per_day_max };
    Want { app, quota, messages, owe: false, day: DAY, sent_before: None }
}

fn left(second_left: f64, day_sent: u64, wait_ms: u64) -> Left {
    Left { second_left, day_sent, wait_ms }
}

pub(crate) async fn a_second_has_room_for_so_many_and_fills_again(world: CacheWorld) {
    let (cache, app) = (world.cache, app("demo"));
    assert_eq!(cache.take(want(&app, 10, 0, 8)).await.unwrap(), Grant::Taken(left(2.0, 0, 0)));
    assert_eq!(cache.take(want(&app, 10, 0, 3)).await.unwrap(), Grant::RateLimited(left(2.0, 0, 0)));
    assert_eq!(cache.take(want(&app, 10, 0, 2)).await.unwrap(), Grant::Taken(left(0.0, 0, 100)));
    assert_eq!(cache.take(want(&app, 10, 0, 1)).await.unwrap(), Grant::RateLimited(left(0.0, 0, 100)));
    world.clock.set(START_MS + 100);
    assert_eq!(cache.take(want(&app, 10, 0, 1)).await.unwrap(), Grant::Taken(left(0.0, 0, 100)));
    world.clock.set(START_MS + 60_000);
    assert_eq!(cache.take(want(&app, 10, 0, 1)).await.unwrap(), Grant::Taken(left(9.0, 0, 0)), "no more than a second");
    world.clock.set(START_MS);
    assert_eq!(cache.take(want(&app, 10, 0, 1)).await.unwrap(), Grant::Taken(left(8.0, 0, 0)), "time went back");
}

pub(crate) async fn more_than_a_second_at_once_passes_when_the_whole_second_is_free(world: CacheWorld) {
    let (cache, app) = (world.cache, app("demo"));
    assert_eq!(cache.take(want(&app, 10, 0, 30)).await.unwrap(), Grant::Taken(left(-20.0, 0, 2100)));
    world.clock.set(START_MS + 2000);
    assert_eq!(cache.take(want(&app, 10, 0, 1)).await.unwrap(), Grant::RateLimited(left(0.0, 0, 100)));
    world.clock.set(START_MS + 2500);
    assert_eq!(cache.take(want(&app, 10, 0, 30)).await.unwrap(), Grant::RateLimited(left(5.0, 0, 0)));
    world.clock.set(START_MS + 3000);
    assert_eq!(cache.take(want(&app, 10, 0, 30)).await.unwrap(), Grant::Taken(left(-20.0, 0, 2100)));
}

pub(crate) async fn what_was_scheduled_waits_for_no_second_and_is_paid_off(world: CacheWorld) {
    let (cache, app) = (world.cache, app("demo"));
    let scheduled = |messages| Want { owe: true, ..want(&app, 10, 0, messages) };
    assert_eq!(cache.take(want(&app, 10, 0, 10)).await.unwrap(), Grant::Taken(left(0.0, 0, 100)));
    assert_eq!(cache.take(scheduled(4)).await.unwrap(), Grant::Taken(left(-4.0, 0, 500)));
    assert_eq!(cache.take(scheduled(400)).await.unwrap(), Grant::Taken(left(-10.0, 0, 1100)), "a second pays it off");
    world.clock.set(START_MS + 1000);
    assert_eq!(cache.take(want(&app, 10, 0, 1)).await.unwrap(), Grant::RateLimited(left(0.0, 0, 100)));
    world.clock.set(START_MS + 2000);
    assert_eq!(cache.take(want(&app, 10, 0, 40)).await.unwrap(), Grant::Taken(left(-30.0, 0, 3100)));
    assert_eq!(
        cache.take(scheduled(1)).await.unwrap(),
        Grant::Taken(left(-30.0, 0, 3100)),
        "what is owed besides stays"
    );
}

pub(crate) async fn a_day_has_room_for_so_many_and_what_it_refuses_costs_nothing(world: CacheWorld) {
    let (cache, app) = (world.cache, app("demo"));
    let first = Want { sent_before: Some(90), ..want(&app, 100, 100, 8) };
    assert_eq!(cache.take(first).await.unwrap(), Grant::Taken(left(92.0, 98, 0)));
    assert_eq!(cache.take(want(&app, 100, 100, 3)).await.unwrap(), Grant::DailyQuota(left(92.0, 98, 0)));
    assert_eq!(cache.take(want(&app, 100, 100, 2)).await.unwrap(), Grant::Taken(left(90.0, 100, 0)));
    let owed = Want { owe: true, ..want(&app, 100, 100, 1) };
    assert_eq!(cache.take(owed).await.unwrap(), Grant::DailyQuota(left(90.0, 100, 0)));
    // What the second refuses is not counted on the day.
    let other = crate::world::app("other");
    let all = Want { sent_before: Some(0), ..want(&other, 5, 100, 5) };
    cache.take(all).await.unwrap();
    assert_eq!(cache.take(want(&other, 5, 100, 1)).await.unwrap(), Grant::RateLimited(left(0.0, 5, 200)));
}

pub(crate) async fn a_day_that_is_not_known_is_asked_for_once(world: CacheWorld) {
    let (cache, app) = (world.cache, app("demo"));
    assert_eq!(cache.take(want(&app, 0, 100, 1)).await.unwrap(), Grant::Unknown);
    assert_eq!(cache.take(want(&app, 0, 100, 0)).await.unwrap(), Grant::Unknown);
    let told = |sent| Want { sent_before: Some(sent), ..want(&app, 0, 100, 1) };
    assert_eq!(cache.take(told(50)).await.unwrap(), Grant::Taken(left(0.0, 51, 0)));
    assert_eq!(cache.take(told(50)).await.unwrap(), Grant::Taken(left(0.0, 52, 0)), "it knows better by now");
    assert_eq!(cache.take(want(&app, 0, 100, 1)).await.unwrap(), Grant::Taken(left(0.0, 53, 0)));
}

pub(crate) async fn what_was_not_sent_after_all_is_given_back_to_its_day(world: CacheWorld) {
    let (cache, app) = (world.cache, app("demo"));
    cache.refund(&app, DAY, 5).await.unwrap();
    assert_eq!(cache.take(want(&app, 10, 100, 1)).await.unwrap(), Grant::Unknown, "nothing was taken");
    let first = Want { sent_before: Some(10), ..want(&app, 10, 100, 10) };
    assert_eq!(cache.take(first).await.unwrap(), Grant::Taken(left(0.0, 20, 100)));
    cache.refund(&app, DAY, 4).await.unwrap();
    cache.refund(&app, DAY + 1, 4).await.unwrap();
    cache.refund(&app, DAY, 0).await.unwrap();
    assert_eq!(cache.take(want(&app, 10, 100, 0)).await.unwrap(), Grant::Taken(left(0.0, 16, 100)));
    cache.refund(&app, DAY, 400).await.unwrap();
    assert_eq!(cache.take(want(&app, 10, 100, 0)).await.unwrap(), Grant::Taken(left(0.0, 0, 100)));
}

pub(crate) async fn asking_for_nothing_takes_nothing(world: CacheWorld) {
    let (cache, app) = (world.cache, app("demo"));
    let ask = Want { sent_before: Some(100), ..want(&app, 10, 100, 0) };
    assert_eq!(cache.take(ask).await.unwrap(), Grant::Taken(left(10.0, 100, 0)), "also of a day that is full");
    let owed = Want { owe: true, ..want(&app, 10, 0, 15) };
    assert_eq!(cache.take(owed).await.unwrap(), Grant::Taken(left(-5.0, 0, 600)));
    assert_eq!(cache.take(want(&app, 10, 0, 0)).await.unwrap(), Grant::Taken(left(-5.0, 0, 600)));
}

pub(crate) async fn an_app_without_limits_is_not_counted(world: CacheWorld) {
    let (cache, app) = (world.cache, app("demo"));
    assert_eq!(cache.take(want(&app, 0, 0, 1_000_000)).await.unwrap(), Grant::Taken(left(0.0, 0, 0)));
    assert_eq!(cache.take(want(&app, 10, 0, 1)).await.unwrap(), Grant::Taken(left(9.0, 0, 0)));
    assert_eq!(cache.take(want(&app, 0, 100, 1)).await.unwrap(), Grant::Unknown);
}

pub(crate) async fn around_midnight_both_days_are_known(world: CacheWorld) {
    let (cache, app) = (world.cache, app("demo"));
    let on = |day, sent_before| Want { day, sent_before, ..want(&app, 0, 100, 1) };
    assert_eq!(cache.take(on(DAY, Some(10))).await.unwrap(), Grant::Taken(left(0.0, 11, 0)));
    assert_eq!(cache.take(on(DAY + 1, None)).await.unwrap(), Grant::Unknown, "a new day begins with what is stored");
    assert_eq!(cache.take(on(DAY + 1, Some(0))).await.unwrap(), Grant::Taken(left(0.0, 1, 0)));
    assert_eq!(cache.take(on(DAY, None)).await.unwrap(), Grant::Taken(left(0.0, 12, 0)), "by a clock that is behind");
    assert_eq!(cache.take(on(DAY + 1, None)).await.unwrap(), Grant::Taken(left(0.0, 2, 0)));
    assert_eq!(cache.take(on(DAY + 2, Some(0))).await.unwrap(), Grant::Taken(left(0.0, 1, 0)));
    assert_eq!(cache.take(on(DAY, None)).await.unwrap(), Grant::Unknown);
}

pub(crate) async fn changed_limits_begin_anew(world: CacheWorld) {
    let (cache, app) = (world.cache, app("demo"));
    let first = Want { sent_before: Some(0), ..want(&app, 10, 100, 10) };
    assert_eq!(cache.take(first).await.unwrap(), Grant::Taken(left(0.0, 10, 100)));
    assert_eq!(cache.take(want(&app, 5, 100, 0)).await.unwrap(), Grant::Taken(left(0.0, 10, 200)));
    cache.forget_quota(&app).await.unwrap();
    assert_eq!(cache.take(want(&app, 20, 100, 1)).await.unwrap(), Grant::Unknown);
    let again = Want { sent_before: Some(10), ..want(&app, 20, 100, 1) };
    assert_eq!(cache.take(again).await.unwrap(), Grant::Taken(left(19.0, 11, 0)));
}

pub(crate) async fn wiping_forgets_what_was_used(world: CacheWorld) {
    let (cache, app) = (world.cache, app("demo"));
    let all = Want { sent_before: Some(0), ..want(&app, 10, 100, 10) };
    assert_eq!(cache.take(all).await.unwrap(), Grant::Taken(left(0.0, 10, 100)));
    cache.wipe().await.unwrap();
    assert_eq!(cache.take(want(&app, 10, 100, 10)).await.unwrap(), Grant::Unknown);
    assert_eq!(cache.take(all).await.unwrap(), Grant::Taken(left(0.0, 10, 100)));
}

pub(crate) async fn apps_have_quotas_of_their_own(world: CacheWorld) {
    let (cache, one, other) = (world.cache, app("one"), app("other"));
    assert_eq!(cache.take(want(&one, 1, 0, 1)).await.unwrap(), Grant::Taken(left(0.0, 0, 1000)));
    assert_eq!(cache.take(want(&other, 1, 0, 1)).await.unwrap(), Grant::Taken(left(0.0, 0, 1000)));
    cache.forget_quota(&one).await.unwrap();
    assert_eq!(cache.take(want(&one, 1, 0, 1)).await.unwrap(), Grant::Taken(left(0.0, 0, 1000)));
    assert_eq!(cache.take(want(&other, 1, 0, 1)).await.unwrap(), Grant::RateLimited(left(0.0, 0, 1000)));
}

pub(crate) async fn of_many_at_once_so_many_pass_as_there_is_room_for(world: CacheWorld) {
    let takes = (0..60).map(|_| {
        let cache = world.cache.clone();
        tokio::spawn(async move {
            let app = app("demo");
            cache.take(Want { sent_before: Some(5), ..want(&app, 40, 25, 1) }).await.unwrap()
        })
    });
    let mut taken = 0;
    for take in takes.collect::<Vec<_>>() {
        taken += usize::from(matches!(take.await.unwrap(), Grant::Taken(_)));
    }
    assert_eq!(taken, 20);
}

pub(crate) async fn numbers_beyond_all_use_do_no_harm(world: CacheWorld) {
    let (cache, app) = (world.cache, app("demo"));
    let most = Want { sent_before: Some(u64::MAX), ..want(&app, u32::MAX, u64::MAX, u64::MAX) };
    take_any(&*cache, most).await;
    take_any(&*cache, Want { owe: true, ..most }).await;
    cache.refund(&app, DAY, u64::MAX).await.unwrap();
    cache.forget_quota(&app).await.unwrap();
    let small = Want { sent_before: Some(0), ..want(&app, 1, 10, 1) };
    assert_eq!(cache.take(small).await.unwrap(), Grant::Taken(left(0.0, 1, 1000)));
}

async fn take_any(cache: &dyn Cache, want: Want<'_>) {
    let grant = cache.take(want).await.unwrap();
    assert!(!matches!(grant, Grant::Unknown), "{grant:?}");
}
