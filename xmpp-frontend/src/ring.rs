//! The broadcasts that came last, in order of arrival, for connections whose index entries are on their way.

use std::collections::VecDeque;
use std::sync::Arc;

use idl::audience::Audience;
use idl::ids::AppId;

/// A broadcast, ready to be written.
#[derive(Debug)]
pub(crate) struct Recent {
    /// Its place in the ring.
    pub(crate) place: u64,
    pub(crate) app: AppId,
    pub(crate) audience: Audience,
    /// The whole stanza, the same for every receiver.
    pub(crate) frame: Arc<[u8]>,
    pub(crate) expires_at_ms: u64,
}

/// A bounded number of recent broadcasts. Places count up from 0 and are never used twice.
#[derive(Debug)]
pub(crate) struct Ring {
    max: usize,
    next: u64,
    recent: VecDeque<Arc<Recent>>,
}

/// Broadcasts from that place on have been forgotten.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrapped;

impl Ring {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, next: 0, recent: VecDeque::new() }
    }

    /// Where the next broadcast will be.
    pub(crate) fn next_place(&self) -> u64 {
        self.next
    }

    /// Adds the next broadcast, made for its place.
    pub(crate) fn push(&mut self, make: impl FnOnce(u64) -> Recent) -> Arc<Recent> {
        let recent = Arc::new(make(self.next));
        self.next += 1;
        self.recent.push_back(Arc::clone(&recent));
        while self.recent.len() > self.max {
            self.recent.pop_front();
        }
        recent
    }

    /// All broadcasts from `place` on, in order.
    pub(crate) fn since(&self, place: u64) -> Result<impl Iterator<Item = &Arc<Recent>>, Wrapped> {
        let missed = usize::try_from(self.next.saturating_sub(place)).unwrap_or(usize::MAX);
        let skip = self.recent.len().checked_sub(missed).ok_or(Wrapped)?;
        Ok(self.recent.iter().skip(skip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(ring: &mut Ring) {
        ring.push(|place| Recent {
            place,
            app: "app".parse().expect("an app id"),
            audience: Audience::Everyone,
            frame: b"x".as_slice().into(),
            expires_at_ms: 0,
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
    fn a_ring_without_room_wraps_with_every_broadcast() {
        let mut ring = Ring::new(0);
        assert_eq!(places(&ring, 0), Ok(vec![]));
        push(&mut ring);
        assert_eq!(places(&ring, 0), Err(Wrapped));
        assert_eq!(places(&ring, 1), Ok(vec![]));
    }
}
