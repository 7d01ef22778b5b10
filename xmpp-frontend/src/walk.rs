//! Broadcasts on their way over the index, in chunks, so that single sends overtake them; and the slow ones among them, which
//! ordinary broadcasts overtake too.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use idl::bus::{FrontEvent, FrontInbox};
use roaring::RoaringBitmap;
use tokio::time::{MissedTickBehavior, interval};

use crate::Shared;
use crate::ring::Recent;

/// How often it is looked whose moment has come.
const TICK: Duration = Duration::from_millis(100);
/// Broadcasts that were taken in, the one under way included. They are taken in as they come, also while another is under
/// way: whom one is for is decided then, and a cancellation behind it is seen.
const WALKS_MAX: usize = 64;

/// A broadcast and the slots that it still has to reach.
pub(crate) struct Walk {
    pub(crate) recent: Arc<Recent>,
    slots: roaring::bitmap::IntoIter,
}

impl Walk {
    pub(crate) fn new(recent: Arc<Recent>, slots: RoaringBitmap) -> Self {
        Self { recent, slots: slots.into_iter() }
    }

    /// The next slot.
    pub(crate) fn next(&mut self) -> Option<u32> {
        self.slots.next()
    }
}

/// What is left to do for paced broadcasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pacing {
    /// Nobody waits for one.
    Done,
    /// Nobody's moment has come.
    Waiting,
    /// There may be more whose moment has come.
    Behind,
}

/// Serves what the middle tier sends to this front, until the bus is gone. Batches go before each chunk of a broadcast; one
/// broadcast is walked at a time, and a chunk of the paced ones goes behind each, or every tick.
pub(crate) async fn serve_inbox(shared: Arc<Shared>, inbox: FrontInbox) {
    let FrontInbox { mut batches, mut events } = inbox;
    let hub = &shared.hub;
    let chunk_max = shared.config.limits.broadcast_chunk_max;
    let mut walks: VecDeque<Walk> = VecDeque::new();
    let mut pacing = Pacing::Done;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            batch = batches.recv() => match batch {
                Some(incoming) => {
                    let reply = hub.deliver(incoming.batch);
                    incoming.answer.send(Ok(reply));
                }
                None => return,
            },
            event = events.recv(), if walks.len() < WALKS_MAX => match event {
                Some(FrontEvent::Broadcast(broadcast)) => {
                    walks.extend(hub.broadcast(&broadcast, shared.clock.now_ms()));
                }
                Some(FrontEvent::CancelBroadcast(cancelled)) => hub.cancel(&cancelled, &mut walks),
                Some(FrontEvent::TokenRevoked(revoked)) => {
                    shared.revoke(&revoked);
                }
                None => return,
            },
            () = tokio::task::yield_now(), if !walks.is_empty() => {
                let now_ms = shared.clock.now_ms();
                if walks.front_mut().is_some_and(|walk| !hub.walk(walk, chunk_max, now_ms)) {
                    walks.pop_front();
                    pacing = hub.pace(chunk_max, now_ms);
                }
            }
            () = tokio::task::yield_now(), if pacing == Pacing::Behind => {
                pacing = hub.pace(chunk_max, shared.clock.now_ms());
            }
            // Somebody waits whose connection came while nobody did.
            () = hub.paced.notified(), if pacing == Pacing::Done => pacing = Pacing::Waiting,
            _ = ticks.tick(), if pacing == Pacing::Waiting => pacing = hub.pace(chunk_max, shared.clock.now_ms()),
        }
    }
}
