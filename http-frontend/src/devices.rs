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

use crate::call::unexpected;
use crate::metrics::Limit;
use crate::params::{Params, bad_value, missing, shown};
use crate::reply::{Done, Refusal};
use crate::routes::What;
use crate::vocabulary::{ACCOUNT, DEVICE, DEVICE_MODEL, PLATFORM, TOKEN};
use crate::{Endpoint, EndpointTls, Shared};

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
            ("endpoints", json!(spread(&shared.endpoints(), &granted.account))),
        ]))
    }
}

/// The endpoints in an account's own order: devices begin with the first, so those of one kind take turns, account by account.
fn spread<'a>(endpoints: &'a [Endpoint], account: &str) -> Vec<&'a Endpoint> {
    let turn = account.parse().map_or(0, |account| usize::from(Shard::of_account(account).0));
    let of_kind = |tls| endpoints.iter().filter(move |endpoint| endpoint.tls == tls);
    let turned = |tls| {
        let (endpoints, count) = (of_kind(tls), of_kind(tls).count().max(1));
        endpoints.cycle().skip(turn % count).take(count)
    };
    let (mut direct, mut starttls) = (turned(EndpointTls::Direct), turned(EndpointTls::StartTls));
    let next = |endpoint: &Endpoint| match endpoint.tls {
        EndpointTls::Direct => direct.next(),
        EndpointTls::StartTls => starttls.next(),
    };
    endpoints.iter().filter_map(next).collect()
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn devices_spread_over_the_fronts_and_each_begins_with_the_same_again() {
        let endpoint = |host: &str, tls| Endpoint { host: host.to_owned(), port: 5223, tls };
        let endpoints = [
            endpoint("a", EndpointTls::Direct),
            endpoint("a", EndpointTls::StartTls),
            endpoint("b", EndpointTls::Direct),
        ];
        let firsts: BTreeSet<_> = (0..100)
            .map(|number| {
                let account = AccountId(number).to_string();
                let order = spread(&endpoints, &account);
                assert_eq!(order, spread(&endpoints, &account));
                assert_eq!(order[1], &endpoints[1], "each kind keeps its places");
                assert_eq!(order.len(), 3);
                assert_ne!(order[0].host, order[2].host);
                order[0].host.clone()
            })
            .collect();
        assert_eq!(firsts.len(), 2);
        assert!(spread(&[], "nobody").is_empty());
    }
}
