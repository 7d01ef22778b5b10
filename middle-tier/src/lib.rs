//! The middle tier decides: it makes accounts and registrations, accepts messages, and sees to it that each reaches its
//! audience.
//!
//! It takes requests from the bus and knows neither XML nor HTTP nor any backend. [ARCHITECTURE.md](../../ARCHITECTURE.md)
//! says how delivery works; the files here follow it: [`service`] takes requests, `accept` stores messages, `session` is
//! what is known of a connected device, `dispatch` drives sessions, `judge` and `sweep` find what was missed.

mod accept;
mod accounts;
mod acks;
mod alarms;
mod app_calls;
mod apps;
mod audiences;
mod commands;
mod counts;
mod dispatch;
mod expiry;
mod idempotency;
mod judge;
mod metrics;
mod near;
mod order;
mod others;
mod outcomes;
mod partitions;
mod payload;
mod pokes;
pub mod poster;
mod publish;
mod rates;
mod recall;
mod receipts;
mod registry;
mod resolve;
mod room;
mod routes;
mod saved;
mod schedules;
mod server_topics;
mod service;
mod session;
mod sessions;
mod states;
mod sweep;
mod tasks;
mod timelines;
mod turns;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use idl::bus::{Bus, MiddleInbox};
use idl::clock::{SharedClock, SharedEntropy};
use idl::ids::Generation;
use idl::token::KeyRing;
use prometheus_client::registry::Registry;
use ring::hmac;
use schema::accounts::Accounts;
use schema::cache::Cache;
use schema::catalog::Catalog;
use schema::days::Days;
use schema::expiries::Expiries;
use schema::feedback::Feedback;
use schema::idempotency::Idempotency;
use schema::mailbox::Mailboxes;
use schema::names::Names;
use schema::profiles::{NearLimits, Profiles};
use schema::records::Records;
use schema::registrations::Registrations;
use schema::sorted::SortedStore;
use schema::timeline::Timelines;
use schema::topics::TopicMembers;
use schema::traces::Traces;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::alarms::Alarms;
use crate::apps::Apps;
use crate::counts::Counts;
use crate::metrics::Metrics;
use crate::partitions::Partitions;
use crate::poster::Poster;
use crate::publish::Publisher;
use crate::receipts::Receipts;
use crate::room::Rooms;
use crate::schedules::Schedules;
use crate::service::Service;
use crate::sessions::Sessions;
use crate::tasks::Tasks;
use crate::timelines::TimelineReads;
use crate::turns::Turns;

/// How the middle tier works, and its limits.
#[derive(Debug, Clone)]
pub struct Config {
    /// Requests worked on at one time; the rest wait in their lanes.
    pub requests_max: usize,
    /// Registrations of one account.
    pub registrations_per_account_max: usize,
    /// Aliases, user accounts and topics, each, of one registration.
    pub names_per_registration_max: usize,
    /// Registrations that one alias or user account stands for in one send.
    pub registrations_per_name_max: usize,
    /// Messages in one mailbox that are not acknowledged; more are refused when they are sent.
    pub mailbox_max: usize,
    /// Deliveries handed to a device and not yet acknowledged, for each of its registrations.
    pub window_max: usize,
    /// Timeline rows judged in one step.
    pub judged_rows_max: usize,
    /// How far before a cursor judging starts: longer than any request may take to be stored.
    pub overlap: Duration,
    /// How long a live broadcast has for delivery and acknowledgement before a judgement sends it again.
    pub judge_lag: Duration,
    /// Every session is checked against the store once in this time.
    pub check_interval: Duration,
    /// Longest wait before a hand-off that failed is tried again.
    pub retry_wait_max: Duration,
    /// How long one hand-off to a front may take.
    pub hand_off_time_max: Duration,
    /// How long what is known of a message is kept after it has expired: its record, traces and counts.
    pub record_retention: Duration,
    /// Rows gone through to count one audience; beyond it the count is an estimate.
    pub counted_rows_max: usize,
    /// Registrations read to count one audience; beyond it the count is an estimate.
    pub counted_registrations_max: usize,
    /// Segments of one app.
    pub segments_max: usize,
    /// Templates of one app.
    pub templates_max: usize,
    /// Schedules of one app that wait.
    pub schedules_max: usize,
    /// Callback URLs that are posted to at one time.
    pub receipt_posts_max: usize,
    /// Callback URLs with something to post that are remembered; the others are found again in the store.
    pub receipt_urls_max: usize,
    /// Receipts in one post.
    pub receipts_per_post_max: usize,
    /// Size of one post.
    pub receipt_post_bytes_max: usize,
    /// How long one post may take.
    pub receipt_post_time_max: Duration,
    /// Profiles of registrations that are remembered in the process.
    pub near: NearLimits,
}

