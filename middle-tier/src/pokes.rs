//! Telling the owners of accounts what was written to their mailboxes, before the send that wrote it is answered.
//!
//! Whoever accepts a message need not have the sessions of its recipients. What it stored for those of others it tells their
//! owners, and waits for them, so that what is sent afterwards is told afterwards. An owner that can't be reached keeps no
//! message from being accepted: it is stored. What it was not told is remembered here by its recipients alone, told again a
//! few times, and then left to the sweep. Until that is done, everything else for its partition waits behind it. It is told
//! as a message of no bytes: a session then reads the mailbox anew, which brings whatever it missed in its order, and nothing
//! that was acknowledged meanwhile.
//!
//! Where pokes are lost for good, as when a bus loses its memory, the terms of partitions change, and their sessions begin
//! anew from what is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idl::bus::{Call, Reply, Request};
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::{AccountId, AppId, MessageId, Partition, RegId, Shard};
use idl::message::Message;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::apps::parse;

/// How long an owner is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Recipients, and bytes of messages, told in one request.
const RECIPIENTS_MAX: usize = 1000;
const BYTES_MAX: usize = 256 * 1024;
/// Recipients that are remembered because their owner could not be told; beyond it they are left to the sweep.
const REMEMBERED_MAX: usize = 20_000;
/// How often it is tried to tell what is remembered.
const TRIES_MAX: u32 = 10;
const WAIT_MIN: Duration = Duration::from_millis(200);
const WAIT_MAX: Duration = Duration::from_secs(5);

type Recipient = (AccountId, RegId);
/// Whom the owner of a partition is to be told of.
type Due = (Partition, AppId, Vec<Recipient>);

/// What one request wrote to mailboxes of one app.
pub(crate) struct Pokes<'a> {
    shared: &'a Arc<Shared>,
    app: &'a AppId,
    /// For the owners of other partitions.
    others: BTreeMap<Partition, Vec<Part>>,
}

/// What fits into one request.
#[derive(Default)]
struct Part {
    taken: Vec<(Recipient, MessageId)>,
    entries: Vec<(MessageId, Vec<u8>, Vec<Recipient>)>,
    recipients: usize,
    bytes: usize,
}

impl<'a> Pokes<'a> {
    pub(crate) fn new(shared: &'a Arc<Shared>, app: &'a AppId) -> Self {
        Self { shared, app, others: BTreeMap::new() }
    }

    /// A message was taken out of a mailbox. Say so before what was put in.
    pub(crate) fn taken(&mut self, account: AccountId, regid: RegId, id: MessageId) {
        if self.shared.partitions.has_registration(regid) {
            self.shared.sessions.take_back(account, self.app, id);
            return;
        }
        let part = self.part(regid, 0);
        part.taken.push(((account, regid), id));
        part.recipients += 1;
    }

    /// A message was put into the mailboxes of these registrations.
    pub(crate) fn stored(&mut self, message: &Arc<Message>, recipients: impl IntoIterator<Item = Recipient>) {
        let mut bytes: Option<Vec<u8>> = None;
        for (account, regid) in recipients {
            if self.shared.partitions.has_registration(regid) {
                self.shared.sessions.stored(self.shared, account, regid, message);
                continue;
            }
            let bytes = bytes.get_or_insert_with(|| message.to_stored());
            let part = self.part(regid, bytes.len());
            part.recipients += 1;
            match part.entries.last_mut() {
                Some((id, same, recipients)) if *id == message.id && same == bytes => recipients.push((account, regid)),
                _ => {
                    part.bytes += bytes.len();
                    part.entries.push((message.id, bytes.clone(), vec![(account, regid)]));
                }
            }
        }
    }

    fn part(&mut self, regid: RegId, more: usize) -> &mut Part {
        let parts = self.others.entry(Shard::of_registration(regid).into()).or_default();
        if parts.last().is_none_or(|last| last.recipients >= RECIPIENTS_MAX || last.bytes + more > BYTES_MAX) {
            parts.push(Part::default());
        }
        let last = parts.len() - 1;
        &mut parts[last]
    }

    /// Tells the owners of other partitions, all at once, and waits for them a little.
    pub(crate) async fn tell(mut self) {
        let Some((partition, parts)) = self.others.pop_first() else { return };
        let mut telling = JoinSet::new();
        for (partition, parts) in self.others {
            let (shared, app) = (Arc::clone(self.shared), self.app.clone());
            telling.spawn(async move { tell_one(&shared, &app, partition, parts).await });
        }
        tell_one(self.shared, self.app, partition, parts).await;
        while telling.join_next().await.is_some() {}
    }
}

