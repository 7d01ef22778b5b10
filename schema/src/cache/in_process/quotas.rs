//! What apps have used: for each a token bucket that holds one second's worth, and the count of its days.

use std::collections::HashMap;

use idl::ids::AppId;

use crate::cache::{Grant, Left, Want};

/// What apps have used.
#[derive(Default)]
pub(super) struct Quotas(HashMap<AppId, Used>);

struct Used {
    /// Messages that may be sent at this moment.
    left: f64,
    /// Of which moment `left` is.
    at_ms: u64,
    /// What was sent on a day, for the two newest days that were asked for: around midnight both are.
    days: Vec<(u32, u64)>,
}

impl Quotas {
    pub(super) fn take(&mut self, want: Want<'_>, now_ms: u64) -> Grant {
        let (per_second, per_day) = (want.quota.per_second_max, want.quota.per_day_max);
        if per_second == 0 && per_day == 0 {
            return Grant::Taken(Left { second_left: 0.0, day_sent: 0, wait_ms: 0 });
        }
        let max = f64::from(per_second);
        if !self.0.contains_key(want.app) {
            self.0.insert(want.app.clone(), Used { left: max, at_ms: now_ms, days: Vec::new() });
        }
        // It was inserted when it was missing.
        let Some(used) = self.0.get_mut(want.app) else { return Grant::Unknown };
        used.refill(max, now_ms);
        let mut sent = 0;
        if per_day > 0 {
            match used.sent(want.day, want.sent_before) {
                Some(known) => sent = *known,
                None => return Grant::Unknown,
            }
            if want.messages > 0 && sent.saturating_add(want.messages) > per_day {
                return Grant::DailyQuota(Left::of(used.left, max, sent));
            }
        }
        if per_second > 0 && want.messages > 0 {
            #[expect(clippy::cast_precision_loss, reason = "beyond 2^53 messages one more or less is of no account")]
            let wanted = want.messages as f64;
            if used.left < wanted.min(max) && !want.owe {
                return Grant::RateLimited(Left::of(used.left, max, sent));
            }
            let left = used.left - wanted;
            // What was scheduled is paid off in a second, however much of it came at once; what is owed besides stays.
            used.left = if want.owe { left.max(used.left.min(-max)) } else { left };
        }
        if let Some(known) = used.sent(want.day, None).filter(|_| per_day > 0) {
            *known = known.saturating_add(want.messages);
            sent = *known;
        }
        Grant::Taken(Left::of(used.left, max, sent))
    }

    pub(super) fn refund(&mut self, app: &AppId, day: u32, messages: u64) {
        if let Some(sent) = self.0.get_mut(app).and_then(|used| used.sent(day, None)) {
            *sent = sent.saturating_sub(messages);
        }
    }

    pub(super) fn forget(&mut self, app: &AppId) {
        self.0.remove(app);
    }
}

impl Used {
    fn refill(&mut self, max: f64, now_ms: u64) {
        #[expect(clippy::cast_precision_loss, reason = "the bucket is full long before")]
        let passed_ms = now_ms.saturating_sub(self.at_ms) as f64;
        self.left = (self.left + passed_ms / 1000.0 * max).min(max);
        self.at_ms = now_ms;
    }

    /// The count of a day, which begins with what was sent before, if that is known.
    fn sent(&mut self, day: u32, before: Option<u64>) -> Option<&mut u64> {
        if !self.days.iter().any(|(known, _)| *known == day) {
            self.days.push((day, before?));
            self.days.sort_unstable();
            if self.days.len() > 2 {
                self.days.remove(0);
            }
        }
        self.days.iter_mut().find(|(known, _)| *known == day).map(|(_, sent)| sent)
    }
}
