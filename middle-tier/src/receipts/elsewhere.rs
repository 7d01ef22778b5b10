//! Receipts and other middles: telling the owner of a URL that something waits, and asking all what they have settled.
//!
//! Being told is a matter of speed alone. What is lost on the way is found when the owner scans the store.

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idl::bus::{Call, Reply, Request};
use idl::contract::bus as wire;
use idl::ids::{AppId, MessageId};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::partition_of;
use crate::pokes::shard_of;
use crate::{Shared, others};

/// What is written for one URL within this time is told together.
const INTERVAL: Duration = Duration::from_millis(200);
/// URLs that wait to be told of; beyond it their owners find out by themselves.
const WAITING_MAX: usize = 10_000;
/// Owners told at one time, and how long one is waited for.
const AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(1);
/// What the others have settled is asked for at most so often.
const ASK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct Elsewhere {
    waiting: Mutex<BTreeSet<(AppId, String)>>,
    changed: Notify,
    settled: tokio::sync::Mutex<Settled>,
}

struct Settled {
    asked_at: Option<Instant>,
    before: MessageId,
}

impl Default for Settled {
    fn default() -> Self {
        Self { asked_at: None, before: MessageId::MIN }
    }
}

impl Elsewhere {
    fn waiting(&self) -> MutexGuard<'_, BTreeSet<(AppId, String)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn poke(&self, app: &AppId, url: &str) {
        let mut waiting = self.waiting();
        if waiting.len() < WAITING_MAX && waiting.insert((app.clone(), url.to_owned())) {
            self.changed.notify_one();
        }
    }

    /// The least of what all middles have settled. If one of them does not answer it stays as it was.
    pub(super) async fn settled(&self, shared: &Shared, here: MessageId) -> MessageId {
        let mut known = self.settled.lock().await;
        if known.asked_at.is_some_and(|at| at.elapsed() < ASK_INTERVAL) {
            return known.before;
        }
        let answers = others::ask(shared, Request::AskSettled(wire::AskSettled {})).await;
        let before = answers.into_iter().map(|answer| match answer {
            Ok(Reply::Settled(settled)) => MessageId::from_bytes(&settled.id).ok(),
            _ => None,
        });
        let before: Option<Vec<MessageId>> = before.collect();
        known.asked_at = Some(Instant::now());
        if let Some(before) = before {
            let all = before.into_iter().min().map_or(here, |others| others.min(here));
            known.before = known.before.max(all);
        }
        known.before
    }
}

/// Tells owners until `drain` is cancelled, and then once more.
pub(crate) async fn run(shared: Arc<Shared>, drain: CancellationToken) {
    let elsewhere = &shared.receipts.elsewhere;
    while !drain.is_cancelled() {
        let next = async {
            elsewhere.changed.notified().await;
            sleep(INTERVAL).await;
        };
        drain.run_until_cancelled(next).await;
        let waiting = mem::take(&mut *elsewhere.waiting());
        let mut telling = JoinSet::new();
        for (app, url) in waiting {
            if telling.len() >= AT_ONCE {
                telling.join_next().await;
            }
            let shared = Arc::clone(&shared);
            telling.spawn(async move { tell(&shared, &app, url).await });
        }
        while telling.join_next().await.is_some() {}
    }
}

async fn tell(shared: &Shared, app: &AppId, url: String) {
    let partition = partition_of(app, &url);
    let request = Request::ReceiptsWait(wire::ReceiptsWait { app: app.to_string(), url });
    if let Err(failure) = shared.bus.request(Call::high(shard_of(partition), PATIENCE, request)).await {
        tracing::debug!(%app, %failure, "the owner of a callback URL was not told of receipts; it finds them");
    }
}
