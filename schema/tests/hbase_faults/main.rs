//! The sorted store in HBase when gateways, HBase or connections fail, and what the conformance suite can't see.

#![expect(clippy::unwrap_used, reason = "in a test a failure is a panic; clippy knows tests by their attribute alone")]

// As the other crates of the workspace name it.
extern crate campanile_schema as schema;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use idl::clock::{Clock, SystemClock, SystemEntropy};
use schema::sorted::hbase::{self, Compression, HbaseOptions, HbaseStore, SchemaError, Transport};
use schema::sorted::{Cells, Mutation, Put, RowRead, RowScan, SortedStore, Table};
use servers::{HBase, TableSpec};
use tokio::time::Instant;

mod failing;
mod limits;
mod order;
mod proxy;
mod schema_version;

const T: Table = Table::Mailboxes;

/// A clock that a test moves.
struct TestClock(AtomicU64);

impl TestClock {
    fn new(now_ms: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(now_ms)))
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Tables of a test's own, and how to reach them. `None` where HBase is absent.
fn tables() -> Option<HbaseOptions> {
    Some(tables_in(servers::hbase()?, Transport::Buffered))
}

fn tables_in(server: &HBase, transport: Transport) -> HbaseOptions {
    static TESTS: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("test{}", TESTS.fetch_add(1, Ordering::SeqCst));
    let specs = hbase::tables(&prefix, 1).into_iter();
    let specs: Vec<_> =
        specs.map(|spec| TableSpec { name: spec.name, family: "c".to_owned(), ..TableSpec::default() }).collect();
    let options = HbaseOptions {
        gateways: vec![server.gateway().to_string()],
        transport,
        prefix,
        // A machine that is busy is no fault here.
        read_timeout: Duration::from_secs(30),
        operation_timeout: Duration::from_secs(30),
        scan_timeout: Duration::from_secs(30),
        ..HbaseOptions::default()
    };
    tokio::task::block_in_place(|| {
        server.create_tables(&specs);
        hbase::migrate(&options, Compression::None, Arc::new(SystemEntropy)).unwrap();
    });
    options
}

async fn open(options: HbaseOptions) -> Arc<HbaseStore> {
    Arc::new(HbaseStore::open(options, Arc::new(SystemClock), Arc::new(SystemEntropy)).await.unwrap())
}

fn put(row: &[u8], cell: &[u8], value: &[u8]) -> Put {
    Put { table: T, row: row.to_vec(), cell: cell.to_vec(), value: value.to_vec(), expires_at_ms: None }
}

fn put_one(row: &[u8], cell: &[u8], value: &[u8]) -> Vec<Mutation> {
    vec![Mutation::Put(put(row, cell, value))]
}

fn delete_cell(row: &[u8], cell: &[u8]) -> Mutation {
    Mutation::DeleteCell { table: T, row: row.to_vec(), cell: cell.to_vec() }
}

fn delete_row(row: &[u8]) -> Mutation {
    Mutation::DeleteRow { table: T, row: row.to_vec() }
}

fn whole(row: &[u8]) -> RowRead {
    RowRead { table: T, row: row.to_vec(), cells: Cells::All, limit: usize::MAX }
}

fn all_rows() -> RowScan {
    RowScan { table: T, from: Vec::new(), to: None, rows_max: usize::MAX }
}

/// The cells of a row, keys and values.
async fn cells(store: &HbaseStore, row: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    store.read(vec![whole(row)]).await.unwrap().remove(0).cells
}

/// Waits until something is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(3);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
