//! Signs of life: each process says once a second, or a fifth of the lease, that it lives, renews what it has, claims what it
//! should have, and learns of all others, in one round trip.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Shared;
use super::connection::Speaker;
use super::members::{BEATS_APART, Beat, View};
use crate::bus::Owner;

/// While a partition is being given away.
const LEAVING_EVERY: Duration = Duration::from_millis(50);
/// Clocks that lie further apart are worth a warning.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(1);

/// One sign of life.
pub(super) async fn beat(shared: &Shared, connection: &mut MultiplexedConnection) -> Result<View, String> {
    let number = shared.members.begin();
    let before = shared.members.view();
    let plan = shared.leases.plan(&before, &shared.in_hand);
    let (fronts, fronts_gone) = shared.fronts.living();
    let middle = shared.leases.is_middle();
    let beat = Beat {
        middle,
        fronts,
        middle_gone: shared.leases.is_detaching(),
        fronts_gone,
        renew: plan.renew.clone(),
        claim: plan.claim.clone(),
        release: plan.release.clone(),
    };
    let (keys, lease) = (&shared.keys, shared.options.middle_lease);
    let call = beat.invocation(shared.process, lease, &keys.members, &keys.owners);
    let sent_at = Instant::now();
    let answered = timeout(shared.options.response_timeout, call.invoke_async(connection)).await;
    let value = match answered {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => return Err(shared.dialer.said(&error)),
        Err(_) => {
            let (server, limit) = (&shared.dialer.server, shared.options.response_timeout);
            return Err(format!("Redis at {server} did not answer within {limit:?}"));
        }
    };
    let read = shared.members.learn(number, &value, sent_at);
    let view = read.ok_or_else(|| format!("Redis at {} gave an answer that can't be read", shared.dialer.server))?;
    let settled = shared.leases.settle(&plan, &view, sent_at);
    if settled.gained + settled.lost + settled.released > 0 {
        tracing::info!(settled.gained, settled.lost, settled.released, "partitions changed hands");
    }
    shared.metrics.partitions_lost.add(settled.lost);
    shared.metrics.partitions_owned.set(shared.leases.count() as u64);
    shared.metrics.middles.set(view.middles().len() as u64);
    shared.metrics.fronts.set(view.fronts().len() as u64);
    let offset = shared.clock.now_ms().abs_diff(view.now_ms());
    shared.metrics.clock_offset_ms.set(offset);
    if Duration::from_millis(offset) > CLOCKS_APART_MAX && shared.seldom.now() {
        tracing::warn!(offset_ms = offset, "the clocks of this machine and of Redis lie far apart");
    }
    Ok(view)
}

/// Gives signs of life for as long as the bus lives.
pub(super) async fn keep(shared: Arc<Shared>, first: MultiplexedConnection) {
    let mut link = Some(first);
    let mut failed = 0;
    loop {
        let Some(connection) = &mut link else {
            match shared.dialer.dial(shared.options.response_timeout).await {
                Ok(connection) => link = Some(connection),
                Err(reason) => {
                    fails(&shared, &reason);
                    sleep(shared.dialer.pause(failed)).await;
                    failed += 1;
                }
            }
            continue;
        };
        let begun = Instant::now();
        match beat(&shared, connection).await {
            Ok(view) => {
                failed = 0;
                shared.status.works(Speaker::Beats);
                // What it just learned may let it claim something.
                let at_once = !shared.leases.plan(&view, &shared.in_hand).claim.is_empty();
                let every = if shared.leases.is_leaving_any() { LEAVING_EVERY } else { shared.options.beat_every() };
                let next = if at_once { begun + BEATS_APART } else { begun + every };
                tokio::select! {
                    () = shared.members.poke.notified() => sleep_until(begun + BEATS_APART).await,
                    () = sleep_until(next) => {}
                }
            }
            Err(reason) => {
                shared.metrics.beats_failed.add(1);
                fails(&shared, &reason);
                link = None;
                sleep(shared.dialer.pause(failed)).await;
                failed += 1;
            }
        }
    }
}

fn fails(shared: &Shared, reason: &str) {
    if shared.status.fails(Speaker::Beats, reason) {
        tracing::warn!(%reason, "the bus can't carry anything");
    }
}

/// Stops in time what could be another's, and hears what the middle has left.
pub(super) async fn watch_over(shared: Arc<Shared>, owner: Arc<Owner>) {
    let mut changed = shared.leases.changed.subscribe();
    let mut has_middle = true;
    loop {
        let end = shared.leases.next_end();
        tokio::select! {
            () = async { match end {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            } } => {
                let lost = shared.leases.expire();
                if lost > 0 {
                    shared.metrics.partitions_lost.add(lost);
                    shared.metrics.partitions_owned.set(shared.leases.count() as u64);
                    tracing::warn!(lost, "leases of partitions could not be renewed in time");
                }
            }
            left = owner.left(), if has_middle => {
                shared.leases.left(left);
                if left.is_none() {
                    // Its inbox was dropped: nothing would be served any more.
                    has_middle = false;
                    shared.leases.detach();
                    shared.members.middle_here.store(false, Ordering::Relaxed);
                }
                shared.members.poke.notify_one();
            }
            change = changed.changed() => {
                if change.is_err() {
                    return;
                }
                if !has_middle {
                    shared.leases.left(None);
                }
            }
        }
    }
}
