//! A broadcast on its way over the index, in chunks, so that single sends overtake it.

use std::sync::Arc;

use idl::bus::{FrontEvent, FrontInbox};
use roaring::RoaringBitmap;

use crate::Shared;
use crate::ring::Recent;

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

/// Serves what the middle tier sends to this front, until the bus is gone. Batches go before each chunk of a broadcast;
/// one broadcast is walked at a time.
pub(crate) async fn serve_inbox(shared: Arc<Shared>, inbox: FrontInbox) {
    let FrontInbox { mut batches, mut events } = inbox;
    let mut walk: Option<Walk> = None;
    loop {
        tokio::select! {
            biased;
            batch = batches.recv() => match batch {
                Some(incoming) => {
                    let reply = shared.hub.deliver(incoming.batch);
                    incoming.answer.send(Ok(reply));
                }
                None => return,
            },
            () = tokio::task::yield_now(), if walk.is_some() => {
                let chunk_max = shared.config.limits.broadcast_chunk_max;
                let on_its_way = walk.as_mut().is_some_and(|walk| shared.hub.walk(walk, chunk_max, shared.clock.now_ms()));
                if !on_its_way {
                    walk = None;
                }
            }
            event = events.recv(), if walk.is_none() => match event {
                Some(FrontEvent::Broadcast(broadcast)) => {
                    walk = shared.hub.broadcast(&broadcast, shared.clock.now_ms());
                }
                Some(FrontEvent::CancelBroadcast(_)) => {}
                Some(FrontEvent::TokenRevoked(revoked)) => {
                    shared.revoke(&revoked);
                }
                None => return,
            },
        }
    }
}
