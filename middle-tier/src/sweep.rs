//! The sweep: every session is compared with the store now and then, so that whatever was accepted and not dispatched is
//! found, whoever lost it.

use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{Shared, dispatch};

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
