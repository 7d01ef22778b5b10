//! What the middle knows of one device that has the push channel open: a state machine without I/O.
//!
//! `dispatch` asks for the [`Step`] to take, takes it, and tells how it went. At most one step is under way, so there is
//! one place where the order of deliveries is decided. Everything here is memory that may vanish: mailboxes, timelines and
//! cursors are the truth.

mod by_app;
mod held;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use idl::contract::message::{Callback, Notification};
use idl::ids::{AccountId, AppId, Epoch, FrontId, MessageId, RegId};
use idl::message::{Handling, Message};
use schema::registrations::{Progress, RECENT_MAX, RecentBroadcast, Registration};
use tokio::time::Instant;

use self::by_app::ByApp;
use self::held::{Flight, Held, Judging, Queued, before, millis};
use crate::Config;
use crate::judge;

/// About so many bytes are handed to a device and not yet acknowledged, for all its registrations together: well below what
/// a front holds for one connection, which would end over it, and come back to the same again.
const IN_FLIGHT_BYTES_MAX: usize = 1 << 20;
/// Broadcasts of one app that wait for their moment in one session; beyond it judging waits.
const LATER_MAX: usize = 1024;
/// Acknowledged broadcasts of one app that no written cursor covers: a judgement is due long before, so a device that says
/// more is not believed.
const UNSETTLED_MAX: usize = 4096;
const FIRST_RETRY: Duration = Duration::from_millis(50);

/// One session.
pub(crate) struct Session {
    pub(crate) account: AccountId,
    pub(crate) front: FrontId,
    pub(crate) epoch: Epoch,
    /// Of the last hand-off. It begins with the id of the request that made the session, so that a later session of the
    /// same connection goes on above it, even when the memory of the earlier one is gone.
    order: u128,
    /// The request that made it: the front itself paces what was broadcast after it.
    opened: MessageId,
    held: ByApp<Held>,
    /// Registrations that got a message before the session held them: while the channel was being opened.
    stored_unheld: BTreeSet<RegId>,
    /// Someone is taking steps.
    driven: bool,
    ending: bool,
    failures: u32,
    retry_at: Option<Instant>,
}

/// What an acknowledgement has to know of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct About {
    /// It is no message: it takes one back, which nobody counts.
    pub(crate) revocation: bool,
    pub(crate) expires_at_ms: u64,
    /// Where receipts are wanted.
    pub(crate) receipts: Option<Arc<Wanted>>,
}

/// What a receipt holds besides who and when.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) callback: Callback,
    pub(crate) alias: Option<String>,
    pub(crate) job_key: Option<String>,
}

impl Wanted {
    /// A message that holds nothing but this.
    pub(crate) fn to_message(&self, app: &AppId, id: MessageId) -> Message {
        Message {
            id,
            app: app.clone(),
            notification: Notification {
                payload: None,
                title: None,
                description: None,
                pass_through: None,
                notify_type: None,
                notify_id: None,
                extra: None,
                topic: None,
                alias_name: self.alias.clone(),
                user_account: None,
                job_key: self.job_key.clone(),
                accepted_at_ms: None,
            },
            accepted_at_ms: 0,
            expires_at_ms: 0,
            audience: None,
            handling: Handling { callback: Some(self.callback.clone()), ..Handling::default() },
        }
    }
}

impl About {
    pub(crate) fn of(message: &Message) -> Self {
        let wanted = |callback: &Callback| {
            Arc::new(Wanted {
                callback: callback.clone(),
                alias: message.notification.alias_name.clone(),
                job_key: message.notification.job_key.clone(),
            })
        };
        Self {
            revocation: message.handling.is_revocation(),
            expires_at_ms: message.expires_at_ms,
            receipts: message.handling.callback.as_ref().map(wanted),
        }
    }
}

/// A single delivery that the device has acknowledged.
pub(crate) struct Delivered {
    pub(crate) dispatched_at_ms: Option<u64>,
    pub(crate) about: About,
}

/// Where a message is on its way to a registration, as far as its session knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// It waits for its turn, or for room in the window.
    Queued,
    /// It waits for the moment that it is due.
    Later(u64),
    /// It was handed off then.
    InFlight(u64),
    /// A broadcast that the device acknowledged.
    Acknowledged,
    /// The session knows nothing of it.
    Unknown,
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

