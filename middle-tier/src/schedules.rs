//! Sends that go out later: once, when it is a time of day where the device is, or again and again.
//!
//! A schedule is a row of the catalog that holds the send as it was asked for. When it is due the job hands the middle a
//! request of its own, so that the message gets an id of that moment: an older one would come before what devices have been
//! judged to. Firing is durable and happens once: the message's id is recorded first, then the message is accepted under
//! it, then the firing is over. A firing that a crash cut off begins again; if its message was accepted, it is over.

use std::sync::Arc;
use std::time::Duration;

use cronexpr::MakeTimestamp;
use idl::bus::{Call, Lane, Reply, Request};
use idl::contract::bus::{
    self as wire, Accepted, AppAnswer, ChangeSchedule, Changed, FireSchedule, MessageName, Page, ScheduleStates, Send,
};
use idl::due::EARLIEST_ZONE_MS;
use idl::error::{Code, Failure};
use idl::ids::{AppId, MessageId, Shard};
use idl::wire::{decode_trusted, encode};
use schema::batch::Batch;
use schema::catalog::{App, Created, Repeat, Schedule, ScheduleState};
use schema::records::{Ended, Record, Tally};
use tokio::sync::{MutexGuard, Notify};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::accounts::signed;
use crate::app_calls::{message_id, page_limit, short};
use crate::apps::parse;
use crate::counts::keep_until;
use crate::idempotency::Key;
use crate::order::{self, Order, When};
use crate::turns::Turns;
use crate::{Shared, accept, rates};

/// Longest rest of the job: a schedule that another process made is seen within it.
const REST_MAX: Duration = Duration::from_secs(1);
/// Schedules fired in one go.
const FIRED_AT_ONCE: usize = 64;
/// Schedules looked through for those that are this middle's.
const LOOKED_THROUGH_MAX: usize = 4096;
/// Rest of the job while something is due that is another middle's to fire.
const REST_BESIDE_OTHERS: Duration = Duration::from_millis(100);
/// How long the firing of one may take before it is tried again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a schedule is looked at that another middle fires.
const FIRING_LOOK: Duration = Duration::from_millis(50);
/// How long schedules that are done can be asked for.
const KEPT_MS: u64 = 30 * 24 * 3600 * 1000;
/// How often those that are older are forgotten.
const FORGET_INTERVAL_MS: u64 = 3600 * 1000;

/// Wakes the job, and keeps who fires a schedule and who stops it apart.
#[derive(Default)]
pub(crate) struct Schedules {
    changed: Notify,
    turns: Turns,
}

impl Schedules {
    async fn turn(&self, id: MessageId) -> MutexGuard<'_, ()> {
        self.turns.take_text(&id.to_string()).await
    }
}

/// True if a send says that it goes out later, or again.
pub(crate) fn wanted(send: &Send) -> bool {
    send.send_at_ms.is_some() || send.local_time.is_some() || send.repeat.is_some()
}

/// When a send is due for the first time, if that is not now.
pub(crate) fn first_due(order: &Order, now_ms: u64) -> Result<Option<u64>, Failure> {
    match &order.when {
        When::Now => Ok(None),
        When::At(at_ms) => Ok(Some(*at_ms)),
        When::LocalTime(_, local_ms) => {
            // From when on it may be that time anywhere; from then on each device waits for its own moment.
            let due_ms = local_ms.saturating_sub(EARLIEST_ZONE_MS);
            Ok((due_ms > now_ms).then_some(due_ms))
        }
        When::Repeat(repeat, after_ms) => {
            let repeat = repeat_of(repeat)?;
            let due_ms = next(&repeat, *after_ms)?;
            due_ms.map(Some).ok_or_else(|| bad("repeat never comes before repeat_until".to_owned()))
        }
    }
}

