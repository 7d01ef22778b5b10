//! The sorted store in a folder of this machine, on fjall: nothing to install.
//!
//! One keyspace a table; row and cell make one key ([`crate::keys`]); the value begins with the moment at which the cell
//! expires. Expired cells are hidden from reads at once and dropped for good when fjall compacts what they lie in, so
//! expiry costs no writes and no index of its own.
//!
//! **Writes** go through one committing thread, which takes all requests that wait, up to a limit, applies them as one
//! batch, syncs the journal once and then answers them all (`embedded/committer.rs`). While one group is being synced the next
//! gathers: the slower the disk, the larger the groups.
//!
//! **Reads** of a few rows run on the caller's thread: most are answered by memory within microseconds, less than it takes
//! to hand them to another thread. Reads of many rows and scans may touch the disk many times and run on the runtime's
//! blocking threads.
//!
//! **A disk that fails or is full** does not end the process: writes are answered [`StoreError::Unavailable`], and when the
//! disk takes writes again the store mends itself (`embedded/committer.rs`).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use async_trait::async_trait;
use idl::clock::SharedClock;
use tokio::sync::{mpsc, oneshot};

use self::committer::{Committer, Request};
use self::tables::Tables;
use super::{Mutation, Put, Row, RowRead, RowScan, SortedStore, StoreError};

mod committer;
mod tables;

/// Reads of at most this many rows run on the caller's thread.
const INLINE_ROWS_MAX: usize = 16;

/// Limits of an embedded store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedOptions {
    /// Most write requests that wait for the committing thread; further ones wait for room.
    pub queue_max: usize,
    /// Most mutations in one group.
    pub group_mutations_max: usize,
    /// Most bytes of keys and values in one group. A single request may be larger and is then a group of its own.
    pub group_bytes_max: usize,
    /// For blocks read from disk.
    pub cache_bytes: u64,
    /// Of one table in memory before it is written to a file. Taken when the folder is made and kept with it.
    pub memtable_bytes: u64,
    /// With less than this free on the disk only requests that delete are accepted. fjall needs the room: when it can't write
    /// its tables in memory to files it stops, and may hold up the committing thread until the process is started again.
    /// 0 turns the check off.
    pub free_bytes_min: u64,
}

impl Default for EmbeddedOptions {
    /// 4,096 requests, groups of 16,384 mutations and 8 MiB, 64 MiB of cache, 32 MiB a table in memory, 256 MiB free.
    fn default() -> Self {
        Self {
            queue_max: 4096,
            group_mutations_max: 16_384,
            group_bytes_max: 8 << 20,
            cache_bytes: 64 << 20,
            memtable_bytes: 32 << 20,
            free_bytes_min: 256 << 20,
        }
    }
}

/// What an embedded store has done since it was opened.
#[derive(Debug, Default)]
pub struct EmbeddedMetrics {
    groups: AtomicU64,
    requests: AtomicU64,
    mutations: AtomicU64,
    groups_failed: AtomicU64,
    refused_full: AtomicU64,
    mended: AtomicU64,
}

impl EmbeddedMetrics {
    /// Groups that were synced.
    pub fn groups(&self) -> u64 {
        self.groups.load(Ordering::Relaxed)
    }

    /// Write requests in those groups; divided by [`groups`](Self::groups), the mean size of a group.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Cells written and deleted in those groups.
    pub fn mutations(&self) -> u64 {
        self.mutations.load(Ordering::Relaxed)
    }

    /// Groups that were not written, because writing or syncing failed or had failed before.
    pub fn groups_failed(&self) -> u64 {
        self.groups_failed.load(Ordering::Relaxed)
    }

    /// Requests refused because the disk has too little room.
    pub fn refused_full(&self) -> u64 {
        self.refused_full.load(Ordering::Relaxed)
    }

    /// How often the store was reopened after a failed write.
    pub fn mended(&self) -> u64 {
        self.mended.load(Ordering::Relaxed)
    }
}

/// A sorted store in a folder. The folder has one owner at a time.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    /// `None` only while the store is being dropped.
    requests: Option<mpsc::Sender<Request>>,
    committer: Option<JoinHandle<()>>,
}

