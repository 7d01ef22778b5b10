//! What became of messages: their state and counts, the trace of one registration, counters by day, receipts again.

use std::sync::Arc;

use idl::contract::bus::{
    self as wire, Counters, Days, MessageName, MessageState, MessageStates, Messages, Page, Receipts, Trace, TraceStep,
    Traced,
};
use idl::error::{Code, Failure};
use idl::ids::{AppId, MessageId, RegId};
use jiff::ToSpan as _;
use jiff::civil::Date;
use schema::batch::Batch;
use schema::catalog::{App, Schedule, ScheduleState};
use schema::records::{Record, Resolved, Tally};
use schema::registrations::{RECENT_MAX, Registration};
use schema::traces::{DropReason, Steps};

use crate::accounts::signed;
use crate::app_calls::{message_id, page_limit, short};
use crate::counts::day_of;
use crate::session::Whereabouts;
use crate::{Shared, audiences, counts, judge, schedules};

/// Days that one request may ask for.
const DAYS_MAX: usize = 31;
/// Messages with one job key that are told of.
const WITH_JOB_KEY_MAX: usize = 100;
/// A broadcast that was not counted within this time is counted when somebody asks.
const COUNTED_WITHIN_MS: u64 = 60_000;
/// Registrations whose traces are read in one call.
const TRACES: usize = 1000;

/// The messages with a name, newest first. An id that names a schedule is told as what it waits for or became.
pub(crate) async fn of(shared: &Arc<Shared>, app: &App, name: &MessageName) -> Result<MessageStates, Failure> {
    let mut messages = States::default();
    match (&name.id, &name.job_key) {
        (Some(id), None) => {
            let id = message_id(id)?;
            if let Some(schedule) = shared.catalog.schedule(&app.app, id).await? {
                messages.add(of_schedule(shared, &schedule).await?);
            } else if let Some(record) = shared.records.get(&app.app, id).await? {
                messages.add(of_record(shared, &record).await?);
            }
        }
        (None, Some(key)) => {
            let schedules = shared.catalog.schedules_by_job_key(&app.app, key, usize::MAX).await?;
            let waiting = schedules.iter().filter(|schedule| schedule.state == ScheduleState::Waiting);
            for schedule in waiting.take(WITH_JOB_KEY_MAX) {
                messages.add(of_schedule(shared, schedule).await?);
            }
            for record in shared.records.by_job_key(&app.app, key, WITH_JOB_KEY_MAX).await? {
                messages.add(of_record(shared, &record).await?);
            }
        }
        _ => return Err(Failure::new(Code::Missing, "a message is named by msg_id or by job_key, one of them")),
    }
    let messages = messages.complete(shared, &app.app).await;
    if messages.is_empty() {
        let name = name.id.as_ref().or(name.job_key.as_ref()).map(|name| short(name)).unwrap_or_default();
        return Err(Failure::new(Code::NotFound, format!("there is no message {name:?} of this application")));
    }
    Ok(MessageStates { messages })
}

/// The messages that were accepted in a time, newest first.
pub(crate) async fn between(shared: &Arc<Shared>, app: &App, asked: &Messages) -> Result<MessageStates, Failure> {
    let (Ok(begin), Ok(end)) = (u64::try_from(asked.begin_ms), u64::try_from(asked.end_ms)) else {
        return Err(Failure::new(Code::BadValue, "begin_time and end_time are milliseconds since 1970"));
    };
    if begin > end {
        return Err(Failure::new(Code::BadValue, "begin_time lies after end_time"));
    }
    let mut messages = States::default();
    for record in shared.records.between(&app.app, begin, end, page_limit(asked.limit)).await? {
        messages.add(of_record(shared, &record).await?);
    }
    Ok(MessageStates { messages: messages.complete(shared, &app.app).await })
}

/// Messages as they stand, but for what other middles have counted and not written.
#[derive(Default)]
struct States {
    messages: Vec<MessageState>,
    /// Which of them are broadcasts.
    broadcasts: Vec<(usize, MessageId)>,
}

impl States {
    fn add(&mut self, (state, broadcast): (MessageState, Option<MessageId>)) {
        self.broadcasts.extend(broadcast.map(|id| (self.messages.len(), id)));
        self.messages.push(state);
    }

