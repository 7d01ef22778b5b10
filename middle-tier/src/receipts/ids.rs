//! Ids of receipts: ULIDs that only grow, and which of them are given out but not yet written. A reader that goes through an
//! app's receipts in order must stop before those: it would pass over them, and never come back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use idl::clock::Entropy;
use idl::ids::MessageId;

use crate::Shared;

/// Gives out ids.
#[derive(Default)]
pub(super) struct Ids(Mutex<State>);

struct State {
    /// Every id that is given out from now on is after this one.
    last: MessageId,
    /// The first id of each writer at work.
    in_flight: BTreeSet<MessageId>,
}

impl Default for State {
    fn default() -> Self {
        Self { last: MessageId::MIN, in_flight: BTreeSet::new() }
    }
}

/// A writer of receipts at work. Drop it when what it wrote is written, or will never be.
pub(crate) struct InFlight {
    ids: Arc<Ids>,
    first: Option<MessageId>,
}

impl InFlight {
    pub(super) fn new(ids: Arc<Ids>) -> Self {
        Self { ids, first: None }
    }

    /// The next id, after all that were given out before.
    pub(crate) fn next(&mut self, shared: &Shared) -> MessageId {
        self.draw(shared.clock.now_ms(), shared.entropy.as_ref())
    }

    fn draw(&mut self, now_ms: u64, entropy: &dyn Entropy) -> MessageId {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes[6..]);
        // The highest of the random bits is left free, so that counting on has room.
        bytes[6] &= 0x7f;
        let fresh = MessageId(MessageId::at(now_ms).0 | u128::from_be_bytes(bytes));
        let mut state = self.ids.state();
        let next = MessageId(state.last.0.saturating_add(1));
        let id = if fresh.time_ms() > state.last.time_ms() { fresh } else { next };
        state.last = id;
        if self.first.is_none() {
            state.in_flight.insert(id);
            self.first = Some(id);
        }
        id
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(first) = self.first {
            self.ids.state().in_flight.remove(&first);
        }
    }
}

impl Ids {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every id before this one is written, or never will be; every id that is given out from now on is at or after it. It
    /// never goes back.
    pub(super) fn settled(&self, now_ms: u64) -> MessageId {
        let mut state = self.state();
        // Ids of an earlier life of the process are before now, whatever this one has given out.
        state.last = state.last.max(MessageId(MessageId::at(now_ms).0.saturating_sub(1)));
        state.in_flight.first().copied().unwrap_or(MessageId(state.last.0.saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use idl::clock::SystemEntropy;

    use super::*;

    fn ids() -> Arc<Ids> {
        Arc::default()
    }

    fn begin(ids: &Arc<Ids>) -> InFlight {
        InFlight::new(Arc::clone(ids))
    }

    #[test]
    fn ids_only_grow_also_within_a_millisecond_and_when_the_clock_goes_back() {
        let ids = ids();
        let mut drawn = Vec::new();
        for now_ms in [10, 10, 10, 11, 5, 5, 12, u64::MAX >> 16, 3] {
            drawn.push(begin(&ids).draw(now_ms, &SystemEntropy));
            drawn.push(begin(&ids).draw(now_ms, &SystemEntropy));
        }
        assert!(drawn.is_sorted_by(|a, b| a < b), "{drawn:?}");
        assert_eq!(drawn[0].time_ms(), 10);
        assert_eq!(drawn[6].time_ms(), 11);
    }

    #[test]
    fn readers_stop_before_what_is_being_written() {
        let ids = ids();
        let (mut first, mut second) = (begin(&ids), begin(&ids));
        let early = first.draw(10, &SystemEntropy);
        let late = second.draw(20, &SystemEntropy);
        let later = first.draw(30, &SystemEntropy);
        assert_eq!(ids.settled(40), early);
        drop(second);
        assert_eq!(ids.settled(40), early);
        drop(first);
        assert!(ids.settled(40) > later && late > early);
    }

    #[test]
    fn a_writer_without_an_id_holds_nobody_up() {
        let ids = ids();
        let _idle = begin(&ids);
        assert_eq!(ids.settled(10), MessageId::at(10));
    }

    #[test]
    fn no_id_is_given_out_that_readers_have_passed() {
        let ids = ids();
        for now_ms in [10, 10, 9, 11] {
            let settled = ids.settled(now_ms);
            assert!(begin(&ids).draw(now_ms, &SystemEntropy) >= settled);
            assert!(ids.settled(now_ms) > settled);
        }
    }

    #[test]
    fn what_an_earlier_life_wrote_is_settled_at_once() {
        assert!(ids().settled(1000) > MessageId(MessageId::at(999).0 | u128::from(u64::MAX)));
    }
}
