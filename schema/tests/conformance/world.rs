//! What a case runs in: a backend, a clock that the case moves, and things to store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use idl::clock::{Clock, SystemEntropy};
use idl::contract::message::Notification;
use idl::ids::{AccountId, AppId, FrontId, MessageId, RegId};
use idl::message::{Handling, Message};
use schema::cache::Cache;
use schema::cache::in_process::{CacheLimits, InProcessCache};
use schema::cache::redis::{RedisCache, RedisLimits, RedisOptions};
use schema::catalog::Catalog;
use schema::catalog::mysql::{MysqlCatalog, MysqlOptions};
use schema::catalog::sqlite::SqliteCatalog;
use schema::registrations::{Cursor, RecentBroadcast, Registration};
use schema::sorted::embedded::{EmbeddedOptions, EmbeddedStore};
use schema::sorted::memory::MemoryStore;
use schema::sorted::{Cells, Mutation, Put, RowRead, SortedStore, Table};
use tempfile::TempDir;

/// When the test clock begins.
pub(crate) const START_MS: u64 = 1_800_000_000_000;

pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(START_MS)))
    }

    pub(crate) fn set(&self, ms: u64) {
        self.0.store(ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A sorted store of some backend.
pub(crate) struct World {
    pub(crate) store: Arc<dyn SortedStore>,
    pub(crate) clock: Arc<TestClock>,
    /// Dropped after the store.
    _folder: Option<TempDir>,
}

pub(crate) fn memory() -> World {
    let clock = TestClock::new();
    World { store: Arc::new(MemoryStore::new(clock.clone())), clock, _folder: None }
}

pub(crate) fn embedded() -> World {
    let (folder, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    World { store: Arc::new(open_embedded(folder.path(), &clock)), clock, _folder: Some(folder) }
}

pub(crate) fn open_embedded(folder: &Path, clock: &Arc<TestClock>) -> EmbeddedStore {
    let options = EmbeddedOptions { free_bytes_min: 0, ..EmbeddedOptions::default() };
    EmbeddedStore::open(&folder.join("store"), clock.clone(), options).unwrap()
}

pub(crate) struct CatalogWorld {
    pub(crate) catalog: Arc<dyn Catalog>,
    _folder: Option<TempDir>,
}

pub(crate) fn sqlite() -> CatalogWorld {
    let folder = tempfile::tempdir().unwrap();
    CatalogWorld { catalog: Arc::new(open_sqlite(folder.path())), _folder: Some(folder) }
}

pub(crate) fn open_sqlite(folder: &Path) -> SqliteCatalog {
    SqliteCatalog::open(&folder.join("catalog.sqlite")).unwrap()
}

pub(crate) fn sqlite_in_memory() -> CatalogWorld {
    CatalogWorld { catalog: Arc::new(SqliteCatalog::in_memory().unwrap()), _folder: None }
}

/// A database of its own for each case.
pub(crate) fn mysql() -> Option<CatalogWorld> {
    static CASES: AtomicU64 = AtomicU64::new(0);
    let server = servers::mariadb()?;
    let url = server.url(&format!("case_{}", CASES.fetch_add(1, Ordering::Relaxed)));
    // Patient, for all cases together are more than the machine does at once.
    let patience = Duration::from_mins(1);
    let options = MysqlOptions {
        url,
        connections_max: 4,
        connect_timeout: patience,
        statement_timeout: patience,
        call_timeout: patience,
        ..MysqlOptions::default()
    };
    let opening = async {
        MysqlCatalog::migrate(&options).await?;
        MysqlCatalog::open(options).await
    };
    let catalog = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(opening)).unwrap();
    Some(CatalogWorld { catalog: Arc::new(catalog), _folder: None })
}

pub(crate) struct CacheWorld {
    pub(crate) cache: Arc<dyn Cache>,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) limits: CacheLimits,
}

pub(crate) fn in_process() -> CacheWorld {
    let (clock, limits) =
        (TestClock::new(), CacheLimits { routes_max: 4, fronts_max: 2, lease: Duration::from_secs(10) });
    let cache = Arc::new(InProcessCache::new(clock.clone(), Arc::new(SystemEntropy), limits));
    CacheWorld { cache, clock, limits }
}

/// Processes that share a cache in Redis.
pub(crate) struct RedisProcesses {
    pub(crate) one: RedisCache,
    pub(crate) other: RedisCache,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) options: RedisOptions,
}

