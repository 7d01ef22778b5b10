//! Ending all connections without having them all come back at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::Shared;
use crate::close::Reason;

/// Connections that may end together: so few coming back at once are no burden.
const WAVE_MIN: usize = 50;
const WAVES_MAX: usize = 20;

/// Takes no new connections and ends the others in waves, each in its turn by lot. Returns when all have been told and
/// their routes given back, or when that has taken as long as it may.
pub(crate) async fn drain(shared: &Arc<Shared>) {
    shared.draining.cancel();
    let limits = &shared.config.limits;
    let mut lines = shared.hubs.lines();
    tracing::info!(connections = lines.len(), "draining");
    for at in (1..lines.len()).rev() {
        let bound = u64::try_from(at + 1).unwrap_or(u64::MAX);
        lines.swap(at, usize::try_from(shared.entropy.below(bound)).unwrap_or(0));
    }
    let wave = lines.len().div_ceil(WAVES_MAX).max(WAVE_MIN);
    let waves = u32::try_from(lines.len().div_ceil(wave)).unwrap_or(1).max(1);
    let pause = limits.reconnect_spread / waves;
    for (number, lines) in lines.chunks(wave).enumerate() {
        if number > 0 {
            let millis = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            sleep(pause / 2 + Duration::from_millis(shared.entropy.below(millis))).await;
        }
        for line in lines {
            line.close(Reason::Shutdown);
        }
    }
    // Those that bound a resource while the waves went out.
    for line in shared.hubs.lines() {
        line.close(Reason::Shutdown);
    }
    shared.connections.close();
    let patience = limits.write_time_max + limits.bus_time_max;
    if timeout(patience, shared.connections.wait()).await.is_err() {
        tracing::warn!(left = shared.connections.len(), "draining took too long; the rest is cut off");
    }
    // Behind the devices: until then services hear who leaves.
    shared.components.end().await;
}
