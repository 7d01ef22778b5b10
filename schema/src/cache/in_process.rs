//! The cache in the process itself: bounded maps.
//!
//! A route is a promise that a newer connection has not taken over, so it must not be dropped while anything else can be:
//! when the bound is reached, routes of fronts whose lease has ended go first, and then a claim is refused as
//! [`StoreError::Unavailable`] rather than another connection's route forgotten. That is why these are plain maps and not
//! a cache that evicts what it likes.
//!
//! It keeps no records: caches in front of the store are in the same process and as near.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use idl::clock::{SharedClock, SharedEntropy};
use idl::ids::{AccountId, AppId, Epoch, FrontId, Generation};
use tokio::sync::broadcast;

use self::quotas::Quotas;
use super::{Cache, Claim, Forgotten, Grant, Known, Route, Want};
use crate::sorted::StoreError;

mod quotas;

/// How much the cache holds, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Most routes.
    pub routes_max: usize,
    /// Most fronts with a lease.
    pub fronts_max: usize,
    /// How long a front lives after it said so.
    pub lease: Duration,
}

impl Default for CacheLimits {
    /// Two million routes, 1,024 fronts, leases of 15 seconds.
    fn default() -> Self {
        Self { routes_max: 2_000_000, fronts_max: 1024, lease: Duration::from_secs(15) }
    }
}

/// The cache in the process itself.
pub struct InProcessCache {
    clock: SharedClock,
    entropy: SharedEntropy,
    limits: CacheLimits,
    state: Mutex<State>,
    /// Kept so that receivers stay open; there is no other process to tell anything.
    forgotten: broadcast::Sender<Forgotten>,
}

struct State {
    generation: Generation,
    routes: HashMap<AccountId, Vec<(Box<str>, Route)>>,
    /// How many routes there are under all accounts.
    routes_count: usize,
    /// When each front's lease ends, in milliseconds since the epoch.
    leases: HashMap<FrontId, u64>,
    quotas: Quotas,
    /// No sweep of routes before this moment, so that a full cache is not swept at every claim.
    swept_until_ms: u64,
}

