//! What devices say of deliveries: that they have them for good, that the user tapped on one, that one could not be handed
//! to its app.

use std::collections::BTreeMap;
use std::sync::Arc;

use idl::contract::push::{Ack, Clicked, Report};
use idl::error::{Code, Failure};
use idl::ids::{AccountId, AppId, MessageId, RegId};
use schema::records::Record;
use schema::registrations::Registration;
use schema::traces::DropReason;

use crate::apps::parse;
use crate::commands::registration_of;
use crate::counts::keep_until;
use crate::outcomes::{Outcomes, Whose, kind, target};
use crate::session::{About, Delivered};
use crate::sessions::split_ids;
use crate::{Shared, dispatch};

/// `Report.reason`: the app is not on the device, or refused it; and one that the device keeps to itself.
const REPORT_REFUSED: i32 = 3;
const REPORT_DUPLICATE: i32 = 5;

/// What a device acknowledged for one app.
struct Acked {
    app: AppId,
    singles: Vec<MessageId>,
    broadcasts: Vec<MessageId>,
}

/// Deletes what the device has for good from its mailboxes, with the traces and receipts of it in the same write; then
/// forgets it. Acks of broadcasts cost no write.
pub(crate) async fn acknowledge(shared: &Arc<Shared>, account: AccountId, ack: Ack) -> Result<(), Failure> {
    let mut all = Vec::new();
    for app_ack in ack.apps {
        let ids = |bytes: Option<Vec<u8>>| {
            split_ids(&bytes.unwrap_or_default())
                .ok_or_else(|| Failure::new(Code::BadValue, "an ack's ids must be 16 bytes each"))
        };
        let (singles, broadcasts) = (ids(app_ack.messages)?, ids(app_ack.broadcasts)?);
        all.push(Acked { app: parse(&app_ack.app)?, singles, broadcasts });
    }
    // What comes twice at once is one delivery: the second finds what the first has written.
    let _turn = shared.turns.take(account).await;
    let mut outcomes = Outcomes::new(shared);
    let mut delivered: BTreeMap<AppId, u64> = BTreeMap::new();
    let mut cells = Vec::new();
    for Acked { app, singles, .. } in all.iter().filter(|acked| !acked.singles.is_empty()) {
        let Some(registration) = registration_of(shared, account, app).await? else { continue };
        let count = singles_of(shared, &registration, singles, &mut outcomes).await?;
        *delivered.entry(app.clone()).or_default() += count;
        cells.push((registration.regid, singles.clone()));
    }
    let now_ms = outcomes.now_ms();
    let told = outcomes.tells();
    match outcomes.write().await {
        // A disk without room takes deletions alone, and they are what makes room: then the trace is what is given up.
        Err(failure) if failure.code == Code::StoreUnavailable && !told => {
            shared.mailboxes.ack(&cells).await?;
            tracing::warn!(%account, %failure, "deliveries were acknowledged without a trace");
        }
        written => written?,
    }
    for (app, count) in delivered.into_iter().filter(|(_, count)| *count > 0) {
        shared.counts.today(now_ms, &app, |day| day.delivered += count);
    }
    let handle = shared.sessions.find(account);
    for Acked { app, singles, broadcasts } in all {
        shared.metrics.acks.inc_by((singles.len() + broadcasts.len()) as u64);
        if let Some(handle) = &handle {
            let new = {
                let mut session = handle.lock();
                session.acked_singles(&app, &singles);
                session.acked_broadcasts(&app, &broadcasts, &shared.config, now_ms)
            };
            shared.counts.acknowledged(shared, &app, &new);
        }
    }
    if let Some(handle) = handle {
        dispatch::drive(shared, &handle);
    }
    Ok(())
}

