//! Scans of ranges of rows, in pages.
//!
//! HBase leaves out what has expired before it sends anything ([`cells::living`]), and for keys the values too. Pages are as
//! large as the last ones suggest, whole rows come in pieces, and a scanner is closed on whichever way the scan ends, except
//! with the connection that it was used on: then the gateway forgets it after a while. A scan that fails goes on on
//! another connection behind the last whole row.

use hbase_thrift::hbase::{THbaseSyncClient as _, TRowResult, TScan};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::{Row, RowScan, StoreError, Table};
use super::Shared;
use super::cells::{self, Attributes};
use super::gateway::{CallError, Link};
use super::reads::{self, StoredCells};
use crate::keys;

/// Pieces of rows in the first page, and at most.
const PAGE_FIRST: usize = 32;
const PAGE_MAX: usize = 1024;
/// What a page should come to.
const PAGE_BYTES: usize = 1 << 20;
/// Most cells in one piece of a row, at first.
const PIECE_CELLS: i32 = 100;

/// A range to read, and whom to answer.
pub(super) struct Scan {
    pub(super) range: RowScan,
    pub(super) deadline: Instant,
    pub(super) wanted: Wanted,
}

/// What is wanted of the rows, and by whom.
pub(super) enum Wanted {
    Rows(oneshot::Sender<Result<Vec<Row>, StoreError>>),
    Keys(oneshot::Sender<Result<Vec<Vec<u8>>, StoreError>>),
}

/// Scans and answers.
pub(super) fn serve(shared: &Shared, link: &mut Link, request: Scan) {
    let Scan { range: scan, deadline, wanted } = request;
    if deadline <= Instant::now() {
        return;
    }
    shared.gateways.metrics().scans.add(1);
    // One moment for the whole scan.
    let now_ms = shared.clock.now_ms();
    // Whoever no longer waits needs no answer.
    match wanted {
        Wanted::Rows(answer) => {
            let rows = scan_rows(shared, link, &scan, cells::living(now_ms, false), deadline)
                .and_then(|rows| rows.into_iter().map(|(row, cells)| decode(scan.table, row, cells, now_ms)).collect());
            drop(answer.send(rows));
        }
        Wanted::Keys(answer) => {
            let rows = scan_rows(shared, link, &scan, cells::living(now_ms, true), deadline);
            drop(answer.send(rows.map(|rows| rows.into_iter().map(|(row, _)| row).collect())));
        }
    }
}

fn decode(table: Table, row: Vec<u8>, cells: StoredCells, now_ms: u64) -> Result<Row, StoreError> {
    let mut live = Vec::with_capacity(cells.len());
    for (cell, stored) in cells {
        let decoded = cells::decode(table, &row, &stored)?;
        // HBase has left out the others already.
        if decoded.lives(now_ms) {
            live.push((cell, decoded.value.to_vec()));
        }
    }
    Ok(Row { row, cells: live })
}

fn scan_rows(
    shared: &Shared,
    link: &mut Link,
    scan: &RowScan,
    filter: Vec<u8>,
    until: Instant,
) -> Result<Vec<(Vec<u8>, StoredCells)>, StoreError> {
    if scan.rows_max == 0 || scan.to.as_ref().is_some_and(|to| *to <= scan.from) {
        return Ok(Vec::new());
    }
    let mut range = Range {
        shared,
        table: scan.table,
        from: scan.from.clone(),
        to: scan.to.clone(),
        columns: Vec::new(),
        filter: Some(filter),
        rows_max: scan.rows_max,
        page_max: PAGE_MAX,
        piece_cells: PIECE_CELLS,
        until,
        rows: Vec::new(),
    };
    range.run(link)?;
    Ok(range.rows)
}

/// Reads one row that is too large to be read at once, with all that is in it.
pub(super) fn row(
    shared: &Shared,
    link: &mut Link,
    table: Table,
    row: &[u8],
    columns: &[Vec<u8>],
    until: Instant,
) -> Result<StoredCells, StoreError> {
    let mut range = Range {
        shared,
        table,
        from: row.to_vec(),
        to: Some(keys::successor(row)),
        columns: columns.to_vec(),
        filter: None,
        rows_max: 1,
        page_max: 1,
        piece_cells: PIECE_CELLS,
        until,
        rows: Vec::new(),
    };
    range.run(link)?;
    Ok(range.rows.pop().map(|(_, cells)| cells).unwrap_or_default())
}

