//! The cache: routes and the leases of fronts, what apps may still send, hot records. It may lose everything at any moment;
//! losing it costs latency only.

use async_trait::async_trait;
use idl::ids::{AccountId, AppId, Epoch, FrontId, Generation};
use tokio::sync::broadcast;

use crate::sorted::StoreError;

pub mod in_process;
pub mod redis;

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

/// How much an app may send; 0 means without a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Messages in a second.
    pub per_second_max: u32,
    /// Messages in a day, which ends at midnight UTC.
    pub per_day_max: u64,
}

/// Asks for the right to send.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// Who wants to send.
    pub app: &'a AppId,
    /// Its limits, as the catalog has them.
    pub quota: Quota,
    /// How many messages; with 0 nothing is taken and the answer only tells what is left.
    pub messages: u64,
    /// For what was scheduled: it waits for no other second, and what it uses up others pay off.
    pub owe: bool,
    /// The day in UTC as yyyymmdd.
    pub day: u32,
    /// What the stores say was sent that day, for a cache that doesn't know. One that does ignores it.
    pub sent_before: Option<u64>,
}

/// What came of a [`Want`]: all of it or nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Grant {
    /// It may be sent.
    Taken(Left),
    /// This second has no room for it.
    RateLimited(Left),
    /// This day has no room for it.
    DailyQuota(Left),
    /// The day has a limit, and the cache doesn't know what was sent: ask again with `sent_before`.
    Unknown,
}

/// What an app may still send.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Left {
    /// Messages that this second has room for; below 0 while a debt is paid off, and 0 without a limit.
    pub second_left: f64,
    /// What was sent on this day; 0 without a limit.
    pub day_sent: u64,
    /// Milliseconds until the second has room for one message; 0 if it has.
    pub wait_ms: u64,
}

impl Left {
    /// What is left of a second with room for `per_second_max`, and of a day.
    fn of(second_left: f64, per_second_max: f64, day_sent: u64) -> Self {
        let missing = (1.0 - second_left).max(0.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not below 0, and a cast saturates"
        )]
        let wait_ms = if per_second_max > 0.0 { (missing / per_second_max * 1000.0).ceil() as u64 } else { 0 };
        Self { second_left, day_sent, wait_ms }
    }
}

/// What a cache knows of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// The store has none.
    Absent,
    /// The record, as whoever keeps it encodes it.
    Present(Vec<u8>),
}

/// What other processes forgot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forgotten {
    /// These keys.
    Keys(Vec<Vec<u8>>),
    /// Something may have been missed: anything.
    All,
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

    /// For each account, in that order, whether some route of it is held by a front that lives.
    async fn connected(&self, accounts: &[AccountId]) -> Result<Vec<bool>, StoreError>;

    /// Takes the right to send so many messages now, all or none. More than a second's worth at once passes when the whole
    /// second is free, and is paid off afterwards. After [`StoreError::TimedOut`] it may have been taken.
    async fn take(&self, want: Want<'_>) -> Result<Grant, StoreError>;

    /// Gives back to the day what was taken and not sent after all. The second is not given back.
    async fn refund(&self, app: &AppId, day: u32, messages: u64) -> Result<(), StoreError>;

    /// The limits of an app were changed: what is known of what it used begins anew.
    async fn forget_quota(&self, app: &AppId) -> Result<(), StoreError>;

    /// What is known of hot records: an entry for each key, in that order; `None` where nothing is known.
    async fn records(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Known>>, StoreError>;

    /// Keeps what the store said of records, for a bounded time. What is kept already stays; nothing is kept where
    /// [`forget`](Self::forget) was called a moment ago, so that a slow reader can't put back what is old.
    async fn keep(&self, records: Vec<(Vec<u8>, Known)>) -> Result<(), StoreError>;

    /// Forgets records that have changed in the store, and tells every other process. Call it after the change is stored.
    async fn forget(&self, keys: &[Vec<u8>]) -> Result<(), StoreError>;

    /// What other processes forgot from now on, for caches nearer than this one. A receiver that lags has missed
    /// something: it is to forget everything.
    fn forgotten(&self) -> broadcast::Receiver<Forgotten>;

    /// Which life of the cache this is.
    async fn generation(&self) -> Result<Generation, StoreError>;

    /// Forgets everything and begins a new generation, which is returned: for tests and operators.
    async fn wipe(&self) -> Result<Generation, StoreError>;
}
