//! Broadcasts that reach each of their audience at a moment of its own: who still waits for which, and until when.
//!
//! Nothing here is kept anywhere else: whoever is not written to by this front, since it ended, was full or had not the
//! connection when the broadcast came, is judged by the middle tier, which comes to the same moments.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use idl::ids::MessageId;

use crate::ring::Recent;

/// All broadcasts on their slow way.
#[derive(Debug)]
pub(crate) struct Paced {
    broadcasts_max: usize,
    slots_max: usize,
    /// How many slots wait, of all broadcasts.
    waiting: usize,
    /// By place in the ring.
    broadcasts: BTreeMap<u64, Slow>,
}

/// One broadcast, for as long as somebody waits for it.
#[derive(Debug)]
struct Slow {
    recent: Arc<Recent>,
    began_at_ms: u64,
    /// How long after the beginning, and which slot. Eight bytes each, in the order of their moments.
    due: BinaryHeap<Reverse<(u32, u32)>>,
}

/// There is no room for more: it is left to the middle tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Broadcasts,
    Slots,
}

impl Full {
    /// Its name in the configuration.
    pub(crate) fn limit(self) -> &'static str {
        match self {
            Self::Broadcasts => "paced_broadcasts_max",
            Self::Slots => "paced_slots_max",
        }
    }
}

impl Paced {
    pub(crate) fn new(broadcasts_max: usize, slots_max: usize) -> Self {
        Self { broadcasts_max, slots_max, waiting: 0, broadcasts: BTreeMap::new() }
    }

    /// How many broadcasts are on their way.
    pub(crate) fn len(&self) -> usize {
        self.broadcasts.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.broadcasts.is_empty()
    }

    /// How many slots wait for their moment.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// True if somebody waits for that broadcast.
    pub(crate) fn has(&self, id: MessageId) -> bool {
        self.broadcasts.values().any(|slow| slow.recent.id == id)
    }

    /// Whether one more broadcast with so many slots has room.
    pub(crate) fn room_for(&self, slots: u64) -> Result<(), Full> {
        if self.broadcasts.len() >= self.broadcasts_max {
            return Err(Full::Broadcasts);
        }
        let free = self.slots_max.saturating_sub(self.waiting);
        if u64::try_from(free).unwrap_or(u64::MAX) < slots { Err(Full::Slots) } else { Ok(()) }
    }

    /// Has a slot wait for its moment.
    pub(crate) fn add(&mut self, recent: &Arc<Recent>, slot: u32, due_ms: u64, now_ms: u64) -> Result<(), Full> {
        if !self.broadcasts.contains_key(&recent.place) && self.broadcasts.len() >= self.broadcasts_max {
            return Err(Full::Broadcasts);
        }
        if self.waiting >= self.slots_max {
            return Err(Full::Slots);
        }
        let slow = self.broadcasts.entry(recent.place).or_insert_with(|| Slow {
            recent: Arc::clone(recent),
            began_at_ms: now_ms,
            due: BinaryHeap::new(),
        });
        // 49 days fit; what is later than that is looked at again then.
        let after_ms = u32::try_from(due_ms.saturating_sub(slow.began_at_ms)).unwrap_or(u32::MAX);
        slow.due.push(Reverse((after_ms, slot)));
        self.waiting += 1;
        Ok(())
    }

    /// Nobody waits for that broadcast any more. Returns true if somebody did.
    pub(crate) fn cancel(&mut self, id: MessageId) -> bool {
        self.forget(|recent| recent.id == id) > 0
    }

    /// Forgets the broadcasts that have expired and says how many these were.
    pub(crate) fn expire(&mut self, now_ms: u64) -> u64 {
        self.forget(|recent| recent.expires_at_ms <= now_ms)
    }

    /// Takes out of one broadcast, the one that has waited longest, up to `max` slots whose moment has come; `None` if there
    /// are none.
    pub(crate) fn take(&mut self, max: usize, now_ms: u64) -> Option<(Arc<Recent>, Vec<u32>)> {
        let moments = self.broadcasts.iter().filter_map(|(place, slow)| Some((slow.next_ms()?, *place)));
        let (_, place) = moments.min().filter(|(moment, _)| *moment <= now_ms)?;
        let slow = self.broadcasts.get_mut(&place)?;
        let mut slots = Vec::new();
        while slots.len() < max && slow.next_ms().is_some_and(|moment| moment <= now_ms) {
            slots.extend(slow.due.pop().map(|Reverse((_, slot))| slot));
        }
        self.waiting -= slots.len();
        let recent = Arc::clone(&slow.recent);
        if slow.due.is_empty() {
            self.broadcasts.remove(&place);
        }
        Some((recent, slots))
    }

