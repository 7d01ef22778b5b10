//! Reads of rows: what many callers wait for is read with few calls.
//!
//! A thread takes all that waits, up to a number of rows, and asks for it table by table: one call for the rows that are
//! wanted whole or in part, and one for each few columns that are wanted alone. The gateway can't cut a row for several rows
//! at once, so ranges and limits are cut here: rows are bounded. An answer that is larger than we read is asked for
//! again in halves, and at last row by row, in pages.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hbase_thrift::hbase::{THbaseSyncClient as _, TRowResult};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::{Cells, Row, RowRead, StoreError, Table};
use super::Shared;
use super::cells::{self, column};
use super::gateway::{CallError, Failed, Link};
use super::scans;

/// Most columns that one call asks of each of its rows.
const COLUMNS_MAX: usize = 16;

/// Rows to read, and whom to answer.
pub(super) struct Read {
    pub(super) rows: Vec<RowRead>,
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Result<Vec<Row>, StoreError>>,
}

/// A row's cells as they are stored.
pub(super) type StoredCells = BTreeMap<Vec<u8>, Vec<u8>>;
type Rows = HashMap<(Table, Vec<u8>), StoredCells>;

/// Reads for a group of callers and answers them.
pub(super) fn serve(shared: &Shared, link: &mut Link, group: Vec<Read>) {
    let now = Instant::now();
    let group: Vec<_> = group.into_iter().filter(|read| read.deadline > now && !read.answer.is_closed()).collect();
    if group.is_empty() {
        // Their callers have gone, and would be told so by the dropped answers.
        return;
    }
    let metrics = shared.gateways.metrics();
    metrics.reads.add(group.len());
    metrics.reads_gathered.add(1);
    let until = group.iter().map(|read| read.deadline).max().unwrap_or(now);
    match fetch(shared, link, &group, until) {
        Ok(found) => {
            let now_ms = shared.clock.now_ms();
            for Read { rows, answer, .. } in group {
                let rows: Result<Vec<_>, _> = rows.into_iter().map(|read| cut(read, &found, now_ms)).collect();
                // Whoever no longer waits needs no answer.
                drop(answer.send(rows));
            }
        }
        Err(error) => {
            for Read { answer, .. } in group {
                drop(answer.send(Err(error.clone())));
            }
        }
    }
}

/// What one caller asked for, of what was found.
fn cut(read: RowRead, found: &Rows, now_ms: u64) -> Result<Row, StoreError> {
    let RowRead { table, row, cells, limit } = read;
    let key = (table, row);
    let Some(stored) = found.get(&key) else { return Ok(Row { row: key.1, cells: Vec::new() }) };
    let (from, to) = cells.bounds();
    let mut live = Vec::new();
    for (cell, stored) in stored.range(from..).take_while(|(cell, _)| to.as_ref().is_none_or(|to| *cell < to)) {
        if live.len() >= limit {
            break;
        }
        let decoded = cells::decode(table, &key.1, stored)?;
        if decoded.lives(now_ms) {
            live.push((cell.clone(), decoded.value.to_vec()));
        }
    }
    Ok(Row { row: key.1, cells: live })
}

/// What is asked of one table.
#[derive(Default)]
struct Asked {
    whole: BTreeSet<Vec<u8>>,
    /// The rows of which a cell is wanted alone, by that cell.
    alone: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>,
}

fn fetch(shared: &Shared, link: &mut Link, group: &[Read], until: Instant) -> Result<Rows, StoreError> {
    let mut tables: BTreeMap<Table, Asked> = BTreeMap::new();
    for read in group.iter().flat_map(|read| &read.rows) {
        // No row is without a key.
        if read.limit == 0 || read.row.is_empty() {
            continue;
        }
        let asked = tables.entry(read.table).or_default();
        match &read.cells {
            Cells::One(cell) => drop(asked.alone.entry(cell.clone()).or_default().insert(read.row.clone())),
            _ => drop(asked.whole.insert(read.row.clone())),
        }
    }
    let mut found = Rows::new();
    let rows_max = shared.gateways.options().gather_rows_max.max(1);
    for (table, Asked { whole, alone }) in tables {
        let mut fetch = Fetch { shared, link, table, until, found: &mut found };
        let alone: Vec<_> = alone.into_iter().collect();
        for columns in alone.chunks(COLUMNS_MAX) {
            let rows: BTreeSet<_> =
                columns.iter().flat_map(|(_, rows)| rows).filter(|row| !whole.contains(*row)).collect();
            let rows: Vec<_> = rows.into_iter().cloned().collect();
            let columns: Vec<_> = columns.iter().map(|(cell, _)| column(cell)).collect();
            for rows in rows.chunks(rows_max) {
                fetch.rows(rows, &columns)?;
            }
        }
        let whole: Vec<_> = whole.into_iter().collect();
        for rows in whole.chunks(rows_max) {
            fetch.rows(rows, &[])?;
        }
    }
    Ok(found)
}

struct Fetch<'a> {
    shared: &'a Shared,
    link: &'a mut Link,
    table: Table,
    until: Instant,
    found: &'a mut Rows,
}

impl Fetch<'_> {
    /// Reads these columns of these rows, or all.
    fn rows(&mut self, rows: &[Vec<u8>], columns: &[Vec<u8>]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let name = self.shared.table(self.table);
        let answer = self.link.retry(self.until, |client| {
            let attributes = cells::Attributes::new();
            if columns.is_empty() {
                client.get_rows(name.clone(), rows.to_vec(), attributes)
            } else {
                client.get_rows_with_columns(name.clone(), rows.to_vec(), columns.to_vec(), attributes)
            }
        });
        let metrics = self.shared.gateways.metrics();
        metrics.read_calls.add(1);
        metrics.rows_asked.add(rows.len());
        match answer {
            Ok(answer) => {
                for row in answer {
                    self.keep(row);
                }
                Ok(())
            }
            Err(Failed { error: CallError::TooLarge(_), .. }) if rows.len() > 1 => {
                let (first, second) = rows.split_at(rows.len() / 2);
                self.rows(first, columns)?;
                self.rows(second, columns)
            }
            Err(Failed { error: CallError::TooLarge(_), .. }) => {
                let row = rows.first().cloned().unwrap_or_default();
                let cells = scans::row(self.shared, self.link, self.table, &row, columns, self.until)?;
                self.found.entry((self.table, row)).or_default().extend(cells);
                Ok(())
            }
            Err(failed) => Err(unavailable(&failed)),
        }
    }

    fn keep(&mut self, row: TRowResult) {
        let (Some(key), Some(columns)) = (row.row, row.columns) else { return };
        self.shared.observe(columns.values().map(|cell| cell.timestamp));
        self.found.entry((self.table, key)).or_default().extend(stored(columns));
    }
}

/// The cells of columns as the gateway names them.
pub(super) fn stored(columns: BTreeMap<Vec<u8>, hbase_thrift::hbase::TCell>) -> StoredCells {
    let cell = |(name, cell): (Vec<u8>, hbase_thrift::hbase::TCell)| {
        Some((cells::cell_of(&name)?.to_vec(), cell.value.unwrap_or_default()))
    };
    columns.into_iter().filter_map(cell).collect()
}

/// A read that failed changed nothing.
pub(super) fn unavailable(failed: &Failed) -> StoreError {
    StoreError::Unavailable(format!("HBase: {}", failed.error.reason()))
}
