//! The sorted store: rows of ordered cells, as HBase has them.
//!
//! What every backend promises:
//! - A write that was answered `Ok` is durable. One that was answered [`StoreError::Unavailable`] did not happen; after
//!   [`StoreError::TimedOut`] it may have.
//! - The mutations of a batch take effect in their order: the later of two on one cell wins. Those on one row take
//!   effect together; those on several rows may be seen one by one, so write truth first and index second.
//! - Writing a batch twice leaves what writing it once leaves.
//! - Rows and cells are ordered byte by byte. A cell whose time has come is never returned.

use std::fmt::Write as _;

use async_trait::async_trait;
use idl::error::{Code, Failure};
use thiserror::Error;

pub mod embedded;
pub mod hbase;
pub mod memory;

/// The tables of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Device accounts: [`crate::accounts`].
    Accounts,
    /// Registrations: [`crate::registrations`].
    Registrations,
    /// Aliases and user accounts to registrations: [`crate::names`].
    Names,
    /// Topics to registrations: [`crate::topics`].
    TopicMembers,
    /// Messages with several targets: [`crate::messages`].
    Messages,
    /// Deliveries that wait: [`crate::mailbox`].
    Mailboxes,
    /// Broadcasts: [`crate::timeline`].
    Timelines,
    /// What is known of each accepted message: [`crate::records`].
    Records,
    /// Messages by job key: [`crate::records`].
    JobKeys,
    /// What happened to a message for one registration: [`crate::traces`].
    Traces,
    /// Receipts in order: [`crate::receipts`].
    Receipts,
    /// Receipts that have to be posted: [`crate::receipts`].
    Callbacks,
    /// Deliveries whose expiry somebody wants to know of: [`crate::expiries`].
    Expiries,
    /// Targets that turned out to be invalid: [`crate::feedback`].
    Feedback,
    /// First answers to idempotency keys: [`crate::idempotency`].
    Idempotency,
    /// Counters by day: [`crate::days`].
    Days,
}

impl Table {
    /// Every table.
    pub const ALL: &[Self] = &[
        Self::Accounts,
        Self::Registrations,
        Self::Names,
        Self::TopicMembers,
        Self::Messages,
        Self::Mailboxes,
        Self::Timelines,
        Self::Records,
        Self::JobKeys,
        Self::Traces,
        Self::Receipts,
        Self::Callbacks,
        Self::Expiries,
        Self::Feedback,
        Self::Idempotency,
        Self::Days,
    ];

    /// Its name in backends and messages; never changes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accounts => "accounts",
            Self::Registrations => "registrations",
            Self::Names => "names",
            Self::TopicMembers => "topic_members",
            Self::Messages => "messages",
            Self::Mailboxes => "mailboxes",
            Self::Timelines => "timelines",
            Self::Records => "records",
            Self::JobKeys => "job_keys",
            Self::Traces => "traces",
            Self::Receipts => "receipts",
            Self::Callbacks => "callbacks",
            Self::Expiries => "expiries",
            Self::Feedback => "feedback",
            Self::Idempotency => "idempotency",
            Self::Days => "days",
        }
    }
}

/// One cell to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// In which table.
    pub table: Table,
    /// Key of the row; not empty.
    pub row: Vec<u8>,
    /// Key of the cell within the row.
    pub cell: Vec<u8>,
    /// What it holds from now on.
    pub value: Vec<u8>,
    /// From this moment of the store's clock on, in milliseconds since the epoch, the cell is gone; `None` keeps it.
    pub expires_at_ms: Option<u64>,
}

/// One step of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Writes a cell, whether it is there or not.
    Put(Put),
    /// Removes a cell; one that isn't there is no error.
    DeleteCell {
        /// In which table.
        table: Table,
        /// Of which row.
        row: Vec<u8>,
        /// Which cell.
        cell: Vec<u8>,
    },
    /// Removes a row with all its cells; one that isn't there is no error.
    DeleteRow {
        /// In which table.
        table: Table,
        /// Which row.
        row: Vec<u8>,
    },
}

