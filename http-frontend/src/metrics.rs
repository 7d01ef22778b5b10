//! What the tier tells Prometheus.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Clone)]
pub(crate) struct Metrics {
    requests: Family<Answered, Counter>,
    latency: Family<OfPath, Histogram>,
    pub(crate) in_flight: Gauge,
    pub(crate) connections: Gauge,
    shed: Family<Shed, Counter>,
    handshakes: Family<Handshake, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    path: &'static str,
    code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPath {
    path: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Shed {
    limit: Limit,
}

/// The limits that can be hit, by their names in [`crate::Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are label values, equal to those of the configuration")]
pub(crate) enum Limit {
    body_bytes_max,
    bodies_bytes_max,
    requests_max,
    connections_max,
    connections_per_address_max,
    handshakes_max,
    header_time_max,
    request_time_max,
    drain_time_max,
    accounts_per_address_per_minute,
    addresses_max,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handshake {
    result: HandshakeResult,
}

/// How a TLS handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are label values")]
pub(crate) enum HandshakeResult {
    ok,
    failed,
    timed_out,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            // From half a millisecond to half a minute.
            latency: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0005, 2.0, 17))),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            shed: Family::default(),
            handshakes: Family::default(),
        };
        let name = |name: &str| format!("campanile_http_{name}");
        registry.register(
            name("requests"),
            "Requests answered, by path and code (0 is success)",
            metrics.requests.clone(),
        );
        registry.register(
            name("request_seconds"),
            "From the end of a request's header to its answer",
            metrics.latency.clone(),
        );
        registry.register(name("requests_in_flight"), "Requests being served", metrics.in_flight.clone());
        registry.register(name("connections"), "Open connections", metrics.connections.clone());
        registry.register(
            name("limit_hits"),
            "Requests and connections refused or ended by a limit, by its name",
            metrics.shed.clone(),
        );
        registry.register(name("handshakes"), "TLS handshakes, by how they ended", metrics.handshakes.clone());
        metrics
    }

    /// A request was answered: `code` is 0 or a number of the error table.
    pub(crate) fn answered(&self, path: &'static str, code: i32, took: Duration) {
        self.requests.get_or_create(&Answered { path, code: code.unsigned_abs() }).inc();
        self.latency.get_or_create(&OfPath { path }).observe(took.as_secs_f64());
    }

    pub(crate) fn hit(&self, limit: Limit) {
        self.shed.get_or_create(&Shed { limit }).inc();
    }

    pub(crate) fn handshake(&self, result: HandshakeResult) {
        self.handshakes.get_or_create(&Handshake { result }).inc();
    }
}

/// Counts up a gauge for as long as it lives, also when the future that holds it is dropped.
pub(crate) struct Held(Gauge);

impl Held {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}
