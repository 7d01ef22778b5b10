//! The sorted store in HBase, through its Thrift gateways.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `tables.rs` | which tables there are, how they are made and split, their version |
//! | `cells.rs` | how cells lie in HBase, and how they expire |
//! | `writes.rs`, `stamps.rs` | batches into groups, groups into calls; who wins where two writes meet |
//! | `guards.rs` | `put_if_absent` |
//! | `reads.rs`, `scans.rs` | many callers' rows with few calls; ranges in pages |
//! | `lanes.rs`, `gateway.rs`, `wire.rs` | queues; connections, retries and breakers; Thrift with limits |
//!
//! The client of the gateway blocks, so threads of our own talk to it, each over one connection, in four *lanes*: writes,
//! `put_if_absent`, reads, scans. A caller queues its request and waits. A lane's queue is bounded; who finds no room in time
//! is told [`StoreError::Unavailable`]. Each thread of the write lane has a queue of its own, and a batch goes to the one
//! that its first row says; the others share one queue a lane.
//!
//! **Time.** Every operation ends after [`HbaseOptions::operation_timeout`], whatever the gateways do; a scan after
//! [`HbaseOptions::scan_timeout`]. Within it what may be repeated is repeated: on another connection, and through another
//! gateway if there is one. A write is [`StoreError::Unavailable`] if nothing of it was sent and
//! [`StoreError::TimedOut`] if anything was. Reads and scans that fail are `Unavailable`.
//!
//! **Expiry** goes by the store's clock, exactly: each value says when it expires, and what has is hidden. HBase gets a
//! longer time to live (`_ttl`), only so that it drops what nobody can see. One thing differs from a folder of this
//! machine: where a cell was put for longer and then anew for a shorter time, HBase may drop the later version before the
//! earlier, which then shows again until its own time comes. The ten minutes for which HBase keeps what has expired cover
//! small steps back; no domain store takes larger ones but for the heads of [`crate::receipts`], which say the same each
//! time. A store that did would have to delete the cell first, in a batch before.
//!
//! **Durable** means in HBase's write-ahead log. What is one row is written at once; see `writes.rs` for the order of the rest.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use idl::clock::{SharedClock, SharedEntropy, SystemClock};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::gateway::{Gateways, Link};
use self::guards::Guard;
use self::lanes::{Lane, Next, Refused};
use self::reads::Read;
use self::scans::{Scan, Wanted};
use self::stamps::Stamps;
pub use self::tables::{Compression, Migration, SchemaError, TableSpec, VERSION, migrate, shell_commands, tables};
use self::writes::{Grouping, Write};
use super::{Mutation, Put, Row, RowRead, RowScan, SortedStore, StoreError, Table};

mod cells;
mod gateway;
mod guards;
mod lanes;
mod reads;
mod scans;
mod stamps;
mod tables;
mod wire;
mod writes;

/// How much longer a caller waits than the operation may take: for the reason rather than none.
const GRACE: Duration = Duration::from_millis(250);

/// How messages are told apart on the connection. Client and gateway must agree: a wrong pairing is only noticed when no
/// answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// By what is in them: the gateway's default.
    #[default]
    Buffered,
    /// By a length in front (the gateway's `-f`, and all of its non-blocking servers).
    Framed,
}

/// Where HBase is and what is asked of it at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HbaseOptions {
    /// Thrift gateways, each as `host:port`. Connections are spread over them.
    pub gateways: Vec<String>,
    /// The transport that all of them speak.
    pub transport: Transport,
    /// Tables are called `<prefix>_<table>`.
    pub prefix: String,
    /// Threads, and connections, that write batches.
    pub write_threads: usize,
    /// Threads, and connections, for `put_if_absent`.
    pub guard_threads: usize,
    /// Threads, and connections, that read rows.
    pub read_threads: usize,
    /// Threads, and connections, that scan.
    pub scan_threads: usize,
    /// Most requests that wait in each queue; further ones wait for room.
    pub queue_max: usize,
    /// Most mutations in one group of writes and in one call. A single batch may be larger and is then a group of its own.
    pub group_mutations_max: usize,
    /// Most bytes of a group and of a call. A single row may take more, up to `row_bytes_max`.
    pub group_bytes_max: usize,
    /// For how long a group waits for more, when the one before had several batches; a lone caller's is sent at once.
    pub group_wait: Duration,
    /// Most bytes that one batch writes to one row. A framed gateway closes the connection above 2 MiB.
    pub row_bytes_max: usize,
    /// Most rows in one call that reads.
    pub gather_rows_max: usize,
    /// Largest answer that is read.
    pub response_bytes_max: usize,
    /// For one attempt to connect.
    pub connect_timeout: Duration,
    /// For one call on a connection, from sending it to the whole answer.
    pub read_timeout: Duration,
    /// For one operation, with all its attempts and its time in the queue.
    pub operation_timeout: Duration,
    /// The same for a scan, which takes several calls.
    pub scan_timeout: Duration,
    /// A connection that was not used for so long is made anew; gateways close idle ones after a minute.
    pub idle_max: Duration,
    /// A gateway that fails so many times in a row is left alone for a while.
    pub breaker_failures: u32,
}