    fn forget(&mut self, which: impl Fn(&Recent) -> bool) -> u64 {
        let before = self.broadcasts.len();
        self.broadcasts.retain(|_, slow| !which(&slow.recent));
        self.waiting = self.broadcasts.values().map(|slow| slow.due.len()).sum();
        (before - self.broadcasts.len()) as u64
    }
}

impl Slow {
    fn next_ms(&self) -> Option<u64> {
        self.due.peek().map(|Reverse((after_ms, _))| self.began_at_ms.saturating_add(u64::from(*after_ms)))
    }
}

#[cfg(test)]
mod tests {
    use idl::audience::Audience;
    use proptest::prelude::*;

    use super::*;
    use crate::form::SharedPayload;

    fn recent(place: u64) -> Arc<Recent> {
        Arc::new(Recent {
            place,
            id: MessageId(u128::from(place)),
            app: "app".parse().expect("an app id"),
            audience: Audience::Everyone,
            frame: SharedPayload::for_test(),
            expires_at_ms: 1000,
            pace: None,
        })
    }

    fn taken(paced: &mut Paced, max: usize, now_ms: u64) -> Option<(u64, Vec<u32>)> {
        paced.take(max, now_ms).map(|(recent, slots)| (recent.place, slots))
    }

    #[test]
    fn whose_moment_has_waited_longest_comes_first_whatever_the_broadcast() {
        let mut paced = Paced::new(2, 10);
        for (place, slot, due_ms) in [(1, 10, 50), (1, 11, 20), (2, 20, 30), (2, 21, 30)] {
            assert_eq!(paced.add(&recent(place), slot, due_ms, 10), Ok(()));
        }
        assert_eq!(taken(&mut paced, 9, 19), None);
        assert_eq!(taken(&mut paced, 9, 49), Some((1, vec![11])));
        assert_eq!(taken(&mut paced, 1, 49), Some((2, vec![20])));
        assert_eq!(taken(&mut paced, 1, 49), Some((2, vec![21])));
        assert_eq!(taken(&mut paced, 1, 49), None);
        assert_eq!((paced.len(), paced.waiting()), (1, 1));
        assert_eq!(taken(&mut paced, 1, 50), Some((1, vec![10])));
        assert!(paced.is_empty());
    }

    #[test]
    fn what_has_no_room_is_refused_and_room_that_is_given_back_is_free() {
        let mut paced = Paced::new(1, 2);
        assert_eq!(paced.room_for(3), Err(Full::Slots));
        assert_eq!(paced.add(&recent(1), 1, 20, 10), Ok(()));
        assert_eq!(paced.room_for(0), Err(Full::Broadcasts));
        assert_eq!(paced.add(&recent(2), 1, 20, 10), Err(Full::Broadcasts));
        assert_eq!(paced.add(&recent(1), 2, 20, 10), Ok(()));
        assert_eq!(paced.add(&recent(1), 3, 20, 10), Err(Full::Slots));
        assert!(paced.has(MessageId(1)));
        assert!(paced.cancel(MessageId(1)));
        assert!(!paced.cancel(MessageId(1)));
        assert_eq!(paced.room_for(2), Ok(()));
    }

    #[test]
    fn an_expired_broadcast_is_forgotten() {
        let mut paced = Paced::new(1, 1);
        assert_eq!(paced.add(&recent(1), 1, 2000, 10), Ok(()));
        assert_eq!(paced.expire(999), 0);
        assert_eq!(paced.expire(1000), 1);
        assert_eq!((paced.len(), paced.waiting()), (0, 0));
    }

    proptest! {
        #[test]
        fn everyone_is_taken_once_and_not_before_the_moment(due in proptest::collection::vec((0u64..4, 0u64..200), 0..50)) {
            let mut paced = Paced::new(4, 50);
            for (slot, (place, due_ms)) in (0u32..).zip(&due) {
                prop_assert_eq!(paced.add(&recent(*place), slot, *due_ms, 0), Ok(()));
            }
            let mut came = Vec::new();
            for now_ms in (0..=200).step_by(7).chain([200]) {
                while let Some((place, slots)) = taken(&mut paced, 3, now_ms) {
                    for slot in slots {
                        let (of, due_ms) = due[slot as usize];
                        prop_assert!(of == place && due_ms <= now_ms && due_ms + 7 > now_ms);
                        came.push(slot);
                    }
                }
            }
            came.sort_unstable();
            prop_assert_eq!(came.len(), due.len());
            came.dedup();
            prop_assert_eq!(came.len(), due.len());
            prop_assert_eq!((paced.len(), paced.waiting()), (0, 0));
        }
    }
}
