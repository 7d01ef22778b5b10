//! What apps were last told of their rates, for refusals that the middle tier never sees.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idl::contract::bus::Rate;
use tokio::time::Instant;

use crate::auth::SecretDigest;

/// Secrets whose rates are remembered, at most.
const SECRETS_MAX: usize = 1024;
/// How long a quota of the day lasts.
const DAY_MS: i64 = 24 * 3600 * 1000;

/// The last rate of each secret that the middle tier has answered. Only secrets it knows are remembered, and only those of
/// apps that are limited. Beyond [`SECRETS_MAX`] those that were not answered for the longest time are forgotten.
#[derive(Debug, Default)]
pub(crate) struct Quotas(Mutex<Generations>);

/// The older ones are dropped all at once when the newer ones are as many as half of what is remembered.
#[derive(Debug, Default)]
struct Generations {
    newer: HashMap<SecretDigest, (Rate, Instant)>,
    older: HashMap<SecretDigest, (Rate, Instant)>,
}

impl Quotas {
    /// Remembers what came with a reply. `None`: the secret is nobody's any more.
    pub(crate) fn answered(&self, secret: SecretDigest, rate: Option<&Rate>, now: Instant) {
        let limited = rate.filter(|rate| rate.per_second_max > 0 || rate.per_day_max > 0);
        let mut generations = self.generations();
        let Generations { newer, older } = &mut *generations;
        let Some(rate) = limited else {
            newer.remove(&secret);
            older.remove(&secret);
            return;
        };
        if newer.len() >= SECRETS_MAX / 2 && !newer.contains_key(&secret) {
            *older = std::mem::take(newer);
        }
        newer.insert(secret, (rate.clone(), now));
    }

    /// The rate of a secret, as it has become since it was answered.
    pub(crate) fn last(&self, secret: SecretDigest, now: Instant) -> Option<Rate> {
        let generations = self.generations();
        let (rate, then) = generations.newer.get(&secret).or_else(|| generations.older.get(&secret))?;
        Some(later(rate, now.saturating_duration_since(*then)))
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A rate after some time in which nothing was sent.
fn later(rate: &Rate, time: Duration) -> Rate {
    let per_second_left = if time >= Duration::from_secs(1) { rate.per_second_max } else { rate.per_second_left };
    let ends_in_ms = rate.day_ends_in_ms.saturating_sub(i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
    let (per_day_left, day_ends_in_ms) = match ends_in_ms {
        1.. => (rate.per_day_left, ends_in_ms),
        _ => (rate.per_day_max, DAY_MS + ends_in_ms % DAY_MS),
    };
    Rate { per_second_left, per_day_left, day_ends_in_ms, retry_after_ms: None, ..*rate }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second_max: i64) -> Rate {
        Rate {
            per_second_max,
            per_second_left: 3,
            per_day_max: 50,
            per_day_left: 7,
            day_ends_in_ms: 60_000,
            retry_after_ms: Some(5),
        }
    }

    fn secret(number: usize) -> SecretDigest {
        SecretDigest::of(&number.to_be_bytes())
    }

    #[test]
    fn the_last_rate_of_a_secret_is_told_and_of_no_other() {
        let (quotas, now) = (Quotas::default(), Instant::now());
        quotas.answered(secret(1), Some(&rate(10)), now);
        quotas.answered(secret(1), Some(&rate(20)), now);
        assert_eq!(quotas.last(secret(1), now), Some(Rate { retry_after_ms: None, ..rate(20) }));
        assert_eq!(quotas.last(secret(2), now), None);
        quotas.answered(secret(1), Some(&Rate { per_day_max: 0, ..rate(0) }), now);
        assert_eq!(quotas.last(secret(1), now), None, "it is limited no more");
        quotas.answered(secret(1), Some(&rate(10)), now);
        quotas.answered(secret(1), None, now);
        assert_eq!(quotas.last(secret(1), now), None, "it is nobody's any more");
    }

    #[test]
    fn seconds_and_days_end() {
        let after = |ms| {
            let rate = later(&rate(10), Duration::from_millis(ms));
            (rate.per_second_left, rate.per_day_left, rate.day_ends_in_ms)
        };
        assert_eq!(after(999), (3, 7, 59_001));
        assert_eq!(after(1000), (10, 7, 59_000));
        assert_eq!(after(60_000), (10, 50, DAY_MS));
        assert_eq!(after(60_001), (10, 50, DAY_MS - 1));
        assert_eq!(after(60_000 + 3 * 86_400_000), (10, 50, DAY_MS));
        assert!((1..=DAY_MS).contains(&after(u64::MAX).2));
    }

    #[test]
    fn no_more_than_the_limit_are_remembered_and_the_newest_stay() {
        let (quotas, now) = (Quotas::default(), Instant::now());
        for number in 0..10 * SECRETS_MAX {
            quotas.answered(secret(number), Some(&rate(10)), now);
            quotas.answered(secret(0), Some(&rate(10)), now);
            let generations = quotas.generations();
            assert!(generations.newer.len() + generations.older.len() <= SECRETS_MAX);
        }
        let known = |number| quotas.last(secret(number), now).is_some();
        assert!((10 * SECRETS_MAX - 400..10 * SECRETS_MAX).all(known) && known(0) && !known(1));
    }
}
