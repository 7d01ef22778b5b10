//! Messages that shall not go out, or shall be taken back: schedules, stops and revocations as Mi Push has them.

use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use serde_json::json;

use crate::call::{Ask, Received, Tell, tell};
use crate::params::missing;
use crate::reply::{Done, Refusal};
use crate::schedules::shown as shown_schedule;
use crate::send::target::{Packages, To};
use crate::vocabulary::{ID, JOB_ID, JOB_KEYS, MSG_IDS, NOTIFY_ID, SCHEDULE_JOB_KEY};

/// What is asked about a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Schedule {
    Exists,
    Show,
    Delete,
}

/// A schedule, named by its id or by its job key.
pub(crate) fn schedule(received: &Received<'_>, what: Schedule) -> Result<Ask, Failure> {
    let params = &received.params;
    let (id, job_key) = (JOB_ID.owned(params)?, SCHEDULE_JOB_KEY.owned(params)?);
    if id.is_none() && job_key.is_none() {
        return Err(missing(JOB_ID.name, "the id of a scheduled message, or its jobkey"));
    }
    let job_key = job_key.filter(|_| id.is_none());
    let name = wire::MessageName { id, job_key };
    let (request, tell): (_, Tell) = match what {
        Schedule::Delete => {
            (wire::AppRequest::DeleteSchedule(name), tell!(Changed(changed) => existed(&changed, "schedule")))
        }
        Schedule::Exists => (
            wire::AppRequest::Schedule(name),
            tell!(Schedule(state) => match state.state.as_str() {
                "done" => Err(Failure::new(Code::NotFound, "the schedule has been carried out").into()),
                _ => Ok(Done::default()),
            }),
        ),
        Schedule::Show => (
            wire::AppRequest::Schedule(name),
            tell!(Schedule(state) => Ok::<Done, Refusal>(Done::with(shown_schedule(state)))),
        ),
    };
    Ok(Ask::of_app(received, Lane::High, request, tell))
}

/// Fails where there was no such thing to change.
pub(crate) fn existed(changed: &wire::Changed, what: &str) -> Result<Done, Refusal> {
    if changed.existed {
        return Ok(Done::default());
    }
    Err(Failure::new(Code::NotFound, format!("there is no {what} of that name in this application")).into())
}

/// Which messages a path stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// One, by its id.
    Id,
    /// Several, by their ids.
    Ids,
    /// All with these job keys.
    JobKeys,
    /// By either, also what was delivered already.
    Revoke,
}

/// Stops messages: what was not delivered is dropped. Doing it again finds them again and changes nothing.
pub(crate) fn stop(received: &Received<'_>, what: Stop) -> Result<Ask, Failure> {
    let params = &received.params;
    let names = match what {
        Stop::Id => ids(vec![ID.required(params)?.to_owned()]),
        Stop::Ids => ids(MSG_IDS.required_list(params)?),
        Stop::JobKeys => job_keys(JOB_KEYS.required_list(params)?),
        Stop::Revoke => named(received)?.ok_or_else(|| missing("msg_id", "the id of a message, or its job_key"))?,
    };
    Ok(ask_stop(received, names, what == Stop::Revoke))
}

/// Stops the messages with these names; with `recall`, what was delivered is taken back too.
pub(crate) fn ask_stop(received: &Received<'_>, names: Vec<wire::MessageName>, recall: bool) -> Ask {
    let request = wire::AppRequest::Stop(wire::Stop { names, recall });
    let tell = tell!(Stopped(stopped) => {
        if stopped.found.is_empty() {
            let description = format!("no message has this name: {}", stopped.unknown.join(", "));
            Err(Failure::new(Code::NotFound, description).into())
        } else {
            Ok(Done::with([("found", json!(stopped.found)), ("unknown", json!(stopped.unknown))]))
        }
    });
    Ask::of_app(received, Lane::High, request, tell)
}

/// Takes back what targets show: a message by its id or job key, or whatever they show under a `notify_id`.
pub(crate) fn recall(received: &Received<'_>, to: To) -> Result<Ask, Failure> {
    let params = &received.params;
    if let Some(names) = named(received)? {
        return Ok(ask_stop(received, names, true));
    }
    let notify_id = NOTIFY_ID
        .integer(params)?
        .ok_or_else(|| missing(NOTIFY_ID.name, "the notify_id of what is shown, or the msg_id of a message"))?;
    let target = to.read(params)?;
    let (lane, shard) = (target.lane, target.shard(received.secret));
    let packages = Packages::Several.read(params)?;
    let request = wire::AppRequest::Recall(wire::Recall { target: target.wire, notify_id, packages });
    // Whether anybody shows such a notification only the devices know.
    let tell = tell!(Changed(_) => Ok::<Done, Refusal>(Done::default()));
    Ok(Ask::new(received, lane, shard, request, tell))
}

/// The messages that `msg_id` and `job_key` name, if any.
fn named(received: &Received<'_>) -> Result<Option<Vec<wire::MessageName>>, Failure> {
    let mut names = ids(MSG_IDS.list(&received.params)?);
    names.extend(job_keys(JOB_KEYS.list(&received.params)?));
    let count = names.len();
    MSG_IDS.check_count(count)?;
    Ok((count > 0).then_some(names))
}

fn ids(ids: Vec<String>) -> Vec<wire::MessageName> {
    ids.into_iter().map(|id| wire::MessageName { id: Some(id), job_key: None }).collect()
}

fn job_keys(keys: Vec<String>) -> Vec<wire::MessageName> {
    keys.into_iter().map(|key| wire::MessageName { id: None, job_key: Some(key) }).collect()
}