impl Part {
    fn to_request(&self, app: &AppId) -> Request {
        let taken = self
            .taken
            .iter()
            .map(|((account, _), id)| wire::TakenOut { account: account.to_string(), id: id.to_bytes().to_vec() });
        let entries = self.entries.iter().map(|(id, message, recipients)| wire::StoredEntry {
            id: id.to_bytes().to_vec(),
            message: message.clone(),
            recipients: recipients.iter().map(|(account, regid)| recipient(*account, *regid)).collect(),
        });
        Request::Stored(wire::Stored {
            app: app.to_string(),
            taken: (!self.taken.is_empty()).then(|| taken.collect()),
            entries: (!self.entries.is_empty()).then(|| entries.collect()),
        })
    }

    fn recipients(&self) -> impl Iterator<Item = Recipient> {
        let taken = self.taken.iter().map(|(recipient, _)| *recipient);
        taken.chain(self.entries.iter().flat_map(|(.., recipients)| recipients.iter().copied()))
    }
}

fn recipient(account: AccountId, regid: RegId) -> wire::Recipient {
    wire::Recipient { account: account.to_string(), regid: regid.to_string() }
}

async fn tell_one(shared: &Arc<Shared>, app: &AppId, partition: Partition, parts: Vec<Part>) {
    let mut untold = parts.into_iter().peekable();
    while let Some(part) = untold.peek() {
        if shared.pokes.is_behind(partition, app) {
            break;
        }
        if let Err(failure) = request(shared, partition, part.to_request(app)).await {
            tracing::debug!(%app, partition = partition.number(), %failure, "an owner was not told what was stored");
            break;
        }
        untold.next();
    }
    let untold: Vec<Recipient> = untold.flat_map(|part| part.recipients().collect::<Vec<_>>()).collect();
    if !untold.is_empty() {
        shared.pokes.remember(shared, partition, app, untold);
    }
}

async fn request(shared: &Shared, partition: Partition, request: Request) -> Result<(), Failure> {
    let told = shared.bus.request(Call::high(shard_of(partition), PATIENCE, request)).await;
    match told {
        Ok(_) => shared.metrics.pokes_sent.inc(),
        Err(_) => shared.metrics.pokes_failed.inc(),
    };
    told.map(drop)
}

/// A shard of the partition.
pub(crate) fn shard_of(partition: Partition) -> Shard {
    Shard(u16::try_from(partition.number()).unwrap_or(0))
}

// ---------------------------------------------------------------------------------------------------------- at the owner

/// Another middle wrote to mailboxes of accounts that are this one's.
pub(crate) fn received(shared: &Arc<Shared>, request: wire::Stored) -> Result<Reply, Failure> {
    let app: AppId = parse(&request.app)?;
    for taken in request.taken.unwrap_or_default() {
        shared.sessions.take_back(parse(&taken.account)?, &app, message_id(&taken.id)?);
    }
    for entry in request.entries.unwrap_or_default() {
        let id = message_id(&entry.id)?;
        let recipients = entry.recipients.iter().map(|to| Ok((parse(&to.account)?, parse(&to.regid)?)));
        let recipients = recipients.collect::<Result<Vec<Recipient>, Failure>>()?;
        if entry.message.is_empty() {
            look(shared, &app, &recipients);
            continue;
        }
        let message = Message::from_stored(id, &entry.message)
            .map_err(|error| Failure::new(Code::BadRequest, format!("a stored message can't be read: {error}")))?;
        let message = Arc::new(message);
        for (account, regid) in recipients {
            shared.rooms.added(regid);
            shared.sessions.stored(shared, account, regid, &message);
        }
    }
    Ok(Reply::Done)
}

fn look(shared: &Arc<Shared>, app: &AppId, recipients: &[Recipient]) {
    for (account, regid) in recipients {
        shared.rooms.forget(*regid);
        shared.sessions.look(shared, *account, app, *regid);
    }
}

pub(crate) fn message_id(bytes: &[u8]) -> Result<MessageId, Failure> {
    MessageId::from_bytes(bytes).map_err(|error| Failure::new(Code::BadRequest, error.to_string()))
}

// -------------------------------------------------------------------------------------------------- what could not be told

