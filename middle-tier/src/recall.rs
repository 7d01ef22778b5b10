//! Stopping messages and taking them back.
//!
//! Stopped: what was not delivered is dropped. Taken back: what was delivered, or may have been, is revoked at the device
//! too. A revocation is an entry of its own in mailboxes and timelines, with an id of its own: it waits for a device that
//! is away, in order with everything else, and comes again until it is acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use idl::audience::Audience;
use idl::bus::REVOCATIONS_MAX;
use idl::contract::bus::{Changed, MessageName, Recall, Stop, Stopped};
use idl::contract::message::Notification;
use idl::error::{Code, Failure};
use idl::ids::{MessageId, RegId};
use idl::message::{Handling, Message, TTL_MS_MAX};
use schema::catalog::{App, ScheduleState};
use schema::records::{Ended, Record};
use schema::registrations::Registration;
use schema::traces::DropReason;

use crate::accept::{MAILBOXES_READ, check_packages};
use crate::app_calls::message_id;
use crate::order::{TARGETS_MAX, Whom};
use crate::outcomes::{Outcomes, Whose};
use crate::session::Whereabouts;
use crate::{Shared, order, resolve, schedules};

/// Messages with one job key that are stopped in one request.
const WITH_JOB_KEY_MAX: usize = 1000;
/// Deliveries of one message read in one call.
const TARGETS_READ: usize = 1000;
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
        shared.sessions.stop_broadcast(&record.app, record.id);
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
    // handed it if it was here since; that it was is known of this life alone, since a crash writes nothing.
    let unseen = |registration: &Registration| {
        waited.contains(&registration.regid)
            && match shared.sessions.find(registration.account) {
                Some(handle) => {
                    let whereabouts = handle.lock().whereabouts(&record.app, record.id);
                    matches!(whereabouts, Whereabouts::Queued | Whereabouts::Later(_))
                }
                None => {
                    record.created_at_ms > shared.started_ms
                        && registration.last_seen_ms.is_none_or(|seen_ms| seen_ms < record.created_at_ms)
                }
            }
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
        late.extend(unseen.into_iter().filter(|registration| {
            let was = shared.sessions.take_back(registration.account, &record.app, record.id);
            !matches!(was, None | Some(Whereabouts::Queued | Whereabouts::Later(_)))
        }));
        deliver(&mut outcomes, &late);
    }
    outcomes.batch.ended(&record.app, record.id, record.keep_until_ms, ended);
    outcomes.write().await?;
    for registration in &seen {
        shared.sessions.take_back(registration.account, &record.app, record.id);
    }
    for registration in seen.into_iter().chain(late).filter(|_| recall) {
        shared.sessions.stored(shared, registration.account, registration.regid, &revoke);
    }
    Ok(())
}

/// The entry that takes a message back. It lives as long as any message may: the notification may still be shown.
fn revocation_of(record: &Record, id: MessageId, now_ms: u64) -> Message {
    let handling = Handling { revokes: Some(record.id), ..Handling::default() };
    entry(record.app.clone(), id, now_ms, handling)
}

fn entry(app: idl::ids::AppId, id: MessageId, now_ms: u64, handling: Handling) -> Message {
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
    recall: Recall,
) -> Result<Changed, Failure> {
    check_packages(app, recall.packages.as_deref().unwrap_or_default())?;
    let now_ms = shared.clock.now_ms();
    let handling = Handling { revokes_notify_id: Some(recall.notify_id), ..Handling::default() };
    let revoke = entry(app.app.clone(), id, now_ms, handling);
    let resolved = match order::whom(shared, app, recall.target).await?.1 {
        Whom::Regids(values) => resolve::regids(shared, &app.app, values).await?,
        Whom::Aliases(values) => resolve::aliases(shared, &app.app, values).await?,
        Whom::UserAccounts(values) => resolve::user_accounts(shared, &app.app, values).await?,
        Whom::Audience(audience) => {
            return from_audience(shared, app, revoke, audience, recall.notify_id).await;
        }
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
    for (regid, registration) in &resolved.registrations {
        for message in replaced.get(regid).into_iter().flatten() {
            shared.sessions.take_back(registration.account, &app.app, *message);
        }
        shared.sessions.stored(shared, registration.account, *regid, &revoke);
    }
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
    for id in stopped {
        shared.sessions.stop_broadcast(&app.app, id);
        shared.broadcasts.cancel(shared, app.app.clone(), id);
    }
    shared.broadcasts.publish(shared, revoke);
    Ok(Changed { existed: true })
}
