//! Device accounts: made and renewed over HTTPS, before a device can connect.

use std::net::IpAddr;

use axum::http::StatusCode;
use idl::bus::{Call, Lane, Reply, Request};
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::{AccountId, Shard};
use ring::digest;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::Shared;
use crate::call::unexpected;
use crate::metrics::Limit;
use crate::params::{Params, bad_value, missing, shown};
use crate::reply::{Done, Refusal};
use crate::routes::What;
use crate::vocabulary::{ACCOUNT, DEVICE, DEVICE_MODEL, PLATFORM, TOKEN};

/// Counts a try of this address; over its rate the caller learns when the next may succeed.
pub(crate) fn admit(shared: &Shared, address: IpAddr) -> Result<(), Refusal> {
    shared.account_rate.check(address).map_err(|wait| {
        shared.metrics.hit(Limit::accounts_per_address_per_minute);
        let limit = shared.limits.accounts_per_address_per_minute;
        let description = format!("this address asks for more than {limit} accounts and tokens in a minute");
        let refusal = Refusal::with_status(StatusCode::TOO_MANY_REQUESTS, Code::TooFrequent, description);
        Refusal { retry_after: Some(wait), ..refusal }
    })
}

/// What a device asks the middle tier for.
pub(crate) struct DeviceAsk {
    shard: Shard,
    request: Request,
}

impl DeviceAsk {
    /// Reads a request: an account for a device (asking again makes another), or a new token for the old one.
    pub(crate) fn read(shared: &Shared, what: What, params: &Params<'_>) -> Result<Self, Failure> {
        if what == What::RenewToken {
            let account = account(params, &shared.domain)?;
            let token = TOKEN.required(params)?.to_owned();
            let request = Request::RenewToken(wire::RenewToken { account: account.to_string(), token });
            return Ok(Self { shard: Shard::of_account(account), request });
        }
        let device = DEVICE.required(params)?.to_owned();
        let hash = digest::digest(&digest::SHA256, device.as_bytes());
        let (model, platform) = (DEVICE_MODEL.owned(params)?, PLATFORM.owned(params)?);
        let shard = Shard(u16::from_be_bytes([hash.as_ref()[0], hash.as_ref()[1]]));
        Ok(Self { shard, request: Request::CreateAccount(wire::CreateAccount { device, model, platform }) })
    }

    /// Asks the middle tier. What a device gets is an account and where to connect.
    pub(crate) async fn carry(self, shared: &Shared, deadline: Instant) -> Result<Done, Failure> {
        let name = self.request.name();
        let call = Call { lane: Lane::High, shard: self.shard, deadline, request: self.request };
        let Reply::Account(granted) = shared.bus.request(call).await? else { return Err(unexpected(name)) };
        Ok(Done::with([
            ("jid", Value::String(format!("{}@{}", granted.account, shared.domain))),
            ("token", Value::String(granted.token)),
            ("endpoints", json!(shared.endpoints())),
        ]))
    }
}

/// The account, as its id or its address.
fn account(params: &Params<'_>, domain: &str) -> Result<AccountId, Failure> {
    let expected = format!("an account's id, or its address <id>@{domain}");
    let (parameter, text) = match params.text(ACCOUNT.name)? {
        Some(text) => (ACCOUNT.name, text),
        None => ("jid", params.text("jid")?.ok_or_else(|| missing(ACCOUNT.name, &expected))?),
    };
    let id = match text.split_once('@') {
        Some((id, of)) if of.eq_ignore_ascii_case(domain) => Some(id),
        Some(_) => None,
        None => Some(text),
    };
    id.and_then(|id| id.parse().ok()).ok_or_else(|| bad_value(parameter, &shown(text), &expected))
}
