//! Accepting messages: check, resolve, store. "Ok" is answered when it is stored durably, never before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use idl::contract::bus::{Accepted, AcceptedMany, AppAnswer, Send, SendMany};
use idl::error::{Code, Failure};
use idl::ids::{AccountId, AppId, MessageId, RegId};
use idl::message::Message;
use schema::catalog::{App, Schedule};
use schema::days::DayCounts;
use schema::expiries::Expiry;
use schema::feedback::InvalidKind;
use schema::profiles::Profile;
use schema::records::Record;
use schema::traces::DropReason;

use crate::accounts::signed;
use crate::idempotency::{self, Key};
use crate::order::{Order, TARGETS_MAX, Whom};
use crate::outcomes::{Outcomes, Whose, kind, target};
use crate::pokes::Pokes;
use crate::resolve::{self, Resolved};
use crate::session::About;
use crate::{Shared, audiences, judge, rates, schedules};

/// Registrations that one request sends to, whatever its names stand for.
pub(crate) const RECIPIENTS_MAX: usize = 100_000;
/// Whole mailboxes read in one call: they may hold megabytes each.
pub(crate) const MAILBOXES_READ: usize = 32;
/// How long invalid targets are kept for the app server to ask for.
pub(crate) const FEEDBACK_KEPT_MS: u64 = 14 * 24 * 3600 * 1000;

/// Accepts a message under the id that the bus gave the request.
pub(crate) async fn send(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    id: MessageId,
    send: Box<Send>,
    key: Option<&Key>,
) -> Result<Accepted, Failure> {
    // What a schedule keeps is what was asked for.
    let asked = schedules::wanted(&send).then(|| send.clone());
    let mut order = Order::read(shared, app, send).await?;
    if order.dry_run {
        schedules::first_due(&order, shared.clock.now_ms())?;
        return Box::pin(audiences::dry_run(shared, app, &order)).await;
    }
    let taken = match rates::take(shared, app, 1).await {
        Ok(taken) => taken,
        Err(failure) => {
            Box::pin(refused(shared, app, id, &order, &failure)).await?;
            return Err(failure);
        }
    };
    let due_ms = match &asked {
        Some(_) => schedules::first_due(&order, shared.clock.now_ms()),
        None => Ok(None),
    };
    // What goes out later counts when it does.
    let (result, sent) = match (asked, due_ms) {
        (_, Err(failure)) => (Err(failure), 0),
        (Some(asked), Ok(Some(due_ms))) => {
            (Box::pin(schedules::create(shared, app, id, &order, *asked, due_ms, key)).await, 0)
        }
        (_, Ok(_)) => {
            let result = deliver(shared, app, id, &mut order, None, key).await;
            let sent = u64::from(result.is_ok());
            (result, sent)
        }
    };
    rates::sent(shared, taken, sent).await;
    result
}

/// Accepts many messages, each under an id of its own. One that is refused says so and keeps no other back.
pub(crate) async fn many(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    id: MessageId,
    many: SendMany,
    key: Option<&Key>,
) -> Result<AcceptedMany, Failure> {
    if many.sends.is_empty() || many.sends.len() > TARGETS_MAX {
        let text = format!("{} messages were given; expected 1 to {TARGETS_MAX} in one request", many.sends.len());
        return Err(Failure::new(Code::TooManyTargets, text));
    }
    let real = many.sends.iter().filter(|send| send.dry_run != Some(true)).count();
    let taken = rates::take(shared, app, real as u64).await?;
    let mut plans = Plans::default();
    let result = plan_and_write(shared, app, id, many, key, &mut plans).await;
    let sent = if result.is_ok() { plans.all.len() } else { 0 };
    rates::sent(shared, taken, sent as u64).await;
    result
}

