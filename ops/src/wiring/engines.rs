//! Where things are kept and how processes reach each other: the bus and the stores, as the configuration says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use idl::bus::redis::{ProcessId, RedisBus};
use idl::bus::{Bus, FrontInbox, InProcess, MiddleInbox};
use idl::ids::FrontId;
use prometheus_client::registry::Registry;
use schema::cache::Cache;
use schema::cache::in_process::InProcessCache;
use schema::cache::redis::{RedisCache, RedisLimits, RedisOptions, RedisState};
use schema::catalog::Catalog;
use schema::catalog::mysql::{MysqlCatalog, MysqlOptions};
use schema::catalog::sqlite::SqliteCatalog;
use schema::sorted::SortedStore;
use schema::sorted::embedded::EmbeddedStore;
use schema::sorted::hbase::{Compression, HbaseOptions, HbaseStore, SchemaError, Transport};

use super::Place;
use super::waiting::{Pulse, Tried, judge, wait_for};
use crate::config::{self, BusKind, CatalogKind, Config, Limits, StoreKind};
use crate::telemetry::figures::{self, Figures};

/// The engines as they are called in `/ready`, metrics and logs.
const HBASE: &str = "hbase";
const MYSQL: &str = "mysql";
const REDIS: &str = "redis";

/// What is to be looked at when Redis refuses.
const REDIS_SETTINGS: &str = "see redis.url, redis.password_file and redis.ca";

/// The bus that the configuration names.
pub(super) enum Carrier {
    InProcess(Arc<InProcess>),
    Redis(Arc<RedisBus>),
}

impl Carrier {
    /// Makes it. A Redis that does not answer is waited for.
    pub(super) async fn open(place: &Place<'_>, registry: &mut Registry) -> Result<Self> {
        let (clock, entropy) = (&place.clock, &place.entropy);
        match place.config.bus.kind {
            BusKind::InProcess => {
                let limits = place.config.limits.bus;
                Ok(Self::InProcess(Arc::new(InProcess::new(limits, Arc::clone(clock), Arc::clone(entropy)))))
            }
            BusKind::Redis => {
                let options = redis_bus_options(place.config)?;
                let process = ProcessId::random(entropy.as_ref());
                let connect =
                    async || match RedisBus::connect(options.clone(), process, Arc::clone(clock), Arc::clone(entropy))
                        .await
                    {
                        Ok(bus) => Ok(Tried::There(bus)),
                        Err(failure) if refused_by_redis(&failure.description) => {
                            Err(anyhow!("{}; {REDIS_SETTINGS}", failure.description))
                        }
                        Err(failure) => Ok(Tried::Away(failure.description)),
                    };
                let bus = wait_for(REDIS, &place.health, connect).await?;
                let watched = Arc::clone(&bus);
                place.health.watch_engine(REDIS, move || watched.trouble());
                let metrics = bus.metrics();
                registry.register_collector(Figures::of(move || figures::redis_bus(&metrics)));
                Ok(Self::Redis(bus))
            }
        }
    }

    /// The bus as its users see it.
    pub(super) fn bus(&self) -> Arc<dyn Bus> {
        match self {
            Self::InProcess(bus) => Arc::clone(bus) as Arc<dyn Bus>,
            Self::Redis(bus) => Arc::clone(bus) as Arc<dyn Bus>,
        }
    }

    /// Makes this process a middle.
    pub(super) fn attach_middle(&self) -> MiddleInbox {
        match self {
            Self::InProcess(bus) => bus.attach_middle(),
            Self::Redis(bus) => bus.attach_middle(),
        }
    }

    /// Makes this process a front.
    pub(super) fn attach_front(&self, front: FrontId) -> FrontInbox {
        match self {
            Self::InProcess(bus) => bus.attach_front(front),
            Self::Redis(bus) => bus.attach_front(front),
        }
    }

    /// Gives the partitions of this process's middle to others. The middle must still serve: it finishes what it has of each.
    pub(super) async fn detach(&self) {
        match self {
            Self::InProcess(_) => {}
            Self::Redis(bus) => bus.detach().await,
        }
    }
}

