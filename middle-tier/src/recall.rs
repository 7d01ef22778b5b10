//! Stopping messages and taking them back.
//!
//! Stopped: what was not delivered is dropped. Taken back: what was delivered, or may have been, is revoked at the device
//! too. A revocation is an entry of its own in mailboxes and timelines, with an id of its own: it waits for a device that
//! is away, in order with everything else, and comes again until it is acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use idl::audience::Audience;
use idl::bus::{Call, REVOCATIONS_MAX, Reply, Request};
use idl::contract::bus::{self as wire, Changed, MessageName, Recall, Stop, Stopped};
use idl::contract::message::Notification;
use idl::error::{Code, Failure};
use idl::ids::{AccountId, AppId, MessageId, Partition, RegId, Shard};
use idl::message::{Handling, Message, TTL_MS_MAX};
use schema::catalog::{App, ScheduleState};
use schema::records::{Ended, Record};
use schema::registrations::Registration;
use schema::traces::DropReason;
use tokio::task::JoinSet;

use crate::accept::{MAILBOXES_READ, check_packages};
use crate::app_calls::message_id;
use crate::apps::parse;
use crate::order::{TARGETS_MAX, Whom};
use crate::outcomes::{Outcomes, Whose};
use crate::pokes::{Pokes, shard_of};
use crate::session::Whereabouts;
use crate::{Shared, order, pokes, publish, resolve, schedules};

/// Messages with one job key that are stopped in one request.
const WITH_JOB_KEY_MAX: usize = 1000;
/// Deliveries of one message read in one call.
const TARGETS_READ: usize = 1000;
/// Accounts that one owner is asked about in one request, and how long it is waited for.
const LOCATED_AT_ONCE: usize = 1000;
const LOCATE_PATIENCE: Duration = Duration::from_secs(1);
/// Broadcasts of a topic that are looked through for one notify_id.
const LOOKED_THROUGH_MAX: usize = 10_000;

/// Stops messages, and takes them back where that is asked for. Repeating it is no error.
pub(crate) async fn stop(shared: &Arc<Shared>, app: &Arc<App>, id: MessageId, stop: Stop) -> Result<Stopped, Failure> {
    if stop.names.is_empty() || stop.names.len() > TARGETS_MAX {
        let text = format!("{} messages were named; expected 1 to {TARGETS_MAX}", stop.names.len());
        return Err(Failure::new(Code::TooManyTargets, text));
    }
    // The bus has set ids aside for so many revocations.
    let mut ids = (0..u128::from(REVOCATIONS_MAX)).map(|at| MessageId(id.0.saturating_add(at)));
    let mut stopped = Stopped { found: Vec::new(), unknown: Vec::new() };
    for name in stop.names {
        let (shown, found) = one(shared, app, &name, stop.recall, &mut ids).await?;
        if found { stopped.found.push(shown) } else { stopped.unknown.push(shown) }
    }
    Ok(stopped)
}

async fn one(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    name: &MessageName,
    recall: bool,
    ids: &mut impl Iterator<Item = MessageId>,
) -> Result<(String, bool), Failure> {
    // Schedules first: one that is firing becomes a message meanwhile.
    let (shown, mut records, schedules) = match (&name.id, &name.job_key) {
        (Some(text), None) => {
            // What can't be an id is the id of nothing.
            let Ok(id) = message_id(text) else { return Ok((text.clone(), false)) };
            let schedule = shared.catalog.schedule(&app.app, id).await?;
            let sent = match &schedule {
                Some(schedule) => schedules::stop(shared, &app.app, schedule.id).await?,
                None => vec![id],
            };
            let records = shared.records.get_many(&app.app, &sent).await?.into_iter().flatten().collect();
            (text.clone(), records, usize::from(schedule.is_some()))
        }
        (None, Some(key)) => {
            let schedules = shared.catalog.schedules_by_job_key(&app.app, key, usize::MAX).await?;
            let waiting = schedules.iter().filter(|schedule| schedule.state == ScheduleState::Waiting);
            for schedule in waiting {
                schedules::stop(shared, &app.app, schedule.id).await?;
            }
            let records = shared.records.by_job_key(&app.app, key, WITH_JOB_KEY_MAX).await?;
            (key.clone(), records, schedules.len())
        }
        _ => return Err(Failure::new(Code::Missing, "a message is named by its id or by its job key, one of them")),
    };
    records.dedup_by_key(|record| record.id);
    let found = !records.is_empty() || schedules > 0;
    for record in records {
        let Some(id) = ids.next() else {
            return Err(Failure::new(
                Code::TooManyTargets,
                format!("at most {REVOCATIONS_MAX} messages are stopped at once"),
            ));
        };
        end(shared, &record, id, recall).await?;
    }
    Ok((shown, found))
}