    async fn complete(mut self, shared: &Shared, app: &AppId) -> Vec<MessageState> {
        let ids: Vec<_> = self.broadcasts.iter().map(|(_, id)| *id).collect();
        let (tallies, _) = counts::unwritten_elsewhere(shared, app, &ids, &[]).await;
        for ((at, _), Tally { delivered, clicked }) in self.broadcasts.into_iter().zip(tallies) {
            if let Some(state) = self.messages.get_mut(at) {
                state.delivered = state.delivered.saturating_add(signed(delivered));
                state.clicked = state.clicked.saturating_add(signed(clicked));
            }
        }
        self.messages
    }
}

async fn of_schedule(shared: &Arc<Shared>, schedule: &Schedule) -> Result<(MessageState, Option<MessageId>), Failure> {
    let sent = match schedule.last_message {
        Some(id) => shared.records.get(&schedule.app, id).await?,
        None => None,
    };
    let waits = schedule.state == ScheduleState::Waiting;
    let asked = schedules::read(schedule)?;
    let (mut state, broadcast) = match &sent {
        Some(record) => of_record(shared, record).await?,
        None => (
            MessageState {
                id: String::new(),
                // A segment is an expression.
                kind: asked.target.kind.min(4),
                state: "done".to_owned(),
                created_at_ms: 0,
                ttl_ms: asked.ttl_ms,
                resolved: 0,
                how_resolved: "exact".to_owned(),
                delivered: 0,
                clicked: 0,
                invalid_targets: 0,
                job_key: None,
                topic: asked.notification.topic,
                due_ms: None,
                messages: None,
                dropped: None,
            },
            None,
        ),
    };
    state.id = schedule.id.to_string();
    state.created_at_ms = signed(schedule.created_at_ms);
    state.job_key.clone_from(&schedule.job_key);
    if waits {
        "scheduled".clone_into(&mut state.state);
        state.due_ms = Some(signed(schedule.due_ms));
    }
    state.messages = Some(schedule.last_message.iter().map(ToString::to_string).collect());
    Ok((state, broadcast))
}

/// The state of a message, and its id if it is a broadcast.
async fn of_record(shared: &Arc<Shared>, record: &Record) -> Result<(MessageState, Option<MessageId>), Failure> {
    let now_ms = shared.clock.now_ms();
    let (resolved, exact, delivered, clicked, dropped) = if record.broadcast {
        let (registrations, exact) = match record.resolved {
            Some(resolved) => (resolved.registrations, resolved.exact),
            None => count_again(shared, record).await?,
        };
        let Tally { delivered, clicked } = tally(shared, record).await?;
        (registrations, exact, delivered, clicked, None)
    } else {
        let (mut delivered, mut clicked, mut dropped) = (0, 0, 0);
        let mut after = None;
        loop {
            let traces = shared.traces.of_message(record.id, after, TRACES).await?;
            for (_, Steps { delivered: has, clicked: tapped, dropped: given_up }) in &traces {
                delivered += u64::from(has.is_some());
                clicked += u64::from(tapped.is_some());
                dropped += u64::from(given_up.is_some() && has.is_none());
            }
            after = traces.last().map(|(regid, _)| *regid);
            if traces.len() < TRACES {
                break;
            }
        }
        (record.targets.len() as u64, true, delivered, clicked, Some(dropped))
    };
    let over = now_ms >= record.expires_at_ms || (!record.broadcast && delivered + dropped.unwrap_or(0) >= resolved);
    let state = match record.ended {
        Some(ended) if ended.revoked => "revoked",
        Some(_) => "stopped",
        None if over => "done",
        None => "sending",
    };
    let state = MessageState {
        id: record.id.to_string(),
        kind: record.kind,
        state: state.to_owned(),
        created_at_ms: signed(record.created_at_ms),
        ttl_ms: signed(record.expires_at_ms.saturating_sub(record.created_at_ms)),
        resolved: signed(resolved),
        how_resolved: if exact { "exact" } else { "estimate" }.to_owned(),
        delivered: signed(delivered),
        clicked: signed(clicked),
        invalid_targets: i64::from(record.invalid_targets),
        job_key: record.job_key.clone(),
        topic: record.topic.clone(),
        due_ms: None,
        messages: None,
        dropped: dropped.map(signed),
    };
    Ok((state, record.broadcast.then_some(record.id)))
}