async fn plan_and_write(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    id: MessageId,
    many: SendMany,
    key: Option<&Key>,
    plans: &mut Plans,
) -> Result<AcceptedMany, Failure> {
    let mut outcomes = Outcomes::new(shared);
    let mut results = Vec::new();
    for (at, send) in (0u128..).zip(many.sends) {
        let targets = send.target.values.clone();
        let result = if let Some(fired) = key.and_then(|key| key.fired(at)) {
            Ok(One::Accepted(fired.clone()))
        } else {
            let id = MessageId(id.0.saturating_add(at));
            one_of_many(shared, app, id, Box::new(send), &mut outcomes, plans).await
        };
        match result {
            Err(failure) if failure.code.retryable() => return Err(failure),
            result => results.push((result, targets)),
        }
    }
    // Nothing is durable so far. Schedules are made first: should the rest not be written, they are taken away again.
    let mut made = Vec::new();
    match write_many(shared, id, results, outcomes, key, &mut made).await {
        Ok(answer) => {
            plans.written(shared, &app.app).await;
            Ok(answer)
        }
        Err(failure) => {
            // After a time-out it may all have happened.
            for schedule in made.into_iter().filter(|_| failure.code != Code::TimedOut) {
                if let Err(error) = shared.catalog.delete_schedule(&app.app, schedule).await {
                    tracing::warn!(%schedule, %error, "a schedule of a request that failed could not be taken away");
                }
            }
            Err(failure)
        }
    }
}

/// The targets of one message of many, as it names them.
type Targets = Option<Vec<String>>;

/// What is to become of one message of many.
enum One {
    Accepted(Accepted),
    Later(Box<Schedule>),
}

async fn write_many(
    shared: &Arc<Shared>,
    id: MessageId,
    results: Vec<(Result<One, Failure>, Targets)>,
    mut outcomes: Outcomes<'_>,
    key: Option<&Key>,
    made: &mut Vec<MessageId>,
) -> Result<AcceptedMany, Failure> {
    let mut answer = AcceptedMany { accepted: Vec::new(), statuses: Vec::new() };
    for (result, targets) in results {
        let result = match result {
            Ok(One::Later(schedule)) => {
                let id = schedule.id;
                let result = schedules::make(shared, *schedule).await;
                made.extend(result.is_ok().then_some(id));
                result
            }
            Ok(One::Accepted(accepted)) => Ok(accepted),
            Err(failure) => Err(failure),
        };
        match result {
            Err(failure) if failure.code.retryable() => return Err(failure),
            Err(failure) => {
                answer.statuses.push(failure.to_status());
                // None of them is a registration, or the send would not have failed so.
                let bad_targets = targets.filter(|_| failure.code == Code::SendFailed);
                answer.accepted.push(Accepted { bad_targets, ..idempotency::none() });
            }
            Ok(accepted) => {
                answer.statuses.push(idempotency::ok());
                answer.accepted.push(accepted);
            }
        }
    }
    if let Some(key) = key {
        key.answered(&mut outcomes.batch, shared, id, AppAnswer::AcceptedMany(answer.clone()));
    }
    outcomes.write().await?;
    Ok(answer)
}

async fn one_of_many(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    id: MessageId,
    send: Box<Send>,
    outcomes: &mut Outcomes<'_>,
    plans: &mut Plans,
) -> Result<One, Failure> {
    // What a schedule keeps is what was asked for.
    let asked = schedules::wanted(&send).then(|| send.clone());
    let mut order = Order::read(shared, app, send).await?;
    if matches!(order.whom, Whom::Audience(_)) {
        return Err(Failure::new(Code::BadValue, "a message of many is for regids, aliases or user accounts"));
    }
    if order.dry_run {
        return Box::pin(audiences::dry_run(shared, app, &order)).await.map(One::Accepted);
    }
    if let Some(asked) = asked
        && let Some(due_ms) = schedules::first_due(&order, shared.clock.now_ms())?
    {
        let schedule = schedules::schedule_of(shared, app, id, &order, &asked, due_ms)?;
        return Ok(One::Later(Box::new(schedule)));
    }
    singles(shared, app, id, &mut order, None, outcomes, plans).await.map(One::Accepted)
}

/// Accepts a message that is due now; whom it is for is taken out of the order.
pub(crate) async fn deliver(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    id: MessageId,
    order: &mut Order,
    schedule: Option<MessageId>,
    key: Option<&Key>,
) -> Result<Accepted, Failure> {
    if matches!(order.whom, Whom::Audience(_)) {
        return Box::pin(broadcast(shared, app, id, order, schedule, key)).await;
    }
    let (mut outcomes, mut plans) = (Outcomes::new(shared), Plans::default());
    match singles(shared, app, id, order, schedule, &mut outcomes, &mut plans).await {
        Ok(accepted) => {
            if let Some(key) = key {
                key.answered(&mut outcomes.batch, shared, id, AppAnswer::Accepted(accepted.clone()));
            }
            outcomes.write().await?;
            plans.written(shared, &app.app).await;
            Ok(accepted)
        }
        Err(failure) => {
            // What was learnt of the targets is kept all the same.
            outcomes.write().await?;
            Err(failure)
        }
    }
}

