//! One registration as it stands, and the receipts of all.

use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::error::Failure;
use serde_json::{Value, json};

use crate::call::{Ask, Received, tell};
use crate::pages::{page_from, paged};
use crate::reply::{Done, Refusal};
use crate::vocabulary::{REGID, SINCE};

/// Attributes, names, topics, last contact and mailbox of one registration.
pub(crate) fn show(received: &Received<'_>) -> Result<Ask, Failure> {
    REGID.check(received.argument)?;
    let request = wire::AppRequest::Registration(wire::Name { name: received.argument.to_owned() });
    let tell = tell!(Registration(state) => Ok::<Done, Refusal>(Done::with([
        ("registration_id", json!(state.regid)),
        ("online", json!(state.online)),
        ("last_seen", json!(state.last_seen_ms)),
        ("enabled", json!(state.enabled)),
        ("created_at_ms", json!(state.created_at_ms)),
        ("attributes", json!(state.attributes)),
        ("aliases", json!(state.aliases)),
        ("user_accounts", json!(state.user_accounts)),
        ("topics", json!(state.topics)),
        ("mailbox_length", json!(state.mailbox_length)),
    ])));
    Ok(Ask::of_registration(received, received.argument, request, tell))
}

/// Receipts again, in order. `next` goes on after the last of them, also where there are none yet.
pub(crate) fn receipts(received: &Received<'_>) -> Result<Ask, Failure> {
    let request = wire::AppRequest::Receipts(page_from(&SINCE, &received.params)?);
    let tell = tell!(Receipts(answer) => {
        let list = answer.receipts.iter().map(receipt).collect();
        Ok::<Done, Refusal>(paged(list, Some(&answer.next_after)))
    });
    Ok(Ask::of_app(received, Lane::Normal, request, tell))
}

fn receipt(receipt: &wire::Receipt) -> Value {
    json!({
        "id": receipt.id,
        "message": receipt.message,
        "type": receipt.kind,
        "target": receipt.target,
        "timestamp": receipt.at_ms,
        "param": receipt.param,
        "job_key": receipt.job_key,
        "registration_id": receipt.regid,
    })
}