/// Makes a schedule of a send. With a key the answer is written too.
pub(crate) async fn create(
    shared: &Arc<Shared>,
    app: &App,
    id: MessageId,
    order: &Order,
    asked: Send,
    due_ms: u64,
    key: Option<&Key>,
) -> Result<Accepted, Failure> {
    let accepted = make(shared, schedule_of(shared, app, id, order, &asked, due_ms)?).await?;
    if let Some(key) = key {
        let mut batch = Batch::default();
        key.answered(&mut batch, shared, id, AppAnswer::Accepted(accepted.clone()));
        batch.write(shared.store.as_ref()).await?;
    }
    Ok(accepted)
}

/// What a send that goes out later is kept as.
pub(crate) fn schedule_of(
    shared: &Arc<Shared>,
    app: &App,
    id: MessageId,
    order: &Order,
    asked: &Send,
    due_ms: u64,
) -> Result<Schedule, Failure> {
    let (local_time, repeat) = match &order.when {
        When::LocalTime(text, _) => (Some(text.clone()), None),
        When::Repeat(repeat, _) => (None, Some(repeat_of(repeat)?)),
        When::Now | When::At(_) => (None, None),
    };
    Ok(Schedule {
        id,
        app: app.app.clone(),
        job_key: order.notification.job_key.clone(),
        created_at_ms: shared.clock.now_ms(),
        due_ms,
        local_time,
        repeat,
        send: encode(asked),
        state: ScheduleState::Waiting,
        firing: None,
        last_message: None,
        fired: 0,
    })
}

/// Stores a schedule; it fires from now on.
pub(crate) async fn make(shared: &Arc<Shared>, schedule: Schedule) -> Result<Accepted, Failure> {
    let (id, due_ms) = (schedule.id, schedule.due_ms);
    let max = shared.config.schedules_max;
    if shared.catalog.create_schedule(schedule, max).await? == Created::Full {
        return Err(Failure::new(Code::LimitReached, format!("{max} schedules wait already, which is the limit")));
    }
    shared.schedules.changed.notify_one();
    Ok(Accepted { id: Some(id.to_string()), bad_targets: None, audience: None, due_ms: Some(signed(due_ms)) })
}

fn repeat_of(repeat: &wire::Repeat) -> Result<Repeat, Failure> {
    let until_ms = repeat.until_ms.map(u64::try_from).transpose();
    let until_ms = until_ms.map_err(|_| bad("repeat_until lies before 1970".to_owned()))?;
    let repeat = Repeat { cron: repeat.cron.clone(), time_zone: repeat.time_zone.clone(), until_ms };
    crontab(&repeat)?;
    Ok(repeat)
}

fn crontab(repeat: &Repeat) -> Result<cronexpr::Crontab, Failure> {
    let fields = repeat.cron.split_ascii_whitespace().count();
    if fields != 5 || repeat.cron.len() > 256 {
        let text = "repeat has five fields: minute, hour, day of month, month, day of week, such as 0 9 * * 1";
        return Err(bad(text.to_owned()));
    }
    if jiff::tz::TimeZone::get(&repeat.time_zone).is_err() {
        let zone = short(&repeat.time_zone);
        return Err(bad(format!("time_zone is {zone:?}: expected the name of a time zone such as Europe/Berlin")));
    }
    cronexpr::parse_crontab(&format!("{} {}", repeat.cron, repeat.time_zone))
        .map_err(|error| bad(format!("repeat can't be read: {error}")))
}

/// The next time after a moment, if there is one before the end.
fn next(repeat: &Repeat, after_ms: u64) -> Result<Option<u64>, Failure> {
    let after = MakeTimestamp::from_millisecond(i64::try_from(after_ms).unwrap_or(i64::MAX));
    let after = after.map_err(|error| bad(format!("the time is out of range: {error}")))?;
    let Ok(at) = crontab(repeat)?.find_next(after) else { return Ok(None) };
    let at_ms = u64::try_from(at.timestamp().as_millisecond()).unwrap_or(u64::MAX);
    Ok(repeat.until_ms.is_none_or(|until_ms| at_ms <= until_ms).then_some(at_ms))
}

