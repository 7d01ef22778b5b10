//! How much an app may send: so many messages in a second, so many in a day. The limits are in the catalog; what is used of
//! them is in the cache, which all middles share.

use idl::contract::bus::Rate;
use idl::error::{Code, Failure};
use idl::ids::AppId;
use schema::cache::{Grant, Left, Quota, Want};
use schema::catalog::App;

use crate::Shared;
use crate::accounts::signed;
use crate::counts::{self, day_of};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// The right to send so many messages on a day. Say what was [`sent`] of them: the rest is given back.
#[must_use]
pub(crate) struct Taken {
    app: AppId,
    day: u32,
    messages: u64,
}

/// Takes the right to send so many messages now, all or none. More than a second's worth at once passes when the whole second
/// is free, and is paid off afterwards.
pub(crate) async fn take(shared: &Shared, app: &App, messages: u64) -> Result<Option<Taken>, Failure> {
    take_or_owe(shared, app, messages, false).await
}

/// Takes the right to send a message that was scheduled: it waits for no other second, what it uses up others pay off.
pub(crate) async fn take_scheduled(shared: &Shared, app: &App) -> Result<Option<Taken>, Failure> {
    take_or_owe(shared, app, 1, true).await
}

async fn take_or_owe(shared: &Shared, app: &App, messages: u64, owe: bool) -> Result<Option<Taken>, Failure> {
    if messages == 0 || is_unlimited(app) {
        return Ok(None);
    }
    let day = day_of(shared.clock.now_ms());
    match want(shared, app, messages, owe, day).await? {
        Grant::Taken(_) => Ok(Some(Taken { app: app.app.clone(), day, messages })),
        Grant::RateLimited(_) => {
            let text = format!("{} messages may be sent in a second; send slower", app.sends_per_second_max);
            Err(Failure::new(Code::RateLimited, text))
        }
        Grant::DailyQuota(left) => {
            let text = format!(
                "{} messages may be sent in a day and {} were; the day ends at midnight UTC",
                app.sends_per_day_max, left.day_sent
            );
            Err(Failure::new(Code::DailyQuota, text))
        }
        Grant::Unknown => Err(Failure::new(Code::System, "the cache keeps forgetting what was sent today; try again")),
    }
}

/// So many of the messages went out; the others were refused, or go out later.
pub(crate) async fn sent(shared: &Shared, taken: Option<Taken>, messages: u64) {
    let Some(taken) = taken else { return };
    let unsent = taken.messages.saturating_sub(messages);
    if unsent > 0
        && let Err(error) = shared.cache.refund(&taken.app, taken.day, unsent).await
    {
        tracing::debug!(app = %taken.app, %error, unsent, "what was not sent counts for the day all the same");
    }
}

/// What the app may still send.
pub(crate) async fn left(shared: &Shared, app: &App, refused: Option<Code>) -> Rate {
    let now_ms = shared.clock.now_ms();
    let day_ends_in_ms = signed(DAY_MS - now_ms % DAY_MS);
    let mut rate = Rate {
        per_second_max: i64::from(app.sends_per_second_max),
        per_second_left: i64::from(app.sends_per_second_max),
        per_day_max: signed(app.sends_per_day_max),
        per_day_left: signed(app.sends_per_day_max),
        day_ends_in_ms,
        retry_after_ms: None,
    };
    if is_unlimited(app) {
        return rate;
    }
    let left = match want(shared, app, 0, false, day_of(now_ms)).await {
        Ok(Grant::Taken(left) | Grant::RateLimited(left) | Grant::DailyQuota(left)) => left,
        Ok(Grant::Unknown) => Left { second_left: 0.0, day_sent: 0, wait_ms: 0 },
        Err(failure) => {
            tracing::debug!(app = %app.app, %failure, "how much an app may still send is not known");
            return rate;
        }
    };
    #[expect(clippy::cast_possible_truncation, reason = "between 0 and the limit, which is a u32")]
    let second_left = left.second_left.max(0.0) as i64;
    rate.per_second_left = second_left;
    rate.per_day_left = signed(app.sends_per_day_max.saturating_sub(left.day_sent));
    rate.retry_after_ms = match refused {
        Some(Code::RateLimited) => Some(signed(left.wait_ms.max(1))),
        Some(Code::DailyQuota) => Some(day_ends_in_ms),
        _ => None,
    };
    rate
}

fn is_unlimited(app: &App) -> bool {
    app.sends_per_second_max == 0 && app.sends_per_day_max == 0
}

async fn want(shared: &Shared, app: &App, messages: u64, owe: bool, day: u32) -> Result<Grant, Failure> {
    let quota = Quota { per_second_max: app.sends_per_second_max, per_day_max: app.sends_per_day_max };
    let want = Want { app: &app.app, quota, messages, owe, day, sent_before: None };
    match shared.cache.take(want).await? {
        Grant::Unknown => {
            let sent_before = Some(sent_on(shared, &app.app, day).await?);
            Ok(shared.cache.take(Want { sent_before, ..want }).await?)
        }
        grant => Ok(grant),
    }
}

/// What was counted on a day, by whichever process, written or not.
async fn sent_on(shared: &Shared, app: &AppId, day: u32) -> Result<u64, Failure> {
    let others = shared.day_counts.of_others(app, day, shared.life.0).await?.messages;
    let here = shared.counts.day(app, day).messages;
    let (_, unwritten) = counts::unwritten_elsewhere(shared, app, &[], &[day]).await;
    let unwritten = unwritten.first().map_or(0, |counts| counts.messages);
    Ok(others.saturating_add(here).saturating_add(unwritten))
}
