//! What a session knows of one registration.
//!
//! A registration is *in step* when every message of its mailbox has been handed off or waits here. Only then may a live
//! message join the queue; otherwise the mailbox is read first, in order of id.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use idl::due::Pace;
use idl::ids::{AccountId, MessageId};
use idl::message::Message;
use schema::registrations::{Cursor, RecentBroadcast, Registration};

use super::About;
use crate::Config;

/// Acknowledged broadcasts that a session or a cursor remembers; beyond it the oldest would come again. A judgement is due
/// before, since the device, too, remembers about so many.
const ACKED_MAX: usize = 1024;
/// What the session knows of one registration.
#[expect(clippy::struct_excessive_bools, reason = "each is a separate thing that is or is not due")]
pub(super) struct Held {
    pub(super) registration: Arc<Registration>,
    /// What waits in the store is being replayed, singles and broadcasts together in order of id.
    pub(super) replaying: bool,
    pub(super) in_step: bool,
    /// While not in step: the mailbox has been read up to this message.
    pub(super) read_to: MessageId,
    /// A message arrived, or was acknowledged, while the mailbox was being read.
    pub(super) dirty: bool,
    /// What was acknowledged while the mailbox is being read: the reading may have met it.
    pub(super) acked_meanwhile: Option<BTreeSet<MessageId>>,
    /// The last message that was handed off, or the request that opened the channel: what is told with an id up to here comes
    /// late.
    pub(super) handed_to: MessageId,
    /// To be handed off, in order of id.
    pub(super) queue: BTreeMap<MessageId, Queued>,
    /// Paced messages that are not due yet, with the moment that they are.
    pub(super) later: BTreeMap<MessageId, (u64, Queued)>,
    /// Handed off from the mailbox and not acknowledged.
    pub(super) unacked: BTreeMap<MessageId, Flight>,
    /// Broadcasts before this id have been judged.
    pub(super) judged_to: MessageId,
    /// Matched by a judgement and not acknowledged.
    pub(super) pending: BTreeMap<MessageId, Flight>,
    /// Acknowledged broadcasts that a judgement may meet again.
    pub(super) acked: BTreeSet<MessageId>,
    /// Of those, the ones that no written cursor covers: after a crash they would come again.
    pub(super) unsettled: BTreeSet<MessageId>,
    /// The broadcasts acknowledged last, newest at the end.
    pub(super) recent: Vec<RecentBroadcast>,
    pub(super) judge: Judging,
    /// Where the judgement under way ends.
    pub(super) judging_to: MessageId,
    /// Where a judgement goes on that has read only a part of its rows.
    pub(super) judge_rest: Option<MessageId>,
    /// The front's index has an older version of the membership.
    pub(super) index_due: bool,
    /// A judgement met rows since the cursor was written: without any, reading the same nothing again costs nothing.
    pub(super) cursor_due: bool,
    pub(super) written: Cursor,
    /// What is written when the session ends is written.
    pub(super) seen_written: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Judging {
    NotDue,
    /// Everything up to now: the channel has just opened or is closing.
    Whole,
    /// All but what is so young that its live delivery may still be under way.
    Lagging,
}

/// What is remembered of a message that is on its way.
#[derive(Clone)]
pub(super) struct Flight {
    pub(super) expires_at_ms: u64,
    pub(super) bytes: usize,
    /// When it was handed off; `None` for a broadcast that waits.
    pub(super) dispatched_at_ms: Option<u64>,
    pub(super) about: About,
}

impl Flight {
    pub(super) fn of(message: &Message, dispatched_at_ms: Option<u64>) -> Self {
        Self {
            expires_at_ms: message.expires_at_ms,
            bytes: message.approximate_bytes(),
            dispatched_at_ms,
            about: About::of(message),
        }
    }

    pub(super) fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms <= now_ms
    }
}

#[derive(Clone)]
pub(super) enum Queued {
    Single(Arc<Message>),
    Broadcast(Arc<Message>),
}

impl Queued {
    pub(super) fn message(&self) -> &Message {
        match self {
            Self::Single(message) | Self::Broadcast(message) => message,
        }
    }
}

impl Held {
    /// To be handed off: at once, or, if it is paced, when it has been due for so long.
    pub(super) fn enqueue(
        &mut self,
        id: MessageId,
        queued: Queued,
        account: AccountId,
        now_ms: u64,
        patience: Duration,
    ) {
        let message = queued.message();
        let handling = &message.handling;
        let due_ms = if handling.is_paced() {
            let pace = Pace { spread_ms: handling.spread_ms, local_time_ms: handling.local_time_ms };
            pace.due_ms(id, account, Some(&self.registration.attributes)).saturating_add(millis(patience))
        } else {
            0
        };
        if due_ms > now_ms {
            self.later.insert(id, (due_ms, queued));
        } else {
            self.queue.insert(id, queued);
        }
    }

    /// What has become due joins the queue.
    pub(super) fn wake(&mut self, now_ms: u64) {
        if self.later.values().any(|(due_ms, _)| *due_ms <= now_ms) {
            let due = self.later.extract_if(.., |_, (due_ms, _)| *due_ms <= now_ms);
            let due: Vec<_> = due.map(|(id, (_, queued))| (id, queued)).collect();
            self.queue.extend(due);
        }
    }