impl Config {
    fn record_retention_ms(&self) -> u64 {
        u64::try_from(self.record_retention.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            requests_max: 4096,
            registrations_per_account_max: 256,
            names_per_registration_max: 256,
            registrations_per_name_max: 10_000,
            mailbox_max: 1000,
            window_max: 64,
            judged_rows_max: 256,
            overlap: Duration::from_mins(1),
            judge_lag: Duration::from_secs(10),
            check_interval: Duration::from_mins(5),
            retry_wait_max: Duration::from_secs(5),
            hand_off_time_max: Duration::from_secs(5),
            record_retention: Duration::from_hours(7 * 24),
            counted_rows_max: 10_000_000,
            counted_registrations_max: 20_000,
            segments_max: 1000,
            templates_max: 1000,
            schedules_max: 10_000,
            receipt_posts_max: 64,
            receipt_urls_max: 10_000,
            receipts_per_post_max: 500,
            receipt_post_bytes_max: 256 * 1024,
            receipt_post_time_max: Duration::from_secs(15),
            near: NearLimits::default(),
        }
    }
}

/// What the middle tier needs, by name.
pub struct Dependencies {
    /// To the fronts.
    pub bus: Arc<dyn Bus>,
    /// Where requests come from.
    pub inbox: MiddleInbox,
    /// Accounts, registrations, mailboxes, timelines.
    pub sorted: Arc<dyn SortedStore>,
    /// Applications and revocations.
    pub catalog: Arc<dyn Catalog>,
    /// Routes and leases.
    pub cache: Arc<dyn Cache>,
    /// Posts receipts to app servers.
    pub poster: Arc<dyn Poster>,
    /// Makes and proves tokens.
    pub keys: KeyRing,
    /// Under which registration ids are derived.
    pub regid_key: hmac::Key,
    /// Wall time.
    pub clock: SharedClock,
    /// Randomness.
    pub entropy: SharedEntropy,
}

/// The middle tier, built and not yet serving.
pub struct Middle {
    inbox: MiddleInbox,
    shared: Arc<Shared>,
    publisher: Publisher,
    counter: audiences::Counter,
}

/// What all parts of the tier share. Stores are the truth; `sessions` is memory that may vanish.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) cache: Arc<dyn Cache>,
    pub(crate) store: Arc<dyn SortedStore>,
    pub(crate) poster: Arc<dyn Poster>,
    pub(crate) accounts: Accounts,
    pub(crate) registrations: Registrations,
    pub(crate) profiles: Profiles,
    pub(crate) names: Names,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) timelines: Timelines,
    pub(crate) timeline_reads: TimelineReads,
    pub(crate) topics: TopicMembers,
    pub(crate) records: Records,
    pub(crate) traces: Traces,
    pub(crate) receipt_log: schema::receipts::Receipts,
    pub(crate) expiries: Expiries,
    pub(crate) feedback: Feedback,
    pub(crate) idempotency: Idempotency,
    pub(crate) day_counts: Days,
    pub(crate) apps: Apps,
    pub(crate) keys: KeyRing,
    pub(crate) regid_key: hmac::Key,
    pub(crate) clock: SharedClock,
    pub(crate) entropy: SharedEntropy,
    pub(crate) sessions: Sessions,
    pub(crate) turns: Turns,
    pub(crate) rooms: Rooms,
    /// Idempotency keys that someone works on.
    pub(crate) keys_under_way: Turns,
    pub(crate) counts: Counts,
    pub(crate) alarms: Alarms,
    pub(crate) schedules: Schedules,
    pub(crate) receipts: Receipts,
    pub(crate) audience_counts: audiences::Queue,
    pub(crate) broadcasts: publish::Queue,
    pub(crate) payloads: payload::Cache,
    pub(crate) metrics: Metrics,
    /// What could not be told to owners of accounts.
    pub(crate) pokes: pokes::Backlog,
    pub(crate) partitions: Partitions,
    /// All sessions are to be compared with the store.
    pub(crate) sweep_now: Notify,
    /// This life of this tier's memory: names what it counts.
    pub(crate) life: Generation,
    pub(crate) tasks: Tasks,
}