/// A range that is being read.
struct Range<'a> {
    shared: &'a Shared,
    table: Table,
    from: Vec<u8>,
    to: Option<Vec<u8>>,
    columns: Vec<Vec<u8>>,
    filter: Option<Vec<u8>>,
    rows_max: usize,
    page_max: usize,
    piece_cells: i32,
    until: Instant,
    /// What was read. The last row may not be whole yet.
    rows: Vec<(Vec<u8>, StoredCells)>,
}

impl Range<'_> {
    /// Reads it to the end, over errors that may pass.
    fn run(&mut self, link: &mut Link) -> Result<(), StoreError> {
        loop {
            let whole = self.rows.len();
            let error = match self.pages(link) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match &error {
                CallError::TooLarge(_) if self.page_max > 1 => self.page_max = 1,
                CallError::TooLarge(_) if self.piece_cells > 1 => self.piece_cells = (self.piece_cells / 8).max(1),
                // A scanner is forgotten when its gateway is started anew, and that is an IllegalArgument as well.
                CallError::Refused { lasting: false, .. } | CallError::Lost(_) => {}
                CallError::Refused { .. } if self.rows.len() > whole => {}
                _ => return Err(unavailable(&error)),
            }
            if Instant::now() >= self.until {
                return Err(unavailable(&error));
            }
            self.shared.gateways.metrics().retries.add(1);
            // The last row may lack cells: it is read again.
            if let Some((row, _)) = self.rows.pop() {
                self.from = row;
            }
        }
    }

    fn pages(&mut self, link: &mut Link) -> Result<(), CallError> {
        let mut page = PAGE_FIRST.min(self.page_max).min(self.left());
        let scan = TScan {
            start_row: Some(self.from.clone()),
            stop_row: self.to.clone(),
            timestamp: None,
            columns: Some(self.columns.clone()).filter(|columns| !columns.is_empty()),
            caching: i32::try_from(page).ok(),
            filter_string: self.filter.clone(),
            batch_size: Some(self.piece_cells),
            sort_columns: None,
            reversed: None,
            cache_blocks: None,
        };
        let name = self.shared.table(self.table);
        let opened = link
            .retry(self.until, |client| client.scanner_open_with_scan(name.clone(), scan.clone(), Attributes::new()));
        let scanner = opened.map_err(|failed| failed.error)?;
        let outcome = loop {
            let asked = i32::try_from(page).unwrap_or(i32::MAX);
            let pieces = match link.again(self.until, |client| client.scanner_get_list(scanner, asked)) {
                Ok(pieces) => pieces,
                Err(error) => break Err(error),
            };
            self.shared.gateways.metrics().scan_calls.add(1);
            if pieces.is_empty() {
                break Ok(());
            }
            let (count, bytes) = (pieces.len(), pieces.iter().map(bytes).sum::<usize>());
            for piece in pieces {
                self.keep(piece);
            }
            if self.rows.len() > self.rows_max {
                break Ok(());
            }
            // Twice as many at most, so that a few small ones in front mislead nobody.
            let fitting = (count * PAGE_BYTES) / bytes.max(1);
            page = fitting.clamp(1, (page * 2).min(self.page_max)).min(self.left());
        };
        if !matches!(outcome, Err(CallError::Lost(_) | CallError::TooLarge(_) | CallError::Unreached(_))) {
            // Best effort: the gateway forgets it by itself.
            drop(link.again(self.until, |client| client.scanner_close(scanner)));
        }
        self.rows.truncate(self.rows_max);
        outcome
    }

    /// One row more than asked for tells that the last one is whole.
    fn left(&self) -> usize {
        self.rows_max.saturating_sub(self.rows.len()).saturating_add(1)
    }

    fn keep(&mut self, piece: TRowResult) {
        let (Some(key), Some(columns)) = (piece.row, piece.columns) else { return };
        self.shared.observe(columns.values().map(|cell| cell.timestamp));
        let cells = reads::stored(columns);
        match self.rows.last_mut().filter(|(row, _)| *row == key) {
            Some((_, row)) => row.extend(cells),
            None => self.rows.push((key, cells)),
        }
    }
}

fn bytes(piece: &TRowResult) -> usize {
    let columns = piece.columns.iter().flatten();
    let cells: usize = columns.map(|(name, cell)| 40 + name.len() + cell.value.as_ref().map_or(0, Vec::len)).sum();
    cells + piece.row.as_ref().map_or(0, Vec::len)
}

fn unavailable(error: &CallError) -> StoreError {
    StoreError::Unavailable(format!("HBase: {}", error.reason()))
}
