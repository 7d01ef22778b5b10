//! Timestamps of mutations: who wins where two meet.
//!
//! HBase keeps a cell's version with the largest timestamp, and a deletion hides every version up to its own, whenever
//! they arrive. So each group of writes takes a timestamp of its own, larger than every one that this process gave out or
//! read before: whatever was answered before a request came is below it. They are milliseconds of wall time, since HBase
//! counts `_ttl` from them, and never run ahead of it: after a thousand groups in a second the next waits for the next
//! millisecond, so that a process that starts anew is above all its predecessor gave out.
//!
//! **Other clocks.** `checkAndPut` takes the region server's time, and other processes have clocks of their own. What is
//! read carries its timestamp, and a larger one than ours carries our time along: whoever writes what it has read, or
//! has put by [`put_if_absent`](super::super::SortedStore::put_if_absent), is above it, however the clocks differ (up to
//! [`SKEW_MAX_MS`]). Two processes that write one cell without reading it, less apart than their clocks differ, may
//! leave the earlier one: such cells have one owner here, whose successor begins with reading.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idl::clock::SharedClock;

/// A timestamp so far ahead of our clock is not followed: one broken clock would carry all others along.
pub(super) const SKEW_MAX_MS: u64 = 60_000;

/// How often, and for how long each time, a group waits for the next millisecond. A clock that was set back may take hours
/// to catch up: then it goes on without.
const WAITS_MAX: u32 = 40;
const WAIT: Duration = Duration::from_micros(250);

/// Gives out timestamps. Shared by all threads of a store.
pub(super) struct Stamps {
    clock: SharedClock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    /// By how much others are ahead of our clock.
    ahead: u64,
}

impl Stamps {
    /// `clock` is the machine's own, whatever the store's expiry goes by.
    pub(super) fn new(clock: SharedClock) -> Arc<Self> {
        Arc::new(Self { clock, state: Mutex::default() })
    }

    /// The next timestamp, larger than all before.
    pub(super) fn next(&self) -> u64 {
        let mut waits = 0;
        loop {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let now = self.clock.now_ms().saturating_add(state.ahead);
            if now > state.last || waits == WAITS_MAX {
                state.last = now.max(state.last + 1);
                return state.last;
            }
            drop(state);
            waits += 1;
            std::thread::sleep(WAIT);
        }
    }

    /// Takes note of timestamps that were read. `false` if one is too far ahead to be followed.
    pub(super) fn observe(&self, read: impl IntoIterator<Item = Option<i64>>) -> bool {
        let Some(newest) = read.into_iter().flatten().filter_map(|stamp| u64::try_from(stamp).ok()).max() else {
            return true;
        };
        let now = self.clock.now_ms();
        if newest <= now {
            return true;
        }
        if newest - now > SKEW_MAX_MS {
            return false;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ahead = state.ahead.max(newest - now);
        state.last = state.last.max(newest);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use idl::clock::{Clock, SystemClock};

    use super::*;

    struct Set(AtomicU64);

    impl Clock for Set {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn timestamps_grow_and_stay_behind_the_clock() {
        let stamps = Stamps::new(Arc::new(SystemClock));
        let mut last = 0;
        for _ in 0..50 {
            let stamp = stamps.next();
            assert!(stamp > last && stamp <= SystemClock.now_ms());
            last = stamp;
        }
    }

    #[test]
    fn a_clock_that_was_set_back_stops_nothing() {
        let clock = Arc::new(Set(AtomicU64::new(100_000)));
        let stamps = Stamps::new(clock.clone());
        let before = stamps.next();
        clock.0.store(50_000, Ordering::SeqCst);
        assert!(stamps.next() > before);
    }

    #[test]
    fn what_is_read_carries_our_time_along_unless_it_is_absurd() {
        let stamps = Stamps::new(Arc::new(Set(AtomicU64::new(100_000))));
        assert!(stamps.observe([Some(100_500), None, Some(-1)]));
        assert!(stamps.next() > 100_500);
        assert!(!stamps.observe([Some(100_001 + 60_000)]));
        assert!(stamps.observe([Some(99_000)]) && stamps.observe([None]));
    }
}
