//! Queues between callers and the threads that talk to the gateways.
//!
//! A lane is two numbers: how many requests wait at most, and how long a caller waits for room. Threads take what waits,
//! as much as they can serve at once.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

/// A bounded queue with callers on one side and threads on the other.
pub(super) struct Lane<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
    /// A permit for each place in the queue.
    room: Semaphore,
}

struct State<T> {
    queue: VecDeque<T>,
    closed: bool,
}

/// Why a request was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    Closed,
}

/// What becomes of the next request in the queue while a thread gathers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It belongs to the group.
    Take,
    /// It begins the next group.
    Leave,
}

impl<T> Lane<T> {
    pub(super) fn new(queue_max: usize) -> Arc<Self> {
        let state = Mutex::new(State { queue: VecDeque::new(), closed: false });
        let room = Semaphore::new(queue_max.clamp(1, Semaphore::MAX_PERMITS));
        Arc::new(Self { state, arrived: Condvar::new(), room })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a request; waits for room until then.
    pub(super) async fn put(&self, request: T, until: Instant) -> Result<(), Refused> {
        match tokio::time::timeout_at(until, self.room.acquire()).await {
            Err(_) => return Err(Refused::Full),
            Ok(Err(_)) => return Err(Refused::Closed),
            // Given back when the request is taken.
            Ok(Ok(permit)) => permit.forget(),
        }
        let mut state = self.state();
        if state.closed {
            return Err(Refused::Closed);
        }
        state.queue.push_back(request);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for a request and takes those behind it for as long as `next` says so; `None` once the lane is closed and
    /// empty. When the queue has nothing more it waits for up to `wait`.
    pub(super) fn take(&self, wait: Duration, mut next: impl FnMut(&T) -> Next) -> Option<Vec<T>> {
        let mut group = Vec::new();
        let mut state = self.state();
        while state.queue.is_empty() {
            if state.closed {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let until = Instant::now() + wait;
        loop {
            while let Some(first) = state.queue.front() {
                if next(first) == Next::Leave && !group.is_empty() {
                    drop(state);
                    // Another thread may serve what is left.
                    self.arrived.notify_one();
                    self.room.add_permits(group.len());
                    return Some(group);
                }
                group.extend(state.queue.pop_front());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || state.closed {
                break;
            }
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        self.room.add_permits(group.len());
        Some(group)
    }

    /// Takes no more requests. What is queued is still served.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.room.close();
        self.arrived.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[tokio::test]
    async fn a_full_lane_refuses_after_its_time_and_has_room_again_when_something_is_taken() {
        let lane = Lane::new(2);
        for request in 0..2 {
            lane.put(request, soon()).await.unwrap();
        }
        assert_eq!(lane.put(2, soon()).await, Err(Refused::Full));
        assert_eq!(lane.take(Duration::ZERO, |_| Next::Take).unwrap(), [0, 1]);
        lane.put(3, soon()).await.unwrap();
    }

    #[tokio::test]
    async fn what_does_not_belong_to_a_group_begins_the_next() {
        let lane = Lane::new(9);
        for request in [1, 2, 3, 9, 1] {
            lane.put(request, soon()).await.unwrap();
        }
        let small = |request: &i32| if *request < 5 { Next::Take } else { Next::Leave };
        assert_eq!(lane.take(Duration::ZERO, small).unwrap(), [1, 2, 3]);
        assert_eq!(lane.take(Duration::ZERO, small).unwrap(), [9, 1], "one is always taken");
    }

    #[tokio::test]
    async fn a_closed_lane_is_emptied_first() {
        let lane = Lane::new(9);
        lane.put(1, soon()).await.unwrap();
        lane.close();
        assert_eq!(lane.put(2, soon()).await, Err(Refused::Closed));
        assert_eq!(lane.take(Duration::from_secs(9), |_| Next::Take), Some(vec![1]));
        assert_eq!(lane.take(Duration::ZERO, |_| Next::Take), None);
    }
}