/// What reads and the committing thread share.
struct Shared {
    path: PathBuf,
    options: EmbeddedOptions,
    clock: SharedClock,
    /// `None` while the store is reopened.
    tables: RwLock<Option<Tables>>,
    metrics: Arc<EmbeddedMetrics>,
}

impl EmbeddedStore {
    /// Opens the store in this folder and makes it, for this user alone, if it is absent. What an earlier process was
    /// answered `Ok` for is there.
    ///
    /// [`StoreError::Unavailable`] if the folder can't be used, or another process has it open.
    pub fn open(path: &Path, clock: SharedClock, options: EmbeddedOptions) -> Result<Self, StoreError> {
        let tables = Tables::open_or_create(path, &clock, &options)
            .map_err(|error| StoreError::Unavailable(format!("{} can't be opened: {error}", path.display())))?;
        let (requests, queue) = mpsc::channel(options.queue_max.max(1));
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            options,
            clock,
            tables: RwLock::new(Some(tables)),
            metrics: Arc::default(),
        });
        let committer = Committer::new(shared.clone(), queue);
        let committer = std::thread::Builder::new()
            .name("store-commit".to_owned())
            .spawn(move || committer.run())
            .map_err(|error| StoreError::Unavailable(format!("the committing thread can't be started: {error}")))?;
        Ok(Self { shared, requests: Some(requests), committer: Some(committer) })
    }

    /// What the store has done.
    pub fn metrics(&self) -> Arc<EmbeddedMetrics> {
        self.shared.metrics.clone()
    }

    async fn request<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let gone = || StoreError::Unavailable("the committing thread has ended".to_owned());
        let (answer, answered) = oneshot::channel();
        self.requests.as_ref().ok_or_else(gone)?.send(request(answer)).await.map_err(|_| gone())?;
        // The thread ended with the request in hand.
        answered.await.map_err(|_| StoreError::TimedOut)?
    }

    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        let ended = |_| StoreError::Unavailable("the read was ended with the runtime".to_owned());
        tokio::task::spawn_blocking(move || read(&shared)).await.map_err(ended)?
    }
}

impl Drop for EmbeddedStore {
    /// Waits until what was accepted is written, so that the folder can be opened again at once.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(committer) = self.committer.take() {
            // It panicked, which was reported when it did.
            let _ = committer.join();
        }
    }
}

#[async_trait]
impl SortedStore for EmbeddedStore {
    async fn write(&self, batch: Vec<Mutation>) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.request(|answer| Request::Write { batch, answer }).await
    }

    async fn read(&self, rows: Vec<RowRead>) -> Result<Vec<Row>, StoreError> {
        let read = |shared: &Shared, rows: Vec<RowRead>| {
            let now_ms = shared.clock.now_ms();
            shared.tables(|tables| rows.into_iter().map(|read| tables.row(read, now_ms)).collect())
        };
        if rows.len() <= INLINE_ROWS_MAX {
            return read(&self.shared, rows);
        }
        self.blocking(move |shared| read(shared, rows)).await
    }

    async fn scan(&self, scan: RowScan) -> Result<Vec<Row>, StoreError> {
        self.blocking(move |shared| {
            let now_ms = shared.clock.now_ms();
            shared.tables(|tables| tables.scan(&scan, now_ms))
        })
        .await
    }

    async fn keys(&self, scan: RowScan) -> Result<Vec<Vec<u8>>, StoreError> {
        self.blocking(move |shared| {
            let now_ms = shared.clock.now_ms();
            shared.tables(|tables| tables.keys(&scan, now_ms))
        })
        .await
    }

    async fn put_if_absent(&self, put: Put) -> Result<bool, StoreError> {
        self.request(|answer| Request::PutIfAbsent { put, answer }).await
    }
}

impl Shared {
    fn tables<T>(&self, read: impl FnOnce(&Tables) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let reopening = || StoreError::Unavailable("the store is being reopened after a failed write".to_owned());
        read(tables.as_ref().ok_or_else(reopening)?)
    }

    /// Takes the tables away from readers, or gives them back. Waits for reads that are under way.
    fn exchange(&self, tables: Option<Tables>) -> Option<Tables> {
        std::mem::replace(&mut *self.tables.write().unwrap_or_else(PoisonError::into_inner), tables)
    }
}
