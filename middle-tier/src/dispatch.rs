//! Drives sessions: takes the steps that a session asks for, one at a time, until it has none.

use std::sync::Arc;

use idl::channel;
use idl::contract::bus::{FrontBatch, FrontItem};
use idl::error::{Code, Failure};
use idl::ids::{AppId, MessageId, RegId};
use schema::registrations::Registration;
use schema::traces::DropReason;
use tokio::time::{Instant, sleep_until};

use crate::outcomes::{Outcomes, Whose};
use crate::session::{Advance, Item, Step};
use crate::sessions::{Handle, index_entry};
use crate::timelines::{Found, TimelineReads};
use crate::{Shared, payload};

/// Hand-offs that may fail in a row before a session asks whether its front still lives.
const FAILURES_BEFORE_DOUBT: u32 = 5;

/// Starts taking the session's steps, unless someone is at it.
pub(crate) fn drive(shared: &Arc<Shared>, handle: &Arc<Handle>) {
    if handle.lock().start_driving() {
        let (shared, handle) = (Arc::clone(shared), Arc::clone(handle));
        let tasks = Arc::clone(&shared);
        tasks.tasks.spawn(async move { take_steps(&shared, &handle).await });
    }
}

/// Takes the session's steps until it is idle or over.
pub(crate) async fn take_steps(shared: &Arc<Shared>, handle: &Arc<Handle>) {
    let account = handle.lock().account;
    loop {
        if !shared.sessions.is_current(account, handle) {
            // A newer session has inherited what this one knew.
            return;
        }
        if !handle.is_ours(shared) {
            shared.sessions.remove(account, handle);
            handle.dropped(shared);
            return;
        }
        let step = handle.lock().next(shared.clock.now_ms(), &shared.config);
        match step {
            Step::Index(registrations) => {
                if tell_index(shared, handle, &registrations).await.is_err() {
                    handle.lock().failed(&shared.config);
                }
            }
            Step::HandOff(items) => hand_off(shared, handle, items).await,
            Step::Drain(reads) => drain(shared, handle, &reads).await,
            Step::Judge { app, from, to } => judge(shared, handle, app, from, to).await,
            Step::WriteProgress(advances) => write_progress(shared, handle, advances).await,
            Step::Wait(at) => tokio::select! {
                () = sleep_until(at) => {}
                () = handle.hurry.notified() => {}
            },
            Step::Idle => {
                let due_ms = handle.lock().next_due_ms();
                if let Some(due_ms) = due_ms {
                    shared.alarms.set(due_ms, account);
                }
                return;
            }
            Step::Ended => {
                shared.sessions.remove(account, handle);
                for (app, ids) in handle.lock().take_unsettled() {
                    shared.counts.withdrawn(&app, &ids);
                }
                return;
            }
        }
    }
}

/// Tells the front's index of changed registrations and waits until it has them. A front that is gone has nobody to
/// misdirect anything to.
pub(crate) async fn tell_index(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    registrations: &[Arc<Registration>],
) -> Result<(), Failure> {
    let (front, item) = {
        let session = handle.lock();
        let item = FrontItem {
            account: session.account.to_string(),
            epoch: session.epoch.to_bytes().to_vec(),
            index: Some(registrations.iter().map(|registration| index_entry(registration)).collect()),
            channel: None,
            payloads: None,
            conflict: None,
            order: None,
        };
        (session.front, item)
    };
    let deadline = Instant::now() + shared.config.hand_off_time_max;
    match shared.bus.deliver(front, FrontBatch { items: vec![item], count: None }, deadline).await {
        Err(failure) if failure.code != Code::System => Err(failure),
        _ => {
            let mut session = handle.lock();
            for registration in registrations {
                session.indexed(registration);
            }
            Ok(())
        }
    }
}

async fn hand_off(shared: &Arc<Shared>, handle: &Arc<Handle>, batch: Vec<(Arc<Registration>, Vec<Item>)>) {
    let (front, account, epoch, order) = {
        let mut session = handle.lock();
        (session.front, session.account, session.epoch, session.next_order())
    };
    let payloads = match payloads(shared, &batch).await {
        Ok(payloads) => payloads,
        Err(failure) => return failed(shared, handle, batch, &failure).await,
    };
    let count = payloads.len();
    let item = FrontItem {
        account: account.to_string(),
        epoch: epoch.to_bytes().to_vec(),
        index: None,
        channel: i32::try_from(channel::PUSH).ok(),
        payloads: Some(payloads),
        conflict: None,
        order: Some(order.to_be_bytes().to_vec()),
    };
    let deadline = Instant::now() + shared.config.hand_off_time_max;
    let answer = shared.bus.deliver(front, FrontBatch { items: vec![item], count: None }, deadline).await;
    let reached = answer.as_ref().is_ok_and(|reply| reply.gone.as_ref().is_none_or(Vec::is_empty));
    forget_once(shared, &batch, reached).await;
    match answer {
        Ok(reply) if reply.gone.as_ref().is_none_or(Vec::is_empty) => {
            shared.metrics.deliveries.inc_by(count as u64);
            handle.lock().handed_off();
        }
        Ok(_) => {
            let mut session = handle.lock();
            session.hand_off_failed(batch, &shared.config);
            session.end();
        }
        Err(failure) => failed(shared, handle, batch, &failure).await,
    }
}

