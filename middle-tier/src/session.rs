//! What the middle knows of one device that has the push channel open: a state machine without I/O.
//!
//! `dispatch` asks for the [`Step`] to take, takes it, and tells how it went. At most one step is under way, so there is
//! one place where the order of deliveries is decided. Everything here is memory that may vanish: mailboxes, timelines and
//! cursors are the truth.
//!
//! A registration is *in step* when every message of its mailbox has been handed off or waits in the queue. Only then may
//! a live message join the queue; otherwise the mailbox is read first, in order of id.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use idl::ids::{AccountId, AppId, Epoch, FrontId, MessageId, RegId};
use idl::message::Message;
use schema::registrations::{Cursor, Registration};
use tokio::time::Instant;

use crate::Config;
use crate::judge;

/// Acknowledged broadcasts that a session or a cursor remembers; beyond it the oldest would come again. A judgement is due
/// before, since the device, too, remembers about so many.
const ACKED_MAX: usize = 1024;
/// About so many bytes are handed to a device and not yet acknowledged, for all its registrations together: well below what
/// a front holds for one connection, which would end over it, and come back to the same again.
const IN_FLIGHT_BYTES_MAX: usize = 1 << 20;
const FIRST_RETRY: Duration = Duration::from_millis(50);

/// One session.
pub(crate) struct Session {
    pub(crate) account: AccountId,
    pub(crate) front: FrontId,
    pub(crate) epoch: Epoch,
    /// Of the last hand-off. It begins with the id of the request that made the session, so that a later session of the
    /// same connection goes on above it, even when the memory of the earlier one is gone.
    order: u128,
    held: BTreeMap<AppId, Held>,
    /// Registrations that got a message before the session held them: while the channel was being opened.
    stored_unheld: BTreeSet<RegId>,
    /// Someone is taking steps.
    driven: bool,
    ending: bool,
    failures: u32,
    retry_at: Option<Instant>,
}

/// What the session knows of one registration.
#[expect(clippy::struct_excessive_bools, reason = "each is a separate thing that is or is not due")]
struct Held {
    registration: Arc<Registration>,
    /// What waits in the store is being replayed, singles and broadcasts together in order of id.
    replaying: bool,
    in_step: bool,
    /// While not in step: the mailbox has been read up to this message.
    read_to: MessageId,
    /// A message arrived, or was acknowledged, while the mailbox was being read.
    dirty: bool,
    /// What was acknowledged while the mailbox is being read: the reading may have met it.
    acked_meanwhile: Option<BTreeSet<MessageId>>,
    /// To be handed off, in order of id.
    queue: BTreeMap<MessageId, Queued>,
    /// Handed off from the mailbox and not acknowledged.
    unacked: BTreeMap<MessageId, Flight>,
    /// Broadcasts before this id have been judged.
    judged_to: MessageId,
    /// Matched by a judgement and not acknowledged.
    pending: BTreeMap<MessageId, Flight>,
    /// Acknowledged broadcasts that a judgement may meet again.
    acked: BTreeSet<MessageId>,
    judge: Judging,
    /// Where the judgement under way ends.
    judging_to: MessageId,
    /// Where a judgement goes on that has read only a part of its rows.
    judge_rest: Option<MessageId>,
    /// The front's index has an older version of the membership.
    index_due: bool,
    /// A judgement met rows since the cursor was written: without any, reading the same nothing again costs nothing.
    cursor_due: bool,
    written: Cursor,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Judging {
    NotDue,
    /// Everything up to now: the channel has just opened or is closing.
    Whole,
    /// All but what is so young that its live delivery may still be under way.
    Lagging,
}

/// What is remembered of a message that is on its way.
#[derive(Clone, Copy)]
struct Flight {
    expires_at_ms: u64,
    bytes: usize,
}

impl Flight {
    fn of(message: &Message) -> Self {
        Self { expires_at_ms: message.expires_at_ms, bytes: message.approximate_bytes() }
    }

    fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms <= now_ms
    }
}

#[derive(Clone)]
enum Queued {
    Single(Arc<Message>),
    Broadcast(Arc<Message>),
}