/// Ends one message.
async fn end(shared: &Arc<Shared>, record: &Record, revocation: MessageId, recall: bool) -> Result<(), Failure> {
    let now_ms = shared.clock.now_ms();
    // Taken back already, or over: nothing is left to do.
    if record.ended.is_some_and(|ended| ended.revoked || !recall) {
        return Ok(());
    }
    let mut outcomes = Outcomes::new(shared);
    let ended = Ended { at_ms: now_ms, revoked: recall };
    let reason = if recall { DropReason::Revoked } else { DropReason::Stopped };
    let revoke = revocation_of(record, revocation, now_ms);
    if record.broadcast {
        let message = shared.timelines.get(&record.app, record.id).await?;
        outcomes.batch.remove_broadcast(&record.app, record.id);
        // Of one that has expired, or was stopped before, nobody knows any more whom it was for: who never had it ignores it.
        let audience = message.and_then(|message| message.audience).unwrap_or(Audience::Everyone);
        let revoke = recall.then(|| Arc::new(Message { audience: Some(audience), ..revoke }));
        if let Some(revoke) = &revoke {
            outcomes.batch.broadcast(revoke);
        }
        outcomes.batch.ended(&record.app, record.id, record.keep_until_ms, ended);
        outcomes.write().await?;
        publish::stopped(shared, &record.app, &[record.id]).await;
        shared.broadcasts.cancel(shared, record.app.clone(), record.id);
        if let Some(revoke) = revoke {
            shared.broadcasts.publish(shared, revoke);
        }
        return Ok(());
    }
    let mut registrations = Vec::new();
    let mut waited = BTreeSet::new();
    for targets in record.targets.chunks(TARGETS_READ) {
        registrations.extend(shared.registrations.read(targets).await?.into_iter().flatten());
        let cells: Vec<_> = targets.iter().map(|regid| (*regid, record.id)).collect();
        let waiting = shared.mailboxes.get(&cells).await?;
        for (regid, _) in targets.iter().zip(&waiting).filter(|(_, waits)| waits.is_some()) {
            waited.insert(*regid);
            outcomes.dropped(&Whose { app: &record.app, message: record.id, regid: *regid }, reason);
            outcomes.batch.acknowledged(*regid, record.id);
        }
    }
    // What nobody has been handed needs no revocation, which would take a place in the mailbox. Who is not here has been
    // handed it if it was here since.
    let waiting: Vec<&Registration> = registrations.iter().filter(|found| waited.contains(&found.regid)).collect();
    let places = locate(shared, record, &waiting, false).await;
    let unseen = |registration: &Registration| match places.get(&registration.account) {
        Some(Place::Waits) => true,
        Some(Place::Away) => registration.last_seen_ms.is_none_or(|seen_ms| seen_ms < record.created_at_ms),
        Some(Place::Handed) | None => false,
    };
    let revoke = Arc::new(revoke);
    let (unseen, seen): (Vec<&Registration>, Vec<&Registration>) =
        registrations.iter().partition(|registration| unseen(registration));
    let deliver = |outcomes: &mut Outcomes<'_>, to: &[&Registration]| {
        let regids: Vec<RegId> = to.iter().filter(|_| recall).map(|registration| registration.regid).collect();
        outcomes.batch.deliver(&revoke, &regids);
    };
    deliver(&mut outcomes, &seen);
    // While this was written one of them may have been handed it, or have come back to be.
    let mut late = Vec::new();
    if !unseen.is_empty() {
        std::mem::replace(&mut outcomes, Outcomes::new(shared)).write().await?;
        let were = locate(shared, record, &unseen, true).await;
        let handed = |registration: &&Registration| were.get(&registration.account) == Some(&Place::Handed);
        late.extend(unseen.into_iter().filter(handed));
        deliver(&mut outcomes, &late);
    }
    outcomes.batch.ended(&record.app, record.id, record.keep_until_ms, ended);
    outcomes.write().await?;
    let mut pokes = Pokes::new(shared, &record.app);
    for registration in &seen {
        pokes.taken(registration.account, registration.regid, record.id);
    }
    let told = seen.into_iter().chain(late).filter(|_| recall);
    pokes.stored(&revoke, told.map(|registration| (registration.account, registration.regid)));
    pokes.tell().await;
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------- where it is

/// Where a message is that was found in a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The device is not here, and has not been since the message was accepted without that being written.
    Away,
    /// It waits for its turn, or for its moment.
    Waits,
    /// It was handed off, or may have been.
    Handed,
}