/// What is handed off only once is not kept for another try, however this one went.
async fn forget_once(shared: &Arc<Shared>, batch: &[(Arc<Registration>, Vec<Item>)], reached: bool) {
    let mut outcomes = Outcomes::new(shared);
    for (registration, items) in batch {
        for item in items {
            if let Item::Single(message) = item
                && message.handling.only_once
            {
                if !reached {
                    let whose = Whose { app: &message.app, message: message.id, regid: registration.regid };
                    outcomes.dropped(&whose, DropReason::Offline);
                }
                outcomes.batch.acknowledged(registration.regid, message.id);
            }
        }
    }
    if let Err(failure) = outcomes.write().await {
        // It may be handed off again; the device drops what it has seen.
        tracing::warn!(%failure, "a message that is sent only once could not be removed");
    }
}

async fn write_progress(shared: &Arc<Shared>, handle: &Arc<Handle>, advances: Vec<Advance>) {
    let progress: Vec<_> = advances.iter().map(|advance| (advance.regid, advance.progress.clone())).collect();
    match shared.registrations.write_progress(&progress).await {
        Ok(()) => {
            for Advance { app, settles, .. } in advances.iter().filter(|advance| !advance.settles.is_empty()) {
                shared.counts.settled(shared, app, settles);
            }
        }
        Err(error) => {
            // An older cursor only means that more is judged again.
            tracing::warn!(%error, "cursors could not be written");
            handle.lock().progress_failed(advances);
        }
    }
}

async fn failed(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    batch: Vec<(Arc<Registration>, Vec<Item>)>,
    failure: &Failure,
) {
    shared.metrics.hand_offs_failed.inc();
    let (front, failures) = {
        let mut session = handle.lock();
        session.hand_off_failed(batch, &shared.config);
        (session.front, session.failures())
    };
    tracing::debug!(%front, %failure, failures, "a hand-off failed");
    if failures >= FAILURES_BEFORE_DOUBT && shared.cache.front_lives(front).await.is_ok_and(|lives| !lives) {
        handle.lock().end();
    }
}

/// The payloads of a batch, in order of message id: across a device's apps too, older messages come first.
async fn payloads(shared: &Arc<Shared>, batch: &[(Arc<Registration>, Vec<Item>)]) -> Result<Vec<Vec<u8>>, Failure> {
    let mut payloads: Vec<(MessageId, Vec<u8>)> = Vec::new();
    for (registration, items) in batch {
        for item in items {
            let payload = match item {
                Item::Single(message) if message.handling.is_revocation() => payload::revocation(message, None),
                Item::Single(message) => payload::single(registration, message),
                Item::Broadcast(message) => {
                    let app = shared.apps.by_id(&message.app).await?;
                    shared.payloads.broadcast(&app, message).to_vec()
                }
            };
            payloads.push((item.message().id, payload));
        }
    }
    payloads.sort_by_key(|(id, _)| *id);
    Ok(payloads.into_iter().map(|(_, payload)| payload).collect())
}

async fn drain(shared: &Arc<Shared>, handle: &Arc<Handle>, reads: &[(RegId, usize)]) {
    let limit = reads.iter().map(|(_, limit)| *limit).max().unwrap_or(0);
    let regids: Vec<_> = reads.iter().map(|(regid, _)| *regid).collect();
    match shared.mailboxes.read(&regids, None, limit).await {
        Ok(mailboxes) => {
            let mut session = handle.lock();
            for (regid, mailbox) in regids.into_iter().zip(mailboxes) {
                let whole = mailbox.len() < limit;
                if !whole {
                    shared.metrics.windows_full.inc();
                }
                session.drained(regid, mailbox, whole, shared.clock.now_ms());
            }
        }
        Err(error) => {
            tracing::warn!(%error, "a mailbox could not be read");
            handle.lock().drain_failed(&shared.config);
        }
    }
}

async fn judge(shared: &Arc<Shared>, handle: &Arc<Handle>, app: AppId, from: MessageId, to: MessageId) {
    match TimelineReads::since(shared, &app, from).await {
        Ok(Found { mut rows, more }) => {
            // Read only in part: judged up to the last row that was read.
            let to = rows.last().filter(|_| more).map_or(to, |last| MessageId(last.id.0.saturating_add(1)));
            shared.metrics.judgements.inc();
            let missing = {
                let mut session = handle.lock();
                shared.sessions.without_stopped(&mut rows);
                session.judged(&app, &rows, to, more, &shared.config, shared.clock.now_ms())
            };
            shared.metrics.judged_deliveries.inc_by(missing as u64);
        }
        Err(error) => {
            tracing::warn!(%app, %error, "a timeline could not be read");
            handle.lock().judge_failed(&app, &shared.config);
        }
    }
}
