//! What the bus counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::bus::Lane;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What one process's end of the bus has counted since it started, and its gauges.
        #[derive(Debug, Default)]
        pub struct RedisBusMetrics {
            $($(#[$doc])* pub $name: Count,)*
            /// Requests that wait in Redis or are under way, of the partitions that are this middle's; by lane, highest first.
            pub lag: [Count; 3],
        }

        impl RedisBusMetrics {
            /// All of them by name, but for the lag.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.value())),*]
            }
        }
    };
}

counts! {
    /// Requests written to Redis.
    requests_sent,
    /// Requests given to this middle.
    requests_received,
    /// Answers written to Redis.
    answers_sent,
    /// Answers taken by those who waited for them.
    answers_received,
    /// Batches, events and questions written to Redis.
    letters_sent,
    /// Batches, events and questions given to this process.
    letters_received,
    /// Pipelines written to Redis.
    flushes,
    /// Requests taken over from a middle before.
    redelivered,
    /// Requests put into the stream of dead letters.
    dead_letters,
    /// Requests refused because a lane or a queue was full.
    shed,
    /// Calls whose deadline passed without an answer.
    timeouts,
    /// Requests that were not begun because their deadline had passed.
    expired,
    /// Events and batches for which a front's queue had no place.
    no_place,
    /// Answers that could not be brought to their process.
    answers_lost,
    /// Entries and letters that could not be read.
    undecodable,
    /// Connections made after one was lost.
    reconnects,
    /// Signs of life that could not be given.
    beats_failed,
    /// Partitions that were lost without having been given away.
    partitions_lost,
    /// Gauge: partitions that are this middle's.
    partitions_owned,
    /// Gauge: living middles.
    middles,
    /// Gauge: living fronts.
    fronts,
    /// Gauge: how far the clocks of this machine and of Redis lie apart, in milliseconds.
    clock_offset_ms,
}

impl RedisBusMetrics {
    /// Requests that wait in a lane or are under way.
    pub fn lag(&self, lane: Lane) -> u64 {
        self.lag[lane as usize].value()
    }
}

/// A number that grows, or is set.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// What it is now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}
