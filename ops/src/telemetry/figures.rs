//! What engines and stores count themselves, as metrics.

use std::fmt;

use idl::bus::redis::RedisBusMetrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use schema::cache::redis::RedisMetrics;
use schema::catalog::mysql::MysqlMetrics;
use schema::sorted::embedded::EmbeddedMetrics;
use schema::sorted::hbase::HbaseMetrics;

use crate::lifecycle::Health;

/// One number of many.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    name: &'static str,
    help: &'static str,
    value: Value,
}

#[derive(Debug, Clone, Copy)]
enum Value {
    Counter(u64),
    Gauge(u64),
}

impl Figure {
    /// What only grows.
    pub const fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, help, value: Value::Counter(value) }
    }

    /// What goes up and down.
    pub const fn gauge(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, help, value: Value::Gauge(value) }
    }
}

/// Reads figures whenever the page of metrics is asked for.
pub struct Figures(Box<dyn Fn() -> Vec<Figure> + Send + Sync>);

impl Figures {
    /// Of what this reads.
    pub fn of(read: impl Fn() -> Vec<Figure> + Send + Sync + 'static) -> Box<Self> {
        Box::new(Self(Box::new(read)))
    }
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Figures")
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for Figure { name, help, value } in (self.0)() {
            match value {
                Value::Counter(value) => {
                    let counter = ConstCounter::new(value);
                    counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
                }
                Value::Gauge(value) => {
                    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
                    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
                }
            }
        }
        Ok(())
    }
}

/// Which engines are there.
#[derive(Debug)]
pub struct Engines(pub Health);

impl Collector for Engines {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let engines = self.0.engines();
        if engines.is_empty() {
            return Ok(());
        }
        let one = ConstGauge::new(1_i64);
        let help = "Whether an engine that others run can be used: 1, or 0 while it is away";
        let mut family = encoder.encode_descriptor("campanile_engine_up", help, None, one.metric_type())?;
        for (engine, state) in engines {
            let up = ConstGauge::new(i64::from(state.is_up()));
            up.encode(family.encode_family(&[("engine", engine)])?)?;
        }
        Ok(())
    }
}

/// The embedded store.
pub fn embedded(store: &EmbeddedMetrics) -> Vec<Figure> {
    vec![
        Figure::counter("campanile_store_groups", "Groups of writes that were synced", store.groups()),
        Figure::counter("campanile_store_requests", "Write requests in those groups", store.requests()),
        Figure::counter("campanile_store_mutations", "Cells written and deleted in those groups", store.mutations()),
        Figure::counter("campanile_store_groups_failed", "Groups that could not be written", store.groups_failed()),
        Figure::counter(
            "campanile_store_refused_full",
            "Requests refused because the disk has too little room",
            store.refused_full(),
        ),
        Figure::counter(
            "campanile_store_mended",
            "How often the store was reopened after a failed write",
            store.mended(),
        ),
    ]
}

/// The store on HBase.
pub fn hbase(store: &HbaseMetrics) -> Vec<Figure> {
    vec![
        Figure::counter("campanile_hbase_groups", "Groups of writes that were sent", store.groups()),
        Figure::counter("campanile_hbase_writes", "Write requests in those groups", store.writes()),
        Figure::counter("campanile_hbase_mutations", "Cells and rows changed by those requests", store.mutations()),
        Figure::counter("campanile_hbase_calls", "Calls that those groups took", store.calls()),
        Figure::counter(
            "campanile_hbase_writes_failed",
            "Write requests not done, or not surely",
            store.writes_failed(),
        ),
        Figure::counter("campanile_hbase_guards", "Requests to write what must not be there", store.guards()),
        Figure::counter("campanile_hbase_reads", "Requests to read rows", store.reads()),
        Figure::counter(
            "campanile_hbase_reads_gathered",
            "Groups of such requests that were served together",
            store.reads_gathered(),
        ),
        Figure::counter("campanile_hbase_read_calls", "Calls that they took", store.read_calls()),
        Figure::counter("campanile_hbase_rows_asked", "Rows asked for in those calls", store.rows_asked()),
        Figure::counter("campanile_hbase_scans", "Requests to go through a range of rows", store.scans()),
        Figure::counter("campanile_hbase_scan_calls", "Pages that they took", store.scan_calls()),
        Figure::counter("campanile_hbase_retries", "Tries after the first one", store.retries()),
        Figure::counter("campanile_hbase_connections", "Connections that were made", store.connections()),
        Figure::counter(
            "campanile_hbase_breakers_opened",
            "How often a gateway was left alone because it failed",
            store.breakers_opened(),
        ),
        Figure::counter("campanile_hbase_queue_full", "Requests that found no room in time", store.queue_full()),
        Figure::counter(
            "campanile_hbase_clock_skewed",
            "Cells read that were written more than a minute ahead of this clock",
            store.clock_skewed(),
        ),
    ]
}

