//! A broadcast's way over the index: taken in once, then written in chunks, to all at once or to each at a moment of its
//! own; replayed to connections whose index entries were on their way; and stopped.

use std::collections::HashMap;
use std::sync::Arc;

use idl::audience::Audience;
use idl::channel::Payload;
use idl::contract::bus as wire;
use idl::due::Pace;
use idl::ids::{AppId, MessageId};

use super::{Applied, Hub, Slot, State};
use crate::form::{Frame, SharedPayload};
use crate::index::Membership;
use crate::line::Line;
use crate::lock;
use crate::ring::Recent;
use crate::walk::{Pacing, Walk};

/// A broadcast that was read, before it has a place.
pub(crate) struct Received {
    id: MessageId,
    app: AppId,
    audience: Audience,
    frame: Arc<SharedPayload>,
    expires_at_ms: u64,
    pace: Option<Pace>,
}

/// What became of a broadcast for one slot.
enum Outcome {
    Written,
    /// It is not for who has the slot now, or its moment has not come.
    NotNow,
    /// The connection takes no more and is gone.
    Gone,
}

impl Hub {
    /// Takes in a broadcast: from now on it is in the ring, and the walk reaches its audience. Not if it has expired or was
    /// cancelled; or if it is paced and came before, or finds no room: then it is left to the middle tier's judgements.
    pub(crate) fn broadcast(&self, received: &Received, walk: &mut Walk, now_ms: u64) {
        let Received { id, app, audience, frame, expires_at_ms, pace } = received;
        if self.has_expired(*expires_at_ms, now_ms) {
            return;
        }
        let state = &mut *lock(&self.state);
        if state.ring.is_cancelled(*id) {
            self.metrics.broadcasts_cancelled.inc_by(u64::from(self.is_first));
            return;
        }
        let slots = state.index.audience(app, audience);
        tracing::debug!(%id, audience = slots.len(), paced = pace.is_some(), "broadcast");
        if pace.is_some() {
            if state.paced.has(*id) || state.ring.has(*id) {
                return;
            }
            if let Err(full) = state.paced.room_for(slots.len()) {
                self.metrics.limit(full.limit());
                return;
            }
        }
        let recent = state.ring.push(|place| Recent {
            place,
            id: *id,
            app: app.clone(),
            audience: audience.clone(),
            frame: Arc::clone(frame),
            expires_at_ms: *expires_at_ms,
            pace: *pace,
        });
        walk.join(recent, slots);
    }

    fn has_expired(&self, expires_at_ms: u64, now_ms: u64) -> bool {
        let expired = expires_at_ms <= now_ms;
        self.metrics.broadcasts_expired.inc_by(u64::from(expired && self.is_first));
        expired
    }

    /// Stops a broadcast: it is not replayed, nobody waits for it any more, and the walk goes on without it.
    /// Comes before the broadcast or after it, and as often as it likes.
    pub(crate) fn cancel(&self, cancelled: &wire::CancelBroadcast, walk: &mut Walk) {
        let id = match MessageId::from_bytes(&cancelled.id) {
            Ok(id) => id,
            Err(error) => return tracing::warn!(%error, "a cancellation can't be read"),
        };
        let state = &mut *lock(&self.state);
        state.ring.cancel(id);
        let waited = state.paced.cancel(id);
        let walked = walk.leave_out(|recent| recent.id == id);
        if (waited || walked) && self.is_first {
            self.metrics.broadcasts_cancelled.inc();
        }
        self.measure(state);
    }

    /// Writes one chunk of a walk: to each connection all that the walk has for it, or, where a broadcast is paced, what has
    /// come to its moment. Returns how many broadcasts have been to all since.
    pub(crate) fn walk(&self, walk: &mut Walk, chunk_max: usize, now_ms: u64) -> usize {
        walk.leave_out(|recent| self.has_expired(recent.expires_at_ms, now_ms));
        self.write(|state| {
            for _ in 0..chunk_max.max(1) {
                let Some(slot) = walk.next() else { break };
                for recent in walk.reach(slot) {
                    self.write_when_due(state, recent, slot, now_ms);
                }
            }
            self.measure(state);
        });
        walk.let_go()
    }

    /// Writes one chunk of the paced broadcasts to those whose moment has come, and says what is left to do.
    pub(crate) fn pace(&self, chunk_max: usize, now_ms: u64) -> Pacing {
        self.write(|state| self.pace_some(state, chunk_max, now_ms))
    }

    fn pace_some(&self, state: &mut State, chunk_max: usize, now_ms: u64) -> Pacing {
        if state.paced.is_empty() {
            return Pacing::Done;
        }
        self.metrics.broadcasts_expired.inc_by(state.paced.expire(now_ms));
        let mut left = chunk_max.max(1);
        while left > 0 {
            let Some((recent, slots)) = state.paced.take(left, now_ms) else { break };
            left -= slots.len();
            for slot in slots {
                self.write_when_due(state, &recent, slot, now_ms);
            }
        }
        self.measure(state);
        match state.paced.is_empty() {
            true => Pacing::Done,
            false if left == 0 => Pacing::Behind,
            false => Pacing::Waiting,
        }
    }