impl Default for HbaseOptions {
    /// One gateway on this machine; 2 threads that write, 2 for `put_if_absent`, 2 that read, 2 that scan; queues of 4,096;
    /// groups of 500 mutations, 1 MB and 2 ms; 1.9 MB a row; calls for 256 rows and answers of 64 MiB; 1 s to connect, 2 s a call,
    /// 5 s an operation, 10 s a scan; 30 s idle; 3 failures.
    fn default() -> Self {
        Self {
            gateways: vec!["127.0.0.1:9090".to_owned()],
            transport: Transport::default(),
            prefix: "campanile".to_owned(),
            write_threads: 2,
            guard_threads: 2,
            read_threads: 2,
            scan_threads: 2,
            queue_max: 4096,
            group_mutations_max: 500,
            group_bytes_max: 1_000_000,
            group_wait: Duration::from_millis(2),
            row_bytes_max: 1_900_000,
            gather_rows_max: 256,
            response_bytes_max: 64 << 20,
            connect_timeout: Duration::from_secs(1),
            read_timeout: Duration::from_secs(2),
            operation_timeout: Duration::from_secs(5),
            scan_timeout: Duration::from_secs(10),
            idle_max: Duration::from_secs(30),
            breaker_failures: 3,
        }
    }
}

impl HbaseOptions {
    /// Refuses what can't work, and says what would.
    fn check(&self) -> Result<(), SchemaError> {
        let refuse = |reason: &str| Err(SchemaError::Options(reason.to_owned()));
        if self.gateways.is_empty() {
            return refuse("no HBase gateway is given: name at least one as host:port");
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if !self.prefix.starts_with(|first: char| first.is_ascii_alphanumeric()) || !self.prefix.bytes().all(plain) {
            return refuse(
                "the prefix of HBase tables has letters, digits, '_', '-' and '.', and begins with one of the first two",
            );
        }
        if [self.write_threads, self.guard_threads, self.read_threads, self.scan_threads].contains(&0) {
            return refuse("each lane to HBase has at least one thread");
        }
        Ok(())
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What a store has done since it was opened.
        #[derive(Debug, Default)]
        pub struct HbaseMetrics {
            $($name: Counter,)+
        }

        impl HbaseMetrics {
            $(
                $(#[doc = $doc])+
                pub fn $name(&self) -> u64 {
                    self.$name.0.load(Ordering::Relaxed)
                }
            )+
        }
    };
}

counters! {
    /// Groups of writes that were sent.
    groups,
    /// Batches in those groups; divided by [`groups`](Self::groups), the mean size of a group.
    writes,
    /// Cells and rows that those batches changed.
    mutations,
    /// Calls that those groups took.
    calls,
    /// Batches that were not written, or not surely.
    writes_failed,
    /// Requests for `put_if_absent`.
    guards,
    /// Requests to read rows.
    reads,
    /// Groups of such requests that were served together.
    reads_gathered,
    /// Calls that they took.
    read_calls,
    /// Rows that were asked for in those calls, each once a call.
    rows_asked,
    /// Requests to scan.
    scans,
    /// Pages that they took.
    scan_calls,
    /// Attempts after the first.
    retries,
    /// Connections that were made, those of probes apart.
    connections,
    /// How often a gateway was left alone because it failed.
    breakers_opened,
    /// Requests that found no room in their queue in time.
    queue_full,
    /// Times that a cell was read whose timestamp is more than a minute ahead of our clock: somebody's clock is wrong.
    clock_skewed,
}

/// What is known of one gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayState {
    /// As it was given.
    pub address: String,
    /// Whether it is left alone because it fails.
    pub open: bool,
    /// For how long it has not answered; `None` if it never has.
    pub last_success: Option<Duration>,
    /// When it last failed, before now, and why.
    pub last_failure: Option<(Duration, String)>,
}

/// What all threads of a store share.
struct Shared {
    /// What expiry goes by.
    clock: SharedClock,
    stamps: Arc<Stamps>,
    gateways: Arc<Gateways>,
    metrics: Arc<HbaseMetrics>,
}

impl Shared {
    fn table(&self, table: Table) -> Vec<u8> {
        tables::name(&self.gateways.options().prefix, table).into_bytes()
    }

