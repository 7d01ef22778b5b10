//! Topics that app servers subscribe their registrations to.

use std::sync::Arc;

use idl::contract::bus::{ChangeTopic, TopicChanged};
use idl::error::{Code, Failure};
use idl::ids::{MessageId, TopicName};
use schema::catalog::App;
use schema::profiles::Profile;
use tokio::task::JoinSet;

use crate::accept::check_packages;
use crate::resolve;
use crate::{Shared, commands};

/// Registrations that one request may name.
const TARGETS_MAX: usize = 1000;
/// Registrations changed at one time for one request: their writes share a commit.
const CHANGES_AT_ONCE: usize = 128;

/// Subscribes or unsubscribes registrations. It is in force when it is answered, also for devices that are connected.
pub(crate) async fn change(
    shared: &Arc<Shared>,
    app: &App,
    id: MessageId,
    request: ChangeTopic,
) -> Result<TopicChanged, Failure> {
    check_packages(app, request.packages.as_deref().unwrap_or_default())?;
    let topic: TopicName =
        request.topic.parse().map_err(|error: idl::ids::InvalidId| Failure::new(Code::BadTopic, error.to_string()))?;
    if request.values.len() > TARGETS_MAX {
        let text = format!("{} targets were named; at most {TARGETS_MAX} are allowed", request.values.len());
        return Err(Failure::new(Code::TooManyTargets, text));
    }
    let resolved = match request.kind {
        1 => resolve::regids(shared, &app.app, request.values).await?,
        2 => resolve::aliases(shared, &app.app, request.values).await?,
        kind => return Err(Failure::new(Code::BadValue, format!("there is no kind of target {kind}"))),
    };
    let mut changes = JoinSet::new();
    for registration in resolved.registrations.into_values() {
        if changes.len() >= CHANGES_AT_ONCE {
            finish(&mut changes).await?;
        }
        let (shared, topic) = (Arc::clone(shared), topic.clone());
        changes.spawn(async move { change_one(&shared, id, &registration, &topic, request.subscribe).await });
    }
    while !changes.is_empty() {
        finish(&mut changes).await?;
    }
    Ok(TopicChanged { bad_targets: Some(resolved.bad_targets) })
}

async fn finish(changes: &mut JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    match changes.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(_)) => Err(Failure::from(Code::System)),
        None => Ok(()),
    }
}

async fn change_one(
    shared: &Arc<Shared>,
    id: MessageId,
    found: &Profile,
    topic: &TopicName,
    subscribe: bool,
) -> Result<(), Failure> {
    {
        let _turn = shared.turns.take(found.account).await;
        let Some(old) = commands::registration_of(shared, found.account, &found.app).await? else { return Ok(()) };
        if old.regid != found.regid {
            return Ok(());
        }
        let limit = shared.config.names_per_registration_max;
        let changed = commands::update(shared, &old, |registration| {
            if !subscribe {
                return Ok(registration.topics.remove(topic).is_some());
            }
            if registration.topics.contains_key(topic) {
                return Ok(false);
            }
            if registration.topics.len() >= limit {
                let text = format!("registration {} has {limit} topics already", found.regid);
                return Err(Failure::new(Code::LimitReached, text));
            }
            registration.topics.insert(topic.clone(), id);
            Ok(true)
        });
        if let Some(registration) = changed.await? {
            shared.sessions.follow(&registration);
        }
    }
    // A front that does not answer holds up this change alone. One that did not answer an earlier try is told again.
    shared.sessions.tell(shared, found.account, &found.app).await
}
