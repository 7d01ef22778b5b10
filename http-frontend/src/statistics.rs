//! Counters by day and the state of messages, as Mi Push tells them.

use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::Offset;
use serde_json::{Map, Value, json};

use crate::call::{Ask, Received, tell};
use crate::params::missing;
use crate::reply::{Done, Refusal};
use crate::vocabulary::{BEGIN_TIME, END_DATE, END_TIME, JOB_KEY, MSG_ID, START_DATE, parse_day};

/// Most days that are counted at once.
const DAYS_MAX: i32 = 31;
/// Most messages that are listed.
const MESSAGES_MAX: i32 = 100;

/// What was sent, delivered and clicked, day by day; days without anything too.
pub(crate) fn counters(received: &Received<'_>) -> Result<Ask, Failure> {
    let params = &received.params;
    let (first_day, last_day) = (START_DATE.required(params)?, END_DATE.required(params)?);
    let (Some(first), Some(last)) = (parse_day(first_day), parse_day(last_day)) else {
        return Err(START_DATE.wrong(first_day));
    };
    let days = days_between(first, last);
    if !(0..DAYS_MAX).contains(&days) {
        return Err(END_DATE.wrong(last_day));
    }
    let request =
        wire::AppRequest::Counters(wire::Counters { first_day: first_day.to_owned(), last_day: last_day.to_owned() });
    let tell = tell!(Days(answer) => {
        let days = answer.days.iter().map(of_day).collect();
        Ok::<Done, Refusal>(Done::with([("data", days)]))
    });
    Ok(Ask::of_app(received, Lane::Normal, request, tell))
}

fn days_between(first: Date, last: Date) -> i32 {
    last.since(first).map_or(-1, |span| span.get_days())
}

fn of_day(day: &wire::DayCounters) -> Value {
    json!({
        "date": day.day,
        "alias_recipients": day.alias_recipients,
        "useraccount_recipients": day.user_account_recipients,
        "regid_recipients": day.regid_recipients,
        "single_recipients": day.single_recipients,
        "broadcast_recipients": day.broadcast_recipients,
        "received": day.delivered,
        "click": day.clicked,
        "messages": day.messages,
    })
}

/// One message, or all with a job key as one.
pub(crate) fn status(received: &Received<'_>) -> Result<Ask, Failure> {
    let params = &received.params;
    let (id, job_key) = (MSG_ID.owned(params)?, JOB_KEY.owned(params)?);
    if id.is_none() && job_key.is_none() {
        return Err(missing(MSG_ID.name, "the id of a message, or its job_key"));
    }
    // The id says it more precisely.
    let job_key = job_key.filter(|_| id.is_none());
    let whole_key = job_key.clone();
    let request = wire::AppRequest::MessageStatus(wire::MessageName { id, job_key });
    let tell = tell!(Messages(answer) => match (answer.messages.as_slice(), whole_key) {
        ([], _) => Err(Failure::from(Code::NotFound).into()),
        (messages, Some(key)) => Ok(Done::with([
            ("data", Value::from(together(messages, &key))),
            ("messages", messages.iter().map(of_message).map(Value::from).collect()),
        ])),
        ([message, ..], None) => Ok(Done::with([("data", Value::from(of_message(message)))])),
    });
    Ok(Ask::of_app(received, Lane::Normal, request, tell))
}

/// The newest 100 messages accepted in a time.
pub(crate) fn status_between(received: &Received<'_>) -> Result<Ask, Failure> {
    let params = &received.params;
    let begin_ms = BEGIN_TIME.integer(params)?.ok_or_else(|| BEGIN_TIME.missing())?;
    let end_ms = END_TIME.integer(params)?.ok_or_else(|| END_TIME.missing())?;
    if end_ms < begin_ms {
        return Err(END_TIME.wrong(&end_ms.to_string()));
    }
    let request = wire::AppRequest::Messages(wire::Messages { begin_ms, end_ms, limit: MESSAGES_MAX });
    let tell = tell!(Messages(answer) => {
        let messages = answer.messages.iter().map(of_message).map(Value::from).collect();
        Ok::<Done, Refusal>(Done::with([("data", messages)]))
    });
    Ok(Ask::of_app(received, Lane::Normal, request, tell))
}