/// A delivery to hand off.
pub(crate) enum Item {
    /// To be sealed for the registration.
    Single(Arc<Message>),
    /// To be sealed for everyone.
    Broadcast(Arc<Message>),
}

impl Item {
    pub(crate) fn message(&self) -> &Message {
        match self {
            Self::Single(message) | Self::Broadcast(message) => message,
        }
    }
}

/// What to do next for a session.
pub(crate) enum Step {
    /// Tell the front's index of these registrations.
    Index(Vec<Arc<Registration>>),
    /// Hand these to the front, in this order.
    HandOff(Vec<(Arc<Registration>, Vec<Item>)>),
    /// Read these mailboxes from their beginning, so many cells each.
    Drain(Vec<(RegId, usize)>),
    /// Read the app's timeline from there and judge it; `to` is where the judgement ends if it is read whole.
    Judge {
        /// Whose timeline.
        app: AppId,
        /// The first id to read.
        from: MessageId,
        /// Ids from here on are not judged yet.
        to: MessageId,
    },
    /// Write these cursors.
    WriteCursors(Vec<(RegId, Cursor)>),
    /// Try again then.
    Wait(Instant),
    /// Nothing to do: stop driving; the next event starts it again.
    Idle,
    /// The session is over.
    Ended,
}

impl Session {
    /// A session that the request `opened` makes.
    pub(crate) fn new(account: AccountId, front: FrontId, epoch: Epoch, opened: MessageId) -> Self {
        Self {
            account,
            front,
            epoch,
            order: opened.0,
            held: BTreeMap::new(),
            stored_unheld: BTreeSet::new(),
            driven: false,
            ending: false,
            failures: 0,
            retry_at: None,
        }
    }

    /// Claims the right to take steps; `false` if someone has it or nothing is to be done.
    pub(crate) fn start_driving(&mut self) -> bool {
        let start = !self.driven;
        self.driven = true;
        start
    }

    /// Adds a registration, or takes over its changed membership.
    pub(crate) fn hold(&mut self, registration: Arc<Registration>) {
        if let Some(held) = self.held.get_mut(&registration.app) {
            let enabled_again = registration.enabled && !held.registration.enabled;
            if held.registration.regid == registration.regid {
                held.registration = registration;
                if enabled_again {
                    held.fall_out_of_step();
                    held.judge = Judging::Whole;
                    held.replaying = true;
                }
                return;
            }
        }
        let cursor = registration.cursor.clone();
        let held = Held {
            replaying: true,
            in_step: false,
            read_to: MessageId::MIN,
            dirty: false,
            acked_meanwhile: None,
            queue: BTreeMap::new(),
            unacked: BTreeMap::new(),
            judged_to: cursor.judged_to,
            pending: BTreeMap::new(),
            acked: cursor.acked.iter().copied().collect(),
            judge: Judging::Whole,
            judging_to: MessageId::MIN,
            judge_rest: None,
            index_due: false,
            cursor_due: false,
            written: cursor,
            registration,
        };
        self.held.insert(held.registration.app.clone(), held);
    }

    /// Holds a registration together with the beginning of its mailbox, which were read in one call. `more` says that the
    /// mailbox goes on.
    pub(crate) fn open(&mut self, registration: Registration, mailbox: Vec<(MessageId, Message)>, more: bool) {
        let regid = registration.regid;
        let app = registration.app.clone();
        self.hold(Arc::new(registration));
        if let Some(held) = self.held.get_mut(&app) {
            held.dirty = self.stored_unheld.remove(&regid);
            self.drained(regid, mailbox, !more);
        }
    }

    /// Someone other than the device changed the membership: the front's index must follow.
    pub(crate) fn changed(&mut self, registration: Arc<Registration>) {
        let app = registration.app.clone();
        self.hold(registration);
        if let Some(held) = self.held.get_mut(&app) {
            held.index_due = true;
        }
    }

    /// True while the front's index has an older version of the app's membership.
    pub(crate) fn is_index_due(&self, app: &AppId) -> bool {
        self.held.get(app).is_some_and(|held| held.index_due)
    }

