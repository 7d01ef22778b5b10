//! Publishes stored broadcasts to all fronts, in the order in which they were stored.

use std::sync::Arc;
use std::time::Duration;

use idl::bus::FrontEvent;
use idl::channel;
use idl::contract::bus::Broadcast;
use idl::message::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Shared;

/// Broadcasts waiting to be published.
const WAITING_MAX: usize = 1024;
/// How long a front with a full queue is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where stored broadcasts go.
pub(crate) struct Queue(mpsc::Sender<Arc<Message>>);

/// Takes them from the queue to the fronts.
pub(crate) struct Publisher(mpsc::Receiver<Arc<Message>>);

/// A queue and its publisher.
pub(crate) fn queue() -> (Queue, Publisher) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Queue(sender), Publisher(receiver))
}

impl Queue {
    /// Hands a stored broadcast over. If the queue is full it is left to judgements: they find it in the timeline.
    pub(crate) fn publish(&self, shared: &Arc<Shared>, message: Arc<Message>) {
        if self.0.try_send(message).is_err() {
            missed(shared);
        }
    }
}

impl Publisher {
    /// Runs until `drain` is cancelled.
    pub(crate) async fn run(mut self, shared: Arc<Shared>, drain: CancellationToken) {
        loop {
            let message = tokio::select! {
                biased;
                message = self.0.recv() => message,
                () = drain.cancelled() => return,
            };
            let Some(message) = message else { return };
            if let Err(failure) = publish(&shared, &message).await {
                tracing::warn!(id = %message.id, %failure, "a broadcast did not reach every front; judgements deliver it");
                missed(&shared);
            }
        }
    }
}

async fn publish(shared: &Arc<Shared>, message: &Message) -> Result<(), idl::error::Failure> {
    let Some(audience) = &message.audience else { return Ok(()) };
    let app = shared.apps.by_id(&message.app).await?;
    let broadcast = Broadcast {
        id: message.id.to_bytes().to_vec(),
        app: message.app.to_string(),
        audience: audience.to_wire(),
        payload: shared.payloads.broadcast(&app, message).to_vec(),
        expires_at_ms: i64::try_from(message.expires_at_ms).unwrap_or(i64::MAX),
        channel: i32::try_from(channel::PUSH).unwrap_or(i32::MAX),
    };
    shared.bus.publish(FrontEvent::Broadcast(broadcast), Instant::now() + PATIENCE).await
}

fn missed(shared: &Arc<Shared>) {
    shared.metrics.broadcasts_unpublished.inc();
    shared.sessions.judge_all_soon(shared);
}
