//! Accepting a message: authorise, check, store. "Ok" is answered when it is stored durably, never before.

use std::sync::Arc;

use idl::audience::Audience;
use idl::bus::Reply;
use idl::contract::bus::{Accepted, Send};
use idl::error::{Code, Failure};
use idl::ids::MessageId;
use idl::message::{Message, PAYLOAD_BYTES_MAX, TTL_MS_MAX};
use schema::catalog::App;

use crate::Shared;
use crate::accounts::signed;
use crate::resolve::{self, Resolved};

/// Targets that one request may name.
const TARGETS_MAX: usize = 1000;

/// Accepts a message under the id that the bus gave the request.
pub(crate) async fn accept(shared: &Arc<Shared>, id: MessageId, request: Send) -> Result<Reply, Failure> {
    let app = shared.apps.by_secret(&request.secret_sha256).await?;
    check_packages(&app, request.packages.as_deref().unwrap_or_default())?;
    let ttl_ms = u64::try_from(request.ttl_ms).ok().filter(|ttl_ms| (1..=TTL_MS_MAX).contains(ttl_ms));
    let ttl_ms = ttl_ms.ok_or_else(|| {
        Failure::new(Code::BadTimeToLive, format!("a time to live must be from 1 to {TTL_MS_MAX} ms"))
    })?;
    if request.notification.payload.as_ref().is_some_and(|payload| payload.len() > PAYLOAD_BYTES_MAX) {
        return Err(Failure::new(Code::PayloadTooLong, format!("a payload has at most {PAYLOAD_BYTES_MAX} bytes")));
    }
    let now_ms = shared.clock.now_ms();
    let mut notification = request.notification;
    notification.accepted_at_ms = Some(signed(now_ms));
    let message = Message {
        id,
        app: app.app.clone(),
        notification,
        accepted_at_ms: now_ms,
        expires_at_ms: now_ms.saturating_add(ttl_ms),
        audience: None,
    };
    let targets = request.target.values.unwrap_or_default();
    if targets.len() > TARGETS_MAX {
        let text = format!("{} targets were named; at most {TARGETS_MAX} are allowed", targets.len());
        return Err(Failure::new(Code::TooManyTargets, text));
    }
    let resolved = match request.target.kind {
        1 => resolve::regids(shared, &app.app, targets).await?,
        2 => resolve::aliases(shared, &app.app, targets).await?,
        3 => resolve::user_accounts(shared, &app.app, targets).await?,
        4 => {
            let audience = request.target.audience.as_ref();
            let audience = audience.ok_or_else(|| Failure::new(Code::Missing, "a broadcast needs an audience"))?;
            let audience =
                Audience::try_from(audience).map_err(|error| Failure::new(Code::BadTopic, error.to_string()))?;
            return broadcast(shared, Message { audience: Some(audience), ..message }).await;
        }
        kind => return Err(Failure::new(Code::BadValue, format!("there is no kind of target {kind}"))),
    };
    single(shared, message, resolved).await
}

/// Checks that a send is restricted to nothing but the app's own package.
pub(crate) fn check_packages(app: &App, packages: &[String]) -> Result<(), Failure> {
    if packages.is_empty() || packages.contains(&app.package) {
        return Ok(());
    }
    let text = format!("restricted_package_name {:?} is not the application's package", packages.join(","));
    Err(Failure::new(Code::PackageMismatch, text))
}

/// One cell in the mailbox of each registration; then those that are connected are told.
async fn single(shared: &Arc<Shared>, message: Message, resolved: Resolved) -> Result<Reply, Failure> {
    let Resolved { mut registrations, mut bad_targets } = resolved;
    if registrations.is_empty() {
        let text = format!("none of the {} targets is a registration of this application", bad_targets.len());
        return Err(Failure::new(Code::SendFailed, text));
    }
    let message = Arc::new(message);
    let regids: Vec<_> = registrations.keys().copied().collect();
    for full in shared.rooms.take(shared, &regids).await? {
        shared.metrics.mailboxes_full.inc();
        registrations.remove(&full);
        bad_targets.push(full.to_string());
    }
    if registrations.is_empty() {
        let limit = shared.config.mailbox_max;
        let text =
            format!("the mailbox holds {limit} messages that its device has not acknowledged, which is the limit");
        return Err(Failure::new(Code::LimitReached, text));
    }
    let regids: Vec<_> = registrations.keys().copied().collect();
    shared.mailboxes.put_with_message(&message, &regids).await?;
    shared.metrics.messages.inc();
    for (regid, registration) in &registrations {
        shared.sessions.stored(shared, registration.account, *regid, &message);
    }
    Ok(Reply::Accepted(Accepted { id: message.id.to_string(), bad_targets: Some(bad_targets) }))
}

/// One row of the timeline, whatever the size of the audience; then every front is told once.
async fn broadcast(shared: &Arc<Shared>, message: Message) -> Result<Reply, Failure> {
    let message = Arc::new(message);
    shared.timelines.append(&message).await?;
    shared.metrics.broadcasts.inc();
    shared.broadcasts.publish(shared, Arc::clone(&message));
    Ok(Reply::Accepted(Accepted { id: message.id.to_string(), bad_targets: None }))
}
