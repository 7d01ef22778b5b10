//! When to come back after a connection ended: "full jitter", an exponentially growing bound of which a random part is
//! waited, so that devices which lost a server together don't return together.

use std::time::Duration;

use idl::clock::Entropy;

/// A connection that was open for this long was a good one: the next wait starts small again.
pub(crate) const STABLE_MS: u64 = 60_000;

/// Bounds of the wait between two attempts to connect, and of that between two tries of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Bound of the first wait; it doubles with each failure.
    pub first: Duration,
    /// Bound that is never passed.
    pub max: Duration,
}

impl Default for Backoff {
    /// 1 second to 5 minutes.
    fn default() -> Self {
        Self { first: Duration::from_secs(1), max: Duration::from_mins(5) }
    }
}

impl Backoff {
    /// How long to wait after `failures` failures in a row before this one, in milliseconds: anything from 0 to the
    /// bound, which is `first` · 2^`failures`, at most `max`.
    pub(crate) fn delay_ms(&self, failures: u32, entropy: &dyn Entropy) -> u64 {
        let factor = 1u64.checked_shl(failures.min(62)).unwrap_or(u64::MAX);
        let bound = millis(self.first).saturating_mul(factor).min(millis(self.max));
        entropy.below(bound.saturating_add(1))
    }

    /// The wait after the server asked to come back later: `first` and up to seven times that on top, so that a
    /// front's connections spread over the others.
    fn asked_to_leave_ms(&self, entropy: &dyn Entropy) -> u64 {
        let first = millis(self.first);
        first.saturating_add(entropy.below(first.saturating_mul(7).saturating_add(1))).min(millis(self.max))
    }

    /// The wait after `conflict`: from half of `max` to `max`. Another device holds the account; two that come back at
    /// once would throw each other out for ever.
    fn conflict_ms(&self, entropy: &dyn Entropy) -> u64 {
        let half = millis(self.max) / 2;
        half.saturating_add(entropy.below(half.saturating_add(1)))
    }
}

/// How a connection ended, as far as coming back is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It broke, or the attempt failed.
    Failed,
    /// The server shuts down or names another host.
    AskedToLeave,
    /// Another connection of the account took over.
    Conflict,
}

/// Counts failures and says how long to wait.
#[derive(Debug, Default)]
pub(crate) struct Reconnect {
    failures: u32,
}

impl Reconnect {
    /// The wait after a connection that was open for `open_ms` milliseconds (0: it never was).
    pub(crate) fn delay_ms(&mut self, backoff: &Backoff, ending: Ending, open_ms: u64, entropy: &dyn Entropy) -> u64 {
        if open_ms >= STABLE_MS {
            self.failures = 0;
        }
        match ending {
            Ending::AskedToLeave if self.failures == 0 => {
                self.failures = 1;
                backoff.asked_to_leave_ms(entropy)
            }
            Ending::Failed | Ending::AskedToLeave => {
                let delay = backoff.delay_ms(self.failures, entropy);
                self.failures = self.failures.saturating_add(1);
                delay
            }
            Ending::Conflict => backoff.conflict_ms(entropy),
        }
    }
}

/// Whole milliseconds of a duration.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest and smallest number that can be drawn.
    struct Extreme(bool);

    impl Entropy for Extreme {
        fn fill(&self, buffer: &mut [u8]) {
            buffer.fill(0);
        }

        fn below(&self, bound: u64) -> u64 {
            if self.0 { bound.saturating_sub(1) } else { 0 }
        }
    }

    #[test]
    fn the_bound_doubles_up_to_its_maximum() {
        let backoff = Backoff::default();
        let bounds: Vec<_> = (0..12).map(|failures| backoff.delay_ms(failures, &Extreme(true))).collect();
        assert_eq!(bounds[..4], [1000, 2000, 4000, 8000]);
        assert_eq!(bounds[8..], [256_000, 300_000, 300_000, 300_000]);
        assert_eq!(backoff.delay_ms(u32::MAX, &Extreme(true)), 300_000);
        assert_eq!(backoff.delay_ms(5, &Extreme(false)), 0);
    }

    #[test]
    fn a_stable_connection_makes_the_next_wait_small_again() {
        let mut reconnect = Reconnect::default();
        let backoff = Backoff::default();
        let mut delay = |open_ms| reconnect.delay_ms(&backoff, Ending::Failed, open_ms, &Extreme(true));
        assert_eq!([delay(0), delay(0), delay(59_999)], [1000, 2000, 4000]);
        assert_eq!(delay(STABLE_MS), 1000);
    }

    #[test]
    fn a_conflict_waits_at_least_half_the_maximum() {
        let mut reconnect = Reconnect::default();
        let backoff = Backoff::default();
        assert_eq!(reconnect.delay_ms(&backoff, Ending::Conflict, STABLE_MS, &Extreme(false)), 150_000);
        assert_eq!(reconnect.delay_ms(&backoff, Ending::Conflict, STABLE_MS, &Extreme(true)), 300_000);
    }

    #[test]
    fn a_server_that_asks_to_leave_again_and_again_is_left_alone_for_longer() {
        let mut reconnect = Reconnect::default();
        let backoff = Backoff::default();
        let mut delay = |extreme| reconnect.delay_ms(&backoff, Ending::AskedToLeave, 0, &Extreme(extreme));
        assert_eq!(delay(true), 8000);
        assert_eq!(delay(true), 2000);
        assert_eq!(delay(true), 4000);
    }
}
