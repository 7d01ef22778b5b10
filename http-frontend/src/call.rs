//! What an app server asks for, on its way to the middle tier.

use idl::bus::{Call, Lane, Reply, Request};
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::Shard;

use crate::Shared;
use crate::auth::SecretDigest;
use crate::request::Received;

/// Asks the middle tier on behalf of the app whose secret it is.
pub(crate) async fn ask(
    shared: &Shared,
    received: &Received,
    secret: SecretDigest,
    lane: Lane,
    shard: Shard,
    request: wire::AppRequest,
) -> Result<wire::AppAnswer, Failure> {
    let call = wire::AppCall { secret_sha256: secret.0, request, idempotency_key: None, fingerprint: None };
    let call = Call { lane, shard, deadline: received.deadline, request: Request::App(call) };
    let Reply::App(reply) = shared.bus.request(call).await? else { return Err(unexpected("App")) };
    match (reply.status.code, reply.answer) {
        (0, Some(answer)) => Ok(answer),
        (0, None) => Err(unexpected("App")),
        _ => Err(Failure::from_status(reply.status)),
    }
}

/// The middle answered something else than was asked: a fault of ours.
pub(crate) fn unexpected(request: &str) -> Failure {
    Failure::new(Code::System, format!("the middle tier answered {request} with another kind of reply"))
}