/// The catalog on MySQL.
pub fn mysql(catalog: &MysqlMetrics) -> Vec<Figure> {
    vec![
        Figure::counter("campanile_mysql_statements", "Statements sent to MySQL", catalog.statements),
        Figure::counter("campanile_mysql_retries", "Tries after the first one of a call", catalog.retries),
        Figure::counter(
            "campanile_mysql_timeouts",
            "Statements and waits for a connection that took too long",
            catalog.timeouts,
        ),
        Figure::counter(
            "campanile_mysql_failures",
            "Calls that failed because of MySQL or the way to it",
            catalog.failures,
        ),
        Figure::counter(
            "campanile_mysql_connects_failed",
            "Attempts to connect to MySQL that failed",
            catalog.connects_failed,
        ),
        Figure::gauge("campanile_mysql_connections", "Connections to MySQL", catalog.connections),
        Figure::gauge("campanile_mysql_connections_in_use", "Those that serve a call", catalog.connections_in_use),
    ]
}

/// The bus on Redis.
pub fn redis_bus(bus: &RedisBusMetrics) -> Vec<Figure> {
    let counters = [
        ("campanile_bus_requests_sent", "Requests written to Redis", &bus.requests_sent),
        ("campanile_bus_requests_received", "Requests given to this middle", &bus.requests_received),
        ("campanile_bus_answers_sent", "Answers written to Redis", &bus.answers_sent),
        ("campanile_bus_answers_received", "Answers taken by those who waited", &bus.answers_received),
        ("campanile_bus_letters_sent", "Batches, events and questions written to Redis", &bus.letters_sent),
        (
            "campanile_bus_letters_received",
            "Batches, events and questions given to this process",
            &bus.letters_received,
        ),
        ("campanile_bus_flushes", "Pipelines written to Redis", &bus.flushes),
        ("campanile_bus_redelivered", "Requests taken over from a middle before", &bus.redelivered),
        ("campanile_bus_dead_letters", "Requests put aside because no middle survived them", &bus.dead_letters),
        ("campanile_bus_shed", "Requests refused because a lane or a queue was full", &bus.shed),
        ("campanile_bus_timeouts", "Calls whose deadline passed without an answer", &bus.timeouts),
        ("campanile_bus_expired", "Requests not begun because their deadline had passed", &bus.expired),
        ("campanile_bus_no_place", "Events and batches that a front had no place for", &bus.no_place),
        ("campanile_bus_answers_lost", "Answers that could not be brought to their process", &bus.answers_lost),
        ("campanile_bus_undecodable", "What could not be read", &bus.undecodable),
        ("campanile_bus_reconnects", "Connections made after one was lost", &bus.reconnects),
        ("campanile_bus_beats_failed", "Signs of life that could not be given", &bus.beats_failed),
        ("campanile_bus_partitions_lost", "Partitions lost without having been given away", &bus.partitions_lost),
    ];
    let gauges = [
        ("campanile_bus_partitions_owned", "Partitions that are this middle's", &bus.partitions_owned),
        ("campanile_bus_middles", "Living middles", &bus.middles),
        ("campanile_bus_fronts", "Living fronts", &bus.fronts),
        ("campanile_bus_clock_offset_ms", "How far this machine's clock and Redis's lie apart", &bus.clock_offset_ms),
        ("campanile_bus_lag_high", "Requests waiting or under way in this middle's high lanes", &bus.lag[0]),
        ("campanile_bus_lag_normal", "The same in its normal lanes", &bus.lag[1]),
        ("campanile_bus_lag_low", "The same in its low lanes", &bus.lag[2]),
    ];
    let counters = counters.into_iter().map(|(name, help, count)| Figure::counter(name, help, count.value()));
    counters.chain(gauges.into_iter().map(|(name, help, count)| Figure::gauge(name, help, count.value()))).collect()
}

/// The cache on Redis.
pub fn redis_cache(cache: &RedisMetrics) -> Vec<Figure> {
    vec![
        Figure::counter("campanile_cache_commands", "Calls to the cache on Redis", cache.commands()),
        Figure::counter("campanile_cache_errors", "Calls that failed", cache.errors()),
        Figure::counter("campanile_cache_timeouts", "Calls that were not answered in time", cache.timeouts()),
        Figure::counter("campanile_cache_reconnects", "Connections that replaced a lost one", cache.reconnects()),
        Figure::counter("campanile_cache_hits", "Records asked for and kept there", cache.hits()),
        Figure::counter("campanile_cache_negative_hits", "Records asked for and kept as absent", cache.negative_hits()),
        Figure::counter("campanile_cache_misses", "Records asked for and not kept there", cache.misses()),
        Figure::counter("campanile_cache_tombstones", "Misses of what had just been forgotten", cache.tombstones()),
        Figure::counter(
            "campanile_cache_keeps_refused",
            "Records not kept because something newer was there",
            cache.keeps_refused(),
        ),
        Figure::counter("campanile_cache_forgotten", "Messages about what other processes forgot", cache.forgotten()),
        Figure::counter(
            "campanile_cache_forgotten_all",
            "Times that such a message may have been missed",
            cache.forgotten_all(),
        ),
        Figure::counter(
            "campanile_cache_routes_swept",
            "Routes removed of fronts that were gone",
            cache.routes_swept(),
        ),
    ]
}
