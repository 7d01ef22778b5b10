//! Idempotency keys: what an app server asks for twice under one key is done once, and the first answer is given again,
//! also when the first request is still under way or its answer was lost.
//!
//! A key is claimed durably before anything is done, with the id that the message will have; what is accepted is written
//! together with the answer. So a claim without an answer was cut off before it accepted anything, unless a backend
//! writes a batch row by row: then the message's record, which is written before the answer, tells; and where a request was cut
//! off before its record, what it has put into mailboxes or the timeline tells that it goes on under its first id. Schedules are rows of
//! the catalog, made before the answer is written: those that a request which was cut off has made are taken away before it
//! is carried out again, but for those that have fired.

use std::collections::BTreeMap;
use std::sync::Arc;

use idl::contract::bus::{Accepted, AcceptedMany, AppAnswer, AppReply, AppRequest, Send, SendMany, Status};
use idl::error::{Code, Failure};
use idl::ids::MessageId;
use idl::wire;
use schema::batch::Batch;
use schema::catalog::App;
use schema::idempotency::Claim;

use crate::accept::MAILBOXES_READ;
use crate::accounts::signed;
use crate::order::{self, Whom};
use crate::{Shared, app_calls, resolve, schedules};

/// How long the first answer is given again.
const KEPT_MS: u64 = 24 * 3600 * 1000;

/// A key of an app, and what was asked under it.
pub(crate) struct Key {
    app: Arc<App>,
    text: String,
    fingerprint: [u8; 32],
    /// Of many messages: the schedules that were made for those at these places before the request was cut off, and that
    /// have fired.
    fired: BTreeMap<u128, Accepted>,
}

impl Key {
    /// The key of a request; `None` where there is none.
    pub(crate) fn of(
        app: &Arc<App>,
        key: Option<String>,
        fingerprint: Option<Vec<u8>>,
    ) -> Result<Option<Self>, Failure> {
        let Some(key) = key else { return Ok(None) };
        if !(1..=64).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let text = "an idempotency key has 1 to 64 visible ASCII characters";
            return Err(Failure::new(Code::BadValue, text));
        }
        let fingerprint = fingerprint.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let fingerprint = fingerprint
            .ok_or_else(|| Failure::new(Code::BadRequest, "an idempotency key comes with a fingerprint of 32 bytes"))?;
        Ok(Some(Self { app: Arc::clone(app), text: key, fingerprint, fired: BTreeMap::new() }))
    }

    /// What became of the message at this place of many when the request was carried out before.
    pub(crate) fn fired(&self, at: u128) -> Option<&Accepted> {
        self.fired.get(&at)
    }

    /// Adds the answer to what is written.
    pub(crate) fn answered(&self, batch: &mut Batch, shared: &Shared, id: MessageId, answer: AppAnswer) {
        self.write(batch, shared, id, &AppReply { status: ok(), answer: Some(answer), rate: None, replayed: None });
    }

    fn write(&self, batch: &mut Batch, shared: &Shared, id: MessageId, reply: &AppReply) {
        let until = shared.clock.now_ms().saturating_add(KEPT_MS);
        batch.idempotent_answer(&self.app.app, &self.text, self.fingerprint, id, &wire::encode(reply), until);
    }
}

/// Does it once. The second value says that the answer was given before.
pub(crate) async fn once(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    id: MessageId,
    mut key: Key,
    request: AppRequest,
) -> (Result<AppAnswer, Failure>, bool) {
    // A twin of the request waits here until this one is answered.
    let _turn = shared.keys_under_way.take_text(&format!("{} {}", app.app, key.text)).await;
    let claimed = match claim(shared, app, id, &mut key, &request).await {
        Ok(Claimed::New(id)) => id,
        Ok(Claimed::Answered(reply)) => {
            shared.metrics.replayed.inc();
            let AppReply { status, answer, .. } = *reply;
            let result = answer.filter(|_| status.code == 0).ok_or_else(|| Failure::from_status(status));
            return (result, true);
        }
        Err(failure) => return (Err(failure), false),
    };
    let accepts = match &request {
        AppRequest::Send(send) => send.dry_run != Some(true),
        AppRequest::SendMany(_) => true,
        _ => false,
    };
    let result = app_calls::carry_out(shared, app, claimed, request, Some(&key)).await;
    let mut batch = Batch::default();
    match &result {
        // It was written with what was accepted.
        Ok(_) if accepts => return (result, false),
        Ok(answer) => key.answered(&mut batch, shared, claimed, answer.clone()),
        // What may succeed later may be tried again under the same key.
        Err(failure) if failure.code.retryable() => return (result, false),
        // What was refused for good stays refused.
        Err(failure) => {
            let reply = AppReply { status: failure.to_status(), answer: None, rate: None, replayed: None };
            key.write(&mut batch, shared, claimed, &reply);
        }
    }
    match batch.write(shared.store.as_ref()).await {
        Ok(()) => (result, false),
        Err(error) => (Err(error.into()), false),
    }
}

enum Claimed {
    /// Nothing was accepted under the key: go on, with this id.
    New(MessageId),
    /// The first answer.
    Answered(Box<AppReply>),
}

