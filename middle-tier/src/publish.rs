//! Publishes stored broadcasts to all fronts, in the order in which they were stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idl::bus::FrontEvent;
use idl::channel;
use idl::contract::bus::{Broadcast, CancelBroadcast};
use idl::ids::{AppId, MessageId};
use idl::message::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::accounts::signed;

/// Broadcasts waiting to be published.
const WAITING_MAX: usize = 1024;
/// How long a front with a full queue is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Broadcasts that were missed within this time are found by one judgement of each session: where they come faster than
/// fronts take them, reading the timeline for every session and every one of them would make it worse.
const JUDGE_INTERVAL: Duration = Duration::from_secs(5);

/// What is told to every front.
enum News {
    Stored(Arc<Message>),
    Stopped(AppId, MessageId),
}

/// Where stored broadcasts go.
pub(crate) struct Queue {
    waiting: mpsc::Sender<News>,
    missed: Arc<AtomicBool>,
}

/// Takes them from the queue to the fronts.
pub(crate) struct Publisher {
    waiting: mpsc::Receiver<News>,
    missed: Arc<AtomicBool>,
}

/// A queue and its publisher.
pub(crate) fn queue() -> (Queue, Publisher) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let missed = Arc::new(AtomicBool::new(false));
    (Queue { waiting: sender, missed: Arc::clone(&missed) }, Publisher { waiting: receiver, missed })
}

impl Queue {
    /// Hands a stored broadcast over. If the queue is full it is left to judgements: they find it in the timeline.
    pub(crate) fn publish(&self, shared: &Shared, message: Arc<Message>) {
        if self.waiting.try_send(News::Stored(message)).is_err() {
            shared.metrics.broadcasts_unpublished.inc();
            self.missed.store(true, Ordering::Release);
        }
    }

    /// A broadcast was stopped: fronts write it to nobody any more. If the queue is full, what is on its way arrives.
    pub(crate) fn cancel(&self, shared: &Shared, app: AppId, id: MessageId) {
        if self.waiting.try_send(News::Stopped(app, id)).is_err() {
            shared.metrics.broadcasts_unpublished.inc();
        }
    }
}

impl Publisher {
    /// Runs until `drain` is cancelled.
    pub(crate) async fn run(mut self, shared: Arc<Shared>, drain: CancellationToken) {
        let mut judging = interval(JUDGE_INTERVAL);
        judging.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let news = tokio::select! {
                biased;
                _ = judging.tick() => {
                    if self.missed.swap(false, Ordering::AcqRel) {
                        shared.sessions.judge_all_soon(&shared);
                    }
                    continue;
                }
                news = self.waiting.recv() => news,
                () = drain.cancelled() => return,
            };
            let message = match news {
                Some(News::Stored(message)) => message,
                Some(News::Stopped(app, id)) => {
                    let event = CancelBroadcast { id: id.to_bytes().to_vec(), app: app.to_string() };
                    let told = shared.bus.publish(FrontEvent::CancelBroadcast(event), Instant::now() + PATIENCE).await;
                    if let Err(failure) = told {
                        tracing::warn!(%id, %failure, "not every front was told that a broadcast is stopped");
                    }
                    continue;
                }
                None => return,
            };
            if let Err(failure) = publish(&shared, &message).await {
                tracing::warn!(id = %message.id, %failure, "a broadcast did not reach every front; judgements deliver it");
                shared.metrics.broadcasts_unpublished.inc();
                self.missed.store(true, Ordering::Release);
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
        spread_ms: (message.handling.spread_ms > 0).then(|| signed(message.handling.spread_ms)),
        local_time_ms: message.handling.local_time_ms.map(signed),
    };
    shared.bus.publish(FrontEvent::Broadcast(broadcast), Instant::now() + PATIENCE).await
}
