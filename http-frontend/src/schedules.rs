//! What is due: once, in local time, or again and again.

use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::error::Failure;
use serde_json::{Map, Value, json};

use crate::call::{Ask, Received, tell};
use crate::pages::{page_from, paged};
use crate::parameter::Parameter;
use crate::params::missing;
use crate::reply::{Done, Refusal};
use crate::send::timing::Timing;
use crate::stop::existed;
use crate::vocabulary::{AFTER_SCHEDULE, LOCAL_TIME, REPEAT, REPEAT_UNTIL, SCHEDULE_ID, TIME_TO_SEND, TIME_ZONE};

/// What can be changed of a schedule.
pub(crate) static CHANGEABLE: &[&Parameter] = &[&TIME_TO_SEND, &LOCAL_TIME, &REPEAT, &TIME_ZONE, &REPEAT_UNTIL];

/// All schedules of the app, in pages.
pub(crate) fn list(received: &Received<'_>) -> Result<Ask, Failure> {
    let request = wire::AppRequest::Schedules(page_from(&AFTER_SCHEDULE, &received.params)?);
    let tell = tell!(Schedules(answer) => {
        let list = answer.schedules.into_iter().map(object).collect();
        Ok::<Done, Refusal>(paged(list, answer.next_after.as_deref()))
    });
    Ok(Ask::of_app(received, Lane::Normal, request, tell))
}

/// One schedule.
pub(crate) fn show(received: &Received<'_>) -> Result<Ask, Failure> {
    SCHEDULE_ID.check(received.argument)?;
    let name = wire::MessageName { id: Some(received.argument.to_owned()), job_key: None };
    let tell = tell!(Schedule(state) => Ok::<Done, Refusal>(Done::with(shown(state))));
    Ok(Ask::of_app(received, Lane::High, wire::AppRequest::Schedule(name), tell))
}

/// Changes when a schedule that waits is due.
pub(crate) fn change(received: &Received<'_>) -> Result<Ask, Failure> {
    SCHEDULE_ID.check(received.argument)?;
    let Timing { send_at_ms, local_time, repeat, .. } = Timing::read(&received.params, received.now_ms)?;
    if send_at_ms.is_none() && local_time.is_none() && repeat.is_none() {
        let expected = "a time ahead, or local_time, or repeat with time_zone";
        return Err(missing(TIME_TO_SEND.name, expected));
    }
    let id = received.argument.to_owned();
    let request = wire::AppRequest::ChangeSchedule(wire::ChangeSchedule { id, send_at_ms, local_time, repeat });
    let tell = tell!(Schedule(state) => Ok::<Done, Refusal>(Done::with(shown(state))));
    Ok(Ask::of_app(received, Lane::High, request, tell))
}

/// Deletes a schedule: it isn't carried out any more.
pub(crate) fn delete(received: &Received<'_>) -> Result<Ask, Failure> {
    SCHEDULE_ID.check(received.argument)?;
    let name = wire::MessageName { id: Some(received.argument.to_owned()), job_key: None };
    let tell = tell!(Changed(changed) => existed(&changed, "schedule"));
    Ok(Ask::of_app(received, Lane::High, wire::AppRequest::DeleteSchedule(name), tell))
}

/// A schedule as members of `data`.
pub(crate) fn shown(state: wire::ScheduleState) -> [(&'static str, Value); 11] {
    let (repeat, time_zone, until_ms) = match state.repeat {
        Some(repeat) => (Some(repeat.cron), Some(repeat.time_zone), repeat.until_ms),
        None => (None, None, None),
    };
    [
        ("id", json!(state.id)),
        ("job_key", json!(state.job_key)),
        ("state", json!(state.state)),
        ("created_at_ms", json!(state.created_at_ms)),
        ("due_ms", json!(state.due_ms)),
        ("local_time", json!(state.local_time)),
        ("repeat", json!(repeat)),
        ("time_zone", json!(time_zone)),
        ("repeat_until", json!(until_ms)),
        ("fired", json!(state.fired)),
        ("last_message", json!(state.last_message)),
    ]
}

fn object(state: wire::ScheduleState) -> Value {
    Value::Object(shown(state).into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}
