//! Topics that app servers subscribe their registrations to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use idl::bus::{Call, Reply, Request};
use idl::contract::bus::{self as wire, ChangeTopic, TopicChanged};
use idl::error::{Code, Failure};
use idl::ids::{AppId, MessageId, Partition, Shard, TopicName};
use schema::catalog::App;
use schema::profiles::Profile;
use tokio::task::JoinSet;

use crate::accept::check_packages;
use crate::apps::parse;
use crate::partitions::Begun;
use crate::pokes::shard_of;
use crate::{Shared, commands, pokes, resolve};

/// Registrations that one request may name.
const TARGETS_MAX: usize = 1000;
/// Registrations changed at one time for one request: their writes share a commit.
const CHANGES_AT_ONCE: usize = 128;
/// How long the owner of registrations is waited for, besides what it waits for fronts.
const OWNER_PATIENCE: Duration = Duration::from_secs(2);

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
    let wanted = Wanted { app: app.app.clone(), topic, subscribe: request.subscribe, id };
    let mut parts: BTreeMap<Option<Partition>, Vec<Arc<Profile>>> = BTreeMap::new();
    for (regid, registration) in resolved.registrations {
        let partition = Partition::from(Shard::of_registration(regid));
        let partition = (!shared.partitions.is_whole()).then_some(partition);
        parts.entry(partition).or_default().push(registration);
    }
    let wanted = Arc::new(wanted);
    let mut changes = JoinSet::new();
    for (partition, registrations) in parts {
        let (shared, wanted) = (Arc::clone(shared), Arc::clone(&wanted));
        changes.spawn(async move {
            match Begun::of(&shared, partition) {
                Some(begun) => change_all(begun, &wanted, registrations).await,
                None => ask_owner(&shared, partition, &wanted, &registrations).await,
            }
        });
    }
    while !changes.is_empty() {
        finish(&mut changes).await?;
    }
    Ok(TopicChanged { bad_targets: Some(resolved.bad_targets) })
}

/// What is to be changed of each registration.
struct Wanted {
    app: AppId,
    topic: TopicName,
    subscribe: bool,
    /// The request of the app server: subscribed since.
    id: MessageId,
}

/// Another middle asks for changes of registrations that are this one's.
pub(crate) async fn change_here(shared: &Arc<Shared>, request: wire::ChangeTopics) -> Result<Reply, Failure> {
    let id = pokes::message_id(&request.id)?;
    let wanted = Wanted { app: parse(&request.app)?, topic: parse(&request.topic)?, subscribe: request.subscribe, id };
    let resolved = resolve::regids(shared, &wanted.app, request.regids).await?;
    // The request itself has begun: what it changes need not.
    let Some(begun) = Begun::of(shared, None) else { return Err(Failure::from(Code::System)) };
    change_all(begun, &Arc::new(wanted), resolved.registrations.into_values().collect()).await?;
    Ok(Reply::Done)
}

async fn ask_owner(
    shared: &Arc<Shared>,
    partition: Option<Partition>,
    wanted: &Wanted,
    registrations: &[Arc<Profile>],
) -> Result<(), Failure> {
    let shard = partition.map_or(Shard(0), shard_of);
    for registrations in registrations.chunks(CHANGES_AT_ONCE) {
        let request = wire::ChangeTopics {
            app: wanted.app.to_string(),
            topic: wanted.topic.to_string(),
            subscribe: wanted.subscribe,
            id: wanted.id.to_bytes().to_vec(),
            regids: registrations.iter().map(|registration| registration.regid.to_string()).collect(),
        };
        // The owner waits for fronts.
        let patience = shared.config.hand_off_time_max + OWNER_PATIENCE;
        shared.bus.request(Call::high(shard, patience, Request::ChangeTopics(request))).await?;
    }
    Ok(())
}

async fn change_all(begun: Begun, wanted: &Arc<Wanted>, registrations: Vec<Arc<Profile>>) -> Result<(), Failure> {
    let mut changes = JoinSet::new();
    for registration in registrations {
        if changes.len() >= CHANGES_AT_ONCE {
            finish(&mut changes).await?;
        }
        let (shared, wanted) = (Arc::clone(&begun.shared), Arc::clone(wanted));
        changes
            .spawn(async move { change_one(&shared, wanted.id, &registration, &wanted.topic, wanted.subscribe).await });
    }
    while !changes.is_empty() {
        finish(&mut changes).await?;
    }
    Ok(())
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