/// Checks that a send is restricted to nothing but the app's own package.
pub(crate) fn check_packages(app: &App, packages: &[String]) -> Result<(), Failure> {
    if packages.is_empty() || packages.contains(&app.package) {
        return Ok(());
    }
    let text = format!("restricted_package_name {:?} is not the application's package", packages.join(","));
    Err(Failure::new(Code::PackageMismatch, text))
}

/// Messages that are about to be written to mailboxes, and what is to be done once they are.
#[derive(Default)]
struct Plans {
    all: Vec<Plan>,
    /// Registrations of all of them together.
    recipients: usize,
    /// Which of them is a registration's newest with a collapse key.
    newest: BTreeMap<(RegId, String), usize>,
}

/// One of them.
struct Plan {
    app: AppId,
    id: MessageId,
    kind: i32,
    recipients: u64,
    deliveries: Vec<(Arc<Message>, Vec<Arc<Profile>>)>,
    /// Older messages that these take the place of.
    collapsed: Vec<(Arc<Profile>, MessageId)>,
}

impl Plans {
    /// They are written: those that are connected are told, whoever has their sessions.
    async fn written(&self, shared: &Arc<Shared>, app: &AppId) {
        let mut pokes = Pokes::new(shared, app);
        for plan in &self.all {
            plan.written(shared, &mut pokes);
        }
        pokes.tell().await;
    }

    /// What comes later in a request takes the place of what comes before it under the same collapse key.
    fn collapse(&mut self, key: &str, registration: &Profile, outcomes: &mut Outcomes<'_>) {
        let regid = registration.regid;
        let Some(older) = self.newest.insert((regid, key.to_owned()), self.all.len()) else { return };
        let Some(older) = self.all.get_mut(older) else { return };
        for (_, registrations) in &mut older.deliveries {
            registrations.retain(|registration| registration.regid != regid);
        }
        outcomes.dropped(&Whose { app: &older.app, message: older.id, regid }, DropReason::Collapsed);
        outcomes.batch.acknowledged(regid, older.id);
    }
}

impl Plan {
    fn written(&self, shared: &Arc<Shared>, pokes: &mut Pokes<'_>) {
        shared.metrics.messages.inc();
        for (registration, id) in &self.collapsed {
            pokes.taken(registration.account, registration.regid, *id);
        }
        for (message, registrations) in &self.deliveries {
            pokes.stored(message, registrations.iter().map(|registration| (registration.account, registration.regid)));
        }
        shared.counts.today(shared.clock.now_ms(), &self.app, |day: &mut DayCounts| {
            day.messages += 1;
            match self.kind {
                1 => day.regid_recipients += self.recipients,
                2 => day.alias_recipients += self.recipients,
                _ => day.user_account_recipients += self.recipients,
            }
        });
    }
}