    fn row_bytes_max(&self) -> usize {
        self.gateways.options().row_bytes_max
    }

    /// Takes note of the timestamps of cells that were read.
    fn observe(&self, stamps: impl IntoIterator<Item = Option<i64>>) {
        if !self.stamps.observe(stamps) {
            self.metrics.clock_skewed.add(1);
        }
    }
}

/// A sorted store in HBase. Many processes may use the same tables at once.
pub struct HbaseStore {
    shared: Arc<Shared>,
    /// One a thread.
    writes: Vec<Arc<Lane<Write>>>,
    guards: Arc<Lane<Guard>>,
    reads: Arc<Lane<Read>>,
    scans: Arc<Lane<Scan>>,
}

impl HbaseStore {
    /// Opens the store: HBase must be there, with the tables that [`migrate`] makes, in the version that this program
    /// knows. `clock` is what cells expire by; timestamps in HBase come from the machine's clock.
    ///
    /// [`SchemaError::Missing`] says to run `campanile migrate`; [`SchemaError::Store`] that HBase can't be reached.
    pub async fn open(options: HbaseOptions, clock: SharedClock, entropy: SharedEntropy) -> Result<Self, SchemaError> {
        options.check()?;
        let metrics: Arc<HbaseMetrics> = Arc::default();
        let gateways = Gateways::new(options.clone(), entropy, metrics.clone());
        let prefix = options.prefix.clone();
        let (checking, until) = (gateways.clone(), Instant::now() + options.operation_timeout);
        let ended = |_| SchemaError::Store(StoreError::Unavailable("the check was ended with the runtime".to_owned()));
        tokio::task::spawn_blocking(move || tables::check(&mut Link::new(checking, 0), &prefix, until))
            .await
            .map_err(ended)??;
        let stamps = Stamps::new(Arc::new(SystemClock));
        let shared = Arc::new(Shared { clock, stamps, gateways, metrics });
        let lane = options.queue_max;
        let store = Self {
            writes: (0..options.write_threads).map(|_| Lane::new(lane)).collect(),
            guards: Lane::new(lane),
            reads: Lane::new(lane),
            scans: Lane::new(lane),
            shared,
        };
        store.start(&options).map_err(SchemaError::Store)?;
        Ok(store)
    }

    fn start(&self, options: &HbaseOptions) -> Result<(), StoreError> {
        for (number, lane) in self.writes.iter().enumerate() {
            let (lane, shared) = (lane.clone(), self.shared.clone());
            let (mutations_max, bytes_max) = (options.group_mutations_max, options.group_bytes_max);
            let (wait, mut several) = (options.group_wait, false);
            self.spawn("write", number, move |link| {
                let wait = if several { wait } else { Duration::ZERO };
                let mut grouping = Grouping::new(mutations_max, bytes_max);
                let Some(group) = lane.take(wait, |write| grouping.next(write)) else { return false };
                several = group.len() > 1;
                writes::commit(&shared, link, group);
                true
            })?;
        }
        for number in 0..options.guard_threads {
            let (lane, shared) = (self.guards.clone(), self.shared.clone());
            self.spawn("guard", number, move |link| {
                let Some(group) = lane.take(Duration::ZERO, |_| Next::Leave) else { return false };
                for guard in group {
                    guards::serve(&shared, link, guard);
                }
                true
            })?;
        }
        for number in 0..options.read_threads {
            let (lane, shared) = (self.reads.clone(), self.shared.clone());
            let rows_max = options.gather_rows_max;
            self.spawn("read", number, move |link| {
                let mut rows_left = rows_max;
                let group = lane.take(Duration::ZERO, |read| match rows_left.checked_sub(read.rows.len()) {
                    Some(left) => {
                        rows_left = left;
                        Next::Take
                    }
                    None => Next::Leave,
                });
                let Some(group) = group else { return false };
                reads::serve(&shared, link, group);
                true
            })?;
        }
        for number in 0..options.scan_threads {
            let (lane, shared) = (self.scans.clone(), self.shared.clone());
            self.spawn("scan", number, move |link| {
                let Some(group) = lane.take(Duration::ZERO, |_| Next::Leave) else { return false };
                for scan in group {
                    scans::serve(&shared, link, scan);
                }
                true
            })?;
        }
        for place in 0..options.gateways.len() {
            let gateways = self.shared.gateways.clone();
            let watch = move || gateways.watch(place);
            std::thread::Builder::new().name(format!("hbase-watch-{place}")).spawn(watch).map_err(no_thread)?;
        }
        Ok(())
    }