    /// The front's index has this version. What was broadcast in between is judged.
    pub(crate) fn indexed(&mut self, registration: &Registration) {
        if let Some(held) = self.held.get_mut(&registration.app)
            && held.registration.version == registration.version
            && std::mem::take(&mut held.index_due)
        {
            held.judge = Judging::Whole;
        }
    }

    /// Forgets a registration that is gone.
    pub(crate) fn release(&mut self, app: &AppId) {
        self.held.remove(app);
    }

    /// The registration of an app, as this session knows it.
    pub(crate) fn registration(&self, app: &AppId) -> Option<&Arc<Registration>> {
        self.held.get(app).map(|held| &held.registration)
    }

    /// The order of the next hand-off: above all before it.
    pub(crate) fn next_order(&mut self) -> u128 {
        self.order = self.order.saturating_add(1);
        self.order
    }

    /// Takes over what an older session of the same account knew of acknowledged broadcasts: it is not in the store yet.
    pub(crate) fn inherit(&mut self, older: &Self) {
        self.order = self.order.max(older.order);
        for (app, held) in &mut self.held {
            if let Some(known) = older.held.get(app).filter(|known| known.registration.regid == held.registration.regid)
            {
                held.acked.extend(known.acked.iter().copied());
                held.trim_acked();
            }
        }
    }

    /// A message was stored in the mailbox of a registration.
    pub(crate) fn stored(&mut self, app: &AppId, regid: RegId, message: &Arc<Message>, config: &Config) {
        let Some(held) = self.held.get_mut(app).filter(|held| held.registration.regid == regid) else {
            self.stored_unheld.insert(regid);
            return;
        };
        if !held.in_step {
            held.dirty = true;
        } else if held.queue.len() >= config.window_max {
            // The mailbox keeps it: it is read from there when what is queued has gone out.
            held.in_step = false;
            held.read_to = held.last_queued_single();
        } else if !held.unacked.contains_key(&message.id) {
            held.queue.insert(message.id, Queued::Single(Arc::clone(message)));
        }
    }

    /// The device acknowledged single deliveries; their cells are deleted.
    pub(crate) fn acked_singles(&mut self, app: &AppId, ids: &[MessageId]) {
        if let Some(held) = self.held.get_mut(app) {
            for id in ids {
                held.unacked.remove(id);
                held.queue.remove(id);
                held.acked_meanwhile.as_mut().map(|acked| acked.insert(*id));
            }
        }
    }

    /// The device acknowledged broadcasts.
    pub(crate) fn acked_broadcasts(&mut self, app: &AppId, ids: &[MessageId], config: &Config) {
        if let Some(held) = self.held.get_mut(app) {
            for id in ids {
                held.pending.remove(id);
                held.queue.remove(id);
                held.acked.insert(*id);
            }
            if held.judge == Judging::NotDue && held.would_free_acked(config) {
                held.judge = Judging::Lagging;
            }
            held.trim_acked();
        }
    }

    /// The connection is gone: judge once more, write the cursors, end.
    pub(crate) fn end(&mut self) {
        if !self.ending {
            self.ending = true;
            self.retry_at = None;
            for held in self.held.values_mut() {
                held.judge = Judging::Whole;
            }
        }
    }

    /// Compare with the store at the next step: whatever was missed is found.
    pub(crate) fn check(&mut self) {
        for held in self.held.values_mut() {
            held.fall_out_of_step();
            if held.judge == Judging::NotDue {
                held.judge = Judging::Lagging;
            }
        }
    }

    /// Judge at the next step, without waiting for a check.
    pub(crate) fn judge_soon(&mut self) {
        for held in self.held.values_mut() {
            held.judge = Judging::Whole;
        }
    }