/// What is counted of a broadcast, written or not.
async fn tally(shared: &Arc<Shared>, record: &Record) -> Result<Tally, Failure> {
    let _still = shared.counts.hold_still().await;
    let stored = shared.records.get(&record.app, record.id).await?.map(|record| record.tally).unwrap_or_default();
    let unwritten = shared.counts.unwritten(&record.app, record.id);
    Ok(Tally { delivered: stored.delivered + unwritten.delivered, clicked: stored.clicked + unwritten.clicked })
}

/// A broadcast whose audience was not counted when it was accepted: as it is now. That is kept, unless the count of then may
/// still come.
async fn count_again(shared: &Arc<Shared>, record: &Record) -> Result<(u64, bool), Failure> {
    let Some(message) = shared.timelines.get(&record.app, record.id).await? else { return Ok((0, false)) };
    let Some(audience) = &message.audience else { return Ok((0, false)) };
    let registrations = audiences::count(shared, &record.app, audience).await?.registrations;
    if shared.clock.now_ms() >= record.created_at_ms.saturating_add(COUNTED_WITHIN_MS) {
        let mut batch = Batch::default();
        let resolved = Resolved { registrations, exact: false };
        batch.resolved(&record.app, record.id, record.keep_until_ms, resolved);
        batch.write(shared.store.as_ref()).await?;
    }
    Ok((registrations, false))
}

// ------------------------------------------------------------------------------------------------------------------ trace

/// What happened to a message for one registration, step by step.
pub(crate) async fn trace(shared: &Arc<Shared>, app: &App, asked: &Trace) -> Result<Traced, Failure> {
    let id = message_id(&asked.id)?;
    let regid: RegId = asked.regid.parse().map_err(|_| {
        let text = format!("{:?} is not a registration id: 32 characters were expected", short(&asked.regid));
        Failure::new(Code::BadValue, text)
    })?;
    let record = match shared.catalog.schedule(&app.app, id).await? {
        Some(schedule) if schedule.state == ScheduleState::Waiting => {
            return Ok(Traced { steps: vec![step("waiting", None, Some("due later"))] });
        }
        Some(schedule) => match schedule.last_message {
            Some(sent) => shared.records.get(&app.app, sent).await?,
            None => None,
        },
        None => shared.records.get(&app.app, id).await?,
    };
    let unknown =
        || Failure::new(Code::NotFound, format!("there is no message {:?} of this application", short(&asked.id)));
    let record = record.ok_or_else(unknown)?;
    let registration = shared.registrations.read(&[regid]).await?.pop().flatten();
    let registration = registration.filter(|registration| registration.app == app.app);
    let mut steps =
        vec![step("accepted", Some(record.created_at_ms), None), step("stored", Some(record.created_at_ms), None)];
    if record.broadcast {
        of_broadcast(shared, &record, registration.as_ref(), regid, &mut steps).await?;
    } else if record.targets.contains(&regid) {
        of_single(shared, &record, registration.as_ref(), regid, &mut steps).await?;
    } else {
        return Err(Failure::new(Code::NotFound, "the message was not for this registration"));
    }
    Ok(Traced { steps })
}

fn step(what: &str, at_ms: Option<u64>, reason: Option<&str>) -> TraceStep {
    TraceStep { what: what.to_owned(), at_ms: at_ms.map(signed), front: None, reason: reason.map(str::to_owned) }
}

async fn of_single(
    shared: &Arc<Shared>,
    record: &Record,
    registration: Option<&Registration>,
    regid: RegId,
    steps: &mut Vec<TraceStep>,
) -> Result<(), Failure> {
    let Steps { delivered, clicked, dropped } = shared.traces.get(record.id, regid).await?;
    if let Some(delivered) = delivered {
        if let Some(at_ms) = delivered.dispatched_at_ms {
            let front = delivered.front.map(|front| front.to_string());
            steps.push(TraceStep { front, ..step("dispatched", Some(at_ms), None) });
        }
        steps.push(step("delivered", Some(delivered.at_ms), None));
        steps.extend(clicked.map(|at_ms| step("clicked", Some(at_ms), None)));
        steps.extend(dropped.map(|dropped| step("dropped", Some(dropped.at_ms), Some(dropped.reason.name()))));
        return Ok(());
    }
    if let Some(dropped) = dropped {
        steps.push(step("dropped", Some(dropped.at_ms), Some(dropped.reason.name())));
        return Ok(());
    }
    let now_ms = shared.clock.now_ms();
    let Some(registration) = registration else {
        steps.push(step("dropped", None, Some(DropReason::Unregistered.name())));
        return Ok(());
    };
    if now_ms >= record.expires_at_ms {
        let reason = if registration.enabled { DropReason::Expired } else { DropReason::Disabled };
        steps.push(step("dropped", Some(record.expires_at_ms), Some(reason.name())));
        return Ok(());
    }
    waiting(shared, record, registration, steps);
    Ok(())
}