/// Where the message is for these registrations, as the owners of their accounts know. With `take_back` it was taken out of
/// their mailboxes, and is not handed off from now on.
async fn locate(
    shared: &Arc<Shared>,
    record: &Record,
    registrations: &[&Registration],
    take_back: bool,
) -> BTreeMap<AccountId, Place> {
    let mut places = BTreeMap::new();
    let mut elsewhere: BTreeMap<Partition, Vec<AccountId>> = BTreeMap::new();
    for registration in registrations {
        let (account, partition) = (registration.account, Shard::of_registration(registration.regid).into());
        if shared.partitions.has(partition) {
            places.insert(account, place(shared, partition, account, &record.app, record.id, take_back));
        } else {
            elsewhere.entry(partition).or_default().push(account);
        }
    }
    let mut asking = JoinSet::new();
    for (partition, accounts) in elsewhere {
        for accounts in accounts.chunks(LOCATED_AT_ONCE) {
            let request = wire::Locate {
                app: record.app.to_string(),
                id: record.id.to_bytes().to_vec(),
                accounts: accounts.iter().map(ToString::to_string).collect(),
                take_back,
            };
            let (shared, accounts) = (Arc::clone(shared), accounts.to_vec());
            asking.spawn(async move {
                let call = Call::high(shard_of(partition), LOCATE_PATIENCE, Request::Locate(request));
                match shared.bus.request(call).await {
                    Ok(Reply::Located(located)) => (accounts, located.places),
                    // Whoever is not asked may have handed it off.
                    _ => (accounts, Vec::new()),
                }
            });
        }
    }
    while let Some(asked) = asking.join_next().await {
        let (accounts, located) = asked.unwrap_or_default();
        let located = located.into_iter().map(Some).chain(std::iter::repeat(None));
        places.extend(accounts.into_iter().zip(located).map(|(account, place)| match place {
            Some(0) => (account, Place::Away),
            Some(1) => (account, Place::Waits),
            _ => (account, Place::Handed),
        }));
    }
    places
}

/// Another middle asks where a message is for accounts that are this one's.
pub(crate) fn located(shared: &Shared, request: &wire::Locate) -> Result<Reply, Failure> {
    let (app, id) = (parse(&request.app)?, pokes::message_id(&request.id)?);
    let place = |account: &String| {
        let account = parse(account)?;
        let partition = Shard::of_account(account).into();
        Ok(match place(shared, partition, account, &app, id, request.take_back) {
            Place::Away => 0,
            Place::Waits => 1,
            Place::Handed => 2,
        })
    };
    let places = request.accounts.iter().map(place).collect::<Result<Vec<i32>, Failure>>()?;
    Ok(Reply::Located(wire::Located { places }))
}

fn place(
    shared: &Shared,
    partition: Partition,
    account: AccountId,
    app: &AppId,
    id: MessageId,
    take_back: bool,
) -> Place {
    let Some(handle) = shared.sessions.find(account) else {
        // Of connections before this term nobody may have written that they were there: a crash writes nothing.
        let known = shared.partitions.has_since_before(partition, id.time_ms());
        return if known { Place::Away } else { Place::Handed };
    };
    let mut session = handle.lock();
    match if take_back { session.take_back(app, id) } else { session.whereabouts(app, id) } {
        Whereabouts::Queued | Whereabouts::Later(_) => Place::Waits,
        _ => Place::Handed,
    }
}

/// The entry that takes a message back. It lives as long as any message may: the notification may still be shown.
fn revocation_of(record: &Record, id: MessageId, now_ms: u64) -> Message {
    let handling = Handling { revokes: Some(record.id), ..Handling::default() };
    entry(record.app.clone(), id, now_ms, handling)
}

pub(crate) fn entry(app: AppId, id: MessageId, now_ms: u64, handling: Handling) -> Message {
    let notification = Notification {
        payload: None,
        title: None,
        description: None,
        pass_through: None,
        notify_type: None,
        notify_id: None,
        extra: None,
        topic: None,
        alias_name: None,
        user_account: None,
        job_key: None,
        accepted_at_ms: None,
    };
    Message {
        id,
        app,
        notification,
        accepted_at_ms: now_ms,
        expires_at_ms: now_ms.saturating_add(TTL_MS_MAX),
        audience: None,
        handling,
    }
}

// ------------------------------------------------------------------------------------------------------- by notify_id