fn bad(text: String) -> Failure {
    Failure::new(Code::BadValue, text)
}

// ------------------------------------------------------------------------------------------------------------ requests

/// One schedule, by its id or its job key (then the first that waits).
pub(crate) async fn show(shared: &Arc<Shared>, app: &App, name: &MessageName) -> Result<wire::ScheduleState, Failure> {
    Ok(shown(find(shared, app, name).await?))
}

async fn find(shared: &Arc<Shared>, app: &App, name: &MessageName) -> Result<Schedule, Failure> {
    let (shown, found) = match (&name.id, &name.job_key) {
        (Some(id), None) => {
            let found = match message_id(id) {
                Ok(id) => shared.catalog.schedule(&app.app, id).await?,
                Err(_) => None,
            };
            (id, found)
        }
        (None, Some(key)) => {
            let all = shared.catalog.schedules_by_job_key(&app.app, key, usize::MAX).await?;
            let waiting = all.iter().position(|schedule| schedule.state == ScheduleState::Waiting);
            (key, all.into_iter().nth(waiting.unwrap_or(0)))
        }
        _ => return Err(Failure::new(Code::Missing, "a schedule is named by job_id or by jobkey, one of them")),
    };
    found.ok_or_else(|| {
        Failure::new(Code::NotFound, format!("there is no schedule {:?} of this application", short(shown)))
    })
}

/// A page of schedules, in order of their ids.
pub(crate) async fn list(shared: &Arc<Shared>, app: &App, page: &Page) -> Result<ScheduleStates, Failure> {
    let limit = page_limit(page.limit);
    let after = page.after.as_deref().map(message_id).transpose()?;
    let found = shared.catalog.schedules(&app.app, after, limit).await?;
    let next_after = found.last().filter(|_| found.len() >= limit).map(|last| last.id.to_string());
    Ok(ScheduleStates { schedules: found.into_iter().map(shown).collect(), next_after })
}

/// Deletes what waits: by an id one schedule, by a job key all that have it.
pub(crate) async fn delete(shared: &Arc<Shared>, app: &App, name: &MessageName) -> Result<Changed, Failure> {
    let mut existed = false;
    if let (None, Some(key)) = (&name.id, &name.job_key) {
        loop {
            let all = shared.catalog.schedules_by_job_key(&app.app, key, usize::MAX).await?;
            let waiting = all.into_iter().filter(|schedule| schedule.state == ScheduleState::Waiting);
            let mut deleted = false;
            for schedule in waiting {
                deleted |= shared.catalog.delete_schedule(&app.app, schedule.id).await?;
            }
            existed |= deleted;
            if !deleted {
                break;
            }
        }
        if !existed {
            let text = format!("there is no schedule with the job key {:?} that waits", short(key));
            return Err(Failure::new(Code::NotFound, text));
        }
    } else {
        let schedule = find(shared, app, name).await?;
        if !shared.catalog.delete_schedule(&app.app, schedule.id).await? {
            return Err(no_longer(&schedule));
        }
        existed = true;
    }
    Ok(Changed { existed })
}

/// Sees to it that a schedule fires no more, after a firing that is under way. Returns the messages that it may have become.
pub(crate) async fn stop(shared: &Arc<Shared>, app: &AppId, id: MessageId) -> Result<Vec<MessageId>, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        {
            let _turn = shared.schedules.turn(id).await;
            let Some(schedule) = shared.catalog.schedule(app, id).await? else { return Ok(Vec::new()) };
            let waits = schedule.state == ScheduleState::Waiting;
            // Here the turn keeps firings away. Another middle is waited for, but one that takes longer was cut off.
            let alone = shared.partitions.has_app(app) || Instant::now() >= until;
            if !waits || alone || schedule.firing.is_none() {
                let deleted = waits && shared.catalog.delete_schedule(app, id).await?;
                if waits
                    && !deleted
                    && let Some(begun) = &schedule.firing
                {
                    // A firing that was cut off begins no more.
                    shared.catalog.fired(id, begun.due_ms, None).await?;
                }
                if !waits || alone || deleted {
                    let begun = schedule.firing.map(|firing| firing.message);
                    return Ok(schedule.last_message.into_iter().chain(begun).collect());
                }
            }
        }
        sleep(FIRING_LOOK).await;
    }
}

