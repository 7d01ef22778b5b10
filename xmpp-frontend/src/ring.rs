//! The broadcasts that came last, in order of arrival, for connections whose index entries are on their way; and which ones
//! were cancelled.

use std::collections::VecDeque;
use std::sync::Arc;

use idl::audience::Audience;
use idl::due::Pace;
use idl::ids::{AppId, MessageId};

use crate::form::SharedPayload;

/// Cancelled broadcasts that are known again if they come late or twice. Over it the oldest are forgotten: a broadcast that
/// comes that much later than its cancellation is written as if it had not been cancelled.
const CANCELLED_MAX: usize = 1024;

/// A broadcast, ready to be written.
#[derive(Debug)]
pub(crate) struct Recent {
    /// Its place in the ring.
    pub(crate) place: u64,
    pub(crate) id: MessageId,
    pub(crate) app: AppId,
    pub(crate) audience: Audience,
    /// The whole stanza, the same for every receiver.
    pub(crate) frame: Arc<SharedPayload>,
    pub(crate) expires_at_ms: u64,
    /// Set if each of its audience gets it at a moment of its own.
    pub(crate) pace: Option<Pace>,
}

/// A bounded number of recent broadcasts. Places count up from 0 and are never used twice.
#[derive(Debug)]
pub(crate) struct Ring {
    max: usize,
    next: u64,
    /// `None` in the place of what was cancelled.
    recent: VecDeque<Option<Arc<Recent>>>,
    /// Oldest first.
    cancelled: VecDeque<MessageId>,
}

/// Broadcasts from that place on have been forgotten.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrapped;

impl Ring {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, next: 0, recent: VecDeque::new(), cancelled: VecDeque::new() }
    }

    /// Where the next broadcast will be.
    pub(crate) fn next_place(&self) -> u64 {
        self.next
    }

    /// Adds the next broadcast, made for its place.
    pub(crate) fn push(&mut self, make: impl FnOnce(u64) -> Recent) -> Arc<Recent> {
        let recent = Arc::new(make(self.next));
        self.next += 1;
        self.recent.push_back(Some(Arc::clone(&recent)));
        while self.recent.len() > self.max {
            self.recent.pop_front();
        }
        recent
    }

    /// True if the broadcast is among these.
    pub(crate) fn has(&self, id: MessageId) -> bool {
        self.recent.iter().flatten().any(|recent| recent.id == id)
    }

    /// Takes a broadcast out, and remembers that it was cancelled. Repeating it is harmless.
    pub(crate) fn cancel(&mut self, id: MessageId) {
        for recent in &mut self.recent {
            if recent.as_ref().is_some_and(|recent| recent.id == id) {
                *recent = None;
            }
        }
        if !self.is_cancelled(id) {
            self.cancelled.push_back(id);
            if self.cancelled.len() > CANCELLED_MAX {
                self.cancelled.pop_front();
            }
        }
    }

    /// True if the broadcast was cancelled, as far as that is remembered.
    pub(crate) fn is_cancelled(&self, id: MessageId) -> bool {
        self.cancelled.contains(&id)
    }

    /// All broadcasts from `place` on that were not cancelled, in order.
    pub(crate) fn since(&self, place: u64) -> Result<impl Iterator<Item = &Arc<Recent>>, Wrapped> {
        let missed = usize::try_from(self.next.saturating_sub(place)).unwrap_or(usize::MAX);
        let skip = self.recent.len().checked_sub(missed).ok_or(Wrapped)?;
        Ok(self.recent.iter().skip(skip).flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(ring: &mut Ring) {
        ring.push(|place| Recent {
            place,
            id: MessageId(place.into()),
            app: "app".parse().expect("an app id"),
            audience: Audience::Everyone,
            frame: SharedPayload::for_test(),
            expires_at_ms: 0,
            pace: None,
        });
    }

    fn places(ring: &Ring, place: u64) -> Result<Vec<u64>, Wrapped> {
        ring.since(place).map(|recent| recent.map(|recent| recent.place).collect())
    }

    #[test]
    fn what_came_since_a_place_is_found_until_the_ring_wraps() {
        let mut ring = Ring::new(3);
        assert_eq!(places(&ring, 0), Ok(vec![]));
        push(&mut ring);
        push(&mut ring);
        assert_eq!(places(&ring, 0), Ok(vec![0, 1]));
        assert_eq!(places(&ring, 1), Ok(vec![1]));
        assert_eq!(places(&ring, ring.next_place()), Ok(vec![]));
        push(&mut ring);
        push(&mut ring);
        assert_eq!(places(&ring, 0), Err(Wrapped));
        assert_eq!(places(&ring, 1), Ok(vec![1, 2, 3]));
    }

    #[test]
    fn what_was_cancelled_is_left_out_and_known_again_and_moves_no_place() {
        let mut ring = Ring::new(3);
        push(&mut ring);
        push(&mut ring);
        ring.cancel(MessageId(0));
        ring.cancel(MessageId(0));
        ring.cancel(MessageId(9));
        assert_eq!(places(&ring, 0), Ok(vec![1]));
        assert!(ring.is_cancelled(MessageId(0)) && ring.is_cancelled(MessageId(9)));
        push(&mut ring);
        assert_eq!(places(&ring, 0), Ok(vec![1, 2]));
        push(&mut ring);
        assert_eq!(places(&ring, 0), Err(Wrapped));
    }

    #[test]
    fn a_bounded_number_of_cancelled_broadcasts_is_remembered() {
        let mut ring = Ring::new(0);
        for id in 0..=CANCELLED_MAX {
            ring.cancel(MessageId(id as u128));
        }
        assert!(!ring.is_cancelled(MessageId(0)));
        assert!(ring.is_cancelled(MessageId(1)));
        assert_eq!(ring.cancelled.len(), CANCELLED_MAX);
    }

    #[test]
    fn a_ring_without_room_wraps_with_every_broadcast() {
        let mut ring = Ring::new(0);
        assert_eq!(places(&ring, 0), Ok(vec![]));
        push(&mut ring);
        assert_eq!(places(&ring, 0), Err(Wrapped));
        assert_eq!(places(&ring, 1), Ok(vec![]));
    }
}