/// One cell in the mailbox of each registration, and the message's record. What may refuse it comes first, so that a message
/// that was refused leaves nothing but what was learnt of its targets.
async fn singles(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    id: MessageId,
    order: &mut Order,
    schedule: Option<MessageId>,
    outcomes: &mut Outcomes<'_>,
    plans: &mut Plans,
) -> Result<Accepted, Failure> {
    let whom = std::mem::replace(&mut order.whom, Whom::Regids(Vec::new()));
    let resolved = resolve::singles(shared, &app.app, whom).await?;
    let Resolved { mut registrations, mut bad_targets, names } = resolved;
    if let Some(per_second) = order.flow_control {
        order.handling.spread_ms = order.handling.spread_ms.max(paced_over(registrations.len() as u64, per_second));
    }
    let now_ms = outcomes.now_ms();
    let keep_feedback = now_ms.saturating_add(FEEDBACK_KEPT_MS);
    for bad in &bad_targets {
        match order.kind {
            1 if bad.parse::<RegId>().is_ok() => {
                outcomes.batch.invalid(&app.app, InvalidKind::RegId, bad, keep_feedback);
            }
            2 => outcomes.batch.invalid(&app.app, InvalidKind::Alias, bad, keep_feedback),
            _ => {}
        }
    }
    if registrations.is_empty() {
        let text = format!("none of the {} targets is a registration of this application", bad_targets.len());
        return Err(Failure::new(Code::SendFailed, text));
    }
    if plans.recipients + registrations.len() > RECIPIENTS_MAX {
        return Err(resolve::too_many());
    }
    let invalid = bad_targets.clone();
    let offline = if order.handling.only_once { offline(shared, &registrations).await? } else { BTreeSet::new() };
    let mut left_out = Vec::new();
    registrations.retain(|regid, registration| {
        let reason = left_out_for(order, registration, &offline);
        left_out.extend(reason.map(|reason| (*regid, reason)));
        reason.is_none()
    });
    let concerned: Vec<_> = registrations.keys().copied().collect();
    for regid in shared.rooms.take(shared, &concerned).await? {
        shared.metrics.mailboxes_full.inc();
        registrations.remove(&regid);
        bad_targets.push(regid.to_string());
    }
    if registrations.is_empty() && !concerned.is_empty() {
        let limit = shared.config.mailbox_max;
        let text =
            format!("the mailbox holds {limit} messages that its device has not acknowledged, which is the limit");
        return Err(Failure::new(Code::LimitReached, text));
    }
    let collapsed = collapsing(shared, id, order, &registrations).await?;

    // It is accepted.
    let message = message(app, id, order, now_ms, None);
    let expires_at_ms = message.expires_at_ms;
    if let Some(key) = &order.handling.collapse_key {
        for (registration, older) in &collapsed {
            let whose = Whose { app: &app.app, message: *older, regid: registration.regid };
            outcomes.dropped(&whose, DropReason::Collapsed);
            outcomes.batch.acknowledged(registration.regid, *older);
        }
        for registration in registrations.values() {
            plans.collapse(key, registration, outcomes);
        }
    }
    let mut record = record(shared, app, id, order, now_ms, expires_at_ms, schedule);
    record.targets = registrations.keys().copied().chain(left_out.iter().map(|(regid, _)| *regid)).collect();
    record.targets.sort_unstable();
    record.invalid_targets = u32::try_from(invalid.len()).unwrap_or(u32::MAX);
    tell(&message, &invalid, &left_out, &registrations, &names, outcomes);
    let recipients = registrations.len();
    let deliveries = deliveries(message, registrations, &names);
    for (message, registrations) in &deliveries {
        let regids: Vec<RegId> = registrations.iter().map(|registration| registration.regid).collect();
        outcomes.batch.deliver(message, &regids);
        await_expiry(message, regids, outcomes);
    }
    outcomes.batch.record(&record);
    plans.recipients += recipients;
    plans.all.push(Plan {
        app: app.app.clone(),
        id,
        kind: order.kind,
        recipients: recipients as u64,
        deliveries,
        collapsed,
    });
    Ok(Accepted { id: Some(id.to_string()), bad_targets: Some(bad_targets), audience: None, due_ms: None })
}

/// Why a message is not for one of its targets, if it isn't.
fn left_out_for(order: &Order, registration: &Profile, offline: &BTreeSet<RegId>) -> Option<DropReason> {
    if order.filter.as_ref().is_some_and(|filter| !judge::holds(filter, registration)) {
        return Some(DropReason::Filtered);
    }
    if !order.handling.only_once {
        return None;
    }
    if !registration.enabled {
        return Some(DropReason::Disabled);
    }
    offline.contains(&registration.regid).then_some(DropReason::Offline)
}

/// Registrations whose devices are not connected.
async fn offline(shared: &Shared, registrations: &BTreeMap<RegId, Arc<Profile>>) -> Result<BTreeSet<RegId>, Failure> {
    let accounts: Vec<AccountId> = registrations.values().map(|registration| registration.account).collect();
    let online = shared.sessions.are_online(shared, &accounts).await?;
    Ok(registrations.keys().zip(online).filter(|(_, online)| !online).map(|(regid, _)| *regid).collect())
}