/// Which cells of a row are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cells {
    /// All.
    All,
    /// One.
    One(Vec<u8>),
    /// Those from one key to another.
    Range {
        /// The first key, inclusive.
        from: Vec<u8>,
        /// The key at which to stop, exclusive; `None` reads to the end of the row.
        to: Option<Vec<u8>>,
    },
    /// Those whose key starts so.
    Prefix(Vec<u8>),
}

/// Asks for one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowRead {
    /// In which table.
    pub table: Table,
    /// Which row.
    pub row: Vec<u8>,
    /// Which of its cells.
    pub cells: Cells,
    /// Most cells to return: the first ones in order.
    pub limit: usize,
}

/// A row as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// Its key.
    pub row: Vec<u8>,
    /// Cell keys and values, in the order of the keys.
    pub cells: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Row {
    /// The value of the cell with that key, if it was read.
    pub fn cell(&self, key: &[u8]) -> Option<&[u8]> {
        let at = self.cells.binary_search_by(|(cell, _)| cell.as_slice().cmp(key)).ok()?;
        self.cells.get(at).map(|(_, value)| value.as_slice())
    }
}

/// Asks for a range of rows, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowScan {
    /// In which table.
    pub table: Table,
    /// The first key, inclusive.
    pub from: Vec<u8>,
    /// The key at which to stop, exclusive; `None` reads to the end of the table.
    pub to: Option<Vec<u8>>,
    /// Most rows to return: the first ones in order.
    pub rows_max: usize,
}

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// Nothing was written, for example because the disk is full or the queue of writes is; a later try may succeed.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// No answer in time: the write may have happened. Repeating it is safe.
    #[error("the store did not answer in time: the write may have happened")]
    TimedOut,
    /// What is stored can't be read: names the table, the row in hex and what was wrong.
    #[error("stored data is damaged: {0}")]
    Corrupt(String),
}

impl StoreError {
    /// A row that can't be read.
    pub fn corrupt(table: Table, row: &[u8], reason: impl std::fmt::Display) -> Self {
        let mut text = format!("table {}, row ", table.name());
        for byte in row {
            // Writing to a string can't fail.
            let _ = write!(text, "{byte:02x}");
        }
        let _ = write!(text, ": {reason}");
        Self::Corrupt(text)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Unavailable(_) => Code::StoreUnavailable,
            StoreError::TimedOut => Code::TimedOut,
            StoreError::Corrupt(_) => Code::System,
        };
        Self::new(code, error.to_string())
    }
}

/// Rows of ordered cells. See the [module](self) for what every backend promises.
#[async_trait]
pub trait SortedStore: Send + Sync + 'static {
    /// Writes a batch; durable when `Ok`. An empty batch is no error.
    async fn write(&self, batch: Vec<Mutation>) -> Result<(), StoreError>;

    /// Reads rows, of several tables if need be: one [`Row`] for each that was asked for, in that order, without cells
    /// where there are none.
    async fn read(&self, rows: Vec<RowRead>) -> Result<Vec<Row>, StoreError>;

    /// Reads a range of rows in the order of their keys; rows without live cells don't appear.
    async fn scan(&self, scan: RowScan) -> Result<Vec<Row>, StoreError>;

    /// The keys of a range of rows, as [`scan`](Self::scan) would return them, without the cells: to count, and to look at
    /// many rows whose keys say enough.
    async fn keys(&self, scan: RowScan) -> Result<Vec<Vec<u8>>, StoreError> {
        Ok(self.scan(scan).await?.into_iter().map(|row| row.row).collect())
    }

    /// Writes a cell if no live one is there, as one step: `true` if it was put (durably), `false` if one was there.
    async fn put_if_absent(&self, put: Put) -> Result<bool, StoreError>;
}
