//! Publishes stored broadcasts to all fronts, in the order in which they were stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idl::bus::{FrontEvent, Reply, Request};
use idl::channel;
use idl::contract::bus::{Broadcast, BroadcastStopped, CancelBroadcast, JudgeSoon};
use idl::error::Failure;
use idl::ids::{AppId, MessageId};
use idl::message::Message;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::accounts::signed;
use crate::apps::parse;
use crate::{Shared, others, pokes};

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

/// Broadcasts that others are told of at one time.
const TOLD_AT_ONCE: usize = 16;

/// Where stored broadcasts go.
pub(crate) struct Queue {
    waiting: mpsc::Sender<News>,
    missed: Arc<AtomicBool>,
    /// Another middle says that a front missed a broadcast.
    missed_elsewhere: AtomicBool,
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
    let queue = Queue { waiting: sender, missed: Arc::clone(&missed), missed_elsewhere: AtomicBool::new(false) };
    (queue, Publisher { waiting: receiver, missed })
}

impl Queue {
    /// Hands a stored broadcast over. If the queue is full it is left to judgements: they find it in the timeline.
    pub(crate) fn publish(&self, shared: &Shared, message: Arc<Message>) {
        if self.waiting.try_send(News::Stored(message)).is_err() {
            shared.metrics.broadcasts_unpublished.inc();
            self.missed.store(true, Ordering::Release);
        }
    }

    /// A front missed a broadcast of another middle.
    pub(crate) fn judge_soon(&self) -> Reply {
        self.missed_elsewhere.store(true, Ordering::Release);
        Reply::Done
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
                    let missed_here = self.missed.swap(false, Ordering::AcqRel);
                    let missed_elsewhere = shared.broadcasts.missed_elsewhere.swap(false, Ordering::AcqRel);
                    if missed_here || missed_elsewhere {
                        shared.sessions.judge_all_soon(&shared);
                    }
                    if missed_here && !shared.partitions.is_whole() {
                        // They have sessions of the same fronts. One that is not told finds out by its sweep.
                        let others = Arc::clone(&shared);
                        shared.tasks.spawn(async move {
                            others::ask(&others, Request::JudgeSoon(JudgeSoon { mailboxes: None })).await;
                        });
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

/// Broadcasts were taken out of their timeline: no session of any middle hands them off any more.
pub(crate) async fn stopped(shared: &Arc<Shared>, app: &AppId, ids: &[MessageId]) {
    let mut telling = JoinSet::new();
    for id in ids {
        shared.sessions.stop_broadcast(app, *id);
        if shared.partitions.is_whole() {
            continue;
        }
        if telling.len() >= TOLD_AT_ONCE {
            telling.join_next().await;
        }
        let stopped = BroadcastStopped { app: app.to_string(), id: id.to_bytes().to_vec() };
        let shared = Arc::clone(shared);
        telling.spawn(async move {
            others::ask(&shared, Request::BroadcastStopped(stopped)).await;
        });
    }
    while telling.join_next().await.is_some() {}
}

/// Another middle took a broadcast out of its timeline.
pub(crate) fn stopped_elsewhere(shared: &Shared, request: &BroadcastStopped) -> Result<Reply, Failure> {
    shared.sessions.stop_broadcast(&parse(&request.app)?, pokes::message_id(&request.id)?);
    Ok(Reply::Done)
}

async fn publish(shared: &Arc<Shared>, message: &Message) -> Result<(), Failure> {
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