impl Middle {
    /// Builds the tier. Nothing runs until [`Middle::serve`].
    pub fn build(config: Config, dependencies: Dependencies, registry: &mut Registry) -> Self {
        let Dependencies { bus, inbox, sorted, catalog, cache, poster, keys, regid_key, clock, entropy } = dependencies;
        let mut life = [0; 16];
        entropy.fill(&mut life);
        let partitions = Partitions::new(inbox.ownership().clone(), clock.now_ms());
        let (broadcasts, publisher) = publish::queue();
        let (audience_counts, counter) = audiences::queue();
        let profiles = Profiles::new(Arc::clone(&sorted), Arc::clone(&cache), config.near);
        registry.register_collector(Box::new(near::Found(profiles.metrics())));
        let shared = Arc::new(Shared {
            bus,
            apps: Apps::new(Arc::clone(&catalog), partitions.is_whole()),
            catalog,
            cache,
            accounts: Accounts::new(Arc::clone(&sorted)),
            registrations: Registrations::remembered(Arc::clone(&sorted), profiles.clone()),
            profiles,
            names: Names::new(Arc::clone(&sorted)),
            mailboxes: Mailboxes::new(Arc::clone(&sorted)),
            timelines: Timelines::new(Arc::clone(&sorted)),
            timeline_reads: TimelineReads::default(),
            topics: TopicMembers::new(Arc::clone(&sorted)),
            records: Records::new(Arc::clone(&sorted)),
            traces: Traces::new(Arc::clone(&sorted)),
            receipt_log: schema::receipts::Receipts::new(Arc::clone(&sorted)),
            expiries: Expiries::new(Arc::clone(&sorted)),
            feedback: Feedback::new(Arc::clone(&sorted)),
            idempotency: Idempotency::new(Arc::clone(&sorted)),
            day_counts: Days::new(Arc::clone(&sorted)),
            store: sorted,
            poster,
            keys,
            regid_key,
            clock,
            entropy,
            sessions: Sessions::default(),
            turns: Turns::default(),
            rooms: Rooms::default(),
            keys_under_way: Turns::default(),
            counts: Counts::default(),
            alarms: Alarms::default(),
            schedules: Schedules::default(),
            receipts: receipts::new(),
            audience_counts,
            broadcasts,
            payloads: payload::Cache::default(),
            metrics: Metrics::register(registry),
            pokes: pokes::Backlog::default(),
            partitions,
            sweep_now: Notify::new(),
            life: Generation(u128::from_be_bytes(life)),
            tasks: Tasks::default(),
            config,
        });
        Self { inbox, shared, publisher, counter }
    }

    /// Serves until `drain` is cancelled: then it finishes the requests it has begun, writes the cursors of all sessions
    /// and returns. The fronts should have drained before, since they still talk to it while they do.
    ///
    /// Dropping the future ends the tier with all it was doing, as a crash would.
    pub fn serve(self, drain: CancellationToken) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        // In a box, so that what it awaits is compiled with this crate and not with everyone who calls it.
        Box::pin(self.run(drain))
    }

    async fn run(self, drain: CancellationToken) {
        let Self { inbox, shared, publisher, counter } = self;
        let _stop = shared.tasks.stop_on_drop();
        // Each on its own, so that none is looked at whenever another has something to do.
        let mut jobs = JoinSet::new();
        jobs.spawn(publisher.run(Arc::clone(&shared), drain.clone()));
        jobs.spawn(counter.run(Arc::clone(&shared), drain.clone()));
        jobs.spawn(sweep::run(Arc::clone(&shared), drain.clone()));
        jobs.spawn(near::run(Arc::clone(&shared), drain.clone()));
        jobs.spawn(alarms::run(Arc::clone(&shared), drain.clone()));
        jobs.spawn(counts::run(Arc::clone(&shared), drain.clone()));
        jobs.spawn(schedules::run(Arc::clone(&shared), drain.clone()));
        jobs.spawn(expiry::run(Arc::clone(&shared), drain.clone()));
        jobs.spawn(receipts::run(Arc::clone(&shared), drain.clone()));
        jobs.spawn(receipts::tell_owners(Arc::clone(&shared), drain.clone()));
        jobs.spawn(pokes::run(Arc::clone(&shared), drain.clone()));
        jobs.spawn(partitions::run(Arc::clone(&shared), drain.clone()));
        jobs.spawn(Service::new(Arc::clone(&shared)).run(inbox, drain));
        while let Some(ended) = jobs.join_next().await {
            // A job that crashed is a tier that crashed.
            if let Err(crash) = ended
                && crash.is_panic()
            {
                std::panic::resume_unwind(crash.into_panic());
            }
        }
        shared.sessions.end_all(&shared).await;
        if let Err(error) = shared.counts.flush(&shared).await {
            tracing::warn!(%error, "the last counts could not be written");
        }
        shared.tasks.finish().await;
    }
}