    /// Of broadcasts with one collapse key only the newest is delivered: an older one that has not been handed off is as
    /// good as acknowledged.
    pub(super) fn collapse(&mut self, newer: &Message) {
        let Some(key) = &newer.handling.collapse_key else { return };
        let collapses = |queued: &Queued| match queued {
            Queued::Broadcast(older) => older.id < newer.id && older.handling.collapse_key.as_ref() == Some(key),
            Queued::Single(_) => false,
        };
        let queued = self.queue.iter().filter(|(_, queued)| collapses(queued)).map(|(id, _)| *id);
        let later = self.later.iter().filter(|(_, (_, queued))| collapses(queued)).map(|(id, _)| *id);
        let collapsed: Vec<MessageId> = queued.chain(later).collect();
        for id in collapsed {
            self.queue.remove(&id);
            self.later.remove(&id);
            self.pending.remove(&id);
            self.acked.insert(id);
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.unacked.len() + self.pending.len().saturating_sub(self.queued_broadcasts() + self.later_broadcasts())
    }

    pub(super) fn later_broadcasts(&self) -> usize {
        self.later.values().filter(|(_, queued)| matches!(queued, Queued::Broadcast(_))).count()
    }

    pub(super) fn later_singles(&self) -> usize {
        self.later.len() - self.later_broadcasts()
    }

    pub(super) fn bytes_in_flight(&self) -> usize {
        let waits = |id: &MessageId| self.queue.contains_key(id) || self.later.contains_key(id);
        let broadcasts = self.pending.iter().filter(|(id, _)| !waits(id)).map(|(_, flight)| flight);
        self.unacked.values().chain(broadcasts).map(|flight| flight.bytes).sum()
    }

    /// True if more may be handed off. What has expired takes no place: nobody will acknowledge it.
    pub(super) fn has_room(&mut self, now_ms: u64, config: &Config) -> bool {
        if self.in_flight() >= config.window_max {
            self.unacked.retain(|_, flight| !flight.is_expired(now_ms));
            self.pending.retain(|id, flight| {
                !flight.is_expired(now_ms) || self.queue.contains_key(id) || self.later.contains_key(id)
            });
        }
        self.in_flight() < config.window_max
    }

    pub(super) fn queued_broadcasts(&self) -> usize {
        self.queue.values().filter(|queued| matches!(queued, Queued::Broadcast(_))).count()
    }

    pub(super) fn queued_singles(&self) -> usize {
        self.queue.len() - self.queued_broadcasts()
    }

    pub(super) fn last_queued_single(&self) -> MessageId {
        let mut singles = self.queue.iter().filter(|(_, queued)| matches!(queued, Queued::Single(_)));
        singles.next_back().map_or(MessageId::MIN, |(id, _)| *id)
    }

    pub(super) fn is_judging(&self) -> bool {
        self.judge != Judging::NotDue || self.judge_rest.is_some()
    }

    /// While what waits in the store is replayed, only messages before this id may go out: of those after it some may not
    /// have been read yet, from the mailbox or from the timeline.
    pub(super) fn known_before(&mut self) -> MessageId {
        self.replaying &= !self.in_step || self.is_judging();
        if !self.replaying {
            return MessageId::MAX;
        }
        let mailbox = if self.in_step { MessageId::MAX } else { MessageId(self.read_to.0.saturating_add(1)) };
        let timeline = if self.is_judging() { self.judged_to } else { MessageId::MAX };
        mailbox.min(timeline)
    }

    /// The mailbox must be read before any of its messages is handed off.
    pub(super) fn fall_out_of_step(&mut self) {
        self.in_step = false;
        self.read_to = MessageId::MIN;
        self.dirty = true;
        self.queue.retain(|_, queued| matches!(queued, Queued::Broadcast(_)));
        self.later.retain(|_, (_, queued)| matches!(queued, Queued::Broadcast(_)));
    }

    /// Everything before it is judged, and what matched is acknowledged.
    pub(super) fn lowest_open(&self) -> MessageId {
        self.pending.first_key_value().map_or(self.judged_to, |(id, _)| (*id).min(self.judged_to))
    }

    pub(super) fn cursor(&self, config: &Config) -> Cursor {
        let judged_to = self.lowest_open();
        let acked = self.acked.range(before(judged_to, config.overlap)..).copied().collect();
        Cursor { judged_to, acked }
    }

    /// True if so many acks are remembered that a judgement should free those from before its overlap, which most of them
    /// are.
    pub(super) fn would_free_acked(&self, config: &Config) -> bool {
        let (Some(first), Some(last)) = (self.acked.first(), self.acked.last()) else { return false };
        self.acked.len() >= ACKED_MAX / 2 && *first < before(*last, 2 * (config.overlap + config.judge_lag))
    }

    pub(super) fn trim_acked(&mut self) {
        while self.acked.len() > ACKED_MAX {
            self.acked.pop_first();
        }
    }
}

pub(super) fn before(id: MessageId, overlap: Duration) -> MessageId {
    MessageId::at(id.time_ms().saturating_sub(millis(overlap)))
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
