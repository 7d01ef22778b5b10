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
mod tests {
    use idl::audience::Audience;
    use idl::contract::message::Notification;

    use super::*;

    const APP: &str = "com.example.demo";
    const MINUTE: u64 = 60_000;

    fn app() -> AppId {
        APP.parse().expect("an app id")
    }

    fn registration() -> Registration {
        Registration {
            regid: RegId([1; 24]),
            account: AccountId(1),
            app: app(),
            device_public: [0; 32],
            seal_key: [0; 32],
            enabled: true,
            attributes: BTreeMap::new(),
            aliases: BTreeSet::new(),
            user_accounts: BTreeSet::new(),
            topics: BTreeMap::new(),
            version: 1,
            created_at: MessageId::MIN,
            cursor: Cursor { judged_to: MessageId::MIN, acked: Vec::new() },
        }
    }

    fn message(id: MessageId, audience: Option<Audience>) -> Arc<Message> {
        let notification = Notification::default();
        Arc::new(Message { id, app: app(), notification, accepted_at_ms: 0, expires_at_ms: u64::MAX, audience })
    }

    fn id(n: u64) -> MessageId {
        MessageId::at(10 * MINUTE + n)
    }

    /// A session whose mailbox was read whole and whose timeline was judged.
    fn in_step() -> (Session, Config) {
        let config = Config { window_max: 3, ..Config::default() };
        let mut session = Session::new(AccountId(1), FrontId(1), Epoch(1), MessageId(1));
        session.open(registration(), Vec::new(), false);
        let step = session.next(10 * MINUTE, &config);
        let Step::Judge { app, to, .. } = step else { panic!("the channel has opened: judge") };
        session.judged(&app, &[], to, false, &config);
        assert!(matches!(session.next(10 * MINUTE, &config), Step::Idle));
        (session, config)
    }

    fn handed_off(step: Step) -> Vec<MessageId> {
        let Step::HandOff(items) = step else { panic!("a hand-off was expected") };
        items.iter().flat_map(|(_, items)| items.iter().map(|item| item.message().id)).collect()
    }