fn no_longer(schedule: &Schedule) -> Failure {
    let text = format!("schedule {} does not wait any more: stop or revoke the message it became", schedule.id);
    Failure::new(Code::WrongState, text)
}

/// Changes when a schedule that waits is due.
pub(crate) async fn change(
    shared: &Arc<Shared>,
    app: &App,
    change: ChangeSchedule,
) -> Result<wire::ScheduleState, Failure> {
    let name = MessageName { id: Some(change.id), job_key: None };
    let schedule = find(shared, app, &name).await?;
    if change.send_at_ms.is_none() && change.local_time.is_none() && change.repeat.is_none() {
        let text = "nothing is changed: expected time_to_send, local_time or repeat";
        return Err(Failure::new(Code::Missing, text));
    }
    let mut send: Send = read(&schedule)?;
    (send.send_at_ms, send.local_time, send.repeat) = (change.send_at_ms, change.local_time, change.repeat);
    let now_ms = shared.clock.now_ms();
    let when = order::when(send.send_at_ms, send.local_time.clone(), send.repeat.clone(), now_ms)?;
    let (due_ms, repeat) = match &when {
        When::Now => (now_ms, None),
        When::At(at_ms) => (*at_ms, None),
        When::LocalTime(_, local_ms) => (local_ms.saturating_sub(EARLIEST_ZONE_MS), None),
        When::Repeat(repeat, after_ms) => {
            let repeat = repeat_of(repeat)?;
            let due_ms = next(&repeat, *after_ms)?;
            let due_ms = due_ms.ok_or_else(|| bad("repeat never comes before repeat_until".to_owned()))?;
            (due_ms, Some(repeat))
        }
    };
    let (local_time, encoded) = (send.local_time.clone(), encode(&send));
    if !shared.catalog.change_schedule(&app.app, schedule.id, due_ms, local_time, repeat, encoded).await? {
        return Err(no_longer(&schedule));
    }
    shared.schedules.changed.notify_one();
    show(shared, app, &name).await
}

fn shown(schedule: Schedule) -> wire::ScheduleState {
    let state = match schedule.state {
        ScheduleState::Waiting if schedule.firing.is_some() => "firing",
        ScheduleState::Waiting => "waiting",
        ScheduleState::Done => "done",
    };
    wire::ScheduleState {
        id: schedule.id.to_string(),
        job_key: schedule.job_key,
        created_at_ms: signed(schedule.created_at_ms),
        due_ms: signed(schedule.due_ms),
        local_time: schedule.local_time,
        repeat: schedule.repeat.map(|repeat| wire::Repeat {
            cron: repeat.cron,
            time_zone: repeat.time_zone,
            until_ms: repeat.until_ms.map(signed),
        }),
        state: state.to_owned(),
        fired: signed(schedule.fired),
        last_message: schedule.last_message.map(|id| id.to_string()),
    }
}

// -------------------------------------------------------------------------------------------------------------- firing