    /// Writes the broadcasts since `place` that the connection's registrations match and, as they were `before`, did not.
    pub(super) fn replay(
        &self,
        state: &mut State,
        slot: u32,
        place: u64,
        before: &HashMap<AppId, Option<Membership>>,
        now_ms: u64,
    ) -> Applied {
        let Some(Some(seat)) = state.slots.get(slot as usize) else { return Applied::Gone };
        let Ok(recents) = state.ring.since(place) else { return Applied::Wrapped };
        let matches = |recent: &Recent| {
            let had = |old: &Membership| old.since <= recent.place && recent.audience.evaluate(old);
            let old = before.get(&recent.app)?;
            let new = seat.memberships.get(&recent.app)?;
            Some(recent.expires_at_ms > now_ms && recent.audience.evaluate(new) && !old.as_ref().is_some_and(had))
        };
        let replay: Vec<_> = recents.filter(|recent| matches(recent) == Some(true)).map(Arc::clone).collect();
        for recent in replay {
            match self.write_when_due(state, &recent, slot, now_ms) {
                Outcome::Written => {
                    self.metrics.broadcast_replays.inc();
                }
                Outcome::NotNow => {}
                Outcome::Gone => return Applied::Gone,
            }
        }
        Applied::Whole
    }

    /// Writes a broadcast to a slot if it is for who has the slot now: at once, or when the moment has come, until which the
    /// slot waits.
    fn write_when_due(&self, state: &mut State, recent: &Arc<Recent>, slot: u32, now_ms: u64) -> Outcome {
        let Some((seat, membership)) = state.receiver(recent, slot) else { return Outcome::NotNow };
        let line = Arc::clone(&seat.line);
        let due_ms = due_ms(recent, &line, membership).unwrap_or(now_ms);
        if due_ms > now_ms {
            // One whose moment lies behind the end of the message never gets it.
            if due_ms < recent.expires_at_ms {
                match state.paced.add(recent, slot, due_ms, now_ms) {
                    Ok(()) => self.paced.notify_one(),
                    Err(full) => self.metrics.limit(full.limit()),
                }
            }
            return Outcome::NotNow;
        }
        if state.put(&line, Frame::Payload(Arc::clone(&recent.frame))).is_err() {
            self.evict(state, &line);
            return Outcome::Gone;
        }
        self.metrics.broadcast_deliveries.inc();
        Outcome::Written
    }

    fn measure(&self, state: &mut State) {
        let signed = |count| i64::try_from(count).unwrap_or(i64::MAX);
        let now = (signed(state.paced.len()), signed(state.paced.waiting()));
        let before = std::mem::replace(&mut state.measured, now);
        self.metrics.paced_broadcasts.inc_by(now.0 - before.0);
        self.metrics.paced_slots.inc_by(now.1 - before.1);
    }
}

impl State {
    /// Who has the slot now, if the broadcast is for them: their registration was there when it came, and has not left since.
    /// Whoever took the slot over after that has joined after that.
    fn receiver(&self, recent: &Recent, slot: u32) -> Option<(&Slot, &Membership)> {
        let seat = self.slots.get(slot as usize)?.as_ref()?;
        let membership = seat.memberships.get(&recent.app)?;
        (membership.joined <= recent.place).then_some((seat, membership))
    }
}

/// When the broadcast is due for that registration; `None` if it is due for all at once.
fn due_ms(recent: &Recent, line: &Line, membership: &Membership) -> Option<u64> {
    let pace = recent.pace?;
    let clock = pace.local_time_ms.map(|_| membership.local_clock());
    Some(pace.due_ms(recent.id, line.account(), clock.as_ref()))
}

impl Received {
    /// Reads a broadcast; one that can't be read is left to the middle tier's judgements.
    pub(crate) fn read(broadcast: &wire::Broadcast) -> Option<Self> {
        let unreadable = |error: &dyn std::fmt::Display| tracing::warn!(%error, "a broadcast can't be read");
        let positive = |ms: Option<i64>| ms.and_then(|ms| u64::try_from(ms).ok());
        let spread_ms = positive(broadcast.spread_ms).unwrap_or(0);
        let local_time_ms = positive(broadcast.local_time_ms);
        let number = u32::try_from(broadcast.channel).inspect_err(|error| unreadable(error)).ok()?;
        Some(Self {
            id: MessageId::from_bytes(&broadcast.id).inspect_err(|error| unreadable(error)).ok()?,
            app: broadcast.app.parse().inspect_err(|error| unreadable(error)).ok()?,
            audience: Audience::try_from(&broadcast.audience).inspect_err(|error| unreadable(error)).ok()?,
            frame: Arc::new(SharedPayload::new(Payload { number, bytes: broadcast.payload.clone() })),
            expires_at_ms: u64::try_from(broadcast.expires_at_ms).unwrap_or(0),
            pace: (spread_ms > 0 || local_time_ms.is_some()).then_some(Pace { spread_ms, local_time_ms }),
        })
    }
}
