//! Device accounts and their tokens.

use idl::bus::{FrontEvent, Reply};
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::AccountId;
use schema::accounts::AccountInfo;
use tokio::time::Instant;

use crate::Shared;
use crate::apps::parse;

/// Longest digest of a device, model and platform, in characters.
const CHARS_MAX: usize = 128;

/// Makes an account. Each request makes a new one: knowing a device's digest must not open that device's account.
pub(crate) async fn create(shared: &Shared, request: wire::CreateAccount) -> Result<Reply, Failure> {
    let too_long = |text: &str| text.chars().count() > CHARS_MAX;
    if request.device.is_empty() || too_long(&request.device) {
        let text = format!("the parameter device must be a digest of 1 to {CHARS_MAX} characters");
        return Err(Failure::new(Code::BadValue, text));
    }
    for (name, text) in [("model", &request.model), ("platform", &request.platform)] {
        if text.as_deref().is_some_and(too_long) {
            let text = format!("the parameter {name} has more than {CHARS_MAX} characters");
            return Err(Failure::new(Code::BadValue, text));
        }
    }
    let account = AccountId::random(&*shared.entropy);
    let now_ms = shared.clock.now_ms();
    let info =
        AccountInfo { device: request.device, model: request.model, platform: request.platform, created_at_ms: now_ms };
    shared.accounts.create(account, &info, now_ms).await?;
    Ok(granted(shared, account, now_ms))
}

/// Renews a token: the old one proves the right to. It stays valid until it is revoked.
pub(crate) async fn renew(shared: &Shared, request: wire::RenewToken) -> Result<Reply, Failure> {
    let account: AccountId = parse(&request.account)?;
    let issued_at_ms =
        shared.keys.prove(account, &request.token).map_err(|error| Failure::new(Code::BadProof, error.to_string()))?;
    let revoked = shared.catalog.revocations(0).await?;
    if revoked.iter().any(|(id, before_ms)| *id == account && issued_at_ms < *before_ms) {
        return Err(Failure::new(Code::BadProof, "the token has been revoked; make a new account"));
    }
    let now_ms = shared.clock.now_ms();
    shared.accounts.record_token(account, now_ms).await?;
    Ok(granted(shared, account, now_ms))
}

/// Makes all tokens of an account that were issued until now worthless, and ends its connections.
pub(crate) async fn revoke(shared: &Shared, request: wire::RevokeTokens) -> Result<Reply, Failure> {
    let account: AccountId = parse(&request.account)?;
    // Tokens of this very millisecond are meant too.
    let issued_before_ms = shared.clock.now_ms() + 1;
    shared.catalog.revoke_tokens(account, issued_before_ms).await?;
    let event = wire::TokenRevoked { account: account.to_string(), issued_before_ms: signed(issued_before_ms) };
    let deadline = Instant::now() + shared.config.hand_off_time_max;
    if let Err(failure) = shared.bus.publish(FrontEvent::TokenRevoked(event), deadline).await {
        tracing::warn!(%account, %failure, "a revocation did not reach every front; they learn it with their next lease");
    }
    tracing::info!(%account, "tokens revoked");
    Ok(Reply::Done)
}

/// When the account's tokens were issued.
pub(crate) async fn token_times(shared: &Shared, request: wire::TokenTimes) -> Result<Reply, Failure> {
    // Whether an account exists is not told to whom asks for one that can't.
    let times = match request.account.parse::<AccountId>() {
        Ok(account) => shared.accounts.token_times(account).await?,
        Err(_) => Vec::new(),
    };
    Ok(Reply::TokenTimes(wire::TokenTimesReply { issued_at_ms: times.into_iter().map(signed).collect() }))
}

fn granted(shared: &Shared, account: AccountId, issued_at_ms: u64) -> Reply {
    let token = shared.keys.issue(account, issued_at_ms);
    Reply::Account(wire::AccountGranted { account: account.to_string(), token })
}

pub(crate) fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