/// Recipients whose owners could not be told.
#[derive(Default)]
pub(crate) struct Backlog {
    behind: Mutex<BTreeMap<(Partition, AppId), Behind>>,
    changed: Notify,
}

struct Behind {
    /// Stays here, also while it is empty, until what was taken from it is told.
    recipients: BTreeSet<Recipient>,
    tries: u32,
    next: Instant,
}

impl Backlog {
    fn behind(&self) -> MutexGuard<'_, BTreeMap<(Partition, AppId), Behind>> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_behind(&self, partition: Partition, app: &AppId) -> bool {
        let behind = self.behind();
        !behind.is_empty() && behind.contains_key(&(partition, app.clone()))
    }

    fn remember(&self, shared: &Shared, partition: Partition, app: &AppId, recipients: Vec<Recipient>) {
        let mut behind = self.behind();
        let room = REMEMBERED_MAX.saturating_sub(behind.values().map(|behind| behind.recipients.len()).sum());
        shared.metrics.pokes_given_up.inc_by(recipients.len().saturating_sub(room) as u64);
        let entry = behind.entry((partition, app.clone())).or_insert_with(|| Behind {
            recipients: BTreeSet::new(),
            tries: 0,
            next: Instant::now() + WAIT_MIN,
        });
        entry.recipients.extend(recipients.into_iter().take(room));
        self.changed.notify_one();
    }

    /// Who is to be told of now, and when to come again.
    fn due(&self, now: Instant) -> (Vec<Due>, Option<Instant>) {
        let behind = self.behind();
        let due = behind.iter().filter(|(_, behind)| behind.next <= now);
        let due = due.map(|((partition, app), behind)| {
            (*partition, app.clone(), behind.recipients.iter().take(RECIPIENTS_MAX).copied().collect())
        });
        (due.collect(), behind.values().map(|behind| behind.next).filter(|next| *next > now).min())
    }

    /// Takes out who is told of from now on: what is stored for them meanwhile is remembered anew.
    fn take(&self, partition: Partition, app: &AppId, recipients: &[Recipient]) {
        if let Some(behind) = self.behind().get_mut(&(partition, app.clone())) {
            for recipient in recipients {
                behind.recipients.remove(recipient);
            }
        }
    }

    fn told(&self, shared: &Shared, partition: Partition, app: &AppId, recipients: Vec<Recipient>, told: bool) {
        let key = (partition, app.clone());
        let mut all = self.behind();
        let Some(behind) = all.get_mut(&key) else { return };
        if told {
            (behind.tries, behind.next) = (0, Instant::now());
        } else {
            behind.recipients.extend(recipients);
            behind.tries += 1;
            behind.next = Instant::now() + WAIT_MIN.saturating_mul(1 << behind.tries.min(16)).min(WAIT_MAX);
        }
        if behind.tries >= TRIES_MAX {
            shared.metrics.pokes_given_up.inc_by(behind.recipients.len() as u64);
            tracing::warn!(%app, partition = partition.number(), "an owner could not be told what was stored; the sweep finds it");
        }
        if behind.recipients.is_empty() || behind.tries >= TRIES_MAX {
            all.remove(&key);
        }
    }
}

/// Tells what could not be told at once until `drain` is cancelled, and then once more.
pub(crate) async fn run(shared: Arc<Shared>, drain: CancellationToken) {
    loop {
        let (due, next) = shared.pokes.due(Instant::now());
        if due.is_empty() {
            let rest = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                () = shared.pokes.changed.notified() => {}
                () = rest => {}
            }
            continue;
        }
        tell_again(&shared, due).await;
        if drain.is_cancelled() {
            break;
        }
    }
    let (due, _) = shared.pokes.due(Instant::now() + WAIT_MAX);
    tell_again(&shared, due).await;
}

async fn tell_again(shared: &Arc<Shared>, due: Vec<Due>) {
    let mut telling = JoinSet::new();
    for (partition, app, recipients) in due {
        let shared = Arc::clone(shared);
        telling.spawn(async move {
            shared.pokes.take(partition, &app, &recipients);
            let told = if shared.partitions.has(partition) {
                look(&shared, &app, &recipients);
                true
            } else {
                let entry = (MessageId::MIN, Vec::new(), recipients.clone());
                let part = Part { entries: vec![entry], ..Part::default() };
                request(&shared, partition, part.to_request(&app)).await.is_ok()
            };
            shared.pokes.told(&shared, partition, &app, recipients, told);
        });
    }
    while telling.join_next().await.is_some() {}
}
