//! The sweep: every session is compared with the store now and then, so that whatever was accepted and not dispatched is
//! found, whoever lost it. All are compared at once when a middle has vanished: it may have stored what it told nobody of.

use std::sync::Arc;

use idl::bus::{Reply, Request};
use idl::contract::bus::JudgeSoon;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{Shared, dispatch, others};

/// The sweep goes round in so many parts, so that its reads are spread over the interval.
const PARTS: u32 = 64;

/// Runs until `drain` is cancelled.
pub(crate) async fn run(shared: Arc<Shared>, drain: CancellationToken) {
    let mut ticks = interval(shared.config.check_interval / PARTS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut part = 0;
    loop {
        tokio::select! {
            () = drain.cancelled() => return,
            () = shared.sweep_now.notified() => {
                let all = shared.sessions.part(0, 1);
                tracing::info!(sessions = all.len(), "a middle has vanished: sessions are compared with the store");
                for handle in all {
                    handle.lock().check_whole();
                    dispatch::drive(&shared, &handle);
                }
                continue;
            }
            _ = ticks.tick() => {}
        }
        for handle in shared.sessions.part(part, u128::from(PARTS)) {
            handle.lock().check();
            dispatch::drive(&shared, &handle);
        }
        part = (part + 1) % u128::from(PARTS);
        shared.metrics.sessions.set(i64::try_from(shared.sessions.len()).unwrap_or(i64::MAX));
        shared.metrics.last_sweep_ms.set(shared.clock.now_ms());
    }
}

/// Part of a vanished middle's work has come here: what it left undone is looked for by all, whoever got the rest.
pub(crate) fn after_a_middle_vanished(shared: &Arc<Shared>) {
    shared.sweep_now.notify_one();
    let asking = Arc::clone(shared);
    shared.tasks.spawn(async move {
        others::ask(&asking, Request::JudgeSoon(JudgeSoon { mailboxes: Some(true) })).await;
    });
}

/// Another middle says that sessions are to be compared with the store.
pub(crate) fn asked(shared: &Shared, request: &JudgeSoon) -> Reply {
    if request.mailboxes == Some(true) {
        shared.sweep_now.notify_one();
        return Reply::Done;
    }
    shared.broadcasts.judge_soon()
}
