//! The front's sign of life, and what follows when the middle tier's memory turns out to be another: every connection is
//! announced anew, paced.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::Shared;
use crate::channels;
use crate::line::Line;

/// How often the front says that it lives.
const LEASE_INTERVAL: Duration = Duration::from_secs(2);

/// Renews the lease every two seconds, and learns generation and revocations from it.
pub(crate) async fn keep_lease(shared: Arc<Shared>) {
    let mut ticks = interval(LEASE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked_at = Instant::now();
        match shared.middle.lease().await {
            Ok(leased) => {
                let listed: Vec<_> = leased.revoked.iter().filter_map(|revoked| shared.revoke(revoked)).collect();
                shared.credentials.revoked.keep(&listed, asked_at);
                shared.learn(leased.generations);
                shared.leased(true);
                // Also for those that could not be announced when it was due.
                shared.announce.notify_one();
            }
            Err(failure) => {
                tracing::debug!(%failure, "the lease was not renewed");
                shared.leased(false);
            }
        }
    }
}

/// Announces each line that the middle's present memory may not know, a bounded number at one time.
pub(crate) async fn announce(shared: Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(shared.config.limits.announcements_max.max(1)));
    loop {
        shared.announce.notified().await;
        let due = |line: &Line| {
            let generation = shared.hubs.generation(line.partition);
            generation.is_some_and(|generation| channels::needs_announcing(line, generation))
        };
        let mut lines = shared.hubs.lines();
        lines.retain(|line| due(line));
        for line in lines {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            // While it waited it may have been announced for another reason.
            if due(&line) {
                channels::announce(&shared, &line, permit);
            }
        }
    }
}