/// Sends what a schedule is due to send; the message has the id of the request.
pub(crate) async fn fire(shared: &Arc<Shared>, id: MessageId, request: FireSchedule) -> Result<Reply, Failure> {
    let app: AppId = parse(&request.app)?;
    let schedule = MessageId::from_bytes(&request.id).map_err(|error| bad(error.to_string()))?;
    let due_ms = u64::try_from(request.due_ms).unwrap_or(0);
    let _turn = shared.schedules.turn(schedule).await;
    let Some(found) = shared.catalog.schedule(&app, schedule).await? else { return Ok(Reply::Done) };
    if found.state != ScheduleState::Waiting || found.due_ms != due_ms {
        return Ok(Reply::Done);
    }
    let next_of = |schedule: &Schedule| {
        // What was missed meanwhile is not made up for: it fires once, then as usual.
        let repeat = schedule.repeat.as_ref()?;
        next(repeat, shared.clock.now_ms().max(due_ms)).unwrap_or_default()
    };
    if let Some(begun) = &found.firing
        && shared.records.get(&app, begun.message).await?.is_some()
    {
        // A crash came between the message and this.
        shared.catalog.fired(schedule, due_ms, next_of(&found)).await?;
        return Ok(Reply::Done);
    }
    if !shared.catalog.begin_firing(schedule, due_ms, id).await? {
        return Ok(Reply::Done);
    }
    // Until it had begun it could be changed.
    let Some(found) = shared.catalog.schedule(&app, schedule).await? else { return Ok(Reply::Done) };
    let sent = async {
        let app = shared.apps.by_id(&app).await?;
        let send = Box::new(read(&found)?);
        let mut order = Order::read_due(shared, &app, send).await?;
        let taken = match rates::take_scheduled(shared, &app).await {
            Ok(taken) => taken,
            Err(failure) => {
                accept::refused(shared, &app, id, &order, &failure).await?;
                return Err(failure);
            }
        };
        let accepted = accept::deliver(shared, &app, id, &mut order, Some(schedule), None).await;
        rates::sent(shared, taken, u64::from(accepted.is_ok())).await;
        accepted
    };
    match sent.await {
        Ok(_) => {
            shared.metrics.schedules_fired.inc();
        }
        // Tomorrow is not when it was to be sent.
        Err(failure) if failure.code.retryable() && failure.code != Code::DailyQuota => return Err(failure),
        Err(failure) => {
            shared.metrics.schedules_failed.inc();
            tracing::info!(%app, %schedule, %failure, "a schedule fired and its send was refused");
            refused(shared, &app, id, &found).await?;
        }
    }
    shared.catalog.fired(schedule, due_ms, next_of(&found)).await?;
    Ok(Reply::Done)
}

/// Whoever asks what became of a firing that was refused finds a message that was stopped before it reached anyone.
async fn refused(shared: &Arc<Shared>, app: &AppId, id: MessageId, schedule: &Schedule) -> Result<(), Failure> {
    let now_ms = shared.clock.now_ms();
    let record = Record {
        id,
        app: app.clone(),
        kind: read(schedule).map_or(0, |send| send.target.kind),
        created_at_ms: now_ms,
        expires_at_ms: now_ms,
        keep_until_ms: keep_until(shared, id),
        job_key: schedule.job_key.clone(),
        topic: None,
        targets: Vec::new(),
        broadcast: false,
        invalid_targets: 0,
        schedule: Some(schedule.id),
        has_callback: false,
        resolved: None,
        ended: Some(Ended { at_ms: now_ms, revoked: false }),
        tally: Tally::default(),
    };
    let mut batch = Batch::default();
    batch.record(&record);
    Ok(batch.write(shared.store.as_ref()).await?)
}

/// What a schedule sends, as it was asked for.
pub(crate) fn read(schedule: &Schedule) -> Result<Send, Failure> {
    decode_trusted(&schedule.send)
        .map_err(|error| Failure::new(Code::System, format!("schedule {} can't be read: {error}", schedule.id)))
}

/// Fires schedules that are due until `drain` is cancelled.
pub(crate) async fn run(shared: Arc<Shared>, drain: CancellationToken) {
    let mut forgotten_at_ms = 0;
    loop {
        let now_ms = shared.clock.now_ms();
        let rest = match fire_due(&shared, now_ms).await {
            Ok(rest) => rest,
            Err(failure) => {
                tracing::warn!(%failure, "schedules could not be fired; they are tried again");
                REST_MAX
            }
        };
        if now_ms >= forgotten_at_ms + FORGET_INTERVAL_MS && shared.partitions.leads() {
            forgotten_at_ms = now_ms;
            if let Err(error) = shared.catalog.forget_schedules_before(now_ms.saturating_sub(KEPT_MS)).await {
                tracing::warn!(%error, "old schedules could not be forgotten");
            }
        }
        shared.metrics.ran("schedules", now_ms);
        tokio::select! {
            () = drain.cancelled() => return,
            () = shared.schedules.changed.notified() => {}
            () = sleep(rest) => {}
        }
    }
}