/// Where it waits: at the device, for it, or for its moment.
fn waiting(shared: &Shared, record: &Record, registration: &Registration, steps: &mut Vec<TraceStep>) {
    let handle = shared.sessions.find(registration.account);
    let (whereabouts, front, online) = handle.map_or((Whereabouts::Unknown, None, false), |handle| {
        let session = handle.lock();
        (session.whereabouts(&record.app, record.id), Some(session.front.to_string()), session.is_online())
    });
    match whereabouts {
        Whereabouts::InFlight(at_ms) => {
            steps.push(TraceStep { front, ..step("dispatched", Some(at_ms), None) });
            steps.push(step("waiting", None, Some("in flight")));
        }
        Whereabouts::Later(due_ms) => steps.push(step("waiting", Some(due_ms), Some("due later"))),
        _ if !registration.enabled => steps.push(step("waiting", None, Some("disabled"))),
        _ if online => steps.push(step("waiting", None, Some("queued"))),
        _ => steps.push(step("waiting", None, Some("offline"))),
    }
}

async fn of_broadcast(
    shared: &Arc<Shared>,
    record: &Record,
    registration: Option<&Registration>,
    regid: RegId,
    steps: &mut Vec<TraceStep>,
) -> Result<(), Failure> {
    let Steps { clicked, dropped, .. } = shared.traces.get(record.id, regid).await?;
    let Some(registration) = registration else {
        steps.push(step("dropped", None, Some(DropReason::Unregistered.name())));
        return Ok(());
    };
    let recent = match shared.sessions.find(registration.account) {
        Some(handle) => {
            let session = handle.lock();
            session.registration(&record.app).map(|_| session.recent(&record.app).to_vec())
        }
        None => None,
    };
    let recent = recent.as_ref().unwrap_or(&registration.recent);
    if let Some(acked) = recent.iter().find(|acked| acked.id == record.id) {
        steps.push(TraceStep { front: Some(acked.front.to_string()), ..step("dispatched", None, None) });
        steps.push(step("delivered", Some(acked.at_ms), None));
        steps.extend(clicked.map(|at_ms| step("clicked", Some(at_ms), None)));
        steps.extend(dropped.map(|dropped| step("dropped", Some(dropped.at_ms), Some(dropped.reason.name()))));
        return Ok(());
    }
    let now_ms = shared.clock.now_ms();
    if let Some(ended) = record.ended {
        let reason = if ended.revoked { DropReason::Revoked } else { DropReason::Stopped };
        steps.push(step("dropped", Some(ended.at_ms), Some(reason.name())));
        return Ok(());
    }
    let cursor = &registration.cursor;
    let over = cursor.judged_to > record.id || cursor.acked.contains(&record.id);
    // Of each registration the last acknowledgements are remembered: was one of this message forgotten?
    let forgotten = recent.len() >= RECENT_MAX && recent.first().is_none_or(|first| first.at_ms > record.created_at_ms);
    if over && forgotten {
        steps.push(step("delivered", None, None));
        steps.extend(clicked.map(|at_ms| step("clicked", Some(at_ms), None)));
        return Ok(());
    }
    let message = shared.timelines.get(&record.app, record.id).await?;
    let is_for = message.as_ref().is_none_or(|message| judge::is_for(message, registration));
    let handling = message.map(|message| message.handling).unwrap_or_default();
    if !is_for {
        steps.push(step("dropped", None, Some("not in the audience")));
    } else if handling.only_once {
        steps.push(step("dropped", None, Some(DropReason::Offline.name())));
    } else if now_ms >= record.expires_at_ms {
        let reason = if registration.enabled { DropReason::Expired } else { DropReason::Disabled };
        steps.push(step("dropped", Some(record.expires_at_ms), Some(reason.name())));
    } else if !over {
        waiting(shared, record, registration, steps);
    } else if handling.collapse_key.is_some() {
        steps.push(step("dropped", None, Some(DropReason::Collapsed.name())));
    } else {
        // It is by now, and was not when it was judged.
        steps.push(step("dropped", None, Some("not in the audience")));
    }
    Ok(())
}