/// How far a registration is, to be written.
pub(crate) struct Advance {
    pub(crate) app: AppId,
    pub(crate) regid: RegId,
    pub(crate) progress: Progress,
    /// Acknowledged broadcasts that this covers.
    pub(crate) settles: Vec<MessageId>,
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
    /// Write how far these registrations are.
    WriteProgress(Vec<Advance>),
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
            opened,
            held: ByApp::new(),
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
            handed_to: self.opened,
            queue: BTreeMap::new(),
            later: BTreeMap::new(),
            unacked: BTreeMap::new(),
            judged_to: cursor.judged_to,
            pending: BTreeMap::new(),
            acked: cursor.acked.iter().copied().collect(),
            unsettled: BTreeSet::new(),
            recent: registration.recent.clone(),
            judge: Judging::Whole,
            judging_to: MessageId::MIN,
            judge_rest: None,
            index_due: false,
            cursor_due: false,
            written: cursor,
            seen_written: false,
            registration,
        };
        self.held.insert(held.registration.app.clone(), held);
    }

    /// Holds a registration together with the beginning of its mailbox, which were read in one call. `more` says that the
    /// mailbox goes on.
    pub(crate) fn open(
        &mut self,
        registration: Registration,
        mailbox: Vec<(MessageId, Message)>,
        more: bool,
        now_ms: u64,
    ) {
        let regid = registration.regid;
        let app = registration.app.clone();
        self.hold(Arc::new(registration));
        if let Some(held) = self.held.get_mut(&app) {
            held.dirty = self.stored_unheld.remove(&regid);
            self.drained(regid, mailbox, !more, now_ms);
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

    /// Forgets a registration that is gone. Returns the broadcasts that it acknowledged and no written cursor covers: they
    /// don't come again.
    pub(crate) fn release(&mut self, app: &AppId) -> Vec<MessageId> {
        self.held.remove(app).map(|held| held.unsettled.into_iter().collect()).unwrap_or_default()
    }

    /// The acknowledged broadcasts that no written cursor covers, which this session knows of no longer.
    pub(crate) fn take_unsettled(&mut self) -> Vec<(AppId, Vec<MessageId>)> {
        let held = self.held.iter_mut().filter(|(_, held)| !held.unsettled.is_empty());
        held.map(|(app, held)| (app.clone(), std::mem::take(&mut held.unsettled).into_iter().collect())).collect()
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
    pub(crate) fn inherit(&mut self, older: &mut Self) {
        self.order = self.order.max(older.order);
        for (app, held) in self.held.iter_mut() {
            let regid = held.registration.regid;
            if let Some(known) = older.held.get_mut(app).filter(|known| known.registration.regid == regid) {
                held.acked.extend(known.acked.iter().copied());
                held.unsettled.append(&mut known.unsettled);
                held.recent.clone_from(&known.recent);
                held.trim_acked();
            }
        }
    }

    /// A message was stored in the mailbox of a registration. One that is told late, after a later one was handed off or with
    /// an id from before the channel was opened, may be acknowledged already: the mailbox tells, and its order is kept as
    /// far as it still can be.
    pub(crate) fn stored(&mut self, app: &AppId, regid: RegId, message: &Arc<Message>, config: &Config, now_ms: u64) {
        let account = self.account;
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
        } else if held.unacked.contains_key(&message.id) {
            // It was met in the mailbox.
        } else if message.id > held.handed_to {
            held.enqueue(message.id, Queued::Single(Arc::clone(message)), account, now_ms, Duration::ZERO);
        } else if !held.queue.contains_key(&message.id) && !held.later.contains_key(&message.id) {
            held.fall_out_of_step();
        }
    }

    /// Something may have been stored in the mailbox of a registration: it is read anew.
    pub(crate) fn look(&mut self, app: &AppId, regid: RegId) {
        match self.held.get_mut(app).filter(|held| held.registration.regid == regid) {
            Some(held) => held.fall_out_of_step(),
            None => {
                self.stored_unheld.insert(regid);
            }
        }
    }

    /// What is known of a single delivery that the device acknowledges; `None` if this session did not hand it off.
    pub(crate) fn in_flight(&self, app: &AppId, id: MessageId) -> Option<Delivered> {
        let flight = self.held.get(app)?.unacked.get(&id)?;
        Some(Delivered { dispatched_at_ms: flight.dispatched_at_ms, about: flight.about.clone() })
    }

    /// The device acknowledged single deliveries; their cells are deleted.
    pub(crate) fn acked_singles(&mut self, app: &AppId, ids: &[MessageId]) {
        if let Some(held) = self.held.get_mut(app) {
            for id in ids {
                held.unacked.remove(id);
                held.queue.remove(id);
                held.later.remove(id);
                held.acked_meanwhile.as_mut().map(|acked| acked.insert(*id));
            }
        }
    }

    /// The device acknowledged broadcasts. Returns those that it had not acknowledged before, as far as is remembered.
    pub(crate) fn acked_broadcasts(
        &mut self,
        app: &AppId,
        ids: &[MessageId],
        config: &Config,
        now_ms: u64,
    ) -> Vec<MessageId> {
        let mut new = Vec::new();
        if let Some(held) = self.held.get_mut(app) {
            for id in ids {
                let flight = held.pending.remove(id);
                held.queue.remove(id);
                held.later.remove(id);
                // A broadcast this old was judged long ago; whoever acknowledges it now did so before.
                let old = *id < before(held.written.judged_to, config.overlap) && flight.is_none();
                let counts = !old
                    && held.unsettled.len() < UNSETTLED_MAX
                    && !flight.is_some_and(|flight| flight.about.revocation);
                if held.acked.insert(*id) && counts {
                    held.unsettled.insert(*id);
                    held.recent.push(RecentBroadcast { id: *id, at_ms: now_ms, front: self.front });
                    new.push(*id);
                }
            }
            let excess = held.recent.len().saturating_sub(RECENT_MAX);
            held.recent.drain(..excess);
            if held.judge == Judging::NotDue && held.would_free_acked(config) {
                held.judge = Judging::Lagging;
            }
            held.trim_acked();
        }
        new
    }

    /// Takes a message back that is stopped: it is not handed off any more. Returns where it was.
    pub(crate) fn take_back(&mut self, app: &AppId, id: MessageId) -> Whereabouts {
        let whereabouts = self.whereabouts(app, id);
        // What was handed off keeps its place until it is acknowledged: then it was delivered all the same.
        if let Some(held) = self.held.get_mut(app)
            && held.queue.remove(&id).is_some() | held.later.remove(&id).is_some()
        {
            held.pending.remove(&id);
        }
        whereabouts
    }

    /// The device has done with a message without handing it to its app: an ack of it tells of no delivery.
    pub(crate) fn not_delivered(&mut self, app: &AppId, id: MessageId, broadcast: bool) {
        self.take_back(app, id);
        let Some(held) = self.held.get_mut(app) else { return };
        if broadcast {
            held.pending.remove(&id);
            held.acked.insert(id);
            held.trim_acked();
        } else {
            held.unacked.remove(&id);
        }
    }

    /// Where a message is on its way to the app's registration.
    pub(crate) fn whereabouts(&self, app: &AppId, id: MessageId) -> Whereabouts {
        let Some(held) = self.held.get(app) else { return Whereabouts::Unknown };
        if let Some((due_ms, _)) = held.later.get(&id) {
            return Whereabouts::Later(*due_ms);
        }
        if held.queue.contains_key(&id) {
            return Whereabouts::Queued;
        }
        if held.acked.contains(&id) {
            return Whereabouts::Acknowledged;
        }
        let flight = held.unacked.get(&id).or_else(|| held.pending.get(&id));
        flight.and_then(|flight| flight.dispatched_at_ms).map_or(Whereabouts::Unknown, Whereabouts::InFlight)
    }

    /// The broadcasts of an app that the device acknowledged last.
    pub(crate) fn recent(&self, app: &AppId) -> &[RecentBroadcast] {
        self.held.get(app).map(|held| held.recent.as_slice()).unwrap_or_default()
    }

    /// True while its connection is there, as far as is known.
    pub(crate) fn is_online(&self) -> bool {
        !self.ending
    }

    /// The first moment at which a paced message is due.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        let held = self.held.values().filter(|held| held.registration.enabled);
        held.flat_map(|held| held.later.values().map(|(due_ms, _)| *due_ms)).min()
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

    /// Compare with the store at the next step, the youngest messages too: whoever stored them told nobody.
    pub(crate) fn check_whole(&mut self) {
        self.check();
        self.judge_soon();
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
        for held in self.held.values_mut() {
            held.wake(now_ms);
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
        let progress = self.progress(config);
        if !progress.is_empty() {
            return Step::WriteProgress(progress);
        }
        self.driven = false;
        Step::Idle
    }

    fn next_of_ending(&mut self, now_ms: u64, config: &Config) -> Step {
        if let Some(judge) = self.judge(now_ms, config) {
            return judge;
        }
        let progress = self.last_progress(now_ms, config);
        if progress.is_empty() { Step::Ended } else { Step::WriteProgress(progress) }
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
                        held.handed_to = held.handed_to.max(id);
                        let flight = Flight::of(&message, Some(now_ms));
                        bytes += flight.bytes;
                        held.unacked.insert(id, flight);
                        items.push(Item::Single(message));
                    }
                    Queued::Broadcast(message) if !message.is_expired(now_ms) => {
                        let flight = Flight::of(&message, Some(now_ms));
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
                let known = held.unacked.len() + held.later_singles();
                reads.push((held.registration.regid, known + config.window_max));
            }
        }
        reads
    }

    fn judge(&mut self, now_ms: u64, config: &Config) -> Option<Step> {
        let (app, held) = self.held.iter_mut().find(|(_, held)| {
            held.is_judging()
                && held.registration.enabled
                && held.queued_broadcasts() == 0
                && held.pending.values().filter(|flight| !flight.is_expired(now_ms)).count()
                    < config.window_max + held.later_broadcasts()
                && held.later_broadcasts() < LATER_MAX
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

    fn progress(&mut self, config: &Config) -> Vec<Advance> {
        let mut all = Vec::new();
        for (app, held) in self.held.iter_mut() {
            // Acks alone are not worth a write: they are written with the next judgement.
            if !std::mem::take(&mut held.cursor_due) {
                continue;
            }
            let cursor = held.cursor(config);
            if cursor != held.written || !held.unsettled.is_empty() {
                held.written = cursor.clone();
                let recent = (!held.recent.is_empty()).then(|| held.recent.clone());
                all.push(Advance {
                    app: app.clone(),
                    regid: held.registration.regid,
                    progress: Progress { cursor: Some(cursor), recent, last_seen_ms: None },
                    settles: std::mem::take(&mut held.unsettled).into_iter().collect(),
                });
            }
        }
        all
    }

    /// Once, when the connection is gone: cursors, and when the device was seen last.
    fn last_progress(&mut self, now_ms: u64, config: &Config) -> Vec<Advance> {
        let mut all = Vec::new();
        for (app, held) in self.held.iter_mut() {
            if std::mem::replace(&mut held.seen_written, true) {
                continue;
            }
            let cursor = held.cursor(config);
            let changed = std::mem::take(&mut held.cursor_due) && cursor != held.written || !held.unsettled.is_empty();
            held.written = cursor.clone();
            let settles = if changed { std::mem::take(&mut held.unsettled) } else { BTreeSet::new() };
            let recent = (held.recent != held.registration.recent).then(|| held.recent.clone());
            all.push(Advance {
                app: app.clone(),
                regid: held.registration.regid,
                progress: Progress { cursor: changed.then_some(cursor), recent, last_seen_ms: Some(now_ms) },
                settles: settles.into_iter().collect(),
            });
        }
        all
    }

    /// Progress could not be written: what it would have settled is not.
    pub(crate) fn progress_failed(&mut self, all: Vec<Advance>) {
        for Advance { app, settles, .. } in all {
            if let Some(held) = self.held.get_mut(&app) {
                held.unsettled.extend(settles);
            }
        }
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
    pub(crate) fn drained(&mut self, regid: RegId, mailbox: Vec<(MessageId, Message)>, whole: bool, now_ms: u64) {
        let account = self.account;
        let Some(held) = self.held.values_mut().find(|held| held.registration.regid == regid) else { return };
        held.read_to = mailbox.last().map_or(held.read_to, |(id, _)| *id);
        let acked = held.acked_meanwhile.take().unwrap_or_default();
        if whole {
            // What is no longer in the mailbox has expired or was acknowledged elsewhere.
            let there: BTreeSet<_> = mailbox.iter().map(|(id, _)| *id).collect();
            held.unacked.retain(|id, _| there.contains(id));
            held.later.retain(|id, (_, queued)| there.contains(id) || matches!(queued, Queued::Broadcast(_)));
        }
        for (id, message) in mailbox {
            if !held.unacked.contains_key(&id) && !acked.contains(&id) {
                held.enqueue(id, Queued::Single(Arc::new(message)), account, now_ms, Duration::ZERO);
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
        now_ms: u64,
    ) -> usize {
        let (account, opened) = (self.account, self.opened);
        let Some(held) = self.held.get_mut(app) else { return 0 };
        let mut missing = 0;
        for row in rows.iter().filter(|row| row.id < to) {
            let known = held.acked.contains(&row.id) || held.pending.contains_key(&row.id);
            if !known && judge::concerns(row, &held.registration) {
                held.collapse(row);
                held.pending.insert(row.id, Flight::of(row, None));
                if !self.ending {
                    // What is paced by the front, too, comes from here only if it has not come from there.
                    let patience = if row.id > opened { config.judge_lag } else { Duration::ZERO };
                    held.enqueue(row.id, Queued::Broadcast(Arc::clone(row)), account, now_ms, patience);
                }
                missing += 1;
            }
        }
        held.cursor_due |= !held.unsettled.is_empty() || rows.iter().any(|row| row.id >= held.written.judged_to);
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

#[cfg(test)]
mod tests;
