//! What the cache in Redis has done, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// What a cache in Redis has done since it was started.
        #[derive(Debug, Default)]
        pub struct RedisMetrics {
            $(pub(super) $name: Counter,)+
        }

        impl RedisMetrics {
            $($(#[$doc])* pub fn $name(&self) -> u64 { self.$name.0.load(Ordering::Relaxed) })+
        }
    };
}

counters! {
    /// Calls, each of one or several commands in one turn to the server and back.
    commands,
    /// Calls that failed, those without an answer in time not among them.
    errors,
    /// Calls without an answer in time, or whose connection broke before the answer.
    timeouts,
    /// Connections that replaced one that was lost.
    reconnects,
    /// Records that were asked for and kept.
    hits,
    /// Records that were asked for and kept as absent.
    negative_hits,
    /// Records that were asked for and not kept.
    misses,
    /// Among the misses: those forgotten a moment ago.
    tombstones,
    /// Records that were not kept because something was there: a tombstone, or what another process kept first.
    keeps_refused,
    /// Messages of other processes about what they forgot.
    forgotten,
    /// Times that something about it may have been missed.
    forgotten_all,
    /// Routes of fronts that were gone, which a sweep removed.
    routes_swept,
}

/// Grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}
