//! What app servers ask for: who asks is authorised, what is asked twice under one idempotency key is done once, and the
//! app's rate goes with every answer.

use std::sync::Arc;

use idl::bus::Reply;
use idl::contract::bus::{AppAnswer, AppCall, AppReply, AppRequest, Status};
use idl::error::{Code, Failure};
use idl::ids::MessageId;
use schema::catalog::App;

use crate::idempotency::{self, Key};
use crate::{Shared, accept, rates, recall, registry, saved, schedules, server_topics, states};

/// Answers one request of an app server. What is the app server's own fault is an answer too; only what keeps the middle
/// from working on it fails the request.
pub(crate) async fn answer(shared: &Arc<Shared>, id: MessageId, call: Box<AppCall>) -> Result<Reply, Failure> {
    let app = shared.apps.by_secret(&call.secret_sha256).await?;
    let call = *call;
    let key = Key::of(&app, call.idempotency_key, call.fingerprint)?;
    let (result, replayed) = match key {
        Some(key) => Box::pin(idempotency::once(shared, &app, id, key, call.request)).await,
        None => (carry_out(shared, &app, id, call.request, None).await, false),
    };
    let refused = result.as_ref().err().map(|failure| failure.code);
    let rate = Some(rates::left(shared, &app, refused).await);
    let reply = match result {
        Ok(answer) => AppReply { status: ok(), answer: Some(answer), rate, replayed: replayed.then_some(true) },
        Err(failure) => {
            AppReply { status: failure.to_status(), answer: None, rate, replayed: replayed.then_some(true) }
        }
    };
    Ok(Reply::App(Box::new(reply)))
}

/// Does what is asked. With a key, whatever accepts something stores the answer in the same write. Each request's work is in
/// a box, so that none has to carry the state of the largest.
pub(crate) async fn carry_out(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    id: MessageId,
    request: AppRequest,
    key: Option<&Key>,
) -> Result<AppAnswer, Failure> {
    match request {
        AppRequest::Send(send) => {
            Box::pin(accept::send(shared, app, id, Box::new(send), key)).await.map(AppAnswer::Accepted)
        }
        AppRequest::SendMany(many) => {
            Box::pin(accept::many(shared, app, id, many, key)).await.map(AppAnswer::AcceptedMany)
        }
        AppRequest::ChangeTopic(change) => {
            Box::pin(server_topics::change(shared, app, id, change)).await.map(AppAnswer::TopicChanged)
        }
        AppRequest::NamesOf(asked) => Box::pin(registry::names_of(shared, app, &asked)).await.map(AppAnswer::Texts),
        AppRequest::RegidsOf(asked) => Box::pin(registry::regids_of(shared, app, asked)).await.map(AppAnswer::Texts),
        AppRequest::Online(asked) => Box::pin(registry::online(shared, app, asked)).await.map(AppAnswer::Online),
        AppRequest::TakeInvalid(asked) => {
            Box::pin(registry::take_invalid(shared, app, &asked)).await.map(AppAnswer::Texts)
        }
        AppRequest::Registration(asked) => {
            Box::pin(registry::registration(shared, app, &asked.name)).await.map(AppAnswer::Registration)
        }
        AppRequest::Counters(asked) => Box::pin(states::counters(shared, app, &asked)).await.map(AppAnswer::Days),
        AppRequest::MessageStatus(name) => Box::pin(states::of(shared, app, &name)).await.map(AppAnswer::Messages),
        AppRequest::Messages(asked) => Box::pin(states::between(shared, app, &asked)).await.map(AppAnswer::Messages),
        AppRequest::Trace(asked) => Box::pin(states::trace(shared, app, &asked)).await.map(AppAnswer::Traced),
        AppRequest::Stop(stop) => Box::pin(recall::stop(shared, app, id, stop)).await.map(AppAnswer::Stopped),
        AppRequest::Recall(recall) => {
            Box::pin(recall::by_notify_id(shared, app, id, recall)).await.map(AppAnswer::Changed)
        }
        AppRequest::Schedule(name) => Box::pin(schedules::show(shared, app, &name)).await.map(AppAnswer::Schedule),
        AppRequest::Schedules(page) => Box::pin(schedules::list(shared, app, &page)).await.map(AppAnswer::Schedules),
        AppRequest::DeleteSchedule(name) => {
            Box::pin(schedules::delete(shared, app, &name)).await.map(AppAnswer::Changed)
        }
        AppRequest::ChangeSchedule(change) => {
            Box::pin(schedules::change(shared, app, change)).await.map(AppAnswer::Schedule)
        }
        AppRequest::PutSegment(segment) => {
            Box::pin(saved::put_segment(shared, app, segment)).await.map(AppAnswer::Changed)
        }
        AppRequest::Segment(name) => Box::pin(saved::segment(shared, app, &name.name)).await.map(AppAnswer::Segment),
        AppRequest::DeleteSegment(name) => {
            Box::pin(saved::delete_segment(shared, app, &name.name)).await.map(AppAnswer::Changed)
        }
        AppRequest::Segments(page) => Box::pin(saved::segments(shared, app, &page)).await.map(AppAnswer::Segments),
        AppRequest::PutTemplate(template) => {
            Box::pin(saved::put_template(shared, app, template)).await.map(AppAnswer::Changed)
        }
        AppRequest::Template(name) => Box::pin(saved::template(shared, app, &name.name)).await.map(AppAnswer::Template),
        AppRequest::DeleteTemplate(name) => {
            Box::pin(saved::delete_template(shared, app, &name.name)).await.map(AppAnswer::Changed)
        }
        AppRequest::Templates(page) => Box::pin(saved::templates(shared, app, &page)).await.map(AppAnswer::Templates),
        AppRequest::Receipts(page) => Box::pin(states::receipts(shared, app, &page)).await.map(AppAnswer::Receipts),
    }
}

fn ok() -> Status {
    Status { code: 0, description: None }
}

/// A page's limit: 1 to 100, whatever was asked for.
pub(crate) fn page_limit(limit: i32) -> usize {
    usize::try_from(limit.clamp(1, 100)).unwrap_or(1)
}

/// Text that names a message.
pub(crate) fn message_id(text: &str) -> Result<MessageId, Failure> {
    text.parse().map_err(|_| {
        Failure::new(Code::BadValue, format!("{:?} is not a message id: 26 characters were expected", short(text)))
    })
}

/// A text of a request, short enough for a description.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(64).collect()
}