/// Fires what is due of the apps that are this middle's, and says how long there is nothing to do.
async fn fire_due(shared: &Arc<Shared>, now_ms: u64) -> Result<Duration, Failure> {
    let (due, more, others) = due(shared, now_ms).await?;
    shared.metrics.schedules_due.set(i64::try_from(due.len()).unwrap_or(i64::MAX));
    let mut failed = None;
    for schedule in due {
        let request = FireSchedule {
            app: schedule.app.to_string(),
            id: schedule.id.to_bytes().to_vec(),
            due_ms: signed(schedule.due_ms),
        };
        let call = Call {
            lane: Lane::Normal,
            shard: Shard::of_app(&schedule.app),
            deadline: Instant::now() + PATIENCE,
            request: Request::FireSchedule(request),
        };
        if let Err(failure) = shared.bus.request(call).await {
            failed = Some(failure);
        }
    }
    if let Some(failure) = failed {
        return Err(failure);
    }
    if more {
        return Ok(Duration::ZERO);
    }
    if others {
        return Ok(REST_BESIDE_OTHERS);
    }
    let next_ms = shared.catalog.next_due_ms().await?;
    let until = next_ms.map_or(REST_MAX, |at_ms| Duration::from_millis(at_ms.saturating_sub(now_ms)));
    Ok(until.min(REST_MAX))
}

/// What is due of the apps that are this middle's, whether there is more of it, and whether something is due of others'.
async fn due(shared: &Arc<Shared>, now_ms: u64) -> Result<(Vec<Schedule>, bool, bool), Failure> {
    let mut limit = FIRED_AT_ONCE;
    loop {
        let mut due = shared.catalog.due_schedules(now_ms, limit).await?;
        let (found, whole) = (due.len(), due.len() < limit);
        due.retain(|schedule| shared.partitions.has_app(&schedule.app));
        let others = due.len() < found;
        let more = !whole && due.len() >= FIRED_AT_ONCE;
        // What is first may be others' to fire.
        if whole || more || limit >= LOOKED_THROUGH_MAX {
            due.truncate(FIRED_AT_ONCE);
            return Ok((due, more, others));
        }
        limit *= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repeat(cron: &str, time_zone: &str, until_ms: Option<u64>) -> Repeat {
        Repeat { cron: cron.into(), time_zone: time_zone.into(), until_ms }
    }

    #[test]
    fn the_next_time_is_read_in_its_zone_and_ends_when_it_ends() {
        // 2026-12-01T00:00Z is a Tuesday.
        let at = 1_796_083_200_000;
        let nine = repeat("0 9 * * *", "Asia/Shanghai", None);
        assert_eq!(next(&nine, at), Ok(Some(at + 3_600_000)));
        assert_eq!(next(&nine, at + 3_600_000), Ok(Some(at + 25 * 3_600_000)), "strictly after");
        assert_eq!(next(&repeat("0 9 * * *", "Asia/Shanghai", Some(at)), at), Ok(None));
        assert_eq!(next(&repeat("0 0 30 2 *", "UTC", None), at), Ok(None), "there is no such day");
    }

    #[test]
    fn what_is_no_repetition_is_refused() {
        for (cron, zone) in
            [("", "UTC"), ("* * * *", "UTC"), ("* * * * * *", "UTC"), ("61 * * * *", "UTC"), ("0 9 * * *", "Nowhere")]
        {
            let refused = crontab(&repeat(cron, zone, None)).err().map(|failure| failure.code);
            assert_eq!(refused, Some(Code::BadValue), "{cron} {zone}");
        }
    }
}