    /// What to do next.
    pub(crate) fn next(&mut self, now_ms: u64, config: &Config) -> Step {
        if let Some(at) = self.retry_at.take_if(|at| *at > Instant::now()) {
            self.retry_at = Some(at);
            return Step::Wait(at);
        }
        if self.ending {
            return self.next_of_ending(now_ms, config);
        }
        let index = self.index_due();
        if !index.is_empty() {
            return Step::Index(index);
        }
        let hand_off = self.hand_off(now_ms, config);
        if !hand_off.is_empty() {
            return Step::HandOff(hand_off);
        }
        let drain = self.drain(now_ms, config);
        if !drain.is_empty() {
            return Step::Drain(drain);
        }
        if let Some(judge) = self.judge(now_ms, config) {
            return judge;
        }
        let cursors = self.cursors_to_write(config);
        if !cursors.is_empty() {
            return Step::WriteCursors(cursors);
        }
        self.driven = false;
        Step::Idle
    }

    fn next_of_ending(&mut self, now_ms: u64, config: &Config) -> Step {
        if let Some(judge) = self.judge(now_ms, config) {
            return judge;
        }
        let cursors = self.cursors_to_write(config);
        if cursors.is_empty() { Step::Ended } else { Step::WriteCursors(cursors) }
    }

    fn index_due(&self) -> Vec<Arc<Registration>> {
        self.held.values().filter(|held| held.index_due).map(|held| Arc::clone(&held.registration)).collect()
    }

    fn hand_off(&mut self, now_ms: u64, config: &Config) -> Vec<(Arc<Registration>, Vec<Item>)> {
        let mut all = Vec::new();
        let mut bytes: usize = self.held.values().map(Held::bytes_in_flight).sum();
        for held in self.held.values_mut().filter(|held| held.registration.enabled) {
            let mut items = Vec::new();
            let before = held.known_before();
            // One at a time goes out in any case: no app waits for another's acks.
            while held.has_room(now_ms, config) && (bytes < IN_FLIGHT_BYTES_MAX || held.in_flight() == 0) {
                let Some(next) = held.queue.first_entry().filter(|next| *next.key() < before) else { break };
                let (id, queued) = next.remove_entry();
                match queued {
                    Queued::Single(message) if !message.is_expired(now_ms) => {
                        let flight = Flight::of(&message);
                        bytes += flight.bytes;
                        held.unacked.insert(id, flight);
                        items.push(Item::Single(message));
                    }
                    Queued::Broadcast(message) if !message.is_expired(now_ms) => {
                        let flight = Flight::of(&message);
                        bytes += flight.bytes;
                        held.pending.insert(id, flight);
                        items.push(Item::Broadcast(message));
                    }
                    Queued::Single(_) | Queued::Broadcast(_) => {
                        held.pending.remove(&id);
                    }
                }
            }
            if !items.is_empty() {
                all.push((Arc::clone(&held.registration), items));
            }
        }
        all
    }

    fn drain(&mut self, now_ms: u64, config: &Config) -> Vec<(RegId, usize)> {
        let mut reads = Vec::new();
        for held in self.held.values_mut().filter(|held| held.registration.enabled) {
            if !held.in_step && held.queued_singles() == 0 && held.has_room(now_ms, config) {
                held.dirty = false;
                held.acked_meanwhile = Some(BTreeSet::new());
                reads.push((held.registration.regid, held.unacked.len() + config.window_max));
            }
        }
        reads
    }

    fn judge(&mut self, now_ms: u64, config: &Config) -> Option<Step> {
        let (app, held) = self.held.iter_mut().find(|(_, held)| {
            held.is_judging()
                && held.registration.enabled
                && held.queued_broadcasts() == 0
                && held.pending.values().filter(|flight| !flight.is_expired(now_ms)).count() < config.window_max
        })?;
        held.pending.retain(|_, flight| !flight.is_expired(now_ms));
        let from = held.judge_rest.take().unwrap_or_else(|| {
            // A judgement under way is not due; what makes it due meanwhile makes it due again.
            let judging = std::mem::replace(&mut held.judge, Judging::NotDue);
            let lag = if judging == Judging::Lagging { config.judge_lag } else { Duration::ZERO };
            // However long it takes: the next one begins before this moment, so that it meets what was stored late.
            held.judging_to = MessageId::at(now_ms.saturating_sub(millis(lag)));
            before(held.judged_to, config.overlap)
        });
        Some(Step::Judge { app: app.clone(), from, to: held.judging_to })
    }