    /// A thread that serves again and again, until it is told that there is nothing more.
    fn spawn(
        &self,
        lane: &str,
        number: usize,
        mut serve: impl FnMut(&mut Link) -> bool + Send + 'static,
    ) -> Result<(), StoreError> {
        let gateways = self.shared.gateways.clone();
        let run = move || {
            let mut link = Link::new(gateways.clone(), number);
            loop {
                match catch_unwind(AssertUnwindSafe(|| serve(&mut link))) {
                    Ok(true) => {}
                    Ok(false) => return,
                    // It was reported when it happened, and its callers are told that there is no answer.
                    Err(_) => link = Link::new(gateways.clone(), number),
                }
            }
        };
        std::thread::Builder::new().name(format!("hbase-{lane}-{number}")).spawn(run).map(drop).map_err(no_thread)
    }

    /// What the store has done.
    pub fn metrics(&self) -> Arc<HbaseMetrics> {
        self.shared.metrics.clone()
    }

    /// What is known of each gateway, without asking it now. Each was used or asked within the last seconds.
    pub fn state(&self) -> Vec<GatewayState> {
        self.shared.gateways.state()
    }

    /// Whether there is a gateway that does not fail. As cheap as [`state`](Self::state).
    pub fn healthy(&self) -> bool {
        self.shared.gateways.is_any_closed()
    }

    async fn queue<T>(&self, lane: &Lane<T>, request: T, until: Instant) -> Result<(), StoreError> {
        lane.put(request, until).await.map_err(|refused| match refused {
            Refused::Full => {
                self.shared.metrics.queue_full.add(1);
                StoreError::Unavailable("the queue to HBase is full".to_owned())
            }
            Refused::Closed => StoreError::Unavailable("the store is closed".to_owned()),
        })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.shared.gateways.options().operation_timeout
    }
}

impl Drop for HbaseStore {
    /// The threads end when they have served what is queued, for which nobody waits any more.
    fn drop(&mut self) {
        self.writes.iter().for_each(|lane| lane.close());
        self.guards.close();
        self.reads.close();
        self.scans.close();
        self.shared.gateways.close();
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` hands it over")]
fn no_thread(error: std::io::Error) -> StoreError {
    StoreError::Unavailable(format!("a thread for HBase can't be started: {error}"))
}

/// Waits for the answer to a write.
async fn written<T>(answer: oneshot::Receiver<Result<T, StoreError>>, until: Instant) -> Result<T, StoreError> {
    match tokio::time::timeout_at(until + GRACE, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => Err(StoreError::TimedOut),
    }
}

/// Waits for the answer to a read, after which nothing has changed.
async fn found<T>(answer: oneshot::Receiver<Result<T, StoreError>>, until: Instant) -> Result<T, StoreError> {
    match tokio::time::timeout_at(until + GRACE, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => Err(StoreError::Unavailable("HBase did not answer in time".to_owned())),
    }
}

#[async_trait]
impl SortedStore for HbaseStore {
    async fn write(&self, batch: Vec<Mutation>) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let until = self.deadline();
        let (answer, answered) = oneshot::channel();
        let write = Write::new(batch, self.shared.clock.now_ms(), self.shared.row_bytes_max(), until, answer)?;
        let thread = usize::try_from(write.hash() % self.writes.len() as u64).unwrap_or_default();
        let lane = self.writes.get(thread).ok_or_else(|| StoreError::Unavailable("no thread writes".to_owned()))?;
        self.queue(lane, write, until).await?;
        written(answered, until).await
    }

    async fn read(&self, rows: Vec<RowRead>) -> Result<Vec<Row>, StoreError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = self.deadline();
        let (answer, answered) = oneshot::channel();
        self.queue(&self.reads, Read { rows, deadline, answer }, deadline).await?;
        found(answered, deadline).await
    }

    async fn scan(&self, scan: RowScan) -> Result<Vec<Row>, StoreError> {
        let deadline = Instant::now() + self.shared.gateways.options().scan_timeout;
        let (answer, answered) = oneshot::channel();
        self.queue(&self.scans, Scan { range: scan, deadline, wanted: Wanted::Rows(answer) }, deadline).await?;
        found(answered, deadline).await
    }

    async fn keys(&self, scan: RowScan) -> Result<Vec<Vec<u8>>, StoreError> {
        let deadline = Instant::now() + self.shared.gateways.options().scan_timeout;
        let (answer, answered) = oneshot::channel();
        self.queue(&self.scans, Scan { range: scan, deadline, wanted: Wanted::Keys(answer) }, deadline).await?;
        found(answered, deadline).await
    }

    async fn put_if_absent(&self, put: Put) -> Result<bool, StoreError> {
        let deadline = self.deadline();
        let (answer, answered) = oneshot::channel();
        self.queue(&self.guards, Guard { put, deadline, answer }, deadline).await?;
        written(answered, deadline).await
    }
}
