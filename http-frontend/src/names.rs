//! Questions about registrations: their names, whether they are connected, which of them turned out to be invalid.

use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::error::Failure;
use serde_json::{Value, json};

use crate::call::{Ask, Received, tell};
use crate::reply::{Done, Refusal};
use crate::send::target::To;
use crate::vocabulary::{ONE_USER_ACCOUNT, REGISTRATION_ID, REGISTRATION_IDS};

/// Which names of a registration are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    Aliases,
    UserAccounts,
    Topics,
}

/// The names of one registration.
pub(crate) fn of_registration(received: &Received<'_>, names: Names) -> Result<Ask, Failure> {
    let regid = REGISTRATION_ID.required(&received.params)?;
    let kind = match names {
        Names::Aliases => 1,
        Names::UserAccounts => 2,
        Names::Topics => 3,
    };
    let request = wire::AppRequest::NamesOf(wire::NamesOf { regid: regid.to_owned(), kind });
    Ok(Ask::of_registration(received, regid, request, tell!(Texts(texts) => list(texts))))
}

/// The registrations of one user account.
pub(crate) fn of_user_account(received: &Received<'_>) -> Result<Ask, Failure> {
    let user_account = ONE_USER_ACCOUNT.required(&received.params)?.to_owned();
    let request = wire::AppRequest::RegidsOf(wire::RegidsOf { user_account });
    Ok(Ask::of_app(received, Lane::High, request, tell!(Texts(texts) => list(texts))))
}

/// Takes up to 1,000 targets off the list of those that turned out to be invalid. What was answered is not listed again.
pub(crate) fn take_invalid(received: &Received<'_>, of: To) -> Ask {
    let request = wire::AppRequest::TakeInvalid(wire::TakeInvalid { kind: of.kind() });
    Ask::of_app(received, Lane::Normal, request, tell!(Texts(texts) => list(texts)))
}

/// Which registrations are connected, and since when the others are not.
pub(crate) fn presence(received: &Received<'_>) -> Result<Ask, Failure> {
    ask_states(received, tell!(Online(answer) => told(presence_of(&answer.states))))
}

/// Which registration ids are valid.
pub(crate) fn validation(received: &Received<'_>) -> Result<Ask, Failure> {
    let tell = tell!(Online(answer) => {
        let valid: Vec<&str> = answer.states.iter().filter(|state| state.known).map(|state| &*state.regid).collect();
        told(Done::with([("list", json!(valid)), ("bad_regids", bad(&answer.states))]))
    });
    ask_states(received, tell)
}

fn ask_states(received: &Received<'_>, tell: crate::call::Tell) -> Result<Ask, Failure> {
    let regids = REGISTRATION_IDS.required_list(&received.params)?;
    let one = if let [regid] = regids.as_slice() { Some(regid.clone()) } else { None };
    let request = wire::AppRequest::Online(wire::OnlineOf { regids });
    Ok(match one {
        Some(regid) => Ask::of_registration(received, &regid, request, tell),
        None => Ask::of_app(received, Lane::Normal, request, tell),
    })
}

fn presence_of(states: &[wire::OnlineState]) -> Done {
    let member = |state: &wire::OnlineState| json!({"registration_id": state.regid, "online": state.online, "last_seen": state.last_seen_ms});
    let list: Vec<Value> = states.iter().filter(|state| state.known).map(member).collect();
    let mut members = vec![("bad_regids", bad(states))];
    // Who asked for one may look for it in `data` itself.
    if let [state] = states
        && state.known
    {
        members.push(("registration_id", json!(state.regid)));
        members.push(("online", json!(state.online)));
        members.push(("last_seen", json!(state.last_seen_ms)));
    }
    members.push(("list", Value::from(list)));
    Done::with(members)
}

/// Those that are no registrations of the app, joined by commas.
fn bad(states: &[wire::OnlineState]) -> Value {
    let bad: Vec<&str> = states.iter().filter(|state| !state.known).map(|state| &*state.regid).collect();
    Value::from(bad.join(","))
}

fn list(texts: wire::Texts) -> Result<Done, Refusal> {
    told(Done::with([("list", Value::from(texts.texts))]))
}

#[expect(clippy::unnecessary_wraps, reason = "what the middle tier answers is told as a result")]
fn told(done: Done) -> Result<Done, Refusal> {
    Ok(done)
}
