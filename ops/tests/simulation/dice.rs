//! The one generator of a simulation: everything that could go one way or another asks it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idl::clock::{Clock, Entropy};
use tokio::time::Instant;

/// A seeded generator (SplitMix64), shared by all.
#[derive(Clone)]
pub(crate) struct Dice(Arc<Mutex<u64>>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed)))
    }

    pub(crate) fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound.max(1) as u64)).expect("below a usize")
    }

    /// True `per_mille` times in a thousand.
    pub(crate) fn chance(&self, per_mille: usize) -> bool {
        self.below(1000) < per_mille
    }

    /// Up to `max`.
    pub(crate) fn duration(&self, max: Duration) -> Duration {
        Duration::from_millis(self.next() % u64::try_from(max.as_millis()).expect("fits").max(1))
    }
}

impl Entropy for Dice {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Wall time that follows the runtime's paused clock.
pub(crate) struct SimClock(Instant);

impl SimClock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        1_800_000_000_000 + u64::try_from(self.0.elapsed().as_millis()).expect("a short simulation")
    }
}