pub(crate) fn redis_processes() -> Option<RedisProcesses> {
    static CASES: AtomicU64 = AtomicU64::new(0);
    let (server, clock) = (servers::redis()?, TestClock::new());
    let options = RedisOptions {
        url: server.url(),
        prefix: format!("conformance.{}", CASES.fetch_add(1, Ordering::SeqCst)),
        // A machine that is busy is no fault here.
        connect_timeout: Duration::from_secs(30),
        response_timeout: Duration::from_secs(30),
        limits: RedisLimits {
            fronts_max: 2,
            resources_max: 4,
            lease: Duration::from_millis(300),
            ..RedisLimits::default()
        },
        clock: Some(clock.clone()),
        ..RedisOptions::default()
    };
    let process = || RedisCache::start(options.clone(), Arc::new(SystemEntropy)).unwrap();
    Some(RedisProcesses { one: process(), other: process(), clock, options })
}

pub(crate) fn redis() -> Option<CacheWorld> {
    let RedisProcesses { one, clock, options, .. } = redis_processes()?;
    // Routes are bounded by the server's memory alone.
    let limits =
        CacheLimits { routes_max: usize::MAX, fronts_max: options.limits.fronts_max, lease: options.limits.lease };
    Some(CacheWorld { cache: Arc::new(one), clock, limits })
}

// ------------------------------------------------------------------------------------------------ cells

pub(crate) fn put(table: Table, row: &[u8], cell: &[u8], value: &[u8]) -> Put {
    Put { table, row: row.to_vec(), cell: cell.to_vec(), value: value.to_vec(), expires_at_ms: None }
}

pub(crate) fn put_until(table: Table, row: &[u8], cell: &[u8], value: &[u8], at_ms: u64) -> Put {
    Put { expires_at_ms: Some(at_ms), ..put(table, row, cell, value) }
}

pub(crate) fn read(table: Table, row: &[u8], cells: Cells) -> RowRead {
    RowRead { table, row: row.to_vec(), cells, limit: usize::MAX }
}

impl World {
    /// Without a folder.
    pub(crate) fn of(store: Arc<dyn SortedStore>, clock: Arc<TestClock>) -> Self {
        Self { store, clock, _folder: None }
    }

    pub(crate) async fn write(&self, puts: impl IntoIterator<Item = Put>) {
        self.store.write(puts.into_iter().map(Mutation::Put).collect()).await.unwrap();
    }

    /// The cells of one row, as text.
    pub(crate) async fn row(&self, table: Table, row: &[u8]) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let rows = self.store.read(vec![read(table, row, Cells::All)]).await.unwrap();
        rows[0].cells.iter().map(|(cell, value)| (text(cell), text(value))).collect()
    }

    /// How many rows a table has.
    pub(crate) async fn rows(&self, table: Table) -> usize {
        let scan = schema::sorted::RowScan { table, from: Vec::new(), to: None, rows_max: usize::MAX };
        self.store.scan(scan).await.unwrap().len()
    }
}

// ------------------------------------------------------------------------------------------------ things to store

pub(crate) fn app(name: &str) -> AppId {
    format!("com.example.{name}").parse().unwrap()
}

pub(crate) fn regid(number: u8) -> RegId {
    let mut bytes = [0; 24];
    bytes[23] = number;
    RegId(bytes)
}

/// A message that expires ten seconds after the start.
pub(crate) fn message(id: u128) -> Message {
    Message {
        id: MessageId(id),
        app: app("demo"),
        notification: Notification { payload: Some(format!("message {id}")), ..Notification::default() },
        accepted_at_ms: START_MS,
        expires_at_ms: START_MS + 10_000,
        audience: None,
        handling: Handling::default(),
    }
}

pub(crate) fn registration(number: u8) -> Registration {
    Registration {
        regid: regid(number),
        account: AccountId(u128::from(number)),
        app: app("demo"),
        device_public: [1; 32],
        seal_key: [2; 32],
        enabled: true,
        attributes: BTreeMap::from([("platform".to_owned(), "android".to_owned())]),
        aliases: BTreeSet::from(["anna".parse().unwrap(), "bert".parse().unwrap()]),
        user_accounts: BTreeSet::from(["user@example.com".parse().unwrap()]),
        topics: BTreeMap::from([("news".parse().unwrap(), MessageId(5))]),
        version: 1,
        created_at: MessageId(3),
        cursor: Cursor { judged_to: MessageId(3), acked: vec![MessageId(1), MessageId(2)] },
        last_seen_ms: Some(START_MS),
        recent: vec![recent(1)],
    }
}

/// A broadcast that was acknowledged.
pub(crate) fn recent(id: u128) -> RecentBroadcast {
    RecentBroadcast { id: MessageId(id), at_ms: START_MS + 1, front: FrontId(9) }
}
