//! One timer for all connections: a wheel of buckets, four to a second, of slots that have something due then.
//!
//! A connection is armed for one moment at a time and looked at when that comes; whatever happens to it meanwhile only moves
//! what it finds due. So traffic costs the wheel nothing, and a connection costs it four bytes.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use crate::config::Limits;
use crate::line::Line;
use crate::lock;

/// How long a tick is.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// Buckets: about a quarter of an hour. Who is due later is looked at once on the way.
const BUCKETS: usize = 4096;

/// A moment, in ticks since the front was built, from 1 on: so one that may be missing takes no more room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(NonZeroU32);

impl Tick {
    /// Never.
    pub(crate) const NEVER: Self = Self(NonZeroU32::MAX);

    fn of(number: u32) -> Self {
        Self(NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN))
    }

    /// The first moment at which so much time has surely passed since this one.
    pub(crate) fn after(self, time: Duration) -> Self {
        let ticks = time.as_millis().div_ceil(TICK.as_millis()).saturating_add(1);
        Self(self.0.saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX)))
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Silence before a connection is asked for a sign of life.
    pub(crate) idle: Duration,
    /// Until it comes.
    pub(crate) probe: Duration,
    /// A write without progress, and the last words.
    pub(crate) write: Duration,
}

/// The wheel.
pub(crate) struct Wheel {
    pub(crate) patience: Patience,
    now: AtomicU32,
    buckets: Mutex<Vec<Vec<u32>>>,
    /// Lines that have to end and have no task to do it.
    orphans: Mutex<Vec<Arc<Line>>>,
    /// Lines that have lost their slots while a stream may still serve them.
    leaving: Mutex<Vec<Arc<Line>>>,
    pub(crate) orphaned: Notify,
}

impl Wheel {
    pub(crate) fn new(limits: &Limits) -> Self {
        let Limits { idle_time_max: idle, probe_time_max: probe, write_time_max: write, .. } = *limits;
        Self {
            patience: Patience { idle, probe, write },
            now: AtomicU32::new(1),
            buckets: Mutex::new(vec![Vec::new(); BUCKETS]),
            orphans: Mutex::default(),
            leaving: Mutex::default(),
            orphaned: Notify::new(),
        }
    }

    pub(crate) fn now(&self) -> Tick {
        Tick::of(self.now.load(Ordering::Relaxed))
    }

    /// Has a slot come up at that moment, or before if it is far away, and returns when.
    pub(crate) fn arm(&self, slot: u32, at: Tick) -> Tick {
        let mut buckets = lock(&self.buckets);
        let now = self.now().0.get();
        let furthest = now.saturating_add(u32::try_from(BUCKETS - 1).unwrap_or(u32::MAX));
        let at = at.0.get().clamp(now.saturating_add(1), furthest);
        if let Some(bucket) = buckets.get_mut(at as usize % BUCKETS) {
            bucket.push(slot);
        }
        Tick::of(at)
    }

    /// The next tick has come: the slots that come up now.
    pub(crate) fn advance(&self) -> Vec<u32> {
        let mut buckets = lock(&self.buckets);
        let now = self.now.fetch_add(1, Ordering::Relaxed) as usize + 1;
        buckets.get_mut(now % BUCKETS).map(std::mem::take).unwrap_or_default()
    }

    /// Has a line ended that nobody serves.
    pub(crate) fn orphan(&self, line: Arc<Line>) {
        lock(&self.orphans).push(line);
        self.orphaned.notify_one();
    }

    /// Looks after a line that has lost its slot, for as long as a stream serves it.
    pub(crate) fn see_off(&self, line: Arc<Line>) {
        lock(&self.leaving).push(line);
    }

    /// Looks after those lines at this tick.
    pub(crate) fn tend_leaving(&self) {
        let mut leaving = std::mem::take(&mut *lock(&self.leaving));
        leaving.retain(|line| line.is_leaving());
        lock(&self.leaving).append(&mut leaving);
    }

    /// The lines to be ended.
    pub(crate) fn take_orphans(&self) -> Vec<Arc<Line>> {
        std::mem::take(&mut lock(&self.orphans))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_comes_up_once_at_its_moment() {
        let wheel = Wheel::new(&Limits::default());
        let at = wheel.now().after(Duration::from_millis(600));
        assert_eq!(at, Tick::of(5));
        wheel.arm(7, at);
        wheel.arm(8, wheel.now());
        let mut came = Vec::new();
        for _ in 0..BUCKETS + 8 {
            let slots = wheel.advance();
            came.extend(slots.into_iter().map(|slot| (wheel.now(), slot)));
        }
        assert_eq!(came, [(Tick::of(2), 8), (Tick::of(5), 7)]);
    }

    #[test]
    fn who_is_due_far_away_comes_up_before_and_not_after() {
        let wheel = Wheel::new(&Limits::default());
        wheel.advance();
        wheel.arm(7, Tick::NEVER);
        let came = (0..BUCKETS).position(|_| wheel.advance() == [7]);
        assert_eq!(came, Some(BUCKETS - 2));
    }
}