    fn cursors_to_write(&mut self, config: &Config) -> Vec<(RegId, Cursor)> {
        let mut cursors = Vec::new();
        for held in self.held.values_mut() {
            // Acks alone are not worth a write: they are written with the next judgement.
            if !std::mem::take(&mut held.cursor_due) {
                continue;
            }
            let cursor = held.cursor(config);
            if cursor != held.written {
                held.written = cursor.clone();
                cursors.push((held.registration.regid, cursor));
            }
        }
        cursors
    }

    /// The front has written what was handed off.
    pub(crate) fn handed_off(&mut self) {
        self.failures = 0;
    }

    /// A hand-off failed: it may have happened or not. What came from mailboxes is read again, so that order holds.
    pub(crate) fn hand_off_failed(&mut self, items: Vec<(Arc<Registration>, Vec<Item>)>, config: &Config) {
        for (registration, items) in items {
            let Some(held) = self.held.get_mut(&registration.app) else { continue };
            held.fall_out_of_step();
            for item in items {
                match item {
                    Item::Single(message) => {
                        held.unacked.remove(&message.id);
                    }
                    Item::Broadcast(message) => {
                        // Acknowledged already? Then it did arrive.
                        if held.pending.contains_key(&message.id) {
                            held.queue.insert(message.id, Queued::Broadcast(message));
                        }
                    }
                }
            }
        }
        self.failed(config);
    }

    /// A step failed: take the next one a little later.
    pub(crate) fn failed(&mut self, config: &Config) {
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(16)).min(config.retry_wait_max);
        self.failures += 1;
        self.retry_at = Some(Instant::now() + wait);
    }

    /// How many steps failed in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// A mailbox was read from its beginning; `whole` if it held no more cells.
    pub(crate) fn drained(&mut self, regid: RegId, mailbox: Vec<(MessageId, Message)>, whole: bool) {
        let Some(held) = self.held.values_mut().find(|held| held.registration.regid == regid) else { return };
        held.read_to = mailbox.last().map_or(held.read_to, |(id, _)| *id);
        let acked = held.acked_meanwhile.take().unwrap_or_default();
        if whole {
            // What is no longer in the mailbox has expired or was acknowledged elsewhere.
            let there: BTreeSet<_> = mailbox.iter().map(|(id, _)| *id).collect();
            held.unacked.retain(|id, _| there.contains(id));
        }
        for (id, message) in mailbox {
            if !held.unacked.contains_key(&id) && !acked.contains(&id) {
                held.queue.insert(id, Queued::Single(Arc::new(message)));
            }
        }
        held.in_step = whole && !held.dirty;
    }

    /// Mailboxes could not be read: they are due again.
    pub(crate) fn drain_failed(&mut self, config: &Config) {
        for held in self.held.values_mut() {
            held.acked_meanwhile = None;
        }
        self.failed(config);
    }

    /// Reading failed before it told anything: it is due again.
    pub(crate) fn judge_failed(&mut self, app: &AppId, config: &Config) {
        if let Some(held) = self.held.get_mut(app) {
            held.judge = Judging::Whole;
        }
        self.failed(config);
    }

    /// The app's timeline was read and everything before `to` judged. `more` says that rows follow. Returns how many
    /// broadcasts were found to be missing.
    pub(crate) fn judged(
        &mut self,
        app: &AppId,
        rows: &[Arc<Message>],
        to: MessageId,
        more: bool,
        config: &Config,
    ) -> usize {
        let Some(held) = self.held.get_mut(app) else { return 0 };
        let mut missing = 0;
        for row in rows.iter().filter(|row| row.id < to) {
            let known = held.acked.contains(&row.id) || held.pending.contains_key(&row.id);
            if !known && judge::concerns(row, &held.registration) {
                held.pending.insert(row.id, Flight::of(row));
                if !self.ending {
                    held.queue.insert(row.id, Queued::Broadcast(Arc::clone(row)));
                }
                missing += 1;
            }
        }
        held.cursor_due |= rows.iter().any(|row| row.id >= held.written.judged_to);
        held.judged_to = held.judged_to.max(to);
        let keep_from = before(held.lowest_open(), config.overlap);
        held.acked = held.acked.split_off(&keep_from);
        if more {
            // From there, not from before the overlap: that may hold more rows than are judged in one step.
            held.judge_rest = Some(to);
        }
        missing
    }
}

