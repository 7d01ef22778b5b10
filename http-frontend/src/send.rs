//! Sends: from Mi Push's parameters to one request of the middle tier.
//!
//! What is checked here is what one can see in the request alone: that parameters are there, have values that they can
//! have and keep to their limits. Which registrations, packages and secrets exist, the middle tier knows.

pub(crate) mod many;
pub(crate) mod message;
pub(crate) mod target;
pub(crate) mod timing;

use idl::contract::bus as wire;
use idl::error::Failure;

use crate::call::{Ask, Received, tell};
use crate::reply::{Data, Done, Refusal, Sent};
use crate::send::target::{Packages, Target, To};

/// Accepts one message. Answered with success it is stored durably; answered with [`idl::error::Code::TimedOut`] it may be.
pub(crate) fn ask(received: &Received<'_>, to: To, packages: Packages) -> Result<Ask, Failure> {
    let target = to.read(&received.params)?;
    let packages = packages.read(&received.params)?;
    of(received, to, to.name(), target, packages)
}

/// As [`ask`], for a target that was read already; `name` is what people call it.
pub(crate) fn of(
    received: &Received<'_>,
    to: To,
    name: &'static str,
    target: Target,
    packages: Option<Vec<String>>,
) -> Result<Ask, Failure> {
    let count = target.wire.values.as_ref().map(Vec::len);
    let (lane, shard) = (target.lane, target.shard(received.secret));
    let send = message::read(&received.params, target, packages, received.now_ms)?;
    let tell = tell!(Accepted(accepted) => Ok::<Done, Refusal>(accepted_one(to, name, count, accepted)));
    Ok(Ask::new(received, lane, shard, wire::AppRequest::Send(send), tell))
}

fn accepted_one(to: To, name: &str, count: Option<usize>, accepted: wire::Accepted) -> Done {
    let wire::Accepted { id, bad_targets, audience, due_ms } = accepted;
    let info = match (&audience, count) {
        (Some(_), _) => "Nothing was sent: dry_run is 1".into(),
        (None, Some(1)) if to == To::Regids => "Received push messages for 1 REGID".into(),
        (None, Some(count)) => format!("Received push messages for {count} {name}").into(),
        (None, None) => format!("Received push messages for {name}").into(),
    };
    Done { data: Data::Sent(Sent { id, bad: to.bad(bad_targets), audience, due_ms }), info }
}
