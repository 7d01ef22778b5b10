//! Many messages in one request, each for a target of its own.

use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use serde_json::{Map, Value, json};

use crate::call::{Ask, Received, tell};
use crate::params::{MESSAGES as MESSAGES_NAME, Params, bad_value};
use crate::reply::{Data, Done, Refusal, audience_count};
use crate::send::target::{Packages, To};
use crate::send::{message, timing};
use crate::vocabulary::{DRY_RUN, MESSAGES, MESSAGES_MAX, TIME_TO_SEND};

/// Accepts up to 1,000 messages. What is wrong with one of them refuses that one alone; a request none of whose messages
/// is accepted fails as the first of them did.
pub(crate) fn ask(received: &Received<'_>, to: To) -> Result<Ask, Refusal> {
    let params = &received.params;
    let elements = elements(params)?;
    let common = Common { time_to_send: TIME_TO_SEND.integer(params)?, dry_run: DRY_RUN.flag(params)? };
    let mut sends = Vec::with_capacity(elements.len());
    let mut refused = Vec::new();
    let count = elements.len();
    for (index, element) in elements.into_iter().enumerate() {
        match one(element, to, &common, received.now_ms) {
            Ok(send) => sends.push(send),
            Err(failure) => refused.push((index, named(index, &failure))),
        }
    }
    if sends.is_empty() {
        return Err(none_accepted(&refused));
    }
    let request = wire::AppRequest::SendMany(wire::SendMany { sends });
    let tell = tell!(AcceptedMany(answer) => accepted_many(to, count, refused, answer));
    Ok(Ask::of_app(received, Lane::Normal, request, tell))
}

/// The array in the parameter `messages`.
fn elements(params: &Params<'_>) -> Result<Vec<Value>, Failure> {
    let text = MESSAGES.required(params)?;
    let value: Value = serde_json::from_str(text)
        .map_err(|error| bad_value(MESSAGES.name, &format!("not valid JSON: {error}"), MESSAGES.right))?;
    let Value::Array(elements) = value else {
        return Err(bad_value(MESSAGES.name, "JSON, but no array", MESSAGES.right));
    };
    match elements.len() {
        0 => Err(MESSAGES.missing()),
        1..=MESSAGES_MAX => Ok(elements),
        count => Err(MESSAGES.wrong_because(&format!("an array of {count}"))),
    }
}

/// What the request says for all its messages.
struct Common {
    time_to_send: Option<i64>,
    dry_run: bool,
}

/// One `{target, message}`.
fn one(element: Value, to: To, common: &Common, now_ms: u64) -> Result<wire::Send, Failure> {
    const EXPECTED: &str = "an object {target, message}";
    let wrong = |found: &str| Failure::new(Code::BadValue, format!("it is {found}: expected {EXPECTED}"));
    let Value::Object(mut members) = element else { return Err(wrong("no object")) };
    let value = match members.remove("target") {
        Some(Value::String(text)) if !text.is_empty() => text,
        Some(Value::Number(number)) => number.to_string(),
        None | Some(Value::Null | Value::String(_)) => return Err(Failure::new(Code::Missing, "it has no target")),
        Some(_) => return Err(wrong("an object whose target is neither a text nor a number")),
    };
    let Some(Value::Object(message)) = members.remove("message") else {
        return Err(wrong("an object without an object named message"));
    };
    let params = Params::from_members(message)?;
    let packages = Packages::One.read(&params)?;
    let mut send = message::read(&params, to.of(vec![value]), packages, now_ms)?;
    let has_time = send.send_at_ms.is_some() || send.local_time.is_some() || send.repeat.is_some();
    if let Some(ms) = common.time_to_send.filter(|_| !has_time) {
        send.send_at_ms = timing::ahead(ms, now_ms)?;
    }
    if common.dry_run {
        send.dry_run = Some(true);
    }
    Ok(send)
}

/// A failure of one message, saying which.
fn named(index: usize, failure: &Failure) -> Failure {
    Failure::new(failure.code, format!("{MESSAGES_NAME}[{index}]: {}", failure.description))
}

fn accepted_many(
    to: To,
    count: usize,
    mut refused: Vec<(usize, Failure)>,
    answer: wire::AcceptedMany,
) -> Result<Done, Refusal> {
    let here: Vec<usize> = refused.iter().map(|(index, _)| *index).collect();
    let sent = (0..count).filter(|index| here.binary_search(index).is_err());
    let mut ids = vec![Value::Null; count];
    let (mut first, mut bad, mut total): (_, Vec<String>, Option<wire::AudienceCount>) = (None, Vec::new(), None);
    for ((index, accepted), status) in sent.zip(answer.accepted).zip(answer.statuses) {
        bad.extend(accepted.bad_targets.unwrap_or_default());
        if status.code != 0 {
            refused.push((index, named(index, &Failure::from_status(status))));
        } else if let Some(count) = accepted.audience {
            total = Some(sum(total, count));
        }
        if let (Some(id), Some(place)) = (accepted.id, ids.get_mut(index)) {
            *place = Value::from(id.as_str());
            first.get_or_insert(id);
        }
    }
    refused.sort_by_key(|(index, _)| *index);
    if refused.len() >= count {
        return Err(none_accepted(&refused));
    }
    let mut data = Map::from_iter([("ids".to_owned(), Value::from(ids)), ("errors".to_owned(), errors(&refused))]);
    data.extend(first.map(|id| ("id".to_owned(), Value::from(id))));
    data.extend(to.bad(Some(bad)).map(|(member, bad)| (member.to_owned(), Value::from(bad))));
    data.extend(total.map(|total| ("audience".to_owned(), audience_count(&total))));
    let info = format!("Received push messages for {} {}", count - refused.len(), to.name());
    Ok(Done { data: Data::Members(data), info: info.into() })
}

/// What several dry runs counted together: as exact as the least exact of them.
fn sum(total: Option<wire::AudienceCount>, count: wire::AudienceCount) -> wire::AudienceCount {
    let Some(total) = total else { return count };
    wire::AudienceCount {
        registrations: total.registrations.saturating_add(count.registrations),
        online: total.online.saturating_add(count.online),
        how: if total.how == "exact" { count.how } else { total.how },
    }
}

fn none_accepted(refused: &[(usize, Failure)]) -> Refusal {
    let failure = refused.first().map_or_else(|| MESSAGES.missing(), |(_, failure)| failure.clone());
    let data = Map::from_iter([("errors".to_owned(), errors(refused))]);
    Refusal { data, ..Refusal::from(failure) }
}

fn errors(refused: &[(usize, Failure)]) -> Value {
    let error = |(index, failure): &(usize, Failure)| json!({"index": index, "code": failure.code.number(), "description": failure.description});
    refused.iter().map(error).collect()
}