/// What is to be told of a message when it is accepted.
fn tell(
    message: &Message,
    invalid: &[String],
    left_out: &[(RegId, DropReason)],
    registrations: &BTreeMap<RegId, Arc<Profile>>,
    names: &BTreeMap<RegId, String>,
    outcomes: &mut Outcomes<'_>,
) {
    let (app, id) = (&message.app, message.id);
    for (regid, reason) in left_out {
        outcomes.dropped(&Whose { app, message: id, regid: *regid }, *reason);
    }
    let about = About::of(message);
    let Some(wanted) = about.receipts.as_deref() else { return };
    for bad in invalid {
        outcomes.receipt(app, id, wanted, kind::INVALID_TARGET, bad, None);
    }
    let named = |regid: &RegId| names.get(regid).cloned().unwrap_or_else(|| target(wanted, *regid));
    for (regid, _) in left_out.iter().filter(|(_, reason)| *reason == DropReason::Filtered) {
        outcomes.receipt(app, id, wanted, kind::FILTERED, &named(regid), Some(*regid));
    }
    let waiting = registrations.values().filter(|found| !found.enabled).map(|found| found.regid);
    let dropped = left_out.iter().filter(|(_, reason)| *reason == DropReason::Disabled).map(|(regid, _)| *regid);
    for regid in waiting.chain(dropped) {
        outcomes.receipt(app, id, wanted, kind::DISABLED, &named(&regid), Some(regid));
    }
}

/// Where a receipt of its expiry is wanted, a message is looked at when it expires.
fn await_expiry(message: &Message, regids: Vec<RegId>, outcomes: &mut Outcomes<'_>) {
    let callback = message.handling.callback.as_ref();
    let Some(callback) = callback.filter(|callback| callback.types & kind::EXPIRED != 0) else { return };
    for regid in regids {
        outcomes.batch.await_expiry(&Expiry {
            message: message.id,
            app: message.app.clone(),
            regid,
            target: message.notification.alias_name.clone().unwrap_or_else(|| regid.to_string()),
            expires_at_ms: message.expires_at_ms,
            callback: callback.clone(),
            job_key: message.notification.job_key.clone(),
        });
    }
}

/// Over which time so many deliveries keep to a rate, in milliseconds.
fn paced_over(deliveries: u64, per_second: u32) -> u64 {
    deliveries.saturating_sub(1).saturating_mul(1000) / u64::from(per_second.max(1))
}

/// One message for all, or, where receipts name the aliases that were sent to, one for each alias.
fn deliveries(
    message: Message,
    registrations: BTreeMap<RegId, Arc<Profile>>,
    names: &BTreeMap<RegId, String>,
) -> Vec<(Arc<Message>, Vec<Arc<Profile>>)> {
    if registrations.is_empty() {
        return Vec::new();
    }
    if message.handling.callback.is_none() || names.is_empty() || message.notification.alias_name.is_some() {
        return vec![(Arc::new(message), registrations.into_values().collect())];
    }
    let mut by_alias: BTreeMap<Option<&String>, Vec<Arc<Profile>>> = BTreeMap::new();
    for (regid, registration) in registrations {
        by_alias.entry(names.get(&regid)).or_default().push(registration);
    }
    let of_alias = |alias: Option<&String>| {
        let mut message = message.clone();
        message.notification.alias_name = alias.cloned();
        Arc::new(message)
    };
    // A message with several targets is stored once under its id, so each of these is stored in the mailboxes themselves.
    let single = |(alias, registrations): (Option<&String>, Vec<Arc<Profile>>)| {
        let message = of_alias(alias);
        registrations
            .into_iter()
            .map(move |registration| (Arc::clone(&message), vec![registration]))
            .collect::<Vec<_>>()
    };
    by_alias.into_iter().flat_map(single).collect()
}

/// Older messages with the same collapse key that wait in the mailboxes.
/// Older messages under the same collapse key. A request that was cut off and comes again may find its own.
async fn collapsing(
    shared: &Arc<Shared>,
    id: MessageId,
    order: &Order,
    registrations: &BTreeMap<RegId, Arc<Profile>>,
) -> Result<Vec<(Arc<Profile>, MessageId)>, Failure> {
    let Some(key) = &order.handling.collapse_key else { return Ok(Vec::new()) };
    let registrations: Vec<_> = registrations.values().collect();
    let mut found = Vec::new();
    for registrations in registrations.chunks(MAILBOXES_READ) {
        let regids: Vec<_> = registrations.iter().map(|registration| registration.regid).collect();
        let older = shared.mailboxes.collapsing(&regids, key, shared.config.mailbox_max).await?;
        for (registration, older) in registrations.iter().zip(older) {
            let older = older.into_iter().filter(|older| *older != id);
            found.extend(older.map(|message| (Arc::clone(registration), message)));
        }
    }
    Ok(found)
}

