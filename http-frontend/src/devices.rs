//! Device accounts: made and renewed over HTTPS, before a device can connect.

use std::net::IpAddr;

use axum::http::StatusCode;
use idl::bus::{Call, Lane, Reply, Request};
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::{AccountId, Shard};
use ring::digest;
use serde_json::{Map, Value, json};

use crate::Shared;
use crate::call::unexpected;
use crate::metrics::Limit;
use crate::params::{Params, bad_value, missing, shown};
use crate::reply::{Done, Refusal};
use crate::request::Received;

/// Longest digest of a device's identity, longest model and platform, in characters.
const NAME_CHARS_MAX: usize = 128;
/// Longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 512;

/// Counts a try of this address; over its rate the caller learns when the next may succeed.
pub(crate) fn admit(shared: &Shared, address: IpAddr) -> Result<(), Refusal> {
    shared.account_rate.check(address).map_err(|wait| {
        shared.metrics.hit(Limit::accounts_per_address_per_minute);
        let limit = shared.limits.accounts_per_address_per_minute;
        let description = format!("this address asks for more than {limit} accounts and tokens in a minute");
        Refusal {
            failure: Failure::new(Code::TooFrequent, description),
            status: Some(StatusCode::TOO_MANY_REQUESTS),
            retry_after: Some(wait),
        }
    })
}

/// `POST /device/v1/account`: makes an account for a device. Asking again makes another.
pub(crate) async fn create(shared: &Shared, received: &Received) -> Result<Done, Failure> {
    let params = &received.params;
    let device = name(params, "device")?
        .ok_or_else(|| missing("device", "a digest of the device's identity, at most 128 characters"))?;
    let hash = digest::digest(&digest::SHA256, device.as_bytes());
    let whose = Shard(u16::from_be_bytes([hash.as_ref()[0], hash.as_ref()[1]]));
    let request = Request::CreateAccount(wire::CreateAccount {
        device,
        model: name(params, "model")?,
        platform: name(params, "platform")?,
    });
    granted(shared, received, whose, request).await
}

/// `POST /device/v1/token`: a new token for the old one.
pub(crate) async fn renew(shared: &Shared, received: &Received) -> Result<Done, Failure> {
    let params = &received.params;
    let account = account(params, &shared.domain)?;
    let token = params.required("token", "the account's token")?;
    if token.len() > TOKEN_BYTES_MAX {
        // A token is never shown.
        return Err(bad_value("token", &format!("{} bytes long", token.len()), "a token as it was given"));
    }
    let request = Request::RenewToken(wire::RenewToken { account: account.to_string(), token: token.to_owned() });
    granted(shared, received, Shard::of_account(account), request).await
}

async fn granted(shared: &Shared, received: &Received, whose: Shard, request: Request) -> Result<Done, Failure> {
    let name = request.name();
    let call = Call { lane: Lane::High, shard: whose, deadline: received.deadline, request };
    let Reply::Account(granted) = shared.bus.request(call).await? else { return Err(unexpected(name)) };
    let data = Map::from_iter([
        ("jid".to_owned(), Value::String(format!("{}@{}", granted.account, shared.domain))),
        ("token".to_owned(), Value::String(granted.token)),
        ("endpoints".to_owned(), json!(shared.endpoints())),
    ]);
    Ok(Done { data, info: String::new() })
}

/// The account, as its id or its address.
fn account(params: &Params, domain: &str) -> Result<AccountId, Failure> {
    let expected = format!("an account's id, or its address <id>@{domain}");
    let (parameter, text) = match params.text("account")? {
        Some(text) => ("account", text),
        None => ("jid", params.text("jid")?.ok_or_else(|| missing("account", &expected))?),
    };
    let id = match text.split_once('@') {
        Some((id, of)) if of.eq_ignore_ascii_case(domain) => Some(id),
        Some(_) => None,
        None => Some(text),
    };
    id.and_then(|id| id.parse().ok()).ok_or_else(|| bad_value(parameter, &shown(text), &expected))
}

fn name(params: &Params, parameter: &str) -> Result<Option<String>, Failure> {
    let Some(text) = params.text(parameter)? else { return Ok(None) };
    if text.chars().count() > NAME_CHARS_MAX || text.chars().any(char::is_control) {
        let expected = format!("at most {NAME_CHARS_MAX} characters, none of them a control character");
        return Err(bad_value(parameter, &shown(text), &expected));
    }
    Ok(Some(text.to_owned()))
}
