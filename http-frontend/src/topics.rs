//! Topic membership on behalf of an app server.

use idl::bus::{Call, Lane, Reply, Request};
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::TopicName;

use crate::Shared;
use crate::auth::SecretDigest;
use crate::params::{Params, missing, shown};
use crate::reply::Done;
use crate::request::Received;
use crate::send::{self, Audience, Packages};

/// What the registrations are named by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Regids,
    Aliases,
}

/// Subscribes or unsubscribes up to 1,000 targets. Doing it again changes nothing.
pub(crate) async fn handle(shared: &Shared, subscribe: bool, by: By, received: &Received) -> Result<Done, Failure> {
    let secret = SecretDigest::from_headers(&received.headers)?;
    let params = &received.params;
    let topic = topic(params)?;
    let to = match by {
        By::Regids => Audience::Regids,
        By::Aliases => Audience::Aliases,
    };
    let values = send::targets(to, params)?;
    let call = Call {
        lane: if values.len() == 1 { Lane::High } else { Lane::Normal },
        shard: send::shard(to, &values, &secret),
        deadline: received.deadline,
        request: Request::ChangeTopic(wire::ChangeTopic {
            secret_sha256: secret.0,
            topic: topic.to_string(),
            subscribe,
            kind: to.kind(),
            values,
            packages: send::packages(Packages::One, params)?,
        }),
    };
    match shared.bus.request(call).await? {
        Reply::TopicChanged(changed) => {
            let verb = if subscribe { "subscribed to" } else { "unsubscribed from" };
            let info = format!("{verb} topic {}", shown(topic.as_str()));
            Ok(Done { data: send::bad_targets(to, changed.bad_targets), info })
        }
        _ => Err(unexpected("ChangeTopic")),
    }
}

/// The parameter `topic`.
pub(crate) fn topic(params: &Params) -> Result<TopicName, Failure> {
    let name = params.required("topic", "the name of a topic")?;
    parse_topic("topic", name)
}

/// A topic's name that came in the parameter `parameter`.
pub(crate) fn parse_topic(parameter: &str, name: &str) -> Result<TopicName, Failure> {
    if name.is_empty() {
        return Err(missing(parameter, "the name of a topic"));
    }
    name.parse().map_err(|invalid| {
        let bytes = name.len();
        Failure::new(Code::BadTopic, format!("the parameter {parameter} holds a {bytes}-byte name: {invalid}"))
    })
}

/// The middle answered something else than was asked: a fault of ours.
pub(crate) fn unexpected(request: &str) -> Failure {
    Failure::new(Code::System, format!("the middle tier answered {request} with another kind of reply"))
}