/// One row of the timeline, whatever the size of the audience; then every front is told once.
async fn broadcast(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    id: MessageId,
    order: &mut Order,
    schedule: Option<MessageId>,
    key: Option<&Key>,
) -> Result<Accepted, Failure> {
    let audience = order.audience()?.ok_or_else(|| Failure::from(Code::System))?;
    if let Some(per_second) = order.flow_control {
        let count = audiences::count(shared, &app.app, &audience).await?;
        order.handling.spread_ms = order.handling.spread_ms.max(paced_over(count.registrations, per_second));
    }
    let mut outcomes = Outcomes::new(shared);
    let now_ms = outcomes.now_ms();
    let message = Arc::new(message(app, id, order, now_ms, Some(audience)));
    outcomes.batch.broadcast(&message);
    outcomes.batch.record(&record(shared, app, id, order, now_ms, message.expires_at_ms, schedule));
    let accepted = Accepted { id: Some(id.to_string()), bad_targets: None, audience: None, due_ms: None };
    if let Some(key) = key {
        key.answered(&mut outcomes.batch, shared, id, AppAnswer::Accepted(accepted.clone()));
    }
    outcomes.write().await?;
    shared.metrics.broadcasts.inc();
    shared.counts.today(now_ms, &app.app, |day| day.messages += 1);
    shared.broadcasts.publish(shared, Arc::clone(&message));
    shared.audience_counts.count_later(shared, message);
    Ok(accepted)
}

fn message(app: &App, id: MessageId, order: &Order, now_ms: u64, audience: Option<idl::audience::Audience>) -> Message {
    let mut notification = order.notification.clone();
    notification.accepted_at_ms = Some(signed(now_ms));
    let handling = order.handling.clone();
    // The last of the audience has as long as the first.
    let last_due_ms = match handling.local_time_ms {
        Some(local_ms) => local_ms.saturating_add(idl::due::LATEST_ZONE_MS),
        None => now_ms,
    };
    let expires_at_ms = last_due_ms.saturating_add(handling.spread_ms).saturating_add(order.ttl_ms);
    Message { id, app: app.app.clone(), notification, accepted_at_ms: now_ms, expires_at_ms, audience, handling }
}

fn record(
    shared: &Shared,
    app: &App,
    id: MessageId,
    order: &Order,
    now_ms: u64,
    expires_at_ms: u64,
    schedule: Option<MessageId>,
) -> Record {
    Record {
        id,
        app: app.app.clone(),
        kind: order.kind,
        created_at_ms: now_ms,
        expires_at_ms,
        keep_until_ms: expires_at_ms.saturating_add(shared.config.record_retention_ms()),
        job_key: order.notification.job_key.clone(),
        topic: order.notification.topic.clone(),
        targets: Vec::new(),
        broadcast: matches!(order.whom, Whom::Audience(_)),
        invalid_targets: 0,
        schedule,
        has_callback: order.handling.callback.is_some(),
        resolved: None,
        ended: None,
        tally: schema::records::Tally::default(),
    }
}

/// A send over the daily quota: whoever wants to be told of that is told.
pub(crate) async fn refused(
    shared: &Arc<Shared>,
    app: &App,
    id: MessageId,
    order: &Order,
    failure: &Failure,
) -> Result<(), Failure> {
    let (Code::DailyQuota, Whom::Regids(targets) | Whom::Aliases(targets)) = (failure.code, &order.whom) else {
        return Ok(());
    };
    let about = About::of(&message(app, id, order, shared.clock.now_ms(), None));
    let Some(wanted) = about.receipts else { return Ok(()) };
    let mut outcomes = Outcomes::new(shared);
    for target in targets {
        outcomes.receipt(&app.app, id, &wanted, kind::QUOTA, target, None);
    }
    outcomes.write().await
}
