//! What the middle tier counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(crate) request: &'static str,
    /// 0, or a number of the error table.
    pub(crate) code: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    job: &'static str,
}

pub(crate) struct Metrics {
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) requests_late: Counter,
    pub(crate) requests_repeated: Counter,
    pub(crate) messages: Counter,
    pub(crate) broadcasts: Counter,
    pub(crate) deliveries: Counter,
    pub(crate) acks: Counter,
    pub(crate) hand_offs_failed: Counter,
    pub(crate) windows_full: Counter,
    pub(crate) mailboxes_full: Counter,
    pub(crate) broadcasts_unpublished: Counter,
    pub(crate) judgements: Counter,
    pub(crate) judged_deliveries: Counter,
    pub(crate) reports: Counter,
    pub(crate) receipts_written: Counter,
    pub(crate) receipts_posted: Counter,
    pub(crate) receipt_post_failures: Counter,
    pub(crate) receipts_given_up: Counter,
    pub(crate) receipt_urls: Gauge,
    pub(crate) schedules_fired: Counter,
    pub(crate) schedules_failed: Counter,
    pub(crate) deliveries_expired: Counter,
    pub(crate) replayed: Counter,
    pub(crate) counts_dropped: Counter,
    pub(crate) broadcasts_uncounted: Counter,
    pub(crate) schedules_due: Gauge,
    pub(crate) sessions_paced: Gauge,
    jobs: Family<JobLabels, Gauge<u64, AtomicU64>>,
    pub(crate) partitions: Gauge,
    pub(crate) partitions_gained: Counter,
    pub(crate) partitions_given: Counter,
    pub(crate) partitions_lost: Counter,
    pub(crate) sessions_dropped: Counter,
    pub(crate) requests_elsewhere: Counter,
    pub(crate) pokes_sent: Counter,
    pub(crate) pokes_failed: Counter,
    pub(crate) pokes_given_up: Counter,
    pub(crate) sessions: Gauge,
    pub(crate) last_sweep_ms: Gauge<u64, AtomicU64>,
}

impl Metrics {
    /// A background job ran.
    pub(crate) fn ran(&self, job: &'static str, now_ms: u64) {
        self.jobs.get_or_create(&JobLabels { job }).set(now_ms);
    }

    pub(crate) fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("campanile_middle");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let requests_late = counter("requests_late", "Requests dropped because their deadline had passed");
        let requests_repeated = counter("requests_repeated", "Requests dropped because the bus gave them twice");
        let messages = counter("messages", "Messages accepted for regids, aliases or user accounts");
        let broadcasts = counter("broadcasts", "Broadcasts accepted");
        let deliveries = counter("deliveries", "Deliveries handed to fronts by sessions");
        let acks = counter("acks", "Deliveries acknowledged");
        let hand_offs_failed = counter("hand_offs_failed", "Hand-offs to a front that failed and are tried again");
        let windows_full = counter("windows_full", "Times a device's window of unacknowledged deliveries was full");
        let mailboxes_full = counter("mailboxes_full", "Deliveries refused because the mailbox was full");
        let broadcasts_unpublished =
            counter("broadcasts_unpublished", "Broadcasts some front missed; judgements deliver them");
        let judgements = counter("judgements", "Judgements of a registration against its timeline");
        let judged_deliveries = counter("judged_deliveries", "Broadcasts that a judgement found to be missing");
        let reports = counter("reports", "Deliveries that a device could not hand to its app");
        let receipts_written = counter("receipts_written", "Receipts that app servers asked for");
        let receipts_posted = counter("receipts_posted", "Receipts that a callback URL took");
        let receipt_post_failures = counter("receipt_post_failures", "Posts to callback URLs that failed");
        let receipts_given_up = counter("receipts_given_up", "Receipts that no post took within a day");
        let schedules_fired = counter("schedules_fired", "Scheduled sends that went out");
        let schedules_failed = counter("schedules_failed", "Scheduled sends that were refused when they were due");
        let deliveries_expired = counter("deliveries_expired", "Deliveries that expired where a receipt was wanted");
        let replayed = counter("idempotent_replays", "First answers given again to an idempotency key");
        let counts_dropped = counter("counts_dropped", "Acks of broadcasts not counted: too many are counted at once");
        let broadcasts_uncounted =
            counter("broadcasts_uncounted", "Broadcasts whose audience is counted when somebody asks, not before");
        let partitions_gained = counter("partitions_gained", "Partitions of the work that came to this middle");
        let partitions_given = counter("partitions_given", "Partitions that were finished and given to another middle");
        let partitions_lost = counter("partitions_lost", "Partitions that are this middle's no longer, given or taken");
        let sessions_dropped = counter("sessions_dropped", "Sessions forgotten because their partition was lost");
        let requests_elsewhere = counter("requests_elsewhere", "Requests left to the next owner of their partition");
        let pokes_sent = counter("pokes_sent", "Times another middle was told what was stored for its accounts");
        let pokes_failed = counter("pokes_failed", "Times another middle could not be told that; it is told again");
        let pokes_given_up = counter("pokes_given_up", "Recipients left to the sweep because nobody could be told");
        let partitions = Gauge::default();
        registry.register("partitions", "Partitions of the work that are this middle's", partitions.clone());
        let schedules_due = Gauge::default();
        registry.register("schedules_due", "Schedules that were due at the last look", schedules_due.clone());
        let receipt_urls = Gauge::default();
        registry.register("receipt_urls", "Callback URLs that have something to be posted", receipt_urls.clone());
        let sessions_paced = Gauge::default();
        registry.register("sessions_paced", "Sessions that wait for a paced message to be due", sessions_paced.clone());
        let jobs = Family::default();
        registry.register("job_last_run_ms", "When a background job last ran, in ms since the epoch", jobs.clone());
        let requests = Family::default();
        registry.register("requests", "Requests by kind and result code", requests.clone());
        let sessions = Gauge::default();
        registry.register("sessions", "Devices with the push channel open", sessions.clone());
        let last_sweep_ms = Gauge::default();
        registry.register("last_sweep_ms", "When the sweep last ran, in ms since the epoch", last_sweep_ms.clone());
        Self {
            requests,
            requests_late,
            requests_repeated,
            messages,
            broadcasts,
            deliveries,
            acks,
            hand_offs_failed,
            windows_full,
            mailboxes_full,
            broadcasts_unpublished,
            judgements,
            judged_deliveries,
            reports,
            receipts_written,
            receipts_posted,
            receipt_post_failures,
            receipts_given_up,
            receipt_urls,
            schedules_fired,
            schedules_failed,
            deliveries_expired,
            replayed,
            counts_dropped,
            broadcasts_uncounted,
            schedules_due,
            sessions_paced,
            jobs,
            partitions,
            partitions_gained,
            partitions_given,
            partitions_lost,
            sessions_dropped,
            requests_elsewhere,
            pokes_sent,
            pokes_failed,
            pokes_given_up,
            sessions,
            last_sweep_ms,
        }
    }
}