/// Takes back the notification that targets show under a `notify_id`, and drops such that were not delivered.
pub(crate) async fn by_notify_id(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    id: MessageId,
    mut recall: Recall,
) -> Result<Changed, Failure> {
    check_packages(app, recall.packages.as_deref().unwrap_or_default())?;
    let now_ms = shared.clock.now_ms();
    let handling = Handling { revokes_notify_id: Some(recall.notify_id), ..Handling::default() };
    let revoke = entry(app.app.clone(), id, now_ms, handling);
    let resolved = match order::whom(shared, app, &mut recall.target).await?.1 {
        Whom::Audience(audience) => {
            return from_audience(shared, app, revoke, audience, recall.notify_id).await;
        }
        singles => resolve::singles(shared, &app.app, singles).await?,
    };
    if resolved.registrations.is_empty() {
        let text = format!("none of the {} targets is a registration of this application", resolved.bad_targets.len());
        return Err(Failure::new(Code::SendFailed, text));
    }
    let mut outcomes = Outcomes::new(shared);
    let regids: Vec<RegId> = resolved.registrations.keys().copied().collect();
    let mut replaced: BTreeMap<RegId, Vec<MessageId>> = BTreeMap::new();
    for regids in regids.chunks(MAILBOXES_READ) {
        let mailboxes = shared.mailboxes.read(regids, None, shared.config.mailbox_max).await?;
        for (regid, mailbox) in regids.iter().zip(mailboxes) {
            for (message, held) in mailbox {
                if held.notification.notify_id == Some(recall.notify_id) {
                    let whose = Whose { app: &app.app, message, regid: *regid };
                    outcomes.dropped(&whose, DropReason::Revoked);
                } else if held.handling.revokes_notify_id != Some(recall.notify_id) {
                    continue;
                }
                outcomes.batch.acknowledged(*regid, message);
                replaced.entry(*regid).or_default().push(message);
            }
        }
    }
    // It takes a place in the mailbox as a message does.
    let more: Vec<RegId> = regids.iter().filter(|regid| !replaced.contains_key(regid)).copied().collect();
    let full = shared.rooms.take(shared, &more).await?;
    if !full.is_empty() {
        let limit = shared.config.mailbox_max;
        let text = format!("the mailboxes of {} targets hold {limit} messages, which is the limit", full.len());
        return Err(Failure::new(Code::LimitReached, text));
    }
    let revoke = Arc::new(revoke);
    outcomes.batch.deliver(&revoke, &regids);
    outcomes.write().await?;
    let mut pokes = Pokes::new(shared, &app.app);
    for (regid, registration) in &resolved.registrations {
        for message in replaced.get(regid).into_iter().flatten() {
            pokes.taken(registration.account, *regid, *message);
        }
    }
    pokes.stored(&revoke, resolved.registrations.iter().map(|(regid, found)| (found.account, *regid)));
    pokes.tell().await;
    Ok(Changed { existed: true })
}

/// The same for an audience: its broadcasts with that `notify_id` are stopped.
async fn from_audience(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    revoke: Message,
    audience: Audience,
    notify_id: i64,
) -> Result<Changed, Failure> {
    let mut outcomes = Outcomes::new(shared);
    let mut stopped = Vec::new();
    let mut from = MessageId::MIN;
    for _ in 0..LOOKED_THROUGH_MAX / shared.config.judged_rows_max.max(1) {
        let rows = shared.timelines.since(&app.app, from, Some(revoke.id), shared.config.judged_rows_max).await?;
        let whole = rows.len() < shared.config.judged_rows_max;
        from = rows.last().map_or(from, |last| MessageId(last.id.0.saturating_add(1)));
        let same =
            |row: &Message| row.notification.notify_id == Some(notify_id) && row.audience.as_ref() == Some(&audience);
        stopped.extend(rows.into_iter().filter(same).map(|row| row.id));
        if whole {
            break;
        }
    }
    let records = shared.records.get_many(&app.app, &stopped).await?;
    for record in records.iter().flatten() {
        let ended = Ended { at_ms: outcomes.now_ms(), revoked: true };
        outcomes.batch.ended(&app.app, record.id, record.keep_until_ms, ended);
    }
    for id in &stopped {
        outcomes.batch.remove_broadcast(&app.app, *id);
    }
    let revoke = Arc::new(Message { audience: Some(audience), ..revoke });
    outcomes.batch.broadcast(&revoke);
    outcomes.write().await?;
    publish::stopped(shared, &app.app, &stopped).await;
    for id in stopped {
        shared.broadcasts.cancel(shared, app.app.clone(), id);
    }
    shared.broadcasts.publish(shared, revoke);
    Ok(Changed { existed: true })
}
