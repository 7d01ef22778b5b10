//! What a front counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::close::Reason;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    reason: &'static str,
    again: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLimit {
    limit: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LoginLabels {
    mechanism: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    request: &'static str,
    /// 0, or a number of the error table.
    code: i32,
}

/// What is counted of one channel that others serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfChannel {
    pub(crate) channel: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedOnChannel {
    channel: u32,
    condition: &'static str,
}

pub(crate) struct Metrics {
    streams_ended: Family<Ended, Counter>,
    limits: Family<OfLimit, Counter>,
    logins: Family<LoginLabels, Counter>,
    requests: Family<OfRequest, Counter>,
    channel_refused: Family<RefusedOnChannel, Counter>,
    /// 1 while a channel's service is here.
    pub(crate) channel_services: Family<OfChannel, Gauge>,
    /// Connections that have a channel of others open, or are opening it.
    pub(crate) channel_members: Family<OfChannel, Gauge>,
    /// What waits to be written to a channel's service.
    pub(crate) channel_waiting_bytes: Family<OfChannel, Gauge>,
    pub(crate) channel_payloads_up: Family<OfChannel, Counter>,
    pub(crate) channel_payloads_down: Family<OfChannel, Counter>,
    /// Byte streams, logged in or not.
    pub(crate) connections: Gauge,
    /// Bound resources, those waiting for resumption included.
    pub(crate) lines: Gauge,
    /// Lost streams that may be resumed.
    pub(crate) resumable: Gauge,
    /// Broadcasts on their slow way.
    pub(crate) broadcast_slots: Gauge,
    pub(crate) paced_broadcasts: Gauge,
    /// Connections that wait for their moments in these.
    pub(crate) paced_slots: Gauge,
    pub(crate) resumed: Counter,
    pub(crate) scram_derivations: Counter,
    pub(crate) stanzas_in: Counter,
    pub(crate) stanzas_routed: Counter,
    pub(crate) stanzas_refused: Counter,
    pub(crate) payloads_down: Counter,
    pub(crate) items_gone: Counter,
    pub(crate) items_late: Counter,
    pub(crate) broadcasts: Counter,
    pub(crate) broadcasts_expired: Counter,
    pub(crate) broadcasts_cancelled: Counter,
    pub(crate) broadcast_deliveries: Counter,
    pub(crate) broadcast_replays: Counter,
    pub(crate) generations: Counter,
    pub(crate) announcements: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("campanile_front");
        let streams_ended = Family::default();
        registry.register(
            "streams_ended",
            "Streams that ended, by reason and whether the client should connect again",
            streams_ended.clone(),
        );
        let limits = Family::default();
        registry.register("limits_hit", "Times a limit was hit, by its name in the configuration", limits.clone());
        let logins = Family::default();
        registry.register("logins", "SASL exchanges by mechanism and result", logins.clone());
        let requests = Family::default();
        registry.register("requests", "Requests to the middle tier by kind and result code", requests.clone());
        let channel_refused = Family::default();
        registry.register(
            "channel_refused",
            "What devices and services were refused on channels of others, by channel and condition",
            channel_refused.clone(),
        );
        let mut channel_gauge = |name: &str, help: &str| {
            let gauges: Family<OfChannel, Gauge> = Family::default();
            registry.register(name, help, gauges.clone());
            gauges
        };
        let channel_services = channel_gauge("channel_services", "1 while the service of a channel is connected");
        let channel_members =
            channel_gauge("channel_members", "Connections with a channel of others open or being opened");
        let channel_waiting_bytes =
            channel_gauge("channel_waiting_bytes", "Bytes that wait to be written to the service of a channel");
        let mut channel_counter = |name: &str, help: &str| {
            let counters: Family<OfChannel, Counter> = Family::default();
            registry.register(name, help, counters.clone());
            counters
        };
        let channel_payloads_up =
            channel_counter("channel_payloads_up", "Payloads put into the queue of a channel's service");
        let channel_payloads_down = channel_counter(
            "channel_payloads_down",
            "Payloads of a channel's service put into outboxes of connections",
        );
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let connections = gauge("connections", "Byte streams, logged in or not");
        let lines = gauge("lines", "Bound resources, those that may be resumed included");
        let resumable = gauge("resumable", "Lost streams that may be resumed");
        let broadcast_slots =
            gauge("broadcast_slots", "Connections still to be written to, of the broadcasts that are on their way");
        let paced_broadcasts =
            gauge("paced_broadcasts", "Broadcasts that somebody here waits for until a later moment");
        let paced_slots = gauge("paced_slots", "Connections that wait for their moments, of all those broadcasts");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        Self {
            streams_ended,
            limits,
            logins,
            requests,
            channel_refused,
            channel_services,
            channel_members,
            channel_waiting_bytes,
            channel_payloads_up,
            channel_payloads_down,
            connections,
            lines,
            resumable,
            broadcast_slots,
            paced_broadcasts,
            paced_slots,
            resumed: counter("resumed", "Streams that were resumed"),
            scram_derivations: counter("scram_derivations", "PBKDF2 derivations for SCRAM logins"),
            stanzas_in: counter("stanzas_in", "Elements that clients sent after login"),
            stanzas_routed: counter("stanzas_routed", "Messages and IQs handed from one connection to others"),
            stanzas_refused: counter(
                "stanzas_refused",
                "Messages and IQs not taken because their receivers had too much to be written already",
            ),
            payloads_down: counter("payloads_down", "Channel payloads that the middle tier handed to connections"),
            items_gone: counter("items_gone", "Items of batches whose connection was not here"),
            items_late: counter("items_late", "Items of batches that came twice, or after what was handed over later"),
            broadcasts: counter("broadcasts", "Broadcasts that came over the bus"),
            broadcasts_expired: counter(
                "broadcasts_expired",
                "Broadcasts that had expired when they came, or on their way",
            ),
            broadcasts_cancelled: counter("broadcasts_cancelled", "Broadcasts that a cancellation stopped"),
            broadcast_deliveries: counter("broadcast_deliveries", "Broadcast payloads put into outboxes"),
            broadcast_replays: counter("broadcast_replays", "Of these, those replayed after a change of the index"),
            generations: counter("generations", "Times the middle tier's memory was found to be another"),
            announcements: counter("announcements", "Connections announced anew to the middle tier"),
        }
    }

    pub(crate) fn ended(&self, reason: Reason) {
        let labels = Ended { reason: reason.label(), again: reason.again().label() };
        self.streams_ended.get_or_create(&labels).inc();
        let limit = match reason {
            Reason::StanzaTooLarge => "stanza_bytes_max",
            Reason::LoginAttempts => "login_attempts_max",
            Reason::FailedLogins => "failed_logins_per_address_per_minute_max",
            Reason::LoginTime => "login_time_max",
            Reason::Connections => "connections_max",
            Reason::ConnectionsPerAddress => "connections_per_address_max",
            Reason::Handshakes => "handshakes_max",
            Reason::HandshakesPerAddress => "handshakes_per_address_max",
            Reason::StanzaTime => "stanza_time_max",
            Reason::StanzaRate => "stanzas_in_per_second_max",
            Reason::ByteRate => "bytes_in_per_second_max",
            Reason::OutboxFull => "outbox_bytes_max",
            Reason::ChannelQueueFull => "channel_queue_max",
            Reason::WriteTime => "write_time_max",
            Reason::Idle => "idle_time_max",
            Reason::MiddleBusy => "channel_retry_time_max",
            Reason::ComponentLoginTime => "component_login_time_max",
            Reason::ComponentConnections => "component_connections_max",
            _ => return,
        };
        self.limit(limit);
    }

    pub(crate) fn limit(&self, limit: &'static str) {
        self.limits.get_or_create(&OfLimit { limit }).inc();
    }

    pub(crate) fn login(&self, mechanism: &'static str, result: &'static str) {
        self.logins.get_or_create(&LoginLabels { mechanism, result }).inc();
    }

    pub(crate) fn request(&self, request: &'static str, code: i32) {
        self.requests.get_or_create(&OfRequest { request, code }).inc();
    }

    /// A stanza on a channel of others was refused with that condition.
    pub(crate) fn refused_on(&self, channel: u32, condition: &'static str) {
        self.channel_refused.get_or_create(&RefusedOnChannel { channel, condition }).inc();
    }
}