impl InProcessCache {
    /// An empty cache of a new generation.
    pub fn new(clock: SharedClock, entropy: SharedEntropy, limits: CacheLimits) -> Self {
        let state = State::new(new_generation(&clock, &entropy));
        Self { clock, entropy, limits, state: Mutex::new(state), forgotten: broadcast::Sender::new(1) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No step below leaves the maps between two states when it panics, and none is expected to.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(generation: Generation) -> Self {
        Self {
            generation,
            routes: HashMap::new(),
            routes_count: 0,
            leases: HashMap::new(),
            quotas: Quotas::default(),
            swept_until_ms: 0,
        }
    }

    fn front_lives(&self, front: FrontId, now_ms: u64) -> bool {
        self.leases.get(&front).is_some_and(|until| now_ms < *until)
    }

    /// Drops the routes of fronts that do not live.
    fn sweep(&mut self, now_ms: u64) {
        let leases = std::mem::take(&mut self.leases);
        let mut kept = 0;
        self.routes.retain(|_, routes| {
            routes.retain(|(_, route)| leases.get(&route.front).is_some_and(|until| now_ms < *until));
            kept += routes.len();
            !routes.is_empty()
        });
        self.leases = leases;
        self.routes_count = kept;
    }
}

#[async_trait]
impl Cache for InProcessCache {
    async fn claim(&self, account: AccountId, resource: &str, route: Route) -> Result<Claim, StoreError> {
        let now_ms = self.clock.now_ms();
        let mut state = self.state();
        let held = state.routes.get_mut(&account).and_then(|routes| routes.iter_mut().find(|(r, _)| &**r == resource));
        if let Some((_, current)) = held {
            if current.epoch > route.epoch {
                return Ok(Claim::Lost { current: *current });
            }
            return Ok(Claim::Won { previous: Some(std::mem::replace(current, route)) });
        }
        if state.routes_count >= self.limits.routes_max {
            if now_ms >= state.swept_until_ms {
                state.sweep(now_ms);
                state.swept_until_ms = now_ms.saturating_add(1000);
            }
            if state.routes_count >= self.limits.routes_max {
                return Err(StoreError::Unavailable(format!(
                    "the cache holds {} routes, its most",
                    self.limits.routes_max
                )));
            }
        }
        // Most accounts have one.
        state.routes.entry(account).or_insert_with(|| Vec::with_capacity(1)).push((resource.into(), route));
        state.routes_count += 1;
        Ok(Claim::Won { previous: None })
    }

    async fn route(&self, account: AccountId, resource: &str) -> Result<Option<Route>, StoreError> {
        let state = self.state();
        let routes = state.routes.get(&account).map(Vec::as_slice).unwrap_or_default();
        Ok(routes.iter().find(|(r, _)| &**r == resource).map(|(_, route)| *route))
    }

    async fn release(&self, account: AccountId, resource: &str, epoch: Epoch) -> Result<bool, StoreError> {
        let mut state = self.state();
        let Some(routes) = state.routes.get_mut(&account) else { return Ok(false) };
        let Some(at) = routes.iter().position(|(r, route)| &**r == resource && route.epoch == epoch) else {
            return Ok(false);
        };
        routes.swap_remove(at);
        if routes.is_empty() {
            state.routes.remove(&account);
        }
        state.routes_count -= 1;
        Ok(true)
    }

    async fn renew_lease(&self, front: FrontId) -> Result<(), StoreError> {
        let now_ms = self.clock.now_ms();
        let mut state = self.state();
        if !state.leases.contains_key(&front) && state.leases.len() >= self.limits.fronts_max {
            state.leases.retain(|_, until| now_ms < *until);
            if state.leases.len() >= self.limits.fronts_max {
                return Err(StoreError::Unavailable(format!(
                    "the cache holds leases of {} fronts, its most",
                    self.limits.fronts_max
                )));
            }
        }
        let lease_ms = u64::try_from(self.limits.lease.as_millis()).unwrap_or(u64::MAX);
        state.leases.insert(front, now_ms.saturating_add(lease_ms));
        Ok(())
    }

    async fn front_lives(&self, front: FrontId) -> Result<bool, StoreError> {
        Ok(self.state().front_lives(front, self.clock.now_ms()))
    }

    async fn fronts(&self) -> Result<Vec<FrontId>, StoreError> {
        let now_ms = self.clock.now_ms();
        let mut fronts: Vec<_> =
            self.state().leases.iter().filter(|(_, until)| now_ms < **until).map(|(id, _)| *id).collect();
        fronts.sort_unstable();
        Ok(fronts)
    }

    async fn connected(&self, accounts: &[AccountId]) -> Result<Vec<bool>, StoreError> {
        let now_ms = self.clock.now_ms();
        let state = self.state();
        let connected = |account| {
            let routes = state.routes.get(account).map(Vec::as_slice).unwrap_or_default();
            routes.iter().any(|(_, route)| state.front_lives(route.front, now_ms))
        };
        Ok(accounts.iter().map(connected).collect())
    }

    async fn take(&self, want: Want<'_>) -> Result<Grant, StoreError> {
        Ok(self.state().quotas.take(want, self.clock.now_ms()))
    }

    async fn refund(&self, app: &AppId, day: u32, messages: u64) -> Result<(), StoreError> {
        self.state().quotas.refund(app, day, messages);
        Ok(())
    }

    async fn forget_quota(&self, app: &AppId) -> Result<(), StoreError> {
        self.state().quotas.forget(app);
        Ok(())
    }

    async fn records(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Known>>, StoreError> {
        Ok(vec![None; keys.len()])
    }

    async fn keep(&self, _records: Vec<(Vec<u8>, Known)>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn forget(&self, _keys: &[Vec<u8>]) -> Result<(), StoreError> {
        Ok(())
    }

    fn forgotten(&self) -> broadcast::Receiver<Forgotten> {
        self.forgotten.subscribe()
    }

    async fn generation(&self) -> Result<Generation, StoreError> {
        Ok(self.state().generation)
    }

    async fn wipe(&self) -> Result<Generation, StoreError> {
        let generation = new_generation(&self.clock, &self.entropy);
        *self.state() = State::new(generation);
        Ok(generation)
    }
}

/// A generation that has not been before: its time is the clock's, its other bits are random.
pub(super) fn new_generation(clock: &SharedClock, entropy: &SharedEntropy) -> Generation {
    let mut random = [0; 16];
    entropy.fill(&mut random[6..]);
    Generation(Generation::at(clock.now_ms()).0 | u128::from_be_bytes(random))
}
