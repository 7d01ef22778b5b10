//! All sessions: which devices have the push channel open.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idl::bus::Term;
use idl::contract::bus::IndexEntry;
use idl::error::Failure;
use idl::ids::{AccountId, AppId, Epoch, MessageId, Partition, RegId};
use idl::message::Message;
use schema::registrations::Registration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Shared;
use crate::dispatch;
use crate::session::{Session, Whereabouts};

/// Sessions that are ended at one time when all of a partition are.
const ENDED_AT_ONCE: usize = 256;
/// How long the end of one may take before it is dropped.
const END_TIME_MAX: Duration = Duration::from_secs(15);

/// A session and its lock, which is never held across an await.
pub(crate) struct Handle {
    session: Mutex<Session>,
    /// Of whose account it is, and for which term of owning that it may work.
    partition: Partition,
    term: Term,
    /// Whoever takes its steps need not wait any longer.
    pub(crate) hurry: Notify,
}

impl Handle {
    pub(crate) fn new(session: Session, partition: Partition, term: Term) -> Arc<Self> {
        Arc::new(Self { session: Mutex::new(session), partition, term, hurry: Notify::new() })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It was forgotten before its progress was written.
    pub(crate) fn dropped(&self, shared: &Shared) {
        shared.metrics.sessions_dropped.inc();
        for (app, ids) in self.lock().take_unsettled() {
            shared.counts.withdrawn(&app, &ids);
        }
    }

    /// True as long as its partition has not been another's since it was made.
    pub(crate) fn is_ours(&self, shared: &Shared) -> bool {
        shared.partitions.is_whole() || shared.partitions.held(self.partition) == Some(self.term)
    }
}

/// Sessions by account: one each, the newest epoch.
#[derive(Default)]
pub(crate) struct Sessions {
    map: Mutex<BTreeMap<AccountId, Arc<Handle>>>,
    stopped: Mutex<Stopped>,
    /// Some session is over.
    ended: Notify,
}

/// The broadcasts that were stopped last. What reads a timeline takes far less time than it takes to stop so many.
#[derive(Default)]
struct Stopped {
    ids: BTreeSet<MessageId>,
    order: VecDeque<MessageId>,
}

impl Stopped {
    const IDS_MAX: usize = 4096;