impl Held {
    fn in_flight(&self) -> usize {
        self.unacked.len() + self.pending.len().saturating_sub(self.queued_broadcasts())
    }

    fn bytes_in_flight(&self) -> usize {
        let broadcasts = self.pending.iter().filter(|(id, _)| !self.queue.contains_key(id)).map(|(_, flight)| flight);
        self.unacked.values().chain(broadcasts).map(|flight| flight.bytes).sum()
    }

    /// True if more may be handed off. What has expired takes no place: nobody will acknowledge it.
    fn has_room(&mut self, now_ms: u64, config: &Config) -> bool {
        if self.in_flight() >= config.window_max {
            self.unacked.retain(|_, flight| !flight.is_expired(now_ms));
            self.pending.retain(|id, flight| !flight.is_expired(now_ms) || self.queue.contains_key(id));
        }
        self.in_flight() < config.window_max
    }

    fn queued_broadcasts(&self) -> usize {
        self.queue.values().filter(|queued| matches!(queued, Queued::Broadcast(_))).count()
    }

    fn queued_singles(&self) -> usize {
        self.queue.len() - self.queued_broadcasts()
    }

    fn last_queued_single(&self) -> MessageId {
        let mut singles = self.queue.iter().filter(|(_, queued)| matches!(queued, Queued::Single(_)));
        singles.next_back().map_or(MessageId::MIN, |(id, _)| *id)
    }

    fn is_judging(&self) -> bool {
        self.judge != Judging::NotDue || self.judge_rest.is_some()
    }

    /// While what waits in the store is replayed, only messages before this id may go out: of those after it some may not
    /// have been read yet, from the mailbox or from the timeline.
    fn known_before(&mut self) -> MessageId {
        self.replaying &= !self.in_step || self.is_judging();
        if !self.replaying {
            return MessageId::MAX;
        }
        let mailbox = if self.in_step { MessageId::MAX } else { MessageId(self.read_to.0.saturating_add(1)) };
        let timeline = if self.is_judging() { self.judged_to } else { MessageId::MAX };
        mailbox.min(timeline)
    }

    /// The mailbox must be read before any of its messages is handed off.
    fn fall_out_of_step(&mut self) {
        self.in_step = false;
        self.read_to = MessageId::MIN;
        self.dirty = true;
        self.queue.retain(|_, queued| matches!(queued, Queued::Broadcast(_)));
    }

    /// Everything before it is judged, and what matched is acknowledged.
    fn lowest_open(&self) -> MessageId {
        self.pending.first_key_value().map_or(self.judged_to, |(id, _)| (*id).min(self.judged_to))
    }

    fn cursor(&self, config: &Config) -> Cursor {
        let judged_to = self.lowest_open();
        let acked = self.acked.range(before(judged_to, config.overlap)..).copied().collect();
        Cursor { judged_to, acked }
    }

    /// True if so many acks are remembered that a judgement should free those from before its overlap, which most of them
    /// are.
    fn would_free_acked(&self, config: &Config) -> bool {
        let (Some(first), Some(last)) = (self.acked.first(), self.acked.last()) else { return false };
        self.acked.len() >= ACKED_MAX / 2 && *first < before(*last, 2 * (config.overlap + config.judge_lag))
    }

    fn trim_acked(&mut self) {
        while self.acked.len() > ACKED_MAX {
            self.acked.pop_first();
        }
    }
}

fn before(id: MessageId, overlap: Duration) -> MessageId {
    MessageId::at(id.time_ms().saturating_sub(millis(overlap)))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