    #[test]
    fn a_live_message_goes_out_at_once_when_the_session_is_in_step() {
        let (mut session, config) = in_step();
        session.stored(&app(), RegId([1; 24]), &message(id(1), None), &config);
        assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [id(1)]);
        session.handed_off();
        assert!(matches!(session.next(10 * MINUTE, &config), Step::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failed_hand_off_the_mailbox_is_read_before_anything_newer_goes_out() {
        let (mut session, config) = in_step();
        session.stored(&app(), RegId([1; 24]), &message(id(1), None), &config);
        let Step::HandOff(batch) = session.next(10 * MINUTE, &config) else { panic!("a hand-off") };
        session.hand_off_failed(batch, &config);
        session.stored(&app(), RegId([1; 24]), &message(id(2), None), &config);
        assert!(matches!(session.next(10 * MINUTE, &config), Step::Wait(_)));
        tokio::time::advance(Duration::from_secs(1)).await;
        let Step::Drain(reads) = session.next(10 * MINUTE, &config) else { panic!("the mailbox comes first") };
        let mailbox = [1, 2].map(|n| (id(n), (*message(id(n), None)).clone())).to_vec();
        session.drained(reads[0].0, mailbox, true);
        assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [id(1), id(2)]);
    }

    #[test]
    fn a_message_stored_while_the_mailbox_is_read_is_not_forgotten() {
        let (mut session, config) = in_step();
        session.check();
        let Step::Drain(reads) = session.next(10 * MINUTE, &config) else { panic!("a check reads") };
        session.stored(&app(), RegId([1; 24]), &message(id(1), None), &config);
        session.drained(reads[0].0, Vec::new(), true);
        let Step::Drain(_) = session.next(10 * MINUTE, &config) else { panic!("it is read again") };
    }

    #[test]
    fn a_message_stored_while_the_channel_opens_is_not_forgotten() {
        let config = Config::default();
        let mut session = Session::new(AccountId(1), FrontId(1), Epoch(1), MessageId(1));
        session.stored(&app(), RegId([1; 24]), &message(id(1), None), &config);
        session.open(registration(), Vec::new(), false);
        assert!(matches!(session.next(10 * MINUTE, &config), Step::Drain(_)));
    }

    #[test]
    fn a_full_window_waits_for_acks_and_goes_on_in_order() {
        let (mut session, config) = in_step();
        for n in 1..=5 {
            session.stored(&app(), RegId([1; 24]), &message(id(n), None), &config);
        }
        assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [id(1), id(2), id(3)]);
        assert!(matches!(session.next(10 * MINUTE, &config), Step::Idle));
        session.acked_singles(&app(), &[id(1), id(2)]);
        let Step::Drain(reads) = session.next(10 * MINUTE, &config) else { panic!("the queue was full: read") };
        let mailbox = [3, 4, 5].map(|n| (id(n), (*message(id(n), None)).clone())).to_vec();
        session.drained(reads[0].0, mailbox, true);
        assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [id(4), id(5)]);
    }

    #[test]
    fn a_judgement_hands_off_what_matches_and_the_cursor_waits_for_its_ack() {
        let (mut session, config) = in_step();
        let row = message(id(1), Some(Audience::Everyone));
        session.judge_soon();
        let Step::Judge { app, to, .. } = session.next(11 * MINUTE, &config) else { panic!("a judgement") };
        assert_eq!(session.judged(&app, &[row], to, false, &config), 1);
        assert_eq!(handed_off(session.next(11 * MINUTE, &config)), [id(1)]);
        let Step::WriteCursors(cursors) = session.next(11 * MINUTE, &config) else { panic!("a cursor") };
        assert_eq!(cursors[0].1.judged_to, id(1), "not past what is not acknowledged");
        session.acked_broadcasts(&app, &[id(1)], &config);
        session.end();
        let Step::Judge { app, from, to } = session.next(12 * MINUTE, &config) else { panic!("the last judgement") };
        assert!(from <= id(1), "the overlap is judged again");
        let row = message(id(1), Some(Audience::Everyone));
        assert_eq!(session.judged(&app, &[row], to, false, &config), 0, "it is acknowledged");
        let Step::WriteCursors(cursors) = session.next(12 * MINUTE, &config) else { panic!("a cursor") };
        assert_eq!(cursors[0].1.judged_to, MessageId::at(12 * MINUTE));
        assert!(matches!(session.next(12 * MINUTE, &config), Step::Ended));
    }

    #[test]
    fn what_has_expired_takes_no_place_in_the_window() {
        let (mut session, config) = in_step();
        let brief =
            |n: u64, audience| Arc::new(Message { expires_at_ms: 11 * MINUTE, ..(*message(id(n), audience)).clone() });
        session.stored(&app(), RegId([1; 24]), &brief(1, None), &config);
        session.judge_soon();
        assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [id(1)]);
        let Step::Judge { app, to, .. } = session.next(10 * MINUTE + 9, &config) else { panic!("a judgement") };
        let rows = [2, 3].map(|n| brief(n, Some(Audience::Everyone)));
        session.judged(&app, &rows, to, false, &config);
        assert_eq!(handed_off(session.next(10 * MINUTE + 9, &config)), [2, 3].map(id));
        session.stored(&app, RegId([1; 24]), &message(id(4), None), &config);
        assert!(matches!(session.next(10 * MINUTE + 9, &config), Step::WriteCursors(_)));
        assert!(matches!(session.next(10 * MINUTE + 9, &config), Step::Idle), "the window is full");
        assert_eq!(handed_off(session.next(11 * MINUTE, &config)), [id(4)], "nobody will acknowledge what has expired");
        session.judge_soon();
        assert!(matches!(session.next(11 * MINUTE, &config), Step::Judge { .. }));
    }

    #[test]
    fn what_is_in_flight_to_a_device_stays_below_what_its_front_holds_for_it() {
        let config = Config::default();
        let mut session = Session::new(AccountId(1), FrontId(1), Epoch(1), MessageId(1));
        let large = |n| {
            let notification = Notification { payload: Some("x".repeat(40_000)), ..Notification::default() };
            (id(n), Message { notification, ..(*message(id(n), None)).clone() })
        };
        let apps: Vec<AppId> = (0..3).map(|n| format!("com.example.{n}").parse().expect("an app id")).collect();
        for (n, app) in (0u8..).zip(&apps) {
            let registration = Registration { app: app.clone(), regid: RegId([n; 24]), ..registration() };
            session.open(registration, (0..64).map(large).collect(), false);
        }
        let mut arrived = 0;
        while arrived < 3 * 64 {
            let mut in_flight: Vec<(AppId, MessageId)> = Vec::new();
            loop {
                match session.next(10 * MINUTE, &config) {
                    Step::Judge { app, to, .. } => drop(session.judged(&app, &[], to, false, &config)),
                    Step::HandOff(batch) => in_flight.extend(batch.iter().flat_map(|(registration, items)| {
                        items.iter().map(|item| (registration.app.clone(), item.message().id))
                    })),
                    Step::Drain(_) => panic!("what was read has not gone out"),
                    Step::Idle => break,
                    _ => {}
                }
            }
            assert!(in_flight.len() * 40_000 < 2 << 20, "{} of them at once", in_flight.len());
            let without: Vec<_> = apps.iter().filter(|app| in_flight.iter().all(|(other, _)| other != *app)).collect();
            assert!(arrived > 0 || without.is_empty(), "{without:?} must not wait for the others' acks");
            arrived += in_flight.len();
            for (app, id) in in_flight {
                session.acked_singles(&app, &[id]);
            }
        }
    }

    #[test]
    fn acks_are_remembered_only_while_a_mailbox_is_read() {
        let (mut session, config) = in_step();
        let made_up: Vec<_> = (0..10_000).map(id).collect();
        let remembered = |session: &Session| session.held[&app()].acked_meanwhile.as_ref().map_or(0, BTreeSet::len);
        session.acked_singles(&app(), &made_up);
        assert_eq!(remembered(&session), 0);
        session.check();
        let Step::Drain(reads) = session.next(10 * MINUTE, &config) else { panic!("a check reads") };
        session.acked_singles(&app(), &made_up[..1]);
        let mailbox = vec![(id(0), (*message(id(0), None)).clone())];
        session.drained(reads[0].0, mailbox, true);
        assert!(!matches!(session.next(10 * MINUTE, &config), Step::HandOff(_)), "it was read before it was deleted");
        assert_eq!(remembered(&session), 0);
    }

    #[test]
    fn live_broadcasts_are_judged_before_their_acks_are_forgotten() {
        let (mut session, _) = in_step();
        let config = Config::default();
        // Four a second for the five minutes between two checks, each acknowledged at once.
        let rows: Vec<_> = (0..1200).map(|n| message(id(n * 250), Some(Audience::Everyone))).collect();
        let mut missing = 0;
        for (last, row) in rows.iter().enumerate() {
            let now_ms = row.id.time_ms();
            session.acked_broadcasts(&app(), &[row.id], &config);
            if last == rows.len() - 1 {
                session.check();
            }
            while let step @ (Step::Judge { .. } | Step::WriteCursors(_) | Step::Drain(_)) =
                session.next(now_ms, &config)
            {
                match step {
                    Step::Judge { app, from, to } => {
                        let found: Vec<_> = rows[..=last].iter().filter(|row| row.id >= from).cloned().collect();
                        missing += session.judged(&app, &found, to, false, &config);
                    }
                    Step::Drain(reads) => session.drained(reads[0].0, Vec::new(), true),
                    _ => {}
                }
            }
        }
        assert_eq!(missing, 0, "each has arrived");
    }

    #[test]
    fn an_ack_of_a_live_broadcast_does_not_move_the_cursor() {
        let (mut session, config) = in_step();
        session.acked_broadcasts(&app(), &[id(5)], &config);
        assert!(matches!(session.next(10 * MINUTE, &config), Step::Idle), "no write for an ack");
        session.judge_soon();
        let Step::Judge { app, to, .. } = session.next(11 * MINUTE, &config) else { panic!("a judgement") };
        // The row before it was lost on its way here.
        let rows = [message(id(4), Some(Audience::Everyone)), message(id(5), Some(Audience::Everyone))];
        assert_eq!(session.judged(&app, &rows, to, false, &config), 1);
        assert_eq!(handed_off(session.next(11 * MINUTE, &config)), [id(4)]);
    }

    #[test]
    fn what_waits_is_replayed_in_order_of_id_whichever_way_it_comes() {
        let config = Config { window_max: 3, judged_rows_max: 3, ..Config::default() };
        let now_ms = 11 * MINUTE;
        let single = |n: u64| (id(n), (*message(id(n), None)).clone());
        let broadcast = |n: u64| message(id(n), Some(Audience::Everyone));
        let mut session = Session::new(AccountId(1), FrontId(1), Epoch(1), MessageId(1));
        // Singles: 1, 2, 4, 8. Broadcasts: 3, 5, 6, 7.
        session.open(registration(), [1, 2, 4].map(single).to_vec(), true);
        let Step::Judge { app, .. } = session.next(now_ms, &config) else {
            panic!("what is between them is not known")
        };
        let next = MessageId(id(6).0 + 1);
        session.judged(&app, &[3, 5, 6].map(broadcast), next, true, &config);
        assert_eq!(handed_off(session.next(now_ms, &config)), [1, 2, 3].map(id));
        session.acked_singles(&app, &[id(1), id(2)]);
        session.acked_broadcasts(&app, &[id(3)], &config);
        assert_eq!(handed_off(session.next(now_ms, &config)), [id(4)], "the mailbox is known up to 4");
        let Step::Drain(reads) = session.next(now_ms, &config) else { panic!("what follows in the mailbox?") };
        session.drained(reads[0].0, [4, 8].map(single).to_vec(), true);
        assert_eq!(handed_off(session.next(now_ms, &config)), [5, 6].map(id), "the timeline is known up to 6");
        let Step::Judge { app, from, to } = session.next(now_ms, &config) else {
            panic!("what follows in the timeline?")
        };
        assert_eq!(from, next, "after what was read");
        session.stored(&app, RegId([1; 24]), &message(id(9), None), &config);
        session.judged(&app, &[broadcast(7)], to, false, &config);
        session.acked_singles(&app, &[id(4)]);
        session.acked_broadcasts(&app, &[5, 6].map(id), &config);
        assert_eq!(handed_off(session.next(now_ms, &config)), [7, 8, 9].map(id));
    }

    #[test]
    fn a_replay_goes_on_after_more_live_messages_than_the_queue_takes() {
        let config = Config { window_max: 2, ..Config::default() };
        let mut session = Session::new(AccountId(1), FrontId(1), Epoch(1), MessageId(1));
        session.open(registration(), Vec::new(), false);
        let Step::Judge { app, to, .. } = session.next(10 * MINUTE, &config) else { panic!("a judgement") };
        for n in 1..=3 {
            session.stored(&app, RegId([1; 24]), &message(id(n), None), &config);
        }
        session.judged(&app, &[], to, true, &config);
        assert!(matches!(session.next(10 * MINUTE, &config), Step::Judge { .. }), "the rest of the timeline first");
        session.judged(&app, &[], to, false, &config);
        assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [1, 2].map(id));
        session.acked_singles(&app, &[1, 2].map(id));
        assert!(matches!(session.next(10 * MINUTE, &config), Step::Drain(_)));
    }

    #[test]
    fn a_judgement_that_was_read_in_part_goes_on_where_it_stopped() {
        let (mut session, config) = in_step();
        session.judge_soon();
        let Step::Judge { app, from, .. } = session.next(11 * MINUTE, &config) else { panic!("a judgement") };
        assert!(from < id(0), "it begins before the cursor");
        // All of them are within the overlap, and none is for this registration.
        let rows = [1, 2].map(|n| message(id(n), None));
        session.judged(&app, &rows, id(3), true, &config);
        let Step::Judge { from, to, .. } = session.next(11 * MINUTE, &config) else { panic!("the rest of it") };
        assert_eq!(from, id(3));
        session.judge_soon();
        session.judged(&app, &[], to, false, &config);
        let Step::Judge { from, .. } = session.next(11 * MINUTE, &config) else { panic!("what became due meanwhile") };
        assert!(from < to, "another judgement has its overlap again");
    }

    #[test]
    fn what_is_stored_late_while_a_judgement_waits_is_met_by_the_next() {
        let (mut session, config) = in_step();
        session.judge_soon();
        let Step::Judge { app, .. } = session.next(11 * MINUTE, &config) else { panic!("a judgement") };
        session.judged(&app, &[message(id(1), None)], id(MINUTE - 1), true, &config);
        // It goes on nine minutes later; a row of 10:59.5 was stored at 11:03.
        let Step::Judge { app, to, .. } = session.next(20 * MINUTE, &config) else { panic!("the rest of it") };
        session.judged(&app, &[], to, false, &config);
        session.judge_soon();
        let Step::Judge { from, .. } = session.next(20 * MINUTE, &config) else { panic!("the next one") };
        assert!(from <= MessageId::at(10 * MINUTE), "the overlap before the moment at which the first began");
    }

    #[test]
    fn a_disabled_registration_gets_nothing_until_it_is_enabled_again() {
        let (mut session, config) = in_step();
        session.hold(Arc::new(Registration { enabled: false, version: 2, ..registration() }));
        session.stored(&app(), RegId([1; 24]), &message(id(1), None), &config);
        assert!(matches!(session.next(10 * MINUTE, &config), Step::Idle));
        session.hold(Arc::new(Registration { version: 3, ..registration() }));
        assert!(matches!(session.next(10 * MINUTE, &config), Step::Drain(_)));
    }

    #[test]
    fn an_expired_message_is_not_handed_off() {
        let (mut session, config) = in_step();
        let expired = Message { expires_at_ms: 1, ..(*message(id(1), None)).clone() };
        session.stored(&app(), RegId([1; 24]), &Arc::new(expired), &config);
        assert!(matches!(session.next(10 * MINUTE, &config), Step::Idle));
    }
}
