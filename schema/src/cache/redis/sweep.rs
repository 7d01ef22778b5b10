//! What looks through many keys: the routes of fronts that are gone, and wiping.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::{Effect, PRUNE, Shared, ms, route_of};
use crate::sorted::StoreError;

/// Keys of one look, and how long others are left alone after it.
const LOOK_KEYS: usize = 500;
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// Routes that wait for the second look.
const SUSPECTS_MAX: usize = 10_000;

/// Resource → route, as it is kept, of one account.
type Held = HashMap<String, String>;

/// Sweeps for as long as it is polled, in one process of all that have the same prefix.
pub(super) async fn now_and_then(shared: Arc<Shared>) {
    let every = shared.limits.sweep_every;
    loop {
        sleep(every / 2 + Duration::from_millis(shared.entropy.below(ms(every / 2)))).await;
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg(shared.keys.sweep()).arg("1").arg("NX").arg("PX").arg(ms(every / 2));
        let swept = match shared.pipe::<(Option<String>,)>(Effect::Writes, pipe).await {
            Ok((None,)) => continue,
            Ok((Some(_),)) => shared.sweep_routes().await,
            Err(error) => Err(error),
        };
        match swept {
            Ok(routes) => tracing::debug!(routes, "swept the routes of fronts that are gone"),
            Err(error) => tracing::warn!(%error, "the routes of fronts that are gone were not swept"),
        }
    }
}

impl Shared {
    /// A front without a lease may be one whose lease was lost with the cache and comes again at once. So there are two
    /// looks, a whole lease apart, and what is removed is removed only if it still is what it was.
    pub(super) async fn sweep_routes(&self) -> Result<u64, StoreError> {
        let (mut cursor, mut removed) = (0, 0);
        loop {
            let mut suspects: Vec<(String, Held)> = Vec::new();
            let mut count = 0;
            loop {
                let (next, keys) = self.look(cursor, &self.keys.all_routes()).await?;
                cursor = next;
                for (key, held) in self.gone(keys).await? {
                    count += held.len();
                    suspects.push((key, held));
                }
                if cursor == 0 || count >= SUSPECTS_MAX {
                    break;
                }
                sleep(LOOK_PAUSE).await;
            }
            if !suspects.is_empty() {
                sleep(self.limits.lease).await;
                removed += self.remove(suspects).await?;
            }
            if cursor == 0 {
                self.metrics.routes_swept.add(removed);
                return Ok(removed);
            }
        }
    }

    /// Removes the routes of one account whose fronts have no lease, and returns how many.
    pub(super) async fn prune(&self, key: &str) -> Result<u64, StoreError> {
        let gone = self.gone(vec![key.to_owned()]).await?;
        self.remove(gone).await
    }

    /// Deletes all that the cache holds but the generation.
    pub(super) async fn delete_everything(&self) -> Result<(), StoreError> {
        for pattern in self.keys.everything() {
            let mut cursor = 0;
            loop {
                let (next, keys) = self.look(cursor, &pattern).await?;
                if !keys.is_empty() {
                    let mut pipe = redis::pipe();
                    for key in keys {
                        pipe.del(key).ignore();
                    }
                    self.pipe::<()>(Effect::Writes, pipe).await?;
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Where to look next, and the keys of this look.
    async fn look(&self, cursor: u64, pattern: &str) -> Result<(u64, Vec<String>), StoreError> {
        let mut pipe = redis::pipe();
        pipe.cmd("SCAN").arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(LOOK_KEYS);
        let (found,): ((u64, Vec<String>),) = self.pipe(Effect::Reads, pipe).await?;
        Ok(found)
    }

    /// Those routes whose fronts have no lease.
    async fn gone(&self, keys: Vec<String>) -> Result<Vec<(String, Held)>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for key in &keys {
            pipe.hgetall(key);
        }
        let held: Vec<Held> = self.pipe(Effect::Reads, pipe).await?;
        self.without_lease(keys.into_iter().zip(held).collect()).await
    }

    /// Removes those whose fronts have no lease now, if they still are what they were.
    async fn remove(&self, suspects: Vec<(String, Held)>) -> Result<u64, StoreError> {
        let mut removed = 0;
        for (key, held) in self.without_lease(suspects).await? {
            let mut call = PRUNE.key(key);
            for (resource, route) in held {
                call.arg(resource).arg(route);
            }
            removed += self.run::<u64>(Effect::Writes, call).await?;
        }
        Ok(removed)
    }

    async fn without_lease(&self, mut routes: Vec<(String, Held)>) -> Result<Vec<(String, Held)>, StoreError> {
        let fronts = self.fronts().await?;
        for (_, held) in &mut routes {
            held.retain(|_, route| {
                // What can't be read leads nowhere.
                !route_of(route).is_ok_and(|route| fronts.binary_search(&route.front).is_ok())
            });
        }
        routes.retain(|(_, held)| !held.is_empty());
        Ok(routes)
    }
}
