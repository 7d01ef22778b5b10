//! How much an app may send: so many messages in a second, so many in a day. The limits are in the catalog.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use idl::contract::bus::Rate;
use idl::error::{Code, Failure};
use idl::ids::AppId;
use schema::catalog::App;
use tokio::time::Instant;

use crate::Shared;
use crate::accounts::signed;
use crate::counts::day_of;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// What apps have used.
#[derive(Default)]
pub(crate) struct Rates(Mutex<HashMap<AppId, Used>>);

struct Used {
    /// Messages that may be sent at this moment: a token bucket that holds one second's worth.
    left: f64,
    at: Instant,
    /// Which day `earlier` is of.
    day: u32,
    /// Messages that earlier lives of this process, and other processes, had counted on that day when it was read.
    earlier: u64,
    /// Messages that were allowed and are neither counted nor refused yet.
    under_way: u64,
}

/// The right to send so many messages. Drop it when they are counted, or will not be.
pub(crate) struct Taken<'a> {
    rates: &'a Rates,
    app: AppId,
    messages: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(used) = self.rates.all().get_mut(&self.app) {
            used.under_way = used.under_way.saturating_sub(self.messages);
        }
    }
}

impl Rates {
    fn all(&self) -> MutexGuard<'_, HashMap<AppId, Used>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the right to send so many messages now, all or none. More than a second's worth at once passes when the whole
    /// second is free, and is paid off afterwards.
    pub(crate) async fn take(&self, shared: &Shared, app: &App, messages: u64) -> Result<Option<Taken<'_>>, Failure> {
        self.take_or_owe(shared, app, messages, false).await
    }

    /// Takes the right to send a message that was scheduled: it waits for no other second, what it uses up others pay off.
    pub(crate) async fn take_scheduled(&self, shared: &Shared, app: &App) -> Result<Option<Taken<'_>>, Failure> {
        self.take_or_owe(shared, app, 1, true).await
    }

    async fn take_or_owe(
        &self,
        shared: &Shared,
        app: &App,
        messages: u64,
        owe: bool,
    ) -> Result<Option<Taken<'_>>, Failure> {
        if messages == 0 || app.sends_per_second_max == 0 && app.sends_per_day_max == 0 {
            return Ok(None);
        }
        self.learn(shared, app).await?;
        let today = day_of(shared.clock.now_ms());
        let mut all = self.all();
        let Some(used) = all.get_mut(&app.app) else { return Ok(None) };
        if app.sends_per_day_max > 0 {
            let counted = shared.counts.day(&app.app, today).messages;
            let sent = used.earlier.saturating_add(counted).saturating_add(used.under_way);
            if sent.saturating_add(messages) > app.sends_per_day_max {
                let text = format!(
                    "{} messages may be sent in a day and {sent} were; the day ends at midnight UTC",
                    app.sends_per_day_max
                );
                return Err(Failure::new(Code::DailyQuota, text));
            }
        }
        if app.sends_per_second_max > 0 {
            let max = f64::from(app.sends_per_second_max);
            used.refill(max);
            #[expect(clippy::cast_precision_loss, reason = "at most 1,000 messages come in one request")]
            let wanted = messages as f64;
            if used.left < wanted.min(max) && !owe {
                let text = format!("{} messages may be sent in a second; send slower", app.sends_per_second_max);
                return Err(Failure::new(Code::RateLimited, text));
            }
            let left = used.left - wanted;
            // What was scheduled is paid off in a second, however much of it came at once; what is owed besides stays.
            used.left = if owe { left.max(used.left.min(-max)) } else { left };
        }
        used.under_way = used.under_way.saturating_add(messages);
        Ok(Some(Taken { rates: self, app: app.app.clone(), messages }))
    }

    /// What the app may still send.
    pub(crate) async fn left(&self, shared: &Shared, app: &App, refused: Option<Code>) -> Rate {
        if app.sends_per_second_max == 0 && app.sends_per_day_max == 0 {
            let day_ends_in_ms = signed(DAY_MS - shared.clock.now_ms() % DAY_MS);
            return Rate {
                per_second_max: 0,
                per_second_left: 0,
                per_day_max: 0,
                per_day_left: 0,
                day_ends_in_ms,
                retry_after_ms: None,
            };
        }
        if app.sends_per_day_max > 0
            && let Err(failure) = self.learn(shared, app).await
        {
            tracing::debug!(app = %app.app, %failure, "how much an app has sent today is not known");
        }
        let now_ms = shared.clock.now_ms();
        let day_ends_in_ms = DAY_MS - now_ms % DAY_MS;
        let mut all = self.all();
        let max = f64::from(app.sends_per_second_max);
        let used = all.get_mut(&app.app);
        let (second_left, earlier) = used.map_or((max, 0), |used| {
            used.refill(max);
            (used.left, if used.day == day_of(now_ms) { used.earlier } else { 0 })
        });
        let sent = earlier.saturating_add(shared.counts.day(&app.app, day_of(now_ms)).messages);
        #[expect(clippy::cast_possible_truncation, reason = "between 0 and the limit, which is a u32")]
        let (whole, wait_ms) = {
            let missing = (1.0 - second_left).max(0.0);
            (second_left.max(0.0) as i64, if max > 0.0 { (missing / max * 1000.0).ceil() as i64 } else { 0 })
        };
        let retry_after_ms = match refused {
            Some(Code::RateLimited) => Some(wait_ms.max(1)),
            Some(Code::DailyQuota) => Some(signed(day_ends_in_ms)),
            _ => None,
        };
        Rate {
            per_second_max: i64::from(app.sends_per_second_max),
            per_second_left: whole,
            per_day_max: signed(app.sends_per_day_max),
            per_day_left: signed(app.sends_per_day_max.saturating_sub(sent)),
            day_ends_in_ms: signed(day_ends_in_ms),
            retry_after_ms,
        }
    }

    /// Reads what was sent today by others than this life, once a day.
    async fn learn(&self, shared: &Shared, app: &App) -> Result<(), Failure> {
        let today = day_of(shared.clock.now_ms());
        let known = {
            let all = self.all();
            all.get(&app.app).is_some_and(|used| used.day == today)
        };
        if known {
            return Ok(());
        }
        let earlier = if app.sends_per_day_max > 0 {
            shared.day_counts.of_others(&app.app, today, shared.life.0).await?.messages
        } else {
            0
        };
        let mut all = self.all();
        let used = all.entry(app.app.clone()).or_insert_with(|| Used {
            left: f64::from(app.sends_per_second_max),
            at: Instant::now(),
            day: today,
            earlier,
            under_way: 0,
        });
        (used.day, used.earlier) = (today, earlier);
        Ok(())
    }

    /// The limits of an app were changed: what is known of it begins anew.
    pub(crate) fn forget(&self, app: &AppId) {
        self.all().remove(app);
    }
}

impl Used {
    fn refill(&mut self, max: f64) {
        let now = Instant::now();
        self.left = (self.left + now.duration_since(self.at).as_secs_f64() * max).min(max);
        self.at = now;
    }
}