/// Says of each single delivery what there is to say, and returns how many were delivered for the first time.
async fn singles_of(
    shared: &Arc<Shared>,
    registration: &Registration,
    ids: &[MessageId],
    outcomes: &mut Outcomes<'_>,
) -> Result<u64, Failure> {
    let (app, regid) = (&registration.app, registration.regid);
    let (mut known, front) = match shared.sessions.find(registration.account) {
        Some(handle) => {
            let session = handle.lock();
            let known = ids.iter().map(|id| session.in_flight(app, *id)).collect::<Vec<_>>();
            (known, Some(session.front))
        }
        None => (ids.iter().map(|_| None).collect(), None),
    };
    // Handed off before this session began: the cell tells, unless it was acknowledged already.
    let unknown: Vec<(RegId, MessageId)> =
        ids.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(id, _)| (regid, *id)).collect();
    if !unknown.is_empty() {
        let mut stored = shared.mailboxes.get(&unknown).await?.into_iter();
        for known in known.iter_mut().filter(|known| known.is_none()) {
            let message = stored.next().flatten();
            *known = message.map(|message| Delivered { dispatched_at_ms: None, about: About::of(&message) });
        }
    }
    let mut count = 0;
    for (id, known) in ids.iter().zip(known) {
        let Some(Delivered { dispatched_at_ms, about }) = known else { continue };
        if about.revocation {
            continue;
        }
        count += 1;
        let wanted = about.receipts.as_deref();
        outcomes.delivered(&Whose { app, message: *id, regid }, dispatched_at_ms, front, wanted);
        if wanted.is_some_and(|wanted| wanted.callback.types & (kind::CLICKED | kind::EXPIRED) != 0) {
            outcomes.owes();
        }
        if let Some(wanted) = wanted.filter(|wanted| wanted.callback.types & kind::CLICKED != 0) {
            let message = wanted.to_message(app, *id);
            outcomes.batch.click_wanted(&message, regid, keep_until(shared, *id));
        }
        if let Some(wanted) = wanted.filter(|wanted| wanted.callback.types & kind::EXPIRED != 0) {
            outcomes.batch.expiry_done(&schema::expiries::Expiry {
                message: *id,
                app: app.clone(),
                regid,
                target: target(wanted, regid),
                expires_at_ms: about.expires_at_ms,
                callback: wanted.callback.clone(),
                job_key: wanted.job_key.clone(),
            });
        }
    }
    // Last: where a write is cut off in its middle, what is still there is acknowledged again.
    for id in ids {
        outcomes.batch.acknowledged(regid, *id);
    }
    Ok(count)
}

/// The user tapped on a notification. It counts once for each registration.
pub(crate) async fn clicked(shared: &Arc<Shared>, account: AccountId, clicked: &Clicked) -> Result<(), Failure> {
    let app: AppId = parse(&clicked.app)?;
    let id = message_id(&clicked.message)?;
    let Some(registration) = registration_of(shared, account, &app).await? else { return Ok(()) };
    let regid = registration.regid;
    let Some(record) = record_of(shared, &app, id, regid).await? else { return Ok(()) };
    let _turn = shared.turns.take(account).await;
    if shared.traces.get(id, regid).await?.clicked.is_some() {
        return Ok(());
    }
    // The receipt first: should the click itself not be written, it comes again.
    if record.has_callback {
        // A click may come before the acknowledgement: then the delivery itself is still there.
        let kept = match shared.traces.click_wanted(id, regid).await? {
            Some(kept) => Some(kept),
            None => shared.mailboxes.get(&[(regid, id)]).await?.pop().flatten(),
        };
        if let Some(wanted) = kept.and_then(|message| About::of(&message).receipts) {
            let mut outcomes = Outcomes::new(shared);
            outcomes.receipt(&app, id, &wanted, kind::CLICKED, &target(&wanted, regid), Some(regid));
            outcomes.write().await?;
        }
    }
    let now_ms = shared.clock.now_ms();
    if !shared.traces.clicked(id, regid, now_ms, keep_until(shared, id)).await? {
        return Ok(());
    }
    shared.counts.today(now_ms, &app, |day| day.clicked += 1);
    if record.broadcast {
        shared.counts.clicked(shared, &app, id);
    }
    Ok(())
}

/// The record of a message, if it may have been for this registration: a device may say what it likes.
async fn record_of(shared: &Shared, app: &AppId, id: MessageId, regid: RegId) -> Result<Option<Record>, Failure> {
    let record = shared.records.get(app, id).await?;
    Ok(record.filter(|record| record.broadcast || record.targets.binary_search(&regid).is_ok()))
}

/// The device could not hand a delivery to its app, or dropped it as a duplicate.
pub(crate) async fn report(shared: &Arc<Shared>, account: AccountId, report: &Report) -> Result<(), Failure> {
    shared.metrics.reports.inc();
    tracing::info!(%account, app = report.app, reason = report.reason, "a device could not hand a delivery over");
    let reason = match report.reason {
        REPORT_DUPLICATE => DropReason::Duplicate,
        REPORT_REFUSED => DropReason::Refused,
        _ => return Ok(()),
    };
    let app: AppId = parse(&report.app)?;
    let id = message_id(&report.message)?;
    let Some(registration) = registration_of(shared, account, &app).await? else { return Ok(()) };
    let Some(record) = record_of(shared, &app, id, registration.regid).await? else { return Ok(()) };
    let mut outcomes = Outcomes::new(shared);
    outcomes.dropped(&Whose { app: &app, message: id, regid: registration.regid }, reason);
    let duplicate = reason == DropReason::Duplicate;
    if duplicate && !record.broadcast {
        outcomes.batch.acknowledged(registration.regid, id);
    }
    outcomes.write().await?;
    // Its acknowledgement, which comes too, is not that of a delivery.
    if duplicate && let Some(handle) = shared.sessions.find(account) {
        handle.lock().not_delivered(&app, id, record.broadcast);
    }
    Ok(())
}

fn message_id(bytes: &[u8]) -> Result<MessageId, Failure> {
    MessageId::from_bytes(bytes).map_err(|error| Failure::new(Code::BadValue, error.to_string()))
}
