//! Topic membership on behalf of an app server.

use idl::contract::bus as wire;
use idl::error::Failure;
use serde_json::Value;

use crate::call::{Ask, Received, tell};
use crate::params::shown;
use crate::reply::{Done, Refusal};
use crate::send::target::{Packages, To, topic};
use crate::vocabulary::CATEGORY;

/// Subscribes or unsubscribes up to 1,000 targets. Doing it again changes nothing.
pub(crate) fn ask(received: &Received<'_>, subscribe: bool, by: To) -> Result<Ask, Failure> {
    let params = &received.params;
    let topic = topic(params)?.to_string();
    CATEGORY.text(params)?;
    let target = by.read(params)?;
    let (lane, shard) = (target.lane, target.shard(received.secret));
    let verb = if subscribe { "Subscribed to" } else { "Unsubscribed from" };
    let info = format!("{verb} topic {}", shown(&topic));
    let request = wire::AppRequest::ChangeTopic(wire::ChangeTopic {
        topic,
        subscribe,
        kind: by.kind(),
        values: target.wire.values.unwrap_or_default(),
        packages: Packages::One.read(params)?,
    });
    let tell = tell!(TopicChanged(changed) => {
        let bad = by.bad(changed.bad_targets).map(|(member, bad)| (member, Value::from(bad)));
        Ok::<Done, Refusal>(Done { info: info.into(), ..Done::with(bad) })
    });
    Ok(Ask::new(received, lane, shard, request, tell))
}