// --------------------------------------------------------------------------------------------------------------- counters

/// Counters of each day of a time, days without anything too.
pub(crate) async fn counters(shared: &Arc<Shared>, app: &App, asked: &Counters) -> Result<Days, Failure> {
    let (first, last) = (date("start_date", &asked.first_day)?, date("end_date", &asked.last_day)?);
    let mut dates = Vec::new();
    let mut at = first;
    while at <= last {
        dates.push(at);
        if dates.len() > DAYS_MAX {
            return Err(Failure::new(Code::BadValue, format!("at most {DAYS_MAX} days can be asked for at once")));
        }
        at = at.checked_add(1.day()).map_err(|_| Failure::new(Code::BadValue, "end_date is out of range"))?;
    }
    if dates.is_empty() {
        return Err(Failure::new(Code::BadValue, "start_date lies after end_date"));
    }
    shared.counts.verify(shared).await?;
    let days: Vec<u32> = dates.into_iter().map(number).collect();
    let here = {
        let _still = shared.counts.hold_still().await;
        let stored = shared.day_counts.read(&app.app, number(first), number(last)).await?;
        let today = day_of(shared.clock.now_ms());
        let here = |day: &u32| {
            let counts = stored.iter().find(|(of, _)| of == day).map(|(_, counts)| *counts).unwrap_or_default();
            counts + shared.counts.unwritten_day(&app.app, *day, today)
        };
        days.iter().map(here).collect::<Vec<_>>()
    };
    let (_, elsewhere) = counts::unwritten_elsewhere(shared, &app.app, &[], &days).await;
    let all = days.into_iter().zip(here).zip(elsewhere);
    Ok(Days { days: all.map(|((day, here), elsewhere)| counts::shown(day, &(here + elsewhere))).collect() })
}

fn date(name: &str, text: &str) -> Result<Date, Failure> {
    let parsed = if text.len() == 8 { Date::strptime("%Y%m%d", text).ok() } else { None };
    parsed.ok_or_else(|| {
        let text = short(text);
        Failure::new(Code::BadValue, format!("the parameter {name} is {text:?}: expected a day as yyyyMMdd"))
    })
}

fn number(date: Date) -> u32 {
    let number = i64::from(date.year()) * 10_000 + i64::from(date.month()) * 100 + i64::from(date.day());
    u32::try_from(number).unwrap_or(0)
}

// --------------------------------------------------------------------------------------------------------------- receipts

/// Receipts after a cursor, in order. The cursor goes on where there are none yet.
pub(crate) async fn receipts(shared: &Arc<Shared>, app: &App, page: &Page) -> Result<Receipts, Failure> {
    let after = match page.after.as_deref() {
        None | Some("" | "0") => None,
        Some(text) => Some(text.parse::<MessageId>().map_err(|_| {
            let text = format!("{:?} is not a cursor: what was given as `next` was expected", short(text));
            Failure::new(Code::BadValue, text)
        })?),
    };
    let settled = shared.receipts.settled(shared).await;
    let found = shared.receipt_log.since(&app.app, after, settled, page_limit(page.limit)).await?;
    let next_after = found.last().map(|last| last.id).or(after).map_or_else(|| "0".to_owned(), |id| id.to_string());
    let receipts = found.into_iter().map(|receipt| wire::Receipt {
        id: receipt.id.to_string(),
        message: receipt.message.to_string(),
        kind: receipt.kind,
        target: receipt.target,
        at_ms: signed(receipt.at_ms),
        param: receipt.param,
        job_key: receipt.job_key,
        regid: receipt.regid.map(|regid| regid.to_string()),
    });
    Ok(Receipts { receipts: receipts.collect(), next_after })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_read_as_it_is_written() {
        assert_eq!(date("d", "20261201").map(number), Ok(20_261_201));
        for text in ["2026-12-01", "20261301", "2026121", "", "202612011", "x0261201"] {
            assert!(date("d", text).is_err(), "{text}");
        }
        assert_eq!(number(date("d", "19700101").expect("a day")), day_of(0));
    }
}
