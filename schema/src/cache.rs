//! The cache: routes and the leases of fronts. It may lose everything at any moment; losing it costs latency only.

use async_trait::async_trait;
use idl::ids::{AccountId, Epoch, FrontId, Generation};

use crate::sorted::StoreError;

pub mod in_process;

/// Which front holds a connection of an account, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The front.
    pub front: FrontId,
    /// The connection's epoch: the newer one wins.
    pub epoch: Epoch,
}

/// What came of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The route is the claimed one now.
    Won {
        /// The route that it replaced; the same one if it was claimed anew.
        previous: Option<Route>,
    },
    /// A newer connection has the route.
    Lost {
        /// The newer route.
        current: Route,
    },
}

/// Routes and leases. Every answer is of one [`Generation`]: a new one means that everything was forgotten.
#[async_trait]
pub trait Cache: Send + Sync + 'static {
    /// Claims the route of an account and resource: the newer epoch wins, the same epoch claimed again wins.
    async fn claim(&self, account: AccountId, resource: &str, route: Route) -> Result<Claim, StoreError>;

    /// The route of an account and resource, whether its front lives or not.
    async fn route(&self, account: AccountId, resource: &str) -> Result<Option<Route>, StoreError>;

    /// Gives a route up, if it still has this epoch; `false` if it has not.
    async fn release(&self, account: AccountId, resource: &str, epoch: Epoch) -> Result<bool, StoreError>;

    /// A front says that it lives. Its lease lasts for the time in the cache's limits.
    async fn renew_lease(&self, front: FrontId) -> Result<(), StoreError>;

    /// Whether a front's lease lasts.
    async fn front_lives(&self, front: FrontId) -> Result<bool, StoreError>;

    /// The fronts whose lease lasts, in order of their ids.
    async fn fronts(&self) -> Result<Vec<FrontId>, StoreError>;

    /// Which life of the cache this is.
    async fn generation(&self) -> Result<Generation, StoreError>;

    /// Forgets everything and begins a new generation, which is returned: for tests and operators.
    async fn wipe(&self) -> Result<Generation, StoreError>;
}
