//! Topic membership on behalf of an app server.

use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::TopicName;

use crate::Shared;
use crate::auth::SecretDigest;
use crate::call::{self, unexpected};
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
    let lane = if values.len() == 1 { Lane::High } else { Lane::Normal };
    let whose = send::shard(to, &values, &secret);
    let request = wire::AppRequest::ChangeTopic(wire::ChangeTopic {
        topic: topic.to_string(),
        subscribe,
        kind: to.kind(),
        values,
        packages: send::packages(Packages::One, params)?,
    });
    let wire::AppAnswer::TopicChanged(changed) = call::ask(shared, received, secret, lane, whose, request).await?
    else {
        return Err(unexpected("ChangeTopic"));
    };
    let verb = if subscribe { "subscribed to" } else { "unsubscribed from" };
    let info = format!("{verb} topic {}", shown(topic.as_str()));
    Ok(Done { data: send::bad_targets(to, changed.bad_targets), info })
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
