//! A broadcast's way over the index: taken in once, then written in chunks.

use std::sync::Arc;

use idl::audience::Audience;
use idl::channel::Payload;
use idl::contract::bus as wire;
use idl::ids::{AppId, MessageId};

use super::Hub;
use crate::lock;
use crate::outbox::Frame;
use crate::ring::Recent;
use crate::walk::Walk;

impl Hub {
    /// Takes in a broadcast: from now on it is in the ring, and the walk over its audience can begin. `None` if it has
    /// expired or can't be read.
    pub(crate) fn broadcast(&self, broadcast: &wire::Broadcast, now_ms: u64) -> Option<Walk> {
        self.metrics.broadcasts.inc();
        let expires_at_ms = u64::try_from(broadcast.expires_at_ms).unwrap_or(0);
        if expires_at_ms <= now_ms {
            self.metrics.broadcasts_expired.inc();
            return None;
        }
        let id = MessageId::from_bytes(&broadcast.id).map(|id| id.to_string()).unwrap_or_default();
        let app: AppId = broadcast.app.parse().ok()?;
        let audience = Audience::try_from(&broadcast.audience)
            .inspect_err(|error| tracing::warn!(id, %error, "a broadcast has an audience that can't be read"))
            .ok()?;
        let number = u32::try_from(broadcast.channel).ok()?;
        let frame = Payload { number, bytes: broadcast.payload.clone() }.to_message().into();
        let state = &mut *lock(&self.state);
        let recent = state.ring.push(|place| Recent { place, app, audience, frame, expires_at_ms });
        let slots = state.index.audience(&recent.app, &recent.audience);
        tracing::debug!(id, audience = slots.len(), "broadcast");
        Some(Walk::new(recent, slots))
    }

    /// Writes one chunk of a broadcast. Returns false once the walk is over.
    pub(crate) fn walk(&self, walk: &mut Walk, chunk_max: usize, now_ms: u64) -> bool {
        if walk.recent.expires_at_ms <= now_ms {
            self.metrics.broadcasts_expired.inc();
            return false;
        }
        let state = &mut *lock(&self.state);
        for _ in 0..chunk_max.max(1) {
            let Some(slot) = walk.next() else { return false };
            let Some(Some(seat)) = state.slots.get(slot as usize) else { continue };
            if seat.since > walk.recent.place {
                continue;
            }
            let line = Arc::clone(&seat.line);
            if line.push(Frame::Stanza(Arc::clone(&walk.recent.frame))).is_ok() {
                self.metrics.broadcast_deliveries.inc();
            } else {
                self.evict(state, &line);
            }
        }
        true
    }
}
