//! HBase for all cases at once: the tables are made once, and each case sees rows of its own alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use idl::clock::{SharedClock, SystemEntropy};
use schema::keys;
use schema::sorted::hbase::{self, Compression, HbaseOptions, HbaseStore};
use schema::sorted::{Mutation, Put, Row, RowRead, RowScan, SortedStore, StoreError};
use servers::TableSpec;
use tokio::sync::OnceCell;

use crate::world::{TestClock, World};

/// Patient, for all cases together are more than the machine does at once.
const PATIENCE: Duration = Duration::from_mins(1);

/// A store for one case.
pub(crate) fn hbase() -> Option<World> {
    let clock = TestClock::new();
    let store = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(open(clock.clone())))?;
    Some(World::of(Arc::new(store), clock))
}

/// `None` where HBase is absent.
pub(crate) async fn open(clock: SharedClock) -> Option<Apart> {
    static CASES: AtomicU32 = AtomicU32::new(0);
    static TABLES: OnceCell<()> = OnceCell::const_new();
    let server = servers::hbase()?;
    let options = HbaseOptions {
        gateways: vec![server.gateway().to_string()],
        prefix: "conformance".to_owned(),
        write_threads: 2,
        guard_threads: 2,
        read_threads: 1,
        scan_threads: 1,
        read_timeout: PATIENCE,
        operation_timeout: PATIENCE,
        scan_timeout: PATIENCE,
        ..HbaseOptions::default()
    };
    let tables = async {
        let specs = hbase::tables(&options.prefix, 1).into_iter();
        let specs: Vec<_> =
            specs.map(|spec| TableSpec { name: spec.name, family: "c".to_owned(), ..TableSpec::default() }).collect();
        server.create_tables(&specs);
        hbase::migrate(&options, Compression::None, Arc::new(SystemEntropy)).unwrap();
    };
    TABLES.get_or_init(|| tables).await;
    let store = HbaseStore::open(options.clone(), clock, Arc::new(SystemEntropy)).await.unwrap();
    Some(Apart { store, name: CASES.fetch_add(1, Ordering::SeqCst).to_be_bytes() })
}

/// The rows of a store whose keys begin with a name, without it.
pub(crate) struct Apart {
    store: HbaseStore,
    name: [u8; 4],
}

impl Apart {
    fn row(&self, row: &[u8]) -> Vec<u8> {
        if row.is_empty() { Vec::new() } else { self.place(row) }
    }

    fn place(&self, row: &[u8]) -> Vec<u8> {
        [self.name.as_slice(), row].concat()
    }

    fn range(&self, scan: RowScan) -> RowScan {
        let to = match scan.to {
            Some(to) => Some(self.place(&to)),
            None => keys::prefix_end(&self.name),
        };
        RowScan { from: self.place(&scan.from), to, ..scan }
    }

    fn put(&self, put: Put) -> Put {
        Put { row: self.row(&put.row), ..put }
    }

    fn own(&self, row: Row) -> Row {
        Row { row: self.own_key(&row.row), ..row }
    }

    fn own_key(&self, row: &[u8]) -> Vec<u8> {
        row.strip_prefix(&self.name).unwrap_or_default().to_vec()
    }
}

#[async_trait]
impl SortedStore for Apart {
    async fn write(&self, batch: Vec<Mutation>) -> Result<(), StoreError> {
        let batch = batch.into_iter().map(|mutation| match mutation {
            Mutation::Put(put) => Mutation::Put(self.put(put)),
            Mutation::DeleteCell { table, row, cell } => Mutation::DeleteCell { table, row: self.row(&row), cell },
            Mutation::DeleteRow { table, row } => Mutation::DeleteRow { table, row: self.row(&row) },
        });
        self.store.write(batch.collect()).await
    }

    async fn read(&self, rows: Vec<RowRead>) -> Result<Vec<Row>, StoreError> {
        let rows = rows.into_iter().map(|read| RowRead { row: self.row(&read.row), ..read });
        Ok(self.store.read(rows.collect()).await?.into_iter().map(|row| self.own(row)).collect())
    }

    async fn scan(&self, scan: RowScan) -> Result<Vec<Row>, StoreError> {
        Ok(self.store.scan(self.range(scan)).await?.into_iter().map(|row| self.own(row)).collect())
    }

    async fn keys(&self, scan: RowScan) -> Result<Vec<Vec<u8>>, StoreError> {
        Ok(self.store.keys(self.range(scan)).await?.into_iter().map(|row| self.own_key(&row)).collect())
    }

    async fn put_if_absent(&self, put: Put) -> Result<bool, StoreError> {
        self.store.put_if_absent(self.put(put)).await
    }
}