/// What a middle keeps things in.
pub(super) struct Stores {
    pub(super) sorted: Arc<dyn SortedStore>,
    pub(super) catalog: Arc<dyn Catalog>,
    pub(super) cache: Arc<dyn Cache>,
    /// Of engines that tell their state only when they are asked something.
    pub(super) pulses: Vec<(&'static str, Pulse)>,
}

impl Stores {
    /// Opens them. An engine that does not answer is waited for.
    pub(super) async fn open(place: &Place<'_>, registry: &mut Registry) -> Result<Self> {
        let mut pulses = Vec::new();
        Ok(Self {
            sorted: sorted(place, registry).await?,
            catalog: catalog(place, registry, &mut pulses).await?,
            cache: cache(place, registry).await?,
            pulses,
        })
    }
}

async fn sorted(place: &Place<'_>, registry: &mut Registry) -> Result<Arc<dyn SortedStore>> {
    match place.config.store.kind {
        StoreKind::Embedded => {
            let path = place.folder.store();
            let options = place.config.limits.store.clone();
            let store = EmbeddedStore::open(&path, Arc::clone(&place.clock), options)
                .with_context(|| format!("the store {} can't be opened", path.display()))?;
            let metrics = store.metrics();
            registry.register_collector(Figures::of(move || figures::embedded(&metrics)));
            Ok(Arc::new(store))
        }
        StoreKind::Hbase => {
            let options = hbase_options(place.config);
            let open =
                async || match HbaseStore::open(options.clone(), place.clock.clone(), place.entropy.clone()).await {
                    // Whatever else is wrong stays so until somebody mends it.
                    // Also where it speaks the other transport.
                    Err(SchemaError::Store(error)) => {
                        Ok(Tried::Away(format!("{error}; see hbase.gateways and hbase.transport")))
                    }
                    opened => Ok(Tried::There(opened?)),
                };
            let store = Arc::new(wait_for(HBASE, &place.health, open).await?);
            let watched = Arc::clone(&store);
            place.health.watch_engine(HBASE, move || hbase_trouble(&watched));
            let metrics = store.metrics();
            registry.register_collector(Figures::of(move || figures::hbase(&metrics)));
            Ok(store)
        }
    }
}

/// Why no gateway can be used; `None` while one can.
fn hbase_trouble(store: &HbaseStore) -> Option<String> {
    if store.healthy() {
        return None;
    }
    let last = store.state().into_iter().find_map(|gateway| {
        let (_, reason) = gateway.last_failure?;
        Some(format!("{}: {reason}", gateway.address))
    });
    Some(last.unwrap_or_else(|| "no gateway answers".to_owned()))
}

async fn catalog(
    place: &Place<'_>,
    registry: &mut Registry,
    pulses: &mut Vec<(&'static str, Pulse)>,
) -> Result<Arc<dyn Catalog>> {
    match place.config.catalog.kind {
        CatalogKind::Sqlite => Ok(Arc::new(SqliteCatalog::open(&place.folder.catalog())?)),
        CatalogKind::Mysql => {
            let options = mysql_options(place.config)?;
            let open = async || {
                judge(
                    MysqlCatalog::open(options.clone()).await,
                    refused_by_mysql,
                    "see mysql.url and mysql.password_file",
                )
            };
            let catalog = Arc::new(wait_for(MYSQL, &place.health, open).await?);
            let watched = Arc::clone(&catalog);
            place.health.watch_engine(MYSQL, move || {
                let state = watched.state();
                (!state.is_well()).then(|| state.failure.unwrap_or_else(|| "it did not answer".to_owned()))
            });
            let asked = Arc::clone(&catalog);
            pulses.push((
                MYSQL,
                Pulse::of(move || {
                    let asked = Arc::clone(&asked);
                    // What came of it is in its state.
                    async move { drop(asked.ping().await) }
                }),
            ));
            let counted = Arc::clone(&catalog);
            registry.register_collector(Figures::of(move || figures::mysql(&counted.metrics())));
            Ok(catalog)
        }
    }
}

async fn cache(place: &Place<'_>, registry: &mut Registry) -> Result<Arc<dyn Cache>> {
    let limits = place.config.limits.cache;
    match place.config.bus.kind {
        BusKind::InProcess => {
            Ok(Arc::new(InProcessCache::new(Arc::clone(&place.clock), Arc::clone(&place.entropy), limits)))
        }
        BusKind::Redis => {
            let cache = Arc::new(RedisCache::start(redis_cache_options(place.config)?, Arc::clone(&place.entropy))?);
            wait_for(REDIS, &place.health, async || match cache.state() {
                RedisState::Up => Ok(Tried::There(())),
                RedisState::Down(reason) if refused_by_redis(&reason) => Err(anyhow!("{reason}; {REDIS_SETTINGS}")),
                RedisState::Down(reason) => Ok(Tried::Away(reason)),
                RedisState::Connecting => Ok(Tried::Away("connecting".to_owned())),
            })
            .await?;
            let watched = Arc::clone(&cache);
            place.health.watch_engine(REDIS, move || match watched.state() {
                RedisState::Up => None,
                RedisState::Connecting => Some("connecting".to_owned()),
                RedisState::Down(reason) => Some(reason),
            });
            let metrics = Arc::clone(cache.metrics());
            registry.register_collector(Figures::of(move || figures::redis_cache(&metrics)));
            Ok(cache)
        }
    }
}

/// Where HBase is and what is asked of it.
pub(super) fn hbase_options(config: &Config) -> HbaseOptions {
    HbaseOptions {
        gateways: config.hbase.gateways.iter().map(ToString::to_string).collect(),
        transport: match config.hbase.transport {
            config::Transport::Buffered => Transport::Buffered,
            config::Transport::Framed => Transport::Framed,
        },
        prefix: config.hbase.prefix.0.clone(),
        ..config.limits.hbase.clone()
    }
}

/// How tables that are made are compressed.
pub(super) fn compression(config: &Config) -> Compression {
    match config.hbase.compression {
        config::Compression::None => Compression::None,
        config::Compression::Snappy => Compression::Snappy,
        config::Compression::Lz4 => Compression::Lz4,
        config::Compression::Zstd => Compression::Zstd,
        config::Compression::Gz => Compression::Gz,
    }
}

/// Where MySQL is and what it may cost.
pub(super) fn mysql_options(config: &Config) -> Result<MysqlOptions> {
    let limits = &config.limits.mysql;
    Ok(MysqlOptions {
        url: config.mysql.url().map_err(anyhow::Error::msg)?,
        ca_file: some_path(&config.mysql.ca),
        connections_max: limits.connections_max,
        connect_timeout: limits.connect_time_max,
        statement_timeout: limits.statement_time_max,
        call_timeout: limits.call_time_max,
    })
}

fn redis_bus_options(config: &Config) -> Result<idl::bus::redis::RedisOptions> {
    let Limits { bus, redis, streams, .. } = &config.limits;
    Ok(idl::bus::redis::RedisOptions {
        url: config.redis.url().map_err(anyhow::Error::msg)?,
        prefix: config.redis.prefix.0.clone(),
        ca_file: some_path(&config.redis.ca),
        connect_timeout: redis.connect_time_max,
        response_timeout: redis.response_time_max,
        retry_pause_max: redis.retry_pause_max,
        lane_max: bus.lane_max,
        read_max: streams.read_max,
        outgoing_max: streams.outgoing_max,
        inbox_max: streams.inbox_max,
        batches_max: bus.batches_max,
        events_max: bus.events_max,
        middle_lease: streams.lease,
        leaving_max: streams.leaving_time_max,
        tries_max: streams.tries_max,
        dead_max: streams.dead_max,
    })
}

fn redis_cache_options(config: &Config) -> Result<RedisOptions> {
    let (shared, limits) = (config.limits.cache, &config.limits.redis);
    Ok(RedisOptions {
        url: config.redis.url().map_err(anyhow::Error::msg)?,
        prefix: config.redis.prefix.0.clone(),
        ca_file: some_path(&config.redis.ca),
        certificate_file: None,
        key_file: None,
        connect_timeout: limits.connect_time_max,
        response_timeout: limits.response_time_max,
        retry_pause_max: limits.retry_pause_max,
        limits: RedisLimits {
            fronts_max: shared.fronts_max,
            lease: shared.lease,
            resources_max: limits.resources_max,
            record_ttl: limits.record_time,
            absent_ttl: limits.absent_time,
            tombstone_ttl: limits.tombstone_time,
            record_bytes_max: limits.record_bytes_max,
            generation_age_max: limits.generation_age_max,
            sweep_every: limits.sweep_interval,
        },
        clock: None,
    })
}

fn some_path(path: &Path) -> Option<PathBuf> {
    Some(path.to_owned()).filter(|path| !path.as_os_str().is_empty())
}

/// Login, database, rights, certificate and schema are as they are until somebody changes them.
fn refused_by_mysql(text: &str) -> bool {
    let numbers = ["1044", "1045", "1049", "1142", "1143", "1251", "1698"];
    numbers.iter().any(|number| text.contains(&format!("(error {number})")))
        || ["TLS:", "campanile migrate", "run a newer build", "can't be used"].iter().any(|words| text.contains(words))
}

/// Settings, login, rights and certificate.
fn refused_by_redis(text: &str) -> bool {
    let words = [
        "WRONGPASS",
        "NOAUTH",
        "NOPERM",
        "AuthenticationFailed",
        "unauthenticated",
        "on Redis can't be used",
        "invalid peer certificate",
    ];
    words.iter().any(|word| text.contains(word))
}
