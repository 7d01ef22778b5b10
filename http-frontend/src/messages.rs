//! Messages in Campanile's own manner: sent to an expression or segment, looked at, traced and recalled.

use idl::audience::{Audience, InvalidExpression};
use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use serde_json::{Map, Value, json};

use crate::call::{Ask, Received, tell};
use crate::parameter::Parameter;
use crate::params::{bad_value, missing};
use crate::reply::{Done, Refusal};
use crate::send;
use crate::send::target::{Packages, Target, To};
use crate::stop::ask_stop;
use crate::vocabulary::{AUDIENCE, MESSAGE_ID, REGISTRATION_ID, SEGMENT};

/// Sends to those for whom an expression holds.
pub(crate) fn send(received: &Received<'_>) -> Result<Ask, Failure> {
    let params = &received.params;
    let (name, target) = match (AUDIENCE.text(params)?, SEGMENT.text(params)?) {
        (Some(text), None) => ("AUDIENCE", Target::broadcast(&expression(&AUDIENCE, text)?)),
        (None, Some(name)) => ("SEGMENT", Target::segment(name)),
        (None, None) => return Err(missing(AUDIENCE.name, "an expression, or the name of a segment in segment")),
        (Some(_), Some(_)) => return Err(bad_value(AUDIENCE.name, "given beside segment", "one of them")),
    };
    send::of(received, To::Everyone, name, target, Packages::Several.read(params)?)
}

/// Reads an expression; the failure says where it stops being one.
pub(crate) fn expression(parameter: &Parameter, text: &str) -> Result<Audience, Failure> {
    text.parse().map_err(|invalid: InvalidExpression| {
        Failure::new(Code::BadExpression, format!("the parameter {} can't be read: {invalid}", parameter.name))
    })
}

/// State and counts of one message.
pub(crate) fn show(received: &Received<'_>) -> Result<Ask, Failure> {
    let request = wire::AppRequest::MessageStatus(name(received)?);
    let tell = tell!(Messages(answer) => match answer.messages.into_iter().next() {
        Some(message) => Ok(Done::with(shown(message))),
        None => Err(Refusal::from(Failure::from(Code::NotFound))),
    });
    Ok(Ask::of_app(received, Lane::High, request, tell))
}

/// Recalls one message: what was not delivered is dropped, what is shown is taken back.
pub(crate) fn recall(received: &Received<'_>) -> Result<Ask, Failure> {
    let names = vec![name(received)?];
    Ok(ask_stop(received, names, true))
}

/// What happened to one message for one registration.
pub(crate) fn trace(received: &Received<'_>) -> Result<Ask, Failure> {
    let regid = REGISTRATION_ID.required(&received.params)?;
    MESSAGE_ID.check(received.argument)?;
    let id = received.argument.to_owned();
    let head = [("id", json!(id)), ("registration_id", json!(regid))];
    let request = wire::AppRequest::Trace(wire::Trace { id, regid: regid.to_owned() });
    let tell = tell!(Traced(traced) => {
        let steps = traced.steps.into_iter().map(step).collect();
        Ok::<Done, Refusal>(Done::with(head.into_iter().chain([("steps", steps)])))
    });
    Ok(Ask::of_registration(received, regid, request, tell))
}

/// The message that the path names.
fn name(received: &Received<'_>) -> Result<wire::MessageName, Failure> {
    MESSAGE_ID.check(received.argument)?;
    Ok(wire::MessageName { id: Some(received.argument.to_owned()), job_key: None })
}

fn shown(message: wire::MessageState) -> [(&'static str, Value); 15] {
    let target = match message.kind {
        1 => "registration_id",
        2 => "alias",
        3 => "user_account",
        _ => "audience",
    };
    [
        ("id", json!(message.id)),
        ("target", json!(target)),
        ("state", json!(message.state)),
        ("created_at_ms", json!(message.created_at_ms)),
        ("time_to_live", json!(message.ttl_ms)),
        ("resolved", json!(message.resolved)),
        ("resolved_method", json!(message.how_resolved)),
        ("delivered", json!(message.delivered)),
        ("clicked", json!(message.clicked)),
        ("invalid_targets", json!(message.invalid_targets)),
        ("dropped", json!(message.dropped.unwrap_or(0))),
        ("job_key", json!(message.job_key)),
        ("topic", json!(message.topic)),
        ("due_ms", json!(message.due_ms)),
        ("messages", json!(message.messages.unwrap_or_default())),
    ]
}

/// One step of a trace; what isn't known of it is left out.
fn step(step: wire::TraceStep) -> Value {
    let mut members = Map::from_iter([("what".to_owned(), Value::from(step.what))]);
    members.extend(step.at_ms.map(|at_ms| ("at_ms".to_owned(), Value::from(at_ms))));
    members.extend(step.front.map(|front| ("front".to_owned(), Value::from(front))));
    members.extend(step.reason.map(|reason| ("reason".to_owned(), Value::from(reason))));
    Value::Object(members)
}