/// A message in Mi Push's words.
fn of_message(message: &wire::MessageState) -> Map<String, Value> {
    let kind = match message.kind {
        1 => "Common",
        2 => "Alias",
        3 => "UserAccount",
        _ => "Topic",
    };
    let created = Timestamp::from_millisecond(message.created_at_ms).unwrap_or_default();
    let members = [
        ("id", json!(message.id)),
        ("create_time", json!(Offset::UTC.to_datetime(created).strftime("%Y-%m-%d %H:%M:%S").to_string())),
        ("create_timestamp", json!(message.created_at_ms)),
        ("time_to_live", json!(format!("{}s", message.ttl_ms / 1000))),
        ("msg_type", json!(kind)),
        ("state", json!(message.state)),
        ("job_key", json!(message.job_key)),
        ("resolved_method", json!(message.how_resolved)),
    ];
    let mut map: Map<String, Value> = members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let counts = Counts {
        resolved: message.resolved,
        delivered: message.delivered,
        click: message.clicked,
        invalid: message.invalid_targets,
        dropped: message.dropped.unwrap_or(0),
    };
    counts.insert_into(&mut map);
    map
}

/// Several messages as one: the newest, with the sums of all.
fn together(messages: &[wire::MessageState], key: &str) -> Map<String, Value> {
    let newest = messages.iter().max_by_key(|message| message.created_at_ms);
    let mut map = newest.map(of_message).unwrap_or_default();
    map.insert("job_key".to_owned(), Value::from(key));
    let sum = |count: fn(&wire::MessageState) -> i64| messages.iter().map(count).fold(0, i64::saturating_add);
    let counts = Counts {
        resolved: sum(|message| message.resolved),
        delivered: sum(|message| message.delivered),
        click: sum(|message| message.clicked),
        invalid: sum(|message| message.invalid_targets),
        dropped: sum(|message| message.dropped.unwrap_or(0)),
    };
    counts.insert_into(&mut map);
    map
}

struct Counts {
    resolved: i64,
    delivered: i64,
    click: i64,
    invalid: i64,
    dropped: i64,
}

impl Counts {
    fn insert_into(&self, map: &mut Map<String, Value>) {
        let Self { resolved, delivered, click, invalid, dropped } = *self;
        let members = [
            ("resolved", json!(resolved)),
            ("delivered", json!(delivered)),
            ("delivery_rate", json!(percent(delivered, resolved))),
            ("click", json!(click)),
            ("click_rate", json!(percent(click, delivered))),
            ("msg_send", json!(resolved)),
            ("msg_display", json!(delivered)),
            ("raw_counter", json!(resolved)),
            ("invalid_target", json!(invalid)),
            ("dropped", json!(dropped)),
            // Told by Mi Push, never counted here.
            ("bar_closed", json!(0)),
            ("app_not_register", json!(0)),
            ("device_condition_unmatch", json!(0)),
        ];
        map.extend(members.map(|(name, value)| (name.to_owned(), value)));
    }
}

/// A share in whole per cent, rounded.
fn percent(part: i64, whole: i64) -> String {
    if whole <= 0 {
        return "0%".to_owned();
    }
    let (part, whole) = (i128::from(part.max(0)), i128::from(whole));
    format!("{}%", (part * 200 + whole) / (whole * 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_to_whole_per_cent() {
        for (part, whole, expected) in
            [(0, 0, "0%"), (4, 7, "57%"), (1, 3, "33%"), (2, 3, "67%"), (1, 200, "1%"), (5, 5, "100%"), (-1, 5, "0%")]
        {
            assert_eq!(percent(part, whole), expected, "{part}/{whole}");
        }
        assert_eq!(percent(i64::MAX, 1), format!("{}00%", i64::MAX));
    }

    #[test]
    fn days_are_counted_over_months_and_years() {
        let between = |first, last| days_between(parse_day(first).expect("a day"), parse_day(last).expect("a day"));
        assert_eq!(between("20261231", "20261231"), 0);
        assert_eq!(between("20261215", "20270114"), 30);
        assert_eq!(between("20270101", "20261231"), -1);
        assert_eq!(between("00010101", "99991231"), 3_652_058);
    }
}