async fn claim(
    shared: &Arc<Shared>,
    app: &App,
    id: MessageId,
    key: &mut Key,
    request: &AppRequest,
) -> Result<Claimed, Failure> {
    let until = shared.clock.now_ms().saturating_add(KEPT_MS);
    let (fingerprint, claimed, answer) =
        match shared.idempotency.claim(&app.app, &key.text, key.fingerprint, id, until).await? {
            Claim::New => return Ok(Claimed::New(id)),
            Claim::Taken { fingerprint, id, answer } => (fingerprint, id, answer),
        };
    if fingerprint != key.fingerprint {
        let text = "this idempotency key came before with another request; use a new key for a new request";
        return Err(Failure::new(Code::KeyReused, text));
    }
    if let Some(answer) = answer {
        let reply = wire::decode_trusted::<AppReply>(&answer)
            .map_err(|error| Failure::new(Code::System, format!("a stored answer can't be read: {error}")))?;
        return Ok(Claimed::Answered(Box::new(reply)));
    }
    // The first request was cut off. Did it accept something?
    let answer = match request {
        AppRequest::SendMany(many) => many_accepted(shared, app, claimed, many, key).await?,
        _ => accepted(shared, app, claimed).await?.map(AppAnswer::Accepted),
    };
    if let Some(answer) = answer {
        let reply = AppReply { status: ok(), answer: Some(answer), rate: None, replayed: None };
        return Ok(Claimed::Answered(Box::new(reply)));
    }
    if let AppRequest::Send(send) = request
        && begun(shared, app, claimed, send).await?
    {
        return Ok(Claimed::New(claimed));
    }
    // An id as old as the claim's might come before what devices have been judged to.
    let mut batch = Batch::default();
    batch.reclaim(&app.app, &key.text, key.fingerprint, id, until);
    batch.write(shared.store.as_ref()).await?;
    Ok(Claimed::New(id))
}

/// Whether a part of a message is stored, or was delivered already: under another id it would be delivered twice.
async fn begun(shared: &Arc<Shared>, app: &App, id: MessageId, send: &Send) -> Result<bool, Failure> {
    let whom = match order::whom(shared, app, &mut send.target.clone()).await?.1 {
        Whom::Audience(_) => return Ok(shared.timelines.get(&app.app, id).await?.is_some()),
        singles => singles,
    };
    let resolved = resolve::singles(shared, &app.app, whom).await?;
    let cells: Vec<_> = resolved.registrations.keys().map(|regid| (*regid, id)).collect();
    for cells in cells.chunks(MAILBOXES_READ) {
        if shared.mailboxes.get(cells).await?.iter().any(Option::is_some) {
            return Ok(true);
        }
    }
    Ok(!shared.traces.of_message(id, None, 1).await?.is_empty())
}

/// What was accepted under an id, if anything was.
async fn accepted(shared: &Arc<Shared>, app: &App, id: MessageId) -> Result<Option<Accepted>, Failure> {
    let accepted = |due_ms| Accepted { id: Some(id.to_string()), bad_targets: None, audience: None, due_ms };
    if let Some(schedule) = shared.catalog.schedule(&app.app, id).await? {
        return Ok(Some(accepted(Some(signed(schedule.due_ms)))));
    }
    Ok(shared.records.get(&app.app, id).await?.map(|_| accepted(None)))
}

/// The same of many. Schedules that wait are taken away, to be made again.
async fn many_accepted(
    shared: &Arc<Shared>,
    app: &App,
    first: MessageId,
    many: &SendMany,
    key: &mut Key,
) -> Result<Option<AppAnswer>, Failure> {
    let id = |at: u128| MessageId(first.0.saturating_add(at));
    let ids: Vec<_> = (0..).zip(&many.sends).map(|(at, _)| id(at)).collect();
    let sent = shared.records.get_many(&app.app, &ids).await?;
    let sent_any = sent.iter().any(Option::is_some);
    for (at, _) in (0..).zip(&many.sends).filter(|(_, send)| schedules::wanted(send)) {
        if (sent_any || !shared.catalog.delete_schedule(&app.app, id(at)).await?)
            && let Some(made) = accepted(shared, app, id(at)).await?
        {
            key.fired.insert(at, made);
        }
    }
    if !sent_any {
        return Ok(None);
    }
    // A backend that writes row by row was cut off between two of them.
    let (mut all, mut statuses) = (Vec::new(), Vec::new());
    for (at, record) in (0..).zip(&sent) {
        let made = key.fired.get(&at).cloned();
        let found = record.as_ref().map(|record| Accepted { id: Some(record.id.to_string()), ..none() }).or(made);
        statuses.push(if found.is_some() { ok() } else { Failure::from(Code::System).to_status() });
        all.push(found.unwrap_or_else(none));
    }
    Ok(Some(AppAnswer::AcceptedMany(AcceptedMany { accepted: all, statuses })))
}

/// Of what was accepted.
pub(crate) fn ok() -> Status {
    Status { code: 0, description: None }
}

/// Of a message that was not accepted.
pub(crate) fn none() -> Accepted {
    Accepted { id: None, bad_targets: None, audience: None, due_ms: None }
}