    fn add(&mut self, id: MessageId) {
        if self.ids.insert(id) {
            self.order.push_back(id);
        }
        if self.order.len() > Self::IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

impl Sessions {
    fn map(&self) -> MutexGuard<'_, BTreeMap<AccountId, Arc<Handle>>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The account's session.
    pub(crate) fn find(&self, account: AccountId) -> Option<Arc<Handle>> {
        self.map().get(&account).map(Arc::clone)
    }

    /// Makes this the account's session, unless there is one with a newer epoch. The one before it is returned: it takes
    /// no more steps.
    pub(crate) fn replace(
        &self,
        account: AccountId,
        epoch: Epoch,
        with: &Arc<Handle>,
    ) -> Result<Option<Arc<Handle>>, ()> {
        let mut map = self.map();
        if map.get(&account).is_some_and(|held| held.lock().epoch > epoch) {
            return Err(());
        }
        Ok(map.insert(account, Arc::clone(with)))
    }

    /// True if this very session is the account's.
    pub(crate) fn is_current(&self, account: AccountId, handle: &Arc<Handle>) -> bool {
        self.map().get(&account).is_some_and(|held| Arc::ptr_eq(held, handle))
    }

    /// Forgets the session, if it is this one.
    pub(crate) fn remove(&self, account: AccountId, handle: &Arc<Handle>) {
        let mut map = self.map();
        if map.get(&account).is_some_and(|held| Arc::ptr_eq(held, handle)) {
            map.remove(&account);
        }
        drop(map);
        self.ended.notify_waiters();
    }

    /// Forgets sessions whose partition is another's by now; nothing of them is written. Returns how many there were.
    pub(crate) fn drop_lost(&self, shared: &Shared) -> usize {
        let lost: Vec<_> = {
            let mut map = self.map();
            map.extract_if(.., |_, handle| !handle.is_ours(shared)).collect()
        };
        self.ended.notify_waiters();
        for (_, handle) in &lost {
            handle.dropped(shared);
        }
        let accounts: BTreeSet<AccountId> = lost.iter().map(|(account, _)| *account).collect();
        shared.alarms.forget(&accounts);
        lost.len()
    }

    /// Sessions of one part in `parts` of all accounts.
    pub(crate) fn part(&self, part: u128, parts: u128) -> Vec<Arc<Handle>> {
        self.map()
            .iter()
            .filter(|(account, _)| account.0 % parts == part)
            .map(|(_, handle)| Arc::clone(handle))
            .collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.map().len()
    }

    /// A message was stored in this registration's mailbox: hand it off if the device is here.
    pub(crate) fn stored(&self, shared: &Arc<Shared>, account: AccountId, regid: RegId, message: &Arc<Message>) {
        if let Some(handle) = self.find(account) {
            handle.lock().stored(&message.app, regid, message, &shared.config, shared.clock.now_ms());
            dispatch::drive(shared, &handle);
        }
    }

    /// Something may have been stored in this registration's mailbox.
    pub(crate) fn look(&self, shared: &Arc<Shared>, account: AccountId, app: &AppId, regid: RegId) {
        if let Some(handle) = self.find(account) {
            handle.lock().look(app, regid);
            dispatch::drive(shared, &handle);
        }
    }

    /// True if the account has a connection with the push channel open, as far as is known here.
    pub(crate) fn is_online(&self, account: AccountId) -> bool {
        self.find(account).is_some_and(|handle| handle.lock().is_online())
    }

    /// The same of several accounts. Of those of other middles it is known whether they have a connection.
    pub(crate) async fn are_online(&self, shared: &Shared, accounts: &[AccountId]) -> Result<Vec<bool>, Failure> {
        let here = |account: AccountId| shared.partitions.has_account(account).then(|| self.is_online(account));
        let mut online: Vec<Option<bool>> = accounts.iter().map(|account| here(*account)).collect();
        let elsewhere: Vec<AccountId> =
            accounts.iter().zip(&online).filter(|(_, online)| online.is_none()).map(|(account, _)| *account).collect();
        if !elsewhere.is_empty() {
            let mut connected = shared.cache.connected(&elsewhere).await?.into_iter();
            for unknown in online.iter_mut().filter(|online| online.is_none()) {
                *unknown = connected.next();
            }
        }
        Ok(online.into_iter().map(|online| online == Some(true)).collect())
    }

    /// A message was taken out of a mailbox: it is not handed off any more. Returns where it was, if the device is here.
    pub(crate) fn take_back(&self, account: AccountId, app: &AppId, id: MessageId) -> Option<Whereabouts> {
        self.find(account).map(|handle| handle.lock().take_back(app, id))
    }

    /// A broadcast was taken out of its timeline: it is not handed off any more, also not by a session that has just read
    /// it and does not know yet.
    pub(crate) fn stop_broadcast(&self, app: &AppId, id: MessageId) {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).add(id);
        for handle in self.part(0, 1) {
            handle.lock().take_back(app, id);
        }
    }

    /// Leaves out what was stopped since it was read.
    pub(crate) fn without_stopped(&self, rows: &mut Vec<Arc<Message>>) {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        rows.retain(|row| !stopped.ids.contains(&row.id));
    }

    /// Judges all sessions soon: a front missed a broadcast.
    pub(crate) fn judge_all_soon(&self, shared: &Arc<Shared>) {
        for handle in self.part(0, 1) {
            handle.lock().judge_soon();
            dispatch::drive(shared, &handle);
        }
    }

    /// The account's connection with that epoch is gone: its session judges once more and ends. Other epochs are left
    /// alone, so repeating it, or being late with it, is harmless.
    pub(crate) fn end(&self, shared: &Arc<Shared>, account: AccountId, epoch: Epoch) {
        if let Some(handle) = self.find(account).filter(|handle| handle.lock().epoch == epoch) {
            handle.lock().end();
            dispatch::drive(shared, &handle);
        }
    }

    /// Ends every session and waits until their cursors are written.
    pub(crate) async fn end_all(&self, shared: &Arc<Shared>) {
        end_these(shared, self.part(0, 1)).await;
    }

    /// The same for the sessions of one partition.
    pub(crate) async fn end_of(&self, shared: &Arc<Shared>, partition: Partition) {
        let of_it: Vec<_> =
            self.map().values().filter(|handle| handle.partition == partition).map(Arc::clone).collect();
        end_these(shared, of_it).await;
    }

    async fn ended(&self, account: AccountId, handle: &Arc<Handle>) {
        loop {
            let ended = self.ended.notified();
            if !self.is_current(account, handle) {
                return;
            }
            ended.await;
        }
    }

    /// A registration was changed by someone other than its device: the session follows. Needs the account's turn, so that
    /// changes are followed in their order. [`Sessions::tell`] comes next, without it.
    pub(crate) fn follow(&self, registration: &Arc<Registration>) {
        if let Some(handle) = self.find(registration.account) {
            let mut session = handle.lock();
            if session.registration(&registration.app).is_some_and(|held| held.regid == registration.regid) {
                session.changed(Arc::clone(registration));
            }
        }
    }

    /// Waits until the front's index has followed what the session has followed, so that the answer to the change is
    /// true. If the front does not answer, the session goes on trying and the change is reported as timed out: it is
    /// stored, but a broadcast may still take the old membership for true. Repeating it waits again.
    pub(crate) async fn tell(&self, shared: &Arc<Shared>, account: AccountId, app: &AppId) -> Result<(), Failure> {
        let Some(handle) = self.find(account) else { return Ok(()) };
        let due = {
            let session = handle.lock();
            session.registration(app).filter(|_| session.is_index_due(app)).map(Arc::clone)
        };
        let Some(registration) = due else { return Ok(()) };
        let told = dispatch::tell_index(shared, &handle, &[registration]).await;
        dispatch::drive(shared, &handle);
        told
    }
}

/// Ends sessions, so many at one time.
async fn end_these(shared: &Arc<Shared>, handles: Vec<Arc<Handle>>) {
    let mut ending = JoinSet::new();
    for handle in handles {
        if ending.len() >= ENDED_AT_ONCE {
            ending.join_next().await;
        }
        let shared = Arc::clone(shared);
        ending.spawn(async move { end_one(&shared, &handle).await });
    }
    while ending.join_next().await.is_some() {}
}

async fn end_one(shared: &Arc<Shared>, handle: &Arc<Handle>) {
    let (account, ours) = {
        let mut session = handle.lock();
        session.end();
        (session.account, session.start_driving())
    };
    if !ours {
        handle.hurry.notify_one();
        // Whoever takes its steps ends it, unless a front keeps it waiting.
        let ended = timeout(shared.config.hand_off_time_max, shared.sessions.ended(account, handle)).await;
        if ended.is_ok() {
            return;
        }
    }
    if timeout(END_TIME_MAX, dispatch::take_steps(shared, handle)).await.is_err() {
        tracing::warn!(%account, "how far a session was could not be written; what it judged is judged again");
        shared.sessions.remove(account, handle);
        handle.dropped(shared);
    }
}

/// What a front's index has for a registration.
pub(crate) fn index_entry(registration: &Registration) -> IndexEntry {
    IndexEntry {
        app: registration.app.to_string(),
        version: i64::try_from(registration.version).unwrap_or(i64::MAX),
        removed: (!registration.enabled).then_some(true),
        topics: Some(registration.topics.keys().map(ToString::to_string).collect()),
        attributes: Some(registration.attributes.clone()),
        aliases: Some(registration.aliases.iter().map(ToString::to_string).collect()),
        user_accounts: Some(registration.user_accounts.iter().map(ToString::to_string).collect()),
    }
}

/// Takes an app's registration out of a front's index.
pub(crate) fn no_index_entry(app: &AppId, version: u64) -> IndexEntry {
    IndexEntry {
        app: app.to_string(),
        version: i64::try_from(version).unwrap_or(i64::MAX),
        removed: Some(true),
        topics: None,
        attributes: None,
        aliases: None,
        user_accounts: None,
    }
}

/// Ids that a device sends as 16 bytes each, one after the other.
pub(crate) fn split_ids(bytes: &[u8]) -> Option<Vec<MessageId>> {
    bytes.chunks(16).map(|chunk| MessageId::from_bytes(chunk).ok()).collect()
}
